/* SPDX-License-Identifier: Apache-2.0 */
/* Which options of a synthetic checkpoint make sense, and what to say of the others. */
#include "pack/synth.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"

/* Far beyond what exists, and small enough for products to fit. */
#define SIZE_LIMIT  (1u << 24)
#define COUNT_LIMIT (1u << 16)

#define LIST_TEXT 256

/* Appends an item of "a, b or c", item `index` of `count`. */
static void list_item(char text[LIST_TEXT], const char *item, size_t index, size_t count)
{
    size_t used = strlen(text);
    const char *comma = index == 0 ? "" : index + 1 < count ? ", " : " or ";

    snprintf(text + used, LIST_TEXT - used, "%s%s", comma, item);
}

static int no_such_family(const char *name, mp_error *err)
{
    char text[LIST_TEXT] = "";
    size_t count = 0;

    while (mp_synth_family_name(count))
        count++;
    for (size_t i = 0; i < count; i++)
        list_item(text, mp_synth_family_name(i), i, count);
    return mp_fail(err, MP_ERR_UNSUPPORTED,
                   "no synthetic checkpoints of family \"%s\"; it has to be %s", name, text);
}

static int no_such_scheme(const mp_synth_options *options, mp_error *err)
{
    char text[LIST_TEXT] = "";
    mp_scheme scheme;
    size_t count = 0;

    while (mp_synth_scheme(options->family, count, &scheme))
        count++;
    for (size_t i = 0; i < count && mp_synth_scheme(options->family, i, &scheme); i++)
        list_item(text, mp_scheme_name(scheme), i, count);
    return mp_fail(err, MP_ERR_UNSUPPORTED, "experts of family \"%s\" are %s, not %s",
                   options->family, text, mp_scheme_name(options->scheme));
}

static const mp_synth_format *find_format(const mp_synth_family *family, mp_scheme scheme)
{
    const mp_synth_format *format = family->formats;

    while (format < family->formats + MP_SYNTH_FORMATS && format->routed) {
        if (format->scheme == scheme)
            return format;
        format++;
    }
    return NULL;
}

/* What only some families have. */
static int check_parts(const mp_synth_options *o, const mp_synth_family *family, mp_error *err)
{
    const struct {
        const char *what;
        bool allowed;
        uint32_t count;
    } parts[] = {
        {"shared experts", mp_family_find(o->family)->shared, o->num_shared_experts},
        {"dense layers", family->dense, o->num_dense},
        {"hash layers", family->token_table != NULL, o->num_hash_layers},
        {"MTP blocks", family->mtp, o->num_mtp},
    };

    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (parts[i].count > 0 && !parts[i].allowed)
            return mp_fail(err, MP_ERR_UNSUPPORTED, "family \"%s\" has no %s; %u asked for",
                           o->family, parts[i].what, parts[i].count);
    return 0;
}

static int check_ranges(const mp_synth_options *o, mp_error *err)
{
    const struct {
        const char *what;
        uint64_t value, min, max;
    } numbers[] = {
        {"hidden size", o->hidden_size, 1, SIZE_LIMIT},
        {"intermediate size", o->intermediate_size, 1, SIZE_LIMIT},
        {"dense intermediate size", o->dense_intermediate_size, o->num_dense > 0, SIZE_LIMIT},
        {"vocabulary size", o->vocab_size, 1, SIZE_LIMIT},
        {"number of experts", o->num_experts, 1, COUNT_LIMIT},
        {"number of shared experts", o->num_shared_experts, 0, COUNT_LIMIT},
        {"top-k", o->top_k, 1, o->num_experts},
        {"number of layers", o->num_layers, 1, COUNT_LIMIT},
        {"number of dense layers", o->num_dense, 0, o->num_layers - 1},
        {"number of hash layers", o->num_hash_layers, 0, o->num_layers},
        {"number of MTP blocks", o->num_mtp, 0, COUNT_LIMIT},
    };

    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (numbers[i].value < numbers[i].min || numbers[i].value > numbers[i].max)
            return mp_fail(err, MP_ERR_USAGE, "%s is %llu; it has to be %llu to %llu",
                           numbers[i].what, (unsigned long long)numbers[i].value,
                           (unsigned long long)numbers[i].min, (unsigned long long)numbers[i].max);
    if (!isfinite(o->routed_scaling_factor) || o->routed_scaling_factor < 0)
        return mp_fail(err, MP_ERR_USAGE, "routed scaling factor is %g; it has to be 0 or more",
                       o->routed_scaling_factor);
    return 0;
}

/* Blocks of one row cannot be ragged: both sizes are the K of some matrix. */
static int check_blocks(const mp_synth_options *o, const mp_synth_form *form, mp_error *err)
{
    const struct {
        const char *what;
        uint64_t value;
    } sizes[] = {{"hidden size", o->hidden_size}, {"intermediate size", o->intermediate_size}};

    for (size_t i = 0; i < 2 && form->block_rows == 1; i++)
        if (sizes[i].value % form->block_cols != 0)
            return mp_fail(err, MP_ERR_USAGE, "%s is %llu; for %s it has to be a multiple of %u",
                           sizes[i].what, (unsigned long long)sizes[i].value,
                           mp_scheme_name(o->scheme), form->block_cols);
    return 0;
}

int mp_synth_check(const mp_synth_options *options, const mp_synth_family **family,
                   const mp_synth_format **format, mp_error *err)
{
    *family = mp_synth_family_find(options->family);
    if (!*family)
        return no_such_family(options->family, err);
    *format = find_format(*family, options->scheme);
    if (!*format)
        return no_such_scheme(options, err);

    int rc = check_ranges(options, err);
    if (rc == 0)
        rc = check_parts(options, *family, err);
    if (rc == 0)
        rc = check_blocks(options, (*format)->routed, err);
    return rc;
}
