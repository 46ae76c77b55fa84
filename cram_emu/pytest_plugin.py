"""Fixtures for projects that test their own code against the device; pytest finds them by itself.

    def test_survives(cram_device, cram_fault):
        cram_fault("store", probability=100)
        ...

Each test gets a device of its own. `@pytest.mark.cram_device(advertised="1G", real="64M", ...)` says which one, with
the arguments of cram_emu.Device.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_MAIN = "import sys; from cram_emu.cli import main; sys.exit(main())"
#: What `cram-emu mount` exits with where the host does not permit it.
_NOT_PERMITTED = 3


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "cram_device(advertised='64M', real='32M', ...): the device of cram_device and cram_mount; the latter takes"
        " the two sizes alone",
    )


def _arguments(request: pytest.FixtureRequest) -> dict:
    marker = request.node.get_closest_marker("cram_device")
    if marker is not None and marker.args:
        raise pytest.UsageError(f"cram_device: {marker.args[0]!r} has no name: advertised='1G', real='64M', ...")
    return {"advertised": "64M", "real": "32M", **(marker.kwargs if marker is not None else {})}


@pytest.fixture
def cram_device(request: pytest.FixtureRequest) -> Iterator:
    """A cram_emu.Device, closed after the test."""
    from cram_emu import Device

    with Device(**_arguments(request)) as device:
        yield device


@pytest.fixture
def cram_fault(cram_device) -> Iterator[Callable]:
    """cram_fault(name, **attributes): has a fault of cram_device strike, always unless told otherwise; the Fault. All are off
    again after the test."""
    used = []

    def strike(name: str, **attributes):
        fault = cram_device.faults[name]
        used.append(fault)
        fault.set(**{"probability": 100.0, **attributes})
        return fault

    yield strike
    if not cram_device.closed:
        for fault in used:
            fault.off()


@pytest.fixture
def cram_mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Where a machine with one device is mounted, as `cram-emu mount` does; skips where the host does not permit it."""
    where = tmp_path / "machine"
    where.mkdir()
    arguments = _arguments(request)
    command = [sys.executable, "-c", _MAIN, "mount"]
    for name in ("advertised", "real"):
        command += [f"--{name}", str(arguments.pop(name))]
    if arguments:
        raise pytest.UsageError(f"cram_mount: a mounted device takes no {', '.join(arguments)}")
    # In a session of its own: Ctrl-C is for pytest, which ends the server then.
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            [*command, where],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,
        ) as server,
    ):
        try:
            if not any(line.startswith("mounted on ") for line in server.stdout):
                said.seek(0)
                if server.wait() == _NOT_PERMITTED:
                    pytest.skip(said.read().strip())
                raise AssertionError(said.read())
            yield where
        finally:
            # Not umount, which is refused where the frame of a test that failed keeps a file open. The server unmounts
            # lazily.
            server.terminate()
