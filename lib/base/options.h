/* SPDX-License-Identifier: Apache-2.0 */
/* base/options.h - option structs, which begin with their size: a program that was compiled when
 * they had fewer members goes on working. */
#ifndef MP_BASE_OPTIONS_H
#define MP_BASE_OPTIONS_H

#include <moepack/base.h>

/* Copies the options of a caller into `own`, a struct of `size` bytes called `type`; members that
 * the caller does not know are zero. given: may be null, which asks for zeros.
 * MP_ERR_USAGE for a size that this version does not know. */
int mp_options_take(const char *type, void *own, size_t size, const void *given, mp_error *err);

#endif
