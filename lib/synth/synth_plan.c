/* SPDX-License-Identifier: Apache-2.0 */
/* The list of a synthetic checkpoint's tensors, and which shard each goes to. An item is a matrix
 * with its scales, or a stack of all experts' matrices, with the names of all its tensors put
 * together in an arena; it is never in two shards, so that a tile's parts go to one file.
 *
 *   items                [a][b][c][d]...      in the order of layers
 *   shards.first_item     ^     ^             one more than there are shards, for the end
 *
 * Sizes are added with a check for overflow as items come in, so that everything behind may
 * multiply them. One thread; not changed after. */
#include "synth/parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/families.h"

#define DEFAULT_SHARD_SIZE 5000000000u

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

/* Copies what the item's values are named after: by default, its weight. */
static int copy_sources(mp_synth_plan *plan, mp_synth_item *item, mp_error *err)
{
    const char *const sources[] = {item->sources[0], item->sources[1]};

    if (!sources[0]) {
        item->sources[0] =
            join(plan, item->name,
                 *mp_synth_item_part(item, 0).suffix ? mp_suffixes[MP_SUFFIX_WEIGHT].text : "");
        return item->sources[0] ? 0 : mp_fail_memory(err);
    }
    for (unsigned i = 0; i < 2 && sources[i]; i++) {
        item->sources[i] = join(plan, sources[i], "");
        if (!item->sources[i])
            return mp_fail_memory(err);
    }
    return 0;
}

/* Copies the item's texts, and puts its tensors' names together. */
static int copy_names(mp_synth_plan *plan, mp_synth_item *item, mp_error *err)
{
    if (copy_sources(plan, item, err) != 0)
        return err->code;
    for (unsigned p = 0; p < MP_SYNTH_PARTS && mp_synth_item_part(item, p).suffix; p++) {
        item->names[p] = join(plan, item->name, mp_synth_item_part(item, p).suffix);
        if (!item->names[p])
            return mp_fail_memory(err);
    }
    item->name = NULL; /* the caller's, and not needed again */
    if (item->stack && !(item->stack = join(plan, item->stack, "")))
        return mp_fail_memory(err);
    return 0;
}

int mp_synth_plan_add(mp_synth_plan *plan, const mp_synth_item *given, mp_error *err)
{
    mp_synth_item item = *given;

    item.convention = mp_synth_convention(given->form);

    if (copy_names(plan, &item, err) != 0 || mp_synth_item_measure(&item, err) != 0 ||
        reserve(plan, err) != 0)
        return err->code;
    if (!mp_add_u64(plan->bytes, item.bytes, &plan->bytes) || plan->bytes > INT64_MAX)
        return mp_fail(err, MP_ERR_USAGE, "\"%s\" makes the checkpoint larger than 2^63 bytes",
                       item.names[0]);
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

        /* An item larger than the limit has a shard of its own; limit - bytes does not wrap
         * then. */
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

/* Adds an item's tensors to the map. */
static int map_item(json_t *map, const mp_synth_item *item, const mp_synth_shard *shard)
{
    for (unsigned p = 0; p < MP_SYNTH_PARTS && item->names[p]; p++)
        if (json_object_set_new(map, item->names[p], json_string(shard->name)) != 0)
            return -1;
    return 0;
}

char *mp_synth_plan_index(const mp_synth_plan *plan)
{
    json_t *index = json_pack("{s:{s:I}, s:{}}", "metadata", "total_size", (json_int_t)plan->bytes,
                              "weight_map");
    json_t *map = json_object_get(index, "weight_map");
    char *text = NULL;

    for (size_t s = 0; index && s < plan->num_shards; s++)
        for (size_t i = plan->shards[s].first_item; i < plan->shards[s + 1].first_item; i++)
            if (map_item(map, &plan->items[i], &plan->shards[s]) != 0)
                goto out;
    if (index)
        text = mp_json_text(index);
out:
    json_decref(index);
    return text;
}
