"""The store path in the kernel's order, exclusive loads, limits and settings of the manager.

Pages are two apart: a run of faults would bring in their neighbours too.
"""

import re

import pytest
from managed import KINDS, check_sums, get, memory_of, no_swap, places, roomy, store, where
from samples import PAGE, entropy, noise

from cram_emu import Device
from cram_emu.errors import DeviceClosed, InvalidArgument
from cram_emu.host import Driver, ManagedMemory, Zswap


class TestStoreOrder:
    """Zeros go to the zeromap, all else to a node, else to the pool, else to the swap file."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_with_a_node(self, kind: str):
        """A node takes every page that is not zeros, whether it shrinks or not."""
        with roomy() as dev, no_swap([dev]) as manager, memory_of(manager) as memory:
            store(memory, {4: KINDS[kind]})
            assert where(memory, 4) == ("zero" if kind == "zero" else "direct")
            assert (dev.stats.used > 0) == (kind in ("shrinks", "random"))
            check_sums(manager)
            assert get(memory, 4) == KINDS[kind]

    @pytest.mark.parametrize(("kind", "place"), [("zero", "zero"), ("same", "pool"), ("shrinks", "pool")])
    def test_without_a_node(self, kind: str, place: str):
        """Zeros alone are the zeromap's: a page of another word goes through the compressor."""
        with no_swap() as manager, memory_of(manager) as memory:
            store(memory, {4: KINDS[kind]})
            assert where(memory, 4) == place
            assert (manager.stats.pool_total_size > 0) == (place == "pool")
            check_sums(manager)
            assert get(memory, 4) == KINDS[kind]

    def test_almost_zeros(self):
        """One byte that is not zero, wherever it is, keeps a page out of the zeromap."""
        with no_swap() as manager, memory_of(manager) as memory:
            pages = {}
            for number, at in enumerate((0, 7, 8, 2047, PAGE - 1)):
                data = bytearray(PAGE)
                data[at] = 1
                pages[2 * number] = bytes(data)
            store(memory, pages | {20: bytes(PAGE)})
            assert places(memory) == {"pool": 5, "zero": 1}
            assert {page: get(memory, page) for page in pages} == pages

    @pytest.mark.parametrize("allowed", [True, False])
    @pytest.mark.parametrize("swap", ["1M", 0])
    def test_incompressible(self, swap: str | int, allowed: bool):
        """A page that does not shrink is taken as it is where it may be written back, whether there is room to do so now or not,
        and else keeps its frame."""
        with Zswap(ram="64M", swap=swap) as manager:
            group = manager.memcg(zswap_writeback=allowed)
            with memory_of(manager, group=group) as memory:
                store(memory, {4: KINDS["random"]})
                stats = manager.stats
                assert where(memory, 4) == ("pool" if allowed else "frame")
                assert stats.stored_incompressible_pages == allowed
                assert stats.stored_bytes == allowed * PAGE
                assert (stats.reject_compress_fail > 0) == (stats.reclaim_fail > 0) == (not allowed)
                assert stats.reject_compress_poor == 0
                check_sums(manager)
                assert get(memory, 4) == KINDS["random"]
                assert manager.stats.stored_incompressible_pages == 0

    def test_disabled(self):
        """Disabled, neither node nor pool takes anything; zeromap and swap file do. Enabled, the node does again."""
        with roomy() as dev, Zswap([dev], ram="64M", swap="1M", enabled=False) as manager, memory_of(manager) as memory:
            store(memory, {0: KINDS["zero"], 2: KINDS["shrinks"]})
            assert places(memory) == {"zero": 1, "file": 1}
            manager.enabled = True
            store(memory, {4: KINDS["shrinks"]})
            assert places(memory) == {"zero": 1, "file": 1, "direct": 1}
            check_sums(manager)

    def test_nowhere(self):
        """A page that nobody takes keeps its frame, its bytes, and is counted; one that somebody takes goes."""
        with Zswap(ram="64M", swap=0, max_pool_percent=0) as manager, memory_of(manager) as memory:
            store(memory, {0: KINDS["shrinks"]})
            assert (places(memory), manager.stats.reclaim_fail > 0) == ({"frame": 1}, True)
            manager.max_pool_percent = 20
            store(memory, {})
            assert places(memory) == {"pool": 1}
            assert get(memory, 0) == KINDS["shrinks"]


