"""Faults on purpose. Each has a test of its effect, and the same steps with it off, which must show nothing.

Oracle: the contents that were written, and the registers. What a page may never be is silently wrong.
"""

import contextlib
import dataclasses
import os
import random
import select
import threading
import time

import pytest
from hypothesis import given, settings, strategies as st
from samples import PAGE, entropy, noise
from support import wait_until

from cram_emu import Device, PoisonError
from cram_emu._core import check, ffi, lib
from cram_emu.errors import DeviceGone, InvalidArgument, NoAnswer
from cram_emu.faults import ATTRIBUTES, DISTRIBUTIONS, NAMES, Attributes, UnknownFault, parse

PAGES = 200


@pytest.fixture
def dev():
    with Device("4M", "2M", lthresh="25%", hthresh="50%") as dev:
        yield dev


@pytest.fixture(params=[True, False], ids=["on", "off"])
def on(request) -> bool:
    return request.param


def content(page: int) -> bytes:
    """A page that compresses to a half."""
    return entropy(page, PAGE // 2).ljust(PAGE, b"\0")


def fill(dev: Device, pages: int = PAGES) -> None:
    for page in range(pages):
        dev.write(page * PAGE, content(page))


def lost(dev: Device, pages: int = PAGES) -> set[int]:
    """The pages that are poison, at least in part. No other has other contents than were written."""
    gone = set()
    for page in range(pages):
        try:
            assert dev.read(page * PAGE, PAGE) == content(page)
        except PoisonError:
            gone.add(page)
    return gone


class TestMedia:
    def test_store(self, dev, on):
        """A refused store is a dropped write: the page is poison, and counted, and a later store mends it."""
        dev.faults["store"].set(probability=20 if on else 0)
        fill(dev)
        struck = dev.faults["store"].struck
        assert (struck > 10) is on
        assert len(lost(dev)) == dev.stats.dropped_writes == struck
        dev.faults["store"].off()
        fill(dev)
        assert lost(dev) == set()

    def test_store_gives_its_room_back(self, dev):
        fill(dev)
        before = dev.stats.used
        dev.faults["store"].set(probability=100)
        fill(dev)
        assert dev.stats.used == 0
        dev.faults["store"].off()
        fill(dev)
        assert dev.stats.used == before

    def test_corrupt(self, dev, on):
        """The stored checksum finds every flipped bit."""
        dev.faults["corrupt"].set(probability=20 if on else 0)
        fill(dev)
        struck = dev.faults["corrupt"].struck
        assert (struck > 10) is on
        assert len(lost(dev)) == dev.stats.media_errors == struck

    def test_poison(self, dev, on):
        """A line of the page; the rest of it is as it was."""
        dev.faults["poison"].set(probability=20 if on else 0)
        fill(dev)
        struck = dev.faults["poison"].struck
        assert (struck > 10) is on
        records = dev.poison.records()
        assert {(r.length, r.source) for r in records} == ({(64, "injected")} if on else set())
        assert {r.dpa // PAGE for r in records} == lost(dev)
        assert len(records) == struck
        for record in records:
            page, line = record.dpa // PAGE * PAGE, record.dpa % PAGE
            if line:
                assert dev.read(page, line) == content(page // PAGE)[:line]

    def test_poison_pattern(self, dev):
        """The lines at the value's multiples, on pages that are stored; others are as they were."""
        dev.faults["poison"].set(probability=100, value=10_000)
        fill(dev)
        multiples = range(0, PAGES * PAGE, 10_000)
        assert [r.dpa for r in dev.poison.records()] == [at // 64 * 64 for at in multiples]
        assert lost(dev) == {at // PAGE for at in multiples}
        assert dev.faults["poison"].struck == len(multiples)
        dev.faults["poison"].set(value=100)
        dev.write(0, content(0))
        assert dev.page(0).poisoned == sum(1 << line for line in {at // 64 for at in range(0, PAGE, 100)})

    def test_poison_beyond_the_list(self, dev):
        """A full list says so, and the page is poison as a whole: no strike is without effect."""
        with Device("4M", "2M", poison_limit=4) as dev:
            dev.faults["poison"].set(probability=100)
            fill(dev, 20)
            stats = dev.stats
            assert (stats.poisoned, stats.poison_records, stats.poison_overflow) == (20, 4, 16)
            assert lost(dev, 20) == set(range(20)) and dev.faults["poison"].struck == 20
            dev.rebuild()
            assert dev.stats == stats

    def test_ratio(self, dev, on):
        """Pages are stored as they are, and still whole."""
        dev.faults["ratio"].set(probability=100 if on else 0)
        fill(dev)
        assert (dev.stats.pages_raw == PAGES) is on
        assert (dev.stats.ratio < 1.01) is on
        assert lost(dev) == set()

    def test_ratio_in_part(self, dev):
        dev.faults["ratio"].set(probability=50)
        fill(dev)
        assert 0 < dev.stats.pages_raw < PAGES

    @pytest.mark.parametrize("codec", [("lz4", 4096), ("lz4", 1024), ("zstd", 4096), ("zstd", 2048)], ids=str)
    def test_ratio_of_contents(self, codec, on):
        """Pages take so much, if they took less before; they are whole, also after a rebuild, and give it back."""
        with Device("4M", "2M", codec=codec[0], block=codec[1]) as dev:
            dev.faults["ratio"].set(probability=100 if on else 0, value=3000)
            fill(dev)
            lengths = {dev.page(page * PAGE).length for page in range(PAGES)}
            assert (lengths == {3000}) is on
            dev.rebuild()
            assert lost(dev) == set()
            dev.faults["ratio"].set(value=1000)
            fill(dev)
            assert min(dev.page(page * PAGE).length for page in range(PAGES)) > PAGE // 2
            assert lost(dev) == set()
            dev.discard(0, PAGES * PAGE)
            assert dev.stats.used == 0

    def test_ratio_varies(self, dev):
        dev.faults["ratio"].set(probability=100, value=3000, distribution="uniform")
        fill(dev)
        infos = [dev.page(page * PAGE) for page in range(PAGES)]
        assert len({info.length for info in infos}) > PAGES // 4
        # Of 0 to 6000: a third do not compress at all, and a third did not compress better anyway.
        assert PAGES // 6 < sum(info.state == "raw" for info in infos) < PAGES // 2
        assert lost(dev) == set()

    @pytest.mark.parametrize("distribution", DISTRIBUTIONS)
    def test_ratio_of_next_to_nothing(self, dev, distribution):
        """What is drawn as less than a byte is a bound that all pages keep, not the 0 that has them not compress."""
        dev.faults["ratio"].set(probability=100, value=1, distribution=distribution)
        fill(dev)
        assert dev.stats.pages_raw == 0 and dev.faults["ratio"].struck == PAGES

    def test_capacity(self, dev, on):
        """Real capacity shrinks by the step, for good; a rebuild does not find it again."""
        real = dev.stats.real
        dev.faults["capacity"].set(probability=100 if on else 0, times=3, value=100 * 1024)
        fill(dev, 10)
        expected = real - 3 * 100 * 1024 if on else real
        for _ in range(2):
            stats = dev.stats
            assert (stats.real, stats.remaining) == (expected, expected - stats.used)
            dev.rebuild()
        assert lost(dev, 10) == set()

    def test_capacity_all(self, dev):
        """More than there is free: what is stored stays."""
        fill(dev, 10)
        dev.faults["capacity"].set(probability=100, times=1, value=1 << 40)
        dev.write(10 * PAGE, content(10))
        assert dev.stats.remaining == 0 and dev.stats.real == dev.stats.used
        assert lost(dev, 11) == set()
        dev.write(11 * PAGE, content(11))
        assert dev.stats.dropped_writes == 1

    def test_capacity_warns(self, dev):
        dev.faults["capacity"].set(probability=100, times=1, value=int(1.6 * 2**20))
        dev.write(0, content(0))
        assert dev.stats.lthresh == 1

    def test_trim(self, dev, on):
        """What is freed stays in use; the page is empty all the same. A rebuild finds the sectors again."""
        fill(dev)
        used = dev.stats.used
        dev.faults["trim"].set(probability=100 if on else 0)
        dev.discard(0, PAGES * PAGE)
        assert dev.stats.used == (used if on else 0)
        assert dev.read(0, PAGE) == bytes(PAGE)
        dev.rebuild()
        assert dev.stats.used == 0


class TestLatency:
    """No time is compared with another: a delay that is on takes at least as long as it says."""

    @pytest.mark.parametrize("name", ["read_delay", "write_delay"])
    def test_delay(self, dev, name):
        fill(dev, 1)
        dev.faults[name].set(probability=100, value=20_000)
        start = time.monotonic()
        dev.read(0, PAGE) if name == "read_delay" else dev.write(0, content(0))
        assert time.monotonic() - start >= 0.02
        assert dev.faults[name].struck == 1
        assert lost(dev, 1) == set()

    def test_other_pages_go_on(self, dev):
        """A slow load holds nobody up who wants another page."""
        fill(dev, 2)
        dev.faults["read_delay"].set(probability=100, times=1, value=2_000_000)
        done: list[str] = []
        slow = threading.Thread(target=lambda: (dev.read(0, PAGE), done.append("slow")))
        slow.start()
        wait_until(lambda: dev.faults["read_delay"].struck == 1, "it is struck")
        assert dev.read(PAGE, PAGE) == content(1)
        done.append("other")
        slow.join()
        assert done == ["other", "slow"]


    @pytest.mark.parametrize("name", ["read_delay", "write_delay"])
    def test_stands(self, dev, name):
        """A page that takes its time holds nobody up who needs all to stand still: a rebuild, a reset."""
        fill(dev, 2)
        dev.faults[name].set(probability=100, times=1, value=3_000_000)
        done: list[str] = []

        def slow() -> None:
            with contextlib.suppress(PoisonError):
                dev.read(0, PAGE) if name == "read_delay" else dev.write(0, content(0))
            done.append("slow")

        thread = threading.Thread(target=slow)
        thread.start()
        wait_until(lambda: dev.faults[name].struck == 1, "it is struck")
        dev.rebuild()
        dev.reset()
        done.append("reset")
        thread.join()
        assert done == ["reset", "slow"]
        # What is stored after the reset is there; what was is not.
        assert lost(dev, 2) == ({0, 1} if name == "read_delay" else {1})


class TestInterrupts:
    def overflow(self, dev: Device) -> None:
        fill(dev, 800)

    def test_lost(self, dev, on):
        """The registers say what no interrupt says."""
        dev.faults["lost_irq"].set(probability=100 if on else 0)
        self.overflow(dev)
        assert dev.stats.lthresh == (0 if on else 1)
        assert dev.stats.no_alloc and dev.stats.pressure == 1000
        dev.faults["lost_irq"].off()
        dev.discard(0, 800 * PAGE)
        assert dev.stats.hthresh == 1

    def test_late(self, dev, on):
        """The interrupt arrives when it is due, and what is raised meanwhile behind it; the registers are set at once."""
        told: list[tuple[str, float]] = []
        dev.on_interrupt(lambda interrupt: told.append((interrupt.name, time.monotonic())))
        dev.faults["late_irq"].set(probability=100 if on else 0, times=1, value=500)
        start = time.monotonic()
        self.overflow(dev)
        assert dev.stats.no_alloc or told
        dev.discard(0, 800 * PAGE)
        wait_until(lambda: len(told) == 2, "both are told")
        assert [name for name, _ in told] == ["lthresh", "hthresh"]
        if on:
            assert told[0][1] - start >= 0.5
        assert select.select([dev.eventfd], [], [], 30)[0]
        assert dev.faults["late_irq"].struck == on

    def test_late_waits_no_longer_than_asked(self, dev):
        """A waiter's own time ends before a late interrupt comes; closing does too."""
        dev.faults["late_irq"].set(probability=100, times=1, value=3_600_000)
        self.overflow(dev)
        sequence, event = ffi.new("uint64_t *", 1), ffi.new("struct cram_event *")
        with pytest.raises(NoAnswer, match="no event after number 1 in 10 ms"):
            check(lib.cram_event_wait(dev._handle, sequence, 10, event))
        assert event.sequence == 0

    def test_spurious(self, dev, on):
        dev.faults["spurious_irq"].set(probability=100 if on else 0)
        fill(dev, 5)
        assert dev.stats.lthresh == (5 if on else 0)
        assert not dev.stats.no_alloc

    def test_storm(self, dev, on):
        """So many at once, each in the ring."""
        dev.faults["storm_irq"].set(probability=100 if on else 0, value=100, times=2)
        fill(dev, 5)
        assert dev.stats.lthresh == (200 if on else 0)

    def test_stuck(self, on):
        """Below the threshold each store raises it again; before, and without the fault, once is all."""
        with Device("1M", "64K", lthresh="50%", hthresh="60%") as dev:
            dev.faults["stuck_irq"].set(probability=100 if on else 0)
            dev.write(0, content(0))
            assert dev.stats.lthresh == 0
            page = 1
            while not dev.stats.no_alloc:
                dev.write(page * PAGE, content(page))
                page += 1
            before = dev.stats.lthresh
            for again in range(10):
                dev.write(0, content(again))
            assert dev.stats.lthresh == before + (10 if on else 0)

    def test_callbacks(self, dev):
        """A strike is told to who asked for strikes, before what it causes; an interrupt to who asked for those."""
        told: list[tuple[int, str]] = []
        dev.on_interrupt(lambda interrupt: told.append((interrupt.sequence, interrupt.name)))
        dev.on_fault(lambda strike: told.append((strike.sequence, strike.name, strike.dpa)))
        dev.faults["spurious_irq"].set(probability=100, times=1)
        dev.write(7 * PAGE, content(7))
        wait_until(lambda: len(told) == 2, "both are told")
        assert told == [(1, "spurious_irq", 7 * PAGE), (2, "lthresh")]

    def test_no_signal(self, dev):
        """A strike is no interrupt: the eventfd does not count it."""
        dev.faults["store"].set(probability=100)
        fill(dev, 5)
        dev.faults["spurious_irq"].set(probability=100, times=1)
        dev.faults["store"].off()
        fill(dev, 1)
        assert select.select([dev.eventfd], [], [], 30)[0]
        assert os.eventfd_read(dev.eventfd) == 1


class TestTelemetry:
    def test_stale(self, dev, on):
        """Registers tell what was, until it is old enough."""
        dev.faults["stale"].set(probability=100 if on else 0, value=3_600_000)
        before = dev.stats.used
        fill(dev)
        assert (dev.stats.used == before) is on
        dev.faults["stale"].off()
        assert dev.stats.used > before

    def test_stale_ends(self, dev):
        dev.faults["stale"].set(probability=100, value=1)
        before = dev.stats.used
        fill(dev)
        wait_until(lambda: dev.stats.used > before, "the registers are told anew")

    def test_no_answer(self, dev, on):
        """Registers are silent; the pages are as ever."""
        fill(dev, 5)
        dev.faults["no_answer"].set(probability=100 if on else 0, times=2)
        for _ in range(2):
            if on:
                with pytest.raises(NoAnswer, match="do not answer"):
                    _ = dev.stats
            else:
                _ = dev.stats
        assert dev.stats.pages_stored == 5
        assert lost(dev, 5) == set()

    def test_saturated(self, dev, on):
        """It cannot tell more than so much; less it tells."""
        truth = dev.stats.remaining
        dev.faults["saturated"].set(probability=100 if on else 0, value=truth // 2)
        assert dev.stats.remaining == (truth // 2 if on else truth)
        dev.faults["saturated"].set(value=2 * truth)
        assert dev.stats.remaining == truth

    @pytest.mark.parametrize("name", ["remaining", "ratio"])
    def test_lie(self, dev, on, name):
        """One register is told scaled, the others as they are."""
        fill(dev)
        truth = dev.stats
        dev.faults[f"lie_{name}"].set(probability=100 if on else 0, value=2500)
        told = dev.stats
        assert getattr(told, name) == pytest.approx(getattr(truth, name) * (2.5 if on else 1), abs=0.002)
        assert dataclasses.replace(told, **{name: getattr(truth, name), "events": truth.events}) == truth

    @pytest.mark.parametrize(
        "name, value", [("stale", 3_600_000), ("no_answer", 0), ("lie_remaining", 2500), ("lie_ratio", 2500), ("saturated", 1)]
    )
    def test_observed(self, dev, on, name, value):
        """Whoever reports sees what is, and takes no strike; the driver's readings are told of, one by one."""
        told = []
        dev.on_fault(told.append)
        fill(dev)
        truth = dev.observe()
        dev.faults[name].set(probability=100, value=value, times=3)
        assert dev.observe() == truth and dev.faults[name].struck == 0
        before = dev.observe().events
        for _ in range(3 if on else 0):
            with contextlib.suppress(NoAnswer):
                _ = dev.stats
        assert dev.observe().events - before == (3 if on else 0)
        wait_until(lambda: len(told) == dev.faults[name].struck, "the strikes are told")
        assert {strike.name for strike in told} <= {name}

    def test_observed_when_gone(self, dev):
        fill(dev)
        truth = dev.observe()
        dev.remove()
        with pytest.raises(DeviceGone):
            _ = dev.stats
        assert dev.observe() == dataclasses.replace(truth, events=truth.events + 1)


class TestAttributes:
    """The rules of lib/fault-inject.c."""

    def strikes(self, dev: Device, **attributes) -> list[int]:
        """The stores, of PAGES, that a fault strikes."""
        dev.discard(0, PAGES * PAGE)
        dev.faults["store"].set(**{**vars_of(Attributes()), "probability": 100.0, **attributes})
        fill(dev)
        return sorted(lost(dev))

    def test_off_at_first(self, dev):
        assert {dev.faults[name].attributes for name in NAMES} == {Attributes()}

    def test_interval(self, dev):
        """Every n-th time."""
        assert self.strikes(dev, interval=10) == list(range(9, PAGES, 10))

    def test_times(self, dev):
        assert self.strikes(dev, times=3) == [0, 1, 2]
        assert dev.faults["store"].attributes.times == 0
        assert self.strikes(dev, times=0) == []

    def test_space(self, dev):
        """A budget is used up first: should_fail_ex() takes from it while it is over the size."""
        assert self.strikes(dev, space=10 * PAGE, times=1) == [9]
        assert self.strikes(dev, space=10 * PAGE + 1, times=1) == [10]

    def test_probability(self, dev):
        few, many = (len(self.strikes(dev, probability=p)) for p in (1, 50))
        assert 0 <= few < 15 < 70 < many < 130

    def test_seed(self, dev):
        """The same seed, the same pages; another one, others."""
        first, again, other = (self.strikes(dev, probability=10, seed=seed) for seed in (1, 1, 2))
        assert first == again != other

    def test_faults_of_one_seed(self, dev):
        """Each strikes pages of its own: some have both strikes, as chance has it."""
        for name in ("corrupt", "poison"):
            dev.faults[name].set(probability=30, seed=7)
        struck: dict[str, set[int]] = {"corrupt": set(), "poison": set()}
        told = []
        dev.on_fault(lambda strike: (struck[strike.name].add(strike.dpa), told.append(strike)))
        fill(dev)
        wait_until(lambda: len(told) == dev.stats.events, "the strikes are told")
        both = struck["corrupt"] & struck["poison"]
        assert 0 < len(both) < min(map(len, struck.values())) / 2

    def test_of_the_device(self, dev, tmp_path):
        """A fault that one process sets strikes in all, and stays when that one goes."""
        path = tmp_path / "device"
        with Device("1M", "1M", path=path) as one:
            with Device.open(path) as other:
                other.faults["store"].set(probability=100)
            assert one.faults["store"].attributes.probability == 100
            one.write(0, content(0))
            assert one.stats.dropped_writes == 1

    @pytest.mark.parametrize(
        "bad, named",
        [
            ({"probability": 100.1}, "probability 100.1"),
            ({"probability": -1}, "probability -1"),
            ({"probability": 1e-12}, "probability 1e-12: below the least, 1e-07 percent"),
            ({"probability": float("nan")}, "probability nan"),
            ({"probability": "5"}, "probability '5'"),
            ({"times": -2}, "times -2"),
            ({"times": 1.5}, "times 1.5"),
            ({"interval": -1}, "interval -1"),
            ({"space": 2**64}, "space 18446744073709551616"),
            ({"value": 1}, "value 1"),
            ({"nonsense": 1}, "'nonsense'"),
        ],
        ids=str,
    )
    def test_refused(self, dev, bad, named):
        dev.faults["store"].set(probability=7, times=5)
        before = dev.faults["store"].attributes
        with pytest.raises(InvalidArgument, match=named):
            dev.faults["store"].set(**bad)
        assert dev.faults["store"].attributes == before

    def test_unknown(self, dev):
        with pytest.raises(UnknownFault, match="no fault 'lost'; there are store, .*lie_ratio"):
            dev.faults["lost"]
        with pytest.raises(KeyError):
            dev.faults["lost"]
        assert "lost" not in dev.faults and "lost_irq" in dev.faults
        assert tuple(dev.faults) == NAMES and len(dev.faults) == len(NAMES)

    def test_effect_is_told(self, dev):
        assert all(fault.effect and not fault.effect.endswith(".") for fault in dev.faults.values())


def vars_of(attributes: Attributes) -> dict:
    return {name: getattr(attributes, name) for name in ATTRIBUTES}


class TestValue:
    """What a fault does by an amount varies as it is told; seen by registers that lie by it."""

    DRAWN = 4000

    def draw(self, dev: Device, **attributes) -> list[float]:
        """Values in parts of their mean."""
        dev.faults["lie_remaining"].off()
        remaining = dev.stats.remaining
        dev.faults["lie_remaining"].set(probability=100, value=1000, **attributes)
        return sorted(dev.stats.remaining / remaining for _ in range(self.DRAWN))

    # Of the distributions themselves: the share of what is drawn that is larger.
    @pytest.mark.parametrize(
        "distribution, shares",
        [
            ("constant", {0.999: 1, 1.001: 0}),
            ("uniform", {0.5: 0.75, 1: 0.5, 1.5: 0.25, 2.001: 0}),
            ("exponential", {0.1: 0.9048, 1: 0.3679, 2: 0.1353, 3: 0.0498}),
            ("pareto", {0.33: 1, 0.5: 0.5443, 1: 0.1925, 3: 0.0370, 10: 0.0061}),
        ],
    )
    def test_distribution(self, dev, distribution, shares):
        drawn = self.draw(dev, distribution=distribution)
        for value, share in shares.items():
            # Four deviations of what such a sample has, and the hundredth that the curve is off.
            allowed = 4 * (share * (1 - share) / self.DRAWN) ** 0.5 + 0.01 * share
            assert abs(sum(other > value for other in drawn) / self.DRAWN - share) <= allowed, value

    def test_same_seed(self, dev):
        same = [self.draw(dev, distribution="pareto", seed=seed)[-5:] for seed in (3, 3, 4)]
        assert same[0] == same[1] != same[2]

    def test_cut_off(self, dev):
        """By the largest value that the fault takes."""
        dev.faults["ratio"].set(probability=100, value=4096, distribution="exponential")
        fill(dev)
        assert lost(dev) == set()


class TestWho:
    """A fault with a task filter strikes marked processes, and one that is not verbose tells nobody."""

    def test_task_filter(self, dev):
        dev.faults["store"].set(probability=100, task_filter=True)
        dev.write(0, content(0))
        assert dev.stats.dropped_writes == 0
        dev.make_it_fail(os.getpid())
        assert [client.make_it_fail for client in dev.clients()] == [True]
        dev.write(0, content(0))
        assert dev.stats.dropped_writes == 1
        dev.make_it_fail(os.getpid(), False)
        dev.write(0, content(0))
        assert dev.stats.dropped_writes == 1

    def test_two_processes(self, tmp_path, start_child):
        """Each of them writes to the same device; the marked one's writes are dropped, the other's are not."""
        with Device("4M", "2M", path=tmp_path / "device") as dev:
            child = start_child(
                "import sys; from cram_emu import Device\n"
                f"with Device.open({str(tmp_path / 'device')!r}) as dev:\n"
                "    print(flush=True)\n"
                "    for page in map(int, sys.stdin): dev.write(page * 4096, bytes(range(256)) * 16); print(flush=True)",
            )
            child.stdout.readline()
            dev.make_it_fail(child.pid)
            dev.faults["store"].set(probability=100, task_filter=True)
            child.stdin.write("1\n")
            child.stdin.flush()
            child.stdout.readline()
            dev.write(2 * PAGE, content(2))
            assert dev.page(PAGE).state == "poison" and dev.page(2 * PAGE).state == "stored"
            child.communicate()
            assert child.returncode == 0

    @pytest.mark.parametrize("pid", [1, 0, -1, 2**32, "x"])
    def test_not_a_client(self, dev, pid):
        with pytest.raises(InvalidArgument, match=f"process {pid!r}"):
            dev.make_it_fail(pid)

    @pytest.mark.parametrize("verbose", [0, 1, 2])
    def test_verbose(self, dev, verbose):
        dev.faults["store"].set(probability=100, verbose=verbose)
        dev.write(0, content(0))
        assert (dev.faults["store"].struck, dev.faults["store"].attributes.verbose) == (1, verbose)
        assert dev.stats.events == (1 if verbose else 0)


class TestParse:
    def test_words(self):
        assert parse("poison") == ("poison", {"probability": 100.0})
        assert parse("poison:probability=0.01,times=0x10") == ("poison", {"probability": 0.01, "times": 16})
        assert parse("poison:value=1M,space=2K") == ("poison", {"probability": 100.0, "value": 1 << 20, "space": 2048})
        assert parse("ratio:distribution=pareto,task-filter=Y") == (
            "ratio", {"probability": 100.0, "distribution": "pareto", "task_filter": True}
        )  # fmt: skip

    def test_no_amount(self):
        """Of a fault that is off, or whose 0 means something, no value is asked for."""
        off = ("late_irq:probability=0", "capacity:times=0")
        for text in (*off, "ratio", "stale", "saturated", "lie_ratio", "capacity:value=1"):
            assert parse(text)[0] == text.partition(":")[0]

    def test_sizes(self):
        """A hexadecimal number's last digit is no unit."""
        words = ("64M", "0x10", "0xF", "0XB", "12")
        assert [parse(f"store:space={word}")[1]["space"] for word in words] == [64 << 20, 16, 15, 11, 12]

    @pytest.mark.parametrize(
        "text, named",
        [("", "no fault ''"), ("x:times=1", "no fault 'x'"), ("store:times", "'times'"), ("store:times=x", "times 'x'"),
         ("store:x=1", "'x'"), ("store:probability=much", "probability 'much'"), ("store:,", "''"),
         ("late_irq", "late_irq: does nothing without value=N, in ms"), ("read_delay:value=0,times=2", "N, in us"),
         ("write_delay:probability=1", "N, in us"), ("capacity:times=1", "in bytes"), ("storm_irq", "in interrupts")],
    )  # fmt: skip
    def test_refused(self, text, named):
        with pytest.raises(InvalidArgument, match=named):
            parse(text)

    @given(st.text())
    def test_anything(self, text):
        """Whatever is written, it is taken or refused."""
        try:
            name, attributes = parse(text)
        except InvalidArgument:
            return
        assert name in NAMES and set(attributes) <= set(ATTRIBUTES)


class TestAllAtOnce:
    """Never silently wrong, whatever strikes."""

    MIX = (
        "store", "corrupt", "poison", "ratio", "capacity", "trim", "lost_irq", "late_irq", "spurious_irq", "storm_irq", "stuck_irq",
        "stale", "saturated", "lie_remaining", "lie_ratio",
    )  # fmt: skip

    def mix(self, dev: Device) -> None:
        for name in self.MIX:
            dev.faults[name].set(probability=3, value=4096 if name == "capacity" else 0)

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 2**32))
    def test_pages(self, seed):
        chance = random.Random(seed)
        with Device("1M", "512K") as dev:
            self.mix(dev)
            model: dict[int, bytes] = {}
            for _ in range(600):
                page = chance.randrange(dev.params.advertised // PAGE)
                match chance.randrange(4):
                    case 0:
                        dev.discard(page * PAGE, PAGE)
                        model.pop(page, None)
                    case 1 | 2:
                        model[page] = noise(chance.randrange(1 << 30))
                        dev.write(page * PAGE, model[page])
                    case 3:
                        self.check(dev, page, model)
            for page in range(dev.params.advertised // PAGE):
                self.check(dev, page, model)
            dev.rebuild()
            for page in range(dev.params.advertised // PAGE):
                self.check(dev, page, model)

    def check(self, dev: Device, page: int, model: dict[int, bytes]) -> None:
        try:
            assert dev.read(page * PAGE, PAGE) == model.get(page, bytes(PAGE))
        except PoisonError:
            assert page in model, "poison where nothing was written"

    @pytest.mark.usefixtures("skip_unless_userfaultfd")
    def test_mapping(self):
        """The same through a mapping whose window is far too small; the faults are the device's, not the kernel's."""
        with Device("4M", "4M") as dev:
            self.mix(dev)
            with dev.map(window="64K", writeback=0) as mapping:
                for page in range(1000):
                    mapping[page * PAGE : page * PAGE + 8] = page.to_bytes(8, "little")
            right = 0
            for page in range(1000):
                try:
                    assert dev.read(page * PAGE, 8) == page.to_bytes(8, "little")
                    right += 1
                except PoisonError:
                    pass
            stats = dev.stats
            assert 800 < right < 1000
            assert stats.poisoned > 0

