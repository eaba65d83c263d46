/* SPDX-License-Identifier: Apache-2.0 */
/* The form of a layer's experts as a value that owns its names. */
#include <moepack/artifact.h>

#include <stdlib.h>
#include <string.h>

void mp_form_release(mp_form *form)
{
    for (size_t i = 0; i < form->num_tensors; i++)
        free(form->tensors[i].name);
    free(form->tensors);
    memset(form, 0, sizeof *form);
}
