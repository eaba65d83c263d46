/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine/backend.h - what a serving engine will do with a model's experts.
 *
 * From the flags that an engine is started with, its environment and the model's sizes and
 * format follow the all-to-all backend, the number of expert-parallel ranks, the layout that the
 * kernels want, and the memory that it takes; and whether it starts at all. Nothing is run; every
 * conclusion is kept with its reason and with what decided it:
 *
 *     mp_env env = {0};
 *     mp_backend_model model;
 *     mp_backend backend = {0};
 *     mp_backend_memory memory;
 *     const mp_backend_flags flags = {.backend = MP_A2A_MEGAMOE, .backend_given = true, .tp = 8};
 *
 *     if (mp_backend_model_open(&model, "DeepSeek-V4-Flash", &context, &err) != 0 ||
 *         mp_backend_resolve(&backend, &flags, &env, &model, &err) != 0 ||
 *         mp_backend_estimate(&memory, &backend, &model, 0, &err) != 0)
 *         ...
 *     mp_backend_release(&backend);
 *     mp_env_release(&env);
 *
 * The rules, engine by engine, are in moepack-plan(1).
 */
#ifndef MP_ENGINE_BACKEND_H
#define MP_ENGINE_BACKEND_H

#include <moepack/base.h>
#include <moepack/layout.h>
#include <moepack/model.h>
#include <moepack/place.h>

/* ------------------------------------------------------------------------
 * Names
 */

/* An engine of a version, whose rules are known. The first is what most will want. */
typedef enum mp_engine {
    MP_ENGINE_SGLANG_2026_09, /* its main branch at the end of September 2026 */
    MP_ENGINE_SGLANG_0_5_15,  /* the middle of 2026 */
    MP_ENGINE_VLLM_2026_09,
    MP_ENGINE_TRTLLM_2026_09,
    MP_ENGINE_COUNT
} mp_engine;

/* What moves tokens between ranks: SGLang's --moe-a2a-backend, vLLM's and TensorRT-LLM's MoE
 * backend. Each engine has some of them. */
typedef enum mp_a2a {
    MP_A2A_NONE,
    MP_A2A_DEEPEP,
    MP_A2A_MOONCAKE,
    MP_A2A_NIXL,
    MP_A2A_MORI,
    MP_A2A_ASCEND_FUSEEP,
    MP_A2A_FLASHINFER,
    MP_A2A_MEGAMOE,
    MP_A2A_CUSTOMIZED,
    MP_A2A_DEEPEP_V2,
    MP_A2A_PPLX,
    MP_A2A_ASCEND_TP,
    MP_A2A_FLASHINFER_MEGAMOE,
    MP_A2A_AUTO,
    MP_A2A_DEEP_GEMM_MEGA_MOE,
    MP_A2A_FLASHINFER_EP_DEEP_GEMM,
    MP_A2A_FLASHINFER_EP_CUTEDSL,
    MP_A2A_MEGAMOE_DEEPGEMM,
    MP_A2A_COUNT
} mp_a2a;

/* What multiplies: SGLang's --moe-runner-backend. */
typedef enum mp_runner {
    MP_RUNNER_AUTO,
    MP_RUNNER_TRITON,
    MP_RUNNER_DEEP_GEMM,
    MP_RUNNER_FLASHINFER_TRTLLM,
    MP_RUNNER_CUTLASS,
    MP_RUNNER_TRITON_KERNEL,
    MP_RUNNER_EXPERIMENTAL_SGL_TRTLLM,
    MP_RUNNER_FLASHINFER_TRTLLM_ROUTED,
    MP_RUNNER_FLASHINFER_CUTLASS,
    MP_RUNNER_FLASHINFER_MXFP4,
    MP_RUNNER_FLASHINFER_CUTEDSL,
    MP_RUNNER_FLASHINFER_MEGAMOE,
    MP_RUNNER_AITER,
    MP_RUNNER_MARLIN,
    MP_RUNNER_HUMMING,
    MP_RUNNER_EXPERIMENTAL_SGL_MARLIN,
    MP_RUNNER_HPC_OPS,
    MP_RUNNER_MEGAMOE,
    MP_RUNNER_INTEL_XPU,
    MP_RUNNER_COUNT
} mp_runner;

