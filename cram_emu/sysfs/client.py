"""A mounted tree from outside: what programs of this package read there, through the files alone."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cram_emu import Client
from cram_emu.errors import CramError, DeviceIOError, InvalidArgument
from cram_emu.sysfs.debugfs import CXL
from cram_emu.sysfs.registers import DEVICES
from cram_emu.sysfs.trace import TRACING

#: Files of a device that hold words, not numbers; and one that holds a table.
_WORDS = ("path", "codec")
_PROCESSES = "processes"
#: Those of its faults, which are no registers: `cram-emu fault` tells them.
_FAULTS = ("fail_cram_", "make-it-fail")


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
        if error.errno == errno.ENOENT:
            raise DeviceIOError(f"{mountpoint}: the machine is no longer mounted there") from None
        raise DeviceIOError(f"{mountpoint}: {error.strerror}") from None


class Tree:
    """The machine that is mounted at a directory. DeviceIOError: there is none."""

    def __init__(self, mountpoint: str | os.PathLike[str]):
        self._root = Path(mountpoint)
        with told(mountpoint):
            try:
                # The kernel may remember what a killed server said of a path, but never a listing.
                os.listdir(self._root / DEVICES)
            except (FileNotFoundError, NotADirectoryError):
                raise DeviceIOError(f"{mountpoint}: no machine is mounted there") from None

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
        """The registers of a device by file, those in directories as "interrupts/lthresh"."""
        top = self.path(f"{DEVICES}/{name}")
        found = (p for entry in top.iterdir() if not entry.name.startswith(_FAULTS) for p in (entry, *entry.rglob("*")))
        # What is only written to are commands.
        readable = (p for p in found if p.is_file() and p.stat().st_mode & 0o444)
        files = sorted(p for p in readable if p.name != _PROCESSES)
        values = {str(file.relative_to(top)): file.read_text().rstrip("\n") for file in files}
        return {key: text if key in _WORDS else int(text) for key, text in values.items()}

    def processes(self, name: str) -> list[Client]:
        """Who has a device open, the server among them."""
        names, *rows = self.path(f"{DEVICES}/{name}/{_PROCESSES}").read_text().splitlines()
        return [Client(**dict(zip(names.split(), map(int, row.split())))) for row in rows]

    def inject_poison(self, name: str, dpa: int) -> None:
        """OSError, as the file has it: EINVAL for an address that is none."""
        self.path(f"{CXL}/{name}/inject_poison").write_text(f"{dpa:#x}")

    def set_thresholds(self, name: str, lthresh: int, hthresh: int) -> None:
        """Of the remaining capacity, in bytes. InvalidArgument, OSError (EINVAL): nothing has changed."""
        if lthresh > hthresh:
            raise InvalidArgument(f"lthresh {lthresh} is above hthresh {hthresh}")
        files = {"hthresh": hthresh, "lthresh": lthresh}
        paths = {file: self.path(f"{DEVICES}/{name}/{file}") for file in files}
        # Between the two writes too, the one must not exceed the other.
        order = sorted(files, reverse=hthresh < int(paths["lthresh"].read_text()))
        for file in order:
            paths[file].write_text(str(files[file]))

    def devices(self) -> dict[str, dict[str, int | str]]:
        """All devices; one that goes meanwhile, or has been removed, is left out."""
        found = {}
        for name in self.names():
            try:
                found[name] = self.device(name)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV):
                    raise
        return found
