/* SPDX-License-Identifier: Apache-2.0 */
/* moepack map: which expert every slot holds, and which slots an expert goes to. Asked without a
 * model or a pack at hand: a placement, or numbers, and the number of ranks are all that slots
 * depend on. --check only holds a placement against its own rules and prints its sizes. A placement
 * of one row is for all layers, and is printed under the number that was asked for. */
#include "commands.h"
#include "files.h"
#include "output.h"

#include <stdlib.h>

/* What a number holds that was not given. */
#define UNSET UINT64_MAX

typedef struct map_options {
    common_options common;
    const char *placement;
    uint64_t experts;
    uint64_t redundant;
    uint64_t ep;
    uint64_t shared;
    bool shared_once;
    uint64_t layer;         /* or UNSET */
    uint64_t checkpoint_id; /* or UNSET */
    bool check;
} map_options;

/* What is mapped. */
typedef struct map_job {
    const map_options *o;
    mp_placement placement;
    mp_slots slots;
    uint32_t first, end; /* rows asked for */
    mp_slot *table;      /* of a layer: all slots */
    uint32_t *found;     /* of a layer: slots of the checkpoint id */
} map_job;

static const char *kind_name(mp_slot_kind kind)
{
    return kind == MP_SLOT_SHARED ? "shared" : "routed";
}

/* Under which number a row is printed: a single row that serves all layers stands for the one
 * asked for. */
static uint32_t printed_layer(const map_job *job, uint32_t row)
{
    const mp_placement *p = &job->placement;

    if (p->layers == 1 && !p->layer_ids && job->o->layer != UNSET)
        return (uint32_t)job->o->layer;
    return mp_placement_layer(p, row);
}

/* ------------------------------------------------------------------------
 * The slot table
 */

static json_t *slot_json(const mp_slot *slot)
{
    return json_pack("{s:i, s:i, s:i, s:s, s:i, s:i}", "slot", (int)slot->slot, "rank",
                     (int)slot->rank, "local", (int)slot->local, "kind", kind_name(slot->kind),
                     "logical", (int)slot->checkpoint_id, "replica", (int)slot->replica);
}

static json_t *layer_json(const map_job *job, uint32_t layer)
{
    json_t *slots = json_array();

    for (uint32_t slot = 0; slot < job->slots.total; slot++) {
        if (json_array_append_new(slots, slot_json(&job->table[slot])) != 0) {
            json_decref(slots);
            return NULL;
        }
    }
    return json_pack("{s:i, s:o}", "layer", (int)printed_layer(job, layer), "slots", slots);
}

static void print_layer(const map_job *job, uint32_t layer, const output_ink *ink)
{
    printf("%slayer %u%s\n   slot   rank  local  kind    expert  replica\n", ink->bold,
           printed_layer(job, layer), ink->plain);
    for (uint32_t i = 0; i < job->slots.total; i++) {
        const mp_slot *s = &job->table[i];

        printf("%7u %6u %6u  %s  %6u  %7u\n", s->slot, s->rank, s->local, kind_name(s->kind),
               s->checkpoint_id, s->replica);
    }
}

static int print_table(map_job *job, mp_error *err)
{
    const mp_slots *s = &job->slots;
    output_ink ink = ink_for(stdout, &job->o->common);
    json_t *layers = job->o->common.json ? json_array() : NULL;

    for (uint32_t layer = job->first; layer < job->end; layer++) {
        const int32_t *row = mp_placement_row(&job->placement, layer);
        int rc = mp_slots_table(s, row, job->table, err);

        if (rc == 0 && layers && json_array_append_new(layers, layer_json(job, layer)) != 0)
            rc = cmd_fail(err, MP_ERR_IO, "out of memory");
        if (rc != 0) {
            json_decref(layers);
            return rc;
        }
        if (!job->o->common.json)
            print_layer(job, layer, &ink);
    }
    if (!job->o->common.json)
        return 0;
    return print_json(json_pack("{s:i, s:i, s:i, s:i, s:i, s:o}", "num_logical",
                                (int)s->num_logical, "num_physical", (int)s->num_physical,
                                "ep_size", (int)s->ep, "shared", (int)s->shared, "slots_per_rank",
                                (int)s->per_rank, "layers", layers),
                      err);
}

