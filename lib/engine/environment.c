/* SPDX-License-Identifier: Apache-2.0 */
/* The environment: where variables come from, and which of them decide, with their defaults. */
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

static const struct {
    size_t field;
    const char *name;
    bool value; /* by default */
} flags[] = {
    {offsetof(mp_engine_env, use_mega_moe), "SGLANG_OPT_USE_DEEPGEMM_MEGA_MOE", false},
    {offsetof(mp_engine_env, fix_memory), "SGLANG_OPT_FIX_MEGA_MOE_MEMORY", false},
    {offsetof(mp_engine_env, use_fp4_acts), "SGLANG_OPT_DEEPGEMM_MEGA_MOE_USE_FP4_ACTS", false},
    {offsetof(mp_engine_env, use_mxf4_kind), "SGLANG_OPT_DEEPGEMM_MEGA_MOE_USE_MXF4_KIND", false},
    {offsetof(mp_engine_env, dg_fp4_acts), "DG_USE_FP4_ACTS", false},
    {offsetof(mp_engine_env, dg_mxf4_kind), "DG_USE_MXF4_KIND", false},
    {offsetof(mp_engine_env, dg_fp8_combine), "DG_USE_FP8_COMBINE", false},
    {offsetof(mp_engine_env, jit_deepgemm), "SGLANG_ENABLE_JIT_DEEPGEMM", true},
};

static const struct {
    size_t field;
    const char *name;
    uint64_t value; /* by default */
} numbers[] = {
    {offsetof(mp_engine_env, mega_tokens), "SGLANG_OPT_DEEPGEMM_MEGA_MOE_NUM_MAX_TOKENS_PER_RANK",
     1024},
    {offsetof(mp_engine_env, fuse_mode), "SGLANG_NPU_FUSED_MOE_MODE", 1},
    {offsetof(mp_engine_env, dispatch_tokens), "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK",
     128},
};

static bool is_one_of(const char *const *words, const char *text)
{
    while (*words && strcasecmp(*words, text) != 0)
        words++;
    return *words != NULL;
}

/* True or false in the engine's words. */
static bool read_flag(const char *text, bool *value)
{
    static const char *const yes[] = {"1", "true", "yes", "y", "on", NULL};
    static const char *const no[] = {"0", "false", "no", "n", "off", "", NULL};

    *value = is_one_of(yes, text);
    return *value || is_one_of(no, text);
}

static bool read_number(const char *text, uint64_t *value)
{
    if (text[0] == '\0' || strspn(text, "0123456789") != strlen(text) || strlen(text) > 18)
        return false;
    *value = strtoull(text, NULL, 10);
    return true;
}

int mp_engine_env_read(mp_engine_env *engine, const mp_env *env, mp_error *err)
{
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++) {
        mp_env_flag *flag = (mp_env_flag *)(void *)((char *)engine + flags[i].field);
        const char *text = mp_env_get(env, flags[i].name);

        *flag = (mp_env_flag){flags[i].name, text != NULL, flags[i].value};
        if (text && !read_flag(text, &flag->value))
            return mp_fail(err, MP_ERR_INPUT,
                           "%s: \"%s\" is neither true (1, true, yes, y, on) nor false (0, false, "
                           "no, n, off, empty)",
                           flag->name, text);
    }
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        mp_env_number *number = (mp_env_number *)(void *)((char *)engine + numbers[i].field);
        const char *text = mp_env_get(env, numbers[i].name);

        *number = (mp_env_number){numbers[i].name, text != NULL, numbers[i].value};
        if (text && !read_number(text, &number->value))
            return mp_fail(err, MP_ERR_INPUT, "%s: \"%s\" is not a number of 0 or more",
                           number->name, text);
    }
    return 0;
}
