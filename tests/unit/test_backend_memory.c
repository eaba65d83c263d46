/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of a rank: the symmetric buffer against DeepGEMM's own sizes, experts against what
 * a target describes, verdicts; and whether a packed directory is what the engine wants. */
#include "backend_case.h"

#include <jansson.h>
#include <stdlib.h>

#include "base/digest.h"

TestSuite(backend_memory, .init = start_case, .fini = end_case);

static mp_backend_memory memory;

static void estimate(uint64_t gpu_memory)
{
    resolve_well();
    cr_assert_eq(mp_backend_estimate(&memory, &backend, &model, gpu_memory, &err), 0, "%s",
                 err.message);
}

/* ------------------------------------------------------------------------
 * The symmetric buffer
 */

static uint64_t golden_number(const json_t *row, const char *key)
{
    const json_t *value = json_object_get(row, key);

    cr_assert(json_is_integer(value), "no %s", key);
    return (uint64_t)json_integer_value(value);
}

Test(backend_memory, symmetric_buffers_are_deepgemms)
{
    json_error_t where;
    json_t *root = json_load_file("testdata/golden/placement.json", 0, &where);
    json_t *rows = json_object_get(root, "symm_buffer_bytes"), *row;
    size_t i;

    cr_assert_geq(json_array_size(rows), 4, "%s", where.text);
    json_array_foreach(rows, i, row)
    {
        mp_symm_buffer buffer = {
            .ranks = golden_number(row, "ranks"),
            .experts = golden_number(row, "experts"),
            .max_tokens = golden_number(row, "max_tokens"),
            .topk = golden_number(row, "topk"),
            .hidden_size = golden_number(row, "hidden"),
            .intermediate_size = golden_number(row, "intermediate"),
        };

        cr_assert_eq(mp_symm_buffer_bytes(&buffer), golden_number(row, "fp8_acts"), "row %zu", i);
        buffer.fp8_combine = true;
        cr_assert_eq(mp_symm_buffer_bytes(&buffer), golden_number(row, "fp8_combine"));
        buffer.fp8_combine = false;
        buffer.fp4_acts = true;
        cr_assert_eq(mp_symm_buffer_bytes(&buffer), golden_number(row, "fp4_acts"));
    }
    json_decref(root);
}

Test(backend_memory, symmetric_buffers_hold_whole_tiles)
{
    mp_symm_buffer buffer = {8, 256, 0, 6, 4096, 2048, false, false};
    uint64_t last = mp_symm_buffer_bytes(&buffer), bytes;

    for (uint64_t tokens = 1; tokens <= 3 * 384; tokens++) {
        buffer.max_tokens = tokens;
        bytes = mp_symm_buffer_bytes(&buffer);
        if (tokens % 384 == 1)
            cr_assert_gt(bytes, last);
        else
            cr_assert_eq(bytes, last);
        last = bytes;
    }
}

Test(backend_memory, symmetric_buffers_do_not_wrap_around)
{
    mp_symm_buffer buffer = {1 << 16, 1 << 20, INT32_MAX, 1 << 10, 1 << 24, 1 << 24, false, false};

    cr_assert_eq(mp_symm_buffer_bytes(&buffer), UINT64_MAX);
    buffer = (mp_symm_buffer){1, 1, UINT64_MAX, 1, UINT64_MAX, UINT64_MAX, true, true};
    cr_assert_eq(mp_symm_buffer_bytes(&buffer), UINT64_MAX);
}

/* ------------------------------------------------------------------------
 * Experts
 */

Test(backend_memory, v4_flash_on_eight_gpus)
{
    ask_for(MP_A2A_MEGAMOE);
    estimate(0);
    /* 32 slots, 3 matrices of 2048 x 4096 in half bytes, a scale for 32 of them. */
    cr_assert_eq(memory.layer_weights, UINT64_C(32) * 3 * 2048 * 4096 / 2);
    cr_assert_eq(memory.layer_scales, UINT64_C(32) * 3 * 2048 * 4096 / 32);
    cr_assert_eq(memory.weights, 44 * memory.layer_weights);
    cr_assert_eq(memory.scales, 44 * memory.layer_scales);
    cr_assert(memory.has_second_scales && memory.second_scales == memory.scales);
    cr_assert(memory.has_symm_buffer);
    cr_assert_eq(memory.symm_buffer, 638319904);
    cr_assert_eq(memory.symm_buffer_fp8, 638319904);
    cr_assert_eq(memory.symm_buffer_fp4, 510131488);
    cr_assert_eq(memory.total, memory.weights + 2 * memory.scales + 638319904);
    cr_assert_not(memory.has_verdict || memory.has_max_tokens);
}

