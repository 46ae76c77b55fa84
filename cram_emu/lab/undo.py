"""Changes of the host that are taken back when their context ends, on an exception too.

It knows no setting by name: who changes something says how it is undone. Nothing helps after
SIGKILL. Main thread only: signals are held back while something half done would stay.
"""

import errno
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from cram_emu.lab.signals import signals_held

_PATIENCE = 5.0  # seconds for udev to let go of a new block device, and for a cgroup to empty

Made = TypeVar("Made")


class Unavailable(Exception):
    """This host cannot show its own compressed memory; says why and what would help. Nothing was
    changed."""


@contextmanager
def undone(what: str, make: Callable[[ExitStack], Made]) -> Iterator[Made]:
    """What make(undo) returns; all that it put on undo is done, last first, when the block ends or
    make() fails. Unavailable when the host refuses."""
    undo = ExitStack()
    try:
        with signals_held():
            try:
                made = make(undo)
            except (OSError, subprocess.CalledProcessError) as error:
                raise Unavailable(f"the host refuses {what}: {_cause(error)}") from error
        yield made
    finally:
        with signals_held():
            undo.close()


def change(path: Path, value: object, undo: ExitStack) -> None:
    """Writes a setting, to be written back as it was."""
    before = path.read_text().strip()
    write(path, value)
    undo.callback(write, path, before)


def write(path: Path, value: object) -> None:
    try:
        path.write_text(f"{value}\n")
    except OSError as error:
        error.filename = str(path)  # a value that is refused comes without it
        raise


def run(tool: str, *arguments: object) -> None:
    # A session of its own: Ctrl-C reaches the whole foreground group, and must not end swapoff.
    command = [tool, *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, text=True, start_new_session=True)


def patiently(step: Callable[[], None]) -> None:
    """Does it, again while it is EBUSY, for some seconds."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return step()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _cause(error: OSError | subprocess.CalledProcessError) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"{' '.join(error.cmd)}: {error.stderr.strip()}"
    return f"{error.filename}: {error.strerror}"
