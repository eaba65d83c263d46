/* SPDX-License-Identifier: Apache-2.0 */
/* Completeness of the catalog: missing matrices, odd shapes, contradictions with config.json. Every
 * finding is listed, none is skipped.
 *
 * No single source is trusted. The sizes are those that two experts agree on, or one expert and
 * config.json. A single odd expert must not become the measure of all others, nor may a wrong
 * config.json make all of them odd. After that every expert is checked against H, I and the storage
 * of its layer. If a layer has all its weights but in no known form, the checkpoint is not at
 * fault: it is unsupported.
 *
 * This goes by names and shapes in headers; only small tensors have their data read. One thread. */
#include "checkpoint/complete.h"

#include "base/error.h"
#include "checkpoint/config.h"
#include "checkpoint/conventions.h"
#include "checkpoint/matrix.h"
#include "checkpoint/mixture.h"
#include "checkpoint/router_names.h"
#include "checkpoint/rules.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* No model has this many; keeps a wild number in config.json from being counted through. */
#define LAYERS_MAX 100000u

/* What the matrices of a first look say. */
typedef struct sizes {
    uint64_t hidden_size, intermediate_size;
} sizes;

/* "layers.3.ffn.experts.7" */
#define EXPERT_TEXT 256

/* "layers.3.ffn.NAME" */
static const char *block_text(const mp_moe_layer *layer, const char *name, char text[EXPERT_TEXT])
{
    const char *block = layer->naming->block;

    snprintf(text, EXPERT_TEXT, "%.180s.%s%s%s", layer->prefix, block, block[0] ? "." : "", name);
    return text;
}

static const char *expert_text(const mp_moe_layer *layer, uint32_t expert, char text[EXPERT_TEXT])
{
    size_t n;

    block_text(layer, layer->naming->experts, text);
    n = strlen(text);
    snprintf(text + n, EXPERT_TEXT - n, ".%u", expert);
    return text;
}

/* What the form and sizes of an expert are read off beside its down. */
static mp_projection first_matrix(const mp_moe_layer *layer)
{
    return layer->ungated ? MP_UP : MP_GATE;
}

/* Storage and sizes as one expert has them; false unless its first matrix and down agree. joined:
 * the tensor of the gate has rows of up as well. */
static bool look_at(const mp_expert *expert, mp_projection first, mp_fusion fusion, bool joined,
                    const mp_config *config, mp_storage *storage, sizes *size)
{
    const mp_matrix *gate = &expert->matrix[first], *down = &expert->matrix[MP_DOWN];
    mp_storage down_storage;
    uint64_t gate_rows, down_rows, down_cols;

    if (!gate->weight || !down->weight ||
        !mp_storage_recognize(gate, fusion, config, storage, &gate_rows, &size->hidden_size) ||
        !mp_storage_recognize(down, fusion, config, &down_storage, &down_rows, &down_cols))
        return false;
    if (joined)
        gate_rows /= 2;
    size->intermediate_size = down_cols;
    return down_storage.scheme == storage->scheme && down_rows == size->hidden_size &&
           gate_rows == down_cols && down_cols > 0;
}

static bool is_joined(const mp_moe_layer *layer)
{
    return layer->storage.fusion != MP_FUSION_NONE && layer->storage.fusion != MP_FUSION_STACKED &&
           !layer->ungated;
}

/* The first expert of a layer that is whole in itself. */
static bool look_at_layer(const mp_moe_layer *layer, const mp_config *config, mp_storage *storage,
                          sizes *size)
{
    for (uint32_t e = 0; e < layer->num_experts; e++)
        if (look_at(&layer->experts[e], first_matrix(layer), layer->storage.fusion,
                    is_joined(layer), config, storage, size))
            return true;
    return false;
}

/* ------------------------------------------------------------------------
 * Why no look was possible
 */

/* "w1 is I8 [128, 64] with F8_E8M0 [128, 4] scales" */
#define MATRIX_TEXT (2 * MP_SHAPE_TEXT + 128)

static const char *matrix_text(const char *name, const mp_matrix *matrix, char text[MATRIX_TEXT])
{
    const mp_tensor *weight = matrix->weight, *scale = matrix->scale;
    char shape[MP_SHAPE_TEXT];
    size_t n;

    snprintf(text, MATRIX_TEXT, "%s is %s %s", name, mp_dtype_name(weight->dtype),
             mp_shape_text(weight->shape, weight->rank, shape));
    n = strlen(text);
    if (scale)
        snprintf(text + n, MATRIX_TEXT - n, " with %s %s scales", mp_dtype_name(scale->dtype),
                 mp_shape_text(scale->shape, scale->rank, shape));
    return text;
}

