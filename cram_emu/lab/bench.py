"""The bench: which measurements, in which order, and what they amount to beside the targets.

Each measurement runs in a process of its own (sides.py), so that one cannot favour the next. The
sides alternate (ABBA), with the limits once a round. It prints nothing.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

from cram_emu import Device
from cram_emu.errors import CramError, NotPermitted, NotSupported
from cram_emu.lab import cgroup, kernel_zswap, launch, swaparea, zram
from cram_emu.lab.footprint import available
from cram_emu.lab.signals import signals_held, unwound_by_signals
from cram_emu.sizes import format_size
from cram_emu.sysfs import fuse, mountpoint

MIB = 1 << 20
THREADS = (1, 2)
HOT_PAIRS = 10
PROGRAM_PAIRS = 10
START_PAIRS = 15
READER_PAIRS = 5
WRITEBACK = 0.1
SMALLEST = 512 * MIB  # an eighth is the memory cgroup's limit; under 64 MiB the OOM killer came

SIDES = ("device", "zram")
MANAGED = ("managed", "zswap")  # managed memory with the device as its node, and kernel zswap; one thread
#: For kernel zswap, as far as this kernel's takes them.
COMPRESSORS = ("lz4", "lzo")
Figures = dict[str, float]


class SideFailed(CramError):
    """The process of a measurement ended without a result; the text says which and how."""


class SideKilled(SideFailed):
    """By SIGKILL."""


class NotEnoughMemory(CramError, MemoryError):
    """The host has too little memory for a bench of this size."""


@dataclass(frozen=True)
class Plan:
    """The sizes of a bench, in bytes: all follow from that of the pages."""

    size: int = 2048 * MIB
    rounds: int = 5
    accesses: int = 100_000

    def __post_init__(self) -> None:
        if self.size < SMALLEST or self.size % SMALLEST:
            raise ValueError(
                f"size {self.size}: a multiple of {format_size(SMALLEST)}, at least that"
            )
        if self.rounds < 1:
            raise ValueError(f"rounds {self.rounds}: at least 1")

    @property
    def window(self) -> int:
        return self.size // 8

    @property
    def hot(self) -> int:
        return self.size // 16

    @property
    def hot_accesses(self) -> int:
        """About half a second of them at the full size: several periods of the write-back."""
        return self.size // 200

    @property
    def real(self) -> int:
        return self.size // 2

    @property
    def store(self) -> int:
        """Room for every page in compressed form, on any side."""
        return self.size * 5 // 16

    @property
    def needed(self) -> int:
        """Host memory that the largest measurement takes."""
        return self.size + self.size // 2 + 256 * MIB


@dataclass(frozen=True)
class Spread:
    """Of the same figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Self:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Target:
    """What is to be reached: at least, or at most, so much."""

    name: str
    reach: float
    at_least: bool
    unit: str  # "times", "MiB", "ms", "bytes a page", "%"
    measured: float | None  # None: what it compares with could not be measured

    @property
    def reached(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.reach if self.at_least else self.measured <= self.reach


@dataclass
class Result:
    """Every run's figures (names and units: sides.py), in the order they were measured."""

    plan: Plan
    host: dict[str, str | float]
    left_out: dict[str, str] = field(default_factory=dict)  # why there is no side "zram", or "zswap"
    zswap_compressor: str | None = None  # of the kernel's; ours is lz4
    sides: dict[tuple[str, int], list[Figures]] = field(default_factory=dict)  # by side, threads
    limits: list[Figures] = field(default_factory=list)
    hot: dict[bool, Figures] = field(default_factory=dict)  # by write-back on or off
    program: list[Figures] = field(default_factory=list)  # the sides' loops in a placed program
    program_hot: list[tuple[Figures, Figures]] = field(default_factory=list)  # placed, and not
    start: list[tuple[float, float]] = field(default_factory=list)  # seconds: run's, the interpreter's
    program_left_out: str | None = None  # why there is no placed program
    reader: Figures = field(default_factory=dict)
    reader_left_out: str | None = None  # why there is no reader of the device's files
    callbacks: Figures = field(default_factory=dict)  # microseconds a page
    memory: dict[str, Figures] = field(default_factory=dict)  # "idle", "huge", "metadata", "full"
    seconds: float = 0.0

    def spread(self, side: str, threads: int, name: str) -> Spread | None:
        """Of one figure of a side; None when the side was left out."""
        return spread_of(self.sides.get((side, threads), []), name)


def spread_of(runs: list[Figures], name: str) -> Spread | None:
    values = [figures[name] for figures in runs]
    return Spread.of(values) if values else None


def hot_ratios(figures: Figures) -> list[float]:
    """The time of the device's turn over that of ordinary memory's, pair by pair."""
    return [
        figures[f"device_{pair}"] / figures[f"ordinary_{pair}"] for pair in range(HOT_PAIRS)
    ]


def reader_spreads(figures: Figures) -> dict[str, Spread]:
    """Accesses a second without a reader and beside it, files a second, and the share that is left."""
    runs = {
        name: [figures[f"{name}_{pair}"] for pair in range(READER_PAIRS)]
        for name in ("quiet", "beside", "files")
    }
    runs["left"] = [beside / quiet for beside, quiet in zip(runs["beside"], runs["quiet"])]
    return {name: Spread.of(values) for name, values in runs.items()}


def program_hot_ratios(result: Result) -> list[float]:
    """The time of a placed program's turn over that of the same one in ordinary memory, pair by pair."""
    return [placed["measured"] / bare["measured"] for placed, bare in result.program_hot]


def start_cost(result: Result) -> Spread:
    """Milliseconds by which a program under `cram-emu run` speaks later than the bare interpreter."""
    return Spread.of([1000 * (ours - bare) for ours, bare in result.start])


def metadata_allowed(figures: Figures) -> float:
    """Bytes a touched page: page map 8, links 4 a used sector, all else 8."""
    return 8 + 4 * figures["sectors"] / figures["pages"] + 8


# ---- running ---------------------------------------------------------------------------------


def run(plan: Plan, report: Callable[[int, int, str], None]) -> Result:
    """The whole bench; report(steps done, steps in all, what comes next).

    Main thread only: swap that is switched on is off again when this returns or raises, and when a
    signal ends it. Before anything is measured: NotEnoughMemory, and what a device raises where
    this host permits no mapping. SideFailed with the first process that fails.
    """
    with Device(advertised=MIB, real=MIB) as dev, dev.map(delivery="inline", window=MIB):
        pass
    if available() < plan.needed:
        raise NotEnoughMemory(
            f"{format_size(plan.size)} of pages need {format_size(plan.needed)} of memory,"
            f" {format_size(available())} are available: take a smaller --size"
        )
    result = Result(plan, _host())
    steps = list(_steps(plan, result))
    start = time.monotonic()
    with unwound_by_signals():
        for done, (note, step) in enumerate(steps):
            report(done, len(steps), note)
            step()
    report(len(steps), len(steps), "")
    result.seconds = time.monotonic() - start
    return result


def _steps(plan: Plan, result: Result) -> Iterator[tuple[str, Callable[[], None]]]:
    for side, module in (("zram", zram), ("zswap", kernel_zswap)):
        try:
            module.require()
        except swaparea.Unavailable as reason:
            result.left_out[side] = str(reason)
    for number in range(plan.rounds):
        name = f"round {number + 1} of {plan.rounds}"
        for threads in THREADS:
            for side in SIDES if number % 2 == 0 else reversed(SIDES):
                noted = "1 thread" if threads == 1 else f"{threads} threads"
                yield f"{name}: {side}, {noted}", partial(_run_side, plan, result, side, threads)
        for side in MANAGED if number % 2 == 0 else reversed(MANAGED):
            yield f"{name}: {side}", partial(_run_side, plan, result, side, 1)
        yield f"{name}: a program on the device", partial(_run_program, plan, result)
        yield f"{name}: lz4 and memcpy alone", partial(_run_limits, plan, result)
    for writeback in (False, True):
        noted = "on" if writeback else "off"
        yield f"hot set, write-back {noted}", partial(_run_hot, plan, result, writeback)
    yield "a program's hot set", partial(_run_program_hot, plan, result)
    yield "start-up of cram-emu run", partial(_run_start, result)
    yield "a driver's callbacks", partial(_run_callbacks, result)
    yield "a reader of the device's files", partial(_run_reader, plan, result)
    yield "memory", partial(_run_memory, plan, result)


def _run_side(plan: Plan, result: Result, side: str, threads: int) -> None:
    arguments = {
        "size": plan.size,
        "peak": plan.window + plan.store,
        "accesses": plan.accesses,
        "threads": threads,
    }
    if side == "device":
        figures = run_child("device", real=plan.real, window=plan.window, **arguments)
    elif side == "managed":
        figures = run_child("managed", real=plan.real, dram=plan.window, **arguments)
    elif side in result.left_out:
        return
    else:
        try:
            figures = _run_zram(plan, arguments) if side == "zram" else _run_zswap(plan, result, arguments)
        except swaparea.Unavailable as reason:
            result.left_out[side] = str(reason)
            for key in [key for key in result.sides if key[0] == side]:
                del result.sides[key]
            return
    result.sides.setdefault((side, threads), []).append(figures)


def _run_zram(plan: Plan, arguments: Figures) -> Figures:
    hierarchy = cgroup.memory_hierarchy()
    # Slots for all pages, and for those whose slot is kept while they are resident.
    with (
        zram.swap(plan.size + plan.window) as swap,
        cgroup.memory_group(plan.window, hierarchy) as group,
    ):
        return run_child(
            "zram",
            procs=str(group.procs),
            usage=str(group.usage),
            mm_stat=str(swap.mm_stat),
            tables=swap.tables,
            **arguments,
        )


def _run_zswap(plan: Plan, result: Result, arguments: Figures) -> Figures:
    """With the first compressor that the kernel's takes, and without readahead; its pool may hold every page."""
    hierarchy = cgroup.memory_hierarchy()
    with ExitStack() as cleanup:
        for compressor in COMPRESSORS:
            try:
                swap = cleanup.enter_context(kernel_zswap.swap(plan.size + plan.window, compressor, max_pool_percent=50))
                break
            except swaparea.Unavailable:
                if compressor == COMPRESSORS[-1]:
                    raise
        result.zswap_compressor = compressor
        cleanup.enter_context(kernel_zswap.without_readahead())
        group = cleanup.enter_context(cgroup.memory_group(plan.window, hierarchy))
        try:
            return run_child(
                "zswap",
                procs=str(group.procs),
                usage=str(group.usage),
                debugfs=str(swap.debugfs),
                tables=swap.tables,
                **arguments,
            )
        except SideKilled:
            # Storing a page needs memory that the group pays for.
            raise swaparea.Unavailable(
                f"the OOM killer ended it under a limit of {format_size(plan.window)}: take a larger --size"
            ) from None


def _run_callbacks(result: Result) -> None:
    result.callbacks = run_child("callbacks", pages=4096, times=5)


def _run_program(plan: Plan, result: Result) -> None:
    if result.program_left_out:
        return
    try:
        with _placed(plan.size * 2, plan.real, plan.window) as (_, environment):
            figures = run_child("program", environment, size=plan.size, accesses=plan.accesses)
    except NotSupported as reason:
        result.program_left_out = str(reason)
        return
    result.program.append(figures)


@contextmanager
def _placed(advertised: int, real: int, window: int) -> Iterator[tuple[Device, dict[str, str]]]:
    """A device, and the environment of a program on it; NotSupported. No periodic write-back, as the sides are."""
    with Device(advertised, real) as dev:
        path = f"/proc/{os.getpid()}/fd/{dev.fileno()}"
        yield dev, launch.environment(path, launch.Settings(window, writeback_ms=0))


def _run_program_hot(plan: Plan, result: Result) -> None:
    """A process a turn: a set that fits the window. The allocator has no part in it."""
    if result.program_left_out:
        return
    job = {"size": plan.hot, "accesses": plan.hot_accesses}
    for pair in range(PROGRAM_PAIRS):
        turn: dict[bool, Figures] = {}
        for placed in (True, False) if pair % 2 == 0 else (False, True):
            if placed:
                with _placed(2 * plan.window, plan.window, plan.window) as (_, environment):
                    turn[placed] = run_child("hot_program", environment, **job)
            else:
                turn[placed] = run_child("hot_program", **job)
        result.program_hot.append((turn[True], turn[False]))


def _run_start(result: Result) -> None:
    if result.program_left_out:
        return
    main = "import sys; from cram_emu.cli import main; sys.exit(main())"
    command = [sys.executable, "-P", "-c", main, "run", "--", "echo", "ready"]
    for _ in range(START_PAIRS):
        result.start.append((_seconds_of(command), _seconds_of([sys.executable, "-c", "print('ready')"])))


def _seconds_of(command: list[str]) -> float:
    """Until it speaks."""
    start = time.monotonic()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        said = process.stdout.readline()
        seconds = time.monotonic() - start
        _, errors = process.communicate()
    if said != "ready\n":
        raise SideFailed(f"{' '.join(command)} {_ended(process.returncode)}: {errors.strip()}")
    return seconds


def _run_limits(plan: Plan, result: Result) -> None:
    result.limits.append(run_child("limits", size=plan.size, store=plan.store))


def _run_hot(plan: Plan, result: Result, writeback: bool) -> None:
    result.hot[writeback] = run_child(
        "hot",
        size=plan.hot,
        window=plan.window,
        writeback=WRITEBACK if writeback else 0,
        accesses=plan.hot_accesses,
        pairs=HOT_PAIRS,
    )


def _require_tree() -> None:
    """NotPermitted, NotSupported: no device's files can be mounted here."""
    fuse.load()
    mountpoint.require()


def _run_reader(plan: Plan, result: Result) -> None:
    try:
        _require_tree()
    except (NotSupported, NotPermitted) as reason:
        result.reader_left_out = str(reason)
        return
    result.reader = run_child(
        "reader",
        size=plan.hot,
        window=plan.hot // 8,
        accesses=2 * plan.accesses,
        pairs=READER_PAIRS,
    )


def _run_memory(plan: Plan, result: Result) -> None:
    result.memory = {
        "idle": run_child("idle", advertised=8 << 30, real=1 << 30),
        "huge": run_child("idle", advertised=1 << 40, real=128 << 30),
        "metadata": run_child("metadata", size=plan.size // 4, window=plan.window // 4),
        "full": run_child("full", real=plan.size // 32, window=plan.window // 16),
    }


def run_child(
    job: str, environment: dict[str, str] | None = None, /, **arguments: object
) -> Figures:
    """One job of sides.py in a process of its own. SideFailed says how it ended, and why."""
    module = ("-P", "-m", "cram_emu.lab.sides")  # -P: whatever lies in the working directory
    command = [sys.executable, *module, job, json.dumps(arguments)]
    with ExitStack() as cleanup:
        with signals_held():
            # A session of its own: Ctrl-C is for this process, which then ends the child.
            child = cleanup.enter_context(
                subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=environment,
                    start_new_session=True,
                )
            )
            cleanup.callback(child.kill)
        output, said = child.communicate()
    if child.returncode == 0:
        return json.loads(output)
    last = said.strip().splitlines()[-1:] or ["it said nothing"]
    failed = SideKilled if child.returncode == -signal.SIGKILL else SideFailed
    raise failed(f"the process that measures {job} {_ended(child.returncode)}: {last[0]}")


def _ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"


def _host() -> dict[str, str | float]:
    """What of the host decides the figures, as it was found; load: of the minute before."""
    vm = Path("/proc/sys/vm")
    return {
        "kernel": os.uname().release,
        "cpus": len(os.sched_getaffinity(0)),
        "swappiness": int((vm / "swappiness").read_text()),
        "page_cluster": int((vm / "page-cluster").read_text()),
        "swap": " ".join(swaparea.swaps()),
        "load": os.getloadavg()[0],
    }


# ---- what is to be reached -------------------------------------------------------------------


def targets(result: Result) -> list[Target]:
    """The reach of the project's bench, with what was measured; medians."""
    return [
        *_against_zram(result),
        *_managed(result),
        *_against_itself(result),
        *_programs(result),
        *_memory(result.memory),
    ]


# name, figure, reach, at least
_REACH = (
    ("fill", "fill", 2.5, True),
    ("sequential read", "scan", 3.5, True),
    ("random read mean", "read_mean", 0.6, False),
    ("random read p99", "read_p99", 0.15, False),
    ("random write mean", "write_mean", 0.85, False),
)


def _against_zram(result: Result) -> Iterator[Target]:
    for kind, runs in (
        ("", result.sides.get(("device", 1), [])),
        ("a program's ", result.program),
    ):
        for name, figure, reach, at_least in _REACH:
            ours, theirs = spread_of(runs, figure), result.spread("zram", 1, figure)
            measured = ours.median / theirs.median if ours and theirs else None
            yield Target(f"{kind}{name}, over zram", reach, at_least, "times", measured)


# peer, name, figure, reach, at least
_MANAGED_REACH = (
    ("zram", "fill", "fill", 1, True),
    ("zram", "sequential read", "scan", 1, True),
    ("zram", "random read mean", "read_mean", 1, False),
    ("zram", "random read p99", "read_p99", 0.25, False),
    ("zram", "random write mean", "write_mean", 1, False),
    ("zswap", "fill", "fill", 1, True),
    ("zswap", "sequential read", "scan", 1, True),
    ("zswap", "random read mean", "read_mean", 1, False),
)


def _managed(result: Result) -> Iterator[Target]:
    for peer, name, figure, reach, at_least in _MANAGED_REACH:
        ours, theirs = result.spread("managed", 1, figure), result.spread(peer, 1, figure)
        measured = ours.median / theirs.median if ours and theirs else None
        yield Target(f"managed memory's {name}, over {peer}", reach, at_least, "times", measured)


def _programs(result: Result) -> Iterator[Target]:
    left_out = result.program_left_out is not None
    ratio = None if left_out else statistics.median(program_hot_ratios(result))
    yield Target("a program's hot set, over ordinary memory", 1.05, False, "times", ratio)
    cost = None if left_out else start_cost(result).median
    yield Target("start of run, over the interpreter's", 50, False, "ms", cost)


def _against_itself(result: Result) -> Iterator[Target]:
    for name, figure, reach in (
        ("random read rate, 2 threads over 1", "read_rate", 1.3),
        ("random write rate, 2 threads over 1", "write_rate", 1.0),
    ):
        one, two = (result.spread("device", threads, figure).median for threads in THREADS)
        yield Target(name, reach, True, "times", two / one)
    scan = result.spread("device", 1, "scan").median
    limit = spread_of(result.limits, "decompress").median
    yield Target("sequential read, over cold lz4", 0.5, True, "times", scan / limit)
    for writeback, reach in ((False, 1.02), (True, 1.10)):
        name = f"hot set, write-back {'on' if writeback else 'off'}, over ordinary memory"
        ratio = statistics.median(hot_ratios(result.hot[writeback]))
        yield Target(name, reach, False, "times", ratio)


def _memory(figures: dict[str, Figures]) -> Iterator[Target]:
    idle, huge, metadata, full = (figures[job] for job in ("idle", "huge", "metadata", "full"))
    yield Target("idle 8 GiB device", 8, False, "MiB", idle["memory"] / MIB)
    yield Target("idle 1 TiB device", 32, False, "MiB", huge["memory"] / MIB)
    yield Target("creation of a 1 TiB device", 100, False, "ms", huge["create_ms"])
    allowed = metadata_allowed(metadata)
    taken = metadata["metadata_per_page"]
    yield Target("metadata", allowed, False, "bytes a touched page", taken)
    share = 100 * full["payload"] / full["real"]
    yield Target("payload of a full device", 95, True, "% of real", share)
