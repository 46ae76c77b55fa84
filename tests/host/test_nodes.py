"""Devices as nodes: their order, their poison, their leaving, and what their drivers are asked and told."""

import errno
import signal
import threading
import time
import warnings
from array import array
from collections.abc import Iterator

import pytest
from managed import ALL, KINDS, check_sums, get, memory_of, no_swap, places, put, roomy, store, where
from samples import PAGE, entropy, noise
from support import wait_until

from cram_emu import Device
from cram_emu.errors import Busy, InvalidArgument, NoSpace
from cram_emu.host import Driver, ManagedMemory, Zswap


#: What a callback may raise.
ERRORS = [ZeroDivisionError, SystemExit, KeyboardInterrupt, pytest.fail.Exception]


def numbered(count: int, step: int = 2) -> dict[int, bytes]:
    return {page: entropy(page + 1, 500) for page in range(0, count * step, step)}


def check(memory: ManagedMemory, pages: dict[int, bytes]) -> None:
    assert {page: get(memory, page) for page in pages} == pages


@pytest.fixture
def reported(monkeypatch) -> list[type[BaseException]]:
    """What threading.excepthook() was told, by type."""
    seen: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: seen.append(arguments.exc_type))
    return seen


class TestOrder:
    """Nodes are tried in their order; the next one takes what one refuses."""

    def test_several(self):
        with roomy() as first, roomy() as second, no_swap([first, second]) as manager, memory_of(manager) as memory:
            store(memory, {0: KINDS["random"]})
            first.no_alloc = True
            store(memory, {2: KINDS["random"]})
            second.no_alloc = True
            store(memory, {4: KINDS["shrinks"]})
            first.no_alloc = False
            store(memory, {6: KINDS["random"]})
            assert [memory.place(page * PAGE).node for page in (0, 2, 4, 6)] == [0, 1, None, 0]
            check_sums(manager)

    def test_number_is_used_again(self):
        """A node that comes after another has left takes its place in the order."""
        with roomy() as first, roomy() as second, no_swap([first, second]) as manager, memory_of(manager) as memory:
            manager.remove_node(manager.nodes[0])
            store(memory, {0: KINDS["random"]})
            manager.add_node(first)
            store(memory, {2: KINDS["random"]})
            assert [memory.place(page * PAGE).node for page in (0, 2)] == [1, 0]

    def test_twice(self):
        """A device is a node once; another manager's too. Too many nodes are refused as well."""
        with roomy() as dev, no_swap([dev]) as manager, no_swap() as other:
            for again in (manager, other):
                with pytest.raises(Busy):
                    again.add_node(dev)
            assert (len(manager.nodes), other.nodes) == (1, ())
        devices = [Device("1M", "64K") for _ in range(17)]
        with no_swap() as manager:
            for dev in devices[:16]:
                manager.add_node(dev)
            with pytest.raises(Busy, match="16"):
                manager.add_node(devices[16])
        for dev in devices:
            dev.close()


