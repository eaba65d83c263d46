/* SPDX-License-Identifier: Apache-2.0 */
/* From the manifest to what a pack has to be: the target, sizes, slots and selections. */
#include "pack/shape.h"
#include "verify/check.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/file.h"
#include "base/select.h"
#include "pack/manifest.h"

/* Reads and parses moepack.json; *usable is false where that is a fault. */
static int load_manifest(mp_check *check, bool *usable, mp_error *err)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_STRUCTURE, -1);
    char *text;
    uint64_t length;

    *usable = false;
    int rc = mp_manifest_read(check->dir, &text, &length, err);
    if (rc != 0)
        return rc;
    rc = mp_manifest_parse(&check->manifest, text, length, err);
    free(text);
    if (rc == MP_ERR_INPUT) {
        mp_fault_add(&check->faults, &spot, "%s", err->message);
        return 0;
    }
    *usable = rc == 0;
    return rc;
}

int mp_check_open(mp_check *check, bool *usable, mp_error *err)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_STRUCTURE, -1);
    const mp_target *target;
    mp_error why = {0};

    mp_faults_add_part(&check->faults, -1, MP_VERIFY_STRUCTURE);
    int rc = load_manifest(check, usable, err);
    if (rc == 0 && *usable)
        rc = mp_manifest_target(&check->manifest, &target, err);
    if (rc != 0 || !*usable)
        return rc;
    rc = mp_manifest_shape(&check->manifest, &check->shape, &why);
    if (rc == MP_ERR_INPUT || rc == MP_ERR_UNSUPPORTED) {
        mp_fault_add(&check->faults, &spot, "%s", why.message);
        *usable = false;
        return 0;
    }
    if (rc != 0)
        *err = why;
    return rc;
}

const mp_slot_set *mp_check_set(const mp_check *check, unsigned tensor)
{
    const mp_slot_set *set = check->shape.sets;

    while (tensor >= set->first + set->num_tensors)
        set++;
    return set;
}

const mp_slot_tensor *mp_check_tensor(const mp_check *check, unsigned tensor)
{
    const mp_slot_set *set = mp_check_set(check, tensor);

    return &set->tensors[tensor - set->first];
}

uint64_t mp_check_tensor_bytes(const mp_check *check, unsigned tensor)
{
    return mp_check_tensor(check, tensor)->slot_bytes * mp_check_set(check, tensor)->slots;
}

void mp_check_release(mp_check *check)
{
    mp_placement_release(&check->placement);
    mp_manifest_release(&check->manifest);
    mp_faults_release(&check->faults);
    free(check->layers);
    free(check->ranks);
}

/* A rank that is asked for has to be in the pack. */
static int check_rank_list(const mp_check *check, mp_error *err)
{
    const mp_manifest *m = &check->manifest;
    size_t next = 0;

    for (uint32_t rank = 0; rank < m->ep_size; rank++) {
        if (next < m->num_ranks && m->ranks[next].rank == rank)
            next++;
        else if (check->ranks[rank])
            return mp_fail(err, MP_ERR_USAGE, "list \"%s\": rank %u is not in this pack",
                           check->options->ranks, rank);
    }
    return 0;
}

int mp_check_select(mp_check *check, mp_error *err)
{
    const mp_manifest *m = &check->manifest;
    const mp_verify_options *options = check->options;

    check->layers = mp_alloc(m->num_layers, sizeof *check->layers);
    check->ranks = mp_alloc(m->ep_size, sizeof *check->ranks);
    if (!check->layers || !check->ranks)
        return mp_fail_memory(err);
    int rc = mp_select_layers(options->layers, (const char *const *)m->layers, m->num_layers,
                              check->layers, err);
    if (rc == 0)
        rc = mp_select_ranks(options->ranks, (uint32_t)m->ep_size, check->ranks, err);
    if (rc == 0 && options->ranks)
        rc = check_rank_list(check, err);
    for (size_t i = 0; i < m->num_layers; i++)
        check->num_layers += check->layers[i];
    return rc;
}

void mp_check_advance(mp_check *check, uint64_t bytes)
{
    mp_meter_add(&check->meter, check->context, bytes);
}
