/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as config.json: refused with a message, or every fact is one, and what is planned by it
 * has sizes and a format, or says why not. */

#include "fuzz.h"

#include "checkpoint/config.h"
#include "engine/backend.h"

/* A block size that is there, or none. */
static bool is_block(uint64_t size)
{
    return size == MP_CONFIG_ABSENT || (size > 0 && size <= UINT32_MAX);
}

/* Numbers are what JSON has of them: none is above INT64_MAX. */
static bool is_number(uint64_t number)
{
    return number == MP_CONFIG_ABSENT || number <= INT64_MAX;
}

static void check_config(const mp_config *config)
{
    require(config->present, "present");
    require(memchr(config->model_type, '\0', sizeof config->model_type), "model_type");
    require(memchr(config->quant_method, '\0', sizeof config->quant_method), "quant_method");
    require(is_block(config->block_rows) && is_block(config->block_cols), "block");
    require((config->block_rows == MP_CONFIG_ABSENT) == (config->block_cols == MP_CONFIG_ABSENT),
            "one half of a block");
    require(is_number(config->hidden_size) && is_number(config->moe_intermediate_size) &&
                is_number(config->num_experts) && is_number(config->num_shared_experts) &&
                is_number(config->experts_per_token) && is_number(config->num_hidden_layers) &&
                is_number(config->first_k_dense_replace) && is_number(config->moe_layer_freq) &&
                is_number(config->decoder_sparse_step) && is_number(config->vocab_size),
            "number");
    for (uint64_t layer = 0; layer < config->num_dense_layers; layer++) {
        require(config->dense_layers[layer] <= 1, "flag");
        require(!config->dense_layers[layer] || !mp_config_is_moe_layer(config, layer),
                "a dense layer with experts");
    }
    mp_config_is_moe_layer(config, UINT64_MAX);
}

static void check_model(void)
{
    mp_backend_model model;
    mp_error err = {0};

    if (mp_backend_model_open(&model, in_dir("config.json"), NULL, &err) != 0) {
        require_message(&err);
        return;
    }
    require(model.num_layers > 0 && model.num_experts > 0 && model.hidden_size > 0, "sizes");
    require(model.scheme_from && mp_backend_model_scheme(&model), "format");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mp_error err = {0};
    mp_config config;

    make_dir();
    put("config.json", data, size, 0);
    if (mp_config_load(&config, dir, &err) == 0)
        check_config(&config);
    else
        require_message(&err);
    check_model();
    mp_config_release(&config);
    mp_config_release(&config);
    return 0;
}
