"""Command lines at random, from the parsers' own options: no traceback, one line that names the value, and nothing changed.

Each runs in this process through main(). What would take long, or start a program, ends where it begins: the options have been
looked at by then. No directory here has a machine mounted, and none is empty, so that nothing is ever mounted.
"""

import argparse
import contextlib
import dataclasses
import functools
import gc
import io
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, given, settings, strategies as st
from samples import PAGE, noise

from cram_emu import Device, cli, format_size, named, parse_size
from cram_emu.cli import bench, demo, experiment, run as cli_run, scenarios as cli_scenarios
from cram_emu.lab import plot

NAMES = [name for name, _, _ in cli.SUBCOMMANDS]
CODES = {cli.OK, cli.FAILED, cli.USAGE, cli.NOT_PERMITTED}
#: Of a program that is not there, or cannot be executed.
PROGRAM_CODES = {126, 127}

NASTY = (
    "", " ", "-1", "0", "1", "7", "4096", "4095", "1e400", "NaN", "inf", "-inf", "1" * 40, "-" + "9" * 40, "9" * 5000,
    "64Q", "64E", "1.5", "0.1", "1K", "3M", "512M", "2T", "9999999T", "0x10", "0b1", "१२३", "é", "漢字", "\udcff", "a\nb",
    "\x1b[31m", "%", "%s", "{}", "=", ",", ":", "a=b", "#1", "--", "-", "-h", "off", "now", "none", "null", "heap:50%",
    "heap:101%", "heap:" + "9" * 400 + "%", "mmap:0", "mmap:1+0x", "mmap:" + "9" * 5000, "caller:f#0", "caller:f#1",
    "5s", "9" * 400 + "s", "0-faults", "store", "store:", "store:probability=NaN", "store:probability=1e400",
    "store:times=-2", "store:times=" + "9" * 5000, "store:value=1", "poison:space=64Q", "poison:space=9999999T",
    "probability=inf", "probability=", "times=1_0", "seed=-1", "interval=18446744073709551616", "value=1", "space=-1",
    "space=1.5", "/nonexistent/x", "/etc/passwd", "/dev/null", "/proc/self/mem", "/", ".", "..", "x" * 300, "x/" * 3000,
    "charging", "race", "/bin/true", "/bin/sh", "good", "target",
)  # fmt: skip

#: By subcommand and dest: what is right there. {target}: a device; {plain}: a directory that is no machine.
RIGHT = {
    ("create", "name"): "fresh",
    ("rm", "name"): "good",
    ("demo", "real"): "4M",
    ("experiment", "experiment"): "race",
    ("fault", "device"): "{target}",
    ("fault", "fault"): "store",
    ("fault", "settings"): "times=1",
    ("ns", "command"): "/bin/true",
    # What excludes other options, or asks for them.
    ("run", "device"): None,
    ("run", "dram"): None,
    ("run", "advertised"): None,
    ("run", "real"): None,
    ("run", "fault"): "store",
    ("run", "poison_at"): "heap:50%",
    ("run", "program"): "/bin/true",
    ("run", "report"): "report.json",
    ("bench", "size"): "512M",
    ("bench", "rounds"): "1",
    ("scenarios", "junit"): "junit.xml",
}
ANYWHERE = {
    "advertised": "16M", "real": "1M", "size": "16M", "seed": "1", "plot": "plot.svg", "mountpoint": "{plain}",
    "mount": "{plain}", "device": "{target}", "window": "64K", "dram": "64K", "min_mmap": "64K",
}  # fmt: skip
#: What excludes one another, the usual one first; and what needs one another.
ONE_OF = ("device", "mount")
TOGETHER = ("advertised", "real", "device", "fault")


class Begun(Exception):
    """The work would begin now."""


def begin(*_, **__):
    raise Begun


@pytest.fixture(scope="module", autouse=True)
def world():
    """A directory of its own for named devices, one to be in, a device, and no work."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir="/dev/shm") as shared:
        patch.setattr(named, "_SHARED_MEMORY", Path(shared))
        patch.setattr(bench, "run_bench", begin)
        patch.setattr(demo.Narrator, "tell", begin)
        patch.setattr(
            experiment, "EXPERIMENTS", {name: (*plan, begin) for name, (*plan, _) in experiment.EXPERIMENTS.items()}
        )
        patch.setattr(cli_run, "_watch", begin)
        patch.setattr(cli_scenarios.scenarios, "run", begin)
        patch.setenv("COLUMNS", "1000")
        # It starts threads when it is first imported.
        plot.check("plot.svg")
        work = Path(shared, "work")
        (work / "plain" / "something").mkdir(parents=True)
        patch.chdir(work)
        named.create("good", "1M", "1M")
        with Device("4M", "1M", path=named.directory() / "target.named") as device:
            device.write(0, noise(1))
            device.faults["store"].set(times=5)
            yield World(work, device)


@dataclasses.dataclass(frozen=True)
class World:
    work: Path
    device: Device

    def right(self, name: str, dest: str) -> str | None:
        """A value that is right there; None: not known."""
        value = RIGHT[name, dest] if (name, dest) in RIGHT else ANYWHERE.get(dest)
        return value and value.format(target=named.find("target"), plain=self.work / "plain")

    def state(self) -> tuple:
        """What a command line that is refused must leave as it is."""
        return (
            {name: fault.attributes for name, fault in self.device.faults.items()},
            {name: fault.struck for name, fault in self.device.faults.items()},
            self.device.stats,
            self.device.read(0, PAGE),
            named.names(),
            sorted(self.work.rglob("*")),
            os.listdir("/proc/self/fd"),
            os.listdir("/proc/self/task"),
            os.getcwd(),
            [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.work) in line],
            [path.read_text() for path in Path("/proc/self/task").glob("*/children")],
        )

    def is_as(self, before: tuple) -> bool:
        """Once what nobody refers to is gone."""
        return self.state() == before or bool(gc.collect()) and self.state() == before


@dataclasses.dataclass(frozen=True)
class Ending:
    code: int
    out: str
    err: str
    begun: bool = False


def call(words: list[str]) -> Ending:
    """main(), with streams as the interpreter has them."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)
    begun = False
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(words)
        except SystemExit as ended:
            code = ended.code
        except Begun:
            code, begun = cli.OK, True
    return Ending(code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode(), begun)


