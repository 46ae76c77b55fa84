"""sys/fs/cgroup: mm/memcontrol.c's files of version 2, for a manager's memory cgroups.

A directory a group, inside its parent's. Files that would say nothing here (memory.high, swap, io, ...) are absent, and
so are lines of memory.stat; groups are made by Zswap.memcg(), not by mkdir.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cram_emu.sysfs.bus import Entries
from cram_emu.sysfs.memdev import PAGE
from cram_emu.sysfs.parse import invalid, kstrtoull, memparse
from cram_emu.sysfs.table import Attribute, Directory, Entry
from cram_emu.sysfs.zswap import attribute

if TYPE_CHECKING:
    from cram_emu.host import Memcg, Zswap

CGROUP = "sys/fs/cgroup"
# include/linux/page_counter.h: from so many pages on a limit is none.
_COUNTER_MAX = (2**63 - 1) // PAGE


def platform(manager: Zswap) -> Entries:
    yield CGROUP, GroupDirectory(manager, manager.root)


class GroupDirectory(Directory):
    """A group's files, and the groups below it as they are when asked."""

    def __init__(self, manager: Zswap, group: Memcg):
        super().__init__()
        self._manager = manager
        self._group = group
        self.entries = dict(_files(manager, group))

    def names(self) -> list[str]:
        return [*self.entries, *(group.name for group in self._below())]

    def get(self, name: str) -> Entry | None:
        if name in self.entries:
            return self.entries[name]
        group = next((group for group in self._below() if group.name == name), None)
        return None if group is None else GroupDirectory(self._manager, group)

    def _below(self) -> list[Memcg]:
        return [group for group in self._manager.groups if group.parent is self._group]


def _files(manager: Zswap, group: Memcg) -> Entries:
    """The root has what memory_files[] and zswap_files[] do not mark CFTYPE_NOT_ON_ROOT."""
    if group.parent is not None:
        yield "memory.current", attribute(manager, lambda: group.current)
        yield "memory.max", _limit(manager, group, "max")
        yield "memory.events", attribute(manager, lambda: _events(group))
        yield "memory.zswap.current", attribute(manager, lambda: group.zswap_current)
        yield "memory.zswap.max", _limit(manager, group, "zswap_max")
    yield "memory.stat", attribute(manager, lambda: _stat(group))

    def set_writeback(text: str) -> None:
        # zswap_writeback_write(): a number, and not one of kstrtobool()'s words.
        value = kstrtoull(text.strip())
        if value > 1:
            raise invalid(text)
        group.zswap_writeback = bool(value)

    yield "memory.zswap.writeback", attribute(manager, lambda: int(group.zswap_writeback), set_writeback)


def _limit(manager: Zswap, group: Memcg, name: str) -> Attribute:
    """page_counter_memparse(): "max", or bytes, of which whole pages count."""

    def show() -> int | str:
        limit = getattr(group, name)
        return "max" if limit is None else limit

    def store(text: str) -> None:
        text = text.strip()
        pages = _COUNTER_MAX if text == "max" else memparse(text) // PAGE
        setattr(group, name, None if pages >= _COUNTER_MAX else pages * PAGE)

    return attribute(manager, show, store)


def _rows(rows: dict[str, int]) -> str:
    return "\n".join(f"{name} {value}" for name, value in rows.items())


def _stat(group: Memcg) -> str:
    """memory_stat_format(): bytes first, then events in pages."""
    stats = group.stats
    return _rows(
        {
            "anon": stats.anon,
            "zswap": stats.zswap,
            "zswapped": stats.zswapped * PAGE,
            "zswpin": stats.zswpin,
            "zswpout": stats.zswpout,
            "zswpwb": stats.zswpwb,
        }
    )


def _events(group: Memcg) -> str:
    """__memory_events_show(). Nobody is killed: where the kernel would, the limit gives way."""
    stats = group.stats
    return _rows(
        {"low": 0, "high": 0, "max": stats.max_events, "oom": stats.oom, "oom_kill": 0, "oom_group_kill": 0}
    )
