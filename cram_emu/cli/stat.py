"""`cram-emu stat`: the registers of the devices of a mounted machine, once."""

from __future__ import annotations

import argparse

from cram_emu.cli import OK
from cram_emu.cli.console import Console, add_json, nonempty
from cram_emu.sizes import format_size
from cram_emu.sysfs.client import Tree, told

# Registers by how they are told.
SIZES = ("advertised", "real", "used", "remaining", "peak", "payload", "lthresh", "hthresh")
RATIOS = ("ratio", "ratio_lthresh", "ratio_hthresh")
# What people look for, in the order in which they do; the rest follows by name.
FIRST = ("node", "advertised", "real", "used", "remaining", "ratio", "dropped_writes", "poisoned")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mountpoint", type=nonempty, metavar="MOUNTPOINT", help="where `cram-emu mount` serves")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    with told(args.mountpoint):
        devices = Tree(args.mountpoint).devices()
    console = Console(args.json)
    names = {name for values in devices.values() for name in values}
    ordered = [*(name for name in FIRST if name in names), *sorted(names.difference(FIRST))]
    rows = [[name, *(_tell(name, values) for values in devices.values())] for name in ordered]
    console.table(("register", *devices), rows)
    console.document(devices)
    return OK


def _tell(name: str, values: dict[str, int | str]) -> str:
    value = values.get(name, "")
    if name in SIZES:
        return format_size(int(value))
    if name in RATIOS:
        return f"{int(value) / 1000:.2f}"
    return f"{value:,}" if isinstance(value, int) else value
