/* SPDX-License-Identifier: Apache-2.0 */
/* The sentence for a slot that does not hold what it should. An engineer reads it with a hex dump
 * in one hand and the checkpoint in the other, so it names the first wrong element in both: where
 * it is in the packed tensor (the spot), and which tensor, row and column of the source it comes
 * from.
 *
 *   holds 0x3 where layers.3.ffn.experts.7.w1.weight row 5 column 12 says 0x5
 *
 * Rows and columns are those of the tensor that is named: a matrix cut out of a joined one begins
 * at matrix->first and first_col, which are added; of a fused tensor they count within the expert,
 * which is named instead. A source that was requantized does not "say" a value, it "quantizes to"
 * it.
 *
 * Where more than half of the rows differ the slot probably holds something else, and identity.c is
 * asked what; that reads the first rows of the whole layer, so only faults that will be kept ask.
 * Everything here runs in the thread that compared the slot, on its own buffers. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/words.h"
#include "layout/sides.h"
#include "numeric/forms.h"
#include "verify/exact.h"

#define VALUE_TEXT  24
#define SOURCE_TEXT 512
#define PLACE_TEXT  (SOURCE_TEXT + 192)

/* The element of the packed tensor that byte `offset` of the slot is in; of 4-bit weights the
 * one of two that differs. */
static int64_t element_at(const mp_slot_side *s, mp_role role, const mp_difference *d)
{
    if (d->offset == MP_NOWHERE)
        return -1;
    if (role == MP_ROLE_WEIGHT && mp_scheme_bits(s->set->target->scheme) == 4)
        /* Two codes a byte, the low nibble first: where that one is right, the high one is
         * wrong. */
        return (int64_t)(2 * d->offset + ((d->have ^ d->want) & 0x0f ? 0 : 1));
    return (int64_t)(d->offset / (mp_dtype_bits(s->tensor[role]->dtype) / 8));
}

/* Writes a value with the digits of its width. */
static void write_value(char text[VALUE_TEXT], uint64_t value, unsigned bits)
{
    snprintf(text, VALUE_TEXT, "0x%0*" PRIx64, (int)bits / 4, value);
}

/* The matrix of a part of the side. */
static const mp_matrix *matrix_of(const mp_slot_side *s, unsigned part)
{
    return &s->from.matrix[part];
}

/* "layers.3.ffn.experts.7.w1.weight", or where experts are fused "NAME expert 7 gate". */
static void write_tensor(const mp_slot_side *s, const mp_tensor *tensor, unsigned part, char *text,
                         size_t size)
{
    mp_projection projection = s->side == MP_L2 ? MP_DOWN : part == 0 ? MP_GATE : MP_UP;
    char id[MP_ID_TEXT];

    if (s->from.storage->fusion == MP_FUSION_NONE)
        snprintf(text, size, "%s", tensor->name);
    else
        snprintf(text, size, "%s %s %s", tensor->name, mp_id_text(s, s->id, id),
                 mp_projection_name(projection));
}

/* Row and column of the tensor where a part of a matrix begins; those of a fused one are counted
 * in the matrix itself. */
static void origin(const mp_slot_side *s, unsigned part, uint64_t *row, uint64_t *column)
{
    const mp_matrix *matrix = matrix_of(s, part);
    bool whole = s->from.storage->fusion == MP_FUSION_NONE;

    *row = whole ? matrix->first : 0;
    *column = whole ? matrix->first_col : 0;
}

/* "layers.3.ffn.experts.7.w1.weight row 5 column 12 says", and so on. */
static void write_weight(const mp_slot_side *s, const mp_difference *d, char *text, size_t size)
{
    unsigned bits = mp_scheme_bits(s->set->target->scheme);
    uint64_t column =
        bits == 4 ? 2 * d->byte + ((d->have ^ d->want) & 0x0f ? 0 : 1) : d->byte / (bits / 8);
    uint64_t row0, column0;
    char name[SOURCE_TEXT];

    write_tensor(s, matrix_of(s, d->part)->weight, d->part, name, sizeof name);
    origin(s, d->part, &row0, &column0);
    snprintf(text, size, "%s row %" PRIu64 " column %" PRIu64 " %s", name, row0 + d->row,
             column0 + column, s->want.passes ? "says" : "quantizes to");
}

