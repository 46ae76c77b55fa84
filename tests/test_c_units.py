"""The C units of tests/c, each built with the C core and run under the sanitizers.

A unit checks itself and ends with status 0; the sanitizers must have nothing to say. broken.c is the twin: a
program with one defect of each kind, which must be caught.
"""

import os
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
CORE = sorted([*TOP.glob("csrc/*.c"), *TOP.glob("csrc/device/*.c"), *TOP.glob("csrc/host/*.c")])
UNITS = sorted(path.stem for path in TOP.glob("tests/c/test_*.c"))

COMPILE = [
    "gcc",
    "-std=gnu11",
    "-O1",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fno-omit-frame-pointer",
    "-fno-sanitize-recover=all",
    f"-I{TOP}/csrc",
    "-pthread",
]
OPTIONS = {
    # SIGBUS is how a fault on a mapping arrives: it is not the sanitizer's.
    "ASAN_OPTIONS": "detect_leaks=1:handle_sigbus=0:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "second_deadlock_stack=1",
}
REPORT = ("Sanitizer", "runtime error:")
TIME_LIMIT_S = 100

# Defects of broken.c, by what must catch them.
DEFECTS = {
    "address,undefined": ["fail_check", "leak", "overflow_heap", "overflow_integer"],
    "thread": ["fail_check", "race_threads"],
}


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=os.environ | OPTIONS, capture_output=True, text=True,
        timeout=TIME_LIMIT_S,
    )


def compile_with(arguments: list[str]) -> None:
    done = subprocess.run(COMPILE + arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Build:
    """The core and all units, compiled for one set of sanitizers."""

    def __init__(self, sanitizers: str, directory: Path) -> None:
        self.sanitizers = sanitizers
        self.directory = directory
        self.flag = f"-fsanitize={sanitizers}"
        archive = directory / "core.a"
        objects = [directory / f"{path.parent.name}_{path.stem}.o" for path in CORE]
        pool = ThreadPoolExecutor(os.cpu_count())
        list(pool.map(self.compile_object, CORE, objects))
        subprocess.run(["ar", "rcs", archive, *objects], check=True)
        # In the background: the first unit runs while the others are compiled.
        self.programs: dict[str, Future[Path]] = {
            name: pool.submit(self.link, name, archive) for name in ["broken", *UNITS]
        }
        pool.shutdown(wait=False)
        self.launcher = self.find_launcher()

    def compile_object(self, source: Path, target: Path) -> None:
        compile_with([self.flag, "-c", str(source), "-o", str(target)])

    def link(self, name: str, archive: Path) -> Path:
        program = self.directory / name
        source = TOP / "tests" / "c" / f"{name}.c"
        compile_with(
            [self.flag, str(source), str(archive), "-o", str(program), "-llz4", "-lzstd"]
        )
        return program

    def find_launcher(self) -> list[str] | None:
        """What it takes to run a program: thread sanitizer dies where the kernel spreads
        mappings too far (vm.mmap_rnd_bits over 28), unless that is off for the process."""
        program = str(self.programs["broken"].result())
        for launcher in ([], ["setarch", "--addr-no-randomize"]):
            if run([*launcher, program, "nothing"], self.directory).returncode == 0:
                return launcher
        return None

    def run(self, name: str, arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        if self.launcher is None:
            pytest.skip(f"no program runs under {self.flag} here, not even without address "
                        "randomization (vm.mmap_rnd_bits)")
        return run([*self.launcher, str(self.programs[name].result()), *arguments], cwd)


@pytest.fixture(scope="session", params=list(DEFECTS))
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Build:
    return Build(request.param, tmp_path_factory.mktemp("c_units"))


@pytest.mark.parametrize("unit", UNITS)
def test_unit(build: Build, unit: str, tmp_path: Path) -> None:
    """A unit ends with status 0, and no sanitizer reports anything."""
    done = build.run(unit, [], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not any(mark in done.stderr for mark in REPORT), done.stderr


def test_defects_are_caught(build: Build, tmp_path: Path) -> None:
    """A failed check, and what each sanitizer is for, ends a program with an error."""
    for defect in DEFECTS[build.sanitizers]:
        done = build.run("broken", [defect], tmp_path)
        assert done.returncode != 0, defect
        expected = ("broken.c",) if defect == "fail_check" else REPORT
        assert any(mark in done.stderr for mark in expected), (defect, done.stderr)
