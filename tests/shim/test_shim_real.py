"""Real programs, unmodified, on a device that is smaller than their data; contents verified from outside."""

import hashlib
import json
import os
import random
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from placed import COMMAND, TIMEOUT, need, run
from support import wait_until

PYTHON = "/usr/bin/python3"


def report_of(path: Path) -> dict:
    return json.loads(path.read_text())


class TestPython:
    def test_dicts(self, tmp_path) -> None:
        """CPython builds large dictionaries; a checksum of them is that of the bare program."""
        script = (
            "import hashlib, json; d = {i: {'name': f'user{i}', 'tags': [i, i * 2]} for i in range(150000)};"
            "print(hashlib.sha256(json.dumps(d).encode()).hexdigest())"
        )
        bare = subprocess.run([PYTHON, "-c", script], capture_output=True, text=True).stdout
        report = tmp_path / "report.json"
        done = run(PYTHON, "-c", script, options=("--window", "16M", "--report", str(report)))
        assert (done.returncode, done.stdout) == (0, bare), done.stderr
        assert report_of(report)["held"] > 64 << 20

    def test_numpy(self, tmp_path) -> None:
        """numpy's arrays, filled, sorted, written to a file and read back."""
        import sys

        script = (
            "import sys, hashlib, numpy as n; a = n.arange(6_000_000, dtype=n.uint64) * 2654435761 % 1000003;"
            "b = n.sort(a); b.tofile(sys.argv[1]); c = n.fromfile(sys.argv[1], dtype=n.uint64); assert (b == c).all();"
            "print(hashlib.sha256(c.tobytes()).hexdigest(), int(a.sum()))"
        )
        command = [sys.executable, "-c", script, str(tmp_path / "array")]
        bare = subprocess.run(command, capture_output=True, text=True)
        assert bare.returncode == 0, bare.stderr
        report = tmp_path / "report.json"
        done = run(*command, options=("--window", "16M", "--report", str(report)))
        assert (done.returncode, done.stdout) == (0, bare.stdout), done.stderr
        assert report_of(report)["held"] > 64 << 20


class TestSqlite:
    def test_index(self) -> None:
        """sqlite3 builds an index in memory, and finds its database whole."""
        need("sqlite3")
        script = (
            "create table t(a integer, b text);"
            "with recursive c(x) as (select 1 union all select x + 1 from c where x < 200000)"
            " insert into t select x, printf('%08d-%s', x * 7919 % 200003, 'text') from c;"
            "create index i on t(b); pragma integrity_check; select count(*), sum(a), min(b), max(b) from t;"
        )
        bare = subprocess.run(["sqlite3", ":memory:", script], capture_output=True, text=True).stdout
        assert bare.startswith("ok\n200000|")
        done = run("sqlite3", ":memory:", script, options=("--window", "4M"))
        assert (done.returncode, done.stdout) == (0, bare), done.stderr


class TestSort:
    def test_file(self, tmp_path) -> None:
        """sort, with two threads, sorts a file as Python does."""
        seed = random.Random(2)
        lines = [seed.randbytes(12).hex() + "\n" for _ in range(600_000)]
        source, target = tmp_path / "in", tmp_path / "out"
        source.write_text("".join(lines))
        env = {"LC_ALL": "C"}
        command = ("sort", "-S", "64M", "--parallel=2", str(source), "-o", str(target))
        done = run(*command, options=("--window", "16M"), env=env)
        assert done.returncode == 0, done.stderr
        assert target.read_text() == "".join(sorted(lines))


class TestRuntimes:
    def test_node(self, tmp_path) -> None:
        """Node's buffers, with its threads reading a file into them, and a child process."""
        need("node")
        script = """
            const fs = require('fs'), crypto = require('crypto');
            const made = Array.from({length: 64}, (_, i) => Buffer.alloc(1 << 20, 'line ' + i));
            fs.writeFileSync(process.argv[1], Buffer.concat(made));
            fs.promises.readFile(process.argv[1]).then(read => {
                const ok = made.every((buffer, i) => buffer.equals(read.subarray(i << 20, (i + 1) << 20)));
                console.log(ok, crypto.createHash('sha256').update(read).digest('hex'));
                console.log(require('child_process').execSync('echo child').toString().trim());
            });
        """
        path, report = tmp_path / "file", tmp_path / "report.json"
        done = run("node", "-e", script, str(path), options=("--window", "16M", "--report", str(report)))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert (done.returncode, done.stdout) == (0, f"true {digest}\nchild\n"), done.stderr
        assert report_of(report)["held"] > 48 << 20


# ---- redis --------------------------------------------------------------------------------------


