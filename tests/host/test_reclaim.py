"""What takes frames, ages the pool and moves it together: reclaim, the shrinker, compaction, and the manager's thread."""

import threading

import pytest
from managed import ALL, KINDS, check_sums, get, memory_of, no_swap, places, put, roomy, store, where
from samples import PAGE, entropy
from support import wait_until

from cram_emu.host import Zswap


def pages_of(count: int, amount: int = 1000) -> dict[int, bytes]:
    return {page: entropy(page + 1, amount) for page in range(count)}


class TestReclaim:
    """reclaim() takes so many frames, those that were used first last."""

    def test_number(self):
        with no_swap() as manager, memory_of(manager) as memory:
            for page, data in pages_of(64).items():
                put(memory, page, data)
            assert memory.reclaim(0) == 0
            assert memory.reclaim(10) == 10
            assert memory.stats.resident == 54
            assert memory.reclaim(ALL) == 54
            assert memory.reclaim(ALL) == 0
            assert manager.stats.kswapd_reclaim == 64
            check_sums(manager)

    def test_second_chance(self):
        """A page that was touched since the hand passed it stays when one that was not goes."""
        with no_swap() as manager, memory_of(manager) as memory:
            for page in range(0, 64, 2):
                put(memory, page, entropy(page + 1, 100))
            memory.reclaim(8)
            gone = {page for page in range(0, 64, 2) if where(memory, page) == "pool"}
            again = min(gone)
            get(memory, again)
            memory.reclaim(8)
            assert where(memory, again) == "frame"

    def test_direct(self):
        """A fault that finds no frame takes some itself; with room it does not."""
        for dram, needed in (("64K", True), ("1M", False)):
            with no_swap() as manager, memory_of(manager, 64, dram) as memory:
                for page, data in pages_of(64).items():
                    put(memory, page, data)
                assert (manager.stats.direct_reclaim > 0) == needed

    def test_background(self):
        """Past the high mark the manager's thread reclaims to the low one, without being asked."""
        with no_swap() as manager, memory_of(manager, 1024, "4M") as memory:
            for page in range(1000):
                put(memory, page, entropy(page + 1, 100))
            wait_until(lambda: memory.stats.resident <= 1024 - 64, "the low mark")
            check_sums(manager)
            assert manager.stats.kswapd_reclaim >= 40

    def test_error(self, monkeypatch):
        """What goes wrong in the manager's thread is reported, and it goes on."""
        reported: list[type[BaseException]] = []

        def fail(manager: Zswap) -> None:
            raise TypeError

        monkeypatch.setattr(threading, "excepthook", lambda arguments: reported.append(arguments.exc_type))
        with no_swap() as manager, memory_of(manager, 1024, "4M") as memory:
            with monkeypatch.context() as patch:
                patch.setattr("cram_emu.host.reclaim.reclaim", fail)
                for page in range(1000):
                    put(memory, page, KINDS["same"])
                wait_until(lambda: reported, "the report")
            assert manager.stats.kswapd_reclaim == 0
            memory.discard(0, len(memory))
            for page in range(1000):
                put(memory, page, KINDS["same"])
            wait_until(lambda: manager.stats.kswapd_reclaim, "its reclaim")
            assert set(reported) == {TypeError}

    def test_below_the_mark(self):
        """Below it nothing is taken."""
        with no_swap() as manager, memory_of(manager, 1024, "4M") as memory:
            for page in range(0, 900):
                put(memory, page, entropy(page + 1, 100))
            assert memory.balance() == 0
            assert (manager.stats.kswapd_reclaim, manager.stats.zswpout) == (0, 0)


