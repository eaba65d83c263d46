/* SPDX-License-Identifier: Apache-2.0 */
/* moepack-quantize.json: how a checkpoint was requantized, from what, and what that cost. It is
 * written last and makes the directory whole: is_whole asks for it, and resuming compares its
 * terms.
 *
 * Its rows are sums over the experts of a layer for each projection, added in the order of experts
 * so that they do not depend on threads. Names of projections are the family's own; the public
 * struct points into the table below, so a report that is read has no other ones.
 *
 * JSON has no infinity: an SQNR without bound is null, and read as infinity again. */
#include "write/quantize.h"

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "numeric/quantize.h"
#include "run/sidecar.h"
#include "run/terms.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define REPORT_LIMIT (64u << 20)
#define COUNT(a)     (sizeof(a) / sizeof((a)[0]))

/* Names of projections, of routed and of shared experts. */
static const char *const projections[] = {
    "w1",        "w3",        "w2",        "gate_proj",        "up_proj",        "down_proj",
    "shared w1", "shared w3", "shared w2", "shared gate_proj", "shared up_proj", "shared down_proj",
};

/* The entry of the table for a projection's name; null for another one. */
static const char *projection_name(const char *name, bool shared)
{
    for (size_t i = shared ? COUNT(projections) / 2 : 0; i < COUNT(projections); i++)
        if (strcmp(projections[i] + (shared ? strlen("shared ") : 0), name) == 0)
            return projections[i];
    return NULL;
}

/* ------------------------------------------------------------------------
 * Writing
 */

