/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a journal, as they are and behind terms that fit: refused with a message, or
 * what is done is done again when it is opened again. */
#include "fuzz.h"
#include "run/terms.h"
#include "write/plan.h"
#include "write/repack.h"

static mp_catalog catalog;
static mp_repack_plan plans[2]; /* lossless, and requantizing */

static void put_tensor(mp_tensor_spec *spec, mp_dtype dtype, const uint64_t shape[2],
                       const char *name)
{
    *spec = (mp_tensor_spec){name, dtype, 2, shape};
}

/* One layer of one expert that is stored as mxfp4, and one that is plain. */
static void put_source(void)
{
    static const uint64_t whole[] = {128, 128}, packed[] = {128, 64}, scale[] = {128, 4};
    static const char *const plain[] = {"layers.1.ffn.experts.0.w1.weight",
                                        "layers.1.ffn.experts.0.w2.weight",
                                        "layers.1.ffn.experts.0.w3.weight"};
    static const char *const weights[] = {"layers.0.ffn.experts.0.w1.weight",
                                          "layers.0.ffn.experts.0.w2.weight",
                                          "layers.0.ffn.experts.0.w3.weight"};
    static const char *const scales[] = {"layers.0.ffn.experts.0.w1.scale",
                                         "layers.0.ffn.experts.0.w2.scale",
                                         "layers.0.ffn.experts.0.w3.scale"};
    mp_tensor_spec specs[9];
    uint64_t bytes, offsets[10];
    char *header;

    for (int p = 0; p < 3; p++) {
        put_tensor(&specs[p], MP_BF16, whole, plain[p]);
        put_tensor(&specs[3 + p], MP_I8, packed, weights[p]);
        put_tensor(&specs[6 + p], MP_F8_E8M0, scale, scales[p]);
    }
    require(mp_safetensors_header(specs, 9, NULL, 0, 8, &header, &bytes, offsets, NULL) == 0,
            "header");
    put("model.safetensors", header, bytes, offsets[9]);
    free(header);
}

static void make_plans(void)
{
    mp_repack_options options = {.target = mp_target_find("megamoe-w4a8"), .ep = 1};
    mp_error err = {0};

    put_source();
    require(mp_catalog_open(&catalog, in_dir("model.safetensors"), NULL, &err) == 0, err.message);
    options.layers = "0";
    require(mp_repack_plan_init(&plans[0], &catalog, &options, &err) == 0, err.message);
    options.layers = "1";
    options.quantize = true;
    options.quantize_to = MP_SCHEME_MXFP4;
    require(mp_repack_plan_init(&plans[1], &catalog, &options, &err) == 0, err.message);
}

static bool same_state(const mp_progress_state *a, const mp_progress_state *b,
                       const mp_repack_plan *plan)
{
    bool same = true;

    for (uint64_t u = 0; u < plan->work.num_units; u++) {
        same &= a->unit_done[u] == b->unit_done[u];
        if (a->stats && a->unit_done[u])
            same &= memcmp(&a->stats[u], &b->stats[u], sizeof *a->stats) == 0;
    }
    for (size_t t = 0; t < plan->work.num_outputs; t++)
        same &= a->tensor_done[t] == b->tensor_done[t] && strcmp(a->digest[t], b->digest[t]) == 0;
    return same;
}

/* Opens the journal that is there; false if it is of other terms. */
static bool open_journal(const mp_repack_plan *plan, mp_progress_state *state, uint64_t *size)
{
    mp_job job = mp_repack_job(plan);
    mp_journal journal;
    mp_error err = {0};
    bool opened;
    char *terms;

    require(mp_progress_init(state, &plan->work, &err) == 0, err.message);
    require(mp_terms_text(&job, &terms, &err) == 0, err.message);
    opened = mp_journal_open(&journal, dir, &plan->work, NULL, terms, state, &err) == 0;
    free(terms);
    if (!opened)
        require_message(&err);
    *size = journal.size;
    mp_journal_close(&journal);
    return opened;
}

static void check_journal(const mp_repack_plan *plan)
{
    mp_progress_state state, again;
    uint64_t size, size_again;

    if (open_journal(plan, &state, &size)) {
        require(open_journal(plan, &again, &size_again), "opens once only");
        require(size == size_again, "size");
        require(same_state(&state, &again, plan), "another state");
        mp_progress_release(&again);
    }
    mp_progress_release(&state);
}

/* The head of a plan's journal, and data behind it. */
static void put_behind_head(const mp_repack_plan *plan, const uint8_t *data, size_t size)
{
    mp_progress_state state;
    uint64_t head;
    FILE *file;

    unlink(in_dir(MP_JOURNAL_NAME));
    require(open_journal(plan, &state, &head), "a new journal");
    mp_progress_release(&state);
    file = fopen(in_dir(MP_JOURNAL_NAME), "ab");
    require(file && fwrite(data, 1, size, file) == size && fclose(file) == 0, "journal");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (dir[0] == '\0') {
        make_dir();
        make_plans();
    }
    for (int p = 0; p < 2; p++) {
        put(MP_JOURNAL_NAME, data, size, 0);
        check_journal(&plans[p]);
        put_behind_head(&plans[p], data, size);
        check_journal(&plans[p]);
    }
    return 0;
}
