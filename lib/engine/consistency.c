/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a packed directory is what the engine wants. */
#include <moepack/backend.h>

#include <stdlib.h>
#include <string.h>

#include "base/digest.h"
#include "base/error.h"

static void expect_text(const char *what, const char *pack, const char *engine,
                        mp_problems *mismatches)
{
    if (strcmp(pack, engine) != 0)
        mp_problem(mismatches, "%s: the pack has %s, the engine wants %s", what, pack, engine);
}

static void expect_number(const char *what, uint64_t pack, uint64_t engine, mp_problems *mismatches)
{
    if (pack != engine)
        mp_problem(mismatches, "%s: the pack has %llu, the engine wants %llu", what,
                   (unsigned long long)pack, (unsigned long long)engine);
}

/* One row serves all layers; repack writes it once for each. */
static int expand(const mp_placement *given, uint64_t layers, mp_placement *rows, mp_error *err)
{
    size_t row_bytes = given->num_physical * sizeof *given->map;

    *rows = *given;
    rows->first_layer = 0;
    rows->layers = (uint32_t)layers;
    rows->map = mp_alloc(layers, row_bytes);
    if (!rows->map)
        return mp_fail_memory(err);
    for (uint32_t i = 0; i < layers; i++)
        memcpy(rows->map + (size_t)i * given->num_physical, mp_placement_row(given, i), row_bytes);
    return 0;
}

/* The digest of placement.json as repack would write it. */
static int digest_placement(const mp_placement *given, const mp_backend_pack *pack,
                            char text[MP_DIGEST_TEXT], mp_error *err)
{
    mp_placement rows;
    mp_digest digest;
    char *json = NULL;
    int rc = expand(given, pack->num_layers, &rows, err);

    if (rc != 0)
        return rc;
    rc = mp_placement_write(&rows, MP_PLACEMENT_SGLANG, (uint32_t)pack->ep_size, &json, err);
    if (rc == 0) {
        mp_digest_of(json, strlen(json), &digest);
        mp_digest_text(&digest, text);
    }
    free(json);
    mp_placement_release(&rows);
    return rc;
}

static int check_placement(const mp_placement *placement, const mp_backend_pack *pack,
                           mp_problems *mismatches, mp_error *err)
{
    char digest[MP_DIGEST_TEXT];
    int rc;

    if (placement->layers != 1 && placement->layers != pack->num_layers) {
        mp_problem(mismatches, "placement: the pack has %llu layers, the placement %u rows",
                   (unsigned long long)pack->num_layers, placement->layers);
        return 0;
    }
    rc = digest_placement(placement, pack, digest, err);
    if (rc == 0)
        expect_text("placement", pack->placement_xxh3, digest, mismatches);
    return rc;
}

int mp_backend_check_pack(const mp_backend *backend, const mp_backend_model *model,
                          const mp_backend_pack *pack, const mp_placement *placement,
                          mp_problems *mismatches, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    expect_text("target", pack->target, backend->target ? backend->target : "no packed experts",
                mismatches);
    expect_number("ep_size", pack->ep_size, backend->slots.ep, mismatches);
    expect_number("num_physical", pack->num_physical, backend->slots.num_physical, mismatches);
    expect_text("shared", mp_shared_mode_name(pack->shared), mp_shared_mode_name(backend->shared),
                mismatches);
    expect_number("hidden_size", pack->hidden_size, model->hidden_size, mismatches);
    expect_number("moe_intermediate_size", pack->moe_intermediate_size,
                  model->moe_intermediate_size, mismatches);
    expect_number("num_experts", pack->num_experts, model->num_experts, mismatches);
    return placement ? check_placement(placement, pack, mismatches, err) : 0;
}
