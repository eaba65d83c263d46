/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a packed directory is what the engine wants. */
#include "engine/backend.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/digest.h"
#include "base/error.h"
#include "base/words.h"

/* What is compared, and what is found. */
typedef struct comparison {
    mp_pack_checks checks;
    mp_problems *mismatches;
} comparison;

static void expect_text(comparison *c, const char *what, const char *pack, const char *engine)
{
    mp_pack_check *check = &c->checks.items[c->checks.count++];

    *check = (mp_pack_check){.what = what, .ok = strcmp(pack, engine) == 0};
    snprintf(check->pack, sizeof check->pack, "%s", pack);
    snprintf(check->engine, sizeof check->engine, "%s", engine);
    if (!check->ok)
        mp_problem(c->mismatches, "%s: the pack has %s, the engine expects %s", what, pack, engine);
}

static void expect_number(comparison *c, const char *what, uint64_t pack, uint64_t engine)
{
    char packed[24], wanted[24];

    snprintf(packed, sizeof packed, "%" PRIu64, pack);
    snprintf(wanted, sizeof wanted, "%" PRIu64, engine);
    expect_text(c, what, packed, wanted);
}

/* MTP blocks that config.json names may be in a pack. */
static void expect_layers(comparison *c, uint64_t pack, const mp_backend_model *model)
{
    uint64_t most = model->num_layers + model->num_mtp_blocks;
    bool config = strcmp(model->source, "config.json") == 0;

    expect_number(c, "layers", pack,
                  config && pack > model->num_layers && pack <= most ? pack : model->num_layers);
}

/* One row serves all layers; repack writes it once for each. */
static int expand(const mp_placement *given, uint64_t layers, mp_placement *rows, mp_error *err)
{
    size_t row_bytes = given->num_physical * sizeof *given->map;

    *rows = *given;
    rows->layer_ids = NULL;
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

static int check_placement(comparison *c, const mp_placement *placement,
                           const mp_backend_pack *pack, mp_error *err)
{
    char digest[MP_DIGEST_TEXT];
    int rc;

    if (placement->layers != 1 && placement->layers != pack->num_layers) {
        mp_problem(c->mismatches,
                   "placement: the pack has %" PRIu64 " layer%s, the placement %u row%s",
                   pack->num_layers, mp_plural(pack->num_layers), placement->layers,
                   mp_plural(placement->layers));
        return 0;
    }
    rc = digest_placement(placement, pack, digest, err);
    if (rc == 0)
        expect_text(c, "placement", pack->placement_xxh3, digest);
    return rc;
}

int mp_backend_check_pack(const mp_backend *backend, const mp_backend_model *model,
                          const mp_backend_pack *pack, const mp_placement *placement,
                          mp_pack_checks *checks, mp_problems *mismatches, mp_error *err)
{
    comparison c = {.mismatches = mismatches};
    int rc;

    err = MP_NEVER_NULL(err);
    expect_text(&c, "target", pack->target,
                backend->target ? backend->target : "no packed experts");
    if (pack->alphas != MP_ALPHAS_SGL) /* only SGLang takes nvfp4 */
        expect_text(&c, "alphas", mp_alphas_name(pack->alphas), mp_alphas_name(MP_ALPHAS_SGL));
    expect_number(&c, "ep_size", pack->ep_size, backend->slots.ep);
    expect_number(&c, "num_physical", pack->num_physical, backend->slots.num_physical);
    expect_text(&c, "shared", mp_shared_mode_name(pack->shared),
                mp_shared_mode_name(backend->shared));
    expect_number(&c, "hidden_size", pack->hidden_size, model->hidden_size);
    expect_number(&c, "moe_intermediate_size", pack->moe_intermediate_size,
                  model->moe_intermediate_size);
    expect_number(&c, "num_experts", pack->num_experts, model->num_experts);
    expect_layers(&c, pack->num_layers, model);
    rc = placement ? check_placement(&c, placement, pack, err) : 0;
    if (checks)
        *checks = c.checks;
    return rc;
}
