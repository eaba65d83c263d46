/* SPDX-License-Identifier: Apache-2.0 */
/* A pack brought up to date, as the job of repacking the new version, with two differences: a unit
 * of an expert that no delta touches copies its slots from the pack that was there before, and
 * tensors with none that is touched have the digest that they had.
 *
 * Being that job is what makes the result the same, byte for byte, as packing the new version anew:
 * plan, terms, journal and manifest are repack's, with the old pack in its terms. The plan is made
 * from options that the old manifest gives; outputs have to be the old pack's tensors in the same
 * order, or the update is refused. So an output's bytes can be copied from the same place, and its
 * digest be taken over by number.
 *
 * Units run on all threads as in repack. Old pack, plan, touched and known digests are only
 * read. */
#include "delta/update.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/options.h"
#include "checkpoint/shard.h"
#include "numeric/quantize.h"
#include "pack/pack.h"
#include "run/journal.h"
#include "run/output.h"
#include "run/terms.h"
#include "run/work.h"
#include "write/any.h"
#include "write/plan.h"
#include "write/repack.h"
#include "write/unit.h"

#define PIECE_BYTES ((uint64_t)256 << 10)

/* ------------------------------------------------------------------------
 * Units
 */

static int copy_slot(const mp_update *update, const mp_unit *unit, const mp_slot_tensor *tensor,
                     mp_place place, mp_outputs *outputs, uint8_t *scratch, mp_error *err)
{
    const mp_repack_plan *plan = &update->plan;
    const mp_checkpoint *rank = &update->pack.ranks[place.rank];
    const mp_out_tensor *out =
        mp_plan_output(plan, unit->layer_index, place.rank, unit->set, tensor);
    const mp_tensor *from =
        mp_pack_tensor(&update->pack, unit->layer_index, place.rank, unit->set, tensor);
    uint64_t bytes = tensor->slot_bytes, begin = place.slot * bytes;
    int rc = 0;

    if (!out)
        return 0; /* the layer does not have it */
    /* The slot is cut out by the plan's sizes: an old tensor of another size would give other
     * rows. */
    if (!from || from->bytes != out->bytes)
        return mp_fail(err, MP_ERR_INPUT, "%s: rank %u: %s: missing", update->pack.dir, place.rank,
                       out->name);
    const mp_shard *shard = &rank->shards[from->shard];
    if (!shard->zstd)
        return mp_outputs_copy(outputs, out, begin, shard->fd, shard->file, from->offset + begin,
                               bytes, err);
    for (uint64_t at = 0; rc == 0 && at < bytes; at += PIECE_BYTES) {
        uint64_t n = bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES;

        rc = mp_tensor_read(rank, from, begin + at, n, scratch, err);
        if (rc == 0)
            rc = mp_outputs_write(outputs, out, begin + at, scratch, n, err);
    }
    return rc;
}

static int copy_unit(const mp_update *update, const mp_unit *unit, mp_outputs *outputs,
                     uint8_t *scratch, mp_error *err)
{
    uint32_t count;
    const mp_place *copies = mp_places_of(&unit->layer->places, unit->id, &count);

    for (unsigned t = 0; t < unit->set->num_tensors; t++)
        for (uint32_t c = 0; c < count; c++)
            if (unit->set->tensors[t].side == unit->side &&
                copy_slot(update, unit, &unit->set->tensors[t], copies[c], outputs, scratch, err) !=
                    0)
                return err->code;
    return 0;
}

static int run_unit(const void *user, uint64_t index, mp_outputs *outputs, void *scratch,
                    mp_quant_stats *stats, mp_error *err)
{
    const mp_update *update = user;
    const mp_unit unit = mp_plan_unit(&update->plan, index);

    return update->parts->touched.unit[index]
               ? mp_unit_run(&update->plan, &unit, outputs, scratch, stats, err)
               : copy_unit(update, &unit, outputs, scratch, err);
}

/* ------------------------------------------------------------------------
 * Digests
 */

