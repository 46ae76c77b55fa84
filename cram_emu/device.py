"""The device: its lifetime, its registers, poison and interrupts.

All work on pages is done in C without the interpreter lock. Objects may be used from several threads,
also while another closes them: then they raise DeviceClosed.
"""

import dataclasses
import os
import signal as signals
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Self

from cram_emu._core import check, choose, ffi, fields, lib, own, set_field
from cram_emu._region import Handle
from cram_emu.errors import Busy, DeviceClosed, EventsLost, InvalidArgument, NoMemory, PoisonError, report
from cram_emu.faults import Faults, Strike
from cram_emu.mapping import DELIVERIES, PAGE, Mapping
from cram_emu.sizes import parse_size

LINE = 64

_CODECS = {"none": lib.CRAM_CODEC_NONE, "lz4": lib.CRAM_CODEC_LZ4, "zstd": lib.CRAM_CODEC_ZSTD}
_LEVELS = {"none": 0, "lz4": 1, "zstd": 3}
_STATES = {
    lib.CRAM_PAGE_EMPTY: "empty",
    lib.CRAM_PAGE_ZERO: "zero",
    lib.CRAM_PAGE_SAME: "same",
    lib.CRAM_PAGE_STORED: "stored",
    lib.CRAM_PAGE_RAW: "raw",
    lib.CRAM_PAGE_POISON: "poison",
}
_SOURCES = {
    lib.CRAM_POISON_DROPPED: "dropped",
    lib.CRAM_POISON_INJECTED: "injected",
    lib.CRAM_POISON_MEDIA: "media",
    lib.CRAM_POISON_LOST: "lost",
}
_VECTORS = {lib.CRAM_LTHRESH: "lthresh", lib.CRAM_HTHRESH: "hthresh"}
_CAUSES = {lib.CRAM_CAUSE_REMAINING: "remaining", lib.CRAM_CAUSE_RATIO: "ratio"}

#: The interrupt signal of a device that is not told another.
DEFAULT_SIGNAL = signals.SIGRTMIN + 12


@dataclasses.dataclass(frozen=True, slots=True)
class Params:
    """What a device was created with. Sizes in bytes, ratios as floats (0.0: off)."""

    advertised: int
    real: int
    sector: int
    block: int
    codec: str
    level: int
    largest_stored: int
    poison_limit: int
    lthresh: int
    hthresh: int
    ratio_lthresh: float
    ratio_hthresh: float
    signal: int


@dataclasses.dataclass(frozen=True, slots=True)
class Stats:
    """The registers, read one after another while the device works (struct cram_registers)."""

    advertised: int  #: bytes
    real: int  #: bytes
    used: int  #: bytes of media
    remaining: int  #: bytes of media
    peak: int  #: largest used so far
    dirty_frames: int  #: by so many pages used may lag, all clients
    pages_stored: int
    pages_raw: int
    pages_zero: int
    pages_same: int
    pages_poison: int  #: pages without data
    payload: int  #: bytes of stored form; used - payload is lost to rounding
    ratio: float  #: bytes held per byte used; 0.0 when none is used
    dropped_writes: int  #: writes that found no room
    refused_writes: int  #: writes to another client's page, or past the capacity
    media_errors: int  #: stored forms that failed their checksum
    lost_pages: int  #: pages whose newest copy died with a client, or was lost in a reset
    poisoned: int  #: pages with a poisoned line
    poison_records: int
    poison_overflow: int  #: poisoned pages that the full list has no record of
    lthresh: int  #: interrupts raised
    hthresh: int
    events: int  #: sequence number of the newest event
    clients: int
    low_remaining: int  #: lthresh as it is set now, bytes; 0: off
    high_remaining: int
    low_ratio: float  #: ratio_lthresh as it is set now; 0.0: off
    high_ratio: float
    pressure: int  #: 0 to 1000
    no_alloc: bool


@dataclasses.dataclass(frozen=True, slots=True)
class PageInfo:
    """What the page map says of a page."""

    state: str  #: empty, zero, same, stored, raw or poison
    length: int  #: bytes of stored form
    sectors: int
    dirty: bool  #: a frame somewhere is newer
    resident: bool  #: a frame of this process holds it
    foreign: bool  #: another client has it mapped
    poisoned: int  #: bit i: line i is poisoned
    media: int  #: offset of its first sector in the device object, 0 for none


