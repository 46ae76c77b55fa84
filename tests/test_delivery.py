"""How a fault arrives: the kernel's own accesses, and SIGBUS in the program that touches poison.

Oracles: the kernel (what it copied, how it says that a child died, the siginfo that ptrace shows),
and checksums of the files and sockets at the other end.
"""

import ctypes
import errno
import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import threading

import numpy as np
import pytest
from samples import LINE, PAGE, noise
from support import CHILD_TIMEOUT, delivery, program, wait_until  # noqa: F401

from cram_emu import Device

SIZE = 1 << 20

BUS_ADRERR, BUS_MCEERR_AR = 2, 4
SI_TKILL = -6
LSB = 12
POISONED = 5  # as in children/sigbus.c
VALUE = 0x5A


def digest(data) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def sample(tmp_path):
    """A file larger than the windows used here."""
    path = tmp_path / "sample"
    path.write_bytes(noise(1, SIZE))
    return path


@pytest.mark.usefixtures("skip_unless_kernel_faults")
class TestMonitorSystemCalls:
    """With monitor delivery a system call fills and reads memory far larger than the window."""

    @pytest.fixture
    def mapping(self):
        with Device(SIZE, SIZE) as dev, dev.map(window="64K", delivery="monitor") as mapping:
            yield mapping

    def test_readinto(self, mapping, sample):
        with open(sample, "rb", buffering=0) as file, memoryview(mapping) as view:
            assert file.readinto(view) == SIZE
        assert digest(mapping[:]) == digest(sample.read_bytes())

    def test_preadv_in_odd_pieces(self, mapping, sample):
        with memoryview(mapping) as view:
            pieces = [view[at : at + 5003] for at in range(0, SIZE, 5003)]
            with open(sample, "rb") as file:
                assert os.preadv(file.fileno(), pieces, 0) == SIZE
            for piece in pieces:
                piece.release()
        assert digest(mapping[:]) == digest(sample.read_bytes())

    def test_tofile(self, mapping, tmp_path):
        mapping[:] = noise(2, SIZE)
        np.frombuffer(mapping, np.uint8).tofile(tmp_path / "copy")
        assert digest((tmp_path / "copy").read_bytes()) == digest(noise(2, SIZE))

    def test_write(self, mapping, tmp_path):
        mapping[:] = noise(3, SIZE)
        with open(tmp_path / "copy", "wb", buffering=0) as file, memoryview(mapping) as view:
            assert file.write(view) == SIZE
        assert digest((tmp_path / "copy").read_bytes()) == digest(noise(3, SIZE))

    def test_sockets(self, mapping):
        """One end sends the lower half of the memory, the other receives it into the upper half."""
        half = SIZE // 2
        mapping[:half] = noise(4, half)
        ours, theirs = socket.socketpair()
        with ours, theirs, memoryview(mapping) as view:
            sender = threading.Thread(target=ours.sendall, args=(view[:half],))
            sender.start()
            received = 0
            while received < half:
                received += theirs.recv_into(view[half + received :])
            sender.join()
        assert digest(mapping[half:]) == digest(noise(4, half))

    def test_a_page_that_a_flush_has_protected(self, mapping, sample):
        with open(sample, "rb", buffering=0) as file, memoryview(mapping) as view:
            for at in (0, PAGE):
                view[0:8] = b"original"
                mapping.flush()
                file.seek(at)
                assert file.readinto(view[:PAGE]) == PAGE
                assert digest(mapping[:PAGE]) == digest(sample.read_bytes()[at : at + PAGE])


