"""`cram-emu bench`: the device beside kernel zram swap, ordinary memory, lz4 and memcpy.

This module does the telling. What is measured, and every figure, is lab/bench.py's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict

from cram_emu.cli import OK, USAGE
from cram_emu.cli.console import Console, add_json
from cram_emu.lab.bench import (
    HOT_PAIRS,
    MANAGED,
    MIB,
    SIDES,
    THREADS,
    Plan,
    Result,
    Spread,
    Target,
    hot_ratios,
    program_hot_ratios,
    reader_spreads,
    run as run_bench,
    spread_of,
    start_cost,
    targets,
)
from cram_emu.sizes import format_size, parse_size

DESCRIPTION = """\
Runs the same loops on a device and on kernel zram swap (lz4) that may keep as much memory resident:
fill, sequential read, random reads and writes, with one and two threads; and on managed memory with the
device as its node and on kernel zswap, with one. Beside them the limits
(lz4 and memcpy alone), the loops and a hot set in a program under `cram-emu run`, a hot set of a
mapping against ordinary memory, what a reader of the device's files costs
it, and what a device itself takes. Contents are verified outside the timed parts. The full run takes
about eight minutes and needs 3.3 GiB of free memory. Kernel zram needs root; without it that column is
left out, and the reason is given. Swap, zram and memory cgroup are put back afterwards, after Ctrl-C
and SIGTERM too.
"""

EXIT_CODES = """\
exit codes:
  0    measured, whether or not the targets were reached
  1    a verification or a measurement failed; the message says which
  2    bad usage
  3    this host does not permit userfaultfd; `cram-emu info` says what would help
  130  interrupted (Ctrl-C); 143 by SIGTERM; the host is as it was
