/* SPDX-License-Identifier: Apache-2.0 */
/* Lists of modules, and what they make of the experts of each layer.
 *
 * A list names modules as the checkpoint does: all experts of a layer at once
 * ("model.layers.3.mlp.experts"), a single matrix, a pattern. Only routed experts of decoder layers
 * are looked for: shared ones and those of MTP blocks may be otherwise.
 *
 * No tensor is at hand, so names are made up: for each layer those that its experts would have, by
 * the family's naming, and patterns are tried on them. A layer has one form, a small number into
 * `forms`; 0 is "not quantized". Forms are told apart by their words, and layers that do not have
 * the same are reported by these words. A pattern that is not understood makes all layers unknown:
 * it could mean any of them.
 *
 *   exclude_modules, ignore   layers become plain again
 *   quantized_layers          each layer as its experts are listed
 *   config_groups             classes first, then names; of several groups the first wins */
#include "engine/layer_forms.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/pattern.h"
#include "checkpoint/config.h"
#include "checkpoint/config_said.h"
#include "checkpoint/families.h"
#include "engine/format.h"

/* Beyond this no list says what layers are. */
#define LAYERS_MAX 1024

static bool is(const char *text, const char *word)
{
    return strcmp(text, word) == 0;
}

/* ------------------------------------------------------------------------
 * Forms
 */

mp_form_word mp_form_known(mp_scheme scheme)
{
    mp_form_word word = {.known = true, .scheme = scheme};

    snprintf(word.name, sizeof word.name, "%s", mp_scheme_name(scheme));
    return word;
}

mp_form_word mp_form_unknown(const char *format, ...)
{
    mp_form_word word = {0};
    va_list args;

    va_start(args, format);
    vsnprintf(word.name, sizeof word.name, format, args);
    va_end(args);
    return word;
}

mp_form_word mp_form_of_algorithm(const char *algorithm)
{
    size_t count;
    const mp_convention *rows = mp_conventions(&count);
    mp_form_word word = mp_form_unknown("%s", algorithm);

    for (size_t i = 0; i < count && !word.known; i++)
        for (size_t a = 0; a < 2 && rows[i].algorithms[a] && !word.known; a++) {
            word.known = is(algorithm, rows[i].algorithms[a]);
            word.scheme = word.known ? rows[i].scheme : word.scheme;
        }
    return word;
}

static mp_form_word form_of_group(const json_t *group)
{
    const json_t *weights = json_object_get(group, "weights");
    const char *type = mp_config_text(weights, "type");
    const char *strategy = mp_config_text(weights, "strategy");
    json_int_t bits = json_integer_value(json_object_get(weights, "num_bits"));
    json_int_t size = json_integer_value(json_object_get(weights, "group_size"));
    size_t count;
    const mp_convention *rows = mp_conventions(&count);

    for (size_t i = 0; i < count; i++) {
        const mp_numbers numbers = mp_said_numbers(&rows[i]);

        if (rows[i].method == MP_METHOD_COMPRESSED_TENSORS && is(type, numbers.type) &&
            bits == numbers.bits && is(strategy, numbers.strategy) && size == numbers.group_size)
            return mp_form_known(rows[i].scheme);
    }
    return mp_form_unknown("%.16s of %lld bits by %.16s", type[0] ? type : "weights",
                           (long long)bits, strategy[0] ? strategy : "nothing");
}

/* ------------------------------------------------------------------------
 * Layers
 */

/* What a layer's experts are called: all of them, and the gate of the first, by the family's name
 * of the layers and with "model." in front. */
static void name_layer(const mp_family *family, uint64_t layer,
                       mp_module_name names[MP_LAYER_NAMES])
{
    static const char *const ends[] = {"", ".0.gate_proj", ".0.w1"};
    const char *prefix = family ? family->layer_prefix : "model.layers.";
    const char *block = family ? family->naming->block : "mlp";

    for (size_t i = 0; i < MP_LAYER_NAMES; i++)
        snprintf(names[i], sizeof names[i], "%s%s%" PRIu64 ".%s%sexperts%s", i < 3 ? "" : "model.",
                 prefix, layer, block, block[0] ? "." : "", ends[i % 3]);
}

