"""Is our zswap the kernel's? The same workload on both, without a device, and their statistics.

    python -m cram_emu.lab.zswap_comparison

It compares what is stored and what that takes, not speed. Each side runs in a process of its own
(sides.py). The two choose different victims, so that after the workload other pages are stored; the
bytes a page are compared there, and those of the whole pool once every page was pushed out.

Exit code 0: both within the tolerance; 1: not, or a side failed; 77: skipped, with the reason. Main
thread only; needs root.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from cram_emu.errors import CramError
from cram_emu.lab import kernel_zswap
from cram_emu.lab.bench import Figures, run_child
from cram_emu.lab.cgroup import memory_group, memory_hierarchy
from cram_emu.lab.footprint import total
from cram_emu.lab.loops import PAGE
from cram_emu.lab.signals import unwound_by_signals
from cram_emu.lab.undo import Unavailable
from cram_emu.lab.workload import ANY_CODEC, ORDINARY, Mix
from cram_emu.sizes import format_size

MIB = 1 << 20
TOLERANCE = 0.02
SKIPPED = 77

STAGES = {"trace": "after the workload", "all": "every page pushed out"}
COUNTED = (
    "stored_pages",
    "pool_total_size",
    "stored_incompressible_pages",
    "stored_zero_pages",
    "zswpin",
    "zswpout",
    "zswpwb",
    "pool_limit_hit",
    "reject_reclaim_fail",
    "reject_compress_poor",
    "reject_compress_fail",
    "reject_alloc_fail",
)


@dataclass(frozen=True)
class Setup:
    """What both sides are given. The compressor is the kernel's; ours is lz4."""

    compressor: str
    mix: Mix
    size: int = 512 * MIB
    dram: int = 64 * MIB
    seed: int = 1

    @property
    def workload(self) -> dict:
        return {"pages": self.size // PAGE, "mix": self.mix, "seed": self.seed}


@dataclass(frozen=True)
class Difference:
    """Of one figure that has to agree."""

    name: str
    kernel: float
    emulated: float

    @property
    def relative(self) -> float:
        return self.emulated / self.kernel - 1

    @property
    def within(self) -> bool:
        return abs(self.relative) <= TOLERANCE


# ---- the two sides ---------------------------------------------------------------------------


def kernel() -> tuple[Setup, Figures]:
    """Of the kernel's zswap, and how it was set up; Unavailable.

    With lz4 where the kernel's zswap takes it; else with lzo, and pages that it shrinks as lz4 does.
    """
    kernel_zswap.require()
    size = 2 * Setup.size  # slots are kept for some pages that are resident
    with ExitStack() as stack:
        try:
            on = stack.enter_context(kernel_zswap.swap(size, "lz4"))
            setup = Setup("lz4", ORDINARY)
        except Unavailable:
            on = stack.enter_context(kernel_zswap.swap(size, "lzo"))
            setup = Setup("lzo", ANY_CODEC)
        stack.enter_context(kernel_zswap.without_readahead())
        hierarchy = memory_hierarchy()
        # In version 2 the group pays for the pool too.
        limit = setup.dram if hierarchy.version == 1 else setup.dram + setup.size // 2
        group = stack.enter_context(memory_group(limit, hierarchy))
        paths = {"procs": str(group.procs), "debugfs": str(on.debugfs)}
        return setup, run_child("kernel_zswap", **setup.workload, **paths)


def emulated(setup: Setup) -> Figures:
    """Of ours; its pool is limited by this host's memory, as the kernel's is."""
    return run_child("emulated_zswap", **setup.workload, ram=total(), dram=setup.dram)


# ---- what they amount to ---------------------------------------------------------------------


def differences(theirs: Figures, ours: Figures) -> Iterator[Difference]:
    for stage, noted in STAGES.items():
        name = f"pool bytes a stored page, {noted}"
        yield Difference(name, *(_per_page(figures, stage) for figures in (theirs, ours)))
    for name in ("stored_pages", "pool_total_size"):
        values = (figures[f"all_{name}"] for figures in (theirs, ours))
        yield Difference(f"{name}, {STAGES['all']}", *values)


def _per_page(figures: Figures, stage: str) -> float:
    return figures[f"{stage}_pool_total_size"] / figures[f"{stage}_stored_pages"]


def report(setup: Setup, theirs: Figures, ours: Figures) -> Iterator[str]:
    """Lines for people."""
    yield (
        f"{format_size(setup.size)} of pages, {format_size(setup.dram)} resident; kernel zswap with"
        f" {setup.compressor}, ours with lz4; vm.page-cluster 0"
    )
    if setup.mix is ANY_CODEC:
        yield f"this kernel's zswap has no lz4: pages that {setup.compressor} shrinks as lz4 does, no text"
    yield f"{theirs['zero_pages']} of {theirs['pages']} pages are zero in the end; all were verified"
    for stage, noted in STAGES.items():
        yield ""
        yield _row(noted, "kernel", "emulated")
        for name in COUNTED:
            yield _row(name, *(figures[f"{stage}_{name}"] for figures in (theirs, ours)))
    yield ""
    yield _row(f"to agree within {TOLERANCE:.0%}", "kernel", "emulated")
    for difference in differences(theirs, ours):
        values = (f"{value:,.1f}" for value in (difference.kernel, difference.emulated))
        verdict = "" if difference.within else "  too far"
        yield _row(difference.name, *values) + f"{difference.relative:+9.2%}{verdict}"


def _row(name: str, *values: object) -> str:
    return f"{name:55}" + "".join(
        f"{value:>15,}" if isinstance(value, int) else f"{value:>15}" for value in values
    )


def main() -> int:
    try:
        with unwound_by_signals():
            setup, theirs = kernel()
            ours = emulated(setup)
    except Unavailable as reason:
        print(f"skipped: no kernel zswap to compare with: {reason}", file=sys.stderr)
        return SKIPPED
    except CramError as error:
        print(f"compare-zswap: {error}", file=sys.stderr)
        return 1
    print(*report(setup, theirs, ours), sep="\n")
    return 0 if all(difference.within for difference in differences(theirs, ours)) else 1


if __name__ == "__main__":
    sys.exit(main())
