/* SPDX-License-Identifier: Apache-2.0 */
/* Whose data is it? The first rows of a slot against those of all experts of the layer. "Slot 5
 * holds expert 9" says at once that a placement was misread; "16777216 bytes differ" says nothing.
 *
 * A head of 32 rows, or of 128 where blocks of scales are that high, tells experts apart and is all
 * that is read of a candidate. The target is copied and given a tiling whose first tile is just
 * these rows; so the usual conversion makes the candidate's head, in the same canonical form as the
 * slot's. The slot itself is laid out by its own tiles, of which the rows are gathered: those may
 * be cut by columns, or have gate and up apart.
 *
 * A candidate that cannot be read or converted could not have got into the slot, and is passed
 * over. Runs in the thread that found the difference: it overwrites that side's packed and have,
 * never want. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/words.h"
#include "layout/sides.h"
#include "layout/tile.h"
#include "numeric/forms.h"
#include "verify/exact.h"

/* A slot's first rows, and a candidate's. The candidate's canonical form lies in scratch, which
 * grows to the largest that was asked for. */
typedef struct probe {
    mp_slot_side *s;
    mp_role role;
    mp_target target; /* the set's, cut so that its first tile are the first rows */
    mp_tile tile;     /* that one */
    uint64_t row_bytes;
    uint8_t *head; /* the slot's: those of gate, then those of up */
    void *scratch; /* of a canonical form */
    uint64_t room; /* bytes of it */
} probe;

static mp_tiling heads_of_32(const mp_dims *dims, mp_side side)
{
    (void)dims;
    (void)side;
    return (mp_tiling){.kind = MP_TILES_PAIRED, .group = 32, .pad = 1};
}

/* Where blocks of scales are 128 rows high, no less will do. */
static mp_tiling heads_of_128(const mp_dims *dims, mp_side side)
{
    (void)dims;
    (void)side;
    return (mp_tiling){.kind = MP_TILES_PAIRED, .group = 128, .pad = 1};
}

/* The rows of a tile that are among the first ones. */
static void take_rows(probe *p, const mp_tile *tile)
{
    mp_scheme scheme = p->target.scheme;
    uint64_t bytes = mp_scheme_row_bytes(scheme, tile->cols);
    uint64_t column = mp_scheme_row_bytes(scheme, tile->col0);

    for (unsigned part = 0; part < tile->parts; part++) {
        const uint8_t *from = p->s->have + part * tile->rows * bytes;
        uint8_t *to = p->head + (tile->part + part) * p->tile.rows * p->row_bytes + column;

        /* Gather the rows of the tile that are in the head; its columns begin at byte `column` of a
         * row. */
        for (uint64_t r = 0; r < tile->rows && tile->row0 + r < p->tile.rows; r++)
            memcpy(to + (tile->row0 + r) * p->row_bytes, from + r * bytes, bytes);
    }
}

/* The first rows of the slot, out of whatever tiles they are in. */
static int read_head(probe *p, mp_error *err)
{
    const mp_slot_side *s = p->s;
    const mp_target *target = s->set->target;
    uint64_t tile_bytes = s->from.tile_bytes;
    uint64_t count = mp_tile_count(target, &s->set->dims, s->side, tile_bytes);

    p->head = mp_alloc(p->tile.parts * p->tile.rows, p->row_bytes);
    if (!p->head)
        return mp_fail_memory(err);
    for (uint64_t i = 0; i < count && p->role == MP_ROLE_WEIGHT; i++) {
        mp_tile tile = mp_tile_at(target, &s->set->dims, s->side, tile_bytes, i);

        if (tile.row0 >= p->tile.rows)
            continue;
        if (mp_slot_side_read(p->s, &tile, err) != 0)
            return err->code;
        take_rows(p, &tile);
    }
    return 0;
}

/* True if part a in the slot begins as part b of the candidate. */
static bool same_part(const probe *p, const mp_canonical *candidate, unsigned a, unsigned b)
{
    const mp_slot_side *s = p->s;
    uint64_t bytes = p->tile.rows * p->row_bytes;

    if (p->role == MP_ROLE_WEIGHT)
        return memcmp(p->head + a * bytes, candidate->weight[b], bytes) == 0;
    uint64_t scale_bytes = mp_target_scale_row_bytes(s->set->target, &s->set->dims, s->side);
    uint64_t stride = mp_target_scale_rows(s->set->target, &s->set->dims, s->side) * scale_bytes;
    uint64_t rows = mp_ceil_div(p->tile.rows, mp_scheme_form_of(p->target.scheme)->block_rows);

    return memcmp(s->have_scale + a * stride, candidate->scale + b * stride, rows * scale_bytes) ==
           0;
}

