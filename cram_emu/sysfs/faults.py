"""Fault attributes, in the form of lib/fault-inject.c: sys/kernel/debug/fail_cram_NAME for every device of the machine
at once, sys/kernel/debug/cram_device/memN/fail_cram_NAME for one. `probability` takes parts of a percent too.
"""

from __future__ import annotations

from collections.abc import Callable

from cram_emu.errors import InvalidArgument
from cram_emu.faults import ATTRIBUTES, NAMES, Attributes, Fault, file_name, parse_attribute
from cram_emu.sysfs.bus import Entries
from cram_emu.sysfs.memdev import Memdev
from cram_emu.sysfs.parse import invalid, kstrtobool, kstrtoull
from cram_emu.sysfs.registers import DEVICES
from cram_emu.sysfs.table import Attribute

DEBUG = "sys/kernel/debug"


def platform(members: Callable[[], list[Memdev]]) -> Entries:
    for name in NAMES:
        yield from _files(f"{DEBUG}/fail_cram_{name}", name, members)


def members(memdev: Memdev) -> Entries:
    for name in NAMES:
        yield from _files(f"{DEVICES}/{memdev.name}/fail_cram_{name}", name, lambda: [memdev])
    yield f"{DEVICES}/{memdev.name}/make-it-fail", _marked(memdev)


def _marked(memdev: Memdev) -> Attribute:
    """/proc/PID/make-it-fail of those that have the device open: the marked ones, a line each; "PID" and "PID 1" mark
    one, "PID 0" no more."""

    def show() -> str:
        return "".join(f"{client.pid}\n" for client in memdev.device.clients() if client.make_it_fail)

    def store(text: str) -> None:
        pid, _, on = text.partition(" ")
        if " " in on:
            raise invalid(text)
        try:
            memdev.device.make_it_fail(kstrtoull(pid), kstrtobool(on or "1"))
        except InvalidArgument as error:
            raise invalid(text) from error

    return Attribute(0o644, show, store)


def _files(directory: str, name: str, members: Callable[[], list[Memdev]]) -> Entries:
    def faults() -> list[Fault]:
        return [memdev.device.faults[name] for memdev in members()]

    for attribute in ATTRIBUTES:
        yield f"{directory}/{file_name(attribute)}", _attribute(faults, attribute)
    yield f"{directory}/struck", Attribute(0o444, lambda: f"{sum(f.struck for f in faults())}\n")


def _attribute(faults: Callable[[], list[Fault]], name: str) -> Attribute:
    def show() -> str:
        # Without a device: as a new one has it.
        value = getattr(next((fault.attributes for fault in faults()), Attributes()), name)
        if name == "probability":
            return f"{value:.9g}\n"
        return f"{'NY'[value] if isinstance(value, bool) else value}\n"

    def store(text: str) -> None:
        try:
            value = kstrtobool(text) if name == "task_filter" else parse_attribute(file_name(name), text)
            for fault in faults():
                fault.set(**{name: value})
        except InvalidArgument as error:
            raise invalid(text) from error

    return Attribute(0o644, show, store)
