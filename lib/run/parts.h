/* SPDX-License-Identifier: Apache-2.0 */
/*
 * run/parts.h - a run that several processes share, on one machine or many.
 *
 * Each does a part: a range of the units, in the order of their numbers, that every process
 * computes alike from the plan. All write into one OUT.partial, whose files each of them makes at
 * full size, with the same header: to do that twice changes nothing. A part writes only where its
 * own units do, keeps a journal of its own, "journal-2-of-3", and goes on with it when it is
 * started again. It digests the tensors that it fills alone.
 *
 * Who finishes puts the journals together into one "journal": what is there is an interrupted run
 * then, of which all units are done, and ends as one.
 *
 * Parts that begin at once do not wait for each other. Each first makes its journal durable and
 * then looks at those of the others, so that of two runs on different terms, or in different
 * numbers of parts, one at least sees the other before it writes to a file. A part that has
 * finished units had made all files before; so where a part that begins sees such units, and then
 * a file that is not whole, the others' bytes are lost, and it must not make that file again.
 */
#ifndef MP_RUN_PARTS_H
#define MP_RUN_PARTS_H

#include "run/journal.h"
#include "run/output.h"

/* First unit of each part, and the number of units behind them: bounds[count + 1]. Parts write
 * about the same number of bytes; a bound that a stage's is near moves to that, since who
 * finishes digests what lies across it. */
int mp_parts_bounds(const mp_job *job, uint32_t count, uint64_t *bounds, mp_error *err);

/* Numbers of the parts that have journals in a directory, ascending. */
typedef struct mp_parts {
    uint32_t *numbers;
    size_t num;
    uint32_t count; /* in how many parts the run is; 0: no part is there */
} mp_parts;

/* MP_ERR_USAGE where the directory holds parts of runs in different numbers of parts. */
int mp_parts_list(const char *dir, mp_parts *parts, mp_error *err);
void mp_parts_release(mp_parts *parts);

/* "journal-2-of-3" */
#define MP_PART_NAME_MAX 48
char *mp_part_journal(uint32_t number, uint32_t count, char name[MP_PART_NAME_MAX]);

/* Before a part touches files, its journal being open: that the others in the directory are of
 * the same run. MP_ERR_USAGE for another number of parts, MP_ERR_INPUT for other terms, of which
 * it names the first.
 * others_wrote: set to whether any of them has finished units. */
int mp_parts_check_others(const char *dir, const mp_part *part, const mp_journal *own,
                          bool *others_wrote, mp_error *err);

/* Puts the journals of all parts together into one, durably, and removes them.
 * MP_ERR_CHECK, naming it, for a part that is missing, at work, or not done. */
int mp_parts_join(const char *dir, const mp_job *job, const char *terms, mp_error *err);

/* Removes the journals of parts in a directory: of one that a scheduler has started anew, say, just
 * as OUT.partial became OUT. */
int mp_parts_sweep(const char *dir, mp_error *err);

/* Keeps others' bytes from being written back by this machine. The client of a network file system
 * may write a page whole of which we changed a part, unless the file has locks of byte ranges
 * (Linux, fs/nfs/write.c, nfs_can_extend_write). So each part locks a byte of its own behind the
 * end of each file. Where locks are not to be had there is nothing to keep. */
void mp_parts_mark(const mp_outputs *outputs, const mp_part *part);

#endif
