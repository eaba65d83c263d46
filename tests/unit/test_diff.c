/* SPDX-License-Identifier: Apache-2.0 */
/* diff: every family's experts against values of other hands, every target's packs against
 * their source, and measures against numbers worked out here. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include <math.h>

#include <moepack/diff.h>

#include "base/error.h"
#include "diff/diff.h"
#include "verify_pack.h"

static mp_diff_report found;
static const mp_diff_options any = {.size = sizeof(mp_diff_options), .tolerance = -1};

static void compare_as(const char *a, const char *b, const mp_diff_options *options)
{
    mp_diff_report_release(&found);
    succeed(mp_diff(a, b, options, NULL, &found, &err));
}

static void compare(const char *a, const char *b)
{
    compare_as(a, b, &any);
}

static const mp_diff_pair *pair_of(const char *name)
{
    for (size_t i = 0; i < found.num_pairs; i++)
        if (strcmp(found.pairs[i].name, name) == 0)
            return &found.pairs[i];
    cr_assert_fail("no pair %s", name);
    return NULL;
}

static void remove_all(void)
{
    mp_diff_report_release(&found);
    remove_pack();
}

TestSuite(diff, .init = make_scratch, .fini = remove_all);

/* A path in the scratch directory; good until the eighth call after this one. */
static const char *in_scratch(const char *name)
{
    static char paths[8][1024];
    static unsigned next;
    char *path = paths[next++ % 8];

    snprintf(path, sizeof paths[0], "%s/%s", scratch, name);
    return path;
}

/* ------------------------------------------------------------------------
 * Files
 */

typedef struct written {
    mp_tensor_spec spec;
    const void *data;
} written;

static const char *write_tensors(const char *name, const written *tensors, size_t count)
{
    mp_tensor_spec *specs = malloc(count * sizeof *specs);
    uint64_t *offsets = malloc((count + 1) * sizeof *offsets), bytes;
    const char *path = in_scratch(name);
    char *header, *file;

    for (size_t i = 0; i < count; i++)
        specs[i] = tensors[i].spec;
    succeed(mp_safetensors_header(specs, count, NULL, 0, 8, &header, &bytes, offsets, &err));
    file = malloc(offsets[count] + 1);
    memcpy(file, header, bytes);
    for (size_t i = 0; i < count; i++)
        if (offsets[i + 1] > offsets[i])
            memcpy(file + offsets[i], tensors[i].data, offsets[i + 1] - offsets[i]);
    put_bytes(path, file, offsets[count]);
    free(file);
    free(header);
    free(offsets);
    free(specs);
    return path;
}

/* A file of one tensor, "x". */
static const char *write_one(const char *name, mp_dtype dtype, uint32_t rank, const uint64_t *shape,
                             const void *data)
{
    return write_tensors(name, &(written){{"x", dtype, rank, shape}, data}, 1);
}

static const mp_diff_pair *compare_ones(mp_dtype type_a, const void *a, mp_dtype type_b,
                                        const void *b, uint64_t n)
{
    const char *path_a = write_one("a.safetensors", type_a, 1, &n, a);
    const char *path_b = write_one("b.safetensors", type_b, 1, &n, b);

    compare(path_a, path_b);
    cr_assert_eq(found.num_pairs, 1);
    return pair_of("x");
}

static const mp_diff_pair *compare_floats(const float *a, const float *b, uint64_t n)
{
    return compare_ones(MP_F32, a, MP_F32, b, n);
}

/* ------------------------------------------------------------------------
 * Measures
 */

Test(diff, measures)
{
    const float a[] = {1, 2, 3}, b[] = {1, 2, 5};
    const mp_diff_pair *x = compare_floats(a, b, 3);

    cr_assert_not(found.equal);
    cr_assert_not(x->equal);
    cr_assert(x->differs);
    cr_assert_eq(x->max_abs, 2);
    cr_assert_float_eq(x->rel_l2, 2 / sqrt(30), 1e-15);
    cr_assert_float_eq(x->sqnr_db, 10 * log10(30. / 4), 1e-12);
    cr_assert_null(x->note);
    x = compare_floats(b, a, 3);
    cr_assert_float_eq(x->rel_l2, 2 / sqrt(14), 1e-15);
}

