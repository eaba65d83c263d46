/* SPDX-License-Identifier: Apache-2.0 */
/* Slots against the source: read in tiles, unpacked, compared byte for byte. */
#include "verify/exact.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/parallel.h"

#define TILE_BYTES (1u << 20)
#define PROBE_ROWS 32

/* ------------------------------------------------------------------------
 * Scratch of a thread
 */

/* Packed rows that a tile begins and ends at a multiple of. */
static uint64_t row_group(const mp_target *target, int side)
{
    return side == MP_L1 ? target->l1_row_group : 1;
}

static void measure_tiles(mp_exact *exact, const mp_check *check)
{
    for (int s = 0; s < MP_SIDES; s++) {
        const mp_side_form *form = &exact->source.sides[s];
        uint64_t group = row_group(check->target, s), all = form->rows * form->parts;
        uint64_t widest = form->row_bytes > exact->source.raw_row_bytes
                              ? form->row_bytes
                              : exact->source.raw_row_bytes;
        uint64_t rows = TILE_BYTES / widest / group * group;

        if (rows < group)
            rows = group;
        exact->tile_rows[s] = rows < all ? rows : all;
        rows = mp_round_up(PROBE_ROWS, group);
        exact->probe_rows[s] = rows < exact->tile_rows[s] ? rows : exact->tile_rows[s];
    }
}

/* Takes n bytes off the scratch; with a null base it only measures. */
static void *carve(uint8_t *base, uint64_t *used, uint64_t n)
{
    void *piece = base ? base + *used : NULL;

    *used += mp_round_up(n, 64);
    return piece;
}

static const mp_slot_tensor *find_tensor(const mp_check *check, mp_side side, mp_role role)
{
    for (unsigned t = 0; t < check->num_tensors; t++)
        if (check->tensors[t].side == side && check->tensors[t].role == role)
            return &check->tensors[t];
    return NULL;
}

/* Lays the buffers of s out in the scratch; returns the bytes they take. */
static uint64_t lay_out(mp_slot_side *s, uint8_t *scratch)
{
    const mp_exact *exact = s->exact;
    uint64_t tile_rows = exact->tile_rows[s->side], used = 0;
    uint64_t tile = tile_rows * s->form->row_bytes;
    uint64_t scale = s->tensor[MP_ROLE_SCALE] ? s->tensor[MP_ROLE_SCALE]->slot_bytes : 0;

    s->packed = carve(scratch, &used, tile);
    s->have = carve(scratch, &used, tile);
    s->want = carve(scratch, &used, tile);
    s->packed_scale = carve(scratch, &used, scale);
    s->have_scale = carve(scratch, &used, exact->scale_maps[s->side].canonical_bytes);
    s->want_scale = carve(scratch, &used, exact->scale_maps[s->side].canonical_bytes);
    s->work =
        carve(scratch, &used, mp_source_work_bytes(&exact->source, tile_rows / s->form->parts));
    return used;
}

static mp_slot_side begin_side(const mp_exact *exact, mp_check *check, mp_side side)
{
    return (mp_slot_side){
        .exact = exact,
        .check = check,
        .side = side,
        .form = &exact->source.sides[side],
        .tensor = {find_tensor(check, side, MP_ROLE_WEIGHT),
                   find_tensor(check, side, MP_ROLE_SCALE)},
    };
}

static uint64_t scratch_bytes(const mp_exact *exact, mp_check *check)
{
    uint64_t most = 0;

    for (int s = 0; s < MP_SIDES; s++) {
        mp_slot_side side = begin_side(exact, check, (mp_side)s);
        uint64_t bytes = lay_out(&side, NULL);

        if (bytes > most)
            most = bytes;
    }
    return most;
}

/* ------------------------------------------------------------------------
 * Preparing
 */

static int map_scales(mp_exact *exact, mp_check *check, mp_side side, mp_error *err)
{
    const mp_slot_tensor *tensor = find_tensor(check, side, MP_ROLE_SCALE);
    const mp_side_form *form = &exact->source.sides[side];

    if (!tensor)
        return 0;
    if (tensor->slot_bytes > UINT32_MAX)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: %" PRIu64 " bytes a slot are over 4 GiB",
                       tensor->name, tensor->slot_bytes);
    return mp_where_scale(check->target, &check->dims, side, tensor->slot_bytes,
                          form->parts * form->scale_rows * form->scale_row_bytes,
                          &exact->scale_maps[side], err);
}

