"""`cram-emu info`: facts of made-up hosts, and of this one against the kernel's own files."""

import errno
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cram_emu import cli
from cram_emu.cli import info
from cram_emu.cli.info import Host
from cram_emu.device import UffdInfo

INFO = (
    sys.executable,
    "-c",
    "import sys; from cram_emu.cli import main; sys.exit(main(['info', *sys.argv[1:]]))",
)
EVERYTHING = UffdInfo(
    available=0,
    kernel_faults=True,
    features=0x1FFFF,
    sigbus=True,
    write_protect=True,
    poison=True,
    move=True,
    exact_address=True,
)
NOTHING = UffdInfo(
    available=-errno.EPERM,
    kernel_faults=False,
    features=0,
    sigbus=False,
    write_protect=False,
    poison=False,
    move=False,
    exact_address=False,
)
ALL_CAPABILITIES = (1 << 41) - 1

GENEROUS = {
    "proc/sys/kernel/osrelease": "6.18.44\n",
    "proc/sys/vm/unprivileged_userfaultfd": "1\n",
    "proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n",
    "proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n",
    "proc/self/mounts": "cgroup {root}/cgroup cgroup rw,relatime,memory 0 0\n",
    "cgroup/memory.limit_in_bytes": "\n",
    "sys/class/zram-control/hot_add": "",
    "sys/block/zram0/comp_algorithm": "[lzo-rle] lzo lz4\n",
    "sys/block/zram0/disksize": "0\n",
    "dev/userfaultfd": "",
    "dev/fuse": "",
}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host that permits everything."""
    generous = Host(tmp_path, EVERYTHING, uid=0, capabilities=ALL_CAPABILITIES)
    for path, text in GENEROUS.items():
        put(generous, path, text.format(root=tmp_path))
    return generous


def put(host: Host, path: str, text: str | None) -> None:
    file = host.root / path
    if text is None:
        file.unlink()
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_generous_host(host: Host):
    """Where everything is permitted nothing has a consequence."""
    facts = [fact(host) for fact in info.FACTS if fact is not info.fuse]
    assert [f.name for f in facts if f.consequence or f.remedy] == []
    assert info.usable(host)


class TestUserfaultfd:
    def test_refused(self, host: Host):
        """Without userfaultfd no device can be used as memory, and the remedy is named."""
        host = replace(host, uffd=NOTHING)
        fact = info.userfaultfd(host)
        assert (fact.state, fact.value) == ("no", "Operation not permitted")
        assert fact.consequence == info.NO_MAPPING
        assert "run as root" in fact.remedy
        assert not info.usable(host)
        assert info.poison(host).value == "unknown without userfaultfd"

    def test_user_mode_only(self, host: Host):
        """User mode alone is enough for inline delivery."""
        host = replace(host, uffd=replace(EVERYTHING, kernel_faults=False))
        fact = info.userfaultfd(host)
        assert (fact.state, fact.consequence) == ("partly", info.NO_MONITOR)
        assert "echo 1 > /proc/sys/vm/unprivileged_userfaultfd" in fact.remedy
        assert info.usable(host)

    @pytest.mark.parametrize(
        "feature, usable",
        [
            ("sigbus", True),
            ("write_protect", False),
            ("exact_address", False),
            ("poison", True),
            ("move", True),
        ],
    )
    def test_feature_missing(self, host: Host, feature: str, usable: bool):
        """A feature that is not offered has a consequence and names the kernel that has it."""
        host = replace(host, uffd=replace(EVERYTHING, **{feature: False}))
        fact = getattr(info, feature)(host)
        assert (fact.state, bool(fact.consequence)) == ("no", True)
        assert re.fullmatch(r"Linux \d\.\d+ or newer", fact.remedy)
        assert info.usable(host) == usable

    def test_neither_delivery(self, host: Host):
        """Without both deliveries' features a device cannot be used as memory."""
        uffd = replace(EVERYTHING, sigbus=False, poison=False)
        assert not info.usable(replace(host, uffd=uffd))

    def test_device_node(self, host: Host):
        """/dev/userfaultfd is told as missing or permitted."""
        assert info.userfaultfd_device(host).value == "permitted"
        put(host, "dev/userfaultfd", None)
        assert info.userfaultfd_device(host).value == "missing"

    def test_setting(self, host: Host):
        """vm.unprivileged_userfaultfd is told as it stands."""
        assert (info.unprivileged(host).state, info.unprivileged(host).value) == ("yes", "1")
        put(host, "proc/sys/vm/unprivileged_userfaultfd", "0\n")
        fact = info.unprivileged(host)
        assert (fact.state, fact.value, fact.remedy) == ("no", "0", info.PERMIT_ALL)


