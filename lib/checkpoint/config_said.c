/* SPDX-License-Identifier: Apache-2.0 */
/* A convention in the words of its method. Members stand in the order in which its tools write
 * them.
 *
 * Nothing here decides how anything is stored: scheme, blocks and types come from the table, and
 * this file knows only how compressed-tensors, ModelOpt and the models' own methods put them. A
 * method that engines read as a pair of files (ModelOpt) says the same in both, out of the same
 * numbers.
 *
 * A tree is built without a check at each step. A value that could not be made is null; json_pack's
 * "o" and put() fail for it, so one failure anywhere makes the whole null. Callers pass lists on
 * for the same reason without looking at them. It keeps nothing; one thread has a tree at a
 * time. */
#include "checkpoint/config_said.h"

#include <string.h>

#include "base/words.h"

/* Sets a member; value is taken over. False without memory, also where it is object or value that
 * is null for that reason. */
static bool put(json_t *object, const char *key, json_t *value)
{
    return json_object_set_new(object, key, value) == 0;
}

/* Object, or null in its place where it is not whole. */
static json_t *whole(json_t *object, bool is_whole)
{
    if (is_whole)
        return object;
    json_decref(object);
    return NULL;
}

/* ------------------------------------------------------------------------
 * Numbers of compressed-tensors
 */

static const char *strategy_of(const mp_convention *c)
{
    if (c->block_cols == UINT32_MAX)
        return c->block_rows == UINT32_MAX ? "tensor" : "channel";
    if (c->block_rows > 1)
        return "block";
    return c->scheme == MP_SCHEME_NVFP4 ? "tensor_group" : "group";
}

mp_numbers mp_said_numbers(const mp_convention *convention)
{
    const mp_convention *c = convention;
    bool ints = c->scheme == MP_SCHEME_INT8_CHANNEL || c->scheme == MP_SCHEME_INT4_GROUP;
    mp_numbers numbers = {
        .bits = mp_scheme_bits(c->scheme),
        .type = ints ? "int" : "float",
        .strategy = strategy_of(c),
    };

    if (c->block_rows > 1 && c->block_cols != UINT32_MAX) {
        numbers.block[0] = c->block_rows;
        numbers.block[1] = c->block_cols;
    } else if (c->block_cols != UINT32_MAX) {
        numbers.group_size = c->block_cols;
    }
    return numbers;
}

/* dynamic: taken over; scale_dtype: may be null. */
static json_t *say_numbers(const mp_numbers *n, json_t *dynamic, const char *scale_dtype)
{
    json_t *json = json_pack("{s:i, s:s, s:s}", "num_bits", (int)n->bits, "type", n->type,
                             "strategy", n->strategy);
    bool ok = json != NULL;

    if (n->group_size > 0)
        ok &= put(json, "group_size", json_integer(n->group_size));
    if (n->block[0] > 0)
        ok &= put(json, "block_structure", json_pack("[i, i]", (int)n->block[0], (int)n->block[1]));
    ok &= put(json, "symmetric", json_true());
    ok &= put(json, "dynamic", dynamic);
    if (scale_dtype)
        ok &= put(json, "scale_dtype", json_string(scale_dtype));
    return whole(json, ok);
}

/* Scales of other types than float. */
static const char *scale_dtype_of(const mp_convention *c)
{
    const mp_convention_part *scale = mp_convention_part_of(c, MP_ROLE_SCALE);

    if (scale && scale->dtype == MP_U8)
        return "torch.uint8";
    return scale && scale->dtype == MP_F8_E4M3 ? "torch.float8_e4m3fn" : NULL;
}

static json_t *say_activations(const mp_convention *c, const mp_said *said)
{
    mp_numbers n = mp_said_numbers(c);

    switch (c->activations) {
    case MP_ACTIVATIONS_STATIC:
        return said->input_scales ? say_numbers(&n, json_string("local"), scale_dtype_of(c))
                                  : json_null();
    case MP_ACTIVATIONS_TOKEN:
        n = (mp_numbers){.bits = n.bits, .type = n.type, .strategy = "token"};
        return say_numbers(&n, json_true(), NULL);
    case MP_ACTIVATIONS_GROUP:
        n = (mp_numbers){n.bits, n.type, "group", .group_size = c->block_cols};
        return say_numbers(&n, json_true(), NULL);
    default:
        return json_null();
    }
}

json_t *mp_said_group(const mp_convention *convention, const mp_said *said, json_t *targets)
{
    const mp_numbers numbers = mp_said_numbers(convention);

    return json_pack("{s:s, s:o, s:o, s:n, s:o}", "format", convention->format, "targets", targets,
                     "weights", say_numbers(&numbers, json_false(), scale_dtype_of(convention)),
                     "output_activations", "input_activations", say_activations(convention, said));
}

