/* SPDX-License-Identifier: Apache-2.0 */
/* Plans of all kinds behind one face, and the call that packs at once. */
#include "write/any.h"

#include <stdlib.h>

#include "base/error.h"
#include "base/options.h"
#include "write/plan.h"
#include "write/quantize.h"
#include "write/unpack.h"

const mp_plan_info *mp_plan_get(const mp_plan *plan)
{
    return &plan->info;
}

int mp_plan_run(const mp_plan *plan, const char *out, mp_run_mode mode, const mp_context *context,
                mp_error *err)
{
    return plan->run(plan, out, mode, context, err);
}

void mp_plan_release(mp_plan *plan)
{
    if (plan)
        plan->release(plan);
    free(plan);
}

int mp_plan_hand_over(mp_plan *made, int rc, mp_plan **plan)
{
    if (rc != 0)
        free(made);
    *plan = rc == 0 ? made : NULL;
    return rc;
}

/* ------------------------------------------------------------------------
 * Packing
 */

typedef struct repacking {
    mp_plan plan;
    mp_repack_plan of;
} repacking;

static int run_repack(const mp_plan *plan, const char *out, mp_run_mode mode,
                      const mp_context *context, mp_error *err)
{
    return mp_repack_plan_run(&((const repacking *)plan)->of, out, mode, context, err);
}

static void release_repack(mp_plan *plan)
{
    mp_repack_plan_release(&((repacking *)plan)->of);
}

int mp_plan_repack(mp_plan **plan, const mp_catalog *catalog, const mp_repack_options *options,
                   mp_error *err)
{
    repacking *r = mp_alloc_zeroed(1, sizeof *r);
    mp_repack_options own;

    *plan = NULL;
    if (!r)
        return mp_fail_memory(err);
    r->plan = (mp_plan){{&r->of.work, &r->of.warnings, 0, 0}, run_repack, release_repack};
    int rc = mp_options_take("mp_repack_options", &own, sizeof own, options, err);
    if (rc == 0 && !own.target)
        rc = mp_fail(err, MP_ERR_USAGE, "mp_repack_options: no target");
    if (rc == 0)
        rc = mp_repack_plan_init(&r->of, catalog, &own, err);
    return mp_plan_hand_over(&r->plan, rc, plan);
}

int mp_repack(const char *source, const char *out, const mp_repack_options *options,
              const mp_context *context, mp_error *err)
{
    mp_repack_options own;
    mp_catalog catalog = {0};
    mp_plan *plan = NULL;
    int rc = mp_options_take("mp_repack_options", &own, sizeof own, options, err);

    if (rc == 0)
        rc = mp_catalog_open(&catalog, source, context, err);
    if (rc == 0)
        rc = mp_catalog_choose(&catalog, own.layers, err);
    if (rc == 0)
        rc = mp_plan_repack(&plan, &catalog, &own, err);
    if (rc == 0)
        rc = mp_plan_run(plan, out, own.mode, context, err);
    mp_plan_release(plan);
    mp_catalog_release(&catalog);
    return rc;
}

/* ------------------------------------------------------------------------
 * Unpacking
 */

typedef struct unpacking {
    mp_plan plan;
    mp_unpack_plan of;
} unpacking;

static int run_unpack(const mp_plan *plan, const char *out, mp_run_mode mode,
                      const mp_context *context, mp_error *err)
{
    return mp_unpack_plan_run(&((const unpacking *)plan)->of, out, mode, context, err);
}

static void release_unpack(mp_plan *plan)
{
    mp_unpack_plan_release(&((unpacking *)plan)->of);
}

int mp_plan_unpack(mp_plan **plan, const char *pack, const mp_unpack_options *options,
                   const mp_context *context, mp_error *err)
{
    unpacking *u = mp_alloc_zeroed(1, sizeof *u);
    mp_unpack_options own;

    *plan = NULL;
    if (!u)
        return mp_fail_memory(err);
    u->plan = (mp_plan){{&u->of.work, &u->of.warnings, 0, 0}, run_unpack, release_unpack};
    int rc = mp_options_take("mp_unpack_options", &own, sizeof own, options, err);
    if (rc == 0)
        rc = mp_unpack_plan_init(&u->of, pack, &own, context, err);
    return mp_plan_hand_over(&u->plan, rc, plan);
}

/* ------------------------------------------------------------------------
 * Requantizing
 */

typedef struct quantizing {
    mp_plan plan;
    mp_quantize_plan of;
} quantizing;

static int run_quantize(const mp_plan *plan, const char *out, mp_run_mode mode,
                        const mp_context *context, mp_error *err)
{
    return mp_quantize_plan_run(&((const quantizing *)plan)->of, out, mode, context, err);
}

static void release_quantize(mp_plan *plan)
{
    mp_quantize_plan_release(&((quantizing *)plan)->of);
}

int mp_plan_quantize(mp_plan **plan, const mp_catalog *catalog, const mp_quantize_options *options,
                     mp_error *err)
{
    quantizing *q = mp_alloc_zeroed(1, sizeof *q);
    mp_quantize_options own;

    *plan = NULL;
    if (!q)
        return mp_fail_memory(err);
    q->plan = (mp_plan){{&q->of.work, &q->of.warnings, 0, 0}, run_quantize, release_quantize};
    int rc = mp_options_take("mp_quantize_options", &own, sizeof own, options, err);
    if (rc == 0)
        rc = mp_quantize_plan_init(&q->of, catalog, &own, err);
    return mp_plan_hand_over(&q->plan, rc, plan);
}
