/* SPDX-License-Identifier: Apache-2.0 */
/* The tensors of a requantized checkpoint in their order, and the units that fill them. All tensors
 * are listed first, those that experts become and those that stay; then they are sorted, given to
 * the files, and only then do units learn the numbers of their outputs.
 *
 * The order keeps every tensor aligned without padding, which safetensors does not have between
 * tensors: those of whole multiples of 8 bytes come first, stage by stage; the few others behind
 * them, the widest elements first. So a layer's tensors mostly stand together, which is how loaders
 * read.
 *
 * Copies are cut into pieces of 64 MiB, and small ones put together up to it, so that a unit is
 * worth journaling and none takes long:
 *
 *   pieces       sorted by stage, then by output and offset
 *   first_piece  [copy units + 1] of each unit its first piece */
#include "write/quantize.h"

#include "base/error.h"
#include "checkpoint/conventions.h"
#include "checkpoint/form.h"
#include "checkpoint/matrix.h"
#include "checkpoint/tensor.h"

#include <stdlib.h>
#include <string.h>

/* Bytes that a unit of copies moves at most; small tensors are put together up to it. */
#define COPY_BYTES (64u << 20)

/* A tensor that is to be written. */
typedef struct entry {
    char *name; /* owned until it goes to the work */
    mp_dtype dtype;
    uint32_t rank;
    const uint64_t *shape;
    uint64_t vector[1]; /* shape of a bias */
    uint32_t stage;
    uint64_t bytes;
    const mp_tensor *from; /* that is copied; or null */
    uint32_t *place;       /* where its number goes; or null */
} entry;

typedef struct entries {
    mp_quantize_plan *plan;
    entry *list;
    size_t count;
    bool *replaced; /* [checkpoint.num_tensors] by requantized experts */
} entries;

/* ------------------------------------------------------------------------
 * Experts
 */

static void replace(entries *all, const mp_tensor *tensor)
{
    if (tensor)
        all->replaced[tensor - all->plan->catalog->checkpoint.tensors] = true;
}

static void replace_expert(entries *all, const mp_expert *expert)
{
    for (int p = 0; p < MP_PROJECTIONS; p++)
        for (int role = 0; role < MP_ROLES; role++)
            replace(all, mp_matrix_tensor(&expert->matrix[p], (mp_role)role));
}

static size_t count_replaced(entries *all)
{
    size_t count = 0;

    for (size_t i = 0; i < all->plan->num_layers; i++) {
        const mp_quantize_layer *layer = &all->plan->layers[i];

        for (uint32_t e = 0; layer->routed && e < layer->source->num_experts; e++)
            replace_expert(all, &layer->source->experts[e]);
        if (layer->shared)
            replace_expert(all, &layer->source->shared);
    }
    for (size_t i = 0; i < all->plan->catalog->checkpoint.num_tensors; i++)
        count += all->replaced[i];
    return count;
}

/* The name of a further tensor of a matrix beside its weight. malloc'ed, null without memory. */
static char *sibling_of(const mp_form_tensor *weight, const char *prefix, uint32_t expert,
                        mp_suffix suffix)
{
    char *name = mp_form_tensor_name(weight, prefix, expert), *sibling;

    if (!name)
        return NULL;
    /* Names of weights have a dot: they are made of a prefix and a form's pattern. */
    *strrchr(name, '.') = '\0';
    sibling = mp_format("%s%s", name, mp_suffixes[suffix].text);
    free(name);
    return sibling;
}

/* Adds an entry without a shape; name is taken over. */
static entry *add(entries *all, char *name, mp_dtype dtype, uint32_t stage, uint32_t *place,
                  mp_error *err)
{
    entry *e = &all->list[all->count];

    if (!name) {
        mp_fail_memory(err);
        return NULL;
    }
    *e = (entry){.name = name, .dtype = dtype, .stage = stage, .place = place};
    all->count++;
    return e;
}

static int add_form_tensor(entries *all, const mp_form_tensor *t, const char *prefix,
                           uint32_t expert, uint32_t stage, uint32_t *place, mp_error *err)
{
    entry *e;

    if (!t)
        return 0;
    e = add(all, mp_form_tensor_name(t, prefix, expert), t->dtype, stage, place, err);
    if (!e)
        return err->code;
    e->rank = t->rank;
    e->shape = t->shape;
    return 0;
}

