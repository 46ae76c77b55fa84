"""Describes the extension module cram_emu._cram to cffi: csrc/cram.h as it stands, over the C core.

Run by setup.py only, with the top of the source tree as working directory. It compiles nothing.
"""

from glob import glob
from pathlib import Path

from cffi import FFI

COMPILE_FLAGS = [
    "-std=gnu11",
    "-O3",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fvisibility=hidden",
    "-pthread",
]
# Bound at load: the SIGBUS handler must not be the first to call a function, through the resolver.
LINK_FLAGS = ["-pthread", "-Wl,-z,now"]

# cffi's generated wrappers leave parameters unused; the core itself is held to all of -Wextra.
WRAPPER_PROLOGUE = """
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include "cram.h"
"""


def declarations(header: str) -> str:
    """The header without its preprocessor lines, which cffi does not parse."""
    return "\n".join(line for line in header.splitlines() if not line.startswith("#"))


SOURCES = sorted(
    glob("csrc/*.c") + glob("csrc/device/*.c") + glob("csrc/host/*.c")
)

ffibuilder = FFI()
ffibuilder.cdef(declarations(Path("csrc/cram.h").read_text(encoding="ascii")))
ffibuilder.set_source(
    "cram_emu._cram",
    WRAPPER_PROLOGUE,
    sources=SOURCES + sorted(glob("csrc/lab/*.c")),
    include_dirs=["csrc"],
    libraries=["lz4", "zstd"],
    extra_compile_args=COMPILE_FLAGS,
    extra_link_args=LINK_FLAGS,
)
