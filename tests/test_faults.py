"""What goes wrong around a mapping: no room, no permission, no memory, fork, exit, death.

Oracles: contents kept outside the device (here, or in a journal that outlives the writer), how the
kernel says that a child ended, and the device object as device_object.py reads it.
"""

import os
import random
import signal
import subprocess
import threading

import numpy as np
import pytest
from device_object import DeviceObject
from samples import LINE, PAGE, entropy, noise, right_or_poison
from support import CHILD_TIMEOUT, delivery, program, wait_until  # noqa: F401

from cram_emu import Device, PoisonError
from cram_emu.errors import NoAnswer
from cram_emu.lab import zram

SIGBUS = -signal.SIGBUS
SIGSEGV = -signal.SIGSEGV
SIGKILL = -signal.SIGKILL


def check_object(dev: Device) -> None:
    """Sectors, counters and records agree with the page map, and stay so when computed anew."""
    DeviceObject(dev.fileno()).check()
    before = dev.stats
    dev.rebuild()
    assert dev.stats == before


class TestOverflow:
    """No room: the writer learns nothing; each page is what was written last, or poison."""

    PAGES = 512

    def overfill(self, real: str, delivery: str):
        """A device that more was written to through a mapping than may fit, page by page."""
        dev = Device("2M", real, lthresh=None, hthresh=None)
        with dev.map(window="64K", delivery=delivery, writeback=0) as mapping:
            for page in range(self.PAGES):
                mapping[page * PAGE : (page + 1) * PAGE] = noise(page)
        return dev

    def test_too_much(self, delivery):
        with self.overfill("1M", delivery) as dev:
            lost = sum(right_or_poison(dev, p * PAGE, noise(p)) for p in range(self.PAGES))
            # 4096 incompressible bytes each into 1 MiB: 256 fit, and no more.
            assert lost == self.PAGES - 256
            stats = dev.stats
            assert (stats.poisoned, stats.dropped_writes) == (lost, lost)
            assert (stats.used, stats.remaining, stats.peak) == (1 << 20, 0, 1 << 20)
            assert {record.source for record in dev.poison} == {"dropped"}
            assert {record.length for record in dev.poison} == {PAGE}
            check_object(dev)

    def test_just_enough(self, delivery):
        with self.overfill("2M", delivery) as dev:
            assert all(dev.read(page * PAGE, PAGE) == noise(page) for page in range(self.PAGES))
            assert (dev.stats.poisoned, dev.stats.dropped_writes) == (0, 0)
            assert dev.stats.remaining == 0

    def test_more_lost_pages_than_records(self, delivery):
        """The page map alone knows of the others, and they are as poisoned as the recorded ones."""
        with Device("1M", "64K", poison_limit=8) as dev:
            with dev.map(window="64K", delivery=delivery, writeback=0) as mapping:
                for page in range(256):
                    mapping[page * PAGE : (page + 1) * PAGE] = noise(page)
                mapping.flush()
            lost = sum(right_or_poison(dev, page * PAGE, noise(page)) for page in range(256))
            assert lost == 256 - 16
            assert (len(dev.poison), dev.stats.poison_overflow) == (8, lost - 8)
            check_object(dev)

    def test_a_flush_drops_too_and_says_nothing(self, delivery):
        """A frame that could not be written back is gone: no byte is seen that the media lack."""
        data = noise(1, 2 << 20)
        with (
            Device("2M", "1M") as dev,
            dev.map(window="2M", delivery=delivery, writeback=0) as mapping,
        ):
            mapping[:] = data
            assert dev.stats.dropped_writes == 0
            mapping.flush()
            lost = {page for page in range(512) if dev.page(page * PAGE).state == "poison"}
            assert len(lost) == 256
            assert not any(dev.page(page * PAGE).resident for page in lost)
            assert dev.stats.dirty_frames == 0
            for page in set(range(512)) - lost:
                here = slice(page * PAGE, (page + 1) * PAGE)
                assert mapping[here] == data[here]

    def test_a_full_device_is_rewritten_without_growth(self, delivery):
        with self.overfill("2M", delivery) as dev:
            with dev.map(window="64K", delivery=delivery, writeback=0) as mapping:
                for page in reversed(range(self.PAGES)):
                    mapping[page * PAGE : (page + 1) * PAGE] = noise(1000 + page)
            for page in range(self.PAGES):
                assert dev.read(page * PAGE, PAGE) == noise(1000 + page)
            assert dev.stats.dropped_writes == 0

    def test_rewriting_a_lost_page_repairs_it(self, delivery):
        with self.overfill("1M", delivery) as dev:
            lost = [p for p in range(self.PAGES) if dev.page(p * PAGE).state == "poison"][:10]
            kept = [p for p in range(self.PAGES) if dev.page(p * PAGE).state == "raw"][:10]
            dev.write(lost[0] * PAGE, noise(1))  # there is still no room
            assert dev.page(lost[0] * PAGE).state == "poison"
            for page in kept:
                dev.discard(page * PAGE, PAGE)
            for page in lost:
                dev.write(page * PAGE, noise(2000 + page))
            with dev.map(window="64K", delivery=delivery) as mapping:
                for page in lost:
                    assert mapping[page * PAGE : (page + 1) * PAGE] == noise(2000 + page)
                for page in kept:
                    assert mapping[page * PAGE : (page + 1) * PAGE] == bytes(PAGE)

    def test_the_reader_of_a_lost_page_gets_the_machine_check(self, delivery, run_child):
        child = run_child(
            """
            import sys
            from samples import PAGE, noise
            from cram_emu import Device

            device = Device("1M", "64K")
            mapping = device.map(window="64K", delivery=sys.argv[1], writeback=0)
            for page in range(64):
                mapping[page * PAGE : (page + 1) * PAGE] = noise(page)
            mapping.flush()
            for page in range(256):
                if device.page(page * PAGE).state != "poison":
                    mapping[page * PAGE]
            print("alive", flush=True)
            mapping[int(device.poison.records()[0].dpa)]
            print("not reached", flush=True)
            """,
            delivery,
        )
        assert (child.stdout, child.returncode) == ("alive\n", SIGBUS)


