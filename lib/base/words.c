/* SPDX-License-Identifier: Apache-2.0 */
/* The words for experts, as manifests, options and messages spell them. */
#include "base/words.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"

static const char *const projections[] = {
    [MP_GATE] = "gate", [MP_UP] = "up", [MP_DOWN] = "down", [MP_GATE_UP] = "gate_up"};

static const char *const fusions[] = {
    [MP_FUSION_NONE] = "none",
    [MP_FUSION_ROWS] = "rows",
    [MP_FUSION_ROWS_PAIRED] = "rows_paired",
    [MP_FUSION_COLS] = "cols",
    [MP_FUSION_COLS_PAIRED] = "cols_paired",
    [MP_FUSION_STACKED] = "stacked",
};

static const char *const roles[MP_ROLES] = {
    [MP_ROLE_WEIGHT] = "weight",
    [MP_ROLE_SCALE] = "scale",
    [MP_ROLE_GLOBAL_SCALE] = "global_scale",
    [MP_ROLE_BIAS] = "bias",
    [MP_ROLE_INPUT_SCALE] = "input_scale",
    [MP_ROLE_OFFSET] = "offset",
    [MP_ROLE_SHAPE] = "shape",
    [MP_ROLE_ALPHA] = "alpha",
    [MP_ROLE_ACT_SCALE] = "act_scale",
    [MP_ROLE_FOLDED_ALPHA] = "folded_alpha",
    [MP_ROLE_GROUP_SCALE] = "group_scale",
    [MP_ROLE_GROUP_OFFSET] = "group_offset",
    [MP_ROLE_SCALE_BIAS] = "scale_bias",
};

static const char *const roundings[] = {[MP_ROUND_DEEPGEMM] = "deepgemm", [MP_ROUND_OCP] = "ocp"};

static const char *const scale_rules[] = {[MP_SCALE_CEIL] = "ceil", [MP_SCALE_MSE] = "mse"};

static const char *const alphas[] = {[MP_ALPHAS_SGL] = "sgl", [MP_ALPHAS_FP4XFP4] = "fp4xfp4"};

static const char *const shared_modes[MP_SHARED_MODES] = {
    [MP_SHARED_NONE] = "none",
    [MP_SHARED_FUSED] = "fused",
    [MP_SHARED_SEPARATE] = "separate",
};

#define COUNT(words) (sizeof(words) / sizeof((words)[0]))

/* Defines mp_THING_name and mp_THING_parse over a table of words. */
#define DEFINE_WORDS(thing, words)                               \
    const char *mp_##thing##_name(mp_##thing value)              \
    {                                                            \
        return (words)[value];                                   \
    }                                                            \
                                                                 \
    bool mp_##thing##_parse(const char *name, mp_##thing *value) \
    {                                                            \
        for (size_t i = 0; i < COUNT(words); i++) {              \
            if (strcmp((words)[i], name) == 0) {                 \
                *value = (mp_##thing)i;                          \
                return true;                                     \
            }                                                    \
        }                                                        \
        return false;                                            \
    }

DEFINE_WORDS(projection, projections)
DEFINE_WORDS(fusion, fusions)
DEFINE_WORDS(role, roles)
DEFINE_WORDS(alphas, alphas)
DEFINE_WORDS(shared_mode, shared_modes)
DEFINE_WORDS(rounding, roundings)
DEFINE_WORDS(scale_rule, scale_rules)

bool mp_fusion_is_transposed(mp_fusion fusion)
{
    return fusion == MP_FUSION_COLS || fusion == MP_FUSION_COLS_PAIRED;
}

unsigned mp_side_parts(mp_side side)
{
    return side == MP_L1 ? 2 : 1;
}

mp_projection mp_side_first(mp_side side)
{
    return side == MP_L1 ? MP_GATE : MP_DOWN;
}

mp_role mp_role_source(mp_role role)
{
    switch (role) {
    case MP_ROLE_ALPHA:
    case MP_ROLE_FOLDED_ALPHA:
        return MP_ROLE_GLOBAL_SCALE;
    case MP_ROLE_ACT_SCALE:
        return MP_ROLE_INPUT_SCALE;
    default:
        return role;
    }
}

char *mp_role_set_text(mp_role_set set, char text[MP_ROLE_SET_TEXT])
{
    size_t n = 0;

    text[0] = '\0';
    for (int role = 0; role < MP_ROLES; role++)
        if (set & MP_ROLE_BIT(role))
            n +=
                (size_t)snprintf(text + n, MP_ROLE_SET_TEXT - n, "%s%s", n ? "," : "", roles[role]);
    return text;
}

int mp_role_set_parse(const char *list, mp_role_set allowed, mp_role_set *set, mp_error *err)
{
    *set = 0;
    for (const char *p = list; p && *p; p += strcspn(p, ","), p += *p == ',') {
        char item[16] = "", known[MP_ROLE_SET_TEXT];
        size_t length = strcspn(p, ",");
        mp_role role;

        if (length < sizeof item)
            memcpy(item, p, length);
        if (!mp_role_parse(item, &role) || !(allowed & MP_ROLE_BIT(role)))
            return mp_fail(err, MP_ERR_USAGE, "\"%.*s\" is not one of %s", (int)length, p,
                           mp_role_set_text(allowed, known));
        *set |= MP_ROLE_BIT(role);
    }
    return 0;
}
