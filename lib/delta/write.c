/* SPDX-License-Identifier: Apache-2.0 */
/* What changed from one full version to another.
 *
 * The first pass reads both versions once: it counts the bytes that differ, takes checksums, and
 * makes XOR streams on the way, which are what is wanted nearly always. Where the versions turn out
 * to differ in so little that positions take less, and where overwriting was asked for, a second
 * one reads what changed again. A tensor that has not changed costs reading it and nothing else.
 *
 * Versions have to have the same tensors with the same types and shapes; then both lists, sorted by
 * name, are the same, and tensor t of one is tensor t of the other. All that is unlike is collected
 * first, to be told at once.
 *
 * Tensors are compared on all threads, each with a piece of both versions in its scratch. An item
 * belongs to the thread that makes it; everything else is only read. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/options.h"
#include "delta/files.h"
#include "delta/patch.h"
#include "delta/publish.h"
#include "delta/spool.h"
#include "delta/xor.h"

#define POSITION_BYTES 4
#define COUNT_BYTES    4
/* Positions are of 32 bits. */
#define OVERWRITE_MAX (UINT64_C(1) << 32)

/* One byte in so many has to differ for XOR to be the smaller: below that, a change takes about as
 * much either way, and blocks of zeros between them come on top of it. Measured over the whole
 * version, as a delta has one encoding. */
#define SPARSE 20000u

typedef struct writing {
    mp_delta_version from, to;
    const mp_delta_options *options;
    mp_delta_terms terms;
    int level;
    mp_spool spool;
    mp_delta_item *items; /* by part, then as the new version's shards have them */
    size_t num_items;
    mp_carried files;
} writing;

/* ------------------------------------------------------------------------
 * The same tensors
 */

static bool same_shape(const mp_tensor *a, const mp_tensor *b)
{
    return a->dtype == b->dtype && a->rank == b->rank &&
           memcmp(a->shape, b->shape, a->rank * sizeof *a->shape) == 0;
}

/* Compares tensors of a part; both are sorted by name. */
static void compare_parts(const mp_version_part *from, const mp_version_part *to,
                          mp_problems *unlike)
{
    const mp_checkpoint *a = &from->ckpt, *b = &to->ckpt;
    char part[MP_PART_TEXT], was[MP_SHAPE_TEXT], is[MP_SHAPE_TEXT];
    size_t i = 0, j = 0;

    mp_part_text(to, part);
    while (i < a->num_tensors || j < b->num_tensors) {
        const mp_tensor *x = i < a->num_tensors ? &a->tensors[i] : NULL;
        const mp_tensor *y = j < b->num_tensors ? &b->tensors[j] : NULL;
        int order = !x ? 1 : !y ? -1 : strcmp(x->name, y->name);

        if (order < 0)
            mp_problem(unlike, "%stensor \"%s\": is gone", part, x->name);
        else if (order > 0)
            mp_problem(unlike, "%stensor \"%s\": is new", part, y->name);
        else if (!same_shape(x, y))
            mp_problem(unlike, "%stensor \"%s\": was %s %s, is %s %s", part, x->name,
                       mp_dtype_name(x->dtype), mp_shape_text(x->shape, x->rank, was),
                       mp_dtype_name(y->dtype), mp_shape_text(y->shape, y->rank, is));
        i += order <= 0;
        j += order >= 0;
    }
}

static int compare_versions(const writing *w, mp_problems *unlike, mp_error *err)
{
    for (size_t p = 0; p < w->to.num_parts; p++) {
        size_t f = mp_version_part_named(&w->from, w->to.parts[p].name);

        if (f == SIZE_MAX)
            return mp_fail(err, MP_ERR_INPUT, "%s: %s is not in \"%s\"", w->to.dir,
                           w->to.parts[p].name, w->from.dir);
        compare_parts(&w->from.parts[f], &w->to.parts[p], unlike);
    }
    for (size_t p = 0; p < w->from.num_parts; p++)
        if (mp_version_part_named(&w->to, w->from.parts[p].name) == SIZE_MAX)
            return mp_fail(err, MP_ERR_INPUT, "%s: %s is not in \"%s\"", w->from.dir,
                           w->from.parts[p].name, w->to.dir);
    if (unlike->count == 0)
        return 0;
    return mp_fail(err, MP_ERR_CHECK,
                   "%" PRIu64 " of the tensors are not those of \"%s\" (%s): a full version is "
                   "needed",
                   unlike->count, w->from.dir, unlike->text[0] ? unlike->text[0] : "");
}