class TestDamagedMedia:
    """A stored page whose bytes have changed is poison for the mapping, and harms no other page."""

    def test_read_ahead_comes_upon_it(self, delivery):
        with Device("1M", "1M") as dev:
            for page in range(256):
                dev.write(page * PAGE, entropy(page))
            DeviceObject(dev.fileno()).flip(dev.page(100 * PAGE).media + 17)
            with dev.map(window="512K", delivery=delivery, writeback=0) as mapping:
                for page in [*range(100), *range(101, 256)]:
                    assert mapping[page * PAGE : (page + 1) * PAGE] == entropy(page)
                assert not dev.page(100 * PAGE).resident
                assert right_or_poison(dev, 100 * PAGE, b"")
                assert [(r.dpa, r.source) for r in dev.poison] == [(100 * PAGE, "media")]
            check_object(dev)

    def test_touched(self, delivery, run_child):
        child = run_child(
            """
            import sys
            from device_object import DeviceObject
            from samples import PAGE, entropy
            from cram_emu import Device

            device = Device("1M", "1M")
            device.write(0, entropy(1))
            mapping = device.map(delivery=sys.argv[1])
            DeviceObject(device.fileno()).flip(device.page(0).media)
            print("alive", flush=True)
            mapping[PAGE - 1]
            print("not reached", flush=True)
            """,
            delivery,
        )
        assert (child.stdout, child.returncode) == ("alive\n", SIGBUS)

    def test_a_resident_page(self, delivery):
        """The frame is the truth as long as it is dirty: a flush stores it anew."""
        with Device("1M", "1M") as dev, dev.map(delivery=delivery, writeback=0) as mapping:
            mapping[:PAGE] = entropy(1)
            mapping.flush()
            mapping[0] = mapping[0]
            DeviceObject(dev.fileno()).flip(dev.page(0).media)
            mapping.close()
            assert dev.read(0, PAGE) == entropy(1)


