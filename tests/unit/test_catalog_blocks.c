/* SPDX-License-Identifier: Apache-2.0 */
/* Catalog: how many weights a scale covers, where its shape fits several answers. */
#include <criterion/criterion.h>

#include "model_files.h"

TestSuite(catalog_blocks, .init = make_model_scratch, .fini = remove_model_scratch);

/* 2x2 scales of 192x192 weights fit blocks of 96 and of 128: config.json decides. */
Test(catalog_blocks, blocks_are_those_that_config_says)
{
    static const struct {
        const char *config;
        uint32_t block;
        size_t notes;
    } cases[] = {
        {"{\"block_structure\": [96, 96]}", 96, 0},
        {"{\"num_bits\": 8, \"group_size\": 96}", 96, 0},
        {"{}", 128, 1},
    };
    char text[256];

    for (unsigned e = 0; e < 2; e++)
        for (int p = 0; p < MP_PROJECTIONS; p++) {
            static const char *const names[] = {"gate", "up", "down"};

            add_tensor(MP_F8_E4M3, 192, 192, "model.layers.0.mlp.experts.%u.%s_proj.weight", e,
                       names[p]);
            add_tensor(MP_F32, 2, 2, "model.layers.0.mlp.experts.%u.%s_proj.weight_scale", e,
                       names[p]);
        }
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        snprintf(text, sizeof text,
                 "{\"quantization_config\": {\"quant_algo\": \"FP8_PB_WO\", \"config_groups\": "
                 "{\"group_0\": {\"weights\": %s}}}}",
                 cases[i].config);
        put_text("config.json", text);
        expect_model();
        cr_assert_eq(catalog.layers[0].storage.scheme, MP_SCHEME_FP8_BLOCK);
        cr_assert_eq(catalog.layers[0].storage.block_rows, cases[i].block);
        cr_assert_eq(catalog.layers[0].storage.block_cols, cases[i].block);
        cr_assert_eq(catalog.problems.count, 0);
        cr_assert_eq(catalog.notes.count, cases[i].notes);
    }
    cr_assert_str_eq(catalog.notes.text[0], "config.json does not say what a scale covers: blocks "
                                            "of 128x128 are assumed");
}
