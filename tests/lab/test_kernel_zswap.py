"""Kernel zswap as a peer: switched on, and everything as it was again. Oracles: /proc/swaps, sysfs,
and the pages that a process has swapped.

What cannot be had here (a kernel without zswap, without debugfs) is tested on a made-up sysfs.
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from swap_host import compressor, host  # noqa: F401

from cram_emu.lab import cgroup, kernel_zswap, swaparea
from cram_emu.lab.cgroup import Hierarchy
from cram_emu.lab.kernel_zswap import Statistics
from cram_emu.lab.undo import Unavailable

MIB = 1 << 20
PARAMETERS = Path("/sys/module/zswap/parameters")

# Switches zswap and a memory cgroup on, says so, and waits for the signal.
HOLDER = """
    import sys, time
    from cram_emu.lab import cgroup, kernel_zswap
    from cram_emu.lab.signals import unwound_by_signals
    with (
        unwound_by_signals(),
        kernel_zswap.swap(64 << 20, sys.argv[1]) as swap,
        cgroup.memory_group(64 << 20, cgroup.memory_hierarchy()) as group,
    ):
        print(swap.file, group.path, flush=True)
        time.sleep(60)
"""


def parameters() -> dict[str, str]:
    return {path.name: path.read_text().strip() for path in PARAMETERS.iterdir()}


class TestSwap:
    """Zswap is on inside the block as asked for, before a swap file, and all is as it was after it."""

    def test_on_and_off(self, compressor, tmp_path):
        before = host()
        with kernel_zswap.swap(64 * MIB, compressor, 30, 80, True) as swap:
            assert swaparea.swaps() == [str(swap.file)]
            assert parameters() == {
                "enabled": "Y",
                "compressor": compressor,
                "max_pool_percent": "30",
                "accept_threshold_percent": "80",
                "shrinker_enabled": "Y",
            }
            assert swap.file.stat().st_blocks * 512 >= 64 * MIB  # no holes
            assert swap.statistics().stored_pages == 0
            assert swap.tables > 0
        assert host() == before

    def test_exception(self, compressor):
        before = host()
        with pytest.raises(ZeroDivisionError), kernel_zswap.swap(64 * MIB, compressor, 30, 80, True):
            raise ZeroDivisionError
        assert host() == before

    def test_failure_half_way(self, compressor, monkeypatch):
        """swapon fails when all else is done: file and parameters are back, and the reason is its own."""
        before = host()

        def refuse(area: Path, undo) -> None:
            assert parameters()["enabled"] == "Y"
            raise subprocess.CalledProcessError(1, ["swapon", str(area)], stderr="no\n")

        monkeypatch.setattr(swaparea, "switch_on", refuse)
        with pytest.raises(Unavailable, match="refuses zswap: swapon /var/tmp/cram-emu-.*: no"):
            with kernel_zswap.swap(64 * MIB, compressor, 30, 80, True):
                pytest.fail("zswap was said to be on")
        assert host() == before

    def test_unknown_compressor(self, compressor):
        """The kernel is asked, and its refusal told with what there is."""
        before = host()
        with pytest.raises(Unavailable, match=f"takes no lz5 .*{compressor}"):
            with kernel_zswap.swap(64 * MIB, "lz5"):
                pytest.fail("zswap was said to be on")
        assert host() == before

    def test_no_room(self, compressor, small_tmpfs):
        before = host()
        with pytest.raises(Unavailable, match="no swap file of 64 MiB: .*No space left"):
            with kernel_zswap.swap(64 * MIB, compressor, directory=small_tmpfs):
                pytest.fail("zswap was said to be on")
        assert host() == before
        assert not list(small_tmpfs.iterdir())

    def test_others_file(self, compressor):
        """A file that is there already is neither taken nor removed."""
        before = host()
        path = kernel_zswap.DIRECTORY / f"cram-emu-{os.getpid()}.swap"
        path.write_text("somebody's")
        try:
            with pytest.raises(Unavailable, match="File exists"):
                with kernel_zswap.swap(64 * MIB, compressor):
                    pytest.fail("zswap was said to be on")
            assert path.read_text() == "somebody's"
        finally:
            path.unlink()
        assert host() == before

    @pytest.mark.parametrize(
        ("number", "code"), ((signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT))
    )
    def test_signals(self, compressor, start_child, number, code):
        before = host()
        child = start_child(HOLDER, compressor)
        file, _ = child.stdout.readline().split()
        assert swaparea.swaps() == [file]
        child.send_signal(number)
        child.communicate(timeout=30)
        assert child.returncode == code
        assert host() == before

    def test_twin_sigkill(self, compressor, start_child):
        """Nobody can clean up after SIGKILL: the checks see what is left, and so does require()."""
        before, parameters_before = host(), parameters()
        mounted = os.path.ismount("/sys/kernel/debug")
        child = start_child(HOLDER, compressor)
        file, group = child.stdout.readline().split()
        child.kill()
        child.wait()
        try:
            assert host() != before
            with pytest.raises(Unavailable, match=f"swapoff {file}"):
                kernel_zswap.require()
        finally:
            Path(group).rmdir()
            subprocess.run(["swapoff", file], check=True)
            Path(file).unlink()
            with pytest.raises(Unavailable, match="zswap is on already"):
                kernel_zswap.require()
            for name in sorted(parameters_before):  # the compressor while it is enabled
                (PARAMETERS / name).write_text(parameters_before[name])
            if not mounted:
                subprocess.run(["umount", "/sys/kernel/debug"], check=True)
        assert host() == before


class TestStatistics:
    """What a process in a limited group has in swap is what the statistics say."""

    # A quarter of the pages is zero, the others are noise of 1 KiB.
    PROGRAM = """
        import os, sys
        from dataclasses import asdict
        from pathlib import Path
        from cram_emu.lab import loops
        from cram_emu.lab.kernel_zswap import Statistics
        procs, debugfs = sys.argv[1:]
        pages = 8192
        before = Statistics.read(Path(debugfs))
        contents = [bytes(4096) if page % 4 == 0 else os.urandom(1024).ljust(4096, b"x") for page in range(pages)]
        with loops.ordinary_memory(pages * 4096) as memory:
            if procs:
                Path(procs).write_text(str(os.getpid()))
                for page, content in enumerate(contents):
                    memory[page * 4096 : (page + 1) * 4096] = content
                memory.madvise(21)
            print(asdict(Statistics.read(Path(debugfs)).since(before)))
            if procs:
                assert all(memory[4096 * page : 4096 * (page + 1)] == contents[page] for page in range(pages))
    """

    def run(self, run_child, compressor: str, inside: bool) -> Statistics:
        with (
            kernel_zswap.swap(128 * MIB, compressor) as swap,
            cgroup.memory_group(64 * MIB, cgroup.memory_hierarchy()) as group,
        ):
            child = run_child(self.PROGRAM, group.procs if inside else "", swap.debugfs)
            assert (child.returncode, child.stderr) == (0, "")
            return Statistics(**eval(child.stdout))

    def test_pushed_out(self, run_child, compressor):
        before = host()
        told = self.run(run_child, compressor, True)
        # A few pages more: some of the interpreter's may go the same way.
        assert 6144 <= told.stored_pages < 6144 + 64
        assert 2048 <= told.swpout_zero < 2048 + 64
        assert told.zswpout >= told.stored_pages
        assert told.stored_incompressible_pages < 64
        assert 6144 * 1024 < told.pool_total_size < 6144 * 1200
        assert host() == before

    def test_twin_nothing(self, run_child, compressor):
        """The same program without those pages leaves nothing in zswap."""
        told = self.run(run_child, compressor, False)
        assert (told.stored_pages, told.pool_total_size, told.zswpout) == (0, 0, 0)

    def test_read(self, tmp_path):
        """Files by their names, lines of vmstat by theirs, and 0 for what a kernel lacks."""
        (tmp_path / "zswap").mkdir()
        (tmp_path / "zswap/stored_pages").write_text("7\n")
        (tmp_path / "zswap/of_the_future").write_text("1\n")
        (tmp_path / "vmstat").write_text("nr_free_pages 5\nzswpout 9\n")
        told = Statistics.read(tmp_path / "zswap", tmp_path / "vmstat")
        assert (told.stored_pages, told.zswpout, told.zswpwb) == (7, 9, 0)

    def test_since(self, tmp_path):
        """Counters are counted from there; what is stored is what it is."""
        none = Statistics(*[0] * 16)
        earlier = Statistics(**vars(none) | {"zswpout": 5, "stored_pages": 5})
        later = Statistics(**vars(none) | {"zswpout": 7, "stored_pages": 6})
        told = later.since(earlier)
        assert (told.zswpout, told.stored_pages) == (2, 6)


def test_compressors(tmp_path):
    """The compressors of /proc/crypto, and not its ciphers."""
    table = tmp_path / "crypto"
    table.write_text(
        "name         : lzo\ndriver       : lzo-scomp\ntype         : scomp\n\n"
        "name         : aes\ndriver       : aes-lib\ntype         : cipher\n\n"
        "name         : deflate\ndriver       : deflate-generic\ntype         : acomp\n\n"
    )
    assert kernel_zswap.compressors(table) == {"lzo", "deflate"}


class TestUnavailable:
    """Each thing that is missing is named, and nothing was changed."""

    def test_not_root(self, monkeypatch):
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(Unavailable, match="not root"):
            kernel_zswap.require()

    @pytest.fixture
    def sysfs(self, tmp_path, monkeypatch) -> Path:
        """A host that has all, and where swapon does nothing."""
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(shutil, "which", lambda name: f"/sbin/{name}")
        monkeypatch.setattr(swaparea, "swaps", lambda: [])
        monkeypatch.setattr(swaparea, "switch_on", lambda area, undo: None)
        monkeypatch.setattr(kernel_zswap, "memory_hierarchy", lambda: Hierarchy(Path("/cgroup"), 1))
        for name, text in (
            ("enabled", "N\n"),
            ("compressor", "zstd\n"),
            ("max_pool_percent", "25\n"),
            ("accept_threshold_percent", "85\n"),
            ("shrinker_enabled", "Y\n"),
        ):
            path = tmp_path / "module/zswap/parameters" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "kernel/debug/zswap").mkdir(parents=True)
        kernel_zswap.require(tmp_path)
        return tmp_path

    def files(self, sysfs: Path) -> dict[Path, str]:
        return {path: path.read_text() for path in sysfs.rglob("*") if path.is_file()}

    def test_put_back(self, sysfs, tmp_path):
        """Every parameter has its own value again, whatever it was."""
        before = self.files(sysfs)
        with kernel_zswap.swap(MIB, directory=tmp_path, sysfs=sysfs) as swap:
            now = {p.name: p.read_text().strip() for p in (sysfs / "module/zswap/parameters").iterdir()}
            assert now == {
                "enabled": "Y",
                "compressor": "lz4",
                "max_pool_percent": "20",
                "accept_threshold_percent": "90",
                "shrinker_enabled": "N",
            }
            assert swap.file.stat().st_size == MIB + 4096
        assert self.files(sysfs) == before

    def test_no_zswap(self, sysfs):
        (sysfs / "module/zswap/parameters/enabled").unlink()
        with pytest.raises(Unavailable, match="CONFIG_ZSWAP"):
            kernel_zswap.require(sysfs)

    def test_on_already(self, sysfs):
        (sysfs / "module/zswap/parameters/enabled").write_text("Y\n")
        with pytest.raises(Unavailable, match="zswap is on already"):
            kernel_zswap.require(sysfs)

    def test_other_swap(self, sysfs, monkeypatch):
        monkeypatch.setattr(swaparea, "swaps", lambda: ["/dev/sda2"])
        with pytest.raises(Unavailable, match="swapoff /dev/sda2"):
            kernel_zswap.require(sysfs)

    def test_no_memory_groups(self, sysfs, monkeypatch):
        monkeypatch.setattr(kernel_zswap, "memory_hierarchy", lambda: None)
        with pytest.raises(Unavailable, match="memory controller"):
            kernel_zswap.require(sysfs)

    def test_no_debugfs(self, sysfs, tmp_path):
        """Where it is mounted and has nothing of zswap."""
        (sysfs / "kernel/debug/zswap").rename(sysfs / "kernel/debug/tracing")
        before = self.files(sysfs)
        with pytest.raises(Unavailable, match="CONFIG_DEBUG_FS"):
            with kernel_zswap.swap(MIB, directory=tmp_path, sysfs=sysfs):
                pytest.fail("zswap was said to be on")
        assert self.files(sysfs) == before

    def test_missing_parameter(self, sysfs, tmp_path):
        """A kernel before the shrinker: the parameters before it are put back."""
        (sysfs / "module/zswap/parameters/shrinker_enabled").unlink()
        before = self.files(sysfs)
        with pytest.raises(Unavailable, match="refuses zswap: .*shrinker_enabled: No such file"):
            with kernel_zswap.swap(MIB, directory=tmp_path, sysfs=sysfs):
                pytest.fail("zswap was said to be on")
        assert self.files(sysfs) == before
