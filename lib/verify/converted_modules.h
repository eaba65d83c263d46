/* SPDX-License-Identifier: Apache-2.0 */
/* verify/converted_modules.h - what is not an expert in a converted checkpoint. */
#ifndef MP_VERIFY_CONVERTED_MODULES_H
#define MP_VERIFY_CONVERTED_MODULES_H

#include <moepack/model.h>

#include "verify/exceptions.h"
#include "verify/faults.h"

/* Makes a fault of a scale of activations that is not positive and finite: quantizers leave zeros
 * and infinities where no token came. index: of the number in the tensor. */
int mp_check_input_scale(const mp_catalog *have, const mp_tensor *tensor, uint64_t index,
                         mp_spot spot, mp_faults *faults, mp_error *err);

/* Holds every tensor of the source that is no expert's against what became of it: the same bytes
 * where its type stayed, else, as for the weights of quantized modules, an error within the bound
 * of its scheme or the tolerance, if that is not 0; modules that exceptions name are to stay as
 * they are, or plain. Their input
 * scales are looked at too. Makes faults of what does not hold. */
int mp_check_modules(const mp_catalog *have, const mp_catalog *source,
                     const mp_exceptions *exceptions, mp_faults *faults, double tolerance,
                     const mp_context *context, mp_error *err);

#endif
