/* SPDX-License-Identifier: Apache-2.0 */
/* The source checkpoint: whether it is the one that was packed, and its canonical rows. */
#include "verify/source.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/digest.h"
#include "base/error.h"

/* Canonical storage of the schemes that targets take. */
static const mp_storage canonical_forms[] = {
    {.scheme = MP_SCHEME_MXFP4,
     .weight_dtype = MP_I8,
     .scale_dtype = MP_F8_E8M0,
     .has_scale = true,
     .block_rows = 1,
     .block_cols = 32},
};

static const mp_storage *canonical_form(mp_scheme scheme)
{
    for (size_t i = 0; i < sizeof canonical_forms / sizeof canonical_forms[0]; i++)
        if (canonical_forms[i].scheme == scheme)
            return &canonical_forms[i];
    return NULL;
}

/* ------------------------------------------------------------------------
 * Is it the source?
 */

static int compare_shard(const mp_source_shard *expected, const mp_shard *actual, mp_error *err)
{
    char hex[MP_DIGEST_TEXT];
    mp_digest digest;

    if (strcmp(actual->name, expected->name) != 0)
        return mp_fail(err, MP_ERR_INPUT, "shard %s, the manifest names %s", actual->name,
                       expected->name);
    if (actual->size != expected->size)
        return mp_fail(err, MP_ERR_INPUT, "%s: %" PRIu64 " bytes, the manifest says %" PRIu64,
                       actual->name, actual->size, expected->size);
    memcpy(digest.bytes, actual->header_xxh3, sizeof digest.bytes);
    if (strcmp(mp_digest_text(&digest, hex), expected->header_xxh3) != 0)
        return mp_fail(err, MP_ERR_INPUT, "%s: header xxh3 %s, the manifest says %s", actual->name,
                       hex, expected->header_xxh3);
    return 0;
}

static int compare_shards(const mp_manifest *m, const mp_checkpoint *ckpt, mp_error *err)
{
    for (size_t i = 0; i < m->num_shards && i < ckpt->num_shards; i++) {
        int rc = compare_shard(&m->shards[i], &ckpt->shards[i], err);
        if (rc != 0)
            return rc;
    }
    if (m->num_shards != ckpt->num_shards)
        return mp_fail(err, MP_ERR_INPUT, "%zu shards, the manifest names %zu", ckpt->num_shards,
                       m->num_shards);
    return 0;
}

/* ------------------------------------------------------------------------
 * Does the manifest tell the truth about it?
 */

/* Makes a fault of a number that the source has otherwise. */
static bool same_number(mp_check *check, const char *what, uint64_t manifest, uint64_t actual)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_EXACT, -1);

    if (manifest == actual)
        return true;
    mp_fault_add(&check->faults, &spot, "%s: %s %" PRIu64 ", the source has %" PRIu64,
                 MP_MANIFEST_NAME, what, manifest, actual);
    return false;
}

/* The same for a word. */
static bool same_text(mp_check *check, const char *what, const char *manifest, const char *actual)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_EXACT, -1);

    if (strcmp(manifest, actual) == 0)
        return true;
    mp_fault_add(&check->faults, &spot, "%s: %s \"%s\", of the source it is \"%s\"",
                 MP_MANIFEST_NAME, what, manifest, actual);
    return false;
}

static const mp_moe_layer *find_layer(const mp_catalog *catalog, const char *prefix)
{
    for (size_t i = 0; i < catalog->num_layers; i++)
        if (strcmp(catalog->layers[i].prefix, prefix) == 0)
            return &catalog->layers[i];
    return NULL;
}

/* Finds a layer of the pack in the source. */
static bool match_layer(mp_source *source, mp_check *check, size_t index)
{
    const mp_manifest *m = &check->manifest;
    const mp_moe_layer *layer = find_layer(&source->catalog, m->layers[index]);
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_EXACT, -1);

    spot.layer = (int64_t)index;
    source->layers[index] = layer;
    if (layer && layer->num_experts == m->num_experts)
        return true;
    if (!layer)
        mp_fault_add(&check->faults, &spot, "the source has no such layer");
    else
        mp_fault_add(&check->faults, &spot, "%u experts in the source, the manifest says %" PRIu64,
                     layer->num_experts, m->num_experts);
    return false;
}

