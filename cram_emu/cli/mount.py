"""`cram-emu mount`: serves the emulated machine's files until it is told to end.

It ends by SIGTERM, SIGINT or SIGHUP, or when the file system is unmounted, and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable

from cram_emu.cli import OK
from cram_emu.cli.console import Console, add_capacities, add_json, nonempty
from cram_emu.errors import NoSpace
from cram_emu.sizes import format_size
from cram_emu.sysfs import fuse, mountpoint
from cram_emu.sysfs.machine import Machine

DESCRIPTION = """\
Mounts the files of a machine that has compressed-RAM devices: sys/bus/cxl, sys/devices/system/node and
others, as an administrator would find them. Without --device it makes a device of its own, whose path
stands in sys/kernel/debug/cram_device/mem0/path: other programs join it there.
"""

ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# From the thread that served, when somebody else has unmounted.
UNMOUNTED = signal.SIGUSR2

EXIT_CODES = """\
exit codes:
  0    it served until it was told to end, or unmounted; with --daemon: it serves
  1    it could not be mounted, or the device not opened; the message says why
  2    bad usage
  3    this host does not permit FUSE to this user; the message says what would help
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.epilog = EXIT_CODES
    parser.add_argument("mountpoint", type=nonempty, metavar="MOUNTPOINT", help="an empty directory")
    add_capacities(parser)
    parser.add_argument(
        "--device",
        action="append",
        type=nonempty,
        metavar="NAME|PATH",
        help="serve this device instead of a new one; may be repeated: mem0, mem1, ...",
    )
    parser.add_argument(
        "--daemon", action="store_true", help="return when it is mounted, and serve in the background"
    )
    parser.add_argument(
        "--fuse", choices=fuse.LIBRARIES, help="the binding to use (the first that works)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    library = fuse.load(args.fuse)
    where = mountpoint.prepare(args.mountpoint)
    # A device does not outlive a fork, and threads neither: first of all.
    serving = _background() if args.daemon else lambda: None
    # Every thread inherits this: signals wait for sigwaitinfo(), and interrupt no handler.
    signal.pthread_sigmask(signal.SIG_BLOCK, {*ENDS, UNMOUNTED})
    machine = Machine()
    mount = fuse.Mount(machine, where, library, ended=lambda: os.kill(os.getpid(), UNMOUNTED))
    try:
        _plug(machine, args)
        mount.start()
        _tell(machine, where, Console(args.json))
        serving()
        signal.sigwaitinfo({*ENDS, UNMOUNTED})
        ended = mount.stop()
    finally:
        machine.close()
    if not ended:
        # libfuse waits for whoever keeps a file open; the kernel ends the connection with the process.
        os._exit(OK)
    return OK


def _plug(machine: Machine, args: argparse.Namespace) -> None:
    try:
        if args.device is None:
            machine.create(args.advertised, args.real)
        for path in args.device or ():
            machine.join(path)
    except OSError as error:
        if error.errno is None:
            raise
        raise NoSpace(error.strerror) from None


def _tell(machine: Machine, where: os.PathLike[str], console: Console) -> None:
    for memdev in machine.members():
        real = format_size(memdev.device.params.real)
        console.say(
            f"{memdev.name}, node {memdev.nid}: {format_size(memdev.size)} advertised, {real} real, "
            f"{memdev.path}"
        )
    console.say(f"mounted on {where}; `umount {where}` ends it")
    devices = {memdev.name: memdev.path for memdev in machine.members()}
    console.document({"mountpoint": str(where), "devices": devices})


def _background() -> Callable[[], None]:
    """Forks; returns in the child only. What it returns is to be called when the child serves.

    The parent ends then, or with the child's exit code if it never does.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        if os.read(reader, 1):
            os._exit(OK)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os.close(reader)
    os.setsid()

    def serving() -> None:
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (sys.stdin, sys.stdout, sys.stderr):
            fd.flush()
        for number in range(3):
            os.dup2(null, number)
        os.close(null)
        os.write(writer, b"1")
        os.close(writer)

    return serving
