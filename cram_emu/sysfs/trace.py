"""sys/kernel/tracing/trace and trace_pipe: a ring of lines in the format of kernel/trace/trace.c.

trace shows what the ring holds, and is emptied by opening it with O_TRUNC. trace_pipe waits for lines and
consumes them: who opens it later does not see them, but readers at one time all see all, so that none
takes another's. Opening either asks for no event: `collect` is called while somebody looks, for those
that nobody announces.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from cram_emu.sysfs.bus import Entries
from cram_emu.sysfs.parse import failure
from cram_emu.sysfs.table import Attribute, Entry, File, Interrupted, Wakeup, check_mode, never

TRACING = "sys/kernel/tracing"
#: Lines kept.
RING = 8192
#: Readers of trace_pipe at a time: each that waits holds a thread of the server.
READERS = 64
# A waiting reader looks so often whether it was interrupted and what there is to collect.
_TICK = 0.1

_HEADER = """\
# tracer: nop
#
# entries-in-buffer/entries-written: {held}/{written}   #P:{cpus}
#
#                                _-----=> irqs-off/BH-disabled
#                               / _----=> need-resched
#                              | / _---=> hardirq/softirq
#                              || / _--=> preempt-depth
#                              ||| / _-=> migrate-disable
#                              |||| /     delay
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
"""


def _task(pid: int) -> str:
    """As trace_find_cmdline() has it: who is gone has no name."""
    try:
        # Bytes as they are: a name may be cut inside a character, and the trace is encoded so.
        name = Path(f"/proc/{pid}/comm").read_bytes().decode("latin-1").rstrip("\n")
    except OSError:
        name = "<...>"
    return f"{name if name.isprintable() else '<...>':>16s}-{pid:<7d}"


class Trace:
    """The ring. Lines are numbered from 1; what is older than RING lines is gone."""

    def __init__(self, collect: Callable[[], object]):
        self._collect = collect
        self._lines: deque[str] = deque(maxlen=RING)
        self._written = 0
        self._consumed = 0
        self._closed = False
        self._changed = threading.Condition()
        self._wakeup = Wakeup()
        self._readers: set[object] = set()

    def emit(self, event: str, time_ns: int | None = None, pid: int | None = None) -> None:
        """Adds a line for an event; time_ns is CLOCK_MONOTONIC, by default now. pid: the process that it is of, by default us."""
        seconds = (time.monotonic_ns() if time_ns is None else time_ns) / 1e9
        with self._changed:
            self._lines.append(f"{_task(pid or os.getpid())} [000] ..... {seconds:12.6f}: {event}\n")
            self._written += 1
            self._changed.notify_all()
        self._wakeup.notify()

    def close(self) -> None:
        """Ends the wait of all readers, who find the end of the file, now and ever after."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def clear(self) -> None:
        with self._changed:
            self._lines.clear()

    def show(self) -> str:
        self._collect()
        with self._changed:
            lines, written = list(self._lines), self._written
        return _HEADER.format(held=len(lines), written=written, cpus=os.cpu_count()) + "".join(lines)

    @property
    def consumed(self) -> int:
        return self._consumed

    def attach(self, reader: object) -> None:
        """EBUSY: there are READERS already."""
        with self._changed:
            if len(self._readers) >= READERS:
                raise failure(errno.EBUSY)
            self._readers.add(reader)

    def detach(self, reader: object) -> None:
        with self._changed:
            self._readers.discard(reader)
        self._wakeup.forget(reader)

    def poll(self, owner: object, number: int, wake: Callable[[], None] | None) -> int:
        """Is there a line after line `number`?"""
        if self._wakeup.changed(owner, number, wake) or self._closed:
            return select.POLLIN | select.POLLRDNORM
        return 0

    def after(self, number: int, wait: bool, interrupted: Interrupted) -> tuple[int, list[str]]:
        """The lines after line `number`, and the last one's number; consumes them.

        Waits for one if there is none, else EAGAIN; EINTR. No lines after close().
        """
        while True:
            self._collect()
            with self._changed:
                if self._written == number and wait and not self._closed:
                    self._changed.wait(_TICK)
                if self._written > number or self._closed:
                    missing = min(self._written - number, len(self._lines))
                    lines = list(self._lines)[len(self._lines) - missing :]
                    self._consumed = max(self._consumed, self._written)
                    return self._written, lines
            if not wait:
                raise failure(errno.EAGAIN)
            if interrupted():
                raise failure(errno.EINTR)


class _History(Attribute):
    def __init__(self, trace: Trace):
        # tracing_write_stub(): what is written there is taken and forgotten.
        super().__init__(0o644, trace.show, lambda text: None)
        self._trace = trace

    def truncate(self) -> None:
        self._trace.clear()


class _Pipe(Entry):
    st_mode = stat.S_IFREG | 0o444

    def __init__(self, trace: Trace):
        self._trace = trace

    def open(self, flags: int) -> File:
        check_mode(self, flags)
        return _PipeFile(self._trace, wait=not flags & os.O_NONBLOCK)


class _PipeFile:
    """tracing_read_pipe(): whole lines while they fit. One read at a time: a file has one position."""

    def __init__(self, trace: Trace, wait: bool):
        self._trace = trace
        self._wait = wait
        self._number = trace.consumed
        self._rest = b""
        self._reading = threading.Lock()
        trace.attach(self)

    def read(self, size: int, offset: int, interrupted: Interrupted = never) -> bytes:
        while not self._reading.acquire(timeout=_TICK):
            if interrupted():
                raise failure(errno.EINTR)
        try:
            if not self._rest:
                self._number, lines = self._trace.after(self._number, self._wait, interrupted)
                self._rest = "".join(lines).encode("latin-1")
            end = self._rest.rfind(b"\n", 0, size) + 1 or size
            text, self._rest = self._rest[:end], self._rest[end:]
            return text
        finally:
            self._reading.release()

    def write(self, data: bytes) -> int:
        raise failure(errno.EBADF)

    def close(self) -> None:
        self._trace.detach(self)

    def poll(self, wake: Callable[[], None] | None) -> int:
        if self._rest:
            return select.POLLIN | select.POLLRDNORM
        return self._trace.poll(self, self._number, wake)


def platform(trace: Trace) -> Entries:
    yield f"{TRACING}/trace", _History(trace)
    yield f"{TRACING}/trace_pipe", _Pipe(trace)
