"""`cram-emu info`: what this host permits, what follows from it, and the remedy.

It changes nothing on the host: it reads files, asks for permissions, and opens a userfaultfd that
is closed again. Each fact is one function of Host; a fact that costs nothing has no consequence.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from cram_emu.cli import NOT_PERMITTED, OK
from cram_emu.cli.console import Console, add_json
from cram_emu.device import UffdInfo, uffd_info
from cram_emu.lab.cgroup import memory_hierarchy
from cram_emu.lab.swaparea import swaps
from cram_emu.lab.zram import ALGORITHM
from cram_emu.sizes import format_size

# linux/capability.h: bit numbers. The first opens an unrestricted userfaultfd, the second swap.
CAPABILITIES = {"CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21}

DEMO_MEMORY = 2 << 30
BENCH_MEMORY = 7 << 29  # what bench says of itself, and some to spare

NO_MAPPING = "a device cannot be mapped as memory"
NO_MONITOR = "no monitor delivery, the default of Device.map()"
NO_INLINE = "no inline delivery, which demo and bench use"
PERMIT_ALL = "as root: echo 1 > /proc/sys/vm/unprivileged_userfaultfd"
NO_ZRAM = "bench cannot show the kernel's zram beside ours"

STATES = {"yes": "green", "partly": "yellow", "no": "red"}


@dataclass(frozen=True)
class Fact:
    """One row. state: "yes", "partly", "no". Where nothing is lost, no consequence and remedy."""

    name: str
    state: str
    value: str
    consequence: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Host:
    """What is asked: files below root, userfaultfd, and this process's privileges."""

    root: Path
    uffd: UffdInfo
    uid: int
    capabilities: int

    @classmethod
    def here(cls) -> Host:
        status = Path("/proc/self/status").read_text()
        effective = re.search(r"^CapEff:\s*(\w+)", status, re.M)
        return cls(Path("/"), uffd_info(), os.geteuid(), int(effective[1], 16))

    def text(self, path: str) -> str | None:
        """The file's text without its last newline; None where it cannot be read."""
        try:
            return (self.root / path).read_text().rstrip("\n")
        except OSError:
            return None


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    host = Host.here()
    facts = [fact(host) for fact in FACTS]
    console = Console(args.json)
    console.table(
        ("what", "state", "value", "consequence", "remedy"),
        [(f.name, f.state, f.value, f.consequence, f.remedy) for f in facts],
        STATES,
    )
    console.say(verdict(host))
    console.document({"usable": usable(host), "facts": [asdict(fact) for fact in facts]})
    return OK if usable(host) else NOT_PERMITTED


def usable(host: Host) -> bool:
    """Can a device be mapped as memory, by either delivery?"""
    uffd = host.uffd
    deliveries = uffd.sigbus or (uffd.kernel_faults and uffd.poison)
    return uffd.available == 0 and bool(uffd.write_protect and uffd.exact_address and deliveries)


def verdict(host: Host) -> str:
    if usable(host):
        return "A device can be used as memory here."
    return "A device cannot be used as memory here; Device.read() and Device.write() work."


# ---- the kernel and userfaultfd ---------------------------------------------------------------


def kernel(host: Host) -> Fact:
    return Fact("kernel", "yes", host.text("proc/sys/kernel/osrelease") or "unknown")


def userfaultfd(host: Host) -> Fact:
    name, uffd = "userfaultfd", host.uffd
    if uffd.available != 0:
        reason = os.strerror(-uffd.available)
        remedy = "run as root; in a container, allow userfaultfd(2) in its seccomp profile"
        return Fact(name, "no", reason, NO_MAPPING, remedy)
    if not uffd.kernel_faults:
        remedy = f"run as root, or {PERMIT_ALL}"
        return Fact(name, "partly", "faults of user space only", NO_MONITOR, remedy)
    return Fact(name, "yes", "faults of user space and of the kernel")


def unprivileged(host: Host) -> Fact:
    name = "vm.unprivileged_userfaultfd"
    value = host.text("proc/sys/vm/unprivileged_userfaultfd") or "no such setting"
    if value == "1":
        return Fact(name, "yes", value)
    return Fact(name, "no", value, "ordinary users: inline delivery only", PERMIT_ALL)


def userfaultfd_device(host: Host) -> Fact:
    name, path = "/dev/userfaultfd", host.root / "dev/userfaultfd"
    if not path.exists():
        return Fact(name, "no", "missing")
    if not os.access(path, os.R_OK | os.W_OK):
        return Fact(name, "no", "no permission")
    return Fact(name, "yes", "permitted")


def _feature(
    name: str, offered: Callable[[UffdInfo], int], consequence: str, since: str
) -> Callable[[Host], Fact]:
    def fact(host: Host) -> Fact:
        if host.uffd.available != 0:
            return Fact(name, "no", "unknown without userfaultfd")
        if offered(host.uffd):
            return Fact(name, "yes", "offered")
        return Fact(name, "no", "not offered", consequence, f"Linux {since} or newer")

    return fact