/* --deepep-mode */
typedef enum mp_deepep_mode {
    MP_DEEPEP_AUTO,
    MP_DEEPEP_NORMAL,
    MP_DEEPEP_LOW_LATENCY,
    MP_DEEPEP_COUNT
} mp_deepep_mode;

/* --deepep-dispatcher-output-dtype */
typedef enum mp_dispatch_dtype {
    MP_DISPATCH_AUTO,
    MP_DISPATCH_BF16,
    MP_DISPATCH_FP8,
    MP_DISPATCH_INT8,
    MP_DISPATCH_NVFP4,
    MP_DISPATCH_COUNT
} mp_dispatch_dtype;

/* --disaggregation-mode: which halves of serving an instance does. */
typedef enum mp_serving {
    MP_SERVING_BOTH,
    MP_SERVING_PREFILL,
    MP_SERVING_DECODE,
    MP_SERVING_COUNT
} mp_serving;

/* What runs while tokens are under way. */
typedef enum mp_overlap {
    MP_OVERLAP_NONE,
    MP_OVERLAP_TWO_BATCH,
    MP_OVERLAP_SINGLE_BATCH,
    MP_OVERLAP_COUNT
} mp_overlap;

typedef enum mp_platform {
    MP_PLATFORM_CUDA_SM100, /* compute capability 10.x */
    MP_PLATFORM_CUDA_SM90,
    MP_PLATFORM_HIP,
    MP_PLATFORM_NPU,
    MP_PLATFORM_CUDA_SM120,
    MP_PLATFORM_COUNT
} mp_platform;

/* Name of value number `index` of each enum, "deepep", "low_latency", "cuda-sm100" ...: a
 * static string, or null behind the last. Of engines the names with a version come first, then
 * short ones ("sglang"), which mean the newest. */
const char *mp_engine_name(size_t index);
const char *mp_a2a_name(size_t index);
const char *mp_runner_name(size_t index);
const char *mp_deepep_mode_name(size_t index);
const char *mp_dispatch_dtype_name(size_t index);
const char *mp_serving_name(size_t index);
const char *mp_overlap_name(size_t index);
const char *mp_platform_name(size_t index);

/* The value of that name; false if there is none. */
bool mp_engine_parse(const char *name, mp_engine *value);
bool mp_a2a_parse(const char *name, mp_a2a *value);
bool mp_runner_parse(const char *name, mp_runner *value);
bool mp_deepep_mode_parse(const char *name, mp_deepep_mode *value);
bool mp_dispatch_dtype_parse(const char *name, mp_dispatch_dtype *value);
bool mp_serving_parse(const char *name, mp_serving *value);
bool mp_overlap_parse(const char *name, mp_overlap *value);
bool mp_platform_parse(const char *name, mp_platform *value);

/* Whether an engine has a rule for that flag of moepack plan ("--w4a4"); true for flags that are
 * for every engine. */
bool mp_engine_takes(mp_engine engine, const char *flag);

/* ------------------------------------------------------------------------
 * Environment
 */

/* Variables and their values. A zeroed one is empty. */
typedef struct mp_env {
    char **names; /* distinct */
    char **values;
    size_t count;
    size_t room; /* private */
} mp_env;

/* Sets a variable, over the value that it has. MP_ERR_IO without memory. */
int mp_env_set(mp_env *env, const char *name, const char *value, mp_error *err);

/* The value of a variable, or null where it is not set. */
const char *mp_env_get(const mp_env *env, const char *name);

/* Sets every variable of a "NAME=VALUE" list that ends with null, such as environ(7). */
int mp_env_add(mp_env *env, const char *const *list, mp_error *err);

