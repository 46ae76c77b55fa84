"""Real data to write to a device: the files of this machine, as a stream of 4 KiB pages.

It knows no device, keeps no checksums and prints nothing. Files are joined end to end, as in an
archive, so that no page is padded. When the files of a kind run out they are read again: a device
that does not deduplicate cannot tell, and the pages of a further round begin elsewhere in the
files. What the machine lacks is made here, and the content's name says so. A file that vanishes or
cannot be read is counted and passed over.

Sizes are bytes. A content is used once, by one thread.
"""

import os
import random
import re
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

PAGE = 4096

_CHUNK = 1 << 20
_ENOUGH = 1 << 20  # less than this is not worth reading over and over

# The interpreter's own library first: it is there wherever this runs.
_PYTHON = (
    sysconfig.get_path("stdlib"),
    sysconfig.get_path("purelib"),
    "/usr/lib",
    "/usr/share",
    "/opt",
)


@dataclass(frozen=True)
class Kind:
    """Files of one sort: those below the roots, in that order, whose name matches."""

    name: str
    pattern: re.Pattern[str]
    roots: tuple[str, ...]

    def paths(self) -> Iterator[str]:
        """Each regular file once, no symbolic links; in the same order every time."""
        walked: set[str] = set()
        for root in map(os.path.realpath, self.roots):
            for folder, folders, names in os.walk(root):
                if folder in walked:
                    folders.clear()
                    continue
                walked.add(folder)
                folders.sort()
                for name in sorted(filter(self.pattern.search, names)):
                    path = os.path.join(folder, name)
                    if os.path.isfile(path) and not os.path.islink(path):
                        yield path


WORDS = Kind("word lists", re.compile(r"^(?!README)"), ("/usr/share/dict", "/usr/share/hunspell"))
SOURCES = Kind("Python sources", re.compile(r"\.py$"), _PYTHON)
BYTE_CODE = Kind("Python byte code", re.compile(r"\.pyc$"), _PYTHON)
LIBRARIES = Kind(
    "shared objects", re.compile(r"\.so(\.\d+)*$"), ("/usr/lib", "/usr/local/lib", *_PYTHON)
)
ARCHIVES = Kind(
    "archives",
    re.compile(r"\.(deb|whl|gz|tgz|xz|bz2|zst|zip|jar)$"),
    ("/var/cache/apt/archives", *_PYTHON),
)


class Content:
    """At most `limit` bytes of one sort, handed out in batches of whole pages.

    `bytes` counts what was handed out. A subclass gives the bytes and the note.
    """

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.bytes = 0

    @property
    def note(self) -> str:
        """Where the bytes came from, in a few words."""
        raise NotImplementedError

    def batches(self, size: int) -> Iterator[bytes]:
        """Batches of `size` bytes, a multiple of the page; the last may be shorter."""
        pending = bytearray()
        for chunk in self._chunks():
            pending += chunk
            while len(pending) >= size and self.limit - self.bytes >= size:
                self.bytes += size
                yield bytes(pending[:size])
                del pending[:size]
            if len(pending) >= self.limit - self.bytes:
                break
        rest = min(len(pending), self.limit - self.bytes) // PAGE * PAGE
        if rest:
            self.bytes += rest
            yield bytes(pending[:rest])

    def _chunks(self) -> Iterator[bytes]:
        raise NotImplementedError


class Files(Content):
    """The files of a kind.

    `rounds` says how often they were begun; `files` counts those read in the first round and
    `unreadable` those that could not be.
    """

    def __init__(self, kind: Kind, limit: int) -> None:
        super().__init__(kind.name, limit)
        self.files = 0
        self.unreadable = 0
        self.rounds = 0
        self._kind = kind

    @property
    def note(self) -> str:
        files = f"{self.files:,} files" if self.files != 1 else "1 file"
        again = f" in {self.rounds} rounds" if self.rounds > 1 else ""
        unread = f", {self.unreadable:,} unreadable" if self.unreadable else ""
        return files + again + unread

    def _chunks(self) -> Iterator[bytes]:
        while True:
            self.rounds += 1
            read = 0
            for path in self._kind.paths():
                for chunk in self._file(path):
                    read += len(chunk)
                    yield chunk
            if read < _ENOUGH:
                return

    def _file(self, path: str) -> Iterator[bytes]:
        first = self.rounds == 1
        try:
            with open(path, "rb", buffering=0) as file:
                self.files += first
                while chunk := file.read(_CHUNK):
                    yield chunk
        except OSError:
            self.unreadable += first


