/* SPDX-License-Identifier: Apache-2.0 */
/* From the placement in use to a better one in few moves: each step makes the change that lowers
 * the load most for what it moves. A change either swaps two copies, or gives an expert of the most
 * loaded GPU one more copy in place of a copy of an expert that has several.
 *
 * A move is a slot whose GPU did not hold that expert in the old placement. Moves are thus counted
 * against the start and not against the previous step: a copy that returns home cancels its move,
 * and `moves` can fall. With one window a step may leave F unchanged if several GPUs are equally
 * loaded. The path ends at the goal, when no change helps, or at the limit of steps.
 *
 * After each step everything but the row is derived from it again (settle), which is cheap next to
 * trying all changes. `delta` is all 0 between changes, so trying one touches only the GPUs it
 * affects. Runs on the thread that owns the layer, with memory [GPUs][experts] from the layer's
 * arena. */
#include <string.h>

#include "base/error.h"
#include "place/best.h"

/* Steps, as a multiple of the slots, after which a path ends wherever it is. */
#define STEPS_MAX 8

/* x, y: slots to swap; or y gets a copy of the expert in x. */
typedef struct change {
    uint32_t x, y;
    bool swaps;
    int32_t moves; /* that it adds; below 0 where it takes some back */
    double fall;   /* of F or, with one window, of the largest load of the GPUs that it changes */
    bool found;
} change;

typedef struct path {
    const mp_layer *layer;
    uint32_t room, node_gpus;
    int32_t *row;
    uint32_t *copies;         /* [experts] */
    uint32_t *start, *places; /* slots of expert e: places[start[e]] .. places[start[e + 1] - 1] */
    uint32_t *had, *have;     /* [gpus][experts]: copies in old, and now */
    double *share, *load;     /* [windows][experts], [windows][gpus] */
    double *delta;            /* [gpus]: all 0 between changes */
    uint32_t *touched;        /* GPUs that a change changes, some twice */
    uint32_t moves, max_moves;
    double f;
} path;

static int init(path *s, const mp_layer *layer, mp_arena *arena, mp_error *err)
{
    size_t n = layer->experts, p = layer->physical, g = layer->gpus;
    s->layer = layer;
    s->room = layer->physical / layer->gpus;
    s->node_gpus = layer->gpus / layer->nodes;
    bool complete = (s->copies = mp_arena_alloc(arena, n * sizeof(uint32_t))) &&
                    (s->start = mp_arena_alloc(arena, (n + 2) * sizeof(uint32_t))) &&
                    (s->places = mp_arena_alloc(arena, p * sizeof(uint32_t))) &&
                    (s->had = mp_arena_alloc(arena, g * n * sizeof(uint32_t))) &&
                    (s->have = mp_arena_alloc(arena, g * n * sizeof(uint32_t))) &&
                    (s->share = mp_arena_alloc(arena, layer->windows * n * sizeof(double))) &&
                    (s->load = mp_arena_alloc(arena, layer->windows * g * sizeof(double))) &&
                    (s->delta = mp_arena_alloc(arena, g * sizeof(double))) &&
                    (s->touched = mp_arena_alloc(arena, (p + 1) * sizeof(uint32_t)));
    if (!complete)
        return mp_fail_memory(err);
    memset(s->had, 0, g * n * sizeof(uint32_t));
    for (size_t i = 0; i < p; i++)
        s->had[i / s->room * n + (size_t)s->row[i]]++;
    for (uint32_t gpu = 0; gpu < g; gpu++)
        s->delta[gpu] = 0;
    return 0;
}

