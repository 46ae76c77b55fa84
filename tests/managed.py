"""What the tests of the manager share: pages put and fetched one by one, and where each of them is.

A page is stored by reclaiming everything; a load is the read of one page in no stream, so that its neighbours stay.
"""

from collections import Counter

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
    """What is counted is what is there: pages by place, the nodes' pages, the groups' bytes."""
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
        # A fault counts the frames that it may need before it knows how many it takes.
        wait_until(lambda: memory.stats.resident == frames_of(memory), "the end of the last fault")  # noqa: B023
    stats = manager.stats
    assert stats.stored_direct_pages == found["direct"]
    assert stats.stored_pool_pages == found["pool"]
    assert stats.stored_zero_pages == found["zero"]
    assert stats.stored_swap_pages == stats.swap_used == found["file"]
    assert stats.stored_pages == found["direct"] + found["pool"]
    assert stats.charged_direct_bytes == direct
    assert {node.number: node.stats.stored for node in manager.nodes if node.stats.stored} == on_nodes
    root = manager.root.stats
    assert root.zswap == stats.stored_bytes + stats.charged_direct_bytes
    assert root.zswapped == stats.stored_pages
    assert root.anon == found["frame"] * PAGE
