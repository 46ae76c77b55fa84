/* SPDX-License-Identifier: MIT */
#include "zpool.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "device/pagemap.h"
#include "error.h"
#include "memory.h"
#include "uffd.h"

#define SIZE_MIN 32u
#define SIZE_STEP 16u
#define HEADER 8u

/* Handles and state words: the index of an object. A zspage of 16 pages has 1365 at most. */
#define INDEX_BITS 11u
#define INDEX_MASK ((1u << INDEX_BITS) - 1)

/* How many of the cached pages go back to the host at once: room for the longest zspage, and one call. */
#define RETURN_BATCH (ZPOOL_CACHED_MAX / 2)
_Static_assert(RETURN_BATCH >= ZPOOL_CHAIN_MAX, "a zspage's pages find room in the cache");

/* Longer than it takes to wake a thread: who has waited for a class gets it before compaction takes it again. */
#define GIVE_WAY_NS 100000

/* A page of the arena. The state word: bits 0..7 class, 8..18 objects in use, 19..29 first free object, 30 FIRST; in
 * pages other than the zspage's first the class alone. It changes under the class's lock; class and FIRST do not while
 * there is an object, and may be read by who holds its owner. */
struct zpdesc {
	uint32_t next; /* of the zspage, or of the list of returned pages; 0: none */
	_Atomic uint32_t state;
	union {
		struct {
			uint32_t next, previous; /* FIRST, neither full nor empty: in its group */
		} ring;
		uint32_t first;  /* others */
		uint64_t header; /* huge: of the only object, which fills the page */
	};
};
_Static_assert(sizeof(struct zpdesc) == 16, "as zpool.h says");

#define STATE_USED_SHIFT 8u
#define STATE_FREE_SHIFT 19u
#define STATE_FIRST (1u << 30)

/* The header of an object: the owner, or of a free one the next free one's index, and bit 0. */
#define HEADER_USED 1u

struct size_class {
	struct futex_lock lock;    /* of all this but what init sets, and of its zspages' states and rings */
	uint16_t index;
	uint16_t size;
	uint16_t pages, objects;   /* of a zspage */
	bool huge;
	uint32_t ring[ZPOOL_FULL]; /* [group]: its first zspage, 0: none; the full are only counted */
	uint64_t zspages[ZPOOL_GROUPS];
	uint64_t used;             /* objects */
} __attribute__((aligned(64)));

/* ---- where things are ----------------------------------------------------------------------------------- */

static uint8_t *page_at(const struct zpool *pool, uint32_t page)
{
	return pool->arena + ((uint64_t)page << PAGE_SHIFT);
}

static uint32_t state_of(const struct zpool *pool, uint32_t page)
{
	return atomic_load_explicit(&pool->zpdescs[page].state, memory_order_relaxed);
}

static unsigned state_used(uint32_t state)
{
	return state >> STATE_USED_SHIFT & INDEX_MASK;
}

static unsigned state_free(uint32_t state)
{
	return state >> STATE_FREE_SHIFT & INDEX_MASK;
}

static void set_state(struct zpool *pool, uint32_t first, unsigned used, unsigned free)
{
	uint32_t state = STATE_FIRST | free << STATE_FREE_SHIFT | used << STATE_USED_SHIFT;

	atomic_store_explicit(&pool->zpdescs[first].state, state | (uint8_t)state_of(pool, first), memory_order_relaxed);
}

static zpool_handle handle_of(uint32_t page, unsigned index)
{
	return (zpool_handle)page << INDEX_BITS | index;
}

static uint32_t handle_page(zpool_handle handle)
{
	return (uint32_t)(handle >> INDEX_BITS);
}

static unsigned handle_index(zpool_handle handle)
{
	return (unsigned)handle & INDEX_MASK;
}

/* The race: others take and free objects of the zspage, but not this one; while it is there its page keeps its class. */
static struct size_class *class_of(const struct zpool *pool, zpool_handle handle)
{
	return &pool->classes[(uint8_t)state_of(pool, handle_page(handle))];
}

static uint32_t first_of(const struct zpool *pool, uint32_t page)
{
	return state_of(pool, page) & STATE_FIRST ? page : pool->zpdescs[page].first;
}