/* The scale of activations, named by the convention of the second scale, and the bias. */
static int add_carried(entries *all, const mp_quantize_unit *unit, const mp_form_tensor *weight,
                       const char *prefix, uint32_t expert, uint32_t stage, uint32_t *place,
                       mp_error *err)
{
    const mp_matrix *matrix = &unit->expert->matrix[unit->projection];
    const mp_form_tensor *global = mp_form_find(unit->form, weight->matrix, MP_ROLE_GLOBAL_SCALE);
    entry *e;

    if (matrix->input_scale && !(all->plan->drop & MP_ROLE_BIT(MP_ROLE_INPUT_SCALE))) {
        mp_suffix suffix =
            unit->form->global_divides ? MP_SUFFIX_INPUT_GLOBAL_SCALE : MP_SUFFIX_INPUT_SCALE;

        e = add(all, sibling_of(weight, prefix, expert, suffix), MP_F32, stage,
                &place[MP_WRITTEN_INPUT_SCALE], err);
        if (!e)
            return err->code;
        e->rank = global->rank;
        e->shape = global->shape;
    }
    if (matrix->bias && !(all->plan->drop & MP_ROLE_BIT(MP_ROLE_BIAS))) {
        e = add(all, sibling_of(weight, prefix, expert, MP_SUFFIX_BIAS), matrix->bias->dtype, stage,
                &place[MP_WRITTEN_BIAS], err);
        if (!e)
            return err->code;
        e->rank = 1;
        e->vector[0] = weight->shape[0];
    }
    return 0;
}

static int add_matrix(entries *all, const mp_quantize_layer *layer, uint64_t index, uint32_t stage,
                      uint32_t *place, mp_error *err)
{
    const mp_quantize_unit unit = mp_quantize_unit_of(all->plan, layer, index);
    const char *prefix = layer->source->prefix;
    const mp_form_tensor *weight = mp_form_find(unit.form, unit.projection, MP_ROLE_WEIGHT);
    uint32_t expert = (uint32_t)(index / MP_PROJECTIONS);

    if (!unit.expert->matrix[unit.projection].weight)
        return 0;
    int rc = add_form_tensor(all, weight, prefix, expert, stage, &place[MP_WRITTEN_WEIGHT], err);

    if (rc == 0)
        rc = add_form_tensor(all, mp_form_find(unit.form, unit.projection, MP_ROLE_SCALE), prefix,
                             expert, stage, &place[MP_WRITTEN_SCALE], err);
    if (rc == 0)
        rc = add_form_tensor(all, mp_form_find(unit.form, unit.projection, MP_ROLE_GLOBAL_SCALE),
                             prefix, expert, stage, &place[MP_WRITTEN_GLOBAL], err);
    return rc ? rc : add_carried(all, &unit, weight, prefix, expert, stage, place, err);
}

static int add_experts(entries *all, mp_error *err)
{
    mp_quantize_plan *plan = all->plan;
    uint32_t *place = plan->output_of;

    for (size_t i = 0; i < plan->num_layers; i++)
        for (uint64_t u = 0; u < plan->layers[i].expert_units; u++, place += MP_WRITTEN_COUNT)
            if (add_matrix(all, &plan->layers[i], u, (uint32_t)i, place, err) != 0)
                return err->code;
    return 0;
}

/* ------------------------------------------------------------------------
 * Copies
 */

/* The layer whose prefix a tensor's name has, or the rest behind the layers. */
static uint32_t stage_of(const mp_quantize_plan *plan, const char *name)
{
    /* A name belongs to one layer at most: prefixes are compared up to a dot. */
    for (size_t i = 0; i + 1 < plan->num_layers; i++) {
        const char *prefix = plan->layers[i].source->prefix;
        size_t n = strlen(prefix);

        if (strncmp(name, prefix, n) == 0 && name[n] == '.')
            return (uint32_t)i;
    }
    return (uint32_t)(plan->num_layers - 1);
}

