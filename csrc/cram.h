/* SPDX-License-Identifier: MIT
 *
 * cram.h - the one boundary of the C core.
 *
 * It does not know Python, FUSE or any policy: it is the device (hardware) and the part of a host operating
 * system that meets it page by page. cffi reads this file as it is, so it holds plain declarations only: no
 * inline functions, and no preprocessor beyond #include, #ifndef and #define of the guard.
 *
 * Units: sizes are bytes unless a name says pages, sectors or frames. A page is 4096 bytes, a poison line 64.
 * A DPA (device physical address) is a byte offset into the advertised capacity.
 *
 * Codes: functions that can fail return 0 or a negative code of enum cram_code; results leave through the last
 * parameter and are untouched after a failure. cram_error_detail() then holds one sentence that names the
 * offending value. The data plane (read, write, discard of a page) reports nothing of the fate of a write; only
 * the control plane does.
 *
 * Threads: every function may be called from any thread at any time, also while another thread closes the object. Only
 * cram_free() and cram_map_free() demand that all use of the handle has ended.
 *
 * Death: what a client that is killed had dirty is poison for the others, what it had clean stays. The up to 63 pages
 * that follow a sequential writer count as dirty (dirty_frames).
 *
 * Fork: a child that has inherited an anonymous mapping becomes a client of its own, and shares the mapping's pages with its
 * parent until one of them writes. Otherwise it inherits nothing usable: its copy of a mapping is gone (MADV_DONTFORK:
 * touching it is a clean SIGSEGV), and every call on the inherited device answers CRAM_EFORKED or, in the data plane,
 * moves no byte.
 */
#ifndef CRAM_H
#define CRAM_H

#include <stddef.h>
#include <stdint.h>

/* ---- codes ---------------------------------------------------------------------------------------------- */

/* One list (error.h) makes the codes, their names and their texts; errors.py holds an exception for each. */
struct cram_error_info {
	int code;         /* negative */
	const char *name; /* "EINVAL": the enumerator without its prefix */
	const char *text; /* what went wrong, in general */
};

/* The i-th error, or NULL past the end. Static storage. */
const struct cram_error_info *cram_error_at(size_t i);
/* What the calling thread's last failed call had to say, naming the value. Valid until that thread's next call. */
const char *cram_error_detail(void);

/* ---- the device: parameters, lifetime ------------------------------------------------------------------- */

typedef struct cram_device cram_device;

enum cram_codec { CRAM_CODEC_NONE = 0, CRAM_CODEC_LZ4 = 1, CRAM_CODEC_ZSTD = 2 };

/* Geometry and behaviour, fixed at creation. cram_params_default() fills in every field. */
struct cram_params {
	uint64_t advertised;     /* 1 MiB to 1 TiB, a multiple of 4096 */
	uint64_t real;           /* 4096 to advertised, a multiple of sector; at most 2^32 - 2 sectors */
	uint32_t sector;         /* 64 to 4096, a power of two: the media's allocation unit */
	uint32_t block;          /* 1024, 2048 or 4096: bytes compressed together */
	uint32_t codec;          /* enum cram_codec */
	int32_t level;           /* lz4: acceleration 1 to 65537; zstd: level 1 to 19; none: 0 */
	uint32_t largest_stored; /* a page that compresses to more than this is stored raw; 0 to 4096 */
	uint32_t poison_limit;   /* poison records kept, 1 to 1024 */
	uint64_t low_remaining;  /* lthresh when the remaining real capacity falls to this or below; 0: off */
	uint64_t high_remaining; /* hthresh when it has risen to this or above; >= low_remaining */
	uint32_t low_ratio;      /* lthresh when the ratio (per mille) falls to this or below; 0: off */
	uint32_t high_ratio;     /* hthresh when it has risen to this or above; >= low_ratio */
	int32_t signal;          /* raised for interrupts where a handler is installed; 0: none */
};

/* Fills *params: 8 GiB advertised, 1 GiB real, 64-byte sectors, 4 KiB blocks, lz4 at acceleration 1, thresholds
 * at 10 % and 20 % of the real capacity, ratio thresholds off, signal SIGRTMIN + 12. largest_stored and the
 * thresholds follow the fields already set: call it with advertised, real and sector set, or 0 for the
 * defaults. */
void cram_params_default(struct cram_params *params);

/* Creates a device in a new file at path (CRAM_EEXIST when there is one; removed again on failure), or, with
 * path NULL, in anonymous shared memory that lives as long as somebody has it open. The caller becomes its
 * first client. */
int cram_create(const char *path, const struct cram_params *params, cram_device **device);
/* Joins the device at path as a further client, after recovering what dead clients left. CRAM_EFORMAT: foreign
 * or truncated; CRAM_EVERSION: written by a newer version; CRAM_EBUSY: every client slot taken. */
int cram_open(const char *path, cram_device **device);
/* Leaves the device: CRAM_EBUSY while a mapping exists (and nothing happens). Waiters in cram_event_wait() return
 * CRAM_ECLOSED first. The handle stays: from now on every call on it answers CRAM_ECLOSED or moves no byte, so that
 * threads may use it while another closes. NULL, and closing twice, are accepted. */
int cram_close(cram_device *device);
/* Closes the device, when it is open yet, and frees its handle, which nobody uses any more, nor any mapping of the
 * device. NULL is accepted. */
