/* SPDX-License-Identifier: Apache-2.0 */
/* base/select.h - lists of layers and ranks. */
#ifndef MP_BASE_SELECT_H
#define MP_BASE_SELECT_H

#include <moepack/base.h>

/* The one of `count` layers that a prefix or a number stands for; MP_ERR_USAGE where that is
 * none, or more. */
int mp_select_layer(const char *name, const char *const *prefixes, size_t count, size_t *index,
                    mp_error *err);

/* Marks the layers that a list selects.
 * list: "0-3,7,mtp.0": numbers and ranges name decoder layers by the number that ends
 *   their prefix ("model.layers.3"); anything else is a whole prefix. Null: all.
 * prefixes: the `count` layers there are; selected: [count], filled.
 * MP_ERR_USAGE for a list that cannot be read or an item that selects nothing. */
int mp_select_layers(const char *list, const char *const *prefixes, size_t count, bool *selected,
                     mp_error *err);

/* The same for ranks 0 .. ep-1: "0-3,7". */
int mp_select_ranks(const char *list, uint32_t ep, bool *selected, mp_error *err);

#endif
