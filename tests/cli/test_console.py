"""What a terminal, a pipe and --json get."""

import json
import sys

import pytest

from cram_emu.cli.console import Console, plain_table


def test_plain_table():
    """Columns are aligned, and no line ends in blanks."""
    rows = [("userfaultfd", "yes", ""), ("zram", "partly", "without lz4")]
    assert plain_table(("what", "state", "value"), rows) == [
        "what         state   value",
        "userfaultfd  yes",
        "zram         partly  without lz4",
    ]


def test_piped(capsys: pytest.CaptureFixture):
    """A pipe gets plain text, markup characters as they are, and no document."""
    console = Console()
    console.say("[bold] 12 pages", style="red")
    console.document({"pages": 12})
    assert capsys.readouterr() == ("[bold] 12 pages\n", "")


def test_piped_progress(capsys: pytest.CaptureFixture):
    """Progress is a line for each tenth, with its note, however often it is reported."""
    with Console().progress("fill", 1000) as update:
        for done in range(0, 1001, 5):
            update(done, f"ratio {done / 1000:.1f}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fill  10 %  ratio 0.1"
    assert lines[-1] == "fill 100 %  ratio 1.0"
    assert len(lines) == 10


def test_progress_of_nothing(capsys: pytest.CaptureFixture):
    """No work at all is done at once."""
    with Console().progress("fill", 0) as update:
        update(0, "")
    assert capsys.readouterr().out == "fill 100 %\n"


def test_terminal(run_in_terminal):
    """A terminal gets styles, a bar that ends full, and the note as it is."""
    script = """
from cram_emu.cli.console import Console
console = Console()
console.say("[b] warned", style="red")
with console.progress("fill", 1000) as update:
    for done in range(0, 1001, 100):
        update(done, f"[i] ratio {done}")
"""
    output = run_in_terminal((sys.executable, "-c", script))
    assert "\x1b[31m[b] warned\x1b[0m" in output
    assert "100%" in output
    assert "[i] ratio 1000" in output


def test_json_on_terminal(run_in_terminal):
    """With --json the text goes to a terminal on standard error; the document is the same."""
    script = """
from cram_emu.cli.console import Console
console = Console(as_json=True)
console.say("filling")
console.document({"ratio": 1.85})
"""
    output = run_in_terminal((sys.executable, "-c", script)).replace("\r", "")
    assert "filling" in output
    assert '{\n  "ratio": 1.85\n}\n' in output


def test_json(capsys: pytest.CaptureFixture):
    """With --json a pipe gets the document and nothing else."""
    console = Console(as_json=True)
    console.say("filling")
    console.table(("a",), [("b",)])
    with console.progress("fill", 10) as update:
        update(10, "")
    console.document({"ratio": 1.85})
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"ratio": 1.85}, "")
