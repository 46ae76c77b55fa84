"""sys/kernel/debug/cram_device: what no kernel shows yet. The truth about the capacity stands only here.

One directory a device, one value a file; sizes in bytes, ratios per mille. `add` and `remove` are the
hands that plug a device in and pull it out, for this machine; `remove`, `reset` and `power_cycle` of a
device, written "1", befall it wherever it is open.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from cram_emu import Client, Stats
from cram_emu.sysfs.bus import Entries, write_only
from cram_emu.sysfs.memdev import Memdev
from cram_emu.sysfs.parse import invalid, kstrtobool, kstrtoull, memparse
from cram_emu.sysfs.table import Attribute, Wakeup, constant

DEVICES = "sys/kernel/debug/cram_device"
PRESSURE_MAX = 1000

#: Registers that are shown as they are.
COUNTS = (
    "used",
    "remaining",
    "peak",
    "payload",
    "dirty_frames",
    "pages_stored",
    "pages_raw",
    "pages_zero",
    "pages_same",
    "pages_poison",
    "dropped_writes",
    "refused_writes",
    "media_errors",
    "lost_pages",
    "clients",
    "events",
)
POISON = ("poisoned", "poison_records", "poison_overflow")
_PARAMS = ("real", "sector", "block", "codec", "level", "largest_stored", "poison_limit", "signal")


def platform(add: Callable[[str], None], remove: Callable[[str], None]) -> Entries:
    """`add`: "8G 1G" for a new device, or the path of one; `remove`: "mem1"."""
    yield f"{DEVICES}/add", write_only(add)
    yield f"{DEVICES}/remove", write_only(remove)


def members(memdev: Memdev) -> Entries:
    path, device = f"{DEVICES}/{memdev.name}", memdev.device

    def show(read: Callable[[Stats], object], wakeup: Wakeup | None = None) -> Attribute:
        return Attribute(0o444, lambda: f"{read(device.stats)}\n", wakeup=wakeup)

    yield f"{path}/path", constant(memdev.path)
    yield f"{path}/node", constant(str(memdev.nid))
    yield f"{path}/advertised", constant(str(memdev.size))
    params = device.params
    for name in _PARAMS:
        yield f"{path}/{name}", constant(str(getattr(params, name)))
    for name in COUNTS:
        yield f"{path}/{name}", show(lambda stats, name=name: getattr(stats, name))
    for name in POISON:
        yield f"{path}/{name}", show(lambda stats, name=name: getattr(stats, name), memdev.poisoned)
    yield f"{path}/processes", Attribute(0o444, lambda: _processes(device.clients()))
    yield f"{path}/ratio", show(lambda stats: round(stats.ratio * 1000))
    for name, wakeup in memdev.interrupted.items():
        yield f"{path}/interrupts/{name}", show(lambda stats, name=name: getattr(stats, name), wakeup)

    for name in ("lthresh", "hthresh"):
        yield f"{path}/{name}", _threshold(memdev, name, 1, lambda text: _capacity(text, params.real))
        yield f"{path}/ratio_{name}", _threshold(memdev, f"ratio_{name}", 1000, _per_mille)

    def set_pressure(text: str) -> None:
        # cram_set_pressure()
        pressure = kstrtoull(text)
        if pressure > PRESSURE_MAX:
            raise invalid(text)
        device.pressure = pressure

    def set_no_alloc(text: str) -> None:
        device.no_alloc = kstrtobool(text)

    for name, command in (("remove", device.remove), ("reset", device.reset), ("power_cycle", device.power_cycle)):
        yield f"{path}/{name}", write_only(_trigger(command))

    yield f"{path}/pressure", Attribute(0o644, lambda: f"{device.pressure}\n", set_pressure)
    yield f"{path}/no_alloc", Attribute(0o644, lambda: f"{device.no_alloc:d}\n", set_no_alloc)


def _trigger(command: Callable[[], None]) -> Callable[[str], None]:
    def store(text: str) -> None:
        if text != "1":
            raise invalid(text)
        command()

    return store


def _processes(clients: list[Client]) -> str:
    """A line for each process that has the device open; mapped in bytes, make_it_fail 0 or 1, the rest are counts."""
    names = [field.name for field in dataclasses.fields(Client)]
    rows = [" ".join(f"{getattr(client, name):d}" for name in names) for client in clients]
    return "".join(f"{row}\n" for row in [" ".join(names), *rows])


def _threshold(
    memdev: Memdev, name: str, scale: int, parse: Callable[[str], int | float]
) -> Attribute:
    def store(text: str) -> None:
        memdev.set_threshold(name, parse(text))

    return Attribute(0o644, lambda: f"{round(memdev.threshold(name) * scale)}\n", store)


def _capacity(text: str, real: int) -> int:
    """Bytes: "100M", or "10%" of the real capacity; 0 is off."""
    if text.endswith("%"):
        return real * kstrtoull(text[:-1], 100) // 100
    return memparse(text)


def _per_mille(text: str) -> float:
    return kstrtoull(text) / 1000