/* Both gate and down are in a known form, though maybe not the same. */
static bool is_known(const mp_expert *expert, mp_projection first, mp_fusion fusion,
                     const mp_config *config)
{
    mp_storage storage;
    uint64_t rows, cols;

    return mp_storage_recognize(&expert->matrix[first], fusion, config, &storage, &rows, &cols) &&
           mp_storage_recognize(&expert->matrix[MP_DOWN], fusion, config, &storage, &rows, &cols);
}

/* Lists the weights that an expert has none of; false if it has all. */
static bool list_missing(mp_catalog *catalog, const char *text, const char *const *names,
                         mp_projection first, const mp_expert *expert)
{
    bool missing = false;

    for (int p = (int)first; p < MP_PROJECTIONS; p++) {
        if (expert->matrix[p].weight)
            continue;
        mp_problem(&catalog->problems, "%s.%s.weight: missing", text, names[p]);
        missing = true;
    }
    return missing;
}

/* Lists that an expert with all its weights is not whole in itself. */
static void list_misfit(mp_catalog *catalog, const char *text, const char *const *names,
                        mp_projection first, const mp_expert *expert, mp_fusion fusion)
{
    char gate[MATRIX_TEXT], down[MATRIX_TEXT];

    matrix_text(names[first], &expert->matrix[first], gate);
    matrix_text(names[MP_DOWN], &expert->matrix[MP_DOWN], down);
    mp_problem(&catalog->problems, "%s: %s, %s: %s", text, gate, down,
               is_known(expert, first, fusion, &catalog->config) ? "these do not fit together"
                                                                 : "no known storage form");
}

/* Lists why look_at_layer finds nothing. Returns MP_ERR_UNSUPPORTED where all is there,
 * in no form that we know, else MP_ERR_INPUT. */
static mp_code list_unknown(mp_catalog *catalog, const mp_moe_layer *layer)
{
    const mp_expert *first = layer->experts;
    char text[EXPERT_TEXT];
    bool missing = false;

    if (layer->num_experts == 0) {
        /* Without a shared one there are only numbers that are listed as wild. */
        if (layer->has_shared)
            mp_problem(&catalog->problems, "%s: a shared expert, but no routed one", layer->prefix);
        return MP_ERR_INPUT;
    }
    for (uint32_t e = 0; e < layer->num_experts; e++)
        missing |= list_missing(catalog, expert_text(layer, e, text), layer->naming->projection,
                                first_matrix(layer), &layer->experts[e]);
    if (missing)
        return MP_ERR_INPUT;
    list_misfit(catalog, expert_text(layer, 0, text), layer->naming->projection,
                first_matrix(layer), first, layer->storage.fusion);
    return is_known(first, first_matrix(layer), layer->storage.fusion, &catalog->config)
               ? MP_ERR_INPUT
               : MP_ERR_UNSUPPORTED;
}

/* ------------------------------------------------------------------------
 * Sizes
 */

/* H of the routed experts, as config.json says it. */
static uint64_t config_hidden_size(const mp_config *config)
{
    return config->latent_size != MP_CONFIG_ABSENT ? config->latent_size : config->hidden_size;
}

/* Number of experts of a layer that have these sizes, looking at `enough` at most. */
static unsigned votes_for(const mp_moe_layer *layer, const mp_config *config, const sizes *size,
                          unsigned enough)
{
    unsigned votes = 0;

    for (uint32_t e = 0; e < layer->num_experts && votes < enough; e++) {
        mp_storage storage;
        sizes other;

        if (look_at(&layer->experts[e], first_matrix(layer), layer->storage.fusion,
                    is_joined(layer), config, &storage, &other) &&
            other.hidden_size == size->hidden_size &&
            other.intermediate_size == size->intermediate_size)
            votes++;
    }
    return votes;
}

static bool differs(uint64_t config_value, uint64_t value)
{
    return config_value != MP_CONFIG_ABSENT && config_value != value;
}

/* Where a model has no gates, neither routed experts nor the shared one have any. Elsewhere they
 * are missing. */
