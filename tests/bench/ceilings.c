/* SPDX-License-Identifier: Apache-2.0 */
/* What this machine allows, for the rooflines of run.sh: each step of a run by itself, on so many
 * threads, the best of some trials.
 *
 *     ceilings THREADS files DIR       GB/s, a line each, "NAME GB/s":
 *         load, store, copy            memory, in arrays far larger than caches
 *         pread, pwrite                files in DIR: pages that are in memory, pages that are new
 *         digest                       XXH3-128
 *     ceilings THREADS disk FILE       GB/s of a file that is not in memory, by direct reads
 *     ceilings THREADS forget FILE...  nothing: the files are no longer in memory then
 *     ceilings THREADS layout TARGET   seconds to lay out a GB of experts of 4096 x 2048
 *     ceilings THREADS transpose       GB/s of BF16 that are transposed
 *     ceilings THREADS multiply        GFLOP/s of multiplying and adding floats, not fused
 *     ceilings THREADS zstd FILE       GB/s of content that become frames at level 1, and back
 *
 * Files and digests go through pieces as large as a tile, which stay in the cache, as they do in a
 * run; so do the tiles of layouts. Steps add up, then: a thread does one after the other. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <moepack/layout.h>
#include <zstd.h>

#include "base/digest.h"
#include "base/direct.h"
#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"
#include "base/transpose.h"
#include "clock.h"
#include "layout/tile.h"
#include "write/plan.h"

#define TRIALS 5
#define PIECE  ((uint64_t)MP_UNIT_ROWS_BYTES)
#define TOTAL  ((uint64_t)512 << 20) /* bytes of each measurement, all threads together */
#define FRAME  ((uint64_t)16 << 20)

static int threads;

static void die(const char *what)
{
    fprintf(stderr, "ceilings: %s\n", what);
    exit(1);
}

static void *need(uint64_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);

    if (!p)
        die("out of memory");
    memset(p, 1, bytes);
    return p;
}

/* Seconds of the fastest trial in which `work` is done `count` times, on all threads. before, which
 * may be null, prepares a trial and is not counted. */
static double fastest(mp_task *work, void (*before)(void *user), void *user, uint64_t count)
{
    const mp_context context = {.threads = threads};
    double best = 1e9;
    mp_error err;

    for (int trial = 0; trial < TRIALS; trial++) {
        if (before)
            before(user);
        double begin = clock_now();

        if (mp_parallel(&context, count, PIECE, work, user, &err) != 0)
            die(err.message);
        double seconds = clock_now() - begin;
        best = seconds < best ? seconds : best;
    }
    return best;
}

/* ------------------------------------------------------------------------
 * Memory, one piece of it a task
 */

typedef struct memory {
    uint8_t *from, *to;
    uint64_t sum; /* so that loads are not left out */
} memory;

static int load(void *user, uint64_t index, void *scratch, mp_error *err)
{
    memory *m = user;
    const uint64_t *words = (const uint64_t *)(const void *)(m->from + index * PIECE);
    uint64_t sum[8] = {0};

    (void)scratch;
    (void)err;
    for (uint64_t i = 0; i < PIECE / sizeof *words; i += 8)
        for (unsigned k = 0; k < 8; k++)
            sum[k] += words[i + k];
    for (unsigned k = 1; k < 8; k++)
        sum[0] += sum[k];
    __atomic_fetch_add(&m->sum, sum[0], __ATOMIC_RELAXED);
    return 0;
}

static int store(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const memory *m = user;

    (void)scratch;
    (void)err;
    memset(m->to + index * PIECE, 2, PIECE);
    return 0;
}

static int copy(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const memory *m = user;

    (void)scratch;
    (void)err;
    memcpy(m->to + index * PIECE, m->from + index * PIECE, PIECE);
    return 0;
}

/* ------------------------------------------------------------------------
 * Files, one a task, so that threads do not wait for each other
 */

typedef struct files {
    int *fd; /* [threads] */
    uint64_t bytes;
} files;

static void empty(void *user)
{
    const files *f = user;

    for (int i = 0; i < threads; i++)
        if (mp_file_resize(f->fd[i], "file", 0, NULL) != 0)
            die("cannot truncate a file");
}

