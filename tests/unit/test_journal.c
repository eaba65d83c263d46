/* SPDX-License-Identifier: Apache-2.0 */
/* The journal of a run: what is done comes back, and nothing that is not. */
#include <criterion/criterion.h>

#include <float.h>
#include <math.h>

#include "base/digest.h"
#include "model_files.h"
#include "numeric/quantize.h"
#include "run/sidecar.h"
#include "run/terms.h"
#include "write/plan.h"
#include "write/repack.h"

static mp_repack_plan plan;
static mp_progress_state state;
static mp_journal journal;

/* Two layers of three experts on three ranks: 12 units; H = 256, I = 128. */
static mp_repack_options options;

static void init(void)
{
    make_model_scratch();
    journal.fd = -1;
    options = (mp_repack_options){.target = mp_target_find("megamoe-w4a8"), .ep = 3};
}

static void finish(void)
{
    mp_journal_close(&journal);
    mp_progress_release(&state);
    mp_repack_plan_release(&plan);
    remove_model_scratch();
}

TestSuite(journal, .init = init, .fini = finish);

static void make_plan(void)
{
    mp_repack_plan_release(&plan);
    cr_assert_eq(mp_repack_plan_init(&plan, &catalog, &options, &err), 0, "%s", err.message);
    mp_progress_release(&state);
    cr_assert_eq(mp_progress_init(&state, &plan.work, &err), 0, "%s", err.message);
}

/* A lossless plan, or one that requantizes. */
static void make_source(bool lossless)
{
    static const char *const prefixes[] = {"layers.0", "layers.1"};

    for (int l = 0; l < 2; l++) {
        if (lossless)
            add_fp4_layer(prefixes[l], 3, 256, 128);
        for (unsigned e = 0; !lossless && e < 3; e++)
            add_bf16_expert(prefixes[l], e, 256, 128);
    }
    expect_model();
    options.quantize = !lossless;
    options.quantize_to = MP_SCHEME_MXFP4;
    make_plan();
}

static char *terms_of_plan(void)
{
    const mp_job job = mp_repack_job(&plan);
    char *terms;

    cr_assert_eq(mp_terms_text(&job, &terms, &err), 0, "%s", err.message);
    return terms;
}

static int open_journal(void)
{
    char *terms = terms_of_plan();
    int rc;

    mp_journal_close(&journal);
    mp_progress_release(&state);
    cr_assert_eq(mp_progress_init(&state, &plan.work, &err), 0);
    err = (mp_error){0};
    rc = mp_journal_open(&journal, dir, &plan.work, NULL, terms, &state, &err);
    free(terms);
    return rc;
}

static void expect_opens_journal(void)
{
    cr_assert_eq(open_journal(), 0, "%s", err.message);
}

static char *journal_text(uint64_t *length)
{
    char *text;

    cr_assert_eq(mp_read_text(in_dir("journal"), 1 << 20, &text, length, &err), 0);
    return text;
}

/* Appends text to the journal behind its back, and opens it again. */
static void append_and_open(const char *text, size_t n)
{
    FILE *f;

    mp_journal_close(&journal);
    f = fopen(in_dir("journal"), "ab");
    cr_assert(f && fwrite(text, 1, n, f) == n && fclose(f) == 0);
    expect_opens_journal();
}

/* The units and tensors that are done: a 1 for each. */
static void expect_done(const char *units, const char *tensors)
{
    char have[64] = {0};

    cr_assert_eq(plan.work.num_units, 12);
    cr_assert_eq(plan.work.num_outputs, 24);
    for (size_t u = 0; u < plan.work.num_units; u++)
        have[u] = state.unit_done[u] ? '1' : '0';
    cr_assert_str_eq(have, units);
    memset(have, 0, sizeof have);
    for (size_t t = 0; t < plan.work.num_outputs; t++)
        have[t] = state.tensor_done[t] ? '1' : '0';
    cr_assert_str_eq(have, tensors);
}

#define NO_UNITS   "000000000000"
#define NO_TENSORS "000000000000000000000000"

static void digest_tensor(size_t output, const char *of)
{
    mp_digest digest;

    mp_digest_of(of, strlen(of), &digest);
    mp_digest_text(&digest, state.digest[output]);
    cr_assert_eq(mp_journal_tensor(&journal, &state, output, &err), 0);
}