Test(backend_memory, variables_change_the_buffer)
{
    ask_for(MP_A2A_MEGAMOE);
    set_env("SGLANG_OPT_DEEPGEMM_MEGA_MOE_USE_FP4_ACTS", "1");
    estimate(0);
    cr_assert_eq(memory.symm_buffer, 510131488);
    set_env("DG_USE_FP4_ACTS", "0");
    set_env("DG_USE_FP8_COMBINE", "1");
    estimate(0);
    cr_assert_eq(memory.symm_buffer, 610229536);
    set_env("DG_USE_FP8_COMBINE", "0");
    set_env("SGLANG_OPT_DEEPGEMM_MEGA_MOE_NUM_MAX_TOKENS_PER_RANK", "500");
    flags.redundant = 32;
    estimate(0);
    cr_assert_eq(memory.symm_buffer, 452336576);
}

Test(backend_memory, without_the_fix_there_are_no_second_scales)
{
    ask_for(MP_A2A_MEGAMOE);
    set_env("SGLANG_OPT_FIX_MEGA_MOE_MEMORY", "0");
    estimate(0);
    cr_assert_not(memory.has_second_scales);
    cr_assert_eq(memory.total, memory.weights + memory.scales + memory.symm_buffer);
}

Test(backend_memory, redundant_and_shared_experts_take_slots)
{
    uint64_t slot = UINT64_C(3) * 2048 * 4096 / 2;

    ask_for(MP_A2A_MEGAMOE);
    flags.redundant = 32;
    estimate(0);
    cr_assert_eq(memory.layer_weights, 36 * slot);
    flags.shared = MP_SHARED_FUSED;
    estimate(0);
    cr_assert_eq(memory.layer_weights, 37 * slot);
    /* Apart, a shared expert stays FP8. */
    flags.shared = MP_SHARED_SEPARATE;
    estimate(0);
    cr_assert_eq(memory.layer_weights, 36 * slot + 2 * slot);
    model.num_shared_experts = 2;
    estimate(0);
    cr_assert_eq(memory.layer_weights, 36 * slot + 4 * slot);
    model.num_shared_experts = 0;
    estimate(0);
    cr_assert_eq(memory.layer_weights, 36 * slot);
}

/* Fused shared experts are further choices, and further experts of the buffer. */
Test(backend_memory, fused_shared_experts_widen_the_buffer)
{
    mp_symm_buffer buffer = {8, 256 + 8, 1024, 7, 4096, 2048, false, false};

    ask_for(MP_A2A_MEGAMOE);
    flags.shared = MP_SHARED_FUSED;
    estimate(0);
    cr_assert_eq(memory.symm_buffer, mp_symm_buffer_bytes(&buffer));
}

Test(backend_memory, every_target_is_sized_by_its_description)
{
    static const struct {
        mp_a2a a2a;
        mp_platform platform;
        mp_scheme scheme;
        uint64_t weights, scales; /* of a slot, H = 4096, I = 2048 */
        bool second_scales, buffer;
    } cases[] = {
        {MP_A2A_MEGAMOE, MP_PLATFORM_CUDA_SM100, MP_SCHEME_NVFP4, 12582912, 1572864 + 12, true,
         false},
        {MP_A2A_MEGAMOE, MP_PLATFORM_CUDA_SM100, MP_SCHEME_BF16, 50331648, 0, true, false},
        {MP_A2A_MEGAMOE, MP_PLATFORM_CUDA_SM90, MP_SCHEME_FP8_BLOCK, 25165824, 1536 * 4, true,
         false},
        {MP_A2A_ASCEND_FUSEEP, MP_PLATFORM_NPU, MP_SCHEME_INT8_CHANNEL, 25165824, 8192 * 4, false,
         false},
        {MP_A2A_DEEPEP, MP_PLATFORM_CUDA_SM100, MP_SCHEME_BF16, 50331648, 0, false, false},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        start_case();
        ask_for(cases[i].a2a);
        flags.platform = cases[i].platform;
        flags.runner = MP_RUNNER_DEEP_GEMM;
        set_scheme(cases[i].scheme);
        estimate(0);
        cr_assert(memory.known);
        cr_assert_eq(memory.layer_weights, 32 * cases[i].weights, "case %zu", i);
        cr_assert_eq(memory.layer_scales, 32 * cases[i].scales, "case %zu: %llu", i,
                     (unsigned long long)memory.layer_scales);
        cr_assert_eq(memory.has_second_scales, cases[i].second_scales);
        cr_assert_eq(memory.has_symm_buffer, cases[i].buffer);
    }
    flags.runner = MP_RUNNER_AUTO;
    estimate(1);
    cr_assert_not(memory.known || memory.has_verdict || memory.has_max_tokens);
}

