/* SPDX-License-Identifier: Apache-2.0 */
/* The end of a run: small files, the manifest last, and the rename. */
#include "pack/run.h"

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CONFIG_LIMIT (16u << 20)

void mp_hex_digest_of(const void *data, size_t n, mp_hex_digest hex)
{
    mp_digest digest;

    mp_digest_of(data, n, &digest);
    mp_digest_text(&digest, hex);
}

/* Writes text to a file in the partial directory, and digests it. */
static int write_text(const mp_run *run, const char *name, const char *text, size_t length,
                      mp_hex_digest hex, mp_error *err)
{
    char *path = mp_path_join(run->partial, name);
    int rc = path ? mp_write_file(path, text, length, err) : mp_fail_memory(err);

    if (rc == 0 && hex)
        mp_hex_digest_of(text, length, hex);
    free(path);
    return rc;
}

static int write_placement(const mp_run *run, mp_manifest *m, mp_error *err)
{
    char *text;
    int rc = mp_placement_write(&run->plan->placement, MP_PLACEMENT_SGLANG, run->plan->options.ep,
                                &text, err);

    if (rc == 0) {
        rc = write_text(run, MP_PLACEMENT_NAME, text, strlen(text), m->placement_xxh3, err);
        free(text);
    }
    return rc;
}

static int copy_config(const mp_run *run, mp_manifest *m, mp_error *err)
{
    char *path, *text;
    uint64_t length;
    int rc;

    if (!run->plan->catalog->config.present)
        return 0;
    path = mp_path_join(run->plan->catalog->checkpoint.dir, MP_CONFIG_NAME);
    rc = path ? mp_read_text(path, CONFIG_LIMIT, &text, &length, err) : mp_fail_memory(err);
    free(path);
    if (rc == 0) {
        rc = write_text(run, MP_CONFIG_NAME, text, length, m->config_xxh3, err);
        free(text);
    }
    return rc;
}

/* ------------------------------------------------------------------------
 * Indexes
 */

/* Index of the files first .. first+count-1, all of one rank; null without memory. */
static json_t *index_json(const mp_plan *plan, size_t first, size_t count)
{
    json_t *map = json_object();
    uint64_t total = 0;
    bool whole = true;

    for (size_t f = first; f < first + count; f++) {
        const mp_out_file *file = &plan->files[f];

        for (uint32_t t = 0; t < file->num_tensors; t++) {
            const mp_out_tensor *out = &plan->outputs[file->first_tensor + t];

            whole &=
                json_object_set_new(map, out->name, json_string(mp_path_base(file->path))) == 0;
            total += out->bytes;
        }
    }
    if (!whole) {
        json_decref(map);
        return NULL;
    }
    return json_pack("{s:{s:o}, s:o}", "metadata", "total_size", json_integer((json_int_t)total),
                     "weight_map", map);
}

static int write_index(const mp_run *run, size_t first, size_t count, mp_packed_rank *rank,
                       mp_error *err)
{
    json_t *json = index_json(run->plan, first, count);
    char *text = json ? mp_json_text(json) : NULL;
    char dir[MP_RANK_NAME_MAX];
    char *name = mp_format("%s/%s", mp_rank_name(rank->rank, dir), MP_INDEX_NAME);
    int rc = text && name ? write_text(run, name, text, strlen(text), rank->index_xxh3, err)
                          : mp_fail_memory(err);

    json_decref(json);
    free(text);
    free(name);
    return rc;
}

/* ------------------------------------------------------------------------
 * The manifest
 */

static int describe_file(const mp_run *run, const mp_out_file *file, mp_packed_file *packed,
                         mp_error *err)
{
    packed->name = strdup(mp_path_base(file->path));
    packed->size = file->bytes;
    packed->tensors = mp_alloc_zeroed(file->num_tensors, sizeof *packed->tensors);
    if (!packed->name || !packed->tensors)
        return mp_fail_memory(err);
    packed->num_tensors = file->num_tensors;
    for (uint32_t t = 0; t < file->num_tensors; t++) {
        packed->tensors[t].name = strdup(run->plan->outputs[file->first_tensor + t].name);
        if (!packed->tensors[t].name)
            return mp_fail_memory(err);
        strcpy(packed->tensors[t].xxh3, run->state.digest[file->first_tensor + t]);
    }
    return 0;
}

