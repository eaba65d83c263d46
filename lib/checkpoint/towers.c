/* SPDX-License-Identifier: Apache-2.0 */
/* Checkpoints that hold more than one model with experts, as Qwen3-Omni has a thinker and a talker:
 * each is a catalog of its own until one of them is chosen.
 *
 *     thinker.model.layers.0 ...    config.json: thinker_config
 *     talker.model.layers.0 ...                  talker_config
 *
 * Layers are sorted by tower, so each tower is a run of them. It is completed through a view, a
 * catalog with only its layers and its own config, whose findings then go to the real catalog.
 * Choosing a tower frees the layers of the others and leaves an ordinary catalog, so later code
 * knows nothing of towers. Until then the catalog has the sizes of the first tower, for commands
 * that only look. One thread. */
#include "checkpoint/towers.h"

#include "base/error.h"
#include "base/select.h"
#include "checkpoint/complete.h"
#include "checkpoint/config.h"
#include "checkpoint/fused.h"

#include <stdlib.h>
#include <string.h>

/* The tower whose name is the first part of a layer's prefix; as many as there are where none is.
 */
static unsigned tower_of(const mp_config *config, const char *prefix)
{
    unsigned t = 0;

    for (; t < config->num_towers; t++) {
        size_t n = strlen(config->towers[t]);

        if (strncmp(prefix, config->towers[t], n) == 0 && prefix[n] == '.')
            break;
    }
    return t;
}

/* Problems of a tower are those of the catalog. */
static void take_problems(mp_problems *to, mp_problems *from)
{
    for (uint64_t i = 0; i < from->count; i++)
        mp_problem(to, "%s", i < MP_PROBLEMS_KEPT && from->text[i] ? from->text[i] : "?");
    mp_problems_release(from);
}

/* Fills a tower of `count` layers from `first` on. */
static int complete_tower(mp_catalog *catalog, unsigned which, size_t first, size_t count,
                          mp_error *err)
{
    mp_tower *tower = &catalog->towers[catalog->num_towers++];
    mp_catalog view = *catalog;

    *tower = (mp_tower){.name = catalog->config.towers[which], .first = first, .count = count};
    view.layers = &catalog->layers[first];
    view.num_layers = count;
    view.problems = view.notes = view.promises = (mp_problems){0};
    int rc = mp_config_load_tower(&tower->config, catalog->checkpoint.dir, tower->name, err);
    view.config = tower->config;
    for (size_t i = 0; rc == 0 && i < count; i++)
        rc = mp_layer_unfuse(&view, &view.layers[i], err);
    if (rc == 0)
        rc = mp_catalog_complete(&view, err);
    tower->hidden_size = view.hidden_size;
    tower->moe_intermediate_size = view.moe_intermediate_size;
    tower->num_experts = view.num_experts;
    tower->num_shared_experts = view.num_shared_experts;
    take_problems(&catalog->problems, &view.problems);
    take_problems(&catalog->notes, &view.notes);
    return rc;
}

/* Makes the tower what the catalog is of. */
static void take_tower(mp_catalog *catalog, const mp_tower *tower)
{
    catalog->hidden_size = tower->hidden_size;
    catalog->moe_intermediate_size = tower->moe_intermediate_size;
    catalog->num_experts = tower->num_experts;
    catalog->num_shared_experts = tower->num_shared_experts;
}

bool mp_catalog_has_towers(const mp_catalog *catalog)
{
    for (size_t i = 0; i < catalog->num_layers; i++)
        if (tower_of(&catalog->config, catalog->layers[i].prefix) == catalog->config.num_towers)
            return false;
    return catalog->config.num_towers > 0;
}

int mp_catalog_complete_towers(mp_catalog *catalog, mp_error *err)
{
    const mp_config *config = &catalog->config;
    size_t first = 0, next;
    int rc = 0;

    for (; rc == 0 && first < catalog->num_layers; first = next) {
        unsigned which = tower_of(config, catalog->layers[first].prefix);

        for (next = first + 1;
             next < catalog->num_layers && tower_of(config, catalog->layers[next].prefix) == which;)
            next++;
        rc = complete_tower(catalog, which, first, next - first, err);
    }
    if (rc == 0)
        take_tower(catalog, &catalog->towers[0]);
    return rc;
}

/* Leaves the layers of one tower, and its config. */
static void keep_tower(mp_catalog *catalog, unsigned which)
{
    mp_tower *tower = &catalog->towers[which];

    for (size_t i = 0; i < catalog->num_layers; i++) {
        if (i >= tower->first && i < tower->first + tower->count)
            continue;
        free(catalog->layers[i].prefix);
        free(catalog->layers[i].naming);
        free(catalog->layers[i].experts);
    }
    memmove(catalog->layers, &catalog->layers[tower->first],
            tower->count * sizeof *catalog->layers);
    catalog->num_layers = tower->count;
    take_tower(catalog, tower);
    for (unsigned t = 0; t < catalog->num_towers; t++)
        if (t != which)
            mp_config_release(&catalog->towers[t].config);
    mp_config_release(&catalog->config);
    catalog->config = tower->config;
    catalog->num_towers = 0;
}

int mp_catalog_choose(mp_catalog *catalog, const char *layers, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    const char **prefixes = mp_alloc(catalog->num_layers, sizeof *prefixes);
    bool *selected = mp_alloc_zeroed(catalog->num_layers, sizeof *selected);
    unsigned chosen = 0, towers = 0;
    int rc = prefixes && selected ? 0 : mp_fail_memory(err);

    for (size_t i = 0; rc == 0 && i < catalog->num_layers; i++)
        prefixes[i] = catalog->layers[i].prefix;
    if (rc == 0 && catalog->num_towers > 0)
        rc = mp_select_layers(layers, prefixes, catalog->num_layers, selected, err);
    for (unsigned t = 0; rc == 0 && t < catalog->num_towers; t++) {
        const mp_tower *tower = &catalog->towers[t];
        bool some = false;

        for (size_t i = tower->first; i < tower->first + tower->count; i++)
            some |= selected[i];
        chosen = some ? t : chosen;
        towers += some;
    }
    if (rc == 0 && towers > 1)
        rc = mp_fail(err, MP_ERR_USAGE,
                     "%s and %s are separate models: name layers of one, as --layers "
                     "%s",
                     catalog->towers[0].name, catalog->towers[1].name, catalog->layers[0].prefix);
    else if (rc == 0 && towers == 1)
        keep_tower(catalog, chosen);
    free(prefixes);
    free(selected);
    return rc;
}
