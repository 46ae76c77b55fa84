"""The table of attributes: a tree of entries by path, and what opening, reading and writing one does.

It does not know FUSE, CXL or devices. Readers take no lock: a lookup is one dictionary access a component,
and an attribute's show and store are called with nothing held. add() and remove() may be called from any
thread; an open file whose entry is gone answers ENODEV, as in the kernel (fs/kernfs/file.c).
"""

from __future__ import annotations

import errno
import os
import posixpath
import select
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from cram_emu.sysfs.parse import failure

#: What the kernel allots to an attribute's text: a longer write is cut there (fs/sysfs/file.c).
SIZE = 4096


#: What poll(2) says of a file that never waits (include/linux/poll.h).
DEFAULT_POLLMASK = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM

Interrupted = Callable[[], bool]


def never() -> bool:
    return False


class File(Protocol):
    """An open file. Where a write goes does not matter to an attribute, so that it has no offset.

    interrupted says whether the reader has had a signal: what waits asks it, and raises EINTR.
    """

    def read(self, size: int, offset: int, interrupted: Interrupted = ...) -> bytes: ...
    def write(self, data: bytes) -> int: ...
    def close(self) -> None: ...

    def poll(self, wake: Callable[[], None] | None) -> int:
        """Events as of poll(2); wake, if given, is called once when they may have changed."""
        ...


class Entry:
    """What has a path. st_mode is as in struct stat; rdev is a character device's number."""

    st_mode = 0
    st_size = 0
    rdev = 0
    gone = False

    def open(self, flags: int) -> File:
        """flags as of open(2)."""
        raise failure(errno.EISDIR)

    def truncate(self) -> None:
        """What O_TRUNC does: nothing to an attribute, though shells open with it."""


def check_mode(entry: Entry, flags: int) -> None:
    """The mode bits bind root too: kernfs_fop_open() under KERNFS_ROOT_EXTRA_OPEN_PERM_CHECK."""
    access = flags & os.O_ACCMODE
    reads, writes = access != os.O_WRONLY, access != os.O_RDONLY
    if (reads and not entry.st_mode & 0o444) or (writes and not entry.st_mode & 0o222):
        raise failure(errno.EACCES)


class Directory(Entry):
    """Names and their entries. A directory that add() made goes with its last entry; one given stays."""

    st_mode = stat.S_IFDIR | 0o755

    def __init__(self, stays: bool = True):
        self.stays = stays
        self.entries: dict[str, Entry] = {}

    def get(self, name: str) -> Entry | None:
        return self.entries.get(name)

    def names(self) -> list[str]:
        return list(self.entries)


class Link(Entry):
    """A symbolic link to a path in the table; it reads as a relative one."""

    st_mode = stat.S_IFLNK | 0o777

    def __init__(self, target: str):
        self.target = target

    def text(self, path: str) -> str:
        return posixpath.relpath(self.target, posixpath.dirname(path))


class CharDevice(Entry):
    """A device node, to be looked at: opening it is ENXIO, as where no driver answers."""

    def __init__(self, mode: int, rdev: int):
        self.st_mode = stat.S_IFCHR | mode
        self.rdev = rdev

    def open(self, flags: int) -> File:
        raise failure(errno.ENXIO)


class Wakeup:
    """A count of changes, for poll(2): sysfs_notify() of fs/kernfs/file.c.

    What waits is a callable, called once at the next change, in the thread that made it.
    """

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()
        self._handles: dict[object, Callable[[], None]] = {}

    def notify(self) -> None:
        with self._lock:
            self.count += 1
            handles, self._handles = self._handles, {}
        for handle in handles.values():
            handle()

    def changed(self, owner: object, seen: int, wake: Callable[[], None] | None) -> bool:
        """Is the count past `seen`? If it is not, wake replaces owner's earlier one."""
        with self._lock:
            if self.count != seen:
                return True
            if wake is not None:
                self._handles[owner] = wake
            return False

    def forget(self, owner: object) -> None:
        with self._lock:
            self._handles.pop(owner, None)


class Attribute(Entry):
    """One value: show returns its text, store takes what was written without its newline.

    Both raise OSError or CramError; a store that raises has changed nothing. wakeup, where there is one,
    counts the value's changes for poll(2).
    """

    st_size = SIZE

    def __init__(
        self,
        mode: int,
        show: Callable[[], str] | None = None,
        store: Callable[[str], object] | None = None,
        wakeup: Wakeup | None = None,
    ):
        self.st_mode = stat.S_IFREG | mode
        self.show = show
        self.store = store
        self.wakeup = wakeup

    def open(self, flags: int) -> File:
        check_mode(self, flags)
        return AttributeFile(self)

    def read(self) -> bytes:
        if self.show is None:
            raise failure(errno.EIO)
        return self.show().encode("latin-1")

    def write(self, data: bytes) -> int:
        """Stores; returns how much was taken. The kernel's string ends at the first NUL."""
        if self.store is None:
            raise failure(errno.EIO)
        data = data[:SIZE]
        self.store(data.split(b"\0", 1)[0].decode("latin-1").removesuffix("\n"))
        return len(data)