/* ------------------------------------------------------------------------
 * Slots of a checkpoint id
 */

static json_t *found_json(const map_job *job, uint32_t count, uint32_t layer)
{
    json_t *slots = json_array();

    for (uint32_t i = 0; i < count; i++) {
        if (json_array_append_new(slots, json_integer(job->found[i])) != 0) {
            json_decref(slots);
            return NULL;
        }
    }
    return json_pack("{s:i, s:o}", "layer", (int)printed_layer(job, layer), "slots", slots);
}

static void print_found(const map_job *job, uint32_t count, uint32_t layer)
{
    printf("layer %u:", printed_layer(job, layer));
    for (uint32_t i = 0; i < count; i++)
        printf(" %u", job->found[i]);
    putchar('\n');
}

static int print_slots_of(map_job *job, mp_error *err)
{
    const mp_slots *s = &job->slots;
    uint32_t id = (uint32_t)job->o->checkpoint_id;
    json_t *layers = job->o->common.json ? json_array() : NULL;

    if (job->o->checkpoint_id >= (uint64_t)s->num_logical + s->shared) {
        json_decref(layers);
        return cmd_fail(err, MP_ERR_INPUT,
                        "checkpoint id %llu: there are %u logical experts and %u "
                        "shared ones",
                        (unsigned long long)job->o->checkpoint_id, s->num_logical, s->shared);
    }
    for (uint32_t layer = job->first; layer < job->end; layer++) {
        const int32_t *row = mp_placement_row(&job->placement, layer);
        uint32_t count = 0;

        if (mp_slots_table(s, row, job->table, err) != 0) {
            json_decref(layers);
            return err->code;
        }
        for (uint32_t i = 0; i < s->total; i++)
            if (job->table[i].checkpoint_id == id)
                job->found[count++] = job->table[i].slot;
        if (!job->o->common.json) {
            print_found(job, count, layer);
        } else if (json_array_append_new(layers, found_json(job, count, layer)) != 0) {
            json_decref(layers);
            return cmd_fail(err, MP_ERR_IO, "out of memory");
        }
    }
    if (!job->o->common.json)
        return 0;
    mp_slot_kind kind = id >= s->num_logical ? MP_SLOT_SHARED : MP_SLOT_ROUTED;
    return print_json(json_pack("{s:i, s:s, s:o}", "checkpoint_id", (int)id, "kind",
                                kind_name(kind), "layers", layers),
                      err);
}

/* ------------------------------------------------------------------------
 * The command
 */

static int print_summary(const map_job *job, const mp_problems *warnings, mp_error *err)
{
    const mp_placement *p = &job->placement;

    if (job->o->common.json)
        return print_json(json_pack("{s:b, s:i, s:i, s:i, s:i, s:I}", "ok", 1, "rows",
                                    (int)p->layers, "num_logical", (int)p->num_logical,
                                    "num_physical", (int)p->num_physical, "ep_size",
                                    (int)job->slots.ep, "warnings", (json_int_t)warnings->count),
                          err);
    printf("%u row%s, %u logical and %u physical experts, %u rank%s of %u slot%s\n", p->layers,
           plural(p->layers), p->num_logical, p->num_physical, job->slots.ep, plural(job->slots.ep),
           job->slots.per_rank, plural(job->slots.per_rank));
    return 0;
}

/* Two copies of an expert on one rank are legal, and a waste of memory; on a single rank there
 * is no other place for them. */
