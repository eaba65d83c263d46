/* SPDX-License-Identifier: Apache-2.0 */
/* config.json after requantizing experts: which members engines take it from, and how they spell
 * it.
 *
 * The text is edited in place, not written anew from a tree: what moepack does not know has to stay
 * byte for byte, with Python's spellings (Infinity, 1e-06). So there are two states: `root`, the
 * tree of the text as it was, which is only asked, and `text`, which base/json_edit.c changes
 * member by member. After the quantization_configs have changed, the text is parsed again:
 * expert_dtype may have stood in one of them, and `root` would still show it.
 *
 * A quantization_config has one of two fates. Where the experts were all that it spoke of, it is
 * replaced by the convention's own words, or removed for bf16. Where other tensors stay quantized
 * (`keeps`), it stays too: the experts leave or enter its list of exceptions, and are added as far
 * as its method has words; where it has none, a warning says so. What would make an engine read the
 * tensors wrongly is refused.
 *
 * Entries that an earlier run added are spelled as this one spells them, so they are found by being
 * equal, and replaced: requantizing twice leaves no second entry behind. It runs on one thread. */
#include "checkpoint/config_rewrite.h"

#include "base/error.h"
#include "base/json_edit.h"
#include "base/words.h"
#include "checkpoint/config_said.h"

#include <stdlib.h>
#include <string.h>

#define COUNT(a)     (sizeof(a) / sizeof((a)[0]))
#define QUANTIZATION "quantization_config"

/* Objects that may hold a quantization_config; null is the root. */
static const char *const places[] = {NULL, "text_config", "language_config", "llm_config"};

/* What a text says while it is changed. */
typedef struct rewrite {
    const mp_config_change *change;
    char *text;
    json_t *root; /* of the text as it was */
    mp_problems *warnings;
} rewrite;

static bool is(const char *a, const char *b)
{
    return a && strcmp(a, b) == 0;
}

static const char *string_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

/* The object at a place, or null. */
static const json_t *object_at(const json_t *root, const char *place)
{
    const json_t *object = place ? json_object_get(root, place) : root;

    return json_is_object(object) ? object : NULL;
}

static void warn(const rewrite *r, const char *method)
{
    if (r->warnings)
        mp_problem(r->warnings,
                   "config.json: " QUANTIZATION
                   " stays \"%s\" for the other tensors, and cannot say that experts are %s in "
                   "the style of %s",
                   method ? method : "?", mp_scheme_name(r->change->to->scheme),
                   mp_style_name(r->change->to->style));
}

/* ------------------------------------------------------------------------
 * Lists of modules
 */

/* A module as a method's list of exceptions spells it, malloc'ed. All experts of a layer are a
 * pattern:
 *
 *     ModelOpt             model.layers.3.mlp.experts*
 *     compressed-tensors   re:^model\.layers\.3\.mlp\.experts\..* */
static char *exception(mp_method method, const char *module)
{
    size_t n = strlen(module);
    bool experts = n > 8 && strcmp(module + n - 8, ".experts") == 0;
    char *text, *to;

    if (experts && method == MP_METHOD_MODELOPT)
        return mp_format("%s*", module);
    if (!experts || method != MP_METHOD_COMPRESSED_TENSORS)
        return strdup(module);
    /* Each byte of the name becomes two at most. */
    text = to = malloc(2 * n + sizeof "re:^\\..*");
    if (!text)
        return NULL;
    to = stpcpy(to, "re:^");
    for (const char *p = module; *p; p++) {
        if (*p == '.')
            *to++ = '\\';
        *to++ = *p;
    }
    strcpy(to, "\\..*");
    return text;
}

static bool append_module(json_t *list, mp_method method, const char *module)
{
    char *text = exception(method, module);
    bool ok = text && json_array_append_new(list, json_string(text)) == 0;

    free(text);
    return ok;
}

