/* SPDX-License-Identifier: MIT
 *
 * recovery.h - making everything else anew from the truth: the page map, the links, the poison records.
 *
 * It does not decide when. It runs under the clients' lock with the gate raised, so that every thread of every living
 * client stands at a page boundary. What the dead held in the middle of a change, and what they held dirty, becomes
 * poison; a chain that leaves the media or meets another one does too.
 */
#ifndef CRAM_RECOVERY_H
#define CRAM_RECOVERY_H

#include "device.h"

/* Takes the clients' lock; from a dead client, it first finishes what that one may have begun. Signals blocked. */
int recovery_lock(struct device *device);
void recovery_unlock(struct device *device);
/* Empties the table of a client whose memory is gone. Under the lock. */
void recovery_clear_table(struct device *device, unsigned client);
/* Rebuilds, freeing the slots of dead clients; *dead (may be NULL) says how many. Under the lock. CRAM_ETIMEDOUT: a
 * stopped client does not reach a page boundary; nothing changed. */
int recovery_run(struct device *device, uint32_t *dead);
/* The device starts anew: all that its pages hold is lost (poison), its media free, its thresholds as created; frames are to
 * follow. fault: by which, at which page, is told before anything is lost; of a power cycle poison records stay as they are, and
 * so does poison on pages that hold nothing. Under the lock. CRAM_ETIMEDOUT as above. */
int recovery_reset(struct device *device, enum cram_fault fault, uint64_t page_struck);

#endif
