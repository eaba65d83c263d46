/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint/config_said.h - what config.json says of a convention, worded and read back. */
#ifndef MP_CHECKPOINT_CONFIG_SAID_H
#define MP_CHECKPOINT_CONFIG_SAID_H

#include <jansson.h>

#include "checkpoint/conventions.h"

/* What depends on the checkpoint. */
typedef struct mp_said {
    bool ue8m0;        /* scales of FP8 blocks are powers of two */
    bool input_scales; /* there are scales of activations */
} mp_said;

/* quantization_config of experts in a convention that has a method. All values that the functions
 * of this file return are null without memory.
 * exceptions: a list of modules that are not quantized, as the method spells them; taken over, and
 *   may be null without memory. */
json_t *mp_said_config(const mp_convention *convention, const mp_said *said, json_t *exceptions);

/* A group of compressed-tensors' config_groups. targets: as exceptions. */
json_t *mp_said_group(const mp_convention *convention, const mp_said *said, json_t *targets);

/* hf_quant_config.json of ModelOpt, and who writes it. */
json_t *mp_said_beside(const mp_convention *convention, const char *producer, const char *version,
                       json_t *exceptions);

/* expert_dtype of DeepSeek V4. */
const char *mp_said_dtype(mp_scheme scheme);

/* The method of that name; MP_METHOD_NONE for null and names that are not known. */
mp_method mp_method_of(const char *name);

/* The key of a method's list of exceptions. */
const char *mp_method_exceptions(mp_method method);

/* What stands in weights of compressed-tensors. */
typedef struct mp_numbers {
    unsigned bits;
    const char *type;     /* "int", "float" */
    const char *strategy; /* "group", "channel" ... */
    uint32_t group_size;  /* of a row; 0: no groups */
    uint32_t block[2];    /* rows and columns of a block; 0: no blocks */
} mp_numbers;

mp_numbers mp_said_numbers(const mp_convention *convention);

#endif
