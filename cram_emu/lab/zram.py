"""The kernel's own compressed memory as a peer: zram swap (lz4).

Everything that is changed is put back when the context ends, on an exception too: a zram device of
our own is added and removed, so that those of the host are never touched; vm.swappiness and
vm.page-cluster stay as they are. Only SIGKILL leaves swap behind, and the next run names it.

Main thread only.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cram_emu.lab import swaparea
from cram_emu.lab.cgroup import memory_hierarchy
from cram_emu.lab.footprint import vmalloc
from cram_emu.lab.undo import Unavailable, patiently, undone, write

ALGORITHM = "lz4"


@dataclass(frozen=True)
class Swap:
    """Zram swap that is on."""

    device: Path
    mm_stat: Path
    tables: int  # bytes of kernel memory that switching it on took: zram's table and the swap map

    def stored(self) -> int:
        """Bytes of host memory that hold compressed pages, the allocator's own losses included."""
        return int(self.mm_stat.read_text().split()[2])


def require(sysfs: Path = Path("/sys")) -> None:
    """Raises Unavailable where swap() and a memory cgroup cannot work or would compare badly."""
    swaparea.require()
    if not (sysfs / "class/zram-control/hot_add").exists():
        raise Unavailable("no zram in this kernel: try modprobe zram")
    zswap = sysfs / "module/zswap/parameters/enabled"
    if zswap.exists() and zswap.read_text().strip() == "Y":
        raise Unavailable(f"zswap would take the pages before zram does: echo N > {zswap}")
    if memory_hierarchy() is None:
        raise Unavailable("no memory cgroups: the memory controller is not mounted")


@contextmanager
def swap(size: int, sysfs: Path = Path("/sys"), dev: Path = Path("/dev")) -> Iterator[Swap]:
    """Zram swap of so many bytes, on until the block ends. Unavailable when the host refuses."""
    with undone("zram swap", partial(_switch_on, size, sysfs, dev)) as on:
        yield on


def _switch_on(size: int, sysfs: Path, dev: Path, undo: ExitStack) -> Swap:
    control = sysfs / "class/zram-control"
    before = vmalloc()
    number = int((control / "hot_add").read_text())
    undo.callback(patiently, lambda: write(control / "hot_remove", number))
    block = sysfs / f"block/zram{number}"
    device = dev / f"zram{number}"
    algorithms = (block / "comp_algorithm").read_text().replace("[", "").replace("]", "").split()
    if ALGORITHM not in algorithms:
        raise Unavailable(f"zram in this kernel has no {ALGORITHM}, only {' '.join(algorithms)}")
    write(block / "comp_algorithm", ALGORITHM)
    write(block / "disksize", size)
    undo.callback(patiently, lambda: write(block / "reset", 1))
    swaparea.switch_on(device, undo)
    return Swap(device, block / "mm_stat", max(0, vmalloc() - before))
