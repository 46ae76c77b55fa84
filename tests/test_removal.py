"""What befalls a device as a whole: it is pulled out, reset, or loses its power.

Oracle: the contents that were written. After each of these every page that held something is poison in every client, until it
is written again; none is other bytes, or zeros. The twin of each test does the same steps and has nothing befall the device.
"""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from samples import PAGE, entropy, noise
from support import delivery, wait_until  # noqa: F401

from cram_emu import Device, PoisonError, PoisonRecord
from cram_emu.errors import DeviceGone, InvalidArgument
from cram_emu.host import ManagedMemory, Zswap

PAGES = 100
COMMAND = str(Path(sys.executable).parent / "cram-emu")

#: Touches the pages of a mapping, one a line of input, and says what it found there.
CLIENT = """
    import sys
    from cram_emu import Device
    from samples import PAGE, noise

    dev = Device.open(sys.argv[1])
    mapping = dev.map(0, 64 * PAGE, window="64K", delivery=sys.argv[2], writeback=0)
    for page in range(32):
        mapping[page * PAGE : (page + 1) * PAGE] = noise(page)
    print("ready", flush=True)
    for line in sys.stdin:
        page = int(line)
        print("whole" if mapping[page * PAGE : (page + 1) * PAGE] == noise(page) else "wrong", flush=True)
"""


@pytest.fixture
def dev(tmp_path: Path):
    with Device("4M", "2M", path=tmp_path / "device", lthresh="25%", hthresh="50%") as dev:
        yield dev


@pytest.fixture(params=[True, False], ids=["on", "off"])
def on(request) -> bool:
    return request.param


#: What can befall it, as a command.
LOSSES = {"removal": Device.remove, "reset": Device.reset, "power_cycle": Device.power_cycle}


@pytest.fixture(params=LOSSES)
def lose(request):
    return LOSSES[request.param]


