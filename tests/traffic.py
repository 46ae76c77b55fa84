"""Redis-like traffic while every fault strikes at random: each page that is read is right or poison, each loss is counted.

    python traffic.py [--seed N] [--operations N] [--seconds S] [--damage WHAT]

prints the seed and how to have the same again, then the figures of each round as JSON; ends with 1 at the first thing that may
not be, and says which. A round has two devices. Processes of two threads keep values on one of them, by page operations, by
system calls and by loads and stores; in others the values are in managed memory, whose manager has the second one as its node.
What a page must hold is in a shadow in ordinary memory, which outlives who writes to it. A saboteur turns the faults on and off,
resets, cuts the power, poisons, and kills processes, which are started anew; in the end the devices are pulled out. Chance is
the seed's; which operation a strike meets is the scheduler's. It measures nothing.

    python traffic.py worker ...                 one process, used by the above
"""

import argparse
import collections
import ctypes
import faulthandler
import functools
import itertools
import json
import mmap
import os
import random
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from device_object import LOSSES, LOSSES_AT, DeviceObject
from samples import LINE, PAGE, holdings, noise

from cram_emu import Device, PoisonError
from cram_emu.errors import Busy, CramError, DeviceGone, InvalidArgument, NoAnswer
from cram_emu.faults import DISTRIBUTIONS, NAMES, Attributes
from cram_emu.host import Driver, ManagedMemory, Zswap

KINDS = ("pages", "mapped", "inline", "managed", "managed")
THREADS = 2
KEYS = 48  # of a thread
SLOT = 4  # pages of a value at most
PAGES = KEYS * SLOT  # of a thread
SECTIONS = len(KINDS) * THREADS

OPERATIONS = 2000  # of a thread, in a round
STEPS = 150  # of the saboteur, in a round
#: Nothing is done for so long: it hangs. Seconds.
HANG = 60.0
#: KiB of anonymous memory by which rounds may differ.
GROWTH = 8 << 10

PR_SET_PDEATHSIG = 1


class Wrong(Exception):
    """Something that may not be."""


# ---- the shadow -------------------------------------------------------------------------------


class Section:
    """What the pages of one thread must hold, and what it is doing to them just now."""

    COUNTERS = ("done", "touching", "first", "count", "gets", "sets", "changes", "deletions", "evictions", "lost", "torn")
    SIZE = (2 + PAGES) * PAGE  # counters and sizes, what is being written, the pages

    def __init__(self, memory: mmap.mmap, index: int):
        self.index = index
        self._memory = memory
        self._at = index * self.SIZE
        self._words = memoryview(memory)[self._at : self._at + PAGE].cast("Q")

    def __getitem__(self, name: str) -> int:
        return self._words[self.COUNTERS.index(name)]

    def __setitem__(self, name: str, value: int) -> None:
        self._words[self.COUNTERS.index(name)] = value

    def size(self, key: int) -> int:
        """Pages of its value."""
        return self._words[len(self.COUNTERS) + key]

    def set_size(self, key: int, pages: int) -> None:
        self._words[len(self.COUNTERS) + key] = pages

    def page(self, page: int) -> bytes:
        return self._memory[(at := self._at + (2 + page) * PAGE) : at + PAGE]

    def set_page(self, page: int, data: bytes) -> None:
        self._memory[(at := self._at + (2 + page) * PAGE) : at + PAGE] = data

    def clear(self) -> None:
        """All pages are zeros."""
        for page in range(PAGES):
            self.set_page(page, bytes(PAGE))
        self["count"] = 0

    # -- a change: until it is done a page may hold what it held, or what it is to hold

    def begin(self, first: int, count: int, data: bytes) -> None:
        self._memory[(at := self._at + PAGE) : at + PAGE] = data
        self["first"] = first
        self["count"] = count

    def end(self) -> None:
        data = self.coming
        for page in range(self["first"], self["first"] + self["count"]):
            self.set_page(page, data)
        self["count"] = 0

    @property
    def coming(self) -> bytes:
        return self._memory[(at := self._at + PAGE) : at + PAGE]

    def changing(self, page: int) -> bool:
        return self["first"] <= page < self["first"] + self["count"]

    def close(self) -> None:
        self._words.release()


