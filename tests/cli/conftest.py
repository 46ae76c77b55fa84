"""What the tests of the command line share."""

import os
import pty
import subprocess
from collections.abc import Callable, Sequence

import pytest


def _run_in_terminal(command: Sequence[str]) -> str:
    """Runs a command with a colour terminal of its own; returns all that the terminal was sent."""
    reader, writer = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    env |= {"TERM": "xterm-256color", "COLUMNS": "200"}
    process = subprocess.Popen(command, stdin=writer, stdout=writer, stderr=writer, env=env)
    os.close(writer)
    output = b""
    try:
        while chunk := os.read(reader, 65536):
            output += chunk
    except OSError:
        pass  # EIO: the last writer has closed its end
    os.close(reader)
    process.wait()
    return output.decode()


@pytest.fixture
def run_in_terminal() -> Callable[[Sequence[str]], str]:
    return _run_in_terminal
