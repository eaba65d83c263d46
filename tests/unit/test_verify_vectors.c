/* SPDX-License-Identifier: Apache-2.0 */
/* verify of what is neither weight nor scale: second scales, input scales and zero points,
 * of which some are there only where the source has them. */
#include "verify_pack.h"

static char source[512];
static mp_catalog catalog;

static const mp_synth_options base = {
    .family = "deepseek_v3",
    .scheme = MP_SCHEME_NVFP4,
    .style = MP_STYLE_MODELOPT,
    .hidden_size = 384,
    .intermediate_size = 256,
    .num_experts = 4,
    .num_shared_experts = 1,
    .top_k = 2,
    .num_layers = 2,
    .vocab_size = 48,
    .routed_scaling_factor = 1,
    .seed = 5,
};

static void make(mp_scheme scheme, mp_synth_style style, mp_repack_options options)
{
    mp_synth_options synth = base;

    synth.scheme = scheme;
    synth.style = style;
    make_scratch();
    snprintf(source, sizeof source, "%s/source", scratch);
    succeed(mp_synth(&synth, source, NULL, &err));
    options.ep = 2;
    pack_source(source, options);
    succeed(mp_catalog_open(&catalog, source, NULL, &err));
}

/* On two ranks, experts 0 1 and 2 3. */
static void make_nvfp4(mp_synth_style style, const char *drop)
{
    make(MP_SCHEME_NVFP4, style,
         (mp_repack_options){.target = mp_target_find("megamoe-nvfp4"), .drop = drop});
}

static void remove_all(void)
{
    mp_catalog_release(&catalog);
    remove_pack();
}

TestSuite(verify_vectors, .fini = remove_all);

static void verify_now(void)
{
    succeed(verify_with((mp_verify_options){.size = sizeof(mp_verify_options),
                                            .level = MP_VERIFY_EXACT,
                                            .source = source},
                        2));
}

static const mp_matrix *matrix(unsigned layer, unsigned expert, mp_projection projection)
{
    return &catalog.layers[layer].experts[expert].matrix[projection];
}

static float read_float(const mp_tensor *tensor)
{
    float value;

    succeed(mp_tensor_read(&catalog.checkpoint, tensor, 0, sizeof value, &value, &err));
    return value;
}

/* Puts a float into a vector, and takes the fault that this makes. */
static void expect_float(uint32_t rank, const char *layer, const char *name, unsigned slot,
                         unsigned per_slot, unsigned element, float wrong, const char *format, ...)
    __attribute__((format(printf, 8, 9)));
static void expect_float(uint32_t rank, const char *layer, const char *name, unsigned slot,
                         unsigned per_slot, unsigned element, float wrong, const char *format, ...)
{
    uint64_t at = (slot * per_slot + element) * sizeof(float);
    char tensor[128], detail[400];
    va_list args;
    float right;

    snprintf(tensor, sizeof tensor, "%s.experts.%s", layer, name);
    peek(rank, tensor, at, &right, sizeof right);
    poke(rank, tensor, at, &wrong, sizeof wrong);
    seal();
    verify_now();
    expect_count(1);
    va_start(args, format);
    vsnprintf(detail, sizeof detail, format, args);
    va_end(args);
    expect(0, MP_VERIFY_EXACT, rank, layer, slot, tensor, element, detail);
    cr_expect_str_eq(report.faults[0].detail, detail);
    poke(rank, tensor, at, &right, sizeof right);
}

Test(verify_vectors, names_second_scales_and_input_scales)
{
    const char *layer = "model.layers.1";

    make_nvfp4(MP_STYLE_MODELOPT, NULL);
    verify_now();
    expect_count(0);
    cr_expect_eq(report.slots, 2 * 4);
    cr_expect_eq(report.tensors, 2 * 2 * 9);
    const mp_tensor *up = matrix(1, 3, MP_UP)->global, *down = matrix(1, 2, MP_DOWN)->global;
    expect_float(1, layer, "l1_alpha", 1, 2, 1, 0.5f, "holds 0.5 where %s says %.9g", up->name,
                 (double)read_float(up));
    expect_float(1, layer, "l2_alpha", 0, 1, 0, 3, "holds 3 where %s says %.9g", down->name,
                 (double)read_float(down));
    const mp_tensor *gate_in = matrix(1, 1, MP_GATE)->input_scale;
    const mp_tensor *down_in = matrix(1, 0, MP_DOWN)->input_scale;
    expect_float(0, layer, "l1_input_scale", 1, 1, 0, -1, "holds -1 where %s says %.9g",
                 gate_in->name, (double)read_float(gate_in));
    expect_float(0, layer, "l2_input_scale", 0, 1, 0, 7, "holds 7 where %s says %.9g",
                 down_in->name, (double)read_float(down_in));
    expect_float(0, layer, "l2_act_scale", 0, 1, 0, 7, "holds 7 where %s says %.9g", down_in->name,
                 (double)read_float(down_in));
}

