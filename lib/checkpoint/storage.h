/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint/storage.h - in which scheme a pair of tensors stores a matrix. */
#ifndef MP_CHECKPOINT_STORAGE_H
#define MP_CHECKPOINT_STORAGE_H

#include <moepack/model.h>

/* Recognizes the scheme of a matrix by the types and shapes of its tensors; of a fused
 * tensor, that of all it holds a slice. False when they are no known form; rows and logical
 * columns go to *rows, *cols. */
bool mp_storage_recognize(const mp_matrix *matrix, mp_fusion fusion, const mp_config *config,
                          mp_storage *storage, uint64_t *rows, uint64_t *cols);

/* Checks types and shapes of a matrix [rows, cols], or of `slices` of them in fused tensors,
 * that has to be stored like `storage`; problems are listed. A missing tensor is none of its
 * business. */
void mp_storage_check(const mp_storage *storage, const mp_matrix *matrix, uint64_t slices,
                      uint64_t rows, uint64_t cols, mp_problems *problems);

/* Whether the zero points in so many whole elements of a type are zero; -0.0 is. */
bool mp_offsets_are_zero(mp_dtype dtype, const void *offsets, uint64_t bytes);

/* "fp8_block with F32 scales", malloc-free. */
#define MP_STORAGE_TEXT 64
char *mp_storage_text(const mp_storage *storage, char text[MP_STORAGE_TEXT]);

#endif
