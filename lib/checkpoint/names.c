/* SPDX-License-Identifier: Apache-2.0 */
/* Tensor names: layer, expert, projection and role out of the text.
 *
 *     model.layers.3   .mlp    .experts. 7        .gate_proj   .weight_scale_inv
 *     prefix, layer 3  naming            expert   projection   role, from the table of suffixes
 *
 * A name is read outwards from ".experts.", not from its beginning, since what wraps a model (a
 * vision tower's "language_model.", "mtp.") varies without end and the end does not. What looks
 * like an expert and is in no known form is never passed over: it comes out foreign, with a name
 * for the message, or unknown, which is a problem of the catalog. "Other" are names without any
 * word of experts, and the few that have one and are known not to be an expert's.
 *
 * Only text is looked at. Where a name could mean two things (unnamed stacks and dense MLPs),
 * `unnamed` asks the caller to look at the dimensions too.
 *
 * Everything here reads constant tables and writes *parts, so any thread may call it. */
#include "checkpoint/names.h"

#include "base/error.h"
#include "checkpoint/conventions.h"
#include "checkpoint/families.h"

#include <ctype.h>
#include <string.h>

/* Suffixes of formats that are not read. Each stands for its whole format, so that the error can
 * name it: AWQ's ".qweight" alone would look like a weight with an odd name. */
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
    {".deq_scale", "weights of ModelSlim's static W8A8"},
    {".quant_bias", "weights of ModelSlim's static W8A8"},
    {".weight_dual_scale", "weights of ModelSlim with two scales"},
    {".pre_quant_scale", "weights for inputs that AWQ has scaled (pre_quant_scale)"},
    {".weight_quantizer", "weights of SVDQuant"},
    {".weight.absmax", "weights of bitsandbytes"},
    {".weight.nested_absmax", "weights of bitsandbytes"},
    {".weight.nested_quant_map", "weights of bitsandbytes"},
    {".weight.quant_map", "weights of bitsandbytes"},
    {".weight.quant_state", "weights of bitsandbytes"},
    {".SCB", "weights of bitsandbytes"},
    {".weight_format", "weights of bitsandbytes"},
    {".weight_qdata", "weights of torchao"},
    {"._weight_qdata", "weights of torchao"},
    {".W_q", "weights of HQQ"},
    {".weight_scales", "weights of EETQ"},
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* A decimal number, up to the dot or the end. Leading zeros are refused: "experts.07" beside
 * "experts.7" would be two names for one expert, and a name that is put together from the number
 * again (form.c) would not be the one that was read. */
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

/* Whether the part that ends at `end`, behind a dot or at the beginning, is that word. */
static bool ends_in(const char *prefix, const char *end, const char *word)
{
    size_t length = (size_t)(end - prefix), n = strlen(word);

    return length >= n && memcmp(end - n, word, n) == 0 && (length == n || end[-1 - (int)n] == '.');
}

/* Whether "mtp" or "mtp_layers" is one of the parts between the dots. */
static bool has_mtp(const char *prefix, size_t length)
{
    static const char *const words[] = {"mtp.", "mtp_layers."};

    for (size_t i = 0; i < COUNT(words); i++) {
        size_t n = strlen(words[i]);
        const char *p = prefix;

        while (p && (size_t)(prefix + length - p) > n) {
            if (memcmp(p, words[i], n) == 0)
                return true;
            p = memchr(p, '.', (size_t)(prefix + length - p));
            p = p ? p + 1 : NULL;
        }
    }
    return false;
}

/* "....layers.N", "....blocks.N" or "....mtp.N": the number at the end, and which of these. */
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
    return parts->mtp || ends_in(prefix, digits - 1, "layers") ||
           ends_in(prefix, digits - 1, "blocks");
}

/* "PREFIX.BLOCK", or "PREFIX" alone, in front of ".experts." or ".shared_experts.". */
static bool parse_block(const char *name, size_t length, mp_expert_name *parts)
{
    size_t dot = length;

    if (parse_prefix(name, length, parts)) {
        parts->naming = mp_naming_of_block("", 0);
        return true;
    }
    while (dot > 0 && name[dot - 1] != '.')
        dot--;
    if (dot < 2)
        return false;
    parts->naming = mp_naming_of_block(name + dot, length - dot);
    return parts->naming && parse_prefix(name, dot - 1, parts);
}

/* The form that has tensors of that suffix, or null. A dot may follow, as in bitsandbytes'
 * ".weight.quant_state.bitsandbytes__nf4". */
