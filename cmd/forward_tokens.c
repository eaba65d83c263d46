/* SPDX-License-Identifier: Apache-2.0 */
/* Tokens of moepack forward: tensors of a file as float32 and integers, or random ones. The file is
 * what `forward -o` or a framework writes: "x" [tokens, H], and maybe "topk_ids" and "topk_weights"
 * [tokens, k], "token_ids" [tokens]. Shapes are held against each other before anything is read, so
 * memory is bounded by the file's own tensors. */
#include "forward_tokens.h"
#include "files.h"
#include "output.h"

#include <inttypes.h>
#include <moepack/numeric.h>
#include <moepack/store.h>
#include <stdlib.h>

/* A tensor of that shape; cols 0: a vector. */
static int check_shape(const mp_tensor *t, uint64_t rows, uint64_t cols, mp_error *err)
{
    char shape[MP_SHAPE_TEXT];

    if (t->rank == (cols ? 2 : 1) && t->shape[0] == rows && (!cols || t->shape[1] == cols))
        return 0;
    if (cols)
        return cmd_fail(err, MP_ERR_INPUT, "%s: shape %s, expected [%" PRIu64 ", %" PRIu64 "]",
                        t->name, mp_shape_text(t->shape, t->rank, shape), rows, cols);
    return cmd_fail(err, MP_ERR_INPUT, "%s: shape %s, expected [%" PRIu64 "]", t->name,
                    mp_shape_text(t->shape, t->rank, shape), rows);
}

static int read_whole(const mp_checkpoint *in, const mp_tensor *t, void **data, mp_error *err)
{
    *data = malloc(t->bytes + 1);
    if (!*data)
        return cmd_fail(err, MP_ERR_IO, "out of memory");
    return mp_tensor_read(in, t, 0, t->bytes, *data, err);
}

static int read_floats(const mp_checkpoint *in, const mp_tensor *t, float **out, mp_error *err)
{
    uint64_t count = t->bytes * 8 / mp_dtype_bits(t->dtype);
    mp_scheme scheme = t->dtype == MP_F32   ? MP_SCHEME_F32
                       : t->dtype == MP_F16 ? MP_SCHEME_F16
                                            : MP_SCHEME_BF16;
    void *data = NULL;

    if (t->dtype != MP_F32 && t->dtype != MP_BF16 && t->dtype != MP_F16)
        return cmd_fail(err, MP_ERR_INPUT, "%s: %s, expected F32, BF16 or F16", t->name,
                        mp_dtype_name(t->dtype));
    int rc = read_whole(in, t, &data, err);
    *out = malloc(count * sizeof **out + 1);
    if (rc == 0 && !*out)
        rc = cmd_fail(err, MP_ERR_IO, "out of memory");
    if (rc == 0)
        rc = mp_decode_rows(&(mp_rows){.scheme = scheme, .rows = 1, .cols = count, .weight = data},
                            *out, err);
    free(data);
    return rc;
}

static int read_integers(const mp_checkpoint *in, const mp_tensor *t, int64_t **out, mp_error *err)
{
    uint64_t count = t->bytes * 8 / mp_dtype_bits(t->dtype);
    void *data = NULL;

    if (t->dtype != MP_I32 && t->dtype != MP_I64)
        return cmd_fail(err, MP_ERR_INPUT, "%s: %s, expected I32 or I64", t->name,
                        mp_dtype_name(t->dtype));
    int rc = read_whole(in, t, &data, err);
    *out = malloc(count * sizeof **out + 1);
    if (rc == 0 && !*out)
        rc = cmd_fail(err, MP_ERR_IO, "out of memory");
    for (uint64_t i = 0; rc == 0 && i < count; i++)
        (*out)[i] = t->dtype == MP_I32 ? ((const int32_t *)data)[i] : ((const int64_t *)data)[i];
    free(data);
    return rc;
}