static int add_copies(entries *all, mp_error *err)
{
    const mp_checkpoint *ckpt = &all->plan->catalog->checkpoint;

    for (size_t i = 0; i < ckpt->num_tensors; i++) {
        const mp_tensor *tensor = &ckpt->tensors[i];
        entry *e;

        if (all->replaced[i])
            continue;
        /* An output has room for so many. */
        if (tensor->rank > sizeof all->plan->work.outputs->shape / sizeof(uint64_t))
            return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: %u dimensions cannot be copied",
                           tensor->name, tensor->rank);
        e = add(all, strdup(tensor->name), tensor->dtype, stage_of(all->plan, tensor->name), NULL,
                err);
        if (!e)
            return err->code;
        e->rank = tensor->rank;
        e->shape = tensor->shape;
        e->from = tensor;
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * The order of tensors
 */

/* Tensors of whole multiples of 8 bytes keep all that follows aligned, and stand stage by stage.
 * The others, of which few are large, come last, the widest elements first. */
static unsigned width_class(const entry *e)
{
    return e->bytes % 8 == 0 ? 0 : 1 + 64 - mp_dtype_bits(e->dtype);
}

static int compare(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    unsigned class_x = width_class(x), class_y = width_class(y);

    if (class_x != class_y)
        return class_x < class_y ? -1 : 1;
    if (x->stage != y->stage)
        return x->stage < y->stage ? -1 : 1;
    return strcmp(x->name, y->name);
}

static const uint64_t *shape_of(const entry *e)
{
    return e->shape ? e->shape : e->vector;
}

static int measure(entries *all, mp_error *err)
{
    for (size_t i = 0; i < all->count; i++) {
        entry *e = &all->list[i];
        mp_tensor_spec spec = {e->name, e->dtype, e->rank, shape_of(e)};

        if (mp_tensor_spec_bytes(&spec, &e->bytes, err) != 0)
            return err->code;
    }
    return 0;
}

static int add_outputs(entries *all, mp_error *err)
{
    mp_quantize_plan *plan = all->plan;
    mp_work *work = &plan->work;
    /* Some readers refuse a file that does not say this. */
    const char *const usual[] = {"format", "pt"};
    const mp_checkpoint *ckpt = &plan->catalog->checkpoint;
    bool own = ckpt->num_metadata > 0;

    if (measure(all, err) != 0 || mp_work_reserve(work, all->count, err) != 0)
        return err->code;
    qsort(all->list, all->count, sizeof *all->list, compare);
    for (size_t i = 0; i < all->count; i++) {
        entry *e = &all->list[i];
        /* The work takes the name over, whatever comes of it: it must not be freed here too. */
        char *name = e->name;

        e->name = NULL;
        if (mp_work_add(work, name, e->dtype, shape_of(e), e->rank, e->stage, err) != 0)
            return err->code;
        if (e->place)
            *e->place = (uint32_t)i;
    }
    work->zstd = plan->options.zstd;
    work->part = plan->options.part;
    work->sha256 = plan->options.sha256;
    return mp_work_files(work, 0, NULL, plan->options.max_shard_size,
                         own ? (const char *const *)ckpt->metadata : usual,
                         own ? ckpt->num_metadata : 1, err);
}

/* ------------------------------------------------------------------------
 * Units
 */

static size_t count_pieces(const entries *all)
{
    size_t count = 0;

    for (size_t i = 0; i < all->count; i++)
        if (all->list[i].from)
            count += mp_ceil_div(all->list[i].bytes, COPY_BYTES);
    return count;
}

static int compare_pieces(const void *a, const void *b, void *outputs)
{
    const mp_quantize_piece *x = a, *y = b;
    const mp_out_tensor *out = outputs;

    if (out[x->output].stage != out[y->output].stage)
        return out[x->output].stage < out[y->output].stage ? -1 : 1;
    if (x->output != y->output)
        return x->output < y->output ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static void fill_pieces(const entries *all)
{
    mp_quantize_piece *piece = all->plan->pieces;

    for (size_t i = 0; i < all->count; i++) {
        const entry *e = &all->list[i];

        for (uint64_t at = 0; e->from && at < e->bytes; at += COPY_BYTES)
            *piece++ = (mp_quantize_piece){
                .from = e->from,
                .output = (uint32_t)i,
                .offset = at,
                .bytes = e->bytes - at < COPY_BYTES ? e->bytes - at : COPY_BYTES,
            };
    }
}

/* Puts a stage's pieces from `next` on into units; returns the first piece behind them. */
static size_t group_pieces(mp_quantize_plan *plan, uint32_t stage, size_t next, size_t count)
{
    mp_quantize_layer *layer = &plan->layers[stage];
    /* Full, so that the first piece begins a unit. */
    uint64_t filled = COPY_BYTES;

    for (; next < count && plan->work.outputs[plan->pieces[next].output].stage == stage; next++) {
        const mp_quantize_piece *piece = &plan->pieces[next];

        if (filled + piece->bytes > COPY_BYTES) {
            plan->first_piece[layer->first_copy + layer->copy_units++] = next;
            filled = 0;
        }
        filled += piece->bytes;
    }
    return next;
}

static int make_units(entries *all, mp_error *err)
{
    mp_quantize_plan *plan = all->plan;
    mp_work *work = &plan->work;
    size_t count = count_pieces(all), next = 0;
    uint64_t copies = 0;

    plan->pieces = mp_alloc(count, sizeof *plan->pieces);
    plan->first_piece = mp_alloc(count + 1, sizeof *plan->first_piece);
    if (!plan->pieces || !plan->first_piece)
        return mp_fail_memory(err);
    fill_pieces(all);
    qsort_r(plan->pieces, count, sizeof *plan->pieces, compare_pieces, work->outputs);
    for (size_t i = 0; i < plan->num_layers; i++) {
        mp_quantize_layer *layer = &plan->layers[i];
        uint64_t units;

        layer->first_unit = work->num_units;
        layer->first_copy = copies;
        next = group_pieces(plan, (uint32_t)i, next, count);
        copies += layer->copy_units;
        units = layer->expert_units + layer->copy_units;
        work->num_units += units;
        if (units > work->stage_units)
            work->stage_units = units;
    }
    /* The end of the last unit. */
    plan->num_pieces = plan->first_piece[copies] = count;
    work->num_stages = (uint32_t)plan->num_layers;
    return 0;
}

/* ------------------------------------------------------------------------
 * All of it
 */

static uint64_t expert_units(const mp_quantize_plan *plan)
{
    uint64_t units = 0;

    for (size_t i = 0; i < plan->num_layers; i++)
        units += plan->layers[i].expert_units;
    return units;
}

static int reserve(entries *all, mp_error *err)
{
    mp_quantize_plan *plan = all->plan;
    size_t tensors = plan->catalog->checkpoint.num_tensors;
    uint64_t units = expert_units(plan);

    all->replaced = mp_alloc_zeroed(tensors, sizeof *all->replaced);
    plan->output_of = mp_alloc(units * MP_WRITTEN_COUNT, sizeof *plan->output_of);
    if (!all->replaced || !plan->output_of)
        return mp_fail_memory(err);
    /* UINT32_MAX: a matrix does not have that tensor. */
    memset(plan->output_of, 0xff, units * MP_WRITTEN_COUNT * sizeof *plan->output_of);
    all->list =
        mp_alloc(units * MP_WRITTEN_COUNT + tensors - count_replaced(all), sizeof *all->list);
    return all->list ? 0 : mp_fail_memory(err);
}

int mp_quantize_lay_out(mp_quantize_plan *plan, mp_error *err)
{
    entries all = {.plan = plan};
    int rc = reserve(&all, err);

    if (rc == 0)
        rc = add_experts(&all, err);
    if (rc == 0)
        rc = add_copies(&all, err);
    if (rc == 0)
        rc = add_outputs(&all, err);
    if (rc == 0)
        rc = make_units(&all, err);
    for (size_t i = 0; i < plan->catalog->checkpoint.num_tensors; i++)
        plan->work.bytes_read += plan->catalog->checkpoint.tensors[i].bytes;
    for (size_t i = 0; i < all.count; i++)
        free(all.list[i].name);
    free(all.list);
    free(all.replaced);
    return rc;
}
