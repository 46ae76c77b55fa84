"""Clients of a device: objects, processes, children of fork; how they come, share, close and die.

What the dead leave is made in two ways: by killing a process at a random instant, and, exactly, by
writing into the device object what one would have left.
"""

import gc
import itertools
import os
import random
import signal
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from device_object import (
    ALERT_LOCK_AT,
    FLAG_BUSY,
    FLAG_DIRTY,
    FLAG_LOCK,
    GATE,
    HOLDER_SHIFT,
    POISON_LOCK_AT,
    TABLE_LOCK,
    USED_AT,
    DeviceObject,
)
from samples import (
    LINE,
    PAGE,
    apply,
    entropy,
    holdings,
    noise,
    operations,
    right_or_poison,
    run_threads,
)

from cram_emu import CramError, Device, PoisonError, PoisonRecord
from cram_emu._core import ffi, lib
from cram_emu.errors import Busy, DeviceClosed, NoAnswer

# Joins the device at argv[1], says so, and lives until its input ends.
IDLER = """
import sys
from cram_emu import Device
dev = Device.open(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
"""

# The same with the first 64 KiB mapped, and the first page dirty.
MAPPER = """
import sys
from cram_emu import Device
dev = Device.open(sys.argv[1])
mapping = dev.map(length="64K", window="64K", delivery="inline", writeback=0)
mapping[0:4096] = b"\\1\\2\\3\\4" * 1024
mapping[4096]
print("ready", flush=True)
sys.stdin.readline()
print(mapping[0], dev.read(8192, 2), flush=True)
sys.stdin.read()
"""

# Does operations() in so many threads, each on its own pages, and reports each that is done.
WORKER = """
import os, struct, sys, threading
from cram_emu import Device
from samples import apply, operations
seed, threads = int(sys.argv[2]), int(sys.argv[3])
dev = Device.open(sys.argv[1])

def work(thread):
    mine = range(thread, 256, threads)
    for number, (page, data) in enumerate(operations(seed * 10 + thread, mine)):
        apply(dev, page, data)
        os.write(1, struct.pack("<II", thread, number))

for thread in range(threads):
    threading.Thread(target=work, args=(thread,)).start()
"""


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Device]:
    """A device in a file, for others to join."""
    with Device("1M", "128K", path=tmp_path / "device", signal=0) as dev:
        yield dev


