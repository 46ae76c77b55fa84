"""The only module that touches the C core's ffi and lib. Codes become exceptions here.

It holds no state and no policy.
"""

from collections.abc import Iterator
from typing import Any

from cram_emu._cram import ffi, lib
from cram_emu._region import Handle
from cram_emu.errors import BY_CODE_NAME, CramError, InvalidArgument

__all__ = ["check", "choose", "expect", "ffi", "fields", "lib", "own", "set_field", "text"]


def _errors() -> Iterator[tuple[int, type[CramError], str]]:
    index = 0
    while (info := lib.cram_error_at(index)) != ffi.NULL:
        yield info.code, BY_CODE_NAME[text(info.name)], text(info.text)
        index += 1


def text(value) -> str:
    """A C string as str; paths in it may hold any byte."""
    return ffi.string(value).decode(errors="surrogateescape")


_ERRORS = {code: (error, general) for code, error, general in _errors()}


def check(code: int) -> int:
    """Returns a code that is not negative; raises the exception of one that is."""
    if code >= 0:
        return code
    error, general = _ERRORS[code]
    raise error(text(lib.cram_error_detail()) or general)


def fields(struct) -> dict[str, int]:
    """The numbers of a C structure by name."""
    return {name: getattr(struct, name) for name, _ in ffi.typeof(struct).fields}


def choose(what: str, value: str, choices: dict[str, Any]) -> Any:
    if not isinstance(value, str) or value not in choices:
        raise InvalidArgument(f"{what} {value!r}: not one of {', '.join(choices)}")
    return choices[value]


def expect(what: str, value, kind: type) -> None:
    if not isinstance(value, kind):
        raise InvalidArgument(f"{what} {value!r}: not a {kind.__name__}")


def set_field(struct, name: str, value: int) -> None:
    """Sets a field, so that a value that does not fit it is named."""
    try:
        setattr(struct, name, value)
    except (OverflowError, TypeError):
        raise InvalidArgument(f"{name} {value!r}: not a number that this can be") from None


def own(handle, free: str, parent: Handle | None = None) -> Handle:
    """Has the function of that name in cram.h free a handle of the core, when nobody has the result any more."""
    address, function = (
        int(ffi.cast("uintptr_t", pointer)) for pointer in (handle, ffi.addressof(lib, free))
    )
    return Handle(address, function) if parent is None else Handle(address, function, parent)