/* Ranks with their files; writes the index of each, and syncs its directory. */
static int describe_ranks(const mp_run *run, mp_manifest *m, mp_error *err)
{
    const mp_plan *plan = run->plan;

    m->ranks = mp_alloc_zeroed(plan->options.ep, sizeof *m->ranks);
    if (!m->ranks)
        return mp_fail_memory(err);
    for (size_t first = 0, count; first < plan->num_files; first += count) {
        mp_packed_rank *rank = &m->ranks[m->num_ranks++];
        char name[MP_RANK_NAME_MAX], *path;
        int rc;

        rank->rank = plan->files[first].rank;
        for (count = 1;
             first + count < plan->num_files && plan->files[first + count].rank == rank->rank;)
            count++;
        rank->files = mp_alloc_zeroed(count, sizeof *rank->files);
        if (!rank->files)
            return mp_fail_memory(err);
        rank->num_files = count;
        for (size_t f = 0; f < count; f++)
            if (describe_file(run, &plan->files[first + f], &rank->files[f], err) != 0)
                return err->code;
        if (write_index(run, first, count, rank, err) != 0)
            return err->code;
        path = mp_path_join(run->partial, mp_rank_name(rank->rank, name));
        rc = path ? mp_dir_sync(path, err) : mp_fail_memory(err);
        free(path);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int describe_source(const mp_checkpoint *ckpt, mp_manifest *m, mp_error *err)
{
    m->shards = mp_alloc_zeroed(ckpt->num_shards, sizeof *m->shards);
    if (!m->shards)
        return mp_fail_memory(err);
    m->num_shards = ckpt->num_shards;
    for (size_t i = 0; i < ckpt->num_shards; i++) {
        mp_digest digest;

        memcpy(digest.bytes, ckpt->shards[i].header_xxh3, sizeof digest.bytes);
        mp_digest_text(&digest, m->shards[i].header_xxh3);
        m->shards[i].size = ckpt->shards[i].size;
        m->shards[i].name = strdup(ckpt->shards[i].name);
        if (!m->shards[i].name)
            return mp_fail_memory(err);
    }
    return 0;
}

static int describe_layers(const mp_plan *plan, mp_manifest *m, mp_error *err)
{
    m->layers = mp_alloc_zeroed(plan->num_layers, sizeof *m->layers);
    if (!m->layers)
        return mp_fail_memory(err);
    m->num_layers = plan->num_layers;
    for (size_t i = 0; i < plan->num_layers; i++)
        if (!(m->layers[i] = strdup(plan->layers[i].source->prefix)))
            return mp_fail_memory(err);
    return 0;
}

/* Error of one side of a layer: its units' sums in the order of the experts. */
static int describe_error(const mp_run *run, const mp_plan_layer *layer, mp_side side,
                          mp_layer_error *e, mp_error *err)
{
    mp_quant_stats sum = {0};

    for (uint32_t expert = 0; expert < layer->source->num_experts; expert++)
        mp_quant_stats_add(&sum, &run->state.stats[layer->first_unit + expert * MP_SIDES + side]);
    *e = (mp_layer_error){
        .layer = strdup(layer->source->prefix),
        .matrix = side == MP_L1 ? "w13" : "w2",
        .relative_rms = sum.signal_sq > 0 ? sqrt(sum.error_sq / sum.signal_sq) : 0,
        .sqnr_db = 10 * log10(sum.signal_sq / sum.error_sq),
        .saturated = sum.saturated,
        .flushed = sum.flushed,
        .elements = sum.elements,
    };
    return e->layer ? 0 : mp_fail_memory(err);
}

static int describe_errors(const mp_run *run, mp_manifest *m, mp_error *err)
{
    const mp_plan *plan = run->plan;

    if (!run->state.stats)
        return 0;
    m->errors = mp_alloc_zeroed(plan->num_layers * MP_SIDES, sizeof *m->errors);
    if (!m->errors)
        return mp_fail_memory(err);
    for (size_t i = 0; i < plan->num_layers; i++) {
        if (plan->layers[i].lossless)
            continue;
        for (int side = 0; side < MP_SIDES; side++) {
            mp_layer_error *e = &m->errors[m->num_errors++];

            if (describe_error(run, &plan->layers[i], (mp_side)side, e, err) != 0)
                return err->code;
        }
    }
    return 0;
}

static int describe_quantization(const mp_run *run, mp_manifest *m, mp_error *err)
{
    const mp_plan *plan = run->plan;
    const mp_quant_options *quant = &plan->options.quant;
    mp_scheme source = plan->layers[0].source->storage.scheme;
    bool mixed = false;

    m->lossless = true;
    for (size_t i = 0; i < plan->num_layers; i++) {
        m->lossless &= plan->layers[i].lossless;
        mixed |= plan->layers[i].source->storage.scheme != source;
    }
    m->source_scheme = strdup(mixed ? "mixed" : mp_scheme_name(source));
    m->target_scheme = strdup(mp_scheme_name(plan->options.target->scheme));
    if (!m->lossless) {
        m->rounding = strdup(quant->rounding == MP_ROUND_OCP ? "ocp" : "deepgemm");
        m->scale_rule = strdup(quant->scale_rule == MP_SCALE_MSE ? "mse" : "ceil");
        m->amax_floor = (double)quant->amax_floor;
    }
    if (!m->source_scheme || !m->target_scheme ||
        (!m->lossless && (!m->rounding || !m->scale_rule)))
        return mp_fail_memory(err);
    return 0;
}

static int describe_run(const mp_run *run, mp_manifest *m, mp_error *err)
{
    const mp_plan *plan = run->plan;
    const mp_catalog *catalog = plan->catalog;

    m->tool_version = strdup(mp_version());
    m->target = strdup(plan->options.target->name);
    m->target_version = plan->options.target->version;
    m->family = strdup(catalog->family);
    m->hidden_size = catalog->hidden_size;
    m->moe_intermediate_size = catalog->moe_intermediate_size;
    m->num_experts = plan->slots.num_logical;
    m->num_shared_experts = catalog->num_shared_experts;
    m->model_layers = catalog->num_layers;
    m->ep_size = plan->options.ep;
    m->num_physical = plan->slots.num_physical;
    m->shared = strdup(mp_shared_mode_name(plan->options.shared));
    m->command = plan->options.command ? strdup(plan->options.command) : NULL;
    m->dropped = plan->options.drop ? strdup(plan->options.drop) : NULL;
    if (!m->tool_version || !m->target || !m->family || !m->shared ||
        (plan->options.command && !m->command) || (plan->options.drop && !m->dropped))
        return mp_fail_memory(err);
    if (describe_quantization(run, m, err) != 0 || describe_source(&catalog->checkpoint, m, err) ||
        describe_layers(plan, m, err) != 0 || describe_errors(run, m, err) != 0)
        return err->code;
    return 0;
}

static int write_manifest(const mp_run *run, mp_error *err)
{
    mp_manifest m = {0};
    char *text = NULL;
    int rc = describe_run(run, &m, err);

    if (rc == 0)
        rc = write_placement(run, &m, err);
    if (rc == 0)
        rc = copy_config(run, &m, err);
    if (rc == 0)
        rc = describe_ranks(run, &m, err);
    if (rc == 0)
        rc = mp_manifest_text(&m, &text, err);
    if (rc == 0)
        rc = write_text(run, MP_MANIFEST_NAME, text, strlen(text), NULL, err);
    free(text);
    mp_manifest_release(&m);
    return rc;
}

/* ------------------------------------------------------------------------
 * The rename
 */

static int sync_parent(const char *path, mp_error *err)
{
    char *parent = strdup(path), *slash;
    int rc;

    if (!parent)
        return mp_fail_memory(err);
    slash = strrchr(parent, '/');
    if (slash)
        slash[slash == parent] = '\0';
    rc = mp_dir_sync(slash ? parent : ".", err);
    free(parent);
    return rc;
}

/* Puts the partial directory in OUT's place. An old OUT changes places with it and is
 * removed from there, so that there is a complete OUT at every moment; where the file
 * system cannot exchange, it is removed before. */
static int publish(const mp_run *run, mp_run_mode mode, mp_error *err)
{
    bool replace = mode == MP_RUN_FORCE && mp_path_exists(run->out);
    int rc = 0;

    if (replace && renameat2(AT_FDCWD, run->partial, AT_FDCWD, run->out, RENAME_EXCHANGE) == 0) {
        rc = sync_parent(run->out, err);
        return rc ? rc : mp_remove_tree(run->partial, err);
    }
    if (replace)
        rc = mp_remove_tree(run->out, err);
    if (rc == 0 && rename(run->partial, run->out) != 0)
        rc = mp_fail_errno(err, errno, "cannot rename \"%s\" to \"%s\"", run->partial, run->out);
    return rc ? rc : sync_parent(run->out, err);
}

int mp_run_finish(mp_run *run, mp_run_mode mode, mp_error *err)
{
    char *journal = mp_path_join(run->partial, MP_JOURNAL_NAME);
    int rc = journal ? write_manifest(run, err) : mp_fail_memory(err);

    if (rc == 0 && unlink(journal) != 0)
        rc = mp_fail_errno(err, errno, "cannot remove \"%s\"", journal);
    if (rc == 0)
        rc = mp_dir_sync(run->partial, err);
    if (rc == 0)
        rc = publish(run, mode, err);
    free(journal);
    return rc;
}
