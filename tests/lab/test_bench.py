"""The bench: order of the measurements, what is made of their figures, and how failures are told.

The measurements themselves are stood in for, but in TestSides, which runs each one small.
"""

import math
import signal
from pathlib import Path

import pytest
from swap_host import compressor  # noqa: F401

from cram_emu.errors import NotPermitted, NotSupported
from cram_emu.lab import bench, cgroup, kernel_zswap, swaparea, zram
from cram_emu.lab.bench import MIB, NotEnoughMemory, Plan, Result, SideFailed, targets
from cram_emu.lab.sides import JOBS

SIDE = {
    "fill": 1000.0,
    "scan": 1000.0,
    "read_mean": 10.0,
    "read_p99": 100.0,
    "read_rate": 100.0,
    "write_mean": 10.0,
    "write_rate": 100.0,
}


def pretended(job: str, environment=None, /, **arguments) -> dict[str, float]:
    """Figures that reach nothing by themselves."""
    if job in ("device", "zram", "managed", "zswap", "program"):
        return dict(SIDE)
    if job == "limits":
        return {"decompress": 1000.0, "store": 1.0, "copy": 1.0, "copy_fresh": 1.0}
    if job == "hot":
        times = {f"{side}_{pair}": 1.0 for side in ("device", "ordinary") for pair in range(10)}
        return times | {f"warm_up_{pair}": 1.0 for pair in range(10)}
    if job == "hot_program":
        return {"warm_up": 1.0, "measured": 1.0}
    if job == "callbacks":
        return {f"{what}_{how}": 1.0 for what in ("freed", "approved") for how in ("page", "batch")}
    if job == "reader":
        return {f"{name}_{pair}": 1.0 for name in ("quiet", "beside", "files") for pair in range(5)}
    return {
        "idle": {"memory": 1.0 * MIB, "create_ms": 1.0},
        "metadata": {"metadata_per_page": 20.0, "sectors": 17, "pages": 1},
        "full": {"payload": 98, "real": 100},
    }[job]


@pytest.fixture
def ran(monkeypatch) -> list[tuple]:
    """Stands in for the measurements, and for zram; the list is what was measured, in order."""
    order: list[tuple] = []

    def run_child(job: str, environment=None, /, **arguments) -> dict[str, float]:
        noted = arguments.get("threads")
        order.append((job, noted if environment is None else "placed"))
        return pretended(job, **arguments)

    monkeypatch.setattr(bench, "run_child", run_child)
    monkeypatch.setattr(bench, "_run_zram", lambda plan, arguments: run_child("zram", **arguments))
    monkeypatch.setattr(bench, "_run_zswap", lambda plan, result, arguments: run_child("zswap", **arguments))
    monkeypatch.setattr(zram, "require", lambda: None)
    monkeypatch.setattr(kernel_zswap, "require", lambda: None)
    monkeypatch.setattr(bench, "_require_tree", lambda: None)
    monkeypatch.setattr(bench, "_seconds_of", lambda command: 0.07 if "run" in command else 0.02)
    return order


def silent(done: int, steps: int, note: str) -> None:
    pass


class TestPlan:
    """A bench's size is refused, by name, where it cannot work."""

    @pytest.mark.parametrize("size", (0, 256 * MIB, 513 * MIB))
    def test_size(self, size):
        with pytest.raises(ValueError, match=f"size {size}"):
            Plan(size=size)

    def test_rounds(self):
        with pytest.raises(ValueError, match="rounds 0"):
            Plan(rounds=0)

    def test_default(self):
        """The sizes of the published comparison."""
        plan = Plan()
        assert (plan.size, plan.window, plan.hot) == (2048 * MIB, 256 * MIB, 128 * MIB)
        assert (plan.rounds, plan.accesses) == (5, 100_000)


class TestOrder:
    """Sides alternate ABBA, thread counts within a round; then the rest."""

    def test_abba(self, ran):
        bench.run(Plan(rounds=2), silent)
        assert ran == [
            ("device", 1), ("zram", 1), ("device", 2), ("zram", 2), ("managed", 1), ("zswap", 1),
            ("program", "placed"), ("limits", None),
            ("zram", 1), ("device", 1), ("zram", 2), ("device", 2), ("zswap", 1), ("managed", 1),
            ("program", "placed"), ("limits", None),
            ("hot", None), ("hot", None),
            *5 * [
                ("hot_program", "placed"), ("hot_program", None),
                ("hot_program", None), ("hot_program", "placed"),
            ],
            ("callbacks", None), ("reader", None),
            ("idle", None), ("idle", None), ("metadata", None), ("full", None),
        ]  # fmt: skip

    def test_report(self, ran):
        """Steps are reported one by one, up to all of them."""
        seen = []
        bench.run(Plan(rounds=1), lambda *step: seen.append(step))
        assert [done for done, _, _ in seen] == list(range(len(seen)))
        assert {steps for _, steps, _ in seen} == {len(seen) - 1}
        assert seen[0][2] == "round 1 of 1: device, 1 thread"

    def test_same_peak(self, ran, monkeypatch):
        """Both sides touch the same amount first."""
        peaks = {}
        monkeypatch.setattr(zram, "require", lambda: None)
        monkeypatch.setattr(
            bench, "_run_zram", lambda plan, arguments: peaks.update(zram=arguments["peak"]) or SIDE
        )

        def run_child(job: str, environment=None, /, **arguments) -> dict[str, float]:
            if job == "device":
                peaks[job] = arguments["peak"]
            return pretended(job)

        monkeypatch.setattr(bench, "run_child", run_child)
        bench.run(Plan(rounds=1), silent)
        assert peaks["device"] == peaks["zram"] >= 256 * MIB + 2048 * MIB // 4


