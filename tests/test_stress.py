"""Many threads at once on one mapping with the smallest window: every byte is right, or poison.

Oracles: a copy of the contents that children/stress.c keeps in ordinary memory, /proc/self/pagemap,
and the counters computed anew from the page map.
"""

import functools
import json
import random
import signal
import subprocess
import threading

import numpy as np
import pytest
from samples import PAGE, entropy, run_threads
from support import CHILD_TIMEOUT, delivery, program  # noqa: F401

from cram_emu import Device

WORKERS = 4
OPERATIONS = 10000


@pytest.fixture
def stress(program, delivery):
    """Runs children/stress.c; its standard output and exit status."""

    def run(mode: str, *args) -> tuple[int, str]:
        command = [program("stress"), delivery, mode, str(WORKERS), str(OPERATIONS), *args]
        result = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=CHILD_TIMEOUT, check=False
        )
        return result.returncode, result.stdout

    return run


class TestEverythingAtOnce:
    """Faults, flushes, evictions, write-back, page operations, poison, pins and signals."""

    def test_with_room_for_all(self, stress):
        returncode, output = stress("roomy", "1")
        assert returncode == 0, output
        counts = json.loads(output)
        assert counts["evicted"] > 10000
        assert counts["machine_checks"] > 100
        assert counts["poison_faults"] == counts["machine_checks"]
        assert counts["lost"] == 0

    def test_with_too_little_room(self, stress):
        """Writes are dropped all the time: what is not right is poison, and counted as dropped."""
        returncode, output = stress("full", "2")
        assert returncode == 0, output
        counts = json.loads(output)
        assert counts["machine_checks"] > 100
        assert counts["repairs"] > 100
        assert counts["lost"] > 0

    def test_a_single_wrong_bit_is_noticed(self, stress):
        returncode, output = stress("roomy", "3", "damage")
        assert returncode == 1
        assert output.startswith("wrong: mapped: page 8 offset 1234: ")


class TestPythonThreads:
    """Threads of Python code on one buffer see what each has written."""

    def test_numpy(self, delivery):
        pages, rounds = 512, 40

        with Device(pages * PAGE, pages * PAGE) as dev:
            with dev.map(window="64K", delivery=delivery, writeback=0.001) as mapping:

                def work(thread: int) -> None:
                    # Page by page in turn: the threads share every range that the pager works on.
                    array = np.frombuffer(mapping, np.uint64).reshape(-1, PAGE // 8)
                    mine = array[thread::WORKERS]
                    choose = np.random.default_rng(thread)
                    model = np.zeros_like(mine)
                    for _ in range(rounds):
                        rows = choose.choice(len(mine), 32, replace=False)
                        model[rows] = choose.integers(0, 1 << 63, (32, PAGE // 8), dtype=np.uint64)
                        mine[rows] = model[rows]
                        assert np.array_equal(mine, model)

                run_threads(*(functools.partial(work, i) for i in range(WORKERS)))

    def test_mappings_come_and_go(self, delivery):
        """Under page operations that never stop and never see anything but the contents."""
        pages = 96
        contents = b"".join(map(entropy, range(pages)))
        with Device("1M", "1M") as dev:
            dev.write(0, contents)
            done = threading.Event()

            def use(thread: int) -> None:
                share = pages // WORKERS * PAGE
                mine = contents[thread * share : (thread + 1) * share]
                for _ in range(60):
                    with dev.map(thread * share, share, window="64K", delivery=delivery) as mapping:
                        assert mapping[:] == mine
                        mapping[:] = mine

            def read() -> None:
                while not done.is_set():
                    assert dev.read(0, len(contents)) == contents

            def write() -> None:
                while not done.is_set():
                    dev.write(0, contents)

            def work() -> None:
                try:
                    run_threads(*(functools.partial(use, i) for i in range(WORKERS)))
                finally:
                    done.set()

            run_threads(work, read, write)
            assert dev.read(0, len(contents)) == contents
            assert dev.stats.dirty_frames == 0


class TestTwoProcesses:
    """Two processes, each with half of a device mapped, share its media and nothing else."""

    PROGRAM = """
        import random, sys
        from samples import PAGE, entropy, noise
        from cram_emu import Device

        path, half, delivery = sys.argv[1], int(sys.argv[2]), sys.argv[3]
        device = Device.open(path)
        length = device.params.advertised // 2
        model = bytearray(length)
        choose = random.Random(half)
        options = {"window": "64K", "delivery": delivery, "writeback": 0.001}
        with device.map(half * length, length, **options) as mapping:
            print("ready", flush=True)
            sys.stdin.readline()
            for step in range(3000):
                at = choose.randrange(length // PAGE) * PAGE
                if choose.random() < 0.1:
                    device.discard(half * length + at, PAGE)
                    model[at : at + PAGE] = bytes(PAGE)
                elif choose.random() < 0.5:
                    data = entropy(step, choose.randrange(1, PAGE))
                    mapping[at : at + PAGE] = model[at : at + PAGE] = data
                elif mapping[at : at + PAGE] != model[at : at + PAGE]:
                    sys.exit(f"step {step}: wrong")
        sys.exit(device.read(half * length, length) != model)
    """

    def test_halves(self, tmp_path, start_child, delivery):
        path = tmp_path / "device"
        with Device("2M", "2M", path=path) as dev:
            children = [start_child(self.PROGRAM, path, half, delivery) for half in range(2)]
            for child in children:
                assert child.stdout.readline() == "ready\n"
            for child in children:
                child.stdin.write("\n")
                child.stdin.flush()
            for child in children:
                assert child.wait(CHILD_TIMEOUT) == 0, child.stderr.read()
            sectors = sum(dev.page(at).sectors for at in range(0, 2 << 20, PAGE))
            assert dev.stats.used == sectors * dev.params.sector
            assert dev.stats.dirty_frames == 0
            assert dev.stats.poisoned == 0


class TestUnmapUnderThreads:
    """A thread that goes on by raw addresses dies by a signal, having seen nothing wrong."""

    @pytest.mark.parametrize("attempt", range(5))
    def test_death(self, program, delivery, attempt):
        result = subprocess.run(
            [program("unmap"), delivery, str(1 + attempt)], timeout=CHILD_TIMEOUT, check=False
        )
        assert result.returncode in (-signal.SIGSEGV, -signal.SIGBUS)


class TestFlushUnderThreads:
    """What was dirty when a flush began is in the media when it returns, whoever else flushes."""

    def test_each_flush_keeps_its_promise(self, delivery):
        with Device("16M", "16M") as dev:
            with dev.map(window="1M", delivery=delivery, writeback=0.001) as mapping:

                def work(thread: int) -> None:
                    choose = random.Random(thread)
                    for _ in range(1000):
                        # No page is another thread's, nor right behind one.
                        page = (choose.randrange(512) * WORKERS + thread) * 2
                        mapping[page * PAGE] = choose.randrange(1, 256)
                        mapping.flush()
                        assert not dev.page(page * PAGE).dirty

                run_threads(*(functools.partial(work, i) for i in range(WORKERS)))
