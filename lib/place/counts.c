/* SPDX-License-Identifier: Apache-2.0 */
/* Recorded counts: steps from several inputs, combined and summed into windows.
 *
 *     mp_steps       [steps][layers][N] of one file, JSON, CSV or .pt, as a reader returns it
 *     mp_recording   [steps][layers][N] of all files, in the order given
 *     mp_counts      [windows][layers][N], and their sum, as float32
 *
 * The ranks of an engine record in parallel: steps of the same forward pass are added up, all
 * others are appended. CSV names only experts that were chosen, so a file may lack the last experts
 * or whole layers. Its sizes are therefore guesses, which later inputs may enlarge. Any other
 * disagreement means a file from another model and is refused.
 *
 * Counts are added in float64 in the order of the files and rounded to float32 once, so results do
 * not depend on how a recording was split into files. COUNTS_MAX bounds a recording before memory
 * is allocated, whatever a header claims. All of it runs on one thread. */
#include "place/counts.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

/* Counts beyond this are no counts: a thousand steps of a thousand layers of a thousand experts. */
#define COUNTS_MAX ((uint64_t)1 << 30)

/* A table of more cells than this is not what a few lines of text can ask for. */
#define CELLS_MAX ((uint64_t)1 << 24)

void mp_counts_release(mp_counts *c)
{
    free(c->count);
    free(c->window);
    *c = (mp_counts){0};
}

void mp_recording_release(mp_recording *r)
{
    free(r->layer_ids);
    free(r->count);
    free(r->pass);
    *r = (mp_recording){0};
}

int mp_steps_init(mp_steps *s, uint64_t steps, uint64_t layers, uint64_t num_logical, mp_error *err)
{
    uint64_t rows, all;
    *s = (mp_steps){0};
    if (steps == 0 || layers == 0 || num_logical == 0)
        return mp_fail(err, MP_ERR_INPUT, "no %s in the counts",
                       steps == 0    ? "steps"
                       : layers == 0 ? "layers"
                                     : "experts");
    if (!mp_mul_u64(steps, layers, &rows) || !mp_mul_u64(rows, num_logical, &all) ||
        all > COUNTS_MAX)
        return mp_fail(err, MP_ERR_INPUT,
                       "%" PRIu64 " steps of %" PRIu64 " layers of %" PRIu64
                       " experts are more counts than any model has",
                       steps, layers, num_logical);
    s->steps = steps;
    s->layers = (uint32_t)layers;
    s->num_logical = (uint32_t)num_logical;
    s->count = mp_alloc_zeroed(all, sizeof(*s->count));
    return s->count ? 0 : mp_fail_memory(err);
}

int mp_check_cells(uint64_t layers, uint64_t num_logical, mp_error *err)
{
    /* Both are of 32 bits, or one more. */
    if (layers * num_logical <= CELLS_MAX)
        return 0;
    return mp_fail(err, MP_ERR_INPUT,
                   "%" PRIu64 " layer%s of %" PRIu64 " expert%s are more than any model has",
                   layers, mp_plural(layers), num_logical, mp_plural(num_logical));
}

void mp_steps_release(mp_steps *s)
{
    free(s->count);
    free(s->layer_ids);
    free(s->pass);
    *s = (mp_steps){0};
}

/* Readers have their own ways to name a place, but all of them know these three numbers. */
int mp_check_count(double value, bool has_steps, uint64_t step, uint64_t layer, uint64_t expert,
                   mp_error *err)
{
    char where[48] = "";
    if (isfinite(value) && value >= 0)
        return 0;
    if (has_steps)
        snprintf(where, sizeof(where), "step %" PRIu64 ", ", step);
    return mp_fail(err, MP_ERR_INPUT,
                   "logical_count: %srow %" PRIu64 ", column %" PRIu64 ": %g, expected %s", where,
                   layer, expert, value, isfinite(value) ? "0 or more" : "a finite number");
}

/* ------------------------------------------------------------------------
 * Putting inputs together
 */

/* Layers of both, ascending. Returns how many; ids: room for all of either. */
static uint32_t unite(const mp_recording *r, const mp_steps *s, uint32_t *ids)
{
    uint32_t i = 0, j = 0, count = 0;
    while (i < r->layers || j < s->layers) {
        bool first = j == s->layers || (i < r->layers && r->layer_ids[i] <= s->layer_ids[j]);
        uint32_t id = first ? r->layer_ids[i++] : s->layer_ids[j++];
        if (count == 0 || ids[count - 1] != id)
            ids[count++] = id;
    }
    return count;
}

