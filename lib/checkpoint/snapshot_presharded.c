/* SPDX-License-Identifier: Apache-2.0 */
/* SGLang's presharded dumps. checksum.json is the plan: which file has which content, by its hash,
 * and under which names each rank reads it. READY is written last.
 *
 *     files            [{"filename": "model-00000-common.safetensor",
 *                        "tensors": [{"stored_key": HASH, "size": 1024}, ...]}, ...]
 *     rank_to_reads    {"0": [{"filename": ..., "stored_key": HASH, "name": NAME}, ...], ...}
 *     rank_checksums   {"0": "0123456789abcdef", ...}     sum of hashes of "NAME:HASH", 64 bits
 *
 * A HASH covers shape and type as Python prints them, "(2, 3)torch.int8", and then the bytes.
 * Content that ranks share is stored once, under its hash, and read under many names. The plan is
 * believed only as far as the files confirm it: every key it lists is in its file with the right
 * size, every tensor of a file is listed, and every read leads to one. Whether content has its hash
 * is left to verify, which reads the bytes. File names are not paths, and ranks are below
 * world_size. The plan is a jansson tree, and except for opening files everything runs on one
 * thread. */
#include "checkpoint/snapshot.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"

#define SIG_DIGITS 16

typedef struct plan {
    mp_snapshot *s;
    json_t *json;
    json_t *file_numbers; /* {filename: number} */
    const char **names;   /* of files */
    bool *wanted;         /* the same: a rank that is looked at reads it */
    uint64_t world_size;
} plan;

/* ------------------------------------------------------------------------
 * READY
 */

static int check_ready(const plan *p, mp_error *err)
{
    char *path = mp_path_join(p->s->dir, MP_PRESHARDED_READY);
    uint64_t world_size;
    mp_error why;
    json_t *json = NULL;
    int rc = 0;

    if (!path)
        return mp_fail_memory(err);
    if (!mp_path_exists(path)) {
        mp_snapshot_found(p->s, false, -1, NULL, "%s is missing: the dump was not finished",
                          MP_PRESHARDED_READY);
    } else {
        rc = mp_json_load_python(path, MP_SNAPSHOT_TEXT_MAX, &json, &why);
        if (rc == 0)
            rc = mp_json_get_u64(json, "world_size", MP_PRESHARDED_READY, &world_size, &why);
        if (rc == MP_ERR_IO)
            rc = mp_fail(err, MP_ERR_IO, "%s", why.message);
        else if (rc != 0)
            mp_snapshot_found(p->s, false, -1, NULL, "%s", why.message);
        else if (world_size != p->world_size)
            mp_snapshot_found(p->s, false, -1, NULL,
                              "%s says world_size %" PRIu64 ", %s says %" PRIu64,
                              MP_PRESHARDED_READY, world_size, MP_PRESHARDED_PLAN, p->world_size);
        /* A malformed READY says something about the dump but nothing about its tensors:
         * continue. */
        if (rc != MP_ERR_IO)
            rc = 0;
    }
    json_decref(json);
    free(path);
    return rc;
}

/* ------------------------------------------------------------------------
 * The plan's configuration
 */

/* Whether a member that is called a backend says MegaMoE. */
static bool says_megamoe(const json_t *json, const char *key)
{
    const char *text = json_string_value(json), *member;
    json_t *value;

    if (text)
        return strstr(key, "backend") && (strstr(text, "megamoe") || strstr(text, "mega_moe"));
    json_object_foreach((json_t *)json, member, value)
    {
        if (says_megamoe(value, member))
            return true;
    }
    return false;
}

/* What the configuration says of where experts are. Of a pipeline, each stage has its own layers
 * on as many ranks in a row. */
static int read_config(const plan *p, const json_t *config, mp_error *err)
{
    const json_t *pp = json_object_get(config, "pp");
    const json_t *redundant = json_object_get(config, "ep_num_redundant_experts");
    const char *location = json_string_value(json_object_get(config, "init_expert_location"));
    json_int_t stages = json_is_integer(pp) ? json_integer_value(pp) : 1;
    mp_snapshot *s = p->s;

    s->megamoe = says_megamoe(config, "");
    if (stages < 1 || p->world_size % (uint64_t)stages != 0)
        mp_snapshot_found(s, false, -1, NULL,
                          "%s says pp %" JSON_INTEGER_FORMAT " of world_size %" PRIu64,
                          MP_PRESHARDED_PLAN, stages, p->world_size);
    else
        s->stages = (uint32_t)stages;
    if (json_is_integer(redundant) && json_integer_value(redundant) >= 0)
        s->redundant = (uint64_t)json_integer_value(redundant);
    if (location && !(s->expert_location = mp_format("%s", location)))
        return mp_fail_memory(err);
    return 0;
}