int mp_exact_open(mp_exact *exact, mp_check *check, bool *usable, mp_error *err)
{
    int rc = mp_source_open(&exact->source, check, usable, err);
    if (rc != 0 || !*usable)
        return rc;
    measure_tiles(exact, check);
    for (int s = 0; s < MP_SIDES && rc == 0; s++)
        rc = map_scales(exact, check, (mp_side)s, err);
    return rc;
}

void mp_exact_release(mp_exact *exact)
{
    for (int s = 0; s < MP_SIDES; s++)
        mp_scale_map_release(&exact->scale_maps[s]);
    mp_source_release(&exact->source);
}

/* ------------------------------------------------------------------------
 * Comparing
 */

/* The value of the element that byte `at` of a row is in, little-endian. */
static uint64_t element_value(const uint8_t *row, uint64_t at, unsigned width)
{
    uint64_t value = 0;

    for (unsigned i = width; i-- > 0;)
        value = value << 8 | row[at - at % width + i];
    return value;
}

/* Counts bytes and rows that differ. */
static bool count_rows(const uint8_t *have, const uint8_t *want, uint64_t rows, uint64_t row_bytes,
                       mp_difference *d)
{
    bool any = false;

    d->of_rows += rows;
    for (uint64_t r = 0; r < rows; r++, have += row_bytes, want += row_bytes) {
        if (memcmp(have, want, row_bytes) == 0)
            continue;
        any = true;
        d->rows++;
        for (uint64_t i = 0; i < row_bytes; i++)
            d->bytes += have[i] != want[i];
    }
    return any;
}

/* Of the bytes that differ in the row group at `row` of the tile, finds the one that comes
 * first in the packed tensor. offsets: room for a number a byte of a group. */
static int find_in_group(const mp_slot_side *s, uint64_t row, uint32_t *offsets, bool *found,
                         mp_difference *d, mp_error *err)
{
    const mp_side_form *form = s->form;
    uint64_t group = row_group(s->check->target, s->side), bytes = group * form->row_bytes;
    uint64_t part_rows = s->rows / form->parts, part_bytes = bytes / form->parts;
    unsigned bits = mp_scheme_bits(s->exact->source.canonical.scheme);
    uint32_t first = UINT32_MAX;

    int rc = mp_where_weight(s->check->target, &s->check->dims, s->side, s->row0 + row, group,
                             bytes, offsets, err);
    for (unsigned part = 0; part < form->parts && rc == 0; part++) {
        uint64_t at = (part * part_rows + row / form->parts) * form->row_bytes;

        for (uint64_t i = 0; i < part_bytes; i++) {
            uint32_t offset = offsets[part * part_bytes + i];

            if (s->have[at + i] == s->want[at + i] || offset >= first)
                continue;
            first = offset;
            d->part = part;
            d->row = (s->row0 + row) / form->parts + i / form->row_bytes;
            d->byte = i % form->row_bytes;
            d->have = element_value(s->have, at + i, bits < 8 ? 1 : bits / 8);
            d->want = element_value(s->want, at + i, bits < 8 ? 1 : bits / 8);
        }
    }
    *found = first != UINT32_MAX;
    d->offset = (s->row0 + row) * form->row_bytes + first;
    return rc;
}

/* Finds the first byte that differs in a tile of which one does. */
static int find_in_tile(const mp_slot_side *s, mp_difference *d, mp_error *err)
{
    uint64_t group = row_group(s->check->target, s->side);
    uint32_t *offsets = mp_alloc(group * s->form->row_bytes, sizeof *offsets);
    bool found = false;
    int rc = 0;

    if (!offsets)
        return mp_fail_memory(err);
    for (uint64_t row = 0; row < s->rows && !found && rc == 0; row += group)
        rc = find_in_group(s, row, offsets, &found, d, err);
    free(offsets);
    return rc;
}

/* Finds the first byte that differs in a scale tensor of which one does. */
static void find_in_scale(const mp_slot_side *s, mp_difference *d)
{
    const mp_scale_map *map = &s->exact->scale_maps[s->side];
    const mp_side_form *form = s->form;
    unsigned width = mp_dtype_bits(s->exact->source.canonical.scale_dtype) / 8;

    d->offset = UINT64_MAX;
    for (uint64_t i = 0; i < map->canonical_bytes; i++) {
        if (s->have_scale[i] == s->want_scale[i] || map->offsets[i] >= d->offset)
            continue;
        uint64_t row = i / form->scale_row_bytes;

        d->offset = map->offsets[i];
        d->part = (unsigned)(row / form->scale_rows);
        d->row = row % form->scale_rows;
        d->byte = i % form->scale_row_bytes;
        d->have = element_value(s->have_scale + i - d->byte, d->byte, width);
        d->want = element_value(s->want_scale + i - d->byte, d->byte, width);
    }
}

