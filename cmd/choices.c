/* SPDX-License-Identifier: Apache-2.0 */
/* Choices that several commands offer. */
#include "choices.h"

#include <moepack/numeric.h>
#include <moepack/place.h>

const char *choice_name(const cmd_choice *choices, int value)
{
    for (; choices->name; choices++)
        if (choices->value == value)
            return choices->name;
    return NULL;
}

const cmd_choice rounding_choices[] = {
    {"deepgemm", MP_ROUND_DEEPGEMM},
    {"ocp", MP_ROUND_OCP},
    {NULL, 0},
};
const cmd_choice scale_rule_choices[] = {
    {"ceil", MP_SCALE_CEIL},
    {"mse", MP_SCALE_MSE},
    {NULL, 0},
};
const cmd_choice shared_choices[] = {
    {"none", MP_SHARED_NONE},
    {"fused", MP_SHARED_FUSED},
    {"separate", MP_SHARED_SEPARATE},
    {NULL, 0},
};
const cmd_choice io_choices[] = {
    {"auto", MP_IO_AUTO},
    {"buffered", MP_IO_BUFFERED},
    {"direct", MP_IO_DIRECT},
    {NULL, 0},
};
const cmd_choice dispatch_choices[] = {
    {"nearest", MP_DISPATCH_NEAREST},
    {"round-robin", MP_DISPATCH_ROUND_ROBIN},
    {NULL, 0},
};
const cmd_choice waterfill_choices[] = {
    {"off", MP_WATERFILL_OFF},
    {"static", MP_WATERFILL_STATIC},
    {"dynamic", MP_WATERFILL_DYNAMIC},
    {NULL, 0},
};