int mp_layer_forms_init(mp_layer_forms *forms, const mp_config *config, const mp_form_word *plain,
                        mp_error *err)
{
    const mp_family *family = mp_family_of_type(config->model_type);
    uint64_t layers = config->num_hidden_layers;

    *forms = (mp_layer_forms){.config = config, .count = 1};
    forms->forms[0] = *plain;
    /* A number that is absent is UINT64_MAX: none is looked at. */
    forms->num_layers = layers <= LAYERS_MAX ? layers : 0;
    if (layers > LAYERS_MAX && layers != MP_CONFIG_ABSENT)
        forms->forms[0] = mp_form_unknown("%" PRIu64 " layers", layers);
    forms->of = mp_alloc_zeroed(forms->num_layers, 1);
    forms->names = mp_alloc(forms->num_layers, sizeof *forms->names);
    if (!forms->of || !forms->names) {
        mp_layer_forms_release(forms);
        return mp_fail_memory(err);
    }
    for (uint64_t i = 0; i < forms->num_layers; i++)
        name_layer(family, i, forms->names[i]);
    return 0;
}

void mp_layer_forms_release(mp_layer_forms *forms)
{
    free(forms->of);
    free(forms->names);
    forms->of = NULL;
    forms->names = NULL;
}

/* Index of a form, added where it is new; the last one stands for all that are too many. */
static unsigned char index_of(mp_layer_forms *forms, const mp_form_word *word)
{
    size_t i = 1;

    /* From 1: form 0 is only for layers that are not quantized, whatever its name. */
    while (i < forms->count && !is(forms->forms[i].name, word->name))
        i++;
    if (i < forms->count)
        return (unsigned char)i;
    if (i < MP_LAYER_FORMS)
        forms->forms[forms->count++] = *word;
    if (i >= MP_LAYER_FORMS - 1) {
        i = MP_LAYER_FORMS - 1;
        forms->forms[i] = mp_form_unknown("of too many formats");
    }
    return (unsigned char)i;
}

bool mp_layer_forms_same(const mp_layer_forms *forms, mp_form_word *word)
{
    uint64_t first = 0;

    while (first < forms->num_layers && !mp_config_is_moe_layer(forms->config, first))
        first++;
    *word = forms->forms[first < forms->num_layers ? forms->of[first] : 0];
    for (uint64_t i = first + 1; i < forms->num_layers; i++) {
        const char *other = forms->forms[forms->of[i]].name;

        if (forms->of[i] == forms->of[first] || !mp_config_is_moe_layer(forms->config, i))
            continue;
        *word = mp_form_unknown("layer %" PRIu64 " is %.16s, layer %" PRIu64 " %.16s", first,
                                forms->forms[forms->of[first]].name, i, other);
        return false;
    }
    return true;
}

/* ------------------------------------------------------------------------
 * Patterns
 */

/* Gives the layers whose experts the pattern means a form. False where it is not understood. */
static bool mark(mp_layer_forms *forms, const char *pattern, unsigned char form)
{
    mp_pattern p;
    bool understood;

    mp_pattern_init(&p, pattern);
    understood = !p.unknown;
    for (uint64_t i = 0; understood && i < forms->num_layers; i++)
        for (size_t n = 0; n < MP_LAYER_NAMES; n++)
            if (mp_pattern_match(&p, forms->names[i][n]) == MP_MATCH_YES)
                forms->of[i] = form;
    mp_pattern_release(&p);
    return understood;
}

/* Makes all layers of one form. */
static void mark_all(mp_layer_forms *forms, mp_form_word word)
{
    memset(forms->of, index_of(forms, &word), forms->num_layers);
}

/* Modules that are not quantized. */
static void read_exceptions(mp_layer_forms *forms, const json_t *quantization)
{
    static const char *const keys[] = {"exclude_modules", "ignore"};

    for (size_t k = 0; k < 2; k++) {
        const json_t *list = json_object_get(quantization, keys[k]);

        if (json_array_size(list) > 0)
            forms->plain_from = keys[k];
        for (size_t i = 0; i < json_array_size(list); i++) {
            const char *pattern = json_string_value(json_array_get(list, i));

            if (pattern && !mark(forms, pattern, 0)) {
                mark_all(forms, mp_form_unknown("pattern %.48s", pattern));
                return;
            }
        }
    }
}

