/* SPDX-License-Identifier: Apache-2.0 */
/* Opening versions: which parts there are, and what their indexes say. What a directory is follows
 * from the files in it, never from its name:
 *
 *   moepack.json                   a pack, whose parts are the ranks that are here
 *   pack.json                      the delta of a pack, with ranks as well
 *   model.safetensors.index.json   a delta, if its metadata has "delta_encoding"; else a checkpoint
 *   otherwise                      a checkpoint without an index
 *
 * An index says {"metadata": {"version": "000007", "base_version": "000006", "delta_encoding":
 * "xor", "compression_format": "zstd", "checksum_format": "xxh3-128", ...}, "weight_map": {...}}.
 * Tensors of a delta are streams, U8 [bytes], with checksums in their shard's metadata. All of that
 * is checked here, so that an open version is consistent in itself. A delta without an index is
 * still being written. A full version without a number takes it from a name like "weight_v000007".
 * One thread. */
#include "delta/version.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "checkpoint/shard.h"
#include "delta/checksum.h"
#include "pack/manifest.h"

#define INDEX_LIMIT    ((uint64_t)1 << 30)
#define MANIFEST_LIMIT ((uint64_t)1 << 30)
#define COMPRESSION    "zstd"
#define DIR_PREFIX     "weight_v"

const char *mp_delta_encoding_name(mp_delta_encoding encoding)
{
    static const char *const names[] = {"auto", "xor", "overwrite"};

    return names[encoding];
}

const char *mp_part_text(const mp_version_part *part, char text[MP_PART_TEXT])
{
    text[0] = '\0';
    if (part->name)
        snprintf(text, MP_PART_TEXT, "%s: ", part->name);
    return text;
}

/* ------------------------------------------------------------------------
 * What an index says
 */

/* A version number: "000007", or the number itself, as some trainers write it. */
static bool get_number(const json_t *metadata, const char *key, uint64_t *number)
{
    const json_t *value = json_object_get(metadata, key);
    const char *text = json_string_value(value);

    if (json_is_integer(value) && json_integer_value(value) >= 0) {
        *number = (uint64_t)json_integer_value(value);
        return true;
    }
    /* 18 digits fit 64 bits. */
    if (!text || text[0] == '\0' || strlen(text) > 18 || strspn(text, "0123456789") != strlen(text))
        return false;
    *number = strtoull(text, NULL, 10);
    return true;
}

static int get_word(const json_t *metadata, const char *key, const char **word, mp_error *err)
{
    *word = json_string_value(json_object_get(metadata, key));
    return *word ? 0 : mp_fail(err, MP_ERR_INPUT, "\"%s\" is missing or not a string", key);
}

static int get_terms(const json_t *metadata, mp_delta_terms *terms, mp_error *err)
{
    const char *encoding, *compression, *checksum;

    if (!get_number(metadata, "version", &terms->version))
        return mp_fail(err, MP_ERR_INPUT, "\"version\" is missing or not a number");
    if (!get_number(metadata, "base_version", &terms->base))
        return mp_fail(err, MP_ERR_INPUT, "\"base_version\" is missing or not a number");
    if (get_word(metadata, "delta_encoding", &encoding, err) != 0 ||
        get_word(metadata, "compression_format", &compression, err) != 0 ||
        get_word(metadata, "checksum_format", &checksum, err) != 0)
        return MP_ERR_INPUT;
    if (strcmp(encoding, mp_delta_encoding_name(MP_DELTA_XOR)) == 0)
        terms->encoding = MP_DELTA_XOR;
    else if (strcmp(encoding, mp_delta_encoding_name(MP_DELTA_OVERWRITE)) == 0)
        terms->encoding = MP_DELTA_OVERWRITE;
    else
        return mp_fail(err, MP_ERR_INPUT, "delta_encoding \"%s\" is unknown", encoding);
    if (strcmp(compression, COMPRESSION) != 0)
        return mp_fail(err, MP_ERR_INPUT, "compression_format \"%s\" is unknown", compression);
    return mp_checksum_parse(checksum, &terms->checksum, err);
}

/* What an index says of the version. */
typedef struct index_facts {
    bool delta, numbered;
    bool empty; /* no tensor changed */
    mp_delta_terms terms;
} index_facts;

