"""`cram-emu scenarios`, and every scenario of scripts/faults."""

import contextlib
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest
from support import wait_until

from cram_emu.cli import main
from cram_emu.errors import InvalidArgument, NotSupported
from cram_emu.lab import scenarios


@pytest.mark.usefixtures("skip_unless_userfaultfd")
@pytest.mark.parametrize("name", [scenario.name for scenario in scenarios.scenarios()])
def test_each(name: str):
    """What a scenario expects comes true."""
    result = scenarios.run(*scenarios.chosen([name]))
    if result.outcome == "skipped":
        pytest.skip(result.reason)
    assert result.outcome == "passed", result.output


@pytest.mark.parametrize("scenario", scenarios.scenarios(), ids=lambda scenario: scenario.name)
def test_theory(scenario):
    """Each begins with a paragraph that says what it is about."""
    assert len(scenario.theory) > 100 and scenario.theory.endswith(".")


@pytest.fixture
def own(tmp_path: Path, monkeypatch):
    """own(name, script): a scenario of that body, among no others."""

    def make(name: str, body: str) -> None:
        path = tmp_path / "scenarios" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n# About {name},\n# in two lines.\n\n{body}\n")
        path.chmod(0o755)

    every = scenarios.scenarios
    monkeypatch.setattr(scenarios, "scenarios", lambda directory=None: every(tmp_path / "scenarios"))
    return make


class Waiting:
    """A FIFO that a scenario waits for, and for ever: nobody writes to it."""

    def __init__(self, fifo: Path):
        self.fifo = fifo
        os.mkfifo(fifo)

    @contextlib.contextmanager
    def interrupted(self) -> Iterator[None]:
        """When somebody waits, this process has a Ctrl-C. Else, at the end of the context, none."""
        over = threading.Event()

        def interrupt() -> None:
            writer = os.open(self.fifo, os.O_WRONLY)
            if not over.is_set():
                os.kill(os.getpid(), signal.SIGINT)
            over.wait()
            os.close(writer)

        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            yield
        finally:
            over.set()
            os.close(os.open(self.fifo, os.O_RDONLY | os.O_NONBLOCK))
            thread.join()


@pytest.fixture
def waiting(tmp_path: Path) -> Waiting:
    return Waiting(tmp_path / "fifo")


def members(group: int) -> list[int]:
    """Who is of a process group, and has not ended."""
    found = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


COMMON = Path(__file__).parents[2] / "scripts" / "faults" / "common.sh"


