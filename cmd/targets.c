/* SPDX-License-Identifier: Apache-2.0 */
/* moepack targets: prints the table of target layouts. */
#include "commands.h"
#include "output.h"

#include <moepack/layout.h>
#include <string.h>

#define WIDTH  100 /* columns of a line */
#define INDENT 15  /* columns before the text of a line */

typedef struct targets_options {
    common_options common;
} targets_options;

/* Sizes that every target takes; names and dtypes do not depend on them. */
static const mp_dims sample_dims = {.hidden_size = 4096, .intermediate_size = 2048};

static json_t *tensor_json(const mp_slot_tensor *tensor)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:b}", "name", tensor->name, "side",
                     tensor->side == MP_L1 ? "l1" : "l2", "role", mp_role_name(tensor->role),
                     "dtype", mp_dtype_name(tensor->dtype), "optional", tensor->optional);
}

static json_t *tensors_json(const mp_target *target)
{
    mp_slot_tensor tensors[MP_TARGET_TENSORS];
    unsigned count = target->describe(&sample_dims, tensors);
    json_t *list = json_array();

    for (unsigned i = 0; i < count; i++)
        json_array_append_new(list, tensor_json(&tensors[i]));
    return list;
}

static json_t *target_json(const mp_target *target)
{
    return json_pack("{s:s, s:i, s:s, s:[s], s:o, s:s}", "name", target->name, "version",
                     (int)target->version, "engine", target->engine, "source_schemes",
                     mp_scheme_name(target->scheme), "tensors", tensors_json(target), "constraints",
                     target->constraints);
}

static int print_targets_json(const mp_target *const *targets, size_t count, mp_error *err)
{
    json_t *list = json_array();

    for (size_t i = 0; i < count; i++) {
        /* Null goes in nowhere: without memory the list would be short. */
        if (json_array_append_new(list, target_json(targets[i])) != 0) {
            json_decref(list);
            list = NULL;
            break;
        }
    }
    return print_json(list, err);
}

/* The tensors that are always there, or the optional ones; nothing if there are none. */
static void print_tensors(const mp_target *target, const char *heading, bool optional)
{
    mp_slot_tensor tensors[MP_TARGET_TENSORS];
    unsigned count = target->describe(&sample_dims, tensors);
    size_t column = 0;

    for (unsigned i = 0; i < count; i++) {
        const char *name = tensors[i].name, *dtype = mp_dtype_name(tensors[i].dtype);
        size_t length = strlen(name) + strlen(dtype) + strlen(", ") + 1;

        if (tensors[i].optional != optional)
            continue;
        if (column == 0) {
            printf("  %-*s", INDENT - 2, heading);
            column = INDENT;
        } else if (column + length > WIDTH) {
            printf(",\n%*s", INDENT, "");
            column = INDENT;
        } else {
            printf(", ");
        }
        printf("%s %s", name, dtype);
        column += length;
    }
    if (column > 0)
        putchar('\n');
}

static void print_line(const char *heading, const char *text)
{
    printf("  %-*s%s\n", INDENT - 2, heading, text);
}

static void print_target(const mp_target *target, const output_ink *ink)
{
    printf("%s%s/%u%s\n", ink->bold, target->name, target->version, ink->plain);
    print_line("kernel", target->engine);
    print_line("weights", mp_scheme_name(target->scheme));
    print_tensors(target, "tensors", false);
    print_tensors(target, "optional", true);
    print_line("constraints", target->constraints);
}

static int run_targets(const void *values, mp_error *err)
{
    const targets_options *o = values;
    size_t count;
    const mp_target *const *targets = mp_targets(&count);

    if (o->common.json)
        return print_targets_json(targets, count, err);

    output_ink ink = ink_for(stdout, &o->common);
    for (size_t i = 0; i < count; i++) {
        if (i > 0)
            putchar('\n');
        print_target(targets[i], &ink);
    }
    return 0;
}

static const cmd_option options[] = {OPT_JSON(targets_options), OPT_END};
static const targets_options defaults = {0};

const command command_targets = {
    .name = "targets",
    .summary = "list the target layouts and what their kernels require",
    .options = options,
    COMMAND_DEFAULTS(defaults),
    .run = run_targets,
};
