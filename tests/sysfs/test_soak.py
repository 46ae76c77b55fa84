"""Random clients over every file: no wrong answer, none that stays out, no leak. scripts/soak does it for longer."""

import soak
from servers import Server

REGISTERS = "sys/kernel/debug/cram_device"


def test_fuzzer(server: Server):
    """Random bytes to every writable file change nothing to what it cannot be, and kill nobody."""
    before = server.read("sys/devices/system/node/node1/meminfo").splitlines()[0]
    soak.run(server, "fuzz", seconds=3, workers=2)
    assert server.process.poll() is None

    def number(name: str) -> int:
        return int(server.read(f"{REGISTERS}/mem0/{name}"))

    assert 0 <= number("pressure") <= 1000 and number("no_alloc") in (0, 1)
    assert number("lthresh") <= number("hthresh") <= number("real") == 1 << 20
    assert number("ratio_lthresh") <= number("ratio_hthresh")
    assert number("poison_records") <= 1024
    assert server.read("sys/kernel/mm/numa/demotion_enabled") in ("true\n", "false\n")
    assert 1 <= int(server.read("sys/kernel/mm/mempolicy/weighted_interleave/node1")) <= 255
    assert server.read("sys/bus/cxl/drivers_autoprobe") in ("0\n", "1\n")
    assert server.read("sys/devices/system/node/node1/meminfo").splitlines()[0] == before
    assert server.stop() == 0 and server.process.stderr.read() == ""


def test_many_clients(serve):
    """Eight readers and writers, while devices come and go and programs run."""
    server = serve()
    soak.run(server, "soak", seconds=4)
    soak.settle(server)
    descriptors, memory = soak.footprint(server)
    soak.run(server, "soak", seconds=6)
    soak.settle(server)
    after = soak.footprint(server)
    assert after[0] == descriptors
    assert after[1] < memory + (8 << 10), "KiB of anonymous memory"
    assert server.stop() == 0 and server.process.stderr.read() == ""
