/* SPDX-License-Identifier: Apache-2.0 */
/* Canonical sides: put together from tiles of any size, every family's experts in every
 * target's scheme are what reading and requantizing the whole matrix gives. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/words.h"
#include "checkpoint/matrix.h"
#include "experts/canonical.h"
#include "layout/sides.h"
#include "layout/tile.h"
#include "numeric/forms.h"
#include "numeric/quantize.h"

typedef struct fixture {
    char name[32];
} fixture;

static const fixture fixtures[] = {
    {"ct-int8"},         {"ct-nvfp4"},     {"gptoss-bf16-fused-c"}, {"gptoss-mxfp4"},
    {"kimi-k25-int4"},   {"mixtral-bf16"}, {"minimax-m3-mxfp8"},    {"modelopt-nvfp4"},
    {"modelslim-w8a8"},  {"qwen3-bf16"},   {"qwen3-fp8-bf16scale"}, {"qwen35-fused-a"},
    {"qwen3vl-fused-b"}, {"v3-fp8"},       {"v4-base-fp8"},         {"v4-fp4"},
};

static mp_catalog catalog;
static mp_quant_options quant;

/* Whole matrices of a side: weights and scales as a target wants them, part after part. */
typedef struct whole {
    uint64_t rows, cols, row_bytes, scale_rows, scale_row_bytes;
    uint8_t *weight, *scale;
    float global[2];
} whole;

static mp_side_source side_of(const mp_target *target, mp_side side, uint32_t expert,
                              uint64_t tile_bytes)
{
    const mp_moe_layer *layer = &catalog.layers[0];

    return (mp_side_source){
        .catalog = &catalog,
        .storage = &layer->storage,
        .matrix = &layer->experts[expert].matrix[side == MP_L1 ? MP_GATE : MP_DOWN],
        .target = target,
        .dims = {catalog.hidden_size, catalog.moe_intermediate_size},
        .side = side,
        .tile_bytes = tile_bytes,
        .quant = &quant,
    };
}

static mp_rows read_whole(const mp_side_source *from, unsigned part, uint64_t rows, uint64_t cols)
{
    const mp_storage *s = from->storage;
    mp_error err = {0};
    mp_rows in = {
        .scheme = s->scheme,
        .scale_dtype = s->scale_dtype,
        .block_rows = s->block_rows,
        .block_cols = s->block_cols,
        .rows = rows,
        .cols = cols,
        .global_divides = s->global_divides,
    };
    void *weight = malloc(rows * mp_storage_row_bytes(s, cols));
    void *scale = malloc(rows * mp_storage_scale_row_bytes(s, cols) + 1);

    cr_assert_eq(
        mp_matrix_read_rows(&catalog, s, &from->matrix[part], cols, 0, rows, weight, scale, &err),
        0, "%s", err.message);
    cr_assert_eq(mp_matrix_global(&catalog, &from->matrix[part], &in.global_scale, &err), 0);
    in.weight = weight;
    in.scale = s->has_scale ? scale : NULL;
    if (!s->has_scale)
        free(scale);
    return in;
}

static void free_rows(mp_rows *rows)
{
    free((void *)(uintptr_t)rows->weight);
    free((void *)(uintptr_t)rows->scale);
}

/* The second scale that both parts of a requantized side get. */
static float global_of(const mp_rows in[2], unsigned parts, void *work)
{
    float amax = 0, one;
    uint8_t exponent = 0;
    mp_error err = {0};

    for (unsigned p = 0; p < parts; p++) {
        const uint8_t *scale = in[p].scale;

        cr_assert_eq(mp_rows_amax(&in[p], false, work, &one, &err), 0);
        amax = one > amax ? one : amax;
        for (uint64_t i = 0; in[p].scheme == MP_SCHEME_MXFP4 && i < in[p].rows * in[p].cols / 32;
             i++)
            exponent = scale[i] > exponent ? scale[i] : exponent;
    }
    return in[0].scheme == MP_SCHEME_MXFP4 ? mp_nvfp4_global_exact(exponent)
                                           : mp_nvfp4_global(amax);
}

