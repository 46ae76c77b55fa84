"""scripts/setup, on a copy of the tree, with a stand-in for Python that records what it is asked.

Oracle: the recorded calls and the files of the copy. The real Python, compiler and apt-get are what
scripts/test itself has just used; here only their answers matter.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent

# Answers -c as the real one, makes a venv that holds itself, installs nothing, "builds" at once.
# While there is a file log.fails it fails to install; while there is log.hangs it waits.
PYTHON = """\
#!/usr/bin/env bash
log={log}
if [ "$1" != -c ]; then echo "$*" >>"$log"; fi
case "$*" in
*os.path.realpath*) echo "$0" ;;
*cffi,\\ pip*) exit 0 ;;
-c*) exec {real} "$@" ;;
-m\\ venv*) mkdir -p "$4/bin" && rm -rf "$4"/* && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
*--editable*)
	if [ -e "$log.fails" ]; then echo "no such package"; exit 1; fi
	while [ -e "$log.hangs" ]; do sleep 0.01; done
	touch cram_emu/_{{cram,region,shim}}.so
	cp "$0" "$(dirname "$0")/cram-emu" ;;
setup.py*)
	while [ -e "$log.hangs" ]; do sleep 0.01; done
	touch cram_emu/_{{cram,region,shim}}.so ;;
esac
"""


class Tree:
    """A copy of what scripts/setup looks at, and a directory of commands in front of PATH."""

    def __init__(self, base: Path) -> None:
        self.top = base / "tree"
        self.bin = base / "bin"
        self.log = base / "log"
        self.bin.mkdir()
        (self.top / "cram_emu").mkdir(parents=True)
        shutil.copytree(TOP / "scripts", self.top / "scripts")
        shutil.copytree(TOP / "csrc", self.top / "csrc")
        for name in ("setup.py", "pyproject.toml", "cram_emu/_cram_build.py"):
            shutil.copy(TOP / name, self.top / name)
        self.command("python3", PYTHON.format(log=self.log, real=sys.executable))

    def command(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def start(self, *args: str, ordinary_user: bool = False) -> subprocess.Popen:
        # In a user namespace without a mapping root is nobody, and still owns its files.
        become = ["unshare", "--user"] if ordinary_user and os.geteuid() == 0 else []
        return subprocess.Popen(
            [*become, self.top / "scripts/setup", *args],
            env=os.environ
            | {"PATH": f"{self.bin}:{os.environ['PATH']}", "TMPDIR": str(self.bin.parent)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *args: str, ordinary_user: bool = False) -> subprocess.CompletedProcess:
        process = self.start(*args, ordinary_user=ordinary_user)
        out, err = process.communicate(timeout=30)
        assert out == ""
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def calls(self) -> list[str]:
        """What Python was asked since the last time: one word for each thing done."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.write_text("")
        words = {"venv": "venv", "pip": "pip", "setup.py": "build"}
        done = [next(words[w] for w in line.split() if w in words) for line in lines]
        return [word for i, word in enumerate(done) if done[i - 1 : i] != [word]]

    def snapshot(self) -> dict[Path, tuple[int, int]]:
        return {
            path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in self.top.rglob("*")
        }


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


class TestSteps:
    def test_fresh_tree(self, tree: Tree):
        """A fresh tree gets a venv, packages and modules."""
        result = tree.run()
        assert result.returncode == 0, result.stderr
        assert tree.calls() == ["venv", "pip"]
        assert (tree.top / ".venv/bin/cram-emu").exists()

    def test_nothing_to_do(self, tree: Tree):
        """A second run asks, writes and says nothing, and takes under a second."""
        tree.run()
        tree.calls()
        before = tree.snapshot()
        started = time.monotonic()
        result = tree.run()
        assert time.monotonic() - started < 1
        assert (result.returncode, result.stderr) == (0, "")
        assert tree.calls() == []
        assert tree.snapshot() == before

    @pytest.mark.parametrize("path", ["csrc/cram.h", "csrc/error.c", "csrc/device/device.c"])
    def test_source_changed(self, tree: Tree, path: str):
        """A changed source or header is built, whatever its time says, and nothing installed."""
        tree.run()
        tree.calls()
        source = tree.top / path
        times = source.stat()
        source.write_text(source.read_text() + "/* changed */\n")
        os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert tree.run().returncode == 0
        assert tree.calls() == ["build"]

    def test_module_deleted(self, tree: Tree):
        """A deleted module is built again."""
        tree.run()
        tree.calls()
        (tree.top / "cram_emu/_region.so").unlink()
        tree.run()
        assert tree.calls() == ["build"]

    def test_extras_stay(self, tree: Tree):
        """What the tests need is added to a venv, and a run without them keeps it."""
        tree.run()
        tree.calls()
        tree.run("test")
        assert "[test]" in tree.log.read_text()
        assert tree.calls() == ["pip"]
        tree.run()
        assert tree.calls() == []

    def test_bad_argument(self, tree: Tree):
        """An unknown argument is refused before anything is done."""
        result = tree.run("tests")
        assert (result.returncode, result.stderr) == (1, "setup: usage: scripts/setup [test]\n")
        assert tree.calls() == []


