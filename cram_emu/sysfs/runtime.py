"""The device files that a machine serves: its own, made in a private directory, and others' that it joins.

A file that is served is locked (flock), so that it cannot be served twice; the kernel drops the lock with
its holder, whatever way that ends. Own files whose lock is free were left by a killed server and go at
the next start; programs that still use one keep its memory.
"""

from __future__ import annotations

import fcntl
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cram_emu import Device, named
from cram_emu.errors import AccessDenied, Busy, DeviceIOError, DeviceMissing

_SUFFIX = ".device"
#: Of the files that this process has made.
_numbers = itertools.count()


class DeviceFiles:
    """The files that this process serves. Threads: any."""

    def __init__(self) -> None:
        self._locks: dict[Path, int] = {}
        self._own: set[Path] = set()

    def create(self, advertised: int | str, real: int | str) -> tuple[Device, Path]:
        """A new device in a file of its own, which goes with release()."""
        with _alone(named.directory()) as where:
            _sweep(where)
            path = where / f"{os.getpid()}-{next(_numbers)}{_SUFFIX}"
            device = Device(advertised, real, path=path)
            self._own.add(path)
            self._lock(path)
        return device, path

    def join(self, path: str | os.PathLike[str]) -> tuple[Device, Path]:
        """The device of another's file, or of that name. Busy: it is served already."""
        path = named.find(path).resolve()
        self._lock(path)
        try:
            return Device.open(path), path
        except BaseException:
            self.release(path)
            raise

    def release(self, path: Path) -> None:
        """Gives a file up; removes it if it is our own. Its device is closed by the caller."""
        if path in self._own:
            self._own.remove(path)
            path.unlink(missing_ok=True)
        os.close(self._locks.pop(path))

    def _lock(self, path: Path) -> None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise DeviceMissing(f"{path}: no such device file") from None
        except PermissionError:
            raise AccessDenied(f"{path}: permission denied") from None
        except OSError as error:
            raise DeviceIOError(f"{path}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise Busy(f"{path}: the device is mounted already") from None
        self._locks[path] = fd


@contextmanager
def _alone(where: Path) -> Iterator[Path]:
    """Among servers that start: between a file's creation and its lock, a sweep would take it."""
    fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield where
    finally:
        os.close(fd)


def _sweep(where: Path) -> None:
    for path in where.glob(f"*{_SUFFIX}"):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # its server has just released it
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        except BlockingIOError:
            pass  # served
        finally:
            os.close(fd)
