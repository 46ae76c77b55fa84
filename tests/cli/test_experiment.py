"""cram-emu experiment: small ones, end to end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

MAIN = "import sys; from cram_emu.cli import main; sys.exit(main())"
SMALL = "4M"

pytestmark = pytest.mark.usefixtures("skip_unless_userfaultfd")


def experiment(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", MAIN, "experiment", *args], capture_output=True, text=True)


@pytest.fixture(scope="module")
def told() -> dict:
    """What each tells with --json."""
    runs = {name: experiment(name, "--size", SMALL, "--json") for name in ("charging", "race")}
    assert [(run.returncode, run.stderr) for run in runs.values()] == [(0, "")] * 2
    return {name: json.loads(run.stdout) for name, run in runs.items()}


class TestCharging:
    def test_shown(self):
        """The three in columns, and what it means in words."""
        run = experiment("charging", "--size", SMALL)
        assert (run.returncode, run.stderr) == (0, "")
        rows = {line.split("  ")[0]: line.split() for line in run.stdout.splitlines()}
        assert rows["charged"][1:] == ["page", "size", "fuzzy"]
        assert rows["reclaim efficiency"][2] == "0.00"
        assert rows["OOM events (oom)"][-2:] == ["0", "0"]
        assert "gave 0 % of their charge back" in " ".join(run.stdout.split())

    def test_document(self, told):
        page, size, fuzzy = told["charging"]["outcomes"]
        assert [page["charging"], size["charging"], fuzzy["charging"]] == ["page", "size", "fuzzy"]
        assert page["oom"] > size["oom"] == fuzzy["oom"] == 0
        assert told["charging"]["plan"] == {"limit": 4 << 20, "seed": 1}

    def test_seed(self, told):
        """The same seed reclaims the same pages by size; another seed others."""
        args = ("charging", "--size", SMALL, "--json", "--seed")
        again, other = (json.loads(experiment(*args, seed).stdout) for seed in ("1", "2"))
        reclaimed = [outcome["outcomes"][1]["refaults"] for outcome in (told["charging"], again, other)]
        assert reclaimed[0] == reclaimed[1] != reclaimed[2]


class TestRace:
    def test_document(self, told):
        """Every loss is accounted for; who reads registers has none, who hears nothing has."""
        by_name: dict[str, list] = {}
        for cell in told["race"]["cells"]:
            by_name.setdefault(cell["word"]["name"], []).extend(cell["runs"])
        assert all(run["lost"] == run["dropped_writes"] for runs in by_name.values() for run in runs)
        assert sum(run["lost"] for run in by_name["lost; reads registers"]) == 0
        assert min(run["lost"] for run in by_name["lost"]) > 0
        assert told["race"]["suffices"]["lost"] is None
        assert told["race"]["suffices"]["lost; reads registers"] == min(told["race"]["plan"]["margins"])

    def test_shown(self):
        run = experiment("race", "--size", SMALL)
        assert (run.returncode, run.stderr) == (0, "")
        assert "each was counted as a dropped write and is poison to its reader" in " ".join(run.stdout.split())


class TestPlot:
    @pytest.mark.parametrize(
        ("name", "suffix", "magic"), (("charging", ".png", b"\x89PNG"), ("charging", ".svg", b"<?xml"), ("race", ".png", b"\x89PNG"))
    )
    def test_drawn(self, tmp_path: Path, name: str, suffix: str, magic: bytes):
        pytest.importorskip("matplotlib", reason="a plot needs matplotlib")
        where = tmp_path / f"plot{suffix}"
        assert experiment(name, "--size", SMALL, "--plot", str(where)).returncode == 0
        assert where.read_bytes().startswith(magic)


class TestUsage:
    @pytest.mark.parametrize(
        ("args", "code", "named"),
        (
            ((), 2, "experiment"),
            (("nonsense",), 2, "'nonsense'"),
            (("race", "--size", "lots"), 2, "lots"),
            (("race", "--seed", "x"), 2, "'x'"),
            (("race", "--size", "1M"), 2, "1048576"),
            (("race", "--size", "16T"), 2, str(16 << 40)),
            (("race", "--seed", str(2**64)), 2, str(2**64)),
            (("charging", "--size", "1000"), 2, "1000"),
            (("charging", "--size", "0"), 2, "0 bytes"),
            (("charging", "--size", "100T"), 2, str(100 << 40)),
            (("charging", "--seed", "-1"), 2, "seed -1"),
            (("race", "--plot", "race.gif"), 2, "race.gif"),
            (("race", "--plot", "/nonexistent/race.png"), 1, "/nonexistent/race.png"),
        ),
    )
    def test_refused(self, args, code, named):
        """Before anything is measured, by name, in one line."""
        run = experiment(*args)
        assert (run.returncode, run.stdout) == (code, "")
        assert named in run.stderr.splitlines()[-1]
        assert "Traceback" not in run.stderr

    def test_no_memory(self):
        """More memory than there is, is an error of one line."""
        limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, (4 << 30,) * 2); {MAIN}"
        run = subprocess.run(
            [sys.executable, "-c", limited, "experiment", "charging", "--size", "8G"], capture_output=True, text=True
        )
        assert (run.returncode, run.stderr) == (1, "cram-emu: 16 GiB of ordinary memory: Cannot allocate memory\n")