void cram_free(cram_device *device);
/* 0, CRAM_ECLOSED or CRAM_EFORKED: what those calls that cannot say so have met. */
int cram_check(const cram_device *device);
/* The parameters as created. */
void cram_get_params(const cram_device *device, struct cram_params *params);

/* ---- the data plane ------------------------------------------------------------------------------------- */

/* The page functions act on the page that holds dpa. On a page resident in a mapping of this process they act through its
 * frame; on a page in a range that another client has mapped a read copies nothing, and a write or discard is
 * dropped and counted (refused_writes). An address past the advertised capacity behaves the same way. */

/* Posted write of a whole page: page holds 4096 bytes; returns nothing, as hardware does. No room: dropped, and
 * the page is poison. */
void cram_write_page(cram_device *device, uint64_t dpa, const void *page);
/* copy_mc_to_kernel() semantics: copies up to the first poisoned 64-byte line into page (4096 bytes) and returns
 * how many bytes were not copied, 0 on success. A page never written reads as zeros. */
size_t cram_read_page(cram_device *device, uint64_t dpa, void *page);
/* The same for any range: copies up to the first poisoned line that the range touches. */
size_t cram_read(cram_device *device, uint64_t dpa, void *to, size_t length);
/* Gives the capacity of whole pages back; they read as zeros afterwards. dpa and length in multiples of 4096. */
void cram_discard(cram_device *device, uint64_t dpa, uint64_t length);

/* ---- registers and commands ----------------------------------------------------------------------------- */

struct cram_registers {
	uint64_t advertised;
	uint64_t real;           /* whole sectors of it */
	uint64_t used;           /* bytes of media in use: used sectors times the sector size */
	uint64_t remaining;      /* real - used */
	uint64_t peak;           /* largest used so far */
	uint64_t dirty_frames;   /* frames newer than the media, all clients: by so many pages used may lag. At most: a
				  * writer that goes on in sequence has the next pages counted before it comes */
	uint64_t pages_stored;   /* compressed pages in the media */
	uint64_t pages_raw;      /* pages stored as they are */
	uint64_t pages_zero;     /* pages written with zeros: no sectors */
	uint64_t pages_same;     /* pages of one repeated 8-byte word: no sectors */
	uint64_t pages_poison;   /* pages without data: dropped, damaged or lost */
	uint64_t payload;        /* bytes of stored form in the media; used - payload is lost to rounding */
	uint64_t ratio;          /* per mille: (stored + raw + zero + same pages) * 4096 / used; 0 when none used */
	uint64_t dropped_writes; /* writes that found no room */
	uint64_t refused_writes; /* writes to a page that another client has mapped, or past the capacity */
	uint64_t media_errors;   /* stored forms that failed their checksum */
	uint64_t lost_pages;     /* pages poisoned because the client that held them dirty died, or the device was reset */
	uint64_t poisoned;       /* pages with at least one poisoned line */
	uint64_t poison_records; /* entries of the poison list */
	uint64_t poison_overflow; /* poisoned pages without a record: the list was full */
	uint64_t lthresh;        /* interrupts raised, vector 12 */
	uint64_t hthresh;        /* interrupts raised, vector 13 */
	uint64_t events;         /* sequence number of the newest event */
	uint64_t clients;        /* attached */
	uint64_t low_remaining;  /* thresholds, as in struct cram_params, but as they are now */
	uint64_t high_remaining;
	uint32_t low_ratio;
	uint32_t high_ratio;
	uint32_t pressure;       /* 0 to 1000, written by the driver; lthresh sets 1000, hthresh 0 */
	uint32_t no_alloc;       /* 1: do not allocate; lthresh sets it, hthresh clears it */
};

/* A reading of each register; they are read one after another while the device works. CRAM_ETIMEDOUT: a fault has them
 * silent. CRAM_ENODEV: the device has been removed. All are 0 after an error. */
int cram_read_registers(const cram_device *device, struct cram_registers *registers);
/* The same as they are, whatever faults have them tell, and of a device that has been removed too: for whoever reports on one. A
 * driver has nothing like it. */
int cram_observe(const cram_device *device, struct cram_registers *registers);
/* The driver's registers. CRAM_EINVAL: pressure over 1000; CRAM_ENODEV. They inform; the data plane does not obey them. */
int cram_set_pressure(cram_device *device, uint32_t pressure);
int cram_set_no_alloc(cram_device *device, int on);
/* New thresholds, as in struct cram_params; evaluated at once. CRAM_EINVAL changes nothing. */
int cram_set_thresholds(cram_device *device, uint64_t low_remaining, uint64_t high_remaining,
			uint32_t low_ratio, uint32_t high_ratio);

/* A process that has the device open. */
struct cram_client {
	uint32_t pid;
	uint32_t make_it_fail;    /* 1: faults with a task filter strike it */
	uint64_t mapped;          /* bytes of the device, in all its mappings */
	uint64_t resident_frames; /* frames of its mappings, or about to be */
	uint64_t dirty_frames;    /* those newer than the media */
	uint64_t faults;          /* page faults answered since it came */
	uint64_t written_back;    /* pages compressed since it came */
	uint64_t poison_faults;   /* accesses to its mappings that met poison */
};

/* Copies at most n clients, one that has died and is not reaped yet among them; returns how many there are. */
size_t cram_client_list(const cram_device *device, struct cram_client *clients, size_t n);

