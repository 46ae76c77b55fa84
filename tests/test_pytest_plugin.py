"""The fixtures of cram_emu.pytest_plugin, in other projects' tests: the example, and ones that must fail."""

import subprocess
import sys
from pathlib import Path

import psutil

TOP = Path(__file__).parent.parent


def run(directory: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", directory, *words, directory],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_example():
    """The example passes, or says why not."""
    done = run(TOP / "examples" / "cache", "-rs")
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout or ("5 passed, 1 skipped" in done.stdout and "SKIPPED" in done.stdout)


def test_example_can_fail(tmp_path):
    """Its twin: a cache that believes what it has written fails the tests of what is lost, and no others."""
    for name in ("cache.py", "test_cache.py"):
        text = (TOP / "examples" / "cache" / name).read_text()
        (tmp_path / name).write_text(text.replace("self._known.discard(key)", "return value_lost"))
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stdout.count("FAILED test_cache.py::test_lost_values_are_computed_again") == 3
    assert "3 failed" in done.stdout


def test_off_again(tmp_path):
    """A fault ends with its test; a device with the test that it was made for, a mount too, though a file is open."""
    (tmp_path / "test_it.py").write_text(
        """
import pytest
seen = []

def test_one(cram_device, cram_fault):
    fault = cram_fault("store", probability=50, times=3)
    assert fault.attributes.probability == 50
    seen.append(cram_device)

@pytest.mark.cram_device(advertised="2M", real="1M", codec="zstd")
def test_two(cram_device):
    assert seen[0].closed
    assert cram_device.params.codec == "zstd" and cram_device.params.advertised == 2 << 20
    assert cram_device.faults["store"].attributes.probability == 0

def test_unknown(cram_fault):
    with pytest.raises(KeyError):
        cram_fault("nothing")

@pytest.mark.cram_device(codec="zstd")
def test_mount_refuses(cram_mount):
    pass

@pytest.mark.cram_device("1G")
def test_no_name(cram_device):
    pass

def test_open_file(cram_mount):
    trace = open(cram_mount / "sys/kernel/tracing/trace")
    raise AssertionError("pytest keeps this frame")
"""
    )
    done = run(tmp_path, "--basetemp", tmp_path / "base")
    if "1 skipped" in done.stdout:
        assert "3 passed, 1 skipped, 2 errors" in done.stdout, done.stdout
    else:
        assert "1 failed, 3 passed, 2 errors" in done.stdout, done.stdout
    where = tmp_path / "base" / "test_open_file0" / "machine"
    assert where.is_dir() and str(where) not in Path("/proc/self/mounts").read_text()
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(where) in (p.info["cmdline"] or ())]
    assert "cram_device: '1G' has no name" in done.stdout
    assert "cram_mount: a mounted device takes no codec" in done.stdout
