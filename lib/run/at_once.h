/* SPDX-License-Identifier: Apache-2.0 */
/*
 * run/at_once.h - tensors that are written into the compressed file at once.
 *
 * FP4 codes do not shrink, as a rule, and it is known where each byte of a stored frame stands
 * (base/zstd_raw.h). So where the frames before such a tensor are known when its stage begins, its
 * bytes go to X.safetensors.zst as they come. All others wait in the plain file, which has holes in
 * place of these, and are compressed behind them once their stage is done. That makes a stage's
 * frames whole and is journaled: where frames of the next one begin is known then.
 *
 * A tensor that shrinks all the same is put back into the plain file, with what stands behind it in
 * its stage, so that the file becomes what compressing the plain one makes of it. Those of later
 * stages go to the plain file then.
 */
#ifndef MP_RUN_AT_ONCE_H
#define MP_RUN_AT_ONCE_H

#include "run/journal.h"
#include "run/output.h"

/* Chooses the tensors: none unless the state, which is kept, says so. Before files are opened. */
int mp_at_once_init(mp_outputs *outputs, const mp_progress_state *state, mp_error *err);
void mp_at_once_release(mp_outputs *outputs);

/* Whether a file is filled at once, in part. */
bool mp_at_once_has_file(const mp_outputs *outputs, size_t file);

/* *there: whether the compressed file of such a one holds all frames of stages that are done. */
int mp_at_once_check(mp_outputs *outputs, size_t file, const char *dir, bool *there, mp_error *err);

/* Chooses no tensor that the state says is in the plain file, and none of stages behind. */
void mp_at_once_give_up_all(mp_outputs *outputs);

/* Opens the compressed file, anew where no unit is done. */
int mp_at_once_open(mp_outputs *outputs, size_t file, const char *dir, mp_error *err);
int mp_at_once_close(mp_outputs *outputs, size_t file, mp_error *err);
int mp_at_once_sync(const mp_outputs *outputs, size_t file, mp_error *err);

/* Settles where the tensors of a stage stand, all stages before it being done. */
int mp_at_once_begin_stage(mp_outputs *outputs, uint32_t stage, mp_error *err);

/* Whether a tensor is such a one; those below are for them only. */
bool mp_at_once_has(const mp_outputs *outputs, const mp_out_tensor *out);
int mp_at_once_write(mp_outputs *outputs, const mp_out_tensor *out, uint64_t offset,
                     const void *data, uint64_t n, mp_error *err);
int mp_at_once_copy(mp_outputs *outputs, const mp_out_tensor *out, uint64_t offset, int fd,
                    const char *path, uint64_t from, uint64_t n, mp_error *err);
int mp_at_once_read(const mp_outputs *outputs, const mp_out_tensor *out, uint64_t offset,
                    void *buffer, uint64_t n, mp_error *err);
void mp_at_once_forget(const mp_outputs *outputs, const mp_out_tensor *out);

/* Whether a stage has frames to be made. */
bool mp_at_once_has_stage(const mp_outputs *outputs, uint32_t stage);

/* Puts tensors of a stage that shrink back into plain files. plain: set for these; which is to be
 * durable, with their data, before they are given up, and all of stages behind with them. */
int mp_at_once_look(mp_outputs *outputs, uint32_t stage, bool *plain, const mp_context *context,
                    mp_error *err);
void mp_at_once_give_up(mp_outputs *outputs, size_t output);

/* Makes all frames of a stage whole. */
int mp_at_once_end_stage(mp_outputs *outputs, uint32_t stage, const mp_context *context,
                         mp_error *err);

/* Ends a file all of whose stages are done: durable, but for its directory. */
int mp_at_once_end_file(mp_outputs *outputs, size_t file, mp_error *err);

#endif
