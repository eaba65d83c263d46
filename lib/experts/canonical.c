/* SPDX-License-Identifier: Apache-2.0 */
/* Canonical tiles: read as they are, or read and requantized.
 *
 * A side goes one of two ways, decided once in begin:
 *
 *     passes        source and target share scheme and blocks: codes are read straight into the
 *                   tile. Scales are read all at once in begin, and converted there if only their
 *                   type differs
 *     requantized   tile by tile; each tile fills in its own scales, so c->scale is complete
 *                   after the last one
 *
 * Some things cannot wait for tiles. Gate and up share one second scale in nvfp4, and a scale per
 * row covers all columns. If tiles are columns, begin reads the whole side once to find these.
 * Everything else needs only the current rectangle, so memory is a few tiles, laid out in the
 * caller's scratch by one function that both measures and assigns.
 *
 * A canonical belongs to one thread. Several threads may read one side, each with its own. */
#include "experts/canonical.h"

#include "base/arena.h"
#include "base/error.h"
#include "base/words.h"
#include "checkpoint/matrix.h"
#include "layout/sides.h"
#include "layout/tile.h"
#include "numeric/forms.h"
#include "numeric/quantize.h"
#include "numeric/rows.h"

#include <math.h>
#include <string.h>

/* ------------------------------------------------------------------------
 * Sizes
 */

bool mp_passes_through(const mp_storage *storage, const mp_target *target)
{
    return mp_stored_as(storage, target->scheme);
}

/* Canonical sizes of one part of a side. */
typedef struct sizes {
    unsigned parts;
    uint64_t rows, cols;
    uint64_t scale_rows, scale_row_bytes;
} sizes;

static sizes sizes_of(const mp_side_source *from)
{
    return (sizes){
        .parts = mp_side_parts(from->side),
        .rows = mp_side_rows(&from->dims, from->side),
        .cols = mp_side_cols(&from->dims, from->side),
        .scale_rows = mp_target_scale_rows(from->target, &from->dims, from->side),
        .scale_row_bytes = mp_target_scale_row_bytes(from->target, &from->dims, from->side),
    };
}

/* Where the scale that covers a row of a part stands. */
static uint8_t *scale_at(const mp_canonical *c, unsigned part, uint64_t row)
{
    const sizes s = sizes_of(c->from);
    uint64_t block = mp_scheme_form_of(c->from->target->scheme)->block_rows;

    return c->scale + (part * s.scale_rows + row / block) * s.scale_row_bytes;
}

static bool cut_in_columns(const mp_side_source *from)
{
    return from->target->tiling(&from->dims, from->side).kind == MP_TILES_COLS;
}

/* Whether stored scales of the target's scheme are, byte for byte, canonical ones: types of
 * one byte differ in name only. */
static bool same_scale_bytes(const mp_side_source *from)
{
    mp_dtype stored = from->storage->scale_dtype;
    mp_dtype wanted = mp_scheme_form_of(from->target->scheme)->scale_dtype;

    return stored == wanted || (mp_dtype_bits(stored) == 8 && mp_dtype_bits(wanted) == 8);
}

/* Both parts are read into the same scratch, one after the other. */
static uint64_t lay_out(mp_canonical *c, uint8_t *base)
{
    const mp_side_source *from = c->from;
    const sizes s = sizes_of(from);
    const mp_tile first = mp_tile_at(from->target, &from->dims, from->side, from->tile_bytes, 0);
    uint64_t rectangle = first.rows * mp_scheme_row_bytes(from->target->scheme, first.cols);
    uint64_t other = 0, used = 0;
    void *stored;

    if (mp_passes_through(from->storage, from->target) && !same_scale_bytes(from))
        other = s.scale_rows * mp_storage_scale_row_bytes(from->storage, s.cols);
    for (unsigned part = 0; part < s.parts; part++)
        c->stored[part] = (mp_stored_matrix){
            .catalog = from->catalog,
            .storage = from->storage,
            .matrix = &from->matrix[part],
            .rows = s.rows,
            .cols = s.cols,
            .tile_rows = first.rows,
            .tile_cols = first.cols,
        };
    c->weight[0] = mp_scratch_take(base, &used, rectangle);
    c->weight[1] = mp_scratch_take(base, &used, first.parts > 1 ? rectangle : 0);
    c->scale = mp_scratch_take(base, &used, s.parts * s.scale_rows * s.scale_row_bytes);
    c->other_scale = mp_scratch_take(base, &used, other);
    c->row_scales =
        mp_scratch_take(base, &used, cut_in_columns(from) ? s.parts * s.rows * sizeof(float) : 0);
    stored = mp_scratch_take(base, &used, mp_stored_scratch(&c->stored[0]));
    for (unsigned part = 0; base && part < s.parts; part++)
        mp_stored_init(&c->stored[part], stored);
    return used;
}

