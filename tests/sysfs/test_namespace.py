"""A tree laid over /sys, /dev and /proc. It is plain files here; test_client_programs.py mounts one.

Oracle: what this process, which stays outside, sees of the same paths and mounts.
"""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import users
from users import User

from cram_emu.sysfs import namespace
from cram_emu.sysfs.namespace import Bind, Cover, Directory, Entry, Link, Seal, Uncover

DEVICE = "sys/devices/platform/EMU0017:00"


def make(top: Path, files: dict[str, str]) -> Path:
    """Files by path and content; "-> target" makes a link, "/" at the path's end a directory."""
    for name, content in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        elif content.startswith("-> "):
            path.symlink_to(content[3:])
        else:
            path.write_text(content)
    return top


class TestPlan:
    """What is to be done, from two directories; nothing is mounted."""

    def plan(self, tmp_path: Path, tree: dict[str, str], system: dict[str, str]):
        made = [str(make(tmp_path / "tree", tree)), str(make(tmp_path / "system", system))]
        steps = namespace.plan(*made)
        self.tree, self.system = made
        return steps

    def test_new_name(self, tmp_path: Path):
        """A directory that lacks a name of the tree is made anew, from both sides, and sealed."""
        steps = self.plan(
            tmp_path,
            {"sys/bus/cxl/flush": "1", "sys/bus/node/a": "tree"},
            {"sys/bus/pci/x": "", "sys/bus/node/b": "", "sys/bus/l": "-> pci", "sys/block/": ""},
        )
        bus, tree = f"{self.system}/sys/bus", f"{self.tree}/sys/bus"
        assert steps == [
            Cover(bus, 0o755),
            Entry(f"{bus}/cxl", f"{tree}/cxl", directory=True),
            Link(f"{bus}/l", "pci"),
            Directory(f"{bus}/node", 0o755),
            Entry(f"{bus}/node/a", f"{tree}/node/a"),
            Entry(f"{bus}/node/b", f"{bus}/node/b"),
            Entry(f"{bus}/pci", f"{bus}/pci", directory=True),
            Seal(bus),
        ]

    def test_whole(self, tmp_path: Path):
        """A directory of which the tree has all that the system has is bound whole."""
        steps = self.plan(
            tmp_path,
            {"sys/node/node0/size": "1", "sys/node/node1/size": "2", "dev/cxl/mem0": ""},
            {"sys/node/node0/size": "1", "sys/other": "", "dev/cxl/": ""},
        )
        assert steps == [
            Bind(f"{self.system}/sys/node", f"{self.tree}/sys/node"),
            Bind(f"{self.system}/dev", f"{self.tree}/dev"),
        ]

    def test_alone(self, tmp_path: Path):
        """Devices of CXL are the tree's alone, where the system has some of its own too."""
        both = ("sys/bus/cxl", "dev/cxl")
        ours = {f"{path}/mem0": "" for path in both}
        theirs = {f"{path}/mem7": "" for path in both} | {"sys/bus/pci": "", "dev/null": ""}
        assert self.plan(tmp_path, ours, theirs) == [
            Bind(f"{self.system}/{path}", f"{self.tree}/{path}") for path in both
        ]

    def test_in_place(self, tmp_path: Path):
        """Where the system has every name, files are bound on files, and all else stays."""
        steps = self.plan(
            tmp_path,
            {"proc/meminfo": "tree", "proc/sys/vm/x": "tree", "proc/same": "-> sys"},
            {"proc/meminfo": "", "proc/sys/vm/x": "", "proc/sys/vm/y": "", "proc/same": "-> sys"},
        )
        proc, tree = f"{self.system}/proc", f"{self.tree}/proc"
        assert steps == [
            Bind(f"{proc}/meminfo", f"{tree}/meminfo"),
            Bind(f"{proc}/sys/vm/x", f"{tree}/sys/vm/x"),
        ]

    def test_in_place_below_a_new_name(self, tmp_path: Path):
        """In a directory made anew, a directory of the system's comes first and files on top."""
        steps = self.plan(
            tmp_path,
            {"sys/new": "", "sys/module/zswap": "tree"},
            {"sys/module/zswap": "", "sys/module/kvm": ""},
        )
        top, tree = f"{self.system}/sys", f"{self.tree}/sys"
        assert steps == [
            Cover(top, 0o755),
            Directory(f"{top}/module", 0o755),
            Bind(f"{top}/module", f"{top}/module"),
            Bind(f"{top}/module/zswap", f"{tree}/module/zswap"),
            Entry(f"{top}/new", f"{tree}/new"),
            Seal(top),
        ]

    @pytest.mark.parametrize(
        ("tree", "system", "step"),
        [
            ("-> here", "-> there", lambda path, source: Link(path, "here")),
            ("-> here", "file", lambda path, source: Link(path, "here")),
            ("file", "-> there", lambda path, source: Entry(path, source)),
        ],
    )
    def test_tree_wins(self, tmp_path: Path, tree: str, system: str, step: Callable):
        """Of two entries that cannot be mounted on one another the tree's is taken."""
        steps = self.plan(tmp_path, {"sys/a": tree}, {"sys/a": system, "sys/b": ""})
        assert steps[1] == step(f"{self.system}/sys/a", f"{self.tree}/sys/a")
        assert steps[2] == Entry(f"{self.system}/sys/b", f"{self.system}/sys/b")

    def test_links_are_not_followed(self, tmp_path: Path):
        """A link to a directory is a link, on either side."""
        system = {"sys/a/x": "", "sys/b": "-> a"}
        steps = self.plan(tmp_path, {"sys/a/new": "", "sys/c": "-> a"}, system)
        top = f"{self.system}/sys"
        assert Link(f"{top}/b", "a") in steps and Link(f"{top}/c", "a") in steps

    def test_modes(self, tmp_path: Path):
        """A directory made anew has the mode of the system's."""
        make(tmp_path / "system", {"sys/debug/x/a": ""})
        (tmp_path / "system/sys/debug").chmod(0o700)
        (tmp_path / "system/sys/debug/x").chmod(0o711)
        steps = self.plan(tmp_path, {"sys/debug/x/b": "", "sys/debug/y": ""}, {"sys/rest": ""})
        debug = f"{self.system}/sys/debug"
        assert Cover(debug, 0o700) in steps
        assert Directory(f"{debug}/x", 0o711) in steps

    def test_out_of_sight(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """A directory that the user may not list (debugfs) is taken from the tree whole."""
        make(tmp_path / "system", {"sys/debug/secret": ""})
        listed = os.scandir

        def scandir(path):
            if str(path) == f"{tmp_path}/system/sys/debug":
                raise PermissionError(13, "Permission denied", path)
            return listed(path)

        monkeypatch.setattr(os, "scandir", scandir)
        steps = self.plan(tmp_path, {"sys/debug/cxl": ""}, {"sys/rest": ""})
        assert steps == [Bind(f"{self.system}/sys/debug", f"{self.tree}/sys/debug")]

    def test_ptmx(self, tmp_path: Path, skip_unless_root):
        """The device of new pseudo-terminals keeps pts beside it on its own mount."""
        make(tmp_path / "system", {"dev/pts/0": ""})
        os.mknod(tmp_path / "system/dev/ptmx", stat.S_IFCHR | 0o666, namespace.PTMX)
        steps = self.plan(tmp_path, {"dev/cxl/mem0": ""}, {})
        dev = f"{self.system}/dev"
        assert steps == [
            Cover(dev, 0o755),
            Entry(f"{dev}/cxl", f"{self.tree}/dev/cxl", directory=True),
            Entry(f"{dev}/.ptmx", dev, directory=True),
            Uncover(f"{dev}/.ptmx"),
            Link(f"{dev}/ptmx", ".ptmx/ptmx"),
            Entry(f"{dev}/pts", f"{dev}/pts", directory=True),
            Seal(dev),
        ]


# ---- in a namespace ---------------------------------------------------------------------------


@pytest.fixture
def tree() -> Iterator[Path]:
    """A small machine, in a place that ordinary users reach."""
    with tempfile.TemporaryDirectory(prefix="cram-emu-tree-", dir="/tmp") as place:
        os.chmod(place, 0o755)
        yield make(
            Path(place),
            {
                "sys/bus/cxl/devices/mem0": "-> ../../../devices/platform/EMU0017:00/mem0",
                "sys/bus/cxl/flush": "1\n",
                f"{DEVICE}/mem0/size": "0x200000000\n",
                f"{DEVICE}/mem0/subsystem": "-> ../../../../bus/cxl",
                "dev/cxl/mem0": "a device\n",
                "proc/meminfo": "MemTotal: 1 kB\n",
            },
        )


@pytest.fixture(params=["root", "ordinary"])
def user(request: pytest.FixtureRequest) -> User:
    """Root makes a mount namespace, an ordinary user a user namespace too."""
    user = getattr(users, request.param)()
    if user.uid != 0:
        tried = subprocess.run(
            ["unshare", "--user", "--mount", "--map-root-user", "true"],
            **user.options,
            capture_output=True,
            text=True,
        )
        if tried.returncode != 0:
            pytest.skip(f"no user namespaces here: {tried.stderr.strip()}")
    return user


def ns(
    user: User, tree: Path | str, *command: object, **options
) -> subprocess.CompletedProcess[str]:
    """`cram-emu ns TREE -- COMMAND`, to its end."""
    options = user.options | {"timeout": 60} | options
    if "input" not in options:
        options["stdin"] = subprocess.DEVNULL
    arguments = user.command("ns", tree, "--", *command)
    return subprocess.run(arguments, capture_output=True, text=True, **options)


def start(user: User, tree: Path, *command: object) -> subprocess.Popen[str]:
    """The same, beside the test, which talks to it through its standard input and output."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(user.command("ns", tree, "--", *command), **pipes, **user.options)


def python(user: User, tree: Path, program: str, *args: str) -> str:
    """What a Python program prints in the namespace."""
    done = ns(user, tree, user.python, "-c", textwrap.dedent(program), *args)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


class TestView:
    """What a command sees."""

    def test_tree(self, tree: Path, user: User):
        """The tree's files, through its links too."""
        paths = "/sys/bus/cxl/devices/mem0/size /sys/bus/cxl/flush /dev/cxl/mem0 /proc/meminfo"
        done = ns(user, tree, "cat", *paths.split())
        assert done.stdout == "0x200000000\n1\na device\nMemTotal: 1 kB\n"
        assert (done.returncode, done.stderr) == (0, "")

    def test_links_resolve(self, tree: Path, user: User):
        """Links lead to the paths that clients expect."""
        mem0 = "/sys/bus/cxl/devices/mem0"
        done = ns(user, tree, "realpath", mem0, f"{mem0}/subsystem")
        assert done.stdout == f"/{DEVICE}/mem0\n/sys/bus/cxl\n"

    def test_rest(self, tree: Path, user: User):
        """All else is the system's: same names, same inodes, same targets of links."""
        program = """
            import json, os, sys
            def identity(path):
                found = os.lstat(path)
                return os.readlink(path) if os.path.islink(path) else [found.st_dev, found.st_ino]
            # What goes while it is looked at is not there.
            def look(top):
                for name in os.listdir(top):
                    try:
                        yield name, identity(f"{top}/{name}")
                    except FileNotFoundError:
                        pass
            print(json.dumps({top: dict(look(top)) for top in sys.argv[1:]}))
        """
        tops = ["/sys", "/sys/bus", "/sys/devices", "/sys/devices/platform", "/sys/devices/system",
                "/sys/kernel", "/dev"]  # fmt: skip
        command = [sys.executable, "-c", textwrap.dedent(program), *tops]

        def outside() -> dict[str, dict[str, object]]:
            done = subprocess.run(command, capture_output=True, check=True)
            return json.loads(done.stdout)

        # Others change the system meanwhile: it is compared as far as it stays the same.
        before = outside()
        inside = json.loads(python(user, tree, program, *tops))
        after = outside()
        new = {
            "/sys/bus": {"cxl"},
            "/sys/devices/platform": {"EMU0017:00"},
            "/dev": {"cxl", "dax0.0", ".ptmx"},
        }
        made = {"/sys": {"bus", "devices"}, "/sys/devices": {"platform"}, "/dev": {"ptmx"}}
        for top in tops:
            came = inside[top].keys() - before[top].keys() - after[top].keys()
            assert came <= new.get(top, set())
            stays = {name for name in before[top] if before[top][name] == after[top].get(name)}
            # New mounts, hence new identities, where both sides meet.
            changed = {name for name in stays if inside[top].get(name) != before[top][name]}
            assert changed <= made.get(top, set())

    def test_devices_work(self, tree: Path, user: User):
        """/dev is as usable as before: null, urandom, shm, and new pseudo-terminals."""
        out = python(
            user,
            tree,
            """
            import os
            open("/dev/null", "w").write("x")
            assert len(open("/dev/urandom", "rb").read(8)) == 8
            with open(f"/dev/shm/cram-emu-{os.getpid()}", "x") as made:
                os.unlink(made.name)
            here, there = os.openpty()
            os.write(there, b"through")
            print(os.read(here, 7).decode(), os.path.exists(os.ttyname(there)))
            """,
        )
        assert out == "through True\n"

    def test_nothing_vanishes(self, tree: Path, user: User):
        """A directory made anew takes no new file: it would reach nobody."""
        for path in ("/sys/bus/new", "/sys/devices/platform/new", "/dev/new"):
            done = ns(user, tree, "touch", path)
            assert done.returncode == 1
            assert "Read-only file system" in done.stderr or "Permission denied" in done.stderr

    def test_live(self, tree: Path, user: User):
        """What is added to the tree's own directories shows in a running namespace."""
        with start(user, tree, "sh", "-c", "while read path; do cat $path 2>&1; done") as shell:

            def ask(path: str) -> str:
                shell.stdin.write(path + "\n")
                shell.stdin.flush()
                return shell.stdout.readline()

            assert ask("/sys/bus/cxl/flush") == "1\n"
            for path in (f"{DEVICE}/mem1", "sys/bus/cxl/mem1", "dev/cxl/mem1"):
                assert "No such file" in ask(f"/{path}")
                (tree / path).write_text("new\n")
                assert ask(f"/{path}") == "new\n"
                (tree / path).unlink()
                assert "No such file" in ask(f"/{path}")
            (tree / "sys/bus/cxl/flush").write_text("2\n")
            assert ask("/sys/bus/cxl/flush") == "2\n"

    def test_writes_reach_the_tree(self, tree: Path, user: User):
        """A write in the namespace is a write to the tree."""
        for path in ("sys/bus/cxl/flush", "dev/cxl/mem0", "proc/meminfo"):
            (tree / path).chmod(0o666)
            assert ns(user, tree, "sh", "-c", f"echo written > /{path}").returncode == 0
            assert (tree / path).read_text() == "written\n"

    def test_working_directory(self, tree: Path, user: User):
        """The command starts where it was called, in the new view of it."""
        assert ns(user, tree, "pwd", cwd="/usr").stdout == "/usr\n"
        assert ns(user, tree, "cat", "cxl/flush", cwd="/sys/bus").stdout == "1\n"

    def test_tree_below_dev(self, tree: Path, user: User):
        """The tree may lie in a directory that is covered."""
        with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
            os.chmod(place, 0o755)
            subprocess.run(["cp", "--archive", f"{tree}/.", place], check=True)
            assert ns(user, place, "cat", "/dev/cxl/mem0").stdout == "a device\n"

    def test_nested(self, tree: Path, user: User):
        """A namespace in a namespace, with the same tree."""
        files = "/sys/bus/cxl/flush", "/dev/cxl/mem0"
        done = ns(user, tree, *user.command("ns", tree, "--", "cat", *files))
        assert (done.stdout, done.stderr) == ("1\na device\n", "")


class TestOutside:
    """Nothing changes outside of the namespace, and nothing is left of it."""

    def mounts(self) -> str:
        return Path("/proc/self/mountinfo").read_text()

    def test_mounts(self, tree: Path, user: User):
        """The mounts of this process are the same while a namespace is there, and afterwards."""
        before = self.mounts()
        with start(user, tree, "sh", "-c", "echo there; cat") as inside:
            assert inside.stdout.readline() == "there\n"
            mounted = Path(f"/proc/{inside.pid}/mountinfo").read_text()
            assert " /sys/bus/cxl " in mounted and " /dev/cxl " in mounted
            assert self.mounts() == before
        assert self.mounts() == before
        assert not Path("/dev/.ptmx").exists() and not Path(f"/{DEVICE}").exists()

    def test_propagation(self, tree: Path, user: User):
        """No mount in the namespace is shared with another."""
        assert "shared:" not in ns(user, tree, "cat", "/proc/self/mountinfo").stdout

    def test_ends(self, tree: Path, user: User):
        """With the command the namespace ends: no process is left in it."""
        made = ns(user, tree, "readlink", "/proc/self/ns/mnt").stdout.strip()
        assert re.fullmatch(r"mnt:\[\d+\]", made)
        assert made != os.readlink("/proc/self/ns/mnt")
        for process in Path("/proc").glob("[0-9]*"):
            try:
                assert os.readlink(process / "ns/mnt") != made
            except OSError:
                pass  # ended, or another user's


class TestCommand:
    """The command is as if called directly."""

    @pytest.mark.parametrize("code", [0, 1, 3, 42, 255])
    def test_exit_code(self, tree: Path, user: User, code: int):
        """Its exit code is passed on."""
        assert ns(user, tree, "sh", "-c", f"exit {code}").returncode == code

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
    def test_signal(self, tree: Path, user: User, number: signal.Signals):
        """So is the signal that it dies of."""
        assert ns(user, tree, "sh", "-c", f"kill -{number} $$").returncode == -number

    def test_missing(self, tree: Path, user: User):
        """127 and one line where there is no such command, as shells have it."""
        done = ns(user, tree, "no-such-command")
        assert done.returncode == 127
        assert done.stderr == "cram-emu: no-such-command: No such file or directory\n"

    def test_not_executable(self, tree: Path, user: User):
        """126 and one line where it cannot be executed."""
        done = ns(user, tree, "/etc/passwd")
        assert done.returncode == 126
        assert done.stderr == "cram-emu: /etc/passwd: Permission denied\n"

    def test_arguments(self, tree: Path, user: User):
        """Arguments that look like options are the command's, a second -- too."""
        done = ns(user, tree, "printf", "%s,", "-M", "--", "--help", "--", "")
        assert done.stdout == "-M,--,--help,--,,"

    def test_streams(self, tree: Path, user: User):
        """Standard input and both outputs are its own."""
        done = ns(user, tree, "sh", "-c", "cat; echo problem >&2", input="given")
        assert (done.stdout, done.stderr) == ("given", "problem\n")

    def test_descriptors(self, tree: Path, user: User):
        """It gets no descriptor besides."""
        assert ns(user, tree, "ls", "/proc/self/fd").stdout.split() == ["0", "1", "2", "3"]

    def test_signals_are_at_their_defaults(self, tree: Path, user: User):
        """Nothing that Python ignores is ignored by the command."""
        status = ns(user, tree, "grep", "SigIgn", "/proc/self/status").stdout
        assert int(status.split()[1], 16) == 0

    def test_one_process(self, tree: Path, user: User):
        """The process that was started is the command: each signal reaches it, and once."""
        with start(user, tree, "sh", "-c", "echo $$") as process:
            assert int(process.stdout.read()) == process.pid

    def test_interrupt_key(self, tree: Path, user: User):
        """Ctrl-C at the terminal reaches the command, once, and it may go on."""
        script = "trap 'echo caught' INT; echo ready; read line; read line; echo read $line"
        command = user.command("ns", tree, "--", "bash", "-c", script)
        typed = ((b"ready", b"\x03"), (b"caught", b"one\ntwo\n"), (b"read two", b""))
        terminal, inner = os.openpty()
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), inner)
        in_terminal = ["setsid", "--ctty", "--wait", *command]
        with subprocess.Popen(in_terminal, **streams, **user.options) as process:
            os.close(inner)
            said = b""
            for wanted, keys in typed:
                while wanted not in said:
                    said += os.read(terminal, 1024)
                os.write(terminal, keys)
        os.close(terminal)
        assert said.count(b"caught") == 1
        assert process.returncode == 0

    def test_user(self, tree: Path, user: User):
        """It has the user and group that called, and no capability that these had not."""
        assert ns(user, tree, "id", "-u").stdout == f"{user.uid}\n"
        if user.uid != 0:
            status = ns(user, tree, "grep", "CapEff", "/proc/self/status").stdout
            assert int(status.split()[1], 16) == 0