/* "row 5", "rows 128-255", "columns 0-31": what a scale covers, of `all` rows or columns. */
static void write_range(const char *what, uint64_t first, uint64_t count, uint64_t origin0,
                        uint64_t all, char *text, size_t size)
{
    /* count is UINT32_MAX for a scale of a whole row, and the last block of a row may be cut
     * off. */
    uint64_t last = count > all - first ? all - 1 : first + count - 1;

    if (count == 1)
        snprintf(text, size, "%s %" PRIu64, what, origin0 + first);
    else
        snprintf(text, size, "%ss %" PRIu64 "-%" PRIu64, what, origin0 + first, origin0 + last);
}

/* "layers.3.ffn.experts.7.w1.weight row 5 columns 32-63 get the scale" */
static void write_new_scale(const mp_slot_side *s, const mp_difference *d, uint64_t block,
                            char *text, size_t size)
{
    const mp_scheme_form *form = mp_scheme_form_of(s->set->target->scheme);
    bool whole_rows = form->block_cols == UINT32_MAX;
    char name[SOURCE_TEXT], rows[64], columns[64] = "";
    uint64_t row0, column0;

    write_tensor(s, matrix_of(s, d->part)->weight, d->part, name, sizeof name);
    origin(s, d->part, &row0, &column0);
    write_range("row", d->row * form->block_rows, form->block_rows, row0,
                mp_side_rows(&s->set->dims, s->side), rows, sizeof rows);
    if (!whole_rows)
        write_range(" column", block * form->block_cols, form->block_cols, column0,
                    mp_side_cols(&s->set->dims, s->side), columns, sizeof columns);
    snprintf(text, size, "%s %s%s %s the scale", name, rows, columns, whole_rows ? "gets" : "get");
}

/* "layers.3.ffn.experts.7.w1.scale row 5 column 1 says" */
static void write_scale(const mp_slot_side *s, const mp_difference *d, char *text, size_t size)
{
    const mp_scheme_form *form = mp_scheme_form_of(s->set->target->scheme);
    uint64_t block = d->byte / (mp_dtype_bits(form->scale_dtype) / 8);
    char name[SOURCE_TEXT];
    uint64_t row0, column0;

    if (!s->want.passes) {
        write_new_scale(s, d, block, text, size);
        return;
    }
    write_tensor(s, matrix_of(s, d->part)->scale, d->part, name, sizeof name);
    origin(s, d->part, &row0, &column0);
    if (form->block_cols == UINT32_MAX)
        snprintf(text, size, "%s row %" PRIu64 " says", name, row0 + d->row);
    else
        snprintf(text, size, "%s row %" PRIu64 " column %" PRIu64 " says", name,
                 row0 / form->block_rows + d->row, column0 / form->block_cols + block);
}

/* "holds expert 9 where expert 7 belongs; ", or nothing. */
static void write_identity(const mp_slot_side *s, const mp_identity *who, char *text, size_t size)
{
    char there[MP_ID_TEXT], here[MP_ID_TEXT];

    text[0] = '\0';
    if (who->exchanged)
        snprintf(text, size, "gate and up of %s are exchanged; ", mp_id_text(s, s->id, here));
    else if (who->found)
        snprintf(text, size, "holds %s where %s belongs; ", mp_id_text(s, who->id, there),
                 mp_id_text(s, s->id, here));
}

/* "; 3 bytes in 2 rows differ", or nothing. */
static void write_count(const mp_difference *d, char *text, size_t size)
{
    text[0] = '\0';
    /* A difference of one element has been told already. Padding belongs to no row: count its bytes
     * alone. */
    if (d->bytes > d->bits / 8 && d->rows > 0)
        snprintf(text, size, "; %" PRIu64 " bytes in %" PRIu64 " row%s differ", d->bytes, d->rows,
                 mp_plural(d->rows));
    else if (d->bytes > 1 && d->rows == 0)
        snprintf(text, size, "; %" PRIu64 " such bytes", d->bytes);
}

