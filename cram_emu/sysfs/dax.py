"""sys/bus/dax and a region's dax device, bound to kmem: drivers/dax/{bus,kmem,cxl}.c."""

from __future__ import annotations

import errno

from cram_emu.sysfs.bus import Entries, bus, refuse, uevent, write_only
from cram_emu.sysfs.memdev import DAX_MAJOR, Memdev
from cram_emu.sysfs.parse import failure, invalid, kstrtobool, kstrtoull
from cram_emu.sysfs.table import Attribute, CharDevice, Link, constant

BUS = "sys/bus/dax"
ALIGN = 2 << 20


def platform() -> Entries:
    yield from bus(BUS, ("device_dax", "kmem"), ("new_id", "remove_id"))


def members(memdev: Memdev) -> Entries:
    path, name = memdev.dax_dir, memdev.dax
    number = f"{DAX_MAJOR}:{memdev.index}"
    yield f"{BUS}/devices/{name}", Link(path)
    yield f"{BUS}/drivers/kmem/{name}", Link(path)
    yield f"sys/dev/char/{number}", Link(path)
    yield f"dev/{name}", CharDevice(0o600, DAX_MAJOR << 8 | memdev.index)
    for attribute, text in (
        ("align", str(ALIGN)),
        ("dev", number),
        ("modalias", "dax:t0"),
        ("numa_node", "0"),
        ("resource", f"{memdev.hpa:#x}"),
        ("size", str(memdev.size)),
        ("target_node", str(memdev.nid)),
        ("mapping0/end", f"{memdev.hpa + memdev.size - 1:#x}"),
        ("mapping0/page_offset", "0"),
        ("mapping0/start", f"{memdev.hpa:#x}"),
    ):
        yield f"{path}/{attribute}", constant(text)
    yield f"{path}/driver", Link(f"{BUS}/drivers/kmem")
    yield f"{path}/subsystem", Link(BUS)
    yield f"{path}/mapping", write_only(refuse(errno.EBUSY))
    yield f"{path}/memmap_on_memory", Attribute(0o644, lambda: "0\n", _memmap_on_memory)
    yield (
        f"{path}/uevent",
        uevent(MAJOR=DAX_MAJOR, MINOR=memdev.index, DEVNAME=name, DRIVER="kmem", MODALIAS="dax:t0"),
    )

    region = f"{memdev.region_dir}/{memdev.dax_region}/dax_region"
    yield f"{region}/align", constant(str(ALIGN))
    yield f"{region}/available_size", constant("0")
    yield f"{region}/create", Attribute(0o644, lambda: "0\n", _create)
    yield f"{region}/delete", write_only(lambda text: _delete(memdev, text))
    yield f"{region}/id", constant(str(memdev.index))
    yield f"{region}/seed", Attribute(0o444, lambda: "\n")
    yield f"{region}/size", constant(str(memdev.size))


def _memmap_on_memory(text: str) -> None:
    # memmap_on_memory_store(): not while a driver is bound, unless nothing changes.
    if kstrtobool(text):
        raise failure(errno.EBUSY)


def _create(text: str) -> None:
    # create_store(): one device at a time, and there is no room for another.
    if kstrtoull(text) != 1:
        raise invalid(text)
    raise failure(errno.ENOSPC)


def _delete(memdev: Memdev, text: str) -> None:
    # delete_store(): a device with a driver is busy.
    raise failure(errno.EBUSY if text == memdev.dax else errno.ENXIO)
