"""`cram-emu create`, `list`, `rm`: devices that have names."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import wait_until
from test_mount import COMMAND, DEVICES, TIMEOUT, error, run, start, where  # noqa: F401

from cram_emu import Device, named
from cram_emu.errors import InvalidArgument

NAME = f"test-{os.getpid()}"
SMALL = ("--advertised", "64M", "--real", "1M")


@pytest.fixture
def path() -> Iterator[Path]:
    """A device of that name."""
    done = run("create", NAME, *SMALL)
    assert (done.returncode, done.stderr) == (0, "")
    path = Path(done.stdout.strip())
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def user(path: Path, start_child) -> subprocess.Popen:
    """A process that has it open, with a page written."""
    program = """
        import sys
        from cram_emu import Device
        with Device.open(sys.argv[1]) as device:
            device.write(0, bytes(range(256)) * 16)
            print("ready", flush=True)
            sys.stdin.read()
    """
    child = start_child(program, path)
    assert child.stdout.readline() == "ready\n"
    return child


def listed() -> dict | None:
    """What `list` says of it."""
    done = run("list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout).get(NAME)


class TestCreate:
    def test_shared(self, path: Path, user):
        """Programs that open its file share it, and it outlives them all."""
        with Device.open(path) as device:
            assert (device.params.advertised, device.params.real) == (64 << 20, 1 << 20)
            assert device.read(0, 256) == bytes(range(256))
        user.communicate()
        with Device.open(named.find(NAME)) as device:
            assert device.read(0, 256) == bytes(range(256))

    def test_twice(self, path: Path):
        assert error(run("create", NAME)) == f"cram-emu: {NAME}: there is a device of that name already"
        assert Device.open(path).params.real == 1 << 20

    @pytest.mark.parametrize("name", ["", "a/b", "../x", ".x", "a b", "x" * 101])
    def test_no_name(self, name: str):
        assert f"{name!r}: a name has letters" in error(run("create", name), 2)
        with pytest.raises(InvalidArgument):
            named.remove(name)

    def test_sizes(self):
        """A size that cannot be leaves no device behind."""
        assert "real capacity 134217728" in error(run("create", NAME, "--advertised", "64M", "--real", "128M"), 2)
        assert listed() is None

    def test_mounted_by_name(self, path: Path, start, where: Path):
        start("--device", NAME)
        assert (where / DEVICES / "mem0/path").read_text() == f"{path}\n"


class TestList:
    def test_processes(self, path: Path, user):
        """Who has it open, and whether it is stopped; nobody who has been killed."""
        entry = listed()
        with Device.open(path) as device:
            assert entry["used"] == device.stats.used > 0
        assert [process["pid"] for process in entry["processes"]] == [user.pid]
        user.send_signal(signal.SIGSTOP)
        wait_until(lambda: psutil.Process(user.pid).status() == "stopped", "the child has stopped")
        assert listed()["processes"] == [{"pid": user.pid, "state": "stopped"}]
        assert f"{user.pid} (stopped)" in run("list").stdout
        user.kill()
        user.wait(TIMEOUT)
        assert listed()["processes"] == []

    def test_damaged(self, path: Path):
        """A file that is no device is told, and keeps no other from being listed."""
        path.write_bytes(b"x" * 65536)
        assert str(path) in listed()["error"]


class TestRemove:
    def test_removed(self, path: Path):
        done = run("rm", NAME)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert not path.exists() and listed() is None

    def test_in_use(self, path: Path, user):
        assert error(run("rm", NAME)) == f"cram-emu: {NAME}: in use by process {user.pid}"
        assert path.exists()

    def test_user_killed(self, path: Path, user):
        user.kill()
        user.wait(TIMEOUT)
        assert run("rm", NAME).returncode == 0 and not path.exists()

    def test_damaged(self, path: Path):
        path.write_bytes(b"x" * 65536)
        assert run("rm", NAME).returncode == 0 and not path.exists()

    def test_missing(self):
        assert error(run("rm", NAME)) == f"cram-emu: {NAME}: no device of that name"
