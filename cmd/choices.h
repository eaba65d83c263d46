/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/choices.h - what options of several commands choose from. */
#ifndef MOEPACK_CMD_CHOICES_H
#define MOEPACK_CMD_CHOICES_H

#include "options.h"

/* The name of a value that is among them, or null. */
const char *choice_name(const cmd_choice *choices, int value);

extern const cmd_choice rounding_choices[];   /* mp_rounding */
extern const cmd_choice scale_rule_choices[]; /* mp_scale_rule */
extern const cmd_choice shared_choices[];     /* mp_shared_mode */
extern const cmd_choice io_choices[];         /* mp_io */
extern const cmd_choice dispatch_choices[];   /* mp_dispatch */
extern const cmd_choice waterfill_choices[];  /* mp_waterfill_mode */

#endif
