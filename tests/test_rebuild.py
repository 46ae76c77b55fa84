"""Damage: media that turns into poison, and everything derived, made anew from the page map.

Both are done to the file of the device from outside; device_object.py knows where things are in it.
"""

import os
import random
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from device_object import DeviceObject, PEAK_AT, STRIPE, STRIPES, STRIPES_AT, USED_AT
from hypothesis import given, settings, strategies as st
from samples import LINE, PAGE, entropy, noise, right_or_poison, run_threads

from cram_emu import Device


class Damaged:
    """A device whose media is full: page 0 in linked sectors, page 1 in a run, page 2 raw."""

    CONTENTS = (entropy(0, 2000), entropy(1, 2000), noise(2))

    def __init__(self) -> None:
        self.device = Device("1M", "16K")
        self.device.write(PAGE, self.CONTENTS[1])
        self.device.write(2 * PAGE, self.CONTENTS[2])
        # Small pages in all of the rest, then holes among them.
        small = range(3, 256)
        for page in small:
            self.device.write(page * PAGE, entropy(page, 8))
        for page in small[::2]:
            self.device.discard(page * PAGE, PAGE)
        self.device.write(0, self.CONTENTS[0])
        self.object = DeviceObject(self.device.fileno())
        self.others = {p: self.device.read(p * PAGE, PAGE) for p in small if self.readable(p)}
        assert [self.object.linked(page) for page in range(3)] == [True, False, False]

    def readable(self, page: int) -> bool:
        return self.device.page(page * PAGE).state == "stored"

    def expect_poison(self, page: int) -> None:
        """One media error, one poisoned page; everything else as it was."""
        before = self.device.stats
        assert right_or_poison(self.device, page * PAGE, self.CONTENTS[page])
        assert right_or_poison(self.device, page * PAGE, self.CONTENTS[page])
        after = self.device.stats
        assert after.media_errors - before.media_errors == 1
        assert after.poisoned - before.poisoned == 1
        assert (page * PAGE, PAGE, "media") in [
            (r.dpa, r.length, r.source) for r in self.device.poison
        ]
        for other in {0, 1, 2} - {page}:
            assert self.device.read(other * PAGE, PAGE) == self.CONTENTS[other]
        for other, data in self.others.items():
            assert self.device.read(other * PAGE, PAGE) == data
        self.device.rebuild()
        self.object.check()


@pytest.fixture
def damaged() -> Iterator[Damaged]:
    damaged = Damaged()
    yield damaged
    damaged.device.close()


