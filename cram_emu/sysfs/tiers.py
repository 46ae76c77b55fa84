"""Memory tiers and what places pages on nodes: mm/memory-tiers.c, mm/mempolicy.c."""

from __future__ import annotations

from collections.abc import Callable

from cram_emu.sysfs import host
from cram_emu.sysfs.bus import Entries, bus, power, uevent
from cram_emu.sysfs.memdev import Memdev
from cram_emu.sysfs.parse import kstrtobool, kstrtoull, node_list
from cram_emu.sysfs.table import Attribute, Link

BUS = "sys/bus/memory_tiering"
DEVICES = "sys/devices/virtual/memory_tiering"
#: Abstract distances 576 and 2880, in chunks of 128.
DRAM_TIER = 4
DEVICE_TIER = 22


class Setting:
    """A value of the machine that is read back as it was set."""

    def __init__(self, value: str, parse: Callable[[str], str]):
        self._value = value
        self._parse = parse

    def attribute(self, mode: int = 0o644) -> Attribute:
        return Attribute(mode, lambda: f"{self._value}\n", self._store)

    def _store(self, text: str) -> None:
        self._value = self._parse(text)


def _truth(text: str) -> str:
    return "true" if kstrtobool(text) else "false"


def _weight(text: str) -> str:
    # node_store(): a weight is a u8, and an empty or zero one asks for the default.
    return str(kstrtoull(text, 255) or 1) if text else "1"


def platform() -> Entries:
    yield from bus(BUS)
    yield f"{DEVICES}/uevent", uevent()
    yield from power(DEVICES)
    yield from _tier(DRAM_TIER, host.nodes)
    yield "sys/kernel/mm/numa/demotion_enabled", Setting("true", _truth).attribute()
    weights = "sys/kernel/mm/mempolicy/weighted_interleave"
    yield f"{weights}/__auto_type", Setting("true", _truth).attribute(0o664)
    for node in host.nodes():
        yield from weight(node)


def weight(nid: int) -> Entries:
    path = f"sys/kernel/mm/mempolicy/weighted_interleave/node{nid}"
    yield path, Setting("1", _weight).attribute()


def device_tier(members: Callable[[], list[Memdev]]) -> Entries:
    """The tier of all devices; it exists while there is one."""
    yield from _tier(DEVICE_TIER, lambda: [member.nid for member in members()])


def _tier(number: int, nodes: Callable[[], list[int]]) -> Entries:
    path = f"{DEVICES}/memory_tier{number}"
    yield f"{BUS}/devices/memory_tier{number}", Link(path)
    yield f"{path}/nodelist", Attribute(0o444, lambda: f"{node_list(nodes())}\n")
    yield f"{path}/subsystem", Link(BUS)
    yield f"{path}/uevent", uevent()
    yield from power(path)
