/* SPDX-License-Identifier: Apache-2.0 */
/* moepack forward: the reference forward of one MoE layer, of a checkpoint or of a packed
 * directory.
 *
 *   open    layer and router, experts or slots, what experts compute
 *   tokens  of a file, or made up from a seed
 *   choose  by the router, unless the file has choices
 *   place   shared experts behind the routed ones; choices of experts become choices of slots
 *   compute, write, print
 *
 * Both kinds of input end in an expert source, so that all from `compute` on is the same; comparing
 * the two outputs with diff is what the command is for. A packed directory has no router and not
 * all of config.json's tensors: what is missing is asked for (--source) and never guessed. */
#include "choices.h"
#include "commands.h"
#include "files.h"
#include "forward_tokens.h"
#include "output.h"
#include "progress.h"

#include <inttypes.h>
#include <math.h>
#include <moepack/artifact.h>
#include <moepack/reference.h>
#include <stdlib.h>
#include <string.h>

typedef struct forward_options {
    common_options common;
    const char *input; /* the checkpoint or packed directory */
    const char *layer;
    const char *tokens_file;
    uint64_t tokens;
    uint64_t seed;
    mp_emulation emulation;
    bool no_shared;
    bool requantize_shared;
    const char *source;
    mp_dispatch dispatch;
    mp_waterfill_mode waterfill;
    const char *output;
} forward_options;

typedef struct forward_job {
    const forward_options *o;
    mp_context context;
    bool packed;
    mp_catalog catalog; /* of the checkpoint, or of --source */
    const mp_moe_layer *layer;
    mp_layer_router router;
    mp_catalog_experts experts;
    mp_pack pack;
    mp_shared_expert alone; /* a shared expert that no slots can hold */
    mp_packed_experts slots;
    mp_config config; /* of a packed directory */
    mp_forward_options how;
    forward_tokens t;
    uint32_t columns;    /* choices of a token, shared experts included */
    int32_t *ids;        /* [tokens, columns] of what is computed: experts or slots */
    float *weights;      /* [tokens, columns] */
    float *identity;     /* [tokens], or null: what x itself weighs */
    double *y;           /* [tokens, H] */
    double rms, max_abs; /* of y */
} forward_job;

static const mp_expert_source *source_of(const forward_job *job)
{
    return job->packed ? &job->slots.source : &job->experts.source;
}

static int no_memory(mp_error *err)
{
    return cmd_fail(err, MP_ERR_IO, "out of memory");
}

/* ------------------------------------------------------------------------
 * Opening
 */

/* The layer of a checkpoint, with its router. */
static int open_layer(forward_job *job, const char *path, const char *layer, mp_error *err)
{
    int rc = mp_catalog_open(&job->catalog, path, &job->context, err);

    if (rc == 0)
        rc = mp_catalog_choose(&job->catalog, layer, err);
    if (rc == 0)
        rc = mp_catalog_check(&job->catalog, err);
    if (rc == 0)
        rc = mp_find_layer(&job->catalog, layer, &job->layer, err);
    if (rc == 0)
        rc = mp_layer_router_open(&job->router, &job->catalog, job->layer, err);
    return rc;
}

/* No kernel clamps behind SiLU, or does what GPT-OSS does. */
static int find_activation(forward_job *job, const mp_config *config, uint64_t layer, mp_error *err)
{
    mp_forward_options *how = &job->how;
    int rc = mp_model_activation(config, layer, &how->activation, &how->shared_activation,
                                 &how->weigh_input, err);

    if (rc == 0 && how->emulation != MP_EMULATE_EXACT && how->activation.late &&
        how->activation.limit > 0)
        rc = cmd_fail(err, MP_ERR_UNSUPPORTED,
                      "layer %" PRIu64 ": swiglu_limits[%" PRIu64
                      "] clamps after SiLU, which no kernel does; --emulate exact computes it",
                      layer, layer);
    return rc;
}

/* A shared expert of another width than some routed ones together. */
static int open_alone(forward_job *job, mp_error *err)
{
    if (job->how.emulation != MP_EMULATE_EXACT)
        return cmd_fail(err, MP_ERR_UNSUPPORTED,
                        "%s: the shared expert, %" PRIu64
                        " wide, is not a multiple of a routed one: no kernel computes it; give "
                        "--no-shared, or --emulate exact",
                        job->layer->prefix, job->layer->shared_width);
    return mp_shared_expert_open(&job->alone, &job->catalog, job->layer, &job->context, err);
}