class TestLeftOut:
    """Without zram there is no zram column, a reason, and everything else."""

    def check(self, result: Result, reason: str) -> None:
        assert result.left_out == {"zram": reason}
        assert {side for side, _ in result.sides} == {"device", "managed", "zswap"}
        over_zram = [target for target in targets(result) if "zram" in target.name]
        assert len(over_zram) == 15
        assert all(target.measured is None and target.reached is None for target in over_zram)
        assert all(t.reached is not None for t in targets(result) if "zram" not in t.name)

    def test_from_the_start(self, ran, monkeypatch):
        def refuse() -> None:
            raise zram.Unavailable("not root")

        monkeypatch.setattr(zram, "require", refuse)
        self.check(bench.run(Plan(rounds=2), silent), "not root")
        assert ("zram", 1) not in ran

    def test_on_the_way(self, ran, monkeypatch):
        """A zram that stops working half way takes its earlier figures with it."""
        calls = []

        def refuse_later(plan: Plan, arguments: dict) -> dict[str, float]:
            calls.append(arguments)
            if len(calls) > 2:
                raise zram.Unavailable("gone")
            return dict(SIDE)

        monkeypatch.setattr(bench, "_run_zram", refuse_later)
        self.check(bench.run(Plan(rounds=2), silent), "gone")
        assert len(calls) == 3

    def test_twin_with_zram(self, ran):
        result = bench.run(Plan(rounds=2), silent)
        assert result.left_out == {}
        assert all(target.measured is not None for target in targets(result))


