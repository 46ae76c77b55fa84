"""`cram-emu demo`: a device that lies about its size, told in six acts.

This module does the telling. What happens, and every figure, is lab/story.py's.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from cram_emu.cli import FAILED, OK, USAGE
from cram_emu.cli.console import Console, add_json, size
from cram_emu.lab.ledger import Verdict
from cram_emu.lab.story import (
    READER,
    Fill,
    MachineCheck,
    Overflow,
    Part,
    Progress,
    Recovery,
    Story,
    StoryFailed,
)
from cram_emu.sizes import format_size

DESCRIPTION = """\
Fills a compressed-RAM device with the files of this machine until it overflows. It warns and is
obeyed, warns again and is ignored; writes are dropped, pages turn to poison, and a program that
reads one dies. Every page is checked against a checksum kept outside the device.
"""

EXIT_CODES = """\
exit codes:
  0    every page is intact or poisoned
  1    a page is silently wrong, or a step of the story did not happen; the message says which
  2    bad usage
  3    this host does not permit userfaultfd; `cram-emu info` says what would help
  130  interrupted (Ctrl-C); nothing is left behind
"""

GOOD, WARNING, BAD, ASIDE = "green", "yellow", "red", "dim"

_WIDTH = 96


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.epilog = EXIT_CODES
    parser.add_argument(
        "--advertised",
        type=size,
        default="8G",
        metavar="SIZE",
        help="what the device claims to have, at least 4 times as much as is real (8G)",
    )
    parser.add_argument(
        "--real", type=size, default="1G", metavar="SIZE", help="what it has, at least 4M (1G)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Tells the story; returns one of EXIT_CODES."""
    try:
        story = Story(args.advertised, args.real)
    except ValueError as error:
        print(f"cram-emu demo: {error}", file=sys.stderr)
        return USAGE
    with story:
        return Narrator(story, Console(args.json)).tell()