class TestOthersCommands:
    """Another process's poison command on a resident page has taken effect when it returns."""

    # Tells where its memory is wanted, and touches it when told to.
    OWNER = """
        import sys
        from cram_emu import Device

        device = Device.open(sys.argv[1])
        mapping = device.map(window="64K", delivery=sys.argv[2], writeback=0)
        mapping[0:4096] = bytes(range(256)) * 16
        print("ready", flush=True)
        for line in sys.stdin:
            at, length = map(int, line.split())
            print(mapping[at : at + length].hex(), flush=True)
    """
    CONTENTS = bytes(range(256)) * 16

    @pytest.fixture
    def device(self, tmp_path):
        with Device("1M", "1M", path=tmp_path / "device") as dev:
            yield dev

    @pytest.fixture
    def owner(self, tmp_path, device, delivery, start_child):
        child = start_child(self.OWNER, tmp_path / "device", delivery)
        assert child.stdout.readline() == "ready\n"
        return child

    def ask(self, owner, at: int, length: int) -> bytes | None:
        """What the owner reads there; None when that ended it by SIGBUS."""
        owner.stdin.write(f"{at} {length}\n")
        owner.stdin.flush()
        if line := owner.stdout.readline():
            return bytes.fromhex(line)
        assert owner.wait() == SIGBUS
        return None

    def test_inject(self, device, owner):
        assert device.page(0).dirty
        device.poison.inject(5 * LINE)
        assert not device.page(0).dirty
        assert self.ask(owner, 4000, 1) is None

    def test_not_injected(self, owner):
        assert self.ask(owner, 4000, 1) == self.CONTENTS[4000:4001]

    def test_clear(self, device, owner):
        """Poisoned and cleared behind its back: the line is zeros, all else as it was."""
        device.poison.inject(5 * LINE)
        device.poison.clear(5 * LINE)
        expected = self.CONTENTS[: 5 * LINE] + bytes(LINE) + self.CONTENTS[6 * LINE :]
        assert self.ask(owner, 0, PAGE) == expected
        assert len(device.poison) == 0

    def test_clear_of_a_line_that_is_not_poisoned(self, device, owner):
        assert self.ask(owner, 0, PAGE) == self.CONTENTS
        device.poison.clear(7 * LINE)
        expected = self.CONTENTS[: 7 * LINE] + bytes(LINE) + self.CONTENTS[8 * LINE :]
        assert self.ask(owner, 0, PAGE) == expected

    def test_an_owner_that_is_stopped(self, device, owner):
        """It does not answer: an error that names it, and all else goes on."""
        os.kill(owner.pid, signal.SIGSTOP)
        os.waitpid(owner.pid, os.WUNTRACED)
        with pytest.raises(NoAnswer, match=str(owner.pid)):
            device.poison.inject(5 * LINE)
        assert device.stats.clients == 2
        os.kill(owner.pid, signal.SIGCONT)
        device.poison.inject(6 * LINE)
        assert self.ask(owner, 4000, 1) is None

    def test_an_owner_that_has_died(self, device, owner):
        owner.kill()
        owner.wait()
        device.poison.inject(PAGE + 5 * LINE)
        assert device.page(PAGE).poisoned == 1 << 5
        # The page that it held dirty went with it.
        assert right_or_poison(device, 0, b"")


