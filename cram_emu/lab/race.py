"""A race that a host can lose: pages on their way to a device that is running full, and the word that it is.

A store tells nobody how it ended. Between the moment at which a device crosses lthresh and the one at which its host has heard
of it, pages go on arriving; those that the margin, the capacity left at lthresh, has no room for are dropped and poisoned.

Memory full of pages that shrink little is reclaimed as fast as the manager can, in batches, to well past what the device
holds. The host hears of the device by its interrupt, which the fault late_irq or lost_irq delays, and by asking before a batch;
or it looks at the registers before each store. Afterwards every page is read: those that the device's page map calls poison
must refuse to be pinned, as a reader would get SIGBUS, and all others hold what was written to them. How many pages are lost
is this machine's; that none is lost in silence is not. One thread reclaims, another brings interrupts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cram_emu.device import Device, Interrupt
from cram_emu.errors import InvalidArgument, PoisonError
from cram_emu.host import Driver, ManagedMemory, Node, Zswap
from cram_emu.lab import loops
from cram_emu.lab.loops import PAGE, Pages, WrongContents
from cram_emu.sizes import format_size

MIB = 1 << 20
_ENTROPY = (2048, 3584)  # bytes of a page: a ratio of some 1.4
_LARGEST = 400 << 30  # bytes of real capacity: no device advertises more than 2.5 times as much
_BATCH = 256  # pages
_NEVER = 3600.0  # seconds


@dataclass(frozen=True)
class Word:
    """How the host hears of the device."""

    name: str
    late_ms: int | None = 0  #: what the interrupt is late by; None: it is lost
    query_interval: float = _NEVER
    live_registers: bool = False


WORDS = (
    Word("in time"),
    Word("1 ms late", 1),
    Word("5 ms late", 5),
    Word("lost", None),
    Word("lost; asks every 2 ms", None, query_interval=0.002),
    Word("lost; reads registers", None, live_registers=True),
)


@dataclass(frozen=True)
class Plan:
    """real: of the device, bytes; margins: lthresh, in percent of it. InvalidArgument."""

    real: int = 16 * MIB
    margins: tuple[float, ...] = (0.5, 2, 5, 10, 20, 40)
    words: tuple[Word, ...] = WORDS
    runs: int = 3
    seed: int = 1

    def __post_init__(self) -> None:
        if self.real < 4 * MIB or self.real % MIB:
            raise InvalidArgument(f"real capacity of {self.real} bytes: not whole MiB, or under 4 MiB")
        if self.real > _LARGEST:
            raise InvalidArgument(f"real capacity of {self.real} bytes: over {format_size(_LARGEST)}")
        loops.check_seed(self.seed)

    @property
    def pages(self) -> int:
        """That are reclaimed: they would fill the device 1.8 times."""
        return 5 * self.real // 2 // PAGE


@dataclass(frozen=True)
class Run:
    """One race. Counts are of pages."""

    stored: int  #: on the device, those that it dropped among them
    lost: int  #: poison
    dropped_writes: int  #: as the device counts them
    elsewhere: int  #: in the pool or in the swap file
    seconds: float  #: of reclaim
    heard_ms: float | None  #: from the crossing of lthresh to the driver's callback; None: no interrupt came

    @property
    def rate(self) -> float:
        """Bytes reclaimed a second."""
        return (self.stored + self.elsewhere) * PAGE / self.seconds


@dataclass(frozen=True)
class Cell:
    """The runs of one word and one margin."""

    word: Word
    margin: float
    runs: list[Run] = field(default_factory=list)

    @property
    def lost(self) -> float:
        """Median."""
        return statistics.median(run.lost for run in self.runs)

    @property
    def most_lost(self) -> int:
        return max(run.lost for run in self.runs)


def run(plan: Plan, progress: Callable[[int, str], None] = lambda done, note: None) -> list[Cell]:
    """A cell for each word and margin. WrongContents: a page was neither right nor poison, or a loss was not counted."""
    cells = [Cell(word, margin) for word in plan.words for margin in plan.margins]
    with loops.ordinary_memory(plan.pages * PAGE) as contents:
        loops.fill(Pages(loops.address_of(contents), plan.pages, seed=plan.seed, low=_ENTROPY[0], high=_ENTROPY[1]))
        # Round by round: what disturbs the machine for a while disturbs one run of a cell.
        for round_ in range(plan.runs):
            for done, cell in enumerate(cells):
                progress(round_ * len(cells) + done, f"{cell.word.name}, {cell.margin:g} %")
                cell.runs.append(_run(plan, cell, contents))
        progress(plan.runs * len(cells), "")
    return cells


def suffices(cells: list[Cell], word: Word) -> float | None:
    """The least margin from which on no run lost a page; None: there is none."""
    least = None
    for cell in sorted((cell for cell in cells if cell.word == word), key=lambda cell: -cell.margin):
        if cell.most_lost:
            break
        least = cell.margin
    return least


def heard_ms(cells: list[Cell], word: Word) -> float | None:
    """Median of the runs to which an interrupt came."""
    times = [run.heard_ms for cell in cells if cell.word == word for run in cell.runs if run.heard_ms is not None]
    return statistics.median(times) if times else None


def rate(cells: list[Cell]) -> float:
    """Median of all runs, bytes a second."""
    return statistics.median(run.rate for cell in cells for run in cell.runs)


def _run(plan: Plan, cell: Cell, contents) -> Run:
    word, size = cell.word, plan.pages * PAGE
    heard: list[float] = []

    def interrupted(node: Node, interrupt: Interrupt) -> None:
        heard.append((time.monotonic_ns() - interrupt.time_ns) / 1e6 + (word.late_ms or 0))

    driver = Driver(interrupt=interrupted, live_registers=word.live_registers)
    device = Device(size, plan.real, lthresh=f"{cell.margin}%", hthresh=f"{min(100, 2 * cell.margin)}%", signal=0)
    with device, Zswap(swap=size, query_interval=word.query_interval) as manager:
        if word.late_ms is None:
            device.faults["lost_irq"].set(probability=100)
        elif word.late_ms:
            device.faults["late_irq"].set(probability=100, value=word.late_ms)
        node = manager.add_node(device, driver)
        # Twice the frames: nothing is reclaimed but here.
        with ManagedMemory(size, dram=2 * size, manager=manager, delivery="inline") as memory:
            loops.copy(memory.address, loops.address_of(contents), plan.pages)
            start = time.perf_counter()
            while memory.reclaim(_BATCH):
                node.query(word.query_interval)
            seconds = time.perf_counter() - start
            stored, lost = _on_device(plan, memory, device)
            dropped = device.stats.dropped_writes
            if len(lost) != dropped:
                raise WrongContents(f"{len(lost)} pages are lost, and {dropped} writes were counted as dropped")
            _verify(plan, memory, lost, contents)
    return Run(stored, len(lost), dropped, plan.pages - stored, seconds, heard[0] if heard else None)


def _on_device(plan: Plan, memory: ManagedMemory, device: Device) -> tuple[int, set[int]]:
    """How many pages are there, and which of them are poison to their reader."""
    stored, lost = 0, set()
    for page in range(plan.pages):
        place = memory.place(page * PAGE)
        if place.where != "direct":
            continue
        stored += 1
        if device.page(place.dpa).poisoned:
            lost.add(page)
    return stored, lost


def _verify(plan: Plan, memory: ManagedMemory, lost: set[int], contents) -> None:
    for page in lost:
        try:
            with memory.pin(page * PAGE, PAGE):
                raise WrongContents(f"page {page} was dropped, and can be read")
        except PoisonError:
            continue
    with memoryview(memory) as view:
        for first, end in _whole(plan.pages, lost):
            if view[first * PAGE : end * PAGE].tobytes() != contents[first * PAGE : end * PAGE]:
                raise WrongContents(f"a page from {first} to {end - 1} is wrong")


def _whole(pages: int, lost: set[int]) -> Iterator[tuple[int, int]]:
    """Ranges without lost pages."""
    first = 0
    for end in (*sorted(lost), pages):
        if end > first:
            yield first, end
        first = end + 1
