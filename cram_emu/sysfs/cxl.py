"""sys/bus/cxl and the devices on it: drivers/cxl/core/{memdev,port,region}.c, Documentation/ABI/testing/sysfs-bus-cxl.

One host bridge with a root port for each slot; one window of host physical addresses, in which a device
that comes gets its region. All of it is committed: what would change a committed decoder is EBUSY.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from cram_emu.sysfs.bus import Entries, bus, refuse, uevent, write_only
from cram_emu.sysfs.memdev import (
    CXL_MAJOR,
    HOST_BRIDGE,
    HOST_BRIDGE_ACPI,
    HOST_BRIDGE_UID,
    PORT,
    ROOT,
    Memdev,
)
from cram_emu.sysfs.parse import failure, invalid, kstrtobool, kstrtoull
from cram_emu.sysfs.table import Attribute, CharDevice, Link, constant

BUS = "sys/bus/cxl"
DRIVERS = (
    "cxl_dax_region",
    "cxl_mem",
    "cxl_nvdimm",
    "cxl_nvdimm_bridge",
    "cxl_pmem_region",
    "cxl_port",
    "cxl_region",
)
#: Figures of a device behind one hop of PCIe 5.0 x8: MiB/s and ns.
BANDWIDTH = 28000
LATENCY = 340

_FIRMWARE = "CZRAM 1.0"


def platform(window: int, window_size: int, members: Callable[[], list[Memdev]]) -> Entries:
    """What is there without any device: the bus, the root, the host bridge and its port."""
    yield from bus(BUS, DRIVERS)
    yield f"{BUS}/flush", write_only(_flush)
    yield f"{HOST_BRIDGE_ACPI}/hid", constant("ACPI0016")
    yield f"{HOST_BRIDGE_ACPI}/path", constant("\\_SB_.PC35")
    yield f"{HOST_BRIDGE_ACPI}/physical_node", Link(HOST_BRIDGE)
    yield f"{HOST_BRIDGE_ACPI}/uevent", uevent()
    yield f"{HOST_BRIDGE_ACPI}/uid", constant(str(HOST_BRIDGE_UID))
    yield f"{HOST_BRIDGE}/firmware_node", Link(HOST_BRIDGE_ACPI)
    acpi = ROOT.rsplit("/", 1)[0]
    yield f"{acpi}/uevent", uevent(DRIVER="cxl_acpi", MODALIAS="acpi:ACPI0017:")

    yield f"{ROOT}/decoders_committed", constant("0")
    yield f"{ROOT}/dport{HOST_BRIDGE_UID}", Link(HOST_BRIDGE_ACPI)
    yield f"{ROOT}/uport", Link(acpi)
    yield from _device(ROOT, 3, "cxl_port", "cxl_port")

    yield f"{PORT}/decoders_committed", Attribute(0o444, lambda: f"{len(members())}\n")
    yield f"{PORT}/parent_dport", Link(HOST_BRIDGE_ACPI)
    yield f"{PORT}/uport", Link(HOST_BRIDGE)
    yield from _device(PORT, 3, "cxl_port", "cxl_port")

    def next_region() -> str:
        taken = {member.index for member in members()}
        return f"region{next(i for i in range(len(taken) + 1) if i not in taken)}"

    def delete_region(text: str) -> None:
        if text not in (member.region for member in members()):
            raise failure(errno.ENODEV, f"{text[:64]!r}: no such region")
        raise failure(errno.EBUSY)

    decoder = f"{ROOT}/decoder0.0"
    yield f"{decoder}/cap_pmem", constant("0")
    yield f"{decoder}/cap_ram", constant("1")
    yield f"{decoder}/cap_type2", constant("0")
    yield f"{decoder}/cap_type3", constant("1")
    # create_region_store(): -EBUSY for any id but the next; and no endpoint decoder is free for that one.
    yield (
        f"{decoder}/create_ram_region",
        Attribute(0o644, lambda: f"{next_region()}\n", _create_region),
    )
    yield f"{decoder}/delete_region", write_only(delete_region)
    yield f"{decoder}/qos_class", constant("1")
    yield f"{decoder}/target_list", constant(str(HOST_BRIDGE_UID))
    yield from _decoder(decoder, "root", 1, window, window_size)


def members(memdev: Memdev) -> Entries:
    """All that a device brings."""
    yield from _pci(memdev)
    yield from _memdev(memdev)
    yield from _port(memdev)
    yield from _endpoint(memdev)
    yield from _region(memdev)


def _device(path: str, kind: int, devtype: str, driver: str | None = None) -> Entries:
    """The files of any device on the bus; its link in the bus, and in its driver."""
    name = path.rsplit("/", 1)[1]
    modalias = f"cxl:t{kind}"
    names = {"DEVTYPE": devtype} | ({"DRIVER": driver} if driver else {}) | {"MODALIAS": modalias}
    yield f"{BUS}/devices/{name}", Link(path)
    yield f"{path}/devtype", constant(devtype)
    yield f"{path}/modalias", constant(modalias)
    yield f"{path}/subsystem", Link(BUS)
    if devtype != "cxl_memdev":
        yield f"{path}/uevent", uevent(**names)
    if driver:
        yield f"{path}/driver", Link(f"{BUS}/drivers/{driver}")
        yield f"{BUS}/drivers/{driver}/{name}", Link(path)


def _decoder(path: str, role: str, kind: int, start: int, size: int) -> Entries:
    yield f"{path}/interleave_granularity", constant("256")
    yield f"{path}/interleave_ways", constant("1")
    yield f"{path}/locked", constant("0")
    yield f"{path}/size", constant(f"{size:#x}")
    yield f"{path}/start", constant(f"{start:#x}")
    yield f"{path}/target_type", constant("expander")
    yield from _device(path, kind, f"cxl_decoder_{role}")


def _pci(memdev: Memdev) -> Entries:
    bridge = f"{HOST_BRIDGE}/{memdev.root_port}"
    yield f"{bridge}/class", constant("0x060400")
    yield f"{bridge}/device", constant("0x7075")
    yield f"{bridge}/numa_node", constant("0")
    yield f"{bridge}/uevent", uevent(PCI_CLASS=60400)
    yield f"{bridge}/vendor", constant("0x8086")
    for name, text in (
        ("class", "0x050210"),
        ("current_link_speed", "32.0 GT/s PCIe"),
        ("current_link_width", "8"),
        ("device", "0xc0c0"),
        ("numa_node", "0"),
        ("revision", "0x00"),
        ("subsystem_device", "0xc0c0"),
        ("subsystem_vendor", "0x1e98"),
        ("vendor", "0x1e98"),
    ):
        yield f"{memdev.pci}/{name}", constant(text)
    yield (
        f"{memdev.pci}/uevent",
        uevent(
            DRIVER="cxl_pci", PCI_CLASS=50210, PCI_ID="1E98:C0C0", PCI_SLOT_NAME=memdev.host
        ),
    )


def _memdev(memdev: Memdev) -> Entries:
    """drivers/cxl/core/memdev.c; firmware/ is drivers/base/firmware_loader/sysfs_upload.c."""
    path, name = memdev.dir, memdev.name
    number = f"{CXL_MAJOR}:{memdev.index}"
    yield from _device(path, 5, "cxl_memdev", "cxl_mem")
    yield (
        f"{path}/uevent",
        uevent(
            MAJOR=CXL_MAJOR,
            MINOR=memdev.index,
            DEVNAME=f"cxl/{name}",
            DEVTYPE="cxl_memdev",
            DRIVER="cxl_mem",
            MODALIAS="cxl:t5",
        ),
    )
    for attribute, text in (
        ("dev", number),
        ("firmware_version", _FIRMWARE),
        ("label_storage_size", "0"),
        ("numa_node", "0"),
        ("payload_max", "1048576"),
        ("serial", f"{memdev.serial:#x}"),
        ("pmem/size", "0x0"),
        ("ram/qos_class", "1"),
        ("ram/size", f"{memdev.size:#x}"),
        ("security/state", "disabled"),
        (f"firmware/{name}/remaining_size", "0"),
        (f"firmware/{name}/status", "idle"),
    ):
        yield f"{path}/{attribute}", constant(text)
    # cxl_mem_sanitize(): an active decoder forbids it.
    yield f"{path}/security/sanitize", write_only(_sanitize)
    yield f"{path}/firmware/{name}/cancel", write_only(_cancel)
    yield f"{path}/firmware/{name}/data", write_only(refuse(errno.ENODEV))
    yield f"{path}/firmware/{name}/loading", Attribute(0o644, lambda: "0\n", _loading)
    yield f"sys/dev/char/{number}", Link(path)
    yield f"dev/cxl/{name}", CharDevice(0o600, CXL_MAJOR << 8 | memdev.index)


def _port(memdev: Memdev) -> Entries:
    yield f"{PORT}/dport{memdev.index}", Link(f"{HOST_BRIDGE}/{memdev.root_port}")
    decoder = f"{PORT}/{memdev.port_decoder}"
    yield f"{decoder}/region", constant(memdev.region)
    yield f"{decoder}/target_list", constant(str(memdev.index))
    yield from _decoder(decoder, "switch", 2, memdev.hpa, memdev.size)


def _endpoint(memdev: Memdev) -> Entries:
    path = memdev.endpoint_dir
    yield f"{path}/decoders_committed", constant("1")
    yield f"{path}/parent_dport", Link(f"{HOST_BRIDGE}/{memdev.root_port}")
    yield f"{path}/uport", Link(memdev.dir)
    yield from _device(path, 3, "cxl_port", "cxl_port")
    decoder = f"{path}/{memdev.decoder}"
    yield f"{decoder}/dpa_resource", constant("0x0")
    yield f"{decoder}/dpa_size", _busy(f"0x{memdev.size:016x}", kstrtoull)
    yield f"{decoder}/mode", _busy("ram", _mode)
    yield f"{decoder}/region", constant(memdev.region)
    yield from _decoder(decoder, "endpoint", 2, memdev.hpa, memdev.size)


def _region(memdev: Memdev) -> Entries:
    """drivers/cxl/core/region.c."""
    path = memdev.region_dir
    yield f"{path}/commit", _busy("1", kstrtobool)
    yield f"{path}/interleave_granularity", _busy("256", kstrtoull)
    yield f"{path}/interleave_ways", _busy("1", kstrtoull)
    yield f"{path}/mode", constant("ram")
    yield f"{path}/resource", constant(f"{memdev.hpa:#x}")
    yield f"{path}/size", _busy(f"{memdev.size:#x}", kstrtoull)
    yield f"{path}/target0", _busy(memdev.decoder, _target)
    # uuid_store() is for persistent regions: a volatile one has none.
    yield f"{path}/uuid", Attribute(0o644, lambda: "\n", refuse(errno.EINVAL))
    yield from access(f"{path}/access0")
    yield from _device(path, 6, "cxl_region", "cxl_region")
    yield from _device(f"{path}/{memdev.dax_region}", 8, "cxl_dax_region", "cxl_dax_region")


def access(path: str) -> Entries:
    """The figures of the way to the memory: region and node show the same (drivers/base/node.c)."""
    for direction in ("read", "write"):
        yield f"{path}/{direction}_bandwidth", constant(str(BANDWIDTH))
        yield f"{path}/{direction}_latency", constant(str(LATENCY))


def _busy(text: str, parse: Callable[[str], object]) -> Attribute:
    """A setting of a committed region: what makes sense is EBUSY, what makes none EINVAL."""

    def store(written: str) -> None:
        parse(written)
        raise failure(errno.EBUSY)

    return Attribute(0o644, lambda: f"{text}\n", store)


def _mode(text: str) -> None:
    if text not in ("ram", "pmem"):
        raise invalid(text)


def _target(text: str) -> None:
    if not text.startswith("decoder"):
        raise failure(errno.ENODEV)


def _flush(text: str) -> None:
    """flush_store(): rescans the bus."""
    if text != "1":
        raise invalid(text)


def _create_region(text: str) -> None:
    number = text.removeprefix("region")
    if number == text or not number.isascii() or not number.isdigit():
        raise invalid(text)
    raise failure(errno.EBUSY)


def _sanitize(text: str) -> None:
    if not kstrtobool(text):
        raise invalid(text)
    raise failure(errno.EBUSY)


def _cancel(text: str) -> None:
    # cancel_store(): there is no upload to cancel.
    if text != "1":
        raise invalid(text)
    raise failure(errno.ENODEV)


def _loading(text: str) -> None:
    # firmware_loading_store(): this device takes no new firmware; -1 aborts, 0 ends what never began.
    if text not in ("-1", "0", "1"):
        raise invalid(text)
    if text == "1":
        raise failure(errno.EBUSY)
