/* SPDX-License-Identifier: Apache-2.0 */
/* vllm-2026-09: rules V1 to V5 of moepack-plan(1). Sources: models/deepseek_v4,
 * DeepseekV4MegaMoEExperts._check_runtime_supported and forward; validate_fi_moe_ep_config. */
#include "engine/rules.h"

#include <inttypes.h>

#include "base/error.h"

#define MULTIPLE 128 /* of both sizes */

static bool is_flashinfer(const mp_backend *b)
{
    return b->backend == MP_A2A_FLASHINFER_EP_DEEP_GEMM ||
           b->backend == MP_A2A_FLASHINFER_EP_CUTEDSL;
}

int mp_vllm_backend(mp_resolution *r, mp_error *err)
{
    mp_backend *b = r->backend;

    (void)err;
    b->megamoe = b->backend != MP_A2A_AUTO;
    b->buffers_unknown = true;
    mp_decide(r, "backend", mp_a2a_name(b->backend), r->backend_by, "%s",
              b->megamoe ? r->backend_why : "chosen when the model is loaded: not predicted");
    return 0;
}

static void check_device(mp_resolution *r)
{
    mp_platform p = r->flags->platform;
    bool newer = is_flashinfer(r->backend) && p == MP_PLATFORM_CUDA_SM120;

    if (p != MP_PLATFORM_CUDA_SM100 && !newer)
        mp_refuse(r, "--platform %s: %s needs compute capability 10%s", mp_platform_name(p),
                  mp_a2a_name(r->backend->backend),
                  is_flashinfer(r->backend) ? ".0 or more" : ".x");
}

static void check_sizes(mp_resolution *r)
{
    const uint64_t sizes[] = {r->model->hidden_size, r->model->moe_intermediate_size};
    mp_backend *b = r->backend;

    for (size_t i = 0; i < 2; i++) {
        if (sizes[i] % MULTIPLE == 0 || (i == 1 && sizes[0] == sizes[1]))
            continue;
        b->sizes_refused = true;
        mp_refuse(r, "%" PRIu64 " is not a multiple of %d", sizes[i], MULTIPLE);
    }
    mp_decide(r, "shapes", b->sizes_refused ? "refused" : "ok", r->model->source,
              "%" PRIu64 " and %" PRIu64 ", the kernel takes multiples of %d", sizes[0], sizes[1],
              MULTIPLE);
}

static bool check_format(mp_resolution *r)
{
    const mp_backend_model *model = r->model;
    bool fits = true;

    if (!mp_has_scheme(model, MP_SCHEME_MXFP4)) {
        mp_refuse(r, "experts are %s: %s takes mxfp4%s", mp_backend_model_scheme(model),
                  mp_a2a_name(r->backend->backend),
                  mp_has_scheme(model, MP_SCHEME_NVFP4)
                      ? ", nvfp4 goes through flashinfer_moe_ep_mega_cutedsl"
                      : "");
        fits = false;
    }
    if (model->activation[0] && !mp_text_is(model->activation, "silu")) {
        mp_refuse(r, "activation %s (%s): it takes silu", model->activation,
                  model->activation_from);
        fits = false;
    }
    return fits;
}

/* FlashInfer lays experts out for itself. */
static void leave_to_flashinfer(mp_resolution *r)
{
    mp_backend *b = r->backend;

    if (mp_has_scheme(r->model, MP_SCHEME_NVFP4) && b->backend != MP_A2A_FLASHINFER_EP_CUTEDSL)
        mp_refuse(r, "experts are nvfp4: they go through flashinfer_moe_ep_mega_cutedsl only");
    mp_decide(r, "use_mega_moe", "not predicted", r->backend_by, "FlashInfer decides");
    mp_decide(r, "target", "none", r->backend_by, "FlashInfer has a layout of its own");
}

int mp_vllm_mega_moe(mp_resolution *r, mp_error *err)
{
    mp_backend *b = r->backend;

    (void)err;
    if (!b->megamoe)
        return 0;
    check_device(r);
    if (is_flashinfer(b)) {
        leave_to_flashinfer(r);
        return 0;
    }
    check_sizes(r);
    b->use_known = true;
    b->use_mega_moe = check_format(r);
    if (b->use_mega_moe) {
        b->target = "megamoe-w4a8";
        b->acts = "fp8";
        mp_decide(r, "acts", "fp8", "default", "there is no W4A4");
        mp_decide(r, "target", b->target, r->model->scheme_from, "mxfp4 experts, silu");
        mp_decide(r, "use_mega_moe", "true", r->backend_by,
                  "more tokens than max_num_batched_tokens end the forward pass");
    } else {
        mp_decide(r, "target", "none", r->model->scheme_from, "it takes mxfp4 with silu only");
        mp_decide(r, "use_mega_moe", "false", r->model->scheme_from, "it does not start");
    }
    return 0;
}

/* EPLB is DeepGEMM's only. */
int mp_vllm_redundancy(mp_resolution *r, mp_error *err)
{
    const mp_backend_flags *flags = r->flags;

    (void)err;
    if (is_flashinfer(r->backend) && (flags->eplb || flags->redundant > 0))
        mp_refuse(r, "%s: %s takes neither EPLB nor redundant experts",
                  flags->eplb ? "--eplb" : "--redundant", mp_a2a_name(r->backend->backend));
    return 0;
}