static uint8_t *object_at(const struct zpool *pool, const struct size_class *class, zpool_handle handle)
{
	return page_at(pool, handle_page(handle)) + handle_index(handle) * class->size % PAGE_SIZE;
}

/* Sizes are multiples of 16: a header is in one page, and the first byte after it too. */
static uint64_t *header_of(const struct zpool *pool, const struct size_class *class, zpool_handle handle)
{
	return class->huge ? &pool->zpdescs[handle_page(handle)].header : (uint64_t *)object_at(pool, class, handle);
}

/* The bytes after the header: one piece, or two in pages that are no neighbours. */
struct pieces {
	uint8_t *at[2];
	uint32_t size[2];
};

static struct pieces pieces_of(const struct zpool *pool, const struct size_class *class, zpool_handle handle,
			       uint32_t size)
{
	uint32_t page = handle_page(handle);
	uint8_t *at = object_at(pool, class, handle) + (class->huge ? 0 : HEADER);
	uint32_t room = (uint32_t)(page_at(pool, page + 1) - at);
	uint32_t next;

	if (size <= room || (next = pool->zpdescs[page].next) == page + 1)
		return (struct pieces){ { at, at }, { size, 0 } };
	return (struct pieces){ { at, page_at(pool, next) }, { room, size - room } };
}

/* ---- fullness groups, under the class's lock ------------------------------------------------------------ */

static unsigned group_of(const struct size_class *class, unsigned used)
{
	if (used == 0 || used == class->objects)
		return used == 0 ? 0 : ZPOOL_FULL;
	return 100 * used / class->objects / 10 + 1;
}

/* Puts a zspage in front of its group's ring, or to its end. Nobody looks for a full or an empty one. */
static void file(struct zpool *pool, struct size_class *class, uint32_t zspage, unsigned group, bool last)
{
	struct zpdesc *zpdescs = pool->zpdescs;
	uint32_t front;

	if (group == 0)
		return;
	class->zspages[group]++;
	if (group == ZPOOL_FULL)
		return;
	front = class->ring[group];
	if (front == 0) {
		zpdescs[zspage].ring.next = zpdescs[zspage].ring.previous = zspage;
	} else {
		uint32_t back = zpdescs[front].ring.previous;

		zpdescs[zspage].ring.next = front;
		zpdescs[zspage].ring.previous = back;
		zpdescs[back].ring.next = zpdescs[front].ring.previous = zspage;
	}
	if (front == 0 || !last)
		class->ring[group] = zspage;
}

static void unfile(struct zpool *pool, struct size_class *class, uint32_t zspage, unsigned group)
{
	struct zpdesc *zpdescs = pool->zpdescs;
	uint32_t next, previous;

	if (group == 0)
		return;
	class->zspages[group]--;
	if (group == ZPOOL_FULL)
		return;
	next = zpdescs[zspage].ring.next;
	previous = zpdescs[zspage].ring.previous;
	zpdescs[previous].ring.next = next;
	zpdescs[next].ring.previous = previous;
	if (class->ring[group] == zspage)
		class->ring[group] = next == zspage ? 0 : next;
}

static void change_group(struct zpool *pool, struct size_class *class, uint32_t zspage, unsigned from, unsigned to)
{
	if (from == to)
		return;
	unfile(pool, class, zspage, from);
	file(pool, class, zspage, to, false);
}

/* One of the fullest that have room, or 0. */
static uint32_t fullest(const struct size_class *class)
{
	for (unsigned group = ZPOOL_FULL - 1; group > 0; group--)
		if (class->ring[group] != 0)
			return class->ring[group];
	return 0;
}

static uint64_t allocated(const struct size_class *class)
{
	uint64_t zspages = 0;

	for (unsigned group = 1; group < ZPOOL_GROUPS; group++)
		zspages += class->zspages[group];
	return zspages * class->objects;
}

/* Zspages that would not be needed. */
static uint64_t spare_zspages(const struct size_class *class)
{
	return (allocated(class) - class->used) / class->objects;
}

/* ---- the arena's free pages ----------------------------------------------------------------------------- */

/* The oldest cached pages go back to the host. Under the lock, which who needs pages then waits for: were they set aside
 * meanwhile, an arena that has pages could refuse them. */
