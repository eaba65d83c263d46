/* SPDX-License-Identifier: Apache-2.0 */
/* moepack.json back to a value: the seal first, then member by member.
 *
 *     {
 *       "format_version": "1",
 *       ...
 *       "command": "repack hf out --target megamoe-w4a8 --ep 8",
 *       "xxh3": "5d41402abc4b2a76b9719d911017c592"
 *     }
 *
 * The last member is the digest of the text without it. It guards against damage and careless edits
 * but not against malice, since anyone can compute it. So everything else is checked as if there
 * were no seal: members have types, digests look like digests, a file name is not a path, ranks
 * ascend and are below ep_size, and words are ones that this version knows. An unknown word is
 * refused by name, as it may change what the rest means. Unknown keys are ignored, so later
 * versions can add harmless ones.
 *
 * A manifest is filled in the order of the text and can be released at any point, since lists are
 * zeroed and counts are set with them. Sizes are bounded when a shape is made of them (shape.c).
 * One thread. */
#include <moepack/artifact.h>

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/words.h"
#include "pack/manifest.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MANIFEST_LIMIT (1u << 30)

/* ------------------------------------------------------------------------
 * Release
 */

static void release_rank(mp_packed_rank *rank)
{
    for (size_t f = 0; f < rank->num_files; f++) {
        for (size_t t = 0; t < rank->files[f].num_tensors; t++)
            free(rank->files[f].tensors[t].name);
        free(rank->files[f].tensors);
        free(rank->files[f].name);
    }
    free(rank->files);
}

void mp_manifest_release(mp_manifest *m)
{
    char *strings[] = {m->tool_version, m->target, m->family, m->model_type, m->command};

    for (size_t i = 0; i < sizeof strings / sizeof strings[0]; i++)
        free(strings[i]);
    for (size_t i = 0; i < m->num_shards; i++)
        free(m->shards[i].name);
    for (size_t i = 0; i < m->num_layers; i++)
        free(m->layers[i]);
    for (size_t i = 0; i < m->num_ranks; i++)
        release_rank(&m->ranks[i]);
    for (size_t i = 0; i < m->num_errors; i++)
        free(m->errors[i].layer);
    mp_manifest_release_forms(m);
    free(m->shards);
    free(m->layers);
    free(m->ranks);
    free(m->errors);
    memset(m, 0, sizeof *m);
}

/* ------------------------------------------------------------------------
 * Typed members, copied
 */

int mp_manifest_string(const json_t *object, const char *key, char **copy, mp_error *err)
{
    const char *value;

    if (mp_json_get_string(object, key, MP_MANIFEST_NAME, &value, err) != 0)
        return err->code;
    *copy = strdup(value);
    return *copy ? 0 : mp_fail_memory(err);
}

static int get_optional_string(const json_t *object, const char *key, char **copy, mp_error *err)
{
    const json_t *value = json_object_get(object, key);

    return value && !json_is_null(value) ? mp_manifest_string(object, key, copy, err) : 0;
}

int mp_manifest_unknown(const char *what, const char *word, mp_error *err)
{
    return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: this version does not know %s \"%s\"",
                   MP_MANIFEST_NAME, what, word);
}

static int get_digest(const json_t *object, const char *key, mp_hex_digest hex, mp_error *err)
{
    const char *value;
    mp_digest digest;

    if (mp_json_get_string(object, key, MP_MANIFEST_NAME, &value, err) != 0)
        return err->code;
    if (!mp_digest_parse(value, &digest))
        return mp_fail(err, MP_ERR_INPUT, "%s: \"%s\" is not an XXH3-128 in hex", MP_MANIFEST_NAME,
                       key);
    strcpy(hex, value);
    return 0;
}

static int get_u64(const json_t *object, const char *key, uint64_t *value, mp_error *err)
{
    return mp_json_get_u64(object, key, MP_MANIFEST_NAME, value, err);
}

/* A number; `otherwise` where there is none, or null. JSON has no infinity, which is written as
 * null: `otherwise` says what that stands for. */
static int get_real(const json_t *object, const char *key, double otherwise, double *value,
                    mp_error *err)
{
    const json_t *json = json_object_get(object, key);

    if (json && !json_is_null(json) && !json_is_number(json))
        return mp_fail(err, MP_ERR_INPUT, "%s: \"%s\" is not a number", MP_MANIFEST_NAME, key);
    *value = json_is_number(json) ? json_number_value(json) : otherwise;
    return 0;
}

