"""What the tests of the bench's peers share: the host's state, and which zswap can be had here."""

import signal
from pathlib import Path

import pytest

from cram_emu.lab import cgroup, kernel_zswap
from cram_emu.lab.kernel_zswap import DIRECTORY
from cram_emu.lab.undo import Unavailable


@pytest.fixture
def compressor() -> str:
    """One that the kernel's zswap takes."""
    try:
        kernel_zswap.require()
    except Unavailable as reason:
        pytest.skip(f"no kernel zswap here: {reason}")
    return next(name for name in ("lz4", "lzo", "deflate") if name in kernel_zswap.compressors())


def host() -> tuple:
    """All that a peer could leave behind, from the kernel's own tables: equal before and after."""
    hierarchy = cgroup.memory_hierarchy()
    devices = Path("/sys/block").glob("zram*")
    parameters = Path("/sys/module/zswap/parameters").glob("*")
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return (
        Path("/proc/swaps").read_text(),
        {device.name: (device / "comp_algorithm").read_text() for device in devices},
        {path.name: path.read_text() for path in parameters},
        sorted(path.name for path in hierarchy.mount.glob("cram-emu-*")),
        sorted(path.name for path in DIRECTORY.glob("cram-emu-*")),
        [line for line in mounts if "debugfs" in line.split()],
        Path("/proc/sys/vm/swappiness").read_text(),
        Path("/proc/sys/vm/page-cluster").read_text(),
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM),
    )