Test(diff, equal_numbers)
{
    const float a[] = {1, NAN, -INFINITY}, b[] = {1, NAN, -INFINITY};
    const mp_diff_pair *x = compare_floats(a, b, 3);

    cr_assert(found.equal);
    cr_assert(x->equal);
    cr_assert_eq(x->max_abs, 0);
    cr_assert_eq(x->rel_l2, 0);
    cr_assert_eq(x->sqnr_db, INFINITY);
}

Test(diff, equal_numbers_of_two_types)
{
    const float a[] = {1, NAN, INFINITY, -0.f};
    const uint16_t b[] = {0x3f80, 0xffc1, 0x7f80, 0};
    const int64_t c[] = {-3, 1 << 20, 0};
    const double d[] = {-3, 1 << 20, -0.};

    cr_assert(compare_ones(MP_F32, a, MP_BF16, b, 4)->equal);
    cr_assert(found.equal);
    cr_assert(compare_ones(MP_I64, c, MP_F64, d, 3)->equal);
}

Test(diff, bits_that_differ_in_value_only)
{
    const float a[] = {1, 0}, b[] = {1, -0.f};
    const mp_diff_pair *x = compare_floats(a, b, 2);

    cr_assert_not(x->equal);
    cr_assert_eq(x->max_abs, 0);
    cr_assert_eq(x->rel_l2, 0);
    cr_assert_not(found.equal);
    compare_as(in_scratch("a.safetensors"), in_scratch("b.safetensors"),
               &(mp_diff_options){.size = sizeof(mp_diff_options), .tolerance = 0});
    cr_assert(found.equal);
    cr_assert_eq(found.tolerated, 1);
    cr_assert_not(pair_of("x")->equal);
}

Test(diff, what_has_no_measure)
{
    const float a[] = {1, 2, 3}, nan[] = {1, NAN, 3}, inf[] = {1, INFINITY, 3}, zeros[] = {0, 0, 0};
    const float minus[] = {1, -INFINITY, 3};
    const struct {
        const float *a, *b;
    } cases[] = {{a, nan}, {nan, a}, {a, inf}, {inf, a}, {inf, minus}, {nan, inf}};

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const mp_diff_pair *x = compare_floats(cases[i].a, cases[i].b, 3);

        cr_assert_not(x->equal, "case %zu", i);
        cr_assert(isnan(x->max_abs) && isnan(x->rel_l2) && isnan(x->sqnr_db), "case %zu", i);
    }
    const mp_diff_pair *x = compare_floats(a, zeros, 3);
    cr_assert_eq(x->max_abs, 3);
    cr_assert_eq(x->rel_l2, INFINITY);
}

/* More than are decoded at a time, and no multiple. */
Test(diff, long_tensors)
{
    enum { COUNT = 3 * 128 * 4096 + 4097 };
    uint16_t *a = calloc(COUNT, sizeof *a), *b = calloc(COUNT, sizeof *b);
    const mp_diff_pair *x;

    for (size_t i = 0; i < COUNT; i++)
        a[i] = b[i] = 0x3f80;
    b[COUNT - 1] = 0x4000; /* 2 */
    b[1] = 0xbf80;         /* -1 */
    x = compare_ones(MP_BF16, a, MP_BF16, b, COUNT);
    cr_assert_eq(x->max_abs, 2);
    cr_assert_float_eq(x->rel_l2, sqrt(5. / (COUNT + 3)), 1e-15);
    a[1] = 0xbf80;
    a[COUNT - 1] = 0x4000;
    cr_assert(compare_ones(MP_BF16, a, MP_BF16, b, COUNT)->equal);
    free(a);
    free(b);
}

