/* SPDX-License-Identifier: Apache-2.0 */
/* The files beside the tensors of a requantized checkpoint. Engines go by config.json before they
 * look at a tensor, so it has to say what experts are now and what stayed as it was; ModelSlim's
 * description of every tensor loses those that are gone; tokenizers and the like are copied.
 *
 * What the checkpoint says of itself is worked out from the tensors that will be written, not from
 * what the old config claimed:
 *
 *   experts   modules whose experts were requantized
 *   plain     modules of floats that stay: exceptions of the new quantization
 *   keeps     some weight that stays is quantized, by a config that therefore has to stay too
 *
 * The text is made when the plan is, since it may want scales that are powers of two and is part of
 * the terms; it is written last. A single file without config.json has nothing beside it that is
 * known to be its own. One thread. */
#include "write/quantize.h"

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "checkpoint/config_rewrite.h"
#include "checkpoint/form.h"
#include "run/sidecar.h"

#include <moepack/artifact.h>

#include <dirent.h>
#include <errno.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define HF_CONFIG    "hf_quant_config.json"
#define DESCRIPTION  "quant_model_description*.json"
#define CONFIG_LIMIT (16u << 20)
#define COUNT(a)     (sizeof(a) / sizeof((a)[0]))

/* ------------------------------------------------------------------------
 * What stays
 */

/* A growing list of owned names. */
typedef struct names {
    char **list;
    size_t count, room;
} names;

static void release_names(names *n)
{
    for (size_t i = 0; i < n->count; i++)
        free(n->list[i]);
    free(n->list);
}

/* Adds a name, which is taken over; null stands for no memory. */
static int add_name(names *n, char *name, mp_error *err)
{
    if (name && n->count == n->room) {
        size_t room = n->room ? 2 * n->room : 64;
        char **list = realloc(n->list, room * sizeof *list);

        if (list) {
            n->list = list;
            n->room = room;
        }
    }
    /* The list could not grow. */
    if (!name || n->count == n->room) {
        free(name);
        return mp_fail_memory(err);
    }
    n->list[n->count++] = name;
    return 0;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);

    return n >= m && strcmp(text + n - m, end) == 0;
}

/* Weights that a quantization_config speaks of, as far as a type can tell. */
static bool is_quantized(const mp_out_tensor *t)
{
    if (t->dtype == MP_I32 || t->dtype == MP_U32)
        return ends_with(t->name, mp_suffixes[MP_SUFFIX_WEIGHT_PACKED].text) ||
               ends_with(t->name, ".qweight");
    return t->dims >= 2 && mp_dtype_bits(t->dtype) <= 8 && t->dtype != MP_BOOL;
}

static bool is_plain(const mp_out_tensor *t)
{
    return t->dims >= 2 && (t->dtype == MP_BF16 || t->dtype == MP_F16 || t->dtype == MP_F32) &&
           ends_with(t->name, mp_suffixes[MP_SUFFIX_WEIGHT].text);
}

static char *experts_of(const mp_moe_layer *layer)
{
    return mp_format("%s.%s%s%s", layer->prefix, layer->naming->block,
                     layer->naming->block[0] ? "." : "", layer->naming->experts);
}

/* Whether a tensor is of the routed experts of a layer, which are named as one. */
static bool is_expert(const mp_moe_layer *layer, const char *name)
{
    /* A tensor is in the stage of a layer because its name begins with "PREFIX.". */
    const char *rest = name + strlen(layer->prefix) + 1;
    size_t n = strlen(layer->naming->block), experts = strlen(layer->naming->experts);

    if (strncmp(rest, layer->naming->block, n) != 0 || (n > 0 && rest[n] != '.'))
        return false;
    rest += n > 0 ? n + 1 : 0;
    return strncmp(rest, layer->naming->experts, experts) == 0 && rest[experts] == '.';
}

static int list_module(const mp_quantize_plan *plan, const mp_out_tensor *out, names *plain,
                       mp_error *err)
{
    const mp_moe_layer *layer = plan->layers[out->stage].source;

    if (!is_plain(out) || (layer && is_expert(layer, out->name)))
        return 0;
    return add_name(plain, strndup(out->name, mp_weight_module(out->name)), err);
}