class TestKilledWriter:
    """After SIGKILL at any instant a page is what was written last, or, unless flushed, poison."""

    PAGES = 512
    ROUNDS = 40

    @pytest.fixture
    def journal(self, tmp_path):
        """Per page the versions being written, written, and flushed (children/writer.c)."""
        return np.memmap(tmp_path / "journal", np.uint64, mode="w+", shape=(self.PAGES, 3))

    @staticmethod
    def contents(page: int, version: int) -> np.ndarray:
        """A page in a version, word by word, as children/writer.c makes it."""
        if version == 0:
            return np.zeros(PAGE // 8, np.uint64)
        index = np.arange(PAGE // 16, dtype=np.uint64)
        x = np.uint64(page << 40 ^ version << 8) ^ index
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return np.concatenate([x ^ x >> np.uint64(31), np.full(PAGE // 16, version, np.uint64)])

    def check_page(self, dev: Device, page: int, record: list[int]) -> bool:
        """Is it lost? Fails when it is neither poison nor right."""
        writing, written, flushed = record
        try:
            data = dev.read(page * PAGE, PAGE)
        except PoisonError:
            assert flushed != writing, f"page {page} is lost, but was clean"
            return True
        words = np.frombuffer(data, np.uint64)
        right = words == self.contents(page, written)
        if writing != written:  # killed in the middle of it
            right |= words == self.contents(page, writing)
        assert right.all(), f"page {page}: {record}, word {int(np.argmin(right))} is wrong"
        return False

    def check_all(self, dev: Device, journal: np.ndarray) -> list[int]:
        return [p for p in range(self.PAGES) if self.check_page(dev, p, journal[p].tolist())]

    def repair(self, dev: Device, journal: np.ndarray, lost: list[int]) -> None:
        """Writes the newest version of every page: the next writer starts from certainty."""
        for page in range(0, self.PAGES, 2):
            newest = int(journal[page].max())
            if page in lost or journal[page][0] != journal[page][1]:
                dev.write(page * PAGE, self.contents(page, newest).tobytes())
            journal[page] = newest

    @pytest.fixture
    def start(self, program, tmp_path, delivery):
        def start(seed: int, operations: int = 0) -> subprocess.Popen:
            paths = (program("writer"), tmp_path / "device", tmp_path / "journal")
            return subprocess.Popen(
                [*map(str, paths), delivery, str(seed), str(operations)], stdout=subprocess.PIPE
            )

        return start

    @pytest.mark.parametrize("found_by", ["open", "reap"])
    def test_killed(self, tmp_path, start, journal, found_by):
        choose = random.Random(4)
        lost_in_all = 0
        dev = Device("2M", "2M", path=tmp_path / "device")
        for seed in range(self.ROUNDS):
            if found_by == "open":
                dev.close()
            writer = start(seed)
            with writer:
                assert writer.stdout.readline() == b"writing\n"
                goal = int(journal[:, 1].sum()) + choose.randrange(1, 3000)
                wait_until(lambda: int(journal[:, 1].sum()) >= goal, "the writer gets on")
                writer.kill()
            assert writer.returncode == SIGKILL
            if found_by == "open":
                dev = Device.open(tmp_path / "device")
            else:
                assert dev.reap() == 1
            assert (dev.stats.clients, dev.stats.dirty_frames) == (1, 0)
            lost = self.check_all(dev, journal)
            assert {record.source for record in dev.poison} <= {"lost"}
            assert dev.stats.poisoned == len(lost)
            check_object(dev)
            lost_in_all += len(lost)
            self.repair(dev, journal, lost)
        # Hardly ever is nothing dirty. Had it kept its old bytes, check_page() would say so.
        assert lost_in_all > 0
        dev.close()

    def test_not_killed(self, tmp_path, start, journal):
        with Device("2M", "2M", path=tmp_path / "device") as dev:
            with start(1, operations=3000) as writer:
                assert writer.wait(CHILD_TIMEOUT) == 0
            assert int(journal[:, 1].sum()) == 6000
            assert self.check_all(dev, journal) == []
            check_object(dev)


class TestDeadClient:
    """Of a dead client's pages the dirty ones become poison, and the clean ones stay."""

    PROGRAM = """
        import os, sys
        from samples import PAGE, entropy
        from cram_emu import Device

        device = Device.open(sys.argv[1])
        mapping = device.map(delivery=sys.argv[2], writeback=0)
        for page in range(0, 40, 2):
            mapping[page * PAGE : (page + 1) * PAGE] = entropy(page)
        mapping.flush(0, 20 * PAGE)
        mapping[0 : PAGE]  # reading makes nothing dirty
        mapping[2 * PAGE] = mapping[2 * PAGE]
        os._exit(0)
    """

    def test_dirty_and_clean(self, tmp_path, run_child, delivery):
        path = tmp_path / "device"
        with Device("1M", "1M", path=path) as dev:
            assert run_child(self.PROGRAM, path, delivery).returncode == 0
            assert dev.reap() == 1
            lost = {p for p in range(0, 40, 2) if right_or_poison(dev, p * PAGE, entropy(p))}
            assert lost == {2, *range(20, 40, 2)}
            assert dev.stats.lost_pages == len(lost)
            assert {record.dpa // PAGE for record in dev.poison} == lost
            check_object(dev)


class TestInterpreterExit:
    """A program that ends with a dirty mapping open loses nothing, unless by os._exit()."""

    PROGRAM = """
        import os, sys, threading
        from samples import PAGE, entropy
        from cram_emu import Device

        path, delivery, ending = sys.argv[1:]
        device = Device.open(path)
        mapping = device.map(window="64K", delivery=delivery, writeback=0)
        for page in range(40):
            mapping[page * PAGE : (page + 1) * PAGE] = entropy(page)
        match ending:
            case "sys.exit":
                sys.exit(0)
            case "exception":
                raise KeyError("not handled")
            case "live buffer":
                sys.keep = memoryview(mapping)
            case "busy thread":
                def touch():
                    while True:
                        mapping[100 * PAGE : 101 * PAGE] = entropy(0)
                threading.Thread(target=touch, daemon=True).start()
            case "os._exit":
                os._exit(0)
    """

    ENDINGS = ["end", "sys.exit", "exception", "live buffer", "busy thread"]

    def run(self, run_child, tmp_path, delivery, ending):
        path = tmp_path / "device"
        dev = Device("1M", "1M", path=path)
        child = run_child(self.PROGRAM, path, delivery, ending)
        assert child.returncode == (ending == "exception"), child.stderr
        dev.reap()
        return dev

    @pytest.mark.parametrize("ending", ENDINGS)
    def test_nothing_is_lost(self, run_child, tmp_path, delivery, ending):
        with self.run(run_child, tmp_path, delivery, ending) as dev:
            assert all(dev.read(page * PAGE, PAGE) == entropy(page) for page in range(40))
            if ending != "busy thread":
                assert len(dev.poison) == 0

    def test_skipped(self, run_child, tmp_path, delivery):
        with self.run(run_child, tmp_path, delivery, "os._exit") as dev:
            lost = sum(right_or_poison(dev, page * PAGE, entropy(page)) for page in range(40))
            assert 0 < lost <= 16  # what the window held


class TestFork:
    """In a child of fork the mapping is gone, the device says so, and the parent goes on."""

    @pytest.mark.parametrize("resident", [True, False])
    def test_touching_the_mapping(self, delivery, run_child, resident):
        """SIGSEGV, never zeros."""
        child = run_child(
            """
            import ctypes, os, sys
            from cram_emu import Device

            device = Device("1M", "1M")
            mapping = device.map(window="64K", delivery=sys.argv[1], writeback=0)
            at = 0 if sys.argv[2] == "True" else 1 << 19
            mapping[1 << 19] = mapping[0] = 65
            for page in range(64):
                mapping[4096 * (page + 1)]
            mapping[0]
            pid = os.fork()
            if pid == 0:
                value = ctypes.string_at(mapping.address + at, 1)
                os._exit(value[0])
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            print(mapping[at], device.page(0).resident)
            """,
            delivery,
            resident,
        )
        assert child.stdout.split() == [str(SIGSEGV), "65", "True"]

    def test_using_the_device(self, delivery, run_child):
        """Each call says ForkedDevice, and none has an effect."""
        child = run_child(
            """
            import os, sys
            from cram_emu import Device
            from cram_emu.errors import ForkedDevice

            device = Device("1M", "1M")
            mapping = device.map(delivery=sys.argv[1], writeback=0)
            mapping[0] = 65
            device.poison.inject(8192)
            calls = {
                "read": lambda: device.read(0, 1),
                "write": lambda: device.write(0, bytes(4096)),
                "discard": lambda: device.discard(0, 4096),
                "stats": lambda: device.stats,
                "page": lambda: device.page(0),
                "records": lambda: device.poison.records(),
                "inject": lambda: device.poison.inject(0),
                "clear": lambda: device.poison.clear(8192),
                "map": lambda: device.map(65536),
                "flush": lambda: mapping.flush(),
                "device.flush": lambda: device.flush(),
                "rebuild": lambda: device.rebuild(),
                "reap": lambda: device.reap(),
            }
            pid = os.fork()
            if pid == 0:
                for name, call in calls.items():
                    try:
                        print(name, call())
                    except ForkedDevice:
                        continue
                mapping.close()
                device.close()
                sys.stdout.flush()
                os._exit(0)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            print(mapping[0], device.read(0, 1)[0], len(device.poison), device.stats.clients)
            """,
            delivery,
        )
        assert child.stdout == "0\n65 65 1 1\n"

    def test_opening_it_again(self, delivery, run_child, tmp_path):
        child = run_child(
            """
            import os, sys
            from cram_emu import Device

            path, delivery = sys.argv[1:]
            device = Device("1M", "1M", path=path)
            mapping = device.map(0, 65536, delivery=delivery)
            mapping[0] = 65
            pid = os.fork()
            if pid == 0:
                with Device.open(path) as again, again.map(65536, delivery=delivery) as own:
                    own[0] = 66
                    assert own[0] == 66
                os._exit(0)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            print(mapping[0], device.read(65536, 1)[0], device.stats.clients)
            """,
            tmp_path / "device",
            delivery,
        )
        assert child.stdout == "0\n65 66 1\n", child.stderr

    @pytest.mark.parametrize(
        "ending", ["sys.exit(0)", "os._exit(0)", "os.execv('/bin/true', ['true'])"]
    )
    def test_the_child_ends(self, delivery, run_child, ending):
        """However it does, the parent's pages and claims stay as they are."""
        child = run_child(
            """
            import os, sys
            from cram_emu import Device
            from cram_emu.errors import Busy

            device = Device("1M", "1M")
            mapping = device.map(window="64K", delivery=sys.argv[1], writeback=0)
            for page in range(256):
                mapping[page * 4096] = page
            pid = os.fork()
            if pid == 0:
                exec(sys.argv[2])
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            print(all(mapping[page * 4096] == page for page in range(256)))
            try:
                device.map()
            except Busy:
                print("claimed")
            """,
            delivery,
            ending,
        )
        assert child.stdout == "0\nTrue\nclaimed\n", child.stderr

    def test_an_executed_program_inherits_nothing(self, delivery, tmp_path):
        with Device("1M", "1M", path=tmp_path / "device") as dev, dev.map(delivery=delivery):
            listing = subprocess.run(
                ["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, text=True
            ).stdout
            ours = os.listdir("/proc/self/fd")
        assert len(ours) > listing.count("->")
        for name in ("userfaultfd", "eventfd", "cram_emu", "device"):
            assert name not in listing

    def test_children_while_threads_fault(self, delivery, run_child):
        child = run_child(
            """
            import random, subprocess, sys, threading
            from samples import PAGE, entropy
            from cram_emu import Device

            device = Device("1M", "1M")
            mapping = device.map(window="64K", delivery=sys.argv[1], writeback=0.001)
            running = True
            wrong = []

            def work(seed):
                choose, model = random.Random(seed), {}
                while running:
                    page = choose.randrange(seed, 256, 3)
                    if page in model and mapping[page * PAGE : (page + 1) * PAGE] != model[page]:
                        wrong.append(page)
                    model[page] = entropy(choose.randrange(99))
                    mapping[page * PAGE : (page + 1) * PAGE] = model[page]

            threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
            for thread in threads:
                thread.start()
            for _ in range(40):
                subprocess.run(["/bin/true"], check=True, preexec_fn=lambda: None)
            running = False
            for thread in threads:
                thread.join()
            print(wrong)
            """,
            delivery,
        )
        assert child.stdout == "[]\n", child.stderr


class TestPermission:
    """Without permission for userfaultfd there is one error, with its remedy; nothing changes."""

    # An unprivileged user on a kernel that says no, as vm.unprivileged_userfaultfd does by default.
    UNPRIVILEGED = """
        import os, sys
        from cram_emu import Device, uffd_info
        from cram_emu.errors import NotPermitted

        def refused(device, delivery):
            try:
                device.map(delivery=delivery)
            except NotPermitted as error:
                return str(error)

        def drop_privileges():
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
    """

    @pytest.fixture
    def skip_if_anybody_may(self, skip_unless_root):
        with open("/proc/sys/vm/unprivileged_userfaultfd") as file:
            if file.read().strip() != "0":
                pytest.skip("vm.unprivileged_userfaultfd permits it to everybody")

    @pytest.mark.usefixtures("skip_if_anybody_may")
    def test_unprivileged(self, run_child):
        """User-mode faults alone: no monitor delivery, but inline delivery as ever."""
        child = run_child(
            self.UNPRIVILEGED
            + """
        drop_privileges()
        print(uffd_info().available, uffd_info().kernel_faults)
        device = Device("1M", "1M")
        print(refused(device, "monitor"))
        with device.map(window="64K", delivery="inline") as mapping:
            mapping[:] = bytes(range(256)) * 4096
            print(mapping[:] == bytes(range(256)) * 4096)
        """
        )
        info, error, works = child.stdout.splitlines()
        assert info == "0 False"
        for remedy in ("root", "vm.unprivileged_userfaultfd", "/dev/userfaultfd", "inline"):
            assert remedy in error
        assert works == "True"

    @pytest.mark.parametrize("number, refusal", [(1, "not permitted"), (38, "")])
    def test_denied_by_seccomp(self, run_child, skip_unless_root, number, refusal):
        """A filter answers EPERM or ENOSYS to userfaultfd(2), as container runtimes' do."""
        child = run_child(
            self.UNPRIVILEGED
            + """
        import ctypes, struct
        drop_privileges()
        # if nr == userfaultfd (x86-64: 323): errno; else allow
        code = [(0x20, 0, 0, 0), (0x15, 0, 1, 323), (6, 0, 0, 0x50000 | int(sys.argv[1])),
                (6, 0, 0, 0x7FFF0000)]
        instructions = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *c) for c in code))
        filter = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(instructions))
        prctl = ctypes.CDLL(None).prctl
        assert prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
        assert prctl(22, 2, filter, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        device = Device("1M", "1M")
        print(uffd_info().available)
        for delivery in ("monitor", "inline"):
            try:
                device.map(delivery=delivery)
            except OSError as error:
                print(type(error).__name__, error)
        device.write(0, bytes(range(256)) * 16)
        print(device.read(0, 4096) == bytes(range(256)) * 16)
        """,
            number,
        )
        available, *errors, works = child.stdout.splitlines()
        assert int(available) == -number
        assert len(errors) == 2
        for error in errors:
            assert error.split()[0] == ("NotPermitted" if number == 1 else "NotSupported")
            assert "userfaultfd" in error and refusal in error
        assert works == "True"


class TestMemory:
    """Without memory for a mapping there is one error, with the size, and nothing is claimed."""

    def test_address_space(self, delivery, run_child):
        child = run_child(
            """
            import resource, sys
            from cram_emu import Device
            from cram_emu.errors import NoMemory

            device = Device("4G", "1M")
            size = int(open("/proc/self/statm").read().split()[0]) * 4096
            resource.setrlimit(resource.RLIMIT_AS, (size + (256 << 20), resource.RLIM_INFINITY))
            for _ in range(3):
                try:
                    device.map(delivery=sys.argv[1])
                except NoMemory as error:
                    print(error)
            with device.map(0, "64M", delivery=sys.argv[1]) as mapping:
                mapping[0] = 65
                print(mapping[0])
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
            with device.map(delivery=sys.argv[1]) as mapping:
                print(mapping[0])
            """,
            delivery,
        )
        *errors, small, large = child.stdout.splitlines()
        assert len(errors) == 3
        assert all(str(4 << 30) in error for error in errors)
        assert (small, large) == ("65", "65")

    def test_at_any_point(self, delivery, run_child):
        """Wherever it runs out, nothing is left behind, and the next attempt with memory works."""
        child = run_child(
            """
            import os, resource, sys
            from cram_emu import Device
            from cram_emu.errors import NoMemory

            unlimited = (resource.RLIM_INFINITY,) * 2
            device = Device("16M", "1M")
            device.write(0, bytes([65]) * 4096)
            before = len(os.listdir("/proc/self/fd"))
            errors = set()
            for room in range(15 << 20, 18 << 20, 16 << 10):
                size = int(open("/proc/self/statm").read().split()[0]) * 4096
                resource.setrlimit(resource.RLIMIT_AS, (size + room, resource.RLIM_INFINITY))
                try:
                    device.map(delivery=sys.argv[1]).close()
                    errors.add("none")
                except NoMemory as error:
                    errors.add(str(error))
                resource.setrlimit(resource.RLIMIT_AS, unlimited)
                assert len(os.listdir("/proc/self/fd")) == before
                with device.map(delivery=sys.argv[1]) as mapping:
                    assert mapping[0] == 65
            print(*sorted(errors), sep="\\n")
            """,
            delivery,
        )
        errors = child.stdout.splitlines()
        assert "none" in errors and len(errors) >= 3, child.stderr


# Writes and reads a mapping in streams, with its frames swapped out in between: argv[1] is the delivery.
SWAPPED = """
import ctypes, sys
import numpy as np
from cram_emu import Device

PAGES, WINDOW, MADV_PAGEOUT = 4096, 2 << 20, 21
libc = ctypes.CDLL(None, use_errno=True)

def swap_out(mapping):
    address, length = ctypes.c_void_p(mapping.address), ctypes.c_size_t(len(mapping))
    assert libc.madvise(address, length, MADV_PAGEOUT) == 0
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    assert int(status["VmSwap"].split()[0]) << 10 >= WINDOW // 2

with Device("16M", "16M") as dev:
    with dev.map(window=WINDOW, delivery=sys.argv[1], writeback=0) as mapping:
        array = np.frombuffer(mapping, np.uint64).reshape(PAGES, -1)
        right = np.arange(array.size, dtype=np.uint64).reshape(array.shape) // 64
        for version in range(6):
            right[:: 1 + version, 3] = version
            for first in range(0, PAGES, 1024):
                array[first : first + 1024] = right[first : first + 1024]
                swap_out(mapping)
            for first in range(0, PAGES, 1024):
                assert np.array_equal(array[first : first + 1024], right[first : first + 1024])
                swap_out(mapping)
        del array
    assert dev.read(0, PAGES * 4096) == right.tobytes()
    print(dev.stats.dropped_writes, dev.stats.poisoned)
"""


class TestSwap:
    """Frames that the kernel has swapped out are frames like others, when their pages stream too."""

    @pytest.fixture(autouse=True)
    def swap(self):
        try:
            zram.require()
            with zram.swap(64 << 20):
                yield
        except zram.Unavailable as reason:
            pytest.skip(str(reason))

    def test_streams(self, run_child, delivery):
        child = run_child(SWAPPED, delivery)
        assert (child.returncode, child.stderr, child.stdout) == (0, "", "0 0\n")


class TestDescriptors:
    """Without descriptors a mapping fails with one error, and works again afterwards."""

    def test_used_up(self, delivery, run_child):
        child = run_child(
            """
            import os, resource, sys
            from cram_emu import Device
            from cram_emu.errors import CramError

            device = Device("1M", "1M")
            device.write(0, bytes([65]) * 4096)
            for spare in range(4):
                held = []
                resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))
                try:
                    while True:
                        held.append(os.open("/dev/null", os.O_RDONLY))
                except OSError:
                    pass
                for descriptor in held[:spare]:
                    os.close(descriptor)
                try:
                    device.map(delivery=sys.argv[1]).close()
                except CramError as error:
                    print(type(error).__name__ if str(error) else "no text")
                for descriptor in held[spare:]:
                    os.close(descriptor)
                with device.map(delivery=sys.argv[1]) as mapping:
                    assert mapping[0] == 65 and device.stats.clients == 1
            print("works")
            """,
            delivery,
        )
        *errors, works = child.stdout.splitlines()
        assert works == "works", child.stderr
        assert errors[0] == "DeviceIOError"


class TestCloseUnderThreads:
    """While threads look at buffers closing is refused, and they see nothing of it."""

    def test_refused(self, delivery):
        wrong = []
        with Device("4M", "4M") as dev:
            mapping = dev.map(window="64K", delivery=delivery)
            mapping[:] = noise(1, 4 << 20)
            expected = np.frombuffer(noise(1, 4 << 20), np.uint8)
            stop = threading.Event()
            looking = threading.Barrier(4)

            def look() -> None:
                array = np.frombuffer(mapping, np.uint8)
                looking.wait()
                while True:
                    if not np.array_equal(array, expected):
                        wrong.append(1)
                    if stop.is_set():
                        return

            threads = [threading.Thread(target=look) for _ in range(3)]
            for thread in threads:
                thread.start()
            looking.wait()
            for _ in range(200):
                with pytest.raises(BufferError):
                    mapping.close()
                with pytest.raises(BufferError):
                    dev.close()
            stop.set()
            for thread in threads:
                thread.join()
            del threads
            mapping.close()
        assert wrong == []
