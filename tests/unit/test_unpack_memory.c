/* SPDX-License-Identifier: Apache-2.0 */
/* Unpacking when memory runs out. */
#include "failing_memory.h"
#include "unpack_files.h"

#include "write/unpack.h"

TestSuite(unpack_memory, .init = init, .fini = finish);

static int plan_once(mp_error *e)
{
    const mp_unpack_options options = {.max_shard_size = 100000};
    int rc = mp_unpack_plan_init(&unpacking, in_dir("packed"), &options, &one_thread, e);

    if (rc == 0) {
        cr_assert_eq(unpacking.work.num_units, 2 * EXPERTS * 2);
        cr_assert_eq(unpacking.work.num_outputs, 2 * EXPERTS * 6);
        cr_assert_gt(unpacking.work.num_files, 2);
    }
    mp_unpack_plan_release(&unpacking);
    return rc;
}

Test(unpack_memory, making_a_plan)
{
    make_small_pack(NOTHING_ELSE);
    cr_assert_gt(memory_exhaust(plan_once), 100);
}

static int run_once(mp_error *e)
{
    int rc = mp_unpack_plan_run(&unpacking, in_dir("unpacked"), MP_RUN_FORCE, &one_thread, e);

    cr_assert(rc != 0 || mp_path_exists(in_dir("unpacked/" MP_UNPACK_NAME)));
    if (mp_path_exists(in_dir("unpacked")))
        cr_assert_eq(mp_remove_tree(in_dir("unpacked"), &err), 0);
    return rc;
}

Test(unpack_memory, running)
{
    memory_include_jansson();
    make_small_pack(NOTHING_ELSE);
    cr_assert_eq(plan_unpack((mp_unpack_options){0}), 0, "%s", err.message);
    cr_assert_gt(memory_exhaust(run_once), 100);
    /* What the failures left behind is no harm. */
    cr_assert_eq(mp_unpack_plan_run(&unpacking, in_dir("unpacked"), MP_RUN_FORCE, NULL, &err), 0,
                 "%s", err.message);
    expect_source_but(NULL);
}
