/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint/mixture.h - layers whose matrices are each sound, in several formats. */
#ifndef MP_CHECKPOINT_MIXTURE_H
#define MP_CHECKPOINT_MIXTURE_H

#include <moepack/model.h>

/* MP_ERR_UNSUPPORTED where two matrices of the layer's routed experts, or two of its shared one,
 * are in different formats. A matrix that is in no known format, or does not fit its own, is
 * none of its business. */
int mp_layer_check_mixture(const mp_catalog *catalog, const mp_moe_layer *layer, mp_error *err);

#endif