/* The scheme of the layers that are packed, and whether they pass through. */
static bool match_quantization(const mp_source *source, mp_check *check)
{
    const mp_manifest *m = &check->manifest;
    const char *scheme = mp_scheme_name(source->layers[0]->storage.scheme);
    bool lossless = true;

    for (size_t i = 0; i < m->num_layers; i++) {
        lossless &= mp_source_passes_through(source, i);
        if (source->layers[i]->storage.scheme != source->layers[0]->storage.scheme)
            scheme = "mixed";
    }
    bool same = same_text(check, "source quantization", m->source_scheme, scheme);
    return same_text(check, "repack", m->lossless ? "lossless" : "requantized",
                     lossless ? "lossless" : "requantized") &&
           same;
}

static bool match_layers(mp_source *source, mp_check *check)
{
    bool all = true;

    for (size_t i = 0; i < check->manifest.num_layers; i++)
        all &= match_layer(source, check, i);
    return all && match_quantization(source, check);
}

static bool match_model(const mp_source *source, mp_check *check)
{
    const mp_manifest *m = &check->manifest;
    const mp_catalog *c = &source->catalog;
    bool same = same_number(check, "hidden_size", m->hidden_size, c->hidden_size);

    same &= same_number(check, "moe_intermediate_size", m->moe_intermediate_size,
                        c->moe_intermediate_size);
    same &= same_number(check, "num_shared_experts", m->num_shared_experts, c->num_shared_experts);
    same &= same_number(check, "layers", m->model_layers, c->num_layers);
    same &= same_text(check, "family", m->family, c->family);
    return same;
}

/* The rules that the manifest names, where there is something to quantize. */
static bool read_rules(mp_source *source, mp_check *check)
{
    const mp_manifest *m = &check->manifest;
    const char *rounding = m->rounding ? m->rounding : "";
    const char *scale_rule = m->scale_rule ? m->scale_rule : "";
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_EXACT, -1);

    if (m->lossless)
        return true;
    source->quant.rounding = strcmp(rounding, "ocp") == 0 ? MP_ROUND_OCP : MP_ROUND_DEEPGEMM;
    source->quant.scale_rule = strcmp(scale_rule, "mse") == 0 ? MP_SCALE_MSE : MP_SCALE_CEIL;
    source->quant.amax_floor = (float)m->amax_floor;
    /* Refusing is for who writes; here it only matters what the bytes have to be. */
    source->quant.allow_nonfinite = true;
    if ((strcmp(rounding, "ocp") == 0 || strcmp(rounding, "deepgemm") == 0) &&
        (strcmp(scale_rule, "mse") == 0 || strcmp(scale_rule, "ceil") == 0) && m->amax_floor >= 0)
        return true;
    mp_fault_add(&check->faults, &spot,
                 "%s: rounding \"%s\", scale_rule \"%s\", amax_floor %g: no such rules",
                 MP_MANIFEST_NAME, rounding, scale_rule, m->amax_floor);
    return false;
}

/* ------------------------------------------------------------------------
 * Forms and sizes
 */

static void measure_sides(mp_source *source, const mp_check *check)
{
    for (int s = 0; s < MP_SIDES; s++) {
        mp_side_form *form = &source->sides[s];

        form->first = s == MP_L1 ? MP_GATE : MP_DOWN;
        form->parts = s == MP_L1 ? 2 : 1;
        form->rows = mp_side_rows(&check->dims, (mp_side)s) / form->parts;
        form->cols = mp_side_cols(&check->dims, (mp_side)s);
        form->row_bytes = mp_storage_row_bytes(&source->canonical, form->cols);
        form->scale_row_bytes = mp_storage_scale_row_bytes(&source->canonical, form->cols);
        if (source->canonical.has_scale)
            form->scale_rows = mp_ceil_div(form->rows, source->canonical.block_rows);
    }
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* The widest rows of the layers that are packed. */
static void measure_rows(mp_source *source, const mp_check *check)
{
    for (size_t i = 0; i < check->manifest.num_layers; i++) {
        const mp_storage *storage = &source->layers[i]->storage;

        for (int s = 0; s < MP_SIDES; s++) {
            uint64_t cols = source->sides[s].cols;

            source->raw_row_bytes =
                larger(source->raw_row_bytes, mp_storage_row_bytes(storage, cols));
            source->raw_scale_row_bytes =
                larger(source->raw_scale_row_bytes, mp_storage_scale_row_bytes(storage, cols));
        }
    }
}

int mp_source_open(mp_source *source, mp_check *check, bool *usable, mp_error *err)
{
    const mp_storage *form = canonical_form(check->target->scheme);

    *usable = false;
    if (!form)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "this version cannot check %s against a source",
                       check->target->name);
    source->canonical = *form;
    int rc = mp_catalog_open(&source->catalog, check->options->source, check->context, err);
    if (rc != 0)
        return rc;
    rc = compare_shards(&check->manifest, &source->catalog.checkpoint, err);
    if (rc != 0)
        return mp_error_prefix(err, "\"%s\" is not the checkpoint that was packed",
                               check->options->source);
    rc = mp_catalog_check(&source->catalog, err);
    if (rc != 0)
        return rc;
    source->layers = mp_alloc_zeroed(check->manifest.num_layers, sizeof *source->layers);
    if (!source->layers)
        return mp_fail_memory(err);
    mp_faults_add_part(&check->faults, -1, MP_VERIFY_EXACT);
    *usable =
        match_model(source, check) && match_layers(source, check) && read_rules(source, check);
    measure_sides(source, check);
    if (*usable)
        measure_rows(source, check);
    return 0;
}

