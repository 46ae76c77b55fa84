"""Lays a tree of emulated files over /sys, /dev and /proc, in a private mount namespace.

It does not know what the files mean or who serves them: a tree is a directory with sys, dev and
perhaps proc in it, mounted by FUSE or plain. Nothing outside of the namespace changes, and the
namespace ends with its last process.

sysfs has no mkdir, so a name that the system lacks cannot be mounted on. Such a directory is
covered: made anew on a tmpfs, with every entry bound from the side that has it. It is then fixed
for the namespace's life. Directories that only the tree has, or of which the tree has all, are
bound whole and stay live, so that what is added to the tree later shows in them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cram_emu.errors import CramError, DeviceIOError, NotPermitted

TOPS = ("sys", "dev", "proc")

# What every tree of ours has, and few other directories.
MARK = "sys/bus/cxl"

# Taken from the tree alone: real devices there would have the same names as ours.
ALONE = ("/sys/bus/cxl", "/dev/cxl")

# The device that opens a new pseudo-terminal, on the devpts that is named pts beside it.
PTMX = os.makedev(5, 2)

# How often a directory may go away under the making of a plan before that is an error.
PLANS = 10

# linux/sched.h, linux/mount.h
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MS_RDONLY = 1
MS_NOSUID = 2
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2


# ---- the plan: what is to be done, without doing it -------------------------------------------


@dataclass(frozen=True)
class Cover:
    """Mount an empty tmpfs on a directory of the system."""

    path: str
    mode: int


@dataclass(frozen=True)
class Seal:
    """Make a covered directory read-only, as nothing there would reach the system."""

    path: str


@dataclass(frozen=True)
class Directory:
    """Make a directory in a covered one."""

    path: str
    mode: int = 0o755


@dataclass(frozen=True)
class Link:
    """Make a symbolic link in a covered directory."""

    path: str
    target: str


@dataclass(frozen=True)
class Bind:
    """Mount source, a path of the tree or of the system before anything was covered, on path."""

    path: str
    source: str


@dataclass(frozen=True)
class Entry:
    """Make path, a directory or an empty file, in a covered directory, and mount source on it."""

    path: str
    source: str
    directory: bool = False


@dataclass(frozen=True)
class Uncover:
    """Take the cover off a bind of a covered directory, which has brought it along."""

    path: str


Step = Cover | Seal | Uncover | Directory | Link | Bind | Entry


def plan(tree: str, system: str = "/") -> list[Step]:
    """The steps, in order, that lay the tree over the system's directories of the same names.

    Where both have an entry the tree's is taken, and directories are merged. Both paths must be
    absolute and free of symbolic links. OSError: a directory cannot be read.
    """
    steps: list[Step] = []
    for top in TOPS:
        if os.path.isdir(os.path.join(tree, top)):
            steps += _merge(os.path.join(tree, top), os.path.join(system, top), made=False)
    return steps


def _merge(tree: str, system: str, made: bool) -> Iterator[Step]:
    """made: the directory at the system's path is an empty one of ours, in a covered directory."""
    if _covers(tree, system):
        yield Bind(system, tree)
        return
    ours, theirs = _entries(tree), _entries(system)
    if all(_fits(tree, system, name, ours, theirs) for name in ours):
        if made:
            yield Bind(system, system)
        for name in sorted(ours):
            path, source = os.path.join(system, name), os.path.join(tree, name)
            if ours[name] == stat.S_IFDIR:
                yield from _merge(source, path, made=False)
            elif ours[name] != stat.S_IFLNK:
                yield Bind(path, source)
    else:
        if not made:
            yield Cover(system, _mode(system))
        yield from _fill(tree, system, ours, theirs)
        if not made:
            yield Seal(system)


def _fill(tree: str, system: str, ours: dict[str, int], theirs: dict[str, int]) -> Iterator[Step]:
    for name in sorted(ours | theirs):
        path = os.path.join(system, name)
        if ours.get(name) == theirs.get(name) == stat.S_IFDIR:
            yield Directory(path, _mode(path))
            yield from _merge(os.path.join(tree, name), path, made=True)
        elif name in ours:
            yield from _place(path, os.path.join(tree, name), ours[name])
        else:
            yield from _place(path, path, theirs[name])


