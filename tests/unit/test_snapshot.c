/* SPDX-License-Identifier: Apache-2.0 */
/* What the readers of snapshots stand on: the hashes and the JSON text of others. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/sha.h"

/* Pieces of every size give what the whole gives. */
static void check_sha(void (*begin)(mp_sha *sha), const char *text, const char *want)
{
    size_t length = strlen(text);

    for (size_t piece = 1; piece <= length + 1; piece += 7) {
        char digest[MP_SHA_TEXT];
        mp_sha sha;

        begin(&sha);
        for (size_t at = 0; at < length; at += piece)
            mp_sha_update(&sha, text + at, length - at < piece ? length - at : piece);
        cr_assert_str_eq(mp_sha_end(&sha, digest), want, "\"%s\" by %zu", text, piece);
    }
}

/* The examples of FIPS 180 and texts around the end of a block, as sha1sum and sha256sum say. */
Test(snapshot, sha_is_that_of_the_standard)
{
    static const char two[] = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    static const char block[] = "0123456789012345678901234567890123456789012345678901234567890123";

    check_sha(mp_sha1_begin, "", "da39a3ee5e6b4b0d3255bfef95601890afd80709");
    check_sha(mp_sha1_begin, "abc", "a9993e364706816aba3e25717850c26c9cd0d89d");
    check_sha(mp_sha1_begin, two, "84983e441c3bd26ebaae4aa1f95129e5e54670f1");
    check_sha(mp_sha1_begin, block, "cf0800f7644ace3cb4c3fa33388d3ba0ea3c8b6e");
    check_sha(mp_sha256_begin, "",
              "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    check_sha(mp_sha256_begin, "abc",
              "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    check_sha(mp_sha256_begin, two,
              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    check_sha(mp_sha256_begin, block,
              "9674d9e078535b7cec43284387a6ee39956188e735a85452b0050b55341cda56");
}

/* What json.dumps(json.loads(text), sort_keys=True) of Python 3.11 printed. */
Test(snapshot, json_is_written_as_python_does)
{
    static const struct {
        const char *text, *python;
    } cases[] = {
        {"{\"b\":[1,-2,{}],\"a\":null,\"B\":true}",
         "{\"B\": true, \"a\": null, \"b\": [1, -2, {}]}"},
        {"[0.9, 1.0, 100.0, 0.0001, 0.00001, 123456789.125]",
         "[0.9, 1.0, 100.0, 0.0001, 1e-05, 123456789.125]"},
        {"[1e16, 1e15, 1.5e300, -0.0, 0.1]", "[1e+16, 1000000000000000.0, 1.5e+300, -0.0, 0.1]"},
        {"[\"a\\\"\\\\\\n\\t\\u0001\\u007f/\"]", "[\"a\\\"\\\\\\n\\t\\u0001\\u007f/\"]"},
        {"[\"\\u00e8\\u20ac\\ud83d\\ude00\"]", "[\"\\u00e8\\u20ac\\ud83d\\ude00\"]"},
        {"[[], {\"a\": []}, false]", "[[], {\"a\": []}, false]"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        mp_error err;
        json_t *json = NULL;

        cr_assert_eq(mp_json_parse(cases[i].text, strlen(cases[i].text), "t", &json, &err), 0, "%s",
                     err.message);
        char *text = mp_json_text_python(json);
        cr_assert_str_eq(text, cases[i].python);
        free(text);
        json_decref(json);
    }
}
