"""What the tests of the manager share: pages put and fetched one by one, and where each of them is.

A page is stored by reclaiming everything; a load is the read of one page in no stream, so that its neighbours stay.
"""

from collections import Counter
from contextlib import suppress

from samples import PAGE, entropy, noise
from support import wait_until

from cram_emu import Device
from cram_emu.host import ManagedMemory, Zswap

#: More pages than any memory here has.
ALL = 1 << 20

#: A page of each kind.
KINDS = {
    "zero": bytes(PAGE),
    "same": b"\xa5\x5a" * (PAGE // 2),
    "shrinks": entropy(1, 1000),
    "random": noise(1),
}


def put(memory: ManagedMemory, page: int, data: bytes) -> None:
    memory[page * PAGE : (page + 1) * PAGE] = data


def get(memory: ManagedMemory, page: int) -> bytes:
    return memory[page * PAGE : (page + 1) * PAGE]


def where(memory: ManagedMemory, page: int) -> str:
    return memory.place(page * PAGE).where


def places(memory: ManagedMemory) -> Counter[str]:
    """How many pages are where; those that were never touched are left out."""
    found = Counter(where(memory, page) for page in range(len(memory) // PAGE))
    del found["none"]
    return found


def store(memory: ManagedMemory, pages: dict[int, bytes]) -> None:
    """Puts pages, and takes all frames."""
    for page, data in pages.items():
        put(memory, page, data)
        # A monitor may still hold a page that its writer has got: reclaim would pass it over.
        where(memory, page)
    memory.reclaim(ALL)


def roomy(**options) -> Device:
    """A device without thresholds that has room for everything."""
    return Device("4M", "4M", lthresh=None, hthresh=None, **options)


def no_swap(nodes=(), **options) -> Zswap:
    """A manager whose pool is large, and that has no swap file."""
    return Zswap(nodes, **{"ram": "64M", "swap": 0, "max_pool_percent": 100} | options)


def memory_of(manager: Zswap, pages: int = 64, dram: int | str = "1M", **options) -> ManagedMemory:
    """Memory of so many pages; inline, unless it says otherwise."""
    return ManagedMemory(pages * PAGE, dram, manager, **{"delivery": "inline"} | options)


def frames_of(memory: ManagedMemory) -> int:
    return places(memory)["frame"]


def check_sums(manager: Zswap) -> None:
    """What is counted is what is there: pages by place, the nodes' pages, the groups' bytes.

    The manager's thread may still be at work for the last fault, and move pages while they are counted: looked at again,
    until both agree. Counters that have drifted never do.
    """
    seen: list[dict[str, int | dict[int, int]]] = []

    def agree() -> bool:
        seen[:] = sums(manager), counted(manager)
        return seen[0] == seen[1]

    with suppress(AssertionError):
        wait_until(agree, "sums that are what is counted")
    assert seen[0] == seen[1]


def sums(manager: Zswap) -> dict[str, int | dict[int, int]]:
    """Where every page is, looked up one by one."""
    found: Counter[str] = Counter()
    on_nodes: Counter[int] = Counter()
    direct = 0
    for memory in manager._memories:
        for page in range(len(memory) // PAGE):
            place = memory.place(page * PAGE)
            found[place.where] += 1
            if place.where == "direct":
                on_nodes[place.node] += 1
                direct += place.size
    stored = found["direct"] + found["pool"]
    return {name: found[name] for name in ("frame", "direct", "pool", "zero", "file")} | {
        "on nodes": dict(on_nodes),
        "direct bytes": direct,
        "stored": stored,
        "zswapped": stored,
        "swap used": found["file"],
        "anon": found["frame"] * PAGE,
        "zswap": manager.stats.stored_bytes + direct,
    }


def counted(manager: Zswap) -> dict[str, int | dict[int, int]]:
    """The same as `sums`, as the counters have it."""
    stats, root = manager.stats, manager.root.stats
    return {
        # A fault counts the frames that it may need before it knows how many it takes.
        "frame": sum(memory.stats.resident for memory in manager._memories),
        "direct": stats.stored_direct_pages,
        "pool": stats.stored_pool_pages,
        "zero": stats.stored_zero_pages,
        "file": stats.stored_swap_pages,
        "on nodes": {node.number: node.stats.stored for node in manager.nodes if node.stats.stored},
        "direct bytes": stats.charged_direct_bytes,
        "stored": stats.stored_pages,
        "zswapped": root.zswapped,
        "swap used": stats.swap_used,
        "anon": root.anon,
        "zswap": root.zswap,
    }
