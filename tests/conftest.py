"""What the tests share: gates that skip with a reason, and programs that run in a process of their own."""

import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from cram_emu import uffd_info

# Before the first import of them: so that a failed assertion in them says what it compared.
pytest.register_assert_rewrite("samples", "device_object", "support", "hosts")

from samples import holdings  # noqa: E402
from support import CHILD_TIMEOUT  # noqa: E402

# The same examples in every run, no files of its own, and no opinion on a busy machine.
hypothesis.settings.register_profile(
    "repeatable", deadline=None, derandomize=True, database=None, print_blob=False
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture
def skip_unless_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture
def skip_unless_userfaultfd() -> None:
    """For any mapping."""
    info = uffd_info()
    if info.available != 0:
        pytest.skip(f"userfaultfd is not permitted here: {os.strerror(-info.available)}")


@pytest.fixture
def skip_unless_kernel_faults(skip_unless_userfaultfd) -> None:
    """For system calls on a mapping that has monitor delivery."""
    if not uffd_info().kernel_faults:
        pytest.skip("userfaultfd serves user-mode faults only here (vm.unprivileged_userfaultfd)")


@pytest.fixture(scope="session", autouse=True)
def no_core_dumps() -> None:
    """Children that die by SIGBUS on purpose leave no files behind."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _command(program: str, args: tuple) -> dict:
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
    return {
        "args": [sys.executable, "-c", textwrap.dedent(program), *map(str, args)],
        "env": os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """Afterwards there is no file, descriptor or thread more than before."""
    before = holdings(), list(tmp_path.iterdir())
    yield
    assert (holdings(), list(tmp_path.iterdir())) == before


@pytest.fixture
def nothing_left_open() -> Iterator[None]:
    """Afterwards there is no descriptor or thread more than before."""
    before = holdings()
    yield
    assert holdings() == before


@pytest.fixture
def small_tmpfs(skip_unless_root, tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 4 MiB."""
    where = tmp_path / "small"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", where]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    yield where
    subprocess.run(["umount", "--lazy", where], check=True)


@pytest.fixture
def run_child() -> Callable[..., subprocess.CompletedProcess]:
    """run_child(program, *args): runs Python source to its end, with sys.argv[1:] = args.

    Its death is an outcome, not an error: look at returncode (-7: died by SIGBUS), stdout and stderr.
    The program may import tests/samples.py.
    """

    def run(program: str, *args) -> subprocess.CompletedProcess:
        command = _command(program, args)
        return subprocess.run(**command, stdin=subprocess.DEVNULL, timeout=CHILD_TIMEOUT)

    return run


@pytest.fixture
def start_child() -> Iterator[Callable[..., subprocess.Popen]]:
    """start_child(program, *args): the same, beside the test. Talk to it through its stdin and stdout.

    What still runs at the end of the test is killed.
    """
    children: list[subprocess.Popen] = []

    def start(program: str, *args) -> subprocess.Popen:
        child = subprocess.Popen(**_command(program, args), stdin=subprocess.PIPE)
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()