static int item_order(const void *a, const void *b)
{
    const mp_delta_item *x = a, *y = b;

    if (x->part != y->part)
        return x->part < y->part ? -1 : 1;
    if (x->to->shard != y->to->shard)
        return x->to->shard < y->to->shard ? -1 : 1;
    if (x->to->offset != y->to->offset)
        return x->to->offset < y->to->offset ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int list_items(writing *w, mp_error *err)
{
    size_t count = 0;

    for (size_t p = 0; p < w->to.num_parts; p++)
        count += w->to.parts[p].ckpt.num_tensors;
    w->items = mp_alloc_zeroed(count, sizeof *w->items);
    if (!w->items)
        return mp_fail_memory(err);
    for (size_t p = 0; p < w->to.num_parts; p++) {
        const mp_checkpoint *to = &w->to.parts[p].ckpt;
        size_t f = mp_version_part_named(&w->from, w->to.parts[p].name);

        for (size_t t = 0; t < to->num_tensors; t++)
            w->items[w->num_items++] = (mp_delta_item){
                .name = to->tensors[t].name,
                .from = &w->from.parts[f].ckpt.tensors[t], /* both by name, and the same names */
                .to = &to->tensors[t],
                .part = p,
                .bytes = to->tensors[t].bytes,
                .room = mp_spool_room(to->tensors[t].bytes),
            };
    }
    qsort(w->items, w->num_items, sizeof *w->items, item_order);
    return 0;
}

/* ------------------------------------------------------------------------
 * Streams
 */

static int read_both(const writing *w, const mp_delta_item *item, uint64_t at, size_t n,
                     uint8_t *old, uint8_t *new, mp_error *err)
{
    const mp_version_part *to = &w->to.parts[item->part];
    size_t f = mp_version_part_named(&w->from, to->name);
    int rc = mp_tensor_read(&w->from.parts[f].ckpt, item->from, at, n, old, err);

    if (rc != 0)
        return mp_error_prefix(err, "%s", w->from.dir);
    rc = mp_tensor_read(&to->ckpt, item->to, at, n, new, err);
    return rc ? mp_error_prefix(err, "%s", w->to.dir) : 0;
}

/* The first pass over a tensor. */
static int make_xor(const void *user, mp_delta_item *item, uint8_t *scratch, mp_error *err)
{
    const writing *w = user;
    bool wanted = w->options->encoding != MP_DELTA_OVERWRITE;
    uint8_t *old = scratch, *new = old + MP_PATCH_BYTES;
    mp_spool_stream stream;
    mp_checksum sum;
    int rc = mp_checksum_begin(&sum, w->terms.checksum, err);

    item->changed = 0;
    mp_spool_begin(&stream, &w->spool, item, item->bytes, w->level);
    for (uint64_t at = 0; rc == 0 && at < item->bytes; at += MP_PATCH_BYTES) {
        size_t n = item->bytes - at < MP_PATCH_BYTES ? (size_t)(item->bytes - at) : MP_PATCH_BYTES;
        uint64_t changed = 0;

        rc = read_both(w, item, at, n, old, new, err);
        if (rc != 0)
            break;
        mp_checksum_update(&sum, new, n);
        /* memcmp is faster than counting, and most pieces are the same. */
        if (memcmp(old, new, n) != 0)
            changed = mp_xor_count(old, new, n);
        item->changed += changed;
        if (wanted)
            rc = changed > 0 ? mp_spool_put(&stream, old, n, err) : mp_spool_zeros(&stream, n, err);
    }
    mp_checksum_end(&sum, item->sum);
    if (rc == 0)
        rc = mp_spool_end(&stream, err);
    mp_spool_stream_release(&stream);
    return rc;
}

static void put_u32(uint8_t *to, uint64_t value)
{
    for (int i = 0; i < 4; i++)
        to[i] = (uint8_t)(value >> (8 * i));
}

/* Adds the positions of the bytes that differ, or these bytes, to a stream. buffer: of
 * MP_PATCH_BYTES. */
static int put_changes(mp_spool_stream *stream, const uint8_t *old, const uint8_t *new, uint64_t at,
                       size_t n, bool positions, uint8_t *buffer, mp_error *err)
{
    size_t width = positions ? POSITION_BYTES : 1, filled = 0;
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < n; i++) {
        if (old[i] == new[i])
            continue;
        if (positions)
            put_u32(buffer + filled, at + i);
        else
            buffer[filled] = new[i];
        filled += width;
        if (filled + width <= MP_PATCH_BYTES)
            continue;
        rc = mp_spool_put(stream, buffer, filled, err);
        filled = 0;
    }
    return rc == 0 && filled > 0 ? mp_spool_put(stream, buffer, filled, err) : rc;
}