/* Null without memory. */
static json_t *module_list(mp_method method, const char *const *modules, size_t count)
{
    json_t *list = json_array();

    for (size_t i = 0; list && i < count; i++) {
        if (!append_module(list, method, modules[i])) {
            json_decref(list);
            list = NULL;
        }
    }
    return list;
}

/* An old list of exceptions without the requantized experts, and with them where they are no
 * longer quantized. Null without memory. */
static json_t *changed_list(const mp_config_change *change, mp_method method, const json_t *old)
{
    json_t *experts = module_list(method, change->experts, change->num_experts);
    json_t *list = json_array();
    bool ok = experts && list;

    for (size_t i = 0; ok && i < json_array_size(old); i++) {
        json_t *module = json_array_get(old, i);
        bool ours = false;

        for (size_t e = 0; e < json_array_size(experts); e++)
            ours |= json_equal(module, json_array_get(experts, e));
        if (!ours)
            ok = json_array_append(list, module) == 0;
    }
    if (ok && change->to->scheme == MP_SCHEME_BF16)
        ok = json_array_extend(list, experts) == 0;
    json_decref(experts);
    if (!ok) {
        json_decref(list);
        list = NULL;
    }
    return list;
}

/* ------------------------------------------------------------------------
 * A quantization_config of experts only
 */

static mp_said said_of(const mp_config_change *change)
{
    return (mp_said){.ue8m0 = change->ue8m0, .input_scales = change->input_scales};
}

/* Null without memory. */
static json_t *config_of_experts(const mp_config_change *change)
{
    const mp_said said = said_of(change);

    return mp_said_config(change->to, &said,
                          module_list(change->to->method, change->plain, change->num_plain));
}

/* ------------------------------------------------------------------------
 * A quantization_config that stays, for other tensors
 */

/* The block size that stays has to be that of the experts. */
static int check_blocks(const mp_config_change *change, const json_t *old, mp_error *err)
{
    const json_t *block = json_object_get(old, "weight_block_size");
    json_int_t rows = json_integer_value(json_array_get(block, 0));
    json_int_t cols = json_integer_value(json_array_get(block, 1));

    if (change->to->scheme != MP_SCHEME_FP8_BLOCK || !json_is_array(block) ||
        (rows == change->to->block_rows && cols == change->to->block_cols))
        return 0;
    return mp_fail(
        err, MP_ERR_UNSUPPORTED,
        "config.json: weight_block_size is [%lld, %lld] for tensors that stay; fp8_block "
        "experts have %ux%u",
        (long long)rows, (long long)cols, change->to->block_rows, change->to->block_cols);
}

static int set_new(rewrite *r, mp_json_path path, const char *key, json_t *value, mp_error *err)
{
    int rc = value ? mp_json_set(&r->text, path, key, value, err) : mp_fail_memory(err);

    json_decref(value);
    return rc;
}

/* The groups of compressed-tensors, each with its own format, and one more for the experts. The
 * format of all becomes "mixed-precision" (add_ct_group), so a group that relied on it has to say
 * its own from now on. Null without memory. */
static json_t *ct_groups(const mp_config_change *change, const json_t *old)
{
    const mp_said said = said_of(change);
    json_t *targets = module_list(change->to->method, change->experts, change->num_experts);
    const json_t *had = json_object_get(old, "config_groups");
    json_t *groups = json_is_object(had) ? json_deep_copy(had) : json_object();
    json_t *group;
    const char *name;
    char key[32];
    void *next;
    size_t number = 0;

    json_object_foreach_safe(groups, next, name, group)
    {
        if (json_equal(json_object_get(group, "targets"), targets))
            json_object_del(groups, name); /* of requantizing before */
        else if (!json_object_get(group, "format") && string_of(old, "format"))
            json_object_set_new(group, "format", json_string(string_of(old, "format")));
    }
    do
        snprintf(key, sizeof key, "group_%zu", number++);
    while (json_object_get(groups, key));
    if (json_object_set_new(groups, key, mp_said_group(change->to, &said, targets)) != 0) {
        json_decref(groups);
        groups = NULL;
    }
    return groups;
}

