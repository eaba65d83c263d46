/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors of a converted checkpoint outside of its experts: attention, embeddings, norms, routers.
 * A converter may leave them alone or quantize them too, so each tensor of the source is compared
 * in one of three ways, decided by its name and type only:
 *
 *   same type and shape                 the same bytes; of a quantized weight, or the same values
 *   a weight [N, K] of another type     the values, within the bound of its new scheme
 *   anything else                       a fault
 *
 * Scales are not compared for themselves: "NAME.weight_scale" is a part of "NAME.weight", or of
 * "NAME.weight_packed", and is read with it. A tensor counts as a scale only where such a weight is
 * beside it.
 *
 * Tensors of the source are spread over all threads. Each thread reads through both checkpoints,
 * which are only read, and allocates for itself what it compares; faults lock for themselves. */
#include "verify/converted_modules.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/parallel.h"
#include "checkpoint/conventions.h"
#include "checkpoint/matrix.h"
#include "checkpoint/names.h"
#include "checkpoint/storage.h"
#include "checkpoint/tensor.h"
#include "numeric/scales.h"
#include "verify/weights.h"

#define PIECE_BYTES (UINT64_C(1) << 20)

typedef struct modules {
    const mp_catalog *have, *source;
    const mp_exceptions *exceptions;
    mp_faults *faults;
    double tolerance;
} modules;

/* Of a matrix, biases and zero points are compared for themselves. */
static bool is_part(const mp_suffix_row *suffix)
{
    return suffix->role != MP_ROLE_BIAS && suffix->role != MP_ROLE_OFFSET;
}

/* Length of the module's name, and what its tensor is to it; null where it is no part. */
static size_t module_of(const char *name, const mp_suffix_row **part)
{
    size_t length = strlen(name);

    /* Each suffix begins with its only dot, so none is the end of another. */
    for (size_t i = 0; i < MP_SUFFIXES_OF_ONE; i++) {
        size_t n = strlen(mp_suffixes[i].text);

        *part = &mp_suffixes[i];
        if (is_part(*part) && length > n && strcmp(name + length - n, (*part)->text) == 0)
            return length - n;
    }
    *part = NULL;
    return length;
}

static int find_beside(const mp_checkpoint *ckpt, const char *name, size_t module,
                       const char *suffix, const mp_tensor **found, mp_error *err)
{
    char *other = mp_format("%.*s%s", (int)module, name, suffix);

    if (!other)
        return mp_fail_memory(err);
    *found = mp_checkpoint_find(ckpt, other);
    free(other);
    return 0;
}

static int find_weight(const mp_checkpoint *ckpt, const char *name, size_t module,
                       const mp_tensor **found, mp_error *err)
{
    int rc = 0;

    *found = NULL;
    for (size_t i = 0; rc == 0 && i < MP_SUFFIXES_OF_ONE && !*found; i++)
        if (mp_suffixes[i].role == MP_ROLE_WEIGHT)
            rc = find_beside(ckpt, name, module, mp_suffixes[i].text, found, err);
    return rc;
}

/* The weight of a module with what stands beside it; *known: it is a matrix in a known form. */
static int module_weights(const mp_catalog *catalog, const char *name, size_t module,
                          mp_weights *out, bool *known, mp_error *err)
{
    *out = (mp_weights){.catalog = catalog};
    for (size_t i = 0; i < MP_SUFFIXES_OF_ONE; i++) {
        const mp_suffix_row *part = &mp_suffixes[i];
        const mp_tensor *found = NULL;

        if (!is_part(part))
            continue;
        if (find_beside(&catalog->checkpoint, name, module, part->text, &found, err) != 0)
            return err->code;
        if (!found)
            continue;
        *mp_matrix_place(&out->matrix, part->role) = found;
        if (part->role == MP_ROLE_GLOBAL_SCALE)
            out->matrix.global_divides = part->divides;
    }
    *known = out->matrix.weight && out->matrix.weight->rank == 2 &&
             mp_storage_recognize(&out->matrix, MP_FUSION_NONE, &catalog->config, &out->storage,
                                  &out->rows, &out->cols);
    if (*known) {
        mp_problems problems = {0};

        /* Recognizing goes by types and ranks; only this holds the shapes of scales against the
         * weight's, and reading relies on them. */
        mp_storage_check(&out->storage, &out->matrix, 1, out->rows, out->cols, &problems);
        *known = problems.count == 0;
        mp_problems_release(&problems);
    }
    return 0;
}

static bool same_form(const mp_tensor *a, const mp_tensor *b)
{
    if (a->dtype != b->dtype || a->rank != b->rank)
        return false;
    for (uint32_t d = 0; d < a->rank; d++)
        if (a->shape[d] != b->shape[d])
            return false;
    return true;
}

