"""Parts of the real machine's /sys that the emulated one shares: node0 and its memory, read live.

They are read-only here: the host's own settings are not the emulated machine's to change.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cram_emu.sysfs.table import Attribute, Directory, Entry

SYS = Path("/sys")
_NODES = SYS / "devices/system/node"
_MEMORY = SYS / "devices/system/memory"
#: Where the host has no memory blocks: x86-64's usual block.
_BLOCK_SIZE = 128 << 20


class HostLink(Entry):
    """A link with the host's own text."""

    st_mode = stat.S_IFLNK | 0o777

    def __init__(self, target: str):
        self._target = target

    def text(self, path: str) -> str:
        return self._target


class HostDirectory(Directory):
    """A directory of the host, looked up when asked; entries of its own stand in front of the host's."""

    def __init__(self, path: Path, entries: dict[str, Entry] | None = None):
        super().__init__()
        self.path = path
        self.entries = entries or {}

    def get(self, name: str) -> Entry | None:
        return self.entries.get(name) or entry(self.path / name)

    def names(self) -> list[str]:
        try:
            return list(dict.fromkeys([*os.listdir(self.path), *self.entries]))
        except OSError:
            return list(self.entries)


def entry(path: Path) -> Entry | None:
    """The entry of a host's file, None where there is none."""
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            return HostLink(os.readlink(path))
    except OSError:
        return None
    if stat.S_ISDIR(mode):
        return HostDirectory(path)
    return Attribute(mode & 0o444, lambda: path.read_bytes().decode("latin-1"))


def nodes() -> list[int]:
    """The host's own nodes; a kernel without NUMA has node 0 all the same."""
    found = [int(path.name[4:]) for path in _NODES.glob("node[0-9]*")]
    return sorted(found) or [0]


def memory_blocks() -> list[int]:
    return sorted(int(path.name[6:]) for path in _MEMORY.glob("memory[0-9]*"))


def block_size() -> int:
    try:
        return int((_MEMORY / "block_size_bytes").read_text(), 16)
    except OSError:
        return _BLOCK_SIZE
