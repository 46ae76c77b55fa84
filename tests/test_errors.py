"""The codes of the C core and their exceptions: each is provoked once, the way a user would meet it."""

import os
from pathlib import Path

import pytest
from device_object import VERSION
from samples import PAGE, entropy

import cram_emu.errors
from cram_emu import CramError, Device
from cram_emu._core import check, ffi, lib, text
from cram_emu.errors import (
    BY_CODE_NAME,
    Busy,
    DeviceClosed,
    DeviceExists,
    DeviceGone,
    DeviceMissing,
    EventsLost,
    InvalidArgument,
    NoAnswer,
    NotADevice,
    PoisonError,
    WrongVersion,
)

# Makes a child answer one error to whoever asks it for a userfaultfd, by system call or by device node.
DENY_USERFAULTFD = """
import ctypes, struct
from cram_emu import CramError, Device

def deny(error):
    # classic BPF over struct seccomp_data: number at 0, second argument at 24
    code = [
        (0x20, 0, 0, 0),          # load the number
        (0x15, 3, 0, 323),        # userfaultfd: deny
        (0x15, 0, 3, 16),         # not ioctl: allow
        (0x20, 0, 0, 24),         # load the request
        (0x15, 0, 1, 0xAA00),     # not USERFAULTFD_IOC_NEW: allow
        (0x06, 0, 0, 0x50000 | error),
        (0x06, 0, 0, 0x7FFF0000),
    ]
    filter = b"".join(struct.pack("=HBBI", *line) for line in code)
    program = struct.pack("=H6xQ", len(code), id_of(filter))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, program) == 0, ctypes.get_errno()

def id_of(data):
    keep.append(ctypes.create_string_buffer(data))
    return ctypes.addressof(keep[-1])

keep = []
"""

MAP_DENIED = """
import sys
with Device("1M", "64K") as dev:
    deny(int(sys.argv[1]))
    for delivery in ("monitor", "inline"):
        try:
            dev.map(delivery=delivery)
        except CramError as error:
            print(type(error).__name__, error)
"""

CREATE_LIMITED = """
import resource, signal, sys
from cram_emu import CramError, Device
limit, room = getattr(resource, sys.argv[2]), int(sys.argv[3])
if limit == resource.RLIMIT_AS:
    room += int(open("/proc/self/statm").read().split()[0]) * 4096
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(limit, (room, room))
try:
    Device("1M", "64K", path=sys.argv[1])
except CramError as error:
    print(type(error).__name__, error)
"""

OPEN_AS_NOBODY = """
import os, sys
from cram_emu import CramError, Device
if os.geteuid() == 0:
    os.setuid(65534)
try:
    Device.open(sys.argv[1])
except CramError as error:
    print(type(error).__name__, error)
"""


class TestHierarchy:
    def test_each_code(self):
        """Each code of the C core has an exception, and each exception a code."""
        names = []
        while (info := lib.cram_error_at(len(names))) != ffi.NULL:
            names.append(text(info.name))
        assert sorted(names) == sorted(BY_CODE_NAME)
        classes = [c for c in vars(cram_emu.errors).values() if isinstance(c, type)]
        assert {*classes} == {*BY_CODE_NAME.values(), CramError}
        assert len({*BY_CODE_NAME.values()}) == len(BY_CODE_NAME)

    @pytest.mark.parametrize("error", BY_CODE_NAME.values())
    def test_base(self, error: type[CramError]):
        """Each is a CramError and also a builtin that says what kind it is."""
        assert issubclass(error, CramError) and error is not CramError
        assert [base for base in error.__mro__[2:] if base not in (Exception, BaseException, object)]

    def test_unknown_code(self):
        """A code that is not listed never passes for success."""
        with pytest.raises(KeyError):
            check(-12345)

    def test_success(self):
        """What is not negative is passed on."""
        assert check(0) == 0
        assert check(7) == 7