static void find_gates(mp_catalog *catalog)
{
    for (size_t i = 0; i < catalog->num_layers && mp_is_ungated(&catalog->config); i++) {
        mp_moe_layer *layer = &catalog->layers[i];
        bool gated = layer->fused[0].weight || layer->shared.matrix[MP_GATE].weight;

        for (uint32_t e = 0; e < layer->num_experts; e++)
            gated |= layer->experts[e].matrix[MP_GATE].weight != NULL;
        layer->ungated = !gated;
        if (!gated && i == 0)
            mp_problem(&catalog->notes,
                       "experts have no gate: they are relu(up)^2, which no target packs");
    }
}

/* No layer has an expert that is whole in itself: says why of the first layer. */
static int fail_unknown(mp_catalog *catalog, mp_error *err)
{
    mp_code code = list_unknown(catalog, &catalog->layers[0]);
    int rc = mp_catalog_check(catalog, err);

    return catalog->problems.count == 1 ? mp_fail(err, code, "%s", err->message) : rc;
}

/* H and I of the experts. Two experts that agree outvote config.json; a single odd one
 * does not. */
static int settle_sizes(mp_catalog *catalog, mp_error *err)
{
    const mp_config *config = &catalog->config;
    sizes size = {0, 0};
    bool found = false;

    for (size_t i = 0; i < catalog->num_layers && !found; i++) {
        mp_moe_layer *layer = &catalog->layers[i];
        mp_storage storage;

        found = look_at_layer(layer, config, &storage, &size);
        if (found && (differs(config_hidden_size(config), size.hidden_size) ||
                      differs(config->moe_intermediate_size, size.intermediate_size))) {
            sizes of_config = {config_hidden_size(config), config->moe_intermediate_size};

            if (votes_for(layer, config, &size, 2) < 2 &&
                votes_for(layer, config, &of_config, 1) == 1)
                size = of_config;
        }
    }
    if (!found)
        return fail_unknown(catalog, err);
    catalog->hidden_size = size.hidden_size;
    catalog->moe_intermediate_size = size.intermediate_size;
    return 0;
}

static void check_number(mp_catalog *catalog, const char *what, uint64_t config_value,
                         uint64_t value)
{
    if (differs(config_value, value))
        mp_problem(&catalog->problems, "config.json: %s is %llu, tensors say %llu", what,
                   (unsigned long long)config_value, (unsigned long long)value);
}

/* The tensors of one matrix, or of `slices` fused ones, are there and fit. */
static void check_matrix(mp_catalog *catalog, const char *text, const char *name,
                         const mp_storage *storage, const mp_matrix *matrix, uint64_t slices,
                         uint64_t rows, uint64_t cols)
{
    mp_problems *problems = &catalog->problems;

    if (!matrix->weight)
        mp_problem(problems, "%s.%s.weight: missing", text, name);
    if (!matrix->scale && storage->has_scale)
        mp_problem(problems, "%s.%s: no scale for the weight", text, name);
    if (!matrix->group_scale && storage->two_scales)
        mp_problem(problems, "%s.%s: no scale of groups for the weight", text, name);
    if (!matrix->global && storage->has_global)
        mp_problem(problems, "%s.%s: no second scale for the weight", text, name);
    mp_storage_check(storage, matrix, slices, rows, cols, problems);
}

static void check_expert(mp_catalog *catalog, const char *text, const char *const names[],
                         mp_projection first, const mp_storage *storage, const mp_expert *expert,
                         sizes size)
{
    uint64_t h = size.hidden_size, i = size.intermediate_size;
    bool any = false;

    for (int p = 0; p < MP_PROJECTIONS; p++)
        any |= expert->matrix[p].weight || expert->matrix[p].scale;
    if (!any) {
        mp_problem(&catalog->problems, "%s: missing, all of it", text);
        return;
    }
    for (int p = (int)first; p < MP_PROJECTIONS; p++)
        check_matrix(catalog, text, names[p], storage, &expert->matrix[p], 1, p == MP_DOWN ? h : i,
                     p == MP_DOWN ? i : h);
}

