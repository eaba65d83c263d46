/* SPDX-License-Identifier: Apache-2.0 */
/* The sharded_state of SGLang and vLLM: each rank's state dict, split into parts.
 *
 *     model-rank-0-part-0.safetensors, model-rank-0-part-1.safetensors, model-rank-1-part-0 ...
 *
 * Nothing says how many parts or ranks there were. Only gaps show that one is missing, and the last
 * ones can be missing unnoticed. Comparing ranks helps: tensor parallelism gives all of them the
 * same names, types and shapes, so each is compared with the first rank that has any tensors. Names
 * are read strictly, without leading zeros and below MP_SNAPSHOT_RANKS_MAX, which limits what a
 * wild number can cost. Headers are read in parallel, everything else on one thread. */
#include "checkpoint/snapshot.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

/* A file and what its name says. */
typedef struct part {
    const char *name;
    uint32_t rank, part;
} part;

/* A number below the most ranks, without leading zeros, behind a word. */
static const char *number_behind(const char *text, const char *word, uint32_t *number)
{
    size_t n = strlen(word);
    char *end;

    if (!text || strncmp(text, word, n) != 0)
        return NULL;
    text += n;
    size_t digits = strspn(text, "0123456789");
    if (digits == 0 || digits > 5 || (text[0] == '0' && digits > 1))
        return NULL;
    *number = (uint32_t)strtoul(text, &end, 10);
    return *number < MP_SNAPSHOT_RANKS_MAX ? end : NULL;
}

static bool parse_name(const char *name, part *p)
{
    const char *rest = number_behind(name, "model-rank-", &p->rank);

    rest = number_behind(rest, "-part-", &p->part);
    p->name = name;
    return rest && strcmp(rest, ".safetensors") == 0;
}

static int compare_parts(const void *a, const void *b)
{
    const part *x = a, *y = b;

    if (x->rank != y->rank)
        return x->rank < y->rank ? -1 : 1;
    return (x->part > y->part) - (x->part < y->part);
}

/* Parts of a rank are numbered from 0 on. */
static void check_numbers(mp_snapshot *s, const part *parts, size_t count)
{
    uint32_t rank = 0, next = 0;

    for (size_t i = 0; i < count; i++) {
        if (i == 0 || parts[i].rank != parts[i - 1].rank)
            next = 0;
        for (; rank < parts[i].rank; rank++)
            if (i == 0 || rank > parts[i - 1].rank)
                mp_snapshot_found(s, false, rank, NULL, "no file of this rank is present");
        for (; next < parts[i].part; next++)
            mp_snapshot_found(s, false, parts[i].rank, NULL,
                              "model-rank-%u-part-%u.safetensors is missing", parts[i].rank, next);
        next = parts[i].part + 1;
    }
}

/* Ranks hold tensors of the same names, types and shapes, each its part of them. */
static void check_alike(mp_snapshot *s)
{
    size_t base = 0;

    while (base + 1 < s->num_ranks && s->ranks[base].tensors.num_tensors == 0)
        base++;
    const mp_checkpoint *first = &s->ranks[base].tensors;
    for (size_t r = base + 1; r < s->num_ranks; r++) {
        const mp_checkpoint *other = &s->ranks[r].tensors;
        size_t i = 0, k = 0;

        /* Both lists are sorted: walk them in parallel. */
        while (other->num_tensors > 0 && (i < first->num_tensors || k < other->num_tensors)) {
            const mp_tensor *a = i < first->num_tensors ? &first->tensors[i] : NULL;
            const mp_tensor *b = k < other->num_tensors ? &other->tensors[k] : NULL;
            int order = !a ? 1 : !b ? -1 : strcmp(a->name, b->name);

            if (order < 0)
                mp_snapshot_found(s, false, (int64_t)r, a->name, "is missing, but rank %zu has it",
                                  base);
            else if (order > 0)
                mp_snapshot_found(s, false, (int64_t)r, b->name,
                                  "is present, but rank %zu does not have it", base);
            else if (a->dtype != b->dtype || a->rank != b->rank ||
                     memcmp(a->shape, b->shape, a->rank * sizeof *a->shape) != 0) {
                char text[2][MP_SHAPE_TEXT];

                mp_snapshot_found(
                    s, false, (int64_t)r, b->name, "%s %s, on rank %zu %s %s",
                    mp_dtype_name(b->dtype), mp_shape_text(b->shape, b->rank, text[0]), base,
                    mp_dtype_name(a->dtype), mp_shape_text(a->shape, a->rank, text[1]));
            }
            i += order <= 0;
            k += order >= 0;
        }
    }
}

/* Parts come sorted, so the files of a rank follow each other. */
static int fill_ranks(mp_snapshot *s, const part *parts, size_t count, mp_error *err)
{
    size_t room = 0;

    for (size_t i = 0; i < count; i++) {
        mp_snapshot_rank *rank = &s->ranks[parts[i].rank];
        const mp_checkpoint *held = &s->files[i];

        if (i == 0 || parts[i].rank != parts[i - 1].rank)
            room = 0;
        for (size_t t = 0; t < held->num_tensors; t++) {
            mp_tensor tensor = held->tensors[t];

            tensor.shard = (uint32_t)i;
            if (mp_snapshot_add(s, rank, &room, tensor.name, &tensor, err) != 0)
                return err->code;
        }
        if (i + 1 == count || parts[i + 1].rank != parts[i].rank)
            mp_snapshot_sort(s, rank);
    }
    check_alike(s);
    return 0;
}

int mp_snapshot_open_parts(mp_snapshot *s, const char *ranks, const mp_context *context,
                           mp_error *err)
{
    char **names;
    size_t count, found = 0;

    if (mp_snapshot_entries(s->dir, &names, &count, err) != 0)
        return err->code;
    part *parts = mp_alloc(count, sizeof *parts);
    const char **files = mp_alloc(count, sizeof *files);
    int rc = parts && files ? 0 : mp_fail_memory(err);

    for (size_t i = 0; rc == 0 && i < count; i++) {
        if (parse_name(names[i], &parts[found]))
            found++;
        else if (strstr(names[i], ".safetensors"))
            mp_snapshot_found(s, false, -1, NULL,
                              "%s: expected names as model-rank-0-part-0.safetensors", names[i]);
    }
    if (rc == 0 && found == 0)
        rc = mp_fail(err, MP_ERR_INPUT, "no model-rank-0-part-0.safetensors or the like");
    if (rc == 0) {
        qsort(parts, found, sizeof *parts, compare_parts);
        rc = mp_snapshot_make_ranks(s, (uint64_t)parts[found - 1].rank + 1, ranks, err);
    }
    if (rc == 0) {
        for (size_t i = 0; i < found; i++)
            files[i] = s->ranks[parts[i].rank].selected ? parts[i].name : NULL;
        check_numbers(s, parts, found);
        rc = mp_snapshot_open_files(s, files, found, context, err);
    }
    if (rc == 0)
        rc = fill_ranks(s, parts, found, err);
    free(files);
    free(parts);
    free(names);
    return rc;
}
