"""The kernel's own compressed memory as a peer: zswap in front of a swap file.

Everything that is changed is put back when the context ends, on an exception too: zswap's
parameters, the swap file (made here, of a name of its own), and debugfs where it was not mounted.
Two things stay: what the kernel sets up when zswap is switched on for the first time (its pool, its
files in debugfs), and its counters. Only SIGKILL leaves swap and parameters behind, and the next
run names them. It does not limit anybody's memory, which cgroup.py does, and moves no vm.* setting.

Main thread only.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Self

from cram_emu.lab import swaparea
from cram_emu.lab.cgroup import memory_hierarchy
from cram_emu.lab.footprint import vmalloc
from cram_emu.lab.undo import Unavailable, change, run, undone

PAGE = 4096
DIRECTORY = Path("/var/tmp")  # not /tmp: swap cannot lie in a tmpfs


# ---- statistics ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statistics:
    """What the kernel tells of zswap: its files in debugfs, by their names, and lines of /proc/vmstat.

    Bytes for pool_total_size, pages for all else. What is stored is of now, the rest counts since
    the host was started: subtract an earlier one. The last two are the swap layer's zeromap's, which
    keeps zero pages from zswap. A counter that this kernel lacks is 0.
    """

    pool_total_size: int
    stored_pages: int
    stored_incompressible_pages: int
    written_back_pages: int
    pool_limit_hit: int
    reject_reclaim_fail: int
    reject_compress_poor: int
    reject_compress_fail: int
    reject_alloc_fail: int
    reject_kmemcache_fail: int
    decompress_fail: int
    zswpin: int
    zswpout: int
    zswpwb: int
    swpin_zero: int
    swpout_zero: int

    @classmethod
    def read(cls, debugfs: Path, vmstat: Path = Path("/proc/vmstat")) -> Self:
        """debugfs: zswap's directory there."""
        lines = (line.split() for line in vmstat.read_text().splitlines())
        told = {name: int(value) for name, value in lines}
        told |= {path.name: int(path.read_text()) for path in debugfs.iterdir()}
        return cls(**{field.name: told.get(field.name, 0) for field in fields(cls)})

    def since(self, earlier: "Statistics") -> "Statistics":
        """Each counter's growth; what is stored stays as it is now."""
        now = {name: getattr(self, name) for name in _GAUGES}
        grown = {
            field.name: getattr(self, field.name) - getattr(earlier, field.name)
            for field in fields(self)
        }
        return Statistics(**grown | now)


_GAUGES = ("pool_total_size", "stored_pages", "stored_incompressible_pages")


@dataclass(frozen=True)
class Swap:
    """A swap file with zswap in front of it, both on."""

    file: Path
    debugfs: Path  # zswap's directory
    compressor: str
    tables: int  # bytes of kernel memory that switching it on took: the swap map

    def statistics(self) -> Statistics:
        return Statistics.read(self.debugfs)


# ---- what the host has -----------------------------------------------------------------------


def require(sysfs: Path = Path("/sys")) -> None:
    """Raises Unavailable where swap() and a memory cgroup cannot work or would compare badly."""
    swaparea.require()
    enabled = sysfs / "module/zswap/parameters/enabled"
    if not enabled.exists():
        raise Unavailable("no zswap in this kernel: boot one with CONFIG_ZSWAP")
    if enabled.read_text().strip() == "Y":
        raise Unavailable(f"zswap is on already, and pages of others may be in it: echo N > {enabled}")
    if memory_hierarchy() is None:
        raise Unavailable("no memory cgroups: the memory controller is not mounted")


def compressors(table: Path = Path("/proc/crypto")) -> set[str]:
    """The compressors that the kernel has at hand; one in a module joins when it is loaded."""
    names = set()
    for entry in table.read_text().split("\n\n"):
        told = dict(map(str.strip, line.split(":", 1)) for line in entry.splitlines() if line)
        if told.get("type") in ("acomp", "scomp", "compression"):
            names.add(told["name"])
    return names


# ---- switching on and back -------------------------------------------------------------------


@contextmanager
def swap(
    size: int,
    compressor: str = "lz4",
    max_pool_percent: int = 20,
    accept_threshold_percent: int = 90,
    shrinker_enabled: bool = False,
    directory: Path = DIRECTORY,
    sysfs: Path = Path("/sys"),
) -> Iterator[Swap]:
    """Zswap and a swap file of so many bytes, on until the block ends. Unavailable when the host
    refuses; the other arguments are zswap's parameters."""
    parameters = {
        "max_pool_percent": max_pool_percent,
        "accept_threshold_percent": accept_threshold_percent,
        "shrinker_enabled": "Y" if shrinker_enabled else "N",
    }
    make = partial(_switch_on, size, compressor, parameters, directory, sysfs)
    with undone("zswap", make) as on:
        yield on


def without_readahead():
    """A context in which a fault brings in its own page, and no neighbours. With them zswap, whose loads are exclusive, fills a small
    memory cgroup with pages of the swap cache that reclaim cannot free fast enough: the OOM killer comes."""
    page_cluster = Path("/proc/sys/vm/page-cluster")
    return undone("another vm.page-cluster", lambda stack: change(page_cluster, 0, stack))


def _switch_on(
    size: int, compressor: str, parameters: dict, directory: Path, sysfs: Path, undo: ExitStack
) -> Swap:
    before = vmalloc()
    where = sysfs / "module/zswap/parameters"
    # First: only zswap that was on once refuses a compressor, and has files in debugfs.
    change(where / "enabled", "Y", undo)
    for name, value in parameters.items():
        change(where / name, value, undo)
    _take_compressor(where / "compressor", compressor, undo)
    debugfs = _debugfs(sysfs / "kernel/debug", undo) / "zswap"
    if not debugfs.is_dir():
        raise Unavailable(f"no {debugfs}: boot a kernel with CONFIG_DEBUG_FS")
    file = _make_file(directory, size, undo)
    swaparea.switch_on(file, undo)
    return Swap(file, debugfs, compressor, max(0, vmalloc() - before))


def _take_compressor(parameter: Path, compressor: str, undo: ExitStack) -> None:
    try:
        change(parameter, compressor, undo)
    except OSError as error:
        others = " ".join(sorted(compressors()))
        raise Unavailable(
            f"zswap in this kernel takes no {compressor} ({error.strerror}), but {others}"
        ) from error


def _debugfs(mount: Path, undo: ExitStack) -> Path:
    if not any(mount.iterdir()):
        run("mount", "-t", "debugfs", "debugfs", mount)
        undo.callback(run, "umount", mount)
    return mount


def _make_file(directory: Path, size: int, undo: ExitStack) -> Path:
    path = directory / f"cram-emu-{os.getpid()}.swap"
    # O_EXCL: in a directory of everybody's, the name may be somebody else's.
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    undo.callback(path.unlink)
    try:
        # The first page is the header's.
        os.posix_fallocate(fd, 0, size + PAGE)
    except OSError as error:
        raise Unavailable(f"no swap file of {size >> 20} MiB: {path}: {error.strerror}") from error
    finally:
        os.close(fd)
    return path
