/* SPDX-License-Identifier: Apache-2.0 */
/* A checkpoint in a scratch directory, put together tensor by tensor, and its catalog; for
 * the tests of the catalog and of what stands on it. The data is a hole of zeros. */
#ifndef MP_TEST_MODEL_FILES_H
#define MP_TEST_MODEL_FILES_H

#include <stdarg.h>
#include <unistd.h>

#include <moepack/model.h>

#include "store_files.h"

static mp_catalog catalog;

static struct {
    mp_tensor_spec *specs;
    size_t count;
} model;

/* Forgets the tensors that were added. */
static inline void clear_model(void)
{
    for (size_t i = 0; i < model.count; i++) {
        free((char *)(uintptr_t)model.specs[i].name);
        free((uint64_t *)(uintptr_t)model.specs[i].shape);
    }
    free(model.specs);
    model.specs = NULL;
    model.count = 0;
}

static inline void make_model_scratch(void)
{
    make_scratch();
    catalog = (mp_catalog){0};
}

static inline void remove_model_scratch(void)
{
    clear_model();
    mp_catalog_release(&catalog);
    remove_scratch();
}

/* Adds a tensor [rows, cols]; cols 0: a vector [rows]. */
static inline void add_tensor(mp_dtype dtype, uint64_t rows, uint64_t cols, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static inline void add_tensor(mp_dtype dtype, uint64_t rows, uint64_t cols, const char *format, ...)
{
    uint64_t *shape = malloc(2 * sizeof *shape);
    char name[256];
    va_list args;

    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    shape[0] = rows;
    shape[1] = cols;
    model.specs = realloc(model.specs, (model.count + 1) * sizeof *model.specs);
    model.specs[model.count++] = (mp_tensor_spec){strdup(name), dtype, cols ? 2 : 1, shape};
}

/* Adds a tensor [count, rows, cols] of stacked matrices. */
static inline void add_stack(mp_dtype dtype, uint64_t count, uint64_t rows, uint64_t cols,
                             const char *name)
{
    uint64_t *shape = malloc(3 * sizeof *shape);

    add_tensor(dtype, rows, cols, "%s", name);
    free((uint64_t *)(uintptr_t)model.specs[model.count - 1].shape);
    shape[0] = count;
    shape[1] = rows;
    shape[2] = cols;
    model.specs[model.count - 1].rank = 3;
    model.specs[model.count - 1].shape = shape;
}

/* Takes an added tensor out again. */
static inline void drop_tensor(const char *name)
{
    for (size_t i = 0; i < model.count; i++) {
        if (strcmp(model.specs[i].name, name) != 0)
            continue;
        free((char *)(uintptr_t)model.specs[i].name);
        free((uint64_t *)(uintptr_t)model.specs[i].shape);
        model.specs[i] = model.specs[--model.count];
        return;
    }
    cr_assert_fail("no tensor %s", name);
}

/* Another type and shape for an added tensor. */
static inline void change_tensor(const char *name, mp_dtype dtype, uint64_t rows, uint64_t cols)
{
    drop_tensor(name);
    add_tensor(dtype, rows, cols, "%s", name);
}

/* An expert of V4 under "PREFIX.ffn.experts.N": packed E2M1 with exponents. */
static inline void add_fp4_expert(const char *prefix, unsigned expert, uint64_t h, uint64_t i)
{
    static const char *const projections[] = {"w1", "w3", "w2"};

    for (int p = 0; p < MP_PROJECTIONS; p++) {
        uint64_t rows = p == MP_DOWN ? h : i, cols = p == MP_DOWN ? i : h;

        add_tensor(MP_I8, rows, cols / 2, "%s.ffn.experts.%u.%s.weight", prefix, expert,
                   projections[p]);
        add_tensor(MP_F8_E8M0, rows, cols / 32, "%s.ffn.experts.%u.%s.scale", prefix, expert,
                   projections[p]);
    }
}

static inline void add_fp4_layer(const char *prefix, unsigned experts, uint64_t h, uint64_t i)
{
    for (unsigned e = 0; e < experts; e++)
        add_fp4_expert(prefix, e, h, i);
}

/* An expert of Qwen3 under "PREFIX.mlp.experts.N": plain BF16. */
static inline void add_bf16_expert(const char *prefix, unsigned expert, uint64_t h, uint64_t i)
{
    add_tensor(MP_BF16, i, h, "%s.mlp.experts.%u.gate_proj.weight", prefix, expert);
    add_tensor(MP_BF16, i, h, "%s.mlp.experts.%u.up_proj.weight", prefix, expert);
    add_tensor(MP_BF16, h, i, "%s.mlp.experts.%u.down_proj.weight", prefix, expert);
}

static inline int by_width(const void *a, const void *b)
{
    unsigned x = mp_dtype_bits(((const mp_tensor_spec *)a)->dtype);
    unsigned y = mp_dtype_bits(((const mp_tensor_spec *)b)->dtype);

    return (x < y) - (x > y);
}

/* Writes what was added as a safetensors file. */
static inline void put_model(const char *name)
{
    char *header;
    uint64_t bytes, *offsets = malloc((model.count + 1) * sizeof *offsets);

    if (model.count)
        qsort(model.specs, model.count, sizeof *model.specs, by_width);
    cr_assert_eq(
        mp_safetensors_header(model.specs, model.count, NULL, 0, 8, &header, &bytes, offsets, &err),
        0, "%s", err.message);
    put_file(name, header, bytes);
    cr_assert_eq(truncate(in_dir(name), (off_t)offsets[model.count]), 0);
    free(header);
    free(offsets);
}

/* Writes what was added and opens it. */
static inline int open_model(void)
{
    put_model("model.safetensors");
    mp_catalog_release(&catalog);
    err = (mp_error){0};
    return mp_catalog_open(&catalog, dir, NULL, &err);
}

static inline void expect_model(void)
{
    cr_assert_eq(open_model(), 0, "%s", err.message);
}

#endif
