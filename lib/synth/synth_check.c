/* SPDX-License-Identifier: Apache-2.0 */
/* Which options of a synthetic checkpoint make sense, and what to say of the others. A checkpoint
 * that no model could be is of no use to anyone, so sizes have to go together: top-k within the
 * experts, dense layers within the layers, parts that the family has, blocks that divide. Limits
 * are far beyond what exists and small enough that products of sizes and counts that follow fit 64
 * bits; what they make of bytes is checked again when tensors are added. */
#include "synth/parts.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "checkpoint/families.h"

/* Far beyond what exists, and small enough for products to fit. */
#define SIZE_LIMIT  (1u << 24)
#define COUNT_LIMIT (1u << 16)

#define LIST_TEXT 320

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

/* Lists the schemes of a family; with one given, the styles that it has of this. */
static void list_formats(const mp_synth_family *family, const mp_scheme *scheme,
                         char text[LIST_TEXT])
{
    bool schemes[MP_SCHEME_COUNT] = {false}; /* those that are listed */
    const char *names[MP_SCHEME_COUNT + MP_STYLE_COUNT];
    const mp_synth_format *format;
    size_t count = 0;

    for (size_t i = 0; (format = mp_synth_family_format(family, i)); i++) {
        if (scheme ? format->scheme != *scheme : schemes[format->scheme])
            continue;
        schemes[format->scheme] = true;
        names[count++] =
            scheme ? mp_synth_style_name(format->style) : mp_scheme_name(format->scheme);
    }
    for (size_t i = 0; i < count; i++)
        list_item(text, names[i], i, count);
}

/* Finds the family's format of the scheme and style; *has_scheme: it has the scheme. */
static const mp_synth_format *find_format(const mp_synth_family *family, const mp_synth_options *o,
                                          bool *has_scheme)
{
    const mp_synth_format *format;

    *has_scheme = false;
    for (size_t i = 0; (format = mp_synth_family_format(family, i)); i++) {
        if (format->scheme != o->scheme)
            continue;
        *has_scheme = true;
        if (o->style == MP_STYLE_USUAL || format->style == o->style)
            return format;
    }
    return NULL;
}

static int no_such_format(const mp_synth_options *options, const mp_synth_family *family,
                          bool has_scheme, mp_error *err)
{
    char text[LIST_TEXT] = "";

    list_formats(family, has_scheme ? &options->scheme : NULL, text);
    if (has_scheme)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "experts of family \"%s\" in %s are of style %s, not %s", options->family,
                       mp_scheme_name(options->scheme), text, mp_synth_style_name(options->style));
    return mp_fail(err, MP_ERR_UNSUPPORTED, "experts of family \"%s\" are %s, not %s",
                   options->family, text, mp_scheme_name(options->scheme));
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
        /* Needed only where there are dense layers. */
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

/* Columns that an element of a part stands for are all there: both sizes are the K of some
 * matrix. Blocks of more than one row may be ragged. */
static int check_part(const mp_synth_options *o, const mp_synth_part *part, mp_error *err)
{
    const struct {
        const char *what;
        uint64_t value;
    } sizes[] = {{"hidden size", o->hidden_size}, {"intermediate size", o->intermediate_size}};

    if (part->block_rows != 1 || part->block_cols == MP_SYNTH_WHOLE)
        return 0;
    for (size_t i = 0; i < 2; i++)
        if (sizes[i].value % part->block_cols != 0)
            return mp_fail(err, MP_ERR_USAGE, "%s is %llu; for %s it has to be a multiple of %u",
                           sizes[i].what, (unsigned long long)sizes[i].value,
                           mp_scheme_name(o->scheme), part->block_cols);
    return 0;
}

int mp_synth_check(const mp_synth_options *options, const mp_synth_family **family,
                   const mp_synth_format **format, mp_error *err)
{
    const mp_convention *convention;
    bool has_scheme;
    int rc;

    *family = mp_synth_family_find(options->family);
    if (!*family)
        return no_such_family(options->family, err);
    *format = find_format(*family, options, &has_scheme);
    if (!*format)
        return no_such_format(options, *family, has_scheme, err);

    rc = check_ranges(options, err);
    if (rc == 0)
        rc = check_parts(options, *family, err);
    convention = mp_synth_convention((*format)->routed);
    for (unsigned p = MP_SYNTH_PARTS; p-- > 0 && rc == 0;) { /* scales first: they ask for more */
        const mp_synth_part part = mp_synth_form_part((*format)->routed, convention, p);

        if (part.suffix)
            rc = check_part(options, &part, err);
    }
    return rc;
}
