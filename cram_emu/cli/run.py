"""`cram-emu run -- PROGRAM`: a program with its heap on the device, and what the device saw."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import os
import resource
import shlex
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from cram_emu import Device, Stats, faults, format_size
from cram_emu.cli import tell
from cram_emu.cli.console import add_capacities, check_writable, nonempty, plain_table, seed, size
from cram_emu.cli.target import add_target, target
from cram_emu.errors import Busy, DeviceIOError, InvalidArgument, NoAnswer
from cram_emu.lab import launch
from cram_emu.lab.watch import PoisonMet, Report, Sample, Watch, is_child_of, summarise
from cram_emu.lab.witness import After, Book, Place, Struck, parse_after, parse_poison_at

if TYPE_CHECKING:
    from cram_emu.host import Zswap

T = TypeVar("T")

DESCRIPTION = """\
Runs an unmodified, dynamically linked program whose heap and large anonymous mappings live on a
compressed device, and tells on standard error what the device saw. Programs that it starts are placed too,
unless they are static, setuid, or started with an empty environment.
"""

EXIT_CODES = """\
for example:
  cram-emu run --real 512M --window 64M -- redis-server --save ''

exit codes:
  the program's own; a signal that ended it ends cram-emu too
  1    the device cannot be had, or a fault of it, or the report not be written; the message says why
  2    bad usage
  3    this host, or this program, does not permit it; the message says what, and the remedy
  126  the program cannot be executed
  127  there is no such program
"""

# The terminal sends them to the program as well, and it decides.
_LEFT_TO_THE_PROGRAM = (signal.SIGINT, signal.SIGQUIT)
_ADVERTISED, _REAL = 8 << 30, 1 << 30
_LITTLE = 32 << 20  # what any interpreter has beside its heap
_FRAMES = 256 << 20
#: Of those where a process met poison, the table has the first ones, the report all that are known.
_PLACES = 3
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.epilog = EXIT_CODES
    parser.usage = "cram-emu run [options] -- PROGRAM [ARGUMENT ...]"
    add_target(parser, required=False)
    add_capacities(parser)
    # Told from what was asked for: they are of a new device.
    parser.set_defaults(advertised=None, real=None)
    parser.add_argument(
        "--window",
        type=size,
        metavar="SIZE",
        help="memory that stays uncompressed, of each process, at most (256M); --mode direct",
    )
    parser.add_argument(
        "--dram",
        type=size,
        metavar="SIZE",
        help="memory that is not demoted, of each process, at most (256M); --mode zswap",
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
        help="who answers a page fault: the thread itself, or another one, slower, which needs root or"
        " vm.unprivileged_userfaultfd (inline)",
    )
    parser.add_argument(
        "--mode",
        choices=launch.MODES,
        default="direct",
        help="direct: all of its memory is the device's; zswap: ordinary memory, of which a manager demotes what is cold, to"
        " the device, or, where that is not safe, to a compressed pool (direct)",
    )
    parser.add_argument(
        "--no-follow", action="store_true", help="leave the programs that it starts in ordinary memory"
    )
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        type=_parsed(faults.parse),
        metavar="NAME[:ATTR=VALUE,...]",
        help="have this strike meanwhile, see `cram-emu fault`; poison:probability=0.01 for one store of ten"
        " thousand; may be repeated",
    )
    parser.add_argument(
        "--poison-at",
        type=_parsed(parse_poison_at),
        metavar="TARGET",
        help="poison, once: heap:N%%, the page at N percent of what is allocated, by --fault-after; mmap:N+OFFSET,"
        " the N-th mapping that the program makes and that is placed; caller:FUNCTION#N, the N-th allocation by a"
        " function of the program or a library, by its dynamic symbol (-rdynamic). Under --mode zswap as soon as"
        " the device takes the page",
    )
    parser.add_argument(
        "--fault-after",
        type=_parsed(parse_after),
        metavar="5s|10000-faults",
        help="--poison-at and --fault only from then on, of the run's start or of its page faults (at once)",
    )
    parser.add_argument(
        "--seed",
        type=seed,
        metavar="N",
        help="of the faults: a program with one thread is struck alike in every run (inline delivery, no"
        " periodic write-back)",
    )
    parser.add_argument("--report", type=nonempty, metavar="FILE", help="write the report there too, as JSON")
    parser.add_argument("--plot", type=nonempty, metavar="FILE", help="draw its history there: .png or .svg")
    parser.add_argument("program", metavar="PROGRAM", help="what to run")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="for the program")


def _parsed(parse: Callable[[str], T]) -> Callable[[str], T]:
    """A parser of ours as argparse wants it."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except InvalidArgument as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def run(args: argparse.Namespace) -> int:
    """Does not return where a signal ended the program."""
    frames = args.window if args.mode == "direct" else args.dram
    settings = launch.Settings(_FRAMES if frames is None else frames, args.min_mmap, args.delivery, not args.no_follow)
    if args.seed is not None:
        settings = dataclasses.replace(settings, writeback_ms=0)
    if any(attributes.get("task_filter") for _, attributes in args.fault):
        settings = dataclasses.replace(settings, make_it_fail=True)
    try:
        _check(args, settings)
        program = launch.find(args.program)
    except launch.CannotStart as error:
        return tell(str(error), error.code)
    with (
        _device(args) as (device, path),
        _faults(device, path, args) as strikes,
        _manager(device, args) as manager,
        Book() as book,
    ):
        environment = launch.environment(path, settings, manager, book, args.poison_at)
        # A fault may silence them from its first moment on.
        before = device.observe()
        begin = _Begin(args.fault_after, [strikes.arm, book.set_due])
        start = time.monotonic()
        try:
            report = _watch(program, environment, device, before, args, settings, manager, begin)
        except launch.CannotStart as error:
            return tell(str(error), error.code)
        report = dataclasses.replace(
            report,
            injected=strikes.count(),
            again=_again(args),
            met_poison=_with_places(report, book, start),
            poison_at=None if args.poison_at is None else book.struck(args.poison_at),
        )
        print(*_table(report), sep="\n", file=sys.stderr)
        _write(report, args, device)
    if report.signal is not None:
        _end_by(report.signal)
    return report.exit_code


