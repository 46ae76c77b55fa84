"""Memory of this process whose pages the core serves: a mapping of a device, and what managed memory has in common with it."""

from __future__ import annotations

import atexit
import dataclasses
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

from cram_emu._core import check, ffi, fields, lib, own
from cram_emu._region import Region
from cram_emu.errors import DeviceClosed, InvalidArgument

if TYPE_CHECKING:
    from cram_emu.device import Device
    from cram_emu.host.zswap import Zswap

PAGE = 4096
DELIVERIES = {"monitor": lib.CRAM_MONITOR, "inline": lib.CRAM_INLINE}


@dataclasses.dataclass(frozen=True, slots=True)
class MapStats:
    """Counters of one mapping (struct cram_map_stats); resident, dirty and window in frames."""

    resident: int
    dirty: int
    window: int
    read_faults: int
    write_faults: int
    protect_faults: int
    prefetched: int
    evicted: int
    written_back: int
    poison_faults: int
    handler_restored: int


#: Mappings to write back when the interpreter ends with them open.
_open_mappings: "weakref.WeakSet[Mapping]" = weakref.WeakSet()


@atexit.register
def _flush_at_exit() -> None:
    # What dies dirty becomes poison for who opens the device next. Buffers may still be looked at by
    # threads and destructors: nothing is unmapped.
    for mapping in list(_open_mappings):
        mapping._flush_quietly()


class Mapping(Region):
    """A range of a device as memory: memoryview(), numpy.frombuffer(), indices and slices.

    Touching a poisoned page raises SIGBUS (BUS_MCEERR_AR) in the thread that does, which ends the
    process unless it has a handler; Device.read() raises PoisonError instead. Made by Device.map().
    """

    def __init__(self, device: "Device | Zswap", handle, length: int):
        """device: whoever has the handle's owner, and is to be closed when a cycle with it is collected."""
        super().__init__(int(ffi.cast("uintptr_t", lib.cram_map_address(handle))), length)
        self._device = device
        self._handle = handle
        self._owner = own(handle, "cram_map_free", device._owner)
        self.address = int(ffi.cast("uintptr_t", lib.cram_map_address(handle)))
        _open_mappings.add(self)

    def __getitem__(self, index):
        with memoryview(self) as view:
            item = view[index]
            return item if isinstance(item, int) else bytes(item)

    def __setitem__(self, index, value) -> None:
        with memoryview(self) as view:
            view[index] = value

    def _check_open(self) -> None:
        if self.closed:
            raise DeviceClosed("the mapping is closed")

    def flush(self, offset: int = 0, length: int | None = None) -> None:
        """Writes the dirty frames of a range (to the end without length) back to the device."""
        self._check_open()
        length = len(self) - offset if length is None else length
        self._check_range(offset, length)
        check(lib.cram_flush(self._handle, offset, length))

    def _flush_quietly(self) -> None:
        if not self.closed:
            lib.cram_flush(self._handle, 0, len(self))

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > len(self):
            raise InvalidArgument(
                f"{length} bytes at offset {offset}: not within the mapping of {len(self)} bytes"
            )

    @contextmanager
    def pin(self, offset: int, length: int) -> Iterator[None]:
        """Keeps the pages of a range resident and writable meanwhile, for O_DIRECT and io_uring.

        NoMemory: more than the window allows; PoisonError: a page is poisoned. Nothing is pinned then.
        """
        self._check_open()
        self._check_range(offset, length)
        check(lib.cram_pin(self._handle, offset, length))
        try:
            yield
        finally:
            check(lib.cram_unpin(self._handle, offset, length))

    @property
    def stats(self) -> MapStats:
        self._check_open()
        stats = ffi.new("struct cram_map_stats *")
        lib.cram_map_read_stats(self._handle, stats)
        return MapStats(**fields(stats[0]))

    def close(self) -> None:
        """Writes everything back and unmaps. Closing twice is fine.

        BufferError, and nothing changes, while a memoryview or an array of this memory is alive.
        """
        with _closing:
            if self.closed:
                return
            self.release()
        lib.cram_unmap(self._handle)
        _open_mappings.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self) -> None:
        # A buffer refers to us: one that exists is in a cycle with us, and the owner unmaps.
        if hasattr(self, "_handle"):
            with suppress(BufferError):
                self.close()
            if self._device._forgotten:
                self._device._close_forgotten()

    def __repr__(self) -> str:
        return f"<Mapping of {len(self)} bytes at 0x{self.address:x}>"


#: Two closers of one mapping: only one may unmap it.
_closing = threading.Lock()
