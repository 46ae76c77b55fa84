"""What writes do, without a mount: the exact calls that reach the device, in order, and what is refused."""

import errno
from typing import Any

import pytest
from samples import PAGE

from cram_emu.errors import Busy, CramError, InvalidArgument, NoAnswer
from cram_emu.sysfs.fuse import errno_of
from cram_emu.sysfs.machine import Machine
from cram_emu.sysfs.memdev import Memdev

MIB = 1 << 20
REGISTERS = "sys/kernel/debug/cram_device/mem0"
POISON = "sys/kernel/debug/cxl/mem0"
ROOT = "sys/devices/platform/ACPI0017:00/root0"
MEM0 = "sys/devices/pci0000:35/0000:35:00.0/0000:36:00.0/mem0"


def written(machine: Machine, path: str, text: str) -> int:
    """0, or the errno that a client would get."""
    try:
        machine.table.write(path, text)
    except (OSError, CramError) as error:
        return errno_of(error)
    return 0


class Recorder:
    """A device that says what is asked of it, and does it."""

    def __init__(self, device: Any, calls: list):
        self.__dict__.update(_device=device, _calls=calls)

    def __getattr__(self, name: str):
        value = getattr(self._device, name)
        if name == "poison":
            return Recorder(value, self._calls)
        if name not in ("inject", "clear", "set_thresholds"):
            return value

        def called(*args, **kwargs):
            self._calls.append((name, *args, *kwargs.items()))
            return value(*args, **kwargs)

        return called

    def __iter__(self):
        return iter(self._device)

    def __setattr__(self, name: str, value: Any) -> None:
        self._calls.append((name, value))
        setattr(self._device, name, value)


@pytest.fixture
def memdev(machine: Machine) -> Memdev:
    return machine.members()[0]


@pytest.fixture
def calls() -> list:
    return []


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, calls: list):
    """A machine whose device records."""
    from cram_emu.sysfs import runtime

    create = runtime.DeviceFiles.create

    def recording(self, *args):
        device, path = create(self, *args)
        return Recorder(device, calls), path

    monkeypatch.setattr(runtime.DeviceFiles, "create", recording)
    machine = Machine()
    machine.create("64M", "1M")
    yield machine
    machine.close()