/* The first byte that differs, or UINT64_MAX. */
static int first_difference(const modules *m, const mp_tensor *have, const mp_tensor *source,
                            uint64_t *at, mp_error *err)
{
    uint8_t *piece[2] = {malloc(PIECE_BYTES), malloc(PIECE_BYTES)};
    int rc = piece[0] && piece[1] ? 0 : mp_fail_memory(err);

    *at = UINT64_MAX;
    for (uint64_t done = 0; rc == 0 && done < have->bytes && *at == UINT64_MAX;
         done += PIECE_BYTES) {
        uint64_t left = have->bytes - done, n = left < PIECE_BYTES ? left : PIECE_BYTES;

        rc = mp_tensor_read(&m->have->checkpoint, have, done, n, piece[0], err);
        if (rc == 0)
            rc = mp_tensor_read(&m->source->checkpoint, source, done, n, piece[1], err);
        /* have->bytes bounds both reads: the caller has seen the same type and shape. */
        for (uint64_t i = 0; rc == 0 && i < n && *at == UINT64_MAX; i++)
            if (piece[0][i] != piece[1][i])
                *at = done + i;
    }
    free(piece[0]);
    free(piece[1]);
    mp_tensor_forget(&m->have->checkpoint, have, 0, have->bytes);
    mp_tensor_forget(&m->source->checkpoint, source, 0, source->bytes);
    return rc;
}

static mp_spot spot_of(const char *name)
{
    return (mp_spot){MP_VERIFY_EXACT, -1, -1, -1, name, -1};
}

static void report_changed(const modules *m, const char *name, uint64_t at)
{
    const mp_spot spot = spot_of(name);

    mp_fault_add(m->faults, &spot, "should be unchanged, but differs from byte %" PRIu64 " on", at);
}

/* A module whose weight is stored otherwise than the source's. */
static int compare_values(const modules *m, const mp_tensor *source, size_t module, mp_error *err)
{
    const mp_spot spot = spot_of(source->name);
    mp_weights have, want;
    bool known[2] = {false, false};
    const char *entry = NULL;
    mp_likeness likeness;
    double bound;

    if (module_weights(m->have, source->name, module, &have, &known[0], err) != 0 ||
        module_weights(m->source, source->name, module, &want, &known[1], err) != 0)
        return err->code;
    if (!have.matrix.weight) {
        mp_fault_add(m->faults, &spot, "is missing");
        return 0;
    }
    if (!known[0] || !known[1] || have.rows != want.rows || have.cols != want.cols) {
        char text[2][MP_SHAPE_TEXT];
        const mp_tensor *weight = have.matrix.weight;

        mp_fault_add(m->faults, &spot, "%s %s, the source has %s %s", mp_dtype_name(weight->dtype),
                     mp_shape_text(weight->shape, weight->rank, text[0]),
                     mp_dtype_name(source->dtype),
                     mp_shape_text(source->shape, source->rank, text[1]));
        return 0;
    }
    if (have.storage.has_scale &&
        mp_exceptions_find(m->exceptions, have.matrix.weight->name, &entry, err) != 0)
        return err->code;
    if (entry) {
        mp_fault_add(m->faults, &spot,
                     "should not be quantized by \"%s\" in the list of exceptions, but is %s",
                     entry, mp_scheme_name(have.storage.scheme));
        return 0;
    }
    if (mp_weights_compare(&have, &want, UINT64_MAX, &likeness, err) != 0)
        return err->code;
    /* How the module is stored now decides, not how it was. */
    bound = m->tolerance > 0 ? m->tolerance : mp_scheme_bound(have.storage.scheme);
    /* Written so that a NaN is a fault. */
    if (!(likeness.relative <= bound))
        mp_fault_add(m->faults, &spot, "relative RMS error %.3g, %s may have %g", likeness.relative,
                     mp_scheme_name(have.storage.scheme), bound);
    return 0;
}

/* Whether the scales of a weight stand beside it on both sides, byte for byte. An input scale that
 * both have is to stay with the codes. */
