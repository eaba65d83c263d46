/* SPDX-License-Identifier: Apache-2.0 */
/* moepack inspect: what a checkpoint, a packed directory or a snapshot holds. What a path is is
 * found out here, and each kind has a file; this one prints checkpoints, as text and as JSON.
 *
 * A checkpoint with problems is shown all the same, since that is when people look: problems are
 * printed behind the table, and the status is that of malformed input. */
#include "inspect.h"
#include "commands.h"
#include "output.h"
#include "progress.h"
#include "zstd.h"

#include <string.h>

/* ------------------------------------------------------------------------
 * JSON
 */

static json_t *number_json(uint64_t value)
{
    return value == MP_CONFIG_ABSENT ? json_null() : json_integer((json_int_t)value);
}

/* Models of their own in one checkpoint. */
static json_t *towers_json(const mp_catalog *c)
{
    json_t *list = json_array();

    for (unsigned t = 0; t < c->num_towers; t++) {
        const mp_tower *tower = &c->towers[t];

        json_array_append_new(
            list,
            json_pack("{s:s, s:o, s:o, s:i, s:i, s:o}", "name", tower->name, "hidden_size",
                      number_json(tower->hidden_size), "moe_intermediate_size",
                      number_json(tower->moe_intermediate_size), "num_experts",
                      (int)tower->num_experts, "num_shared_experts", (int)tower->num_shared_experts,
                      "experts_per_token", number_json(tower->config.experts_per_token)));
    }
    return list;
}

/* Shared experts of a layer, as wide as its routed ones. */
static uint32_t shared_of(const mp_catalog *c, const mp_moe_layer *layer)
{
    size_t index = (size_t)(layer - c->layers);

    for (unsigned t = 0; t < c->num_towers; t++)
        if (index >= c->towers[t].first && index - c->towers[t].first < c->towers[t].count)
            return c->towers[t].num_shared_experts;
    return c->num_shared_experts;
}

static json_t *layer_json(const mp_catalog *catalog, const mp_moe_layer *layer)
{
    const mp_storage *s = &layer->storage;

    return json_pack("{s:s, s:i, s:i, s:s, s:o, s:o}", "name", layer->prefix, "experts",
                     (int)layer->num_experts, "shared_experts",
                     layer->has_shared ? (int)shared_of(catalog, layer) : 0, "format",
                     mp_scheme_name(s->scheme), "scale",
                     s->has_scale ? json_string(mp_dtype_name(s->scale_dtype)) : json_null(),
                     "bytes", number_json(layer->bytes));
}

json_t *problems_json(const mp_problems *problems)
{
    json_t *list = json_array();
    uint64_t kept = problems->count < MP_PROBLEMS_KEPT ? problems->count : MP_PROBLEMS_KEPT;

    for (uint64_t i = 0; i < kept; i++)
        json_array_append_new(list, json_string(problems->text[i] ? problems->text[i] : "?"));
    if (problems->count > kept)
        json_array_append_new(
            list, json_sprintf("... and %llu more", (unsigned long long)(problems->count - kept)));
    return list;
}

json_t *tensors_json(const mp_checkpoint *ckpt)
{
    json_t *list = json_array();

    for (size_t i = 0; i < ckpt->num_tensors; i++) {
        const mp_tensor *t = &ckpt->tensors[i];
        json_t *shape = json_array();

        for (uint32_t d = 0; d < t->rank; d++)
            json_array_append_new(shape, number_json(t->shape[d]));
        json_array_append_new(list, json_pack("{s:s, s:s, s:o, s:s, s:o}", "name", t->name, "dtype",
                                              mp_dtype_name(t->dtype), "shape", shape, "shard",
                                              ckpt->shards[t->shard].name, "bytes",
                                              number_json(t->bytes)));
    }
    return list;
}

static uint64_t tensor_bytes(const mp_checkpoint *ckpt)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < ckpt->num_tensors; i++)
        bytes += ckpt->tensors[i].bytes;
    return bytes;
}

