/* SPDX-License-Identifier: Apache-2.0 */
/* trtllm-2026-09: rules T1 to T5 of moepack-plan(1). What MEGAMOE_DEEPGEMM does not take it
 * declines, and another backend runs. Sources: fused_moe/mega_moe, MegaMoEDeepGemm.can_implement
 * and _supports_load_balancer. */
#include "engine/rules.h"

#include <inttypes.h>
#include <stdio.h>

#include "base/error.h"

#define MULTIPLE 512 /* of both sizes */

int mp_trtllm_backend(mp_resolution *r, mp_error *err)
{
    mp_backend *b = r->backend;

    (void)err;
    b->megamoe = b->backend == MP_A2A_MEGAMOE_DEEPGEMM;
    b->buffers_unknown = true;
    mp_decide(r, "backend", mp_a2a_name(b->backend), r->backend_by, "%s",
              b->megamoe ? r->backend_why : "chosen when the model is loaded: not predicted");
    return 0;
}

/* Says why it declines: for Kimi K3, which has no other backend, it is an error. */
#define decline(r, ...)                                            \
    (mp_text_is((r)->model->model_type, "kimi_k3")                 \
         ? mp_refuse(r, "MEGAMOE_DEEPGEMM declines: " __VA_ARGS__) \
         : mp_warn(r, "MEGAMOE_DEEPGEMM declines: " __VA_ARGS__))

static bool check_ranks(mp_resolution *r)
{
    const mp_backend_flags *flags = r->flags;
    uint64_t ep = r->backend->slots.ep, dp = flags->dp ? flags->dp : 1;
    bool fits = true;

    if (ep != flags->tp) {
        decline(r, "moe_tp has to be 1: --ep is %" PRIu64 ", --tp %" PRIu64, ep, flags->tp);
        fits = false;
    }
    if (ep > 1 && dp != ep) {
        decline(r, "attention DP has to be of %" PRIu64 " ranks, --dp is %" PRIu64, ep, dp);
        fits = false;
    }
    return fits;
}

static bool check_format(mp_resolution *r)
{
    static const char *const swiglu[] = {"", "silu", "swish", "swiglu", NULL};
    const mp_backend_model *model = r->model;
    bool k3 = mp_text_is(model->model_type, "kimi_k3"), fits = true;

    if (!mp_has_scheme(model, MP_SCHEME_MXFP4)) {
        decline(r, "experts are %s, it takes mxfp4 (W4A8_MXFP4_MXFP8)",
                mp_backend_model_scheme(model));
        fits = false;
    }
    if (model->float16) {
        decline(r, "the model is float16, it takes bfloat16");
        fits = false;
    }
    if (!mp_text_among(model->activation, swiglu) &&
        !(k3 && mp_text_is(model->activation, "situ"))) {
        decline(r, "activation %s, it takes swiglu, and situ of Kimi K3", model->activation);
        fits = false;
    }
    return fits;
}

static bool check_sizes(mp_resolution *r)
{
    const uint64_t sizes[] = {r->model->hidden_size, r->model->moe_intermediate_size};
    bool fits = true;

    for (size_t i = 0; i < 2; i++) {
        if (sizes[i] % MULTIPLE == 0 || (i == 1 && sizes[0] == sizes[1]))
            continue;
        decline(r, "%" PRIu64 " is not a multiple of %d", sizes[i], MULTIPLE);
        fits = false;
    }
    return fits;
}

int mp_trtllm_mega_moe(mp_resolution *r, mp_error *err)
{
    mp_backend *b = r->backend;
    bool fits = b->platform == MP_PLATFORM_CUDA_SM100;

    (void)err;
    if (!b->megamoe)
        return 0;
    if (!fits)
        decline(r, "%s, it runs on the SM100 family", mp_platform_name(b->platform));
    fits &= check_ranks(r);
    fits &= check_format(r);
    fits &= check_sizes(r);
    b->use_known = true;
    b->use_mega_moe = fits;
    if (fits) {
        b->target = "megamoe-w4a8";
        b->acts = "fp8";
        mp_decide(r, "acts", "fp8", "default", "W4A8_MXFP4_MXFP8");
        mp_decide(r, "target", b->target, r->model->scheme_from, "mxfp4 experts, swiglu");
        mp_decide(r, "use_mega_moe", "true", r->backend_by,
                  "a rank's tokens are moe_max_num_tokens, divided by ep under attention DP");
    } else {
        mp_decide(r, "target", "none", r->backend_by, "it declines");
        mp_decide(r, "use_mega_moe", "false", r->backend_by, "it declines: see the warnings");
    }
    return 0;
}