/* Units 7, 0 and 11 and tensors 23 and 4 are done. */
static void do_some(void)
{
    cr_assert_eq(mp_journal_done(&journal, &plan.work, &state, (uint64_t[]){7, 0}, 2, &err), 0);
    digest_tensor(23, "a");
    cr_assert_eq(mp_journal_done(&journal, &plan.work, &state, (uint64_t[]){11}, 1, &err), 0);
    digest_tensor(4, "b");
}

#define SOME_UNITS   "100000010001"
#define SOME_TENSORS "000010000000000000000001"

/* ------------------------------------------------------------------------
 * There and back
 */

Test(journal, begins_with_the_terms)
{
    static const char head[] =
        "tool " MP_VERSION "\nquantize no allow-nonfinite 0 requantize-shared 0\n"
        "max-shard-size 5000000000\ntarget megamoe-w4a8/1\nnz 0\nalphas sgl\nscheme mxfp4\n"
        "rounding deepgemm scale-rule ceil amax-floor 0\nep 3\nshared none\ndrop nothing\n"
        "layers 2\nlayer layers.0\nlayer layers.1\nranks 3\nplacement 3 ";
    uint64_t length;
    char *text, *terms;
    mp_hex_digest hex;

    make_source(true);
    expect_opens_journal();
    expect_done(NO_UNITS, NO_TENSORS);
    text = journal_text(&length);
    terms = terms_of_plan();
    mp_hex_digest_of(terms, strlen(terms), hex);
    cr_assert_eq(strncmp(text, "journal 2 ", 10), 0, "%s", text);
    cr_assert_eq(strncmp(text + 10, hex, 32), 0, "%s", text);
    cr_assert_eq(strncmp(text + 43, terms, strlen(terms)), 0, "%s", text);
    cr_assert_str_eq(text + 43 + strlen(terms), "zstd none\nbegin\n");
    cr_assert_eq(strncmp(terms, head, strlen(head)), 0, "%s", terms);
    cr_assert_not_null(strstr(text, "\nsource model.safetensors "));
    cr_assert_not_null(strstr(text, "\nweights model.safetensors "));
    free(terms);
    cr_assert_str_eq(text + length - 7, "\nbegin\n");
    cr_assert_eq(journal.size, length);
    free(text);
}

Test(journal, keeps_what_is_done)
{
    uint64_t length;
    char *text;

    make_source(true);
    expect_opens_journal();
    do_some();
    expect_opens_journal();
    expect_done(SOME_UNITS, SOME_TENSORS);
    cr_assert_str_eq(state.digest[23], "a96faf705af16834e6c632b61e964e1f");
    cr_assert_eq(strlen(state.digest[4]), 32);
    cr_assert_str_empty(state.digest[5]);
    text = journal_text(&length);
    cr_assert_not_null(
        strstr(text,
               "begin\nunit 7\nunit 0\ntensor 23 a96faf705af16834e6c632b61e964e1f\nunit 11\n"),
        "%s", text);
    free(text);

    /* And goes on behind that. */
    cr_assert_eq(mp_journal_done(&journal, &plan.work, &state, (uint64_t[]){3}, 1, &err), 0);
    expect_opens_journal();
    expect_done("100100010001", SOME_TENSORS);
}

Test(journal, keeps_errors_to_the_last_bit)
{
    static const mp_quant_stats some[] = {
        {.error_sq = 0.1, .signal_sq = 1e300 / 3, .elements = 32768, .saturated = 1, .flushed = 2},
        {.error_sq = 0, .signal_sq = DBL_TRUE_MIN, .elements = UINT64_MAX, .requantized_blocks = 5},
        {.error_sq = DBL_MAX,
         .signal_sq = DBL_EPSILON,
         .flushed = UINT64_MAX,
         .requantized_blocks = UINT64_MAX},
        {.error_sq = INFINITY, .signal_sq = -0.0},
    };

    make_source(false);
    expect_opens_journal();
    for (uint64_t u = 0; u < 4; u++) {
        state.stats[u] = some[u];
        cr_assert_eq(mp_journal_done(&journal, &plan.work, &state, &u, 1, &err), 0);
    }
    expect_opens_journal();
    expect_done("111100000000", NO_TENSORS);
    for (int u = 0; u < 4; u++) {
        cr_assert_eq(memcmp(&state.stats[u].error_sq, &some[u].error_sq, sizeof(double)), 0);
        cr_assert_eq(memcmp(&state.stats[u].signal_sq, &some[u].signal_sq, sizeof(double)), 0);
        cr_assert_eq(state.stats[u].elements, some[u].elements);
        cr_assert_eq(state.stats[u].saturated, some[u].saturated);
        cr_assert_eq(state.stats[u].flushed, some[u].flushed);
        cr_assert_eq(state.stats[u].requantized_blocks, some[u].requantized_blocks);
    }
}

