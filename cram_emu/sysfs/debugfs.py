"""sys/kernel/debug/cxl (drivers/cxl/core/memdev.c) and sys/kernel/debug/cram (the compressed-RAM manager)."""

from __future__ import annotations

import errno
from collections.abc import Callable

from cram_emu.errors import Busy, CramError, DeviceClosed, DeviceGone, InvalidArgument
from cram_emu.sysfs.bus import Entries, write_only
from cram_emu.sysfs.events import Events
from cram_emu.sysfs.memdev import Memdev
from cram_emu.sysfs.parse import failure, invalid, kstrtobool, kstrtoull
from cram_emu.sysfs.table import Attribute, constant

CXL = "sys/kernel/debug/cxl"
CRAM = "sys/kernel/debug/cram"

_COLUMNS = "node zratio current_ratio perceived balloon target blocked allowed free present\n"


def poison(memdev: Memdev, events: Events) -> Entries:
    """A 64-byte aligned DPA, else EINVAL: cxl_validate_poison_dpa(). In effect before write(2) returns."""

    def inject(text: str) -> None:
        dpa = kstrtoull(text)
        memdev.device.poison.inject(dpa)
        events.injected(dpa)

    def clear(text: str) -> None:
        dpa = kstrtoull(text)
        try:
            memdev.device.poison.clear(dpa)
        except (InvalidArgument, DeviceClosed, DeviceGone, Busy):
            raise
        except CramError as error:
            # cxl_mbox_clear_poison(): -ENXIO where the device cannot write there.
            raise failure(errno.ENXIO, str(error)) from None
        events.cleared(dpa)

    def trigger(text: str) -> None:
        # trigger_poison_list_store()
        if not kstrtobool(text):
            raise invalid(text)
        events.list_poison()

    yield f"{CXL}/{memdev.name}/inject_poison", write_only(inject)
    yield f"{CXL}/{memdev.name}/clear_poison", write_only(clear)
    yield f"{memdev.dir}/trigger_poison_list", write_only(trigger)


def cram(members: Callable[[], list[Memdev]]) -> Entries:
    """The manager's counts and its view of the nodes. Without a manager nothing is demoted or promoted."""
    for name in ("demote_count", "promote_count", "promote_fail"):
        yield f"{CRAM}/{name}", constant("0")
    yield f"{CRAM}/nodes", Attribute(0o444, lambda: _nodes(members()))
    yield f"{CRAM}/control", write_only(lambda text: _control(members(), text))


def _nodes(members: list[Memdev]) -> str:
    return _COLUMNS + "".join(map(_row, members))


def _row(memdev: Memdev) -> str:
    """Ratios per mille, the rest in pages. target: what the balloon would hold to be safe at this ratio."""
    stats = memdev.device.stats
    zratio = memdev.size * 1000 // stats.real
    # Nothing stored yet: as good as promised.
    current = round(stats.ratio * 1000) or zratio
    target = memdev.pages * max(0, zratio - current) // zratio
    return (
        f"{memdev.nid} {zratio} {current} {memdev.pages} {memdev.balloon} {target} "
        f"{memdev.blocked:d} {not stats.no_alloc:d} {memdev.free()} {memdev.pages}\n"
    )


def _control(members: list[Memdev], text: str) -> None:
    command, *words = text.split() or [""]
    arity = {"inflate": 2, "deflate": 2, "block": 1, "unblock": 1, "demote": 3, "noalloc": 2}
    if len(words) != arity.get(command, -1):
        raise invalid(text)
    nid, *values = map(kstrtoull, words)
    memdev = next((member for member in members if member.nid == nid), None)
    if memdev is None:
        raise failure(errno.ENODEV, f"{text[:64]!r}: no such node")
    match command, values:
        case "inflate", [pages]:
            if pages > memdev.free():
                raise failure(errno.ENOSPC)
            memdev.balloon += pages
        case "deflate", [pages]:
            if pages > memdev.balloon:
                raise invalid(text)
            memdev.balloon -= pages
        case "block" | "unblock", []:
            memdev.blocked = command == "block"
        case "noalloc", [0 | 1 as on]:
            memdev.device.no_alloc = bool(on)
        case "demote", [_, _]:
            raise failure(errno.EOPNOTSUPP, "there is no memory manager to demote anything")
        case _:
            raise invalid(text)