/* The name of the directory ends in the first digits of the digest of its configuration. */
static int check_sig(const plan *p, const json_t *config, mp_error *err)
{
    char *real = realpath(p->s->dir, NULL), *text = mp_json_text_python(config);
    const char *base = real ? mp_path_base(real) : "", *sig = strstr(base, "-sig-");
    char digest[MP_SHA_TEXT];
    mp_sha sha;
    int rc = text ? 0 : mp_fail_memory(err);

    if (rc == 0 && sig && strlen(sig + 5) == SIG_DIGITS) {
        mp_sha1_begin(&sha);
        mp_sha_update(&sha, text, strlen(text));
        mp_sha_end(&sha, digest);
        digest[SIG_DIGITS] = '\0';
        if (strcmp(sig + 5, digest) != 0)
            mp_snapshot_found(p->s, false, -1, NULL,
                              "the directory's sig is %s, that of its shard_config is %s", sig + 5,
                              digest);
    }
    free(real);
    free(text);
    return rc;
}

/* ------------------------------------------------------------------------
 * Files
 */

static int read_files(plan *p, json_t *files, mp_error *err)
{
    size_t count = json_array_size(files);

    p->names = mp_alloc(count, sizeof *p->names);
    p->file_numbers = json_object();
    if (!p->names || !p->file_numbers)
        return mp_fail_memory(err);
    for (size_t i = 0; i < count; i++) {
        const json_t *file = json_array_get(files, i);

        if (mp_json_get_string(file, "filename", MP_PRESHARDED_PLAN ": an entry of \"files\"",
                               &p->names[i], err) != 0)
            return err->code;
        if (!mp_snapshot_plain_name(p->names[i]))
            return mp_fail(err, MP_ERR_INPUT,
                           "%s: \"%s\" is not the name of a file in the directory",
                           MP_PRESHARDED_PLAN, p->names[i]);
        if (json_object_get(p->file_numbers, p->names[i]))
            return mp_fail(err, MP_ERR_INPUT, "%s: file \"%s\" is listed twice", MP_PRESHARDED_PLAN,
                           p->names[i]);
        if (json_object_set_new(p->file_numbers, p->names[i], json_integer((json_int_t)i)) != 0)
            return mp_fail_memory(err);
    }
    return 0;
}

/* Marks files that the reads of ranks name; what else is wrong with these is found later. */
static int mark_wanted(plan *p, mp_error *err)
{
    json_t *reads, *read;
    size_t i;

    if (mp_json_get_object(p->json, "rank_to_reads", MP_PRESHARDED_PLAN, &reads, err) != 0)
        return err->code;
    for (size_t r = 0; r < p->s->num_ranks; r++) {
        char number[16];

        snprintf(number, sizeof number, "%u", p->s->ranks[r].rank);
        json_array_foreach(p->s->ranks[r].selected ? json_object_get(reads, number) : NULL, i, read)
        {
            const char *name = json_string_value(json_object_get(read, "filename"));
            const json_t *file = name ? json_object_get(p->file_numbers, name) : NULL;

            if (file)
                p->wanted[json_integer_value(file)] = true;
        }
    }
    return 0;
}

/* Opens the files: all of them, or those that the ranks of the list read. */
static int open_files(plan *p, const char *ranks, const mp_context *context, mp_error *err)
{
    size_t count = json_array_size(json_object_get(p->json, "files"));
    const char **names = mp_alloc(count, sizeof *names);
    int rc = 0;

    p->wanted = mp_alloc_zeroed(count, sizeof *p->wanted);
    if (!names || !p->wanted)
        rc = mp_fail_memory(err);
    for (size_t i = 0; rc == 0 && i < count; i++)
        p->wanted[i] = !ranks;
    if (rc == 0 && ranks)
        rc = mark_wanted(p, err);
    for (size_t i = 0; rc == 0 && i < count; i++)
        names[i] = p->wanted[i] ? p->names[i] : NULL;
    if (rc == 0)
        rc = mp_snapshot_open_files(p->s, names, count, context, err);
    free(names);
    return rc;
}

static bool is_key(const char *key)
{
    size_t length = strlen(key);

    return (length == 32 || length == 40) && strspn(key, "0123456789abcdef") == length;
}

