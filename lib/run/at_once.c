/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors written into compressed files at once: where they stand, and the frames around them.
 *
 * Nothing that a resumed run relies on is written over: frames of a stage stand behind all that
 * were there before, and tensors that are not written at once behind those of the stage that are.
 */
#include "run/at_once.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"
#include "base/zstd_file.h"
#include "base/zstd_raw.h"
#include "checkpoint/compress.h"
#include "run/compress.h"

#define READ_BYTES ((uint64_t)256 << 10)

/* A compressed file that grows. */
typedef struct mp_growing {
    bool used; /* it has tensors that are written at once */
    char *path;
    mp_compressed to;
} mp_growing;

/* Of a tensor. */
typedef struct mp_at_once {
    bool chosen;
    uint32_t stage;   /* in which its frames are made: its own, or a later one before it */
    uint64_t at;      /* where the first stands; 0 before its stage */
    mp_raw_sum *sums; /* of its frames; null before its stage */
} mp_at_once;

static mp_at_once *at_once_of(const mp_outputs *outputs, const mp_out_tensor *out)
{
    return &outputs->at_once[out - outputs->work->outputs];
}

static const mp_compressed *file_of(const mp_outputs *outputs, const mp_out_tensor *out)
{
    return &outputs->growing[out->file].to;
}

static uint64_t num_frames(const mp_out_tensor *out)
{
    return mp_ceil_div(out->bytes, MP_FRAME_BYTES);
}

/* ------------------------------------------------------------------------
 * Set up
 */

/* In a file, tensors that are written at once stand before all others of their stage: where these
 * end is not known when it begins. */
static void choose_in(mp_outputs *outputs, size_t file)
{
    const mp_out_file *f = &outputs->work->files[file];
    uint32_t stage = 0;
    bool known = true;

    for (uint32_t t = f->first_tensor; t < f->first_tensor + f->num_tensors; t++) {
        const mp_out_tensor *out = &outputs->work->outputs[t];
        mp_at_once *a = &outputs->at_once[t];

        known |= out->stage > stage;
        stage = out->stage > stage ? out->stage : stage;
        a->stage = stage;
        known &= out->codes && out->bytes > MP_FRAME_BYTES && out->stage == stage;
        a->chosen = known;
        outputs->growing[file].used |= known;
    }
}

int mp_at_once_init(mp_outputs *outputs, const mp_progress_state *state, mp_error *err)
{
    const mp_work *work = outputs->work;

    if (!state->at_once)
        return 0;
    outputs->state = state;
    outputs->growing = mp_alloc_zeroed(work->num_files, sizeof *outputs->growing);
    outputs->at_once = mp_alloc_zeroed(work->num_outputs, sizeof *outputs->at_once);
    if (!outputs->growing || !outputs->at_once)
        return mp_fail_memory(err);
    for (size_t f = 0; f < work->num_files; f++) {
        outputs->growing[f].to.fd = -1;
        choose_in(outputs, f);
    }
    return 0;
}

static void release_sums(const mp_out_tensor *out, mp_at_once *a)
{
    for (uint64_t i = 0; a->sums && i < num_frames(out); i++)
        mp_raw_sum_end(&a->sums[i]);
    free(a->sums);
    a->sums = NULL;
}

void mp_at_once_release(mp_outputs *outputs)
{
    const mp_work *work = outputs->work;

    for (size_t o = 0; outputs->at_once && o < work->num_outputs; o++)
        release_sums(&work->outputs[o], &outputs->at_once[o]);
    for (size_t f = 0; outputs->growing && f < work->num_files; f++) {
        mp_frames_release(&outputs->growing[f].to.frames);
        free(outputs->growing[f].path);
    }
    free(outputs->growing);
    free(outputs->at_once);
}

bool mp_at_once_has_file(const mp_outputs *outputs, size_t file)
{
    return outputs->growing && outputs->growing[file].used;
}

/* ------------------------------------------------------------------------
 * Files
 */

/* Whether no unit is done, so that files begin anew. */
static bool is_fresh(const mp_outputs *outputs)
{
    for (uint64_t u = 0; u < outputs->work->num_units; u++)
        if (outputs->state->unit_done[u])
            return false;
    for (uint32_t s = 0; s < outputs->work->num_stages; s++)
        if (outputs->state->stage_done[s])
            return false;
    return true;
}

