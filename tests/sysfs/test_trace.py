"""The lines of the trace, in the format of drivers/cxl/core/trace.h, and how its readers wait."""

import errno
import os
import re
import select
import threading

import pytest
from samples import PAGE, run_threads

from cram_emu.cli.events import parse
from cram_emu.sysfs import trace as tracing
from cram_emu.sysfs.machine import Machine
from cram_emu.sysfs.trace import Trace

TRACE = "sys/kernel/tracing/trace"
PIPE = "sys/kernel/tracing/trace_pipe"
REGISTERS = "sys/kernel/debug/cram_device/mem0"
POISON = "sys/kernel/debug/cxl/mem0"
NO_UUID = "00000000-0000-0000-0000-000000000000"


def events(machine: Machine, name: str) -> list[dict]:
    lines = machine.table.read(TRACE).splitlines()
    parsed = [parse(line) for line in lines if not line.startswith("#")]
    return [event for event in parsed if event["event"] == name]


def available(machine: Machine) -> str:
    """What a reader that does not wait gets from trace_pipe."""
    file = machine.table.find(PIPE).open(os.O_RDONLY | os.O_NONBLOCK)
    try:
        return file.read(1 << 20, 0).decode()
    finally:
        file.close()


class TestLines:
    def test_inject_and_clear(self, machine: Machine):
        machine.table.write(f"{POISON}/inject_poison", "0x1040")
        machine.table.write(f"{POISON}/clear_poison", "0x1040")
        lines = [re.sub(r".*?: (cxl_poison)", r"\1", line) for line in available(machine).splitlines()]
        hpa = f"{machine.window + 0x1040:#x}"
        assert [line for line in lines if line.startswith("cxl_poison")] == [
            f"cxl_poison: memdev=mem0 host=0000:36:00.0 serial=828927508481 trace_type={kind} "
            f"region=region0 region_uuid={NO_UUID} hpa={hpa} dpa=0x1040 dpa_length=0x40 "
            "source=Unknown flags= overflow_time=0"
            for kind in ("Inject", "Clear")
        ]

    def test_the_device_records_what_it_got(self, machine: Machine):
        machine.table.write(f"{POISON}/inject_poison", "64")
        (event,) = events(machine, "cxl_general_media")
        assert (event["dpa"], event["log"]) == ("40", "Informational")
        assert event["transaction_type"] == "Host Inject Poison"
        assert event["descriptor"] == "UNCORRECTABLE_EVENT"

    def test_list(self, machine: Machine):
        for dpa in (0, PAGE):
            machine.members()[0].device.poison.inject(dpa)
        machine.table.write(f"{machine.members()[0].dir}/trigger_poison_list", "1")
        listed = events(machine, "cxl_poison")
        assert [(e["trace_type"], e["dpa"], e["source"]) for e in listed] == [
            ("List", "0x0", "Injected"),
            ("List", "0x1000", "Injected"),
        ]

    def test_dropped_writes_are_found_by_who_looks(self, machine: Machine):
        machine.members()[0].device.write(0, os.urandom(2 << 20))
        (dropped, *more) = events(machine, "cxl_general_media")
        assert dropped["transaction_type"] == "Host Write" and dropped["log"] == "Failure"
        assert len(more) + 1 == machine.members()[0].device.stats.poison_records
        assert events(machine, "cxl_general_media") == [dropped, *more]

    def test_overflow_of_the_poison_list(self, machine: Machine):
        machine.members()[0].device.write(0, os.urandom(8 << 20))
        assert machine.members()[0].device.stats.poison_overflow > 0
        last = events(machine, "cxl_general_media")[-1]
        assert last["descriptor"] == "UNCORRECTABLE_EVENT|POISON_LIST_OVERFLOW"
        machine.table.write(f"{machine.members()[0].dir}/trigger_poison_list", "1")
        assert events(machine, "cxl_poison")[0]["flags"] == "Overflow"
        assert events(machine, "cxl_poison")[0]["overflow_time"] != "0"

    def test_reader_beside_a_collector(self, machine: Machine, monkeypatch):
        """The race: somebody else is about to record what a reader has come for. It waits for him."""
        poison = machine.members()[0].device.poison
        recording, go_on = threading.Event(), threading.Event()
        records, found = type(poison).records, []

        def dawdle(poison) -> list:
            listed = records(poison)
            if not recording.is_set():
                recording.set()
                assert go_on.wait(30)
            return listed

        monkeypatch.setattr(type(poison), "records", dawdle)
        poison.inject(0x1000)
        collector = threading.Thread(target=machine.trace.show)
        collector.start()
        assert recording.wait(30)
        reader = threading.Thread(target=lambda: found.extend(events(machine, "cxl_general_media")))
        reader.start()
        # One that does not wait has come back by now, with nothing.
        reader.join(0.2)
        go_on.set()
        reader.join()
        collector.join()
        assert len(found) == 1

    def test_names(self, machine: Machine, start_child):
        """Whatever a process is called, cut inside a character or with a line's end, every line can be read."""
        device = machine.members()[0].device
        device.poison.inject(0)
        for name in ("Grüße-日本語".encode()[:15], b"two\nlines", b"a b"):
            child = start_child(
                f"from cram_emu import Device\nopen('/proc/self/comm', 'wb').write({name!r})\n"
                f"with Device.open({machine.table.read(f'{REGISTERS}/path').strip()!r}) as dev, dev.map(delivery='inline') as m: m[0]"
            )
            child.communicate()
        assert len(events(machine, "cram_poison_consumed")) == 3
        assert available(machine).count("cram_poison_consumed") == 3

    def test_thresholds(self, machine: Machine):
        device, seen = machine.members()[0].device, threading.Semaphore(0)
        device.on_interrupt(lambda interrupt: seen.release())
        device.write(0, os.urandom(1 << 20))
        assert seen.acquire(timeout=30)
        device.discard(0, 1 << 20)
        assert seen.acquire(timeout=30)
        low, high = events(machine, "cxl_memory_module")
        assert (low["health_status"], low["log"]) == ("MEM_CAPACITY_DEGRADED", "Warning")
        assert (high["health_status"], high["log"]) == ("", "Informational")
        assert low["event_type"] == "Health Status Change"


