/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/base.h - errors, element types, quantization schemes, and the
 * context that every long-running call takes.
 *
 * Conventions of the whole library:
 *   - A function that can fail returns 0 (MP_OK) or a negative mp_code and
 *     fills an mp_error, which may be null. After a failure the objects passed in are still safe
 *     to release, and nothing else about them is promised.
 *   - Objects are opaque (mp_plan, mp_pack, mp_layer), made by the library and freed by
 *     thing_release, which takes null too; thing_get shows what is known of one. Or they are plain
 *     structs: thing_init or thing_open fills one, thing_release frees what it owns and leaves it
 *     empty. Releasing a zeroed or an already released one does nothing.
 *   - Option structs begin with their size, which the caller sets: .size = sizeof options. Members
 *     that are not set are zero, the usual choice. A program that was compiled when a struct had
 *     fewer members goes on working; MP_ERR_USAGE for a size that the library does not know.
 *   - Lists of layers and ranks are strings: "0-3,7,mtp.0". Numbers and ranges name decoder layers
 *     by the number that ends their prefix ("model.layers.3"), or ranks; anything else is a whole
 *     prefix. MP_ERR_USAGE for a list that cannot be read or an item that selects nothing.
 *   - What these headers declare is what the library exports.
 *   - The library never prints, never exits and keeps no state.
 *   - Sizes are uint64_t and count bytes unless the name says otherwise.
 */
#ifndef MOEPACK_BASE_H
#define MOEPACK_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define MP_VERSION "0.1.0"

/* Version of the library that is linked, as "major.minor.patch". */
const char *mp_version(void);

/* ------------------------------------------------------------------------
 * Errors
 */

/* What went wrong. The command line maps -code to its exit status. */
typedef enum mp_code {
    MP_OK = 0,
    MP_ERR_CHECK = -1,       /* a check did not hold */
    MP_ERR_USAGE = -2,       /* the caller asked for something contradictory */
    MP_ERR_INPUT = -3,       /* input is malformed or inconsistent */
    MP_ERR_IO = -4,          /* the system refused: I/O or memory */
    MP_ERR_UNSUPPORTED = -5, /* understood, but not supported */
    MP_ERR_CANCELLED = -6    /* the caller's cancel flag was raised */
} mp_code;

#define MP_ERROR_MAX 1024

/* Where and why, in one line: lowercase, no full stop, names in quotes. */
typedef struct mp_error {
    int code; /* an mp_code */
    char message[MP_ERROR_MAX];
} mp_error;

/* How many problems a list keeps the text of; the rest are only counted. */
#define MP_PROBLEMS_KEPT 20

/* A list of everything that is wrong with an input. Only the first
 * MP_PROBLEMS_KEPT texts are kept; `count` goes on. */
typedef struct mp_problems {
    uint64_t count;
    char *text[MP_PROBLEMS_KEPT]; /* min(count, MP_PROBLEMS_KEPT) owned strings */
} mp_problems;

void mp_problems_release(mp_problems *problems);

/* ------------------------------------------------------------------------
 * Element types, as safetensors names them
 */

typedef enum mp_dtype {
    MP_BOOL,
    MP_F4, /* two E2M1 values a byte, the even element in the low nibble */
    MP_F6_E2M3,
    MP_F6_E3M2,
    MP_U8,
    MP_I8,
    MP_F8_E4M3,
    MP_F8_E5M2,
    MP_F8_E8M0,
    MP_F8_E4M3FNUZ,
    MP_F8_E5M2FNUZ,
    MP_I16,
    MP_U16,
    MP_F16,
    MP_BF16,
    MP_I32,
    MP_U32,
    MP_F32,
    MP_C64,
    MP_F64,
    MP_I64,
    MP_U64,
    MP_DTYPE_COUNT
} mp_dtype;

/* "BF16", "F8_E4M3", ...; a static string. */
const char *mp_dtype_name(mp_dtype dtype);

/* Width of one element in bits: 4, 6, 8, 16, 32 or 64. */
unsigned mp_dtype_bits(mp_dtype dtype);

