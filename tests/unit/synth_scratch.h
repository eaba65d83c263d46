/* SPDX-License-Identifier: Apache-2.0 */
/* Synthetic checkpoints in a scratch directory; for the tests of mp_synth. */
#ifndef MP_TEST_SYNTH_SCRATCH_H
#define MP_TEST_SYNTH_SCRATCH_H

#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <moepack/model.h>
#include <moepack/numeric.h>

#include "base/file.h"
#include "checkpoint/complete.h"
#include "synth/synth.h"

static char dir[256];
static mp_error err;
static mp_catalog catalog;

static inline void make_scratch(void)
{
    snprintf(dir, sizeof(dir), "%s/moepack-synth-XXXXXX", P_tmpdir);
    cr_assert_not_null(mkdtemp(dir));
    err = (mp_error){0};
    catalog = (mp_catalog){0};
}

static inline void remove_scratch(void)
{
    mp_catalog_release(&catalog);
    cr_assert_eq(mp_remove_tree(dir, &err), 0, "%s", err.message);
}

/* A path below the scratch directory; good until the next but three. */
static inline const char *in_dir(const char *name)
{
    static char paths[4][512];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof(paths[0]), "%s/%s", dir, name);
    return path;
}

/* A V4 checkpoint in small: two layers, of which one is a hash layer, and an MTP block. */
static inline mp_synth_options small_v4(void)
{
    return (mp_synth_options){
        .family = "deepseek_v4",
        .scheme = MP_SCHEME_MXFP4,
        .hidden_size = 288,
        .intermediate_size = 160,
        .num_experts = 7,
        .num_shared_experts = 2,
        .top_k = 3,
        .num_layers = 2,
        .num_hash_layers = 1,
        .num_mtp = 1,
        .vocab_size = 101,
        .routed_scaling_factor = 1.5,
        .seed = 11,
    };
}

/* A V3 checkpoint in small: a dense layer, an MoE layer, and the MTP block. */
static inline mp_synth_options small_v3(void)
{
    return (mp_synth_options){
        .family = "deepseek_v3",
        .scheme = MP_SCHEME_FP8_BLOCK,
        .hidden_size = 200,
        .intermediate_size = 150,
        .dense_intermediate_size = 333,
        .num_experts = 6,
        .num_shared_experts = 1,
        .top_k = 2,
        .num_layers = 2,
        .num_dense = 1,
        .num_mtp = 1,
        .vocab_size = 101,
        .routed_scaling_factor = 2.5,
        .seed = 11,
    };
}

static inline mp_synth_options small_qwen3(void)
{
    return (mp_synth_options){
        .family = "qwen3_moe",
        .scheme = MP_SCHEME_BF16,
        .hidden_size = 200,
        .intermediate_size = 150,
        .num_experts = 5,
        .top_k = 2,
        .num_layers = 2,
        .vocab_size = 101,
        .seed = 11,
    };
}

/* Makes a checkpoint under that name. */
static inline void make(const mp_synth_options *options, const char *name)
{
    cr_assert_eq(mp_synth(options, in_dir(name), NULL, &err), 0, "%s", err.message);
}

/* Makes a checkpoint and opens its catalog, which has to be without problems. */
static inline const mp_checkpoint *make_and_open(const mp_synth_options *options, const char *name)
{
    make(options, name);
    mp_catalog_release(&catalog);
    cr_assert_eq(mp_catalog_open(&catalog, in_dir(name), NULL, &err), 0, "%s", err.message);
    cr_assert_eq(mp_catalog_check(&catalog, &err), 0, "%s", err.message);
    return &catalog.checkpoint;
}

/* All bytes of a tensor; the caller frees them. */
static inline void *read_tensor(const mp_checkpoint *ckpt, const char *name)
{
    const mp_tensor *tensor = mp_checkpoint_find(ckpt, name);
    cr_assert_not_null(tensor, "no tensor %s", name);
    void *bytes = malloc(tensor->bytes);
    cr_assert_not_null(bytes);
    cr_assert_eq(mp_tensor_read(ckpt, tensor, 0, tensor->bytes, bytes, &err), 0, "%s", err.message);
    return bytes;
}

#endif