/* The row of a layer number; row `row` where layers have none. */
static uint32_t row_of(const uint32_t *ids, uint32_t layers, const uint32_t *of_ids, uint32_t row)
{
    uint32_t found = row;
    for (found = 0; ids && found < layers && ids[found] != of_ids[row];)
        found++;
    return ids ? found : row;
}

/* Adds counts [steps][from_layers][from_n] to [steps][layers][n], which has at least as much. */
static void spread(const double *from, uint64_t steps, uint32_t from_layers, uint32_t from_n,
                   const uint32_t *from_ids, double *to, uint32_t layers, uint32_t n,
                   const uint32_t *ids)
{
    for (uint64_t step = 0; step < steps; step++) {
        for (uint32_t layer = 0; layer < from_layers; layer++) {
            const double *source = from + (step * from_layers + layer) * from_n;
            double *row = to + (step * layers + row_of(ids, layers, from_ids, layer)) * n;
            for (uint32_t e = 0; e < from_n; e++)
                row[e] += source[e];
        }
    }
}

/* Gives the recording the layers and experts of both. It copies everything, but sizes change once
 * or twice per recording. */
static int grow(mp_recording *r, const mp_steps *s, mp_error *err)
{
    uint32_t n = r->num_logical > s->num_logical ? r->num_logical : s->num_logical;
    uint32_t layers = r->layers, *ids = NULL;
    if (r->layer_ids) {
        ids = mp_alloc((uint64_t)r->layers + s->layers, sizeof(*ids));
        if (!ids)
            return mp_fail_memory(err);
        layers = unite(r, s, ids);
    }
    mp_steps wide;
    int rc = mp_check_cells(layers, n, err);
    if (rc == 0)
        rc = mp_steps_init(&wide, r->steps, layers, n, err);
    if (rc != 0) {
        free(ids);
        return rc;
    }
    spread(r->count, r->steps, r->layers, r->num_logical, r->layer_ids, wide.count, layers, n, ids);
    free(r->count);
    free(r->layer_ids);
    r->count = wide.count;
    r->layer_ids = ids;
    r->layers = layers;
    r->num_logical = n;
    return 0;
}

/* Whether both are of the same model. What CSV files do not name was not chosen. */
static int agree(const mp_recording *r, const mp_steps *s, mp_error *err)
{
    if (!r->layer_ids != !s->layer_ids)
        return mp_fail(err, MP_ERR_INPUT, "its layers are%s numbered, those of inputs before are%s",
                       s->layer_ids ? "" : " not", s->layer_ids ? " not" : "");
    /* More experts than before are fine if the earlier number was a guess, fewer if this one is. */
    if (s->num_logical > r->num_logical ? !r->guessed
                                        : s->num_logical < r->num_logical && !s->guessed)
        return mp_fail(err, MP_ERR_INPUT, "%u experts, inputs before have %u", s->num_logical,
                       r->num_logical);
    bool sparse = r->guessed && s->guessed;
    if (s->layers != r->layers && !sparse)
        return mp_fail(err, MP_ERR_INPUT, "%u layer%s, inputs before have %u", s->layers,
                       mp_plural(s->layers), r->layers);
    for (uint32_t layer = 0; s->layer_ids && !sparse && layer < s->layers; layer++)
        if (s->layer_ids[layer] != r->layer_ids[layer])
            return mp_fail(err, MP_ERR_INPUT, "row %u is layer %u, in inputs before layer %u",
                           layer, s->layer_ids[layer], r->layer_ids[layer]);
    return 0;
}

/* The step that counts of a forward pass are added to: an earlier one of the same pass, or a new
 * one, before those of later passes. */
static uint64_t place_step(mp_recording *r, int64_t pass)
{
    uint64_t at = r->steps, size = (uint64_t)r->layers * r->num_logical;
    for (uint64_t step = r->steps; pass >= 0 && step > 0 && r->pass[step - 1] >= pass; step--)
        at = step - 1;
    if (pass >= 0 && at < r->steps && r->pass[at] == pass)
        return at;
    memmove(r->count + (at + 1) * size, r->count + at * size,
            (size_t)((r->steps - at) * size) * sizeof(*r->count));
    memmove(r->pass + at + 1, r->pass + at, (size_t)(r->steps - at) * sizeof(*r->pass));
    memset(r->count + at * size, 0, (size_t)size * sizeof(*r->count));
    r->pass[at] = pass;
    r->steps++;
    return at;
}