def check(world: World, words: list[str], bad: list[str] | None) -> None:
    """bad: if it is refused, one of these is named."""
    before = world.state()
    ending = call(words)
    assert ending.code in CODES | (PROGRAM_CODES if words[0] in ("run", "ns") else set())
    if ending.code == cli.OK and not ending.begun:
        undo(world, before)
        return
    assert world.is_as(before), [(a, b) for a, b in zip(before, world.state()) if a != b]
    if words[0] == "info" or ending.begun:
        return
    assert ending.out == ""
    *usage, line = ending.err.removesuffix("\n").split("\n")
    assert line.startswith("cram-emu") and line.isprintable()
    assert len(usage) <= 1 and all(text.startswith("usage: cram-emu") for text in usage)
    assert bool(usage) <= (ending.code == cli.USAGE)
    if bad is not None:
        assert any(form in line for value in bad for form in forms(value)), f"{line!r} names none of {bad!r}"


def undo(world: World, before: tuple) -> None:
    """What was asked for was done: it is taken back."""
    for name, attributes in before[0].items():
        world.device.faults[name].set(**dataclasses.asdict(attributes))
    for name in set(named.names()) - set(before[4]):
        named.remove(name)
    for name in set(before[4]) - set(named.names()):
        named.create(name, "1M", "1M")


def forms(value: str) -> list[str]:
    """How a message may name it."""
    found = [value, repr(value)[1:-1], ascii(value)[1:-1]] if value.strip() else ["''", "' '", "empty", "  "]
    with contextlib.suppress(ValueError):
        found += [str(parse_size(value)), format_size(parse_size(value))]
    with contextlib.suppress(ValueError):
        found.append(str(float(value)))
    found += [os.path.abspath(value), os.path.realpath(value), repr(value.partition(":")[0])]
    if "=" in value:
        # An attribute by its name, or its value.
        name, _, rest = value.partition("=")
        found += [repr(name), *forms(rest)]
    return found


# ---- generators -------------------------------------------------------------------------------


@functools.cache
def actions(name: str) -> list[argparse.Action]:
    """The arguments of a subcommand."""
    parser = cli._parser([name])
    choices = parser._subparsers._group_actions[0].choices
    return [action for action in choices[name]._actions if action.dest != "help"]


def takes_value(action: argparse.Action) -> bool:
    return action.nargs != 0


@st.composite
def with_one_bad(draw, world: World) -> tuple[list[str], list[str]]:
    """A command line that is right, but for one value; and what its refusal may name: that, or the option as a whole."""
    name = draw(st.sampled_from([name for name in NAMES if any(map(takes_value, actions(name)))]))
    known = actions(name)
    victim = draw(st.sampled_from([action for action in known if takes_value(action)]))
    value = draw(st.sampled_from(NASTY))
    options, positionals, bad = [], [], [value, *(f": {option} " for option in victim.option_strings)]
    for action in known:
        right = world.right(name, action.dest)
        if action is victim:
            text = value
        elif not takes_value(action):
            if draw(st.booleans()):
                options.append(action.option_strings[0])
            continue
        elif right is None or (action.dest in ONE_OF and victim.dest in ONE_OF) or action.dest == ONE_OF[1]:
            continue
        elif not action.required and action.dest not in TOGETHER and draw(st.booleans()):
            continue
        else:
            text = right
        if text == str(world.work / "plain"):
            bad.append(text)
        if action.option_strings:
            options.append(f"{action.option_strings[0]}={text}")
        else:
            positionals.append(text)
    # What looks like an option is one.
    end = any(text.startswith("-") for text in positionals) or positionals and draw(st.booleans())
    return [name, *options, *(["--"] if end else []), *positionals], bad


@st.composite
def words(draw) -> list[str]:
    """Anything in any order."""
    name = draw(st.sampled_from(NAMES))
    strings = [string for action in actions(name) for string in action.option_strings]
    word = st.sampled_from(NASTY)
    option = st.sampled_from(strings) if strings else word
    either = st.one_of(word, option, st.builds("{}={}".format, option, word), st.text(max_size=5))
    return [name, *draw(st.lists(either, max_size=6))]


class TestFuzz:
    @settings(max_examples=250)
    @given(st.data())
    def test_one_bad_value(self, world: World, data):
        line, bad = data.draw(with_one_bad(world))
        check(world, line, bad)

    @settings(max_examples=250)
    @given(words())
    def test_anything(self, world: World, line: list[str]):
        assume(not any("\0" in word for word in line))
        check(world, line, None)
