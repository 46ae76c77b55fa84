"""What is measured, each in a fresh process: `python -m cram_emu.lab.sides JOB ARGUMENTS`.

Arguments are a JSON object, and so is what is printed: flat, names to numbers; speeds in MiB/s,
times in microseconds unless a name says otherwise, memory in bytes, rates in accesses a second.
It knows nothing of rounds, medians and targets, and sets up no swap: see bench.py and zram.py.
"""

import hashlib
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from cram_emu import Device
from cram_emu.host import Driver, ManagedMemory, Zswap
from cram_emu.lab import loops, tree
from cram_emu.lab.footprint import Footprint, footprint, object_size
from cram_emu.lab.kernel_zswap import Statistics
from cram_emu.lab.loops import PAGE, Latencies, Pages
from cram_emu.lab.workload import Mix, Workload

MIB = 1 << 20

_MADV_PAGEOUT = 21  # uapi/asm-generic/mman-common.h; Python's mmap has no name for it

Figures = dict[str, float]


# ---- the two sides ---------------------------------------------------------------------------


def device(size: int, real: int, window: int, peak: int, accesses: int, threads: int) -> Figures:
    """The loops on a mapping of a device."""
    latencies = Latencies(accesses)
    loops.touch(peak)
    before = footprint()
    with (
        Device(advertised=size, real=real) as dev,
        dev.map(delivery="inline", window=window, writeback=0) as mapping,
    ):
        pages = Pages(mapping.address, size // PAGE, threads)
        return _measure(pages, latencies, lambda: _taken(dev, before))


def managed(size: int, real: int, dram: int, peak: int, accesses: int, threads: int) -> Figures:
    """The loops on managed memory, with a device as its one node."""
    latencies = Latencies(accesses)
    loops.touch(peak)
    before = footprint()
    with (
        Device(advertised=size, real=real) as dev,
        Zswap([dev]) as manager,
        ManagedMemory(size, dram=dram, manager=manager, delivery="inline") as memory,
    ):
        pages = Pages(memory.address, size // PAGE, threads)
        return _measure(pages, latencies, lambda: _taken(dev, before))


def _taken(device: Device, before: Footprint) -> Figures:
    """What a device, and this process since then, take of the host's memory."""
    grown = footprint() - before
    return {
        "memory_object": object_size(device.fileno()),
        "memory_private": grown.anonymous,
        "memory_page_tables": grown.page_tables,
    }


def zram(
    size: int,
    peak: int,
    accesses: int,
    threads: int,
    procs: str,
    usage: str,
    mm_stat: str,
    tables: int,
) -> Figures:
    """The same loops on ordinary memory under a memory cgroup, with swap on zram."""

    def store() -> int:
        return int(Path(mm_stat).read_text().split()[2])

    return _swapped(size, peak, accesses, threads, procs, usage, store, tables)


def zswap(
    size: int,
    peak: int,
    accesses: int,
    threads: int,
    procs: str,
    usage: str,
    debugfs: str,
    tables: int,
) -> Figures:
    """The same with zswap before a swap file. In version 2 the group pays for its part of the pool."""

    def store() -> int:
        return Statistics.read(Path(debugfs)).pool_total_size

    return _swapped(size, peak, accesses, threads, procs, usage, store, tables)


def _swapped(
    size: int,
    peak: int,
    accesses: int,
    threads: int,
    procs: str,
    usage: str,
    store: Callable[[], int],
    tables: int,
) -> Figures:
    """What was touched before the process enters the group stays charged to where it was: the limit
    is for the pages alone, and the latencies are never swapped out.
    """
    latencies = Latencies(accesses)
    loops.touch(peak)
    with loops.ordinary_memory(size) as memory:
        Path(procs).write_text(str(os.getpid()))

        def account() -> Figures:
            return {
                "memory_group": int(Path(usage).read_text()),
                "memory_store": store(),
                "memory_tables": tables,
            }

        pages = Pages(loops.address_of(memory), size // PAGE, threads)
        return _measure(pages, latencies, account)


def program(size: int, accesses: int) -> Figures:
    """The same loops on memory that the process just asks for: for one that `cram-emu run` would start."""
    latencies = Latencies(accesses)
    with loops.ordinary_memory(size) as memory:
        return _measure(Pages(loops.address_of(memory), size // PAGE), latencies, dict)


def _measure(pages: Pages, latencies: Latencies, memory: Callable[[], Figures]) -> Figures:
    accesses = latencies.count
    before = _shootdowns()
    figures = {
        "fill": pages.bytes / MIB / loops.fill(pages),
        "scan": pages.bytes / MIB / loops.scan(pages),
    }
    for name, loop in (("read", latencies.random_read), ("write", latencies.random_write)):
        timed = loop(pages)
        figures |= {
            f"{name}_mean": timed.mean,
            f"{name}_p50": timed.p50,
            f"{name}_p99": timed.p99,
            f"{name}_max": timed.max,
            f"{name}_rate": accesses / timed.seconds,
        }
    figures["shootdowns"] = _shootdowns() - before
    parts = memory()
    loops.verify(pages, accesses)
    return figures | parts | {"memory": sum(parts.values())}


def _shootdowns() -> int:
    """Interrupts so far by which a CPU made another forget translations; 0 where none are counted.

    A process that has moved between CPUs pays one for each page that the kernel swaps out, one that
    has not moved pays none: they tell such runs apart.
    """
    for line in Path("/proc/interrupts").read_text().splitlines():
        name, *columns = line.split()
        if name == "TLB:":
            return sum(int(column) for column in columns if column.isdigit())
    return 0


# ---- the kernel's zswap and ours -------------------------------------------------------------


def kernel_zswap(pages: int, mix: Mix, seed: int, procs: str, debugfs: str) -> Figures:
    """A workload in a memory cgroup with zswap on: the statistics after it (trace_...), and when every
    page of it has been pushed out (all_...)."""
    workload = Workload(pages, mix=mix, seed=seed)
    before = Statistics.read(Path(debugfs))
    with loops.ordinary_memory(pages * PAGE) as memory:
        Path(procs).write_text(str(os.getpid()))

        def statistics() -> Figures:
            now = Statistics.read(Path(debugfs)).since(before)
            swapped = _swapped_pages(loops.address_of(memory), pages)
            # Of a page whose content is in the zeromap zswap has nothing; nor of one that it refused.
            return asdict(now) | {"stored_zero_pages": max(0, swapped - now.stored_pages)}

        return _stages(workload, memory, lambda: memory.madvise(_MADV_PAGEOUT), statistics)


def emulated_zswap(pages: int, mix: Mix, seed: int, ram: int, dram: int) -> Figures:
    """The same workload on managed memory without a device: all goes to zswap's own pool."""
    from cram_emu.host import Driver, ManagedMemory, Zswap

    workload = Workload(pages, mix=mix, seed=seed)
    manager = Zswap(nodes=[], ram=ram, max_pool_percent=20)
    with ManagedMemory(pages * PAGE, dram=dram, manager=manager, delivery="inline") as memory:

        def push_out() -> None:
            while memory.reclaim(pages):
                pass

        return _stages(workload, memory, push_out, lambda: asdict(manager.stats))


def _stages(
    workload: Workload, memory, push_out: Callable[[], object], statistics: Callable[[], Figures]
) -> Figures:
    start = time.monotonic()
    workload.run(memory)
    seconds = time.monotonic() - start
    figures = {f"trace_{name}": value for name, value in statistics().items()}
    push_out()
    figures |= {f"all_{name}": value for name, value in statistics().items()}
    workload.verify(memory)
    return figures | {"seconds": seconds, "pages": workload.pages, "zero_pages": workload.zero_pages}


def _swapped_pages(address: int, pages: int) -> int:
    """Of a range: admin-guide/mm/pagemap.rst, bit 62."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(address // PAGE * 8)
        entries = memoryview(pagemap.read(pages * 8)).cast("Q")
    return sum(entry >> 62 & 1 for entry in entries)


# ---- callbacks -------------------------------------------------------------------------------


def callbacks(pages: int, times: int) -> Figures:
    """Microseconds a page that a driver's callbacks cost the manager's thread if they do nothing, told page by page and in
    batches: of pages that were freed, and of pages that it is to approve of. The least of so many times."""
    figures: Figures = {}
    for name, batched in (("page", False), ("batch", True)):
        figures[f"freed_{name}"] = min(_freed(pages, batched) for _ in range(times))
        figures[f"approved_{name}"] = min(_approved(batched) for _ in range(times))
    return figures


def _freed(pages: int, batched: bool) -> float:
    """A memory that is on a node is discarded: until the last callback."""
    count = 0
    done = threading.Event()

    def page_freed(node, freed) -> None:
        nonlocal count
        count += len(freed) if batched else 1
        if count == pages:
            done.set()

    with (
        Device(pages * PAGE, pages * PAGE) as dev,
        Zswap() as manager,
        ManagedMemory(pages * PAGE, dram=MIB, manager=manager, delivery="inline") as memory,
    ):
        manager.add_node(dev, Driver(page_freed=page_freed, batched=batched))
        loops.fill(Pages(memory.address, pages))
        memory.reclaim(pages)
        start = manager.thread_time()
        memory.discard(0, len(memory))
        done.wait()
        return 1e6 * (manager.thread_time() - start) / pages


def _approved(batched: bool) -> float:
    """A batch of pages is offered, approved of, and put in stock, in this thread."""
    with Device("4M", "4M") as dev, Zswap() as manager:
        node = manager.add_node(dev)
        node.driver = Driver(page_allocated=lambda node, pages: 0, batched=batched)
        start = time.thread_time()
        node.refill()
        return 1e6 * (time.thread_time() - start) / node.stats.stock


# ---- limits ----------------------------------------------------------------------------------


def limits(size: int, store: int) -> Figures:
    """lz4 and memcpy alone, in one thread. store: room for the compressed pages, touched first."""
    count = size // PAGE
    with loops.ordinary_memory(size) as memory, loops.ordinary_memory(size // 2) as half:
        address, target = loops.address_of(memory), loops.address_of(half)
        loops.touch(size + store)
        seconds, stored = loops.decompress(Pages(address, count))
        loops.touch(size // 2)
        return {
            "decompress": size / MIB / seconds,
            "store": stored,
            "copy_fresh": size / 2 / MIB / loops.copy(target, address, count // 2),
            "copy": size / 2 / MIB / loops.copy(target, address, count // 2),
        }


# ---- the hot set -----------------------------------------------------------------------------


def hot(size: int, window: int, writeback: float, accesses: int, pairs: int) -> Figures:
    """A set that fits the window, against ordinary memory: seconds of device_I and ordinary_I.

    The turns of a pair follow each other and never share the machine: the memory of one is freed
    before the next begins, so that both get the same page frames (where those lie in the memory of
    a virtual machine's host makes a difference of 5 %), and no write-back runs beside ordinary
    memory. A turn fills its memory, heats it up by a run that is not counted (warm_up_I, of the
    device's turn), then is measured.
    """
    loops.touch(size)
    figures: Figures = {}
    for pair in range(pairs):
        contents = set()
        for name in ("device", "ordinary") if pair % 2 == 0 else ("ordinary", "device"):
            if name == "ordinary":
                with loops.ordinary_memory(size) as memory:
                    turn = _hot_turn(memory, loops.address_of(memory), accesses)
            else:
                with (
                    Device(advertised=size, real=size) as dev,
                    dev.map(delivery="inline", window=window, writeback=writeback) as mapping,
                ):
                    turn = _hot_turn(mapping, mapping.address, accesses)
                figures[f"warm_up_{pair}"] = turn[0]
            figures[f"{name}_{pair}"] = turn[1]
            contents.add(turn[2])
        if len(contents) > 1:
            raise loops.WrongContents("hot set: the device and ordinary memory differ")
    return figures


def _hot_turn(buffer, address: int, accesses: int) -> tuple[float, float, bytes]:
    """Seconds of heating up and of the run that counts, and a digest of what the memory holds."""
    pages = Pages(address, len(buffer) // PAGE)
    loops.fill(pages)
    warm_up, measured = (loops.hot(pages, stream, accesses) for stream in (0, 1))
    return warm_up, measured, hashlib.blake2b(buffer).digest()


def hot_program(size: int, accesses: int) -> Figures:
    """One turn on memory that the process just asks for."""
    with loops.ordinary_memory(size) as memory:
        warm_up, measured, _ = _hot_turn(memory, loops.address_of(memory), accesses)
    return {"warm_up": warm_up, "measured": measured}


# ---- beside a reader -------------------------------------------------------------------------


def reader(size: int, window: int, accesses: int, pairs: int) -> Figures:
    """Random reads without and beside a process that reads the device's files all the time: accesses
    a second, quiet_I and beside_I, and the files that were opened, read and closed a second, files_I.
    """
    latencies = Latencies(accesses)
    loops.touch(size)
    figures: Figures = {}
    with ExitStack() as cleanup:
        where, path = cleanup.enter_context(tree.served(size))
        dev = cleanup.enter_context(Device.open(path))
        options = {"delivery": "inline", "window": window, "writeback": 0}
        mapping = cleanup.enter_context(dev.map(**options))
        pages = Pages(mapping.address, size // PAGE)
        loops.fill(pages)

        def rate() -> float:
            return accesses / latencies.random_read(pages).seconds

        for pair in range(pairs):
            figures[f"quiet_{pair}"] = rate()
            beside = tree.Reader(where)
            figures[f"beside_{pair}"] = rate()
            figures[f"files_{pair}"] = beside.finish()
    return figures


# ---- memory ----------------------------------------------------------------------------------


def idle(advertised: int, real: int, times: int = 5) -> Figures:
    """A device that was created and mapped, and is not used; the median of its creation's time."""
    _warm_up()
    taken = []
    for _ in range(times):
        start = time.monotonic()
        with Device(advertised=advertised, real=real):
            taken.append(time.monotonic() - start)
    before = footprint()
    with Device(advertised=advertised, real=real) as dev, dev.map():
        grown = footprint() - before
        shared = object_size(dev.fileno())
        return {
            "create_ms": 1000 * statistics.median(taken),
            "memory_object": shared,
            "memory_private": grown.anonymous,
            "memory": shared + grown.anonymous,
            "memory_page_tables": grown.page_tables,
        }


def metadata(size: int, window: int) -> Figures:
    """What a device takes besides the media in use and the resident frames, all pages written."""
    _warm_up()
    before = footprint()
    with (
        Device(advertised=size, real=size) as dev,
        dev.map(delivery="inline", window=window, writeback=0) as mapping,
    ):
        count = size // PAGE
        loops.fill(Pages(mapping.address, count))
        mapping.flush()
        grown = footprint() - before
        used = dev.stats.used
        frames = mapping.stats.resident * PAGE
        taken = object_size(dev.fileno()) + grown.anonymous - used - frames
        return {
            "pages": count,
            "sectors": used // dev.params.sector,
            "metadata": taken,
            "metadata_per_page": taken / count,
            "page_tables": grown.page_tables,
        }


def full(real: int, window: int) -> Figures:
    """How much payload a device holds when pages of 1 to 2 KiB of entropy have filled it."""
    advertised = 4 * real
    with (
        Device(advertised=advertised, real=real) as dev,
        dev.map(delivery="inline", window=window, writeback=0) as mapping,
    ):
        loops.fill(Pages(mapping.address, advertised // PAGE, low=1024, high=2048))
        mapping.flush()
        stats = dev.stats
        return {
            "real": stats.real,
            "used": stats.used,
            "payload": stats.payload,
            "dropped_writes": stats.dropped_writes,
        }


def _warm_up() -> None:
    """Once through everything, so that what a first use loads is not taken for a device's cost."""
    footprint()
    with Device(advertised=MIB, real=MIB) as dev, dev.map(window=64 << 10) as mapping:
        loops.fill(Pages(mapping.address, len(mapping) // PAGE))
        mapping.flush()


_ALL = (
    device,
    managed,
    callbacks,
    zram,
    zswap,
    program,
    kernel_zswap,
    emulated_zswap,
    limits,
    hot,
    hot_program,
    reader,
    idle,
    metadata,
    full,
)
JOBS = {job.__name__: job for job in _ALL}


def main() -> None:
    job, arguments = sys.argv[1:]
    print(json.dumps(JOBS[job](**json.loads(arguments))))


if __name__ == "__main__":
    main()
