/* SPDX-License-Identifier: Apache-2.0 */
/* moepack synth: a made-up checkpoint in the exact form of a released one. It starts from a preset,
 * the shapes of a released model, or from a family with shapes of the user's own; every number
 * given replaces one of these. Numbers of a preset that the given sizes leave no room for are
 * lowered, so that a small copy of a large model takes few options; numbers that are given are
 * never changed. */
#include "commands.h"
#include "output.h"
#include "progress.h"
#include "zstd.h"

#include "synth/synth.h"
#include <string.h>

/* What a number holds that was not given. */
#define UNSET UINT64_MAX

#define FORMAT_UNSET (-1)

/* Of a family without a preset. */
#define USUAL_VOCABULARY 32000

#define SIZE_MAX_OPTION  (1u << 24)
#define COUNT_MAX_OPTION (1u << 16)

typedef struct synth_options {
    common_options common;
    const char *output;
    const char *preset;
    const char *family;
    uint64_t hidden;
    uint64_t intermediate;
    uint64_t experts;
    uint64_t shared;
    uint64_t layers;
    uint64_t top_k;
    uint64_t mtp;
    uint64_t dense;
    uint64_t dense_intermediate;
    uint64_t hash_layers;
    uint64_t vocab;
    double routed_scaling; /* negative: not given */
    int format;            /* an mp_scheme, or FORMAT_UNSET */
    int style;             /* an mp_synth_style */
    uint64_t seed;
    uint64_t max_shard_size;
    const char *zstd;
    bool zstd_given;
    bool list;
} synth_options;

static const char *preset_name(size_t index)
{
    size_t count;
    const mp_preset *presets = mp_presets(&count);

    return index < count ? presets[index].name : NULL;
}

/* Begins with the vocabulary and scaling factor of a family's first preset, if it has one, and
 * no sizes. */
static int start_from_family(const synth_options *o, mp_synth_options *synth, mp_error *err)
{
    const struct {
        const char *option;
        uint64_t value;
    } needed[] = {
        {"hidden", o->hidden},   {"intermediate", o->intermediate},
        {"experts", o->experts}, {"layers", o->layers},
        {"top-k", o->top_k},
    };
    size_t count;
    const mp_preset *preset = mp_presets(&count);

    *synth = (mp_synth_options){
        .family = o->family, .vocab_size = USUAL_VOCABULARY, .routed_scaling_factor = 1};
    for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++)
        if (needed[i].value == UNSET)
            return cmd_fail(err, MP_ERR_USAGE, "--family needs --%s", needed[i].option);
    mp_synth_scheme(o->family, 0, &synth->scheme, NULL);
    for (size_t i = 0; i < count; i++)
        if (strcmp(preset[i].options.family, o->family) == 0) {
            synth->vocab_size = preset[i].options.vocab_size;
            synth->routed_scaling_factor = preset[i].options.routed_scaling_factor;
            break;
        }
    return 0;
}

static void replace_u64(uint64_t *number, uint64_t given)
{
    if (given != UNSET)
        *number = given;
}

static void replace_u32(uint32_t *number, uint64_t given)
{
    if (given != UNSET)
        *number = (uint32_t)given;
}

static void lower(uint32_t *number, uint32_t limit)
{
    if (*number > limit)
        *number = limit;
}

/* Lowers numbers of a preset to what the sizes given leave room for. */
static void fit(mp_synth_options *synth)
{
    lower(&synth->top_k, synth->num_experts);
    /* Layers are at least 1. */
    lower(&synth->num_dense, synth->num_layers - 1);
    lower(&synth->num_hash_layers, synth->num_layers);
}

/* A style without a format means the first format in that style. */
static void apply_format(const synth_options *o, mp_synth_options *synth)
{
    mp_scheme scheme;
    mp_synth_style style;

    synth->style = (mp_synth_style)o->style;
    if (o->format != FORMAT_UNSET)
        synth->scheme = (mp_scheme)o->format;
    else if (synth->style != MP_STYLE_USUAL)
        for (size_t i = 0; mp_synth_scheme(synth->family, i, &scheme, &style); i++)
            if (style == synth->style) {
                synth->scheme = scheme;
                return;
            }
}

static void apply(const synth_options *o, mp_synth_options *synth)
{
    replace_u64(&synth->hidden_size, o->hidden);
    replace_u64(&synth->intermediate_size, o->intermediate);
    replace_u32(&synth->num_experts, o->experts);
    replace_u32(&synth->num_shared_experts, o->shared);
    replace_u32(&synth->num_layers, o->layers);
    fit(synth);
    replace_u32(&synth->top_k, o->top_k);
    replace_u32(&synth->num_mtp, o->mtp);
    replace_u32(&synth->num_dense, o->dense);
    replace_u64(&synth->dense_intermediate_size, o->dense_intermediate);
    replace_u32(&synth->num_hash_layers, o->hash_layers);
    replace_u64(&synth->vocab_size, o->vocab);
    if (o->routed_scaling >= 0)
        synth->routed_scaling_factor = o->routed_scaling;
    apply_format(o, synth);
    synth->seed = o->seed;
    synth->max_shard_size = o->max_shard_size;
}

/* A line for each form that the experts of a family can have. */
static void print_forms(const char *family)
{
    mp_scheme scheme;
    mp_synth_style style;

    for (size_t i = 0; mp_synth_scheme(family, i, &scheme, &style); i++)
        printf("%s %s %s\n", family, mp_scheme_name(scheme), mp_synth_style_name(style));
}

