"""sys/module/zswap, sys/kernel/debug/{zswap,zsmalloc}: mm/zswap.c and mm/zsmalloc.c, of a manager in this process.

What no kernel shows stands in sys/kernel/debug/cram_zswap, and for a device that is a node in its directory of
cram_device. It does not look into the manager: it shows what Zswap and Node say. Nodes come and go while files are read.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from cram_emu.errors import CramError
from cram_emu.sysfs.bus import Entries
from cram_emu.sysfs.memdev import Memdev
from cram_emu.sysfs.parse import failure, invalid, kstrtobool, kstrtoull
from cram_emu.sysfs.registers import DEVICES
from cram_emu.sysfs.table import SIZE, Attribute, Directory, Entry

if TYPE_CHECKING:
    from cram_emu import Device
    from cram_emu.host import Node, PoolClass, Zswap

PARAMETERS = "sys/module/zswap/parameters"
STATISTICS = "sys/kernel/debug/zswap"
#: zswap_pool_create() numbers its pools, and the manager has one.
CLASSES = "sys/kernel/debug/zsmalloc/zswap1/classes"
#: Our own, under a name that no kernel has.
OWN = "sys/kernel/debug/cram_zswap"

_UINT_MAX = 2**32 - 1

#: zswap_debugfs_init(); the last is the wish of those who propose nodes.
COUNTS = (
    "stored_pages",
    "stored_incompressible_pages",
    "pool_total_size",
    "written_back_pages",
    "pool_limit_hit",
    "reject_reclaim_fail",
    "reject_compress_poor",
    "reject_compress_fail",
    "reject_alloc_fail",
    "reject_kmemcache_fail",
    "decompress_fail",
    "stored_direct_pages",
)
OWN_COUNTS = (
    "stored_pool_pages",
    "stored_zero_pages",
    "stored_swap_pages",
    "stored_bytes",
    "charged_direct_bytes",
    "pool_cached_pages",
    "reject_memcg",
    "reclaim_fail",
    "direct_reclaim",
    "kswapd_reclaim",
    "notes_lost",
    "max_pages",
    "swap_pages",
    "swap_used",
)

# zs_stats_size_show()
_FULLNESS = (*(f"{percent}%" for percent in range(10, 100, 10)), "99%", "100%")


def attribute(
    manager: Zswap, show: Callable[[], object], store: Callable[[str], object] | None = None, size: int = 0
) -> Attribute:
    """A manager's text, less its last newline. ENODEV once it is closed, as of any file whose owner has gone.

    size: st_size, which is sysfs' own habit; elsewhere a file may be longer than that.
    """

    def check() -> None:
        if manager.closed:
            raise failure(errno.ENODEV, "the manager is closed")

    def shown() -> str:
        check()
        return f"{show()}\n"

    def stored(text: str) -> None:
        check()
        store(text)

    entry = Attribute(0o444, shown) if store is None else Attribute(0o644, shown, stored)
    entry.st_size = size
    return entry


def platform(manager: Zswap) -> Entries:
    yield from _parameters(manager)
    for name in COUNTS:
        yield f"{STATISTICS}/{name}", _count(manager, name)
    yield CLASSES, attribute(manager, lambda: classes(list(manager.pool_classes())))
    yield from _own(manager)


def _count(manager: Zswap, name: str) -> Attribute:
    return attribute(manager, lambda: getattr(manager.stats, name))


# ---- parameters -------------------------------------------------------------------------------


def _parameters(manager: Zswap) -> Entries:
    """kernel/params.c has their formats; the manager its own limits, EINVAL, where zswap would take any number."""

    def switch(name: str) -> Attribute:
        """param_get_bool(), param_set_bool()"""
        return attribute(
            manager,
            lambda: "Y" if getattr(manager, name) else "N",
            lambda text: setattr(manager, name, kstrtobool(text)),
            SIZE,
        )

    for name in ("enabled", "shrinker_enabled"):
        yield f"{PARAMETERS}/{name}", switch(name)
    for name in ("accept_threshold_percent", "max_pool_percent"):
        yield f"{PARAMETERS}/{name}", _number(manager, name, SIZE)

    def choose_compressor(text: str) -> None:
        # zswap_compressor_param_set(): the current one needs nothing; another needs a pool, which cannot be had.
        if text.strip() != manager.compressor:
            raise invalid(text)

    yield f"{PARAMETERS}/compressor", attribute(manager, lambda: manager.compressor, choose_compressor, SIZE)


def _number(manager: Zswap, name: str, size: int = 0) -> Attribute:
    """param_get_uint(), param_set_uint()"""
    return attribute(
        manager,
        lambda: getattr(manager, name),
        lambda text: setattr(manager, name, kstrtoull(text, _UINT_MAX)),
        size,
    )


# ---- the pool ---------------------------------------------------------------------------------


def classes(rows: list[PoolClass]) -> str:
    """The text of a pool's `classes`, without its last newline. The kernel has no column for zspages that are empty."""
    fullness = " ".join(f"{name:>9}" for name in _FULLNESS)
    head = f" {'class':>5} {'size':>5} {fullness} obj_allocated   obj_used pages_used pages_per_zspage freeable"
    lines = [_class(row.index, row.size, row.fullness[1:], row, row.pages_per_zspage) for row in rows]
    totals = [sum(column) for column in zip(*(row.fullness[1:] for row in rows), strict=True)]
    return "\n".join([head, *lines, "", _class("Total", "", totals, _Total(rows), "")])