class TestShrinker:
    """The pool's pages go to the swap file when their second chance is spent."""

    def test_second_chance(self):
        """The first lap spends it; a page stored anew in between keeps its own."""
        with Zswap(ram="64M", swap="1M") as manager, memory_of(manager) as memory:
            store(memory, pages_of(32))
            assert memory.shrink(1) == 1
            first = next(page for page in range(32) if where(memory, page) == "file")
            fresh = (first + 1) % 32
            get(memory, fresh)
            memory.reclaim(ALL)
            assert memory.shrink(30) == 30
            assert [page for page in range(32) if where(memory, page) == "pool"] == [fresh]
            assert memory.shrink(ALL) == 1
            assert memory.shrink(ALL) == 0
            stats = manager.stats
            assert (stats.written_back_pages, stats.zswpwb, stats.pool_total_size, stats.swap_used) == (32, 32, 0, 32)
            assert stats.pswpout == 32
            check_sums(manager)
            assert {page: get(memory, page) for page in range(32)} == pages_of(32)

    def test_pages_elsewhere(self):
        """Pages on a node, zeros and frames are not the shrinker's."""
        with roomy() as dev, Zswap([dev], ram="64M", swap="1M") as manager, memory_of(manager) as memory:
            store(memory, {0: entropy(1, 100), 4: bytes(PAGE)})
            put(memory, 8, entropy(1, 100))
            assert memory.shrink(ALL) == 0
            assert places(memory) == {"direct": 1, "zero": 1, "frame": 1}

    def test_no_room(self):
        """Without a swap file, or with a full one, the pages stay in the pool."""
        for swap, written in ((0, 0), (4 * PAGE, 4)):
            with Zswap(ram="64M", swap=swap) as manager, memory_of(manager) as memory:
                store(memory, pages_of(32))
                assert memory.shrink(ALL) == written
                # Without a file no write-back fails, for there is none.
                assert (manager.stats.reject_reclaim_fail > 0) == (written > 0)
                assert manager.stats.stored_pool_pages == 32 - written
                assert {page: get(memory, page) for page in range(32)} == pages_of(32)

    def test_at_the_limit(self):
        """A pool that meets its limit is written back by the manager's thread to below the acceptance threshold."""
        with Zswap(ram="1M", swap="8M", max_pool_percent=20, accept_threshold_percent=50) as manager:
            with memory_of(manager, 512, "4M") as memory:
                store(memory, pages_of(512, 2000))
                assert manager.stats.pool_limit_hit > 0
                wait_until(lambda: manager.stats.pool_total_size <= 51 * PAGE // 2, "a pool below the threshold")
                assert manager.stats.written_back_pages > 0
                assert {page: get(memory, page) for page in range(512)} == pages_of(512, 2000)

    @pytest.mark.parametrize("enabled", [True, False])
    def test_enabled(self, enabled: bool):
        """With shrinker_enabled background reclaim ages the pool, far below its limit; without it does not."""
        with Zswap(ram="64M", swap="8M", shrinker_enabled=enabled) as manager, memory_of(manager, 2048, "2M") as memory:
            for lap in range(4):
                for page in range(2048):
                    put(memory, page, entropy(lap * 2048 + page + 1, 2000))
            if enabled:
                wait_until(lambda: manager.stats.written_back_pages, "a page written back")
            manager._reclaimer.stop()
            assert (manager.stats.written_back_pages > 0) == enabled
            check_sums(manager)


class TestCompaction:
    """What is left in sparse zspages is moved together; contents and owners stay right."""

    def test_frees(self):
        with no_swap() as manager, memory_of(manager, 512, "4M") as memory:
            pages = pages_of(512, 700)
            store(memory, pages)
            for page in range(512):
                if page % 4:
                    memory.discard(page * PAGE, PAGE)
            before = manager.stats.pool_total_size
            freeable = sum(row.freeable for row in manager.pool_classes())
            freed = manager.compact()
            assert freed == freeable > 0
            assert manager.stats.pool_total_size == before - freed * PAGE
            assert manager.compact() == 0
            check_sums(manager)
            assert all(get(memory, page) == pages[page] for page in range(0, 512, 4))

    def test_dense(self):
        """A pool without holes has nothing to free."""
        with no_swap() as manager, memory_of(manager) as memory:
            store(memory, pages_of(64))
            assert manager.compact() == 0

    def test_classes(self):
        """The rows of pool_classes() add up to the pool."""
        with no_swap() as manager, memory_of(manager) as memory:
            store(memory, {page: entropy(page + 1, 1 + page * 60) for page in range(64)})
            rows = list(manager.pool_classes())
            assert sum(row.objs_used for row in rows) == manager.stats.stored_pool_pages
            assert sum(row.pages_used for row in rows) * PAGE == manager.stats.pool_total_size