class TestRefusals:
    """One line that says what is wrong; nothing is run."""

    def refused(self, user: User, tree: Path | str, code: int = 1) -> str:
        done = ns(user, tree, "echo", "ran")
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr.startswith("cram-emu: ") and done.stderr.count("\n") == 1
        return done.stderr

    def test_missing(self, user: User, tree: Path):
        """A mount point that is not there."""
        assert self.refused(user, tree / "no") == (
            f"cram-emu: {tree}/no: No such file or directory\n"
        )

    def test_a_file(self, user: User, tree: Path):
        """A file in the place of a mount point."""
        where = tree / "dev/cxl/mem0"
        assert f"{where}: no machine is mounted here" in self.refused(user, where)

    def test_not_a_tree(self, user: User):
        """A directory without what each tree has, such as an empty mount point."""
        assert self.refused(user, "/usr") == (
            "cram-emu: /usr: no machine is mounted here (no sys/bus/cxl or dev in it)\n"
        )

    def test_the_system(self, user: User, tree: Path):
        """The system's own root, where it has CXL devices."""
        done = ns(user, tree, *user.command("ns", "/", "--", "true"))
        assert done.stderr == "cram-emu: /: its sys is this system's own /sys\n"
        assert done.returncode == 1

    def test_new_name_in_proc(self, user: User, tree: Path):
        """A file for /proc that the kernel does not have."""
        make(tree, {"proc/cram": "x"})
        assert "kernel's /proc lacks a file of the tree" in self.refused(user, tree)

    def test_forbidden_directory(self, tree: Path, skip_unless_root):
        """A tree that this user may not look into."""
        tree.chmod(0o700)
        said = self.refused(users.ordinary(), tree)
        assert "no permission: a mounted machine is visible to the user who mounted it" in said

    def test_no_user_namespaces(self, user: User, tree: Path):
        """Where neither is permitted: exit code 3, and the remedy."""
        # The limit is set in a user namespace, for those below it.
        limit = "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all"
        lower = ["unshare", "--user", "--map-root-user", "sh", "-c", f'{limit} "$@"', "sh"]
        command = [*lower, *user.command("ns", tree, "--", "echo", "ran")]
        done = subprocess.run(command, **user.options, capture_output=True, text=True)
        assert done.stdout == ""
        assert done.stderr == (
            "cram-emu: user 0 may not make a user namespace (No space left on device): "
            "as root: sysctl user.max_user_namespaces=10000\n"
        )
        assert done.returncode == 3

    def test_threads(self, tree: Path):
        """A process with several threads cannot enter a user namespace, and hears why."""
        program = """
            import sys, threading
            from cram_emu.sysfs import namespace
            stop = threading.Event()
            threading.Thread(target=stop.wait).start()
            try:
                namespace.enter(sys.argv[1])
            except Exception as error:
                print(type(error).__name__, error)
            stop.set()
        """
        user = users.ordinary()
        command = [user.python, "-c", textwrap.dedent(program), tree]
        done = subprocess.run(command, **user.options, capture_output=True, text=True)
        assert done.stdout == (
            "DeviceIOError a process of several threads cannot enter a user namespace\n"
        )

    def test_usage(self, user: User, tree: Path):
        """No command: bad usage."""
        assert ns(user, tree).returncode == 2


