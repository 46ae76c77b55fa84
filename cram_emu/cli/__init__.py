"""The command line: `cram-emu SUBCOMMAND`.

This module holds the frame only: the table of subcommands, the exit codes, and how errors are told.
A subcommand is a module with `configure(parser)`, which adds its arguments, and `run(args) -> int`,
which does the work and returns an exit code. It is imported when it is the one asked for.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import cram_emu
from cram_emu.errors import CramError, InvalidArgument, NotSupported

OK = 0
FAILED = 1
USAGE = 2  # argparse's own, and InvalidArgument
NOT_PERMITTED = 3
INTERRUPTED = 130
READER_GONE = 141

EXIT_CODES = f"""\
exit codes:
  {OK:<4} what was asked for was done
  {FAILED:<4} it failed: a verification, or an error that the message names
  {USAGE:<4} bad usage
  {NOT_PERMITTED:<4} this host does not permit it; the message says what, and the remedy
  {INTERRUPTED:<4} interrupted (Ctrl-C)
  {READER_GONE:<4} whoever read the output went away
"""

# (subcommand, module, message)
SUBCOMMANDS = (
    ("demo", "cram_emu.cli.demo", "watch a device compress, warn, overflow and poison"),
    ("info", "cram_emu.cli.info", "show what this host permits, and what follows from it"),
    ("bench", "cram_emu.cli.bench", "measure the device beside kernel zram swap"),
    ("run", "cram_emu.cli.run", "run a program with its memory on a device"),
    ("create", "cram_emu.cli.create", "make a device that stays, under a name"),
    ("list", "cram_emu.cli.list", "show the devices that have names, and who uses them"),
    ("rm", "cram_emu.cli.rm", "remove a device that has a name"),
    ("fault", "cram_emu.cli.fault", "make a device do something wrong, on purpose"),
    ("scenarios", "cram_emu.cli.scenarios", "break devices on purpose, and check what comes of it"),
    ("experiment", "cram_emu.cli.experiment", "measure what a policy of the host comes to"),
    ("mount", "cram_emu.cli.mount", "serve the machine's sysfs tree at a directory"),
    ("ns", "cram_emu.cli.ns", "run a command that sees a mounted machine as its own"),
    ("stat", "cram_emu.cli.stat", "show the registers of a mounted machine's devices"),
    ("top", "cram_emu.cli.top", "watch a mounted machine's devices"),
    ("events", "cram_emu.cli.events", "show what has happened to a mounted machine's devices"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns its exit code. --help and bad usage raise SystemExit."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = _parser(argv).parse_args(argv)
        args.words = argv
        code = args.run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return tell("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The interpreter flushes standard output once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except CramError as error:
        return tell(str(error), _code(error))


def _code(error: CramError) -> int:
    if isinstance(error, InvalidArgument):
        return USAGE
    return NOT_PERMITTED if isinstance(error, (PermissionError, NotSupported)) else FAILED


def tell(message: str, code: int) -> int:
    """Says on standard error why it ends so; returns the exit code."""
    print(f"cram-emu: {_printable(message)}", file=sys.stderr)
    return code


def _printable(message: str) -> str:
    """On one line, and harmless to a terminal, whatever a name in it holds."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        super().error(_printable(message))

    def _get_values(self, action: argparse.Action, arg_strings: list[str]):
        # Before 3.13 the "--" of "--option=--" is taken for the end of options, and the value is [].
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:
            return self._get_value(action, "--")
        return super()._get_values(action, arg_strings)


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="cram-emu",
        description="A compressed-RAM device in user space.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cram-emu {cram_emu.__version__}")
    subparsers = parser.add_subparsers(metavar="SUBCOMMAND", required=True)
    # No option before the subcommand takes a value.
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, module, message in SUBCOMMANDS:
        subparser = subparsers.add_parser(
            name,
            help=message,
            description=f"{message[0].upper()}{message[1:]}.",
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == chosen:
            subcommand = importlib.import_module(module)
            subcommand.configure(subparser)
            subparser.set_defaults(run=subcommand.run)
    return parser
