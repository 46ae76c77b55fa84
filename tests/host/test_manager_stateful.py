"""Any sequence of everything that can happen to managed memory, against a dictionary.

The law: every page holds the bytes that were last written to it, or is poison that was injected or that a device has
counted as a dropped write; what is counted is what is there; in the end nothing is left anywhere. What a background thread
would do, rules do, so that a failure can be repeated.
"""

import os

import hypothesis.stateful as stateful
import pytest
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from managed import check_sums, frames_of
from samples import PAGE, entropy, noise
from support import wait_until
from test_stateful import deliveries

from cram_emu import Device, PoisonError
from cram_emu.errors import NoMemory, NoSpace
from cram_emu.host import Driver, ManagedMemory, Zswap
from cram_emu.host.reclaim import reclaim, shrink

PAGES = 24
#: The lower half of a device is for nodes, and has room for both memories; somebody else writes to the upper.
OTHERS = 128 * PAGE

pages = st.integers(0, PAGES - 1)
memories = st.integers(0, 1)
contents = st.builds(
    lambda kind, seed: {"zero": bytes(PAGE), "same": seed.to_bytes(8, "little") * (PAGE // 8)}.get(kind)
    or entropy(seed, int(kind)),
    st.sampled_from(["zero", "same", "1", "700", "2000", "3500", "4096"]),
    st.integers(1, 10**6),
)
drivers = st.sampled_from(
    [
        Driver(),
        Driver(live_registers=False),
        Driver(trim_buffer=3),
        Driver(page_allocated=lambda node, pages: [-6 if page % 3 == 0 else 0 for page in pages]),
        Driver(page_freed=lambda node, pages: None, promoted=lambda node, page: None, batched=False),
        Driver(safe=lambda node, registers: True),
    ]
)
CHANGES = {
    "enabled": [False, True, True],
    "max_pool_percent": [0, 1, 20, 100],
    "accept_threshold_percent": [0, 50, 90, 100],
    "direct_limit": ["none", "page", "size"],
    "max_direct_percent": [0, 0, 1],
    "charging": ["page", "size", "fuzzy"],
    "shrinker_enabled": [False, True],
    "ram": [1 << 20, 4 << 20],
}


class ManagerMachine(stateful.RuleBasedStateMachine):
    memory_class = ManagedMemory

    @initialize(
        delivery=st.sampled_from(deliveries() or ["none"]),
        swap=st.sampled_from([0, 8, 200]),
        chain=st.sampled_from([4, 8, 16]),
        compressor=st.sampled_from(["lz4", "lz4", "zstd"]),
        nodes=st.integers(1, 3),
    )
    def create(self, delivery: str, swap: int, chain: int, compressor: str, nodes: int):
        self.delivery = delivery
        # Inline, whoever touches a page that a device has dropped dies: there devices have room for all.
        real = ["64K", "96K", "1M"] if delivery == "monitor" else ["1M"] * 3
        # The second one warns nobody.
        self.devices = [Device("1M", real[0]), Device("1M", real[1], lthresh=None, hthresh=None), Device("1M", real[2])]
        self.manager = Zswap(ram="4M", swap=swap * PAGE, chain=chain, compressor=compressor, query_interval=0)
        self.manager._reclaimer.stop()
        for dev in self.devices[:nodes]:
            self.manager.add_node(dev)
        self.groups = [self.manager.memcg(), self.manager.memcg(self.manager.memcg())]
        self.scratch = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR, 0o600)
        self.memories = [self.open_memory(number) for number in range(2)]
        self.model: list[dict[int, bytes]] = [{}, {}]
        self.injected: set[tuple[int, int]] = set()
        self.dropped: set[tuple[int, int]] = set()
        #: Pages that were found dropped, and dropped writes that are not ours.
        self.drops = self.others = 0
        for number in range(2):
            self.fill(number)

    def fill(self, number: int) -> None:
        for page in range(PAGES):
            self.write(number, page, 0, entropy(100 * number + page + 1, 1 + page * 150))
        self.memories[number].reclaim(1000)

    def open_memory(self, number: int) -> ManagedMemory:
        return self.memory_class(PAGES * PAGE, "64K", self.manager, group=self.groups[number], delivery=self.delivery)

    def teardown(self) -> None:
        if not hasattr(self, "dropped"):
            return
        try:
            self.empty()
        finally:
            self.manager.close()
            for dev in self.devices:
                dev.close()
            os.close(self.scratch)

    def empty(self) -> None:
        for number in range(2):
            for page in range(PAGES):
                self.load(number, page)
        for memory in self.memories:
            memory.discard(0, PAGES * PAGE)
        for node in self.manager.nodes:
            node.flush()
            assert node.stats.stored == 0
        for memory in self.memories:
            memory.close()
        stats = self.manager.stats
        assert (stats.stored_pages, stats.pool_total_size, stats.swap_used, stats.stored_zero_pages) == (0, 0, 0, 0)
        assert all(group.current == 0 for group in (self.manager.root, *self.groups))
        for dev in self.devices:
            dev.discard(OTHERS, 1 << 19)
            assert (dev.stats.used, dev.stats.poisoned) == (0, 0)

    # -- what can be known of a page without a load

    def node_device(self, number: int) -> Device:
        return next(node.device for node in self.manager.nodes if node.number == number)

    def is_poison(self, number: int, page: int) -> bool:
        place = self.memories[number].place(page * PAGE)
        if place.where == "direct":
            return self.node_device(place.node).page(place.dpa).poisoned != 0
        return place.where == "poison"

    def settle(self) -> None:
        """Learns which pages a device has dropped meanwhile."""
        for number in range(2):
            for page in range(PAGES):
                if not self.is_poison(number, page):
                    assert (number, page) not in self.injected | self.dropped
                elif (number, page) not in self.injected | self.dropped:
                    self.dropped.add((number, page))
                    self.drops += 1

    def lost(self, number: int, page: int) -> bool:
        return (number, page) in self.injected | self.dropped

    def expected(self, number: int, page: int) -> bytes:
        return self.model[number].get(page, bytes(PAGE))

    def transfer(self, number: int, page: int, at: int, length: int, data: bytes | None) -> bytes | None:
        """Reads or writes, by system calls where they are served; None: poison."""
        memory, start = self.memories[number], page * PAGE + at
        if self.delivery == "inline":
            if self.lost(number, page):
                return None
            if data is not None:
                memory[start : start + length] = data
            return memory[start : start + length]
        try:
            with memoryview(memory) as view:
                if data is None:
                    os.pwrite(self.scratch, view[start : start + length], 0)
                    return os.pread(self.scratch, length, 0)
                os.pwrite(self.scratch, data, 0)
                os.preadv(self.scratch, [view[start : start + length]], 0)
                return data
        except OSError:
            return None

    # -- rules

    def load(self, number: int, page: int) -> None:
        found = self.transfer(number, page, 0, PAGE, None)
        self.settle()
        if found is None:
            assert self.lost(number, page)
        else:
            assert found == self.expected(number, page), (number, page)

    def write(self, number: int, page: int, at: int, data: bytes) -> None:
        if self.transfer(number, page, at, len(data), data) is None:
            self.settle()
            assert self.lost(number, page)
            return
        before = self.expected(number, page)
        self.model[number][page] = before[:at] + data + before[at + len(data) :]

    @rule(number=memories, page=pages, several=st.lists(contents, min_size=1, max_size=24), most=st.sampled_from([0, 5, 1000]))
    def store(self, number: int, page: int, several: list[bytes], most: int):
        for place, data in enumerate(several[: PAGES - page], page):
            self.write(number, place, 0, data)
        self.memories[number].reclaim(most)

    @rule(number=memories, page=pages, at=st.integers(0, PAGE - 1), data=st.binary(min_size=1, max_size=100))
    def change(self, number: int, page: int, at: int, data: bytes):
        self.write(number, page, at, data[: PAGE - at])

    @rule(number=memories, page=pages, count=st.integers(1, 12))
    def read(self, number: int, page: int, count: int):
        for place in range(page, min(page + count, PAGES)):
            self.load(number, place)

    @rule(number=memories, page=pages, count=st.integers(0, 4))
    def discard(self, number: int, page: int, count: int):
        count = min(count, PAGES - page)
        self.settle()
        self.memories[number].discard(page * PAGE, count * PAGE)
        for gone in range(page, page + count):
            self.model[number].pop(gone, None)
            self.injected.discard((number, gone))
            self.dropped.discard((number, gone))

    @rule(number=memories, count=st.sampled_from([1, 5, 1000]))
    def reclaim(self, number: int, count: int):
        self.memories[number].reclaim(count)

    @rule(number=memories, count=st.sampled_from([1, 5, 1000]))
    def shrink(self, number: int, count: int):
        assert self.memories[number].shrink(count) <= count

    @rule()
    def compact(self):
        before = self.manager.stats.pool_total_size
        assert before - self.manager.compact() * PAGE == self.manager.stats.pool_total_size

    @rule()
    def background(self):
        reclaim(self.manager)
        shrink(self.manager)
        self.manager._reclaimer.tell()

    @rule(name=st.sampled_from(sorted(CHANGES)), choice=st.integers(0, 3))
    def set(self, name: str, choice: int):
        value = CHANGES[name][choice % len(CHANGES[name])]
        setattr(self.manager, name, value)
        assert getattr(self.manager, name) == value

    @rule(number=memories, limit=st.sampled_from([None, "32K", "100K"]), zswap=st.sampled_from([None, 0, "8K"]), on=st.booleans())
    def limit(self, number: int, limit: str | None, zswap: str | int | None, on: bool):
        self.groups[number].max = limit
        self.groups[number].zswap_max = zswap
        self.groups[number].zswap_writeback = on

    def any_direct(self, choice: int) -> tuple[int, int] | None:
        """A page that is on a node."""
        there = [
            (number, page)
            for number in range(2)
            for page in range(PAGES)
            if self.memories[number].place(page * PAGE).where == "direct"
        ]
        return there[choice % len(there)] if there else None

    def poison(self, number: int, page: int, line: int) -> None:
        place = self.memories[number].place(page * PAGE)
        self.node_device(place.node).poison.inject(place.dpa + line * 64)

    @rule(choice=st.integers(0, 1000), line=st.integers(0, 63))
    def inject(self, choice: int, line: int):
        self.settle()
        if (victim := self.any_direct(choice)) is not None:
            self.poison(*victim, line)
            if victim not in self.dropped:
                self.injected.add(victim)

    def befall(self, which: int, what: str) -> None:
        """Something befalls a device as a whole: our pages there are poison, and no other page is."""
        dev = self.devices[which]
        self.settle()
        direct = ((number, page, self.memories[number].place(page * PAGE)) for number in range(2) for page in range(PAGES))
        there = {
            (number, page)
            for number, page, place in direct
            if place.where == "direct" and self.node_device(place.node) is dev
        }
        getattr(dev, what)()
        self.injected |= there - self.dropped

    @rule(which=st.integers(0, 2), what=st.sampled_from(["reset", "power_cycle"]))
    def restart(self, which: int, what: str):
        self.befall(which, what)

    @rule(which=st.integers(0, 2), page=pages, tended=st.booleans())
    def pull_out(self, which: int, page: int, tended: bool):
        """A device goes for good, is missed for a while, and is replaced by a new one, which is no node yet."""
        dev = self.devices[which]
        dropped = dev.stats.dropped_writes
        self.befall(which, "remove")
        if tended:
            self.background()
        for number in range(2):
            self.memories[number].reclaim(1000)
            self.load(number, page)
        for node in self.manager.nodes:
            if node.device is dev:
                self.manager.remove_node(node)
        dev.close()
        self.devices[which] = Device("1M", "1M", lthresh=None, hthresh=None)
        self.others -= dropped

    @rule(which=st.integers(0, 2), driver=drivers)
    def add_node(self, which: int, driver: Driver):
        if all(node.device is not self.devices[which] for node in self.manager.nodes):
            self.manager.add_node(self.devices[which], driver)

    @precondition(lambda self: self.manager.nodes)
    @rule(which=st.integers(0, 2))
    def remove_node(self, which: int):
        node = self.manager.nodes[which % len(self.manager.nodes)]
        self.settle()
        try:
            self.manager.remove_node(node)
        except NoSpace:
            assert node in self.manager.nodes
        else:
            dev = node.device
            assert sum(dev.page(at).sectors for at in range(0, OTHERS, PAGE)) == 0

    @precondition(lambda self: self.manager.nodes)
    @rule(which=st.integers(0, 2), what=st.sampled_from(["flush", "refill", "query"]))
    def tend(self, which: int, what: str):
        getattr(self.manager.nodes[which % len(self.manager.nodes)], what)()

    @rule(which=st.integers(0, 2), no_alloc=st.booleans(), pressure=st.sampled_from([0, 0, 900, 1000]))
    def warn(self, which: int, no_alloc: bool, pressure: int):
        self.devices[which].no_alloc = no_alloc
        self.devices[which].pressure = pressure

    @rule(which=st.integers(0, 2), count=st.integers(1, 40))
    def occupy(self, which: int, count: int):
        """Somebody else writes to the device."""
        dev = self.devices[which]
        if self.delivery == "inline":
            count = min(count, 100)
        before = dev.stats.dropped_writes
        dev.write(OTHERS, noise(count, count * PAGE))
        self.others += dev.stats.dropped_writes - before

    @rule(which=st.integers(0, 2))
    def vacate(self, which: int):
        self.devices[which].discard(OTHERS, 1 << 19)

    @rule(number=memories, page=pages, count=st.integers(1, 4))
    def pin(self, number: int, page: int, count: int):
        count = min(count, PAGES - page)
        memory = self.memories[number]
        try:
            with memory.pin(page * PAGE, count * PAGE):
                memory.reclaim(1000)
                assert all(memory.place(place * PAGE).where == "frame" for place in range(page, page + count))
        except PoisonError:
            self.settle()
            assert any(self.lost(number, place) for place in range(page, page + count))
        except NoMemory:
            pass

    @rule(number=memories)
    def reopen(self, number: int):
        self.settle()
        self.memories[number].close()
        self.memories[number] = self.open_memory(number)
        self.model[number].clear()
        self.injected = {lost for lost in self.injected if lost[0] != number}
        self.dropped = {lost for lost in self.dropped if lost[0] != number}
        self.fill(number)

    # -- the law

    @invariant()
    def everything_right(self):
        if not hasattr(self, "memories"):
            return
        self.settle()
        for number, memory in enumerate(self.memories):
            for page in range(PAGES):
                place = memory.place(page * PAGE)
                expected = self.expected(number, page)
                if place.where == "frame":
                    assert memory[page * PAGE : (page + 1) * PAGE] == expected, (number, page)
                elif place.where in ("zero", "none"):
                    assert expected == bytes(PAGE), (number, page)

    @invariant()
    def everything_counted(self):
        if not hasattr(self, "memories"):
            return
        self.settle()
        for memory in self.memories:
            wait_until(lambda: memory.stats.resident == frames_of(memory), "the end of the last fault")  # noqa: B023
        check_sums(self.manager)
        for memory, group in zip(self.memories, self.groups, strict=True):
            assert group.stats.anon == memory.stats.resident * PAGE
        assert sum(group.stats.zswapped for group in self.groups) == self.manager.stats.stored_pages
        assert sum(dev.stats.dropped_writes for dev in self.devices) == self.drops + self.others


TestManager = ManagerMachine.TestCase
TestManager.settings = settings(max_examples=60, stateful_step_count=40)


class Forgetful(ManagedMemory):
    """Does every other discard, silently."""

    def discard(self, offset: int, length: int) -> None:
        if length // PAGE % 2 == 0:
            super().discard(offset, length)


class ForgetfulMachine(ManagerMachine):
    memory_class = Forgetful


class UncountedMachine(ManagerMachine):
    """Pages become poison, and nobody says so."""

    @rule(choice=st.integers(0, 1000))
    def lose(self, choice: int):
        if (victim := self.any_direct(choice)) is not None:
            self.poison(*victim, 0)


@pytest.mark.parametrize("machine", [ForgetfulMachine, UncountedMachine])
def test_can_fail(machine: type[ManagerMachine]):
    """A manager that breaks the law is found out."""
    tries = settings(max_examples=100, stateful_step_count=40, phases=[Phase.generate])
    with pytest.raises(AssertionError):
        stateful.run_state_machine_as_test(machine, settings=tries)