/* DeepGEMM's own alpha of L1 is the product of the second scale and the input scale. */
Test(verify_vectors, names_what_is_folded)
{
    const char *layer = "model.layers.1";

    make(MP_SCHEME_NVFP4, MP_STYLE_MODELOPT,
         (mp_repack_options){.target = mp_target_find("megamoe-nvfp4"),
                             .alphas = MP_ALPHAS_FP4XFP4});
    verify_now();
    expect_count(0);
    cr_expect_eq(report.tensors, 2 * 2 * 10);
    const mp_tensor *second = matrix(1, 3, MP_GATE)->global, *up = matrix(1, 3, MP_UP)->global;
    const mp_tensor *in = matrix(1, 3, MP_GATE)->input_scale;
    float product = read_float(second) * read_float(in);
    expect_float(1, layer, "l1_alpha", 1, 1, 0, 0.5f,
                 "holds 0.5 where %s, times the second scale, says %.9g", in->name,
                 (double)product);
    expect_float(1, layer, "l1_second_scale", 1, 2, 1, 0.5f, "holds 0.5 where %s says %.9g",
                 up->name, (double)read_float(up));
}

/* compressed-tensors divides by its second scale, and both are packed. */
Test(verify_vectors, names_scales_that_divide)
{
    const char *layer = "model.layers.0";

    make_nvfp4(MP_STYLE_COMPRESSED_TENSORS, NULL);
    verify_now();
    expect_count(0);
    const mp_tensor *up = matrix(0, 2, MP_UP)->global;
    float divisor = read_float(up);
    expect_float(1, layer, "l1_alpha", 0, 2, 1, 0.5f, "holds 0.5 where %s, inverted, says %.9g",
                 up->name, (double)(1 / divisor));
    expect_float(1, layer, "l1_global_scale", 0, 2, 1, 1, "holds 1 where %s says %.9g", up->name,
                 (double)divisor);
    const mp_tensor *down_in = matrix(0, 0, MP_DOWN)->input_scale;
    expect_float(0, layer, "l2_act_scale", 0, 1, 0, 7, "holds 7 where %s, inverted, says %.9g",
                 down_in->name, (double)(1 / read_float(down_in)));
}

Test(verify_vectors, names_second_scales_that_were_chosen)
{
    const char *layer = "model.layers.0";
    float chosen;

    make(MP_SCHEME_BF16, MP_STYLE_USUAL,
         (mp_repack_options){.target = mp_target_find("megamoe-nvfp4"),
                             .quantize = true,
                             .quantize_to = MP_SCHEME_NVFP4,
                             .quant = {.rounding = MP_ROUND_OCP}});
    verify_now();
    expect_count(0);
    peek(0, "model.layers.0.experts.l1_alpha", 0, &chosen, sizeof chosen);
    expect_float(0, layer, "l1_alpha", 0, 2, 0, 2, "holds 2 where %s gets the second scale %.9g",
                 matrix(0, 0, MP_GATE)->weight->name, (double)chosen);
}

Test(verify_vectors, counts_elements_that_differ)
{
    float wrong[3] = {1, 2, 3};

    make(MP_SCHEME_INT8_CHANNEL, MP_STYLE_MODELSLIM,
         (mp_repack_options){.target = mp_target_find("fuseep-1")});
    verify_now();
    expect_count(0);
    poke(1, "model.layers.0.experts.w13_weight_offset", (512 + 256 + 30) * sizeof(float), wrong,
         sizeof wrong);
    seal();
    verify_now();
    expect_count(1);
    char detail[300];
    snprintf(detail, sizeof detail, "holds 1 where %s row 30 says 0; 3 of 512 differ",
             matrix(0, 3, MP_UP)->offset->name);
    expect(0, MP_VERIFY_EXACT, 1, "model.layers.0", 1, "model.layers.0.experts.w13_weight_offset",
           256 + 30, detail);
    cr_expect_str_eq(report.faults[0].detail, detail);
}

/* ------------------------------------------------------------------------
 * There or not
 */