/* Sets the variables of a text of NAME=VALUE lines. Blank lines and those that begin with #
 * are skipped, "export " before a name too; a value may stand between two ' or two ".
 * what: names the text in messages. MP_ERR_INPUT for another line, naming its number. */
int mp_env_parse(mp_env *env, const char *text, uint64_t length, const char *what, mp_error *err);

void mp_env_release(mp_env *env);

/* ------------------------------------------------------------------------
 * The model
 */

/* What of a model decides. */
typedef struct mp_backend_model {
    const char *source; /* of the facts: "checkpoint", "config.json" or "moepack.json" */
    uint64_t hidden_size;
    uint64_t moe_intermediate_size;
    uint64_t num_experts; /* N, routed */
    uint64_t num_shared_experts;
    uint64_t experts_per_token; /* top-k; 0 where nothing says */
    uint64_t num_layers;        /* MoE layers; MTP blocks where their tensors are there */
    uint64_t num_mtp_blocks;    /* that config.json names; in num_layers only with tensors */
    bool has_scheme;            /* false: stored in a way that is not recognized */
    mp_scheme scheme;           /* of the routed experts */
    const char *scheme_from;    /* "tensors", or the key or file that says it: "expert_dtype" ... */
    char unrecognized[128];     /* what to call a way that is not recognized */
    bool weight_only;           /* nvfp4 that was made for 16-bit activations */
    bool quant_config;          /* the engine reads them as quantized */
    char quant_method[64];      /* "" where config.json names none */
    char quant_algo[32];        /* of ModelOpt; "" likewise */
    char moe_quant_algo[32];
    char quantization[64];       /* the engine's name: "fp8", "modelopt_fp4" ...; "": none */
    bool shared_fp8_blocks;      /* shared experts are FP8 in blocks of 128x128 */
    bool float16;                /* what is not quantized is float16 */
    char model_type[64];         /* of config.json's root; "" where it has none */
    char architecture[64];       /* architectures[0], or the class of the model_type; "" likewise */
    char activation[32];         /* "silu", "swigluoai", "relu2" ... */
    const char *activation_from; /* the key that says so, or "model_type" */
} mp_backend_model;

/* Name of the experts' scheme, or what to call one that is not recognized. */
const char *mp_backend_model_scheme(const mp_backend_model *model);

/* Fills the model from a directory: from its tensors where it has some, with what they do
 * not tell (top-k) from config.json, and from config.json alone otherwise.
 * path: the directory, or its config.json, which then is all that is read.
 * MP_ERR_INPUT for a checkpoint with problems or a size that nothing gives, MP_ERR_IO,
 * MP_ERR_UNSUPPORTED. */
int mp_backend_model_open(mp_backend_model *model, const char *path, const mp_context *context,
                          mp_error *err);

/* Makes it the model that requantizing to `scheme` gives. */
void mp_backend_model_quantize(mp_backend_model *model, mp_scheme scheme);

/* ------------------------------------------------------------------------
 * Resolution
 */

/* What the engine is started with, and a forward pass to judge. Zeroed: nothing is asked for;
 * only tp has to be set. */
