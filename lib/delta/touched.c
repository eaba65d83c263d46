/* SPDX-License-Identifier: Apache-2.0 */
/* From tensors that deltas have to units that are packed anew.
 *
 * A unit is a side of an expert, so what shares a scale, as gate and up of nvfp4 do their second
 * one, is one unit. Of a tensor that holds all experts of a layer the streams say whose bytes
 * change: XOR by where it is not zero, overwriting by its positions, cut into equal slices along
 * the first dimension. Which of them change is the union over the chain, so a change that a later
 * delta takes back still counts: more is packed than has to be, never less.
 *
 *   tensors of deltas -> tensor[], slices[][] -> unit[] -> needed[]: what these units read
 *
 * Where experts are requantized one touched unit touches all of its layer: the manifest tells the
 * error of a layer as sums over all experts, which only going through them all gives.
 *
 * Streams of fused tensors are scanned on all threads. Several may be of one tensor and mark the
 * same flags; they only ever set them, and nobody reads them before the loop has ended. */
#include "delta/touched.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/parallel.h"
#include "base/words.h"
#include "checkpoint/matrix.h"
#include "write/plan.h"

typedef struct touching {
    mp_touched *t;
    const mp_repack_plan *plan;
    const mp_chain *chain;
    const mp_patch_link **links; /* [num_links] of fused tensors */
    size_t *tensor;              /* [num_links] */
    uint32_t *experts;           /* [num_links] slices of the tensor */
    size_t num_links;
} touching;

static const mp_checkpoint *source_of(const mp_repack_plan *plan)
{
    return &plan->catalog->checkpoint;
}

static size_t index_of(const mp_repack_plan *plan, const mp_tensor *tensor)
{
    return (size_t)(tensor - source_of(plan)->tensors);
}

/* ------------------------------------------------------------------------
 * Tensors
 */

/* Marks the tensors that deltas have; both lists are of the same checkpoint's names. */
static int mark_tensors(const touching *g, mp_error *err)
{
    const mp_version_part *base = &mp_chain_base(g->chain)->parts[0];
    const mp_checkpoint *source = source_of(g->plan);

    if (base->ckpt.num_tensors != source->num_tensors)
        return mp_fail(err, MP_ERR_INPUT, "\"%s\" has changed while it was read", source->dir);
    for (size_t i = 0; i < source->num_tensors; i++) {
        size_t count;

        mp_chain_links(g->chain, 0, &base->ckpt.tensors[i], &count);
        g->t->tensor[i] = count > 0;
    }
    return 0;
}

/* Adds the streams of a changed tensor that has a slice for each expert of a layer. */
static int add_fused(touching *g, const mp_tensor *tensor, uint32_t experts, mp_error *err)
{
    size_t i = index_of(g->plan, tensor), count;
    const mp_version_part *base = &mp_chain_base(g->chain)->parts[0];

    /* Gate and up are often the same tensor: the first one has added it. */
    if (!g->t->tensor[i] || g->t->slices[i] || tensor->rank == 0 || tensor->shape[0] != experts)
        return 0;
    const mp_patch_link *links = mp_chain_links(g->chain, 0, &base->ckpt.tensors[i], &count);
    g->t->slices[i] = mp_alloc_zeroed(experts, sizeof(bool));
    /* Keep each that moved, also when another one failed: the old pointer is gone. */
    void *more[3] = {
        realloc(g->links, (g->num_links + count) * sizeof *g->links),
        realloc(g->tensor, (g->num_links + count) * sizeof *g->tensor),
        realloc(g->experts, (g->num_links + count) * sizeof *g->experts),
    };
    g->links = more[0] ? more[0] : g->links;
    g->tensor = more[1] ? more[1] : g->tensor;
    g->experts = more[2] ? more[2] : g->experts;
    if (!g->t->slices[i] || !more[0] || !more[1] || !more[2])
        return mp_fail_memory(err);
    for (size_t k = 0; k < count; k++, g->num_links++) {
        g->links[g->num_links] = &links[k];
        g->tensor[g->num_links] = i;
        g->experts[g->num_links] = experts;
    }
    return 0;
}

static int scan_link(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const touching *g = user;
    size_t i = g->tensor[index];
    uint64_t slice = source_of(g->plan)->tensors[i].bytes / g->experts[index];
    int rc =
        mp_patch_scan(g->links[index], slice, g->experts[index], g->t->slices[i], scratch, err);

    return rc ? mp_link_blame(g->links[index], err) : 0;
}