@dataclasses.dataclass(frozen=True, slots=True)
class PoisonRecord:
    dpa: int
    length: int  #: bytes
    source: str  #: dropped, injected, media or lost


@dataclasses.dataclass(frozen=True, slots=True)
class Client:
    """A process that has the device open (struct cram_client)."""

    pid: int
    mapped: int  #: bytes of the device, in all its mappings
    resident_frames: int
    dirty_frames: int  #: those newer than the media
    faults: int  #: answered since it came
    written_back: int  #: pages, since it came
    poison_faults: int  #: accesses to its mappings that met poison
    make_it_fail: bool  #: faults with a task filter strike it


@dataclasses.dataclass(frozen=True, slots=True)
class Consumption:
    """A process has met poison, in its mapping or as the manager of a node."""

    sequence: int  #: in the same ring as interrupts
    time_ns: int  #: CLOCK_MONOTONIC
    pid: int
    dpa: int  #: of the page


@dataclasses.dataclass(frozen=True, slots=True)
class Interrupt:
    """One interrupt, with the registers as they were when it was raised."""

    sequence: int  #: 1 for the device's first; no gaps, if strikes of faults and consumptions are counted in
    time_ns: int  #: CLOCK_MONOTONIC
    vector: int  #: 12 or 13
    name: str  #: lthresh or hthresh
    cause: str  #: remaining or ratio
    remaining: int
    ratio: float


@dataclasses.dataclass(frozen=True, slots=True)
class UffdInfo:
    """What userfaultfd offers this process (struct cram_uffd_info)."""

    available: int  #: 0, or a negative errno
    kernel_faults: bool  #: monitor delivery can serve system calls
    features: int
    sigbus: bool
    write_protect: bool
    poison: bool
    move: bool
    exact_address: bool


def uffd_info() -> UffdInfo:
    """Asks the kernel; changes nothing."""
    info = ffi.new("struct cram_uffd_info *")
    lib.cram_uffd_probe(info)
    values = fields(info[0])
    counted = {name: values.pop(name) for name in ("available", "features")}
    return UffdInfo(**counted, **{name: bool(value) for name, value in values.items()})


def _threshold(name: str, value: int | str | None, real: int) -> int:
    """Bytes of "10%" (of real), "100M", an integer or None (off)."""
    if value is None:
        return 0
    if isinstance(value, str) and value.endswith("%"):
        try:
            share = float(value[:-1])
        except ValueError:
            share = -1.0
        if not 0 <= share <= 100:
            raise InvalidArgument(f"{name} {value!r}: not from 0% to 100%")
        return int(real * share / 100)
    return parse_size(value)


def _per_mille(name: str, value: float | None) -> int:
    if value is None:
        return 0
    if not isinstance(value, int | float) or not 0 <= value <= 1e6:
        raise InvalidArgument(f"{name} {value!r}: not a ratio from 0 to 1000000")
    return round(value * 1000)