/* Tensors that hold all experts of the layer. */
static void check_fused(mp_catalog *catalog, const mp_moe_layer *layer)
{
    const mp_storage *storage = &layer->storage;
    const uint32_t experts = layer->num_experts;
    uint64_t h = catalog->hidden_size, i = catalog->moe_intermediate_size;
    char text[EXPERT_TEXT];

    block_text(layer, layer->naming->experts, text);
    check_matrix(catalog, text, "down_proj", storage, &layer->fused[1], experts, h, i);
    if (!is_joined(layer)) {
        if (!layer->ungated)
            check_matrix(catalog, text, "gate_proj", storage, &layer->fused[0], experts, i, h);
        check_matrix(catalog, text, "up_proj", storage, &layer->fused[2], experts, i, h);
        return;
    }
    check_matrix(catalog, text, "gate_up_proj", storage, &layer->fused[0], experts, 2 * i, h);
    /* The grids of gate and up side by side are then not the grid of the fused matrix. */
    if (storage->has_scale && storage->block_rows != 1 && storage->block_rows != UINT32_MAX &&
        i % storage->block_rows != 0)
        mp_problem(&catalog->problems,
                   "%s.gate_up_proj: gate ends inside a block: I = %llu in blocks of %u rows", text,
                   (unsigned long long)i, storage->block_rows);
}

/* A row of the router's weight for each expert, and for each identity of LongCat. */
static int check_router(mp_catalog *catalog, const mp_moe_layer *layer, mp_error *err)
{
    uint64_t zero = catalog->config.zero_experts, rows = layer->num_experts;
    const mp_tensor *weight;
    int rc = mp_block_tensor_of(catalog, layer, mp_router_weights, &weight, err);

    if (zero != MP_CONFIG_ABSENT)
        rows += zero;
    if (rc == 0 && weight && weight->rank == 2 && weight->shape[0] != rows)
        mp_problem(&catalog->problems, "%s: %llu row%s, expected %llu, one per expert",
                   weight->name, (unsigned long long)weight->shape[0], mp_plural(weight->shape[0]),
                   (unsigned long long)rows);
    return rc;
}

/* Blocks that nobody says are assumed, which is said once. */
static void note_assumed_blocks(mp_catalog *catalog, const mp_moe_layer *layer)
{
    if (layer->storage.scheme == MP_SCHEME_FP8_BLOCK && layer == catalog->layers &&
        catalog->config.block_rows == MP_CONFIG_ABSENT)
        mp_problem(&catalog->notes,
                   "config.json does not say what a scale covers: blocks of %ux%u are assumed",
                   layer->storage.block_rows, layer->storage.block_cols);
}

/* What follows the name of a matrix in that of one of its tensors. */
static const char *suffix_of(const mp_tensor *tensor, const char *projection)
{
    const char *at = tensor ? strstr(tensor->name, projection) : NULL, *next;

    while (at && (next = strstr(at + 1, projection)))
        at = next;
    return at ? at + strlen(projection) : "";
}

/* Experts come back in one form, that of the first one: the others have to be named and shaped
 * alike. Whether a scale of activations is there at all is a matter of the whole layer, too. */
static void check_alike(mp_catalog *catalog, const mp_moe_layer *layer)
{
    const mp_expert *first = layer->experts;
    const mp_tensor *scaled = NULL;

    for (uint32_t e = 0; e < layer->num_experts; e++)
        for (int p = 0; p < MP_PROJECTIONS && !scaled; p++)
            scaled = layer->experts[e].matrix[p].input_scale;
    for (uint32_t e = 0; e < layer->num_experts; e++) {
        for (int p = 0; p < MP_PROJECTIONS; p++) {
            const char *name = layer->naming->projection[p];
            const mp_matrix *a = &first->matrix[p], *b = &layer->experts[e].matrix[p];
            const mp_tensor *const pairs[][2] = {{a->weight, b->weight},
                                                 {a->scale, b->scale},
                                                 {a->group_scale, b->group_scale},
                                                 {a->global, b->global},
                                                 {a->input_scale, b->input_scale}};
            char text[EXPERT_TEXT];

            for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++)
                if (pairs[i][0] && pairs[i][1] &&
                    (pairs[i][0]->rank != pairs[i][1]->rank ||
                     strcmp(suffix_of(pairs[i][0], name), suffix_of(pairs[i][1], name)) != 0))
                    mp_problem(&catalog->problems, "%s: not named and shaped like \"%s\"",
                               pairs[i][1]->name, pairs[i][0]->name);
            if (scaled && b->weight && !b->input_scale)
                mp_problem(&catalog->problems, "%s.%s: no input scale, but there is \"%s\"",
                           expert_text(layer, e, text), name, scaled->name);
        }
    }
}