class TestGoingAway:
    """Devices come and go while a namespace is made."""

    @pytest.mark.parametrize("gone", ["dev/cxl", "sys/bus/cxl", DEVICE])
    def test_left_out(self, tree: Path, skip_unless_root, run_child: Callable, gone: str):
        """What went away since the plan was made is left out, and leaves no mount point."""
        program = """
            import os, shutil, sys
            from cram_emu.sysfs import namespace
            tree, gone = sys.argv[1:3]
            steps = namespace.plan(tree)
            shutil.rmtree(f"{tree}/{gone}")
            namespace._unshare()
            namespace.carry_out(steps, tree)
            print(*map(os.path.exists, (f"/{gone}", "/dev/cxl", "/sys/bus/cxl", "/dev/null")))
        """
        there = [gone != path for path in (gone, "dev/cxl", "sys/bus/cxl", "")]
        done = run_child(program, tree, gone)
        assert (done.stdout, done.stderr) == (" ".join(map(str, there)) + "\n", "")

    def test_planned_again(self, tree: Path, monkeypatch: pytest.MonkeyPatch):
        """A plan that meets a name that has just gone is made again."""
        plans = iter([FileNotFoundError(2, "gone"), FileNotFoundError(2, "gone"), ["steps"]])

        def plan(tree: str):
            found = next(plans)
            if isinstance(found, OSError):
                raise found
            return found

        monkeypatch.setattr(namespace, "plan", plan)
        assert namespace._plan_steadily(str(tree)) == ["steps"]
