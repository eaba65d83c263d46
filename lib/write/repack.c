/* SPDX-License-Identifier: Apache-2.0 */
/* Repacking as a job: the terms of a plan, the order of its units, and when it is done. */
#include "write/repack.h"

#include "base/error.h"
#include "checkpoint/shard.h"
#include "run/sidecar.h"
#include "write/unit.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static int print_terms(const void *user, FILE *f, mp_error *err)
{
    const mp_plan *plan = user;
    const mp_repack_options *o = &plan->options;
    const mp_placement *placement = &plan->placement;
    mp_hex_digest text;

    fprintf(f, "target %s/%u\nnz %d\nep %u\nshared %s\n", o->target->name, o->target->version,
            o->nz, o->ep, mp_shared_mode_name(o->shared));
    fprintf(f, "layers %s\n", mp_selection_term(o->layers, plan->catalog->num_layers, text));
    fprintf(f, "ranks %s\n", mp_selection_term(o->ranks, o->ep, text));
    mp_hex_digest_of(placement->map,
                     (size_t)placement->layers * placement->num_physical * sizeof *placement->map,
                     text);
    fprintf(f, "placement %u %s\n", placement->num_physical, text);
    fprintf(f, "max-shard-size %" PRIu64 "\n", o->max_shard_size);
    if (o->drop)
        fprintf(f, "drop %s\n", o->drop);
    fprintf(f,
            "quantize %s rounding %d scale-rule %d amax-floor %a allow-nonfinite %d "
            "requantize-shared %d\n",
            o->quantize ? mp_scheme_name(o->quantize_to) : "no", (int)o->quant.rounding,
            (int)o->quant.scale_rule, (double)o->quant.amax_floor, o->quant.allow_nonfinite,
            o->requantize_shared);
    return mp_source_terms(&plan->catalog->checkpoint, f, err);
}

/* ------------------------------------------------------------------------
 * Units
 */

static uint64_t unit_of(const mp_plan_layer *layer, uint32_t expert, int side)
{
    return layer->first_unit + (uint64_t)expert * MP_SIDES + (uint64_t)side;
}

/* Neighbours are on different ranks as far as can be: threads then write to different files,
 * which do not wait for each other. An expert is done once, when its first copy comes up. */
static size_t list_units(const void *user, uint32_t stage, uint64_t *units)
{
    const mp_plan *plan = user;
    const mp_plan_layer *layer = &plan->layers[stage];
    const int32_t *row = mp_placement_row(&plan->placement, stage);
    uint32_t per_rank = mp_slots_routed_per_rank(&plan->shape.slots), copies;
    size_t count = 0;

    for (int side = 0; side < MP_SIDES; side++) {
        for (uint32_t slot = 0; slot < per_rank; slot++) {
            for (uint32_t rank = 0; rank < plan->options.ep; rank++) {
                uint32_t id = (uint32_t)row[rank * per_rank + slot];
                const mp_place *first = mp_places_of(&layer->places, id, &copies);

                if (copies > 0 && first->rank == rank && first->slot == slot)
                    units[count++] = unit_of(layer, id, side);
            }
        }
    }
    for (uint32_t id = layer->source->num_experts; id < plan->shape.num_ids; id++)
        for (int side = 0; side < MP_SIDES; side++)
            if (mp_places_of(&layer->places, id, &copies) && copies > 0)
                units[count++] = unit_of(layer, id, side);
    return count;
}

static uint64_t unit_bytes(const void *plan, uint64_t index)
{
    mp_unit unit = mp_plan_unit(plan, index);

    return mp_unit_bytes_written(plan, &unit);
}

static int run_unit(const void *plan, uint64_t index, mp_outputs *outputs, void *scratch,
                    mp_quant_stats *stats, mp_error *err)
{
    mp_unit unit = mp_plan_unit(plan, index);

    return mp_unit_run(plan, &unit, outputs, scratch, stats, err);
}

/* ------------------------------------------------------------------------
 * Done already
 */

static bool same_shards(const mp_manifest *m, const mp_checkpoint *ckpt)
{
    if (m->num_shards != ckpt->num_shards)
        return false;
    for (size_t i = 0; i < ckpt->num_shards; i++) {
        const mp_shard *shard = &ckpt->shards[i];
        mp_hex_digest hex;

        mp_shard_hex(shard, hex);
        if (strcmp(m->shards[i].name, shard->name) != 0 || m->shards[i].size != shard->size ||
            strcmp(m->shards[i].header_xxh3, hex) != 0)
            return false;
    }
    return true;
}