class TestFaults:
    def kill(self, tree: Tree, word: str, *args: str) -> None:
        """Kills a setup, and what it runs, once Python is asked for that."""
        hangs = Path(f"{tree.log}.hangs")
        hangs.touch()
        tree.calls()
        process = tree.start(*args)
        while word not in tree.log.read_text():
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        hangs.unlink()
        tree.calls()

    @pytest.mark.parametrize("made_before", [False, True])
    def test_killed_installing(self, tree: Tree, made_before: bool):
        """A venv in which something was half installed is made again."""
        if made_before:
            tree.run()
        self.kill(tree, "--editable", "test")
        assert tree.run().returncode == 0
        assert tree.calls() == ["venv", "pip"]

    def test_killed_building(self, tree: Tree):
        """Modules that were half built are built again, also from the sources of before."""
        tree.run()
        source = tree.top / "csrc/error.c"
        text = source.read_text()
        source.write_text(text + "/* changed */\n")
        self.kill(tree, "build_ext")
        source.write_text(text)
        assert tree.run().returncode == 0
        assert tree.calls() == ["build"]

    def test_pip_fails(self, tree: Tree):
        """What pip said is shown; a venv that worked before still does."""
        tree.run()
        Path(f"{tree.log}.fails").touch()
        result = tree.run("test")
        assert result.returncode == 1
        assert "no such package\n" in result.stderr
        assert result.stderr.endswith("setup: pip failed\n")
        Path(f"{tree.log}.fails").unlink()
        tree.calls()
        assert tree.run().returncode == 0
        assert "venv" not in tree.calls()

    def test_two_at_once(self, tree: Tree):
        """Of two at once one works, and the other finds it done."""
        processes = [tree.start("test"), tree.start("test")]
        for process in processes:
            process.communicate(timeout=30)
        assert [process.returncode for process in processes] == [0, 0]
        assert tree.calls() == ["venv", "pip"]

    def test_waited_for_more(self, tree: Tree):
        """Who waited while another installed what the tests need finds enough."""
        hangs = Path(f"{tree.log}.hangs")
        hangs.touch()
        first = tree.start("test")
        while not tree.log.exists() or "--editable" not in tree.log.read_text():
            assert first.poll() is None
            time.sleep(0.01)
        second = tree.start()
        assert second.stderr.readline() == "setup: waiting for another scripts/setup\n"
        hangs.unlink()
        for process in (first, second):
            process.communicate(timeout=30)
        assert (first.returncode, second.returncode) == (0, 0)
        assert tree.calls() == ["venv", "pip"]


# A compiler without any library's headers; Python's own are named to it by -I.
BARE_GCC = f"""\
#!/usr/bin/env bash
exec {shutil.which("gcc")} -nostdinc "$@"
"""
HIDDEN = "libc6-dev liblz4-dev libzstd-dev libxxhash-dev"


def skip_unless_user_namespaces() -> None:
    if os.geteuid() == 0 and subprocess.run(["unshare", "--user", "true"]).returncode != 0:
        pytest.skip("root cannot become an ordinary user here: no user namespaces")


class TestDebianPackages:
    def test_ordinary_user(self, tree: Tree):
        """Without packages an ordinary user gets one line that names them, and nothing changes."""
        skip_unless_user_namespaces()
        tree.command("gcc", BARE_GCC)
        before = tree.snapshot()
        result = tree.run(ordinary_user=True)
        assert result.returncode == 1
        assert result.stderr == (
            f"setup: Debian packages are missing: {HIDDEN}. As root: apt-get install {HIDDEN}\n"
        )
        assert tree.snapshot() == before

    def test_ordinary_user_with_packages(self, tree: Tree):
        """With packages an ordinary user is asked for nothing."""
        skip_unless_user_namespaces()
        result = tree.run(ordinary_user=True)
        assert result.returncode == 0, result.stderr

    def test_root(self, tree: Tree):
        """As root exactly the missing packages are installed, after an update, unasked."""
        if os.geteuid() != 0:
            pytest.skip("needs root: it is the case under test")
        tree.command("gcc", BARE_GCC)
        asked = tree.top.parent / "asked"
        tree.command("apt-get", f'#!/usr/bin/env bash\necho "$*" >>{asked}\n')
        result = tree.run()
        update, install = asked.read_text().splitlines()
        assert update == "-q update"
        assert install.startswith("-q -y --no-install-recommends ")
        assert install.endswith(f" install {HIDDEN}")
        # apt-get did nothing here, and that is noticed.
        assert result.returncode == 1
        assert result.stderr.endswith(f"still missing after apt-get: {HIDDEN}\n")

    def test_old_python(self, tree: Tree):
        """Without Python 3.11 the one that was found is named, and nothing changes."""
        old = '#!/usr/bin/env bash\n[ "$1" = -V ] && echo "Python 3.9.2" && exit 0\nexit 1\n'
        for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14"):
            tree.command(name, old)
        before = tree.snapshot()
        result = tree.run()
        assert result.returncode == 1
        assert result.stderr.startswith(
            "setup: Python 3.11 or newer is needed; python3 is Python 3.9.2. "
        )
        assert tree.snapshot() == before
