"""fail_cram_*: the kernel's fault attributes as files, for a device and for all of a machine."""

import errno
import os
import re
import signal

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from samples import PAGE, noise
from support import wait_until

from cram_emu import PoisonError
from cram_emu.cli.events import parse
from cram_emu.errors import CramError, DeviceGone
from cram_emu.faults import ATTRIBUTES, NAMES, file_name
from cram_emu.sysfs.fuse import errno_of
from cram_emu.sysfs.machine import Machine

DEBUG = "sys/kernel/debug"
MEM0 = f"{DEBUG}/cram_device/mem0"
TRACE = "sys/kernel/tracing/trace"


def show(machine: Machine, path: str) -> str:
    return machine.table.read(path)


def store(machine: Machine, path: str, text: str) -> int:
    try:
        machine.table.write(path, text)
    except (OSError, CramError) as error:
        return errno_of(error)
    return 0


def test_there(machine: Machine):
    """Every fault of the device, here and there, off."""
    for directory in (DEBUG, MEM0):
        for name in NAMES:
            files = [file_name(attribute) for attribute in ATTRIBUTES]
            values = [show(machine, f"{directory}/fail_cram_{name}/{file}").strip() for file in (*files, "struck")]
            assert values == ["0", "1", "-1", "0", "0", "0", "constant", "1", "N", "0"]


def test_strikes(machine: Machine):
    """In the manner of failcmd: attribute by attribute; in effect before write(2) returns."""
    device = machine.members()[0].device
    for attribute, text in (("interval", "2"), ("times", "3"), ("probability", "100")):
        assert store(machine, f"{MEM0}/fail_cram_store/{attribute}", text) == 0
        assert show(machine, f"{MEM0}/fail_cram_store/{attribute}") == f"{text}\n"
    for page in range(20):
        device.write(page * PAGE, noise(page))
    assert device.stats.dropped_writes == 3
    assert show(machine, f"{MEM0}/fail_cram_store/struck") == "3\n"
    assert show(machine, f"{MEM0}/fail_cram_store/times") == "0\n"


def test_causes_come_first(machine: Machine):
    """However fast they follow each other: no page's poison is told before its fault, and no time goes back."""
    assert store(machine, f"{MEM0}/fail_cram_store/probability", "100") == 0
    for page in range(300):
        machine.members()[0].device.write(page * PAGE, noise(page))
    lines = [line for line in show(machine, TRACE).splitlines() if not line.startswith("#")]
    struck: set[int] = set()
    poisoned = 0
    for text in lines:
        dpa = re.search(r"\bdpa=(\w+)", text)
        if "cram_fault:" in text:
            struck.add(int(dpa[1], 16))
        elif "cxl_general_media:" in text:
            assert int(dpa[1], 16) in struck
            poisoned += 1
    assert poisoned == len(struck) == 300
    times = [float(text.split("..... ", 1)[1].split(":")[0]) for text in lines]
    assert times == sorted(times)


def test_all_devices(machine: Machine):
    machine.create("64M", "1M")
    assert store(machine, f"{DEBUG}/fail_cram_store/probability", "0.5") == 0
    for name in ("mem0", "mem1"):
        assert show(machine, f"{DEBUG}/cram_device/{name}/fail_cram_store/probability") == "0.5\n"
    assert store(machine, f"{MEM0}/fail_cram_store/probability", "0") == 0
    assert show(machine, f"{DEBUG}/cram_device/mem1/fail_cram_store/probability") == "0.5\n"


@pytest.mark.parametrize(
    "file, text",
    [("probability", "101"), ("probability", "-1"), ("probability", "often"), ("times", "-2"), ("times", "1.5"),
     ("interval", "-1"), ("seed", ""), ("value", "1"), ("space", str(2**64)), ("verbose", "3"), ("task-filter", "maybe"),
     ("distribution", "normal"), ("distribution", "")],
)  # fmt: skip
def test_refused(machine: Machine, file: str, text: str):
    before = show(machine, f"{MEM0}/fail_cram_store/{file}")
    assert store(machine, f"{MEM0}/fail_cram_store/{file}", text) == errno.EINVAL
    assert show(machine, f"{MEM0}/fail_cram_store/{file}") == before


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(NAMES), st.sampled_from(ATTRIBUTES), st.text(st.characters(max_codepoint=127), max_size=40))
def test_anything(machine: Machine, name: str, attribute: str, text: str):
    """A write is taken, or answered EINVAL and nothing changes."""
    path = f"{MEM0}/fail_cram_{name}/{file_name(attribute)}"
    before = show(machine, path)
    code = store(machine, path, text)
    assert code in (0, errno.EINVAL)
    assert code == 0 or show(machine, path) == before


@pytest.mark.parametrize("cause", ["store", None])
def test_noticed(machine: Machine, start_child, cause: str | None):
    """Who meets poison stands in the trace, by name and number, behind the poison and its cause; who meets none does not."""
    device = machine.members()[0].device
    store(machine, f"{MEM0}/fail_cram_store/probability", "100" if cause else "0")
    device.write(5 * PAGE, noise(1))
    child = start_child(
        f"from cram_emu import Device\nwith Device.open({show(machine, f'{MEM0}/path').strip()!r}) as dev:\n"
        f"    with dev.map(delivery='inline') as memory: print(memory[5 * {PAGE}])"
    )
    child.communicate()
    assert child.returncode == (-signal.SIGBUS if cause else 0)
    parsed = [parse(line) for line in show(machine, TRACE).splitlines() if not line.startswith("#")]
    story = [(line["event"], line["dpa"], line["pid"]) for line in parsed if line["event"] != "cxl_memory_module"]
    us, at = os.getpid(), f"{5 * PAGE:#x}"
    expected = [("cram_fault", at, us), ("cxl_general_media", at[2:], us), ("cram_poison_consumed", at, child.pid)]
    assert story == (expected if cause else [])


