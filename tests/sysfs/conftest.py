"""A machine without a mount, and servers that mount one, by both FUSE libraries."""

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cram_emu.errors import NotSupported
from cram_emu.sysfs import fuse
from cram_emu.sysfs.machine import Machine

CLI = (sys.executable, "-c", "import sys; from cram_emu.cli import main; sys.exit(main())")
TIMEOUT = 60


@pytest.fixture
def machine() -> Iterator[Machine]:
    """One device of 64 MiB that has 1 MiB."""
    machine = Machine()
    machine.create("64M", "1M")
    yield machine
    machine.close()


@dataclasses.dataclass
class Server:
    """A server process and its tree."""

    process: subprocess.Popen
    root: Path

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


@pytest.fixture
def skip_unless_fuse() -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is not there, or not permitted")
    if os.geteuid() != 0:
        pytest.skip("needs root")


def skip_unless_library(name: str) -> None:
    try:
        fuse.load(name)
    except NotSupported as error:
        pytest.skip(str(error))


@pytest.fixture
def serve(skip_unless_fuse, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """serve(*options, at=None): a server in the foreground. At the end no mount of it is left."""
    servers: list[Server] = []

    def start(*options: str, at: Path | None = None) -> Server:
        root = at or tmp_path / f"mount{len(servers)}"
        root.mkdir(exist_ok=True)
        command = [*CLI, "mount", str(root), *(options or ("--advertised", "64M", "--real", "1M"))]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        server = Server(process, root)
        servers.append(server)
        for line in process.stdout:
            if line.startswith("mounted on "):
                return server
        raise AssertionError(process.stderr.read())

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.terminate()
            try:
                server.process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                server.process.kill()
        server.process.communicate()
        subprocess.run(["umount", "--lazy", server.root], stderr=subprocess.DEVNULL)


@pytest.fixture(params=fuse.LIBRARIES)
def server(request, serve) -> Server:
    skip_unless_library(request.param)
    return serve("--advertised", "64M", "--real", "1M", "--fuse", request.param)
