/* SPDX-License-Identifier: Apache-2.0 */
/* The model's sizes and format: from its tensors, or from config.json alone. */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/format.h"

#define CONFIG_NAME  "config.json"
#define CONFIG_LIMIT (16u << 20)

/* Beyond these no size is a model's, and products of them might not fit 64 bits. */
#define SIZE_MAX_SANE   (UINT64_C(1) << 24)
#define LAYERS_MAX_SANE (UINT64_C(1) << 16)

/* ------------------------------------------------------------------------
 * config.json
 */

static bool absent(uint64_t number)
{
    return number == MP_CONFIG_ABSENT;
}

/* MTP blocks, which config.json does not count among its layers. */
static uint64_t mtp_blocks(const json_t *root)
{
    static const char *const keys[] = {"num_nextn_predict_layers", "num_mtp_modules",
                                       "n_mtp_layers"};

    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        json_int_t blocks = json_integer_value(mp_config_find(root, keys[i]));

        if (blocks > 0)
            return (uint64_t)blocks;
    }
    return 0;
}

static uint64_t moe_layers(const mp_config *config)
{
    uint64_t layers = 0, all = config->num_hidden_layers;

    for (uint64_t i = 0; i < all && all <= LAYERS_MAX_SANE; i++)
        layers += mp_config_is_moe_layer(config, i);
    return absent(all) || all > LAYERS_MAX_SANE ? all : layers;
}

static void take_config(mp_backend_model *model, const mp_config *config, const json_t *root)
{
    model->source = CONFIG_NAME;
    model->hidden_size = absent(config->latent_size) ? config->hidden_size : config->latent_size;
    model->moe_intermediate_size = config->moe_intermediate_size;
    model->num_experts = config->num_experts;
    model->num_shared_experts = absent(config->num_shared_experts) ? 0 : config->num_shared_experts;
    model->experts_per_token = absent(config->experts_per_token) ? 0 : config->experts_per_token;
    model->num_layers = moe_layers(config);
    if (model->num_layers <= LAYERS_MAX_SANE)
        model->num_layers += mtp_blocks(root);
    mp_format_of_config(root, model);
}

static int load_config(mp_backend_model *model, const char *dir, mp_error *err)
{
    char *path = mp_path_join(dir, CONFIG_NAME);
    mp_config config = {0};
    json_t *root = NULL;
    int rc = path ? mp_config_load(&config, dir, err) : mp_fail_memory(err);

    if (rc == 0 && !config.present)
        rc = mp_fail(err, MP_ERR_IO, "cannot open \"%s\": %s", path, strerror(ENOENT));
    if (rc == 0)
        rc = mp_json_load_python(path, CONFIG_LIMIT, &root, err);
    if (rc == 0)
        take_config(model, &config, root);
    json_decref(root);
    mp_config_release(&config);
    free(path);
    return rc;
}

/* ------------------------------------------------------------------------
 * Tensors
 */

static bool is_quantized(mp_scheme scheme)
{
    return scheme != MP_SCHEME_BF16 && scheme != MP_SCHEME_F16 && scheme != MP_SCHEME_F32;
}

static int take_catalog(mp_backend_model *model, const mp_catalog *catalog, mp_error *err)
{
    int rc = mp_catalog_check(catalog, err);

    if (rc != 0)
        return rc;
    model->source = "checkpoint";
    model->hidden_size = catalog->hidden_size;
    model->moe_intermediate_size = catalog->moe_intermediate_size;
    model->num_experts = catalog->num_experts;
    model->num_shared_experts = catalog->num_shared_experts;
    model->num_layers = catalog->num_layers;
    model->has_scheme = true;
    model->scheme = catalog->layers[0].storage.scheme;
    model->scheme_from = "tensors";
    model->quant_config |= is_quantized(model->scheme);
    return 0;
}

