"""Who runs cram-emu in the tests of this directory: root, and an ordinary user."""

import functools
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import cffi
import pytest

import cram_emu

NOBODY = 65534
MAIN = "import sys; from cram_emu.cli import main; sys.exit(main(sys.argv[1:]))"

# The packages that the tests themselves have: this one, and where its requirements are.
PACKAGES = [str(Path(module.__file__).parent.parent) for module in (cram_emu, cffi)]


@dataclass(frozen=True)
class User:
    uid: int
    python: str = sys.executable
    # For subprocess.run: who, and where, as an ordinary user may not enter where the tests are.
    options: dict = field(default_factory=lambda: {"cwd": "/", "env": _environment()})

    def command(self, *args: object) -> list[str]:
        """`cram-emu ARGS`."""
        return [self.python, "-c", MAIN, *map(str, args)]


def root() -> User:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    return User(0)


def ordinary() -> User:
    """Whoever runs the tests, or nobody where that is root."""
    if os.geteuid() != 0:
        return User(os.geteuid())
    python = _python_for_nobody()
    if python is None:
        pytest.skip(f"an ordinary user can execute neither {sys.executable} nor /usr/bin/python3")
    return User(NOBODY, python, _as_nobody())


def _environment() -> dict[str, str]:
    paths = [*PACKAGES, os.environ.get("PYTHONPATH")]
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "LC_ALL": "C.UTF-8",
    }


def _as_nobody() -> dict:
    options = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    return {"cwd": "/", "env": _environment()} | options


@functools.cache
def _python_for_nobody() -> str | None:
    """An interpreter below /root is out of its reach; Debian's may do."""
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            subprocess.run([python, "-c", "import cram_emu.cli"], check=True, **_as_nobody())
            return python
        except (OSError, subprocess.CalledProcessError):
            pass
    return None
