"""The measuring loops of the C core on a range of memory, whatever that memory is.

They do not set memory up and do not judge what they measure. The loops run without the interpreter
lock; a range must be worked on by one call at a time.
"""

import mmap
from array import array
from dataclasses import dataclass

from cram_emu._core import check, ffi, lib
from cram_emu.errors import CramError, InvalidArgument, NoMemory
from cram_emu.sizes import format_size

PAGE = 4096


class WrongContents(CramError):
    """Memory that was measured did not hold what was written to it."""


@dataclass(frozen=True)
class Pages:
    """A range to measure on; every page has low to high bytes of entropy (multiples of 8).

    The memory at address (count * 4096 bytes) belongs to the caller and outlives every call.
    """

    address: int
    count: int
    threads: int = 1
    seed: int = 1
    low: int = 1024
    high: int = 1024

    @property
    def bytes(self) -> int:
        return self.count * PAGE


@dataclass(frozen=True)
class Random:
    """Random accesses: seconds from first start to last end, and microseconds an access."""

    seconds: float
    mean: float
    p50: float
    p99: float
    max: float


def check_seed(seed: int) -> None:
    """InvalidArgument: the loops have no such seed."""
    if not 0 <= seed < 2**64:
        raise InvalidArgument(f"seed {seed}: not a whole number from 0 to {2**64 - 1}")


def ordinary_memory(size: int) -> mmap.mmap:
    """Private anonymous memory without huge pages; untouched. NoMemory."""
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise NoMemory(f"{format_size(size)} of ordinary memory: {error.strerror}") from None
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


def address_of(buffer) -> int:
    """Where a writable buffer begins. The buffer must outlive every use of the address."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer)))


def touch(size: int) -> None:
    """Touches and frees so many bytes of ordinary memory."""
    check(lib.cram_lab_touch(size))


def fill(pages: Pages) -> float:
    """Writes every page whole, in address order; seconds."""
    return _timed(lib.cram_lab_fill, pages, "fill")


def scan(pages: Pages) -> float:
    """Reads 8 bytes of every page, in address order; seconds. WrongContents names the loop."""
    return _timed(lib.cram_lab_scan, pages, "sequential read")


def verify(pages: Pages, writes: int = 0) -> float:
    """Compares every byte with what fill() and random_write() of so many accesses left; seconds."""
    return _timed(lib.cram_lab_verify, pages, "verification", writes)


def hot(pages: Pages, stream: int, accesses: int) -> float:
    """So many reads and as many writes at random, none timed by itself; seconds."""
    return _timed(lib.cram_lab_hot, pages, "hot set", stream, accesses)


def decompress(pages: Pages) -> tuple[float, int]:
    """lz4 alone, from a store of pages compressed one by one; seconds, and bytes of that store."""
    store = ffi.new("uint64_t *")
    return _timed(lib.cram_lab_decompress, pages, "decompression", store), store[0]


def copy(to: int, source: int, count: int) -> float:
    """memcpy of so many pages between two addresses; seconds."""
    result = ffi.new("struct cram_lab_result *")
    lib.cram_lab_copy(ffi.cast("void *", to), ffi.cast("void *", source), count, result)
    return _seconds(result, "copy")


class Latencies:
    """Room for the time of each access, touched before anything is measured."""

    def __init__(self, accesses: int) -> None:
        self.count = accesses
        self._ns = array("I", bytes(4 * accesses))

    def random_read(self, pages: Pages) -> Random:
        """Reads 8 bytes at a time at random. WrongContents when one is not what fill() wrote."""
        return self._measure(lib.cram_lab_random_read, pages, "random read")

    def random_write(self, pages: Pages) -> Random:
        """Writes 8 bytes at a time at random; verify(pages, accesses) checks them."""
        return self._measure(lib.cram_lab_random_write, pages, "random write")

    def _measure(self, loop, pages: Pages, name: str) -> Random:
        with ffi.from_buffer("uint32_t[]", self._ns, require_writable=True) as entries:
            seconds = _timed(loop, pages, name, self.count, entries)
        ordered = sorted(self._ns)
        count = self.count
        return Random(
            seconds=seconds,
            mean=sum(ordered) / count / 1000,
            p50=ordered[count // 2] / 1000,
            p99=ordered[min(count - 1, count * 99 // 100)] / 1000,
            max=ordered[-1] / 1000,
        )


def _timed(loop, pages: Pages, name: str, *arguments) -> float:
    fields = {
        "memory": ffi.cast("void *", pages.address),
        "pages": pages.count,
        "seed": pages.seed,
        "low": pages.low,
        "high": pages.high,
        "threads": pages.threads,
    }
    result = ffi.new("struct cram_lab_result *")
    check(loop(ffi.new("struct cram_lab_range *", fields), *arguments, result))
    return _seconds(result, name)


def _seconds(result, name: str) -> float:
    if result.wrong:
        raise WrongContents(f"{name}: {result.wrong} wrong")
    return result.elapsed_ns / 1e9
