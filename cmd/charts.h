/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/charts.h - loads and packs as drawings in SVG, and as bars of characters. Texts are malloc'ed
 * and NUL-terminated; the caller frees them. MP_ERR_IO without memory. */
#ifndef MOEPACK_CMD_CHARTS_H
#define MOEPACK_CMD_CHARTS_H

#include <moepack/artifact.h>
#include <moepack/place.h>
#include <stdio.h>

/* Heat maps of GPU loads, layers by GPUs: trivial placement, EPLB's and what was made of it side by
 * side, with the balancedness of each layer. */
int eplb_svg(const mp_eplb *e, char **svg, mp_error *err);

/* The same figures: a line a layer, with bars `columns` wide. */
int eplb_bars(const mp_eplb *e, uint32_t columns, char **text, mp_error *err);

/* The choices that each rank gets: [ep]. */
int rank_load_svg(const uint64_t *choices, uint32_t ep, char **svg, mp_error *err);
int rank_load_bars(const uint64_t *choices, uint32_t ep, uint32_t columns, char **text,
                   mp_error *err);

/* Layers of a pack by ranks and their slots, colored by whether a slot holds the only copy of an
 * expert, one of several or a shared expert, and the bytes of each rank. */
int pack_svg(const mp_pack *pack, char **svg, mp_error *err);

/* ------------------------------------------------------------------------
 * What they are made with
 */

/* A number with three decimals, "0.981", whatever the locale. Returns text. */
#define THOUSANDTHS 32
char *thousandths(double value, char text[THOUSANDTHS]);

/* Closes a stream of open_memstream and leaves its text; MP_ERR_IO, and no text, when anything
 * written to it was lost. */
int text_finish(FILE *out, char **text, mp_error *err);

#endif
