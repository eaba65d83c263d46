/* SPDX-License-Identifier: Apache-2.0 */
/* write/plan.h - the plan of a pack. */
#ifndef MP_WRITE_PLAN_H
#define MP_WRITE_PLAN_H

#include <moepack/pack.h>

#include "experts/canonical.h"
#include "pack/pack.h"
#include "pack/shape.h"

/* Wanted size of a tile: of rows, in cache, and worth a system call; of columns, or of rows that
 * are columns of a transposed tensor, wide enough that the piece of every row is worth one. */
#define MP_UNIT_ROWS_BYTES       (256u << 10)
#define MP_UNIT_COLS_BYTES       (4u << 20)
#define MP_UNIT_TRANSPOSED_BYTES (32u << 20)

/* A layer to pack. Its ids are those of the shape: routed experts, then shared ones. */
typedef struct mp_plan_layer {
    const mp_moe_layer *source;
    bool lossless;        /* of the routed experts */
    bool shared_lossless; /* of the others */
    mp_expert *shared;    /* [shape.num_ids - source->num_experts], parts of source->shared */
    mp_places places;     /* on the ranks that are written */
    uint64_t first_unit;  /* index of this layer's first unit */
} mp_plan_layer;

typedef struct mp_repack_plan {
    const mp_catalog *catalog;
    mp_repack_options options;
    bool *layers_chosen; /* [catalog.num_layers] */
    bool *ranks_chosen;  /* [ep] */
    mp_role_set drop;    /* of options.drop */
    mp_shape shape;
    mp_placement placement; /* rows for the packed layers only, or one row */
    mp_plan_layer *layers;
    size_t num_layers;
    mp_work work;          /* a unit is an expert's side in a layer: layer, then id, then side */
    uint32_t layer_stages; /* of work: 1, or one a side */
    uint32_t *output_of;   /* [layer][rank][tensor] into work.outputs; UINT32_MAX: not written */
    mp_problems warnings;
} mp_repack_plan;

/* mp_plan_repack, into a plan of the caller's, with options that are whole. */
int mp_repack_plan_init(mp_repack_plan *plan, const mp_catalog *catalog,
                        const mp_repack_options *options, mp_error *err);

/* The same of layers and ranks that are chosen already: malloc'ed flags, which are the plan's from
 * here on. Null: all. */
int mp_repack_plan_of(mp_repack_plan *plan, const mp_catalog *catalog,
                      const mp_repack_options *options, bool *layers, bool *ranks, mp_error *err);
void mp_repack_plan_release(mp_repack_plan *plan);

/* mp_plan_run. */
int mp_repack_plan_run(const mp_repack_plan *plan, const char *out, mp_run_mode mode,
                       const mp_context *context, mp_error *err);

/* A unit of work: one side of one expert of one layer, for all of its copies. */
typedef struct mp_unit {
    const mp_plan_layer *layer;
    uint32_t layer_index;
    uint32_t id; /* as the shape counts */
    bool is_shared;
    const mp_expert *matrices;
    const mp_slot_set *set; /* whose tensors it fills */
    mp_side side;
} mp_unit;

/* The unit of that index, index < plan->work.num_units. */
mp_unit mp_plan_unit(const mp_repack_plan *plan, uint64_t index);

/* Where the unit's matrices come from. */
mp_side_source mp_unit_source(const mp_repack_plan *plan, const mp_unit *unit);

/* True where the unit cannot requantize, whatever it reads. */
bool mp_unit_is_lossless(const mp_repack_plan *plan, const mp_unit *unit);

/* Bytes that a unit writes. */
uint64_t mp_unit_bytes_written(const mp_repack_plan *plan, const mp_unit *unit);

/* The output for a tensor of a layer on a rank; null where it is not written. */
const mp_out_tensor *mp_plan_output(const mp_repack_plan *plan, uint32_t layer, uint32_t rank,
                                    const mp_slot_set *set, const mp_slot_tensor *tensor);

/* Whether weights of a target are codes of 4 bits. */
bool mp_holds_codes(const mp_target *target);

/* Fills plan->work's outputs and files once everything else is settled. */
int mp_plan_files(mp_repack_plan *plan, mp_error *err);

#endif