static int check_placement(map_job *job, mp_error *err)
{
    uint32_t ep = job->slots.ep;
    mp_problems warnings = {0};
    int rc = mp_placement_check(&job->placement, ep, ep > 1 ? &warnings : NULL, err);

    if (rc == 0 && !job->o->common.quiet)
        print_problems(stderr, "moepack: map: warning", &warnings);
    if (rc == 0 && job->o->check)
        rc = print_summary(job, &warnings, err);
    mp_problems_release(&warnings);
    return rc;
}

static int select_layers(map_job *job, mp_error *err)
{
    const mp_placement *p = &job->placement;

    job->end = p->layers;
    if (job->o->layer == UNSET)
        return 0;
    job->first = mp_placement_row_of(p, job->o->layer);
    job->end = job->first + 1;
    if (job->first == UINT32_MAX)
        return cmd_fail(
            err, MP_ERR_INPUT, "layer %llu: %s %u rows", (unsigned long long)job->o->layer,
            p->layer_ids ? "it is not one of the placement's" : "the placement has", p->layers);
    return 0;
}

static int prepare(map_job *job, mp_error *err)
{
    const map_options *o = job->o;

    if (o->check && o->checkpoint_id != UNSET)
        return cmd_fail(err, MP_ERR_USAGE, "--check and --checkpoint-id cannot be used together");
    int rc = load_placement(o->placement, o->experts, o->redundant, &job->placement, err);
    if (rc == 0)
        rc = mp_slots_init(&job->slots, job->placement.num_logical, job->placement.num_physical,
                           (uint32_t)o->ep, (uint32_t)o->shared, o->shared_once, err);
    if (rc == 0)
        rc = select_layers(job, err);
    if (rc != 0)
        return rc;
    job->table = malloc(job->slots.total * sizeof(*job->table));
    job->found = malloc(job->slots.total * sizeof(*job->found));
    return job->table && job->found ? 0 : cmd_fail(err, MP_ERR_IO, "out of memory");
}

static int run_map(const void *values, mp_error *err)
{
    const map_options *o = values;
    map_job job = {.o = o};
    int rc = prepare(&job, err);

    if (rc == 0)
        rc = check_placement(&job, err);
    if (rc == 0 && o->checkpoint_id != UNSET)
        rc = print_slots_of(&job, err);
    else if (rc == 0 && !o->check)
        rc = print_table(&job, err);
    mp_placement_release(&job.placement);
    free(job.table);
    free(job.found);
    return rc;
}

static const cmd_option options[] = {
    OPT_STRING(0, "placement", "FILE", map_options, placement,
               "place experts according to FILE, - for standard input"),
    OPT_U64(0, "experts", "N", map_options, experts, 1, INT32_MAX,
            "experts of the model; required without a placement"),
    OPT_U64(0, "redundant", "R", map_options, redundant, 0, INT32_MAX,
            "without a placement: add R redundant experts in order"),
    OPT_U64(0, "ep", "N", map_options, ep, 1, INT32_MAX, "expert-parallel ranks"),
    OPT_U64(0, "shared", "S", map_options, shared, 0, INT32_MAX, "fused shared experts"),
    OPT_FLAG(0, "shared-once", map_options, shared_once,
             "give shared experts one slot each, after all routed ones"),
    OPT_U64(0, "layer", "L", map_options, layer, 0, INT32_MAX,
            "only this row of the placement, or decoder layer if the file states them"),
    OPT_U64(0, "checkpoint-id", "E", map_options, checkpoint_id, 0, INT32_MAX,
            "print only the slots of expert E of the checkpoint"),
    OPT_FLAG(0, "check", map_options, check, "check the placement and print only its sizes"),
    OPT_JSON(map_options),
    OPT_END,
};
static const map_options defaults = {.ep = 1, .layer = UNSET, .checkpoint_id = UNSET};

const command command_map = {
    .name = "map",
    .summary = "print which expert each slot holds",
    .options = options,
    COMMAND_DEFAULTS(defaults),
    .run = run_map,
};
