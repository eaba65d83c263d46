/* SPDX-License-Identifier: Apache-2.0 */
/* What `quantize` writes beside the tensors: files of the model, and the report. */
#include <math.h>

#include "golden.h"
#include "quantize_run.h"

TestSuite(quantize_files, .init = make_quantize_scratch, .fini = remove_quantize_scratch);

static char *text_of(const char *name)
{
    char path[512], *text;

    snprintf(path, sizeof path, "%s/%s", dir, name);
    cr_assert_eq(mp_read_text(path, 1 << 20, &text, NULL, &err), 0, "%s", err.message);
    return text;
}

Test(quantize_files, brings_the_files_that_engines_need)
{
    const mp_quantize_options o = {.scheme = MP_SCHEME_NVFP4};
    char *text;

    copy_fixture("qwen3-bf16");
    put_text("source/tokenizer.model", "pieces");
    put_text("source/tokenizer_config.json", "{\"a\": 1e-06}");
    put_text("source/chat_template.jinja", "{{ x }}");
    put_text("source/merges.txt", "a b");
    put_text("source/modeling.py", "pass");
    put_text("source/README.md", "no");
    put_text("source/.hidden.json", "no");
    put_text("source/other.safetensors.index.json.bak", "no");
    open_source(in_dir("source"));
    quantize(&o, "out");
    text = text_of("out/tokenizer_config.json");
    cr_assert_str_eq(text, "{\"a\": 1e-06}");
    free(text);
    cr_assert(mp_path_exists(in_dir("out/tokenizer.model")));
    cr_assert(mp_path_exists(in_dir("out/chat_template.jinja")));
    cr_assert(mp_path_exists(in_dir("out/merges.txt")));
    cr_assert(mp_path_exists(in_dir("out/modeling.py")));
    cr_assert(mp_path_exists(in_dir("out/hf_quant_config.json")));
    cr_assert_not(mp_path_exists(in_dir("out/README.md")));
    cr_assert_not(mp_path_exists(in_dir("out/.hidden.json")));
}

/* ModelSlim's description goes with the last tensor that it is about. */
Test(quantize_files, leaves_descriptions_of_what_is_gone)
{
    const mp_quantize_options o = {.scheme = MP_SCHEME_BF16};
    mp_quantize_options half = {.scheme = MP_SCHEME_BF16, .layers = "mtp.0"};
    char *text;

    open_source(fixture_path("modelslim-w8a8"));
    quantize(&o, "out");
    cr_assert_not(mp_path_exists(in_dir("out/quant_model_description.json")));
    copy_fixture("v4-fp4");
    put_text("source/quant_model_description.json",
             "{\"version\": \"1\", \"layers.0.ffn.experts.0.w1.weight\": \"W4A8_MXFP\","
             " \"mtp.0.ffn.experts.0.w1.weight\": \"W4A8_MXFP\"}");
    open_source(in_dir("source"));
    quantize(&half, "half");
    text = text_of("half/quant_model_description.json");
    cr_assert_not_null(strstr(text, "version"));
    cr_assert_not_null(strstr(text, "layers.0.ffn"));
    cr_assert_null(strstr(text, "mtp.0.ffn"));
    free(text);
}

/* The report is what was measured, and says nothing of time. */
Test(quantize_files, reports_errors)
{
    const mp_quantize_options o = {.scheme = MP_SCHEME_INT8_CHANNEL, .requantize_shared = true};
    mp_layer_error *errors;
    size_t count;

    open_source(fixture_path("v3-fp8"));
    quantize(&o, "out");
    cr_assert_eq(mp_quantize_errors(in_dir("out"), &errors, &count, &err), 0, "%s", err.message);
    cr_assert_eq(count, 6);
    cr_assert_str_eq(errors[0].layer, "model.layers.1");
    cr_assert_str_eq(errors[1].matrix, "up_proj");
    cr_assert_str_eq(errors[5].matrix, "shared down_proj");
    for (size_t i = 0; i < count; i++) {
        cr_assert_eq(errors[i].elements, (i < 3 ? 4 : 1) * 160 * 192);
        cr_assert(errors[i].relative_rms > 0.001 && errors[i].relative_rms < 0.1, "%g",
                  errors[i].relative_rms);
        cr_assert_float_eq(errors[i].sqnr_db, -20 * log10(errors[i].relative_rms), 1e-9);
    }
    mp_quantize_errors_free(errors, count);
    put_text("out/moepack-quantize.json", "{\"errors\": [{\"layer\": \"a\"}]}");
    cr_assert_eq(mp_quantize_errors(in_dir("out"), &errors, &count, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "moepack-quantize.json: \"projection\" is missing");
}
