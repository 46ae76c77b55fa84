"""The life of a device that is filled until it overflows: what the demo does, act by act.

Each act does its work and returns its figures; how they are shown is the caller's business. The
acts are called in the order they have here, in one thread; one that does not go as it must on such
a device raises StoryFailed. Nothing outlives the story: the device is anonymous memory, and the
program that dies in it dies with this process too.

Sizes are bytes, a page is 4096 of them.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from cram_emu.device import Device, Interrupt, Stats
from cram_emu.errors import CramError, PoisonError
from cram_emu.lab import corpus, tracer
from cram_emu.lab.corpus import PAGE
from cram_emu.lab.ledger import Ledger, Verdict
from cram_emu.sizes import format_size

# Prints an intact page and the address of a poisoned one, then reads that and does not come back.
READER = """\
import sys
from cram_emu import Device

path, intact, poisoned = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with Device.open(path) as device, device.map(delivery="inline") as memory:
    print(memory[intact : intact + 4096].hex())
    print(hex(memory.address + poisoned), flush=True)
    memory[poisoned]
"""

BUS_MCEERR_AR = 4
_LSB = 12  # of the address: the poison covers 4096 bytes

_SMALLEST = 4 << 20
_INTERRUPT_WITHIN = 5.0  # seconds
_REPORT_EVERY = 0.05  # seconds
_TRIM = 1 << 20
_INSIDE = 0x123  # an address inside the poisoned page, not its first


class StoryFailed(CramError):
    """A step of the story did not happen."""


@dataclass(frozen=True)
class Progress:
    """How far a writing act has come."""

    written: int
    registers: Stats


@dataclass(frozen=True)
class Part:
    """One content: its bytes, and the ratio at which the device stored them (0: in no space)."""

    name: str
    note: str
    bytes: int
    ratio: float


@dataclass(frozen=True)
class Fill:
    """Written until the warning came."""

    parts: list[Part]
    written: int
    ratio: float
    used: int
    remaining: int
    dropped_writes: int
    interrupt: Interrupt
    seconds: float


@dataclass(frozen=True)
class Recovery:
    """Given back until the all-clear came."""

    trimmed: int
    used: int
    remaining: int
    interrupt: Interrupt


@dataclass(frozen=True)
class Overflow:
    """Written against the warning.

    The page at DPA `sample` is one of the poisoned; Device.write() of it, dropped again, returned
    `returned`.
    """

    written: int
    used: int
    remaining: int
    interrupt: Interrupt
    dropped_writes: int
    poisoned: int
    poison_records: int
    sample: int
    returned: None


@dataclass(frozen=True)
class MachineCheck:
    """The death of a program that read `address`.

    siginfo is None where ptrace is not permitted. `caught` is what Device.read() raised for the
    same page in a program that handles it.
    """

    address: int
    signal: int
    siginfo: tracer.Siginfo | None
    faults_survived: int
    caught: str


class Story:
    """A device, the program that writes to its mapping, and the checksums of what it wrote.

    A context manager. ValueError where the sizes leave no room for the story.
    """

    def __init__(self, advertised: int, real: int) -> None:
        if real < _SMALLEST:
            least = format_size(_SMALLEST)
            raise ValueError(f"a real capacity of {format_size(real)} is less than {least}")
        if advertised < 4 * real:
            raise ValueError(
                f"an advertised capacity of {format_size(advertised)} is less than "
                f"4 times the real one of {format_size(real)}"
            )
        self._advertised = advertised
        self._real = real
        # The used figure lags by the dirty frames, so the window is small beside the margin that
        # the thresholds leave.
        self._window = min(max(real // 64 // PAGE * PAGE, 64 << 10), 16 << 20)
        batch = min(max(real // 1024 // PAGE * PAGE, PAGE), 256 << 10)
        self._supply = corpus.supply(3 * real // 2, advertised, batch)
        self._ledger = Ledger()
        self._trimmed = 0
        self._sample = 0
        self._interrupts: SimpleQueue[Interrupt] = SimpleQueue()
        self._reported = 0.0

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            self.device = opening.enter_context(Device(self._advertised, self._real))
            self.device.on_interrupt(self._interrupts.put)
            # No periodic write-back: it may take a page that is half written, and the other half
            # then meets the poison. Here only the writer's own faults write back.
            self._memory = opening.enter_context(
                self.device.map(window=self._window, delivery="inline", writeback=0)
            )
            self._opened = opening.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()

    @property
    def pages(self) -> int:
        """Pages written so far: all from DPA 0 on."""
        return len(self._ledger)

    # ---- the acts -----------------------------------------------------------------------------

    def fill(self, progress: Callable[[Progress], None], done: Callable[[Part], None]) -> Fill:
        """Writes the files of this machine until the device says lthresh.

        A driver obeys the no_alloc bit, which the device sets as it raises the interrupt. done
        hears of each part at its end.
        """
        started = time.monotonic()
        parts: list[Part] = []
        for content, pairs in groupby(self._supply, itemgetter(0)):
            start, used = self._written, self.device.stats.used
            for _, batch in pairs:
                self._write(batch, progress)
                if self.device.no_alloc:
                    break
            self._memory.flush()
            length, taken = self._written - start, self.device.stats.used - used
            ratio = length / taken if taken else 0.0
            parts.append(Part(content.name, content.note, length, ratio))
            done(parts[-1])
            if self.device.no_alloc:
                break
        else:
            raise StoryFailed(f"{format_size(self._written)} written, and no_alloc is still clear")
        interrupt = self._interrupt("lthresh")
        registers = self._report(progress)
        return Fill(
            parts=parts,
            written=self._written,
            ratio=registers.ratio,
            used=registers.used,
            remaining=registers.remaining,
            dropped_writes=registers.dropped_writes,
            interrupt=interrupt,
            seconds=time.monotonic() - started,
        )

    def recover(self) -> Recovery:
        """Obeys: writes nothing, and discards the oldest pages until the device says hthresh."""
        while self.device.no_alloc:
            length = min(_TRIM, self._written - self._trimmed)
            if not length:
                raise StoryFailed("every page was discarded, and no_alloc is still set")
            self.device.discard(self._trimmed, length)
            self._ledger.discarded(self._trimmed // PAGE, length // PAGE)
            self._trimmed += length
        interrupt = self._interrupt("hthresh")
        registers = self.device.stats
        return Recovery(self._trimmed, registers.used, registers.remaining, interrupt)

    def verify(self, progress: Callable[[int], None]) -> Verdict:
        """Reads every page written so far; progress hears the number of pages of each run read."""
        return self._ledger.verify(self.device, progress)

    def overflow(self, progress: Callable[[Progress], None]) -> Overflow:
        """Writes on, whatever the device says, until a 32nd of the real capacity was dropped."""
        start, enough = self._written, self._real // 32 // PAGE
        for _, batch in self._supply:
            self._write(batch, progress)
            if self.device.stats.dropped_writes >= enough:
                break
        else:
            raise StoryFailed(f"{format_size(self._written)} written, and nothing overflowed")
        self._memory.flush()
        interrupt = self._interrupt("lthresh")
        returned = self._write_to_poison()
        registers = self._report(progress)
        return Overflow(
            written=self._written - start,
            used=registers.used,
            remaining=registers.remaining,
            interrupt=interrupt,
            dropped_writes=registers.dropped_writes,
            poisoned=registers.poisoned,
            poison_records=registers.poison_records,
            sample=self._sample,
            returned=returned,
        )

    def machine_check(self) -> MachineCheck:
        """Lets a program map the device and read a poisoned page; it dies by SIGBUS."""
        try:
            self.device.read(self._sample, PAGE)
            raise StoryFailed(f"the poisoned page at {self._sample:#x} was read")
        except PoisonError as error:
            caught = str(error)
        self._memory.close()  # a range of the device belongs to one process at a time
        path = f"/proc/{os.getpid()}/fd/{self.device.fileno()}"
        poisoned = self._sample + _INSIDE
        # faulthandler would catch the signal and raise another one in its place.
        plain = ["env", "-u", "PYTHONFAULTHANDLER", "-u", "PYTHONDEVMODE", sys.executable]
        ending = tracer.run([*plain, "-c", READER, path, str(self._trimmed), str(poisoned)])
        self.device.reap()
        lines = ending.output.splitlines()
        if ending.signal != signal.SIGBUS or len(lines) < 2:
            raise StoryFailed(f"the reader of a poisoned page did not die by SIGBUS: {ending}")
        if not self._ledger.holds(self._trimmed // PAGE, bytes.fromhex(lines[0])):
            raise StoryFailed(f"the reader got other bytes at {self._trimmed:#x} than were written")
        address, seen = int(lines[1], 16), ending.siginfo
        if seen and (seen.code, seen.address, seen.lsb) != (BUS_MCEERR_AR, address, _LSB):
            raise StoryFailed(f"reading {address:#x} gave the wrong siginfo: {seen}")
        return MachineCheck(address, ending.signal, seen, ending.handled, caught)

    # ---- what the acts are made of ------------------------------------------------------------

    @property
    def _written(self) -> int:
        return self.pages * PAGE

    def _write(self, batch: bytes, progress: Callable[[Progress], None]) -> None:
        start = self._written
        self._ledger.record(self.pages, batch)
        # Page by page: a copy of many may end with a store to the first, which may be poison then.
        for offset in range(0, len(batch), PAGE):
            dpa = start + offset
            self._memory[dpa : dpa + PAGE] = batch[offset : offset + PAGE]
        if time.monotonic() - self._reported >= _REPORT_EVERY:
            self._report(progress)

    def _report(self, progress: Callable[[Progress], None]) -> Stats:
        registers = self.device.stats
        progress(Progress(self._written, registers))
        self._reported = time.monotonic()
        return registers

    def _write_to_poison(self) -> None:
        """Writes to the last poisoned page what cannot fit; the device must not say so."""
        for page in range(self.pages - 1, 0, -1):
            if self._poisoned(page):
                break
        else:
            raise StoryFailed("writes were dropped, and no page is poisoned")
        self._sample = page * PAGE
        data = os.urandom(PAGE)
        self._ledger.record(page, data)
        returned = self.device.write(self._sample, data)
        if not self._poisoned(page):
            raise StoryFailed(f"a write to the full device at {self._sample:#x} was not dropped")
        return returned

    def _poisoned(self, page: int) -> bool:
        return self.device.page(page * PAGE).state == "poison"

    def _interrupt(self, name: str) -> Interrupt:
        """The next interrupt, which must be the one named."""
        try:
            interrupt = self._interrupts.get(timeout=_INTERRUPT_WITHIN)
        except Empty:
            raise StoryFailed(f"no {name} was raised within {_INTERRUPT_WITHIN} s") from None
        if interrupt.name != name:
            raise StoryFailed(f"{interrupt.name} was raised where {name} was due")
        return interrupt
