/* SPDX-License-Identifier: Apache-2.0 */
/* moepack extract: one expert of a pack as a safetensors file.
 *
 * Every tensor of the file is what a rank with this one slot would hold: the same name, type and
 * bytes, and a first dimension of 1. So whoever moves an expert copies whole tensors. All of it is
 * read before the file is opened: a pack that cannot be read leaves nothing behind. */
#include "commands.h"
#include "files.h"
#include "output.h"
#include "progress.h"

#include <inttypes.h>
#include <moepack/artifact.h>
#include <stdlib.h>
#include <string.h>

typedef struct extract_options {
    common_options common;
    const char *pack;
    const char *layer;
    uint64_t expert;
    const char *out;
} extract_options;

/* The tensors of an expert in a slot. */
typedef struct slice {
    const mp_slot_set *set;
    mp_place place;
    size_t num_tensors;
    const mp_slot_tensor *tensors[MP_TARGET_TENSORS];
    mp_tensor_spec specs[MP_TARGET_TENSORS];
    uint64_t shapes[MP_TARGET_TENSORS][5];
    uint64_t bytes;
} slice;

/* Finds the first copy of the expert on a rank that is here. */
static int find_slice(const mp_pack *pack, size_t layer, uint64_t expert, slice *s, mp_error *err)
{
    uint32_t num_ids = mp_pack_get(pack)->shape->num_ids, count;

    if (expert >= num_ids)
        return cmd_fail(err, MP_ERR_USAGE, "--expert %" PRIu64 ": %s has the experts 0 to %u",
                        expert, mp_pack_get(pack)->manifest->layers[layer], num_ids - 1);
    const mp_place *copies = mp_pack_copies(pack, layer, (uint32_t)expert, &count);
    if (count == 0)
        return cmd_fail(err, MP_ERR_INPUT,
                        "%s: no rank that is present holds a copy of expert %" PRIu64,
                        mp_pack_get(pack)->manifest->layers[layer], expert);
    *s = (slice){.set = mp_shape_set(mp_pack_get(pack)->shape, (uint32_t)expert),
                 .place = copies[0]};
    for (unsigned t = 0; t < s->set->num_tensors; t++) {
        const mp_slot_tensor *tensor = &s->set->tensors[t];
        const mp_tensor *whole = mp_pack_tensor(pack, layer, s->place.rank, s->set, tensor);

        if (!whole)
            continue; /* optional, and the source had none */
        uint64_t *shape = s->shapes[s->num_tensors];
        s->tensors[s->num_tensors] = tensor;
        s->specs[s->num_tensors++] =
            (mp_tensor_spec){.name = whole->name,
                             .dtype = whole->dtype,
                             .rank = mp_slots_shape(s->set->target, tensor, 1, shape),
                             .shape = shape};
        s->bytes += tensor->slot_bytes;
    }
    return 0;
}

static int write_slice(const mp_pack *pack, size_t layer, const extract_options *o, const slice *s,
                       mp_error *err)
{
    char expert[24], *header = NULL;
    uint8_t *data = malloc(s->bytes + 1);
    uint64_t header_bytes, offsets[MP_TARGET_TENSORS + 1], at = 0;
    int rc = data ? 0 : cmd_fail(err, MP_ERR_IO, "out of memory");

    snprintf(expert, sizeof expert, "%" PRIu64, o->expert);
    const char *metadata[] = {"format", "pt",
                              "target", mp_pack_get(pack)->manifest->target,
                              "layer",  mp_pack_get(pack)->manifest->layers[layer],
                              "expert", expert};
    if (rc == 0)
        rc = mp_safetensors_header(s->specs, s->num_tensors, metadata, 4, MP_SAFETENSORS_ALIGN,
                                   &header, &header_bytes, offsets, err);
    for (size_t t = 0; t < s->num_tensors && rc == 0; t++) {
        uint64_t bytes = s->tensors[t]->slot_bytes;

        rc = mp_pack_read(pack, layer, s->place, s->set, s->tensors[t], 0, bytes, data + at, err);
        at += bytes;
    }
    if (rc == 0) {
        const file_piece pieces[] = {{header, header_bytes}, {data, s->bytes}};

        rc = write_pieces(o->out, pieces, 2, err);
    }
    free(header);
    free(data);
    return rc;
}

static int run_extract(const void *values, mp_error *err)
{
    const extract_options *o = values;
    const mp_pack_options options = {.size = sizeof options, .partial = true};
    mp_context context;
    mp_pack *pack;
    size_t layer;
    slice s;

    cmd_context(&o->common, &context);
    int rc = mp_pack_open(&pack, o->pack, &options, &context, err);
    if (rc != 0)
        return blame_file(o->pack, err);
    rc = mp_pack_layer(pack, o->layer, &layer, err);
    if (rc == 0)
        rc = find_slice(pack, layer, o->expert, &s, err);
    if (rc == 0)
        rc = write_slice(pack, layer, o, &s, err);
    mp_pack_release(pack);
    return rc;
}

static const cmd_option options[] = {
    OPT_STRING(0, "layer", "L", extract_options, layer, "the layer: its number or its prefix",
               .flags = OPT_REQUIRED),
    OPT_U64(0, "expert", "E", extract_options, expert, 0, UINT32_MAX,
            "the expert; packed shared experts follow the routed ones", .flags = OPT_REQUIRED),
    OPT_STRING('o', "output", "FILE", extract_options, out,
               "the safetensors file to write, - for standard output", .flags = OPT_REQUIRED),
    OPT_END,
};
static const cmd_argument arguments[] = {ARG_ONE("OUT", extract_options, pack), ARG_END};
static const extract_options defaults = {0};

const command command_extract = {
    .name = "extract",
    .summary = "write one expert of a pack to a file",
    .options = options,
    .arguments = arguments,
    COMMAND_DEFAULTS(defaults),
    .run = run_extract,
};