static int open_file(mp_outputs *outputs, size_t file, const char *dir, mp_error *err)
{
    mp_growing *g = &outputs->growing[file];

    if (g->to.fd >= 0)
        return 0;
    g->path = mp_out_compressed_path(&outputs->work->files[file], dir);
    g->to.path = g->path;
    return g->path ? mp_open_write(g->path, &g->to.fd, err) : mp_fail_memory(err);
}

/* A header is durable before the first unit is journaled. */
int mp_at_once_check(mp_outputs *outputs, size_t file, const char *dir, bool *there, mp_error *err)
{
    const mp_work *work = outputs->work;
    const mp_out_file *f = &work->files[file];
    mp_compressed *to = &outputs->growing[file].to;
    uint64_t content = f->header_bytes, size = 0;
    char *path = mp_out_compressed_path(f, dir);
    int rc = path ? 0 : mp_fail_memory(err);

    *there = path && mp_path_exists(path);
    free(path);
    if (!*there || is_fresh(outputs))
        return rc;
    for (uint32_t t = f->first_tensor; t < f->first_tensor + f->num_tensors; t++)
        if (outputs->state->stage_done[outputs->at_once[t].stage])
            content = work->outputs[t].offset + work->outputs[t].bytes;
    rc = open_file(outputs, file, dir, err);
    if (rc == 0)
        rc = mp_file_size(to->fd, to->path, &size, err);
    if (rc == 0)
        rc = mp_frames_find_first(&to->frames, to->fd, to->path, size, content, err);
    *there = rc == 0;
    return rc == MP_ERR_INPUT ? 0 : rc;
}

static int read_header(const mp_stretch *stretch, uint64_t begin, uint64_t n, void *buffer,
                       mp_error *err)
{
    const mp_out_file *file = stretch->from;

    (void)err;
    memcpy(buffer, file->header + begin, n);
    return 0;
}

int mp_at_once_open(mp_outputs *outputs, size_t file, const char *dir, mp_error *err)
{
    const mp_out_file *f = &outputs->work->files[file];
    mp_compressed *to = &outputs->growing[file].to;
    mp_stretch header = {.to = to, .from = f, .end = f->header_bytes};
    const mp_stretches stretches = {&header, 1, read_header, .level = outputs->work->zstd};
    const mp_context alone = {.threads = 1};
    int rc = open_file(outputs, file, dir, err);

    if (rc != 0 || !is_fresh(outputs))
        return rc;
    mp_frames_release(&to->frames);
    rc = mp_file_resize(to->fd, to->path, 0, err);
    return rc ? rc : mp_stretches_compress(&stretches, &alone, err);
}

int mp_at_once_close(mp_outputs *outputs, size_t file, mp_error *err)
{
    mp_growing *g = &outputs->growing[file];
    int rc = mp_file_close(g->to.fd, g->path, err);

    g->to.fd = -1;
    return rc;
}

int mp_at_once_sync(const mp_outputs *outputs, size_t file, mp_error *err)
{
    const mp_growing *g = &outputs->growing[file];

    return mp_file_sync(g->to.fd, g->path, err);
}

int mp_at_once_end_file(mp_outputs *outputs, size_t file, mp_error *err)
{
    mp_growing *g = &outputs->growing[file];
    int rc = mp_compressed_end(&g->to, err);

    if (rc == 0)
        rc = mp_file_sync(g->to.fd, g->path, err);
    return rc ? rc : mp_at_once_close(outputs, file, err);
}

/* ------------------------------------------------------------------------
 * Bytes
 */

bool mp_at_once_has(const mp_outputs *outputs, const mp_out_tensor *out)
{
    return outputs->at_once && at_once_of(outputs, out)->chosen;
}

static int begin_tensor(const mp_out_tensor *out, mp_at_once *a, uint64_t at, mp_error *err)
{
    a->at = at;
    a->sums = mp_alloc_zeroed(num_frames(out), sizeof *a->sums);
    if (!a->sums)
        return mp_fail_memory(err);
    for (uint64_t i = 0; i < num_frames(out); i++)
        if (mp_raw_sum_begin(&a->sums[i], err) != 0)
            return MP_ERR_IO;
    return 0;
}

