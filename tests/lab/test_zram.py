"""Kernel zram swap as a peer: switched on, and always off again. Oracles: /proc/swaps and sysfs.

What cannot be had here (a kernel without lz4) is tested on a made-up sysfs.
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from swap_host import host

from cram_emu.lab import cgroup, swaparea, zram
from cram_emu.lab.cgroup import Hierarchy
from cram_emu.lab.undo import Unavailable

MIB = 1 << 20

# Switches swap and a memory cgroup on, says so, and waits for the signal.
HOLDER = """
    import os, sys, time
    from cram_emu.lab import cgroup, zram
    from cram_emu.lab.signals import unwound_by_signals
    with (
        unwound_by_signals(),
        zram.swap(64 << 20) as swap,
        cgroup.memory_group(64 << 20, cgroup.memory_hierarchy()) as group,
    ):
        print(swap.device.name, group.path, flush=True)
        time.sleep(60)
"""


@pytest.fixture
def skip_unless_zram() -> None:
    try:
        zram.require()
    except Unavailable as reason:
        pytest.skip(f"no zram swap here: {reason}")


@pytest.mark.usefixtures("skip_unless_zram")
class TestSwap:
    """Swap is on inside the block, with lz4, and everything is as it was after it."""

    def test_on_and_off(self):
        before = host()
        with zram.swap(64 * MIB) as swap:
            assert swaparea.swaps() == [str(swap.device)]
            block = Path("/sys/block", swap.device.name)
            assert "[lz4]" in (block / "comp_algorithm").read_text()
            assert int((block / "disksize").read_text()) == 64 * MIB
            assert swap.mm_stat == block / "mm_stat"
            assert swap.tables > 0
        assert host() == before

    def test_exception(self):
        before = host()
        with pytest.raises(ZeroDivisionError), zram.swap(64 * MIB):
            raise ZeroDivisionError
        assert host() == before

    def test_failure_half_way(self, monkeypatch):
        """mkswap fails: the device that was added is gone again, and the reason names mkswap."""
        before = host()

        def refuse(tool: str, device: Path) -> None:
            raise subprocess.CalledProcessError(1, [tool, str(device)], stderr="no\n")

        monkeypatch.setattr(swaparea, "run", refuse)
        with pytest.raises(Unavailable, match="mkswap /dev/zram.*: no"), zram.swap(64 * MIB):
            pytest.fail("swap was said to be on")
        assert host() == before

    @pytest.mark.parametrize(
        ("number", "code"),
        ((signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, -signal.SIGINT)),
    )
    def test_signals(self, start_child, number, code):
        before = host()
        child = start_child(HOLDER)
        name, _ = child.stdout.readline().split()
        assert swaparea.swaps() == [f"/dev/{name}"]
        child.send_signal(number)
        child.communicate(timeout=30)
        assert child.returncode == code
        assert host() == before

    def test_twin_sigkill(self, start_child):
        """Nobody can clean up after SIGKILL: the checks see what is left, and so does require()."""
        before = host()
        child = start_child(HOLDER)
        name, group = child.stdout.readline().split()
        child.kill()
        child.wait()
        try:
            assert host() != before
            with pytest.raises(Unavailable, match=f"swapoff /dev/{name}"):
                zram.require()
        finally:
            Path(group).rmdir()
            subprocess.run(["swapoff", f"/dev/{name}"], check=True)
            Path(f"/sys/block/{name}/reset").write_text("1")
            Path("/sys/class/zram-control/hot_remove").write_text(name.removeprefix("zram"))
        assert host() == before


@pytest.mark.usefixtures("skip_unless_zram")
class TestMemoryGroup:
    """A process in the group has no more than the limit resident; the rest is in zram."""

    PROGRAM = """
        import os, sys
        from pathlib import Path
        from cram_emu.lab import loops
        limited, procs, usage, mm_stat = sys.argv[1:]
        size = 256 << 20
        with loops.ordinary_memory(size) as memory:
            if limited == "yes":
                Path(procs).write_text(str(os.getpid()))
            pages = loops.Pages(loops.address_of(memory), size // loops.PAGE)
            loops.fill(pages)
            print(Path(usage).read_text().split()[0], Path(mm_stat).read_text().split()[0])
            loops.verify(pages)
    """

    def run(self, run_child, limited: str) -> tuple[int, int, int]:
        with (
            zram.swap(512 * MIB) as swap,
            cgroup.memory_group(64 * MIB, cgroup.memory_hierarchy()) as group,
        ):
            child = run_child(self.PROGRAM, limited, group.procs, group.usage, swap.mm_stat)
            assert (child.returncode, child.stderr) == (0, "")
            resident, stored = map(int, child.stdout.split())
            return resident, stored, swap.stored()

    def test_limit(self, run_child):
        before = host()
        resident, stored, _ = self.run(run_child, "yes")
        assert 32 * MIB < resident <= 64 * MIB
        assert 256 * MIB - resident - 16 * MIB < stored
        assert host() == before

    def test_twin_outside(self, run_child):
        """The same program outside the group leaves nothing in zram."""
        resident, stored, _ = self.run(run_child, "no")
        assert resident < MIB
        assert stored < MIB


class TestUnavailable:
    """Each thing that is missing is named, and nothing was changed."""

    def test_not_root(self, monkeypatch):
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(Unavailable, match="not root"):
            zram.require()

    @pytest.fixture
    def sysfs(self, tmp_path, monkeypatch) -> Path:
        """A host that has all."""
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(shutil, "which", lambda name: f"/sbin/{name}")
        monkeypatch.setattr(swaparea, "swaps", lambda: [])
        monkeypatch.setattr(zram, "memory_hierarchy", lambda: Hierarchy(Path("/cgroup"), 1))
        for path, text in (
            ("class/zram-control/hot_add", "7\n"),
            ("class/zram-control/hot_remove", ""),
            ("block/zram7/comp_algorithm", "[lzo-rle] lzo\n"),
            ("module/zswap/parameters/enabled", "N\n"),
        ):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        zram.require(tmp_path)
        return tmp_path

    def test_no_zram(self, sysfs):
        (sysfs / "class/zram-control/hot_add").unlink()
        with pytest.raises(Unavailable, match="modprobe zram"):
            zram.require(sysfs)

    def test_no_tools(self, sysfs, monkeypatch):
        monkeypatch.setattr(shutil, "which", lambda name: None)
        with pytest.raises(Unavailable, match="mkswap swapon swapoff"):
            zram.require(sysfs)

    def test_other_swap(self, sysfs, monkeypatch):
        monkeypatch.setattr(swaparea, "swaps", lambda: ["/dev/sda2"])
        with pytest.raises(Unavailable, match="swapoff /dev/sda2"):
            zram.require(sysfs)

    def test_zswap(self, sysfs):
        (sysfs / "module/zswap/parameters/enabled").write_text("Y\n")
        with pytest.raises(Unavailable, match="zswap"):
            zram.require(sysfs)

    def test_no_memory_groups(self, sysfs, monkeypatch):
        monkeypatch.setattr(zram, "memory_hierarchy", lambda: None)
        with pytest.raises(Unavailable, match="memory controller"):
            zram.require(sysfs)

    def test_no_lz4(self, sysfs):
        """The device that was added to find that out is removed."""
        with pytest.raises(Unavailable, match="no lz4, only lzo-rle lzo"):
            with zram.swap(64 * MIB, sysfs, sysfs):
                pytest.fail("swap was said to be on")
        assert (sysfs / "class/zram-control/hot_remove").read_text() == "7\n"

    def test_read_only_sysfs(self, sysfs):
        (sysfs / "class/zram-control/hot_add").unlink()
        with pytest.raises(Unavailable, match="refuses zram swap: .*hot_add: No such file"):
            with zram.swap(64 * MIB, sysfs, sysfs):
                pytest.fail("swap was said to be on")
