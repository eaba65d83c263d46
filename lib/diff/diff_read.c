/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of a matrix of either side, as they are stored: of a checkpoint's tensors, or unpacked
 * from a slot. */
#include "diff/diff.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "checkpoint/storage.h"
#include "experts/stored.h"

/* Bytes of a tile of columns. */
#define COLS_BYTES (UINT64_C(1) << 20)

#define PIECE_BYTES 4096

/* ------------------------------------------------------------------------
 * From a ref to a matrix
 */

/* Number of the tensor of a role in its set; -1 where there is none. */
static int tensor_number(const diff_matrix *m, mp_role role)
{
    const packed_set *set = m->copy.set;

    for (unsigned t = 0; t < set->num_tensors; t++)
        if (set->tensors[t].side == m->packed_side && set->tensors[t].role == role)
            return (int)t;
    return -1;
}

static const mp_tensor *held_tensor(const diff_matrix *m, int number)
{
    const packed_set *set = m->copy.set;

    if (number < 0)
        return NULL;
    return m->copy.rank->held[m->layer * m->side->pack.num_tensors + set->first + (unsigned)number];
}

/* Shared experts as one, whatever their hidden size. */
static int resolve_whole(const diff_side *side, const mp_moe_layer *layer, mp_projection projection,
                         diff_matrix *m, mp_error *err)
{
    mp_storage ignored;

    m->matrix = layer->shared.matrix[projection];
    m->global_divides = m->matrix.global_divides;
    m->storage = layer->shared_storage;
    if (!mp_storage_recognize(&m->matrix, MP_FUSION_NONE, &side->catalog.config, &ignored, &m->rows,
                              &m->cols))
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: no known storage form",
                       m->matrix.weight->name);
    return 0;
}

static int resolve_stored(const diff_side *side, const diff_ref *ref, diff_matrix *m, mp_error *err)
{
    const mp_catalog *catalog = &side->catalog;
    const mp_moe_layer *layer = &catalog->layers[ref->layer];
    const mp_storage *storage;
    mp_expert view;

    if (ref->shared && ref->id == DIFF_WHOLE)
        return resolve_whole(side, layer, ref->projection, m, err);
    if (mp_layer_expert(catalog, layer, ref->shared ? layer->num_experts + ref->id : ref->id, &view,
                        &storage, err) != 0)
        return err->code;
    m->matrix = view.matrix[ref->projection];
    m->storage = *storage;
    m->again = storage->fusion != MP_FUSION_NONE && ref->projection == MP_GATE;
    m->global_divides = m->matrix.global_divides;
    mp_catalog_shape(catalog, ref->projection, &m->rows, &m->cols);
    return 0;
}

static int resolve_packed(const diff_side *side, const diff_ref *ref, diff_matrix *m,
                          diff_copy **copies, uint32_t *count, mp_error *err)
{
    uint32_t id = ref->id == DIFF_WHOLE ? 0 : ref->id;

    if (mp_diff_pack_copies(&side->pack, ref->layer, ref->shared, id, copies, count, err) != 0)
        return err->code;
    if (*count == 0)
        return mp_fail(err, MP_ERR_INPUT, "%s: no rank holds a copy of %s expert %u",
                       side->pack.manifest.layers[ref->layer], ref->shared ? "shared" : "routed",
                       id);
    m->layer = ref->layer;
    m->copy = (*copies)[0];
    m->packed_side = ref->projection == MP_DOWN ? MP_L2 : MP_L1;
    m->part = ref->projection == MP_UP ? 1 : 0;
    m->again = ref->projection == MP_GATE;
    m->global_divides = held_tensor(m, tensor_number(m, MP_ROLE_GLOBAL_SCALE)) != NULL;
    m->rows = mp_side_rows(&m->copy.set->dims, m->packed_side);
    m->cols = mp_side_cols(&m->copy.set->dims, m->packed_side);
    return 0;
}

int mp_diff_resolve(const diff_side *side, const diff_ref *ref, bool plain, diff_matrix *matrix,
                    diff_copy **copies, uint32_t *num_copies, mp_error *err)
{
    *matrix = (diff_matrix){.side = side};
    *copies = NULL;
    *num_copies = 0;
    if (!ref->tensor && side->kind == DIFF_PACK)
        return resolve_packed(side, ref, matrix, copies, num_copies, err);
    if (!ref->tensor)
        return resolve_stored(side, ref, matrix, err);
    if (plain || !mp_diff_weight_beside(side, ref->tensor, &matrix->matrix, &matrix->storage,
                                        &matrix->rows, &matrix->cols))
        matrix->plain = ref->tensor;
    else
        matrix->global_divides = matrix->matrix.global_divides;
    return 0;
}