/* The second pass over a tensor that changed: through it for the positions, then for the bytes. */
static int make_overwrite(const void *user, mp_delta_item *item, uint8_t *scratch, mp_error *err)
{
    const writing *w = user;
    uint8_t *old = scratch, *new = old + MP_PATCH_BYTES, *buffer = new + MP_PATCH_BYTES;
    /* changed is below 2^32: a larger tensor was refused by choose_encoding. Were the versions to
     * change between the passes, the stream would have another length than it pledged, which ending
     * it refuses. */
    uint64_t content = COUNT_BYTES + item->changed * (POSITION_BYTES + 1);
    uint8_t count[COUNT_BYTES];
    mp_spool_stream stream;
    int rc;

    put_u32(count, item->changed);
    mp_spool_begin(&stream, &w->spool, item, content, w->level);
    rc = mp_spool_put(&stream, count, sizeof count, err);
    /* Positions all come before bytes in the stream; reading twice is cheaper than keeping
     * either. */
    for (int pass = 0; rc == 0 && pass < 2; pass++) {
        for (uint64_t at = 0; rc == 0 && at < item->bytes; at += MP_PATCH_BYTES) {
            size_t n =
                item->bytes - at < MP_PATCH_BYTES ? (size_t)(item->bytes - at) : MP_PATCH_BYTES;

            rc = read_both(w, item, at, n, old, new, err);
            if (rc == 0 && memcmp(old, new, n) != 0)
                rc = put_changes(&stream, old, new, at, n, pass == 0, buffer, err);
        }
    }
    if (rc == 0)
        rc = mp_spool_end(&stream, err);
    mp_spool_stream_release(&stream);
    return rc;
}

/* Settles the encoding, by what the first pass has found, of items that changed. */
static int choose_encoding(writing *w, size_t changed, mp_error *err)
{
    uint64_t bytes = 0, differ = 0;
    const mp_delta_item *large = NULL;

    w->terms.encoding = w->options->encoding;
    for (size_t i = 0; i < w->num_items; i++)
        bytes += w->items[i].bytes;
    for (size_t i = 0; i < changed; i++) {
        differ += w->items[i].changed;
        if (w->items[i].bytes >= OVERWRITE_MAX)
            large = &w->items[i];
    }
    if (w->terms.encoding == MP_DELTA_OVERWRITE && large)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "tensor \"%s\": %" PRIu64 " bytes, positions are of 32 bits: use --encoding "
                       "xor",
                       large->name, large->bytes);
    if (w->terms.encoding == MP_DELTA_AUTO)
        w->terms.encoding =
            !large && differ > 0 && differ < bytes / SPARSE ? MP_DELTA_OVERWRITE : MP_DELTA_XOR;
    return 0;
}

