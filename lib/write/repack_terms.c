/* SPDX-License-Identifier: Apache-2.0 */
/* The terms of a repack: what the plan decides of the manifest, and so what a pack that is there
 * says of the run that made it. One text, compared line by line so that the first that differs is
 * named:
 *
 *   quantize no allow-nonfinite 0 requantize-shared 0      of the run only
 *   target megamoe-w4a8/1 ... ep 4 ... layer model.layers.3 ... file rank-000/model-00001-...
 *   source model-00001-of-00046.safetensors 5368709120 f0...
 *
 * A run that is taken up compares the whole text, which the journal has. Of a pack that is complete
 * only the manifest is left, so the same text is printed from it and from the plan, without the
 * lines that it cannot know: sizes of compressed files, rules where nothing was requantized.
 *
 * Whatever decides on bytes has to be printed here; what does not must not be, or a run that could
 * be taken up is refused. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/file.h"
#include "base/words.h"
#include "checkpoint/shard.h"
#include "pack/manifest.h"
#include "run/sidecar.h"
#include "run/terms.h"
#include "write/plan.h"
#include "write/repack.h"

#define CONFIG_LIMIT (16u << 20)

int mp_repack_placement(const mp_repack_plan *plan, char **text, mp_error *err)
{
    return mp_placement_write(&plan->placement, MP_PLACEMENT_SGLANG, plan->options.ep, text, err);
}

/* ------------------------------------------------------------------------
 * What the plan decides
 */

static int describe_texts(const mp_repack_plan *plan, mp_manifest *m, mp_error *err)
{
    const mp_catalog *catalog = plan->catalog;
    char *text, *path;
    uint64_t length;
    int rc = mp_repack_placement(plan, &text, err);

    if (rc != 0)
        return rc;
    mp_hex_digest_of(text, strlen(text), m->placement_xxh3);
    free(text);
    if (!catalog->config.present)
        return 0;
    path = mp_path_join(catalog->checkpoint.dir, MP_CONFIG_NAME);
    rc = path ? mp_read_file(path, CONFIG_LIMIT, &text, &length, err) : mp_fail_memory(err);
    free(path);
    if (rc != 0)
        return rc;
    mp_hex_digest_of(text, length, m->config_xxh3);
    free(text);
    return 0;
}

static int describe_source(const mp_repack_plan *plan, mp_manifest *m, mp_error *err)
{
    const mp_checkpoint *ckpt = &plan->catalog->checkpoint;

    m->shards = mp_alloc_zeroed(ckpt->num_shards, sizeof *m->shards);
    if (!m->shards)
        return mp_fail_memory(err);
    m->num_shards = ckpt->num_shards;
    for (size_t i = 0; i < ckpt->num_shards; i++) {
        mp_shard_hex(&ckpt->shards[i], m->shards[i].header_xxh3);
        m->shards[i].size = ckpt->shards[i].size;
        m->shards[i].name = strdup(ckpt->shards[i].name);
        if (!m->shards[i].name)
            return mp_fail_memory(err);
    }
    return 0;
}

static int describe_layers(const mp_repack_plan *plan, mp_manifest *m, mp_error *err)
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

static int describe_file(const mp_work *work, const mp_out_file *file, mp_packed_file *packed,
                         mp_error *err)
{
    const char *name = strrchr(file->path, '/') + 1;

    packed->name = mp_format("%s%s", name, work->zstd != MP_ZSTD_NONE ? MP_ZSTD_SUFFIX : "");
    packed->size = file->bytes;
    packed->tensors = mp_alloc_zeroed(file->num_tensors, sizeof *packed->tensors);
    if (!packed->name || !packed->tensors)
        return mp_fail_memory(err);
    packed->num_tensors = file->num_tensors;
    for (uint32_t t = 0; t < file->num_tensors; t++) {
        packed->tensors[t].name = strdup(work->outputs[file->first_tensor + t].name);
        if (!packed->tensors[t].name)
            return mp_fail_memory(err);
    }
    return 0;
}