/* The first rows of an expert; *can_be is false where it could not be in the slot at all. */
static int get_candidate(probe *p, uint32_t id, mp_expert *view, mp_side_source *from,
                         mp_canonical *candidate, bool *can_be, mp_error *err)
{
    const mp_slot_side *s = p->s;

    *can_be = false;
    int rc = mp_source_side(&s->exact->source, s->set, s->layer, id, s->side, view, from, err);
    if (rc != 0)
        return rc;
    /* The first tile begins every matrix: its rows are whole blocks of scales, so requantizing them
     * gives what requantizing the whole gives. */
    from->target = &p->target;
    from->tile_bytes = 1;
    uint64_t bytes = mp_round_up(mp_canonical_scratch(from), 64);
    if (bytes > p->room) {
        free(p->scratch);
        p->room = bytes;
        p->scratch = aligned_alloc(64, bytes);
        if (!p->scratch)
            return mp_fail_memory(err);
    }
    mp_canonical_init(candidate, from, p->scratch);
    rc = mp_canonical_begin(candidate, err);
    if (rc == 0)
        rc = mp_canonical_tile(candidate, &p->tile, NULL, err);
    *can_be = rc == 0;
    return rc == MP_ERR_INPUT || rc == MP_ERR_UNSUPPORTED ? 0 : rc;
}

static int try_candidate(probe *p, uint32_t id, mp_identity *who, mp_error *err)
{
    mp_canonical candidate;
    mp_side_source from;
    mp_expert view;
    bool can_be, two = mp_side_parts(p->s->side) == 2;

    int rc = get_candidate(p, id, &view, &from, &candidate, &can_be, err);
    if (rc != 0 || !can_be)
        return rc;
    /* Of the expert that should be there, only the exchange of its parts explains a difference. */
    if (id == p->s->id) {
        who->exchanged = two && same_part(p, &candidate, 0, 1) && same_part(p, &candidate, 1, 0);
    } else if (same_part(p, &candidate, 0, 0) && (!two || same_part(p, &candidate, 1, 1))) {
        who->found = true;
        who->id = id;
    }
    return 0;
}

/* Routed experts, and shared ones where the pack has them. */
static int try_all(probe *p, mp_identity *who, mp_error *err)
{
    const mp_slot_side *s = p->s;
    const mp_manifest *m = &s->check->manifest;
    uint32_t count = s->exact->source.layers[s->layer]->num_experts;
    int rc = 0;

    if (s->set->target->single) /* nothing else has its size */
        return try_candidate(p, s->id, who, err);
    if (m->shared != MP_SHARED_NONE)
        count += (uint32_t)m->num_shared_experts;
    for (uint32_t id = 0; id < count && !who->found && !who->exchanged && rc == 0; id++)
        rc = try_candidate(p, id, who, err);
    return rc;
}

int mp_identify(mp_slot_side *s, mp_role role, mp_identity *who, mp_error *err)
{
    probe p = {.s = s, .role = role, .target = *s->set->target};

    *who = (mp_identity){0};
    p.target.tiling =
        mp_scheme_form_of(p.target.scheme)->block_rows > 1 ? heads_of_128 : heads_of_32;
    p.tile = mp_tile_at(&p.target, &s->set->dims, s->side, 1, 0);
    p.row_bytes = mp_scheme_row_bytes(p.target.scheme, p.tile.cols);
    int rc = read_head(&p, err);
    if (rc == 0)
        rc = try_all(&p, who, err);
    free(p.head);
    free(p.scratch);
    return rc;
}

char *mp_id_text(const mp_slot_side *s, uint32_t id, char text[MP_ID_TEXT])
{
    uint32_t routed = s->exact->source.layers[s->layer]->num_experts;

    if (s->set->target->single)
        snprintf(text, MP_ID_TEXT, "the shared expert");
    else if (id < routed)
        snprintf(text, MP_ID_TEXT, "expert %u", id);
    else
        snprintf(text, MP_ID_TEXT, "shared expert %u", id - routed);
    return text;
}
