"""The emulated machine: which devices exist, and the table of files that follows from them."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cram_emu import Device
from cram_emu.sysfs import (
    cgroup, cxl, dax, debugfs, faults, host, memory, node, proc, registers, tiers, trace, zswap,
)  # fmt: skip
from cram_emu.sysfs.bus import Entries
from cram_emu.sysfs.events import Events
from cram_emu.sysfs.memdev import Memdev
from cram_emu.sysfs.parse import failure, invalid, memparse
from cram_emu.sysfs.runtime import DeviceFiles
from cram_emu.sysfs.table import Table

if TYPE_CHECKING:
    from cram_emu.host import Zswap

#: Root ports, and with them nodes, that firmware provides for.
SLOTS = 8
#: The window of host physical addresses starts above the host's memory, on a multiple of this.
WINDOW_ALIGN = 64 << 30
WINDOW_SIZE = 4 << 40
_REGION_ALIGN = 256 << 20


class Machine:
    """A host with CXL slots. Threads: any; devices come and go one at a time, while files are read.

    on_removed, where set, is called with the topmost paths that have gone from the table. manager: the zswap of this
    process that the files show too; its nodes are known by their devices, which are plugged in like others (join). The
    machine does not close it.
    """

    def __init__(self, manager: Zswap | None = None) -> None:
        self.table = Table()
        self._manager = manager
        self.trace = trace.Trace(self._collect)
        self.on_removed: Callable[[list[str]], object] = lambda paths: None
        self._files = DeviceFiles()
        self._members: dict[int, Memdev] = {}
        self._events: dict[int, Events] = {}
        self._paths: dict[int, list[str]] = {}
        self._tier: list[str] = []
        self._changing = threading.Lock()
        self._first_node = host.nodes()[-1] + 1
        self._block_size = host.block_size()
        end = (max(host.memory_blocks(), default=-1) + 1) * self._block_size
        self.window = max(1, -(-end // WINDOW_ALIGN)) * WINDOW_ALIGN
        self.table.add(self._platform())

    def members(self) -> list[Memdev]:
        """The devices by slot."""
        return [memdev for _, memdev in sorted(self._members.items())]

    # -- devices come

    def create(self, advertised: int | str, real: int | str) -> Memdev:
        """Plugs in a new device. ENOSPC: no slot, or no addresses are left."""
        return self._plug(lambda: self._files.create(advertised, real))

    def join(self, path: str | os.PathLike[str]) -> Memdev:
        """Plugs in the device of a file. Busy: it is served already."""
        return self._plug(lambda: self._files.join(path))

    def _plug(self, make: Callable[[], tuple[Device, Path]]) -> Memdev:
        with self._changing:
            index = next((i for i in range(SLOTS) if i not in self._members), None)
            if index is None:
                raise failure(errno.ENOSPC, f"all {SLOTS} slots are taken")
            device, path = make()
            try:
                hpa = self._place(device.params.advertised)
                memdev = Memdev(index, device, str(path), self._first_node + index, hpa)
                events = Events(memdev, self.trace)
                self._paths[index] = self.table.add(self._entries(memdev, events))
            except BaseException:
                device.close()
                self._files.release(path)
                raise
            # A new dictionary: members() goes through it without a lock.
            self._members = self._members | {index: memdev}
            self._events = self._events | {index: events}
            if not self._tier:
                self._tier = self.table.add(tiers.device_tier(self.members))
            return memdev

    def _place(self, size: int) -> int:
        """The lowest free addresses of the window."""
        step = max(_REGION_ALIGN, self._block_size)
        at = self.window
        for memdev in sorted(self._members.values(), key=lambda memdev: memdev.hpa):
            if at + size <= memdev.hpa:
                break
            at = -(-(memdev.hpa + memdev.size) // step) * step
        if at + size > self.window + WINDOW_SIZE:
            raise failure(errno.ENOSPC, f"no {size} bytes of host physical addresses are left")
        return at

    # -- devices go

    def remove(self, name: str) -> None:
        """Pulls a device out; programs that have it open keep it.

        ENODEV: there is none of that name. Busy, and it stays: the machine's own handle of it is a node of a manager.
        """
        with self._changing:
            memdev = next((m for m in self._members.values() if m.name == name), None)
            if memdev is None:
                raise failure(errno.ENODEV, f"{name[:64]!r}: no such device")
            gone = self._unplug(memdev)
        self.on_removed(gone)

    def _unplug(self, memdev: Memdev) -> list[str]:
        index = memdev.index
        # First, as it may be refused; whoever reads a file meanwhile finds the device gone.
        memdev.device.close()
        self._members = {i: other for i, other in self._members.items() if i != index}
        self._events = {i: events for i, events in self._events.items() if i != index}
        gone = self.table.remove(self._paths.pop(index))
        if not self._members:
            gone += self.table.remove(self._tier)
            self._tier = []
        self._files.release(Path(memdev.path))
        return gone

    def close(self) -> None:
        """Takes every device out and ends the wait of those who read the trace."""
        self.trace.close()
        with self._changing:
            for memdev in self.members():
                self._unplug(memdev)

    # -- the tree

    def _platform(self) -> Entries:
        yield from cxl.platform(self.window, WINDOW_SIZE, self.members)
        yield from dax.platform()
        yield from node.platform(self.members, SLOTS)
        yield from memory.platform(self._block_size)
        yield from tiers.platform()
        yield from debugfs.cram(self.members)
        yield from registers.platform(self._add, self.remove)
        yield from faults.platform(self.members)
        yield from trace.platform(self.trace)
        if self._manager is not None:
            yield from zswap.platform(self._manager)
            yield from cgroup.platform(self._manager)
            yield from proc.platform(self._manager)

    def _entries(self, memdev: Memdev, events: Events) -> Entries:
        yield from cxl.members(memdev)
        yield from dax.members(memdev)
        yield from node.members(memdev, self.members)
        yield from memory.members(memdev, self._block_size)
        yield from tiers.weight(memdev.nid)
        yield from debugfs.poison(memdev, events)
        yield from registers.members(memdev)
        yield from faults.members(memdev)
        if self._manager is not None:
            yield from zswap.members(self._manager, memdev)

    def _add(self, text: str) -> None:
        """What is written to cram_device/add."""
        if text.startswith("/"):
            self.join(text)
            return
        sizes = text.split()
        if len(sizes) != 2:
            raise invalid(text)
        self.create(*map(memparse, sizes))

    def _collect(self) -> None:
        for events in self._events.values():
            events.catch_up()