int mp_manifest_flag(const json_t *object, const char *key, bool *value, mp_error *err)
{
    const json_t *json = json_object_get(object, key);

    if (!json_is_boolean(json))
        return mp_fail(err, MP_ERR_INPUT, "%s: \"%s\" is not true or false", MP_MANIFEST_NAME, key);
    *value = json_is_true(json);
    return 0;
}

/* The count is set last: until there is zeroed memory for the list, releasing must not touch it. */
int mp_manifest_list(const json_t *object, const char *key, size_t size, json_t **array,
                     void **things, size_t *count, mp_error *err)
{
    if (mp_json_get_array(object, key, MP_MANIFEST_NAME, array, err) != 0)
        return err->code;
    *things = mp_alloc_zeroed(json_array_size(*array), size);
    if (!*things)
        return mp_fail_memory(err);
    *count = json_array_size(*array);
    return 0;
}

/* ------------------------------------------------------------------------
 * Parts
 */

/* The rules of what was requantized. */
static int read_rules(const json_t *json, mp_manifest *m, mp_error *err)
{
    const char *rounding, *scale_rule;

    if (mp_json_get_string(json, "rounding", MP_MANIFEST_NAME, &rounding, err) != 0 ||
        mp_json_get_string(json, "scale_rule", MP_MANIFEST_NAME, &scale_rule, err) != 0 ||
        get_real(json, "amax_floor", 0, &m->amax_floor, err) != 0)
        return err->code;
    if (!mp_rounding_parse(rounding, &m->rounding))
        return mp_manifest_unknown("rounding", rounding, err);
    if (!mp_scale_rule_parse(scale_rule, &m->scale_rule))
        return mp_manifest_unknown("scale_rule", scale_rule, err);
    if (!(m->amax_floor >= 0))
        return mp_fail(err, MP_ERR_INPUT, "%s: amax_floor %g is negative", MP_MANIFEST_NAME,
                       m->amax_floor);
    return 0;
}

static int read_quantization(const json_t *root, mp_manifest *m, mp_error *err)
{
    const char *source, *target;
    json_t *json;

    if (mp_json_get_object(root, "quantization", MP_MANIFEST_NAME, &json, err) != 0 ||
        mp_json_get_string(json, "source", MP_MANIFEST_NAME, &source, err) != 0 ||
        mp_json_get_string(json, "target", MP_MANIFEST_NAME, &target, err) != 0 ||
        mp_manifest_flag(json, "lossless", &m->lossless, err) != 0 ||
        mp_manifest_flag(json, "shared_lossless", &m->shared_lossless, err) != 0)
        return err->code;
    m->source_scheme = MP_SCHEME_COUNT;
    if (strcmp(source, MP_MANIFEST_MIXED) != 0 && !mp_scheme_parse(source, &m->source_scheme))
        return mp_manifest_unknown("scheme", source, err);
    if (!mp_scheme_parse(target, &m->target_scheme))
        return mp_manifest_unknown("scheme", target, err);
    /* Errors were read earlier, and tell whether there are rules. */
    bool passes = mp_manifest_passes(m, false) && mp_manifest_passes(m, true);
    return passes ? 0 : read_rules(json, m, err);
}

static int read_model(const json_t *root, mp_manifest *m, mp_error *err)
{
    json_t *json;

    if (mp_json_get_object(root, "model", MP_MANIFEST_NAME, &json, err) != 0 ||
        get_optional_string(json, "model_type", &m->model_type, err) != 0 ||
        mp_manifest_string(json, "family", &m->family, err) != 0 ||
        get_u64(json, "hidden_size", &m->hidden_size, err) != 0 ||
        get_u64(json, "moe_intermediate_size", &m->moe_intermediate_size, err) != 0 ||
        get_u64(json, "num_experts", &m->num_experts, err) != 0 ||
        get_u64(json, "num_shared_experts", &m->num_shared_experts, err) != 0 ||
        get_u64(json, "layers", &m->model_layers, err) != 0)
        return err->code;
    return 0;
}

