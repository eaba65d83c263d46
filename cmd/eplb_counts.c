/* SPDX-License-Identifier: Apache-2.0 */
/* Where moepack eplb gets its counts from: files of all kinds, which the library parses,
 * directories of TensorRT-LLM, and which layers of the model they are for.
 *
 * A placement that is for the wrong layers is worse than none, so rows are numbered only by
 * somebody who says it: --layers, --first-layer, the counts themselves, or a model whose numbers of
 * layers fit in one way only. Each file is blamed by name. */
#include "commands.h"
#include "eplb.h"
#include "files.h"
#include "output.h"
#include "progress.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <moepack/model.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ------------------------------------------------------------------------
 * TensorRT-LLM's statistics: meta_info.json and a rank<digits>.safetensors of each rank, with a
 * tensor <iteration>_<layer> [num_experts] for each pair
 */

/* All numbers of one kind, ascending, each once. */
typedef struct numbers {
    uint64_t *items;
    size_t count;
} numbers;

typedef struct statistics {
    const char *dir;
    uint64_t experts;
    mp_checkpoint *ranks;
    char **names; /* of the ranks' files */
    size_t num_ranks;
    numbers iterations, layers;
    double *count; /* [iterations][layers][experts] */
} statistics;

static int compare_numbers(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;

    return *x < *y ? -1 : *x > *y;
}

static int add_number(numbers *n, uint64_t number, mp_error *err)
{
    if ((n->count & (n->count - 1)) == 0) { /* full: its room is the power of two above */
        uint64_t *items = realloc(n->items, (n->count ? 2 * n->count : 1) * sizeof *items);

        if (!items)
            return cmd_fail(err, MP_ERR_IO, "out of memory");
        n->items = items;
    }
    n->items[n->count++] = number;
    return 0;
}

static void sort_numbers(numbers *n)
{
    size_t kept = 0;

    if (n->count > 0)
        qsort(n->items, n->count, sizeof *n->items, compare_numbers);
    for (size_t i = 0; i < n->count; i++)
        if (kept == 0 || n->items[kept - 1] != n->items[i])
            n->items[kept++] = n->items[i];
    n->count = kept;
}

static size_t index_of(const numbers *n, uint64_t number)
{
    const uint64_t *item = bsearch(&number, n->items, n->count, sizeof number, compare_numbers);

    /* It is there: the first pass has added it. */
    return (size_t)(item - n->items);
}

/* Digits up to `end`, as a number below 2^31. */
static bool read_digits(const char *text, const char *end, uint64_t *number)
{
    *number = 0;
    if (text == end)
        return false;
    for (; text < end && *number <= INT32_MAX; text++) {
        if (*text < '0' || *text > '9')
            return false;
        *number = *number * 10 + (uint64_t)(*text - '0');
    }
    return *number <= INT32_MAX;
}

static int read_meta(statistics *s, mp_error *err)
{
    char path[4096], *text;
    uint64_t length;

    snprintf(path, sizeof path, "%s/meta_info.json", s->dir);
    int rc = mp_read_text(path, TEXT_FILE_LIMIT, &text, &length, err);
    if (rc != 0)
        return rc;
    json_error_t where;
    json_t *meta = json_loadb(text, length, JSON_REJECT_DUPLICATES, &where);
    const json_t *experts = json_object_get(meta, "num_experts");
    if (json_is_integer(experts) && json_integer_value(experts) > 0 &&
        json_integer_value(experts) <= INT32_MAX)
        s->experts = (uint64_t)json_integer_value(experts);
    else
        rc = cmd_fail(err, MP_ERR_INPUT, "meta_info.json: num_experts is not a number of experts");
    json_decref(meta);
    free(text);
    return rc;
}

static int is_rank_file(const struct dirent *entry)
{
    const char *name = entry->d_name, *end = strstr(name, ".safetensors");
    uint64_t rank;

    return strncmp(name, "rank", 4) == 0 && end && strcmp(end, ".safetensors") == 0 &&
           read_digits(name + 4, end, &rank);
}

