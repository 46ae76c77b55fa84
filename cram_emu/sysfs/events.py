"""What happens to a device as lines of drivers/cxl/core/trace.h.

The driver's own commands (inject, clear, list) are cxl_poison. The device's records are cxl_general_media,
one for each entry that its poison list gains, and cxl_memory_module for a threshold: MEM_CAPACITY_DEGRADED
while there is little left, nothing when it has recovered, and for real capacity that is lost. A fault on purpose is cram_fault, which no kernel has: a line
before those of what follows from it.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from contextlib import suppress

from cram_emu import Consumption, Interrupt, PoisonRecord, Stats, Strike
from cram_emu.errors import DeviceClosed
from cram_emu.sysfs.memdev import PAGE, Memdev
from cram_emu.sysfs.trace import Trace

_NO_UUID = "00000000-0000-0000-0000-000000000000"
# include/linux/cxl-event.h
_GENERAL_MEDIA = "fbcd0a77-c260-417f-85a9-088b1621eba6"
_MEMORY_MODULE = "fe927475-dd59-4339-a586-79bab113b774"
_RECORD_LENGTH = 128
_PATIENCE_S = 1  # with a thread that brings the events, and is held up
_NO_COMPONENT = (
    f"comp_id={' '.join(['00'] * 16)} comp_id_pldm_valid_flags='' "
    "pldm_entity_id=0x00 pldm_resource_id=0x00"
)

# Source of a poison record: as listed; then level, type and transaction of its general media event.
_LISTED = {"dropped": "Internal", "injected": "Injected", "media": "Internal", "lost": "External"}
_CREATED = {
    "dropped": ("Failure", "Data Path Error", "Host Write"),
    "injected": ("Informational", "ECC Error", "Host Inject Poison"),
    "media": ("Failure", "ECC Error", "Host Read"),
    "lost": ("Failure", "Data Path Error", "Unknown"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """What a look at a device found."""

    time_ns: int  #: CLOCK_MONOTONIC, before it
    stats: Stats
    records: list[PoisonRecord]
    events: int  #: that the device had had after it


class Events:
    """The lines of one device. Threads: any."""

    def __init__(self, memdev: Memdev, trace: Trace):
        self._memdev = memdev
        self._trace = trace
        self._handles = itertools.count(1)
        self._collecting = threading.Lock()
        self._levels: tuple[int, ...] = ()
        self._overflow = 0
        self._overflow_time = 0
        self._real = 0
        self._known: set[tuple[int, str]] = set()
        self._told = threading.Condition()
        self._newest = 0  #: the last of the device's events that has been told
        self._newest_ns = 0  #: and its time
        self._found: _Found | None = None  #: what is not told yet, for events before it are not
        self.collect(silently=True)
        memdev.on_interrupt(self._threshold)
        memdev.device.on_fault(self._struck)
        memdev.device.on_consumed(self._consumed)
        # Last: each is told by then.
        memdev.device.on_interrupt(self._done_with)
        memdev.device.on_fault(self._done_with)
        memdev.device.on_consumed(self._done_with)
        # What came before is nobody's to tell.
        with self._told:
            self._newest = max(self._newest, memdev.device.observe().events)

    # -- the driver's commands

    def injected(self, dpa: int) -> None:
        self._poison("Inject", dpa, 64, "Unknown")
        self.collect()

    def cleared(self, dpa: int) -> None:
        self._poison("Clear", dpa, 64, "Unknown")
        self.collect()

    def list_poison(self) -> None:
        """cxl_mem_get_poison(): a line for each record."""
        overflowed = self._memdev.device.observe().poison_overflow > 0
        flags, when = ("Overflow", self._overflow_time) if overflowed else ("", 0)
        for record in self._memdev.device.poison.records():
            self._poison("List", record.dpa, record.length, _LISTED[record.source], flags, when)

    def _poison(
        self, kind: str, dpa: int, length: int, source: str, flags: str = "", overflow: int = 0
    ) -> None:
        memdev = self._memdev
        self._trace.emit(
            f"cxl_poison: memdev={memdev.name} host={memdev.host} serial={memdev.serial} "
            f"trace_type={kind} region={memdev.region} region_uuid={_NO_UUID} "
            f"hpa={memdev.hpa + dpa:#x} dpa={dpa:#x} dpa_length={length:#x} source={source} "
            f"flags={flags} overflow_time={overflow}"
        )

    # -- the device's records

    def _done_with(self, event: Interrupt | Strike | Consumption) -> None:
        with self._told:
            self._newest, self._newest_ns = max(self._newest, event.sequence), event.time_ns
            self._told.notify_all()
        self.collect()

    def catch_up(self) -> None:
        """Waits until the events that the device has had are told, so that causes stand before what followed from them."""
        try:
            events = self._memdev.device.observe().events
        except DeviceClosed:
            return
        with self._told:
            told = self._told.wait_for(lambda: self._newest >= events, _PATIENCE_S)
        self.collect(late=not told)

    def collect(self, silently: bool = False, late: bool = False) -> None:
        """Tells what the poison list has gained since; cheap while no counter has moved. late: before its causes, if need be.

        Waits for another who is at it: a reader finds all that happened before it came. The race: between an event and
        the line that tells it, what followed from it is there already. So what is found is told once all events are that the
        device had had by then: `_done_with` of the last of them does it.
        """
        with self._collecting, suppress(DeviceClosed):
            # What was found before, and what has come since; no more, while a device has no end of it.
            for _ in range(2):
                self._found = self._found or self._look()
                if self._found is None or not (silently or late or self._newest >= self._found.events):
                    break
                self._tell(self._found, silently)
                self._found = None

    def _look(self) -> _Found | None:
        """None: nothing has changed."""
        device = self._memdev.device
        now = time.monotonic_ns()
        stats = device.observe()
        levels = (
            stats.poisoned,
            stats.poison_records,
            stats.dropped_writes,
            stats.media_errors,
            stats.lost_pages,
            stats.poison_overflow,
            stats.real,
        )
        if levels == self._levels:
            return None
        self._levels = levels
        records = device.poison.records()
        # Last: the causes of all of that have a number by now.
        return _Found(now, stats, records, device.observe().events)

    def _tell(self, found: _Found, silently: bool) -> None:
        stats, records = found.stats, found.records
        # Not before the last line, and not after those to come.
        when = max(found.time_ns, self._newest_ns)
        if not silently:
            for record in records:
                if (record.dpa, record.source) not in self._known:
                    self._media(record, when)
        self._known = {(record.dpa, record.source) for record in records}
        if stats.poison_overflow > self._overflow:
            self._overflow_time = self._overflow_time or time.time_ns()
            if not silently and not self._overflow and records:
                self._media(records[-1], when, "|POISON_LIST_OVERFLOW")
        self._overflow = stats.poison_overflow
        if stats.real < self._real and not silently:
            self._module("MEM_CAPACITY_DEGRADED", when)
        self._real = stats.real
        if not silently:
            self._memdev.poisoned.notify()

    def _media(self, record: PoisonRecord, time_ns: int, descriptor: str = "") -> None:
        memdev = self._memdev
        level, kind, transaction = _CREATED[record.source]
        self._trace.emit(
            f"cxl_general_media: {self._head(level, _GENERAL_MEDIA)} : "
            f"dpa={record.dpa:x} dpa_flags='VOLATILE' descriptor='UNCORRECTABLE_EVENT{descriptor}' "
            f"type='{kind}' sub_type='Not Reported' transaction_type='{transaction}' "
            f"channel=0 rank=0 device=0 validity_flags='' {_NO_COMPONENT} "
            f"hpa={memdev.hpa + record.dpa:x} region={memdev.region} region_uuid={_NO_UUID} "
            "cme_threshold_ev_flags='' cme_count=0",
            time_ns,
        )

    def _threshold(self, memdev: Memdev, interrupt: Interrupt) -> None:
        self._module("MEM_CAPACITY_DEGRADED" if interrupt.name == "lthresh" else "", interrupt.time_ns)

    def _module(self, health: str, time_ns: int) -> None:
        head = self._head("Warning" if health else "Informational", _MEMORY_MODULE)
        self._trace.emit(
            f"cxl_memory_module: {head} : "
            f"event_type='Health Status Change' event_sub_type='Not Reported' "
            f"health_status='{health}' media_status='Normal' as_life_used=Normal "
            "as_dev_temp=Normal as_cor_vol_err_cnt=Normal as_cor_per_err_cnt=Normal life_used=0 "
            "device_temp=0 dirty_shutdown_cnt=0 cor_vol_err_cnt=0 cor_per_err_cnt=0 "
            f"validity_flags='' {_NO_COMPONENT}",
            time_ns,
        )

    def _struck(self, strike: Strike) -> None:
        self._by(strike, "cram_fault", f"fault={strike.name}")

    def _consumed(self, consumption: Consumption) -> None:
        with self._collecting, suppress(DeviceClosed):
            self._tell_of(consumption)
        self._by(consumption, "cram_poison_consumed", "")

    def _tell_of(self, consumption: Consumption) -> None:
        """The records of the page that was met, which stand before it; their causes have been told."""
        page = range(consumption.dpa, consumption.dpa + PAGE)
        for record in self._memdev.device.poison.records():
            if record.dpa in page and (record.dpa, record.source) not in self._known:
                self._media(record, consumption.time_ns)
                self._known.add((record.dpa, record.source))
                # A look of before does not know it, and would have it told again.
                self._found, self._levels = None, ()

    def _by(self, event: Strike | Consumption, name: str, what: str) -> None:
        """A line of the process in which it happened."""
        memdev = self._memdev
        where = "" if event.dpa is None else f"hpa={memdev.hpa + event.dpa:#x} dpa={event.dpa:#x}"
        head = f"{name}: memdev={memdev.name} host={memdev.host} serial={memdev.serial}"
        self._trace.emit(" ".join(filter(None, (head, what, where))), event.time_ns, event.pid)

    def _head(self, level: str, uuid: str) -> str:
        """CXL_EVT_TP_printk()."""
        memdev = self._memdev
        return (
            f"memdev={memdev.name} host={memdev.host} serial={memdev.serial} log={level} : "
            f"time={time.time_ns()} uuid={uuid} len={_RECORD_LENGTH} flags='' "
            f"handle={next(self._handles):x} related_handle=0 maint_op_class=0 maint_op_sub_class=0"
        )
