/* SPDX-License-Identifier: Apache-2.0 */
/* What a path is: a packed directory, a snapshot, a model with experts, or tensors. */
#include "diff/diff.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "checkpoint/config.h"
#include "checkpoint/names.h"
#include "diff/diff_snapshot.h"
#include "pack/pack.h"

static bool is_directory(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* Whether any tensor is named like one of an expert. */
static bool has_experts(const mp_checkpoint *ckpt)
{
    for (size_t i = 0; i < ckpt->num_tensors; i++) {
        mp_expert_name parts;

        mp_expert_name_parse(ckpt->tensors[i].name, &parts);
        if (parts.kind != MP_NAME_OTHER)
            return true;
    }
    return false;
}

/* Tensors, of which `why` says what keeps their experts from being found. */
static int open_tensors(diff_side *side, const char *path, const char *why,
                        const mp_context *context, mp_error *err)
{
    int rc = mp_checkpoint_open(&side->catalog.checkpoint, path, context, err);

    if (rc == 0 && side->whole)
        rc = mp_config_load(&side->catalog.config, path, err);
    if (rc == 0 && has_experts(&side->catalog.checkpoint)) {
        side->unread = mp_format("%s", why);
        if (!side->unread)
            rc = mp_fail_memory(err);
    }
    return rc;
}

static int open_checkpoint(diff_side *side, const char *path, const mp_context *context,
                           mp_error *err)
{
    mp_error why = {0};
    int rc = mp_catalog_open(&side->catalog, path, context, &why);

    if (rc == 0)
        rc = mp_catalog_check_sound(&side->catalog, &why);
    side->whole = rc == 0 || is_directory(path);
    if (rc == 0) {
        side->kind = DIFF_MODEL;
        return 0;
    }
    if (rc != MP_ERR_INPUT && rc != MP_ERR_UNSUPPORTED)
        return mp_fail(err, (mp_code)rc, "%s", why.message);
    mp_catalog_release(&side->catalog);
    return open_tensors(side, path, why.message, context, err);
}

int mp_diff_side_open(diff_side *side, const char *path, const mp_context *context, mp_error *err)
{
    mp_snapshot_kind kind = MP_SNAPSHOT_NONE;
    int rc = 0;

    *side = (diff_side){.path = path, .kind = DIFF_TENSORS};
    if (is_directory(path))
        rc = mp_snapshot_find(path, &kind, err);
    if (rc != 0) {
        return rc;
    } else if (is_directory(path) && mp_is_packed(path)) {
        side->kind = DIFF_PACK;
        side->whole = true;
        rc = mp_pack_load(&side->pack, path, NULL, context, err);
    } else if (kind != MP_SNAPSHOT_NONE) {
        side->kind = DIFF_SNAPSHOT;
        side->whole = true;
        rc = mp_diff_snapshot_open(side, kind, context, err);
    } else {
        rc = open_checkpoint(side, path, context, err);
    }
    return rc == 0 ? 0 : mp_error_prefix(err, "%s", path);
}

void mp_diff_side_release(diff_side *side)
{
    if (side->snapshot)
        mp_diff_snapshot_release(side);
    mp_pack_unload(&side->pack);
    mp_catalog_release(&side->catalog);
    free(side->unread);
    *side = (diff_side){0};
}

size_t mp_diff_num_layers(const diff_side *side)
{
    if (side->kind == DIFF_SNAPSHOT)
        return mp_diff_snapshot_num_layers(side);
    return side->kind == DIFF_PACK ? side->pack.manifest.num_layers : side->catalog.num_layers;
}

/* Number and kind of a packed layer, by the rule for the names of checkpoints. */
static int parse_prefix(diff_layer *layer, mp_error *err)
{
    char *name = mp_format("%s.mlp.experts.0.gate_proj.weight", layer->prefix);
    mp_expert_name parts;

    if (!name)
        return mp_fail_memory(err);
    mp_expert_name_parse(name, &parts);
    free(name);
    if (parts.kind != MP_NAME_ROUTED)
        return mp_fail(err, MP_ERR_INPUT, "%s: \"%s\" is not a layer", MP_MANIFEST_NAME,
                       layer->prefix);
    layer->number = parts.layer;
    layer->mtp = parts.mtp;
    return 0;
}

int mp_diff_layer_at(const diff_side *side, size_t index, diff_layer *layer, mp_error *err)
{
    if (side->kind == DIFF_SNAPSHOT) {
        *layer = mp_diff_snapshot_layer(side, index);
        return 0;
    }
    if (side->kind == DIFF_PACK) {
        *layer = (diff_layer){.prefix = side->pack.manifest.layers[index],
                              .num_experts = side->pack.shape.slots.num_logical};
        return parse_prefix(layer, err);
    }
    const mp_moe_layer *moe = &side->catalog.layers[index];

    *layer = (diff_layer){moe->prefix, moe->number, moe->mtp, moe->num_experts};
    return 0;
}
