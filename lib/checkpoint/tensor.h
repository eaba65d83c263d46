/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint/tensor.h - bytes of tensors: how many there are, and when they are needed. */
#ifndef MP_CHECKPOINT_TENSOR_H
#define MP_CHECKPOINT_TENSOR_H

#include <moepack/store.h>

/* Tells the system that these bytes of the tensor will be read next, so that it begins to: with a
 * few MiB of them, as reading them asks for what follows by itself. Never fails. */
void mp_tensor_ahead(const mp_checkpoint *ckpt, const mp_tensor *tensor, uint64_t offset,
                     uint64_t n);

/* Tells the system that these bytes of the tensor will not be needed soon, so
 * that reading a checkpoint does not fill a memory cgroup. Never fails. */
void mp_tensor_forget(const mp_checkpoint *ckpt, const mp_tensor *tensor, uint64_t offset,
                      uint64_t n);

/* Bytes that a tensor takes; MP_ERR_INPUT when its bits do not fit 64 bits or
 * are not a whole number of bytes. */
int mp_tensor_spec_bytes(const mp_tensor_spec *spec, uint64_t *bytes, mp_error *err);

#endif