static void check_routed(mp_catalog *catalog, mp_moe_layer *layer)
{
    char text[EXPERT_TEXT];
    sizes ignored;

    if (!look_at_layer(layer, &catalog->config, &layer->storage, &ignored)) {
        list_unknown(catalog, layer);
        return;
    }
    note_assumed_blocks(catalog, layer);
    if (layer->storage.fusion != MP_FUSION_NONE)
        check_fused(catalog, layer);
    for (uint32_t e = 0; layer->storage.fusion == MP_FUSION_NONE && e < layer->num_experts; e++)
        check_expert(catalog, expert_text(layer, e, text), layer->naming->projection,
                     first_matrix(layer), &layer->storage, &layer->experts[e],
                     (sizes){catalog->hidden_size, catalog->moe_intermediate_size});
    if (layer->storage.fusion == MP_FUSION_NONE && catalog->problems.count == 0)
        check_alike(catalog, layer);
    if (!layer->mtp && differs(catalog->config.num_experts, layer->num_experts))
        mp_problem(&catalog->problems, "%s: %u expert%s, config.json says %llu", layer->prefix,
                   layer->num_experts, mp_plural(layer->num_experts),
                   (unsigned long long)catalog->config.num_experts);
}

/* How wide config.json says the shared expert is: 0 for none, MP_CONFIG_ABSENT where it does not
 * say. */
static uint64_t config_shared_width(const mp_catalog *catalog)
{
    const mp_config *config = &catalog->config;
    const mp_model_rule *rule = mp_model_rule_of(config->model_type);
    uint64_t count = config->num_shared_experts, width = config->shared_width;

    if (rule && rule->beside)
        return MP_CONFIG_ABSENT;
    if (width == MP_CONFIG_ABSENT && count == MP_CONFIG_ABSENT)
        return MP_CONFIG_ABSENT;
    if (width == MP_CONFIG_ABSENT)
        width = catalog->moe_intermediate_size;
    else if (!rule || !rule->widths || count == MP_CONFIG_ABSENT)
        return width;
    return mp_mul_u64(width, count, &width) ? width : MP_CONFIG_ABSENT - 1; /* nothing is */
}

/* Lists that the shared expert has not the width that config.json says. */
static bool check_shared_width(mp_catalog *catalog, const char *text, uint64_t width)
{
    uint64_t expected = config_shared_width(catalog), count = catalog->config.num_shared_experts;

    /* Of files that say 0, some have one. */
    if (expected == MP_CONFIG_ABSENT || expected == 0 || expected == width)
        return true;
    if (catalog->config.shared_width == MP_CONFIG_ABSENT)
        mp_problem(&catalog->problems, "%s: %llu wide, expected %llu expert%s of %llu", text,
                   (unsigned long long)width, (unsigned long long)count, mp_plural(count),
                   (unsigned long long)catalog->moe_intermediate_size);
    else
        mp_problem(&catalog->problems, "%s: %llu wide, config.json says %llu", text,
                   (unsigned long long)width, (unsigned long long)expected);
    return false;
}

/* The tensors of a shared expert of that width. */
static void check_shared_tensors(mp_catalog *catalog, const mp_moe_layer *layer, const char *text,
                                 sizes size)
{
    const char *const *names = layer->naming->shared_projection;
    uint64_t h = size.hidden_size, width = size.intermediate_size;

    if (!layer->shared_joined) {
        check_expert(catalog, text, names, first_matrix(layer), &layer->shared_storage,
                     &layer->shared, size);
        return;
    }
    check_matrix(catalog, text, "gate_up_proj", &layer->shared_storage,
                 &layer->shared.matrix[MP_GATE], 1, 2 * width, h);
    check_matrix(catalog, text, names[MP_DOWN], &layer->shared_storage,
                 &layer->shared.matrix[MP_DOWN], 1, h, width);
}

/* Whether rows of gate and up that are in one tensor, and parts of them, begin at a block. */
static bool splits(const mp_moe_layer *layer, uint64_t width)
{
    uint32_t block = layer->shared_storage.block_rows;

    return !layer->shared_joined || block == UINT32_MAX || width % block == 0;
}

/* The shared experts are one matrix set. Where it is a whole number of times as wide as a routed
 * one, and takes the same input, parts of it can stand in for routed ones. */
