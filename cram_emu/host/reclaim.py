"""The manager's thread: background reclaim, shrinking, questions to devices, and drivers' callbacks.

It sleeps while nothing happens. Faults wake it and go on; what it is late for they do themselves.
"""

from __future__ import annotations

import time
import weakref
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Event, Lock, Thread, current_thread
from typing import TYPE_CHECKING

from cram_emu._core import ffi, lib
from cram_emu.errors import CramError, NoMemory, report

if TYPE_CHECKING:
    from cram_emu.host.memcg import Memcg
    from cram_emu.host.memory import ManagedMemory
    from cram_emu.host.nodes import Node
    from cram_emu.host.zswap import Zswap

_PAGE = 4096
_NOTES = 1024
#: Pages that the shrinker writes back between two looks at the limit; mm/zswap.c's worker, too, goes on in small steps.
_SHRINK_BATCH = 256
#: Pages reclaimed at a time from a group that is over its limit.
_GROUP_BATCH = 64
#: Pages reclaimed between two questions to drivers who approve of pages.
_APPROVED = 256
#: The next turn after one that went wrong, where nothing happens before.
_AFTER_ERROR_SECONDS = 1.0


class _Request:
    """What another thread waits for."""

    def __init__(self, work: Callable[[], object]):
        self._work = work
        self._error: BaseException | None = None
        self._done = Event()

    def serve(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error
        self._done.set()

    def wait(self) -> None:
        self._done.wait()
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            # Its traceback has this frame: a cycle, which would keep the manager.
            del error


class Reclaimer:
    """The thread of one manager. It does not keep the manager alive."""

    def __init__(self, manager: Zswap):
        self._manager = weakref.ref(manager)
        self._handle = manager._handle
        self._owner = manager._owner
        self._thread = Thread(target=self._run, name="cram-kswapd", daemon=True)
        self._stopped = False
        self._requests: deque[_Request] = deque()
        self._ended = False
        self._ending = Lock()
        self._notes = ffi.new("struct cram_zswap_note[]", _NOTES)
        self._taking = Lock()
        self._untold: deque[tuple[Node, bool, array]] = deque()

    def start(self) -> None:
        """NoMemory"""
        try:
            self._thread.start()
        except RuntimeError as error:
            raise NoMemory(f"no thread for the manager: {error}") from None

    def stop(self) -> None:
        """Ends it, and returns when it has ended."""
        self._stopped = True
        lib.cram_zswap_wake(self._handle)
        if self._thread.is_alive() and self._thread is not current_thread():
            self._thread.join()

    def thread_time(self) -> float:
        """Seconds of processor time; 0.0 when it has ended."""
        ident = self._thread.ident
        return time.clock_gettime(time.pthread_getcpuclockid(ident)) if ident and self._thread.is_alive() else 0.0

    def do(self, work: Callable[[], object]) -> None:
        """Has the thread do that, and waits for it; without a thread, or in it, does it here. What it raises is the caller's."""
        # In a child of fork it is not alive, whatever state the lock is in.
        if self._thread is current_thread() or not self._thread.is_alive():
            work()
            return
        request = _Request(work)
        with self._ending:
            ended = self._ended
            if not ended:
                self._requests.append(request)
        if ended:
            work()
            return
        lib.cram_zswap_wake(self._handle)
        request.wait()

    def _run(self) -> None:
        try:
            due: float | None = None
            while not self._stopped:
                timeout = -1 if due is None else max(0, round((due - time.monotonic()) * 1000))
                work = lib.cram_zswap_wait(self._handle, timeout)
                manager = self._manager()
                if manager is None or self._stopped or manager.closed:
                    return
                self._serve()
                try:
                    due = self._turn(manager, work, due)
                except BaseException:
                    report()
                    due = time.monotonic() + _AFTER_ERROR_SECONDS
                del manager
        finally:
            with self._ending:
                self._ended = True
            self._serve()

    def _serve(self) -> None:
        while self._requests:
            self._requests.popleft().serve()

    def _turn(self, manager: Zswap, work: int, due: float | None) -> float | None:
        """Does the work; when trims are due."""
        if work & lib.CRAM_WORK_RECLAIM:
            _attempt(reclaim, manager)
        if work & lib.CRAM_WORK_SHRINK:
            _attempt(shrink, manager)
        if work & lib.CRAM_WORK_ZSWAP_MAX:
            for group in manager._groups:
                _attempt(shrink_group, manager, group)
        if work & lib.CRAM_WORK_NOTES:
            _attempt(self.tell)
        if due is None and work & lib.CRAM_WORK_TRIM:
            due = _next_flush(manager)
        if due is not None and time.monotonic() >= due:
            for node in manager.nodes:
                _attempt(node.flush)
            due = _next_flush(manager)
        return due

    def take(self) -> None:
        """Takes the notes that are queued by now, for the nodes that there are now."""
        with self._taking:
            # No more than the queue holds: others may add to it as fast.
            for _ in range(lib.CRAM_ZSWAP_NOTES // _NOTES):
                if not self._take_some():
                    return

    def _take_some(self) -> bool:
        """False: there was none."""
        manager = self._manager()
        n = lib.cram_zswap_take_notes(self._handle, self._notes, _NOTES)
        told: dict[tuple[int, int], array] = {}
        for note in self._notes[0:n]:
            told.setdefault((note.node, note.kind), array("Q")).append(note.dpa // _PAGE)
        nodes = {} if manager is None else {node.number: node for node in manager.nodes}
        # Promoted first: a page is promoted, then freed.
        for (number, kind), pages in sorted(told.items(), key=lambda item: -item[0][1]):
            if number in nodes:
                self._untold.append((nodes[number], kind == lib.CRAM_NOTE_FREED, pages))
        return n > 0

    def tell(self) -> None:
        """Calls the drivers for the pages that were promoted and freed by now. A callback may have it called again."""
        self.take()
        # What comes meanwhile has its turn: others wait for this thread.
        for _ in range(len(self._untold)):
            if not self._untold:
                return
            node, freed, pages = self._untold.popleft()
            node.told(freed, pages)


def _attempt(step: Callable, *arguments) -> None:
    """What goes wrong is reported, and the thread goes on."""
    try:
        step(*arguments)
    except CramError:
        # A memory or a node may go at any moment.
        pass
    except BaseException:
        report()


def _next_flush(manager: Zswap) -> float | None:
    """When trims that wait are due; None: none waits."""
    waits = []
    for node in manager.nodes:
        # A node may go at any moment.
        with suppress(CramError):
            if node.stats.trims_waiting:
                waits.append(node.driver.flush_interval)
    return time.monotonic() + min(waits) if waits else None


def reclaim(manager: Zswap) -> None:
    """Brings every memory to its low mark, and every group below its limit."""
    for node in manager.nodes:
        node.query(manager.query_interval)
        node.refill()
    for memory in list(manager._memories):
        with suppress(CramError):
            reclaimed = memory.balance()
            if manager.shrinker_enabled and reclaimed:
                memory.shrink(_shrinker_share(manager, reclaimed))
    for group in manager._groups:
        reclaim_group(manager, group)


def approve(manager: Zswap) -> int:
    """Has drivers approve of pages; how many may be reclaimed before they are to be asked again."""
    pages = 2**63
    for node in manager.nodes:
        if node.driver.page_allocated is None:
            continue
        # It may leave meanwhile.
        with suppress(CramError):
            if node.stats.stock < _APPROVED:
                manager._reclaimer.do(node.refill)
            # One without any takes none, and leaves it to the others.
            pages = min(pages, node.stats.stock or _APPROVED)
    return pages


def _shrinker_share(manager: Zswap, reclaimed: int) -> int:
    """As much of the pool is aged as of the memory, weighed by what it compresses: mm/zswap.c, zswap_shrinker_count()."""
    stats = manager.stats
    pool = stats.pool_total_size // _PAGE
    # Rounded up: a pool that compresses well must age too.
    return -(-reclaimed * pool // stats.stored_pool_pages) if stats.stored_pool_pages else 0


def reclaim_group(manager: Zswap, group: Memcg) -> None:
    """Brings a group below its limit, if it has one and that can be done: by its frames; where they do not help, and the
    shrinker is enabled, by what its memories have in the pool."""
    limit = group.max
    if limit is None:
        return
    memories = _memories_of(manager, group)
    while group.current > limit:
        before = group.current
        for memory in memories:
            with suppress(CramError):
                memory.reclaim(_GROUP_BATCH)
        # What is stored may be charged as much as what was freed.
        if group.current >= before and not (manager.shrinker_enabled and _write_back(memories, _GROUP_BATCH)):
            return


def shrink_group(manager: Zswap, group: Memcg) -> None:
    """Writes a group's part of the pool back until it is below memory.zswap.max, or nothing more goes."""
    limit = group.zswap_max
    if limit is None:
        return
    memories = _memories_of(manager, group)
    written = 1
    while written and (over := group.zswap_current - limit) >= 0:
        # Not more than is needed: no page is charged more than a page.
        written = _write_back(memories, max(1, over // (_PAGE * len(memories)))) if memories else 0


def _memories_of(manager: Zswap, group: Memcg) -> list[ManagedMemory]:
    return [memory for memory in list(manager._memories) if memory.group in group]


def _write_back(memories: Iterable[ManagedMemory], pages: int) -> int:
    """Writes back up to so many pages of each; how many were."""
    written = 0
    for memory in memories:
        # It may be closed meanwhile.
        with suppress(CramError):
            written += memory.shrink(pages)
    return written


def shrink(manager: Zswap) -> None:
    """Writes the pool back to the swap file until it is below the acceptance threshold."""
    written = 1
    while written:
        stats = manager.stats
        accept = stats.max_pages * manager.accept_threshold_percent // 100
        if stats.total_pages[manager.direct_limit] <= accept:
            return
        written = _write_back(list(manager._memories), _SHRINK_BATCH)
