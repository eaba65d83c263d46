/* SPDX-License-Identifier: Apache-2.0 */
/* The XOR deltas of a chain as one. What a tensor's streams have in common is their length, and XOR
 * of them all is the stream of the whole: a ^ b and b ^ c make a ^ c, and no version has to be
 * there. A tensor that came back to what it was is all zeros then, and is left out.
 *
 * The checksum of the new version is the last delta's that has the tensor; those of versions
 * between are gone with them. So folding does not hold checksums, which are of tensors and not of
 * streams: what is damaged is noticed when the folded delta is applied. Overwriting deltas cannot
 * be folded without the base's bytes and are refused.
 *
 * Streams say how long they are in their first frame, or are read once to find out; that comes
 * first, as it decides where each has room in the spool. Tensors are folded on all threads, by one
 * decoder for each delta of the chain; the chain is only read by then. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/options.h"
#include "base/zstd_frames.h"
#include "checkpoint/shard.h"
#include "delta/checksum.h"
#include "delta/files.h"
#include "delta/patch.h"
#include "delta/publish.h"
#include "delta/spool.h"
#include "delta/version.h"
#include "delta/xor.h"

typedef struct folding {
    mp_delta_version *chain;
    size_t count; /* that are open */
    int level;
    mp_spool spool;
    mp_delta_item *items; /* by part, then by name */
    size_t num_items;
    mp_carried files;
} folding;

static int open_chain(folding *f, const char *const *deltas, size_t count,
                      const mp_context *context, mp_error *err)
{
    int rc = 0;

    f->chain = mp_alloc_zeroed(count, sizeof *f->chain);
    if (!f->chain)
        return mp_fail_memory(err);
    for (size_t i = 0; rc == 0 && i < count; i++) {
        mp_delta_version *v = &f->chain[i];

        rc = mp_version_open(v, deltas[i], true, context, err);
        f->count += rc == 0;
        if (rc == 0 && !v->delta)
            rc = mp_fail(err, MP_ERR_UNSUPPORTED, "%s: a full version cannot be folded", v->dir);
        else if (rc == 0 && v->terms.encoding != MP_DELTA_XOR)
            rc = mp_fail(err, MP_ERR_UNSUPPORTED,
                         "%s: delta_encoding \"%s\" cannot be folded, \"xor\" can", v->dir,
                         mp_delta_encoding_name(v->terms.encoding));
        else if (rc == 0 && i > 0 && v->terms.checksum != f->chain[0].terms.checksum)
            rc = mp_fail(err, MP_ERR_UNSUPPORTED,
                         "%s: its checksums are %s, those of %s %s, and a delta has one kind",
                         v->dir, mp_delta_checksum_name(v->terms.checksum), f->chain[0].dir,
                         mp_delta_checksum_name(f->chain[0].terms.checksum));
        else if (rc == 0 && i > 0)
            rc = mp_version_check_follows(v, &f->chain[i - 1], err);
        for (size_t p = 0; rc == 0 && p < v->num_parts; p++)
            /* As many parts, and each of them in the first delta: then both have the same. */
            if (mp_version_part_named(&f->chain[0], v->parts[p].name) == SIZE_MAX ||
                v->num_parts != f->chain[0].num_parts)
                rc = mp_fail(err, MP_ERR_INPUT, "%s: has other ranks than %s", v->dir,
                             f->chain[0].dir);
    }
    return rc;
}

/* What the deltas of the chain do to a tensor. links: [f->count]; returns how many. */
static size_t find_links(const folding *f, const mp_delta_item *item, mp_patch_link *links)
{
    const char *part = f->chain[f->count - 1].parts[item->part].name;
    size_t count = 0;

    for (size_t i = 0; i < f->count; i++) {
        const mp_delta_version *v = &f->chain[i];
        const mp_version_part *in = &v->parts[mp_version_part_named(v, part)];
        const mp_tensor *stream = mp_checkpoint_find(&in->ckpt, item->name);

        if (stream)
            links[count++] = (mp_patch_link){v, in, stream};
    }
    return count;
}

