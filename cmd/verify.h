/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/verify.h - what the reports of verify share. */
#ifndef MOEPACK_CMD_VERIFY_H
#define MOEPACK_CMD_VERIFY_H

#include <moepack/verify.h>
#include <stdio.h>

/* Writes a text in the escapes of XML, and control characters as '?'. */
void verify_put_xml(FILE *out, const char *text);

/* A fault's tensor without the layer, which stands before it, and without "experts.". */
const char *verify_short_name(const mp_fault *fault);

/* "pack" or what else was checked for what belongs to no rank, else "rank 3". */
const char *verify_part_name(const mp_verify_report *report, const mp_verify_part *part,
                             char text[32]);

/* A figure, or a dash where there is none. */
#define NUMBER_TEXT 32
const char *verify_number_text(double number, char text[NUMBER_TEXT]);

/* The report as a page of its own; name: of what was checked. In cmd/verify_html.c. */
void verify_write_html(FILE *out, const mp_verify_report *report, const char *name);

#endif
