"""The life of `cram-emu mount`: how it begins, every way it ends, and what it leaves: nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import wait_until

from cram_emu import Device
from cram_emu import named

COMMAND = (sys.executable, "-c", "import sys; from cram_emu.cli import main; sys.exit(main())")
SMALL = ("--advertised", "64M", "--real", "1M")
DEVICES = "sys/kernel/debug/cram_device"
TIMEOUT = 60


def run(*args: object) -> subprocess.CompletedProcess:
    command = [*COMMAND, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)


def mounted(where: Path) -> bool:
    return any(line.split()[4] == str(where) for line in open("/proc/self/mountinfo"))


def files_of(server: subprocess.Popen) -> set[str]:
    """Its device files. Those of other servers come and go: each new one takes dead ones' away."""
    return {n for n in os.listdir(named.directory()) if n.startswith(f"{server.pid}-")}


def error(result: subprocess.CompletedProcess, code: int = 1) -> str:
    """The one line on standard error, of a run that failed and did nothing."""
    assert (result.returncode, result.stdout) == (code, "")
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture
def where(tmp_path: Path) -> Iterator[Path]:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK) or os.geteuid() != 0:
        pytest.skip("needs root and /dev/fuse")
    path = tmp_path / "mount"
    path.mkdir()
    yield path
    while mounted(path):
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture
def start(where: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """start(*options): in the foreground, and serving."""
    servers = []

    def serve(*options: object) -> subprocess.Popen:
        command = [*COMMAND, "mount", str(where), *map(str, options or SMALL)]
        pipe = subprocess.PIPE
        server = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
        servers.append(server)
        assert any(line.startswith("mounted on") for line in server.stdout)
        return server

    yield serve
    for server in servers:
        server.kill()
        server.communicate()


class TestEnds:
    """The mount, the device file and the process go together, with exit code 0 and no word."""

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_signal(self, start, where: Path, number: int):
        server = start()
        assert files_of(server)
        server.send_signal(number)
        assert (server.wait(TIMEOUT), server.stderr.read()) == (0, "")
        assert not mounted(where) and not files_of(server)

    def test_umount(self, start, where: Path):
        server = start()
        subprocess.run(["umount", where], check=True)
        assert (server.wait(TIMEOUT), server.stderr.read()) == (0, "")
        assert not files_of(server)

    def test_with_a_file_open(self, start, where: Path):
        """Whoever keeps a file open holds nothing up: he gets ENOTCONN."""
        server = start()
        held = os.open(where / DEVICES / "mem0/used", os.O_RDONLY)
        try:
            server.terminate()
            assert server.wait(TIMEOUT) == 0
            assert not mounted(where) and not files_of(server)
            with pytest.raises(OSError, match="not connected"):
                os.read(held, 4096)
        finally:
            with contextlib.suppress(OSError):
                os.close(held)

    def test_programs_keep_the_device(self, start, where: Path):
        """What a program has open survives the mount that offered it."""
        server = start()
        with Device.open((where / DEVICES / "mem0/path").read_text().strip()) as device:
            server.terminate()
            assert server.wait(TIMEOUT) == 0
            device.write(0, b"\x55" * 4096)
            assert device.read(0, 4096) == b"\x55" * 4096


class TestRecovery:
    def test_killed_server(self, start, where: Path):
        """Its dead mount and its device file are taken away by the next one."""
        server = start()
        path = Path((where / DEVICES / "mem0/path").read_text().strip())
        server.kill()
        server.wait(TIMEOUT)
        with pytest.raises(OSError, match="not connected"):
            os.listdir(where)
        assert path.exists()
        assert "killed" in error(run("stat", where))
        server = start()
        assert (where / DEVICES / "mem0/used").read_text() == "0\n"
        assert not path.exists()

    def test_device_of_a_killed_server(self, start, where: Path, tmp_path: Path):
        """A device of somebody else's file stays, and can be mounted again."""
        with Device("64M", "1M", path=tmp_path / "device") as device:
            device.write(0, b"\x55" * 4096)
            server = start("--device", tmp_path / "device")
            server.kill()
            server.wait(TIMEOUT)
            start("--device", tmp_path / "device")
            assert (where / DEVICES / "mem0/pages_same").read_text() == "1\n"


class TestRefused:
    """One line that says why, exit code 1, and nothing has changed."""

    def test_missing(self, where: Path):
        message = error(run("mount", where / "none"))
        assert message == f"cram-emu: {where}/none: no such directory"

    def test_file(self, where: Path):
        (where / "file").touch()
        assert "not a directory" in error(run("mount", where / "file"))

    def test_not_empty(self, where: Path):
        (where / "file").touch()
        assert "busy, the directory is not empty" in error(run("mount", where))

    def test_mounted_already(self, start, where: Path):
        server = start()
        files = files_of(server)
        assert "busy, a file system of type fuse.cram_emu" in error(run("mount", where))
        assert files_of(server) == files

    def test_device_mounted_already(self, start, where: Path, tmp_path: Path):
        start()
        path = (where / DEVICES / "mem0/path").read_text().strip()
        other = tmp_path / "other"
        other.mkdir()
        message = error(run("mount", other, "--device", path))
        assert message == f"cram-emu: {path}: the device is mounted already"
        assert not mounted(other)
        assert (where / DEVICES / "mem0/clients").read_text() == "1\n"

    def test_device_given_twice(self, where: Path, tmp_path: Path):
        with Device("64M", "1M", path=tmp_path / "device"):
            twice = ("--device", tmp_path / "device") * 2
            assert "mounted already" in error(run("mount", where, *twice))

    def test_no_device(self, where: Path, tmp_path: Path):
        assert "no such device file" in error(run("mount", where, "--device", tmp_path / "none"))

    def test_foreign_device(self, where: Path, tmp_path: Path):
        (tmp_path / "foreign").write_bytes(b"x" * 65536)
        message = error(run("mount", where, "--device", tmp_path / "foreign"))
        assert str(tmp_path / "foreign") in message

    def test_size(self, where: Path):
        result = run("mount", where, "--real", "lots")
        assert result.returncode == 2 and "lots" in result.stderr
        assert "real capacity 2097152" in error(run("mount", where, "--advertised", "1M", "--real", "2M"), 2)

    def test_daemon(self, where: Path):
        """In the background too, the one who started it hears of it."""
        assert "no such directory" in error(run("mount", where / "none", "--daemon"))
        none = ("--device", where / "none")
        assert "no such device file" in error(run("mount", where, "--daemon", *none))


class TestDaemon:
    def test_returns_when_it_serves(self, where: Path):
        result = run("mount", where, "--daemon", "--json", *SMALL)
        assert (result.returncode, result.stderr) == (0, "")
        path = (where / DEVICES / "mem0/path").read_text().strip()
        assert json.loads(result.stdout) == {"mountpoint": str(where), "devices": {"mem0": path}}
        subprocess.run(["umount", where], check=True)
        wait_until(lambda: not os.path.exists(path), "the daemon has ended")

    def test_relative_paths(self, where: Path, tmp_path: Path):
        """They are the caller's, though the daemon lives in the root directory."""
        with Device("64M", "1M", path=tmp_path / "device"):
            command = [*COMMAND, "mount", "mount", "--device", "device", "--daemon"]
            result = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=TIMEOUT)
            assert result.returncode == 0
            path = (where / DEVICES / "mem0/path").read_text()
            assert path == f"{tmp_path}/device\n"


