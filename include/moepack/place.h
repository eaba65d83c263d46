/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/place.h - which expert sits where: placement files, slots, load
 * balancing (EPLB) and the remap of routed choices.
 *
 * Three numberings, and the counts that bound them:
 *   logical expert   0 .. N-1      an expert of the model
 *   physical expert  0 .. P-1      a copy of a logical one; P = N + redundant ones
 *   slot             0 .. slots-1  a place in the ranks' weight tensors
 * and the numbering of the checkpoint:
 *   checkpoint id    0 .. N+S-1    logical experts, then S fused shared experts
 *
 * A placement says which logical expert each physical one is. Slots say where a
 * physical expert, and each shared one, lies. A checkpoint id is shared when it
 * is >= N; the slot arithmetic knows only P. Both counts are in mp_slots, so that
 * no caller has to choose one.
 *
 *     mp_placement placement;
 *     mp_slots slots;
 *     mp_slot slot;
 *     if (mp_placement_trivial(&placement, 1, 256, 32, &err) != 0 ||
 *         mp_slots_init(&slots, 256, placement.num_physical, 32, 1, false, &err) != 0)
 *         ...
 *     mp_slots_describe(&slots, mp_placement_row(&placement, layer), 17, &slot);
 *     // slot.checkpoint_id is the expert whose weights belong into slot 17
 *
 * No function here opens a file. All ids are checked before they index.
 */
#ifndef MOEPACK_PLACE_H
#define MOEPACK_PLACE_H

#include <moepack/base.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* ------------------------------------------------------------------------
 * Placement
 */

typedef struct mp_placement {
    uint32_t layers;       /* rows of map, at least 1; 1 row may serve any number of layers */
    uint32_t num_logical;  /* N */
    uint32_t num_physical; /* P = N + R */
    int32_t *map;          /* [layers][P]: logical expert of each physical one; owned */
    uint32_t *layer_ids;   /* [layers]: decoder layer of each row, ascending, where the file states
                              them; else null; owned */
    uint32_t devices;      /* ranks that the file is for, where it says so; else 0 */
} mp_placement;

/* Placement files. trtllm and vllm-ascend files state the decoder layer of each row, dense layers
 * counted, with gaps where layers have no experts. Rows of the others are one for each decoder
 * layer or one for each MoE layer, which is not for the file to say. */
typedef enum mp_placement_format {
    MP_PLACEMENT_SGLANG,      /* JSON: {"physical_to_logical_map": [[..], ..]} */
    MP_PLACEMENT_TRTLLM,      /* YAML: num_slots, initial_global_assignments */
    MP_PLACEMENT_VLLM_ASCEND, /* JSON: moe_layer_count, layer_list */
    MP_PLACEMENT_VLLM,        /* JSON: [[..], ..], or one [..] for all layers */
    MP_PLACEMENT_FORMAT_COUNT
} mp_placement_format;

/* Physical expert p of every layer is a copy of logical expert p mod num_logical.
 * MP_ERR_INPUT for no layer, no expert, or more than INT32_MAX of them. */
int mp_placement_trivial(mp_placement *p, uint32_t layers, uint32_t num_logical, uint32_t redundant,
                         mp_error *err);

/* Reads a placement file of any of the four formats, told apart by content.
 * num_logical: experts that the model has; 0 takes the largest id + 1.
 * MP_ERR_INPUT for anything but a whole and valid placement: ragged rows, ids out
 * of range, a logical expert that no physical one holds, unknown keys. The message
 * names row and column. MP_ERR_UNSUPPORTED for a PyTorch .pt file, with a hint. */
int mp_placement_parse(mp_placement *p, const char *text, uint64_t length, uint32_t num_logical,
                       mp_error *err);

/* The text of a placement file, which mp_placement_parse reads back.
 * ep: ranks, which vllm-ascend files name; ignored by the others.
 * text: set to a malloc'ed, NUL-terminated string that the caller frees.
 * MP_ERR_INPUT where ep does not divide num_physical. */
int mp_placement_write(const mp_placement *p, mp_placement_format format, uint32_t ep, char **text,
                       mp_error *err);

/* Checks that every id is below num_logical, that every logical expert is placed,
 * and that ep (0: not checked) divides num_physical and is the number of devices, if that is known.
 * warnings: gets one text where layers have two copies of an expert on one rank,
 *   which is legal; may be null.
 * MP_ERR_INPUT, naming row and column. */
int mp_placement_check(const mp_placement *p, uint32_t ep, mp_problems *warnings, mp_error *err);

/* The num_physical logical ids of a row. A single row serves all layers;
 * otherwise null when the row is not below p->layers. */
const int32_t *mp_placement_row(const mp_placement *p, uint32_t row);

