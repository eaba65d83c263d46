/* SPDX-License-Identifier: Apache-2.0 */
/* Headers that are written, and random ones there and back. */
#include <criterion/criterion.h>

#include <unistd.h>

#include "store_files.h"

#include "checkpoint/tensor.h"

TestSuite(store_write, .init = make_scratch, .fini = remove_scratch);

Test(store_write, writes_the_header_that_is_expected)
{
    const uint64_t shape_a[] = {3, 5}, shape_b[] = {2};
    const mp_tensor_spec specs[] = {{"b", MP_F32, 2, shape_a}, {"a\"", MP_U8, 1, shape_b}};
    const char *const metadata[] = {"format", "pt", "k", "\n"};
    static const char want[] =
        "{\"__metadata__\":{\"format\":\"pt\",\"k\":\"\\n\"},"
        "\"b\":" ENTRY("F32", "[3,5]", "[0,60]") ",\"a\\\"\":" ENTRY("U8", "[2]", "[60,62]") "}";
    char *header;
    uint64_t bytes, offsets[3];
    cr_assert_eq(mp_safetensors_header(specs, 2, metadata, 2, 4096, &header, &bytes, offsets, &err),
                 0);
    cr_assert_eq(bytes, 4096);
    cr_assert_eq(memcmp(header, "\xf8\x0f\0\0\0\0\0\0", 8), 0);
    cr_assert_eq(memcmp(header + 8, want, sizeof(want) - 1), 0);
    for (size_t i = 8 + sizeof(want) - 1; i < bytes; i++)
        cr_assert_eq(header[i], ' ');
    cr_assert_eq(offsets[0], 4096);
    cr_assert_eq(offsets[1], 4156);
    cr_assert_eq(offsets[2], 4158);
    free(header);
}

static void expect_unwritable(const mp_tensor_spec *specs, size_t n, const char *const *metadata,
                              size_t pairs, mp_code code, const char *message)
{
    char *header;
    uint64_t bytes, offsets[8];
    cr_assert_eq(
        mp_safetensors_header(specs, n, metadata, pairs, 8, &header, &bytes, offsets, &err), code);
    cr_assert_str_eq(err.message, message);
    cr_assert_null(header);
}

Test(store_write, does_not_write_what_cannot_be_read)
{
    const uint64_t two[] = {2}, three[] = {3}, huge[] = {UINT64_MAX}, big[] = {1ull << 60};
    const mp_tensor_spec twice[] = {{"a", MP_U8, 1, two}, {"a", MP_U8, 1, two}};
    expect_unwritable(twice, 2, NULL, 0, MP_ERR_USAGE, "tensor \"a\": the name appears twice");
    const mp_tensor_spec odd[] = {{"a", MP_U8, 1, three}, {"b", MP_BF16, 1, two}};
    expect_unwritable(odd, 2, NULL, 0, MP_ERR_USAGE,
                      "tensor \"b\": offset 123 is not a multiple of its element's 2 bytes");
    const mp_tensor_spec reserved[] = {{"__metadata__", MP_U8, 1, two}};
    expect_unwritable(reserved, 1, NULL, 0, MP_ERR_USAGE,
                      "tensor \"__metadata__\": the name is reserved");
    const mp_tensor_spec half[] = {{"a", MP_F4, 1, three}};
    expect_unwritable(half, 1, NULL, 0, MP_ERR_INPUT,
                      "tensor \"a\": F4 [3] takes 12 bits, not whole bytes");
    const mp_tensor_spec large[] = {{"a", MP_U8, 1, huge}};
    expect_unwritable(large, 1, NULL, 0, MP_ERR_INPUT,
                      "tensor \"a\": U8 [18446744073709551615] is too large");
    const mp_tensor_spec sum[] = {
        {"a", MP_U8, 1, big}, {"b", MP_U8, 1, big}, {"c", MP_U8, 1, big},
        {"d", MP_U8, 1, big}, {"e", MP_U8, 1, big},
    };
    expect_unwritable(sum, 5, NULL, 0, MP_ERR_USAGE, "tensor \"d\": the file is too large");
    const char *const keys[] = {"k", "1", "k", "2"};
    expect_unwritable(NULL, 0, keys, 2, MP_ERR_USAGE, "metadata \"k\" appears twice");

    char *header;
    uint64_t bytes, offsets[2];
    cr_assert_eq(mp_safetensors_header(NULL, 0, NULL, 0, 0, &header, &bytes, offsets, &err),
                 MP_ERR_USAGE);
    cr_assert_str_eq(err.message, "alignment 0 is not between 1 and 100000000");
}

