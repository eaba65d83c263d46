/* SPDX-License-Identifier: Apache-2.0 */
/* The source checkpoint: whether it is the one that was packed, and its canonical rows.
 *
 * Two questions, answered in this order. Is it the checkpoint that the manifest names? Shards are
 * compared by name, size and the digest of their headers, which costs no reading of weights; where
 * one differs that is an error, since every byte would be wrong. Then, does the manifest tell the
 * truth about it? Sizes, family, schemes, what passed through and what did not, forms and
 * config.json are claims of the pack, and what is not so is a fault.
 *
 * The rules of quantization are taken from the manifest: they decide on bytes, and the source does
 * not know them. What a writer would refuse, such as weights that are not finite, is done here
 * without a word: it only matters what the bytes have to be.
 *
 * Opened by one thread; mp_source_side is called by all of them and only reads. */
#include "verify/source.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/words.h"
#include "checkpoint/complete.h"
#include "checkpoint/matrix.h"
#include "numeric/quantize.h"
#include "pack/manifest.h"

/* Bytes of weights that are looked at together: whole rows, or columns wide enough that their
 * piece of every row is worth a system call. */
#define ROWS_BYTES (1u << 20)
#define COLS_BYTES (4u << 20)

#define CONFIG_LIMIT (16u << 20)

/* ------------------------------------------------------------------------
 * Is it the source?
 */

static int compare_shard(const mp_source_shard *expected, const mp_shard *actual, mp_error *err)
{
    char hex[MP_DIGEST_TEXT];
    mp_digest digest;

    if (strcmp(actual->name, expected->name) != 0)
        return mp_fail(err, MP_ERR_INPUT, "shard %s, the manifest names %s", actual->name,
                       expected->name);
    if (actual->size != expected->size)
        return mp_fail(err, MP_ERR_INPUT, "%s: %" PRIu64 " byte%s, the manifest says %" PRIu64,
                       actual->name, actual->size, mp_plural(actual->size), expected->size);
    memcpy(digest.bytes, actual->header_xxh3, sizeof digest.bytes);
    if (strcmp(mp_digest_text(&digest, hex), expected->header_xxh3) != 0)
        return mp_fail(err, MP_ERR_INPUT, "%s: header xxh3 %s, the manifest says %s", actual->name,
                       hex, expected->header_xxh3);
    return 0;
}

static int compare_shards(const mp_manifest *m, const mp_checkpoint *ckpt, mp_error *err)
{
    for (size_t i = 0; i < m->num_shards && i < ckpt->num_shards; i++) {
        int rc = compare_shard(&m->shards[i], &ckpt->shards[i], err);
        if (rc != 0)
            return rc;
    }
    if (m->num_shards != ckpt->num_shards)
        return mp_fail(err, MP_ERR_INPUT, "%zu shard%s, the manifest names %zu", ckpt->num_shards,
                       mp_plural(ckpt->num_shards), m->num_shards);
    return 0;
}

/* ------------------------------------------------------------------------
 * Does the manifest tell the truth about it?
 */

/* Makes a fault of a number that the source has otherwise. */
static bool same_number(mp_check *check, const char *what, uint64_t manifest, uint64_t actual)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_EXACT, -1);

    if (manifest == actual)
        return true;
    mp_fault_add(&check->faults, &spot, "%s: %s %" PRIu64 ", the source has %" PRIu64,
                 MP_MANIFEST_NAME, what, manifest, actual);
    return false;
}

/* The same for a word. */
static bool same_text(mp_check *check, const char *what, const char *manifest, const char *actual)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_EXACT, -1);

    if (strcmp(manifest, actual) == 0)
        return true;
    mp_fault_add(&check->faults, &spot, "%s: %s \"%s\", the source has \"%s\"", MP_MANIFEST_NAME,
                 what, manifest, actual);
    return false;
}

static const mp_moe_layer *find_layer(const mp_catalog *catalog, const char *prefix)
{
    for (size_t i = 0; i < catalog->num_layers; i++)
        if (strcmp(catalog->layers[i].prefix, prefix) == 0)
            return &catalog->layers[i];
    return NULL;
}

/* Finds a layer of the pack in the source. */
static bool match_layer(mp_source *source, mp_check *check, size_t index)
{
    const mp_manifest *m = &check->manifest;
    const mp_moe_layer *layer = find_layer(&source->catalog, m->layers[index]);
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_EXACT, -1);

    spot.layer = (int64_t)index;
    source->layers[index] = layer;
    /* Ids and placements are checked against the manifest's number, so the source has to have
     * that. */
    if (layer && layer->num_experts == m->num_experts)
        return true;
    if (!layer)
        mp_fault_add(&check->faults, &spot, "the source has no such layer");
    else
        mp_fault_add(&check->faults, &spot, "%u experts in the source, the manifest says %" PRIu64,
                     layer->num_experts, m->num_experts);
    return false;
}

