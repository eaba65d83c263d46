/* SPDX-License-Identifier: Apache-2.0 */
/* A checkpoint of random experts in a scratch directory, its pack, and what unpacking makes of
 * that; for the tests of unpacking. */
#ifndef MP_TEST_UNPACK_FILES_H
#define MP_TEST_UNPACK_FILES_H

#include <criterion/criterion.h>

#include <fcntl.h>
#include <moepack/pack.h>

#include "model_files.h"

#include "write/plan.h"
#include "write/unpack.h"

#define EXPERTS 5

static mp_unpack_plan unpacking;
static mp_catalog result;

static inline void init(void)
{
    make_model_scratch();
    unpacking = (mp_unpack_plan){0};
    result = (mp_catalog){0};
}

static inline void finish(void)
{
    mp_unpack_plan_release(&unpacking);
    mp_catalog_release(&result);
    remove_model_scratch();
}

/* ------------------------------------------------------------------------
 * Sources: random bytes that are no NaN, in every tensor
 */

static uint64_t random_state = 1;

static inline uint64_t next_random(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return random_state >> 16;
}

/* A value of any size between 2^-8 and 2^8, such that both bfloat16 and float32 hold it. */
static inline float random_scale(void)
{
    float value = (float)(128 + next_random() % 128);

    for (uint64_t halvings = next_random() % 15; halvings > 0; halvings--)
        value /= 2;
    return value;
}

static inline uint8_t random_byte(mp_dtype dtype, bool scale)
{
    uint8_t byte = (uint8_t)next_random();

    if (scale && (dtype == MP_F8_E8M0 || dtype == MP_U8))
        return (uint8_t)(100 + byte % 50);
    if (dtype == MP_F8_E4M3)
        return (byte & 0x7f) == 0x7f ? 1 : scale ? byte & 0x7f : byte;
    return byte;
}

static inline void fill_tensor(uint8_t *data, const mp_tensor *tensor)
{
    bool scale = strstr(tensor->name, "scale") != NULL;

    for (uint64_t i = 0; i < tensor->bytes; i++)
        data[i] = random_byte(tensor->dtype, scale);
    for (uint64_t i = 0; tensor->dtype == MP_F32 && i < tensor->bytes; i += sizeof(float)) {
        float value = random_scale();

        memcpy(data + i, &value, sizeof value);
    }
    for (uint64_t i = 0; tensor->dtype == MP_BF16 && i < tensor->bytes; i += 2) {
        float value = random_scale();
        uint32_t bits;

        memcpy(&bits, &value, sizeof bits);
        bits = bits >> 16 | (scale ? 0 : (uint32_t)(next_random() & 0x8000));
        memcpy(data + i, &bits, 2);
    }
}

/* Writes the tensors that were added, and a config.json of that type, with such data. */
static inline void make_source(const char *model_type)
{
    int fd;

    if (model_type) {
        char text[128];

        snprintf(text, sizeof text, "{\"model_type\": \"%s\"}\n", model_type);
        put_text("config.json", text);
    }
    expect_model();
    fd = open(in_dir("model.safetensors"), O_RDWR);
    cr_assert_geq(fd, 0);
    for (size_t i = 0; i < catalog.checkpoint.num_tensors; i++) {
        const mp_tensor *tensor = &catalog.checkpoint.tensors[i];
        uint8_t *data = malloc(tensor->bytes);

        fill_tensor(data, tensor);
        cr_assert_eq(mp_pwrite_all(fd, data, tensor->bytes, tensor->offset, "model", &err), 0);
        free(data);
    }
    close(fd);
    cr_assert_eq(catalog.problems.count, 0, "%s", catalog.problems.text[0]);
}

/* The dimensions of the tensor that was added last; none: a scalar. */
static inline void reshape(uint32_t rank, const uint64_t *shape)
{
    mp_tensor_spec *spec = &model.specs[model.count - 1];
    uint64_t *copy = malloc((rank + 1) * sizeof *copy);

    for (uint32_t d = 0; d < rank; d++)
        copy[d] = shape[d];
    free((uint64_t *)(uintptr_t)spec->shape);
    spec->shape = copy;
    spec->rank = rank;
}

/* A tensor of a matrix: how many rows and columns one element stands for. */
typedef struct part {
    const char *suffix; /* null ends a list */
    mp_dtype dtype;
    uint32_t rows, cols; /* 0: all */
    bool scalar;
} part;

static const part fp4[] = {
    {".weight", MP_I8, 1, 2, false}, {".scale", MP_F8_E8M0, 1, 32, false}, {0}};

/* A matrix [rows, cols] of these parts. */
static inline void add_matrix(const part *parts, uint64_t rows, uint64_t cols, const char *name)
{
    for (; parts->suffix; parts++) {
        uint64_t n = parts->rows ? (rows + parts->rows - 1) / parts->rows : 1;
        uint64_t k = parts->cols ? (cols + parts->cols - 1) / parts->cols : 1;

        add_tensor(parts->dtype, n, k, "%s%s", name, parts->suffix);
        if (parts->rows == 0)
            reshape(parts->scalar ? 0 : 1, (const uint64_t[]){1});
    }
}

static inline void add_expert(const part *parts, const char *block, const char *const names[3],
                              uint64_t h, uint64_t i)
{
    for (int p = 0; p < MP_PROJECTIONS; p++) {
        char name[256];

        snprintf(name, sizeof name, "%.200s.%s", block, names[p]);
        add_matrix(parts, p == MP_DOWN ? h : i, p == MP_DOWN ? i : h, name);
    }
}

