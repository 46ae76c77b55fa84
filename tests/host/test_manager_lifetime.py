"""How managers, memories and nodes end: in any order, by the collector, in a child of fork, with the interpreter."""

import gc
import threading
import weakref

import pytest
from managed import KINDS, get, memory_of, no_swap, places, roomy, store
from samples import PAGE
from support import wait_until

from cram_emu.errors import Busy, DeviceClosed, InvalidArgument
from cram_emu.host import ManagedMemory, Zswap

PREAMBLE = """
    import gc, os, sys, threading
    from managed import *
    from samples import *
    from cram_emu import Device
    from cram_emu.errors import ForkedDevice
    from cram_emu.host import Driver, ManagedMemory, Zswap

    delivery = sys.argv[1]
    dev = roomy()
    manager = Zswap([dev], ram="64M", swap="8M")
    memory = ManagedMemory(256 * PAGE, "64K", manager, delivery=delivery)
    pages = {page: entropy(page + 1, 900) for page in range(256)}
    for page in pages:
        put(memory, page, pages[page])
"""


@pytest.fixture(params=["inline", "monitor"])
def run(request, run_child):
    """Runs a program after the preamble: everything open, and in use. Its standard output; it must end well."""
    if request.param == "monitor":
        request.getfixturevalue("skip_unless_kernel_faults")

    def run(program: str) -> str:
        lines = [line[4:] if line.startswith("    ") else line for line in PREAMBLE.splitlines()]
        done = run_child("\n".join(lines) + "\n" + program, request.param)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    return run


class TestClose:
    """Everything is given back, in the order in which one closes; what is in use is not closed."""

    def test_all(self, nothing_left_open):
        with roomy() as dev, Zswap([dev], ram="64M", swap="1M") as manager:
            with memory_of(manager) as memory:
                store(memory, {0: KINDS["random"]})
            assert (dev.stats.used, manager.root.current) == (0, 0)
        del manager, memory

    def test_manager_closes_its_memories(self, nothing_left_open):
        with roomy() as dev:
            manager = Zswap([dev], ram="64M", swap="1M")
            memory = memory_of(manager)
            store(memory, {0: KINDS["random"]})
            manager.close()
            assert memory.closed
            assert dev.stats.used == 0
            for call in (lambda: memory.place(0), lambda: memory.reclaim(1), lambda: memory.discard(0, PAGE), lambda: memory.stats):
                with pytest.raises(DeviceClosed):
                    call()
            assert manager.compact() == 0
            assert manager.stats.stored_pages == 0
            del manager, memory

    def test_buffer_alive(self):
        """BufferError while a buffer lives, and everything goes on; without it, it closes."""
        with roomy() as dev:
            manager = no_swap([dev])
            memory = memory_of(manager)
            store(memory, {0: KINDS["random"]})
            with memoryview(memory):
                for close in (memory.close, manager.close):
                    with pytest.raises(BufferError):
                        close()
                assert not manager.closed
                assert manager.nodes[0].stats.stored == 1
                assert get(memory, 0) == KINDS["random"]
                store(memory, {})
                assert places(memory) == {"direct": 1}
                with pytest.raises(Busy):
                    dev.close()
            manager.close()
            assert dev.stats.used == 0

    def test_own_manager(self, nothing_left_open):
        """A memory without a manager has one of its own, which ends with it, also when the memory cannot be made."""
        with ManagedMemory(64 * PAGE, "1M", delivery="inline") as memory:
            store(memory, {0: KINDS["shrinks"]})
            assert places(memory) == {"pool": 1}
            manager = memory.manager
        assert manager.closed
        with pytest.raises(InvalidArgument):
            ManagedMemory(1, "1M")
        del memory, manager

    def test_bad_node(self, nothing_left_open):
        """A manager whose nodes cannot be had leaves nothing behind, and the good ones free."""
        with roomy() as good, roomy() as other, no_swap([other]):
            with pytest.raises(Busy):
                no_swap([good, other])
            gc.collect()
            with no_swap([good]):
                pass


class TestNoMemory:
    """Where there is no memory for a manager, it is not there, and those that are go on."""

    def test_no_address_space(self, run_child):
        """Whatever the limit on address space stops, NoMemory is raised, nothing is left, and no page of another is lost."""
        child = run_child(
            """
            import os, resource
            from managed import *
            from cram_emu.errors import NoMemory

            pages = {page: entropy(page + 1, 500) for page in range(64)}
            dev, spare = roomy(), roomy()
            manager = no_swap([dev])
            memory = memory_of(manager, 64, "64K")
            store(memory, dict(list(pages.items())[:32]))
            dev.no_alloc = True
            for page in range(32, 64):
                put(memory, page, pages[page])
            opened = len(os.listdir("/proc/self/fd"))

            def attempt():
                with no_swap([spare]) as other, memory_of(other, 64, "64K") as more:
                    store(more, pages)
                    assert all(get(more, page) == pages[page] for page in pages)

            # Up to where it succeeds.
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            done = False
            for room in range(0, 1 << 30, 1 << 20):
                size = int(open("/proc/self/statm").read().split()[0]) * PAGE
                resource.setrlimit(resource.RLIMIT_AS, (size + room, hard))
                try:
                    attempt()
                    done = True
                except NoMemory as error:
                    print(error)
                assert all(get(memory, page) == pages[page] for page in pages)
                memory.reclaim(ALL)
                assert len(os.listdir("/proc/self/fd")) == opened
                if done:
                    break
            print(done)
            """
        )
        assert (child.returncode, child.stderr) == (0, "")
        *refused, done = child.stdout.splitlines()
        assert done == "True"
        assert refused[0] == "no memory for a manager"
        assert len(set(refused)) > 3
        assert any(error.startswith("no thread for the manager") for error in refused)