/* path: of the index. */
static int read_index(const char *path, index_facts *facts, mp_error *err)
{
    json_t *json;
    int rc = mp_json_load(path, INDEX_LIMIT, &json, err);

    *facts = (index_facts){0};
    if (rc != 0)
        return rc;
    const json_t *metadata = json_object_get(json, "metadata");
    const json_t *map = json_object_get(json, "weight_map");
    facts->delta = json_object_get(metadata, "delta_encoding") != NULL;
    facts->numbered = get_number(metadata, "version", &facts->terms.version);
    facts->empty = json_is_object(map) && json_object_size(map) == 0;
    if (facts->delta)
        rc = get_terms(metadata, &facts->terms, err);
    if (rc == 0 && facts->delta && !json_is_object(map))
        rc = mp_fail(err, MP_ERR_INPUT, "\"weight_map\" is missing or not an object");
    json_decref(json);
    return rc ? mp_error_prefix(err, "%s", MP_INDEX_NAME) : 0;
}

/* The number in a directory's name: "weight_v000007", as trainers call a version, or
 * "weight_v000007.full". */
static bool number_of_name(const char *dir, uint64_t *number)
{
    size_t end = strlen(dir), begin;

    while (end > 1 && dir[end - 1] == '/')
        end--;
    for (begin = end; begin > 0 && dir[begin - 1] != '/';)
        begin--;
    const char *digits = dir + begin + strlen(DIR_PREFIX);
    if (end - begin <= strlen(DIR_PREFIX) ||
        strncmp(dir + begin, DIR_PREFIX, strlen(DIR_PREFIX)) != 0)
        return false;
    size_t n = strspn(digits, "0123456789");
    /* "weight_v000007.full" too, but not "weight_v7b". */
    if (n == 0 || n > 18 || (digits + n < dir + end && digits[n] != '.'))
        return false;
    *number = strtoull(digits, NULL, 10);
    return true;
}

bool mp_is_delta(const char *dir)
{
    bool is = mp_exists_in(dir, MP_DELTA_PACK_NAME) && !mp_is_packed(dir);
    bool indexed = !is && mp_exists_in(dir, MP_INDEX_NAME), read = false;

    /* One that is malformed in what it says as a delta is one still. That memory was short cannot
     * be said here: it is tried twice, and where that fails, so does what comes next. */
    for (int attempt = 0; indexed && !read && attempt < 2; attempt++) {
        char *index = mp_path_join(dir, MP_INDEX_NAME);
        index_facts facts = {0};
        mp_error err;

        read = index && read_index(index, &facts, &err) != MP_ERR_IO;
        is = facts.delta;
        free(index);
    }
    return is;
}

/* ------------------------------------------------------------------------
 * Tensors of a delta
 */

/* Notes the checksums that a shard's metadata has of its tensors; other keys are not ours. */
static int note_sums(const mp_checkpoint *ckpt, size_t s, mp_delta_checksum kind, const char **sums,
                     mp_error *err)
{
    const mp_shard *shard = &ckpt->shards[s];

    for (size_t m = 0; m < shard->num_metadata; m++) {
        const char *key = shard->metadata[2 * m], *value = shard->metadata[2 * m + 1];
        const mp_tensor *tensor = mp_checkpoint_find(ckpt, key);

        /* A name that stands in another shard's metadata says nothing of this one. */
        if (!tensor || tensor->shard != s)
            continue;
        if (!mp_checksum_valid(kind, value))
            return mp_fail(err, MP_ERR_INPUT, "%s: tensor \"%s\": \"%s\" is no %s", shard->file,
                           key, value, mp_delta_checksum_name(kind));
        sums[tensor - ckpt->tensors] = value;
    }
    return 0;
}