/* The row of decoder layer `layer`: that which the file states for it, or else number `layer` of
 * one for each decoder layer. A single row without a layer serves all. UINT32_MAX: there is none.
 */
uint32_t mp_placement_row_of(const mp_placement *p, uint64_t layer);

/* The layer that a row is printed under: the one that the file states, or its own number. */
uint32_t mp_placement_layer(const mp_placement *p, uint32_t row);

void mp_placement_release(mp_placement *p);

/* ------------------------------------------------------------------------
 * Slots
 *
 * Every rank holds r = P / ep routed slots, then S shared ones, l = r + S in all:
 * physical expert p lies in slot p + (p / r) * S, and checkpoint id N + s in slots
 * k * l + r + s of every rank k. With shared_once a shared expert has one slot
 * only, P + s, after all routed ones; the last rank then holds S slots more.
 */

/* Slot arithmetic as a value, which mp_slots_init fills. */
typedef struct mp_slots {
    uint32_t num_logical;  /* N: a checkpoint id is shared from here on */
    uint32_t num_physical; /* P: what the slots are counted by */
    uint32_t ep;           /* ranks; divides P */
    uint32_t shared;       /* S, fused shared experts */
    bool shared_once;      /* in one slot each, instead of one on every rank */
    uint32_t per_rank;     /* slots of a rank: P / ep + S, or P / ep with shared_once */
    uint32_t total;        /* slots of all ranks */
} mp_slots;

/* MP_ERR_INPUT when a count is 0 (shared may be), num_physical < num_logical, ep
 * does not divide num_physical, or slots do not fit an int32_t. */
int mp_slots_init(mp_slots *s, uint32_t num_logical, uint32_t num_physical, uint32_t ep,
                  uint32_t shared, bool shared_once, mp_error *err);

typedef enum mp_slot_kind { MP_SLOT_ROUTED, MP_SLOT_SHARED } mp_slot_kind;

/* What a slot holds. */
typedef struct mp_slot {
    uint32_t slot;
    uint32_t rank;
    uint32_t local; /* place among the slots of its rank */
    mp_slot_kind kind;
    uint32_t checkpoint_id; /* logical expert, or num_logical + s */
    uint32_t replica;       /* copies of the same checkpoint id in slots before this one */
} mp_slot;

/* Describes all slots of a layer into s->total entries. MP_ERR_IO without memory. */
int mp_slots_table(const mp_slots *s, const int32_t *row, mp_slot *table, mp_error *err);

/* ------------------------------------------------------------------------
 * Replicas: from logical experts to their physical ones
 */

/* ------------------------------------------------------------------------
 * Load counts
 */

/* How often each logical expert was chosen. */
typedef struct mp_counts {
    uint32_t layers;
    uint32_t num_logical;
    float *count;     /* [layers][N], finite and not negative; owned */
    uint32_t windows; /* successive parts of the traffic; 0 or 1: all of it */
    float *window;    /* [windows][layers][N], which add up to count; null for one window; owned */
} mp_counts;

void mp_counts_release(mp_counts *c);

/* Windows that a balancer minds one by one, at most. */
#define MP_COUNTS_WINDOWS_MAX 64u

/* What engines recorded: for every step of theirs (a forward pass, an iteration, or all that a
 * file knows), how often each logical expert was chosen. Inputs are added one after the other; a
 * zeroed value is empty. */
typedef struct mp_recording {
    uint32_t layers, num_logical; /* 0: nothing was added yet */
    uint32_t *layer_ids;          /* [layers]: decoder layers, ascending, where inputs name them;
                                     else null; owned */
    bool guessed;                 /* num_logical is only the largest id + 1 that was seen */
    uint64_t steps;
    double *count; /* [steps][layers][N], finite and not negative; owned */
    int64_t *pass; /* [steps]: number of the forward pass, or -1; owned */
} mp_recording;

/* Adds the steps of a file, told apart by content:
 *   JSON  {"logical_count": ...} as below, with `rank` and
 *         `average_utilization_rate_over_window` beside it (SGLang); or the list alone
 *   CSV   lines of layer_id,expert_id,count under a line of these names
 *   .pt   torch.save of a dict with `logical_count`, or with `records` of physical counts and
 *         `last_physical_to_logical_map` (SGLang). A pickle is interpreted, nothing is run.
 * with counts [layers][N] or [steps][layers][N]. Steps follow those that are there already;
 * those of `records` are added to an earlier one with the same forward_pass_id.
 * num_logical: experts of the model, or 0 where the file tells. Only a CSV file needs it: it names
 *   no expert that was never chosen.
 * MP_ERR_INPUT for anything malformed, a count that is negative or not finite, sizes that differ
 * from those of earlier inputs, all with the place; MP_ERR_UNSUPPORTED for a .pt in another form
 * than torch's zip archive, or with anything in its pickle that counts have no need of. */