Test(diff, shapes)
{
    const uint64_t row[] = {1, 6}, column[] = {6, 1}, none[] = {0, 3}, flat[] = {6};
    const float values[6] = {1, 2, 3, 4, 5, 6};

    compare(write_one("a.safetensors", MP_F32, 2, row, values),
            write_one("b.safetensors", MP_F32, 2, column, values));
    cr_assert_str_eq(pair_of("x")->note, "[1, 6], in the other [6, 1]");
    cr_assert(isnan(pair_of("x")->rel_l2));
    cr_assert_not(found.equal);
    compare(in_scratch("a.safetensors"), write_one("b.safetensors", MP_F32, 1, flat, values));
    cr_assert_str_eq(pair_of("x")->note, "[1, 6], in the other [6]");
    compare(write_one("a.safetensors", MP_F32, 2, none, values),
            write_one("b.safetensors", MP_BF16, 2, none, values));
    cr_assert(found.equal);
    compare(write_one("a.safetensors", MP_F32, 0, NULL, values),
            write_one("b.safetensors", MP_F32, 0, NULL, values + 1));
    cr_assert_eq(pair_of("x")->max_abs, 1);
    compare(write_one("a.safetensors", MP_C64, 1, (const uint64_t[]){2}, values),
            write_one("b.safetensors", MP_F32, 1, (const uint64_t[]){2}, values));
    cr_assert_str_eq(pair_of("x")->note, "[2] of C64, in the other [2]");
}

Test(diff, tensors_on_one_side)
{
    const uint64_t one = 1;
    const float zero = 0;
    const written a[] = {{{"b", MP_F32, 1, &one}, &zero}, {{"d", MP_F32, 1, &one}, &zero}};
    const written b[] = {{{"a", MP_F32, 1, &one}, &zero},
                         {{"b", MP_F32, 1, &one}, &zero},
                         {{"c", MP_F32, 1, &one}, &zero}};

    compare(write_tensors("a.safetensors", a, 2), write_tensors("b.safetensors", b, 3));
    cr_assert_not(found.equal);
    cr_assert_eq(found.num_pairs, 1);
    cr_assert_eq(found.differing, 0);
    cr_assert_eq(found.num_only[0], 1);
    cr_assert_str_eq(found.only_in[0][0], "d");
    cr_assert_eq(found.num_only[1], 2);
    cr_assert_str_eq(found.only_in[1][0], "a");
    cr_assert_str_eq(found.only_in[1][1], "c");
}

/* ------------------------------------------------------------------------
 * Types
 */

Test(diff_values, types)
{
    static const struct {
        mp_dtype dtype;
        uint64_t code;
        double value;
    } cases[] = {
        {MP_BOOL, 1, 1},
        {MP_U8, 0xff, 255},
        {MP_I8, 0x80, -128},
        {MP_U16, 0xfffe, 65534},
        {MP_I16, 0xfffe, -2},
        {MP_U32, 0xfffffffd, 4294967293.},
        {MP_I32, 0xfffffffd, -3},
        {MP_U64, 1ull << 63, 0x1p63},
        {MP_I64, 1ull << 63, -0x1p63},
        {MP_F16, 0x3555, 0.333251953125},
        {MP_F16, 0x0001, 0x1p-24},
        {MP_BF16, 0xc049, -3.140625},
        {MP_F32, 0x40490fdb, 3.1415927410125732},
        {MP_F64, 0x400921fb54442d18, 3.141592653589793},
        {MP_F8_E8M0, 0, 0x1p-127},
        {MP_F8_E8M0, 254, 0x1p127},
        {MP_F8_E8M0, 255, NAN},
        {MP_F8_E4M3, 0x7e, 448},
        {MP_F8_E4M3, 0x81, -0x1p-9},
        {MP_F8_E4M3, 0x7f, NAN},
        {MP_F8_E4M3, 0xff, NAN},
        {MP_F8_E5M2, 0x7b, 57344},
        {MP_F8_E5M2, 0x03, 0x3p-16},
        {MP_F8_E5M2, 0xfc, -INFINITY},
        {MP_F8_E5M2, 0x7d, NAN},
        {MP_F8_E4M3FNUZ, 0x7f, 240},
        {MP_F8_E4M3FNUZ, 0x01, 0x1p-10},
        {MP_F8_E4M3FNUZ, 0x80, NAN},
        {MP_F8_E5M2FNUZ, 0x7f, 57344},
        {MP_F8_E5M2FNUZ, 0x81, -0x1p-17},
        {MP_F8_E5M2FNUZ, 0x80, NAN},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint8_t bytes[16] = {0};
        double value;

        memcpy(bytes + mp_dtype_bits(cases[i].dtype) / 8, &cases[i].code, 8);
        mp_diff_plain_values(cases[i].dtype, bytes, 1, 1, &value);
        cr_assert(value == cases[i].value || (isnan(value) && isnan(cases[i].value)),
                  "%s 0x%llx: %g", mp_dtype_name(cases[i].dtype), (unsigned long long)cases[i].code,
                  value);
    }
}

