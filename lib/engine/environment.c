/* SPDX-License-Identifier: Apache-2.0 */
/* The environment: where variables come from, and which of them decide, with their defaults. A
 * cluster starts an engine with variables in a file, a unit or a manifest; plan takes them from
 * wherever they are and reads them as the engine does, word by word:
 *
 *   sglang-0.5.15    true: 1 true yes y on    numbers: digits           else it ends with an error
 *   sglang-2026-09   true: 1 true yes y       numbers: a sign, digits   else it warns: the default
 *
 * Whether a variable is set at all is kept beside its value, as rules ask for that: an explicit
 * false is not the default. Variables that an engine does not read keep their defaults.
 *
 * A set of variables is a list in the order in which they were first set, the last value of a name
 * counting. One thread. */
#include "engine/environment.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/error.h"

/* ------------------------------------------------------------------------
 * A set of variables
 */

static size_t find(const mp_env *env, const char *name)
{
    size_t i = 0;

    while (i < env->count && strcmp(env->names[i], name) != 0)
        i++;
    return i;
}

const char *mp_env_get(const mp_env *env, const char *name)
{
    size_t i = find(env, name);

    return i < env->count ? env->values[i] : NULL;
}

static int grow(mp_env *env, mp_error *err)
{
    size_t room = env->room ? 2 * env->room : 16;
    char **names = realloc(env->names, room * sizeof *names);

    if (!names)
        return mp_fail_memory(err);
    /* Kept at once: without memory for values the longer names are still the list's. */
    env->names = names;
    char **values = realloc(env->values, room * sizeof *values);
    if (!values)
        return mp_fail_memory(err);
    env->values = values;
    env->room = room;
    return 0;
}

int mp_env_set(mp_env *env, const char *name, const char *value, mp_error *err)
{
    size_t i = find(env, name);
    char *copy;

    /* find gives the count for a new name, which is the room where the list is full. */
    if (i == env->room && grow(env, err) != 0)
        return MP_ERR_IO;
    copy = strdup(value);
    if (!copy)
        return mp_fail_memory(err);
    if (i < env->count) {
        free(env->values[i]);
    } else {
        env->names[i] = strdup(name);
        if (!env->names[i]) {
            free(copy);
            return mp_fail_memory(err);
        }
        env->count++;
    }
    env->values[i] = copy;
    return 0;
}

void mp_env_release(mp_env *env)
{
    for (size_t i = 0; i < env->count; i++) {
        free(env->names[i]);
        free(env->values[i]);
    }
    free(env->names);
    free(env->values);
    memset(env, 0, sizeof *env);
}

int mp_env_add(mp_env *env, const char *const *list, mp_error *err)
{
    int rc = 0;

    for (; rc == 0 && *list; list++) {
        const char *equals = strchr(*list, '=');
        char *name = equals ? strndup(*list, (size_t)(equals - *list)) : strdup(*list);

        rc = name ? mp_env_set(env, name, equals ? equals + 1 : "", err) : mp_fail_memory(err);
        free(name);
    }
    return rc;
}

/* ------------------------------------------------------------------------
 * A text of variables
 */

static bool is_name(const char *text, size_t n)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789";

    return n > 0 && strspn(text, letters) >= n && !(text[0] >= '0' && text[0] <= '9');
}

/* The line between its blanks, NUL-terminated in place. */
static char *trim(char *line)
{
    size_t n;

    line += strspn(line, " \t");
    for (n = strlen(line); n > 0 && strchr(" \t\r", line[n - 1]);)
        n--;
    line[n] = '\0';
    return line;
}

static char *unquote(char *value)
{
    size_t n = strlen(value);

    /* A single quote character is a value. */
    if (n < 2 || (value[0] != '\'' && value[0] != '"') || value[n - 1] != value[0])
        return value;
    value[n - 1] = '\0';
    return value + 1;
}