int mp_slot_side_read(mp_slot_side *s, uint64_t row0, uint64_t rows, mp_error *err)
{
    const mp_held *held = s->held[MP_ROLE_WEIGHT];
    uint64_t row_bytes = s->form->row_bytes;
    uint8_t *up = s->form->parts == 2 ? s->have + rows / 2 * row_bytes : NULL;

    s->row0 = row0;
    s->rows = rows;
    if (!held)
        return 0;
    uint64_t slot_begin = s->slot * s->tensor[MP_ROLE_WEIGHT]->slot_bytes;
    int rc = mp_tensor_read(held->file, held->tensor, slot_begin + row0 * row_bytes,
                            rows * row_bytes, s->packed, err);
    if (rc != 0)
        return mp_error_prefix(err, "rank %u", s->rank->packed->rank);
    s->check->target->unpack_weight(&s->check->dims, s->side, row0, rows, s->packed, s->have, up);
    return 0;
}

int mp_slot_side_want(mp_slot_side *s, uint32_t expert, mp_error *err)
{
    const mp_side_form *form = s->form;
    const mp_storage *canonical = &s->exact->source.canonical;
    uint64_t part_rows = s->rows / form->parts, row0 = s->row0 / form->parts;
    int rc = 0;

    for (unsigned part = 0; part < form->parts && rc == 0; part++) {
        uint64_t scale_row = part * form->scale_rows + row0 / canonical->block_rows;

        rc = mp_source_rows(&s->exact->source, s->layer, expert, form->first + part, row0,
                            part_rows, s->work, s->want + part * part_rows * form->row_bytes,
                            s->want_scale + scale_row * form->scale_row_bytes, err);
    }
    return rc;
}

static int compare_weights(mp_slot_side *s, mp_difference *d, mp_error *err)
{
    const mp_side_form *form = s->form;
    uint64_t all = form->rows * form->parts, step = s->exact->tile_rows[s->side];
    int rc = 0;

    for (uint64_t row0 = 0; row0 < all && rc == 0; row0 += step) {
        uint64_t rows = all - row0 < step ? all - row0 : step;
        bool differed = d->bytes > 0;

        rc = mp_slot_side_read(s, row0, rows, err);
        if (rc == 0)
            rc = mp_slot_side_want(s, s->expert, err);
        if (rc == 0 && s->held[MP_ROLE_WEIGHT] &&
            count_rows(s->have, s->want, rows, form->row_bytes, d) && !differed)
            rc = find_in_tile(s, d, err);
    }
    return rc;
}

static void check_padding(const mp_slot_side *s)
{
    mp_spot spot = mp_slot_side_spot(s, MP_ROLE_SCALE);
    uint32_t offset;

    if (mp_scale_padding_is_zero(&s->exact->scale_maps[s->side], s->packed_scale, &offset))
        return;
    spot.element = offset / (mp_dtype_bits(s->tensor[MP_ROLE_SCALE]->dtype) / 8);
    mp_fault_add(&s->check->faults, &spot, "padding byte %u holds 0x%02x, not zero", offset,
                 s->packed_scale[offset]);
}

/* After compare_weights, which leaves all of want_scale behind. */
static int compare_scales(mp_slot_side *s, mp_difference *d, mp_error *err)
{
    const mp_held *held = s->held[MP_ROLE_SCALE];
    uint64_t slot_bytes = s->tensor[MP_ROLE_SCALE]->slot_bytes;

    int rc = mp_tensor_read(held->file, held->tensor, s->slot * slot_bytes, slot_bytes,
                            s->packed_scale, err);
    if (rc != 0)
        return mp_error_prefix(err, "rank %u", s->rank->packed->rank);
    s->check->target->unpack_scale(&s->check->dims, s->side, s->packed_scale, s->have_scale);
    check_padding(s);
    if (count_rows(s->have_scale, s->want_scale, s->form->parts * s->form->scale_rows,
                   s->form->scale_row_bytes, d))
        find_in_scale(s, d);
    return 0;
}

/* ------------------------------------------------------------------------
 * All slots
 */

