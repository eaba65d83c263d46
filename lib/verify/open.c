/* SPDX-License-Identifier: Apache-2.0 */
/* From the manifest to what a pack has to be: the target, sizes, slots and selections. */
#include "verify/check.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/file.h"
#include "pack/manifest.h"

/* More than any model has, and small enough that sizes of tensors fit 64 bits. */
#define SIZE_MAX_SANE (1u << 20)
#define RANKS_MAX     65536u

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
    if (rc == MP_ERR_CHECK || rc == MP_ERR_INPUT) {
        mp_fault_add(&check->faults, &spot, "%s", err->message);
        return 0;
    }
    *usable = rc == 0;
    return rc;
}

static int compare_layers(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* A layer that is named twice would have tensors of the same name. */
static int check_layers(mp_check *check, bool *usable, mp_error *err)
{
    const mp_manifest *m = &check->manifest;
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_STRUCTURE, -1);
    char **sorted = mp_alloc(m->num_layers, sizeof *sorted);

    if (!sorted)
        return mp_fail_memory(err);
    memcpy(sorted, m->layers, m->num_layers * sizeof *sorted);
    qsort(sorted, m->num_layers, sizeof *sorted, compare_layers);
    for (size_t i = 1; i < m->num_layers; i++) {
        if (strcmp(sorted[i - 1], sorted[i]) == 0) {
            mp_fault_add(&check->faults, &spot, "%s: layer %s is listed twice", MP_MANIFEST_NAME,
                         sorted[i]);
            *usable = false;
        }
    }
    free(sorted);
    return 0;
}

/* Shared experts that are packed are those of a model that has some. */
static int check_shared(const mp_manifest *m, mp_error *err)
{
    if (m->shared == MP_SHARED_NONE)
        return 0;
    if (m->num_shared_experts == 0)
        return mp_fail(err, MP_ERR_INPUT, "shared experts are %s, but the model has none",
                       mp_shared_mode_name(m->shared));
    if (!m->shared_form)
        return mp_fail(err, MP_ERR_INPUT, "shared experts are %s, but shared_forms is missing",
                       mp_shared_mode_name(m->shared));
    if (m->num_shared_experts > SIZE_MAX_SANE / (m->moe_intermediate_size + 1))
        return mp_fail(err, MP_ERR_INPUT,
                       "%" PRIu64 " shared experts of size %" PRIu64 " are wider than %u",
                       m->num_shared_experts, m->moe_intermediate_size, SIZE_MAX_SANE);
    return 0;
}

/* What keeps the numbers of the manifest from being those of a pack. */
static int check_numbers(mp_check *check, mp_error *err)
{
    const mp_manifest *m = &check->manifest;

    if (m->hidden_size > SIZE_MAX_SANE || m->moe_intermediate_size > SIZE_MAX_SANE)
        return mp_fail(err, MP_ERR_INPUT, "sizes %" PRIu64 " and %" PRIu64 " are over %u",
                       m->hidden_size, m->moe_intermediate_size, SIZE_MAX_SANE);
    if (m->ep_size > RANKS_MAX)
        return mp_fail(err, MP_ERR_INPUT, "ep_size %" PRIu64 " is over %u", m->ep_size, RANKS_MAX);
    if (m->num_layers == 0 || m->num_layers > m->model_layers)
        return mp_fail(err, MP_ERR_INPUT, "%zu of the model's %" PRIu64 " MoE layers",
                       m->num_layers, m->model_layers);
    if (m->num_ranks == 0)
        return mp_fail(err, MP_ERR_INPUT, "no rank");
    if (m->target_scheme != check->target->scheme)
        return mp_fail(err, MP_ERR_INPUT, "quantized to %s, but %s takes %s",
                       mp_scheme_name(m->target_scheme), m->target,
                       mp_scheme_name(check->target->scheme));
    return check_shared(m, err);
}

