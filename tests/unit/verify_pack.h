/* SPDX-License-Identifier: Apache-2.0 */
/* A packed directory to be damaged, for the tests of verify: the fixture v4-fp4 on two
 * ranks, in a scratch directory.
 *
 * Its sizes: H = 384, I = 256, 5 experts, layers "layers.0" and "mtp.0", 3 slots a rank.
 * Its slots hold the experts 4 0 2 | 1 3 2 and 0 1 1 | 4 3 2. */
#ifndef MP_TEST_VERIFY_PACK_H
#define MP_TEST_VERIFY_PACK_H

#include <criterion/criterion.h>
#include <jansson.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <moepack/artifact.h>
#include <moepack/pack.h>
#include <moepack/verify.h>

#include "base/digest.h"
#include "base/file.h"
#include "base/json.h"
#include "pack/manifest.h"
#include "synth/synth.h"
#include "write/plan.h"

#define SOURCE "testdata/fixtures/v4-fp4"
#define HIDDEN 384
#define INTER  256
#define SLOTS  3

static char scratch[256];
static char out[512];
static mp_error err;
static mp_verify_report report;

static inline void succeed(int rc)
{
    cr_assert_eq(rc, 0, "%s", err.message);
}

/* A path below the packed directory; good until the fourth call after this one. */
static inline const char *at(const char *format, ...) __attribute__((format(printf, 1, 2)));
static inline const char *at(const char *format, ...)
{
    static char paths[4][1024];
    static int next;
    char *path = paths[next++ % 4];
    va_list args;

    int used = snprintf(path, sizeof paths[0], "%s/", out);
    va_start(args, format);
    vsnprintf(path + used, sizeof paths[0] - (size_t)used, format, args);
    va_end(args);
    return path;
}

static inline mp_placement load_placement(const char *path, uint32_t num_logical)
{
    mp_placement placement;
    uint64_t length;
    char *text;

    succeed(mp_read_text(path, 1 << 20, &text, &length, &err));
    succeed(mp_placement_parse(&placement, text, length, num_logical, &err));
    free(text);
    return placement;
}

/* Packs a checkpoint; without a target, for MegaMoE W4A8. */
static inline void pack_source(const char *source, mp_repack_options options)
{
    mp_context context = {.threads = 1};
    mp_catalog catalog;
    mp_repack_plan plan;

    if (!options.target)
        options.target = mp_target_find("megamoe-w4a8");
    succeed(mp_catalog_open(&catalog, source, &context, &err));
    succeed(mp_repack_plan_init(&plan, &catalog, &options, &err));
    succeed(mp_repack_plan_run(&plan, out, MP_RUN_FRESH, &context, &err));
    mp_repack_plan_release(&plan);
    mp_catalog_release(&catalog);
}

static inline void make_scratch(void)
{
    snprintf(scratch, sizeof scratch, "%s/moepack-verify-XXXXXX", P_tmpdir);
    cr_assert_not_null(mkdtemp(scratch));
    snprintf(out, sizeof out, "%s/out", scratch);
}

/* The fixture, in files of at most this size (0: one a rank). */
static inline void make_pack_of(uint64_t max_shard_size)
{
    make_scratch();
    mp_placement placement = load_placement(SOURCE "/placement.json", 5);
    pack_source(SOURCE, (mp_repack_options){
                            .ep = 2, .placement = &placement, .max_shard_size = max_shard_size});
    mp_placement_release(&placement);
}

static inline void make_pack(void)
{
    make_pack_of(0);
}

static inline void remove_pack(void)
{
    mp_verify_report_release(&report);
    succeed(mp_remove_tree(scratch, &err));
}

/* ------------------------------------------------------------------------
 * Damage
 */

/* The only file of a rank. */
static inline const char *rank_file(uint32_t rank)
{
    return at("rank-%03u/model-00001-of-00001.safetensors", rank);
}

