/* SPDX-License-Identifier: Apache-2.0 */
/* Any checkpoint: lines "NAME DTYPE DIMENSION ..." (up to four of them) and, behind a line
 * "=", a config.json. Refused with a message, or what the catalog says can be relied on. */
#include <inttypes.h>

#include <moepack/pack.h>

#include "fuzz.h"

#include "base/words.h"
#include "checkpoint/complete.h"
#include "checkpoint/matrix.h"
#include "checkpoint/tensor.h"
#include "write/plan.h"

#define TENSORS_MAX 200
#define ROW_MAX     (1u << 20) /* bytes of a row that are worth reading */

static mp_tensor_spec specs[TENSORS_MAX];
static uint64_t shapes[TENSORS_MAX][4];
static char names[TENSORS_MAX][256];

/* Reads one line into tensor n; false if it is none. */
static bool read_tensor(const char *line, size_t n)
{
    char dtype[32];
    mp_tensor_spec spec = {.name = names[n], .shape = shapes[n]};
    uint64_t bytes;
    int found = sscanf(line, "%255s %31s %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64, names[n],
                       dtype, &shapes[n][0], &shapes[n][1], &shapes[n][2], &shapes[n][3]);

    if (found < 2 || !mp_dtype_parse(dtype, &spec.dtype))
        return false;
    spec.rank = (uint32_t)found - 2;
    if (mp_tensor_spec_bytes(&spec, &bytes, NULL) != 0 || bytes > UINT32_MAX)
        return false;
    specs[n] = spec;
    return true;
}

/* Wide elements first, so that all are aligned. */
static int by_width(const void *a, const void *b)
{
    const mp_tensor_spec *x = a, *y = b;
    unsigned wx = mp_dtype_bits(x->dtype), wy = mp_dtype_bits(y->dtype);

    return wx != wy ? (wx < wy) - (wx > wy) : strcmp(x->name, y->name);
}

/* Writes the checkpoint; false if there is none to write (names twice, say). */
static bool put_checkpoint(char *text)
{
    uint64_t header_bytes, offsets[TENSORS_MAX + 1];
    char *config = strstr(text, "\n=\n"), *header, *rest;
    size_t count = 0;

    if (config) {
        *config = '\0';
        config += 3;
        put("config.json", config, strlen(config), 0);
    } else {
        unlink(in_dir("config.json"));
    }
    for (char *line = strtok_r(text, "\n", &rest); line && count < TENSORS_MAX;
         line = strtok_r(NULL, "\n", &rest))
        count += read_tensor(line, count);
    qsort(specs, count, sizeof *specs, by_width);
    if (mp_safetensors_header(specs, count, NULL, 0, 8, &header, &header_bytes, offsets, NULL) != 0)
        return false;
    put("model.safetensors", header, header_bytes, offsets[count]);
    free(header);
    return true;
}

/* The first and the last row of a matrix can be read, with the scales that belong to it. */
static void check_matrix(const mp_catalog *catalog, const mp_storage *storage,
                         const mp_matrix *matrix, uint64_t rows, uint64_t cols)
{
    uint64_t row_bytes = mp_storage_row_bytes(storage, cols);
    uint64_t scale_bytes = mp_storage_scale_row_bytes(storage, cols);
    void *weight, *scale;
    mp_error err = {0};
    float global;

    require(matrix->weight && (matrix->scale || !storage->has_scale) &&
                (matrix->global || !storage->has_global),
            "a matrix is missing");
    if (mp_matrix_global(catalog, matrix, &global, &err) != 0)
        require_message(&err); /* it is zero */
    if (rows == 0 || row_bytes > ROW_MAX || scale_bytes > ROW_MAX)
        return;
    require(row_bytes <= matrix->weight->bytes, "a row is larger than all of them");
    weight = malloc(row_bytes + 1);
    scale = malloc(scale_bytes + 1);
    for (uint64_t row = 0; row<rows; row += rows> 1 ? rows - 1 : 1)
        require(mp_matrix_read_rows(catalog, storage, matrix, cols, row, 1, weight, scale, &err) ==
                    0,
                err.message);
    mp_matrix_forget(catalog, matrix);
    free(weight);
    free(scale);
}

static void check_expert(const mp_catalog *catalog, const mp_storage *storage,
                         const mp_expert *expert, uint64_t intermediate)
{
    uint64_t h = catalog->hidden_size;

    check_matrix(catalog, storage, &expert->matrix[MP_GATE], intermediate, h);
    check_matrix(catalog, storage, &expert->matrix[MP_UP], intermediate, h);
    check_matrix(catalog, storage, &expert->matrix[MP_DOWN], h, intermediate);
}

/* Without problems, all experts are there and of their size. */
static void check_experts(const mp_catalog *catalog)
{
    uint64_t i = catalog->moe_intermediate_size;

    for (size_t l = 0; l < catalog->num_layers; l++) {
        const mp_moe_layer *layer = &catalog->layers[l];

        for (uint32_t e = 0; e < layer->num_experts; e++)
            check_expert(catalog, &layer->storage, &layer->experts[e], i);
        if (layer->has_shared)
            check_expert(catalog, &layer->shared_storage, &layer->shared,
                         i * catalog->num_shared_experts);
    }
}

static void check_plan(const mp_catalog *catalog)
{
    mp_repack_options options = {
        .target = mp_target_find("megamoe-w4a8"),
        .ep = 1,
        .quantize = true,
        .quantize_to = MP_SCHEME_MXFP4,
    };
    mp_error err = {0};
    mp_repack_plan plan;

    if (mp_repack_plan_init(&plan, catalog, &options, &err) != 0)
        require_message(&err);
    else
        require(plan.work.num_units > 0 && plan.work.num_files > 0 && plan.work.bytes_written > 0,
                "plan");
    mp_repack_plan_release(&plan);
}

static void check_catalog(const mp_catalog *catalog)
{
    uint64_t experts = 0, others = 0, bytes = catalog->checkpoint.shards[0].size;
    mp_error err = {0};

    require(catalog->num_layers > 0 && catalog->family, "a catalog of nothing");
    for (size_t l = 0; l < catalog->num_layers; l++)
        experts += catalog->layers[l].num_experts;
    for (unsigned k = 0; k < MP_KINDS; k++)
        others += catalog->others[k].tensors;
    require(experts <= bytes, "more experts than bytes");
    require(catalog->expert_tensors + others <= catalog->checkpoint.num_tensors, "tensors");
    if (mp_catalog_check(catalog, &err) != 0) {
        require_message(&err);
        return;
    }
    require(catalog->expert_tensors + others == catalog->checkpoint.num_tensors,
            "a tensor is forgotten without a word");
    check_experts(catalog);
    check_plan(catalog);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const mp_context context = {.threads = 1};
    mp_error err = {0};
    mp_catalog catalog;
    char *text = malloc(size + 1);

    make_dir();
    memcpy(text, data, size);
    text[size] = '\0';
    if (put_checkpoint(text)) {
        if (mp_catalog_open(&catalog, dir, &context, &err) == 0)
            check_catalog(&catalog);
        else
            require_message(&err);
        mp_catalog_release(&catalog);
    }
    free(text);
    return 0;
}
