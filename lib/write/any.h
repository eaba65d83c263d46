/* SPDX-License-Identifier: Apache-2.0 */
/* write/any.h - what plans of all kinds are to those who run them. */
#ifndef MP_WRITE_ANY_H
#define MP_WRITE_ANY_H

#include <moepack/pack.h>

/* A kind of plan has this as its first member. */
struct mp_plan {
    mp_plan_info info;
    int (*run)(const mp_plan *plan, const char *out, mp_run_mode mode, const mp_context *context,
               mp_error *err);
    void (*release)(mp_plan *plan); /* what is in it */
};

/* Hands a plan to the caller, or frees it where making it has failed with rc; returns rc. */
int mp_plan_hand_over(mp_plan *made, int rc, mp_plan **plan);

#endif