@pytest.fixture
def join(start_child, tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """join(program): a process that has joined the shared device."""

    def start(program: str = IDLER) -> subprocess.Popen:
        child = start_child(program, tmp_path / "device")
        assert child.stdout.readline() == "ready\n"
        return child

    return start


def kill(child: subprocess.Popen) -> None:
    child.kill()
    child.wait()


class TestSharing:
    def test_contents(self, shared: Device, tmp_path: Path):
        """What one client writes, discards and poisons, another sees."""
        with Device.open(tmp_path / "device") as other:
            shared.write(0, noise(0))
            other.write(PAGE, noise(1))
            assert other.read(0, PAGE) + shared.read(PAGE, PAGE) == noise(0) + noise(1)
            other.discard(0, PAGE)
            assert shared.read(0, PAGE) == bytes(PAGE)
            other.poison.inject(0)
            assert shared.poison.records() == [PoisonRecord(0, LINE, "injected")]

    def test_counters(self, shared: Device, run_child, tmp_path: Path):
        """Counters are of the device: a process that overflows it counts for all."""
        child = run_child(
            """
            import sys
            from cram_emu import Device
            from samples import PAGE, noise
            with Device.open(sys.argv[1]) as dev:
                for page in range(64):
                    dev.write(page * PAGE, noise(page))
                print(dev.stats.clients, dev.stats.dropped_writes)
            """,
            tmp_path / "device",
        )
        assert child.stdout == "2 32\n"
        stats = shared.stats
        assert (stats.dropped_writes, stats.pages_raw, stats.clients) == (32, 32, 1)
        assert shared.read(0, 32 * PAGE) == b"".join(noise(page) for page in range(32))

    def test_list(self, shared: Device, join):
        """Each process with what it has mapped and in frames; one that has died, until it is reaped."""
        (own,) = shared.clients()
        assert (own.pid, own.mapped, own.resident_frames, own.faults) == (os.getpid(), 0, 0, 0)
        child = join(MAPPER)
        (found,) = (client for client in shared.clients() if client.pid == child.pid)
        assert (found.mapped, found.resident_frames, found.faults) == (64 << 10, 3, 2)
        assert 1 <= found.dirty_frames == shared.stats.dirty_frames <= 2
        with shared.map(64 << 10, "64K", window="64K", writeback=0) as mapping:
            mapping[0:PAGE] = noise(0)
            mapping.flush()
            (own,) = (client for client in shared.clients() if client.pid == os.getpid())
            assert (own.mapped, own.resident_frames, own.dirty_frames) == (64 << 10, 1, 0)
            assert (own.faults, own.written_back) == (1, 1)
        (own,) = (client for client in shared.clients() if client.pid == os.getpid())
        assert (own.mapped, own.resident_frames) == (0, 0)
        kill(child)
        assert len(shared.clients()) == 2
        shared.reap()
        assert [client.pid for client in shared.clients()] == [os.getpid()]

    def test_same_pages(self, shared: Device, start_child, tmp_path: Path):
        """Two processes that write the same pages at once never leave half of each."""
        program = """
            import sys
            from cram_emu import Device
            from samples import PAGE, entropy
            with Device.open(sys.argv[1]) as dev:
                print("ready", flush=True)
                sys.stdin.readline()
                for number in range(1000):
                    dev.write(number % 4 * PAGE, entropy(number % 10, 300 * (number % 10) + 8))
        """
        children = [start_child(program, tmp_path / "device") for _ in range(2)]
        for child in children:
            assert child.stdout.readline() == "ready\n"
        versions = [entropy(number, 300 * number + 8) for number in range(10)] + [bytes(PAGE)]
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        while any(child.poll() is None for child in children):
            for page in range(4):
                assert shared.read(page * PAGE, PAGE) in versions
        assert [child.returncode for child in children] == [0, 0]
        DeviceObject(shared.fileno()).check()


class TestSlots:
    def test_all(self, shared: Device, tmp_path: Path):
        """64 clients fit; one more is refused and leaves nothing; a place that is left is taken anew."""
        path = tmp_path / "device"
        others = [Device.open(path) for _ in range(63)]
        assert shared.stats.clients == 64
        before = holdings()
        with pytest.raises(Busy, match="64 client slots"):
            Device.open(path)
        assert holdings() == before
        for page, other in enumerate(others):
            other.write(page * PAGE, entropy(page, 8))
        assert shared.read(62 * PAGE, PAGE) == entropy(62, 8)
        others.pop(30).close()
        others.append(Device.open(path))
        assert shared.stats.clients == 64
        for other in others:
            other.close()
        assert shared.stats.clients == 1

    def test_of_the_dead(self, shared: Device, join, tmp_path: Path):
        """The slots of killed processes are free again for who comes."""
        path = tmp_path / "device"
        children = [join() for _ in range(3)]
        others = [Device.open(path) for _ in range(60)]
        assert shared.stats.clients == 64
        for child in children:
            kill(child)
        others += [Device.open(path) for _ in range(3)]
        assert shared.stats.clients == 64
        for other in others:
            other.close()


@pytest.mark.usefixtures("skip_unless_userfaultfd")
class TestForeignPages:
    """A range that one client has mapped, for the page functions of another."""

    def test_refused(self, shared: Device, tmp_path: Path):
        """A read copies nothing and raises Busy; writes and discards are dropped and counted."""
        buffer = bytearray(b"\xee" * PAGE)
        shared.write(0, noise(0))
        shared.write(16 * PAGE, noise(16))
        with Device.open(tmp_path / "device") as other:
            with other.map(length="64K", window="64K", delivery="inline"):
                with pytest.raises(Busy, match="0x0 "):
                    shared.read(0, PAGE)
                assert lib.cram_read_page(shared._handle, 0, ffi.from_buffer(buffer)) == PAGE
                assert buffer == b"\xee" * PAGE
                shared.write(0, noise(1))
                shared.discard(0, PAGE)
                assert shared.stats.refused_writes == 2
                assert shared.stats.dropped_writes == 0
                assert other.read(0, PAGE) == noise(0)
                # Beside the range all is as ever.
                assert shared.read(16 * PAGE, PAGE) == noise(16)
            assert shared.read(0, PAGE) == noise(0)
            shared.write(0, noise(1))
            assert (other.read(0, PAGE), shared.stats.refused_writes) == (noise(1), 2)

    def test_resident_here(self, shared: Device):
        """On a page that is resident in this process they act through its frame."""
        shared.write(0, noise(0))
        options = {"length": "64K", "window": "64K", "delivery": "inline", "writeback": 0}
        with shared.map(**options) as mapping:
            mapping[0] = 7
            assert shared.page(0).resident and shared.page(0).dirty
            assert shared.read(0, PAGE) == b"\7" + noise(0)[1:]
            shared.write(0, noise(1))
            assert bytes(mapping[0:PAGE]) == shared.read(0, PAGE) == noise(1)
            shared.discard(0, PAGE)
            assert bytes(mapping[0:PAGE]) == shared.read(0, PAGE) == bytes(PAGE)

    def test_poison_command(self, shared: Device, join):
        """Poison injected from outside reaches a page that another process has mapped."""
        shared.write(0, noise(0, 4 * PAGE))
        child = join(MAPPER)
        shared.poison.inject(3 * PAGE)
        shared.poison.inject(0)
        assert shared.poison.records() == [
            PoisonRecord(0, LINE, "injected"),
            PoisonRecord(3 * PAGE, LINE, "injected"),
        ]
        # Its newer copy of the first page was written back, not lost.
        assert shared.page(0).state == "same"
        shared.poison.clear(0)
        child.stdin.write("on\n")
        child.stdin.flush()
        data = noise(0, 4 * PAGE)[2 * PAGE : 2 * PAGE + 2]
        assert child.stdout.readline() == f"0 {data}\n"

    def test_no_answer(self, shared: Device, join):
        """A stopped process that has the page mapped is named, and nothing has changed."""
        child = join(MAPPER)
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        with pytest.raises(NoAnswer, match=f"{child.pid}.*0x0"):
            shared.poison.inject(0)
        assert (len(shared.poison), shared.stats.clients) == (0, 2)
        child.send_signal(signal.SIGCONT)
        shared.poison.inject(LINE)
        assert PoisonRecord(LINE, LINE, "injected") in shared.poison.records()


class TestReap:
    def test_living(self, shared: Device, join):
        """Nobody who lives is reaped: not idle, not stopped."""
        join()
        child = join()
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        assert (shared.reap(), shared.stats.clients) == (0, 3)

    def test_dead(self, shared: Device, join):
        """The killed are reaped once, whether or not their parent has looked."""
        children = [join() for _ in range(3)]
        for child in children:
            child.kill()
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        children[0].wait()
        assert (shared.reap(), shared.stats.clients) == (3, 1)
        assert shared.reap() == 0

    @pytest.mark.usefixtures("skip_unless_userfaultfd")
    def test_dirty_pages(self, shared: Device, join):
        """A dirty page of a killed process is poison, and counted; clean ones and others stay."""
        shared.write(0, noise(0, 3 * PAGE))
        child = join(MAPPER)
        assert (shared.page(0).dirty, shared.page(PAGE).dirty) == (True, False)
        kill(child)
        assert shared.reap() == 1
        assert shared.poison.records() == [PoisonRecord(0, PAGE, "lost")]
        assert shared.stats.lost_pages == 1
        assert shared.read(PAGE, 2 * PAGE) == noise(0, 3 * PAGE)[PAGE:]
        DeviceObject(shared.fileno()).check()

    @pytest.mark.usefixtures("skip_unless_userfaultfd")
    def test_written_back(self, shared: Device, join):
        """The same process, when it has ended by itself, has lost nothing."""
        child = join(MAPPER)
        child.communicate("on\n")
        assert shared.read(0, PAGE) == b"\1\2\3\4" * 1024
        assert (shared.stats.lost_pages, shared.stats.clients) == (0, 1)

    @pytest.mark.usefixtures("skip_unless_userfaultfd")
    def test_no_descriptors(self, shared: Device, join, run_child, tmp_path: Path):
        """A process that can open nothing any more takes nobody for dead."""
        join(MAPPER)
        program = """
            import os, resource, sys
            from cram_emu import CramError, Device
            with Device.open(sys.argv[1]) as dev:
                hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
                resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(0) + 1, hard))
                for use in (dev.reap, lambda: dev.map("64K", "64K"), dev.rebuild):
                    try:
                        print(use())
                    except CramError as error:
                        print(type(error).__name__)
        """
        child = run_child(program, tmp_path / "device")
        assert child.stdout.splitlines()[0] in ("0", "DeviceIOError")
        assert shared.stats.clients == 2
        assert shared.page(0).dirty
        assert len(shared.poison) == 0


class Corpse:
    """A killed process, the second client of a device, and what it might have left there."""

    SLOT = 1

    def __init__(self, device: Device, child: subprocess.Popen):
        self.object = DeviceObject(device.fileno())
        # As a lock word names it: client and thread.
        self.name = struct.pack("<I", self.SLOT << 22 | child.pid)
        kill(child)

    def mark(self, page: int, flags: int) -> None:
        at = self.object.map + page * 8
        (entry,) = self.object.words(at, 1, "Q")
        self.object.write(at, struct.pack("<Q", entry | flags | self.SLOT << HOLDER_SHIFT))


class TestLeftBehind:
    @pytest.fixture
    def corpse(self, shared: Device, join) -> Corpse:
        for page in range(8):
            shared.write(page * PAGE, entropy(page, 1000))
        return Corpse(shared, join())

    def whole(self, shared: Device, but: int | None = None) -> None:
        for page in range(8):
            if page != but:
                assert shared.read(page * PAGE, PAGE) == entropy(page, 1000)
        DeviceObject(shared.fileno()).check()

    def test_locked(self, shared: Device, corpse: Corpse):
        """A page that was only locked is whole, for whoever comes upon it."""
        corpse.mark(3, FLAG_LOCK)
        self.whole(shared)
        assert (shared.stats.clients, shared.stats.lost_pages) == (1, 0)

    def test_half_written(self, shared: Device, corpse: Corpse):
        """A page in whose sectors it died is poison, and counted as lost."""
        corpse.mark(3, FLAG_LOCK | FLAG_BUSY)
        with pytest.raises(PoisonError):
            shared.read(3 * PAGE, PAGE)
        assert shared.poison.records() == [PoisonRecord(3 * PAGE, PAGE, "lost")]
        assert shared.stats.lost_pages == 1
        self.whole(shared, but=3)
        shared.write(3 * PAGE, entropy(3, 1000))
        self.whole(shared)

    def test_dirty(self, shared: Device, corpse: Corpse, tmp_path: Path):
        """A page of which it had a newer copy is poison for who opens the device next."""
        corpse.mark(3, FLAG_DIRTY)
        Device.open(tmp_path / "device").close()
        assert shared.poison.records() == [PoisonRecord(3 * PAGE, PAGE, "lost")]
        self.whole(shared, but=3)

    def test_poison_lock(self, shared: Device, corpse: Corpse):
        """A lock of the poison list that it held is taken over."""
        corpse.object.write(POISON_LOCK_AT, corpse.name)
        shared.poison.inject(0)
        assert shared.poison.records() == [PoisonRecord(0, LINE, "injected")]
        shared.rebuild()
        shared.poison.clear(LINE)
        assert shared.poison.records() == [PoisonRecord(0, LINE, "injected")]

    def test_alert_lock(self, shared: Device, corpse: Corpse):
        """A lock of the thresholds that it held is taken over, and the interrupt comes."""
        corpse.object.write(ALERT_LOCK_AT, corpse.name)
        for page in range(8, 40):
            shared.write(page * PAGE, noise(page))
        assert shared.stats.lthresh == 1
        self.whole(shared)

    def test_table_lock(self, shared: Device, corpse: Corpse, tmp_path: Path):
        """The lock of the table of clients that it held is taken over by who joins."""
        corpse.object.write(corpse.object.clients + TABLE_LOCK, corpse.name)
        with Device.open(tmp_path / "device") as other:
            assert other.stats.clients == 2
        self.whole(shared)

    def test_in_a_rebuild(self, shared: Device, corpse: Corpse):
        """Half a rebuild that it left is done again before anybody works on."""
        corpse.object.write(corpse.object.clients + TABLE_LOCK, corpse.name)
        corpse.object.write(corpse.object.bitmap, bytes(corpse.object.map - corpse.object.bitmap))
        corpse.object.write(corpse.object.clients + GATE, struct.pack("<I", 1))
        shared.write(20 * PAGE, noise(20))
        self.whole(shared)
        assert shared.read(20 * PAGE, PAGE) == noise(20)

    def test_reserved(self, shared: Device, corpse: Corpse):
        """Room that it had reserved and not used is found when it is needed."""
        fits = shared.stats.remaining // PAGE
        corpse.object.write(USED_AT, struct.pack("<Q", 128 * 1024 // 64))
        assert shared.stats.remaining == 0
        for page in range(8, 8 + fits):
            shared.write(page * PAGE, noise(page))
        assert shared.stats.dropped_writes == 0
        self.whole(shared)


def acknowledged(child: subprocess.Popen, threads: int, enough: int) -> list[int]:
    """Kills the child once it has reported so many operations; how many each thread has reported."""
    done = [0] * threads
    reports = b""
    pipe = child.stdout.buffer
    while chunk := pipe.read1(65536):
        reports += chunk
        if len(reports) >= enough * 8:
            child.kill()
    # A report is a write of less than PIPE_BUF bytes: whole, or not there.
    for thread, number in struct.iter_unpack("<II", reports):
        done[thread] = max(done[thread], number + 1)
    child.wait()
    return done


class TestKilled:
    @pytest.mark.parametrize("real", ["64K", "1M"])
    @pytest.mark.parametrize("threads", [1, 3])
    def test_random_instants(self, real: str, threads: int, start_child, tmp_path: Path):
        """After each of several kills at random instants all is right or poison, and adds up."""
        path = tmp_path / "device"
        Device("1M", real, path=path, signal=0).close()
        expected = {page: [bytes(PAGE)] for page in range(256)}
        generator = random.Random(f"{real} {threads}")
        uncertain = 0
        for seed in range(8):
            child = start_child(WORKER, path, seed, threads)
            done = acknowledged(child, threads, generator.randrange(1, 1500))
            with Device.open(path) as dev:
                assert dev.stats.clients == 1
                there = DeviceObject(dev.fileno())
                there.check()
                for thread in range(threads):
                    stream = operations(seed * 10 + thread, range(thread, 256, threads))
                    for _ in range(done[thread]):
                        page, data = next(stream)
                        expected[page] = [data or bytes(PAGE)]
                    # The one that it may have died in.
                    page, data = next(stream)
                    expected[page].append(data or bytes(PAGE))
                poison = self.check(dev, expected)
                uncertain += threads
                if real == "1M":
                    assert len(poison) <= uncertain
                    assert dev.stats.lost_pages <= uncertain
                    assert dev.stats.dropped_writes == 0
                used = sum(dev.page(page * PAGE).sectors for page in range(256)) * 64
                assert dev.stats.used == used
        with Device.open(path) as dev:
            dev.discard(0, "1M")
            assert (dev.stats.used, dev.stats.poisoned) == (0, 0)

    def check(self, dev: Device, expected: dict[int, list[bytes]]) -> set[int]:
        """Each page holds one of what it may hold, which is then what it must hold, or is poison."""
        poison = set()
        for page, versions in expected.items():
            try:
                data = dev.read(page * PAGE, PAGE)
            except PoisonError:
                poison.add(page)
            else:
                assert data in versions, f"page {page}"
                expected[page] = [data]
        return poison

    def test_among_the_living(self, shared: Device, start_child, tmp_path: Path):
        """A process that works on while others are killed beside it is not disturbed."""
        last: dict[int, bytes] = {}
        stop = threading.Event()

        def work() -> None:
            for page, data in operations(77, range(0, 256, 2)):
                apply(shared, page, data)
                last[page] = data or bytes(PAGE)
                if stop.is_set():
                    return

        worker = threading.Thread(target=work)
        worker.start()
        try:
            for seed in range(4):
                child = start_child(ODD_WORKER, tmp_path / "device", seed)
                acknowledged(child, 1, 100 + 137 * seed)
                assert shared.reap() <= 1
        finally:
            stop.set()
            worker.join()
        for page, data in last.items():
            right_or_poison(shared, page * PAGE, data)
        shared.rebuild()
        DeviceObject(shared.fileno()).check()


# As WORKER with one thread, on odd pages.
ODD_WORKER = WORKER.replace("range(thread, 256, threads)", "range(1, 256, 2)").replace(
    "int(sys.argv[2]), int(sys.argv[3])", "int(sys.argv[2]), 1"
)


class TestLifetime:
    USES: dict[str, Callable[[Device], object]] = {
        "read": lambda dev: dev.read(0, 1),
        "write": lambda dev: dev.write(0, bytes(PAGE)),
        "discard": lambda dev: dev.discard(0, PAGE),
        "flush": lambda dev: dev.flush(),
        "map": lambda dev: dev.map(window="64K"),
        "stats": lambda dev: dev.stats,
        "page": lambda dev: dev.page(0),
        "pressure": lambda dev: dev.pressure,
        "set pressure": lambda dev: setattr(dev, "pressure", 1),
        "no_alloc": lambda dev: dev.no_alloc,
        "set no_alloc": lambda dev: setattr(dev, "no_alloc", True),
        "thresholds": lambda dev: dev.set_thresholds(lthresh=0, hthresh=0),
        "rebuild": lambda dev: dev.rebuild(),
        "reap": lambda dev: dev.reap(),
        "inject": lambda dev: dev.poison.inject(0),
        "clear": lambda dev: dev.poison.clear(0),
        "records": lambda dev: dev.poison.records(),
        "len": lambda dev: len(dev.poison),
        "on_interrupt": lambda dev: dev.on_interrupt(print),
        "eventfd": lambda dev: dev.eventfd,
        "fileno": lambda dev: dev.fileno(),
    }

    @pytest.mark.parametrize("use", USES)
    def test_closed(self, use: str):
        """Every use of a closed device raises DeviceClosed; of an open one, not."""
        dev = Device("1M", "64K")
        if use != "map":
            self.USES[use](dev)
        dev.close()
        with pytest.raises(DeviceClosed):
            self.USES[use](dev)

    def test_close_twice(self):
        """Closing twice is fine, and closed says how it stands."""
        dev = Device("1M", "64K")
        assert dev.closed is False
        dev.close()
        dev.close()
        assert dev.closed is True

    def test_params_stay(self):
        """A closed device still tells its parameters."""
        with Device("1M", "64K") as dev:
            params = dev.params
        assert dev.params == params

    def test_with(self):
        """Leaving the with block closes, also by an exception."""
        with pytest.raises(KeyError), Device("1M", "64K") as dev:
            raise KeyError
        assert dev.closed

    def test_nothing_left(self, nothing_left):
        """Devices that are closed, and ones that are forgotten, hold nothing any more."""
        for _ in range(10):
            with Device("1M", "64K") as dev:
                dev.on_interrupt(print)
                dev.write(0, noise(0))
        for _ in range(10):
            Device("1M", "64K").write(0, noise(0))

    def test_forgotten_waits(self):
        """A callback does not keep a forgotten device, nor its thread, alive."""
        before = holdings()
        dev = Device("1M", "64K")
        dev.on_interrupt(print)
        waiter = next(t for t in threading.enumerate() if t.name == "cram-interrupts")
        del dev
        gc.collect()
        waiter.join(timeout=30)
        assert not waiter.is_alive()
        assert holdings() == before

    @pytest.mark.parametrize("order", list(itertools.permutations("dmb")), ids="".join)
    def test_cycle(self, order, nothing_left):
        """A device and a mapping that the cycle collector finds are finalized in any order, and go."""
        for callbacks in (False, True):
            made = {"d": Device("1M", "1M"), "b": None}
            made["m"] = made["d"].map(window="64K")
            made["m"][0] = 1
            if callbacks:
                made["d"].on_interrupt(print)
            cycle = [made[name] for name in order]
            made["d"].cycle = made["m"].cycle = cycle
            del made, cycle
            gc.collect()

    def test_cycle_with_buffer(self, nothing_left):
        dev = Device("1M", "1M")
        dev.view = memoryview(dev.map(window="64K"))
        del dev
        gc.collect()

    def test_close_under_way(self, tmp_path: Path):
        """Threads that use a device while it closes get DeviceClosed, and nothing else."""
        endings: list[str] = []
        path = tmp_path / "device"
        for round_number in range(30):
            keeper = Device("1M", "512K", path=path)
            dev = Device.open(path)
            ready = threading.Barrier(4)
            run_threads(
                *(lambda use=use: endings.append(until_closed(dev, use, ready)) for use in self.RACES),
                lambda: (ready.wait(), dev.close()),
            )
            keeper.close()
            path.unlink()
        assert endings == ["DeviceClosed"] * 90

    RACES = (
        lambda dev, number: dev.write(0, noise(0)),
        lambda dev, number: dev.poison.inject(number % 10 * LINE),
        lambda dev, number: dev.stats.advertised == 1 << 20 or "zeros",
    )

    def test_writes_under_way(self, tmp_path: Path):
        """A write that returned before the close is there for the next client."""
        path = tmp_path / "device"
        for round_number in range(30):
            written = [0]
            with Device("1M", "512K", path=path) as keeper:
                dev = Device.open(path)
                ready = threading.Barrier(2)

                def write(dev: Device, number: int) -> None:
                    dev.write(0, struct.pack("<Q", number) * 512)
                    written[0] = number

                run_threads(
                    lambda: until_closed(dev, write, ready), lambda: (ready.wait(), dev.close())
                )
                assert struct.unpack("<Q", keeper.read(0, 8))[0] >= written[0]
            path.unlink()


def until_closed(device: Device, use: Callable, ready: threading.Barrier) -> str:
    """Uses a device until that fails; how it did."""
    number = 0
    try:
        while use(device, number) in (None, True):
            if number == 10:
                ready.wait()
            number += 1
    except CramError as error:
        return type(error).__name__
    return "something else"


class TestFork:
    @pytest.mark.parametrize("use", [*TestLifetime.USES])
    def test_child(self, use: str):
        """Every use of an inherited device raises ForkedDevice in the child."""
        with Device("1M", "64K") as dev:
            dev.write(0, noise(0))
            outcome = in_child(lambda: TestLifetime.USES[use](dev))
            assert outcome.startswith("ForkedDevice: ") and "child" in outcome
            assert dev.read(0, PAGE) == noise(0)

    def test_parent(self, tmp_path: Path):
        """What a child does to an inherited device, closing it too, does not disturb the parent."""

        def use() -> str:
            for function in TestLifetime.USES.values():
                try:
                    function(dev)
                except CramError:
                    pass
            dev.close()
            return "closed"

        with Device("1M", "64K", path=tmp_path / "device") as dev:
            dev.write(0, noise(0))
            before = dev.stats
            assert in_child(use) == "closed"
            assert dev.stats == before
            assert dev.read(0, PAGE) == noise(0)
            DeviceObject(dev.fileno()).check()

    def test_own_client(self, tmp_path: Path):
        """A child that opens the device for itself is one more client."""

        def use() -> str:
            with Device.open(tmp_path / "device") as mine:
                mine.write(PAGE, noise(1))
                return str(mine.stats.clients)

        with Device("1M", "64K", path=tmp_path / "device") as dev:
            assert in_child(use) == "2"
            assert dev.read(PAGE, PAGE) == noise(1)
            assert dev.stats.clients == 1

    def test_busy_parent(self, tmp_path: Path):
        """A child forked in the middle of other threads' work is told at once, and does not hang."""
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                dev.write(0, noise(0))

        with Device("1M", "64K") as dev:
            worker = threading.Thread(target=work)
            worker.start()
            try:
                for _ in range(20):
                    assert in_child(lambda: dev.rebuild()).startswith("ForkedDevice")
            finally:
                stop.set()
                worker.join()


def in_child(function: Callable[[], object]) -> str:
    """Runs it in a child of fork(); what it returned or raised."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # A hang ends by SIGALRM, and what was said stays empty.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        try:
            outcome = str(function())
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        os.write(writer, outcome.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        outcome = pipe.read()
    os.waitpid(child, 0)
    return outcome