uint64_t mp_canonical_scratch(const mp_side_source *side)
{
    mp_canonical c = {.from = side};

    return lay_out(&c, NULL);
}

void mp_canonical_init(mp_canonical *c, const mp_side_source *side, void *scratch)
{
    *c = (mp_canonical){.from = side, .global = {1, 1}};
    lay_out(c, scratch);
}

static mp_rectangle rectangle_of(const mp_tile *tile)
{
    return (mp_rectangle){tile->row0, tile->rows, tile->col0, tile->cols};
}

/* ------------------------------------------------------------------------
 * Passing through
 */

/* Scales of a part as they are, in the canonical type. */
static int pass_scales(const mp_canonical *c, unsigned part, mp_error *err)
{
    const mp_side_source *from = c->from;
    const sizes s = sizes_of(from);
    const mp_dtype wanted = mp_scheme_form_of(from->target->scheme)->scale_dtype;
    uint8_t *out = scale_at(c, part, 0);
    uint8_t *stored = same_scale_bytes(from) ? out : c->other_scale;

    if (s.scale_rows == 0)
        return 0;
    if (mp_stored_read(&c->stored[part], (mp_rectangle){0, s.rows, 0, s.cols}, NULL, stored, err) !=
        0)
        return err->code;
    if (stored != out &&
        !mp_scales_convert(from->storage->scale_dtype, stored,
                           s.scale_rows * s.scale_row_bytes / (mp_dtype_bits(wanted) / 8), wanted,
                           out))
        return mp_fail(err, MP_ERR_INPUT, "%s: a scale that %s cannot hold",
                       from->matrix[part].scale->name, mp_dtype_name(wanted));
    return 0;
}

/* Whether all of a part's float32 scales are powers of two; *at is the first that is not. */
static bool powers_of_two(const mp_canonical *c, unsigned part, float *at)
{
    const sizes s = sizes_of(c->from);
    uint64_t count = s.scale_rows * s.scale_row_bytes / sizeof(float);
    const uint8_t *scales = scale_at(c, part, 0);

    for (uint64_t i = 0; i < count; i++) {
        int exponent;

        memcpy(at, scales + i * sizeof *at, sizeof *at);
        /* frexp returns exactly 0.5 for powers of two. NaN and infinity are reported later, by
         * their place. */
        if (isfinite(*at) && frexpf(*at, &exponent) != 0.5f)
            return false;
    }
    return true;
}

/* A target that wants powers of two takes others only requantized. */
static int check_powers(mp_canonical *c, mp_error *err)
{
    const mp_side_source *from = c->from;
    float scale;

    for (unsigned part = 0; part < mp_side_parts(from->side); part++) {
        if (powers_of_two(c, part, &scale))
            continue;
        if (!from->quant->ue8m0)
            return mp_fail(err, MP_ERR_UNSUPPORTED,
                           "%s: %s takes scales that are powers of two, not %.9g: requantize with "
                           "--requantize-shared",
                           from->matrix[part].scale->name, from->target->name, (double)scale);
        /* The whole side, even for a single scale: gate and up have to be treated alike. */
        c->passes = false;
    }
    return 0;
}

/* Rows first .. first + rows - 1 of a tile that was read for a part into `weight`: passing bytes
 * through must not let a NaN through. */
static int check_rows(const mp_canonical *c, unsigned part, const mp_tile *tile,
                      const uint8_t *weight, uint64_t first, uint64_t rows, mp_error *err)
{
    const mp_side_source *from = c->from;
    const mp_scheme scheme = from->target->scheme;
    mp_rows in = mp_scheme_rows(scheme, tile->row0 + first, rows, tile->cols);

    in.weight = weight + first * mp_scheme_row_bytes(scheme, tile->cols);
    in.scale = mp_scheme_form_of(scheme)->has_scale ? scale_at(c, part, in.row0) : NULL;
    in.global_scale = c->global[part];
    if (mp_rows_check_finite(&in, err) != 0)
        return mp_error_prefix(err, "%s", from->matrix[part].weight->name);
    return 0;
}