class Device:
    """A compressed-RAM device: `advertised` bytes that it says it has, `real` bytes that it has.

    Without path it lives in anonymous memory of this process, else in a new file that others join
    with Device.open(). lthresh and hthresh are limits on the remaining real capacity (bytes, "100M",
    "10%" of real, None for off), ratio_lthresh and ratio_hthresh on the ratio (such as 1.5). level is
    lz4's acceleration or zstd's level. signal is raised in this process for each interrupt, with the
    vector as its value, where a handler is installed; 0 for none.

    InvalidArgument (a ValueError) names a value that makes no sense; nothing exists then.
    """

    def __init__(
        self,
        advertised: int | str = "8G",
        real: int | str = "1G",
        *,
        path: str | os.PathLike[str] | None = None,
        codec: str = "lz4",
        level: int | None = None,
        block: int = PAGE,
        sector: int = LINE,
        largest_stored: int | None = None,
        poison_limit: int = 1024,
        lthresh: int | str | None = "10%",
        hthresh: int | str | None = "20%",
        ratio_lthresh: float | None = None,
        ratio_hthresh: float | None = None,
        signal: int = DEFAULT_SIGNAL,
    ):
        params = ffi.new("struct cram_params *")
        set_field(params, "advertised", parse_size(advertised))
        set_field(params, "real", parse_size(real))
        set_field(params, "sector", parse_size(sector))
        lib.cram_params_default(params)
        # The default of 0 would be read as "not given".
        for name, value in (("advertised", advertised), ("real", real), ("sector", sector)):
            set_field(params, name, parse_size(value))
        set_field(params, "codec", choose("codec", codec, _CODECS))
        set_field(params, "level", _LEVELS[codec] if level is None else level)
        set_field(params, "block", parse_size(block))
        if largest_stored is not None:
            set_field(params, "largest_stored", parse_size(largest_stored))
        set_field(params, "poison_limit", poison_limit)
        set_field(params, "low_remaining", _threshold("lthresh", lthresh, params.real))
        set_field(params, "high_remaining", _threshold("hthresh", hthresh, params.real))
        set_field(params, "low_ratio", _per_mille("ratio_lthresh", ratio_lthresh))
        set_field(params, "high_ratio", _per_mille("ratio_hthresh", ratio_hthresh))
        set_field(params, "signal", signal)
        handle = ffi.new("cram_device **")
        check(lib.cram_create(ffi.NULL if path is None else _path(path), params, handle))
        self._adopt(handle[0])

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Joins the device in a file as a further client, recovering what dead clients left."""
        handle = ffi.new("cram_device **")
        check(lib.cram_open(_path(path), handle))
        device = cls.__new__(cls)
        device._adopt(handle[0])
        return device

    def _adopt(self, handle) -> None:
        self._handle = handle
        self._owner = own(handle, "cram_free")
        self._mappings: weakref.WeakSet[Mapping] = weakref.WeakSet()
        self._interrupts = _Interrupts(handle, self._owner)
        self._closed = False
        self._forgotten = False
        self.poison = Poison(self)
        self.faults = Faults(self)
        self._advertised = self.params.advertised

    # -- lifetime

    def close(self) -> None:
        """Closes the mappings and leaves the device. Closing twice is fine.

        BufferError, and the device stays open, while a buffer of a mapping is alive.
        """
        for mapping in list(self._mappings):
            mapping.close()
        check(lib.cram_close(self._handle))
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self) -> None:
        # A mapping refers to its device: one that is open here is in a cycle with it, and closes it later.
        if not getattr(self, "_closed", True):
            self._forgotten = True
            self._close_forgotten()

    def _close_forgotten(self) -> None:
        lib.cram_close(self._handle)

    @property
    def closed(self) -> bool:
        return self._closed

    # -- the data plane

    def map(
        self,
        offset: int | str = 0,
        length: int | str | None = None,
        *,
        window: int | str = "16M",
        delivery: str = "monitor",
        writeback: float = 0.1,
    ) -> "Mapping":
        """Maps a range (to the end without length) as memory of this process.

        window limits the resident frames, in bytes. "monitor" delivery serves system calls on the
        memory too; "inline" is many times faster, but a system call on a page that is not resident
        fails with EFAULT. writeback is the period of the write-back in seconds, 0 for off.

        Busy: a part of the range is mapped already. NotPermitted: userfaultfd is not permitted.
        """
        params = ffi.new("struct cram_map_params *")
        set_field(params, "dpa", parse_size(offset))
        rest = self.params.advertised - params.dpa
        set_field(params, "length", parse_size(max(rest, 0) if length is None else length))
        set_field(params, "window", parse_size(window))
        set_field(params, "delivery", choose("delivery", delivery, DELIVERIES))
        if not isinstance(writeback, int | float) or not 0 <= writeback <= 3600:
            raise InvalidArgument(f"writeback {writeback!r}: not from 0 to 3600 seconds")
        # A period too short to count would be taken for "off".
        set_field(params, "writeback_ms", 0 if writeback == 0 else max(1, round(writeback * 1000)))
        handle = ffi.new("cram_map **")
        check(lib.cram_map_create(self._handle, params, handle))
        mapping = Mapping(self, handle[0], params.length)
        self._mappings.add(mapping)
        return mapping

    def read(self, dpa: int, length: int) -> bytes:
        """Bytes of the device. PoisonError at the first poisoned line; Busy for another's page."""
        self._check_range(dpa, length)
        result = bytearray(length)
        while missing := lib.cram_read(self._handle, dpa, ffi.from_buffer(result), length):
            self._check_open()
            self._raise_unreadable(dpa + length - missing)
        return bytes(result)

    def _raise_unreadable(self, address: int) -> None:
        """Says why the byte at address could not be read; returns if it can be by now."""
        page = self.page(address)
        line = address % PAGE // LINE
        lines = 0
        while page.poisoned >> (line + lines) & 1:
            lines += 1
        if lines:
            length = lines * LINE - address % LINE
            raise PoisonError(f"poison at 0x{address:x}, {length} bytes", address, length)
        if page.foreign:
            raise Busy(f"the page at 0x{address:x} is mapped by another client")

    def write(self, dpa: int, data) -> None:
        """Writes whole pages. As with the hardware, nothing tells whether a write was dropped."""
        with memoryview(data).cast("B") as view:
            self._check_range(dpa, len(view))
            if dpa % PAGE or len(view) % PAGE:
                raise InvalidArgument(
                    f"{len(view)} bytes at 0x{dpa:x}: not whole pages of {PAGE} bytes"
                )
            with ffi.from_buffer(view) as source:
                for at in range(0, len(view), PAGE):
                    lib.cram_write_page(self._handle, dpa + at, source + at)
        self._check_open()

    def discard(self, dpa: int, length: int | str) -> None:
        """Gives the capacity of whole pages back; they read as zeros afterwards."""
        length = parse_size(length)
        self._check_range(dpa, length)
        if dpa % PAGE or length % PAGE:
            raise InvalidArgument(f"{length} bytes at 0x{dpa:x}: not whole pages of {PAGE} bytes")
        lib.cram_discard(self._handle, dpa, length)
        self._check_open()

    def flush(self) -> None:
        """Writes the dirty frames of all mappings of this object back."""
        self._check_open()
        for mapping in list(self._mappings):
            mapping.flush()

    def _check_open(self) -> None:
        """DeviceClosed or ForkedDevice. Called after what cannot tell by itself that it did nothing."""
        check(lib.cram_check(self._handle))

    def _check_range(self, dpa: int, length: int) -> None:
        advertised = self._advertised
        if dpa < 0 or length < 0 or dpa + length > advertised:
            raise InvalidArgument(
                f"{length} bytes at 0x{dpa:x}: not within the advertised {advertised} bytes"
            )

    # -- the control plane

    @property
    def params(self) -> Params:
        params = ffi.new("struct cram_params *")
        lib.cram_get_params(self._handle, params)
        return Params(
            advertised=params.advertised,
            real=params.real,
            sector=params.sector,
            block=params.block,
            codec=next(name for name, code in _CODECS.items() if code == params.codec),
            level=params.level,
            largest_stored=params.largest_stored,
            poison_limit=params.poison_limit,
            lthresh=params.low_remaining,
            hthresh=params.high_remaining,
            ratio_lthresh=params.low_ratio / 1000,
            ratio_hthresh=params.high_ratio / 1000,
            signal=params.signal,
        )

    @property
    def stats(self) -> Stats:
        """The registers. NoAnswer: a fault has them silent; DeviceGone: it has been removed."""
        return self._registers(lib.cram_read_registers)

    def observe(self) -> Stats:
        """The same as they are, whatever faults have them tell, and of a device that has been removed too.

        For whoever reports on a device; a driver has nothing like it.
        """
        return self._registers(lib.cram_observe)

    def _registers(self, read: Callable[..., int]) -> Stats:
        registers = ffi.new("struct cram_registers *")
        check(read(self._handle, registers))
        values = fields(registers[0])
        for name in ("ratio", "low_ratio", "high_ratio"):
            values[name] /= 1000
        values["no_alloc"] = bool(values["no_alloc"])
        return Stats(**values)

    def clients(self) -> list[Client]:
        """Who has the device open, this process among them, and one that has died and is not reaped yet."""
        return _listed(
            self, "cram_client", lib.cram_client_list, lambda client: _client(fields(client))
        )

    def make_it_fail(self, pid: int, on: bool = True) -> None:
        """Marks a process for faults with a task filter, as /proc/PID/make-it-fail does, or no more.

        InvalidArgument: it does not have the device open.
        """
        if not isinstance(pid, int) or not 0 < pid < 2**32:
            raise InvalidArgument(f"process {pid!r}: not a process id")
        check(lib.cram_make_it_fail(self._handle, pid, bool(on)))

    def page(self, dpa: int) -> PageInfo:
        """What the page map says of the page that holds dpa."""
        self._check_range(dpa, 1)
        info = ffi.new("struct cram_page_info *")
        check(lib.cram_page_info(self._handle, dpa, info))
        values = fields(info[0])
        values["state"] = _STATES[info.state]
        for name in ("dirty", "resident", "foreign"):
            values[name] = bool(values[name])
        return PageInfo(**values)

    @property
    def pressure(self) -> int:
        """0 to 1000, the driver's word to the host; lthresh sets 1000, hthresh 0."""
        return self.stats.pressure

    @pressure.setter
    def pressure(self, value: int) -> None:
        if not 0 <= value <= 1000:
            raise InvalidArgument(f"pressure {value!r}: not from 0 to 1000")
        check(lib.cram_set_pressure(self._handle, value))

    @property
    def no_alloc(self) -> bool:
        """The driver's bit "do not allocate"; lthresh sets it, hthresh clears it."""
        return self.stats.no_alloc

    @no_alloc.setter
    def no_alloc(self, value: bool) -> None:
        check(lib.cram_set_no_alloc(self._handle, bool(value)))

    def set_thresholds(
        self,
        *,
        lthresh: int | str | None,
        hthresh: int | str | None,
        ratio_lthresh: float | None = None,
        ratio_hthresh: float | None = None,
    ) -> None:
        """New thresholds, as for Device(); evaluated at once."""
        real = self.params.real
        check(
            lib.cram_set_thresholds(
                self._handle,
                _threshold("lthresh", lthresh, real),
                _threshold("hthresh", hthresh, real),
                _per_mille("ratio_lthresh", ratio_lthresh),
                _per_mille("ratio_hthresh", ratio_hthresh),
            )
        )

    def rebuild(self) -> None:
        """Recomputes sectors, counters and the poison list from the page map."""
        check(lib.cram_rebuild(self._handle))

    def reap(self) -> int:
        """Recovers what dead clients left; returns how many there were."""
        dead = ffi.new("uint32_t *")
        check(lib.cram_reap(self._handle, dead))
        return dead[0]

    # -- what befalls it as a whole; in effect in every client when these return. DeviceGone: it has been removed before.
    # NoAnswer: a client has not followed yet; or one is stopped in the middle of a page, and a reset has not taken place.

    def remove(self) -> None:
        """Pulls it out, for good: every page is poison in every client, and control calls raise DeviceGone."""
        self.faults["removal"].strike()

    def reset(self) -> None:
        """Starts it anew: what was written, in frames too, is poison until it is written again or discarded."""
        self.faults["reset"].strike()

    def power_cycle(self) -> None:
        """The same, but that the poison list stays, and with it the poison that was injected."""
        self.faults["power_cycle"].strike()

    def fileno(self) -> int:
        """The descriptor of the device object; it belongs to the device."""
        self._check_open()
        return lib.cram_fd(self._handle)

    # -- interrupts

    def on_interrupt(self, callback: Callable[[Interrupt], object]) -> Callable:
        """Calls callback(Interrupt) in an ordinary thread, once for each interrupt from now on.

        None is coalesced away; a gap in the sequence numbers, with a warning, says that callbacks fell
        more than 4096 events behind. What a callback raises is reported, and the next is called.
        Usable as a decorator.
        """
        self._check_open()
        self._interrupts.add(callback, self.observe().events)
        return callback

    def on_fault(self, callback: Callable[[Strike], object]) -> Callable:
        """The same for each fault that strikes from now on."""
        self._check_open()
        self._interrupts.add(callback, self.observe().events, Strike)
        return callback

    def on_consumed(self, callback: Callable[[Consumption], object]) -> Callable:
        """The same for each process that meets poison from now on; one that meets the same again and again is told once."""
        self._check_open()
        self._interrupts.add(callback, self.observe().events, Consumption)
        return callback

    @property
    def eventfd(self) -> int:
        """An eventfd that counts interrupts, for poll(2); it belongs to the device."""
        self._check_open()
        return lib.cram_event_fd(self._handle)