typedef struct mp_backend_flags {
    mp_engine engine;
    mp_a2a backend; /* MP_A2A_MEGAMOE means the engine's own, whatever it calls it */
    mp_runner runner;
    mp_deepep_mode deepep_mode;
    mp_dispatch_dtype deepep_dtype;
    mp_platform platform;
    mp_serving serving;
    mp_overlap overlap;
    mp_shared_mode shared; /* of the packed directory */
    unsigned fuseep_mode;  /* 0: the engine's default */

    uint64_t tp;      /* >= 1 */
    uint64_t ep;      /* 0: not given */
    uint64_t dp;      /* ranks of attention DP; 0 and 1: it is off */
    uint64_t pp;      /* 0 is 1, here and in the next two */
    uint64_t attn_cp; /* ranks of attention's context parallelism */
    uint64_t draft_tokens;
    uint64_t redundant;        /* R: physical experts beyond the model's */
    uint64_t graph_bs;         /* largest batch of a decode graph; 0: there are no graphs */
    int64_t chunked_prefill;   /* before it is divided; -1: off */
    int64_t flashinfer_tokens; /* --flashinfer-megamoe-max-num-tokens */
    uint64_t tokens;           /* of this rank in the forward pass */
    const uint64_t *dp_tokens; /* [num_dp_tokens], of each DP rank */
    size_t num_dp_tokens;      /* 0: not given */

    bool backend_given; /* explicitly; else the engine's default is taken */
    bool graph_bs_given;
    bool chunked_prefill_given;
    bool flashinfer_tokens_given;
    bool tokens_given;
    bool capture; /* CUDA graph capture */
    bool prefill_cp;
    bool dynamic_chunking;
    bool w4a4;
    bool waterfill;
    bool eplb;
} mp_backend_flags;

/* A conclusion. */
typedef struct mp_decision {
    const char *what; /* "ep_size", ...; a static string */
    char *value;
    char *why;              /* one line */
    const char *decided_by; /* a flag, a variable, a key of config.json, ...; a static string */
} mp_decision;

/* What the engine resolves. Strings are static unless said otherwise. */
typedef struct mp_backend {
    mp_engine engine;
    mp_a2a backend;
    mp_runner runner;
    mp_deepep_mode deepep_mode;
    mp_platform platform;
    mp_shared_mode shared;
    const char *dispatcher; /* "standard", "deepep", ...; null: not known */
    mp_slots slots;         /* ep_size is slots.ep, P is slots.num_physical */
    const char *target;     /* layout that the kernels want; null: none of moepack's */
    mp_env forward;         /* variables that the engine hands to its kernels, or needs */

    const char *acts;                    /* "fp8", "fp4", "bf16", "int8"; null without target */
    const char *dispatcher_output_dtype; /* "bf16"; null: as the runner wants */
    unsigned fuse_mode;                  /* of FuseEP: 1 or 2; 0: not FuseEP */
    uint64_t waterfill_routed_experts;   /* N + R; 0: no waterfill */

    /* of megamoe */
    bool megamoe;             /* the backend is MegaMoE */
    bool has_fix_memory;      /* there is such a thing as the next one */
    bool fix_mega_moe_memory; /* one copy of the weights, scales twice */
    bool use_known;           /* the next one is predicted */
    bool use_mega_moe;        /* for the forward pass of the flags */
    bool fp4_acts;            /* that DeepGEMM sizes its buffer for */
    bool fp8_combine;         /* likewise */
    uint64_t token_cap;       /* tokens a rank that the buffer holds */

    /* for the estimate */
    bool sizes_refused;   /* experts of these sizes cannot be laid out, nor estimated */
    bool second_scales;   /* scales once more, in the form of the ordinary path */
    bool buffer_known;    /* the buffer is sgl-deep-gemm 0.1.x's */
    bool buffers_unknown; /* there are some, of a size that is not known for this version */

    /* what a loader of the engine is */
    const char *placement; /* form of placement files that it reads, "sglang"; null: none */
    const char *loader;    /* null: not known */

    mp_decision *decisions;
    size_t num_decisions;
    size_t room;          /* private: of decisions */
    mp_problems refusals; /* why the engine would not start, or not capture its graphs */
    mp_problems warnings; /* also notes: what was asked for and is not done */
} mp_backend;

/* Whether the engine has the backend, the runner and the platform of the flags: MP_ERR_USAGE,
 * naming both, where it has not. */
int mp_backend_check_flags(const mp_backend_flags *flags, mp_error *err);

/* Resolves. Keeps no pointer to its arguments. What the engine refuses at its start is added to
 * refusals, and the rest is resolved all the same.
 * MP_ERR_USAGE as mp_backend_check_flags; MP_ERR_INPUT for a variable that cannot be read where
 * the engine ends for it, and for experts that do not divide among the ranks; MP_ERR_UNSUPPORTED
 * for what a kernel does not take. */
