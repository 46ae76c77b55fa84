"""Thresholds with hysteresis, and what they raise: events, callbacks, an eventfd, signals."""

import os
import random
import select
import signal
import threading
import time
import warnings

import pytest
from hypothesis import given, settings, strategies as st
from samples import PAGE, entropy, noise, run_threads

from cram_emu import Device, Interrupt
from cram_emu.errors import InvalidArgument

# What does not come by then never will.
DEADLINE = 20


class Collector:
    """A callback that keeps what it is given."""

    def __init__(self, device: Device):
        self.interrupts: list[Interrupt] = []
        self.more = threading.Condition()
        self.device = device
        device.on_interrupt(self)

    def __call__(self, interrupt: Interrupt) -> None:
        with self.more:
            self.interrupts.append(interrupt)
            self.more.notify_all()

    def wait(self, count: int) -> list[Interrupt]:
        with self.more:
            assert self.more.wait_for(lambda: len(self.interrupts) >= count, DEADLINE)
            return list(self.interrupts)

    def names(self) -> list[str]:
        """Of all interrupts that the device has raised by now."""
        return [interrupt.name for interrupt in self.wait(self.device.stats.events)]


def tiny(**options) -> Device:
    """A device that is low with one page in it, and high again without."""
    return Device("1M", "4K", **{"lthresh": 2048, "hthresh": 4096, "signal": 0} | options)


def cross(device: Device, times: int = 1) -> None:
    """Raises lthresh and then hthresh on a tiny device."""
    for _ in range(times):
        device.write(0, FULL)
        device.discard(0, PAGE)


FULL = noise(1)


def fill(device: Device, pages: int) -> None:
    """Makes so many pages of a device raw, and the others empty."""
    for page in range(pages):
        device.write(page * PAGE, noise(page))
    device.discard(pages * PAGE, device.params.advertised - pages * PAGE)


class TestRemaining:
    def test_once_a_crossing(self):
        """Each threshold fires once when it is crossed, and again only after the other has."""
        with Device("1M", "64K", lthresh="16K", hthresh="32K", signal=0) as dev:
            collector = Collector(dev)
            # 16 pages are real: at 12 used 16 KiB remain, at 8 used 32 KiB.
            for used, names in (
                (11, []),
                (12, ["lthresh"]),
                (13, []),
                (16, []),
                (9, []),
                (14, []),
                (8, ["hthresh"]),
                (4, []),
                (0, []),
                (11, []),
                (9, []),
                (12, ["lthresh"]),
                (0, ["hthresh"]),
            ):
                before = len(collector.names())
                fill(dev, used)
                assert collector.names()[before:] == names, used
            assert (dev.stats.lthresh, dev.stats.hthresh, dev.stats.events) == (2, 2, 4)

    def test_exact(self):
        """A sector more than lthresh does not fire it, nor a sector less than hthresh that."""
        with Device("1M", "4K", lthresh=1024, hthresh=2048, signal=0) as dev:
            collector = Collector(dev)
            small = iter(range(1, 256))

            def use(remaining: int) -> None:
                while dev.stats.remaining > remaining:
                    dev.write(next(small) * PAGE, entropy(1, 8))
                freed = 1
                while dev.stats.remaining < remaining:
                    dev.discard(freed * PAGE, PAGE)
                    freed += 1
                assert dev.stats.remaining == remaining

            use(1088)
            assert collector.names() == []
            use(1024)
            assert collector.names() == ["lthresh"]
            use(1984)
            assert collector.names() == ["lthresh"]
            use(2048)
            assert collector.names() == ["lthresh", "hthresh"]

    def test_off(self):
        """Without thresholds nothing fires, however often the device fills and empties."""
        with Device("1M", "64K", lthresh=None, hthresh=None, signal=0) as dev:
            for _ in range(3):
                fill(dev, 20)
                fill(dev, 0)
            assert (dev.stats.dropped_writes, dev.stats.events) == (12, 0)
            assert (dev.pressure, dev.no_alloc) == (0, False)

    def test_equal(self):
        """Low and high may be equal: then each change of side is a crossing."""
        with Device("1M", "64K", lthresh="32K", hthresh="32K", signal=0) as dev:
            collector = Collector(dev)
            for used in (7, 8, 9, 8, 7, 8):
                fill(dev, used)
            assert collector.names() == ["lthresh", "hthresh", "lthresh"]

    @settings(max_examples=40)
    @given(
        low=st.integers(1, 60),
        gap=st.integers(0, 40),
        levels=st.lists(st.integers(0, 64), max_size=40),
    )
    def test_model(self, low: int, gap: int, levels: list[int]):
        """Over any walk of the fill level the events are those of two thresholds with hysteresis."""
        high = min(low + gap, 64)
        expected, is_low = [], False
        with Device("1M", 4096, lthresh=low * 64, hthresh=high * 64, signal=0) as dev:
            collector = Collector(dev)
            level = 0
            for wanted in levels:
                while level != wanted:
                    if level < wanted:
                        dev.write(level * PAGE, entropy(level, 8))
                        level += 1
                    else:
                        level -= 1
                        dev.discard(level * PAGE, PAGE)
                    remaining = 64 - level
                    if not is_low and remaining <= low:
                        is_low = True
                        expected.append(("lthresh", remaining * 64))
                    elif is_low and remaining >= high and remaining > low:
                        is_low = False
                        expected.append(("hthresh", remaining * 64))
            interrupts = collector.wait(dev.stats.events)
            assert [(i.name, i.remaining) for i in interrupts] == expected
            assert dev.no_alloc is is_low


