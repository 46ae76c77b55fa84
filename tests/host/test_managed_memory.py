"""Managed memory itself: frames under their limit, poison, system calls, pins, locked pages, discards.

Oracles: the kernel, by /proc/self/pagemap, by what it copied, and by how it says that a child died.
"""

import ctypes
import errno
import os
import signal
import textwrap

import pytest
from managed import ALL, KINDS, check_sums, get, memory_of, no_swap, places, put, roomy, store, where
from samples import PAGE, entropy, noise
from support import delivery, resident_pages, wait_until  # noqa: F401

from cram_emu import Device, PoisonError
from cram_emu.errors import InvalidArgument, NoMemory
from cram_emu.host import Driver, ManagedMemory, Zswap

#: Programs for run_child() begin with this: a device, a manager, a memory, and page 4 of it on the device.
RIG = """
    import ctypes, os, signal, struct, sys
    from managed import *
    from samples import PAGE, entropy, noise
    from cram_emu import Device
    from cram_emu.host import Driver, ManagedMemory, Zswap

    dev = roomy()
    manager = no_swap([dev])
    memory = ManagedMemory(64 * PAGE, "1M", manager, delivery=sys.argv[1])
    store(memory, {0: KINDS["random"], 4: KINDS["random"], 8: KINDS["shrinks"]})
"""


def program(text: str) -> str:
    return textwrap.dedent(RIG) + textwrap.dedent(text)


class TestLimits:
    """Never more frames than dram, whoever touches what; all bytes are kept."""

    def test_dram(self, delivery):
        with roomy() as dev, no_swap([dev]) as manager, memory_of(manager, 512, "64K", delivery=delivery) as memory:
            data = b"".join(entropy(page + 1, 600) for page in range(512))
            memory[:] = data
            # A fault counts what it may need before it knows what it takes.
            wait_until(lambda: len(resident_pages(memory.address, 512)) == memory.stats.resident, "the last fault's end")
            assert manager.root.stats.anon == memory.stats.resident * PAGE <= 16 * PAGE
            assert memory[:] == data
            assert len(resident_pages(memory.address, 512)) <= 16
            check_sums(manager)

    def test_two_at_once(self, run_child):
        """Where nobody takes a page, an instruction that writes to two of them ends all the same."""
        done = run_child(
            program(
                """
                with no_swap(max_pool_percent=0) as full, memory_of(full, 260, "1M") as memory:
                    for page in range(260):
                        put(memory, page, KINDS["shrinks"])
                    for page in range(1, 260, 20):
                        ctypes.memmove(memory.address + page * PAGE - 8, b"x" * 16, 16)
                        assert memory[page * PAGE - 8 : page * PAGE + 8] == b"x" * 16
                print("done")
                """
            ),
            "inline",
        )
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr

    def test_room_for_all(self):
        """With room for every page nothing is stored."""
        with no_swap() as manager, memory_of(manager, 64, "1M") as memory:
            memory[:] = noise(1, 64 * PAGE)
            assert places(memory) == {"frame": 64}
            assert manager.stats.zswpout == 0

    @pytest.mark.parametrize(
        ("size", "dram", "named"),
        [(0, "1M", "0 bytes"), (4097, "1M", "4097"), ("2048G", "1M", str(2 << 40)), ("1M", 4096, "4096"), ("1M", 65537, "65537")],
    )
    def test_bad_sizes(self, nothing_left_open, size, dram, named: str):
        """A size or a limit that makes no sense is named; nothing is mapped, and no descriptor is left."""
        with no_swap() as manager:
            with pytest.raises(InvalidArgument, match=named):
                ManagedMemory(size, dram, manager)
            assert manager.root.stats.anon == 0

    def test_bad_places(self):
        """Offsets, lengths and numbers of pages outside the memory are refused by name."""
        with no_swap() as manager, memory_of(manager) as memory:
            for call in (
                lambda: memory.place(64 * PAGE),
                lambda: memory.place(-1),
                lambda: memory.discard(1, PAGE),
                lambda: memory.discard(0, 65 * PAGE),
                lambda: memory.discard(0, 100),
                lambda: memory.reclaim(-1),
                lambda: memory.reclaim(1.0),
                lambda: memory.shrink(2**63),
            ):
                with pytest.raises(InvalidArgument):
                    call()

    def test_foreign_group(self):
        with no_swap() as manager, no_swap() as other:
            with pytest.raises(InvalidArgument, match="group"):
                ManagedMemory("1M", "1M", manager, group=other.memcg())


