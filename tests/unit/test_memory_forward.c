/* SPDX-License-Identifier: Apache-2.0 */
/* The reference forward without memory: every allocation fails once. */
#include <criterion/criterion.h>

#include "failing_memory.h"

#include "forward/reference.h"

#define TOKENS 3

static mp_catalog catalog;
static float *x; /* [TOKENS, H] */
static double *y;
static mp_emulation emulation;

static void open_catalog(void)
{
    mp_error err;

    memory_include_jansson();
    cr_assert_eq(mp_catalog_open(&catalog, "testdata/fixtures/v4-fp4", NULL, &err), 0, "%s",
                 err.message);
    x = malloc(TOKENS * catalog.hidden_size * sizeof *x);
    y = malloc(TOKENS * catalog.hidden_size * sizeof *y);
    mp_random_tokens(1, TOKENS, catalog.hidden_size, x);
}

static void close_catalog(void)
{
    free(x);
    free(y);
    mp_catalog_release(&catalog);
}

TestSuite(memory_forward, .init = open_catalog, .fini = close_catalog);

static int forward(mp_error *err)
{
    const mp_context context = {.threads = 1};
    const mp_catalog_experts_options options = {.scheme = mp_emulation_scheme(emulation),
                                                .shared_scheme = mp_emulation_scheme(emulation)};
    mp_forward_options how = {.emulation = emulation};
    const mp_moe_layer *layer;
    mp_layer_router router = {0};
    mp_catalog_experts experts = {0};
    int32_t ids[TOKENS * 2], all[TOKENS * 3];
    float weights[TOKENS * 2], all_weights[TOKENS * 3];

    int rc = mp_find_layer(&catalog, "0", &layer, err);
    if (rc == 0)
        rc = mp_layer_router_open(&router, &catalog, layer, err);
    if (rc == 0)
        rc = mp_layer_route(&router, x, NULL, TOKENS, &context, ids, weights, err);
    if (rc == 0)
        rc = mp_catalog_experts_open(&experts, &catalog, layer, &options, &context, err);
    if (rc == 0) {
        const mp_batch batch = {TOKENS, 3, x, all, all_weights};

        mp_layer_add_shared(&router, x, TOKENS, 2, 1, ids, weights, all, all_weights);
        rc = mp_forward(&experts.source, &how, &batch, &context, y, err);
    }
    mp_layer_router_release(&router);
    mp_catalog_experts_release(&experts);
    return rc;
}

Test(memory_forward, loses_nothing)
{
    emulation = MP_EMULATE_W4A8;
    cr_assert_gt(memory_exhaust(forward), 20);
    emulation = MP_EMULATE_NVFP4;
    cr_assert_gt(memory_exhaust(forward), 20);
}
