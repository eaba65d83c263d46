/* SPDX-License-Identifier: Apache-2.0 */
/* Requantizing when memory runs out: forms, config.json, a plan, a whole run, its report. */
#include <criterion/criterion.h>

#include <moepack/pack.h>

#include "checkpoint/config_rewrite.h"
#include "checkpoint/form.h"
#include "failing_memory.h"
#include "model_files.h"
#include "write/quantize.h"

static const mp_context one_thread = {.threads = 1};

TestSuite(memory_quantize, .init = make_model_scratch, .fini = remove_model_scratch);

/* One layer of two experts and a shared one, and a norm that stays. */
static void put_source(void)
{
    add_fp4_layer("layers.0", 2, 64, 96);
    add_tensor(MP_BF16, 96, 64, "layers.0.ffn.shared_experts.w1.weight");
    add_tensor(MP_BF16, 96, 64, "layers.0.ffn.shared_experts.w3.weight");
    add_tensor(MP_BF16, 64, 96, "layers.0.ffn.shared_experts.w2.weight");
    add_tensor(MP_BF16, 64, 0, "layers.0.ffn_norm.weight");
    put_model("model.safetensors");
}

static int make_forms(mp_error *e)
{
    mp_form read, style;
    int rc = mp_form_of_layer(&catalog, &catalog.layers[0], false, &read, e);

    if (rc == 0)
        rc = mp_style_form("modelopt", MP_SCHEME_NVFP4, catalog.layers[0].naming, true, 64, 96,
                           &style, e);
    else
        style = (mp_form){0};
    mp_form_release(&read);
    mp_form_release(&style);
    return rc;
}

Test(memory_quantize, forms)
{
    put_source();
    cr_assert_eq(mp_catalog_open(&catalog, dir, &one_thread, &err), 0, "%s", err.message);
    cr_assert_gt(memory_exhaust(make_forms), 16);
}

static int rewrite_config(mp_error *e)
{
    static const char *const experts[] = {"layers.0.ffn.experts"};
    static const char before[] = "{\"text_config\": {\"quantization_config\": {\"quant_method\": "
                                 "\"compressed-tensors\", \"ignore\": [\"lm_head\"]}}}";
    const mp_config_change change = {
        .to = mp_convention_find(MP_AS_COMPRESSED_TENSORS, MP_SCHEME_MXFP4),
        .keeps = true,
        .experts = experts,
        .num_experts = 1,
    };
    char *text;
    int rc = mp_config_requantized(before, &change, &text, NULL, e);

    if (rc == 0)
        cr_assert_not_null(strstr(text, "mixed-precision"));
    free(text);
    return rc;
}

Test(memory_quantize, config)
{
    cr_assert_gt(memory_exhaust(rewrite_config), 10);
}

/* From opening the catalog to the errors that the report has. */
static int quantize(mp_error *e)
{
    const mp_quantize_options o = {.scheme = MP_SCHEME_INT8_CHANNEL, .requantize_shared = true};
    mp_quantize_plan plan = {0};
    mp_layer_error *errors = NULL;
    size_t count = 0;
    char out[300];
    int rc = mp_catalog_open(&catalog, dir, &one_thread, e);

    snprintf(out, sizeof out, "%s/out", dir);
    if (rc == 0)
        rc = mp_quantize_plan_init(&plan, &catalog, &o, e);
    if (rc == 0)
        rc = mp_quantize_plan_run(&plan, out, MP_RUN_FORCE, &one_thread, e);
    if (rc == 0)
        rc = mp_quantize_errors(out, &errors, &count, e);
    if (rc == 0)
        cr_assert_eq(count, 6);
    mp_quantize_errors_free(errors, count);
    mp_quantize_plan_release(&plan);
    mp_catalog_release(&catalog);
    if (mp_path_exists(out))
        cr_assert_eq(mp_remove_tree(out, &err), 0);
    return rc;
}

Test(memory_quantize, a_whole_run)
{
    put_source();
    put_text("config.json", "{\"model_type\": \"deepseek_v4\", \"n_routed_experts\": 2}");
    cr_assert_gt(memory_exhaust(quantize), 100);
}