class TestTargets:
    """Medians are compared, and each target can be missed."""

    @pytest.fixture
    def result(self, ran) -> Result:
        return bench.run(Plan(rounds=3), silent)

    def measured(self, result: Result) -> dict[str, bench.Target]:
        return {target.name: target for target in targets(result)}

    def test_median(self, result):
        for figures, fill in zip(result.sides["device", 1], (2600.0, 9000.0, 100.0)):
            figures["fill"] = fill
        assert self.measured(result)["fill, over zram"].measured == 2.6
        assert result.spread("device", 1, "fill") == bench.Spread(2600.0, 100.0, 9000.0)

    @pytest.mark.parametrize(
        ("name", "figure", "reaching", "missing"),
        (
            ("fill, over zram", "fill", 2500.0, 2499.0),
            ("sequential read, over zram", "scan", 3500.0, 3499.0),
            ("random read mean, over zram", "read_mean", 6.0, 6.1),
            ("random read p99, over zram", "read_p99", 15.0, 15.1),
            ("random write mean, over zram", "write_mean", 8.5, 8.6),
            ("sequential read, over cold lz4", "scan", 500.0, 499.0),
        ),
    )
    def test_reach(self, result, name, figure, reaching, missing):
        for value, reached in ((reaching, True), (missing, False)):
            for figures in result.sides["device", 1]:
                figures[figure] = value
            assert self.measured(result)[name].reached is reached

    @pytest.mark.parametrize(
        ("name", "figure", "reaching", "missing"),
        (
            ("fill, over zram", "fill", 1000.0, 999.0),
            ("random read p99, over zram", "read_p99", 25.0, 25.1),
            ("random write mean, over zram", "write_mean", 10.0, 10.1),
            ("sequential read, over zswap", "scan", 1000.0, 999.0),
        ),
    )
    def test_managed(self, result, name, figure, reaching, missing):
        """Managed memory is held to what the kernel does."""
        for value, reached in ((reaching, True), (missing, False)):
            for figures in result.sides["managed", 1]:
                figures[figure] = value
            assert self.measured(result)[f"managed memory's {name}"].reached is reached

    def test_program(self, result):
        """A program's figures are held to the same."""
        name = "a program's fill, over zram"
        for value, reached in ((2500.0, True), (2499.0, False)):
            for figures in result.program:
                figures["fill"] = value
            assert self.measured(result)[name].reached is reached

    def test_program_hot(self, result):
        name = "a program's hot set, over ordinary memory"
        assert self.measured(result)[name].reached
        for placed, bare in result.program_hot:
            placed["measured"] = 1.06 * bare["measured"]
        assert not self.measured(result)[name].reached

    def test_start(self, result):
        name = "start of run, over the interpreter's"
        assert self.measured(result)[name].measured == pytest.approx(50)
        result.start = [(ours + 0.001, bare) for ours, bare in result.start]
        assert not self.measured(result)[name].reached

    def test_no_program(self, ran, monkeypatch):
        """Where nothing can be placed that is told, and the rest is measured."""

        def refuse(*arguments) -> None:
            raise NotSupported("the shim is not built")

        monkeypatch.setattr(bench.launch, "environment", refuse)
        result = bench.run(Plan(rounds=1), silent)
        assert result.program_left_out == "the shim is not built"
        assert all((t.measured is None) == ("program" in t.name or "run," in t.name) for t in targets(result))
        assert ("program", "placed") not in ran and ("reader", None) in ran

    @pytest.mark.parametrize(
        ("name", "figure", "reaching", "missing"),
        (
            ("random read rate, 2 threads over 1", "read_rate", 130.0, 129.0),
            ("random write rate, 2 threads over 1", "write_rate", 100.0, 99.0),
        ),
    )
    def test_threads(self, result, name, figure, reaching, missing):
        for value, reached in ((reaching, True), (missing, False)):
            for figures in result.sides["device", 2]:
                figures[figure] = value
            assert self.measured(result)[name].reached is reached

    @pytest.mark.parametrize(("writeback", "reach"), ((False, 1.02), (True, 1.10)))
    def test_hot(self, result, writeback, reach):
        """The median of the pairs' ratios, not the ratio of medians."""
        name = f"hot set, write-back {'on' if writeback else 'off'}, over ordinary memory"
        figures = result.hot[writeback]
        assert self.measured(result)[name].reached
        for pair in range(10):
            figures[f"ordinary_{pair}"] = 1.0 + pair
            figures[f"device_{pair}"] = (1.0 + pair) * (reach + 0.001)
        assert not self.measured(result)[name].reached

    def test_memory(self, result):
        """One figure too large, or too small, for each."""
        assert all(self.measured(result)[name].reached for name in self.MEMORY)
        result.memory = {
            "idle": {"memory": 8.1 * MIB},
            "huge": {"memory": 32.1 * MIB, "create_ms": 101.0},
            "metadata": {"metadata_per_page": 84.1, "sectors": 17, "pages": 1},
            "full": {"payload": 94.9, "real": 100},
        }
        assert not any(self.measured(result)[name].reached for name in self.MEMORY)

    MEMORY = (
        "idle 8 GiB device",
        "idle 1 TiB device",
        "creation of a 1 TiB device",
        "metadata",
        "payload of a full device",
    )


class TestFailures:
    """A measurement that fails ends the bench with one error that says which and how."""

    def test_error(self):
        with pytest.raises(SideFailed, match="measures full exited with 1: .*InvalidArgument: size -4"):
            bench.run_child("full", real=-1, window=MIB)

    def test_killed(self, monkeypatch, tmp_path):
        """As by the kernel's OOM killer."""
        shell = tmp_path / "shell"
        shell.write_text("#!/bin/sh\nkill -9 $$\n")
        shell.chmod(0o755)
        monkeypatch.setattr(bench.sys, "executable", str(shell))
        with pytest.raises(SideFailed, match="measures hot was killed by SIGKILL: it said nothing"):
            bench.run_child("hot")

    def test_memory(self, ran, monkeypatch):
        monkeypatch.setattr(bench, "available", lambda: 3000 * MIB)
        with pytest.raises(NotEnoughMemory, match="2 GiB of pages need 3.2 GiB"):
            bench.run(Plan(), silent)
        assert ran == []
        assert bench.run(Plan(size=1024 * MIB, rounds=1), silent).sides

    def test_interrupt_ends_the_child(self, start_child):
        """Ctrl-C ends the process that measures too, though it has a session of its own."""
        child = start_child(
            """
            from cram_emu.lab import bench
            size = 64 << 20
            bench.run_child("hot", size=size, window=size, writeback=0, accesses=10**7, pairs=1000)
            """
        )
        while not (found := children(child.pid)):
            assert child.poll() is None
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=30)
        assert child.returncode == -signal.SIGINT
        assert not Path("/proc", str(found[0])).exists()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.usefixtures("skip_unless_userfaultfd")