static const char *source_scheme_text(mp_scheme scheme)
{
    return scheme == MP_SCHEME_COUNT ? "mixed" : mp_scheme_name(scheme);
}

/* What the manifest has to say of experts that pass through, or whose conversion keeps all
 * weights but those of the blocks that it counts. */
static bool match_loss(mp_check *check, const char *what, bool shared, bool passes, bool keeps)
{
    const mp_manifest *m = &check->manifest;
    bool says = shared ? m->shared_lossless : m->lossless;
    /* A conversion that counts the blocks it had to requantize is lossless where it counted
     * none. */
    bool lossless = passes || (keeps && mp_manifest_requantized_blocks(m, shared) == 0);

    return same_text(check, what, says ? "lossless" : "requantized",
                     lossless ? "lossless" : "requantized") &&
           same_text(check, "errors", says && mp_manifest_passes(m, shared) ? "none" : "some",
                     passes ? "none" : "some");
}

/* The scheme of the layers that are packed, and whether they pass through. */
static bool match_quantization(const mp_source *source, mp_check *check)
{
    const mp_manifest *m = &check->manifest;
    const mp_target *target = check->shape.sets[MP_SET_SLOTS].target;
    mp_scheme scheme = source->layers[0]->storage.scheme;
    bool passes = true, keeps = true;

    for (size_t i = 0; i < m->num_layers; i++) {
        const mp_storage *storage = &source->layers[i]->storage;
        bool one = mp_passes_through(storage, target);

        passes &= one;
        keeps &= one || mp_requantize_counts(storage->scheme, target->scheme);
        if (source->layers[i]->storage.scheme != source->layers[0]->storage.scheme)
            scheme = MP_SCHEME_COUNT;
    }
    bool same = same_text(check, "source quantization", source_scheme_text(m->source_scheme),
                          source_scheme_text(scheme));
    return match_loss(check, "repack", false, passes, keeps) && same;
}

static bool match_layers(mp_source *source, mp_check *check)
{
    bool all = true;

    for (size_t i = 0; i < check->manifest.num_layers; i++)
        all &= match_layer(source, check, i);
    return all && match_quantization(source, check);
}

/* ------------------------------------------------------------------------
 * Shared experts
 */

/* Whether a side of shared experts passes through: where the target wants powers of two, only
 * reading its scales tells. */
static int side_passes(const mp_source *source, const mp_slot_set *set, size_t layer, mp_side side,
                       bool *passes, mp_error *err)
{
    uint32_t id = source->layers[layer]->num_experts;
    mp_side_source from;
    mp_canonical canonical;
    mp_expert view;

    int rc = mp_source_side(source, set, layer, id, side, &view, &from, err);
    if (rc != 0)
        return rc;
    *passes = mp_passes_through(from.storage, set->target);
    if (!*passes || !set->target->ue8m0)
        return 0;
    void *scratch = aligned_alloc(64, mp_round_up(mp_canonical_scratch(&from), 64));
    if (!scratch)
        return mp_fail_memory(err);
    mp_canonical_init(&canonical, &from, scratch);
    rc = mp_canonical_begin(&canonical, err);
    *passes = canonical.passes;
    free(scratch);
    return rc;
}

/* Whether every layer has shared experts, and whether they are as lossless as it says. Where
 * scales decide, more may have been allowed than was needed. */
static int match_shared(const mp_source *source, mp_check *check, bool *match, mp_error *err)
{
    const mp_manifest *m = &check->manifest;
    const mp_slot_set *set = &check->shape.sets[check->shape.num_sets - 1];
    bool all_pass = true, keeps = true;

    if (m->shared == MP_SHARED_NONE)
        return 0;
    for (size_t i = 0; i < m->num_layers; i++) {
        mp_spot spot = mp_spot_of_rank(MP_VERIFY_EXACT, -1);

        spot.layer = (int64_t)i;
        if (!source->layers[i]->has_shared) {
            mp_fault_add(&check->faults, &spot,
                         "shared experts are %s, the source has none in this layer",
                         mp_shared_mode_name(m->shared));
            *match = false;
            continue;
        }
        for (int side = 0; side < MP_SIDES; side++) {
            bool passes;

            int rc = side_passes(source, set, i, (mp_side)side, &passes, err);
            if (rc != 0)
                return rc;
            all_pass &= passes;
            keeps &= passes || mp_requantize_counts(source->layers[i]->shared_storage.scheme,
                                                    set->target->scheme);
        }
    }
    /* Where all scales happen to be powers of two, the pack was right to allow for others. */
    if (*match && !(all_pass && set->target->ue8m0))
        *match = match_loss(check, "repack of shared experts", true, all_pass, keeps);
    return 0;
}

/* ------------------------------------------------------------------------
 * The whole
 */

