"""A CXL memory device of the machine: its device object, and the names and addresses that follow from it.

It holds no files; the tree's modules ask it. The data plane's locks are not taken here, except by poison
commands, which have to reach the page.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from cram_emu import Device, Interrupt, Stats
from cram_emu.sysfs.table import Wakeup

PAGE = 4096

ROOT = "sys/devices/platform/ACPI0017:00/root0"
PORT = f"{ROOT}/port1"
HOST_BRIDGE = "sys/devices/pci0000:35"
HOST_BRIDGE_ACPI = "sys/devices/LNXSYSTM:00/LNXSYBUS:00/ACPI0016:00"
HOST_BRIDGE_UID = 53

CXL_MAJOR = 240
DAX_MAJOR = 241

_FIRST_SERIAL = 0xC0FFEE0001
_FIRST_BUS = 0x36


# A threshold's name when it is set, and its register.
THRESHOLDS = {
    "lthresh": "low_remaining",
    "hthresh": "high_remaining",
    "ratio_lthresh": "low_ratio",
    "ratio_hthresh": "high_ratio",
}


class Memdev:
    """mem<index>: one device in one slot of the machine."""

    def __init__(self, index: int, device: Device, path: str, nid: int, hpa: int):
        self.index = index
        self.device = device
        self.path = path
        self.nid = nid
        self.hpa = hpa
        self.size = device.params.advertised
        self._thresholds = threading.Lock()
        self.interrupted = {"lthresh": Wakeup(), "hthresh": Wakeup()}
        self.poisoned = Wakeup()
        #: What /sys/kernel/debug/cram/control does to the node without a memory manager.
        self.balloon = 0
        self.blocked = False
        self._allocated = 0
        self._in_use = 0
        self._allocations = threading.Lock()

        self.name = f"mem{index}"
        self.serial = _FIRST_SERIAL + index
        self.root_port = f"0000:35:{index:02x}.0"
        self.host = f"0000:{_FIRST_BUS + index:02x}:00.0"
        self.pci = f"{HOST_BRIDGE}/{self.root_port}/{self.host}"
        self.dir = f"{self.pci}/{self.name}"
        self.endpoint = f"endpoint{2 + index}"
        self.endpoint_dir = f"{PORT}/{self.endpoint}"
        self.port_decoder = f"decoder1.{index}"
        self.decoder = f"decoder{2 + index}.0"
        self.region = f"region{index}"
        self.region_dir = f"{ROOT}/decoder0.0/{self.region}"
        self.dax_region = f"dax_region{index}"
        self.dax = f"dax{index}.0"
        self.dax_dir = f"{self.region_dir}/{self.dax_region}/{self.dax}"
        self.node = f"sys/devices/system/node/node{nid}"

    # -- pages, as the node's owner counts them: by advertised capacity

    @property
    def pages(self) -> int:
        return self.size // PAGE

    def in_use(self, stats: Stats | None = None) -> int:
        """Pages that hold something, whatever they take of the real capacity."""
        stats = stats or self.device.stats
        data = stats.pages_stored + stats.pages_raw + stats.pages_zero + stats.pages_same
        # A page that lost its data is still somebody's.
        return data + stats.pages_poison

    def free(self) -> int:
        return max(0, self.pages - self.in_use() - self.balloon)

    def allocated(self) -> int:
        """Pages allocated so far, a count that never falls; what came and went between two calls is missed."""
        with self._allocations:
            in_use = self.in_use()
            self._allocated += max(0, in_use - self._in_use)
            self._in_use = in_use
            return self._allocated

    # -- thresholds: bytes, and ratios as floats; 0 is off

    def threshold(self, name: str) -> int | float:
        return getattr(self.device.stats, THRESHOLDS[name])

    def set_threshold(self, name: str, value: int | float) -> None:
        """Sets one; the device takes them only together.

        InvalidArgument, and nothing changes, for what it refuses, such as a low one over its high one.
        """
        with self._thresholds:
            stats = self.device.stats
            values = {key: getattr(stats, register) for key, register in THRESHOLDS.items()}
            self.device.set_thresholds(**{**values, name: value})

    def on_interrupt(self, callback: Callable[[Memdev, Interrupt], object]) -> None:
        def received(interrupt: Interrupt) -> None:
            callback(self, interrupt)
            self.interrupted[interrupt.name].notify()

        self.device.on_interrupt(received)