int mp_at_once_begin_stage(mp_outputs *outputs, uint32_t stage, mp_error *err)
{
    const mp_work *work = outputs->work;

    for (size_t f = 0; f < work->num_files; f++) {
        const mp_out_file *file = &work->files[f];

        if (!mp_at_once_has_file(outputs, f) || outputs->compressed[f])
            continue;
        uint64_t at = mp_frames_end(&outputs->growing[f].to.frames).at;
        for (uint32_t t = file->first_tensor; t < file->first_tensor + file->num_tensors; t++) {
            mp_at_once *a = &outputs->at_once[t];

            if (!a->chosen || a->stage != stage)
                continue;
            if (begin_tensor(&work->outputs[t], a, at, err) != 0)
                return err->code;
            at += mp_raw_bytes(work->outputs[t].bytes);
        }
    }
    return 0;
}

/* Adds bytes to the checksums of frames of which they are the next. */
static void add_to_sums(mp_at_once *a, uint64_t offset, const unsigned char *data, uint64_t n)
{
    for (uint64_t done = 0, part = 0; done < n; done += part) {
        mp_raw_sum *sum = &a->sums[(offset + done) / MP_FRAME_BYTES];
        uint64_t within = (offset + done) % MP_FRAME_BYTES;

        part = mp_min_u64(n - done, MP_FRAME_BYTES - within);
        /* As of digests: bytes come once, so one thread at most has the next ones. */
        if (__atomic_load_n(&sum->next, __ATOMIC_ACQUIRE) != within)
            continue;
        mp_raw_sum_update(sum, data + done, part);
        __atomic_store_n(&sum->next, within + part, __ATOMIC_RELEASE);
    }
}

int mp_at_once_write(mp_outputs *outputs, const mp_out_tensor *out, uint64_t offset,
                     const void *data, uint64_t n, mp_error *err)
{
    const mp_compressed *to = file_of(outputs, out);
    mp_at_once *a = at_once_of(outputs, out);
    const unsigned char *bytes = data;
    int rc = 0;

    for (uint64_t done = 0, part = 0; rc == 0 && done < n; done += part) {
        part = mp_min_u64(n - done, mp_raw_together(offset + done));
        rc = mp_pwrite_all(to->fd, bytes + done, part, a->at + mp_raw_at(offset + done), to->path,
                           err);
    }
    if (rc == 0)
        add_to_sums(a, offset, data, n);
    return rc;
}

int mp_at_once_copy(mp_outputs *outputs, const mp_out_tensor *out, uint64_t offset, int fd,
                    const char *path, uint64_t from, uint64_t n, mp_error *err)
{
    const mp_compressed *to = file_of(outputs, out);
    uint64_t at = at_once_of(outputs, out)->at;
    int rc = 0;

    for (uint64_t done = 0, part = 0; rc == 0 && done < n; done += part) {
        part = mp_min_u64(n - done, mp_raw_together(offset + done));
        rc = mp_file_copy_range(fd, from + done, to->fd, at + mp_raw_at(offset + done), part, path,
                                to->path, err);
    }
    return rc;
}

int mp_at_once_read(const mp_outputs *outputs, const mp_out_tensor *out, uint64_t offset,
                    void *buffer, uint64_t n, mp_error *err)
{
    const mp_compressed *from = file_of(outputs, out);
    uint64_t at = at_once_of(outputs, out)->at;
    unsigned char *bytes = buffer;
    int rc = 0;

    for (uint64_t done = 0, part = 0; rc == 0 && done < n; done += part) {
        part = mp_min_u64(n - done, mp_raw_together(offset + done));
        rc = mp_pread_all(from->fd, bytes + done, part, at + mp_raw_at(offset + done), from->path,
                          err);
    }
    return rc;
}

void mp_at_once_forget(const mp_outputs *outputs, const mp_out_tensor *out)
{
    mp_file_forget(file_of(outputs, out)->fd, at_once_of(outputs, out)->at,
                   mp_raw_bytes(out->bytes));
}

/* ------------------------------------------------------------------------
 * The end of a stage
 */

