"""The manager: zswap with devices as nodes. Per-page work is C; this sets policy and hears of events.

Names and rules are mm/zswap.c's where it has them.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

from cram_emu._core import check, choose, expect, ffi, lib, own, set_field
from cram_emu.device import Device
from cram_emu.errors import DeviceIOError, ForkedDevice, InvalidArgument, NoSpace
from cram_emu.host.memcg import Memcg, check_name, limit_of
from cram_emu.host.nodes import Driver, Node
from cram_emu.host.reclaim import Reclaimer
from cram_emu.sizes import parse_size

if TYPE_CHECKING:
    from cram_emu.host.memory import ManagedMemory

PAGE = 4096
COMPRESSORS = {"lz4": (lib.CRAM_CODEC_LZ4, 1), "zstd": (lib.CRAM_CODEC_ZSTD, 3)}
DIRECT_LIMITS = {"none": lib.CRAM_DIRECT_NONE, "page": lib.CRAM_DIRECT_PAGE, "size": lib.CRAM_DIRECT_SIZE}
CHARGING = {"page": lib.CRAM_CHARGE_PAGE, "size": lib.CRAM_CHARGE_SIZE, "fuzzy": lib.CRAM_CHARGE_FUZZY}


@dataclasses.dataclass(frozen=True, slots=True)
class ZswapStats:
    """Counters of the manager, in pages unless said otherwise; names of debugfs zswap and vmstat where they have one."""

    stored_pages: int  #: in the pool and on nodes, now
    stored_pool_pages: int
    stored_direct_pages: int  #: on nodes
    stored_incompressible_pages: int  #: in the pool as they are
    stored_zero_pages: int  #: in the zeromap
    stored_swap_pages: int  #: in the swap file
    stored_bytes: int  #: compressed bytes in the pool
    charged_direct_bytes: int
    pool_total_size: int  #: bytes
    pool_cached_pages: int  #: free, kept for a while
    written_back_pages: int
    pool_limit_hit: int
    reject_reclaim_fail: int  #: write-backs that failed: a full swap file. What a full pool refuses is not counted
    reject_compress_poor: int  #: 0, as with the kernel's lz4 and zstd
    reject_compress_fail: int  #: did not shrink, and may not be written back
    reject_alloc_fail: int
    reject_kmemcache_fail: int
    reject_memcg: int  #: memory.zswap.max
    decompress_fail: int
    zswpin: int
    zswpout: int
    zswpwb: int
    pswpin: int
    pswpout: int
    swpin_zero: int
    swpout_zero: int
    reclaim_fail: int  #: nobody took a page: its frame stayed
    direct_reclaim: int  #: frames reclaimed inside a fault
    kswapd_reclaim: int  #: frames reclaimed by the manager's thread, or by reclaim()
    notes_lost: int  #: callbacks that were not called: the queue was full
    total_pages: dict[str, int]  #: zswap_total_pages() under each direct_limit
    max_pages: int  #: max_pool_percent of ram
    swap_pages: int  #: size of the swap file
    swap_used: int


@dataclasses.dataclass(frozen=True, slots=True)
class PoolClass:
    """A line of debugfs' zsmalloc classes (struct cram_zpool_class)."""

    index: int
    size: int
    fullness: tuple[int, ...]  #: zspages that are 0 %, up to 10 %, ... up to 99 %, 100 % full
    objs_allocated: int
    objs_used: int
    pages_used: int
    pages_per_zspage: int
    freeable: int