class TestDamagedMedia:
    def test_undamaged(self, damaged: Damaged):
        """Undamaged, all of it reads back: what the other tests find is the damage."""
        for page, data in enumerate(damaged.CONTENTS):
            assert damaged.device.read(page * PAGE, PAGE) == data
        assert damaged.device.stats.media_errors == 0

    @pytest.mark.parametrize("page", [0, 1, 2])
    @pytest.mark.parametrize("place", ["first", "boundary", "middle", "last"])
    def test_stored_bytes(self, damaged: Damaged, page: int, place: str):
        """One bit flipped anywhere in a stored form makes its page poison, never other bytes."""
        length = damaged.device.page(page * PAGE).length
        at = {"first": 0, "boundary": 64, "middle": length // 2, "last": length - 1}[place]
        sector = damaged.object.chain(page)[at // 64]
        damaged.object.flip(damaged.object.sector_at(sector) + at % 64, bit=at % 8)
        damaged.expect_poison(page)

    def test_after_the_form(self, damaged: Damaged):
        """What lies behind the form in its last sector means nothing."""
        info = damaged.device.page(PAGE)
        assert info.length % 64
        damaged.object.flip(info.media + info.length)
        assert damaged.device.read(PAGE, PAGE) == damaged.CONTENTS[1]

    @pytest.mark.parametrize("page", [0, 1, 2])
    def test_check_word(self, damaged: Damaged, page: int):
        """A damaged checksum makes its page poison."""
        damaged.object.flip(damaged.object.checks + page * 4 + 1)
        damaged.expect_poison(page)

    @pytest.mark.parametrize("link", [0, 1, -2, -1])
    @pytest.mark.parametrize("bit", [0, 5, 31])
    def test_link(self, damaged: Damaged, link: int, bit: int):
        """A link that leads elsewhere, into another page or out of the media, makes its page poison."""
        sector = damaged.object.chain(0)[link]
        damaged.object.flip(damaged.object.links + sector * 4 + bit // 8, bit % 8)
        damaged.expect_poison(0)

    def test_circle(self, damaged: Damaged):
        """A chain that runs in a circle ends in poison."""
        chain = damaged.object.chain(0)
        damaged.object.write(damaged.object.links + chain[5] * 4, struct.pack("<I", chain[2]))
        damaged.expect_poison(0)

    def test_swapped_sectors(self, damaged: Damaged):
        """Two pages' sectors exchanged, both whole, are both poison."""
        first, second = (damaged.object.sector_at(damaged.object.chain(p)[3]) for p in (1, 2))
        one, two = damaged.object.read(first, 64), damaged.object.read(second, 64)
        damaged.object.write(first, two)
        damaged.object.write(second, one)
        assert right_or_poison(damaged.device, PAGE, damaged.CONTENTS[1])
        assert right_or_poison(damaged.device, 2 * PAGE, damaged.CONTENTS[2])
        assert damaged.device.stats.media_errors == 2

    def test_other_page_s_form(self):
        """A whole form under another page's entry is poison there: the checksum knows the page."""
        with Device("1M", "64K") as dev:
            dev.write(0, entropy(0, 1000) + entropy(1, 1000))
            assert dev.page(0).length == dev.page(PAGE).length
            there = DeviceObject(dev.fileno())
            there.write(there.map + 8, there.read(there.map, 8))
            there.write(there.checks + 4, there.read(there.checks, 4))
            assert right_or_poison(dev, PAGE, entropy(1, 1000))
            assert dev.stats.media_errors == 1

    @pytest.mark.parametrize("codec, block", [("lz4", 4096), ("lz4", 1024), ("zstd", 4096), ("none", 4096)])
    def test_zeroed(self, codec: str, block: int):
        """Media that went back to zeros is poison, whatever the codec."""
        with Device("1M", "64K", codec=codec, block=block) as dev:
            dev.write(0, entropy(0, 1000))
            info = dev.page(0)
            DeviceObject(dev.fileno()).write(info.media, bytes(info.sectors * 64))
            assert right_or_poison(dev, 0, entropy(0, 1000))
            assert dev.stats.media_errors == 1

    def test_repaired(self, damaged: Damaged):
        """Writing the page anew repairs it."""
        damaged.object.flip(damaged.device.page(PAGE).media)
        damaged.expect_poison(1)
        # Other pages of it were dropped: discarding one makes room.
        damaged.device.discard(2 * PAGE, PAGE)
        damaged.device.write(PAGE, damaged.CONTENTS[1])
        assert damaged.device.read(PAGE, PAGE) == damaged.CONTENTS[1]
        assert damaged.device.page(PAGE).poisoned == 0

    def test_unread(self, damaged: Damaged):
        """Damage that is overwritten unread is no error."""
        damaged.object.flip(damaged.device.page(PAGE).media)
        damaged.device.write(PAGE, noise(7))
        assert damaged.device.read(PAGE, PAGE) == noise(7)
        assert damaged.device.stats.media_errors == 0

    @settings(max_examples=60)
    @given(st.data())
    def test_anywhere(self, data: st.DataObject):
        """Any bytes written anywhere over media, links and checksums give right bytes or poison."""
        damaged = Damaged()
        there = damaged.object
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(there.checks, there.size - 1))
            there.write(at, data.draw(st.binary(min_size=1, max_size=min(16, there.size - at))))
        for page, contents in enumerate(damaged.CONTENTS):
            right_or_poison(damaged.device, page * PAGE, contents)
        for page, contents in damaged.others.items():
            right_or_poison(damaged.device, page * PAGE, contents)
        damaged.device.rebuild()
        there.check()
        damaged.device.close()


class Mixed:
    """A device at rest that holds every kind of page, overflown, with poison of every kind."""

    def __init__(self, path: Path | None = None) -> None:
        self.device = Device("1M", "96K", path=path, poison_limit=12)
        self.last: dict[int, bytes] = {}
        for page in range(251, 256):
            self.last[page] = entropy(page, 100)
            self.device.write(page * PAGE, self.last[page])
            self.device.poison.inject(page * PAGE + 5 * LINE)
        generator = random.Random(1)
        for number in range(700):
            page = generator.randrange(251)
            kind = generator.randrange(8)
            if kind == 0:
                self.device.discard(page * PAGE, PAGE)
                self.last[page] = bytes(PAGE)
                continue
            amount = (1, 40, 300, 900, 2000, 3000, 4096)[kind - 1]
            self.last[page] = (
                entropy(number, amount), number.to_bytes(8, "little") * 512, bytes(PAGE)
            )[generator.choice((0, 0, 0, 1, 2))]
            self.device.write(page * PAGE, self.last[page])
        self.object = DeviceObject(self.device.fileno())
        states = {self.device.page(page * PAGE).state for page in range(256)}
        assert states == {"empty", "zero", "same", "stored", "raw", "poison"}
        assert any(self.object.linked(page) for page in range(256))
        assert self.device.stats.poison_overflow > 0
        self.object.check()

    def reading(self) -> tuple:
        """All that a rebuild must restore, or leave."""
        pages = [self.device.page(page * PAGE) for page in range(256)]
        return self.device.stats, pages, self.device.poison.records()

    def contents(self) -> None:
        for page, data in self.last.items():
            right_or_poison(self.device, page * PAGE, data)


@pytest.fixture
def mixed() -> Iterator[Mixed]:
    mixed = Mixed()
    yield mixed
    mixed.device.close()


DERIVED = {
    "used": lambda there: [(USED_AT, 8)],
    "counters": lambda there: [(STRIPES_AT, STRIPES * STRIPE.size)],
    "bitmap": lambda there: [(there.bitmap, there.groups - there.bitmap)],
    "groups": lambda there: [(there.groups, there.map - there.groups)],
    "all": lambda there: [
        (USED_AT, 8), (STRIPES_AT, STRIPES * STRIPE.size), (there.bitmap, there.map - there.bitmap)
    ],
}


class TestRebuild:
    def test_undamaged(self, mixed: Mixed):
        """A rebuild of what is whole changes nothing."""
        before = mixed.reading()
        mixed.device.rebuild()
        assert mixed.reading() == before
        mixed.object.check()
        mixed.contents()

    @pytest.mark.parametrize("part", DERIVED)
    @pytest.mark.parametrize("garbage", [0x00, 0xFF, 0x5A])
    def test_derived(self, mixed: Mixed, part: str, garbage: int):
        """Derived state full of garbage is wrong before a rebuild, and right and complete after it."""
        before = mixed.reading()
        for at, length in DERIVED[part](mixed.object):
            mixed.object.write(at, bytes([garbage]) * length)
        with pytest.raises(AssertionError):
            mixed.object.check()
        mixed.device.rebuild()
        assert mixed.reading() == before
        mixed.object.check()
        mixed.contents()

    def test_used_sectors(self, mixed: Mixed):
        """After a rebuild, used is the sum over the page map, whatever the counter said."""
        total = sum(mixed.device.page(page * PAGE).sectors for page in range(256)) * 64
        assert mixed.device.stats.used == total > 0
        mixed.object.write(USED_AT, struct.pack("<Q", 5))
        assert mixed.device.stats.used == 5 * 64
        mixed.device.rebuild()
        assert mixed.device.stats.used == total

    def test_room(self, mixed: Mixed):
        """After a rebuild exactly what is free can be written, and nobody's sectors are taken."""
        mixed.object.write(mixed.object.bitmap, bytes(mixed.object.map - mixed.object.bitmap))
        mixed.device.rebuild()
        dropped = mixed.device.stats.dropped_writes
        free = [page for page in range(256) if mixed.device.page(page * PAGE).state == "empty"]
        for page in free:
            if mixed.device.stats.remaining < 64:
                break
            mixed.last[page] = entropy(page, 8)
            mixed.device.write(page * PAGE, mixed.last[page])
        assert mixed.device.stats.dropped_writes == dropped
        mixed.contents()
        mixed.object.check()

    def test_twice_recorded(self, mixed: Mixed):
        """Records that stand twice, or of pages that are whole, are gone; the others stay."""
        there = mixed.object
        before = mixed.device.poison.records()
        whole = next(p for p in range(256) if mixed.device.page(p * PAGE).poisoned == 0)
        records = [*there.records(), there.records()[0], (whole * PAGE, 4096, 1), (1 << 50, 64, 2)]
        limit = there.words(there.poison, 1, "I")[0]
        there.write(there.poison, struct.pack("<II", limit, len(records)))
        there.write(there.poison + 8, b"".join(struct.pack("<QII", *r) for r in records))
        mixed.device.rebuild()
        assert mixed.device.poison.records() == before
        there.check()

    def test_records_lost(self, mixed: Mixed):
        """With the whole list lost, pages without data stay poison: the page map has them."""
        poison = [p for p in range(256) if mixed.device.page(p * PAGE).state == "poison"]
        mixed.object.write(mixed.object.poison + 4, bytes(4))
        mixed.device.rebuild()
        assert [p for p in range(256) if mixed.device.page(p * PAGE).state == "poison"] == poison
        assert mixed.device.poison.records() == []
        assert mixed.device.stats.poison_overflow == mixed.device.stats.poisoned == len(poison)
        mixed.object.check()

    def test_shared_sector(self, mixed: Mixed):
        """Of two pages that claim the same sectors one becomes poison, and both are never wrong."""
        there = mixed.object
        one, two = [p for p in range(256) if mixed.device.page(p * PAGE).state == "raw"][:2]
        there.write(there.map + two * 8, there.read(there.map + one * 8, 8))
        mixed.device.rebuild()
        there.check()
        mixed.contents()
        assert "poison" in {mixed.device.page(p * PAGE).state for p in (one, two)}

    def test_unknown_state(self, mixed: Mixed):
        """An entry that means nothing becomes poison."""
        there = mixed.object
        there.write(there.map + 3 * 8, struct.pack("<Q", 7 << 44 | 0x123 << 32 | 5))
        mixed.device.rebuild()
        assert mixed.device.page(3 * PAGE).state == "poison"
        there.check()

    def test_peak_stays(self, mixed: Mixed):
        """The peak, which nothing can restore, is left as it is."""
        mixed.device.discard(0, "1M")
        peak = struct.unpack("<Q", mixed.object.read(PEAK_AT, 8))[0] * 64
        mixed.device.rebuild()
        assert mixed.device.stats.peak == peak > mixed.device.stats.used == 0

    def test_large(self):
        """A sparse terabyte is rebuilt from the pages that it holds, first and last."""
        with Device("1T", "1M") as dev:
            for dpa in (0, 1 << 30, (1 << 40) - PAGE):
                dev.write(dpa, entropy(dpa, 1000))
            before = dev.stats
            there = DeviceObject(dev.fileno())
            there.write(USED_AT, bytes(8))
            there.write(STRIPES_AT, bytes(STRIPES * STRIPE.size))
            assert dev.stats != before
            dev.rebuild()
            assert dev.stats == before
            assert os.fstat(dev.fileno()).st_blocks * 512 < 32 << 20

    def test_while_working(self):
        """Rebuilds among the work of other threads lose nothing."""
        stop = threading.Event()

        def work(thread: int) -> None:
            for number in range(300):
                page = thread + number % 4 * 4
                dev.write(page * PAGE, entropy(number, 500))
                assert dev.read(page * PAGE, PAGE) == entropy(number, 500)
            stop.set()

        def rebuild() -> None:
            while not stop.is_set():
                dev.rebuild()

        with Device("1M", "64K", signal=0) as dev:
            run_threads(rebuild, *[lambda thread=thread: work(thread) for thread in range(3)])
            assert dev.stats.dropped_writes == dev.stats.poisoned == 0
            DeviceObject(dev.fileno()).check()

    def test_interrupt(self):
        """A rebuild that finds less room than was thought raises the interrupt that is due."""
        with Device("1M", "64K", lthresh=32768, hthresh=49152, signal=0) as dev:
            dev.write(0, noise(0, 6 * PAGE))
            DeviceObject(dev.fileno()).write(USED_AT, bytes(8))
            dev.write(6 * PAGE, noise(6, 3 * PAGE))
            assert dev.stats.lthresh == 0
            dev.rebuild()
            assert (dev.stats.lthresh, dev.stats.remaining) == (1, 65536 - 9 * PAGE)
