"""Memory cgroups: where they are, and what is written for one in version 2, on made-up hierarchies.

Version 1 is tested for real with the peers that use it: test_zram.py, test_kernel_zswap.py.
"""

import os
import shutil
import threading
from pathlib import Path

import pytest

from cram_emu.lab import cgroup
from cram_emu.lab.cgroup import Hierarchy

MIB = 1 << 20


class TestHierarchy:
    """The memory controller is found where it is."""

    def find(self, tmp_path: Path, mounts: str) -> Hierarchy | None:
        table = tmp_path / "mounts"
        table.write_text(mounts)
        return cgroup.memory_hierarchy(table)

    def test_version_1(self, tmp_path):
        unified = tmp_path / "unified"
        unified.mkdir()
        (unified / "cgroup.controllers").write_text("\n")
        mounts = (
            f"cgroup2 {unified} cgroup2 rw 0 0\n"
            "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"
            "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
        )
        assert self.find(tmp_path, mounts) == Hierarchy(Path("/sys/fs/cgroup/memory"), 1)

    def test_version_2(self, tmp_path):
        (tmp_path / "cgroup.controllers").write_text("cpu io memory pids\n")
        assert self.find(tmp_path, f"cgroup2 {tmp_path} cgroup2 rw 0 0\n") == Hierarchy(tmp_path, 2)

    def test_none(self, tmp_path):
        assert self.find(tmp_path, "proc /proc proc rw 0 0\n") is None


class TestVersion2:
    """On a made-up hierarchy of version 2: the files that are written, and what is put back."""

    @pytest.mark.parametrize("delegated", ("cpu memory", "cpu"))
    def test_files(self, tmp_path, monkeypatch, delegated):
        # A directory of the cgroup file system goes with its files in it; an ordinary one does not.
        monkeypatch.setattr(Path, "rmdir", shutil.rmtree)
        control = tmp_path / "cgroup.subtree_control"
        control.write_text(delegated)
        with cgroup.memory_group(64 * MIB, Hierarchy(tmp_path, 2), "group") as group:
            assert (tmp_path / "group/memory.max").read_text() == f"{64 * MIB}\n"
            assert group.usage == tmp_path / "group/memory.current"
            assert group.procs == tmp_path / "group/cgroup.procs"
            assert control.read_text() == (delegated if "memory" in delegated else "+memory\n")
        assert not group.path.exists()
        assert control.read_text() == (delegated if "memory" in delegated else "-memory\n")

    def test_counters(self, tmp_path, monkeypatch):
        """They are summed up, by a reader of the statistics, as long as the group is there."""
        monkeypatch.setattr(Path, "rmdir", shutil.rmtree)
        (tmp_path / "cgroup.subtree_control").write_text("memory")
        with cgroup.memory_group(64 * MIB, Hierarchy(tmp_path, 2), "group") as group:
            os.mkfifo(group.path / "memory.stat")
            # Opens when the other end does.
            with open(group.path / "memory.stat", "wb"):
                (reader,) = (t for t in threading.enumerate() if t.name == "cram-emu-counters")
                (group.path / "memory.stat").unlink()
        assert not reader.is_alive()