/* Elements that do not fill bytes, from any first one. */
Test(diff_values, narrow_types)
{
    static const double e2m1[] = {0, .5, 1, 1.5, 2, 3, 4, 6};
    const uint8_t nibbles[] = {0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe};
    /* Codes 0x01, 0x1f, 0x20, 0x3f of 6 bits: 0x01 | 0x1f << 6 | 0x20 << 12 | 0x3f << 18. */
    const uint8_t sixes[] = {0xc1, 0x07, 0xfe};
    const double e2m3[] = {0.125, 7.5, 0, -7.5}, e3m2[] = {0.0625, 28, 0, -28};

    for (unsigned first = 0; first < 16; first++) {
        double value;

        mp_diff_plain_values(MP_F4, nibbles, first, 1, &value);
        cr_assert_eq(value, first < 8 ? e2m1[first] : -e2m1[first - 8], "%u: %g", first, value);
    }
    for (unsigned first = 0; first < 4; first++) {
        double values[4];

        mp_diff_plain_values(MP_F6_E2M3, sixes, first, 4 - first, values);
        cr_assert_eq(values[3 - first], e2m3[3]);
        cr_assert_eq(values[0], e2m3[first]);
        mp_diff_plain_values(MP_F6_E3M2, sixes, first, 4 - first, values);
        cr_assert_eq(values[0], e3m2[first]);
    }
}

/* ------------------------------------------------------------------------
 * Families
 */

typedef struct family_case {
    char name[32];
    double near; /* what the values may be off */
    bool latent;
} family_case;

/* "model.layers.0.1.w3" as Qwen3's naming has it; null for what is no weight. */
static char *usual_name(const char *truth)
{
    const char *w = strrchr(truth, '.'), *end = w, *projection;
    const char *layer = strncmp(truth, "layers.", 7) == 0 ? "model." : "";

    while (end > truth && end[-1] != '.')
        end--;
    if (strcmp(w, ".w1") == 0)
        projection = "gate_proj";
    else if (strcmp(w, ".w3") == 0)
        projection = "up_proj";
    else if (strcmp(w, ".w2") == 0)
        projection = "down_proj";
    else
        return NULL;
    if (strncmp(end, "shared.", 7) == 0)
        return mp_format("%s%.*smlp.shared_experts.%s.weight", layer, (int)(end - truth), truth,
                         projection);
    return mp_format("%s%.*smlp.experts.%.*s.%s.weight", layer, (int)(end - truth), truth,
                     (int)(w - end), end, projection);
}

/* Writes the values of a fixture's truth.st as a checkpoint; returns how many matrices. */
static size_t write_truth(const family_case *family)
{
    mp_checkpoint truth;
    written *tensors;
    size_t count = 0;
    char path[256];

    snprintf(path, sizeof path, "testdata/fixtures/%s/truth.st", family->name);
    succeed(mp_checkpoint_open(&truth, path, NULL, &err));
    tensors = calloc(truth.num_tensors, sizeof *tensors);
    for (size_t i = 0; i < truth.num_tensors; i++) {
        const mp_tensor *t = &truth.tensors[i];
        char *name = usual_name(t->name);
        void *data = malloc(t->bytes);

        succeed(mp_tensor_read(&truth, t, 0, t->bytes, data, &err));
        tensors[count] = (written){{name, t->dtype, t->rank, t->shape}, data};
        if (name)
            count++;
        else
            free(data);
    }
    succeed(mp_make_dir(in_scratch("truth"), &err));
    write_tensors("truth/model.safetensors", tensors, count);
    for (size_t i = 0; i < count; i++) {
        free((void *)(uintptr_t)tensors[i].spec.name);
        free((void *)(uintptr_t)tensors[i].data);
    }
    free(tensors);
    mp_checkpoint_release(&truth);
    if (family->latent)
        put_text(in_scratch("truth/config.json"),
                 "{\"hidden_size\": 192, \"moe_latent_size\": 96, \"n_shared_experts\": 2}");
    return count;
}

