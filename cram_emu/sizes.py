"""Sizes as people write them: "8G", "512M", 4096."""

import re

from cram_emu.errors import InvalidArgument

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"\s*(\d{1,40}(?:\.\d{1,40})?)\s*([KMGT]?)(?:i?B)?\s*", re.IGNORECASE | re.ASCII)


def parse_size(value: int | str, what: str = "size") -> int:
    """Bytes of "8G", "512MiB", "1.5G" or an integer; units are powers of 1024.

    InvalidArgument, naming what it is and the value, for anything else, negative numbers and fractions of a byte.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise InvalidArgument(f"{what} {value}: negative")
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise InvalidArgument(f"{what} {value!r}: not a number of bytes such as 4096, '512M' or '8G'")
    number, unit = match.groups()
    whole, _, fraction = number.partition(".")
    scaled = int(whole + fraction) * _UNITS[unit.upper()]
    if scaled % 10 ** len(fraction):
        raise InvalidArgument(f"{what} {value!r}: not a whole number of bytes")
    return scaled // 10 ** len(fraction)


def format_size(size: int) -> str:
    """Bytes for people: "1.5 GiB", "64 B"."""
    if size < 1024:
        return f"{size} B"
    amount = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        amount /= 1024
        if amount < 1024 or unit == "TiB":
            break
    return f"{amount:.4g} {unit}" if amount >= 100 or amount == int(amount) else f"{amount:.1f} {unit}"
