"""A group's limit: reclaim that makes progress gets below it, and what does not is counted where it ends.

The charge itself is the witness: memory.current before and after.
"""

import pytest
from samples import noise

from cram_emu import Device
from cram_emu.host import ManagedMemory, Zswap

PAGE = 4096
PAGES = 4096
HALF = noise(1, PAGE // 2).ljust(PAGE, b"\1")

pytestmark = pytest.mark.usefixtures("skip_unless_userfaultfd")


@pytest.fixture
def limited():
    """limited(charging): a group, its parent, and memory of 16 MiB in it whose pages shrink to half."""
    with Device("64M", "32M", signal=0) as device, Zswap(swap=0) as manager:
        manager.add_node(device)
        parent = manager.memcg()
        group = manager.memcg(parent)
        with ManagedMemory(PAGES * PAGE, manager=manager, group=group, delivery="inline") as memory:

            def limited(charging: str):
                manager.charging = charging
                return group, parent, memory

            yield limited


class TestProgress:
    """However much is to be reclaimed for a page: while it makes progress there is no OOM."""

    def test_lowered_limit(self, limited):
        """More than 16 batches are needed to get below it."""
        group, parent, memory = limited("size")
        memory[: (PAGES - 1) * PAGE] = HALF * (PAGES - 1)
        group.max = 10 << 20
        memory[(PAGES - 1) * PAGE :] = HALF
        assert group.current <= 10 << 20
        assert group.stats.oom == 0
        assert group.stats.max_events > 0
        assert memory[:] == HALF * PAGES

    def test_twin_no_progress(self, limited):
        """Charged as whole pages the same gives way, and is counted, in the groups above too."""
        group, parent, memory = limited("page")
        memory[: (PAGES - 1) * PAGE] = HALF * (PAGES - 1)
        group.max = 10 << 20
        memory[(PAGES - 1) * PAGE :] = HALF
        assert group.current == PAGES * PAGE
        assert group.stats.oom == 1
        assert parent.stats.oom == group.stats.oom
        assert parent.stats.max_events == group.stats.max_events == 16
        assert memory[:] == HALF * PAGES

    def test_no_limit(self, limited):
        """The twin: nothing is met, nothing reclaimed."""
        group, parent, memory = limited("page")
        memory[:] = HALF * PAGES
        assert (group.stats.max_events, group.stats.oom, group.stats.zswapped) == (0, 0, 0)


class TestGivingWay:
    """The limit gives way by the page that was asked for, not by what would be read ahead."""

    def test_one_page(self, limited):
        group, _, memory = limited("page")
        group.max = 1 << 20
        for page in range(512):
            memory[page * PAGE] = 1
            assert group.current <= max(1 << 20, (page + 1) * PAGE)
