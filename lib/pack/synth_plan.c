/* SPDX-License-Identifier: Apache-2.0 */
/* The list of a synthetic checkpoint's tensors, and which shard each goes to. */
#include "pack/synth.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json.h"

#define DEFAULT_SHARD_SIZE 5000000000u

/* Bytes of a tile, unless a single row of blocks is larger. */
#define TILE_BYTES ((uint64_t)1 << 20)

/* A copy of both texts, one behind the other, in the plan's arena. */
static const char *join(mp_synth_plan *plan, const char *name, const char *suffix)
{
    size_t n = strlen(name), m = strlen(suffix);
    char *text = mp_arena_alloc(&plan->names, n + m + 1);

    if (text) {
        memcpy(text, name, n);
        memcpy(text + n, suffix, m + 1);
    }
    return text;
}

/* Makes room for one more item. */
static int reserve(mp_synth_plan *plan, mp_error *err)
{
    size_t room = plan->room > 0 ? 2 * plan->room : 64;
    mp_synth_item *items;

    if (plan->num_items < plan->room)
        return 0;
    items = realloc(plan->items, room * sizeof *items);
    if (!items)
        return mp_fail_memory(err);
    plan->items = items;
    plan->room = room;
    return 0;
}

static uint64_t tile_rows(const mp_synth_form *form, uint64_t cols)
{
    uint64_t block_bytes = form->block_rows * mp_synth_row_bytes(form, cols);
    uint64_t blocks = form->block_rows > 1 ? 1 : TILE_BYTES / block_bytes;

    return (blocks > 0 ? blocks : 1) * form->block_rows;
}

void mp_synth_item_specs(const mp_synth_item *item, mp_tensor_spec *weight, mp_tensor_spec *scale)
{
    const mp_synth_form *form = item->form;

    *weight = (mp_tensor_spec){item->name, form->dtype, form->rank, item->shape + (2 - form->rank)};
    *scale = (mp_tensor_spec){item->scale_name, form->scale_dtype, 2, item->scale_shape};
}

/* Bytes of the item's tensors. */
static int measure(mp_synth_item *item, mp_error *err)
{
    mp_tensor_spec weight, scale;
    uint64_t scale_bytes = 0;

    mp_synth_item_specs(item, &weight, &scale);
    int rc = mp_tensor_spec_bytes(&weight, &item->bytes, err);
    if (rc == 0 && item->scale_name)
        rc = mp_tensor_spec_bytes(&scale, &scale_bytes, err);
    if (rc != 0)
        return mp_fail(err, MP_ERR_USAGE, "\"%s\" would be too large, with %llu rows of %llu",
                       item->name, (unsigned long long)item->rows, (unsigned long long)item->cols);
    item->bytes += scale_bytes; /* neither is above 2^63 */
    return 0;
}

int mp_synth_plan_add(mp_synth_plan *plan, const mp_synth_form *form, const char *name,
                      uint64_t rows, uint64_t cols, mp_error *err)
{
    mp_synth_item item = {
        .form = form,
        .rows = rows,
        .cols = cols,
        .shape = {rows, cols / form->packing},
        .scale_shape = {mp_ceil_div(rows, form->block_rows), mp_ceil_div(cols, form->block_cols)},
        .tile_rows = tile_rows(form, cols),
    };

    item.name = join(plan, name, form->suffix);
    if (form->scale_suffix)
        item.scale_name = join(plan, name, form->scale_suffix);
    if (!item.name || (form->scale_suffix && !item.scale_name))
        return mp_fail_memory(err);
    if (measure(&item, err) != 0 || reserve(plan, err) != 0)
        return err->code;
    if (!mp_add_u64(plan->bytes, item.bytes, &plan->bytes) || plan->bytes > INT64_MAX)
        return mp_fail(err, MP_ERR_USAGE, "\"%s\" makes the checkpoint larger than 2^63 bytes",
                       item.name);
    plan->items[plan->num_items++] = item;
    return 0;
}

/* Splits the items into shards of at most the shard size, an item never in two. */
static int split(mp_synth_plan *plan, mp_error *err)
{
    uint64_t limit = plan->options->max_shard_size;
    uint64_t filled = 0;

    if (limit == 0)
        limit = DEFAULT_SHARD_SIZE;
    plan->shards = mp_alloc_zeroed(plan->num_items + 1, sizeof *plan->shards);
    if (!plan->shards)
        return mp_fail_memory(err);
    for (size_t i = 0; i < plan->num_items; i++) {
        uint64_t bytes = plan->items[i].bytes;

        if (i == 0 || bytes > limit || filled > limit - bytes) {
            plan->shards[plan->num_shards++].first_item = i;
            filled = 0;
        }
        filled += bytes;
    }
    plan->shards[plan->num_shards].first_item = plan->num_items;
    for (size_t i = 0; i < plan->num_shards; i++)
        snprintf(plan->shards[i].name, sizeof plan->shards[i].name,
                 "model-%05zu-of-%05zu.safetensors", i + 1, plan->num_shards);
    return 0;
}

int mp_synth_plan_init(mp_synth_plan *plan, const mp_synth_options *options, mp_error *err)
{
    *plan = (mp_synth_plan){.options = options};
    if (mp_synth_check(options, &plan->family, &plan->format, err) != 0)
        return err->code;
    plan->model = mp_family_find(options->family);
    if (mp_synth_family_items(plan, err) != 0 || split(plan, err) != 0)
        return err->code;
    return 0;
}

void mp_synth_plan_release(mp_synth_plan *plan)
{
    mp_arena_release(&plan->names);
    free(plan->items);
    free(plan->shards);
    *plan = (mp_synth_plan){0};
}

static int map_name(json_t *map, const char *name, const mp_synth_shard *shard)
{
    return name ? json_object_set_new(map, name, json_string(shard->name)) : 0;
}

char *mp_synth_plan_index(const mp_synth_plan *plan)
{
    json_t *index = json_pack("{s:{s:I}, s:{}}", "metadata", "total_size", (json_int_t)plan->bytes,
                              "weight_map");
    json_t *map = json_object_get(index, "weight_map");
    char *text = NULL;

    for (size_t s = 0; index && s < plan->num_shards; s++)
        for (size_t i = plan->shards[s].first_item; i < plan->shards[s + 1].first_item; i++)
            if (map_name(map, plan->items[i].name, &plan->shards[s]) != 0 ||
                map_name(map, plan->items[i].scale_name, &plan->shards[s]) != 0)
                goto out;
    if (index)
        text = mp_json_text(index);
out:
    json_decref(index);
    return text;
}