static void forget_slot(const diff_matrix *m, mp_role role)
{
    int number = tensor_number(m, role);
    const mp_tensor *tensor = held_tensor(m, number);
    uint64_t bytes = tensor ? m->copy.set->tensors[number].slot_bytes : 0;

    if (tensor)
        mp_tensor_forget(&m->copy.rank->checkpoint, tensor, m->copy.slot * bytes, bytes);
}

void mp_diff_forget(const diff_matrix *matrix)
{
    if (matrix->again)
        return;
    if (matrix->copy.set) {
        forget_slot(matrix, MP_ROLE_WEIGHT);
        forget_slot(matrix, MP_ROLE_SCALE);
    } else if (matrix->plain) {
        mp_tensor_forget(&matrix->side->catalog.checkpoint, matrix->plain, 0, matrix->plain->bytes);
    } else {
        mp_matrix_forget(&matrix->side->catalog, &matrix->matrix);
    }
}

uint64_t mp_diff_matrix_bytes(const diff_matrix *matrix)
{
    if (matrix->plain)
        return matrix->plain->bytes;
    if (matrix->copy.set)
        return matrix->rows * mp_scheme_row_bytes(matrix->copy.set->target->scheme, matrix->cols);
    return matrix->rows * mp_storage_row_bytes(&matrix->storage, matrix->cols);
}

/* ------------------------------------------------------------------------
 * Packed slots
 */

static const mp_target *target_of(const diff_matrix *m)
{
    return m->copy.set->target;
}

static const mp_dims *dims_of(const diff_matrix *m)
{
    return &m->copy.set->dims;
}

static int read_slot(const diff_matrix *m, int number, uint64_t offset, uint64_t n, void *out,
                     mp_error *err)
{
    uint64_t begin = m->copy.slot * m->copy.set->tensors[number].slot_bytes;

    if (mp_tensor_read(&m->copy.rank->checkpoint, held_tensor(m, number), begin + offset, n, out,
                       err) != 0)
        return mp_error_prefix(err, "rank %u", m->copy.rank->number);
    return 0;
}

/* Whether tiles cannot be those rows that are read at once. */
static bool tiles_are_large(const diff_matrix *m)
{
    mp_tiling tiling = target_of(m)->tiling(dims_of(m), m->packed_side);

    return tiling.kind == MP_TILES_COLS || DIFF_TILE_ROWS % tiling.group != 0;
}

static uint64_t tile_bytes(const diff_matrix *m)
{
    mp_tile_kind kind = target_of(m)->tiling(dims_of(m), m->packed_side).kind;
    uint64_t row = mp_scheme_row_bytes(target_of(m)->scheme, m->cols);

    if (kind == MP_TILES_COLS)
        return COLS_BYTES;
    return DIFF_TILE_ROWS * row * (kind == MP_TILES_PAIRED ? mp_side_parts(m->packed_side) : 1);
}

static mp_tile tile_at(const diff_matrix *m, uint64_t index)
{
    return mp_tile_at(target_of(m), dims_of(m), m->packed_side, tile_bytes(m), index);
}

/* Unpacks a tile. Its rectangle of the part that is wanted goes to `to`, rows of `stride`
 * bytes; nothing where it has none. */
static int unpack_tile(const diff_reader *r, const mp_tile *tile, uint8_t *to, uint64_t stride,
                       mp_error *err)
{
    const diff_matrix *m = r->m;
    uint64_t row = mp_scheme_row_bytes(target_of(m)->scheme, tile->cols);
    uint8_t *const out[2] = {r->tile, r->tile + tile->rows * row};
    const uint8_t *from = out[m->part - tile->part];

    if (read_slot(m, tensor_number(m, MP_ROLE_WEIGHT), tile->offset, tile->bytes, r->packed, err) !=
        0)
        return err->code;
    target_of(m)->unpack_weight(dims_of(m), m->packed_side, tile, r->packed, out);
    for (uint64_t i = 0; i < tile->rows; i++)
        memcpy(to + i * stride, from + i * row, row);
    return 0;
}

static bool holds_part(const diff_matrix *m, const mp_tile *tile)
{
    return m->part >= tile->part && m->part < tile->part + tile->parts;
}

/* All of the matrix, from tiles of columns or larger ones. */
static int unpack_all(const diff_reader *r, mp_error *err)
{
    const diff_matrix *m = r->m;
    mp_scheme scheme = target_of(m)->scheme;
    uint64_t stride = mp_scheme_row_bytes(scheme, m->cols);
    uint64_t count = mp_tile_count(target_of(m), dims_of(m), m->packed_side, tile_bytes(m));

    for (uint64_t i = 0; i < count; i++) {
        mp_tile tile = tile_at(m, i);
        uint8_t *to = r->codes + tile.row0 * stride + mp_scheme_row_bytes(scheme, tile.col0);

        if (holds_part(m, &tile) && unpack_tile(r, &tile, to, stride, err) != 0)
            return err->code;
    }
    return 0;
}

