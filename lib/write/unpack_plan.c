/* SPDX-License-Identifier: Apache-2.0 */
/* The plan of unpacking: the tensors that a pack becomes, and where each expert comes from.
 *
 * The forms of the manifest say what tensors there were: names with "{}" for the expert's number,
 * types, shapes. Each is checked against what its slots can give (unpack_form.c) before anything is
 * listed, as a manifest may come from anyone.
 *
 * Tensors are numbered twice: in the order of layers, by which units find theirs (first_output plus
 * the place in the form), and in the order in which they are written; source->order leads from one
 * to the other. They differ only where alignment wants wide elements first.
 *
 * An expert is read from its first copy on a rank that is here: ranks may be missing as long as
 * each expert is on another. One thread; not changed after. */
#include "write/unpack.h"

#include "base/error.h"
#include "base/select.h"
#include "base/words.h"
#include "checkpoint/tensor.h"
#include "pack/pack.h"
#include "run/work.h"

#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------
 * Where experts are
 */

const mp_place *mp_unpack_place(const mp_unpack_plan *plan, const mp_unpack_layer *layer,
                                uint32_t id)
{
    uint32_t count;
    const mp_place *places = mp_pack_copies(&plan->pack, layer->number, id, &count);

    return count ? places : NULL;
}

/* Ranks may be missing: every expert is on another, or it cannot be unpacked. */
static int check_places(const mp_unpack_plan *plan, const mp_unpack_layer *layer, mp_error *err)
{
    for (uint32_t id = 0; id < plan->pack.shape.num_ids; id++)
        if (!mp_unpack_place(plan, layer, id))
            return mp_fail(
                err, MP_ERR_INPUT,
                "%s: expert %u is on no rank that is present (%u of %u are): add the others",
                layer->prefix, id, plan->pack.num_open, plan->pack.shape.slots.ep);
    return 0;
}

/* ------------------------------------------------------------------------
 * Forms
 */

/* The tensors of a pack that a form is filled from are there on every rank. */
static int check_packed(const mp_pack *pack, const mp_unpack_layer *layer, const mp_unpack_form *f,
                        mp_error *err)
{
    for (size_t i = 0; i < f->form->num_tensors; i++) {
        const mp_form_tensor *tensor = &f->form->tensors[i];
        mp_side side = tensor->matrix == MP_DOWN ? MP_L2 : MP_L1;
        const mp_slot_tensor *packed =
            mp_set_tensor(f->set, side, mp_unpack_role(f->form, tensor->role));

        /* Every rank, not just the one that is read from now: which that is depends on the
         * expert. */
        for (uint32_t r = 0; packed && r < pack->shape.slots.ep; r++)
            if (pack->open[r] && !mp_pack_tensor(pack, layer->number, r, f->set, packed))
                return mp_fail(err, MP_ERR_INPUT, "%s.%s: rank %u has no %s to take it from",
                               layer->prefix, tensor->name, r, packed->name);
    }
    return 0;
}

static int settle_form(const mp_pack *pack, const mp_unpack_layer *layer, uint32_t number,
                       uint32_t id, uint32_t slots, mp_unpack_form *f, mp_error *err)
{
    uint32_t experts = (uint32_t)pack->manifest.num_experts;

    const mp_manifest *m = &pack->manifest;

    f->form = &m->forms[number];
    f->set = mp_shape_set(&pack->shape, id);
    f->slots = slots;
    if (mp_unpack_check_form(f, layer->prefix, f == &layer->shared ? 1 : experts, err) != 0)
        return err->code;
    return check_packed(pack, layer, f, err);
}

static int settle_layer(const mp_unpack_plan *plan, uint32_t number, mp_unpack_layer *layer,
                        mp_error *err)
{
    const mp_pack *pack = &plan->pack;
    const mp_manifest *m = &pack->manifest;
    uint32_t experts = pack->shape.slots.num_logical;

    *layer = (mp_unpack_layer){.prefix = m->layers[number], .number = number};
    if (check_places(plan, layer, err) != 0 ||
        settle_form(pack, layer, m->layer_form[number], 0, 1, &layer->routed, err) != 0)
        return err->code;
    if (m->shared == MP_SHARED_NONE)
        return 0;
    if (settle_form(pack, layer, m->shared_form[number], experts, pack->shape.num_ids - experts,
                    &layer->shared, err) != 0)
        return err->code;
    if (layer->shared.form->fusion != MP_FUSION_NONE &&
        layer->shared.form->fusion != MP_FUSION_ROWS)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: %s: a shared expert that is fused",
                       MP_MANIFEST_NAME, layer->prefix);
    return 0;
}

