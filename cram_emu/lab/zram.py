"""The kernel's own compressed memory as a peer: zram swap (lz4) and a memory cgroup with a limit.

Everything that is changed is put back when the context ends, on an exception too: a zram device of
our own is added and removed, so that those of the host are never touched; vm.swappiness and
vm.page-cluster stay as they are. Only SIGKILL leaves swap behind, and the next run names it.

Main thread only: signals are held back while something half done would stay.
"""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cram_emu.lab.signals import signals_held

ALGORITHM = "lz4"
_PATIENCE = 5.0  # seconds for udev to let go of a new block device, and for a cgroup to empty


class Unavailable(Exception):
    """This host cannot show zram swap; says why and what would help. Nothing was changed."""


@dataclass(frozen=True)
class Swap:
    """Zram swap that is on."""

    device: Path
    mm_stat: Path
    tables: int  # bytes of kernel memory that switching it on took: zram's table and the swap map

    def stored(self) -> int:
        """Bytes of host memory that hold compressed pages, the allocator's own losses included."""
        return int(self.mm_stat.read_text().split()[2])


@dataclass(frozen=True)
class MemoryGroup:
    """A memory cgroup with a limit. A process enters by writing its id to procs."""

    path: Path
    usage: Path
    version: int
    swappiness: int

    @property
    def procs(self) -> Path:
        return self.path / "cgroup.procs"


@dataclass(frozen=True)
class Hierarchy:
    """Where memory cgroups are made: the mount point, and 1 or 2."""

    mount: Path
    version: int


# ---- what the host has -----------------------------------------------------------------------


def swaps(table: Path = Path("/proc/swaps")) -> list[str]:
    """The swap areas that are on."""
    lines = table.read_text().splitlines()[1:]
    return [line.split()[0] for line in lines]


def memory_hierarchy(mounts: Path = Path("/proc/self/mounts")) -> Hierarchy | None:
    """Where the memory controller is: a host has it in version 1 or in version 2, never in both."""
    for line in mounts.read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup" and "memory" in options.split(","):
            return Hierarchy(Path(where), 1)
        if kind == "cgroup2":
            controllers = Path(where, "cgroup.controllers").read_text().split()
            if "memory" in controllers:
                return Hierarchy(Path(where), 2)
    return None


def require(sysfs: Path = Path("/sys")) -> None:
    """Raises Unavailable where swap() and memory_group() cannot work or would compare badly."""
    if os.geteuid() != 0:
        raise Unavailable("not root: swap and memory cgroups need it")
    if not (sysfs / "class/zram-control/hot_add").exists():
        raise Unavailable("no zram in this kernel: try modprobe zram")
    missing = [name for name in ("mkswap", "swapon", "swapoff") if not shutil.which(name)]
    if missing:
        raise Unavailable(f"no {' '.join(missing)} in PATH: Debian packages util-linux and mount")
    if active := swaps():
        raise Unavailable(f"swap is on already and would be used: swapoff {' '.join(active)}")
    zswap = sysfs / "module/zswap/parameters/enabled"
    if zswap.exists() and zswap.read_text().strip() == "Y":
        raise Unavailable(f"zswap would take the pages before zram does: echo N > {zswap}")
    if memory_hierarchy() is None:
        raise Unavailable("no memory cgroups: the memory controller is not mounted")


# ---- switching on and back -------------------------------------------------------------------


@contextmanager
def swap(size: int, sysfs: Path = Path("/sys"), dev: Path = Path("/dev")) -> Iterator[Swap]:
    """Zram swap of so many bytes, on until the block ends. Unavailable when the host refuses."""
    undo = ExitStack()
    try:
        with signals_held():
            try:
                on = _switch_on(size, sysfs, dev, undo)
            except (OSError, subprocess.CalledProcessError) as error:
                raise Unavailable(f"the host refuses zram swap: {_cause(error)}") from error
        yield on
    finally:
        with signals_held():
            undo.close()


def _switch_on(size: int, sysfs: Path, dev: Path, undo: ExitStack) -> Swap:
    control = sysfs / "class/zram-control"
    before = _vmalloc_used()
    number = int((control / "hot_add").read_text())
    undo.callback(_patiently, lambda: _write(control / "hot_remove", number))
    block = sysfs / f"block/zram{number}"
    device = dev / f"zram{number}"
    algorithms = (block / "comp_algorithm").read_text().replace("[", "").replace("]", "").split()
    if ALGORITHM not in algorithms:
        raise Unavailable(f"zram in this kernel has no {ALGORITHM}, only {' '.join(algorithms)}")
    _write(block / "comp_algorithm", ALGORITHM)
    _write(block / "disksize", size)
    undo.callback(_patiently, lambda: _write(block / "reset", 1))
    _run("mkswap", device)
    _run("swapon", device)
    undo.callback(_run, "swapoff", device)
    return Swap(device, block / "mm_stat", max(0, _vmalloc_used() - before))


@contextmanager
def memory_group(
    limit: int, hierarchy: Hierarchy, name: str = f"cram-emu-{os.getpid()}"
) -> Iterator[MemoryGroup]:
    """A memory cgroup limited to so many bytes, removed when the block ends; its processes must
    have ended by then. Unavailable when the host refuses."""
    undo = ExitStack()
    try:
        with signals_held():
            try:
                group = _make_group(limit, hierarchy, name, undo)
            except OSError as error:
                raise Unavailable(f"the host refuses a memory cgroup: {_cause(error)}") from error
        yield group
    finally:
        with signals_held():
            undo.close()


def _make_group(limit: int, hierarchy: Hierarchy, name: str, undo: ExitStack) -> MemoryGroup:
    path = hierarchy.mount / name
    old = hierarchy.version == 1
    if not old:
        _delegate_memory(hierarchy.mount / "cgroup.subtree_control", undo)
    path.mkdir()
    undo.callback(_patiently, path.rmdir)
    _write(path / ("memory.limit_in_bytes" if old else "memory.max"), limit)
    swappiness = path / "memory.swappiness" if old else Path("/proc/sys/vm/swappiness")
    return MemoryGroup(
        path=path,
        usage=path / ("memory.usage_in_bytes" if old else "memory.current"),
        version=hierarchy.version,
        swappiness=int(swappiness.read_text()),
    )


def _delegate_memory(control: Path, undo: ExitStack) -> None:
    if "memory" not in control.read_text().split():
        _write(control, "+memory")
        undo.callback(_write, control, "-memory")


# ---- small things ----------------------------------------------------------------------------


def _write(path: Path, value: object) -> None:
    path.write_text(f"{value}\n")


def _run(tool: str, device: Path) -> None:
    # A session of its own: Ctrl-C reaches the whole foreground group, and must not end swapoff.
    command = [tool, str(device)]
    subprocess.run(command, check=True, capture_output=True, text=True, start_new_session=True)


def _patiently(step: Callable[[], None]) -> None:
    """Does it, again while it is EBUSY, for some seconds."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return step()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _cause(error: OSError | subprocess.CalledProcessError) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"{' '.join(error.cmd)}: {error.stderr.strip()}"
    return f"{error.filename}: {error.strerror}"


def _vmalloc_used() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("VmallocUsed:"):
            return int(line.split()[1]) * 1024
    return 0