/* Values of the second scale of nvfp4 were rounded once more by who made these. */
ParameterizedTestParameters(diff, families)
{
    static family_case cases[] = {
        {"ct-fp8-block", 0, false},
        {"ct-fp8-tensor", 0, false},
        {"ct-int8", 0, false},
        {"ct-mxfp4", 0, false},
        {"ct-nvfp4", 3e-7, false},
        {"f4-mxfp4", 0, false},
        {"glm-bf16", 0, false},
        {"glm-fp8-channel", 0, false},
        {"gptoss-bf16-fused-c", 0, false},
        {"gptoss-mxfp4", 0, false},
        {"kimi-k2-fp8", 0, false},
        {"kimi-k25-int4", 0, false},
        {"kimi-k3-mxfp4", 0, true},
        {"llama4-bf16-fused-b", 0, false},
        {"llama4-modelopt-nvfp4", 0, false},
        {"minimax-m2-fp8", 0, false},
        {"minimax-m3-mxfp8", 0, false},
        {"mistral-small4-fp8", 0, false},
        {"mixtral-f16", 0, false},
        {"mixtral-f32", 0, false},
        {"modelopt-nvfp4", 3e-7, false},
        {"modelslim-w8a8", 0, false},
        {"quark-mxfp4", 0, false},
        {"qwen35-fused-a", 0, false},
        {"qwen3next-fp8", 0, false},
        {"qwen3vl-fused-b", 0, false},
        {"v2-bf16", 0, false},
        {"v4-base-fp8", 0, false},
        {"v4-modelopt-nvfp4", 0, false},
        {"v41-fp4", 0, false},
    };

    return cr_make_param_array(family_case, cases, sizeof cases / sizeof cases[0]);
}

ParameterizedTest(family_case *family, diff, families)
{
    size_t count = write_truth(family);
    char path[256];

    snprintf(path, sizeof path, "testdata/fixtures/%s", family->name);
    compare(path, in_scratch("truth"));
    cr_assert_gt(count, 0);
    cr_assert_eq(found.num_pairs, count, "%s: %zu pairs, expected %zu", family->name,
                 found.num_pairs, count);
    cr_assert_eq(found.num_only[1], 0, "%s", found.num_only[1] ? found.only_in[1][0] : "");
    for (size_t i = 0; i < count; i++) {
        const mp_diff_pair *pair = &found.pairs[i];

        if (family->near == 0)
            cr_assert(pair->equal, "%s: %s: %g %s", family->name, pair->name, pair->max_abs,
                      pair->note ? pair->note : "");
        else
            cr_assert_lt(pair->rel_l2, family->near, "%s: %s: %g", family->name, pair->name,
                         pair->rel_l2);
    }
}

/* ------------------------------------------------------------------------
 * Weights beside their scales, that are no expert's
 */

/* An FP8 attention weight of 2x2 in one block, and the same in BF16. */
static void write_dense(float scale)
{
    static const uint64_t square[] = {2, 2}, one[] = {1, 1};
    static const uint8_t codes[] = {0x38, 0x40, 0xb8, 0x00};      /* 1 2 -1 0 */
    static const uint16_t values[] = {0x3f00, 0x3f80, 0xbf00, 0}; /* half of these */
    const written a[] = {{{"q.weight_scale_inv", MP_F32, 2, one}, &scale},
                         {{"q.weight", MP_F8_E4M3, 2, square}, codes}};
    const written b[] = {{{"q.weight", MP_BF16, 2, square}, values}};

    succeed(mp_make_dir(in_scratch("a"), &err));
    succeed(mp_make_dir(in_scratch("b"), &err));
    write_tensors("a/model.safetensors", a, 2);
    write_tensors("b/model.safetensors", b, 1);
}