typedef struct exact_job {
    const mp_exact *exact;
    mp_check *check;
    const mp_rank *rank;
    size_t *layers; /* those that are selected */
} exact_job;

/* The tensor of a layer where it can be read as the target wants it, or null. */
static const mp_held *usable_tensor(const exact_job *job, size_t layer,
                                    const mp_slot_tensor *tensor)
{
    if (!tensor)
        return NULL;
    const mp_held *held =
        &job->rank->held[layer * job->check->num_tensors + (size_t)(tensor - job->check->tensors)];
    return held->fits ? held : NULL;
}

/* The expert that belongs into a slot of the rank. */
static uint32_t expert_of(const exact_job *job, size_t layer, uint32_t slot)
{
    const mp_check *check = job->check;
    const int32_t *row = mp_placement_row(&check->placement, (uint32_t)layer);
    mp_slot described;

    mp_slots_describe(&check->slots, row, job->rank->packed->rank * check->slots_per_rank + slot,
                      &described);
    return described.checkpoint_id;
}

/* Compares both tensors of a side, then reports: reporting overwrites the scratch. */
static int compare_side(mp_slot_side *s, mp_error *err)
{
    mp_difference differences[2] = {0};

    int rc = compare_weights(s, &differences[MP_ROLE_WEIGHT], err);
    if (rc == 0 && s->held[MP_ROLE_SCALE])
        rc = compare_scales(s, &differences[MP_ROLE_SCALE], err);
    for (int role = 0; role < 2 && rc == 0; role++)
        if (differences[role].bytes > 0)
            rc = mp_report_difference(s, (mp_role)role, &differences[role], err);
    return rc;
}

/* Drops what was read from the page cache, and counts it as done. */
static void finish_side(const mp_slot_side *s)
{
    const mp_source *source = &s->exact->source;
    const mp_expert *expert = &source->layers[s->layer]->experts[s->expert];

    for (int role = 0; role < 2; role++) {
        const mp_held *held = s->held[role];

        if (!held)
            continue;
        uint64_t slot_bytes = s->tensor[role]->slot_bytes;
        mp_tensor_forget(held->file, held->tensor, s->slot * slot_bytes, slot_bytes);
        mp_check_advance(s->check, slot_bytes);
    }
    for (unsigned part = 0; part < s->form->parts; part++)
        mp_matrix_forget(&source->catalog, &expert->matrix[s->form->first + part]);
}

/* One side of a slot of a layer; index counts sides, then slots, then layers. */
static int check_side(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const exact_job *job = user;
    uint32_t slots = job->check->slots_per_rank;
    mp_slot_side s = begin_side(job->exact, job->check, (mp_side)(index % MP_SIDES));

    s.rank = job->rank;
    s.slot = (uint32_t)(index / MP_SIDES % slots);
    s.layer = job->layers[index / MP_SIDES / slots];
    for (int role = 0; role < 2; role++)
        s.held[role] = usable_tensor(job, s.layer, s.tensor[role]);
    if (!s.held[MP_ROLE_WEIGHT] && !s.held[MP_ROLE_SCALE])
        return 0;
    s.expert = expert_of(job, s.layer, s.slot);
    lay_out(&s, scratch);
    int rc = compare_side(&s, err);
    if (rc == 0)
        finish_side(&s);
    return rc;
}

/* Slots of a layer that could be checked, all their tensors being there. */
static uint32_t slots_checked(const exact_job *job, size_t layer)
{
    for (unsigned t = 0; t < job->check->num_tensors; t++)
        if (!usable_tensor(job, layer, &job->check->tensors[t]))
            return 0;
    return job->check->slots_per_rank;
}

int mp_check_exact(const mp_exact *exact, mp_check *check, const mp_rank *rank, mp_error *err)
{
    exact_job job = {exact, check, rank, mp_alloc(check->num_layers, sizeof *job.layers)};
    size_t count = 0;

    if (!job.layers)
        return mp_fail_memory(err);
    for (size_t i = 0; i < check->manifest.num_layers; i++) {
        if (!check->layers[i])
            continue;
        job.layers[count++] = i;
        check->report->slots += slots_checked(&job, i);
    }
    mp_faults_add_part(&check->faults, rank->packed->rank, MP_VERIFY_EXACT);
    int rc = mp_parallel(check->context, (uint64_t)count * check->slots_per_rank * MP_SIDES,
                         scratch_bytes(exact, check), check_side, &job, err);
    free(job.layers);
    return rc;
}
