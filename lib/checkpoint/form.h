/* SPDX-License-Identifier: Apache-2.0 */
/*
 * checkpoint/form.h - which tensors store the experts of a layer.
 *
 * A form (mp_form, artifact.h) lists the tensors of one expert, or those that hold all
 * experts of a layer: by matrix (gate, up, down; gate_up, down where fused), and of a matrix
 * in the order weight, scale, global_scale, input_scale, offset, shape. Biases are no part of
 * it. It is either read off a checkpoint, or made for experts that are to be written.
 */
#ifndef MP_CHECKPOINT_FORM_H
#define MP_CHECKPOINT_FORM_H

#include "checkpoint/conventions.h"

/* How the source stores the routed experts of a layer, or its shared expert: what expert 0
 * has, or what the fused tensors are. A shared expert whose gate and up are in one tensor is fused
 * by rows. The catalog has no problems.
 * MP_ERR_INPUT for a layer without a shared expert, or with a tensor of another layer. */
int mp_form_of_layer(const mp_catalog *catalog, const mp_moe_layer *layer, bool shared,
                     mp_form *form, mp_error *err);

/* The form of experts [intermediate, hidden] written by a convention with a tensor a matrix.
 * shared: of a shared expert, named as naming->shared says.
 * MP_ERR_UNSUPPORTED for sizes that the scheme's blocks do not divide. */
int mp_form_of_convention(const mp_convention *convention, const mp_naming *naming, bool shared,
                          uint64_t hidden, uint64_t intermediate, mp_form *form, mp_error *err);

/* The same of the convention that mp_convention_named() finds, which may fail too. */
int mp_style_form(const char *style, mp_scheme scheme, const mp_naming *naming, bool shared,
                  uint64_t hidden, uint64_t intermediate, mp_form *form, mp_error *err);

/* The tensor of a matrix and role, or null. */
const mp_form_tensor *mp_form_find(const mp_form *form, mp_projection matrix, mp_role role);

/* Its name in a layer, for an expert: "layers.3.ffn.experts.7.w1.weight". malloc'ed; null
 * without memory. */
char *mp_form_tensor_name(const mp_form_tensor *tensor, const char *prefix, uint32_t expert);

void mp_form_release(mp_form *form);

#endif
