"""`cram-emu bench`: what it prints, in which form, and what it leaves behind."""

import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cram_emu.cli import main
from cram_emu.errors import NotPermitted
from cram_emu.lab import bench, cgroup, kernel_zswap, swaparea, zram

COMMAND = (sys.executable, "-c", "import sys; from cram_emu.cli import main; sys.exit(main())", "bench")
SMALL = ("--size", "512M", "--rounds", "1")
MIB = 1 << 20


def figures(job: str, environment=None, /, **arguments) -> dict[str, float]:
    """Stands in for a measurement."""
    if job in ("device", "zram", "managed", "zswap", "program"):
        names = ("mean", "p50", "p99", "max", "rate")
        accesses = {f"{loop}_{name}": 3.0 for loop in ("read", "write") for name in names}
        sequential = {"fill": 1234.0, "scan": 56.78}
        return accesses | sequential | {"memory": 100.0 * MIB, "shootdowns": 0.0}
    if job == "limits":
        return {"decompress": 2000.0, "store": 512.0 * MIB, "copy": 9000.0, "copy_fresh": 3000.0}
    if job == "hot":
        return {f"{n}_{pair}": 0.5 for n in ("device", "ordinary", "warm_up") for pair in range(10)}
    if job == "hot_program":
        return {"warm_up": 0.5, "measured": 0.5 if environment is None else 0.51}
    if job == "callbacks":
        return {f"{what}_{how}": 0.5 for what in ("freed", "approved") for how in ("page", "batch")}
    if job == "reader":
        return {f"{name}_{pair}": 2000.0 for name in ("quiet", "beside", "files") for pair in range(5)}
    return {
        "idle": {"memory": 2.0 * MIB, "create_ms": 1.5, "memory_page_tables": 4096.0},
        "metadata": {"metadata_per_page": 20.0, "sectors": 17.0, "pages": 1.0, "page_tables": 0.0},
        "full": {"payload": 98.0, "real": 100.0, "dropped_writes": 3.0},
    }[job]


@pytest.fixture
def pretend(monkeypatch) -> None:
    """All is measured in no time, the kernel's included."""
    monkeypatch.setattr(bench, "run_child", figures)
    monkeypatch.setattr(bench, "_run_zram", lambda plan, arguments: figures("zram"))
    monkeypatch.setattr(bench, "_run_zswap", lambda plan, result, arguments: figures("zswap"))
    monkeypatch.setattr(zram, "require", lambda: None)
    monkeypatch.setattr(kernel_zswap, "require", lambda: None)
    monkeypatch.setattr(bench, "_require_tree", lambda: None)
    monkeypatch.setattr(bench, "_seconds_of", lambda command: 0.06 if "run" in command else 0.02)


@pytest.fixture
def without_zram(pretend, monkeypatch) -> None:
    def refuse() -> None:
        raise zram.Unavailable("not root: swap and memory cgroups need it")

    monkeypatch.setattr(zram, "require", refuse)
    monkeypatch.setattr(kernel_zswap, "require", refuse)


def lines(capsys) -> Iterator[str]:
    return (" ".join(line.split()) for line in capsys.readouterr().out.splitlines())


class TestPlain:
    """Piped, every figure is on a line of its own with its unit."""

    def test_figures(self, pretend, capsys):
        assert main(["bench", *SMALL]) == 0
        out = list(lines(capsys))
        assert out[0] == (
            "512 MiB of pages with 1 KiB of entropy each; 64 MiB resident on either side;"
            " rounds: 1, ABBA"
        )
        for line in (
            "One thread",
            "2 threads",
            "device kernel zram device / zram",
            "fill, MiB/s 1234 (1234 .. 1234) 1234 (1234 .. 1234) 1",
            "sequential read, MiB/s 56.8 (56.8 .. 56.8) 56.8 (56.8 .. 56.8) 1",
            "random write, p99 µs 3.00 (3.00 .. 3.00) 3.00 (3.00 .. 3.00) 1",
            "TLB shootdowns, thousands 0.00 (0.00 .. 0.00) 0.00 (0.00 .. 0.00) -",
            "host memory, MiB 100 (100 .. 100) 100 (100 .. 100) 1",
            "lz4, a cold store of 512 MiB into fresh pages 2000 (2000 .. 2000)",
            "write-back on 1.00 (1.00 .. 1.00) 500 500 500",
            "files opened, read and closed, /s 2000 (2000 .. 2000)",
            "beside it, of those without 1.00 (1.00 .. 1.00)",
            "a page was freed 0.50 0.50",
            "managed memory's fill, over zswap at least 1 times 1 reached",
            "hot set, over ordinary memory 1.02 (1.02 .. 1.02)",
            "start-up of run, over the interpreter's, ms 40.0 (40.0 .. 40.0)",
            "a program's hot set, over ordinary memory at most 1.05 times 1.02 reached",
            "fill, over zram at least 2.5 times 1 not reached",
            "random write rate, 2 threads over 1 at least 1 times 1 reached",
            "metadata at most 84 bytes a touched page 20 reached",
        ):
            assert line in out
        assert not any("left out" in line for line in out)

    def test_left_out(self, without_zram, capsys):
        assert main(["bench", *SMALL]) == 0
        out = list(lines(capsys))
        assert "zram left out: not root: swap and memory cgroups need it" in out
        assert "fill, MiB/s 1234 (1234 .. 1234)" in out
        assert "fill, over zram at least 2.5 times - not measured" in out
        assert not any("kernel zram" in line for line in out)


