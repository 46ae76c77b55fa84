"""Which device a subcommand is for: one that others made, by its name, its file, or where its machine is mounted."""

from __future__ import annotations

import argparse

from cram_emu import named
from cram_emu.cli.console import nonempty


def add_target(parser: argparse.ArgumentParser, required: bool) -> None:
    where = parser.add_mutually_exclusive_group(required=required)
    where.add_argument(
        "--device", type=nonempty, metavar="NAME|PATH", help="this device, with whoever else uses it"
    )
    where.add_argument(
        "--mount", type=nonempty, metavar="MOUNTPOINT", help="mem0 of the machine that is mounted there"
    )


def target(args: argparse.Namespace) -> str | None:
    """The path of its file; None: none was named."""
    if args.device is not None:
        return str(named.find(args.device).resolve())
    if args.mount is not None:
        from cram_emu.sysfs.client import Tree, told

        with told(args.mount):
            return Tree(args.mount).device("mem0")["path"]
    return None
