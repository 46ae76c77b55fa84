"""A manager with work to do, for tests of the files that show it."""

from pathlib import Path

from samples import PAGE, entropy

from cram_emu import Device
from cram_emu.errors import CramError
from cram_emu.host import ManagedMemory, Zswap
from cram_emu.sysfs.fuse import errno_of
from cram_emu.sysfs.machine import Machine

#: Of the memory; half of them have frames.
PAGES = 1024


class Managed:
    """4 MiB of memory in the group "redis", 64 MiB of RAM to take percentages of, and a device that has 256 KiB.

    A page compresses to a good quarter, so that the device takes some of them, and the pool the rest.
    """

    def __init__(self, where: Path):
        self.path = where / "device"
        self.device = Device("8M", "256K", path=self.path)
        self.zswap = Zswap([self.device], ram="64M", swap="8M", direct_limit="none")
        self.group = self.zswap.memcg(name="redis")
        self.memory = ManagedMemory(
            PAGES * PAGE, dram=PAGES * PAGE // 2, manager=self.zswap, group=self.group, delivery="inline"
        )
        self.machine = Machine(manager=self.zswap)
        self.memdev = self.machine.join(self.path)

    def fill(self) -> None:
        """Every page is written, and then none has a frame; nothing goes on in the background between two readings."""
        self.zswap._reclaimer.stop()
        for page in range(PAGES):
            self.memory[page * PAGE : (page + 1) * PAGE] = entropy(page)
        self.memory.reclaim(PAGES)

    def show(self, path: str) -> str:
        return self.machine.table.read(path)

    def number(self, path: str) -> int:
        return int(self.show(path))

    def store(self, path: str, text: str) -> int:
        """0, or the errno that a client would get."""
        try:
            self.machine.table.write(path, text)
        except (OSError, CramError) as error:
            return errno_of(error)
        return 0

    def close(self) -> None:
        self.zswap.close()
        self.machine.close()
        self.device.close()