/* Whether frames of a tensor are made in a stage. */
static bool is_due(const mp_outputs *outputs, size_t output, uint32_t stage)
{
    const mp_out_tensor *out = &outputs->work->outputs[output];

    return outputs->at_once[output].stage == stage && out->bytes > 0 &&
           outputs->growing[out->file].used && !outputs->compressed[out->file];
}

bool mp_at_once_has_stage(const mp_outputs *outputs, uint32_t stage)
{
    for (size_t o = 0; outputs->at_once && o < outputs->work->num_outputs; o++)
        if (is_due(outputs, o, stage))
            return true;
    return false;
}

/* Where a stretch is read from. */
typedef struct source {
    const mp_outputs *outputs;
    const mp_out_tensor *out;
} source;

static int read_tensor(const mp_stretch *stretch, uint64_t begin, uint64_t n, void *buffer,
                       mp_error *err)
{
    const source *from = stretch->from;
    const mp_out_tensor *out = from->out;

    if (mp_at_once_has(from->outputs, out))
        return mp_at_once_read(from->outputs, out, begin - out->offset, buffer, n, err);
    return mp_pread_all(from->outputs->fds[out->file], buffer, n, begin,
                        from->outputs->work->files[out->file].path, err);
}

/* Does something with the stretches of a stage's tensors in their order: of those that are
 * written at once, or of the others. */
static int with_stretches(mp_outputs *outputs, uint32_t stage, bool chosen,
                          int (*act)(const mp_stretches *, const mp_context *, void *, mp_error *),
                          const mp_context *context, void *user, mp_error *err)
{
    const mp_work *work = outputs->work;
    source *sources = mp_alloc(work->num_outputs, sizeof *sources);
    mp_stretch *list = mp_alloc(work->num_outputs, sizeof *list);
    mp_stretches all = {.list = list, .read = read_tensor, .level = work->zstd};
    int rc = sources && list ? 0 : mp_fail_memory(err);

    for (size_t o = 0; rc == 0 && o < work->num_outputs; o++) {
        const mp_out_tensor *out = &work->outputs[o];

        if (!is_due(outputs, o, stage) || outputs->at_once[o].chosen != chosen)
            continue;
        sources[all.count] = (source){outputs, out};
        list[all.count] = (mp_stretch){.to = &outputs->growing[out->file].to,
                                       .from = &sources[all.count],
                                       .begin = out->offset,
                                       .end = out->offset + out->bytes};
        all.count++;
    }
    if (rc == 0 && all.count > 0)
        rc = mp_stretches_look(&all, context, err);
    if (rc == 0 && all.count > 0)
        rc = act(&all, context, user, err);
    free(sources);
    free(list);
    return rc;
}

/* ------------------------------------------------------------------------
 * Those that shrink
 */

static int put_back(const mp_outputs *outputs, const mp_out_tensor *out, mp_error *err)
{
    void *buffer = mp_alloc(READ_BYTES, 1);
    int rc = buffer ? 0 : mp_fail_memory(err);

    for (uint64_t at = 0, n = 0; rc == 0 && at < out->bytes; at += n) {
        n = mp_min_u64(out->bytes - at, READ_BYTES);
        rc = mp_at_once_read(outputs, out, at, buffer, n, err);
        if (rc == 0)
            rc = mp_pwrite_all(outputs->fds[out->file], buffer, n, out->offset + at,
                               outputs->work->files[out->file].path, err);
    }
    free(buffer);
    outputs->dirty[out->file] = true;
    return rc;
}

/* user: plain, [work->num_outputs]. */
static int put_shrinking_back(const mp_stretches *all, const mp_context *context, void *user,
                              mp_error *err)
{
    const mp_compressed *behind = NULL; /* whose other tensors move too */
    bool *plain = user;

    (void)context;
    for (size_t i = 0; i < all->count; i++) {
        const source *from = all->list[i].from;

        if (all->list[i].stored && all->list[i].to != behind)
            continue;
        behind = all->list[i].to;
        plain[from->out - from->outputs->work->outputs] = true;
        if (put_back(from->outputs, from->out, err) != 0)
            return err->code;
    }
    return 0;
}

int mp_at_once_look(mp_outputs *outputs, uint32_t stage, bool *plain, const mp_context *context,
                    mp_error *err)
{
    return with_stretches(outputs, stage, true, put_shrinking_back, context, plain, err);
}

