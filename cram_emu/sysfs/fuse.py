"""The table as a file system: a thin layer of FUSE operations, for fusepy (libfuse2) and mfusepy (libfuse3).

It decides nothing about contents. Each operation may run in any number of threads at once. Whatever goes
wrong in a handler becomes an errno at its edge: an exception that left it would crash the wrapper.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import functools
import importlib
import itertools
import logging
import os
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from pathlib import Path
from types import ModuleType
from typing import Any

from cram_emu.errors import BY_CODE_NAME, CramError, DeviceIOError, NotSupported
from cram_emu.sysfs import mountpoint
from cram_emu.sysfs.machine import Machine
from cram_emu.sysfs.parse import failure
from cram_emu.sysfs.table import Directory, Entry, File, Table

#: What entries and their attributes may be cached for; what goes away is dropped at once (forget).
CACHED_SECONDS = 1
#: For the end of a mount that somebody keeps open.
_STOP_SECONDS = 2
# Each reader that waits holds a thread.
_MAX_THREADS = 1024

_ERRNO = {
    error: getattr(errno, name) for name, error in BY_CODE_NAME.items() if hasattr(errno, name)
}
_OTHER_ERRNO = {"ECLOSED": errno.ENODEV, "EFORMAT": errno.EINVAL, "EVERSION": errno.EINVAL}
_ERRNO |= {BY_CODE_NAME[name]: number for name, number in _OTHER_ERRNO.items()}

log = logging.getLogger(__name__)


def errno_of(error: BaseException) -> int:
    """What a client is told of an exception."""
    if isinstance(error, CramError):
        return _ERRNO.get(type(error), errno.EIO)
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    log.error("unexpected error in a file operation", exc_info=error)
    return errno.EIO


def _edge(operation: Callable) -> Callable:
    @functools.wraps(operation)
    def guarded(*args):
        try:
            return operation(*args)
        except BaseException as error:
            raise OSError(errno_of(error), "") from None

    return guarded


def _refuse(number: int) -> Callable:
    def operation(self, *args):
        raise OSError(number, "")

    return operation


class Operations:
    """What FUSE asks. A public attribute named like an operation would be taken for one."""

    use_ns = True
    # What is open answers without a path: its entry may be gone, and libfuse would say ESTALE.
    flag_nullpath_ok = 1
    flag_nopath = 1

    def __init__(self, table: Table, ready: threading.Event, interrupted: Callable[[], bool]):
        self._table = table
        self._ready = ready
        self._interrupted = interrupted
        self._files: dict[int, tuple[Entry, File]] = {}
        self._directories: dict[int, Directory] = {}
        self._handles = itertools.count(1)
        now = time.time_ns()
        self._common = {
            "st_uid": os.geteuid(),
            "st_gid": os.getegid(),
            "st_atime": now,
            "st_mtime": now,
            "st_ctime": now,
        }

    def init(self, path: str) -> None:
        self._ready.set()

    @_edge
    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, int]:
        entry = self._files[fh][0] if path is None else self._find(path)
        return {
            **self._common,
            "st_mode": entry.st_mode,
            "st_nlink": 2 if stat.S_ISDIR(entry.st_mode) else 1,
            "st_size": entry.st_size,
            "st_rdev": entry.rdev,
        }

    @_edge
    def opendir(self, path: str) -> int:
        directory = self._find(path)
        if not isinstance(directory, Directory):
            raise failure(errno.ENOTDIR)
        handle = next(self._handles)
        self._directories[handle] = directory
        return handle

    @_edge
    def readdir(self, path: str | None, fh: int) -> list[tuple[str, dict[str, int] | None, int]]:
        directory = self._directories[fh]
        found: list[tuple[str, dict[str, int] | None, int]] = [(".", None, 0), ("..", None, 0)]
        for name in directory.names():
            entry = directory.get(name)
            if entry is not None:
                found.append((name, {"st_mode": entry.st_mode}, 0))
        return found

    @_edge
    def releasedir(self, path: str | None, fh: int) -> int:
        del self._directories[fh]
        return 0

    @_edge
    def readlink(self, path: str) -> str:
        return self._find(path).text(path[1:])

    @_edge
    def open(self, path: str, flags: int) -> int:
        entry = self._find(path)
        file = entry.open(flags)
        # libfuse3 leaves O_TRUNC to open(); libfuse2 has the kernel call truncate() first, and it is not in the flags.
        if flags & os.O_TRUNC:
            entry.truncate()
        handle = next(self._handles)
        self._files[handle] = entry, file
        return handle

    @_edge
    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes:
        return self._files[fh][1].read(size, offset, self._interrupted)

    @_edge
    def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
        return self._files[fh][1].write(data)

    @_edge
    def truncate(self, path: str | None, length: int, fh: int | None = None) -> int:
        # Without a path it is ftruncate(2), which changes no file of the kernel's; of which, mfusepy does not tell.
        if path is not None:
            self._find(path).truncate()
        return 0

    @_edge
    def release(self, path: str | None, fh: int) -> int:
        self._files.pop(fh)[1].close()
        return 0

    @_edge
    def utimens(self, path: str, times: tuple | None = None) -> int:
        return 0

    def _removed(self, path: str) -> int:
        """The server itself takes away what the kernel remembers of an entry that is gone (forget)."""
        try:
            self._find(path)
        except OSError:
            return 0
        raise OSError(errno.EPERM, "")

    unlink = rmdir = _edge(_removed)
    create = mknod = _refuse(errno.EACCES)
    mkdir = symlink = link = rename = chmod = chown = _refuse(errno.EPERM)

    def _find(self, path: str) -> Entry:
        return self._table.find(path[1:])


class FusepyOperations(Operations):
    """fusepy calls the object with the operation's name."""

    def __call__(self, operation: str, *args: Any) -> Any:
        return getattr(self, operation)(*args)


