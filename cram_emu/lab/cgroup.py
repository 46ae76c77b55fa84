"""A memory cgroup with a limit, in either version, removed when its context ends.

It moves no process: one enters by writing its id to procs, and must have ended when the context does.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cram_emu.lab.undo import patiently, undone, write


@dataclass(frozen=True)
class MemoryGroup:
    """A memory cgroup with a limit. A process enters by writing its id to procs."""

    path: Path
    usage: Path
    version: int
    swappiness: int

    @property
    def procs(self) -> Path:
        return self.path / "cgroup.procs"


@dataclass(frozen=True)
class Hierarchy:
    """Where memory cgroups are made: the mount point, and 1 or 2."""

    mount: Path
    version: int


def memory_hierarchy(mounts: Path = Path("/proc/self/mounts")) -> Hierarchy | None:
    """Where the memory controller is: a host has it in version 1 or in version 2, never in both."""
    for line in mounts.read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup" and "memory" in options.split(","):
            return Hierarchy(Path(where), 1)
        if kind == "cgroup2":
            controllers = Path(where, "cgroup.controllers").read_text().split()
            if "memory" in controllers:
                return Hierarchy(Path(where), 2)
    return None


@contextmanager
def memory_group(
    limit: int, hierarchy: Hierarchy, name: str = f"cram-emu-{os.getpid()}"
) -> Iterator[MemoryGroup]:
    """A memory cgroup limited to so many bytes, removed when the block ends; its processes must
    have ended by then. Unavailable when the host refuses."""
    with undone("a memory cgroup", partial(_make, limit, hierarchy, name)) as group:
        yield group


def _make(limit: int, hierarchy: Hierarchy, name: str, undo: ExitStack) -> MemoryGroup:
    path = hierarchy.mount / name
    old = hierarchy.version == 1
    if not old:
        _delegate_memory(hierarchy.mount / "cgroup.subtree_control", undo)
    path.mkdir()
    undo.callback(patiently, path.rmdir)
    write(path / ("memory.limit_in_bytes" if old else "memory.max"), limit)
    swappiness = path / "memory.swappiness" if old else Path("/proc/sys/vm/swappiness")
    return MemoryGroup(
        path=path,
        usage=path / ("memory.usage_in_bytes" if old else "memory.current"),
        version=hierarchy.version,
        swappiness=int(swappiness.read_text()),
    )


def _delegate_memory(control: Path, undo: ExitStack) -> None:
    if "memory" not in control.read_text().split():
        write(control, "+memory")
        undo.callback(write, control, "-memory")
