"""The root's limit is everybody's."""

import pytest

from cram_emu.errors import InvalidArgument
from cram_emu.host import ManagedMemory, Zswap

MIB = 1 << 20


def filled(manager: Zswap) -> ManagedMemory:
    memory = ManagedMemory("4M", dram="4M", manager=manager, delivery="inline")
    for page in range(1024):
        memory[page * 4096] = 1
    return memory


class TestRoot:
    def test_limit(self, skip_unless_userfaultfd) -> None:
        """A memory that is in no group is in the root, and kept below its limit."""
        with Zswap() as manager:
            manager.root.max = 2 * MIB
            memory = filled(manager)
            assert memory.group is manager.root
            assert manager.root.current <= 2 * MIB and memory.stats.resident <= 512
            assert all(memory[page * 4096] == 1 for page in range(1024))

    def test_twin_no_limit(self, skip_unless_userfaultfd) -> None:
        with Zswap() as manager:
            memory = filled(manager)
            # One free share is kept by the background.
            assert memory.stats.resident > 900

    def test_lowered(self, skip_unless_userfaultfd) -> None:
        """Lowering it reclaims at once."""
        with Zswap() as manager:
            filled(manager)
            manager.root.max = MIB
            assert manager.root.current <= MIB

    def test_foreign(self, skip_unless_userfaultfd) -> None:
        """A group of another manager's is refused, and nothing is left open."""
        with Zswap() as one, Zswap() as other:
            with pytest.raises(InvalidArgument, match="another manager's"):
                ManagedMemory("1M", dram="1M", manager=one, group=other.root)
            with pytest.raises(InvalidArgument, match="another manager's"):
                ManagedMemory("1M", dram="1M", group=other.root)

    def test_foreign_parent(self, skip_unless_userfaultfd) -> None:
        """Nor does one become a parent, or hold a group that has the number of one of its own."""
        with Zswap() as one, Zswap() as other:
            mine, theirs = one.memcg(name="mine"), other.memcg(name="theirs")
            assert mine.number == theirs.number
            with pytest.raises(InvalidArgument, match="parent <Memcg theirs>: another manager's"):
                one.memcg(theirs)
            assert one.groups == (one.root, mine)
            assert mine in one.root and mine in mine
            assert theirs not in one.root and theirs not in mine
