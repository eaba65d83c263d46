/* SPDX-License-Identifier: Apache-2.0 */
/* Output files and their syncs, over more batches than one. */
#include <criterion/criterion.h>

#include "run/output.h"
#include "verify_pack.h"
#include "write/plan.h"
#include "write/repack.h"

static mp_catalog catalog;
static mp_repack_plan plan;

static void make_plan(void)
{
    const mp_repack_options options = {.target = mp_target_find("megamoe-w4a8"), .ep = 5};

    make_scratch();
    succeed(mp_catalog_open(&catalog, SOURCE, NULL, &err));
    succeed(mp_repack_plan_init(&plan, &catalog, &options, &err));
}

static void release_plan(void)
{
    mp_repack_plan_release(&plan);
    mp_catalog_release(&catalog);
    remove_pack();
}

TestSuite(outputs, .init = make_plan, .fini = release_plan);

/* A sync takes the mark of a file away, and the next write sets it again. */
Test(outputs, what_is_written_after_a_sync_is_synced_again)
{
    const mp_out_tensor *first = &plan.work.outputs[0];
    mp_outputs outputs;

    succeed(mp_make_dir(out, &err));
    succeed(mp_outputs_init(&outputs, &plan.work, &err));
    succeed(mp_outputs_open(&outputs, out, &err));
    succeed(mp_outputs_begin_stage(&outputs, first->stage, &err));
    for (uint64_t batch = 0; batch < 3; batch++) {
        succeed(mp_outputs_write(&outputs, first, batch * 7, "1234567", 7, &err));
        cr_assert(outputs.dirty[first->file]);
        succeed(mp_outputs_sync(&outputs, &err));
        for (size_t f = 0; f < plan.work.num_files; f++)
            cr_assert_not(outputs.dirty[f]);
    }
    succeed(mp_outputs_close(&outputs, &err));
    mp_outputs_release(&outputs);
}

/* So many that each is a batch of its own. */
static uint64_t gigabytes(const void *of, uint64_t unit)
{
    (void)of;
    (void)unit;
    return UINT64_C(1) << 32;
}

Test(outputs, a_run_of_a_batch_a_unit_is_right)
{
    mp_job job = mp_repack_job(&plan);
    const mp_context context = {.threads = 3};

    job.unit_bytes = gigabytes;
    succeed(mp_job_run(&job, out, MP_RUN_FRESH, &context, &err));
    succeed(mp_verify(out,
                      &(mp_verify_options){.size = sizeof(mp_verify_options),
                                           .level = MP_VERIFY_EXACT,
                                           .source = SOURCE},
                      &context, &report, &err));
    cr_assert_eq(report.total_faults, 0);
}
