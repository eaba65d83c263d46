/* SPDX-License-Identifier: Apache-2.0 */
/* config.json of what a pack becomes: as it was, or saying what requantized experts are now. */
#include "pack/pack.h"
#include "write/unpack.h"

#include "base/error.h"
#include "base/file.h"
#include "checkpoint/config_rewrite.h"
#include "checkpoint/families.h"
#include "pack/manifest.h"
#include "run/sidecar.h"

#include <stdlib.h>
#include <string.h>

static int load_config(mp_unpack_plan *plan, mp_error *err)
{
    const mp_manifest *m = &plan->pack.manifest;
    uint64_t length;

    if (!m->config_xxh3[0])
        return 0;
    return mp_pack_text(plan->pack.dir, MP_CONFIG_NAME, m->config_xxh3, &plan->source->config,
                        &length, err);
}

/* The usual convention of the experts of a form, as its names begin: "ffn.experts...". */
static const mp_convention *convention_of(const mp_form *form, mp_scheme scheme)
{
    const char *name = form->tensors[0].name;
    const mp_naming *naming = mp_naming_of_block(name, strcspn(name, "."));

    return naming ? mp_convention_usual(scheme, naming) : NULL;
}

/* What modules a form's weights are in a layer: all routed experts are one. Adds to a list with
 * room for three more. */
static bool add_modules(const mp_unpack_layer *layer, const mp_form *form, char **list,
                        size_t *count)
{
    for (size_t t = 0; t < form->num_tensors; t++) {
        const char *name = form->tensors[t].name, *end = strstr(name, ".{}");

        if (form->tensors[t].role != MP_ROLE_WEIGHT)
            continue;
        if (!end)
            end = strrchr(name, '.');
        if (!end)
            end = name + strlen(name);
        list[*count] = mp_format("%s.%.*s", layer->prefix, (int)(end - name), name);
        if (!list[*count])
            return false;
        ++*count;
        if (strstr(name, ".{}"))
            return true;
    }
    return true;
}

/* Says in source->config that the routed experts, or the shared ones, are in another scheme. */
static int change_config(mp_unpack_plan *plan, bool shared, mp_error *err)
{
    struct mp_unpack_source *source = plan->source;
    const mp_unpack_form *first = shared ? &source->layers->shared : &source->layers->routed;
    const mp_target *target = first->set->target;
    char **modules = mp_alloc(source->num_layers, MP_PROJECTIONS * sizeof *modules);
    mp_config_change change = {
        .to = convention_of(first->form, target->scheme),
        .keeps = strstr(source->config, "\"quantization_config\"") != NULL,
        .ue8m0 = target->ue8m0,
        .experts = (const char *const *)modules,
    };
    char *text = NULL;
    int rc = modules ? 0 : mp_fail_memory(err);

    if (rc == 0 && !change.to)
        rc = mp_fail(err, MP_ERR_INPUT, "%s: %s: names of no known style", MP_MANIFEST_NAME,
                     first->form->tensors[0].name);
    for (size_t l = 0; rc == 0 && l < source->num_layers; l++) {
        const mp_unpack_layer *layer = &source->layers[l];

        if (!add_modules(layer, shared ? layer->shared.form : layer->routed.form, modules,
                         &change.num_experts))
            rc = mp_fail_memory(err);
    }
    if (rc == 0)
        rc = mp_config_requantized(source->config, &change, &text, &plan->warnings, err);
    if (rc == 0) {
        free(source->config);
        source->config = text;
    }
    if (rc == 0 && !source->hf_quant_config)
        rc = mp_hf_quant_config(&change, &source->hf_quant_config, err);
    for (size_t i = 0; i < change.num_experts; i++)
        free(modules[i]);
    free(modules);
    return rc;
}

int mp_unpack_config(mp_unpack_plan *plan, mp_error *err)
{
    const mp_manifest *m = &plan->pack.manifest;
    int rc = load_config(plan, err);

    if (rc == 0 && plan->source->config && m->shared_form && !mp_manifest_passes(m, true))
        rc = change_config(plan, true, err);
    if (rc == 0 && plan->source->config && !mp_manifest_passes(m, false))
        rc = change_config(plan, false, err);
    return rc;
}