#: Their places among the counters (enum cram_zswap_counter).
_COUNTERS = {
    "stored_pool_pages": lib.CRAM_ZSWAP_STORED_POOL,
    "stored_direct_pages": lib.CRAM_ZSWAP_STORED_DIRECT,
    "stored_incompressible_pages": lib.CRAM_ZSWAP_STORED_INCOMPRESSIBLE,
    "stored_zero_pages": lib.CRAM_ZSWAP_STORED_ZERO,
    "stored_swap_pages": lib.CRAM_ZSWAP_STORED_FILE,
    "stored_bytes": lib.CRAM_ZSWAP_STORED_BYTES,
    "charged_direct_bytes": lib.CRAM_ZSWAP_CHARGED_DIRECT,
    "written_back_pages": lib.CRAM_ZSWAP_WRITTEN_BACK,
    "pool_limit_hit": lib.CRAM_ZSWAP_POOL_LIMIT_HIT,
    "reject_reclaim_fail": lib.CRAM_ZSWAP_REJECT_RECLAIM_FAIL,
    "reject_compress_poor": lib.CRAM_ZSWAP_REJECT_COMPRESS_POOR,
    "reject_compress_fail": lib.CRAM_ZSWAP_REJECT_COMPRESS_FAIL,
    "reject_alloc_fail": lib.CRAM_ZSWAP_REJECT_ALLOC_FAIL,
    "reject_kmemcache_fail": lib.CRAM_ZSWAP_REJECT_KMEMCACHE_FAIL,
    "reject_memcg": lib.CRAM_ZSWAP_REJECT_MEMCG,
    "decompress_fail": lib.CRAM_ZSWAP_DECOMPRESS_FAIL,
    "zswpin": lib.CRAM_ZSWAP_ZSWPIN,
    "zswpout": lib.CRAM_ZSWAP_ZSWPOUT,
    "zswpwb": lib.CRAM_ZSWAP_ZSWPWB,
    "pswpin": lib.CRAM_ZSWAP_PSWPIN,
    "pswpout": lib.CRAM_ZSWAP_PSWPOUT,
    "swpin_zero": lib.CRAM_ZSWAP_SWPIN_ZERO,
    "swpout_zero": lib.CRAM_ZSWAP_SWPOUT_ZERO,
    "reclaim_fail": lib.CRAM_ZSWAP_RECLAIM_FAIL,
    "direct_reclaim": lib.CRAM_ZSWAP_DIRECT_RECLAIM,
    "kswapd_reclaim": lib.CRAM_ZSWAP_KSWAPD_RECLAIM,
    "notes_lost": lib.CRAM_ZSWAP_NOTES_LOST,
}


class _Setting:
    """A setting that may be changed at any time."""

    def __init__(self, number: int, choices: dict[str, int] | None = None, kind: type = int):
        self._number = number
        self._choices = choices
        self._kind = kind

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, manager: Zswap | None, owner: type):
        if manager is None:
            return self
        value = lib.cram_zswap_get(manager._handle, self._number)
        if self._choices is None:
            return self._kind(value)
        return next(name for name, number in self._choices.items() if number == value)

    def __set__(self, manager: Zswap, value) -> None:
        check(lib.cram_zswap_set(manager._handle, self._number, self.number(value)))

    def number(self, value) -> int:
        """InvalidArgument, naming it, for what it cannot be."""
        if self._choices is not None:
            return choose(self._name, value, self._choices)
        number = parse_size(value, self._name) if isinstance(value, str) else value
        if not isinstance(number, int) or not 0 <= number < 2**64:
            raise InvalidArgument(f"{self._name} {value!r}: not a number that this can be")
        return int(number)


