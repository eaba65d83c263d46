/* SPDX-License-Identifier: Apache-2.0 */
/* base/list.h - lists in text: "bias,input_scale". */
#ifndef MP_BASE_LIST_H
#define MP_BASE_LIST_H

#include <stdbool.h>

/* True if a comma-separated list has that item. list: may be null, which has none. */
bool mp_list_has(const char *list, const char *item);

#endif
