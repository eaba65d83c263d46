/* SPDX-License-Identifier: Apache-2.0 */
/* The form in which each scheme is written. */
#include "numeric/forms.h"
#include "numeric/encode.h"
#include "numeric/kernels.h"

/* In the order of the struct: canonical, has_nan, has_scale, has_global, scale_dtype,
 * block_rows, block_cols, cols_of. */
static const mp_scheme_form forms[MP_SCHEME_COUNT] = {
    [MP_SCHEME_BF16] = {true, true, false, false, MP_F32, 1, 1, 1},
    [MP_SCHEME_MXFP4] = {true, false, true, false, MP_F8_E8M0, 1, MP_MX_BLOCK, MP_MX_BLOCK},
    [MP_SCHEME_MXFP8] = {true, true, true, false, MP_F8_E8M0, 1, MP_MX_BLOCK, MP_MX_BLOCK},
    [MP_SCHEME_FP8_BLOCK] = {true, true, true, false, MP_F32, MP_FP8_BLOCK, MP_FP8_BLOCK, 1},
    [MP_SCHEME_FP8_GROUP] = {true, true, true, false, MP_F32, 1, MP_FP8_BLOCK, 1},
    [MP_SCHEME_FP8_CHANNEL] = {true, true, true, false, MP_F32, 1, UINT32_MAX, 1},
    [MP_SCHEME_NVFP4] = {true, false, true, true, MP_F8_E4M3, 1, MP_NVFP4_BLOCK, MP_NVFP4_BLOCK},
    [MP_SCHEME_INT8_CHANNEL] = {true, false, true, false, MP_F32, 1, UINT32_MAX, 1},
};

const mp_scheme_form *mp_scheme_form_of(mp_scheme scheme)
{
    return (unsigned)scheme < MP_SCHEME_COUNT ? &forms[scheme] : NULL;
}
