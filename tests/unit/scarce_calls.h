/* SPDX-License-Identifier: Apache-2.0 */
/* Calls of public functions that succeed where memory suffices, and what they need. A call makes,
 * the first time, what it goes by; it releases what the function has made, and returns its code. */
#ifndef MP_SCARCE_CALLS_H
#define MP_SCARCE_CALLS_H

#include <moepack/moepack.h>

typedef struct scarce_call {
    const char *function;
    int (*call)(mp_error *err);
} scarce_call;

/* Of what is read and computed; of what is written, placed and planned. */
extern const scarce_call scarce_calls[], scarce_runs[], scarce_places[];
extern const size_t num_scarce_calls, num_scarce_runs, num_scarce_places;

#define SCARCE(function) static int scarce_##function(mp_error *err)

#define SCARCE_ROW(function)         \
    {                                \
#function, scarce_##function \
    }

#define SCARCE_COUNT(rows) (sizeof(rows) / sizeof((rows)[0]))

static const mp_context one_thread = {.threads = 1};

/* A path in a directory of this process, made the first time; good until the fourth call after
 * this one. And what takes the directory away. */
const char *in_scratch(const char *name);
void remove_scratch_of_calls(void);

/* A checkpoint of this seed, "step-N" in there; a pack of it, "packed-N", on two ranks; and what
 * changed from 1 to 2, "delta" and, of the packs, "packed-delta". Paths, good for ever. */
const char *step(unsigned seed);
const char *packed_step(unsigned seed);
const char *changes(void);

#endif