enum cram_page_state {
	CRAM_PAGE_EMPTY = 0, /* never written, or discarded; reads as zeros */
	CRAM_PAGE_ZERO = 1,
	CRAM_PAGE_SAME = 2,
	CRAM_PAGE_STORED = 3,
	CRAM_PAGE_RAW = 4,
	CRAM_PAGE_POISON = 5, /* no data: a dropped write, damaged media, or a dead client's newer copy */
};

struct cram_page_info {
	uint32_t state;     /* enum cram_page_state */
	uint32_t length;    /* bytes of stored form */
	uint32_t sectors;   /* sectors held */
	uint32_t dirty;     /* 1: a frame somewhere is newer */
	uint32_t resident;  /* 1: a frame of this process holds it */
	uint32_t foreign;   /* 1: another client has it mapped */
	uint64_t poisoned;  /* bit i: line i is poisoned */
	uint64_t media;     /* offset of its first sector in the device object; 0 when it has none */
};

/* What the page map says of the page that holds dpa. CRAM_EINVAL: past the capacity. */
int cram_page_info(cram_device *device, uint64_t dpa, struct cram_page_info *info);

/* Recomputes sectors, counters and the poison list from the page map, with every client held at a page boundary
 * meanwhile. CRAM_ETIMEDOUT: a stopped client is in the middle of a page; nothing changed. */
int cram_rebuild(cram_device *device);
/* Poisons dirty pages of dead clients and frees what they held; *dead (may be NULL) says how many there were. */
int cram_reap(cram_device *device, uint32_t *dead);
/* The descriptor of the device object, owned by the device. For tests that damage it, and for fd passing. */
int cram_fd(const cram_device *device);

/* ---- poison --------------------------------------------------------------------------------------------- */

enum cram_poison_source {
	CRAM_POISON_DROPPED = 1,  /* a write found no room */
	CRAM_POISON_INJECTED = 2,
	CRAM_POISON_MEDIA = 3,    /* a stored form failed its checksum */
	CRAM_POISON_LOST = 4,     /* its newest copy died with a client, or went with the device's contents */
};

struct cram_poison_record {
	uint64_t dpa;
	uint32_t length; /* bytes: 64 for an injected line, 4096 for a page */
	uint32_t source; /* enum cram_poison_source */
};

/* Poisons or clears the 64 bytes at dpa (kernel: drivers/cxl/core/mbox.c, debugfs inject_poison, clear_poison).
 * CRAM_EINVAL: not a multiple of 64 or past the capacity. Inject: CRAM_EBUSY when the list is full (nothing
 * changed); poisoning twice is fine. Clear writes zeros to the 64 bytes; a line that is not poisoned is zeroed
 * too, as the CXL command does. A frame that holds the page, in this or another process, is written back and
 * dropped first; CRAM_ETIMEDOUT when its process does not answer: nothing changes then, unless it had begun. */
int cram_inject_poison(cram_device *device, uint64_t dpa);
int cram_clear_poison(cram_device *device, uint64_t dpa);
/* Copies at most n records in ascending order of dpa, returns how many there are. */
size_t cram_poison_list(cram_device *device, struct cram_poison_record *records, size_t n);

/* ---- interrupts ----------------------------------------------------------------------------------------- */

/* So that a log tells cause and consequence, no interrupts, and they signal nobody: a fault has struck (CRAM_INJECTED); a process
 * has met poison, in its mapping or as the manager of a node (CRAM_CONSUMED), once where it does so again and again. */
enum cram_vector { CRAM_INJECTED = 0, CRAM_CONSUMED = 1, CRAM_LTHRESH = 12, CRAM_HTHRESH = 13 };
enum cram_cause { CRAM_CAUSE_REMAINING = 1, CRAM_CAUSE_RATIO = 2 };

struct cram_event {
	uint64_t sequence;  /* 1 for the device's first, no gaps, if those that are no interrupts are counted in */
	uint64_t time_ns;   /* CLOCK_MONOTONIC when it was raised, or, of a late one, was to arrive */
	uint64_t remaining; /* registers as they were then */
	uint64_t ratio;     /* of those that are no interrupts: the page, in bytes, or UINT64_MAX */
	uint32_t vector;    /* enum cram_vector */
	uint32_t cause;     /* enum cram_cause; of CRAM_INJECTED: enum cram_fault */
	uint32_t pid;       /* the process in which it happened */
	uint32_t unused;
};

/* Waits for the event after *sequence, stores it and advances *sequence. timeout_ms < 0: for ever.
 * CRAM_ETIMEDOUT; CRAM_ECLOSED: the device is closing. CRAM_EOVERFLOW: the ring (4096 events) has lapped the
 * reader; *sequence then stands before the oldest event still held, and by so many as it has moved are lost. */
int cram_event_wait(cram_device *device, uint64_t *sequence, int timeout_ms, struct cram_event *event);
/* An eventfd that counts this device's interrupts, from now on; owned by the device. */
int cram_event_fd(cram_device *device);

/* ---- faults on purpose ------------------------------------------------------------------------------------ */

/* What a device can be made to do wrong; csrc/device/inject.h says what each does. All are off at first, and survive whoever
 * set them: they belong to the device, and strike every client. */
