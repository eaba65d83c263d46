/* SPDX-License-Identifier: Apache-2.0 */
/* The judgement of a side goes from the cheap to the dear: its matrices whole against those that
 * should be there; only what fails is held against everything else that could have got there, by
 * its first rows, and what fits there once more as a whole. What is asked of a side that fails,
 * until something explains it:
 *
 *   1. the same expert, rows of gate and up in another order
 *   2. another expert of the layer, all parts of it
 *   3. for each part: scales or weights that are zero, constant or no numbers
 *   4. for each part: gate instead of up, or a matrix of another expert
 *   5. nothing: the error, or where the source is stored alike, the first element that differs
 *
 * So the commonest mistakes of converters are named as a whole before any matrix is blamed by
 * itself. A side is judged in one thread, many sides at once; what they share is only read. */
#include "verify/sides.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "base/error.h"
#include "base/words.h"

/* Rows that tell one matrix from another. A whole turn of any order is in them. */
#define FIRST_ROWS 64u

/* What rounding a second scale's reciprocal to float32 may do, and more. */
#define RECIPROCAL_ERROR 1e-6

/* A matrix of the source, as this rank has it. */
static int wanted(const mp_side_check *s, uint32_t id, mp_projection projection, mp_weights *out,
                  mp_error *err)
{
    if (mp_weights_of(s->source, s->layer, id, projection, out, err) != 0)
        return err->code;
    out->raw = s->have[0].raw;
    if (s->cut.whole)
        return 0;
    bool cut = projection == MP_DOWN ? mp_weights_cut(out, 0, out->rows, s->cut.row0, s->cut.rows)
                                     : mp_weights_cut(out, s->cut.row0, s->cut.rows, 0, out->cols);

    return cut ? 0
               : mp_fail(err, MP_ERR_UNSUPPORTED,
                         "%s: %llu rows or columns from %llu on cannot be cut out of its blocks",
                         out->matrix.weight->name, (unsigned long long)s->cut.rows,
                         (unsigned long long)s->cut.row0);
}

/* Part p of the side, if its rows are in that order. */
static mp_weights held(const mp_side_check *s, mp_half_order order, unsigned p)
{
    mp_weights w = s->have[p];

    /* Swapped halves are two runs still: the parts change places. Where rows take turns, both parts
     * lie in the rows of the first. */
    if (order == MP_ORDER_SWAPPED)
        w.matrix = s->have[1 - p].matrix;
    if (mp_half_order_turns(order)) {
        w.matrix = s->have[0].matrix;
        w.order = mp_half_order_turns(order);
        w.part = p;
    }
    return w;
}

static double bound_of(const mp_side_check *s)
{
    return s->tolerance > 0 ? s->tolerance : mp_scheme_bound(s->have[0].storage.scheme);
}

/* Whether a matrix is another one: the very values where it is stored alike, else within the bound
 * of its scheme. A bound of -1 leaves only `same`, which no error is below. NaN fits nothing. */
static int compare(const mp_side_check *s, const mp_weights *have, const mp_weights *want,
                   uint64_t rows, bool *fits, mp_likeness *likeness, mp_error *err)
{
    if (have->rows != want->rows || have->cols != want->cols)
        return mp_fail(err, MP_ERR_INPUT, "%s: %llu rows of %llu, %s has %llu of %llu",
                       have->matrix.weight->name, (unsigned long long)have->rows,
                       (unsigned long long)have->cols, want->matrix.weight->name,
                       (unsigned long long)want->rows, (unsigned long long)want->cols);
    if (mp_weights_compare(have, want, rows, likeness, err) != 0)
        return err->code;
    double bound = bound_of(s);
    if (s->exact && mp_weights_alike(have, want)) /* 1 / g instead of g costs a bit */
        bound =
            have->storage.global_divides != want->storage.global_divides ? RECIPROCAL_ERROR : -1;
    *fits = likeness->same || likeness->relative <= bound;
    return 0;
}

static unsigned parts_of(const mp_side_check *s)
{
    return mp_side_parts(s->side);
}

