"""`cram-emu top`: what it shows is what the device counts, and its keys do what the files do."""

import codecs
import errno
import json
import os
import pty
import select
import signal
import subprocess
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_mount import COMMAND, DEVICES, SMALL, TIMEOUT, error, run, start, where  # noqa: F401

from cram_emu import Device
from cram_emu.cli.top import PAGE, PLAIN


@pytest.fixture
def machine(start, where: Path) -> Path:
    start(*SMALL)
    return where


def number(machine: Path, name: str) -> int:
    return int((machine / DEVICES / "mem0" / name).read_text())


class Terminal:
    """`cram-emu top` on a terminal of its own."""

    def __init__(self, machine: Path):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            environment = os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "50"}
            os.execvpe(COMMAND[0], [*COMMAND, "top", str(machine)], environment)
        self.text = ""
        # A read may end in the middle of a character.
        self.decoder = codecs.getincrementaldecoder("utf-8")()

    def read_until(self, text: str) -> None:
        """Reads on from where it was found last; the end of the program ends the test."""
        while text not in self.text:
            assert select.select([self.fd], [], [], TIMEOUT)[0], f"{text!r} not in {self.text!r}"
            self.text += self.decoder.decode(os.read(self.fd, 65536))
        self.text = self.text.split(text, 1)[1]

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def end(self) -> int:
        """Its exit code, when it has said all."""
        while True:
            try:
                if not os.read(self.fd, 65536):
                    break
            except OSError as end:
                assert end.errno == errno.EIO
                break
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def terminal(machine: Path) -> Iterator[Callable[[], Terminal]]:
    opened: list[Terminal] = []

    def top() -> Terminal:
        opened.append(Terminal(machine))
        return opened[-1]

    yield top
    for each in opened:
        try:
            os.kill(each.pid, signal.SIGKILL)
            os.waitpid(each.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(each.fd)


class TestPipe:
    """A line a second for each device, of numbers only."""

    def test_samples(self, machine: Path):
        top = subprocess.Popen([*COMMAND, "top", machine], stdout=subprocess.PIPE, text=True)
        try:
            path = (machine / DEVICES / "mem0/path").read_text().strip()
            assert top.stdout.readline().split() == list(PLAIN)
            with Device.open(path) as device, device.map(0, "8M", window="64K") as mapping:
                while True:
                    for at in range(0, len(mapping), PAGE):
                        mapping[at] = at // PAGE % 255
                    sample = dict(zip(PLAIN, top.stdout.readline().split()))
                    if float(sample["faults/s"]) > 0:
                        break
                assert sample["device"] == "mem0"
                assert sample["processes"] == "2"
                assert int(sample["used"]) + int(sample["remaining"]) == 1 << 20
                assert float(sample["written_back/s"]) > 0
        finally:
            top.kill()
            top.communicate()

    def test_json(self, machine: Path):
        """One object a sample, with the same names."""
        command = [*COMMAND, "top", machine, "--json"]
        top = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            sample = json.loads(top.stdout.readline())
            assert tuple(sample) == PLAIN
            assert sample["device"] == "mem0" and sample["remaining"] == 1 << 20
        finally:
            top.kill()
            top.communicate()

    def test_reader_goes(self, machine: Path):
        command = " ".join([*map(repr, COMMAND), "top", str(machine)])
        script = f"{command} | head -2; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, timeout=TIMEOUT)
        assert done.returncode == 141 and done.stderr == b""

    def test_no_machine(self, tmp_path: Path):
        assert "no machine is mounted there" in error(run("top", tmp_path))


class TestTerminal:
    def test_shows_processes(self, machine: Path, terminal):
        top = terminal()
        top.read_until("mem0, node")
        with Device.open((machine / DEVICES / "mem0/path").read_text().strip()) as device:
            with device.map(0, "8M", window="64K") as mapping:
                mapping[0:PAGE] = b"\x55" * PAGE
                top.read_until(str(os.getpid()))
                top.read_until("8 MiB")
        top.type("q")
        assert top.end() == 0

    def test_poison(self, machine: Path, terminal):
        top = terminal()
        top.read_until("q quit")
        top.type("p0x1000\n")
        top.read_until("mem0: poison at 0x1000")
        assert number(machine, "poison_records") == 1

    def test_thresholds(self, machine: Path, terminal):
        """In whatever order they have to be written."""
        top = terminal()
        top.read_until("q quit")
        for low, high in ((600, 700), (100, 200)):
            top.type(f"t{low}K {high}K\n")
            top.read_until(f"lthresh {low} KiB, hthresh {high} KiB")
            assert number(machine, "lthresh") == low << 10
            assert number(machine, "hthresh") == high << 10

    @pytest.mark.parametrize(
        ("keys", "told"),
        [
            ("p0x1001\n", "0x1001: Invalid argument"),
            ("pnowhere\n", "'nowhere'"),
            ("t1\n", "'1': not two sizes"),
            ("t200K 100K\n", "lthresh 204800 is above hthresh 102400"),
            ("t100K 2M\n", "100K 2M: Invalid argument"),
        ],
    )
    def test_refusals(self, machine: Path, terminal, keys: str, told: str):
        before = number(machine, "lthresh"), number(machine, "hthresh")
        top = terminal()
        top.read_until("q quit")
        top.type(keys)
        top.read_until(told)
        assert number(machine, "poison_records") == 0
        assert (number(machine, "lthresh"), number(machine, "hthresh")) == before

    def test_unmounted(self, machine: Path, terminal):
        """It ends with the machine, and says so."""
        top = terminal()
        top.read_until("q quit")
        # Lazily: it may be reading. Then it is told of the server, else of the mount.
        subprocess.run(["umount", "--lazy", machine], check=True)
        top.read_until(f"cram-emu: {machine}: ")
        assert top.end() == 1

    def test_terminal_is_given_back(self, machine: Path, terminal):
        top = terminal()
        before = termios.tcgetattr(top.fd)
        top.read_until("q quit")
        assert termios.tcgetattr(top.fd) != before
        top.type("q")
        os.waitid(os.P_PID, top.pid, os.WEXITED | os.WNOWAIT)
        assert termios.tcgetattr(top.fd) == before
        assert top.end() == 0
