/* SPDX-License-Identifier: Apache-2.0 */
/* Completeness of the catalog: missing matrices, odd shapes, contradictions with
 * config.json. Every finding is listed, none is skipped. */
#include "checkpoint/complete.h"

#include "base/error.h"

#include <stdio.h>
#include <string.h>

/* No model has this many; keeps a wild number in config.json from being counted through. */
#define LAYERS_MAX 100000u

/* What the matrices of a first look say. */
typedef struct sizes {
    uint64_t hidden_size, intermediate_size;
} sizes;

/* "layers.3.ffn.experts.7" */
#define EXPERT_TEXT 256

static const char *expert_text(const mp_moe_layer *layer, uint32_t expert, char text[EXPERT_TEXT])
{
    snprintf(text, EXPERT_TEXT, "%.180s.%s.%s.%u", layer->prefix, layer->naming->block,
             layer->naming->experts, expert);
    return text;
}

static const char *shared_text(const mp_moe_layer *layer, char text[EXPERT_TEXT])
{
    snprintf(text, EXPERT_TEXT, "%.180s.%s.%s", layer->prefix, layer->naming->block,
             layer->shared_name);
    return text;
}

/* Storage and sizes as one expert has them; false unless its gate and down agree. */
static bool look_at(const mp_expert *expert, mp_fusion fusion, const mp_config *config,
                    mp_storage *storage, sizes *size)
{
    const mp_matrix *gate = &expert->matrix[MP_GATE], *down = &expert->matrix[MP_DOWN];
    mp_storage down_storage;
    uint64_t gate_rows, down_rows, down_cols;

    if (!gate->weight || !down->weight ||
        !mp_storage_recognize(gate, fusion, config, storage, &gate_rows, &size->hidden_size) ||
        !mp_storage_recognize(down, fusion, config, &down_storage, &down_rows, &down_cols))
        return false;
    if (fusion != MP_FUSION_NONE)
        gate_rows /= 2;
    size->intermediate_size = down_cols;
    return down_storage.scheme == storage->scheme && down_rows == size->hidden_size &&
           gate_rows == down_cols && down_cols > 0;
}

