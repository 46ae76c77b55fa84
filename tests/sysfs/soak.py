"""Readers and writers at random over every file of a mounted tree, while devices come and go.

    python soak.py SECONDS [OPTION...]           mounts a machine (options of mount), prints what happened
    python soak.py fuzz|soak ROOT SEED SECONDS   one worker, used by the above

A worker ends at the first answer that no file gives by right, and says which.
"""

import collections
import errno
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from servers import SMALL, Server

from cram_emu import CramError, Device

WORKERS = 8
#: A request that takes longer is stuck.
LONGEST = 20.0

_REGISTERS = "sys/kernel/debug/cram_device"
_HOTPLUG = (f"{_REGISTERS}/add", f"{_REGISTERS}/remove")
# Directories of the host's own, whose answers are its kernel's.
_HOSTS = ("node0",)

_GONE = {errno.ENOENT, errno.ENODEV, errno.ENOTDIR}
_READ = _GONE | {errno.EACCES}
_WRITE = _READ | {
    errno.EINVAL, errno.ERANGE, errno.EBUSY, errno.ENOSPC, errno.ENXIO, errno.EOPNOTSUPP,
}  # fmt: skip
# What single files answer besides.
_BESIDES = {"autosuspend_delay_ms": {errno.EIO}, "trace_pipe": {errno.EAGAIN}, "reclaim": {errno.EAGAIN}}

_WORDS = (
    "0", "1", "64", "4096", "0x1000", "500", "1000", "1001", "-1", "y", "N", "auto", "on", "online",
    "offline", "region0", "region1", "mem0", "10%", "1M", "256K", "block 1", "inflate 1 10",
    "deflate 1 10", "noalloc 1 1", "change", "", "true",
)  # fmt: skip


def files(root: Path) -> Iterator[Path]:
    """Every regular file of the emulated machine."""
    for directory, names, found in os.walk(root):
        names[:] = [name for name in names if name not in _HOSTS]
        if "/memory/memory" in directory and not os.path.lexists(f"{directory}/node1"):
            continue
        for name in found:
            path = Path(directory, name)
            if not path.is_symlink() and path.is_file():
                yield path


def nonsense(random: random.Random) -> bytes:
    """Random bytes, or a word that some file takes, whole or bent."""
    if random.random() < 0.4:
        return random.randbytes(random.choice((1, 2, 8, 64, 4096, 10000)))
    word = bytearray(random.choice(_WORDS).encode())
    if word and random.random() < 0.3:
        word[random.randrange(len(word))] = random.randrange(256)
    return bytes(word) + random.choice((b"", b"\n", b"\0", b"\n\0"))


class Worker:
    """Does one thing after another to random files."""

    def __init__(self, root: Path, seed: int, seconds: float):
        self.root = root
        self.random = random.Random(seed)
        self.end = time.monotonic() + seconds
        self.answers: collections.Counter[str] = collections.Counter()

    def run(self, *actions) -> None:
        paths: list[Path] = []
        count = 0
        while time.monotonic() < self.end:
            if count % 500 == 0:
                paths = list(files(self.root))
            count += 1
            path = self.random.choice(paths)
            action = self.random.choice(actions)
            start = time.monotonic()
            try:
                action(path)
                self.answers["done"] += 1
            except OSError as error:
                allowed = _WRITE if action == self.write else _READ
                if error.errno not in allowed | _BESIDES.get(path.name, set()):
                    raise AssertionError(f"{action.__name__} {path}: {error}") from None
                self.answers[errno.errorcode[error.errno]] += 1
            if (took := time.monotonic() - start) > LONGEST:
                raise AssertionError(f"{action.__name__} {path}: took {took:.1f} s")

    def read(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            os.read(fd, 1 << 16)
        finally:
            os.close(fd)

    def look(self, path: Path) -> None:
        os.stat(path)
        os.listdir(path.parent)

    def write(self, path: Path) -> None:
        data = nonsense(self.random)
        # What is pulled out stays out: the first device is looked at in the end.
        if str(path).endswith((*_HOTPLUG, "/remove")) or "fail_cram_removal" in str(path):
            data = b"\xff" + data
        if not data:
            return
        fd = os.open(path, os.O_WRONLY | self.random.choice((0, os.O_TRUNC)))
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def plug(self, path: Path) -> None:
        """Another device comes or goes; the first one stays."""
        if self.random.random() < 0.9:
            return
        if self.random.random() < 0.5:
            self.put("add", self.random.choice(("64M 1M", "1G 1M")))
        else:
            self.put("remove", f"mem{self.random.randrange(1, 8)}")

    def put(self, name: str, text: str) -> None:
        try:
            (self.root / _REGISTERS / name).write_text(text)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENODEV):
                raise

    def program(self, path: Path) -> None:
        """A program joins one of the devices, uses it and goes; it may be taken out meanwhile."""
        name = self.random.choice(os.listdir(self.root / _REGISTERS))
        where = self.root / _REGISTERS / name / "path"
        if not where.exists():
            return
        try:
            with Device.open(where.read_text().strip()) as device:
                for _ in range(50):
                    page = self.random.randbytes(512) * 8
                    device.write(self.random.randrange(2048) * 4096, page)
                device.discard(0, 1 << 20)
        except CramError as error:
            self.answers[type(error).__name__] += 1


def work(kind: str, root: Path, seed: int, seconds: float) -> None:
    worker = Worker(root, seed, seconds)
    if kind == "fuzz":
        worker.run(worker.write)
    elif seed == 0:
        worker.run(worker.plug, worker.read)
    elif seed == 1:
        worker.run(worker.program, worker.read)
    else:
        worker.run(worker.read, worker.read, worker.look, worker.write)
    print(dict(worker.answers))


def run(server: Server, kind: str, seconds: float, workers: int = WORKERS) -> list[str]:
    """Runs the workers side by side; returns what each counted. AssertionError: one complained."""
    started = [
        subprocess.Popen(
            [sys.executable, __file__, kind, str(server.root), str(seed), str(seconds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for seed in range(workers)
    ]
    try:
        ended = [worker.communicate(timeout=seconds + 2 * LONGEST) for worker in started]
    finally:
        for worker in started:
            worker.kill()
    complaints = [error for _, error in ended if error]
    assert not complaints, "\n".join(complaints)
    return [output.strip() for output, _ in ended]


def footprint(server: Server) -> tuple[int, int]:
    """Descriptors and resident KiB of a server; the devices' own pages are not its memory."""
    pid = server.process.pid
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").open())
    return len(os.listdir(f"/proc/{pid}/fd")), int(status["RssAnon"].split()[0])


def settle(server: Server) -> None:
    """One device only, as at the start."""
    for name in os.listdir(server.path(_REGISTERS)):
        if name.startswith("mem") and name != "mem0":
            server.write(f"{_REGISTERS}/remove", name)


def main() -> None:
    seconds = float(sys.argv[1])
    with tempfile.TemporaryDirectory() as root:
        server = Server.start(Path(root), *SMALL, *sys.argv[2:])
        try:
            rounds = max(2, round(seconds / 30))
            for number in range(rounds):
                answers = run(server, "soak", seconds / rounds)
                settle(server)
                descriptors, memory = footprint(server)
                print(f"round {number + 1}: {descriptors} descriptors, {memory} KiB", flush=True)
            print(*answers, sep="\n")
            print(f"the server ended with {server.stop()}: {server.process.stderr.read()!r}")
        finally:
            server.end()


if __name__ == "__main__":
    if sys.argv[1] in ("fuzz", "soak"):
        work(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
    else:
        main()