static int open_ranks(statistics *s, mp_error *err)
{
    struct dirent **entries;
    int count = scandir(s->dir, &entries, is_rank_file, versionsort), rc = 0;

    if (count < 0)
        return cmd_fail(err, MP_ERR_IO, "cannot list it: %s", strerror(errno));
    s->ranks = calloc((size_t)count + 1, sizeof *s->ranks);
    s->names = calloc((size_t)count + 1, sizeof *s->names);
    if (!s->ranks || !s->names)
        rc = cmd_fail(err, MP_ERR_IO, "out of memory");
    else if (count == 0)
        rc = cmd_fail(err, MP_ERR_INPUT, "no rank<digits>.safetensors is in it");
    for (int i = 0; i < count; i++) {
        char path[4096];

        if (rc == 0) {
            snprintf(path, sizeof path, "%s/%s", s->dir, entries[i]->d_name);
            rc = mp_checkpoint_open(&s->ranks[i], path, NULL, err);
            s->names[i] = strdup(entries[i]->d_name);
            /* Counted though it may have failed: its file and name are released. */
            s->num_ranks++;
            if (rc == 0 && !s->names[i])
                rc = cmd_fail(err, MP_ERR_IO, "out of memory");
        }
        free(entries[i]);
    }
    free(entries);
    return rc;
}

/* Which iteration and layer a tensor is for; what else it has to be. */
static int check_tensor(const statistics *s, const char *file, const mp_tensor *t,
                        uint64_t *iteration, uint64_t *layer, mp_error *err)
{
    const char *middle = strchr(t->name, '_');
    char shape[MP_SHAPE_TEXT];

    if (!middle || !read_digits(t->name, middle, iteration) ||
        !read_digits(middle + 1, strchr(middle, '\0'), layer))
        return cmd_fail(err, MP_ERR_INPUT, "%s: \"%s\" is no <iteration>_<layer>", file, t->name);
    if (t->dtype != MP_I64 && t->dtype != MP_I32)
        return cmd_fail(err, MP_ERR_INPUT, "%s: %s: %s, expected I64 or I32", file, t->name,
                        mp_dtype_name(t->dtype));
    if (t->rank != 1 || t->shape[0] != s->experts)
        return cmd_fail(err, MP_ERR_INPUT, "%s: %s: shape %s, expected [%" PRIu64 "]", file,
                        t->name, mp_shape_text(t->shape, t->rank, shape), s->experts);
    return 0;
}

static int add_tensor(statistics *s, size_t rank, const mp_tensor *t, mp_error *err)
{
    uint64_t iteration, layer;
    int rc = check_tensor(s, s->names[rank], t, &iteration, &layer, err);
    char *data = malloc(t->bytes + 1);

    if (rc == 0 && !data)
        rc = cmd_fail(err, MP_ERR_IO, "out of memory");
    if (rc == 0)
        rc = mp_tensor_read(&s->ranks[rank], t, 0, t->bytes, data, err);
    size_t pair = rc != 0 ? 0
                          : index_of(&s->iterations, iteration) * s->layers.count +
                                index_of(&s->layers, layer);
    for (uint64_t e = 0; rc == 0 && e < s->experts; e++) {
        int64_t value = t->dtype == MP_I64 ? ((const int64_t *)(void *)data)[e]
                                           : ((const int32_t *)(void *)data)[e];

        if (value < 0)
            rc = cmd_fail(err, MP_ERR_INPUT,
                          "%s: %s: expert %" PRIu64 ": %" PRId64 ", expected 0 or more",
                          s->names[rank], t->name, e, value);
        /* Ranks count their own tokens: the sum is everybody's, exact below 2^53. */
        s->count[pair * s->experts + e] += (double)value;
    }
    free(data);
    return rc;
}

/* The first of iterations x layers that no rank has, by the pairs that there are. Nothing of the
 * size of that product is allocated before: their numbers are what names of tensors say. */
static int check_whole(const statistics *s, const numbers *pairs, mp_error *err)
{
    size_t layers = s->layers.count;

    for (size_t i = 0; i < s->iterations.count * layers; i++) {
        uint64_t iteration = s->iterations.items[i / layers], layer = s->layers.items[i % layers];

        if (i == pairs->count || pairs->items[i] != (iteration << 32 | layer))
            return cmd_fail(err, MP_ERR_INPUT,
                            "iteration %" PRIu64 " lacks layer %" PRIu64 " on all ranks", iteration,
                            layer);
    }
    return 0;
}

