/* SPDX-License-Identifier: Apache-2.0 */
/* Ascend FuseEP: what its kernels take, and which of them is used. Mode 1 is fused_deep_moe, mode 2
 * is dispatch_ffn_combine; each has a layout of its own, so the mode is what a pack is made for.
 * The version of SGLang says how it is chosen (a variable, or a flag) and what the limit of tokens
 * means:
 *
 *   mode 1           the buffer's tokens a rank
 *   mode 2, newer    tokens that a rank may receive, and besides bytes of HCCL's buffer
 *
 * What a kernel cannot do is an error here, not a refusal: nothing that follows would have a
 * meaning. */
#include "engine/rules.h"

#include <inttypes.h>

#include "base/error.h"

/* Bytes of an element of bf16, which the kernels' buffer is made for. */
#define PARAMS_BYTES 2

static int check_platform(mp_resolution *r, mp_error *err)
{
    const mp_backend_model *model = r->model;

    if (r->flags->platform != MP_PLATFORM_NPU)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "ascend_fuseep: runs on npu only, --platform is %s",
                       mp_platform_name(r->flags->platform));
    if (!model->has_scheme || model->scheme != MP_SCHEME_INT8_CHANNEL)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "ascend_fuseep: experts are %s (%s), the kernel takes W8A8 INT8 only: see "
                       "--quantize int8_channel",
                       mp_backend_model_scheme(model), model->scheme_from);
    if (!mp_activation_fits(r))
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "ascend_fuseep: activation %s (%s): the kernel does not compute it",
                       model->activation, model->activation_from);
    if (model->float16)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "ascend_fuseep: the model is float16, the kernel takes bfloat16 only");
    return 0;
}

static int check_limits(const mp_resolution *r, uint64_t tokens, mp_error *err)
{
    const mp_backend_model *model = r->model;
    const struct {
        const char *what;
        uint64_t value, min, max;
    } limits[] = {
        {"tokens a rank", tokens, 1, 256},
        {"hidden size", model->hidden_size, 512, 7168},
        {"twice the expert intermediate size", 2 * model->moe_intermediate_size, 1024, 6144},
        {"experts a token", model->experts_per_token, 1, 12},
        {"experts", r->backend->slots.num_physical, 1, 512},
    };

    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++)
        if (limits[i].value < limits[i].min || limits[i].value > limits[i].max)
            return mp_fail(err, MP_ERR_UNSUPPORTED,
                           "ascend_fuseep: %s: %llu, the kernel takes %llu to %llu", limits[i].what,
                           (unsigned long long)limits[i].value, (unsigned long long)limits[i].min,
                           (unsigned long long)limits[i].max);
    return 0;
}

/* Mode 1 has a buffer of so many tokens a rank. */
static int check_tokens(mp_resolution *r, mp_error *err)
{
    const mp_env_number *room = &r->env.dispatch_tokens;
    const char *flag;
    uint64_t tokens;

    if (!mp_max_tokens(r->flags, &tokens, &flag))
        return check_limits(r, (uint64_t)room->value, err);
    if (room->value < 0 || tokens > (uint64_t)room->value)
        mp_warn(r, "%s: %" PRIu64 " tokens a rank, the buffer holds %" PRId64 " (%s)", flag, tokens,
                room->value, room->name);
    return check_limits(r, tokens, err);
}

/* MiB of HCCL's buffer, and the variable that says so. */
static int64_t hccl_room(const mp_engine_env *env, const char **name)
{
    const mp_env_number *which = env->deepep_hccl.set ? &env->deepep_hccl : &env->hccl;

    *name = which->name;
    return which->value;
}

static uint64_t times(uint64_t a, uint64_t b)
{
    /* Saturate at a number that no buffer has and that can still be added to. */
    uint64_t product;

    return mp_mul_u64(a, b, &product) && product < INT64_MAX / 2 ? product : INT64_MAX / 2;
}

/* Mode 2 sends through HCCL's buffer, and its limit of tokens is one of those that are received.
 * Sources: dispatch_ffn_combine_tiling.cpp and buffer.py of sgl-kernel-npu. */
