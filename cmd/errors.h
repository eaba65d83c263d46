/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/errors.h - what requantizing cost, as repack and quantize report it. */
#ifndef MOEPACK_CMD_ERRORS_H
#define MOEPACK_CMD_ERRORS_H

#include <jansson.h>
#include <moepack/artifact.h>
#include <stdio.h>

/* A line a layer and projection: relative RMS error, SQNR in dB, weights that saturated or were
 * flushed to zero, blocks that could not pass through; and a line with the largest relative RMS
 * error and the sums. Nothing where count is 0. */
void print_error_table(const mp_layer_error *errors, size_t count, FILE *out);

/* The same as a JSON array; null without memory. An SQNR without bound is null. */
json_t *error_table_json(const mp_layer_error *errors, size_t count);

/* MP_ERR_CHECK when a relative RMS error is above the limit, naming the largest. */
int check_errors_above(const mp_layer_error *errors, size_t count, double limit, mp_error *err);

#endif
