/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint/matrix.h - the matrices of experts: which of a tensor is theirs, and reading it. */
#ifndef MP_CHECKPOINT_MATRIX_H
#define MP_CHECKPOINT_MATRIX_H

#include <moepack/model.h>

/* The tensor of a role, or null; and the member that holds it. No matrix has an alpha. */
const mp_tensor *mp_matrix_tensor(const mp_matrix *matrix, mp_role role);
const mp_tensor **mp_matrix_place(mp_matrix *matrix, mp_role role);

/* Rows and columns of one routed expert's matrix: N, K. */
void mp_catalog_shape(const mp_catalog *catalog, mp_projection projection, uint64_t *rows,
                      uint64_t *cols);

/* Bytes of a row of weights, and of a row of scales (which covers block_rows rows
 * of the matrix), of a matrix with `cols` columns. */
uint64_t mp_storage_row_bytes(const mp_storage *storage, uint64_t cols);
uint64_t mp_storage_scale_row_bytes(const mp_storage *storage, uint64_t cols);

/* The columns col0 .. of a matrix with `cols` columns, as a matrix. col0 is a multiple of the
 * columns of a scale, and of what is packed into one stored element. */
mp_matrix mp_matrix_columns(const mp_matrix *matrix, uint64_t cols, uint64_t col0);

/* The matrices of an expert that a slot holds: of routed expert `id` below num_experts; from
 * there on, the part of the shared expert that is as wide as a routed one, I rows of gate and
 * up and I columns of down. storage: set to how they are stored.
 * MP_ERR_INPUT for an id that there is not, MP_ERR_UNSUPPORTED where scales span two parts. */
int mp_layer_expert(const mp_catalog *catalog, const mp_moe_layer *layer, uint32_t id,
                    mp_expert *view, const mp_storage **storage, mp_error *err);

/* Bytes of the rows of weights and scales of a routed expert's matrices. */
uint64_t mp_layer_expert_bytes(const mp_catalog *catalog, const mp_moe_layer *layer);

/* Whether the shared expert of a layer can be a slot like those of routed ones: it weighs 1, and
 * computes the same. MP_ERR_UNSUPPORTED, with the reason, where it does not. */
int mp_layer_check_fusable(const mp_catalog *catalog, const mp_moe_layer *layer, mp_error *err);

/* Reads weight rows row0 .. row0+rows-1 of a matrix with `cols` columns, and the
 * scale rows that cover them.
 * weight: rows * mp_storage_row_bytes() bytes; may be null to leave them out.
 * scale: the scale rows row0 / block_rows .. (row0+rows-1) / block_rows; may be null
 *   to leave them out. */
int mp_matrix_read_rows(const mp_catalog *catalog, const mp_storage *storage,
                        const mp_matrix *matrix, uint64_t cols, uint64_t row0, uint64_t rows,
                        void *weight, void *scale, mp_error *err);

/* The second scale of a matrix as it is stored (storage->global_divides says how it acts); 1
 * where there is none. MP_ERR_INPUT for a scale that is not a positive finite number. */
int mp_matrix_global(const mp_catalog *catalog, const mp_matrix *matrix, float *global,
                     mp_error *err);

/* The number that a tensor of a matrix (`global` or `input_scale`) holds for it: of tensors for
 * all slices, which may have one for all of them, one for each, or two, for gate and up.
 * MP_ERR_INPUT for one that is not a positive finite number, MP_ERR_UNSUPPORTED for another type
 * than F32. */
int mp_matrix_scalar(const mp_catalog *catalog, const mp_matrix *matrix, const mp_tensor *tensor,
                     float *number, mp_error *err);

/* MP_ERR_INPUT when the matrix says another shape of its packed weights than [rows, cols].
 * Nothing for a matrix that says none. */
int mp_matrix_check_shape(const mp_catalog *catalog, const mp_matrix *matrix, uint64_t rows,
                          uint64_t cols, mp_error *err);

/* MP_ERR_UNSUPPORTED when one of the matrix's zero points, if it has any, is not zero. */
int mp_matrix_check_offset(const mp_catalog *catalog, const mp_matrix *matrix, mp_error *err);

/* Begins to read a matrix into the page cache. Never fails. */
void mp_matrix_ahead(const mp_catalog *catalog, const mp_matrix *matrix);

/* Drops the pages of a whole matrix from the page cache. Never fails. */
void mp_matrix_forget(const mp_catalog *catalog, const mp_matrix *matrix);

#endif