static int read_shards(const json_t *root, mp_manifest *m, mp_error *err)
{
    void *list;
    json_t *array;

    if (mp_manifest_list(root, "source", sizeof *m->shards, &array, &list, &m->num_shards, err) !=
        0)
        return err->code;
    m->shards = list;
    for (size_t i = 0; i < m->num_shards; i++) {
        const json_t *json = json_array_get(array, i);

        if (mp_manifest_string(json, "name", &m->shards[i].name, err) != 0 ||
            get_u64(json, "size", &m->shards[i].size, err) != 0 ||
            get_digest(json, "header_xxh3", m->shards[i].header_xxh3, err) != 0)
            return err->code;
    }
    return 0;
}

static int read_layers(const json_t *root, mp_manifest *m, mp_error *err)
{
    void *list;
    json_t *array;

    if (mp_manifest_list(root, "layers", sizeof *m->layers, &array, &list, &m->num_layers, err) !=
        0)
        return err->code;
    m->layers = list;
    for (size_t i = 0; i < m->num_layers; i++) {
        const char *prefix = json_string_value(json_array_get(array, i));

        if (!prefix)
            return mp_fail(err, MP_ERR_INPUT, "%s: \"layers\": entry %zu is not a string",
                           MP_MANIFEST_NAME, i);
        m->layers[i] = strdup(prefix);
        if (!m->layers[i])
            return mp_fail_memory(err);
    }
    return 0;
}

static int read_file(const json_t *json, mp_packed_file *file, mp_error *err)
{
    void *list;
    json_t *array;

    if (mp_manifest_string(json, "name", &file->name, err) != 0 ||
        get_u64(json, "size", &file->size, err) != 0 ||
        mp_manifest_list(json, "tensors", sizeof *file->tensors, &array, &list, &file->num_tensors,
                         err))
        return err->code;
    file->tensors = list;
    /* Files are opened by this name in the rank's directory, and nowhere else. */
    if (strchr(file->name, '/') || file->name[0] == '.' || !file->name[0])
        return mp_fail(err, MP_ERR_INPUT, "%s: \"%s\" is not a file name", MP_MANIFEST_NAME,
                       file->name);
    for (size_t i = 0; i < file->num_tensors; i++) {
        const json_t *tensor = json_array_get(array, i);

        if (mp_manifest_string(tensor, "name", &file->tensors[i].name, err) != 0 ||
            get_digest(tensor, "xxh3", file->tensors[i].xxh3, err) != 0)
            return err->code;
    }
    return 0;
}

static int read_rank(const json_t *json, mp_packed_rank *rank, uint64_t ep, mp_error *err)
{
    uint64_t number;
    void *list;
    json_t *array;

    if (get_u64(json, "rank", &number, err) != 0 ||
        get_digest(json, "index_xxh3", rank->index_xxh3, err) != 0 ||
        mp_manifest_list(json, "files", sizeof *rank->files, &array, &list, &rank->num_files,
                         err) != 0)
        return err->code;
    rank->files = list;
    if (number >= ep)
        return mp_fail(err, MP_ERR_INPUT, "%s: rank %llu, but ep_size is %llu", MP_MANIFEST_NAME,
                       (unsigned long long)number, (unsigned long long)ep);
    rank->rank = (uint32_t)number;
    for (size_t f = 0; f < rank->num_files; f++)
        if (read_file(json_array_get(array, f), &rank->files[f], err) != 0)
            return err->code;
    return 0;
}

static int read_ranks(const json_t *root, mp_manifest *m, mp_error *err)
{
    void *list;
    json_t *array;

    if (mp_manifest_list(root, "ranks", sizeof *m->ranks, &array, &list, &m->num_ranks, err) != 0)
        return err->code;
    m->ranks = list;
    for (size_t i = 0; i < m->num_ranks; i++) {
        if (read_rank(json_array_get(array, i), &m->ranks[i], m->ep_size, err) != 0)
            return err->code;
        if (i > 0 && m->ranks[i].rank <= m->ranks[i - 1].rank)
            return mp_fail(err, MP_ERR_INPUT, "%s: rank %u after rank %u", MP_MANIFEST_NAME,
                           m->ranks[i].rank, m->ranks[i - 1].rank);
    }
    return 0;
}

/* The static string that names a side, or null. */
static const char *side_name(const char *name)
{
    static const char *const names[] = {"w13", "w2", "shared w13", "shared w2"};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(names[i], name) == 0)
            return names[i];
    return NULL;
}