class Shadow:
    """All sections, in a file."""

    def __init__(self, path: Path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, PAGE + SECTIONS * Section.SIZE)
            self._memory = mmap.mmap(fd, 0)
        finally:
            os.close(fd)
        self.sections = [Section(self._memory, index) for index in range(SECTIONS)]
        self._words = memoryview(self._memory)[SECTIONS * Section.SIZE :].cast("Q")

    @property
    def resets(self) -> int:
        """That the saboteur has commanded."""
        return self._words[0]

    def count_reset(self) -> None:
        self._words[0] += 1

    def close(self) -> None:
        self._words.release()
        for section in self.sections:
            section.close()
        self._memory.close()


# ---- where values are -------------------------------------------------------------------------


class Pages:
    """Pages of a device, by page operations. None, and False: poison."""

    kind = "pages"

    def __init__(self, path: Path, worker: int):
        self.device = patiently(lambda: Device.open(path))
        self.base = worker * THREADS * PAGES

    def start(self) -> None:
        """Its first use. Until then everything is read by page operations."""

    def dpa(self, page: int) -> int:
        return (self.base + page) * PAGE

    def load(self, page: int) -> bytes | None:
        try:
            return self.device.read(self.dpa(page), PAGE)
        except PoisonError:
            return None

    def read(self, page: int) -> bytes | None:
        return self.load(page)

    def write(self, page: int, data: bytes, at: int = 0, length: int = PAGE) -> bool:
        """The page is to hold data; only length bytes at `at` have changed."""
        self.mend(page, data)
        return True

    def mend(self, page: int, data: bytes) -> None:
        self.device.write(self.dpa(page), data)

    def discard(self, page: int, count: int) -> None:
        self.device.discard(self.dpa(page), count * PAGE)

    def poisoned(self, page: int) -> bool:
        return self.device.page(self.dpa(page)).poisoned != 0

    def tend(self) -> bool:
        """Now and then. Is it running full?"""
        with suppress(CramError):
            return self.device.no_alloc
        return False

    def close(self) -> None:
        self.device.close()


class Inline(Pages):
    """Loads and stores of a mapping: whoever meets poison is dead."""

    kind = "inline"

    def __init__(self, path: Path, worker: int):
        super().__init__(path, worker)
        self.mapping = None

    def start(self) -> None:
        options = {"window": "128K", "delivery": self.kind, "writeback": 0.005}
        self.mapping = patiently(lambda: self.device.map(self.base * PAGE, THREADS * PAGES * PAGE, **options))
        self._turns = itertools.count()

    def by_page(self) -> bool:
        """Every so often a page operation, for which a frame must make way."""
        return next(self._turns) % 8 == 0

    def read(self, page: int) -> bytes | None:
        return self.load(page) if self.by_page() else self.touch(page)

    def touch(self, page: int) -> bytes | None:
        return self.mapping[page * PAGE : (page + 1) * PAGE]

    def write(self, page: int, data: bytes, at: int = 0, length: int = PAGE) -> bool:
        if self.by_page():
            return super().write(page, data)
        return self.store(page * PAGE + at, data[at : at + length])

    def store(self, at: int, data: bytes) -> bool:
        self.mapping[at : at + len(data)] = data
        return True

    def tend(self) -> bool:
        self.mapping.flush()
        return super().tend()

    def close(self) -> None:
        if self.mapping is not None:
            self.mapping.close()
        super().close()


class SystemCalls:
    """Reads and writes memory by the kernel, to which poison is EFAULT. Threads: any."""

    def __init__(self):
        self._local = threading.local()
        self._files: list[int] = []

    def _file(self) -> int:
        if not hasattr(self._local, "fd"):
            self._local.fd = os.memfd_create("traffic")
            self._files.append(self._local.fd)
        return self._local.fd

    def load(self, memory, at: int, length: int) -> bytes | None:
        with memoryview(memory) as view, suppress(OSError):
            if os.pwrite(self._file(), view[at : at + length], 0) == length:
                return os.pread(self._file(), length, 0)
        return None

    def store(self, memory, at: int, data: bytes) -> bool:
        os.pwrite(self._file(), data, 0)
        with memoryview(memory) as view, suppress(OSError):
            return os.preadv(self._file(), [view[at : at + len(data)]], 0) == len(data)
        return False

    def close(self) -> None:
        for fd in self._files:
            os.close(fd)


class Mapped(Inline):
    """System calls on a mapping."""

    kind = "monitor"

    def __init__(self, path: Path, worker: int):
        super().__init__(path, worker)
        self._calls = SystemCalls()

    def touch(self, page: int) -> bytes | None:
        return self._calls.load(self.mapping, page * PAGE, PAGE)

    def store(self, at: int, data: bytes) -> bool:
        return self._calls.store(self.mapping, at, data)

    def close(self) -> None:
        self._calls.close()
        super().close()