static void check_shared(mp_catalog *catalog, mp_moe_layer *layer)
{
    uint64_t i = catalog->moe_intermediate_size, h = catalog->hidden_size;
    uint64_t said = config_shared_width(catalog);
    mp_matrix *matrix = layer->shared.matrix;
    char text[EXPERT_TEXT];
    sizes size;

    if (!layer->has_shared) {
        if (said != MP_CONFIG_ABSENT && said > 0 && !catalog->unpacked)
            mp_problem(&catalog->problems, "%s: no shared expert, config.json says %llu",
                       layer->prefix,
                       (unsigned long long)(catalog->config.num_shared_experts == MP_CONFIG_ABSENT
                                                ? 1
                                                : catalog->config.num_shared_experts));
        return;
    }
    block_text(layer, layer->shared_name, text);
    if (layer->shared_joined && matrix[MP_GATE].weight && matrix[MP_GATE].weight->rank == 2) {
        matrix[MP_UP] = matrix[MP_GATE];
        matrix[MP_UP].first = matrix[MP_GATE].weight->shape[0] / 2;
    }
    if (!look_at(&layer->shared, first_matrix(layer), MP_FUSION_NONE, layer->shared_joined,
                 &catalog->config, &layer->shared_storage, &size)) {
        if (!list_missing(catalog, text, layer->naming->shared_projection, first_matrix(layer),
                          &layer->shared))
            list_misfit(catalog, text, layer->naming->shared_projection, first_matrix(layer),
                        &layer->shared, MP_FUSION_NONE);
        return;
    }
    if (!check_shared_width(catalog, text, size.intermediate_size))
        return;
    if (catalog->config.latent_size != MP_CONFIG_ABSENT &&
        catalog->config.hidden_size != MP_CONFIG_ABSENT)
        h = catalog->config.hidden_size;
    layer->shared_width = size.intermediate_size;
    catalog->num_shared_experts = 0;
    if (h == catalog->hidden_size && size.intermediate_size % i == 0 && splits(layer, i))
        catalog->num_shared_experts = (uint32_t)(size.intermediate_size / i);
    check_shared_tensors(catalog, layer, text, (sizes){h, size.intermediate_size});
}

/* ------------------------------------------------------------------------
 * What the data of small tensors says
 */

/* The two numbers of a weight_shape. */
static int read_shape(const mp_catalog *catalog, const mp_tensor *shape, int64_t numbers[2],
                      mp_error *err)
{
    int32_t narrow[2];

    if ((shape->dtype != MP_I32 && shape->dtype != MP_I64) ||
        shape->bytes != 2 * mp_dtype_bits(shape->dtype) / 8)
        return mp_fail(err, MP_ERR_INPUT, "%s: %s of %llu bytes, expected two I32 or I64 numbers",
                       shape->name, mp_dtype_name(shape->dtype), (unsigned long long)shape->bytes);
    if (shape->dtype == MP_I64)
        return mp_tensor_read(&catalog->checkpoint, shape, 0, shape->bytes, numbers, err);
    if (mp_tensor_read(&catalog->checkpoint, shape, 0, sizeof narrow, narrow, err) != 0)
        return err->code;
    numbers[0] = narrow[0];
    numbers[1] = narrow[1];
    return 0;
}

int mp_matrix_check_shape(const mp_catalog *catalog, const mp_matrix *matrix, uint64_t rows,
                          uint64_t cols, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    int64_t numbers[2] = {0};

    if (!matrix->shape)
        return 0;
    if (read_shape(catalog, matrix->shape, numbers, err) != 0)
        return err->code;
    if (numbers[0] >= 0 && (uint64_t)numbers[0] == rows && numbers[1] >= 0 &&
        (uint64_t)numbers[1] == cols)
        return 0;
    return mp_fail(err, MP_ERR_INPUT, "%s: says [%lld, %lld], but the weight is [%llu, %llu]",
                   matrix->shape->name, (long long)numbers[0], (long long)numbers[1],
                   (unsigned long long)rows, (unsigned long long)cols);
}

/* The shapes that a layer's first expert says; a read of each would take too long for all. */
static int check_first_shapes(mp_catalog *catalog, const mp_moe_layer *layer, mp_error *err)
{
    uint64_t h = catalog->hidden_size, i = catalog->moe_intermediate_size;

    for (int p = 0; layer->num_experts > 0 && p < MP_PROJECTIONS; p++) {
        int rc = mp_matrix_check_shape(catalog, &layer->experts[0].matrix[p], p == MP_DOWN ? h : i,
                                       p == MP_DOWN ? i : h, err);
        if (rc == MP_ERR_INPUT)
            mp_problem(&catalog->problems, "%s", err->message);
        else if (rc != 0)
            return rc;
    }
    return 0;
}

