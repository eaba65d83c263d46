/* SPDX-License-Identifier: Apache-2.0 */
/* A delta as a job: its streams are copied from the spool behind headers that are known now. The
 * order of what is written makes a delta safe to watch for, also where it is copied on file by
 * file: shards, files that go along, then the index, and of packs pack.json behind the indexes of
 * all ranks.
 *
 *   OUT/rank-000/model-00001-of-00001.safetensors    streams as U8 [bytes], checksums as metadata
 *   OUT/rank-000/model.safetensors.index.json        version, base_version, encoding, ...
 *   OUT/pack.json                                    of packs: the new pack's manifest
 *
 * The terms of a run have the digest of names, checksums and lengths of all streams: a run that is
 * taken up again makes its streams anew, and they have to be the same. Checksums already stand for
 * the bytes, so outputs have no digests of their own.
 *
 * Streams are made by all threads (mp_delta_make_all), largest first, each into room of its own in
 * the spool; a mutex guards only the progress. Copying is the job's, on all threads too. */
#include "delta/publish.h"

#include <inttypes.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/parallel.h"
#include "delta/checksum.h"
#include "delta/patch.h"
#include "delta/version.h"
#include "numeric/quantize.h"
#include "run/journal.h"
#include "run/output.h"
#include "run/partial.h"
#include "run/sidecar.h"
#include "run/work.h"

typedef struct publication {
    const mp_delta_output *o;
    mp_work work;
    size_t *first_file; /* [like->num_parts + 1], of each part */
} publication;

/* ------------------------------------------------------------------------
 * Items
 */

int mp_delta_level(const mp_delta_options *options, int *level, mp_error *err)
{
    *level = options->level == 0 ? 1 : options->level;
    return *level >= 1 && *level <= MP_ZSTD_LEVEL_MAX
               ? 0
               : mp_fail(err, MP_ERR_USAGE, "level %d is not between 1 and %d", *level,
                         MP_ZSTD_LEVEL_MAX);
}

void mp_delta_sum_up(const mp_delta_terms *terms, const mp_delta_item *items, size_t count,
                     mp_delta_report *report)
{
    if (!report)
        return;
    report->encoding = terms->encoding;
    report->version = terms->version;
    report->base_version = terms->base;
    report->tensors = count;
    for (size_t i = 0; i < count; i++) {
        report->bytes += items[i].bytes;
        report->changed_tensors += items[i].changed > 0;
        report->changed_bytes += items[i].changed;
        report->stored_bytes += items[i].stored;
    }
}

size_t mp_delta_keep_changed(mp_delta_item *items, size_t count)
{
    size_t kept = 0;

    for (size_t i = 0; i < count; i++)
        if (items[i].changed > 0)
            items[kept++] = items[i];
    return kept;
}

typedef struct making {
    mp_delta_make *make;
    const void *user;
    mp_delta_item **order; /* largest first, so that none is left over at the end */
    const mp_context *context;
    pthread_mutex_t lock; /* guards what follows */
    uint64_t done, total;
} making;

static int size_order(const void *a, const void *b)
{
    const mp_delta_item *x = *(mp_delta_item *const *)a, *y = *(mp_delta_item *const *)b;

    if (x->bytes != y->bytes)
        return x->bytes > y->bytes ? -1 : 1;
    /* Of equal sizes as they are listed: both point into one array. */
    return (x > y) - (x < y);
}

static int make_one(void *user, uint64_t index, void *scratch, mp_error *err)
{
    making *m = user;
    mp_delta_item *item = m->order[index];
    int rc = m->make(m->user, item, scratch, err);

    pthread_mutex_lock(&m->lock);
    m->done += item->bytes;
    if (rc == 0 && m->context && m->context->progress)
        m->context->progress(m->context->progress_user, m->done, m->total);
    pthread_mutex_unlock(&m->lock);
    return rc;
}

int mp_delta_make_all(mp_delta_make *make, const void *user, mp_delta_item *items, size_t count,
                      const mp_context *context, mp_error *err)
{
    making m = {.make = make, .user = user, .context = context};

    m.order = mp_alloc(count, sizeof *m.order);
    if (!m.order)
        return mp_fail_memory(err);
    pthread_mutex_init(&m.lock, NULL);
    mp_begin_phase(context, "comparing");
    for (size_t i = 0; i < count; i++) {
        m.order[i] = &items[i];
        m.total += items[i].bytes;
    }
    qsort(m.order, count, sizeof *m.order, size_order);
    int rc = mp_parallel(context, count, 3 * MP_PATCH_BYTES, make_one, &m, err);
    pthread_mutex_destroy(&m.lock);
    free(m.order);
    return rc;
}

/* ------------------------------------------------------------------------
 * What is written
 */

