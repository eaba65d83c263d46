/* SPDX-License-Identifier: Apache-2.0 */
/* Lists of layers and ranks, as users type them. */
#include <criterion/criterion.h>

#include <moepack/base.h>

#include <string.h>

#include "base/select.h"

/* Layers 0, 1, 7 and 10 of a decoder, and two MTP blocks, of which one is named as a
 * layer of its own. */
static const char *const prefixes[] = {
    "model.layers.0",  "model.layers.1", "model.layers.7",
    "model.layers.10", "mtp.0",          "mtp.layers.1",
};

#define LAYERS (sizeof(prefixes) / sizeof(prefixes[0]))
#define RANKS  6

static mp_error err;

/* want: a 1 for each that is selected. */
static void expect_layers(const char *list, const char *want)
{
    bool selected[LAYERS];
    char have[LAYERS + 1] = {0};

    cr_assert_eq(mp_select_layers(list, prefixes, LAYERS, selected, &err), 0, "%s", err.message);
    for (size_t i = 0; i < LAYERS; i++)
        have[i] = selected[i] ? '1' : '0';
    cr_assert_str_eq(have, want, "\"%s\" gives %s", list, have);
}

static void expect_no_layer(const char *list, const char *message)
{
    bool selected[LAYERS];

    cr_assert_eq(mp_select_layers(list, prefixes, LAYERS, selected, &err), MP_ERR_USAGE, "\"%s\"",
                 list);
    cr_assert_eq(err.code, MP_ERR_USAGE);
    cr_assert_str_eq(err.message, message);
}

static void expect_ranks(const char *list, const char *want)
{
    bool selected[RANKS];
    char have[RANKS + 1] = {0};

    cr_assert_eq(mp_select_ranks(list, RANKS, selected, &err), 0, "%s", err.message);
    for (int i = 0; i < RANKS; i++)
        have[i] = selected[i] ? '1' : '0';
    cr_assert_str_eq(have, want, "\"%s\" gives %s", list, have);
}

static void expect_no_rank(const char *list, const char *message)
{
    bool selected[RANKS];

    cr_assert_eq(mp_select_ranks(list, RANKS, selected, &err), MP_ERR_USAGE, "\"%s\"", list);
    cr_assert_str_eq(err.message, message);
}

Test(select, no_list_is_all)
{
    expect_layers(NULL, "111111");
    expect_ranks(NULL, "111111");
}

Test(select, numbers_are_decoder_layers)
{
    expect_layers("0", "100000");
    expect_layers("1", "010000");
    expect_layers("10", "000100");
    expect_layers("7,0", "101000");
    expect_layers("7,7,7", "001000");
}

Test(select, ranges_take_what_is_there)
{
    expect_layers("0-7", "111000");
    expect_layers("2-9", "001000");
    expect_layers("1-1", "010000");
    expect_layers("5-18446744073709551615", "001100");
    expect_layers("0-1,8-10", "110100");
}

Test(select, names_are_whole_prefixes)
{
    expect_layers("mtp.0", "000010");
    expect_layers("mtp.layers.1", "000001");
    expect_layers("model.layers.10,mtp.0,1", "010110");
}

Test(select, refuses_a_layer_that_is_not_there)
{
    expect_no_layer("2", "list \"2\": \"2\" names no layer");
    expect_no_layer("0,11-20", "list \"0,11-20\": \"11-20\" names no layer");
    expect_no_layer("mtp.1", "list \"mtp.1\": \"mtp.1\" names no layer");
    expect_no_layer("model.layers.", "list \"model.layers.\": \"model.layers.\" names no layer");
    expect_no_layer("mtp.00", "list \"mtp.00\": \"mtp.00\" names no layer");
}

Test(select, refuses_what_is_no_list)
{
    expect_no_layer("", "list \"\": \"\" names no layer");
    expect_no_layer("0,", "list \"0,\": \"\" names no layer");
    expect_no_layer(",0", "list \",0\": \"\" names no layer");
    expect_no_layer("0,,1", "list \"0,,1\": \"\" names no layer");
    expect_no_layer("7-0", "list \"7-0\": \"7-0\" names no layer");
    expect_no_layer("0-", "list \"0-\": \"0-\" names no layer");
    expect_no_layer("-1", "list \"-1\": \"-1\" names no layer");
    expect_no_layer("0-1-7", "list \"0-1-7\": \"0-1-7\" names no layer");
    expect_no_layer("0 ", "list \"0 \": \"0 \" names no layer");
    expect_no_layer("0x1", "list \"0x1\": \"0x1\" names no layer");
    expect_no_layer("18446744073709551616",
                    "list \"18446744073709551616\": \"18446744073709551616\" names no layer");
}

Test(select, prefixes_without_a_layer_number_have_names_only)
{
    static const char *const odd[] = {"layers.3", "layers.x", "sublayers",
                                      "3",        "layers.",  "sublayers.3"};
    bool selected[6];

    cr_assert_eq(mp_select_layers("0-9", odd, 6, selected, &err), 0);
    cr_assert(selected[0]);
    for (int i = 1; i < 6; i++)
        cr_assert_not(selected[i], "%s", odd[i]);
    cr_assert_eq(mp_select_layers("sublayers", odd, 6, selected, &err), 0);
    cr_assert(!selected[0] && selected[2]);
}

Test(select, ranks)
{
    expect_ranks("0", "100000");
    expect_ranks("5", "000001");
    expect_ranks("1-3", "011100");
    expect_ranks("0-5", "111111");
    expect_ranks("4,0-1,4", "110010");
}

Test(select, refuses_ranks_that_are_not_there)
{
    expect_no_rank("6", "list \"6\": \"6\" names no rank");
    expect_no_rank("0-6", "list \"0-6\": \"0-6\" names no rank");
    expect_no_rank("3-1", "list \"3-1\": \"3-1\" names no rank");
    expect_no_rank("a", "list \"a\": \"a\" names no rank");
    expect_no_rank("", "list \"\": \"\" names no rank");
    expect_no_rank("0-18446744073709551615",
                   "list \"0-18446744073709551615\": \"0-18446744073709551615\" names no rank");
}
