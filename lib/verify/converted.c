/* SPDX-License-Identifier: Apache-2.0 */
/* A converted checkpoint against its original. Nobody wrote down what the converter did: there is
 * no manifest, only two checkpoints and their catalogs. So layers are paired by number, experts by
 * id, and what may have changed is told from the storage of each: a side that has scales was
 * quantized and is held against the bound of its scheme; one that has none was to stay as it is,
 * bit for bit unless a tolerance is given (sides.h). Tensors outside of experts are left to
 * converted_modules.c.
 *
 * Structure comes first and decides whether anything else has a meaning: other sizes, or a catalog
 * with problems, end the check there. Only layers with as many experts on both sides become pairs,
 * so an id that is good for one side is good for the other.
 *
 * Sides of all pairs are numbered through and run on all threads; pairs, catalogs and the sample
 * are only read by then. Faults and progress lock for themselves (faults.h, parallel.h). */
#include "verify/converted.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/parallel.h"
#include "base/select.h"
#include "base/words.h"
#include "checkpoint/complete.h"
#include "checkpoint/matrix.h"
#include "verify/converted_modules.h"
#include "verify/faults.h"
#include "verify/sample.h"
#include "verify/sides.h"

/* A layer that both have. */
typedef struct layer_pair {
    const mp_moe_layer *have, *source;
    size_t index;     /* of the source's layers */
    uint32_t experts; /* the shared one counted, if there is one */
    uint64_t first;   /* number of its first side */
} layer_pair;

typedef struct converted {
    const mp_verify_options *options;
    const mp_context *context;
    mp_faults faults;
    mp_verify_report *report;
    mp_catalog have, source;
    mp_exceptions exceptions; /* of have */
    bool *selected;           /* [source.num_layers] */
    char **prefixes;          /* the same */
    layer_pair *pairs;
    size_t num_pairs;
    uint64_t sides;
    mp_meter meter; /* bytes */
    bool *sample;   /* [source.num_layers][most_experts], or null: all */
    uint32_t most_experts;
} converted;

/* ------------------------------------------------------------------------
 * Structure
 */

static mp_spot spot_at(mp_verify_level level, int64_t layer)
{
    return (mp_spot){level, -1, layer, -1, NULL, -1};
}

static void report_problems(converted *c)
{
    const mp_problems *problems = &c->have.problems;
    const mp_spot spot = spot_at(MP_VERIFY_STRUCTURE, -1);

    /* Count problems beyond those whose text was kept, so that the number of faults is the true
     * one. */
    for (uint64_t i = 0; i < problems->count; i++)
        mp_fault_add(&c->faults, &spot, "%s",
                     i < MP_PROBLEMS_KEPT && problems->text[i] ? problems->text[i]
                                                               : "a further problem");
}

static const mp_moe_layer *find_layer(const mp_catalog *catalog, const mp_moe_layer *like)
{
    for (size_t i = 0; i < catalog->num_layers; i++)
        if (catalog->layers[i].mtp == like->mtp && catalog->layers[i].number == like->number)
            return &catalog->layers[i];
    return NULL;
}

/* Whether a layer can be compared with its original. */
static bool check_layer(converted *c, const mp_moe_layer *have, const mp_moe_layer *source,
                        size_t index)
{
    const mp_spot spot = spot_at(MP_VERIFY_STRUCTURE, (int64_t)index);

    if (!have)
        mp_fault_add(&c->faults, &spot, "is missing");
    else if (have->num_experts != source->num_experts)
        mp_fault_add(&c->faults, &spot, "%u expert%s, the source has %u", have->num_experts,
                     mp_plural(have->num_experts), source->num_experts);
    else if (have->has_shared != source->has_shared)
        mp_fault_add(&c->faults, &spot, "%s",
                     source->has_shared ? "the shared expert is missing"
                                        : "a shared expert, the source has none");
    else if (have->ungated) /* no source is: mp_catalog_check refuses it */
        mp_fault_add(&c->faults, &spot, "experts have no gate, those of the source have one");
    else
        return true;
    return false;
}

/* Fills pairs and finds what has no partner. */
static int pair_layers(converted *c, mp_error *err)
{
    c->pairs = mp_alloc(c->source.num_layers, sizeof *c->pairs);
    if (!c->pairs)
        return mp_fail_memory(err);
    for (size_t i = 0; i < c->source.num_layers; i++) {
        const mp_moe_layer *source = &c->source.layers[i];
        const mp_moe_layer *have = find_layer(&c->have, source);

        if (!check_layer(c, have, source, i) || !c->selected[i])
            continue;
        c->pairs[c->num_pairs++] = (layer_pair){.have = have,
                                                .source = source,
                                                .index = i,
                                                .experts = source->num_experts + source->has_shared,
                                                .first = c->sides};
        /* Sides of a layer that is left out get no number. */
        c->sides += (source->num_experts + source->has_shared) * MP_SIDES;
        c->meter.total += have->bytes;
    }
    for (size_t i = 0; i < c->have.num_layers; i++)
        if (!find_layer(&c->source, &c->have.layers[i])) {
            const mp_spot spot = spot_at(MP_VERIFY_STRUCTURE, -1);

            mp_fault_add(&c->faults, &spot, "%s: the source has no such layer",
                         c->have.layers[i].prefix);
        }
    return 0;
}