class TestPipe:
    @pytest.fixture
    def trace(self) -> Trace:
        return Trace(lambda: None)

    @staticmethod
    def pipe(trace: Trace, flags: int = os.O_RDONLY):
        return dict(tracing.platform(trace))[PIPE].open(flags)

    def test_consumes(self, trace: Trace):
        """Who opens later sees what came later; readers at one time all see all."""
        first, second = self.pipe(trace), self.pipe(trace)
        trace.emit("one")
        assert first.read(4096, 0).endswith(b": one\n")
        assert second.read(4096, 0).endswith(b": one\n")
        third = self.pipe(trace, os.O_NONBLOCK)
        with pytest.raises(OSError) as caught:
            third.read(4096, 0)
        assert caught.value.errno == errno.EAGAIN
        assert trace.show().endswith(": one\n")

    def test_whole_lines(self, trace: Trace):
        pipe = self.pipe(trace)
        trace.emit("one")
        trace.emit("two")
        length = len(pipe.read(100, 0))
        assert length < 100 and pipe.read(4096, 0).endswith(b": two\n")

    def test_waits(self, trace: Trace):
        """A reader that waits gets the line that comes, and the end of the file when all is over."""
        pipe, read = self.pipe(trace), []
        waiting = threading.Event()
        trace._collect = waiting.set

        def reader():
            while text := pipe.read(4096, 0):
                read.append(text)

        def writer():
            assert waiting.wait(30)
            trace.emit("late")
            trace.close()

        run_threads(reader, writer)
        assert len(read) == 1 and read[0].endswith(b": late\n")

    def test_interrupted(self, trace: Trace):
        with pytest.raises(OSError) as caught:
            self.pipe(trace).read(4096, 0, lambda: True)
        assert caught.value.errno == errno.EINTR

    def test_readers_are_limited(self, trace: Trace):
        """Each may hold a thread of the server."""
        pipes = [self.pipe(trace) for _ in range(tracing.READERS)]
        with pytest.raises(OSError) as caught:
            self.pipe(trace)
        assert caught.value.errno == errno.EBUSY
        pipes.pop().close()
        self.pipe(trace).close()

    def test_poll(self, trace: Trace):
        pipe, woken = self.pipe(trace), []
        assert pipe.poll(lambda: woken.append(1)) == 0
        trace.emit("one")
        assert woken == [1] and pipe.poll(None) & select.POLLIN
        pipe.read(4096, 0)
        assert pipe.poll(None) == 0

    def test_ring(self, trace: Trace, monkeypatch: pytest.MonkeyPatch):
        """It holds the newest lines; a reader that is lapped goes on with the oldest there is."""
        pipe = self.pipe(trace)
        for number in range(tracing.RING + 5):
            trace.emit(f"event {number}.")
        assert b": event 5.\n" in pipe.read(200, 0)
        assert f"{tracing.RING}/{tracing.RING + 5}" in trace.show()
        trace.clear()
        assert "event" not in trace.show()
