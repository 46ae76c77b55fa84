"""`cram-emu fault` and `cram-emu run --fault`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from samples import PAGE, noise

from cram_emu import Device, PoisonError
from cram_emu.cli import main
from cram_emu.faults import NAMES, Attributes

COMMAND = str(Path(sys.executable).parent / "cram-emu")
PYTHON = "/usr/bin/python3"
#: 16 MiB, in an order of its own; what it adds up to.
PROGRAM = "a = [bytes([i % 251]) * 4000 for i in range(4000)]; print(sum(map(len, a)), sum(x[7] for x in a))"

#: One that does the same in every run: no hashes, no addresses of chance.
SAME = """
#include <stdlib.h>
#include <string.h>
int main(void)
{
	enum { PAGES = 4000 };
	char *memory = malloc(PAGES * 4096);
	unsigned sum = 0;
	for (unsigned i = 0; i < PAGES; i++)
		memset(memory + i * 4096, (int)i, 2000 + i % 2000);
	for (unsigned i = 0; i < PAGES; i += 97)
		sum += (unsigned char)memory[i * 4096];
	return (int)(sum & 1);
}
"""


@pytest.fixture
def device(tmp_path: Path):
    with Device("1M", "512K", path=tmp_path / "device") as device:
        yield device


@pytest.fixture
def fault(device, tmp_path: Path, capsys):
    """fault(words): its exit code, and what it printed."""

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["fault", "--device", str(tmp_path / "device"), *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


class TestFault:
    def test_all(self, fault):
        code, out, _ = fault()
        lines = [line.split() for line in out.splitlines()]
        assert code == 0 and lines[0][:3] == ["fault", "probability", "interval"]
        assert [line[0] for line in lines[1:]] == list(NAMES)
        assert all(line[1:3] == ["0", "%"] for line in lines[1:])

    def test_set(self, fault, device):
        code, out, _ = fault("store", "probability=0.5", "times=2", "seed=0x10")
        assert code == 0
        assert device.faults["store"].attributes == Attributes(probability=0.5, times=2, seed=16)
        assert "store  0.5 %        1         2      0      16" in out

    def test_words(self, fault, device):
        """Those that are no numbers."""
        code, out, _ = fault("late_irq", "value=50", "distribution=pareto", "task-filter=y", "verbose=0")
        assert code == 0
        found = device.faults["late_irq"].attributes
        assert (found.distribution, found.task_filter, found.verbose) == ("pareto", True, 0)
        row = out.splitlines()[1]
        assert " 50 ms, pareto " in row and row.split()[-10:-7]
        header = out.splitlines()[0].split()
        assert "task-filter" in header and "distribution" not in header

    @pytest.mark.parametrize(
        "word, named",
        [("distribution=normal", "distribution 'normal': not one of constant"), ("task-filter=2", "task-filter '2'"),
         ("verbose=3", "verbose 3"), ("task_filter=1", "no attribute 'task_filter'")],
    )  # fmt: skip
    def test_words_refused(self, fault, device, word, named):
        before = device.faults["late_irq"].attributes
        code, out, err = fault("late_irq", word)
        assert (code, out) == (2, "") and named in err
        assert device.faults["late_irq"].attributes == before

    def test_strikes_and_off(self, fault, device):
        fault("store", "probability=100")
        device.write(0, noise(0))
        code, out, _ = fault("store", "off", "--json")
        assert json.loads(out)["store"] == {
            "probability": 0.0, "interval": 1, "times": -1, "space": 0, "seed": 0, "value": 0,
            "distribution": "constant", "verbose": 1, "task_filter": False, "struck": 1,
        }  # fmt: skip
        device.write(PAGE, noise(1))
        assert device.stats.dropped_writes == 1

    def test_no_amount(self, fault, device):
        """A fault that would do nothing, for want of a value, is not armed; whose value was set before, is."""
        late = device.faults["late_irq"]
        told = "cram-emu: late_irq: does nothing without value=N, in ms\n"
        assert fault("late_irq", "probability=100") == (2, "", told)
        assert late.attributes == Attributes()
        assert fault("late_irq", "value=50")[0] == fault("late_irq", "probability=100")[0] == 0
        assert fault("late_irq", "value=0") == (2, "", told)
        assert late.attributes == Attributes(probability=100, value=50)

    @pytest.mark.parametrize("name", ["removal", "reset", "power_cycle"])
    def test_now(self, fault, device, name):
        """What befalls the device as a whole does so when it is told to."""
        device.write(0, noise(0))
        code, out, _ = fault(name, "now", "--json")
        assert code == 0 and json.loads(out)[name]["struck"] == 1
        with pytest.raises(PoisonError):
            device.read(0, PAGE)

    def test_space(self, fault, device):
        """A size as sizes are written elsewhere."""
        assert fault("removal", "space=64M", "times=1")[0] == 0
        assert device.faults["removal"].attributes == Attributes(space=64 << 20, times=1)

    @pytest.mark.parametrize(
        "words, told",
        [
            (("store", "now"), "store: strikes by its attributes only"),
            (("store", "space=M"), "space 'M': not a whole number"),
            (("lost",), "no fault 'lost'; there are store, "),
            (("store", "x=1"), "no attribute 'x'; there are probability, "),
            (("store", "times"), "'times': not ATTRIBUTE=VALUE, off or now"),
            (("store", "probability=200"), "store: probability 200.0: not from 0 to 100 percent"),
            (("store", "value=7"), "store: value 7: it has none"),
            (("store", "off", "times=1"), "'off': not ATTRIBUTE=VALUE, off or now"),
        ],
    )
    def test_refused(self, fault, device, words, told):
        code, out, err = fault(*words)
        assert (code, out) == (2, "") and err.startswith(f"cram-emu: {told}")
        assert device.faults["store"].attributes == Attributes()

    def test_needs_a_device(self, capsys):
        with pytest.raises(SystemExit) as ended:
            main(["fault", "store"])
        assert ended.value.code == 2
        assert "--device" in capsys.readouterr().err


@pytest.mark.usefixtures("skip_unless_userfaultfd")
class TestRun:
    def run(self, tmp_path: Path, *options: str, program=(PYTHON, "-c", PROGRAM)) -> tuple[subprocess.CompletedProcess, dict]:
        path = tmp_path / "report.json"
        command = [COMMAND, "run", "--window", "1M", "--report", str(path), *options, "--", *program]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return done, json.loads(path.read_text())

    def test_strikes(self, tmp_path):
        """A refused store kills who reads the page; the twin without it lives."""
        done, report = self.run(tmp_path, "--fault", "store:probability=10")
        assert done.returncode == -7
        assert report["injected"]["store"] == report["dropped_writes"] > 0
        assert report["met_poison"]
        done, report = self.run(tmp_path)
        assert (done.returncode, report["injected"]) == (0, {})

    def test_harmless(self, tmp_path):
        """Contents that do not compress: it needs more, and computes the same."""
        plain, without = self.run(tmp_path)
        done, report = self.run(tmp_path, "--fault", "ratio", "--fault", "lie_remaining:value=500")
        assert (done.returncode, done.stdout) == (0, plain.stdout)
        assert report["used"] > 3 * without["used"]
        assert set(report["injected"]) == {"ratio", "lie_remaining"}

    def test_seed(self, tmp_path):
        """Two runs with a seed end alike, after as many page faults; the command that does so is told."""
        source = tmp_path / "program.c"
        source.write_text(SAME)
        subprocess.run(["gcc", "-O1", "-o", tmp_path / "program", source], check=True)
        options = ("--fault", "store:probability=0.05", "--seed", "7")
        runs = [self.run(tmp_path, *options, program=(str(tmp_path / "program"),)) for _ in range(2)]
        told = [
            (done.returncode, report["faults"], report["injected"], report["dropped_writes"]) for done, report in runs
        ]
        assert told[0] == told[1]
        assert told[0][3] > 0
        done, report = runs[0]
        assert report["again"].startswith("cram-emu run --window 1M --report ")
        assert "--fault store:probability=0.05 --seed 7 -- " in report["again"]
        assert f"again by        {report['again']}" in done.stderr

    def test_seed_needs_inline(self, capsys):
        assert main(["run", "--seed", "1", "--delivery", "monitor", "--", "true"]) == 2
        assert "--seed with --delivery monitor" in capsys.readouterr().err

    def test_put_back(self, tmp_path):
        """A joined device's faults are afterwards as they were: off."""
        path = tmp_path / "device"
        with Device("64M", "64M", path=path) as device:
            device.faults["ratio"].set(probability=3, times=0, seed=5)
            before = device.faults["ratio"].attributes
            done, _ = self.run(tmp_path, "--device", str(path), "--fault", "ratio:times=1")
            assert done.returncode == 0
            assert device.faults["ratio"].attributes == before

    def test_on_already(self, tmp_path, capfd):
        """What somebody has turned on stays as it is, and no program starts; who turns it off is told how."""
        path = tmp_path / "device"
        with Device("64M", "64M", path=path) as device:
            device.faults["ratio"].set(probability=3, times=9)
            before = [fault.attributes for fault in device.faults.values()]
            words = ("--device", str(path), "--fault", "trim", "--fault", "ratio:times=1")
            assert main(["run", *words, "--", "echo", "started"]) == 1
            assert [fault.attributes for fault in device.faults.values()] == before
            told = f"--fault ratio: on already, on this device; `cram-emu fault --device {path} ratio off` turns it off"
            assert capfd.readouterr() == ("", f"cram-emu: {told}\n")
            assert main(["fault", "--device", str(path), "ratio", "off"]) == 0
            assert self.run(tmp_path, *words)[0].returncode == 0

    def test_overlapping(self, tmp_path, capfd):
        """Two runs cannot have one fault, though it is off yet: the first one's end would turn off the other's."""
        path = tmp_path / "device"
        with Device("64M", "64M", path=path) as device:
            words = ("--device", str(path), "--fault", "ratio")
            command = [COMMAND, "run", *words, "--fault-after", "9999s", "--", "sh", "-c", "echo ready; read word"]
            pipe = subprocess.PIPE
            with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as first:
                assert first.stdout.readline() == "ready\n"
                assert main(["run", *words, "--", "echo", "started"]) == 1
                first.stdin.close()
            told = "--fault ratio: another run has it on this device, and turns it off at its end"
            assert capfd.readouterr() == ("", f"cram-emu: {told}\n")
            assert self.run(tmp_path, *words)[1]["injected"]["ratio"] > 0
            assert device.faults["ratio"].attributes == Attributes()

    def test_task_filter(self, tmp_path):
        """The programs of a run that asks for it are struck, those that they start too; of one that does not, none."""
        path = tmp_path / "device"
        program = ("sh", "-c", 'exec "$0" "$@"', PYTHON, "-c", PROGRAM)
        with Device("64M", "64M", path=path) as device:
            ratio = device.faults["ratio"]
            _, report = self.run(tmp_path, "--device", str(path), "--fault", "ratio:task-filter=Y", program=program)
            assert report["injected"]["ratio"] == ratio.struck > 0
            before = ratio.struck
            ratio.set(probability=100, task_filter=True)
            done, _ = self.run(tmp_path, "--device", str(path), program=program)
            assert (done.returncode, ratio.struck) == (0, before)

    @pytest.mark.parametrize(
        "options, told",
        [
            (("--fault", "x"), "argument --fault: no fault 'x'"),
            (("--fault", "store:times"), "argument --fault: 'store:times': 'times' is not ATTRIBUTE=VALUE"),
            (("--seed", "x"), "argument --seed: seed 'x': not a whole number"),
        ],
    )
    def test_bad_usage(self, options, told, capsys):
        with pytest.raises(SystemExit) as ended:
            main(["run", *options, "--", "true"])
        assert ended.value.code == 2
        assert told in capsys.readouterr().err

    @pytest.mark.parametrize(
        "options, told",
        [
            (("--fault", "store:probability=200"), "store: probability 200.0: not from 0 to 100 percent"),
            (("--fault", "store", "--fault", "poison", "--fault", "store:times=1"), "--fault store: given twice"),
            (("--fault", "store", "--seed", "-1"), "store: seed -1: not a whole number from 0 to 18446744073709551615"),
        ],
    )
    def test_bad_attribute(self, options, told, capsys):
        """What only the device refuses is told before the program starts."""
        assert main(["run", *options, "--", "true"]) == 2
        assert capsys.readouterr().err == f"cram-emu: {told}\n"

    def test_own_seed(self, tmp_path):
        """A fault's own seed goes before the run's."""
        path = tmp_path / "device"
        with Device("64M", "64M", path=path):
            done, report = self.run(tmp_path, "--device", str(path), "--seed", "1", "--fault", "ratio:seed=2")
            assert done.returncode == 0 and report["injected"]["ratio"] > 0

    def test_removed(self, tmp_path, capfd):
        """No program is started on a device that is gone."""
        path = tmp_path / "device"
        with Device("64M", "64M", path=path) as device:
            device.remove()
            assert main(["run", "--device", str(path), "--", "echo", "started"]) == 1
        out, err = capfd.readouterr()
        assert out == "" and err.startswith("cram-emu: ") and "removed" in err and err.count("\n") == 1

    def test_silent(self, tmp_path):
        """A report tells what is, and no older losses, whatever registers would have told; to look takes no strike."""
        path = tmp_path / "device"
        with Device("64M", "64M", path=path) as device:
            device.faults["store"].set(probability=100, times=1)
            device.write(0, noise(1))
            device.faults["store"].off()
            _, plain = self.run(tmp_path, "--device", str(path))
            options = ("--fault", "no_answer", "--fault", "lie_remaining:value=10", "--fault", "lie_ratio:value=10")
            _, report = self.run(tmp_path, "--device", str(path), *options)
            assert set(report["injected"].values()) == {0} and report["dropped_writes"] == 0
            assert report["used"] > plain["used"] / 2 and report["ratio"] > plain["ratio"] / 2
            assert plain["remaining"] > 1 << 20 and report["remaining"] > plain["remaining"] / 2
