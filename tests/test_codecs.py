"""Stored forms. Oracles: the Python lz4 package and libzstd, given what lies in the device's file."""

import ctypes
import itertools
import random
import struct

import lz4.block
import pytest
from device_object import DeviceObject
from hypothesis import given, strategies as st
from samples import PAGE, entropy, noise

from cram_emu import Device

SIZE = ctypes.c_size_t
ZSTD = ctypes.CDLL("libzstd.so.1")
ZSTD.ZSTD_compress.restype = ZSTD.ZSTD_decompress.restype = SIZE

ZERO = bytes(PAGE)
# Every way from a page that nearly vanishes to one that does not shrink.
AMOUNTS = (1, 8, 64, 500, 1024, 1500, 2048, 3000, 3900, 4000, 4088, 4096)


def text_page() -> bytes:
    """Words in random order."""
    words = [random.Random(seed).randbytes(5).hex() for seed in range(200)]
    return " ".join(random.Random(9).choices(words, k=800)).encode()[:PAGE]


def stored_form(device: Device, dpa: int) -> bytes:
    return DeviceObject(device.fileno()).form(dpa // PAGE)


def zstd_decompress(form: bytes, size: int) -> bytes:
    page = ctypes.create_string_buffer(size)
    assert ZSTD.ZSTD_decompress(page, SIZE(size), form, SIZE(len(form))) == size
    return page.raw


def zstd_length(page: bytes, level: int) -> int:
    form = ctypes.create_string_buffer(2 * PAGE)
    return ZSTD.ZSTD_compress(form, SIZE(len(form)), page, SIZE(PAGE), level)


class TestZeroPages:
    @pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
    def test_no_sectors(self, codec: str):
        """A page of zeros takes no sector and counts as a zero page."""
        with Device("1M", "64K", codec=codec) as dev:
            dev.write(0, ZERO * 16)
            assert (dev.page(0).state, dev.page(0).sectors, dev.page(0).media) == ("zero", 0, 0)
            assert (dev.stats.used, dev.stats.pages_zero) == (0, 16)
            assert dev.read(0, 16 * PAGE) == ZERO * 16

    @pytest.mark.parametrize("at", [0, 7, 8, 2048, 4088, 4095])
    def test_one_bit(self, at: int):
        """A single bit anywhere makes it an ordinary page."""
        page = bytearray(PAGE)
        page[at] = 1
        with Device("1M", "64K") as dev:
            dev.write(0, page)
            assert dev.page(0).state == "stored"
            assert dev.stats.used > 0
            assert dev.read(0, PAGE) == page


class TestSameFilledPages:
    @given(st.integers(1, 2**64 - 1))
    def test_word(self, word: int):
        """A page of one repeated 8-byte word takes no sector and reads back."""
        page = struct.pack("<Q", word) * (PAGE // 8)
        with Device("1M", "4K", signal=0) as dev:
            dev.write(4096, page)
            assert (dev.page(4096).state, dev.page(4096).sectors) == ("same", 0)
            assert (dev.stats.used, dev.stats.pages_same) == (0, 1)
            assert dev.read(4096, PAGE) == page

    def test_more_than_real(self):
        """Same-filled pages fill the whole advertised capacity of a device without room for one."""
        with Device("1M", "4K") as dev:
            for page in range(256):
                dev.write(page * PAGE, struct.pack("<Q", ~page & 2**64 - 1) * 512)
            assert (dev.stats.used, dev.stats.pages_same, dev.stats.dropped_writes) == (0, 256, 0)
            for page in range(256):
                assert dev.read(page * PAGE, 8) == struct.pack("<Q", ~page & 2**64 - 1)

    @pytest.mark.parametrize("bit", [0, 63, 64, 64 * 100 + 5, PAGE * 8 - 64, PAGE * 8 - 1])
    def test_one_bit(self, bit: int):
        """A single bit that differs makes it an ordinary page."""
        page = bytearray(b"\xde\xad\xbe\xef\x01\x23\x45\x67" * 512)
        page[bit // 8] ^= 1 << bit % 8
        with Device("1M", "64K") as dev:
            dev.write(0, page)
            assert dev.page(0).state == "stored"
            assert dev.read(0, PAGE) == page

    def test_longer_period(self):
        """A period of 16 bytes is no same-filled page."""
        with Device("1M", "64K") as dev:
            dev.write(0, bytes(range(16)) * 256)
            assert dev.page(0).state == "stored"


class TestLz4:
    @pytest.mark.parametrize("level", [1, 2, 17])
    def test_oracle(self, level: int):
        """What is stored is what the lz4 package decompresses to the page."""
        with Device("1M", "512K", level=level) as dev:
            for seed, amount in enumerate(AMOUNTS[:-3]):
                page = entropy(seed, amount)
                dev.write(0, page)
                form = stored_form(dev, 0)
                assert dev.page(0).state == "stored"
                assert dev.page(0).length == len(form) < PAGE
                assert lz4.block.decompress(form, uncompressed_size=PAGE) == page

    def test_media_offset(self):
        """The form begins where page().media says; one bit flipped there, it is the page no more."""
        page = entropy(1)
        with Device("1M", "64K") as dev:
            dev.write(0, page)
            info = dev.page(0)
            form = bytearray(DeviceObject(dev.fileno()).read(info.media, info.length))
        assert lz4.block.decompress(form, uncompressed_size=PAGE) == page
        form[100] ^= 1
        assert lz4.block.decompress(form, uncompressed_size=PAGE) != page

    def test_acceleration(self):
        """More acceleration stores text in more bytes."""
        page = text_page()
        lengths = []
        for level in (1, 50):
            with Device("1M", "64K", level=level) as dev:
                dev.write(0, page)
                lengths.append(dev.page(0).length)
        assert lengths[0] < lengths[1]


class TestZstd:
    @pytest.mark.parametrize("level", [1, 3, 19])
    @pytest.mark.parametrize("block", [1024, 4096])
    def test_oracle(self, level: int, block: int):
        """What is stored is what libzstd decompresses to the page."""
        with Device("1M", "512K", codec="zstd", level=level, block=block) as dev:
            for seed, amount in enumerate(AMOUNTS[:-3]):
                page = entropy(seed, amount)
                dev.write(0, page)
                form = stored_form(dev, 0)
                assert dev.page(0).state == "stored"
                if block == PAGE:
                    assert zstd_decompress(form, PAGE) == page
                else:
                    assert join_blocks(form, block, zstd_decompress) == page

    def test_level(self):
        """What is stored is as long as what libzstd makes at that level, and at no other of these."""
        page = text_page()
        stored = {}
        for level in (1, 5, 19):
            with Device("1M", "64K", codec="zstd", level=level) as dev:
                dev.write(0, page)
                stored[level] = dev.page(0).length
        assert stored == {level: zstd_length(page, level) for level in stored}
        assert len(set(stored.values())) == len(stored)


class TestNone:
    def test_all_raw(self):
        """Without a codec a page that is not same-filled is stored as it is."""
        page = entropy(1, 8)
        with Device("1M", "64K", codec="none") as dev:
            dev.write(0, page)
            assert (dev.page(0).state, dev.page(0).length) == ("raw", PAGE)
            assert stored_form(dev, 0) == page
            assert dev.stats.used == PAGE


def join_blocks(form: bytes, block: int, decompress) -> bytes:
    """A page from its stored form with small blocks: 16-bit lengths, then the blocks."""
    blocks = PAGE // block
    lengths = struct.unpack_from(f"<{blocks}H", form)
    ends = list(itertools.accumulate(lengths, initial=blocks * 2))
    assert ends[-1] == len(form)
    parts = [form[start:end] for start, end in itertools.pairwise(ends)]
    return b"".join(p if len(p) == block else decompress(p, block) for p in parts)


class TestBlocks:
    @pytest.mark.parametrize("block", [1024, 2048])
    @pytest.mark.parametrize("amount", AMOUNTS[:-3])
    def test_oracle(self, block: int, amount: int):
        """With small blocks each block is what the lz4 package decompresses, or stands as it is."""
        page = entropy(amount, amount)
        with Device("1M", "64K", block=block) as dev:
            dev.write(0, page)
            assert dev.page(0).state == "stored"
            form = stored_form(dev, 0)
            assert join_blocks(form, block, lz4.block.decompress) == page
            assert dev.read(0, PAGE) == page

    def test_shorter_reach(self):
        """A repetition at a distance of 2048 bytes is found in blocks of 4 KiB and not of 1 or 2."""
        page = noise(1, 2048) * 2
        lengths = []
        for block in (1024, 2048, 4096):
            with Device("1M", "64K", block=block) as dev:
                dev.write(0, page)
                lengths.append(dev.page(0).length)
        assert lengths[0] == lengths[1] == PAGE
        assert lengths[2] < 2100


class TestLargestStored:
    @pytest.mark.parametrize("codec", ["lz4", "zstd"])
    @pytest.mark.parametrize("block", [1024, 4096])
    def test_boundary(self, codec: str, block: int):
        """A page of exactly the largest stored size is stored; at one byte less it is raw."""
        page = entropy(1, 1500)
        kind = {"codec": codec, "block": block}
        with Device("1M", "64K", **kind) as dev:
            dev.write(0, page)
            length = dev.page(0).length
        with Device("1M", "64K", **kind, largest_stored=length) as dev:
            dev.write(0, page)
            assert (dev.page(0).state, dev.page(0).length) == ("stored", length)
            assert dev.read(0, PAGE) == page
        with Device("1M", "64K", **kind, largest_stored=length - 1) as dev:
            dev.write(0, page)
            assert (dev.page(0).state, dev.page(0).length) == ("raw", PAGE)
            assert dev.read(0, PAGE) == page

    def test_zero(self):
        """With 0 every page that is not same-filled is raw."""
        with Device("1M", "64K", largest_stored=0) as dev:
            dev.write(0, entropy(1, 1))
            assert dev.page(0).state == "raw"

    @pytest.mark.parametrize("sector", [64, 256, 1024])
    def test_default(self, sector: int):
        """By default a page is stored if that saves a sector, and else raw."""
        with Device("1M", "64K", sector=sector) as dev:
            assert dev.params.largest_stored == PAGE - sector
            dev.write(0, entropy(1, PAGE - sector - 64))
            assert (dev.page(0).state, dev.page(0).sectors) == ("stored", PAGE // sector - 1)
            dev.write(0, entropy(1, PAGE - sector))
            assert dev.page(0).state == "raw"

    def test_whole_page(self):
        """With 4096, all that shrinks by a byte is stored."""
        page = entropy(1, 4052)
        with Device("1M", "64K", largest_stored=4096) as dev:
            dev.write(0, page)
            assert dev.page(0).state == "stored"
            assert PAGE - 64 < dev.page(0).length < PAGE
            assert dev.read(0, PAGE) == page


class TestSectors:
    @pytest.mark.parametrize("sector", [64, 128, 256, 512, 1024, 2048, 4096])
    def test_whole_sectors(self, sector: int):
        """A page takes as many sectors as its stored form needs, and used is their sum."""
        with Device("1M", "1M", sector=sector) as dev:
            used = 0
            for number, amount in enumerate(AMOUNTS):
                dpa = number * PAGE
                dev.write(dpa, entropy(number, amount))
                info = dev.page(dpa)
                assert info.sectors == -(-info.length // sector)
                used += info.sectors * sector
                assert dev.stats.used == used
                assert dev.read(dpa, PAGE) == entropy(number, amount)

    def test_raw(self):
        """A page that does not shrink lies in the media as it is."""
        with Device("1M", "64K") as dev:
            dev.write(PAGE, noise(1))
            info = dev.page(PAGE)
            assert (info.state, info.length, info.sectors) == ("raw", PAGE, 64)
            assert DeviceObject(dev.fileno()).read(info.media, PAGE) == noise(1)

    def test_linked(self):
        """A page whose sectors lie apart is stored in them in order."""
        with Device("1M", "8K") as dev:
            for page in range(128):
                dev.write(page * PAGE, entropy(page, 1))
            assert dev.stats.remaining == 0
            for page in range(0, 128, 2):
                dev.discard(page * PAGE, PAGE)
            dev.write(0, noise(0))
            assert DeviceObject(dev.fileno()).linked(0)
            assert stored_form(dev, 0) == noise(0)
            assert dev.read(0, PAGE) == noise(0)


class TestRoundTrip:
    @pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
    @pytest.mark.parametrize("block", [1024, 2048, 4096])
    @pytest.mark.parametrize("sector", [64, 512, 4096])
    def test_every_kind(self, codec: str, block: int, sector: int):
        """Pages of every compressibility read back as written, with every codec, block and sector."""
        pages = [entropy(seed, amount) for seed, amount in enumerate(AMOUNTS)] + [ZERO, noise(99)]
        with Device("1M", "1M", codec=codec, block=block, sector=sector) as dev:
            dev.write(0, b"".join(pages))
            assert dev.read(0, len(pages) * PAGE) == b"".join(pages)
            dev.write(0, b"".join(reversed(pages)))
            assert dev.read(0, len(pages) * PAGE) == b"".join(reversed(pages))

    @given(
        runs=st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.integers(1, 400)), min_size=1),
        codec=st.sampled_from(["lz4", "zstd"]),
        block=st.sampled_from([1024, 2048, 4096]),
    )
    def test_any_content(self, runs: list[tuple[bytes, int]], codec: str, block: int):
        """Any page reads back as written."""
        page = b"".join(part * count for part, count in runs)[:PAGE].ljust(PAGE, b"\x5a")
        with Device("1M", "8K", codec=codec, block=block, signal=0) as dev:
            dev.write(0, page)
            assert dev.read(0, PAGE) == page