/* What was done is forgotten, and stays so. */
Test(journal, restarts)
{
    uint64_t head;

    make_source(true);
    expect_opens_journal();
    cr_assert(journal.fresh);
    head = journal.size;
    do_some();
    expect_opens_journal();
    cr_assert_not(journal.fresh);
    cr_assert_eq(mp_journal_restart(&journal, &plan.work, &state, &err), 0);
    expect_done(NO_UNITS, NO_TENSORS);
    cr_assert_eq(journal.size, head);
    expect_opens_journal();
    expect_done(NO_UNITS, NO_TENSORS);
    cr_assert_eq(mp_journal_done(&journal, &plan.work, &state, (uint64_t[]){3}, 1, &err), 0);
    expect_opens_journal();
    expect_done("000100000000", NO_TENSORS);
}

/* A journal that says so at its beginning, and what such a run adds. */
Test(journal, tells_how_files_are_compressed)
{
    static const char *const strange[] = {"stage 7\n", "stage  0\n", "plain 24\n", "plain\n"};
    char *text, *begin;
    uint64_t length;

    make_source(true);
    expect_opens_journal();
    cr_assert_not(state.at_once);
    state.at_once = true;
    cr_assert_eq(mp_journal_restart(&journal, &plan.work, &state, &err), 0);
    do_some();
    cr_assert_eq(mp_journal_done(&journal, &plan.work, &state, &plan.work.num_units, 1, &err), 0);
    cr_assert_eq(mp_journal_plain(&journal, 23, &err), 0);
    expect_opens_journal();
    cr_assert(state.at_once && state.stage_done[0] && state.plain[23] && !state.plain[22]);
    text = journal_text(&length);
    begin = strstr(text, "\nbegin\nat once\n");
    cr_assert(begin && strstr(begin, "\nstage 0\n") && strstr(begin, "\nplain 23\n"));
    free(text);
    /* Numbers that are too large, or not printed so. */
    for (size_t i = 0; i < sizeof strange / sizeof strange[0]; i++) {
        append_and_open(strange[i], strlen(strange[i]));
        cr_assert_eq(journal.size, length, "%s", strange[i]);
    }
    cr_assert_eq(mp_journal_restart(&journal, &plan.work, &state, &err), 0);
    expect_opens_journal();
    cr_assert(state.at_once && !state.stage_done[0] && !state.plain[23]);
}

Test(journal, lossless_runs_have_no_errors)
{
    make_source(true);
    cr_assert_null(state.stats);
}

/* ------------------------------------------------------------------------
 * Lines that do not count
 */

/* After a crash the file may end anywhere. */
Test(journal, a_torn_end_is_dropped)
{
    uint64_t length, head;
    char *text;

    make_source(true);
    expect_opens_journal();
    head = journal.size;
    do_some();
    text = journal_text(&length);
    for (uint64_t end = length; end > head; end--) {
        uint64_t whole = end;

        while (text[whole - 1] != '\n')
            whole--;
        mp_journal_close(&journal);
        cr_assert_eq(truncate(in_dir("journal"), (off_t)end), 0);
        expect_opens_journal();
        cr_assert_eq(journal.size, whole, "%llu of %llu bytes", (unsigned long long)end,
                     (unsigned long long)length);
        cr_assert_eq(state.unit_done[7], whole >= head + strlen("unit 7\n"));
        cr_assert_eq(state.unit_done[0], whole >= head + strlen("unit 7\nunit 0\n"));
        cr_assert_eq(state.tensor_done[4], whole == length);
    }
    free(text);
}

/* Before the head was whole nothing had been done. */
Test(journal, a_torn_head_begins_anew)
{
    uint64_t length, torn;
    char *text, *again;

    make_source(true);
    expect_opens_journal();
    text = journal_text(&length);
    for (torn = 0; torn < length; torn += 7) {
        mp_journal_close(&journal);
        cr_assert_eq(truncate(in_dir("journal"), (off_t)torn), 0);
        expect_opens_journal();
        again = journal_text(NULL);
        cr_assert_str_eq(again, text);
        free(again);
    }
    free(text);
}