static int parse_line(mp_env *env, char *line, const char *what, size_t number, mp_error *err)
{
    char *equals;

    line = trim(line);
    if (line[0] == '\0' || line[0] == '#')
        return 0;
    if (strncmp(line, "export ", 7) == 0)
        line = trim(line + 7);
    equals = strchr(line, '=');
    if (!equals || !is_name(line, (size_t)(equals - line)))
        return mp_fail(err, MP_ERR_INPUT, "%s: line %zu: not NAME=VALUE", what, number);
    *equals = '\0';
    return mp_env_set(env, line, unquote(equals + 1), err);
}

int mp_env_parse(mp_env *env, const char *text, uint64_t length, const char *what, mp_error *err)
{
    char *copy = strndup(text, (size_t)length), *next = copy;
    size_t number = 0;
    int rc = 0;

    if (!copy)
        return mp_fail_memory(err);
    /* What is behind a NUL would be lost without a word. */
    if (strlen(copy) != length)
        rc = mp_fail(err, MP_ERR_INPUT, "%s: holds a NUL byte", what);
    while (rc == 0 && next)
        rc = parse_line(env, strsep(&next, "\n"), what, ++number, err);
    free(copy);
    return rc;
}

/* ------------------------------------------------------------------------
 * The variables that decide
 */

enum { OLD = 1, NEW = 2, BOTH = OLD | NEW }; /* sglang-0.5.15, sglang-2026-09 */

#define AT(member) offsetof(mp_engine_env, member)

/* clang-format off */
static const struct {
    size_t field;
    const char *name;
    bool value; /* by default */
    int engines;
} flags[] = {
    {AT(use_mega_moe), "SGLANG_OPT_USE_DEEPGEMM_MEGA_MOE", false, OLD},
    {AT(fix_memory), "SGLANG_OPT_FIX_MEGA_MOE_MEMORY", false, OLD},
    {AT(use_fp4_acts), "SGLANG_OPT_DEEPGEMM_MEGA_MOE_USE_FP4_ACTS", false, OLD},
    {AT(use_mxf4_kind), "SGLANG_OPT_DEEPGEMM_MEGA_MOE_USE_MXF4_KIND", false, OLD},
    {AT(dg_fp4_acts), "DG_USE_FP4_ACTS", false, OLD},
    {AT(dg_mxf4_kind), "DG_USE_MXF4_KIND", false, OLD},
    {AT(dg_fp8_combine), "DG_USE_FP8_COMBINE", false, OLD},
    {AT(jit_deepgemm), "SGLANG_ENABLE_JIT_DEEPGEMM", true, BOTH},
    {AT(fuse_shared), "SGLANG_OPT_DEEPGEMM_MEGA_MOE_FUSE_SHARED_EXPERTS", true, NEW},
    {AT(fp4_dequant), "SGLANG_DSV4_FP4_DEQUANT", false, NEW},
    {AT(bf16_dispatch), "SGLANG_DEEPEP_BF16_DISPATCH", false, NEW},
    {AT(fc2_reduce), "SGLANG_FLASHINFER_MEGAMOE_IN_KERNEL_FC2_REDUCE", false, NEW},
    {AT(flydsl), "SGLANG_AMD_USE_FLYDSL_MEGA_MOE", false, NEW},
};

static const struct {
    size_t field;
    const char *name;
    int64_t value; /* by default */
    int engines;
} numbers[] = {
    {AT(mega_tokens), "SGLANG_OPT_DEEPGEMM_MEGA_MOE_NUM_MAX_TOKENS_PER_RANK", 1024, BOTH},
    {AT(fuse_mode), "SGLANG_NPU_FUSED_MOE_MODE", 1, OLD},
    {AT(dispatch_tokens), "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK", 128, BOTH},
    {AT(flydsl_tokens), "SGLANG_AMD_FLYDSL_MEGA_MOE_MTPR", 8192, NEW},
    {AT(mori_tokens), "SGLANG_MORI_NUM_MAX_DISPATCH_TOKENS_PER_RANK", 4096, NEW},
    {AT(pplx_tokens), "SGLANG_PPLX_NUM_MAX_DISPATCH_TOKENS_PER_RANK", 128, NEW},
    {AT(deepep_v2_tokens), "SGLANG_DEEPEP_V2_NUM_MAX_DISPATCH_TOKENS_PER_RANK", 128, NEW},
    {AT(deepep_hccl), "DEEPEP_HCCL_BUFFSIZE", 200, NEW},
    {AT(hccl), "HCCL_BUFFSIZE", 200, NEW},
};
/* clang-format on */

