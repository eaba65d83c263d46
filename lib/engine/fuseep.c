/* SPDX-License-Identifier: Apache-2.0 */
/* Ascend FuseEP: what its kernels take, and which of them is used. */
#include "engine/rules.h"

#include "base/error.h"

/* Bytes of an element of bf16, which the kernels' buffer is made for. */
#define PARAMS_BYTES 2

static int check_platform(const mp_resolution *r, mp_error *err)
{
    const mp_backend_model *model = r->model;

    if (r->flags->platform != MP_PLATFORM_NPU)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "ascend_fuseep: runs on npu only, --platform is %s",
                       mp_platform_name(r->flags->platform));
    if (!model->has_scheme || model->scheme != MP_SCHEME_INT8_CHANNEL)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "ascend_fuseep: experts are %s (%s), the kernel takes W8A8 INT8 only: see "
                       "--quantize int8_channel",
                       mp_model_scheme_name(model), model->scheme_from);
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

static int check_tokens(mp_resolution *r, mp_error *err)
{
    const mp_env_number *room = &r->env.dispatch_tokens;
    const char *flag;
    uint64_t tokens;

    if (!mp_max_tokens(r->flags, &tokens, &flag))
        return check_limits(r, room->value, err);
    if (tokens > room->value)
        mp_problem(&r->backend->warnings, "%s: %llu tokens a rank, the buffer holds %llu (%s)",
                   flag, (unsigned long long)tokens, (unsigned long long)room->value, room->name);
    return check_limits(r, tokens, err);
}

static int choose_mode(mp_resolution *r, mp_error *err)
{
    const mp_env_number *mode = &r->env.fuse_mode;
    mp_backend *b = r->backend;

    if (mode->value != 1 && mode->value != 2)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: %llu, there are modes 1 and 2", mode->name,
                       (unsigned long long)mode->value);
    b->fuse_mode = (unsigned)mode->value;
    b->target = b->fuse_mode == 1 ? "fuseep-1" : "fuseep-2";
    b->acts = "int8";
    mp_decide_number(r, "fuse_mode", b->fuse_mode, mode->set ? mode->name : "default",
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
        rc = check_tokens(r, err);
    if (rc != 0)
        return rc;
    mp_decide(r, "acts", b->acts, r->model->scheme_from, "the kernel quantizes a token at a time");
    mp_decide(r, "target", b->target, r->env.fuse_mode.set ? r->env.fuse_mode.name : "default",
              "W8A8 INT8 experts on npu");
    mp_decide(r, "buffer_mode", "low_latency", r->backend_by,
              "its buffer is DeepEP's low latency one");
    mp_decide_number(r, "params_bytes", PARAMS_BYTES, r->backend_by, "bf16");
    mp_decide_number(r, "max_dispatch_tokens", room->value, room->set ? room->name : "default",
                     "the buffer's tokens a rank%s%s", room->set ? "" : ", ",
                     room->set ? "" : room->name);
    return 0;
}
