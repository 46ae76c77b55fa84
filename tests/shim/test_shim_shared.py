"""Several programs on one device: each has its own pages, and gives them back however it ends."""

import dataclasses
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from device_object import DeviceObject
from placed import TIMEOUT
from support import wait_until

from cram_emu import Device, named
from cram_emu.lab import launch

NAME = f"shared-{os.getpid()}"
KILLS = 100
SETTINGS = launch.Settings(2 << 20, writeback_ms=20)


@pytest.fixture
def device() -> Iterator[Device]:
    path = named.create(NAME, "512M", "64M")
    with Device.open(path) as device:
        yield device
    path.unlink()


def start(worker: str, **kwargs) -> subprocess.Popen:
    """A worker that has written all of its memory once."""
    environment = launch.environment(named.find(NAME), SETTINGS)
    process = subprocess.Popen([worker], env=environment, stdout=subprocess.PIPE, text=True, **kwargs)
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen) -> None:
    process.terminate()
    assert process.wait(TIMEOUT) == 0, "it found what it wrote"
    process.stdout.close()


def at_rest(device: Device) -> None:
    """Only this process has it open; everything derived is what the page map says."""
    device.reap()
    assert [client.pid for client in device.clients()] == [os.getpid()]
    DeviceObject(device.fileno()).check()


class TestShared:
    def test_own_pages(self, program, device: Device) -> None:
        """Programs side by side find what they wrote, and leave nothing."""
        workers = [start(program("worker")) for _ in range(3)]
        try:
            assert device.stats.used > 0
            # Their children of the moment are clients too.
            assert {c.pid for c in device.clients() if c.mapped} >= {w.pid for w in workers}
            for worker in workers:
                end(worker)
        finally:
            for worker in workers:
                worker.kill()
        at_rest(device)
        assert device.stats.used == 0

    def test_killed(self, program, device: Device) -> None:
        """A hundred programs killed at any instant disturb nobody, and their pages are free."""
        seed = random.Random(1)
        survivor = start(program("worker"))
        victims = [start(program("worker"), start_new_session=True) for _ in range(2)]
        kept = Path(f"/proc/{survivor.pid}/stat")
        for _ in range(KILLS):
            victim = victims.pop(seed.randrange(len(victims)))
            # Somewhere in its work: as long as it takes to read so many files.
            for _ in range(seed.randrange(60)):
                kept.read_text()
            # Its children too, whatever they are at.
            os.killpg(victim.pid, signal.SIGKILL)
            victim.wait(TIMEOUT)
            victim.stdout.close()
            victims.append(start(program("worker"), start_new_session=True))
        for victim in victims:
            os.killpg(victim.pid, signal.SIGKILL)
            victim.wait(TIMEOUT)
            victim.stdout.close()
        end(survivor)
        at_rest(device)
        assert device.stats.used == 0

    def test_stopped(self, program, device: Device) -> None:
        """A program that is stopped holds its pages, and no other's."""
        stopped, other = start(program("worker")), start(program("worker"))
        stopped.send_signal(signal.SIGSTOP)
        wait_until(lambda: ") T " in Path(f"/proc/{stopped.pid}/stat").read_text(), "it is stopped")
        before = {client.pid: client.written_back for client in device.clients()}[other.pid]
        now = lambda: {client.pid: client.written_back for client in device.clients()}[other.pid]
        wait_until(lambda: now() > before + 5000, "the other one works on")
        stopped.send_signal(signal.SIGCONT)
        end(stopped)
        end(other)
        at_rest(device)

    def test_poison(self, program, device: Device) -> None:
        """Poison that is injected at a page of a program's is met by it, and by nobody else."""
        bystander, victim = start(program("worker")), start(program("worker"))
        for dpa in range(0, 512 << 20, 4096):
            info = device.page(dpa)
            if info.state == "stored":
                device.poison.inject(dpa)
                if victim.poll() is not None or bystander.poll() is not None:
                    break
        wait_until(lambda: victim.poll() is not None or bystander.poll() is not None, "one of them met it")
        ended, other = (victim, bystander) if victim.poll() is not None else (bystander, victim)
        assert ended.wait(TIMEOUT) == -signal.SIGBUS
        ended.stdout.close()
        # Every page that is somebody's may have been hit; whoever is left may have met it too.
        other.terminate()
        assert other.wait(TIMEOUT) in (0, -signal.SIGBUS)
        other.stdout.close()
        at_rest(device)

    def test_other_user(self, device: Device, skip_unless_root) -> None:
        """Another user's device: permission denied."""
        environment = launch.environment(named.find(NAME), SETTINGS)
        for user, code in ((None, 0), (65534, 3)):
            done = subprocess.run(["/bin/true"], env=environment, user=user, capture_output=True, text=True)
            assert done.returncode == code, done.stderr
        assert done.stderr.endswith(".named: Permission denied\n")


def test_exec_at_once(device: Device) -> None:
    """A child of fork that becomes another program at once is no client any more, though no thread of it has run yet."""
    environment = launch.environment(named.find(NAME), dataclasses.replace(SETTINGS, follow=False))
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; echo ready; wait"
    shell = subprocess.Popen(
        ["sh", "-c", script], env=environment, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    )  # fmt: skip
    try:
        assert shell.stdout.readline() == "ready\n"
        children = [int(pid) for pid in Path(f"/proc/{shell.pid}/task/{shell.pid}/children").read_text().split()]
        for pid in children:
            wait_until(lambda pid=pid: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", "it is another program")
        assert len(children) == 8
        device.reap()
        assert {client.pid for client in device.clients()} == {os.getpid(), shell.pid}
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        shell.communicate(timeout=TIMEOUT)
    at_rest(device)