static int write_new(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const files *f = user;
    int rc = 0;

    for (uint64_t at = 0; rc == 0 && at < f->bytes; at += PIECE)
        rc = mp_pwrite_all(f->fd[index], scratch, PIECE, at, "file", err);
    return rc;
}

static int read_back(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const files *f = user;
    int rc = 0;

    for (uint64_t at = 0; rc == 0 && at < f->bytes; at += PIECE)
        rc = mp_pread_all(f->fd[index], scratch, PIECE, at, "file", err);
    return rc;
}

static int digest(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const files *f = user;
    mp_digest_stream stream;
    int rc = mp_digest_begin(&stream, err);

    (void)index;
    for (uint64_t at = 0; rc == 0 && at < f->bytes; at += PIECE)
        mp_digest_update(&stream, scratch, PIECE);
    mp_digest_end(&stream, NULL);
    return rc;
}

static void show(const char *name, double seconds)
{
    printf("%s %.3f\n", name, (double)TOTAL * 1e-9 / seconds);
}

static void measure_files(const char *dir)
{
    uint64_t bytes = TOTAL / (uint64_t)threads / PIECE * PIECE;
    memory m = {need(TOTAL), need(TOTAL), 0};
    files f = {need((uint64_t)threads * sizeof *f.fd), bytes};
    /* What the division leaves over is not worked on, nor counted. */
    double whole = (double)TOTAL / (double)(bytes * (uint64_t)threads);

    show("load", fastest(load, NULL, &m, TOTAL / PIECE));
    show("store", fastest(store, NULL, &m, TOTAL / PIECE));
    show("copy", fastest(copy, NULL, &m, TOTAL / PIECE));
    free(m.from);
    free(m.to);
    for (int i = 0; i < threads; i++) {
        char *path = mp_path_join(dir, "ceilings-XXXXXX");

        f.fd[i] = path ? mkstemp(path) : -1;
        if (f.fd[i] < 0)
            die("cannot make a file");
        unlink(path);
        free(path);
    }
    show("pwrite", whole * fastest(write_new, empty, &f, (uint64_t)threads));
    show("pread", whole * fastest(read_back, NULL, &f, (uint64_t)threads));
    show("digest", whole * fastest(digest, NULL, &f, (uint64_t)threads));
    for (int i = 0; i < threads; i++)
        close(f.fd[i]);
    free(f.fd);
}

/* ------------------------------------------------------------------------
 * A disk, a MiB of the file a task
 */

#define DISK_PIECE ((uint64_t)1 << 20)

typedef struct disk_file {
    const char *path;
    int fd;
    mp_direct *direct; /* null: the file system has no direct reads */
    uint64_t bytes;
} disk_file;

static void forget(void *user)
{
    const disk_file *f = user;

    mp_file_forget(f->fd, 0, f->bytes);
}

static void open_disk_file(disk_file *f)
{
    mp_error err;

    if (mp_open_read(f->path, &f->fd, &err) != 0 ||
        mp_file_size(f->fd, f->path, &f->bytes, &err) != 0)
        die(err.message);
    forget(f);
}

static int read_disk(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const disk_file *f = user;
    int rc = 0;

    for (uint64_t at = 0; rc == 0 && at < DISK_PIECE; at += PIECE)
        rc = mp_read_bulk(f->fd, f->direct, scratch, PIECE, index * DISK_PIECE + at, f->path, err);
    return rc;
}

static void measure_disk(const char *path)
{
    disk_file f = {.path = path};
    uint64_t pieces;

    open_disk_file(&f);
    mp_direct_open(&f.direct, f.fd, path, NULL);
    pieces = f.bytes / DISK_PIECE;
    printf("%.3f\n", (double)(pieces * DISK_PIECE) * 1e-9 / fastest(read_disk, forget, &f, pieces));
    mp_direct_close(f.direct);
    close(f.fd);
}

static void forget_files(char **paths)
{
    for (; *paths; paths++) {
        disk_file f = {.path = *paths};

        open_disk_file(&f);
        close(f.fd);
    }
}