static void return_cached(struct zpool *pool)
{
	uint32_t *pages = pool->cached_pages;
	struct iovec ranges[RETURN_BATCH];
	uint32_t left = atomic_load_explicit(&pool->cached, memory_order_relaxed) - RETURN_BATCH;
	int runs = 0;

	/* In ascending order, for long ranges, and for zspages whose pages are neighbours. */
	for (unsigned i = 1; i < RETURN_BATCH; i++) {
		uint32_t page = pages[i];
		unsigned j = i;

		for (; j > 0 && pages[j - 1] > page; j--)
			pages[j] = pages[j - 1];
		pages[j] = page;
	}
	for (unsigned i = 0; i < RETURN_BATCH; i++) {
		if (i > 0 && pages[i] == pages[i - 1] + 1)
			ranges[runs - 1].iov_len += PAGE_SIZE;
		else
			ranges[runs++] = (struct iovec){ page_at(pool, pages[i]), PAGE_SIZE };
	}
	/* One that the kernel will not take stays as it is: nobody expects zeros. */
	uffd_drop(ranges, runs);
	for (unsigned i = RETURN_BATCH; i-- > 0;) {
		pool->zpdescs[pages[i]].next = pool->returned;
		pool->returned = pages[i];
	}
	pool->returned_count += RETURN_BATCH;
	memmove(pages, pages + RETURN_BATCH, left * sizeof(*pages));
	atomic_store_explicit(&pool->cached, left, memory_order_relaxed);
}

/* All n pages, or none. */
static bool take_pages(struct zpool *pool, uint32_t *pages, unsigned n)
{
	uint32_t cached;
	bool enough;

	futex_lock_private(&pool->lock);
	cached = atomic_load_explicit(&pool->cached, memory_order_relaxed);
	enough = (uint64_t)cached + pool->returned_count + (pool->last - pool->used_to) >= n;
	for (unsigned i = 0; enough && i < n; i++) {
		if (cached > 0) {
			pages[i] = pool->cached_pages[--cached];
		} else if (pool->returned != 0) {
			pages[i] = pool->returned;
			pool->returned = pool->zpdescs[pages[i]].next;
			pool->returned_count--;
		} else {
			pages[i] = ++pool->used_to;
		}
	}
	atomic_store_explicit(&pool->cached, cached, memory_order_relaxed);
	if (enough)
		atomic_fetch_add_explicit(&pool->pages, n, memory_order_relaxed);
	futex_unlock(&pool->lock);
	return enough;
}

/* Frees the pages of a zspage that is empty, and that nobody can find any more. */
static void free_zspage(struct zpool *pool, const struct size_class *class, uint32_t zspage)
{
	uint32_t pages[ZPOOL_CHAIN_MAX];
	uint32_t cached;

	for (unsigned i = 0; i < class->pages; i++, zspage = pool->zpdescs[zspage].next)
		pages[i] = zspage;
	futex_lock_private(&pool->lock);
	if (atomic_load_explicit(&pool->cached, memory_order_relaxed) + class->pages > ZPOOL_CACHED_MAX)
		return_cached(pool);
	cached = atomic_load_explicit(&pool->cached, memory_order_relaxed);
	/* Backwards: they are taken in the order of the zspage, neighbours first. */
	for (unsigned i = class->pages; i-- > 0;)
		pool->cached_pages[cached++] = pages[i];
	atomic_store_explicit(&pool->cached, cached, memory_order_relaxed);
	atomic_fetch_sub_explicit(&pool->pages, class->pages, memory_order_relaxed);
	futex_unlock(&pool->lock);
}

/* ---- zspages -------------------------------------------------------------------------------------------- */

/* A zspage that nobody else knows yet, empty, or 0. */
static uint32_t make_zspage(struct zpool *pool, struct size_class *class)
{
	uint32_t pages[ZPOOL_CHAIN_MAX];
	uint32_t number = (uint32_t)(class - pool->classes);

	if (!take_pages(pool, pages, class->pages))
		return 0;
	for (unsigned i = 0; i < class->pages; i++) {
		struct zpdesc *zpdesc = &pool->zpdescs[pages[i]];

		zpdesc->next = i + 1 < class->pages ? pages[i + 1] : 0;
		zpdesc->first = pages[0];
		atomic_store_explicit(&zpdesc->state, i == 0 ? STATE_FIRST | number : number, memory_order_relaxed);
	}
	/* Each links to the next; the last one's link is not followed, for then the zspage is full. */
	for (unsigned i = 0; i < class->objects; i++) {
		zpool_handle handle = handle_of(pages[i * class->size / PAGE_SIZE], i);

		*header_of(pool, class, handle) = (uint64_t)(i + 1) << 1;
	}
	return pages[0];
}

