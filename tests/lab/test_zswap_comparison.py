"""The comparison of the two zswaps: what is compared, and how it ends. The kernel's half is run for real."""

import importlib.util
import signal

import pytest
from swap_host import compressor, host  # noqa: F401

from cram_emu.lab import swaparea, zswap_comparison
from cram_emu.lab.bench import SideFailed
from cram_emu.lab.undo import Unavailable
from cram_emu.lab.workload import ORDINARY
from cram_emu.lab.zswap_comparison import COUNTED, STAGES, Setup, differences

SETUP = Setup("lz4", ORDINARY)


def figures(**changed: int) -> dict[str, int]:
    """Of a side; 1000 pages of 1000 bytes."""
    told = {f"{stage}_{name}": 0 for stage in STAGES for name in COUNTED}
    for stage in STAGES:
        told |= {f"{stage}_stored_pages": 1000, f"{stage}_pool_total_size": 1_000_000}
    return told | {"pages": 1200, "zero_pages": 200, "seconds": 1.0} | changed


@pytest.fixture
def sides(monkeypatch) -> dict:
    """Stands in for both; what they give can be changed."""
    given = {"kernel": figures(), "emulated": figures()}
    monkeypatch.setattr(zswap_comparison, "kernel", lambda: (SETUP, given["kernel"]))
    monkeypatch.setattr(zswap_comparison, "emulated", lambda setup: given["emulated"])
    return given


class TestKernel:
    """The kernel's half: every page is accounted for, and the host is as it was."""

    def test_figures(self, compressor):  # noqa: F811
        before = host()
        setup, told = zswap_comparison.kernel()
        assert host() == before
        assert setup.compressor in ("lz4", compressor)
        for stage in STAGES:
            assert {f"{stage}_{name}" for name in COUNTED} <= told.keys()
        # A few pages more: some of the interpreter's may go the same way.
        stored = told["pages"] - told["zero_pages"]
        assert stored <= told["all_stored_pages"] < stored + 64
        assert abs(told["all_stored_zero_pages"] - told["zero_pages"]) < 64
        assert told["pages"] * 0.8 < told["trace_stored_pages"] + told["trace_stored_zero_pages"]
        assert told["trace_zswpin"] > 0
        assert told["all_zswpin"] == told["trace_zswpin"]
        refused = [value for name, value in told.items() if "reject" in name]
        assert sum(refused) == 0

    def test_interrupted(self, compressor, start_child):  # noqa: F811
        """While the workload runs: it ends, and the host is as it was."""
        before = host()
        child = start_child(
            "import sys; from cram_emu.lab.zswap_comparison import main; print(1, flush=True); sys.exit(main())"
        )
        child.stdout.readline()
        while not swaparea.swaps():
            assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=30)
        assert child.returncode == 143
        assert host() == before


class TestAgreement:
    """Within 2 % in everything that is compared, or not: the exit code says so."""

    def test_same(self, sides, capsys):
        assert zswap_comparison.main() == 0
        assert "too far" not in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("name", "value", "code"),
        (
            ("all_pool_total_size", 1_019_999, 0),
            ("all_pool_total_size", 1_020_001, 1),
            ("all_pool_total_size", 979_999, 1),
            ("trace_pool_total_size", 1_019_999, 0),
            ("trace_pool_total_size", 1_020_001, 1),
            ("all_stored_pages", 979, 1),
        ),
    )
    def test_tolerance(self, sides, capsys, name, value, code):
        sides["emulated"] = figures(**{name: value})
        assert zswap_comparison.main() == code
        assert ("too far" in capsys.readouterr().out) is bool(code)

    def test_other_victims(self, sides):
        """After the workload more or fewer pages may be stored: the bytes of each are compared."""
        sides["emulated"] = figures(trace_stored_pages=900, trace_pool_total_size=900_000)
        assert zswap_comparison.main() == 0

    def test_signed(self):
        """More bytes here than in the kernel are a positive difference."""
        ours = figures(all_pool_total_size=1_010_000)
        by_name = {d.name: d.relative for d in differences(figures(), ours)}
        assert by_name["pool_total_size, every page pushed out"] == pytest.approx(0.01)


class TestReport:
    """Each statistic of both sides stands in one line."""

    def test_lines(self, sides, capsys):
        sides["kernel"] = figures(all_zswpout=4321)
        sides["emulated"] = figures(all_zswpout=5432)
        zswap_comparison.main()
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert ["zswpout", "4,321", "5,432"] in lines
        assert ["pool_total_size", "1,000,000", "1,000,000"] in lines

    def test_other_codec(self, capsys, sides, monkeypatch):
        """A kernel without lz4 in zswap is told, and what follows from it."""
        other = Setup("lzo", zswap_comparison.ANY_CODEC)
        monkeypatch.setattr(zswap_comparison, "kernel", lambda: (other, sides["kernel"]))
        zswap_comparison.main()
        assert "this kernel's zswap has no lz4" in capsys.readouterr().out

    def test_twin_lz4(self, capsys, sides):
        zswap_comparison.main()
        assert "has no lz4" not in capsys.readouterr().out


class TestFailures:
    """What cannot be compared is skipped with the reason; what fails is an error."""

    def test_skipped(self, sides, monkeypatch, capsys):
        def refuse() -> None:
            raise Unavailable("not root")

        monkeypatch.setattr(zswap_comparison, "kernel", refuse)
        assert zswap_comparison.main() == 77
        assert capsys.readouterr().err == "skipped: no kernel zswap to compare with: not root\n"

    def test_side_failed(self, sides, monkeypatch, capsys):
        def fail(setup: Setup) -> None:
            raise SideFailed("the process that measures emulated_zswap exited with 1: page 7 is wrong")

        monkeypatch.setattr(zswap_comparison, "emulated", fail)
        assert zswap_comparison.main() == 1
        assert "page 7 is wrong" in capsys.readouterr().err


def test_both(compressor):  # noqa: F811
    """Our zswap against this kernel's."""
    if importlib.util.find_spec("cram_emu.host") is None:
        pytest.skip("no cram_emu.host: managed memory is not there yet")
    assert zswap_comparison.main() == 0
