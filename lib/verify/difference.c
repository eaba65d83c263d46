/* SPDX-License-Identifier: Apache-2.0 */
/* What to say of a slot that does not hold what it should. */
#include "verify/exact.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"

/* What a slot holds instead of its expert. */
typedef struct identity {
    bool exchanged; /* its expert, but up where gate belongs */
    int64_t expert; /* another one, or -1 */
} identity;

mp_spot mp_slot_side_spot(const mp_slot_side *s, mp_role role)
{
    const mp_held *held = s->held[role];
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_EXACT, s->rank->packed->rank);

    spot.layer = (int64_t)s->layer;
    spot.slot = s->slot;
    spot.tensor = held->tensor->name;
    return spot;
}

/* ------------------------------------------------------------------------
 * Whose data is it?
 */

/* True if the first rows of matrix `a` in the slot are those of matrix `b` of the expert
 * that want holds. */
static bool same_rows(const mp_slot_side *s, mp_role role, unsigned a, unsigned b)
{
    const mp_side_form *form = s->form;
    uint64_t rows = s->rows / form->parts;

    if (role == MP_ROLE_WEIGHT) {
        uint64_t bytes = rows * form->row_bytes;

        return memcmp(s->have + a * bytes, s->want + b * bytes, bytes) == 0;
    }
    uint64_t scale_rows = mp_ceil_div(rows, s->exact->source.canonical.block_rows);
    uint64_t stride = form->scale_rows * form->scale_row_bytes;

    return memcmp(s->have_scale + a * stride, s->want_scale + b * stride,
                  scale_rows * form->scale_row_bytes) == 0;
}

static bool is_expert(const mp_slot_side *s, mp_role role)
{
    for (unsigned part = 0; part < s->form->parts; part++)
        if (!same_rows(s, role, part, part))
            return false;
    return true;
}

static bool is_exchanged(const mp_slot_side *s, mp_role role)
{
    return s->form->parts == 2 && same_rows(s, role, 0, 1) && same_rows(s, role, 1, 0);
}

/* Compares the first rows of the slot with those of all experts of the layer. */
static int identify(mp_slot_side *s, mp_role role, identity *who, mp_error *err)
{
    uint32_t num_experts = s->exact->source.layers[s->layer]->num_experts;

    *who = (identity){.expert = -1};
    int rc = mp_slot_side_read(s, 0, s->exact->probe_rows[s->side], err);
    for (uint32_t e = 0; e < num_experts && who->expert < 0 && !who->exchanged && rc == 0; e++) {
        rc = mp_slot_side_want(s, e, err);
        if (rc != 0)
            break;
        if (e == s->expert)
            who->exchanged = is_exchanged(s, role);
        else if (is_expert(s, role))
            who->expert = e;
    }
    return rc;
}

/* ------------------------------------------------------------------------
 * Words
 */

/* The element of the packed tensor that byte `offset` of the slot is in. */
static int64_t element_at(const mp_slot_side *s, mp_role role, const mp_difference *d)
{
    if (role == MP_ROLE_WEIGHT && mp_scheme_bits(s->exact->source.canonical.scheme) == 4)
        return (int64_t)(2 * d->offset + ((d->have ^ d->want) & 0x0f ? 0 : 1));
    return (int64_t)(d->offset / (mp_dtype_bits(s->tensor[role]->dtype) / 8));
}

/* Writes a value with the digits of its width. */
static void write_value(char text[24], uint64_t value, unsigned bits)
{
    snprintf(text, 24, "0x%0*" PRIx64, bits < 8 ? 2 : (int)bits / 4, value);
}

/* "layers.3.ffn.experts.7.w1.weight row 5 column 12 says", and so on. */
static void write_source(const mp_slot_side *s, mp_role role, const mp_difference *d, char *text,
                         size_t size)
{
    const mp_source *source = &s->exact->source;
    const mp_storage *canonical = &source->canonical;
    const mp_expert *expert = &source->layers[s->layer]->experts[s->expert];
    const mp_matrix *matrix = &expert->matrix[s->form->first + d->part];
    bool passes = mp_source_passes_through(source, s->layer);
    unsigned bits = mp_scheme_bits(canonical->scheme);

    if (role == MP_ROLE_WEIGHT) {
        uint64_t column =
            bits == 4 ? 2 * d->byte + ((d->have ^ d->want) & 0x0f ? 0 : 1) : d->byte / (bits / 8);

        snprintf(text, size, "%s row %" PRIu64 " column %" PRIu64 " %s", matrix->weight->name,
                 d->row, column, passes ? "says" : "quantizes to");
        return;
    }
    uint64_t block = d->byte / (mp_dtype_bits(canonical->scale_dtype) / 8);

    if (passes)
        snprintf(text, size, "%s row %" PRIu64 " column %" PRIu64 " says", matrix->scale->name,
                 d->row, block);
    else
        snprintf(text, size, "%s row %" PRIu64 " columns %" PRIu64 "-%" PRIu64 " get the scale",
                 matrix->weight->name, d->row, block * canonical->block_cols,
                 (block + 1) * canonical->block_cols - 1);
}

/* "holds expert 9 where expert 7 belongs; ", or nothing. */
static void write_identity(const mp_slot_side *s, const identity *who, char *text, size_t size)
{
    text[0] = '\0';
    if (who->exchanged)
        snprintf(text, size, "gate and up of expert %u are exchanged; ", s->expert);
    else if (who->expert >= 0)
        snprintf(text, size, "holds expert %" PRId64 " where expert %u belongs; ", who->expert,
                 s->expert);
}

int mp_report_difference(mp_slot_side *s, mp_role role, const mp_difference *d, mp_error *err)
{
    const mp_storage *canonical = &s->exact->source.canonical;
    unsigned bits = role == MP_ROLE_WEIGHT ? mp_scheme_bits(canonical->scheme)
                                           : mp_dtype_bits(canonical->scale_dtype);
    mp_spot spot = mp_slot_side_spot(s, role);
    char source[512], have[24], want[24], who_text[64], count[64] = "";
    identity who = {.expert = -1};
    int rc = 0;

    spot.element = element_at(s, role, d);
    if (d->rows > d->of_rows / 2 && mp_faults_wants(&s->check->faults, &spot))
        rc = identify(s, role, &who, err);
    if (rc != 0)
        return rc;
    write_identity(s, &who, who_text, sizeof who_text);
    write_source(s, role, d, source, sizeof source);
    write_value(have, d->have, bits);
    write_value(want, d->want, bits);
    if (d->bytes > 1)
        snprintf(count, sizeof count, "; %" PRIu64 " bytes in %" PRIu64 " rows differ", d->bytes,
                 d->rows);
    mp_fault_add(&s->check->faults, &spot, "%sholds %s where %s %s%s", who_text, have, source, want,
                 count);
    return 0;
}
