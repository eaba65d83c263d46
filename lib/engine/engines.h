/* SPDX-License-Identifier: Apache-2.0 */
/* engine/engines.h - what each engine has, and by which rules it resolves. */
#ifndef MP_ENGINE_ENGINES_H
#define MP_ENGINE_ENGINES_H

#include "engine/rules.h"

/* A set of values of an enum, bit number value. */
#define MP_BIT(value) (UINT64_C(1) << (value))

typedef struct mp_engine_table {
    uint64_t backends;
    uint64_t runners; /* 0: it has no such flag */
    uint64_t platforms;
    mp_a2a backend;           /* where none is asked for */
    mp_a2a megamoe;           /* what it calls MegaMoE */
    const char *const *flags; /* of plan, beyond those for every engine; ended by null */
    mp_rule *const *rules;    /* in their order; ended by null */
    const char *placement;    /* see mp_backend */
    const char *loader;
} mp_engine_table;

/* Never null. */
const mp_engine_table *mp_engine_table_of(mp_engine engine);

#endif