enum cram_fault {
	CRAM_FAULT_STORE,
	CRAM_FAULT_CORRUPT,
	CRAM_FAULT_POISON,
	CRAM_FAULT_RATIO,
	CRAM_FAULT_CAPACITY,
	CRAM_FAULT_TRIM,
	CRAM_FAULT_READ_DELAY,
	CRAM_FAULT_WRITE_DELAY,
	CRAM_FAULT_LOST_IRQ,
	CRAM_FAULT_LATE_IRQ,
	CRAM_FAULT_SPURIOUS_IRQ,
	CRAM_FAULT_STALE,
	CRAM_FAULT_NO_ANSWER,
	CRAM_FAULT_LIE_REMAINING,
	CRAM_FAULT_LIE_RATIO,
	CRAM_FAULT_SATURATED,
	CRAM_FAULT_STORM_IRQ,
	CRAM_FAULT_STUCK_IRQ,
	CRAM_FAULT_ALLOC,
	CRAM_FAULT_UNSAFE,
	CRAM_FAULT_TRIM_BUSY,
	CRAM_FAULT_TRIM_FULL,
	CRAM_FAULT_REMOVAL,
	CRAM_FAULT_RESET,
	CRAM_FAULT_POWER_CYCLE,
	CRAM_FAULTS,
};

enum { CRAM_FAULT_CERTAIN = 1000000000 };

/* How a value varies from strike to strike. It is the mean of all of them; the largest value of a fault cuts them off. */
enum cram_distribution {
	CRAM_CONSTANT,
	CRAM_UNIFORM,     /* from 0 to twice the value */
	CRAM_EXPONENTIAL, /* as waiting in a queue takes */
	CRAM_PARETO,      /* of shape 1.5: a third of the value at least, and spikes: one in 1000 is over 33 times the value */
	CRAM_DISTRIBUTIONS,
};

/* When one strikes, as the kernel's fault attributes have it (Documentation/fault-injection). */
struct cram_fault_attr {
	uint64_t probability; /* of CRAM_FAULT_CERTAIN; 0: off */
	uint64_t interval;    /* over 1: only every so many questions; set probability to CRAM_FAULT_CERTAIN then. 0 is 1 */
	int64_t times;        /* that it may still strike; -1: without limit */
	uint64_t space;       /* bytes that pass before the first one */
	uint64_t seed;        /* the same seed, the same answers */
	uint64_t value;       /* what it is: struct cram_fault_text */
	uint32_t distribution; /* enum cram_distribution: of value */
	uint32_t verbose;     /* 0: strikes are counted, and not told (CRAM_INJECTED); 1, as at first, or 2: told */
	uint32_t task_filter; /* 1: it strikes only clients that cram_make_it_fail() has marked */
	uint64_t struck;      /* so often it has; not to be set */
};

struct cram_fault_text {
	const char *name;
	const char *unit;   /* of value; NULL: it has none */
	const char *effect; /* a sentence without a stop */
	uint64_t largest;   /* value */
};

/* Static. NULL: no such fault. */
const struct cram_fault_text *cram_fault_text(uint32_t fault);
/* CRAM_EINVAL: no such fault, or an attribute out of range, which the detail names; nothing has changed then. Setting
 * begins at the start of the seed's sequence; a store that is under way may still see what was before. */
int cram_fault_get(cram_device *device, uint32_t fault, struct cram_fault_attr *attr);
int cram_fault_set(cram_device *device, uint32_t fault, const struct cram_fault_attr *attr);
/* Marks a process for faults with a task filter, or no more (/proc/PID/make-it-fail); children of fork are marked as it is.
 * CRAM_EINVAL: it does not have the device open. */
int cram_make_it_fail(cram_device *device, uint32_t pid, int on);
/* Has a fault of the device as a whole strike now, whatever its attributes: CRAM_EINVAL for any other than these.
 *   REMOVAL      Surprise removal, for good. Every page is poison to every client; writes are dropped and counted; control calls
 *                answer CRAM_ENODEV, but for clients, poison list, faults, reap, rebuild and the end. cram_open() still joins it.
 *   RESET        All that was written is lost, and poison until it is written anew or discarded (lost_pages); the media is free,
 *                thresholds, pressure and no_alloc are as created, the poison list has what was lost and nothing else.
 *   POWER_CYCLE  The same, but that the poison list stays as it is, and lines that were injected are poisoned as before.
 * The frames of mappings, in all clients, are the device's own: they are lost with it. Managed memory's are the host's. When it
 * returns nobody has one any more; CRAM_ETIMEDOUT: it has struck, but a process has not answered yet, or (a reset) one is
 * stopped in the middle of a page, and nothing has happened. CRAM_ENODEV: it is gone already. */
int cram_fault_strike(cram_device *device, uint32_t fault);

/* ---- the mapping ---------------------------------------------------------------------------------------- */

typedef struct cram_map cram_map;

enum cram_delivery { CRAM_MONITOR = 0, CRAM_INLINE = 1 };

struct cram_map_params {
	uint64_t dpa;          /* first byte mapped, a multiple of 4096 */
	uint64_t length;       /* a multiple of 4096 */
	uint64_t window;       /* bytes of resident frames at most, at least 64 KiB, a multiple of 4096 */
	uint32_t delivery;     /* enum cram_delivery */
	uint32_t writeback_ms; /* period of the write-back; 0: off */
	uint32_t anonymous;    /* 1: memory that gets device pages as it touches them; dpa is 0, and length may be up to four
				* times the advertised capacity. One a process; gone with it */
};

