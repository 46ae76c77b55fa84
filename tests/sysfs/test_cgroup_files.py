"""Memory cgroups as files: version 2's formats, and limits that are in effect when write(2) returns."""

import errno

import pytest
from managed_tree import PAGES, Managed
from samples import PAGE, entropy

from cram_emu.errors import InvalidArgument
from cram_emu.host import ManagedMemory

ROOT = "sys/fs/cgroup"
REDIS = f"{ROOT}/redis"
MIB = 1 << 20


class TestFiles:
    def test_of_a_group(self, managed: Managed):
        modes = {name: entry.st_mode & 0o777 for name, entry in managed.machine.table.find(REDIS).entries.items()}
        assert modes == {
            "memory.current": 0o444,
            "memory.max": 0o644,
            "memory.events": 0o444,
            "memory.zswap.current": 0o444,
            "memory.zswap.max": 0o644,
            "memory.stat": 0o444,
            "memory.zswap.writeback": 0o644,
        }

    def test_of_the_root(self, managed: Managed):
        """What it cannot be limited by, it does not show: CFTYPE_NOT_ON_ROOT."""
        names = managed.machine.table.find(ROOT).names()
        assert sorted(names) == ["memory.stat", "memory.zswap.writeback", "redis"]

    def test_new(self, managed: Managed):
        """At once and to the byte."""
        managed.zswap.memcg(managed.group, name="child")
        names = managed.machine.table.find(f"{REDIS}/child").names()
        assert {name: managed.show(f"{REDIS}/child/{name}") for name in names} == {
            "memory.current": "0\n",
            "memory.max": "max\n",
            "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n",
            "memory.zswap.current": "0\n",
            "memory.zswap.max": "max\n",
            "memory.stat": "anon 0\nzswap 0\nzswapped 0\nzswpin 0\nzswpout 0\nzswpwb 0\n",
            "memory.zswap.writeback": "1\n",
        }

    def test_default_name(self, managed: Managed):
        number = managed.zswap.memcg().number
        assert managed.show(f"{ROOT}/memcg{number}/memory.current") == "0\n"

    def test_values(self, managed: Managed):
        managed.fill()
        stats = managed.group.stats
        assert managed.number(f"{REDIS}/memory.current") == stats.anon + stats.zswap
        assert managed.number(f"{REDIS}/memory.zswap.current") == stats.zswap > 0
        rows = dict(line.split() for line in managed.show(f"{REDIS}/memory.stat").splitlines())
        assert {name: int(value) for name, value in rows.items()} == {
            "anon": 0, "zswap": stats.zswap, "zswapped": PAGES * PAGE, "zswpin": stats.zswpin, "zswpout": PAGES,
            "zswpwb": 0,
        }  # fmt: skip

    def test_parents_count_it_too(self, managed: Managed):
        child = managed.zswap.memcg(managed.group, name="child")
        with ManagedMemory(MIB, dram="1M", manager=managed.zswap, group=child, delivery="inline") as memory:
            memory[0:PAGE] = b"x" * PAGE
            for path in (f"{REDIS}/child", REDIS, ROOT):
                assert f"anon {PAGE}\n" in managed.show(f"{path}/memory.stat")


