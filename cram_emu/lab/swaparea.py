"""Swap areas of the host: which are on, and one more that is switched off again.

It does not make what the area lies on, and changes no vm.* setting.
"""

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

from cram_emu.lab.undo import Unavailable, run


def swaps(table: Path = Path("/proc/swaps")) -> list[str]:
    """The swap areas that are on."""
    lines = table.read_text().splitlines()[1:]
    return [line.split()[0] for line in lines]


def require() -> None:
    """Raises Unavailable where an area cannot be switched on, or would not be the only one."""
    if os.geteuid() != 0:
        raise Unavailable("not root: swap and memory cgroups need it")
    missing = [name for name in ("mkswap", "swapon", "swapoff") if not shutil.which(name)]
    if missing:
        raise Unavailable(f"no {' '.join(missing)} in PATH: Debian packages util-linux and mount")
    if active := swaps():
        raise Unavailable(f"swap is on already and would be used: swapoff {' '.join(active)}")


def switch_on(area: Path, undo: ExitStack) -> None:
    """Makes swap of a block device or file, and switches it on."""
    run("mkswap", area)
    run("swapon", area)
    undo.callback(run, "swapoff", area)
