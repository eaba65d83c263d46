/* SPDX-License-Identifier: Apache-2.0 */
/* Chains: which deltas change which tensor. A chain is a full version and what follows it, in
 * order; a full version in between starts anew, and what is before it is only checked.
 *
 * What is asked of a chain is asked by tensor of the base, and most tensors have few links or none.
 * So links lie in one array, grouped by tensor, with the usual index of where each group begins:
 *
 *   row    [part]            the first tensor of a part, of all tensors in one row
 *   first  [tensors + 1]     the first link of a tensor; the next one's is the end of its own
 *   links  [all]             in the order of the chain within a tensor
 *
 * Opening makes sure that each stream is of a tensor of the base, in the same part, so that all who
 * walk the links need not ask. A stream does not say how long its tensor is: that is the base's to
 * say, and decoding holds the stream against it (patch.c).
 *
 * Opened by one thread, only read after that; mp_chain_patch may be called by many. */
#include "delta/chain.h"

#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"

/* Positions are of 32 bits: the last byte that one can name is 2^32 - 1. */
#define OVERWRITE_MAX (UINT64_C(1) << 32)

static int open_versions(mp_chain *chain, const char *base, uint64_t unnumbered,
                         const char *const *deltas, size_t count, const mp_context *context,
                         mp_error *err)
{
    int rc = 0;

    chain->versions = mp_alloc_zeroed(count + 1, sizeof *chain->versions);
    if (!chain->versions)
        return mp_fail_memory(err);
    for (size_t i = 0; rc == 0 && i <= count; i++) {
        mp_delta_version *v = &chain->versions[i];

        rc = mp_version_open(v, i == 0 ? base : deltas[i - 1], i > 0, context, err);
        if (rc != 0)
            break;
        /* From here on releasing the chain releases this version too; one that failed has released
         * itself. */
        chain->count++;
        if (!v->delta)
            chain->base = i;
        else if (i == 0)
            rc = mp_fail(err, MP_ERR_USAGE, "\"%s\" is a delta: a chain begins with a full version",
                         base);
        if (!v->numbered && !v->delta && unnumbered < MP_BASE_UNCHECKED) {
            v->terms.version = i == 0 ? unnumbered : v[-1].terms.version + 1;
            v->numbered = true;
        }
        /* mp_chain_check_base makes up for numbers once it is known which version the base is. */
        if (rc == 0 && i > 0)
            rc = i == 1 && unnumbered == MP_BASE_UNCHECKED
                     ? mp_version_check_alike(v, v - 1, err)
                     : mp_version_check_follows(v, v - 1, err);
    }
    return rc;
}

/* The tensor of the base that a stream is of, and that the stream can be of it. */
static int find_tensor(const mp_chain *chain, size_t p, const mp_patch_link *link, size_t *tensor,
                       mp_error *err)
{
    const mp_delta_version *base = mp_chain_base(chain);
    const mp_checkpoint *ckpt = &base->parts[p].ckpt;
    const mp_tensor *t = mp_checkpoint_find(ckpt, link->stream->name);
    char part[MP_PART_TEXT];

    mp_part_text(link->part, part);
    if (!t)
        return mp_fail(err, MP_ERR_INPUT, "%s: %stensor \"%s\" is not in \"%s\"",
                       link->version->dir, part, link->stream->name, base->dir);
    if (link->version->terms.encoding == MP_DELTA_OVERWRITE && t->bytes >= OVERWRITE_MAX)
        return mp_fail(err, MP_ERR_INPUT,
                       "%s: %stensor \"%s\": %" PRIu64 " bytes, which positions of 32 bits cannot "
                       "overwrite",
                       link->version->dir, part, t->name, t->bytes);
    *tensor = (size_t)(t - ckpt->tensors);
    return 0;
}

/* Goes through every stream of the chain's deltas. fill: else it only counts. */
static int visit_links(mp_chain *chain, bool fill, mp_error *err)
{
    const mp_delta_version *base = mp_chain_base(chain);

    for (size_t i = chain->base + 1; i < chain->count; i++)
        for (size_t p = 0; p < base->num_parts; p++) {
            const mp_delta_version *v = &chain->versions[i];
            size_t in = mp_version_part_named(v, base->parts[p].name), tensor = 0;

            if (in == SIZE_MAX)
                return mp_fail(err, MP_ERR_INPUT, "%s: %s is missing, \"%s\" has it", v->dir,
                               base->parts[p].name, base->dir);
            for (size_t t = 0; t < v->parts[in].ckpt.num_tensors; t++) {
                const mp_patch_link link = {v, &v->parts[in], &v->parts[in].ckpt.tensors[t]};

                if (find_tensor(chain, p, &link, &tensor, err) != 0)
                    return err->code;
                size_t *next = &chain->first[chain->row[p] + tensor + 1];
                if (fill)
                    chain->links[*next] = link;
                ++*next;
            }
        }
    return 0;
}