class TestDiscard:
    """What is given back reads as zeros, wherever it was, and takes nothing any more."""

    def test_everywhere(self):
        with roomy() as dev, Zswap(ram="64M", swap="1M") as manager, memory_of(manager) as memory:
            store(memory, {0: KINDS["shrinks"]})
            memory.shrink(1)
            store(memory, {4: KINDS["same"], 8: KINDS["zero"]})
            manager.add_node(dev)
            store(memory, {12: KINDS["random"]})
            put(memory, 16, KINDS["random"])
            assert places(memory) == {"file": 1, "pool": 1, "zero": 1, "direct": 1, "frame": 1}
            check_sums(manager)
            memory.discard(0, 64 * PAGE)
            assert places(memory) == {}
            check_sums(manager)
            assert (dev.stats.used, manager.stats.pool_total_size, manager.stats.swap_used) == (0, 0, 0)
            assert memory[:] == bytes(64 * PAGE)

    def test_neighbours(self):
        """Pages beside the range stay; an empty range changes nothing."""
        with no_swap() as manager, memory_of(manager) as memory:
            store(memory, {page: entropy(page + 1, 100) for page in range(3)})
            memory.discard(PAGE, 0)
            assert places(memory)["pool"] == 3
            memory.discard(PAGE, PAGE)
            assert [get(memory, page) for page in range(3)] == [entropy(1, 100), bytes(PAGE), entropy(3, 100)]