class TestRatio:
    def device(self, **options) -> Device:
        return Device(
            *("1M", "256K"),
            **{"lthresh": None, "hthresh": None, "signal": 0} | options,
        )

    def test_once_a_crossing(self):
        """Falling to lthresh and rising to hthresh fire once each, with the ratio as it was then."""
        with self.device(ratio_lthresh=1.5, ratio_hthresh=3.0) as dev:
            collector = Collector(dev)
            ratios = []
            steps = [entropy(0, 300)] * 4 + [noise(1)] * 12 + [entropy(0, 300)] * 30
            for page, data in enumerate(steps):
                dev.write(page * PAGE, data)
                ratios.append(dev.stats.ratio)
            for page in range(4, 15):
                dev.discard(page * PAGE, PAGE)
                ratios.append(dev.stats.ratio)
            dev.write(50 * PAGE, noise(2))
            assert min(ratios) < 1.5 and max(ratios[16:]) > 3
            names = collector.names()
            assert names == ["lthresh", "hthresh"]
            low, high = collector.interrupts
            assert (low.cause, high.cause) == ("ratio", "ratio")
            assert low.ratio == next(ratio for ratio in ratios if ratio <= 1.5)
            below = ratios.index(low.ratio)
            assert high.ratio == next(ratio for ratio in ratios[below:] if ratio >= 3.0)

    def test_rewrites(self):
        """A change of the ratio that takes no sector more is seen too."""
        with self.device(ratio_lthresh=1.0, ratio_hthresh=2.0) as dev:
            collector = Collector(dev)
            dev.write(0, noise(0))
            assert collector.names() == ["lthresh"]
            # A zero page beside it: 2 pages in one page's sectors.
            dev.write(PAGE, bytes(PAGE))
            assert collector.names() == ["lthresh", "hthresh"]

    def test_empty(self):
        """A device that stores nothing has no ratio: it is not low, and is low no more."""
        with self.device(ratio_lthresh=2.0, ratio_hthresh=5.0) as dev:
            collector = Collector(dev)
            dev.write(0, bytes(PAGE))
            assert collector.names() == []
            dev.write(0, noise(0))
            assert collector.names() == ["lthresh"]
            dev.discard(0, PAGE)
            assert collector.names() == ["lthresh", "hthresh"]

    def test_off(self):
        """Without thresholds on it the ratio fires nothing."""
        with self.device() as dev:
            dev.write(0, noise(0))
            assert (dev.stats.ratio, dev.stats.events) == (1.0, 0)


