/* SPDX-License-Identifier: Apache-2.0 */
/* Writing a shard of a synthetic checkpoint: its header, and its items tile by tile. */
#include "pack/synth.h"

#include <stdlib.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"

/* Headers of Hugging Face's own writer are padded to this. */
#define HEADER_ALIGN 8

/* Buffers in a thread's scratch begin at multiples of this. */
#define BUFFER_ALIGN 64

/* Where an item lies in the file, and which units make it. */
typedef struct place {
    uint64_t offset;
    uint64_t scale_offset;
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

/* Sizes of what a thread keeps in its scratch while it makes a tile, in this order. */
typedef struct buffers {
    uint64_t columns, work, out, scales;
} buffers;

static buffers tile_buffers(const mp_synth_item *item)
{
    const mp_synth_form *form = item->form;
    uint64_t rows = item->tile_rows < item->rows ? item->tile_rows : item->rows;
    uint64_t scale_rows = mp_ceil_div(rows, form->block_rows);

    return (buffers){
        .columns = mp_round_up(item->cols * sizeof(float), BUFFER_ALIGN),
        .work = mp_round_up(mp_synth_work(form, item->cols) * sizeof(float), BUFFER_ALIGN),
        .out = mp_round_up(rows * mp_synth_row_bytes(form, item->cols), BUFFER_ALIGN),
        .scales = scale_rows * mp_synth_scale_row_bytes(form, item->cols),
    };
}

/* Counts the units, and the scratch that the largest needs. */
static void count_units(shard_run *run)
{
    for (size_t i = 0; i < run->num_items; i++) {
        const mp_synth_item *item = &run->items[i];
        buffers size = tile_buffers(item);
        uint64_t scratch = size.columns + size.work + size.out + size.scales;

        run->places[i].first_unit = run->num_units;
        run->num_units += mp_ceil_div(item->rows, item->tile_rows);
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
        for (size_t i = 0; i < run->num_items; i++) {
            mp_tensor_spec weight, scale;

            mp_synth_item_specs(&run->items[i], &weight, &scale);
            if (mp_dtype_bits(weight.dtype) == bits) {
                at[count] = &run->places[i].offset;
                specs[count++] = weight;
            }
            if (scale.name && mp_dtype_bits(scale.dtype) == bits) {
                at[count] = &run->places[i].scale_offset;
                specs[count++] = scale;
            }
        }
    return count;
}

/* Makes the header, places all items, and gives the file its size. */
static int write_header(shard_run *run, mp_error *err)
{
    static const char *const metadata[] = {"format", "pt"};
    mp_tensor_spec *specs = mp_alloc(run->num_items, 2 * sizeof *specs);
    uint64_t **at = mp_alloc(run->num_items, 2 * sizeof *at);
    uint64_t *offsets = mp_alloc(2 * (uint64_t)run->num_items + 1, sizeof *offsets);
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
    size_t low = 0, high = run->num_items;

    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;

        if (run->places[middle].first_unit <= unit)
            low = middle;
        else
            high = middle;
    }
    return low;
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

/* The tile that a unit makes of an item, with its buffers in scratch. */
static mp_synth_tile tile_of_unit(const shard_run *run, const mp_synth_item *item, uint64_t unit,
                                  unsigned char *scratch)
{
    const mp_synth_options *options = run->all->plan->options;
    buffers size = tile_buffers(item);
    uint64_t row0 = unit * item->tile_rows;
    uint64_t left = item->rows - row0;

    return (mp_synth_tile){
        .form = item->form,
        .values = {.shapes = run->all->shapes,
                   .columns = (float *)(void *)scratch,
                   .key = mp_synth_key(options->seed, item->name)},
        .row0 = row0,
        .rows = left < item->tile_rows ? left : item->tile_rows,
        .cols = item->cols,
        .num_experts = options->num_experts,
        .work = (float *)(void *)(scratch + size.columns),
        .out = scratch + size.columns + size.work,
        .scales = scratch + size.columns + size.work + size.out,
    };
}

/* Makes and writes a tile. */
static int write_tile(void *user, uint64_t unit, void *scratch, mp_error *err)
{
    const shard_run *run = user;
    size_t index = item_of_unit(run, unit);
    const mp_synth_item *item = &run->items[index];
    const place *to = &run->places[index];
    const mp_synth_form *form = item->form;
    mp_synth_tile tile = tile_of_unit(run, item, unit - to->first_unit, scratch);
    uint64_t row_bytes = mp_synth_row_bytes(form, item->cols);
    uint64_t scale_row_bytes = mp_synth_scale_row_bytes(form, item->cols);
    uint64_t scale_row0 = tile.row0 / form->block_rows;
    uint64_t bytes = tile.rows * row_bytes;
    uint64_t scale_bytes = mp_ceil_div(tile.rows, form->block_rows) * scale_row_bytes;

    mp_synth_columns(tile.values.key, item->cols, scratch);
    form->fill(&tile);
    int rc =
        mp_pwrite_all(run->fd, tile.out, bytes, to->offset + tile.row0 * row_bytes, run->path, err);
    if (rc == 0)
        rc = mp_pwrite_all(run->fd, tile.scales, scale_bytes,
                           to->scale_offset + scale_row0 * scale_row_bytes, run->path, err);
    if (rc == 0)
        report(run->all, bytes + scale_bytes);
    return rc;
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