/* Weights become what the emulated kernel takes; those of shared experts only where the user
 * says so, or the kernel takes nothing else. */
static int open_experts(forward_job *job, mp_error *err)
{
    const mp_scheme scheme = mp_emulation_scheme(job->o->emulation);
    bool shared = job->o->requantize_shared || scheme == MP_SCHEME_INT8_CHANNEL;
    const mp_catalog_experts_options options = {
        .scheme = scheme,
        .shared_scheme = shared ? scheme : MP_SCHEME_COUNT,
    };
    int rc = open_layer(job, job->o->input, job->o->layer, err);

    if (rc == 0)
        rc = find_activation(job, &job->catalog.config, job->layer->number, err);
    if (rc == 0)
        rc = mp_catalog_experts_open(&job->experts, &job->catalog, job->layer, &options,
                                     &job->context, err);
    /* Ids from here on take the activation of shared experts. */
    job->how.first_shared = job->layer ? job->layer->num_experts : 0;
    if (rc == 0 && job->layer->has_shared && job->router.shared == 0 && !job->o->no_shared)
        rc = open_alone(job, err);
    return rc;
}

/* Without its checkpoint: shared experts weigh 1, unless the family has a gate for them. */
static int add_packed_shared(forward_job *job, mp_error *err)
{
    const mp_manifest *m = &job->pack.manifest;
    const mp_family *family = mp_family_find(m->family);
    const mp_family *known = mp_family_of_type(job->config.model_type);

    if (!family || family->shared_gate || !known || known->shared_gate)
        return cmd_fail(err, MP_ERR_USAGE,
                        "the weight of shared experts is in the checkpoint: give --source, or "
                        "--no-shared");
    job->router.router.num_experts = job->router.num_experts = (uint32_t)m->num_experts;
    job->router.part = 1;
    job->router.shared = (uint32_t)m->num_shared_experts;
    return 0;
}

/* Whether the model has shared experts, as far as anything at hand says. */
static bool has_shared(const forward_job *job)
{
    const uint64_t said = job->config.num_shared_experts;

    return job->router.shared > 0 || job->pack.manifest.num_shared_experts > 0 ||
           (said != MP_CONFIG_ABSENT && said > 0);
}

/* The number that ends "model.layers.3"; none of "mtp.0". */
static uint64_t number_of(const char *layer)
{
    const char *dot = strrchr(layer, '.');

    return dot && !strstr(layer, "mtp") ? strtoull(dot + 1, NULL, 10) : UINT64_MAX;
}

static int open_slots(forward_job *job, mp_error *err)
{
    const forward_options *o = job->o;
    const mp_manifest *m = &job->pack.manifest;
    size_t layer = 0;
    int rc = mp_pack_open(&job->pack, o->input, NULL, &job->context, err);

    if (rc == 0)
        rc = mp_pack_layer(&job->pack, o->layer, &layer, err);
    if (rc == 0)
        rc = mp_packed_experts_init(&job->slots, &job->pack, layer, err);
    if (rc == 0)
        rc = mp_config_load(&job->config, o->input, err);
    if (rc == 0)
        rc = find_activation(job, &job->config, number_of(m->layers[layer]), err);
    if (rc == 0)
        rc = mp_model_check_block(&job->config, !o->source, err);
    if (rc == 0 && o->source)
        rc = open_layer(job, o->source, m->layers[layer], err);
    if (rc != 0)
        return rc;
    if (m->shared != MP_SHARED_NONE && !o->source && !o->no_shared)
        return add_packed_shared(job, err);
    if (m->shared == MP_SHARED_NONE && has_shared(job) && !o->no_shared)
        return cmd_fail(err, MP_ERR_USAGE,
                        "the shared experts are not packed: leave them out with --no-shared");
    return 0;
}

/* ------------------------------------------------------------------------
 * Tokens and choices
 */

static int get_tokens(forward_job *job, mp_error *err)
{
    const forward_options *o = job->o;
    uint64_t hidden_size = source_of(job)->hidden_size;

    if (o->tokens_file)
        return forward_tokens_read(&job->t, o->tokens_file, hidden_size, err);
    return forward_tokens_make(&job->t, o->seed, o->tokens, hidden_size, job->router.vocab, err);
}

