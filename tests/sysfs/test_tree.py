"""What the files say, without a mount: against the reference of clients, and against the device's registers."""

import errno
import os
import stat
import threading

import pytest
from samples import PAGE, entropy

from cram_emu.sysfs import host
from cram_emu.sysfs.machine import SLOTS, WINDOW_SIZE, Machine
from cram_emu.sysfs.table import Attribute, Directory, Link

MIB = 1 << 20
NODE = f"sys/devices/system/node/node{host.nodes()[-1] + 1}"
REGISTERS = "sys/kernel/debug/cram_device"
ROOT = "sys/devices/platform/ACPI0017:00/root0"
MEM0 = "sys/devices/pci0000:35/0000:35:00.0/0000:36:00.0/mem0"


def raises(number: int):
    return pytest.raises(OSError, check=lambda error: error.errno == number)


def resolve(machine: Machine, path: str) -> str:
    """The table's path of a path that goes over links."""
    found: list[str] = []
    for part in path.split("/"):
        if part == "..":
            found.pop()
            continue
        found.append(part)
        entry = machine.table.find("/".join(found))
        if isinstance(entry, Link):
            above = "/".join(found[:-1])
            found = resolve(machine, f"{above}/{entry.text('/'.join(found))}").split("/")
    return "/".join(found)


def meminfo(machine: Machine, node: str = NODE) -> dict[str, int]:
    """Bytes, but for huge pages."""
    rows = (line.split() for line in machine.table.read(f"{node}/meminfo").splitlines())
    return {row[2].rstrip(":"): int(row[3]) * 1024 for row in rows}


class TestCxl:
    @pytest.mark.parametrize(
        ("path", "text"),
        [
            (f"{MEM0}/ram/size", "0x4000000\n"),
            (f"{MEM0}/pmem/size", "0x0\n"),
            (f"{MEM0}/serial", "0xc0ffee0001\n"),
            (f"{MEM0}/firmware_version", "CZRAM 1.0\n"),
            (f"{MEM0}/dev", "240:0\n"),
            (
                f"{MEM0}/uevent",
                "MAJOR=240\nMINOR=0\nDEVNAME=cxl/mem0\nDEVTYPE=cxl_memdev\nDRIVER=cxl_mem\n"
                "MODALIAS=cxl:t5\n",
            ),
            (f"{ROOT}/decoder0.0/size", f"{WINDOW_SIZE:#x}\n"),
            (f"{ROOT}/decoder0.0/create_ram_region", "region1\n"),
            (f"{ROOT}/decoder0.0/region0/size", "0x4000000\n"),
            (f"{ROOT}/decoder0.0/region0/target0", "decoder2.0\n"),
            (f"{ROOT}/decoder0.0/region0/uuid", "\n"),
            (f"{ROOT}/port1/decoders_committed", "1\n"),
            (f"{ROOT}/port1/endpoint2/decoder2.0/dpa_size", "0x0000000004000000\n"),
            (f"{ROOT}/decoder0.0/region0/dax_region0/dax0.0/size", "67108864\n"),
        ],
    )
    def test_values(self, machine: Machine, path: str, text: str):
        assert machine.table.read(path) == text

    def test_addresses(self, machine: Machine):
        """Region, decoders and dax device agree on where the memory lies."""
        start = f"{machine.window:#x}\n"
        for path in (
            f"{ROOT}/decoder0.0/start",
            f"{ROOT}/decoder0.0/region0/resource",
            f"{ROOT}/port1/decoder1.0/start",
            f"{ROOT}/port1/endpoint2/decoder2.0/start",
            f"{ROOT}/decoder0.0/region0/dax_region0/dax0.0/mapping0/start",
        ):
            assert machine.table.read(path) == start

    def test_bus_links(self, machine: Machine):
        names = machine.table.find("sys/bus/cxl/devices").names()
        assert sorted(names) == [
            "dax_region0", "decoder0.0", "decoder1.0", "decoder2.0", "endpoint2", "mem0", "port1",
            "region0", "root0",
        ]  # fmt: skip
        for name in names:
            assert resolve(machine, f"sys/bus/cxl/devices/{name}").endswith(f"/{name}")

    def test_every_link_leads_somewhere(self, machine: Machine):
        """But for those to what only the host has: the bus of its memory blocks."""
        for path, entry in machine.table.walk():
            if isinstance(entry, Link) and entry.target != "sys/bus/memory":
                machine.table.find(resolve(machine, path))

    def test_character_devices(self, machine: Machine):
        mem, dax = machine.table.find("dev/cxl/mem0"), machine.table.find("dev/dax0.0")
        assert stat.S_ISCHR(mem.st_mode) and stat.S_ISCHR(dax.st_mode)
        assert (os.major(mem.rdev), os.minor(mem.rdev)) == (240, 0)
        assert (os.major(dax.rdev), os.minor(dax.rdev)) == (241, 0)