class TestStat:
    def test_json(self, start, where: Path):
        start()
        result = run("stat", where, "--json")
        assert result.returncode == 0
        devices = json.loads(result.stdout)
        assert list(devices) == ["mem0"]
        assert devices["mem0"]["advertised"] == 64 << 20
        assert devices["mem0"]["interrupts/lthresh"] == 0

    def test_text(self, start, where: Path):
        start()
        lines = [line.split(maxsplit=1) for line in run("stat", where).stdout.splitlines()]
        told = dict(lines)
        assert (told["advertised"], told["real"], told["ratio"]) == ("64 MiB", "1 MiB", "0.00")

    def test_faults(self, start, where: Path):
        """Attributes of faults are words and fractions: they are no registers, and whoever reads those does not stumble."""
        start()
        before = json.loads(run("stat", where, "--json").stdout)["mem0"]
        store = where / DEVICES / "mem0/fail_cram_store"
        (store / "probability").write_text("0.5\n")
        (store / "distribution").write_text("pareto\n")
        told = json.loads(run("stat", where, "--json").stdout)["mem0"]
        assert sorted(told) == sorted(before) and not any("fail" in name for name in told)

    def test_not_mounted(self, where: Path):
        assert error(run("stat", where)) == f"cram-emu: {where}: no machine is mounted there"


class TestEvents:
    def test_history(self, start, where: Path):
        start()
        assert run("events", where).stdout == ""
        inject = where / "sys/kernel/debug/cxl/mem0/inject_poison"
        inject.write_text("64\n")
        text = run("events", where).stdout.splitlines()
        assert [" cxl_poison: " in text[0], " cxl_general_media: " in text[1]] == [True, True]
        first, second = map(json.loads, run("events", where, "--json").stdout.splitlines())
        assert (first["event"], first["trace_type"], first["dpa"]) == ("cxl_poison", "Inject", "0x40")
        assert second["log"] == "Informational" and second["comp_id"] == " ".join(["00"] * 16)

    def test_follow(self, start, where: Path):
        """Lines as they come; it ends with the mount."""
        server = start()
        command = [*COMMAND, "events", "--follow", "--json", str(where)]
        inject = where / "sys/kernel/debug/cxl/mem0/inject_poison"
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
            for dpa in (0, 64, 128):
                inject.write_text(f"{dpa}\n")
                assert json.loads(follower.stdout.readline())["dpa"] == hex(dpa)
                assert json.loads(follower.stdout.readline())["event"] == "cxl_general_media"
            server.terminate()
            assert (follower.stdout.read(), follower.wait(TIMEOUT)) == ("", 0)

    def test_server_is_killed(self, start, where: Path):
        server = start()
        command = [*COMMAND, "events", "--follow", str(where)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as follower:
            (where / "sys/kernel/debug/cxl/mem0/inject_poison").write_text("0\n")
            follower.stdout.readline()
            server.kill()
            _, errors = follower.communicate(timeout=TIMEOUT)
        assert follower.returncode == 1
        assert errors == f"cram-emu: {where}: its server was killed; mount it again\n"