/* ------------------------------------------------------------------------
 * Layouts, one expert a task
 */

typedef struct layout {
    const mp_target *target;
    mp_dims dims;
    uint64_t tile_bytes[MP_SIDES]; /* wanted, as plans have them */
    uint64_t scratch_bytes;        /* of the largest tile, or of all scales */
} layout;

static void lay_out_side(const layout *l, mp_side side, uint8_t *from, uint8_t *to)
{
    uint64_t tiles = mp_tile_count(l->target, &l->dims, side, l->tile_bytes[side]);

    for (uint64_t i = 0; i < tiles; i++) {
        mp_tile tile = mp_tile_at(l->target, &l->dims, side, l->tile_bytes[side], i);
        const uint8_t *const in[2] = {from, from + tile.bytes / 2 / 64 * 64};

        if (!l->target->tiling(&l->dims, side).unchanged)
            l->target->pack_weight(&l->dims, side, &tile, in, to);
    }
    if (l->target->pack_scale)
        l->target->pack_scale(&l->dims, side, from, to);
}

static int lay_out(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const layout *l = user;
    uint8_t *from = need(l->scratch_bytes), *to = need(l->scratch_bytes);

    (void)index;
    (void)scratch;
    (void)err;
    for (int round = 0; round < 4; round++) {
        lay_out_side(l, MP_L1, from, to);
        lay_out_side(l, MP_L2, from, to);
    }
    free(from);
    free(to);
    return 0;
}

static void measure_layout(const char *name)
{
    layout l = {.target = mp_target_find(name), .dims = {4096, 2048}};
    uint64_t experts = 4 * (uint64_t)threads, bytes = 0;
    mp_slot_tensor tensors[MP_TARGET_TENSORS];

    if (!l.target)
        die("no such target");
    for (unsigned t = 0; t < l.target->describe(&l.dims, tensors); t++) {
        bytes += tensors[t].slot_bytes;
        if (tensors[t].role != MP_ROLE_WEIGHT && tensors[t].slot_bytes > l.scratch_bytes)
            l.scratch_bytes = tensors[t].slot_bytes;
    }
    for (int side = 0; side < MP_SIDES; side++) {
        bool cols = l.target->tiling(&l.dims, (mp_side)side).kind == MP_TILES_COLS;

        l.tile_bytes[side] = cols ? MP_UNIT_COLS_BYTES : MP_UNIT_ROWS_BYTES;
        mp_tile tile = mp_tile_at(l.target, &l.dims, (mp_side)side, l.tile_bytes[side], 0);
        if (tile.bytes > l.scratch_bytes)
            l.scratch_bytes = tile.bytes;
    }
    l.scratch_bytes *= 2; /* a tile of both parts, wherever the second begins */
    printf("%.5f\n", fastest(lay_out, NULL, &l, experts) / ((double)(bytes * experts * 4) * 1e-9));
}

static int turn_over(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const uint64_t rows = 512, cols = PIECE / 2 / rows;
    uint8_t *to = need(PIECE);

    (void)user;
    (void)index;
    (void)err;
    for (int round = 0; round < 64; round++)
        mp_transpose(scratch, 2 * cols, rows, cols, 2, to, 2 * rows);
    free(to);
    return 0;
}

/* ------------------------------------------------------------------------
 * Arithmetic
 */

typedef float lanes __attribute__((vector_size(64)));

#define LANES   16 /* floats of one */
#define CHAINS  6  /* enough for two units, few enough for 16 registers of half the width */
#define VECTORS (CHAINS * 32)
#define ROUNDS  200000

#if defined(__x86_64__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
static float
sum_products(const lanes *x, float y)
{
    lanes sum[CHAINS] = {{0}}, all = {0};

    for (unsigned round = 0; round < ROUNDS; round++)
        for (unsigned i = 0; i < VECTORS; i += CHAINS)
#pragma GCC unroll 8
            for (unsigned k = 0; k < CHAINS; k++)
                sum[k] += x[i + k] * y;
    for (unsigned k = 0; k < CHAINS; k++)
        all += sum[k];
    return all[0];
}

