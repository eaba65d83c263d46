/* SPDX-License-Identifier: Apache-2.0 */
/* moepack inspect on a packed directory: its manifest, and whether its files fit it. The manifest
 * says nearly all that is printed, and may be wrong, so verify's level structure runs beside it,
 * which reads headers only; its faults are the problems. Drawings and ranges need a pack that
 * opens, and are left out where there are problems. */
#include "charts.h"
#include "files.h"
#include "inspect.h"
#include "output.h"
#include "zstd.h"

#include <moepack/layout.h>
#include <moepack/verify.h>
#include <stdlib.h>
#include <string.h>

/* What is printed. */
typedef struct packed {
    const mp_manifest *m;
    mp_shape shape;
    uint64_t *layer_bytes; /* [m->num_layers], of tensors on all ranks */
    const mp_verify_report *report;
    mp_compress_report shards;
    mp_pack *pack; /* open where ranges or a drawing are asked for, and no problem forbids it */
    bool ranges;
} packed;

/* Plain files are stored as they are; compressing always changes the size. */
static bool is_compressed(const packed *p)
{
    return p->shards.stored != p->shards.plain;
}

/* Bytes of a tensor of a rank by what stands behind the layer in its name; 0 for none. */
static uint64_t listed_bytes(const mp_shape *shape, const char *name)
{
    for (unsigned s = 0; s < shape->num_sets; s++) {
        const mp_slot_set *set = &shape->sets[s];
        size_t block = strlen(set->block);

        if (strncmp(name, set->block, block) != 0 || name[block] != '.')
            continue;
        for (unsigned t = 0; t < set->num_tensors; t++)
            if (strcmp(name + block + 1, set->tensors[t].name) == 0)
                return set->tensors[t].slot_bytes * set->slots;
    }
    return 0;
}

/* What stands behind the layer in the name of a tensor; null where it is not of that layer. */
static const char *behind_layer(const char *name, const char *layer)
{
    size_t n = strlen(layer);

    return strncmp(name, layer, n) == 0 && name[n] == '.' ? name + n + 1 : NULL;
}

/* Bytes of the tensors that a manifest lists, on all ranks of the pack. bytes: [m->num_layers]. */
static void add_layer_bytes(const mp_manifest *m, const mp_shape *shape, uint64_t *bytes)
{
    size_t layer = 0; /* tensors stand in the order of layers, so it is nearly always this one */

    for (size_t r = 0; r < m->num_ranks; r++) {
        for (size_t f = 0; f < m->ranks[r].num_files; f++) {
            const mp_packed_file *file = &m->ranks[r].files[f];

            for (size_t t = 0; t < file->num_tensors; t++) {
                const char *name = file->tensors[t].name, *rest = NULL;

                for (size_t tries = 0; tries < m->num_layers && !rest; tries++) {
                    rest = behind_layer(name, m->layers[layer]);
                    layer = rest ? layer : (layer + 1) % m->num_layers;
                }
                if (rest)
                    bytes[layer] += listed_bytes(shape, rest);
            }
        }
    }
}

static uint64_t file_bytes(const mp_manifest *m)
{
    uint64_t bytes = 0;

    for (size_t r = 0; r < m->num_ranks; r++)
        for (size_t f = 0; f < m->ranks[r].num_files; f++)
            bytes += m->ranks[r].files[f].size;
    return bytes;
}

static size_t count_files(const mp_manifest *m)
{
    size_t files = 0;

    for (size_t r = 0; r < m->num_ranks; r++)
        files += m->ranks[r].num_files;
    return files;
}

static size_t count_tensors(const mp_manifest *m)
{
    size_t tensors = 0;

    for (size_t r = 0; r < m->num_ranks; r++)
        for (size_t f = 0; f < m->ranks[r].num_files; f++)
            tensors += m->ranks[r].files[f].num_tensors;
    return tensors;
}

/* Shared experts of a layer that are packed. */
static uint32_t packed_shared(const mp_manifest *m)
{
    return m->shared == MP_SHARED_NONE ? 0 : (uint32_t)m->num_shared_experts;
}

static json_t *layers_json(const packed *p)
{
    const mp_manifest *m = p->m;
    json_t *list = json_array();

    for (size_t i = 0; i < m->num_layers; i++)
        json_array_append_new(list, json_pack("{s:s, s:i, s:i, s:s, s:n, s:I}", "name",
                                              m->layers[i], "experts", (int)m->num_experts,
                                              "shared_experts", (int)packed_shared(m), "format",
                                              mp_scheme_name(m->target_scheme), "scale", "bytes",
                                              (json_int_t)p->layer_bytes[i]));
    return list;
}