class MfusepyOperations(Operations):
    """mfusepy has poll(2) as well, where libfuse3 is behind it."""

    def __init__(self, *args: Any, libfuse: ctypes.CDLL):
        super().__init__(*args)
        self._libfuse = libfuse

    @_edge
    def poll(self, path: str | None, fh: int, handle: int | None, events: Any) -> int:
        wake = _PollHandle(self._libfuse, handle) if handle else None
        events[0] = self._files[fh][1].poll(wake)
        return 0


class _PollHandle:
    """A client that polls: called, it makes the kernel ask again. libfuse's handle goes with it."""

    def __init__(self, libfuse: ctypes.CDLL, handle: int):
        self._libfuse = libfuse
        self._handle = ctypes.c_void_p(handle)

    def __call__(self) -> None:
        self._libfuse.fuse_notify_poll(self._handle)

    def __del__(self) -> None:
        self._libfuse.fuse_pollhandle_destroy(self._handle)


# ---- the two libraries ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Library:
    """A Python binding and the C library behind it."""

    name: str
    module: ModuleType
    major: int
    minor: int

    @property
    def libfuse(self) -> ctypes.CDLL:
        return self.module._libfuse

    def operations(self, *args: Any) -> Operations:
        if self.major >= 3:
            return MfusepyOperations(*args, libfuse=self.libfuse)
        return FusepyOperations(*args) if self.name == "fusepy" else Operations(*args)

    def options(self) -> dict[str, Any]:
        """Whatever is mounted, nobody runs it, and its device nodes are not the kernel's."""
        options: dict[str, Any] = {
            "foreground": True,
            "fsname": "cram_emu",
            "subtype": "cram_emu",
            "default_permissions": True,
            "direct_io": True,
            "hard_remove": True,
            "attr_timeout": CACHED_SECONDS,
            "entry_timeout": CACHED_SECONDS,
            "nodev": True,
            "nosuid": True,
            "noexec": True,
        }
        if os.geteuid() == 0:
            options["allow_other"] = True
        if (self.major, self.minor) >= (3, 12):
            options["max_threads"] = _MAX_THREADS
        return options


LIBRARIES = ("mfusepy", "fusepy")


