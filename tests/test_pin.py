"""Pinned pages: frames that stay, for devices that write to memory behind the page tables' back.

Oracles: /proc/self/pagemap for what has a frame, the kernel's direct I/O for what arrives in it.
"""

import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from samples import LINE, PAGE, entropy, noise
from support import delivery, resident_pages  # noqa: F401

from cram_emu import Device, PoisonError
from cram_emu._core import check, lib
from cram_emu.errors import Busy, InvalidArgument, NoMemory

PAGES = 512
WINDOW = 64 << 10  # 16 frames, of which 14 can be pinned: an eviction batch of 2 stays free
MOST = 14


@pytest.fixture
def device() -> Iterator[Device]:
    with Device(PAGES * PAGE, PAGES * PAGE) as dev:
        yield dev


@pytest.fixture
def mapping(device, delivery):
    with device.map(window=WINDOW, delivery=delivery, writeback=0) as mapping:
        yield mapping


def press(mapping, first: int = 64) -> None:
    """Writes to every page from first on, twice: a sweep that has passed the other frames only once
    has but spent their second chance."""
    for _ in range(2):
        ctypes.memset(mapping.address + first * PAGE, 0xA5, (PAGES - first) * PAGE)


@contextlib.contextmanager
def meanwhile(action: Callable[[], object]) -> Iterator[None]:
    """Does it again and again in another thread."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            action()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def frames(mapping) -> set[int]:
    return resident_pages(mapping.address, PAGES)


class TestResidence:
    """A pinned page keeps its frame, whatever else is touched; afterwards it goes like others."""

    def test_pinned(self, mapping):
        with mapping.pin(3 * PAGE, 4 * PAGE):
            assert frames(mapping) >= {3, 4, 5, 6}
            press(mapping)
            assert frames(mapping) >= {3, 4, 5, 6}
            assert mapping.stats.resident <= mapping.stats.window
        press(mapping)
        assert frames(mapping).isdisjoint({3, 4, 5, 6})

    def test_not_pinned(self, mapping):
        mapping[3 * PAGE : 7 * PAGE] = noise(1, 4 * PAGE)
        assert frames(mapping) >= {3, 4, 5, 6}
        press(mapping)
        assert frames(mapping).isdisjoint({3, 4, 5, 6})
        assert mapping[3 * PAGE : 7 * PAGE] == noise(1, 4 * PAGE)

    def test_every_page_that_the_range_touches(self, mapping):
        with mapping.pin(PAGE - 1, PAGE + 2):
            press(mapping)
            assert frames(mapping) >= {0, 1, 2}

    def test_contents_come_in_with_it(self, device, mapping):
        device.write(0, entropy(1))
        with mapping.pin(0, PAGE):
            assert mapping[:PAGE] == entropy(1)

    def test_it_nests(self, mapping):
        with mapping.pin(0, 4 * PAGE):
            with mapping.pin(0, 4 * PAGE), mapping.pin(2 * PAGE, 4 * PAGE):
                pass
            press(mapping)
            assert frames(mapping) >= {0, 1, 2, 3}
            assert frames(mapping).isdisjoint({4, 5})

    def test_an_exception_unpins(self, mapping):
        with pytest.raises(KeyError), mapping.pin(0, PAGE):
            raise KeyError
        press(mapping)
        assert 0 not in frames(mapping)

    def test_beside_page_operations(self, device, mapping):
        """Device.write of the very page, by another thread, neither pins nor unpins it."""
        data = entropy(1)
        with meanwhile(lambda: device.write(0, data)):
            for _ in range(200):
                with mapping.pin(0, PAGE):
                    ctypes.memset(mapping.address + 64 * PAGE, 1, 64 * PAGE)
                    assert 0 in frames(mapping)
        with mapping.pin(0, MOST * PAGE):
            pass


class TestDirectInput:
    """O_DIRECT, which writes to the frames themselves, brings the right bytes under pressure."""

    @pytest.fixture
    def path(self, tmp_path) -> Path:
        return tmp_path / "sample"

    @pytest.fixture
    def sample(self, path) -> Iterator[int]:
        """A descriptor with O_DIRECT on 64 pages."""
        path.write_bytes(noise(7, 64 * PAGE))
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
        except OSError as error:
            pytest.skip(f"no O_DIRECT on {path}: {error.strerror}")
        yield descriptor
        os.close(descriptor)

    def test_read(self, device, mapping, sample):
        contents = noise(7, 64 * PAGE)
        with meanwhile(lambda: press(mapping)), memoryview(mapping) as view:
            for step in range(100):
                at = step % 8 * PAGE
                part = step % 16 * 4 * PAGE
                with mapping.pin(at, 4 * PAGE), view[at : at + 4 * PAGE] as buffer:
                    assert os.preadv(sample, [buffer], part) == 4 * PAGE
                    assert buffer == contents[part : part + 4 * PAGE]
                # What came in behind the page tables' back goes to the media.
                mapping.flush(at, 4 * PAGE)
                assert device.read(at, 4 * PAGE) == contents[part : part + 4 * PAGE]

    def test_read_is_kept_by_eviction(self, device, mapping, sample):
        with memoryview(mapping) as view, mapping.pin(0, 8 * PAGE):
            mapping.flush()
            assert os.preadv(sample, [view[: 8 * PAGE]], 0) == 8 * PAGE
        press(mapping)
        assert not device.page(0).resident
        assert device.read(0, 8 * PAGE) == noise(7, 8 * PAGE)

    def test_write(self, mapping, path, sample):
        with meanwhile(lambda: press(mapping)), memoryview(mapping) as view:
            for step in range(50):
                mapping[: 4 * PAGE] = noise(step, 4 * PAGE)
                with mapping.pin(0, 4 * PAGE):
                    assert os.pwritev(sample, [view[: 4 * PAGE]], 0) == 4 * PAGE
                assert path.read_bytes()[: 4 * PAGE] == noise(step, 4 * PAGE)


class TestSystemCalls:
    """A system call on a pinned page succeeds, inline too, whatever is evicted around it."""

    @pytest.fixture
    def zero(self) -> Iterator[int]:
        descriptor = os.open("/dev/zero", os.O_RDONLY)
        yield descriptor
        os.close(descriptor)

    def test_neighbours_are_evicted(self, mapping, zero):
        with mapping.pin(10 * PAGE, PAGE), memoryview(mapping) as view:
            mapping[9 * PAGE] = mapping[11 * PAGE] = 1
            press(mapping)
            assert frames(mapping).isdisjoint({9, 11})
            assert os.readv(zero, [view[10 * PAGE : 11 * PAGE]]) == PAGE

    def test_neighbours_are_flushed(self, mapping, zero):
        with mapping.pin(10 * PAGE, PAGE), memoryview(mapping) as view:
            for end in (10, 11, 12):
                mapping[9 * PAGE] = mapping[10 * PAGE] = mapping[11 * PAGE] = 1
                mapping.flush(9 * PAGE, (end - 9) * PAGE)
                assert os.readv(zero, [view[10 * PAGE : 11 * PAGE]]) == PAGE

    def test_at_any_instant(self, mapping, zero):
        with (
            meanwhile(mapping.flush),
            mapping.pin(10 * PAGE, PAGE),
            memoryview(mapping) as view,
        ):
            for step in range(2000):
                mapping[9 * PAGE] = mapping[11 * PAGE] = step & 0xFF
                assert os.readv(zero, [view[10 * PAGE : 11 * PAGE]]) == PAGE

    def test_not_pinned(self, device, zero):
        """The twin: under inline delivery the same is EFAULT without the pin."""
        with device.map(window=WINDOW, delivery="inline", writeback=0) as mapping:
            mapping[10 * PAGE] = 1
            press(mapping)
            with memoryview(mapping) as view, pytest.raises(OSError) as caught:
                os.readv(zero, [view[10 * PAGE : 11 * PAGE]])
            assert caught.value.errno == errno.EFAULT


class TestDirty:
    """A pinned frame counts as dirty all the time, since nobody sees what a device writes to it."""

    def test_flush_stores_a_snapshot(self, device, mapping):
        with mapping.pin(0, PAGE):
            mapping[:PAGE] = entropy(1)
            mapping.flush()
            info = device.page(0)
            assert (info.state, info.dirty, info.resident) == ("stored", True, True)
            assert mapping.stats.dirty == device.stats.dirty_frames == 1
            mapping[:PAGE] = entropy(2)
        mapping.flush()
        assert device.page(0).dirty is False
        assert mapping.stats.dirty == 0
        mapping.close()
        assert device.read(0, PAGE) == entropy(2)

    def test_page_operations_act_through_the_frame(self, device, mapping):
        with mapping.pin(0, PAGE):
            device.write(0, entropy(1))
            assert mapping[:PAGE] == entropy(1) == device.read(0, PAGE)
            device.discard(0, PAGE)
            assert mapping[:PAGE] == bytes(PAGE)
            assert 0 in frames(mapping)
        mapping.close()
        assert device.read(0, PAGE) == bytes(PAGE)


class TestRefusals:
    """What cannot be pinned is refused with a reason, and nothing is pinned then."""

    def test_more_than_the_window_allows(self, mapping):
        with pytest.raises(NoMemory, match=rf"pinning {MOST + 1} .* allows {MOST}"):
            mapping.pin(0, (MOST + 1) * PAGE).__enter__()
        with mapping.pin(0, MOST * PAGE):
            with pytest.raises(NoMemory, match=f"with {MOST} pinned"):
                mapping.pin(MOST * PAGE, PAGE).__enter__()
            with mapping.pin(PAGE, PAGE):  # it is already: no frame more
                pass
            # Two frames are left, and all else goes on in them.
            data = noise(1, 100 * PAGE)
            mapping[100 * PAGE : 200 * PAGE] = data
            assert mapping[100 * PAGE : 200 * PAGE] == data
            assert frames(mapping) >= set(range(MOST))
        with mapping.pin(200 * PAGE, MOST * PAGE):
            pass

    def test_poison(self, device, mapping):
        device.poison.inject(3 * PAGE + LINE)
        with pytest.raises(PoisonError, match=f"0x{3 * PAGE:x}"):
            mapping.pin(0, 4 * PAGE).__enter__()
        press(mapping)
        assert frames(mapping).isdisjoint(range(4))
        device.poison.clear(3 * PAGE + LINE)
        with mapping.pin(0, 4 * PAGE):
            pass

    def test_poison_for_a_pinned_page(self, device, mapping):
        """Its frame cannot be dropped."""
        with mapping.pin(0, PAGE):
            for command in (device.poison.inject, device.poison.clear):
                with pytest.raises(Busy, match="pinned"):
                    command(LINE)
        device.poison.inject(LINE)

    @pytest.mark.parametrize(
        "offset, length", [(0, (PAGES + 1) * PAGE), (PAGES * PAGE, 1), (-1, 1)]
    )
    def test_outside_the_mapping(self, mapping, offset, length):
        with pytest.raises(InvalidArgument, match=str(length)):
            mapping.pin(offset, length).__enter__()

    def test_unpinning_what_is_not_pinned(self, mapping):
        with mapping.pin(0, 4 * PAGE):
            for offset, length in ((0, PAGE), (PAGE, 4 * PAGE), (8 * PAGE, PAGE)):
                with pytest.raises(InvalidArgument, match=f"0x{offset:x}.* not a pinned range"):
                    check(lib.cram_unpin(mapping._handle, offset, length))
            press(mapping)
            assert frames(mapping) >= {0, 1, 2, 3}

    def test_very_many_ranges(self, mapping):
        with contextlib.ExitStack() as pins:
            for _ in range(256):
                pins.enter_context(mapping.pin(0, PAGE))
            with pytest.raises(NoMemory, match="256 ranges"):
                pins.enter_context(mapping.pin(0, PAGE))
        press(mapping)
        assert 0 not in frames(mapping)
