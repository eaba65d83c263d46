/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes of a rank: experts as their target lays them out, and MegaMoE's symmetric buffer.
 *
 * Experts are added up from the target's own description, so they are what repack will write. The
 * buffer is that of sgl-deep-gemm 0.1.x: a workspace of counters and lists, what a rank sends, a
 * pool for what it may receive (every token of every rank could choose its experts), the input of
 * both products with their scales, and what comes back. All of it grows with max_tokens, rounded up
 * to a tile, which is why a cap can be looked for by bisection.
 *
 * Sizes come from a config.json. model.c bounds each so that the bytes of a slot fit 64 bits; sums
 * and products of many saturate here at UINT64_MAX instead of wrapping around, and an estimate
 * beyond 63 bits is refused. */
#include "engine/backend.h"

#include <string.h>

#include "base/error.h"
#include "place/slots.h"

/* ------------------------------------------------------------------------
 * Sums that stay at the largest number instead of wrapping around
 */

static uint64_t add(uint64_t a, uint64_t b)
{
    uint64_t sum;

    return mp_add_u64(a, b, &sum) ? sum : UINT64_MAX;
}

static uint64_t mul(uint64_t a, uint64_t b)
{
    uint64_t product;

    return mp_mul_u64(a, b, &product) ? product : UINT64_MAX;
}

/* a rounded up to a multiple of b. */
static uint64_t align(uint64_t a, uint64_t b)
{
    return mul(mp_ceil_div(a, b), b);
}

/* ------------------------------------------------------------------------
 * The symmetric buffer
 */

/* Tokens of a tile of the kernel; buffers hold a multiple of it. */
#define TOKEN_TILE 384

/* Tokens that a rank may receive. Those of an expert fill whole blocks, the largest of which have
 * 192: each expert may add 191. */
static uint64_t pool_tokens(const mp_symm_buffer *s, uint64_t tokens, uint64_t experts)
{
    /* A token cannot choose more experts of a rank than there are. */
    uint64_t choices = s->topk < experts ? s->topk : experts;

    return align(add(mul(mul(s->ranks, tokens), choices), mul(experts, 191)), TOKEN_TILE);
}

/* Rows of scale factors for the pool: the kernel may take any of these block sizes, and pads
 * the scales of a block to 128. */
static uint64_t scale_rows(uint64_t pool)
{
    static const uint64_t blocks[] = {8, 16, 32, 64, 96, 128, 192};
    uint64_t most = 0;

    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) {
        uint64_t rows = mul(pool / blocks[i], align(blocks[i], 128));

        most = rows > most ? rows : most;
    }
    return most;
}

/* Counters, flags and the lists of where tokens come from. */
static uint64_t workspace_bytes(const mp_symm_buffer *s, uint64_t tokens, uint64_t experts,
                                uint64_t pool)
{
    uint64_t blocks = pool / 8, received = mul(s->ranks, tokens);
    uint64_t bytes = add(32, add(mul(16, s->experts), mul(8, experts)));

    bytes = add(bytes, add(mul(4, align(blocks, 2)), mul(8, blocks)));
    bytes = add(bytes, mul(mul(4, experts), mul(s->ranks, received)));
    return align(add(bytes, mul(12, pool)), 16);
}

uint64_t mp_symm_buffer_bytes(const mp_symm_buffer *s)
{
    uint64_t h = s->hidden_size, i = s->intermediate_size;
    uint64_t tokens = align(s->max_tokens, TOKEN_TILE), experts = s->experts / s->ranks;
    uint64_t pool = pool_tokens(s, tokens, experts), scales = scale_rows(pool);
    uint64_t x = s->fp4_acts ? h / 2 : h; /* of a token */
    uint64_t combine = s->fp8_combine ? add(h, h / 128) : mul(2, h);
    uint64_t bytes = workspace_bytes(s, tokens, experts, pool);

    bytes = add(bytes, mul(tokens, add(x, add(h / 32, mul(12, s->topk))))); /* sent */
    bytes = add(bytes, add(mul(pool, x), mul(scales, h) / 32));             /* L1 input */
    bytes = add(bytes, mul(4, pool));                                       /* top-k weights */
    bytes = add(bytes, add(mul(pool, i), mul(scales, i) / 32));             /* L2 input */
    return add(bytes, mul(mul(s->topk, tokens), combine));                  /* L2 output */
}

/* What the engine asks the buffer for. Fused shared experts are further choices. */
static mp_symm_buffer buffer_for(const mp_backend *b, const mp_backend_model *model,
                                 uint64_t max_tokens, bool fp4_acts)
{
    return (mp_symm_buffer){
        .ranks = b->slots.ep,
        .experts = b->slots.total,
        .max_tokens = max_tokens,
        .topk = model->experts_per_token + b->slots.shared,
        .hidden_size = model->hidden_size,
        .intermediate_size = model->moe_intermediate_size,
        .fp4_acts = fp4_acts,
        .fp8_combine = b->fp8_combine,
    };
}

