"""Unmodified programs on a mounted machine, under `cram-emu ns`, by root and an ordinary user.

Theory of operation: hosts.Host is a machine of known nodes and memory in a mount namespace of its
own; `cram-emu mount` serves there, and each client runs there under `cram-emu ns`. So a client's
output is the same on every host, and is compared as a whole with a file of golden/.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import users
from hosts import Host
from users import User

from cram_emu import Device, PoisonError

GOLDEN = Path(__file__).parent / "golden"
ACCEPT = "CRAM_EMU_ACCEPT"

# Where clients come from: program, Debian package, the version whose output golden/ holds.
CLIENTS = {
    "cxl": ("ndctl", "76.1"),
    "daxctl": ("daxctl", "76.1"),
    "numactl": ("numactl", "2.0.16"),
    "numastat": ("numactl", "2.0.16"),
    "prometheus-node-exporter": ("prometheus-node-exporter", "1.5.0"),
    "lsmem": ("util-linux", "2.38"),
    "lstopo-no-graphics": ("hwloc-nox", "2.9"),
}
TIMEOUT = 60

# A device node that is a file of FUSE opens no driver. libcxl says so in three ways.
MAILBOX = re.compile(r"libcxl: (do_cmd: failed to open /dev/cxl/mem\d+|\w+: mem\d+: query )")


def skip_unless_client(program: str) -> None:
    package, version = CLIENTS[program]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is missing: needs the Debian package {package}")
    show = ["dpkg-query", "--show", "--showformat=${Version}", package]
    installed = subprocess.run(show, capture_output=True, text=True).stdout
    if not installed.startswith(version):
        pytest.skip(f"golden outputs are those of {package} {version}, here is {installed}")


def assert_golden(name: str, output: str) -> None:
    file = GOLDEN / name
    if os.environ.get(ACCEPT):
        file.write_text(output)
    assert output == file.read_text(), f"to accept it: {ACCEPT}=1 scripts/test {__file__}"


class Machine:
    """A server on a host, and what runs there."""

    def __init__(self, host: Host, user: User, *options: str) -> None:
        self.host = host
        self.user = user
        self.mountpoint = host.mountpoint
        serve = user.command("mount", self.mountpoint, *options)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.server = subprocess.Popen(host.command(user, *serve), **pipes, **_surroundings(user))
        said = ""
        while "mounted on" not in said:
            line = self.server.stdout.readline()
            assert line, f"no mount: {said}"
            said += line

    def run(self, *command: object, user: User | None = None) -> subprocess.CompletedProcess[str]:
        """A command on the host, outside of the tree."""
        user = user or self.user
        return subprocess.run(
            self.host.command(user, *command),
            **_surroundings(user),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )

    def ns(self, *command: object, user: User | None = None) -> subprocess.CompletedProcess[str]:
        """A command under `cram-emu ns`."""
        words = (user or self.user).command("ns", self.mountpoint, "--", *command)
        return self.run(*words, user=user)

    def client(self, *command: object) -> str:
        """The output of a client that has no complaints, but for the mailbox (test_mailbox)."""
        skip_unless_client(command[0])
        done = self.ns(*command)
        complaints = [line for line in done.stderr.splitlines() if not MAILBOX.match(line)]
        assert (done.returncode, complaints) == (0, [])
        return done.stdout

    @contextmanager
    def shell(self) -> Iterator[Shell]:
        """A shell in a namespace that stays."""
        words = self.user.command("ns", self.mountpoint, "--", "sh")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        pipes["stderr"] = subprocess.DEVNULL
        command = self.host.command(self.user, *words)
        with subprocess.Popen(command, **pipes, **_surroundings(self.user)) as process:
            shell = Shell(process)
            assert shell.run("echo there") == "there\n"
            yield shell

    def registers(self, name: str) -> str:
        return f"{self.mountpoint}/sys/kernel/debug/cram_device/{name}"

    def plug(self, sizes: str) -> None:
        self._control("add", sizes)

    def pull(self, name: str) -> None:
        self._control("remove", name)

    def _control(self, file: str, text: str) -> None:
        done = self.run("sh", "-c", 'echo "$1" > "$2"', "sh", text, self.registers(file))
        assert (done.returncode, done.stderr) == (0, "")

    def device(self, name: str = "mem0") -> Device:
        """The test itself as a client of the device."""
        return Device.open(self.run("cat", self.registers(f"{name}/path")).stdout.strip())

    def stop(self) -> None:
        self.server.terminate()
        self.server.communicate(timeout=TIMEOUT)


class Shell:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, command: str) -> str:
        """What a line prints. Its complaints are dropped where it does not say otherwise."""
        self._process.stdin.write(f"{command}; echo; echo end\n")
        self._process.stdin.flush()
        output = ""
        while not output.endswith("\nend\n"):
            line = self._process.stdout.readline()
            assert line, f"the shell ended: {output}"
            output += line
        return output.removesuffix("\nend\n")


def _surroundings(user: User) -> dict:
    """nsenter runs as root, and setpriv after it."""
    return {name: user.options[name] for name in ("cwd", "env")}


@contextmanager
def serving(user: User, *options: str) -> Iterator[Machine]:
    """A machine of 8 GiB advertised and 1 GiB real, mounted by this user on a host of its own."""
    if user.uid != 0 and shutil.which("fusermount3") is None:
        pytest.skip("an ordinary user's mount needs the Debian package fuse3")
    with Host() as host:
        machine = Machine(host, user, *options)
        try:
            yield machine
        finally:
            machine.stop()


@pytest.fixture(scope="module", params=["root", "ordinary"])
def idle(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine that no test changes."""
    with serving(getattr(users, request.param)()) as machine:
        yield machine


