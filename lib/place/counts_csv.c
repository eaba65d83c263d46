/* SPDX-License-Identifier: Apache-2.0 */
/* Counts in CSV: a line for each expert that was chosen, in any order.
 *
 *     layer_id,expert_id,count
 *     3,17,4096
 *
 * Lines are stored as they come, because neither the layers nor the number of experts is known
 * before the last one. Then each layer that occurs gets a row, in ascending order, and every line
 * is added to its cell. A single line could name expert 2,147,483,646 and ask for gigabytes, so the
 * number of cells is bounded (CELLS_MAX) before they are allocated. Ids are plain digits and counts
 * are JSON numbers, which keeps out locales, signs and hex. One thread; errors name the line. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json.h"
#include "place/counts.h"

#define HEADER "layer_id,expert_id,count"

typedef struct entry {
    uint32_t layer, expert;
    double count;
} entry;

typedef struct table {
    entry *entries;
    uint64_t count, room;
    uint32_t num_logical;
} table;

/* Takes the next line off the text, without its end. False at the end of the text. */
static bool next_line(const char **text, uint64_t *length, const char **line, size_t *bytes)
{
    if (*length == 0)
        return false;
    const char *end = memchr(*text, '\n', (size_t)*length);
    *line = *text;
    *bytes = end ? (size_t)(end - *text) : (size_t)*length;
    uint64_t taken = *bytes + (end != NULL);
    *text += taken;
    *length -= taken;
    /* Accept CRLF, as spreadsheets and Python's csv.writer end lines, as well as a plain line
     * feed. */
    if (*bytes > 0 && (*line)[*bytes - 1] == '\r')
        (*bytes)--;
    return true;
}

/* Decimal digits alone, as a number up to INT32_MAX - 1. */
static bool read_id(const char *field, size_t bytes, uint32_t *id)
{
    uint64_t value = 0;
    /* Stops before it can overflow, at a value that is already too large. */
    for (size_t i = 0; i < bytes && value < INT32_MAX; i++) {
        if (field[i] < '0' || field[i] > '9')
            return false;
        value = value * 10 + (uint64_t)(field[i] - '0');
    }
    *id = (uint32_t)value;
    return bytes > 0 && value < INT32_MAX;
}

/* A number as JSON has it: digits and a point, whatever the locale. */
static int read_number(const char *field, size_t bytes, uint64_t line, double *value, mp_error *err)
{
    json_error_t where;
    json_t *number = json_loadb(field, bytes, JSON_DECODE_ANY, &where);
    bool is_number = json_is_number(number);
    if (!number && mp_json_out_of_memory(&where))
        return mp_fail_memory(err);
    *value = is_number ? json_number_value(number) : 0;
    json_decref(number);
    if (!is_number)
        return mp_fail(err, MP_ERR_INPUT, "line %" PRIu64 ": count is not a number", line);
    return 0;
}

static int read_line(table *t, const char *line, size_t bytes, uint64_t number, mp_error *err)
{
    const char *end = line + bytes, *comma = memchr(line, ',', bytes);
    const char *second = comma ? memchr(comma + 1, ',', (size_t)(end - comma - 1)) : NULL;
    entry e;
    if (!second || memchr(second + 1, ',', (size_t)(end - second - 1)))
        return mp_fail(err, MP_ERR_INPUT, "line %" PRIu64 ": expected three columns, " HEADER,
                       number);
    if (!read_id(line, (size_t)(comma - line), &e.layer))
        return mp_fail(err, MP_ERR_INPUT, "line %" PRIu64 ": layer_id is not a layer number",
                       number);
    if (!read_id(comma + 1, (size_t)(second - comma - 1), &e.expert))
        return mp_fail(err, MP_ERR_INPUT, "line %" PRIu64 ": expert_id is not an expert number",
                       number);
    if (t->num_logical != 0 && e.expert >= t->num_logical)
        return mp_fail(err, MP_ERR_INPUT, "line %" PRIu64 ": expert %u, expected 0 to %u", number,
                       e.expert, t->num_logical - 1);
    int rc = read_number(second + 1, (size_t)(end - second - 1), number, &e.count, err);
    if (rc != 0)
        return rc;
    if (e.count < 0)
        return mp_fail(err, MP_ERR_INPUT, "line %" PRIu64 ": count %g, expected 0 or more", number,
                       e.count);
    if (t->count == t->room) {
        uint64_t room = t->room ? t->room * 2 : 1024;
        entry *entries = realloc(t->entries, (size_t)room * sizeof(*entries));
        if (!entries)
            return mp_fail_memory(err);
        t->entries = entries;
        t->room = room;
    }
    t->entries[t->count++] = e;
    return 0;
}

/* By layer; equal cells are added in the order of the file, so that sums do not depend on qsort. */
static int by_layer(const void *a, const void *b)
{
    const uint32_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

/* Sets s->layer_ids to the layers that there are, and sizes the counts. */
static int size_steps(mp_steps *s, const table *t, mp_error *err)
{
    uint32_t largest = 0, *ids = mp_alloc(t->count, sizeof(*ids));
    uint64_t layers = 0;
    if (!ids)
        return mp_fail_memory(err);
    for (uint64_t i = 0; i < t->count; i++) {
        ids[i] = t->entries[i].layer;
        largest = t->entries[i].expert > largest ? t->entries[i].expert : largest;
    }
    qsort(ids, (size_t)t->count, sizeof(*ids), by_layer);
    for (uint64_t i = 0; i < t->count; i++)
        if (layers == 0 || ids[layers - 1] != ids[i])
            ids[layers++] = ids[i];
    uint64_t n = t->num_logical ? t->num_logical : (uint64_t)largest + 1;
    int rc = mp_check_cells(layers, n, err);

    if (rc == 0)
        rc = mp_steps_init(s, 1, layers, n, err);
    s->layer_ids = ids;
    s->guessed = t->num_logical == 0;
    return rc;
}

int mp_counts_read_csv(mp_steps *s, const char *text, uint64_t length, uint32_t num_logical,
                       mp_error *err)
{
    table t = {.num_logical = num_logical};
    const char *line;
    size_t bytes;
    uint64_t number = 1;
    if (!next_line(&text, &length, &line, &bytes) || bytes != strlen(HEADER) ||
        memcmp(line, HEADER, bytes) != 0)
        return mp_fail(err, MP_ERR_INPUT,
                       "counts: neither JSON, nor a .pt, nor CSV with the first line " HEADER);
    int rc = 0;
    while (rc == 0 && next_line(&text, &length, &line, &bytes)) {
        number++;
        /* Only the last line may be empty. */
        if (bytes > 0 || length > 0)
            rc = read_line(&t, line, bytes, number, err);
    }
    if (rc == 0 && t.count == 0)
        rc = mp_fail(err, MP_ERR_INPUT, "counts: no line after the first");
    if (rc == 0)
        rc = size_steps(s, &t, err);
    for (uint64_t i = 0; rc == 0 && i < t.count; i++) {
        const entry *e = &t.entries[i];
        const uint32_t *id = bsearch(&e->layer, s->layer_ids, s->layers, sizeof(*id), by_layer);
        s->count[(uint64_t)(id - s->layer_ids) * s->num_logical + e->expert] += e->count;
    }
    free(t.entries);
    return rc;
}