/* Writes a rank's file anew without a tensor, or with another name for it. */
static void rewrite_without(uint32_t rank, const char *name, const char *new_name)
{
    static const char *const metadata[] = {
        "format",  "moepack", "format_version", "1", "target", "megamoe-nvfp4",
        "ep_rank", "0",       "ep_size",        "2"};
    uint64_t header_bytes, offsets[64];
    mp_tensor_spec specs[64];
    uint8_t *data[64];
    size_t count = 0;
    mp_checkpoint file;
    char *header;
    int fd;

    cr_assert_eq(rank, 0);
    succeed(mp_checkpoint_open(&file, rank_file(rank), NULL, &err));
    qsort(file.tensors, file.num_tensors, sizeof *file.tensors, by_offset);
    for (size_t i = 0; i < file.num_tensors; i++) {
        const mp_tensor *t = &file.tensors[i];
        bool named = strcmp(t->name, name) == 0;

        if (named && !new_name)
            continue;
        specs[count] = (mp_tensor_spec){named ? new_name : t->name, t->dtype, t->rank, t->shape};
        data[count] = malloc(t->bytes);
        succeed(mp_tensor_read(&file, t, 0, t->bytes, data[count++], &err));
    }
    succeed(mp_safetensors_header(specs, count, metadata, 5, MP_SAFETENSORS_ALIGN, &header,
                                  &header_bytes, offsets, &err));
    cr_assert_eq(unlink(rank_file(rank)), 0);
    succeed(mp_open_write(rank_file(rank), &fd, &err));
    succeed(mp_pwrite_all(fd, header, header_bytes, 0, "", &err));
    for (size_t i = 0; i < count; i++) {
        succeed(mp_pwrite_all(fd, data[i], offsets[i + 1] - offsets[i], offsets[i], "", &err));
        free(data[i]);
    }
    succeed(mp_file_close(fd, "", &err));
    free(header);
    mp_checkpoint_release(&file);
}

/* The manifest lists it, and says it was not dropped. */
Test(verify_vectors, finds_an_optional_tensor_that_is_missing)
{
    const char *name = "model.layers.1.experts.l2_input_scale";

    make_nvfp4(MP_STYLE_MODELOPT, NULL);
    rewrite_without(0, name, NULL);
    verify_now();
    expect(0, MP_VERIFY_STRUCTURE, 0, NULL, -1, NULL, -1, "truncated");
    seal();
    verify_now();
    expect_count(1);
    expect(0, MP_VERIFY_EXACT, 0, "model.layers.1", -1, name, -1,
           "missing, but the source has such tensors");
}

Test(verify_vectors, finds_an_optional_tensor_that_the_source_has_not)
{
    const char *name = "model.layers.1.experts.l2_global_scale";

    make_nvfp4(MP_STYLE_MODELOPT, NULL);
    rewrite_without(0, "model.layers.1.experts.l2_input_scale", name);
    seal();
    verify_now();
    expect_count(2);
    expect(0, MP_VERIFY_EXACT, 0, "model.layers.1", -1, name, -1,
           "there, but the source has no such tensors");
    expect(1, MP_VERIFY_EXACT, 0, "model.layers.1", -1, "model.layers.1.experts.l2_input_scale", -1,
           "missing");
}

Test(verify_vectors, does_not_miss_what_was_dropped)
{
    mp_manifest m;

    make_nvfp4(MP_STYLE_MODELOPT, "input_scale");
    verify_now();
    expect_count(0);
    cr_expect_eq(report.tensors, 2 * 2 * 6);
    load_manifest(&m);
    m.dropped = 0;
    save_manifest(&m);
    verify_now();
    expect_count(2);
    expect(0, MP_VERIFY_EXACT, -1, "model.layers.0", -1, NULL, -1,
           "moepack.json: form of the experts: no input_scale of gate, the source has "
           "model.layers.0.mlp.experts.0.gate_proj.input_scale");
}

Test(verify_vectors, misses_what_is_not_optional)
{
    mp_verify_options options = {.size = sizeof(mp_verify_options), .level = MP_VERIFY_STRUCTURE};

    make_nvfp4(MP_STYLE_MODELOPT, NULL);
    rewrite_without(0, "model.layers.0.experts.l2_alpha", "model.layers.0.experts.l2_global_scale");
    seal();
    succeed(verify_with(options, 1));
    expect_count(2); /* the index counts what has to be there */
    expect(1, MP_VERIFY_STRUCTURE, 0, "model.layers.0", -1, "model.layers.0.experts.l2_alpha", -1,
           "missing");
    expect(0, MP_VERIFY_STRUCTURE, 0, NULL, -1, NULL, -1, "total_size");
}