class TestCollector:
    """What is forgotten ends by itself."""

    def test_dropped(self, nothing_left_open):
        """A manager that nobody refers to ends with its thread, its memory and its hold on the device."""
        with roomy() as dev:
            manager = no_swap([dev])
            memory = memory_of(manager)
            store(memory, {0: KINDS["random"]})
            gone = weakref.ref(manager), weakref.ref(memory)
            del manager, memory
            gc.collect()
            assert [reference() for reference in gone] == [None, None]
            assert dev.stats.used == 0
            # The manager's thread is the last to let go.
            wait_until(lambda: "cram-kswapd" not in {thread.name for thread in threading.enumerate()}, "its thread's end")

    @pytest.mark.parametrize("attempt", range(3))
    def test_cycles(self, run, attempt: int):
        """Manager, memory, buffer, driver and device in one cycle end in any order, without a word."""
        run(
            f"""
class Thing: pass

for number in range(30):
    dev, driver = roomy(), None
    things = [Thing() for _ in range(4)]
    driver = Driver(page_freed=lambda node, pages, things=things: None, promoted=lambda node, pages, things=things: None)
    manager = no_swap()
    node = manager.add_node(dev, driver)
    memory = ManagedMemory(64 * PAGE, "64K", manager, delivery=delivery)
    for page in range(64):
        put(memory, page, entropy(page + 1, 500))
    parts = [dev, manager, memory, memoryview(memory), node, driver]
    order = parts[{attempt}:] + parts[:{attempt}]
    for thing, part in zip(things, order):
        thing.part, thing.all = part, things
    del dev, driver, things, manager, node, memory, parts, order, thing, part
    if number % 3 == {attempt}:
        gc.collect()
gc.collect()
"""
        )


class TestExit:
    """The interpreter ends with everything open, used and being used: status 0, without a word."""

    def test_open(self, run):
        run("view = memoryview(memory)")

    def test_in_use(self, run):
        run(
            """
def work():
    while True:
        for page in pages:
            memory[page * PAGE]
            memory.reclaim(3)

for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
node = manager.nodes[0]
manager.remove_node(node)
manager.add_node(dev, Driver(page_freed=lambda node, pages: None, trim_buffer=8, flush_interval=0.001))
while node is manager.nodes[0] or manager.nodes[0].stats.trims_done < 10:
    pass
"""
        )


class TestFork:
    """A child of fork is told that all this is its parent's, and ends without harm; the parent goes on."""

    def test_child(self, run):
        out = run(
            """
read_end, write_end = os.pipe()
child = os.fork()
if child == 0:
    calls = [lambda: memory.place(0), lambda: memory.reclaim(1), lambda: memory.shrink(1), lambda: memory.discard(0, PAGE),
             lambda: memory.flush(), lambda: manager.memcg(), lambda: manager.add_node(dev),
             lambda: manager.remove_node(manager.nodes[0]), lambda: ManagedMemory("1M", "1M", manager),
             lambda: manager.nodes[0].flush(), lambda: manager.nodes[0].refill()]
    told = []
    for call in calls:
        try:
            call()
            told.append("nothing")
        except Exception as error:
            told.append(type(error).__name__)
    manager.compact(), manager.stats, manager.root.stats, manager.nodes[0].stats
    os.write(write_end, repr(told).encode())
    memory.close()
    manager.close()
    dev.close()
    gc.collect()
    sys.exit(0)
_, status = os.waitpid(child, 0)
print(status, os.read(read_end, 10000).decode())
assert all(get(memory, page) == pages[page] for page in pages)
"""
        )
        assert out == f"0 {['ForkedDevice'] * 10 + ['nothing']}\n"

    def test_own(self, run):
        """A manager of the child's own works, beside the parent's."""
        out = run(
            """
child = os.fork()
if child == 0:
    with roomy() as mine, no_swap([mine]) as other, memory_of(other, 64, "64K") as fresh:
        for page in range(64):
            put(fresh, page, pages[page])
        assert all(get(fresh, page) == pages[page] for page in range(64))
        assert mine.stats.used > 0
    os._exit(0)
print(os.waitpid(child, 0)[1])
assert all(get(memory, page) == pages[page] for page in pages)
"""
        )
        assert out == "0\n"

    def test_without_close(self, run):
        """A child that ends at once takes nothing with it."""
        out = run(
            """
for _ in range(5):
    child = os.fork()
    if child == 0:
        sys.exit(0)
    print(os.waitpid(child, 0)[1])
assert all(get(memory, page) == pages[page] for page in pages)
"""
        )
        assert out == "0\n" * 5