/* Takes the first free object of a zspage that has one. Under the class's lock, as what follows. */
static zpool_handle take_object(struct zpool *pool, struct size_class *class, uint32_t zspage, uint64_t owner)
{
	uint32_t state = state_of(pool, zspage);
	unsigned used = state_used(state);
	unsigned index = state_free(state);
	uint32_t page = zspage;
	zpool_handle handle;
	uint64_t *header;

	for (unsigned i = index * class->size / PAGE_SIZE; i > 0; i--)
		page = pool->zpdescs[page].next;
	handle = handle_of(page, index);
	header = header_of(pool, class, handle);
	/* The rings of a huge zspage would lie where its header is; it never is in one. */
	set_state(pool, zspage, used + 1, (unsigned)(*header >> 1) & INDEX_MASK);
	*header = owner << 1 | HEADER_USED;
	class->used++;
	change_group(pool, class, zspage, group_of(class, used), group_of(class, used + 1));
	return handle;
}

/* Makes an object the first free one; returns how many are in use still. The zspage's group is left to the caller. */
static unsigned put_object(struct zpool *pool, struct size_class *class, uint32_t zspage, zpool_handle handle)
{
	uint32_t state = state_of(pool, zspage);
	unsigned used = state_used(state) - 1;

	*header_of(pool, class, handle) = (uint64_t)state_free(state) << 1;
	set_state(pool, zspage, used, handle_index(handle));
	class->used--;
	return used;
}

/* ---- objects -------------------------------------------------------------------------------------------- */

/* The size with its header decides; where it would not fit the largest, the page has no header in it. */
static unsigned index_of(uint32_t size)
{
	unsigned index;

	if (size + HEADER <= SIZE_MIN)
		return 0;
	index = (size + HEADER - SIZE_MIN + SIZE_STEP - 1) / SIZE_STEP;
	return index < ZPOOL_SIZES ? index : ZPOOL_SIZES - 1;
}

zpool_handle zpool_alloc(struct zpool *pool, uint32_t size, uint64_t owner)
{
	struct size_class *class = &pool->classes[pool->class_of[index_of(size)]];
	zpool_handle handle;
	uint32_t zspage;

	futex_lock_private(&class->lock);
	zspage = fullest(class);
	if (zspage == 0) {
		/* The race: others that find none make one as well, and objects are freed meanwhile. Then more than one
		 * zspage has room, as after any free. */
		futex_unlock(&class->lock);
		zspage = make_zspage(pool, class);
		if (zspage == 0)
			return 0;
		futex_lock_private(&class->lock);
	}
	handle = take_object(pool, class, zspage, owner);
	futex_unlock(&class->lock);
	return handle;
}

void zpool_write(struct zpool *pool, zpool_handle handle, const void *from, uint32_t size)
{
	/* The race: compaction reads headers beside this, but no bytes after them unless it has the owner's lock. */
	struct pieces to = pieces_of(pool, class_of(pool, handle), handle, size);

	memcpy(to.at[0], from, to.size[0]);
	memcpy(to.at[1], (const uint8_t *)from + to.size[0], to.size[1]);
}

const void *zpool_read(const struct zpool *pool, zpool_handle handle, uint32_t size, void *buffer)
{
	struct pieces from = pieces_of(pool, class_of(pool, handle), handle, size);

	if (from.size[1] == 0)
		return from.at[0];
	memcpy(buffer, from.at[0], from.size[0]);
	memcpy((uint8_t *)buffer + from.size[0], from.at[1], from.size[1]);
	return buffer;
}

void zpool_free(struct zpool *pool, zpool_handle handle)
{
	struct size_class *class = class_of(pool, handle);
	uint32_t zspage = first_of(pool, handle_page(handle));
	unsigned used;

	/* The race: compaction has the class and asks for our owner: who is locked, so it goes on to other objects. After
	 * this it finds the object free. */
	futex_lock_private(&class->lock);
	used = put_object(pool, class, zspage, handle);
	change_group(pool, class, zspage, group_of(class, used + 1), group_of(class, used));
	futex_unlock(&class->lock);
	/* Nobody else comes to this: an empty zspage is in no group, and has no object by which it could be found. */
	if (used == 0)
		free_zspage(pool, class, zspage);
}

