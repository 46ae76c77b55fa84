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

from cram_emu.device import Client, Device, Stats

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
    resident_frames: int  #: of the watched processes
    processes: int
    faults: int
    written_back: int
    dropped_writes: int
    poisoned: int
    lthresh: int
    hthresh: int


class Watch:
    """Samples a device in a thread until stop(). Threads: one at a time may call."""

    def __init__(self, device: Device, mine: Callable[[int], bool]):
        """mine: is this process one of those that are watched?"""
        self._device = device
        self._mine = mine
        self._start = time.monotonic()
        self._first = device.stats
        self._known: dict[int, Client] = {}
        self._done = (0, 0)  #: faults and write-backs of processes that are gone
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
            if len(self.samples) > _SAMPLES_MAX:
                del self.samples[1::2]
                self._period *= 2

    def _take(self) -> None:
        now, stats = time.monotonic(), self._device.stats
        clients = self._count()
        self.samples.append(
            Sample(
                seconds=now - self._start,
                held=_held(stats),
                used=stats.used,
                remaining=stats.remaining,
                ratio=stats.ratio,
                resident_frames=sum(client.resident_frames for client in clients),
                processes=len(clients),
                faults=self._done[0] + sum(client.faults for client in clients),
                written_back=self._done[1] + sum(client.written_back for client in clients),
                dropped_writes=stats.dropped_writes - self._first.dropped_writes,
                poisoned=stats.poisoned,
                lthresh=stats.lthresh - self._first.lthresh,
                hthresh=stats.hthresh - self._first.hthresh,
            )
        )

    def _count(self) -> list[Client]:
        now = {c.pid: c for c in self._device.clients() if c.pid in self.pids or self._mine(c.pid)}
        for pid, before in self._known.items():
            # Gone, or its slot has been given to another process of that number.
            if pid not in now or now[pid].faults < before.faults:
                self._done = (self._done[0] + before.faults, self._done[1] + before.written_back)
        self._known = now
        self.pids.update(now)
        return list(now.values())


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
    ratio: float  #: when most was held
    lowest_ratio: float
    remaining: int  #: the least
    resident_frames: int  #: the most
    processes: int
    faults: int
    written_back: int
    dropped_writes: int
    poisoned: int
    lthresh: int
    hthresh: int
    history: list[Sample]

    def as_json(self) -> dict:
        """The report as JSON has it; the history as a table: names, then rows."""
        report = dataclasses.asdict(dataclasses.replace(self, history=[]))
        names = [field.name for field in dataclasses.fields(Sample)]
        rows = [[getattr(sample, name) for name in names] for sample in self.history]
        return {**report, "history": {"columns": names, "rows": rows}}


def summarise(samples: list[Sample], processes: int) -> dict:
    """The part of a report that the samples tell."""
    fullest = max(samples, key=lambda sample: sample.held)
    # While next to nothing is held, a ratio says nothing.
    ratios = [s.ratio for s in samples if s.ratio and s.held >= fullest.held / 10]
    last = samples[-1]
    return {
        "held": fullest.held,
        "used": max(sample.used for sample in samples),
        "ratio": fullest.ratio,
        "lowest_ratio": min(ratios, default=0.0),
        "remaining": min(sample.remaining for sample in samples),
        "resident_frames": max(sample.resident_frames for sample in samples),
        "processes": processes,
        "faults": last.faults,
        "written_back": last.written_back,
        "dropped_writes": last.dropped_writes,
        "poisoned": max(sample.poisoned for sample in samples),
        "lthresh": last.lthresh,
        "hthresh": last.hthresh,
        "history": samples,
    }


def is_child_of(pid: int) -> Callable[[int], bool]:
    """For Watch: this process's descendants; whoever has been found to be one stays so."""
    return lambda other: other != os.getpid() and descends(other, pid)