Test(backend_memory, fuseep_2_has_wider_scales)
{
    ask_for(MP_A2A_ASCEND_FUSEEP);
    flags.platform = MP_PLATFORM_NPU;
    set_scheme(MP_SCHEME_INT8_CHANNEL);
    set_env("SGLANG_NPU_FUSED_MOE_MODE", "2");
    estimate(0);
    cr_assert_eq(memory.layer_scales, UINT64_C(32) * 8192 * 8);
}

/* ------------------------------------------------------------------------
 * Verdicts
 */

Test(backend_memory, fits_to_the_byte)
{
    ask_for(MP_A2A_MEGAMOE);
    estimate(0);
    uint64_t total = memory.total;
    estimate(total);
    cr_assert(memory.has_verdict && memory.fits);
    cr_assert_eq(memory.max_tokens, 1152, "1024 tokens are rounded up to three tiles");
    estimate(total - 1);
    cr_assert(memory.has_verdict && !memory.fits);
    cr_assert_eq(memory.max_tokens, 768);
    estimate(memory.weights);
    cr_assert(memory.has_max_tokens);
    cr_assert_eq(memory.max_tokens, 0);
}

Test(backend_memory, the_largest_cap_is_the_largest)
{
    static const uint64_t sizes[] = {21000000000, 30000000000, 192000000000};

    ask_for(MP_A2A_MEGAMOE);
    for (size_t i = 0; i < 3; i++) {
        char cap[32];

        start_case();
        ask_for(MP_A2A_MEGAMOE);
        estimate(sizes[i]);
        uint64_t most = memory.max_tokens;
        snprintf(cap, sizeof cap, "%llu", (unsigned long long)most);
        set_env("SGLANG_OPT_DEEPGEMM_MEGA_MOE_NUM_MAX_TOKENS_PER_RANK", cap);
        estimate(sizes[i]);
        cr_assert(memory.fits);
        cr_assert_eq(memory.max_tokens, most);
        snprintf(cap, sizeof cap, "%llu", (unsigned long long)most + 1);
        set_env("SGLANG_OPT_DEEPGEMM_MEGA_MOE_NUM_MAX_TOKENS_PER_RANK", cap);
        estimate(sizes[i]);
        cr_assert_not(memory.fits);
    }
}

Test(backend_memory, a_buffer_of_unknown_size_leaves_the_verdict_open)
{
    ask_for(MP_A2A_MEGAMOE);
    set_scheme(MP_SCHEME_BF16);
    estimate(UINT64_C(1) << 40);
    cr_assert_not(memory.has_verdict);
    estimate(memory.total - 1);
    cr_assert(memory.has_verdict && !memory.fits);
    cr_assert_not(memory.has_max_tokens);
}

/* ------------------------------------------------------------------------
 * Packed directories
 */

static mp_backend_pack pack;
static mp_problems mismatches;

static void start_pack(void)
{
    start_case();
    ask_for(MP_A2A_MEGAMOE);
    resolve_well();
    pack = (mp_backend_pack){
        .target = "megamoe-w4a8",
        .ep_size = 8,
        .num_physical = 256,
        .hidden_size = 4096,
        .moe_intermediate_size = 2048,
        .num_experts = 256,
        .num_layers = 44,
        .shared = MP_SHARED_NONE,
        .placement_xxh3 = "",
    };
}