class TestRegisters:
    def test_answer(self):
        """lthresh sets pressure 1000 and no_alloc; hthresh sets 0 and clears it."""
        with tiny() as dev:
            assert (dev.pressure, dev.no_alloc) == (0, False)
            dev.write(0, FULL)
            assert (dev.pressure, dev.no_alloc, dev.stats.lthresh) == (1000, True, 1)
            dev.discard(0, PAGE)
            assert (dev.pressure, dev.no_alloc, dev.stats.hthresh) == (0, False, 1)

    def test_driver_s_words(self):
        """What the driver writes stays until the next crossing."""
        with tiny() as dev:
            dev.write(0, FULL)
            dev.pressure, dev.no_alloc = 300, False
            dev.write(0, noise(2))
            assert (dev.pressure, dev.no_alloc) == (300, False)
            dev.discard(0, PAGE)
            assert (dev.pressure, dev.no_alloc) == (0, False)

    def test_two_causes(self):
        """While one cause is low, the recovery of the other changes nothing."""
        with tiny(ratio_lthresh=1.5, ratio_hthresh=2.0) as dev:
            collector = Collector(dev)
            dev.write(0, FULL)
            assert {i.cause for i in collector.wait(2)} == {"remaining", "ratio"}
            # Better compressible, but still too much of it.
            dev.write(0, entropy(0, 2000))
            assert collector.wait(3)[2].name == "hthresh"
            assert collector.wait(3)[2].cause == "ratio"
            assert dev.stats.remaining < 4096
            assert (dev.pressure, dev.no_alloc) == (1000, True)
            dev.discard(0, PAGE)
            assert collector.wait(4)[3].cause == "remaining"
            assert (dev.pressure, dev.no_alloc) == (0, False)

    def test_set_before_told(self):
        """Who is told of lthresh finds the bits set already."""
        with tiny() as dev:
            seen: list[tuple[int, bool]] = []
            done = threading.Event()
            dev.on_interrupt(lambda interrupt: (seen.append((dev.pressure, dev.no_alloc)), done.set()))
            dev.write(0, FULL)
            assert done.wait(DEADLINE)
            assert seen == [(1000, True)]


