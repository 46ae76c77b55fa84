"""What buses, drivers and devices of sysfs have in common: drivers/base/{bus,dd,core,power/sysfs}.c."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator

from cram_emu.sysfs.parse import failure, invalid, one_of
from cram_emu.sysfs.table import Attribute, Directory, Entry, constant

Entries = Iterator[tuple[str, Entry]]

# lib/kobject_uevent.c
_ACTIONS = ("add", "remove", "change", "move", "online", "offline", "bind", "unbind")


def _uevent_action(text: str) -> None:
    one_of(text.split(" ", 1)[0], *_ACTIONS)


def _no_such_device(text: str) -> None:
    # `bind` of drivers that are not this machine's is tried by clients for every device.
    raise failure(errno.ENODEV, f"{text[:64]!r}: no such device")


def write_only(store=_no_such_device) -> Attribute:
    return Attribute(0o200, None, store)


def uevent(**values: object) -> Attribute:
    """A device's uevent: what would be announced, and a synthetic event when written to."""
    text = "".join(f"{name}={value}\n" for name, value in values.items())
    return Attribute(0o644, lambda: text, _uevent_action)


class Switch:
    """A value in a 0644 file that is one word of a few."""

    def __init__(self, value: str, *others: str):
        self.value = value
        self._words = (value, *others)

    def show(self) -> str:
        return f"{self.value}\n"

    def store(self, text: str) -> None:
        self.value = one_of(text, *self._words)

    def attribute(self) -> Attribute:
        return Attribute(0o644, self.show, self.store)


def bus(path: str, drivers: Iterable[str] = (), driver_files: Iterable[str] = ()) -> Entries:
    """sys/bus/NAME with its drivers; driver_files are further write-only files of each."""
    yield f"{path}/devices", Directory()
    yield f"{path}/drivers", Directory()
    yield f"{path}/drivers_autoprobe", Switch("1", "0").attribute()
    yield f"{path}/drivers_probe", write_only()
    yield f"{path}/uevent", write_only(_uevent_action)
    for driver in drivers:
        for name in ("bind", "unbind", *driver_files):
            yield f"{path}/drivers/{driver}/{name}", write_only()
        yield f"{path}/drivers/{driver}/uevent", write_only(_uevent_action)


def power(path: str) -> Entries:
    """The power directory of a device without runtime power management."""
    yield f"{path}/power/autosuspend_delay_ms", Attribute(0o644, _no_autosuspend, _set_autosuspend)
    yield f"{path}/power/control", Switch("auto", "on").attribute()
    yield f"{path}/power/runtime_active_time", constant("0")
    yield f"{path}/power/runtime_status", constant("unsupported")
    yield f"{path}/power/runtime_suspended_time", constant("0")


def _no_autosuspend() -> str:
    raise failure(errno.EIO)


def _set_autosuspend(text: str) -> None:
    raise failure(errno.EIO)


def refuse(number: int):
    """A store that fails with an errno whatever is written, but for nothing at all."""

    def store(text: str) -> None:
        if not text:
            raise invalid(text)
        raise failure(number)

    return store