/* Reading stops at the first line that is not one of ours. */
Test(journal, foreign_lines_end_it)
{
    static const char *const lines[] = {
        "unit 12\n",
        "unit 18446744073709551616\n",
        "unit -1\n",
        "unit +3\n",
        "unit 03\n",
        "unit  3\n",
        " unit 3\n",
        "unit3\n",
        "unit 3 \n",
        "unit 3\r\n",
        "unit 3 0x1p+0 0x1p+0 1 2 3 4\n",
        "unit x\n",
        "unit\n",
        "units 3\n",
        "\n",
        "begin\n",
        "tensor 24 00112233445566778899aabbccddeeff\n",
        "tensor 3 00112233445566778899AABBCCDDEEFF\n",
        "tensor 3 00112233445566778899aabbccddeef\n",
        "tensor 3 00112233445566778899aabbccddeeff0\n",
        "tensor 3 00112233445566778899aabbccddeeff 0\n",
        "tensor 3\n",
        "tensor -1 00112233445566778899aabbccddeeff\n",
    };

    make_source(true);
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        uint64_t before, length;
        char *text;

        mp_journal_close(&journal);
        unlink(in_dir("journal"));
        expect_opens_journal();
        do_some();
        before = journal.size;
        append_and_open(lines[i], strlen(lines[i]));
        expect_done(SOME_UNITS, SOME_TENSORS);
        cr_assert_eq(journal.size, before, "%s", lines[i]);
        append_and_open("unit 3\n", 7);
        expect_done("100100010001", SOME_TENSORS);
        text = journal_text(&length);
        cr_assert_eq(length, before + 7, "what does not count is cut off");
        free(text);
    }
}

/* What the system had not written yet is zeros. */
Test(journal, zeros_end_it)
{
    make_source(true);
    expect_opens_journal();
    do_some();
    append_and_open("\0\0\0\0unit 3\n", 11);
    expect_done(SOME_UNITS, SOME_TENSORS);
}

Test(journal, errors_that_are_not_whole_end_it)
{
    static const char *const lines[] = {
        "unit 3\n",
        "unit 3 0x1p+0 0x1p+0 1 2 3\n",
        "unit 3 0x1p+0 0x1p+0 1 2 3 4 5\n",
        "unit 3 1.0 0x1p+0 1 2 3 4\n",
        "unit 3 0x1p+0 0x1p+0 1 -2 3 4\n",
        "unit 3 0x1p+0 0x1p+0 1 2 3 99999999999999999999\n",
    };

    make_source(false);
    expect_opens_journal();
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        append_and_open(lines[i], strlen(lines[i]));
        expect_done(NO_UNITS, NO_TENSORS);
    }
    append_and_open("unit 3 0x1p+0 0x1p+0 1 2 3 4\n", 29);
    expect_done("000100000000", NO_TENSORS);
}

/* ------------------------------------------------------------------------
 * Other terms
 */

static void expect_other_terms(const char *had, const char *has)
{
    char message[1024];

    make_plan();
    cr_assert_eq(open_journal(), MP_ERR_INPUT);
    cr_assert_eq(err.code, MP_ERR_INPUT);
    snprintf(message, sizeof message,
             "cannot resume: the interrupted run had \"%s\", this one has \"%s\"; start over with "
             "--force",
             had, has);
    cr_assert_str_eq(err.message, message);
    expect_done(NO_UNITS, NO_TENSORS);
}

Test(journal, of_other_flags)
{
    const mp_repack_options before = {.target = mp_target_find("megamoe-w4a8"), .ep = 3};

    make_source(true);
    expect_opens_journal();
    do_some();
    options.max_shard_size = 100000;
    expect_other_terms("max-shard-size 5000000000", "max-shard-size 100000");
    options = before;
    options.quant.amax_floor = 0.5f;
    expect_other_terms("rounding deepgemm scale-rule ceil amax-floor 0",
                       "rounding deepgemm scale-rule ceil amax-floor 0.5");
    options = before;
    options.requantize_shared = true;
    expect_other_terms("quantize no allow-nonfinite 0 requantize-shared 0",
                       "quantize no allow-nonfinite 0 requantize-shared 1");
    options = before;
    options.drop = "input_scale,bias";
    expect_other_terms("drop nothing", "drop bias,input_scale");
    options = before;
    make_plan();
    expect_opens_journal();
    expect_done(SOME_UNITS, SOME_TENSORS);
}

Test(journal, of_another_number_of_ranks)
{
    make_source(true);
    expect_opens_journal();
    options.ep = 1;
    mp_repack_plan_release(&plan);
    cr_assert_eq(mp_repack_plan_init(&plan, &catalog, &options, &err), 0);
    cr_assert_eq(open_journal(), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "cannot resume: the interrupted run had \"ep 3\", this one has "
                                  "\"ep 1\"; start over with --force");
}

