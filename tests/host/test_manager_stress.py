"""Threads at once on managed memory with the fewest frames: every byte is right in the end, and everything adds up.

The measuring loops of the core run without the interpreter lock, and know by themselves what each page must hold.
"""

import itertools
import random
import threading
from contextlib import suppress

import pytest
from managed import check_sums, memory_of, roomy
from samples import PAGE, run_threads
from support import delivery  # noqa: F401

from cram_emu.errors import NoSpace
from cram_emu.host import Driver, ManagedMemory, Zswap
from cram_emu.host.reclaim import shrink
from cram_emu.lab import loops
from cram_emu.lab.loops import Latencies, Pages

COUNT = 2048
WRITES = 6000


class Load:
    """Loops on a memory, and disturbances beside them until the loops are done."""

    def __init__(self, memory: ManagedMemory):
        self.memory = memory
        self.pages = Pages(memory.address, COUNT, threads=3, low=8, high=4096)
        self.done = threading.Event()

    def loops(self) -> None:
        try:
            loops.fill(self.pages)
            loops.scan(self.pages)
            latencies = Latencies(WRITES)
            latencies.random_read(self.pages)
            latencies.random_write(self.pages)
        finally:
            self.done.set()

    def again(self, action) -> None:
        """Does it with 0, 1, 2 ... until the loops are done."""
        for number in itertools.count():
            if self.done.is_set():
                return
            action(number)

    def run(self, *actions) -> None:
        run_threads(self.loops, *(lambda action=action: self.again(action) for action in actions))
        loops.verify(self.pages, WRITES)


class TestEverythingAtOnce:
    """Loads and stores beside reclaim, shrinking, compaction, nodes that come and go, and settings that change."""

    @pytest.mark.parametrize("swap", ["16M", 0])
    def test_contents(self, delivery, swap):
        """With a swap file pages go everywhere; without one more of them keep their frames. None is wrong."""
        choose = random.Random(1)
        with (
            roomy() as first,
            roomy() as second,
            Zswap([first], ram="32M", swap=swap, max_pool_percent=50, shrinker_enabled=True) as manager,
            ManagedMemory(COUNT * PAGE, "64K" if swap else "8M", manager, delivery=delivery) as memory,
        ):
            drivers = [
                Driver(),
                Driver(trim_buffer=64, flush_interval=0.001),
                Driver(page_allocated=lambda node, pages: 0, page_freed=lambda node, pages: None),
            ]

            def press(number: int) -> None:
                memory.reclaim(64)
                memory.shrink(32)
                if number % 8 == 0:
                    shrink(manager)

            def move(number: int) -> None:
                manager.compact()
                if len(manager.nodes) < 2:
                    used = {node.device for node in manager.nodes}
                    device = first if second in used else second
                    manager.add_node(device, choose.choice(drivers))
                else:
                    with suppress(NoSpace):
                        manager.remove_node(choose.choice(manager.nodes))

            def change(number: int) -> None:
                manager.max_pool_percent = choose.choice([0, 10, 50])
                manager.charging = choose.choice(["page", "size", "fuzzy"])
                manager.direct_limit = choose.choice(["none", "page", "size"])
                manager.enabled = number % 4 > 0
                first.no_alloc = number % 3 == 0
                memory.place(choose.randrange(COUNT) * PAGE)

            Load(memory).run(press, move, change)
            manager._reclaimer.stop()
            check_sums(manager)
            assert manager.nodes != () or manager.stats.stored_direct_pages == 0
            memory.discard(0, COUNT * PAGE)
            for node in manager.nodes:
                node.flush()
            stats = manager.stats
            assert (stats.stored_pages, stats.pool_total_size, stats.swap_used, manager.root.current) == (0, 0, 0, 0)
            assert first.stats.used == second.stats.used == 0

    def test_two_memories(self):
        """Two memories of a group with a limit, each under its own loops, keep their own bytes."""
        with roomy() as dev, Zswap([dev], ram="32M", swap="16M", charging="size") as manager:
            group = manager.memcg(max="4M", zswap_max="2M")
            with memory_of(manager, COUNT, "8M", group=group) as one, memory_of(manager, COUNT, "8M", group=group) as other:
                loads = [Load(one), Load(other)]
                run_threads(*(lambda load=load: load.run(lambda number: manager.compact()) for load in loads))
                manager._reclaimer.stop()
                check_sums(manager)


class TestNodesAtOnce:
    """Several threads that remove the same node: one of them does, the others are refused."""

    def test_one_winner(self):
        with roomy() as dev, Zswap(ram="32M", swap="16M") as manager, memory_of(manager) as memory:
            for _ in range(20):
                node = manager.add_node(dev)
                memory[:] = b"\x5a" * len(memory)
                memory.reclaim(64)
                won: list[bool] = []

                def remove() -> None:
                    with suppress(ValueError):
                        manager.remove_node(node)  # noqa: B023
                        won.append(True)  # noqa: B023

                run_threads(*[remove] * 4)
                assert won == [True]
                assert manager.nodes == ()
                check_sums(manager)