static int item_order(const void *a, const void *b)
{
    const mp_delta_item *x = a, *y = b;

    if (x->part != y->part)
        return x->part < y->part ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* Every tensor of every delta once. */
static int list_items(folding *f, mp_error *err)
{
    const mp_delta_version *last = &f->chain[f->count - 1];
    size_t room = 0, kept = 0;

    for (size_t i = 0; i < f->count; i++)
        for (size_t p = 0; p < f->chain[i].num_parts; p++)
            room += f->chain[i].parts[p].ckpt.num_tensors;
    f->items = mp_alloc_zeroed(room, sizeof *f->items);
    if (!f->items)
        return mp_fail_memory(err);
    for (size_t i = 0; i < f->count; i++)
        for (size_t p = 0; p < f->chain[i].num_parts; p++) {
            const mp_version_part *part = &f->chain[i].parts[p];

            for (size_t t = 0; t < part->ckpt.num_tensors; t++)
                f->items[f->num_items++] =
                    (mp_delta_item){.name = part->ckpt.tensors[t].name,
                                    .part = mp_version_part_named(last, part->name)};
        }
    if (f->num_items > 1)
        qsort(f->items, f->num_items, sizeof *f->items, item_order);
    for (size_t i = 0; i < f->num_items; i++)
        /* Sorted, so those of the same tensor stand together. */
        if (kept == 0 || item_order(&f->items[i], &f->items[kept - 1]) != 0)
            f->items[kept++] = f->items[i];
    f->num_items = kept;
    return 0;
}

/* Bytes of a tensor: what the head of its stream says, else by reading it. */
static int measure(const mp_patch_link *link, uint64_t *bytes, uint8_t *scratch, mp_error *err)
{
    const mp_checkpoint *ckpt = &link->part->ckpt;
    const mp_tensor *stream = link->stream;
    uint64_t n = stream->bytes < MP_FRAME_HEAD_MAX ? stream->bytes : MP_FRAME_HEAD_MAX;
    unsigned char begin[MP_FRAME_HEAD_MAX];
    mp_frame_head head;
    mp_error why;
    int rc =
        mp_shard_read(&ckpt->shards[stream->shard], ckpt->cache, stream->offset, n, begin, err);

    if (rc != 0)
        return rc;
    if (mp_frame_head_parse(&head, begin, n, &why) == 0 && !head.skippable && head.sized) {
        *bytes = head.content;
        return 0;
    }
    return mp_patch_check_stream(link, scratch, bytes, err) ? mp_link_blame(link, err) : 0;
}

static int fold_streams(const folding *f, mp_delta_item *item, const mp_patch_link *links,
                        size_t count, uint8_t *scratch, mp_error *err)
{
    uint8_t *bytes = scratch + MP_PATCH_BYTES;
    mp_spool_stream stream;
    mp_patch patch;
    int rc = mp_patch_init(&patch, item->bytes, links, count, false, err);

    mp_spool_begin(&stream, &f->spool, item, item->bytes, f->level);
    for (uint64_t at = 0; rc == 0 && at < item->bytes; at += MP_PATCH_BYTES) {
        size_t n = item->bytes - at < MP_PATCH_BYTES ? (size_t)(item->bytes - at) : MP_PATCH_BYTES;
        /* XOR with zeros: the first delta's bytes come out as they are. */
        memset(bytes, 0, n);
        rc = mp_patch_next(&patch, bytes, n, scratch, err);
        uint64_t changed = mp_count_nonzero(bytes, n);
        item->changed += changed;
        if (rc == 0)
            rc = changed > 0 ? mp_spool_put(&stream, bytes, n, err)
                             : mp_spool_zeros(&stream, n, err);
    }
    if (rc == 0)
        rc = mp_patch_end(&patch, err);
    if (rc == 0)
        rc = mp_spool_end(&stream, err);
    /* A malformed stream has to be named; I/O errors name their file already. */
    if (rc == MP_ERR_INPUT)
        mp_link_blame(&links[patch.culprit], err);
    mp_spool_stream_release(&stream);
    mp_patch_release(&patch);
    return rc;
}

static int make_fold(const void *user, mp_delta_item *item, uint8_t *scratch, mp_error *err)
{
    const folding *f = user;
    mp_patch_link *links = mp_alloc(f->count, sizeof *links);

    if (!links)
        return mp_fail_memory(err);
    /* At least one: the item was listed because some delta has it. */
    size_t count = find_links(f, item, links);
    const mp_patch_link *last = &links[count - 1];
    strcpy(item->sum, last->part->sums[last->stream - last->part->ckpt.tensors]);
    int rc = fold_streams(f, item, links, count, scratch, err);
    free(links);
    return rc;
}

/* Lengths come first: they say where streams have room. */
static int measure_items(folding *f, mp_error *err)
{
    uint8_t *scratch = mp_alloc(MP_PATCH_BYTES, 1);
    mp_patch_link *links = mp_alloc(f->count, sizeof *links);
    int rc = scratch && links ? 0 : mp_fail_memory(err);

    for (size_t i = 0; rc == 0 && i < f->num_items; i++) {
        mp_delta_item *item = &f->items[i];

        find_links(f, item, links);
        rc = measure(&links[0], &item->bytes, scratch, err);
        /* The head of a frame may claim anything. Up to here mp_spool_room cannot overflow, and the
         * places that follow from it are checked when they are given. */
        if (rc == 0 && item->bytes > INT64_MAX / 2)
            rc =
                mp_fail(err, MP_ERR_INPUT, "%s: tensor \"%s\": its stream says it holds %llu bytes",
                        links[0].version->dir, item->name, (unsigned long long)item->bytes);
        item->room = mp_spool_room(item->bytes);
    }
    free(links);
    free(scratch);
    return rc;
}

static int write_fold(folding *f, const char *out, const mp_delta_options *options,
                      mp_run_mode mode, const mp_context *context, mp_delta_report *report,
                      mp_error *err)
{
    const mp_delta_version *first = &f->chain[0], *last = &f->chain[f->count - 1];
    mp_delta_output output = {
        .terms = last->terms,
        .like = last,
        .items = f->items,
        .spool = &f->spool,
        .max_shard_size = options->max_shard_size,
        .files = &f->files,
    };
    int rc = mp_spool_open(&f->spool, out, err);

    for (size_t i = 0; rc == 0 && i < f->count; i++)
        /* Of files with the same path the last one stays. */
        rc = mp_carried_add(&f->files, &f->chain[i], false, err);
    /* From the version before the first delta to that of the last. */
    output.terms.base = first->terms.base;
    if (rc == 0)
        rc = mp_spool_place(&f->spool, f->items, f->num_items, err);
    if (rc == 0)
        rc = mp_delta_make_all(make_fold, f, f->items, f->num_items, context, err);
    if (rc != 0)
        return rc;
    mp_delta_sum_up(&output.terms, f->items, f->num_items, report);
    output.num_items = mp_delta_keep_changed(f->items, f->num_items);
    return mp_delta_publish(&output, out, mode, context, err);
}

int mp_delta_fold(const char *const *deltas, size_t count, const char *out,
                  const mp_delta_options *given, mp_run_mode mode, const mp_context *context,
                  mp_delta_report *report, mp_error *err)
{
    mp_delta_options options;
    folding f = {.spool.fd = -1};

    err = MP_NEVER_NULL(err);
    if (report)
        *report = (mp_delta_report){0};
    if (mp_options_take("mp_delta_options", &options, sizeof options, given, err) != 0)
        return err->code;
    if (count == 0)
        return mp_fail(err, MP_ERR_USAGE, "there is no delta to fold");
    int rc = mp_delta_level(&options, &f.level, err);
    if (rc == 0)
        rc = mp_delta_check_out(out, mode, err);
    if (rc == 0)
        rc = open_chain(&f, deltas, count, context, err);
    if (rc == 0)
        rc = list_items(&f, err);
    if (rc == 0)
        rc = measure_items(&f, err);
    if (rc == 0)
        rc = write_fold(&f, out, &options, mode, context, report, err);
    for (size_t i = 0; i < f.count; i++)
        mp_version_release(&f.chain[i]);
    free(f.chain);
    free(f.items);
    mp_carried_release(&f.files);
    mp_spool_release(&f.spool);
    return rc;
}
