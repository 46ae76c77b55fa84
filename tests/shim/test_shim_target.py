"""Poison under a chosen structure of a program's: `cram-emu run --poison-at`, `--fault-after`."""

import contextlib
import json
import mmap
import os
import re
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from placed import COMMAND, TIMEOUT, compiled, run
from support import wait_until

from cram_emu import Device
from cram_emu.lab import launch
from cram_emu.lab.witness import Book, parse_poison_at

#: What the program tells, by what was struck: pages of the table, of three mappings, and the list.
UNHARMED = "table 0\nmappings 0 0 0\nnodes 0\n"
EXPECTED = {
    "caller:make_table#1": ("table 1\nmappings 0 0 0\nnodes 0\n", "heap", "make_table"),
    "caller:make_mapping#3": ("table 0\nmappings 0 0 1\nnodes 0\n", "mmap #3 + 0", "make_mapping"),
    "caller:make_node#5": ("table 0\nmappings 0 0 0\nnodes 1\n", "heap", "make_node"),
    "mmap:2+8192": ("table 0\nmappings 0 1 0\nnodes 0\n", "mmap #2 + 8192", "make_mapping"),
    "mmap:1": ("table 0\nmappings 1 0 0\nnodes 0\n", "mmap #1 + 0", "make_mapping"),
    "heap:50%": ("table 1\nmappings 0 0 0\nnodes 0\n", "heap", "make_table"),
    "heap:100%": ("table 1\nmappings 0 0 0\nnodes 0\n", "heap", "make_table"),
}


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program whose functions are found by name."""
    return compiled("target", tmp_path_factory.mktemp("target"), "-rdynamic")


@pytest.fixture
def reported(tmp_path: Path):
    """reported(command, options): how it ended, and its report."""

    def start(*command: str, options=(), **kwargs) -> tuple[subprocess.CompletedProcess, dict]:
        path = tmp_path / "report.json"
        done = run(*command, options=(*options, "--report", str(path)), **kwargs)
        return done, json.loads(path.read_text())

    return start


def taken(runner: int, words=(b"struck\t", b"failed\t")) -> bool:
    """Has anybody of that run struck, or tried to? By its book."""
    for link in Path(f"/proc/{runner}/fd").iterdir():
        try:
            if "cram_emu-book" in str(link.readlink()):
                return any(word in link.read_bytes() for word in words)
        except OSError:
            continue
    return False


@contextlib.contextmanager
def keeping(target: str, how: str, after="0.01s", struck=True, options=()) -> Iterator[subprocess.Popen]:
    """The program with its structures made, and, if that is to come, struck; to go on at its input's end."""
    with subprocess.Popen(
        [COMMAND, "run", "--fault-after", after, *options, "--", target, "handled", how],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "made\n"
        if struck:
            wait_until(lambda: taken(process.pid), "it is struck")
        yield process


class TestHandled:
    @pytest.mark.parametrize("mode", ["direct", "zswap"])
    @pytest.mark.parametrize("at", EXPECTED)
    def test_hit(self, at: str, target: str, reported, delivery: str, mode: str) -> None:
        """Its handler meets the one poison, in that structure; the report names the place and the call."""
        expected, where, call = EXPECTED[at]
        options = ("--poison-at", at, "--delivery", delivery, "--mode", mode)
        done, report = reported(target, "handled", options=options)
        assert (done.returncode, done.stdout) == (0, expected), done.stderr
        (met,) = report["met_poison"]
        (place,) = met["places"]
        assert (met["times"], met["name"], place["where"]) == (1, "target", where)
        assert place["call"].startswith(f"{call}+0x") and place["call"].endswith(" (target)")
        struck = report["poison_at"]
        assert (struck["target"], struck["why"]) == (at, "")
        assert struck["place"] == {**place, "address": struck["place"]["address"]}
        assert struck["place"]["address"] >> 12 == place["address"] >> 12
        assert f"0x{place['address']:x} in {where}, allocated by {call}" in done.stderr

    def test_not_taken(self, target: str, reported) -> None:
        """Under a manager a page has to be on the device to be struck; where its driver takes none, none is."""
        options = ("--poison-at", "mmap:1", "--mode", "zswap", "--fault", "alloc")
        done, report = reported(target, "handled", options=options)
        assert (done.returncode, done.stdout, report["met_poison"]) == (0, UNHARMED, [])
        assert report["poison_at"]["why"] == "its driver lets the node take no page now"

    def test_taken_later(self, target: str) -> None:
        """Where its driver takes none at first, it is struck as soon as he does."""
        options = ("--mode", "zswap", "--poison-at", "mmap:2+8192", "--fault", "alloc:times=3")
        with keeping(target, "keep", options=options, struck=False) as process:
            wait_until(lambda: taken(process.pid, (b"struck\t",)), "it is struck")
            assert process.communicate("")[0] == EXPECTED["mmap:2+8192"][0]

    def test_frame(self, target: str) -> None:
        """Under a manager, what has a frame by then is hit alike."""
        options = ("--mode", "zswap", "--poison-at", "mmap:2+8192")
        with keeping(target, "keep", options=options) as process:
            assert process.communicate("")[0] == EXPECTED["mmap:2+8192"][0]

    @pytest.mark.parametrize("striker", ["reaped", "zombie", "alive"])
    def test_striker_killed(self, target: str, striker: str) -> None:
        """Who was killed while it struck keeps nobody from it, reaped or not; who lives does."""
        dead = striker != "alive"
        where = parse_poison_at("mmap:2+8192")
        with Device("1G", "64M") as device, Book() as book, subprocess.Popen("cat", stdin=subprocess.PIPE) as other:
            if dead:
                other.kill()
            if striker == "reaped":
                other.wait()
            elif dead:
                os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
            with open(book.path, "r+b") as file, mmap.mmap(file.fileno(), 4096) as memory:
                memory[:8] = struct.pack("2I", 1, other.pid)
            path = f"/proc/{os.getpid()}/fd/{device.fileno()}"
            environment = launch.environment(path, launch.Settings(8 << 20), book=book, poison_at=where)
            done = subprocess.run([target, "handled"], env=environment, capture_output=True, text=True, timeout=TIMEOUT)
            assert done.stdout == (EXPECTED["mmap:2+8192"][0] if dead else UNHARMED)
            assert (book.struck(where).place is not None) == dead

    def test_twin(self, target: str, reported) -> None:
        """Without the option the same program meets none."""
        done, report = reported(target, "handled")
        assert (done.returncode, done.stdout) == (0, UNHARMED)
        assert (report["met_poison"], report["poison_at"], report["poisoned"]) == ([], None, 0)
        assert "poison at" not in done.stderr

    def test_small_window(self, target: str) -> None:
        """Memory that comes and goes is hit alike."""
        done = run(target, "handled", options=("--poison-at", "mmap:2+8192", "--window", "256K"))
        assert (done.returncode, done.stdout) == (0, EXPECTED["mmap:2+8192"][0]), done.stderr

    def test_used_again(self, tmp_path, reported) -> None:
        """A mapping where another one was is itself, also when it has moved."""
        source, program = tmp_path / "a.c", str(tmp_path / "a")
        source.write_text(
            "#define _GNU_SOURCE\n#include <sys/mman.h>\nstatic char *make(void) { return mmap(0, 1 << 20, 3,"
            " MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }\nint main(int argc, char **argv) { char *a = make(), *b, *c; (void)argv;"
            " munmap(a, 1 << 20); b = make(); c = make(); if (a != b) return 9;"
            " if (argc > 1) b = mremap(b, 1 << 20, 1 << 21, MREMAP_MAYMOVE); c[0] = 1; b[8192] = 1; return argc > 1 && a == b; }\n"
        )
        subprocess.run(["gcc", "-O1", "-o", program, source], check=True)
        assert run(program).returncode == run(program, "move").returncode == 0
        for words in ((program,), (program, "move")):
            done, report = reported(*words, options=("--poison-at", "mmap:2+8192"))
            assert done.returncode == -signal.SIGBUS, done.stderr
            assert report["met_poison"][0]["places"][0]["where"] == "mmap #2 + 8192"

    def test_long_name(self, tmp_path, reported) -> None:
        """A function of a very long name is found by all of it, and told as far as there is room."""
        name = "make_" + "x" * 194
        source = tmp_path / "a.c"
        source.write_text(
            f"#include <stdlib.h>\n__attribute__((noinline)) char *{name}(void) {{ char *a = malloc(9); __asm__ volatile(\"\");"
            f" return a; }}\nint main(void) {{ volatile char *a = {name}(); a[0] = 1; return a[0]; }}\n"
        )
        program = tmp_path / ("p" * 60)
        subprocess.run(["gcc", "-O1", "-fno-builtin", "-rdynamic", "-o", program, source], check=True)
        done, report = reported(str(program), options=("--poison-at", f"caller:{name}#1"))
        assert done.returncode == -signal.SIGBUS, done.stderr
        assert report["met_poison"][0]["places"][0]["call"].startswith(f"{name[:80]}+0x")
        assert report["met_poison"][0]["name"] == "p" * 15

    def test_new(self, tmp_path, reported) -> None:
        """C++'s new is an allocation of its caller's."""
        if shutil.which("g++") is None:
            pytest.skip("not installed: g++")
        source = tmp_path / "a.cc"
        source.write_text(
            "extern \"C\" __attribute__((noinline)) long *make() { long *made = new long[3000]; asm volatile(\"\" ::: \"memory\");"
            " return made; }\nint main() { for (int i = 0; i < 3; i++) { long *a = make(); a[9] = i; delete[] a; } }\n"
        )
        subprocess.run(["g++", "-O1", "-fno-builtin", "-rdynamic", "-o", tmp_path / "cc", source], check=True)
        for number, code in ((3, -signal.SIGBUS), (4, 0)):
            done, report = reported(str(tmp_path / "cc"), options=("--poison-at", f"caller:make#{number}"))
            assert done.returncode == code, done.stderr
        assert report["poison_at"]["why"] == "allocations of make on the device: 3"


class TestBare:
    @pytest.mark.parametrize("at", ["caller:make_node#5", "mmap:2+8192", "heap:50%"])
    def test_dies(self, at: str, target: str, reported, delivery: str) -> None:
        """Without a handler it dies, and the report names what it died of."""
        _, where, call = EXPECTED[at]
        done, report = reported(target, "bare", options=("--poison-at", at, "--delivery", delivery))
        assert done.returncode == -signal.SIGBUS
        (place,) = report["met_poison"][0]["places"]
        assert place["where"] == where and place["call"].startswith(f"{call}+")
        assert "killed by SIGBUS" in done.stderr

    def test_twin(self, target: str) -> None:
        assert run(target, "bare").stdout == UNHARMED

    def test_children(self, target: str, reported) -> None:
        """Of programs in a chain the first that has the structure is struck, and no other; a child that dies is named."""
        script = f"{target} bare; {target} bare; :"
        done, report = reported("sh", "-c", script, options=("--poison-at", "caller:make_node#5"))
        assert (done.returncode, done.stdout) == (0, UNHARMED)
        (met,) = report["met_poison"]
        assert met["pid"] == report["poison_at"]["place"]["pid"] and len(met["places"]) == 1


class TestAfter:
    @pytest.mark.parametrize(("after", "struck"), [("0.01s", True), ("10-faults", True), ("1000000-faults", False)])
    @pytest.mark.parametrize("at", ["caller:make_table#1", "mmap:2+8192", "heap:50%"])
    def test_made_before(self, at: str, after: str, struck: bool, target: str, tmp_path: Path) -> None:
        """What was made before it is due is struck then; where it is never due, nothing is, and the report says so."""
        report = tmp_path / "report.json"
        options = ("--poison-at", at, "--window", "256K", "--report", str(report))
        with keeping(target, "keep", after, struck, options) as process:
            out, told = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, out) == (0, EXPECTED[at][0] if struck else UNHARMED), told
        why = json.loads(report.read_text())["poison_at"]["why"]
        assert why == ("" if struck else "the program ended before it was due")

    def test_faults(self, target: str, reported) -> None:
        """--fault waits as well; at once, its twin, it strikes."""
        options = ("--window", "256K", "--fault", "store:times=1")
        assert reported(target, "handled", options=options)[1]["injected"] == {"store": 1}
        late = (*options, "--fault-after", "1000000-faults")
        assert reported(target, "handled", options=late)[1]["injected"] == {"store": 0}

    def test_forked(self, target: str, tmp_path: Path) -> None:
        """What a child of fork makes before it is due is struck then, in that child."""
        report = tmp_path / "report.json"
        with keeping(target, "fork", options=("--poison-at", "mmap:4", "--report", str(report))) as process:
            out, told = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, out) == (0, "table 0\nmappings 0 0 0 1\nnodes 0\n"), told
        found = json.loads(report.read_text())
        assert found["processes"] == 2
        assert [met["pid"] for met in found["met_poison"]] == [found["poison_at"]["place"]["pid"]]