Test(store_write, does_not_write_names_that_are_not_utf8)
{
    static const char *const bad[] = {
        "\x80",
        "\xc3",
        "\xc0\xaf",
        "\xe0\x9f\xbf",
        "\xed\xa0\x80",
        "\xf0\x8f\xbf\xbf",
        "\xf4\x90\x80\x80",
        "\xf5\x80\x80\x80",
        "\xe2\x82",
        "a\xff",
    };
    static const char *const good[] = {"\xc2\x80",         "\xe0\xa0\x80",     "\xed\x9f\xbf",
                                       "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf", "\xef\xbf\xbf"};
    char *header;
    uint64_t bytes, offsets[2];
    const uint64_t one[] = {1};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        const mp_tensor_spec spec = {bad[i], MP_U8, 1, one};
        const char *const key[] = {"k", bad[i]};
        cr_assert_eq(mp_safetensors_header(&spec, 1, NULL, 0, 8, &header, &bytes, offsets, &err),
                     MP_ERR_USAGE);
        cr_assert_eq(mp_safetensors_header(NULL, 0, key, 1, 8, &header, &bytes, offsets, &err),
                     MP_ERR_USAGE);
        cr_assert_str_eq(err.message, "metadata \"k\" is not UTF-8");
    }
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        const mp_tensor_spec spec = {good[i], MP_U8, 1, one};
        cr_assert_eq(mp_safetensors_header(&spec, 1, NULL, 0, 8, &header, &bytes, offsets, &err),
                     0);
        put_safetensors("m.safetensors", header + 8, (size_t)bytes - 8, 1);
        free(header);
        expect_opens();
        cr_assert_str_eq(ckpt.tensors[0].name, good[i]);
    }
}

Test(store_write, shapes_as_text)
{
    char text[MP_SHAPE_TEXT];
    uint64_t shape[100];
    for (int i = 0; i < 100; i++)
        shape[i] = UINT64_MAX - 7;
    cr_assert_str_eq(mp_shape_text(NULL, 0, text), "[]");
    cr_assert_str_eq(mp_shape_text((const uint64_t[]){2048, 0}, 2, text), "[2048, 0]");
    for (uint32_t rank = 1; rank <= 100; rank++) {
        mp_shape_text(shape, rank, text);
        size_t n = strlen(text);
        cr_assert_lt(n, MP_SHAPE_TEXT);
        cr_assert_eq(text[n - 1], ']');
        cr_assert_eq(strstr(text, "...") != NULL, rank > 5);
    }
}

/* ------------------------------------------------------------------------
 * Properties of random headers
 */

static uint64_t seed = 88172645463325252u;

/* xorshift64 */
static uint64_t random_below(uint64_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed % n;
}

#define MANY 40

struct random_tensors {
    char names[MANY][24];
    uint64_t shapes[MANY][4];
    mp_tensor_spec specs[MANY];
    size_t count;
};

static int widest_first(const void *a, const void *b)
{
    return (int)mp_dtype_bits(((const mp_tensor_spec *)b)->dtype) -
           (int)mp_dtype_bits(((const mp_tensor_spec *)a)->dtype);
}

