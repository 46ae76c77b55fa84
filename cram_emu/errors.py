"""What can go wrong: one exception for each code of csrc/error.h, which _core holds against this list.

CramError is never raised itself. Each exception is also the builtin that fits it best.
"""

import sys
import threading


def report() -> None:
    """Says what was raised, in the thread that goes on after it."""
    try:
        threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
    except BaseException:
        # A hook that fails itself does not end it either.
        pass


class CramError(Exception):
    """The base of all errors of this package."""


class InvalidArgument(CramError, ValueError):
    """A value is out of range; the message names it. Nothing has changed."""


class NotPermitted(CramError, PermissionError):
    """The host does not permit it to this process; the message says what would."""


class AccessDenied(CramError, PermissionError):
    """The device file belongs to another user."""


class DeviceIOError(CramError, OSError):
    """The operating system refused an operation; the message says which."""


class NoMemory(CramError, MemoryError):
    """No memory, or no address space, or no frames."""


class NoSpace(CramError, OSError):
    """The file system cannot hold the device file."""


class Busy(CramError, OSError):
    """Something is in use: a range that is mapped, a full poison list, every client slot."""


class DeviceExists(CramError, FileExistsError):
    """There is a file of that name already."""


class DeviceMissing(CramError, FileNotFoundError):
    """There is no device file of that name."""


class NotSupported(CramError, OSError):
    """This kernel lacks a feature; the message names it."""


class DeviceGone(CramError, OSError):
    """The device has been removed: pulled out while it was in use (Device.remove())."""


class NoAnswer(CramError, TimeoutError):
    """Another client of the device did not answer in time."""


class EventsLost(CramError, OverflowError):
    """Events were overwritten before they were read."""


class NotADevice(CramError, ValueError):
    """The file is foreign, truncated or damaged."""


class WrongVersion(CramError, ValueError):
    """The device file was made by another version of cram_emu."""


class DeviceClosed(CramError, ValueError):
    """The device or the mapping has been closed."""


class ForkedDevice(CramError, RuntimeError):
    """The device was opened before fork(); the child must open it for itself."""


class PoisonError(CramError, OSError):
    """A read met poison: the machine check of the real device, as an exception.

    address is the DPA of the first byte that could not be read, length how many bytes are poisoned
    from there on.
    """

    def __init__(self, message: str, address: int | None = None, length: int | None = None):
        super().__init__(message)
        self.address = address
        self.length = length


BY_CODE_NAME: dict[str, type[CramError]] = {
    "EPERM": NotPermitted,
    "EIO": DeviceIOError,
    "ENOMEM": NoMemory,
    "EACCES": AccessDenied,
    "EBUSY": Busy,
    "EEXIST": DeviceExists,
    "ENOENT": DeviceMissing,
    "EINVAL": InvalidArgument,
    "ENOSPC": NoSpace,
    "ENOSYS": NotSupported,
    "ENODEV": DeviceGone,
    "ETIMEDOUT": NoAnswer,
    "EOVERFLOW": EventsLost,
    "EFORMAT": NotADevice,
    "EVERSION": WrongVersion,
    "EPOISON": PoisonError,
    "ECLOSED": DeviceClosed,
    "EFORKED": ForkedDevice,
}
