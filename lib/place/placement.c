/* SPDX-License-Identifier: Apache-2.0 */
/* Placements: making the trivial one, checking any, and recognizing placement files.
 *
 * A placement is a matrix of logical experts: a row per MoE layer and a column per physical expert,
 * the first P / ep of them on rank 0, and so on. One row may stand for all layers. Some files
 * number their rows by decoder layer and others just list them; the caller, who knows the model,
 * decides which layer a row means.
 *
 * Readers of all formats add ids one by one to mp_rows_read, which makes sure that rows are equally
 * long and ids are plausible. Whether the matrix is a placement, with every expert in every row, is
 * checked once, here, for files and for computed placements alike. After that 0 <= id < N
 * everywhere, and all code indexes with it. No state; a placement is not changed after it is
 * read. */
#include <moepack/place.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "place/rows.h"

int mp_placement_trivial(mp_placement *p, uint32_t layers, uint32_t num_logical, uint32_t redundant,
                         mp_error *err)
{
    *p = (mp_placement){0};
    uint64_t num_physical = (uint64_t)num_logical + redundant;
    uint64_t count;
    if (layers == 0)
        return mp_fail(err, MP_ERR_INPUT, "placement: no layers");
    if (num_logical == 0)
        return mp_fail(err, MP_ERR_INPUT, "placement: no logical experts");
    if (num_physical > INT32_MAX || !mp_mul_u64(layers, num_physical, &count))
        return mp_fail(err, MP_ERR_INPUT,
                       "placement: %u logical and %u redundant experts do not fit 32-bit ids",
                       num_logical, redundant);
    p->map = mp_alloc(count, sizeof(*p->map));
    if (!p->map)
        return mp_fail_memory(err);
    p->layers = layers;
    p->num_logical = num_logical;
    p->num_physical = (uint32_t)num_physical;
    for (uint64_t i = 0; i < count; i++)
        p->map[i] = (int32_t)(i % num_physical % num_logical);
    return 0;
}

const int32_t *mp_placement_row(const mp_placement *p, uint32_t row)
{
    if (p->layers == 1)
        return p->map;
    return row < p->layers ? p->map + (uint64_t)row * p->num_physical : NULL;
}

uint32_t mp_placement_row_of(const mp_placement *p, uint64_t layer)
{
    uint32_t row = 0;
    if (!p->layer_ids)
        return p->layers == 1 ? 0 : layer < p->layers ? (uint32_t)layer : UINT32_MAX;
    while (row < p->layers && p->layer_ids[row] != layer)
        row++;
    return row < p->layers ? row : UINT32_MAX;
}

uint32_t mp_placement_layer(const mp_placement *p, uint32_t row)
{
    return p->layer_ids ? p->layer_ids[row] : row;
}

void mp_placement_release(mp_placement *p)
{
    free(p->map);
    free(p->layer_ids);
    *p = (mp_placement){0};
}

/* ------------------------------------------------------------------------
 * Checks
 */

uint32_t mp_colocated(const int32_t *row, uint32_t num_logical, uint32_t num_physical, uint32_t ep,
                      uint32_t *seen, uint32_t *first)
{
    uint32_t per_rank = num_physical / ep;
    uint32_t count = 0;
    memset(seen, 0, num_logical * sizeof(*seen));
    for (uint32_t p = 0; p < num_physical; p++) {
        /* Count ranks from 1, so that 0 means not seen. */
        uint32_t rank_mark = p / per_rank + 1;
        uint32_t *mark = &seen[row[p]];
        if (*mark == rank_mark && count++ == 0 && first)
            *first = p;
        *mark = rank_mark;
    }
    return count;
}

static int check_row(const mp_placement *p, uint32_t layer, uint32_t *copies, mp_error *err)
{
    const int32_t *row = p->map + (uint64_t)layer * p->num_physical;
    memset(copies, 0, p->num_logical * sizeof(*copies));
    for (uint32_t i = 0; i < p->num_physical; i++) {
        if (row[i] < 0 || (uint32_t)row[i] >= p->num_logical)
            return mp_fail(err, MP_ERR_INPUT,
                           "placement: row %u, column %u: logical expert %d, expected 0 to %u",
                           layer, i, row[i], p->num_logical - 1);
        copies[row[i]]++;
    }
    for (uint32_t e = 0; e < p->num_logical; e++)
        if (copies[e] == 0)
            return mp_fail(err, MP_ERR_INPUT,
                           "placement: row %u: logical expert %u is in none of the %u columns",
                           layer, e, p->num_physical);
    return 0;
}