/* Maps a range of the device as memory of this process: loads and stores, poison as SIGBUS (BUS_MCEERR_AR, the
 * exact address, lsb 12) in the thread that touched it. Claims the range: CRAM_EBUSY when part of it is taken.
 * CRAM_EPERM: userfaultfd is not permitted. CRAM_ENOSYS: this kernel lacks a feature, the detail names it.
 * CRAM_ENOMEM. Monitor delivery serves the kernel's own accesses (read(2) into the mapping); with inline delivery
 * a system call on a page that is not resident fails with EFAULT. Installs the process's SIGBUS handler. */
int cram_map_create(cram_device *device, const struct cram_map_params *params, cram_map **map);
/* Writes every dirty frame back, gives the range up and unmaps it. The caller has made sure that nobody touches the
 * memory any more; a thread that does gets SIGSEGV, or SIGBUS. Once only, by one thread; the handle stays, and
 * answers CRAM_ECLOSED. NULL is accepted. */
void cram_unmap(cram_map *map);
/* Unmaps the mapping, when it is mapped yet, and frees its handle, before its device's is freed. NULL is accepted. */
void cram_map_free(cram_map *map);
void *cram_map_address(const cram_map *map);

/* Writes the dirty frames of [offset, offset + length) back and returns when all that were dirty at the call are in
 * the media (or dropped: the device does not say). Frames stay resident. CRAM_EINVAL: outside the mapping. */
int cram_flush(cram_map *map, uint64_t offset, uint64_t length);
/* Makes the pages resident and writable and keeps them so, for O_DIRECT and io_uring, which write to the frame
 * behind the page tables' back. Pinned frames count as dirty; a flush stores a snapshot of them. Nests.
 * CRAM_ENOMEM: more than the window less an eviction batch would be pinned; CRAM_EPOISON: a page is poisoned;
 * nothing is pinned then. cram_unpin() takes the same range; CRAM_EINVAL when it is not pinned. */
int cram_pin(cram_map *map, uint64_t offset, uint64_t length);
int cram_unpin(cram_map *map, uint64_t offset, uint64_t length);

struct cram_map_stats {
	uint64_t resident;       /* frames */
	uint64_t dirty;          /* frames newer than the media */
	uint64_t window;         /* frames at most */
	uint64_t read_faults;
	uint64_t write_faults;   /* missing pages written to */
	uint64_t protect_faults; /* first writes to clean resident pages */
	uint64_t prefetched;     /* pages brought in by fault-around */
	uint64_t evicted;
	uint64_t written_back;   /* pages compressed, for whatever reason */
	uint64_t poison_faults;  /* SIGBUS for poison */
	uint64_t handler_restored; /* times the program's own SIGBUS handler was found in front of ours */
};

void cram_map_read_stats(const cram_map *map, struct cram_map_stats *stats);

/* What userfaultfd offers this process. */
struct cram_uffd_info {
	int available;        /* 0, or the negative errno of userfaultfd(2) */
	int kernel_faults;    /* 1: the kernel's own accesses can be served (monitor delivery) */
	uint64_t features;    /* bits as of UFFDIO_API */
	int sigbus, write_protect, poison, move, exact_address; /* 1: offered */
};
void cram_uffd_probe(struct cram_uffd_info *info);

/* ---- the manager ------------------------------------------------------------------------------------------ */

/* A host's zswap with devices as nodes (mm/zswap.c, and the proposal of private nodes): managed memory has so many frames;
 * what loses its frame goes to the zeromap, to a node, to the pool, or to the swap file, and comes back by a page fault. */
typedef struct cram_zswap cram_zswap;

/* How much of zswap's limit a page on a node takes. */
enum cram_direct_limit { CRAM_DIRECT_NONE = 0, CRAM_DIRECT_PAGE = 1, CRAM_DIRECT_SIZE = 2 };
/* What a page on a node charges its memory cgroup: 4096 bytes; what the device says it takes; or what a page of that node takes
 * on average. */
enum cram_charging { CRAM_CHARGE_PAGE = 0, CRAM_CHARGE_SIZE = 1, CRAM_CHARGE_FUZZY = 2 };

/* What may be changed at any time; the first five are the kernel's module parameters. */
enum cram_zswap_setting {
	CRAM_ZSWAP_ENABLED,            /* 0: neither nodes nor pool take anything more */
	CRAM_ZSWAP_MAX_POOL_PERCENT,   /* of ram; 0 to 100 */
	CRAM_ZSWAP_ACCEPT_THRESHOLD_PERCENT, /* of the limit, 0 to 100 */
	CRAM_ZSWAP_SHRINKER_ENABLED,   /* 1: reclaim ages the pool too, and writes back what is cold */
	CRAM_ZSWAP_RAM,                /* bytes: what percentages are of */
	CRAM_ZSWAP_DIRECT_LIMIT,       /* enum cram_direct_limit */
	CRAM_ZSWAP_MAX_DIRECT_PERCENT, /* of ram, for pages on nodes; 0: without limit */
	CRAM_ZSWAP_CHARGING,           /* enum cram_charging; for what is stored from now on */
	CRAM_ZSWAP_SETTINGS,
};

struct cram_zswap_params {
	uint64_t settings[8];     /* by enum cram_zswap_setting */
	uint32_t chain;           /* pages of a zspage at most: 4, 8 or 16 */
	uint32_t codec;           /* enum cram_codec of the pool; not none */
	int32_t level;
	uint32_t shared;          /* 1: its settings, limits, view of nodes and statistics are shared with the programs that attach to
				   * cram_zswap_fd(), each of which has memory, a pool and a node of its own */
	int32_t swap_fd;          /* a file of the caller's, closed with the manager; -1: no swap */
	uint64_t swap_size;       /* bytes */
};