class TestPeer:
    """What bench needs to show kernel zram: each refusal has its consequence and its own remedy."""

    @pytest.mark.parametrize(
        "uid, capabilities, state, value",
        [
            (0, 1 << 19, "partly", "root, CAP_SYS_PTRACE"),
            (0, 0, "partly", "root"),
            (1000, 1 << 21, "partly", "uid 1000, CAP_SYS_ADMIN"),
            (1000, 0, "no", "uid 1000"),
        ],
    )
    def test_privileges(self, host: Host, uid: int, capabilities: int, state: str, value: str):
        fact = info.privileges(replace(host, uid=uid, capabilities=capabilities))
        assert (fact.state, fact.value, fact.consequence) == (state, value, info.NO_ZRAM)
        assert "root" in fact.remedy

    @pytest.mark.parametrize(
        "fact, path, text, state, remedy",
        [
            ("zram", "sys/class/zram-control/hot_add", None, "no", "modprobe zram"),
            ("zram", "sys/block/zram0/comp_algorithm", "[lzo]\n", "no", "CONFIG_ZRAM_BACKEND_LZ4"),
            ("zram", "sys/module/zswap/parameters/enabled", "Y\n", "partly", "echo N > "),
            ("swap", "proc/swaps", None, "no", "CONFIG_SWAP"),
            ("swap", "proc/swaps", "Filename\n/dev/vdb partition 8 0 -2\n", "partly", "/dev/vdb"),
            ("memory_cgroup", "proc/self/mounts", "proc /proc proc rw 0 0\n", "no", "cgroup2"),
        ],
    )
    def test_missing(
        self, host: Host, fact: str, path: str, text: str | None, state: str, remedy: str
    ):
        put(host, path, text)
        found = getattr(info, fact)(host)
        assert (found.state, found.consequence) == (state, info.NO_ZRAM)
        assert remedy in found.remedy

    def test_zram_in_use(self, host: Host):
        """A zram device in use is named; bench adds one of its own."""
        put(host, "sys/block/zram0/disksize", "1073741824\n")
        assert info.zram(host) == info.Fact("zram", "yes", "lz4, zram0 in use")

    def test_cgroup_not_writable(self, host: Host, monkeypatch: pytest.MonkeyPatch):
        """A hierarchy that is there and not ours to change is told apart from none."""
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        found = info.memory_cgroup(host)
        assert (found.state, found.consequence) == ("no", info.NO_ZRAM)
        assert found.value == f"v1 at {host.root}/cgroup, not writable"


class TestRest:
    @pytest.mark.parametrize(
        "kib, state, who",
        [(1 << 20, "no", "the demo"), (3 << 20, "partly", "bench"), (5 << 20, "yes", "")],
    )
    def test_free_memory(self, host: Host, kib: int, state: str, who: str):
        """Who runs short of memory is named."""
        put(host, "proc/meminfo", f"MemAvailable: {kib} kB\n")
        fact = info.free_memory(host)
        assert (fact.state, fact.consequence.startswith(who)) == (state, True)

    def test_fuse(self, host: Host, monkeypatch: pytest.MonkeyPatch):
        """FUSE names what is missing, and never proposes the package that would replace fuse3."""
        monkeypatch.setattr(info, "_loads", lambda library: False)
        monkeypatch.setattr(info.shutil, "which", lambda name: "/usr/bin/fusermount3")
        fact = info.fuse(host)
        assert (fact.state, fact.value) == ("partly", "without libfuse2")
        assert fact.remedy.split("install ")[1].split() == ["libfuse2", "fuse3"]
        monkeypatch.setattr(info, "_loads", lambda library: True)
        assert info.fuse(host).state == "yes"
        put(host, "dev/fuse", None)
        assert (info.fuse(host).state, info.fuse(host).remedy) == ("no", "run as root")


class TestCommand:
    def test_piped(self):
        """A pipe gets aligned plain lines, each fact in one, and the verdict last."""
        result = subprocess.run(INFO, capture_output=True, text=True)
        lines = result.stdout.splitlines()
        assert "\x1b" not in result.stdout
        assert len(lines) == 1 + len(info.FACTS) + 1
        column = lines[0].index("state")
        assert {line[column:].split()[0] for line in lines[1:-1]} <= set(info.STATES)
        assert (result.returncode == cli.OK) == (lines[-1] == info.verdict(Host.here()))

    def test_json(self):
        """--json is one document that agrees with the kernel's own files."""
        result = subprocess.run([*INFO, "--json"], capture_output=True, text=True)
        document = json.loads(result.stdout)
        facts = {fact["name"]: fact for fact in document["facts"]}
        assert facts["kernel"]["value"] == os.uname().release
        assert document["usable"] == (result.returncode == cli.OK)
        assert result.stderr == ""

    def test_terminal(self, run_in_terminal):
        """A terminal gets colour."""
        assert "\x1b[32myes" in run_in_terminal(INFO)

    def test_changes_nothing(self):
        """Swap areas and block devices are the same afterwards."""

        def state() -> tuple[str, set[str]]:
            return Path("/proc/swaps").read_text(), set(os.listdir("/sys/block"))

        before = state()
        subprocess.run(INFO, capture_output=True)
        assert state() == before
