"""The kernel's readings of what is written to a file: lib/kstrtox.c, lib/cmdline.c. EINVAL for all else."""

import errno
import os
import re

U64_MAX = 2**64 - 1

# kstrtox takes one sign and one base; int() would take underscores and spaces too.
_NUMBER = re.compile(r"\+?(?:0x(?P<hex>[0-9a-f]+)|(?P<octal>0[0-7]*)|(?P<decimal>[1-9][0-9]*))", re.I)
_SIZE = re.compile(r"(?P<number>0x[0-9a-f]+|[0-9]+)(?P<unit>[KMGTPE]?)", re.I)
_TRUE = ("y", "Y", "t", "T", "1")
_FALSE = ("n", "N", "f", "F", "0")


def failure(number: int, message: str = "") -> OSError:
    """The OSError of an errno, to raise."""
    return OSError(number, message or os.strerror(number))


def invalid(text: str) -> OSError:
    return failure(errno.EINVAL, f"{text[:64]!r}: invalid")


def kstrtoull(text: str, largest: int = U64_MAX) -> int:
    """Decimal, 0x... or octal, as kstrtoull(text, 0, ...); ERANGE over `largest`, as kstrtou8() and others."""
    found = _NUMBER.fullmatch(text)
    if found is None:
        raise invalid(text)
    digits = found["hex"] or found["octal"] or found["decimal"]
    # More digits than any number that fits; int() itself refuses thousands of them.
    value = U64_MAX + 1
    if len(digits.lstrip("0")) <= 22:
        value = int(digits, 16 if found["hex"] else 8 if found["octal"] else 10)
    if value > largest:
        raise failure(errno.ERANGE, f"{text[:64]!r}: over {largest}")
    return value


def kstrtobool(text: str) -> bool:
    """By the first letter, as the kernel does; "on" and "off" by the second."""
    if text[:1] in _TRUE and text:
        return True
    if text[:1] in _FALSE and text:
        return False
    match text[:2].lower():
        case "on":
            return True
        case "of":
            return False
    raise invalid(text)


def memparse(text: str) -> int:
    """A number with a unit, as "4096" or "8G"."""
    found = _SIZE.fullmatch(text)
    if found is None or len(found["number"]) > 22:
        raise invalid(text)
    scale = " KMGTPE".index(found["unit"].upper() or " ")
    value = int(found["number"], 0 if found["number"][:2].lower() == "0x" else 10) << 10 * scale
    if value > U64_MAX:
        raise invalid(text)
    return value


def one_of(text: str, *words: str) -> str:
    """sysfs_match_string()."""
    if text not in words:
        raise invalid(text)
    return text


def node_list(nodes) -> str:
    """Numbers as the kernel's %*pbl: "0-1,4"."""
    runs: list[list[int]] = []
    for node in sorted(nodes):
        if runs and node == runs[-1][1] + 1:
            runs[-1][1] = node
        else:
            runs.append([node, node])
    return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in runs)