static const char *foreign_form(const char *suffix)
{
    for (size_t i = 0; i < COUNT(foreign_suffixes); i++) {
        size_t n = strlen(foreign_suffixes[i].suffix);

        if (strncmp(foreign_suffixes[i].suffix, suffix, n) == 0 &&
            (suffix[n] == '\0' || suffix[n] == '.'))
            return foreign_suffixes[i].form;
    }
    return NULL;
}

/* Takes what one of the first `count` suffixes holds; false where it is none of them. */
static bool take_suffix(const char *text, unsigned count, mp_expert_name *parts)
{
    for (unsigned i = 0; i < count; i++) {
        const mp_suffix_row *suffix = &mp_suffixes[i];

        if (strcmp(suffix->text, text) != 0)
            continue;
        parts->role = suffix->role;
        parts->global_divides = suffix->role == MP_ROLE_GLOBAL_SCALE && suffix->divides;
        return true;
    }
    return false;
}

/* What a suffix of a matrix's tensors holds; false for one that is not known. */
static bool find_role(const char *suffix, mp_expert_name *parts)
{
    return take_suffix(suffix, MP_SUFFIXES_OF_ONE, parts);
}

/* "PROJECTION.SUFFIX" at the end of the name. */
static bool parse_matrix(const char *text, const char *const projections[MP_PROJECTIONS],
                         mp_expert_name *parts)
{
    for (int p = 0; p < MP_PROJECTIONS; p++) {
        size_t length = strlen(projections[p]);

        if (strncmp(projections[p], text, length) != 0)
            continue;
        if (find_role(text + length, parts)) {
            parts->projection = (mp_projection)p;
            return true;
        }
        parts->foreign = foreign_form(text + length);
    }
    return false;
}

/* The same under any of the names that projections have; which goes to *set. */
static bool parse_any_matrix(const char *text, const char *const *const sets[], size_t count,
                             const char *const **set, mp_expert_name *parts)
{
    for (size_t i = 0; i < count; i++) {
        if (parse_matrix(text, sets[i], parts)) {
            *set = sets[i];
            return true;
        }
    }
    return false;
}

/* What follows the name of a tensor of all experts: what tools of single experts write, or what
 * only fused ones have. */
static bool find_fused_role(const char *suffix, mp_expert_name *parts)
{
    return take_suffix(suffix, MP_SUFFIXES, parts);
}

/* Tensors of all experts of a layer: gate and up together ("joined") or each by itself. */
static const struct {
    const char *name;
    mp_projection projection;
    bool joined;
} stacks[] = {
    {"gate_up_proj", MP_GATE, true}, {"input_linear", MP_GATE, true},
    {"gate_proj", MP_GATE, false},   {"up_proj", MP_UP, false},
    {"down_proj", MP_DOWN, false},   {"output_linear", MP_DOWN, false},
};

/* "gate_up_proj", "down_proj_scales": a tensor of all experts of the layer. */
static bool parse_fused(const char *text, mp_expert_name *parts)
{
    for (size_t i = 0; i < COUNT(stacks); i++) {
        size_t n = strlen(stacks[i].name);

        if (strncmp(text, stacks[i].name, n) != 0)
            continue;
        if (find_fused_role(text + n, parts)) {
            parts->projection = stacks[i].projection;
            parts->joined = stacks[i].joined;
            return true;
        }
        parts->foreign = foreign_form(text + n);
        if (!parts->foreign && text[n] == '.' && isdigit((unsigned char)text[n + 1]))
            parts->foreign = "experts by projection first";
    }
    return false;
}

/* What stands behind ".experts." in families that nothing here reads. */
static const char *foreign_experts(const char *text)
{
    static const struct {
        const char *begin, *form;
    } known[] = {
        {"mlp.", "all experts in one matrix (dbrx)"},
        {"w13_weight", "gate and up in turn in one matrix (inkling)"},
        {"fc1", "experts of aria"},
        {"fc2", "experts of aria"},
        {"gate_up_proj_packed", "packed weights under the names of fused ones"},
        {"down_proj_packed", "packed weights under the names of fused ones"},
    };
    size_t digits = strspn(text, "0123456789");

    for (size_t i = 0; i < COUNT(known); i++)
        if (strncmp(text, known[i].begin, strlen(known[i].begin)) == 0)
            return known[i].form;
    if (digits > 0 && strncmp(text + digits, ".gate_and_up_proj.", 18) == 0)
        return "up and gate in one matrix (Hunyuan-Large)";
    return NULL;
}

