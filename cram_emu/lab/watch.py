"""What a device saw while a program ran: samples over time, and what they come to.

It reads registers and the client table, and changes nothing but that it reaps dead clients at the end.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cram_emu.device import Client, Device, Stats
from cram_emu.lab.witness import Place, Struck

if TYPE_CHECKING:
    from cram_emu.host import Zswap

PAGE = 4096
#: Samples are taken so often at first; when there are too many, every other one goes, and half as often.
_PERIOD_SECONDS = 0.02
_SAMPLES_MAX = 2000


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """The device at a moment. Sizes in bytes; counters since the watch began."""

    seconds: float
    held: int  #: what the pages in the media come to, uncompressed
    used: int
    remaining: int
    ratio: float  #: 0.0 when none is used
    placed: int  #: of the watched processes, as all below to faults; what forks share counts for each
    resident_frames: int
    elsewhere: int  #: private memory that is not the device's
    processes: int
    faults: int
    written_back: int
    poison_faults: int
    dropped_writes: int  #: of the device, as all below
    poisoned: int
    lthresh: int
    hthresh: int
    direct: int = 0  #: managed: pages on the device, uncompressed
    pooled: int = 0  #: managed: pages in the pool, uncompressed
    pool: int = 0  #: managed: memory that the pool takes


@dataclasses.dataclass(frozen=True, slots=True)
class PoisonMet:
    """A process that touched poison."""

    pid: int
    name: str  #: as it was last seen; a short life may have been that of its parent's name
    times: int
    seconds: float  #: since the watch began, when it was first noticed
    places: list[Place] = dataclasses.field(default_factory=list)  #: of the first few accesses


class Watch:
    """Samples a device in a thread until stop(). Threads: one at a time may call."""

    def __init__(
        self,
        device: Device,
        before: Stats,
        mine: Callable[[int], bool],
        manager: Zswap | None = None,
        told: Callable[[Sample], None] | None = None,
    ):
        """before: what was counted before is not told. mine: is this process one of those that are watched? manager: theirs,
        with the device as its node, to which it publishes what the device tells. told: of each sample but the first and the
        last."""
        self._device = device
        self._told = told
        self._manager = manager
        self._mine = mine
        self._start = time.monotonic()
        self._first = before
        self._known: dict[int, Client] = {}
        self._done = dict.fromkeys(_COUNTERS, 0)  #: of processes that are gone
        self._names: dict[int, str] = {}
        self.met: dict[int, PoisonMet] = {}
        self.shared = False  #: did others use the device?
        self._stopped = threading.Event()
        self._period = _PERIOD_SECONDS
        self.samples: list[Sample] = []
        self.pids: set[int] = set()
        self._take()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Takes the last sample: before anybody reaps the dead, it has all that they did."""
        self._stopped.set()
        self._thread.join()
        self._take()

    def _run(self) -> None:
        while not self._stopped.wait(self._period):
            self._take()
            if self._told is not None:
                self._told(self.samples[-1])
            if len(self.samples) > _SAMPLES_MAX:
                del self.samples[1::2]
                self._period *= 2

    def _take(self) -> None:
        seconds = time.monotonic() - self._start
        stats = self._device.observe()
        clients = self._count(seconds)
        resident_frames = sum(client.resident_frames for client in clients)
        placed = sum(client.mapped for client in clients)
        managed = {}
        if self._manager is not None:
            for node in self._manager.nodes:
                node.query(self._manager.query_interval)
            now = self._manager.stats
            placed = PAGE * (resident_frames + now.stored_pages + now.stored_zero_pages)
            managed = {
                "direct": PAGE * now.stored_direct_pages,
                "pooled": PAGE * now.stored_pool_pages,
                "pool": now.pool_total_size,
            }
        counted = {
            name: self._done[name] + sum(getattr(client, name) for client in clients) for name in _COUNTERS
        }
        self.samples.append(
            Sample(
                seconds=seconds,
                held=_held(stats),
                used=stats.used,
                remaining=stats.remaining,
                ratio=stats.ratio,
                placed=placed,
                resident_frames=resident_frames,
                elsewhere=sum(map(_elsewhere, clients)),
                processes=len(clients),
                **counted,
                dropped_writes=stats.dropped_writes - self._first.dropped_writes,
                poisoned=stats.poisoned,
                lthresh=stats.lthresh - self._first.lthresh,
                hthresh=stats.hthresh - self._first.hthresh,
                **managed,
            )
        )

    def _count(self, seconds: float) -> list[Client]:
        everybody = self._device.clients()
        now = {c.pid: c for c in everybody if c.pid in self.pids or self._mine(c.pid)}
        # Who looks only, as a mount's server does, has no part in what the registers say.
        others = (c for c in everybody if c.pid not in now and c.pid != os.getpid())
        self.shared = self.shared or any(c.mapped or c.faults for c in others)
        for pid, before in self._known.items():
            # Gone, or its slot has been given to another process of that number.
            if pid not in now or now[pid].faults < before.faults:
                self._done = {name: n + getattr(before, name) for name, n in self._done.items()}
        for pid, client in now.items():
            # It may have become another program since.
            self._names[pid] = _name_of(pid) or self._names.get(pid, "?")
            if client.poison_faults:
                first = self.met[pid].seconds if pid in self.met else seconds
                self.met[pid] = PoisonMet(pid, self._names[pid], client.poison_faults, first)
        self._known = now
        self.pids.update(now)
        return list(now.values())