class Redis:
    """A server, and the few commands that a test gives it, in its own protocol."""

    def __init__(self, where: Path, *prefix: str):
        """prefix: the command that runs it, if any."""
        self.socket_path = str(where / "socket")
        command = [
            *prefix, "redis-server", "--port", "0", "--unixsocket", self.socket_path, "--dir", str(where), "--save", "",
            # It would write patterns all over memory that is not its own, while threads there work.
            "--crash-memcheck-enabled", "no",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._socket = socket.socket(socket.AF_UNIX)
        wait_until(self._connects, "it listens")
        self._input = self._socket.makefile("rb")

    def _connects(self) -> bool:
        """Between bind() and listen() the socket is there, and refuses."""
        assert self.process.poll() is None, "it has ended"
        return self._socket.connect_ex(self.socket_path) == 0

    def pipeline(self, commands: list[tuple]) -> list:
        words = [[str(w).encode() if not isinstance(w, bytes) else w for w in c] for c in commands]
        self._socket.sendall(
            b"".join(
                b"*%d\r\n" % len(c) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in c) for c in words
            )
        )
        return [self._reply() for _ in commands]

    def __call__(self, *command):
        return self.pipeline([command])[0]

    def _reply(self):
        line = self._input.readline()
        if not line:
            raise ConnectionError("the server has gone")
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            length = int(rest)
            return self._input.read(length + 2)[:-2] if length >= 0 else None
        return int(rest) if kind == b":" else rest.decode()

    def end(self) -> None:
        self._socket.sendall(b"*2\r\n$8\r\nSHUTDOWN\r\n$6\r\nNOSAVE\r\n")
        assert self.process.wait(TIMEOUT) == 0

    def kill(self) -> None:
        """Whatever is left of it goes."""
        self.process.kill()
        self.process.wait(TIMEOUT)
        self.process.stderr.close()
        self._socket.close()


def value(key: int, version: int) -> bytes:
    """2 KiB, of which half does not compress."""
    noise = random.Random(key * 1000 + version).randbytes(1024)
    return noise + b"%08d-%08d" % (key, version) * 57


KEYS = 24_000


DIRECT, ZSWAP = ("--window", "16M"), ("--mode", "zswap", "--dram", "16M")


@pytest.fixture
def redis(tmp_path, request) -> Iterator[Redis]:
    need("redis-server")
    mode = getattr(request, "param", DIRECT)
    # 50 MiB of values at 2:1, in 40 MiB of real capacity.
    options = (*mode, "--advertised", "1G", "--real", "40M", "--report", str(tmp_path / "report.json"))
    server = Redis(tmp_path, COMMAND, "run", *options, "--")
    yield server
    server.kill()


class TestRedis:
    def fill(self, redis: Redis, version: int, first: int = 0, count: int = KEYS) -> None:
        for start in range(first, first + count, 500):
            keys = range(start, min(start + 500, first + count))
            assert set(redis.pipeline([("SET", k, value(k, version)) for k in keys])) == {"OK"}

    def check(self, redis: Redis, versions) -> None:
        for start in range(0, KEYS, 500):
            keys = range(start, start + 500)
            found = redis.pipeline([("GET", k) for k in keys])
            assert found == [value(k, versions(k)) for k in keys]

    @pytest.mark.parametrize("redis", (DIRECT, ZSWAP), indirect=True, ids=("direct", "zswap"))
    def test_snapshot(self, redis: Redis, tmp_path) -> None:
        """BGSAVE's child writes every key as it was, while the parent goes on changing them."""
        self.fill(redis, 1)
        self.check(redis, lambda key: 1)
        assert redis("BGSAVE") == "Background saving started"
        self.fill(redis, 2, 0, KEYS // 8)
        wait_until(lambda: b"rdb_bgsave_in_progress:0" in redis("INFO", "persistence"), "it is saved")
        assert b"rdb_last_bgsave_status:ok" in redis("INFO", "persistence")
        self.check(redis, lambda key: 2 if key < KEYS // 8 else 1)
        redis.end()
        report = report_of(tmp_path / "report.json")
        assert report["held"] > 30 << 20 and report["ratio"] > 1.5
        assert (report["dropped_writes"], report["poisoned"]) == (0, 0)
        # The snapshot, in a server that is not on a device at all.
        bare = Redis(tmp_path)
        try:
            wait_until(lambda: bare("DBSIZE") == KEYS, "it has loaded the snapshot")
            self.check(bare, lambda key: 1)
        finally:
            bare.kill()

    def test_poison(self, redis: Redis, tmp_path) -> None:
        """Driven over the real capacity it meets poison, and dies of it: never a wrong value."""
        self.fill(redis, 1, 0, 8000)
        with pytest.raises((ConnectionError, BrokenPipeError)):
            for start in range(8000, 400_000, 500):
                keys = range(start, start + 500)
                redis.pipeline([("SET", k, random.Random(k).randbytes(2048)) for k in keys])
                old = range(start - 8000, start - 7500)
                for k, found in zip(old, redis.pipeline([("GET", k) for k in old])):
                    expected = value(k, 1) if k < 8000 else random.Random(k).randbytes(2048)
                    assert found == expected
        redis.process.wait(TIMEOUT)
        told = redis.process.stderr.read()
        assert "SIGBUS" in told or "SIGSEGV" in told or "SIGABRT" in told, told
        report = report_of(tmp_path / "report.json")
        assert report["dropped_writes"] > 0 and report["poisoned"] > 0
        assert report["lthresh"] >= 1, "it was warned"
