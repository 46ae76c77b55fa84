"""sys/devices/system/memory: drivers/base/memory.c. A device's memory in blocks of the host's block size.

The host's own blocks pass through. A device's blocks stay online: their pages cannot be moved away.
"""

from __future__ import annotations

import errno

from cram_emu.sysfs import host
from cram_emu.sysfs.bus import Entries, uevent
from cram_emu.sysfs.memdev import Memdev
from cram_emu.sysfs.parse import failure, kstrtobool, one_of
from cram_emu.sysfs.table import Attribute, Entry, Link, constant

BLOCKS = "sys/devices/system/memory"
BUS = "sys/bus/memory"

# mm/memory_hotplug.c, online_type_to_str[]
_STATES = ("offline", "online", "online_kernel", "online_movable")


def platform(block_size: int) -> Entries:
    yield f"{BLOCKS}/block_size_bytes", constant(f"{block_size:x}")
    for block in host.memory_blocks():
        path = host.SYS / f"devices/system/memory/memory{block}"
        yield f"{BLOCKS}/memory{block}", host.HostDirectory(path)


def _online(text: str) -> None:
    if not kstrtobool(text):
        raise failure(errno.EBUSY)


def _state(text: str) -> None:
    # state_store(): offlining is EBUSY where pages cannot be moved, onlining what is online EINVAL.
    raise failure(errno.EBUSY if one_of(text, *_STATES) == "offline" else errno.EINVAL)


def members(memdev: Memdev, block_size: int) -> Entries:
    # Blocks are many: they share what is the same in all of them.
    shared: dict[str, Entry] = {
        f"node{memdev.nid}": Link(memdev.node),
        "online": Attribute(0o644, lambda: "1\n", _online),
        "phys_device": constant("0"),
        "removable": constant("1"),
        "state": Attribute(0o644, lambda: "online\n", _state),
        "subsystem": Link(BUS),
        "uevent": uevent(),
        "valid_zones": constant("Movable"),
    }
    first = memdev.hpa // block_size
    for block in range(first, first + memdev.size // block_size):
        path = f"{BLOCKS}/memory{block}"
        for name, entry in shared.items():
            yield f"{path}/{name}", entry
        yield f"{path}/phys_index", constant(f"{block:08x}")
        yield f"{memdev.node}/memory{block}", Link(path)