/* Files by their plain names; sizes tell plain ones apart further. */
static bool same_files(const mp_manifest *m, const mp_work *work)
{
    size_t number = 0;

    for (size_t r = 0; r < m->num_ranks; r++)
        for (size_t f = 0; f < m->ranks[r].num_files; f++, number++) {
            const mp_packed_file *file = &m->ranks[r].files[f];
            char dir[MP_RANK_NAME_MAX];
            size_t length = strlen(mp_rank_name(m->ranks[r].rank, dir));

            if (number == work->num_files)
                return false;
            const mp_out_file *planned = &work->files[number];
            if (strncmp(planned->path, dir, length) != 0 || planned->path[length] != '/' ||
                !mp_shard_same_name(planned->path + length + 1, file->name) ||
                (!mp_shard_name_compressed(file->name) && file->size != planned->bytes))
                return false;
        }
    return number == work->num_files;
}

/* Whether a finished pack is what the plan would write, but for its source and placement: by all
 * that decides about bytes and that the manifest says. How the command was spelled does not. */
static bool same_terms(const mp_manifest *m, const mp_plan *plan)
{
    const mp_repack_options *o = &plan->options;
    const mp_quant_options *quant = &o->quant;
    bool ruled = !mp_manifest_passes(m, false) || !mp_manifest_passes(m, true);

    if (strcmp(m->target, o->target->name) != 0 || m->target_version != o->target->version ||
        m->nz != o->nz || m->target_scheme != o->target->scheme || m->ep_size != o->ep ||
        m->num_physical != plan->shape.slots.num_physical || m->shared != o->shared ||
        m->dropped != plan->drop || m->num_layers != plan->num_layers)
        return false;
    for (size_t i = 0; i < m->num_layers; i++)
        if (strcmp(m->layers[i], plan->layers[i].source->prefix) != 0)
            return false;
    if (ruled && (m->rounding != quant->rounding || m->scale_rule != quant->scale_rule ||
                  m->amax_floor != (double)quant->amax_floor))
        return false;
    return same_files(m, &plan->work);
}

int mp_repack_placement(const mp_plan *plan, char **text, mp_error *err)
{
    return mp_placement_write(&plan->placement, MP_PLACEMENT_SGLANG, plan->options.ep, text, err);
}

static int check_done(const void *user, const char *out, mp_error *err)
{
    const mp_plan *plan = user;
    mp_hex_digest placed;
    mp_manifest m;
    char *placement;
    int rc = mp_manifest_load(&m, out, err);

    if (rc != 0)
        return rc;
    rc = mp_repack_placement(plan, &placement, err);
    if (rc == 0) {
        mp_hex_digest_of(placement, strlen(placement), placed);
        free(placement);
        if (!same_terms(&m, plan))
            rc = mp_fail(err, MP_ERR_INPUT, "\"%s\" is complete and was made otherwise: \"%s\"",
                         out, m.command ? m.command : m.target);
        else if (!same_shards(&m, &plan->catalog->checkpoint))
            rc = mp_fail(err, MP_ERR_INPUT, "\"%s\" is complete and was made from another source",
                         out);
        else if (mp_manifest_compressed(&m) != (plan->work.zstd != MP_ZSTD_NONE))
            rc = mp_fail(err, MP_ERR_INPUT, "\"%s\" is complete and its shards are %s", out,
                         mp_manifest_compressed(&m) ? "compressed" : "not compressed");
        else if (strcmp(m.placement_xxh3, placed) != 0)
            rc = mp_fail(err, MP_ERR_INPUT, "\"%s\" is complete and has another placement", out);
    }
    mp_manifest_release(&m);
    return rc;
}

/* ------------------------------------------------------------------------
 * The job
 */

static bool owns(const char *name)
{
    static const char *const names[] = {MP_MANIFEST_NAME, MP_PLACEMENT_NAME, MP_CONFIG_NAME};
    bool ours = strncmp(name, "rank-", 5) == 0;

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        ours |= strcmp(name, names[i]) == 0;
    return ours;
}

mp_job mp_repack_job(const mp_plan *plan)
{
    return (mp_job){
        .plan = plan,
        .work = &plan->work,
        .terms = print_terms,
        .units = list_units,
        .unit_bytes = unit_bytes,
        .run = run_unit,
        .finish = mp_repack_finish,
        .check_done = check_done,
        .is_whole = mp_is_packed,
        .kind = "a packed directory",
        .owns = owns,
    };
}

int mp_plan_run(const mp_plan *plan, const char *out, mp_run_mode mode, const mp_context *context,
                mp_error *err)
{
    err = MP_NEVER_NULL(err);
    mp_job job = mp_repack_job(plan);
    int rc = mp_repack_check_forms(plan, err);

    return rc ? rc : mp_job_run(&job, out, mode, context, err);
}
