"""Runs a program and says how it ended; for a deadly signal, the siginfo that the kernel delivered.

It uses ptrace(2): the tracer sees each signal before the program does and passes it on, so a
program that handles SIGBUS (a mapping with inline delivery does, at every fault) runs as it would
without a tracer, slower. It follows the program's first thread only: a signal that kills from
another thread is reported without its siginfo. It does not touch the program's memory or registers.

The kernel takes ptrace requests from the tracing thread only, so a run begins and ends in the
thread that calls it; several threads may each have one.
"""

import ctypes
import os
import signal
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Self

_SEIZE, _CONT, _GETSIGINFO = 0x4206, 7, 0x4202
_EXITKILL = 0x100000  # the program dies with its tracer

_CODES = {
    (signal.SIGBUS, 2): "BUS_ADRERR",
    (signal.SIGBUS, 4): "BUS_MCEERR_AR",
    (signal.SIGBUS, 5): "BUS_MCEERR_AO",
    (signal.SIGSEGV, 1): "SEGV_MAPERR",
    (signal.SIGSEGV, 2): "SEGV_ACCERR",
}

# The program waits for a line, so that the tracer is there before its first instruction; one that
# is meant to die leaves no core file.
_GATE = 'ulimit -c 0; read -r _ && exec "$@" </dev/null'


@dataclass(frozen=True)
class Siginfo:
    """What the kernel says of a signal; address and lsb mean something for faults only."""

    signal: int
    code: int
    address: int
    lsb: int

    @property
    def code_name(self) -> str:
        """The name of si_code where it has one here, else its number."""
        return _CODES.get((self.signal, self.code), str(self.code))


@dataclass(frozen=True)
class Ending:
    """How a program ended: exactly one of exit_code and signal is not None.

    `siginfo` belongs to that signal and is None where the tracer did not see it. `handled` counts
    the signals that the first thread was given and survived. `traced` is False where ptrace is not
    permitted. `output` is what the program wrote to stdout and stderr.
    """

    exit_code: int | None
    signal: int | None
    siginfo: Siginfo | None
    handled: int
    traced: bool
    output: str


def run(args: Sequence[str], *, timeout: float = 30.0) -> Ending:
    """Runs args (no shell, stdin empty) to the end; after timeout seconds it is killed.

    A program that is not found exits with 127. It has its own process group, and is gone when this
    returns or raises.
    """
    with tempfile.TemporaryFile() as output, _Program(args, output, timeout) as program:
        status = program.follow()
        output.seek(0)
        return program.ending(status, output.read().decode(errors="replace"))


class _Program:
    """A child process behind the gate, from entering the context to leaving it."""

    def __init__(self, args: Sequence[str], output: BinaryIO, timeout: float) -> None:
        self._args = args
        self._output = output.fileno()
        self._deadline = threading.Timer(timeout, self._kill)
        self._traced = False
        self._last: Siginfo | None = None
        self._signals = 0

    def __enter__(self) -> Self:
        gate, self._opener = os.pipe()
        try:
            self._pid = os.posix_spawn(
                "/bin/sh",
                ["sh", "-c", _GATE, "sh", *self._args],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, gate, 0),
                    (os.POSIX_SPAWN_DUP2, self._output, 1),
                    (os.POSIX_SPAWN_DUP2, self._output, 2),
                ],
                setpgroup=0,
            )
        finally:
            os.close(gate)
        # A signal sent through it can never reach another process that got the same number.
        self._process = os.pidfd_open(self._pid)
        self._deadline.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._deadline.cancel()
        self._deadline.join()
        self._kill()
        with suppress(ChildProcessError):
            while os.WIFSTOPPED(os.waitpid(self._pid, 0)[1]):
                pass
        os.close(self._process)
        os.close(self._opener)

    def follow(self) -> int:
        """Lets the program run, passes every signal on, and returns its last wait status."""
        with suppress(PermissionError):  # a container's filter, or Yama
            _ptrace(_SEIZE, self._pid, _EXITKILL)
            self._traced = True
        os.write(self._opener, b"\n")
        while True:
            _, status = os.waitpid(self._pid, 0)
            if not os.WIFSTOPPED(status):
                return status
            with suppress(ProcessLookupError):  # killed while stopped: the next wait tells
                self._resume(status)

    def ending(self, status: int, output: str) -> Ending:
        """What the last wait status and the signals before it amount to."""
        if os.WIFEXITED(status):
            code = os.WEXITSTATUS(status)
            return Ending(code, None, None, self._signals, self._traced, output)
        number = os.WTERMSIG(status)
        seen = self._last if self._last and self._last.signal == number else None
        return Ending(None, number, seen, self._signals - bool(seen), self._traced, output)

    def _resume(self, status: int) -> None:
        stopped_by_group = status >> 16
        if stopped_by_group:
            _ptrace(_CONT, self._pid, 0)
            return
        raw = _RawSiginfo()
        _ptrace(_GETSIGINFO, self._pid, ctypes.addressof(raw))
        self._last = Siginfo(raw.signal, raw.code, raw.address, raw.lsb)
        self._signals += 1
        _ptrace(_CONT, self._pid, raw.signal)

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, signal.SIGKILL)


class _RawSiginfo(ctypes.Structure):
    _fields_ = [
        ("signal", ctypes.c_int),
        ("errno", ctypes.c_int),
        ("code", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("address", ctypes.c_uint64),
        ("lsb", ctypes.c_int16),
        ("rest", ctypes.c_char * 102),
    ]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def _ptrace(request: int, pid: int, data: int) -> None:
    if _libc.ptrace(request, pid, None, data) == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"ptrace({request:#x}, {pid}): {os.strerror(code)}")
