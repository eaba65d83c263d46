/* SPDX-License-Identifier: Apache-2.0 */
/* Load counts of logical experts, and the replicas that logical experts have. */
#include <moepack/place.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json.h"

/* Sums while steps are added up; float64 keeps whole counts exact up to 2^53. */
typedef struct count_sums {
    size_t layers, num_logical;
    double *sum; /* [layers][num_logical] */
} count_sums;

/* "step 2, row 5" or "row 5"; returns its buffer. step < 0: there are no steps. */
static const char *place_text(char text[64], long long step, size_t layer)
{
    if (step < 0)
        snprintf(text, 64, "row %zu", layer);
    else
        snprintf(text, 64, "step %lld, row %zu", step, layer);
    return text;
}

static int add_row(count_sums *sums, const json_t *row, long long step, size_t layer, mp_error *err)
{
    char where[64];
    place_text(where, step, layer);
    if (!json_is_array(row))
        return mp_fail(err, MP_ERR_INPUT, "logical_count: %s is not a list", where);
    if (json_array_size(row) != sums->num_logical)
        return mp_fail(err, MP_ERR_INPUT, "logical_count: %s has %zu experts, row 0 has %zu", where,
                       json_array_size(row), sums->num_logical);
    double *sum = sums->sum + layer * sums->num_logical;
    for (size_t i = 0; i < sums->num_logical; i++) {
        const json_t *count = json_array_get(row, i);
        if (!json_is_number(count))
            return mp_fail(err, MP_ERR_INPUT, "logical_count: %s, column %zu: not a number", where,
                           i);
        double value = json_number_value(count);
        if (value < 0)
            return mp_fail(err, MP_ERR_INPUT,
                           "logical_count: %s, column %zu: %g, expected 0 or more", where, i,
                           value);
        sum[i] += value;
    }
    return 0;
}

static int add_step(count_sums *sums, const json_t *matrix, long long step, mp_error *err)
{
    if (!json_is_array(matrix))
        return mp_fail(err, MP_ERR_INPUT, "logical_count: step %lld is not a list", step);
    if (json_array_size(matrix) != sums->layers)
        return mp_fail(err, MP_ERR_INPUT, "logical_count: step %lld has %zu rows, step 0 has %zu",
                       step, json_array_size(matrix), sums->layers);
    int rc = 0;
    for (size_t layer = 0; layer < sums->layers && rc == 0; layer++)
        rc = add_row(sums, json_array_get(matrix, layer), step, layer, err);
    return rc;
}

/* Sizes the sums by the first row; the other rows are held against it before memory is. */
static int start_sums(count_sums *sums, const json_t *matrix, long long step, mp_error *err)
{
    char where[64];
    sums->layers = json_array_size(matrix);
    sums->num_logical = json_array_size(json_array_get(matrix, 0));
    if (sums->layers == 0)
        return mp_fail(err, MP_ERR_INPUT, "logical_count: no layers");
    for (size_t layer = 0; layer < sums->layers; layer++) {
        const json_t *row = json_array_get(matrix, layer);
        size_t n = json_array_size(row);
        place_text(where, step, layer);
        if (!json_is_array(row))
            return mp_fail(err, MP_ERR_INPUT, "logical_count: %s is not a list", where);
        if (n == 0)
            return mp_fail(err, MP_ERR_INPUT, "logical_count: %s is empty", where);
        if (n != sums->num_logical)
            return mp_fail(err, MP_ERR_INPUT, "logical_count: %s has %zu experts, row 0 has %zu",
                           where, n, sums->num_logical);
    }
    if (sums->layers > INT32_MAX || sums->num_logical > INT32_MAX)
        return mp_fail(err, MP_ERR_INPUT, "logical_count: %zu rows of %zu experts are too many",
                       sums->layers, sums->num_logical);
    sums->sum = mp_alloc_zeroed((uint64_t)sums->layers * sums->num_logical, sizeof(double));
    return sums->sum ? 0 : mp_fail_memory(err);
}