class TestNode:
    """The node knows the advertised capacity only."""

    def test_empty(self, machine: Machine):
        info = meminfo(machine)
        assert (info["MemTotal"], info["MemFree"], info["MemUsed"]) == (64 * MIB, 64 * MIB, 0)

    def test_free_follows_the_pages(self, machine: Machine):
        """A page in use is 4096 bytes less, however little or much it takes, or whether it was kept."""
        device = machine.members()[0].device
        device.write(0, entropy(1) + bytes(PAGE) + b"abcdefgh" * 512)
        assert meminfo(machine)["MemFree"] == 64 * MIB - 3 * PAGE
        device.write(MIB, os.urandom(2 * MIB))
        assert device.stats.dropped_writes > 0
        assert meminfo(machine)["MemFree"] == 64 * MIB - 3 * PAGE - 2 * MIB
        device.discard(0, 64 * MIB)
        assert meminfo(machine)["MemFree"] == 64 * MIB

    def test_the_truth_stands_in_one_directory(self, machine: Machine):
        """No other file changes when the real capacity does, but the lists that the host keeps."""
        other = Machine()
        other.create("64M", "2M")
        try:
            differing = {
                path
                for path, entry in machine.table.walk()
                if isinstance(entry, Attribute)
                and entry.st_mode & 0o444
                and "node0" not in path
                and not path.endswith(("autosuspend_delay_ms", "/trace", "debug/cram/nodes"))
                and machine.table.read(path) != other.table.read(path)
            }
        finally:
            other.close()
        assert differing == {
            f"{REGISTERS}/mem0/{name}" for name in ("path", "real", "remaining", "lthresh", "hthresh")
        }

    def test_counters(self, machine: Machine):
        machine.members()[0].device.write(0, entropy(1) * 3)
        assert "numa_hit 3\n" in machine.table.read(f"{NODE}/numastat")
        machine.members()[0].device.discard(0, 3 * PAGE)
        # Counters do not fall.
        assert "other_node 3\n" in machine.table.read(f"{NODE}/numastat")
        vmstat = dict(line.split() for line in machine.table.read(f"{NODE}/vmstat").splitlines())
        assert vmstat["nr_free_pages"] == str(64 * MIB // PAGE)
        assert vmstat["numa_other"] == "3"

    def test_meminfo_in_the_columns_of_the_kernel(self, machine: Machine):
        """Line by line as the host's own, but for the node's number and the figures."""
        try:
            kernel = (host.SYS / "devices/system/node/node0/meminfo").read_text()
        except OSError:
            pytest.skip("this kernel has no node0")
        widths = {line.split()[2]: len(line) for line in kernel.splitlines()}
        for line in machine.table.read(f"{NODE}/meminfo").splitlines():
            if (name := line.split()[2]) in widths:
                assert len(line) == widths[name], line

    def test_host_node_passes_through(self, machine: Machine):
        path = "sys/devices/system/node/node0"
        if not (host.SYS / "devices/system/node/node0").exists():
            pytest.skip("this kernel has no node0")
        assert machine.table.read(f"{path}/cpulist") == open(f"/{path}/cpulist").read()
        assert machine.table.read(f"{path}/distance").endswith(" 20\n")
        # Live, and read-only: the host's settings are not the machine's.
        with raises(errno.EACCES):
            machine.table.find(f"{path}/compact").open(os.O_WRONLY)

    def test_blocks(self):
        machine = Machine()
        try:
            machine.create("1G", "64M")
            size = int(machine.table.read("sys/devices/system/memory/block_size_bytes"), 16)
            names = [n for n in machine.table.find(NODE).names() if n.startswith("memory")]
            assert len(names) == (1 << 30) // size
            assert names[0] == f"memory{machine.window // size}"
            block = f"sys/devices/system/memory/{names[0]}"
            assert machine.table.read(f"{block}/state") == "online\n"
            assert int(machine.table.read(f"{block}/phys_index"), 16) == machine.window // size
        finally:
            machine.close()


class TestRegisters:
    """One value a file, as the device says."""

    def test_values(self, machine: Machine):
        device = machine.members()[0].device
        device.write(0, entropy(1) * 8)
        stats = device.stats
        for name in ("used", "remaining", "payload", "pages_stored", "clients", "poisoned"):
            assert machine.table.read(f"{REGISTERS}/mem0/{name}") == f"{getattr(stats, name)}\n"
        assert machine.table.read(f"{REGISTERS}/mem0/real") == f"{MIB}\n"
        assert machine.table.read(f"{REGISTERS}/mem0/ratio") == f"{round(stats.ratio * 1000)}\n"

    def test_thresholds_of_another(self, machine: Machine):
        """What a program sets is what the file says."""
        device = machine.members()[0].device
        device.set_thresholds(lthresh=4096, hthresh=8192, ratio_lthresh=1.5, ratio_hthresh=2.0)
        read = {
            name: machine.table.read(f"{REGISTERS}/mem0/{name}")
            for name in ("lthresh", "hthresh", "ratio_lthresh", "ratio_hthresh")
        }
        assert list(read.values()) == ["4096\n", "8192\n", "1500\n", "2000\n"]

    def test_interrupts_wake(self, machine: Machine):
        memdev = machine.members()[0]
        wakeup = memdev.interrupted["lthresh"]
        woken = []
        assert not wakeup.changed(self, wakeup.count, lambda: woken.append(1))
        done = threading.Event()
        memdev.device.on_interrupt(lambda interrupt: done.set())
        memdev.device.write(0, os.urandom(MIB))
        assert done.wait(30)
        assert woken == [1]
        assert machine.table.read(f"{REGISTERS}/mem0/interrupts/lthresh") == "1\n"
        assert machine.table.read(f"{REGISTERS}/mem0/no_alloc") == "1\n"
        assert machine.table.read(f"{REGISTERS}/mem0/pressure") == "1000\n"

    def test_cram_nodes(self, machine: Machine):
        head, row = machine.table.read("sys/kernel/debug/cram/nodes").splitlines()
        assert head.split() == (
            "node zratio current_ratio perceived balloon target blocked allowed free present".split()
        )
        nid = machine.members()[0].nid
        assert row == f"{nid} 64000 64000 16384 0 0 0 1 16384 16384"


class TestSeveral:
    """Devices come and go; what they brought goes with them."""

    def test_second(self, machine: Machine):
        before = dict(machine.table.walk())
        second = machine.create("128M", "2M")
        nodes = machine.table.read("sys/devices/system/node/online")
        assert nodes == f"0-{second.nid}\n"
        assert machine.table.read(f"{NODE}/distance").split()[-2:] == ["10", "20"]
        assert machine.table.read(f"{second.node}/distance").split()[-2:] == ["20", "10"]
        tier = "sys/devices/virtual/memory_tiering/memory_tier22/nodelist"
        assert machine.table.read(tier) == f"{second.nid - 1}-{second.nid}\n"
        assert machine.table.read(f"{ROOT}/port1/decoders_committed") == "2\n"
        assert "endpoint3" in machine.table.find("sys/bus/cxl/devices").names()
        assert second.hpa >= machine.window + 64 * MIB

        machine.remove("mem1")
        assert dict(machine.table.walk()).keys() == before.keys()
        assert not os.path.exists(second.path)

    def test_last(self, machine: Machine):
        machine.remove("mem0")
        assert sorted(machine.table.find("sys/bus/cxl/devices").names()) == [
            "decoder0.0", "port1", "root0",
        ]  # fmt: skip
        assert isinstance(machine.table.find("sys/bus/dax/devices"), Directory)
        with raises(errno.ENOENT):
            machine.table.find("sys/devices/virtual/memory_tiering/memory_tier22")
        assert machine.create("1M", "4K").name == "mem0"

    def test_slots(self, machine: Machine):
        for _ in range(SLOTS - 1):
            machine.create("1M", "4K")
        with raises(errno.ENOSPC):
            machine.create("1M", "4K")

    def test_addresses(self, machine: Machine):
        """The window holds 4 TiB: four devices of 1 TiB do not fit beside another."""
        for _ in range(3):
            machine.create("1T", "1M")
        files = set(os.listdir(os.path.dirname(machine.members()[0].path)))
        with raises(errno.ENOSPC):
            machine.create("1T", "1M")
        assert set(os.listdir(os.path.dirname(machine.members()[0].path))) == files
        hpa = machine.members()[1].hpa
        machine.remove("mem1")
        assert machine.create("1T", "1M").hpa == hpa
