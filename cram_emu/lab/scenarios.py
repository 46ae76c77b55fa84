"""The scenarios of scripts/faults: shell scripts that break a device on purpose and say what must come of it.

It knows their form: a first paragraph of comment that tells the theory, exit code 0, 1, or 77 for skipped. What they do is
theirs.
"""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import time
from pathlib import Path
from xml.etree import ElementTree

from cram_emu.errors import InvalidArgument, NotSupported

SKIPPED = 77
_TIME_LIMIT_S = 300


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


def run(scenario: Scenario, time_limit_s: float = _TIME_LIMIT_S) -> Result:
    """Runs one to its end; one that takes too long is ended as by Ctrl-C, and cleans up."""
    start = time.monotonic()
    with subprocess.Popen(
        [scenario.path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            output, _ = process.communicate(timeout=time_limit_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate()
            output += f"\nit took longer than {time_limit_s:g} s"
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
    return Result(scenario, process.returncode, output, time.monotonic() - start)


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