/* Where codes of one stage shrink, those behind it are not expected to be others. */
void mp_at_once_give_up(mp_outputs *outputs, size_t output)
{
    mp_at_once *a = &outputs->at_once[output];

    a->chosen = false;
    release_sums(&outputs->work->outputs[output], a);
    for (size_t o = 0; o < outputs->work->num_outputs; o++)
        outputs->at_once[o].chosen &= outputs->at_once[o].stage <= a->stage;
}

void mp_at_once_give_up_all(mp_outputs *outputs)
{
    for (size_t o = 0; outputs->at_once && o < outputs->work->num_outputs; o++)
        if (outputs->state->plain[o])
            mp_at_once_give_up(outputs, o);
}

/* ------------------------------------------------------------------------
 * Frames
 */

/* A frame that has its content. */
typedef struct filled_frame {
    const mp_out_tensor *out;
    uint64_t number; /* of the tensor's */
    uint64_t bytes;
    uint32_t checksum;
} filled_frame;

typedef struct filled_frames {
    const mp_outputs *outputs;
    filled_frame *list;
} filled_frames;

static int seal(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const filled_frames *frames = user;
    filled_frame *frame = &frames->list[index];
    const mp_outputs *outputs = frames->outputs;
    const mp_at_once *a = at_once_of(outputs, frame->out);
    uint64_t begin = frame->number * MP_FRAME_BYTES;
    mp_raw_sum *sum = &a->sums[frame->number];

    for (uint64_t at = sum->next, n = 0; at < frame->bytes; at += n) {
        n = mp_min_u64(frame->bytes - at, READ_BYTES);
        if (mp_at_once_read(outputs, frame->out, begin + at, scratch, n, err) != 0)
            return err->code;
        mp_raw_sum_update(sum, scratch, n);
    }
    frame->checksum = mp_raw_sum_end(sum);
    return mp_raw_write_heads(file_of(outputs, frame->out)->fd, file_of(outputs, frame->out)->path,
                              a->at + mp_raw_bytes(begin), frame->bytes, frame->checksum, err);
}

/* Adds the frames of a stage's tensors that are written at once. */
static int seal_all(mp_outputs *outputs, uint32_t stage, const mp_context *context, mp_error *err)
{
    const mp_work *work = outputs->work;
    filled_frames frames = {.outputs = outputs};
    uint64_t count = 0, all = 0;
    int rc;

    for (size_t o = 0; o < work->num_outputs; o++)
        if (is_due(outputs, o, stage) && outputs->at_once[o].chosen)
            all += num_frames(&work->outputs[o]);
    frames.list = mp_alloc(all, sizeof *frames.list);
    if (!frames.list)
        return mp_fail_memory(err);
    for (size_t o = 0; o < work->num_outputs; o++) {
        const mp_out_tensor *out = &work->outputs[o];

        for (uint64_t i = 0;
             is_due(outputs, o, stage) && outputs->at_once[o].chosen && i < num_frames(out); i++)
            frames.list[count++] = (filled_frame){
                out, i, mp_min_u64(out->bytes - i * MP_FRAME_BYTES, MP_FRAME_BYTES), 0};
    }
    rc = mp_parallel(context, count, READ_BYTES, seal, &frames, err);
    for (uint64_t i = 0; rc == 0 && i < count; i++) {
        const filled_frame *frame = &frames.list[i];

        rc = mp_frames_add(&outputs->growing[frame->out->file].to.frames,
                           mp_raw_bytes(frame->bytes), frame->bytes, frame->checksum, err);
    }
    free(frames.list);
    return rc;
}

static int compress(const mp_stretches *all, const mp_context *context, void *user, mp_error *err)
{
    (void)user;
    return mp_stretches_compress(all, context, err);
}

int mp_at_once_end_stage(mp_outputs *outputs, uint32_t stage, const mp_context *context,
                         mp_error *err)
{
    int rc = seal_all(outputs, stage, context, err);

    if (rc == 0)
        rc = with_stretches(outputs, stage, false, compress, context, NULL, err);
    for (size_t o = 0; o < outputs->work->num_outputs; o++)
        if (is_due(outputs, o, stage))
            outputs->dirty[outputs->work->outputs[o].file] = true;
    return rc;
}