/* Takes the digests of all tensors out of the manifest, in whose order outputs are. */
static int list_digests(mp_update *update, mp_error *err)
{
    const mp_manifest *m = &update->pack.manifest;
    const mp_work *work = &update->plan.work;
    size_t o = 0;

    update->parts->known = mp_alloc_zeroed(work->num_outputs, sizeof *update->parts->known);
    if (!update->parts->known)
        return mp_fail_memory(err);
    /* Ranks, files and tensors in the manifest's order are outputs in the plan's. */
    for (size_t r = 0; r < m->num_ranks; r++)
        for (size_t f = 0; f < m->ranks[r].num_files; f++)
            for (size_t t = 0; t < m->ranks[r].files[f].num_tensors; t++, o++) {
                const mp_packed_tensor *tensor = &m->ranks[r].files[f].tensors[t];

                if (o == work->num_outputs || strcmp(work->outputs[o].name, tensor->name) != 0)
                    return mp_fail(err, MP_ERR_INPUT,
                                   "%s: tensor \"%s\" is not where repacking would put it: pack "
                                   "the new version again",
                                   update->pack.dir, tensor->name);
                update->parts->known[o] = tensor->xxh3;
            }
    return o == work->num_outputs
               ? 0
               : mp_fail(err, MP_ERR_INPUT, "%s: lacks tensor \"%s\": pack the new version again",
                         update->pack.dir, work->outputs[o].name);
}

/* Forgets those of tensors that a touched unit writes to. */
static void forget_digests(mp_update *update)
{
    const mp_repack_plan *plan = &update->plan;

    for (uint64_t u = 0; u < plan->work.num_units; u++) {
        const mp_unit unit = mp_plan_unit(plan, u);
        uint32_t count;
        const mp_place *copies = mp_places_of(&unit.layer->places, unit.id, &count);

        if (!update->parts->touched.unit[u])
            continue;
        for (unsigned t = 0; t < unit.set->num_tensors; t++)
            for (uint32_t c = 0; c < count; c++) {
                const mp_out_tensor *out = mp_plan_output(plan, unit.layer_index, copies[c].rank,
                                                          unit.set, &unit.set->tensors[t]);

                if (out && unit.set->tensors[t].side == unit.side)
                    update->parts->known[out - plan->work.outputs] = NULL;
            }
    }
}

static const char *known_digest(const void *user, size_t output)
{
    return ((const mp_update *)user)->parts->known[output];
}

/* ------------------------------------------------------------------------
 * The job: what repacking does, of the same plan
 */

static int print_delta(const mp_checkpoint *ckpt, FILE *f, mp_error *err)
{
    mp_terms_source(ckpt, f);
    return mp_terms_weights(ckpt, f, err);
}

static int print_terms(const void *user, FILE *f, mp_error *err)
{
    const mp_update *update = user;
    const mp_chain *chain = &update->parts->chain;
    /* The old pack decides on bytes that are copied, so it is one of the terms. */
    int rc = mp_repack_job(&update->plan).terms(&update->plan, f, err);

    fprintf(f, "update %s\n", update->pack.xxh3);
    for (size_t i = 1; rc == 0 && i < chain->count; i++)
        rc = print_delta(&chain->versions[i].parts[0].ckpt, f, err);
    return rc;
}

static size_t list_units(const void *user, uint32_t stage, uint64_t *units)
{
    const mp_update *update = user;

    return mp_repack_job(&update->plan).units(&update->plan, stage, units);
}

static uint64_t unit_bytes(const void *user, uint64_t index)
{
    const mp_update *update = user;

    return mp_repack_job(&update->plan).unit_bytes(&update->plan, index);
}

static int finish(const void *user, const mp_progress_state *state, const char *partial,
                  mp_error *err)
{
    const mp_update *update = user;

    return mp_repack_finish_update(&update->plan, state, &update->pack.manifest,
                                   update->parts->touched.unit, partial, err);
}

static int check_done(const void *user, const char *out, const char *terms, mp_error *err)
{
    const mp_update *update = user;

    return mp_repack_job(&update->plan).check_done(&update->plan, out, terms, err);
}

static int run_update(const mp_update *update, const char *out, mp_run_mode mode,
                      const mp_context *context, mp_error *err)
{
    mp_job job = mp_repack_job(&update->plan);
    int rc = mp_repack_check_forms(&update->plan, err);

    job.plan = update;
    job.terms = print_terms;
    job.units = list_units;
    job.unit_bytes = unit_bytes;
    job.run = run_unit;
    job.known_digest = known_digest;
    job.finish = finish;
    job.check_done = check_done;
    return rc ? rc : mp_job_run(&job, out, mode, context, err);
}

