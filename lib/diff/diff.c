/* SPDX-License-Identifier: Apache-2.0 */
/* The comparison of two models: pairs side by side on all threads, and what came of it.
 *
 *   open both sides -> what belongs together (diff_list.c) -> order of dumped rows -> pairs -> sum
 *
 * A pair is a matrix of an expert or a tensor, on both sides. It is compared by bits first, where
 * both are stored alike, and decoded only where that fails or cannot be done: most pairs of most
 * comparisons are the same. An expert that has copies in slots is compared by its first copy;
 * others only have to be the same as that one, and where one is not, the pair takes the worse
 * figures.
 *
 * Everything that depends on both sides as a whole is settled before the first pair, in one thread.
 * Then each pair is a task that writes its own entry of the report and reads the rest; progress has
 * a critical section. Summing up goes through the report in order, so it does not depend on
 * threads. */
#include "diff/diff.h"
#include "diff/diff_snapshot.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/options.h"
#include "base/parallel.h"

/* Numbers of a tensor without rows that are decoded at a time. */
#define PLAIN_COLS 4096u

typedef struct diff_run {
    diff_list list;
    const mp_context *context;
    mp_meter meter; /* bytes of pairs */
} diff_run;

/* One side of a pair. */
typedef struct pair_side {
    diff_matrix first;
    const diff_ref *ref;
    const mp_place *copies;
    uint32_t num_copies;
} pair_side;

/* ------------------------------------------------------------------------
 * Shapes
 */

static uint64_t plain_numbers(const mp_tensor *tensor)
{
    mp_dtype dtype = tensor->dtype == MP_C64 ? MP_F32 : tensor->dtype;

    return tensor->bytes * 8 / mp_dtype_bits(dtype);
}

/* Its shape, with room for that of a matrix. */
static uint32_t shape_of(const diff_matrix *m, uint64_t matrix[2], const uint64_t **shape)
{
    matrix[0] = m->rows;
    matrix[1] = m->cols;
    *shape = m->plain ? m->plain->shape : matrix;
    return m->plain ? m->plain->rank : 2;
}

/* How elements are cut where both sides have the same shape. */
static bool cut_of(const diff_matrix *a, const diff_matrix *b, diff_cut *cut)
{
    uint64_t room[2][2];
    const uint64_t *shape[2];
    uint32_t rank[2] = {shape_of(a, room[0], &shape[0]), shape_of(b, room[1], &shape[1])};
    uint64_t elements[2] = {a->plain ? plain_numbers(a->plain) : a->rows * a->cols,
                            b->plain ? plain_numbers(b->plain) : b->rows * b->cols};

    if (rank[0] != rank[1] || elements[0] != elements[1])
        return false;
    for (uint32_t d = 0; d < rank[0]; d++)
        if (shape[0][d] != shape[1][d])
            return false;
    cut->elements = elements[0];
    /* Plain numbers have no rows that matter: pieces of a fixed length do for any shape. Where one
     * side is a matrix, the other is cut into rows as long as its. */
    cut->cols = (a->plain && b->plain) || elements[0] == 0 ? PLAIN_COLS : shape[0][1];
    return true;
}

static int note_shapes(const diff_matrix *a, const diff_matrix *b, mp_diff_pair *pair,
                       mp_error *err)
{
    char text[2][MP_SHAPE_TEXT];
    uint64_t room[2][2];
    const uint64_t *shape[2];
    uint32_t rank[2] = {shape_of(a, room[0], &shape[0]), shape_of(b, room[1], &shape[1])};

    pair->equal = false;
    pair->max_abs = pair->rel_l2 = pair->sqnr_db = NAN;
    pair->note = mp_format("%s%s, in the other %s%s", mp_shape_text(shape[0], rank[0], text[0]),
                           a->plain && a->plain->dtype == MP_C64 ? " of C64" : "",
                           mp_shape_text(shape[1], rank[1], text[1]),
                           b->plain && b->plain->dtype == MP_C64 ? " of C64" : "");
    return pair->note ? 0 : mp_fail_memory(err);
}

/* ------------------------------------------------------------------------
 * A pair
 */

/* Decodes only what is not the same anyway. */
static int compare_two(const diff_matrix *a, const diff_matrix *b, diff_cut cut, mp_diff_pair *pair,
                       mp_error *err)
{
    bool alike = mp_diff_stored_alike(a, b);

    pair->equal = false;
    if (alike && mp_diff_stored_equal(a, b, cut, &pair->equal, err) != 0)
        return err->code;
    if (pair->equal) {
        pair->max_abs = pair->rel_l2 = 0;
        pair->sqnr_db = INFINITY;
        return 0;
    }
    if (mp_diff_measure(a, b, cut, pair, err) != 0)
        return err->code;
    /* Values may be equal where bits are not: -0 and 0, or codes that decode to the same. Stored
     * alike, bits decide. */
    pair->equal &= !alike;
    return 0;
}

