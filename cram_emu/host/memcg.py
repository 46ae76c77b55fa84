"""Memory cgroups of a manager: names and meaning of cgroup-v2.rst, in bytes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cram_emu._core import check, ffi, fields, lib
from cram_emu.errors import InvalidArgument
from cram_emu.host.reclaim import reclaim_group
from cram_emu.sizes import parse_size

if TYPE_CHECKING:
    from cram_emu.host.zswap import Zswap

_NONE = 2**64 - 1
_DEFAULT_NAME = re.compile(r"memcg\d+")


@dataclasses.dataclass(frozen=True, slots=True)
class MemcgStats:
    """Counters of a group and all below it (struct cram_memcg_stats)."""

    anon: int  #: bytes of frames
    zswap: int  #: bytes charged for what is stored
    zswapped: int  #: pages that are stored
    zswpin: int  #: pages
    zswpout: int
    zswpwb: int
    max_events: int  #: memory.events: so often the limit was met
    oom: int  #: and so often reclaim did not help


class Memcg:
    """A group of memories with limits; made by Zswap.memcg(). Groups below it count as part of it.

    When its memories would go past `max`, a fault reclaims from its own memory first; if that makes no progress the
    limit gives way and `oom` counts: the kernel would kill.
    """

    def __init__(self, manager: Zswap, number: int, parent: Memcg | None, name: str):
        self._manager = manager
        self.number = number
        self.parent = parent
        self.name = name

    def _stats(self):
        stats = ffi.new("struct cram_memcg_stats *")
        check(lib.cram_memcg_read_stats(self._manager._handle, self.number, stats))
        return stats[0]

    @property
    def stats(self) -> MemcgStats:
        values = fields(self._stats())
        return MemcgStats(**{field.name: values[field.name] for field in dataclasses.fields(MemcgStats)})

    @property
    def current(self) -> int:
        """memory.current"""
        stats = self._stats()
        return stats.anon + stats.zswap

    @property
    def zswap_current(self) -> int:
        """memory.zswap.current"""
        return self._stats().zswap

    @property
    def max(self) -> int | None:
        """memory.max; None: no limit. Set below what is charged, it reclaims until it is met, or nothing more can be:
        frames, and, with the manager's shrinker_enabled, what is in the pool."""
        return _limit(self._stats().max)

    @max.setter
    def max(self, value: int | str | None) -> None:
        # memory_max_write() reclaims before it returns, too.
        self._set(max=limit_of("max", value))
        reclaim_group(self._manager, self)

    @property
    def zswap_max(self) -> int | None:
        """memory.zswap.max; None: no limit. A page that comes when it is met goes to the swap file; the manager's thread then
        writes older ones back until there is room again. The kernel writes one back first, and takes the page.
        """
        return _limit(self._stats().zswap_max)

    @zswap_max.setter
    def zswap_max(self, value: int | str | None) -> None:
        self._set(zswap_max=limit_of("zswap_max", value))

    @property
    def zswap_writeback(self) -> bool:
        """memory.zswap.writeback: False keeps everything of the group, and of those below it, out of the swap file."""
        return bool(self._stats().writeback)

    @zswap_writeback.setter
    def zswap_writeback(self, value: bool) -> None:
        self._set(writeback=bool(value))

    def _set(self, **changes: int) -> None:
        stats = self._stats()
        values = {"max": stats.max, "zswap_max": stats.zswap_max, "writeback": stats.writeback, **changes}
        check(
            lib.cram_memcg_set(
                self._manager._handle, self.number, values["max"], values["zswap_max"], values["writeback"]
            )
        )

    def __contains__(self, other: Memcg) -> bool:
        """Is the other group this one, or below it?"""
        at: Memcg | None = other
        while at is not None:
            if at is self:
                return True
            at = at.parent
        return False

    def check(self, what: str, manager: Zswap | None) -> None:
        """InvalidArgument where it is not a group of that manager, whose numbers mean other groups."""
        if self._manager is not manager:
            raise InvalidArgument(f"{what} {self!r}: another manager's")

    def __repr__(self) -> str:
        return f"<Memcg {self.name or 'root'}>"


def check_name(name: str, siblings: Iterable[Memcg]) -> None:
    """A directory's name, beside others and the group's own files, as for mkdir(2) in cgroup2."""
    if not isinstance(name, str) or not name.isprintable() or "/" in name or not 0 < len(name.encode()) < 256:
        raise InvalidArgument(f"name {name!r}: not a name that a directory can have")
    if name in (".", "..") or name.startswith("memory.") or _DEFAULT_NAME.fullmatch(name):
        raise InvalidArgument(f"name {name!r}: it means something else")
    if any(group.name == name for group in siblings):
        raise InvalidArgument(f"name {name!r}: its parent has such a group already")


def _limit(value: int) -> int | None:
    return None if value == _NONE else value


def limit_of(name: str, value: int | str | None) -> int:
    """A limit as the core has it. InvalidArgument, naming it."""
    if value is None:
        return _NONE
    size = parse_size(value, name)
    if size >= _NONE:
        raise InvalidArgument(f"{name} {value!r}: over 16 EiB")
    return size
