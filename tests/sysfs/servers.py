"""Servers in processes of their own, for tests that mount."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cram_emu.errors import NotSupported
from cram_emu.sysfs import fuse

CLI = (sys.executable, "-c", "import sys; from cram_emu.cli import main; sys.exit(main())")
SMALL = ("--advertised", "64M", "--real", "1M")
TIMEOUT = 60


@dataclasses.dataclass
class Server:
    """A server process and its tree."""

    process: subprocess.Popen
    root: Path

    @classmethod
    def start(cls, root: Path, *options: str) -> "Server":
        """Mounts on root, in the foreground; returns when it serves."""
        command = [*CLI, "mount", str(root), *(options or SMALL)]
        pipe = subprocess.PIPE
        server = cls(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True), root)
        for line in server.process.stdout:
            if line.startswith("mounted on "):
                return server
        raise AssertionError(server.process.stderr.read())

    def path(self, path: str) -> Path:
        return self.root / path

    def read(self, path: str) -> str:
        return self.path(path).read_text()

    def write(self, path: str, text: str | bytes) -> None:
        """One write(2), as a shell's echo does it."""
        fd = os.open(self.path(path), os.O_WRONLY | os.O_TRUNC)
        try:
            data = text.encode() if isinstance(text, str) else text
            assert os.write(fd, data) == len(data)
        finally:
            os.close(fd)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT)

    def end(self) -> None:
        """Whatever state it is in: afterwards neither process nor mount is left."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.communicate()
        subprocess.run(["umount", "--lazy", self.root], stderr=subprocess.DEVNULL)


def skip_unless_library(name: str) -> None:
    try:
        fuse.load(name)
    except NotSupported as error:
        pytest.skip(str(error))
