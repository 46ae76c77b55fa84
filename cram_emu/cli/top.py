"""`cram-emu top`: the devices of a mounted machine, once a second; a pipe gets a line for each."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator

import psutil

from cram_emu import Client, format_size, parse_size
from cram_emu.cli import OK
from cram_emu.cli.console import nonempty
from cram_emu.errors import InvalidArgument
from cram_emu.sysfs.client import Tree, told

PAGE = 4096
PERIOD_SECONDS = 1.0
KEYS = "q quit   Tab next device   p inject poison   t set thresholds"
# What a sample on a pipe holds. Sizes in bytes, time since the epoch in seconds.
PLAIN = (
    "time", "device", "used", "remaining", "ratio", "faults/s", "written_back/s", "dirty",
    "lthresh", "hthresh", "poisoned", "dropped", "processes",
)  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mountpoint", type=nonempty, metavar="MOUNTPOINT", help="where `cram-emu mount` serves")
    parser.add_argument("--json", action="store_true", help="print one JSON object a sample")


def run(args: argparse.Namespace) -> int:
    with told(args.mountpoint):
        tree = Tree(args.mountpoint)
        if sys.stdout.isatty() and sys.stdin.isatty() and not args.json:
            _watch(tree)
        else:
            _print(tree, args.json)
    return OK


# ---- samples ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sample:
    """A device at a moment, and what has happened since the sample before."""

    name: str
    registers: dict[str, int | str]
    clients: list[Client]
    seconds: float  #: since the one before; 0: there is none
    before: dict[int, Client]

    def rate(self, counter: str, client: Client | None = None) -> float:
        """A counter's growth a second, of one process or of all that were there before."""
        clients = self.clients if client is None else [client]
        known = [(now, self.before[now.pid]) for now in clients if now.pid in self.before]
        grown = sum(max(0, getattr(now, counter) - getattr(old, counter)) for now, old in known)
        return grown / self.seconds if self.seconds else 0.0

    @property
    def data(self) -> int:
        """Bytes that are kept, as their owners count them."""
        kinds = ("stored", "raw", "zero", "same")
        return sum(self.registers[f"pages_{kind}"] for kind in kinds) * PAGE


class Sampler:
    """Takes samples of all devices."""

    def __init__(self, tree: Tree):
        self._tree = tree
        self._time = 0.0
        self._clients: dict[str, dict[int, Client]] = {}

    def take(self) -> list[Sample]:
        now = time.monotonic()
        seconds, self._time = (now - self._time if self._time else 0.0), now
        samples = []
        for name, registers in self._tree.devices().items():
            try:
                clients = self._tree.processes(name)
            except FileNotFoundError:
                continue  # it has just been pulled out
            before = self._clients.get(name, {})
            samples.append(Sample(name, registers, clients, seconds, before))
        self._clients = {s.name: {client.pid: client for client in s.clients} for s in samples}
        return samples


# ---- a pipe -----------------------------------------------------------------------------------


def _print(tree: Tree, as_json: bool) -> None:
    sampler = Sampler(tree)
    sampler.take()
    if not as_json:
        print(*PLAIN, flush=True)
    while True:
        time.sleep(PERIOD_SECONDS)
        for values in map(_plain, sampler.take()):
            print(json.dumps(dict(zip(PLAIN, values))) if as_json else " ".join(map(str, values)))
        sys.stdout.flush()


def _plain(sample: Sample) -> Iterator[str | float]:
    r = sample.registers
    yield from (round(time.time(), 3), sample.name, r["used"], r["remaining"])
    yield r["ratio"] / 1000
    yield from (round(sample.rate(counter)) for counter in ("faults", "written_back"))
    yield from (r["dirty_frames"], r["interrupts/lthresh"], r["interrupts/hthresh"])
    yield from (r["poisoned"], r["dropped_writes"], len(sample.clients))


# ---- keys -------------------------------------------------------------------------------------


