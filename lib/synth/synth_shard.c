/* SPDX-License-Identifier: Apache-2.0 */
/* Writing a shard of a synthetic checkpoint: its header, and its items tile by tile. The header
 * needs only sizes, so it is written first, the file gets its length, and then every tile of every
 * item goes to its place, on all threads in any order:
 *
 *   unit    a tile of an item: first_unit of the item + slice * tiles + tile
 *   tile    rows of the item, whole blocks of scales high; each of its parts is one run in the file
 *
 * Offsets are in order of the width of elements, so all tensors are aligned. Memory is a tile for
 * each thread. Only the progress is shared, in a critical section; the file is synced when all is
 * written. */
#include "synth/parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/ordered.h"
#include "base/parallel.h"

/* Headers of Hugging Face's own writer are padded to this. */
#define HEADER_ALIGN 8

/* Buffers in a thread's scratch begin at multiples of this. */
#define BUFFER_ALIGN 64

/* Room for the name of a matrix in a stack. */
#define SOURCE_NAME 256

/* Where an item's parts lie in the file, and which units make it. */
typedef struct place {
    uint64_t offset[MP_SYNTH_PARTS];
    uint64_t first_unit;
} place;

typedef struct shard_run {
    mp_synth_run *all;
    const mp_synth_item *items; /* num_items of this shard */
    size_t num_items;
    place *places;
    uint64_t num_units;
    uint64_t scratch_bytes;
    char *path;
    int fd;
} shard_run;

/* Where what a thread needs for a tile lies in its scratch, and how much that is. */
typedef struct buffers {
    uint64_t columns[2], work, out[MP_SYNTH_PARTS], end;
} buffers;

/* Takes bytes of scratch; gives where they begin. */
static uint64_t take(buffers *at, uint64_t bytes)
{
    uint64_t begin = at->end;

    at->end = mp_round_up(begin + bytes, BUFFER_ALIGN);
    return begin;
}

static buffers tile_buffers(const mp_synth_item *item)
{
    uint64_t stored = mp_synth_stored_rows(item);
    uint64_t rows = item->tile_rows < stored ? item->tile_rows : stored;
    buffers at = {.end = 0};

    for (unsigned i = 0; i < 2 && item->sources[i]; i++)
        at.columns[i] = take(&at, item->cols * sizeof(float));
    at.work = take(&at, mp_synth_work(item) * sizeof(float));
    for (unsigned p = 0; p < MP_SYNTH_PARTS; p++)
        at.out[p] = take(&at, mp_synth_part_rows(item, p, rows) * mp_synth_part_row_bytes(item, p));
    return at;
}

static uint64_t tiles_of(const mp_synth_item *item)
{
    return mp_ceil_div(mp_synth_stored_rows(item), item->tile_rows);
}

/* Counts the units, and the scratch that the largest needs. */
static void count_units(shard_run *run)
{
    for (size_t i = 0; i < run->num_items; i++) {
        const mp_synth_item *item = &run->items[i];
        uint64_t scratch = tile_buffers(item).end;

        run->places[i].first_unit = run->num_units;
        run->num_units += item->slices * tiles_of(item);
        if (scratch > run->scratch_bytes)
            run->scratch_bytes = scratch;
    }
}

/* Lists the shard's tensors, widest elements first, so that all are aligned. at[i]: which
 * member of run->places gets the offset of tensor i. Returns how many there are. */
static size_t list_tensors(const shard_run *run, mp_tensor_spec *specs, uint64_t **at)
{
    size_t count = 0;

    for (unsigned bits = 64; bits >= 8; bits /= 2)
        for (size_t i = 0; i < run->num_items; i++)
            for (unsigned p = 0; p < MP_SYNTH_PARTS && run->items[i].names[p]; p++) {
                mp_tensor_spec spec = mp_synth_part_spec(&run->items[i], p);

                if (mp_dtype_bits(spec.dtype) != bits)
                    continue;
                at[count] = &run->places[i].offset[p];
                specs[count++] = spec;
            }
    return count;
}

/* Makes the header, places all items, and gives the file its size. */
static int write_header(shard_run *run, mp_error *err)
{
    static const char *const metadata[] = {"format", "pt"};
    mp_tensor_spec *specs = mp_alloc(run->num_items, MP_SYNTH_PARTS * sizeof *specs);
    uint64_t **at = mp_alloc(run->num_items, MP_SYNTH_PARTS * sizeof *at);
    uint64_t *offsets = mp_alloc(MP_SYNTH_PARTS * (uint64_t)run->num_items + 1, sizeof *offsets);
    char *header = NULL;
    uint64_t header_bytes;
    int rc;

    if (!specs || !at || !offsets) {
        rc = mp_fail_memory(err);
        goto out;
    }
    size_t count = list_tensors(run, specs, at);
    rc = mp_safetensors_header(specs, count, metadata, 1, HEADER_ALIGN, &header, &header_bytes,
                               offsets, err);
    if (rc != 0)
        goto out;
    for (size_t i = 0; i < count; i++)
        *at[i] = offsets[i];
    rc = mp_file_resize(run->fd, run->path, offsets[count], err);
    if (rc == 0)
        rc = mp_pwrite_all(run->fd, header, header_bytes, 0, run->path, err);
out:
    free(specs);
    free(at);
    free(offsets);
    free(header);
    return rc;
}