static bool is_one_of(const char *const *words, const char *text)
{
    while (*words && strcasecmp(*words, text) != 0)
        words++;
    return *words != NULL;
}

/* True or false in the engine's words. */
static bool read_flag(const char *text, int engine, bool *value)
{
    static const char *const yes[] = {"1", "true", "yes", "y", NULL};
    static const char *const no[] = {"0", "false", "no", "n", NULL};
    static const char *const old_yes[] = {"on", NULL};
    static const char *const old_no[] = {"off", "", NULL};
    bool is_yes = is_one_of(yes, text) || (engine == OLD && is_one_of(old_yes, text));

    if (!is_yes && !is_one_of(no, text) && !(engine == OLD && is_one_of(old_no, text)))
        return false;
    *value = is_yes;
    return true;
}

/* Digits, behind a sign in later versions. */
static bool read_number(const char *text, int engine, int64_t *value)
{
    const char *digits = text + (engine == NEW && (text[0] == '-' || text[0] == '+'));

    if (digits[0] == '\0' || strspn(digits, "0123456789") != strlen(digits) || strlen(digits) > 18)
        return false;
    /* At most 18 digits: they fit. */
    *value = strtoll(text, NULL, 10);
    return true;
}

/* What the engine does with a value that it cannot read. */
static int fail_value(int engine, const char *name, const char *text, const char *expected,
                      mp_problems *warnings, mp_error *err)
{
    if (engine == OLD)
        return mp_fail(err, MP_ERR_INPUT, "%s: \"%s\" is %s", name, text, expected);
    mp_problem(warnings, "%s: \"%s\" is %s: the engine takes the default", name, text, expected);
    return 0;
}

static int read_flags(mp_engine_env *values, int engine, const mp_env *env, mp_problems *warnings,
                      mp_error *err)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < sizeof flags / sizeof flags[0]; i++) {
        mp_env_flag *flag = (mp_env_flag *)(void *)((char *)values + flags[i].field);
        const char *text = flags[i].engines & engine ? mp_env_get(env, flags[i].name) : NULL;

        *flag = (mp_env_flag){flags[i].name, text != NULL, flags[i].value};
        if (text && !read_flag(text, engine, &flag->value)) {
            /* As if it were not there: later engines fall back, and so do the rules that ask. */
            flag->set = false;
            rc = fail_value(engine, flag->name, text,
                            engine == OLD ? "neither true (1, true, yes, y, on) nor false (0, "
                                            "false, no, n, off, empty)"
                                          : "neither true (1, true, yes, y) nor false (0, false, "
                                            "no, n)",
                            warnings, err);
        }
    }
    return rc;
}

static int read_numbers(mp_engine_env *values, int engine, const mp_env *env, mp_problems *warnings,
                        mp_error *err)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < sizeof numbers / sizeof numbers[0]; i++) {
        mp_env_number *number = (mp_env_number *)(void *)((char *)values + numbers[i].field);
        const char *text = numbers[i].engines & engine ? mp_env_get(env, numbers[i].name) : NULL;

        *number = (mp_env_number){numbers[i].name, text != NULL, numbers[i].value};
        if (text && !read_number(text, engine, &number->value)) {
            number->set = false;
            rc = fail_value(engine, number->name, text,
                            engine == OLD ? "not a number of 0 or more" : "not a number", warnings,
                            err);
        }
    }
    return rc;
}

int mp_engine_env_read(mp_engine_env *values, mp_engine engine, const mp_env *env,
                       mp_problems *warnings, mp_error *err)
{
    int kind = engine == MP_ENGINE_SGLANG_0_5_15    ? OLD
               : engine == MP_ENGINE_SGLANG_2026_09 ? NEW
                                                    : 0;
    int rc = read_flags(values, kind, env, warnings, err);

    return rc ? rc : read_numbers(values, kind, env, warnings, err);
}