static int check_tensors(mp_version_part *part, const mp_delta_terms *terms, mp_error *err)
{
    const mp_checkpoint *ckpt = &part->ckpt;

    part->sums = mp_alloc_zeroed(ckpt->num_tensors, sizeof *part->sums);
    if (!part->sums)
        return mp_fail_memory(err);
    for (size_t s = 0; s < ckpt->num_shards; s++)
        if (note_sums(ckpt, s, terms->checksum, part->sums, err) != 0)
            return err->code;
    for (size_t t = 0; t < ckpt->num_tensors; t++) {
        const mp_tensor *tensor = &ckpt->tensors[t];
        char shape[MP_SHAPE_TEXT];

        if (tensor->dtype != MP_U8 || tensor->rank != 1)
            return mp_fail(err, MP_ERR_INPUT, "%s: tensor \"%s\": %s %s, a stream is U8 [bytes]",
                           ckpt->shards[tensor->shard].file, tensor->name,
                           mp_dtype_name(tensor->dtype),
                           mp_shape_text(tensor->shape, tensor->rank, shape));
        if (!part->sums[t])
            return mp_fail(err, MP_ERR_INPUT, "%s: tensor \"%s\": the metadata has no checksum",
                           ckpt->shards[tensor->shard].file, tensor->name);
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * Parts
 */

static bool same_terms(const mp_delta_terms *a, const mp_delta_terms *b)
{
    return a->version == b->version && a->base == b->base && a->encoding == b->encoding &&
           a->checksum == b->checksum;
}

/* All parts say the same of the version. */
static int note_facts(mp_delta_version *v, const index_facts *facts, mp_error *err)
{
    if (v->num_parts == 0) {
        v->delta = facts->delta;
        v->numbered = facts->numbered;
        v->terms = facts->terms;
    } else if (v->delta != facts->delta || (v->delta && !same_terms(&v->terms, &facts->terms))) {
        return mp_fail(err, MP_ERR_INPUT, "%s: is not of the same version as %s", MP_INDEX_NAME,
                       v->parts[0].name);
    }
    return 0;
}

/* Opens a part in its place behind the others. name: taken over. */
static int open_part(mp_delta_version *v, const char *dir, char *name, bool published,
                     const mp_context *context, mp_error *err)
{
    mp_version_part *part = &v->parts[v->num_parts];
    char *path = mp_path_join(dir, MP_INDEX_NAME);
    index_facts facts = {0};
    int rc = path ? 0 : mp_fail_memory(err);

    part->name = name;
    if (rc == 0 && mp_path_exists(path))
        rc = read_index(path, &facts, err);
    else if (rc == 0 && published)
        rc = mp_fail(err, MP_ERR_INPUT,
                     "no %s: the version is not published, its index is written last",
                     MP_INDEX_NAME);
    free(path);
    if (rc == 0)
        rc = note_facts(v, &facts, err);
    /* Counted whatever has failed, so that releasing the version releases the part. */
    v->num_parts++;
    /* Nothing changed: there is no shard at all. */
    if (rc == 0 && !(facts.delta && facts.empty))
        rc = mp_checkpoint_open(&part->ckpt, dir, context, err);
    if (rc == 0 && facts.delta)
        rc = check_tensors(part, &facts.terms, err);
    return rc;
}

static int open_rank(mp_delta_version *v, uint32_t rank, const mp_context *context, mp_error *err)
{
    char name[MP_RANK_NAME_MAX];
    char *dir = mp_path_join(v->dir, mp_rank_name(rank, name)), *copy = mp_format("%s", name);
    int rc = dir && copy ? 0 : mp_fail_memory(err);

    if (rc != 0 || !mp_path_exists(dir)) { /* it is another node's */
        free(copy);
    } else {
        rc = open_part(v, dir, copy, true, context, err);
        if (rc != 0)
            mp_error_prefix(err, "%s", name);
    }
    free(dir);
    return rc;
}

/* A pack, or the delta of one: manifest is the name of its manifest. */
static int open_pack(mp_delta_version *v, const char *manifest, const mp_context *context,
                     mp_error *err)
{
    char *path = mp_path_join(v->dir, manifest);
    int rc = path ? mp_read_file(path, MANIFEST_LIMIT, &v->manifest, &v->manifest_bytes, err)
                  : mp_fail_memory(err);

    free(path);
    if (rc == 0)
        rc = mp_manifest_parse(&v->pack, v->manifest, v->manifest_bytes, err);
    if (rc == 0 && !(v->parts = mp_alloc_zeroed(v->pack.num_ranks, sizeof *v->parts)))
        rc = mp_fail_memory(err);
    for (size_t r = 0; rc == 0 && r < v->pack.num_ranks; r++)
        rc = open_rank(v, v->pack.ranks[r].rank, context, err);
    if (rc == 0 && v->num_parts == 0)
        rc = mp_fail(err, MP_ERR_INPUT, "none of the %zu ranks is present", v->pack.num_ranks);
    if (rc == 0 && v->delta != (strcmp(manifest, MP_DELTA_PACK_NAME) == 0))
        rc = mp_fail(err, MP_ERR_INPUT, "%s: ranks are %s", manifest,
                     v->delta ? "deltas, and a delta has none" : "no deltas");
    return rc;
}

int mp_version_open(mp_delta_version *v, const char *dir, bool published, const mp_context *context,
                    mp_error *err)
{
    char *pack = mp_path_join(dir, MP_DELTA_PACK_NAME);
    int rc;

    *v = (mp_delta_version){.dir = dir};
    if (pack && (mp_is_packed(dir) || mp_path_exists(pack))) {
        rc = open_pack(v, mp_is_packed(dir) ? MP_MANIFEST_NAME : MP_DELTA_PACK_NAME, context, err);
    } else {
        v->parts = mp_alloc_zeroed(1, sizeof *v->parts);
        rc = pack && v->parts ? open_part(v, dir, NULL, published, context, err)
                              : mp_fail_memory(err);
    }
    free(pack);
    if (rc == 0 && !v->numbered)
        v->numbered = number_of_name(dir, &v->terms.version);
    if (rc != 0) {
        if (rc != MP_ERR_IO) /* those name it */
            mp_error_prefix(err, "%s", dir);
        mp_version_release(v);
    }
    return rc;
}

void mp_version_release(mp_delta_version *v)
{
    for (size_t p = 0; p < v->num_parts; p++) {
        free(v->parts[p].name);
        free(v->parts[p].sums);
        mp_checkpoint_release(&v->parts[p].ckpt);
    }
    free(v->parts);
    free(v->manifest);
    mp_manifest_release(&v->pack);
    *v = (mp_delta_version){0};
}

size_t mp_version_part_named(const mp_delta_version *v, const char *name)
{
    for (size_t p = 0; p < v->num_parts; p++)
        if (!name || !v->parts[p].name ? name == v->parts[p].name
                                       : strcmp(v->parts[p].name, name) == 0)
            return p;
    return SIZE_MAX;
}

/* ------------------------------------------------------------------------
 * One version behind another
 */

static int check_same_pack(const mp_delta_version *v, const mp_delta_version *before, mp_error *err)
{
    const mp_manifest *a = &v->pack, *b = &before->pack;

    /* What decides where bytes of a slot are: only then can they be XORed. */
    if (strcmp(a->target, b->target) != 0 || a->target_version != b->target_version ||
        a->nz != b->nz || a->ep_size != b->ep_size || a->shared != b->shared)
        return mp_fail(err, MP_ERR_CHECK,
                       "%s: a pack for %s on %" PRIu64 " ranks, %s is one for %s on %" PRIu64
                       ": pack it again",
                       v->dir, a->target, a->ep_size, before->dir, b->target, b->ep_size);
    if (strcmp(a->placement_xxh3, b->placement_xxh3) != 0)
        return mp_fail(err, MP_ERR_CHECK, "%s: has another placement than %s: pack it again",
                       v->dir, before->dir);
    return 0;
}

int mp_version_check_alike(const mp_delta_version *v, const mp_delta_version *before, mp_error *err)
{
    if ((v->manifest != NULL) != (before->manifest != NULL))
        return mp_fail(err, MP_ERR_CHECK, "%s: is of a %s, %s is a %s", v->dir,
                       v->manifest ? "pack" : "checkpoint", before->dir,
                       before->manifest ? "pack" : "checkpoint");
    return v->manifest ? check_same_pack(v, before, err) : 0;
}

int mp_version_check_follows(const mp_delta_version *v, const mp_delta_version *before,
                             mp_error *err)
{
    int rc = mp_version_check_alike(v, before, err);

    if (rc == 0 && v->delta && before->numbered && v->terms.base != before->terms.version)
        rc = mp_fail(err, MP_ERR_CHECK,
                     "%s: changes version %06" PRIu64 ", %s is version %06" PRIu64, v->dir,
                     v->terms.base, before->dir, before->terms.version);
    return rc;
}
