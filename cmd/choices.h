/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/choices.h - what options of several commands choose from. */
#ifndef MOEPACK_CMD_CHOICES_H
#define MOEPACK_CMD_CHOICES_H

#include "options.h"

extern const cmd_choice rounding_choices[];   /* mp_rounding */
extern const cmd_choice scale_rule_choices[]; /* mp_scale_rule */
extern const cmd_choice dispatch_choices[];   /* mp_dispatch */
extern const cmd_choice waterfill_choices[];  /* mp_waterfill_mode */

#endif