/* Whether any shard is compressed; and what that gained. */
static bool sum_up(const mp_checkpoint *ckpt, mp_compress_report *report)
{
    *report = (mp_compress_report){.shards = ckpt->num_shards};
    for (size_t i = 0; i < ckpt->num_shards; i++) {
        report->plain += ckpt->shards[i].size;
        report->stored += ckpt->shards[i].stored;
    }
    return mp_compress_sums(ckpt, report->sums);
}

static int print_catalog_json(const mp_catalog *c, bool with_tensors, mp_error *err)
{
    json_t *layers = json_array(), *json, *passed_over = json_object();
    uint64_t others = 0;

    for (size_t i = 0; i < c->num_layers; i++)
        json_array_append_new(layers, layer_json(c, &c->layers[i]));
    for (unsigned k = 0; k < MP_KINDS; k++) {
        others += c->others[k].tensors;
        json_object_set_new(passed_over, c->others[k].kind, number_json(c->others[k].tensors));
    }
    json = json_pack(
        "{s:o, s:s, s:s, s:o, s:o, s:i, s:i, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, "
        "s:o}",
        "model_type", c->config.model_type[0] ? json_string(c->config.model_type) : json_null(),
        "family", c->family, "reason", c->reason, "hidden_size", number_json(c->hidden_size),
        "moe_intermediate_size", number_json(c->moe_intermediate_size), "num_experts",
        (int)c->num_experts, "num_shared_experts", (int)c->num_shared_experts, "experts_per_token",
        number_json(c->config.experts_per_token), "layers", layers, "num_tensors",
        number_json(c->checkpoint.num_tensors), "expert_tensors", number_json(c->expert_tensors),
        "other_tensors", number_json(others), "passed_over", passed_over, "bytes",
        number_json(tensor_bytes(&c->checkpoint)), "shards", number_json(c->checkpoint.num_shards),
        "problems", problems_json(&c->problems), "warnings", problems_json(&c->promises), "notes",
        problems_json(&c->notes));
    mp_compress_report report;
    if (json && sum_up(&c->checkpoint, &report))
        json_object_set_new(json, "zstd", zstd_json(&report));
    if (json && c->num_towers > 0)
        json_object_set_new(json, "towers", towers_json(c));
    if (json && with_tensors)
        json_object_set_new(json, "tensors", tensors_json(&c->checkpoint));
    return print_json(json, err);
}

/* ------------------------------------------------------------------------
 * Text
 */

static int wider(int width, const char *text)
{
    size_t length = strlen(text);

    return length > (size_t)width ? (int)length : width;
}

void print_tensors(const mp_checkpoint *ckpt)
{
    char shape[MP_SHAPE_TEXT];
    int width[2] = {0, 0};

    for (size_t i = 0; i < ckpt->num_tensors; i++) {
        const mp_tensor *t = &ckpt->tensors[i];

        width[0] = wider(width[0], mp_dtype_name(t->dtype));
        width[1] = wider(width[1], mp_shape_text(t->shape, t->rank, shape));
    }
    for (size_t i = 0; i < ckpt->num_tensors; i++) {
        const mp_tensor *t = &ckpt->tensors[i];

        printf("%-*s  %-*s  ", width[0], mp_dtype_name(t->dtype), width[1],
               mp_shape_text(t->shape, t->rank, shape));
        print_name(stdout, t->name);
        printf("  ");
        print_name(stdout, ckpt->shards[t->shard].name);
        putchar('\n');
    }
}

static bool same_storage(const mp_storage *a, const mp_storage *b)
{
    return a->scheme == b->scheme && a->has_scale == b->has_scale &&
           a->scale_dtype == b->scale_dtype && a->block_rows == b->block_rows &&
           a->block_cols == b->block_cols;
}