int mp_recording_add(mp_recording *r, const char *text, uint64_t length, uint32_t num_logical,
                     mp_error *err);

/* Adds steps that the caller has read. count: [steps][layers][N]; layer_ids: [layers] or null.
 * The same checks. */
int mp_recording_add_steps(mp_recording *r, const double *count, uint64_t steps, uint32_t layers,
                           uint32_t num_logical, const uint32_t *layer_ids, mp_error *err);

/* Adds the steps up: all of them into one window, or every `window` of them, the last ones to the
 * window before where they are fewer than half. Steps without a count are left out first.
 * MP_ERR_USAGE for more than MP_COUNTS_WINDOWS_MAX windows, naming the least `window` that will
 * do; MP_ERR_INPUT for sums that do not fit a float. */
int mp_recording_sum(const mp_recording *r, uint64_t window, mp_counts *c, mp_error *err);

void mp_recording_release(mp_recording *r);

/* ------------------------------------------------------------------------
 * Load balancing
 *
 * The algorithm is that of DeepSeek's expert parallelism load balancer
 * (https://github.com/deepseek-ai/EPLB), in float32, with ties made stable:
 * equal weights in index order, the lowest pack and the lowest expert first.
 */

typedef enum mp_eplb_algorithm {
    MP_EPLB_AUTO,         /* hierarchical when nodes divides groups, else global */
    MP_EPLB_HIERARCHICAL, /* expert groups go to nodes whole, then replicas inside the nodes */
    MP_EPLB_GLOBAL,       /* one group, one node */
    MP_EPLB_BEST          /* a search for the smallest load; nodes and groups as with auto */
} mp_eplb_algorithm;

/* What MP_EPLB_BEST makes small, where there are several windows. */
typedef enum mp_eplb_objective {
    MP_EPLB_MEAN, /* the sum over windows of the largest GPU load: what lockstep serving waits for
                   */
    MP_EPLB_WORST /* the largest GPU load over mean GPU load of any window */
} mp_eplb_objective;

typedef struct mp_eplb_options {
    size_t size;           /* of this struct */
    uint32_t num_physical; /* P */
    uint32_t ep;           /* GPUs; divides P */
    uint32_t nodes;        /* divides ep and, unless global, groups; 0 is 1 */
    uint32_t groups;       /* expert groups of the router; divides N unless global; 0 is 1 */
    mp_eplb_algorithm algorithm;
    uint32_t refine; /* most swaps a layer that improve the result afterwards; 0: none. Not with
                        MP_EPLB_BEST */
    mp_eplb_objective objective;
    const mp_placement *from; /* in use now: few experts are to move; may be null. Of the same
                                 layers, or of one row */
    bool limit_moves;         /* MP_EPLB_BEST with `from`: at most max_moves slots of a layer get */
    uint32_t max_moves;       /* an expert that their GPU did not hold */
} mp_eplb_options;

/* Where a layer's placement comes from. */
typedef enum mp_eplb_source {
    MP_EPLB_FROM_EPLB,   /* DeepSeek's algorithm */
    MP_EPLB_FROM_SEARCH, /* a search that found better */
    MP_EPLB_FROM_PATH    /* few moves from the old placement */
} mp_eplb_source;

/* How well a layer is balanced. A replica carries count / replicas. Loads are summed over
 * windows; balancedness is the sum of mean GPU loads over the sum of the largest, 1 for a layer
 * that was never chosen. */
typedef struct mp_eplb_report {
    double balancedness_trivial; /* of the trivial placement with the same P */
    double balancedness;         /* of EPLB */
    double balancedness_refined; /* of the result; the same without refinement or search */
    double max_load;             /* largest GPU load of EPLB */
    double max_load_refined;     /* of the result */
    double lower_bound;          /* larger of mean GPU load and largest count / replicas; with
                                    MP_EPLB_BEST what no placement goes below that has no two copies
                                    of an expert on a GPU, for MP_EPLB_WORST over the mean */
    double worst_window;         /* largest over mean GPU load, of the worst window */
    double moves;                /* slots whose GPU did not hold their expert in `from`; else 0 */
    double colocated_replicas;   /* copies on a GPU that has the expert already, in the end;
                                    these two are whole but in a mean */
    bool chosen;                 /* the layer has a count above 0 */
    mp_eplb_source source;
} mp_eplb_report;

