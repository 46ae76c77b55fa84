"""Poison: injected, cleared, listed, repaired; what a dropped write leaves. Through the page functions.

The rules for addresses are the kernel's (drivers/cxl/core/mbox.c): 64 bytes, aligned, within the
capacity; injecting twice is fine; clearing writes zeros.
"""

from pathlib import Path

import pytest
from device_object import DeviceObject
from hypothesis import given, settings, strategies as st
from samples import LINE, PAGE, entropy, noise

from cram_emu import Device, PoisonError, PoisonRecord
from cram_emu.errors import Busy, InvalidArgument

ALL_LINES = 2**64 - 1

# A page of each kind that has data.
PAGES = {
    "empty": None,
    "zero": bytes(PAGE),
    "same": b"\xa5\x5a" * (PAGE // 2),
    "stored": entropy(1, 1000),
    "raw": noise(1),
}


@pytest.fixture
def dev():
    with Device("1M", "64K") as device:
        yield device


def write_kind(device: Device, dpa: int, kind: str) -> bytes:
    """Makes a page of that kind; its contents."""
    if PAGES[kind] is not None:
        device.write(dpa, PAGES[kind])
    assert device.page(dpa).state == kind
    return PAGES[kind] or bytes(PAGE)


def poison_at(device: Device, dpa: int, length: int) -> tuple[int, int]:
    """Where a read meets poison, and how much of it."""
    with pytest.raises(PoisonError) as caught:
        device.read(dpa, length)
    return caught.value.address, caught.value.length


class TestInject:
    @pytest.mark.parametrize("kind", PAGES)
    @pytest.mark.parametrize("line", [0, 1, 62, 63])
    def test_one_line(self, dev: Device, kind: str, line: int):
        """Exactly the 64 bytes at the address are poison; every byte beside them still reads."""
        data = write_kind(dev, PAGE, kind)
        assert dev.read(PAGE, PAGE) == data
        before = dev.stats
        at = line * LINE
        dev.poison.inject(PAGE + at)
        assert dev.read(PAGE, at) == data[:at]
        assert dev.read(PAGE + at + LINE, PAGE - at - LINE) == data[at + LINE :]
        for first, last in ((at, at + LINE), (at, at + 1), (at + LINE - 1, at + LINE), (0, PAGE)):
            address, length = poison_at(dev, PAGE + first, last - first)
            start = max(first, at)
            assert (address, length) == (PAGE + start, at + LINE - start)
        assert dev.page(PAGE).poisoned == 1 << line
        assert (dev.page(PAGE).state, dev.stats.used) == (kind, before.used)
        assert (dev.stats.poisoned, dev.stats.poison_records) == (1, 1)
        assert dev.poison.records() == [PoisonRecord(PAGE + at, LINE, "injected")]

    @pytest.mark.parametrize("dpa", [1, 32, 63, 65, (1 << 20) - 1])
    def test_unaligned(self, dev: Device, dpa: int):
        """An address that is no multiple of 64 is refused by name, and nothing is poisoned."""
        with pytest.raises(InvalidArgument, match=f"0x{dpa:x}: not a multiple of 64"):
            dev.poison.inject(dpa)
        with pytest.raises(InvalidArgument, match=f"0x{dpa:x}"):
            dev.poison.clear(dpa)
        assert dev.stats.poisoned == 0

    @pytest.mark.parametrize("dpa", [1 << 20, (1 << 20) + 64, -64, 1 << 64])
    def test_outside(self, dev: Device, dpa: int):
        """An address outside the advertised capacity is refused by name; the last line is not."""
        for command in (dev.poison.inject, dev.poison.clear):
            with pytest.raises(InvalidArgument, match=f"{dpa:x}"):
                command(dpa)
        assert dev.stats.poisoned == 0
        dev.poison.inject((1 << 20) - 64)
        assert dev.stats.poisoned == 1

    def test_twice(self, dev: Device):
        """Poisoning a line twice is fine, and one record."""
        dev.poison.inject(0)
        dev.poison.inject(0)
        assert (len(dev.poison), dev.stats.poisoned) == (1, 1)

    def test_two_lines(self, dev: Device):
        """Two lines of a page are two records of one poisoned page."""
        dev.poison.inject(0)
        dev.poison.inject(5 * LINE)
        assert [record.dpa for record in dev.poison] == [0, 5 * LINE]
        assert (dev.stats.poisoned, dev.stats.poison_records) == (1, 2)
        assert poison_at(dev, 0, PAGE) == (0, LINE)
        assert poison_at(dev, LINE, PAGE) == (5 * LINE, LINE)

    def test_neighbours(self, dev: Device):
        """Neighbouring poisoned lines are told as one length."""
        for line in (10, 11, 12):
            dev.poison.inject(line * LINE)
        assert poison_at(dev, 0, PAGE) == (10 * LINE, 3 * LINE)
        assert poison_at(dev, 11 * LINE + 3, 10) == (11 * LINE + 3, 2 * LINE - 3)

    def test_into_dropped(self):
        """A line of a dropped page that was cleared can be poisoned again, without a new record."""
        with Device("1M", "4K") as dev:
            dev.write(0, noise(0))
            dev.write(PAGE, noise(1))
            dev.poison.clear(PAGE + 3 * LINE)
            assert dev.read(PAGE + 3 * LINE, LINE) == bytes(LINE)
            dev.poison.inject(PAGE + 3 * LINE)
            assert dev.page(PAGE).poisoned == ALL_LINES
            assert dev.poison.records() == [PoisonRecord(PAGE, PAGE, "dropped")]

    def test_across_pages(self, dev: Device):
        """A read over several pages stops at the first poisoned line of any of them."""
        dev.write(0, noise(1, 3 * PAGE))
        dev.poison.inject(PAGE + 7 * LINE)
        dev.poison.inject(2 * PAGE)
        assert poison_at(dev, 0, 3 * PAGE) == (PAGE + 7 * LINE, LINE)
        assert poison_at(dev, PAGE + 8 * LINE, PAGE) == (2 * PAGE, LINE)
        assert dev.read(0, PAGE + 7 * LINE) == noise(1, 3 * PAGE)[: PAGE + 7 * LINE]


class TestClear:
    @pytest.mark.parametrize("kind", PAGES)
    def test_injected(self, dev: Device, kind: str):
        """Clearing makes the 64 bytes zeros and leaves the rest as it was."""
        data = write_kind(dev, 0, kind)
        dev.poison.inject(2 * LINE)
        dev.poison.clear(2 * LINE)
        assert dev.read(0, PAGE) == data[: 2 * LINE] + bytes(LINE) + data[3 * LINE :]
        assert (dev.stats.poisoned, len(dev.poison), dev.page(0).poisoned) == (0, 0, 0)
        DeviceObject(dev.fileno()).check()

    @pytest.mark.parametrize("kind", PAGES)
    def test_not_poisoned(self, dev: Device, kind: str):
        """A line that is not poisoned is zeroed too."""
        data = write_kind(dev, 0, kind)
        dev.poison.clear(63 * LINE)
        assert dev.read(0, PAGE) == data[: 63 * LINE] + bytes(LINE)

    def test_one_of_two(self, dev: Device):
        """Clearing one line leaves another of the page poisoned."""
        dev.write(0, noise(0))
        dev.poison.inject(0)
        dev.poison.inject(LINE)
        dev.poison.clear(0)
        assert dev.read(0, LINE) == bytes(LINE)
        assert poison_at(dev, 0, PAGE) == (LINE, LINE)
        assert [record.dpa for record in dev.poison] == [LINE]

    def test_dropped_page(self):
        """A dropped page is cleared line by line; only when the last is, is it poisoned no more."""
        with Device("1M", "4K") as dev:
            dev.write(0, noise(0))
            dev.write(PAGE, noise(1))
            order = [0, 63, 5, *(line for line in range(64) if line not in (0, 63, 5))]
            left = ALL_LINES
            for line in order:
                assert dev.page(PAGE).poisoned == left
                assert dev.stats.poisoned == 1
                dev.poison.clear(PAGE + line * LINE)
                left &= ~(1 << line)
                if left:
                    first = (left & -left).bit_length() - 1
                    assert poison_at(dev, PAGE, PAGE)[0] == PAGE + first * LINE
                    assert dev.read(PAGE, first * LINE) == bytes(first * LINE)
            assert dev.read(PAGE, PAGE) == bytes(PAGE)
            assert (dev.stats.poisoned, len(dev.poison), dev.page(PAGE).state) == (0, 0, "zero")
            DeviceObject(dev.fileno()).check()

    def test_dropped_page_listed(self):
        """A dropped page with cleared lines is listed by the runs that are still poisoned."""
        with Device("1M", "4K") as dev:
            dev.write(0, noise(0))
            dev.write(PAGE, noise(1))
            for line in (0, 10, 11):
                dev.poison.clear(PAGE + line * LINE)
            assert dev.poison.records() == [
                PoisonRecord(PAGE + LINE, 9 * LINE, "dropped"),
                PoisonRecord(PAGE + 12 * LINE, 52 * LINE, "dropped"),
            ]
            assert dev.stats.poison_records == 1

    def test_on_full_device(self):
        """Where clearing needs a sector that is not there, the page is dropped as by any write."""
        with Device("1M", "4K") as dev:
            for amount in range(500, 600):
                dev.write(0, entropy(0, amount))
                if dev.page(0).length % 64 == 0:
                    break
            page = PAGE
            while dev.stats.remaining:
                dev.write(page, entropy(page, 8))
                page += PAGE
            # Zeros in the middle of the run make the stored form a few bytes longer.
            dev.poison.inject(0)
            dev.poison.clear(40 * LINE)
            assert dev.stats.dropped_writes == 1
            assert dev.poison.records() == [PoisonRecord(0, PAGE, "dropped")]
            DeviceObject(dev.fileno()).check()

    def test_with_room(self):
        """With a sector free the same clearing succeeds."""
        with Device("1M", "4K") as dev:
            dev.write(0, entropy(0, 550))
            dev.poison.clear(40 * LINE)
            data = entropy(0, 550)
            assert dev.read(0, PAGE) == data[: 40 * LINE] + bytes(LINE) + data[41 * LINE :]


class TestRepair:
    @pytest.fixture(params=["injected", "dropped"])
    def poisoned(self, request):
        """A device with room for one more page, and poison at 8 KiB."""
        with Device("1M", "4K") as dev:
            if request.param == "injected":
                dev.write(2 * PAGE, noise(2))
                dev.poison.inject(2 * PAGE + LINE)
                dev.poison.inject(2 * PAGE + 9 * LINE)
            else:
                dev.write(0, noise(0))
                dev.write(2 * PAGE, noise(2))
                dev.discard(0, PAGE)
            assert dev.stats.poisoned == 1
            yield dev

    def repaired(self, dev: Device, data: bytes) -> None:
        assert dev.read(2 * PAGE, PAGE) == data
        assert (dev.stats.poisoned, dev.poison.records(), dev.page(2 * PAGE).poisoned) == (0, [], 0)
        DeviceObject(dev.fileno()).check()

    @pytest.mark.parametrize("kind", ["zero", "same", "stored", "raw"])
    def test_write(self, poisoned: Device, kind: str):
        """Writing the whole page repairs it, whatever is written."""
        poisoned.write(2 * PAGE, PAGES[kind])
        self.repaired(poisoned, PAGES[kind])

    def test_discard(self, poisoned: Device):
        """Discarding the page repairs it: it reads as zeros."""
        poisoned.discard(2 * PAGE, PAGE)
        self.repaired(poisoned, bytes(PAGE))
        assert poisoned.stats.used == 0

    def test_clear(self, poisoned: Device):
        """Clearing every line repairs it."""
        for line in range(64):
            poisoned.poison.clear(2 * PAGE + line * LINE)
        self.repaired(poisoned, bytes(PAGE))

    def test_write_beside(self, poisoned: Device):
        """Writing the page beside it repairs nothing."""
        records = poisoned.poison.records()
        poisoned.write(PAGE, PAGES["same"])
        poisoned.write(3 * PAGE, PAGES["same"])
        assert poisoned.poison.records() == records
        assert poison_at(poisoned, 2 * PAGE, PAGE)[0] // PAGE == 2

    def test_dropped_again(self):
        """A repair that is dropped leaves one record of the whole page."""
        with Device("1M", "4K") as dev:
            dev.write(0, noise(0))
            for line in range(10):
                dev.poison.inject(PAGE + line * LINE)
            assert len(dev.poison) == 10
            dev.write(PAGE, noise(1))
            dev.write(PAGE, noise(2))
            assert dev.poison.records() == [PoisonRecord(PAGE, PAGE, "dropped")]
            assert (dev.stats.poisoned, dev.stats.dropped_writes) == (1, 2)
            DeviceObject(dev.fileno()).check()


class TestRecords:
    def test_sources(self):
        """Each cause of poison is named, in ascending order of address, by len, list and loop alike."""
        with Device("1M", "8K") as dev:
            dev.write(5 * PAGE, noise(5))
            dev.write(4 * PAGE, entropy(4))
            dev.write(3 * PAGE, noise(3))
            dev.poison.inject(6 * PAGE)
            DeviceObject(dev.fileno()).flip(dev.page(4 * PAGE).media)
            poison_at(dev, 4 * PAGE, PAGE)
            records = [
                PoisonRecord(3 * PAGE, PAGE, "dropped"),
                PoisonRecord(4 * PAGE, PAGE, "media"),
                PoisonRecord(6 * PAGE, LINE, "injected"),
            ]
            assert dev.poison.records() == list(dev.poison) == records
            assert len(dev.poison) == 3

    def test_reopen(self, tmp_path: Path):
        """The list and every poisoned line are there when the device is opened again."""
        path = tmp_path / "device"
        with Device("1M", "64K", path=path) as dev:
            for page in range(20):
                dev.write(page * PAGE, noise(page))
            dev.poison.inject(0)
            dev.poison.inject(3 * PAGE + 5 * LINE)
            dev.poison.clear(18 * PAGE)
            records = dev.poison.records()
            stats = dev.stats
        with Device.open(path) as dev:
            assert dev.poison.records() == records
            assert dev.stats == stats
            assert poison_at(dev, 3 * PAGE, PAGE) == (3 * PAGE + 5 * LINE, LINE)
            assert poison_at(dev, 18 * PAGE, PAGE) == (18 * PAGE + LINE, PAGE - LINE)
            assert poison_at(dev, 16 * PAGE, 1) == (16 * PAGE, PAGE)
            dev.discard(0, "1M")
        with Device.open(path) as dev:
            assert (dev.poison.records(), dev.stats.poisoned) == ([], 0)

    def test_many(self, dev: Device):
        """A list longer than any first guess is whole and sorted."""
        addresses = [number * 7919 % 16384 * LINE for number in range(1024)]
        for dpa in addresses:
            dev.poison.inject(dpa)
        assert [record.dpa for record in dev.poison] == sorted(addresses)


class TestLimit:
    @pytest.mark.parametrize("limit", [1, 5, 1024])
    def test_inject(self, limit: int):
        """When the list is full one more line is refused and nothing changes; clearing makes room."""
        with Device("1M", "64K", poison_limit=limit) as dev:
            for line in range(limit):
                dev.poison.inject(line * LINE)
            before = dev.stats, dev.poison.records()
            beyond = limit * LINE
            with pytest.raises(Busy, match=f"0x{beyond:x}.*{limit}"):
                dev.poison.inject(beyond)
            assert (dev.stats, dev.poison.records()) == before
            assert dev.read(beyond, LINE) == bytes(LINE)
            dev.poison.inject(0)
            dev.poison.clear(0)
            dev.poison.inject(beyond)
            assert poison_at(dev, beyond, LINE) == (beyond, LINE)

    def test_dropped(self, tmp_path: Path):
        """Of 1500 dropped pages 1024 are recorded, the flag counts the rest, and each is poison."""
        path = tmp_path / "device"
        with Device("8M", "4K", path=path) as dev:
            dev.write(0, noise(0))
            for page in range(1, 1501):
                dev.write(page * PAGE, noise(page))
            self.overflown(dev)
            stats = dev.stats
        with Device.open(path) as dev:
            assert dev.stats == stats
            self.overflown(dev)
            dev.rebuild()
            assert dev.stats == stats
            self.overflown(dev)
            DeviceObject(dev.fileno()).check()

    def overflown(self, dev: Device) -> None:
        stats = dev.stats
        assert (stats.dropped_writes, stats.poisoned) == (1500, 1500)
        assert (stats.poison_records, stats.poison_overflow) == (1024, 476)
        assert [r.dpa for r in dev.poison] == [page * PAGE for page in range(1, 1025)]
        for page in range(1, 1501):
            assert poison_at(dev, page * PAGE, PAGE) == (page * PAGE, PAGE)
        assert dev.read(0, PAGE) == noise(0)

    def test_no_overflow(self):
        """Exactly as many as the list holds leave the flag at 0."""
        with Device("8M", "4K") as dev:
            dev.write(0, noise(0))
            for page in range(1, 1025):
                dev.write(page * PAGE, noise(page))
            assert (dev.stats.poison_records, dev.stats.poison_overflow) == (1024, 0)

    def test_repair_of_unrecorded(self):
        """A page without a record is repaired as any other, and the flag counts down."""
        with Device("1M", "4K", poison_limit=2) as dev:
            dev.write(0, noise(0))
            for page in range(1, 7):
                dev.write(page * PAGE, noise(page))
            assert dev.stats.poison_overflow == 4
            dev.write(3 * PAGE, b"\7" * PAGE)
            dev.discard(4 * PAGE, PAGE)
            for line in range(64):
                dev.poison.clear(5 * PAGE + line * LINE)
            assert (dev.stats.poison_overflow, dev.stats.poisoned) == (1, 3)
            assert dev.read(3 * PAGE, 3 * PAGE) == b"\7" * PAGE + bytes(2 * PAGE)
            DeviceObject(dev.fileno()).check()

    def test_record_freed(self):
        """A record that is freed serves the next page that is dropped."""
        with Device("1M", "4K", poison_limit=2) as dev:
            dev.write(0, noise(0))
            for page in (1, 2, 3):
                dev.write(page * PAGE, noise(page))
            dev.discard(PAGE, PAGE)
            dev.write(4 * PAGE, noise(4))
            assert [record.dpa for record in dev.poison] == [2 * PAGE, 4 * PAGE]
            assert dev.stats.poison_overflow == 1

    def test_injected_then_dropped(self):
        """With a full list a page with injected lines that is dropped takes over their record."""
        with Device("1M", "4K", poison_limit=1) as dev:
            dev.write(0, noise(0))
            dev.poison.inject(PAGE)
            dev.write(PAGE, noise(1))
            assert dev.poison.records() == [PoisonRecord(PAGE, PAGE, "dropped")]
            assert (dev.stats.poison_overflow, dev.stats.poisoned) == (0, 1)


class TestModel:
    @settings(max_examples=60)
    @given(
        kind=st.sampled_from(sorted(PAGES)),
        steps=st.lists(
            st.tuples(st.sampled_from(["inject", "clear"]), st.integers(0, 63)), max_size=30
        ),
    )
    def test_lines(self, kind: str, steps: list[tuple[str, int]]):
        """After any injections and clearings the poisoned lines, and the bytes of the others, are exact."""
        with Device("1M", "64K", signal=0) as dev:
            data = bytearray(write_kind(dev, 0, kind))
            poisoned: set[int] = set()
            for step, line in steps:
                if step == "inject":
                    dev.poison.inject(line * LINE)
                    poisoned.add(line)
                else:
                    dev.poison.clear(line * LINE)
                    poisoned.discard(line)
                    data[line * LINE : (line + 1) * LINE] = bytes(LINE)
            assert dev.page(0).poisoned == sum(1 << line for line in poisoned)
            assert [record.dpa // LINE for record in dev.poison] == sorted(poisoned)
            for line in set(range(64)) - poisoned:
                at = line * LINE
                assert dev.read(at, LINE) == data[at : at + LINE]
            for line in poisoned:
                assert poison_at(dev, line * LINE, LINE)[0] == line * LINE
            DeviceObject(dev.fileno()).check()
