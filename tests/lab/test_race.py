"""The race experiment: what holds however fast the machine is. Races that may end either way are the command's to show."""

import pytest

from cram_emu.errors import InvalidArgument
from cram_emu.lab import race
from cram_emu.lab.loops import WrongContents
from cram_emu.lab.race import Cell, Plan, Run, Word

NEVER_HEARS = Word("lost", None)
READS_REGISTERS = Word("reads registers", None, live_registers=True)
# It comes after everything is over.
TOO_LATE = Word("late", 60_000)
# Any two questions are far enough apart.
ASKS = Word("asks", None, query_interval=0.0)


def outcome(word: Word, margin: float = 10) -> Run:
    (cell,) = race.run(Plan(real=4 << 20, margins=(margin,), words=(word,), runs=1))
    (run,) = cell.runs
    assert run.lost == run.dropped_writes
    assert run.stored + run.elsewhere == Plan(real=4 << 20).pages
    return run


@pytest.mark.usefixtures("skip_unless_userfaultfd")
class TestOutcomes:
    """Who does not hear in time loses pages; who looks at the registers at each store loses none."""

    @pytest.mark.parametrize("word", (NEVER_HEARS, TOO_LATE))
    def test_not_heard(self, word):
        run = outcome(word)
        assert run.lost > 0
        assert run.elsewhere == 0
        assert run.heard_ms is None

    @pytest.mark.parametrize("margin", (0.5, 40))
    def test_twin_registers(self, margin):
        run = outcome(READS_REGISTERS, margin)
        assert run.lost == 0
        assert run.elsewhere > 0

    def test_twin_asked_before_each_batch(self):
        """A margin of more than a batch is enough then."""
        run = outcome(ASKS, 50)
        assert run.lost == 0
        assert run.elsewhere > 0

    def test_asked_too_late(self):
        """And one of less than a page is not: what the answer said was true when it was given."""
        assert outcome(ASKS, 0.01).lost > 0

    def test_loss_that_is_not_counted(self, monkeypatch):
        """A lost page more than the device has counted is noticed."""
        found = race._on_device

        def more(plan, memory, device):
            stored, lost = found(plan, memory, device)
            return stored, lost | {0}

        monkeypatch.setattr(race, "_on_device", more)
        with pytest.raises(WrongContents, match="1 pages are lost, and 0 writes"):
            outcome(READS_REGISTERS)

    def test_reader_dies(self, run_child, monkeypatch):
        """What is called lost here is poison to a reader through the memory, too: he is killed by SIGBUS."""
        child = run_child(
            """
            from cram_emu.lab import race
            def read(plan, memory, lost, contents):
                print(len(lost), flush=True)
                memory[min(lost) * 4096]
                print("alive")
            race._verify = read
            race.run(race.Plan(real=4 << 20, margins=(10,), words=(race.Word("lost", None),), runs=1))
            """
        )
        assert child.returncode == -7
        assert int(child.stdout) > 0


class TestSuffices:
    """The least margin from which on nothing is lost."""

    @staticmethod
    def cells(*lost: int) -> list[Cell]:
        word = race.WORDS[0]
        return [Cell(word, margin, [Run(9, n, n, 0, 1.0, None)]) for margin, n in zip((1, 2, 5), lost)]

    @pytest.mark.parametrize(
        ("lost", "margin"), (((0, 0, 0), 1), ((5, 0, 0), 2), ((0, 5, 0), 5), ((0, 0, 5), None))
    )
    def test_least(self, lost, margin):
        assert race.suffices(self.cells(*lost), race.WORDS[0]) == margin


class TestPlan:
    @pytest.mark.parametrize("real", (0, 1 << 20, (4 << 20) + 4096))
    def test_real(self, real):
        with pytest.raises(InvalidArgument, match=str(real)):
            Plan(real=real)
