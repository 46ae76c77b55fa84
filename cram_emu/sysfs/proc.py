"""proc/vmstat and proc/meminfo: the host's own lines, with a manager's in the place of zswap's and swap's.

It does not add the devices' nodes to MemTotal and its like: those lines are the host's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cram_emu.sysfs.bus import Entries
from cram_emu.sysfs.memdev import PAGE
from cram_emu.sysfs.zswap import attribute

if TYPE_CHECKING:
    from cram_emu.host import Zswap

PROC = Path("/proc")

#: mm/vmstat.c, vmstat_text[]
EVENTS = ("pswpin", "pswpout", "swpin_zero", "swpout_zero", "zswpin", "zswpout", "zswpwb")


def platform(manager: Zswap) -> Entries:
    yield "proc/vmstat", attribute(manager, lambda: _merged("vmstat", vmstat(manager)))
    yield "proc/meminfo", attribute(manager, lambda: _merged("meminfo", meminfo(manager)))


def vmstat(manager: Zswap) -> list[str]:
    stats = manager.stats
    return [f"{name} {getattr(stats, name)}" for name in EVENTS]


def meminfo(manager: Zswap) -> list[str]:
    """meminfo_proc_show(): zswap_total_pages(), as the manager's direct_limit has it, and what they hold."""
    stats = manager.stats
    rows = {"Zswap:": stats.total_pages[manager.direct_limit], "Zswapped:": stats.stored_pages}
    return [f"{name:16}{pages * PAGE >> 10:8} kB" for name, pages in rows.items()]


def _merged(name: str, lines: list[str]) -> str:
    """The host's file with our lines where it has them, else at its end."""
    ours = {line.split()[0]: line for line in lines}
    host = (PROC / name).read_text().splitlines()
    merged = [ours.pop(line.split()[0], line) for line in host]
    return "\n".join([*merged, *ours.values()])
