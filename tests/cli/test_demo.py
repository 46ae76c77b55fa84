"""The demo on a small device, in processes of its own, and with something off that it must see."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SMALL = ("--advertised", "64M", "--real", "8M")
MIB = 1 << 20

MAIN = "import sys; from cram_emu.cli import main; sys.exit(main())"


def demo(*args: str, sabotage: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the demo with its output piped, after the lines of `sabotage`."""
    return subprocess.run(
        [sys.executable, "-c", f"{sabotage}\n{MAIN}", "demo", *args],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def told() -> dict:
    """The figures of one run."""
    run = demo(*SMALL, "--json")
    assert (run.returncode, run.stderr) == (0, "")
    return json.loads(run.stdout)


class TestFigures:
    """The figures of the acts fit each other and the device."""

    def test_device(self, told: dict) -> None:
        assert (told["advertised"], told["real"]) == (64 * MIB, 8 * MIB)

    def test_fill_ends_at_the_low_threshold(self, told: dict) -> None:
        fill = told["fill"]
        assert fill["interrupt"]["name"] == "lthresh"
        assert fill["interrupt"]["remaining"] <= 8 * MIB // 10
        assert fill["used"] + fill["remaining"] == 8 * MIB
        assert fill["dropped_writes"] == 0
        assert fill["written"] == sum(part["bytes"] for part in fill["parts"])

    def test_real_files_shrink_and_archives_do_not(self, told: dict) -> None:
        ratio = {part["name"]: part["ratio"] for part in told["fill"]["parts"]}
        assert ratio["Python sources"] > 1.5
        assert told["fill"]["written"] > told["fill"]["used"]

    def test_recovery_ends_at_the_high_threshold(self, told: dict) -> None:
        recovery = told["recovery"]
        assert recovery["interrupt"]["name"] == "hthresh"
        assert recovery["remaining"] >= 8 * MIB // 5
        assert recovery["trimmed"] > 0

    def test_nothing_is_lost_when_the_warning_is_obeyed(self, told: dict) -> None:
        assert told["recovered"] == {
            "intact": told["fill"]["written"] // 4096,
            "poisoned": 0,
            "wrong": 0,
        }

    def test_overflow_poisons(self, told: dict) -> None:
        overflow = told["overflow"]
        assert overflow["interrupt"]["name"] == "lthresh"
        assert overflow["dropped_writes"] >= 64
        assert overflow["returned"] is None
        assert overflow["used"] <= 8 * MIB
        assert 0 < overflow["poisoned"] <= overflow["dropped_writes"]

    def test_machine_check(self, told: dict) -> None:
        check = told["machine_check"]
        assert check["signal"] == signal.SIGBUS
        assert check["siginfo"] == {
            "signal": signal.SIGBUS,
            "code": 4,
            "address": check["address"],
            "lsb": 12,
        }
        assert check["address"] % 4096 == 0x123
        assert check["faults_survived"] > 0
        assert hex(told["overflow"]["sample"]) in check["caught"]

    def test_every_page_is_accounted_for(self, told: dict) -> None:
        verdict = told["verdict"]
        assert verdict["wrong"] == 0
        assert verdict["poisoned"] == told["overflow"]["poisoned"]
        assert sum(verdict.values()) * 4096 == told["fill"]["written"] + told["overflow"]["written"]


class TestShown:
    """A pipe gets plain lines, a terminal colour and bars, and both the six acts."""

    def acts(self, text: str) -> list[str]:
        return re.findall(r"^(\d)\. ", text, re.MULTILINE)

    def test_piped(self) -> None:
        run = demo(*SMALL)
        assert (run.returncode, run.stderr) == (0, "")
        assert self.acts(run.stdout) == list("123456")
        assert "\x1b" not in run.stdout and "\r" not in run.stdout
        assert len(run.stdout.splitlines()) < 100
        assert "BUS_MCEERR_AR" in run.stdout
        assert "No page is silently wrong." in run.stdout

    def test_without_ptrace(self) -> None:
        run = demo(
            *SMALL,
            sabotage="""
from cram_emu.lab import tracer
def refuse(*_): raise PermissionError
tracer._ptrace = refuse
""",
        )
        assert run.returncode == 0
        assert "ptrace is not permitted here" in run.stdout

    def test_terminal(self) -> None:
        status, text = on_terminal("demo", *SMALL)
        assert os.waitstatus_to_exitcode(status) == 0
        assert "\x1b[" in text and "━" in text
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r\n", "\n")
        assert self.acts(plain) == list("123456")


def on_terminal(*args: str) -> tuple[int, str]:
    """Runs a subcommand on a terminal of its own; returns its wait status and what it showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(sys.executable, [sys.executable, "-c", MAIN, *args])
    shown = b""
    with open(terminal, "rb", buffering=0) as screen:
        while True:
            try:
                shown += screen.read(65536)
            except OSError:  # the terminal's other end is closed
                break
    return os.waitpid(pid, 0)[1], shown.decode()


class TestUsage:
    """Sizes that leave no room for the story are refused, by name."""

    @pytest.mark.parametrize(
        ("args", "named"),
        [
            (("--real", "lots"), "lots"),
            (("--real", "1M"), "1 MiB"),
            (("--advertised", "64M", "--real", "32M"), "64 MiB"),
        ],
    )
    def test_sizes(self, args: tuple[str, ...], named: str) -> None:
        run = demo(*args)
        assert run.returncode == 2
        assert named in run.stderr
        assert run.stdout == ""

    def test_exit_codes_are_documented(self) -> None:
        help_text = demo("--help").stdout
        assert "silently wrong" in help_text and "userfaultfd" in help_text


class TestSabotage:
    """What must not happen is noticed when it does."""

    def test_a_wrong_page(self) -> None:
        run = demo(
            *SMALL,
            sabotage="""
from cram_emu import Device
read = Device.read
def corrupt(self, dpa, length):
    data = bytearray(read(self, dpa, length))
    if self.stats.dropped_writes and dpa <= 5 << 20 < dpa + length:
        data[(5 << 20) - dpa] ^= 1
    return bytes(data)
Device.read = corrupt
""",
        )
        assert run.returncode == 1
        assert "Silently wrong pages: 1." in run.stdout

    def test_a_loss_that_the_warning_should_have_prevented(self) -> None:
        run = demo(
            *SMALL,
            sabotage="""
from cram_emu import Device
trim = Device.discard
def discard(self, dpa, length):
    trim(self, dpa, length)
    self.poison.inject(5 << 20)
Device.discard = discard
""",
        )
        assert run.returncode == 1
        assert "poisoned=1" in run.stderr

    def test_no_interrupt(self) -> None:
        run = demo(
            *SMALL, sabotage="from cram_emu import Device; Device.on_interrupt = lambda *_: None"
        )
        assert run.returncode == 1
        assert "no lthresh" in run.stderr

    def test_a_reader_that_survives(self) -> None:
        run = demo(
            *SMALL,
            sabotage="""
from cram_emu.lab import story
story.READER = story.READER.replace("memory[poisoned]", "memory[intact]")
""",
        )
        assert run.returncode == 1
        assert "did not die by SIGBUS" in run.stderr

    def test_a_reader_that_dies_of_something_else(self) -> None:
        run = demo(
            *SMALL,
            sabotage="""
from cram_emu.lab import story
story.READER = story.READER.replace(
    "memory[poisoned]", "import signal; signal.raise_signal(signal.SIGBUS)"
)
""",
        )
        assert run.returncode == 1
        assert "wrong siginfo" in run.stderr

    def test_userfaultfd_is_not_permitted(self) -> None:
        run = demo(
            *SMALL,
            sabotage="""
from cram_emu import CramError, Device
class Refused(CramError, PermissionError): pass
def refuse(*_, **__): raise Refused("userfaultfd is not permitted")
Device.map = refuse
""",
        )
        assert run.returncode == 3
        assert "userfaultfd" in run.stderr


class TestNothingLeft:
    """Ctrl-C ends it at any moment, with no process and no file left."""

    @pytest.mark.parametrize("delay", [0.0, 0.5, 1.5])
    def test_interrupt(self, delay: float) -> None:
        before = set(os.listdir("/dev/shm"))
        with subprocess.Popen(
            [sys.executable, "-c", MAIN, "demo", "--advertised", "1G", "--real", "128M"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as run:
            run.stdout.readline()
            time.sleep(delay)
            run.send_signal(signal.SIGINT)
            _, errors = run.communicate(timeout=30)
        assert (run.returncode, errors) == (130, b"cram-emu: interrupted\n")
        assert processes_of_session(run.pid) == []
        assert set(os.listdir("/dev/shm")) <= before


def processes_of_session(session: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found