class Unsafe:
    """One sign of a device that it is unsafe, set and taken back."""

    def __init__(self, sign: str):
        self.sign = sign
        self.safe = True
        low = {"lthresh": "32K", "hthresh": "48K"} if sign == "lthresh" else {"lthresh": None, "hthresh": None}
        self.device = Device("1M", "64K", **low)
        self.reason = "no_alloc" if sign == "lthresh" else sign

    def driver(self) -> Driver:
        return Driver(safe=lambda node, registers: self.safe)

    def set(self, on: bool) -> None:
        if self.sign == "no_alloc":
            self.device.no_alloc = on
        elif self.sign == "pressure":
            self.device.pressure = 1000 if on else 0
        elif self.sign == "verdict":
            self.safe = not on
        elif on:
            self.device.write(512 << 10, noise(1, 12 * PAGE))
        else:
            self.device.discard(512 << 10, 12 * PAGE)


class TestUnsafeNode:
    """A node that is not safe takes nothing, and what it has stays readable."""

    @pytest.mark.parametrize("sign", ["no_alloc", "pressure", "verdict", "lthresh"])
    def test_sign(self, sign: str):
        """Each sign sends pages to the pool, counted under its reason alone; without it they go to the node."""
        unsafe = Unsafe(sign)
        with unsafe.device, no_swap(query_interval=0) as manager, memory_of(manager) as memory:
            node = manager.add_node(unsafe.device, unsafe.driver())
            for step, (on, place) in enumerate(((False, "direct"), (True, "pool"), (False, "direct"))):
                unsafe.set(on)
                node.query()
                before = node.stats.refused
                store(memory, {2 * step: KINDS["shrinks"]})
                after = node.stats.refused
                assert where(memory, 2 * step) == place
                assert {reason for reason in after if after[reason] > before[reason]} == ({unsafe.reason} if on else set())
            check_sums(manager)
            assert [get(memory, 2 * step) for step in range(3)] == 3 * [KINDS["shrinks"]]

    def test_stale_by_design(self):
        """Without live registers a store knows what was published last; with them, what the device says now."""
        for live, place in ((False, "direct"), (True, "pool")):
            with roomy() as dev, no_swap() as manager, memory_of(manager) as memory:
                node = manager.add_node(dev, Driver(live_registers=live))
                dev.no_alloc = True
                store(memory, {0: KINDS["shrinks"]})
                assert where(memory, 0) == place
                node.query()
                store(memory, {2: KINDS["shrinks"]})
                assert where(memory, 2) == "pool"

    def test_partial_pressure(self):
        """Pressure 900 leaves a tenth of the node's pages to the manager."""
        with Device("1M", "1M", lthresh=None, hthresh=None) as dev, no_swap([dev]) as manager:
            with memory_of(manager, 128) as memory:
                dev.pressure = 900
                store(memory, {page: entropy(page + 1, 100) for page in range(128)})
                assert places(memory) == {"direct": 26, "pool": 102}
                check_sums(manager)

    def test_no_page_left(self):
        """A device all of whose pages are taken refuses for being full, and the pool takes what is left."""
        with Device("1M", "1M", lthresh=None, hthresh=None) as dev, no_swap([dev]) as manager:
            with memory_of(manager, 300) as memory:
                pages = {page: entropy(page + 1, 100) for page in range(300)}
                store(memory, pages)
                assert places(memory) == {"direct": 256, "pool": 44}
                assert manager.nodes[0].stats.refused["full"] == 44
                check_sums(manager)
                assert {page: get(memory, page) for page in pages} == pages


