/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/work.h - what commands that write many files say of it. */
#ifndef MOEPACK_CMD_WORK_H
#define MOEPACK_CMD_WORK_H

#include <jansson.h>
#include <moepack/pack.h>
#include <stdio.h>

#include "options.h"
#include "shard.h"

/* Prints `before` and the last part of a path, so that a file names no directory of this
 * machine. Nothing where path is null. */
void print_last_part(FILE *f, const char *before, const char *path);

/* Prints " --NAME VALUE", unless value is null. */
void print_option(FILE *f, const char *name, const char *value);

/* Prints the options that say how to requantize, those that are not the usual ones; but for
 * --rounding, whose default is the command's. */
void print_quant_options(FILE *f, mp_scale_rule scale_rule, double amax_floor,
                         bool allow_nonfinite);

/* What these commands have in common. */
typedef struct work_options {
    const char *out;
    bool resume, force, dry_run;
    const char *zstd; /* null: auto, where it is given */
    bool zstd_given;
    const char *shard; /* null: the whole run */
    bool sha256;
} work_options;

/* --zstd[=LEVEL|auto] of a command whose options S have `work`. */
#define OPT_ZSTD(S)                                                      \
    OPT_STRING(0, "zstd", "LEVEL", S, work.zstd,                         \
               "compress each file as it is finished: 1 to 22, or auto", \
               .flags = OPT_OPTIONAL_VALUE, .given = offsetof(S, work.zstd_given))

/* --shard and --sha256 of such a command. */
#define OPT_SHARD(S)                              \
    OPT_STRING(0, "shard", "PART", S, work.shard, \
               "do one part of the run: I/N, auto, or finish to put all parts together")
#define OPT_SHA256(S) OPT_FLAG(0, "sha256", S, work.sha256, "also write SHA256SUMS")

/* What the options come to. */
typedef struct work_terms {
    int zstd;
    shard_choice shard;
    char *how; /* that shard.part points to; owned */
} work_terms;

/* MP_ERR_USAGE for options that contradict each other, and for no OUT. */
int work_check(const work_options *o, mp_error *err);

/* The same, and reads what has to be read. */
int work_settle(const work_options *o, const common_options *common, work_terms *terms,
                mp_error *err);
void work_release(work_terms *terms);

/* A plan that is made, and what is printed of it. */
typedef struct work_job {
    const char *name; /* of the command */
    const common_options *common;
    const work_options *options;
    const work_terms *terms;
    const mp_context *context;
    const mp_plan *plan;
} work_job;

/* Prints warnings and the plan as the options say; unless they say so only, runs it, and prints
 * what was done. */
int work_do(const work_job *job, mp_error *err);

/* Whether OUT is there once the run has ended, to be looked at. */
bool work_writes_out(const work_options *o, const work_terms *terms);

/* Files, units, bytes and memory as JSON and, of an `out` that is written (else null) and was
 * compressed, what that gained; null without memory. */
json_t *work_json(const mp_work *work, const char *out, const mp_context *context);

#endif
