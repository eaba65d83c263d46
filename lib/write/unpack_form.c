/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a form of the manifest is one that a pack can be written in. A manifest may come from
 * anyone, and unpacking writes by its forms: so every tensor of a form is held against what slots
 * can give, to the byte, and what is left over or missing is refused by name, before any file is
 * made.
 *
 *   bytes wanted = matrices * rows * bytes of a row
 *
 * where matrices are the experts of a fused tensor, twice where gate and up are joined, and else 1.
 *
 * Shapes as such are not compared: a tensor may be [E, N, K] or [E * N, K], as long as its bytes
 * are those. Where a shared expert is put together from slots, gate and up have more rows and down
 * has more columns. One thread. */
#include "write/unpack.h"

#include "base/error.h"
#include "base/words.h"
#include "checkpoint/tensor.h"
#include "layout/sides.h"
#include "numeric/forms.h"

#include <string.h>

mp_role mp_unpack_role(const mp_form *form, mp_role role)
{
    return role == MP_ROLE_GLOBAL_SCALE && !form->global_divides ? MP_ROLE_ALPHA : role;
}

bool mp_unpack_is_joined(const mp_form *form)
{
    return form->fusion != MP_FUSION_NONE && form->fusion != MP_FUSION_STACKED;
}

mp_projection mp_unpack_matrix(const mp_unpack_form *f, mp_side side, unsigned part)
{
    if (side == MP_L1 && mp_unpack_is_joined(f->form))
        return MP_GATE_UP;
    return (mp_projection)(mp_side_first(side) + part);
}

/* Sizes of what a tensor of a form stores. */
typedef struct extent {
    mp_side side;
    uint64_t matrices; /* experts of a fused tensor times its parts; 1 */
    uint64_t rows, cols;
} extent;

static int find_extent(const mp_unpack_form *f, const mp_form_tensor *tensor, const char *prefix,
                       uint32_t experts, extent *x, mp_error *err)
{
    const mp_dims *dims = &f->set->dims;
    bool fused = f->form->fusion != MP_FUSION_NONE, joined = mp_unpack_is_joined(f->form);
    bool down = tensor->matrix == MP_DOWN;

    if (!down && joined != (tensor->matrix == MP_GATE_UP))
        return mp_fail(err, MP_ERR_INPUT, "%s: %s.%s: matrix \"%s\" of experts that are %sfused",
                       MP_MANIFEST_NAME, prefix, tensor->name, mp_projection_name(tensor->matrix),
                       joined ? "" : "not ");
    x->side = down ? MP_L2 : MP_L1;
    x->matrices = fused ? (uint64_t)experts * (joined ? mp_side_parts(x->side) : 1) : 1;
    x->rows = mp_side_rows(dims, x->side) * (down ? 1 : f->slots);
    x->cols = mp_side_cols(dims, x->side) * (down ? f->slots : 1);
    return 0;
}

/* Scales of a matrix that is put together from slots: bytes in the tensor's type. */
static uint64_t scale_bytes(const mp_unpack_form *f, const mp_form_tensor *tensor, const extent *x)
{
    const mp_slot_set *set = f->set;
    const mp_scheme_form *canonical = mp_scheme_form_of(set->target->scheme);
    uint64_t rows = mp_target_scale_rows(set->target, &set->dims, x->side);
    uint64_t row = mp_target_scale_row_bytes(set->target, &set->dims, x->side) * 8 /
                   mp_dtype_bits(canonical->scale_dtype);
    /* Scales of whole rows: those of down are the same in all slots. */
    bool whole = canonical->block_cols == UINT32_MAX;
    uint64_t slots = x->side == MP_L2 && whole ? 1 : f->slots;

    return x->matrices * rows * row * slots * mp_dtype_bits(tensor->dtype) / 8;
}

uint64_t mp_unpack_numbers(const mp_unpack_form *f, const mp_form_tensor *tensor, uint32_t experts)
{
    /* "[E, 2]" is how compressed-tensors stores one for gate and one for up. */
    uint64_t last = tensor->rank > 1 ? tensor->shape[tensor->rank - 1] : 1;

    if (f->form->fusion == MP_FUSION_NONE)
        return 1;
    return tensor->matrix == MP_GATE_UP && last == 2 ? 2 * (uint64_t)experts : experts;
}

/* Bytes that a tensor has to have. */
static uint64_t wanted_bytes(const mp_unpack_form *f, const mp_form_tensor *tensor, mp_role role,
                             uint32_t experts, const extent *x)
{
    switch (role) {
    case MP_ROLE_WEIGHT:
        return x->matrices * x->rows * mp_scheme_row_bytes(f->set->target->scheme, x->cols);
    case MP_ROLE_SCALE:
        return scale_bytes(f, tensor, x);
    case MP_ROLE_OFFSET:
        return x->rows * sizeof(float);
    default:
        break;
    }
    return mp_unpack_numbers(f, tensor, experts) * sizeof(float);
}