static bool match_model(const mp_source *source, mp_check *check)
{
    const mp_manifest *m = &check->manifest;
    const mp_catalog *c = &source->catalog;
    bool same = same_number(check, "hidden_size", m->hidden_size, c->hidden_size);

    same &= same_number(check, "moe_intermediate_size", m->moe_intermediate_size,
                        c->moe_intermediate_size);
    same &= same_number(check, "num_shared_experts", m->num_shared_experts, c->num_shared_experts);
    same &= same_number(check, "layers", m->model_layers, c->num_layers);
    same &= same_text(check, "family", m->family, c->family);
    return same;
}

/* config.json goes along as it is: it says what the router's weights are multiplied by. */
static int match_config(const mp_source *source, mp_check *check, mp_error *err)
{
    const mp_checkpoint *ckpt = &source->catalog.checkpoint;
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_EXACT, -1);
    char hex[MP_DIGEST_TEXT] = "", *text = NULL;
    mp_digest digest;
    uint64_t length;

    if (source->catalog.config.present) {
        char *path = mp_path_join(ckpt->dir, MP_CONFIG_NAME);
        int rc = path ? mp_read_file(path, CONFIG_LIMIT, &text, &length, err) : mp_fail_memory(err);

        free(path);
        if (rc != 0)
            return rc;
        mp_digest_of(text, length, &digest);
        mp_digest_text(&digest, hex);
        free(text);
    }
    if (strcmp(hex, check->manifest.config_xxh3) != 0)
        mp_fault_add(&check->faults, &spot, "%s: xxh3 \"%s\", the source has \"%s\"",
                     MP_CONFIG_NAME, check->manifest.config_xxh3, hex);
    return 0;
}

/* The rules that the manifest names. Refusing is for who writes; here it only matters what the
 * bytes have to be. */
static void take_rules(mp_source *source, const mp_manifest *m)
{
    source->quant = (mp_quant_options){
        .rounding = m->rounding,
        .scale_rule = m->scale_rule,
        .amax_floor = (float)m->amax_floor,
        .allow_nonfinite = true,
        .ue8m0 = true,
    };
}

/* Goes on to what has no meaning without the ones before only where they match. */
static int match_manifest(mp_source *source, mp_check *check, bool *match, mp_error *err)
{
    int rc = 0;

    take_rules(source, &check->manifest);
    *match = match_model(source, check) && match_layers(source, check);
    if (*match)
        rc = match_shared(source, check, match, err);
    if (rc == 0 && *match)
        rc = mp_forms_match(source, check, match, err);
    return rc == 0 ? match_config(source, check, err) : rc;
}

int mp_source_open(mp_source *source, mp_check *check, bool *usable, mp_error *err)
{
    *usable = false;
    int rc = mp_catalog_open(&source->catalog, check->options->source, check->context, err);
    if (rc != 0)
        return rc;
    rc = compare_shards(&check->manifest, &source->catalog.checkpoint, err);
    if (rc != 0)
        return mp_error_prefix(err, "\"%s\" is not the checkpoint that was packed",
                               check->options->source);
    /* A checkpoint may have several towers: the first layer says which one was packed. */
    if (check->manifest.num_layers > 0)
        rc = mp_catalog_choose(&source->catalog, check->manifest.layers[0], err);
    if (rc == 0)
        rc = mp_catalog_check(&source->catalog, err);
    if (rc != 0)
        return rc;
    source->layers = mp_alloc_zeroed(check->manifest.num_layers, sizeof *source->layers);
    if (!source->layers)
        return mp_fail_memory(err);
    mp_faults_add_part(&check->faults, -1, MP_VERIFY_EXACT);
    return match_manifest(source, check, usable, err);
}

void mp_source_release(mp_source *source)
{
    mp_catalog_release(&source->catalog);
    free(source->layers);
    *source = (mp_source){0};
}

int mp_source_side(const mp_source *source, const mp_slot_set *set, size_t layer, uint32_t id,
                   mp_side side, mp_expert *view, mp_side_source *from, mp_error *err)
{
    const mp_moe_layer *moe = source->layers[layer];
    const mp_storage *storage = &moe->shared_storage;
    bool wide = set->target->tiling(&set->dims, side).kind == MP_TILES_COLS;
    int rc = 0;

    /* One slot for all shared experts together: nothing to cut out. */
    if (set->target->single)
        *view = moe->shared;
    else
        rc = mp_layer_expert(&source->catalog, moe, id, view, &storage, err);
    if (rc != 0)
        return rc;
    /* Stored transposed, a tile of rows is a strip of columns: take more of each. */
    wide |= mp_fusion_is_transposed(storage->fusion);
    *from = (mp_side_source){
        .catalog = &source->catalog,
        .storage = storage,
        .matrix = &view->matrix[side == MP_L1 ? MP_GATE : MP_DOWN],
        .target = set->target,
        .dims = set->dims,
        .side = side,
        .tile_bytes = wide ? COLS_BYTES : ROWS_BYTES,
        .quant = &source->quant,
    };
    return 0;
}
