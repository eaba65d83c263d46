/* SPDX-License-Identifier: Apache-2.0 */
/* base/words.h - the words for experts, as manifests, options and messages spell them. Those that
 * are public are in base.h. */
#ifndef MP_BASE_WORDS_H
#define MP_BASE_WORDS_H

#include <moepack/base.h>

/* Reads "bias,input_scale"; null is the empty set.
 * allowed: what may be in it. MP_ERR_USAGE for anything else. */
int mp_role_set_parse(const char *list, mp_role_set allowed, mp_role_set *set, mp_error *err);

/* The reverse, in the order of roles; always terminated. */
#define MP_ROLE_SET_TEXT 160
char *mp_role_set_text(mp_role_set set, char text[MP_ROLE_SET_TEXT]);

/* The dtype of that exact, case-sensitive name; false if there is none. */
bool mp_dtype_parse(const char *name, mp_dtype *dtype);

/* Width of one stored weight in bits, scales not counted: 4, 8, 16 or 32. */
unsigned mp_scheme_bits(mp_scheme scheme);

/* "deepgemm", "ocp"; a static string. */
const char *mp_rounding_name(mp_rounding rounding);
bool mp_rounding_parse(const char *name, mp_rounding *rounding);

/* "ceil", "mse"; a static string. */
const char *mp_scale_rule_name(mp_scale_rule rule);
bool mp_scale_rule_parse(const char *name, mp_scale_rule *rule);

/* "gate", "up", "down", "gate_up"; a static string. */
const char *mp_projection_name(mp_projection projection);
bool mp_projection_parse(const char *name, mp_projection *projection);

/* Matrices of a side: 2 of L1, 1 of L2; and the first of them. */
unsigned mp_side_parts(mp_side side);
mp_projection mp_side_first(mp_side side);

/* "none", "rows", "rows_paired", "cols", "cols_paired", "stacked"; a static string. */
const char *mp_fusion_name(mp_fusion fusion);
bool mp_fusion_parse(const char *name, mp_fusion *fusion);

/* True where matrices are columns of fused tensors, so that rows that are read together should be
 * many. */
bool mp_fusion_is_transposed(mp_fusion fusion);

/* The value of a word; false if there is none. */
bool mp_role_parse(const char *name, mp_role *role);
bool mp_shared_mode_parse(const char *name, mp_shared_mode *mode);

/* The role of the stored tensor that one of a pack is made from. */
mp_role mp_role_source(mp_role role);

/* "sgl", "fp4xfp4"; a static string. */
const char *mp_alphas_name(mp_alphas alphas);
bool mp_alphas_parse(const char *name, mp_alphas *alphas);

#endif