typedef struct mp_eplb {
    mp_placement placement;
    uint32_t ep;
    int32_t *replica_rank;  /* [layers][P]: number of each physical expert among its replicas,
                               in the order that they were made */
    int32_t *replica_count; /* [layers][N] */
    double *load_trivial;   /* [layers][ep]: GPU loads of the trivial placement */
    double *load_eplb;      /* [layers][ep]: of EPLB */
    double *load;           /* [layers][ep]: GPU loads in the end */
    mp_eplb_report *report; /* [layers] */
    mp_eplb_report mean;    /* over the layers that were chosen; 1 and 0 where none was */
    const char *result;     /* "best", "refined", "renumbered": what it is beside EPLB's placement;
                               null: that itself; a static string */
} mp_eplb;

/* Places every layer of the counts, layers in parallel; the result does not depend on threads.
 * context: threads and cancellation; may be null.
 * Refinement swaps physical experts between GPUs of one node (hierarchical) or
 * of all (global). It first parts copies of one expert that are on one GPU, where
 * that can be done without raising the largest load, then lowers the largest load
 * as long as a swap does, and puts no copies together. It never does worse.
 * MP_EPLB_BEST chooses the numbers of copies too, and takes EPLB's placement where that is better,
 * and for layers that were never chosen. Only then, or where GPUs have more slots than there are
 * experts, are copies side by side.
 * With `from`, GPUs get the numbers with which most copies stay where they are; MP_EPLB_BEST also
 * goes there step by step, which is the result where it is as good with fewer moves, or where
 * max_moves allows no more.
 * MP_ERR_INPUT for counts out of range, fewer physical than logical experts, an old placement of
 * other sizes, or numbers that do not divide; MP_ERR_USAGE for options that contradict each other;
 * MP_ERR_IO without memory. */
int mp_eplb_balance(mp_eplb *e, const mp_counts *counts, const mp_eplb_options *options,
                    const mp_context *context, mp_error *err);
void mp_eplb_release(mp_eplb *e);

/* ------------------------------------------------------------------------
 * Routing: from top-k choices to slots
 */

typedef enum mp_dispatch {
    MP_DISPATCH_NEAREST,    /* a replica on the own rank, the lowest; else round robin */
    MP_DISPATCH_ROUND_ROBIN /* replica (token * K + k) mod replicas */
} mp_dispatch;

typedef enum mp_waterfill_mode {
    MP_WATERFILL_OFF,    /* shared experts are computed on the token's own rank */
    MP_WATERFILL_STATIC, /* the shared expert goes where this rank's own choices weigh least */
    MP_WATERFILL_DYNAMIC /* where the summed loads of all ranks weigh least */
} mp_waterfill_mode;

/* In dynamic mode, a batch of fewer tokens keeps the shared expert on its own rank. */
#define MP_WATERFILL_MIN_TOKENS 64u

/* Ranks beyond which the engine's 32-bit candidate masks do not reach. */
#define MP_WATERFILL_ENGINE_RANKS 31u

/* Loads of all ranks, which dynamic waterfill starts from. */
typedef struct mp_rank_load {
    uint32_t ep;
    uint64_t *routed_counts; /* [ep]: routed choices that each rank gets; owned */
    uint64_t *tokens;        /* [ep]: tokens of each rank; owned */
} mp_rank_load;

/* Reads {"routed_counts": [ep], "tokens": [ep]}. MP_ERR_INPUT. */
int mp_rank_load_parse(mp_rank_load *load, const char *text, uint64_t length, uint32_t ep,
                       mp_error *err);
void mp_rank_load_release(mp_rank_load *load);

typedef struct mp_route_options {
    mp_slots slots;
    uint32_t rank; /* that the tokens are on, < slots.ep */
    mp_dispatch dispatch;
    double routed_scaling_factor; /* the engine multiplies the output by it; 0: none */
    mp_waterfill_mode waterfill;
    const mp_rank_load *rank_load; /* dynamic waterfill; else null */
} mp_route_options;

/* Maps the top-k choices of one rank's tokens to slots and appends the shared
 * columns, whose weight is 1 / routed_scaling_factor.
 * row: the layer's num_physical logical ids.
 * ids, weights: [tokens][k], logical experts; -1 is a masked choice, which stays -1
 *   with weight 0.
 * slot_ids, slot_weights: [tokens][k + shared], not overlapping the input.
 * choices: [ep], set to how many choices each rank gets, shared ones included.
 * MP_ERR_INPUT for an id out of range, naming token and choice; MP_ERR_USAGE for
 * waterfill with other than one shared expert on every rank, or no rank load. */
int mp_route(const mp_route_options *options, const int32_t *row, const int32_t *ids,
             const float *weights, uint64_t tokens, uint32_t k, int32_t *slot_ids,
             float *slot_weights, uint64_t *choices, mp_error *err);

/* Mean over largest, 1 when all are 0: 1 is perfect balance. */
double mp_balancedness(const uint64_t *choices, uint32_t ep);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
