/* SPDX-License-Identifier: Apache-2.0 */
/* Tensor names: layer, expert, projection and role out of the text. */
#include "checkpoint/names.h"

#include "base/error.h"
#include "checkpoint/families.h"

#include <ctype.h>
#include <string.h>

/* What follows the projection of a matrix with tensors of its own, and what it holds. */
static const struct {
    const char *suffix;
    mp_role role;
    bool global_divides;
} suffixes[] = {
    {".weight", MP_ROLE_WEIGHT, false},
    {".weight_packed", MP_ROLE_WEIGHT, false},
    {".scale", MP_ROLE_SCALE, false},
    {".weight_scale", MP_ROLE_SCALE, false},
    {".weight_scale_inv", MP_ROLE_SCALE, false},
    {".weight_scale_2", MP_ROLE_GLOBAL_SCALE, false},
    {".weight_global_scale", MP_ROLE_GLOBAL_SCALE, true},
    {".input_scale", MP_ROLE_INPUT_SCALE, false},
    {".input_global_scale", MP_ROLE_INPUT_SCALE, false},
    {".weight_offset", MP_ROLE_OFFSET, false},
    {".weight_zero_point", MP_ROLE_OFFSET, false},
    {".bias", MP_ROLE_BIAS, false},
    {".weight_shape", MP_ROLE_SHAPE, false},
};

/* The same behind "gate_up_proj" and "down_proj" of fused experts. */
static const struct {
    const char *suffix;
    mp_role role;
} fused_suffixes[] = {
    {"", MP_ROLE_WEIGHT},
    {".weight", MP_ROLE_WEIGHT},
    {"_blocks", MP_ROLE_WEIGHT},
    {"_scales", MP_ROLE_SCALE},
    {"_scale_inv", MP_ROLE_SCALE},
    {"_weight_scale", MP_ROLE_SCALE},
    {"_weight_scale_2", MP_ROLE_GLOBAL_SCALE},
    {"_input_scale", MP_ROLE_INPUT_SCALE},
    {"_activation_scale", MP_ROLE_INPUT_SCALE},
    {"_bias", MP_ROLE_BIAS},
};