/* Modules of floats that stay, and requantized experts. */
static int list_modules(mp_quantize_plan *plan, names *plain, names *experts, mp_error *err)
{
    for (size_t i = 0; i < plan->num_layers; i++) {
        const mp_quantize_layer *layer = &plan->layers[i];
        bool stays = layer->source && !layer->routed && !layer->source->storage.has_scale;

        if ((layer->routed || stays) &&
            add_name(layer->routed ? experts : plain, experts_of(layer->source), err) != 0)
            return err->code;
    }
    for (size_t i = 0; i < plan->num_pieces; i++) {
        const mp_out_tensor *out = &plan->work.outputs[plan->pieces[i].output];

        plan->quantized_rest |= is_quantized(out);
        /* A large tensor has several pieces: list it once. */
        if (plan->pieces[i].offset == 0 && list_module(plan, out, plain, err) != 0)
            return err->code;
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * config.json
 */

/* Whether every matrix has one: static activations are declared for all of them or for none. */
static bool has_input_scales(const mp_quantize_plan *plan)
{
    bool any = false;

    for (size_t i = 0; i < plan->num_layers; i++) {
        const mp_moe_layer *layer = plan->layers[i].source;

        for (uint32_t e = 0; plan->layers[i].routed && e < layer->num_experts; e++)
            for (int p = 0; p < MP_PROJECTIONS; p++) {
                if (!layer->experts[e].matrix[p].weight)
                    continue;
                any = true;
                if (!layer->experts[e].matrix[p].input_scale)
                    return false;
            }
    }
    return any && !(plan->drop & MP_ROLE_BIT(MP_ROLE_INPUT_SCALE));
}

/* Static scales of activations come from calibration, which this is not. */
static void warn_input_scales(mp_quantize_plan *plan, const mp_config_change *change)
{
    if (change->to->method == MP_METHOD_MODELOPT && !change->input_scales)
        mp_problem(&plan->warnings, "experts have no input_scale: engines that quantize "
                                    "activations to nvfp4 need one");
}

/* Whether scales of fp8_block are written as F8_E8M0. */
static bool writes_powers(const mp_quantize_plan *plan)
{
    bool powers = false;

    for (size_t i = 0; i < plan->num_layers; i++) {
        const mp_form_tensor *scale =
            plan->layers[i].routed ? mp_form_find(&plan->layers[i].form, MP_GATE, MP_ROLE_SCALE)
                                   : NULL;

        powers |= scale && scale->dtype == MP_F8_E8M0;
    }
    return powers;
}

static int rewrite_config(mp_quantize_plan *plan, const char *text, mp_config_change *change,
                          mp_error *err)
{
    if (change->to->scheme == MP_SCHEME_FP8_BLOCK) {
        plan->options.quant.ue8m0 = mp_config_says_ue8m0(text);
        change->ue8m0 = plan->options.quant.ue8m0 || writes_powers(plan);
    }
    if (mp_config_requantized(text, change, &plan->config, &plan->warnings, err) != 0)
        return err->code;
    warn_input_scales(plan, change);
    return mp_hf_quant_config(change, &plan->hf_config, err);
}

int mp_quantize_config(mp_quantize_plan *plan, mp_error *err)
{
    const mp_quantize_options *options = &plan->options;
    mp_config_change change = {.to = mp_convention_named(options->style, options->scheme,
                                                         plan->catalog->layers[0].naming, err)};
    names plain = {0}, experts = {0};
    char *path = NULL, *text = NULL;
    int rc;

    if (!plan->catalog->config.present)
        return 0;
    if (!change.to)
        return MP_ERR_UNSUPPORTED;
    rc = list_modules(plan, &plain, &experts, err);
    if (rc == 0) {
        path = mp_path_join(plan->catalog->checkpoint.dir, MP_CONFIG_NAME);
        rc = path ? mp_read_file(path, CONFIG_LIMIT, &text, NULL, err) : mp_fail_memory(err);
    }
    change.keeps = plan->quantized_rest;
    change.input_scales = has_input_scales(plan);
    change.experts = (const char *const *)experts.list;
    change.num_experts = experts.count;
    change.plain = (const char *const *)plain.list;
    change.num_plain = plain.count;
    if (rc == 0)
        rc = rewrite_config(plan, text, &change, err);
    free(path);
    free(text);
    release_names(&plain);
    release_names(&experts);
    return rc;
}

/* ------------------------------------------------------------------------
 * Files
 */

bool mp_quantize_is_side_file(const char *name)
{
    static const char *const patterns[] = {"tokenizer*", "*.json",  "*.jinja",
                                           "*.txt",      "*.model", "*.py"};

    /* The old index: a new one is written. */
    if (ends_with(name, ".safetensors.index.json"))
        return false;
    for (size_t i = 0; i < COUNT(patterns); i++)
        if (fnmatch(patterns[i], name, FNM_PERIOD) == 0)
            return true;
    return false;
}

/* What of a description is still so: entries of tensors that are written, and those that are of no
 * tensor. */
static json_t *described(const mp_quantize_plan *plan, json_t *old)
{
    json_t *kept = json_object(), *value;
    const mp_checkpoint *ckpt = &plan->catalog->checkpoint;
    const char *key;
    bool *stays = mp_alloc_zeroed(ckpt->num_tensors, sizeof *stays);
    bool ok = kept && stays;

    for (size_t i = 0; ok && i < plan->num_pieces; i++)
        stays[plan->pieces[i].from - ckpt->tensors] = true;
    json_object_foreach(old, key, value)
    {
        const mp_tensor *tensor = mp_checkpoint_find(ckpt, key);

        if (ok && (!tensor || stays[tensor - ckpt->tensors]))
            ok = json_object_set(kept, key, value) == 0;
    }
    free(stays);
    if (!ok) {
        json_decref(kept);
        kept = NULL;
    }
    return kept;
}

/* ModelSlim's description of every tensor, of those that stay. */
static int put_description(const mp_quantize_plan *plan, const char *from, const char *dir,
                           const char *name, mp_error *err)
{
    json_t *old, *kept = NULL;
    char *text = NULL;
    int rc = mp_json_load(from, CONFIG_LIMIT, &old, err);

    if (rc == 0) {
        kept = described(plan, old);
        text = kept ? mp_json_text(kept) : NULL;
        rc = text ? mp_put_text(dir, name, text, strlen(text), NULL, err) : mp_fail_memory(err);
    }
    json_decref(old);
    json_decref(kept);
    free(text);
    return rc;
}

/* A file of the source, unless its place is taken or what it says is no longer so. */
static int put_side_file(const mp_quantize_plan *plan, const char *name, const char *dir,
                         mp_error *err)
{
    bool description = fnmatch(DESCRIPTION, name, 0) == 0;
    char *from, *to;
    struct stat st;
    int rc;

    if (strcmp(name, MP_CONFIG_NAME) == 0 || strcmp(name, MP_QUANTIZE_REPORT) == 0 ||
        ((description || strcmp(name, HF_CONFIG) == 0) && !plan->quantized_rest))
        return 0;
    from = mp_path_join(plan->catalog->checkpoint.dir, name);
    to = mp_path_join(dir, name);
    rc = from && to ? 0 : mp_fail_memory(err);
    if (rc == 0 && stat(from, &st) == 0 && S_ISREG(st.st_mode))
        rc =
            description ? put_description(plan, from, dir, name, err) : mp_file_copy(from, to, err);
    free(from);
    free(to);
    return rc;
}

static int put_side_files(const mp_quantize_plan *plan, const char *dir, mp_error *err)
{
    const char *source = plan->catalog->checkpoint.dir;
    DIR *stream = opendir(source);
    int rc = 0;

    if (!stream)
        return mp_fail_errno(err, errno, "cannot list \"%s\"", source);
    for (const struct dirent *entry; rc == 0 && (entry = readdir(stream));)
        if (mp_quantize_is_side_file(entry->d_name))
            rc = put_side_file(plan, entry->d_name, dir, err);
    closedir(stream);
    return rc;
}

int mp_quantize_put_files(const mp_quantize_plan *plan, const char *dir, mp_error *err)
{
    int rc = 0;

    if (!plan->config) /* of a single file, what lies beside it may be anything */
        return 0;
    rc = put_side_files(plan, dir, err);
    if (rc == 0)
        rc = mp_put_text(dir, MP_CONFIG_NAME, plan->config, strlen(plan->config), NULL, err);
    if (rc == 0 && plan->hf_config)
        rc = mp_put_text(dir, HF_CONFIG, plan->hf_config, strlen(plan->hf_config), NULL, err);
    return rc;
}