"""

# figure, name, what makes it readable
_SPEEDS = (
    ("fill", "fill, MiB/s"),
    ("scan", "sequential read, MiB/s"),
    ("read_mean", "random read, mean µs"),
    ("read_p50", "random read, p50 µs"),
    ("read_p99", "random read, p99 µs"),
    ("read_max", "random read, max µs"),
    ("read_rate", "random read, thousands/s"),
    ("write_mean", "random write, mean µs"),
    ("write_p50", "random write, p50 µs"),
    ("write_p99", "random write, p99 µs"),
    ("write_max", "random write, max µs"),
    ("write_rate", "random write, thousands/s"),
    ("shootdowns", "TLB shootdowns, thousands"),
    ("memory", "host memory, MiB"),
)
_SCALE = {"read_rate": 1000, "write_rate": 1000, "shootdowns": 1000, "memory": MIB}
_OF_SIDES = ("shootdowns", "memory")  # and not of the program on the device
_STYLES = {"reached": "green", "not reached": "bold red", "not measured": "dim"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.epilog = EXIT_CODES
    parser.add_argument(
        "--size",
        default="2G",
        help="bytes of pages, a multiple of 512M (2G); the window is an eighth of it",
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds, ABBA (5)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Measures and tells; returns one of EXIT_CODES."""
    try:
        plan = Plan(size=parse_size(args.size), rounds=args.rounds)
    except ValueError as error:
        print(f"cram-emu bench: {error}", file=sys.stderr)
        return USAGE
    console = Console(args.json)
    console.say(
        f"{format_size(plan.size)} of pages with 1 KiB of entropy each;"
        f" {format_size(plan.window)} resident on either side; rounds: {plan.rounds}, ABBA"
    )
    with console.progress("bench", 100) as update:
        result = run_bench(plan, lambda done, steps, note: update(100 * done // steps, note))
    _tell(console, result)
    console.document(_document(result))
    return OK


# ---- for people ------------------------------------------------------------------------------


def _tell(console: Console, result: Result) -> None:
    for line in _conditions(result):
        console.say(line)
    for threads in THREADS:
        title = "One thread" if threads == 1 else f"{threads} threads"
        _section(console, title, lambda: _sides(result, threads))
    _section(console, _managed_title(result), lambda: _managed(result))
    title = "A program under cram-emu run, one thread"
    _section(console, title, lambda: _programs(result), result.program_left_out)
    _section(console, "The limit: one thread, no device", lambda: _limits(result))
    _section(console, "A driver's callbacks in Python, that do nothing", lambda: _callbacks(result))
    title = f"A hot set of {format_size(result.plan.hot)}, over ordinary memory"
    _section(console, title, lambda: _hot(result))
    title = "A reader of the device's files, in a loop"
    _section(console, title, lambda: _reader(result), result.reader_left_out)
    _section(console, "What a device takes", lambda: _memory(result))
    _section(console, "To be reached", lambda: (*_targets(result), _STYLES))
    console.say()
    console.say(f"{result.seconds:.0f} s; every content was verified.")


def _section(
    console: Console, title: str, table: Callable[[], tuple], left_out: str | None = None
) -> None:
    """A title, and below it what table() gives to Console.table(), or why it is not there."""
    console.say()
    console.say(title, "bold")
    if left_out:
        console.say(f"left out: {left_out}")
    else:
        console.table(*table())


def _conditions(result: Result) -> Iterator[str]:
    host = result.host
    yield (
        f"Linux {host['kernel']}, {host['cpus']} CPUs, load {host['load']:.1f} before;"
        f" vm.swappiness {host['swappiness']}, vm.page-cluster"
        f" {host['page_cluster']} as they were found"
    )
    if host["swap"]:
        yield f"swap is on: {host['swap']}"
    elif len(result.left_out) == 2:
        yield "no swap is on"
    else:
        yield "no swap is on, but for the kernel's own turns"
    for side, reason in result.left_out.items():
        yield f"{side} left out: {reason}"
    yield "Each figure: median (least .. most) of the rounds."


def _sides(result: Result, threads: int) -> tuple[list[str], list[list[str]]]:
    rows = []
    for figure, name in _SPEEDS:
        scale = _SCALE.get(figure, 1)
        ours, theirs = (result.spread(side, threads, figure) for side in SIDES)
        row = [name, _spread(ours, scale)]
        if theirs:
            row += [_spread(theirs, scale), _ratio(ours, theirs)]
        rows.append(row)
    columns = ["", "device", "kernel zram", "device / zram"]
    return columns[: len(rows[0])], rows


def _managed_title(result: Result) -> str:
    return f"Managed memory, {format_size(result.plan.window)} of DRAM and the device as its node, one thread"


def _managed(result: Result) -> tuple[list[str], list[list[str]]]:
    peers = [side for side in (MANAGED[1], SIDES[1]) if (side, 1) in result.sides]
    # Both without readahead: a fault on zram brings in no neighbours by itself.
    names = {"zram": "kernel zram", "zswap": f"kernel zswap ({result.zswap_compressor})"}
    rows = []
    for figure, name in _SPEEDS:
        scale = _SCALE.get(figure, 1)
        ours = result.spread("managed", 1, figure)
        row = [name, _spread(ours, scale)]
        for peer in peers:
            theirs = result.spread(peer, 1, figure)
            row += [_spread(theirs, scale), _ratio(ours, theirs)]
        rows.append(row)
    columns = ["", "managed"]
    for peer in peers:
        columns += [names[peer], f"managed / {peer}"]
    return columns, rows


def _callbacks(result: Result) -> tuple[list[str], list[list[str]]]:
    names = (("freed", "a page was freed"), ("approved", "may this page be allocated?"))
    figures = result.callbacks
    return ["", "page by page, µs", "in batches, µs a page"], [
        [name, _number(figures[f"{key}_page"]), _number(figures[f"{key}_batch"])] for key, name in names
    ]


def _programs(result: Result) -> tuple[list[str], list[list[str]]]:
    rows = []
    for figure, name in _SPEEDS:
        scale = _SCALE.get(figure, 1)
        ours, theirs = spread_of(result.program, figure), result.spread("zram", 1, figure)
        if ours and figure not in _OF_SIDES:
            rows.append([name, _spread(ours, scale), *([_ratio(ours, theirs)] if theirs else [])])
    ratios = program_hot_ratios(result)
    rows.append(["hot set, over ordinary memory", _spread(Spread.of(ratios))])
    rows.append(["start-up of run, over the interpreter's, ms", _spread(start_cost(result))])
    width = max(map(len, rows))
    return ["", "program", "program / zram"][:width], [row + [""] * (width - len(row)) for row in rows]


def _limits(result: Result) -> tuple[list[str], list[list[str]]]:
    store = spread_of(result.limits, "store").median
    names = (
        ("decompress", f"lz4, a cold store of {format_size(int(store))} into fresh pages"),
        ("copy_fresh", "memcpy into fresh pages"),
        ("copy", "memcpy"),
    )
    return ["", "MiB/s"], [[name, _spread(spread_of(result.limits, key))] for key, name in names]


def _hot(result: Result) -> tuple[list[str], list[list[str]]]:
    rows = []
    for writeback, figures in result.hot.items():
        ratios = hot_ratios(figures)
        seconds = [
            statistics.median(figures[f"{side}_{pair}"] for pair in range(HOT_PAIRS))
            for side in ("device", "ordinary", "warm_up")
        ]
        rows.append(
            [
                f"write-back {'on' if writeback else 'off'}",
                _spread(Spread.of(ratios)),
                *(f"{1000 * value:.0f}" for value in seconds),
            ]
        )
    return ["", "time over ordinary", "device ms", "ordinary ms", "device ms, heating up"], rows


def _reader(result: Result) -> tuple[list[str], list[list[str]]]:
    spreads = reader_spreads(result.reader)
    rows = [
        ["random reads, thousands/s", _spread(spreads["quiet"], 1000)],
        ["beside the reader, thousands/s", _spread(spreads["beside"], 1000)],
        ["beside it, of those without", _spread(spreads["left"])],
        ["files opened, read and closed, /s", _spread(spreads["files"])],
    ]
    return ["", "device"], rows


def _memory(result: Result) -> tuple[list[str], list[list[str]]]:
    memory = result.memory
    rows = [
        [
            f"{name}, idle and mapped",
            f"{memory[job]['memory'] / MIB:.2f} MiB",
            f"created in {memory[job]['create_ms']:.1f} ms;"
            f" page tables apart: {memory[job]['memory_page_tables'] / MIB:.2f} MiB",
        ]
        for job, name in (("idle", "8 GiB device"), ("huge", "1 TiB device"))
    ]
    metadata, full = memory["metadata"], memory["full"]
    rows.append(
        [
            "metadata",
            f"{metadata['metadata_per_page']:.1f} bytes a touched page",
            f"{metadata['sectors'] / metadata['pages']:.1f} sectors a page;"
            f" page tables apart: {metadata['page_tables'] / MIB:.2f} MiB",
        ]
    )
    rows.append(
        [
            "full device, pages of 1 to 2 KiB",
            f"{100 * full['payload'] / full['real']:.1f} % payload",
            f"{full['payload'] / MIB:.1f} of {full['real'] / MIB:.1f} MiB;"
            f" {full['dropped_writes']:.0f} writes dropped",
        ]
    )
    return ["", "", ""], rows


def _targets(result: Result) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            target.name,
            f"{'at least' if target.at_least else 'at most'} {target.reach:g} {target.unit}",
            "-" if target.measured is None else f"{target.measured:.3g}",
            _verdict(target),
        ]
        for target in targets(result)
    ]
    return ["", "reach", "measured", ""], rows