class TestSides:
    """Each measurement, small: it verifies what it measured, and its figures are numbers."""

    SMALL = {"size": 64 * MIB, "peak": MIB, "accesses": 1000}

    def check(self, job: str, *environment, **arguments) -> dict[str, float]:
        figures = bench.run_child(job, *environment, **arguments)
        assert all(math.isfinite(figure) and figure >= 0 for figure in figures.values())
        return figures

    @pytest.mark.parametrize("threads", (1, 2))
    def test_device(self, threads):
        figures = self.check(
            "device", real=32 * MIB, window=8 * MIB, threads=threads, **self.SMALL
        )
        # The store (1,088 bytes a page) and the frames, and little else.
        assert 17 * MIB + 8 * MIB < figures["memory"] < 17 * MIB + 8 * MIB + 8 * MIB

    def test_device_too_small(self):
        """A device that drops writes gives no figures."""
        with pytest.raises(SideFailed, match="measures device was killed by SIGBUS"):
            bench.run_child("device", real=8 * MIB, window=8 * MIB, threads=1, **self.SMALL)

    def test_zram(self):
        try:
            zram.require()
        except zram.Unavailable as reason:
            pytest.skip(f"no zram swap here: {reason}")
        plan = Plan(size=512 * MIB)
        small = {"size": plan.size, "peak": MIB, "accesses": 1000, "threads": 1}
        figures = bench._run_zram(plan, small)
        assert plan.window / 2 < figures["memory_group"] <= plan.window
        assert 100 * MIB < figures["memory_store"] < 160 * MIB
        assert swaparea.swaps() == []

    def test_zswap(self, compressor):
        """The job of zram's side on kernel zswap, whatever compressor it has."""
        small = {"size": 512 * MIB, "peak": MIB, "accesses": 1000, "threads": 1}
        with (
            kernel_zswap.swap(640 * MIB, compressor) as swap,
            cgroup.memory_group(192 * MIB, cgroup.memory_hierarchy()) as group,
        ):
            figures = self.check(
                "zswap",
                procs=str(group.procs),
                usage=str(group.usage),
                debugfs=str(swap.debugfs),
                tables=swap.tables,
                **small,
            )
        assert 64 * MIB < figures["memory_group"] <= 192 * MIB
        assert 80 * MIB < figures["memory_store"] < 160 * MIB
        assert swaparea.swaps() == []

    def test_managed(self):
        figures = self.check("managed", size=64 * MIB, real=32 * MIB, dram=8 * MIB, peak=MIB, accesses=1000, threads=1)
        assert figures["memory_object"] < 32 * MIB

    def test_callbacks(self):
        figures = self.check("callbacks", pages=512, times=1)
        assert set(figures) == {"freed_page", "freed_batch", "approved_page", "approved_batch"}

    def test_limits(self):
        figures = self.check("limits", size=64 * MIB, store=32 * MIB)
        assert 16 * MIB < figures["store"] < 18 * MIB

    def test_program(self):
        """The twin: outside cram-emu run the same job leaves the device alone."""
        small = {"size": 64 * MIB, "accesses": 1000}
        for placed in (True, False):
            with bench._placed(128 * MIB, 64 * MIB, 8 * MIB) as (dev, environment):
                self.check("program", *([environment] if placed else []), **small)
                assert (dev.stats.peak > 12 * MIB) is placed

    def test_hot_program(self):
        assert set(self.check("hot_program", size=16 * MIB, accesses=10_000)) == {"warm_up", "measured"}

    @pytest.mark.parametrize("writeback", (0, 0.1))
    def test_hot(self, writeback):
        figures = self.check(
            "hot", size=16 * MIB, window=32 * MIB, writeback=writeback, accesses=10_000, pairs=2
        )
        assert set(figures) == {"device_0", "device_1", "ordinary_0", "ordinary_1"} | {
            "warm_up_0",
            "warm_up_1",
        }

    def test_reader(self):
        try:
            bench._require_tree()
        except (NotPermitted, NotSupported) as reason:
            pytest.skip(str(reason))
        figures = self.check("reader", size=16 * MIB, window=2 * MIB, accesses=20_000, pairs=2)
        assert set(figures) == {
            f"{name}_{pair}" for name in ("quiet", "beside", "files") for pair in range(2)
        }

    def test_memory(self):
        idle = self.check("idle", advertised=8 << 30, real=1 << 30)
        assert 0 < idle["memory"] < 8 * MIB
        metadata = self.check("metadata", size=64 * MIB, window=8 * MIB)
        assert 8 <= metadata["metadata_per_page"]
        full = self.check("full", real=4 * MIB, window=MIB)
        assert full["dropped_writes"] > 0
        assert full["payload"] <= full["used"] <= full["real"]

    def test_all(self):
        """No job is without a test: here, and of the two that compare zswaps in test_zswap_comparison.py."""
        assert set(JOBS) == {
            "device", "managed", "callbacks", "zram", "zswap", "program", "kernel_zswap", "emulated_zswap", "limits", "hot", "hot_program",
            "reader", "idle", "metadata", "full",
        }  # fmt: skip
