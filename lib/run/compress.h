/* SPDX-License-Identifier: Apache-2.0 */
/* run/compress.h - how the outputs of a run know what of them is compressed. */
#ifndef MP_RUN_COMPRESS_H
#define MP_RUN_COMPRESS_H

#include "run/output.h"

/* Sets outputs->compressed of a file whose plain one is not there. */
int mp_outputs_look_compressed(mp_outputs *outputs, size_t file, const char *dir, mp_error *err);

/* "DIR/path.zst", malloc'ed, of a file of a work that compresses; null without memory. */
char *mp_out_compressed_path(const mp_out_file *file, const char *dir);

#endif