/* Each is a number of pages unless it says otherwise; debugfs and vmstat names where the kernel has one. */
enum cram_zswap_counter {
	CRAM_ZSWAP_STORED_POOL,   /* now */
	CRAM_ZSWAP_STORED_DIRECT, /* now */
	CRAM_ZSWAP_STORED_INCOMPRESSIBLE, /* now; in the pool as they are */
	CRAM_ZSWAP_STORED_ZERO,   /* now; in the zeromap */
	CRAM_ZSWAP_STORED_FILE,   /* now; in the swap file */
	CRAM_ZSWAP_STORED_BYTES,  /* compressed bytes in the pool now */
	CRAM_ZSWAP_CHARGED_DIRECT, /* bytes charged for direct pages now */
	CRAM_ZSWAP_POOL_PAGES,    /* of memory that the pool has now */
	CRAM_ZSWAP_LAST_GAUGE = CRAM_ZSWAP_POOL_PAGES, /* up to here they may fall */
	CRAM_ZSWAP_WRITTEN_BACK,
	CRAM_ZSWAP_POOL_LIMIT_HIT,
	CRAM_ZSWAP_REJECT_RECLAIM_FAIL,  /* write-backs of the pool that failed */
	CRAM_ZSWAP_REJECT_COMPRESS_POOR, /* no compressor here says that */
	CRAM_ZSWAP_REJECT_COMPRESS_FAIL, /* did not shrink, and may not be written back */
	CRAM_ZSWAP_REJECT_ALLOC_FAIL,
	CRAM_ZSWAP_REJECT_KMEMCACHE_FAIL,
	CRAM_ZSWAP_REJECT_MEMCG,  /* memory.zswap.max */
	CRAM_ZSWAP_DECOMPRESS_FAIL,
	CRAM_ZSWAP_ZSWPIN, CRAM_ZSWAP_ZSWPOUT, CRAM_ZSWAP_ZSWPWB,
	CRAM_ZSWAP_PSWPIN, CRAM_ZSWAP_PSWPOUT,
	CRAM_ZSWAP_SWPIN_ZERO, CRAM_ZSWAP_SWPOUT_ZERO,
	CRAM_ZSWAP_RECLAIM_FAIL,  /* no place for it anywhere: the frame stayed */
	CRAM_ZSWAP_DIRECT_RECLAIM, /* frames reclaimed inside a fault */
	CRAM_ZSWAP_KSWAPD_RECLAIM, /* frames reclaimed by cram_map_reclaim() */
	CRAM_ZSWAP_NOTES_LOST,
	CRAM_ZSWAP_COUNTERS,
};

struct cram_zswap_stats {
	uint64_t counters[28];      /* by enum cram_zswap_counter */
	uint64_t pool_total_size;   /* bytes */
	uint64_t total_pages[3];    /* zswap_total_pages(), by enum cram_direct_limit */
	uint64_t max_pages;
	uint64_t swap_pages, swap_used;
	uint64_t pool_cached;       /* free pages that the pool keeps for a while */
};

/* CRAM_EINVAL names the value; CRAM_ENOMEM. */
int cram_zswap_create(const struct cram_zswap_params *params, cram_zswap **zswap);
/* CRAM_EBUSY while it has memory or nodes, and nothing happens. NULL is accepted. */
int cram_zswap_close(cram_zswap *zswap);
/* Closes what is open yet, and frees the handle. */
void cram_zswap_free(cram_zswap *zswap);
/* Of a shared one: the file of what is shared, owned by the manager; else -1. */
int cram_zswap_fd(const cram_zswap *zswap);
int cram_zswap_set(cram_zswap *zswap, uint32_t setting, uint64_t value);
uint64_t cram_zswap_get(const cram_zswap *zswap, uint32_t setting);
/* Of a shared one: the sums over all programs, but for swap and pool_cached, which are of this process. */
void cram_zswap_read_stats(const cram_zswap *zswap, struct cram_zswap_stats *stats);

/* A size class of the pool, as /sys/kernel/debug/zsmalloc has it. */
struct cram_zpool_class {
	uint32_t index, size;
	uint64_t fullness[12];  /* zspages that are 0 %, up to 10, ... up to 99, 100 % full */
	uint64_t objs_allocated, objs_used, pages_used;
	uint32_t pages_per_zspage;
	uint64_t freeable;      /* pages that compaction could free */
};
/* The i-th class that has sizes of its own. False: there are not so many. */
int cram_zswap_class(const cram_zswap *zswap, uint32_t i, struct cram_zpool_class *row);
/* Pages freed by moving what is left in sparse zspages together. */
uint64_t cram_zswap_compact(cram_zswap *zswap);

/* ---- nodes */

enum { CRAM_NODES_MAX = 16 };

struct cram_node_params {
	uint32_t live_registers; /* 1: each store looks at the device's registers; 0: at what was published only */
	uint32_t trim_buffer;    /* pages freed that may wait for cram_node_flush(); 0: trimmed at once. At most 4096 */
	uint32_t approves;       /* 1: but for reclaim inside a fault, the node takes what cram_node_answer() has approved of, only */
};