class TestSetThresholds:
    def test_at_once(self):
        """New thresholds are looked at at once, in both directions."""
        with Device("1M", "64K", signal=0) as dev:
            collector = Collector(dev)
            fill(dev, 8)
            assert collector.names() == []
            dev.set_thresholds(lthresh="32K", hthresh="48K")
            assert collector.names() == ["lthresh"]
            dev.set_thresholds(lthresh="8K", hthresh="16K")
            assert collector.names() == ["lthresh", "hthresh"]
            dev.set_thresholds(lthresh=None, hthresh=None, ratio_lthresh=1.0, ratio_hthresh=1.0)
            assert collector.names() == ["lthresh", "hthresh", "lthresh"]
            assert collector.interrupts[-1].cause == "ratio"

    def test_off(self):
        """Switched off while low, the device is low no more, and nothing fires after that."""
        with tiny() as dev:
            collector = Collector(dev)
            dev.write(0, FULL)
            dev.set_thresholds(lthresh=0, hthresh=0)
            assert collector.names() == ["lthresh", "hthresh"]
            assert (dev.pressure, dev.no_alloc) == (0, False)
            cross(dev, 3)
            assert dev.stats.events == 2

    def test_same(self):
        """The same thresholds again fire nothing, and leave the hysteresis as it is."""
        with tiny() as dev:
            dev.write(0, FULL)
            for _ in range(3):
                dev.set_thresholds(lthresh=2048, hthresh=4096)
            assert dev.stats.events == 1

    @pytest.mark.parametrize(
        "wrong, named",
        [
            ({"lthresh": 2048, "hthresh": 1024}, "low 2048 and high 1024"),
            ({"lthresh": 0, "hthresh": 4160}, "4160"),
            ({"lthresh": "60%", "hthresh": "50%"}, "low 2457 and high 2048"),
            ({"lthresh": "x%", "hthresh": 0}, "x%"),
            ({"lthresh": -1, "hthresh": 0}, "-1"),
            ({"lthresh": 0, "hthresh": 0, "ratio_lthresh": 3, "ratio_hthresh": 2}, "low 3000"),
            ({"lthresh": 0, "hthresh": 0, "ratio_lthresh": -2.0}, "-2.0"),
        ],
    )
    def test_nonsense(self, wrong: dict, named: str):
        """Thresholds that make no sense are refused by name, and the old ones hold."""
        with tiny() as dev:
            with pytest.raises(ValueError) as caught:
                dev.set_thresholds(**wrong)
            assert named in str(caught.value)
            assert dev.stats.events == 0
            cross(dev)
            assert dev.stats.events == 2

    def test_percentages(self):
        """A percentage is of the real capacity."""
        with Device("1M", "64K", lthresh=None, hthresh=None, signal=0) as dev:
            dev.set_thresholds(lthresh="50%", hthresh="75%")
            fill(dev, 7)
            assert dev.stats.lthresh == 0
            fill(dev, 8)
            assert dev.stats.lthresh == 1
            fill(dev, 5)
            assert dev.stats.hthresh == 0
            fill(dev, 4)
            assert dev.stats.hthresh == 1