/* Zero points go with one byte a code, and with ModelSlim's int4: where all of them are zero. */
static int check_zero_points(const mp_moe_layer *layer, mp_error *err)
{
    for (uint32_t e = 0; e < layer->num_experts; e++)
        for (int p = 0; p < MP_PROJECTIONS; p++) {
            const mp_tensor *offset = layer->experts[e].matrix[p].offset;

            if (offset && layer->storage.scheme != MP_SCHEME_INT8_CHANNEL &&
                layer->storage.int4 != MP_INT4_ROWS && layer->storage.int4 != MP_INT4_BYTES)
                return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: zero points of %s cannot be read",
                               offset->name, mp_scheme_name(layer->storage.scheme));
        }
    return 0;
}

/* Whether there is any tensor of a decoder layer that is called like the first one. Tensors are
 * sorted by name. */
static bool has_tensors(const mp_catalog *catalog, uint64_t layer)
{
    const mp_checkpoint *ckpt = &catalog->checkpoint;
    const char *prefix = catalog->layers[0].prefix;
    size_t first = 0, end = ckpt->num_tensors;
    char name[EXPERT_TEXT];
    int length = snprintf(name, sizeof name, "%.*s%llu.", (int)(strrchr(prefix, '.') + 1 - prefix),
                          prefix, (unsigned long long)layer);

    if ((size_t)length >= sizeof name)
        return true; /* who knows */
    while (first < end) {
        size_t middle = first + (end - first) / 2;

        if (strcmp(ckpt->tensors[middle].name, name) < 0)
            first = middle + 1;
        else
            end = middle;
    }
    return first < ckpt->num_tensors &&
           strncmp(ckpt->tensors[first].name, name, (size_t)length) == 0;
}

/* Layers that config.json promises and nobody has, and two layers of one number. */
static void check_layers(mp_catalog *catalog)
{
    const mp_config *config = &catalog->config;
    uint64_t layers = config->num_hidden_layers, found = 0;

    for (size_t i = 1; i < catalog->num_layers; i++) {
        const mp_moe_layer *a = &catalog->layers[i - 1], *b = &catalog->layers[i];

        if (a->mtp == b->mtp && a->number == b->number)
            mp_problem(&catalog->problems, "%s: the same layer as %s", b->prefix, a->prefix);
    }
    if (layers == MP_CONFIG_ABSENT)
        return;
    if (layers > LAYERS_MAX) {
        mp_problem(&catalog->problems, "config.json: num_hidden_layers is %llu, over %u",
                   (unsigned long long)layers, LAYERS_MAX);
        return;
    }
    for (uint64_t n = 0; n < layers && !catalog->unpacked; n++) {
        bool has, moe = mp_config_is_moe_layer(config, n), said = mp_config_says_layer(config, n);

        while (found < catalog->num_layers && !catalog->layers[found].mtp &&
               catalog->layers[found].number < n)
            found++;
        has = found < catalog->num_layers && !catalog->layers[found].mtp &&
              catalog->layers[found].number == n;
        if (!has && said && moe)
            mp_problem(&catalog->problems, "layer %llu: no experts, config.json says %llu layers",
                       (unsigned long long)n, (unsigned long long)layers);
        else if (!has && !said && mp_model_rule_of(config->model_type) && !catalog->layers[0].mtp &&
                 !has_tensors(catalog, n))
            mp_problem(&catalog->problems, "layer %llu: no tensors, config.json says %llu layers",
                       (unsigned long long)n, (unsigned long long)layers);
        else if (!has && !said)
            mp_problem(&catalog->notes,
                       "layer %llu: no experts; config.json does not say which layers have some",
                       (unsigned long long)n);
        else if (has && said && !moe)
            mp_problem(&catalog->notes,
                       "layer %llu: has experts, config.json says that it is dense",
                       (unsigned long long)n);
    }
}