/* ------------------------------------------------------------------------
 * The plan
 */

static int open_source(mp_update *update, const char *const *deltas, size_t count,
                       const char *source, const mp_context *context, mp_error *err)
{
    mp_chain *chain = &update->parts->chain;
    int rc = mp_chain_open(chain, source, MP_BASE_UNCHECKED, deltas, count, context, err);

    for (size_t i = 1; rc == 0 && i < chain->count; i++)
        if (!chain->versions[i].delta)
            rc = mp_fail(err, MP_ERR_UNSUPPORTED,
                         "%s: a full version: pack it, and update from there", deltas[i - 1]);
    if (rc == 0)
        rc = mp_catalog_open(&update->catalog, source, context, err);
    if (rc == 0 && update->catalog.num_towers > 1)
        rc = mp_catalog_choose(&update->catalog, update->pack.manifest.layers[0], err);
    return rc;
}

static void release_update(mp_update *update)
{
    mp_update_parts *parts = update->parts;

    if (parts) {
        /* A plan that was never made has no tensors to count slices by. */
        if (update->plan.catalog)
            mp_touched_release(&parts->touched, &update->plan);
        mp_chain_release(&parts->chain);
        mp_spool_release(&parts->spool);
        free(parts->known);
    }
    free(parts);
    mp_repack_plan_release(&update->plan);
    mp_catalog_release(&update->catalog);
    mp_pack_unload(&update->pack);
    *update = (mp_update){0};
}

static int make(mp_update *update, const char *pack, const char *const *deltas, size_t count,
                const char *source, const mp_update_options *options, const mp_context *context,
                mp_error *err)
{
    int rc;

    *update = (mp_update){.parts = mp_alloc_zeroed(1, sizeof *update->parts)};
    if (!update->parts)
        return mp_fail_memory(err);
    update->parts->spool.fd = -1;
    rc = mp_pack_load(&update->pack, pack, NULL, context, err);
    if (rc == 0)
        rc = open_source(update, deltas, count, source, context, err);
    if (rc == 0)
        rc = mp_update_plan(update, options, err);
    if (rc == 0)
        rc = mp_repack_check_same_form(&update->plan, &update->pack.manifest, pack, err);
    if (rc == 0)
        rc = list_digests(update, err);
    if (rc == 0)
        /* Touched units say which tensors are needed, and these which version the source is. */
        rc = mp_touched_init(&update->parts->touched, &update->plan, &update->parts->chain, context,
                             err);
    if (rc == 0)
        rc = mp_update_settle_source(update, pack, context, err);
    if (rc != 0) {
        release_update(update);
        return rc;
    }
    forget_digests(update);
    update->units = update->parts->touched.units;
    update->touched_units = update->parts->touched.touched_units;
    if (update->plan.work.scratch_bytes < PIECE_BYTES)
        update->plan.work.scratch_bytes = PIECE_BYTES;
    return 0;
}

typedef struct updating {
    mp_plan plan;
    mp_update of;
} updating;

static int run(const mp_plan *plan, const char *out, mp_run_mode mode, const mp_context *context,
               mp_error *err)
{
    return run_update(&((const updating *)plan)->of, out, mode, context, err);
}

static void release(mp_plan *plan)
{
    release_update(&((updating *)plan)->of);
}

int mp_plan_update(mp_plan **plan, const char *pack, const char *const *deltas, size_t count,
                   const char *source, const mp_update_options *options, const mp_context *context,
                   mp_error *err)
{
    updating *u = mp_alloc_zeroed(1, sizeof *u);
    mp_update_options own;

    *plan = NULL;
    if (!u)
        return mp_fail_memory(err);
    err = MP_NEVER_NULL(err);
    int rc = mp_options_take("mp_update_options", &own, sizeof own, options, err);
    if (rc == 0)
        rc = make(&u->of, pack, deltas, count, source, &own, context, err);
    u->plan = (mp_plan){
        {&u->of.plan.work, &u->of.plan.warnings, u->of.units, u->of.touched_units}, run, release};
    return mp_plan_hand_over(&u->plan, rc, plan);
}
