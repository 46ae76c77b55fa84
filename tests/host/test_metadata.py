"""What the manager takes for itself: at most 16 bytes for each page that it manages, from the kernel's accounts.

Of a page on a node the device has metadata of its own (its page map, links and table), which the bench measures.
"""

from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

#: Prints private memory, less the pages of the pool, with so many pages stored in a place.
MEASURE = """
    import sys
    from cram_emu import Device
    from cram_emu.host import ManagedMemory, Zswap
    from cram_emu.lab import loops
    from cram_emu.lab.footprint import footprint
    from cram_emu.lab.loops import Pages

    def measure(place, count):
        size = count * 4096
        before = footprint()
        with (
            Device(size, size, lthresh=None, hthresh=None) as dev,
            Zswap([dev] if place == "direct" else [], ram=8 * size, swap=0, max_pool_percent=100) as manager,
            ManagedMemory(size, "1M", manager, delivery="inline") as memory,
        ):
            loops.fill(Pages(memory.address, count, low=1024, high=1024))
            # Pages that the manager's thread works on are passed over.
            while memory.stats.resident:
                memory.reclaim(count)
            stats = manager.stats
            assert getattr(stats, f"stored_{place}_pages") == count
            pool = stats.pool_total_size + stats.pool_cached_pages * 4096
            return (footprint() - before).anonymous - pool

    # The interpreter's own, and what is there once whatever the number of pages.
    measure(sys.argv[1], 256)
    print(measure(sys.argv[1], int(sys.argv[2])))
"""


def taken(run_child: Callable[..., CompletedProcess], place: str, count: int) -> int:
    done = run_child(MEASURE, place, count)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("place", ["direct", "pool"])
def test_sixteen_bytes(run_child, place: str):
    """Each further page takes its entry, 8 bytes (the heap gives or takes some of it), and at most 16."""
    few, many = 1 << 12, 1 << 16
    per_page = (taken(run_child, place, many) - taken(run_child, place, few)) / (many - few)
    assert 7 <= per_page <= 16
