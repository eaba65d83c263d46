/* SPDX-License-Identifier: Apache-2.0 */
/* Reading rows of a matrix, wherever they are in its tensors.
 *
 *     whole         [N, K]            consecutive rows: a single read
 *     slice         [E, N, K]         the same, starting at row slice * N
 *     pairs         [E, 2N, K]        every other row
 *     columns       part of each row: one read per row
 *     transposed    [E, K, N]         rows are columns: read in bands and transposed
 *     int4 bytes    a byte per code, or two rows per byte: packed as they are read
 *
 * Callers get the same rows in every case, [rows, cols] in the storage's scheme. Scales are read by
 * the same rules, with blocks instead of rows: the scale rows covering the rows asked for, starting
 * with that of the first one.
 *
 * Shapes were checked against the storage (storage.c), and mp_tensor_read checks every extent
 * again. A call allocates what it needs, a band or as much as its rows, so any number of threads
 * can read one matrix. */
#include <moepack/model.h>

#include "base/error.h"
#include "base/transpose.h"
#include "base/words.h"
#include "checkpoint/matrix.h"
#include "checkpoint/storage.h"
#include "checkpoint/tensor.h"
#include "numeric/scales.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Zero points that are looked at together. */
#define PIECE_BYTES 8192

static uint64_t step_of(const mp_matrix *matrix)
{
    return matrix->paired ? 2 : 1;
}

/* Pieces of stored rows: `bytes` at `offset` of every row of `stride` bytes. */
typedef struct pieces {
    uint64_t stride;
    uint64_t offset;
    uint64_t bytes;
} pieces;

/* Of rows `first + r * step`, r = row0 .. row0+rows-1, of a slice of a tensor with `per_slice`
 * rows. */
static int read_strided(const mp_checkpoint *ckpt, const mp_tensor *tensor, const mp_matrix *matrix,
                        uint64_t per_slice, const pieces *piece, uint64_t row0, uint64_t rows,
                        uint8_t *out, mp_error *err)
{
    uint64_t step = step_of(matrix);
    uint64_t at = matrix->slice * per_slice + matrix->first + row0 * step;

    if (step == 1 && piece->bytes == piece->stride)
        return mp_tensor_read(ckpt, tensor, at * piece->stride, rows * piece->bytes, out, err);
    for (uint64_t r = 0; r < rows; r++)
        if (mp_tensor_read(ckpt, tensor, (at + r * step) * piece->stride + piece->offset,
                           piece->bytes, out + r * piece->bytes, err) != 0)
            return err->code;
    return 0;
}

/* A transposed tensor [E, K, columns] is read in bands: a piece of each of so many stored rows that
 * they fill several cache lines of every row that they are transposed to, which are on a page of
 * their own, and few enough that the band stays in the cache. */
#define BAND_ROWS  128
#define BAND_PIECE 4096

/* Reading a gap between two pieces that is shorter than this takes no longer than a system call. */
#define SMALL_GAP 4096

/* Pieces with small gaps are at most twice as far apart as they may be long. */
#define BAND_BYTES (BAND_ROWS * 2 * BAND_PIECE)

/* Pieces of `bytes` of stored rows, `stride` apart. */
typedef struct band {
    uint64_t at; /* of the first, in the tensor */
    uint64_t stride;
    uint64_t bytes;
    uint64_t pitch; /* from one to the next in memory: the stride where gaps are read too */
} band;

static int read_band(const mp_checkpoint *ckpt, const mp_tensor *tensor, const band *b,
                     uint64_t rows, uint8_t *out, mp_error *err)
{
    if (b->pitch == b->stride)
        return mp_tensor_read(ckpt, tensor, b->at, (rows - 1) * b->stride + b->bytes, out, err);
    for (uint64_t r = 0; r < rows; r++)
        if (mp_tensor_read(ckpt, tensor, b->at + r * b->stride, b->bytes, out + r * b->pitch,
                           err) != 0)
            return err->code;
    return 0;
}

/* Puts elements 0, 2, 4 ... of each row next to each other. */
static void close_up(uint8_t *in, uint64_t pitch, uint64_t rows, uint64_t count, unsigned width)
{
    for (uint64_t r = 0; r < rows; r++, in += pitch)
        for (uint64_t i = 1; i < count; i++)
            memcpy(in + i * width, in + 2 * i * width, width);
}