def _verdict(target: Target) -> str:
    return {True: "reached", False: "not reached", None: "not measured"}[target.reached]


def _ratio(ours: Spread, theirs: Spread) -> str:
    return f"{ours.median / theirs.median:.3g}" if theirs.median else "-"


def _spread(spread: Spread, scale: float = 1) -> str:
    values = (spread.median, spread.low, spread.high)
    median, low, high = (_number(value / scale) for value in values)
    return f"{median} ({low} .. {high})"


def _number(value: float) -> str:
    """Three significant digits, more before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


# ---- for programs ----------------------------------------------------------------------------


def _document(result: Result) -> dict:
    """Every run's figures, their spreads, and the targets. Units as in lab/sides.py."""
    return {
        "plan": asdict(result.plan),
        "host": result.host,
        "left_out": result.left_out,
        "zswap_compressor": result.zswap_compressor,
        "sides": [
            {
                "side": side,
                "threads": threads,
                "runs": runs,
                "spread": {name: asdict(result.spread(side, threads, name)) for name in runs[0]},
            }
            for (side, threads), runs in result.sides.items()
        ],
        "limits": {
            "runs": result.limits,
            "spread": {name: asdict(spread_of(result.limits, name)) for name in result.limits[0]},
        },
        "hot_set": {
            f"writeback_{'on' if writeback else 'off'}": figures | {"ratios": hot_ratios(figures)}
            for writeback, figures in result.hot.items()
        },
        "program": {
            "runs": result.program,
            "hot_set": [
                {"placed": placed, "ordinary": bare} for placed, bare in result.program_hot
            ],
            "start": [{"run": ours, "interpreter": bare} for ours, bare in result.start],
        },
        "program_left_out": result.program_left_out,
        "callbacks": result.callbacks,
        "reader": result.reader,
        "reader_left_out": result.reader_left_out,
        "memory": result.memory,
        "targets": [asdict(target) | {"reached": target.reached} for target in targets(result)],
        "seconds": result.seconds,
    }
