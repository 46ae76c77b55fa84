"""`cram-emu run`: how it ends, what it refuses, and what it reports."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from placed import COMMAND, TIMEOUT, run
from support import wait_until

from cram_emu.errors import InvalidArgument, NotSupported
from cram_emu.lab import launch, plot
from cram_emu.lab.watch import Sample, descends, summarise

PYTHON = "/usr/bin/python3"
#: 40 MiB of text, twice over.
BUSY = "a = [str(i) * 20 for i in range(400000)]; assert a[777] == '777' * 20; print(len(a))"


class TestEnding:
    @pytest.mark.parametrize("code", [0, 3, 255])
    def test_exit_code(self, code: int) -> None:
        """The program's exit code is cram-emu's."""
        done = run("sh", "-c", f"echo out; exit {code}")
        assert (done.returncode, done.stdout) == (code, "out\n")
        assert f"exit code {code}" in done.stderr

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGABRT])
    def test_signal(self, number: signal.Signals) -> None:
        """A signal that ends the program ends cram-emu."""
        done = run(PYTHON, "-c", f"import os; os.kill(os.getpid(), {int(number)})")
        assert done.returncode == -number
        assert f"killed by {number.name}" in done.stderr

    def test_passed_on(self) -> None:
        """SIGTERM goes to the program, which decides."""
        script = (
            "import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM});"
            "print('ready', flush=True); signal.sigwait({signal.SIGTERM}); sys.exit(9)"
        )
        process = subprocess.Popen(
            [COMMAND, "run", "--", PYTHON, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 9
        assert "exit code 9" in told

    def test_early_signal(self) -> None:
        """A signal that comes as soon as there is a program ends that too."""
        for _ in range(10):
            process = subprocess.Popen([COMMAND, "run", "--", "sleep", "1000"], stderr=subprocess.PIPE, text=True)
            children = f"/proc/{process.pid}/task/{process.pid}/children"
            wait_until(lambda: Path(children).read_text(), "the program starts")
            process.send_signal(signal.SIGTERM)
            # The program has its end of the pipe too: this ends when both have.
            process.communicate(timeout=TIMEOUT)
            assert process.returncode == -signal.SIGTERM

    def test_mask(self) -> None:
        """The program's signals are blocked as they were."""
        blocked = ["grep", "SigBlk", "/proc/self/status"]
        assert run(*blocked).stdout == subprocess.run(blocked, capture_output=True, text=True).stdout

    def test_own_word(self, tmp_path) -> None:
        """A program of the current directory is that one, and is called what it was."""
        (tmp_path / "uname").write_text("#!/bin/sh\necho local $0\n")
        (tmp_path / "uname").chmod(0o755)
        assert run("./uname", cwd=tmp_path).stdout == "local ./uname\n"
        shutil.copy("/bin/cat", tmp_path / "copy")
        assert run("./copy", "/proc/self/cmdline", cwd=tmp_path).stdout == "./copy\0/proc/self/cmdline\0"

    def test_left_running(self, tmp_path) -> None:
        """What the program leaves running is waited for, and can start programs."""
        late = tmp_path / "late"
        os.mkfifo(late)
        script = f'(read go < {late}; cat /dev/null && echo late) & echo "first"; exit 4'
        with subprocess.Popen(
            [COMMAND, "run", "--", "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline() == "first\n"
            assert "waiting for what it left running on the device: pid " in process.stderr.readline()
            late.write_text("go\n")
            out, told = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, out) == (4, "late\n")
        assert "exit code 4" in told

    def test_wait_is_ended(self, tmp_path) -> None:
        """Ctrl-C ends that wait, at its first instant too, and twice; the report comes."""
        late = tmp_path / "late"
        os.mkfifo(late)
        with subprocess.Popen(
            [COMMAND, "run", "--", "sh", "-c", f"read go < {late} & exit 4"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert "(Ctrl-C: no longer)" in process.stderr.readline()
            for _ in range(2):
                process.send_signal(signal.SIGINT)
            told = process.stderr.read() if late.write_text("go\n") else ""
            assert process.wait(TIMEOUT) == 4
        assert "exit code 4" in told

    def test_late_signal(self) -> None:
        """A signal that comes when the program has ended ends nobody; the report comes."""
        read, write = os.pipe()
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
        os.write(write, bytes(4096))
        with subprocess.Popen([COMMAND, "run", "--", "true"], stderr=write) as process, open(read, "rb") as told:
            os.close(write)
            number = Path(f"/proc/{process.pid}/syscall")
            wait_until(lambda: number.read_text().startswith("1 0x2 "), "it writes its report, for which there is no room")
            process.send_signal(signal.SIGTERM)
            assert b"exit code 0" in told.read()
            assert process.wait(TIMEOUT) == 0

    def test_descriptors_closed(self) -> None:
        """A program that closes all descriptors keeps its memory."""
        script = f"import os; os.closerange(3, 1000); {BUSY}"
        done = run(PYTHON, "-c", script, options=("--window", "8M"))
        assert (done.returncode, done.stdout) == (0, "400000\n"), done.stderr

    def test_input(self) -> None:
        """Standard input is the program's."""
        done = run("cat", input="through\n")
        assert (done.returncode, done.stdout) == (0, "through\n")


class TestRefused:
    def told(self, *command: str, options=()) -> tuple[int, str]:
        done = run(*command, options=options)
        assert done.stdout == ""
        return done.returncode, done.stderr

    def test_missing(self) -> None:
        assert self.told("no-such-program") == (127, "cram-emu: no-such-program: command not found\n")
        assert self.told("/no/such") == (127, "cram-emu: /no/such: no such file\n")

    def test_not_executable(self, tmp_path) -> None:
        path = tmp_path / "file"
        path.write_text("")
        assert self.told(str(path)) == (126, f"cram-emu: {path}: not executable\n")
        path.chmod(0o755)
        assert self.told(str(path)) == (
            126,
            f"cram-emu: {path}: not a program: neither ELF nor a script with #!\n",
        )
        path.write_text("#!/no/such/shell\n")
        assert self.told(str(path)) == (
            126,
            f"cram-emu: {path}: its interpreter /no/such/shell does not exist\n",
        )
        assert self.told(str(tmp_path)) == (126, f"cram-emu: {tmp_path}: is a directory\n")
        assert self.told(f"{path}/x") == (126, f"cram-emu: {path}/x: Not a directory\n")
        assert self.told("") == (2, "cram-emu: PROGRAM is empty\n")

    def test_static(self, tmp_path) -> None:
        source, path = tmp_path / "a.c", tmp_path / "a"
        source.write_text("int main(void) { return 0; }\n")
        subprocess.run(["gcc", "-static", "-o", path, source], check=True)
        told = f"cram-emu: {path}: statically linked: nothing can be preloaded into it\n"
        assert self.told(str(path)) == (3, told)
        # As the interpreter of a script too.
        script = tmp_path / "script"
        script.write_text(f"#!{path}\n")
        script.chmod(0o755)
        assert self.told(str(script)) == (3, told)
        subprocess.run(["gcc", "-o", path, source], check=True)
        assert run(str(path)).returncode == 0

    def test_setuid(self, tmp_path, skip_unless_root) -> None:
        path = tmp_path / "program"
        shutil.copy("/bin/true", path)
        os.chown(path, 1, 1)
        path.chmod(0o4755)
        code, told = self.told(str(path))
        assert (code, told.partition(": ")[2]) == (
            3,
            f"{path}: setuid: nothing can be preloaded into a program that gains privileges\n",
        )
        os.chown(path, os.geteuid(), 1)
        path.chmod(0o4755)
        assert run(str(path)).returncode == 0, "what it gains it has already"

    def test_window(self) -> None:
        code, told = self.told("true", options=("--window", "1T"))
        assert code == 2
        assert told.startswith("cram-emu: window 1 TiB: this host has ")
        assert self.told("true", options=("--window", "5000"))[1] == (
            "cram-emu: window 5000: below 64 KiB\n"
        )
        assert self.told("true", options=("--window", "65537"))[1] == (
            "cram-emu: window 65537: not a multiple of 4096\n"
        )
        assert self.told("true", options=("--min-mmap", "1"))[1] == (
            "cram-emu: smallest mapping 1: below a page, 4096\n"
        )

    def test_no_device(self, tmp_path) -> None:
        missing = tmp_path / "device"
        assert self.told("true", options=("--device", str(missing))) == (
            1,
            f"cram-emu: {missing}: No such file or directory\n",
        )
        missing.write_text("something else")
        code, told = self.told("true", options=("--device", str(missing)))
        assert code == 1 and "not a cram_emu device" in told

    def test_vanished(self, program, tmp_path) -> None:
        """A device that goes between the check and the start: the program does not start."""
        environment = launch.environment(tmp_path / "gone", launch.Settings(1 << 24))
        done = subprocess.run([program("space")], env=environment, capture_output=True, text=True)
        assert done.returncode == 3
        assert done.stderr.startswith("cram-emu: the device cannot be attached: ")

    def test_outputs(self, tmp_path) -> None:
        """What cannot be written is told before the program starts."""
        nowhere = tmp_path / "no" / "file"
        told = (1, f"cram-emu: {nowhere}: No such file or directory\n")
        assert self.told("echo", "ran", options=("--report", str(nowhere))) == told
        code, told = self.told("echo", "ran", options=("--plot", "a.pdf"))
        assert (code, told) == (2, "cram-emu: a.pdf: a plot is a file that ends in .png or .svg\n")

    def test_plot_written(self, tmp_path) -> None:
        pytest.importorskip("matplotlib", reason="matplotlib is not installed")
        nowhere = tmp_path / "no" / "file.png"
        told = (1, f"cram-emu: {nowhere}: No such file or directory\n")
        assert self.told("echo", "ran", options=("--plot", str(nowhere))) == told

    def test_full(self) -> None:
        """A report that finds no room is told, after the program's own."""
        done = run("echo", "ran", options=("--report", "/dev/full"))
        assert (done.returncode, done.stdout) == (1, "ran\n")
        assert done.stderr.endswith("cram-emu: /dev/full: No space left on device\n")
        assert "Traceback" not in done.stderr

    def test_capacity_of_another(self, tmp_path) -> None:
        for option in ("--real", "--advertised"):
            assert self.told("true", options=("--device", str(tmp_path), option, "1G")) == (
                2,
                "cram-emu: --real and --advertised are of a new device; this one has its own\n",
            )

    def test_not_permitted(self, program, skip_unless_root) -> None:
        """What the host refuses is told before the start, and is not the program's end."""
        drop = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
        done = subprocess.run(
            [*drop, COMMAND, "run", "--delivery", "monitor", "--", "true"], capture_output=True, text=True
        )
        if "Permission denied" in done.stderr or "vm.unprivileged_userfaultfd" not in done.stderr:
            pytest.skip(f"an ordinary user cannot run this tree: {done.stderr.strip()[-100:]}")
        assert done.returncode == 3
        assert done.stderr.count("\n") == 1

    def test_wrong_path(self, monkeypatch, tmp_path) -> None:
        """ld.so would split a path with a space."""
        monkeypatch.setattr(launch, "__file__", str(tmp_path / "with space" / "lab" / "launch.py"))
        (tmp_path / "with space" / "lab").mkdir(parents=True)
        with pytest.raises(NotSupported, match="not built"):
            launch.environment("device", launch.Settings(1 << 24))
        (tmp_path / "with space" / "_shim.so").touch()
        with pytest.raises(NotSupported, match="a space or a colon"):
            launch.environment("device", launch.Settings(1 << 24))

    def test_device_name_with_comma(self) -> None:
        """The path is the last of the settings, whatever is in it."""
        environment = launch.environment("/a,b", launch.Settings(1 << 24))
        assert environment["CRAM_EMU_SHIM"].endswith(",/a,b")

    def test_mimalloc_missing(self, monkeypatch) -> None:
        monkeypatch.setattr(launch, "_LIBRARIES", ("/nowhere",))
        with pytest.raises(NotSupported, match="apt-get install libmimalloc2.0"):
            launch.environment("device", launch.Settings(1 << 24))

    def test_plot_checked(self) -> None:
        with pytest.raises(InvalidArgument):
            plot.check("picture.jpg")


class TestReport:
    def test_json(self, tmp_path) -> None:
        """The report holds the run: what it came to, and its history."""
        path = tmp_path / "report.json"
        done = run(PYTHON, "-c", BUSY, options=("--window", "8M", "--report", str(path)))
        assert done.returncode == 0
        report = json.loads(path.read_text())
        assert report["command"] == [PYTHON, "-c", BUSY]
        assert (report["exit_code"], report["signal"]) == (0, None)
        assert (report["mode"], report["window"], report["processes"]) == ("direct", 8 << 20, 1)
        assert report["held"] > 30 << 20, "more than the window can hold"
        assert 2 < report["ratio"] < 40
        assert report["faults"] > 1000 and report["written_back"] > 5000
        assert (report["dropped_writes"], report["poisoned"]) == (0, 0)
        history = report["history"]
        rows = [dict(zip(history["columns"], row)) for row in history["rows"]]
        assert max(row["held"] for row in rows) == report["held"]
        assert rows[-1]["faults"] == report["faults"]
        seconds = [row["seconds"] for row in rows]
        assert seconds == sorted(seconds)

    def test_poison_met(self, tmp_path) -> None:
        """A child that dies of poison is named; a device with room, the twin, has nobody to name."""
        path = tmp_path / "report.json"
        script = f"{PYTHON} -c 'import os; a = [os.urandom(4000) for _ in range(4000)]; print(sum(map(sum, a)))'; :"
        for real, met in (("4M", True), ("64M", False)):
            options = ("--window", "1M", "--real", real, "--report", str(path))
            done = run("sh", "-c", script, options=options)
            # The shell's memory is on the device too: where it is written back meanwhile, it may be lost as well.
            assert done.returncode == 0 or (met and done.returncode == -signal.SIGBUS)
            report = json.loads(path.read_text())
            assert bool(report["met_poison"]) is met
            # The shell's, where it was not seen after its exec.
            assert {found["name"] for found in report["met_poison"]} <= {"python3", "sh"}
            assert ("met poison" in done.stderr) is met
            assert (report["dropped_writes"] > 0) is met

    def test_elsewhere(self, tmp_path) -> None:
        """Memory that is not placed is told, and most of it with a note."""
        path = tmp_path / "report.json"
        script = (
            "import mmap; m = mmap.mmap(-1, 128 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS);"
            "[m.write(b'x' * (1 << 20)) for _ in range(128)]"
        )
        for smallest, placed in (("64K", True), ("1G", False)):
            options = ("--min-mmap", smallest, "--report", str(path))
            done = run(PYTHON, "-c", script, options=options)
            assert done.returncode == 0, done.stderr
            report = json.loads(path.read_text())
            assert (report["placed"] > 64 << 20) is placed
            assert ("most of its memory was not on the device" in done.stderr) is not placed

    def test_plots(self, tmp_path) -> None:
        pytest.importorskip("matplotlib", reason="matplotlib is not installed")
        for name, magic in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
            path = tmp_path / name
            assert run(PYTHON, "-c", BUSY, options=("--window", "8M", "--plot", str(path))).returncode == 0
            assert path.read_bytes().startswith(magic)

    def test_interrupts(self, tmp_path) -> None:
        """A device that runs low says so; with room it does not."""
        path = tmp_path / "report.json"
        for real, low in (("16M", True), ("1G", False)):
            options = ("--window", "8M", "--real", real, "--report", str(path))
            noise = "import os; a = [os.urandom(1 << 20) for _ in range(24)]"
            assert run(PYTHON, "-c", noise, options=options).returncode in (0, -7)
            assert (json.loads(path.read_text())["lthresh"] > 0) == low

    def test_quick_start(self) -> None:
        """It imports no more than it needs: start-up is an interpreter's and little else."""
        imported = subprocess.run(
            [sys.executable, "-X", "importtime", COMMAND, "run", "--", "true"], capture_output=True, text=True
        )
        assert imported.returncode == 0
        for heavy in ("numpy", "matplotlib", "rich", "psutil", "fuse", "cram_emu.sysfs"):
            assert f"| {heavy}\n" not in imported.stderr.replace("  ", ""), heavy

    def test_lowest_ratio(self) -> None:
        """A ratio of next to nothing does not count."""
        blank = dict.fromkeys((field for field in Sample.__slots__), 0)
        samples = [
            Sample(**blank | {"held": held, "ratio": ratio})
            for held, ratio in ((4096, 0.1), (1 << 30, 3.0), (1 << 29, 2.0), (0, 0.0))
        ]
        found = summarise(samples)
        assert (found["held"], found["ratio"], found["lowest_ratio"]) == (1 << 30, 3.0, 2.0)


class TestMachine:
    def test_mount(self, tmp_path) -> None:
        """--mount attaches to the mounted machine's device, which shows the programs; each is told of the other, of the server not."""
        where = tmp_path / "machine"
        where.mkdir()
        daemon = subprocess.Popen([COMMAND, "mount", str(where), "--advertised", "1G", "--real", "64M"], stdout=subprocess.PIPE, text=True)
        assert "mem0" in daemon.stdout.readline() and "mounted" in daemon.stdout.readline()
        registers = where / "sys/kernel/debug/cram_device/mem0"
        script = "a = [str(i) * 20 for i in range(400000)]; print('ready', flush=True); input(); assert a[777] == '777' * 20"

        def start() -> subprocess.Popen:
            process = subprocess.Popen(
                [COMMAND, "run", "--window", "8M", "--mount", str(where), "--", PYTHON, "-c", script],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert process.stdout.readline() == "ready\n"
            return process

        def end(process: subprocess.Popen) -> str:
            _, told = process.communicate("\n", timeout=TIMEOUT)
            assert process.returncode == 0 and "1 process" in told
            return told

        try:
            first = start()
            assert int((registers / "used").read_text()) > 1 << 20
            # The server, the runner and the program.
            wait_until(lambda: len((registers / "processes").read_text().splitlines()) == 4, "they are listed")
            assert "others used the device" not in end(first)
            wait_until(lambda: int((registers / "used").read_text()) == 0, "its pages are free")
            both = start(), start()
            for process in both:
                assert "others used the device" in end(process)
        finally:
            daemon.terminate()
            daemon.wait(TIMEOUT)


def test_descends() -> None:
    assert descends(os.getpid(), os.getppid()) and descends(os.getpid(), os.getpid())
    assert not descends(os.getppid(), os.getpid())
    assert not descends(2**22 + 1, 1)