static json_t *say_compressed(const mp_convention *c, const mp_said *said, json_t *exceptions)
{
    return json_pack(
        "{s:s, s:s, s:s, s:{s:o}, s:o, s:n, s:n}", "quant_method", mp_method_name(c->method),
        "format", c->format, "quantization_status", "compressed", "config_groups", "group_0",
        mp_said_group(c, said, json_pack("[s]", "Linear")), mp_method_exceptions(c->method),
        exceptions, "kv_cache_scheme", "global_compression_ratio");
}

/* ------------------------------------------------------------------------
 * ModelOpt
 */

static json_t *say_modelopt_numbers(const mp_convention *c)
{
    const mp_numbers n = mp_said_numbers(c);
    json_t *json =
        json_pack("{s:b, s:i, s:s}", "dynamic", 0, "num_bits", (int)n.bits, "type", n.type);
    bool ok = json != NULL;

    if (n.group_size > 0)
        ok &= put(json, "group_size", json_integer(n.group_size));
    return whole(json, ok);
}

static json_t *say_modelopt(const mp_convention *c, const mp_said *said, json_t *exceptions)
{
    return json_pack(
        "{s:s, s:s, s:{s:{s:o, s:o, s:[s]}}, s:o}", "quant_method", mp_method_name(c->method),
        "quant_algo", c->algorithms[0], "config_groups", "group_0", "input_activations",
        said->input_scales ? say_modelopt_numbers(c) : json_null(), "weights",
        say_modelopt_numbers(c), "targets", "Linear", mp_method_exceptions(c->method), exceptions);
}

json_t *mp_said_beside(const mp_convention *convention, const char *producer, const char *version,
                       json_t *exceptions)
{
    const mp_numbers n = mp_said_numbers(convention);
    json_t *quantization =
        json_pack("{s:s, s:n}", "quant_algo", convention->algorithms[0], "kv_cache_quant_algo");
    bool ok = quantization != NULL;

    if (n.group_size > 0)
        ok &= put(quantization, "group_size", json_integer(n.group_size));
    ok &= put(quantization, "exclude_modules", exceptions);
    return json_pack("{s:{s:s, s:s}, s:o}", "producer", "name", producer, "version", version,
                     "quantization", whole(quantization, ok));
}

/* ------------------------------------------------------------------------
 * The models' own methods
 */

static json_t *say_own(const mp_convention *c, const mp_said *said, json_t *exceptions)
{
    bool fp8 = c->method == MP_METHOD_FP8;
    bool powers = fp8 && (said->ue8m0 || c->scheme == MP_SCHEME_MXFP4);
    uint32_t rows = c->said_block ? c->said_block : c->block_rows;
    uint32_t cols = c->said_block ? c->said_block : c->block_cols;
    json_t *json = json_pack("{s:s, s:s*, s:s*, s:s*}", "quant_method", mp_method_name(c->method),
                             "fmt", c->fmt, "scale_fmt", powers ? "ue8m0" : NULL,
                             "activation_scheme", fp8 ? "dynamic" : NULL);
    bool ok = json != NULL;

    if (c->method != MP_METHOD_MXFP4)
        ok &= put(json, "weight_block_size", json_pack("[i, i]", (int)rows, (int)cols));
    ok &= put(json, mp_method_exceptions(c->method), exceptions);
    return whole(json, ok);
}

json_t *mp_said_config(const mp_convention *convention, const mp_said *said, json_t *exceptions)
{
    switch (convention->method) {
    case MP_METHOD_COMPRESSED_TENSORS:
        return say_compressed(convention, said, exceptions);
    case MP_METHOD_MODELOPT:
        return say_modelopt(convention, said, exceptions);
    default:
        return say_own(convention, said, exceptions);
    }
}

const char *mp_said_dtype(mp_scheme scheme)
{
    switch (mp_scheme_bits(scheme)) {
    case 4:
        return "fp4";
    case 8:
        return scheme == MP_SCHEME_INT8_CHANNEL ? "int8" : "fp8";
    default:
        return "bf16";
    }
}

/* ------------------------------------------------------------------------
 * Methods
 */

mp_method mp_method_of(const char *name)
{
    for (unsigned method = 0; name && method < MP_METHODS; method++)
        if (mp_method_name((mp_method)method) &&
            strcmp(mp_method_name((mp_method)method), name) == 0)
            return (mp_method)method;
    return MP_METHOD_NONE;
}

const char *mp_method_exceptions(mp_method method)
{
    return method == MP_METHOD_COMPRESSED_TENSORS || method == MP_METHOD_MODELOPT
               ? "ignore"
               : "modules_to_not_convert";
}
