/* SPDX-License-Identifier: Apache-2.0 */
/* Option structs of programs that were compiled with another version of the headers. */
#include <criterion/criterion.h>

#include <stdio.h>
#include <string.h>

#include <moepack/moepack.h>

#include "base/options.h"

#define FIXTURE "testdata/fixtures/v4-fp4"

static mp_error err;

/* The beginning of mp_repack_options, as a program knows it that has never heard of the rest. What
 * lies behind it in memory is no option. */
typedef struct old_options {
    size_t size;
    const mp_target *target;
    uint32_t ep;
    unsigned char behind[256];
} old_options;

Test(option_sizes, members_that_a_program_does_not_know_are_zero)
{
    old_options old = {
        .size = offsetof(old_options, behind), .target = mp_target_find("megamoe-w4a8"), .ep = 3};
    mp_catalog catalog;
    mp_plan *plan;

    memset(old.behind, 0xa5, sizeof old.behind);
    cr_assert_eq(mp_catalog_open(&catalog, FIXTURE, NULL, &err), 0, "%s", err.message);
    /* 5 experts on 3 ranks: the default of no redundant ones cannot be. */
    cr_assert_eq(mp_plan_repack(&plan, &catalog, (const mp_repack_options *)(void *)&old, &err),
                 MP_ERR_INPUT);
    cr_assert_not_null(strstr(err.message, "5"), "%s", err.message);
    cr_assert_null(plan);
    old.ep = 5;
    cr_assert_eq(mp_plan_repack(&plan, &catalog, (const mp_repack_options *)(void *)&old, &err), 0,
                 "%s", err.message);
    cr_assert_eq(mp_plan_get(plan)->work->num_files, 5);
    cr_assert_eq(mp_plan_get(plan)->work->zstd, 0);
    mp_plan_release(plan);
    mp_catalog_release(&catalog);
}

Test(option_sizes, a_size_that_is_not_known_is_refused)
{
    mp_pack_options options = {.size = sizeof options + 8};
    char message[200];
    mp_pack *pack;

    snprintf(message, sizeof message,
             "mp_pack_options: size %zu, this version of the library knows up to %zu: set it to "
             "sizeof(mp_pack_options)",
             sizeof options + 8, sizeof options);
    cr_assert_eq(mp_pack_open(&pack, FIXTURE, &options, NULL, &err), MP_ERR_USAGE);
    cr_assert_str_eq(err.message, message);
    cr_assert_null(pack);
    options.size = 0;
    cr_assert_eq(mp_pack_open(&pack, FIXTURE, &options, NULL, &err), MP_ERR_USAGE);
    cr_assert_not_null(strstr(err.message, "mp_pack_options: size 0, "), "%s", err.message);
}

Test(option_sizes, what_is_given_arrives)
{
    const mp_layer_options given = {
        .size = sizeof given, .emulation = MP_EMULATE_BF16, .source = "a", .no_shared = true};
    mp_layer_options own;

    cr_assert_eq(mp_options_take("mp_layer_options", &own, sizeof own, &given, &err), 0);
    cr_assert_eq(own.emulation, MP_EMULATE_BF16);
    cr_assert_str_eq(own.source, "a");
    cr_assert(own.no_shared);
    cr_assert_eq(mp_options_take("mp_layer_options", &own, sizeof own, NULL, &err), 0);
    cr_assert_eq(own.size, sizeof own);
    cr_assert_eq(own.emulation, MP_EMULATE_EXACT);
    cr_assert_null(own.source);
}