static int list_forms(const synth_options *o)
{
    if (o->family)
        print_forms(o->family);
    for (size_t i = 0; !o->family && mp_synth_family_name(i); i++)
        print_forms(mp_synth_family_name(i));
    return 0;
}

static int run_synth(const void *values, mp_error *err)
{
    const synth_options *o = values;
    mp_synth_options synth;
    mp_context context;

    if (o->list)
        return list_forms(o);
    if (!o->output)
        return cmd_fail(err, MP_ERR_USAGE, "option --output is required");
    if (!o->preset == !o->family)
        return cmd_fail(err, MP_ERR_USAGE, "give either --preset or --family");
    if (o->preset)
        synth = mp_preset_find(o->preset)->options;
    else if (start_from_family(o, &synth, err) != 0)
        return err->code;
    apply(o, &synth);
    if (zstd_option(o->zstd, o->zstd_given, &synth.zstd, err) != 0)
        return err->code;
    cmd_context(&o->common, &context);
    return mp_synth(&synth, o->output, &context, err);
}

static const cmd_choice formats[] = {
    {"mxfp4", MP_SCHEME_MXFP4},
    {"mxfp8", MP_SCHEME_MXFP8},
    {"fp8_block", MP_SCHEME_FP8_BLOCK},
    {"fp8_channel", MP_SCHEME_FP8_CHANNEL},
    {"nvfp4", MP_SCHEME_NVFP4},
    {"int8_channel", MP_SCHEME_INT8_CHANNEL},
    {"int4_group", MP_SCHEME_INT4_GROUP},
    {"bf16", MP_SCHEME_BF16},
    {NULL, 0},
};

static const cmd_choice styles[] = {
    {"usual", MP_STYLE_USUAL},
    {"vendor", MP_STYLE_VENDOR},
    {"compressed-tensors", MP_STYLE_COMPRESSED_TENSORS},
    {"modelopt", MP_STYLE_MODELOPT},
    {"modelslim", MP_STYLE_MODELSLIM},
    {NULL, 0},
};

#define SIZE(name, member, low, help) \
    OPT_U64(0, name, "N", synth_options, member, low, SIZE_MAX_OPTION, help)
#define NUMBER(name, member, low, help) \
    OPT_U64(0, name, "N", synth_options, member, low, COUNT_MAX_OPTION, help)

static const cmd_option options[] = {
    OPT_STRING('o', "output", "DIR", synth_options, output, "write the checkpoint to DIR"),
    OPT_STRING(0, "preset", "NAME", synth_options, preset,
               "start from the shapes of a released model", .choice_name = preset_name),
    OPT_STRING(0, "family", "NAME", synth_options, family, "start from a family without shapes",
               .choice_name = mp_synth_family_name),
    SIZE("hidden", hidden, 1, "hidden size"),
    SIZE("intermediate", intermediate, 1, "intermediate size of an expert"),
    NUMBER("experts", experts, 1, "routed experts per layer"),
    NUMBER("shared", shared, 0, "shared experts per layer"),
    NUMBER("layers", layers, 1, "decoder layers"),
    NUMBER("top-k", top_k, 1, "experts per token"),
    NUMBER("mtp", mtp, 0, "MTP blocks, in addition to the decoder layers"),
    NUMBER("dense", dense, 0, "dense layers at the start"),
    SIZE("dense-intermediate", dense_intermediate, 1, "intermediate size of a dense layer"),
    NUMBER("hash-layers", hash_layers, 0, "layers at the start that route by token id"),
    SIZE("vocab", vocab, 1, "vocabulary size"),
    OPT_DOUBLE(0, "routed-scaling", "X", synth_options, routed_scaling, 0, 1e6,
               "scaling factor for the sum of the routed experts"),
    OPT_CHOICE(0, "format", "SCHEME", synth_options, format, formats,
               "scheme of the routed experts; not every family has all"),
    OPT_CHOICE(0, "style", "STYLE", synth_options, style, styles,
               "names and types to use for that scheme"),
    OPT_U64(0, "seed", "N", synth_options, seed, 0, UINT64_MAX, "seed of the weights"),
    OPT_SIZE(0, "max-shard-size", "SIZE", synth_options, max_shard_size, 1, INT64_MAX,
             "maximum size of the tensors in a shard"),
    OPT_STRING(0, "zstd", "LEVEL", synth_options, zstd,
               "compress each shard as it is finished: 1 to 22, or auto",
               .flags = OPT_OPTIONAL_VALUE, .given = offsetof(synth_options, zstd_given)),
    OPT_FLAG(0, "list", synth_options, list, "list families with their schemes and styles"),
    OPT_END,
};

static const synth_options defaults = {
    .hidden = UNSET,
    .intermediate = UNSET,
    .experts = UNSET,
    .shared = UNSET,
    .layers = UNSET,
    .top_k = UNSET,
    .mtp = UNSET,
    .dense = UNSET,
    .dense_intermediate = UNSET,
    .hash_layers = UNSET,
    .vocab = UNSET,
    .routed_scaling = -1,
    .format = FORMAT_UNSET,
    .max_shard_size = 5000000000,
};

const command command_synth = {
    .name = "synth",
    .summary = "make a synthetic checkpoint in the form of a released one",
    .options = options,
    COMMAND_DEFAULTS(defaults),
    .computes = true,
    .run = run_synth,
};