/* Adds the tensors that a target has for these slots. */
static int add_set(mp_check *check, const mp_target *target, const char *block, mp_dims dims,
                   uint32_t slots, mp_error *err)
{
    mp_tensor_set *set = &check->sets[check->num_sets];
    mp_problems warnings = {0};

    int rc = target->check(&dims, &warnings, err);
    mp_problems_release(&warnings);
    if (rc != 0)
        return rc;
    *set = (mp_tensor_set){
        .target = target,
        .dims = dims,
        .block = block,
        .slots = slots,
        .first = check->num_tensors,
    };
    set->num_tensors = target->describe(&dims, set->tensors);
    check->num_sets++;
    check->num_tensors += set->num_tensors;
    return 0;
}

/* What a layer has on a rank. */
static int settle_sets(mp_check *check, mp_error *err)
{
    const mp_manifest *m = &check->manifest;
    uint32_t shared = (uint32_t)m->num_shared_experts;
    uint32_t fused = m->shared == MP_SHARED_FUSED ? shared : 0;
    mp_dims dims = {m->hidden_size, m->moe_intermediate_size};
    const mp_target *separate = check->target->separate;

    int rc = mp_slots_init(&check->slots, (uint32_t)m->num_experts, (uint32_t)m->num_physical,
                           (uint32_t)m->ep_size, fused, false, err);
    if (rc == 0)
        rc = add_set(check, check->target, "experts", dims, mp_slots_per_rank(&check->slots), err);
    if (rc != 0 || m->shared != MP_SHARED_SEPARATE)
        return rc;
    if (separate->single) {
        dims.intermediate_size *= shared;
        shared = 1;
    }
    return add_set(check, separate, "shared_experts", dims, shared, err);
}

/* The target, when this version knows it. */
static int find_target(mp_check *check, mp_error *err)
{
    const mp_manifest *m = &check->manifest;

    check->target = mp_target_find(m->target);
    if (!check->target || m->target_version != check->target->version)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: this version does not know target %s/%" PRIu64,
                       MP_MANIFEST_NAME, m->target, m->target_version);
    if (m->nz) {
        if (!check->target->nz)
            return mp_fail(err, MP_ERR_UNSUPPORTED,
                           "%s: this version knows no FRACTAL_NZ form of %s", MP_MANIFEST_NAME,
                           m->target);
        check->target = check->target->nz;
    }
    return 0;
}

int mp_check_open(mp_check *check, bool *usable, mp_error *err)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_STRUCTURE, -1);
    mp_error why = {0};

    mp_faults_add_part(&check->faults, -1, MP_VERIFY_STRUCTURE);
    int rc = load_manifest(check, usable, err);
    if (rc != 0 || !*usable)
        return rc;
    rc = find_target(check, err);
    if (rc == 0)
        rc = check_layers(check, usable, err);
    if (rc != 0)
        return rc;
    rc = check_numbers(check, &why);
    if (rc == 0)
        rc = settle_sets(check, &why);
    if (rc == MP_ERR_INPUT || rc == MP_ERR_UNSUPPORTED) {
        mp_fault_add(&check->faults, &spot, "%s: %s", MP_MANIFEST_NAME, why.message);
        *usable = false;
        return 0;
    }
    if (rc != 0)
        *err = why;
    return rc;
}

const mp_tensor_set *mp_check_set(const mp_check *check, unsigned tensor)
{
    const mp_tensor_set *set = check->sets;

    while (tensor >= set->first + set->num_tensors)
        set++;
    return set;
}

const mp_slot_tensor *mp_check_tensor(const mp_check *check, unsigned tensor)
{
    const mp_tensor_set *set = mp_check_set(check, tensor);

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
    const mp_context *context = check->context;

#pragma omp critical(mp_check_progress)
    {
        check->progress_done += bytes;
        if (context && context->progress)
            context->progress(context->progress_user, check->progress_done, check->progress_total);
    }
}