Test(diff, weights_beside_scales)
{
    write_dense(0.5f);
    compare(in_scratch("a"), in_scratch("b"));
    cr_assert(found.equal);
    cr_assert_eq(found.num_pairs, 1);
    write_dense(0.625f);
    compare(in_scratch("a"), in_scratch("b"));
    cr_assert_eq(pair_of("q.weight")->max_abs, 0.25);
    cr_assert_float_eq(pair_of("q.weight")->rel_l2, 0.25, 1e-15);
    compare(in_scratch("a"), in_scratch("a"));
    cr_assert(found.equal);
}

/* Under the names that they have in Mistral's own files. */
Test(diff, weights_beside_scales_of_mistral)
{
    static const uint64_t square[] = {2, 2};
    static const uint8_t codes[] = {0x38, 0x40, 0xb8, 0x00};
    static const float scale = 0.5f, act = 3;
    const written a[] = {{{"q.qscale_act", MP_F32, 0, NULL}, &act},
                         {{"q.qscale_weight", MP_F32, 0, NULL}, &scale},
                         {{"q.weight", MP_F8_E4M3, 2, square}, codes}};

    write_dense(0.5f);
    write_tensors("a/model.safetensors", a, 3);
    compare(in_scratch("a"), in_scratch("b"));
    cr_assert(found.equal, "scales of activations are no difference");
    cr_assert_eq(found.num_pairs, 1);
}

/* Of single files nobody knows what belongs together. */
Test(diff, files_are_compared_as_they_are)
{
    write_dense(0.5f);
    compare(in_scratch("a/model.safetensors"), in_scratch("b/model.safetensors"));
    cr_assert_eq(pair_of("q.weight")->max_abs, 1);
    cr_assert_eq(found.num_only[0], 1);
    cr_assert_str_eq(found.only_in[0][0], "q.weight_scale_inv");
}

/* ------------------------------------------------------------------------
 * Packed directories
 */

typedef struct pack_case {
    char source[32];
    char target[24];
    mp_repack_options options; /* but the target */
    double most;               /* rel. L2; 0: equal */
    double least;
    size_t pairs;
} pack_case;

ParameterizedTestParameters(diff, packs)
{
    static pack_case cases[] = {
        {"v4-fp4", "megamoe-w4a8", {.ep = 2, .redundant = 1}, 0, 0, 30},
        {"v4-fp4",
         "megamoe-w4a8",
         {.ep = 3, .redundant = 4, .shared = MP_SHARED_SEPARATE, .requantize_shared = true},
         0,
         0,
         36},
        {"v4-fp4", "megamoe-w4a4", {.ep = 5}, 0, 0, 30},
        {"v4-fp4", "megamoe-w4a4-g8", {.ep = 1}, 0, 0, 30},
        {"v4-fp4",
         "megamoe-bf16",
         {.ep = 1, .quantize = true, .quantize_to = MP_SCHEME_BF16},
         0,
         0,
         30},
        {"v4-fp4",
         "megamoe-nvfp4",
         {.ep = 1, .quantize = true, .quantize_to = MP_SCHEME_NVFP4},
         1e-5,
         0,
         30},
        {"v4-fp4",
         "megamoe-sm90-fp8",
         {.ep = 1, .quantize = true, .quantize_to = MP_SCHEME_FP8_BLOCK},
         3e-2,
         1e-3,
         30},
        {"v4-fp4",
         "fuseep-1",
         {.ep = 1, .quantize = true, .quantize_to = MP_SCHEME_INT8_CHANNEL},
         1e-2,
         1e-3,
         30},
        {"modelslim-w8a8", "fuseep-1", {.ep = 3}, 0, 0, 9},
        {"modelslim-w8a8", "fuseep-1", {.ep = 2, .redundant = 1, .nz = true}, 0, 0, 9},
        {"modelslim-w8a8", "fuseep-2", {.ep = 1}, 0, 0, 9},
        {"modelslim-w8a8", "fuseep-2", {.ep = 3, .nz = true}, 0, 0, 9},
        {"v2-bf16", "deepep-bf16", {.ep = 3, .shared = MP_SHARED_FUSED}, 0, 0, 15},
        {"v2-bf16", "megamoe-bf16", {.ep = 3, .shared = MP_SHARED_SEPARATE}, 0, 0, 15},
        {"qwen35-fused-a", "deepep-bf16", {.ep = 3}, 0, 0, 9},
    };

    return cr_make_param_array(pack_case, cases, sizeof cases / sizeof cases[0]);
}