/* Null stands for an SQNR without bound, or of zeros only. */
static json_t *real_or_null(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *error_json(const mp_moe_layer *layer, const char *projection,
                          const mp_quant_stats *s)
{
    double rms = s->signal_sq > 0 ? sqrt(s->error_sq / s->signal_sq) : 0;

    return json_pack("{s:s, s:s, s:f, s:o, s:I, s:I, s:I, s:I}", "layer", layer->prefix,
                     "projection", projection, "relative_rms", rms, "sqnr_db",
                     real_or_null(10 * log10(s->signal_sq / s->error_sq)), "saturated",
                     (json_int_t)s->saturated, "flushed", (json_int_t)s->flushed, "elements",
                     (json_int_t)s->elements, "requantized_blocks",
                     (json_int_t)s->requantized_blocks);
}

/* Adds the rows of a layer's routed experts, or of its shared one: units first .. last-1. */
static bool append_errors(json_t *list, const mp_quantize_layer *layer, bool shared,
                          const mp_quant_stats *stats, uint64_t first, uint64_t last)
{
    const mp_naming *naming = layer->source->naming;
    const char *const *names = shared ? naming->shared_projection : naming->projection;

    for (int p = layer->source->ungated ? MP_UP : MP_GATE; p < MP_PROJECTIONS; p++) {
        mp_quant_stats sum = {0};

        /* Units are numbered by experts, three each. */
        for (uint64_t u = first + (uint64_t)p; u < last; u += MP_PROJECTIONS)
            mp_quant_stats_add(&sum, &stats[layer->first_unit + u]);
        if (json_array_append_new(
                list, error_json(layer->source, projection_name(names[p], shared), &sum)) != 0)
            return false;
    }
    return true;
}

/* Null without memory. */
static json_t *errors_json(const mp_quantize_plan *plan, const mp_quant_stats *stats)
{
    json_t *list = json_array();
    bool ok = list != NULL;

    for (size_t i = 0; stats && ok && i < plan->num_layers; i++) {
        const mp_quantize_layer *layer = &plan->layers[i];
        uint64_t routed = layer->expert_units - (layer->shared ? MP_PROJECTIONS : 0);

        if (layer->routed && !layer->lossless)
            ok = append_errors(list, layer, false, stats, 0, routed);
        if (ok && layer->shared && !layer->shared_lossless)
            ok = append_errors(list, layer, true, stats, routed, layer->expert_units);
    }
    if (!ok) {
        json_decref(list);
        list = NULL;
    }
    return list;
}

/* Whether no weight changed. */
static bool is_lossless(const mp_quantize_plan *plan, const mp_quant_stats *stats)
{
    bool lossless = true;

    for (size_t i = 0; stats && i < plan->num_layers; i++) {
        const mp_quantize_layer *layer = &plan->layers[i];

        for (uint64_t u = 0; u < layer->expert_units; u++) {
            mp_quantize_unit unit = mp_quantize_unit_of(plan, layer, u);

            /* Lossless by plan, or by a conversion that counts what it had to change and counted
             * nothing. */
            lossless &=
                unit.lossless || (stats[layer->first_unit + u].requantized_blocks == 0 &&
                                  mp_requantize_counts(unit.storage->scheme, plan->options.scheme));
        }
    }
    return lossless;
}

static json_t *source_json(const mp_checkpoint *ckpt)
{
    json_t *list = json_array();

    for (size_t i = 0; list && i < ckpt->num_shards; i++) {
        const mp_shard *shard = &ckpt->shards[i];
        mp_hex_digest hex;

        mp_shard_hex(shard, hex);
        if (json_array_append_new(list, json_pack("{s:s, s:I, s:s}", "name", shard->name, "size",
                                                  (json_int_t)shard->size, "header_xxh3", hex)) !=
            0) {
            json_decref(list);
            list = NULL;
        }
    }
    return list;
}

/* Prefixes of the layers whose experts were requantized. */
static json_t *layers_json(const mp_quantize_plan *plan)
{
    json_t *list = json_array();

    for (size_t i = 0; list && i < plan->num_layers; i++) {
        const mp_quantize_layer *layer = &plan->layers[i];

        if (layer->routed && json_array_append_new(list, json_string(layer->source->prefix)) != 0) {
            json_decref(list);
            list = NULL;
        }
    }
    return list;
}

int mp_quantize_put_report(const mp_quantize_plan *plan, const mp_progress_state *state,
                           const char *dir, mp_error *err)
{
    const mp_quantize_options *o = &plan->options;
    const mp_quant_stats *stats = state->stats;
    json_t *json = json_pack(
        "{s:s, s:s, s:s, s:s, s:b, s:o, s:o, s:o}", "format_version", "1", "tool_version",
        MP_VERSION, "command", o->command ? o->command : "", "scheme", mp_scheme_name(o->scheme),
        "lossless", is_lossless(plan, stats), "layers", layers_json(plan), "errors",
        errors_json(plan, stats), "source", source_json(&plan->catalog->checkpoint));
    json = mp_terms_report(json, state->terms);
    char *text = json ? mp_json_text(json) : NULL;
    int rc = text ? mp_put_text(dir, MP_QUANTIZE_REPORT, text, strlen(text), NULL, err)
                  : mp_fail_memory(err);

    json_decref(json);
    free(text);
    return rc;
}

/* ------------------------------------------------------------------------
 * Reading
 */

static int load_report(const char *dir, json_t **json, mp_error *err)
{
    char *path = mp_path_join(dir, MP_QUANTIZE_REPORT);
    int rc = path ? mp_json_load(path, REPORT_LIMIT, json, err) : mp_fail_memory(err);

    free(path);
    return rc;
}

int mp_quantize_check_report(const char *dir, const char *terms, mp_error *err)
{
    json_t *json = NULL;
    char *had = NULL;
    int rc = load_report(dir, &json, err);

    if (rc == 0)
        rc = mp_terms_reported(json, MP_QUANTIZE_REPORT, &had, err);
    if (rc == 0)
        rc = mp_terms_check_done(dir, had, terms, err);
    json_decref(json);
    free(had);
    return rc;
}

static int get_real(const json_t *row, const char *key, double missing, double *value,
                    mp_error *err)
{
    const json_t *json = json_object_get(row, key);

    *value = missing;
    if (json_is_null(json))
        return 0;
    if (!json_is_number(json))
        return mp_fail(err, MP_ERR_INPUT, MP_QUANTIZE_REPORT ": \"%s\" is not a number", key);
    *value = json_number_value(json);
    return 0;
}

/* The entry of the table that is a projection as it is written in the report. */
static int get_projection(const json_t *row, const char **projection, mp_error *err)
{
    const char *name;

    if (mp_json_get_string(row, "projection", MP_QUANTIZE_REPORT, &name, err) != 0)
        return err->code;
    for (size_t i = 0; i < COUNT(projections); i++) {
        if (strcmp(projections[i], name) == 0) {
            *projection = projections[i];
            return 0;
        }
    }
    return mp_fail(err, MP_ERR_INPUT, MP_QUANTIZE_REPORT ": unknown projection \"%s\"", name);
}

static int read_error(const json_t *row, mp_layer_error *e, mp_error *err)
{
    static const char what[] = MP_QUANTIZE_REPORT;
    const char *layer;

    if (mp_json_get_string(row, "layer", what, &layer, err) != 0 ||
        get_projection(row, &e->matrix, err) != 0 ||
        get_real(row, "relative_rms", 0, &e->relative_rms, err) != 0 ||
        get_real(row, "sqnr_db", INFINITY, &e->sqnr_db, err) != 0 ||
        mp_json_get_u64(row, "saturated", what, &e->saturated, err) != 0 ||
        mp_json_get_u64(row, "flushed", what, &e->flushed, err) != 0 ||
        mp_json_get_u64(row, "elements", what, &e->elements, err) != 0 ||
        mp_json_get_u64(row, "requantized_blocks", what, &e->requantized_blocks, err) != 0)
        return err->code;
    e->layer = strdup(layer);
    return e->layer ? 0 : mp_fail_memory(err);
}

int mp_quantize_errors(const char *dir, mp_layer_error **errors, size_t *count, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    json_t *json = NULL, *rows = NULL;
    int rc = load_report(dir, &json, err);

    *errors = NULL;
    *count = 0;
    if (rc == 0)
        rc = mp_json_get_array(json, "errors", MP_QUANTIZE_REPORT, &rows, err);
    if (rc == 0 && !(*errors = mp_alloc_zeroed(json_array_size(rows), sizeof **errors)))
        rc = mp_fail_memory(err);
    for (size_t i = 0; rc == 0 && i < json_array_size(rows); i++) {
        rc = read_error(json_array_get(rows, i), &(*errors)[i], err);
        /* This row counts though it may have failed: its layer is freed with the others. */
        *count = i + 1;
    }
    json_decref(json);
    if (rc != 0) {
        mp_quantize_errors_free(*errors, *count);
        *errors = NULL;
        *count = 0;
    }
    return rc;
}

void mp_quantize_errors_free(mp_layer_error *errors, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(errors[i].layer);
    free(errors);
}
