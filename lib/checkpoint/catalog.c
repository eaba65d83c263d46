/* SPDX-License-Identifier: Apache-2.0 */
/* The catalog: every tensor of a checkpoint sorted into layers, experts and matrices.
 *
 *     layers.3   .ffn     .experts.25   .w1          .weight
 *     prefix      block    expert        projection   role
 *
 * A tensor's place follows from its name alone (names.c). Types, shapes and config.json are checked
 * against that later (storage.c, complete.c). So a name that is not understood never ends up in the
 * wrong place: if it mentions experts in some unknown way it is a problem of the catalog, and
 * otherwise it is counted as unrelated. Problems are collected for `inspect` to list; commands that
 * need sound experts stop at the first (mp_catalog_check).
 *
 * Names can come from anyone. Expert numbers have to be below the number of tensors and layers are
 * limited, so "experts.4000000000" allocates nothing. Tensors come sorted, which keeps the search
 * for a layer short. At the end layers are sorted, decoder layers by number, then MTP blocks. A
 * catalog is filled on one thread and only read after that. */
#include <moepack/model.h>

#include "base/error.h"
#include "base/file.h"
#include "checkpoint/complete.h"
#include "checkpoint/config.h"
#include "checkpoint/families.h"
#include "checkpoint/fused.h"
#include "checkpoint/matrix.h"
#include "checkpoint/names.h"
#include "checkpoint/promises.h"
#include "checkpoint/rules.h"
#include "checkpoint/towers.h"

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
    mp_naming *naming;
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
    naming = mp_alloc(1, sizeof *naming);
    if (!prefix || !naming) {
        free(prefix);
        free(naming);
        return no_memory(err);
    }
    *naming = *parts->naming;
    layer = &layers[catalog->num_layers++];
    *layer = (mp_moe_layer){
        .prefix = prefix,
        .number = parts->layer,
        .mtp = parts->mtp,
        .naming = naming,
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
        mp_problem(&catalog->problems, "%s: expert %llu, but the checkpoint has %zu tensor%s",
                   tensor->name, (unsigned long long)expert, tensors, mp_plural(tensors));
    else
        mp_problem(&catalog->problems,
                   "%s: expert %llu, and %zu in other layers, but the checkpoint has %zu tensor%s",
                   tensor->name, (unsigned long long)expert, others, tensors, mp_plural(tensors));
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
    /* Numbers may come out of order and with gaps. An expert without tensors is noticed later. */
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

/* The first tensor of a kind gives the layer its names; whether another has the same. */
static bool take_names(mp_moe_layer *layer, const mp_expert_name *parts)
{
    mp_naming *naming = layer->naming;

    if (strcmp(naming->block, parts->naming->block) != 0)
        return false;
    if (parts->kind == MP_NAME_ROUTED) {
        if (layer->num_experts == 0)
            memcpy(naming->projection, parts->projections, sizeof naming->projection);
        return naming->projection[MP_GATE] == parts->projections[MP_GATE];
    }
    if (parts->kind == MP_NAME_FUSED)
        return true;
    if (!layer->has_shared) {
        naming->shared = layer->shared_name = parts->shared;
        memcpy(naming->shared_projection, parts->projections, sizeof naming->shared_projection);
    }
    /* A linear_gate goes with up_proj and down_proj: one expert has names from two lists. */
    if (parts->projections == mp_names_linear && naming->shared_projection[0] == mp_names_proj[0])
        naming->shared_projection[MP_GATE] = mp_names_linear[MP_GATE];
    return naming->shared == parts->shared &&
           naming->shared_projection[MP_UP] == parts->projections[MP_UP];
}

/* Where the matrix of a tensor of all experts is kept. */
static mp_matrix *fused_matrix(mp_moe_layer *layer, mp_projection projection)
{
    static const unsigned char places[MP_PROJECTIONS] = {[MP_GATE] = 0, [MP_DOWN] = 1, [MP_UP] = 2};

    return &layer->fused[places[projection]];
}

static void add_other_tensor(mp_catalog *catalog, const mp_tensor *tensor)
{
    mp_kind_count *other = &catalog->others[mp_other_kind(tensor->name)];

    other->tensors++;
    other->bytes += tensor->bytes;
}

static int add_expert_tensor(mp_catalog *catalog, const mp_tensor *tensor,
                             const mp_expert_name *parts, mp_error *err)
{
    mp_moe_layer *layer = layer_of(catalog, tensor->name, parts, err);

    if (!layer)
        return err->code;
    /* W4AFP8 has scales of activations, W4A8 corrections, under other names than weights; nobody
     * reads them. */
    if (parts->kind == MP_NAME_ROUTED &&
        (parts->role == MP_ROLE_INPUT_SCALE || parts->role == MP_ROLE_SCALE_BIAS) &&
        layer->num_experts > 0 && layer->naming->projection[0] != parts->projections[0]) {
        add_other_tensor(catalog, tensor);
        return 0;
    }
    if (!take_names(layer, parts)) {
        mp_problem(&catalog->problems, "%s: named differently from the rest of layer %s",
                   tensor->name, layer->prefix);
        return 0;
    }
    if (parts->kind == MP_NAME_SHARED) {
        layer->has_shared = true;
        layer->shared_joined |= parts->joined;
        set_role(catalog, &layer->shared.matrix[parts->projection], parts, tensor);
        return 0;
    }
    layer->bytes += tensor->bytes;
    if (parts->kind == MP_NAME_FUSED) {
        set_role(catalog, fused_matrix(layer, parts->projection), parts, tensor);
        return 0;
    }
    if (!check_number(catalog, layer, tensor, parts->expert))
        return 0;
    if (!reserve_expert(layer, parts->expert))
        return mp_fail_memory(err);
    set_role(catalog, &layer->experts[parts->expert].matrix[parts->projection], parts, tensor);
    return 0;
}

/* LongCat's identities have numbers behind the experts, and in some files weights that nobody
 * reads. */
static bool is_zero_expert(const mp_catalog *catalog, const mp_expert_name *parts)
{
    const mp_config *config = &catalog->config;

    return parts->kind == MP_NAME_ROUTED && config->zero_experts != MP_CONFIG_ABSENT &&
           config->num_experts != MP_CONFIG_ABSENT && parts->expert >= config->num_experts &&
           parts->expert - config->num_experts < config->zero_experts;
}

/* Forms that quant_method names and nothing here reads. Suffixes of tensors say it a second time,
 * where config.json does not. */
static int refuse_method(const mp_config *config, mp_error *err)
{
    static const struct {
        const char *method, *form;
    } foreign[] = {
        {"awq", "AWQ"},         {"gptq", "GPTQ"}, {"bitsandbytes", "bitsandbytes"},
        {"torchao", "torchao"}, {"hqq", "HQQ"},   {"eetq", "EETQ"},
        {"gguf", "GGUF"},       {"aqlm", "AQLM"}, {"quip", "QuIP"},
    };

    for (size_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++)
        if (strcmp(foreign[i].method, config->quant_method) == 0)
            return mp_fail(err, MP_ERR_UNSUPPORTED,
                           "config.json: quant_method \"%s\": %s is not supported",
                           config->quant_method, foreign[i].form);
    return 0;
}

/* One pass over all names, which come sorted from the checkpoint. */
static int sort_tensors(mp_catalog *catalog, mp_error *err)
{
    for (unsigned i = 0; i < MP_KINDS; i++)
        catalog->others[i].kind = mp_other_kind_names[i];
    for (size_t i = 0; i < catalog->checkpoint.num_tensors; i++) {
        const mp_tensor *tensor = &catalog->checkpoint.tensors[i];
        mp_expert_name parts;

        mp_expert_name_parse(tensor->name, &parts);
        if (parts.kind == MP_NAME_OTHER || (parts.unnamed && tensor->rank != 3) ||
            is_zero_expert(catalog, &parts)) {
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

/* Prefixes of towers differ in their first part, which is told from the rest by its dot. */
static int compare_in_towers(const void *a, const void *b)
{
    const mp_moe_layer *x = a, *y = b;
    size_t n = strcspn(x->prefix, "."), m = strcspn(y->prefix, ".");
    int order = strncmp(x->prefix, y->prefix, n < m ? n : m);

    return order ? order : n != m ? (n < m ? -1 : 1) : compare_layers(a, b);
}

/* What the experts are named like. What they compute is model_type's affair, which another tool
 * may have saved under other names than usual. */
static void detect_family(mp_catalog *catalog)
{
    const mp_moe_layer *layer = &catalog->layers[0];
    const mp_config *config = &catalog->config;
    const mp_family *family = mp_family_of_type(config->model_type);
    const char *says = config->model_type[0] ? ""
                       : config->present     ? "; no model_type in config.json"
                                             : "; there is no config.json";
    char storage[MP_STORAGE_TEXT];

    if (family && !mp_naming_same(family->naming, layer->naming)) {
        mp_problem(&catalog->notes,
                   "model_type \"%s\" usually has \"%s.experts.N.%s\", not \"%s%s%s\"",
                   config->model_type, family->naming->block, family->naming->projection[MP_GATE],
                   layer->naming->block, layer->naming->block[0] ? ".experts.N." : "experts.N.",
                   layer->naming->projection[MP_GATE]);
        family = NULL;
    }
    if (!family)
        family = mp_family_of_naming(layer->naming, layer->has_shared);
    catalog->family = family->name;
    snprintf(catalog->reason, sizeof catalog->reason, "%.80s.%s%sexperts.N.%s: %s%s", layer->prefix,
             layer->naming->block, layer->naming->block[0] ? "." : "",
             layer->naming->projection[layer->ungated ? MP_UP : MP_GATE],
             mp_storage_text(&layer->storage, storage), says);
}

char *mp_model_text(const char *model_type, const char *family, char text[MP_MODEL_TEXT])
{
    if (!model_type || !model_type[0])
        snprintf(text, MP_MODEL_TEXT, "named like %s", family);
    else if (mp_model_rule_of(model_type))
        snprintf(text, MP_MODEL_TEXT, "model_type %s", model_type);
    else
        snprintf(text, MP_MODEL_TEXT, "model_type %s, named like %s", model_type, family);
    mp_make_printable(text);
    return text;
}

/* The first name of a checkpoint without experts that speaks of any, or null. */
static const char *first_expert_name(const mp_catalog *catalog)
{
    for (size_t i = 0; i < catalog->checkpoint.num_tensors; i++)
        if (strstr(catalog->checkpoint.tensors[i].name, "expert"))
            return catalog->checkpoint.tensors[i].name;
    return NULL;
}

static int fail_without_experts(mp_catalog *catalog, mp_error *err)
{
    const mp_config *config = &catalog->config;
    const char *name = first_expert_name(catalog);

    if (config->num_experts != MP_CONFIG_ABSENT && config->num_experts > 1 && name)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "model_type \"%s\": experts are named in no known way, as \"%s\" is",
                       config->model_type, name);
    if (catalog->problems.count > 0)
        return mp_catalog_check(catalog, err);
    return mp_fail(err, MP_ERR_INPUT, "no expert weights among %zu tensor%s",
                   catalog->checkpoint.num_tensors, mp_plural(catalog->checkpoint.num_tensors));
}

static int find_experts(mp_catalog *catalog, mp_error *err)
{
    /* config.json describes a foreign form better than its tensors do. */
    if (refuse_method(&catalog->config, err) != 0 || sort_tensors(catalog, err) != 0)
        return err->code;
    if (catalog->num_layers == 0)
        return fail_without_experts(catalog, err);
    if (mp_catalog_has_towers(catalog)) {
        qsort(catalog->layers, catalog->num_layers, sizeof *catalog->layers, compare_in_towers);
        if (mp_catalog_complete_towers(catalog, err) != 0)
            return err->code;
        detect_family(catalog);
        return catalog->num_towers > 1 ? 0 : mp_catalog_choose(catalog, NULL, err);
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

/* Each step relies on the ones before: names need config.json, and completeness needs all names. */
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
    if (rc == 0)
        rc = mp_catalog_find_promises(catalog, path, err);
    if (rc != 0)
        mp_catalog_release(catalog);
    return rc;
}

void mp_catalog_release(mp_catalog *catalog)
{
    for (size_t i = 0; i < catalog->num_layers; i++) {
        free(catalog->layers[i].prefix);
        free(catalog->layers[i].naming);
        free(catalog->layers[i].experts);
    }
    free(catalog->layers);
    mp_problems_release(&catalog->problems);
    mp_problems_release(&catalog->notes);
    mp_problems_release(&catalog->promises);
    mp_config_release(&catalog->config);
    for (unsigned t = 0; t < catalog->num_towers; t++)
        mp_config_release(&catalog->towers[t].config);
    mp_checkpoint_release(&catalog->checkpoint);
    memset(catalog, 0, sizeof *catalog);
}

int mp_catalog_check(const mp_catalog *catalog, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    int rc = mp_catalog_check_sound(catalog, err);

    for (size_t i = 0; i < catalog->num_layers && rc == 0; i++)
        if (catalog->layers[i].ungated)
            rc = mp_fail(err, MP_ERR_UNSUPPORTED,
                         "%s: no gate: experts are relu(up)^2, which is not supported",
                         catalog->layers[i].prefix);
    return rc;
}

int mp_catalog_check_sound(const mp_catalog *catalog, mp_error *err)
{
    const mp_problems *problems = &catalog->problems;

    if (problems->count == 0 && catalog->num_towers > 1)
        return mp_fail(err, MP_ERR_USAGE, "%s and %s are separate models: name layers of one",
                       catalog->towers[0].name, catalog->towers[1].name);
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
