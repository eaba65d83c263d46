/* SPDX-License-Identifier: Apache-2.0 */
/* verify/faults.h - what was found wrong: collected from many threads, in an order that
 * does not depend on them. */
#ifndef MP_VERIFY_FAULTS_H
#define MP_VERIFY_FAULTS_H

#include <moepack/verify.h>

/* Where a fault is. Numbers that do not apply are -1, a tensor that does not is null. */
typedef struct mp_spot {
    mp_verify_level level;
    int64_t rank;
    int64_t layer; /* index into the manifest's layers */
    int64_t slot;
    const char *tensor;
    int64_t element;
} mp_spot;

/* A rank, or with -1 the whole directory. */
static inline mp_spot mp_spot_of_rank(mp_verify_level level, int64_t rank)
{
    return (mp_spot){level, rank, -1, -1, NULL, -1};
}

typedef struct mp_kept_fault {
    mp_spot spot;
    char *tensor; /* what spot.tensor points to */
    char *detail;
} mp_kept_fault;

/* A zeroed value is empty and ready. */
typedef struct mp_faults {
    mp_kept_fault kept[MP_FAULTS_KEPT]; /* the first ones in order */
    size_t num_kept;
    uint64_t total;
    mp_verify_part *parts; /* in order of rank and level */
    size_t num_parts;
    bool no_memory; /* something could not be stored */
} mp_faults;

void mp_faults_release(mp_faults *faults);

/* Makes a rank at a level part of the report, also if it turns out to have no fault. */
void mp_faults_add_part(mp_faults *faults, int64_t rank, mp_verify_level level);

/* Adds a fault. Thread-safe. */
void mp_fault_add(mp_faults *faults, const mp_spot *spot, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* False when a fault at this spot would only be counted, and its text is not worth
 * working out. Thread-safe. */
bool mp_faults_wants(const mp_faults *faults, const mp_spot *spot);

/* Moves everything into the report; layers: prefixes by index. MP_ERR_IO without memory. */
int mp_faults_take(mp_faults *faults, char *const *layers, mp_verify_report *report, mp_error *err);

#endif
