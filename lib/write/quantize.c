/* SPDX-License-Identifier: Apache-2.0 */
/* What requantizing a checkpoint is to do: which experts, in which form, and whether that form has
 * a place for all that they have. The result is a checkpoint as a tool would have written it, so
 * the form is a style's: names, types and shapes of tensors, and what config.json says of them.
 *
 * Layers get one entry each and one more, the last, for tensors of no layer. Every layer is a
 * stage; its units are matrices of experts, three for each, then copies of bytes that stay:
 *
 *   [e0 gate, e0 up, e0 down, e1 gate, ... , shared down][copy, copy, ...]
 *
 * Layers that are not selected have copies only. What a form has no place for is refused by name
 * unless it is dropped. Whether anything is lossless is settled last, as config.json's style may
 * want scales that are powers of two. One thread; not changed after. */
#include "write/quantize.h"

#include "base/error.h"
#include "base/ordered.h"
#include "base/words.h"
#include "checkpoint/form.h"
#include "checkpoint/layers.h"
#include "experts/stored.h"
#include "numeric/forms.h"
#include "numeric/quantize.h"

#include <stdlib.h>
#include <string.h>

/* What of an expert may be left behind. */
#define DROPPABLE (MP_ROLE_BIT(MP_ROLE_BIAS) | MP_ROLE_BIT(MP_ROLE_INPUT_SCALE))

/* ------------------------------------------------------------------------
 * Layers
 */

/* Only names, and types of scales, would change. Second scales are chosen anew. */
static bool is_lossless(const mp_storage *storage, mp_scheme scheme)
{
    return mp_stored_as(storage, scheme) && !mp_scheme_form_of(scheme)->has_global;
}

/* Scales of activations belong to 4-bit activations, in both conventions of nvfp4. */
static int check_carried(const mp_quantize_plan *plan, const mp_storage *storage,
                         const mp_expert *expert, mp_error *err)
{
    const mp_quantize_options *options = &plan->options;
    bool nvfp4 = storage->scheme == MP_SCHEME_NVFP4 && options->scheme == MP_SCHEME_NVFP4;

    for (int p = 0; p < MP_PROJECTIONS; p++) {
        const mp_tensor *scale = expert->matrix[p].input_scale;

        if (!scale || (plan->drop & MP_ROLE_BIT(MP_ROLE_INPUT_SCALE)))
            continue;
        if (!nvfp4)
            return mp_fail(err, MP_ERR_UNSUPPORTED,
                           "%s: experts in %s cannot hold it: drop it with --drop input_scale",
                           scale->name, mp_scheme_name(options->scheme));
        if (scale->dtype != MP_F32)
            return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: %s cannot be stored, only F32",
                           scale->name, mp_dtype_name(scale->dtype));
    }
    return 0;
}

/* What MX experts become in FP8 has scales that are powers of two, which DeepSeek V4 stores as
 * such; its base model, which never was MX, has float32. */
static void choose_scale_type(const mp_convention *convention, const mp_storage *storage,
                              mp_form *form)
{
    if (convention->power_dtype == MP_BOOL ||
        !mp_requantize_counts(storage->scheme, convention->scheme))
        return;
    for (size_t i = 0; i < form->num_tensors; i++)
        if (form->tensors[i].role == MP_ROLE_SCALE)
            /* A quarter of the bytes; no value changes, as MX scales are powers of two. */
            form->tensors[i].dtype = convention->power_dtype;
}

/* The form in which experts are written. */
static int choose_form(const mp_quantize_plan *plan, const mp_storage *storage,
                       const mp_naming *naming, bool shared, uint64_t width, mp_form *form,
                       mp_error *err)
{
    const mp_convention *convention =
        mp_convention_named(plan->options.style, plan->options.scheme, naming, err);

    if (!convention)
        return MP_ERR_UNSUPPORTED;
    int rc = mp_form_of_convention(convention, naming, shared, plan->catalog->hidden_size, width,
                                   form, err);
    if (rc == 0)
        choose_scale_type(convention, storage, form);
    return rc;
}

static int plan_routed(mp_quantize_plan *plan, mp_quantize_layer *layer, mp_error *err)
{
    const mp_moe_layer *source = layer->source;
    const mp_catalog *catalog = plan->catalog;

    layer->routed = true;
    layer->lossless = is_lossless(&source->storage, plan->options.scheme);
    layer->expert_units += (uint64_t)source->num_experts * MP_PROJECTIONS;
    for (uint32_t e = 0; e < source->num_experts; e++)
        if (check_carried(plan, &source->storage, &source->experts[e], err) != 0)
            return err->code;
    return choose_form(plan, &source->storage, source->naming, false,
                       catalog->moe_intermediate_size, &layer->form, err);
}

static int plan_shared(mp_quantize_plan *plan, mp_quantize_layer *layer, mp_error *err)
{
    const mp_moe_layer *source = layer->source;
    const mp_catalog *catalog = plan->catalog;
    mp_naming naming = *source->naming;

    if (catalog->num_shared_experts == 0)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s: a shared expert whose hidden size is not that of the routed ones "
                       "cannot be requantized",
                       source->prefix);
    naming.shared = source->shared_name;
    layer->shared = true;
    layer->shared_lossless = is_lossless(&source->shared_storage, plan->options.scheme);
    layer->expert_units += MP_PROJECTIONS;
    if (check_carried(plan, &source->shared_storage, &source->shared, err) != 0)
        return err->code;
    return choose_form(plan, &source->shared_storage, &naming, true,
                       catalog->num_shared_experts * catalog->moe_intermediate_size,
                       &layer->shared_form, err);
}

