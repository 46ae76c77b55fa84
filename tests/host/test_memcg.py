"""Memory cgroups: what a stored page is charged, limits of a hierarchy, memory.zswap.max and .writeback."""

import pytest
from managed import ALL, KINDS, check_sums, get, memory_of, no_swap, places, put, roomy, store, where
from samples import PAGE, entropy, noise
from support import wait_until

from cram_emu.errors import Busy
from cram_emu.host import Zswap
from cram_emu.host.reclaim import reclaim, shrink_group


def pages_of(count: int, amount: int) -> dict[int, bytes]:
    return {page: entropy(page + 1, amount) for page in range(count)}


class TestCharges:
    """A frame is charged 4096 bytes; a page of the pool its compressed bytes; a page on a node as the setting says."""

    @pytest.mark.parametrize("charging", ["page", "size", "fuzzy"])
    def test_direct(self, charging: str):
        """Whole pages; what the device says each takes; or the node's average, as the host knew it at the store."""
        with roomy() as dev, no_swap([dev], charging=charging) as manager, memory_of(manager) as memory:
            store(memory, {0: entropy(1, 1000), 2: entropy(2, 3000)})
            dev_sizes = [dev.page(memory.place(page * PAGE).dpa).sectors * 64 for page in (0, 2)]
            known = PAGE
            expected = {"page": [PAGE, PAGE], "size": dev_sizes, "fuzzy": [known, known]}[charging]
            assert [memory.place(page * PAGE).size for page in (0, 2)] == expected
            assert manager.root.stats.zswap == sum(expected)
            manager.nodes[0].query()
            average = manager.nodes[0].stats.page_size
            assert abs(average - sum(dev_sizes) / 2) <= 64
            store(memory, {4: entropy(3, 500)})
            size = dev.page(memory.place(4 * PAGE).dpa).sectors * 64
            assert memory.place(4 * PAGE).size == {"page": PAGE, "size": size, "fuzzy": average}[charging]
            check_sums(manager)
            memory.discard(0, 64 * PAGE)
            assert (manager.root.stats.zswap, manager.root.stats.zswapped) == (0, 0)

    def test_change(self):
        """A changed setting is for what is stored from then on; each page is given back as it was charged."""
        with roomy() as dev, no_swap([dev]) as manager, memory_of(manager) as memory:
            for number, charging in enumerate(("page", "size", "fuzzy")):
                manager.charging = charging
                store(memory, {2 * number: entropy(number + 1, 1000)})
            check_sums(manager)
            manager.charging = "page"
            for number in range(3):
                memory.discard(2 * number * PAGE, PAGE)
                check_sums(manager)
            assert manager.root.current == 0

    def test_pool_and_frames(self):
        """memory.current is frames and compressed bytes; zeros and the swap file are charged nothing."""
        with Zswap(ram="64M", swap="1M") as manager, memory_of(manager) as memory:
            store(memory, {0: KINDS["zero"], 2: KINDS["shrinks"]})
            put(memory, 8, KINDS["random"])
            stats = manager.root.stats
            assert (stats.anon, stats.zswapped) == (PAGE, 1)
            assert 0 < stats.zswap == manager.stats.stored_bytes < 1500
            assert manager.root.current == stats.anon + stats.zswap
            memory.shrink(1)
            assert (manager.root.stats.zswap, places(memory)["file"]) == (0, 1)


class TestHierarchy:
    """A group's figures are those of all below it, and no one's else."""

    def test_sums(self):
        with roomy() as dev, no_swap([dev]) as manager:
            parent = manager.memcg()
            child, other = manager.memcg(parent), manager.memcg()
            with memory_of(manager, group=child) as memory, memory_of(manager, group=other) as beside:
                store(memory, pages_of(4, 500))
                put(memory, 20, KINDS["random"])
                store(beside, {})
                for group in (child, parent, manager.root):
                    assert (group.stats.zswapped, group.stats.anon, group.stats.zswpout) == (4, PAGE, 4)
                assert (other.stats.zswapped, other.stats.anon, other.current) == (0, 0, 0)
                get(memory, 0)
                assert [group.stats.zswpin for group in (child, parent, other)] == [1, 1, 0]
                check_sums(manager)
            assert [group.current for group in (child, parent, manager.root)] == [0, 0, 0]

    def test_within(self):
        with no_swap() as manager:
            parent = manager.memcg()
            child = manager.memcg(parent)
            assert child in parent
            assert child in manager.root
            assert parent not in child

    def test_too_many(self):
        """The root and 63 others; the next one is refused, and the manager goes on."""
        with no_swap() as manager:
            for _ in range(63):
                manager.memcg()
            with pytest.raises(Busy, match="64"):
                manager.memcg()

    @pytest.mark.parametrize("value", [-1, "much", 2**64, 1.5])
    def test_bad_limit(self, value):
        """A limit that is none is refused by name and changes nothing."""
        with no_swap() as manager:
            group = manager.memcg(max="1M", zswap_max="1M")
            for name in ("max", "zswap_max"):
                with pytest.raises(ValueError, match=str(value)):
                    setattr(group, name, value)
                assert getattr(group, name) == 1 << 20
                setattr(group, name, None)
                assert getattr(group, name) is None