static int settle_layers(mp_unpack_plan *plan, mp_error *err)
{
    struct mp_unpack_source *source = plan->source;
    const mp_manifest *m = &plan->pack.manifest;
    mp_work *work = &plan->work;

    source->layers = mp_alloc_zeroed(m->num_layers, sizeof *source->layers);
    plan->layers_chosen = mp_alloc(m->num_layers, sizeof *plan->layers_chosen);
    if (!source->layers || !plan->layers_chosen)
        return mp_fail_memory(err);
    if (mp_select_layers(plan->options.layers, (const char *const *)m->layers, m->num_layers,
                         plan->layers_chosen, err) != 0)
        return err->code;
    for (uint32_t l = 0; l < m->num_layers; l++) {
        mp_unpack_layer *layer = &source->layers[source->num_layers];

        if (!plan->layers_chosen[l])
            continue;
        source->num_layers++;
        if (settle_layer(plan, l, layer, err) != 0)
            return err->code;
        layer->first_unit = work->num_units;
        work->stage_units = (m->num_experts + (layer->shared.form ? 1 : 0)) * MP_SIDES;
        work->num_units += work->stage_units;
    }
    work->num_stages = (uint32_t)source->num_layers;
    return source->num_layers ? 0 : mp_fail(err, MP_ERR_USAGE, "no layer selected");
}

/* ------------------------------------------------------------------------
 * Tensors
 */

/* A tensor that is going to be written. */
typedef struct listed {
    const mp_form_tensor *tensor;
    const char *prefix;
    uint32_t expert, stage;
    uint32_t number; /* in the order of layers */
} listed;

/* Tensors of a form in a layer. */
static uint64_t count_tensors(const mp_manifest *m, const mp_unpack_form *f, bool shared)
{
    if (!f->form)
        return 0;
    return f->form->num_tensors *
           (shared || f->form->fusion != MP_FUSION_NONE ? 1 : m->num_experts);
}

static void list_form(mp_unpack_form *f, const mp_unpack_layer *layer, uint32_t stage,
                      uint64_t count, listed *list, uint64_t *n)
{
    f->first_output = *n;
    for (uint64_t i = 0; i < count; i++, ++*n)
        list[*n] = (listed){
            .tensor = &f->form->tensors[i % f->form->num_tensors],
            .prefix = layer->prefix,
            .expert = (uint32_t)(i / f->form->num_tensors),
            .stage = stage,
            .number = (uint32_t)*n,
        };
}

static void list_tensors(const mp_unpack_plan *plan, listed *list)
{
    struct mp_unpack_source *source = plan->source;
    const mp_manifest *m = &plan->pack.manifest;
    uint64_t n = 0;

    for (uint32_t l = 0; l < source->num_layers; l++) {
        mp_unpack_layer *layer = &source->layers[l];

        list_form(&layer->routed, layer, l, count_tensors(m, &layer->routed, false), list, &n);
        list_form(&layer->shared, layer, l, count_tensors(m, &layer->shared, true), list, &n);
    }
}

/* Wide elements first; for the rest in the order of layers. */
static int by_width(const void *a, const void *b)
{
    const listed *x = a, *y = b;
    unsigned p = mp_dtype_bits(x->tensor->dtype), q = mp_dtype_bits(y->tensor->dtype);

    if (p != q)
        return p > q ? -1 : 1;
    return x->number < y->number ? -1 : 1;
}

/* Whether tensors in the order of layers all begin at a multiple of their element size. */
static bool all_aligned(const listed *list, uint64_t count)
{
    uint64_t widest = 1;
    bool aligned = true;

    for (uint64_t i = 0; i < count; i++) {
        uint64_t width = (mp_dtype_bits(list[i].tensor->dtype) + 7) / 8;

        widest = width > widest ? width : widest;
    }
    for (uint64_t i = 0; i < count && aligned; i++) {
        const mp_form_tensor *t = list[i].tensor;
        const mp_tensor_spec spec = {t->name, t->dtype, t->rank, t->shape};
        uint64_t bytes;

        /* Multiples of the widest element keep all that follows aligned. A shape that is too large
         * is refused by mp_work_add. */
        aligned = mp_tensor_spec_bytes(&spec, &bytes, NULL) == 0 && bytes % widest == 0;
    }
    return aligned;
}