/* Bytes of a tensor in the file of a rank, from `offset`: read, or written. */
static inline void peek(uint32_t rank, const char *name, uint64_t offset, void *data, size_t n)
{
    mp_checkpoint file;

    succeed(mp_checkpoint_open(&file, rank_file(rank), NULL, &err));
    const mp_tensor *tensor = mp_checkpoint_find(&file, name);
    cr_assert_not_null(tensor, "%s", name);
    succeed(mp_tensor_read(&file, tensor, offset, n, data, &err));
    mp_checkpoint_release(&file);
}

static inline void poke(uint32_t rank, const char *name, uint64_t offset, const void *data,
                        size_t n)
{
    mp_checkpoint file;
    int fd;

    succeed(mp_checkpoint_open(&file, rank_file(rank), NULL, &err));
    const mp_tensor *tensor = mp_checkpoint_find(&file, name);
    cr_assert_not_null(tensor, "%s", name);
    cr_assert_leq(offset + n, tensor->bytes);
    succeed(mp_open_write(rank_file(rank), &fd, &err));
    succeed(mp_pwrite_all(fd, data, n, tensor->offset + offset, rank_file(rank), &err));
    succeed(mp_file_close(fd, rank_file(rank), &err));
    mp_checkpoint_release(&file);
}

static inline void flip(uint32_t rank, const char *name, uint64_t offset, uint8_t bits)
{
    uint8_t byte;

    peek(rank, name, offset, &byte, 1);
    byte ^= bits;
    poke(rank, name, offset, &byte, 1);
}

/* Writes a file whole; unlike mp_write_file, without waiting for the disk. */
static inline void put_bytes(const char *path, const void *data, size_t n)
{
    FILE *file = fopen(path, "w");

    cr_assert_not_null(file, "%s", path);
    cr_assert_eq(fwrite(data, 1, n, file), n);
    cr_assert_eq(fclose(file), 0);
}

static inline void put_text(const char *path, const char *text)
{
    put_bytes(path, text, strlen(text));
}

static inline char *get_text(const char *path, uint64_t *length)
{
    char *text;

    succeed(mp_read_text(path, 1 << 26, &text, length, &err));
    return text;
}

/* ------------------------------------------------------------------------
 * Sealing: digests that fit what the directory holds now, so that the levels below the
 * one that a test is about have nothing to say
 */

static inline void load_manifest(mp_manifest *m)
{
    succeed(mp_manifest_load(m, out, &err));
}

static inline void save_manifest(mp_manifest *m)
{
    char *text;

    succeed(mp_manifest_text(m, &text, &err));
    put_text(at(MP_MANIFEST_NAME), text);
    free(text);
    mp_manifest_release(m);
}

static inline void digest_text(const char *path, mp_hex_digest hex)
{
    uint64_t length;
    char *text = get_text(path, &length);
    mp_digest digest;

    mp_digest_of(text, length, &digest);
    mp_digest_text(&digest, hex);
    free(text);
}

static inline int by_offset(const void *a, const void *b)
{
    const mp_tensor *x = a, *y = b;

    return (x->offset > y->offset) - (x->offset < y->offset);
}

/* Lists a file as it is now, and adds it to the index. Returns the bytes of its tensors. */
static inline uint64_t seal_file(uint32_t rank, mp_packed_file *file, json_t *map)
{
    const char *path = at("rank-%03u/%s", rank, file->name);
    mp_checkpoint ckpt;
    uint64_t bytes = 0;

    succeed(mp_checkpoint_open(&ckpt, path, NULL, &err));
    mp_tensor *order = malloc(ckpt.num_tensors * sizeof *order);
    memcpy(order, ckpt.tensors, ckpt.num_tensors * sizeof *order);
    qsort(order, ckpt.num_tensors, sizeof *order, by_offset);
    for (size_t i = 0; i < file->num_tensors; i++)
        free(file->tensors[i].name);
    free(file->tensors);
    file->size = ckpt.shards[0].size;
    file->num_tensors = ckpt.num_tensors;
    file->tensors = calloc(ckpt.num_tensors, sizeof *file->tensors);
    for (size_t i = 0; i < ckpt.num_tensors; i++) {
        char *data = malloc(order[i].bytes);
        mp_digest digest;

        succeed(mp_tensor_read(&ckpt, &order[i], 0, order[i].bytes, data, &err));
        mp_digest_of(data, order[i].bytes, &digest);
        mp_digest_text(&digest, file->tensors[i].xxh3);
        file->tensors[i].name = strdup(order[i].name);
        json_object_set_new(map, order[i].name, json_string(file->name));
        bytes += order[i].bytes;
        free(data);
    }
    free(order);
    mp_checkpoint_release(&ckpt);
    return bytes;
}