class TestLimits:
    @pytest.mark.parametrize(
        ("text", "limit"),
        [("max", None), (" max\n", None), ("0", 0), ("8192", 8192), ("8191", 4096), ("64K", 64 << 10), ("1m\n", MIB),
         ("2G", 2 << 30), ("0x2000", 8192), (str(2**63 - 1), None), (str(2**63 - 4097), 2**63 - 8192)],
    )  # fmt: skip
    @pytest.mark.parametrize("name", ["max", "zswap.max"])
    def test_taken(self, managed: Managed, name: str, text: str, limit: int | None):
        """memparse()'s suffixes; whole pages count."""
        assert managed.store(f"{REDIS}/memory.{name}", text) == 0
        assert managed.show(f"{REDIS}/memory.{name}") == ("max\n" if limit is None else f"{limit}\n")
        assert getattr(managed.group, name.replace(".", "_")) == limit

    @pytest.mark.parametrize("text", ["", "none", "-1", "1.5M", "4KB", "1 M", "maximum", "16E", "9" * 30])
    @pytest.mark.parametrize("name", ["max", "zswap.max"])
    def test_refused(self, managed: Managed, name: str, text: str):
        assert managed.store(f"{REDIS}/memory.{name}", "3M") == 0
        assert managed.store(f"{REDIS}/memory.{name}", text) == errno.EINVAL
        assert managed.show(f"{REDIS}/memory.{name}") == f"{3 * MIB}\n"

    @pytest.mark.parametrize(
        ("limit", "charging", "met"), [("256K", "size", True), ("256K", "page", False), ("max", "size", False)]
    )
    def test_lower_one_reclaims(self, managed: Managed, limit: str, charging: str, met: bool):
        """Before the write returns, and from groups below it too. With pages on a node charged whole there is no
        progress, and it is given up; a limit that is none takes nothing."""
        assert managed.store("sys/kernel/debug/cram_zswap/charging", charging) == 0
        child = managed.zswap.memcg(managed.group, name="child")
        with ManagedMemory(2 * MIB, dram="2M", manager=managed.zswap, group=child, delivery="inline") as memory:
            for written in (managed.memory, memory):
                for page in range(MIB // PAGE):
                    written[page * PAGE : (page + 1) * PAGE] = entropy(page, 64)
            before = managed.number(f"{REDIS}/memory.current")
            assert before > MIB
            assert managed.number(f"{REDIS}/memory.zswap.current") == 0
            assert managed.store(f"{REDIS}/memory.max", limit) == 0
            after = managed.number(f"{REDIS}/memory.current")
            assert after <= 256 << 10 if met else after == before
            assert (managed.number(f"{REDIS}/child/memory.zswap.current") > 0) is (limit != "max")

    @pytest.mark.parametrize("limit", ["max", "0"])
    def test_zswap_max(self, managed: Managed, limit: str):
        """0: nothing of the group is stored; all of it goes to the swap file."""
        assert managed.store(f"{REDIS}/memory.zswap.max", limit) == 0
        managed.fill()
        assert (managed.number("sys/kernel/debug/zswap/stored_pages") == 0) is (limit == "0")
        assert (managed.number("sys/kernel/debug/cram_zswap/reject_memcg") > 0) is (limit == "0")


class TestWriteback:
    @pytest.mark.parametrize("text", ["0", "1\n", "0x1", " 0 "])
    def test_taken(self, managed: Managed, text: str):
        for path in (REDIS, ROOT):
            assert managed.store(f"{path}/memory.zswap.writeback", text) == 0
            assert managed.show(f"{path}/memory.zswap.writeback") == f"{int(text, 0)}\n"

    @pytest.mark.parametrize(("text", "number"), [("2", errno.EINVAL), ("y", errno.EINVAL), ("-1", errno.EINVAL),
                                                  ("", errno.EINVAL), (str(2**64), errno.ERANGE)])  # fmt: skip
    def test_refused(self, managed: Managed, text: str, number: int):
        assert managed.store(f"{REDIS}/memory.zswap.writeback", text) == number
        assert managed.show(f"{REDIS}/memory.zswap.writeback") == "1\n"

    @pytest.mark.parametrize("text", ["0", "1"])
    def test_in_effect(self, managed: Managed, text: str):
        """What may not be written back stays in the pool."""
        managed.fill()
        assert managed.store(f"{REDIS}/memory.zswap.writeback", text) == 0
        for _ in range(2):  # the first round takes second chances
            managed.memory.shrink(PAGES)
        assert (managed.number("sys/kernel/debug/zswap/written_back_pages") > 0) is (text == "1")


class TestNames:
    """A group is a directory."""

    @pytest.mark.parametrize(
        "name", ["", ".", "..", "a/b", "a\nb", "a\0", "memory.max", "memcg1", "x" * 256, "\udc80", 7]
    )
    def test_refused(self, managed: Managed, name):
        groups = managed.zswap.groups
        with pytest.raises(InvalidArgument, match="name"):
            managed.zswap.memcg(name=name)
        assert managed.zswap.groups == groups

    def test_twice(self, managed: Managed):
        """Among siblings; elsewhere the name is free."""
        with pytest.raises(InvalidArgument, match="redis"):
            managed.zswap.memcg(name="redis")
        assert managed.zswap.memcg(managed.group, name="redis").name == "redis"
        assert managed.show(f"{REDIS}/redis/memory.max") == "max\n"

    def test_bad_limit_makes_no_group(self, managed: Managed):
        """More often than there are rows for groups."""
        for _ in range(100):
            with pytest.raises(ValueError, match="much"):
                managed.zswap.memcg(max="much")
        assert managed.zswap.memcg(max="1M").max == MIB
