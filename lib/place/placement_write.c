/* SPDX-License-Identifier: Apache-2.0 */
/* Writes placement files in the four formats, one row a line. */
#include <moepack/place.h>

#include <stdio.h>

#include "base/error.h"

static void write_ids(FILE *out, const int32_t *ids, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        fprintf(out, "%s%d", i == 0 ? "[" : ", ", ids[i]);
    fputc(']', out);
}

/* [ROW, ROW, ...] */
static void write_matrix(FILE *out, const mp_placement *p)
{
    fputs("[\n", out);
    for (uint32_t layer = 0; layer < p->layers; layer++) {
        fputs("    ", out);
        write_ids(out, mp_placement_row(p, layer), p->num_physical);
        fputs(layer + 1 < p->layers ? ",\n" : "\n", out);
    }
    fputs("  ]", out);
}

static void write_sglang(FILE *out, const mp_placement *p)
{
    fputs("{\n  \"physical_to_logical_map\": ", out);
    write_matrix(out, p);
    fputs("\n}\n", out);
}

static void write_vllm(FILE *out, const mp_placement *p)
{
    write_matrix(out, p);
    fputc('\n', out);
}

static void write_trtllm(FILE *out, const mp_placement *p)
{
    fprintf(out, "num_slots: %u\ninitial_global_assignments:\n", p->num_physical);
    for (uint32_t layer = 0; layer < p->layers; layer++) {
        fprintf(out, "  %u: ", mp_placement_layer(p, layer));
        write_ids(out, mp_placement_row(p, layer), p->num_physical);
        fputc('\n', out);
    }
}

static void write_ascend(FILE *out, const mp_placement *p, uint32_t ep)
{
    uint32_t experts = p->num_physical / ep;
    fprintf(out, "{\n  \"moe_layer_count\": %u,\n  \"layer_list\": [", p->layers);
    for (uint32_t layer = 0; layer < p->layers; layer++) {
        const int32_t *row = mp_placement_row(p, layer);
        fprintf(out, "%s\n    {\"layer_id\": %u, \"device_count\": %u, \"device_list\": [",
                layer > 0 ? "," : "", mp_placement_layer(p, layer), ep);
        for (uint32_t device = 0; device < ep; device++) {
            fprintf(out, "%s\n      {\"device_id\": %u, \"device_expert\": ", device > 0 ? "," : "",
                    device);
            write_ids(out, row + (size_t)device * experts, experts);
            fputc('}', out);
        }
        fputs("\n    ]}", out);
    }
    fputs("\n  ]\n}\n", out);
}

int mp_placement_write(const mp_placement *p, mp_placement_format format, uint32_t ep, char **text,
                       mp_error *err)
{
    size_t length;
    *text = NULL;
    if (format == MP_PLACEMENT_VLLM_ASCEND && (ep == 0 || p->num_physical % ep != 0))
        return mp_fail(err, MP_ERR_INPUT,
                       "placement: %u physical experts do not divide evenly among %u ranks",
                       p->num_physical, ep);
    FILE *out = open_memstream(text, &length);
    if (!out)
        return mp_fail_memory(err);
    switch (format) {
    case MP_PLACEMENT_TRTLLM:
        write_trtllm(out, p);
        break;
    case MP_PLACEMENT_VLLM_ASCEND:
        write_ascend(out, p, ep);
        break;
    case MP_PLACEMENT_VLLM:
        write_vllm(out, p);
        break;
    default:
        write_sglang(out, p);
    }
    return mp_text_finish(out, text, err);
}
