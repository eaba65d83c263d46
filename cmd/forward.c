/* SPDX-License-Identifier: Apache-2.0 */
/* moepack forward: the reference forward of one MoE layer, of a checkpoint or of a pack. The
 * library opens the layer and computes (lib/forward/layer.c); here tokens are read or made up,
 * choices taken from the file or the router, and the result written. Comparing the outputs of the
 * two kinds of input with diff is what the command is for. */
#include "choices.h"
#include "commands.h"
#include "files.h"
#include "forward_tokens.h"
#include "output.h"
#include "progress.h"

#include <inttypes.h>
#include <math.h>
#include <moepack/artifact.h>
#include <moepack/forward.h>
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
    mp_layer *layer;
    const mp_layer_info *info;
    forward_tokens t;
    uint32_t used;       /* experts or slots */
    double *y;           /* [tokens, H] */
    double rms, max_abs; /* of y */
} forward_job;

static const cmd_choice emulations[] = {
    {"exact", MP_EMULATE_EXACT},   {"w4a8", MP_EMULATE_W4A8},
    {"w4a4", MP_EMULATE_W4A4},     {"nvfp4", MP_EMULATE_NVFP4},
    {"bf16", MP_EMULATE_BF16},     {"sm90-fp8", MP_EMULATE_SM90_FP8},
    {"fuseep", MP_EMULATE_FUSEEP}, {NULL, 0},
};

static int no_memory(mp_error *err)
{
    return cmd_fail(err, MP_ERR_IO, "out of memory");
}

/* ------------------------------------------------------------------------
 * Computing
 */

static int open_layer(forward_job *job, mp_error *err)
{
    const forward_options *o = job->o;
    const mp_layer_options options = {
        .size = sizeof options,
        .emulation = o->emulation,
        .no_shared = o->no_shared,
        .requantize_shared = o->requantize_shared,
        .source = o->source,
        .dispatch = o->dispatch,
        .waterfill = o->waterfill,
    };

    if (mp_layer_open(&job->layer, o->input, o->layer, &options, &job->context, err) != 0)
        return err->code;
    job->info = mp_layer_get(job->layer);
    return 0;
}

static int get_tokens(forward_job *job, mp_error *err)
{
    const forward_options *o = job->o;

    if (o->tokens_file)
        return forward_tokens_read(&job->t, o->tokens_file, job->info->hidden_size, err);
    return forward_tokens_make(&job->t, o->seed, o->tokens, job->layer, err);
}

static int choose(forward_job *job, mp_error *err)
{
    forward_tokens *t = &job->t;

    if (t->ids)
        return 0;
    if (job->info->scale_taken && !job->o->common.quiet)
        fprintf(stderr,
                "moepack: forward: note: config.json: no routed_scaling_factor; 1 is taken\n");
    t->k = job->info->k;
    t->ids = calloc(t->tokens + 1, t->k * sizeof *t->ids);
    t->weights = calloc(t->tokens + 1, t->k * sizeof *t->weights);
    if (!t->ids || !t->weights)
        return no_memory(err);
    return mp_layer_choose(job->layer, t->x, t->token_ids, t->tokens, &job->context, t->ids,
                           t->weights, err);
}

static int compute(forward_job *job, mp_error *err)
{
    const forward_tokens *t = &job->t;
    const mp_batch batch = {t->tokens, t->k, t->x, t->ids, t->weights};
    uint64_t n = t->tokens * job->info->hidden_size;
    double sum = 0;

    job->y = calloc(n + 1, sizeof *job->y);
    if (!job->y)
        return no_memory(err);
    if (mp_layer_forward(job->layer, &batch, &job->context, job->y, &job->used, err) != 0)
        return err->code;
    for (uint64_t i = 0; i < n; i++) {
        sum += job->y[i] * job->y[i];
        job->max_abs = fmax(job->max_abs, fabs(job->y[i]));
    }
    job->rms = n ? sqrt(sum / (double)n) : 0;
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
    const uint64_t of_x[] = {t->tokens, job->info->hidden_size};
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
        narrow = narrow_y(job, job->t.tokens * job->info->hidden_size);
    int rc = exact || narrow ? write_tensors(job, narrow, err) : no_memory(err);
    free(narrow);
    return rc;
}

static int print_result(const forward_job *job, mp_error *err)
{
    const char *emulation = choice_name(emulations, (int)job->o->emulation);
    const mp_layer_info *info = job->info;

    if (job->o->output && strcmp(job->o->output, "-") == 0)
        return 0;
    if (job->o->common.json)
        return print_json(
            json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:f, s:f}", "layer", info->name, "emulation",
                      emulation, "tokens", (json_int_t)job->t.tokens, "experts_per_token",
                      (json_int_t)job->t.k, "shared_per_token", (json_int_t)info->shared,
                      info->packed ? "slots_used" : "experts_used", (json_int_t)job->used, "rms",
                      job->rms, "max_abs", job->max_abs),
            err);
    printf("%s, %s: %" PRIu64 " token%s, %u expert%s and %u shared each; %u %s of %u used\n",
           info->name, emulation, job->t.tokens, plural(job->t.tokens), job->t.k, plural(job->t.k),
           info->shared, job->used, info->packed ? "slots" : "experts", info->count);
    printf("y: rms %.9g, largest %.9g\n", job->rms, job->max_abs);
    return 0;
}

/* ------------------------------------------------------------------------
 * The command
 */

static int check_options(const forward_options *o, mp_error *err)
{
    bool packed = mp_is_packed(o->input);

    if (!o->tokens_file == !o->tokens)
        return cmd_fail(err, MP_ERR_USAGE, "give either --input or --tokens");
    if (!packed && o->source)
        return cmd_fail(err, MP_ERR_USAGE, "--source is for packs only");
    if (packed && o->requantize_shared)
        return cmd_fail(err, MP_ERR_USAGE, "--requantize-shared is for checkpoints only");
    if (!packed && (o->dispatch != MP_DISPATCH_NEAREST || o->waterfill != MP_WATERFILL_OFF))
        return cmd_fail(err, MP_ERR_USAGE, "--dispatch and --waterfill are for packs only");
    return 0;
}

static int run_forward(const void *values, mp_error *err)
{
    const forward_options *o = values;
    forward_job job = {.o = o};
    int rc = check_options(o, err);

    cmd_context(&o->common, &job.context);
    if (rc == 0)
        rc = open_layer(&job, err);
    if (rc == 0)
        rc = get_tokens(&job, err);
    if (rc == 0)
        rc = choose(&job, err);
    if (rc == 0)
        rc = compute(&job, err);
    progress_clear();
    if (rc == 0)
        rc = write_output(&job, err);
    if (rc == 0)
        rc = print_result(&job, err);
    forward_tokens_release(&job.t);
    mp_layer_release(job.layer);
    free(job.y);
    return rc;
}

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