static json_t *faults_json(const mp_verify_report *report)
{
    json_t *list = json_array();

    for (size_t i = 0; i < report->num_faults; i++)
        json_array_append_new(list, json_string(report->faults[i].detail));
    return list;
}

/* Every tensor of every rank, as the manifest names it. */
static json_t *packed_tensors_json(const mp_manifest *m)
{
    json_t *list = json_array();

    for (size_t r = 0; r < m->num_ranks; r++)
        for (size_t f = 0; f < m->ranks[r].num_files; f++)
            for (size_t t = 0; t < m->ranks[r].files[f].num_tensors; t++)
                json_array_append_new(list, json_pack("{s:i, s:s, s:s, s:s}", "rank",
                                                      (int)m->ranks[r].rank, "name",
                                                      m->ranks[r].files[f].tensors[t].name, "shard",
                                                      m->ranks[r].files[f].name, "xxh3",
                                                      m->ranks[r].files[f].tensors[t].xxh3));
    return list;
}

static int print_pack_json(const packed *p, bool with_tensors, mp_error *err)
{
    const mp_manifest *m = p->m;
    size_t tensors = count_tensors(m);
    json_t *json = json_pack(
        "{s:o, s:s, s:s, s:I, s:I, s:I, s:I, s:n, s:o, s:I, s:I, s:i, s:I, s:I, s:o, s:s, s:I, "
        "s:I, "
        "s:s}",
        "model_type", m->model_type ? json_string(m->model_type) : json_null(), "family", m->family,
        "reason", "moepack.json", "hidden_size", (json_int_t)m->hidden_size,
        "moe_intermediate_size", (json_int_t)m->moe_intermediate_size, "num_experts",
        (json_int_t)m->num_experts, "num_shared_experts", (json_int_t)m->num_shared_experts,
        "experts_per_token", "layers", layers_json(p), "num_tensors", (json_int_t)tensors,
        "expert_tensors", (json_int_t)tensors, "other_tensors", 0, "bytes",
        (json_int_t)file_bytes(m), "shards", (json_int_t)count_files(m), "problems",
        faults_json(p->report), "target", m->target, "ep_size", (json_int_t)m->ep_size,
        "num_physical", (json_int_t)m->num_physical, "shared", mp_shared_mode_name(m->shared));

    if (json && with_tensors)
        json_object_set_new(json, "tensors", packed_tensors_json(m));
    if (json && is_compressed(p))
        json_object_set_new(json, "zstd", zstd_json(&p->shards));
    if (json && p->ranges)
        json_object_set_new(json, "ranges", ranges_json(p->pack));
    return print_json(json, err);
}

static void print_pack(const packed *p, const output_ink *ink)
{
    const mp_manifest *m = p->m;
    char bytes[SIZE_TEXT], model[MP_MODEL_TEXT];

    printf("%s%s%s/%llu, packed from %s (%s%s)\n", ink->bold, m->target, ink->plain,
           (unsigned long long)m->target_version,
           m->model_type ? mp_model_text(m->model_type, m->family, model) : m->family,
           m->source_scheme == MP_SCHEME_COUNT ? "mixed" : mp_scheme_name(m->source_scheme),
           m->lossless ? ", lossless" : ", requantized");
    printf("hidden size %llu, expert intermediate size %llu, %llu expert%s as %llu physical\n",
           (unsigned long long)m->hidden_size, (unsigned long long)m->moe_intermediate_size,
           (unsigned long long)m->num_experts, plural(m->num_experts),
           (unsigned long long)m->num_physical);
    printf("%llu rank%s of %u slot%s, shared experts: %s", (unsigned long long)m->ep_size,
           plural(m->ep_size), p->shape.slots.per_rank, plural(p->shape.slots.per_rank),
           mp_shared_mode_name(m->shared));
    if (m->shared == MP_SHARED_SEPARATE)
        printf(" (%llu)", (unsigned long long)m->num_shared_experts);
    putchar('\n');
    printf("%zu layer%s: ", m->num_layers, plural(m->num_layers));
    print_name(stdout, m->num_layers ? m->layers[0] : "");
    if (m->num_layers > 1) {
        printf(" - ");
        print_name(stdout, m->layers[m->num_layers - 1]);
    }
    printf("\n%zu tensor%s in %zu file%s of %zu rank%s, %s\n", count_tensors(m),
           plural(count_tensors(m)), count_files(m), plural(count_files(m)), m->num_ranks,
           plural(m->num_ranks), size_text(file_bytes(m), bytes));
    if (is_compressed(p))
        zstd_print(stdout, &p->shards);
    for (size_t i = 0; i < m->num_errors; i++) {
        printf("error of ");
        print_name(stdout, m->errors[i].layer);
        putchar(' ');
        print_name(stdout, m->errors[i].matrix);
        printf(": relative RMS %.4g, SQNR %.2f dB\n", m->errors[i].relative_rms,
               m->errors[i].sqnr_db);
    }
    if (m->command) {
        printf("made by: ");
        print_name(stdout, m->command);
        putchar('\n');
    }
}