/* The first input's layers and experts become the recording's; later ones have to agree. */
static int add(mp_recording *r, mp_steps *s, mp_error *err)
{
    int rc = 0;
    if (r->steps == 0) {
        r->layers = s->layers;
        r->num_logical = s->num_logical;
        r->layer_ids = s->layer_ids;
        r->guessed = s->guessed;
        s->layer_ids = NULL;
    } else {
        rc = agree(r, s, err);
        if (rc == 0 && (r->guessed || s->guessed))
            rc = grow(r, s, err);
        r->guessed &= s->guessed;
    }
    uint64_t size = (uint64_t)r->layers * r->num_logical, all;
    if (rc != 0)
        return rc;
    if (!mp_mul_u64(r->steps + s->steps, size, &all) || all > COUNTS_MAX)
        return mp_fail(err, MP_ERR_INPUT, "more counts than any model has");
    /* Make room for all steps, even though those of known passes will not use theirs. */
    double *count = realloc(r->count, (size_t)all * sizeof(*count));
    r->count = count ? count : r->count;
    /* Keep what realloc returned even if the other call fails: the old block is gone. */
    int64_t *pass = realloc(r->pass, (size_t)(r->steps + s->steps) * sizeof(*pass));
    r->pass = pass ? pass : r->pass;
    if (!count || !pass)
        return mp_fail_memory(err);
    const uint32_t *ids = s->layer_ids ? r->layer_ids : NULL;
    for (uint64_t step = 0; step < s->steps; step++) {
        uint64_t at = place_step(r, s->pass ? s->pass[step] : -1);
        spread(s->count + step * s->layers * s->num_logical, 1, s->layers, s->num_logical,
               s->layer_ids, r->count + at * size, r->layers, r->num_logical, ids);
    }
    return 0;
}

int mp_recording_add(mp_recording *r, const char *text, uint64_t length, uint32_t num_logical,
                     mp_error *err)
{
    static const char legacy[] = "\200\002\212";
    mp_steps s = {0};
    uint64_t start = 0;
    int rc;
    while (start < length && memchr(" \t\r\n", text[start], 4))
        start++;
    /* Go by content, not by name: recordings come from pipes and under any name. */
    if (length >= 4 && memcmp(text, "PK\3\4", 4) == 0)
        rc = mp_counts_read_torch(&s, text, length, err);
    else if (length >= 3 && memcmp(text, legacy, 2) == 0)
        rc = mp_fail(err, MP_ERR_UNSUPPORTED,
                     "a pickle without torch's zip archive%s; load it and save it again: python -c "
                     "\"import sys, torch; torch.save(torch.load(sys.argv[1]), sys.argv[2])\" "
                     "OLD.pt NEW.pt",
                     memcmp(text, legacy, 3) == 0 ? ", as torch wrote it before 1.6" : "");
    else if (start == length)
        rc = mp_fail(err, MP_ERR_INPUT, "counts: the file is empty");
    else if (text[start] == '{' || text[start] == '[')
        rc = mp_counts_read_json(&s, text, length, err);
    else
        rc = mp_counts_read_csv(&s, text, length, num_logical, err);
    if (rc == 0 && num_logical != 0 && s.num_logical != num_logical)
        rc = mp_fail(err, MP_ERR_INPUT, "counts of %u experts, the model has %u", s.num_logical,
                     num_logical);
    if (rc == 0)
        rc = add(r, &s, err);
    mp_steps_release(&s);
    return rc;
}

