"""A seeded workload on a buffer of pages, whatever that buffer is, and the verification of it.

What the pages must hold is kept in a ledger, from what was written and never from the buffer. The
same arguments give the same accesses and the same contents, on any machine. It measures nothing, and
knows neither limits nor swap. One thread.
"""

import random
from collections.abc import Callable, Iterable

from cram_emu.lab.corpus import Text
from cram_emu.lab.ledger import PAGE, Ledger
from cram_emu.lab.loops import WrongContents

_LIBRARY = 1 << 20  # bytes of noise and of text; a page of them begins anywhere in it
_READS = 0.75  # of the accesses of a pass; the others overwrite the page
_SKEW = 3  # uniform numbers to this power: half of the accesses go to an eighth of the pages
_STEP = 1_000_003  # a prime: neighbours in the skewed order are far apart in the buffer

Mix = dict[str, float]  # shares of the kinds of pages, see Contents

# What programs hold, roughly.
ORDINARY: Mix = {
    "zero": 0.15,
    "word": 0.05,
    "records": 0.2,
    "half_text": 0.1,
    "little_text": 0.1,
    "graded": 0.3,
    "noise": 0.1,
}

# Without text, which one codec shrinks more than another: of these pages lz4 and lzo differ by bytes.
ANY_CODEC: Mix = {"zero": 0.15, "word": 0.05, "graded": 0.7, "noise": 0.1}


class Contents:
    """Pages of each kind, one after the other; the same for a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._noise = self._random.randbytes(_LIBRARY)
        self._text = next(Text(_LIBRARY, seed).batches(_LIBRARY))
        self._records = self._some_records()
        self._kinds: dict[str, Callable[[], bytes]] = {
            "zero": lambda: bytes(PAGE),
            "word": lambda: (self._random.getrandbits(64) | 1).to_bytes(8, "little") * (PAGE // 8),
            "records": lambda: self._piece(self._records, PAGE),
            "half_text": lambda: self._piece(self._text, PAGE // 2).ljust(PAGE),
            "little_text": lambda: self._piece(self._text, PAGE // 8).ljust(PAGE),
            "graded": self._graded,
            "noise": lambda: self._piece(self._noise, PAGE),
        }

    def page(self, kind: str) -> bytes:
        return self._kinds[kind]()

    def _some_records(self) -> bytes:
        """As a log has them: one shape, and numbers in it."""
        line = "host=%07d level=info request=%07d took=%07d us status=ok\n"
        lines = (
            line % tuple(self._random.getrandbits(20) for _ in range(3))
            for _ in range(_LIBRARY // len(line) + 1)
        )
        return "".join(lines).encode()[:_LIBRARY]

    def _graded(self) -> bytes:
        """64 to 3500 random bytes. Last: a codec that steps faster where nothing matches would
        notice late that a repeated byte begins."""
        noise = self._piece(self._noise, self._random.randint(64, 3500))
        return noise.rjust(PAGE, b"\x55")

    def _piece(self, library: bytes, length: int) -> bytes:
        start = self._random.randrange(_LIBRARY - length)
        return library[start : start + length]


class Workload:
    """Fills the pages in address order, then goes over them in passes of skewed random reads and
    overwrites: a page's kind changes with each, to zeros and to noise too. To be run once."""

    def __init__(
        self, pages: int, passes: int = 3, accesses: int = 20_000, mix: Mix = ORDINARY, seed: int = 1
    ) -> None:
        self.pages = pages
        self.passes = passes
        self.accesses = accesses  # of a pass
        self._kinds = tuple(mix)
        self._weights = tuple(mix.values())
        self._random = random.Random(seed)
        self._contents = Contents(seed)
        self._ledger = Ledger()
        self._zero: set[int] = set()

    @property
    def zero_pages(self) -> int:
        """Pages that hold nothing but zeros by now."""
        return len(self._zero)

    def run(self, buffer) -> None:
        """On a writable buffer of self.pages pages. WrongContents where a read finds other bytes than
        were written last."""
        with memoryview(buffer) as memory:
            for page, kind in enumerate(self._choose(self.pages)):
                self._write(memory, page, kind)
            for _ in range(self.passes):
                self._pass(memory)

    def verify(self, buffer) -> None:
        """Reads every page. WrongContents with the number of those that are not as they were left."""
        with memoryview(buffer) as memory:
            wrong = [page for page in range(self.pages) if not self._holds(memory, page)]
        if wrong:
            raise WrongContents(f"{len(wrong)} of {self.pages} pages are wrong, page {wrong[0]} first")

    def _pass(self, memory: memoryview) -> None:
        for kind in self._choose(self.accesses):
            rank = int(self.pages * self._random.random() ** _SKEW)
            page = rank * _STEP % self.pages
            if self._random.random() >= _READS:
                self._write(memory, page, kind)
            elif not self._holds(memory, page):
                raise WrongContents(f"page {page} of {self.pages} is wrong")

    def _choose(self, count: int) -> Iterable[str]:
        return self._random.choices(self._kinds, self._weights, k=count)

    def _write(self, memory: memoryview, page: int, kind: str) -> None:
        content = self._contents.page(kind)
        self._ledger.record(page, content)
        (self._zero.add if kind == "zero" else self._zero.discard)(page)
        memory[page * PAGE : (page + 1) * PAGE] = content

    def _holds(self, memory: memoryview, page: int) -> bool:
        with memory[page * PAGE : (page + 1) * PAGE] as content:
            return self._ledger.holds(page, content)
