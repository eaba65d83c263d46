/* SPDX-License-Identifier: Apache-2.0 */
/* The catalog: every tensor of a checkpoint sorted into layers, experts and matrices. */
#include <moepack/model.h>

#include "base/error.h"
#include "base/file.h"
#include "checkpoint/complete.h"
#include "checkpoint/families.h"
#include "checkpoint/fused.h"
#include "checkpoint/names.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* No model has this many; keeps the search for a tensor's layer short. */
#define LAYERS_MAX 10000u

static mp_moe_layer *no_memory(mp_error *err)
{
    mp_fail_memory(err);
    return NULL;
}

/* The layer with that prefix, added if it is new; null with an error. */
static mp_moe_layer *layer_of(mp_catalog *catalog, const char *name, const mp_expert_name *parts,
                              mp_error *err)
{
    mp_moe_layer *layers = catalog->layers, *layer;
    char *prefix;

    /* Tensors come sorted by name, so the layer is nearly always the last one. */
    for (size_t i = catalog->num_layers; i-- > 0;)
        if (strlen(layers[i].prefix) == parts->prefix_length &&
            memcmp(layers[i].prefix, name, parts->prefix_length) == 0)
            return &layers[i];
    if (catalog->num_layers == LAYERS_MAX) {
        mp_fail(err, MP_ERR_INPUT, "%s: in another layer than %u that have experts too", name,
                LAYERS_MAX);
        return NULL;
    }
    if ((catalog->num_layers & (catalog->num_layers - 1)) == 0) {
        size_t room = catalog->num_layers ? 2 * catalog->num_layers : 1;

        layers = realloc(layers, room * sizeof *layers);
        if (!layers)
            return no_memory(err);
        catalog->layers = layers;
    }
    prefix = strndup(name, parts->prefix_length);
    if (!prefix)
        return no_memory(err);
    layer = &layers[catalog->num_layers++];
    *layer = (mp_moe_layer){
        .prefix = prefix,
        .number = parts->layer,
        .mtp = parts->mtp,
        .naming = parts->naming,
    };
    return layer;
}

/* Whether a layer can have an expert of that number. All layers together have no more
 * experts than there are tensors, so that wild numbers do not make us allocate. */
static bool check_number(mp_catalog *catalog, const mp_moe_layer *layer, const mp_tensor *tensor,
                         uint64_t expert)
{
    size_t tensors = catalog->checkpoint.num_tensors, others = 0;

    if (expert < layer->num_experts)
        return true;
    for (size_t i = 0; i < catalog->num_layers; i++)
        if (&catalog->layers[i] != layer)
            others += catalog->layers[i].num_experts;
    if (expert < tensors - others)
        return true;
    if (others == 0 || expert >= tensors)
        mp_problem(&catalog->problems, "%s: expert %llu, but the checkpoint has %zu tensors",
                   tensor->name, (unsigned long long)expert, tensors);
    else
        mp_problem(&catalog->problems,
                   "%s: expert %llu, and %zu in other layers, but the checkpoint has %zu tensors",
                   tensor->name, (unsigned long long)expert, others, tensors);
    return false;
}

/* Room for expert number `expert` in a layer; doubles, so that adding is linear. */
static bool reserve_expert(mp_moe_layer *layer, uint64_t expert)
{
    size_t room = layer->num_experts, want = (size_t)expert + 1;
    mp_expert *experts;

    if (want <= room)
        return true;
    if (want > layer->room) {
        size_t grown = layer->room * 2 > want ? layer->room * 2 : want;

        experts = realloc(layer->experts, grown * sizeof *experts);
        if (!experts)
            return false;
        layer->experts = experts;
        layer->room = grown;
    }
    memset(layer->experts + room, 0, (want - room) * sizeof *layer->experts);
    layer->num_experts = (uint32_t)want;
    return true;
}

/* Puts a tensor into its place in the matrix. */
static void set_role(mp_catalog *catalog, mp_matrix *matrix, const mp_expert_name *parts,
                     const mp_tensor *tensor)
{
    const mp_tensor **place = mp_matrix_place(matrix, parts->role);

    if (*place)
        mp_problem(&catalog->problems, "%s: a second %s beside \"%s\"", tensor->name,
                   mp_role_name(parts->role), (*place)->name);
    *place = tensor;
    matrix->global_divides |= parts->global_divides;
    catalog->expert_tensors++;
}

static int add_expert_tensor(mp_catalog *catalog, const mp_tensor *tensor,
                             const mp_expert_name *parts, mp_error *err)
{
    mp_moe_layer *layer = layer_of(catalog, tensor->name, parts, err);

    if (!layer)
        return err->code;
    if (layer->naming != parts->naming) {
        mp_problem(&catalog->problems, "%s: another naming than the rest of layer %s", tensor->name,
                   layer->prefix);
        return 0;
    }
    if (parts->kind == MP_NAME_SHARED) {
        layer->has_shared = true;
        layer->shared_name = parts->shared;
        set_role(catalog, &layer->shared.matrix[parts->projection], parts, tensor);
        return 0;
    }
    layer->bytes += tensor->bytes;
    if (parts->kind == MP_NAME_FUSED) {
        set_role(catalog, &layer->fused[parts->projection == MP_DOWN], parts, tensor);
        return 0;
    }
    if (!check_number(catalog, layer, tensor, parts->expert))
        return 0;
    if (!reserve_expert(layer, parts->expert))
        return mp_fail_memory(err);
    set_role(catalog, &layer->experts[parts->expert].matrix[parts->projection], parts, tensor);
    return 0;
}

