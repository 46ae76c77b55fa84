"""The swap file: what comes to it, what comes back, and what happens when it is full or cannot be read."""

import os
from pathlib import Path

import pytest
from managed import ALL, KINDS, check_sums, get, memory_of, places, store, where
from samples import PAGE, entropy, holdings, noise

from cram_emu.host import Zswap


def swap_fd(before: set[str]) -> int:
    """The descriptor, among those that were not there before, of a file that has lost its name."""
    names = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in holdings()[0] - before}
    return next(int(fd) for fd, name in names.items() if name.endswith("(deleted)") and "memfd:" not in name)


class TestFile:
    """Pages in the swap file are whole pages, one a slot; a slot is free again once its page is read or discarded."""

    def test_round_trip(self):
        with Zswap(ram="1M", swap="1M", max_pool_percent=0) as manager, memory_of(manager) as memory:
            pages = {page: noise(page + 1) for page in range(64)}
            store(memory, pages)
            assert (places(memory), manager.stats.swap_used) == ({"file": 64}, 64)
            check_sums(manager)
            assert {page: get(memory, page) for page in pages} == pages
            stats = manager.stats
            assert (stats.swap_used, stats.pswpin, stats.pswpout) == (0, 64, 64)

    def test_full(self):
        """A full file takes nothing, frames stay; a slot that becomes free is used."""
        with Zswap(ram="1M", swap=4 * PAGE, max_pool_percent=0) as manager, memory_of(manager) as memory:
            pages = {2 * page: noise(page + 1) for page in range(8)}
            store(memory, pages)
            assert (places(memory), manager.stats.swap_pages) == ({"file": 4, "frame": 4}, 4)
            assert manager.stats.reclaim_fail > 0
            gone = next(page for page in pages if where(memory, page) == "file")
            memory.discard(gone * PAGE, PAGE)
            memory.reclaim(ALL)
            assert places(memory) == {"file": 4, "frame": 3}
            check_sums(manager)
            del pages[gone]
            assert {page: get(memory, page) for page in pages} == pages

    @pytest.mark.parametrize("slots", [1, 63, 64, 65, 130])
    def test_size(self, slots: int):
        """Exactly so many pages find room as the file has."""
        with Zswap(ram="64M", swap=slots * PAGE, max_pool_percent=0) as manager, memory_of(manager, 160) as memory:
            store(memory, {page: entropy(page + 1, 2000) for page in range(160)})
            assert places(memory) == {"file": slots, "frame": 160 - slots}

    def test_no_name(self, tmp_path: Path, monkeypatch):
        """The file is in the directory for temporary ones, without a name, takes room as it is used, and is gone at the end."""
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        before, _ = holdings()
        with Zswap(ram="64M", swap="1G", max_pool_percent=0) as manager, memory_of(manager) as memory:
            fd = swap_fd(before)
            assert list(tmp_path.iterdir()) == []
            assert os.fstat(fd).st_blocks == 0
            store(memory, {4: KINDS["random"]})
            assert 0 < os.fstat(fd).st_blocks * 512 <= 64 << 10
        del manager, memory
        assert holdings()[0] == before


class TestFailingFile:
    """A file system that is full, and a file that cannot be read."""

    def test_disk_full(self, small_tmpfs: Path, monkeypatch):
        """A write that fails leaves the page its frame, and its slot is not taken; with room on the disk the page goes."""
        monkeypatch.setattr("tempfile.tempdir", str(small_tmpfs))
        with Zswap(ram="64M", swap="64M", max_pool_percent=0) as manager, memory_of(manager) as memory:
            filler = small_tmpfs / "filler"
            with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(PAGE))
            pages = {2 * page: noise(page + 1) for page in range(8)}
            store(memory, pages)
            assert places(memory) == {"frame": 8}
            assert manager.stats.swap_used == 0
            filler.unlink()
            store(memory, {})
            assert places(memory) == {"file": 8}
            assert {page: get(memory, page) for page in pages} == pages

    def test_unreadable(self, skip_unless_kernel_faults):
        """A page whose slot cannot be read any more is poison, in its own place and for good; the others are whole."""
        before, _ = holdings()
        with Zswap(ram="64M", swap="1M", max_pool_percent=0) as manager, memory_of(manager, delivery="monitor") as memory:
            fd = swap_fd(before)
            store(memory, {0: KINDS["random"]})
            store(memory, {4: KINDS["shrinks"]})
            os.ftruncate(fd, PAGE)
            with open(os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600), "wb", buffering=0) as file, memoryview(memory) as view:
                for _ in range(2):
                    with pytest.raises(OSError):
                        file.write(view[4 * PAGE : 5 * PAGE])
                assert file.write(view[:PAGE]) == PAGE
            assert (where(memory, 4), get(memory, 0)) == ("poison", KINDS["random"])
            check_sums(manager)
