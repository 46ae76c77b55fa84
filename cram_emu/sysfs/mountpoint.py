"""The place of a mount: whether it can be used, and how it is given back."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cram_emu.errors import Busy, DeviceIOError, NotPermitted, NotSupported

_FUSE = Path("/dev/fuse")
_MNT_DETACH = 2


def require() -> None:
    """NotSupported, NotPermitted: this process cannot mount anything."""
    if not _FUSE.exists():
        raise NotSupported(f"{_FUSE} is missing: this kernel has no FUSE, or the container hides it")
    if not os.access(_FUSE, os.R_OK | os.W_OK):
        raise NotPermitted(f"{_FUSE}: no permission; run as root")
    if os.geteuid() != 0 and _fusermount() is None:
        raise NotPermitted("fusermount3 is missing, which mounts for ordinary users; as root: apt-get install fuse3")


def prepare(path: str | os.PathLike[str]) -> Path:
    """The absolute path of an empty directory to mount on; a dead mount that lies on it is taken away.

    DeviceIOError, Busy, NotPermitted, NotSupported: it cannot be, and nothing has changed.
    """
    require()
    where = Path(os.path.abspath(path))
    try:
        names = os.listdir(where)
    except FileNotFoundError:
        raise DeviceIOError(f"{where}: no such directory") from None
    except NotADirectoryError:
        raise DeviceIOError(f"{where}: not a directory") from None
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
            raise NotPermitted(f"{where}: {error.strerror}") from None
        # Its server was killed.
        detach(where)
        return prepare(where)
    if kind := _mounted(where):
        raise Busy(f"{where}: busy, a file system of type {kind} is mounted there")
    if names:
        raise Busy(f"{where}: busy, the directory is not empty")
    return where


def detach(where: Path) -> None:
    """Unmounts lazily: what is open there keeps its file system until it is closed."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(where), _MNT_DETACH) != 0:
            raise DeviceIOError(f"{where}: cannot unmount: {os.strerror(ctypes.get_errno())}")
        return
    fusermount = _fusermount()
    if fusermount is None:
        raise NotPermitted(f"{where}: cannot unmount without fusermount3; as root: apt-get install fuse3")
    done = subprocess.run([fusermount, "-u", "-z", "--", where], capture_output=True, text=True)
    if done.returncode != 0:
        raise DeviceIOError(f"{where}: cannot unmount: {done.stderr.strip()}")


def _fusermount() -> str | None:
    return shutil.which("fusermount3") or shutil.which("fusermount")


def below(directory: Path) -> list[Path]:
    """What is mounted below a directory, the latest first."""
    resolved = Path(os.path.realpath(directory))
    return [where for where, _ in reversed([*_mounts()]) if resolved in where.parents]


def _mounted(where: Path) -> str | None:
    """The type of the file system that is mounted on a directory."""
    # realpath would follow a link on the way; the kernel's table holds resolved paths.
    resolved = Path(os.path.realpath(where))
    return next((kind for point, kind in reversed([*_mounts()]) if point == resolved), None)


def _mounts() -> Iterator[tuple[Path, str]]:
    """All mount points with their types, as proc(5)'s mountinfo has them."""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields, _, rest = line.partition(b" - ")
        point = fields.split()[4].decode("unicode_escape").encode("latin-1")
        yield Path(os.fsdecode(point)), rest.split()[0].decode()