/* ------------------------------------------------------------------------
 * Quantization schemes: how a weight matrix [N, K] is stored
 *
 * Formulas: moepack-format(5), "SCHEMES". K is the reduction dimension.
 */

typedef enum mp_scheme {
    MP_SCHEME_BF16,
    MP_SCHEME_F16,
    MP_SCHEME_F32,
    MP_SCHEME_MXFP4,        /* E2M1, UE8M0 scale a 1x32 block */
    MP_SCHEME_MXFP8,        /* E4M3, UE8M0 scale a 1x32 block */
    MP_SCHEME_FP8_BLOCK,    /* E4M3, float scale a 128x128 (or 32x32) block */
    MP_SCHEME_FP8_GROUP,    /* E4M3, float scale a 1x128 block */
    MP_SCHEME_FP8_CHANNEL,  /* E4M3, float scale a row */
    MP_SCHEME_FP8_TENSOR,   /* E4M3, one float scale */
    MP_SCHEME_NVFP4,        /* E2M1, E4M3 scale a 1x16 block, one float scale */
    MP_SCHEME_INT8_CHANNEL, /* INT8, float scale a row */
    MP_SCHEME_INT4_GROUP,   /* INT4 plus 8, eight a word, float scale a 1x32 block */
    MP_SCHEME_COUNT
} mp_scheme;

/* "mxfp4", "fp8_block", ...; a static string. */
const char *mp_scheme_name(mp_scheme scheme);

/* The scheme of that name; false if there is none. */
bool mp_scheme_parse(const char *name, mp_scheme *scheme);

/* How E2M1 rounds. */
typedef enum mp_rounding {
    MP_ROUND_DEEPGEMM, /* ties toward zero; a zero code has no sign (DeepGEMM's host helper) */
    MP_ROUND_OCP       /* ties to even; zero keeps its sign (OCP MX 1.0, and the hardware) */
} mp_rounding;

/* How a power-of-two block scale is chosen. */
typedef enum mp_scale_rule {
    MP_SCALE_CEIL, /* smallest power of two that saturates nothing */
    MP_SCALE_MSE   /* that one or the next smaller, whichever has less squared error */
} mp_scale_rule;

/* ------------------------------------------------------------------------
 * Experts: the words that checkpoints, packs and messages share
 *
 * An expert has three matrices: gate (w1) and up (w3), both [I, H], and down (w2),
 * [H, I]; H is the hidden size, I the expert's intermediate size. A matrix is [N, K],
 * row-major. A side is one of the two products: L1 takes gate and up, L2 takes down.
 */

typedef enum mp_projection {
    MP_GATE,
    MP_UP,
    MP_DOWN,
    MP_PROJECTIONS,
    MP_GATE_UP = MP_PROJECTIONS /* both in one tensor: a word of forms (artifact.h) only */
} mp_projection;

/* Which matrix product of the expert. */
typedef enum mp_side { MP_L1, MP_L2, MP_SIDES } mp_side;

/* How tensors hold several matrices: gate and up together, and all experts of a layer.
 * gate_up is [E, 2I, H] or, transposed, [E, H, 2I]; down is [E, H, I] or [E, I, H]. */
typedef enum mp_fusion {
    MP_FUSION_NONE,        /* each matrix is a tensor [N, K] of its own */
    MP_FUSION_ROWS,        /* gate rows first, then up rows */
    MP_FUSION_ROWS_PAIRED, /* gate and up rows in turn */
    MP_FUSION_COLS,        /* transposed, gate columns first */
    MP_FUSION_COLS_PAIRED, /* transposed, gate and up columns in turn */
    MP_FUSION_STACKED      /* gate, up and down each [E, N, K] */
} mp_fusion;

