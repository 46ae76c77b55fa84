"""Faults on purpose: what a device can be made to do wrong, and when.

The rules are those of the kernel's fault attributes (Documentation/fault-injection), but that chance comes from a
seed. A fault belongs to the device: it strikes every process that uses it, and stays when this one goes.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from cram_emu._core import check, choose, ffi, lib
from cram_emu.errors import InvalidArgument
from cram_emu.sizes import parse_size

if TYPE_CHECKING:
    from cram_emu.device import Device

_U64_MAX = 2**64 - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Attributes:
    """When a fault strikes. Of a fault that is off, probability is 0."""

    probability: float = 0.0  #: percent
    interval: int = 1  #: over 1: only every so many questions
    times: int = -1  #: that it may still strike; -1: without limit
    space: int = 0  #: bytes that pass before the first one
    seed: int = 0  #: the same seed, the same answers
    value: int = 0  #: what it is: Fault.unit
    distribution: str = "constant"  #: how value, their mean, varies: constant, uniform, exponential or pareto
    verbose: int = 1  #: 0: strikes are counted, not told
    task_filter: bool = False  #: strikes only the processes that Device.make_it_fail() has marked


@dataclasses.dataclass(frozen=True, slots=True)
class Strike:
    """One fault that has struck."""

    sequence: int  #: in the same ring as interrupts
    time_ns: int  #: CLOCK_MONOTONIC
    pid: int  #: of the process in which it did
    name: str
    dpa: int | None  #: of the page it struck


def _texts() -> dict[str, tuple[int, str, str]]:
    texts = {}
    for number in range(lib.CRAM_FAULTS):
        text = lib.cram_fault_text(number)
        unit = "" if text.unit == ffi.NULL else ffi.string(text.unit).decode()
        texts[ffi.string(text.name).decode()] = (number, unit, ffi.string(text.effect).decode())
    return texts


_TEXTS = _texts()
#: The names of all faults, in the order of csrc/device/inject.h.
NAMES = tuple(_TEXTS)
ATTRIBUTES = tuple(field.name for field in dataclasses.fields(Attributes))
DISTRIBUTIONS = {
    "constant": lib.CRAM_CONSTANT,
    "uniform": lib.CRAM_UNIFORM,
    "exponential": lib.CRAM_EXPONENTIAL,
    "pareto": lib.CRAM_PARETO,
}
_DISTRIBUTION_NAMES = {number: name for name, number in DISTRIBUTIONS.items()}
#: Those that do nothing with a value of 0. To the others it means something, or they have none.
_BY_AMOUNT = ("capacity", "read_delay", "write_delay", "late_irq", "storm_irq")
_BOOLEANS = {"1": True, "Y": True, "0": False, "N": False}


class Fault:
    """One fault of one device. Threads: any."""

    def __init__(self, device: Device, name: str):
        self._device = device
        self.name = name
        self._number, self.unit, self.effect = _TEXTS[name]

    def _read(self):
        attr = ffi.new("struct cram_fault_attr *")
        check(lib.cram_fault_get(self._device._handle, self._number, attr))
        return attr

    @property
    def attributes(self) -> Attributes:
        attr = self._read()
        probability = attr.probability * 100 / lib.CRAM_FAULT_CERTAIN
        return Attributes(
            probability,
            attr.interval,
            attr.times,
            attr.space,
            attr.seed,
            attr.value,
            _DISTRIBUTION_NAMES[attr.distribution],
            attr.verbose,
            bool(attr.task_filter),
        )

    @property
    def struck(self) -> int:
        """How often it has, since the device was made."""
        return self._read().struck

    def set(self, **attributes: float | int | str) -> None:
        """Attributes by name, the others as they are; counting and the seed's sequence begin anew.

        InvalidArgument, naming the value, and nothing changes.
        """
        for name in attributes:
            if name not in ATTRIBUTES:
                raise InvalidArgument(f"{self.name}: no attribute {name!r}; there are {', '.join(ATTRIBUTES)}")
        new = dataclasses.replace(self.attributes, **attributes)
        attr = ffi.new("struct cram_fault_attr *")
        attr.probability = self._share(new.probability)
        attr.times = self._integer("times", new.times, -1, 2**63 - 2)
        for name in ("interval", "space", "seed", "value"):
            setattr(attr, name, self._integer(name, getattr(new, name), 0, _U64_MAX))
        attr.distribution = choose(f"{self.name}: distribution", new.distribution, DISTRIBUTIONS)
        attr.verbose = self._integer("verbose", new.verbose, 0, 2)
        attr.task_filter = self._integer("task-filter", new.task_filter, 0, 1)
        check(lib.cram_fault_set(self._device._handle, self._number, attr))

    def strike(self) -> None:
        """Now, whatever its attributes say: removal, reset and power_cycle can. See Device.remove()."""
        check(lib.cram_fault_strike(self._device._handle, self._number))

    def off(self) -> None:
        """As a new device has it."""
        self.set(**dataclasses.asdict(Attributes()))

    def _share(self, percent: float) -> int:
        if not isinstance(percent, (int, float)) or not 0 <= percent <= 100:
            raise InvalidArgument(f"{self.name}: probability {percent!r}: not from 0 to 100 percent")
        share = round(percent * lib.CRAM_FAULT_CERTAIN / 100)
        if share == 0 and percent > 0:
            least = 100 / lib.CRAM_FAULT_CERTAIN
            raise InvalidArgument(f"{self.name}: probability {percent!r}: below the least, {least:g} percent")
        return share

    def _integer(self, name: str, value: int, least: int, most: int) -> int:
        if not isinstance(value, int) or not least <= value <= most:
            raise InvalidArgument(f"{self.name}: {name} {value}: not a whole number from {least} to {most}")
        return value


class Faults(Mapping):
    """The faults of a device by name: dev.faults["lost_irq"].set(probability=100, times=1)."""

    def __init__(self, device: Device):
        self._device = weakref.proxy(device)

    def __getitem__(self, name: str) -> Fault:
        if name not in _TEXTS:
            raise UnknownFault(name)
        return Fault(self._device, name)

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


class UnknownFault(InvalidArgument, KeyError):
    """There is no fault of that name."""

    def __init__(self, name: str):
        super().__init__(f"no fault {name!r}; there are {', '.join(NAMES)}")

    __str__ = InvalidArgument.__str__


def file_name(attribute: str) -> str:
    """As users write it: the kernel's file is task-filter."""
    return attribute.replace("_", "-")


