"""A device's files, served and read in processes of their own: `python -m cram_emu.lab.tree ROLE ...`.

    serve SIZE DIRECTORY    mounts a new device until its input ends; prints the device's file
    read DIRECTORY          opens, reads and closes the device's registers, one after another, until its input
                            ends; prints how many, and in how many seconds
"""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cram_emu.errors import CramError
from cram_emu.sysfs import fuse
from cram_emu.sysfs.machine import Machine
from cram_emu.sysfs.registers import COUNTS, DEVICES


class TreeFailed(CramError):
    """The process that serves the files, or reads them, ended early; the text says why."""


class _Role:
    """A process of this module. It ends with its input, and so with the process that started it."""

    def __init__(self, *words: object):
        command = [sys.executable, "-P", "-m", "cram_emu.lab.tree", *map(str, words)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self.greeting = self.line()

    def line(self) -> str:
        """The next that it says. TreeFailed: it has ended instead."""
        line = self._process.stdout.readline()
        if not line:
            _, said = self._process.communicate()
            raise TreeFailed((said.strip().splitlines() or ["it said nothing"])[-1])
        return line.strip()

    def end(self) -> None:
        """Has it finish, and waits."""
        self._process.stdin.close()
        self._process.stdin = None

    def close(self) -> None:
        if self._process.stdin is not None:
            self.end()
        self._process.communicate()


@contextmanager
def served(size: int) -> Iterator[tuple[Path, Path]]:
    """A device of so many bytes, all of them real: its files' directory, and the file that it lies in.

    TreeFailed: no FUSE here, or it may not be mounted."""
    with ExitStack() as cleanup:
        where = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="cram_emu-"))
        server = _Role("serve", size, where)
        cleanup.callback(server.close)
        yield Path(where), Path(server.greeting)


class Reader:
    """Reads the files from now until finish()."""

    def __init__(self, where: Path):
        self._role = _Role("read", where)

    def finish(self) -> float:
        """Files a second: opened, read and closed."""
        self._role.end()
        count, seconds = json.loads(self._role.line())
        self._role.close()
        return count / seconds


def _serve(size: str, where: str) -> None:
    # A terminal's Ctrl-C is for whoever started this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    machine = Machine()
    memdev = machine.create(size, size)
    mount = fuse.Mount(machine, Path(where), fuse.load())
    mount.start()
    try:
        print(memdev.path, flush=True)
        sys.stdin.read()
    finally:
        mount.stop()
        machine.close()


def _read(where: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    files = [str(Path(where, DEVICES, "mem0", name)) for name in COUNTS]
    print("ready", flush=True)
    count, start = 0, time.monotonic()
    for file in itertools.cycle(files):
        fd = os.open(file, os.O_RDONLY)
        os.read(fd, 4096)
        os.close(fd)
        count += 1
        if count % len(files) == 0 and select.select([sys.stdin], [], [], 0)[0]:
            break
    print(json.dumps([count, time.monotonic() - start]), flush=True)


if __name__ == "__main__":
    {"serve": _serve, "read": _read}[sys.argv[1]](*sys.argv[2:])
