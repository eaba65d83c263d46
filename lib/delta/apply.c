/* SPDX-License-Identifier: Apache-2.0 */
/* A chain applied, as a job: the base's shards with their headers as they are, each tensor that a
 * delta changes taken through the chain by one unit, all others copied in pieces. Deltas keep types
 * and shapes, so that the base's headers are the new version's, byte for byte.
 *
 *   stage  a shard of the base: its units are done together, those of changed tensors first
 *   unit   a tensor that changes, whole, or 64 MiB of one that does not
 *
 * A unit of a changed tensor is done when the checksum of every delta on the way holds: what is in
 * the journal was right, and a base that is another version fails at its first tensor instead of
 * giving a directory that looks complete. Streams have no index, so a tensor is not cut; its
 * scratch is two pieces. A published directory has no place for terms, since it looks as any
 * checkpoint does; one that is there already is compared with what the chain would make of it.
 *
 * Units run on all threads, each with decoders of its own; plan and chain are only read by then. */
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/file.h"
#include "base/json_edit.h"
#include "base/options.h"
#include "checkpoint/shard.h"
#include "delta/chain.h"
#include "delta/checksum.h"
#include "delta/files.h"
#include "numeric/quantize.h"
#include "pack/manifest.h"
#include "run/journal.h"
#include "run/output.h"
#include "run/sidecar.h"
#include "run/terms.h"
#include "run/work.h"

/* Bytes of what does not change that one unit copies. */
#define COPY_BYTES  ((uint64_t)64 << 20)
#define INDEX_LIMIT ((uint64_t)1 << 30)

/* What is done at once: a tensor that changes, or a piece of one that does not. */
typedef struct apply_unit {
    uint32_t output;
    uint64_t offset, bytes;
} apply_unit;

typedef struct apply_plan {
    mp_chain chain;
    mp_work work;              /* a stage is a file */
    const mp_tensor **tensors; /* [work.num_outputs], of the base */
    size_t *part_of_file;      /* [work.num_files] */
    apply_unit *units;
    uint64_t *first_unit; /* [work.num_stages + 1] */
    mp_carried files;
} apply_plan;

/* ------------------------------------------------------------------------
 * The plan
 */

