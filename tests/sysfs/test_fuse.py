"""Real mounts, by both libraries: the semantics of sysfs as a client sees them."""

import errno
import os
import select
import signal
import stat
import subprocess

import pytest
from servers import SMALL, TIMEOUT, Server, skip_unless_library
from support import wait_until

from cram_emu import Device
from cram_emu.sysfs import fuse
from cram_emu.sysfs.fuse import FusepyOperations
from cram_emu.sysfs.table import Attribute, Table

NODE = "sys/devices/system/node/node1"
REGISTERS = "sys/kernel/debug/cram_device"
POISON = "sys/kernel/debug/cxl/mem0"
PIPE = "sys/kernel/tracing/trace_pipe"
TRACE = "sys/kernel/tracing/trace"


def raises(number: int):
    return pytest.raises(OSError, check=lambda error: error.errno == number)


def joined(server: Server) -> Device:
    return Device.open(server.read(f"{REGISTERS}/mem0/path").strip())


class TestFiles:
    def test_stat(self, server: Server):
        file = os.stat(server.path(f"{REGISTERS}/mem0/used"))
        assert (stat.S_IMODE(file.st_mode), file.st_size, file.st_nlink) == (0o444, 4096, 1)
        node = os.stat(server.path("dev/cxl/mem0"))
        assert stat.S_ISCHR(node.st_mode) and node.st_rdev == os.makedev(240, 0)
        assert all(entry.inode() for entry in os.scandir(server.path("sys/bus/cxl")))

    @pytest.mark.parametrize(
        ("path", "flags", "number"),
        [
            (f"{POISON}/inject_poison", os.O_RDONLY, errno.EACCES),
            (f"{POISON}/inject_poison", os.O_RDWR, errno.EACCES),
            (f"{REGISTERS}/mem0/used", os.O_WRONLY, errno.EACCES),
            (f"{REGISTERS}/mem0/new", os.O_WRONLY | os.O_CREAT, errno.EACCES),
            (f"{REGISTERS}/mem0/none", os.O_RDONLY, errno.ENOENT),
        ],
    )
    def test_open(self, server: Server, path: str, flags: int, number: int):
        """The mode bits bind root too."""
        with raises(number):
            os.open(server.path(path), flags)

    def test_changes_of_the_tree_are_refused(self, server: Server):
        file = server.path(f"{REGISTERS}/mem0/pressure")
        for change in (
            lambda: file.unlink(),
            lambda: file.rename(file.with_name("other")),
            lambda: file.with_name("directory").mkdir(),
            lambda: file.chmod(0o777),
            lambda: file.parent.rmdir(),
            lambda: os.symlink("x", file.with_name("link")),
        ):
            with raises(errno.EPERM):
                change()
        assert file.read_text() == "0\n"

    def test_read_is_fresh(self, server: Server):
        """On every open, and again from the beginning of an open file."""
        with joined(server) as device, open(server.path(f"{NODE}/meminfo")) as file:
            assert f"MemFree:{65536:16} kB" in file.read()
            device.write(0, b"\x55" * 4096)
            file.seek(0)
            assert f"MemFree:{65532:16} kB" in file.read()

    def test_shell(self, server: Server):
        """echo opens with O_TRUNC, and hears of an error."""
        file = server.path(f"{REGISTERS}/mem0/pressure")
        echo = ["sh", "-c", 'echo "$0" >"$1"', "123", file]
        assert subprocess.run(echo).returncode == 0
        assert file.read_text() == "123\n"
        echo[3] = "1001"
        assert subprocess.run(echo, stderr=subprocess.DEVNULL).returncode != 0
        assert file.read_text() == "123\n"

    def test_newline_or_nul(self, server: Server):
        for text in ("1", "2\n", "3\n\0", "4\0"):
            server.write(f"{REGISTERS}/mem0/pressure", text)
            assert server.read(f"{REGISTERS}/mem0/pressure") == f"{text[0]}\n"

    def test_offset_of_a_write_is_ignored(self, server: Server):
        fd = os.open(server.path(f"{REGISTERS}/mem0/pressure"), os.O_WRONLY)
        os.pwrite(fd, b"77", 1000)
        os.close(fd)
        assert server.read(f"{REGISTERS}/mem0/pressure") == "77\n"