def _listed(device: Device, struct: str, function, make: Callable[[Any], Any]) -> list:
    """All of a list that may grow while it is copied."""
    room = 64
    while True:
        entries = ffi.new(f"struct {struct}[]", room)
        found = function(device._handle, entries, room)
        device._check_open()
        if found <= room:
            return [make(entry) for entry in entries[0:found]]
        room = found


def _client(values: dict[str, Any]) -> Client:
    return Client(**values | {"make_it_fail": bool(values["make_it_fail"])})


def _path(path: str | os.PathLike[str]) -> bytes:
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise InvalidArgument(f"path {path!r}: holds a zero byte")
    return encoded


class _Interrupts:
    """Brings the events of a device to Python callbacks, in one daemon thread made at first need."""

    def __init__(self, handle, owner: Handle):
        self._handle = handle
        self._owner = owner
        self._callbacks: list[tuple[type, Callable[[Any], object]]] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, callback: Callable[[Any], object], newest: int, kind: type = Interrupt) -> None:
        """kind: of what it is to be told, Interrupt, Strike or Consumption. NoMemory: there is no thread for it."""
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, args=(newest,), name="cram-interrupts", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    raise NoMemory(f"no thread for a device's events: {error}") from None
                self._thread = thread
            # In time: whoever brings the first event needs the lock.
            self._callbacks.append((kind, callback))

    def remove(self, callback: Callable[[Any], object]) -> None:
        with self._lock:
            self._callbacks = [(kind, known) for kind, known in self._callbacks if known is not callback]

    def _run(self, newest: int) -> None:
        sequence = ffi.new("uint64_t *", newest)
        event = ffi.new("struct cram_event *")
        while True:
            before = sequence[0]
            try:
                check(lib.cram_event_wait(self._handle, sequence, -1, event))
            except DeviceClosed:
                return
            except EventsLost:
                warnings.warn(
                    f"{sequence[0] - before} interrupts, strikes of faults or meetings with poison were overwritten before a callback saw them",
                    RuntimeWarning,
                    stacklevel=1,
                )
                continue
            self._call(_event(event))

    def _call(self, event: Interrupt | Strike | Consumption) -> None:
        with self._lock:
            callbacks = [callback for kind, callback in self._callbacks if isinstance(event, kind)]
        for callback in callbacks:
            try:
                callback(event)
            except BaseException:
                report()