/* Ids as 32-bit numbers; the forward itself checks what they stand for. */
static int narrow_ids(forward_tokens *t, const int64_t *wide, mp_error *err)
{
    uint64_t count = t->tokens * t->k;

    t->ids = malloc(count * sizeof *t->ids + 1);
    if (!t->ids)
        return cmd_fail(err, MP_ERR_IO, "out of memory");
    for (uint64_t i = 0; i < count; i++) {
        t->ids[i] = (int32_t)wide[i];
        if (t->ids[i] != wide[i])
            return cmd_fail(err, MP_ERR_INPUT,
                            "topk_ids: token %" PRIu64 ", choice %" PRIu64 ": %" PRId64
                            " is not an expert",
                            i / t->k, i % t->k, wide[i]);
    }
    return 0;
}

static int read_choices(forward_tokens *t, const mp_checkpoint *in, mp_error *err)
{
    const mp_tensor *ids = mp_checkpoint_find(in, "topk_ids");
    const mp_tensor *weights = mp_checkpoint_find(in, "topk_weights");
    char shape[MP_SHAPE_TEXT];
    int64_t *wide = NULL;

    if (!ids && !weights)
        return 0;
    if (!ids || !weights)
        return cmd_fail(err, MP_ERR_INPUT, "there is no tensor \"%s\"",
                        ids ? "topk_weights" : "topk_ids");
    if (ids->rank != 2 || ids->shape[0] != t->tokens || ids->shape[1] == 0 ||
        ids->shape[1] > INT32_MAX)
        return cmd_fail(err, MP_ERR_INPUT, "topk_ids: shape %s, expected [%" PRIu64 ", k]",
                        mp_shape_text(ids->shape, ids->rank, shape), t->tokens);
    t->k = (uint32_t)ids->shape[1];
    int rc = check_shape(weights, t->tokens, t->k, err);
    if (rc == 0)
        rc = read_floats(in, weights, &t->weights, err);
    if (rc == 0)
        rc = read_integers(in, ids, &wide, err);
    if (rc == 0)
        rc = narrow_ids(t, wide, err);
    free(wide);
    return rc;
}

static int read_tensors(forward_tokens *t, const mp_checkpoint *in, uint64_t hidden_size,
                        mp_error *err)
{
    const mp_tensor *x = mp_checkpoint_find(in, "x");
    const mp_tensor *token_ids = mp_checkpoint_find(in, "token_ids");

    if (!x)
        return cmd_fail(err, MP_ERR_INPUT, "there is no tensor \"x\"");
    t->tokens = x->rank > 0 ? x->shape[0] : 0;
    int rc = check_shape(x, t->tokens, hidden_size, err);
    if (rc == 0)
        rc = read_floats(in, x, &t->x, err);
    if (rc == 0)
        rc = read_choices(t, in, err);
    if (rc == 0 && token_ids)
        rc = check_shape(token_ids, t->tokens, 0, err);
    if (rc == 0 && token_ids)
        rc = read_integers(in, token_ids, &t->token_ids, err);
    return rc;
}

int forward_tokens_read(forward_tokens *t, const char *path, uint64_t hidden_size, mp_error *err)
{
    mp_checkpoint in;
    int rc = mp_checkpoint_open(&in, path, NULL, err);

    if (rc == 0) {
        rc = read_tensors(t, &in, hidden_size, err);
        if (rc != 0)
            blame_file(path, err);
    }
    mp_checkpoint_release(&in);
    return rc;
}

int forward_tokens_make(forward_tokens *t, uint64_t seed, uint64_t tokens, const mp_layer *layer,
                        mp_error *err)
{
    const mp_layer_info *info = mp_layer_get(layer);

    t->tokens = tokens;
    t->x = calloc(tokens, info->hidden_size * sizeof *t->x);
    t->token_ids = info->vocab ? calloc(tokens, sizeof *t->token_ids) : NULL;
    if (!t->x || (info->vocab && !t->token_ids))
        return cmd_fail(err, MP_ERR_IO, "out of memory");
    mp_layer_random(layer, seed, tokens, t->x, t->token_ids);
    return 0;
}

void forward_tokens_release(forward_tokens *t)
{
    free(t->x);
    free(t->token_ids);
    free(t->ids);
    free(t->weights);
    *t = (forward_tokens){0};
}
