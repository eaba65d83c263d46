/* SPDX-License-Identifier: Apache-2.0 */
/* layout/targets.h - the targets, one a file. */
#ifndef MP_LAYOUT_TARGETS_H
#define MP_LAYOUT_TARGETS_H

#include <moepack/layout.h>

extern const mp_target mp_target_megamoe_w4a8;

#endif