class Narrator:
    """Tells a story on a console: the figures of each act, and what they mean."""

    def __init__(self, story: Story, console: Console) -> None:
        self._story = story
        self._console = console
        self._real = story.device.stats.real
        self._advertised = format_size(story.device.stats.advertised)

    def tell(self) -> int:
        """Tells all acts, prints the JSON document if it is wanted, and returns the exit code."""
        started = time.monotonic()
        self._creation()
        fill = self._fill()
        recovery = self._recovery()
        recovered = self._survival()
        overflow = self._overflow()
        check = self._machine_check(overflow)
        verdict = self._account()
        seconds = time.monotonic() - started
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._say(f"{seconds:.1f} s, at most {format_size(memory)} of host memory.", ASIDE)
        self._console.document(
            {
                "advertised": self._story.device.stats.advertised,
                "real": self._real,
                "fill": asdict(fill),
                "recovery": asdict(recovery),
                "recovered": asdict(recovered),
                "overflow": asdict(overflow),
                "machine_check": asdict(check),
                "verdict": asdict(verdict),
                "seconds": round(seconds, 3),
                "host_memory": memory,
            }
        )
        return FAILED if verdict.wrong else OK

    # ---- the acts -----------------------------------------------------------------------------

    def _creation(self) -> None:
        self._act(1, "A device that lies about its size")
        self._say(
            f"It tells the system that it has {self._advertised}. It has "
            f"{format_size(self._real)}, and compresses each page of 4 KiB that is written to it "
            "(lz4). How much it can hold depends on what will be written, so nobody knows."
        )
        self._hardware(
            f"a memory card, seen by the kernel as a node of {self._advertised}. What is real, "
            "only the card's registers tell."
        )

    def _fill(self) -> Fill:
        self._act(2, "It is filled with the files of this machine")
        with self._writing() as progress:
            fill = self._story.fill(progress, self._part)
        self._say(
            f"{format_size(fill.written)} were written and {format_size(fill.used)} are used, a "
            f"ratio of {fill.ratio:.2f}. With contents like these the device would be full at "
            f"{format_size(int(fill.ratio * self._real))}, not at {self._advertised}."
        )
        remaining = fill.interrupt.remaining
        self._say(
            f"The device interrupts: lthresh (vector {fill.interrupt.vector}), running low, "
            f"{format_size(remaining)} remain ({remaining / self._real:.0%}). It sets no_alloc.",
            WARNING,
        )
        self._hardware(
            "the same. A store cannot tell how well it was compressed, so this interrupt is all "
            "that the driver hears of it."
        )
        return fill

    def _part(self, part: Part) -> None:
        size = format_size(part.bytes)
        self._console.say(f"    {part.name:<18}{size:>9}, ratio {part.ratio:.2f}  ({part.note})")

    def _recovery(self) -> Recovery:
        self._act(3, "The warning is obeyed")
        recovery = self._story.recover()
        self._say(
            "The writer stops, and gives its oldest pages back (trim) until the device interrupts "
            f"again: hthresh (vector {recovery.interrupt.vector}), recovered, "
            f"{format_size(recovery.interrupt.remaining)} remain, no_alloc is clear. "
            f"{format_size(recovery.trimmed)} were given back."
        )
        self._hardware(
            "the kernel allocates nothing more on this node, moves pages off it, and trims them."
        )
        return recovery

    def _survival(self) -> Verdict:
        verdict = self._verification()
        if verdict.poisoned or verdict.wrong:
            raise StoryFailed(f"an obeyed warning did not keep every page intact: {verdict}")
        self._say(f"All {verdict.intact:,} pages are intact: who obeys loses nothing.", GOOD)
        return verdict

    def _overflow(self) -> Overflow:
        self._act(4, "The warning is ignored")
        with self._writing() as progress:
            overflow = self._story.overflow(progress)
        self._say(
            f"lthresh was raised again, and the writer went on. {overflow.dropped_writes:,} writes "
            "found no room: the device dropped them, and poisoned their pages.",
            BAD,
        )
        self._say("The writer learned nothing. Another write to the last of these pages:")
        self._code(
            f">>> device.write({overflow.sample:#x}, page)\n"
            f">>> device.page({overflow.sample:#x}).state\n"
            "'poison'"
        )
        self._hardware("memory writes are posted. Nobody waits for an answer, so there is none.")
        return overflow

    def _machine_check(self, overflow: Overflow) -> MachineCheck:
        self._act(5, "The machine check")
        self._say("Another program maps the device, reads an intact page, then that one:")
        self._code(READER)
        check = self._story.machine_check()
        self._say("It read the first, and died of the second by SIGBUS:", BAD)
        self._code(_siginfo(check))
        self._hardware("the processor takes a machine check, and the kernel sends this signal.")
        self._say("A program that would rather have an exception reads through the device:")
        self._code(
            f">>> device.read({overflow.sample:#x}, 4096)\ncram_emu.PoisonError: {check.caught}"
        )
        return check

    def _account(self) -> Verdict:
        self._act(6, "The account")
        verdict = self._verification()
        self._console.table(
            ("pages", "", "read back and compared with checksums kept outside the device"),
            [
                ("intact", f"{verdict.intact:,}", "the bytes last written, or zeros where trimmed"),
                ("poisoned", f"{verdict.poisoned:,}", "lost, and whoever reads them is told"),
                ("wrong", f"{verdict.wrong:,}", "other bytes than were written, and no warning"),
            ],
        )
        if verdict.wrong:
            self._say(f"Silently wrong pages: {verdict.wrong:,}.", BAD)
        else:
            self._say("No page is silently wrong.", GOOD)
        return verdict

    # ---- how it is told -----------------------------------------------------------------------

    def _act(self, number: int, title: str) -> None:
        self._console.say(f"\n{number}. {title}", "bold")

    def _say(self, text: str, style: str = "") -> None:
        width = min(_WIDTH, shutil.get_terminal_size().columns)
        for line in textwrap.wrap(text, width - 2):
            self._console.say("  " + line, style)

    def _hardware(self, text: str) -> None:
        self._say(f"On hardware: {text}", ASIDE)

    def _code(self, text: str) -> None:
        self._console.say(textwrap.indent(text.rstrip(), "      "), "cyan")

    @contextmanager
    def _writing(self) -> Iterator[Callable[[Progress], None]]:
        with self._console.progress("  media", self._real) as update:

            def show(progress: Progress) -> None:
                registers = progress.registers
                update(
                    registers.used,
                    f"{format_size(progress.written)} in, ratio {registers.ratio:.2f}, "
                    f"{format_size(registers.remaining)} left, "
                    f"{registers.dropped_writes:,} dropped",
                )

            yield show

    def _verification(self) -> Verdict:
        pages = self._story.pages
        read = 0
        with self._console.progress("  read back", pages) as update:

            def show(count: int) -> None:
                nonlocal read
                read += count
                update(read, f"of {pages:,} pages")

            return self._story.verify(show)


def _siginfo(check: MachineCheck) -> str:
    siginfo = check.siginfo
    if siginfo is None:
        return f"signal {check.signal}; its siginfo was not seen, for ptrace is not permitted here"
    return (
        f"si_code  {siginfo.code} ({siginfo.code_name}: memory error, action required)\n"
        f"si_addr  {siginfo.address:#x} (what it read)\n"
        f"lsb      {siginfo.lsb} ({1 << siginfo.lsb} bytes are lost)\n"
        f"(seen by ptrace; {check.faults_survived} earlier SIGBUS were page faults, and resolved)"
    )
