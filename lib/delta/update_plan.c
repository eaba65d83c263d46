/* SPDX-License-Identifier: Apache-2.0 */
/* What a pack was made with, from its manifest. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/file.h"
#include "delta/update.h"
#include "pack/manifest.h"
#include "pack/pack.h"

/* The layers of the catalog that the pack has. */
static int find_layers(mp_update *update, bool **layers, mp_error *err)
{
    const mp_manifest *m = &update->pack.manifest;
    const mp_catalog *catalog = &update->catalog;
    size_t found = 0;

    *layers = mp_alloc_zeroed(catalog->num_layers, sizeof(bool));
    if (!*layers)
        return mp_fail_memory(err);
    for (size_t i = 0; i < catalog->num_layers; i++)
        if (found < m->num_layers && strcmp(catalog->layers[i].prefix, m->layers[found]) == 0) {
            (*layers)[i] = true;
            found++;
        }
    if (found < m->num_layers)
        return mp_fail(err, MP_ERR_INPUT, "%s: %s is not in \"%s\"", update->pack.dir,
                       m->layers[found], catalog->checkpoint.dir);
    return 0;
}

static int find_ranks(mp_update *update, bool **ranks, mp_error *err)
{
    const mp_manifest *m = &update->pack.manifest;

    if (m->num_ranks == m->ep_size)
        return 0;
    *ranks = mp_alloc_zeroed(m->ep_size, sizeof(bool));
    if (!*ranks)
        return mp_fail_memory(err);
    for (size_t r = 0; r < m->num_ranks; r++)
        (*ranks)[m->ranks[r].rank] = true;
    return 0;
}

/* A size of shards with which the files come out as they are: the largest that makes every file
 * but a rank's last end where it does. */
static uint64_t shard_size(const mp_pack *pack)
{
    uint64_t limit = INT64_MAX;

    for (size_t r = 0; r < pack->manifest.num_ranks; r++) {
        const mp_packed_rank *rank = &pack->manifest.ranks[r];
        const mp_checkpoint *ckpt = &pack->ranks[rank->rank];

        for (size_t f = 0; f + 1 < rank->num_files; f++) {
            const mp_packed_file *file = &rank->files[f];
            uint64_t sum = 0;

            for (size_t t = 0; t <= file->num_tensors; t++) {
                const char *name =
                    t < file->num_tensors ? file->tensors[t].name : file[1].tensors[0].name;
                const mp_tensor *tensor = mp_checkpoint_find(ckpt, name);

                sum += tensor ? tensor->bytes : 0;
            }
            if (sum > 0 && sum - 1 < limit)
                limit = sum - 1;
        }
    }
    return limit ? limit : 1;
}

int mp_update_plan(mp_update *update, const mp_update_options *options, mp_error *err)
{
    const mp_manifest *m = &update->pack.manifest;
    const mp_target *target = mp_target_find(m->target);
    bool routed = mp_manifest_passes(m, false), shared = mp_manifest_passes(m, true);

    if (!target)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: target \"%s\" is not known", update->pack.dir,
                       m->target);
    mp_role_set_text(m->dropped, update->parts->drop);
    char *sums = mp_path_join(update->pack.dir, MP_SUMS_NAME);
    if (!sums)
        return mp_fail_memory(err);
    bool summed = mp_path_exists(sums);
    free(sums);
    mp_repack_options repack = {
        .target = target,
        .ep = (uint32_t)m->ep_size,
        .placement = &update->pack.placement,
        .rows = MP_ROWS_MOE,
        .shared = m->shared,
        .requantize_shared = !shared,
        .nz = m->nz,
        .alphas = m->alphas,
        .sha256 = summed,
        .quantize = !routed,
        .quantize_to = m->target_scheme,
        .quant = {.rounding = routed && shared ? target->rounding : m->rounding,
                  .scale_rule = routed && shared ? MP_SCALE_CEIL : m->scale_rule,
                  .amax_floor = routed && shared ? 0 : (float)m->amax_floor,
                  .allow_nonfinite = options->allow_nonfinite},
        .max_shard_size = shard_size(&update->pack),
        .drop = m->dropped ? update->parts->drop : NULL,
        .command = m->command,
    };
    if (mp_manifest_compressed(m))
        repack.zstd = options->zstd ? options->zstd : MP_ZSTD_AUTO;
    bool *layers = NULL, *ranks = NULL;
    if (find_layers(update, &layers, err) != 0 || find_ranks(update, &ranks, err) != 0) {
        free(layers);
        free(ranks);
        return err->code;
    }
    return mp_repack_plan_of(&update->plan, &update->catalog, &repack, layers, ranks, err);
}
