"""What a node knows of its device: the newest word wins, whether it was asked for or came by itself."""

import pytest
from samples import noise
from support import wait_until

from cram_emu import Device
from cram_emu.host import Driver, ManagedMemory, Zswap

PAGE = 4096


@pytest.fixture
def device():
    with Device("64M", "16M", lthresh=None, hthresh=None, signal=0) as device:
        yield device


class TestOrder:
    """An interrupt that comes while a question is under way is not undone by its older answer."""

    @pytest.mark.parametrize("interrupted", (True, False))
    def test_interrupt_during_question(self, device, interrupted):
        """The twin: without one the answer counts."""

        def safe(node, registers) -> bool:
            if asking and interrupted:
                device.set_thresholds(lthresh="100%", hthresh="100%")
                wait_until(lambda: node.stats.no_alloc, "the interrupt is heard")
            return True

        asking = False
        with Zswap(swap=0) as manager:
            node = manager.add_node(device, Driver(safe=safe, live_registers=False))
            asking = True
            node.query()
            assert node.stats.no_alloc is interrupted
            assert node.stats.pressure == (1000 if interrupted else 0)


class TestFirstRatio:
    """A device that was empty is asked again at once, one that has a ratio only after the interval."""

    def test_interval(self, device, skip_unless_userfaultfd):
        with Zswap([device], swap=0) as manager, ManagedMemory("1M", manager=manager, delivery="inline") as memory:
            node = manager.nodes[0]
            memory[:] = noise(1, PAGE // 2).ljust(PAGE, b"\1") * 256
            assert node.stats.page_size == PAGE
            assert memory.reclaim(128) == 128
            node.query(3600)
            known = node.stats.page_size
            assert PAGE // 2 <= known < PAGE * 3 // 4
            memory[128 * PAGE :] = noise(2, 128 * PAGE)
            assert memory.reclaim(256) == 128
            node.query(3600)
            assert node.stats.page_size == known
            node.query()
            assert node.stats.page_size > known
