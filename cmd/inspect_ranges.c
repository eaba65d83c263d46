/* SPDX-License-Identifier: Apache-2.0 */
/* moepack inspect --ranges: where in the files of a pack every copy of every expert lies, for those
 * who read, send or replace single experts without reading headers themselves. */
#include "inspect.h"
#include "output.h"

#include <inttypes.h>

/* The bytes of a copy of an expert in one tensor. */
typedef struct range {
    const char *layer;
    uint32_t expert; /* as mp_shape counts */
    mp_place place;
    const char *tensor;
    char rank[24]; /* directory of the file */
    const char *file;
    uint64_t offset, length;
} range;

typedef void visit_range(void *user, const range *r);

/* Copies in order of layers, experts, ranks and slots; those on ranks that are not here are left
 * out. */
static void each_range(const mp_pack *pack, visit_range *visit, void *user)
{
    for (size_t layer = 0; layer < mp_pack_get(pack)->manifest->num_layers; layer++)
        for (uint32_t id = 0, count; id < mp_pack_get(pack)->shape->num_ids; id++) {
            const mp_slot_set *set = mp_shape_set(mp_pack_get(pack)->shape, id);
            const mp_place *copies = mp_pack_copies(pack, layer, id, &count);

            for (uint32_t i = 0; i < count * set->num_tensors; i++) {
                const mp_slot_tensor *tensor = &set->tensors[i % set->num_tensors];
                mp_place place = copies[i / set->num_tensors];
                const mp_tensor *whole = mp_pack_tensor(pack, layer, place.rank, set, tensor);

                if (!whole)
                    continue;
                range r = {.layer = mp_pack_get(pack)->manifest->layers[layer],
                           .expert = id,
                           .place = place,
                           .tensor = whole->name,
                           .file = mp_pack_rank(pack, place.rank)->shards[whole->shard].name,
                           .offset = whole->offset + place.slot * tensor->slot_bytes,
                           .length = tensor->slot_bytes};
                snprintf(r.rank, sizeof r.rank, "rank-%03" PRIu32, place.rank);
                visit(user, &r);
            }
        }
}

static void add_range(void *user, const range *r)
{
    json_t *file = json_sprintf("%s/%s", r->rank, r->file);

    json_array_append_new(
        user, json_pack("{s:s, s:I, s:I, s:I, s:s, s:o, s:I, s:I}", "layer", r->layer, "expert",
                        (json_int_t)r->expert, "rank", (json_int_t)r->place.rank, "slot",
                        (json_int_t)r->place.slot, "tensor", r->tensor, "file", file, "offset",
                        (json_int_t)r->offset, "length", (json_int_t)r->length));
}

json_t *ranges_json(const mp_pack *pack)
{
    json_t *list = json_array();

    if (list)
        each_range(pack, add_range, list);
    return list;
}

static void print_range(void *user, const range *r)
{
    (void)user;
    print_name(stdout, r->layer);
    printf(" expert %u  rank %u slot %u  ", r->expert, r->place.rank, r->place.slot);
    print_name(stdout, r->tensor);
    printf("  %s/", r->rank);
    print_name(stdout, r->file);
    printf("  %" PRIu64 " + %" PRIu64 "\n", r->offset, r->length);
}

void print_ranges(const mp_pack *pack)
{
    each_range(pack, print_range, NULL);
}