static int add_tensors(mp_unpack_plan *plan, const listed *list, uint64_t count, mp_error *err)
{
    static const char *const metadata[] = {"format", "pt"};
    mp_work *work = &plan->work;

    for (uint64_t i = 0; i < count; i++) {
        const mp_form_tensor *t = list[i].tensor;

        plan->source->order[list[i].number] = (uint32_t)i;
        if (mp_work_add(work, mp_form_tensor_name(t, list[i].prefix, list[i].expert), t->dtype,
                        t->shape, t->rank, list[i].stage, err) != 0)
            return err->code;
    }
    work->zstd = plan->options.zstd;
    work->part = plan->options.part;
    work->sha256 = plan->options.sha256;
    return mp_work_files(work, 0, NULL, plan->options.max_shard_size, metadata, 1, err);
}

static int settle_tensors(mp_unpack_plan *plan, mp_error *err)
{
    struct mp_unpack_source *source = plan->source;
    uint64_t count = 0;
    listed *list;
    int rc;

    for (size_t l = 0; l < source->num_layers; l++)
        count += count_tensors(&plan->pack.manifest, &source->layers[l].routed, false) +
                 count_tensors(&plan->pack.manifest, &source->layers[l].shared, true);
    rc = mp_work_reserve(&plan->work, count, err);
    if (rc != 0)
        return rc;
    list = mp_alloc(count, sizeof *list);
    source->order = mp_alloc(count, sizeof *source->order);
    if (!list || !source->order) {
        rc = mp_fail_memory(err);
    } else {
        list_tensors(plan, list);
        if (!all_aligned(list, count))
            qsort(list, count, sizeof *list, by_width);
        rc = add_tensors(plan, list, count, err);
    }
    free(list);
    return rc;
}

/* ------------------------------------------------------------------------
 * The whole
 */

static void count_bytes(mp_unpack_plan *plan)
{
    mp_work *work = &plan->work;

    work->lossless = true; /* whatever happened before */
    work->scratch_bytes = mp_unpack_scratch(plan);
    for (uint64_t u = 0; u < work->num_units; u++) {
        mp_unpack_unit unit = mp_unpack_unit_at(plan, u);
        const mp_slot_set *set = unit.form->set;

        for (unsigned t = 0; t < set->num_tensors; t++)
            if (set->tensors[t].side == unit.side)
                work->bytes_read += set->tensors[t].slot_bytes * unit.form->slots;
    }
}

/* What is not in the pack is not in the checkpoint, though config.json may promise it. */
static void warn_absent(mp_unpack_plan *plan)
{
    char dropped[MP_ROLE_SET_TEXT];
    const mp_manifest *m = &plan->pack.manifest;

    if (plan->source->num_layers < m->model_layers)
        mp_problem(&plan->warnings, "%zu of the model's %llu MoE layers are unpacked",
                   plan->source->num_layers, (unsigned long long)m->model_layers);
    if (m->num_shared_experts > 0 && !m->shared_form)
        mp_problem(&plan->warnings, "the pack has no shared experts: routed ones are unpacked");
    if (m->dropped)
        mp_problem(&plan->warnings, "%s of experts was dropped when the pack was made",
                   mp_role_set_text(m->dropped, dropped));
}

int mp_unpack_plan_init(mp_unpack_plan *plan, const char *dir, const mp_unpack_options *options,
                        const mp_context *context, mp_error *err)
{
    const mp_pack_options how = {.partial = true};
    int rc;

    err = MP_NEVER_NULL(err);
    *plan =
        (mp_unpack_plan){.options = *options, .source = mp_alloc_zeroed(1, sizeof *plan->source)};
    rc = plan->source ? mp_pack_load(&plan->pack, dir, &how, context, err) : mp_fail_memory(err);
    if (rc == 0)
        rc = settle_layers(plan, err);
    if (rc == 0)
        rc = settle_tensors(plan, err);
    if (rc == 0)
        rc = mp_unpack_config(plan, err);
    if (rc == 0) {
        count_bytes(plan);
        warn_absent(plan);
    } else {
        mp_unpack_plan_release(plan);
    }
    return rc;
}

void mp_unpack_plan_release(mp_unpack_plan *plan)
{
    struct mp_unpack_source *source = plan->source;

    if (source) {
        free(source->layers);
        free(source->order);
        free(source->config);
        free(source->hf_quant_config);
    }
    free(source);
    free(plan->layers_chosen);
    mp_work_release(&plan->work);
    mp_pack_unload(&plan->pack);
    mp_problems_release(&plan->warnings);
    memset(plan, 0, sizeof *plan);
}
