"""Poison under something of a program's, and what its processes tell of poison that they met: the book.

It neither strikes nor looks anything up: the shim does (csrc/shim/target.c, witness.c), which shares the book with us.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import re
import struct

from cram_emu.errors import InvalidArgument

# As csrc/shim/witness.h has it: due, taken, found, reached, lines; then lines of text.
_LINE = 256
_LINES = 1023
_HEAD = struct.Struct("5I")
_SIZE = _LINE * (1 + _LINES)
#: The words of a line, by its first one.
_WORDS = {"met": 7, "struck": 6, "failed": 6}

_NAME_MAX = 199
_U64_MAX = 2**64 - 1
_U32_MAX = 2**32 - 1


@dataclasses.dataclass(frozen=True, slots=True)
class PoisonAt:
    """Where poison is wanted."""

    asked: str  #: as it was asked for
    kind: str  #: heap, mmap, caller
    text: str  #: as the shim reads it
    number: int = 0  #: mmap, caller: which one, from 1
    function: str = ""  #: caller


@dataclasses.dataclass(frozen=True, slots=True)
class After:
    """When it may strike: whichever is given."""

    seconds: float | None = None
    faults: int | None = None

    def reached(self, seconds: float, faults: int) -> bool:
        return seconds >= self.seconds if self.seconds is not None else faults >= self.faults


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """An address of a process, and what is known of it."""

    pid: int
    address: int
    where: str  #: "heap", or the mapping, with an offset: "mmap #2 + 4096"
    call: str  #: the function that asked for it; "": not known


@dataclasses.dataclass(frozen=True, slots=True)
class Meeting:
    """An access that met poison."""

    place: Place
    time: float  #: CLOCK_MONOTONIC
    name: str  #: of the program


@dataclasses.dataclass(frozen=True, slots=True)
class Struck:
    """What became of a target."""

    target: str
    place: Place | None = None  #: None: there was no such thing
    dpa: int | None = None
    why: str = ""  #: where nothing was poisoned


def parse_poison_at(text: str) -> PoisonAt:
    """heap:N%, mmap:N+OFFSET or caller:FUNCTION#N. InvalidArgument, naming what is wrong."""
    kind, _, rest = text.partition(":")
    if kind == "heap":
        if not re.fullmatch(r"\d+(\.\d+)?%", rest) or float(rest[:-1]) > 100:
            raise InvalidArgument(f"{text!r}: heap:N% takes a number from 0 to 100")
        return PoisonAt(text, kind, text[:-1])
    if kind == "mmap":
        found = re.fullmatch(r"(\d{1,20})(?:\+(\d{1,20}|0[xX][0-9a-fA-F]{1,16}))?", rest)
        number, offset = (int(found[1]), int(found[2] or "0", 0)) if found else (0, 0)
        if not 1 <= number <= _U32_MAX or offset > _U64_MAX:
            raise InvalidArgument(f"{text!r}: mmap:N+OFFSET takes a number from 1 on, and bytes")
        return PoisonAt(text, kind, f"mmap:{number}+{offset}", number)
    if kind == "caller":
        found = re.fullmatch(r"([^\s,#]+)#(\d{1,20})", rest)
        if not found or not 1 <= int(found[2]) <= _U32_MAX or len(found[1].encode()) > _NAME_MAX:
            raise InvalidArgument(f"{text!r}: caller:FUNCTION#N takes a symbol's name, and a number from 1 on")
        return PoisonAt(text, kind, text, int(found[2]), found[1])
    raise InvalidArgument(f"{text!r}: not heap:N%, mmap:N+OFFSET or caller:FUNCTION#N")


def parse_after(text: str) -> After:
    """5s or 10000-faults. InvalidArgument."""
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)s", text):
        return After(seconds=float(found[1]))
    if found := re.fullmatch(r"(\d{1,20})-faults", text):
        return After(faults=int(found[1]))
    raise InvalidArgument(f"{text!r}: not a time, as 5s, nor a number of page faults, as 10000-faults")


class Book:
    """What the processes of a run share with whoever runs them. Threads: any."""

    def __init__(self):
        self._fd = os.memfd_create("cram_emu-book")
        os.ftruncate(self._fd, _SIZE)
        self._memory = mmap.mmap(self._fd, _SIZE)

    def __enter__(self) -> Book:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.close()
        os.close(self._fd)

    @property
    def path(self) -> str:
        """For other processes, while this one is there."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def set_due(self) -> None:
        """From now on the target may be struck."""
        struct.pack_into("I", self._memory, 0, 1)

    def met(self) -> list[Meeting]:
        """Where processes met poison: of each the first few times."""
        return [Meeting(_place(words), float(words[5]), words[6]) for words in self._lines("met")]

    def struck(self, target: PoisonAt) -> Struck:
        for words in self._lines("struck"):
            return Struck(target.asked, _place(words), int(words[5], 16))
        for words in self._lines("failed"):
            return Struck(target.asked, _place(words), why=words[5])
        return Struck(target.asked, why=self._why(target))

    def _lines(self, kind: str) -> list[list[str]]:
        lines = _HEAD.unpack_from(self._memory)[4]
        texts = (
            self._memory[_LINE * i : _LINE * (i + 1)].split(b"\0", 1)[0].decode(errors="replace")
            for i in range(1, 1 + min(lines, _LINES))
        )
        # Who is killed may leave half a line.
        return [words for text in texts if (words := text.split("\t"))[0] == kind and len(words) == _WORDS[kind]]

    def _why(self, target: PoisonAt) -> str:
        due, _, found, reached, _ = _HEAD.unpack_from(self._memory)
        if not due:
            return "the program ended before it was due"
        if target.kind == "caller" and not found:
            return (
                f"no function {target.function} in the dynamic symbols of the program or its libraries (link it with"
                " -rdynamic, or export the function)"
            )
        if target.kind == "caller" and reached < target.number:
            return f"allocations of {target.function} on the device: {reached}"
        if target.kind == "mmap" and reached < target.number:
            return f"mappings of the program on the device: {reached}"
        if target.kind == "mmap":
            return "the offset is past its end, or it was unmapped before"
        return "it was freed before" if target.kind == "caller" else "nothing was allocated on the device"


def _place(words: list[str]) -> Place:
    return Place(int(words[1]), int(words[2], 16), words[3], words[4])