class Keys:
    """What is typed, key by key: commands at once, those with arguments as a line."""

    def __init__(self, tree: Tree):
        self._tree = tree
        self._lines = {"p": ("poison address", self._poison), "t": ("low high", self._thresholds)}
        self._asking: tuple[str, Callable[[str], str]] | None = None
        self._line = ""
        self._said = ""
        self.selected = 0
        self.done = False

    def feed(self, text: str, name: str) -> None:
        """Keys as they come; name: the device that is selected."""
        for key in text:
            self._feed(key, name)

    def _feed(self, key: str, name: str) -> None:
        if self._asking is None:
            self._said = ""
            self.done |= key == "q"
            self.selected += key == "\t"
            self._asking = self._lines.get(key)
        elif key in "\r\n":
            self._said = self._carry_out(name)
            self._asking, self._line = None, ""
        elif key == "\x1b":
            self._asking, self._line = None, ""
        elif key in "\x08\x7f":
            self._line = self._line[:-1]
        elif key.isprintable():
            self._line += key

    @property
    def status(self) -> str:
        """The line at the bottom."""
        if self._asking is not None:
            return f"{self._asking[0]}: {self._line}"
        return self._said or KEYS

    def _carry_out(self, name: str) -> str:
        try:
            return self._asking[1](name)
        except (ValueError, InvalidArgument) as error:
            return str(error)
        except OSError as error:
            return f"{self._line}: {error.strerror}"

    def _poison(self, name: str) -> str:
        dpa = int(self._line, 0)
        self._tree.inject_poison(name, dpa)
        return f"{name}: poison at {dpa:#x}"

    def _thresholds(self, name: str) -> str:
        sizes = [parse_size(word) for word in self._line.split()]
        if len(sizes) != 2:
            raise ValueError(f"{self._line!r}: not two sizes, as in 100M 200M")
        self._tree.set_thresholds(name, *sizes)
        return f"{name}: lthresh {format_size(sizes[0])}, hthresh {format_size(sizes[1])}"


@contextlib.contextmanager
def _keys_at_once(fd: int) -> Iterator[None]:
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


# ---- a terminal -------------------------------------------------------------------------------


def _watch(tree: Tree) -> None:
    from rich.live import Live

    sampler, keys, fd = Sampler(tree), Keys(tree), sys.stdin.fileno()
    with _keys_at_once(fd), Live(screen=True, auto_refresh=False) as live:
        samples, due = sampler.take(), time.monotonic() + PERIOD_SECONDS
        while not keys.done:
            selected = samples[keys.selected % len(samples)].name if samples else ""
            live.update(_screen(samples, selected, keys.status), refresh=True)
            if select.select([fd], [], [], max(0, due - time.monotonic()))[0]:
                typed = os.read(fd, 64)
                if not typed:
                    return
                keys.feed(typed.decode(errors="replace"), selected)
            if time.monotonic() >= due:
                samples, due = sampler.take(), time.monotonic() + PERIOD_SECONDS


def _screen(samples: list[Sample], selected: str, status: str):
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    panels = [
        Panel(
            Group(*_device(sample)),
            title=f"{sample.name}, node{sample.registers['node']}, {sample.registers['codec']}",
            title_align="left",
            border_style="bold" if sample.name == selected else "dim",
        )
        for sample in samples
    ]
    return Group(*(panels or [Text("no device")]), Text(status))


def _device(sample: Sample) -> Iterator[object]:
    from rich.text import Text

    r = sample.registers
    low = r["remaining"] <= r["lthresh"]
    yield _bar("real", r["used"], r["real"], [r["real"] - r["hthresh"], r["real"] - r["lthresh"]], low)
    yield _bar("advertised", sample.data, r["advertised"], [r["real"]], False)
    yield Text(
        f"ratio {r['ratio'] / 1000:.2f}   faults {sample.rate('faults'):,.0f}/s   "
        f"write-backs {sample.rate('written_back'):,.0f}/s   dirty {r['dirty_frames']:,}"
    )
    yield Text(
        f"interrupts: lthresh {r['interrupts/lthresh']}, hthresh {r['interrupts/hthresh']}   "
        f"no_alloc {r['no_alloc']}   pressure {r['pressure']}   dropped {r['dropped_writes']:,}   "
        f"poisoned {r['poisoned']:,}",
        style="red" if r["poisoned"] else "",
    )
    yield _processes(sample)


def _bar(label: str, value: int, full: int, marks: list[int], warn: bool):
    """A capacity, what is taken of it, and marks on it: the thresholds; the real end of the advertised."""
    from rich.text import Text

    width = 50
    cells = ["█" if i < round(value * width / full) else "·" for i in range(width)]
    for mark in marks:
        cells[min(width - 1, max(0, mark * width // full))] = "|"
    text = Text(f"{label:<11}")
    text.append("".join(cells), style="red" if warn else "green")
    return text.append(f" {format_size(value)} of {format_size(full)}")


def _processes(sample: Sample):
    from rich import box
    from rich.table import Table

    columns = ("pid", "program", "mapped", "resident", "dirty", "faults/s", "write-backs/s")
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for client in sample.clients:
        table.add_row(
            str(client.pid),
            _program(client.pid),
            format_size(client.mapped),
            format_size(client.resident_frames * PAGE),
            format_size(client.dirty_frames * PAGE),
            f"{sample.rate('faults', client):,.0f}",
            f"{sample.rate('written_back', client):,.0f}",
        )
    return table


def _program(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        stopped = " (stopped)" if process.status() == psutil.STATUS_STOPPED else ""
        return process.name() + stopped
    except psutil.Error:
        return "(gone)"
