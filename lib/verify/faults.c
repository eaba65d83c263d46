/* SPDX-License-Identifier: Apache-2.0 */
/* The list of faults. A broken pack can have millions of them, found by many threads in any order;
 * a report shows MP_FAULTS_KEPT and has to be the same each time. So the kept ones are always the
 * least in a total order of where they are and then what they say: an insertion into a sorted
 * array, which gives the same array for every order of arrival. All others are only counted, in
 * total and for each rank and level.
 *
 * The array only ever moves down. A fault beyond its last place can therefore never be kept,
 * whatever comes after, which is what mp_faults_wants tells those for whom a text is dear to work
 * out.
 *
 * mp_fault_add and mp_faults_wants may be called by any thread and share one critical section;
 * mp_faults_add_part, taking and releasing are of the thread that runs the check, between its
 * loops. Memory that runs out is only noted, as a thread that finds a fault must not fail; taking
 * the list reports it then, instead of a list with holes. */
#include "verify/faults.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

void mp_verify_report_release(mp_verify_report *report)
{
    for (size_t i = 0; i < report->num_faults; i++) {
        free(report->faults[i].layer);
        free(report->faults[i].tensor);
        free(report->faults[i].detail);
    }
    for (size_t i = 0; i < report->num_numeric; i++)
        free(report->numeric[i].layer);
    free(report->faults);
    free(report->parts);
    free(report->numeric);
    *report = (mp_verify_report){0};
}

static void release_kept(mp_kept_fault *fault)
{
    free(fault->tensor);
    free(fault->detail);
    *fault = (mp_kept_fault){0};
}

void mp_faults_release(mp_faults *faults)
{
    for (size_t i = 0; i < faults->num_kept; i++)
        release_kept(&faults->kept[i]);
    free(faults->parts);
    *faults = (mp_faults){0};
}

static int compare_numbers(int64_t a, int64_t b)
{
    return (a > b) - (a < b);
}

/* strcmp with null before everything. */
static int compare_texts(const char *a, const char *b)
{
    if (!a || !b)
        return (a != NULL) - (b != NULL);
    return strcmp(a, b);
}

static int compare_spots(const mp_spot *a, const mp_spot *b)
{
    /* Level last: what is wrong at one place stands together, whichever check found it. */
    int order = compare_numbers(a->rank, b->rank);
    if (order == 0)
        order = compare_numbers(a->layer, b->layer);
    if (order == 0)
        order = compare_numbers(a->slot, b->slot);
    if (order == 0)
        order = compare_texts(a->tensor, b->tensor);
    if (order == 0)
        order = compare_numbers(a->element, b->element);
    if (order == 0)
        order = compare_numbers(a->level, b->level);
    return order;
}

/* The part, made if it is not there; null without memory. From behind, since ranks are checked in
 * order: the part wanted is nearly always the last. */
static mp_verify_part *find_part(mp_faults *faults, int64_t rank, mp_verify_level level)
{
    size_t at = faults->num_parts;

    while (at > 0) {
        mp_verify_part *part = &faults->parts[at - 1];
        int order = compare_numbers(part->rank, rank);

        if (order == 0)
            order = compare_numbers(part->level, level);
        if (order == 0)
            return part;
        if (order < 0)
            break;
        at--;
    }
    /* One at a time will do: there are as many as ranks and levels. */
    mp_verify_part *parts = realloc(faults->parts, (faults->num_parts + 1) * sizeof *parts);
    if (!parts)
        return NULL;
    faults->parts = parts;
    memmove(parts + at + 1, parts + at, (faults->num_parts - at) * sizeof *parts);
    parts[at] = (mp_verify_part){.rank = rank, .level = level};
    faults->num_parts++;
    return &parts[at];
}

void mp_faults_add_part(mp_faults *faults, int64_t rank, mp_verify_level level)
{
    if (!find_part(faults, rank, level))
        faults->no_memory = true;
}

/* Where a fault belongs among those that are kept. */
static size_t place_of(const mp_faults *faults, const mp_spot *spot, const char *detail)
{
    size_t at = faults->num_kept;

    while (at > 0) {
        const mp_kept_fault *before = &faults->kept[at - 1];
        int order = compare_spots(&before->spot, spot);

        if (order < 0 || (order == 0 && strcmp(before->detail, detail) <= 0))
            break;
        at--;
    }
    return at;
}

static void keep(mp_faults *faults, const mp_spot *spot, const char *detail)
{
    size_t at = place_of(faults, spot, detail);
    /* It comes after all that a full list keeps. */
    if (at == MP_FAULTS_KEPT)
        return;

    mp_kept_fault fault = {.spot = *spot, .detail = strdup(detail)};
    fault.tensor = spot->tensor ? strdup(spot->tensor) : NULL;
    fault.spot.tensor = fault.tensor;
    if (!fault.detail || (spot->tensor && !fault.tensor)) {
        release_kept(&fault);
        faults->no_memory = true;
        return;
    }
    /* Make room only once the new one is whole: without memory the list stays as it was. */
    if (faults->num_kept == MP_FAULTS_KEPT)
        release_kept(&faults->kept[--faults->num_kept]);
    memmove(faults->kept + at + 1, faults->kept + at,
            (faults->num_kept - at) * sizeof *faults->kept);
    faults->kept[at] = fault;
    faults->num_kept++;
}

void mp_fault_add(mp_faults *faults, const mp_spot *spot, const char *format, ...)
{
    char detail[MP_ERROR_MAX];
    va_list args;

    va_start(args, format);
    vsnprintf(detail, sizeof detail, format, args);
    va_end(args);
    mp_make_printable(detail);

#pragma omp critical(mp_faults)
    {
        mp_verify_part *part = find_part(faults, spot->rank, spot->level);

        if (part)
            part->faults++;
        else
            faults->no_memory = true;
        faults->total++;
        keep(faults, spot, detail);
    }
}

bool mp_faults_wants(const mp_faults *faults, const mp_spot *spot)
{
    bool wants;

#pragma omp critical(mp_faults)
    wants = faults->num_kept < MP_FAULTS_KEPT ||
            compare_spots(spot, &faults->kept[MP_FAULTS_KEPT - 1].spot) <= 0;
    return wants;
}

int mp_faults_take(mp_faults *faults, char *const *layers, mp_verify_report *report, mp_error *err)
{
    if (faults->num_kept > 0) {
        report->faults = mp_alloc_zeroed(faults->num_kept, sizeof *report->faults);
        if (!report->faults)
            return mp_fail_memory(err);
    }
    for (size_t i = 0; i < faults->num_kept; i++) {
        mp_kept_fault *kept = &faults->kept[i];
        const mp_spot *spot = &kept->spot;
        char *layer = spot->layer < 0 ? NULL : strdup(layers[spot->layer]);

        if (spot->layer >= 0 && !layer)
            return mp_fail_memory(err);
        report->faults[report->num_faults++] = (mp_fault){
            .level = spot->level,
            .rank = spot->rank,
            .layer = layer,
            .slot = spot->slot,
            .tensor = kept->tensor,
            .element = spot->element,
            .detail = kept->detail,
        };
        /* The report owns both texts now; releasing the list must not free them. */
        *kept = (mp_kept_fault){0};
    }
    report->total_faults = faults->total;
    report->parts = faults->parts;
    report->num_parts = faults->num_parts;
    faults->parts = NULL;
    faults->num_parts = 0;
    return faults->no_memory ? mp_fail_memory(err) : 0;
}
