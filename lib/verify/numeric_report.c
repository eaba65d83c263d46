/* SPDX-License-Identifier: Apache-2.0 */
/* Results that differ or are not finite, as faults: which slot, token and column. Tokens that one
 * slot computes alone come first, and blame that slot. A routed token sums over several slots:
 * where one of them is known to be wrong it says nothing new, so only routed tokens that no slot
 * explains are told, all of them as one fault. What is left for these are the weights of choices,
 * the router's factor and the activation, which belong to a layer as a whole.
 *
 * Values are compared as numbers, not as bits: both sides computed, so 0 and -0 are the same
 * result. Results that are not finite never get here; they are told by their own function at the
 * end. One thread, between the forwards of a layer. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "verify/numeric.h"

mp_spot mp_numeric_spot(const mp_numeric_layer *layer)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_NUMERIC, -1);

    spot.layer = (int64_t)layer->index;
    return spot;
}

/* Where a slot is; one of a shared expert that is apart has its number, or none. */
static mp_spot spot_of_slot(const mp_numeric_layer *layer, uint32_t slot)
{
    const mp_packed_experts *slots = &layer->slots;
    const mp_check *check = layer->check;
    uint32_t total = slots->pack->shape.slots.total, rank = mp_numeric_rank(layer, slot);
    mp_spot spot = mp_numeric_spot(layer);

    spot.rank = rank;
    /* Slots apart are counted behind those of all ranks, `apart` of them for each. */
    if (slot < total)
        spot.slot = slot - rank * slots->pack->shape.slots.per_rank;
    else if (!check->shape.sets[check->shape.num_sets - 1].target->single)
        spot.slot = (slot - total) % slots->apart;
    return spot;
}

/* "expert 7", "shared expert 0", "shared expert 0 (apart)". */
#define NAME_TEXT 48
static char *name_choice(const mp_numeric_layer *layer, uint32_t slot, uint32_t expert,
                         char text[NAME_TEXT])
{
    uint32_t experts = layer->pack->shape.slots.num_logical;

    if (expert < experts)
        snprintf(text, NAME_TEXT, "expert %u", expert);
    else
        snprintf(text, NAME_TEXT, "shared expert %u%s", expert - experts,
                 slot < layer->pack->shape.slots.total ? "" : " (apart)");
    return text;
}

/* ------------------------------------------------------------------------
 * Differences
 */

/* How a token differs. */
typedef struct token_difference {
    uint64_t columns; /* that do */
    uint64_t first;
    double packed, source; /* of the first */
} token_difference;

static token_difference compare_token(const mp_numeric_results *results, uint64_t token,
                                      uint64_t columns)
{
    token_difference d = {0};

    for (uint64_t c = 0; c < columns; c++) {
        double packed = results->packed[token * columns + c];
        double source = results->source[token * columns + c];

        if (packed == source)
            continue;
        if (d.columns++ == 0) {
            d.first = c;
            d.packed = packed;
            d.source = source;
        }
    }
    return d;
}

/* Tokens that a slot computes alone; wrong: [slots], set for those that differ. */
static void report_slots(const mp_numeric_layer *layer, const mp_numeric_batch *batch,
                         const mp_numeric_results *results, bool *wrong)
{
    uint64_t columns = layer->slots.source.hidden_size;
    char name[NAME_TEXT];

    for (uint64_t t = 0; t < batch->alone; t++) {
        uint32_t slot = (uint32_t)batch->slots[t * batch->columns];
        uint32_t expert = (uint32_t)batch->experts[t * batch->columns];
        const token_difference d = compare_token(results, t, columns);

        if (d.columns == 0)
            continue;
        const mp_spot spot = spot_of_slot(layer, slot);
        wrong[slot] = true;
        mp_fault_add(&layer->check->faults, &spot,
                     "gives %.9g in column %" PRIu64 ", %s of the source %.9g; %" PRIu64
                     " of %" PRIu64 " columns differ",
                     d.packed, d.first, name_choice(layer, slot, expert, name), d.source, d.columns,
                     columns);
    }
}