int mp_recording_add_steps(mp_recording *r, const double *count, uint64_t steps, uint32_t layers,
                           uint32_t num_logical, const uint32_t *layer_ids, mp_error *err)
{
    mp_steps s;
    int rc = mp_steps_init(&s, steps, layers, num_logical, err);
    for (uint64_t i = 0; rc == 0 && i < steps * layers * num_logical; i++) {
        rc = mp_check_count(count[i], steps > 1, i / num_logical / layers, i / num_logical % layers,
                            i % num_logical, err);
        s.count[i] = count[i];
    }
    for (uint32_t layer = 1; rc == 0 && layer_ids && layer < layers; layer++)
        if (layer_ids[layer] <= layer_ids[layer - 1])
            rc = mp_fail(err, MP_ERR_INPUT, "layer %u after layer %u", layer_ids[layer],
                         layer_ids[layer - 1]);
    if (rc == 0 && layer_ids && !(s.layer_ids = mp_alloc(layers, sizeof(*layer_ids))))
        rc = mp_fail_memory(err);
    if (rc == 0 && layer_ids)
        memcpy(s.layer_ids, layer_ids, layers * sizeof(*layer_ids));
    if (rc == 0)
        rc = add(r, &s, err);
    mp_steps_release(&s);
    return rc;
}

/* ------------------------------------------------------------------------
 * Adding up
 */

static bool is_zero(const mp_recording *r, uint64_t step)
{
    uint64_t size = (uint64_t)r->layers * r->num_logical;
    for (uint64_t i = 0; i < size; i++)
        if (r->count[step * size + i] > 0)
            return false;
    return true;
}

/* Windows of so many steps; the last may have up to half as many more or fewer. A window of very
 * few steps would count as much as any other and be mostly noise. */
static uint64_t windows_of(uint64_t steps, uint64_t window)
{
    uint64_t windows = window == 0 || window >= steps ? 1 : steps / window;
    if (windows > 0 && window > 0 && window < steps && 2 * (steps % window) >= window)
        windows++;
    return windows;
}

/* Floats of sums. */
static int narrow(const double *sum, uint64_t count, uint32_t num_logical, float *out,
                  mp_error *err)
{
    for (uint64_t i = 0; i < count; i++) {
        out[i] = (float)sum[i];
        if (!isfinite(out[i]))
            return mp_fail(err, MP_ERR_INPUT,
                           "logical_count: row %" PRIu64 ", column %" PRIu64
                           ": %g does not fit a float32",
                           i / num_logical, i % num_logical, sum[i]);
    }
    return 0;
}

int mp_recording_sum(const mp_recording *r, uint64_t window, mp_counts *c, mp_error *err)
{
    uint64_t size = (uint64_t)r->layers * r->num_logical, used = 0, at = 0;
    *c = (mp_counts){.layers = r->layers, .num_logical = r->num_logical};
    if (r->steps == 0)
        return mp_fail(err, MP_ERR_INPUT, "no counts");
    for (uint64_t step = 0; step < r->steps; step++)
        used += !is_zero(r, step);
    uint64_t windows = windows_of(used, window), least = used / (MP_COUNTS_WINDOWS_MAX + 1);
    if (windows > MP_COUNTS_WINDOWS_MAX) {
        while (least == 0 || windows_of(used, least) > MP_COUNTS_WINDOWS_MAX)
            least++;
        return mp_fail(err, MP_ERR_USAGE,
                       "%" PRIu64 " windows, at most %u: take %" PRIu64 " steps for one, or more",
                       windows, MP_COUNTS_WINDOWS_MAX, least);
    }
    c->windows = (uint32_t)windows;
    double *sum = mp_alloc_zeroed(windows * size, sizeof(*sum));
    c->count = mp_alloc(size, sizeof(*c->count));
    c->window = windows > 1 ? mp_alloc(windows * size, sizeof(*c->window)) : NULL;
    int rc = sum && c->count && (windows == 1 || c->window) ? 0 : mp_fail_memory(err);
    for (uint64_t step = 0; rc == 0 && step < r->steps; step++) {
        /* An unused part of the recorder's buffer. */
        if (is_zero(r, step))
            continue;
        uint64_t w = windows == 1 ? 0 : at / window < windows ? at / window : windows - 1;
        for (uint64_t i = 0; i < size; i++)
            sum[w * size + i] += r->count[step * size + i];
        at++;
    }
    if (rc == 0 && windows > 1)
        rc = narrow(sum, windows * size, r->num_logical, c->window, err);
    /* All windows are written, so the first one's sums can become the total. */
    for (uint64_t i = size; rc == 0 && i < windows * size; i++)
        sum[i % size] += sum[i];
    if (rc == 0)
        rc = narrow(sum, size, r->num_logical, c->count, err);
    free(sum);
    if (rc != 0)
        mp_counts_release(c);
    return rc;
}
