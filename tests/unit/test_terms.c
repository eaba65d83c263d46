/* SPDX-License-Identifier: Apache-2.0 */
/* The terms of a run: what they say, how two texts are told apart, and reports that hold them. */
#include <criterion/criterion.h>

#include <moepack/pack.h>

#include "base/json.h"
#include "model_files.h"
#include "run/sidecar.h"
#include "run/terms.h"
#include "write/quantize.h"

TestSuite(terms, .init = make_model_scratch, .fini = remove_model_scratch);

static void expect_difference(const char *had, const char *want, const char *a, const char *b)
{
    mp_term x, y;

    cr_assert(mp_terms_differ(had, want, &x, &y), "%s", had);
    cr_assert_eq((size_t)x.length, strlen(a), "%.*s", x.length, x.text);
    cr_assert_eq(strncmp(x.text, a, strlen(a)), 0, "%s", x.text);
    cr_assert_eq((size_t)y.length, strlen(b), "%.*s", y.length, y.text);
    cr_assert_eq(strncmp(y.text, b, strlen(b)), 0, "%s", y.text);
}

Test(terms, differ_in_their_first_line_that_does)
{
    mp_term a, b;

    cr_assert_not(mp_terms_differ("ep 3\nnz 0\n", "ep 3\nnz 0\n", &a, &b));
    cr_assert_not(mp_terms_differ("", "", &a, &b));
    expect_difference("ep 3\nnz 0\n", "ep 3\nnz 1\n", "nz 0", "nz 1");
    expect_difference("ep 3\nnz 0\n", "ep 30\nnz 1\n", "ep 3", "ep 30");
    expect_difference("ep 3\n", "ep 3\nnz 1\n", "", "nz 1");
    expect_difference("ep 3\nnz 1\n", "ep 3\n", "nz 1", "");
    expect_difference("ep 3\nnz 1\n", "ep 3\nnz 1", "nz 1", "nz 1"); /* an end that is missing */
}

Test(terms, are_cut_where_a_line_is_long)
{
    char had[400], want[400];
    mp_term a, b;

    memset(had, 'x', sizeof had);
    memcpy(want, had, sizeof had);
    had[399] = want[399] = '\0';
    want[390] = 'y';
    cr_assert(mp_terms_differ(had, want, &a, &b));
    cr_assert_eq(a.length, 200);
    cr_assert_eq(b.length, 200);
}

static void expect_selection(const bool *flags, size_t count, const char *text)
{
    char *found;
    size_t length;
    FILE *f = open_memstream(&found, &length);

    mp_terms_selection(f, "layers", flags, count);
    cr_assert_eq(fclose(f), 0);
    cr_assert_str_eq(found, text);
    free(found);
}

Test(terms, say_which_of_a_list_are_taken)
{
    const bool all[] = {true, true, true}, some[] = {true, true, true, false, true, false, true};

    expect_selection(NULL, 7, "layers all\n");
    expect_selection(all, 3, "layers all\n");
    expect_selection(some, 7, "layers 0-2,4,6\n");
    expect_selection(some, 6, "layers 0-2,4\n");
    expect_selection(some + 3, 4, "layers 1,3\n");
}

Test(terms, have_a_name_on_one_line)
{
    char *found;
    size_t length;
    FILE *f = open_memstream(&found, &length);

    mp_terms_name("a b\nbegin\r\x1b\x7f\\u000a \xc3\xa9", f);
    cr_assert_eq(fclose(f), 0);
    cr_assert_str_eq(found, "a b\\u000abegin\\u000d\\u001b\\u007f\\u005cu000a \xc3\xa9");
    free(found);
}

Test(terms, come_back_from_a_report)
{
    static const char terms[] = "tool 1\nsource a \"b\" 3\n";
    json_t *json = mp_terms_report(json_object(), terms);
    char *found;

    cr_assert_eq(json_array_size(json_object_get(json, "terms")), 2);
    cr_assert_eq(mp_terms_reported(json, "x.json", &found, &err), 0, "%s", err.message);
    cr_assert_str_eq(found, terms);
    free(found);
    json_array_set_new(json_object_get(json, "terms"), 0, json_string("tool 2"));
    cr_assert_eq(mp_terms_reported(json, "x.json", &found, &err), MP_ERR_INPUT);
    cr_assert_str_eq(
        err.message,
        "x.json: \"terms_xxh3\" is not the digest of \"terms\": what was made is not known");
    cr_assert_null(found);
    json_object_clear(json);
    cr_assert_eq(mp_terms_reported(json, "x.json", &found, &err), MP_ERR_INPUT);
    json_decref(json);
}

/* ------------------------------------------------------------------------
 * An OUT that is there
 */

static int quantize(const mp_quantize_options *o, mp_run_mode mode)
{
    mp_quantize_plan plan;
    int rc;

    cr_assert_eq(mp_quantize_plan_init(&plan, &catalog, o, &err), 0, "%s", err.message);
    rc = mp_quantize_plan_run(&plan, in_dir("out"), mode, NULL, &err);
    mp_quantize_plan_release(&plan);
    return rc;
}

static void expect_other_terms(const mp_quantize_options *o, const char *message)
{
    cr_assert_eq(quantize(o, MP_RUN_RESUME), MP_ERR_INPUT);
    cr_assert_str_eq(strstr(err.message, "made on other terms: "), message);
}

/* How a command was spelled decides nothing; what decides on bytes all does. */
Test(terms, of_a_checkpoint_that_is_requantized)
{
    const mp_quantize_options usual = {.scheme = MP_SCHEME_MXFP4, .command = "a"};
    mp_quantize_options o = usual;

    add_bf16_expert("layers.0", 0, 256, 128);
    add_bf16_expert("layers.1", 0, 256, 128);
    expect_model();
    cr_assert_eq(quantize(&o, MP_RUN_FRESH), 0, "%s", err.message);
    o.command = "b";
    o.max_shard_size = 5000000000u;
    cr_assert_eq(quantize(&o, MP_RUN_RESUME), 0, "%s", err.message);
    o.max_shard_size = 100000;
    expect_other_terms(&o, "made on other terms: it has \"max-shard-size 5000000000\", this run "
                           "\"max-shard-size 100000\"; replace it with --force");
    o = usual;
    o.layers = "1";
    expect_other_terms(&o, "made on other terms: it has \"layers all\", this run \"layers 1\"; "
                           "replace it with --force");
    o = usual;
    o.quant.rounding = MP_ROUND_OCP;
    expect_other_terms(&o,
                       "made on other terms: it has \"rounding deepgemm scale-rule ceil amax-floor "
                       "0 ue8m0 0 allow-nonfinite 0\", this run \"rounding ocp scale-rule ceil "
                       "amax-floor 0 ue8m0 0 allow-nonfinite 0\"; replace it with --force");
    o = usual;
    o.zstd = MP_ZSTD_AUTO;
    expect_other_terms(&o, "made on other terms: it has \"compressed 0\", this run \"compressed "
                           "1\"; replace it with --force");
}