class Managed:
    """System calls on managed memory that has a device as its node."""

    kind = "managed"

    def __init__(self, path: Path, worker: int):
        self.device = patiently(lambda: Device.open(path))
        self.manager = Zswap(ram="8M", swap="1M", max_pool_percent=5 * worker, query_interval=0.005, shrinker_enabled=True)
        # One that looks before each store, and one that believes what it was told.
        self.driver = Driver(live_registers=worker % 2 == 0, trim_buffer=16, flush_interval=0.01)
        self.memory = ManagedMemory(THREADS * PAGES * PAGE, "128K", self.manager, delivery="monitor")
        self._calls = SystemCalls()

    def start(self) -> None:
        with suppress(DeviceGone):
            patiently(lambda: self.manager.add_node(self.device, self.driver))

    def read(self, page: int) -> bytes | None:
        return self._calls.load(self.memory, page * PAGE, PAGE)

    load = read

    def write(self, page: int, data: bytes, at: int = 0, length: int = PAGE) -> bool:
        return self._calls.store(self.memory, page * PAGE + at, data[at : at + length])

    mend = None  # only a discard does

    def discard(self, page: int, count: int) -> None:
        self.memory.discard(page * PAGE, count * PAGE)

    def poisoned(self, page: int) -> bool:
        place = self.memory.place(page * PAGE)
        return place.where == "poison" or place.where == "direct" and self.device.page(place.dpa).poisoned != 0

    def tend(self) -> bool:
        self.memory.reclaim(16)
        return False

    def close(self) -> None:
        self._calls.close()
        self.manager.close()
        self.device.close()


STORES = {"pages": Pages, "mapped": Mapped, "inline": Inline, "managed": Managed}


def patiently(call: Callable):
    """A device is stood still by others too."""
    while True:
        try:
            return call()
        except NoAnswer:
            time.sleep(0.01)


# ---- traffic ----------------------------------------------------------------------------------