@pytest.mark.usefixtures("skip_unless_userfaultfd")
class TestInlineSystemCalls:
    """With inline delivery a system call on a page without a frame is EFAULT, and moves nothing."""

    @pytest.fixture
    def mapping(self):
        with Device(SIZE, SIZE) as dev:
            dev.write(0, noise(5))
            with dev.map(window="64K", delivery="inline", writeback=0) as mapping:
                yield mapping

    def read_into(self, mapping, path) -> int:
        with open(path, "rb", buffering=0) as file, memoryview(mapping) as view:
            return file.readinto(view[:PAGE])

    def test_not_resident(self, mapping, sample):
        with pytest.raises(OSError) as caught:
            self.read_into(mapping, sample)
        assert caught.value.errno == errno.EFAULT
        assert mapping[:PAGE] == noise(5)

    def test_clean(self, mapping, sample):
        """It may be read from, but the first write to it would have to be seen."""
        assert mapping[0] == noise(5)[0]
        reader, writer = os.pipe()
        with memoryview(mapping) as view:
            assert os.write(writer, view[:PAGE]) == PAGE
        assert os.read(reader, PAGE) == noise(5)
        os.close(reader)
        os.close(writer)
        with pytest.raises(OSError) as caught:
            self.read_into(mapping, sample)
        assert caught.value.errno == errno.EFAULT

    def test_dirty(self, mapping, sample):
        mapping[0] = 1
        assert self.read_into(mapping, sample) == PAGE
        assert mapping[:PAGE] == sample.read_bytes()[:PAGE]


@pytest.mark.usefixtures("skip_unless_kernel_faults")
class TestPoisonMetBySystemCalls:
    """Poison ends a system call: EFAULT, or short where bytes had been copied; no signal."""

    @pytest.fixture
    def device(self):
        with Device(SIZE, SIZE) as dev:
            dev.write(0, noise(6, 3 * PAGE))
            dev.poison.inject(PAGE + 7 * LINE)
            yield dev

    @pytest.mark.parametrize("call", [os.write, os.read], ids=["write", "read"])
    def test_it_begins_with_poison(self, device, call, sample):
        file = os.open(sample, os.O_RDWR)
        with device.map(delivery="monitor") as mapping, memoryview(mapping) as view:
            with pytest.raises(OSError) as caught:
                if call is os.write:
                    os.write(file, view[PAGE : 2 * PAGE])
                else:
                    os.readv(file, [view[PAGE : 2 * PAGE]])
            assert caught.value.errno == errno.EFAULT
        os.close(file)

    def test_it_comes_upon_poison(self, device, tmp_path):
        with device.map(delivery="monitor") as mapping, memoryview(mapping) as view:
            with open(tmp_path / "copy", "wb", buffering=0) as file:
                assert file.write(view[: 3 * PAGE]) == PAGE
            assert (tmp_path / "copy").read_bytes() == noise(6, 3 * PAGE)[:PAGE]

    @pytest.mark.parametrize("touched", [True, False])
    @pytest.mark.parametrize("repair", ["write", "discard", "clear", "clear by another client"])
    def test_repaired(self, tmp_path, repair, touched):
        """Nothing stays behind of the poison that an earlier call has met."""
        path = tmp_path / "device"
        contents = [noise(6, 3 * PAGE)[at : at + PAGE] for at in (0, PAGE, 2 * PAGE)]
        with (
            Device(SIZE, SIZE, path=path) as device,
            Device.open(path) as other,
            device.map(delivery="monitor") as mapping,
            open(tmp_path / "copy", "w+b", buffering=0) as file,
            memoryview(mapping) as view,
        ):
            device.write(0, b"".join(contents))
            device.poison.inject(PAGE + 7 * LINE)
            if touched:
                assert file.write(view[: 3 * PAGE]) == PAGE
            match repair:
                case "write":
                    contents[1] = noise(7)
                    device.write(PAGE, contents[1])
                case "discard":
                    contents[1] = bytes(PAGE)
                    device.discard(PAGE, PAGE)
                case "clear" | "clear by another client":
                    (device if repair == "clear" else other).poison.clear(PAGE + 7 * LINE)
                    contents[1] = contents[1][: 7 * LINE] + bytes(LINE) + contents[1][8 * LINE :]
            file.seek(0)
            assert file.write(view[: 3 * PAGE]) == 3 * PAGE
            assert (tmp_path / "copy").read_bytes() == b"".join(contents) == view[: 3 * PAGE]