class _Total:
    """What the classes have together."""

    def __init__(self, rows: list[PoolClass]):
        self.objs_allocated = sum(row.objs_allocated for row in rows)
        self.objs_used = sum(row.objs_used for row in rows)
        self.pages_used = sum(row.pages_used for row in rows)
        self.freeable = sum(row.freeable for row in rows)


def _class(index: int | str, size: int | str, fullness, row: PoolClass | _Total, per_zspage: int | str) -> str:
    zspages = " ".join(f"{n:9}" for n in fullness)
    return (
        f" {index:>5} {size:>5} {zspages} {row.objs_allocated:13} {row.objs_used:10} {row.pages_used:10} "
        f"{per_zspage:>16} {row.freeable:8}"
    )


# ---- what no kernel shows ---------------------------------------------------------------------


def _own(manager: Zswap) -> Entries:
    for name in OWN_COUNTS:
        yield f"{OWN}/{name}", _count(manager, name)
    for limit in manager.stats.total_pages:
        yield f"{OWN}/total_pages_{limit}", attribute(manager, lambda limit=limit: manager.stats.total_pages[limit])
    yield f"{OWN}/ram", attribute(manager, lambda: manager.ram)
    for name in ("direct_limit", "charging"):
        yield f"{OWN}/{name}", _choice(manager, name)
    yield f"{OWN}/max_direct_percent", _number(manager, "max_direct_percent")


def _choice(manager: Zswap, name: str) -> Attribute:
    return attribute(manager, lambda: getattr(manager, name), lambda text: setattr(manager, name, text))


# ---- nodes ------------------------------------------------------------------------------------


def members(manager: Zswap, memdev: Memdev) -> Entries:
    yield f"{DEVICES}/{memdev.name}/zswap", NodeDirectory(manager, memdev.device)


class NodeDirectory(Directory):
    """What the manager says of a device; empty while that is no node of it."""

    def __init__(self, manager: Zswap, device: Device):
        super().__init__()
        self._manager = manager
        self._device = _object(device)

    def names(self) -> list[str]:
        return list(self._values())

    def get(self, name: str) -> Entry | None:
        if name not in self._values():
            return None
        return attribute(self._manager, lambda: self._value(name))

    def _value(self, name: str) -> int:
        values = self._values()
        if not values:
            raise failure(errno.ENODEV, "the device is no node any more")
        return values[name]

    def _values(self) -> dict[str, int]:
        """A count a name: NodeStats, with a name for each reason to refuse."""
        # A node that leaves meanwhile has left.
        with suppress(CramError):
            for node in self._manager.nodes:
                if _object(node.device) == self._device:
                    return _counts(node)
        return {}


def _counts(node: Node) -> dict[str, int]:
    counts = {"node": node.number, **dataclasses.asdict(node.stats)}
    refused = counts.pop("refused")
    return {name: int(n) for name, n in counts.items()} | {f"refused_{name}": n for name, n in refused.items()}


def _object(device: Device) -> tuple[int, int]:
    """Which device it is, whoever has opened it, and where."""
    found = os.fstat(device.fileno())
    return found.st_dev, found.st_ino