static int make_streams(writing *w, const mp_context *context, mp_delta_report *report,
                        size_t *changed, mp_error *err)
{
    int rc = mp_spool_place(&w->spool, w->items, w->num_items, err);

    if (rc == 0)
        rc = mp_delta_make_all(make_xor, w, w->items, w->num_items, context, err);
    if (rc != 0)
        return rc;
    mp_delta_sum_up(&w->terms, w->items, w->num_items, report);
    *changed = mp_delta_keep_changed(w->items, w->num_items);
    rc = choose_encoding(w, *changed, err);
    if (rc == 0 && w->terms.encoding == MP_DELTA_OVERWRITE) {
        for (size_t i = 0; i < *changed; i++)
            w->items[i].room =
                mp_spool_room(COUNT_BYTES + w->items[i].changed * (POSITION_BYTES + 1));
        rc = mp_spool_place(&w->spool, w->items, *changed, err);
        if (rc == 0)
            rc = mp_delta_make_all(make_overwrite, w, w->items, *changed, context, err);
    }
    if (report) {
        report->encoding = w->terms.encoding;
        /* Of the second pass's streams, where there was one. */
        report->stored_bytes = 0;
        for (size_t i = 0; i < *changed; i++)
            report->stored_bytes += w->items[i].stored;
    }
    return rc;
}

/* ------------------------------------------------------------------------
 * The whole
 */

static int open_versions(writing *w, const char *from, const char *to, const mp_context *context,
                         mp_error *err)
{
    int rc = mp_version_open(&w->from, from, false, context, err);

    if (rc == 0)
        rc = mp_version_open(&w->to, to, false, context, err);
    if (rc == 0 && (w->from.delta || w->to.delta))
        rc = mp_fail(err, MP_ERR_USAGE, "\"%s\" is a delta: a delta is made from full versions",
                     w->from.delta ? from : to);
    if (rc == 0)
        rc = mp_version_check_follows(&w->to, &w->from, err);
    return rc;
}

static int write_delta(writing *w, const char *out, mp_run_mode mode, const mp_context *context,
                       mp_delta_report *report, mp_error *err)
{
    size_t changed = 0;
    int rc = list_items(w, err);

    if (rc == 0)
        rc = mp_carried_add(&w->files, &w->to, false, err);
    if (rc == 0)
        rc = mp_carried_drop_same(&w->files, w->from.dir, err);
    if (rc == 0)
        rc = mp_spool_open(&w->spool, out, err);
    if (rc == 0)
        rc = make_streams(w, context, report, &changed, err);
    if (rc != 0)
        return rc;
    const mp_delta_output output = {
        .terms = w->terms,
        .like = &w->to,
        .items = w->items,
        .num_items = changed,
        .spool = &w->spool,
        .max_shard_size = w->options->max_shard_size,
        .files = &w->files,
    };
    return mp_delta_publish(&output, out, mode, context, err);
}

int mp_delta_write(const char *from, const char *to, const char *out, const mp_delta_options *given,
                   mp_run_mode mode, const mp_context *context, mp_delta_report *report,
                   mp_error *err)
{
    mp_delta_options options;
    writing w = {.options = &options, .spool.fd = -1};
    mp_delta_report own = {0};

    err = MP_NEVER_NULL(err);
    if (report)
        *report = own;
    if (mp_options_take("mp_delta_options", &options, sizeof options, given, err) != 0)
        return err->code;
    if (options.version == 0)
        return mp_fail(err, MP_ERR_USAGE, "version 0 is the base: no delta leads to it");
    int rc = mp_delta_level(&options, &w.level, err);
    if (rc == 0)
        rc = mp_delta_check_out(out, mode, err);
    if (rc == 0)
        rc = open_versions(&w, from, to, context, err);
    if (rc == 0)
        rc = compare_versions(&w, report ? &report->unlike : &own.unlike, err);
    if (rc == 0) {
        w.terms = (mp_delta_terms){
            .version = options.version,
            /* A full version that does not say its number is taken to be the one before. */
            .base = w.from.numbered ? w.from.terms.version : options.version - 1,
            .checksum = options.checksum,
        };
        rc = write_delta(&w, out, mode, context, report, err);
    }
    mp_problems_release(&own.unlike);
    mp_spool_release(&w.spool);
    mp_carried_release(&w.files);
    free(w.items);
    mp_version_release(&w.from);
    mp_version_release(&w.to);
    return rc;
}