def _place(path: str, source: str, kind: int) -> Iterator[Step]:
    """Puts one entry of either side into a covered directory."""
    if kind == stat.S_IFLNK:
        yield Link(path, os.readlink(source))
    elif kind == stat.S_IFCHR and os.lstat(source).st_rdev == PTMX:
        # The kernel looks for pts beside the device on the same mount, which one file is not.
        whole = os.path.join(os.path.dirname(path), ".ptmx")
        yield Entry(whole, os.path.dirname(source), directory=True)
        yield Uncover(whole)
        yield Link(path, ".ptmx/" + os.path.basename(source))
    else:
        yield Entry(path, source, directory=kind == stat.S_IFDIR)


def _entries(directory: str) -> dict[str, int]:
    """The type bits of each entry's mode, by name."""
    with os.scandir(directory) as entries:
        return {entry.name: _kind(entry) for entry in entries}


def _kind(entry: os.DirEntry) -> int:
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)


def _covers(tree: str, system: str) -> bool:
    """Whether the tree's directory can stand for the system's, as it has all that is in it.

    So it can where this user may not look: debugfs is root's alone.
    """
    if tree.endswith(ALONE):
        return True
    try:
        theirs = _entries(system)
    except PermissionError:
        return True
    ours = _entries(tree)
    return theirs.keys() <= ours.keys() and all(
        _covers(os.path.join(tree, name), os.path.join(system, name))
        for name, kind in theirs.items()
        if kind == ours[name] == stat.S_IFDIR
    )


def _fits(tree: str, system: str, name: str, ours: dict[str, int], theirs: dict[str, int]) -> bool:
    """Whether an entry of the tree can be mounted on one of the system's, or need not be."""
    if ours[name] == stat.S_IFLNK:
        mine, other = os.path.join(tree, name), os.path.join(system, name)
        return theirs.get(name) == stat.S_IFLNK and os.readlink(mine) == os.readlink(other)
    mountable = (stat.S_IFDIR,) if ours[name] == stat.S_IFDIR else (stat.S_IFREG, stat.S_IFCHR)
    return theirs.get(name) in mountable


def _mode(path: str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


# ---- carrying it out --------------------------------------------------------------------------


def carry_out(steps: Sequence[Step], tree: str) -> None:
    """Does what a plan for tree says, in a mount namespace of the caller's own.

    A source that went away since the plan was made is left out. OSError: the kernel refused a
    step; those before it have been done.
    """
    # By descriptor the tree, and what was in a directory before it was covered, stay reachable.
    descriptors = {tree: _open(tree)}
    try:
        for step in steps:
            if isinstance(step, Cover) and _reachable(step.path, descriptors) == step.path:
                descriptors[step.path] = _open(step.path)
            _do(step, descriptors)
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def _open(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY)


def _reachable(path: str, descriptors: dict[str, int]) -> str:
    for top, descriptor in descriptors.items():
        if path == top or path.startswith(top + "/"):
            return f"/proc/self/fd/{descriptor}{path[len(top):]}"
    return path


def _do(step: Step, descriptors: dict[str, int]) -> None:
    match step:
        case Cover(path, mode):
            _mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NOEXEC, f"mode={mode:o}")
        case Seal(path):
            _mount(None, path, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC)
        case Uncover(path):
            _unmount(path)
        case Directory(path, mode):
            os.mkdir(path)
            os.chmod(path, mode)
        case Link(path, target):
            os.symlink(target, path)
        case Bind(path, source):
            with suppress(FileNotFoundError):
                _bind(_reachable(source, descriptors), path)
        case Entry(path, source, directory):
            _make(path, directory)
            try:
                _bind(_reachable(source, descriptors), path)
            except FileNotFoundError:
                _remove(path, directory)


def _make(path: str, directory: bool) -> None:
    if directory:
        os.mkdir(path)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))


def _remove(path: str, directory: bool) -> None:
    if directory:
        os.rmdir(path)
    else:
        os.unlink(path)


def _bind(source: str, path: str) -> None:
    # The kernel refuses to lay bare what a namespace above has mounted on: hence MS_REC.
    _mount(source, path, None, MS_BIND | MS_REC)


# ---- the namespace ----------------------------------------------------------------------------