class TestPoison:
    """A poisoned device page is poison to who reads it, and to nobody else."""

    @pytest.mark.parametrize("access", ["read", "write"])
    def test_reader_dies(self, run_child, delivery, access: str):
        """The access dies by SIGBUS, although it is to another line; without poison it does not."""
        for inject, status in ((True, -signal.SIGBUS), (False, 0)):
            child = run_child(
                program(
                    """
                    if sys.argv[2] == "True":
                        dev.poison.inject(memory.place(4 * PAGE).dpa + 64)
                    address = memory.address + 4 * PAGE + 3000
                    if sys.argv[3] == "read":
                        ctypes.string_at(address, 1)
                    else:
                        ctypes.memset(address, 1, 1)
                    """
                ),
                delivery, inject, access,
            )  # fmt: skip
            assert child.returncode == status, child.stderr

    def test_siginfo(self, run_child, delivery):
        """BUS_MCEERR_AR, the exact address, lsb 12; the other pages are fine before and after. The device tells who met it."""
        child = run_child(
            program(
                """
                class Action(ctypes.Structure):
                    _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_ulong * 16),
                                ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p)]

                @ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
                def handle(number, info, context):
                    number, _, code, _, at, lsb = struct.unpack_from("iiiiQh", ctypes.string_at(info, 32))
                    wait_until(lambda: met, "the device tells of it")
                    (one,) = {(meeting.pid, meeting.dpa) for meeting in met}
                    told = one == (os.getpid(), memory.place(4 * PAGE).dpa)
                    print(number, code, at - memory.address, lsb, get(memory, 8) == KINDS["shrinks"], told, flush=True)
                    os._exit(0)

                action = Action(ctypes.cast(handle, ctypes.c_void_p).value, (ctypes.c_ulong * 16)(), 4, None)
                assert ctypes.CDLL(None).sigaction(signal.SIGBUS, ctypes.byref(action), None) == 0
                # Mapped after the handler was installed, the core's own is in front of it.
                other = ManagedMemory(64 * PAGE, "1M", manager, delivery=sys.argv[1])
                met = []
                dev.on_consumed(met.append)
                dev.poison.inject(memory.place(4 * PAGE).dpa)
                assert get(memory, 0) == KINDS["random"]
                ctypes.string_at(memory.address + 4 * PAGE + 1234, 1)
                """
            ),
            delivery,
        )
        assert child.returncode == 0, child.stderr
        assert child.stdout == f"{int(signal.SIGBUS)} 4 {4 * PAGE + 1234} 12 True True\n"

    def test_dropped_write(self):
        """What a full device drops without a word is poison, never wrong data, and each is counted by the device."""
        with Device("1M", "64K", lthresh=None, hthresh=None) as dev, no_swap() as manager, memory_of(manager, 64) as memory:
            node = manager.add_node(dev, Driver(safe=lambda node, registers: True))
            pages = {2 * number: noise(number + 1) for number in range(32)}
            store(memory, pages)
            assert places(memory) == {"direct": 32}
            lost = {page for page in pages if dev.page(memory.place(page * PAGE).dpa).poisoned}
            assert len(lost) == dev.stats.dropped_writes == 16
            for page in pages.keys() - lost:
                assert get(memory, page) == pages[page]
            with pytest.raises(PoisonError):
                with memory.pin(min(lost) * PAGE, PAGE):
                    pass
            assert node.stats.stored == 16
            check_sums(manager)

    def test_enough_room(self):
        """The same pages on a device with room for them: none is lost."""
        with Device("1M", "256K", lthresh=None, hthresh=None) as dev, no_swap([dev]) as manager, memory_of(manager) as memory:
            pages = {2 * number: noise(number + 1) for number in range(32)}
            store(memory, pages)
            assert dev.stats.dropped_writes == 0
            assert {page: get(memory, page) for page in pages} == pages

    def test_discard_clears(self, skip_unless_kernel_faults):
        """A poisoned page that is given back reads as zeros and can be written; its device page is no poison to the next one."""
        with roomy() as dev, no_swap([dev]) as manager, memory_of(manager, delivery="monitor") as memory:
            null = os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)
            for seen in (False, True):
                store(memory, {4: KINDS["random"]})
                dev.poison.inject(memory.place(4 * PAGE).dpa)
                with memoryview(memory) as view:
                    if seen:
                        with pytest.raises(OSError) as caught:
                            os.write(null, view[4 * PAGE : 5 * PAGE])
                        assert caught.value.errno == errno.EFAULT
                    memory.discard(4 * PAGE, PAGE)
                    assert os.write(null, view[4 * PAGE : 5 * PAGE]) == PAGE
                assert (dev.stats.poisoned, dev.stats.used) == (0, 0)
                store(memory, {4: KINDS["shrinks"]})
                assert get(memory, 4) == KINDS["shrinks"]
            os.close(null)

    def test_poison_stays(self, skip_unless_kernel_faults):
        """A poisoned page is poison each time it is read, and not moved by reclaim, shrinking or compaction."""
        with roomy() as dev, no_swap([dev]) as manager, memory_of(manager, delivery="monitor") as memory:
            store(memory, {4: KINDS["random"], 8: KINDS["random"]})
            place = memory.place(4 * PAGE)
            dev.poison.inject(place.dpa)
            with open(os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600), "wb", buffering=0) as file, memoryview(memory) as view:
                for act in (lambda: memory.reclaim(ALL), lambda: memory.shrink(ALL), manager.compact, memory.balance):
                    act()
                    with pytest.raises(OSError) as caught:
                        file.write(view[4 * PAGE : 5 * PAGE])
                    assert caught.value.errno == errno.EFAULT
                    assert memory.place(4 * PAGE) == place
                assert file.write(view[8 * PAGE : 9 * PAGE]) == PAGE
            assert manager.nodes[0].stats.poisoned <= 4
            check_sums(manager)


