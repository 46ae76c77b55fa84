"""The device through its page functions and registers: capacity, contents, files, lifetime.

Contents are held against what the test itself remembers; what is derived, against the page map as
device_object.py reads it from the file.
"""

import hashlib
import os
import random
import signal
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from device_object import VERSION, DeviceObject
from hypothesis import given, strategies as st
from samples import LINE, PAGE, entropy, noise, right_or_poison, run_threads

from cram_emu import Device, PoisonError
from cram_emu._core import ffi, lib
from cram_emu.errors import DeviceIOError, InvalidArgument, NotADevice, WrongVersion


@pytest.fixture
def device_file(tmp_path: Path) -> Path:
    """A device at rest, with the word of its number in each of its first 8 pages."""
    path = tmp_path / "device"
    with Device("1M", "64K", path=path) as dev:
        for page in range(8):
            dev.write(page * PAGE, entropy(page, 8))
    return path


class TestGeometry:
    @pytest.mark.parametrize(
        "advertised, real, options",
        [
            ("1M", 4096, {}),
            ("1M", "1M", {}),
            ("1M", "1M", {"sector": 4096}),
            (2**20 + 4096, 4096 + 64, {}),
            ("1T", "1G", {}),
            ("1T", "1T", {"sector": 4096}),
            ("1T", (2**32 - 2) * 64, {}),
        ],
    )
    def test_limits(self, advertised, real, options: dict):
        """The smallest and the largest sizes work, at their first and last page."""
        with Device(advertised, real, **options) as dev:
            last = dev.params.advertised - PAGE
            dev.write(last, entropy(1, 8))
            assert dev.read(last, PAGE) == entropy(1, 8)
            assert dev.read(0, PAGE) == bytes(PAGE)
            dev.discard(0, dev.params.advertised)
            assert dev.stats.used == 0

    @pytest.mark.parametrize(
        "wrong, named",
        [
            ({"advertised": 0}, "advertised capacity 0"),
            ({"advertised": 2**20 - 4096}, 2**20 - 4096),
            ({"advertised": 2**40 + 4096}, 2**40 + 4096),
            ({"advertised": 2**20 + 64}, 2**20 + 64),
            ({"advertised": 2**64}, 2**64),
            ({"advertised": "1X"}, "1X"),
            ({"advertised": -1}, -1),
            ({"real": 0}, "real capacity 0"),
            ({"real": 4032}, 4032),
            ({"real": "2M"}, 2 << 20),
            ({"real": 65536 + 32}, 65536 + 32),
            ({"real": 65536 + 64, "sector": 128}, 65536 + 64),
            ({"real": 2**64}, 2**64),
            ({"real": "much"}, "much"),
            ({"advertised": "1T", "real": 2**38}, 2**38),
            ({"sector": 0}, "sector of 0"),
            ({"sector": 32}, "sector of 32"),
            ({"sector": 96}, "sector of 96"),
            ({"sector": 8192}, "sector of 8192"),
            ({"sector": 2**32 + 64}, 2**32 + 64),
            ({"sector": 64.0}, 64.0),
            ({"block": 0}, "block of 0"),
            ({"block": 512}, "block of 512"),
            ({"block": 3072}, "block of 3072"),
            ({"block": 8192}, "block of 8192"),
            ({"codec": "lzma"}, "lzma"),
            ({"codec": None}, None),
            ({"level": 0}, "level 0"),
            ({"level": -1}, "level -1"),
            ({"level": 65538}, 65538),
            ({"level": 1.5}, 1.5),
            ({"level": 2**31}, 2**31),
            ({"codec": "zstd", "level": 20}, "level 20"),
            ({"codec": "zstd", "level": 0}, "level 0"),
            ({"codec": "none", "level": 1}, "level 1"),
            ({"largest_stored": 4097}, 4097),
            ({"largest_stored": -1}, -1),
            ({"poison_limit": 0}, "poison limit 0"),
            ({"poison_limit": 1025}, 1025),
            ({"poison_limit": None}, None),
            ({"lthresh": "30%", "hthresh": "20%"}, "low 19660 and high 13107"),
            ({"hthresh": 65537}, 65537),
            ({"hthresh": "101%"}, "101%"),
            ({"lthresh": "-1%"}, "-1%"),
            ({"lthresh": "nan%"}, "nan%"),
            ({"lthresh": "some"}, "some"),
            ({"lthresh": 1.5}, 1.5),
            ({"ratio_lthresh": 2.0, "ratio_hthresh": 1.5}, "low 2000 and high 1500"),
            ({"ratio_lthresh": -1.0}, -1.0),
            ({"ratio_lthresh": float("nan")}, "nan"),
            ({"ratio_hthresh": float("inf")}, "inf"),
            ({"signal": -1}, "signal -1"),
            ({"signal": 65}, "signal 65"),
            ({"signal": signal.SIGKILL}, "signal 9"),
            ({"signal": signal.SIGBUS}, "signal 7"),
            ({"signal": signal.SIGSEGV}, "signal 11"),
            ({"signal": 33}, "signal 33"),
            ({"signal": "USR1"}, "USR1"),
        ],
    )
    def test_nonsense(self, wrong: dict, named, tmp_path: Path, nothing_left):
        """A value that makes no sense is a ValueError that names it, and leaves nothing behind."""
        sizes = {"advertised": "1M", "real": "64K"}
        with pytest.raises(ValueError) as caught:
            Device(**sizes | wrong, path=tmp_path / "device")
        assert str(named) in str(caught.value)

    def test_params(self):
        """A device tells what it was created with."""
        with Device(
            *("2M", "128K"),
            codec="zstd",
            level=7,
            block=2048,
            sector=256,
            largest_stored=3000,
            poison_limit=10,
            lthresh="25%",
            hthresh=65536,
            ratio_lthresh=1.5,
            ratio_hthresh=2.25,
            signal=0,
        ) as dev:
            p = dev.params
        assert (p.advertised, p.real, p.sector, p.block) == (2 << 20, 128 << 10, 256, 2048)
        assert (p.codec, p.level, p.largest_stored, p.poison_limit) == ("zstd", 7, 3000, 10)
        assert (p.lthresh, p.hthresh) == (32768, 65536)
        assert (p.ratio_lthresh, p.ratio_hthresh, p.signal) == (1.5, 2.25, 0)

    def test_defaults(self):
        """Without words it is 8 GiB advertised, 1 GiB real, lz4, 64-byte sectors, 10 % and 20 %."""
        with Device() as dev:
            p = dev.params
        assert (p.advertised, p.real, p.codec, p.level) == (8 << 30, 1 << 30, "lz4", 1)
        assert (p.sector, p.block, p.largest_stored, p.poison_limit) == (64, 4096, 4032, 1024)
        assert (p.lthresh, p.hthresh) == ((1 << 30) // 10, (1 << 30) // 5)
        assert (p.ratio_lthresh, p.ratio_hthresh) == (0.0, 0.0)
        assert p.signal == signal.SIGRTMIN + 12

    @pytest.mark.parametrize("advertised, most", [("8G", 8 << 20), ("1T", 32 << 20)])
    def test_sparse(self, advertised: str, most: int):
        """An untouched device takes little memory, however much it advertises; what is written adds."""
        with Device(advertised, "1G") as dev:
            before = os.fstat(dev.fileno()).st_blocks * 512
            assert before <= most
            for page in range(1024):
                dev.write(page * PAGE, noise(page))
            assert os.fstat(dev.fileno()).st_blocks * 512 > before + 1024 * PAGE

    def test_private_file(self, device_file: Path):
        """A device file is for its owner only."""
        assert stat.S_IMODE(device_file.stat().st_mode) == 0o600


class TestCapacity:
    @pytest.mark.parametrize(
        "real, sector",
        [(65536, 64), (65536, 4096), (65536 + 3 * 64, 64), (65536 + 2048, 1024), (4096, 64)],
    )
    def test_exact(self, real: int, sector: int):
        """Of incompressible pages exactly real / 4096 fit; each other is dropped, poison, counted."""
        fit = real // PAGE
        with Device("1M", real, sector=sector) as dev:
            for page in range(256):
                dev.write(page * PAGE, noise(page))
                assert dev.stats.used == min(page + 1, fit) * PAGE
            lost = [right_or_poison(dev, page * PAGE, noise(page)) for page in range(256)]
            assert lost == [False] * fit + [True] * (256 - fit)
            stats = dev.stats
            assert stats.dropped_writes == stats.poisoned == 256 - fit
            assert (stats.pages_raw, stats.peak, stats.real) == (fit, fit * PAGE, real)
            assert stats.remaining == real - stats.used < PAGE
            assert all(dev.page(p * PAGE).state == "poison" for p in range(fit, 256))
            DeviceObject(dev.fileno()).check()

    def test_last_sector(self):
        """A page that needs every sector that is left gets it; one more than that is dropped."""
        with Device("1M", 4096 + 2 * 64) as dev:
            dev.write(0, noise(0))
            dev.write(PAGE, entropy(1, 80))
            assert (dev.stats.remaining, dev.stats.dropped_writes) == (0, 0)
            dev.write(2 * PAGE, entropy(2, 8))
            assert (dev.stats.remaining, dev.stats.dropped_writes) == (0, 1)
            assert dev.read(PAGE, PAGE) == entropy(1, 80)

    def test_writer_is_not_told(self):
        """A write that is dropped returns as one that is stored."""
        with Device("1M", "4K") as dev:
            assert dev.write(0, noise(0)) is None
            assert dev.write(PAGE, noise(1)) is None
            assert [dev.page(dpa).state for dpa in (0, PAGE)] == ["raw", "poison"]

    def test_rewriting_full(self):
        """Every page of a full device can be rewritten without growth, again and again."""
        with Device("1M", "64K") as dev:
            for generation in range(3):
                for page in range(16):
                    dev.write(page * PAGE, noise(generation * 16 + page))
                assert (dev.stats.remaining, dev.stats.dropped_writes) == (0, 0)
            data = b"".join(noise(32 + page) for page in range(16))
            assert dev.read(0, 65536) == data

    def test_growth_on_full(self):
        """One that grows on a full device is dropped, and what it held is free again."""
        with Device("1M", "64K") as dev:
            for page in range(15):
                dev.write(page * PAGE, noise(page))
            dev.write(15 * PAGE, entropy(15, 2000))
            held = dev.page(15 * PAGE).sectors * 64
            while (left := dev.stats.remaining) > 0:
                dev.write((20 + left // 64) * PAGE, entropy(left, 8))
            dev.write(15 * PAGE, noise(15))
            assert dev.page(15 * PAGE).state == "poison"
            assert (dev.stats.dropped_writes, dev.stats.remaining) == (1, held)

    def test_shrinking_frees(self):
        """A page rewritten smaller gives the rest of its sectors back."""
        with Device("1M", "4K") as dev:
            dev.write(0, noise(0))
            dev.write(0, entropy(1, 1000))
            assert dev.stats.remaining == 4096 - dev.page(0).sectors * 64 > 2048
            assert dev.read(0, PAGE) == entropy(1, 1000)
            dev.write(0, bytes(PAGE))
            assert dev.stats.remaining == 4096

    def test_no_fragmentation(self):
        """Whatever is free can be used: after every other small page goes, raw pages fill it all."""
        with Device("1M", "16K") as dev:
            for page in range(256):
                dev.write(page * PAGE, entropy(page, 8))
            assert dev.stats.remaining == 0
            for page in range(0, 256, 2):
                dev.discard(page * PAGE, PAGE)
            assert dev.stats.remaining == 8192
            dev.write(0, noise(0))
            dev.write(2 * PAGE, noise(2))
            assert (dev.stats.remaining, dev.stats.dropped_writes) == (0, 0)
            assert dev.read(0, PAGE) + dev.read(2 * PAGE, PAGE) == noise(0) + noise(2)
            assert dev.read(PAGE, PAGE) == entropy(1, 8)
            DeviceObject(dev.fileno()).check()

    @pytest.mark.parametrize("codec", ["lz4", "zstd"])
    def test_payload(self, codec: str):
        """Full of payloads of 1 to 2 KiB, at least 95 % of the real capacity is compressed bytes."""
        sizes = random.Random(1)
        with Device("4M", "1M", codec=codec) as dev:
            for page in range(1024):
                dev.write(page * PAGE, entropy(page, sizes.randrange(1000, 2000)))
            assert dev.stats.dropped_writes > 0
            assert dev.stats.payload >= 0.95 * dev.stats.real

    def test_never_more_than_real(self):
        """Threads that overflow the device together never push used, nor its peak, past real."""
        worst = 0

        def fill(seed: int) -> None:
            nonlocal worst
            pages = random.Random(seed)
            for number in range(4000):
                dev.write(pages.randrange(256) * PAGE, contents[number % 20])
                worst = max(worst, dev.stats.used)

        contents = [noise(seed) if seed % 5 else bytes(PAGE) for seed in range(20)]
        with Device("1M", "64K", signal=0) as dev:
            run_threads(*[lambda seed=seed: fill(seed) for seed in range(4)])
            assert dev.stats.dropped_writes > 0
            assert max(worst, dev.stats.peak) <= dev.stats.real
            DeviceObject(dev.fileno()).check()

    @pytest.mark.parametrize("codec", ["none", "lz4"])
    def test_all_freed(self, codec: str):
        """After everything is discarded nothing is used, poisoned or counted."""
        with Device("1M", "64K", codec=codec) as dev:
            for page in range(256):
                dev.write(page * PAGE, entropy(page, 16 * page or 8))
            dev.poison.inject(0)
            dev.discard(0, "1M")
            stats = dev.stats
            assert (stats.used, stats.payload, stats.poisoned, stats.poison_records) == (0, 0, 0, 0)
            assert stats.pages_raw == stats.pages_stored == stats.pages_zero == stats.pages_same == 0
            assert (stats.ratio, stats.remaining) == (0.0, stats.real)
            assert dev.read(0, 1 << 20) == bytes(1 << 20)
            DeviceObject(dev.fileno()).check()


class TestWrite:
    @pytest.mark.parametrize(
        "convert", [bytes, bytearray, memoryview, lambda data: numpy.frombuffer(data, "<u8")]
    )
    def test_buffers(self, convert):
        """Anything that holds bytes in one piece can be written."""
        with Device("1M", "64K") as dev:
            dev.write(PAGE, convert(noise(1, 3 * PAGE)))
            assert dev.read(PAGE, 3 * PAGE) == noise(1, 3 * PAGE)

    def test_nothing(self):
        """Writing no bytes changes nothing."""
        with Device("1M", "64K") as dev:
            dev.write(PAGE, b"")
            assert dev.stats.used == dev.stats.pages_zero == 0

    @pytest.mark.parametrize(
        "dpa, length, named",
        [
            (0, 1, "1 bytes"),
            (0, PAGE + 64, "4160 bytes"),
            (64, PAGE, "0x40"),
            (1 << 20, PAGE, "0x100000"),
            ((1 << 20) - PAGE, 2 * PAGE, "8192 bytes at 0xff000"),
            (-PAGE, PAGE, "-1000"),
            (1 << 64, PAGE, "0x10000000000000000"),
        ],
    )
    def test_bad_range(self, dpa: int, length: int, named: str):
        """Other than whole pages within the advertised capacity is refused by name, and changes nothing."""
        with Device("1M", "64K") as dev:
            before = dev.stats
            with pytest.raises(InvalidArgument) as caught:
                dev.write(dpa, noise(1, length))
            assert named in str(caught.value)
            assert dev.stats == before

    def test_past_the_capacity(self):
        """The C function drops a write past the capacity, and counts it."""
        with Device("1M", "64K") as dev:
            lib.cram_write_page(dev._handle, 1 << 20, noise(1))
            lib.cram_write_page(dev._handle, 2**64 - PAGE, noise(1))
            assert (dev.stats.refused_writes, dev.stats.used) == (2, 0)

    def test_inside_page(self):
        """The C function acts on the page that holds the address."""
        with Device("1M", "64K") as dev:
            lib.cram_write_page(dev._handle, PAGE + 123, noise(1))
            assert dev.read(PAGE, PAGE) == noise(1)


class TestRead:
    @given(st.integers(0, 5 * PAGE), st.integers(0, 3 * PAGE))
    def test_any_range(self, dpa: int, length: int):
        """Any range of bytes reads as it was written, and as zeros where nothing was."""
        data = noise(1, 4 * PAGE) + bytes(4 * PAGE)
        with Device("1M", "64K", signal=0) as dev:
            dev.write(0, data[: 4 * PAGE])
            assert dev.read(dpa, length) == data[dpa : dpa + length]

    @pytest.mark.parametrize(
        "dpa, length", [(0, (1 << 20) + 1), (1 << 20, 1), (-1, 1), (0, -1), (1 << 70, 1)]
    )
    def test_bad_range(self, dpa: int, length: int):
        """A range outside the advertised capacity is refused by name."""
        with Device("1M", "64K") as dev, pytest.raises(InvalidArgument) as caught:
            dev.read(dpa, length)
        assert f"{length} bytes at" in str(caught.value)

    def test_end(self):
        """The last byte can be read, and nothing at the very end."""
        with Device("1M", "64K") as dev:
            assert dev.read((1 << 20) - 1, 1) == b"\0"
            assert dev.read(1 << 20, 0) == b""

    @pytest.mark.parametrize("line", [0, 1, 31, 63])
    def test_copy_mc(self, line: int):
        """The C function copies up to the first poisoned line, no byte further, and says what is missing."""
        buffer = bytearray(b"\xee" * PAGE)
        with Device("1M", "64K") as dev:
            dev.write(0, noise(1))
            assert lib.cram_read_page(dev._handle, 0, ffi.from_buffer(buffer)) == 0
            assert buffer == noise(1)
            buffer[:] = b"\xee" * PAGE
            dev.poison.inject(line * LINE)
            dev.poison.inject(63 * LINE)
            missing = lib.cram_read_page(dev._handle, 0, ffi.from_buffer(buffer))
        assert missing == PAGE - line * LINE
        assert buffer == noise(1)[: line * LINE] + b"\xee" * missing

    def test_past_the_capacity(self):
        """Past the capacity the C function copies nothing."""
        buffer = bytearray(b"\xee" * PAGE)
        with Device("1M", "64K") as dev:
            assert lib.cram_read_page(dev._handle, 1 << 20, ffi.from_buffer(buffer)) == PAGE
        assert buffer == b"\xee" * PAGE


class TestDiscard:
    def test_range(self):
        """Exactly the pages of the range are empty and read as zeros; those beside it stay."""
        with Device("1M", "64K") as dev:
            for page in range(8):
                dev.write(page * PAGE, entropy(page, 100))
            dev.discard(2 * PAGE, "12K")
            states = [dev.page(page * PAGE).state for page in range(8)]
            assert states == ["stored"] * 2 + ["empty"] * 3 + ["stored"] * 3
            assert dev.read(2 * PAGE, 3 * PAGE) == bytes(3 * PAGE)
            assert dev.read(PAGE, PAGE) == entropy(1, 100)
            assert dev.read(5 * PAGE, PAGE) == entropy(5, 100)
            DeviceObject(dev.fileno()).check()

    def test_nothing(self):
        """Discarding no page, or what is empty, changes nothing."""
        with Device("1M", "64K") as dev:
            dev.write(0, noise(0))
            before = dev.stats
            dev.discard(0, 0)
            dev.discard(PAGE, "1020K")
            assert dev.stats == before
            assert dev.read(0, PAGE) == noise(0)

    @pytest.mark.parametrize(
        "dpa, length", [(64, PAGE), (0, 100), (0, (1 << 20) + PAGE), (-PAGE, PAGE), (0, -PAGE)]
    )
    def test_bad_range(self, dpa: int, length: int):
        """Other than whole pages within the capacity is refused, and changes nothing."""
        with Device("1M", "64K") as dev:
            dev.write(0, noise(0))
            with pytest.raises(ValueError) as caught:
                dev.discard(dpa, length)
            assert str(length) in str(caught.value)
            assert dev.read(0, PAGE) == noise(0)


class TestRegisters:
    def test_counts(self):
        """Every register agrees with what was done."""
        with Device("1M", "8K", poison_limit=1) as dev:
            dev.write(0, noise(0))
            dev.write(1 * PAGE, entropy(1, 1000))
            dev.write(2 * PAGE, bytes(PAGE))
            dev.write(3 * PAGE, b"12345678" * 512)
            dev.write(4 * PAGE, noise(4))
            dev.write(5 * PAGE, noise(5))
            stats, page = dev.stats, dev.page(1 * PAGE)
            assert (stats.advertised, stats.real) == (1 << 20, 8192)
            assert (stats.pages_raw, stats.pages_stored) == (1, 1)
            assert (stats.pages_zero, stats.pages_same) == (1, 1)
            assert stats.payload == PAGE + page.length
            assert stats.used == stats.peak == PAGE + page.sectors * 64
            assert stats.remaining == 8192 - stats.used
            assert stats.ratio == 4 * PAGE * 1000 // stats.used / 1000
            assert (stats.dropped_writes, stats.refused_writes, stats.media_errors) == (2, 0, 0)
            assert (stats.poisoned, stats.poison_records, stats.poison_overflow) == (2, 1, 1)
            assert (stats.lost_pages, stats.dirty_frames, stats.clients) == (0, 0, 1)

    def test_peak_stays(self):
        """The peak stays when used falls."""
        with Device("1M", "64K") as dev:
            dev.write(0, noise(0) + noise(1))
            dev.discard(0, 2 * PAGE)
            assert (dev.stats.used, dev.stats.peak) == (0, 2 * PAGE)

    def test_frozen(self):
        """Statistics are a reading: they do not change, and cannot be changed."""
        with Device("1M", "64K") as dev:
            stats = dev.stats
            dev.write(0, noise(0))
            assert (stats.used, dev.stats.used) == (0, PAGE)
            with pytest.raises(AttributeError):
                stats.used = 1

    def test_pressure(self):
        """The driver's pressure reads back from 0 to 1000; other values are refused by name."""
        with Device("1M", "64K") as dev:
            for value in (1, 1000, 0, 500):
                dev.pressure = value
                assert dev.pressure == dev.stats.pressure == value
            for value in (-1, 1001, 2**32):
                with pytest.raises(InvalidArgument, match=str(value)):
                    dev.pressure = value
            assert dev.pressure == 500

    def test_no_alloc(self):
        """The driver's no_alloc bit reads back, and the data plane does not obey it."""
        with Device("1M", "64K") as dev:
            assert dev.no_alloc is False
            dev.no_alloc = True
            assert dev.no_alloc is dev.stats.no_alloc is True
            dev.write(0, noise(0))
            assert dev.read(0, PAGE) == noise(0)
            dev.no_alloc = False
            assert dev.no_alloc is False


class TestPage:
    def test_states(self):
        """Each kind of page is told apart; an address within a page means that page."""
        with Device("1M", "8K") as dev:
            dev.write(PAGE, bytes(PAGE))
            dev.write(2 * PAGE, b"\1" * PAGE)
            dev.write(3 * PAGE, entropy(3, 100))
            dev.write(4 * PAGE, noise(4))
            dev.write(5 * PAGE, noise(5))
            states = [dev.page(page * PAGE + 4095).state for page in range(6)]
            assert states == ["empty", "zero", "same", "stored", "raw", "poison"]
            poisoned = [dev.page(page * PAGE).poisoned for page in range(6)]
            assert poisoned == [0] * 5 + [2**64 - 1]
            assert not any(dev.page(p * PAGE).dirty or dev.page(p * PAGE).resident for p in range(6))

    @pytest.mark.parametrize("dpa", [1 << 20, -1, 1 << 64])
    def test_outside(self, dpa: int):
        """An address outside the advertised capacity is refused by name."""
        with Device("1M", "64K") as dev, pytest.raises(InvalidArgument, match=f"{dpa:x}"):
            dev.page(dpa)


class TestFile:
    def test_survives(self, tmp_path: Path):
        """A device outlives its process object: contents, counters and parameters are there again."""
        path = tmp_path / "device"
        with Device("1M", "64K", path=path, codec="zstd", level=5, sector=128) as dev:
            for page in range(256):
                dev.write(page * PAGE, entropy(page, 100 + page))
            params, stats = dev.params, dev.stats
            digest = hashlib.sha256(b"".join(readable(dev))).digest()
        with Device.open(path) as dev:
            assert (dev.params, dev.stats) == (params, stats)
            assert hashlib.sha256(b"".join(readable(dev))).digest() == digest
            dev.write(0, entropy(1, 8))
            assert dev.read(0, PAGE) == entropy(1, 8)

    def test_anonymous(self):
        """A device without a path can be joined through its descriptor, and dies with the last."""
        with Device("1M", "64K") as dev:
            dev.write(0, noise(0))
            with Device.open(f"/proc/self/fd/{dev.fileno()}") as other:
                assert other.read(0, PAGE) == noise(0)
                assert other.stats.clients == 2
            assert dev.stats.clients == 1

    def test_path_kinds(self, tmp_path: Path):
        """A path may be text, bytes or a path object, with any byte in it but NUL."""
        name = tmp_path / "näme \udcff"
        Device("1M", "64K", path=name).close()
        for path in (name, str(name), os.fsencode(name)):
            Device.open(path).close()

    def test_nul(self, tmp_path: Path, nothing_left):
        """A path with a NUL byte is refused, not cut there."""
        with pytest.raises(ValueError):
            Device("1M", "64K", path=str(tmp_path / "cut") + "\0off")
        with pytest.raises(ValueError):
            Device.open("/dev/null\0")

    @pytest.mark.parametrize(
        "content", [b"", b"C", b"CRAMEMU", b"ELF" * 5000, bytes(1 << 20)], ids=len
    )
    def test_foreign(self, content: bytes, tmp_path: Path, nothing_left_open):
        """A file of something else is refused, and not changed."""
        path = tmp_path / "foreign"
        path.write_bytes(content)
        with pytest.raises(NotADevice, match="foreign: not a cram_emu device"):
            Device.open(path)
        assert path.read_bytes() == content

    def test_special_files(self, tmp_path: Path, nothing_left_open):
        """What is no regular file is refused."""
        os.mkfifo(tmp_path / "fifo")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "socket"))
            for path in (tmp_path / "fifo", Path("/dev/zero")):
                with pytest.raises(NotADevice, match=path.name):
                    Device.open(path)
            for path in (tmp_path / "socket", tmp_path):
                with pytest.raises((NotADevice, DeviceIOError), match=path.name):
                    Device.open(path)

    @pytest.mark.parametrize("kept", [7, 8, 12, 15, 100, 191, 320, 4096, 100_000, -1])
    def test_truncated(self, kept: int, device_file: Path, nothing_left_open):
        """A truncated file is refused, wherever it ends."""
        size = device_file.stat().st_size
        os.truncate(device_file, kept if kept > 0 else size + kept)
        with pytest.raises(NotADevice, match="device"):
            Device.open(device_file)

    def test_longer(self, device_file: Path, nothing_left_open):
        """A file with something behind it is refused, with both lengths."""
        size = device_file.stat().st_size
        os.truncate(device_file, size + 1)
        with pytest.raises(NotADevice, match=f"{size + 1} bytes.*{size}"):
            Device.open(device_file)
        os.truncate(device_file, size)
        Device.open(device_file).close()

    @pytest.mark.parametrize("version", [0, VERSION - 1, VERSION + 1, 2**32 - 1])
    def test_version(self, version: int, device_file: Path, nothing_left_open):
        """Another layout is refused by its version, before anything else of it is believed."""
        with open(device_file, "r+b") as file:
            file.seek(8)
            file.write(struct.pack("<I", version) + b"\xff" * 1000)
        with pytest.raises(WrongVersion, match=f"version {version}"):
            Device.open(device_file)

    def test_damaged_geometry(self, device_file: Path):
        """Any byte of the geometry changed is noticed."""
        head = device_file.read_bytes()[:184]
        with open(device_file, "r+b", buffering=0) as file:
            for at in range(184):
                file.seek(at)
                file.write(bytes([head[at] ^ 0x10]))
                with pytest.raises((NotADevice, WrongVersion)):
                    Device.open(device_file)
                file.seek(at)
                file.write(head[at : at + 1])
        with Device.open(device_file) as dev:
            assert dev.read(7 * PAGE, PAGE) == entropy(7, 8)

    def test_half_made(self, device_file: Path):
        """A file whose maker died before it was whole is refused."""
        with open(device_file, "r+b") as file:
            file.write(bytes(8))
        with pytest.raises(NotADevice, match="no magic"):
            Device.open(device_file)

    def test_another_user_s(self, run_child, skip_unless_root, tmp_path_factory):
        """Another user's device is refused; given to that user it opens."""
        program = """
            import os, sys
            from cram_emu import CramError, Device
            os.setuid(65534)
            try:
                with Device.open(sys.argv[1]) as dev:
                    print(dev.stats.clients)
            except CramError as error:
                print(type(error).__name__, error)
        """
        folder = Path(f"/dev/shm/cram_emu-test-{os.getpid()}")
        folder.mkdir(mode=0o755)
        try:
            path = folder / "device"
            Device("1M", "64K", path=path).close()
            assert run_child(program, path).stdout == f"AccessDenied {path}: Permission denied\n"
            os.chown(path, 65534, 65534)
            assert run_child(program, path).stdout == "1\n"
        finally:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()


def readable(device: Device) -> Iterator[bytes]:
    """Each page, or its poison."""
    for dpa in range(0, device.params.advertised, PAGE):
        try:
            yield device.read(dpa, PAGE)
        except PoisonError as error:
            yield str(error).encode()


class TestNoRoom:
    def test_small_file_system(self, small_tmpfs: Path):
        """On a file system that a full device would not fit, none is made; a smaller one is."""
        free = os.statvfs(small_tmpfs)
        with pytest.raises(OSError) as caught:
            Device("16M", "16M", path=small_tmpfs / "device")
        assert str(free.f_bavail * free.f_frsize) in str(caught.value)
        assert list(small_tmpfs.iterdir()) == []
        with Device("16M", "1M", path=small_tmpfs / "device") as dev:
            for page in range(300):
                dev.write(page * PAGE, noise(page))
            assert dev.stats.used == 1 << 20

    def test_full_file_system(self, small_tmpfs: Path):
        """On a full file system the message has its numbers, and no file stays."""
        (small_tmpfs / "filler").write_bytes(bytes(3 << 20))
        with pytest.raises(OSError, match="bytes free, a full device takes"):
            Device("1M", "1M", path=small_tmpfs / "device")
        assert [path.name for path in small_tmpfs.iterdir()] == ["filler"]

    def test_no_address_space(self, run_child, tmp_path: Path):
        """Whatever the limit on address space stops, NoMemory is raised and no file stays."""
        child = run_child(
            """
            import os, resource, sys
            from cram_emu import Device
            from cram_emu.errors import NoMemory

            def attempt(room):
                size = int(open("/proc/self/statm").read().split()[0]) * 4096
                resource.setrlimit(resource.RLIMIT_AS, (size + room, size + room))
                try:
                    Device("1M", "64K", path=sys.argv[1])
                except NoMemory:
                    os._exit(2 if os.path.exists(sys.argv[1]) else 1)
                os._exit(0)

            # Up to where it succeeds.
            for room in range(0, 64 << 20, 1 << 20):
                child = os.fork()
                if child == 0:
                    attempt(room)
                print(status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
                if status == 0:
                    break
            """,
            tmp_path / "device",
        )
        outcomes = child.stdout.split()
        assert outcomes[-1] == "0" and len(outcomes) > 3
        assert set(outcomes[:-1]) == {"1"}

    def test_no_descriptors(self, run_child, tmp_path: Path):
        """Whatever the limit on descriptors stops, a CramError is raised and no file stays."""
        child = run_child(
            """
            import os, resource, sys
            from cram_emu import CramError, Device
            free = os.dup(0)
            os.close(free)
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            for room in range(8):
                resource.setrlimit(resource.RLIMIT_NOFILE, (free + room, hard))
                try:
                    Device("1M", "64K", path=sys.argv[1]).close()
                except CramError as error:
                    print("left" if os.path.exists(sys.argv[1]) else "clean", error)
                else:
                    print("made")
                    break
            """,
            tmp_path / "device",
        )
        *failed, made = child.stdout.splitlines()
        assert made == "made" and failed
        assert all(line.startswith("clean") for line in failed)
        assert all("open files" in line or "descriptors" in line for line in failed)


class TestThreads:
    def test_own_pages(self):
        """Many threads on pages of their own: each page is as its thread left it, or poison."""
        threads, rounds = 8, 400

        def work(thread: int) -> None:
            generator = random.Random(thread)
            mine = range(thread, 256, threads)
            for _ in range(rounds):
                page = generator.choice(mine)
                kind = generator.random()
                if kind < 0.15:
                    dev.discard(page * PAGE, PAGE)
                    last[page] = bytes(PAGE)
                elif kind < 0.6:
                    last[page] = entropy(generator.getrandbits(32), generator.choice(amounts))
                    dev.write(page * PAGE, last[page])
                else:
                    right_or_poison(dev, page * PAGE, last[page])

        amounts = [8, 500, 1500, 3000, 4096]
        last = {page: bytes(PAGE) for page in range(256)}
        with Device("1M", "128K", signal=0) as dev:
            run_threads(*[lambda thread=thread: work(thread) for thread in range(threads)])
            poison = sum(right_or_poison(dev, page * PAGE, data) for page, data in last.items())
            assert poison == dev.stats.poisoned > 0
            assert dev.stats.dropped_writes >= poison
            DeviceObject(dev.fileno()).check()

    def test_shared_pages(self):
        """Threads that write and read the same few pages never see half of a write."""

        def work(thread: int) -> None:
            generator = random.Random(thread)
            for number in range(600):
                dpa = generator.randrange(4) * PAGE
                if number % 2:
                    dev.write(dpa, versions[generator.randrange(len(versions))])
                else:
                    assert dev.read(dpa, PAGE) in versions

        versions = [entropy(seed, 100 + 150 * seed) for seed in range(20)] + [bytes(PAGE)]
        with Device("1M", "64K", signal=0) as dev:
            run_threads(*[lambda thread=thread: work(thread) for thread in range(6)])
            DeviceObject(dev.fileno()).check()