class AttributeFile:
    """An attribute that is open: its text is fixed when a read starts at its beginning (fs/seq_file.c)."""

    def __init__(self, attribute: Attribute):
        self.attribute = attribute
        self.seen = attribute.wakeup.count if attribute.wakeup else 0
        self._text: bytes | None = None

    def read(self, size: int, offset: int, interrupted: Interrupted = never) -> bytes:
        if offset == 0 or self._text is None:
            self._check()
            if self.attribute.wakeup:
                self.seen = self.attribute.wakeup.count
            self._text = self.attribute.read()
        return self._text[offset : offset + size]

    def write(self, data: bytes) -> int:
        self._check()
        return self.attribute.write(data)

    def close(self) -> None:
        if self.attribute.wakeup:
            self.attribute.wakeup.forget(self)

    def poll(self, wake: Callable[[], None] | None) -> int:
        """kernfs_generic_poll(): POLLERR and POLLPRI since the value was last read, or has gone."""
        wakeup = self.attribute.wakeup
        if self.attribute.gone or (wakeup and wakeup.changed(self, self.seen, wake)):
            return DEFAULT_POLLMASK | select.POLLERR | select.POLLPRI
        return DEFAULT_POLLMASK

    def _check(self) -> None:
        if self.attribute.gone:
            raise failure(errno.ENODEV)


def constant(text: str, mode: int = 0o444) -> Attribute:
    """A value that never changes. Where mode lets it be written, only the value itself is accepted."""

    def store(written: str) -> None:
        if written != text:
            raise failure(errno.EBUSY, f"{written[:64]!r}: stays {text!r}")

    return Attribute(mode, lambda: f"{text}\n", store if mode & 0o222 else None)


def _above(path: str) -> Iterator[str]:
    """The paths of the directories that a path lies in."""
    while path := posixpath.dirname(path):
        yield path


class Table:
    """The tree from which everything is served."""

    def __init__(self) -> None:
        self.root = Directory()
        self._lock = threading.Lock()

    def add(self, entries: Iterable[tuple[str, Entry]]) -> list[str]:
        """Adds entries by path, with the directories above them; returns their paths, for remove()."""
        paths = []
        with self._lock:
            for path, entry in entries:
                *above, name = path.split("/")
                directory = self.root
                for part in above:
                    directory = directory.entries.setdefault(part, Directory(stays=False))
                if name in directory.entries:
                    raise ValueError(f"{path}: is in the table already")
                directory.entries[name] = entry
                paths.append(path)
        return paths

    def remove(self, paths: Iterable[str]) -> list[str]:
        """Takes entries out, and the directories that they leave empty; returns the topmost that went."""
        went: dict[str, None] = {}
        with self._lock:
            for path in paths:
                went[self._remove(path)] = None
        return [path for path in went if not any(above in went for above in _above(path))]

    def _remove(self, path: str) -> str:
        """Returns the path of what went: the entry, or the highest directory that it leaves empty."""
        parts = path.split("/")
        above = [self.root]
        for part in parts[:-1]:
            above.append(above[-1].entries[part])
        above[-1].entries.pop(parts[-1]).gone = True
        depth = len(parts)
        while not above[depth - 1].entries and not above[depth - 1].stays:
            depth -= 1
            above[depth - 1].entries.pop(parts[depth - 1]).gone = True
        return "/".join(parts[:depth])

    def find(self, path: str) -> Entry:
        """The entry of a path; OSError ENOENT or ENOTDIR. Links are not followed."""
        entry: Entry | None = self.root
        for part in path.split("/") if path else ():
            if not isinstance(entry, Directory):
                raise failure(errno.ENOTDIR)
            entry = entry.get(part)
            if entry is None:
                raise failure(errno.ENOENT)
        return entry

    def walk(self) -> Iterator[tuple[str, Entry]]:
        """Every entry that is not a directory, by path, parents' entries in order of addition."""
        stack: list[tuple[str, Entry | None]] = [("", self.root)]
        while stack:
            path, entry = stack.pop()
            if isinstance(entry, Directory):
                prefix = f"{path}/" if path else ""
                stack.extend((prefix + name, entry.get(name)) for name in reversed(entry.names()))
            elif entry is not None:
                yield path, entry

    # -- without a mount

    def read(self, path: str) -> str:
        """What reading an attribute gives."""
        file = self.find(path).open(os.O_RDONLY)
        try:
            return file.read(1 << 20, 0).decode("latin-1")
        finally:
            file.close()

    def write(self, path: str, text: str | bytes) -> int:
        """What one write(2) to an attribute does."""
        file = self.find(path).open(os.O_WRONLY)
        try:
            return file.write(text.encode("latin-1") if isinstance(text, str) else text)
        finally:
            file.close()