static whole make_whole(const mp_side_source *from)
{
    unsigned parts = mp_side_parts(from->side);
    whole w = {.rows = mp_side_rows(&from->dims, from->side),
               .cols = mp_side_cols(&from->dims, from->side)};
    mp_rows in[2];
    void *work = malloc(mp_requantize_scratch(w.cols));
    mp_quant_options options = quant;
    mp_error err = {0};

    w.row_bytes = mp_scheme_row_bytes(from->target->scheme, w.cols);
    w.scale_rows = mp_target_scale_rows(from->target, &from->dims, from->side);
    w.scale_row_bytes = mp_target_scale_row_bytes(from->target, &from->dims, from->side);
    w.weight = malloc(parts * w.rows * w.row_bytes);
    w.scale = malloc(parts * w.scale_rows * w.scale_row_bytes + 1);
    for (unsigned p = 0; p < parts; p++)
        in[p] = read_whole(from, p, w.rows, w.cols);
    w.global[0] = w.global[1] = global_of(in, parts, work);
    for (unsigned p = 0; p < parts; p++) {
        /* nvfp4 that stays nvfp4 keeps its own second scale, and its bytes. */
        if (in[p].scheme == MP_SCHEME_NVFP4 && from->target->scheme == MP_SCHEME_NVFP4) {
            w.global[p] = in[p].global_divides ? 1 / in[p].global_scale : in[p].global_scale;
            in[p].global_divides = false;
            in[p].global_scale = w.global[p];
        }
        options.global_scale = w.global[p];
        cr_assert_eq(mp_requantize(&in[p], from->target->scheme, &options,
                                   w.weight + p * w.rows * w.row_bytes,
                                   w.scale + p * w.scale_rows * w.scale_row_bytes, work, NULL,
                                   &err),
                     0, "%s", err.message);
        free_rows(&in[p]);
    }
    free(work);
    return w;
}

static void expect_tile(const mp_canonical *c, const mp_tile *tile, const whole *w)
{
    mp_scheme scheme = c->from->target->scheme;
    uint64_t bytes = mp_scheme_row_bytes(scheme, tile->cols);
    uint64_t at = mp_scheme_row_bytes(scheme, tile->col0);

    for (unsigned p = 0; p < tile->parts; p++)
        for (uint64_t r = 0; r < tile->rows; r++)
            cr_assert_arr_eq(c->weight[p] + r * bytes,
                             w->weight + at +
                                 ((tile->part + p) * w->rows + tile->row0 + r) * w->row_bytes,
                             bytes, "%s: part %u, row %llu", c->from->target->name, tile->part + p,
                             (unsigned long long)(tile->row0 + r));
}

static void expect_side(const mp_target *target, mp_side side, uint32_t expert, uint64_t tile_bytes)
{
    mp_side_source from = side_of(target, side, expert, tile_bytes);
    unsigned parts = mp_side_parts(side);
    whole w = make_whole(&from);
    void *scratch = aligned_alloc(64, mp_round_up(mp_canonical_scratch(&from), 64));
    mp_error err = {0};
    mp_canonical c;

    mp_canonical_init(&c, &from, scratch);
    cr_assert_eq(mp_canonical_begin(&c, &err), 0, "%s", err.message);
    cr_assert_eq(c.passes, mp_passes_through(from.storage, target));
    for (uint64_t i = 0; i < mp_tile_count(target, &from.dims, side, tile_bytes); i++) {
        mp_tile tile = mp_tile_at(target, &from.dims, side, tile_bytes, i);

        cr_assert_eq(mp_canonical_tile(&c, &tile, NULL, &err), 0, "%s", err.message);
        expect_tile(&c, &tile, &w);
    }
    cr_assert_arr_eq(c.scale, w.scale, parts * w.scale_rows * w.scale_row_bytes, "%s",
                     target->name);
    if (target->scheme == MP_SCHEME_NVFP4)
        cr_assert_arr_eq(c.global, w.global, parts * sizeof(float));
    free(scratch);
    free(w.weight);
    free(w.scale);
}

ParameterizedTestParameters(canonical, tiles_are_the_whole)
{
    return cr_make_param_array(const fixture, (fixture *)fixtures,
                               sizeof fixtures / sizeof fixtures[0]);
}

/* Targets that cut in rows, in pairs of rows and in columns; FRACTAL_NZ too. Whether the kernel
 * takes the sizes is not the matter here. */
ParameterizedTest(const fixture *from, canonical, tiles_are_the_whole)
{
    static const uint64_t tile_bytes[] = {1, 5000, 1 << 20};
    char path[96];
    size_t count;
    const mp_target *const *targets = mp_targets(&count);
    mp_error err = {0};

    snprintf(path, sizeof path, "testdata/fixtures/%s", from->name);
    cr_assert_eq(mp_catalog_open(&catalog, path, NULL, &err), 0, "%s", err.message);
    for (size_t t = 0; t < 2 * count; t++) {
        const mp_target *target = t < count ? targets[t] : targets[t - count]->nz;

        for (int side = 0; target && side < MP_SIDES; side++)
            for (size_t i = 0; i < sizeof tile_bytes / sizeof tile_bytes[0]; i++)
                expect_side(target, (mp_side)side, (uint32_t)i, tile_bytes[i]);
    }
    mp_catalog_release(&catalog);
}