static void print_packed_tensors(const mp_manifest *m)
{
    for (size_t r = 0; r < m->num_ranks; r++)
        for (size_t f = 0; f < m->ranks[r].num_files; f++)
            for (size_t t = 0; t < m->ranks[r].files[f].num_tensors; t++) {
                printf("rank %u  %s  ", m->ranks[r].rank, m->ranks[r].files[f].tensors[t].xxh3);
                print_name(stdout, m->ranks[r].files[f].tensors[t].name);
                printf("  ");
                print_name(stdout, m->ranks[r].files[f].name);
                putchar('\n');
            }
}

static int print_all(const inspect_options *o, packed *p, mp_error *err)
{
    const mp_verify_report *report = p->report;
    int rc = 0;

    if (mp_manifest_shape(p->m, &p->shape, err) == 0)
        add_layer_bytes(p->m, &p->shape, p->layer_bytes);
    else
        return err->code;
    if (o->common.json) {
        rc = print_pack_json(p, o->tensors, err);
    } else {
        output_ink ink = ink_for(stdout, &o->common);

        print_pack(p, &ink);
        if (o->tensors)
            print_packed_tensors(p->m);
        if (p->ranges)
            print_ranges(p->pack);
    }
    if (rc != 0 || report->total_faults == 0)
        return rc;
    for (size_t i = 0; i < report->num_faults; i++)
        fprintf(stderr, "moepack: inspect: %s\n", report->faults[i].detail);
    return cmd_fail(err, MP_ERR_INPUT, "%s: problems: %llu", o->path,
                    (unsigned long long)report->total_faults);
}

static int write_svg(const char *path, const mp_pack *pack, mp_error *err)
{
    char *svg;
    int rc = path ? pack_svg(pack, &svg, err) : 0;

    if (path && rc == 0) {
        rc = write_text(path, svg, err);
        free(svg);
    }
    return rc;
}

/* Only a sound pack has ranges and is drawn: problems are what there is to say of another. */
static int print_opened(const inspect_options *o, packed *p, const mp_context *context,
                        mp_error *err)
{
    if ((!o->ranges && !o->svg) || p->report->total_faults > 0)
        return print_all(o, p, err);
    int rc = mp_pack_open(&p->pack, o->path, NULL, context, err);
    if (rc != 0)
        return rc;
    p->ranges = o->ranges;
    rc = write_svg(o->svg, p->pack, err);
    if (rc == 0)
        rc = print_all(o, p, err);
    mp_pack_release(p->pack);
    return rc;
}

int inspect_pack(const inspect_options *o, const mp_context *context, mp_error *err)
{
    mp_verify_options how = {.size = sizeof(mp_verify_options), .level = MP_VERIFY_STRUCTURE};
    mp_verify_report report = {0};
    mp_manifest m;
    int rc = mp_manifest_load(&m, o->path, err);

    if (rc != 0)
        return rc;
    packed p = {
        .m = &m, .report = &report, .layer_bytes = calloc(m.num_layers + 1, sizeof *p.layer_bytes)};
    rc = p.layer_bytes ? mp_verify(o->path, &how, context, &report, err)
                       : cmd_fail(err, MP_ERR_IO, "out of memory");
    /* What cannot be read is among the faults already. */
    if (rc == 0 && mp_compress_measure(o->path, context, &p.shards, NULL) != 0)
        p.shards = (mp_compress_report){0};
    if (rc == 0 && o->ranges && is_compressed(&p))
        rc = cmd_fail(err, MP_ERR_UNSUPPORTED,
                      "\"%s\" has compressed shards, in which experts cannot be located: use "
                      "moepack decompress or moepack extract",
                      o->path);
    if (rc == 0)
        rc = print_opened(o, &p, context, err);
    free(p.layer_bytes);
    mp_verify_report_release(&report);
    mp_manifest_release(&m);
    return rc;
}
