/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/backend.h - what a serving engine will do with a model's experts.
 *
 * From the flags that SGLang (mid-2026) is started with, its environment and the model's
 * sizes and format follow the all-to-all backend, the number of expert-parallel ranks, the
 * layout that the kernels want, and the memory that it takes. Nothing is run; every
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
 * The rules are in moepack-plan(1).
 */
#ifndef MOEPACK_BACKEND_H
#define MOEPACK_BACKEND_H

#include <moepack/base.h>
#include <moepack/layout.h>
#include <moepack/model.h>
#include <moepack/place.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------
 * Names
 */

/* What moves tokens between ranks: --moe-a2a-backend. */
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
    MP_A2A_COUNT
} mp_a2a;

/* What multiplies: --moe-runner-backend. */
typedef enum mp_runner {
    MP_RUNNER_AUTO,
    MP_RUNNER_TRITON,
    MP_RUNNER_DEEP_GEMM,
    MP_RUNNER_FLASHINFER_TRTLLM,
    MP_RUNNER_CUTLASS,
    MP_RUNNER_COUNT
} mp_runner;

/* --deepep-mode */
typedef enum mp_deepep_mode {
    MP_DEEPEP_AUTO,
    MP_DEEPEP_NORMAL,
    MP_DEEPEP_LOW_LATENCY,
    MP_DEEPEP_COUNT
} mp_deepep_mode;

typedef enum mp_platform {
    MP_PLATFORM_CUDA_SM100,
    MP_PLATFORM_CUDA_SM90,
    MP_PLATFORM_HIP,
    MP_PLATFORM_NPU,
    MP_PLATFORM_COUNT
} mp_platform;

/* Name of value number `index` of each enum, "deepep", "low_latency", "cuda-sm100" ...: a
 * static string, or null behind the last. */
const char *mp_a2a_name(size_t index);
const char *mp_runner_name(size_t index);
const char *mp_deepep_mode_name(size_t index);
const char *mp_platform_name(size_t index);

/* The value of that name; false if there is none. */
bool mp_a2a_parse(const char *name, mp_a2a *value);
bool mp_runner_parse(const char *name, mp_runner *value);
bool mp_deepep_mode_parse(const char *name, mp_deepep_mode *value);
bool mp_platform_parse(const char *name, mp_platform *value);

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
    uint64_t num_layers;        /* MoE layers, MTP blocks counted */
    bool has_scheme;            /* false: stored in a way that is not recognized */
    mp_scheme scheme;           /* of the routed experts */
    const char *scheme_from;    /* "tensors", "expert_dtype", "quantization_config", ... */
    bool quant_config;          /* the engine reads them as quantized */
    char quant_method[64];      /* "" where config.json names none */
    bool float16;               /* what is not quantized is float16 */
} mp_backend_model;

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

/* What the engine is started with, and a forward pass to judge. */
typedef struct mp_backend_flags {
    mp_a2a backend;
    bool backend_given; /* explicitly */
    mp_runner runner;
    mp_deepep_mode deepep_mode;
    mp_platform platform;
    uint64_t tp;           /* >= 1 */
    uint64_t ep;           /* 0: not given */
    uint64_t redundant;    /* R: physical experts beyond the model's */
    mp_shared_mode shared; /* of the packed directory */
    bool capture;          /* CUDA graph capture */
    bool tokens_given;
    uint64_t tokens;           /* of this rank */
    const uint64_t *dp_tokens; /* [num_dp_tokens], of each DP rank */
    size_t num_dp_tokens;      /* 0: not given */
} mp_backend_flags;

/* A conclusion. */
typedef struct mp_decision {
    const char *what; /* "ep_size", ...; a static string */
    char *value;
    char *why;              /* one line */
    const char *decided_by; /* a flag, a variable, "config.json", ...; a static string */
} mp_decision;

/* What the engine resolves. Strings are static unless said otherwise. */
typedef struct mp_backend {
    mp_a2a backend;
    mp_platform platform;
    mp_shared_mode shared;
    const char *dispatcher; /* "standard", "deepep", ... */
    mp_slots slots;         /* ep_size is slots.ep, P is slots.num_physical */
    const char *target;     /* layout that the kernels want; null: none of moepack's */
    mp_env forward;         /* variables that the engine hands to its kernels */

    const char *acts;                    /* "fp8", "fp4", "bf16", "int8"; null without target */
    const char *dispatcher_output_dtype; /* "bf16"; null: as the runner wants */
    unsigned fuse_mode;                  /* of FuseEP: 1 or 2; 0: not FuseEP */
    uint64_t waterfill_routed_experts;   /* N + R; 0: no waterfill */

    /* of megamoe */
    bool megamoe;             /* the backend is megamoe */
    bool fix_mega_moe_memory; /* one copy of the weights, scales twice */
    bool use_mega_moe;        /* for the forward pass of the flags */
    bool fp4_acts;            /* that DeepGEMM sizes its buffer for */
    bool fp8_combine;         /* likewise */
    uint64_t token_cap;       /* tokens a rank that the buffer holds */

    mp_decision *decisions;
    size_t num_decisions;
    size_t room;          /* private: of decisions */
    mp_problems warnings; /* also notes: what was asked for and is not done */
} mp_backend;

/* Resolves. Keeps no pointer to its arguments.
 * MP_ERR_INPUT for a variable that cannot be read, naming it, and for experts that do not
 * divide among the ranks; MP_ERR_UNSUPPORTED for what the engine refuses. */
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
    bool known;             /* there is a target to size; the rest holds only then */
    uint64_t layer_weights; /* of one layer; shared experts that are packed are counted */
    uint64_t layer_scales;
    uint64_t weights; /* of all layers */
    uint64_t scales;
    bool has_second_scales; /* scales in the form of the ordinary path */
    uint64_t second_scales;
    bool has_symm_buffer;
    uint64_t symm_buffer;
    uint64_t symm_buffer_fp8; /* what it would be with FP8 and with FP4 activations */
    uint64_t symm_buffer_fp4;
    uint64_t total;

    bool has_verdict; /* a GPU's memory was given */
    bool fits;
    bool has_max_tokens;
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
    uint64_t ep_size;
    uint64_t num_physical;
    uint64_t hidden_size;
    uint64_t moe_intermediate_size;
    uint64_t num_experts;
    uint64_t num_layers; /* that are packed */
    mp_shared_mode shared;
    const char *placement_xxh3;
} mp_backend_pack;

/* Adds to mismatches what keeps the engine from using a pack, each beginning with the name
 * of what differs.
 * placement: that the engine is given; null where any will do. */
int mp_backend_check_pack(const mp_backend *backend, const mp_backend_model *model,
                          const mp_backend_pack *pack, const mp_placement *placement,
                          mp_problems *mismatches, mp_error *err);

#ifdef __cplusplus
}
#endif

#endif
