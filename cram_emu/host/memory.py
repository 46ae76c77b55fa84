"""Managed memory: a limited number of frames, and a manager that keeps what has none."""

from __future__ import annotations

import dataclasses
from typing import Literal

from cram_emu._core import check, choose, expect, ffi, lib, set_field
from cram_emu.errors import InvalidArgument
from cram_emu.host.memcg import Memcg
from cram_emu.host.reclaim import approve
from cram_emu.host.zswap import Zswap
from cram_emu.mapping import DELIVERIES, Mapping
from cram_emu.sizes import parse_size

_PLACES = ("none", "zero", "direct", "pool", "file", "poison", "frame")


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a page is."""

    where: Literal["none", "zero", "direct", "pool", "file", "poison", "frame"]
    node: int | None  #: of a direct page
    dpa: int | None  #: of a direct page
    size: int  #: bytes charged for it while it has no frame


class ManagedMemory(Mapping):
    """Anonymous memory of which at most `dram` bytes are frames; the manager has the rest.

    A Mapping: memoryview(), slices, numpy. "monitor" delivery serves system calls on it too; "inline" is many times faster,
    but a system call on a page without a frame fails with EFAULT. Without a manager it has one of its own, without nodes.

    InvalidArgument names a value that makes no sense; NotPermitted: userfaultfd is not permitted.
    """

    def __init__(
        self,
        size: int | str,
        dram: int | str = "256M",
        manager: Zswap | None = None,
        *,
        group: Memcg | None = None,
        delivery: str = "monitor",
    ):
        params = ffi.new("struct cram_managed_params *")
        set_field(params, "length", parse_size(size))
        set_field(params, "dram", parse_size(dram, "dram"))
        set_field(params, "delivery", choose("delivery", delivery, DELIVERIES))
        if manager is not None:
            expect("manager", manager, Zswap)
        if group is not None:
            expect("group", group, Memcg)
            group.check("group", manager)
        own_manager = manager is None
        if own_manager:
            manager = Zswap()
        group = manager.root if group is None else group
        params.group = group.number
        handle = ffi.new("cram_map **")
        try:
            check(lib.cram_managed_create(manager._handle, params, handle))
        except BaseException:
            if own_manager:
                manager.close()
            raise
        super().__init__(manager, handle[0], params.length)
        self.manager = manager
        self.group = group
        self._own_manager = own_manager
        manager._memories.add(self)

    def place(self, offset: int) -> Place:
        """Where the page at that offset is."""
        self._check_open()
        self._check_range(offset, 1)
        page = ffi.new("struct cram_managed_page *")
        check(lib.cram_managed_page(self._handle, offset, page))
        where = _PLACES[page.place]
        direct = where == "direct"
        return Place(where, page.node if direct else None, page.dpa if direct else None, page.size)

    def reclaim(self, pages: int) -> int:
        """Takes frames until so many pages are stored, or no more can be; returns how many. It has drivers approve of pages."""
        return self._reclaim(lib.cram_map_reclaim, self._number(pages))

    def shrink(self, pages: int) -> int:
        """Writes back up to so many pages of the pool to the swap file; returns how many."""
        return self._done(lib.cram_map_shrink, self._number(pages))

    @staticmethod
    def _number(pages: int) -> int:
        if not isinstance(pages, int) or not 0 <= pages < 2**63:
            raise InvalidArgument(f"pages {pages!r}: not a number of pages")
        return pages

    def balance(self) -> int:
        """What the manager's thread does when frames run short: reclaims to the low mark; returns how many pages."""
        return self._reclaim(lib.cram_map_balance, 2**63 - 1)

    def _reclaim(self, function, pages: int) -> int:
        """In steps: a node has so many pages in stock that its driver has approved of, and takes no others."""
        self._check_open()
        done = 0
        while True:
            step = min(pages - done, approve(self.manager))
            n = self._done(function, step)
            done += n
            if n < step or done == pages:
                return done

    def _done(self, function, *arguments: int) -> int:
        self._check_open()
        done = ffi.new("uint64_t *")
        check(function(self._handle, *arguments, done))
        return done[0]

    def discard(self, offset: int, length: int | str) -> None:
        """Gives whole pages back; they read as zeros afterwards."""
        length = parse_size(length, "length")
        self._check_open()
        self._check_range(offset, length)
        check(lib.cram_map_discard(self._handle, offset, length))

    def close(self) -> None:
        """Unmaps it; what it held is gone. Closing twice is fine. BufferError while a buffer of it is alive."""
        super().close()
        if self._own_manager:
            self.manager.close()

    def __repr__(self) -> str:
        return f"<ManagedMemory of {len(self)} bytes at 0x{self.address:x}>"