/* ------------------------------------------------------------------------
 * Requantizing
 */

typedef struct row_scales {
    const mp_side_source *from;
    float *scales; /* of a part's rows */
} row_scales;

static int find_row_scales(const mp_stored_matrix *m, const mp_rows *rows, void *user,
                           mp_error *err)
{
    const row_scales *found = user;

    return mp_rows_channel_scales(rows, found->from->target->scheme, found->from->quant, m->work,
                                  found->scales + rows->row0, err);
}

static int prepare_quantization(mp_canonical *c, mp_error *err)
{
    const mp_side_source *from = c->from;
    const sizes s = sizes_of(from);
    mp_second_scale shared;

    for (unsigned part = 0; part < s.parts; part++) {
        row_scales found = {from, c->row_scales + part * s.rows};

        if (mp_stored_check(&c->stored[part], err) != 0)
            return err->code;
        if (cut_in_columns(from) &&
            mp_stored_each(&c->stored[part], find_row_scales, &found, err) != 0)
            return err->code;
    }
    if (from->target->scheme != MP_SCHEME_NVFP4)
        return 0;
    if (mp_stored_second_scale(c->stored, s.parts, from->quant->allow_nonfinite, &shared, err) != 0)
        return err->code;
    c->global[0] = c->global[1] = mp_second_scale_multiplier(shared);
    return 0;
}

static int quantize_tile(const mp_canonical *c, unsigned part, const mp_tile *tile, uint8_t *out,
                         mp_quant_stats *stats, mp_error *err)
{
    const mp_side_source *from = c->from;
    mp_quant_options options = *from->quant;

    options.global_scale = c->global[part];
    options.ue8m0 = from->target->ue8m0;
    options.row_scales = NULL;
    if (cut_in_columns(from))
        options.row_scales =
            c->row_scales + part * mp_side_rows(&from->dims, from->side) + tile->row0;
    return mp_stored_convert(&c->stored[part], rectangle_of(tile), from->target->scheme, &options,
                             out, scale_at(c, part, tile->row0), stats, err);
}

/* ------------------------------------------------------------------------
 * The whole
 */

/* Second scales are read first: if codes pass through, they are already final. */
int mp_canonical_begin(mp_canonical *c, mp_error *err)
{
    const mp_side_source *from = c->from;
    unsigned parts = mp_side_parts(from->side);

    c->passes = mp_passes_through(from->storage, from->target);
    for (unsigned part = 0; part < parts; part++) {
        mp_stored_matrix *stored = &c->stored[part];

        if (mp_stored_begin(stored, err) != 0 || (c->passes && pass_scales(c, part, err) != 0))
            return err->code;
        if (c->passes)
            c->global[part] = mp_second_scale_multiplier(
                (mp_second_scale){stored->global, from->storage->global_divides});
    }
    if (c->passes && from->target->ue8m0 && check_powers(c, err) != 0)
        return err->code;
    return c->passes ? 0 : prepare_quantization(c, err);
}

int mp_canonical_read(mp_canonical *c, const mp_tile *tile, mp_quant_stats *stats, mp_error *err)
{
    int rc = 0;

    for (unsigned p = 0; p < tile->parts && rc == 0; p++) {
        unsigned part = tile->part + p;

        rc = c->passes
                 ? mp_stored_read(&c->stored[part], rectangle_of(tile), c->weight[p], NULL, err)
                 : quantize_tile(c, part, tile, c->weight[p], stats, err);
    }
    return rc;
}

int mp_canonical_check(const mp_canonical *c, const mp_tile *tile, uint64_t first, uint64_t rows,
                       mp_error *err)
{
    int rc = 0;

    for (unsigned p = 0;
         c->passes && !c->from->quant->allow_nonfinite && p < tile->parts && rc == 0; p++)
        rc = check_rows(c, tile->part + p, tile, c->weight[p], first, rows, err);
    return rc;
}

int mp_canonical_tile(mp_canonical *c, const mp_tile *tile, mp_quant_stats *stats, mp_error *err)
{
    int rc = mp_canonical_read(c, tile, stats, err);

    return rc ? rc : mp_canonical_check(c, tile, 0, tile->rows, err);
}

/* ------------------------------------------------------------------------
 * Vectors
 */

