/* SPDX-License-Identifier: Apache-2.0 */
/* Compressed shards as a checkpoint sees them: one that is cut off, anywhere, is refused. */
#include "store_files.h"

#include "checkpoint/compress.h"

/* Tensors of 700, 1 and 39 bytes. */
static const char header[] = "{\"a\":" ENTRY("I8", "[700]", "[0,700]") ",\"b\":" ENTRY(
    "I8", "[1]", "[700,701]") ",\"c\":" ENTRY("I8", "[3,13]", "[701,740]") "}";

/* What put_safetensors has put there. */
static void expect_tensors(size_t cut)
{
    unsigned char bytes[740];
    size_t begin = 0;

    cr_assert_eq(ckpt.num_tensors, 3);
    for (size_t t = 0; t < 3; begin += ckpt.tensors[t++].bytes) {
        const mp_tensor *tensor = &ckpt.tensors[t];

        cr_assert_eq(mp_tensor_read(&ckpt, tensor, 0, tensor->bytes, bytes, &err), 0, "%s",
                     err.message);
        for (size_t i = 0; i < tensor->bytes; i++)
            cr_assert_eq(bytes[i], (unsigned char)(begin + i), "cut at %zu: %s", cut, tensor->name);
    }
}

/* Behind the last frame only the seek table is missing, and frames are found without it. */
Test(compress, shards_cut_anywhere_are_refused, .init = make_scratch, .fini = remove_scratch)
{
    const size_t frames = 4, table = 8 + 12 * frames + 9;
    char plain[512], *text;
    uint64_t size;

    put_safetensors("model.safetensors", header, sizeof header - 1, 740);
    snprintf(plain, sizeof plain, "%s", in_dir("model.safetensors"));
    cr_assert_eq(mp_file_compress(plain, in_dir("model.safetensors.zst"), MP_ZSTD_AUTO, NULL, &err),
                 0, "%s", err.message);
    cr_assert_eq(unlink(plain), 0);
    expect_opens();
    expect_tensors(0);
    cr_assert_eq(mp_read_text(in_dir("model.safetensors.zst"), 1 << 20, &text, &size, &err), 0);
    for (size_t cut = 0; cut < size; cut++) {
        put_file("model.safetensors.zst", text, cut);
        if (cut == size - table) {
            expect_opens();
            expect_tensors(cut);
            continue;
        }
        cr_assert_eq(open_dir(), MP_ERR_INPUT, "cut at %zu: %s", cut, err.message);
        cr_assert_eq(strncmp(err.message, "model.safetensors.zst: ", 23), 0, "%s", err.message);
    }
    free(text);
}