@pytest.fixture(params=["root", "ordinary"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine of its own for a test that changes it."""
    with serving(getattr(users, request.param)()) as machine:
        yield machine


class TestOutputs:
    """What clients print of one idle device, as a whole."""

    @pytest.mark.parametrize(
        "command",
        [
            "cxl list -M",
            "cxl list -D -R -B",
            "cxl list -vvv",
            "cxl list",
            "daxctl list",
            "daxctl list -D -R -M",
            "numactl -H",
            "numastat",
            "numastat -m",
            "lsmem",
        ],
    )
    def test_golden(self, idle: Machine, command: str):
        """The file of that name in golden/."""
        output = idle.client(*command.split())
        assert_golden(command.replace(" ", "_") + ".txt", output)

    def test_node_exporter(self, idle: Machine):
        """Its meminfo_numa metrics."""
        assert_golden("node_exporter_meminfo_numa.txt", scrape(idle))

    @pytest.mark.parametrize("library", ["fusepy", "mfusepy"])
    def test_bindings(self, library: str):
        """Whichever library serves, clients see the same."""
        pytest.importorskip({"fusepy": "fuse"}.get(library, library))
        with serving(users.root(), "--fuse", library) as machine:
            assert_golden("cxl_list_-vvv.txt", machine.client("cxl", "list", "-vvv"))
            assert_golden("numastat_-m.txt", machine.client("numastat", "-m"))

    def test_lstopo(self, idle: Machine):
        """The node and the memory device. --disallowed: the real kernel allows node 0 only."""
        lines = idle.client("lstopo-no-graphics", "--disallowed").splitlines()
        found = [line.strip() for line in lines if "NUMANode" in line or "CXLMem" in line]
        assert found == [
            "NUMANode L#0 (P#0 4096MB)",
            "NUMANode(SPM) L#1 (P#1 8192MB)",
            'Block(CXLMem) "mem0"',
        ]

    def test_mailbox(self, idle: Machine):
        """What needs the mailbox lists the device without it, and says that it cannot be asked."""
        skip_unless_client("cxl")
        for option in ("-H", "-A"):
            done = idle.ns("cxl", "list", "-M", option)
            assert done.returncode == 0
            assert_golden("cxl_list_-M.txt", done.stdout)
            lines = done.stderr.splitlines()
            assert lines and all(MAILBOX.match(line) for line in lines)

    def test_without(self, idle: Machine):
        """Outside of the namespace no client sees a device: the outputs above are the tree's."""
        skip_unless_client("cxl")
        assert idle.run("cxl", "list", "-M").stdout.strip() in ("", "[\n]")
        skip_unless_client("numactl")
        assert "node 1" not in idle.run("numactl", "-H").stdout


def scrape(machine: Machine) -> str:
    """What a Prometheus server gets of the node's memory."""
    program = "prometheus-node-exporter"
    skip_unless_client(program)
    address = _free_address()
    options = ["--collector.disable-defaults", "--collector.meminfo_numa"]
    options += ["--web.disable-exporter-metrics", f"--web.listen-address={address}"]
    words = machine.user.command("ns", machine.mountpoint, "--", program, *options)
    exporter = subprocess.Popen(
        machine.host.command(machine.user, *words),
        **_surroundings(machine.user),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        text = _fetch(f"http://{address}/metrics", exporter)
    finally:
        exporter.terminate()
        exporter.communicate(timeout=TIMEOUT)
    return "".join(
        f"{line}\n" for line in text.splitlines() if re.search(r"\bnode_memory_numa_", line)
    )


def _free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        return f"{host}:{port}"


def _fetch(url: str, server: subprocess.Popen) -> str:
    until = time.monotonic() + TIMEOUT
    while True:
        try:
            # Whatever proxy the environment names is not for this machine's own addresses.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(url, timeout=TIMEOUT) as answer:
                return answer.read().decode()
        except urllib.error.URLError:
            assert server.poll() is None, server.stderr.read()
            assert time.monotonic() < until, f"nobody answers at {url}"
            time.sleep(0.05)


class TestLive:
    """Clients see what happens to the machine while they look."""

    def test_writes(self, machine: Machine):
        """Pages that are written are missing from the node's free memory, by advertised size."""
        with machine.device() as device:
            page = bytes(range(256)) * 16
            device.write(0, page * (256 << 20 >> 12))
            assert_golden("numactl_-H_used.txt", machine.client("numactl", "-H"))
            assert_golden("numastat_used.txt", machine.client("numastat"))
            device.discard(0, 256 << 20)
            assert_golden("numactl_-H.txt", machine.client("numactl", "-H"))

    def test_hot_add_and_remove(self, machine: Machine):
        """A second device comes and goes in a namespace that was there before it."""
        skip_unless_client("cxl")
        with machine.shell() as shell:
            for _ in range(2):
                assert_golden("cxl_list_-M.txt", shell.run("cxl list -M"))
                machine.plug("4G 512M")
                assert_golden("cxl_list_-M_two.txt", shell.run("cxl list -M"))
                assert_golden("cxl_list_-vvv_two.txt", shell.run("cxl list -vvv"))
                machine.pull("mem1")
            assert_golden("cxl_list_-vvv.txt", shell.run("cxl list -vvv"))

    def test_the_first_goes(self, machine: Machine):
        """Not only the last device can go: the other keeps its names."""
        skip_unless_client("cxl")
        with machine.shell() as shell:
            machine.plug("4G 512M")
            machine.pull("mem0")
            assert_golden("cxl_list_-M_second.txt", shell.run("cxl list -M"))
            machine.pull("mem1")
            assert_golden("cxl_list_-M_none.txt", shell.run("cxl list -M"))

    def test_two(self, machine: Machine):
        """Other clients see both devices, in a namespace that is made afterwards."""
        machine.plug("4G 512M")
        for command in ("numactl -H", "numastat -m", "daxctl list", "lsmem"):
            name = command.replace(" ", "_") + "_two.txt"
            assert_golden(name, machine.client(*command.split()))

    def test_nodes_in_a_running_namespace(self, machine: Machine):
        """A node that comes later shows in a namespace that was there before it."""
        skip_unless_client("numactl")
        with machine.shell() as shell:
            assert_golden("numactl_-H.txt", shell.run("numactl -H"))
            machine.plug("4G 512M")
            assert_golden("numactl_-H_two.txt", shell.run("numactl -H"))

    def test_poison_by_script(self, machine: Machine):
        """A shell script poisons a line and clears it, as documented for real devices."""
        poison = "/sys/kernel/debug/cxl/mem0"
        with machine.device() as device:
            device.write(0, b"a" * 8192)
            assert machine.ns("bash", "-c", f"echo 0x1040 > {poison}/inject_poison").stderr == ""
            with pytest.raises(PoisonError) as caught:
                device.read(0, 8192)
            assert (caught.value.address, caught.value.length) == (0x1040, 64)
            assert machine.ns("bash", "-c", f"echo 0x1040 > {poison}/clear_poison").stderr == ""
            assert device.read(0x1040, 64) == bytes(64)
            done = machine.ns("bash", "-c", f"echo 0x1041 > {poison}/inject_poison")
            assert "Invalid argument" in done.stderr


class TestMounts:
    """Mounts that `cram-emu ns` cannot lay over the system."""

    def test_dead_server(self, machine: Machine):
        """A server that was killed: one line, and the remedy."""
        pid = machine.server.pid
        # What nsenter and setpriv were is the server: they have executed it.
        os.kill(pid, signal.SIGKILL)
        machine.server.wait()
        done = machine.ns("true")
        assert done.returncode == 1
        assert done.stderr == (
            f"cram-emu: {machine.mountpoint}: its server is gone; "
            f"start another: cram-emu mount {machine.mountpoint}\n"
        )

    def test_dies_under_a_command(self, machine: Machine):
        """The command goes on: the machine's files answer ENOTCONN, all others as ever."""
        with machine.shell() as shell:
            size = "/sys/bus/cxl/devices/mem0/ram/size"
            assert shell.run(f"cat {size}") == "0x200000000\n"
            os.kill(machine.server.pid, signal.SIGKILL)
            machine.server.wait()
            assert "Transport endpoint is not connected" in shell.run(f"cat {size} 2>&1")
            other = "/sys/kernel/address_bits"
            assert shell.run(f"cat {other}") == Path(other).read_text()

    def test_roots(self):
        """Every user can look at root's machine."""
        skip_unless_client("cxl")
        with serving(users.root()) as machine:
            done = machine.ns("cxl", "list", "-M", user=users.ordinary())
        assert (done.returncode, done.stderr) == (0, "")
        assert_golden("cxl_list_-M.txt", done.stdout)

    def test_another_users(self):
        """Nobody else, not even root, can look at an ordinary user's: one line that says so."""
        with serving(users.ordinary()) as machine:
            done = machine.ns("true", user=users.root())
        assert done.returncode == 1
        assert done.stderr == (
            f"cram-emu: {machine.mountpoint}: "
            "no permission: a mounted machine is visible to the user who mounted it\n"
        )

    def test_stops_under_a_command(self, machine: Machine):
        """A server that is asked to end ends, though a namespace still holds its files."""
        with machine.shell() as shell:
            machine.stop()
            assert machine.server.returncode == 0
            assert "Transport endpoint is not connected" in shell.run("ls /sys/bus/cxl 2>&1")


def test_leaves_nothing():
    """After server and clients no mount and no device file is left, here or on the host."""

    def mounts() -> list[str]:
        return [Path("/proc/self/mountinfo").read_text(), host.mounts()]

    with Host() as host:
        before = mounts()
        machine = Machine(host, users.root())
        path = machine.run("cat", machine.registers("mem0/path")).stdout.strip()
        assert Path(path).exists()
        assert machine.ns("true").returncode == 0
        machine.stop()
        assert mounts() == before
        assert not Path(path).exists()
