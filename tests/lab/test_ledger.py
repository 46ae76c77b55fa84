"""The ledger, against a device that keeps pages as told: the verification must not believe it."""

import os

import pytest

from cram_emu import PoisonError
from cram_emu.lab.ledger import PAGE, Ledger, Verdict

PAGES = 200  # several runs, the last one short


class FakeDevice:
    """Pages in a bytearray, and a set of those whose reading is refused."""

    def __init__(self) -> None:
        self.memory = bytearray(os.urandom(PAGES * PAGE))
        self.poison: set[int] = set()

    def read(self, dpa: int, length: int) -> bytes:
        for page in range(dpa // PAGE, (dpa + length) // PAGE):
            if page in self.poison:
                raise PoisonError("poison", page * PAGE, PAGE)
        return bytes(self.memory[dpa : dpa + length])


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def ledger(device: FakeDevice) -> Ledger:
    ledger = Ledger()
    for first in range(0, PAGES, 50):
        ledger.record(first, bytes(device.memory[first * PAGE : (first + 50) * PAGE]))
    return ledger


def verify(ledger: Ledger, device: FakeDevice) -> Verdict:
    return ledger.verify(device, lambda _: None)


class TestVerify:
    """Every page is intact, poisoned or wrong, and counted as that once."""

    def test_intact(self, ledger: Ledger, device: FakeDevice) -> None:
        assert verify(ledger, device) == Verdict(intact=PAGES)

    @pytest.mark.parametrize("offset", [0, 77 * PAGE + 5, PAGES * PAGE - 1])
    def test_one_wrong_bit(self, ledger: Ledger, device: FakeDevice, offset: int) -> None:
        device.memory[offset] ^= 1
        assert verify(ledger, device) == Verdict(intact=PAGES - 1, wrong=1)

    def test_pages_exchanged(self, ledger: Ledger, device: FakeDevice) -> None:
        first, second = slice(0, PAGE), slice(PAGE, 2 * PAGE)
        device.memory[first], device.memory[second] = device.memory[second], device.memory[first]
        assert verify(ledger, device).wrong == 2

    def test_zeros_in_place_of_data(self, ledger: Ledger, device: FakeDevice) -> None:
        device.memory[9 * PAGE : 10 * PAGE] = bytes(PAGE)
        assert verify(ledger, device).wrong == 1

    def test_poisoned(self, ledger: Ledger, device: FakeDevice) -> None:
        device.poison = {0, 5, 63, 64, 199}
        assert verify(ledger, device) == Verdict(intact=PAGES - 5, poisoned=5)

    def test_wrong_beside_poison(self, ledger: Ledger, device: FakeDevice) -> None:
        device.poison = {5}
        device.memory[6 * PAGE] ^= 1
        assert verify(ledger, device) == Verdict(intact=PAGES - 2, poisoned=1, wrong=1)

    def test_progress_adds_up(self, ledger: Ledger, device: FakeDevice) -> None:
        seen: list[int] = []
        ledger.verify(device, seen.append)
        assert sum(seen) == len(ledger) == PAGES
        assert len(seen) > 1

    def test_empty(self, device: FakeDevice) -> None:
        assert verify(Ledger(), device) == Verdict()


class TestChanges:
    """What was discarded must read as zeros, what was written anew as that."""

    def test_discarded(self, ledger: Ledger, device: FakeDevice) -> None:
        ledger.discarded(10, 3)
        assert verify(ledger, device).wrong == 3
        device.memory[10 * PAGE : 13 * PAGE] = bytes(3 * PAGE)
        assert verify(ledger, device) == Verdict(intact=PAGES)

    def test_written_anew(self, ledger: Ledger, device: FakeDevice) -> None:
        data = os.urandom(2 * PAGE)
        ledger.record(20, data)
        assert len(ledger) == PAGES
        assert verify(ledger, device).wrong == 2
        device.memory[20 * PAGE : 22 * PAGE] = data
        assert verify(ledger, device) == Verdict(intact=PAGES)

    def test_holds(self, ledger: Ledger, device: FakeDevice) -> None:
        page = bytes(device.memory[3 * PAGE : 4 * PAGE])
        assert ledger.holds(3, page)
        assert not ledger.holds(4, page)