static const char *const w123[] = {"w1", "w3", "w2"};
static const char *const proj[] = {"gate_proj", "up_proj", "down_proj"};

/* Two layers of experts, and a shared one as wide as `shared` of them. */
static inline void add_layers(const char *prefix, const part *parts, const part *shared_parts,
                              uint64_t h, uint64_t i, uint64_t shared)
{
    const char *block = prefix[0] == 'l' ? "ffn" : "mlp"; /* "layers" of V4, or "model.layers" */
    const char *const *names = prefix[0] == 'l' ? w123 : proj;
    char name[256];

    for (unsigned l = 0; l < 2; l++) {
        for (unsigned e = 0; e < EXPERTS; e++) {
            snprintf(name, sizeof name, "%s.%u.%s.experts.%u", prefix, l, block, e);
            add_expert(parts, name, names, h, i);
        }
        snprintf(name, sizeof name, "%s.%u.%s.shared_experts", prefix, l, block);
        if (shared)
            add_expert(shared_parts, name, names, h, shared * i);
    }
}

/* ------------------------------------------------------------------------
 * There and back
 */

static const mp_context one_thread = {.threads = 1};

static inline void pack_as(const mp_catalog *from, const char *name, mp_repack_options options)
{
    mp_repack_plan plan;

    if (!options.ep)
        options.ep = 3;
    if (!options.redundant && !options.placement && options.ep == 3)
        options.redundant = 1; /* six slots */
    cr_assert_eq(mp_repack_plan_init(&plan, from, &options, &err), 0, "%s", err.message);
    cr_assert_eq(mp_repack_plan_run(&plan, in_dir(name), MP_RUN_FRESH, &one_thread, &err), 0, "%s",
                 err.message);
    mp_repack_plan_release(&plan);
}

static inline void pack(const char *target, mp_repack_options options)
{
    options.target = mp_target_find(target);
    pack_as(&catalog, "packed", options);
}

static inline int plan_unpack(mp_unpack_options options)
{
    mp_unpack_plan_release(&unpacking);
    err = (mp_error){0};
    return mp_unpack_plan_init(&unpacking, in_dir("packed"), &options, &one_thread, &err);
}

static inline void unpack(mp_unpack_options options)
{
    cr_assert_eq(plan_unpack(options), 0, "%s", err.message);
    cr_assert_eq(mp_unpack_plan_run(&unpacking, in_dir("unpacked"), MP_RUN_FRESH, NULL, &err), 0,
                 "%s", err.message);
}

static inline uint8_t *bytes_of(const mp_checkpoint *from, const mp_tensor *tensor)
{
    uint8_t *bytes = malloc(tensor->bytes + 1);

    cr_assert_eq(mp_tensor_read(from, tensor, 0, tensor->bytes, bytes, &err), 0, "%s", err.message);
    return bytes;
}

static inline void expect_same_tensor(const mp_checkpoint *a, const mp_tensor *x,
                                      const mp_checkpoint *b, const mp_tensor *y)
{
    uint8_t *p, *q;

    cr_assert_eq(x->dtype, y->dtype, "%s", x->name);
    cr_assert_eq(x->rank, y->rank, "%s", x->name);
    for (uint32_t d = 0; d < x->rank; d++)
        cr_assert_eq(x->shape[d], y->shape[d], "%s", x->name);
    p = bytes_of(a, x);
    q = bytes_of(b, y);
    for (uint64_t i = 0; i < x->bytes; i++)
        cr_assert_eq(p[i], q[i], "%s: byte %llu of %llu", x->name, (unsigned long long)i,
                     (unsigned long long)x->bytes);
    free(p);
    free(q);
}

static inline void open_result(void)
{
    mp_catalog_release(&result);
    cr_assert_eq(mp_catalog_open(&result, in_dir("unpacked"), NULL, &err), 0, "%s", err.message);
    cr_assert_eq(result.problems.count, 0, "%s", result.problems.text[0]);
}

/* Every tensor of the source is in the result, but those that have a piece of text in their
 * name; and nothing else is. */
static inline void expect_source_but(const char *without)
{
    size_t count = 0;

    open_result();
    for (size_t i = 0; i < catalog.checkpoint.num_tensors; i++) {
        const mp_tensor *tensor = &catalog.checkpoint.tensors[i];
        const mp_tensor *found = mp_checkpoint_find(&result.checkpoint, tensor->name);

        if (without && strstr(tensor->name, without)) {
            cr_assert_null(found, "%s", tensor->name);
            continue;
        }
        cr_assert_not_null(found, "%s is missing", tensor->name);
        expect_same_tensor(&catalog.checkpoint, tensor, &result.checkpoint, found);
        count++;
    }
    cr_assert_eq(result.checkpoint.num_tensors, count);
}

static inline void expect_back(const char *target, mp_repack_options options, const char *without)
{
    pack(target, options);
    unpack((mp_unpack_options){0});
    expect_source_but(without);
}

#define NOTHING_ELSE ((mp_repack_options){.shared = MP_SHARED_NONE})
#define SEPARATE     ((mp_repack_options){.shared = MP_SHARED_SEPARATE})
#define FUSED        ((mp_repack_options){.shared = MP_SHARED_FUSED})

static inline void make_small_pack(mp_repack_options options)
{
    add_layers("layers", fp4, NULL, 256, 128, 0);
    make_source(NULL);
    pack("megamoe-w4a8", options);
}

#endif