static int add_up(count_sums *sums, const json_t *counts, mp_error *err)
{
    const json_t *first = json_array_get(counts, 0);
    if (!json_is_array(json_array_get(first, 0))) {
        int rc = start_sums(sums, counts, -1, err);
        for (size_t layer = 0; layer < sums->layers && rc == 0; layer++)
            rc = add_row(sums, json_array_get(counts, layer), -1, layer, err);
        return rc;
    }
    int rc = start_sums(sums, first, 0, err);
    for (size_t step = 0; step < json_array_size(counts) && rc == 0; step++)
        rc = add_step(sums, json_array_get(counts, step), (long long)step, err);
    return rc;
}

static int take_sums(mp_counts *c, const count_sums *sums, mp_error *err)
{
    size_t n = sums->layers * sums->num_logical;
    c->count = mp_alloc(n, sizeof(*c->count));
    if (!c->count)
        return mp_fail_memory(err);
    c->layers = (uint32_t)sums->layers;
    c->num_logical = (uint32_t)sums->num_logical;
    for (size_t i = 0; i < n; i++) {
        c->count[i] = (float)sums->sum[i];
        if (!isfinite(c->count[i]))
            return mp_fail(err, MP_ERR_INPUT,
                           "logical_count: row %zu, column %zu: %g does not fit a float32",
                           i / sums->num_logical, i % sums->num_logical, sums->sum[i]);
    }
    return 0;
}

int mp_counts_parse(mp_counts *c, const char *text, uint64_t length, mp_error *err)
{
    *c = (mp_counts){0};
    count_sums sums = {0};
    json_t *root, *counts;
    int rc = mp_json_parse(text, length, "counts", &root, err);
    if (rc != 0)
        return rc;
    rc = mp_json_get_array(root, "logical_count", "counts", &counts, err);
    const char *key;
    json_t *value;
    json_object_foreach(root, key, value)
    {
        if (rc == 0 && value != counts)
            rc = mp_fail(err, MP_ERR_INPUT, "counts: unknown key \"%.60s\"", key);
    }
    if (rc == 0)
        rc = add_up(&sums, counts, err);
    if (rc == 0)
        rc = take_sums(c, &sums, err);
    if (rc != 0)
        mp_counts_release(c);
    free(sums.sum);
    json_decref(root);
    return rc;
}

void mp_counts_release(mp_counts *c)
{
    free(c->count);
    *c = (mp_counts){0};
}

int mp_replicas_init(mp_replicas *r, const int32_t *row, uint32_t num_logical,
                     uint32_t num_physical, mp_error *err)
{
    *r = (mp_replicas){.num_logical = num_logical};
    r->start = mp_alloc_zeroed((uint64_t)num_logical + 2, sizeof(*r->start));
    r->physical = mp_alloc(num_physical, sizeof(*r->physical));
    if (!r->start || !r->physical) {
        mp_replicas_release(r);
        return mp_fail_memory(err);
    }
    for (uint32_t p = 0; p < num_physical; p++) {
        if (row[p] < 0 || (uint32_t)row[p] >= num_logical) {
            mp_replicas_release(r);
            return mp_fail(err, MP_ERR_INPUT,
                           "placement: column %u: logical expert %d, expected 0 to %u", p, row[p],
                           num_logical - 1);
        }
        r->start[row[p] + 2]++;
    }
    /* start[e + 1] first is where the next replica of e goes, and in the end where e stops. */
    for (uint32_t e = 1; e < num_logical + 2; e++)
        r->start[e] += r->start[e - 1];
    for (uint32_t p = 0; p < num_physical; p++)
        r->physical[r->start[row[p] + 1]++] = p;
    return 0;
}

void mp_replicas_release(mp_replicas *r)
{
    free(r->start);
    free(r->physical);
    *r = (mp_replicas){0};
}