static int multiply(void *user, uint64_t index, void *scratch, mp_error *err)
{
    float *sums = user;

    (void)err;
    memset(scratch, 0, VECTORS * sizeof(lanes));
    sums[index] = sum_products(scratch, 1.0f / 3);
    return 0;
}

static void measure_multiply(void)
{
    float *sums = need((uint64_t)threads * sizeof *sums);
    double operations = 2.0 * LANES * VECTORS * ROUNDS * (double)threads;

    printf("%.1f\n", operations * 1e-9 / fastest(multiply, NULL, sums, (uint64_t)threads));
    free(sums);
}

/* ------------------------------------------------------------------------
 * Frames, one a task
 */

typedef struct frames {
    uint8_t *plain, *stored; /* stored: each frame at its largest size */
    uint64_t bytes, bound, *size;
} frames;

static uint64_t content_bytes(const frames *f, uint64_t index)
{
    return f->bytes - index * FRAME < FRAME ? f->bytes - index * FRAME : FRAME;
}

static int compress(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const frames *f = user;
    ZSTD_CCtx *context = ZSTD_createCCtx();

    (void)scratch;
    ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, 1);
    ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
    f->size[index] = ZSTD_compress2(context, f->stored + index * f->bound, f->bound,
                                    f->plain + index * FRAME, content_bytes(f, index));
    ZSTD_freeCCtx(context);
    return ZSTD_isError(f->size[index]) ? mp_fail(err, MP_ERR_IO, "zstd failed") : 0;
}

static int decompress(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const frames *f = user;
    uint64_t n = ZSTD_decompress(f->plain + index * FRAME, content_bytes(f, index),
                                 f->stored + index * f->bound, f->size[index]);

    (void)scratch;
    return ZSTD_isError(n) ? mp_fail(err, MP_ERR_IO, "zstd failed") : 0;
}

static void measure_zstd(const char *path)
{
    frames f = {.bound = ZSTD_compressBound(FRAME)};
    int fd = open(path, O_RDONLY);
    uint64_t count;

    if (fd < 0 || mp_file_size(fd, path, &f.bytes, NULL) != 0)
        die("cannot open the file");
    f.bytes = f.bytes < TOTAL ? f.bytes : TOTAL;
    count = (f.bytes + FRAME - 1) / FRAME;
    f.plain = need(f.bytes);
    f.stored = need(count * f.bound);
    f.size = need(count * sizeof *f.size);
    if (mp_pread_all(fd, f.plain, f.bytes, 0, path, NULL) != 0)
        die("cannot read the file");
    close(fd);
    double there = fastest(compress, NULL, &f, count), back = fastest(decompress, NULL, &f, count);
    printf("%.3f %.3f\n", (double)f.bytes * 1e-9 / there, (double)f.bytes * 1e-9 / back);
    free(f.plain);
    free(f.stored);
    free(f.size);
}

int main(int argc, char **argv)
{
    const char *what = argc > 2 ? argv[2] : "";

    threads = argc > 2 ? (int)strtol(argv[1], NULL, 10) : 0;
    if (threads < 1 || threads > 64)
        what = "";
    if (strcmp(what, "files") == 0 && argc == 4)
        measure_files(argv[3]);
    else if (strcmp(what, "disk") == 0 && argc == 4)
        measure_disk(argv[3]);
    else if (strcmp(what, "forget") == 0)
        forget_files(argv + 3);
    else if (strcmp(what, "layout") == 0 && argc == 4)
        measure_layout(argv[3]);
    else if (strcmp(what, "transpose") == 0 && argc == 3)
        printf("%.3f\n", (double)(PIECE * 64 * 64) * 1e-9 / fastest(turn_over, NULL, NULL, 64));
    else if (strcmp(what, "multiply") == 0 && argc == 3)
        measure_multiply();
    else if (strcmp(what, "zstd") == 0 && argc == 4)
        measure_zstd(argv[3]);
    else {
        fprintf(stderr,
                "usage: ceilings THREADS files DIR|layout TARGET|transpose|multiply|zstd FILE\n");
        return 2;
    }
    return 0;
}
