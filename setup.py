"""The package and its extension modules: cram_emu._cram (cffi, the C core), cram_emu._region, and the shim."""

import re
import runpy
from glob import glob
from pathlib import Path

from setuptools import Extension, find_packages, setup

# Read, not imported: the package needs the extension that is yet to be built.
VERSION = re.search(
    r'^__version__ = "([^"]+)"$', Path("cram_emu/__init__.py").read_text(encoding="utf-8"), re.M
)[1]
CORE = runpy.run_path("cram_emu/_cram_build.py")

setup(
    name="cram_emu",
    version=VERSION,
    description="A compressed-RAM device in user space, at the speed of memory",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["cram_emu", "cram_emu.*"]),
    cffi_modules=["cram_emu/_cram_build.py:ffibuilder"],
    ext_modules=[
        Extension(
            "cram_emu._region",
            sorted(glob("csrc/region/*.c")),
            include_dirs=["csrc"],
            extra_compile_args=CORE["COMPILE_FLAGS"],
            extra_link_args=CORE["LINK_FLAGS"],
        ),
        # Not a module: a library that `cram-emu run` preloads, with a core of its own.
        Extension(
            "cram_emu._shim",
            [*CORE["SOURCES"], *sorted(glob("csrc/shim/*.c"))],
            include_dirs=["csrc"],
            libraries=["lz4", "zstd"],
            # Its own data must never be where it has to be asked for.
            extra_compile_args=[*CORE["COMPILE_FLAGS"], "-ftls-model=initial-exec"],
            # Its constructor runs before any other library's.
            extra_link_args=[*CORE["LINK_FLAGS"], "-Wl,-z,initfirst"],
        ),
    ],
    install_requires=["cffi>=1.15", "rich>=13", "fusepy>=3.0.1", "psutil>=5.9"],
    extras_require={
        # libfuse3, and with it poll(2) on attributes.
        "fuse3": ["mfusepy>=3.1"],
        # Pictures of a run: `cram-emu run --plot`.
        "plot": ["matplotlib>=3.8"],
        "test": ["matplotlib>=3.8", "pytest>=8", "hypothesis>=6.100", "numpy>=1.26", "lz4>=4.3", "mfusepy>=3.1"],
    },
    entry_points={
        "console_scripts": ["cram-emu = cram_emu.cli:main"],
        # Fixtures for other projects.
        "pytest11": ["cram_emu = cram_emu.pytest_plugin"],
    },
    # scripts/setup decides by content when to build, and distutils would decide by file times.
    options={"build_ext": {"force": True}},
    zip_safe=False,
)
