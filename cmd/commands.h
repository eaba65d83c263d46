/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cmd/commands.h - the table of commands.
 *
 * To add a command NAME:
 *   1. cmd/NAME.c: an options struct, its option table, and a record
 *      `const command command_NAME` (see cmd/options.h; cmd/targets.c is a short
 *      example). It includes <moepack/...> and headers of cmd/ only: run() makes
 *      its library calls, prints, and returns 0 or the code that they failed with.
 *   2. One line in COMMAND_LIST below, in the order that `moepack --help` lists.
 *   3. man/moepack-NAME.1: SYNOPSIS as --help prints it, and every option. `make check`
 *      compares the two.
 */
#ifndef MOEPACK_CMD_COMMANDS_H
#define MOEPACK_CMD_COMMANDS_H

#include "options.h"

/* clang-format off */
#define COMMAND_LIST(X) \
    X(inspect)      \
    X(synth)        \
    X(targets)      \
    X(repack)       \
    X(unpack)       \
    X(extract)      \
    X(quantize)     \
    X(finish)       \
    X(checksums)    \
    X(compress)     \
    X(decompress)   \
    X(delta)        \
    X(apply)        \
    X(fold)         \
    X(verify)       \
    X(forward)      \
    X(diff)         \
    X(eplb)         \
    X(map)          \
    X(route)        \
    X(plan)         \
    X(bench)        \
    X(help)         \
    X(completion)
/* clang-format on */

#define COMMAND_DECLARE(name) extern const command command_##name;
COMMAND_LIST(COMMAND_DECLARE)

/* All commands in the order of the list, then null. */
extern const command *const commands[];

/* The command of that name, or null. */
const command *command_find(const char *name);

/* Fills err with what to say about a name that is no command. Returns MP_ERR_USAGE. */
int command_unknown(const char *name, mp_error *err);

#endif