/* Everything that follows from s->row. */
static void settle(path *s)
{
    const mp_layer *layer = s->layer;
    size_t n = layer->experts, p = layer->physical, g = layer->gpus;
    memset(s->copies, 0, n * sizeof(*s->copies));
    memset(s->start, 0, (n + 2) * sizeof(*s->start));
    memset(s->have, 0, g * n * sizeof(*s->have));
    for (size_t i = 0; i < p; i++) {
        s->copies[s->row[i]]++;
        s->start[s->row[i] + 2]++;
        s->have[i / s->room * n + (size_t)s->row[i]]++;
    }
    for (size_t e = 1; e < n + 2; e++)
        s->start[e] += s->start[e - 1];
    for (size_t i = 0; i < p; i++)
        /* Two places ahead, because filling below moves each start up to the next one's. */
        s->places[s->start[s->row[i] + 1]++] = (uint32_t)i;
    s->f = 0;
    for (size_t w = 0; w < layer->windows; w++) {
        double *share = s->share + w * n, *load = s->load + w * g;
        for (size_t e = 0; e < n; e++)
            share[e] = layer->weight[w * n + e] / s->copies[e];
        for (size_t gpu = 0; gpu < g; gpu++) {
            load[gpu] = 0;
            for (size_t i = gpu * s->room; i < (gpu + 1) * s->room; i++)
                load[gpu] += share[s->row[i]];
        }
        double largest = load[mp_largest(load, layer->gpus)];
        s->f = layer->objective == MP_EPLB_WORST ? fmax(s->f, largest) : s->f + largest;
    }
}

/* Moves that it adds when a GPU gives `out` away for `in`. */
static int32_t moves_of(const path *s, uint32_t gpu, uint32_t out, uint32_t in)
{
    const uint32_t *had = s->had + (size_t)gpu * s->layer->experts;
    const uint32_t *have = s->have + (size_t)gpu * s->layer->experts;
    return (have[in] >= had[in]) - (have[out] > had[out]);
}

static void touch(path *s, uint32_t *count, uint32_t gpu, double delta)
{
    s->delta[gpu] += delta;
    s->touched[(*count)++] = gpu;
}

/* Sets s->delta and s->touched to what a change does to the loads of a window. */
static uint32_t touch_all(path *s, const change *c, size_t w)
{
    const double *share = s->share + w * s->layer->experts;
    const double *weight = s->layer->weight + w * s->layer->experts;
    uint32_t x = (uint32_t)s->row[c->x], y = (uint32_t)s->row[c->y], count = 0;
    if (c->swaps) {
        touch(s, &count, c->x / s->room, share[y] - share[x]);
        touch(s, &count, c->y / s->room, share[x] - share[y]);
        return count;
    }
    double more = weight[x] / (s->copies[x] + 1), fewer = weight[y] / (s->copies[y] - 1);
    for (uint32_t i = s->start[x]; i < s->start[x + 1]; i++)
        touch(s, &count, s->places[i] / s->room, more - share[x]);
    for (uint32_t i = s->start[y]; i < s->start[y + 1]; i++)
        touch(s, &count, s->places[i] / s->room,
              s->places[i] == c->y ? more - share[y] : fewer - share[y]);
    return count;
}

/* F after a change; with one window, the largest load of the GPUs that it changes. */
static double f_after(path *s, const change *c)
{
    const mp_layer *layer = s->layer;
    double f = 0;
    for (size_t w = 0; w < layer->windows; w++) {
        const double *load = s->load + w * layer->gpus;
        uint32_t count = touch_all(s, c, w);
        double largest = 0;
        if (layer->windows == 1) {
            for (uint32_t i = 0; i < count; i++)
                largest = fmax(largest, load[s->touched[i]] + s->delta[s->touched[i]]);
        } else {
            for (uint32_t gpu = 0; gpu < layer->gpus; gpu++)
                largest = fmax(largest, load[gpu] + s->delta[gpu]);
        }
        for (uint32_t i = 0; i < count; i++)
            s->delta[s->touched[i]] = 0;
        f = layer->objective == MP_EPLB_WORST ? fmax(f, largest) : f + largest;
    }
    return f;
}

/* Whether a change is worth more for what it moves. */
static bool better(const change *c, const change *than)
{
    /* Changes that move nothing come first, however little they gain. */
    if (!than->found || (c->moves <= 0) != (than->moves <= 0))
        return !than->found || c->moves <= 0;
    double part = c->moves <= 0 ? 1 : c->moves, than_part = c->moves <= 0 ? 1 : than->moves;
    /* Compare the fall per move by cross-multiplying: quotients would round. */
    return mp_lower(than->fall * part, c->fall * than_part);
}

