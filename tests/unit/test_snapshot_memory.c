/* SPDX-License-Identifier: Apache-2.0 */
/* Snapshots where memory runs out: an error, never a snapshot or a report with something missing.
 */
#include "failing_memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <criterion/criterion.h>

#include <moepack/diff.h>
#include <moepack/snapshot.h>
#include <moepack/verify.h>

#include "base/file.h"

/* One layer of 4 experts of BF16, H = 96, I = 64; 2 ranks of 3 slots: 0 1 2 | 3 0 1. */
#define SOURCE     "testdata/fixtures/qwen3-bf16"
#define RANKS      2u
#define SLOTS      3u
#define EXPERTS    4u
#define HALF_BYTES ((size_t)64 * 96 * 2)
#define W13_BYTES  (SLOTS * 2 * HALF_BYTES)
#define W2_BYTES   (SLOTS * HALF_BYTES)
#define NAME       "model.layers.0.mlp.experts."

static char scratch[256];
static uint8_t bytes[RANKS][W13_BYTES + W2_BYTES];
static mp_error err;

static void succeed(int rc)
{
    cr_assert_eq(rc, 0, "%s", err.message);
}

/* Good until the next call but one. */
static const char *in_scratch(const char *name)
{
    static char paths[2][512];
    static unsigned next;
    char *path = paths[next++ % 2];

    snprintf(path, sizeof paths[0], "%s/%s", scratch, name);
    return path;
}

static void put(const char *name, const void *data, size_t n)
{
    succeed(mp_write_file(in_scratch(name), data, n, &err));
}

static void read_ranks(void)
{
    static const char *const halves[] = {"gate", "up", "down"};
    mp_checkpoint ckpt;

    succeed(mp_checkpoint_open(&ckpt, SOURCE, NULL, &err));
    for (unsigned i = 0; i < RANKS * SLOTS; i++)
        for (unsigned half = 0; half < 3; half++) {
            unsigned slot = i % SLOTS;
            size_t at = half < 2 ? (2 * slot + half) * HALF_BYTES : W13_BYTES + slot * HALF_BYTES;
            char name[128];

            snprintf(name, sizeof name, NAME "%u.%s_proj.weight", i % EXPERTS, halves[half]);
            const mp_tensor *tensor = mp_checkpoint_find(&ckpt, name);
            cr_assert_not_null(tensor, "%s", name);
            succeed(mp_tensor_read(&ckpt, tensor, 0, HALF_BYTES, bytes[i / SLOTS] + at, &err));
        }
    mp_checkpoint_release(&ckpt);
}

/* A safetensors file of a rank, under any names. */
static void put_file(const char *path, unsigned rank, const char *w13, const char *w2)
{
    static uint8_t file[4096 + sizeof bytes[0]];
    int n = snprintf((char *)file + 8, 4088,
                     "{\"%s\":{\"dtype\":\"BF16\",\"shape\":[3,128,96],\"data_offsets\":[0,%zu]},"
                     "\"%s\":{\"dtype\":\"BF16\",\"shape\":[3,96,64],\"data_offsets\":[%zu,%zu]}}",
                     w13, W13_BYTES, w2, W13_BYTES, W13_BYTES + W2_BYTES);

    memset(file, 0, 8);
    file[0] = (uint8_t)n;
    file[1] = (uint8_t)(n >> 8);
    memcpy(file + 8 + n, bytes[rank], sizeof bytes[0]);
    put(path, file, 8 + (size_t)n + sizeof bytes[0]);
}

static void put_parts(void)
{
    succeed(mp_make_dir(in_scratch("parts"), &err));
    put_file("parts/model-rank-0-part-0.safetensors", 0, NAME "w13_weight", NAME "w2_weight");
    put_file("parts/model-rank-1-part-0.safetensors", 1, NAME "w13_weight", NAME "w2_weight");
}

/* The names of content are not looked at when it is opened. */
static void put_presharded(void)
{
    static const char plan[] =
        "{\"version\":1,\"world_size\":1,\"files\":[{\"filename\":\"a.safetensor\",\"tensors\":["
        "{\"stored_key\":\"00000000000000000000000000000000\",\"size\":73728},"
        "{\"stored_key\":\"11111111111111111111111111111111\",\"size\":36864}]}],"
        "\"rank_to_reads\":{\"0\":["
        "{\"filename\":\"a.safetensor\",\"stored_key\":\"00000000000000000000000000000000\","
        "\"name\":\"" NAME "w13_weight\"},"
        "{\"filename\":\"a.safetensor\",\"stored_key\":\"11111111111111111111111111111111\","
        "\"name\":\"" NAME "w2_weight\"}]},"
        "\"rank_checksums\":{\"0\":\"e1336045174c21f1\"},"
        "\"shard_config\":{\"pp\":1,\"init_expert_location\":\"trivial\"}}";

    succeed(mp_make_dir(in_scratch("presharded"), &err));
    put_file("presharded/a.safetensor", 0, "00000000000000000000000000000000",
             "11111111111111111111111111111111");
    put("presharded/checksum.json", plan, sizeof plan - 1);
    put("presharded/READY", "{\"world_size\":1}", 16);
}

