"""The table by itself: entries, modes, what a write is, and what goes."""

import errno
import os
import select
import stat

import pytest

from cram_emu.sysfs.table import Attribute, Directory, Link, Table, Wakeup, constant


def raises(number: int):
    return pytest.raises(OSError, check=lambda error: error.errno == number)


@pytest.fixture
def written() -> list[str]:
    return []


@pytest.fixture
def table(written: list[str]) -> Table:
    table = Table()
    table.add(
        [
            ("a/read", constant("5")),
            ("a/write", Attribute(0o200, None, written.append)),
            ("a/both", Attribute(0o644, lambda: "x\n", written.append)),
            ("b/link", Link("a/read")),
            ("kept", Directory()),
        ]
    )
    return table


class TestFind:
    def test_directories_are_made(self, table: Table):
        assert stat.S_ISDIR(table.find("a").st_mode)
        assert table.find("a").names() == ["read", "write", "both"]
        assert table.find("") is table.root

    @pytest.mark.parametrize(
        ("path", "number"),
        [("c", errno.ENOENT), ("a/c", errno.ENOENT), ("a/read/c", errno.ENOTDIR)],
    )
    def test_what_is_not_there(self, table: Table, path: str, number: int):
        with raises(number):
            table.find(path)

    def test_links_are_relative(self, table: Table):
        assert table.find("b/link").text("b/link") == "../a/read"

    def test_twice_is_refused(self, table: Table):
        with pytest.raises(ValueError, match="a/read"):
            table.add([("a/read", constant("6"))])

    def test_walk(self, table: Table):
        assert [path for path, _ in table.walk()] == ["a/read", "a/write", "a/both", "b/link"]


class TestModes:
    """The bits bind everybody, root too."""

    @pytest.mark.parametrize(
        ("path", "flags"),
        [
            ("a/read", os.O_WRONLY),
            ("a/read", os.O_RDWR),
            ("a/write", os.O_RDONLY),
            ("a/write", os.O_RDWR),
        ],
    )
    def test_refused(self, table: Table, path: str, flags: int):
        with raises(errno.EACCES):
            table.find(path).open(flags)

    def test_allowed(self, table: Table):
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            table.find("a/both").open(flags).close()


class TestWrite:
    """A store gets a string: to the first NUL, without one newline; the writer is told all was taken."""

    @pytest.mark.parametrize(
        ("data", "stored"),
        [
            (b"1", "1"),
            (b"1\n", "1"),
            (b"1\n\0", "1"),
            (b"1\0", "1"),
            (b"1\0junk", "1"),
            (b"1\n\n", "1\n"),
            (b" 1 ", " 1 "),
            (b"\xff", "\xff"),
        ],
    )
    def test_string(self, table: Table, written: list[str], data: bytes, stored: str):
        assert table.write("a/write", data) == len(data)
        assert written == [stored]

    def test_a_page_at_most(self, table: Table, written: list[str]):
        assert table.write("a/write", b"x" * 5000) == 4096
        assert written == ["x" * 4096]


class TestRead:
    def test_fixed_from_the_beginning_on(self):
        values = iter("12")
        file = Attribute(0o444, lambda: f"{next(values)} abc\n").open(os.O_RDONLY)
        assert file.read(4, 0) == b"1 ab"
        assert file.read(10, 4) == b"c\n"
        assert file.read(10, 6) == b""
        assert file.read(10, 0) == b"2 abc\n"


class TestRemove:
    def test_empty_directories_go(self, table: Table):
        assert table.remove(["b/link"]) == ["b"]
        with raises(errno.ENOENT):
            table.find("b")

    def test_what_was_given_stays(self, table: Table):
        paths = table.add([("kept/deep/er", constant("1"))])
        assert table.remove(paths) == ["kept/deep"]
        assert table.find("kept").names() == []

    def test_topmost_only(self, table: Table):
        assert table.remove(["a/read", "a/write", "a/both"]) == ["a"]

    def test_open_files_answer_enodev(self, table: Table):
        file = table.find("a/both").open(os.O_RDWR)
        assert file.read(9, 0) == b"x\n"
        table.remove(["a/both"])
        with raises(errno.ENODEV):
            file.read(9, 0)
        with raises(errno.ENODEV):
            file.write(b"1")


class TestPoll:
    """kernfs_generic_poll()."""

    def test_changes_since_the_read(self):
        wakeup, called = Wakeup(), []
        file = Attribute(0o444, lambda: "1\n", wakeup=wakeup).open(os.O_RDONLY)
        file.read(9, 0)
        assert not file.poll(lambda: called.append(1)) & select.POLLPRI
        wakeup.notify()
        wakeup.notify()
        assert called == [1]
        assert file.poll(None) & select.POLLPRI and file.poll(None) & select.POLLERR
        file.read(9, 0)
        assert not file.poll(None) & select.POLLPRI

    def test_closed_files_are_not_woken(self):
        wakeup, called = Wakeup(), []
        file = Attribute(0o444, lambda: "1\n", wakeup=wakeup).open(os.O_RDONLY)
        file.poll(lambda: called.append(1))
        file.close()
        wakeup.notify()
        assert called == []


