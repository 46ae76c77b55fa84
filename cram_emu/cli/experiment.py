"""`cram-emu experiment`: what a policy of the host comes to, measured on its own manager and devices.

This module does the telling. What is done, and every figure, is lab/charging.py's and lab/race.py's.
"""

from __future__ import annotations

import argparse
import dataclasses
import textwrap

from cram_emu import format_size
from cram_emu.cli import EXIT_CODES, OK
from cram_emu.cli.console import Console, add_json, check_writable, nonempty, seed, size
from cram_emu.lab import charging, plot, race

DESCRIPTION = """\
charging  What a memory cgroup pays for a page that reclaim has moved to a device: a whole page, as the kernel
          proposal has it, the bytes that the device reports (size), or the node's mean (fuzzy). A seeded
          workload on a group whose working set is twice its memory.max, beside a device with room for it.
          Reclaim efficiency is 1 - c / 4096, c being the bytes charged for a stored page, the mean over all
          pages reclaimed: what of a reclaimed page's charge is gone. An OOM event is a charge past memory.max
          after reclaim without progress; the kernel would kill there, here the limit gives way.

race      Pages that are lost because the host hears too late that a device runs full: how many, by the margin
          (lthresh, in percent of the real capacity) and by how it hears: an interrupt in time, late or
          lost, questions at an interval, or a look at the registers before each store.

Every page is verified: it holds what was written to it, or it is poison and was counted as lost.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.epilog = EXIT_CODES
    parser.add_argument("experiment", choices=EXPERIMENTS, help="which one")
    parser.add_argument(
        "--size",
        type=size,
        metavar="SIZE",
        help="memory.max of charging's group (32M), the real capacity of race's device (16M)",
    )
    parser.add_argument("--seed", type=seed, default=1, metavar="N", help="of contents and accesses (1)")
    parser.add_argument("--plot", type=nonempty, metavar="FILE", help="draw it there: .png or .svg")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """InvalidArgument, NotSupported, DeviceIOError before anything is measured."""
    make, size_name, measure = EXPERIMENTS[args.experiment]
    sizes = {} if args.size is None else {size_name: args.size}
    plan = make(seed=args.seed, **sizes)
    if args.plot is not None:
        plot.check(args.plot)
        check_writable(args.plot)
    measure(plan, args, Console(args.json))
    return OK


def _say(console: Console, text: str) -> None:
    for line in textwrap.wrap(text, 96):
        console.say(line)


# ---- charging ---------------------------------------------------------------------------------


def _charging(plan: charging.Plan, args: argparse.Namespace, console: Console) -> None:
    console.say(
        f"memory.max {format_size(plan.limit)}, a working set of {format_size(plan.pages * charging.PAGE)},"
        " and a device with room for it"
    )
    with console.progress("charging", len(charging.MODES)) as update:
        outcomes = charging.run(plan, update)
    if args.plot is not None:
        plot.draw_charging(plan, outcomes, args.plot)
    console.say()
    console.table(["charged", *(outcome.charging for outcome in outcomes)], _charging_rows(plan, outcomes))
    console.say()
    _say(console, _charging_says(outcomes))
    console.document({"plan": dataclasses.asdict(plan), "outcomes": [dataclasses.asdict(o) for o in outcomes]})


def _charging_rows(plan: charging.Plan, outcomes: list[charging.Outcome]) -> list[list[str]]:
    rows = {
        "reclaim efficiency": lambda o: f"{o.efficiency:.2f}",
        "pages reclaimed": lambda o: f"{o.reclaimed:,}",
        "refaults (zswpin)": lambda o: f"{o.refaults:,}",
        "limit met (max)": lambda o: f"{o.max_events:,}",
        "OOM events (oom)": lambda o: f"{o.oom:,}",
        "highest memory.current, of memory.max": lambda o: f"{100 * o.peak / plan.limit:.0f} %",
        "frames of it in the end": lambda o: format_size(o.samples[-1].anon),
        "media in use in the end": lambda o: format_size(o.stored),
        "accesses": lambda o: f"{o.accesses:,}",
        "accesses a second": lambda o: f"{o.rate:,.0f}",
    }
    return [[name, *map(value, outcomes)] for name, value in rows.items()]


def _charging_says(outcomes: list[charging.Outcome]) -> str:
    by = {outcome.charging: outcome for outcome in outcomes}
    page, size_ = by["page"], by["size"]
    return (
        f"Charged as whole pages, {page.reclaimed:,} pages were reclaimed and gave {100 * page.efficiency:.0f} % of their"
        f" charge back; {page.oom:,} charges went past the limit where the kernel would have killed, and"
        f" {page.refaults:,} of {page.accesses:,} accesses had to bring their page back. Charged by size, a reclaimed"
        f" page gives {100 * size_.efficiency:.0f} % back: {size_.oom:,} OOM events, {size_.refaults:,} refaults,"
        f" {size_.rate / page.rate:.1f} times the accesses a second. Every page held what was written to it."
    )


# ---- race -------------------------------------------------------------------------------------


def _race(plan: race.Plan, args: argparse.Namespace, console: Console) -> None:
    console.say(f"{format_size(plan.real)} of real capacity; {format_size(plan.pages * race.PAGE)} are reclaimed")
    with console.progress("race", plan.runs * len(plan.words) * len(plan.margins)) as update:
        cells = race.run(plan, update)
    if args.plot is not None:
        plot.draw_race(plan, cells, args.plot)
    console.say()
    console.say(f"Pages lost, by margin (lthresh, of the real capacity); median (most) of {plan.runs} runs")
    columns = ["interrupt", *(f"{margin:g} %" for margin in plan.margins), "suffices", "heard after"]
    console.table(columns, [_race_row(cells, word) for word in plan.words])
    console.say()
    _say(console, _race_says(plan, cells))
    console.document(
        {
            "plan": dataclasses.asdict(plan),
            "rate": race.rate(cells),
            "cells": [dataclasses.asdict(cell) for cell in cells],
            "suffices": {word.name: race.suffices(cells, word) for word in plan.words},
        }
    )


def _race_row(cells: list[race.Cell], word: race.Word) -> list[str]:
    enough, heard = race.suffices(cells, word), race.heard_ms(cells, word)
    return [
        word.name,
        *(f"{cell.lost:,.0f} ({cell.most_lost:,})" for cell in cells if cell.word == word),
        "none" if enough is None else f"{enough:g} %",
        "-" if heard is None else f"{heard:.1f} ms",
    ]


def _race_says(plan: race.Plan, cells: list[race.Cell]) -> str:
    rate = race.rate(cells) / (1 << 20)
    lost = sum(run.lost for cell in cells for run in cell.runs)
    return (
        f"Pages are reclaimed at {rate:,.0f} MiB/s, {rate / 1000:.2f} MiB a millisecond: a margin has to hold what"
        " arrives, compressed, until the host has heard (suffices: the least one from which on no run lost a page)."
        f" In all runs {lost:,} pages were lost; each was counted as a dropped write and is poison to its reader. All"
        " others hold what was written to them."
    )


#: What plans it, what its plan calls --size, and what measures and tells it.
EXPERIMENTS = {"charging": (charging.Plan, "limit", _charging), "race": (race.Plan, "real", _race)}
