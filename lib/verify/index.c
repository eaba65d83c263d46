/* SPDX-License-Identifier: Apache-2.0 */
/* The index file of a rank, which loaders of Hugging Face checkpoints read first. */
#include "verify/check.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/shard.h"

/* Bytes of all tensors that a rank has to hold. */
static int rank_bytes(const mp_check *check, const mp_rank *rank, uint64_t *bytes, mp_error *err)
{
    *bytes = 0;
    for (size_t layer = 0; layer < check->manifest.num_layers; layer++) {
        for (unsigned t = 0; t < check->shape.num_tensors; t++) {
            bool wants;

            if (mp_rank_wants(check, rank->packed, layer, t, &wants, err) != 0)
                return err->code;
            *bytes += wants ? mp_check_tensor_bytes(check, t) : 0;
        }
    }
    return 0;
}

/* Every tensor that the manifest lists stands in weight_map, and nothing else. */
static void check_weight_map(mp_check *check, const mp_rank *rank, json_t *map)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_STRUCTURE, rank->packed->rank);
    size_t listed = 0;

    for (size_t f = 0; f < rank->packed->num_files; f++) {
        const mp_packed_file *file = &rank->packed->files[f];

        listed += file->num_tensors;
        for (size_t i = 0; i < file->num_tensors; i++) {
            const char *name = json_string_value(json_object_get(map, file->tensors[i].name));

            if (!name || !mp_shard_same_name(name, file->name))
                mp_fault_add(&check->faults, &spot, "%s: says that %s is in %s, not %s",
                             MP_INDEX_NAME, file->tensors[i].name, name ? name : "no file",
                             file->name);
        }
    }
    if (json_object_size(map) != listed)
        mp_fault_add(&check->faults, &spot, "%s: %zu tensor%s, the manifest lists %zu",
                     MP_INDEX_NAME, json_object_size(map), mp_plural(json_object_size(map)),
                     listed);
}

/* MP_ERR_INPUT when it is no index. */
static int check_content(mp_check *check, const mp_rank *rank, const json_t *index, mp_error *err)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_STRUCTURE, rank->packed->rank);
    json_t *metadata, *map;
    uint64_t total, bytes;

    int rc = mp_json_get_object(index, "metadata", MP_INDEX_NAME, &metadata, err);
    if (rc == 0)
        rc = mp_json_get_u64(metadata, "total_size", MP_INDEX_NAME, &total, err);
    if (rc == 0)
        rc = mp_json_get_object(index, "weight_map", MP_INDEX_NAME, &map, err);
    if (rc == 0)
        rc = rank_bytes(check, rank, &bytes, err);
    if (rc != 0)
        return rc;
    if (total != bytes)
        mp_fault_add(&check->faults, &spot,
                     "%s: total_size %" PRIu64 ", but the tensors of a rank are %" PRIu64 " bytes",
                     MP_INDEX_NAME, total, bytes);
    check_weight_map(check, rank, map);
    return 0;
}

int mp_check_index(mp_check *check, const mp_rank *rank, mp_error *err)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_STRUCTURE, rank->packed->rank);
    json_t *index = NULL;
    char *text;
    uint64_t length;

    int rc = mp_check_text(check, &spot, rank->dir, MP_INDEX_NAME, rank->packed->index_xxh3, &text,
                           &length, err);
    if (rc != 0 || !text)
        return rc;
    rc = mp_json_parse(text, length, MP_INDEX_NAME, &index, err);
    free(text);
    if (rc == 0)
        rc = check_content(check, rank, index, err);
    json_decref(index);
    if (rc != MP_ERR_INPUT)
        return rc;
    mp_fault_add(&check->faults, &spot, "%s", err->message);
    return 0;
}