static int choose(forward_job *job, mp_error *err)
{
    forward_tokens *t = &job->t;

    if (t->ids)
        return 0;
    if (!job->layer)
        return cmd_fail(err, MP_ERR_USAGE,
                        "a pack has no router: give --source, or topk_ids and "
                        "topk_weights in --input");
    if (job->router.scale_taken && !job->o->common.quiet)
        fprintf(stderr,
                "moepack: forward: note: config.json: no routed_scaling_factor; 1 is taken\n");
    t->k = job->router.router.k;
    t->ids = calloc(t->tokens, t->k * sizeof *t->ids);
    t->weights = calloc(t->tokens, t->k * sizeof *t->weights);
    if (!t->ids || !t->weights)
        return no_memory(err);
    return mp_layer_route(&job->router, t->x, t->token_ids, t->tokens, &job->context, t->ids,
                          t->weights, err);
}

/* Zero experts are no choice of any expert; x is added by itself. */
static int take_zero(forward_job *job, int32_t *ids, mp_error *err)
{
    const forward_tokens *t = &job->t;

    memcpy(ids, t->ids, t->tokens * t->k * sizeof *ids);
    if (job->router.router.num_experts <= job->router.num_experts)
        return 0;
    job->identity = calloc(t->tokens + 1, sizeof *job->identity);
    if (!job->identity)
        return no_memory(err);
    mp_layer_take_zero(&job->router, t->tokens, t->k, ids, t->weights, job->identity);
    return 0;
}

/* What is computed: choices with the shared experts behind them, as experts or as slots. */
static int place_choices(forward_job *job, mp_error *err)
{
    const forward_tokens *t = &job->t;
    uint32_t shared = job->o->no_shared ? 0 : job->router.shared;
    const mp_packed_dispatch how = {job->o->dispatch, job->o->waterfill};

    job->columns = t->k + shared;
    /* Bounded by --tokens, or by tensors that are there; calloc checks the product again. */
    uint64_t count = t->tokens * job->columns;
    int32_t *routed = calloc(t->tokens * t->k + 1, sizeof *routed);
    int32_t *ids = calloc(count + 1, sizeof *ids);
    float *weights = calloc(count + 1, sizeof *weights);
    job->ids = calloc(count + 1, sizeof *job->ids);
    job->weights = calloc(count + 1, sizeof *job->weights);
    bool room = routed && ids && weights && job->ids && job->weights;
    int rc = room ? take_zero(job, routed, err) : no_memory(err);
    if (rc == 0 && (job->layer || shared > 0))
        mp_layer_add_shared(&job->router, t->x, t->tokens, t->k, shared, routed, t->weights, ids,
                            weights);
    else if (rc == 0) {
        /* Without shared experts the columns are the same. */
        memcpy(ids, routed, count * sizeof *ids);
        memcpy(weights, t->weights, count * sizeof *weights);
    }
    if (rc == 0 && job->packed)
        rc = mp_packed_route(&job->slots, &how, ids, weights, t->tokens, t->k, shared, job->ids,
                             job->weights, err);
    else if (rc == 0) {
        memcpy(job->ids, ids, count * sizeof *ids);
        memcpy(job->weights, weights, count * sizeof *weights);
    }
    free(routed);
    free(ids);
    free(weights);
    return rc;
}

/* ------------------------------------------------------------------------
 * Computing
 */

static int compute(forward_job *job, mp_error *err)
{
    const mp_expert_source *source = source_of(job);
    const mp_batch batch = {job->t.tokens, job->columns, job->t.x, job->ids, job->weights};
    uint64_t n = job->t.tokens * source->hidden_size;
    double sum = 0;

    job->y = calloc(n + 1, sizeof *job->y);
    if (!job->y)
        return no_memory(err);
    job->how.identity = job->identity;
    job->how.bias = job->router.block_bias;
    if (mp_forward(source, &job->how, &batch, &job->context, job->y, err) != 0)
        return err->code;
    if (job->alone.experts.catalog && mp_shared_expert_add(&job->alone, &job->router, &job->how,
                                                           &batch, &job->context, job->y, err) != 0)
        return err->code;
    for (uint64_t i = 0; i < n; i++) {
        sum += job->y[i] * job->y[i];
        job->max_abs = fmax(job->max_abs, fabs(job->y[i]));
    }
    job->rms = n ? sqrt(sum / (double)n) : 0;
    return 0;
}

/* Experts or slots that were chosen. */
static int count_used(const forward_job *job, uint32_t *used, mp_error *err)
{
    bool *seen = calloc(source_of(job)->count, sizeof *seen);

    *used = 0;
    if (!seen)
        return no_memory(err);
    for (uint64_t i = 0; i < job->t.tokens * job->columns; i++) {
        if (job->ids[i] >= 0 && !seen[job->ids[i]]) {
            seen[job->ids[i]] = true;
            (*used)++;
        }
    }
    free(seen);
    return 0;
}