/* Layers that can share a line of the table. */
static bool alike(const mp_moe_layer *a, const mp_moe_layer *b)
{
    return a->mtp == b->mtp && a->num_experts == b->num_experts && a->bytes == b->bytes &&
           a->has_shared == b->has_shared && same_storage(&a->storage, &b->storage) &&
           (!a->has_shared || same_storage(&a->shared_storage, &b->shared_storage));
}

static const char *storage_text(const mp_storage *s, char text[64])
{
    if (s->has_scale)
        snprintf(text, 64, "%s, %s scales", mp_scheme_name(s->scheme),
                 mp_dtype_name(s->scale_dtype));
    else
        snprintf(text, 64, "%s", mp_scheme_name(s->scheme));
    return text;
}

/* Layers that are alike, as a line of the table. */
typedef struct layers_line {
    const mp_moe_layer *first;
    size_t next;
    char name[160], routed[64], shared[64];
} layers_line;

/* The line that begins with a layer. each: a line for every layer, not one for all that are alike.
 */
static layers_line line_at(const mp_catalog *c, size_t first, bool each)
{
    const mp_moe_layer *layer = &c->layers[first];
    layers_line line = {.first = layer, .next = first + 1, .shared = "-"};

    while (!each && line.next < c->num_layers && alike(layer, &c->layers[line.next]))
        line.next++;
    if (line.next - first == 1)
        snprintf(line.name, sizeof line.name, "%s", layer->prefix);
    else
        snprintf(line.name, sizeof line.name, "%.120s - %llu", layer->prefix,
                 (unsigned long long)c->layers[line.next - 1].number);
    storage_text(&layer->storage, line.routed);
    if (layer->has_shared)
        storage_text(&layer->shared_storage, line.shared);
    return line;
}

static void print_layers(const mp_catalog *c, bool each)
{
    static const char *const head[] = {"layers", "experts are", "shared expert is"};
    int width[3] = {wider(0, head[0]), wider(0, head[1]), wider(0, head[2])};
    char bytes[SIZE_TEXT];
    layers_line line;

    for (size_t i = 0; i < c->num_layers; i = line.next) {
        line = line_at(c, i, each);
        width[0] = wider(width[0], line.name);
        width[1] = wider(width[1], line.routed);
        width[2] = wider(width[2], line.shared);
    }
    printf("%-*s  experts  %-*s  %-*s  bytes a layer\n", width[0], head[0], width[1], head[1],
           width[2], head[2]);
    for (size_t i = 0; i < c->num_layers; i = line.next) {
        line = line_at(c, i, each);
        print_name(stdout, line.name);
        printf("%*s  %7u  %-*s  %-*s  %s\n", width[0] - (int)strlen(line.name), "",
               line.first->num_experts, width[1], line.routed, width[2], line.shared,
               size_text(line.first->bytes, bytes));
    }
}

static void print_counts(const mp_catalog *c)
{
    char bytes[SIZE_TEXT];
    const char *before = "; passed over: ";

    printf("%zu tensor%s in %zu shard%s, %s: %llu of experts", c->checkpoint.num_tensors,
           plural(c->checkpoint.num_tensors), c->checkpoint.num_shards,
           plural(c->checkpoint.num_shards), size_text(tensor_bytes(&c->checkpoint), bytes),
           (unsigned long long)c->expert_tensors);
    for (unsigned k = 0; k < MP_KINDS; k++) {
        if (c->others[k].tensors == 0)
            continue;
        printf("%s%llu %s", before, (unsigned long long)c->others[k].tensors, c->others[k].kind);
        before = ", ";
    }
    printf("\n");
}

static void print_sizes(uint64_t hidden, uint64_t width, uint32_t experts, uint32_t shared,
                        uint64_t a_token)
{
    printf("hidden size %llu, expert intermediate size %llu, %u expert%s, %u shared",
           (unsigned long long)hidden, (unsigned long long)width, experts, plural(experts), shared);
    if (a_token != MP_CONFIG_ABSENT)
        printf(", %llu a token", (unsigned long long)a_token);
    printf("\n");
}