class TestPoison:
    def test_in_effect_before_write_returns(self, server: Server, skip_unless_userfaultfd):
        """Also under a frame of another process: its next read of that line meets it."""
        with joined(server) as device, device.map(length="1M", delivery="inline") as mapping:
            mapping[0:4096] = b"\xaa" * 4096
            server.write(f"{POISON}/inject_poison", "64\n")
            assert device.page(0).poisoned == 0b10
            server.write(f"{POISON}/clear_poison", "64\n")
            assert mapping[0:192] == b"\xaa" * 64 + bytes(64) + b"\xaa" * 64


class TestDevices:
    """They come and go under clients that know them."""

    def test_hot_add_and_remove(self, server: Server):
        link = server.path("sys/bus/cxl/devices/mem1")
        assert not link.exists()
        server.write(f"{REGISTERS}/add", "32M 1M\n")
        assert (link / "ram/size").read_text() == "0x2000000\n"
        held = os.open(link / "serial", os.O_RDONLY)
        server.write(f"{REGISTERS}/remove", "mem1\n")
        # At once, though entries may be cached for a second.
        assert not os.path.lexists(link)
        assert not server.path("sys/devices/system/node/node2").exists()
        assert "mem1" not in os.listdir(server.path(REGISTERS))
        try:
            with raises(errno.ENODEV):
                os.read(held, 4096)
        finally:
            os.close(held)

    def test_again_and_again(self, server: Server):
        for _ in range(20):
            server.write(f"{REGISTERS}/add", "32M 1M")
            assert server.read(f"{REGISTERS}/mem1/advertised") == f"{32 << 20}\n"
            server.write(f"{REGISTERS}/remove", "mem1")
            with raises(errno.ENODEV):
                server.write(f"{REGISTERS}/remove", "mem1")


class TestTrace:
    def test_emptied(self, server: Server):
        """By an open with O_TRUNC, a shell's or Python's; its twins, an append and ftruncate, leave it."""
        trace = server.path(TRACE)

        def held_after(*command: str) -> bool:
            server.write(f"{POISON}/inject_poison", "0")
            subprocess.run([*command, trace], check=True)
            return "cxl_poison" in trace.read_text()

        assert held_after("sh", "-c", 'echo x >>"$0"')
        assert held_after("truncate", "--size=0")
        assert not held_after("sh", "-c", ': >"$0"')
        server.write(f"{POISON}/inject_poison", "0")
        open(trace, "w").close()
        assert "cxl_poison" not in trace.read_text()


class TestPipe:
    def test_waits_and_holds_nobody_up(self, server: Server):
        with subprocess.Popen(["cat", server.path(PIPE)], stdout=subprocess.PIPE) as cat:
            for dpa in (0, 64):
                server.write(f"{POISON}/inject_poison", str(dpa))
                line = cat.stdout.readline()
                assert b"cxl_poison" in line and b"dpa=%#x " % dpa in line
                cat.stdout.readline()
            cat.kill()

    def test_interrupted(self, server: Server):
        """A reader that waits dies of its signals."""
        with subprocess.Popen(["cat", server.path(PIPE)], stdout=subprocess.DEVNULL) as cat:
            wait_until(lambda: in_read(cat.pid), "cat waits")
            cat.terminate()
            assert cat.wait(TIMEOUT) == -signal.SIGTERM

    def test_many_readers(self, server: Server):
        """More than libfuse has threads by default."""
        cats = [
            subprocess.Popen(["cat", server.path(PIPE)], stdout=subprocess.DEVNULL)
            for _ in range(24)
        ]
        try:
            for cat in cats:
                wait_until(lambda: in_read(cat.pid), "cat waits")
            assert server.read(f"{REGISTERS}/mem0/used") == "0\n"
        finally:
            for cat in cats:
                cat.terminate()
        assert [cat.wait(TIMEOUT) for cat in cats] == [-signal.SIGTERM] * 24

    def test_end_of_the_mount(self, server: Server):
        """Readers find the end of the file; the server does not wait for them."""
        with subprocess.Popen(["cat", server.path(PIPE)], stdout=subprocess.DEVNULL) as cat:
            wait_until(lambda: in_read(cat.pid), "cat waits")
            assert server.stop() == 0
            assert cat.wait(TIMEOUT) == 0


