/* SPDX-License-Identifier: Apache-2.0 */
/* base/select.h - one layer out of a list that the user types. */
#ifndef MP_BASE_SELECT_H
#define MP_BASE_SELECT_H

#include <moepack/base.h>

/* The one of `count` layers that a prefix or a number stands for; MP_ERR_USAGE where that is
 * none, or more. */
int mp_select_layer(const char *name, const char *const *prefixes, size_t count, size_t *index,
                    mp_error *err);

#endif