static int same_scales(const modules *m, const char *name, size_t module, bool *same, mp_error *err)
{
    *same = true;
    for (size_t i = 0; i < MP_SUFFIXES_OF_ONE && *same; i++) {
        const mp_suffix_row *part = &mp_suffixes[i];
        const mp_tensor *have = NULL, *source = NULL;
        uint64_t at = UINT64_MAX;

        if (!is_part(part) || part->role == MP_ROLE_WEIGHT)
            continue;
        if (find_beside(&m->have->checkpoint, name, module, part->text, &have, err) != 0 ||
            find_beside(&m->source->checkpoint, name, module, part->text, &source, err) != 0)
            return err->code;
        bool alike = have && source && same_form(have, source);
        if (alike && first_difference(m, have, source, &at, err) != 0)
            return err->code;
        /* Scales that are not the same mean only that values have to be compared. A changed input
         * scale beside the very same codes is a fault of its own: no decoding would show it. */
        if (part->role != MP_ROLE_INPUT_SCALE)
            *same = at == UINT64_MAX && (alike || (!have && !source));
        else if (at != UINT64_MAX)
            report_changed(m, source->name, at);
    }
    return 0;
}

static int check_tensor(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const modules *m = user;
    const mp_tensor *source = &m->source->checkpoint.tensors[index], *weight = NULL;
    const mp_tensor *have = mp_checkpoint_find(&m->have->checkpoint, source->name);
    const mp_spot spot = spot_of(source->name);
    mp_expert_name parts;
    const mp_suffix_row *part;
    size_t module = module_of(source->name, &part);
    uint64_t at;

    (void)scratch;
    mp_expert_name_parse(source->name, &parts);
    if (parts.kind != MP_NAME_OTHER)
        return 0;
    if (part && part->role != MP_ROLE_WEIGHT) {
        if (find_weight(&m->source->checkpoint, source->name, module, &weight, err) != 0)
            return err->code;
        if (weight)
            return 0;
    }
    bool is_weight = part && part->role == MP_ROLE_WEIGHT;
    /* Not even a quantizer renames what is no weight. */
    if (!have && !is_weight) {
        mp_fault_add(m->faults, &spot, "is missing");
        return 0;
    }
    if (!have || !same_form(have, source)) {
        /* One that has another name in the new checkpoint ("weight_packed") is found by
         * compare_values. */
        if (is_weight && source->rank == 2)
            return compare_values(m, source, module, err);
        mp_fault_add(m->faults, &spot,
                     have ? "its type or shape is not that of the source" : "is missing");
        return 0;
    }
    if (first_difference(m, have, source, &at, err) != 0)
        return err->code;
    /* A weight that was quantized in the source may have got other codes, and other scales. */
    if (is_weight && mp_dtype_bits(source->dtype) <= 8) {
        bool same = false;

        if (at == UINT64_MAX && same_scales(m, source->name, module, &same, err) != 0)
            return err->code;
        return same ? 0 : compare_values(m, source, module, err);
    }
    if (at == UINT64_MAX)
        return 0;
    report_changed(m, source->name, at);
    return 0;
}

int mp_check_input_scale(const mp_catalog *have, const mp_tensor *tensor, uint64_t index,
                         mp_spot spot, mp_faults *faults, mp_error *err)
{
    uint64_t width = mp_dtype_bits(tensor->dtype) / 8;
    uint8_t bytes[sizeof(float)];
    float value;

    if ((tensor->dtype != MP_F32 && tensor->dtype != MP_BF16 && tensor->dtype != MP_F16) ||
        tensor->bytes < (index + 1) * width)
        return 0;
    if (mp_tensor_read(&have->checkpoint, tensor, index * width, width, bytes, err) != 0)
        return err->code;
    mp_scale_values(tensor->dtype, bytes, 0, 1, &value);
    spot.tensor = tensor->name;
    if (!(value > 0) || !isfinite(value))
        mp_fault_add(faults, &spot, "input scale %g, expected a positive finite number",
                     (double)value);
    return 0;
}

/* Input scales of modules that are no experts; the source need not have them. */
static int check_input_scales(const modules *m, mp_error *err)
{
    const mp_checkpoint *ckpt = &m->have->checkpoint;

    for (size_t i = 0; i < ckpt->num_tensors; i++) {
        const mp_tensor *tensor = &ckpt->tensors[i];
        const mp_suffix_row *part;
        mp_expert_name parts;

        module_of(tensor->name, &part);
        mp_expert_name_parse(tensor->name, &parts);
        if (!part || part->role != MP_ROLE_INPUT_SCALE || parts.kind != MP_NAME_OTHER)
            continue;
        if (mp_check_input_scale(m->have, tensor, 0, spot_of(tensor->name), m->faults, err) != 0)
            return err->code;
    }
    return 0;
}

int mp_check_modules(const mp_catalog *have, const mp_catalog *source,
                     const mp_exceptions *exceptions, mp_faults *faults, double tolerance,
                     const mp_context *context, mp_error *err)
{
    modules m = {have, source, exceptions, faults, tolerance};

    if (check_input_scales(&m, err) != 0)
        return err->code;
    return mp_parallel(context, source->checkpoint.num_tensors, 0, check_tensor, &m, err);
}
