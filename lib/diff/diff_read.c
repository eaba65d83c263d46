/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of a matrix of either side, as they are stored: of a checkpoint's tensors, unpacked from a
 * slot, put together from the ranks of a snapshot, or plain numbers. A diff_ref says what is meant,
 * a diff_matrix where it is, a diff_reader has it open; whoever takes rows from a reader need not
 * know which kind it was.
 *
 * Rows come DIFF_TILE_ROWS at a time. A slot's own tiles may be higher, as gate and up are laid out
 * together or a layout turns a matrix over: then the whole tile is unpacked once and its rows
 * handed out until the next is needed. What is asked for in order is read in order.
 *
 * Pages are dropped behind a pair, unless the next one reads the same bytes: gate and up of a fused
 * tensor or of a slot (`again`). A reader belongs to one thread; sides are only read. */
#include "diff/diff.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/words.h"
#include "checkpoint/matrix.h"
#include "checkpoint/storage.h"
#include "checkpoint/tensor.h"
#include "diff/diff_snapshot.h"
#include "layout/sides.h"
#include "numeric/forms.h"
#include "pack/pack.h"

/* Bytes of a tile of columns. */
#define COLS_BYTES (UINT64_C(1) << 20)

#define PIECE_BYTES 4096

/* ------------------------------------------------------------------------
 * From a ref to a matrix
 */

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
    if (layer->shared_joined && projection != MP_DOWN) /* gate and up in one tensor */
        m->rows /= 2;
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

uint32_t mp_diff_packed_shared(const diff_side *side)
{
    return side->pack.shape.num_ids - side->pack.shape.slots.num_logical;
}

static int resolve_packed(const diff_side *side, const diff_ref *ref, diff_matrix *m,
                          const mp_place **copies, uint32_t *count, mp_error *err)
{
    const mp_shape *shape = &side->pack.shape;
    uint32_t number = ref->id == DIFF_WHOLE ? 0 : ref->id;
    uint32_t id = ref->shared ? shape->slots.num_logical + number : number;
    mp_side which = ref->projection == MP_DOWN ? MP_L2 : MP_L1;

    *copies = mp_pack_copies(&side->pack, ref->layer, id, count);
    if (*count == 0)
        return mp_fail(err, MP_ERR_INPUT, "%s: no rank holds a copy of %s expert %u",
                       side->pack.manifest.layers[ref->layer], ref->shared ? "shared" : "routed",
                       number);
    m->part = (unsigned)(ref->projection - mp_side_first(which));
    m->slot = (mp_packed_side){
        .pack = &side->pack,
        .layer = ref->layer,
        .set = mp_shape_set(shape, id),
        .place = (*copies)[0],
        .side = which,
        /* Of gate and up the other one need not be decoded; of down there is no part 1. */
        .unread = 1u << (1 - m->part),
    };
    m->slot.tile_rows = mp_packed_tile_rows(m->slot.set, which, DIFF_TILE_ROWS);
    m->again = ref->projection == MP_GATE;
    m->global_divides =
        mp_pack_tensor(&side->pack, ref->layer, m->slot.place.rank, m->slot.set,
                       mp_set_tensor(m->slot.set, which, MP_ROLE_GLOBAL_SCALE)) != NULL;
    m->rows = mp_side_rows(&m->slot.set->dims, which);
    m->cols = mp_side_cols(&m->slot.set->dims, which);
    return 0;
}

static int resolve_dumped(const diff_side *side, const diff_ref *ref, diff_matrix *m,
                          const mp_place **copies, uint32_t *count, mp_error *err)
{
    diff_layer layer = mp_diff_snapshot_layer(side, ref->layer);

    *copies =
        mp_diff_snapshot_copies(side, ref->layer, ref->shared ? layer.num_experts : ref->id, count);
    if (*count == 0)
        return mp_fail(err, MP_ERR_INPUT, "%s: no rank holds expert %u", layer.prefix, ref->id);
    mp_diff_snapshot_take(m, ref, (*copies)[0]);
    return 0;
}

void mp_diff_take_copy(diff_matrix *matrix, const diff_ref *ref, mp_place place)
{
    if (matrix->dumped.parts)
        mp_diff_snapshot_take(matrix, ref, place);
    else
        matrix->slot.place = place;
}