class Sigbus:
    """One run of children/sigbus.c."""

    def __init__(self, path, *args):
        result = subprocess.run(
            [path, *map(str, args)],
            capture_output=True,
            text=True,
            timeout=CHILD_TIMEOUT,
            check=False,
        )
        self.returncode = result.returncode
        self.lines = [json.loads(line) for line in result.stdout.splitlines()]
        self.stderr = result.stderr

    def died(self) -> bool:
        """As the kernel ends a program that does not handle the signal."""
        return self.returncode == -signal.SIGBUS

    def ended_well(self) -> bool:
        return self.returncode == 0 and self.lines[-1] == {"closed": True}


@pytest.fixture
def sigbus(program):
    return lambda *args: Sigbus(program("sigbus"), *args)


def machine_check(who: str, offset: int) -> dict:
    """What a handler is told of poison."""
    return {
        "who": who,
        "signal": signal.SIGBUS,
        "code": BUS_MCEERR_AR,
        "offset": POISONED * PAGE + offset,
        "lsb": LSB,
        "own_thread": True,
    }


class TestSiginfo:
    """Poison is BUS_MCEERR_AR with the exact address and lsb 12, in the thread that touched it."""

    @pytest.mark.parametrize("offset", [0, 1, 64, 2047, 4095])
    @pytest.mark.parametrize("access", ["read", "write"])
    def test_any_line_of_the_page(self, sigbus, delivery, access, offset):
        run = sigbus(delivery, "siginfo", "before", access, offset)
        assert run.lines == [
            machine_check("program", offset),
            {"intact": VALUE, "poison_faults": 1, "restored": 0},
            {"closed": True},
        ]

    def test_as_often_as_it_is_touched(self, sigbus, delivery):
        run = sigbus(delivery, "silent", "before", "often", 0)
        assert run.lines[:2] == [
            {"caught": 1000},
            {"intact": VALUE, "poison_faults": 1000, "restored": 0},
        ]
        assert run.ended_well()

    @pytest.mark.parametrize("threads", [2, 4])
    def test_threads_that_touch_it_at_once(self, sigbus, delivery, threads):
        """Each is told, however many find the page newly poisoned at the same instant."""
        run = sigbus(delivery, "silent", "before", "together", threads)
        assert run.lines[0] == {"caught": 10000 * threads}
        assert run.ended_well()

    def test_what_kills_a_program_that_does_not_handle_it(self, delivery, start_child):
        """Whatever the kernel raised by itself, the last that ptrace(2) sees is a machine check."""
        child = start_child(
            """
            import ctypes, sys
            from cram_emu import Device
            device = Device("1M", "1M")
            mapping = device.map(delivery=sys.argv[1])
            device.poison.inject(4096)
            print(mapping.address, flush=True)
            ctypes.CDLL(None).ptrace(0, 0, None, None)  # PTRACE_TRACEME, of this thread
            ctypes.string_at(mapping.address + 4096 + 1234, 1)
            """,
            delivery,
        )
        address = int(child.stdout.readline())
        libc = ctypes.CDLL(None, use_errno=True)
        info = (ctypes.c_ubyte * 128)()
        seen = []
        while os.WIFSTOPPED(status := os.waitpid(child.pid, 0)[1]):
            pid, number = ctypes.c_long(child.pid), os.WSTOPSIG(status)
            assert libc.ptrace(0x4202, pid, None, info) == 0  # PTRACE_GETSIGINFO
            _, _, code, _, at, lsb = struct.unpack_from("iiiiQh", info)
            seen.append((number, code, at, lsb))
            assert libc.ptrace(7, pid, None, ctypes.c_long(number)) == 0  # PTRACE_CONT
        assert os.WTERMSIG(status) == signal.SIGBUS
        assert seen[-1] == (signal.SIGBUS, BUS_MCEERR_AR, address + 4096 + 1234, LSB)


