"""A machine whose outputs can be told beforehand: one node of 4 GiB, whatever the hardware.

Its /sys is this system's, with made-up files in the place of nodes and memory blocks, in a mount
namespace of its own; what is mounted there is gone with it, however a test ends.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from users import User

FUSE = Path("/dev/fuse")
BLOCKS = 32
BLOCK_SIZE = 128 << 20

NODE = {
    "has_cpu": "0\n",
    "has_generic_initiator": "\n",
    "has_memory": "0\n",
    "has_normal_memory": "0\n",
    "online": "0\n",
    "possible": "0\n",
    "uevent": "",
    "node0/cpulist": "0\n",
    "node0/cpumap": "1\n",
    "node0/distance": "10\n",
    "node0/numastat": """\
numa_hit 1000000
numa_miss 0
numa_foreign 0
interleave_hit 1000
local_node 1000000
other_node 0
""",
    "node0/meminfo": """\
Node 0 MemTotal:       4194304 kB
Node 0 MemFree:        3145728 kB
Node 0 MemUsed:        1048576 kB
Node 0 SwapCached:           0 kB
Node 0 Active:          262144 kB
Node 0 Inactive:        524288 kB
Node 0 Active(anon):    131072 kB
Node 0 Inactive(anon):  262144 kB
Node 0 Active(file):    131072 kB
Node 0 Inactive(file):  262144 kB
Node 0 Unevictable:          0 kB
Node 0 Mlocked:              0 kB
Node 0 Dirty:               64 kB
Node 0 Writeback:            0 kB
Node 0 FilePages:       393216 kB
Node 0 Mapped:           65536 kB
Node 0 AnonPages:       393216 kB
Node 0 Shmem:             1024 kB
Node 0 KernelStack:       4096 kB
Node 0 PageTables:        8192 kB
Node 0 SecPageTables:        0 kB
Node 0 NFS_Unstable:         0 kB
Node 0 Bounce:               0 kB
Node 0 WritebackTmp:         0 kB
Node 0 KReclaimable:     65536 kB
Node 0 Slab:            131072 kB
Node 0 SReclaimable:     65536 kB
Node 0 SUnreclaim:       65536 kB
Node 0 AnonHugePages:        0 kB
Node 0 ShmemHugePages:        0 kB
Node 0 ShmemPmdMapped:        0 kB
Node 0 FileHugePages:        0 kB
Node 0 FilePmdMapped:        0 kB
Node 0 HugePages_Total:     0
Node 0 HugePages_Free:      0
Node 0 HugePages_Surp:      0
""",
}
BLOCK = {
    "online": "1\n",
    "phys_device": "0\n",
    "removable": "1\n",
    "state": "online\n",
    "uevent": "",
    "valid_zones": "none\n",
}

# The last program waits for the end of its input, which comes with the end of the tests at latest.
SET_UP = """
mount --bind "$1/node" /sys/devices/system/node
mount --bind "$1/memory" /sys/devices/system/memory
if [ -e "$1/fuse" ]; then mount --bind "$1/fuse" /dev/fuse; fi
echo ready
exec cat
"""


class Host:
    """The machine, a context manager. mountpoint: an empty directory that any user may mount on."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root")
        for name in ("node", "memory"):
            if not Path("/sys/devices/system", name).is_dir():
                pytest.skip(f"this kernel has no /sys/devices/system/{name}")
        if not FUSE.exists():
            pytest.skip("this kernel has no /dev/fuse")
        self._place = Path(tempfile.mkdtemp(prefix="cram-emu-host-", dir="/tmp"))
        self._place.chmod(0o755)
        self.mountpoint = self._place / "machine"
        self.mountpoint.mkdir()
        self.mountpoint.chmod(0o777)
        _write(self._place / "node", NODE)
        _write(self._place / "memory", {"block_size_bytes": f"{BLOCK_SIZE:x}\n"})
        for number in range(BLOCKS):
            block = self._place / f"memory/memory{number}"
            _write(block, BLOCK | {"phys_index": f"{number:08x}\n"})
            (block / "node0").symlink_to("../../node/node0")
        if stat.S_IMODE(FUSE.stat().st_mode) != 0o666:
            # As systems with udev have it.
            os.mknod(self._place / "fuse", stat.S_IFCHR | 0o666, FUSE.stat().st_rdev)
            (self._place / "fuse").chmod(0o666)

    def __enter__(self) -> Host:
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", SET_UP, "sh"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._holder = subprocess.Popen([*command, self._place], **pipes)
        assert self._holder.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.communicate()
        shutil.rmtree(self._place)

    def command(self, user: User, *args: object) -> list[str]:
        """What runs a command there as that user."""
        there = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--"]
        if user.uid != 0:
            there += ["setpriv", f"--reuid={user.uid}", f"--regid={user.uid}", "--clear-groups"]
        return [*there, *map(str, args)]

    def mounts(self) -> str:
        return Path(f"/proc/{self._holder.pid}/mountinfo").read_text()


def _write(top: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(content)