int mp_diff_resolve(const diff_side *side, const diff_ref *ref, bool plain, diff_matrix *matrix,
                    const mp_place **copies, uint32_t *num_copies, mp_error *err)
{
    *matrix = (diff_matrix){.side = side};
    *copies = NULL;
    *num_copies = 0;
    if (!ref->tensor && side->kind == DIFF_PACK)
        return resolve_packed(side, ref, matrix, copies, num_copies, err);
    if (!ref->tensor && side->kind == DIFF_SNAPSHOT)
        return resolve_dumped(side, ref, matrix, copies, num_copies, err);
    if (!ref->tensor)
        return resolve_stored(side, ref, matrix, err);
    /* A snapshot's tensors are compared as they are: scales beside them count for themselves. */
    if (plain || side->kind == DIFF_SNAPSHOT ||
        !mp_diff_weight_beside(side, ref->tensor, &matrix->matrix, &matrix->storage, &matrix->rows,
                               &matrix->cols))
        matrix->plain = ref->tensor;
    else
        matrix->global_divides = matrix->matrix.global_divides;
    return 0;
}

void mp_diff_forget(const diff_matrix *matrix)
{
    if (matrix->again)
        return;
    if (matrix->dumped.parts) {
        mp_dumped_forget(&matrix->dumped);
    } else if (matrix->slot.pack) {
        mp_pack_forget(matrix->slot.pack, matrix->slot.layer, matrix->slot.place, 1,
                       matrix->slot.set, matrix->slot.side);
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
    if (matrix->slot.pack)
        return matrix->rows * mp_scheme_row_bytes(matrix->slot.set->target->scheme, matrix->cols);
    return matrix->rows * mp_storage_row_bytes(&matrix->storage, matrix->cols);
}

/* ------------------------------------------------------------------------
 * Packed slots
 */

/* Zero points of the slot have to be zero, as those of a checkpoint. */
static int check_packed_offset(const diff_reader *r, mp_error *err)
{
    const mp_packed_side *s = &r->slot;
    const mp_slot_tensor *offset = mp_set_tensor(s->set, s->side, MP_ROLE_OFFSET);
    const mp_tensor *tensor = mp_pack_tensor(s->pack, s->layer, s->place.rank, s->set, offset);
    uint8_t piece[PIECE_BYTES];

    for (uint64_t at = 0; tensor && at < offset->slot_bytes; at += PIECE_BYTES) {
        uint64_t left = offset->slot_bytes - at, n = left < PIECE_BYTES ? left : PIECE_BYTES;

        if (mp_pack_read(s->pack, s->layer, s->place, s->set, offset, at, n, piece, err) != 0)
            return err->code;
        if (!mp_offsets_are_zero(tensor->dtype, piece, n))
            return mp_fail(err, MP_ERR_UNSUPPORTED,
                           "%s: zero points that are not zero cannot be decoded", tensor->name);
    }
    return 0;
}

static int open_packed(diff_reader *r, mp_error *err)
{
    /* A copy of the struct: its buffers are this reader's. */
    r->slot = r->m->slot;
    mp_packed_side_init(&r->slot, r->memory);
    if (mp_packed_begin(&r->slot, err) != 0)
        return err->code;
    if (r->slot.global_divides != r->m->global_divides) /* as the first copy has it */
        return mp_fail(err, MP_ERR_INPUT, "rank %u: another kind of second scale than rank %u",
                       r->slot.place.rank, r->m->slot.place.rank);
    return check_packed_offset(r, err);
}

/* Rows of the slot that hold these are read once, where they are more. */
static int read_packed(diff_reader *r, uint64_t row0, uint64_t rows, mp_rows *out, mp_error *err)
{
    uint64_t step = r->slot.tile_rows, first = row0 / step * step, left = r->m->rows - first;
    const mp_scheme_form *form = mp_scheme_form_of(r->slot.set->target->scheme);
    uint64_t down;

    if (row0 >= r->end_row || row0 < r->first_row) {
        if (mp_packed_rows(&r->slot, first, left < step ? left : step, r->run, err) != 0)
            return err->code;
        r->first_row = first;
        r->end_row = first + (left < step ? left : step);
    }
    *out = r->run[r->m->part];
    /* Rows of scales between the run's first row and this one, counted from the matrix's edge. */
    down = form->has_scale ? row0 / form->block_rows - r->first_row / form->block_rows : 0;
    out->row0 = row0;
    out->rows = rows;
    out->weight = (const uint8_t *)out->weight +
                  (row0 - r->first_row) * mp_scheme_row_bytes(out->scheme, out->cols);
    out->scale =
        (const uint8_t *)out->scale +
        down * mp_target_scale_row_bytes(r->slot.set->target, &r->slot.set->dims, r->slot.side);
    return 0;
}

/* ------------------------------------------------------------------------
 * Plain numbers
 */

static int read_plain(const diff_reader *r, uint64_t row0, uint64_t rows, diff_rows *out,
                      mp_error *err)
{
    const mp_tensor *tensor = r->m->plain;
    mp_dtype dtype = tensor->dtype == MP_C64 ? MP_F32 : tensor->dtype;
    /* row0 is a multiple of 128, so sub-byte numbers begin at a byte. */
    uint64_t first = row0 * r->cut.cols, left = r->cut.elements - first;
    uint64_t count = rows * r->cut.cols < left ? rows * r->cut.cols : left;
    unsigned bits = mp_dtype_bits(dtype);

    *out = (diff_rows){.plain = true, .dtype = dtype, .bytes = r->memory, .count = count};
    return mp_tensor_read(&r->m->side->catalog.checkpoint, tensor, first * bits / 8,
                          mp_ceil_div(count * bits, 8), r->memory, err);
}

/* ------------------------------------------------------------------------
 * Readers
 */

static uint64_t scratch_bytes(const diff_reader *r)
{
    const diff_matrix *m = r->m;
    uint64_t all = mp_ceil_div(r->cut.elements, r->cut.cols);
    uint64_t rows = all < DIFF_TILE_ROWS ? all : DIFF_TILE_ROWS;

    if (m->slot.pack)
        return mp_packed_scratch(&m->slot);
    if (m->plain)
        return mp_ceil_div(rows * r->cut.cols * mp_dtype_bits(m->plain->dtype), 8);
    return mp_stored_scratch(&r->stored);
}

int mp_diff_reader_open(diff_reader *reader, const diff_matrix *matrix, diff_cut cut, mp_error *err)
{
    int rc = 0;

    *reader = (diff_reader){.m = matrix, .cut = cut};
    if (matrix->dumped.parts) {
        rc = mp_dumped_open(&reader->dumped, &matrix->dumped, DIFF_TILE_ROWS, err);
        return rc == 0 ? 0 : mp_error_prefix(err, "%s", matrix->side->path);
    }
    reader->stored = (mp_stored_matrix){
        .catalog = &matrix->side->catalog,
        .storage = &matrix->storage,
        .matrix = &matrix->matrix,
        .rows = matrix->rows,
        .cols = matrix->cols,
        .tile_rows = matrix->rows < DIFF_TILE_ROWS ? matrix->rows : DIFF_TILE_ROWS,
        .tile_cols = matrix->cols,
    };
    reader->memory = aligned_alloc(64, mp_round_up(scratch_bytes(reader), 64));
    if (!reader->memory)
        return mp_fail_memory(err);
    if (matrix->slot.pack) {
        rc = open_packed(reader, err);
    } else if (!matrix->plain) {
        mp_stored_init(&reader->stored, reader->memory);
        rc = mp_stored_check(&reader->stored, err);
        if (rc == 0)
            rc = mp_stored_begin(&reader->stored, err);
    }
    return rc == 0 ? 0 : mp_error_prefix(err, "%s", matrix->side->path);
}

void mp_diff_reader_close(diff_reader *reader)
{
    free(reader->memory);
    mp_dumped_close(&reader->dumped);
    *reader = (diff_reader){0};
}

int mp_diff_read(diff_reader *reader, uint64_t row0, uint64_t rows, diff_rows *out, mp_error *err)
{
    int rc;

    *out = (diff_rows){0};
    if (reader->m->dumped.parts)
        rc = mp_dumped_read(&reader->dumped, row0, rows, &out->rows, err);
    else if (reader->m->slot.pack)
        rc = read_packed(reader, row0, rows, &out->rows, err);
    else if (reader->m->plain)
        rc = read_plain(reader, row0, rows, out, err);
    else
        rc = mp_stored_rows(&reader->stored, (mp_rectangle){row0, rows, 0, reader->stored.cols},
                            &out->rows, err);
    return rc == 0 ? 0 : mp_error_prefix(err, "%s", reader->m->side->path);
}
