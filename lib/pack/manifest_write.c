/* SPDX-License-Identifier: Apache-2.0 */
/* The manifest as JSON text.
 *
 * The same pack always has the same manifest, on every machine: members are in a fixed order, reals
 * are printed so that they read back exactly, and there is no time, host or user. Members that most
 * packs do not need are left out rather than null, so packs of older versions keep their bytes.
 *
 * Jansson's functions take ownership of what they are given even if they fail, and pass a null on,
 * so a chain of calls needs a single check at its end. A list that lost an item for lack of memory
 * must not pass for complete; mp_json_append and mp_json_with see to that. The text is sealed last
 * (manifest.h). One thread. */
#include <moepack/artifact.h>

#include "base/digest.h"
#include "base/error.h"
#include "base/json.h"
#include "base/words.h"
#include "pack/manifest.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

char *mp_rank_name(uint32_t rank, char name[MP_RANK_NAME_MAX])
{
    snprintf(name, MP_RANK_NAME_MAX, "rank-%03u", rank);
    return name;
}

static json_t *number(uint64_t value)
{
    return json_integer((json_int_t)value);
}

/* A string, or null. */
static json_t *text_or_null(const char *text)
{
    return text && text[0] ? json_string(text) : json_null();
}

/* JSON has no infinity. */
static json_t *real_or_null(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

json_t *mp_json_append(json_t *array, json_t *item)
{
    if (json_array_append_new(array, item) == 0)
        return array;
    json_decref(array);
    return NULL;
}

json_t *mp_json_with(json_t *object, const char *key, json_t *value)
{
    if (json_object_set_new(object, key, value) == 0)
        return object;
    json_decref(object);
    return NULL;
}

/* The rules that were used are only listed if something was requantized by them. */
static json_t *quantization_json(const mp_manifest *m)
{
    bool ruled = !mp_manifest_passes(m, false) || !mp_manifest_passes(m, true);
    bool mixed = m->source_scheme == MP_SCHEME_COUNT;
    json_t *json =
        json_pack("{s:s, s:s, s:b, s:b, s:o, s:o}", "source",
                  mixed ? MP_MANIFEST_MIXED : mp_scheme_name(m->source_scheme), "target",
                  mp_scheme_name(m->target_scheme), "lossless", m->lossless, "shared_lossless",
                  m->shared_lossless, "scale_rule",
                  text_or_null(ruled ? mp_scale_rule_name(m->scale_rule) : NULL), "rounding",
                  text_or_null(ruled ? mp_rounding_name(m->rounding) : NULL));

    return ruled ? mp_json_with(json, "amax_floor", json_real(m->amax_floor)) : json;
}

static json_t *model_json(const mp_manifest *m)
{
    json_t *json =
        json_pack("{s:s, s:o, s:o, s:o, s:o, s:o}", "family", m->family, "hidden_size",
                  number(m->hidden_size), "moe_intermediate_size", number(m->moe_intermediate_size),
                  "num_experts", number(m->num_experts), "num_shared_experts",
                  number(m->num_shared_experts), "layers", number(m->model_layers));

    return m->model_type ? mp_json_with(json, "model_type", json_string(m->model_type)) : json;
}

static json_t *shards_json(const mp_manifest *m)
{
    json_t *list = json_array();

    for (size_t i = 0; i < m->num_shards; i++)
        list = mp_json_append(list, json_pack("{s:s, s:o, s:s}", "name", m->shards[i].name, "size",
                                              number(m->shards[i].size), "header_xxh3",
                                              m->shards[i].header_xxh3));
    return list;
}

static json_t *layers_json(const mp_manifest *m)
{
    json_t *list = json_array();

    for (size_t i = 0; i < m->num_layers; i++)
        list = mp_json_append(list, json_string(m->layers[i]));
    return list;
}

static json_t *file_json(const mp_packed_file *file)
{
    json_t *tensors = json_array();

    for (size_t i = 0; i < file->num_tensors; i++)
        tensors = mp_json_append(tensors, json_pack("{s:s, s:s}", "name", file->tensors[i].name,
                                                    "xxh3", file->tensors[i].xxh3));
    return json_pack("{s:s, s:o, s:o}", "name", file->name, "size", number(file->size), "tensors",
                     tensors);
}

static json_t *ranks_json(const mp_manifest *m)
{
    json_t *list = json_array();

    for (size_t i = 0; i < m->num_ranks; i++) {
        const mp_packed_rank *rank = &m->ranks[i];
        json_t *files = json_array();

        for (size_t f = 0; f < rank->num_files; f++)
            files = mp_json_append(files, file_json(&rank->files[f]));
        list = mp_json_append(list, json_pack("{s:o, s:s, s:o}", "rank", number(rank->rank),
                                              "index_xxh3", rank->index_xxh3, "files", files));
    }
    return list;
}

static json_t *errors_json(const mp_manifest *m)
{
    json_t *list = json_array();

    for (size_t i = 0; i < m->num_errors; i++) {
        const mp_layer_error *e = &m->errors[i];

        list = mp_json_append(
            list, json_pack("{s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o}", "layer", e->layer, "matrix",
                            e->matrix, "relative_rms", real_or_null(e->relative_rms), "sqnr_db",
                            real_or_null(e->sqnr_db), "saturated", number(e->saturated), "flushed",
                            number(e->flushed), "elements", number(e->elements),
                            "requantized_blocks", number(e->requantized_blocks)));
    }
    return list;
}

static json_t *manifest_json(const mp_manifest *m)
{
    char dropped[MP_ROLE_SET_TEXT];
    /* Of paths, so it need not be UTF-8, which JSON cannot do without. */
    json_t *command = m->command ? json_string(m->command) : NULL;
    json_t *json = json_pack(
        "{s:s, s:s, s:s, s:o, s:b, s:o, s:o, s:o, s:o, s:s, s:s, s:o, s:o, s:o, s:o}",
        "format_version", MP_FORMAT_VERSION, "tool_version", m->tool_version, "target", m->target,
        "target_version", number(m->target_version), "nz", m->nz, "quantization",
        quantization_json(m), "model", model_json(m), "ep_size", number(m->ep_size), "num_physical",
        number(m->num_physical), "shared", mp_shared_mode_name(m->shared), "placement_xxh3",
        m->placement_xxh3, "config_xxh3", text_or_null(m->config_xxh3), "source", shards_json(m),
        "layers", layers_json(m), "ranks", ranks_json(m));

    json = mp_manifest_with_forms(json, m);
    if (m->num_errors > 0)
        json = mp_json_with(json, "errors", errors_json(m));
    if (m->alphas != MP_ALPHAS_SGL)
        json = mp_json_with(json, "alphas", json_string(mp_alphas_name(m->alphas)));
    if (m->dropped)
        json = mp_json_with(json, "dropped", json_string(mp_role_set_text(m->dropped, dropped)));
    if (command)
        json = mp_json_with(json, "command", command);
    return json;
}

int mp_manifest_text(const mp_manifest *manifest, char **text, mp_error *err)
{
    json_t *json = manifest_json(manifest);
    char *body = json ? mp_json_text(json) : NULL;
    char hex[MP_DIGEST_TEXT];
    mp_digest digest;
    size_t length;

    *text = NULL;
    json_decref(json);
    if (!body)
        return mp_fail_memory(err);
    length = strlen(body);
    mp_digest_of(body, length, &digest);
    *text = mp_format("%.*s" MP_SEAL_BEFORE "%s" MP_SEAL_AFTER, (int)(length - strlen(MP_SEAL_CUT)),
                      body, mp_digest_text(&digest, hex));
    free(body);
    return *text ? 0 : mp_fail_memory(err);
}