/* What only forms have that nothing here reads. */
static const struct {
    const char *suffix;
    const char *form;
} foreign_suffixes[] = {
    {".qweight", "weights of AWQ or GPTQ"},
    {".qzeros", "zero points of AWQ or GPTQ"},
    {".scales", "scales of AWQ, GPTQ or MLX"},
    {".g_idx", "columns that GPTQ has reordered"},
    {".weight_g_idx", "columns that are reordered"},
    {".biases", "zero points of MLX"},
    {".scale_packed", "weights in Marlin's 2:4 sparse order"},
    {".meta", "weights in Marlin's 2:4 sparse order"},
    {".compressed", "sparse weights"},
    {".bitmask", "sparse weights"},
    {".scale_bias", "weights of ModelSlim's W4A8_DYNAMIC"},
    {".deq_scale", "weights of ModelSlim's static W8A8"},
    {".weight_dual_scale", "weights of ModelSlim with two scales"},
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* A decimal number without leading zeros, up to the dot or the end. */
static bool read_number(const char **text, const char *end, uint64_t *number)
{
    const char *p = *text;
    uint64_t n = 0;

    if (p == end || !isdigit((unsigned char)*p) || (*p == '0' && p + 1 < end && p[1] != '.'))
        return false;
    while (p < end && isdigit((unsigned char)*p))
        if (!mp_mul_u64(n, 10, &n) || !mp_add_u64(n, (uint64_t)(*p++ - '0'), &n))
            return false;
    *text = p;
    *number = n;
    return true;
}

/* Whether "mtp" is one of the parts between the dots. */
static bool has_mtp(const char *prefix, size_t length)
{
    return (length > 4 && memcmp(prefix, "mtp.", 4) == 0) || memmem(prefix, length, ".mtp.", 5);
}

/* Whether the part that ends at `end`, behind a dot or at the beginning, is "layers". */
static bool ends_in_layers(const char *prefix, const char *end)
{
    size_t length = (size_t)(end - prefix);

    return length >= 6 && memcmp(end - 6, "layers", 6) == 0 && (length == 6 || end[-7] == '.');
}

/* "....layers.N" or "....mtp.N": the number at the end, and which of the two. */
static bool parse_prefix(const char *prefix, size_t length, mp_expert_name *parts)
{
    const char *end = prefix + length;
    const char *digits = end;
    const char *p;

    while (digits > prefix && digits[-1] != '.')
        digits--;
    p = digits;
    if (digits == prefix || !read_number(&p, end, &parts->layer) || p != end)
        return false;
    parts->prefix_length = length;
    parts->mtp = has_mtp(prefix, length);
    return parts->mtp || ends_in_layers(prefix, digits - 1);
}

/* "PREFIX.BLOCK" in front of ".experts." or ".shared_experts.". */
static bool parse_block(const char *name, size_t length, mp_expert_name *parts)
{
    size_t dot = length;

    while (dot > 0 && name[dot - 1] != '.')
        dot--;
    if (dot < 2)
        return false;
    parts->naming = mp_naming_of_block(name + dot, length - dot);
    return parts->naming && parse_prefix(name, dot - 1, parts);
}

/* The form that has tensors of that suffix, or null. */
static const char *foreign_form(const char *suffix)
{
    for (size_t i = 0; i < COUNT(foreign_suffixes); i++)
        if (strcmp(foreign_suffixes[i].suffix, suffix) == 0)
            return foreign_suffixes[i].form;
    return NULL;
}

/* "PROJECTION.SUFFIX" at the end of the name. */
static bool parse_matrix(const char *text, const char *const projections[MP_PROJECTIONS],
                         mp_expert_name *parts)
{
    for (int p = 0; p < MP_PROJECTIONS; p++) {
        size_t length = strlen(projections[p]);

        if (strncmp(projections[p], text, length) != 0)
            continue;
        for (size_t i = 0; i < COUNT(suffixes); i++) {
            if (strcmp(suffixes[i].suffix, text + length) != 0)
                continue;
            parts->projection = (mp_projection)p;
            parts->role = suffixes[i].role;
            parts->global_divides = suffixes[i].global_divides;
            return true;
        }
        parts->foreign = foreign_form(text + length);
    }
    return false;
}

/* "gate_up_proj", "down_proj_scales": a tensor of all experts of the layer. */
static bool parse_fused(const char *text, mp_expert_name *parts)
{
    static const char gate_up[] = "gate_up_proj", down[] = "down_proj";
    bool is_down = strncmp(text, down, sizeof down - 1) == 0;

    if (!is_down && strncmp(text, gate_up, sizeof gate_up - 1) != 0)
        return false;
    text += is_down ? sizeof down - 1 : sizeof gate_up - 1;
    for (size_t i = 0; i < COUNT(fused_suffixes); i++) {
        if (strcmp(fused_suffixes[i].suffix, text) != 0)
            continue;
        parts->projection = is_down ? MP_DOWN : MP_GATE;
        parts->role = fused_suffixes[i].role;
        return true;
    }
    return false;
}

static mp_name_kind parse_routed(const char *name, const char *marker, mp_expert_name *parts)
{
    const char *p = marker + strlen(".experts.");

    if (!parse_block(name, (size_t)(marker - name), parts))
        return MP_NAME_UNKNOWN;
    if (parse_fused(p, parts))
        return MP_NAME_FUSED;
    if (read_number(&p, p + strlen(p), &parts->expert) && *p == '.' &&
        parse_matrix(p + 1, parts->naming->projection, parts))
        return MP_NAME_ROUTED;
    return parts->foreign ? MP_NAME_FOREIGN : MP_NAME_UNKNOWN;
}

static mp_name_kind parse_shared(const char *name, const char *marker, const char *shared,
                                 mp_expert_name *parts)
{
    if (!parse_block(name, (size_t)(marker - name), parts) ||
        !parse_matrix(marker + strlen(shared) + 2, parts->naming->shared_projection, parts))
        return parts->foreign ? MP_NAME_FOREIGN : MP_NAME_UNKNOWN;
    parts->shared = shared;
    return MP_NAME_SHARED;
}

void mp_expert_name_parse(const char *name, mp_expert_name *parts)
{
    static const char *const shared_names[] = {"shared_experts", "shared_expert"};
    const char *marker = strstr(name, ".experts.");

    *parts = (mp_expert_name){.kind = MP_NAME_OTHER};
    if (strstr(name, ".switch_mlp.")) {
        parts->kind = MP_NAME_FOREIGN;
        parts->foreign = "experts in the order of MLX";
        return;
    }
    if (marker) {
        parts->kind = parse_routed(name, marker, parts);
        return;
    }
    for (size_t i = 0; i < COUNT(shared_names); i++) {
        size_t length = strlen(shared_names[i]);

        marker = strstr(name, shared_names[i]);
        if (marker && marker > name && marker[-1] == '.' && marker[length] == '.') {
            parts->kind = parse_shared(name, marker - 1, shared_names[i], parts);
            return;
        }
    }
}

const char *const mp_other_kind_names[MP_KINDS] = {
    "norm", "router", "attention", "embedding", "dense", "mtp", "other",
};

/* Parts of names, and the kind they stand for; the first that occurs decides. */
static const struct {
    const char *part;
    unsigned kind;
} kind_rules[] = {
    {"norm", 0},
    {".gate.", 1},
    {".router.", 1},
    {"shared_expert_gate", 1},
    {"e_score_correction_bias", 1},
    {"attn", 2},
    {"embed", 3},
    {"head", 3},
    {"mlp.", 4},
    {"ffn.", 4},
    {"feed_forward.", 4},
    {"mtp.", 5},
    {"eh_proj", 5},
};

unsigned mp_other_kind(const char *name)
{
    for (size_t i = 0; i < sizeof kind_rules / sizeof kind_rules[0]; i++)
        if (strstr(name, kind_rules[i].part))
            return kind_rules[i].kind;
    return MP_KINDS - 1;
}