void mp_source_release(mp_source *source)
{
    mp_catalog_release(&source->catalog);
    free(source->layers);
    *source = (mp_source){0};
}

/* ------------------------------------------------------------------------
 * Rows
 */

bool mp_source_passes_through(const mp_source *source, size_t layer)
{
    return source->layers[layer]->storage.scheme == source->canonical.scheme;
}

/* Stored rows, the scale rows that cover them, and the work of quantizing. */
static uint64_t raw_bytes(const mp_source *source, uint64_t rows)
{
    return mp_round_up(rows * source->raw_row_bytes, 64);
}

/* Where blocks of scales are one row high there is a scale row for each row; where they
 * are higher, rows can begin inside one block and end inside another. */
static uint64_t raw_scale_bytes(const mp_source *source, uint64_t rows)
{
    return mp_round_up((rows + 1) * source->raw_scale_row_bytes, 64);
}

uint64_t mp_source_work_bytes(const mp_source *source, uint64_t rows)
{
    uint64_t cols = larger(source->sides[MP_L1].cols, source->sides[MP_L2].cols);

    return raw_bytes(source, rows) + raw_scale_bytes(source, rows) + mp_requantize_scratch(cols);
}

static int quantize_rows(const mp_source *source, const mp_moe_layer *layer,
                         const mp_matrix *matrix, uint64_t cols, uint64_t row0, uint64_t rows,
                         uint8_t *work, uint8_t *weight, uint8_t *scale, mp_error *err)
{
    uint8_t *raw = work;
    uint8_t *raw_scale = raw + raw_bytes(source, rows);
    uint8_t *scratch = raw_scale + raw_scale_bytes(source, rows);
    mp_rows in = {
        .scheme = layer->storage.scheme,
        .scale_dtype = layer->storage.scale_dtype,
        .block_rows = layer->storage.block_rows,
        .block_cols = layer->storage.block_cols,
        .row0 = row0,
        .rows = rows,
        .cols = cols,
        .global_divides = layer->storage.global_divides,
        .weight = raw,
        .scale = layer->storage.has_scale ? raw_scale : NULL,
    };

    int rc = mp_matrix_global(&source->catalog, matrix, &in.global_scale, err);
    if (rc == 0)
        rc = mp_matrix_read_rows(&source->catalog, &layer->storage, matrix, cols, row0, rows, raw,
                                 raw_scale, err);
    if (rc != 0)
        return rc;
    rc = mp_requantize(&in, source->canonical.scheme, &source->quant, weight, scale, scratch, NULL,
                       err);
    return rc != 0 ? mp_error_prefix(err, "%s", matrix->weight->name) : 0;
}

int mp_source_rows(const mp_source *source, size_t layer, uint32_t expert, mp_projection projection,
                   uint64_t row0, uint64_t rows, void *work, uint8_t *weight, uint8_t *scale,
                   mp_error *err)
{
    const mp_moe_layer *from = source->layers[layer];
    const mp_matrix *matrix = &from->experts[expert].matrix[projection];
    uint64_t cols = source->sides[projection == MP_DOWN ? MP_L2 : MP_L1].cols;

    if (mp_source_passes_through(source, layer))
        return mp_matrix_read_rows(&source->catalog, &from->storage, matrix, cols, row0, rows,
                                   weight, scale, err);
    return quantize_rows(source, from, matrix, cols, row0, rows, work, weight, scale, err);
}
