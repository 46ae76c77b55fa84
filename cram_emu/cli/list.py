"""`cram-emu list`: the devices that have names, and who has them open."""

from __future__ import annotations

import argparse

import psutil

from cram_emu import Device, format_size, named
from cram_emu.cli import OK
from cram_emu.cli.console import Console, add_json
from cram_emu.errors import CramError, DeviceMissing


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    console = Console(args.json)
    found = {name: entry for name in named.names() if (entry := _entry(name)) is not None}
    rows = [[name, *_row(entry)] for name, entry in found.items()]
    console.table(("name", "advertised", "real", "used", "ratio", "processes"), rows)
    console.document(found)
    return OK


def _entry(name: str) -> dict | None:
    """What is told of a device; None: it has just been removed."""
    path = named.find(name)
    try:
        users = named.clients(path)
        with Device.open(path) as device:
            stats = device.stats
    except DeviceMissing:
        return None
    except CramError as error:
        return {"path": str(path), "error": str(error)}
    return {
        "path": str(path),
        "advertised": stats.advertised,
        "real": stats.real,
        "used": stats.used,
        "ratio": stats.ratio,
        "processes": [{"pid": user.pid, "state": _state(user.pid)} for user in users],
    }


def _row(entry: dict) -> list[str]:
    if "error" in entry:
        return ["", "", "", "", entry["error"]]
    sizes = [format_size(entry[size]) for size in ("advertised", "real", "used")]
    processes = (
        f"{user['pid']} (stopped)" if user["state"] == psutil.STATUS_STOPPED else str(user["pid"])
        for user in entry["processes"]
    )
    return [*sizes, f"{entry['ratio']:.2f}", " ".join(processes)]


def _state(pid: int) -> str:
    """As psutil names it: one that is stopped may hold others up."""
    try:
        return psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_DEAD
