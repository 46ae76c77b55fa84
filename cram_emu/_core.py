"""The only module that touches the C core's ffi and lib. Codes become exceptions here.

It holds no state and no policy.
"""

from collections.abc import Iterator

from cram_emu._cram import ffi, lib
from cram_emu.errors import BY_CODE_NAME, CramError

__all__ = ["check", "ffi", "fields", "lib", "text"]


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