static void print_catalog(const mp_catalog *c, bool each_layer, const output_ink *ink)
{
    mp_compress_report report;
    char model[MP_MODEL_TEXT];

    printf("%s", ink->bold);
    print_name(stdout, mp_model_text(c->config.model_type, c->family, model));
    printf("%s (", ink->plain);
    print_name(stdout, c->reason);
    printf(")\n");
    for (unsigned t = 0; t < c->num_towers; t++) {
        const mp_tower *tower = &c->towers[t];

        printf("%s: ", tower->name);
        print_sizes(tower->hidden_size, tower->moe_intermediate_size, tower->num_experts,
                    tower->num_shared_experts, tower->config.experts_per_token);
    }
    if (c->num_towers == 0)
        print_sizes(c->hidden_size, c->moe_intermediate_size, c->num_experts, c->num_shared_experts,
                    c->config.experts_per_token);
    printf("\n");
    print_layers(c, each_layer);
    printf("\n");
    print_counts(c);
    if (sum_up(&c->checkpoint, &report))
        zstd_print(stdout, &report);
}

/* ------------------------------------------------------------------------
 * The command
 */

static int inspect_checkpoint(const inspect_options *o, const mp_context *context, mp_error *err)
{
    mp_catalog catalog;
    int rc = mp_catalog_open(&catalog, o->path, context, err);

    if (rc != 0)
        return rc;
    if (o->common.json) {
        rc = print_catalog_json(&catalog, o->tensors, err);
    } else {
        output_ink ink = ink_for(stdout, &o->common);

        print_catalog(&catalog, o->common.verbose, &ink);
        if (o->tensors) {
            printf("\n");
            print_tensors(&catalog.checkpoint);
        }
    }
    if (rc == 0 && !o->common.quiet) {
        print_problems(stderr, "moepack: inspect: note", &catalog.notes);
        print_problems(stderr, "moepack: inspect: warning", &catalog.promises);
    }
    if (rc == 0 && catalog.problems.count > 0) {
        print_problems(stderr, "moepack: inspect", &catalog.problems);
        rc = cmd_fail(err, MP_ERR_INPUT, "%s: problems: %llu", o->path,
                      (unsigned long long)catalog.problems.count);
    }
    mp_catalog_release(&catalog);
    return rc;
}

static int run_inspect(const void *values, mp_error *err)
{
    const inspect_options *o = values;
    mp_snapshot_kind kind;
    mp_context context;

    cmd_context(&o->common, &context);
    if ((o->ranges || o->svg) && !mp_is_packed(o->path))
        return cmd_fail(err, MP_ERR_USAGE, "%s is for packs, \"%s\" is not one",
                        o->ranges ? "--ranges" : "--svg", o->path);
    if (mp_is_packed(o->path))
        return inspect_pack(o, &context, err);
    if (mp_snapshot_find(o->path, &kind, err) != 0)
        return err->code;
    return kind != MP_SNAPSHOT_NONE ? inspect_snapshot(o, kind, &context, err)
                                    : inspect_checkpoint(o, &context, err);
}

static const cmd_option options[] = {
    OPT_FLAG(0, "tensors", inspect_options, tensors, "list every tensor"),
    OPT_FLAG(0, "ranges", inspect_options, ranges, "list the bytes of every expert of a pack"),
    OPT_STRING(0, "svg", "FILE", inspect_options, svg, "draw the slots of a pack into FILE"),
    OPT_JSON(inspect_options),
    OPT_END,
};
static const cmd_argument arguments[] = {ARG_ONE("CKPT", inspect_options, path), ARG_END};
static const inspect_options defaults = {0};

const command command_inspect = {
    .name = "inspect",
    .summary = "show what a checkpoint, pack or snapshot holds",
    .options = options,
    .arguments = arguments,
    COMMAND_DEFAULTS(defaults),
    .run = run_inspect,
};