def content(chance: random.Random, key: int, page: int, version: int) -> bytes:
    """A page of zeros, of one word, or one that says whose it is and then shrinks more or less."""
    amount = chance.choice((0, 8, 300, 1000, 2000, 3500, PAGE))
    if amount == 0:
        return bytes(PAGE)
    if amount == 8:
        return struct.pack("<HHI", key + 1, page, version) * (PAGE // 8)
    return struct.pack("<QQQ", key, page, version) + chance.randbytes(amount - 24) + b"\x55" * (PAGE - amount)


class Client(threading.Thread):
    """One thread's traffic on its section; it checks whatever it reads."""

    def __init__(self, store, section: Section, shadow: Shadow, chance: random.Random, operations: int):
        super().__init__(daemon=True)
        self.store = store
        self.section = section
        self.shadow = shadow
        self.chance = chance
        self.operations = operations  # 0: until the device is pulled out
        self.offset = section.index % THREADS * PAGES
        self.removal = store.device.faults["removal"]
        self.reset = store.device.faults["reset"]

    def run(self) -> None:
        try:
            while not self.is_over():
                self.one()
                self.section["done"] += 1
        except DeviceGone:
            if self.operations == 0:
                return
            self.complain()
        except BaseException:
            self.complain()

    def complain(self) -> None:
        """The process ends; the other thread must not go on."""
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)

    def is_over(self) -> bool:
        if self.operations:
            return self.section["done"] >= self.operations
        return self.removal.struck > 0

    def one(self) -> None:
        # Half of the operations go to an eighth of the keys.
        key = int(KEYS * self.chance.random() ** 3)
        what = self.chance.random()
        if what < 0.60:
            self.get(key)
        elif what < 0.85:
            self.set(key)
        elif what < 0.94:
            self.change(key)
        else:
            self.delete(key, "deletions")
        if self.section["done"] % 64 == 0 and self.store.tend():
            # As a cache that is at its limit.
            for _ in range(4):
                self.delete(self.chance.randrange(KEYS), "evictions")

    def get(self, key: int) -> None:
        for page in range(key * SLOT, key * SLOT + self.section.size(key)):
            self.read(page)
        self.section["gets"] += 1

    def set(self, key: int) -> None:
        version = self.section["done"] + 1
        size = self.chance.choices((1, 2, 3, 4), (6, 3, 2, 1))[0]
        for page in range(size):
            self.write(key * SLOT + page, content(self.chance, key, page, version))
        self.section.set_size(key, size)
        self.section["sets"] += 1

    def change(self, key: int) -> None:
        """Eight bytes of a value that is there."""
        page = key * SLOT + self.chance.randrange(SLOT)
        before = self.read(page)
        if before is not None:
            at = self.chance.randrange(PAGE // 8) * 8
            self.write(page, before[:at] + self.chance.randbytes(8) + before[at + 8 :], at, 8)
        self.section["changes"] += 1

    def delete(self, key: int, counter: str) -> None:
        self.discard(key * SLOT, SLOT)
        self.section.set_size(key, 0)
        self.section[counter] += 1

    # -- pages

    @contextmanager
    def touching(self, page: int) -> Iterator[None]:
        self.section["touching"] = page + 1
        yield
        self.section["touching"] = 0

    def resets(self) -> int:
        return self.shadow.resets + self.reset.struck

    def read(self, page: int) -> bytes | None:
        resets = self.resets()
        with self.touching(page):
            data = self.store.read(self.offset + page)
        if data is None:
            self.lost(page, resets)
        elif data != self.section.page(page):
            raise Wrong(self.told(page, data))
        return data

    def write(self, page: int, data: bytes, at: int = 0, length: int = PAGE) -> None:
        resets = self.resets()
        self.section.begin(page, 1, data)
        with self.touching(page):
            written = self.store.write(self.offset + page, data, at, length)
        if written:
            self.section.end()
        else:
            self.lost(page, resets)

    def discard(self, page: int, count: int) -> None:
        self.section.begin(page, count, bytes(PAGE))
        self.store.discard(self.offset + page, count)
        self.section.end()

    def lost(self, page: int, resets: int) -> None:
        """A page was said to be poison: it is, but that a reset has made a line good that was never written. It is mended."""
        if not self.store.poisoned(self.offset + page) and self.resets() == resets:
            raise Wrong(f"{self.store.kind}: page {page} of section {self.section.index}: no data, and no poison")
        if self.removal.struck:
            return
        self.section["lost"] += 1
        if self.store.mend is None or self.chance.random() < 0.5:
            self.discard(page, 1)
            return
        data = content(self.chance, page // SLOT, page % SLOT, self.section["done"] + 1)
        self.section.begin(page, 1, data)
        self.store.mend(self.offset + page, data)
        self.section.end()

    def told(self, page: int, data: bytes) -> str:
        return f"{self.store.kind}: page {page} of section {self.section.index}: {difference(data, self.section.page(page))}"

    # -- after the death of who was here before

    def recover(self) -> None:
        """Each page holds what was written to it last, or is poison; one that was being written, some of either."""
        # Those first: to mend a page is to write.
        for page in filter(self.section.changing, range(PAGES)):
            data, before = self.store.load(self.offset + page), self.section.page(page)
            if data is not None and self.may_be(data, before):
                self.section.set_page(page, data)
        self.section["count"] = 0
        for page in range(PAGES):
            resets = self.resets()
            data = self.store.load(self.offset + page)
            if data is None:
                self.lost(page, resets)
            elif data != self.section.page(page):
                raise Wrong(f"after a death: {self.told(page, data)}")
        self.section["touching"] = 0

    def may_be(self, data: bytes, before: bytes) -> bool:
        coming = self.section.coming
        if data in (before, coming):
            return True
        # A page operation is whole. A frame may have been stored while it was written to.
        if self.store.kind == "pages":
            return False
        self.section["torn"] += 1
        return all(byte in either for byte, *either in zip(data, before, coming))


def difference(data: bytes, expected: bytes) -> str:
    at = next(at for at in range(PAGE) if data[at] != expected[at])
    return f"wrong from byte {at}: {data[at : at + 8].hex()}, not {expected[at : at + 8].hex()}; begins {data[:24].hex()}"


def work(where: Path, worker: int, incarnation: int, seed: int, operations: int) -> None:
    """One process, to its end."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    before = holdings()
    shadow = Shadow(where / "shadow")
    kind = KINDS[worker]
    store = STORES[kind](where / ("node" if kind == "managed" else "direct"), worker)
    sections = shadow.sections[worker * THREADS : (worker + 1) * THREADS]
    clients = [
        Client(store, section, shadow, random.Random(f"{seed} {section.index} {incarnation}"), operations)
        for section in sections
    ]
    for section, client in zip(sections, clients):
        if kind == "managed":
            # It was the dead one's own.
            section.clear()
        else:
            client.recover()
    try:
        store.start()
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    except DeviceGone:
        # It came too late for the last part.
        if operations:
            raise
    store.close()
    del store, clients, client, section, sections[:]
    shadow.close()
    # A thread that has been joined may still be on its way out.
    end = time.monotonic() + HANG / 2
    while (left := holdings()) != before:
        if time.monotonic() > end:
            raise Wrong(f"{kind}: descriptors and threads {left}, before {before}")
        time.sleep(0.001)


# ---- the saboteur -----------------------------------------------------------------------------

#: Most of `value` that leaves a run its time and its room; a fault that is not here has 0.
VALUES = {
    "capacity": 4096, "read_delay": 2000, "write_delay": 2000, "late_irq": 20, "stale": 100, "lie_ratio": 3000,
    "lie_remaining": 3000, "saturated": 1 << 21, "storm_irq": 32, "ratio": 4096,
}  # fmt: skip
#: Most of probability, in percent.
LIKELY = {"capacity": 1.0, "read_delay": 2.0, "write_delay": 2.0, "storm_irq": 2.0, "reset": 0.05, "power_cycle": 0.05}
#: Those that strike before anything else is done.
FIRST = ("store", "corrupt", "poison", "ratio", "trim", "read_delay", "write_delay")
#: Once a device has lost its contents it needs time to be filled again.
ONCE = ("reset", "power_cycle")
OTHERS = [name for name in NAMES if name not in (*ONCE, "removal")]


class Saboteur:
    """Does one bad thing after another to the devices of a round."""

    def __init__(self, chance: random.Random, devices: list[Device], shadow: Shadow, kill: Callable[[int], None]):
        self.chance = chance
        self.devices = devices
        self.shadow = shadow
        self.kill = kill
        self.did: collections.Counter[str] = collections.Counter()
        #: Lines poisoned by hand, by device.
        self.injected: collections.Counter[Device] = collections.Counter()

    def begin(self, device: Device) -> None:
        """What every round has."""
        for name in FIRST:
            device.faults[name].set(probability=100, interval=10, times=3)
        self.waits_for = device

    def step(self) -> None:
        if any(self.waits_for.faults[name].struck == 0 for name in FIRST):
            return
        device = self.chance.choice(self.devices)
        acts = (self.set, self.calm, self.strike, self.inject, self.look, self.rebuild, self.murder, self.mark)
        act = self.chance.choices(acts, (60, 5, 1, 15, 5, 3, 5, 6))[0]
        try:
            act(device)
            self.did[act.__name__] += 1
        except (NoAnswer, Busy) as error:
            self.did[type(error).__name__] += 1

    def set(self, device: Device) -> None:
        name = self.chance.choices([*OTHERS, *ONCE], [3] * len(OTHERS) + [1] * len(ONCE))[0]
        fault = device.faults[name]
        if self.chance.random() < 0.35:
            fault.off()
            return
        interval = self.chance.choice((0, 1, 1, 1, 3, 20))
        fault.set(
            probability=LIKELY.get(name, self.chance.choice((0.5, 3.0, 10.0))) if interval < 2 else 100.0,
            interval=interval,
            times=1 if name in ONCE else self.chance.choice((-1, 1, 10, 50)),
            space=self.chance.choice((0, 0, self.chance.randrange(1 << 20))),
            seed=self.chance.randrange(1 << 32),
            value=self.chance.randint(0, VALUES.get(name, 0)),
            distribution=self.chance.choice(tuple(DISTRIBUTIONS)),
            verbose=self.chance.choice((0, 1, 1)),
            task_filter=self.chance.random() < 0.2,
        )

    def mark(self, device: Device) -> None:
        client = self.chance.choice(device.clients())
        with suppress(InvalidArgument):  # it has gone meanwhile
            device.make_it_fail(client.pid, not client.make_it_fail)

    def calm(self, device: Device) -> None:
        for fault in device.faults.values():
            fault.off()

    def strike(self, device: Device) -> None:
        self.shadow.count_reset()
        self.chance.choice((device.reset, device.power_cycle))()

    def inject(self, device: Device) -> None:
        self.injected[device] += 1
        device.poison.inject(self.chance.randrange(device.params.advertised // LINE) * LINE)

    def look(self, device: Device) -> None:
        device.clients()
        device.poison.records()
        device.page(self.chance.randrange(device.params.advertised))
        _ = device.stats

    def rebuild(self, device: Device) -> None:
        device.rebuild()

    def murder(self, device: Device) -> None:
        self.kill(self.chance.randrange(len(KINDS)))


# ---- a round ----------------------------------------------------------------------------------


class Round:
    """Two devices from their beginning to their end."""

    def __init__(self, seed: int, operations: int, damage: str | None):
        self.seed = seed
        self.operations = operations
        self.damage = damage
        self.chance = random.Random(f"{seed} saboteur")
        self.deaths: collections.Counter[str] = collections.Counter()
        self.incarnations = itertools.count()

    def run(self) -> dict:
        """Its figures. Wrong."""
        before = holdings()
        with tempfile.TemporaryDirectory(dir="/dev/shm") as where:
            self.where = Path(where)
            self.shadow = Shadow(self.where / "shadow")
            self.direct, self.node = self.device("direct", "8M", "640K"), self.device("node", "4M", "320K")
            self.saboteur = Saboteur(self.chance, [self.direct, self.node], self.shadow, self.kill)
            self.running: dict[int, subprocess.Popen] = {}
            self.killed: set[int] = set()
            try:
                figures = self.to_the_end()
            finally:
                for process in self.running.values():
                    process.kill()
                    process.wait()
            self.direct.close()
            self.node.close()
            self.shadow.close()
            for path in self.where.glob("*.stderr"):
                if text := path.read_text():
                    raise Wrong(f"{path.name}: {text}")
                path.unlink()
            self.equal("files", sorted(os.listdir(where)), ["direct", "node", "shadow"])
        del self.direct, self.node, self.shadow, self.saboteur
        self.equal("descriptors and threads", holdings(), before)
        self.equal("processes", psutil.Process().children(recursive=True), [])
        return figures

    def device(self, name: str, advertised: str, real: str) -> Device:
        return Device(
            advertised,
            real,
            path=self.where / name,
            codec=self.chance.choice(("lz4", "lz4", "zstd")),
            block=self.chance.choice((4096, 4096, 1024)),
            sector=self.chance.choice((64, 64, 256)),
            poison_limit=self.chance.choice((20, 1024)),
            signal=0,
        )

    def to_the_end(self) -> dict:
        self.saboteur.begin(self.direct)
        self.traffic(self.operations, self.saboteur.step, max(1, self.operations * SECTIONS // STEPS))
        for device in (self.direct, self.node):
            self.saboteur.calm(device)
            device.reap()
        if self.damage == "byte":
            self.flip_a_byte()
        elif self.damage == "counters":
            self.lose_pages()
            there = DeviceObject(self.direct.fileno())
            there.write(LOSSES_AT, bytes(8 * LOSSES))
        figures = self.account()
        self.removal()
        struck = {name: sum(device.faults[name].struck for device in (self.direct, self.node)) for name in NAMES}
        return figures | {"deaths": dict(self.deaths), "saboteur": dict(self.saboteur.did), "struck": struck}

    @staticmethod
    def equal(what: str, found, expected) -> None:
        if found != expected:
            raise Wrong(f"{what}: {found}, not {expected}")

    # -- processes

    def start(self, worker: int, operations: int) -> None:
        number = next(self.incarnations)
        options = [self.where, worker, number, self.seed, operations]
        with open(self.where / f"{number}-{KINDS[worker]}.stderr", "w") as stderr:
            self.running[worker] = subprocess.Popen(
                [sys.executable, "-W", "ignore::RuntimeWarning", __file__, "worker", *map(str, options)],
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )
        self.errors[worker] = Path(stderr.name)

    def kill(self, worker: int) -> None:
        if worker in self.running:
            self.killed.add(worker)
            # Not by kill(), which reaps it where it has ended.
            os.kill(self.running[worker].pid, signal.SIGKILL)

    def traffic(self, operations: int, act: Callable[[], None], stride: int) -> None:
        """Acts every so many operations of all. operations of a thread; 0: until the devices are pulled out."""
        self.errors: dict[int, Path] = {}
        for worker in range(len(KINDS)):
            self.start(worker, operations)
        progress, since, due = self.done(), time.monotonic(), self.done() + stride
        while self.running:
            for worker in list(self.running):
                self.look_after(worker, operations)
            done = self.done()
            if done != progress:
                progress, since = done, time.monotonic()
                faulthandler.dump_traceback_later(2 * HANG, exit=True)
            elif time.monotonic() - since > HANG:
                raise Wrong(self.stacks())
            if done >= due:
                due += stride
                act()
            else:
                time.sleep(0.001)
        faulthandler.cancel_dump_traceback_later()

    def done(self) -> int:
        return sum(section["done"] for section in self.shadow.sections)

    def look_after(self, worker: int, operations: int) -> None:
        """One that has been killed, or has met poison, is started anew."""
        process = self.running[worker]
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        device = self.node if KINDS[worker] == "managed" else self.direct
        # Before it is reaped here, and unless somebody has done so on the device.
        met = next((client.poison_faults for client in device.clients() if client.pid == process.pid), None)
        code = process.wait()
        del self.running[worker]
        killed = worker in self.killed
        self.killed.discard(worker)
        text = self.errors[worker].read_text()
        if code == 0 and not text:
            return
        if code == -signal.SIGBUS and KINDS[worker] == "inline":
            self.confirm(worker, met)
            self.deaths["SIGBUS"] += 1
        elif code == -signal.SIGKILL and killed:
            self.deaths["SIGKILL"] += 1
        else:
            raise Wrong(f"a process of kind {KINDS[worker]} ended with {code}: {text}")
        if not self.direct.faults["removal"].struck:
            self.start(worker, operations)

    def confirm(self, worker: int, met: int | None) -> None:
        """It died of poison: the device has counted that it met some, and a page that it touched is."""
        touched = [
            (worker * THREADS + thread) * PAGES + section["touching"] - 1
            for thread, section in enumerate(self.shadow.sections[worker * THREADS : (worker + 1) * THREADS])
            if section["touching"]
        ]
        if met == 0 or not any(self.direct.page(page * PAGE).poisoned for page in touched):
            raise Wrong(f"a process died by SIGBUS, and touched pages {touched}; poison met: {met}")

    def stacks(self) -> str:
        """What those that hang are at."""
        for process in self.running.values():
            process.send_signal(signal.SIGUSR1)
        time.sleep(1)
        told = [f"{KINDS[worker]}:\n{self.errors[worker].read_text()}" for worker in self.running]
        return f"nothing has been done for {HANG:.0f} s\n" + "\n".join(told)

    # -- what must hold in the end

    def flip_a_byte(self) -> None:
        """Behind the shadow's back, on a page that can be read."""
        for page in range(THREADS * PAGES):
            with suppress(PoisonError):
                data = bytearray(self.direct.read(page * PAGE, PAGE))
                data[1234] ^= 1
                self.direct.write(page * PAGE, data)
                return

    def lose_pages(self) -> None:
        """More than by any other cause."""
        self.direct.faults["store"].set(probability=100)
        for page in range(SECTIONS * PAGES // 2):
            self.direct.write(page * PAGE, noise(page))
        self.direct.faults["store"].off()

    def account(self) -> dict:
        losses = {}
        for device, name in ((self.direct, "direct"), (self.node, "node")):
            self.order(device)
            pages = device.params.advertised // PAGE
            right, found = self.verify(device)
            stats = device.stats
            states = [device.page(page * PAGE) for page in range(pages)]
            self.equal("poisoned pages", sum(info.poisoned != 0 for info in states), found)
            self.equal("register poisoned", stats.poisoned, found)
            self.equal("register pages_poison", stats.pages_poison, sum(info.state == "poison" for info in states))
            causes = {
                "dropped_writes": stats.dropped_writes,
                "media_errors": stats.media_errors,
                "lost_pages": stats.lost_pages,
                "poison": device.faults["poison"].struck,
                "injected": self.saboteur.injected[device],
            }
            met = sum(section["lost"] for section in self.sections_of(device))
            if met + found > sum(causes.values()):
                raise Wrong(f"{name}: {met} losses were met and {found} pages are poison; counted are {causes}")
            if stats.media_errors > device.faults["corrupt"].struck:
                flips = device.faults["corrupt"].struck
                raise Wrong(f"{name}: {stats.media_errors} media errors; bits were flipped {flips} times")
            losses[name] = {"met": met, "left": found, "right": right, "counted": causes}
            self.empty(device)
        return {
            "seed": self.seed,
            **{
                counter: sum(section[counter] for section in self.shadow.sections)
                for counter in ("done", "gets", "sets", "changes", "deletions", "evictions", "torn")
            },
            "losses": losses,
        }

    def order(self, device: Device) -> None:
        """What is derived from the page map is what it says. Only trims that failed have left sectors in use."""
        names = ("zero", "same", "stored", "raw", "poison")
        counted = (*(f"pages_{name}" for name in names), "payload", "poisoned", "poison_records", "poison_overflow")
        before = device.stats
        device.rebuild()
        after = device.stats
        self.equal("registers", *([getattr(stats, name) for name in counted] for stats in (before, after)))
        if before.used < after.used or before.used > after.used and not device.faults["trim"].struck:
            raise Wrong(f"used: {before.used} bytes, {after.used} after a rebuild")
        self.audit(device)

    def audit(self, device: Device) -> None:
        lost = (device.params.real - device.stats.real) // device.params.sector
        try:
            DeviceObject(device.fileno()).check(lost)
        except AssertionError as error:
            raise Wrong(f"the audit of the device object: {error}") from error

    def sections_of(self, device: Device) -> list[Section]:
        wanted = device is self.node
        return [s for s in self.shadow.sections if (KINDS[s.index // THREADS] == "managed") is wanted]

    def verify(self, device: Device) -> tuple[int, int]:
        """Reads every page: how many are right, and how many poison. Nobody has anything on the node any more."""
        shadows = [] if device is self.node else self.sections_of(device)
        right = 0
        pages = device.params.advertised // PAGE
        for page in range(pages):
            expected = shadows[page // PAGES].page(page % PAGES) if page < len(shadows) * PAGES else bytes(PAGE)
            with suppress(PoisonError):
                data = device.read(page * PAGE, PAGE)
                if data != expected:
                    raise Wrong(f"in the end: page {page}: {difference(data, expected)}")
                right += 1
        return right, pages - right

    def empty(self, device: Device) -> None:
        """All that was taken comes back."""
        device.discard(0, device.params.advertised)
        stats = device.stats
        self.equal("used and poisoned of an empty device", (stats.used, stats.poisoned, stats.dirty_frames), (0, 0, 0))
        self.audit(device)

    def pull_out(self) -> None:
        """By hand, what is not written to any more."""
        for device in (self.direct, self.node):
            with suppress(DeviceGone, NoAnswer):
                device.remove()

    def removal(self) -> None:
        """Under traffic both are pulled out: nobody reads anything wrong, nobody hangs, and everything is poison."""
        for section in self.shadow.sections:
            section.clear()
            for key in range(KEYS):
                section.set_size(key, 0)
        for _ in range(10):
            self.saboteur.set(self.chance.choice(self.saboteur.devices))
        for device in (self.direct, self.node):
            space = self.chance.randrange(200, 1000) * PAGE
            device.faults["removal"].set(probability=100, times=1, space=space)
        self.traffic(0, self.pull_out, 2000)
        for device in (self.direct, self.node):
            if not device.faults["removal"].struck:
                raise Wrong("a device was not pulled out")
            for page in range(device.params.advertised // PAGE):
                with suppress(PoisonError):
                    device.read(page * PAGE, PAGE)
                    raise Wrong(f"page {page} of a device that is gone can be read")
            with suppress(DeviceGone):
                _ = device.stats
                raise Wrong("a device that is gone has registers")
            device.reap()
            self.equal("clients", [client.pid for client in device.clients()], [os.getpid()])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int)
    parser.add_argument("--operations", type=int, default=OPERATIONS, help="of a thread, in a round")
    parser.add_argument("--seconds", type=float, default=0, help="rounds until then, each with the next seed; one without")
    parser.add_argument("--damage", choices=("byte", "counters"), help="flip a byte behind the shadow's back, or forget losses")
    args = parser.parse_args()
    # What has been made goes when this is ended, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    seed = random.randrange(1 << 32) if args.seed is None else args.seed
    end = time.monotonic() + args.seconds
    memory = functools.partial(psutil.Process().memory_full_info)
    first = None
    for number in itertools.count(seed):
        again = [sys.executable, __file__, "--seed", number, "--operations", args.operations]
        print(f"seed {number}: {shlex.join(map(str, again))}", flush=True)
        try:
            figures = Round(number, args.operations, args.damage).run()
        except Wrong as error:
            print(f"wrong: {error}", flush=True)
            return 1
        kib = memory().uss >> 10
        print(json.dumps(figures | {"memory_kib": kib}), flush=True)
        first = kib if first is None else first
        if kib > first + GROWTH:
            print(f"wrong: {kib} KiB of memory, {first} after the first round")
            return 1
        if time.monotonic() >= end:
            return 0
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        where, *numbers = sys.argv[2:]
        work(Path(where), *map(int, numbers))
    else:
        sys.exit(main())