/* The numbers of iterations and layers, which size the table. */
static int list_numbers(statistics *s, mp_error *err)
{
    numbers pairs = {0};
    int rc = 0;

    for (size_t r = 0; r < s->num_ranks; r++) {
        for (size_t i = 0; rc == 0 && i < s->ranks[r].num_tensors; i++) {
            uint64_t iteration, layer;

            rc = check_tensor(s, s->names[r], &s->ranks[r].tensors[i], &iteration, &layer, err);
            if (rc == 0)
                rc = add_number(&s->iterations, iteration, err);
            if (rc == 0)
                rc = add_number(&s->layers, layer, err);
            if (rc == 0)
                rc = add_number(&pairs, iteration << 32 | layer, err);
        }
    }
    sort_numbers(&s->iterations);
    sort_numbers(&s->layers);
    sort_numbers(&pairs);
    if (rc == 0 && pairs.count == 0)
        rc = cmd_fail(err, MP_ERR_INPUT, "no rank has a tensor");
    if (rc == 0)
        rc = check_whole(s, &pairs, err);
    free(pairs.items);
    return rc;
}

/* Every tensor once: first for its numbers, then for its counts. */
static int read_tensors(statistics *s, mp_error *err)
{
    int rc = list_numbers(s, err);

    if (rc != 0)
        return rc;
    s->count = calloc(s->iterations.count * s->layers.count, s->experts * sizeof *s->count);
    if (!s->count)
        return cmd_fail(err, MP_ERR_IO, "out of memory");
    for (size_t r = 0; r < s->num_ranks; r++)
        for (size_t i = 0; rc == 0 && i < s->ranks[r].num_tensors; i++)
            rc = add_tensor(s, r, &s->ranks[r].tensors[i], err);
    return rc;
}

static int read_statistics(const char *dir, uint64_t experts, mp_recording *r, mp_error *err)
{
    statistics s = {.dir = dir};
    uint32_t *ids = NULL;
    int rc = read_meta(&s, err);

    if (rc == 0 && experts != 0 && experts != s.experts)
        rc = cmd_fail(err, MP_ERR_INPUT, "counts of %" PRIu64 " experts, the model has %" PRIu64,
                      s.experts, experts);
    if (rc == 0)
        rc = open_ranks(&s, err);
    if (rc == 0)
        rc = read_tensors(&s, err);
    if (rc == 0 && !(ids = malloc(s.layers.count * sizeof *ids)))
        rc = cmd_fail(err, MP_ERR_IO, "out of memory");
    for (size_t i = 0; rc == 0 && i < s.layers.count; i++)
        ids[i] = (uint32_t)s.layers.items[i];
    if (rc == 0)
        rc = mp_recording_add_steps(r, s.count, s.iterations.count, (uint32_t)s.layers.count,
                                    (uint32_t)s.experts, ids, err);
    for (size_t i = 0; i < s.num_ranks; i++) {
        mp_checkpoint_release(&s.ranks[i]);
        free(s.names[i]);
    }
    free(s.ranks);
    free(s.names);
    free(s.iterations.items);
    free(s.layers.items);
    free(s.count);
    free(ids);
    return rc;
}

/* ------------------------------------------------------------------------
 * All inputs
 */

static int read_input(const char *path, uint64_t experts, mp_recording *r, mp_error *err)
{
    struct stat info;
    char *text;
    uint64_t length;

    if (strcmp(path, "-") != 0 && stat(path, &info) == 0 && S_ISDIR(info.st_mode)) {
        int rc = read_statistics(path, experts, r, err);

        return rc == 0 ? 0 : blame_file(path, err);
    }
    int rc = mp_read_text(path, TEXT_FILE_LIMIT, &text, &length, err);
    if (rc != 0)
        return rc;
    rc = mp_recording_add(r, text, length, (uint32_t)experts, err);
    free(text);
    return rc == 0 ? 0 : blame_file(path, err);
}

int eplb_read_counts(const eplb_options *o, mp_recording *r, mp_error *err)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < o->counts.count; i++)
        rc = read_input(o->counts.items[i], o->experts, r, err);
    if (rc == 0 && r->guessed && !o->common.quiet)
        fprintf(stderr,
                "moepack: eplb: the counts name experts up to %u; --experts says how many there "
                "are\n",
                r->num_logical - 1);
    return rc;
}

/* ------------------------------------------------------------------------
 * Layers
 */

