"""The law while every fault strikes at random: what is read is right or poison, and counted. scripts/soak does it for longer."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from traffic import FIRST

pytestmark = pytest.mark.usefixtures("skip_unless_kernel_faults")
TRAFFIC = Path(__file__).parent / "traffic.py"
# It ends a hang by itself, and says where.
TIMEOUT = 300


def traffic(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, TRAFFIC, *options], capture_output=True, text=True, timeout=TIMEOUT)


def test_never_silently_wrong():
    """Every page is right or poison, every loss is counted, nobody hangs, and nothing is left behind."""
    done = traffic("--seed", "1", "--operations", "1500")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    seed, figures = done.stdout.splitlines()
    assert seed.startswith("seed 1: ") and seed.endswith(" --seed 1 --operations 1500")
    told = json.loads(figures)
    assert told["done"] == 10 * 1500
    # It was not for want of faults.
    assert told["losses"]["direct"]["right"] > 0
    assert all(told["struck"][name] > 0 for name in FIRST)
    assert told["struck"]["removal"] >= 2


@pytest.mark.parametrize(
    "damage, told",
    [("byte", r"in the end: page \d+: wrong from byte 1234: "), ("counters", r"direct: \d+ losses were met and ")],
    ids=("byte", "counters"),
)
def test_noticed(damage: str, told: str):
    """A single wrong bit; losses that the device does not count."""
    done = traffic("--seed", "1", "--operations", "400", "--damage", damage)
    assert done.returncode == 1
    seed, wrong = done.stdout.splitlines()
    assert re.match(f"wrong: {told}", wrong)
