/* SPDX-License-Identifier: Apache-2.0 */
/* diff of packed directories: second scales of gate and up, and placements that do not fit. */
#include <criterion/criterion.h>

#include <fcntl.h>

#include <moepack/diff.h>

#include "verify_pack.h"

static mp_diff_report found;
static const mp_diff_options any = {.size = sizeof(mp_diff_options), .tolerance = -1};

static void remove_all(void)
{
    mp_diff_report_release(&found);
    remove_pack();
}

TestSuite(diff_packs, .init = make_scratch, .fini = remove_all);

/* Multiplies one number of the checkpoint "source" in the scratch directory. */
static void scale_float(const char *source, const char *name, float factor)
{
    mp_checkpoint ckpt;
    char path[600];
    float value;

    succeed(mp_checkpoint_open(&ckpt, source, NULL, &err));
    const mp_tensor *tensor = mp_checkpoint_find(&ckpt, name);
    cr_assert_not_null(tensor, "%s", name);
    succeed(mp_tensor_read(&ckpt, tensor, 0, sizeof value, &value, &err));
    value *= factor;
    snprintf(path, sizeof path, "%s/%s", source, ckpt.shards[tensor->shard].name);
    int fd = open(path, O_WRONLY);
    cr_assert_eq(pwrite(fd, &value, sizeof value, (off_t)tensor->offset), (ssize_t)sizeof value);
    close(fd);
    mp_checkpoint_release(&ckpt);
}

/* A checkpoint "source" in the scratch directory. */
static void make_source(char source[512], const char *family, mp_scheme scheme, uint32_t layers)
{
    const mp_synth_options options = {.family = family,
                                      .scheme = scheme,
                                      .hidden_size = HIDDEN,
                                      .intermediate_size = 128,
                                      .num_experts = 3,
                                      .top_k = 2,
                                      .num_layers = layers,
                                      .vocab_size = 100};

    snprintf(source, 512, "%s/source", scratch);
    succeed(mp_synth(&options, source, NULL, &err));
}

Test(diff_packs, gate_and_up_have_a_second_scale_each)
{
    char source[512];

    make_source(source, "qwen3_moe", MP_SCHEME_NVFP4, 1);
    for (int expert = 0; expert < 3; expert++) {
        char name[128];

        snprintf(name, sizeof name, "model.layers.0.mlp.experts.%d.up_proj.weight_scale_2", expert);
        scale_float(source, name, 2);
    }
    pack_source(source, (mp_repack_options){.target = mp_target_find("megamoe-nvfp4"), .ep = 1});
    succeed(mp_diff(out, source, &any, NULL, &found, &err));
    cr_assert_geq(found.num_pairs, 9);
    cr_assert(found.equal, "worst %s", found.pairs[found.worst].name);
}

/* One for each layer or one for all, says the format. */
Test(diff_packs, refuses_a_placement_of_too_few_rows)
{
    char source[512];
    mp_manifest m;

    make_source(source, "deepseek_v4", MP_SCHEME_MXFP4, 3);
    pack_source(source, (mp_repack_options){.ep = 1});
    put_text(at(MP_PLACEMENT_NAME), "{\"physical_to_logical_map\": [[0,1,2],[0,1,2]]}");
    load_manifest(&m);
    digest_text(at(MP_PLACEMENT_NAME), m.placement_xxh3);
    save_manifest(&m);
    cr_assert_eq(mp_diff(out, source, &any, NULL, &found, &err), MP_ERR_INPUT, "%s", err.message);
    cr_assert_not_null(strstr(err.message, "placement.json: 2 rows for 3 layers"), "%s",
                       err.message);
}
