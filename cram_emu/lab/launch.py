"""Starts an unmodified program with its heap and large anonymous mappings on a device.

It knows what can be started so, and what environment that takes (csrc/shim/shim.c reads it). It neither
makes the device nor watches the program.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from cram_emu.errors import InvalidArgument, NotSupported
from cram_emu.sizes import format_size

if TYPE_CHECKING:
    from cram_emu.host import Zswap
    from cram_emu.lab.witness import Book, PoisonAt

#: Who decides where a program's pages are: "direct": all are the device's; "zswap": a manager of each process demotes what is cold.
MODES = ("direct", "zswap")
DELIVERIES = ("inline", "monitor")

_SETTINGS = "CRAM_EMU_SHIM"
# Debian's libmimalloc2.0; a program's own libraries are looked for in the same places (ld.so(8)).
_ALLOCATOR = "libmimalloc.so.2"
_LIBRARIES = ("/usr/local/lib", "/usr/local/lib/*-linux-gnu", "/usr/lib/*-linux-gnu", "/usr/lib64", "/usr/lib")
_SHEBANG_DEPTH = 5  # fs/exec.c allows so many interpreters of interpreters
_ELF_64_LITTLE_X86 = b"\x7fELF\x02\x01"
_X86_64 = 62
_PT_INTERP = 3


class CannotStart(Exception):
    """There is no such program (exit code 127), or it cannot be executed (126)."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a program's memory is placed. Sizes in bytes."""

    window: int  #: resident frames at most, of each process: what is not compressed, or, managed, its DRAM
    min_mmap: int = 64 << 10  #: from so many bytes on an anonymous mapping is placed
    delivery: str = "inline"
    follow: bool = True  #: programs that it starts are placed too
    writeback_ms: int = 100
    make_it_fail: bool = False  #: faults with a task filter strike it

    def check(self, frames: str = "window") -> None:
        """InvalidArgument, naming the value; frames: what the user knows the window as."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if self.window < 1 << 16:
            raise InvalidArgument(f"{frames} {self.window}: below 64 KiB")
        if self.window % 4096:
            raise InvalidArgument(f"{frames} {self.window}: not a multiple of 4096")
        if self.window > memory:
            raise InvalidArgument(
                f"{frames} {format_size(self.window)}: this host has {format_size(memory)} of memory"
            )
        if self.min_mmap < 4096:
            raise InvalidArgument(f"smallest mapping {self.min_mmap}: below a page, 4096")


def environment(
    device: str | os.PathLike[str],
    settings: Settings,
    manager: Zswap | None = None,
    book: Book | None = None,
    poison_at: PoisonAt | None = None,
) -> dict[str, str]:
    """The environment that has a program attach to the device at that path. NotSupported, InvalidArgument.

    manager: a shared one, whose settings are those of the managers that the program's processes get. book: where they write
    who met poison, and whether poison_at, where there is to be some, may be struck.
    """
    settings.check()
    shim = _shim()
    fields = (
        settings.window,
        settings.min_mmap,
        settings.writeback_ms,
        int(settings.delivery == "monitor"),
        int(settings.follow),
        int(settings.make_it_fail),
        "-" if book is None else book.path,
        "-" if poison_at is None else poison_at.text,
        "-" if manager is None else f"/proc/{os.getpid()}/fd/{manager.fileno()}",
        os.fspath(device),
    )
    # Ours first: it stands in front of mmap(), which the allocator calls. The user's own come after.
    others = [os.environ["LD_PRELOAD"]] if os.environ.get("LD_PRELOAD") else []
    return {
        **os.environ,
        _SETTINGS: ",".join(map(str, fields)),
        "LD_PRELOAD": ":".join([str(shim), str(_allocator()), *others]),
    }


def find(program: str) -> str:
    """The file that `program` names, as execvp(3) finds it. CannotStart; NotSupported: nothing can be preloaded."""
    path = program if "/" in program else shutil.which(program)
    if path is None:
        raise CannotStart(f"{program}: command not found", 127)
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise CannotStart(f"{program}: no such file", 127) from None
    except OSError as error:
        raise CannotStart(f"{program}: {error.strerror}", 126) from None
    if stat.S_ISDIR(found.st_mode):
        raise CannotStart(f"{program}: is a directory", 126)
    if not os.access(path, os.X_OK):
        raise CannotStart(f"{program}: not executable", 126)
    _check_privileges(path, found)
    _check_dynamic(path, _SHEBANG_DEPTH)
    return path


def _check_privileges(path: str, found: os.stat_result) -> None:
    foreign_user = found.st_mode & stat.S_ISUID and found.st_uid != os.geteuid()
    foreign_group = found.st_mode & stat.S_ISGID and found.st_gid != os.getegid()
    if foreign_user or foreign_group:
        kind = "setuid" if foreign_user else "setgid"
        raise NotSupported(f"{path}: {kind}: nothing can be preloaded into a program that gains privileges")
    if os.geteuid() != 0 and "security.capability" in os.listxattr(path):
        raise NotSupported(f"{path}: has capabilities: nothing can be preloaded into a program that gains them")


def _check_dynamic(path: str, depth: int) -> None:
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except PermissionError:
        return  # may be executed, not read: the loader will say
    if head.startswith(b"#!"):
        words = head[2:].split(b"\n", 1)[0].split()
        interpreter = os.fsdecode(words[0]) if words else ""
        if not os.path.exists(interpreter):
            raise CannotStart(f"{path}: its interpreter {interpreter or 'is not named'} does not exist", 126)
        if depth:
            _check_dynamic(interpreter, depth - 1)
        return
    if not head.startswith(b"\x7fELF"):
        raise CannotStart(f"{path}: not a program: neither ELF nor a script with #!", 126)
    if not head.startswith(_ELF_64_LITTLE_X86) or struct.unpack_from("<H", head, 18)[0] != _X86_64:
        raise NotSupported(f"{path}: not a 64-bit x86 program, as the shim is")
    # struct Elf64_Ehdr: the program headers' offset, size and number.
    (offset,) = struct.unpack_from("<Q", head, 32)
    size, number = struct.unpack_from("<HH", head, 54)
    with open(path, "rb") as file:
        file.seek(offset)
        headers = file.read(size * number)
    kinds = [struct.unpack_from("<I", headers, size * i)[0] for i in range(len(headers) // (size or 1))]
    if _PT_INTERP not in kinds:
        raise NotSupported(f"{path}: statically linked: nothing can be preloaded into it")


def _shim() -> Path:
    for path in Path(__file__).parent.parent.glob("_shim*.so"):
        # ld.so splits the list there (ld.so(8)).
        if any(character in str(path) for character in ": "):
            raise NotSupported(f"{path}: a path with a space or a colon cannot be preloaded")
        return path
    raise NotSupported("the shim is not built: run scripts/setup")


def _allocator() -> Path:
    for place in _LIBRARIES:
        for path in Path("/").glob(f"{place[1:]}/{_ALLOCATOR}"):
            return path
    raise NotSupported(f"{_ALLOCATOR} is missing: as root, apt-get install libmimalloc2.0")

