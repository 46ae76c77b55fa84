"""`cram-emu run -- PROGRAM`: a program with its heap on the device, and what the device saw."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from cram_emu import Device, format_size, named
from cram_emu.cli.console import add_capacities, plain_table, size
from cram_emu.errors import DeviceIOError
from cram_emu.lab import launch
from cram_emu.lab.watch import Report, Watch, is_child_of, summarise

DESCRIPTION = """\
Runs an unmodified, dynamically linked program whose heap and large anonymous mappings live on a
compressed device, and tells on standard error what the device saw. Programs that it starts are placed too.
"""

EXIT_CODES = """\
exit codes:
  the program's own; a signal that ended it ends cram-emu too
  1    the device cannot be had, or the report not be written; the message says why
  2    bad usage
  3    this host, or this program, does not permit it; the message says what, and the remedy
  126  the program cannot be executed
  127  there is no such program
"""

# The terminal sends them to the program as well, and it decides.
_LEFT_TO_THE_PROGRAM = (signal.SIGINT, signal.SIGQUIT)
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.epilog = EXIT_CODES
    parser.usage = "cram-emu run [options] -- PROGRAM [ARGUMENT ...]"
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--device", metavar="NAME|PATH", help="join this device, with whoever else uses it"
    )
    where.add_argument(
        "--mount", metavar="MOUNTPOINT", help="join mem0 of the machine that is mounted there"
    )
    add_capacities(parser)
    parser.add_argument(
        "--window",
        type=size,
        default="256M",
        metavar="SIZE",
        help="memory that stays uncompressed, of each process, at most (256M)",
    )
    parser.add_argument(
        "--min-mmap",
        type=size,
        default="64K",
        metavar="SIZE",
        help="place anonymous mappings from this size on (64K)",
    )
    parser.add_argument(
        "--delivery",
        choices=launch.DELIVERIES,
        default="inline",
        help="who answers a page fault: the thread itself, or another one (inline)",
    )
    parser.add_argument("--mode", choices=launch.MODES, default="direct", help="what manages the memory")
    parser.add_argument(
        "--no-follow", action="store_true", help="leave the programs that it starts in ordinary memory"
    )
    parser.add_argument("--report", metavar="FILE", help="write the report there too, as JSON")
    parser.add_argument("--plot", metavar="FILE", help="draw its history there: .png or .svg")
    parser.add_argument("program", metavar="PROGRAM", help="what to run")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER)


def run(args: argparse.Namespace) -> int:
    """Does not return where a signal ended the program."""
    settings = launch.Settings(args.window, args.min_mmap, args.delivery, not args.no_follow)
    settings.check()
    if args.plot is not None:
        from cram_emu.lab import plot

        plot.check(args.plot)
    try:
        command = launch.command([args.program, *args.arguments])
    except launch.CannotStart as error:
        print(f"cram-emu: {error}", file=sys.stderr)
        return error.code
    with _device(args) as (device, path), _outputs(args) as report_file:
        environment = launch.environment(path, settings)
        report = _watch(command, environment, device, args, settings)
        print(*_table(report), sep="\n", file=sys.stderr)
        if report_file is not None:
            json.dump(report.as_json(), report_file)
        if args.plot is not None:
            plot.draw(report, args.plot, (device.params.lthresh, device.params.hthresh))
    if report.signal is not None:
        _end_by(report.signal)
    return report.exit_code


@contextlib.contextmanager
def _device(args: argparse.Namespace) -> Iterator[tuple[Device, str]]:
    """The device, and the path at which the program opens it."""
    if args.device is not None:
        path = str(named.find(args.device).resolve())
        device = Device.open(path)
    elif args.mount is not None:
        from cram_emu.sysfs.client import Tree, told

        with told(args.mount):
            path = Tree(args.mount).device("mem0")["path"]
        device = Device.open(path)
    else:
        device = Device(args.advertised, args.real)
        path = f"/proc/{os.getpid()}/fd/{device.fileno()}"
    with device:
        yield device, path


@contextlib.contextmanager
def _outputs(args: argparse.Namespace) -> Iterator:
    """The report's file, opened before the program starts: what cannot be written is told at once."""
    if args.report is None:
        yield None
        return
    try:
        file = open(args.report, "w", encoding="utf-8")
    except OSError as error:
        raise DeviceIOError(f"{args.report}: {error.strerror}") from None
    with file:
        yield file


def _watch(command, environment, device: Device, args, settings: launch.Settings) -> Report:
    for number in _LEFT_TO_THE_PROGRAM:
        signal.signal(number, signal.SIG_IGN)
    start = time.monotonic()
    # After the fork the program's signals are as a program expects them.
    child = subprocess.Popen(command, env=environment, preexec_fn=_restore_signals)
    for number in _PASSED_ON:
        signal.signal(number, lambda number, _: child.send_signal(number))
    watch = Watch(device, is_child_of(child.pid))
    # Not reaped: while it is a zombie nobody else has its number, and its last counters stay.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    seconds = time.monotonic() - start
    watch.stop()
    status = child.wait()
    device.reap()
    return Report(
        command=command,
        exit_code=status if status >= 0 else None,
        signal=-status if status < 0 else None,
        seconds=seconds,
        mode=args.mode,
        delivery=settings.delivery,
        window=settings.window,
        advertised=device.params.advertised,
        real=device.params.real,
        **summarise(watch.samples, len(watch.pids)),
    )


def _restore_signals() -> None:
    for number in (*_LEFT_TO_THE_PROGRAM, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)


def _end_by(number: int) -> None:
    """Ends as the program did, for whoever started us; its core dump is enough."""
    sys.stderr.flush()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)


# ---- the report -------------------------------------------------------------------------------


def _table(report: Report) -> list[str]:
    rows = [
        ["ended", f"{_ending(report)}, after {report.seconds:.1f} s"],
        ["on the device", f"{format_size(report.held)} at most, in {format_size(report.used)} of media"],
        ["ratio", f"{report.ratio:.2f}, at the lowest {report.lowest_ratio:.2f}"],
        [
            "remaining",
            f"{format_size(report.remaining)} of {format_size(report.real)} real capacity at the lowest",
        ],
        [
            "resident",
            f"{format_size(report.resident_frames * 4096)} at most, in {_count(report.processes, 'process')}",
        ],
        ["faults", f"{report.faults:,}"],
        ["write-backs", f"{report.written_back:,}"],
        ["interrupts", f"lthresh {report.lthresh}, hthresh {report.hthresh}"],
        ["dropped writes", f"{report.dropped_writes:,}"],
        ["poisoned pages", f"{report.poisoned:,}"],
    ]
    name = os.path.basename(report.command[0])
    return ["", *plain_table(["cram-emu", name], rows)]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}es"


def _ending(report: Report) -> str:
    if report.signal is None:
        return f"exit code {report.exit_code}"
    try:
        name = signal.Signals(report.signal).name
    except ValueError:
        name = f"signal {report.signal}"
    poison = " (it met poison)" if report.signal == signal.SIGBUS and report.poisoned else ""
    return f"killed by {name}{poison}"