static int add_ct_group(rewrite *r, mp_json_path path, const json_t *old, mp_error *err)
{
    const char *format = r->change->to->format;
    const json_t *groups = json_object_get(old, "config_groups");
    int rc = 0;

    if (groups && !json_is_null(groups) && !json_is_object(groups))
        return mp_fail(err, MP_ERR_INPUT, "config.json: config_groups is not an object");
    rc = set_new(r, path, "config_groups", ct_groups(r->change, old), err);
    if (rc == 0 && !is(string_of(old, "format"), format))
        rc = set_new(r, path, "format", json_string("mixed-precision"), err);
    return rc;
}

/* Says in a quantization_config what experts are, as far as its method can. */
static int add_experts(rewrite *r, mp_json_path path, const json_t *old, mp_error *err)
{
    const mp_convention *to = r->change->to;
    mp_method method = mp_method_of(string_of(old, "quant_method"));

    if (to->scheme == MP_SCHEME_BF16)
        return 0; /* they are in the list of exceptions */
    if (to->method == MP_METHOD_COMPRESSED_TENSORS && method == to->method)
        return add_ct_group(r, path, old, err);
    if (to->method == MP_METHOD_MODELOPT && method == MP_METHOD_FP8)
        return set_new(r, path, "moe_quant_algo", json_string(to->algorithms[0]), err);
    if (to->method != method)
        warn(r, string_of(old, "quant_method"));
    return 0;
}

static int keep_config(rewrite *r, mp_json_path path, const json_t *old, mp_error *err)
{
    mp_method method = mp_method_of(string_of(old, "quant_method"));
    const char *list = mp_method_exceptions(method);
    const json_t *modules = json_object_get(old, list);
    json_t *changed;
    int rc;

    if (check_blocks(r->change, old, err) != 0)
        return err->code;
    changed = changed_list(r->change, method, modules);
    if (!changed)
        return mp_fail_memory(err);
    rc = json_equal(changed, modules) || (!modules && json_array_size(changed) == 0)
             ? 0
             : mp_json_set(&r->text, path, list, changed, err);
    json_decref(changed);
    if (rc == 0 && json_object_get(old, "moe_quant_algo"))
        rc = mp_json_remove(&r->text, path, "moe_quant_algo", err);
    return rc ? rc : add_experts(r, path, old, err);
}

/* ------------------------------------------------------------------------
 * The whole text
 */

/* A place's path and that of the quantization_config in it. */
static void paths_of(const char *place, const char *outer[2], const char *inner[3])
{
    outer[0] = place;
    outer[1] = NULL;
    inner[0] = place ? place : QUANTIZATION;
    inner[1] = place ? QUANTIZATION : NULL;
    inner[2] = NULL;
}

/* Changes the quantization_config at a place, which is there. */
static int change_config(rewrite *r, const char *place, const json_t *old, mp_error *err)
{
    const char *outer[2], *inner[3];

    paths_of(place, outer, inner);
    if (r->change->keeps && json_is_object(old))
        return keep_config(r, inner, old, err);
    if (r->change->to->scheme == MP_SCHEME_BF16)
        return mp_json_remove(&r->text, outer, QUANTIZATION, err);
    return set_new(r, outer, QUANTIZATION, config_of_experts(r->change), err);
}

static int change_configs(rewrite *r, mp_error *err)
{
    bool found = false;
    int rc = 0;

    for (size_t i = 0; i < COUNT(places) && rc == 0; i++) {
        const json_t *object = object_at(r->root, places[i]);
        const json_t *old = object ? json_object_get(object, QUANTIZATION) : NULL;

        if (!old)
            continue;
        rc = change_config(r, places[i], old, err);
        found = true;
    }
    if (rc == 0 && !found)
        rc = change_config(r, NULL, NULL, err);
    return rc;
}

