/* SPDX-License-Identifier: Apache-2.0 */
/* verify where memory runs out: an error, never a report with something missing. */
#include "failing_memory.h"
#include "verify_pack.h"

static char source[512];
static uint64_t faults;

/* Two slots exchanged, so that faults are located and experts identified. */
static void make_damaged_pack(void)
{
    const mp_synth_options synth = {
        .family = "deepseek_v3",
        .scheme = MP_SCHEME_NVFP4,
        .hidden_size = 128,
        .intermediate_size = 128,
        .num_experts = 2,
        .num_shared_experts = 1,
        .top_k = 1,
        .num_layers = 1,
        .vocab_size = 16,
        .routed_scaling_factor = 1,
    };
    static char one[128 * 128], other[128 * 128];
    const char *name = "model.layers.0.experts.l1_weight";

    make_scratch();
    snprintf(source, sizeof source, "%s/source", scratch);
    succeed(mp_synth(&synth, source, NULL, &err));
    pack_source(source, (mp_repack_options){.target = mp_target_find("megamoe-nvfp4"),
                                            .ep = 1,
                                            .shared = MP_SHARED_SEPARATE,
                                            .requantize_shared = true,
                                            .drop = "input_scale"});
    peek(0, name, 0, one, sizeof one);
    peek(0, name, sizeof one, other, sizeof other);
    poke(0, name, 0, other, sizeof other);
    poke(0, name, sizeof one, one, sizeof one);
    seal();
}

TestSuite(verify_memory, .init = make_damaged_pack, .fini = remove_pack);

static int check_at(mp_verify_level level, mp_error *e)
{
    mp_verify_options options = {.size = sizeof(mp_verify_options),
                                 .level = level,
                                 .source = source,
                                 .sample = 1,
                                 .seed = 3,
                                 .tokens = 1};
    mp_context context = {.threads = 1};
    mp_verify_report r;

    int rc = mp_verify(out, &options, &context, &r, e);
    if (rc == 0) {
        cr_assert_eq(r.total_faults, faults);
        cr_assert_eq(r.num_faults, faults);
        mp_verify_report_release(&r);
    }
    return rc;
}

static int check_pack(mp_error *e)
{
    return check_at(MP_VERIFY_EXACT, e);
}

static int compute_pack(mp_error *e)
{
    return check_at(MP_VERIFY_NUMERIC, e);
}

Test(verify_memory, survives_any_failed_allocation)
{
    verify_with((mp_verify_options){.size = sizeof(mp_verify_options),
                                    .level = MP_VERIFY_EXACT,
                                    .source = source,
                                    .sample = 1,
                                    .seed = 3},
                1);
    faults = report.total_faults;
    cr_assert_gt(faults, 0);
    cr_expect_not_null(strstr(report.faults[0].detail, "holds expert "));
    cr_assert_gt(memory_exhaust(check_pack), 100);
}

Test(verify_memory, survives_any_failed_allocation_of_numeric)
{
    verify_with((mp_verify_options){.size = sizeof(mp_verify_options),
                                    .level = MP_VERIFY_NUMERIC,
                                    .source = source,
                                    .sample = 1,
                                    .seed = 3,
                                    .tokens = 1},
                1);
    faults = report.total_faults;
    cr_assert_gt(faults, 0);
    cr_assert_eq(report.faults[0].level, MP_VERIFY_NUMERIC);
    cr_assert_gt(memory_exhaust(compute_pack), 300);
}