static int read_errors(const json_t *root, mp_manifest *m, mp_error *err)
{
    void *list;
    json_t *array;

    if (!json_object_get(root, "errors"))
        return 0;
    if (mp_manifest_list(root, "errors", sizeof *m->errors, &array, &list, &m->num_errors, err) !=
        0)
        return err->code;
    m->errors = list;
    for (size_t i = 0; i < m->num_errors; i++) {
        const json_t *json = json_array_get(array, i);
        mp_layer_error *e = &m->errors[i];
        const char *matrix;

        if (mp_manifest_string(json, "layer", &e->layer, err) != 0 ||
            mp_json_get_string(json, "matrix", MP_MANIFEST_NAME, &matrix, err) != 0 ||
            get_u64(json, "saturated", &e->saturated, err) != 0 ||
            get_u64(json, "flushed", &e->flushed, err) != 0 ||
            get_u64(json, "elements", &e->elements, err) != 0 ||
            get_u64(json, "requantized_blocks", &e->requantized_blocks, err) != 0 ||
            get_real(json, "relative_rms", NAN, &e->relative_rms, err) != 0 ||
            get_real(json, "sqnr_db", INFINITY, &e->sqnr_db, err) != 0)
            return err->code;
        e->matrix = side_name(matrix);
        if (!e->matrix)
            return mp_fail(err, MP_ERR_INPUT, "%s: matrix \"%s\" is neither \"w13\" nor \"w2\"",
                           MP_MANIFEST_NAME, matrix);
    }
    return 0;
}

/* How shared experts are packed, and what was left behind. */
static int read_options(const json_t *root, mp_manifest *m, mp_error *err)
{
    const char *shared, *dropped = NULL, *alphas = mp_alphas_name(MP_ALPHAS_SGL);
    mp_error why;

    if (mp_json_get_string(root, "shared", MP_MANIFEST_NAME, &shared, err) != 0 ||
        (json_object_get(root, "dropped") &&
         mp_json_get_string(root, "dropped", MP_MANIFEST_NAME, &dropped, err) != 0) ||
        (json_object_get(root, "alphas") &&
         mp_json_get_string(root, "alphas", MP_MANIFEST_NAME, &alphas, err) != 0))
        return err->code;
    if (!mp_shared_mode_parse(shared, &m->shared))
        return mp_manifest_unknown("shared mode", shared, err);
    if (!mp_alphas_parse(alphas, &m->alphas))
        return mp_manifest_unknown("alphas", alphas, err);
    if (mp_role_set_parse(dropped, MP_ROLE_BIT(MP_ROLES) - 1, &m->dropped, &why) != 0)
        return mp_manifest_unknown("dropped", dropped, err);
    return 0;
}

static int read_manifest(const json_t *root, mp_manifest *m, mp_error *err)
{
    const json_t *config = json_object_get(root, "config_xxh3");
    const char *version;

    if (mp_json_get_string(root, "format_version", MP_MANIFEST_NAME, &version, err) != 0)
        return err->code;
    if (strcmp(version, MP_FORMAT_VERSION) != 0)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: format version \"%s\", this tool reads \"%s\"",
                       MP_MANIFEST_NAME, version, MP_FORMAT_VERSION);
    if (mp_manifest_string(root, "tool_version", &m->tool_version, err) != 0 ||
        mp_manifest_string(root, "target", &m->target, err) != 0 ||
        get_u64(root, "target_version", &m->target_version, err) != 0 ||
        mp_manifest_flag(root, "nz", &m->nz, err) != 0 || read_errors(root, m, err) != 0 ||
        read_quantization(root, m, err) != 0 || read_model(root, m, err) != 0 ||
        get_u64(root, "ep_size", &m->ep_size, err) != 0 ||
        get_u64(root, "num_physical", &m->num_physical, err) != 0 ||
        read_options(root, m, err) != 0 ||
        get_digest(root, "placement_xxh3", m->placement_xxh3, err) != 0 ||
        (!json_is_null(config) && get_digest(root, "config_xxh3", m->config_xxh3, err) != 0) ||
        read_shards(root, m, err) != 0 || read_layers(root, m, err) != 0 ||
        mp_manifest_read_forms(root, m, err) != 0 || read_ranks(root, m, err) != 0 ||
        get_optional_string(root, "command", &m->command, err) != 0)
        return err->code;
    if (m->num_experts > UINT32_MAX)
        return mp_fail(err, MP_ERR_INPUT, "%s: num_experts %" PRIu64 " is over %u",
                       MP_MANIFEST_NAME, m->num_experts, UINT32_MAX);
    if (m->ep_size == 0 || m->ep_size > UINT32_MAX || m->num_physical > UINT32_MAX ||
        m->num_physical % m->ep_size != 0)
        return mp_fail(err, MP_ERR_INPUT, "%s: %llu physical experts on %llu ranks",
                       MP_MANIFEST_NAME, (unsigned long long)m->num_physical,
                       (unsigned long long)m->ep_size);
    return 0;
}

