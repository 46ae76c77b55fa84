"""`cram-emu create`: a device that stays, under a name."""

from __future__ import annotations

import argparse

from cram_emu import named
from cram_emu.cli import OK
from cram_emu.cli.console import Console, add_capacities, add_json

DESCRIPTION = """\
Makes a device that stays in shared memory until `cram-emu rm`, for programs that share its real
capacity: each opens the file that is printed (Device.open), or `cram-emu mount --device NAME`.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument("name", metavar="NAME", help="letters, digits and _.+-")
    add_capacities(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    path = named.create(args.name, args.advertised, args.real)
    console = Console(args.json)
    console.say(str(path))
    console.document({"name": args.name, "path": str(path)})
    return OK
