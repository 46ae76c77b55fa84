"""`cram-emu rm`: removes a device that has a name."""

from __future__ import annotations

import argparse

from cram_emu import named
from cram_emu.cli import OK


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="as `cram-emu list` shows it")


def run(args: argparse.Namespace) -> int:
    named.remove(args.name)
    return OK
