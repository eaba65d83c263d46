/* SPDX-License-Identifier: Apache-2.0 */
/* Tensor names: layer, expert, projection and role out of the text. */
#include "model/names.h"

#include "base/error.h"
#include "model/families.h"

#include <ctype.h>
#include <string.h>

/* The suffixes of an expert's matrix, and what they hold. */
static const struct {
    const char *suffix;
    mp_tensor_role role;
} suffixes[] = {
    {"weight", MP_TENSOR_WEIGHT},
    {"scale", MP_TENSOR_SCALE},
    {"weight_scale_inv", MP_TENSOR_SCALE},
};

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

/* "PROJECTION.SUFFIX" at the end of the name. */
static bool parse_matrix(const char *text, mp_expert_name *parts)
{
    size_t length = strcspn(text, ".");

    for (int p = 0; p < MP_PROJECTIONS; p++) {
        const char *projection = parts->naming->projection[p];

        if (strlen(projection) != length || memcmp(projection, text, length) != 0)
            continue;
        parts->projection = (mp_projection)p;
        for (size_t i = 0; i < sizeof suffixes / sizeof suffixes[0]; i++) {
            if (text[length] != '.' || strcmp(suffixes[i].suffix, text + length + 1) != 0)
                continue;
            parts->role = suffixes[i].role;
            parts->suffix = suffixes[i].suffix;
            return true;
        }
    }
    return false;
}

static bool parse_routed(const char *name, const char *marker, mp_expert_name *parts)
{
    const char *p = marker + strlen(".experts.");

    return parse_block(name, (size_t)(marker - name), parts) &&
           read_number(&p, p + strlen(p), &parts->expert) && *p == '.' &&
           parse_matrix(p + 1, parts);
}

static bool parse_shared(const char *name, const char *marker, mp_expert_name *parts)
{
    parts->expert = 0;
    return parse_block(name, (size_t)(marker - name), parts) &&
           parse_matrix(marker + strlen(".shared_experts."), parts);
}

void mp_expert_name_parse(const char *name, mp_expert_name *parts)
{
    const char *routed = strstr(name, ".experts.");
    const char *shared = strstr(name, ".shared_experts.");

    parts->kind = MP_NAME_OTHER;
    if (routed)
        parts->kind = parse_routed(name, routed, parts) ? MP_NAME_ROUTED : MP_NAME_UNKNOWN;
    else if (shared)
        parts->kind = parse_shared(name, shared, parts) ? MP_NAME_SHARED : MP_NAME_UNKNOWN;
    else if (strstr(name, ".shared_expert."))
        parts->kind = MP_NAME_UNKNOWN;
}

const char *const mp_other_kind_names[MP_KINDS] = {
    "norm", "router", "attention", "embedding", "dense", "mtp", "other",
};

/* Parts of names, and the kind they stand for; the first that occurs decides. */
static const struct {
    const char *part;
    unsigned kind;
} kind_rules[] = {
    {"norm", 0},   {"ffn.gate.", 1},  {"mlp.gate.", 1},   {"attn", 2},  {"embed", 3},
    {"head", 3},   {"mlp.", 4},       {"ffn.", 4},        {"mtp.", 5},  {"eh_proj", 5},
};

unsigned mp_other_kind(const char *name)
{
    for (size_t i = 0; i < sizeof kind_rules / sizeof kind_rules[0]; i++)
        if (strstr(name, kind_rules[i].part))
            return kind_rules[i].kind;
    return MP_KINDS - 1;
}