/* Rows row0 .. row0+rows-1 of a matrix that is columns of a transposed tensor, in elements of
 * `width` bytes. */
static int read_transposed(const mp_checkpoint *ckpt, const mp_tensor *tensor,
                           const mp_matrix *matrix, unsigned width, const pieces *of, uint64_t row0,
                           uint64_t rows, uint8_t *out, mp_error *err)
{
    uint64_t stride = tensor->shape[2] * width, step = step_of(matrix) * width;
    uint64_t first = matrix->slice * tensor->shape[1] + of->offset / width;
    uint64_t cols = of->bytes / width, most = BAND_PIECE / step;
    uint8_t *memory = mp_alloc(BAND_BYTES, 1);
    int rc = memory ? 0 : mp_fail_memory(err);

    for (uint64_t done = 0; rc == 0 && done < rows; done += most) {
        uint64_t count = rows - done < most ? rows - done : most;
        uint64_t bytes = (count - 1) * step + width;
        /* Then a band fits the memory including its gaps, and takes one call instead of 32. */
        bool whole = stride - bytes < SMALL_GAP && stride <= 2 * BAND_PIECE;
        band b = {.stride = stride, .bytes = bytes, .pitch = whole ? stride : bytes};

        for (uint64_t k = 0; rc == 0 && k < cols; k += BAND_ROWS) {
            uint64_t n = cols - k < BAND_ROWS ? cols - k : BAND_ROWS;

            b.at = (first + k) * stride + matrix->first * width + (row0 + done) * step;
            rc = read_band(ckpt, tensor, &b, n, memory, err);
            if (rc != 0)
                break;
            if (step > width)
                close_up(memory, b.pitch, n, count, width);
            mp_transpose(memory, b.pitch, n, count, width, out + done * of->bytes + k * width,
                         of->bytes);
        }
    }
    free(memory);
    return rc;
}

static uint64_t stored_cols(const mp_matrix *matrix, uint64_t cols)
{
    return matrix->stored_cols ? matrix->stored_cols : cols;
}

/* Codes of int4 in bytes as words of them: of row `row` of the matrix, `cols` codes at `codes`, one
 * or, of two rows, two a byte. */
static int pack_codes(const mp_storage *storage, const mp_tensor *tensor, const uint8_t *codes,
                      uint64_t row, uint64_t cols, uint8_t *out, mp_error *err)
{
    unsigned shift = storage->int4 == MP_INT4_ROWS && row % 2 == 1 ? 4 : 0;

    memset(out, 0, mp_storage_row_bytes(storage, cols));
    for (uint64_t k = 0; k < cols; k++) {
        unsigned code = codes[k];

        /* code + 8 of a code in -8..7 differs from it in the sign bit */
        if (storage->int4 == MP_INT4_BYTES && ((code + 8) & 0xff) > 15)
            return mp_fail(err, MP_ERR_INPUT, "%s: %d in row %llu, column %llu: int4 is -8 to 7",
                           tensor->name, (int8_t)code, (unsigned long long)row,
                           (unsigned long long)k);
        out[k / 2] |= (uint8_t)(((code >> shift & 15) ^ 8) << 4 * (k % 2));
    }
    return 0;
}

/* Rows of int4 that have a byte for each column. */
static int read_codes(const mp_checkpoint *ckpt, const mp_storage *storage, const mp_matrix *matrix,
                      uint64_t cols, uint64_t row0, uint64_t rows, uint8_t *out, mp_error *err)
{
    const mp_tensor *weight = matrix->weight;
    uint64_t packed = storage->int4 == MP_INT4_ROWS ? 2 : 1;
    uint64_t per_slice = storage->fusion == MP_FUSION_NONE ? 0 : weight->shape[1];
    uint64_t stride = stored_cols(matrix, cols), first = matrix->slice * per_slice * packed;
    uint8_t *codes = mp_alloc(cols, 1);
    int rc = codes ? 0 : mp_fail_memory(err);

    for (uint64_t r = 0; r < rows && rc == 0; r++) {
        uint64_t row = first + matrix->first + (row0 + r) * step_of(matrix);

        rc = mp_tensor_read(ckpt, weight, row / packed * stride + matrix->first_col, cols, codes,
                            err);
        if (rc == 0)
            rc = pack_codes(storage, weight, codes, row, cols,
                            out + r * mp_storage_row_bytes(storage, cols), err);
    }
    free(codes);
    return rc;
}