class TestRemoval:
    """A node's pages move off before it goes."""

    def test_to_the_next(self):
        with roomy() as first, roomy() as second, no_swap([first, second]) as manager, memory_of(manager) as memory:
            store(memory, numbered(32))
            with pytest.raises(Busy):
                first.close()
            manager.remove_node(manager.nodes[0])
            assert {memory.place(page * PAGE).node for page in numbered(32)} == {1}
            assert first.stats.used == 0 < second.stats.used
            check_sums(manager)
            first.close()
            check(memory, numbered(32))

    @pytest.mark.parametrize("place", ["pool", "file"])
    def test_to_pool_and_file(self, place: str):
        options = {"max_pool_percent": 0} if place == "file" else {}
        with roomy() as dev, Zswap([dev], ram="64M", swap="1M", **options) as manager, memory_of(manager) as memory:
            store(memory, numbered(32))
            manager.remove_node(manager.nodes[0])
            assert places(memory) == {place: 32}
            assert dev.stats.used == 0
            check_sums(manager)
            check(memory, numbered(32))

    def test_nowhere(self):
        """NoSpace: the node stays, takes nothing more, every page is readable; with room again it goes."""
        with roomy() as dev, no_swap([dev], max_pool_percent=0) as manager, memory_of(manager, 128) as memory:
            node = manager.nodes[0]
            store(memory, numbered(32))
            with pytest.raises(NoSpace, match="node 0"):
                manager.remove_node(node)
            assert (manager.nodes, node.online) == ((node,), True)
            with pytest.raises(Busy):
                dev.close()
            check_sums(manager)
            check(memory, numbered(32))
            store(memory, {100: KINDS["shrinks"]})
            assert where(memory, 100) == "frame"
            manager.max_pool_percent = 100
            manager.remove_node(node)
            assert manager.nodes == ()

    def test_with_poison(self):
        """A poisoned page stays poison when its node has gone, and is no page of it any more."""
        with roomy() as dev, no_swap([dev]) as manager, memory_of(manager) as memory:
            store(memory, numbered(4))
            dev.poison.inject(memory.place(2 * PAGE).dpa)
            manager.remove_node(manager.nodes[0])
            assert places(memory) == {"pool": 3, "poison": 1}
            check_sums(manager)
            check(memory, {page: data for page, data in numbered(4).items() if page != 2})
            memory.discard(2 * PAGE, PAGE)
            assert get(memory, 2) == bytes(PAGE)

    def test_not_ours(self):
        """A node that has left, or is another manager's, is refused, and the one that has its number stays."""
        with roomy() as first, roomy() as second, no_swap([first]) as manager, no_swap() as other:
            gone = manager.nodes[0]
            manager.remove_node(gone)
            node = manager.add_node(second)
            assert node.number == gone.number
            for stranger in (gone, other.add_node(first)):
                with pytest.raises(InvalidArgument, match="not a node of this manager"):
                    manager.remove_node(stranger)
            assert manager.nodes == (node,)
            assert node.stats.stored == 0
            with pytest.raises(InvalidArgument):
                gone.stats  # noqa: B018

    def test_again_and_again(self):
        """A device comes and goes as often as one likes: nothing of its nodes stays with it."""
        with roomy() as dev, no_swap() as manager, memory_of(manager) as memory:
            told: list[str] = []
            for _ in range(50):
                node = manager.add_node(dev, Driver(interrupt=lambda node, interrupt: told.append(interrupt.name)))
                store(memory, {0: KINDS["shrinks"]})
                manager.remove_node(node)
            manager.add_node(dev, Driver(interrupt=lambda node, interrupt: told.append(interrupt.name)))
            dev.set_thresholds(lthresh="4M", hthresh="4M")
            dev.write(0, noise(1))
            wait_until(lambda: told, "the interrupt")
            assert told == ["lthresh"]
            assert get(memory, 0) == KINDS["shrinks"]


class TestInterrupts:
    """lthresh sets no_alloc and full pressure as the host knows them; hthresh takes both back."""

    def test_both(self):
        told: list[str] = []
        driver = Driver(interrupt=lambda node, interrupt: told.append(interrupt.name), live_registers=False)
        with Device("1M", "64K", lthresh="32K", hthresh="48K") as dev, no_swap() as manager, memory_of(manager) as memory:
            node = manager.add_node(dev, driver)
            for name, place, act in (
                ("lthresh", "pool", lambda: dev.write(512 << 10, noise(1, 12 * PAGE))),
                ("hthresh", "direct", lambda: dev.discard(512 << 10, 12 * PAGE)),
            ):
                act()
                wait_until(lambda: name in told, name)
                low = name == "lthresh"
                assert (node.stats.no_alloc, node.stats.pressure) == (low, 1000 if low else 0)
                store(memory, {0: KINDS["shrinks"]})
                assert where(memory, 0) == place
                memory.discard(0, PAGE)

    def test_absent(self):
        """An interrupt that is never raised leaves the host as it was: the node goes on taking pages."""
        with Device("1M", "64K", lthresh=None, hthresh=None) as dev, no_swap() as manager, memory_of(manager) as memory:
            node = manager.add_node(dev, Driver(live_registers=False))
            dev.write(512 << 10, noise(1, 12 * PAGE))
            store(memory, {0: KINDS["shrinks"]})
            assert where(memory, 0) == "direct"
            assert (node.stats.no_alloc, node.stats.pressure) == (False, 0)


