/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/shard.h - runs that several machines share. */
#ifndef MOEPACK_CMD_SHARD_H
#define MOEPACK_CMD_SHARD_H

#include <moepack/work.h>

#include "options.h"

/* Which part a command is to do. */
typedef struct shard_choice {
    bool finish;  /* put the parts together */
    mp_part part; /* .count = 0: the run is not in parts; .how is the caller's */
} shard_choice;

/* Reads "2/3", "auto" (of a Slurm array or an indexed Kubernetes Job), or "finish"; null is the
 * whole run. MP_ERR_USAGE. */
int shard_parse(const char *text, shard_choice *choice, mp_error *err);

/* The line that `moepack finish` reads: where a command was given, and its words; malloc'ed, null
 * without memory or a directory. */
char *shard_how(const cmd_strings *words);

#endif
