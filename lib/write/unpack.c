/* SPDX-License-Identifier: Apache-2.0 */
/* Unpacking as a job: its terms, what it leaves beside the tensors, and when it is done.
 *
 * The pack's manifest has digests of everything in it, so its own digest says which pack was
 * unpacked: terms are that, the layers and how files are cut. The report is written last and has
 * the terms; where it is, the directory is whole, and is taken for the result of the same terms
 * only. */
#include "write/unpack.h"

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "checkpoint/shard.h"
#include "pack/manifest.h"
#include "run/journal.h"
#include "run/sidecar.h"
#include "run/terms.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define HF_QUANT_NAME "hf_quant_config.json"
#define REPORT_LIMIT  (1u << 30)

static int print_terms(const void *user, FILE *f, mp_error *err)
{
    const mp_unpack_plan *plan = user;

    (void)err;
    fprintf(f, "unpack %s\n", plan->pack.xxh3);
    mp_terms_selection(f, "layers", plan->layers_chosen, plan->pack.manifest.num_layers);
    fprintf(f, "max-shard-size %" PRIu64 "\n", mp_work_shard_size(plan->options.max_shard_size));
    return 0;
}

static size_t list_units(const void *user, uint32_t stage, uint64_t *units)
{
    const mp_unpack_plan *plan = user;
    const mp_unpack_layer *layer = &plan->source->layers[stage];
    /* The shared expert is one, however many slots hold it. */
    size_t count = (plan->pack.manifest.num_experts + (layer->shared.form ? 1 : 0)) * MP_SIDES;

    for (size_t i = 0; i < count; i++)
        units[i] = layer->first_unit + i;
    return count;
}

/* ------------------------------------------------------------------------
 * The report
 */

/* What was unpacked, so that it can be told whether it is all there. Null without memory. */
static json_t *report_json(const mp_unpack_plan *plan)
{
    const mp_work *work = &plan->work;
    json_t *layers = json_array(), *files = json_array();
    bool whole = layers && files;

    for (size_t l = 0; l < plan->source->num_layers; l++)
        /* Null values are refused by jansson: without memory `whole` is false, and nothing is
         * leaked. */
        whole &= json_array_append_new(layers, json_string(plan->source->layers[l].prefix)) == 0;
    for (size_t f = 0; f < work->num_files; f++)
        whole &=
            json_array_append_new(files, json_pack("{s:s, s:I}", "name", work->files[f].path,
                                                   "size", (json_int_t)work->files[f].bytes)) == 0;
    if (!whole) {
        json_decref(layers);
        json_decref(files);
        return NULL;
    }
    return json_pack("{s:s, s:s, s:s, s:b, s:b, s:o, s:o}", "tool_version", mp_version(),
                     "pack_xxh3", plan->pack.xxh3, "target", plan->pack.manifest.target, "lossless",
                     mp_manifest_passes(&plan->pack.manifest, false), "shared_lossless",
                     mp_manifest_passes(&plan->pack.manifest, true), "layers", layers, "files",
                     files);
}

static int report_text(const mp_unpack_plan *plan, const char *terms, char **text, mp_error *err)
{
    json_t *json = mp_terms_report(report_json(plan), terms);

    *text = json ? mp_json_text(json) : NULL;
    json_decref(json);
    return *text ? 0 : mp_fail_memory(err);
}

static int finish(const void *user, const mp_progress_state *state, const char *partial,
                  mp_error *err)
{
    const mp_unpack_plan *plan = user;
    const struct mp_unpack_source *source = plan->source;
    char *text = NULL;
    int rc = 0;

    if (source->config)
        rc =
            mp_put_text(partial, MP_CONFIG_NAME, source->config, strlen(source->config), NULL, err);
    if (rc == 0 && source->hf_quant_config)
        rc = mp_put_text(partial, HF_QUANT_NAME, source->hf_quant_config,
                         strlen(source->hf_quant_config), NULL, err);
    if (rc == 0)
        rc = mp_put_index(&plan->work, 0, plan->work.num_files, partial, MP_INDEX_NAME, NULL, err);
    if (rc == 0)
        /* Last: it makes the directory whole. */
        rc = report_text(plan, state->terms, &text, err);
    if (rc == 0)
        rc = mp_put_text(partial, MP_UNPACK_NAME, text, strlen(text), NULL, err);
    free(text);
    return rc;
}

static int check_done(const void *plan, const char *out, const char *terms, mp_error *err)
{
    char *path = mp_path_join(out, MP_UNPACK_NAME), *had = NULL;
    json_t *json = NULL;
    int rc = path ? mp_json_load(path, REPORT_LIMIT, &json, err) : mp_fail_memory(err);

    (void)plan;
    if (rc == 0)
        rc = mp_terms_reported(json, MP_UNPACK_NAME, &had, err);
    if (rc == 0)
        rc = mp_terms_check_done(out, had, terms, err);
    json_decref(json);
    free(path);
    free(had);
    return rc;
}

static bool is_whole(const char *out)
{
    char *path = mp_path_join(out, MP_UNPACK_NAME);
    bool there = path && mp_path_exists(path);

    free(path);
    return there;
}

static bool owns(const char *name)
{
    static const char *const names[] = {MP_UNPACK_NAME, MP_CONFIG_NAME, MP_INDEX_NAME,
                                        HF_QUANT_NAME};
    size_t length = mp_shard_name_length(name), end = strlen(".safetensors");
    bool ours = strncmp(name, "model-", 6) == 0 && length > end &&
                strncmp(name + length - end, ".safetensors", end) == 0;

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        ours |= strcmp(name, names[i]) == 0;
    return ours;
}

int mp_unpack_plan_run(const mp_unpack_plan *plan, const char *out, mp_run_mode mode,
                       const mp_context *context, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    const mp_job job = {
        .plan = plan,
        .work = &plan->work,
        .terms = print_terms,
        .units = list_units,
        .unit_bytes = mp_unpack_unit_bytes,
        .ahead = mp_unpack_unit_ahead,
        .run = mp_unpack_unit_run,
        .finish = finish,
        .check_done = check_done,
        .is_whole = is_whole,
        .kind = "an unpacked checkpoint",
        .owns = owns,
    };

    return mp_job_run(&job, out, mode, context, err);
}