class TestSystemCalls:
    """read(2) and write(2) work on pages without a frame under monitor delivery; inline they fail, and lose nothing."""

    def test_both(self, tmp_path, delivery):
        data = b"".join(entropy(page + 1, 700) for page in range(64))
        with roomy() as dev, no_swap([dev]) as manager, memory_of(manager, delivery=delivery) as memory:
            memory[:] = data
            memory.reclaim(ALL)
            with open(tmp_path / "file", "w+b", buffering=0) as file, memoryview(memory) as view:
                if delivery == "monitor":
                    assert file.write(view) == len(data)
                    memory.discard(0, len(data))
                    file.seek(0)
                    assert file.readinto(view) == len(data)
                else:
                    with pytest.raises(OSError) as caught:
                        file.write(view[:PAGE])
                    assert caught.value.errno == errno.EFAULT
            assert memory[:] == data


class TestPins:
    """A pinned page keeps its frame under any reclaim, whoever writes to it; an unpinned one does not."""

    def test_pinned(self, delivery):
        with roomy() as dev, no_swap([dev]) as manager, memory_of(manager, delivery=delivery) as memory:
            store(memory, {4: KINDS["random"], 8: KINDS["random"]})
            with memory.pin(4 * PAGE, PAGE):
                memory.reclaim(ALL)
                assert (where(memory, 4), where(memory, 8)) == ("frame", "direct")
                ctypes.memmove(memory.address + 4 * PAGE, KINDS["shrinks"], PAGE)
                memory.reclaim(ALL)
                assert resident_pages(memory.address, 64) == {4}
            memory.reclaim(ALL)
            assert where(memory, 4) == "direct"
            assert get(memory, 4) == KINDS["shrinks"]
            check_sums(manager)

    def test_too_many(self):
        """More pages than the frames allow are refused, and none of them stays pinned."""
        with no_swap() as manager, memory_of(manager, 64, "64K") as memory:
            with pytest.raises(NoMemory), memory.pin(0, 16 * PAGE):
                pass
            memory.reclaim(ALL)
            assert memory.stats.resident == 0

    def test_poison(self):
        """PoisonError names the page, and the whole ones before it are not pinned."""
        with roomy() as dev, no_swap([dev]) as manager, memory_of(manager) as memory:
            store(memory, {4: KINDS["random"], 5: KINDS["random"]})
            dev.poison.inject(memory.place(5 * PAGE).dpa)
            with pytest.raises(PoisonError, match=f"0x{5 * PAGE:x}"), memory.pin(4 * PAGE, 2 * PAGE):
                pass
            memory.reclaim(ALL)
            assert memory.stats.resident == 0


class TestLockedPages:
    """mlock(2) does not keep a frame from reclaim, nor its bytes from anybody."""

    def test_reclaimed(self):
        libc = ctypes.CDLL(None, use_errno=True)
        with roomy() as dev, no_swap([dev]) as manager, memory_of(manager, 64, "64K") as memory:
            pages = {page: entropy(page + 1, 900) for page in range(64)}
            for page in range(8):
                put(memory, page, pages[page])
            assert libc.mlock(ctypes.c_void_p(memory.address), ctypes.c_size_t(8 * PAGE)) == 0
            for page in range(8, 64):
                put(memory, page, pages[page])
            memory.reclaim(ALL)
            assert resident_pages(memory.address, 64) == set()
            check_sums(manager)
            assert {page: get(memory, page) for page in pages} == pages


class TestPlace:
    """place() says where a page is and changes nothing."""

    def test_no_load(self):
        with roomy() as dev, no_swap([dev]) as manager, memory_of(manager) as memory:
            store(memory, {4: KINDS["random"]})
            before = manager.stats, dev.stats, memory.stats
            place = memory.place(4 * PAGE + 17)
            assert (place.where, place.node, place.size) == ("direct", 0, PAGE)
            assert dev.page(place.dpa).state == "raw"
            assert memory.place(20 * PAGE).where == "none"
            assert (manager.stats, dev.stats, memory.stats) == before