class TestCallback:
    def test_fields(self):
        """An interrupt tells its number, time, vector, name, cause, and the registers of then."""
        with tiny() as dev:
            collector = Collector(dev)
            before = time.monotonic_ns()
            dev.write(0, entropy(0, 3000))
            ratio = dev.stats.ratio
            low = collector.wait(1)[0]
            dev.discard(0, PAGE)
            high = collector.wait(2)[1]
            after = time.monotonic_ns()
        assert before <= low.time_ns <= high.time_ns <= after
        assert (low.sequence, low.vector, low.name, low.cause) == (1, 12, "lthresh", "remaining")
        assert (high.sequence, high.vector, high.name) == (2, 13, "hthresh")
        assert low.remaining < 2048 and high.remaining == 4096
        # The ratio is counted only where a threshold is set on it.
        assert low.ratio in (ratio, 0.0)
        with pytest.raises(AttributeError):
            low.vector = 13

    def test_decorator(self):
        """on_interrupt gives the callback back, so that it can be a decorator."""
        with tiny() as dev:
            called = threading.Event()

            @dev.on_interrupt
            def callback(interrupt: Interrupt) -> None:
                called.set()

            assert callable(callback)
            dev.write(0, FULL)
            assert called.wait(DEADLINE)

    def test_ordinary_thread(self):
        """A callback runs in an ordinary thread, where it may work on the device itself."""
        with tiny() as dev:
            threads: list[str] = []
            done = threading.Event()

            @dev.on_interrupt
            def callback(interrupt: Interrupt) -> None:
                threads.append(threading.current_thread().name)
                if interrupt.name == "lthresh":
                    dev.discard(0, PAGE)
                else:
                    done.set()

            dev.write(0, FULL)
            assert done.wait(DEADLINE)
            assert threads == ["cram-interrupts"] * 2
            assert dev.stats.used == 0

    def test_several(self):
        """Every callback gets every interrupt, in the order in which they were given."""
        with tiny() as dev:
            calls: list[tuple[str, int]] = []
            dev.on_interrupt(lambda interrupt: calls.append(("first", interrupt.sequence)))
            dev.on_interrupt(lambda interrupt: calls.append(("second", interrupt.sequence)))
            collector = Collector(dev)
            cross(dev)
            collector.wait(2)
            assert calls == [("first", 1), ("second", 1), ("first", 2), ("second", 2)]

    def test_later_ones_only(self):
        """A callback gets what is raised after it was given, and nothing older."""
        with tiny() as dev:
            cross(dev, 5)
            collector = Collector(dev)
            cross(dev)
            assert [i.sequence for i in collector.wait(2)] == [11, 12]

    @pytest.mark.parametrize("error", [LookupError, SystemExit, KeyboardInterrupt])
    def test_raising(self, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]):
        """A callback that raises is reported, and neither the next one nor the next time is lost."""
        reported: list[threading.ExceptHookArgs] = []
        monkeypatch.setattr(threading, "excepthook", reported.append)
        with tiny() as dev:

            @dev.on_interrupt
            def callback(interrupt: Interrupt) -> None:
                raise error(f"number {interrupt.sequence}")

            collector = Collector(dev)
            cross(dev)
            assert [i.sequence for i in collector.wait(2)] == [1, 2]
        assert [str(args.exc_value) for args in reported] == ["number 1", "number 2"]
        assert {args.exc_type for args in reported} == {error}

    def test_storm(self):
        """In a storm each of thousands of interrupts is brought once, in sequence."""
        with tiny() as dev, warnings.catch_warnings():
            warnings.simplefilter("error")
            collector = Collector(dev)
            # More than the ring holds, in portions that it does hold.
            for portion in range(1, 6):
                cross(dev, 2000)
                collector.wait(4000 * portion)
            assert [i.sequence for i in collector.interrupts] == list(range(1, 20001))
            assert {i.name for i in collector.interrupts[::2]} == {"lthresh"}
            assert {i.name for i in collector.interrupts[1::2]} == {"hthresh"}
            assert (dev.stats.lthresh, dev.stats.hthresh) == (10000, 10000)

    def test_storm_of_threads(self):
        """Threads that cross against each other raise each change of side once, in turn."""

        def work(seed: int) -> None:
            generator = random.Random(seed)
            for _ in range(500):
                page = generator.randrange(4)
                dev.write(page * PAGE, noise(page))
                dev.discard(generator.randrange(4) * PAGE, PAGE)

        with Device("1M", "8K", lthresh=4096, hthresh=8192, signal=0) as dev:
            collector = Collector(dev)
            run_threads(*[lambda seed=seed: work(seed) for seed in range(4)])
            events = dev.stats.events
            assert events > 10
            interrupts = collector.wait(events)
            assert [i.sequence for i in interrupts] == list(range(1, events + 1))
            assert {i.name for i in interrupts[::2]} == {"lthresh"}
            assert {i.name for i in interrupts[1::2]} == {"hthresh"}
            assert all(i.remaining <= 4096 for i in interrupts[::2])
            assert all(i.remaining == 8192 for i in interrupts[1::2])

    def test_slow(self):
        """A callback that takes long misses nothing that the ring of 4096 holds."""
        release = threading.Event()
        with tiny() as dev:
            dev.on_interrupt(lambda interrupt: release.wait(DEADLINE))
            collector = Collector(dev)
            cross(dev, 2048)
            assert not collector.interrupts
            release.set()
            assert [i.sequence for i in collector.wait(4096)] == list(range(1, 4097))

    def test_too_slow(self):
        """What the ring has lost is told as a warning with its number, and by the gap."""
        release, entered = threading.Event(), threading.Event()
        with tiny() as dev, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dev.on_interrupt(lambda interrupt: (entered.set(), release.wait(DEADLINE)))
            collector = Collector(dev)
            cross(dev)
            assert entered.wait(DEADLINE)
            cross(dev, 3000)
            release.set()
            # The first was taken before; of the others the ring holds the last 4096.
            interrupts = collector.wait(4097)
            sequences = [i.sequence for i in interrupts]
            assert sequences == [1, *range(6002 - 4095, 6003)]
        (warning,) = [w for w in caught if w.category is RuntimeWarning]
        assert str(6002 - 4096 - 1) in str(warning.message)

    def test_each_client(self, tmp_path):
        """Each client is told of every interrupt, whoever raised it."""
        with tiny(path=tmp_path / "device") as dev, Device.open(tmp_path / "device") as other:
            mine, theirs = Collector(dev), Collector(other)
            cross(dev)
            cross(other)
            assert mine.wait(4) == theirs.wait(4)


