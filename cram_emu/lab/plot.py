"""A run's history as a picture: ratio, remaining capacity, fault rate, poison, over time.

matplotlib draws it: the field's own, well kept, and an extra (`cram-emu[plot]`), because only a plot needs it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cram_emu.errors import DeviceIOError, InvalidArgument, NotSupported
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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    history = report.history
    seconds = [sample.seconds for sample in history]
    figure = Figure(figsize=(9, 11), layout="constrained")
    FigureCanvasAgg(figure)
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
    for axes in (memory, ratio, capacity, rate, poison):
        axes.grid(alpha=0.3)
    try:
        figure.savefig(path)
    except OSError as error:
        raise DeviceIOError(f"{path}: {error.strerror}") from None


def _rates(history) -> list[float]:
    pairs = zip(history, history[1:])
    return [(b.faults - a.faults) / max(b.seconds - a.seconds, 1e-6) for a, b in pairs]