static int check_bytes(const mp_form_tensor *tensor, const char *prefix, uint64_t wanted,
                       mp_error *err)
{
    const mp_tensor_spec spec = {tensor->name, tensor->dtype, tensor->rank, tensor->shape};
    char shape[MP_SHAPE_TEXT];
    uint64_t bytes;

    if (mp_tensor_spec_bytes(&spec, &bytes, err) != 0)
        return mp_error_prefix(err, "%s: %s", MP_MANIFEST_NAME, prefix);
    if (bytes == wanted)
        return 0;
    return mp_fail(err, MP_ERR_INPUT, "%s: %s.%s: %s %s has %llu bytes, expected %llu",
                   MP_MANIFEST_NAME, prefix, tensor->name, mp_dtype_name(tensor->dtype),
                   mp_shape_text(tensor->shape, tensor->rank, shape), (unsigned long long)bytes,
                   (unsigned long long)wanted);
}

/* [N, K] of a packed weight. */
static int check_shape_tensor(const mp_unpack_form *f, const mp_form_tensor *tensor,
                              const char *prefix, mp_error *err)
{
    if (f->form->fusion == MP_FUSION_NONE && (tensor->dtype == MP_I32 || tensor->dtype == MP_I64))
        return check_bytes(tensor, prefix, 2 * mp_dtype_bits(tensor->dtype) / 8, err);
    return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: %s.%s: a shape of %s cannot be written",
                   MP_MANIFEST_NAME, prefix, tensor->name, mp_dtype_name(tensor->dtype));
}

static int check_tensor(const mp_unpack_form *f, const mp_form_tensor *tensor, const char *prefix,
                        uint32_t experts, mp_error *err)
{
    mp_role role = mp_unpack_role(f->form, tensor->role);
    extent x = {0};

    if (find_extent(f, tensor, prefix, experts, &x, err) != 0)
        return err->code;
    if (role == MP_ROLE_SHAPE)
        return check_shape_tensor(f, tensor, prefix, err);
    if (!mp_set_tensor(f->set, x.side, role) ||
        (role == MP_ROLE_OFFSET && f->form->fusion != MP_FUSION_NONE))
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: %s.%s: %s holds no %s of such experts",
                       MP_MANIFEST_NAME, prefix, tensor->name, f->set->target->name,
                       mp_role_name(tensor->role));
    if (role > MP_ROLE_SCALE && tensor->dtype != MP_F32)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: %s.%s: %s, only F32 can be written",
                       MP_MANIFEST_NAME, prefix, tensor->name, mp_dtype_name(tensor->dtype));
    if (role == MP_ROLE_WEIGHT && mp_fusion_is_transposed(f->form->fusion) &&
        mp_dtype_bits(tensor->dtype) != mp_scheme_bits(f->set->target->scheme))
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s: %s.%s: several weights to a %s cannot be written transposed",
                       MP_MANIFEST_NAME, prefix, tensor->name, mp_dtype_name(tensor->dtype));
    return check_bytes(tensor, prefix, wanted_bytes(f, tensor, role, experts, &x), err);
}

/* The blocks of scales are those that the target has. */
static int check_blocks(const mp_unpack_form *f, const char *prefix, mp_error *err)
{
    const mp_form *form = f->form;
    const mp_scheme_form *canonical = mp_scheme_form_of(f->set->target->scheme);
    const char *scheme = mp_scheme_name(f->set->target->scheme);

    if (form->scheme != f->set->target->scheme)
        return mp_fail(err, MP_ERR_INPUT, "%s: %s: experts of %s in a form of %s", MP_MANIFEST_NAME,
                       prefix, scheme, mp_scheme_name(form->scheme));
    if (canonical->has_scale &&
        (form->block_rows != canonical->block_rows || form->block_cols != canonical->block_cols))
        return mp_fail(err, MP_ERR_INPUT, "%s: %s: a form in blocks of %ux%u, %s has %ux%u",
                       MP_MANIFEST_NAME, prefix, form->block_rows, form->block_cols, scheme,
                       canonical->block_rows, canonical->block_cols);
    return 0;
}

/* A matrix is nothing without its weight and the scales that its scheme has. */
static int check_whole(const mp_unpack_form *f, const char *prefix, mp_error *err)
{
    const mp_scheme_form *canonical = mp_scheme_form_of(f->set->target->scheme);
    const bool wanted[] = {[MP_ROLE_WEIGHT] = true,
                           [MP_ROLE_SCALE] = canonical->has_scale,
                           [MP_ROLE_GLOBAL_SCALE] = canonical->has_global};

    for (int p = 0; p < MP_PROJECTIONS; p++) {
        mp_projection matrix = mp_unpack_matrix(f, p == MP_DOWN ? MP_L2 : MP_L1, p == MP_UP);

        for (size_t role = 0; role < sizeof wanted; role++)
            if (wanted[role] && !mp_form_find(f->form, matrix, (mp_role)role))
                return mp_fail(err, MP_ERR_INPUT, "%s: %s: a form without a %s of \"%s\"",
                               MP_MANIFEST_NAME, prefix, mp_role_name((mp_role)role),
                               mp_projection_name(matrix));
    }
    return 0;
}

int mp_unpack_check_form(const mp_unpack_form *f, const char *prefix, uint32_t experts,
                         mp_error *err)
{
    if (check_blocks(f, prefix, err) != 0)
        return err->code;
    for (size_t t = 0; t < f->form->num_tensors; t++)
        if (check_tensor(f, &f->form->tensors[t], prefix, experts, err) != 0)
            return err->code;
    return check_whole(f, prefix, err);
}
