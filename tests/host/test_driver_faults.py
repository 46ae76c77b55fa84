"""Faults of the driver's contract, and what the manager makes of them."""

import pytest
from managed import memory_of, no_swap, roomy
from samples import PAGE, noise

from cram_emu import Device
from cram_emu.errors import NoAnswer
from cram_emu.host import Driver

pytestmark = pytest.mark.usefixtures("skip_unless_userfaultfd")
PAGES = 64


def fill(memory) -> None:
    for page in range(PAGES):
        memory[page * PAGE : (page + 1) * PAGE] = noise(page)


def intact(memory) -> bool:
    return all(memory[page * PAGE : (page + 1) * PAGE] == noise(page) for page in range(PAGES))


class TestAlloc:
    @pytest.mark.parametrize("struck", (True, False))
    def test_refused(self, struck: bool) -> None:
        """Pages that the driver refuses go to the pool, and are counted; the twin's go to the device."""
        with roomy() as dev, no_swap() as manager, memory_of(manager) as memory:
            node = manager.add_node(dev)
            dev.faults["alloc"].set(probability=100 if struck else 0)
            fill(memory)
            memory.reclaim(PAGES)
            stats = manager.stats
            assert (stats.stored_direct_pages, stats.stored_pool_pages) == ((0, PAGES) if struck else (PAGES, 0))
            assert node.stats.refused["callback"] == (PAGES if struck else 0) == dev.faults["alloc"].struck
            assert intact(memory)

    def test_times(self) -> None:
        """It passes: with times=3 three pages are refused, and the next is taken."""
        with roomy() as dev, no_swap() as manager, memory_of(manager) as memory:
            manager.add_node(dev)
            dev.faults["alloc"].set(probability=100, times=3)
            fill(memory)
            memory.reclaim(PAGES)
            assert (manager.stats.stored_pool_pages, manager.stats.stored_direct_pages) == (3, PAGES - 3)
            assert intact(memory)


class TestUnsafe:
    @pytest.mark.parametrize("struck", (True, False))
    def test_full_device(self, struck: bool) -> None:
        """Told that a full device is safe, the host loses pages: as poison, and counted. Told the truth it loses none."""
        with Device("4M", "64K") as dev, no_swap() as manager, memory_of(manager) as memory:
            manager.add_node(dev)
            dev.faults["unsafe"].set(probability=100 if struck else 0)
            fill(memory)
            memory.reclaim(PAGES)
            lost = dev.stats.dropped_writes
            assert (lost > PAGES / 2) is struck and (dev.faults["unsafe"].struck > 0) is struck
            assert dev.stats.pages_poison == lost
            if not struck:
                assert intact(memory)


class TestNoAnswer:
    @pytest.mark.parametrize("struck", (True, False))
    def test_joins(self, struck: bool) -> None:
        """A device whose registers are silent does not become a node, not even in part; once they answer it does."""
        with roomy() as dev, no_swap() as manager, memory_of(manager) as memory:
            fill(memory)
            dev.faults["no_answer"].set(probability=100 if struck else 0)
            if struck:
                with pytest.raises(NoAnswer):
                    manager.add_node(dev)
                assert manager.nodes == ()
                memory.reclaim(PAGES)
                assert manager.stats.stored_direct_pages == 0
                dev.faults["no_answer"].off()
            node = manager.add_node(dev)
            assert manager.nodes == (node,) and node.number == 0
            assert intact(memory)
            memory.reclaim(PAGES)
            assert node.stats.stored == PAGES


class TestTrimBusy:
    @pytest.mark.parametrize("struck", (True, False))
    def test_put_off(self, struck: bool) -> None:
        """A trim that the driver puts off leaves its page's capacity in use until the next flush that he agrees to."""
        with roomy() as dev, no_swap() as manager, memory_of(manager) as memory:
            node = manager.add_node(dev, Driver(flush_interval=3600))
            fill(memory)
            memory.reclaim(PAGES)
            used = dev.stats.used
            dev.faults["trim_busy"].set(probability=100 if struck else 0)
            memory.discard(0, len(memory))
            assert dev.stats.used == (used if struck else 0)
            assert node.stats.trims_waiting == (PAGES if struck else 0)
            assert node.flush() == 0
            dev.faults["trim_busy"].off()
            assert node.flush() == (PAGES if struck else 0)
            assert (dev.stats.used, node.stats.trims_waiting) == (0, 0)
            assert (node.stats.trims_busy > 0) is struck

    def test_more_than_can_wait(self) -> None:
        """Only as many as can wait are put off: none is forgotten, and no strike is without effect."""
        pages = 5000
        with Device("32M", "32M", lthresh=None, hthresh=None) as dev, no_swap() as manager:
            with memory_of(manager, pages, pages * PAGE) as memory:
                node = manager.add_node(dev, Driver(flush_interval=3600))
                for page in range(pages):
                    memory[page * PAGE] = 1
                memory.reclaim(pages)
                stored = node.stats.stored
                dev.faults["trim_busy"].set(probability=100)
                memory.discard(0, len(memory))
                assert stored == pages and node.stats.stored == 0
                assert dev.faults["trim_busy"].struck == node.stats.trims_busy == node.stats.trims_waiting == 4096
                assert node.stats.trims_done == pages - 4096

    @pytest.mark.parametrize("struck", (True, False))
    def test_full(self, struck: bool) -> None:
        """A buffer that is full for its driver: each page is trimmed where it is freed."""
        with roomy() as dev, no_swap() as manager, memory_of(manager) as memory:
            node = manager.add_node(dev, Driver(trim_buffer=PAGES, flush_interval=3600))
            fill(memory)
            memory.reclaim(PAGES)
            dev.faults["trim_full"].set(probability=100 if struck else 0)
            memory.discard(0, len(memory))
            assert (node.stats.trims_full, node.stats.trims_waiting) == ((PAGES, 0) if struck else (0, PAGES))
            assert (dev.stats.used == 0) is struck

    def test_leaves(self) -> None:
        """A node that leaves takes nothing with it, whatever its driver says."""
        with roomy() as dev, no_swap() as manager, memory_of(manager) as memory:
            node = manager.add_node(dev, Driver(flush_interval=3600))
            fill(memory)
            memory.reclaim(PAGES)
            dev.faults["trim_busy"].set(probability=100)
            manager.remove_node(node)
            assert dev.stats.used == 0 and intact(memory)