class Packed(Content):
    """Other contents compressed with zlib: what archives are, where the machine keeps none."""

    def __init__(self, sources: list[Content], limit: int) -> None:
        super().__init__("archives made here", limit)
        self._sources = sources

    @property
    def note(self) -> str:
        return "zlib, of " + " and ".join(source.name for source in self._sources)

    def _chunks(self) -> Iterator[bytes]:
        packer = zlib.compressobj(1)
        for source in self._sources:
            for batch in source.batches(_CHUNK):
                yield packer.compress(batch)
        yield packer.flush()


class Text(Content):
    """Words in random order, which shrink about as well as prose; it never ends early."""

    def __init__(self, limit: int, seed: int = 1) -> None:
        super().__init__("generated text", limit)
        self._random = random.Random(seed)

    @property
    def note(self) -> str:
        return "this machine has too few files"

    def _chunks(self) -> Iterator[bytes]:
        letters = "etaoinshrdlucmfwypvbgkjqxz"
        weights = range(len(letters), 0, -1)
        words = [
            "".join(self._random.choices(letters, weights, k=self._random.randint(2, 9)))
            for _ in range(2000)
        ]
        text = " ".join(self._random.choices(words, k=_CHUNK // 4)).encode()
        while True:
            # A page is compressed alone, so pieces of one text do as well as a new text each time.
            starts = (self._random.randrange(len(text) - PAGE) for _ in range(_CHUNK // PAGE))
            yield b"".join(text[start : start + PAGE] for start in starts)


class Noise(Content):
    """Random bytes, as encrypted data looks; it never ends early."""

    def __init__(self, limit: int) -> None:
        super().__init__("random bytes", limit)

    @property
    def note(self) -> str:
        return "this machine has too few archives"

    def _chunks(self) -> Iterator[bytes]:
        while True:
            yield os.urandom(_CHUNK)


def ordinary(total: int) -> Iterator[Content]:
    """What programs keep in memory, at most `total` bytes: word lists, then a third of each kind.

    Where the machine has less than half of `total`, generated text makes up the half. Use each
    content before asking for the next.
    """
    done = 0
    for kind, share in ((WORDS, 16), (SOURCES, 3), (BYTE_CODE, 3), (LIBRARIES, 3)):
        content = Files(kind, min(total // share, total - done))
        yield content
        done += content.bytes
    if done < total // 2:
        yield Text(total // 2 - done)


def incompressible(total: int) -> Iterator[Content]:
    """What does not shrink: the machine's archives, then archives made here, then random bytes.

    Each follows only where those before gave less than `total` bytes. Use each content before
    asking for the next.
    """
    archives = Files(ARCHIVES, total)
    yield archives
    raw = [Files(SOURCES, 4 * total), Files(LIBRARIES, 4 * total)]
    packed = Packed(raw, total - archives.bytes)
    if packed.limit:
        yield packed
    if packed.bytes < packed.limit:
        yield Noise(packed.limit - packed.bytes)


def supply(usual: int, total: int, size: int) -> Iterator[tuple[Content, bytes]]:
    """Batches of `size` bytes, each with its content: ordinary ones up to `usual` bytes, then
    incompressible ones up to `total` bytes in all."""
    done = 0
    for content in ordinary(usual):
        for batch in content.batches(size):
            done += len(batch)
            yield content, batch
    for content in incompressible(total - done):
        for batch in content.batches(size):
            yield content, batch
