/* SPDX-License-Identifier: Apache-2.0 */
/*
 * checkpoint/rules.h - what each model_type computes: how its router chooses and weighs experts,
 * and what an expert does between its products.
 *
 * Tensors are found by their names, whoever exports them; what is done with them goes by
 * model_type alone. From the models' own code; see moepack-forward(1), "ROUTERS".
 */
#ifndef MP_CHECKPOINT_RULES_H
#define MP_CHECKPOINT_RULES_H

#include <moepack/model.h>

/* Whether weights are divided by their sum: what config.json says, else what the name says. */
typedef enum mp_renormalize {
    MP_RENORM_TRUE,
    MP_RENORM_FALSE,
    MP_RENORM_ALWAYS,
    MP_RENORM_NEVER,
    MP_RENORM_SEVERAL /* where a token has more than one choice; config.json does not matter */
} mp_renormalize;

/* Runs of experts of which only the best may be chosen from. */
typedef enum mp_group_rule {
    MP_GROUPS_NONE,
    MP_GROUPS_OF_TWO, /* a group counts as its two best */
    MP_GROUPS_OF_V2   /* as its best, and only with topk_method "group_limited_greedy" */
} mp_group_rule;

typedef enum mp_act_rule {
    MP_ACT_SILU,
    MP_ACT_LIMITED, /* MegaMoE's own clamp, by swiglu_limit */
    MP_ACT_OAI,     /* swigluoai, whatever hidden_act says */
    MP_ACT_LATE,    /* clamped after SiLU, by swiglu_limits of each layer */
    MP_ACT_RELU2,
    MP_ACT_SITU,
    MP_ACT_GELU
} mp_act_rule;

typedef struct mp_model_rule {
    const char *model_types[8]; /* null-terminated */
    const char *score;          /* of mp_scoring_parse (forward/reference.h) */
    mp_renormalize renormalize;
    mp_group_rule groups;
    mp_act_rule act;
    double limit;          /* swiglu_limit where config.json has none; 0: no limit */
    double scale;          /* of weights where config.json has none; 0: there is no such factor */
    double epsilon;        /* added to the sum that weights are divided by */
    bool scale_assumed;    /* `scale` is not what the model's own code takes */
    bool config_score;     /* config.json may name another score */
    bool score_by_bias;    /* without a bias of the choice: softmax, and not renormalized */
    bool bias;             /* a bias of the choice, if there is its tensor */
    bool logit_bias;       /* a bias of the logits, the same */
    bool by_logits;        /* the choice goes by logits, not by scores that may all be 0 */
    bool weigh_input;      /* weights are of what goes into an expert */
    bool shared_unlimited; /* the limit is not for shared experts */
    bool all_layers;       /* none is dense */
    bool beside;           /* shared experts stand beside the block, and are none of its own */
    bool widths;           /* the key of the shared width is for one of several shared experts */
    bool norm_min;         /* the sum is at least moe_norm_min */
    bool mixed;            /* routed and shared are weighed by "coefficient" */
    bool block_bias;       /* "bias" is added to what the block gives */
    const char *refused;   /* why forward does not compute it; or null */
} mp_model_rule;

/* What a decoder layer's experts compute between their products where that is no SwiGLU that
 * MegaMoE and FuseEP compute: "swigluoai"; null where it is one. */
const char *mp_config_foreign_act(const mp_config *config, uint64_t layer);

/* Whether experts of the model have no gate, as Nemotron-H's: they are relu(up)^2. */
bool mp_is_ungated(const mp_config *config);

/* What is known of that model_type, or null. */
const mp_model_rule *mp_model_rule_of(const char *model_type);

#endif