def _event(event) -> Interrupt | Strike | Consumption:
    if event.vector == lib.CRAM_INJECTED:
        name = ffi.string(lib.cram_fault_text(event.cause).name).decode()
        dpa = None if event.ratio == 2**64 - 1 else event.ratio
        return Strike(event.sequence, event.time_ns, event.pid, name, dpa)
    if event.vector == lib.CRAM_CONSUMED:
        return Consumption(event.sequence, event.time_ns, event.pid, event.ratio)
    return Interrupt(
        sequence=event.sequence,
        time_ns=event.time_ns,
        vector=event.vector,
        name=_VECTORS[event.vector],
        cause=_CAUSES[event.cause],
        remaining=event.remaining,
        ratio=event.ratio / 1000,
    )


class Poison:
    """The poisoned lines of a device, as an administrator sees and makes them."""

    def __init__(self, device: Device):
        self._device = weakref.proxy(device)

    def inject(self, dpa: int) -> None:
        """Poisons the 64 bytes at dpa; twice is fine. Busy when the poison list is full."""
        self._command(lib.cram_inject_poison, dpa)

    def clear(self, dpa: int) -> None:
        """Clears the 64 bytes at dpa, which become zeros."""
        self._command(lib.cram_clear_poison, dpa)

    def _command(self, function, dpa: int) -> None:
        self._device._check_range(dpa, 1)
        check(function(self._device._handle, dpa))

    def records(self) -> list[PoisonRecord]:
        """The poison list in ascending order of address."""
        return _listed(
            self._device,
            "cram_poison_record",
            lib.cram_poison_list,
            lambda record: PoisonRecord(record.dpa, record.length, _SOURCES[record.source]),
        )

    def __len__(self) -> int:
        return len(self.records())

    def __iter__(self) -> Iterator[PoisonRecord]:
        return iter(self.records())
