"""A mounted tree from outside: what programs of this package read there, through the files alone."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cram_emu.errors import CramError, DeviceIOError, InvalidArgument
from cram_emu.sysfs.registers import DEVICES
from cram_emu.sysfs.trace import TRACING

#: Files of a device that hold words, not numbers.
_WORDS = ("path", "codec")


@contextmanager
def told(mountpoint: str | os.PathLike[str]) -> Iterator[None]:
    """A failure to read the tree becomes an error that says where; but not that of a reader of ours."""
    try:
        yield
    except (CramError, BrokenPipeError):
        raise
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise DeviceIOError(f"{mountpoint}: its server was killed; mount it again") from None
        raise DeviceIOError(f"{mountpoint}: {error.strerror}") from None


class Tree:
    """The machine that is mounted at a directory. InvalidArgument: there is none."""

    def __init__(self, mountpoint: str | os.PathLike[str]):
        self._root = Path(mountpoint)
        with told(mountpoint):
            try:
                # The kernel may remember what a killed server said of a path, but never a listing.
                os.listdir(self._root / DEVICES)
            except (FileNotFoundError, NotADirectoryError):
                raise InvalidArgument(f"{mountpoint}: no machine is mounted there") from None

    def path(self, path: str) -> Path:
        return self._root / path

    @property
    def trace(self) -> Path:
        return self.path(f"{TRACING}/trace")

    @property
    def trace_pipe(self) -> Path:
        return self.path(f"{TRACING}/trace_pipe")

    def names(self) -> list[str]:
        """The devices: mem0, mem1, ..."""
        found = (path.name for path in self.path(DEVICES).iterdir() if path.is_dir())
        return sorted(found, key=lambda name: int(name.removeprefix("mem")))

    def device(self, name: str) -> dict[str, int | str]:
        """The files of a device by name, those in directories as "interrupts/lthresh"."""
        top = self.path(f"{DEVICES}/{name}")
        files = sorted(path for path in top.rglob("*") if path.is_file())
        values = {str(file.relative_to(top)): file.read_text().rstrip("\n") for file in files}
        return {key: text if key in _WORDS else int(text) for key, text in values.items()}

    def devices(self) -> dict[str, dict[str, int | str]]:
        """All devices; one that goes meanwhile is left out."""
        found = {}
        for name in self.names():
            try:
                found[name] = self.device(name)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV):
                    raise
        return found