static int add_part(publication *p, size_t part, size_t *item, mp_error *err)
{
    const mp_delta_output *o = p->o;
    size_t first = *item, first_output = p->work.num_outputs;

    /* Items are sorted by part. */
    for (; *item < o->num_items && o->items[*item].part == part; ++*item) {
        const mp_delta_item *i = &o->items[*item];

        if (mp_work_add(&p->work, mp_format("%s", i->name), MP_U8, &i->stored, 1, 0, err) != 0)
            return err->code;
    }
    /* Checksums go into the metadata of the shard that their stream is in, wherever files are
     * cut. */
    const char **notes = mp_alloc(*item - first, sizeof *notes);
    int rc = notes ? 0 : mp_fail_memory(err);
    for (size_t i = first; rc == 0 && i < *item; i++)
        notes[i - first] = o->items[i].sum;
    p->first_file[part] = p->work.num_files;
    if (rc == 0)
        rc = mp_work_noted_files(&p->work, first_output, o->like->parts[part].name,
                                 o->max_shard_size, notes, err);
    p->first_file[part + 1] = p->work.num_files;
    free(notes);
    return rc;
}

static int make_work(publication *p, mp_error *err)
{
    const mp_delta_output *o = p->o;
    size_t item = 0;
    int rc = mp_work_reserve(&p->work, o->num_items, err);

    p->first_file = mp_alloc_zeroed(o->like->num_parts + 1, sizeof *p->first_file);
    if (rc == 0 && !p->first_file)
        rc = mp_fail_memory(err);
    for (size_t part = 0; rc == 0 && part < o->like->num_parts; part++)
        rc = add_part(p, part, &item, err);
    p->work.num_units = p->work.stage_units = o->num_items;
    p->work.num_stages = 1;
    p->work.scratch_bytes = MP_PATCH_BYTES;
    p->work.lossless = true;
    return rc;
}

static int print_terms(const void *user, FILE *f, mp_error *err)
{
    const mp_delta_output *o = ((const publication *)user)->o;
    mp_digest_stream stream;
    mp_digest digest;
    char text[MP_DIGEST_TEXT];
    int rc = mp_digest_begin(&stream, err);

    if (rc != 0)
        return rc;
    for (size_t i = 0; i < o->num_items; i++) {
        /* With the zero behind it, so that names cannot run into each other. */
        mp_digest_update(&stream, o->items[i].name, strlen(o->items[i].name) + 1);
        mp_digest_update(&stream, o->items[i].sum, sizeof o->items[i].sum);
        mp_digest_update(&stream, &o->items[i].stored, sizeof o->items[i].stored);
    }
    mp_digest_end(&stream, &digest);
    fprintf(f, "delta %s %s\nversion %" PRIu64 " %" PRIu64 "\nmax-shard-size %" PRIu64 "\n",
            mp_delta_encoding_name(o->terms.encoding), mp_delta_checksum_name(o->terms.checksum),
            o->terms.version, o->terms.base, o->max_shard_size);
    fprintf(f, "streams %zu %s\n", o->num_items, mp_digest_text(&digest, text));
    return 0;
}

static size_t list_units(const void *user, uint32_t stage, uint64_t *units)
{
    const publication *p = user;

    (void)stage;
    for (size_t i = 0; i < p->o->num_items; i++)
        units[i] = i;
    return p->o->num_items;
}

static uint64_t unit_bytes(const void *user, uint64_t unit)
{
    return ((const publication *)user)->o->items[unit].stored;
}

static int run_unit(const void *user, uint64_t unit, mp_outputs *outputs, void *scratch,
                    mp_quant_stats *stats, mp_error *err)
{
    const publication *p = user;
    const mp_delta_item *item = &p->o->items[unit];

    (void)scratch;
    (void)stats;
    return mp_outputs_copy(outputs, &p->work.outputs[unit], 0, p->o->spool->fd, p->o->spool->path,
                           item->place, item->stored, err);
}

/* Nobody asks for one: the streams are of checksums already. */
static const char *known_digest(const void *user, size_t output)
{
    (void)user;
    (void)output;
    return "";
}

/* ------------------------------------------------------------------------
 * Index and other files
 */

static json_t *index_json(const publication *p, size_t part)
{
    const mp_delta_terms *terms = &p->o->terms;
    char version[24], base[24];
    json_t *map = json_object();
    uint64_t total = 0;
    bool whole = map != NULL;

    for (size_t f = p->first_file[part]; f < p->first_file[part + 1]; f++) {
        const mp_out_file *file = &p->work.files[f];

        for (uint32_t t = 0; t < file->num_tensors; t++) {
            const mp_out_tensor *out = &p->work.outputs[file->first_tensor + t];

            whole &=
                json_object_set_new(map, out->name, json_string(mp_path_base(file->path))) == 0;
            total += out->bytes;
        }
    }
    snprintf(version, sizeof version, "%06" PRIu64, terms->version);
    snprintf(base, sizeof base, "%06" PRIu64, terms->base);
    if (!whole) {
        json_decref(map);
        return NULL;
    }
    return json_pack("{s:{s:I, s:s, s:s, s:s, s:s, s:s}, s:o}", "metadata", "total_size",
                     (json_int_t)total, "version", version, "base_version", base, "delta_encoding",
                     mp_delta_encoding_name(terms->encoding), "compression_format", "zstd",
                     "checksum_format", mp_delta_checksum_name(terms->checksum), "weight_map", map);
}

