/* SPDX-License-Identifier: Apache-2.0 */
/*
 * checkpoint/compress.h - one safetensors file, compressed and back.
 *
 * The header makes frames of its own and so does each tensor, of MP_FRAME_BYTES of content and
 * less at its end, so that a tensor is read without its neighbours. The bytes depend on the
 * plain file, the level and the version of libzstd, never on threads.
 */
#ifndef MP_CHECKPOINT_COMPRESS_H
#define MP_CHECKPOINT_COMPRESS_H

#include <moepack/store.h>

/* Compresses the file `from`, plain or compressed, into `to`, which is replaced; synced.
 * level: not MP_ZSTD_NONE.
 * What can only be read from its beginning is read so. Takes about 35 MiB of memory a thread. */
int mp_file_compress(const char *from, const char *to, int level, const mp_context *context,
                     mp_error *err);

/* The reverse: the plain file. */
int mp_file_decompress(const char *from, const char *to, const mp_context *context, mp_error *err);

#endif
