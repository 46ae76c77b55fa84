"""A manager's files: against the live kernel's of the same names, and against what the manager says."""

import dataclasses
import errno
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from managed_tree import PAGES, Managed
from samples import PAGE
from servers import CLI

from cram_emu import Device
from cram_emu.errors import Busy
from cram_emu.host import Zswap
from cram_emu.sysfs import fuse, zswap
from cram_emu.sysfs.machine import Machine
from cram_emu.sysfs.proc import EVENTS
from cram_emu.sysfs.table import Directory
from cram_emu.sysfs.zswap import CLASSES, OWN, PARAMETERS, STATISTICS

NODE = "sys/kernel/debug/cram_device/mem0/zswap"
#: Files that a manager brings, and where nothing else is.
TREES = ("sys/module", STATISTICS, "sys/kernel/debug/zsmalloc", OWN, NODE, "sys/fs", "proc")
WRITABLE = (
    f"{PARAMETERS}/enabled",
    f"{PARAMETERS}/shrinker_enabled",
    f"{PARAMETERS}/max_pool_percent",
    f"{PARAMETERS}/accept_threshold_percent",
    f"{PARAMETERS}/compressor",
    f"{OWN}/direct_limit",
    f"{OWN}/charging",
    f"{OWN}/max_direct_percent",
    "sys/fs/cgroup/redis/memory.max",
    "sys/fs/cgroup/redis/memory.zswap.max",
    "sys/fs/cgroup/redis/memory.zswap.writeback",
)


def raises(number: int):
    return pytest.raises(OSError, check=lambda error: error.errno == number)


def there(machine: Machine, path: str) -> bool:
    try:
        machine.table.find(path)
    except OSError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Live:
    """A file of this host's kernel."""

    mode: int
    size: int
    text: str