static int plan_layer(mp_quantize_plan *plan, mp_quantize_layer *layer, mp_error *err)
{
    int rc = plan_routed(plan, layer, err);

    if (rc == 0 && plan->options.requantize_shared && layer->source->has_shared)
        rc = plan_shared(plan, layer, err);
    return rc;
}

static int plan_layers(mp_quantize_plan *plan, mp_error *err)
{
    const mp_catalog *catalog = plan->catalog;

    plan->layers = mp_alloc_zeroed(catalog->num_layers + 1, sizeof *plan->layers);
    if (!plan->layers)
        return mp_fail_memory(err);
    if (mp_catalog_select(catalog, plan->options.layers, &plan->layers_chosen, err) != 0)
        return err->code;
    /* The last has no source and no experts. */
    plan->num_layers = catalog->num_layers + 1;
    for (size_t i = 0; i < catalog->num_layers; i++) {
        plan->layers[i].source = &catalog->layers[i];
        if (plan->layers_chosen[i] && plan_layer(plan, &plan->layers[i], err) != 0)
            return err->code;
    }
    return 0;
}

/* Lossless experts stay so only if their scales need not become powers of two. */
static void settle_lossless(mp_quantize_plan *plan)
{
    plan->work.lossless = true;
    for (size_t i = 0; i < plan->num_layers; i++) {
        mp_quantize_layer *layer = &plan->layers[i];

        layer->lossless &= !plan->options.quant.ue8m0;
        layer->shared_lossless &= !plan->options.quant.ue8m0;
        plan->work.lossless &=
            (!layer->routed || layer->lossless) && (!layer->shared || layer->shared_lossless);
    }
}

mp_quantize_unit mp_quantize_unit_of(const mp_quantize_plan *plan, const mp_quantize_layer *layer,
                                     uint64_t index)
{
    const mp_moe_layer *source = layer->source;
    uint64_t expert = index / MP_PROJECTIONS;
    bool shared = expert == source->num_experts;
    /* Units before those of the layer, less the copies among them. */
    uint64_t number = layer->first_unit - layer->first_copy + index;

    return (mp_quantize_unit){
        .storage = shared ? &source->shared_storage : &source->storage,
        .expert = shared ? &source->shared : &source->experts[expert],
        .projection = (mp_projection)(index % MP_PROJECTIONS),
        .shared = shared,
        .lossless = shared ? layer->shared_lossless : layer->lossless,
        .form = shared ? &layer->shared_form : &layer->form,
        .outputs = plan->output_of + number * MP_WRITTEN_COUNT,
    };
}

const mp_quantize_layer *mp_quantize_layer_of(const mp_quantize_plan *plan, uint64_t unit)
{
    return &plan->layers[mp_last_begun(&plan->layers[0].first_unit, sizeof *plan->layers,
                                       plan->num_layers, unit)];
}

/* ------------------------------------------------------------------------
 * The plan
 */

static int check_options(mp_quantize_plan *plan, mp_error *err)
{
    const mp_quantize_options *options = &plan->options;
    const mp_scheme_form *form = mp_scheme_form_of(options->scheme);

    if (!form || !form->canonical)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "experts cannot be written in %s",
                       form ? mp_scheme_name(options->scheme) : "an unknown scheme");
    if (mp_role_set_parse(options->drop, DROPPABLE, &plan->drop, err) != 0)
        return mp_error_prefix(err, "drop");
    return 0;
}

int mp_quantize_plan_init(mp_quantize_plan *plan, const mp_catalog *catalog,
                          const mp_quantize_options *options, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    int rc;

    *plan = (mp_quantize_plan){.catalog = catalog, .options = *options};
    plan->options.quant.ue8m0 = false;
    rc = mp_catalog_check_sound(catalog, err);
    if (rc == 0)
        rc = check_options(plan, err);
    if (rc == 0)
        rc = plan_layers(plan, err);
    if (rc == 0)
        rc = mp_quantize_lay_out(plan, err);
    if (rc == 0)
        rc = mp_quantize_config(plan, err);
    if (rc == 0) {
        settle_lossless(plan);
        plan->work.scratch_bytes = mp_quantize_scratch(plan);
    } else {
        mp_quantize_plan_release(plan);
    }
    return rc;
}

void mp_quantize_plan_release(mp_quantize_plan *plan)
{
    for (size_t i = 0; i < plan->num_layers; i++) {
        mp_form_release(&plan->layers[i].form);
        mp_form_release(&plan->layers[i].shared_form);
    }
    free(plan->layers);
    free(plan->layers_chosen);
    free(plan->output_of);
    free(plan->pieces);
    free(plan->first_piece);
    free(plan->config);
    free(plan->hf_config);
    mp_work_release(&plan->work);
    mp_problems_release(&plan->warnings);
    memset(plan, 0, sizeof *plan);
}
