/* SPDX-License-Identifier: Apache-2.0 */
/* Stored matrices as rows of a scheme. */
#include "experts/stored.h"

mp_rows mp_stored_rows(const mp_storage *storage, uint64_t row0, uint64_t rows, uint64_t cols,
                       const void *weight, const void *scale)
{
    return (mp_rows){
        .scheme = storage->scheme,
        .scale_dtype = storage->scale_dtype,
        .block_rows = storage->block_rows,
        .block_cols = storage->block_cols,
        .row0 = row0,
        .rows = rows,
        .cols = cols,
        .weight = weight,
        .scale = storage->has_scale ? scale : NULL,
        .global_divides = storage->global_divides,
    };
}

bool mp_stored_as(const mp_storage *storage, mp_scheme scheme)
{
    const mp_scheme_form *form = mp_scheme_form_of(scheme);

    return storage->scheme == scheme &&
           (!form->has_scale ||
            (storage->block_rows == form->block_rows && storage->block_cols == form->block_cols));
}
