/* SPDX-License-Identifier: Apache-2.0 */
/* Safetensors headers: every rule, with the message of its breach. */
#include <criterion/criterion.h>

#include <fcntl.h>
#include <unistd.h>

#include "base/digest.h"
#include "checkpoint/tensor.h"
#include "store_files.h"

TestSuite(store, .init = make_scratch, .fini = remove_scratch);

/* ------------------------------------------------------------------------
 * Headers that are refused: name of the rule, JSON, bytes of data, message
 */

#define REFUSED(rule, json, data_bytes, message)                              \
    Test(store, refuses_##rule)                                               \
    {                                                                         \
        put_safetensors("m.safetensors", json, sizeof(json) - 1, data_bytes); \
        expect_refused("m.safetensors: " message);                            \
    }

REFUSED(empty_header, "", 0, "header byte 0: expected '{'")
REFUSED(space_before_brace, " {}", 0, "header byte 0: expected '{'")
REFUSED(byte_order_mark, "\xef\xbb\xbf{}", 0, "header byte 0: expected '{'")
REFUSED(array_header, "[]", 0, "header byte 0: expected '{'")
REFUSED(header_without_end, "{", 0, "header byte 1: expected a name in quotes")
REFUSED(name_without_quotes, "{a:1}", 0, "header byte 1: expected a name in quotes")
REFUSED(name_without_end, "{\"a", 0, "header byte 1: string without an end")
REFUSED(name_ending_in_escape, "{\"a\\", 0, "header byte 1: string without an end")
REFUSED(missing_colon, "{\"a\" {}}", 0, "header byte 5: expected ':'")
REFUSED(missing_value, "{\"a\":}", 0, "header byte 5: expected a value")
REFUSED(missing_value_at_end, "{\"a\":", 0, "header byte 5: expected a value")
REFUSED(bracket_without_end, "{\"a\":{\"b\":[}", 0, "header byte 5: bracket without an end")
REFUSED(string_in_value_without_end, "{\"a\":[\"}", 0, "header byte 6: string without an end")
REFUSED(missing_comma, "{\"a\":" ENTRY("U8", "[1]", "[0,1]") " \"b\":1}", 1,
        "header byte 53: expected ',' or '}'")
REFUSED(trailing_comma, "{\"a\":" ENTRY("U8", "[1]", "[0,1]") ",}", 1,
        "header byte 53: expected a name in quotes")
REFUSED(crossed_brackets, "{\"a\":{]}", 0,
        "tensor \"a\": header byte 7: string or '}' expected near ']'")
REFUSED(nul_behind_object, "{}\0", 0, "header byte 2: expected nothing after the object")
REFUSED(garbage_behind_object, "{} x", 0, "header byte 3: expected nothing after the object")
REFUSED(second_object, "{}{}", 0, "header byte 2: expected nothing after the object")
REFUSED(latin1_name, "{\"\xe9\":1}", 0, "header byte 2: unable to decode byte 0xe9 near '\"'")
REFUSED(latin1_value, "{\"a\":{\"dtype\":\"\xe9\"}}", 0,
        "tensor \"a\": header byte 15: unable to decode byte 0xe9 near '\"'")
REFUSED(nul_in_name, "{\"a\\u0000\":1}", 0,
        "header byte 10: \\u0000 is not allowed without JSON_ALLOW_NUL near '\"a\\u0000\"'")
REFUSED(single_quotes, "{\"a\":'x'}", 0, "tensor \"a\": header byte 6: invalid token near '''")

REFUSED(array_entry, "{\"a\":[\"U8\",[4],[0,4]]}", 4, "tensor \"a\": entry is not an object")
REFUSED(null_entry, "{\"a\":null}", 0, "tensor \"a\": entry is not an object")
REFUSED(string_entry, "{\"a\":\"b\"}", 0, "tensor \"a\": entry is not an object")
REFUSED(missing_dtype, "{\"a\":{\"shape\":[4],\"data_offsets\":[0,4]}}", 4,
        "tensor \"a\": \"dtype\" is not a string")
REFUSED(number_dtype, "{\"a\":{\"dtype\":8,\"shape\":[4],\"data_offsets\":[0,4]}}", 4,
        "tensor \"a\": \"dtype\" is not a string")
REFUSED(unknown_dtype, "{\"a\":" ENTRY("I4", "[4]", "[0,2]") "}", 2,
        "tensor \"a\": dtype \"I4\" is unknown")
REFUSED(lowercase_dtype, "{\"a\":" ENTRY("f32", "[1]", "[0,4]") "}", 4,
        "tensor \"a\": dtype \"f32\" is unknown")
REFUSED(missing_shape, "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1,
        "tensor \"a\": \"shape\" is not an array")
REFUSED(number_shape, "{\"a\":" ENTRY("U8", "4", "[0,4]") "}", 4,
        "tensor \"a\": \"shape\" is not an array")
REFUSED(fraction_in_shape, "{\"a\":" ENTRY("U8", "[1,4.0]", "[0,4]") "}", 4,
        "tensor \"a\": shape[1] is not an integer of 0 or more")
REFUSED(exponent_in_shape, "{\"a\":" ENTRY("U8", "[4e0]", "[0,4]") "}", 4,
        "tensor \"a\": shape[0] is not an integer of 0 or more")
REFUSED(negative_in_shape, "{\"a\":" ENTRY("U8", "[-4]", "[0,4]") "}", 4,
        "tensor \"a\": shape[0] is not an integer of 0 or more")
REFUSED(string_in_shape, "{\"a\":" ENTRY("U8", "[\"4\"]", "[0,4]") "}", 4,
        "tensor \"a\": shape[0] is not an integer of 0 or more")
REFUSED(too_big_in_shape, "{\"a\":" ENTRY("U8", "[9223372036854775808]", "[0,4]") "}", 4,
        "tensor \"a\": header byte 47: too big integer near '9223372036854775808'")
REFUSED(missing_offsets, "{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1,
        "tensor \"a\": \"data_offsets\" is not two integers of 0 or more")
REFUSED(one_offset, "{\"a\":" ENTRY("U8", "[4]", "[4]") "}", 4,
        "tensor \"a\": \"data_offsets\" is not two integers of 0 or more")
REFUSED(three_offsets, "{\"a\":" ENTRY("U8", "[4]", "[0,4,4]") "}", 4,
        "tensor \"a\": \"data_offsets\" is not two integers of 0 or more")
REFUSED(fraction_in_offsets, "{\"a\":" ENTRY("U8", "[4]", "[0,4.0]") "}", 4,
        "tensor \"a\": \"data_offsets\" is not two integers of 0 or more")
REFUSED(negative_offset, "{\"a\":" ENTRY("U8", "[4]", "[-4,0]") "}", 4,
        "tensor \"a\": \"data_offsets\" is not two integers of 0 or more")
REFUSED(backward_offsets, "{\"a\":" ENTRY("U8", "[4]", "[8,4]") "}", 8,
        "tensor \"a\": data_offsets [8, 4] run backwards")
REFUSED(duplicate_field,
        "{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4,
        "tensor \"a\": header byte 26: duplicate object key near '\"dtype\"'")
REFUSED(duplicate_field_with_escape,
        "{\"a\":{\"dtype\":\"U8\",\"\\u0064type\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4,
        "tensor \"a\": header byte 31: duplicate object key near '\"\\u0064type\"'")

REFUSED(size_that_differs, "{\"a\":" ENTRY("F32", "[2,3]", "[0,20]") "}", 20,
        "tensor \"a\": F32 [2, 3] takes 24 bytes, data_offsets span 20")
REFUSED(empty_tensor_with_bytes, "{\"a\":" ENTRY("F32", "[2,0]", "[0,8]") "}", 8,
        "tensor \"a\": F32 [2, 0] takes 0 bytes, data_offsets span 8")
REFUSED(scalar_without_bytes, "{\"a\":" ENTRY("F32", "[]", "[0,0]") "}", 0,
        "tensor \"a\": F32 [] takes 4 bytes, data_offsets span 0")
REFUSED(overflow, "{\"a\":" ENTRY("U8", "[4294967296,4294967296]", "[0,0]") "}", 0,
        "tensor \"a\": U8 [4294967296, 4294967296] is too large")
REFUSED(overflow_before_zero, "{\"a\":" ENTRY("U8", "[4294967296,4294967296,0]", "[0,0]") "}", 0,
        "tensor \"a\": U8 [4294967296, 4294967296, 0] is too large")
REFUSED(overflow_in_bits, "{\"a\":" ENTRY("F64", "[576460752303423488]", "[0,0]") "}", 0,
        "tensor \"a\": F64 [576460752303423488] is too large")
REFUSED(half_a_byte, "{\"a\":" ENTRY("F4", "[3]", "[0,1]") "}", 1,
        "tensor \"a\": F4 [3] takes 12 bits, not whole bytes")
REFUSED(half_a_byte_of_6_bits, "{\"a\":" ENTRY("F6_E2M3", "[2,5]", "[0,7]") "}", 7,
        "tensor \"a\": F6_E2M3 [2, 5] takes 60 bits, not whole bytes")
REFUSED(tensor_behind_the_end, "{\"a\":" ENTRY("U8", "[24]", "[0,24]") "}", 20,
        "tensor \"a\": ends at data byte 24, the file holds 20")

REFUSED(hole_at_begin, "{\"a\":" ENTRY("U8", "[4]", "[2,6]") "}", 6,
        "tensor \"a\": begins at data byte 2, 2 bytes after the one before it")
REFUSED(hole, "{\"b\":" ENTRY("U8", "[4]", "[7,11]") ",\"a\":" ENTRY("U8", "[4]", "[0,4]") "}", 11,
        "tensor \"b\": begins at data byte 7, 3 bytes after the one before it")
REFUSED(overlap, "{\"b\":" ENTRY("U8", "[4]", "[2,6]") ",\"a\":" ENTRY("U8", "[4]", "[0,4]") "}", 6,
        "tensor \"b\": begins at data byte 2, inside tensor \"a\" that ends at 4")
REFUSED(same_extent_twice,
        "{\"a\":" ENTRY("U8", "[4]", "[0,4]") ",\"b\":" ENTRY("I8", "[4]", "[0,4]") "}", 4,
        "tensor \"b\": begins at data byte 0, inside tensor \"a\" that ends at 4")
REFUSED(empty_tensor_inside_another,
        "{\"a\":" ENTRY("U8", "[4]", "[0,4]") ",\"z\":" ENTRY("U8", "[0]", "[2,2]") "}", 4,
        "tensor \"z\": begins at data byte 2, inside tensor \"a\" that ends at 4")
REFUSED(trailing_bytes, "{\"a\":" ENTRY("U8", "[4]", "[0,4]") "}", 7,
        "tensors end at data byte 4, the file holds 7")
REFUSED(data_without_tensors, "{}", 1, "tensors end at data byte 0, the file holds 1")

REFUSED(duplicate_name,
        "{\"a\":" ENTRY("U8", "[4]", "[0,4]") ",\"a\":" ENTRY("U8", "[4]", "[4,8]") "}", 8,
        "tensor \"a\" appears twice")
REFUSED(duplicate_name_with_escape,
        "{\"a\":" ENTRY("U8", "[4]", "[0,4]") ",\"\\u0061\":" ENTRY("U8", "[4]", "[4,8]") "}", 8,
        "tensor \"a\" appears twice")
REFUSED(duplicate_metadata, "{\"__metadata__\":{},\"__metadata__\":{}}", 0,
        "__metadata__ appears twice")
REFUSED(duplicate_metadata_with_escape, "{\"__metadata__\":null,\"\\u005f_metadata__\":{}}", 0,
        "__metadata__ appears twice")
REFUSED(number_in_metadata, "{\"__metadata__\":{\"k\":1}}", 0, "__metadata__ \"k\" is not a string")
REFUSED(null_in_metadata, "{\"__metadata__\":{\"k\":null}}", 0,
        "__metadata__ \"k\" is not a string")
REFUSED(array_metadata, "{\"__metadata__\":[]}", 0, "__metadata__ is not an object")

/* ------------------------------------------------------------------------
 * Lengths
 */

Test(store, refuses_files_without_a_length)
{
    put_file("m.safetensors", "", 0);
    expect_refused("m.safetensors: file of 0 bytes is too small for a header");
    put_file("m.safetensors", "\2\0\0\0\0\0\0", 7);
    expect_refused("m.safetensors: file of 7 bytes is too small for a header");
    put_file("m.safetensors", "\0\0\0\0\0\0\0\0", 8);
    expect_refused("m.safetensors: header byte 0: expected '{'");
}

Test(store, refuses_a_header_longer_than_the_file)
{
    put_file("m.safetensors", "\3\0\0\0\0\0\0\0{}", 10);
    expect_refused("m.safetensors: header of 3 bytes does not fit a file of 10");
    put_file("m.safetensors", "\0\xe1\xf5\5\0\0\0\0{}", 10);
    expect_refused("m.safetensors: header of 100000000 bytes does not fit a file of 10");
}

Test(store, refuses_a_header_over_the_limit)
{
    put_file("m.safetensors", "\1\xe1\xf5\5\0\0\0\0{}", 10);
    expect_refused("m.safetensors: header of 100000001 bytes is over the limit of 100000000");
    put_file("m.safetensors", "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
    expect_refused(
        "m.safetensors: header of 18446744073709551615 bytes is over the limit of 100000000");
}

Test(store, the_largest_header_is_read)
{
    int fd;
    put_file("m.safetensors", "\0\xe1\xf5\5\0\0\0\0{}", 10);
    cr_assert_eq(mp_open_write(in_dir("m.safetensors"), &fd, &err), 0);
    cr_assert_eq(mp_file_resize(fd, "m", 100000008, &err), 0);
    close(fd);
    expect_refused("m.safetensors: header byte 2: expected nothing after the object");
}

/* ------------------------------------------------------------------------
 * Headers that are accepted
 */

#define OPEN(json, data_bytes)                                                \
    do {                                                                      \
        put_safetensors("m.safetensors", json, sizeof(json) - 1, data_bytes); \
        expect_opens();                                                       \
    } while (0)

Test(store, accepts_nothing_at_all)
{
    OPEN("{}", 0);
    cr_assert_eq(ckpt.num_tensors, 0);
    cr_assert_eq(ckpt.num_shards, 1);
    cr_assert_null(mp_checkpoint_find(&ckpt, "a"));
}

Test(store, accepts_white_space_between_and_behind)
{
    /* clang-format off */
    OPEN("{ \"a\"\t:\n" ENTRY("U8", "[ 4 ]", "[0, 4]")
         "\r\n,\"b\" : " ENTRY("U8", "[1]", "[4,5]") " } \n\t ", 5);
    /* clang-format on */
    cr_assert_eq(ckpt.num_tensors, 2);
}

Test(store, accepts_an_empty_name)
{
    OPEN("{\"\":" ENTRY("U8", "[]", "[0,1]") "}", 1);
    const mp_tensor *t = mp_checkpoint_find(&ckpt, "");
    cr_assert_not_null(t);
    cr_assert_eq(t->rank, 0);
    cr_assert_eq(t->bytes, 1);
}

Test(store, decodes_escapes_in_names)
{
    OPEN("{\"\\u00e9\\\"\\\\{[\":" ENTRY("U8", "[1]", "[0,1]") "}", 1);
    cr_assert_not_null(mp_checkpoint_find(&ckpt, "\xc3\xa9\"\\{["));
}

Test(store, ignores_unknown_fields)
{
    OPEN("{\"a\":{\"x\":{\"y\":[\"]}\\\"\",1.5e3]},\"dtype\":\"U8\",\"shape\":[3],"
         "\"data_offsets\":[0,3],\"z\":null}}",
         3);
    cr_assert_eq(ckpt.tensors[0].bytes, 3);
}

Test(store, accepts_empty_tensors_between_others)
{
    /* clang-format off */
    OPEN("{\"last\":" ENTRY("F32", "[0]", "[12,12]")
         ",\"b\":" ENTRY("U8", "[8]", "[4,12]")
         ",\"mid\":" ENTRY("F32", "[3,0]", "[4,4]")
         ",\"a\":" ENTRY("U8", "[4]", "[0,4]")
         ",\"first\":" ENTRY("U8", "[0]", "[0,0]")
         ",\"mid2\":" ENTRY("U8", "[0]", "[4,4]") "}", 12);
    /* clang-format on */
    cr_assert_eq(ckpt.num_tensors, 6);
    cr_assert_eq(mp_checkpoint_find(&ckpt, "mid")->bytes, 0);
    cr_assert_eq(mp_checkpoint_find(&ckpt, "mid")->shape[0], 3);
}

Test(store, zero_before_an_overflow_is_zero)
{
    OPEN("{\"a\":" ENTRY("U8", "[0,4294967296,4294967296]", "[0,0]") "}", 0);
    cr_assert_eq(ckpt.tensors[0].bytes, 0);
}

Test(store, accepts_unaligned_tensors)
{
    unsigned char got[8];
    OPEN("{\"b\":" ENTRY("F32", "[2]", "[1,9]") ",\"a\":" ENTRY("U8", "[1]", "[0,1]") "}", 9);
    const mp_tensor *t = mp_checkpoint_find(&ckpt, "b");
    cr_assert_eq((t->offset - ckpt.shards[0].header_bytes) % 4, 1);
    cr_assert_eq(mp_tensor_read(&ckpt, t, 0, 8, got, &err), 0);
    for (int i = 0; i < 8; i++)
        cr_assert_eq(got[i], i + 1);
}

Test(store, sub_byte_tensors_count_whole)
{
    OPEN("{\"a\":" ENTRY("F4", "[2,3]", "[0,3]") ",\"b\":" ENTRY("F6_E3M2", "[4,5]", "[3,18]") "}",
         18);
    cr_assert_eq(mp_checkpoint_find(&ckpt, "a")->bytes, 3);
    cr_assert_eq(mp_checkpoint_find(&ckpt, "b")->bytes, 15);
}

Test(store, takes_every_dtype)
{
    for (int i = 0; i < MP_DTYPE_COUNT; i++) {
        char json[200];
        unsigned bits = mp_dtype_bits((mp_dtype)i);
        int n = snprintf(json, sizeof(json), "{\"a\":" ENTRY("%s", "[3,4]", "[0,%u]") "}",
                         mp_dtype_name((mp_dtype)i), 12 * bits / 8);
        put_safetensors("m.safetensors", json, (size_t)n, 12 * bits / 8);
        expect_opens();
        cr_assert_eq(ckpt.tensors[0].dtype, (mp_dtype)i);
    }
}

Test(store, keeps_metadata_and_the_last_of_a_key)
{
    OPEN("{\"__metadata__\":{\"k\":\"one\",\"format\":\"pt\",\"k\":\"t\\u0077o\"}}", 0);
    cr_assert_eq(ckpt.num_metadata, 2);
    for (size_t i = 0; i < 2; i++) {
        const char *key = ckpt.metadata[2 * i];
        cr_assert_str_eq(ckpt.metadata[2 * i + 1], strcmp(key, "k") == 0 ? "two" : "pt");
    }
    OPEN("{\"__metadata__\":null}", 0);
    cr_assert_eq(ckpt.num_metadata, 0);
}

Test(store, digests_the_header)
{
    static const char file[] = "\2\0\0\0\0\0\0\0{}";
    mp_digest want;
    put_file("m.safetensors", file, 10);
    expect_opens();
    mp_digest_of(file, 10, &want);
    cr_assert_eq(memcmp(ckpt.shards[0].header_xxh3, want.bytes, 16), 0);
    cr_assert_eq(ckpt.shards[0].header_bytes, 10);
    cr_assert_eq(ckpt.shards[0].size, 10);
    cr_assert_eq(fcntl(ckpt.shards[0].fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
}

/* ------------------------------------------------------------------------
 * Reading
 */

Test(store, reads_inside_a_tensor_only)
{
    unsigned char got[6];
    OPEN("{\"a\":" ENTRY("U8", "[5]", "[0,5]") ",\"b\":" ENTRY("U8", "[6]", "[5,11]") "}", 11);
    const mp_tensor *b = mp_checkpoint_find(&ckpt, "b");
    cr_assert_eq(mp_tensor_read(&ckpt, b, 2, 4, got, &err), 0);
    cr_assert_eq(got[0], 7);
    cr_assert_eq(got[3], 10);
    cr_assert_eq(mp_tensor_read(&ckpt, b, 6, 0, got, &err), 0);
    mp_tensor_forget(&ckpt, b, 0, 6);

    cr_assert_eq(mp_tensor_read(&ckpt, b, 3, 4, got, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message,
                     "m.safetensors: tensor \"b\": 4 bytes from 3 are not inside its 6");
    cr_assert_eq(mp_tensor_read(&ckpt, b, 7, 0, got, &err), MP_ERR_INPUT);
    cr_assert_eq(mp_tensor_read(&ckpt, b, 1, UINT64_MAX, got, &err), MP_ERR_INPUT);
    cr_assert_eq(mp_tensor_read(&ckpt, b, UINT64_MAX, 2, got, NULL), MP_ERR_INPUT);
}

Test(store, notices_a_file_that_shrinks)
{
    unsigned char got[5];
    OPEN("{\"a\":" ENTRY("U8", "[5]", "[0,5]") "}", 5);
    uint64_t size = ckpt.shards[0].size;
    cr_assert_eq(truncate(in_dir("m.safetensors"), (off_t)size - 2), 0);
    cr_assert_eq(mp_tensor_read(&ckpt, &ckpt.tensors[0], 0, 5, got, &err), MP_ERR_IO);
    char want[200];
    snprintf(want, sizeof(want),
             "m.safetensors: tensor \"a\": \"m.safetensors\" ends at byte %llu, 2 bytes too early",
             (unsigned long long)size - 2);
    cr_assert_str_eq(err.message, want);
}