void zpool_set_owner(struct zpool *pool, zpool_handle handle, uint64_t owner)
{
	struct size_class *class = class_of(pool, handle);

	/* The race: compaction reads the header, but moves nothing: it asks for the old owner, who is locked, or for the new
	 * one, who is too. */
	futex_lock_private(&class->lock);
	*header_of(pool, class, handle) = owner << 1 | HEADER_USED;
	futex_unlock(&class->lock);
}

/* ---- compaction ----------------------------------------------------------------------------------------- */

static void copy_object(struct zpool *pool, const struct size_class *class, zpool_handle from, zpool_handle to)
{
	struct pieces source = pieces_of(pool, class, from, class->size - HEADER);
	struct pieces target = pieces_of(pool, class, to, class->size - HEADER);
	uint32_t n = source.size[0] < target.size[0] ? source.size[0] : target.size[0];

	memcpy(target.at[0], source.at[0], n);
	/* At most one of the two first pieces has a rest. */
	if (n < source.size[0]) {
		uint32_t rest = source.size[0] - n;

		memcpy(target.at[1], source.at[0] + n, rest);
		memcpy(target.at[1] + rest, source.at[1], source.size[1]);
	} else {
		uint32_t rest = target.size[0] - n;

		memcpy(target.at[0] + n, source.at[1], rest);
		memcpy(target.at[1], source.at[1] + rest, target.size[1]);
	}
}

/* Moves what it may out of a zspage, which is in no group, into the others: they have room. Returns how many objects
 * are left. */
static unsigned move_objects(struct zpool *pool, struct size_class *class, uint32_t zspage,
			     const struct zpool_mover *mover)
{
	unsigned left = state_used(state_of(pool, zspage));
	unsigned passed = 0; /* pages */
	uint32_t page = zspage;

	for (unsigned i = 0; i < class->objects && left > 0; i++) {
		zpool_handle from, to;
		uint64_t header;

		for (; passed < i * class->size / PAGE_SIZE; passed++)
			page = pool->zpdescs[page].next;
		from = handle_of(page, i);
		header = *header_of(pool, class, from);
		/* The races: somebody has taken the object, and not yet written it or recorded the handle; reads it; is about
		 * to free it. Each has the owner locked, and begin() fails. Once it succeeds nobody else comes to the object,
		 * and who waits for the owner finds the new handle. */
		if (!(header & HEADER_USED) || !mover->begin(mover->arg, header >> 1, from))
			continue;
		to = take_object(pool, class, fullest(class), header >> 1);
		copy_object(pool, class, from, to);
		left = put_object(pool, class, zspage, from);
		mover->end(mover->arg, header >> 1, to);
	}
	return left;
}

static uint64_t compact_class(struct zpool *pool, struct size_class *class, const struct zpool_mover *mover)
{
	uint64_t freed = 0;

	futex_lock_private(&class->lock);
	for (unsigned group = 1; group < ZPOOL_FULL; group++) {
		/* The race: between two zspages others fill and empty them, so what is worth doing is asked anew. With a spare
		 * zspage in the class, those besides the one that is emptied have room for all of its objects. */
		for (uint64_t tries = class->zspages[group]; tries > 0 && class->ring[group] != 0; tries--) {
			uint32_t zspage = class->ring[group];
			unsigned left;
			bool waited_for;

			if (spare_zspages(class) == 0)
				goto done;
			unfile(pool, class, zspage, group);
			left = move_objects(pool, class, zspage, mover);
			/* Somebody's objects stay: the others in the group come before it. */
			file(pool, class, zspage, group_of(class, left), true);
			waited_for = atomic_load(&class->lock.word) & FUTEX_WAITERS;
			futex_unlock(&class->lock);
			if (left == 0) {
				free_zspage(pool, class, zspage);
				freed += class->pages;
			}
			if (waited_for)
				sleep_ns(GIVE_WAY_NS);
			futex_lock_private(&class->lock);
		}
	}
done:
	futex_unlock(&class->lock);
	return freed;
}

