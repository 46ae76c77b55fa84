"""How subcommands speak: a terminal gets colour and bars, a pipe plain lines, --json one document.

It decides nothing about what is said. One thread at a time.
"""

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from cram_emu.errors import DeviceIOError, InvalidArgument
from cram_emu.faults import parse_attribute
from cram_emu.sizes import parse_size

# A progress report that is piped makes one line for each tenth of the work.
PLAIN_STEPS = 10


def add_json(parser: argparse.ArgumentParser) -> None:
    """Gives a subcommand --json; args.json goes to Console."""
    parser.add_argument("--json", action="store_true", help="print one JSON document only")


def size(text: str) -> int:
    """The type of an argument that is a size."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def nonempty(text: str) -> str:
    """The type of an argument that is a path, or a name: an empty one would be the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("empty")
    return text


def check_writable(path: str) -> None:
    """DeviceIOError: nothing can be written there. Nothing is written yet: what comes first may fail, or take long."""
    directory = os.path.dirname(path) or "."
    try:
        os.stat(directory)
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(path if os.path.exists(path) else directory, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise DeviceIOError(f"{path}: {error.strerror}") from None


def seed(text: str) -> int:
    """The type of an argument that is a seed, as faults have it."""
    try:
        return int(parse_attribute("seed", text))
    except InvalidArgument as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_capacities(parser: argparse.ArgumentParser) -> None:
    """Gives a subcommand that makes a device --advertised and --real, in bytes."""
    parser.add_argument(
        "--advertised",
        type=size,
        default="8G",
        metavar="SIZE",
        help="what the device claims to have (8G)",
    )
    parser.add_argument(
        "--real", type=size, default="1G", metavar="SIZE", help="what it has (1G)"
    )


class Console:
    """Text for people on standard output, or one JSON document there.

    With as_json the text moves to standard error if that is a terminal, and is dropped otherwise.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self._stream: TextIO | None = sys.stderr if as_json else sys.stdout
        self._rich = _rich_console(self._stream)

    @property
    def _silent(self) -> bool:
        return self.as_json and self._rich is None

    def say(self, text: str = "", style: str = "") -> None:
        """Prints a line; style is rich's ("bold", "red"), for terminals only."""
        if self._rich is not None:
            self._rich.print(text, style=style, markup=False, highlight=False)
        elif not self._silent:
            print(text, file=self._stream, flush=True)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        styles: Mapping[str, str] = {},
    ) -> None:
        """Prints rows under column names; styles: the style of a cell with exactly that text."""
        if self._rich is not None:
            self._rich.print(_rich_table(columns, rows, styles))
        elif not self._silent:
            for line in plain_table(columns, rows):
                print(line, file=self._stream, flush=True)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """Reports progress; the body calls what it is given with (amount done, note)."""
        if self._rich is not None:
            with _rich_progress(self._rich, label, total) as update:
                yield update
        else:
            yield self._plain_progress(label, total)

    def document(self, value: Any) -> None:
        """Prints value as the JSON document; nothing without as_json."""
        if self.as_json:
            print(json.dumps(value, indent=2), flush=True)

    def _plain_progress(self, label: str, total: int) -> Callable[[int, str], None]:
        reported = 0

        def update(done: int, note: str = "") -> None:
            nonlocal reported
            step = PLAIN_STEPS * done // total if total else PLAIN_STEPS
            if step > reported:
                reported = step
                self.say(f"{label} {100 * step // PLAIN_STEPS:3d} %  {note}".rstrip())

        return update


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the columns aligned to the left."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines
    ]


# rich is imported where a terminal is found: a tenth of a second that a pipe does not pay.


def _rich_console(stream: TextIO | None):
    if stream is None or not stream.isatty() or os.environ.get("TERM") == "dumb":
        return None
    from rich.console import Console as RichConsole

    return RichConsole(file=stream)


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], styles: Mapping[str, str]):
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
    return table


@contextmanager
def _rich_progress(console, label: str, total: int) -> Iterator[Callable[[int, str], None]]:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=total, note="")

        def update(done: int, note: str = "") -> None:
            progress.update(task, completed=done, note=note)

        yield update