static void put_blobs(void)
{
    succeed(mp_make_dir(in_scratch("blobs"), &err));
    for (unsigned r = 0; r < RANKS; r++) {
        char text[1024], name[32];
        int n = snprintf(text, sizeof text,
                         "{\"schema_version\":2,\"world_rank\":%u,\"world_size\":2,\"sha256\":\"\","
                         "\"tensors\":{\"" NAME "w13_weight\":{\"dtype\":\"bfloat16\","
                         "\"shape\":[3,128,96],\"format\":2,\"offset\":0,\"nbytes\":%zu},"
                         "\"" NAME "w2_weight\":{\"dtype\":\"bfloat16\","
                         "\"shape\":[3,96,64],\"format\":2,\"offset\":%zu,\"nbytes\":%zu}}}",
                         r, W13_BYTES, W13_BYTES, W2_BYTES);

        snprintf(name, sizeof name, "blobs/%u.json", r);
        put(name, text, (size_t)n);
        snprintf(name, sizeof name, "blobs/%u.snapshot", r);
        put(name, bytes[r], sizeof bytes[r]);
    }
}

/* One byte of the second copy of expert 1 is another one. */
static void make_snapshots(void)
{
    snprintf(scratch, sizeof scratch, "%s/moepack-snapshot-XXXXXX", P_tmpdir);
    cr_assert_not_null(mkdtemp(scratch));
    read_ranks();
    bytes[1][W13_BYTES + 2 * HALF_BYTES + 300] ^= 0x10;
    put_parts();
    put_presharded();
    put_blobs();
}

static void remove_snapshots(void)
{
    succeed(mp_remove_tree(scratch, &err));
}

TestSuite(snapshot_memory, .init = make_snapshots, .fini = remove_snapshots);

static int open_kind(mp_snapshot_kind kind, const char *name, mp_error *e)
{
    const mp_context context = {.threads = 1};
    mp_snapshot s;
    int rc = mp_snapshot_open(&s, kind, in_scratch(name), NULL, &context, e);

    if (rc != 0)
        return rc;
    cr_assert_eq(s.total_findings, 0, "%s", s.findings[0].text);
    for (size_t r = 0; r < s.num_ranks; r++)
        cr_assert_eq(s.ranks[r].tensors.num_tensors, 2);
    mp_snapshot_release(&s);
    return 0;
}

static int open_presharded(mp_error *e)
{
    return open_kind(MP_SNAPSHOT_PRESHARDED, "presharded", e);
}

static int open_parts(mp_error *e)
{
    return open_kind(MP_SNAPSHOT_SHARDED_STATE, "parts", e);
}

static int open_blobs(mp_error *e)
{
    return open_kind(MP_SNAPSHOT_BIG_TENSOR, "blobs", e);
}

Test(snapshot_memory, readers_survive_any_failed_allocation)
{
    cr_expect_gt(memory_exhaust(open_presharded), 15);
    cr_expect_gt(memory_exhaust(open_parts), 15);
    cr_expect_gt(memory_exhaust(open_blobs), 15);
}

static int check_parts(mp_error *e)
{
    const mp_verify_options options = {.size = sizeof(mp_verify_options),
                                       .level = MP_VERIFY_EXACT,
                                       .source = SOURCE,
                                       .layers = "0",
                                       .sample = 3,
                                       .seed = 1};
    const mp_context context = {.threads = 1};
    mp_verify_report r;
    int rc = mp_verify(in_scratch("parts"), &options, &context, &r, e);

    if (rc != 0)
        return rc;
    cr_assert_eq(r.total_faults, 1, "%d", (int)r.total_faults);
    cr_assert_not_null(strstr(r.faults[0].detail, "down of expert 1: row 2 column 22 is not the"),
                       "%s", r.faults[0].detail);
    mp_verify_report_release(&r);
    return 0;
}

Test(snapshot_memory, verify_survives_any_failed_allocation)
{
    cr_assert_gt(memory_exhaust(check_parts), 100);
}

static int compare_parts(mp_error *e)
{
    const mp_diff_options options = {.size = sizeof(mp_diff_options), .tolerance = -1};
    const mp_context context = {.threads = 1};
    mp_diff_report r;
    int rc = mp_diff(in_scratch("parts"), SOURCE, &options, &context, &r, e);

    if (rc != 0)
        return rc;
    cr_assert_eq(r.num_pairs, 3 * EXPERTS);
    cr_assert_eq(r.differing, 1);
    cr_assert_str_eq(r.pairs[r.worst].name, "model.layers.0.1.down");
    mp_diff_report_release(&r);
    return 0;
}

Test(snapshot_memory, diff_survives_any_failed_allocation)
{
    cr_assert_gt(memory_exhaust(compare_parts), 100);
}