/* How many files from first on lie in a directory. */
static size_t files_in(const mp_work *work, size_t first, const char *dir)
{
    size_t length = strlen(dir), f = first;

    while (f < work->num_files && strncmp(work->files[f].path, dir, length) == 0 &&
           work->files[f].path[length] == '/')
        f++;
    return f - first;
}

static int describe_ranks(const mp_repack_plan *plan, mp_manifest *m, mp_error *err)
{
    const mp_work *work = &plan->work;
    char dir[MP_RANK_NAME_MAX];
    size_t first = 0;

    m->ranks = mp_alloc_zeroed(plan->options.ep, sizeof *m->ranks);
    if (!m->ranks)
        return mp_fail_memory(err);
    for (uint32_t number = 0; number < plan->options.ep; number++) {
        mp_packed_rank *rank = &m->ranks[m->num_ranks];
        /* Files of a rank stand together, and ranks in their order; one that is not selected has
         * none. */
        size_t count = files_in(work, first, mp_rank_name(number, dir));

        if (plan->ranks_chosen && !plan->ranks_chosen[number])
            continue;
        m->num_ranks++;
        rank->rank = number;
        rank->files = mp_alloc_zeroed(count, sizeof *rank->files);
        if (!rank->files)
            return mp_fail_memory(err);
        rank->num_files = count;
        for (size_t f = 0; f < count; f++)
            if (describe_file(work, &work->files[first + f], &rank->files[f], err) != 0)
                return err->code;
        first += count;
    }
    return 0;
}

int mp_repack_describe(const mp_repack_plan *plan, mp_manifest *m, mp_error *err)
{
    const mp_repack_options *options = &plan->options;

    m->tool_version = strdup(mp_version());
    m->target = strdup(options->target->name);
    m->target_version = options->target->version;
    m->nz = options->nz;
    m->alphas = options->alphas;
    m->target_scheme = options->target->scheme;
    m->rounding = options->quant.rounding;
    m->scale_rule = options->quant.scale_rule;
    m->amax_floor = (double)options->quant.amax_floor;
    m->ep_size = options->ep;
    m->num_physical = plan->shape.slots.num_physical;
    m->shared = options->shared;
    m->dropped = plan->drop;
    if (!m->tool_version || !m->target)
        return mp_fail_memory(err);
    if (describe_texts(plan, m, err) != 0 || describe_source(plan, m, err) != 0 ||
        describe_layers(plan, m, err) != 0 || describe_ranks(plan, m, err) != 0)
        return err->code;
    return 0;
}

/* ------------------------------------------------------------------------
 * The text
 */

/* Files by their plain names. */
static void print_files(const mp_manifest *m, bool sized, FILE *f)
{
    size_t count = 0;

    for (size_t r = 0; r < m->num_ranks; r++)
        count += m->ranks[r].num_files;
    fprintf(f, "files %zu\n", count);
    for (size_t r = 0; r < m->num_ranks; r++)
        for (size_t i = 0; i < m->ranks[r].num_files; i++) {
            const mp_packed_file *file = &m->ranks[r].files[i];
            char dir[MP_RANK_NAME_MAX];

            fprintf(f, "file %s/%.*s", mp_rank_name(m->ranks[r].rank, dir),
                    (int)mp_shard_name_length(file->name), file->name);
            if (sized)
                fprintf(f, " %" PRIu64, file->size);
            fputc('\n', f);
        }
}

/* What a manifest says. sized: with the sizes of files, which of compressed ones nobody knows
 * before. ruled: with the rules of requantizing, which decide on bytes only where anything was
 * requantized; where nothing was, the manifest does not have them. sourced: with the source. */
