"""Programs whose memory a manager demotes: `cram-emu run --mode zswap`."""

import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from device_object import DeviceObject
from placed import TIMEOUT, WINDOW, run

from cram_emu import Device, named
from cram_emu.host import Zswap
from cram_emu.lab import launch
from cram_emu.sizes import format_size

MODE = ("--mode", "zswap")
NAME = f"managed-{os.getpid()}"
KILLS = 30
NOISE = "import os; a = [os.urandom(1 << 20) for _ in range(48)]; print(len({hash(x) for x in a}), sum(x[9] for x in a) > 0)"


@pytest.mark.parametrize("name", ("calls", "space", "signals", "processes", "escapes"))
class TestPrograms:
    def test_managed(self, name: str, program, delivery: str) -> None:
        """What any Linux gives them they have here; their oracle, without a shim, is in test_shim_programs.py."""
        options = (*MODE, "--dram", WINDOW, "--delivery", delivery)
        done = run(program(name), options=options, env={"CRAM_TEST_PLACED": delivery})
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{name}: all right\n"
        demoted = re.search(r"^pages +([\d,]+) demoted", done.stderr, re.M)
        assert int(demoted[1].replace(",", "")) > 1000, "its memory was demoted"


def test_zombies() -> None:
    """Children that have ended, and that nobody has reaped, take no place from those to come."""
    script = "\n".join(
        (
            "import os",
            "pids = []",
            "for _ in range(80):",
            "    pids.append(os.fork() or os._exit(0))",
            "    os.waitid(os.P_PID, pids[-1], os.WEXITED | os.WNOWAIT)",
            "print(sum(os.waitpid(pid, 0)[1] for pid in pids))",
        )
    )
    done = run("/usr/bin/python3", "-c", script, options=MODE)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


class TestFull:
    """A device that is too small for the program."""

    OPTIONS = ("--advertised", "1G", "--real", "8M")

    def test_managed(self, tmp_path) -> None:
        """The manager stops in time: nothing is lost, and what the device does not take is in the pool."""
        report = tmp_path / "report.json"
        options = (*MODE, "--dram", "8M", *self.OPTIONS, "--report", str(report))
        done = run("/usr/bin/python3", "-c", NOISE, options=options)
        assert (done.returncode, done.stdout) == (0, "48 True\n"), done.stderr
        told = json.loads(report.read_text())
        assert (told["dropped_writes"], told["poisoned"]) == (0, 0)
        assert told["lthresh"] > 0 and told["pool"] > 16 << 20 and told["resident_frames"] <= 8 << 8
        assert told["manager"]["zswpin"] > 0
        limit = format_size(told["manager"]["max_pages"] * 4096)
        assert re.search(rf"^pool .*; all processes may have {limit}$", done.stderr, re.M)

    def test_twin_direct(self) -> None:
        """Without a manager the same program dies of poison on that device."""
        done = run("/usr/bin/python3", "-c", NOISE, options=("--window", "8M", *self.OPTIONS))
        assert done.returncode == -signal.SIGBUS


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "said"),
        (
            (("--window", "16M", *MODE), "--window is of --mode direct"),
            (("--dram", "16M"), "--dram is of --mode zswap"),
            ((*MODE, "--dram", "1K"), "dram 1024: below 64 KiB"),
        ),
    )
    def test_bad(self, options, said: str) -> None:
        """What belongs to another mode, or cannot be, is named; nothing runs."""
        done = run("echo", "ran", options=options)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr

    def test_no_board(self) -> None:
        """A program whose board has gone does not start on memory without one."""
        with Device("64M", "64M") as device, Zswap([device], shared=True) as manager:
            path = f"/proc/{os.getpid()}/fd/{device.fileno()}"
            environment = launch.environment(path, launch.Settings(2 << 20), manager)
        with Device("64M", "64M") as device:
            path = f"/proc/{os.getpid()}/fd/{device.fileno()}"
            fields = environment["CRAM_EMU_SHIM"].split(",")
            environment["CRAM_EMU_SHIM"] = ",".join([*fields[:-2], "/proc/self/fd/999", path])
            done = subprocess.run(["echo", "ran"], env=environment, capture_output=True, text=True, timeout=TIMEOUT)
        assert (done.returncode, done.stdout) == (3, "")
        assert "board" in done.stderr


@pytest.fixture
def device() -> Iterator[Device]:
    path = named.create(NAME, "512M", "64M")
    with Device.open(path) as device:
        yield device
    path.unlink()


class TestShared:
    def test_killed(self, program, device: Device) -> None:
        """Killed at any moment, a managed program leaves nothing on the device, and its counters on the board."""
        chance = random.Random(5)
        with Zswap([device], shared=True) as manager:
            environment = launch.environment(Path(named.find(NAME)), launch.Settings(2 << 20), manager)
            for _ in range(KILLS):
                process = subprocess.Popen(
                    [program("worker")], env=environment, stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE
                )
                assert process.stdout.readline() == "ready\n", process.stderr.read()
                for _ in range(chance.randrange(3)):
                    device.reap()
                process.kill()
                process.wait(TIMEOUT)
                process.stdout.close()
                process.stderr.close()
            device.reap()
            told = manager.stats
            assert told.zswpout > KILLS * 100 and told.stored_pages == 0
            assert (device.stats.used, device.stats.poisoned) == (0, 0)
        DeviceObject(device.fileno()).check()

    def test_limits(self, program) -> None:
        """The limits of the pool and of pages on nodes are of all processes together, and what killed ones had is free again."""
        with Device("512M", "8M") as device, Zswap([device], ram="8M", swap=0, max_direct_percent=10, shared=True) as manager:
            path = f"/proc/{os.getpid()}/fd/{device.fileno()}"
            environment = launch.environment(path, launch.Settings(1 << 20), manager)
            before = 0
            for processes, pages in ((4, 500), (1, 1500)):
                command = [program("holder"), str(pages)]
                holders = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(processes)]
                try:
                    assert [holder.stdout.readline() for holder in holders] == [b"ready\n"] * processes
                    told = manager.stats
                finally:
                    for holder in holders:
                        holder.kill()
                        holder.communicate()
                assert told.pool_limit_hit > before
                before = told.pool_limit_hit
                total = told.total_pages
                assert (total["none"], total["page"] - total["none"]) == (told.pool_total_size >> 12, told.stored_direct_pages)
                # Each that looks before another has stored goes past it by a page.
                assert told.max_pages // 2 < total["none"] < told.max_pages + 16
                assert 150 < told.stored_direct_pages < 204 + 16
