"""What the tests of mappings share: a mapping seen from outside, and C programs that use one.

The kernel is the witness here: /proc says what is resident, whatever the library's counters say.
"""

import functools
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from samples import PAGE

TOP = Path(__file__).parent.parent

# A child that hangs is a failed test, not a hung run. Seconds.
CHILD_TIMEOUT = 60

# A condition that has not come true by then never will.
DEADLINE = 60.0

PAGEMAP_PRESENT = 1 << 63


@pytest.fixture(params=["monitor", "inline"])
def delivery(request) -> str:
    """Both deliveries of a fault, as far as the host permits them."""
    needs = "kernel_faults" if request.param == "monitor" else "userfaultfd"
    request.getfixturevalue(f"skip_unless_{needs}")
    return request.param


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Returns once the condition holds."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"after {DEADLINE:.0f} s still not: {what}"
        time.sleep(0.001)


# ---- what the kernel says ------------------------------------------------------------------------


def resident_bytes(address: int) -> int:
    """Rss of the memory area that starts at address, from /proc/self/smaps."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(maxsplit=1)[0]
        if "-" in head:
            inside = int(head.split("-")[0], 16) == address
        elif inside and head == "Rss:":
            return int(line.split()[1]) * 1024
    raise LookupError(f"no memory area starts at 0x{address:x}")


def resident_pages(address: int, pages: int) -> set[int]:
    """The numbers of those pages, counted from address, that have a frame: /proc/self/pagemap."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(address // PAGE * 8)
        words = memoryview(pagemap.read(pages * 8)).cast("Q")
    return {page for page, word in enumerate(words) if word & PAGEMAP_PRESENT}


# ---- C programs ----------------------------------------------------------------------------------

_FLAGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{TOP}/csrc")


def _gcc(*args, cwd: Path) -> None:
    result = subprocess.run(
        ["gcc", *_FLAGS, *map(str, args)], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@functools.cache
def _core(base: Path) -> Path:
    """The C core as one object: files of two rooms may have the same name."""
    sources = (s for part in ("", "device/", "host/") for s in TOP.glob(f"csrc/{part}*.c"))
    _gcc("-r", "-nostdlib", *sources, "-o", base / "core.o", cwd=base)
    return base / "core.o"


@functools.cache
def _build(name: str, base: Path) -> Path:
    source = Path(__file__).parent / "children" / f"{name}.c"
    _gcc(source, _core(base), "-o", base / name, "-llz4", "-lzstd", cwd=base)
    return base / name


@pytest.fixture
def program(tmp_path_factory) -> Callable[[str], Path]:
    """program(name): tests/children/name.c, built over the C core once a session."""
    return lambda name: _build(name, tmp_path_factory.getbasetemp())
