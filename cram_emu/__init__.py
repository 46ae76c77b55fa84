"""cram_emu: a compressed-RAM device in user space.

It advertises more memory than it has, compresses what is written to it, warns when it runs low, and
when it runs out it drops the write and poisons the page, as the hardware does.
"""

from cram_emu.device import (
    Client,
    Consumption,
    Device,
    Interrupt,
    PageInfo,
    Params,
    PoisonRecord,
    Stats,
    UffdInfo,
    uffd_info,
)
from cram_emu.errors import CramError, PoisonError
from cram_emu.faults import Strike
from cram_emu.mapping import Mapping, MapStats
from cram_emu.sizes import format_size, parse_size

__version__ = "0.1.0"

__all__ = [
    "Client",
    "Consumption",
    "CramError",
    "Device",
    "Interrupt",
    "MapStats",
    "Mapping",
    "PageInfo",
    "Params",
    "PoisonError",
    "PoisonRecord",
    "Stats",
    "Strike",
    "UffdInfo",
    "format_size",
    "parse_size",
    "uffd_info",
]