static inline void seal_rank(mp_packed_rank *rank)
{
    json_t *map = json_object();
    uint64_t total = 0;

    for (size_t f = 0; f < rank->num_files; f++)
        total += seal_file(rank->rank, &rank->files[f], map);
    json_t *index =
        json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)total, "weight_map", map);
    char *text = mp_json_text(index);
    put_text(at("rank-%03u/" MP_INDEX_NAME, rank->rank), text);
    digest_text(at("rank-%03u/" MP_INDEX_NAME, rank->rank), rank->index_xxh3);
    free(text);
    json_decref(index);
}

static inline void seal(void)
{
    mp_manifest m;

    load_manifest(&m);
    digest_text(at(MP_PLACEMENT_NAME), m.placement_xxh3);
    digest_text(at(MP_CONFIG_NAME), m.config_xxh3);
    for (size_t r = 0; r < m.num_ranks; r++)
        seal_rank(&m.ranks[r]);
    save_manifest(&m);
}

/* ------------------------------------------------------------------------
 * Checking
 */

static inline int verify_with(mp_verify_options options, int threads)
{
    mp_context context = {.threads = threads};

    mp_verify_report_release(&report);
    err = (mp_error){0};
    return mp_verify(out, &options, &context, &report, &err);
}

static inline void verify(mp_verify_level level)
{
    succeed(verify_with(
        (mp_verify_options){.size = sizeof(mp_verify_options), .level = level, .source = SOURCE},
        2));
}

/* Fault i has these members; detail: a part of its text. */
static inline void expect(size_t i, mp_verify_level level, int64_t rank, const char *layer,
                          int64_t slot, const char *tensor, int64_t element, const char *detail)
{
    cr_assert_lt(i, report.num_faults, "fault %zu of %zu", i, report.num_faults);
    const mp_fault *f = &report.faults[i];
    const char *why = f->detail;

    cr_expect_eq(f->level, level, "fault %zu: level %d: %s", i, f->level, why);
    cr_expect_eq(f->rank, rank, "fault %zu: rank %lld: %s", i, (long long)f->rank, why);
    cr_expect_eq(f->slot, slot, "fault %zu: slot %lld: %s", i, (long long)f->slot, why);
    cr_expect_eq(f->element, element, "fault %zu: element %lld: %s", i, (long long)f->element, why);
    cr_expect_eq(!f->layer, !layer, "fault %zu: %s", i, why);
    cr_expect_eq(!f->tensor, !tensor, "fault %zu: %s", i, why);
    if (f->layer && layer)
        cr_expect_str_eq(f->layer, layer, "fault %zu: %s", i, why);
    if (f->tensor && tensor)
        cr_expect_str_eq(f->tensor, tensor, "fault %zu: %s", i, why);
    cr_expect_not_null(strstr(why, detail), "fault %zu: \"%s\" does not say \"%s\"", i, why,
                       detail);
}

static inline void expect_count(uint64_t faults)
{
    cr_assert_eq(report.total_faults, faults, "%llu faults, expected %llu; the first: %s",
                 (unsigned long long)report.total_faults, (unsigned long long)faults,
                 report.num_faults ? report.faults[0].detail : "none");
}

/* The only fault; it belongs to the directory, or to a rank. */
static inline void expect_structure(int64_t rank, const char *detail)
{
    expect_count(1);
    expect(0, MP_VERIFY_STRUCTURE, rank, NULL, -1, NULL, -1, detail);
}

#endif