ParameterizedTest(pack_case *c, diff, packs)
{
    char source[256];

    snprintf(source, sizeof source, "testdata/fixtures/%s", c->source);
    c->options.target = mp_target_find(c->target);
    pack_source(source, c->options);
    compare_as(out, source,
               &(mp_diff_options){.size = sizeof(mp_diff_options),
                                  .tolerance = c->most > 0 ? c->most : -1});
    cr_assert_eq(found.num_pairs, c->pairs, "%s: %zu pairs", c->target, found.num_pairs);
    cr_assert(found.equal, "%s: worst %s, %g", c->target, found.pairs[found.worst].name,
              found.pairs[found.worst].rel_l2);
    if (c->least > 0) {
        cr_assert_eq(found.tolerated, c->pairs);
        cr_assert_geq(found.pairs[found.worst].rel_l2, c->least);
    }
}

/* The pack that verify_pack.h describes; of some ranks only, if not null. */
static void pack_v4(const char *ranks)
{
    mp_placement placement = load_placement(SOURCE "/placement.json", 5);

    pack_source(SOURCE, (mp_repack_options){.ep = 2, .placement = &placement, .ranks = ranks});
    mp_placement_release(&placement);
}

/* Bytes of the first slot's L1 weights and of a row of them, in v4-fp4's pack. */
#define L1_BYTES (2 * INTER * HIDDEN / 2)
#define ROW      (HIDDEN / 2)

Test(diff, a_byte_of_a_pack)
{
    pack_v4(NULL);
    compare(SOURCE, out);
    cr_assert(found.equal);
    /* Slot 1 of rank 0 holds expert 0; row 8 of its L1 is row 0 of up. */
    flip(0, "layers.0.experts.l1_weight", L1_BYTES + 8 * ROW, 0x08);
    compare(SOURCE, out);
    cr_assert_eq(found.differing, 1);
    cr_assert_eq(found.worst, 1);
    cr_assert(pair_of("layers.0.0.up")->differs);
    cr_assert_gt(pair_of("layers.0.0.up")->max_abs, 0);
    cr_assert_null(pair_of("layers.0.0.up")->note);
}

Test(diff, a_scale_of_a_pack)
{
    pack_v4(NULL);
    /* The first word is of row 0 of gate, whatever the order; its second byte of columns
     * 32 .. 63, which become half as large or twice as large. */
    flip(1, "mtp.0.experts.l1_weight_sf", 1, 0x01);
    compare(SOURCE, out);
    cr_assert_eq(found.differing, 1);
    cr_assert(pair_of("mtp.0.4.gate")->differs);
    cr_assert_gt(pair_of("mtp.0.4.gate")->max_abs, 0);
}

/* Expert 2 of layers.0 is in slot 2 of either rank. */
Test(diff, a_copy_that_differs)
{
    const char *name = "layers.0.experts.l2_weight";
    const uint64_t slot = HIDDEN * INTER / 2;
    char note[1024];

    pack_v4(NULL);
    flip(1, name, 2 * slot + 5, 0x10);
    compare(out, SOURCE);
    cr_assert_eq(found.differing, 1);
    snprintf(note, sizeof note, "%s: slot 2 of rank 1 holds something else than slot 2 of rank 0",
             out);
    cr_assert_str_eq(pair_of("layers.0.2.down")->note, note);
    cr_assert_gt(pair_of("layers.0.2.down")->max_abs, 0);
    compare(SOURCE, out);
    cr_assert_str_eq(pair_of("layers.0.2.down")->note, note);
    flip(1, name, 2 * slot + 5, 0x10);
    compare(out, SOURCE);
    cr_assert(found.equal);
}