def load(name: str | None = None) -> Library:
    """The binding of that name, else the first that works. NotSupported: there is none."""
    reasons = []
    for candidate in (name,) if name else LIBRARIES:
        try:
            module = _import(candidate)
        except (ImportError, OSError) as error:
            reasons.append(f"{candidate}: {error}")
            continue
        version = module._libfuse.fuse_version()
        major, minor = divmod(version, 100) if version >= 100 else divmod(version, 10)
        return Library(candidate, module, major, minor)
    raise NotSupported(f"no FUSE library ({'; '.join(reasons)}); as root: apt-get install libfuse2")


def _import(name: str) -> ModuleType:
    if name == "fusepy":
        return importlib.import_module("fuse")
    # mfusepy takes libfuse2 where it finds both, and poll(2) is libfuse3's.
    ours = "FUSE_LIBRARY_NAME" not in os.environ and find_library("fuse3") is not None
    if ours:
        os.environ["FUSE_LIBRARY_NAME"] = "fuse3"
    try:
        return importlib.import_module(name)
    finally:
        if ours:
            del os.environ["FUSE_LIBRARY_NAME"]


@contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Keeps from standard error what libfuse says there, which only matters if it fails."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: os.pread(file.fileno(), 4096, 0).decode(errors="replace").strip()
        finally:
            os.dup2(saved, 2)
            os.close(saved)


# ---- a mount ----------------------------------------------------------------------------------


class Mount:
    """A machine's table, mounted. The threads that serve it take no signals: block them first.

    `ended` is called in a thread of its own when the file system is gone, whoever unmounted it.
    """

    def __init__(
        self,
        machine: Machine,
        where: Path,
        library: Library,
        ended: Callable[[], object] = lambda: None,
    ):
        self._machine = machine
        self._where = where
        self._library = library
        self._ended = ended
        self._ready = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._serve, name="cram-fuse", daemon=True)

    def start(self) -> None:
        """Returns when files can be opened. DeviceIOError: it could not be mounted."""
        with _captured_stderr() as said:
            self._thread.start()
            self._ready.wait()
            if self._failed:
                self._thread.join()
                raise DeviceIOError(f"{self._where}: libfuse could not mount there: {said()}")
        self._machine.on_removed = self._forget

    def stop(self) -> bool:
        """Unmounts, lazily. False: somebody keeps a file open, who gets ENOTCONN when this process ends."""
        if self._thread.is_alive():
            self._machine.trace.close()
            try:
                mountpoint.detach(self._where)
            finally:
                self._thread.join(_STOP_SECONDS)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        operations = self._library.operations(
            self._machine.table, self._ready, self._library.libfuse.fuse_interrupted
        )
        try:
            self._library.module.FUSE(operations, str(self._where), **self._library.options())
        except RuntimeError:
            self._failed = not self._ready.is_set()
        finally:
            self._ready.set()
            self._ended()

    def _forget(self, paths: list[str]) -> None:
        """Has the kernel drop what it remembers of paths that are gone, by removing them once more."""
        for path in paths:
            gone = self._where / path
            for remove in (os.unlink, os.rmdir):
                try:
                    remove(gone)
                    break
                except OSError as error:
                    if error.errno not in (errno.EISDIR, errno.ENOTDIR):
                        break  # it had forgotten already


# What the kernel raises where a thread went wrong: blocking it would hide the place.
_OWN_FAULTS = {signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV}
# libfuse takes these for itself where nobody has, as a program of its own would.
_ENDS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


@contextmanager
def mounted(machine: Machine, path: str | os.PathLike[str]) -> Iterator[Path]:
    """A machine's files on an empty directory, served by this process while the context lasts; the directory.

    For a machine that shows a manager, which lives in a process. The program's signals stay its own. Main thread only.
    Errors as of mountpoint.prepare(), load() and Mount.start().
    """
    library, where = load(), mountpoint.prepare(path)
    mount = Mount(machine, where, library)
    default = [number for number in _ENDS if signal.getsignal(number) == signal.SIG_DFL]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _OWN_FAULTS)
    try:
        try:
            mount.start()
            for number in default:
                signal.signal(number, signal.SIG_DFL)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        yield where
    finally:
        mount.stop()
