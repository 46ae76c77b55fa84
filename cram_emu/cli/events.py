"""`cram-emu events`: the trace of a mounted machine, as it stands, or as it grows."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from cram_emu.cli import OK
from cram_emu.cli.console import nonempty
from cram_emu.sysfs.client import Tree, told

# "  cram-emu-1234    [000] .....   12.345678: cxl_poison: memdev=mem0 ..."
_LINE = re.compile(r"\s*(?P<task>.+)-(?P<pid>\d+)\s+\[\d+\] \S+\s+(?P<time>[\d.]+): (?P<event>\w+): (?P<fields>.*)")
# A value may hold spaces: it ends before the next name, or before the colon between two groups.
_FIELD = re.compile(r"(\w+)=(.*?)(?= \w+=| : |$)")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mountpoint", type=nonempty, metavar="MOUNTPOINT", help="where `cram-emu mount` serves")
    parser.add_argument(
        "--follow",
        action="store_true",
        help="wait for more, until the machine is unmounted; what others have consumed is not shown",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def run(args: argparse.Namespace) -> int:
    tree = Tree(args.mountpoint)
    with told(args.mountpoint):
        for line in _follow(tree.trace_pipe) if args.follow else _history(tree.trace):
            print(json.dumps(parse(line)) if args.json else line, flush=args.follow)
    return OK


def parse(line: str) -> dict[str, str | float]:
    """A line of the trace: its time in seconds (CLOCK_MONOTONIC), its event, whose it is, and its fields as they stand."""
    found = _LINE.fullmatch(line)
    if found is None:
        raise ValueError(f"{line!r}: not a line of the trace")
    fields = {name: value.strip("'") for name, value in _FIELD.findall(found["fields"])}
    whose = {"task": found["task"], "pid": int(found["pid"])}
    return {"timestamp": float(found["time"]), "event": found["event"], **whose, **fields}


def _history(trace: Path) -> Iterator[str]:
    return (line for line in trace.read_text().splitlines() if not line.startswith("#"))


def _follow(pipe: Path) -> Iterator[str]:
    fd = os.open(pipe, os.O_RDONLY)
    try:
        rest = b""
        while chunk := os.read(fd, 1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line.decode() for line in lines)
    finally:
        os.close(fd)