/* One text for all rows. */
static void warn_colocated(const mp_placement *p, uint32_t ep, uint32_t *seen,
                           mp_problems *warnings)
{
    uint64_t copies = 0;
    uint32_t rows = 0, row = 0, column = 0, first = 0;
    for (uint32_t layer = 0; layer < p->layers; layer++) {
        uint32_t count = mp_colocated(p->map + (uint64_t)layer * p->num_physical, p->num_logical,
                                      p->num_physical, ep, seen, &first);
        if (count > 0 && rows++ == 0) {
            row = layer;
            column = first;
        }
        copies += count;
    }
    if (rows == 0)
        return;
    int32_t expert = p->map[(uint64_t)row * p->num_physical + column];
    uint32_t rank = column / (p->num_physical / ep);
    if (rows == 1)
        mp_problem(warnings,
                   "placement: row %u: %" PRIu64 " %s on a rank that has the expert already, first "
                   "expert %d in column %u on rank %u",
                   row, copies, copies == 1 ? "copy" : "copies", expert, column, rank);
    else
        mp_problem(warnings,
                   "placement: %" PRIu64
                   " copies in %u row%s on ranks that have the expert already, "
                   "first in row %u: expert %d in column %u on rank %u",
                   copies, rows, mp_plural(rows), row, expert, column, rank);
}

int mp_placement_check(const mp_placement *p, uint32_t ep, mp_problems *warnings, mp_error *err)
{
    if (p->layers == 0 || p->num_logical == 0)
        return mp_fail(err, MP_ERR_INPUT, "placement: no %s",
                       p->layers == 0 ? "layers" : "logical experts");
    if (p->num_physical < p->num_logical)
        return mp_fail(err, MP_ERR_INPUT,
                       "placement: rows of %u columns cannot hold %u logical experts",
                       p->num_physical, p->num_logical);
    if (ep > 0 && p->devices > 0 && p->devices != ep)
        return mp_fail(err, MP_ERR_INPUT,
                       "placement: device_count is %u, the number of ranks is %u", p->devices, ep);
    if (ep > 0 && p->num_physical % ep != 0)
        return mp_fail(err, MP_ERR_INPUT,
                       "placement: %u physical experts do not divide evenly among %u ranks",
                       p->num_physical, ep);

    uint32_t *scratch = mp_alloc(p->num_logical, sizeof(*scratch));
    if (!scratch)
        return mp_fail_memory(err);
    int rc = 0;
    for (uint32_t layer = 0; layer < p->layers && rc == 0; layer++)
        rc = check_row(p, layer, scratch, err);
    if (rc == 0 && ep > 0 && warnings)
        warn_colocated(p, ep, scratch, warnings);
    free(scratch);
    return rc;
}

/* ------------------------------------------------------------------------
 * Reading
 */

uint64_t mp_rows_column(const mp_rows_read *rows)
{
    return rows->count - rows->rows * rows->columns;
}

int mp_rows_add(mp_rows_read *rows, int64_t id, mp_error *err)
{
    if (id < 0 || id >= INT32_MAX)
        return mp_fail(err, MP_ERR_INPUT,
                       "placement: row %llu, column %llu: %lld is not a logical expert",
                       (unsigned long long)rows->rows, (unsigned long long)mp_rows_column(rows),
                       (long long)id);
    if (rows->count == rows->room) {
        uint64_t room = rows->room ? rows->room * 2 : 1024;
        int32_t *ids = realloc(rows->ids, room * sizeof(*ids));
        if (!ids)
            return mp_fail_memory(err);
        rows->ids = ids;
        rows->room = room;
    }
    rows->ids[rows->count++] = (int32_t)id;
    return 0;
}

int mp_rows_layer(mp_rows_read *rows, int64_t layer, mp_error *err)
{
    uint64_t row = rows->rows;
    if (layer < 0 || layer >= INT32_MAX)
        return mp_fail(err, MP_ERR_INPUT, "placement: row %" PRIu64 ": %" PRId64 " is not a layer",
                       row, layer);
    /* Ascending order rules out duplicates. */
    if (row > 0 && layer <= rows->layers[row - 1])
        return mp_fail(err, MP_ERR_INPUT,
                       "placement: row %" PRIu64 ": layer %" PRId64
                       ", expected one above %u: layers must be in order, each once",
                       row, layer, rows->layers[row - 1]);
    if (row == rows->layer_room) {
        uint64_t room = rows->layer_room ? rows->layer_room * 2 : 64;
        uint32_t *layers = realloc(rows->layers, room * sizeof(*layers));
        if (!layers)
            return mp_fail_memory(err);
        rows->layers = layers;
        rows->layer_room = room;
    }
    rows->layers[row] = (uint32_t)layer;
    return 0;
}