static int note_copy(const pair_side *side, mp_place copy, mp_diff_pair *pair, mp_error *err)
{
    mp_place first = side->copies[0];

    if (pair->note)
        return 0;
    pair->note = mp_format("%s: slot %u of rank %u holds something else than slot %u of rank %u",
                           side->first.side->path, copy.slot, copy.rank, first.slot, first.rank);
    return pair->note ? 0 : mp_fail_memory(err);
}

static void keep_worse(mp_diff_pair *pair, const mp_diff_pair *other)
{
    pair->equal = false;
    /* A NaN is the worst that there is: one that the pair has stays, and one of the copy is
     * taken. */
    if (isnan(pair->rel_l2) || other->rel_l2 <= pair->rel_l2)
        return;
    pair->max_abs = other->max_abs;
    pair->rel_l2 = other->rel_l2;
    pair->sqnr_db = other->sqnr_db;
}

/* Copies of an expert in slots that are not like the first one count as the pair does. */
static int compare_copies(const pair_side of[2], unsigned which, diff_cut cut, mp_diff_pair *pair,
                          mp_error *err)
{
    diff_matrix copy = of[which].first;

    for (uint32_t c = 1; c < of[which].num_copies; c++) {
        mp_diff_pair other = {0};
        bool equal;

        mp_place place = of[which].copies[c];
        mp_diff_take_copy(&copy, of[which].ref, place);
        if (mp_diff_stored_equal(&copy, &of[which].first, cut, &equal, err) != 0)
            return err->code;
        if (equal) {
            mp_diff_forget(&copy);
            continue;
        }
        if (compare_two(which == 0 ? &copy : &of[0].first, which == 1 ? &copy : &of[1].first, cut,
                        &other, err) != 0 ||
            note_copy(&of[which], place, pair, err) != 0)
            return err->code;
        keep_worse(pair, &other);
        mp_diff_forget(&copy);
    }
    return 0;
}

static int compare_sides(const pair_side of[2], mp_diff_pair *pair, mp_error *err)
{
    diff_cut cut;

    if (!cut_of(&of[0].first, &of[1].first, &cut))
        return note_shapes(&of[0].first, &of[1].first, pair, err);
    int rc = compare_two(&of[0].first, &of[1].first, cut, pair, err);
    for (unsigned s = 0; s < 2 && rc == 0; s++)
        rc = compare_copies(of, s, cut, pair, err);
    for (unsigned s = 0; s < 2; s++)
        mp_diff_forget(&of[s].first);
    return rc;
}

static int resolve_both(const diff_list *list, uint64_t index, pair_side of[2], mp_error *err)
{
    int rc = 0;

    for (unsigned s = 0; s < 2 && rc == 0; s++) {
        of[s].ref = &list->refs[index][s];
        rc = mp_diff_resolve(list->side[s], &list->refs[index][s], list->plain, &of[s].first,
                             &of[s].copies, &of[s].num_copies, err);
        if (rc != 0)
            mp_error_prefix(err, "%s", list->side[s]->path);
    }
    return rc;
}

/* Bytes that a pair is read from, if all is well once. */
static uint64_t bytes_of(const pair_side of[2])
{
    uint64_t bytes = 0;

    for (unsigned s = 0; s < 2; s++)
        bytes += mp_diff_matrix_bytes(&of[s].first) * (of[s].num_copies ? of[s].num_copies : 1);
    return bytes;
}

static int compare_pair(void *user, uint64_t index, void *scratch, mp_error *err)
{
    diff_run *run = user;
    pair_side of[2] = {{.num_copies = 0}, {.num_copies = 0}};
    int rc = resolve_both(&run->list, index, of, err);

    (void)scratch;
    if (rc == 0)
        rc = compare_sides(of, &run->list.report->pairs[index], err);
    if (rc == 0)
        mp_meter_add(&run->meter, run->context, bytes_of(of));
    return rc;
}

/* ------------------------------------------------------------------------
 * All pairs
 */

static int count_bytes(diff_run *run, mp_error *err)
{
    int rc = 0;

    for (size_t i = 0; i < run->list.report->num_pairs && rc == 0; i++) {
        pair_side of[2] = {{.num_copies = 0}, {.num_copies = 0}};

        rc = resolve_both(&run->list, i, of, err);
        if (rc == 0)
            run->meter.total += bytes_of(of);
    }
    return rc;
}