def enter(mountpoint: str | os.PathLike) -> None:
    """Moves this process, which must have one thread, into a namespace with the tree laid over.

    A process that may not mount does so in a user namespace, where it keeps its user and group;
    capabilities there end when it executes a program. There is no way back.

    DeviceIOError: there is no tree at mountpoint, or the kernel refused a step. NotPermitted: the
    host permits no namespace. Of all but the first the process may be left in a namespace half
    made, and should end.
    """
    tree = _checked(mountpoint)
    where = _working_directory()
    try:
        steps = _plan_steadily(tree)
        _refuse_new_names_in_proc(steps, tree)
        _unshare()
        carry_out(steps, tree)
    except OSError as error:
        if isinstance(error, CramError):
            raise
        raise DeviceIOError(f"cannot lay {tree} over the system: {error}") from error
    if where is not None:
        # It may be below what has been covered.
        with suppress(OSError):
            os.chdir(where)


def _checked(mountpoint: str | os.PathLike) -> str:
    path = Path(mountpoint)
    try:
        tree = path.resolve(strict=True)
        found = (tree / MARK).is_dir() and (tree / "dev").is_dir()
        own = found and (tree / "sys").samefile("/sys")
    except OSError as error:
        raise DeviceIOError(f"{mountpoint}: {_remedy(error, mountpoint)}") from error
    if not found:
        raise DeviceIOError(f"{mountpoint}: no machine is mounted here (no {MARK} or dev in it)")
    if own:
        raise DeviceIOError(f"{mountpoint}: its sys is this system's own /sys")
    return str(tree)


def _remedy(error: OSError, mountpoint: str | os.PathLike) -> str:
    if error.errno == errno.ENOTCONN:
        return f"its server is gone; start another: cram-emu mount {mountpoint}"
    if error.errno == errno.EACCES:
        return "no permission: a mounted machine is visible to the user who mounted it"
    return os.strerror(error.errno)


def _plan_steadily(tree: str) -> list[Step]:
    """The plan; devices that come and go meanwhile are no reason to fail."""
    for _ in range(PLANS):
        with suppress(FileNotFoundError):
            return plan(tree)
    return plan(tree)


def _refuse_new_names_in_proc(steps: Sequence[Step], tree: str) -> None:
    for step in steps:
        if isinstance(step, Cover) and (step.path + "/").startswith("/proc/"):
            raise DeviceIOError(
                f"{tree}: this kernel's {step.path} lacks a file of the tree, and cannot take one"
            )


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None  # removed, or out of sight


def _unshare() -> None:
    """Without CAP_SYS_ADMIN, a user namespace too, in which the process has it."""
    try:
        _call_unshare(CLONE_NEWNS)
    except PermissionError:
        _unshare_user(os.geteuid(), os.getegid())
    # Else mounts would spread to the namespace that this one was copied from.
    _mount(None, "/", None, MS_REC | MS_PRIVATE)


def _unshare_user(user: int, group: int) -> None:
    try:
        _call_unshare(CLONE_NEWUSER | CLONE_NEWNS)
        # The kernel lets a user map a group only after giving up setgroups(2).
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        # An AppArmor that forbids user namespaces lets them be made, and refuses what they are for.
        _mount(None, "/", None, MS_REC | MS_PRIVATE)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise DeviceIOError("a process of several threads cannot enter a user namespace")
        raise NotPermitted(
            f"user {user} may not make a user namespace ({error.strerror}): {_remedy_for_users()}"
        ) from error


def _remedy_for_users() -> str:
    settings = (
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
        ("user.max_user_namespaces", "0", "10000"),
    )
    for name, forbids, permits in settings:
        with suppress(OSError):
            if Path("/proc/sys", name.replace(".", "/")).read_text().strip() == forbids:
                return f"as root: sysctl {name}={permits}"
    return "run as root, or permit unshare(2) and mount(2) in the container's seccomp profile"


# ---- system calls that Python lacks -----------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)


def _call_unshare(flags: int) -> None:
    if _libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    arguments = (None if text is None else os.fsencode(text) for text in (source, target, kind))
    options = None if data is None else data.encode()
    if _libc.mount(*arguments, ctypes.c_ulong(flags), options) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _unmount(path: str) -> None:
    """The topmost mount of those on path, and what is mounted below it."""
    if _libc.umount2(os.fsencode(path), MNT_DETACH) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