static int put_index(const publication *p, size_t part, const char *partial, mp_error *err)
{
    const char *name = p->o->like->parts[part].name;
    char *dir = name ? mp_path_join(partial, name) : mp_format("%s", partial);
    json_t *json = index_json(p, part);
    char *text = json ? mp_json_text(json) : NULL;
    int rc = dir && text ? mp_make_dir(dir, err) : mp_fail_memory(err);

    if (rc == 0)
        rc = mp_put_text(dir, MP_INDEX_NAME, text, strlen(text), NULL, err);
    /* The job syncs OUT itself, not the directories in it: the index has a new name in this one. */
    if (rc == 0 && name)
        rc = mp_dir_sync(dir, err);
    json_decref(json);
    free(text);
    free(dir);
    return rc;
}

static int finish(const void *user, const mp_progress_state *state, const char *partial,
                  mp_error *err)
{
    const publication *p = user;
    const mp_delta_version *like = p->o->like;
    int rc = mp_carried_copy(p->o->files, partial, err);

    (void)state;
    for (size_t part = 0; rc == 0 && part < like->num_parts; part++)
        rc = put_index(p, part, partial, err);
    if (rc == 0 && like->manifest)
        rc = mp_put_text(partial, MP_DELTA_PACK_NAME, like->manifest, like->manifest_bytes, NULL,
                         err);
    return rc;
}

/* ------------------------------------------------------------------------
 * What is there already
 */

static bool same_delta(const mp_delta_output *o, const mp_delta_version *there)
{
    size_t tensors = 0;

    if (!there->delta || there->terms.version != o->terms.version ||
        there->terms.base != o->terms.base || there->terms.encoding != o->terms.encoding ||
        there->terms.checksum != o->terms.checksum)
        return false;
    for (size_t p = 0; p < there->num_parts; p++)
        tensors += there->parts[p].ckpt.num_tensors;
    for (size_t i = 0; i < o->num_items; i++) {
        const mp_delta_item *item = &o->items[i];
        size_t p = mp_version_part_named(there, o->like->parts[item->part].name);
        const mp_version_part *part = p == SIZE_MAX ? NULL : &there->parts[p];
        const mp_tensor *t = part ? mp_checkpoint_find(&part->ckpt, item->name) : NULL;

        if (!t || strcmp(part->sums[t - part->ckpt.tensors], item->sum) != 0)
            return false;
    }
    /* Each item was found, so as many tensors are the same ones. */
    return tensors == o->num_items;
}

static int check_done(const void *user, const char *out, const char *terms, mp_error *err)
{
    mp_delta_version there;

    (void)terms; /* a delta says what it is itself */
    int rc = mp_version_open(&there, out, true, NULL, err);

    if (rc == 0 && !same_delta(((const publication *)user)->o, &there))
        rc = mp_fail(err, MP_ERR_INPUT, "\"%s\" is complete and another delta", out);
    mp_version_release(&there);
    return rc;
}

static bool owns(const char *name)
{
    return strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && strcmp(name, MP_JOURNAL_NAME) != 0;
}

int mp_delta_check_out(const char *out, mp_run_mode mode, mp_error *err)
{
    bool there = mp_path_exists(out);

    if (there && mode == MP_RUN_FRESH)
        return mp_fail(err, MP_ERR_USAGE,
                       "\"%s\" exists: choose another name, or --force to replace it", out);
    if (there && mode == MP_RUN_FORCE && !mp_is_delta(out))
        return mp_fail(err, MP_ERR_USAGE, "\"%s\" exists and is not a delta: not replaced", out);
    return 0;
}

int mp_delta_publish(const mp_delta_output *output, const char *out, mp_run_mode mode,
                     const mp_context *context, mp_error *err)
{
    publication p = {.o = output};
    const mp_job job = {
        .plan = &p,
        .work = &p.work,
        .terms = print_terms,
        .units = list_units,
        .unit_bytes = unit_bytes,
        .run = run_unit,
        .known_digest = known_digest,
        .finish = finish,
        .check_done = check_done,
        .is_whole = mp_is_delta,
        .kind = "a delta",
        .owns = owns,
    };
    int rc = make_work(&p, err);

    if (rc == 0)
        rc = mp_job_run(&job, out, mode, context, err);
    mp_work_release(&p.work);
    free(p.first_file);
    return rc;
}