/* ------------------------------------------------------------------------
 * Output
 */

#define TENSORS_MAX 5

/* Emulations give BF16 values, which float32 holds. */
static float *narrow_y(const forward_job *job, uint64_t count)
{
    float *y = calloc(count + 1, sizeof *y);

    for (uint64_t i = 0; y && i < count; i++)
        y[i] = (float)job->y[i];
    return y;
}

/* Wide elements first, so that each tensor is aligned. */
static int write_tensors(const forward_job *job, const float *narrow, mp_error *err)
{
    const forward_tokens *t = &job->t;
    const uint64_t of_x[] = {t->tokens, source_of(job)->hidden_size};
    const uint64_t of_choices[] = {t->tokens, t->k};
    bool made = !job->o->tokens_file;
    mp_tensor_spec specs[TENSORS_MAX];
    file_piece pieces[TENSORS_MAX + 1];
    uint64_t header_bytes, offsets[TENSORS_MAX + 1];
    size_t n = 0;
    char *header;

#define ADD(name_, dtype_, rank_, shape_, data_)                   \
    do {                                                           \
        specs[n] = (mp_tensor_spec){name_, dtype_, rank_, shape_}; \
        pieces[++n].data = data_;                                  \
    } while (0)
    if (!narrow)
        ADD("y", MP_F64, 2, of_x, job->y);
    if (made && t->token_ids)
        ADD("token_ids", MP_I64, 1, of_x, t->token_ids);
    if (narrow)
        ADD("y", MP_F32, 2, of_x, narrow);
    ADD("topk_ids", MP_I32, 2, of_choices, t->ids);
    ADD("topk_weights", MP_F32, 2, of_choices, t->weights);
    if (made)
        ADD("x", MP_F32, 2, of_x, t->x);
#undef ADD
    int rc = mp_safetensors_header(specs, n, NULL, 0, 64, &header, &header_bytes, offsets, err);
    if (rc != 0)
        return rc;
    pieces[0] = (file_piece){header, header_bytes};
    for (size_t i = 0; i < n; i++)
        pieces[i + 1].bytes = offsets[i + 1] - offsets[i];
    rc = write_pieces(job->o->output, pieces, n + 1, err);
    free(header);
    return rc;
}

static int write_output(const forward_job *job, mp_error *err)
{
    bool exact = job->o->emulation == MP_EMULATE_EXACT;
    float *narrow = NULL;

    if (!job->o->output)
        return 0;
    if (!exact)
        narrow = narrow_y(job, job->t.tokens * source_of(job)->hidden_size);
    int rc = exact || narrow ? write_tensors(job, narrow, err) : no_memory(err);
    free(narrow);
    return rc;
}

static const char *layer_name(const forward_job *job)
{
    return job->packed ? job->pack.manifest.layers[job->slots.layer] : job->layer->prefix;
}

static int print_result(const forward_job *job, mp_error *err)
{
    const char *emulation = mp_emulation_name(job->o->emulation);
    uint32_t used;

    if (job->o->output && strcmp(job->o->output, "-") == 0)
        return 0;
    int rc = count_used(job, &used, err);
    if (rc != 0)
        return rc;
    if (job->o->common.json)
        return print_json(json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:f, s:f}", "layer",
                                    layer_name(job), "emulation", emulation, "tokens",
                                    (json_int_t)job->t.tokens, "experts_per_token",
                                    (json_int_t)job->t.k, "shared_per_token",
                                    (json_int_t)(job->columns - job->t.k),
                                    job->packed ? "slots_used" : "experts_used", (json_int_t)used,
                                    "rms", job->rms, "max_abs", job->max_abs),
                          err);
    printf("%s, %s: %" PRIu64 " token%s, %u expert%s and %u shared each; %u %s of %u used\n",
           layer_name(job), emulation, job->t.tokens, mp_plural(job->t.tokens), job->t.k,
           mp_plural(job->t.k), job->columns - job->t.k, used, job->packed ? "slots" : "experts",
           source_of(job)->count);
    printf("y: rms %.9g, largest %.9g\n", job->rms, job->max_abs);
    return 0;
}

/* ------------------------------------------------------------------------
 * The command
 */