# ---- before -----------------------------------------------------------------------------------


def _check(args: argparse.Namespace, settings: launch.Settings) -> None:
    """InvalidArgument, or what else would fail only after the program has run."""
    if not args.program:
        raise InvalidArgument("PROGRAM is empty")
    for name, mode in (("window", "direct"), ("dram", "zswap")):
        if getattr(args, name) is not None and args.mode != mode:
            raise InvalidArgument(f"--{name} is of --mode {mode}, not of {args.mode}")
    settings.check("window" if args.mode == "direct" else "dram")
    if args.seed is not None and args.delivery != "inline":
        raise InvalidArgument(f"--seed with --delivery {args.delivery}: another thread decides what comes first")
    if args.seed is not None and args.fault_after is not None:
        raise InvalidArgument("--seed with --fault-after: what strikes first is not the same in every run")
    if args.fault_after is not None and args.poison_at is None and not args.fault:
        raise InvalidArgument("--fault-after: there is neither --poison-at nor --fault")
    joins = args.device is not None or args.mount is not None
    if joins and (args.real is not None or args.advertised is not None):
        raise InvalidArgument("--real and --advertised are of a new device; this one has its own")
    if args.plot is not None:
        from cram_emu.lab import plot

        plot.check(args.plot)
    for path in filter(None, (args.report, args.plot)):
        check_writable(path)
    names = [name for name, _ in args.fault]
    for name in names:
        if names.count(name) > 1:
            raise InvalidArgument(f"--fault {name}: given twice")
    # What this host does not permit is told here, and not by the program's start.
    with Device("1M", "1M") as device, device.map(window="64K", delivery=args.delivery):
        for name, attributes in args.fault:
            device.faults[name].set(**_seed(args) | attributes)


@contextlib.contextmanager
def _device(args: argparse.Namespace) -> Iterator[tuple[Device, str]]:
    """The device, and the path at which the program opens it."""
    path = target(args)
    if path is not None:
        device = Device.open(path)
        # Silent registers are a fault like others; a device that is gone serves nobody.
        with contextlib.suppress(NoAnswer):
            _ = device.stats
    else:
        advertised = _ADVERTISED if args.advertised is None else args.advertised
        device = Device(advertised, min(_REAL, advertised) if args.real is None else args.real)
        path = f"/proc/{os.getpid()}/fd/{device.fileno()}"
    with device:
        yield device, path