def parse_attribute(name: str, text: str) -> float | int | str:
    """What an attribute's text says; space and value take "64M" too, task-filter Y and N. InvalidArgument."""
    if name not in map(file_name, ATTRIBUTES):
        raise InvalidArgument(f"no attribute {name!r}; there are {', '.join(map(file_name, ATTRIBUTES))}")
    if name == "distribution":
        return text
    if name == "task-filter":
        if text.upper() not in _BOOLEANS:
            raise InvalidArgument(f"{name} {text!r}: neither Y nor N")
        return _BOOLEANS[text.upper()]
    try:
        # The last of 0xF is no unit.
        if name in ("space", "value") and text[-1:].isalpha() and not text.lower().startswith("0x"):
            return parse_size(text)
        return float(text) if name == "probability" else int(text, 0)
    except ValueError:
        raise InvalidArgument(f"{name} {text!r}: not a {'' if name == 'probability' else 'whole '}number") from None


def check_effect(name: str, attributes: Attributes) -> None:
    """InvalidArgument: this fault would strike, and do nothing, for want of a value.

    For what people type; a program, or who writes to files, may set value last.
    """
    strikes = attributes.probability > 0 and attributes.times != 0
    if strikes and attributes.value == 0 and name in _BY_AMOUNT:
        raise InvalidArgument(f"{name}: does nothing without value=N, in {_TEXTS[name][1]}")


def parse(text: str) -> tuple[str, dict[str, float | int | str]]:
    """ "poison:probability=0.01,times=3" as a name and attributes; a name alone: it always strikes. InvalidArgument."""
    name, _, rest = text.partition(":")
    if name not in _TEXTS:
        raise UnknownFault(name)
    attributes: dict[str, float | int | str] = {"probability": 100.0}
    for word in rest.split(",") if rest else ():
        key, equals, value = word.partition("=")
        if not equals:
            raise InvalidArgument(f"{text!r}: {word!r} is not ATTRIBUTE=VALUE")
        attributes[key.replace("-", "_")] = parse_attribute(key, value)
    check_effect(name, Attributes(**attributes))
    return name, attributes