/* What a tensor is to the matrix that it belongs to. */
typedef enum mp_role {
    MP_ROLE_WEIGHT,
    MP_ROLE_SCALE,        /* of blocks */
    MP_ROLE_GLOBAL_SCALE, /* nvfp4: the second scale, as it is stored */
    MP_ROLE_BIAS,         /* one a row */
    MP_ROLE_INPUT_SCALE,  /* of activations */
    MP_ROLE_OFFSET,       /* zero points, one a row */
    MP_ROLE_SHAPE,        /* [N, K] of packed weights */
    MP_ROLE_ALPHA,        /* of packs: the second scale as a multiplier */
    MP_ROLE_ACT_SCALE,    /* of packs: the input scale of L2 as its kernel multiplies by it */
    MP_ROLE_FOLDED_ALPHA, /* of packs: the second scale of L1 times its input scale */
    MP_ROLE_GROUP_SCALE,  /* int4 with two scales: of groups, where the scale is of rows */
    MP_ROLE_GROUP_OFFSET, /* zero points of groups */
    MP_ROLE_SCALE_BIAS,   /* int4: what Ascend's kernel adds for moving codes by 8; of no weight */
    MP_ROLES
} mp_role;

/* "weight", "scale", "global_scale", "bias", ...; a static string. */
const char *mp_role_name(mp_role role);

/* A set of roles; 0 is empty. */
typedef uint32_t mp_role_set;
#define MP_ROLE_BIT(role) ((mp_role_set)1 << (role))

/* What becomes of shared experts in a pack. */
typedef enum mp_shared_mode {
    MP_SHARED_NONE,     /* left out */
    MP_SHARED_FUSED,    /* further slots of every rank */
    MP_SHARED_SEPARATE, /* tensors of their own */
    MP_SHARED_MODES
} mp_shared_mode;

/* "none", "fused", "separate"; a static string. */
const char *mp_shared_mode_name(mp_shared_mode mode);

/* Whose convention the alphas of nvfp4 are in. */
typedef enum mp_alphas {
    MP_ALPHAS_SGL,    /* second scales of gate, up and down */
    MP_ALPHAS_FP4XFP4 /* DeepGEMM's own: one of L1, times its input scale */
} mp_alphas;

/* Where a copy of an expert is: a slot of a rank, counted on that rank. */
typedef struct mp_place {
    uint32_t rank;
    uint32_t slot;
} mp_place;

/* How shards are compressed: a level of zstd, from 1 to MP_ZSTD_LEVEL_MAX, or one of these.
 * AUTO is level 1, and a tensor whose first 16 MiB, or a sample of them, do not shrink by a
 * tenth is stored as it is. */
#define MP_ZSTD_NONE      0
#define MP_ZSTD_AUTO      (-1)
#define MP_ZSTD_LEVEL_MAX 22

/* ------------------------------------------------------------------------
 * Running
 */

/* How the bytes of checkpoints and packs are read. */
typedef enum mp_io {
    MP_IO_AUTO,     /* as is fastest; a zeroed context says so */
    MP_IO_BUFFERED, /* through the system's cache, which is told what comes next */
    MP_IO_DIRECT    /* past it (O_DIRECT), but for short pieces; MP_ERR_UNSUPPORTED where the file
                     * system refuses */
} mp_io;

/* How a long call runs. A zeroed context is one thread per processor, no
 * progress and no way to cancel. */
typedef struct mp_context {
    int threads; /* <= 0: one per available processor */
    mp_io io;    /* for what the call opens, and as long as that stays open */

    /* Read with acquire order between units; when nonzero, the call finishes
     * the units at hand and returns MP_ERR_CANCELLED. May be null. */
    const int *cancel;

    /* Called with the bytes done and to do (layers of mp_eplb_balance, tokens of mp_forward);
     * never from two threads at once.
     * May be null. */
    void (*progress)(void *user, uint64_t done, uint64_t total);
    void *progress_user;

    /* Called when a phase begins, with a word for it that lasts: "writing". Never from two threads
     * at once, nor during progress, whose user it shares. May be null. */
    void (*phase)(void *user, const char *name);
} mp_context;

/* Threads that a context stands for; context may be null. */
int mp_threads(const mp_context *context);

/* 32 lowercase hex digits of an XXH3-128. */
typedef char mp_hex_digest[33];

/* Reads a whole small file, or standard input where path is "-".
 * text: set to a malloc'ed, NUL-terminated buffer that the caller frees;
 * length: its bytes without the NUL, may be null.
 * MP_ERR_INPUT if it holds more than `limit` bytes, MP_ERR_IO. */
int mp_read_text(const char *path, uint64_t limit, char **text, uint64_t *length, mp_error *err);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