int mp_report_difference(mp_slot_side *s, mp_role role, const mp_difference *d, mp_error *err)
{
    mp_spot spot = mp_slot_side_spot(s, role);
    char source[PLACE_TEXT], have[VALUE_TEXT], want[VALUE_TEXT], who_text[128], count[96];
    mp_identity who = {0};
    int rc = 0;

    spot.element = element_at(s, role, d);
    if (d->rows > d->of_rows / 2 && mp_faults_wants(&s->check->faults, &spot))
        rc = mp_identify(s, role, &who, err);
    if (rc != 0)
        return rc;
    write_identity(s, &who, who_text, sizeof who_text);
    write_value(have, d->have, d->bits);
    write_value(want, d->want, d->bits);
    write_count(d, count, sizeof count);
    if (d->padding) {
        mp_fault_add(&s->check->faults, &spot,
                     "%sbyte %" PRIu64 ", which belongs to no element, holds %s, not %s%s",
                     who_text, d->offset, have, want, count);
        return 0;
    }
    if (role == MP_ROLE_WEIGHT)
        write_weight(s, d, source, sizeof source);
    else
        write_scale(s, d, source, sizeof source);
    mp_fault_add(&s->check->faults, &spot, "%sholds %s where %s %s%s", who_text, have, source, want,
                 count);
    return 0;
}

/* ------------------------------------------------------------------------
 * Vectors
 */

/* "NAME says" for element `index` of a vector of `count` elements. */
static void write_vector(const mp_slot_side *s, mp_role role, uint64_t index, uint64_t count,
                         char *text, size_t size)
{
    /* Input scales are one for the side or one for each slot; all others have as many for each
     * part. */
    bool input =
        role == MP_ROLE_INPUT_SCALE || role == MP_ROLE_ACT_SCALE || role == MP_ROLE_FOLDED_ALPHA;
    uint64_t per_part = input ? count : count / mp_side_parts(s->side);
    unsigned part = (unsigned)(index / per_part);
    const mp_matrix *matrix = matrix_of(s, part);
    char name[SOURCE_TEXT];
    const mp_tensor *tensor = role == MP_ROLE_OFFSET ? matrix->offset
                              : input                ? matrix->input_scale
                              : s->want.passes       ? matrix->global
                                                     : matrix->weight;

    write_tensor(s, tensor, part, name, sizeof name);
    if (role == MP_ROLE_OFFSET)
        snprintf(text, size, "%s row %" PRIu64 " says", name, index % per_part);
    else if (role == MP_ROLE_ALPHA && !s->want.passes)
        snprintf(text, size, "%s gets the second scale", name);
    else if (role == MP_ROLE_FOLDED_ALPHA)
        snprintf(text, size, "%s, times the second scale, says", name);
    else if ((role == MP_ROLE_ALPHA || role == MP_ROLE_ACT_SCALE) &&
             s->from.storage->global_divides)
        snprintf(text, size, "%s, inverted, says", name);
    else
        snprintf(text, size, "%s says", name);
}

/* By bits: -0 is not 0 here, and a NaN that was copied is right. */
static bool same_bits(float a, float b)
{
    uint32_t x, y;

    memcpy(&x, &a, sizeof x);
    memcpy(&y, &b, sizeof y);
    return x == y;
}

void mp_report_vector(const mp_slot_side *s, mp_role role)
{
    mp_spot spot = mp_slot_side_spot(s, role);
    uint64_t count = s->tensor[role]->slot_bytes / sizeof(float), differ = 0, first = 0;
    char source[PLACE_TEXT], more[64] = "";

    /* Backwards, so that the first one is what is left in the end. */
    for (uint64_t i = count; i-- > 0;) {
        if (same_bits(s->have_vector[i], s->want_vector[i]))
            continue;
        differ++;
        first = i;
    }
    spot.element = (int64_t)first;
    write_vector(s, role, first, count, source, sizeof source);
    if (differ > 1)
        snprintf(more, sizeof more, "; %" PRIu64 " of %" PRIu64 " differ", differ, count);
    mp_fault_add(&s->check->faults, &spot, "holds %.9g where %s %.9g%s",
                 (double)s->have_vector[first], source, (double)s->want_vector[first], more);
}
