"""A machine without a mount, and servers that mount one, by both FUSE libraries."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from managed_tree import Managed
from servers import SMALL, Server, skip_unless_library

from cram_emu.sysfs import fuse
from cram_emu.sysfs.machine import Machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    """One device of 64 MiB that has 1 MiB."""
    machine = Machine()
    machine.create("64M", "1M")
    yield machine
    machine.close()


@pytest.fixture
def skip_unless_fuse() -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is not there, or not permitted")
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture
def serve(skip_unless_fuse, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """serve(*options): a server in the foreground. At the end no mount of it is left."""
    servers: list[Server] = []

    def start(*options: str) -> Server:
        root = tmp_path / f"mount{len(servers)}"
        root.mkdir()
        servers.append(Server.start(root, *options))
        return servers[-1]

    yield start
    for server in servers:
        server.end()


@pytest.fixture(params=fuse.LIBRARIES)
def server(request, serve) -> Server:
    skip_unless_library(request.param)
    return serve(*SMALL, "--fuse", request.param)


@pytest.fixture
def managed(skip_unless_userfaultfd, tmp_path: Path) -> Iterator[Managed]:
    """A manager with one node and a pool, and a machine that shows both."""
    managed = Managed(tmp_path)
    yield managed
    managed.close()