static int read_weight(const mp_catalog *catalog, const mp_storage *storage,
                       const mp_matrix *matrix, uint64_t cols, uint64_t row0, uint64_t rows,
                       uint8_t *out, mp_error *err)
{
    const mp_checkpoint *ckpt = &catalog->checkpoint;
    uint64_t per_slice = storage->fusion == MP_FUSION_NONE ? 0 : matrix->weight->shape[1];
    pieces piece = {
        .stride = mp_storage_row_bytes(storage, stored_cols(matrix, cols)),
        .offset = mp_storage_row_bytes(storage, matrix->first_col),
        .bytes = mp_storage_row_bytes(storage, cols),
    };

    if (storage->int4 == MP_INT4_ROWS || storage->int4 == MP_INT4_BYTES)
        return read_codes(ckpt, storage, matrix, cols, row0, rows, out, err);
    if (mp_fusion_is_transposed(storage->fusion))
        return read_transposed(ckpt, matrix->weight, matrix,
                               mp_dtype_bits(storage->weight_dtype) / 8, &piece, row0, rows, out,
                               err);
    return read_strided(ckpt, matrix->weight, matrix, per_slice, &piece, row0, rows, out, err);
}

/* The scale rows that cover rows row0 .. row0+rows-1. */
static int read_scale(const mp_catalog *catalog, const mp_storage *storage, const mp_matrix *matrix,
                      uint64_t cols, uint64_t row0, uint64_t rows, uint8_t *out, mp_error *err)
{
    const mp_checkpoint *ckpt = &catalog->checkpoint;
    uint64_t block = storage->block_rows;
    uint64_t first = row0 / block, count = (row0 + rows - 1) / block - first + 1;
    uint64_t per_slice = 0;
    mp_matrix blocks = *matrix;

    if (matrix->scale->bytes * 8 == mp_dtype_bits(matrix->scale->dtype)) /* one for all slices */
        blocks.slice = 0;
    pieces piece = {
        .stride = mp_storage_scale_row_bytes(storage, stored_cols(matrix, cols)),
        .bytes = mp_storage_scale_row_bytes(storage, cols),
    };

    /* A scale per row covers all columns. */
    if (matrix->first_col > 0 && storage->block_cols != UINT32_MAX)
        piece.offset = mp_storage_scale_row_bytes(storage, matrix->first_col);
    /* With one column there is nothing to turn over, be they [E, 1, N] or [E, N]. */
    if (mp_fusion_is_transposed(storage->fusion) && block == 1 && storage->block_cols != UINT32_MAX)
        return read_transposed(ckpt, matrix->scale, matrix, mp_dtype_bits(storage->scale_dtype) / 8,
                               &piece, row0, rows, out, err);
    if (storage->fusion != MP_FUSION_NONE)
        per_slice = mp_ceil_div(
            matrix->weight->shape[mp_fusion_is_transposed(storage->fusion) ? 2 : 1], block);
    blocks.first = matrix->first / block;
    return read_strided(ckpt, matrix->scale, &blocks, per_slice, &piece, first, count, out, err);
}

/* Products of the scale of each row and those of its groups. */
static int read_two_scales(const mp_catalog *catalog, const mp_storage *storage,
                           const mp_matrix *matrix, uint64_t cols, uint64_t row0, uint64_t rows,
                           float *out, mp_error *err)
{
    const mp_tensor *const tensors[] = {matrix->scale, matrix->group_scale};
    uint64_t groups = mp_ceil_div(cols, storage->block_cols);
    uint8_t *scales[2] = {mp_alloc(rows, sizeof(float)), mp_alloc(rows * groups, sizeof(float))};
    int rc = scales[0] && scales[1] ? 0 : mp_fail_memory(err);

    for (int i = 0; i < 2 && rc == 0; i++) {
        mp_storage each = *storage;
        mp_matrix view = *matrix;

        view.scale = tensors[i];
        each.scale_dtype = tensors[i]->dtype;
        each.block_cols = i == 0 ? UINT32_MAX : storage->block_cols;
        rc = read_scale(catalog, &each, &view, cols, row0, rows, scales[i], err);
    }
    for (uint64_t i = 0; i < rows * groups && rc == 0; i++)
        out[i] = mp_scale_value(tensors[0]->dtype, scales[0], i / groups) *
                 mp_scale_value(tensors[1]->dtype, scales[1], i);
    free(scales[0]);
    free(scales[1]);
    return rc;
}

