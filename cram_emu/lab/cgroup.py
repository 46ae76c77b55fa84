"""A memory cgroup with a limit, in either version, removed when its context ends.

It moves no process: one enters by writing its id to procs, and must have ended when the context does.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cram_emu.lab.undo import patiently, undone, write

# Kernels sum a group's counters up every two to four seconds, and reclaim in between by what they were
# (mm/vmscan.c, inactive_is_low). Who faults fast makes more pages active in that time than were
# inactive; when none is left, the OOM killer comes. Who reads the statistics has them summed up.
_SUM_UP_S = 0.25


@dataclass(frozen=True)
class MemoryGroup:
    """A memory cgroup with a limit, and with counters that are summed up often. A process enters by
    writing its id to procs."""

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
    _sum_up_counters(path / "memory.stat", undo)
    swappiness = path / "memory.swappiness" if old else Path("/proc/sys/vm/swappiness")
    return MemoryGroup(
        path=path,
        usage=path / ("memory.usage_in_bytes" if old else "memory.current"),
        version=hierarchy.version,
        swappiness=int(swappiness.read_text()),
    )


def _sum_up_counters(statistics: Path, undo: ExitStack) -> None:
    ended = threading.Event()

    def sum_up() -> None:
        while not ended.wait(_SUM_UP_S):
            with suppress(OSError):
                statistics.read_bytes()

    thread = threading.Thread(target=sum_up, name="cram-emu-counters")
    thread.start()
    undo.callback(thread.join)
    undo.callback(ended.set)


def _delegate_memory(control: Path, undo: ExitStack) -> None:
    if "memory" not in control.read_text().split():
        write(control, "+memory")
        undo.callback(write, control, "-memory")
