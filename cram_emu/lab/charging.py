"""What a memory cgroup pays for a page on a device, and what reclaim gains by that: three answers, one workload.

A group has a limit (memory.max) of half of its working set, and a device with room for all of it. A page that reclaim takes
gives the charge of a frame back, 4096 bytes, and is charged anew where it is stored: as a whole page, by what the device says
that it takes, or by the mean of the node. Charged as a whole page, it was reclaimed for nothing.

The pages of the group are filled in order, then read and overwritten in a seeded order, most of them a hot set that a
quarter of the limit holds. Every read is verified, and every page once more at the end. The manager's swap file, its pool and
the DRAM limit of the memory have no part in it. Times are this machine's; who wants no noise looks at counts. One thread.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cram_emu.device import Device
from cram_emu.errors import InvalidArgument
from cram_emu.host import ManagedMemory, Memcg, Zswap
from cram_emu.host.zswap import CHARGING
from cram_emu.lab import loops
from cram_emu.lab.loops import PAGE, Pages, WrongContents
from cram_emu.sizes import format_size

MIB = 1 << 20
MODES = tuple(CHARGING)
_HOT_SHARE = 0.9  # of the accesses go to the hot set
_WRITES = 0.2  # of the accesses overwrite the page
_SAMPLES = 200
_ENTROPY = (1024, 2048)  # bytes of a page: a ratio of some 2.5
_LARGEST = 1 << 38  # bytes of the limit: no device advertises more than four times as much
_MEASURED = 256  # pages that the node's ratio is measured on beforehand


@dataclass(frozen=True)
class Plan:
    """Sizes in bytes. InvalidArgument: a limit too small to reclaim in batches, or too large for a device, or no seed."""

    limit: int = 32 * MIB
    seed: int = 1

    def __post_init__(self) -> None:
        if self.limit < MIB or self.limit % PAGE:
            raise InvalidArgument(f"limit of {self.limit} bytes: not whole pages, or under 1 MiB")
        if self.limit > _LARGEST:
            raise InvalidArgument(f"limit of {self.limit} bytes: over {format_size(_LARGEST)}")
        loops.check_seed(self.seed)

    @property
    def pages(self) -> int:
        """Of the working set."""
        return 2 * self.limit // PAGE

    @property
    def hot(self) -> int:
        return self.pages // 8

    @property
    def accesses(self) -> int:
        """After the fill."""
        return 8 * self.pages


@dataclass(frozen=True)
class Sample:
    """The group after so many accesses."""

    accesses: int
    current: int  #: memory.current
    anon: int  #: bytes of frames


@dataclass(frozen=True)
class Outcome:
    """What came of one way of charging. Counts are of pages."""

    charging: str
    accesses: int
    seconds: float
    #: 1 - c / 4096 with c, the bytes charged for a stored page: the mean over all pages reclaimed. What of a reclaimed page's
    #: charge is gone for good.
    efficiency: float
    reclaimed: int
    refaults: int  #: zswpin
    max_events: int  #: memory.events: max
    oom: int  #: memory.events: oom
    peak: int  #: highest memory.current of the samples
    stored: int  #: bytes of the device's media in the end
    samples: list[Sample]

    @property
    def rate(self) -> float:
        """Accesses a second."""
        return self.accesses / self.seconds


def run(plan: Plan, progress: Callable[[int, str], None] = lambda done, note: None) -> list[Outcome]:
    """One outcome for each of MODES. WrongContents: a page did not hold what was written to it."""
    with loops.ordinary_memory(plan.pages * PAGE) as contents:
        loops.fill(Pages(loops.address_of(contents), plan.pages, seed=plan.seed, low=_ENTROPY[0], high=_ENTROPY[1]))
        outcomes = []
        for mode in MODES:
            progress(len(outcomes), f"charging {mode}")
            outcomes.append(_run(plan, mode, contents))
        progress(len(outcomes), "")
        return outcomes


def _run(plan: Plan, mode: str, contents) -> Outcome:
    size = plan.pages * PAGE
    device = Device(2 * size, size, signal=0)
    with device, Zswap([device], swap=0, charging=mode, query_interval=0.01) as manager:
        group = manager.memcg(max=plan.limit)
        with (
            ManagedMemory(_MEASURED * PAGE, manager=manager, delivery="inline") as other,
            ManagedMemory(size, dram=size, manager=manager, group=group, delivery="inline") as memory,
        ):
            _measure(other, contents, manager)
            return _Work(plan, contents, memory, group).outcome(mode, device)


def _measure(other: ManagedMemory, contents, manager: Zswap) -> None:
    """Has the host know the node's ratio: what is charged before it does stays charged, and is the whole page."""
    with memoryview(other) as view:
        view[:] = contents[: len(other)]
    other.reclaim(_MEASURED)
    manager.nodes[0].query()


