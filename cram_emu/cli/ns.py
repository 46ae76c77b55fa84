"""`cram-emu ns MOUNTPOINT -- COMMAND`: runs a command that sees the mounted machine.

This process becomes the command, so terminal, signals and exit code are the command's own.
"""

import argparse
import os
import signal

from cram_emu.cli import tell
from cram_emu.cli.console import nonempty
from cram_emu.sysfs import namespace

# As shells have it.
NOT_EXECUTABLE = 126
NOT_FOUND = 127

# Python ignores them; a program expects them not to be.
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "cram-emu ns [-h] MOUNTPOINT -- COMMAND [ARGUMENT ...]"
    parser.add_argument("mountpoint", type=nonempty, metavar="MOUNTPOINT", help="where `cram-emu mount` serves")
    parser.add_argument("command", metavar="COMMAND", help="what to run there")
    # REMAINDER leaves a second -- to the command.
    parser.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER)
    parser.epilog = (
        "The exit code is the command's own; "
        f"{NOT_FOUND} if there is no such command, {NOT_EXECUTABLE} if it cannot be executed.\n\n"
        f"{parser.epilog}"
    )


def run(args: argparse.Namespace) -> int:
    """Returns only where the command could not be executed."""
    namespace.enter(args.mountpoint)
    for number in IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(args.command, [args.command, *args.arguments])
    except OSError as error:
        code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        return tell(f"{args.command}: {error.strerror}", code)