/* What the plan says of a file against what is in it. */
static int check_file(const plan *p, size_t number, mp_error *err)
{
    const json_t *file = json_array_get(json_object_get(p->json, "files"), number);
    const mp_checkpoint *held = &p->s->files[number];
    json_t *tensors, *listed = json_object();
    int rc = listed ? mp_json_get_array(file, "tensors", p->names[number], &tensors, err)
                    : mp_fail_memory(err);

    for (size_t i = 0; rc == 0 && i < json_array_size(tensors); i++) {
        const json_t *entry = json_array_get(tensors, i);
        const mp_tensor *tensor;
        const char *key;
        uint64_t size;

        rc = mp_json_get_string(entry, "stored_key", p->names[number], &key, err);
        if (rc == 0)
            rc = mp_json_get_u64(entry, "size", p->names[number], &size, err);
        if (rc == 0 && json_object_set_new(listed, key, json_true()) != 0)
            rc = mp_fail_memory(err);
        /* A missing file was already reported once; do not repeat that for each of its tensors. */
        if (rc != 0 || held->num_shards == 0)
            continue;
        tensor = mp_checkpoint_find(held, key);
        if (!tensor)
            mp_snapshot_found(p->s, false, -1, NULL, "%s: %s is missing, %s lists it",
                              p->names[number], key, MP_PRESHARDED_PLAN);
        else if (tensor->bytes != size)
            mp_snapshot_found(p->s, false, -1, NULL,
                              "%s: %s has %" PRIu64 " byte%s, %s says %" PRIu64, p->names[number],
                              key, tensor->bytes, mp_plural(tensor->bytes), MP_PRESHARDED_PLAN,
                              size);
    }
    for (size_t i = 0; rc == 0 && i < held->num_tensors; i++)
        if (!json_object_get(listed, held->tensors[i].name))
            mp_snapshot_found(p->s, false, -1, NULL, "%s: %s is not in %s", p->names[number],
                              held->tensors[i].name, MP_PRESHARDED_PLAN);
        else if (!is_key(held->tensors[i].name))
            mp_snapshot_found(p->s, false, -1, NULL, "%s: \"%s\" is not a hash of content",
                              p->names[number], held->tensors[i].name);
    json_decref(listed);
    return rc;
}

/* Whatever lies about and is not the plan's. */
static int check_entries(const plan *p, mp_error *err)
{
    char **names;
    size_t count;
    int rc = mp_snapshot_entries(p->s->dir, &names, &count, err);

    for (size_t i = 0; rc == 0 && i < count; i++) {
        struct stat st;
        char *path;

        if (strcmp(names[i], MP_PRESHARDED_PLAN) == 0 ||
            strcmp(names[i], MP_PRESHARDED_READY) == 0 ||
            json_object_get(p->file_numbers, names[i]))
            continue;
        path = mp_path_join(p->s->dir, names[i]);
        if (!path)
            rc = mp_fail_memory(err);
        else if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
            mp_snapshot_found(p->s, false, -1, NULL, "%s: a directory left by an unfinished dump",
                              names[i]);
        else
            mp_snapshot_found(p->s, false, -1, NULL, "%s: a file that %s does not list", names[i],
                              MP_PRESHARDED_PLAN);
        free(path);
    }
    free(names);
    return rc;
}

/* ------------------------------------------------------------------------
 * Ranks
 */

/* The first 64 bits of the hash of "name:key". */
static int hash_read(const char *name, const char *key, uint64_t *sum, mp_error *err)
{
    mp_key_hash hash;
    char text[MP_SHA_TEXT];

    if (mp_key_hash_begin(&hash, strlen(key) == 40, err) != 0)
        return err->code;
    mp_key_hash_update(&hash, name, strlen(name));
    mp_key_hash_update(&hash, ":", 1);
    mp_key_hash_update(&hash, key, strlen(key));
    mp_key_hash_end(&hash, text);
    text[16] = '\0';
    /* Modulo 2^64, in any order: this is how the engine adds them up. */
    *sum += strtoull(text, NULL, 16);
    return 0;
}

static int add_read(const plan *p, mp_snapshot_rank *rank, size_t *room, const json_t *read,
                    uint64_t *sum, mp_error *err)
{
    const char *filename, *key, *name;
    static const char what[] = MP_PRESHARDED_PLAN ": an entry of \"rank_to_reads\"";

    if (mp_json_get_string(read, "filename", what, &filename, err) != 0 ||
        mp_json_get_string(read, "stored_key", what, &key, err) != 0 ||
        mp_json_get_string(read, "name", what, &name, err) != 0 ||
        hash_read(name, key, sum, err) != 0)
        return err->code;
    const json_t *number = json_object_get(p->file_numbers, filename);
    if (!number) {
        mp_snapshot_found(p->s, false, rank->rank, name,
                          "is read from %s, which is not a file of %s", filename,
                          MP_PRESHARDED_PLAN);
        return 0;
    }
    size_t i = (size_t)json_integer_value(number);
    const mp_tensor *found = mp_checkpoint_find(&p->s->files[i], key);
    if (!found) {
        mp_snapshot_found(p->s, false, rank->rank, name,
                          "is read as %s from %s, which has no such tensor", key, filename);
        return 0;
    }
    mp_tensor tensor = *found;
    tensor.shard = (uint32_t)i;
    return mp_snapshot_add(p->s, rank, room, name, &tensor, err);
}

