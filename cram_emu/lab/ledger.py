"""Checksums of what was written to a device, kept outside it, and the verification against them.

It believes nothing that the device says of itself: a page is intact when its bytes have the
checksum that they had when they were written. One thread uses a ledger at a time.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from cram_emu.device import Device
from cram_emu.errors import PoisonError

PAGE = 4096

_DIGEST = 8
_RUN = 64  # pages read at once


def _digests(pages: bytes) -> bytes:
    view = memoryview(pages)
    return b"".join(
        hashlib.blake2b(view[start : start + PAGE], digest_size=_DIGEST).digest()
        for start in range(0, len(view), PAGE)
    )


_ZEROS = _digests(bytes(PAGE))


@dataclass(frozen=True)
class Verdict:
    """Pages by what reading them gave; wrong means other bytes than were written, and no poison."""

    intact: int = 0
    poisoned: int = 0
    wrong: int = 0


class Ledger:
    """A checksum of 8 bytes for each page from DPA 0 on."""

    def __init__(self) -> None:
        self._digests = bytearray()

    def __len__(self) -> int:
        return len(self._digests) // _DIGEST

    def record(self, first: int, pages: bytes) -> None:
        """Notes whole pages as they are written, from page first on: a known one, or the next."""
        digests = _digests(pages)
        self._digests[first * _DIGEST : first * _DIGEST + len(digests)] = digests

    def discarded(self, first: int, count: int) -> None:
        """Notes that count pages from page first on read as zeros from now on."""
        self._digests[first * _DIGEST : (first + count) * _DIGEST] = _ZEROS * count

    def holds(self, first: int, pages: bytes) -> bool:
        """Whether these whole pages are what was recorded from page first on."""
        digests = _digests(pages)
        return self._digests[first * _DIGEST : first * _DIGEST + len(digests)] == digests

    def verify(self, device: Device, progress: Callable[[int], None]) -> Verdict:
        """Reads every page; progress is called with the number of pages of each run read."""
        pages: Counter[str] = Counter()
        for first in range(0, len(self), _RUN):
            count = min(_RUN, len(self) - first)
            if self._outcome(device, first, count) == "intact":
                pages["intact"] += count
            else:
                pages.update(self._outcome(device, first + i, 1) for i in range(count))
            progress(count)
        return Verdict(**pages)

    def _outcome(self, device: Device, first: int, count: int) -> str:
        try:
            data = device.read(first * PAGE, count * PAGE)
        except PoisonError:
            return "poisoned"
        return "intact" if self.holds(first, data) else "wrong"