static int check_received(mp_resolution *r, mp_error *err)
{
    const mp_env_number *room = &r->env.dispatch_tokens;
    const mp_backend_model *model = r->model;
    const char *flag, *name;
    int64_t mib = hccl_room(&r->env, &name);
    uint64_t tokens, choices, received, bytes;

    if (r->backend->slots.shared > 0)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "ascend_fuseep: mode 2 takes no fused shared experts, there are %u",
                       r->backend->slots.shared);
    if (!mp_max_tokens(r->flags, &tokens, &flag))
        return 0;
    choices = times(tokens, model->experts_per_token);
    received = times(choices, r->backend->slots.ep);
    /* Three buffers of a row a choice, and 10 MiB of flags: what the tiling asks for. */
    bytes = times(times(3, choices), model->hidden_size) + (UINT64_C(10) << 20);
    if (mib < 0 || mp_ceil_div(bytes, UINT64_C(1) << 20) > (uint64_t)mib)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "ascend_fuseep: %" PRIu64 " tokens a rank take %" PRIu64
                       " bytes of HCCL's buffer, it has %" PRId64 " MiB (%s)",
                       tokens, bytes, mib, name);
    if (room->value < 0 || received > (uint64_t)room->value)
        mp_warn(r, "%s: %" PRIu64 " tokens may be received, %s is %" PRId64, flag, received,
                room->name, room->value);
    return 0;
}

/* sglang-0.5.15 goes by a variable, later ones by a flag. */
static int choose_mode(mp_resolution *r, mp_error *err)
{
    const mp_env_number *variable = &r->env.fuse_mode;
    bool old = r->flags->engine == MP_ENGINE_SGLANG_0_5_15;
    int64_t mode = old ? variable->value : r->flags->fuseep_mode ? r->flags->fuseep_mode : 2;
    mp_backend *b = r->backend;

    r->mode_by = old ? (variable->set ? variable->name : "default")
                     : (r->flags->fuseep_mode ? "--fuseep-mode" : "default");
    if (mode != 1 && mode != 2)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: %" PRId64 ", there are modes 1 and 2",
                       r->mode_by, mode);
    if (!old && mp_env_get(r->variables, variable->name))
        mp_warn(r, "%s is no longer read: see --fuseep-mode", variable->name);
    b->fuse_mode = (unsigned)mode;
    b->target = b->fuse_mode == 1 ? "fuseep-1" : "fuseep-2";
    b->acts = "int8";
    mp_decide_number(r, "fuse_mode", b->fuse_mode, r->mode_by,
                     b->fuse_mode == 1 ? "fused_deep_moe" : "dispatch_ffn_combine");
    return 0;
}

/* 8. */
int mp_rule_fuseep(mp_resolution *r, mp_error *err)
{
    const mp_env_number *room = &r->env.dispatch_tokens;
    mp_backend *b = r->backend;
    int rc;

    if (b->backend != MP_A2A_ASCEND_FUSEEP)
        return 0;
    rc = check_platform(r, err);
    if (rc == 0)
        rc = mp_need_topk(r->model, err);
    if (rc == 0)
        rc = choose_mode(r, err);
    if (rc == 0)
        rc = r->flags->engine != MP_ENGINE_SGLANG_0_5_15 && b->fuse_mode == 2
                 ? check_received(r, err)
                 : check_tokens(r, err);
    if (rc != 0)
        return rc;
    mp_decide(r, "acts", b->acts, r->model->scheme_from, "the kernel quantizes a token at a time");
    mp_decide(r, "target", b->target, r->mode_by, "W8A8 INT8 experts on npu");
    mp_decide(r, "buffer_mode", "low_latency", r->backend_by,
              "its buffer is DeepEP's low latency one");
    mp_decide_number(r, "params_bytes", PARAMS_BYTES, r->backend_by, "bf16");
    mp_decide_number(r, "max_dispatch_tokens", room->value > 0 ? (uint64_t)room->value : 0,
                     room->set ? room->name : "default", "%s%s%s",
                     b->fuse_mode == 2 && b->engine != MP_ENGINE_SGLANG_0_5_15
                         ? "tokens that a rank may receive"
                         : "the buffer's tokens a rank",
                     room->set ? "" : ", ", room->set ? "" : room->name);
    return 0;
}