@contextlib.contextmanager
def _manager(device: Device, args: argparse.Namespace) -> Iterator[Zswap | None]:
    """What the managers of the program's processes share."""
    if args.mode != "zswap":
        yield None
        return
    from cram_emu.host import Zswap  # half of what a start imports

    with Zswap([device], swap=0, shared=True) as manager:
        yield manager


def _seed(args: argparse.Namespace) -> dict[str, int]:
    return {} if args.seed is None else {"seed": args.seed}


class _Strikes:
    """The faults that were asked for. Busy: one of them is on already."""

    def __init__(self, device: Device, args: argparse.Namespace):
        self._faults, self._wanted = device.faults, args.fault
        self._seed = _seed(args)
        self._before = {name: (self._faults[name].attributes, self._faults[name].struck) for name, _ in args.fault}
        for name, (attributes, _) in self._before.items():
            if attributes.probability > 0 and attributes.times != 0:
                option = ["--mount", args.mount] if args.device is None else ["--device", args.device]
                off = shlex.join(["cram-emu", "fault", *option, name, "off"])
                raise Busy(f"--fault {name}: on already, on this device; `{off}` turns it off")

    def arm(self) -> None:
        for name, attributes in self._wanted:
            self._faults[name].set(**{**dataclasses.asdict(faults.Attributes()), **self._seed, **attributes})

    def count(self) -> dict[str, int]:
        """How often each has struck."""
        return {name: self._faults[name].struck - struck for name, (_, struck) in self._before.items()}

    def put_back(self) -> None:
        """Off, as they were."""
        for name, (attributes, _) in self._before.items():
            self._faults[name].set(**dataclasses.asdict(attributes))


@contextlib.contextmanager
def _faults(device: Device, path: str, args: argparse.Namespace) -> Iterator[_Strikes]:
    """Faults to arm, off before and afterwards. Busy: one is on already, or another run's; nothing has changed."""
    with _claimed(path, [name for name, _ in args.fault]):
        strikes = _Strikes(device, args)
        try:
            yield strikes
        finally:
            strikes.put_back()


