/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/svg.h - what drawings have in common: plain SVG without scripts or references, in the
 * reader's light or dark scheme. Numbers are whole, so that no locale changes how they look. */
#ifndef MOEPACK_CMD_SVG_H
#define MOEPACK_CMD_SVG_H

#include <stdint.h>
#include <stdio.h>

#define SVG_MARGIN 16u /* pixels around a drawing */

/* Opens a drawing, which "</svg>" closes. title: plain text, without <, > and &. */
void svg_begin(FILE *out, uint32_t width, uint32_t height, const char *title);

/* A text in the escapes of XML, control characters as '?'. */
void svg_text(FILE *out, const char *text);

/* Numbers of the first and the last of `count` things along an axis. */
void svg_ends(FILE *out, const char *thing, uint32_t left, uint32_t right, uint32_t y,
              uint32_t count);

/* Pixels of each of `cells` > 0 cells that share a room: 1 to `largest`. */
uint32_t svg_cell(uint32_t room, uint32_t cells, uint32_t largest);

#endif
