"""Pictures: a run's history (ratio, remaining capacity, fault rate, poison, over time), and what experiments found.

matplotlib draws it: the field's own, well kept, and an extra (`cram-emu[plot]`), because only a plot needs it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cram_emu.errors import DeviceIOError, InvalidArgument, NotSupported
from cram_emu.lab import charging, race
from cram_emu.lab.watch import Report

FORMATS = (".png", ".svg")
_MIB = 1 << 20


def check(path: str | os.PathLike[str]) -> None:
    """InvalidArgument, NotSupported: a plot cannot be drawn there."""
    if Path(path).suffix.lower() not in FORMATS:
        raise InvalidArgument(f"{path}: a plot is a file that ends in {' or '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise NotSupported(f"a plot needs matplotlib: {sys.executable} -m pip install matplotlib") from None


def draw(report: Report, path: str | os.PathLike[str], thresholds: tuple[int, int]) -> None:
    """Draws the report's history; thresholds: lthresh and hthresh, bytes of remaining capacity."""
    history = report.history
    seconds = [sample.seconds for sample in history]
    figure = _figure(9, 11)
    memory, ratio, capacity, rate, poison = figure.subplots(5, sharex=True)
    command = " ".join(" ".join(report.command).split())[:70]
    figure.suptitle(f"{command}\nwindow {report.window // _MIB} MiB, {report.mode}")

    memory.plot(seconds, [sample.placed / _MIB for sample in history], label="the program's, on the device")
    memory.plot(seconds, [sample.resident_frames * 4096 / _MIB for sample in history], label="resident")
    memory.plot(seconds, [sample.used / _MIB for sample in history], label="media in use")
    memory.set_ylabel("memory, MiB")
    memory.legend(loc="best")
    ratio.plot(seconds, [sample.ratio or None for sample in history])
    ratio.set_ylabel("ratio")
    capacity.plot(seconds, [sample.remaining / _MIB for sample in history], label="remaining")
    for name, value, style in zip(("lthresh", "hthresh"), thresholds, ("--", ":")):
        if value:
            capacity.axhline(value / _MIB, linestyle=style, color="tab:red", label=name)
    capacity.set_ylim(bottom=0)
    capacity.set_ylabel("real capacity, MiB")
    capacity.legend(loc="best")
    rate.step(seconds[1:], _rates(history), where="pre")
    rate.set_ylabel("faults a second")
    poison.step(seconds, [sample.poisoned for sample in history], where="post", label="poisoned pages")
    poison.step(seconds, [sample.dropped_writes for sample in history], where="post", label="dropped writes", linestyle="--")
    for met in report.met_poison:
        poison.axvline(met.seconds, color="tab:red", label=f"{met.name} met poison")
    poison.set_ylabel("pages")
    poison.set_xlabel("seconds")
    poison.legend(loc="best")
    _save(figure, path)


def draw_charging(plan: charging.Plan, outcomes: list[charging.Outcome], path: str | os.PathLike[str]) -> None:
    """memory.current over the accesses, and bars of what came of each way of charging."""
    figure = _figure(9, 7)
    figure.suptitle(f"memory.max {plan.limit // _MIB} MiB, a working set of twice that, a device with room for it")
    grid = figure.add_gridspec(2, 4, height_ratios=(2, 1))
    current = figure.add_subplot(grid[0, :])
    for outcome in outcomes:
        accesses = [sample.accesses for sample in outcome.samples]
        (line,) = current.plot(accesses, [sample.current / _MIB for sample in outcome.samples], label=outcome.charging)
        frames = [sample.anon / _MIB for sample in outcome.samples]
        current.plot(accesses, frames, color=line.get_color(), linestyle=":")
    current.axhline(plan.limit / _MIB, linestyle="--", color="tab:red", label="memory.max")
    current.set_ylim(bottom=0)
    current.set_xlabel("accesses (dotted: of it, frames)")
    current.set_ylabel("memory.current, MiB")
    current.legend(loc="center right")
    bars = {
        "reclaim efficiency": [outcome.efficiency for outcome in outcomes],
        "refaults an access": [outcome.refaults / outcome.accesses for outcome in outcomes],
        "OOM events an access": [outcome.oom / outcome.accesses for outcome in outcomes],
        "thousand accesses a second": [outcome.rate / 1000 for outcome in outcomes],
    }
    for place, (name, values) in enumerate(bars.items()):
        axes = figure.add_subplot(grid[1, place])
        axes.bar([outcome.charging for outcome in outcomes], values, color=["tab:blue", "tab:orange", "tab:green"])
        axes.set_title(name, fontsize="small")
    _save(figure, path)


def draw_race(plan: race.Plan, cells: list[race.Cell], path: str | os.PathLike[str]) -> None:
    """Pages lost over the margin, a curve for each way in which the host hears of the device."""
    figure = _figure(9, 6)
    axes = figure.subplots()
    for word in plan.words:
        row = [cell for cell in cells if cell.word == word]
        axes.plot([cell.margin for cell in row], [cell.lost for cell in row], marker="o", label=f"interrupt {word.name}")
    axes.set_title(
        f"{plan.real // _MIB} MiB of real capacity, pages reclaimed at {race.rate(cells) / _MIB:.0f} MiB/s,"
        f" median of {plan.runs} runs"
    )
    axes.set_xscale("log")
    axes.set_xticks(plan.margins, [f"{margin:g}" for margin in plan.margins])
    axes.minorticks_off()
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("margin: lthresh, % of the real capacity")
    axes.set_ylabel("pages lost")
    figure.legend(loc="outside lower center", ncols=4)
    _save(figure, path)


def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure, path: str | os.PathLike[str]) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    try:
        figure.savefig(path)
    except OSError as error:
        raise DeviceIOError(f"{path}: {error.strerror}") from None


def _rates(history) -> list[float]:
    pairs = zip(history, history[1:])
    return [(b.faults - a.faults) / max(b.seconds - a.seconds, 1e-6) for a, b in pairs]