class TestPoolLimit:
    """Two thresholds: refused at the limit, taken again only below the acceptance threshold."""

    def fill(self, manager: Zswap, memory: ManagedMemory) -> int:
        """Stores pages of one class until the pool refuses one; how many it took."""
        page = 0
        while manager.stats.pool_limit_hit == 0:
            store(memory, {page: entropy(page + 1, 3000)})
            page += 2
        return page // 2 - 1

    @pytest.mark.parametrize("accept", [100, 50])
    def test_hysteresis(self, accept: int):
        """A pool that was full takes a page again as soon as it is down to accept_threshold_percent of its limit, not before."""
        with no_swap(ram="1M", max_pool_percent=12, accept_threshold_percent=accept) as manager:
            with memory_of(manager, 256) as memory:
                stored = self.fill(manager, memory)
                stats = manager.stats
                assert stats.max_pages == 30
                assert stats.pool_total_size >= 30 * PAGE
                assert stats.reject_reclaim_fail == 0
                for page in range(stored):
                    memory.discard(2 * page * PAGE, PAGE)
                    left = manager.stats.pool_total_size // PAGE
                    memory.reclaim(1)
                    taken = where(memory, 2 * stored) == "pool"
                    assert taken == (left <= 30 * accept // 100 and left < 30)
                    if taken:
                        break
                assert (stored - page - 1 > stored * 0.6) == (accept == 100)
                assert get(memory, 2 * stored) == entropy(2 * stored + 1, 3000)

    def test_full_goes_to_swap(self):
        """What a full pool refuses goes to the swap file, and without one keeps its frame."""
        for swap, place in (("1M", "file"), (0, "frame")):
            with Zswap(ram="1M", swap=swap, max_pool_percent=12) as manager, memory_of(manager, 256) as memory:
                manager._reclaimer.stop()
                stored = self.fill(manager, memory)
                assert where(memory, 2 * stored) == place
                assert get(memory, 2 * stored) == entropy(2 * stored + 1, 3000)

    @pytest.mark.parametrize("limit", ["none", "page", "size"])
    def test_direct_limit(self, limit: str):
        """Pages on a node take nothing of zswap's limit, a page each, or what they take there; total_pages says it for each."""
        with roomy() as dev, no_swap(ram="1M", max_pool_percent=10, direct_limit=limit) as manager:
            node = manager.add_node(dev)
            with memory_of(manager) as memory:
                store(memory, {page: entropy(page + 1, 1900) for page in range(2)})
                node.query()
                size = node.stats.page_size
                assert 1900 < size < 2100
                store(memory, {page: entropy(page + 1, 1900) for page in range(2, 64)})
                stats = manager.stats
                stored = stats.stored_direct_pages
                assert stored == {"none": 64, "page": 25, "size": -(-25 * PAGE // size)}[limit]
                assert stats.total_pages == {"none": 0, "page": stored, "size": stored * size // PAGE}
                assert stats.pool_total_size == 0
                assert (stats.pool_limit_hit > 0) == (limit != "none")

    def test_max_direct_percent(self):
        """max_direct_percent bounds the pages on nodes, counted as that refusal; 0 does not."""
        for percent, direct in ((5, 12), (0, 64)):
            with roomy() as dev, no_swap([dev], ram="1M", max_direct_percent=percent) as manager, memory_of(manager) as memory:
                store(memory, {page: entropy(page + 1, 300) for page in range(64)})
                assert places(memory)["direct"] == direct
                assert (manager.nodes[0].stats.refused["limit"] > 0) == (percent > 0)
                check_sums(manager)


class TestExclusiveLoad:
    """A page that is read back is stored nowhere any more."""

    @pytest.mark.parametrize("place", ["direct", "pool", "file", "zero"])
    def test_load(self, place: str):
        """The read of one page takes its entry and what it named; the other page keeps both, and the device its media."""
        data = bytes(PAGE) if place == "zero" else entropy(5, 1000)
        with roomy() as dev, Zswap(ram="64M", swap="1M", enabled=place != "file") as manager:
            node = manager.add_node(dev) if place == "direct" else None
            with memory_of(manager) as memory:
                store(memory, {0: data, 8: data})
                assert places(memory) == {place: 2}
                used, stored = dev.stats.used, manager.stats
                assert get(memory, 8) == data
                assert places(memory) == {place: 1, "frame": 1}
                assert dev.stats.used == used // 2
                counted = {"direct": "zswpin", "pool": "zswpin", "file": "pswpin", "zero": "swpin_zero"}[place]
                assert getattr(manager.stats, counted) - getattr(stored, counted) == 1
                if node is not None:
                    assert (node.stats.promoted, node.stats.trims_done) == (1, 1)
                check_sums(manager)
                memory.discard(0, 64 * PAGE)
                stats = manager.stats
                assert (dev.stats.used, stats.pool_total_size, stats.swap_used) == (0, 0, 0)
                assert stats.stored_pages == stats.stored_zero_pages == 0

    def test_first_touch(self):
        """A page that was never touched reads as zeros, and no counter of loads moves."""
        with no_swap() as manager, memory_of(manager) as memory:
            before = manager.stats
            assert get(memory, 7) == bytes(PAGE)
            assert manager.stats == before


class TestSettings:
    """A setting that makes no sense is named, and nothing changes."""

    BAD = [
        ("max_pool_percent", 101),
        ("max_pool_percent", -1),
        ("max_pool_percent", 1.5),
        ("accept_threshold_percent", 101),
        ("max_direct_percent", 2**64),
        ("ram", 4095),
        ("ram", "2048T"),
        ("direct_limit", "pages"),
        ("charging", "weight"),
        ("charging", None),
        ("max_pool_percent", "abc"),
        ("enabled", "no"),
        ("ram", [4096]),
        ("query_interval", -1),
        ("query_interval", "1"),
        ("query_interval", float("nan")),
    ]

    @pytest.mark.parametrize(("name", "value"), BAD)
    def test_refused(self, name: str, value):
        with no_swap() as manager:
            before = getattr(manager, name)
            with pytest.raises(InvalidArgument, match=name):
                setattr(manager, name, value)
            assert getattr(manager, name) == before
        with pytest.raises(InvalidArgument, match=name):
            Zswap(**{"swap": 0, name: value}).close()

    @pytest.mark.parametrize(
        ("option", "value"),
        [("chain", 5), ("chain", -1), ("compressor", "lzo"), ("compressor", []), ("swap", "x"), ("nodes", 1), ("nodes", [1])],
    )
    def test_fixed_refused(self, nothing_left_open, option: str, value):
        """The same for what is fixed at creation; no descriptor is left."""
        with pytest.raises(InvalidArgument, match=option):
            Zswap(**{"swap": "1M", option: value})

    def test_fixed(self):
        """The compressor cannot be changed: what is in the pool was made by it."""
        with no_swap(compressor="zstd") as manager:
            with pytest.raises(AttributeError):
                manager.compressor = "lz4"
            assert manager.compressor == "zstd"

    def test_taken(self):
        """Every setting reads as it was set."""
        good = {"max_pool_percent": 0, "accept_threshold_percent": 100, "shrinker_enabled": True, "enabled": False,
                "ram": 4096, "direct_limit": "size", "max_direct_percent": 100, "charging": "fuzzy",
                "query_interval": 3600}  # fmt: skip
        with no_swap() as manager:
            for name, value in good.items():
                setattr(manager, name, value)
                assert getattr(manager, name) == value

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("trim_buffer", value) for value in (4097, -1, "x", None, 1.5)),
            *(("flush_interval", value) for value in (0, "1", float("nan"))),
            *(("safe", value) for value in (None, 3)),
            *((name, 3) for name in ("page_allocated", "page_freed", "promoted", "interrupt")),
        ],
    )
    def test_driver(self, name: str, value):
        """A driver that makes no sense is refused by name, and the device is no node."""
        with roomy() as dev, no_swap() as manager:
            with pytest.raises(InvalidArgument, match=re.escape(f"{name} {value!r}")):
                manager.add_node(dev, Driver(**{name: value}))
            assert manager.nodes == ()

    def test_not_even_that(self):
        """What is no device, driver, manager or group at all is refused by name too."""
        with roomy() as dev, no_swap() as manager:
            for call, named in (
                (lambda: manager.add_node("foo"), "device 'foo'"),
                (lambda: manager.add_node(dev, "foo"), "driver 'foo'"),
                (lambda: manager.memcg("foo"), "parent 'foo'"),
                (lambda: manager.memcg(max="foo"), "max 'foo'"),
                (lambda: ManagedMemory("1M", "1M", "foo"), "manager 'foo'"),
                (lambda: ManagedMemory("1M", "foo", manager), "dram 'foo'"),
                (lambda: ManagedMemory("1M", "1M", manager, group="foo"), "group 'foo'"),
            ):
                with pytest.raises(InvalidArgument, match=named):
                    call()
            assert (manager.nodes, manager.groups) == ((), (manager.root,))

    def test_closed(self):
        """A closed manager takes no memory and no node."""
        with roomy() as dev:
            manager = no_swap()
            manager.close()
            manager.close()
            with pytest.raises(DeviceClosed):
                ManagedMemory("1M", "1M", manager)
            with pytest.raises(DeviceClosed):
                manager.add_node(dev)
            assert manager.closed
