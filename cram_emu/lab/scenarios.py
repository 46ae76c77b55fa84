"""The scenarios of scripts/faults: shell scripts that break a device on purpose and say what must come of it.

It knows their form: a first paragraph of comment that tells the theory, exit code 0, 1, or 77 for skipped. What they do is
theirs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from cram_emu.errors import InvalidArgument, NotSupported
from cram_emu.lab.signals import signals_held, unwound_by_signals
from cram_emu.sysfs import mountpoint

SKIPPED = 77
_TIME_LIMIT_S = 300
#: For its own cleaning up.
_GRACE_S = 10
# What a pipe holds at most.
_PIPE = 1 << 16


@dataclasses.dataclass(frozen=True)
class Scenario:
    name: str
    path: Path

    @property
    def theory(self) -> str:
        """The first paragraph of comment, on one line."""
        lines = self.path.read_text(encoding="utf-8").splitlines()[1:]
        paragraph = []
        for line in lines:
            if not line.startswith("#"):
                break
            paragraph.append(line[1:].strip())
        return " ".join(paragraph)


@dataclasses.dataclass(frozen=True)
class Result:
    scenario: Scenario
    code: int  #: its exit code, or minus the signal that ended it
    output: str
    seconds: float

    @property
    def outcome(self) -> str:
        return {0: "passed", SKIPPED: "skipped"}.get(self.code, "failed")

    @property
    def reason(self) -> str:
        """Why it did not pass: the first expectation that did not hold, or what it said last. Else nothing."""
        if self.outcome == "passed":
            return ""
        lines = self.output.strip().splitlines() or [""]
        return next((line for line in lines if ", expected " in line), lines[-1]).strip()


def scenarios(directory: Path | None = None) -> list[Scenario]:
    """All there are, by name. NotSupported: they are not here; they come with the source tree."""
    directory = directory or Path(__file__).parents[2] / "scripts" / "faults"
    if not directory.is_dir():
        raise NotSupported(f"{directory}: the scenarios are not here; they come with the source tree")
    paths = sorted(path for path in directory.iterdir() if path.is_file() and not path.suffix)
    return [Scenario(path.name, path) for path in paths]


def chosen(names: list[str], directory: Path | None = None) -> list[Scenario]:
    """Those of these names, or all. InvalidArgument: there is none of that name."""
    known = {scenario.name: scenario for scenario in scenarios(directory)}
    for name in names:
        if name not in known:
            raise InvalidArgument(f"no scenario {name!r}; there are {', '.join(known)}")
    return [known[name] for name in names] if names else list(known.values())


def run(scenario: Scenario, time_limit_s: float = _TIME_LIMIT_S, grace_s: float = _GRACE_S) -> Result:
    """Runs one to its end; one that takes too long is ended as by Ctrl-C, with all that it has started, and cleans up.

    What has not ended after a grace period is killed, and its machines are taken away. Main thread only.
    """
    start = time.monotonic()
    process, output, in_time = None, bytearray(), False
    with unwound_by_signals(), _directory() as own:
        try:
            # The race: Ctrl-C while it starts would leave it running.
            with signals_held():
                process = _start(scenario, own)
            in_time = _follow(process, output, time_limit_s)
        finally:
            if process is not None:
                _end(process, output, grace_s)
    said = output.decode(errors="replace")
    if not in_time:
        said += f"\nit took longer than {time_limit_s:g} s"
    return Result(scenario, process.returncode, said, time.monotonic() - start)


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    """Where it makes its machines. What a killed one has left of them goes."""
    own = Path(tempfile.mkdtemp(prefix="cram-emu-scenario-"))
    try:
        yield own
    finally:
        with signals_held():
            # The race: a mount that was under way comes between, and keeps its directory; there is one at most.
            for _ in range(2):
                for where in mountpoint.below(own):
                    mountpoint.detach(where)
                for where in own.glob("*"):
                    Path(f"/dev/shm/{where.name}.device").unlink(missing_ok=True)
                shutil.rmtree(own, ignore_errors=True)
                if not own.exists():
                    break


def _start(scenario: Scenario, own: Path) -> subprocess.Popen:
    """In a session of its own: it is ended with all that it has started, and the terminal's Ctrl-C comes to us."""
    return subprocess.Popen(
        [scenario.path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(own)},
        start_new_session=True,
    )


def _follow(process: subprocess.Popen, output: bytearray, seconds: float) -> bool:
    """Gathers what it says until it has ended, whoever else may still write there. False: it has not, within that time.

    It is not reaped: while it is a zombie its group's number is nobody else's.
    """
    deadline = time.monotonic() + seconds
    said, ended = process.stdout.fileno(), os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(said, select.POLLIN)
        poll.register(ended, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll(max(0, deadline - time.monotonic()) * 1000)]
            if said in ready:
                chunk = os.read(said, _PIPE)
                output += chunk
                if not chunk:
                    poll.unregister(said)
            # All that it said before its end has been read.
            if ended in ready:
                return True
            if time.monotonic() >= deadline:
                return False
    finally:
        os.close(ended)


def _end(process: subprocess.Popen, output: bytearray, grace_s: float) -> None:
    """Ends it and all that it has started as Ctrl-C would, unless it has ended, and kills what is left.

    That after a grace period, or at once where the user interrupts again.
    """
    try:
        if not _follow(process, output, 0):
            os.killpg(process.pid, signal.SIGTERM)
            _follow(process, output, grace_s)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def junit(results: list[Result]) -> str:
    """The results as JUnit XML, as CI systems read it."""
    count = {outcome: sum(r.outcome == outcome for r in results) for outcome in ("failed", "skipped")}
    suite = ElementTree.Element(
        "testsuite",
        name="cram-emu scenarios",
        tests=str(len(results)),
        failures=str(count["failed"]),
        errors="0",
        skipped=str(count["skipped"]),
        time=f"{sum(r.seconds for r in results):.3f}",
    )
    for result in results:
        case = ElementTree.SubElement(
            suite, "testcase", classname="faults", name=result.scenario.name, time=f"{result.seconds:.3f}"
        )
        if result.outcome != "passed":
            kind = "failure" if result.outcome == "failed" else "skipped"
            ElementTree.SubElement(case, kind, message=_printable(result.reason))
        ElementTree.SubElement(case, "system-out").text = _printable(result.output)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _printable(text: str) -> str:
    """Without what XML 1.0 cannot hold."""
    return "".join(c if c in "\t\n" or " " <= c not in "\ufffe\uffff" else "?" for c in text)
