/* SPDX-License-Identifier: Apache-2.0 */
/* base/foreign.h - files that are not what their name says. */
#ifndef MP_BASE_FOREIGN_H
#define MP_BASE_FOREIGN_H

#include <stddef.h>

/* What content that begins so is, and what to do about it: "a Git LFS pointer ..."; null where it
 * is none of the things that downloads leave behind. */
const char *mp_foreign_content(const void *begin, size_t length);

/* Bytes that are enough to tell. */
#define MP_FOREIGN_BYTES 32

#endif
