"""Compressed devices as memory nodes of a manager, and their drivers' callbacks."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import reprlib
import threading
import time
import warnings
import weakref
from array import array
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cram_emu._core import check, ffi, lib
from cram_emu.device import PAGE, Device, Interrupt, Stats
from cram_emu.errors import CramError, InvalidArgument, report

if TYPE_CHECKING:
    from cram_emu.host.zswap import Zswap

#: A callback that takes longer than this is reported.
SLOW_SECONDS = 0.1
_BATCH = 256

#: .now: this thread is in a page_allocated.
_approving = threading.local()

_REFUSALS = {
    lib.CRAM_REFUSED_NO_ALLOC: "no_alloc",
    lib.CRAM_REFUSED_VERDICT: "verdict",
    lib.CRAM_REFUSED_PRESSURE: "pressure",
    lib.CRAM_REFUSED_FULL: "full",
    lib.CRAM_REFUSED_CALLBACK: "callback",
    lib.CRAM_REFUSED_LIMIT: "limit",
    lib.CRAM_REFUSED_GONE: "gone",
}


def _warn(text: str) -> None:
    try:
        warnings.warn(text, RuntimeWarning, stacklevel=3)
    except RuntimeWarning:
        # Where warnings are errors: whoever reclaims or allocates must go on.
        report()


def _has_room(node: Node, registers: Stats) -> bool:
    return registers.remaining > 0


@dataclasses.dataclass(frozen=True, slots=True)
class Driver:
    """A node's driver: what the manager asks and tells it. All run in the manager's thread, interrupt in the device's; what
    query() and refill() of a node ask, in the caller's.

    Pages are numbers of device pages (DPA / 4096), in an array("Q"), or, with batched=False, one by one. A callback that
    raises, or takes long, is reported and counted; no page is lost by it. It may change the manager's nodes and reclaim, but not wait
    for another thread that does.
    """

    #: safe(node, registers): may the node take pages, as far as its registers tell? Asked at most every query_interval.
    safe: Callable[[Node, Stats], bool] = _has_room
    #: page_allocated(node, pages): 0, -ENXIO (not a page of this driver) or another negative errno, for all or a list for
    #: each. Asked in advance, for pages that are empty yet; who reclaims from another thread waits for the answer. Nothing is
    #: stored on other pages but by a reclaim inside a fault, which does not ask. It may touch managed memory; what it reclaims
    #: itself does not ask it again.
    page_allocated: Callable[[Node, array | int], int | list[int]] | None = None
    #: page_freed(node, pages): they hold nothing any more.
    page_freed: Callable[[Node, array | int], object] | None = None
    #: promoted(node, pages): they were given frames, and are freed next.
    promoted: Callable[[Node, array | int], object] | None = None
    #: interrupt(node, interrupt)
    interrupt: Callable[[Node, Interrupt], object] | None = None
    batched: bool = True
    #: Each store looks at the device's registers too; False: only at what was published at the last question or interrupt.
    live_registers: bool = True
    #: Pages that may wait to be trimmed, 0 to 4096, and for how long (seconds); 0: trimmed at once.
    trim_buffer: int = 0
    flush_interval: float = 1.0

    def check(self) -> None:
        """InvalidArgument, naming the value."""
        for name in ("safe", "page_allocated", "page_freed", "promoted", "interrupt"):
            callback = getattr(self, name)
            if not callable(callback) and (callback is not None or name == "safe"):
                raise InvalidArgument(f"{name} {callback!r}: not a function")
        if not isinstance(self.trim_buffer, int) or not 0 <= self.trim_buffer <= 4096:
            raise InvalidArgument(f"trim_buffer {self.trim_buffer!r}: not from 0 to 4096 pages")
        if not isinstance(self.flush_interval, int | float) or not 0 < self.flush_interval <= 3600:
            raise InvalidArgument(f"flush_interval {self.flush_interval!r}: not from 0 to 3600 seconds")


@dataclasses.dataclass(frozen=True, slots=True)
class NodeStats:
    """Counters of a node (struct cram_node_stats); pages unless said otherwise."""

    stored: int  #: now
    promoted: int
    poisoned: int  #: loads that met poison
    refused: dict[str, int]  #: by reason
    approved: int  #: by page_allocated
    unapproved: int
    stock: int  #: approved, and empty yet
    trims_done: int
    trims_deferred: int
    trims_full: int  #: the buffer was full
    trims_busy: int  #: the driver put them off (a fault on purpose)
    trims_waiting: int
    allowed: bool  #: the verdict
    no_alloc: bool  #: as the host knows it
    pressure: int
    page_size: int  #: bytes of media that a page takes on average, as the host knows it
    callback_errors: int
    slow_callbacks: int


class Node:
    """A device as a node of a manager; made by Zswap.add_node()."""

    def __init__(self, manager: Zswap, device: Device, driver: Driver):
        self._manager = weakref.ref(manager)
        self.device = device
        self.driver = driver
        self.number = 0
        self.online = False
        self._on_interrupt: Callable[[Interrupt], None] | None = None
        self.callback_errors = 0
        self.slow_callbacks = 0
        self._asked = 0.0
        self._heard = 0
        self._verdict = True
        # Until he has been asked.
        self._refused_all = driver.page_allocated is not None
        self._page_size = PAGE
        # What its driver is being asked for: arrays of DPAs.
        self._offers: list = []
        self._lock = threading.Lock()

    # -- what it knows

    @property
    def stats(self) -> NodeStats:
        stats = ffi.new("struct cram_node_stats *")
        check(lib.cram_node_read_stats(self._handle(), self.number, stats))
        names = {field.name for field in dataclasses.fields(NodeStats)}
        values = {name: getattr(stats, name) for name, _ in ffi.typeof(stats[0]).fields if name in names}
        values["refused"] = {name: stats.refused[number] for number, name in _REFUSALS.items()}
        values["allowed"] = bool(stats.allowed)
        values["no_alloc"] = bool(stats.no_alloc)
        return NodeStats(
            **values, callback_errors=self.callback_errors, slow_callbacks=self.slow_callbacks
        )

    def _handle(self):
        manager = self._manager()
        if manager is None or not self.online:
            raise InvalidArgument(f"node {self.number}: its manager has let it go")
        return manager._handle

    # -- what it asks the device

    def query(self, interval: float = 0.0) -> None:
        """Reads the registers, unless that was less than interval seconds ago, and publishes what they say."""
        now = time.monotonic()
        if self._asked and now - self._asked < interval:
            return
        self._asked = now
        heard = self._heard
        try:
            registers = self.device.stats
        except CramError:
            # A device that does not answer is not safe; what is known of it stays as it was.
            self._publish(verdict=False)
            return
        if registers.ratio:
            self._page_size = min(PAGE, max(1, round(PAGE / registers.ratio)))
        else:
            # Nothing is stored yet: what a page takes is not known before the next question, which need not wait.
            self._asked = 0.0
        verdict = self._call("safe", self._safe, registers)
        self._publish(verdict=verdict is True, no_alloc=registers.no_alloc, pressure=registers.pressure, heard=heard)

    def _interrupted(self, interrupt: Interrupt) -> None:
        low = interrupt.name == "lthresh"
        with self._lock:
            self._heard += 1
        self._publish(no_alloc=low, pressure=1000 if low else 0)
        if self.driver.interrupt is not None:
            self._call("interrupt", self.driver.interrupt, interrupt)

    def _publish(
        self,
        verdict: bool | None = None,
        no_alloc: bool | None = None,
        pressure: int | None = None,
        heard: int | None = None,
    ) -> None:
        """heard: interrupts that had come when no_alloc and pressure were read; a later one knows better."""
        with self._lock:
            if heard is not None and heard != self._heard:
                no_alloc = pressure = None
            if verdict is not None:
                self._verdict = verdict
            try:
                known = self.stats
            except CramError:
                # An interrupt may come while the node goes.
                return
            lib.cram_node_publish(
                self._handle(),
                self.number,
                self._verdict and not self._refused_all,
                known.no_alloc if no_alloc is None else no_alloc,
                known.pressure if pressure is None else pressure,
                self._page_size,
            )

    # -- callbacks

    def _call(self, name: str, callback: Callable, *arguments):
        start = time.monotonic()
        try:
            return callback(self, *arguments)
        except BaseException:
            # The test of a callback may end in anything: KeyboardInterrupt, pytest.fail().
            self.callback_errors += 1
            report()
            return None
        finally:
            if time.monotonic() - start > SLOW_SECONDS:
                self.slow_callbacks += 1
                _warn(f"node {self.number}: {name} took {time.monotonic() - start:.1f} s")

    def refill(self) -> None:
        """Has the driver approve of pages in advance; not from page_allocated itself, which would go on for ever."""
        if self.driver.page_allocated is None or getattr(_approving, "now", False):
            return
        room = ffi.new("uint64_t[]", _BATCH)
        # In a child of fork the lock may be held by a thread that is not there.
        self.device._check_open()
        with self._lock:
            n = check(lib.cram_node_offer(self._handle(), self.number, room, _BATCH))
            if n == 0:
                return
            dpas = ffi.new("uint64_t[]", list(room[0:n]))
            self._offers.append(dpas)
        answers = [-errno.EIO] * n
        _approving.now = True
        try:
            answers = self._ask(array("Q", (dpa // PAGE for dpa in dpas)))
        finally:
            _approving.now = False
            with self._lock:
                self._answer(dpas, answers)
        self._refused_all = all(answer != 0 for answer in answers)
        self._publish()

    def _answer(self, dpas, answers: list[int]) -> None:
        # Else it has left meanwhile, or was about to, and its pages were given back: they may be another node's.
        if dpas in self._offers:
            self._offers.remove(dpas)
            check(lib.cram_node_answer(self._handle(), self.number, dpas, ffi.new("int32_t[]", answers), len(answers)))

    def join(self) -> None:
        """Zswap.add_node()'s. CramError, and nothing has changed."""
        node = weakref.ref(self)

        def on_interrupt(interrupt: Interrupt) -> None:
            if (alive := node()) is not None and alive.online:
                alive._interrupted(interrupt)

        params = ffi.new("struct cram_node_params *")
        params.live_registers = bool(self.driver.live_registers)
        params.trim_buffer = self.driver.trim_buffer
        params.approves = self.driver.page_allocated is not None
        number = ffi.new("uint32_t *")
        # First: its registers may not answer.
        _ = self.device.stats
        self._on_interrupt = self.device.on_interrupt(on_interrupt)
        handle = self._manager()._handle
        number[0] = lib.CRAM_NODES_MAX
        try:
            check(lib.cram_zswap_add_node(handle, self.device._handle, params, number))
        finally:
            # A KeyboardInterrupt comes as the call returns: it may have joined.
            self.number, self.online = number[0], number[0] < lib.CRAM_NODES_MAX
        # Nothing is stored there before the driver has been asked.
        self._publish(verdict=False)

    def ask(self) -> None:
        """The first questions to its driver."""
        self.query()
        self.refill()

    def leave(self) -> None:
        """Zswap.remove_node()'s: its pages move off, and it hears of nothing any more."""
        # In a child of fork the lock may be held by a thread that is not there.
        self.device._check_open()
        with self._lock:
            for dpas in list(self._offers):
                self._answer(dpas, [-errno.EIO] * len(dpas))
            handle = self._handle()
            try:
                check(lib.cram_zswap_remove_node(handle, self.number))
            finally:
                # As in join(): it may have left.
                self.online = lib.cram_node_read_stats(handle, self.number, ffi.new("struct cram_node_stats *")) == 0

    def hear_no_more(self) -> None:
        if self._on_interrupt is not None:
            self.device._interrupts.remove(self._on_interrupt)

    def _ask(self, pages: array) -> list[int]:
        if self.driver.batched:
            return self._answers(self._call("page_allocated", self._page_allocated, pages), len(pages))
        return [
            answer
            for page in pages
            for answer in self._answers(self._call("page_allocated", self._page_allocated, page), 1)
        ]

    @staticmethod
    def _safe(node: Node, registers: Stats) -> bool:
        # What has no truth value raises here, where that is the callback's.
        return bool(node.driver.safe(node, registers))

    @staticmethod
    def _page_allocated(node: Node, pages: array | int):
        given = node.driver.page_allocated(node, pages)
        # A generator runs here, where what it raises is the callback's.
        return list(itertools.islice(given, _BATCH + 1)) if isinstance(given, Iterator) else given

    def _answers(self, given, n: int) -> list[int]:
        """One for each page; what is no answer is a refusal."""
        answers = [given] * n if isinstance(given, int) else given
        try:
            answers = [int(answer) for answer in answers]
        except BaseException:
            answers = []
        if len(answers) == n and all(-4096 < answer <= 0 for answer in answers):
            return answers
        if given is not None:
            self.callback_errors += 1
            answer = reprlib.repr(given)
            _warn(f"node {self.number}: page_allocated answered {answer}, not 0 or a negative errno for {n} pages")
        return [-errno.EIO] * n

    def told(self, freed: bool, pages: array) -> None:
        """Pages that were promoted, or freed."""
        name = "page_freed" if freed else "promoted"
        callback = getattr(self.driver, name)
        if callback is None:
            return
        if self.driver.batched:
            self._call(name, callback, pages)
        else:
            for page in pages:
                self._call(name, callback, page)

    def flush(self) -> int:
        """Trims the pages that wait for it; how many."""
        return check(lib.cram_node_flush(self._handle(), self.number))

    def __repr__(self) -> str:
        return f"<Node {self.number}>"