class TestEachCode:
    """One test a code; test_complete says so."""

    def test_complete(self):
        """No code is left out here."""
        assert {f"test_{name.lower()}" for name in BY_CODE_NAME} <= set(dir(self))

    def test_eperm(self, run_child):
        """Where userfaultfd is forbidden, both deliveries say what would permit it."""
        child = run_child(DENY_USERFAULTFD + MAP_DENIED, 1)
        monitor, inline = child.stdout.splitlines()
        assert monitor.startswith("NotPermitted userfaultfd for the kernel's own faults")
        assert "vm.unprivileged_userfaultfd" in monitor
        assert inline.startswith("NotPermitted userfaultfd is not permitted")

    def test_enosys(self, run_child, skip_unless_userfaultfd):
        """Where the kernel has no userfaultfd, the message names it; with it the same program maps."""
        child = run_child(DENY_USERFAULTFD + MAP_DENIED, 38)
        assert [line.split()[0] for line in child.stdout.splitlines()] == ["NotSupported"] * 2
        assert "userfaultfd" in child.stdout
        child = run_child(DENY_USERFAULTFD + MAP_DENIED.replace("deny(int", "(int"), 0)
        assert (child.returncode, child.stdout) == (0, "")

    def test_eio(self, run_child, tmp_path: Path):
        """A limit on the size of files is told in the system's words, and no file stays."""
        child = run_child(CREATE_LIMITED, tmp_path / "dev", "RLIMIT_FSIZE", 65536)
        assert child.stdout.startswith("DeviceIOError ")
        assert str(tmp_path / "dev") in child.stdout and os.strerror(27) in child.stdout
        assert list(tmp_path.iterdir()) == []

    def test_enomem(self, run_child, tmp_path: Path):
        """A limit on the address space is told, with what did not fit, and no file stays."""
        child = run_child(CREATE_LIMITED, tmp_path / "dev", "RLIMIT_AS", 128 << 10)
        assert child.stdout.startswith("NoMemory ")
        assert str(tmp_path / "dev") in child.stdout and "bytes" in child.stdout
        assert list(tmp_path.iterdir()) == []

    def test_eacces(self, run_child, tmp_path: Path):
        """A file of another user, or without permission, is named."""
        path = tmp_path / "dev"
        Device("1M", "64K", path=path).close()
        path.chmod(0)
        child = run_child(OPEN_AS_NOBODY, path)
        assert child.stdout == f"AccessDenied {path}: Permission denied\n"

    def test_ebusy(self):
        """A full poison list refuses one more line, with the address and the limit."""
        with Device("1M", "64K", poison_limit=1) as dev:
            dev.poison.inject(0)
            with pytest.raises(Busy, match=r"0x40.*1 record"):
                dev.poison.inject(64)

    def test_eexist(self, tmp_path: Path):
        """A file that exists is named and left as it was."""
        path = tmp_path / "precious"
        path.write_text("data")
        with pytest.raises(DeviceExists, match="precious"):
            Device("1M", "64K", path=path)
        assert path.read_text() == "data"

    def test_enoent(self, tmp_path: Path):
        """A file that is missing is named, and not made."""
        with pytest.raises(DeviceMissing, match="nothing"):
            Device.open(tmp_path / "nothing")
        assert list(tmp_path.iterdir()) == []

    def test_einval(self):
        """A bad value is named."""
        with pytest.raises(InvalidArgument, match="4097"):
            Device(4097, 4096)

    def test_enospc(self, small_tmpfs: Path):
        """A file system too small for a full device is refused with both numbers, and no file stays."""
        with pytest.raises(cram_emu.errors.NoSpace, match=r"has \d{7} bytes free.* takes \d{8}"):
            Device("64M", "64M", path=small_tmpfs / "dev")
        assert list(small_tmpfs.iterdir()) == []

    def test_enodev(self):
        """A device that was pulled out says so, and can be closed."""
        with Device("1M", "64K") as dev:
            dev.remove()
            with pytest.raises(DeviceGone, match="the device has been removed"):
                dev.set_thresholds(lthresh="10%", hthresh="20%")

    def test_etimedout(self):
        """Waiting for an interrupt that does not come ends in time."""
        event, sequence = ffi.new("struct cram_event *"), ffi.new("uint64_t *", 0)
        with Device("1M", "64K") as dev, pytest.raises(NoAnswer, match="0 ms"):
            check(lib.cram_event_wait(dev._handle, sequence, 0, event))

    def test_eoverflow(self):
        """Who reads events after the ring of 4096 has gone round is told, and goes on at the oldest."""
        event, sequence = ffi.new("struct cram_event *"), ffi.new("uint64_t *", 0)
        with Device("1M", "4K", lthresh=2048, hthresh=4096, signal=0) as dev:
            for _ in range(2050):
                dev.write(0, entropy(1, 3000))
                dev.discard(0, PAGE)
            assert dev.stats.events == 4100
            with pytest.raises(EventsLost, match="next event is 5"):
                check(lib.cram_event_wait(dev._handle, sequence, 0, event))
            assert sequence[0] == 4
            check(lib.cram_event_wait(dev._handle, sequence, 0, event))
            assert event.sequence == 5

    def test_eformat(self, tmp_path: Path):
        """A file of something else is named."""
        (tmp_path / "letter").write_text("Dear Sir or Madam,")
        with pytest.raises(NotADevice, match="letter"):
            Device.open(tmp_path / "letter")

    def test_eversion(self, tmp_path: Path):
        """A file of a newer layout is told with both versions."""
        path = tmp_path / "dev"
        Device("1M", "64K", path=path).close()
        with open(path, "r+b") as file:
            file.seek(8)
            file.write((VERSION + 1).to_bytes(4, "little"))
        with pytest.raises(WrongVersion, match=f"version {VERSION + 1}.*version {VERSION}"):
            Device.open(path)

    @pytest.mark.usefixtures("skip_unless_userfaultfd")
    def test_epoison(self):
        """Pinning a poisoned page fails, and reading it names the address and the length."""
        with Device("1M", "64K") as dev, dev.map(window="64K", delivery="inline") as mapping:
            dev.poison.inject(PAGE + 128)
            with pytest.raises(PoisonError), mapping.pin(PAGE, PAGE):
                pass
            with pytest.raises(PoisonError) as caught:
                dev.read(PAGE, PAGE)
            assert (caught.value.address, caught.value.length) == (PAGE + 128, 64)
            assert "0x1080" in str(caught.value)

    def test_eclosed(self):
        """A closed device says so."""
        dev = Device("1M", "64K")
        dev.close()
        with pytest.raises(DeviceClosed):
            dev.rebuild()

    def test_eforked(self, run_child):
        """A child is told to open the device for itself."""
        child = run_child("""
            import os
            from cram_emu import CramError, Device
            dev = Device("1M", "64K")
            if os.fork() == 0:
                try:
                    dev.rebuild()
                except CramError as error:
                    print(type(error).__name__, error, flush=True)
                os._exit(0)
            os.wait()
            dev.rebuild()
            print("parent fine")
        """)
        first, second = child.stdout.splitlines()
        assert first.startswith("ForkedDevice ") and "child" in first
        assert second == "parent fine"