def live(directory: str | Path, prefix: tuple[str, ...] = ()) -> dict[str, Live]:
    """The files of a directory, as a shell sees them that `prefix` starts."""
    script = 'cd "$0" && for f in *; do stat -c "%n %a %s" "$f" && head -n 1 "$f"; done'
    done = subprocess.run([*prefix, "sh", "-c", script, directory], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot read the kernel's {directory}: {done.stderr.strip()}")
    lines = done.stdout.splitlines(keepends=True)
    found = {}
    for head, text in zip(lines[::2], lines[1::2], strict=True):
        name, mode, size = head.split()
        found[name] = Live(int(mode, 8), int(size), text)
    return found


@pytest.fixture
def live_debugfs(skip_unless_root, tmp_path: Path) -> dict[str, Live]:
    """The kernel's own statistics, from a debugfs that only this look at them has mounted."""
    mount = 'mount -t debugfs none "$1" && shift && exec "$@"'
    where = tmp_path / "debugfs"
    where.mkdir()
    prefix = ("unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh", str(where))
    return live(where / "zswap", prefix)


class TestAbsent:
    """Without a manager: as on a kernel without zswap."""

    def test_off(self, machine: Machine):
        assert [path for path in TREES if there(machine, path)] == []

    def test_on(self, managed: Managed):
        assert [path for path in TREES if not there(managed.machine, path)] == []


class TestLikeTheKernels:
    """Names, modes, sizes and formats are those of the kernel that runs here."""

    def test_parameters(self, managed: Managed):
        theirs = live("/" + PARAMETERS)
        assert sorted(managed.machine.table.find(PARAMETERS).names()) == sorted(theirs)
        for name, file in theirs.items():
            ours = managed.machine.table.find(f"{PARAMETERS}/{name}")
            assert (stat.S_IMODE(ours.st_mode), ours.st_size) == (file.mode, file.size)
            assert shape(managed.show(f"{PARAMETERS}/{name}")) == shape(file.text)

    def test_statistics(self, managed: Managed, live_debugfs: dict[str, Live]):
        ours = managed.machine.table.find(STATISTICS).names()
        assert sorted({*ours} - {"stored_direct_pages"}) == sorted(live_debugfs)
        for name, file in live_debugfs.items():
            entry = managed.machine.table.find(f"{STATISTICS}/{name}")
            assert (stat.S_IMODE(entry.st_mode), entry.st_size) == (file.mode, file.size)
            assert shape(managed.show(f"{STATISTICS}/{name}")) == shape(file.text) == "n\n"

    def test_vmstat(self, managed: Managed):
        """The same names in the same order, each with a number."""
        theirs = Path("/proc/vmstat").read_text()
        if not {*EVENTS} <= {*theirs.split()}:
            pytest.skip("this kernel's /proc/vmstat lacks lines of zswap")
        ours = managed.show("proc/vmstat")
        assert [shape(line) for line in ours.splitlines()] == [shape(line) for line in theirs.splitlines()]

    def test_meminfo(self, managed: Managed):
        """The same lines, of the same width."""
        theirs = Path("/proc/meminfo").read_text()
        if "Zswap:" not in theirs:
            pytest.skip("this kernel's /proc/meminfo has no line of zswap")
        ours = managed.show("proc/meminfo")
        form = [(line.split()[0], len(line)) for line in ours.splitlines()]
        assert form == [(line.split()[0], len(line)) for line in theirs.splitlines()]


def shape(text: str) -> str:
    """What is left of a line when its values are not looked at."""
    for word, pattern in (("n", r"\d+"), ("b", "[YN]"), ("c", "lz4|zstd|lzo|lzo-rle|lz4hc|deflate|842")):
        text = re.sub(rf"\b(?:{pattern})\b", word, text)
    return text


class TestStatistics:
    def test_what_the_manager_says(self, managed: Managed):
        managed.fill()
        stats = dataclasses.asdict(managed.zswap.stats)
        for name in zswap.COUNTS:
            assert managed.show(f"{STATISTICS}/{name}") == f"{stats[name]}\n"
        for name in zswap.OWN_COUNTS:
            assert managed.show(f"{OWN}/{name}") == f"{stats[name]}\n"

    def test_no_page_counts_twice(self, managed: Managed):
        """stored_pages is the entries, wherever they are: those of the nodes and those of the pool."""
        managed.fill()
        direct, pool = managed.number(f"{NODE}/stored"), managed.number(f"{OWN}/stored_pool_pages")
        assert direct > 0 and pool > 0
        assert managed.number(f"{STATISTICS}/stored_direct_pages") == direct
        assert managed.number(f"{STATISTICS}/stored_pages") == direct + pool == PAGES

    def test_loads_are_exclusive(self, managed: Managed):
        managed.fill()
        stored = managed.number(f"{STATISTICS}/stored_pages")
        assert managed.memory[0:1] != b"" and managed.number(f"{STATISTICS}/stored_pages") < stored
        managed.memory.discard(0, PAGES * PAGE)
        for name in ("stored_pages", "stored_direct_pages", "stored_incompressible_pages"):
            assert managed.show(f"{STATISTICS}/{name}") == "0\n"

    def test_total_pages(self, managed: Managed):
        """Under each direct_limit at once; zswap's own line of meminfo has the one that is in force."""
        managed.fill()
        totals = {limit: managed.number(f"{OWN}/total_pages_{limit}") for limit in ("none", "page", "size")}
        pool = managed.number(f"{STATISTICS}/pool_total_size") // PAGE
        direct = managed.number(f"{STATISTICS}/stored_direct_pages")
        assert (totals["none"], totals["page"]) == (pool, pool + direct)
        assert totals == managed.zswap.stats.total_pages
        for limit, pages in totals.items():
            assert managed.store(f"{OWN}/direct_limit", f"{limit}\n") == 0
            assert f"Zswap:          {pages * 4:8} kB\n" in managed.show("proc/meminfo")

    def test_meminfo(self, managed: Managed):
        managed.fill()
        assert f"Zswapped:       {PAGES * 4:8} kB\n" in managed.show("proc/meminfo")

    def test_vmstat(self, managed: Managed):
        managed.fill()
        stats = managed.zswap.stats
        assert stats.zswpout == PAGES
        rows = dict(line.split() for line in managed.show("proc/vmstat").splitlines())
        assert {name: int(rows[name]) for name in EVENTS} == {name: getattr(stats, name) for name in EVENTS}

    def test_closed(self, managed: Managed):
        """What a closed manager showed has gone."""
        path = f"{STATISTICS}/stored_pages"
        held = managed.machine.table.find(path).open(os.O_RDONLY)
        assert held.read(PAGE, 0) == b"0\n"
        managed.zswap.close()
        for read in (lambda: held.read(PAGE, 0), lambda: managed.show(CLASSES)):
            with raises(errno.ENODEV):
                read()
        assert managed.store(f"{PARAMETERS}/enabled", "N") == errno.ENODEV


class TestClasses:
    """zs_stats_size_show()"""

    HEADER = (
        " class  size       10%       20%       30%       40%       50%       60%       70%       80%       90%"
        "       99%      100% obj_allocated   obj_used pages_used pages_per_zspage freeable\n"
    )
    ROW = re.compile(r" [ \d]{5} [ \d]{5} (?:[ \d]{9} ){11}[ \d]{13} [ \d]{10} [ \d]{10} [ \d]{16} [ \d]{8}")

    def test_empty(self, managed: Managed):
        """The smallest class and the largest, to the byte; 119 of them for chains of 8."""
        first, *rows, blank, total = managed.show(CLASSES).splitlines(keepends=True)
        zeros = "        0 " * 11 + "            0          0          0 "
        assert (first, blank, len(rows)) == (self.HEADER, "\n", 119)
        assert rows[0] == f"     0    32 {zeros}               1        0\n"
        assert rows[-1] == f"   254  4096 {zeros}               1        0\n"
        assert total == f" Total       {zeros}                        0\n"

    def test_rows(self, managed: Managed):
        """Every class has its line and the totals are their sums."""
        managed.fill()
        _, *rows, _, total = managed.show(CLASSES).splitlines()
        assert all(self.ROW.fullmatch(row) for row in rows)
        columns = [*zip(*(map(int, row.split()) for row in rows), strict=True)]
        for row, known in zip(rows, managed.zswap.pool_classes(), strict=True):
            assert [int(word) for word in row.split()] == [
                known.index, known.size, *known.fullness[1:], known.objs_allocated, known.objs_used, known.pages_used,
                known.pages_per_zspage, known.freeable,
            ]  # fmt: skip
        assert [int(word) for word in total.split()[1:]] == [sum(c) for c in (*columns[2:16], columns[17])]
        assert sum(columns[14]) == managed.number(f"{OWN}/stored_pool_pages")


class TestParameters:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [("Y", "Y"), ("y\n", "Y"), ("1", "Y"), ("on", "Y"), ("N", "N"), ("n", "N"), ("0\n", "N"), ("off", "N")],
    )
    @pytest.mark.parametrize("name", ["enabled", "shrinker_enabled"])
    def test_bool(self, managed: Managed, name: str, text: str, shown: str):
        """kstrtobool() reads, one letter is shown."""
        assert managed.store(f"{PARAMETERS}/{name}", text) == 0
        assert managed.show(f"{PARAMETERS}/{name}") == f"{shown}\n"
        assert getattr(managed.zswap, name) is (shown == "Y")

    @pytest.mark.parametrize("name", ["accept_threshold_percent", "max_pool_percent"])
    def test_uint(self, managed: Managed, name: str):
        for text, value in (("0", 0), ("100\n", 100), ("0x10", 16), ("010", 8), ("+7", 7)):
            assert managed.store(f"{PARAMETERS}/{name}", text) == 0
            assert managed.show(f"{PARAMETERS}/{name}") == f"{value}\n"
            assert getattr(managed.zswap, name) == value

    def test_compressor(self, managed: Managed):
        assert managed.show(f"{PARAMETERS}/compressor") == "lz4\n"
        assert managed.store(f"{PARAMETERS}/compressor", " lz4\n") == 0
        assert managed.store(f"{PARAMETERS}/compressor", "zstd\n") == errno.EINVAL

    @pytest.mark.parametrize("switched_on", [True, False])
    def test_enabled_is_in_effect(self, managed: Managed, switched_on: bool):
        """What is switched off takes nothing more: pages go to the swap file."""
        assert managed.store(f"{PARAMETERS}/enabled", "Y" if switched_on else "N") == 0
        managed.fill()
        stored = [managed.number(f) for f in (f"{STATISTICS}/stored_pages", f"{OWN}/stored_swap_pages")]
        assert stored == ([PAGES, 0] if switched_on else [0, PAGES])

    @pytest.mark.parametrize("percent", ["20", "1"])
    def test_limit_is_in_effect(self, managed: Managed, percent: str):
        """1 % of 64 MiB is 163 pages, which a memory of 4 MiB meets."""
        assert managed.store(f"{PARAMETERS}/max_pool_percent", percent) == 0
        managed.fill()
        hit = managed.number(f"{STATISTICS}/pool_limit_hit") > 0
        assert hit is (percent == "1")

    @pytest.mark.parametrize(
        ("path", "text", "number"),
        [
            (f"{PARAMETERS}/enabled", "maybe", errno.EINVAL),
            (f"{PARAMETERS}/enabled", "", errno.EINVAL),
            (f"{PARAMETERS}/enabled", "2", errno.EINVAL),
            (f"{PARAMETERS}/shrinker_enabled", "-1", errno.EINVAL),
            (f"{PARAMETERS}/max_pool_percent", "101", errno.EINVAL),
            (f"{PARAMETERS}/max_pool_percent", "-1", errno.EINVAL),
            (f"{PARAMETERS}/max_pool_percent", "20%", errno.EINVAL),
            (f"{PARAMETERS}/max_pool_percent", "", errno.EINVAL),
            (f"{PARAMETERS}/accept_threshold_percent", "101", errno.EINVAL),
            (f"{PARAMETERS}/accept_threshold_percent", "4294967296", errno.ERANGE),
            (f"{PARAMETERS}/compressor", "", errno.EINVAL),
            (f"{PARAMETERS}/compressor", "lz", errno.EINVAL),
            (f"{STATISTICS}/stored_pages", "0", errno.EACCES),
            (CLASSES, "0", errno.EACCES),
            ("proc/vmstat", "0", errno.EACCES),
            (f"{OWN}/direct_limit", "half", errno.EINVAL),
            (f"{OWN}/charging", "", errno.EINVAL),
            (f"{OWN}/max_direct_percent", "101", errno.EINVAL),
        ],
    )
    def test_refused(self, managed: Managed, path: str, text: str, number: int):
        before = {path: managed.show(path) for path in WRITABLE}
        assert managed.store(path, text) == number
        assert {path: managed.show(path) for path in WRITABLE} == before

    @settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.sampled_from(WRITABLE), st.text(st.characters(max_codepoint=127), max_size=40))
    def test_anything(self, managed: Managed, path: str, text: str):
        """A write is taken, or refused and nothing changes."""
        before = managed.show(path)
        code = managed.store(path, text)
        assert code in (0, errno.EINVAL, errno.ERANGE)
        assert code == 0 or managed.show(path) == before