def test_exact_order(recorded: Machine, calls: list):
    """A script's writes reach the device one by one, as they were made, and nothing else does."""
    control = "sys/kernel/debug/cram/control"
    nid = recorded.members()[0].nid
    for path, text in (
        (f"{POISON}/inject_poison", "0x1000\n"),
        (f"{POISON}/inject_poison", "4160"),
        (f"{POISON}/inject_poison", "0x1001"),
        (f"{POISON}/clear_poison", "0x1000\n\0"),
        (f"{REGISTERS}/hthresh", "50%"),
        (f"{REGISTERS}/lthresh", "256K"),
        (f"{REGISTERS}/lthresh", "nonsense"),
        (f"{REGISTERS}/ratio_hthresh", "2000"),
        (f"{REGISTERS}/pressure", "500"),
        (f"{REGISTERS}/pressure", "1001"),
        (f"{REGISTERS}/no_alloc", "y"),
        (control, f"noalloc {nid} 0"),
        (f"{MEM0}/trigger_poison_list", "1"),
    ):
        written(recorded, path, text)

    def thresholds(low: int, high: int, ratio: float) -> tuple:
        return (
            "set_thresholds",
            ("lthresh", low),
            ("hthresh", high),
            ("ratio_lthresh", 0.0),
            ("ratio_hthresh", ratio),
        )

    assert calls == [
        ("inject", 0x1000),
        ("inject", 4160),
        ("inject", 0x1001),
        ("clear", 0x1000),
        thresholds(MIB // 10, MIB // 2, 0.0),
        thresholds(256 << 10, MIB // 2, 0.0),
        thresholds(256 << 10, MIB // 2, 2.0),
        ("pressure", 500),
        ("no_alloc", True),
        ("no_alloc", False),
    ]


class TestPoison:
    """drivers/cxl/core/memdev.c, cxl_inject_poison() and cxl_clear_poison()."""

    @pytest.mark.parametrize("name", ["inject_poison", "clear_poison"])
    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("1", errno.EINVAL),
            ("0x20", errno.EINVAL),
            ("", errno.EINVAL),
            ("-64", errno.EINVAL),
            ("64 64", errno.EINVAL),
            (str(64 * MIB), errno.EINVAL),
            ("0xffffffffffffffc0", errno.EINVAL),
            ("0x10000000000000000", errno.ERANGE),
        ],
    )
    def test_refused(self, machine: Machine, memdev: Memdev, name: str, text: str, number: int):
        memdev.device.poison.inject(128)
        assert written(machine, f"{POISON}/{name}", text) == number
        assert [record.dpa for record in memdev.device.poison] == [128]

    def test_inject_twice_and_clear(self, machine: Machine, memdev: Memdev):
        memdev.device.write(0, b"\xaa" * PAGE)
        for _ in range(2):
            assert written(machine, f"{POISON}/inject_poison", "64\n") == 0
        assert memdev.device.page(0).poisoned == 0b10
        assert written(machine, f"{POISON}/clear_poison", "64\n") == 0
        assert memdev.device.read(0, 192) == b"\xaa" * 64 + bytes(64) + b"\xaa" * 64

    def test_full_list(self, machine: Machine, memdev: Memdev):
        for line in range(1024):
            assert written(machine, f"{POISON}/inject_poison", str(line * PAGE)) == 0
        assert written(machine, f"{POISON}/inject_poison", str(2000 * PAGE)) == errno.EBUSY
        assert len(memdev.device.poison) == 1024

    def test_clear_that_cannot(self, machine: Machine, memdev: Memdev, monkeypatch):
        def no_answer(dpa: int):
            raise NoAnswer("client 7 does not answer")

        monkeypatch.setattr(memdev.device.poison, "clear", no_answer)
        assert written(machine, f"{POISON}/clear_poison", "64") == errno.ENXIO


class TestRefused:
    """What makes no sense is refused with the kernel's errno, and every file reads as before."""

    @pytest.mark.parametrize(
        ("path", "text", "number"),
        [
            (f"{REGISTERS}/lthresh", "abc", errno.EINVAL),
            (f"{REGISTERS}/lthresh", "2M", errno.EINVAL),
            (f"{REGISTERS}/lthresh", "101%", errno.ERANGE),
            (f"{REGISTERS}/hthresh", "1", errno.EINVAL),
            (f"{REGISTERS}/ratio_lthresh", "1.5", errno.EINVAL),
            (f"{REGISTERS}/ratio_lthresh", "2000", errno.EINVAL),
            (f"{REGISTERS}/pressure", "1001", errno.EINVAL),
            (f"{REGISTERS}/no_alloc", "maybe", errno.EINVAL),
            (f"{MEM0}/trigger_poison_list", "0", errno.EINVAL),
            (f"{MEM0}/security/sanitize", "1", errno.EBUSY),
            (f"{ROOT}/decoder0.0/create_ram_region", "region1", errno.EBUSY),
            (f"{ROOT}/decoder0.0/create_ram_region", "one", errno.EINVAL),
            (f"{ROOT}/decoder0.0/delete_region", "region9", errno.ENODEV),
            (f"{ROOT}/decoder0.0/delete_region", "region0", errno.EBUSY),
            (f"{ROOT}/decoder0.0/region0/commit", "0", errno.EBUSY),
            (f"{ROOT}/decoder0.0/region0/size", "big", errno.EINVAL),
            ("sys/bus/cxl/flush", "2", errno.EINVAL),
            ("sys/bus/cxl/drivers/cxl_mem/bind", "mem7", errno.ENODEV),
            ("sys/bus/cxl/drivers_autoprobe", "2", errno.EINVAL),
            ("sys/kernel/mm/numa/demotion_enabled", "perhaps", errno.EINVAL),
            ("sys/kernel/mm/mempolicy/weighted_interleave/node1", "256", errno.ERANGE),
            ("sys/kernel/debug/cram/control", "block", errno.EINVAL),
            ("sys/kernel/debug/cram/control", "block 99", errno.ENODEV),
            ("sys/kernel/debug/cram/control", "explode 1", errno.EINVAL),
            ("sys/kernel/debug/cram_device/add", "8G", errno.EINVAL),
            ("sys/kernel/debug/cram_device/add", "0 0", errno.EINVAL),
            ("sys/kernel/debug/cram_device/add", "1M 2M", errno.EINVAL),
            ("sys/kernel/debug/cram_device/add", "/nowhere", errno.ENOENT),
            ("sys/kernel/debug/cram_device/remove", "mem1", errno.ENODEV),
        ],
    )
    def test_unchanged(self, machine: Machine, path: str, text: str, number: int):
        before = snapshot(machine)
        assert written(machine, path, text) == number
        assert snapshot(machine) == before

    def test_foreign_file(self, machine: Machine, tmp_path):
        (tmp_path / "foreign").write_bytes(b"x" * 8192)
        add = "sys/kernel/debug/cram_device/add"
        assert written(machine, add, str(tmp_path / "foreign")) == errno.EINVAL
        assert written(machine, add, machine.members()[0].path) == errno.EBUSY
        assert len(machine.members()) == 1


def snapshot(machine: Machine) -> dict[str, str]:
    """What the machine's own files say; the host's go their own ways."""
    found = {}
    for path, entry in machine.table.walk():
        if entry.st_mode & 0o170444 == 0o100444 and "/node0/" not in path and "trace" not in path:
            try:
                found[path] = machine.table.read(path)
            except OSError as error:
                found[path] = str(error.errno)
    return found


class TestControl:
    def test_balloon(self, machine: Machine, memdev: Memdev):
        control = "sys/kernel/debug/cram/control"
        assert written(machine, control, f"inflate {memdev.nid} 100\n") == 0
        assert f"nr_balloon_pages 100\n" in machine.table.read(f"{memdev.node}/vmstat")
        assert written(machine, control, f"inflate {memdev.nid} 16384") == errno.ENOSPC
        assert written(machine, control, f"deflate {memdev.nid} 101") == errno.EINVAL
        assert written(machine, control, f"deflate {memdev.nid} 100") == 0
        assert written(machine, control, f"block {memdev.nid}") == 0
        assert machine.table.read("sys/kernel/debug/cram/nodes").split("\n")[1].split()[6] == "1"
        assert written(machine, control, f"demote {memdev.nid} 0 1") == errno.EOPNOTSUPP


class TestErrno:
    """The edge: every exception is an errno."""

    @pytest.mark.parametrize(
        ("error", "number"),
        [
            (InvalidArgument("x"), errno.EINVAL),
            (Busy("x"), errno.EBUSY),
            (NoAnswer("x"), errno.ETIMEDOUT),
            (OSError(errno.ENOSPC, "x"), errno.ENOSPC),
            (MemoryError(), errno.ENOMEM),
            (RuntimeError(), errno.EIO),
            (KeyboardInterrupt(), errno.EIO),
            (SystemExit(), errno.EIO),
        ],
    )
    def test_errno(self, error: BaseException, number: int):
        assert errno_of(error) == number