/* The item that a unit belongs to: the last one that begins at it or before. */
static size_t item_of_unit(const shard_run *run, uint64_t unit)
{
    return mp_last_begun(&run->places[0].first_unit, sizeof *run->places, run->num_items, unit);
}

static void report(mp_synth_run *all, uint64_t bytes)
{
    if (!all->context || !all->context->progress)
        return;
#pragma omp critical(mp_synth_progress)
    {
        all->done += bytes;
        all->context->progress(all->context->progress_user, all->done, all->plan->bytes);
    }
}

/* Name of the tensor that a source of slice `slice` stands for. */
static const char *source_name(const mp_synth_item *item, unsigned source, uint64_t slice,
                               char text[SOURCE_NAME])
{
    if (!item->stack)
        return item->sources[source];
    snprintf(text, SOURCE_NAME, "%s.%llu.%s.weight", item->stack, (unsigned long long)slice,
             item->sources[source]);
    return text;
}

/* The tile `unit` of an item, with its buffers in scratch. */
static mp_synth_tile tile_of_unit(const shard_run *run, const mp_synth_item *item, uint64_t unit,
                                  unsigned char *scratch)
{
    const mp_synth_options *options = run->all->plan->options;
    uint64_t slice = unit / tiles_of(item);
    uint64_t row0 = unit % tiles_of(item) * item->tile_rows;
    uint64_t left = mp_synth_stored_rows(item) - row0;
    buffers at = tile_buffers(item);
    mp_synth_tile tile = {
        .item = item,
        .row0 = row0,
        .rows = left < item->tile_rows ? left : item->tile_rows,
        .num_experts = options->num_experts,
        .work = (float *)(void *)(scratch + at.work),
    };

    for (unsigned i = 0; i < 2 && item->sources[i]; i++) {
        float *columns = (float *)(void *)(scratch + at.columns[i]);
        char text[SOURCE_NAME];
        uint64_t key = mp_synth_key(options->seed, source_name(item, i, slice, text));

        mp_synth_columns(key, item->cols, columns);
        tile.values[i] = (mp_synth_values){run->all->shapes, columns, key};
    }
    for (unsigned p = 0; p < MP_SYNTH_PARTS; p++)
        tile.out[p] = scratch + at.out[p];
    /* Forms that fill only a part of a row, or a length once, leave zeros and not an older tile. */
    memset(scratch + at.out[0], 0, at.end - at.out[0]);
    return tile;
}

/* Writes a part of a tile; adds its bytes to *done. */
static int write_part(const shard_run *run, const mp_synth_tile *tile, unsigned part,
                      uint64_t slice, uint64_t offset, uint64_t *done, mp_error *err)
{
    const mp_synth_item *item = tile->item;
    uint64_t row_bytes = mp_synth_part_row_bytes(item, part);
    uint64_t bytes = mp_synth_part_rows(item, part, tile->rows) * row_bytes;
    /* Rows of the part in the file: those of the slices before, then those of the tiles before. */
    uint64_t row = slice * mp_synth_part_rows(item, part, mp_synth_stored_rows(item));

    if (tile->row0 > 0) /* a multiple of the rows that an element stands for */
        row += mp_synth_part_rows(item, part, tile->row0);
    *done += bytes;
    return mp_pwrite_all(run->fd, tile->out[part], bytes, offset + row * row_bytes, run->path, err);
}

/* Makes and writes a tile. */
static int write_tile(void *user, uint64_t unit, void *scratch, mp_error *err)
{
    const shard_run *run = user;
    size_t index = item_of_unit(run, unit);
    const mp_synth_item *item = &run->items[index];
    const place *to = &run->places[index];
    mp_synth_tile tile = tile_of_unit(run, item, unit - to->first_unit, scratch);
    uint64_t slice = (unit - to->first_unit) / tiles_of(item);
    uint64_t done = 0;

    item->form->fill(&tile);
    for (unsigned p = 0; p < MP_SYNTH_PARTS && item->names[p]; p++)
        if (write_part(run, &tile, p, slice, to->offset[p], &done, err) != 0)
            return err->code;
    report(run->all, done);
    return 0;
}

int mp_synth_shard_write(mp_synth_run *all, size_t shard, mp_error *err)
{
    const mp_synth_plan *plan = all->plan;
    size_t first = plan->shards[shard].first_item;
    shard_run run = {
        .all = all,
        .items = &plan->items[first],
        .num_items = plan->shards[shard + 1].first_item - first,
        .path = mp_path_join(all->dir, plan->shards[shard].name),
        .fd = -1,
    };
    int rc;

    run.places = mp_alloc_zeroed(run.num_items, sizeof *run.places);
    if (!run.path || !run.places) {
        rc = mp_fail_memory(err);
        goto out;
    }
    count_units(&run);
    rc = mp_open_write(run.path, &run.fd, err);
    if (rc == 0)
        rc = write_header(&run, err);
    if (rc == 0)
        rc = mp_parallel(all->context, run.num_units, run.scratch_bytes, write_tile, &run, err);
    if (rc == 0)
        rc = mp_file_sync(run.fd, run.path, err);
    if (rc == 0) {
        rc = mp_file_close(run.fd, run.path, err);
        run.fd = -1;
    }
out:
    if (run.fd >= 0)
        close(run.fd);
    free(run.path);
    free(run.places);
    return rc;
}
