/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a file of variables: refused with a message, or they come back the same from the
 * lines that a shell would evaluate, and every engine resolves with them or says why not. */

#include "fuzz.h"

#include "engine/backend.h"

/* A value between quotes that it does not hold itself; false where it holds both, or a line
 * break. */
static bool put_line(char *text, size_t room, size_t *length, const char *name, const char *value)
{
    const char *quote = strchr(value, '\'') ? "\"" : "'";
    int n;

    if (strchr(value, *quote) || strchr(value, '\n'))
        return false;
    n = snprintf(text + *length, room - *length, "export %s=%s%s%s\n", name, quote, value, quote);
    *length += (size_t)n;
    return n > 0 && *length < room;
}

static void check_variables(const mp_env *env)
{
    static char text[1 << 20];

    for (size_t i = 0; i < env->count; i++) {
        mp_error err = {0};
        mp_env again = {0};
        size_t length = 0;

        require(mp_env_get(env, env->names[i]) == env->values[i], "name twice");
        if (!put_line(text, sizeof text, &length, env->names[i], env->values[i]))
            continue;
        require(mp_env_parse(&again, text, length, "again", &err) == 0, "read again");
        require(again.count == 1 && strcmp(again.names[0], env->names[i]) == 0 &&
                    strcmp(again.values[0], env->values[i]) == 0,
                "the same");
        mp_env_release(&again);
    }
}

static void check_engines(const mp_env *env)
{
    mp_backend_model model = {
        .source = "config.json",
        .hidden_size = 7168,
        .moe_intermediate_size = 2048,
        .num_experts = 256,
        .num_shared_experts = 1,
        .experts_per_token = 8,
        .num_layers = 58,
        .activation_from = "model_type",
    };

    mp_backend_model_quantize(&model, MP_SCHEME_MXFP4);
    for (int engine = 0; engine < MP_ENGINE_COUNT; engine++) {
        const mp_backend_flags flags = {.engine = (mp_engine)engine,
                                        .backend = MP_A2A_MEGAMOE,
                                        .backend_given = true,
                                        .tp = 8,
                                        .graph_bs_given = true,
                                        .graph_bs = 256};
        mp_backend backend = {0};
        mp_backend_memory memory;
        mp_error err = {0};

        if (mp_backend_resolve(&backend, &flags, env, &model, &err) != 0) {
            require(engine == MP_ENGINE_SGLANG_0_5_15 && err.code == MP_ERR_INPUT, "refused");
            require_message(&err);
        } else if (mp_backend_estimate(&memory, &backend, &model, 1, &err) == 0) {
            require(!memory.known || !memory.fits, "fits a byte");
        } else {
            require_message(&err);
        }
        mp_backend_release(&backend);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mp_error err = {0};
    mp_env env = {0};

    if (mp_env_parse(&env, (const char *)data, size, "fuzz", &err) == 0) {
        check_variables(&env);
        check_engines(&env);
    } else {
        require_message(&err);
    }
    mp_env_release(&env);
    return 0;
}