/* ------------------------------------------------------------------------
 * quantized_layers
 */

/* The layer whose routed experts a module is, or belongs to; false for other modules. */
static bool layer_of_module(const char *name, uint64_t *layer)
{
    const char *at = strstr(name, "layers."), *experts = strstr(name, ".experts");
    char *end;

    if (!at || (at > name && at[-1] != '.') || !experts || strncmp(name, "mtp.", 4) == 0 ||
        strstr(name, ".mtp.") || (experts[8] != '\0' && experts[8] != '.'))
        return false;
    /* Of "model.layers.3.mlp.experts.7.up_proj" the number behind "layers.". */
    at += strlen("layers.");
    if (*at < '0' || *at > '9')
        return false;
    *layer = strtoull(at, &end, 10);
    return *end == '.';
}

/* A layer is as its experts are listed; where they are listed with two algorithms it is as
 * neither. */
static void read_listed(mp_layer_forms *forms, const json_t *listed)
{
    const char *name;
    json_t *entry;

    json_object_foreach((json_t *)listed, name, entry)
    {
        mp_form_word word = mp_form_of_algorithm(mp_config_text(entry, "quant_algo"));
        uint64_t layer;
        unsigned char form;

        if (!layer_of_module(name, &layer) || layer >= forms->num_layers)
            continue;
        form = index_of(forms, &word);
        /* Half of a layer's experts in another algorithm: no layout takes both. */
        if (forms->of[layer] > 0 && forms->of[layer] != form) {
            word = mp_form_unknown("%.24s and %.24s", forms->forms[forms->of[layer]].name,
                                   forms->forms[form].name);
            form = index_of(forms, &word);
        }
        forms->of[layer] = form;
    }
}

/* ------------------------------------------------------------------------
 * Groups
 */

/* Marks what the targets of a group mean: class "Linear", of which experts' matrices are, or names
 * of modules. False where a target is not understood. */
static bool mark_group(mp_layer_forms *forms, const json_t *group, bool by_class)
{
    const json_t *targets = json_object_get(group, "targets");
    const mp_form_word word = form_of_group(group);
    unsigned char form = index_of(forms, &word);

    for (size_t i = 0; i < json_array_size(targets); i++) {
        const char *target = json_string_value(json_array_get(targets, i));
        bool is_class = target && is(target, "Linear");

        if (!target || is_class != by_class)
            continue;
        if (is_class)
            memset(forms->of, form, forms->num_layers);
        else if (!mark(forms, target, form)) {
            mark_all(forms, mp_form_unknown("target %.48s", target));
            return false;
        }
    }
    return true;
}

/* A name goes before a class, and of several groups the first: so classes are marked before names,
 * and the last group before the first. A single group without targets is for all. */
static void read_groups(mp_layer_forms *forms, const json_t *groups)
{
    const json_t *list[MP_LAYER_FORMS] = {NULL};
    size_t count = 0;
    bool has_targets = true;
    const char *key;
    json_t *group;

    json_object_foreach((json_t *)groups, key, group)
    {
        if (count == MP_LAYER_FORMS) {
            mark_all(forms, mp_form_unknown("%zu groups", json_object_size(groups)));
            return;
        }
        has_targets &= json_is_array(json_object_get(group, "targets"));
        list[count++] = group;
    }
    if (!has_targets)
        mark_all(forms, count == 1 ? form_of_group(list[0]) : mp_form_unknown("no targets"));
    for (int by_class = 1; has_targets && by_class >= 0; by_class--)
        for (size_t i = count; i-- > 0;)
            if (!mark_group(forms, list[i], by_class))
                return;
}

void mp_layer_forms_read(mp_layer_forms *forms, const json_t *quantization)
{
    const char *algorithm = mp_config_text(quantization, "quant_algo");
    const json_t *listed = json_object_get(quantization, "quantized_layers");

    if (is(algorithm, "MIXED_PRECISION") && json_is_object(listed)) {
        read_listed(forms, listed);
        return;
    }
    if (algorithm[0])
        mark_all(forms, mp_form_of_algorithm(algorithm));
    else
        read_groups(forms, json_object_get(quantization, "config_groups"));
    read_exceptions(forms, quantization);
}