Test(diff, layers_and_ranks_that_are_not_packed)
{
    pack_v4("1");
    compare(out, SOURCE);
    cr_assert_eq(found.num_only[0], 0);
    cr_assert_eq(found.num_only[1], 4); /* 4 0 of layers.0, 0 1 of mtp.0; copies of 2, 1 remain */
    cr_assert_str_eq(found.only_in[1][0], "layers.0.0");
    cr_assert_str_eq(found.only_in[1][1], "layers.0.4");
    cr_assert_str_eq(found.only_in[1][2], "mtp.0.0");
    cr_assert_str_eq(found.only_in[1][3], "mtp.0.1");
    cr_assert_eq(found.differing, 0);
    compare_as(out, SOURCE,
               &(mp_diff_options){.size = sizeof(mp_diff_options), .tolerance = -1, .layers = "0"});
    cr_assert_eq(found.num_only[1], 2);
    cr_assert_eq(found.num_pairs, 9);
}

/* ------------------------------------------------------------------------
 * Runs
 */

Test(diff, threads_change_nothing)
{
    mp_repack_options options = {.ep = 1, .target = mp_target_find("fuseep-2")};
    mp_diff_report one;

    options.quantize = true;
    options.quantize_to = MP_SCHEME_INT8_CHANNEL;
    pack_source(SOURCE, options);
    succeed(mp_diff(SOURCE, out, &any, &(mp_context){.threads = 1}, &one, &err));
    succeed(mp_diff(SOURCE, out, &any, &(mp_context){.threads = 7}, &found, &err));
    cr_assert_eq(one.num_pairs, found.num_pairs);
    for (size_t i = 0; i < one.num_pairs; i++) {
        cr_assert_str_eq(one.pairs[i].name, found.pairs[i].name);
        cr_assert_eq(memcmp(&one.pairs[i].max_abs, &found.pairs[i].max_abs, 3 * sizeof(double)), 0);
    }
    cr_assert_eq(one.worst, found.worst);
    mp_diff_report_release(&one);
}

static uint64_t last_done, last_total;

static void note_progress(void *user, uint64_t done, uint64_t total)
{
    (void)user;
    last_done = done;
    last_total = total;
}

Test(diff, says_how_far_it_is)
{
    succeed(mp_diff(SOURCE, SOURCE, &any, &(mp_context){.progress = note_progress}, &found, &err));
    cr_assert_gt(last_total, 0);
    cr_assert_eq(last_done, last_total);
}

Test(diff, stops_when_told_to)
{
    const int cancel = 1;

    cr_assert_eq(mp_diff(SOURCE, SOURCE, &any, &(mp_context){.cancel = &cancel}, &found, &err),
                 MP_ERR_CANCELLED);
}

static void refuse(const char *a, const char *b, const char *layers, int code, const char *message)
{
    const mp_diff_options options = {
        .size = sizeof(mp_diff_options), .tolerance = -1, .layers = layers};

    cr_assert_eq(mp_diff(a, b, &options, NULL, &found, &err), code, "%s", err.message);
    cr_assert_str_eq(err.message, message);
}

Test(diff, refuses)
{
    const uint64_t one = 1;
    char message[2048];

    refuse(SOURCE, SOURCE, "7", MP_ERR_USAGE, "list \"7\": \"7\" names no layer");
    refuse("nothing", SOURCE, NULL, MP_ERR_IO,
           "nothing: cannot open \"nothing\": No such file or directory");
    write_one("x.safetensors", MP_F32, 1, &one, &(float){1});
    refuse(in_scratch("x.safetensors"), SOURCE, "0", MP_ERR_USAGE,
           "list \"0\": without experts there are no layers");
    pack_v4(NULL);
    write_one("y.safetensors", MP_F32, 1, &one, &(float){1});
    snprintf(message, sizeof message, "%s: no experts to compare with packed ones",
             in_scratch("y.safetensors"));
    refuse(out, in_scratch("y.safetensors"), NULL, MP_ERR_INPUT, message);
}

/* Layers are found by number, whatever stands before it. */
Test(diff, layers_of_other_names)
{
    compare("testdata/fixtures/v4-base-fp8", "testdata/fixtures/qwen35-fused-a");
    cr_assert_geq(found.num_pairs, 9);
    cr_assert_str_eq(found.pairs[0].name, "layers.0.0.gate");
    cr_assert_null(found.pairs[0].note);
    cr_assert(isfinite(found.pairs[0].rel_l2));
    cr_assert_gt(found.pairs[0].rel_l2, 0.1);
}