class TestCommand:
    def test_outcomes(self, own, capsys, tmp_path):
        """Passed, skipped with its reason, failed with the expectation that did not hold: the exit code is 1."""
        own("good", "echo fine")
        own("lacking", f"source {COMMON}; skip no such program")
        own("wrong", f"source {COMMON}; expect 1 -eq 1 ones; expect 2 -eq 3 'twos and threes'; exit $failures")
        assert main(["scenarios", "--junit", str(tmp_path / "junit.xml")]) == 1
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        table = lines[lines.index("scenario outcome time") + 1 :]
        assert [(line.split()[0], line.split()[1]) for line in table] == [
            ("good", "passed"), ("lacking", "skipped"), ("wrong", "failed"),
        ]  # fmt: skip
        assert table[1].endswith(" s no such program")
        assert table[2].endswith(" twos and threes: 2, expected -eq 3")
        suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
        assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
        assert [[child.tag for child in case] for case in suite] == [
            ["system-out"], ["skipped", "system-out"], ["failure", "system-out"],
        ]  # fmt: skip
        assert main(["scenarios", "good"]) == 0

    def test_json(self, own, capsys):
        own("good", "printf 'a\\x01b'")
        assert main(["scenarios", "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)
        assert (found["name"], found["outcome"], found["output"]) == ("good", "passed", "a\x01b")
        assert "a?b" in scenarios.junit([scenarios.run(*scenarios.chosen([]))])

    def test_list(self, own, capsys):
        own("good", "exit 1")
        assert main(["scenarios", "--list"]) == 0
        assert capsys.readouterr().out == "good\n  About good, in two lines.\n"

    def test_unknown(self, own, capsys):
        own("good", "")
        assert main(["scenarios", "bad"]) == 2
        assert capsys.readouterr().err == "cram-emu: no scenario 'bad'; there are good\n"

    def test_nowhere_to_write(self, own, capsys, tmp_path):
        """That the results cannot be written is told before anything runs."""
        own("good", f"touch {tmp_path}/ran")
        assert main(["scenarios", "--junit", str(tmp_path / "nowhere" / "junit.xml")]) == 1
        assert capsys.readouterr() == ("", f"cram-emu: {tmp_path}/nowhere/junit.xml: No such file or directory\n")
        assert not (tmp_path / "ran").exists()

    def test_too_long(self, own, waiting):
        """One that waits for ever is ended with what it waits for, and cleans up."""
        own("endless", f"trap 'echo cleaned; exit 143' TERM; cat {waiting.fifo}")
        result = scenarios.run(*scenarios.chosen([]), time_limit_s=0.5)
        assert (result.outcome, result.code) == ("failed", 143)
        assert result.output.endswith("cleaned\n\nit took longer than 0.5 s")

    def test_talks_too_long(self, own):
        """Neither does one that never stops talking outlast its time."""
        own("talker", "while :; do echo more; done")
        result = scenarios.run(*scenarios.chosen([]), time_limit_s=0.2)
        assert result.output.endswith("\nit took longer than 0.2 s")

    def test_interrupted(self, own, waiting, tmp_path):
        """Ctrl-C, of which the terminal tells cram-emu alone, ends it as well, and it cleans up."""
        own("endless", f"trap 'touch {tmp_path}/cleaned; exit 130' TERM; cat {waiting.fifo}")
        with pytest.raises(KeyboardInterrupt), waiting.interrupted():
            scenarios.run(*scenarios.chosen([]))
        assert (tmp_path / "cleaned").exists()

    def test_killed(self, own, waiting, tmp_path):
        """One that does not end is killed with what it waits for, and its machine goes."""
        deaf = "trap() { builtin trap '' TERM; }"
        own("deaf", f"source {COMMON}; {deaf}; machine 1M 1M 4096; echo $where $$ >{tmp_path}/at; cat {waiting.fifo}")
        with pytest.raises(KeyboardInterrupt), waiting.interrupted():
            result = scenarios.run(*scenarios.chosen([]), grace_s=0)
            if result.outcome == "skipped":
                pytest.skip(result.reason)
        where, group = (tmp_path / "at").read_text().split()
        assert where not in Path("/proc/self/mounts").read_text() and not Path(where).parent.exists()
        assert not [*Path("/dev/shm").glob(f"{Path(where).name}*")]
        wait_until(lambda: not members(int(group)), "nobody of it is left")

    @pytest.mark.parametrize(
        ("end", "code"), (("kill $$", 143), ("exit 3", 3), ("false", 1), ("expect 1 -eq 2 ones", 1), ("true", 0))
    )
    def test_leaves_nothing(self, own, end, code):
        """However one ends, what it has for its end is done, its machines go, and its exit code tells."""
        own("ended", f'source {COMMON}; leave() {{ echo "leaves $where"; }}; machine 1M 1M; machine 1M 1M 4096; {end}')
        result = scenarios.run(*scenarios.chosen([]))
        if result.outcome == "skipped":
            pytest.skip(result.reason)
        assert result.code == code, result.output
        where = Path(re.search("^leaves (.*)", result.output, re.M)[1])
        assert not [*where.parent.glob(f"{where.name}*"), *Path("/dev/shm").glob(f"{where.name}*")]

    def test_not_there(self, tmp_path):
        with pytest.raises(NotSupported, match="come with the source tree"):
            scenarios.scenarios(tmp_path / "nowhere")
        with pytest.raises(InvalidArgument):
            scenarios.chosen(["x"])
