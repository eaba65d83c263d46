/* SPDX-License-Identifier: Apache-2.0 */
/* Running `quantize` on fixtures in a scratch directory, and opening what it wrote. */
#ifndef TESTS_UNIT_QUANTIZE_RUN_H
#define TESTS_UNIT_QUANTIZE_RUN_H

#include <moepack/pack.h>

#include "model_files.h"

#include "checkpoint/complete.h"
#include "write/quantize.h"

static mp_catalog made; /* what was written */
static mp_quantize_plan plan;

static inline void make_quantize_scratch(void)
{
    make_model_scratch();
    made = (mp_catalog){0};
    plan = (mp_quantize_plan){0};
}

static inline void remove_quantize_scratch(void)
{
    mp_quantize_plan_release(&plan);
    mp_catalog_release(&made);
    remove_model_scratch();
}

static inline const char *fixture_path(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "testdata/fixtures/%s", name);
    return path;
}

/* A copy of a fixture at dir/source, to be changed. */
static inline const char *copy_fixture(const char *name)
{
    char command[512];
    snprintf(command, sizeof command, "cp -r testdata/fixtures/%s %s/source", name, dir);
    cr_assert_eq(system(command), 0);
    return in_dir("source");
}

static inline void open_source(const char *path)
{
    mp_catalog_release(&catalog);
    cr_assert_eq(mp_catalog_open(&catalog, path, NULL, &err), 0, "%s: %s", path, err.message);
}

static inline int try_plan(const mp_quantize_options *options)
{
    mp_quantize_plan_release(&plan);
    err = (mp_error){0};
    return mp_quantize_plan_init(&plan, &catalog, options, &err);
}

static inline void expect_refused_plan(const mp_quantize_options *options, mp_code code,
                                       const char *message)
{
    cr_assert_eq(try_plan(options), code, "%s", err.message);
    cr_assert_str_eq(err.message, message);
    cr_assert_null(plan.layers);
}

/* Writes the open source to dir/NAME and opens that. */
static inline void quantize(const mp_quantize_options *options, const char *name)
{
    char out[300];

    snprintf(out, sizeof out, "%s/%s", dir, name);
    cr_assert_eq(try_plan(options), 0, "%s", err.message);
    cr_assert_eq(mp_quantize_plan_run(&plan, out, MP_RUN_FORCE, NULL, &err), 0, "%s", err.message);
    mp_catalog_release(&made);
    cr_assert_eq(mp_catalog_open(&made, out, NULL, &err), 0, "%s", err.message);
    cr_assert_eq(mp_catalog_check(&made, &err), 0, "%s", err.message);
}

#endif
