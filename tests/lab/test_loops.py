"""The measuring loops on ordinary memory: what they write, and that they see what is wrong.

Oracles: the lz4 package for how far pages compress; zlib and plain Python for everything else.
"""

import zlib

import lz4.block
import pytest

from cram_emu.errors import InvalidArgument
from cram_emu.lab import loops
from cram_emu.lab.loops import PAGE, Latencies, Pages, WrongContents

COUNT = 1024
ACCESSES = 3000


@pytest.fixture
def memory():
    with loops.ordinary_memory(COUNT * PAGE) as memory:
        yield memory


@pytest.fixture
def pages(memory) -> Pages:
    return Pages(loops.address_of(memory), COUNT)


def with_threads(pages: Pages, threads: int) -> Pages:
    return Pages(pages.address, pages.count, threads)


def compressed(memory) -> list[int]:
    """Bytes of each page under lz4."""
    return [
        len(lz4.block.compress(memory[at : at + PAGE], store_size=False))
        for at in range(0, COUNT * PAGE, PAGE)
    ]


class TestFill:
    """Pages hold what was asked for, and no more than that depends on who wrote them."""

    def test_entropy(self, memory, pages):
        """A page of 1 KiB of entropy is 1,040 to 1,064 bytes under lz4."""
        loops.fill(pages)
        assert set(compressed(memory)) <= set(range(1040, 1065))

    def test_range_of_entropy(self, memory, pages):
        """With low and high, pages compress to anything between, spread evenly."""
        loops.fill(Pages(pages.address, COUNT, low=1024, high=2048))
        sizes = compressed(memory)
        assert min(sizes) < 1100 and max(sizes) > 2000
        assert 1450 < sum(sizes) / COUNT < 1650

    def test_pages_differ(self, memory, pages):
        """No two pages are alike, and no two seeds make the same page."""
        loops.fill(pages)
        first = {bytes(memory[at : at + PAGE]) for at in range(0, COUNT * PAGE, PAGE)}
        loops.fill(Pages(pages.address, COUNT, seed=2))
        second = {bytes(memory[at : at + PAGE]) for at in range(0, COUNT * PAGE, PAGE)}
        assert len(first) == len(second) == COUNT
        assert not first & second

    def test_threads_write_the_same(self, memory, pages):
        """Three threads leave the same bytes as one."""
        loops.fill(pages)
        one = zlib.crc32(memory)
        memory[:] = bytes(len(memory))
        loops.fill(with_threads(pages, 3))
        assert zlib.crc32(memory) == one