static void try_change(path *s, change *c, change *best)
{
    if ((int64_t)s->moves + c->moves > (int64_t)s->max_moves)
        return;
    double f = f_after(s, c);
    c->fall = s->f - f;
    c->found = true;
    if (mp_lower(f, s->f) && better(c, best))
        *best = *c;
}

/* Tries all changes that take load off slot x of a GPU. */
static void try_slot(path *s, uint32_t x, change *best)
{
    size_t n = s->layer->experts;
    uint32_t h = x / s->room, e = (uint32_t)s->row[x], first = h / s->node_gpus * s->node_gpus;
    for (uint32_t y = first * s->room; y < (first + s->node_gpus) * s->room; y++) {
        uint32_t l = y / s->room, d = (uint32_t)s->row[y];
        if (l == h || s->have[l * n + e] > 0)
            continue;
        if (s->have[h * n + d] == 0) {
            change c = {.x = x, .y = y, .swaps = true};
            c.moves = moves_of(s, h, e, d) + moves_of(s, l, d, e);
            try_change(s, &c, best);
        }
        if (s->copies[d] > 1 && s->copies[e] < s->node_gpus) {
            change c = {.x = x, .y = y, .moves = moves_of(s, l, d, e)};
            try_change(s, &c, best);
        }
    }
}

/* Only tries slots of each window's most loaded GPU, since nothing else lowers its load. */
static bool step(path *s)
{
    const mp_layer *layer = s->layer;
    change best = {0};
    for (size_t w = 0; w < layer->windows; w++) {
        const double *load = s->load + w * layer->gpus;
        uint32_t h = mp_largest(load, layer->gpus);
        if (layer->objective == MP_EPLB_WORST && mp_lower(load[h], s->f))
            continue;
        for (uint32_t x = h * s->room; x < (h + 1) * s->room; x++)
            try_slot(s, x, &best);
    }
    if (!best.found)
        return false;
    int32_t expert = s->row[best.x];
    if (best.swaps)
        s->row[best.x] = s->row[best.y];
    s->row[best.y] = expert;
    s->moves = (uint32_t)((int64_t)s->moves + best.moves);
    settle(s);
    return true;
}

/* Whether every node holds as many groups as another, and all copies of them. */
static bool keeps_groups(const path *s)
{
    const mp_layer *layer = s->layer;
    uint32_t size = layer->experts / layer->groups, slots = layer->physical / layer->nodes;
    for (uint32_t node = 0; node < layer->nodes; node++) {
        uint32_t groups = 0;
        for (uint32_t group = 0; group < layer->groups; group++) {
            uint32_t inside = 0, all = 0;
            for (uint32_t e = group * size; e < (group + 1) * size; e++) {
                all += s->copies[e];
                for (uint32_t i = s->start[e]; i < s->start[e + 1]; i++)
                    inside += s->places[i] / slots == node;
            }
            if (inside != 0 && inside != all)
                return false;
            groups += inside != 0;
        }
        if (groups != layer->groups / layer->nodes)
            return false;
    }
    return true;
}

int mp_path(const mp_layer *layer, const int32_t *old, double goal, uint32_t max_moves,
            int32_t *row, bool *reached, mp_arena *arena, mp_error *err)
{
    path s = {.row = row, .max_moves = max_moves};
    memcpy(row, old, layer->physical * sizeof(*row));
    int rc = init(&s, layer, arena, err);
    if (rc != 0)
        return rc;
    settle(&s);
    *reached = false;
    /* Changes stay inside nodes, so they cannot repair an old placement with a group on two
     * nodes. */
    if (layer->nodes > 1 && !keeps_groups(&s))
        return 0;
    for (uint64_t i = 0; i < (uint64_t)STEPS_MAX * layer->physical && s.f > goal; i++)
        if (!step(&s))
            break;
    *reached = s.f <= goal;
    return 0;
}