class _Work:
    """The workload on one memory."""

    def __init__(self, plan: Plan, contents, memory: ManagedMemory, group: Memcg) -> None:
        self._plan = plan
        self._contents = contents
        self._memory = memory
        self._group = group
        self._holds = list(range(plan.pages))  # page i of the memory holds that page of the contents
        self._samples: list[Sample] = []
        self._reclaimed = 0
        self._weighed = 0.0

    def outcome(self, mode: str, device: Device) -> Outcome:
        before = self._reclaims()
        self._reclaimed = before
        start = time.perf_counter()
        with memoryview(self._memory) as view:
            done = self._steps(self._fill(view))
            done = self._steps(self._access(view), done)
            seconds = time.perf_counter() - start
            stats, reclaimed, stored = self._group.stats, self._reclaimed - before, device.stats.used
            self._verify(view)
        return Outcome(
            charging=mode,
            accesses=done,
            seconds=seconds,
            efficiency=1 - self._weighed / reclaimed / PAGE,
            reclaimed=reclaimed,
            refaults=stats.zswpin,
            max_events=stats.max_events,
            oom=stats.oom,
            peak=max(sample.current for sample in self._samples),
            stored=stored,
            samples=self._samples,
        )

    def _steps(self, accesses: Iterator[None], done: int = 0) -> int:
        every = max(1, (self._plan.pages + self._plan.accesses) // _SAMPLES)
        for done, _ in enumerate(accesses, done + 1):
            if done % every == 0:
                self._sample(done)
        self._sample(done)
        return done

    def _reclaims(self) -> int:
        stats = self._memory.manager.stats
        return stats.direct_reclaim + stats.kswapd_reclaim

    def _sample(self, done: int) -> None:
        stats, reclaimed = self._group.stats, self._reclaims()
        self._samples.append(Sample(done, stats.anon + stats.zswap, stats.anon))
        if stats.zswapped:
            self._weighed += (reclaimed - self._reclaimed) * stats.zswap / stats.zswapped
        self._reclaimed = reclaimed

    def _fill(self, view: memoryview) -> Iterator[None]:
        for page in range(self._plan.pages):
            self._write(view, page, page)
            yield

    def _access(self, view: memoryview) -> Iterator[None]:
        chance = random.Random(self._plan.seed)
        for _ in range(self._plan.accesses):
            page = int(chance.random() * (self._plan.hot if chance.random() < _HOT_SHARE else self._plan.pages))
            if chance.random() < _WRITES:
                self._write(view, page, int(chance.random() * self._plan.pages))
            else:
                self._check(view, page)
            yield

    def _verify(self, view: memoryview) -> None:
        for page in range(self._plan.pages):
            self._check(view, page)

    def _write(self, view: memoryview, page: int, what: int) -> None:
        view[page * PAGE : (page + 1) * PAGE] = self._contents[what * PAGE : (what + 1) * PAGE]
        self._holds[page] = what

    def _check(self, view: memoryview, page: int) -> None:
        what = self._holds[page]
        if view[page * PAGE : (page + 1) * PAGE].tobytes() != self._contents[what * PAGE : (what + 1) * PAGE]:
            raise WrongContents(f"page {page} of {self._plan.pages} is wrong")