class TestVerify:
    """A single wrong byte anywhere is seen, by the loop that should see it."""

    @pytest.mark.parametrize("threads", (1, 2, 3))
    def test_right(self, pages, threads):
        pages = with_threads(pages, threads)
        loops.fill(pages)
        loops.scan(pages)
        Latencies(ACCESSES).random_read(pages)
        loops.verify(pages)

    @pytest.mark.parametrize("at", (0, 8, PAGE - 1, COUNT * PAGE // 2, COUNT * PAGE - 1))
    @pytest.mark.parametrize("threads", (1, 2))
    def test_wrong_byte(self, memory, pages, at, threads):
        loops.fill(pages)
        memory[at] ^= 1
        with pytest.raises(WrongContents, match="verification: 1 wrong"):
            loops.verify(with_threads(pages, threads))

    def test_scan_sees_a_wrong_first_word(self, memory, pages):
        loops.fill(pages)
        memory[7 * PAGE] ^= 1
        with pytest.raises(WrongContents, match="sequential read"):
            loops.scan(pages)

    def test_scan_sees_swapped_pages(self, memory, pages):
        loops.fill(pages)
        memory[0:PAGE], memory[PAGE : 2 * PAGE] = memory[PAGE : 2 * PAGE], memory[0:PAGE]
        with pytest.raises(WrongContents, match="sequential read"):
            loops.scan(pages)

    def test_random_read_sees_wrong_words(self, memory, pages):
        """Every word of some pages is wrong: thousands of reads cannot all miss them."""
        loops.fill(pages)
        memory[0 : 64 * PAGE] = bytes(64 * PAGE)
        with pytest.raises(WrongContents, match="random read"):
            Latencies(ACCESSES).random_read(pages)


class TestRandomWrite:
    """verify() knows where random_write() wrote, and what."""

    @pytest.mark.parametrize("threads", (1, 2, 3, 64))
    def test_verified(self, pages, threads):
        pages = with_threads(pages, threads)
        loops.fill(pages)
        Latencies(ACCESSES).random_write(pages)
        loops.verify(pages, ACCESSES)

    def test_words_written_twice(self, memory):
        """More writes than words: the last one to a word counts."""
        pages = Pages(loops.address_of(memory), 2, threads=2)
        loops.fill(pages)
        Latencies(20_000).random_write(pages)
        loops.verify(pages, 20_000)

    @pytest.mark.parametrize("writes", (0, ACCESSES - 1))
    def test_other_writes(self, pages, writes):
        """Without the writes, or all but one of them, the contents are wrong."""
        loops.fill(pages)
        Latencies(ACCESSES).random_write(pages)
        with pytest.raises(WrongContents):
            loops.verify(pages, writes)

    def test_lost_write(self, memory, pages):
        """One word that went back to what it was is one page wrong."""
        loops.fill(pages)
        before = bytes(memory)
        Latencies(ACCESSES).random_write(pages)
        lost = next(at for at in range(0, len(before), 8) if memory[at : at + 8] != before[at : at + 8])
        memory[lost : lost + 8] = before[lost : lost + 8]
        with pytest.raises(WrongContents, match="verification: 1 wrong"):
            loops.verify(pages, ACCESSES)


class TestRandom:
    """The figures of random accesses fit each other."""

    def test_order(self, pages):
        loops.fill(pages)
        timed = Latencies(ACCESSES).random_read(pages)
        assert 0 < timed.p50 <= timed.p99 <= timed.max
        assert 0 < timed.mean <= timed.max
        assert timed.mean * ACCESSES / 1e6 <= timed.seconds


class TestHot:
    """The same streams leave the same bytes on any memory, other streams others."""

    def contents(self, streams: tuple[int, ...]) -> int:
        with loops.ordinary_memory(COUNT * PAGE) as memory:
            pages = Pages(loops.address_of(memory), COUNT)
            loops.fill(pages)
            for stream in streams:
                loops.hot(pages, stream, 50_000)
            return zlib.crc32(memory)

    def test_same(self):
        assert self.contents((0, 1)) == self.contents((0, 1))

    def test_other(self):
        assert self.contents((0, 1)) != self.contents((0, 2))

    def test_pages_stay_compressible(self, memory, pages):
        loops.fill(pages)
        loops.hot(pages, 0, 100 * COUNT)
        assert max(compressed(memory)) < 1100


class TestLimits:
    """The limits work on the same contents."""

    def test_decompress(self, memory, pages):
        """It leaves what fill() does, from a store as large as lz4 makes it."""
        seconds, store = loops.decompress(pages)
        assert seconds > 0
        loops.verify(pages)
        assert store == pytest.approx(sum(compressed(memory)), rel=0.02)

    def test_copy(self, memory, pages):
        loops.fill(pages)
        with loops.ordinary_memory(COUNT * PAGE) as target:
            assert loops.copy(loops.address_of(target), pages.address, COUNT) > 0
            assert target[:] == memory[:]


class TestBadRange:
    """A range outside the limits is refused by a message that names the value."""

    @pytest.mark.parametrize(
        ("change", "named"),
        (
            ({"address": 0}, "page-aligned"),
            ({"address": 4097}, "0x1001"),
            ({"count": 0}, "0 pages"),
            ({"count": (1 << 32) + 1}, "4294967297 pages"),
            ({"threads": 0}, "0 threads"),
            ({"threads": 65}, "65 threads"),
            ({"low": 12}, "12 to 1024"),
            ({"low": 2048}, "2048 to 1024"),
            ({"high": 4104}, "1024 to 4104"),
        ),
    )
    def test_refused(self, pages, change, named):
        good = {"address": pages.address, "count": COUNT}
        with pytest.raises(InvalidArgument, match=named):
            loops.fill(Pages(**(good | change)))