static uint64_t buffer_bytes(const mp_backend *b, const mp_backend_model *model,
                             uint64_t max_tokens, bool fp4_acts)
{
    mp_symm_buffer buffer = buffer_for(b, model, max_tokens, fp4_acts);

    return mp_symm_buffer_bytes(&buffer);
}

/* The largest token cap whose buffer fits into `bytes`. Buffers hold whole tiles. */
static uint64_t largest_cap(const mp_backend *b, const mp_backend_model *model, uint64_t bytes)
{
    /* In tiles: `fits` always does, `too_many` never. The engine's cap is an int. */
    uint64_t fits = 0, too_many = INT32_MAX / TOKEN_TILE + 1;

    while (fits + 1 < too_many) {
        uint64_t tiles = fits + (too_many - fits) / 2;

        if (buffer_bytes(b, model, tiles * TOKEN_TILE, b->fp4_acts) <= bytes)
            fits = tiles;
        else
            too_many = tiles;
    }
    return fits * TOKEN_TILE;
}

/* ------------------------------------------------------------------------
 * Experts
 */

/* Adds `copies` slots of a layer. Tensors that depend on the source are left out. */
static void add_slots(mp_backend_memory *m, const mp_target *target, const mp_dims *dims,
                      uint64_t copies)
{
    mp_slot_tensor tensors[MP_TARGET_TENSORS];
    unsigned count = target->describe(dims, tensors);

    for (unsigned i = 0; i < count; i++) {
        uint64_t *sum = tensors[i].role == MP_ROLE_WEIGHT ? &m->layer_weights : &m->layer_scales;

        if (!tensors[i].optional)
            *sum = add(*sum, mul(copies, tensors[i].slot_bytes));
    }
}

static void add_layer(mp_backend_memory *m, const mp_backend *b, const mp_backend_model *model,
                      const mp_target *target)
{
    mp_dims dims = {model->hidden_size, model->moe_intermediate_size};
    uint64_t shared = model->num_shared_experts;

    /* The last rank has most slots: a shared expert that is fused once is on that one. */
    add_slots(m, target, &dims, mp_slots_on_rank(&b->slots, b->slots.ep - 1));
    if (b->shared != MP_SHARED_SEPARATE || shared == 0)
        return;
    if (target->separate->single) {
        dims.intermediate_size *= shared;
        shared = 1;
    }
    add_slots(m, target->separate, &dims, shared);
}

static void judge(mp_backend_memory *m, const mp_backend *b, const mp_backend_model *model,
                  uint64_t gpu_memory)
{
    /* No underflow: total saturates, and was held against 63 bits before. */
    uint64_t others = m->total - m->symm_buffer;

    m->fits = m->total <= gpu_memory;
    /* Without its buffer, megamoe's total is only what it takes at least. */
    m->has_verdict = (m->has_total && (!b->megamoe || m->has_symm_buffer)) || !m->fits;
    m->has_max_tokens = m->has_symm_buffer;
    if (m->has_symm_buffer && others <= gpu_memory)
        m->max_tokens = largest_cap(b, model, gpu_memory - others);
}

int mp_backend_estimate(mp_backend_memory *m, const mp_backend *b, const mp_backend_model *model,
                        uint64_t gpu_memory, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    const mp_target *target = b->target ? mp_target_find(b->target) : NULL;

    memset(m, 0, sizeof *m);
    if (!target || b->sizes_refused)
        return 0;
    m->known = true;
    add_layer(m, b, model, target);
    m->weights = mul(m->layer_weights, model->num_layers);
    m->scales = mul(m->layer_scales, model->num_layers);
    m->has_second_scales = b->second_scales;
    m->second_scales = m->has_second_scales ? m->scales : 0;
    m->has_symm_buffer = b->buffer_known;
    m->has_total = !b->buffers_unknown;
    if (m->has_symm_buffer) {
        m->symm_buffer_fp8 = buffer_bytes(b, model, b->token_cap, false);
        m->symm_buffer_fp4 = buffer_bytes(b, model, b->token_cap, true);
        m->symm_buffer = b->fp4_acts ? m->symm_buffer_fp4 : m->symm_buffer_fp8;
    }
    m->total = add(add(m->weights, m->scales), add(m->second_scales, m->symm_buffer));
    if (m->total > INT64_MAX)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "the estimate does not fit 63 bits");
    if (gpu_memory > 0)
        judge(m, b, model, gpu_memory);
    return 0;
}