enum cram_refusal {
	CRAM_TAKEN,
	CRAM_REFUSED_NO_ALLOC,  /* the driver's bit */
	CRAM_REFUSED_VERDICT,   /* the policy's last word */
	CRAM_REFUSED_PRESSURE,
	CRAM_REFUSED_FULL,      /* no device page is free */
	CRAM_REFUSED_CALLBACK,  /* the driver did not approve of the page */
	CRAM_REFUSED_LIMIT,     /* direct pages may not be more */
	CRAM_REFUSED_GONE,      /* the device has been removed */
	CRAM_REFUSALS,
};

struct cram_node_stats {
	uint64_t stored;         /* pages now */
	uint64_t promoted, poisoned;
	uint64_t refused[8];     /* by enum cram_refusal */
	uint64_t approved, unapproved;
	uint64_t stock;          /* approved pages that wait for contents */
	uint64_t trims_done, trims_deferred, trims_full, trims_busy, trims_waiting;
	uint32_t allowed, no_alloc, pressure, page_size; /* as published */
};

/* Takes a device in as the last node; it cannot be closed until the node is removed. CRAM_EBUSY: too many nodes, or the device
 * has anonymous memory of this client. CRAM_EINVAL. */
int cram_zswap_add_node(cram_zswap *zswap, cram_device *device, const struct cram_node_params *params, uint32_t *nid);
/* Moves its pages off, then lets it go. CRAM_ENOSPC: nobody takes them; the node stays, and takes nothing. CRAM_ENOENT. */
int cram_zswap_remove_node(cram_zswap *zswap, uint32_t nid);
/* What the host knows of a node: whether it may take pages, its no_alloc bit, its pressure, and what a page takes there on
 * average (bytes). CRAM_ENOENT, CRAM_EINVAL. */
int cram_node_publish(cram_zswap *zswap, uint32_t nid, int allowed, int no_alloc, uint32_t pressure, uint32_t page_size);
int cram_node_read_stats(const cram_zswap *zswap, uint32_t nid, struct cram_node_stats *stats);
/* At most n device pages to ask the node's driver for, into dpas; how many, or CRAM_ENOENT. Each must be answered: 0, or a
 * negative errno, by which it is given back. CRAM_EINVAL: a page that the node has not offered; those after it are unanswered. */
int cram_node_offer(cram_zswap *zswap, uint32_t nid, uint64_t *dpas, uint32_t n);
int cram_node_answer(cram_zswap *zswap, uint32_t nid, const uint64_t *dpas, const int32_t *answers, uint32_t n);
/* Trims the pages that wait for it; how many, or CRAM_ENOENT. */
int64_t cram_node_flush(cram_zswap *zswap, uint32_t nid);

/* ---- memory */

struct cram_managed_params {
	uint64_t length;         /* a multiple of 4096 */
	uint64_t dram;           /* bytes of frames at most; as a mapping's window */
	uint32_t delivery;       /* enum cram_delivery */
	uint32_t group;          /* memory cgroup */
};

/* Memory of this process under the manager. It is a mapping: cram_map_address(), cram_map_read_stats(), cram_pin() and
 * cram_unmap() apply; cram_flush() has nothing to do. Errors as of cram_map_create(); CRAM_EINVAL also for a group that is not. */
int cram_managed_create(cram_zswap *zswap, const struct cram_managed_params *params, cram_map **map);
/* Takes frames away until so many pages are stored, or none is left to take; *done: how many. */
int cram_map_reclaim(cram_map *map, uint64_t pages, uint64_t *done);
/* The same in the background: until the memory is at its low mark. */
int cram_map_balance(cram_map *map, uint64_t pages, uint64_t *done);
/* Gives the range back: it reads as zeros. Multiples of 4096. */
int cram_map_discard(cram_map *map, uint64_t offset, uint64_t length);
/* Writes back up to so many pages of the pool, of which those that were used since get a second chance; *done: how many were. */
int cram_map_shrink(cram_map *map, uint64_t pages, uint64_t *done);
/* Where the page at that offset is. CRAM_EINVAL. */
struct cram_managed_page {
	uint32_t place;    /* 0 none, 1 zero, 2 direct, 3 pool, 4 file, 5 poison, 6 a frame */
	uint32_t node;     /* direct */
	uint64_t dpa;      /* direct: bytes */
	uint32_t size;     /* bytes charged */
};
int cram_managed_page(cram_map *map, uint64_t offset, struct cram_managed_page *page);

/* ---- memory cgroups */

struct cram_memcg_stats {
	uint64_t max, zswap_max; /* bytes; UINT64_MAX: none */
	uint64_t anon, zswap;    /* bytes; current is their sum */
	uint64_t zswapped;       /* pages */
	uint64_t zswpin, zswpout, zswpwb;
	uint64_t max_events, oom;
	uint32_t parent, writeback;
};
/* Group 0 is the root. CRAM_EBUSY: too many; CRAM_ENOENT. */
int cram_memcg_create(cram_zswap *zswap, uint32_t parent, uint32_t *group);
int cram_memcg_set(cram_zswap *zswap, uint32_t group, uint64_t max, uint64_t zswap_max, int writeback);
int cram_memcg_read_stats(const cram_zswap *zswap, uint32_t group, struct cram_memcg_stats *stats);

/* ---- what the manager has for a policy */