static int load_catalog(mp_backend_model *model, const char *dir, const mp_context *context,
                        mp_error *err)
{
    mp_catalog catalog = {0};
    int rc = mp_catalog_open(&catalog, dir, context, err);

    if (rc == 0 && catalog.config.present)
        rc = load_config(model, dir, err);
    if (rc == 0)
        rc = take_catalog(model, &catalog, err);
    mp_catalog_release(&catalog);
    return rc;
}

static bool ends_with(const char *name, const char *end)
{
    size_t n = strlen(name), m = strlen(end);

    return n >= m && strcmp(name + n - m, end) == 0;
}

static int has_tensors(const char *path, bool *has, mp_error *err)
{
    const struct dirent *entry;
    DIR *dir = opendir(path);

    *has = false;
    if (!dir)
        return mp_fail_errno(err, errno, "cannot open \"%s\"", path);
    while (!*has && (entry = readdir(dir)))
        *has = ends_with(entry->d_name, ".safetensors") ||
               ends_with(entry->d_name, ".safetensors.zst") ||
               ends_with(entry->d_name, ".safetensors.index.json");
    closedir(dir);
    return 0;
}

/* ------------------------------------------------------------------------
 * Both
 */

static int check_size(const mp_backend_model *model, const char *what, uint64_t size, uint64_t max,
                      mp_error *err)
{
    if (absent(size))
        return mp_fail(err, MP_ERR_INPUT, "%s: no %s", model->source, what);
    if (size == 0 || size > max)
        return mp_fail(err, MP_ERR_INPUT, "%s: %s is %llu, expected 1 to %llu", model->source, what,
                       (unsigned long long)size, (unsigned long long)max);
    return 0;
}

static int check_sizes(const mp_backend_model *m, mp_error *err)
{
    if (check_size(m, "hidden size", m->hidden_size, SIZE_MAX_SANE, err) != 0 ||
        check_size(m, "expert intermediate size", m->moe_intermediate_size, SIZE_MAX_SANE, err) !=
            0 ||
        check_size(m, "number of experts", m->num_experts, SIZE_MAX_SANE, err) != 0 ||
        check_size(m, "number of MoE layers", m->num_layers, LAYERS_MAX_SANE, err) != 0)
        return MP_ERR_INPUT;
    if (m->num_shared_experts > SIZE_MAX_SANE || m->experts_per_token > m->num_experts)
        return mp_fail(err, MP_ERR_INPUT, "%s: %llu experts, %llu of them a token, %llu shared",
                       m->source, (unsigned long long)m->num_experts,
                       (unsigned long long)m->experts_per_token,
                       (unsigned long long)m->num_shared_experts);
    return 0;
}

/* The directory of a config.json. */
static int open_file(mp_backend_model *model, const char *path, mp_error *err)
{
    const char *base = mp_path_base(path);
    char *dir;
    int rc;

    if (strcmp(base, CONFIG_NAME) != 0)
        return mp_fail(err, MP_ERR_USAGE, "\"%s\" is neither a directory nor a config.json", path);
    dir = base == path ? strdup(".") : strndup(path, (size_t)(base - path));
    rc = dir ? load_config(model, dir, err) : mp_fail_memory(err);
    free(dir);
    return rc;
}

int mp_backend_model_open(mp_backend_model *model, const char *path, const mp_context *context,
                          mp_error *err)
{
    err = MP_NEVER_NULL(err);
    struct stat st;
    bool tensors;
    int rc;

    memset(model, 0, sizeof *model);
    if (stat(path, &st) != 0)
        return mp_fail_errno(err, errno, "cannot open \"%s\"", path);
    if (!S_ISDIR(st.st_mode)) {
        rc = open_file(model, path, err);
    } else {
        rc = has_tensors(path, &tensors, err);
        if (rc == 0)
            rc = tensors ? load_catalog(model, path, context, err) : load_config(model, path, err);
    }
    return rc ? rc : check_sizes(model, err);
}

void mp_backend_model_quantize(mp_backend_model *model, mp_scheme scheme)
{
    model->has_scheme = true;
    model->scheme = scheme;
    model->scheme_from = "--quantize";
    model->quant_config = is_quantized(scheme);
    model->quant_method[0] = '\0';
}