class TestMax:
    """A group keeps to memory.max by storing its own pages; what it cannot keep to is counted."""

    @pytest.mark.parametrize("above", [False, True])
    def test_kept(self, above: bool):
        """A limit of the group itself, or of the one above it, bounds its frames; nothing is lost and nobody is killed."""
        with roomy() as dev, no_swap([dev], charging="size") as manager:
            parent = manager.memcg(max="512K" if above else None)
            group = manager.memcg(parent, max=None if above else "512K")
            with memory_of(manager, 512, "4M", group=group) as memory:
                pages = pages_of(512, 200)
                for page, data in pages.items():
                    put(memory, page, data)
                    assert parent.current <= 512 << 10
                assert memory.stats.resident < 128
                assert group.stats.oom == parent.stats.oom == 0
                assert {page: get(memory, page) for page in pages} == pages
                check_sums(manager)

    def test_root(self):
        """The root's limit holds for memories of no group, also in runs of faults, whose frames change hands."""
        with roomy() as dev, no_swap([dev], charging="size") as manager, memory_of(manager, 512, "4M") as memory:
            manager.root.max = "512K"
            for page, data in pages_of(512, 200).items():
                put(memory, page, data)
                assert manager.root.current <= 512 << 10
            manager.root.max = "256K"
            manager._reclaimer.stop()
            reclaim(manager)
            assert manager.root.current <= 256 << 10
            assert {page: get(memory, page) for page in range(512)} == pages_of(512, 200)

    def test_lowered_below_the_pool(self):
        """A limit below what the pool has is met by writing that back where the shrinker is enabled; else, or where there is no way
        to, it is not, and setting it ends all the same. Nobody else's pages go."""
        pages = pages_of(256, 2000)
        for enabled, swap, writeback, met in (
            (True, "4M", True, True),
            (False, "4M", True, False),
            (True, 0, True, False),
            (True, "4M", False, False),
        ):
            with Zswap(ram="64M", swap=swap, shrinker_enabled=enabled) as manager:
                # It would have some of the pages in hand.
                manager._reclaimer.stop()
                group = manager.memcg(max="4M", zswap_writeback=writeback)
                with memory_of(manager, 256, group=manager.memcg(group)) as memory, memory_of(manager, 32) as beside:
                    store(beside, pages_of(32, 2000))
                    for page, data in pages.items():
                        put(memory, page, data)
                    group.max = "256K"
                    assert (group.current <= 256 << 10) == met
                    assert (group.stats.zswpwb > 0) == met
                    assert group.stats.anon == 0
                    assert places(beside) == {"pool": 32}
                    check_sums(manager)
                    assert {page: get(memory, page) for page in pages} == pages

    def test_events(self):
        """Each time that a limit is met counts, for the group that has it and those above; for nobody below or beside."""
        with roomy() as dev, no_swap([dev], charging="size") as manager:
            parent = manager.memcg(max="256K")
            child, other = manager.memcg(parent), manager.memcg()
            with memory_of(manager, 128, "4M", group=child) as memory:
                for page, data in pages_of(32, 200).items():
                    put(memory, page, data)
                assert parent.stats.max_events == 0
                for page, data in pages_of(128, 200).items():
                    put(memory, page, data)
                assert manager.root.stats.max_events == parent.stats.max_events > 0
                assert child.stats.max_events == other.stats.max_events == 0

    def test_without(self):
        """Without a limit all of it stays in frames."""
        with roomy() as dev, no_swap([dev], charging="size") as manager, memory_of(manager, 512, "4M", group=manager.memcg()) as memory:
            for page, data in pages_of(512, 200).items():
                put(memory, page, data)
            assert memory.stats.resident == 512

    def test_whole_page_charges(self):
        """Charged whole pages, reclaim makes no progress: the limit gives way, oom counts, and no byte is lost. Not so by size."""
        for charging in ("page", "size"):
            with roomy() as dev, no_swap([dev], charging=charging) as manager:
                group = manager.memcg(max="256K")
                with memory_of(manager, 128, "1M", group=group) as memory:
                    pages = pages_of(128, 200)
                    for page, data in pages.items():
                        put(memory, page, data)
                    assert (group.stats.oom > 0) == (charging == "page")
                    assert (group.current > 256 << 10) == (charging == "page")
                    assert {page: get(memory, page) for page in pages} == pages
                    check_sums(manager)

    def test_others_frames(self):
        """Where another memory has the group's room, the manager's thread takes it from there, in a while."""
        with roomy() as dev, no_swap([dev], charging="size") as manager:
            group = manager.memcg(max="512K")
            with memory_of(manager, 128, "4M", group=group) as first, memory_of(manager, 128, "4M", group=group) as second:
                for page, data in pages_of(120, 200).items():
                    put(first, page, data)
                for page, data in pages_of(120, 200).items():
                    put(second, page, data)
                wait_until(lambda: group.current <= 512 << 10, "the group within its limit")
                assert {page: get(first, page) for page in range(120)} == pages_of(120, 200)
                assert {page: get(second, page) for page in range(120)} == pages_of(120, 200)


