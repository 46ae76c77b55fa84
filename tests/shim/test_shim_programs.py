"""C programs that assert what any Linux gives them: with the shim, and, as their oracle, without."""

import re
import subprocess

import pytest
from placed import TIMEOUT, WINDOW, run

NAMES = ("calls", "space", "signals", "processes", "escapes")


@pytest.mark.parametrize("name", NAMES)
class TestPrograms:
    def test_bare(self, name: str, program) -> None:
        """What they assert holds without the shim."""
        done = subprocess.run([program(name)], capture_output=True, text=True, timeout=TIMEOUT)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{name}: all right\n"

    def test_placed(self, name: str, program, delivery: str) -> None:
        """And with it, on memory that comes and goes."""
        options = ("--window", WINDOW, "--delivery", delivery)
        done = run(program(name), options=options, env={"CRAM_TEST_PLACED": delivery})
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{name}: all right\n"
        faults = re.search(r"^faults +([\d,]+)$", done.stderr, re.M)
        assert int(faults[1].replace(",", "")) > 1000, "its memory was on the device"


class TestTwins:
    """The assertions can fail: the same programs where what they need is not there."""

    def test_not_placed(self, program) -> None:
        """A program that is not placed has nothing that goes: `space` sees that it is not."""
        done = subprocess.run(
            [program("space")],
            env={"CRAM_TEST_PLACED": "inline"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert done.returncode == 99
        assert "0x20" in done.stderr


class TestPoison:
    def test_handler(self, program, delivery: str) -> None:
        """A program's handler gets the machine check; a system call EFAULT; what it gives back is whole."""
        options = ("--advertised", "1G", "--real", "16M", "--window", WINDOW, "--delivery", delivery)
        done = run(program("signals"), "poison", options=options)
        assert done.returncode == 0, done.stderr
        found = re.fullmatch(r"poison: (\d+) pages, all right\n", done.stdout)
        # 64 MiB of noise; 16 MiB fit the media, and the window may hold as much.
        assert 32 << 8 <= int(found[1]) <= 49 << 8

    def test_roomy(self, program) -> None:
        """With room for all there is none, and the program says so."""
        done = run(program("signals"), "poison", options=("--window", WINDOW))
        assert done.returncode == 99
        assert "found > 0" in done.stderr

    def test_unhandled(self) -> None:
        """A program without a handler is killed by SIGBUS, and so is cram-emu."""
        noise = "import os; a = [os.urandom(1 << 20) for _ in range(64)]; print(sum(map(sum, a)))"
        done = run(
            "/usr/bin/python3", "-c", noise, options=("--advertised", "1G", "--real", "8M", "--window", "8M")
        )
        assert done.returncode == -7
        assert "killed by SIGBUS, after" in done.stderr and "met poison" in done.stderr
        assert re.search(r"^dropped writes  [1-9]", done.stderr, re.M)


class TestChain:
    def test_static(self, program, tmp_path) -> None:
        """A static program in the chain is unharmed by the filter that outlives exec."""
        source = tmp_path / "plain.c"
        source.write_text(
            "#include <stdio.h>\n#include <string.h>\n#include <sys/uio.h>\nint main(void)\n"
            '{ struct iovec v = { "static\\n", 7 }; return writev(1, &v, 1) == 7 ? 0 : 1; }\n'
        )
        plain = tmp_path / "plain"
        subprocess.run(["gcc", "-static", "-o", plain, source], check=True)
        done = run(program("processes"), "chain", str(plain), options=("--window", WINDOW))
        assert (done.returncode, done.stdout) == (0, "static\n" * 4), done.stderr

    def test_no_follow(self, program) -> None:
        """With --no-follow a child's memory is ordinary."""
        where = "import ctypes, mmap; print(hex(ctypes.addressof(ctypes.c_char.from_buffer(mmap.mmap(-1, 1 << 20, flags=0x22)))))"
        script = f"print(end='', flush=True); import os; os.execv('/usr/bin/python3', ['python3', '-c', {where!r}])"
        for options, placed in (((), True), (("--no-follow",), False)):
            done = run("/usr/bin/python3", "-c", script, options=options)
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith("0x20000") == placed
