"""`cram-emu fault`: what a device is made to do wrong."""

from __future__ import annotations

import argparse
import dataclasses

from cram_emu import Device
from cram_emu.cli import OK
from cram_emu.cli.console import Console, add_json
from cram_emu.cli.target import add_target, target
from cram_emu.errors import InvalidArgument
from cram_emu.faults import ATTRIBUTES, NAMES, Fault, parse_attribute

DESCRIPTION = """\
Shows the faults of a device, or sets when one of them strikes, as the kernel's fault attributes do: with
a probability in percent, at every so many chances (interval), so many times (-1: without limit), after so
many bytes (space). The same seed strikes the same pages. A fault belongs to the device: it strikes every
program that uses it, until it is switched off. removal, reset and power_cycle befall the device as a
whole: `now` has them strike at once.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    add_target(parser, required=True)
    parser.add_argument("fault", metavar="FAULT", nargs="?", help=", ".join(NAMES))
    parser.add_argument(
        "settings",
        metavar="ATTRIBUTE=VALUE | off | now",
        nargs="*",
        help=", ".join(ATTRIBUTES),
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    with Device.open(target(args)) as device:
        faults = list(device.faults.values()) if args.fault is None else [device.faults[args.fault]]
        if args.settings:
            _set(faults[0], args.settings)
        _tell(Console(args.json), faults)
    return OK


def _set(fault: Fault, settings: list[str]) -> None:
    if settings == ["off"]:
        fault.off()
        return
    if settings == ["now"]:
        fault.strike()
        return
    attributes = {}
    for word in settings:
        name, equals, value = word.partition("=")
        if not equals:
            raise InvalidArgument(f"{word!r}: not ATTRIBUTE=VALUE, off or now")
        attributes[name] = parse_attribute(name, value)
    fault.set(**attributes)


def _tell(console: Console, faults: list[Fault]) -> None:
    found = {
        fault.name: {**dataclasses.asdict(fault.attributes), "struck": fault.struck} for fault in faults
    }
    columns = ["fault", *ATTRIBUTES, "struck", "effect"]
    rows = [
        [
            fault.name,
            *(_cell(name, value, fault.unit) for name, value in found[fault.name].items()),
            fault.effect,
        ]
        for fault in faults
    ]
    console.table(columns, rows)
    console.document(found)


def _cell(name: str, value: float | int, unit: str) -> str:
    if name == "probability":
        return f"{value:.9g} %"
    if name == "value":
        return f"{value} {unit}" if unit else "-"
    return str(value)