static void expect_mismatch(const mp_placement *placement, const char *text)
{
    cr_assert_eq(mp_backend_check_pack(&backend, &model, &pack, placement, NULL, &mismatches, &err),
                 0, "%s", err.message);
    cr_assert_eq(mismatches.count, text ? 1 : 0, "%llu mismatches",
                 (unsigned long long)mismatches.count);
    if (text)
        cr_assert_str_eq(mismatches.text[0], text);
    mp_problems_release(&mismatches);
}

Test(backend_memory, a_pack_is_what_the_engine_wants)
{
    start_pack();
    expect_mismatch(NULL, NULL);
}

Test(backend_memory, a_pack_differs_by_name)
{
    start_pack();
    pack.target = "megamoe-w4a4";
    expect_mismatch(NULL, "target: the pack has megamoe-w4a4, the engine expects megamoe-w4a8");
    start_pack();
    pack.ep_size = 4;
    expect_mismatch(NULL, "ep_size: the pack has 4, the engine expects 8");
    start_pack();
    pack.num_physical = 288;
    expect_mismatch(NULL, "num_physical: the pack has 288, the engine expects 256");
    start_pack();
    pack.shared = MP_SHARED_SEPARATE;
    expect_mismatch(NULL, "shared: the pack has separate, the engine expects none");
    start_pack();
    pack.hidden_size = 7168;
    expect_mismatch(NULL, "hidden_size: the pack has 7168, the engine expects 4096");
    start_pack();
    pack.moe_intermediate_size = 1024;
    expect_mismatch(NULL, "moe_intermediate_size: the pack has 1024, the engine expects 2048");
    start_pack();
    pack.num_experts = 255;
    expect_mismatch(NULL, "num_experts: the pack has 255, the engine expects 256");
    start_pack();
    set_scheme(MP_SCHEME_FP8_BLOCK);
    resolve_well();
    expect_mismatch(NULL,
                    "target: the pack has megamoe-w4a8, the engine expects no packed experts");
}

Test(backend_memory, several_differences_are_all_named)
{
    start_pack();
    pack.target = "fuseep-1";
    pack.ep_size = 4;
    pack.shared = MP_SHARED_FUSED;
    cr_assert_eq(mp_backend_check_pack(&backend, &model, &pack, NULL, NULL, &mismatches, &err), 0);
    cr_assert_eq(mismatches.count, 3);
    mp_problems_release(&mismatches);
}

/* The digest of what mp_placement_write makes of `layers` rows of the trivial placement. */
static void digest_of_trivial(uint32_t layers, uint32_t redundant, char text[MP_DIGEST_TEXT])
{
    mp_placement placement;
    mp_digest digest;
    char *json;

    cr_assert_eq(mp_placement_trivial(&placement, layers, 256, redundant, &err), 0);
    cr_assert_eq(mp_placement_write(&placement, MP_PLACEMENT_SGLANG, 8, &json, &err), 0);
    mp_digest_of(json, strlen(json), &digest);
    mp_digest_text(&digest, text);
    free(json);
    mp_placement_release(&placement);
}

Test(backend_memory, a_placement_is_held_against_the_packs_digest)
{
    char digest[MP_DIGEST_TEXT], message[160];
    mp_placement placement;

    start_pack();
    digest_of_trivial(44, 0, digest);
    pack.placement_xxh3 = digest;
    /* A single row, and all of them, are the same placement. */
    cr_assert_eq(mp_placement_trivial(&placement, 1, 256, 0, &err), 0);
    expect_mismatch(&placement, NULL);
    placement.map[0] = 1;
    placement.map[1] = 0;
    cr_assert_eq(
        mp_backend_check_pack(&backend, &model, &pack, &placement, NULL, &mismatches, &err), 0);
    snprintf(message, sizeof message, "placement: the pack has %s, the engine expects ", digest);
    cr_assert_eq(mismatches.count, 1);
    cr_assert_eq(strncmp(mismatches.text[0], message, strlen(message)), 0);
    mp_problems_release(&mismatches);
    mp_placement_release(&placement);

    cr_assert_eq(mp_placement_trivial(&placement, 44, 256, 0, &err), 0);
    expect_mismatch(&placement, NULL);
    mp_placement_release(&placement);
    cr_assert_eq(mp_placement_trivial(&placement, 43, 256, 0, &err), 0);
    expect_mismatch(&placement, "placement: the pack has 44 layers, the placement 43 rows");
    mp_placement_release(&placement);
}