/* Sets expert_dtype where it is; *found says whether it is anywhere. */
static int change_dtypes(rewrite *r, bool *found, mp_error *err)
{
    const char *dtype = mp_said_dtype(r->change->to->scheme);
    int rc = 0;

    *found = false;
    for (size_t i = 0; i < COUNT(places) && rc == 0; i++) {
        const json_t *object = object_at(r->root, places[i]);
        const json_t *inside = object ? json_object_get(object, QUANTIZATION) : NULL;
        const char *outer[2], *inner[3];

        paths_of(places[i], outer, inner);
        if (object && json_object_get(object, "expert_dtype")) {
            rc = set_new(r, outer, "expert_dtype", json_string(dtype), err);
            *found = true;
        }
        if (rc == 0 && json_object_get(inside, "expert_dtype")) {
            rc = set_new(r, inner, "expert_dtype", json_string(dtype), err);
            *found = true;
        }
    }
    return rc;
}

/* V4 has expert_dtype at the root, V4.1, whose model is in text_config, in quantization_config. */
static int add_dtype(rewrite *r, mp_error *err)
{
    const char *type = string_of(r->root, "model_type");
    bool nested = object_at(r->root, "text_config") != NULL;
    bool v4 = r->change->to->style == MP_AS_DEEPSEEK_V4 ||
              (type && strncmp(type, "deepseek_v4", 11) == 0);

    if (!v4)
        return 0;
    for (size_t i = 0; nested && i < COUNT(places); i++) {
        const json_t *object = object_at(r->root, places[i]);
        const char *outer[2], *inner[3];

        paths_of(places[i], outer, inner);
        if (object && json_is_object(json_object_get(object, QUANTIZATION)))
            return set_new(r, inner, "expert_dtype",
                           json_string(mp_said_dtype(r->change->to->scheme)), err);
    }
    return set_new(r, NULL, "expert_dtype", json_string(mp_said_dtype(r->change->to->scheme)), err);
}

static int parse(const char *text, json_t **root, mp_error *err)
{
    int rc = mp_json_parse_python(text, strlen(text), "config.json", root, err);

    if (rc == 0 && !json_is_object(*root))
        rc = mp_fail(err, MP_ERR_INPUT, "config.json: not a JSON object");
    return rc;
}

int mp_config_requantized(const char *config_text, const mp_config_change *change, char **text,
                          mp_problems *warnings, mp_error *err)
{
    rewrite r = {.change = change, .warnings = warnings};
    bool found;
    int rc = parse(config_text, &r.root, err);

    *text = NULL;
    if (rc == 0) {
        r.text = strdup(mp_json_skip_mark(config_text));
        rc = r.text ? change_configs(&r, err) : mp_fail_memory(err);
    }
    json_decref(r.root);
    r.root = NULL;
    if (rc == 0)
        rc = parse(r.text, &r.root, err);
    if (rc == 0)
        rc = change_dtypes(&r, &found, err);
    if (rc == 0 && !found)
        rc = add_dtype(&r, err);
    json_decref(r.root);
    if (rc == 0)
        *text = r.text;
    else
        free(r.text);
    return rc;
}

bool mp_config_says_ue8m0(const char *config_text)
{
    json_t *root;
    bool says = false;

    if (mp_json_parse_python(config_text, strlen(config_text), "config.json", &root, NULL) != 0)
        return false;
    for (size_t i = 0; i < COUNT(places); i++) {
        const json_t *object = object_at(root, places[i]);

        says |=
            object && is(string_of(json_object_get(object, QUANTIZATION), "scale_fmt"), "ue8m0");
    }
    json_decref(root);
    return says;
}

int mp_hf_quant_config(const mp_config_change *change, char **text, mp_error *err)
{
    json_t *config;

    *text = NULL;
    if (change->keeps || change->to->method != MP_METHOD_MODELOPT)
        return 0;
    config = mp_said_beside(change->to, "moepack", MP_VERSION,
                            module_list(change->to->method, change->plain, change->num_plain));
    *text = config ? mp_json_text(config) : NULL;
    json_decref(config);
    return *text ? 0 : mp_fail_memory(err);
}
