"""sys/devices/system/node: drivers/base/node.c. A node for each device, without CPUs, of the advertised size.

The lie is faithful: these files know the advertised capacity only. The host's own nodes pass through.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from cram_emu.sysfs import host
from cram_emu.sysfs.bus import Entries, bus, power, uevent, write_only
from cram_emu.sysfs.cxl import access
from cram_emu.sysfs.memdev import PAGE, Memdev
from cram_emu.sysfs.parse import failure, kstrtoull, memparse, node_list
from cram_emu.sysfs.table import Attribute, Entry, Link, constant

NODES = "sys/devices/system/node"
BUS = "sys/bus/node"
LOCAL, REMOTE = 10, 20

_HUGE_PAGES = ("hugepages-1048576kB", "hugepages-2048kB")

# What stays 0 in meminfo, in the kernel's order.
_BEFORE_ANON = ("Unevictable", "Mlocked", "Dirty", "Writeback", "FilePages", "Mapped")
_AFTER_ANON = (
    "Shmem",
    "KernelStack",
    "PageTables",
    "SecPageTables",
    "NFS_Unstable",
    "Bounce",
    "WritebackTmp",
    "KReclaimable",
    "Slab",
    "SReclaimable",
    "SUnreclaim",
    "AnonHugePages",
    "ShmemHugePages",
    "ShmemPmdMapped",
    "FileHugePages",
    "FilePmdMapped",
)

Members = Callable[[], list[Memdev]]


def platform(members: Members, slots: int) -> Entries:
    """The lists of nodes, and the host's own nodes with their new neighbours."""
    own = host.nodes()
    possible = [*own, *range(own[-1] + 1, own[-1] + 1 + slots)]

    def online() -> list[int]:
        return [*own, *(member.nid for member in members())]

    yield from bus(BUS)
    yield f"{NODES}/online", _nodes(online)
    yield f"{NODES}/possible", _nodes(lambda: possible)
    yield f"{NODES}/has_memory", _nodes(online)
    for name in ("has_cpu", "has_normal_memory", "has_generic_initiator"):
        yield f"{NODES}/{name}", host.entry(host.SYS / f"devices/system/node/{name}") or _nodes(list)
    yield f"{NODES}/uevent", uevent()
    yield from power(NODES)
    for node in own:
        path = host.SYS / f"devices/system/node/node{node}"
        yield f"{NODES}/node{node}", _host_node(path, members)
        yield f"{BUS}/devices/node{node}", Link(f"{NODES}/node{node}")


def _nodes(nodes: Callable[[], list[int]]) -> Attribute:
    return Attribute(0o444, lambda: f"{node_list(nodes())}\n")


def _host_node(path: host.Path, members: Members) -> Entry:
    """A node of the host; its distances go on to the nodes of devices."""

    def distance() -> str:
        try:
            known = (path / "distance").read_text().split()
        except OSError:
            known = [str(LOCAL)]
        return " ".join([*known, *(str(REMOTE) for _ in members())]) + "\n"

    return host.HostDirectory(path, {"distance": Attribute(0o444, distance)})


def members(memdev: Memdev, all_members: Members) -> Entries:
    path = memdev.node
    yield f"{BUS}/devices/node{memdev.nid}", Link(path)
    yield f"{path}/subsystem", Link(BUS)
    yield f"{path}/uevent", uevent()
    yield f"{path}/cpulist", constant("")
    yield f"{path}/cpumap", constant("0")
    yield f"{path}/distance", Attribute(0o444, lambda: _distance(memdev, all_members()))
    yield f"{path}/meminfo", Attribute(0o444, lambda: meminfo(memdev))
    yield f"{path}/numastat", Attribute(0o444, lambda: _numastat(memdev))
    yield f"{path}/vmstat", Attribute(0o444, lambda: _vmstat(memdev))
    # compact_store() takes anything; there is nothing to compact.
    yield f"{path}/compact", write_only(lambda text: None)
    yield f"{path}/reclaim", write_only(_reclaim)
    yield f"{path}/access0/uevent", uevent()
    for node in host.nodes():
        yield f"{path}/access0/initiators/node{node}", Link(f"{NODES}/node{node}")
    yield from access(f"{path}/access0/initiators")
    for size in _HUGE_PAGES:
        yield f"{path}/hugepages/{size}/free_hugepages", constant("0")
        # nr_hugepages_store(): as many as can be had, which is none.
        yield f"{path}/hugepages/{size}/nr_hugepages", Attribute(0o644, lambda: "0\n", kstrtoull)
        yield f"{path}/hugepages/{size}/surplus_hugepages", constant("0")


def _distance(memdev: Memdev, all_members: list[Memdev]) -> str:
    others = (LOCAL if other is memdev else REMOTE for other in all_members)
    return " ".join(map(str, [*(REMOTE for _ in host.nodes()), *others])) + "\n"


def meminfo(memdev: Memdev) -> str:
    """node_read_meminfo()."""
    total, free = memdev.pages, memdev.free()
    used = total - free
    anonymous = used - memdev.balloon
    rows = {
        "MemTotal": total,
        "MemFree": free,
        "MemUsed": used,
        "SwapCached": 0,
        "Active": 0,
        "Inactive": anonymous,
        "Active(anon)": 0,
        "Inactive(anon)": anonymous,
        "Active(file)": 0,
        "Inactive(file)": 0,
        **dict.fromkeys(_BEFORE_ANON, 0),
        "AnonPages": anonymous,
        **dict.fromkeys(_AFTER_ANON, 0),
    }
    start = f"Node {memdev.nid}"
    lines = [f"{start} {name + ':':15} {pages * PAGE >> 10:8} kB" for name, pages in rows.items()]
    lines += [f"{start} HugePages_{name + ':':6} {0:5}" for name in ("Total", "Free", "Surp")]
    return "\n".join(lines) + "\n"


def _numastat(memdev: Memdev) -> str:
    """node_read_numastat(): every page came from another node's CPUs."""
    allocated = memdev.allocated()
    return (
        f"numa_hit {allocated}\nnuma_miss 0\nnuma_foreign 0\n"
        f"interleave_hit 0\nlocal_node 0\nother_node {allocated}\n"
    )


def _vmstat(memdev: Memdev) -> str:
    """node_read_vmstat()."""
    allocated, in_use = memdev.allocated(), memdev.in_use()
    rows = {
        "nr_free_pages": memdev.free(),
        "nr_zone_inactive_anon": in_use,
        "nr_zone_active_anon": 0,
        "numa_hit": allocated,
        "numa_miss": 0,
        "numa_foreign": 0,
        "numa_interleave": 0,
        "numa_local": 0,
        "numa_other": allocated,
        "nr_inactive_anon": in_use,
        "nr_active_anon": 0,
        "nr_anon_pages": in_use,
        "pgpromote_success": 0,
        "pgdemote_kswapd": 0,
        "pgdemote_direct": 0,
        "pgdemote_khugepaged": 0,
        "nr_balloon_pages": memdev.balloon,
    }
    return "".join(f"{name} {value}\n" for name, value in rows.items())


def _reclaim(text: str) -> None:
    # user_proactive_reclaim(): -EAGAIN where less than what was asked for could be reclaimed.
    if memparse(text):
        raise failure(errno.EAGAIN)
