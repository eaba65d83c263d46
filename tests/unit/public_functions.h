/* SPDX-License-Identifier: Apache-2.0 */
/* The functions that public headers declare, for tests of all of them. */
#ifndef MP_PUBLIC_FUNCTIONS_H
#define MP_PUBLIC_FUNCTIONS_H

#include <stddef.h>

/* Calls visit for each function, and pointer to one, that takes an mp_error. Returns how many there
 * are. */
size_t each_public_function(void (*visit)(const char *header, const char *function));

#endif