/* Links of one tensor are marked by several threads, which all only ever set a flag. */
static int scan_fused(touching *g, const mp_context *context, mp_error *err)
{
    for (size_t l = 0; l < g->plan->num_layers; l++) {
        const mp_moe_layer *layer = g->plan->layers[l].source;

        if (layer->storage.fusion == MP_FUSION_NONE)
            continue;
        for (int p = 0; p < MP_PROJECTIONS; p++)
            for (int role = 0; role < MP_ROLES; role++) {
                const mp_tensor *tensor =
                    mp_matrix_tensor(&layer->experts[0].matrix[p], (mp_role)role);

                if (tensor && add_fused(g, tensor, layer->num_experts, err) != 0)
                    return err->code;
            }
    }
    return mp_parallel(context, g->num_links, MP_PATCH_BYTES, scan_link, g, err);
}

/* ------------------------------------------------------------------------
 * Units
 */

/* Calls for each changed tensor that a unit reads. */
static bool each_changed(const touching *g, const mp_unit *unit, bool note)
{
    const mp_matrix *matrix = &unit->matrices->matrix[mp_side_first(unit->side)];
    bool any = false;

    for (unsigned p = 0; p < mp_side_parts(unit->side); p++)
        for (int role = 0; role < MP_ROLES; role++) {
            const mp_tensor *tensor = mp_matrix_tensor(&matrix[p], (mp_role)role);
            size_t i = tensor ? index_of(g->plan, tensor) : 0;

            if (!tensor || !g->t->tensor[i])
                continue;
            any |= !g->t->slices[i] || unit->is_shared || g->t->slices[i][matrix[p].slice];
            if (note)
                g->t->needed[i] = true;
        }
    return any;
}

/* Where the units of a layer's routed or shared experts requantize, one takes the others along. */
static void spread(const touching *g, const mp_plan_layer *layer, bool shared)
{
    uint64_t routed = (uint64_t)layer->source->num_experts * MP_SIDES;
    uint64_t first = layer->first_unit + (shared ? routed : 0);
    /* Units of a layer: both sides of each routed expert, then of the shared ones up to the stage's
     * end. */
    uint64_t end = layer->first_unit + (shared ? g->plan->work.stage_units : routed);
    bool any = false, lossless = true;

    for (uint64_t u = first; u < end; u++) {
        const mp_unit unit = mp_plan_unit(g->plan, u);

        any |= g->t->unit[u];
        lossless &= mp_unit_is_lossless(g->plan, &unit);
    }
    for (uint64_t u = first; any && !lossless && u < end; u++)
        g->t->unit[u] = true;
}

static void mark_units(const touching *g)
{
    const mp_work *work = &g->plan->work;

    for (uint64_t u = 0; u < work->num_units; u++) {
        const mp_unit unit = mp_plan_unit(g->plan, u);

        g->t->unit[u] = each_changed(g, &unit, false);
    }
    for (size_t l = 0; l < g->plan->num_layers; l++) {
        spread(g, &g->plan->layers[l], false);
        spread(g, &g->plan->layers[l], true);
    }
    for (uint64_t u = 0; u < work->num_units; u++) {
        const mp_unit unit = mp_plan_unit(g->plan, u);
        bool writes = mp_unit_bytes_written(g->plan, &unit) > 0;

        g->t->units += writes;
        g->t->touched_units += writes && g->t->unit[u];
        if (g->t->unit[u])
            each_changed(g, &unit, true);
    }
}

int mp_touched_init(mp_touched *t, const mp_repack_plan *plan, const mp_chain *chain,
                    const mp_context *context, mp_error *err)
{
    size_t tensors = source_of(plan)->num_tensors;
    touching g = {.t = t, .plan = plan, .chain = chain};

    *t = (mp_touched){
        .tensor = mp_alloc_zeroed(tensors, sizeof *t->tensor),
        .slices = mp_alloc_zeroed(tensors, sizeof *t->slices),
        .needed = mp_alloc_zeroed(tensors, sizeof *t->needed),
        .unit = mp_alloc_zeroed(plan->work.num_units, sizeof *t->unit),
    };
    if (!t->tensor || !t->slices || !t->needed || !t->unit)
        return mp_fail_memory(err);
    int rc = mark_tensors(&g, err);
    if (rc == 0)
        rc = scan_fused(&g, context, err);
    if (rc == 0)
        mark_units(&g);
    free(g.links);
    free(g.tensor);
    free(g.experts);
    return rc;
}

void mp_touched_release(mp_touched *t, const mp_repack_plan *plan)
{
    for (size_t i = 0; t->slices && i < source_of(plan)->num_tensors; i++)
        free(t->slices[i]);
    free(t->tensor);
    free(t->slices);
    free(t->needed);
    free(t->unit);
    *t = (mp_touched){0};
}