static void add_other_tensor(mp_catalog *catalog, const mp_tensor *tensor)
{
    mp_kind_count *other = &catalog->others[mp_other_kind(tensor->name)];

    other->tensors++;
    other->bytes += tensor->bytes;
}

static int sort_tensors(mp_catalog *catalog, mp_error *err)
{
    for (unsigned i = 0; i < MP_KINDS; i++)
        catalog->others[i].kind = mp_other_kind_names[i];
    for (size_t i = 0; i < catalog->checkpoint.num_tensors; i++) {
        const mp_tensor *tensor = &catalog->checkpoint.tensors[i];
        mp_expert_name parts;

        mp_expert_name_parse(tensor->name, &parts);
        if (parts.kind == MP_NAME_OTHER) {
            add_other_tensor(catalog, tensor);
        } else if (parts.kind == MP_NAME_FOREIGN) {
            return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: %s cannot be read", tensor->name,
                           parts.foreign);
        } else if (parts.kind == MP_NAME_UNKNOWN) {
            add_other_tensor(catalog, tensor);
            mp_problem(&catalog->problems, "%s: named like an expert's tensor, in no known form",
                       tensor->name);
        } else if (add_expert_tensor(catalog, tensor, &parts, err) != 0) {
            return err->code;
        }
    }
    return 0;
}

static int compare_layers(const void *a, const void *b)
{
    const mp_moe_layer *x = a, *y = b;

    if (x->mtp != y->mtp)
        return x->mtp ? 1 : -1;
    if (x->number != y->number)
        return x->number < y->number ? -1 : 1;
    return strcmp(x->prefix, y->prefix);
}

/* Decides on the family by the experts' names; config.json may only agree. */
static void detect_family(mp_catalog *catalog)
{
    const mp_moe_layer *layer = &catalog->layers[0];
    const mp_config *config = &catalog->config;
    const mp_family *family = mp_family_of_model_type(config->model_type);
    char storage[MP_STORAGE_TEXT], says[96] = "no model_type in config.json";

    if (config->model_type[0])
        snprintf(says, sizeof says, "config.json says model_type \"%s\"", config->model_type);
    if (family && family->naming != layer->naming) {
        mp_problem(&catalog->problems,
                   "config.json: model_type \"%s\", but experts are named as in \"%s.%s\"",
                   config->model_type, layer->prefix, layer->naming->block);
        family = NULL;
    }
    if (!family)
        family = mp_family_of_naming(layer->naming, layer->has_shared);
    catalog->family = family->name;
    snprintf(catalog->reason, sizeof catalog->reason, "%.80s.%s.experts.N.%s: %s; %s",
             layer->prefix, layer->naming->block, layer->naming->projection[MP_GATE],
             mp_storage_text(&layer->storage, storage), says);
}

static int find_experts(mp_catalog *catalog, mp_error *err)
{
    if (sort_tensors(catalog, err) != 0)
        return err->code;
    if (catalog->num_layers == 0) {
        if (catalog->problems.count > 0)
            return mp_catalog_check(catalog, err);
        return mp_fail(err, MP_ERR_INPUT, "no expert weights among %zu tensors",
                       catalog->checkpoint.num_tensors);
    }
    qsort(catalog->layers, catalog->num_layers, sizeof *catalog->layers, compare_layers);
    for (size_t i = 0; i < catalog->num_layers; i++)
        if (mp_layer_unfuse(catalog, &catalog->layers[i], err) != 0)
            return err->code;
    if (mp_catalog_complete(catalog, err) != 0)
        return err->code;
    detect_family(catalog);
    return 0;
}

static int look_for_report(mp_catalog *catalog, mp_error *err)
{
    char *path = mp_path_join(catalog->checkpoint.dir, MP_UNPACK_NAME);

    if (!path)
        return mp_fail_memory(err);
    catalog->unpacked = mp_path_exists(path);
    free(path);
    return 0;
}

int mp_catalog_open(mp_catalog *catalog, const char *path, const mp_context *context, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    int rc;

    memset(catalog, 0, sizeof *catalog);
    rc = mp_checkpoint_open(&catalog->checkpoint, path, context, err);
    if (rc == 0)
        rc = mp_config_load(&catalog->config, catalog->checkpoint.dir, err);
    if (rc == 0)
        rc = look_for_report(catalog, err);
    if (rc == 0)
        rc = find_experts(catalog, err);
    if (rc != 0)
        mp_catalog_release(catalog);
    return rc;
}

void mp_catalog_release(mp_catalog *catalog)
{
    for (size_t i = 0; i < catalog->num_layers; i++) {
        free(catalog->layers[i].prefix);
        free(catalog->layers[i].experts);
    }
    free(catalog->layers);
    mp_problems_release(&catalog->problems);
    mp_config_release(&catalog->config);
    mp_checkpoint_release(&catalog->checkpoint);
    memset(catalog, 0, sizeof *catalog);
}

int mp_catalog_check(const mp_catalog *catalog, mp_error *err)
{
    const mp_problems *problems = &catalog->problems;

    if (problems->count == 0)
        return 0;
    if (problems->count == 1)
        return mp_fail(err, MP_ERR_INPUT, "%s", problems->text[0] ? problems->text[0] : "?");
    return mp_fail(err, MP_ERR_INPUT, "%s (and %llu more problems)",
                   problems->text[0] ? problems->text[0] : "?",
                   (unsigned long long)problems->count - 1);
}

void mp_catalog_shape(const mp_catalog *catalog, mp_projection projection, uint64_t *rows,
                      uint64_t *cols)
{
    bool down = projection == MP_DOWN;

    *rows = down ? catalog->hidden_size : catalog->moe_intermediate_size;
    *cols = down ? catalog->moe_intermediate_size : catalog->hidden_size;
}