/* Number of a layer as placement files count them: MTP blocks behind the decoder layers. */
static uint64_t number_of(const mp_catalog *c, size_t index)
{
    size_t first = index;

    while (first > 0 && c->layers[first - 1].mtp)
        first--;
    return c->layers[index].mtp ? c->config.num_hidden_layers + (index - first)
                                : c->layers[index].number;
}

/* Which layers the rows are for: as many as MoE layers, or as decoder layers. */
static int number_by_model(const mp_catalog *c, uint32_t rows, uint32_t *ids, mp_error *err)
{
    bool moe = rows == c->num_layers, all = rows == c->config.num_hidden_layers, differ = false;

    for (uint32_t i = 0; i < rows; i++) {
        ids[i] = moe ? (uint32_t)number_of(c, i) : i;
        differ |= ids[i] != i;
    }
    if (!moe && !all)
        return cmd_fail(err, MP_ERR_INPUT, "counts of %u layer%s, the model has %zu MoE layer%s",
                        rows, plural(rows), c->num_layers, plural(c->num_layers));
    if (moe && all && differ)
        return cmd_fail(err, MP_ERR_INPUT,
                        "counts of %u layers can be of all decoder layers or of all MoE layers; "
                        "say which with --layers",
                        rows);
    return 0;
}

/* Bytes of an expert in each row's layer; rows without one have that of the first. */
static void weigh_layers(const mp_catalog *c, uint32_t rows, const eplb_layers *layers)
{
    for (uint32_t i = 0; i < rows; i++) {
        size_t found = 0;

        while (found < c->num_layers && number_of(c, found) != layers->ids[i])
            found++;
        layers->bytes[i] = (double)c->layers[found < c->num_layers ? found : 0].expert_bytes;
    }
}

static int ask_model(const eplb_options *o, uint32_t rows, bool named, const eplb_layers *layers,
                     mp_error *err)
{
    mp_catalog catalog;
    mp_context context;

    cmd_context(&o->common, &context);
    int rc = mp_catalog_open(&catalog, o->model, &context, err);
    if (rc == 0)
        rc = mp_catalog_check_sound(&catalog, err);
    if (rc == 0 && !named)
        rc = number_by_model(&catalog, rows, layers->ids, err);
    if (rc == 0 && layers->bytes)
        weigh_layers(&catalog, rows, layers);
    mp_catalog_release(&catalog);
    return rc == 0 ? 0 : blame_file(o->model, err);
}

int eplb_name_layers(const eplb_options *o, const mp_recording *r, eplb_layers *layers,
                     mp_error *err)
{
    uint32_t rows = r->layers;
    bool listed = o->layers.count > 0, named = listed || o->first_layer_given || r->layer_ids;
    int rc = 0;

    if (listed && o->first_layer_given)
        return cmd_fail(err, MP_ERR_USAGE, "--layers and --first-layer cannot be used together");
    if (o->model && o->expert_bytes)
        return cmd_fail(err, MP_ERR_USAGE, "--model and --expert-bytes cannot be used together");
    if (listed && o->layers.count != rows)
        return cmd_fail(err, MP_ERR_INPUT, "--layers names %zu layer%s, the counts have %u",
                        o->layers.count, plural(o->layers.count), rows);
    if (!named && !o->model && !o->expert_bytes)
        return 0;
    layers->ids = malloc(rows * sizeof *layers->ids);
    layers->bytes = o->model || o->expert_bytes ? calloc(rows, sizeof *layers->bytes) : NULL;
    if (!layers->ids || ((o->model || o->expert_bytes) && !layers->bytes))
        return cmd_fail(err, MP_ERR_IO, "out of memory");
    for (uint32_t i = 0; i < rows; i++) {
        layers->ids[i] = listed                 ? (uint32_t)o->layers.items[i]
                         : o->first_layer_given ? (uint32_t)o->first_layer + i
                         : r->layer_ids         ? r->layer_ids[i]
                                                : i;
        if (listed && i > 0 && layers->ids[i] <= layers->ids[i - 1])
            return cmd_fail(err, MP_ERR_USAGE, "--layers: %u after %u: layers must be in order",
                            layers->ids[i], layers->ids[i - 1]);
        if (layers->bytes)
            layers->bytes[i] = (double)o->expert_bytes;
    }
    if (o->model)
        rc = ask_model(o, rows, named, layers, err);
    return rc;
}

void eplb_layers_release(eplb_layers *layers)
{
    free(layers->ids);
    free(layers->bytes);
    *layers = (eplb_layers){0};
}
