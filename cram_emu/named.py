"""Devices that a user keeps by name: files in shared memory that outlive whoever made them.

A name stands for a file of this user's private directory. Nothing here keeps a device open.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from cram_emu.device import Client, Device
from cram_emu.errors import (
    AccessDenied,
    Busy,
    DeviceExists,
    DeviceMissing,
    InvalidArgument,
    NotADevice,
    WrongVersion,
)

_SHARED_MEMORY = Path("/dev/shm")
_SUFFIX = ".named"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")


def directory() -> Path:
    """The user's directory for device files. AccessDenied where somebody else has taken its name."""
    path = _SHARED_MEMORY / f"cram_emu-{os.geteuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) & 0o077 == 0
    if not private or found.st_uid != os.geteuid():
        raise AccessDenied(f"{path}: not a directory that is this user's alone")
    return path


def create(name: str, advertised: int | str, real: int | str) -> Path:
    """Makes a device of that name; its file. DeviceExists: there is one."""
    path = _path(name)
    try:
        with Device(advertised, real, path=path):
            return path
    except DeviceExists:
        raise DeviceExists(f"{name}: there is a device of that name already") from None


def names() -> list[str]:
    """Of this user's devices, in order."""
    return sorted(path.name.removesuffix(_SUFFIX) for path in directory().glob(f"*{_SUFFIX}"))


def find(name: str | os.PathLike[str]) -> Path:
    """The file of a device: of this name, where there is one, or the path itself."""
    if isinstance(name, str) and _NAME.fullmatch(name):
        path = directory() / f"{name}{_SUFFIX}"
        if path.exists():
            return path
    return Path(name)


def remove(name: str) -> None:
    """Removes a device. DeviceMissing; Busy: processes have it open, and it stays."""
    path = _path(name)
    if not path.exists():
        raise DeviceMissing(f"{name}: no device of that name")
    try:
        users = clients(path)
    except (NotADevice, WrongVersion):
        users = []  # whatever it is, nobody works on it
    # The race: who opens the file between the look and its end keeps the memory, under no name.
    if users:
        pids = ", ".join(str(client.pid) for client in users)
        raise Busy(f"{name}: in use by process {pids}")
    path.unlink(missing_ok=True)


def clients(path: Path) -> list[Client]:
    """Who has a device open, but for this process; the dead are reaped first."""
    with Device.open(path) as device:
        return [client for client in device.clients() if client.pid != os.getpid()]


def _path(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"{name!r}: a name has letters, digits and _.+-, at most 100")
    return directory() / f"{name}{_SUFFIX}"