class Zswap:
    """A host's manager of cold pages: the zeromap, devices as nodes, a compressed pool, a swap file, in this order.

    nodes: devices, tried in order, each with a Driver of defaults; add_node() has more to say. ram: what percentages are of
    (bytes; this host's memory). swap: size of the swap file, an unlinked one that takes room as it is used (as large as ram; 0:
    none). chain: pages of a zspage at most. query_interval: seconds between two questions to a device. shared: programs may
    attach (lab/launch.py), each with a manager that has these settings and nodes; limits and statistics are of all.

    Its thread reclaims in the background, asks devices, and calls drivers; page faults never wait for it.
    """

    enabled = _Setting(lib.CRAM_ZSWAP_ENABLED, kind=bool)
    max_pool_percent = _Setting(lib.CRAM_ZSWAP_MAX_POOL_PERCENT)
    accept_threshold_percent = _Setting(lib.CRAM_ZSWAP_ACCEPT_THRESHOLD_PERCENT)
    shrinker_enabled = _Setting(lib.CRAM_ZSWAP_SHRINKER_ENABLED, kind=bool)
    ram = _Setting(lib.CRAM_ZSWAP_RAM)
    direct_limit = _Setting(lib.CRAM_ZSWAP_DIRECT_LIMIT, DIRECT_LIMITS)
    max_direct_percent = _Setting(lib.CRAM_ZSWAP_MAX_DIRECT_PERCENT)
    charging = _Setting(lib.CRAM_ZSWAP_CHARGING, CHARGING)

    def __init__(
        self,
        nodes: Iterable[Device] = (),
        *,
        ram: int | str | None = None,
        swap: int | str | None = None,
        enabled: bool = True,
        max_pool_percent: int = 20,
        accept_threshold_percent: int = 90,
        shrinker_enabled: bool = False,
        compressor: str = "lz4",
        chain: int = 8,
        direct_limit: str = "none",
        max_direct_percent: int = 0,
        charging: str = "page",
        query_interval: float = 0.1,
        shared: bool = False,
    ):
        self._closed = True
        if not isinstance(nodes, Iterable):
            raise InvalidArgument(f"nodes {nodes!r}: not several devices")
        nodes = list(nodes)
        for device in nodes:
            expect("nodes", device, Device)
        self.query_interval = query_interval
        settings = {
            "enabled": enabled,
            "max_pool_percent": max_pool_percent,
            "accept_threshold_percent": accept_threshold_percent,
            "shrinker_enabled": shrinker_enabled,
            "ram": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if ram is None else ram,
            "direct_limit": direct_limit,
            "max_direct_percent": max_direct_percent,
            "charging": charging,
        }
        params = ffi.new("struct cram_zswap_params *")
        for name, value in settings.items():
            setting = vars(Zswap)[name]
            params.settings[setting._number] = setting.number(value)
        set_field(params, "chain", chain)
        params.shared = bool(shared)
        params.codec, params.level = choose("compressor", compressor, COMPRESSORS)
        size = params.settings[lib.CRAM_ZSWAP_RAM] if swap is None else parse_size(swap, "swap")
        set_field(params, "swap_size", size & -PAGE)
        params.swap_fd = _swap_file() if params.swap_size else -1
        handle = ffi.new("cram_zswap **")
        try:
            check(lib.cram_zswap_create(params, handle))
        except BaseException:
            if params.swap_fd >= 0:
                os.close(params.swap_fd)
            raise
        self._handle = handle[0]
        self._owner = own(self._handle, "cram_zswap_free")
        self._closed = False
        self._forgotten = False
        self._compressor = compressor
        self._memories: weakref.WeakSet[ManagedMemory] = weakref.WeakSet()
        self._groups: list[Memcg] = [Memcg(self, 0, None, "")]
        self._nodes: list[Node] = []
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._reclaimer = Reclaimer(self)
        try:
            self._reclaimer.start()
            for device in nodes:
                self.add_node(device)
        except BaseException:
            self.close()
            raise

    # -- settings that are Python's

    @property
    def compressor(self) -> str:
        """Of the pool; fixed when the manager was made."""
        return self._compressor

    @property
    def query_interval(self) -> float:
        """Seconds between two questions to a device."""
        return self._query_interval

    @query_interval.setter
    def query_interval(self, value: float) -> None:
        if not isinstance(value, int | float) or not 0 <= value <= 3600:
            raise InvalidArgument(f"query_interval {value!r}: not from 0 to 3600 seconds")
        self._query_interval = value

    # -- lifetime

    def close(self) -> None:
        """Closes the memories, lets the nodes go, tells their drivers of all pages, and ends the thread. Closing twice is fine.

        BufferError, and it stays open, while a buffer of a memory is alive.
        """
        if self._closed:
            return
        for memory in list(self._memories):
            # One that is closed may be closing us: it had no other manager.
            if not memory.closed:
                memory.close()
        if self._closed:
            return
        # In a child of fork they are the parent's.
        with suppress(ForkedDevice):
            for node in self.nodes:
                self.remove_node(node)
        self._reclaimer.stop()
        check(lib.cram_zswap_close(self._handle))
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self) -> None:
        # As a device: a memory that is open here is in a cycle with it.
        if not getattr(self, "_closed", True):
            self._forgotten = True
            self._close_forgotten()

    def _close_forgotten(self) -> None:
        lib.cram_zswap_wake(self._handle)

    @property
    def closed(self) -> bool:
        return self._closed

    def thread_time(self) -> float:
        """Seconds of processor time that its thread has taken."""
        return self._reclaimer.thread_time()

    def fileno(self) -> int:
        """The descriptor of what a shared manager shares; it belongs to the manager."""
        return lib.cram_zswap_fd(self._handle)

    # -- nodes

    @property
    def nodes(self) -> tuple[Node, ...]:
        """In the order in which they are tried."""
        return tuple(self._nodes)

    def add_node(self, device: Device, driver: Driver | None = None) -> Node:
        """Takes a device in, once its driver has answered; it cannot be closed until the node is removed. Busy: it is a node
        already.

        NoAnswer: its registers are silent. After an error, or KeyboardInterrupt, nothing has changed.
        """
        expect("device", device, Device)
        driver = Driver() if driver is None else driver
        expect("driver", driver, Driver)
        driver.check()
        node = Node(self, device, driver)
        try:
            with self._changing():
                try:
                    node.join()
                finally:
                    if node.online:
                        # A new list, always: other threads go through the old one, and sort() empties a list while it works.
                        self._nodes = sorted([*self._nodes, node], key=lambda node: node.number)
                        self._subscribe()
            self._reclaimer.do(node.ask)
        except BaseException:
            node.hear_no_more()
            if node in self._nodes:
                self._let_go(node)
            raise
        return node

    def remove_node(self, node: Node) -> None:
        """Moves its pages off, lets the device go, and returns when its driver has been told of all of them.

        In a callback, of all but the rest of the batch that it is in. NoSpace: there is no room for them; the node stays, and takes
        nothing. InvalidArgument: it is not one of this manager's nodes.
        """
        self._let_go(node)
        self._reclaimer.do(self._reclaimer.tell)

    def _let_go(self, node: Node) -> None:
        left = 0
        while True:
            try:
                self._take_out(node)
                return
            except NoSpace:
                # Other nodes take what their drivers have approved of: while that gets it on, they are asked for more.
                if node.stats.stored == left:
                    raise
                left = node.stats.stored
                for other in self._nodes:
                    if other is not node:
                        self._reclaimer.do(other.refill)

    def _take_out(self, node: Node) -> None:
        with self._changing():
            if node not in self._nodes:
                raise InvalidArgument(f"{node!r}: not a node of this manager")
            try:
                node.leave()
            finally:
                if not node.online:
                    node.hear_no_more()
                    # What is queued is for this node, while no other has its number.
                    self._reclaimer.take()
                    self._nodes = [other for other in self._nodes if other is not node]
                    self._subscribe()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One thread changes the nodes at a time."""
        # In a child of fork the lock may be held by a thread that is not there.
        if os.getpid() != self._pid:
            raise ForkedDevice("the manager is that of the process that made it")
        with self._lock:
            yield

    def _subscribe(self) -> None:
        kinds = 0
        for node in self._nodes:
            if node.driver.page_freed is not None:
                kinds |= 1 << lib.CRAM_NOTE_FREED
            if node.driver.promoted is not None:
                kinds |= 1 << lib.CRAM_NOTE_PROMOTED
        lib.cram_zswap_subscribe(self._handle, kinds)

    # -- memory cgroups

    @property
    def root(self) -> Memcg:
        """The group of all memories."""
        return self._groups[0]

    @property
    def groups(self) -> tuple[Memcg, ...]:
        """The root, and all that memcg() has made, parents before those below them."""
        return tuple(self._groups)

    def memcg(
        self,
        parent: Memcg | None = None,
        *,
        name: str | None = None,
        max: int | str | None = None,
        zswap_max: int | str | None = None,
        zswap_writeback: bool = True,
    ) -> Memcg:
        """A new memory cgroup below the parent, or the root. name: its directory's ("memcg" and its number)."""
        parent = self.root if parent is None else parent
        expect("parent", parent, Memcg)
        parent.check("parent", self)
        if name is not None:
            check_name(name, (group for group in self._groups if group.parent is parent))
        # Before there is a group: one cannot be taken away again.
        limits = limit_of("max", max), limit_of("zswap_max", zswap_max)
        number = ffi.new("uint32_t *")
        check(lib.cram_memcg_create(self._handle, parent.number, number))
        check(lib.cram_memcg_set(self._handle, number[0], *limits, bool(zswap_writeback)))
        group = Memcg(self, number[0], parent, f"memcg{number[0]}" if name is None else name)
        self._groups.append(group)
        return group

    # -- statistics

    @property
    def stats(self) -> ZswapStats:
        stats = ffi.new("struct cram_zswap_stats *")
        lib.cram_zswap_read_stats(self._handle, stats)
        values = {name: stats.counters[number] for name, number in _COUNTERS.items()}
        return ZswapStats(
            stored_pages=values["stored_pool_pages"] + values["stored_direct_pages"],
            pool_total_size=stats.pool_total_size,
            pool_cached_pages=stats.pool_cached,
            total_pages={name: stats.total_pages[number] for name, number in DIRECT_LIMITS.items()},
            max_pages=stats.max_pages,
            swap_pages=stats.swap_pages,
            swap_used=stats.swap_used,
            **values,
        )

    def pool_classes(self) -> Iterator[PoolClass]:
        """The pool's size classes, by size."""
        row = ffi.new("struct cram_zpool_class *")
        index = 0
        while lib.cram_zswap_class(self._handle, index, row):
            yield PoolClass(
                index=row.index,
                size=row.size,
                fullness=tuple(row.fullness),
                objs_allocated=row.objs_allocated,
                objs_used=row.objs_used,
                pages_used=row.pages_used,
                pages_per_zspage=row.pages_per_zspage,
                freeable=row.freeable,
            )
            index += 1

    def compact(self) -> int:
        """Moves what is left in sparse zspages together; returns how many pages that freed."""
        return lib.cram_zswap_compact(self._handle)


def _swap_file() -> int:
    """A descriptor of a file that nobody else sees, and that is gone with it."""
    try:
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
    except OSError as error:
        raise DeviceIOError(f"no swap file in {tempfile.gettempdir()}: {error.strerror}") from None