/* Whether a slot that a token went to is known to be wrong. */
static bool is_explained(const mp_numeric_batch *batch, uint64_t token, const bool *wrong)
{
    for (uint32_t j = 0; j < batch->columns; j++) {
        int32_t slot = batch->slots[token * batch->columns + j];

        if (slot >= 0 && wrong[slot])
            return true;
    }
    return false;
}

/* "expert 3 on rank 1, expert 7 on rank 0" for the choices of a token; ", ..." in place of those
 * that there is no room for. */
static void name_choices(const mp_numeric_layer *layer, const mp_numeric_batch *batch,
                         uint64_t token, char *text, size_t room)
{
    static const char more[] = ", ...";
    size_t used = 0;

    text[0] = '\0';
    for (uint32_t j = 0; j < batch->columns; j++) {
        int32_t slot = batch->slots[token * batch->columns + j];
        char name[NAME_TEXT], choice[NAME_TEXT + 32];

        if (slot < 0)
            continue;
        const mp_spot spot = spot_of_slot(layer, (uint32_t)slot);
        name_choice(layer, (uint32_t)slot, (uint32_t)batch->experts[token * batch->columns + j],
                    name);
        size_t length = (size_t)snprintf(choice, sizeof choice, "%s%s on rank %" PRId64,
                                         used ? ", " : "", name, spot.rank);
        if (used + length + sizeof more > room) {
            memcpy(text + used, more, sizeof more);
            return;
        }
        memcpy(text + used, choice, length + 1);
        used += length;
    }
}

/* What no slot explains lies in how choices are weighed or activations computed. */
static void report_routed(const mp_numeric_layer *layer, const mp_numeric_batch *batch,
                          const mp_numeric_results *results, const bool *wrong)
{
    uint64_t columns = layer->slots.source.hidden_size, count = 0, first = 0;
    const mp_spot spot = mp_numeric_spot(layer);
    token_difference of_first = {0};
    char choices[512];

    for (uint64_t t = batch->alone; t < batch->tokens; t++) {
        const token_difference d = compare_token(results, t, columns);

        if (d.columns == 0 || is_explained(batch, t, wrong))
            continue;
        if (count++ == 0) {
            first = t;
            of_first = d;
        }
    }
    if (count == 0)
        return;
    name_choices(layer, batch, first, choices, sizeof choices);
    mp_fault_add(&layer->check->faults, &spot,
                 "token %" PRIu64 ", column %" PRIu64
                 ": the packed experts give %.9g, the source's %.9g; %" PRIu64 " of %" PRIu64
                 " routed tokens differ without a slot that does; this one chose %s",
                 first - batch->alone, of_first.first, of_first.packed, of_first.source, count,
                 batch->tokens - batch->alone, choices);
}

int mp_numeric_report_differences(const mp_numeric_layer *layer, const mp_numeric_batch *batch,
                                  const mp_numeric_results *results, mp_error *err)
{
    bool *wrong = mp_alloc_zeroed(layer->slots.source.count, sizeof *wrong);

    if (!wrong)
        return mp_fail_memory(err);
    report_slots(layer, batch, results, wrong);
    report_routed(layer, batch, results, wrong);
    free(wrong);
    return 0;
}

/* ------------------------------------------------------------------------
 * What is not finite
 */

/* The forward calls experts by number, which of slots are those of all ranks. */
static const char *without_number(const char *message, uint32_t slot)
{
    char number[NAME_TEXT];
    int length = snprintf(number, sizeof number, "expert %u: ", slot);

    /* To mp_forward a slot is an expert, and its message would name an expert that is none. */
    return strncmp(message, number, (size_t)length) == 0 ? message + length : message;
}

void mp_numeric_report_slot(const mp_numeric_layer *layer, uint32_t slot, uint32_t expert,
                            const char *what, const mp_error *why)
{
    const mp_spot spot = spot_of_slot(layer, slot);
    char name[NAME_TEXT];

    mp_fault_add(&layer->check->faults, &spot, "%s, %s: %s", what,
                 name_choice(layer, slot, expert, name), without_number(why->message, slot));
}