/* The first expert of a layer that is whole in itself. */
static bool look_at_layer(const mp_moe_layer *layer, const mp_config *config, mp_storage *storage,
                          sizes *size)
{
    for (uint32_t e = 0; e < layer->num_experts; e++)
        if (look_at(&layer->experts[e], layer->storage.fusion, config, storage, size))
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
static bool is_known(const mp_expert *expert, mp_fusion fusion, const mp_config *config)
{
    mp_storage storage;
    uint64_t rows, cols;

    return mp_storage_recognize(&expert->matrix[MP_GATE], fusion, config, &storage, &rows, &cols) &&
           mp_storage_recognize(&expert->matrix[MP_DOWN], fusion, config, &storage, &rows, &cols);
}

/* Lists the weights that an expert has none of; false if it has all. */
static bool list_missing(mp_catalog *catalog, const char *text, const char *const *names,
                         const mp_expert *expert)
{
    bool missing = false;

    for (int p = 0; p < MP_PROJECTIONS; p++) {
        if (expert->matrix[p].weight)
            continue;
        mp_problem(&catalog->problems, "%s.%s.weight: missing", text, names[p]);
        missing = true;
    }
    return missing;
}

/* Lists that an expert with all its weights is not whole in itself. */
static void list_misfit(mp_catalog *catalog, const char *text, const char *const *names,
                        const mp_expert *expert, mp_fusion fusion)
{
    char gate[MATRIX_TEXT], down[MATRIX_TEXT];

    matrix_text(names[MP_GATE], &expert->matrix[MP_GATE], gate);
    matrix_text(names[MP_DOWN], &expert->matrix[MP_DOWN], down);
    mp_problem(&catalog->problems, "%s: %s, %s: %s", text, gate, down,
               is_known(expert, fusion, &catalog->config) ? "these do not go together"
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
                                &layer->experts[e]);
    if (missing)
        return MP_ERR_INPUT;
    list_misfit(catalog, expert_text(layer, 0, text), layer->naming->projection, first,
                layer->storage.fusion);
    return is_known(first, layer->storage.fusion, &catalog->config) ? MP_ERR_INPUT
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

        if (look_at(&layer->experts[e], layer->storage.fusion, config, &storage, &other) &&
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
        mp_problem(problems, "%s.%s: no scale beside the weight", text, name);
    if (!matrix->global && storage->has_global)
        mp_problem(problems, "%s.%s: no second scale beside the weight", text, name);
    mp_storage_check(storage, matrix, slices, rows, cols, problems);
}

static void check_expert(mp_catalog *catalog, const char *text, const char *const names[],
                         const mp_storage *storage, const mp_expert *expert, sizes size)
{
    uint64_t h = size.hidden_size, i = size.intermediate_size;
    bool any = false;

    for (int p = 0; p < MP_PROJECTIONS; p++)
        any |= expert->matrix[p].weight || expert->matrix[p].scale;
    if (!any) {
        mp_problem(&catalog->problems, "%s: missing, all of it", text);
        return;
    }
    for (int p = 0; p < MP_PROJECTIONS; p++)
        check_matrix(catalog, text, names[p], storage, &expert->matrix[p], 1, p == MP_DOWN ? h : i,
                     p == MP_DOWN ? i : h);
}

/* Tensors that hold all experts of the layer. */
static void check_fused(mp_catalog *catalog, const mp_moe_layer *layer)
{
    const mp_storage *storage = &layer->storage;
    uint64_t h = catalog->hidden_size, i = catalog->moe_intermediate_size;
    char text[EXPERT_TEXT];

    snprintf(text, sizeof text, "%.180s.%s.%s", layer->prefix, layer->naming->block,
             layer->naming->experts);
    check_matrix(catalog, text, "gate_up_proj", storage, &layer->fused[0], layer->num_experts,
                 2 * i, h);
    check_matrix(catalog, text, "down_proj", storage, &layer->fused[1], layer->num_experts, h, i);
    if (storage->has_scale && storage->block_rows != 1 && storage->block_rows != UINT32_MAX &&
        i % storage->block_rows != 0)
        mp_problem(&catalog->problems,
                   "%s.gate_up_proj: gate ends inside a block: I = %llu in blocks of %u rows", text,
                   (unsigned long long)i, storage->block_rows);
}

static void check_routed(mp_catalog *catalog, mp_moe_layer *layer)
{
    char text[EXPERT_TEXT];
    sizes ignored;

    if (!look_at_layer(layer, &catalog->config, &layer->storage, &ignored)) {
        list_unknown(catalog, layer);
        return;
    }
    if (layer->storage.fusion != MP_FUSION_NONE)
        check_fused(catalog, layer);
    for (uint32_t e = 0; layer->storage.fusion == MP_FUSION_NONE && e < layer->num_experts; e++)
        check_expert(catalog, expert_text(layer, e, text), layer->naming->projection,
                     &layer->storage, &layer->experts[e],
                     (sizes){catalog->hidden_size, catalog->moe_intermediate_size});
    if (!layer->mtp && differs(catalog->config.num_experts, layer->num_experts))
        mp_problem(&catalog->problems, "%s: %u experts, config.json says %llu", layer->prefix,
                   layer->num_experts, (unsigned long long)catalog->config.num_experts);
}

/* The shared experts are one matrix set of width num_shared_experts * I. */
static void check_shared(mp_catalog *catalog, mp_moe_layer *layer)
{
    uint64_t i = catalog->moe_intermediate_size, h = catalog->hidden_size;
    uint64_t count = catalog->config.num_shared_experts;
    bool latent = catalog->config.latent_size != MP_CONFIG_ABSENT;
    char text[EXPERT_TEXT];
    sizes size;

    if (!layer->has_shared) {
        if (count != MP_CONFIG_ABSENT && count > 0 && !catalog->unpacked)
            mp_problem(&catalog->problems, "%s: no shared expert, config.json says %llu",
                       layer->prefix, (unsigned long long)count);
        return;
    }
    shared_text(layer, text);
    if (!look_at(&layer->shared, MP_FUSION_NONE, &catalog->config, &layer->shared_storage, &size)) {
        if (!list_missing(catalog, text, layer->naming->shared_projection, &layer->shared))
            list_misfit(catalog, text, layer->naming->shared_projection, &layer->shared,
                        MP_FUSION_NONE);
        return;
    }
    if (size.intermediate_size % i != 0) {
        mp_problem(&catalog->problems, "%s: %llu wide, expected a multiple of %llu", text,
                   (unsigned long long)size.intermediate_size, (unsigned long long)i);
        return;
    }
    if (count == MP_CONFIG_ABSENT || count == 0)
        count = size.intermediate_size / i;
    if (size.intermediate_size / i != count) {
        mp_problem(&catalog->problems, "%s: %llu wide, expected %llu experts of %llu", text,
                   (unsigned long long)size.intermediate_size, (unsigned long long)count,
                   (unsigned long long)i);
        return;
    }
    if (latent && catalog->config.hidden_size != MP_CONFIG_ABSENT)
        h = catalog->config.hidden_size;
    /* An expert on another hidden size cannot stand in for a routed one. */
    catalog->num_shared_experts = h == catalog->hidden_size ? (uint32_t)count : 0;
    check_expert(catalog, text, layer->naming->shared_projection, &layer->shared_storage,
                 &layer->shared, (sizes){h, count * i});
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

/* Zero points go with INT8 only, where all of them are zero. */
static int check_zero_points(const mp_moe_layer *layer, mp_error *err)
{
    for (uint32_t e = 0; e < layer->num_experts; e++)
        for (int p = 0; p < MP_PROJECTIONS; p++) {
            const mp_tensor *offset = layer->experts[e].matrix[p].offset;

            if (offset && layer->storage.scheme != MP_SCHEME_INT8_CHANNEL)
                return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: zero points of %s cannot be read",
                               offset->name, mp_scheme_name(layer->storage.scheme));
        }
    return 0;
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
        while (found < catalog->num_layers && !catalog->layers[found].mtp &&
               catalog->layers[found].number < n)
            found++;
        if (mp_config_is_moe_layer(config, n) &&
            (found == catalog->num_layers || catalog->layers[found].mtp ||
             catalog->layers[found].number != n))
            mp_problem(&catalog->problems, "layer %llu: no experts, config.json says %llu layers",
                       (unsigned long long)n, (unsigned long long)layers);
    }
}

int mp_catalog_complete(mp_catalog *catalog, mp_error *err)
{
    const mp_config *config = &catalog->config;

    if (settle_sizes(catalog, err) != 0)
        return err->code;
    check_number(catalog,
                 config->latent_size != MP_CONFIG_ABSENT ? "hidden size of experts" : "hidden_size",
                 config_hidden_size(config), catalog->hidden_size);
    check_number(catalog, "moe_intermediate_size", config->moe_intermediate_size,
                 catalog->moe_intermediate_size);
    check_layers(catalog);
    for (size_t i = 0; i < catalog->num_layers; i++) {
        check_routed(catalog, &catalog->layers[i]);
        check_shared(catalog, &catalog->layers[i]);
        if (check_zero_points(&catalog->layers[i], err) != 0 ||
            check_first_shapes(catalog, &catalog->layers[i], err) != 0)
            return err->code;
    }
    catalog->num_experts = catalog->layers[0].num_experts;
    return 0;
}