static int place_order(const void *a, const void *b)
{
    const mp_tensor *x = *(const mp_tensor *const *)a, *y = *(const mp_tensor *const *)b;

    if (x->shard != y->shard)
        return x->shard < y->shard ? -1 : 1;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    /* Empty tensors begin where others do: they come first, and names settle the rest. */
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* Tensors as they lie in the shards; null without memory. */
static const mp_tensor **list_by_place(const mp_checkpoint *ckpt)
{
    const mp_tensor **list = mp_alloc(ckpt->num_tensors, sizeof *list);

    for (size_t t = 0; list && t < ckpt->num_tensors; t++)
        list[t] = &ckpt->tensors[t];
    if (list && ckpt->num_tensors > 1)
        qsort(list, ckpt->num_tensors, sizeof *list, place_order);
    return list;
}

/* A shard as it is, with the header's own bytes. */
static int add_file(apply_plan *plan, size_t p, size_t s, mp_error *err)
{
    const mp_version_part *part = &mp_chain_base(&plan->chain)->parts[p];
    const mp_shard *shard = &part->ckpt.shards[s];
    mp_out_file *file = &plan->work.files[plan->work.num_files];

    /* Counted before anything can fail, so that releasing finds what was allocated. */
    plan->part_of_file[plan->work.num_files++] = p;
    *file = (mp_out_file){
        .path =
            mp_format("%s%s%s", part->name ? part->name : "", part->name ? "/" : "", shard->name),
        /* The header was read whole when the shard was opened, so the file has these bytes. */
        .header = mp_alloc(shard->header_bytes, 1),
        .header_bytes = shard->header_bytes,
        .bytes = shard->size,
        .first_tensor = (uint32_t)plan->work.num_outputs,
    };
    plan->work.bytes_written += shard->size;
    if (!file->path || !file->header)
        return mp_fail_memory(err);
    return mp_shard_read(shard, part->ckpt.cache, 0, shard->header_bytes, file->header, err);
}

static int add_output(apply_plan *plan, const mp_tensor *tensor, mp_error *err)
{
    mp_work *work = &plan->work;
    mp_out_tensor *out = &work->outputs[work->num_outputs];

    *out = (mp_out_tensor){
        .name = mp_format("%s", tensor->name),
        .dtype = tensor->dtype,
        .stage = (uint32_t)(work->num_files - 1),
        .file = (uint32_t)(work->num_files - 1),
        .offset = tensor->offset,
        .bytes = tensor->bytes,
    };
    plan->tensors[work->num_outputs++] = tensor;
    work->files[work->num_files - 1].num_tensors++;
    return out->name ? 0 : mp_fail_memory(err);
}

static int add_part(apply_plan *plan, size_t p, mp_error *err)
{
    const mp_checkpoint *ckpt = &mp_chain_base(&plan->chain)->parts[p].ckpt;
    const mp_tensor **list = list_by_place(ckpt);
    size_t t = 0;
    int rc = list ? 0 : mp_fail_memory(err);

    for (size_t s = 0; rc == 0 && s < ckpt->num_shards; s++) {
        rc = add_file(plan, p, s, err);
        /* The list is sorted by shard: one walk through it fills all files. */
        for (; rc == 0 && t < ckpt->num_tensors && list[t]->shard == s; t++)
            rc = add_output(plan, list[t], err);
    }
    free(list);
    return rc;
}

static bool changes(const apply_plan *plan, uint32_t output)
{
    size_t count, part = plan->part_of_file[plan->work.outputs[output].file];

    mp_chain_links(&plan->chain, part, plan->tensors[output], &count);
    return count > 0;
}

static uint64_t units_of(const apply_plan *plan, uint32_t output)
{
    uint64_t bytes = plan->work.outputs[output].bytes;

    return changes(plan, output) ? 1 : mp_ceil_div(bytes, COPY_BYTES);
}

/* Units of a file: of tensors that change first, for they take longer. */
static void add_units(apply_plan *plan, uint32_t stage)
{
    mp_work *work = &plan->work;
    const mp_out_file *file = &work->files[stage];

    plan->first_unit[stage] = work->num_units;
    for (int changed = 1; changed >= 0; changed--)
        for (uint32_t t = 0; t < file->num_tensors; t++) {
            uint32_t output = file->first_tensor + t;
            uint64_t left = work->outputs[output].bytes, at = 0;

            if (changes(plan, output) != (changed == 1))
                continue;
            for (uint64_t u = units_of(plan, output); u > 0; u--, at += COPY_BYTES)
                plan->units[work->num_units++] = (apply_unit){
                    output, at, changed || left - at < COPY_BYTES ? left - at : COPY_BYTES};
        }
    plan->first_unit[stage + 1] = work->num_units;
    if (work->num_units - plan->first_unit[stage] > work->stage_units)
        work->stage_units = work->num_units - plan->first_unit[stage];
}

static int make_work(apply_plan *plan, mp_error *err)
{
    const mp_delta_version *base = mp_chain_base(&plan->chain);
    mp_work *work = &plan->work;
    uint64_t files = 0, outputs = 0, units = 0;
    int rc = 0;

    for (size_t p = 0; p < base->num_parts; p++) {
        files += base->parts[p].ckpt.num_shards;
        outputs += base->parts[p].ckpt.num_tensors;
    }
    /* Stages and outputs are numbered in 32 bits. */
    if (files >= UINT32_MAX || outputs >= UINT32_MAX)
        return mp_fail(err, MP_ERR_USAGE, "%" PRIu64 " tensors are too many to write", outputs);
    work->files = mp_alloc_zeroed(files, sizeof *work->files);
    work->outputs = mp_alloc_zeroed(outputs, sizeof *work->outputs);
    plan->tensors = mp_alloc(outputs, sizeof *plan->tensors);
    plan->part_of_file = mp_alloc(files, sizeof *plan->part_of_file);
    plan->first_unit = mp_alloc_zeroed(files + 1, sizeof *plan->first_unit);
    if (!work->files || !work->outputs || !plan->tensors || !plan->part_of_file ||
        !plan->first_unit)
        return mp_fail_memory(err);
    for (size_t p = 0; rc == 0 && p < base->num_parts; p++)
        rc = add_part(plan, p, err);
    if (rc != 0)
        return rc;
    /* Sums of bytes that are there: no overflow. */
    for (uint32_t o = 0; o < work->num_outputs; o++)
        units += units_of(plan, o);
    plan->units = mp_alloc(units, sizeof *plan->units);
    if (!plan->units)
        return mp_fail_memory(err);
    work->num_stages = (uint32_t)work->num_files;
    for (uint32_t s = 0; s < work->num_stages; s++)
        add_units(plan, s);
    work->bytes_read = work->bytes_written;
    work->scratch_bytes = 2 * MP_PATCH_BYTES;
    work->lossless = true;
    return 0;
}

/* Base's files, then those that deltas bring: the last one counts. */
static int list_files(apply_plan *plan, mp_error *err)
{
    int rc = 0;

    for (size_t i = plan->chain.base; rc == 0 && i < plan->chain.count; i++)
        rc = mp_carried_add(&plan->files, &plan->chain.versions[i], i == plan->chain.base, err);
    return rc;
}

/* ------------------------------------------------------------------------
 * The job
 */

static int print_terms(const void *user, FILE *f, mp_error *err)
{
    const apply_plan *plan = user;
    int rc = 0;

    for (size_t i = plan->chain.base; rc == 0 && i < plan->chain.count; i++) {
        const mp_delta_version *v = &plan->chain.versions[i];

        fprintf(f, "%s\n", v->delta ? "delta" : "apply");
        for (size_t p = 0; rc == 0 && p < v->num_parts; p++) {
            mp_terms_source(&v->parts[p].ckpt, f);
            rc = mp_terms_weights(&v->parts[p].ckpt, f, err);
        }
    }
    return rc;
}

static size_t list_units(const void *user, uint32_t stage, uint64_t *units)
{
    const apply_plan *plan = user;
    uint64_t first = plan->first_unit[stage], count = plan->first_unit[stage + 1] - first;

    for (uint64_t i = 0; i < count; i++)
        units[i] = first + i;
    return (size_t)count;
}

static uint64_t unit_bytes(const void *user, uint64_t unit)
{
    return ((const apply_plan *)user)->units[unit].bytes;
}

/* Where a unit writes to. */
typedef struct destination {
    mp_outputs *outputs;
    const mp_out_tensor *out;
} destination;

static int put(void *user, uint64_t at, const void *bytes, size_t n, mp_error *err)
{
    const destination *to = user;

    return mp_outputs_write(to->outputs, to->out, at, bytes, n, err);
}

static int copy_piece(const apply_plan *plan, const apply_unit *unit, size_t part,
                      const destination *to, uint8_t *scratch, mp_error *err)
{
    const mp_delta_version *base = mp_chain_base(&plan->chain);
    const mp_checkpoint *ckpt = &base->parts[part].ckpt;
    const mp_tensor *tensor = plan->tensors[unit->output];
    const mp_shard *shard = &ckpt->shards[tensor->shard];
    int rc = 0;

    /* Plain bytes go from file to file in the kernel. */
    if (!shard->zstd)
        return mp_outputs_copy(to->outputs, to->out, unit->offset, shard->fd, shard->file,
                               tensor->offset + unit->offset, unit->bytes, err);
    for (uint64_t at = 0; rc == 0 && at < unit->bytes; at += 2 * MP_PATCH_BYTES) {
        uint64_t left = unit->bytes - at, n = left < 2 * MP_PATCH_BYTES ? left : 2 * MP_PATCH_BYTES;

        rc = mp_tensor_read(ckpt, tensor, unit->offset + at, n, scratch, err);
        if (rc != 0)
            mp_error_prefix(err, "%s", base->dir);
        else
            rc = mp_outputs_write(to->outputs, to->out, unit->offset + at, scratch, n, err);
    }
    return rc;
}

static int run_unit(const void *user, uint64_t index, mp_outputs *outputs, void *scratch,
                    mp_quant_stats *stats, mp_error *err)
{
    const apply_plan *plan = user;
    const apply_unit *unit = &plan->units[index];
    destination to = {outputs, &plan->work.outputs[unit->output]};
    size_t part = plan->part_of_file[to.out->file];

    (void)stats;
    if (!changes(plan, unit->output))
        return copy_piece(plan, unit, part, &to, scratch, err);
    const mp_patch_link *culprit;
    int rc = mp_chain_patch(&plan->chain, part, plan->tensors[unit->output], put, &to, scratch,
                            &culprit, err);
    return rc && culprit ? mp_link_blame(culprit, err) : rc;
}

/* Checksums are of the deltas, and are held as the bytes go through. */
static const char *known_digest(const void *user, size_t output)
{
    (void)user;
    (void)output;
    return "";
}

/* An index that says which version it is of says the new one. */
static int renumber_index(const char *partial, uint64_t version, mp_error *err)
{
    static const char *const path[] = {"metadata", NULL};
    char *file = mp_path_join(partial, MP_INDEX_NAME), *text = NULL, number[24];
    uint64_t length;
    json_t *json = NULL;
    int rc = file ? 0 : mp_fail_memory(err);

    if (rc != 0 || !mp_path_exists(file)) {
        free(file);
        return rc;
    }
    snprintf(number, sizeof number, "%06" PRIu64, version);
    rc = mp_read_file(file, INDEX_LIMIT, &text, &length, err);
    if (rc == 0)
        rc = mp_json_parse(text, length, MP_INDEX_NAME, &json, err);
    if (rc == 0 && json_object_get(json_object_get(json, "metadata"), "version")) {
        json_t *value = json_string(number);

        rc = value ? mp_json_set(&text, path, "version", value, err) : mp_fail_memory(err);
        json_decref(value);
        if (rc == 0)
            rc = mp_write_file(file, text, strlen(text), err);
    }
    json_decref(json);
    free(text);
    free(file);
    return rc;
}

/* The manifest last, as in any pack. */
static int finish(const void *user, const mp_progress_state *state, const char *partial,
                  mp_error *err)
{
    const apply_plan *plan = user;
    const mp_delta_version *last = &plan->chain.versions[plan->chain.count - 1];
    int rc = mp_carried_copy(&plan->files, partial, err);

    (void)state;
    if (rc == 0 && last->delta)
        rc = renumber_index(partial, last->terms.version, err);
    if (rc != 0 || !last->manifest)
        return rc;
    bool compressed = plan->work.zstd != MP_ZSTD_NONE;
    /* The manifest is of the pack that the delta was made from, where files may have had other
     * names. */
    if (compressed || mp_manifest_compressed(&last->pack))
        return mp_manifest_put_renamed(last->manifest, last->manifest_bytes, partial, !compressed,
                                       err);
    return mp_put_text(partial, MP_MANIFEST_NAME, last->manifest, last->manifest_bytes, NULL, err);
}

/* ------------------------------------------------------------------------
 * What is there already
 */

/* Whether a directory has the plan's shards, by name; as they are or compressed. */
static bool has_files(const apply_plan *plan, const char *out)
{
    bool all = true;

    for (size_t f = 0; all && f < plan->work.num_files; f++) {
        char *plain = mp_path_join(out, plan->work.files[f].path);
        char *compressed = plain ? mp_format("%s" MP_ZSTD_SUFFIX, plain) : NULL;

        all = compressed && (mp_path_exists(plain) || mp_path_exists(compressed));
        free(plain);
        free(compressed);
    }
    return all;
}

/* Whether two tensors of the same length hold the same. scratch: 2 MP_PATCH_BYTES. */
static int same_bytes(const mp_checkpoint *a, const mp_tensor *x, const mp_checkpoint *b,
                      const mp_tensor *y, uint8_t *scratch, bool *same, mp_error *err)
{
    int rc = 0;

    for (uint64_t at = 0; rc == 0 && *same && at < x->bytes; at += MP_PATCH_BYTES) {
        uint64_t n = x->bytes - at < MP_PATCH_BYTES ? x->bytes - at : MP_PATCH_BYTES;

        rc = mp_tensor_read(a, x, at, n, scratch, err);
        if (rc == 0)
            rc = mp_tensor_read(b, y, at, n, scratch + MP_PATCH_BYTES, err);
        *same = rc == 0 && memcmp(scratch, scratch + MP_PATCH_BYTES, n) == 0;
    }
    return rc;
}

/* Whether a tensor there is what the chain makes of it: by its checksum, where it changes. */
static int check_tensor(const apply_plan *plan, uint32_t output, const mp_delta_version *there,
                        uint8_t *scratch, mp_error *err)
{
    size_t part = plan->part_of_file[plan->work.outputs[output].file], count;
    const mp_version_part *in = &mp_chain_base(&plan->chain)->parts[part];
    const mp_tensor *tensor = plan->tensors[output], *found = NULL;
    const mp_patch_link *links = mp_chain_links(&plan->chain, part, tensor, &count);
    size_t p = mp_version_part_named(there, in->name);
    int rc = 0;

    if (p != SIZE_MAX)
        found = mp_checkpoint_find(&there->parts[p].ckpt, tensor->name);
    bool same = found && found->bytes == tensor->bytes;
    /* Only the last delta's checksum is of the bytes that are to be there. */
    if (same && count > 0)
        rc = mp_link_sum_fits(&links[count - 1], &there->parts[p].ckpt, found, scratch, &same, err);
    else if (same)
        rc = same_bytes(&in->ckpt, tensor, &there->parts[p].ckpt, found, scratch, &same, err);
    if (rc == 0 && !same)
        rc = mp_fail(err, MP_ERR_INPUT, "\"%s\" is complete and another version: tensor \"%s\"",
                     there->dir, tensor->name);
    return rc;
}

static int check_done(const void *user, const char *out, const char *terms, mp_error *err)
{
    const apply_plan *plan = user;
    uint8_t *scratch = mp_alloc(2, MP_PATCH_BYTES);
    mp_delta_version there = {0};

    (void)terms; /* a directory as any other has no place for them: what it holds is compared */
    int rc = scratch ? mp_version_open(&there, out, false, NULL, err) : mp_fail_memory(err);

    for (uint32_t o = 0; rc == 0 && o < plan->work.num_outputs; o++)
        rc = check_tensor(plan, o, &there, scratch, err);
    mp_version_release(&there);
    free(scratch);
    return rc;
}

/* mp_delta_apply has looked at it. */
static bool is_whole(const char *out)
{
    return mp_path_exists(out);
}

static bool owns(const char *name)
{
    return strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && strcmp(name, MP_JOURNAL_NAME) != 0;
}

static void release(apply_plan *plan)
{
    mp_carried_release(&plan->files);
    mp_work_release(&plan->work);
    free(plan->tensors);
    free(plan->part_of_file);
    free(plan->units);
    free(plan->first_unit);
    mp_chain_release(&plan->chain);
}

int mp_delta_apply(const char *base, const char *const *deltas, size_t count, const char *out,
                   const mp_delta_apply_options *given, mp_run_mode mode, const mp_context *context,
                   mp_error *err)
{
    mp_delta_apply_options options;
    apply_plan plan = {0};
    const mp_job job = {
        .plan = &plan,
        .work = &plan.work,
        .terms = print_terms,
        .units = list_units,
        .unit_bytes = unit_bytes,
        .run = run_unit,
        .known_digest = known_digest,
        .finish = finish,
        .check_done = check_done,
        .is_whole = is_whole,
        .kind = "a directory",
        .owns = owns,
    };

    err = MP_NEVER_NULL(err);
    if (mp_options_take("mp_delta_apply_options", &options, sizeof options, given, err) != 0)
        return err->code;
    uint64_t unnumbered = given ? options.base_version : MP_BASE_FIRST;
    int rc = mp_chain_open(&plan.chain, base, unnumbered, deltas, count, context, err);
    if (rc == 0)
        rc = make_work(&plan, err);
    if (rc == 0)
        rc = list_files(&plan, err);
    /* Replace only what looks like an earlier version, never any directory that is named by
     * mistake. */
    if (rc == 0 && mode == MP_RUN_FORCE && mp_path_exists(out) && !has_files(&plan, out))
        rc = mp_fail(err, MP_ERR_USAGE,
                     "\"%s\" exists and does not hold the same shards: not replaced", out);
    plan.work.zstd = options.zstd;
    if (rc == 0)
        rc = mp_job_run(&job, out, mode, context, err);
    release(&plan);
    return rc;
}