def in_read(pid: int) -> bool:
    """Is a process in read(2)?"""
    with open(f"/proc/{pid}/syscall") as file:
        return file.read().split()[0] == "0"


class TestPoll:
    """kernfs: POLLPRI and POLLERR when a value has changed since it was read."""

    @pytest.fixture
    def server(self, serve) -> Server:
        skip_unless_library("mfusepy")
        if fuse.load("mfusepy").major < 3:
            pytest.skip("mfusepy has found libfuse2 only, which has no poll")
        return serve(*SMALL, "--fuse", "mfusepy")

    @staticmethod
    def changes(path: os.PathLike, cause) -> int:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.read(fd, 4096)
            poll = select.poll()
            poll.register(fd, select.POLLPRI)
            assert poll.poll(0) == []
            cause()
            ((_, events),) = poll.poll(TIMEOUT * 1000)
            os.pread(fd, 4096, 0)
            assert poll.poll(0) == []
            return events
        finally:
            os.close(fd)

    def test_threshold(self, server: Server):
        with joined(server) as device:
            events = self.changes(
                server.path(f"{REGISTERS}/mem0/interrupts/lthresh"),
                lambda: device.write(0, os.urandom(1 << 20)),
            )
        assert events & select.POLLPRI and events & select.POLLERR

    def test_poison(self, server: Server):
        events = self.changes(
            server.path(f"{REGISTERS}/mem0/poisoned"),
            lambda: server.write(f"{POISON}/inject_poison", "0"),
        )
        assert events & select.POLLPRI


class TestInterrupts:
    def test_all_arrive_while_files_are_served(self, server: Server):
        """Each crossing is one line of the trace, whatever is read meanwhile."""
        crossings = 50
        with joined(server) as device:
            for _ in range(crossings):
                device.write(0, os.urandom(1 << 20))
                assert int(server.read(f"{REGISTERS}/mem0/remaining")) < 1 << 20
                device.discard(0, 1 << 20)
            assert (device.stats.lthresh, device.stats.hthresh) == (crossings, crossings)

        def lines() -> int:
            return server.read(TRACE).count(" cxl_memory_module: ")

        wait_until(lambda: lines() == 2 * crossings, "every interrupt is in the trace")


class TestStoppedClient:
    def test_no_reader_waits_for_the_data_plane(self, serve, start_child):
        """A client that is stopped in the midst of its writes, whatever it holds, holds no reader up."""
        server = serve("--advertised", "64M", "--real", "64M")
        child = start_child(
            """
            import sys
            from samples import entropy
            from cram_emu import Device
            device = Device.open(sys.argv[1])
            page = entropy(1)
            print("ready", flush=True)
            while True:
                for dpa in range(0, 1 << 20, 4096):
                    device.write(dpa, page)
            """,
            server.read(f"{REGISTERS}/mem0/path").strip(),
        )
        assert child.stdout.readline() == "ready\n"
        for _ in range(20):
            os.kill(child.pid, signal.SIGSTOP)
            reader = ["timeout", "10", "cat"]
            for path in (f"{NODE}/meminfo", f"{NODE}/vmstat", "sys/kernel/debug/cram/nodes"):
                assert subprocess.run([*reader, server.path(path)], capture_output=True).returncode == 0
            files = [p for p in server.path(f"{REGISTERS}/mem0").rglob("*") if p.is_file() and p.stat().st_mode & 0o444]
            assert subprocess.run([*reader, *files], capture_output=True).returncode == 0
            os.kill(child.pid, signal.SIGCONT)


class TestEdge:
    """An exception of any kind becomes an errno; none leaves a handler."""

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError, RecursionError])
    def test_any(self, error: type[BaseException]):
        def fail() -> str:
            raise error

        table = Table()
        table.add([("bad", Attribute(0o444, fail))])
        operations = FusepyOperations(table, None, lambda: False)
        handle = operations("open", "/bad", os.O_RDONLY)
        with raises(errno.EIO):
            operations("read", "/bad", 4096, 0, handle)
        with raises(errno.ENOENT):
            operations("getattr", "/none")
        with raises(errno.EIO):
            operations("read", "/bad", 4096, 0, handle + 1)