/* What is no number is worse than any. */
static double badness(const mp_diff_pair *pair)
{
    return isnan(pair->rel_l2) ? INFINITY : pair->rel_l2;
}

static void sum_up(mp_diff_report *report, double tolerance)
{
    double worst = -1;

    for (size_t i = 0; i < report->num_pairs; i++) {
        mp_diff_pair *pair = &report->pairs[i];

        if (pair->equal)
            continue;
        /* A NaN is above every tolerance. */
        pair->differs = tolerance < 0 || !(pair->rel_l2 <= tolerance);
        report->differing += pair->differs;
        report->tolerated += !pair->differs;
        if (badness(pair) > worst) {
            worst = badness(pair);
            report->worst = i;
        }
    }
    report->equal = report->differing + report->num_only[0] + report->num_only[1] == 0;
}

/* Experts of a pack or a snapshot want experts on the other side. */
static int check_sides(const diff_side sides[2], mp_error *err)
{
    for (unsigned s = 0; s < 2; s++)
        /* Kinds are in this order: packs and snapshots come last. */
        if (sides[s].kind >= DIFF_PACK && sides[1 - s].kind == DIFF_TENSORS)
            return mp_fail(
                err, MP_ERR_INPUT, "%s: no experts to compare with %s%s%s", sides[1 - s].path,
                sides[s].kind == DIFF_PACK ? "packed ones" : "those of a snapshot",
                sides[1 - s].unread ? ": " : "", sides[1 - s].unread ? sides[1 - s].unread : "");
    return 0;
}

/* Which experts a snapshot has where depends on the other side. */
static int prepare(diff_side sides[2], const char *placement, mp_error *err)
{
    if (placement && !sides[0].snapshot && !sides[1].snapshot)
        return mp_fail(err, MP_ERR_USAGE, "a placement is for snapshots, and neither side is one");
    for (unsigned s = 0; s < 2; s++)
        if (sides[s].snapshot &&
            mp_diff_snapshot_prepare(&sides[s], &sides[1 - s], placement, err) != 0)
            return err->code;
    return 0;
}

/* Says of directories why their experts were no more than tensors. */
static void explain(diff_side sides[2], mp_diff_report *report)
{
    for (unsigned s = 0; s < 2; s++)
        if (sides[s].whole) {
            report->by_name[s] = sides[s].unread;
            sides[s].unread = NULL;
        }
}

static int compare(diff_run *run, diff_side sides[2], const mp_diff_options *options, mp_error *err)
{
    int rc = check_sides(sides, err);

    if (rc == 0)
        rc = prepare(sides, options->placement, err);
    if (rc == 0)
        rc = mp_diff_list_make(&run->list, options, err);
    if (rc == 0)
        rc = mp_diff_snapshot_orders(&run->list, err);
    if (rc == 0)
        rc = count_bytes(run, err);
    mp_begin_phase(run->context, "comparing");
    if (rc == 0)
        rc = mp_parallel(run->context, run->list.report->num_pairs, 0, compare_pair, run, err);
    if (rc == 0) {
        sum_up(run->list.report, options->tolerance);
        explain(sides, run->list.report);
    }
    mp_diff_list_release(&run->list);
    return rc;
}

int mp_diff(const char *a, const char *b, const mp_diff_options *given, const mp_context *context,
            mp_diff_report *report, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    diff_side sides[2] = {{0}, {0}};
    diff_run run = {.list = {.side = {&sides[0], &sides[1]}, .report = report}, .context = context};

    *report = (mp_diff_report){0};
    mp_diff_options own;
    int rc = mp_options_take("mp_diff_options", &own, sizeof own, given, err);
    if (rc == 0)
        rc = mp_diff_side_open(&sides[0], a, context, err);
    if (rc == 0)
        rc = mp_diff_side_open(&sides[1], b, context, err);
    if (rc == 0)
        rc = compare(&run, sides, &own, err);
    mp_diff_side_release(&sides[0]);
    mp_diff_side_release(&sides[1]);
    if (rc != 0)
        mp_diff_report_release(report);
    return rc;
}

void mp_diff_report_release(mp_diff_report *report)
{
    for (size_t i = 0; i < report->num_pairs; i++) {
        free(report->pairs[i].name);
        free(report->pairs[i].note);
    }
    free(report->pairs);
    for (unsigned s = 0; s < 2; s++) {
        for (size_t i = 0; i < report->num_only[s]; i++)
            free(report->only_in[s][i]);
        free(report->only_in[s]);
        free(report->by_name[s]);
    }
    *report = (mp_diff_report){0};
}