/* Whether all parts, in an order, are those of expert `id`; first by a few rows. */
static int is_expert(const mp_side_check *s, mp_half_order order, uint32_t id, bool *is,
                     mp_error *err)
{
    /* Both parts are looked at shortly before either is read whole. */
    static const uint64_t steps[] = {FIRST_ROWS, UINT64_MAX};

    *is = true;
    for (unsigned step = 0; step < 2; step++)
        for (unsigned p = 0; p < parts_of(s) && *is; p++) {
            mp_weights have = held(s, order, p), want;
            mp_likeness likeness;

            if (wanted(s, id, mp_side_first(s->side) + p, &want, err) != 0 ||
                compare(s, &have, &want, steps[step], is, &likeness, err) != 0)
                return err->code;
        }
    return 0;
}

int mp_side_find_order(const mp_side_check *s, mp_half_order *order, mp_error *err)
{
    for (*order = MP_ORDER_PLAIN; *order < MP_ORDERS; (*order)++) {
        bool is;

        /* down has no halves. */
        if (*order != MP_ORDER_PLAIN && s->side == MP_L2)
            break;
        if (!mp_half_order_fits(*order, &s->have[0].storage, s->have[0].rows) ||
            (mp_half_order_turns(*order) && !s->together))
            continue;
        if (is_expert(s, *order, s->id, &is, err) != 0)
            return err->code;
        if (is)
            return 0;
    }
    *order = MP_ORDERS;
    return 0;
}

/* ------------------------------------------------------------------------
 * What it is instead
 */

/* The name of an expert in messages. */
static const char *name_of(const mp_side_check *s, uint32_t id, char text[40])
{
    if (id >= s->layer->num_experts)
        snprintf(text, 40, "the shared expert");
    else
        snprintf(text, 40, "expert %u", id);
    return text;
}

/* Another expert whose side this is, as a whole; or UINT32_MAX. */
static int find_expert(const mp_side_check *s, uint32_t *other, mp_error *err)
{
    *other = UINT32_MAX;
    if (s->id >= s->layer->num_experts)
        return 0;
    for (uint32_t id = 0; id < s->layer->num_experts; id++) {
        bool is = false;

        if (id != s->id && is_expert(s, s->order, id, &is, err) != 0)
            return err->code;
        if (is) {
            *other = id;
            return 0;
        }
    }
    return 0;
}

/* A matrix [I, H] of the layer that one of gate and up is; or id UINT32_MAX. */
static int find_matrix(const mp_side_check *s, unsigned p, uint32_t *other,
                       mp_projection *projection, mp_error *err)
{
    mp_weights have = held(s, s->order, p);
    /* A shared expert may have another width than routed ones: only its own matrices can be
     * there. */
    bool shared = s->id >= s->layer->num_experts;
    uint32_t first = shared ? s->id : 0, end = shared ? s->id + 1 : s->layer->num_experts;

    for (*other = first; *other < end; (*other)++)
        for (unsigned q = 0; q < parts_of(s); q++) {
            mp_weights want;
            mp_likeness likeness;
            bool fits = false;

            *projection = mp_side_first(s->side) + q;
            if (wanted(s, *other, *projection, &want, err) != 0 ||
                compare(s, &have, &want, FIRST_ROWS, &fits, &likeness, err) != 0)
                return err->code;
            if (fits && compare(s, &have, &want, UINT64_MAX, &fits, &likeness, err) != 0)
                return err->code;
            if (fits)
                return 0;
        }
    *other = UINT32_MAX;
    return 0;
}

/* What can be said of a matrix by itself. Null: nothing. */
static int look_at(const mp_weights *have, const mp_likeness *likeness, const char **what,
                   mp_error *err)
{
    mp_scales_look scales = MP_SCALES_VARY;

    *what = NULL;
    if (have->storage.has_scale && mp_weights_scales(have, &scales, err) != 0)
        return err->code;
    if (scales == MP_SCALES_ZERO)
        *what = "scales are all zero";
    else if (likeness->zero)
        *what = "weights are all zero";
    else if (!likeness->finite)
        *what = "holds a NaN or Inf";
    else if (scales == MP_SCALES_CONSTANT)
        *what = "scales are constant";
    return 0;
}

static mp_spot spot_of(const mp_side_check *s, unsigned p)
{
    mp_spot spot = s->spot;

    spot.tensor = s->have[p].matrix.weight->name;
    return spot;
}