class TestProgramsHandler:
    """The machine check reaches the handler that the program has installed, before or after map."""

    WHEN = ("before", "flush", "map", "writeback")

    @pytest.mark.parametrize("when", WHEN)
    @pytest.mark.parametrize("handler", ["siginfo", "nodefer"])
    def test_that_takes_siginfo(self, sigbus, delivery, handler, when):
        run = sigbus(delivery, handler, when, "read", 1234)
        assert run.lines[0] == machine_check("program", 1234)
        assert run.lines[1]["restored"] == (when != "before")
        assert run.ended_well()

    @pytest.mark.parametrize("when", WHEN)
    def test_that_takes_only_the_number(self, sigbus, delivery, when):
        run = sigbus(delivery, "plain", when, "read", 1234)
        assert run.lines[0] == {"who": "plain", "signal": signal.SIGBUS, "own_thread": True}
        assert run.ended_well()

    @pytest.mark.parametrize("when", WHEN)
    @pytest.mark.parametrize("handler", ["default", "ignore"])
    def test_that_is_none(self, sigbus, delivery, handler, when):
        """Neither the default action nor SIG_IGN survives a fault."""
        run = sigbus(delivery, handler, when, "read", 1234)
        assert run.died() and run.lines == []

    @pytest.mark.parametrize("when", WHEN)
    def test_that_serves_once(self, sigbus, delivery, when):
        run = sigbus(delivery, "reset", when, "read", 1234)
        assert run.died() and run.lines == [machine_check("program", 1234)]

    @pytest.mark.parametrize("when", WHEN)
    def test_that_repairs_the_page_and_returns(self, sigbus, delivery, when):
        """The access is tried again, and succeeds."""
        run = sigbus(delivery, "repair", when, "read", 1234)
        assert run.lines[:2] == [machine_check("repair", 1234), {"value": VALUE}]
        assert run.ended_well()

    @pytest.mark.parametrize("when", WHEN)
    def test_that_touches_another_page(self, sigbus, delivery, when):
        run = sigbus(delivery, "look", when, "read", 1234)
        assert run.lines[:2] == [machine_check("look", 1234), {"intact": VALUE}]
        assert run.ended_well()

    def test_that_chains_to_one_before_it(self, sigbus, delivery):
        run = sigbus(delivery, "chain", "before", "read", 1234)
        assert run.lines[:2] == [machine_check("chain", 1234), machine_check("program", 1234)]
        assert run.ended_well()

    @pytest.mark.parametrize("when", ["flush", "map", "writeback"])
    @pytest.mark.parametrize("handler", ["chain", "restore", "restore_and_raise"])
    def test_that_leaves_it_to_ours(self, sigbus, delivery, handler, when):
        """Ours was what it replaced: behind that is the default action, not the handler again."""
        run = sigbus(delivery, handler, when, "read", 1234)
        assert run.died()
        assert run.lines == [machine_check(handler.removesuffix("_and_raise"), 1234)]

    def test_the_warning_comes_once(self, sigbus, delivery):
        run = sigbus(delivery, "siginfo", "twice", "read", 0)
        assert run.lines[1]["restored"] == 2
        assert run.stderr.count("SIGBUS handler") == 1
        assert run.stderr.count("\n") == 1

    def test_no_warning_without_cause(self, sigbus, delivery):
        assert sigbus(delivery, "siginfo", "before", "read", 0).stderr == ""