class TestApproval:
    """page_allocated() is asked for pages that are empty yet; what it refuses goes back to the device."""

    def test_batches(self):
        """One call has an array of page numbers; without batches each page has a call with a number."""
        for batched in (True, False):
            calls: list = []
            with roomy() as dev, no_swap() as manager:
                node = manager.add_node(dev, Driver(page_allocated=lambda node, pages: calls.append(pages) or 0, batched=batched))
                assert (node.stats.approved, node.stats.stock) == (256, 256)
            if batched:
                assert [type(call) for call in calls] == [array]
                assert (calls[0].typecode, len(set(calls[0]))) == ("Q", 256)
            else:
                assert len(set(calls)) == 256

    def test_approved_pages_are_used(self):
        """Pages are stored where the driver has said that they may, and only there while there are such."""
        approved: set[int] = set()
        with roomy() as dev, no_swap() as manager, memory_of(manager) as memory:
            node = manager.add_node(dev, Driver(page_allocated=lambda node, pages: approved.update(pages) or 0))
            store(memory, numbered(32))
            assert {memory.place(page * PAGE).dpa // PAGE for page in numbered(32)} <= approved
            assert node.stats.stock == 256 - 32

    def test_not_asked(self):
        """Reclaim outside faults stores on no page that was refused, however much it takes; the next place has those."""
        refused = lambda node, pages: [0 if page % 2 == 0 else -errno.ENXIO for page in pages]  # noqa: E731
        with Device("8M", "8M", lthresh=None, hthresh=None) as dev, no_swap() as manager:
            with memory_of(manager, 1500, "8M") as memory:
                node = manager.add_node(dev, Driver(page_allocated=refused))
                memory[:] = b"\x5a" * 1500 * PAGE
                assert memory.reclaim(ALL) == 1500
                dpas = [memory.place(page * PAGE).dpa for page in range(1500)]
                assert {dpa // PAGE % 2 for dpa in dpas if dpa is not None} == {0}
                found = places(memory)
                assert found["direct"] == node.stats.approved - node.stats.stock > 256
                assert found["direct"] + found["pool"] == 1500
                assert node.stats.refused["callback"] >= found["pool"] > 0

    def test_asked_in_time(self):
        """Nothing goes elsewhere only because what was approved of is used up: he is asked again, whoever reclaims."""
        for way in (lambda memory: memory.reclaim(ALL), lambda memory: setattr(memory.group, "max", "64K")):
            with Device("8M", "8M", lthresh=None, hthresh=None) as dev, no_swap(charging="size") as manager:
                with memory_of(manager, 1500, "8M", group=manager.memcg()) as memory:
                    node = manager.add_node(dev, Driver(page_allocated=lambda node, pages: 0))
                    memory[:] = b"\x5a" * 1500 * PAGE
                    way(memory)
                    assert set(places(memory)) <= {"direct", "frame"}
                    assert node.stats.refused["callback"] == 0
                    assert node.stats.stored > 1024

    def test_touches_memory(self):
        """A driver who uses managed memory while he is asked, and reclaims it, is not asked for that, and all ends."""
        with roomy() as dev, no_swap() as manager, memory_of(manager, 300, "2M") as memory, memory_of(manager, 32) as own:
            asked: list[int] = []

            def approve(node, pages: array) -> int:
                asked.append(len(pages))
                own[:] = noise(len(asked), 32 * PAGE)
                own.reclaim(ALL)
                return 0

            manager.add_node(dev, Driver(page_allocated=approve))
            memory[:] = b"\x5a" * 300 * PAGE
            assert memory.reclaim(ALL) == 300
            assert places(memory)["direct"] > 256
            assert own[:] == noise(len(asked), 32 * PAGE)
            check_sums(manager)

    def test_fault_does_not_ask(self):
        """A reclaim inside a fault takes pages that nobody was asked for, when there are no others."""
        with roomy() as dev, no_swap() as manager, memory_of(manager, 512, "64K") as memory:
            manager._reclaimer.stop()
            node = manager.add_node(dev, Driver(page_allocated=lambda node, pages: 0))
            memory[:] = noise(1, 512 * PAGE)
            assert node.stats.stock == 0
            assert places(memory)["direct"] == node.stats.stored > 256

    def test_to_an_approving_node(self):
        """A node that leaves has its pages go where a driver approves of them, who is asked as often as it takes."""
        for answer, left in ((0, ()), (-errno.ENXIO, (0, 1))):
            with Device("8M", "8M") as first, Device("8M", "8M") as second, no_swap([first]) as manager:
                with memory_of(manager, 600, "8M") as memory:
                    memory[:] = b"\x5a" * 600 * PAGE
                    memory.reclaim(ALL)
                    manager.max_pool_percent = 0
                    manager.add_node(second, Driver(page_allocated=lambda node, pages: answer))  # noqa: B023
                    if answer:
                        with pytest.raises(NoSpace):
                            manager.remove_node(manager.nodes[0])
                    else:
                        manager.remove_node(manager.nodes[0])
                        assert {memory.place(page * PAGE).node for page in range(600)} == {1}
                    assert tuple(node.number for node in manager.nodes) == (left or (1,))

    def test_refused(self):
        """Refused pages are no page of the node: none is taken, the pool gets what there is. The device has them all again."""
        with Device("1M", "1M", lthresh=None, hthresh=None) as dev, no_swap() as manager, memory_of(manager, 256) as memory:
            node = manager.add_node(dev, Driver(page_allocated=lambda node, pages: -errno.ENXIO))
            stats = node.stats
            assert (stats.unapproved, stats.refused["callback"], stats.stock, stats.allowed) == (256, 256, 0, False)
            assert stats.callback_errors == 0
            store(memory, numbered(8))
            assert places(memory) == {"pool": 8}
            manager.remove_node(node)
            manager.add_node(dev)
            memory.discard(0, 256 * PAGE)
            store(memory, numbered(256, 1))
            assert places(memory) == {"direct": 256}

    def test_one_by_one(self):
        """A list answers for each page: exactly those that were approved become stock."""
        answers = lambda node, pages: [0 if page % 2 else -errno.EBUSY for page in pages]  # noqa: E731
        with roomy() as dev, no_swap() as manager, memory_of(manager) as memory:
            node = manager.add_node(dev, Driver(page_allocated=answers))
            assert (node.stats.approved, node.stats.unapproved, node.stats.allowed) == (128, 128, True)
            store(memory, numbered(32))
            assert {memory.place(page * PAGE).dpa // PAGE % 2 for page in numbered(32)} == {1}

    @pytest.mark.parametrize("answer", [1, -4096, None, "0", [0], [0] * 255 + [1], 0.0, [float("inf")] * 256, object()])
    @pytest.mark.parametrize("strict", [False, True])
    def test_no_answer(self, reported, strict: bool, answer):
        """What is no answer refuses all, is warned about and counted, also where warnings are errors; the node stays usable."""
        with roomy() as dev, no_swap() as manager, memory_of(manager) as memory, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("error" if strict else "always")
            node = manager.add_node(dev, Driver(page_allocated=lambda node, pages: answer))
            assert (node.stats.approved, node.stats.unapproved) == (0, 256)
            if answer is not None:
                assert node.stats.callback_errors == 1
                assert [warning.category for warning in said] == ([] if strict else [RuntimeWarning])
                assert reported == ([RuntimeWarning] if strict else [])
            store(memory, numbered(8))
            assert places(memory) == {"pool": 8}

    @pytest.mark.parametrize("error", ERRORS)
    @pytest.mark.parametrize("late", [False, True])
    def test_raises(self, reported, error: type[BaseException], late: bool):
        """What it raises, at once or while its answers are read, is reported and refuses all."""

        def answer_late(node, pages: array) -> Iterator[int]:
            yield from [0] * (len(pages) - 1)
            raise error

        def answer_never(node, pages: array) -> int:
            raise error

        with roomy() as dev, no_swap() as manager:
            node = manager.add_node(dev, Driver(page_allocated=answer_late if late else answer_never))
            assert (node.stats.approved, node.stats.unapproved, node.stats.callback_errors) == (0, 256, 1)
        assert reported == [error]

    def test_interrupted(self):
        """Ctrl-C while the driver is asked: the node is not there, nor is any of its pages lost."""
        go = threading.Event()

        def interrupted(node, pages: array) -> int:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            go.wait()
            return 0

        with Device("1M", "1M", lthresh=None, hthresh=None) as dev, no_swap() as manager, memory_of(manager, 256) as memory:
            with pytest.raises(KeyboardInterrupt):
                manager.add_node(dev, Driver(page_allocated=interrupted))
            assert manager.nodes == ()
            go.set()
            manager.add_node(dev)
            store(memory, numbered(256, 1))
            assert places(memory) == {"direct": 256}

    def test_node_leaves_meanwhile(self):
        """An answer that comes when its node has left, and its number is another's, changes nothing there."""
        asked, go = threading.Event(), threading.Event()
        waits = [False]

        def wait(node, pages: array) -> int:
            if waits[0]:
                asked.set()
                go.wait()
            return -errno.ENXIO

        with roomy() as first, roomy() as second, no_swap() as manager, memory_of(manager) as memory:
            node = manager.add_node(first, Driver(page_allocated=wait))
            waits[0] = True
            refill = threading.Thread(target=node.refill)
            refill.start()
            asked.wait()
            manager.remove_node(node)
            other = manager.add_node(second)
            assert other.number == node.number
            store(memory, numbered(32))
            go.set()
            refill.join()
            assert other.stats.stored == 32
            assert other.stats.refused["callback"] == 0
            check_sums(manager)
            check(memory, numbered(32))
            first.close()


class TestNotes:
    """Drivers hear of pages that were promoted, then of the same as freed; of discarded ones as freed only."""

    def record(self, manager: Zswap, dev: Device, **options) -> list[tuple[str, object]]:
        heard: list[tuple[str, object]] = []
        driver = Driver(
            page_freed=lambda node, pages: heard.append(("freed", pages)),
            promoted=lambda node, pages: heard.append(("promoted", pages)),
            **options,
        )
        manager.add_node(dev, driver)
        return heard

    @pytest.mark.parametrize("batched", [True, False])
    def test_order(self, batched: bool):
        with roomy() as dev, no_swap() as manager, memory_of(manager) as memory:
            heard = self.record(manager, dev, batched=batched)
            store(memory, {0: KINDS["random"], 4: KINDS["random"]})
            dpas = [memory.place(page * PAGE).dpa // PAGE for page in (0, 4)]
            get(memory, 0)
            wait_until(lambda: len(heard) == 2, "two calls")
            expected = array("Q", dpas[:1]) if batched else dpas[0]
            assert heard == [("promoted", expected), ("freed", expected)]
            heard.clear()
            memory.discard(4 * PAGE, PAGE)
            wait_until(lambda: heard, "a call")
            assert heard == [("freed", array("Q", dpas[1:]) if batched else dpas[1])]

    @pytest.mark.parametrize("error", ERRORS)
    def test_raises(self, reported, error: type[BaseException]):
        """A callback that raises is reported for each call, and the next is called; no page is lost."""
        with roomy() as dev, no_swap() as manager, memory_of(manager) as memory:

            def fail(node, pages) -> None:
                raise error

            node = manager.add_node(dev, Driver(page_freed=fail, promoted=fail))
            for round_ in range(1, 3):
                store(memory, {0: KINDS["random"]})
                assert get(memory, 0) == KINDS["random"]
                wait_until(lambda: node.callback_errors == 2 * round_, "both calls")  # noqa: B023
            assert reported == 4 * [error]
            assert dev.stats.used == 0

    def test_slow(self):
        """A callback over a tenth of a second is counted and warned about; one below is not. Faults do not wait for it."""
        entered, go = threading.Event(), threading.Event()

        def slow(node, pages) -> None:
            entered.set()
            go.wait()
            time.sleep(0.11)

        with warnings.catch_warnings(record=True) as said, roomy() as dev, no_swap() as manager, memory_of(manager) as memory:
            warnings.simplefilter("always")
            node = manager.add_node(dev, Driver(page_freed=slow, promoted=lambda node, pages: None))
            store(memory, {0: KINDS["random"], 4: KINDS["random"]})
            get(memory, 0)
            entered.wait()
            assert get(memory, 4) == KINDS["random"]
            go.set()
            wait_until(lambda: node.slow_callbacks, "the count")
        assert {warning.category for warning in said} == {RuntimeWarning}
        assert node.slow_callbacks <= 2

    def test_full_queue(self):
        """Notes that the queue has no room for are counted and left out; no page is lost by it."""
        entered, go = threading.Event(), threading.Event()
        heard = [0]

        def count(node, pages: array) -> None:
            heard[0] += len(pages)
            entered.set()
            go.wait()

        pages = 10000
        with Device("64M", "64M", lthresh=None, hthresh=None) as dev, no_swap() as manager:
            with memory_of(manager, pages, "64M") as memory:
                node = manager.add_node(dev, Driver(page_freed=count))
                put(memory, 0, KINDS["shrinks"])
                memory[PAGE:] = b"\x5a" * (pages - 1) * PAGE
                memory.reclaim(ALL)
                assert node.stats.stored == pages
                get(memory, 0)
                entered.wait()
                memory.discard(0, pages * PAGE)
                lost = manager.stats.notes_lost
                # One run of notes has been taken out before the callback was stuck.
                assert pages - 8192 - 1024 <= lost <= pages - 8192
                go.set()
                wait_until(lambda: heard[0] + lost == pages, "the rest")
                assert node.stats.stored == dev.stats.used == 0

    @pytest.mark.parametrize("leave", ["remove_node", "close"])
    def test_node_leaves(self, leave: str):
        """When a node has left, its driver has been told of all of its pages, in the manager's thread."""
        with roomy() as dev:
            freed: set[tuple[str, int]] = set()

            def record(node, pages: array) -> None:
                freed.update((threading.current_thread().name, page) for page in pages)

            manager = no_swap()
            memory = memory_of(manager, 512, "4M")
            node = manager.add_node(dev, Driver(page_freed=record))
            store(memory, numbered(256))
            dpas = {memory.place(page * PAGE).dpa // PAGE for page in numbered(256)}
            if leave == "remove_node":
                manager.remove_node(node)
                assert freed == {("cram-kswapd", dpa) for dpa in dpas}
                check(memory, numbered(256))
            manager.close()
            assert freed == {("cram-kswapd", dpa) for dpa in dpas}

    def test_number_is_used_again(self):
        """A node hears of its own pages, and one that has its number after it of none of them."""
        entered, go = threading.Event(), threading.Event()
        heard: dict[str, set[int]] = {"first": set(), "second": set()}

        def slow(node, pages: array) -> None:
            entered.set()
            go.wait()
            heard["first"].update(pages)

        second_driver = Driver(page_freed=lambda node, pages: heard["second"].update(pages))
        with roomy() as first, roomy() as second, no_swap() as manager, memory_of(manager, 512, "4M") as memory:
            node = manager.add_node(first, Driver(page_freed=slow))
            store(memory, numbered(256))
            dpas = {memory.place(page * PAGE).dpa // PAGE for page in numbered(256)}
            get(memory, 0)
            entered.wait()
            threads = [threading.Thread(target=manager.remove_node, args=(node,))]
            threads[0].start()
            wait_until(lambda: node not in manager.nodes, "its leaving")
            threads.append(threading.Thread(target=manager.add_node, args=(second, second_driver)))
            threads[1].start()
            wait_until(lambda: manager.nodes, "the other")
            assert manager.nodes[0].number == node.number
            go.set()
            for thread in threads:
                thread.join()
            assert heard == {"first": dpas, "second": set()}
            store(memory, {0: KINDS["random"]})
            dpa = memory.place(0).dpa // PAGE
            get(memory, 0)
            wait_until(lambda: heard["second"], "its page")
            assert heard == {"first": dpas, "second": {dpa}}

    def test_leaves_in_a_callback(self):
        """A callback may remove its node, and add one: all pages of the first are told, in calls within that call."""
        freed: list[int] = []
        with roomy() as first, roomy() as second, no_swap() as manager, memory_of(manager) as memory:

            def leave(node, pages: array) -> None:
                freed.extend(pages)
                if node in manager.nodes:
                    manager.remove_node(node)
                    assert sorted(freed) == sorted(dpas)
                    manager.add_node(second)

            node = manager.add_node(first, Driver(page_freed=leave))
            store(memory, numbered(32))
            dpas = [memory.place(page * PAGE).dpa // PAGE for page in numbered(32)]
            get(memory, 0)
            wait_until(lambda: manager.nodes and manager.nodes[0].device is second, "the other node")
            assert node.callback_errors == 0
            assert len(freed) == len(dpas)

    def test_nobody_asks(self):
        """Without callbacks nothing is queued, and so nothing lost."""
        with Device("64M", "64M") as dev, no_swap([dev]) as manager, memory_of(manager, 10000, "64M") as memory:
            memory[:] = b"\x5a" * 10000 * PAGE
            memory.reclaim(ALL)
            memory.discard(0, len(memory))
            assert manager.stats.notes_lost == 0


class TestTrims:
    """A trim buffer holds freed pages, and their media, until it is flushed."""

    def test_at_once(self):
        with roomy() as dev, no_swap([dev]) as manager, memory_of(manager) as memory:
            store(memory, {0: KINDS["random"]})
            memory.discard(0, PAGE)
            stats = manager.nodes[0].stats
            assert (stats.trims_done, stats.trims_deferred, stats.trims_full, dev.stats.used) == (1, 0, 0, 0)

    def test_deferred(self):
        """Deferred pages hold their media; a flush frees exactly those; what finds the buffer full is freed at once."""
        with roomy() as dev, no_swap() as manager, memory_of(manager) as memory:
            node = manager.add_node(dev, Driver(trim_buffer=4, flush_interval=3600))
            store(memory, {2 * page: noise(page + 1) for page in range(6)})
            used = dev.stats.used
            memory.discard(0, 64 * PAGE)
            stats = node.stats
            assert (stats.trims_deferred, stats.trims_full, stats.trims_done, stats.trims_waiting) == (4, 2, 2, 4)
            assert (stats.stored, dev.stats.used) == (0, used * 4 // 6)
            assert node.flush() == 4
            assert (node.stats.trims_waiting, node.stats.trims_done, dev.stats.used) == (0, 6, 0)
            assert node.flush() == 0

    def test_interval(self):
        """After flush_interval the manager's thread flushes by itself."""
        with roomy() as dev, no_swap() as manager, memory_of(manager) as memory:
            node = manager.add_node(dev, Driver(trim_buffer=4096, flush_interval=0.01))
            for _ in range(3):
                store(memory, {0: KINDS["random"]})
                memory.discard(0, PAGE)
                wait_until(lambda: node.stats.trims_waiting == 0, "the flush")
                assert dev.stats.used == 0

    def test_removal(self):
        """A node that leaves takes its waiting trims with it: the device is empty afterwards."""
        with roomy() as dev, no_swap() as manager, memory_of(manager) as memory:
            node = manager.add_node(dev, Driver(trim_buffer=16, flush_interval=3600))
            store(memory, {0: KINDS["random"]})
            memory.discard(0, PAGE)
            assert dev.stats.used > 0
            manager.remove_node(node)
            assert dev.stats.used == 0


class TestQueries:
    """safe() is asked at most every query_interval; a device that is not asked is known as it was."""

    @pytest.mark.parametrize(("interval", "asked"), [(3600.0, 1), (0.0, 4)])
    def test_interval(self, interval: float, asked: int):
        calls: list[int] = []
        with roomy() as dev, no_swap(query_interval=interval) as manager:
            # An empty device is asked again: it has no ratio to tell yet.
            dev.write(0, bytes(range(256)) * 16)
            node = manager.add_node(dev, Driver(safe=lambda node, registers: calls.append(registers.remaining) or True))
            for _ in range(3):
                node.query(manager.query_interval)
            assert calls == [dev.stats.remaining] * asked

    @pytest.mark.parametrize("late", [False, True])
    def test_raises(self, reported, late: bool):
        """A safe() that raises, or whose answer does when it is looked at, is no verdict that it is safe."""

        class Unclear:
            def __bool__(self) -> bool:
                raise ZeroDivisionError

        with roomy() as dev, no_swap() as manager, memory_of(manager) as memory:
            node = manager.add_node(dev, Driver(safe=lambda node, registers: Unclear() if late else bool(Unclear())))
            assert not node.stats.allowed
            assert node.callback_errors == 1
            store(memory, {0: KINDS["shrinks"]})
            assert where(memory, 0) == "pool"
        assert reported == [ZeroDivisionError]

    def test_thread(self):
        """Who adds a node has the manager's thread ask its driver, and waits for the answers."""
        asked: dict[str, str] = {}

        def ask(name: str) -> bool:
            asked[name] = threading.current_thread().name
            return name == "safe"

        with roomy() as dev, no_swap() as manager:
            manager.add_node(
                dev, Driver(safe=lambda node, registers: ask("safe"), page_allocated=lambda node, pages: int(ask("allocated")))
            )
            assert asked == {"safe": "cram-kswapd", "allocated": "cram-kswapd"}
            assert manager.nodes[0].stats.allowed

    def test_endless_notes(self):
        """A driver who has always more to hear does not keep the thread from others."""
        done = threading.Event()
        with roomy() as dev, roomy() as other, no_swap() as manager, memory_of(manager, 4) as memory:

            def freed(node, pages) -> None:
                if not done.is_set():
                    store(memory, {0: KINDS["shrinks"]})
                    get(memory, 0)

            manager.add_node(dev, Driver(page_freed=freed))
            store(memory, {0: KINDS["shrinks"]})
            get(memory, 0)
            manager.remove_node(manager.add_node(other, Driver(safe=lambda node, registers: True)))
            done.set()
            # Behind the callback that it may be in.
            manager._reclaimer.do(lambda: None)

    def test_reclaimer_waits(self):
        """So does who reclaims more than its driver has approved of."""
        asked: list[str] = []
        ask = lambda node, pages: asked.append(threading.current_thread().name) or 0  # noqa: E731
        with Device("8M", "8M", lthresh=None, hthresh=None) as dev, no_swap() as manager, memory_of(manager, 1000, "8M") as memory:
            manager.add_node(dev, Driver(page_allocated=ask))
            store(memory, {page: KINDS["shrinks"] for page in range(1000)})
            assert places(memory) == {"direct": 1000}
        assert len(asked) >= 4 and set(asked) == {"cram-kswapd"}