/* Routers of layers without experts, among those that are called like the first one. */
static void check_lone_routers(mp_catalog *catalog)
{
    const char *prefix = catalog->layers[0].prefix;
    size_t head = (size_t)(strrchr(prefix, '.') - prefix) + 1;

    for (size_t i = 0; i < catalog->checkpoint.num_tensors && !catalog->unpacked; i++) {
        const char *name = catalog->checkpoint.tensors[i].name;
        uint64_t layer;
        bool has = false;

        if (strncmp(name, prefix, head) != 0 || !mp_is_router_weight(name, &layer))
            continue;
        for (size_t l = 0; l < catalog->num_layers && !has; l++)
            has = catalog->layers[l].number == layer;
        if (!has)
            mp_problem(&catalog->problems, "%s: a router, but layer %llu has no experts", name,
                       (unsigned long long)layer);
    }
}

/* Words of 32 bits hold eight numbers of four bits; of a shape of other ones, or where config.json
 * says so, they are refused for what they are. */
static int check_words(const mp_catalog *catalog, mp_error *err)
{
    const mp_moe_layer *layer = &catalog->layers[0];
    const mp_matrix *gate = layer->num_experts > 0 ? &layer->experts[0].matrix[MP_GATE] : NULL;
    uint64_t bits = catalog->config.weight_bits;
    int64_t numbers[2] = {0};

    if (!gate || !gate->weight || gate->weight->dtype != MP_I32 || gate->weight->rank != 2)
        return 0;
    if (gate->shape) {
        if (read_shape(catalog, gate->shape, numbers, err) != 0)
            return err->code == MP_ERR_INPUT ? 0 : err->code; /* checked where all are */
        bits = numbers[1] > 0 ? gate->weight->shape[1] * 32 / (uint64_t)numbers[1] : 4;
    }
    if (bits == MP_CONFIG_ABSENT || bits == 4 || bits == 0 || bits > 16)
        return 0;
    return mp_fail(err, MP_ERR_UNSUPPORTED,
                   "%s: words of %llu-bit weights are not supported, only of 4-bit ones",
                   gate->weight->name, (unsigned long long)bits);
}

/* Bytes with a scale for each group are int4, unless config.json says how many bits they have. */
static int check_groups(const mp_catalog *catalog, mp_error *err)
{
    const mp_moe_layer *layer = &catalog->layers[0];
    const mp_matrix *gate = layer->num_experts > 0 ? &layer->experts[0].matrix[MP_GATE] : NULL;
    const mp_tensor *scale = gate ? gate->scale : NULL;
    uint64_t bits = catalog->config.weight_bits;

    if (!gate || !gate->weight || gate->weight->dtype != MP_I8 || !scale || scale->rank < 2 ||
        scale->shape[scale->rank - 1] < 2 || mp_dtype_bits(scale->dtype) == 8 ||
        mp_suffix_ends(scale->name, MP_SUFFIX_WEIGHT_SCALE_INV) || bits == 4 ||
        bits == MP_CONFIG_ABSENT)
        return 0;
    return mp_fail(
        err, MP_ERR_UNSUPPORTED,
        "%s: a scale for each group of %llu-bit weights is not supported, only of 4-bit ones",
        scale->name, (unsigned long long)bits);
}

int mp_catalog_complete(mp_catalog *catalog, mp_error *err)
{
    const mp_config *config = &catalog->config;

    if (check_words(catalog, err) != 0 || check_groups(catalog, err) != 0)
        return err->code;
    for (size_t i = 0; i < catalog->num_layers; i++)
        if (mp_layer_check_mixture(catalog, &catalog->layers[i], err) != 0)
            return err->code;
    find_gates(catalog);
    if (settle_sizes(catalog, err) != 0)
        return err->code;
    check_number(catalog,
                 config->latent_size != MP_CONFIG_ABSENT ? "hidden size of experts" : "hidden_size",
                 config_hidden_size(config), catalog->hidden_size);
    check_number(catalog, "moe_intermediate_size", config->moe_intermediate_size,
                 catalog->moe_intermediate_size);
    check_layers(catalog);
    check_lone_routers(catalog);
    for (size_t i = 0; i < catalog->num_layers; i++) {
        check_routed(catalog, &catalog->layers[i]);
        if (check_router(catalog, &catalog->layers[i], err) != 0)
            return err->code;
        check_shared(catalog, &catalog->layers[i]);
        if (check_zero_points(&catalog->layers[i], err) != 0 ||
            check_first_shapes(catalog, &catalog->layers[i], err) != 0)
            return err->code;
        if (catalog->problems.count == 0)
            catalog->layers[i].expert_bytes = mp_layer_expert_bytes(catalog, &catalog->layers[i]);
    }
    catalog->num_experts = catalog->layers[0].num_experts;
    return 0;
}
