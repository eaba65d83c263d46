/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/files.h - small files that commands read and write whole. */
#ifndef MOEPACK_CMD_FILES_H
#define MOEPACK_CMD_FILES_H

#include <moepack/place.h>

/* Most bytes of a text that a command reads. */
#define TEXT_FILE_LIMIT (UINT64_C(1) << 30)

/* Puts "PATH: " before the message in err and returns its code. */
int blame_file(const char *path, mp_error *err);

/* The placement in a file, or where there is none the trivial one of a single row.
 * path: a placement file, - for standard input; null: trivial.
 * experts: logical experts of the model; 0, only with a path: as the file has it.
 * redundant: of the trivial placement; 0 with a path.
 * MP_ERR_USAGE when path, experts and redundant do not go together. */
int load_placement(const char *path, uint64_t experts, uint64_t redundant, mp_placement *placement,
                   mp_error *err);

/* Bytes of a file to write. */
typedef struct file_piece {
    const void *data;
    size_t bytes;
} file_piece;

/* Writes pieces one after another to a file, or to standard output where path is
 * "-". MP_ERR_IO. */
int write_pieces(const char *path, const file_piece *pieces, size_t count, mp_error *err);

/* The same for one text. */
int write_text(const char *path, const char *text, mp_error *err);

#endif