def wait_readable(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(DEADLINE * 1000)


def read_count(fd: int, count: int) -> None:
    """Reads the counter until it has counted so many, and no more."""
    seen = 0
    while seen < count:
        wait_readable(fd)
        seen += os.eventfd_read(fd)
    assert seen == count


class TestEventfd:
    def test_counts(self):
        """It counts every interrupt, and is readable only when there was one."""
        with tiny() as dev:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(dev.eventfd)
            cross(dev)
            read_count(dev.eventfd, 2)
            cross(dev, 500)
            read_count(dev.eventfd, 1000)
            with pytest.raises(BlockingIOError):
                os.eventfd_read(dev.eventfd)

    def test_each_client(self, tmp_path):
        """Each client has its own, and it counts what others raised."""
        with tiny(path=tmp_path / "device") as dev, Device.open(tmp_path / "device") as other:
            assert dev.eventfd != other.eventfd
            cross(dev)
            read_count(other.eventfd, 2)
            read_count(dev.eventfd, 2)

    def test_from_now_on(self, tmp_path):
        """It does not count what was raised before the client joined."""
        with tiny(path=tmp_path / "device") as dev:
            cross(dev)
            read_count(dev.eventfd, 2)
            with Device.open(tmp_path / "device") as other:
                cross(dev)
                read_count(other.eventfd, 2)


# struct signalfd_siginfo is what Python's sigwaitinfo does not give: si_value. In siginfo_t the value of
# sigqueue(3) lies where SIGCHLD has its status (uapi/asm-generic/siginfo.h).
SIGNALS = """
import os, select, signal, sys
from cram_emu import Device
from samples import PAGE, noise

number = int(sys.argv[1])

def device(**options):
    return Device("1M", "4K", **{"lthresh": 2048, "hthresh": 4096} | options)

def cross(dev, times=1):
    for _ in range(times):
        dev.write(0, noise(1))
        dev.discard(0, PAGE)

def received():
    info = signal.sigtimedwait([number], 30)
    assert info is not None, "no signal came"
    SI_QUEUE = -1
    assert (info.si_code, info.si_pid) == (SI_QUEUE, os.getpid())
    return info.si_status

def counted(dev, count):
    '''Waits until the service thread is done with so many interrupts but the last.'''
    poll = select.poll()
    poll.register(dev.eventfd, select.POLLIN)
    while count > 0:
        assert poll.poll(30000), "no interrupt came"
        count -= os.eventfd_read(dev.eventfd)

signal.pthread_sigmask(signal.SIG_BLOCK, [number])
"""


class TestSignal:
    DEFAULT = signal.SIGRTMIN + 12

    def run(self, run_child, program: str, number: int = DEFAULT) -> str:
        child = run_child(SIGNALS + program, int(number))
        assert (child.returncode, child.stderr) == (0, "")
        return child.stdout

    def test_values(self, run_child):
        """With a handler, SIGRTMIN + 12 comes once an interrupt, with 12 and 13 as its value."""
        program = """
signal.signal(number, lambda *_: None)
with device() as dev:
    cross(dev, 3)
    print([received() for _ in range(6)], signal.sigpending())
"""
        assert self.run(run_child, program) == "[12, 13, 12, 13, 12, 13] set()\n"

    @pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGRTMIN, signal.SIGRTMAX])
    def test_any_number(self, run_child, number: int):
        """Any signal can be chosen."""
        program = """
signal.signal(number, lambda *_: None)
with device(signal=number) as dev:
    dev.write(0, noise(1))
    low = received()
    dev.discard(0, PAGE)
    print(low, received())
"""
        assert self.run(run_child, program, number) == "12 13\n"

    @pytest.mark.parametrize("disposition", ["SIG_DFL", "SIG_IGN"])
    def test_no_handler(self, run_child, disposition: str):
        """Without a handler, or ignored, none is sent, and the program lives on."""
        program = f"""
signal.signal(number, signal.{disposition})
signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
with device() as dev:
    cross(dev, 10)
    counted(dev, 20)
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    cross(dev, 10)
    counted(dev, 20)
    print(signal.sigpending(), dev.stats.events)
"""
        assert self.run(run_child, program) == "set() 40\n"

    def test_off(self, run_child):
        """With signal=0 none is sent to a program with a handler; to the same with a number it is."""
        program = """
signal.signal(number, lambda *_: None)
for chosen in (0, number):
    with device(signal=chosen) as dev:
        cross(dev)
        counted(dev, 2)
        print(number in signal.sigpending())
"""
        assert self.run(run_child, program) == "False\nTrue\n"

    def test_handler_removed(self, run_child):
        """Handlers come and go: each interrupt asks anew."""
        program = """
with device() as dev:
    dev.write(0, noise(1))
    counted(dev, 1)
    signal.signal(number, lambda *_: None)
    dev.discard(0, PAGE)
    print(received())
    signal.signal(number, signal.SIG_DFL)
    cross(dev)
    counted(dev, 3)
    print(signal.sigpending())
"""
        assert self.run(run_child, program) == "13\nset()\n"

    def test_python_handler(self, run_child):
        """A handler in Python runs in the main thread, once an interrupt."""
        program = """
import threading
seen = []
done = threading.Event()

def handler(number, frame):
    seen.append(threading.current_thread() is threading.main_thread())

signal.signal(number, handler)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
with device() as dev:
    dev.write(0, noise(1))
    while not seen:
        signal.pause()
    print(seen)
"""
        # A signal before the pause would leave it waiting: the handler's wake-up descriptor does not.
        program = program.replace(
            "        signal.pause()\n",
            "        assert select.select([wake], [], [], 30)[0]\n",
        ).replace(
            "done = threading.Event()\n",
            "wake, alarm = os.pipe()\nos.set_blocking(alarm, False)\nsignal.set_wakeup_fd(alarm)\n",
        )
        assert self.run(run_child, program) == "[True]\n"

    def test_storm(self, run_child):
        """A real-time signal is queued for every one of a thousand interrupts."""
        program = """
import resource
assert resource.getrlimit(resource.RLIMIT_SIGPENDING)[0] > 1000
signal.signal(number, lambda *_: None)
with device() as dev:
    cross(dev, 500)
    print([received() for _ in range(1000)] == [12, 13] * 500, signal.sigpending())
"""
        assert self.run(run_child, program) == "True set()\n"

    def test_each_process(self, run_child, start_child, tmp_path):
        """Each process gets the signal in its own, whoever raised it."""
        program = """
signal.signal(number, lambda *_: None)
with Device.open(sys.argv[2]) as dev:
    print("ready", flush=True)
    print(received(), received(), flush=True)
"""
        with tiny(path=tmp_path / "device", signal=self.DEFAULT) as dev:
            children = [
                start_child(SIGNALS + program, int(self.DEFAULT), tmp_path / "device")
                for _ in range(2)
            ]
            for child in children:
                assert child.stdout.readline() == "ready\n"
            cross(dev)
            for child in children:
                assert child.stdout.readline() == "12 13\n"