/* The one tile that has these rows. */
static int unpack_rows(const diff_reader *r, uint64_t row0, mp_error *err)
{
    const diff_matrix *m = r->m;
    uint64_t index = row0 / DIFF_TILE_ROWS;
    mp_tile tile = tile_at(m, index);

    if (!holds_part(m, &tile))
        tile = tile_at(m, m->part * mp_ceil_div(m->rows, DIFF_TILE_ROWS) + index);
    return unpack_tile(r, &tile, r->codes, mp_scheme_row_bytes(target_of(m)->scheme, m->cols), err);
}

/* The second scale of the part, as the source had it where that is kept. */
static int read_packed_global(diff_reader *r, mp_error *err)
{
    int number = tensor_number(r->m, r->m->global_divides ? MP_ROLE_GLOBAL_SCALE : MP_ROLE_ALPHA);

    if (number < 0)
        return 0;
    if (!held_tensor(r->m, number)) /* though the first copy has it */
        return mp_fail(err, MP_ERR_INPUT, "rank %u: there is no tensor \"%s\"",
                       r->m->copy.rank->number, r->m->copy.set->tensors[number].name);
    return read_slot(r->m, number, r->m->part * sizeof r->global, sizeof r->global, &r->global,
                     err);
}

/* Zero points of the slot have to be zero, as those of a checkpoint. */
static int check_packed_offset(const diff_reader *r, mp_error *err)
{
    int number = tensor_number(r->m, MP_ROLE_OFFSET);
    uint8_t piece[PIECE_BYTES];
    uint64_t bytes;

    if (!held_tensor(r->m, number))
        return 0;
    bytes = r->m->copy.set->tensors[number].slot_bytes;
    for (uint64_t at = 0; at < bytes; at += PIECE_BYTES) {
        uint64_t n = bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES;

        if (read_slot(r->m, number, at, n, piece, err) != 0)
            return err->code;
        for (uint64_t i = 0; i < n; i++)
            if (piece[i] != 0)
                return mp_fail(err, MP_ERR_UNSUPPORTED,
                               "%s: zero points that are not zero cannot be compared",
                               held_tensor(r->m, number)->name);
    }
    return 0;
}

static int open_packed(diff_reader *r, mp_error *err)
{
    const diff_matrix *m = r->m;
    int scale = tensor_number(m, MP_ROLE_SCALE);

    if (scale >= 0) {
        if (read_slot(m, scale, 0, m->copy.set->tensors[scale].slot_bytes, r->packed_scale, err) !=
            0)
            return err->code;
        target_of(m)->unpack_scale(dims_of(m), m->packed_side, r->packed_scale, r->scale);
    }
    if (read_packed_global(r, err) != 0 || check_packed_offset(r, err) != 0)
        return err->code;
    return r->at_once ? unpack_all(r, err) : 0;
}

static int read_packed(diff_reader *r, uint64_t row0, uint64_t rows, mp_rows *out, mp_error *err)
{
    const diff_matrix *m = r->m;
    const mp_scheme_form *form = mp_scheme_form_of(target_of(m)->scheme);
    uint64_t row_bytes = mp_scheme_row_bytes(target_of(m)->scheme, m->cols), scale_row;

    if (!r->at_once && unpack_rows(r, row0, err) != 0)
        return err->code;
    scale_row = m->part * mp_target_scale_rows(target_of(m), dims_of(m), m->packed_side) +
                (form->has_scale ? row0 / form->block_rows : 0);
    *out = (mp_rows){
        .scheme = target_of(m)->scheme,
        .scale_dtype = form->scale_dtype,
        .block_rows = form->block_rows,
        .block_cols = form->block_cols,
        .row0 = row0,
        .rows = rows,
        .cols = m->cols,
        .weight = r->at_once ? r->codes + row0 * row_bytes : r->codes,
        .scale = r->scale +
                 scale_row * mp_target_scale_row_bytes(target_of(m), dims_of(m), m->packed_side),
        .global_scale = r->global,
        .global_divides = m->global_divides,
    };
    return 0;
}

/* ------------------------------------------------------------------------
 * Checkpoints
 */

static int read_stored(const diff_reader *r, uint64_t row0, uint64_t rows, mp_rows *out,
                       mp_error *err)
{
    const diff_matrix *m = r->m;

    *out = mp_stored_rows(&m->storage, row0, rows, m->cols, r->codes, r->scale);
    out->global_scale = r->global;
    out->global_divides = m->global_divides;
    return mp_matrix_read_rows(&m->side->catalog, &m->storage, &m->matrix, m->cols, row0, rows,
                               r->codes, r->scale, err);
}