/* Counts links behind each tensor, makes room, and fills it. While it fills, first[t + 1] is where
 * the next link of tensor t goes, which ends as where those of t + 1 begin. */
static int find_links(mp_chain *chain, mp_error *err)
{
    const mp_delta_version *base = mp_chain_base(chain);
    size_t tensors = 0;
    int rc;

    chain->row = mp_alloc(base->num_parts, sizeof *chain->row);
    if (!chain->row)
        return mp_fail_memory(err);
    for (size_t p = 0; p < base->num_parts; p++) {
        chain->row[p] = tensors;
        tensors += base->parts[p].ckpt.num_tensors;
    }
    /* One more than there are tensors, and one more for counting a place further on. */
    chain->first = mp_alloc_zeroed(tensors + 2, sizeof *chain->first);
    if (!chain->first)
        return mp_fail_memory(err);
    rc = visit_links(chain, false, err);
    if (rc != 0)
        return rc;
    size_t links = 0;
    for (size_t t = 1; t <= tensors; t++) {
        size_t count = chain->first[t];

        chain->first[t] = links;
        links += count;
    }
    chain->links = mp_alloc(links, sizeof *chain->links);
    return chain->links ? visit_links(chain, true, err) : mp_fail_memory(err);
}

int mp_chain_open(mp_chain *chain, const char *base, uint64_t unnumbered, const char *const *deltas,
                  size_t count, const mp_context *context, mp_error *err)
{
    *chain = (mp_chain){0};
    int rc = open_versions(chain, base, unnumbered, deltas, count, context, err);

    return rc ? rc : find_links(chain, err);
}

int mp_chain_check_base(mp_chain *chain, mp_error *err)
{
    mp_delta_version *base = &chain->versions[0];

    if (!base->numbered)
        base->terms.version = MP_BASE_FIRST;
    base->numbered = true;
    return chain->count > 1 ? mp_version_check_follows(&chain->versions[1], base, err) : 0;
}

void mp_chain_release(mp_chain *chain)
{
    for (size_t i = 0; i < chain->count; i++)
        mp_version_release(&chain->versions[i]);
    free(chain->versions);
    free(chain->row);
    free(chain->first);
    free(chain->links);
    *chain = (mp_chain){0};
}

const mp_patch_link *mp_chain_links(const mp_chain *chain, size_t part, const mp_tensor *tensor,
                                    size_t *count)
{
    const mp_checkpoint *ckpt = &mp_chain_base(chain)->parts[part].ckpt;
    const size_t *first = &chain->first[chain->row[part] + (size_t)(tensor - ckpt->tensors)];

    *count = first[1] - first[0];
    return &chain->links[first[0]];
}

int mp_chain_patch(const mp_chain *chain, size_t part, const mp_tensor *tensor, mp_chain_put *put,
                   void *user, uint8_t *scratch, const mp_patch_link **culprit, mp_error *err)
{
    const mp_delta_version *base = mp_chain_base(chain);
    uint8_t *bytes = scratch + MP_PATCH_BYTES;
    size_t count;
    const mp_patch_link *links = mp_chain_links(chain, part, tensor, &count);
    mp_patch patch;
    int rc = mp_patch_init(&patch, tensor->bytes, links, count, true, err);
    bool ours = rc != 0; /* a failure is about a link */

    for (uint64_t at = 0; rc == 0 && at < tensor->bytes; at += MP_PATCH_BYTES) {
        uint64_t left = tensor->bytes - at;
        size_t n = left < MP_PATCH_BYTES ? (size_t)left : MP_PATCH_BYTES;

        rc = mp_tensor_read(&base->parts[part].ckpt, tensor, at, n, bytes, err);
        if (rc != 0) {
            mp_error_prefix(err, "%s", base->dir);
            break;
        }
        rc = mp_patch_next(&patch, bytes, n, scratch, err);
        ours = rc != 0;
        if (rc == 0 && put)
            rc = put(user, at, bytes, n, err);
    }
    if (rc == 0) {
        rc = mp_patch_end(&patch, err);
        ours = rc != 0;
    }
    *culprit = ours && patch.num_steps > 0 ? &links[patch.culprit] : NULL;
    mp_patch_release(&patch);
    return rc;
}
