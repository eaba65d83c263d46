/* SPDX-License-Identifier: Apache-2.0 */
/* base/words.h - sets of roles in text. */
#ifndef MP_BASE_WORDS_H
#define MP_BASE_WORDS_H

#include <moepack/base.h>

/* Reads "bias,input_scale"; null is the empty set.
 * allowed: what may be in it. MP_ERR_USAGE for anything else. */
int mp_role_set_parse(const char *list, mp_role_set allowed, mp_role_set *set, mp_error *err);

/* The reverse, in the order of roles; always terminated. */
#define MP_ROLE_SET_TEXT 160
char *mp_role_set_text(mp_role_set set, char text[MP_ROLE_SET_TEXT]);

#endif