static int check_options(const forward_job *job, mp_error *err)
{
    const forward_options *o = job->o;

    if (!o->tokens_file == !o->tokens)
        return cmd_fail(err, MP_ERR_USAGE, "give either --input or --tokens");
    if (!job->packed && o->source)
        return cmd_fail(err, MP_ERR_USAGE, "--source is for packs only");
    if (job->packed && o->requantize_shared)
        return cmd_fail(err, MP_ERR_USAGE, "--requantize-shared is for checkpoints only");
    if (!job->packed && (o->dispatch != MP_DISPATCH_NEAREST || o->waterfill != MP_WATERFILL_OFF))
        return cmd_fail(err, MP_ERR_USAGE, "--dispatch and --waterfill are for packs only");
    return 0;
}

static void release(forward_job *job)
{
    forward_tokens_release(&job->t);
    mp_catalog_experts_release(&job->experts);
    mp_pack_release(&job->pack);
    mp_shared_expert_release(&job->alone);
    mp_layer_router_release(&job->router);
    mp_catalog_release(&job->catalog);
    mp_config_release(&job->config);
    free(job->ids);
    free(job->weights);
    free(job->identity);
    free(job->y);
}

static int run_forward(const void *values, mp_error *err)
{
    const forward_options *o = values;
    forward_job job = {.o = o, .packed = mp_is_packed(o->input), .how.emulation = o->emulation};
    int rc = check_options(&job, err);

    cmd_context(&o->common, &job.context);
    if (rc == 0)
        rc = job.packed ? open_slots(&job, err) : open_experts(&job, err);
    if (rc == 0 && job.how.activation.situ > 0 && o->emulation != MP_EMULATE_EXACT)
        rc = cmd_fail(err, MP_ERR_UNSUPPORTED, "no kernel computes SiTU: leave out --emulate %s",
                      mp_emulation_name(o->emulation));
    if (rc == 0)
        rc = get_tokens(&job, err);
    if (rc == 0)
        rc = choose(&job, err);
    if (rc == 0)
        rc = place_choices(&job, err);
    if (rc == 0)
        rc = compute(&job, err);
    progress_clear();
    if (rc == 0)
        rc = write_output(&job, err);
    if (rc == 0)
        rc = print_result(&job, err);
    release(&job);
    return rc;
}

static const cmd_choice emulations[] = {
    {"exact", MP_EMULATE_EXACT},   {"w4a8", MP_EMULATE_W4A8},
    {"w4a4", MP_EMULATE_W4A4},     {"nvfp4", MP_EMULATE_NVFP4},
    {"bf16", MP_EMULATE_BF16},     {"sm90-fp8", MP_EMULATE_SM90_FP8},
    {"fuseep", MP_EMULATE_FUSEEP}, {NULL, 0},
};

static const cmd_option options[] = {
    OPT_STRING('o', "output", "Y", forward_options, output,
               "write the result to the safetensors file Y, - for standard output"),
    OPT_STRING(0, "layer", "L", forward_options, layer, "the layer: its number or its prefix",
               .flags = OPT_REQUIRED),
    OPT_STRING(0, "input", "X", forward_options, tokens_file,
               "read tokens, and optionally their choices, from the safetensors file X"),
    OPT_U64(0, "tokens", "N", forward_options, tokens, 1, 1u << 24, "generate N tokens"),
    OPT_U64(0, "seed", "N", forward_options, seed, 0, UINT64_MAX, "seed of generated tokens"),
    OPT_CHOICE(0, "emulate", "KIND", forward_options, emulation, emulations, "arithmetic to use"),
    OPT_FLAG(0, "no-shared", forward_options, no_shared, "leave out the shared experts"),
    OPT_FLAG(0, "requantize-shared", forward_options, requantize_shared,
             "requantize shared experts for the kernel too"),
    OPT_STRING(0, "source", "CKPT", forward_options, source,
               "checkpoint that a pack was made from, for its router"),
    OPT_CHOICE(0, "dispatch", "RULE", forward_options, dispatch, dispatch_choices,
               "for a pack: which copy of an expert a choice goes to"),
    OPT_CHOICE(0, "waterfill", "MODE", forward_options, waterfill, waterfill_choices,
               "how to find a less loaded rank for the shared expert"),
    OPT_JSON(forward_options),
    OPT_END,
};
static const cmd_argument arguments[] = {ARG_ONE("CKPT", forward_options, input), ARG_END};
static const forward_options defaults = {0};

const command command_forward = {
    .name = "forward",
    .summary = "compute an MoE layer, exactly or as a kernel does",
    .options = options,
    .arguments = arguments,
    COMMAND_DEFAULTS(defaults),
    .computes = true,
    .run = run_forward,
};
