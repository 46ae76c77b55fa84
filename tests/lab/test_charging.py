"""The charging experiment: counts that hold on any machine; no time is looked at."""

import pytest

from cram_emu.errors import InvalidArgument
from cram_emu.lab import charging
from cram_emu.lab.charging import MODES, PAGE, Plan
from cram_emu.lab.loops import WrongContents

PLAN = Plan(limit=4 << 20)


@pytest.fixture(scope="module")
def outcomes() -> dict:
    return {outcome.charging: outcome for outcome in charging.run(PLAN)}


@pytest.mark.usefixtures("skip_unless_userfaultfd")
class TestDefect:
    """Charged as whole pages, reclaim makes no progress; the twins, by size and fuzzy, keep the limit."""

    def test_efficiency(self, outcomes):
        assert outcomes["page"].efficiency == 0
        for mode in ("size", "fuzzy"):
            assert 0.5 < outcomes[mode].efficiency < 0.7

    def test_thrash(self, outcomes):
        """Hardly an access finds its page, and the same pages are reclaimed again and again."""
        page = outcomes["page"]
        assert page.refaults > 0.7 * PLAN.accesses
        assert page.reclaimed > 3 * PLAN.pages
        assert page.samples[-1].anon <= 64 * PAGE
        for mode in ("size", "fuzzy"):
            assert outcomes[mode].refaults < page.refaults / 3
            # Most of what is hot; a batch of it may be on its way out.
            assert outcomes[mode].samples[-1].anon > PLAN.hot // 2 * PAGE

    def test_limit(self, outcomes):
        page = outcomes["page"]
        assert page.oom > 0.7 * PLAN.accesses
        assert page.peak == PLAN.pages * PAGE
        for mode in ("size", "fuzzy"):
            assert outcomes[mode].oom == 0
            assert outcomes[mode].peak <= PLAN.limit

    def test_same_work(self, outcomes):
        assert tuple(outcomes) == MODES
        assert {outcome.accesses for outcome in outcomes.values()} == {PLAN.pages + PLAN.accesses}
        for outcome in outcomes.values():
            accesses = [sample.accesses for sample in outcome.samples]
            assert accesses == sorted(accesses)
            assert accesses[-1] == outcome.accesses


@pytest.mark.usefixtures("skip_unless_userfaultfd")
class TestVerification:
    def test_wrong_page(self, monkeypatch):
        """Memory that forgets a write is caught; the twin is every other test here."""
        write = charging._Work._write

        def forget(self, view, page, what):
            write(self, view, page, what)
            self._holds[page] = (what + (page == 7)) % PLAN.pages

        monkeypatch.setattr(charging._Work, "_write", forget)
        with pytest.raises(WrongContents, match="page 7 of 2048 is wrong"):
            charging.run(PLAN)


class TestPlan:
    @pytest.mark.parametrize("limit", (0, 1 << 19, (1 << 20) + 1))
    def test_limit(self, limit):
        with pytest.raises(InvalidArgument, match=str(limit)):
            Plan(limit=limit)