static mp_name_kind parse_routed(const char *name, const char *marker, mp_expert_name *parts)
{
    static const char *const *const sets[] = {mp_names_proj, mp_names_w123};
    const char *p = marker + strlen(".experts.");

    if (strcmp(p, "e_score_correction_bias") == 0 || ends_in(name, marker, "self_attention"))
        return MP_NAME_OTHER; /* the router's; attention that chooses among projections */
    if (!parse_block(name, (size_t)(marker - name), parts))
        return MP_NAME_UNKNOWN;
    if (parse_fused(p, parts))
        return MP_NAME_FUSED;
    if (!parts->foreign)
        parts->foreign = foreign_experts(p);
    if (read_number(&p, p + strlen(p), &parts->expert) && *p == '.' &&
        parse_any_matrix(p + 1, sets, COUNT(sets), &parts->projections, parts))
        return MP_NAME_ROUTED;
    return parts->foreign ? MP_NAME_FOREIGN : MP_NAME_UNKNOWN;
}

static mp_name_kind parse_shared(const char *name, const char *marker, const char *shared,
                                 mp_expert_name *parts)
{
    static const char *const *const sets[] = {mp_names_proj, mp_names_w123, mp_names_linear};
    const char *p = marker + strlen(shared) + 2;

    if (!parse_block(name, (size_t)(marker - name), parts))
        return MP_NAME_UNKNOWN;
    if (parts->naming->block[0] == '\0' && strcmp(shared, "shared_mlp") == 0)
        return MP_NAME_OTHER; /* beside the block: a dense MLP that is added to it */
    parts->shared = shared;
    parts->projections = mp_names_proj;
    if (strncmp(p, "gate_up_proj.", 13) == 0 && find_role(p + 12, parts)) {
        parts->projection = MP_GATE;
        parts->joined = true;
        return MP_NAME_SHARED;
    }
    if (parse_any_matrix(p, sets, COUNT(sets), &parts->projections, parts))
        return MP_NAME_SHARED;
    return parts->foreign ? MP_NAME_FOREIGN : MP_NAME_UNKNOWN;
}

/* "PREFIX.BLOCK.input_linear.weight", "PREFIX.moe.gate_proj.weight": experts of some families
 * have no name of their own, and are told from a dense MLP by their three dimensions. */
static mp_name_kind parse_unnamed(const char *name, mp_expert_name *parts)
{
    static const char *const names[] = {".input_linear.", ".output_linear.", ".moe.gate_proj.",
                                        ".moe.up_proj.", ".moe.down_proj."};

    for (size_t i = 0; i < COUNT(names); i++) {
        const char *marker = strstr(name, names[i]);

        if (!marker)
            continue;
        if (i >= 2)
            marker += strlen(".moe");
        if (!parse_block(name, (size_t)(marker - name), parts) || !parts->naming->block[0] ||
            !parse_fused(marker + 1, parts))
            return parts->foreign && parts->naming ? MP_NAME_FOREIGN : MP_NAME_OTHER;
        parts->unnamed = true;
        return MP_NAME_FUSED;
    }
    return MP_NAME_OTHER;
}

void mp_expert_name_parse(const char *name, mp_expert_name *parts)
{
    static const char *const shared_names[] = {"shared_experts", "shared_expert", "shared_mlp"};
    const char *marker = strstr(name, ".experts.");

    *parts = (mp_expert_name){.kind = MP_NAME_OTHER};
    if (strstr(name, ".switch_mlp.") || strstr(name, ".switch_glu.")) {
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
    parts->kind = parse_unnamed(name, parts);
}

const char *const mp_other_kind_names[MP_KINDS] = {
    "norm", "router", "attention", "embedding", "dense", "mtp", "other",
};

/* Parts of names, and the kind they stand for; the first that occurs decides. The order is from
 * what says most to what says least: "norm" goes before "attn" (self_attn.q_norm), ".gate." before
 * "mlp." (mlp.gate.weight), and "mtp." comes nearly last, so that an MTP layer's attention counts
 * as attention. */
static const struct {
    const char *part;
    unsigned kind;
} kind_rules[] = {
    {"norm", 0},
    {".gate.", 1},
    {".router.", 1},
    {"shared_expert_gate", 1},
    {"e_score_correction_bias", 1},
    {"expert_bias", 1},
    {".router_bias", 1},
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