class TestStacks:
    """A fault asks little of the stack that it is taken on: threads with small ones are served."""

    def test_smallest_python_thread(self, delivery, run_child):
        child = run_child(
            """
            import sys, threading
            from cram_emu import Device

            device = Device("4M", "4M", codec="zstd")
            mapping = device.map(window="64K", delivery=sys.argv[1])

            def work():
                for page in range(1024):
                    mapping[page * 4096] = page & 255
                print(all(mapping[page * 4096] == page & 255 for page in range(1024)))

            threading.stack_size(32768)
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            """,
            delivery,
        )
        assert (child.returncode, child.stdout) == (0, "True\n")


class TestOthersSigbus:
    """A SIGBUS that has nothing to do with the device goes on to the program as it is."""

    @pytest.mark.parametrize("access, code", [("file", BUS_ADRERR), ("sent", SI_TKILL)])
    def test_to_its_handler(self, sigbus, delivery, access, code):
        run = sigbus(delivery, "siginfo", "before", access, 0)
        assert run.lines[0]["code"] == code
        if access == "file":
            assert run.lines[0]["offset"] == 1234
        assert run.lines[1]["poison_faults"] == 0
        assert run.ended_well()

    @pytest.mark.parametrize(
        "handler, access", [("default", "file"), ("default", "sent"), ("ignore", "file")]
    )
    def test_to_the_default_action(self, sigbus, delivery, handler, access):
        assert sigbus(delivery, handler, "before", access, 0).died()

    def test_one_that_was_sent_may_be_ignored(self, sigbus, delivery):
        assert sigbus(delivery, "ignore", "before", "sent", 0).ended_well()


class TestFaulthandler:
    """Poison ends a Python program by SIGBUS; faulthandler shows the stack once while it is on."""

    PROGRAM = """
        import faulthandler, resource, sys
        from cram_emu import Device
        resource.setrlimit(resource.RLIMIT_CPU, (5, 5))  # who goes round in circles is ended
        delivery, when = sys.argv[1:]
        if when == "before":
            faulthandler.enable()
        device = Device("1M", "1M")
        mapping = device.map(delivery=delivery)
        if when in ("after", "switched off"):
            faulthandler.enable()
            mapping.flush()
        if when == "switched off":
            faulthandler.disable()
        mapping[0] = 1
        device.poison.inject(4096)
        print("alive", flush=True)
        mapping[4097]
        print("not reached", flush=True)
    """

    @pytest.mark.parametrize(
        "when, shown", [("never", 0), ("before", 1), ("after", 1), ("switched off", 0)]
    )
    def test_on_and_off(self, delivery, run_child, when, shown):
        child = run_child(self.PROGRAM, delivery, when)
        assert child.stdout == "alive\n"
        assert child.returncode == -signal.SIGBUS
        assert child.stderr.count("Fatal Python error: Bus error") == shown


class TestIdle:
    """With nothing dirty no thread of the process wakes."""

    PROGRAM = """
        import os, select, sys
        from cram_emu import Device

        def wakes():
            counts = {}
            for task in set(os.listdir("/proc/self/task")) - {str(os.getpid())}:
                words = open(f"/proc/self/task/{task}/status").read().split()
                counts[task] = int(words[words.index("voluntary_ctxt_switches:") + 1])
            return counts

        def quiet():
            before = wakes()
            select.select([silence], [], [], 0.2)
            return wakes() == before

        silence, _ = os.pipe()
        delivery, dirty = sys.argv[1], sys.argv[2] == "dirty"
        device = Device("1M", "1M")
        device.on_interrupt(print)
        mapping = device.map(delivery=delivery, writeback=0.01)
        mapping[0] = 1
        while device.stats.dirty_frames:
            select.select([], [], [], 0.01)
        with mapping.pin(0, 4096 if dirty else 0):  # a pinned frame is always dirty
            print(len(wakes()) >= 2, any(quiet() for _ in range(10)))
    """

    @pytest.mark.parametrize("state", ["clean", "dirty"])
    def test_threads_sleep(self, delivery, run_child, state):
        child = run_child(self.PROGRAM, delivery, state)
        assert child.stdout.split() == ["True", str(state == "clean")], child.stderr