/* Why cram_zswap_wait() returns: bits. */
enum cram_zswap_work {
	CRAM_WORK_RECLAIM = 1, /* a memory is past its high mark */
	CRAM_WORK_SHRINK = 2,  /* the pool has met its limit */
	CRAM_WORK_NOTES = 4,
	CRAM_WORK_TRIM = 16,   /* a page waits to be trimmed */
	CRAM_WORK_ZSWAP_MAX = 32, /* a memory cgroup has met its memory.zswap.max */
	CRAM_WORK_STOP = 8,    /* somebody called cram_zswap_wake() */
};
/* Sleeps until there is work or the time is over (timeout_ms < 0: for ever); the bits, 0 when it was over. One thread. */
int cram_zswap_wait(cram_zswap *zswap, int timeout_ms);
void cram_zswap_wake(cram_zswap *zswap);

enum cram_zswap_note_kind { CRAM_NOTE_FREED = 1, CRAM_NOTE_PROMOTED = 2 };
/* A page left a node: because it was promoted to a frame, which is told first, or for another reason. */
struct cram_zswap_note {
	uint64_t page;   /* its number in the memory */
	uint64_t dpa;    /* bytes */
	uint32_t memory;
	uint16_t node;
	uint16_t kind;   /* enum cram_zswap_note_kind */
};
enum { CRAM_ZSWAP_NOTES = 8192 };
/* Which kinds are kept: bits 1 << kind. At first none. */
void cram_zswap_subscribe(cram_zswap *zswap, uint32_t kinds);
/* Takes at most n; how many. What the full ring had no room for is counted (NOTES_LOST). */
uint32_t cram_zswap_take_notes(cram_zswap *zswap, struct cram_zswap_note *notes, uint32_t n);

/* ---- the codec alone, for oracles in tests --------------------------------------------------------------- */

/* The stored form of a page under params: state (an enum cram_page_state), and for a stored or raw page its bytes
 * in form (4096 bytes) and their number in *length; for a same-filled page its 8-byte word. Nothing is allocated
 * in a device. */
int cram_encode(const struct cram_params *params, const void *page, void *form, uint32_t *length);

/* ---- the measuring loops --------------------------------------------------------------------------------- */

/* Loops to time, on memory that the caller gives: what is behind it (a mapping of a device, kernel swap, ordinary
 * memory) they do not know, so that whatever is compared runs the very same code. They do not allocate inside the
 * timed part. Contents, addresses and written values are functions of the seed and of a position; verification
 * computes them anew, outside the timed part. */

/* A page holds one 8-byte word of its own, repeated, and then low to high bytes of entropy up to its end (low == high:
 * every page that much; else by page, evenly spread). */
struct cram_lab_range {
	void *memory;     /* pages * 4096 bytes, page-aligned, owned by the caller */
	uint64_t pages;   /* 1 to 2^32 */
	uint64_t seed;
	uint32_t low;     /* multiples of 8, at most 4096 */
	uint32_t high;
	uint32_t threads; /* 1 to 64, the calling thread among them */
};

struct cram_lab_result {
	uint64_t elapsed_ns; /* from the first thread's start to the last one's end, CLOCK_MONOTONIC */
	uint64_t wrong;      /* what differs from the expected contents: 0, or pages, or threads whose reads did */
};

/* Each answers CRAM_EINVAL for a range outside the limits above and CRAM_ENOMEM when it cannot have its threads or
 * its tables; the memory is untouched then. Two calls at a time must not work on one range. */

/* Writes every page whole, in address order; each thread its own part of the range. */
int cram_lab_fill(const struct cram_lab_range *range, struct cram_lab_result *result);
/* Reads the first 8 bytes of every page, in address order; each thread its own part of the range. Expects the
 * contents of cram_lab_fill(). */
int cram_lab_scan(const struct cram_lab_range *range, struct cram_lab_result *result);
/* One 8-byte access each to words drawn from all of the range, each timed by itself into latency_ns (one entry
 * an access, saturating). The accesses are shared out among the threads, each with a stream of its own; no two
 * threads touch the same word. Reads expect the contents of cram_lab_fill(). */
int cram_lab_random_read(const struct cram_lab_range *range, uint64_t accesses, uint32_t *latency_ns,
			 struct cram_lab_result *result);
int cram_lab_random_write(const struct cram_lab_range *range, uint64_t accesses, uint32_t *latency_ns,
			  struct cram_lab_result *result);
/* Compares every byte with what cram_lab_fill() and one cram_lab_random_write() of so many accesses (0: none) left
 * there, both with this range. */
int cram_lab_verify(const struct cram_lab_range *range, uint64_t accesses, struct cram_lab_result *result);
/* Random accesses with nothing else in the timed part, each an 8-byte read and an 8-byte write to another page:
 * with memory that is resident, this is what a load and a store cost. stream tells one run's addresses and values
 * from the next one's; two ranges that have seen the same runs hold the same bytes. One thread; wrong stays 0. */
int cram_lab_hot(const struct cram_lab_range *range, uint64_t stream, uint64_t accesses,
		 struct cram_lab_result *result);

/* The limit of any such device: decompresses a store of the range's pages, each compressed by lz4 alone and laid
 * back to back in *store bytes, into the range in address order. The store is made before and verified after the
 * timed part. One thread. */
int cram_lab_decompress(const struct cram_lab_range *range, uint64_t *store, struct cram_lab_result *result);
/* Copies pages * 4096 bytes page by page. */
void cram_lab_copy(void *to, const void *from, uint64_t pages, struct cram_lab_result *result);
/* Touches so many bytes of ordinary memory, without huge pages, and frees them: a first touch of memory that the
 * host of a virtual machine has not handed out yet costs far more than any later one. */
int cram_lab_touch(uint64_t bytes);

#endif