sigbus = _feature("SIGBUS delivery", lambda u: u.sigbus, NO_INLINE, "4.14")
write_protect = _feature("write protection", lambda u: u.write_protect, NO_MAPPING, "5.7")
exact_address = _feature("exact address", lambda u: u.exact_address, NO_MAPPING, "5.18")
poison = _feature("poison", lambda u: u.poison, NO_MONITOR, "6.6")
move = _feature("move", lambda u: u.move, "none: eviction drops pages instead", "6.8")


# ---- this process -----------------------------------------------------------------------------


def privileges(host: Host) -> Fact:
    has = [name for name, bit in CAPABILITIES.items() if host.capabilities >> bit & 1]
    value = ", ".join(["root" if host.uid == 0 else f"uid {host.uid}", *has])
    if host.uid == 0 and len(has) == len(CAPABILITIES):
        return Fact("privileges", "yes", value)
    state = "partly" if host.uid == 0 or has else "no"
    return Fact("privileges", state, value, NO_ZRAM, "run as root, with " + ", ".join(CAPABILITIES))


# ---- what bench compares with ----------------------------------------------------------------


def zram(host: Host) -> Fact:
    # Reading hot_add would make a device: only its presence is asked.
    if not (host.root / "sys/class/zram-control/hot_add").exists():
        return Fact("zram", "no", "not in this kernel", NO_ZRAM, "as root: modprobe zram")
    zswap = "sys/module/zswap/parameters/enabled"
    if host.text(zswap) == "Y":
        return Fact("zram", "partly", "zswap is before it", NO_ZRAM, f"as root: echo N > /{zswap}")
    devices = sorted((host.root / "sys/block").glob("zram*"))
    if not devices:
        return Fact("zram", "yes", "no device yet, bench adds one")
    algorithms = host.text(f"sys/block/{devices[0].name}/comp_algorithm") or ""
    if ALGORITHM not in algorithms.replace("[", "").replace("]", "").split():
        remedy = "boot a kernel with CONFIG_ZRAM_BACKEND_LZ4"
        return Fact("zram", "no", f"only {algorithms}", NO_ZRAM, remedy)
    return Fact("zram", "yes", ", ".join([ALGORITHM, *(_use(host, d.name) for d in devices)]))


def _use(host: Host, device: str) -> str:
    idle = host.text(f"sys/block/{device}/disksize") == "0"
    return f"{device} {'not in use' if idle else 'in use'}"


def swap(host: Host) -> Fact:
    table = host.root / "proc/swaps"
    if not table.exists():
        remedy = "boot a kernel with CONFIG_SWAP"
        return Fact("swap", "no", "not in this kernel", NO_ZRAM, remedy)
    areas = " ".join(swaps(table))
    if areas:
        return Fact("swap", "partly", f"on: {areas}", NO_ZRAM, f"as root: swapoff {areas}")
    return Fact("swap", "yes", "off, bench adds its own")


def memory_cgroup(host: Host) -> Fact:
    name, hierarchy = "memory cgroup", memory_hierarchy(host.root / "proc/self/mounts")
    if hierarchy is None:
        remedy = "as root: mount -t cgroup2 none /sys/fs/cgroup"
        return Fact(name, "no", "controller not mounted", NO_ZRAM, remedy)
    value = f"v{hierarchy.version} at {hierarchy.mount}"
    if not os.access(hierarchy.mount, os.W_OK):
        return Fact(name, "no", f"{value}, not writable", NO_ZRAM, "run as root")
    return Fact(name, "yes", value)


# ---- the rest ---------------------------------------------------------------------------------


def fuse(host: Host) -> Fact:
    found = {
        "/dev/fuse": os.access(host.root / "dev/fuse", os.R_OK | os.W_OK),
        "libfuse2": _loads("libfuse.so.2"),
        "fusermount3": shutil.which("fusermount3") is not None,
    }
    missing = [name for name, there in found.items() if not there]
    if not missing:
        return Fact("FUSE", "yes", ", ".join(found))
    return Fact(
        "FUSE",
        "no" if "/dev/fuse" in missing else "partly",
        "without " + ", ".join(missing),
        "the device's files cannot be mounted",
        "run as root" if missing == ["/dev/fuse"] else "as root: apt-get install libfuse2 fuse3",
    )


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def free_memory(host: Host) -> Fact:
    name = "free memory"
    found = re.search(r"^MemAvailable:\s*(\d+) kB", host.text("proc/meminfo") or "", re.M)
    if found is None:
        return Fact(name, "partly", "unknown")
    free = int(found[1]) << 10
    value = format_size(free)
    if free < DEMO_MEMORY:
        return Fact(name, "no", value, f"the demo needs {format_size(DEMO_MEMORY)}", "free some")
    if free < BENCH_MEMORY:
        return Fact(name, "partly", value, f"bench needs {format_size(BENCH_MEMORY)}", "free some")
    return Fact(name, "yes", value)


FACTS: tuple[Callable[[Host], Fact], ...] = (
    kernel,
    userfaultfd,
    unprivileged,
    userfaultfd_device,
    sigbus,
    write_protect,
    exact_address,
    poison,
    move,
    privileges,
    zram,
    swap,
    memory_cgroup,
    fuse,
    free_memory,
)