/* Names with escapes, control characters and UTF-8; shapes with zeros and whole bytes. */
static void make_random_tensors(struct random_tensors *r)
{
    static const char *const odd[] = {"\"", "\\", "\n", "/", "\xc3\xa9", "{", "\x01", "\x7f"};
    r->count = random_below(MANY + 1);
    for (size_t i = 0; i < r->count; i++) {
        snprintf(r->names[i], sizeof(r->names[i]), "%s%llu.%zu", odd[random_below(8)],
                 (unsigned long long)random_below(1000), i);
        uint32_t rank = (uint32_t)random_below(5);
        for (uint32_t d = 0; d < rank; d++)
            r->shapes[i][d] = random_below(10) == 0 ? 0 : 1 + random_below(9);
        mp_dtype dtype = (mp_dtype)random_below(MP_DTYPE_COUNT);
        r->specs[i] = (mp_tensor_spec){r->names[i], dtype, rank, r->shapes[i]};
        uint64_t bytes;
        if (mp_tensor_spec_bytes(&r->specs[i], &bytes, &err) != 0)
            r->specs[i].dtype = MP_U8;
    }
    qsort(r->specs, r->count, sizeof(r->specs[0]), widest_first);
}

/* Writes them as one file; sets the file's offsets. */
static uint64_t put_random_tensors(const struct random_tensors *r, uint64_t align,
                                   uint64_t offsets[MANY + 1])
{
    int fd;
    char *header;
    uint64_t bytes;
    const char *const metadata[] = {"format", "pt"};
    cr_assert_eq(mp_safetensors_header(r->specs, r->count, metadata, random_below(2), align,
                                       &header, &bytes, offsets, &err),
                 0, "%s", err.message);
    cr_assert_eq(bytes % align, 0);
    put_file("m.safetensors", header, bytes);
    free(header);
    cr_assert_eq(mp_open_write(in_dir("m.safetensors"), &fd, &err), 0);
    cr_assert_eq(mp_file_resize(fd, "m", offsets[r->count], &err), 0);
    close(fd);
    return bytes;
}

Test(store_write, what_is_written_is_read_back)
{
    struct random_tensors r;
    uint64_t offsets[MANY + 1];
    for (int round = 0; round < 100; round++) {
        make_random_tensors(&r);
        uint64_t header_bytes = put_random_tensors(&r, round % 2 ? 4096 : 8, offsets);
        expect_opens();
        cr_assert_eq(ckpt.num_tensors, r.count);
        cr_assert_eq(ckpt.shards[0].header_bytes, header_bytes);
        for (size_t i = 0; i < r.count; i++) {
            const mp_tensor_spec *spec = &r.specs[i];
            const mp_tensor *t = mp_checkpoint_find(&ckpt, spec->name);
            cr_assert_not_null(t);
            cr_assert_eq(t->dtype, spec->dtype);
            cr_assert_eq(t->rank, spec->rank);
            cr_assert_eq(t->offset, offsets[i]);
            cr_assert_eq(t->bytes, offsets[i + 1] - offsets[i]);
            for (uint32_t d = 0; d < t->rank; d++)
                cr_assert_eq(t->shape[d], spec->shape[d]);
        }
    }
}

/* Whatever a damaged header says: it is refused, or its tensors lie in the file, each
 * byte in exactly one of them. */
Test(store_write, damaged_headers_are_refused_or_sound)
{
    struct random_tensors r;
    uint64_t offsets[MANY + 1];
    int refused = 0;
    for (int round = 0; round < 2000; round++) {
        if (round % 20 == 0)
            make_random_tensors(&r);
        uint64_t header_bytes = put_random_tensors(&r, 8, offsets);
        int fd;
        cr_assert_eq(mp_open_write(in_dir("m.safetensors"), &fd, &err), 0);
        const unsigned char byte = (unsigned char)random_below(256);
        cr_assert_eq(mp_pwrite_all(fd, &byte, 1, 8 + random_below(header_bytes - 8), "m", &err), 0);
        close(fd);
        if (open_dir() != 0) {
            refused++;
            cr_assert_eq(err.code, MP_ERR_INPUT, "%s", err.message);
            cr_assert_eq(strncmp(err.message, "m.safetensors: ", 15), 0);
            continue;
        }
        uint64_t bytes = 0;
        for (size_t i = 0; i < ckpt.num_tensors; i++) {
            cr_assert_geq(ckpt.tensors[i].offset, header_bytes);
            cr_assert_leq(ckpt.tensors[i].offset + ckpt.tensors[i].bytes, ckpt.shards[0].size);
            bytes += ckpt.tensors[i].bytes;
        }
        cr_assert_eq(bytes, ckpt.shards[0].size - header_bytes);
    }
    cr_assert_gt(refused, 500);
}