int mp_matrix_read_rows(const mp_catalog *catalog, const mp_storage *storage,
                        const mp_matrix *matrix, uint64_t cols, uint64_t row0, uint64_t rows,
                        void *weight, void *scale, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    if (rows == 0)
        return 0;
    if (weight && read_weight(catalog, storage, matrix, cols, row0, rows, weight, err) != 0)
        return err->code;
    if (weight &&
        storage->int4 == MP_INT4_COLUMNS) /* n + 8 of n in -8..7 differs in the sign bit */
        for (uint64_t i = 0; i < rows * mp_storage_row_bytes(storage, cols); i++)
            ((uint8_t *)weight)[i] ^= 0x88;
    if (!scale || !storage->has_scale)
        return 0;
    if (storage->two_scales)
        return read_two_scales(catalog, storage, matrix, cols, row0, rows, scale, err);
    return read_scale(catalog, storage, matrix, cols, row0, rows, scale, err);
}

/* One number may stand for all slices, for each slice, or for gate and up of each. */
int mp_matrix_scalar(const mp_catalog *catalog, const mp_matrix *matrix, const mp_tensor *tensor,
                     float *number, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    uint64_t count = tensor->bytes / sizeof *number, slices = 1, at = matrix->slice;

    if (tensor->dtype != MP_F32)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: %s cannot be stored, only F32", tensor->name,
                       mp_dtype_name(tensor->dtype));
    if (matrix->weight && matrix->weight->rank > 2)
        slices = matrix->weight->shape[0];
    if (count < slices || count == 1) /* one does for all */
        at = 0;
    else if (count == 2 * slices) /* of gate and of up */
        at = 2 * at + (matrix->first > 0);
    if (mp_tensor_read(&catalog->checkpoint, tensor, at * sizeof *number, sizeof *number, number,
                       err) != 0)
        return err->code;
    if (!(*number > 0) || !isfinite(*number))
        return mp_fail(err, MP_ERR_INPUT, "%s: %g, expected a positive finite number", tensor->name,
                       (double)*number);
    return 0;
}

int mp_matrix_global(const mp_catalog *catalog, const mp_matrix *matrix, float *global,
                     mp_error *err)
{
    err = MP_NEVER_NULL(err);
    *global = 1;
    return matrix->global ? mp_matrix_scalar(catalog, matrix, matrix->global, global, err) : 0;
}

static int check_offset(const mp_catalog *catalog, const mp_tensor *offset, mp_error *err)
{
    uint8_t piece[PIECE_BYTES];

    for (uint64_t at = 0; offset && at < offset->bytes; at += PIECE_BYTES) {
        uint64_t n = offset->bytes - at < PIECE_BYTES ? offset->bytes - at : PIECE_BYTES;

        if (mp_tensor_read(&catalog->checkpoint, offset, at, n, piece, err) != 0)
            return err->code;
        if (!mp_offsets_are_zero(offset->dtype, piece, n))
            return mp_fail(err, MP_ERR_UNSUPPORTED,
                           "%s: zero points that are not zero cannot be decoded", offset->name);
    }
    return 0;
}

int mp_matrix_check_offset(const mp_catalog *catalog, const mp_matrix *matrix, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    int rc = check_offset(catalog, matrix->offset, err);

    return rc ? rc : check_offset(catalog, matrix->group_offset, err);
}

/* By slice: of its neighbours others take care. */
static void advise(const mp_catalog *catalog, const mp_matrix *matrix,
                   void (*act)(const mp_checkpoint *ckpt, const mp_tensor *tensor, uint64_t offset,
                               uint64_t n))
{
    const mp_tensor *const tensors[] = {matrix->weight, matrix->scale};

    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
        const mp_tensor *t = tensors[i];
        uint64_t slices = t && matrix->weight->rank > 2 && t->rank > 0 ? t->shape[0] : 1;

        if (t)
            act(&catalog->checkpoint, t, matrix->slice * (t->bytes / slices), t->bytes / slices);
    }
}

void mp_matrix_ahead(const mp_catalog *catalog, const mp_matrix *matrix)
{
    advise(catalog, matrix, mp_tensor_ahead);
}

void mp_matrix_forget(const mp_catalog *catalog, const mp_matrix *matrix)
{
    advise(catalog, matrix, mp_tensor_forget);
}
