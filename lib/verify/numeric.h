/* SPDX-License-Identifier: Apache-2.0 */
/* verify/numeric.h - what the packed experts compute, against what the source's do.
 *
 * Every layer gets a batch of tokens twice: as choices of the source's experts, and as choices
 * of slots. First comes one token for each slot, which that slot alone computes: so every slot
 * is met, and what it gets wrong is neither hidden by others nor blamed on them. Behind these
 * stand tokens that are routed. */
#ifndef MP_VERIFY_NUMERIC_H
#define MP_VERIFY_NUMERIC_H

#include "forward/reference.h"
#include "pack/pack.h"
#include "verify/check.h"
#include "verify/exact.h"

/* The kernel of a target. */
typedef struct mp_numeric_kernel {
    const char *target;
    mp_emulation emulation;
    double bound; /* of its relative L2 error, on weights as packed */
} mp_numeric_kernel;

/* Null for a target that has none. */
const mp_numeric_kernel *mp_numeric_kernel_of(const char *target);

/* What a model says that its experts and its router's weights become, in one of the two
 * config.json. */
typedef struct mp_numeric_model {
    mp_activation activation;
    bool weigh_input;
    double factor; /* routed_scaling_factor: of what a layer gives in the end; 1 if there is none */
} mp_numeric_model;

/* A layer, open on both sides. Not to be moved. */
typedef struct mp_numeric_layer {
    mp_check *check;
    const mp_exact *exact;
    const mp_numeric_kernel *kernel;
    const mp_pack *pack; /* open once for all layers */
    size_t index;        /* of the manifest's layers */
    const mp_moe_layer *source;
    uint32_t shared;  /* shared experts that are packed */
    bool requantized; /* something was */
    mp_layer_router router;
    bool routes; /* the router can be computed */
    mp_packed_experts slots;
    mp_numeric_model source_model, packed_model;
} mp_numeric_layer;

/* Tokens of a layer with their choices on both sides. A choice that falls on no selected rank
 * or on no sampled expert is none on either side. */
typedef struct mp_numeric_batch {
    uint64_t alone;   /* tokens that one slot computes: their first choice is the only one */
    uint64_t tokens;  /* with those behind, which are routed */
    uint32_t columns; /* choices of a token, shared experts behind the routed ones */
    float *x;         /* [tokens, H] */
    int32_t *experts; /* [tokens, columns], and so are these */
    float *weights;   /* of experts, in the kernel: without the factor of the model */
    int32_t *slots;
    float *slot_weights;
} mp_numeric_batch;

int mp_numeric_batch_make(mp_numeric_batch *batch, const mp_numeric_layer *layer, mp_error *err);
void mp_numeric_batch_release(mp_numeric_batch *batch);

/* The rank of a slot, which are counted over all ranks, those of shared experts apart last. */
uint32_t mp_numeric_rank(const mp_numeric_layer *layer, uint32_t slot);

/* The two results of a batch. */
typedef struct mp_numeric_results {
    const double *packed; /* [tokens, H], and so is the other */
    const double *source;
} mp_numeric_results;

/* Makes a fault of every slot that gives something else than its expert, and one of routed
 * tokens that differ though each of their slots is right. */
int mp_numeric_report_differences(const mp_numeric_layer *layer, const mp_numeric_batch *batch,
                                  const mp_numeric_results *results, mp_error *err);

/* Makes a fault of a slot whose result is not finite. what: of which kind ("w4a8"); why: what the
 * forward said. */
void mp_numeric_report_slot(const mp_numeric_layer *layer, uint32_t slot, uint32_t expert,
                            const char *what, const mp_error *why);

/* Where something about a whole layer is. */
mp_spot mp_numeric_spot(const mp_numeric_layer *layer);

/* MP_ERR_UNSUPPORTED where the level cannot compute this pack or this model: known before
 * anything is read that takes long. */
int mp_numeric_supports(const mp_check *check, const mp_exact *exact, mp_error *err);

/* Bytes that the level adds to the progress. */
uint64_t mp_numeric_progress(const mp_check *check, const mp_exact *exact);

/* Computes the selected layers, one after the other, and adds their figures to the report. */
int mp_check_numeric(const mp_exact *exact, mp_check *check, mp_error *err);

#endif