def test_task_filter(machine: Machine):
    """As failcmd has it: only who is marked is struck."""
    device = machine.members()[0].device
    for attribute, text in (("task-filter", "Y"), ("probability", "100")):
        assert store(machine, f"{MEM0}/fail_cram_store/{attribute}", text) == 0
    for text, struck in ((None, 0), (f"{os.getpid()}", 1), (f"{os.getpid()} 0", 1), (f"{os.getpid()} 1", 2)):
        assert text is None or store(machine, f"{MEM0}/make-it-fail", text) == 0
        marked = text is not None and not text.endswith(" 0")
        assert show(machine, f"{MEM0}/make-it-fail") == (f"{os.getpid()}\n" if marked else "")
        device.write(0, noise(1))
        assert show(machine, f"{MEM0}/fail_cram_store/struck") == f"{struck}\n"


@pytest.mark.parametrize("text", ["", "x", "1", "-1", "0", "4294967296", f"{os.getpid()} 2", f"{os.getpid()} 1 1"])
def test_no_such_task(machine: Machine, text: str):
    assert store(machine, f"{MEM0}/make-it-fail", text) == errno.EINVAL
    assert show(machine, f"{MEM0}/make-it-fail") == ""


def test_story(machine: Machine):
    """The trace tells the fault, and then what followed from it."""
    device = machine.members()[0].device
    store(machine, f"{MEM0}/fail_cram_store/times", "1")
    store(machine, f"{MEM0}/fail_cram_store/probability", "100")
    device.write(5 * PAGE, noise(1))
    wait_until(lambda: "cxl_general_media" in show(machine, TRACE), "the loss is told")
    lines = [line.partition(": ")[2] for line in show(machine, TRACE).splitlines() if not line.startswith("#")]
    assert lines[0].startswith("cram_fault: memdev=mem0 host=0000:36:00.0 serial=")
    assert lines[0].endswith(" dpa=0x5000") and " fault=store " in lines[0]
    assert lines[1].startswith("cxl_general_media: ") and " dpa=5000 " in lines[1]


@pytest.mark.parametrize("verbose", ["0", "1"])
def test_capacity_story(machine: Machine, verbose: str):
    """Real capacity that is lost is a health event of the module, also where the strike itself is not told."""
    device = machine.members()[0].device
    for attribute, text in (("value", "65536"), ("times", "1"), ("verbose", verbose), ("probability", "100")):
        assert store(machine, f"{MEM0}/fail_cram_capacity/{attribute}", text) == 0
    assert "cxl_memory_module" not in show(machine, TRACE)
    device.write(0, noise(1))
    wait_until(lambda: "cxl_memory_module" in show(machine, TRACE), "the loss is told")
    lines = [line.partition(": ")[2] for line in show(machine, TRACE).splitlines() if not line.startswith("#")]
    assert [line.split(":")[0] for line in lines] == ["cram_fault"] * int(verbose) + ["cxl_memory_module"]
    assert "health_status='MEM_CAPACITY_DEGRADED'" in lines[-1] and " log=Warning " in lines[-1]


@pytest.mark.parametrize("command", ["remove", "reset", "power_cycle"])
def test_device_commands(machine: Machine, command: str):
    """Written "1", it is in effect before write(2) returns; anything else is refused, and nothing has happened."""
    device = machine.members()[0].device
    device.write(0, noise(1))
    for text in ("0", "", "yes", "11"):
        assert store(machine, f"{MEM0}/{command}", text) == errno.EINVAL
    assert device.read(0, PAGE) == noise(1)
    assert store(machine, f"{MEM0}/{command}", "1") == 0
    with pytest.raises(PoisonError):
        device.read(0, PAGE)


def test_removed(machine: Machine):
    """Registers answer ENODEV; what was fixed at the start, the faults and the trace are there, and the slot can be emptied."""
    assert store(machine, f"{MEM0}/remove", "1") == 0
    for name in ("used", "lthresh", "ratio", "no_alloc", "pressure", "interrupts/lthresh"):
        with pytest.raises(DeviceGone):
            show(machine, f"{MEM0}/{name}")
    for name, text in (("remove", "1"), ("pressure", "5"), ("lthresh", "1M")):
        assert store(machine, f"{MEM0}/{name}", text) == errno.ENODEV
    assert store(machine, f"{DEBUG}/cxl/mem0/inject_poison", "0x0") == errno.ENODEV
    assert show(machine, f"{MEM0}/real") == "1048576\n"
    assert show(machine, f"{MEM0}/fail_cram_removal/struck") == "1\n"
    wait_until(lambda: "fault=removal" in show(machine, TRACE), "the removal is told")
    assert store(machine, f"{DEBUG}/cram_device/remove", "mem0") == 0
    assert machine.members() == []
