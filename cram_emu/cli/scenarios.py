"""`cram-emu scenarios`: what goes wrong with such a device, and what comes of it."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from cram_emu.cli import FAILED, OK
from cram_emu.cli.console import Console, add_json, check_writable, nonempty
from cram_emu.errors import DeviceIOError
from cram_emu.lab import scenarios

DESCRIPTION = """\
Runs the scenarios of scripts/faults, all of them or those that are named: each mounts a machine of its own,
breaks its device on purpose, and checks what comes of it. Needs root, for the mount.
"""
_STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument("names", metavar="SCENARIO", nargs="*", help="as --list shows them")
    parser.add_argument("--list", action="store_true", help="only tell what there is, with the theory of each")
    parser.add_argument("--junit", type=nonempty, metavar="FILE", help="write the results there as JUnit XML")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    console = Console(args.json)
    found = scenarios.chosen(args.names)
    if args.list:
        for scenario in found:
            console.say(scenario.name, "bold")
            console.say(textwrap.fill(scenario.theory, 96, initial_indent="  ", subsequent_indent="  "))
        console.document({scenario.name: scenario.theory for scenario in found})
        return OK
    if args.junit is not None:
        check_writable(args.junit)
    results = []
    with console.progress("scenarios", len(found)) as update:
        for done, scenario in enumerate(found):
            update(done, scenario.name)
            results.append(scenarios.run(scenario))
        update(len(found), "")
    _tell(console, results)
    if args.junit is not None:
        try:
            Path(args.junit).write_text(scenarios.junit(results), encoding="utf-8")
        except OSError as error:
            raise DeviceIOError(f"{args.junit}: {error.strerror}") from None
    return FAILED if any(result.outcome == "failed" for result in results) else OK


def _tell(console: Console, results: list[scenarios.Result]) -> None:
    for result in results:
        if result.outcome == "failed":
            console.say()
            console.say(result.scenario.name, "bold")
            console.say(result.output.rstrip())
    rows = [
        [result.scenario.name, result.outcome, f"{result.seconds:.1f} s", result.reason.removeprefix("skipped: ")] for result in results
    ]
    console.table(["scenario", "outcome", "time", ""], rows, _STYLES)
    console.document(
        [
            {
                "name": result.scenario.name,
                "outcome": result.outcome,
                "seconds": result.seconds,
                "output": result.output,
            }
            for result in results
        ]
    )
