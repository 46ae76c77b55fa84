"""What the tests of `cram-emu run` share: the command, and C programs to run with it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "programs"
COMMAND = str(Path(sys.executable).parent / "cram-emu")
TIMEOUT = 120
#: Smaller than what the C programs touch (SWEEP in program.h).
WINDOW = "16M"


def compiled(name: str, where: Path, *flags: str) -> str:
    """The program of that name, compiled."""
    program = where / name
    subprocess.run(
        ["gcc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", *flags]
        + ["-o", str(program), str(PROGRAMS / f"{name}.c")],
        check=True,
    )
    return str(program)


def run(*command: str, options=(), env=None, **kwargs) -> subprocess.CompletedProcess:
    """cram-emu run [options] -- command."""
    return subprocess.run(
        [COMMAND, "run", *options, "--", *command],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        **kwargs,
    )


def need(*programs: str) -> None:
    """Skips where a program of Debian's is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {' '.join(missing)}")