Test(journal, of_another_placement)
{
    int32_t map[] = {0, 1, 2}, other[] = {2, 1, 0};
    mp_placement placement = {.layers = 1, .num_logical = 3, .num_physical = 3, .map = map};

    make_source(true);
    options.placement = &placement;
    make_plan();
    expect_opens_journal();
    placement.map = other;
    make_plan();
    cr_assert_eq(open_journal(), MP_ERR_INPUT);
    cr_assert_not_null(strstr(err.message, "the interrupted run had \"placement 3 "), "%s",
                       err.message);
}

Test(journal, of_other_layers_and_ranks)
{
    make_source(true);
    expect_opens_journal();
    options.ranks = "0,1";
    mp_repack_plan_release(&plan);
    cr_assert_eq(mp_repack_plan_init(&plan, &catalog, &options, &err), 0);
    cr_assert_eq(open_journal(), MP_ERR_INPUT);
    cr_assert_not_null(strstr(err.message, "had \"ranks 3\", this one has \"ranks 2\""), "%s",
                       err.message);
    options.ranks = NULL;
    options.layers = "0";
    mp_repack_plan_release(&plan);
    cr_assert_eq(mp_repack_plan_init(&plan, &catalog, &options, &err), 0);
    cr_assert_eq(open_journal(), MP_ERR_INPUT);
    cr_assert_not_null(strstr(err.message, "had \"layers 2\", this one has \"layers 1\""), "%s",
                       err.message);
}

Test(journal, of_another_source)
{
    make_source(true);
    expect_opens_journal();
    mp_repack_plan_release(&plan);
    add_tensor(MP_BF16, 7, 0, "layers.0.ffn_norm.weight");
    expect_model();
    make_plan();
    cr_assert_eq(open_journal(), MP_ERR_INPUT);
    cr_assert_not_null(strstr(err.message, "had \"source model.safetensors "), "%s", err.message);
}

/* A name with line feeds ends the head before its time, if it is not escaped. */
Test(journal, of_a_layer_that_says_what_is_done)
{
    char *text;

    add_fp4_layer("a\nbegin\nunit 0\nunit 1\nx.layers.0", 3, 256, 128);
    expect_model();
    make_plan();
    expect_opens_journal();
    mp_journal_close(&journal);
    expect_opens_journal();
    for (uint64_t u = 0; u < plan.work.num_units; u++)
        cr_expect_not(state.unit_done[u]);
    text = journal_text(NULL);
    cr_assert_str_eq(strstr(text, "\nbegin\n"), "\nbegin\n");
    free(text);
}

/* The same names, shapes and size, other weights. */
Test(journal, of_a_source_with_other_weights)
{
    uint64_t size;
    FILE *f;

    make_source(true);
    expect_opens_journal();
    size = catalog.checkpoint.shards[0].size;
    f = fopen(in_dir("model.safetensors"), "r+b");
    cr_assert(f && fseek(f, (long)size - 1, SEEK_SET) == 0 && fputc(1, f) == 1 && fclose(f) == 0);
    cr_assert_eq(open_journal(), MP_ERR_INPUT);
    cr_assert_not_null(strstr(err.message, "had \"weights model.safetensors "), "%s", err.message);
}

/* ------------------------------------------------------------------------
 * Two at once
 */

Test(journal, is_one_process_alone)
{
    mp_journal other = {.fd = -1};
    mp_progress_state others;
    char *terms;
    char message[sizeof dir + 64];

    make_source(true);
    expect_opens_journal();
    terms = terms_of_plan();
    cr_assert_eq(mp_progress_init(&others, &plan.work, &err), 0);
    cr_assert_eq(mp_journal_open(&other, dir, &plan.work, NULL, terms, &others, &err), MP_ERR_IO);
    snprintf(message, sizeof message, "%s: another process is at work there", dir);
    cr_assert_str_eq(err.message, message);
    cr_assert_eq(other.fd, -1);
    cr_assert_eq(mp_journal_check_free(dir, "journal", &err), MP_ERR_IO);
    cr_assert_str_eq(err.message, message);
    mp_journal_close(&journal);
    cr_assert_eq(mp_journal_check_free(dir, "journal", &err), 0);
    cr_assert_eq(mp_journal_open(&other, dir, &plan.work, NULL, terms, &others, &err), 0);
    mp_journal_close(&other);
    free(terms);
    mp_progress_release(&others);
    unlink(in_dir("journal"));
    cr_assert_eq(mp_journal_check_free(dir, "journal", &err), 0, "none there is free");
}