@contextlib.contextmanager
def _claimed(path: str, names: list[str]) -> Iterator[None]:
    """No other run has them meanwhile, though they may be off: before --fault-after, or past their times.

    By a lock a fault, on a byte of the device's file: the kernel drops it with a run that is killed.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        for name in names:
            lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, faults.NAMES.index(name), 1, 0)
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
            except BlockingIOError:
                raise Busy(f"--fault {name}: another run has it on this device, and turns it off at its end") from None
        yield
    finally:
        os.close(fd)


class _Begin:
    """When what is wanted may strike: at once, or when the samples say so."""

    def __init__(self, after: After | None, acts: list[Callable[[], None]]):
        self._after, self._acts = after, acts
        if after is None:
            self._begin()

    def __call__(self, sample: Sample) -> None:
        if self._acts and self._after.reached(sample.seconds, sample.faults):
            self._begin()

    def _begin(self) -> None:
        for act in self._acts:
            act()
        self._acts = []


def _again(args: argparse.Namespace) -> str | None:
    """The command that does the same, where there is one."""
    return None if args.seed is None else shlex.join(["cram-emu", *args.words])


# ---- meanwhile --------------------------------------------------------------------------------


def _watch(
    program: str,
    environment,
    device: Device,
    registers_before: Stats,
    args,
    settings: launch.Settings,
    manager: Zswap | None,
    begin: _Begin,
) -> Report:
    for number in _LEFT_TO_THE_PROGRAM:
        signal.signal(number, signal.SIG_IGN)
    start = time.monotonic()
    command = [args.program, *args.arguments]
    # The race: one that comes between the program's start and our handlers would end us, and not reach it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    try:
        # After the fork the program's signals are as a program expects them.
        child = subprocess.Popen(
            command, executable=program, env=environment, preexec_fn=lambda: _restore_signals(before)
        )
    except OSError as error:
        raise launch.CannotStart(f"{args.program}: {error.strerror}", 126) from None
    for number in _PASSED_ON:
        # Not by send_signal(), which reaps it where it has ended.
        signal.signal(number, lambda number, _: os.kill(child.pid, number))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    ours = args.device is None and args.mount is None
    # Nobody else knows a device that we have made.
    watch = Watch(device, registers_before, _anybody if ours else is_child_of(child.pid), manager, begin)
    # Not reaped: while it is a zombie nobody else has its number, and its last counters stay.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    seconds = time.monotonic() - start
    if ours:
        _wait_for_others(device, child.pid)
    watch.stop()
    # From here on its number may be another's; nothing is left but to report.
    for number in _PASSED_ON:
        signal.signal(number, signal.SIG_IGN)
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
        processes=len(watch.pids),
        shared=watch.shared,
        met_poison=list(watch.met.values()),
        manager=None if manager is None else dataclasses.asdict(manager.stats),
        **summarise(watch.samples),
    )


def _anybody(pid: int) -> bool:
    return pid != os.getpid()


def _wait_for_others(device: Device, program: int) -> None:
    """Waits for what the program has left running: the device is gone with us, and whatever they start could not
    attach. Ctrl-C and SIGTERM end the wait."""

    def left() -> list[int]:
        pids = (client.pid for client in device.clients())
        return [pid for pid in pids if pid not in (os.getpid(), program) and os.path.exists(f"/proc/{pid}")]

    if not (pids := left()):
        return
    ended: list[int] = []
    # Not by an exception: one that came before or after the wait would end us without a report.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: ended.append(number))
    listed = " ".join(map(str, pids))
    print(
        f"cram-emu: the program has ended; waiting for what it left running on the device: pid {listed} (Ctrl-C: no"
        " longer)",
        file=sys.stderr,
    )
    while left() and not ended:
        time.sleep(0.05)


def _restore_signals(mask: set[signal.Signals]) -> None:
    for number in (*_LEFT_TO_THE_PROGRAM, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end_by(number: int) -> None:
    """Ends as the program did, for whoever started us; its core dump is enough."""
    sys.stderr.flush()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)


# ---- the report -------------------------------------------------------------------------------


def _with_places(report: Report, book: Book, start: float) -> list[PoisonMet]:
    """Who met poison, and where. Who was not there when a sample was taken is known by the book alone."""
    met = {found.pid: found for found in report.met_poison}
    for meeting in book.met():
        pid = meeting.place.pid
        if pid not in met:
            met[pid] = PoisonMet(pid, meeting.name, 0, meeting.time - start)
        found = dataclasses.replace(met[pid], places=[*met[pid].places, meeting.place])
        met[pid] = dataclasses.replace(found, times=max(found.times, len(found.places)))
    return list(met.values())


def _write(report: Report, args: argparse.Namespace, device: Device) -> None:
    if args.report is not None:
        import json  # a millisecond that a start does not pay

        try:
            with open(args.report, "w", encoding="utf-8") as file:
                json.dump(report.as_json(), file)
        except OSError as error:
            raise DeviceIOError(f"{args.report}: {error.strerror}") from None
    if args.plot is not None:
        from cram_emu.lab import plot

        plot.draw(report, args.plot, (device.params.lthresh, device.params.hthresh))


def _table(report: Report) -> list[str]:
    rows = [
        ["ended", f"{_ending(report)}, after {report.seconds:.1f} s"],
        *(_placed(report) if report.manager is None else _managed(report)),
        ["media", f"{format_size(report.used)} at most, for {format_size(report.held)} when fullest"],
        ["ratio", _ratios(report)],
        ["remaining", f"{format_size(report.remaining)} of {format_size(report.real)} real capacity at the least"],
        ["faults", f"{report.faults:,}"],
        *([["write-backs", f"{report.written_back:,} pages"]] if report.manager is None else []),
        ["interrupts", _interrupts(report)],
        ["dropped writes", f"{report.dropped_writes:,}{_first(report, 'dropped_writes')}"],
        ["poisoned pages", f"{report.poisoned:,} at most{_first(report, 'poisoned')}"],
    ]
    rows += [["poison at", _struck(report.poison_at)]] if report.poison_at is not None else []
    for met in report.met_poison:
        times = _count(met.times, "access")
        rows.append(["met poison", f"pid {met.pid} {met.name}, {times}, first after {met.seconds:.1f} s"])
        rows += [["", _place(place)] for place in met.places[:_PLACES]]
    if report.injected:
        struck = ", ".join(f"{name} {n:,}" for name, n in report.injected.items())
        rows.append(["injected", f"{struck} times"])
    if report.again is not None:
        rows.append(["again by", report.again])
    rows += [["note", note] for note in _notes(report)]
    name = os.path.basename(report.command[0])
    return ["", *plain_table(["cram-emu", name], rows)]


def _struck(struck: Struck) -> str:
    if struck.why:
        return f"{struck.target}: nothing was poisoned: {struck.why}"
    return f"{struck.target}: {_place(struck.place)}, of pid {struck.place.pid}; 0x{struck.dpa:x} of the device"


def _place(place: Place) -> str:
    by = f", allocated by {place.call}" if place.call else ""
    return f"0x{place.address:x} in {place.where}{by}"


def _placed(report: Report) -> Iterator[list[str]]:
    yield ["on the device", f"{format_size(report.placed)} of its memory at most"]
    yield ["elsewhere", f"{format_size(report.elsewhere)} at most, in ordinary memory"]
    yield [
        "resident",
        f"{format_size(report.resident_frames * 4096)} at most of what is on the device, uncompressed; {_processes(report)}",
    ]


def _managed(report: Report) -> Iterator[list[str]]:
    counters = report.manager
    yield ["managed", f"{format_size(report.placed)} of its memory at most"]
    yield ["elsewhere", f"{format_size(report.elsewhere)} at most: what is not managed, and the pool"]
    yield [
        "DRAM",
        f"{format_size(report.resident_frames * 4096)} of frames at most, {format_size(report.window)} a process;"
        f" {_processes(report)}",
    ]
    yield [
        "pool",
        f"{format_size(report.pool)} beside them at most, for {format_size(report.pooled)};"
        f" all processes may have {format_size(counters['max_pages'] * 4096)}",
    ]
    yield ["on the device", f"{format_size(report.direct)} at most"]
    yield [
        "pages",
        f"{counters['zswpout']:,} demoted, {counters['zswpin']:,} promoted; {counters['swpout_zero']:,} and"
        f" {counters['swpin_zero']:,} of zeros",
    ]
    if counters["reclaim_fail"]:
        yield ["not demoted", f"{counters['reclaim_fail']:,} times nobody took a page, and its frame stayed"]


def _processes(report: Report) -> str:
    return f"{_count(report.at_once, 'process')} at once, {report.processes} in all"


def _ratios(report: Report) -> str:
    if not report.ratio:
        return "- (nothing was compressed)"
    return f"{report.ratio:.2f} when fullest, {report.lowest_ratio:.2f} at the lowest"


def _interrupts(report: Report) -> str:
    return (
        f"running low (lthresh) {report.lthresh}{_first(report, 'lthresh')}, recovered (hthresh) {report.hthresh}"
    )


def _first(report: Report, counter: str) -> str:
    """When the history first has any of it."""
    seconds = next((s.seconds for s in report.history if getattr(s, counter) > 0), None)
    return "" if seconds is None else f", first after {seconds:.1f} s"


def _notes(report: Report) -> Iterator[str]:
    if not report.placed:
        yield "nothing was placed: the program is not one whose memory the device sees"
    elif report.elsewhere > max(report.placed, _LITTLE):
        yield "most of its memory was not on the device: it manages its own, or children are not placed"
    elif report.placed <= report.window:
        option = "window" if report.manager is None else "dram"
        yield f"all of it fits the {option}: a smaller --{option} shows what the device would do"
    if report.dropped_writes and not report.injected:
        yield "it needs more than this real capacity; with a larger --real the report tells how much"
    if report.injected.get("removal"):
        yield "the device was removed: since then every page of it is poison, which is not counted"
    if report.shared:
        yield "others used the device: media, ratio, remaining, interrupts, writes and poison are of all"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}es"


def _ending(report: Report) -> str:
    if report.signal is None:
        return f"exit code {report.exit_code}"
    try:
        return f"killed by {signal.Signals(report.signal).name}"
    except ValueError:
        return f"killed by signal {report.signal}"