int mp_rows_end(mp_rows_read *rows, mp_error *err)
{
    uint64_t columns = mp_rows_column(rows);
    if (columns == 0)
        return mp_fail(err, MP_ERR_INPUT, "placement: row %llu is empty",
                       (unsigned long long)rows->rows);
    if (rows->rows == 0)
        rows->columns = columns;
    else if (columns != rows->columns)
        return mp_fail(err, MP_ERR_INPUT, "placement: row %llu has %llu columns, row 0 has %llu",
                       (unsigned long long)rows->rows, (unsigned long long)columns,
                       (unsigned long long)rows->columns);
    rows->rows++;
    return 0;
}

/* Takes over the rows. Without a number of experts, the largest id tells it. */
static int adopt_rows(mp_placement *p, mp_rows_read *rows, uint32_t num_logical, mp_error *err)
{
    if (rows->rows == 0)
        return mp_fail(err, MP_ERR_INPUT, "placement: no layers");
    if (rows->rows > INT32_MAX || rows->columns > INT32_MAX)
        return mp_fail(err, MP_ERR_INPUT, "placement: %llu rows of %llu columns are too many",
                       (unsigned long long)rows->rows, (unsigned long long)rows->columns);
    uint64_t largest = 0;
    for (uint64_t i = 1; i < rows->count; i++)
        if (rows->ids[i] > rows->ids[largest])
            largest = i;
    /* Every expert is in every row, so an id must be below the number of columns. Otherwise a wild
     * id would determine the size of arrays. */
    if (num_logical == 0 && (uint64_t)rows->ids[largest] >= rows->columns)
        return mp_fail(err, MP_ERR_INPUT,
                       "placement: row %llu, column %llu: logical expert %d, but rows of %llu "
                       "columns cannot hold that many",
                       (unsigned long long)(largest / rows->columns),
                       (unsigned long long)(largest % rows->columns), rows->ids[largest],
                       (unsigned long long)rows->columns);
    p->layers = (uint32_t)rows->rows;
    p->num_logical = num_logical ? num_logical : (uint32_t)rows->ids[largest] + 1;
    p->num_physical = (uint32_t)rows->columns;
    p->map = rows->ids;
    p->layer_ids = rows->layers;
    p->devices = rows->devices > UINT32_MAX ? UINT32_MAX : (uint32_t)rows->devices;
    rows->ids = NULL;
    rows->layers = NULL;
    return mp_placement_check(p, 0, NULL, err);
}

/* PyTorch writes zip archives; before version 1.6, and with torch.save of old, pickles. */
static bool is_torch_file(const char *text, uint64_t length)
{
    return length >= 4 && (memcmp(text, "PK\003\004", 4) == 0 ||
                           (memcmp(text, "\200", 1) == 0 && text[1] >= 2 && text[1] <= 5));
}

int mp_placement_parse(mp_placement *p, const char *text, uint64_t length, uint32_t num_logical,
                       mp_error *err)
{
    err = MP_NEVER_NULL(err);
    *p = (mp_placement){0};
    if (is_torch_file(text, length))
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "placement: this is a PyTorch .pt file; turn it into JSON with: python -c "
                       "\"import json, sys, torch; print(json.dumps({k: v.tolist() for k, v in "
                       "torch.load(sys.argv[1]).items() if k == 'physical_to_logical_map'}))\" "
                       "FILE.pt");
    uint64_t start = 0;
    while (start < length && memchr(" \t\r\n", text[start], 4))
        start++;
    if (start == length)
        return mp_fail(err, MP_ERR_INPUT, "placement: the file is empty");

    mp_rows_read rows = {0};
    int rc;
    if (text[start] == '{' || text[start] == '[')
        rc = mp_placement_read_json(&rows, text, length, err);
    else
        rc = mp_placement_read_yaml(&rows, text, length, err);
    if (rc == 0)
        rc = adopt_rows(p, &rows, num_logical, err);
    free(rows.ids);
    free(rows.layers);
    if (rc != 0)
        mp_placement_release(p);
    return rc;
}