class TestNothing:
    @pytest.mark.parametrize(
        ("at", "why"),
        [
            ("caller:nothing#1", "no function nothing in the dynamic symbols of the program or its libraries (link it with"
             " -rdynamic, or export the function)"),
            ("caller:make_node#99", "allocations of make_node on the device: 64"),
            ("mmap:4", "mappings of the program on the device: 3"),
            ("mmap:1+1048576", "the offset is past its end, or it was unmapped before"),
        ],
    )  # fmt: skip
    def test_told(self, at: str, why: str, target: str, reported) -> None:
        """A target that there never was strikes nobody, and the report says why."""
        done, report = reported(target, "handled", options=("--poison-at", at))
        assert (done.returncode, done.stdout, report["met_poison"]) == (0, UNHARMED, [])
        assert report["poison_at"]["why"] == why
        assert f"nothing was poisoned: {why}" in done.stderr

    def test_static_function(self, program) -> None:
        """A function that is not exported is not found: the error names the remedy."""
        done = run(program("target"), "handled", options=("--poison-at", "caller:make_table#1"))
        assert (done.returncode, done.stdout) == (0, UNHARMED)
        assert "-rdynamic" in done.stderr


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (("--poison-at", "heap:101%"), "'heap:101%': heap:N% takes a number from 0 to 100"),
            (("--poison-at", "mmap:" + "9" * 5000), "mmap:N+OFFSET takes a number from 1 on, and bytes"),
            (("--poison-at", "mmap:0"), "'mmap:0': mmap:N+OFFSET takes a number from 1 on"),
            (("--poison-at", "caller:f"), "'caller:f': caller:FUNCTION#N takes"),
            (("--poison-at", "stack"), "'stack': not heap:N%, mmap:N+OFFSET or caller:FUNCTION#N"),
            (("--fault-after", "soon", "--fault", "store"), "'soon': not a time, as 5s"),
            (("--fault-after", "5s"), "--fault-after: there is neither --poison-at nor --fault"),
            (("--fault-after", "5s", "--fault", "store", "--seed", "1"), "--seed with --fault-after: "),
        ],
    )
    def test_told(self, options, told: str) -> None:
        """Bad input is one error that names it, before the program starts."""
        done = run("echo", "ran", options=options)
        assert (done.returncode, done.stdout) == (2, "")
        assert told in done.stderr.splitlines()[-1]
        assert len(re.findall("error|cram-emu: ", done.stderr)) == 1
