"""The mapping: the device as plain memory of this process, behind a small window of frames.

Oracles: a bytearray that is told the same things, the Python lz4 package, and what the kernel says
is resident.
"""

import random
from pathlib import Path

import lz4.block
import numpy as np
import pytest
from samples import LINE, PAGE, entropy, noise
from support import delivery, resident_bytes, resident_pages, wait_until  # noqa: F401

from cram_emu import Device
from cram_emu.errors import Busy, DeviceClosed, InvalidArgument

SMALL = "64K"  # the smallest window: 16 frames
SMALL_PAGES = 16

HOLDER = """
    import sys
    from cram_emu import Device
    device = Device.open(sys.argv[1])
    mapping = device.map(0, 65536)
    mapping[0:5] = b"child"
    print("mapped", flush=True)
    sys.stdin.readline()
    mapping.close()
    print("unmapped", flush=True)
    sys.stdin.readline()
"""


def numbered(page: int) -> bytes:
    """A page that no other page of a test equals, and that compresses."""
    return entropy(page, amount=256)


def read_all(mapping) -> bytes:
    return mapping[:]


class TestContents:
    """Whatever goes through a mapping larger than its window reads back as a bytearray has it."""

    def test_random_stores_and_loads(self, delivery):
        length = 2 << 20
        model = bytearray(length)
        choose = random.Random(1)
        with Device(length, length) as dev, dev.map(window=SMALL, delivery=delivery) as mapping:
            for step in range(1500):
                at = choose.randrange(length)
                count = min(choose.choice((1, 8, PAGE, 3 * PAGE)), length - at)
                if choose.random() < 0.5:
                    assert mapping[at : at + count] == model[at : at + count], f"step {step}"
                else:
                    data = noise(step, count)
                    mapping[at : at + count] = data
                    model[at : at + count] = data
            assert read_all(mapping) == model
            assert mapping.stats.evicted > 10 * SMALL_PAGES
            mapping.close()
            assert dev.read(0, length) == model

    def test_every_way_in_and_out_mixed(self, delivery):
        """Stores, Device.write, discard and read, flushes and new mappings, interleaved."""
        pages = 256
        model = bytearray(pages * PAGE)
        choose = random.Random(2)
        with Device(pages * PAGE, pages * PAGE) as dev:
            mapping = dev.map(window=SMALL, delivery=delivery, writeback=0.001)
            for step in range(4000):
                page = choose.randrange(pages)
                here = slice(page * PAGE, (page + 1) * PAGE)
                match choose.randrange(7):
                    case 0:
                        mapping[here] = model[here] = numbered(step)
                    case 1:
                        dev.write(here.start, numbered(step))
                        model[here] = numbered(step)
                    case 2:
                        dev.discard(here.start, PAGE)
                        model[here] = bytes(PAGE)
                    case 3:
                        assert dev.read(here.start, PAGE) == model[here], f"step {step}"
                    case 4:
                        assert mapping[here] == model[here], f"step {step}"
                    case 5:
                        length = choose.randrange(4 * PAGE)
                        mapping.flush(here.start, min(length, len(mapping) - here.start))
                    case 6 if step % 10 == 0:
                        mapping.close()
                        mapping = dev.map(window=SMALL, delivery=delivery, writeback=0.001)
            assert read_all(mapping) == model

    def test_a_page_never_written_reads_as_zeros_and_takes_no_capacity(self, delivery):
        with Device("1M", "1M") as dev, dev.map(window=SMALL, delivery=delivery) as mapping:
            assert read_all(mapping) == bytes(1 << 20)
            mapping.close()
            assert dev.stats.used == 0
            assert dev.page(0).state == "empty"

    def test_a_mapping_of_part_of_the_device_begins_at_its_offset(self, delivery):
        with Device("1M", "1M") as dev:
            dev.write(256 << 10, numbered(7))
            with dev.map("256K", "128K", window=SMALL, delivery=delivery) as mapping:
                assert len(mapping) == 128 << 10
                assert mapping[:PAGE] == numbered(7)
                mapping[PAGE : 2 * PAGE] = numbered(8)
            assert dev.read((256 << 10) + PAGE, PAGE) == numbered(8)

    def test_a_tebibyte_is_mapped_within_the_same_window(self, delivery):
        with Device("1T", "1M") as dev, dev.map(window=SMALL, delivery=delivery) as mapping:
            places = [(k << 40) // 97 & ~0xFFF for k in range(97)]
            for k, at in enumerate(places):
                mapping[at : at + PAGE] = numbered(k)
            assert all(mapping[at : at + PAGE] == numbered(k) for k, at in enumerate(places))
            assert resident_bytes(mapping.address) <= SMALL_PAGES * PAGE


    def test_from_one_device_to_another(self, delivery):
        """Both sides of a copy fault."""
        with (
            Device("1M", "1M") as source,
            Device("1M", "1M") as target,
            source.map(window=SMALL, delivery=delivery) as here,
            target.map(window=SMALL, delivery=delivery) as there,
        ):
            here[:] = noise(1, 1 << 20)
            with memoryview(here) as read, memoryview(there) as write:
                write[:] = read
            assert read_all(there) == read_all(here) == noise(1, 1 << 20)


class TestBuffer:
    """A mapping is a writable buffer that memoryview() and numpy.frombuffer() share, not copy."""

    def test_memoryview(self, delivery):
        with Device("1M", "1M") as dev, dev.map(delivery=delivery) as mapping:
            with memoryview(mapping) as view:
                assert (view.nbytes, view.readonly, view.format) == (1 << 20, False, "B")
                view[5000] = 77
            assert mapping[5000] == 77
            assert dev.read(5000, 1) == b"\x4d"

    def test_numpy(self, delivery):
        with Device("8M", "8M") as dev, dev.map(window="1M", delivery=delivery) as mapping:
            array = np.frombuffer(mapping, dtype=np.uint64)
            array[:] = np.arange(array.size, dtype=np.uint64)
            assert int(array.sum()) == array.size * (array.size - 1) // 2
            assert dev.read(8 * 12345, 8) == (12345).to_bytes(8, "little")
            del array

    def test_indices_and_slices_are_those_of_a_bytearray(self, delivery):
        model = bytearray(1 << 20)
        with Device("1M", "1M") as dev, dev.map(delivery=delivery) as mapping:
            mapping[-3] = model[-3] = 9
            mapping[4090:4100] = model[4090:4100] = b"0123456789"
            for index in (-3, slice(4090, 4100), slice(None, 20), slice(4099, 4089, -2)):
                assert mapping[index] == model[index]
            assert len(mapping) == len(model)
            with pytest.raises(IndexError):
                mapping[1 << 20]
            with pytest.raises(ValueError):
                mapping[0:4] = b"five!"


class TestNonsense:
    """What cannot be mapped is a ValueError that names it, and nothing is claimed."""

    @pytest.mark.parametrize(
        "wrong, named",
        [
            ({"offset": 1}, "0x1"),
            ({"offset": -PAGE}, "-4096"),
            ({"offset": 1 << 20}, "0x100000"),
            ({"offset": 2 << 20}, "0x200000"),
            ({"offset": "x"}, "'x'"),
            ({"length": 0}, "0x0"),
            ({"length": 5}, "0x5"),
            ({"length": (1 << 20) + PAGE}, "0x101000"),
            ({"offset": PAGE, "length": 1 << 20}, "0x100000"),
            ({"window": 0}, "0"),
            ({"window": PAGE}, "4096"),
            ({"window": (64 << 10) - PAGE}, "61440"),
            ({"window": (64 << 10) + 1}, "65537"),
            ({"window": -PAGE}, "-4096"),
            ({"window": "16X"}, "'16X'"),
            ({"delivery": "pigeon"}, "'pigeon'"),
            ({"writeback": -0.1}, "-0.1"),
            ({"writeback": 3601}, "3601"),
            ({"writeback": "1"}, "'1'"),
        ],
    )
    def test_named(self, wrong, named):
        with Device("1M", "1M") as dev:
            with pytest.raises(ValueError, match=named):
                dev.map(**wrong)
            dev.map().close()


class TestWindow:
    """Never are more frames resident than the window allows; a larger window holds more."""

    @pytest.mark.parametrize("window", [64 << 10, 256 << 10])
    def test_bound(self, delivery, window):
        with Device("4M", "4M") as dev, dev.map(window=window, delivery=delivery) as mapping:
            most = 0
            for page in range(len(mapping) // PAGE):
                mapping[page * PAGE] = page & 0xFF
                if page % 16 == 0:
                    assert mapping.stats.resident <= window // PAGE
                    resident = resident_bytes(mapping.address)
                    most = max(most, resident)
                    assert resident <= window
            assert most >= window // 2

    def test_the_register_is_what_the_kernel_says(self, delivery):
        with Device("4M", "4M") as dev, dev.map(window="256K", delivery=delivery) as mapping:
            for page in random.Random(3).sample(range(1024), 500):
                mapping[page * PAGE] = 1
            resident = resident_pages(mapping.address, 1024)
            assert mapping.stats.resident == len(resident)
            assert resident == {p for p in range(1024) if dev.page(p * PAGE).resident}


class TestSecondChance:
    """A frame that was used again since the sweep last passed it stays, where its neighbours go."""

    @pytest.mark.parametrize("used_again", [True, False])
    def test_spared(self, delivery, used_again):
        with (
            Device("4M", "4M") as dev,
            dev.map(window="256K", delivery=delivery, writeback=0) as mapping,
        ):
            window = mapping.stats.window
            fresh = iter(range(0, 1024, 2))  # no two adjacent: nothing is brought in around a fault

            def touch_next() -> int:
                page = next(fresh)
                assert mapping[page * PAGE] == 0
                return page

            first = [touch_next() for _ in range(window)]
            touch_next()  # the sweep takes every page's first chance, and then its first victims
            gone = [page for page in first if not dev.page(page * PAGE).resident]
            assert gone == first[: len(gone)] and gone
            batch = len(gone)
            if used_again:
                mapping[first[batch] * PAGE] = 1  # a first write to a clean frame is seen
            while dev.page(first[batch + 1] * PAGE).resident:
                touch_next()
            assert dev.page(first[batch] * PAGE).resident is used_again


class TestFaultAround:
    """Sequential access brings pages in ahead of the faults; random access does not."""

    def fill(self, dev: Device) -> None:
        for page in range(1024):
            dev.write(page * PAGE, numbered(page))

    def test_sequential(self, delivery):
        with Device("4M", "4M") as dev:
            self.fill(dev)
            with dev.map(window="1M", delivery=delivery) as mapping:
                for page in range(1024):
                    assert mapping[page * PAGE : page * PAGE + 64] == numbered(page)[:64]
                stats = mapping.stats
                assert stats.prefetched > 900
                assert stats.read_faults < 124

    def test_random(self, delivery):
        with Device("4M", "4M") as dev:
            self.fill(dev)
            with dev.map(window="1M", delivery=delivery) as mapping:
                # Every page once, none right after the one before it.
                for page in sorted(range(1024), key=lambda page: page * 389 % 1024):
                    assert mapping[page * PAGE : page * PAGE + 64] == numbered(page)[:64]
                stats = mapping.stats
                assert stats.prefetched == 0
                assert stats.read_faults == 1024

    def test_sequential_writes(self, delivery):
        with Device("4M", "4M") as dev, dev.map(window="1M", delivery=delivery) as mapping:
            for page in range(1024):
                mapping[page * PAGE : (page + 1) * PAGE] = numbered(page)
            assert mapping.stats.write_faults < 124
            for page in range(1024):
                assert mapping[page * PAGE : (page + 1) * PAGE] == numbered(page)

    def test_it_stops_at_poison(self, delivery):
        """What lies behind the poisoned page is right, and the page before it too."""
        with Device("1M", "1M") as dev:
            for page in range(256):
                dev.write(page * PAGE, numbered(page))
            dev.poison.inject(100 * PAGE)
            with dev.map(window="512K", delivery=delivery) as mapping:
                for page in [*range(100), *range(101, 256)]:
                    assert mapping[page * PAGE : (page + 1) * PAGE] == numbered(page)
                assert not dev.page(100 * PAGE).resident


class TestFlush:
    """After flush the media holds what the frames hold, and the frames stay."""

    def test_the_media_hold_the_page(self, delivery):
        data = entropy(1, amount=512)
        with Device("1M", "1M") as dev, dev.map(delivery=delivery, writeback=0) as mapping:
            mapping[3 * PAGE : 4 * PAGE] = data
            assert dev.page(3 * PAGE).state == "empty"
            assert (dev.stats.dirty_frames, dev.stats.used) == (1, 0)
            mapping.flush()
            assert dev.stats.dirty_frames == 0
            info = dev.page(3 * PAGE)
            assert (info.state, info.dirty, info.resident) == ("stored", False, True)
            with open(f"/proc/self/fd/{dev.fileno()}", "rb") as media:
                media.seek(info.media)
                form = media.read(info.length)
            assert lz4.block.decompress(form, uncompressed_size=PAGE) == data

    def test_another_process_reads_it_afterwards(self, delivery, tmp_path, run_child):
        path = tmp_path / "device"
        with Device("1M", "1M", path=path) as dev:
            with dev.map(delivery=delivery) as mapping:
                mapping[0:PAGE] = numbered(1)
            program = """
                import sys
                from cram_emu import Device
                print(Device.open(sys.argv[1]).read(0, 4096).hex())
            """
            assert run_child(program, path).stdout.strip() == numbered(1).hex()

    def test_only_its_range(self, delivery):
        with Device("1M", "1M") as dev, dev.map(delivery=delivery, writeback=0) as mapping:
            for page in range(0, 20, 2):
                mapping[page * PAGE] = 1
            mapping.flush(4 * PAGE + 100, 4 * PAGE)
            clean = [p for p in range(0, 20, 2) if not dev.page(p * PAGE).dirty]
            assert clean == [4, 6, 8]
            assert dev.stats.dirty_frames == mapping.stats.dirty == 7
            mapping.flush(0, 0)
            assert mapping.stats.dirty == 7
            dev.flush()
            assert mapping.stats.dirty == 0

    def test_a_clean_page_is_not_written_again(self, delivery):
        with Device("1M", "1M") as dev, dev.map(delivery=delivery, writeback=0) as mapping:
            mapping[0] = 1
            mapping.flush()
            before = mapping.stats
            mapping.flush()
            assert mapping[0] == 1
            assert mapping.stats == before
            mapping[1] = 2
            mapping.flush()
            assert mapping.stats.written_back == before.written_back + 1
            assert mapping.stats.protect_faults == before.protect_faults + 1

    @pytest.mark.parametrize("offset, length", [(0, (1 << 20) + 1), (1 << 20, 1), (-1, 1), (0, -1)])
    def test_outside_the_mapping(self, offset, length):
        with Device("1M", "1M") as dev, dev.map() as mapping:
            with pytest.raises(InvalidArgument, match=f"{length} bytes at offset {offset}"):
                mapping.flush(offset, length)


class TestPeriodicWriteBack:
    """Dirty frames reach the media without a flush; not when it is off."""

    def test_on_and_off(self, delivery):
        with Device("1M", "1M") as dev:
            with (
                dev.map(0, "512K", delivery=delivery, writeback=0.005) as on,
                dev.map("512K", delivery=delivery, writeback=0) as off,
            ):
                off[0:PAGE] = numbered(1)
                # Again and again, so that the timer is seen to start anew from rest.
                for round in range(3):
                    on[0:PAGE] = numbered(round)
                    wait_until(lambda: on.stats.dirty == 0, "the frame is clean")
                    assert dev.page(0).state == "stored"
                assert off.stats.dirty == 1
                assert dev.stats.dirty_frames == 1
                assert dev.page(512 << 10).state == "empty"

    def test_a_page_that_is_dirtied_again_at_once_is_written_ever_less_often(self, delivery):
        """Against pages that are dirtied once each, in the same periods."""
        with Device("8M", "8M") as dev:
            with (
                dev.map(0, "4M", delivery=delivery, writeback=0.001) as hot,
                dev.map("4M", delivery=delivery, writeback=0.001) as cold,
            ):
                for page in range(150):
                    cold[page * 2 * PAGE] = 1
                    while cold.stats.dirty:
                        hot[0] = (hot[0] + 1) & 0xFF
                assert cold.stats.written_back >= 150
                assert 1 <= hot.stats.written_back < 75


class TestDeviceOperations:
    """Device.read, write and discard act through the resident frame: both faces show one page."""

    def test_read_sees_what_is_not_flushed(self, delivery):
        with Device("1M", "1M") as dev, dev.map(delivery=delivery, writeback=0) as mapping:
            mapping[PAGE - 2 : PAGE + 2] = b"abcd"
            assert dev.read(PAGE - 3, 6) == b"\0abcd\0"
            assert dev.page(0).state == "empty"  # the media have not heard of it

    def test_write_is_seen_without_a_fault(self, delivery):
        with Device("1M", "1M") as dev, dev.map(delivery=delivery, writeback=0) as mapping:
            assert mapping[0] == 0
            before = mapping.stats
            dev.write(0, numbered(1))
            assert mapping[0:PAGE] == numbered(1)
            after = mapping.stats
            assert after.read_faults == before.read_faults
            assert after.dirty == 1
            mapping.flush()
            assert dev.page(0).state == "stored"

    def test_write_to_a_page_that_is_not_resident(self, delivery):
        with Device("1M", "1M") as dev, dev.map(delivery=delivery, writeback=0) as mapping:
            dev.write(PAGE, numbered(1))
            assert mapping.stats.resident == 0
            assert mapping[PAGE : 2 * PAGE] == numbered(1)

    def test_discard(self, delivery):
        with Device("1M", "1M") as dev, dev.map(delivery=delivery, writeback=0) as mapping:
            mapping[0 : 4 * PAGE] = b"".join(map(numbered, range(4)))
            mapping.flush(0, 2 * PAGE)  # clean ones, and dirty ones
            dev.discard(PAGE, 2 * PAGE)
            expected = numbered(0) + bytes(2 * PAGE) + numbered(3)
            assert dev.read(0, 4 * PAGE) == expected
            assert mapping[0 : 4 * PAGE] == expected
            mapping.flush()
            assert dev.page(0).state == dev.page(3 * PAGE).state == "stored"
            assert dev.page(PAGE).sectors == dev.page(2 * PAGE).sectors == 0

    def test_the_source_may_lie_on_the_device(self, delivery):
        with Device("1M", "1M") as dev, dev.map(window=SMALL, delivery=delivery) as mapping:
            mapping[0 : 64 * PAGE] = noise(1, 64 * PAGE)
            with memoryview(mapping) as view:
                dev.write(100 * PAGE, view[0 : 64 * PAGE])
            assert mapping[100 * PAGE : 164 * PAGE] == noise(1, 64 * PAGE)


class TestPoison:
    """Poison acts on a resident page at once, and a repaired page is readable through the mapping.

    What the access to a poisoned page does to a program is in test_delivery.py.
    """

    def test_inject_writes_the_frame_back_and_drops_it(self, delivery):
        with Device("1M", "1M") as dev, dev.map(delivery=delivery, writeback=0) as mapping:
            mapping[0:PAGE] = numbered(1)
            dev.poison.inject(10 * LINE)
            info = dev.page(0)
            assert (info.resident, info.dirty, info.state) == (False, False, "stored")
            assert resident_pages(mapping.address, 1) == set()
            assert dev.read(0, 10 * LINE) == numbered(1)[: 10 * LINE]

    @pytest.mark.parametrize("repair", ["write", "discard", "clear"])
    def test_repaired(self, delivery, repair):
        with Device("1M", "1M") as dev, dev.map(delivery=delivery, writeback=0) as mapping:
            mapping[0:PAGE] = numbered(1)
            dev.poison.inject(10 * LINE)
            dev.poison.inject(12 * LINE)
            match repair:
                case "write":
                    dev.write(0, numbered(2))
                    expected = numbered(2)
                case "discard":
                    dev.discard(0, PAGE)
                    expected = bytes(PAGE)
                case "clear":
                    dev.poison.clear(10 * LINE)
                    dev.poison.clear(12 * LINE)
                    expected = bytearray(numbered(1))
                    expected[10 * LINE : 11 * LINE] = expected[12 * LINE : 13 * LINE] = bytes(LINE)
            assert mapping[0:PAGE] == expected
            assert len(dev.poison) == 0


class TestClaims:
    """Part of a taken range is refused to all, until its owner leaves."""

    def check_taken(self, dev: Device, offset: int, length: int) -> None:
        with pytest.raises(Busy, match=f"0x{offset:x} to 0x{offset + length:x}"):
            dev.map(offset, length)

    def test_in_one_object(self, delivery):
        with Device("1M", "1M") as dev:
            with dev.map("256K", "256K", delivery=delivery) as first:
                for offset, length in ((256, 256), (0, 260), (508, 8), (0, 1024), (300, 4)):
                    self.check_taken(dev, offset << 10, length << 10)
                with (
                    dev.map(0, "256K", delivery=delivery) as below,
                    dev.map("512K", delivery=delivery) as above,
                ):
                    for value, mapping in enumerate((below, first, above), 1):
                        mapping[0] = value
                    assert [mapping[0] for mapping in (below, first, above)] == [1, 2, 3]
                assert [dev.read(k << 18, 1)[0] for k in range(4)] == [1, 2, 3, 0]
            dev.map(delivery=delivery).close()

    def test_in_one_process(self, tmp_path):
        path = tmp_path / "device"
        with Device("1M", "1M", path=path) as dev, Device.open(path) as other:
            with dev.map(0, 65536):
                self.check_taken(other, 0, 65536)
                with other.map(65536, 65536):
                    self.check_taken(dev, 65536, 65536)
            other.map(0, 65536).close()

    @pytest.mark.parametrize("end", ["unmap", "exit", "kill"])
    def test_in_another_process(self, tmp_path, start_child, end):
        path = tmp_path / "device"
        with Device("1M", "1M", path=path) as dev:
            child = start_child(HOLDER, path)
            assert child.stdout.readline() == "mapped\n"
            self.check_taken(dev, 0, 65536)
            self.check_taken(dev, 61440, 8192)
            dev.map(65536).close()
            if end == "kill":
                child.kill()
                child.wait()
            else:
                child.stdin.write("\n")
                child.stdin.flush()
                assert child.stdout.readline() == "unmapped\n"
            if end == "exit":
                child.communicate()
            with dev.map(0, 65536) as mapping:
                if end != "kill":  # what died dirty is poison: see test_faults.py
                    assert mapping[0:5] == b"child"

    def test_sixteen_mappings_of_one_object(self, delivery):
        with Device("2M", "2M") as dev:
            mappings = [dev.map(k << 16, 1 << 16, delivery=delivery) for k in range(16)]
            with pytest.raises(Busy, match="16 mappings"):
                dev.map(16 << 16, 1 << 16)
            for k, mapping in enumerate(mappings):
                mapping[0:PAGE] = numbered(k)
            for k, mapping in enumerate(mappings):
                assert mapping[0:PAGE] == numbered(k) == dev.read(k << 16, PAGE)


class TestForeignPages:
    """On another client's page a read copies nothing, and a write is dropped and counted."""

    def check_refused(self, dev: Device) -> None:
        refused = dev.stats.refused_writes
        with pytest.raises(Busy, match="0x0"):
            dev.read(0, 5)
        dev.write(0, numbered(1))
        assert dev.stats.refused_writes == refused + 1
        dev.discard(0, PAGE)
        assert dev.stats.refused_writes == refused + 2
        # Beside the other's range all goes on.
        dev.write(65536, numbered(2))
        assert dev.read(65536, PAGE) == numbered(2)
        assert dev.stats.refused_writes == refused + 2

    def test_another_process(self, tmp_path, start_child):
        path = tmp_path / "device"
        with Device("1M", "1M", path=path) as dev:
            dev.write(0, numbered(0))
            child = start_child(HOLDER, path)
            assert child.stdout.readline() == "mapped\n"
            self.check_refused(dev)
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline() == "unmapped\n"
            assert dev.read(0, PAGE) == b"child" + numbered(0)[5:]
            dev.write(0, numbered(1))
            assert dev.read(0, PAGE) == numbered(1)

    def test_another_object_of_this_process(self, tmp_path, delivery):
        path = tmp_path / "device"
        with Device("1M", "1M", path=path) as dev, Device.open(path) as other:
            with dev.map(0, 65536, delivery=delivery) as mapping:
                mapping[0:5] = b"child"
                self.check_refused(other)
                assert mapping[0:8] == b"child\0\0\0"
            assert other.read(0, 5) == b"child"


class TestClose:
    """Unmapping with a live buffer is refused and changes nothing; without one it works."""

    @pytest.mark.parametrize(
        "look",
        [memoryview, lambda m: memoryview(m)[10:20], lambda m: np.frombuffer(m, np.uint32)[7:]],
        ids=["memoryview", "slice", "array"],
    )
    def test_live_buffer(self, delivery, look):
        with Device("1M", "1M") as dev:
            mapping = dev.map(window=SMALL, delivery=delivery)
            mapping[0 : 32 * PAGE] = noise(1, 32 * PAGE)
            buffer = look(mapping)
            for close in (mapping.close, dev.close):
                with pytest.raises(BufferError, match="alive"):
                    close()
            assert mapping[0 : 32 * PAGE] == noise(1, 32 * PAGE)
            dev.write(64 * PAGE, numbered(1))
            assert mapping[64 * PAGE : 65 * PAGE] == numbered(1)
            with pytest.raises(Busy):
                dev.map(0, PAGE)
            del buffer
            mapping.close()
            assert dev.read(0, 32 * PAGE) == noise(1, 32 * PAGE)

    def test_what_is_closed_says_so(self, delivery):
        with Device("1M", "1M") as dev:
            mapping = dev.map(delivery=delivery)
            mapping.close()
            mapping.close()
            assert mapping.closed and len(mapping) == 0
            for use in (
                lambda: mapping[0],
                lambda: memoryview(mapping),
                lambda: mapping.__setitem__(0, 1),
                mapping.flush,
                lambda: mapping.stats,
                lambda: mapping.pin(0, PAGE).__enter__(),
            ):
                with pytest.raises(ValueError, match="closed"):
                    use()

    def test_closing_the_device_closes_its_mappings(self, delivery, tmp_path):
        path = tmp_path / "device"
        dev = Device("1M", "1M", path=path)
        mappings = [dev.map(k << 19, 1 << 19, delivery=delivery) for k in range(2)]
        for mapping in mappings:
            mapping[0:PAGE] = numbered(1)
        dev.close()
        assert all(mapping.closed for mapping in mappings)
        with pytest.raises(DeviceClosed):
            dev.map()
        with Device.open(path) as again:
            assert again.read(1 << 19, PAGE) == again.read(0, PAGE) == numbered(1)

    def test_a_forgotten_mapping_is_written_back_and_gives_its_range_up(self, delivery):
        with Device("1M", "1M") as dev:
            mapping = dev.map(delivery=delivery)
            mapping[0:PAGE] = numbered(1)
            del mapping
            with dev.map(delivery=delivery) as again:
                assert again[0:PAGE] == numbered(1)

    def test_a_buffer_keeps_mapping_and_device(self, delivery):
        view = memoryview(Device("1M", "1M").map(window=SMALL, delivery=delivery))
        view[0 : 32 * PAGE] = noise(1, 32 * PAGE)
        assert bytes(view[0 : 32 * PAGE]) == noise(1, 32 * PAGE)
        view.release()

    def test_nothing_stays_behind(self, delivery, nothing_left_open):
        for _ in range(20):
            with Device("1M", "1M") as dev, dev.map(delivery=delivery) as mapping:
                mapping[0] = 1
                address = mapping.address
            areas = Path("/proc/self/maps").read_text()
            assert not any(line.startswith(f"{address:x}-") for line in areas.splitlines())
