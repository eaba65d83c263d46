/* SPDX-License-Identifier: Apache-2.0 */
/* The environment: lines of files, and variables as the engine reads them. */
#include "backend_case.h"

#include "engine/environment.h"
#include "failing_memory.h"

TestSuite(backend_env, .init = start_case, .fini = end_case);

static int parse(const char *text)
{
    mp_env_release(&env);
    err = (mp_error){0};
    return mp_env_parse(&env, text, strlen(text), "env", &err);
}

static void expect_value(const char *name, const char *value)
{
    expect_text(mp_env_get(&env, name), value);
}

Test(backend_env, reads_lines)
{
    cr_assert_eq(parse("A=1\n\n# B=2\n  export C='x y'\nD=\"a'b\"\r\n_e3=\nF='\nG=a=b\n"), 0, "%s",
                 err.message);
    cr_assert_eq(env.count, 6);
    expect_value("A", "1");
    expect_value("B", NULL);
    expect_value("C", "x y");
    expect_value("D", "a'b");
    expect_value("_e3", "");
    expect_value("F", "'");
    expect_value("G", "a=b");
}

Test(backend_env, the_last_value_counts)
{
    cr_assert_eq(parse("A=1\nB=2\nA=3"), 0);
    cr_assert_eq(env.count, 2);
    expect_value("A", "3");
}

Test(backend_env, refuses_what_is_no_line)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"A=1\nB\n", "env: line 2: not NAME=VALUE"},
        {"=1", "env: line 1: not NAME=VALUE"},
        {"1A=1", "env: line 1: not NAME=VALUE"},
        {"A B=1", "env: line 1: not NAME=VALUE"},
        {"A =1", "env: line 1: not NAME=VALUE"},
        {"\n\nexport A", "env: line 3: not NAME=VALUE"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cr_assert_eq(parse(cases[i].text), MP_ERR_INPUT, "%s", cases[i].text);
        cr_assert_str_eq(err.message, cases[i].message);
    }
    cr_assert_eq(mp_env_parse(&env, "A=1\0B", 5, "env", &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "env: holds a NUL byte");
}

Test(backend_env, takes_the_environment_of_a_process)
{
    static const char *const list[] = {"A=1", "B=a=b", "EMPTY=", "BARE", NULL};

    cr_assert_eq(mp_env_add(&env, list, &err), 0);
    expect_value("A", "1");
    expect_value("B", "a=b");
    expect_value("EMPTY", "");
    expect_value("BARE", "");
}

Test(backend_env, holds_many)
{
    char name[16];

    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof name, "V%d", i);
        set_env(name, name);
    }
    cr_assert_eq(env.count, 100);
    expect_value("V0", "V0");
    expect_value("V99", "V99");
}

/* ------------------------------------------------------------------------
 * Variables that decide
 */

static const char *const flag_names[] = {
    "SGLANG_OPT_USE_DEEPGEMM_MEGA_MOE",
    "SGLANG_OPT_FIX_MEGA_MOE_MEMORY",
    "SGLANG_OPT_DEEPGEMM_MEGA_MOE_USE_FP4_ACTS",
    "SGLANG_OPT_DEEPGEMM_MEGA_MOE_USE_MXF4_KIND",
    "DG_USE_FP4_ACTS",
    "DG_USE_MXF4_KIND",
    "DG_USE_FP8_COMBINE",
    "SGLANG_ENABLE_JIT_DEEPGEMM",
};
static const char *const number_names[] = {
    "SGLANG_OPT_DEEPGEMM_MEGA_MOE_NUM_MAX_TOKENS_PER_RANK",
    "SGLANG_NPU_FUSED_MOE_MODE",
    "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK",
};

static bool read_as(const char *text)
{
    mp_engine_env engine;

    set_env("SGLANG_OPT_FIX_MEGA_MOE_MEMORY", text);
    cr_assert_eq(mp_engine_env_read(&engine, MP_ENGINE_SGLANG_0_5_15, &env, NULL, &err), 0,
                 "\"%s\": %s", text, err.message);
    cr_assert(engine.fix_memory.set);
    return engine.fix_memory.value;
}

Test(backend_env, reads_booleans_as_the_engine_does)
{
    static const char *const yes[] = {"1", "true", "TRUE", "True", "yes", "Y", "on", "oN"};
    static const char *const no[] = {"0", "false", "FALSE", "no", "N", "off", "Off", ""};

    for (size_t i = 0; i < 8; i++) {
        cr_assert(read_as(yes[i]), "%s", yes[i]);
        cr_assert_not(read_as(no[i]), "%s", no[i]);
    }
}

Test(backend_env, names_a_boolean_that_is_none)
{
    static const char *const values[] = {"2", "maybe", " 1", "1 ", "tru", "00", "none"};
    char message[256];

    for (size_t v = 0; v < 7; v++) {
        for (size_t i = 0; i < sizeof flag_names / sizeof flag_names[0]; i++) {
            start_case();
            set_env(flag_names[i], values[v]);
            snprintf(message, sizeof message,
                     "%s: \"%s\" is neither true (1, true, yes, y, on) nor false (0, false, no, "
                     "n, off, empty)",
                     flag_names[i], values[v]);
            expect_failure(MP_ERR_INPUT, message);
        }
    }
}

Test(backend_env, names_a_number_that_is_none)
{
    static const char *const values[] = {"",  "-1", "1k", "1.5", "0x10", "1000000000000000000",
                                         " 1"};
    char message[256];

    for (size_t v = 0; v < 7; v++) {
        for (size_t i = 0; i < sizeof number_names / sizeof number_names[0]; i++) {
            start_case();
            set_env(number_names[i], values[v]);
            snprintf(message, sizeof message, "%s: \"%s\" is not a number of 0 or more",
                     number_names[i], values[v]);
            expect_failure(MP_ERR_INPUT, message);
        }
    }
}

Test(backend_env, knows_the_defaults)
{
    mp_engine_env engine;

    cr_assert_eq(mp_engine_env_read(&engine, MP_ENGINE_SGLANG_0_5_15, &env, NULL, &err), 0);
    cr_assert_not(engine.use_mega_moe.set || engine.use_mega_moe.value);
    cr_assert_not(engine.fix_memory.set || engine.fix_memory.value);
    cr_assert_not(engine.use_fp4_acts.value || engine.use_mxf4_kind.value);
    cr_assert_not(engine.dg_fp4_acts.value || engine.dg_mxf4_kind.value);
    cr_assert_not(engine.dg_fp8_combine.value);
    cr_assert(engine.jit_deepgemm.value && !engine.jit_deepgemm.set);
    cr_assert_eq(engine.mega_tokens.value, 1024);
    cr_assert_eq(engine.fuse_mode.value, 1);
    cr_assert_eq(engine.dispatch_tokens.value, 128);
}

static int read_and_resolve(mp_error *e)
{
    static const char text[] = "SGLANG_OPT_DEEPGEMM_MEGA_MOE_USE_FP4_ACTS=1\nA='b'\nA=c\n";
    int rc = mp_env_parse(&env, text, sizeof text - 1, "env", e);

    if (rc == 0)
        rc = mp_backend_resolve(&backend, &flags, &env, &model, e);
    end_case();
    return rc;
}

Test(backend_env, resolving_survives_any_failed_allocation)
{
    ask_for(MP_A2A_MEGAMOE);
    cr_assert_gt(memory_exhaust(read_and_resolve), 20);
}