class TestZswapMax:
    """memory.zswap.max bounds what of the group is in zswap; what is over goes to the swap file."""

    @pytest.mark.parametrize("above", [False, True])
    def test_bound(self, above: bool):
        with Zswap(ram="64M", swap="1M") as manager:
            # It would make room again.
            manager._reclaimer.stop()
            parent = manager.memcg(zswap_max="16K" if above else None)
            group = manager.memcg(parent, zswap_max=None if above else "16K")
            with memory_of(manager, 32, group=group) as memory, memory_of(manager, 32) as free:
                store(memory, pages_of(32, 2000))
                store(free, pages_of(32, 2000))
                found = places(memory)
                assert 16 << 10 <= group.zswap_current < (16 << 10) + 2100
                assert (found["pool"], found["file"]) == (9, 23)
                assert places(free) == {"pool": 32}
                assert manager.stats.reject_memcg == found["file"]
                check_sums(manager)

    @pytest.mark.parametrize("above", [False, True])
    def test_makes_room(self, above: bool):
        """The manager's thread writes the group's pool back to just below, so that newer pages find room; no one else's."""
        with Zswap(ram="64M", swap="1M") as manager:
            parent = manager.memcg(zswap_max="16K" if above else None)
            group = manager.memcg(parent, zswap_max=None if above else "16K")
            with memory_of(manager, 32, group=group) as memory, memory_of(manager, 32) as free:
                store(free, pages_of(32, 2000))
                store(memory, pages_of(32, 2000))
                wait_until(lambda: group.stats.zswpwb and group.zswap_current < 16 << 10, "room below the limit")
                assert group.zswap_current >= (16 << 10) - 2100
                assert places(free) == {"pool": 32}
                check_sums(manager)
                assert {page: get(memory, page) for page in range(32)} == pages_of(32, 2000)

    def test_no_room(self):
        """Where nothing may be written back, or nothing of it is in the pool, it stays, and the thread's work ends."""
        for writeback, nodes in ((False, 0), (True, 1)):
            with roomy() as dev, Zswap([dev][:nodes], ram="64M", swap="1M") as manager:
                manager._reclaimer.stop()
                group = manager.memcg(zswap_max="16K", zswap_writeback=writeback)
                with memory_of(manager, 32, group=group) as memory:
                    store(memory, pages_of(32, 2000))
                    before = places(memory)
                    shrink_group(manager, group)
                    assert places(memory) == before
                    assert before["direct" if nodes else "pool"] > 0
                    assert group.stats.zswpwb == 0

    def test_zero(self):
        """0 keeps it out of nodes and pool altogether."""
        with roomy() as dev, Zswap([dev], ram="64M", swap="1M") as manager:
            with memory_of(manager, group=manager.memcg(zswap_max=0)) as memory:
                store(memory, {0: KINDS["shrinks"], 2: KINDS["zero"]})
                assert places(memory) == {"file": 1, "zero": 1}

    @pytest.mark.parametrize("above", [False, True])
    def test_writeback(self, above: bool):
        """memory.zswap.writeback=0, of the group or above it, keeps everything of it out of the swap file, whoever wants it there."""
        with Zswap(ram="64M", swap="1M") as manager:
            parent = manager.memcg(zswap_writeback=not above)
            group = manager.memcg(parent, zswap_writeback=above)
            with memory_of(manager, group=group) as memory, memory_of(manager) as free:
                for each in (memory, free):
                    store(each, {0: KINDS["shrinks"]})
                    each.shrink(ALL)
                assert (where(memory, 0), where(free, 0)) == ("pool", "file")
                manager.enabled = False
                for each in (memory, free):
                    store(each, {2: KINDS["shrinks"]})
                assert (where(memory, 2), where(free, 2)) == ("frame", "file")
                manager.enabled = True
                group.zswap_writeback = parent.zswap_writeback = True
                memory.shrink(ALL)
                assert where(memory, 0) == "file"
                assert (group.stats.zswpwb, manager.root.stats.zswpwb) == (1, 2)

    def test_own_room(self):
        """A group's reclaim leaves the others' pages alone."""
        with roomy() as dev, no_swap([dev], charging="size") as manager:
            group = manager.memcg(max="256K")
            with memory_of(manager, 128, "4M") as beside, memory_of(manager, 128, "4M", group=group) as memory:
                put(beside, 0, noise(1))
                for page, data in pages_of(128, 200).items():
                    put(memory, page, data)
                assert where(beside, 0) == "frame"