static void print_manifest(const mp_manifest *m, bool sized, bool ruled, bool sourced, FILE *f)
{
    char dropped[MP_ROLE_SET_TEXT];

    fprintf(f, "target %s/%" PRIu64 "\nnz %d\nalphas %s\nscheme %s\n", m->target, m->target_version,
            m->nz, mp_alphas_name(m->alphas), mp_scheme_name(m->target_scheme));
    if (ruled)
        fprintf(f, "rounding %s scale-rule %s amax-floor %.17g\n", mp_rounding_name(m->rounding),
                mp_scale_rule_name(m->scale_rule), m->amax_floor);
    fprintf(f, "ep %" PRIu64 "\nshared %s\ndrop %s\n", m->ep_size, mp_shared_mode_name(m->shared),
            m->dropped ? mp_role_set_text(m->dropped, dropped) : "nothing");
    fprintf(f, "layers %zu\n", m->num_layers);
    for (size_t i = 0; i < m->num_layers; i++) {
        fputs("layer ", f);
        mp_terms_name(m->layers[i], f);
        fputc('\n', f);
    }
    fprintf(f, "ranks %zu\nplacement %" PRIu64 " %s\n", m->num_ranks, m->num_physical,
            m->placement_xxh3);
    print_files(m, sized, f);
    if (!sourced)
        return;
    fprintf(f, "config %s\n", m->config_xxh3[0] ? m->config_xxh3 : "none");
    for (size_t i = 0; i < m->num_shards; i++) {
        fputs("source ", f);
        mp_terms_name(m->shards[i].name, f);
        fprintf(f, " %" PRIu64 " %s\n", m->shards[i].size, m->shards[i].header_xxh3);
    }
}

int mp_repack_terms(const void *user, FILE *f, mp_error *err)
{
    const mp_repack_plan *plan = user;
    const mp_repack_options *o = &plan->options;
    mp_manifest m = {0};
    int rc = mp_repack_describe(plan, &m, err);

    fprintf(f, "quantize %s allow-nonfinite %d requantize-shared %d\n",
            o->quantize ? mp_scheme_name(o->quantize_to) : "no", o->quant.allow_nonfinite,
            o->requantize_shared);
    fprintf(f, "max-shard-size %" PRIu64 "\n", mp_work_shard_size(o->max_shard_size));
    if (rc == 0)
        print_manifest(&m, true, true, true, f);
    mp_manifest_release(&m);
    return rc ? rc : mp_terms_weights(&plan->catalog->checkpoint, f, err);
}

/* What a manifest says of the run that it is of, malloc'ed. */
static int text_of(const mp_manifest *m, bool sized, bool ruled, bool sourced, char **text,
                   mp_error *err)
{
    size_t length;
    FILE *f = open_memstream(text, &length);

    if (!f)
        return mp_fail_memory(err);
    /* Another version may have written other bytes. */
    fprintf(f, "tool %s\n", m->tool_version);
    print_manifest(m, sized, ruled, sourced, f);
    return mp_text_finish(f, text, err);
}

/* Holds what the manifest of a pack says against what the plan would have it say. */
static int check_same(const mp_repack_plan *plan, const mp_manifest *made, const char *dir,
                      bool sourced, mp_error *err)
{
    /* Where nothing was requantized, rules that would have changed nothing do not make it another
     * pack. */
    bool ruled = !mp_manifest_passes(made, false) || !mp_manifest_passes(made, true);
    bool sized = !mp_manifest_compressed(made);
    mp_manifest planned = {0};
    char *had = NULL, *want = NULL;
    int rc = mp_repack_describe(plan, &planned, err);

    if (rc == 0)
        rc = text_of(made, sized, ruled, sourced, &had, err);
    if (rc == 0)
        rc = text_of(&planned, sized, ruled, sourced, &want, err);
    if (rc == 0)
        rc = mp_terms_check_done(dir, had, want, err);
    free(had);
    free(want);
    mp_manifest_release(&planned);
    return rc;
}

int mp_repack_check_done(const void *plan, const char *out, const char *terms, mp_error *err)
{
    mp_manifest made = {0};
    int rc = mp_manifest_load(&made, out, err);

    (void)terms; /* say more than a manifest */
    if (rc == 0)
        rc = check_same(plan, &made, out, true, err);
    mp_manifest_release(&made);
    return rc;
}

int mp_repack_check_same_form(const mp_repack_plan *plan, const mp_manifest *manifest,
                              const char *dir, mp_error *err)
{
    return check_same(plan, manifest, dir, false, err);
}