uint64_t zpool_compact(struct zpool *pool, const struct zpool_mover *mover)
{
	uint64_t freed = 0;

	for (unsigned i = 0; i < pool->class_count; i++)
		freed += compact_class(pool, &pool->classes[i], mover);
	return freed;
}

/* ---- the pool ------------------------------------------------------------------------------------------- */

/* Pages that waste the least at their end, the fewest of those. */
static unsigned chain_for(unsigned size, unsigned chain)
{
	unsigned best = 1;

	for (unsigned pages = 2; pages <= chain; pages++)
		if (pages * PAGE_SIZE % size < best * PAGE_SIZE % size)
			best = pages;
	return best;
}

/* Sizes whose zspages have as many pages and as many objects are one class, of the largest of them. */
static void make_classes(struct zpool *pool, unsigned chain)
{
	struct size_class *class = NULL;

	for (unsigned i = 0; i < ZPOOL_SIZES; i++) {
		unsigned size = SIZE_MIN + i * SIZE_STEP;
		unsigned pages = chain_for(size, chain);
		unsigned objects = pages * PAGE_SIZE / size;

		if (class == NULL || class->pages != pages || class->objects != objects)
			class = &pool->classes[pool->class_count++];
		class->index = (uint16_t)i;
		class->size = (uint16_t)size;
		class->pages = (uint16_t)pages;
		class->objects = (uint16_t)objects;
		class->huge = pages == 1 && objects == 1;
		pool->class_of[i] = (uint8_t)(pool->class_count - 1);
	}
}

static uint64_t whole_pages(uint64_t size)
{
	return (size + PAGE_SIZE - 1) & ~(uint64_t)(PAGE_SIZE - 1);
}

int zpool_init(struct zpool *pool, uint64_t pages, unsigned chain)
{
	uint64_t classes = whole_pages(ZPOOL_SIZES * sizeof(struct size_class));
	uint64_t zpdescs = whole_pages((pages + 1) * sizeof(struct zpdesc));
	uint8_t *memory;

	memset(pool, 0, sizeof(*pool));
	if (chain != 4 && chain != 8 && chain != 16)
		return cram_fail(CRAM_EINVAL, "a zspage of %u pages, not 4, 8 or 16", chain);
	if (pages == 0 || pages > ZPOOL_PAGES_MAX)
		return cram_fail(CRAM_EINVAL, "a pool of %llu pages, not 1 to %llu", (unsigned long long)pages,
				 ZPOOL_PAGES_MAX);
	pool->size = classes + zpdescs + ((pages + 1) << PAGE_SHIFT);
	memory = memory_map(pool->size, -1);
	if (memory == NULL)
		return cram_fail(CRAM_ENOMEM, "no address space for a pool of %llu pages", (unsigned long long)pages);
	/* Nor may a huge page be more than what was touched. EINVAL: the kernel has none. */
	memory_advise(memory, pool->size, MADV_NOHUGEPAGE);
	pool->memory = memory;
	pool->classes = (struct size_class *)memory;
	pool->zpdescs = (struct zpdesc *)(memory + classes);
	pool->arena = memory + classes + zpdescs;
	pool->last = (uint32_t)pages;
	make_classes(pool, chain);
	return 0;
}

void zpool_deinit(struct zpool *pool)
{
	if (pool->memory != NULL)
		memory_unmap(pool->memory, pool->size);
	pool->memory = NULL;
}

bool zpool_class_at(struct zpool *pool, unsigned i, struct zpool_class *out)
{
	struct size_class *class;

	if (i >= pool->class_count)
		return false;
	class = &pool->classes[i];
	futex_lock_private(&class->lock);
	*out = (struct zpool_class){
		.index = class->index,
		.size = class->size,
		.pages_per_zspage = class->pages,
		.objects_per_zspage = class->objects,
		.obj_allocated = allocated(class),
		.obj_used = class->used,
		.pages_used = allocated(class) / class->objects * class->pages,
		.freeable = spare_zspages(class) * class->pages,
	};
	memcpy(out->zspages, class->zspages, sizeof(out->zspages));
	futex_unlock(&class->lock);
	return true;
}

void zpool_forked(struct zpool *pool)
{
	atomic_store(&pool->lock.word, 0);
	for (unsigned i = 0; i < pool->class_count; i++)
		atomic_store(&pool->classes[i].lock.word, 0);
}