static int read_rank(const plan *p, mp_snapshot_rank *rank, json_t *reads, json_t *checksums,
                     mp_error *err)
{
    char number[16], have[24];
    uint64_t sum = 0;
    size_t room = 0;

    snprintf(number, sizeof number, "%u", rank->rank);
    const json_t *list = json_object_get(reads, number);
    const char *want = json_string_value(json_object_get(checksums, number));
    if (!json_is_array(list)) {
        mp_snapshot_found(p->s, false, rank->rank, NULL, "%s lists no tensors for it to read",
                          MP_PRESHARDED_PLAN);
        return 0;
    }
    for (size_t i = 0; i < json_array_size(list); i++)
        if (add_read(p, rank, &room, json_array_get(list, i), &sum, err) != 0)
            return err->code;
    mp_snapshot_sort(p->s, rank);
    snprintf(have, sizeof have, "%016" PRIx64, sum);
    if (!want)
        mp_snapshot_found(p->s, true, rank->rank, NULL, "%s has no checksum of this rank",
                          MP_PRESHARDED_PLAN);
    else if (strcmp(have, want) != 0)
        mp_snapshot_found(p->s, true, rank->rank, NULL,
                          "the checksum of its reads is %s, %s says %s", have, MP_PRESHARDED_PLAN,
                          want);
    return 0;
}

static int read_ranks(const plan *p, mp_error *err)
{
    json_t *reads, *checksums;
    const char *key;
    json_t *value;

    if (mp_json_get_object(p->json, "rank_to_reads", MP_PRESHARDED_PLAN, &reads, err) != 0 ||
        mp_json_get_object(p->json, "rank_checksums", MP_PRESHARDED_PLAN, &checksums, err) != 0)
        return err->code;
    json_object_foreach(reads, key, value)
    {
        char *end;
        unsigned long rank = strtoul(key, &end, 10);

        if (*end != '\0' || !isdigit((unsigned char)key[0]) || rank >= p->world_size)
            mp_snapshot_found(p->s, false, -1, NULL,
                              "%s has reads of rank \"%s\" of %" PRIu64 " rank%s",
                              MP_PRESHARDED_PLAN, key, p->world_size, mp_plural(p->world_size));
    }
    for (size_t r = 0; r < p->s->num_ranks; r++)
        if (p->s->ranks[r].selected && read_rank(p, &p->s->ranks[r], reads, checksums, err) != 0)
            return err->code;
    return 0;
}

/* ------------------------------------------------------------------------
 * All of it
 */

static int read_plan(plan *p, const char *ranks, const mp_context *context, mp_error *err)
{
    json_t *files;
    const json_t *config = json_object_get(p->json, "shard_config");
    uint64_t version;

    if (mp_json_get_u64(p->json, "version", MP_PRESHARDED_PLAN, &version, err) != 0)
        return err->code;
    if (version != 1)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: version %" PRIu64 ", expected 1",
                       MP_PRESHARDED_PLAN, version);
    if (mp_json_get_u64(p->json, "world_size", MP_PRESHARDED_PLAN, &p->world_size, err) != 0 ||
        mp_json_get_array(p->json, "files", MP_PRESHARDED_PLAN, &files, err) != 0 ||
        mp_snapshot_make_ranks(p->s, p->world_size, ranks, err) != 0 || check_ready(p, err) != 0 ||
        read_files(p, files, err) != 0 || open_files(p, ranks, context, err) != 0 ||
        check_entries(p, err) != 0)
        return err->code;
    if (json_is_object(config) &&
        (read_config(p, config, err) != 0 || check_sig(p, config, err) != 0))
        return err->code;
    for (size_t i = 0; i < p->s->num_files; i++)
        if (check_file(p, i, err) != 0)
            return err->code;
    return read_ranks(p, err);
}

int mp_snapshot_open_presharded(mp_snapshot *s, const char *ranks, const mp_context *context,
                                mp_error *err)
{
    plan p = {.s = s};
    char *path = mp_path_join(s->dir, MP_PRESHARDED_PLAN);
    int rc = path ? 0 : mp_fail_memory(err);

    if (rc == 0 && !mp_path_exists(path))
        rc = mp_fail(err, MP_ERR_INPUT, "%s is missing", MP_PRESHARDED_PLAN);
    if (rc == 0)
        rc = mp_json_load_python(path, MP_SNAPSHOT_TEXT_MAX, &p.json, err);
    if (rc == 0 && !json_is_object(p.json))
        rc = mp_fail(err, MP_ERR_INPUT, "%s: expected an object", MP_PRESHARDED_PLAN);
    if (rc == 0)
        rc = read_plan(&p, ranks, context, err);
    json_decref(p.json);
    json_decref(p.file_numbers);
    free(p.names);
    free(p.wanted);
    free(path);
    return rc;
}
