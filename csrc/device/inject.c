/* SPDX-License-Identifier: MIT */
#include "inject.h"

#include <inttypes.h>
#include <stddef.h>

#include "error.h"

static const struct cram_fault_text texts[CRAM_FAULTS] = {
#define X(suffix, name, unit, largest, effect) [CRAM_FAULT_##suffix] = { name, unit, effect, largest },
	INJECT_FAULTS(X)
#undef X
};

const struct cram_fault_text *cram_fault_text(uint32_t fault)
{
	return fault < CRAM_FAULTS ? &texts[fault] : NULL;
}

/* splitmix64: a number for a seed and a place in its sequence. */
static uint64_t mix(uint64_t seed, uint64_t place)
{
	uint64_t z = seed + (place + 1) * 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

/* The k-th number of a fault. By its own number too: faults of one seed would else strike the same pages. */
static uint64_t chance(const struct inject *inject, enum cram_fault fault, uint64_t k)
{
	return mix(mix(atomic_load(&inject->fault[fault].seed), fault), k);
}

/* Takes one of the times that it may strike; false: there is none left. The last one disarms. */
static bool take_time(struct inject *inject, enum cram_fault fault)
{
	struct inject_fault *attr = &inject->fault[fault];
	uint64_t limit = atomic_load(&attr->limit);

	do {
		if (limit == 0)
			return true;
		if (limit == 1)
			return false;
	} while (!atomic_compare_exchange_weak(&attr->limit, &limit, limit - 1));
	if (limit == 2)
		atomic_fetch_and(&inject->armed, ~(1u << fault));
	return true;
}

/* The budget passes first: should_fail_ex() takes a size from it as long as it is larger. */
static bool within_space(struct inject_fault *attr, uint64_t size)
{
	uint64_t left = atomic_load(&attr->space);

	do {
		if (left <= size)
			return false;
	} while (!atomic_compare_exchange_weak(&attr->space, &left, left - size));
	return true;
}

bool inject_strikes(struct inject *inject, enum cram_fault fault, uint64_t size, bool marked)
{
	struct inject_fault *attr = &inject->fault[fault];
	uint64_t place, interval;

	if (!inject_armed(inject, fault) || (atomic_load(&attr->task_filter) && !marked) || within_space(attr, size))
		return false;
	place = atomic_fetch_add(&attr->asked, 1);
	interval = atomic_load(&attr->interval);
	if (interval > 1 && (place + 1) % interval != 0)
		return false;
	if (chance(inject, fault, 2 * place) % CRAM_FAULT_CERTAIN >= atomic_load(&attr->probability))
		return false;
	if (!take_time(inject, fault))
		return false;
	inject_struck(inject, fault);
	return true;
}

uint64_t inject_chance(const struct inject *inject, enum cram_fault fault)
{
	return chance(inject, fault, 2 * atomic_load(&inject->fault[fault].asked) + 1);
}

/* The binary logarithm of 1 + f, for f from 0 to 1, and of what it is of: both within a hundredth, which no delay is measured
 * to. libm would be loaded into every program that the shim is preloaded into. */
static double curve(double f)
{
	return f + 0.344 * f * (1 - f);
}

static double power_of_two(double exponent)
{
	unsigned whole = (unsigned)exponent;
	double f = exponent - whole;

	return (double)(1ull << whole) * (1 + f - 0.344 * f * (1 - f));
}

/* -log2 of 64 bits as a number from 0 to 1: 0 to 62. */
static double minus_log2(uint64_t bits)
{
	unsigned zeros = (unsigned)__builtin_clzll(bits |= 3);

	return zeros + 1 - curve((double)(bits << zeros) / 0x1p63 - 1);
}

uint64_t inject_value(const struct inject *inject, enum cram_fault fault)
{
	const struct inject_fault *attr = &inject->fault[fault];
	uint64_t value = atomic_load(&attr->value), number = inject_chance(inject, fault);
	double drawn, most = (double)texts[fault].largest;

	switch (atomic_load(&attr->distribution)) {
	case CRAM_UNIFORM:
		drawn = (double)value * (double)number / 0x1p63;
		break;
	case CRAM_EXPONENTIAL:
		drawn = (double)value * 0.693147 * minus_log2(number);
		break;
	case CRAM_PARETO:
		drawn = (double)value / 3 * power_of_two(minus_log2(number) / 1.5);
		break;
	default:
		return value;
	}
	return drawn >= most ? texts[fault].largest : (uint64_t)drawn;
}

void inject_get(const struct inject *inject, enum cram_fault fault, struct cram_fault_attr *to)
{
	const struct inject_fault *attr = &inject->fault[fault];

	*to = (struct cram_fault_attr){
		.probability = atomic_load(&attr->probability),
		.interval = atomic_load(&attr->interval) > 0 ? atomic_load(&attr->interval) : 1,
		.times = (int64_t)atomic_load(&attr->limit) - 1,
		.space = atomic_load(&attr->space),
		.seed = atomic_load(&attr->seed),
		.value = atomic_load(&attr->value),
		.distribution = atomic_load(&attr->distribution),
		.verbose = atomic_load(&attr->verbose) ^ 1,
		.task_filter = atomic_load(&attr->task_filter),
		.struck = atomic_load(&attr->struck),
	};
}

int inject_set(struct inject *inject, enum cram_fault fault, const struct cram_fault_attr *from)
{
	const struct cram_fault_text *text = &texts[fault];
	struct inject_fault *attr = &inject->fault[fault];

	if (from->probability > CRAM_FAULT_CERTAIN)
		return cram_fail(CRAM_EINVAL, "%s: probability %" PRIu64 ": over %d", text->name, from->probability,
				 CRAM_FAULT_CERTAIN);
	if (from->times < -1 || from->times == INT64_MAX)
		return cram_fail(CRAM_EINVAL, "%s: times %" PRId64 ": not from -1 to 2^63 - 2", text->name, from->times);
	if (from->value > 0 && text->unit == NULL)
		return cram_fail(CRAM_EINVAL, "%s: value %" PRIu64 ": it has none", text->name, from->value);
	if (from->value > text->largest)
		return cram_fail(CRAM_EINVAL, "%s: value %" PRIu64 ": over %" PRIu64, text->name, from->value, text->largest);
	if (from->distribution >= CRAM_DISTRIBUTIONS)
		return cram_fail(CRAM_EINVAL, "%s: distribution %u: there are %d", text->name, from->distribution,
				 CRAM_DISTRIBUTIONS);
	if (from->verbose > 2)
		return cram_fail(CRAM_EINVAL, "%s: verbose %u: not from 0 to 2", text->name, from->verbose);
	/* Nobody is struck by half of it. */
	atomic_fetch_and(&inject->armed, ~(1u << fault));
	atomic_store(&attr->probability, from->probability);
	atomic_store(&attr->interval, from->interval);
	atomic_store(&attr->limit, (uint64_t)(from->times + 1));
	atomic_store(&attr->space, from->space);
	atomic_store(&attr->seed, from->seed);
	atomic_store(&attr->value, from->value);
	atomic_store(&attr->distribution, from->distribution);
	atomic_store(&attr->verbose, from->verbose ^ 1);
	atomic_store(&attr->task_filter, from->task_filter != 0);
	atomic_store(&attr->asked, 0);
	if (from->probability > 0 && from->times != 0)
		atomic_fetch_or(&inject->armed, 1u << fault);
	return 0;
}