def content(page: int) -> bytes:
    """One of each kind: zeros, a repeated word, half random, random."""
    return (bytes(PAGE), bytes([page % 251 + 1]) * PAGE, entropy(page, PAGE // 2).ljust(PAGE, b"\0"), noise(page))[page % 4]


def fill(dev: Device, pages: int = PAGES) -> None:
    for page in range(pages):
        dev.write(page * PAGE, content(page))


def lost(dev: Device, pages: int = PAGES) -> list[int]:
    """The pages that are poison. No other has other contents than were written."""
    gone = []
    for page in range(pages):
        try:
            assert dev.read(page * PAGE, PAGE) == content(page)
        except PoisonError as error:
            assert (error.address, error.length) == (page * PAGE, PAGE)
            gone.append(page)
    return gone


class TestContents:
    def test_lost(self, dev, lose, on):
        """Every page that was written is poison, of whatever kind it was."""
        fill(dev)
        if on:
            lose(dev)
        assert lost(dev) == (list(range(PAGES)) if on else [])

    def test_never_written(self, dev, lose):
        """A page that held nothing reads as zeros, but on a device that is gone."""
        fill(dev, 1)
        lose(dev)
        if lose is Device.remove:
            with pytest.raises(PoisonError):
                dev.read(PAGE, PAGE)
        else:
            assert dev.read(PAGE, PAGE) == bytes(PAGE)

    def test_written_again(self, dev, lose):
        """It is whole again once written, and empty once discarded; neither brings a removed device back."""
        fill(dev)
        lose(dev)
        fill(dev, 10)
        dev.discard(10 * PAGE, PAGE)
        if lose is Device.remove:
            assert lost(dev) == list(range(PAGES))
            with pytest.raises(PoisonError):
                dev.read(10 * PAGE, PAGE)
        else:
            assert lost(dev, 10) == []
            assert dev.read(10 * PAGE, PAGE) == bytes(PAGE)
            assert dev.stats.pages_poison == PAGES - 11

    def test_struck_at_a_store(self, dev, on):
        """A fault strikes in the middle of a run: what was stored before is lost, what is stored from then on is not."""
        for name in ("reset", "power_cycle"):
            dev.discard(0, PAGES * PAGE)
            dev.faults[name].set(probability=100 if on else 0, space=51 * PAGE, times=1)
            fill(dev)
            assert lost(dev) == (list(range(50)) if on else [])
            assert dev.faults[name].struck == on

    def test_removed_at_a_store(self, dev, on):
        """The store that it strikes is the first one that is dropped."""
        dev.faults["removal"].set(probability=100 if on else 0, space=51 * PAGE, times=1)
        fill(dev)
        assert lost(dev) == (list(range(PAGES)) if on else [])
        assert dev.faults["removal"].struck == on

    def test_told(self, dev, lose):
        """The ring tells it, once."""
        told: list[str] = []
        dev.on_fault(lambda strike: told.append((strike.name, strike.dpa)))
        lose(dev)
        wait_until(lambda: told, "the strike is told")
        name = next(name for name, method in LOSSES.items() if method is lose)
        assert told == [(name, None)] and dev.faults[name].struck == 1


class TestRemoval:
    def test_registers(self, dev, on):
        """Control calls raise DeviceGone; who has it open, its faults and its end are to be had."""
        fill(dev, 1)
        calls = [
            lambda: dev.stats,
            lambda: dev.pressure,
            lambda: setattr(dev, "pressure", 1),
            lambda: setattr(dev, "no_alloc", True),
            lambda: dev.set_thresholds(lthresh="25%", hthresh="50%"),
            lambda: dev.poison.inject(0),
            lambda: dev.poison.clear(0),
        ]
        if on:
            dev.remove()
        for call in calls:
            if on:
                with pytest.raises(DeviceGone, match="the device has been removed"):
                    call()
            else:
                call()
        assert len(dev.clients()) == 1
        assert dev.faults["removal"].struck == on
        dev.reap()
        dev.rebuild()

    def test_twice(self, dev, lose):
        """A device that is gone has nothing to lose."""
        dev.remove()
        with pytest.raises(DeviceGone):
            lose(dev)
        assert dev.faults["removal"].struck == 1

    def test_for_good(self, dev, tmp_path):
        """Who joins it finds it gone, and poison everywhere; the poison list has not grown by that."""
        fill(dev)
        dev.remove()
        fill(dev)
        assert lost(dev) == list(range(PAGES))
        with Device.open(tmp_path / "device") as again:
            assert lost(again) == list(range(PAGES))
            with pytest.raises(DeviceGone):
                _ = again.stats
            assert (again.page(0).state, again.page(0).poisoned) == ("poison", 2**64 - 1)
            assert len(again.poison) == 0
            assert len(again.clients()) == 2

    @pytest.mark.usefixtures("skip_unless_userfaultfd")
    def test_no_mapping(self, dev):
        dev.remove()
        with pytest.raises(DeviceGone):
            dev.map(0, PAGE * 16)

    def test_no_interrupts(self, dev):
        """What is discarded afterwards raises nothing."""
        for page in range(800):
            dev.write(page * PAGE, noise(page))
        assert dev.stats.lthresh == 1
        raised: list[str] = []
        dev.on_interrupt(lambda interrupt: raised.append(interrupt.name))
        told: list[str] = []
        dev.on_fault(lambda strike: told.append(strike.name))
        dev.remove()
        dev.discard(0, 800 * PAGE)
        wait_until(lambda: told, "the removal is told")
        assert raised == []


class TestReset:
    def test_registers(self, dev):
        """The media is free, thresholds and the driver's bits are as created, counters are as they were."""
        created = dev.stats
        fill(dev)
        dev.write(4 * 2**20 - PAGE, noise(1))
        dev.set_thresholds(lthresh="1M", hthresh="1.5M")
        dev.faults["store"].set(probability=100, times=2)
        dev.write(2 * PAGE, noise(1))
        dev.write(3 * PAGE, noise(1))
        dev.pressure, dev.no_alloc = 700, True
        before = dev.stats
        dev.reset()
        after = dev.stats
        assert (after.used, after.remaining, after.payload) == (0, after.real, 0)
        assert (after.low_remaining, after.high_remaining) == (created.low_remaining, created.high_remaining)
        assert (after.pressure, after.no_alloc) == (0, False)
        assert (after.pages_poison, after.poisoned) == (PAGES + 1, PAGES + 1)
        # Two of them were poison before.
        assert after.lost_pages == PAGES - 1
        assert (after.dropped_writes, after.lthresh) == (before.dropped_writes, before.lthresh)
        dev.rebuild()
        assert dev.stats == after

    def test_full_again(self, dev):
        """A device that was full takes as much again."""
        def overflow() -> None:
            for page in range(1000):
                dev.write(page * PAGE, noise(page))

        overflow()
        full = dev.stats
        assert full.dropped_writes > 0
        dev.reset()
        overflow()
        assert dev.stats.used == full.used
        assert dev.stats.dropped_writes == 2 * full.dropped_writes

    def test_capacity_stays_lost(self, dev):
        """Media that has failed does not come back."""
        dev.faults["capacity"].set(probability=100, times=1, value=100 * 1024)
        fill(dev, 10)
        real = dev.stats.real
        dev.reset()
        assert (dev.stats.real, dev.stats.remaining) == (real, real)

    def test_more_than_records(self, tmp_path):
        """Pages beyond the list's limit are poison, and counted as overflow."""
        with Device("4M", "2M", poison_limit=7) as dev:
            fill(dev)
            dev.reset()
            assert lost(dev) == list(range(PAGES))
            stats = dev.stats
            assert (stats.poison_records, stats.poison_overflow) == (7, PAGES - 7)
            dev.rebuild()
            assert dev.stats == stats
            fill(dev)
            assert (dev.stats.poisoned, dev.stats.poison_records, dev.stats.poison_overflow) == (0, 0, 0)


    @pytest.mark.parametrize("flushed", [False, True])
    def test_frames(self, dev, flushed):
        """What a mapping has written is lost once, whether the device has it or a frame."""
        with dev.map(window="1M", delivery="inline", writeback=0) as memory:
            for page in range(100):
                memory[page * PAGE] = 1
            if flushed:
                memory.flush()
            dev.reset()
            assert dev.stats.lost_pages == dev.stats.pages_poison >= 100


class TestPoisonList:
    """Lines were poisoned on a page with data and on one without."""

    DATA, NONE = 1 * PAGE + 128, 50 * PAGE

    @pytest.fixture
    def poisoned(self, dev) -> Device:
        fill(dev, 3)
        dev.poison.inject(self.DATA)
        dev.poison.inject(self.NONE)
        return dev

    def test_power_cycle(self, poisoned):
        """Both records survive and are as they were; the page without data is poison there, and nowhere else."""
        poisoned.power_cycle()
        records = poisoned.poison.records()
        assert [r for r in records if r.source == "injected"] == [
            PoisonRecord(self.DATA, 64, "injected"), PoisonRecord(self.NONE, 64, "injected"),
        ]  # fmt: skip
        assert [r.dpa for r in records if r.source == "lost"] == [0, 2 * PAGE]
        assert poisoned.page(self.NONE).poisoned == 1
        assert poisoned.read(self.NONE + 64, PAGE - 64) == bytes(PAGE - 64)
        assert lost(poisoned, 3) == [0, 1, 2]

    def test_reset(self, poisoned):
        """The twin: what was injected is gone with the rest."""
        poisoned.reset()
        assert poisoned.poison.records() == [PoisonRecord(page * PAGE, PAGE, "lost") for page in range(3)]
        assert poisoned.read(self.NONE, PAGE) == bytes(PAGE)

    def test_rebuild(self, poisoned):
        """A rebuild finds both kinds of record in order."""
        poisoned.power_cycle()
        before = poisoned.poison.records(), poisoned.stats
        poisoned.rebuild()
        assert (poisoned.poison.records(), poisoned.stats) == before

    def test_cleared_one_by_one(self, poisoned):
        """A page without data whose lines are all cleared is whole; a cleared line is no longer listed."""
        poisoned.power_cycle()
        poisoned.poison.clear(self.DATA)
        assert self.DATA not in [record.dpa for record in poisoned.poison.records()]
        for at in range(PAGE, 2 * PAGE, 64):
            poisoned.poison.clear(at)
        assert poisoned.read(PAGE, PAGE) == bytes(PAGE)
        poisoned.poison.clear(self.NONE)
        assert [record.dpa for record in poisoned.poison.records()] == [0, 2 * PAGE]
        assert poisoned.stats.poisoned == 2

    def test_written_again(self, poisoned):
        poisoned.power_cycle()
        fill(poisoned, 3)
        assert lost(poisoned, 3) == []
        assert [record.dpa for record in poisoned.poison.records()] == [self.NONE]


class TestMapping:
    """Frames are the device's own, in this and in other processes."""

    def test_here(self, dev, delivery, lose, on, run_child, tmp_path):  # noqa: F811
        """Dirty and clean frames go: who touches one gets SIGBUS, and who reads by the device gets poison."""
        child = run_child(
            """
            import sys
            from cram_emu import Device, PoisonError
            from samples import PAGE, noise
            with Device.open(sys.argv[1]) as dev:
                mapping = dev.map(0, 64 * PAGE, window="1M", delivery=sys.argv[2], writeback=0)
                for page in range(16):
                    mapping[page * PAGE : (page + 1) * PAGE] = noise(page)
                mapping.flush()
                for page in range(8):
                    mapping[page * PAGE] = noise(page)[0]
                assert mapping.stats.resident >= 16 and mapping.stats.dirty >= 8
                if sys.argv[4] == "on":
                    getattr(dev, sys.argv[3])()
                    assert mapping.stats.resident == mapping.stats.dirty == 0
                whole = 0
                for page in range(16):
                    try:
                        whole += dev.read(page * PAGE, PAGE) == noise(page)
                    except PoisonError:
                        pass
                print(whole, flush=True)
                print(mapping[int(sys.argv[5]) * PAGE] == noise(int(sys.argv[5]))[0], flush=True)
                mapping.close()
            """,
            tmp_path / "device", delivery, lose.__name__, "on" if on else "off", 3 + 8 * (lose is Device.reset),
        )  # fmt: skip
        assert child.stdout.split() == (["0"] if on else ["16", "True"]), child.stderr
        assert child.returncode == (-7 if on else 0)

    @pytest.mark.usefixtures("skip_unless_userfaultfd")
    def test_written_afterwards(self, dev, on):
        """A mapping of a device that was reset is written and read as before."""
        with dev.map(0, 64 * PAGE, window="64K", delivery="inline", writeback=0) as mapping:
            mapping[: 32 * PAGE] = noise(1, 32 * PAGE)
            if on:
                dev.reset()
                dev.discard(0, 64 * PAGE)
                assert mapping[: 32 * PAGE] == bytes(32 * PAGE)
            mapping[: 32 * PAGE] = noise(2, 32 * PAGE)
            assert mapping[: 32 * PAGE] == noise(2, 32 * PAGE)

    @pytest.mark.usefixtures("skip_unless_userfaultfd")
    def test_pinned(self, dev, lose):
        """A pinned frame goes too; it is unpinned and closed as ever."""
        with dev.map(0, 64 * PAGE, window="1M", delivery="inline", writeback=0) as mapping:
            mapping[:PAGE] = noise(1)
            with mapping.pin(0, PAGE):
                lose(dev)
                assert mapping.stats.resident == 0
                with pytest.raises(PoisonError):
                    dev.read(0, PAGE)
            with pytest.raises(PoisonError), mapping.pin(0, PAGE):
                pass

    def test_marks(self, dev, skip_unless_kernel_faults, run_child, tmp_path):
        """Monitor delivery marks poison in the page table; a reset that ends the poison ends the mark."""
        child = run_child(
            """
            import os, sys
            from cram_emu import Device
            from samples import PAGE
            with Device.open(sys.argv[1]) as dev, dev.map(0, 64 * PAGE, window="64K", writeback=0) as mapping:
                dev.poison.inject(5 * PAGE)
                into, out = os.pipe()
                try:
                    os.write(out, memoryview(mapping)[5 * PAGE : 6 * PAGE])
                except OSError as error:
                    print(error.errno, flush=True)
                dev.reset()
                print(mapping[5 * PAGE : 6 * PAGE] == bytes(PAGE), flush=True)
            """,
            tmp_path / "device",
        )
        assert child.returncode == 0, child.stderr
        assert child.stdout.split() == ["14", "True"]

    def test_second_process(self, dev, delivery, lose, on, start_child, tmp_path):  # noqa: F811
        """Another process has dropped its frames when the command returns; its next access ends it."""
        child = start_child(CLIENT, tmp_path / "device", delivery)
        assert child.stdout.readline() == "ready\n", child.communicate()
        assert dev.clients()[1].resident_frames > 0
        if on:
            lose(dev)
            assert dev.clients()[1].resident_frames == dev.clients()[1].dirty_frames == 0
        child.stdin.write("31\n")
        child.stdin.flush()
        assert child.stdout.readline() == ("" if on else "whole\n")
        if on:
            assert child.wait() == -7

    def test_under_load(self, dev, delivery, lose, start_child, tmp_path):  # noqa: F811
        """Struck while another process writes and reads all the time: it never sees wrong bytes, and ends by SIGBUS."""
        child = start_child(
            """
            import os, sys, threading
            from cram_emu import Device
            from samples import PAGE, noise
            dev = Device.open(sys.argv[1])
            mapping = dev.map(0, 128 * PAGE, window="128K", delivery=sys.argv[2], writeback=0.001)
            pages = [noise(i) for i in range(8)]
            def work(first):
                version = 0
                while True:
                    for page in range(first, 128, 4):
                        mapping[page * PAGE : (page + 1) * PAGE] = pages[(page + version) % 8]
                    for page in range(first, 128, 4):
                        if mapping[page * PAGE : (page + 1) * PAGE] != pages[(page + version) % 8]:
                            print("wrong", page, flush=True)
                    version += 1
                    if version == 3:
                        os.write(1, b"ready\\n")
            for first in range(4):
                threading.Thread(target=work, args=(first,), daemon=True).start()
            threading.Event().wait()
            """,
            tmp_path / "device", delivery,
        )  # fmt: skip
        for _ in range(4):
            assert child.stdout.readline() == "ready\n", child.communicate()
        lose(dev)
        # A writer that only writes whole pages mends what it writes: it need not meet poison. So it is pulled out then.
        if lose is not Device.remove:
            dev.remove()
        assert child.wait(60) == -7
        assert child.stdout.read() == ""


    @pytest.mark.usefixtures("skip_unless_userfaultfd")
    def test_locked_in_memory(self, dev):
        """Frames that the program has locked go too."""
        libc = ctypes.CDLL(None, use_errno=True)
        with dev.map(0, 16 * PAGE, window="64K", delivery="inline", writeback=0) as mapping:
            mapping[:PAGE] = noise(1)
            address = ctypes.addressof(ctypes.c_char.from_buffer(memoryview(mapping)))
            if libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(PAGE)) != 0:
                pytest.skip(f"memory cannot be locked here: {os.strerror(ctypes.get_errno())}")
            dev.remove()
            assert mapping.stats.resident == 0


class TestFork:
    def test_child(self, tmp_path, skip_unless_userfaultfd, on):
        """A forked child's frames, which it shares with its parent, go as well: both die under `cram-emu run`."""
        path = tmp_path / "shared"
        program = """
import os, sys
a = [bytes([i % 251]) * 4000 for i in range(1000)]
pid = os.fork()
os.write(1, b"ready ")
os.read(0, 1)
code = sum(x[7] for x in a) != sum(i % 251 for i in range(1000))
os._exit(code or (os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid else 0))
"""
        with Device("64M", "64M", path=path) as device:
            command = [COMMAND, "run", "--window", "8M", "--device", str(path), "--", "/usr/bin/python3", "-c", program]
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            assert child.stdout.read(12) == "ready ready "
            if on:
                device.remove()
                assert all(client.resident_frames == 0 for client in device.clients())
            child.communicate("go", timeout=60)
            assert child.returncode == (-7 if on else 0)


class TestManaged:
    """A removed device as a manager's node."""

    @pytest.fixture
    def machine(self, skip_unless_userfaultfd):
        with Device("4M", "4M", lthresh=None, hthresh=None, signal=0) as device:
            with Zswap([device], swap=0) as manager:
                yield device, manager

    def test_takes_nothing(self, machine, on):
        """The manager stores nothing there any more, and counts that; the pool takes what comes."""
        device, manager = machine
        with ManagedMemory("1M", manager=manager, delivery="inline") as memory:
            memory[:] = b"".join(content(4 * i + 2) for i in range(256))
            if on:
                device.remove()
            assert memory.reclaim(100) == 100
            node = manager.nodes[0]
            assert node.stats.stored == (0 if on else 100)
            assert (node.stats.refused["gone"] >= 100) is on
            assert manager.stats.stored_pool_pages == (100 if on else 0)
            assert memory[:] == b"".join(content(4 * i + 2) for i in range(256))

    def test_pages_there(self, machine, run_child):
        """Who touches a page that was there gets SIGBUS; the frames and the pool's pages are whole."""
        child = run_child(
            """
            import sys
            from cram_emu import Device
            from cram_emu.host import ManagedMemory, Zswap
            from samples import PAGE, noise
            with Device("4M", "4M", lthresh=None, hthresh=None, signal=0) as device, Zswap([device], swap=0) as manager:
                memory = ManagedMemory("1M", manager=manager, delivery="inline")
                for page in range(256):
                    memory[page * PAGE : (page + 1) * PAGE] = noise(page, PAGE // 2).ljust(PAGE, b"\\1")
                memory.reclaim(50)
                there = [page for page in range(256) if "direct" in str(memory.place(page * PAGE))]
                device.remove()
                memory.reclaim(50)
                print(len(there), flush=True)
                for page in set(range(256)) - set(there):
                    assert memory[page * PAGE : (page + 1) * PAGE] == noise(page, PAGE // 2).ljust(PAGE, b"\\1")
                print("others whole", flush=True)
                print(memory[there[0] * PAGE])
            """
        )
        assert child.stdout.splitlines() == ["50", "others whole"], child.stderr
        assert child.returncode == -7

    def test_remove_node(self, machine, on):
        """The node goes; what was there is poison in the memory, all else stays."""
        device, manager = machine
        with ManagedMemory("1M", manager=manager, delivery="inline") as memory:
            memory[:] = b"".join(content(4 * i + 2) for i in range(256))
            assert memory.reclaim(50) == 50
            there = [page for page in range(256) if memory.place(page * PAGE).where == "direct"]
            if on:
                device.remove()
            manager.remove_node(manager.nodes[0])
            assert not manager.nodes
            places = [memory.place(page * PAGE).where for page in range(256)]
            assert [page for page in range(256) if places[page] == ("poison" if on else "pool")] == there
            assert places.count("frame") == 256 - len(there) == 206
            device.close()

    def test_no_node(self, machine):
        _, manager = machine
        with Device("1M", "1M") as other:
            other.remove()
            with pytest.raises(DeviceGone):
                manager.add_node(other)
            assert len(manager.nodes) == 1


@pytest.mark.usefixtures("skip_unless_userfaultfd")
class TestRun:
    """A program under `cram-emu run`."""

    PROGRAM = "a = [bytes([i % 251]) * 4000 for i in range(4000)]; print(sum(map(len, a)), sum(x[7] for x in a))"

    @pytest.mark.parametrize("name", LOSSES)
    @pytest.mark.parametrize("mode", ["direct", "zswap"])
    def test_dies(self, tmp_path, name, mode, on):
        """It dies of SIGBUS, and the report says of what; without the fault it lives."""
        report = tmp_path / "report.json"
        options = ["--window", "1M"] if mode == "direct" else ["--mode", "zswap", "--dram", "4M"]
        fault = ["--fault", f"{name}:space=4M,times=1"] if on else []
        command = [COMMAND, "run", *options, "--report", str(report), *fault, "--", "/usr/bin/python3", "-c", self.PROGRAM]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        told = json.loads(report.read_text())
        assert done.returncode == (-7 if on else 0), done.stderr
        assert (told["injected"], bool(told["met_poison"])) == (({name: 1}, True) if on else ({}, False))


class TestBadInput:
    def test_not_by_hand(self, dev):
        """Only what befalls the device as a whole can be had at once."""
        for name in sorted(set(dev.faults) - set(LOSSES)):
            with pytest.raises(InvalidArgument, match=f"{name}: strikes by its attributes only"):
                dev.faults[name].strike()
            assert dev.faults[name].struck == 0