/* Names a matrix that is not what it should be. */
static int report_matrix(const mp_side_check *s, unsigned p, const mp_likeness *likeness,
                         mp_error *err)
{
    const mp_spot spot = spot_of(s, p);
    mp_projection should = mp_side_first(s->side) + p, is;
    mp_weights have = held(s, s->order, p);
    char name[40], other_name[40];
    const char *what;
    uint32_t other;

    if (look_at(&have, likeness, &what, err) != 0)
        return err->code;
    name_of(s, s->id, name);
    if (what) {
        mp_fault_add(s->faults, &spot, "%s of %s: %s", mp_projection_name(should), name, what);
        return 0;
    }
    if (find_matrix(s, p, &other, &is, err) != 0)
        return err->code;
    if (other != UINT32_MAX)
        mp_fault_add(s->faults, &spot, "%s of %s is %s of %s", mp_projection_name(should), name,
                     mp_projection_name(is), name_of(s, other, other_name));
    else if (s->exact && likeness->relative <= bound_of(s) &&
             have.storage.global_divides != s->layer->storage.global_divides)
        mp_fault_add(s->faults, &spot, "%s of %s is not the source's; relative RMS error %.3g",
                     mp_projection_name(should), name, likeness->relative);
    else if (s->exact && (likeness->rows <= have.rows / 2 || likeness->relative <= bound_of(s)))
        mp_fault_add(s->faults, &spot,
                     "%s of %s: row %" PRIu64 " column %" PRIu64
                     " is not the source's; relative RMS error %.3g",
                     mp_projection_name(should), name, likeness->row, likeness->col,
                     likeness->relative);
    else
        mp_fault_add(
            s->faults, &spot,
            "%s of %s: relative RMS error %.3g, %s may have %g; it is not a matrix of this layer",
            mp_projection_name(should), name, likeness->relative,
            mp_scheme_name(have.storage.scheme), bound_of(s));
    return 0;
}

/* Names the order that the rows have instead of theirs; *named: it did. */
static int report_order(const mp_side_check *s, bool *named, mp_error *err)
{
    const mp_spot spot = spot_of(s, 0);
    mp_half_order order;
    char name[40];

    if (mp_side_find_order(s, &order, err) != 0)
        return err->code;
    *named = order != MP_ORDERS;
    name_of(s, s->id, name);
    if ((order == MP_ORDER_SWAPPED && s->order == MP_ORDER_PLAIN) ||
        (order == MP_ORDER_PLAIN && s->order == MP_ORDER_SWAPPED))
        mp_fault_add(s->faults, &spot, "gate and up of %s are swapped", name);
    else if (*named && !mp_half_order_turns(order) && mp_half_order_turns(s->order))
        mp_fault_add(s->faults, &spot, "%s is not interleaved: %s, expected %s", name,
                     mp_half_order_text(order), mp_half_order_text(s->order));
    else if (*named)
        mp_fault_add(s->faults, &spot, "%s has %s, expected %s", name, mp_half_order_text(order),
                     mp_half_order_text(s->order));
    return 0;
}

int mp_side_judge(const mp_side_check *s, bool *holds, mp_error *err)
{
    mp_likeness likeness[2];
    bool fits[2] = {true, true}, named = false;
    unsigned parts = parts_of(s);
    char name[40], other_name[40];
    uint32_t other;

    for (unsigned p = 0; p < parts; p++) {
        mp_weights have = held(s, s->order, p), want;

        if (wanted(s, s->id, mp_side_first(s->side) + p, &want, err) != 0 ||
            compare(s, &have, &want, UINT64_MAX, &fits[p], &likeness[p], err) != 0)
            return err->code;
    }
    *holds = fits[0] && fits[1];
    if (*holds)
        return 0;
    const mp_spot spot = spot_of(s, fits[0] ? 1 : 0);
    /* The text of a fault that is only counted is never seen, whatever it says (faults.h). */
    if (!mp_faults_wants(s->faults, &spot)) {
        mp_fault_add(s->faults, &spot, "differs");
        return 0;
    }
    if (report_order(s, &named, err) != 0)
        return err->code;
    if (named)
        return 0;
    if (find_expert(s, &other, err) != 0)
        return err->code;
    if (other != UINT32_MAX) {
        mp_fault_add(s->faults, &spot, "%s is %s", name_of(s, s->id, name),
                     name_of(s, other, other_name));
        return 0;
    }
    for (unsigned p = 0; p < parts; p++)
        if (!fits[p] && report_matrix(s, p, &likeness[p], err) != 0)
            return err->code;
    return 0;
}