class TestNodes:
    """What the manager says of a device stands with the device, whoever opened it."""

    def test_counts(self, managed: Managed):
        managed.fill()
        (node,) = managed.zswap.nodes
        stats = dataclasses.asdict(node.stats)
        refused = stats.pop("refused")
        expected = {"node": 0, **stats, **{f"refused_{reason}": n for reason, n in refused.items()}}
        directory = managed.machine.table.find(NODE)
        assert {name: managed.number(f"{NODE}/{name}") for name in directory.names()} == expected
        assert stats["stored"] > 0 and sum(refused.values()) > 0

    def test_other_device(self, managed: Managed):
        """One that is no node has no counts."""
        managed.machine.create("64M", "1M")
        assert managed.machine.table.find("sys/kernel/debug/cram_device/mem1/zswap").names() == []

    def test_device_of_the_machine(self):
        """A device may be made by the machine and given to the manager; it is not pulled out from under it."""
        with Zswap(ram="64M", swap=0) as manager:
            machine = Machine(manager=manager)
            device = machine.create("64M", "1M").device
            node = manager.add_node(device)
            assert machine.table.read(f"{NODE}/node") == "0\n"
            with pytest.raises(Busy):
                machine.remove("mem0")
            assert machine.table.read(f"{NODE}/stored") == "0\n"
            assert [memdev.name for memdev in machine.members()] == ["mem0"]
            manager.remove_node(node)
            machine.remove("mem0")
            assert machine.members() == []
            machine.close()

    def test_leaves(self, managed: Managed):
        """Its counts go with it: ENODEV for who has them open."""
        held = managed.machine.table.find(f"{NODE}/stored").open(os.O_RDONLY)
        assert held.read(PAGE, 0) == b"0\n"
        managed.zswap.remove_node(managed.zswap.nodes[0])
        with raises(errno.ENODEV):
            held.read(PAGE, 0)
        assert not there(managed.machine, f"{NODE}/stored")
        managed.zswap.add_node(managed.device)
        assert managed.show(f"{NODE}/stored") == "0\n"

    def test_several(self, managed: Managed, tmp_path: Path):
        """Each device has its own node's number, in whatever order they were plugged in."""
        with Device("8M", "1M", path=tmp_path / "second") as second:
            node = managed.zswap.add_node(second)
            managed.machine.join(tmp_path / "second")
            assert managed.number("sys/kernel/debug/cram_device/mem1/zswap/node") == node.number == 1
            assert managed.number(f"{NODE}/node") == 0
            managed.zswap.remove_node(node)


