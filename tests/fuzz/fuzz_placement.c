/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a placement file, as load counts and as rank loads: refused with a message, or what
 * was read is valid, and a placement comes back the same from every format. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <moepack/place.h>

#include "fuzz.h"

static void require_refusal(int rc, const mp_error *err)
{
    require(rc == MP_ERR_INPUT || rc == MP_ERR_UNSUPPORTED, "code");
    require_message(err);
}

static void check_format(const mp_placement *p, mp_placement_format format)
{
    mp_error err;
    mp_placement again;
    char *text;
    require(mp_placement_write(p, format, p->num_physical, &text, &err) == 0, "write");
    require(mp_placement_parse(&again, text, strlen(text), p->num_logical, &err) == 0, "read");
    require(again.layers == p->layers && again.num_physical == p->num_physical, "shape");
    require(memcmp(again.map, p->map, (size_t)p->layers * p->num_physical * sizeof(*p->map)) == 0,
            "map");
    mp_placement_release(&again);
    free(text);
}

static void check_placement(const char *text, size_t size)
{
    mp_error err = {0};
    mp_placement p;
    int rc = mp_placement_parse(&p, text, size, 0, &err);
    if (rc != 0) {
        require_refusal(rc, &err);
        return;
    }
    uint32_t ranks = p.devices > 0 ? p.devices : p.num_physical;
    require(mp_placement_check(&p, ranks, NULL, &err) == 0, "valid");
    require(p.devices == 0 || p.devices == 1 ||
                mp_placement_check(&p, p.devices - 1, NULL, &err) == MP_ERR_INPUT,
            "other ranks");
    for (int format = 0; format < MP_PLACEMENT_FORMAT_COUNT; format++)
        check_format(&p, (mp_placement_format)format);
    mp_placement_release(&p);
}

static void check_counts(const char *text, size_t size)
{
    mp_error err = {0};
    mp_recording recording = {0};
    mp_counts counts;
    mp_eplb e;
    int rc = mp_recording_add(&recording, text, size, 0, &err);
    if (rc == 0)
        rc = mp_recording_sum(&recording, 0, &counts, &err);
    mp_recording_release(&recording);
    if (rc != 0) {
        require_refusal(rc, &err);
        return;
    }
    mp_eplb_options options = {.size = sizeof(mp_eplb_options),
                               .num_physical = counts.num_logical * 2,
                               .ep = counts.num_logical,
                               .refine = 3};
    require(mp_eplb_balance(&e, &counts, &options, NULL, &err) == 0, "balance");
    require(mp_placement_check(&e.placement, options.ep, NULL, &err) == 0, "balanced placement");
    mp_eplb_release(&e);
    mp_counts_release(&counts);
}

static void check_rank_load(const char *text, size_t size)
{
    mp_error err = {0};
    mp_rank_load load;
    int rc = mp_rank_load_parse(&load, text, size, 3, &err);
    if (rc != 0)
        require_refusal(rc, &err);
    else
        require(load.tokens[2] <= INT32_MAX, "load");
    mp_rank_load_release(&load);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    check_placement((const char *)data, size);
    check_counts((const char *)data, size);
    check_rank_load((const char *)data, size);
    return 0;
}