int mp_backend_resolve(mp_backend *backend, const mp_backend_flags *flags, const mp_env *env,
                       const mp_backend_model *model, mp_error *err);
void mp_backend_release(mp_backend *backend);

/* ------------------------------------------------------------------------
 * Memory
 */

/* What the symmetric buffer of MegaMoE is made for. */
typedef struct mp_symm_buffer {
    uint64_t ranks;      /* >= 1 */
    uint64_t experts;    /* physical, all ranks; a multiple of ranks */
    uint64_t max_tokens; /* of a rank */
    uint64_t topk;
    uint64_t hidden_size;
    uint64_t intermediate_size;
    bool fp4_acts;    /* DG_USE_FP4_ACTS */
    bool fp8_combine; /* DG_USE_FP8_COMBINE */
} mp_symm_buffer;

/* Its bytes on each rank, as sgl-deep-gemm 0.1.x allocates them; UINT64_MAX where they do
 * not fit 64 bits. */
uint64_t mp_symm_buffer_bytes(const mp_symm_buffer *buffer);

/* Bytes of the experts on a rank; of the rank that holds most where they differ. */
typedef struct mp_backend_memory {
    bool known; /* there is a target to size; the rest holds only then */
    bool has_second_scales;
    bool has_symm_buffer;
    bool has_total;   /* else `total` is what is known of it, and more is needed */
    bool has_verdict; /* a GPU's memory was given, and it can be said whether it fits */
    bool fits;
    bool has_max_tokens;
    uint64_t layer_weights; /* of one layer; shared experts that are packed are counted */
    uint64_t layer_scales;
    uint64_t weights; /* of all layers */
    uint64_t scales;
    uint64_t second_scales; /* in the form of the ordinary path */
    uint64_t symm_buffer;
    uint64_t symm_buffer_fp8; /* what it would be with FP8 and with FP4 activations */
    uint64_t symm_buffer_fp4;
    uint64_t total;
    uint64_t max_tokens; /* largest token cap with which it fits; 0: none does */
} mp_backend_memory;

/* Estimates. gpu_memory: bytes for the verdict; 0: none is wanted.
 * MP_ERR_UNSUPPORTED for sizes that the target's kernel does not take. */
int mp_backend_estimate(mp_backend_memory *memory, const mp_backend *backend,
                        const mp_backend_model *model, uint64_t gpu_memory, mp_error *err);

/* ------------------------------------------------------------------------
 * Packed directories
 */

/* What a packed directory is, by its manifest (artifact.h). */
typedef struct mp_backend_pack {
    const char *target;
    mp_alphas alphas;
    uint64_t ep_size;
    uint64_t num_physical;
    uint64_t hidden_size;
    uint64_t moe_intermediate_size;
    uint64_t num_experts;
    uint64_t num_layers; /* that are packed */
    mp_shared_mode shared;
    const char *placement_xxh3;
} mp_backend_pack;

/* What a loader holds a pack against, one after the other. */
typedef struct mp_pack_check {
    const char *what; /* "target", "ep_size", ...; a static string */
    char pack[64];    /* what the pack has */
    char engine[64];  /* what the engine wants */
    bool ok;
} mp_pack_check;

#define MP_PACK_CHECKS 9

typedef struct mp_pack_checks {
    mp_pack_check items[MP_PACK_CHECKS];
    size_t count;
} mp_pack_checks;

/* Holds a pack against what the engine wants. Adds to mismatches what keeps the engine from using
 * it, each beginning with the name of what differs.
 * placement: that the engine is given; null where any will do.
 * checks: all that was compared; may be null. */
int mp_backend_check_pack(const mp_backend *backend, const mp_backend_model *model,
                          const mp_backend_pack *pack, const mp_placement *placement,
                          mp_pack_checks *checks, mp_problems *mismatches, mp_error *err);

#endif
