"""How much memory of the host a process and a device object take, from the kernel's own accounts.

It measures; what belongs to what is for the caller to say. Sizes are bytes.
"""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Footprint:
    """Of this process: private memory (frames among it), and the kernel's page tables for it."""

    anonymous: int
    page_tables: int

    def __sub__(self, earlier: "Footprint") -> "Footprint":
        return Footprint(
            self.anonymous - earlier.anonymous, self.page_tables - earlier.page_tables
        )


def footprint() -> Footprint:
    return Footprint(
        anonymous=_field("/proc/self/smaps_rollup", "Pss_Anon:"),
        page_tables=_field("/proc/self/status", "VmPTE:"),
    )


def object_size(fd: int) -> int:
    """What a shared-memory object takes: pages that were touched, not its length."""
    return os.fstat(fd).st_blocks * 512


def available() -> int:
    """Memory of the host that a new program could have."""
    return _field("/proc/meminfo", "MemAvailable:")


def total() -> int:
    """Memory of the host that the kernel manages."""
    return _field("/proc/meminfo", "MemTotal:")


def vmalloc() -> int:
    """Kernel memory of the host in page-wise mappings, its tables for swap among it."""
    return _field("/proc/meminfo", "VmallocUsed:")


def _field(table: str, name: str) -> int:
    for line in Path(table).read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise LookupError(f"{table} has no {name}")