/* *usable: false where nothing can be compared. */
static int check_structure(converted *c, bool *usable, mp_error *err)
{
    const mp_spot spot = spot_at(MP_VERIFY_STRUCTURE, -1);
    bool same_size = c->have.hidden_size == c->source.hidden_size &&
                     c->have.moe_intermediate_size == c->source.moe_intermediate_size;

    mp_faults_add_part(&c->faults, -1, MP_VERIFY_STRUCTURE);
    report_problems(c);
    *usable = c->have.problems.count == 0 && same_size;
    if (!same_size)
        mp_fault_add(&c->faults, &spot,
                     "hidden size %" PRIu64 " and intermediate size %" PRIu64
                     ", the source has %" PRIu64 " and %" PRIu64,
                     c->have.hidden_size, c->have.moe_intermediate_size, c->source.hidden_size,
                     c->source.moe_intermediate_size);
    return *usable ? pair_layers(c, err) : 0;
}

/* ------------------------------------------------------------------------
 * Experts
 */

/* The pair that a side belongs to. Pairs have ascending first sides, and 0 is among them. */
static const layer_pair *pair_of(const converted *c, uint64_t side)
{
    size_t i = c->num_pairs - 1;

    while (c->pairs[i].first > side)
        i--;
    return &c->pairs[i];
}

/* The input scale of a matrix. A fused tensor has one for all experts, one for each, or two for
 * each with gate's before up's; a count that is none of these is read as one for all. */
static int check_input_scale(converted *c, const layer_pair *pair, const mp_matrix *matrix,
                             mp_error *err)
{
    const mp_tensor *tensor = matrix->input_scale;
    uint64_t slices = matrix->weight->rank > 2 ? matrix->weight->shape[0] : 1, index = 0;

    if (!tensor)
        return 0;
    uint64_t count = tensor->bytes * 8 / mp_dtype_bits(tensor->dtype);
    if (count == 2 * slices)
        index = 2 * (uint64_t)matrix->slice + (matrix->first > 0);
    else if (count == slices)
        index = matrix->slice;
    return mp_check_input_scale(&c->have, tensor, index,
                                spot_at(MP_VERIFY_EXACT, (int64_t)pair->index), &c->faults, err);
}

static bool is_sampled(const converted *c, const layer_pair *pair, uint32_t id)
{
    return !c->sample || id >= pair->source->num_experts ||
           c->sample[pair->index * c->most_experts + id];
}

/* Makes a fault of a side that is quantized though a list of exceptions names it. A module may have
 * been quantized before it was converted: a side that is stored as the source has it is no breach.
 * Gate stands for up here, since the two share a storage. *entry: that of the list, or null. */
static int check_exception(converted *c, const mp_side_check *check, const char **entry,
                           mp_error *err)
{
    const mp_weights *have = &check->have[0];
    const mp_moe_layer *layer = check->layer;
    mp_spot spot = check->spot;
    mp_weights want;

    *entry = NULL;
    /* A side without scales was not quantized, so it breaks no exception: it is compared as it
     * is. */
    if (!have->storage.has_scale ||
        mp_exceptions_find(&c->exceptions, have->matrix.weight->name, entry, err) != 0)
        return have->storage.has_scale ? err->code : 0;
    if (*entry &&
        mp_weights_of(&c->source, layer, check->id, mp_side_first(check->side), &want, err) != 0)
        return err->code;
    if (!*entry || mp_weights_alike(have, &want)) {
        *entry = NULL;
        return 0;
    }
    spot.tensor = have->matrix.weight->name;
    mp_fault_add(&c->faults, &spot,
                 "should not be quantized by \"%s\" in the list of exceptions, but is %s", *entry,
                 mp_scheme_name(have->storage.scheme));
    return 0;
}