static const mp_tensor *vector_of(const mp_matrix *matrix, mp_role role)
{
    switch (role) {
    case MP_ROLE_GLOBAL_SCALE:
        return matrix->global;
    case MP_ROLE_INPUT_SCALE:
    case MP_ROLE_ACT_SCALE:
        return matrix->input_scale;
    case MP_ROLE_OFFSET:
        return matrix->offset;
    default:
        return NULL;
    }
}

bool mp_has_vector(const mp_storage *storage, const mp_expert *expert, const mp_slot_tensor *tensor)
{
    const mp_matrix *matrix = &expert->matrix[tensor->side == MP_L1 ? MP_GATE : MP_DOWN];

    if (tensor->role == MP_ROLE_OFFSET ? storage->scheme != MP_SCHEME_INT8_CHANNEL
                                       : storage->scheme != MP_SCHEME_NVFP4)
        return false;
    if (tensor->role == MP_ROLE_GLOBAL_SCALE && !storage->global_divides)
        return false;
    for (unsigned part = 0; part < mp_side_parts(tensor->side); part++)
        if (!vector_of(&matrix[part], tensor->role))
            return false;
    return true;
}

/* The floats of a part's tensor, as many as it has of this expert. */
static int read_vector(const mp_canonical *c, unsigned part, mp_role role, uint64_t count,
                       float *out, mp_error *err)
{
    const mp_matrix *matrix = &c->from->matrix[part];
    const mp_tensor *tensor = vector_of(matrix, role);
    uint64_t slices = matrix->weight->rank > 2 ? matrix->weight->shape[0] : 1;
    /* One a row, and the matrix may be rows of a larger one, of which there may be several. */
    uint64_t at = matrix->slice * (tensor->bytes / slices) + matrix->first * sizeof *out;

    if (role == MP_ROLE_GLOBAL_SCALE)
        return mp_matrix_scalar(c->from->catalog, matrix, tensor, out, err);
    if (tensor->dtype != MP_F32)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: %s cannot be stored, only F32", tensor->name,
                       mp_dtype_name(tensor->dtype));
    return mp_tensor_read(&c->from->catalog->checkpoint, tensor, at, count * sizeof *out, out, err);
}

static int read_input_scale(const mp_canonical *c, float *out, mp_error *err)
{
    const mp_catalog *catalog = c->from->catalog;
    const mp_matrix *matrix = c->from->matrix;
    float up;

    if (mp_matrix_scalar(catalog, &matrix[0], matrix[0].input_scale, out, err) != 0)
        return err->code;
    if (c->from->side == MP_L2)
        return 0;
    if (mp_matrix_scalar(catalog, &matrix[1], matrix[1].input_scale, &up, err) != 0)
        return err->code;
    if (up == *out)
        return 0;
    return mp_fail(err, MP_ERR_UNSUPPORTED,
                   "%s: %.9g, and %s: %.9g: %s has one input scale for both: drop them with --drop "
                   "input_scale",
                   matrix[MP_GATE].input_scale->name, (double)*out, matrix[MP_UP].input_scale->name,
                   (double)up, c->from->target->name);
}

int mp_canonical_vector(const mp_canonical *c, const mp_slot_tensor *tensor, float *out,
                        mp_error *err)
{
    unsigned parts = mp_side_parts(tensor->side);
    uint64_t count = tensor->slot_bytes / sizeof *out / parts;
    int rc = 0;

    if (tensor->role == MP_ROLE_FOLDED_ALPHA && c->global[MP_GATE] != c->global[MP_UP])
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s: second scale %.9g, of up %.9g: with --alphas fp4xfp4 they share one",
                       c->from->matrix[MP_GATE].weight->name, (double)c->global[MP_GATE],
                       (double)c->global[MP_UP]);
    if (tensor->role == MP_ROLE_INPUT_SCALE || tensor->role == MP_ROLE_ACT_SCALE ||
        tensor->role == MP_ROLE_FOLDED_ALPHA) {
        rc = read_input_scale(c, out, err);
        /* If a tool's second scale divides, its input scales do too. */
        if (rc == 0 && tensor->role != MP_ROLE_INPUT_SCALE && c->from->storage->global_divides)
            *out = 1 / *out;
        if (rc == 0 && tensor->role == MP_ROLE_FOLDED_ALPHA)
            *out *= c->global[MP_GATE];
        return rc;
    }
    if (tensor->role == MP_ROLE_ALPHA)
        memcpy(out, c->global, parts * sizeof *out);
    else
        for (unsigned part = 0; part < parts && rc == 0; part++)
            rc = read_vector(c, part, tensor->role, count, out + part * count, err);
    return rc;
}
