/* SPDX-License-Identifier: Apache-2.0 */
/* The tensors that an item of a synthetic checkpoint is stored in: shapes, rows and bytes. */
#include "synth/parts.h"

#include "base/error.h"
#include "base/words.h"
#include "checkpoint/tensor.h"
#include "numeric/encode.h"

/* Bytes of a tile, unless a single row of blocks is larger. */
#define TILE_BYTES ((uint64_t)1 << 20)

/* Bytes in the last dimension of packed blocks, [.., K / 32, 16]. */
#define BLOCK_BYTES (MP_MX_BLOCK / 2)

mp_synth_part mp_synth_item_part(const mp_synth_item *item, unsigned part)
{
    return mp_synth_form_part(item->form, item->convention, part);
}

mp_fusion mp_synth_item_fusion(const mp_synth_item *item)
{
    return item->convention ? item->convention->fusion : MP_FUSION_NONE;
}

static uint64_t blocks(uint64_t n, uint32_t block)
{
    return block == MP_SYNTH_WHOLE ? 1 : mp_ceil_div(n, block);
}

uint64_t mp_synth_stored_rows(const mp_synth_item *item)
{
    return mp_fusion_is_transposed(mp_synth_item_fusion(item)) ? item->cols : item->rows;
}

/* Elements in a row of a part. */
static uint64_t part_cols(const mp_synth_item *item, unsigned part)
{
    const mp_synth_part form = mp_synth_item_part(item, part);
    uint64_t stored = mp_fusion_is_transposed(mp_synth_item_fusion(item)) ? item->rows : item->cols;

    return form.numbers > 0 ? form.numbers : blocks(stored, form.block_cols);
}

uint64_t mp_synth_part_rows(const mp_synth_item *item, unsigned part, uint64_t rows)
{
    const mp_synth_part form = mp_synth_item_part(item, part);

    return form.suffix ? blocks(rows, form.block_rows) : 0;
}

uint64_t mp_synth_part_row_bytes(const mp_synth_item *item, unsigned part)
{
    const mp_synth_part form = mp_synth_item_part(item, part);

    return form.suffix ? part_cols(item, part) * (mp_dtype_bits(form.dtype) / 8) : 0;
}

/* Rows that share a scale are made together, and so is a matrix with one scale. */
static uint64_t tile_rows(const mp_synth_item *item)
{
    uint64_t rows = TILE_BYTES / mp_synth_part_row_bytes(item, 0);
    uint32_t block = 1;

    for (unsigned p = 0; p < MP_SYNTH_PARTS && mp_synth_item_part(item, p).suffix; p++)
        if (mp_synth_item_part(item, p).block_rows > block)
            block = mp_synth_item_part(item, p).block_rows;
    if (block > 1)
        return block == MP_SYNTH_WHOLE ? mp_synth_stored_rows(item) : block;
    if (mp_fusion_is_transposed(
            mp_synth_item_fusion(item))) /* mp_synth_row begins at multiples of 4 */
        return rows < 4 ? 4 : rows / 4 * 4;
    return rows < 1 ? 1 : rows;
}

uint64_t mp_synth_work(const mp_synth_item *item)
{
    uint64_t work = item->cols;

    if (mp_fusion_is_transposed(mp_synth_item_fusion(item)))
        work = 2 * item->tile_rows;
    else if (item->form->scheme == MP_SCHEME_FP8_BLOCK)
        work = MP_FP8_BLOCK * MP_FP8_BLOCK;
    return work;
}

/* Fills in the shape of a part. */
static void shape_part(mp_synth_item *item, unsigned part)
{
    const mp_synth_part form = mp_synth_item_part(item, part);
    uint64_t rows = mp_synth_part_rows(item, part, mp_synth_stored_rows(item));
    uint64_t cols = part_cols(item, part);
    uint64_t *shape = item->shapes[part];
    uint32_t rank = 0;

    if (item->stack)
        shape[rank++] = item->slices;
    if (form.rank >= 2)
        shape[rank++] = rows;
    if (form.rank >= 1) /* of a vector, either is 1 */
        shape[rank++] = form.rank == 1 ? rows * cols : cols;
    if (form.rank == 3) {
        shape[rank - 1] = cols / BLOCK_BYTES;
        shape[rank++] = BLOCK_BYTES;
    }
    item->ranks[part] = rank;
}

mp_tensor_spec mp_synth_part_spec(const mp_synth_item *item, unsigned part)
{
    return (mp_tensor_spec){item->names[part], mp_synth_item_part(item, part).dtype,
                            item->ranks[part], item->shapes[part]};
}

/* Shapes of the item's tensors, and their bytes. */
int mp_synth_item_measure(mp_synth_item *item, mp_error *err)
{
    item->tile_rows = tile_rows(item);
    item->bytes = 0;
    for (unsigned p = 0; p < MP_SYNTH_PARTS && item->names[p]; p++) {
        mp_tensor_spec spec;
        uint64_t bytes;

        shape_part(item, p);
        spec = mp_synth_part_spec(item, p);
        if (mp_tensor_spec_bytes(&spec, &bytes, err) != 0 ||
            !mp_add_u64(item->bytes, bytes, &item->bytes))
            return mp_fail(err, MP_ERR_USAGE, "\"%s\" would be too large, with %llu rows of %llu",
                           item->names[0], (unsigned long long)item->rows,
                           (unsigned long long)item->cols);
    }
    return 0;
}
