"""The format of the device object, read from its file without the C core: an oracle, and a way to damage it.

It follows csrc/device/layout.h and pagemap.h by itself. It locks nothing: look at a device at rest.
"""

import collections
import os
import struct

PAGE = 4096
VERSION = 5

EMPTY, ZERO, SAME, STORED, RAW, POISON = range(6)
FLAG_LOCK = 1 << 47
FLAG_BUSY = 1 << 48
FLAG_DIRTY = 1 << 49
FLAG_RECORDED = 1 << 50
FLAG_RUN = 1 << 51
HOLDER_SHIFT = 52

# struct geometry, after the magic, the version and the check: the parameters, then 14 words.
GEOMETRY = struct.Struct("<QQIIIiIIQQIIi4x14Q")
GEOMETRY_AT = 16
# struct superblock.
USED_AT = 256
PEAK_AT = 264
# Dropped and refused writes, media errors, lost pages.
LOSSES_AT = 320
LOSSES = 4
OVERFLOW_AT = 352
POISON_LOCK_AT = 364
ALERT_LOCK_AT = 368
STRIPES_AT = 384
STRIPES = 16
STRIPE = struct.Struct("<8q")
# struct clients: attached, gate, lock.
GATE = 8
TABLE_LOCK = 12
# struct poison_list: limit, count, records.
RECORD = struct.Struct("<QII")
# csrc/device/media.h
GROUP_SECTORS = 64 * 64


class DeviceObject:
    """The object behind a descriptor, such as Device.fileno()."""

    def __init__(self, fd: int):
        self.fd = fd
        assert self.words(8, 1, "I") == (VERSION,)
        head = GEOMETRY.unpack(self.read(GEOMETRY_AT, GEOMETRY.size))
        self.real, self.sector = head[1], head[2]
        self.pages, self.sectors, *parts = head[13:]
        self.clients, _, self.poison, self.bitmap, self.groups, self.map, *parts = parts
        self.checks, _, _, self.links, self.media, self.size = parts

    def read(self, at: int, length: int) -> bytes:
        return os.pread(self.fd, length, at)

    def write(self, at: int, data: bytes) -> None:
        assert os.pwrite(self.fd, data, at) == len(data)

    def flip(self, at: int, bit: int = 0) -> None:
        """Inverts one bit of the byte at an offset."""
        self.write(at, bytes([self.read(at, 1)[0] ^ 1 << bit]))

    def words(self, at: int, count: int, letter: str) -> tuple[int, ...]:
        code = struct.Struct(f"<{count}{letter}")
        return code.unpack(self.read(at, code.size))

    # -- the truth

    def entries(self) -> tuple[int, ...]:
        return self.words(self.map, self.pages, "Q")

    def chain(self, page: int) -> list[int]:
        """The sectors of a page, in order; the owner's tag at the end of linked ones is checked."""
        (entry,) = self.words(self.map + page * 8, 1, "Q")
        count = -(-length_of(entry) // self.sector)
        first = entry & 0xFFFFFFFF
        if count == 0 or entry & FLAG_RUN:
            return list(range(first, first + count))
        chain, sector = [], first
        for _ in range(count):
            assert sector < self.sectors, f"page {page}: sector {sector}"
            chain.append(sector)
            (sector,) = self.words(self.links + sector * 4, 1, "I")
        assert sector == page, f"page {page}: its chain ends in the tag {sector}"
        return chain

    def linked(self, page: int) -> bool:
        (entry,) = self.words(self.map + page * 8, 1, "Q")
        return length_of(entry) > 0 and not entry & FLAG_RUN

    def sector_at(self, sector: int) -> int:
        """The offset of a sector."""
        return self.media + sector * self.sector

    def form(self, page: int) -> bytes:
        """The stored form of a page."""
        (entry,) = self.words(self.map + page * 8, 1, "Q")
        form = b"".join(self.read(self.sector_at(s), self.sector) for s in self.chain(page))
        return form[: length_of(entry)]

    # -- what is derived from it

    def used(self) -> int:
        """Sectors, by the device's counter."""
        return self.words(USED_AT, 1, "Q")[0]

    def taken(self) -> set[int]:
        """Sectors, by the bitmap."""
        bits = int.from_bytes(self.read(self.bitmap, -(-self.sectors // 64) * 8), "little")
        return {sector for sector in range(self.sectors) if bits >> sector & 1}

    def records(self) -> list[tuple[int, int, int]]:
        _, count = self.words(self.poison, 2, "I")
        return list(RECORD.iter_unpack(self.read(self.poison + 8, count * RECORD.size)))

    def stripes(self) -> list[int]:
        """Pages by state, payload, poisoned pages: as the counters say."""
        rows = STRIPE.iter_unpack(self.read(STRIPES_AT, STRIPES * STRIPE.size))
        return [sum(column) for column in zip(*rows)]

    def check(self, lost: int = 0) -> None:
        """AssertionError where something derived is not what the page map says. lost: sectors that a fault has taken."""
        entries = self.entries()
        owners = collections.Counter(s for page in range(self.pages) for s in self.chain(page))
        assert set(owners.values()) <= {1}, "a sector belongs to two pages"
        assert self.taken() == set(owners)
        assert self.used() == len(owners) + lost
        groups = collections.Counter(sector // GROUP_SECTORS for sector in owners)
        counts = self.words(self.groups, -(-self.sectors // GROUP_SECTORS), "H")
        assert list(counts) == [groups[group] for group in range(len(counts))]

        states = collections.Counter(state_of(entry) for entry in entries)
        poisoned = [e for e in entries if state_of(e) == POISON or e & FLAG_RECORDED]
        counted = [states[state] for state in range(1, 6)]
        payload = sum(length_of(entry) for entry in entries)
        # Empty pages are not counted.
        assert self.stripes() == [0, *counted, payload, len(poisoned)]

        assert self.words(OVERFLOW_AT, 1, "Q")[0] == sum(not e & FLAG_RECORDED for e in poisoned)
        recorded = {page for page, entry in enumerate(entries) if entry & FLAG_RECORDED}
        assert {dpa // PAGE for dpa, _, _ in self.records()} == recorded


def state_of(entry: int) -> int:
    return entry >> 44 & 7


def length_of(entry: int) -> int:
    """Bytes of stored form."""
    if state_of(entry) == RAW:
        return PAGE
    return entry >> 32 & 0xFFF if state_of(entry) == STORED else 0