/* ------------------------------------------------------------------------
 * The whole
 */

/* The digest at the end is that of everything else. */
static int check_seal(const char *text, uint64_t length, mp_error *err)
{
    const size_t before = strlen(MP_SEAL_BEFORE), after = strlen(MP_SEAL_AFTER);
    const size_t seal = before + (MP_DIGEST_TEXT - 1) + after;
    char hex[MP_DIGEST_TEXT], actual[MP_DIGEST_TEXT], *body;
    mp_digest digest;

    if (length < seal || memcmp(text + length - seal, MP_SEAL_BEFORE, before) != 0 ||
        memcmp(text + length - after, MP_SEAL_AFTER, after) != 0)
        return mp_fail(err, MP_ERR_INPUT, "%s: does not end in its digest", MP_MANIFEST_NAME);
    memcpy(hex, text + length - after - (MP_DIGEST_TEXT - 1), MP_DIGEST_TEXT - 1);
    hex[MP_DIGEST_TEXT - 1] = '\0';
    /* Rebuild the text as it was sealed. A NUL in it ends the copy early, and then the digest
     * differs. */
    body = mp_format("%.*s" MP_SEAL_CUT, (int)(length - seal), text);
    if (!body)
        return mp_fail_memory(err);
    mp_digest_of(body, strlen(body), &digest);
    free(body);
    if (strcmp(mp_digest_text(&digest, actual), hex) != 0)
        return mp_fail(err, MP_ERR_INPUT, "%s: changed: its digest is %s, it says %s",
                       MP_MANIFEST_NAME, actual, hex);
    return 0;
}

int mp_manifest_parse(mp_manifest *manifest, const char *text, uint64_t length, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    json_t *root = NULL;
    int rc;

    memset(manifest, 0, sizeof *manifest);
    if (length > MANIFEST_LIMIT)
        return mp_fail(err, MP_ERR_INPUT, "%s: %llu bytes, over %u", MP_MANIFEST_NAME,
                       (unsigned long long)length, MANIFEST_LIMIT);
    rc = check_seal(text, length, err);
    if (rc == 0)
        rc = mp_json_parse(text, length, MP_MANIFEST_NAME, &root, err);
    if (rc == 0)
        rc = read_manifest(root, manifest, err);
    json_decref(root);
    if (rc != 0)
        mp_manifest_release(manifest);
    return rc;
}

int mp_manifest_read(const char *dir, char **text, uint64_t *length, mp_error *err)
{
    char *path = mp_path_join(dir, MP_MANIFEST_NAME);
    int fd, rc;

    if (!path)
        return mp_fail_memory(err);
    if (mp_path_exists(path)) {
        rc = mp_read_file(path, MANIFEST_LIMIT, text, length, err);
    } else if ((rc = mp_open_read(dir, &fd, err)) == 0) {
        mp_file_close(fd, dir, NULL);
        rc =
            mp_fail(err, MP_ERR_INPUT, "\"%s\" is not a pack: it has no %s", dir, MP_MANIFEST_NAME);
    }
    free(path);
    return rc;
}

int mp_manifest_load(mp_manifest *manifest, const char *dir, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    char *text;
    uint64_t length;

    memset(manifest, 0, sizeof *manifest);
    int rc = mp_manifest_read(dir, &text, &length, err);
    if (rc != 0)
        return rc;
    rc = mp_manifest_parse(manifest, text, length, err);
    free(text);
    return rc;
}

bool mp_is_packed(const char *dir)
{
    return mp_exists_in(dir, MP_MANIFEST_NAME);
}