static int check_side(void *user, uint64_t index, void *scratch, mp_error *err)
{
    converted *c = user;
    const layer_pair *pair = pair_of(c, index);
    uint32_t id = (uint32_t)((index - pair->first) / MP_SIDES);
    mp_side side = (mp_side)((index - pair->first) % MP_SIDES);
    mp_side_check check = {.faults = &c->faults,
                           .spot = spot_at(MP_VERIFY_EXACT, (int64_t)pair->index),
                           .order = MP_ORDER_PLAIN,
                           .source = &c->source,
                           .layer = pair->source,
                           .id = id,
                           .side = side,
                           .cut = {.whole = true},
                           .tolerance = c->options->tolerance};
    const char *entry;
    bool holds;

    (void)scratch;
    if (!is_sampled(c, pair, id))
        return 0;
    for (unsigned p = 0; p < mp_side_parts(side); p++) {
        if (mp_weights_of(&c->have, pair->have, id, mp_side_first(side) + p, &check.have[p], err) !=
                0 ||
            check_input_scale(c, pair, &check.have[p].matrix, err) != 0)
            return err->code;
    }
    if (check_exception(c, &check, &entry, err) != 0)
        return err->code;
    if (entry)
        return 0;
    /* What was not quantized was to stay as it is. */
    check.exact = !check.have[0].storage.has_scale && c->options->tolerance == 0;
    if (mp_side_judge(&check, &holds, err) != 0)
        return err->code;
    for (unsigned p = 0; p < mp_side_parts(side); p++)
        mp_matrix_forget(&c->have, &check.have[p].matrix);
    mp_meter_add(&c->meter, c->context, pair->have->bytes / pair->experts / MP_SIDES);
    return 0;
}

static int check_experts(converted *c, mp_error *err)
{
    for (size_t i = 0; i < c->source.num_layers; i++)
        if (c->source.layers[i].num_experts > c->most_experts)
            c->most_experts = c->source.layers[i].num_experts;
    if (mp_sample_draw(c->options, c->source.num_layers, c->most_experts, &c->sample, err) != 0)
        return err->code;
    for (size_t i = 0; i < c->num_pairs; i++)
        for (uint32_t id = 0; id < c->pairs[i].experts; id++)
            c->report->slots += is_sampled(c, &c->pairs[i], id);
    return c->num_pairs == 0 ? 0 : mp_parallel(c->context, c->sides, 0, check_side, c, err);
}

/* ------------------------------------------------------------------------
 * All of it
 */

static int select_layers(converted *c, mp_error *err)
{
    size_t count = c->source.num_layers;

    c->selected = mp_alloc_zeroed(count, sizeof *c->selected);
    c->prefixes = mp_alloc(count, sizeof *c->prefixes);
    if (!c->selected || !c->prefixes)
        return mp_fail_memory(err);
    for (size_t i = 0; i < count; i++)
        c->prefixes[i] = c->source.layers[i].prefix;
    return mp_select_layers(c->options->layers, (const char *const *)c->prefixes, count,
                            c->selected, err);
}

static int open_both(converted *c, const char *path, mp_error *err)
{
    int rc = mp_catalog_open(&c->source, c->options->source, c->context, err);

    if (rc == 0)
        rc = mp_catalog_check(&c->source, err);
    if (rc != 0)
        return mp_error_prefix(err, "%s", c->options->source);
    if (mp_catalog_open(&c->have, path, c->context, err) != 0 ||
        mp_exceptions_load(&c->exceptions, c->have.checkpoint.dir, err) != 0)
        return mp_error_prefix(err, "%s", path);
    return 0;
}

static int check_all(converted *c, const char *path, mp_error *err)
{
    const mp_checkpoint *ckpt = &c->have.checkpoint;
    bool usable;
    int rc = open_both(c, path, err);

    if (rc == 0)
        rc = select_layers(c, err);
    if (rc == 0)
        rc = check_structure(c, &usable, err);
    if (rc != 0)
        return rc;
    c->report->files = ckpt->num_shards;
    c->report->tensors = ckpt->num_tensors;
    for (size_t i = 0; i < ckpt->num_tensors; i++)
        c->report->bytes += ckpt->tensors[i].bytes;
    if (!usable || c->options->level < MP_VERIFY_EXACT)
        return 0;
    mp_faults_add_part(&c->faults, -1, MP_VERIFY_EXACT);
    /* With a list of layers only experts are compared. */
    mp_begin_phase(c->context, "comparing");
    rc = check_experts(c, err);
    if (rc == 0 && !c->options->layers)
        rc = mp_check_modules(&c->have, &c->source, &c->exceptions, &c->faults,
                              c->options->tolerance, c->context, err);
    return rc;
}

int mp_verify_converted(const char *path, const mp_verify_options *options,
                        const mp_context *context, mp_verify_report *report, mp_error *err)
{
    converted c = {.options = options, .context = context, .report = report};
    int rc;

    if (options->level > MP_VERIFY_EXACT || options->ranks)
        return mp_fail(err, MP_ERR_USAGE, "\"%s\" is a checkpoint: %s is for packs", path,
                       options->ranks ? "a list of ranks" : "level numeric");
    report->subject = "checkpoint";
    rc = check_all(&c, path, err);
    if (rc == 0)
        rc = mp_faults_take(&c.faults, c.prefixes, report, err);
    mp_faults_release(&c.faults);
    mp_catalog_release(&c.have);
    mp_catalog_release(&c.source);
    mp_exceptions_release(&c.exceptions);
    free(c.selected);
    free(c.sample);
    free(c.prefixes);
    free(c.pairs);
    return rc;
}