class TestJson:
    """--json prints one document and nothing else."""

    def test_document(self, pretend, capsys):
        assert main(["bench", *SMALL, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["plan"] == {"size": 512 * MIB, "rounds": 1, "accesses": 100_000}
        assert document["left_out"] == {}
        assert [(s["side"], s["threads"]) for s in document["sides"]] == [
            ("device", 1),
            ("zram", 1),
            ("device", 2),
            ("zram", 2),
            ("managed", 1),
            ("zswap", 1),
        ]
        assert document["sides"][0]["runs"] == [figures("device")]
        assert document["sides"][0]["spread"]["fill"] == {
            "median": 1234.0,
            "low": 1234.0,
            "high": 1234.0,
        }
        assert {target["reached"] for target in document["targets"]} == {True, False}

    def test_left_out(self, without_zram, capsys):
        assert main(["bench", *SMALL, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["left_out"]["zram"].startswith("not root")
        assert {side["side"] for side in document["sides"]} == {"device", "managed"}


class TestUsage:
    """Sizes that cannot work end with exit code 2 and a message that names them."""

    @pytest.mark.parametrize(
        ("words", "named"),
        (
            (("--size", "lots"), "'lots'"),
            (("--size", "100M"), "size 104857600"),
            (("--rounds", "0"), "rounds 0"),
        ),
    )
    def test_refused(self, pretend, capsys, words, named):
        assert main(["bench", *words]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert named in captured.err


def test_no_userfaultfd(pretend, monkeypatch, capsys):
    """Exit code 3 and the device's own message, before anything is measured."""

    def refuse(**parameters) -> None:
        raise NotPermitted("userfaultfd is not permitted")

    monkeypatch.setattr(bench, "Device", refuse)
    assert main(["bench", *SMALL]) == 3
    assert capsys.readouterr().err == "cram-emu: userfaultfd is not permitted\n"


@pytest.mark.usefixtures("skip_unless_userfaultfd")
class TestForReal:
    """The whole bench, small. How fast anything is, is not asserted."""

    def test_all(self):
        run = subprocess.run([*COMMAND, *SMALL, "--json"], capture_output=True, text=True, timeout=240)
        assert (run.returncode, run.stderr) == (0, "")
        document = json.loads(run.stdout)
        runs = [figures for side in document["sides"] for figures in side["runs"]]
        for measured in (*runs, *document["limits"]["runs"], *document["memory"].values()):
            assert all(math.isfinite(figure) for figure in measured.values())
        assert swaparea.swaps() == []

    @pytest.mark.parametrize(("number", "code"), ((signal.SIGINT, 130), (signal.SIGTERM, 143)))
    def test_ended_early(self, number, code):
        """While zram swap is on: the bench ends at once and swap is off."""
        try:
            zram.require()
        except zram.Unavailable as reason:
            pytest.skip(f"no zram swap here: {reason}")
        with subprocess.Popen([*COMMAND, *SMALL], stdout=subprocess.PIPE, text=True) as run:
            while not swaparea.swaps():
                assert run.poll() is None
            run.send_signal(number)
            run.communicate(timeout=30)
        assert run.returncode == code
        assert swaparea.swaps() == []
        assert not list(cgroup.memory_hierarchy().mount.glob("cram-emu-*"))