class TestMounted:
    """By FUSE, from the process that has the manager."""

    @pytest.fixture
    def where(self, skip_unless_fuse, managed: Managed, tmp_path: Path):
        managed.fill()
        (tmp_path / "tree").mkdir()
        with fuse.mounted(managed.machine, tmp_path / "tree") as where:
            yield where

    def test_every_file(self, where: Path, managed: Managed):
        """Whole, however long it is: cat(1), and tail(1), which believes a size that is not 0."""
        for top in (*TREES, PARAMETERS):
            for path, text in files(managed.machine, top):
                if top != "proc":
                    assert client("cat", where / path) == text
        classes = managed.show(CLASSES)
        assert len(classes) > 4096
        assert client("tail", "-n", "1", where / CLASSES) == classes.splitlines(keepends=True)[-1]
        assert f"Zswapped:       {PAGES * 4:8} kB\n" in client("cat", where / "proc/meminfo")

    def test_shell(self, where: Path, managed: Managed):
        """echo, and the error that it hears of."""
        echo = ["timeout", "60", "sh", "-c", 'echo "$0" >"$1"', "37", where / PARAMETERS / "max_pool_percent"]
        assert subprocess.run(echo).returncode == 0
        assert managed.zswap.max_pool_percent == 37
        echo[5] = "101"
        assert subprocess.run(echo, stderr=subprocess.DEVNULL).returncode != 0
        assert managed.zswap.max_pool_percent == 37
        fd = os.open(where / PARAMETERS / "max_pool_percent", os.O_WRONLY)
        try:
            with raises(errno.EINVAL):
                os.write(fd, b"101\n")
        finally:
            os.close(fd)

    def test_new_group(self, where: Path, managed: Managed):
        """A group that is made later is there at once."""
        assert not (where / "sys/fs/cgroup/batch").exists()
        managed.zswap.memcg(name="late", max="8M")
        assert client("cat", where / "sys/fs/cgroup/late/memory.max") == f"{8 << 20}\n"

    def test_in_place(self, where: Path, managed: Managed):
        """A program that is shown the tree in /sys and /proc finds zswap there, beside what else the host has."""
        command = "cat /sys/kernel/debug/zswap/stored_pages && echo 33 >/sys/module/zswap/parameters/max_pool_percent"
        command += " && cat /sys/fs/cgroup/redis/memory.zswap.current && grep -c . /proc/meminfo"
        lines = managed.show("proc/meminfo").count("\n")
        assert client(*CLI, "ns", where, "--", "sh", "-c", command).split() == [
            str(PAGES), str(managed.group.zswap_current), str(lines),
        ]  # fmt: skip
        assert managed.zswap.max_pool_percent == 33

    def test_signals(self, managed: Managed, skip_unless_fuse, tmp_path: Path):
        """A process that serves its files catches no signal that it did not catch before."""
        before = caught()
        (tmp_path / "tree").mkdir()
        with fuse.mounted(managed.machine, tmp_path / "tree"):
            assert caught() == before
        assert caught() == before
        assert os.listdir(tmp_path / "tree") == []


def files(machine: Machine, top: str) -> list[tuple[str, str]]:
    directory = machine.table.find(top)
    assert isinstance(directory, Directory)
    found = []
    for name in directory.names():
        entry = directory.get(name)
        path = f"{top}/{name}"
        if isinstance(entry, Directory):
            found += files(machine, path)
        else:
            found.append((path, machine.table.read(path)))
    return found


def client(*command) -> str:
    """What a program says, which has a minute for it."""
    return subprocess.run(["timeout", "60", *command], capture_output=True, text=True, check=True).stdout


def caught() -> str:
    return re.search(r"^SigCgt:\s*(\w+)$", Path("/proc/self/status").read_text(), re.M)[1]