#: What clients count since they came.
_COUNTERS = ("faults", "written_back", "poison_faults")


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _elsewhere(client: Client) -> int:
    """Bytes of its private memory beside the device's frames; 0 when it has gone."""
    try:
        text = Path(f"/proc/{client.pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    kib = next((int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon:")), 0)
    return max(0, kib * 1024 - client.resident_frames * PAGE)


def _held(stats: Stats) -> int:
    return PAGE * (stats.pages_stored + stats.pages_raw + stats.pages_zero + stats.pages_same)


def descends(pid: int, ancestor: int) -> bool:
    """Is the process the ancestor, or a child of its, however far down? One that is gone is not."""
    while pid > 1 and pid != ancestor:
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        pid = int(text.rpartition(")")[2].split()[1])
    return pid == ancestor


@dataclasses.dataclass(frozen=True)
class Report:
    """What a program's run came to. Sizes in bytes."""

    command: list[str]
    exit_code: int | None  #: None: a signal ended it
    signal: int | None
    seconds: float
    mode: str
    delivery: str
    window: int
    advertised: int
    real: int
    held: int  #: the most that was on the device, uncompressed
    used: int  #: the most of its media
    placed: int  #: the most of the program's memory that was on the device
    elsewhere: int  #: the most that was not
    ratio: float  #: when most was held; 0: nothing was
    lowest_ratio: float
    remaining: int  #: the least
    resident_frames: int  #: the most
    processes: int
    at_once: int  #: of them
    faults: int
    written_back: int
    dropped_writes: int
    poisoned: int  #: the most at once
    lthresh: int
    hthresh: int
    shared: bool  #: others used the device too: what is the device's is not the program's alone
    met_poison: list[PoisonMet]
    history: list[Sample]
    injected: dict[str, int] = dataclasses.field(default_factory=dict)  #: faults on purpose, how often each struck
    again: str | None = None  #: the command that does the same, where a seed was given
    direct: int = 0  #: managed: the most that was on the device, uncompressed
    pooled: int = 0  #: managed: the most that was in the pool, uncompressed
    pool: int = 0  #: managed: the most memory that the pool took
    manager: dict[str, int] | None = None  #: its counters at the end (ZswapStats)
    poison_at: Struck | None = None  #: what became of the target, where there was one

    def as_json(self) -> dict:
        """The report as JSON has it; the history as a table: names, then rows."""
        report = dataclasses.asdict(dataclasses.replace(self, history=[]))
        names = [field.name for field in dataclasses.fields(Sample)]
        rows = [[getattr(sample, name) for name in names] for sample in self.history]
        return {**report, "history": {"columns": names, "rows": rows}}


def summarise(samples: list[Sample]) -> dict:
    """The part of a report that the samples tell."""
    fullest = max(samples, key=lambda sample: sample.held)
    # While next to nothing is held, a ratio says nothing.
    ratios = [s.ratio for s in samples if s.ratio and s.held >= fullest.held / 10]
    last = samples[-1]
    return {
        "held": fullest.held,
        "used": max(sample.used for sample in samples),
        "placed": max(sample.placed for sample in samples),
        "elsewhere": max(sample.elsewhere for sample in samples),
        "ratio": fullest.ratio,
        "lowest_ratio": min(ratios, default=0.0),
        "remaining": min(sample.remaining for sample in samples),
        "resident_frames": max(sample.resident_frames for sample in samples),
        "at_once": max(sample.processes for sample in samples),
        "faults": last.faults,
        "written_back": last.written_back,
        "dropped_writes": last.dropped_writes,
        "poisoned": max(sample.poisoned for sample in samples),
        "lthresh": last.lthresh,
        "hthresh": last.hthresh,
        **{name: max(getattr(sample, name) for sample in samples) for name in ("direct", "pooled", "pool")},
        "history": samples,
    }


def is_child_of(pid: int) -> Callable[[int], bool]:
    """For Watch: this process's descendants; whoever has been found to be one stays so."""
    return lambda other: other != os.getpid() and descends(other, pid)
