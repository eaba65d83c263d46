/* SPDX-License-Identifier: Apache-2.0 */
/* tests/tools/analyzed.h - included before every file that clang-tidy reads. It sees one
 * file at a time, so that it cannot know that functions which report an error
 * never return 0, and takes the way on from there for possible. */
#ifndef MOEPACK_TOOLS_ANALYZED_H
#define MOEPACK_TOOLS_ANALYZED_H

#include "base/error.h"

#define mp_fail(err, code, ...) ((void)mp_fail(err, code, __VA_ARGS__), (int)(code))
#define mp_fail_errno(err, ...) ((void)mp_fail_errno(err, __VA_ARGS__), (int)MP_ERR_IO)
#define mp_fail_memory(err)     ((void)mp_fail_memory(err), (int)MP_ERR_IO)

#ifdef ANALYZED_COMMAND
#include "../../cmd/output.h"
#define cmd_fail(err, code, ...) ((void)cmd_fail(err, code, __VA_ARGS__), (int)(code))
#endif

#endif