static int open_stored(diff_reader *r, mp_error *err)
{
    const mp_catalog *catalog = &r->m->side->catalog;

    if (mp_matrix_check_offset(catalog, &r->m->matrix, err) != 0)
        return err->code;
    return mp_matrix_global(catalog, &r->m->matrix, &r->global, err);
}

static int read_plain(const diff_reader *r, uint64_t row0, uint64_t rows, diff_rows *out,
                      mp_error *err)
{
    const mp_tensor *tensor = r->m->plain;
    mp_dtype dtype = tensor->dtype == MP_C64 ? MP_F32 : tensor->dtype;
    uint64_t first = row0 * r->cut.cols, left = r->cut.elements - first;
    uint64_t count = rows * r->cut.cols < left ? rows * r->cut.cols : left;
    unsigned bits = mp_dtype_bits(dtype);

    *out = (diff_rows){.plain = true, .dtype = dtype, .bytes = r->codes, .count = count};
    return mp_tensor_read(&r->m->side->catalog.checkpoint, tensor, first * bits / 8,
                          mp_ceil_div(count * bits, 8), r->codes, err);
}

/* ------------------------------------------------------------------------
 * Readers
 */

/* Takes n bytes, 64-byte aligned, from the memory; with a null base only counts. */
static void *take(uint8_t *base, uint64_t *used, uint64_t n)
{
    void *piece = base ? base + *used : NULL;

    *used += mp_round_up(n, 64);
    return piece;
}

static uint64_t lay_out_packed(diff_reader *r, uint64_t rows, uint8_t *base)
{
    const diff_matrix *m = r->m;
    const mp_target *target = target_of(m);
    mp_tile first = tile_at(m, 0); /* as large as any */
    uint64_t row = mp_scheme_row_bytes(target->scheme, first.cols), used = 0;
    int scale = tensor_number(m, MP_ROLE_SCALE);

    r->codes = take(base, &used,
                    (r->at_once ? m->rows : rows) * mp_scheme_row_bytes(target->scheme, m->cols));
    r->tile = take(base, &used, first.parts * first.rows * row);
    r->packed = take(base, &used, first.bytes);
    r->packed_scale = take(base, &used, scale < 0 ? 0 : m->copy.set->tensors[scale].slot_bytes);
    r->scale = take(base, &used,
                    mp_side_parts(m->packed_side) *
                        mp_target_scale_rows(target, dims_of(m), m->packed_side) *
                        mp_target_scale_row_bytes(target, dims_of(m), m->packed_side));
    return used;
}

static uint64_t lay_out(diff_reader *r, uint8_t *base)
{
    const diff_matrix *m = r->m;
    uint64_t all = mp_ceil_div(r->cut.elements, r->cut.cols), used = 0;
    uint64_t rows = all < DIFF_TILE_ROWS ? all : DIFF_TILE_ROWS;

    if (m->copy.set)
        return lay_out_packed(r, rows, base);
    if (m->plain) {
        r->codes =
            take(base, &used, mp_ceil_div(rows * r->cut.cols * mp_dtype_bits(m->plain->dtype), 8));
        return used;
    }
    r->codes = take(base, &used, rows * mp_storage_row_bytes(&m->storage, m->cols));
    /* The rows of scales that cover them may begin and end outside. */
    r->scale = take(base, &used,
                    (mp_ceil_div(rows, m->storage.block_rows) + 1) *
                        mp_storage_scale_row_bytes(&m->storage, m->cols));
    return used;
}

int mp_diff_reader_open(diff_reader *reader, const diff_matrix *matrix, diff_cut cut, mp_error *err)
{
    int rc = 0;

    *reader = (diff_reader){.m = matrix, .cut = cut, .global = 1};
    reader->at_once = matrix->copy.set && tiles_are_large(matrix);
    reader->memory = mp_alloc(lay_out(reader, NULL), 1);
    if (!reader->memory)
        return mp_fail_memory(err);
    lay_out(reader, reader->memory);
    if (matrix->copy.set)
        rc = open_packed(reader, err);
    else if (!matrix->plain)
        rc = open_stored(reader, err);
    return rc == 0 ? 0 : mp_error_prefix(err, "%s", matrix->side->path);
}

void mp_diff_reader_close(diff_reader *reader)
{
    free(reader->memory);
    *reader = (diff_reader){0};
}

int mp_diff_read(diff_reader *reader, uint64_t row0, uint64_t rows, diff_rows *out, mp_error *err)
{
    int rc;

    *out = (diff_rows){0};
    if (reader->m->copy.set)
        rc = read_packed(reader, row0, rows, &out->rows, err);
    else if (reader->m->plain)
        rc = read_plain(reader, row0, rows, out, err);
    else
        rc = read_stored(reader, row0, rows, &out->rows, err);
    return rc == 0 ? 0 : mp_error_prefix(err, "%s", reader->m->side->path);
}
