/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/nearest.h - which of some names a misspelled word was meant to be. */
#ifndef MOEPACK_CMD_NEAREST_H
#define MOEPACK_CMD_NEAREST_H

#include <stddef.h>

typedef struct nearest {
    const char *word;
    const char *best; /* null while no name is near enough */
    size_t distance;  /* of best, or the first that is too far */
} nearest;

void nearest_init(nearest *n, const char *word);

/* Takes the name as best if it is nearer than all before. */
void nearest_offer(nearest *n, const char *name);

#endif
