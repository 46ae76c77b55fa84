"""Any sequence of everything, against a dictionary.

The law: every page holds the bytes that were last written to it, or is poison; every dropped write is
counted; used is the sum over the page map. Whether a write is dropped the model foretells by asking a
second device, with room for everything, how many sectors the page takes.
"""

import dataclasses
import tempfile
from pathlib import Path

import hypothesis.stateful as stateful
import pytest
from device_object import DeviceObject
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from samples import LINE, PAGE, entropy

from cram_emu import Device, Mapping, PoisonError, uffd_info
from cram_emu.errors import Busy

ALL_LINES = 2**64 - 1
# All that happens, happens in so many pages, so that they meet.
USED_PAGES = 40

pages = st.integers(0, USED_PAGES - 1)
lines = st.integers(0, 63)
contents = st.builds(
    lambda kind, seed: {
        "zero": bytes(PAGE),
        "same": seed.to_bytes(8, "little") * (PAGE // 8),
    }.get(kind)
    or entropy(seed, int(kind)),
    st.sampled_from(["zero", "same", "1", "700", "2000", "3500", "4096", "4096"]),
    st.integers(1, 10**6),
)


def deliveries() -> list[str]:
    """Those that this host permits."""
    info = uffd_info()
    offered = {"inline": info.available == 0, "monitor": info.kernel_faults}
    return [name for name, here in offered.items() if here]


@dataclasses.dataclass
class Page:
    """What a page must be. A line that is poisoned has no bytes; the others do."""

    data: bytearray = dataclasses.field(default_factory=lambda: bytearray(PAGE))
    poisoned: int = 0

    def drop(self) -> None:
        self.data[:] = bytes(PAGE)
        self.poisoned = ALL_LINES


class DeviceMachine(stateful.RuleBasedStateMachine):
    device_class = Device

    @initialize(
        real=st.sampled_from([4, 8, 16, 20, 40]),
        sector=st.sampled_from([64, 64, 256, 1024]),
        codec=st.sampled_from(["lz4", "lz4", "zstd", "none"]),
        block=st.sampled_from([4096, 1024]),
        limit=st.sampled_from([1, 5, 1024]),
    )
    def create(self, real: int, sector: int, codec: str, block: int, limit: int):
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm")
        self.path = Path(self.folder.name) / "device"
        kind = {"sector": sector, "codec": codec, "block": block, "signal": 0}
        self.dev = self.device_class("1M", f"{real}K", path=self.path, poison_limit=limit, **kind)
        self.roomy = Device("1M", "1M", **kind)
        self.mapping: Mapping | None = None
        self.first = 0
        self.limit = limit
        self.model = [Page() for _ in range(USED_PAGES)]
        #: Pages with a frame that may be newer than the media: whether they fit is not known yet.
        self.dirty: set[int] = set()
        self.drops = 0
        self.errors = 0

    def teardown(self) -> None:
        if not hasattr(self, "dev"):
            return
        self.close_mapping()
        self.everything_right()
        self.dev.discard(0, "1M")
        assert (self.dev.stats.used, self.dev.stats.poisoned) == (0, 0)
        self.dev.close()
        self.roomy.close()
        self.folder.cleanup()

    # -- what the model knows

    def fits(self, page: int, data: bytes) -> bool:
        """Is there room for it? Of a page without a frame."""
        self.roomy.write(0, data)
        need = self.roomy.page(0).sectors
        free = self.dev.stats.remaining // self.dev.params.sector
        return need <= self.dev.page(page * PAGE).sectors + free

    def resident(self, page: int) -> bool:
        return self.dev.page(page * PAGE).resident

    def stored(self, page: int, data: bytes, fits: bool) -> None:
        if fits:
            self.model[page] = Page(bytearray(data))
        else:
            self.model[page].drop()
            self.drops += 1

    def settle(self) -> None:
        """Learns which dirty frames have gone to the media meanwhile, and which did not fit."""
        for page in list(self.dirty):
            info = self.dev.page(page * PAGE)
            if info.state == "poison":
                self.model[page].drop()
                self.drops += 1
            if info.state == "poison" or not info.dirty:
                self.dirty.discard(page)

    # -- rules

    @rule(page=pages, several=st.lists(contents, min_size=1, max_size=6))
    def write(self, page: int, several: list[bytes]):
        for place, data in enumerate(several[: USED_PAGES - page], page):
            if self.resident(place):
                self.dev.write(place * PAGE, data)
                self.model[place] = Page(bytearray(data))
                self.dirty.add(place)
            else:
                fits = self.fits(place, data)
                self.dev.write(place * PAGE, data)
                self.stored(place, data, fits)

    @rule(page=pages, count=st.integers(0, 6))
    def discard(self, page: int, count: int):
        count = min(count, USED_PAGES - page)
        self.dev.discard(page * PAGE, count * PAGE)
        for gone in range(page, page + count):
            self.model[gone] = Page()
            self.dirty.discard(gone)

    @rule(page=pages, line=lines)
    def inject(self, page: int, line: int):
        full = self.dev.stats.poison_records >= self.limit
        dpa = page * PAGE + line * LINE
        # A frame that is newer goes to the media first, and may take a record by being dropped.
        unsure = page in self.dirty
        try:
            self.dev.poison.inject(dpa)
        except Busy:
            self.settle()
            assert full or unsure
            assert not self.model[page].poisoned >> line & 1
        else:
            self.settle()
            assert not full or unsure or self.dev.page(dpa).poisoned >> line & 1
            self.model[page].poisoned |= 1 << line

    @rule(page=pages, line=lines)
    def clear(self, page: int, line: int):
        model, unsure, resident = self.model[page], page in self.dirty, self.resident(page)
        whole_lost = self.dev.page(page * PAGE).state == "poison"
        data = bytearray(model.data)
        data[line * LINE : (line + 1) * LINE] = bytes(LINE)
        fits = whole_lost or resident or self.fits(page, bytes(data))
        self.dev.poison.clear(page * PAGE + line * LINE)
        if self.dev.page(page * PAGE).state == "poison" and not whole_lost:
            assert unsure or resident or not fits
            self.drops += 1
            self.dirty.discard(page)
            model.drop()
            # The frame was dropped before its line was cleared, or the cleared page itself.
            model.poisoned = self.dev.page(page * PAGE).poisoned
            assert model.poisoned in (ALL_LINES, ALL_LINES & ~(1 << line))
            return
        assert fits
        model.data[:] = data
        model.poisoned &= ~(1 << line)

    @rule()
    def rebuild(self):
        self.dev.rebuild()

    @rule()
    def reopen(self):
        self.close_mapping()
        before = self.dev.stats
        self.dev.close()
        self.dev = self.device_class.open(self.path)
        assert self.dev.stats == before

    @rule(page=pages, at=st.integers(0, PAGE - 1), bit=st.integers(0, 7))
    def damage(self, page: int, at: int, bit: int):
        info = self.dev.page(page * PAGE)
        if info.sectors == 0 or info.resident or info.dirty:
            return
        there = DeviceObject(self.dev.fileno())
        at %= info.length
        sector = there.chain(page)[at // there.sector]
        there.flip(there.sector_at(sector) + at % there.sector, bit)
        with pytest.raises(PoisonError):
            self.dev.read(page * PAGE, PAGE)
        self.errors += 1
        self.model[page].drop()

    @precondition(lambda self: self.mapping is None and deliveries())
    @rule(
        first=st.integers(0, USED_PAGES - 1),
        delivery=st.sampled_from(deliveries() or ["none"]),
        length=st.sampled_from([4, 20, 40, 200]),
    )
    def map(self, first: int, delivery: str, length: int):
        options = {"window": "64K", "delivery": delivery, "writeback": 0}
        self.first = first
        self.mapping = self.dev.map(first * PAGE, length * PAGE, **options)

    @precondition(lambda self: self.mapping is not None)
    @rule()
    def unmap(self):
        self.close_mapping()

    def close_mapping(self) -> None:
        if self.mapping is not None:
            self.mapping.close()
            self.mapping = None
            self.settle()

    def mapped(self, page: int) -> bool:
        """May the page be touched through the mapping? Else its SIGBUS would end the test."""
        return (
            self.mapping is not None
            and 0 <= page - self.first < len(self.mapping) // PAGE
            and page < USED_PAGES
            and self.model[page].poisoned == 0
        )

    @rule(page=pages, at=st.integers(0, PAGE - 1), data=st.binary(min_size=1, max_size=200))
    def store(self, page: int, at: int, data: bytes):
        if not self.mapped(page):
            return
        data = data[: PAGE - at]
        start = (page - self.first) * PAGE + at
        with memoryview(self.mapping) as memory:
            memory[start : start + len(data)] = data
        self.model[page].data[at : at + len(data)] = data
        self.dirty.add(page)

    @rule(page=pages, several=st.lists(contents, min_size=1, max_size=6))
    def store_pages(self, page: int, several: list[bytes]):
        for place, data in enumerate(several, page):
            if not self.mapped(place):
                return
            start = (place - self.first) * PAGE
            with memoryview(self.mapping) as memory:
                memory[start : start + PAGE] = data
            self.model[place].data[:] = data
            self.dirty.add(place)
            self.settle()

    @rule(page=pages)
    def load(self, page: int):
        if not self.mapped(page):
            return
        start = (page - self.first) * PAGE
        with memoryview(self.mapping) as memory:
            assert bytes(memory[start : start + PAGE]) == self.model[page].data

    @precondition(lambda self: self.mapping is not None)
    @rule(page=pages, count=st.integers(0, 10))
    def flush(self, page: int, count: int):
        start = min(page * PAGE, len(self.mapping))
        length = min(count * PAGE, len(self.mapping) - start)
        self.mapping.flush(start, length)
        self.settle()
        flushed = range(self.first + start // PAGE, self.first + (start + length) // PAGE)
        assert not self.dirty & set(flushed)

    @rule()
    def flush_all(self):
        self.dev.flush()
        self.settle()
        assert not self.dirty

    # -- the law

    @invariant()
    def everything_right(self):
        if not hasattr(self, "dev"):
            return
        self.settle()
        for page, model in enumerate(self.model):
            dpa = page * PAGE
            assert self.dev.page(dpa).poisoned == model.poisoned, page
            if model.poisoned == 0:
                assert self.dev.read(dpa, PAGE) == model.data, page
                continue
            for line in range(64):
                if model.poisoned >> line & 1:
                    continue
                at = line * LINE
                assert self.dev.read(dpa + at, LINE) == model.data[at : at + LINE]
            with pytest.raises(PoisonError) as caught:
                self.dev.read(dpa, PAGE)
            first = (model.poisoned & -model.poisoned).bit_length() - 1
            assert caught.value.address == dpa + first * LINE

    @invariant()
    def everything_counted(self):
        if not hasattr(self, "dev"):
            return
        stats = self.dev.stats
        infos = [self.dev.page(page * PAGE) for page in range(256)]
        sectors = sum(info.sectors for info in infos)
        assert stats.used == sectors * self.dev.params.sector <= stats.peak <= stats.real
        assert stats.remaining == stats.real - stats.used
        assert stats.dropped_writes == self.drops
        assert stats.media_errors == self.errors
        assert stats.lost_pages == stats.refused_writes == 0
        assert stats.poisoned == sum(page.poisoned != 0 for page in self.model)
        assert 0 <= stats.lthresh - stats.hthresh <= 1
        # Of a run of writes the next frames count as dirty too.
        assert stats.dirty_frames == sum(info.dirty for info in infos) >= len(self.dirty)
        DeviceObject(self.dev.fileno()).check()


TestDevice = DeviceMachine.TestCase
TestDevice.settings = settings(max_examples=60, stateful_step_count=40)


class Forgetful(Device):
    """Loses every other write, silently."""

    def write(self, dpa: int, data) -> None:
        if data[0] % 2:
            super().write(dpa, data)


class ForgetfulMachine(DeviceMachine):
    device_class = Forgetful


class Uncounted(Device):
    """Drops a write on purpose, and so without counting it."""

    def write(self, dpa: int, data) -> None:
        super().write(dpa, data)
        if data[0] % 2:
            for line in range(64):
                self.poison.inject(dpa + line * LINE)


class UncountedMachine(DeviceMachine):
    device_class = Uncounted


@pytest.mark.parametrize("machine", [ForgetfulMachine, UncountedMachine])
def test_can_fail(machine: type[DeviceMachine]):
    """A device that breaks the law is found out."""
    tries = settings(max_examples=200, stateful_step_count=20, phases=[Phase.generate])
    with pytest.raises(Exception) as caught:
        stateful.run_state_machine_as_test(machine, settings=tries)
    assert isinstance(caught.value, AssertionError | Busy)
