"""`cram-emu fault`: what a device is made to do wrong."""

from __future__ import annotations

import argparse
import dataclasses

from cram_emu import Device
from cram_emu.cli import OK
from cram_emu.cli.console import Console, add_json
from cram_emu.cli.target import add_target, target
from cram_emu.errors import InvalidArgument
from cram_emu.faults import ATTRIBUTES, NAMES, Fault, check_effect, file_name, parse_attribute

DESCRIPTION = """\
Shows the faults of a device, or sets when one of them strikes, as the kernel's fault attributes do: with
a probability in percent, at every so many chances (interval), so many times (-1: without limit), after so
many bytes (space). The same seed strikes the same pages. What a fault does by an amount (value: a delay,
say) varies as its distribution says: constant, uniform, exponential or pareto, which has spikes. A fault
belongs to the device: it strikes every program that uses it, until it is switched off; with task-filter=1
only programs run with a --fault that says so too, or marked in make-it-fail of a mounted machine. removal,
reset and power_cycle befall the device as a whole: `now` has them strike at once.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    add_target(parser, required=True)
    parser.add_argument("fault", metavar="FAULT", nargs="?", help=", ".join(NAMES))
    parser.add_argument(
        "settings",
        metavar="ATTRIBUTE=VALUE | off | now",
        nargs="*",
        help=", ".join(map(file_name, ATTRIBUTES)),
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
        attributes[name.replace("-", "_")] = parse_attribute(name, value)
    check_effect(fault.name, dataclasses.replace(fault.attributes, **attributes))
    fault.set(**attributes)


def _tell(console: Console, faults: list[Fault]) -> None:
    found = {
        fault.name: {**dataclasses.asdict(fault.attributes), "struck": fault.struck} for fault in faults
    }
    shown = [name for name in (*ATTRIBUTES, "struck") if name != "distribution"]
    columns = ["fault", *map(file_name, shown), "effect"]
    rows = [
        [fault.name, *(_cell(name, found[fault.name], fault.unit) for name in shown), fault.effect]
        for fault in faults
    ]
    console.table(columns, rows)
    console.document(found)


def _cell(name: str, found: dict, unit: str) -> str:
    value = found[name]
    if name == "probability":
        return f"{value:.9g} %"
    if name == "value":
        varies = "" if found["distribution"] == "constant" else f", {found['distribution']}"
        return f"{value} {unit}{varies}" if unit else "-"
    if isinstance(value, bool):
        return "Y" if value else "N"
    return str(value)
