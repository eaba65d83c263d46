/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as the index of a delta, or as the stream of a tensor: refused with a message, or
 * found to be what a plain reading of the format says. The first byte says what the others are. */
#include <moepack/delta.h>

#include "base/zstd_raw.h"
#include "fuzz.h"

#define TENSOR_BYTES 1000u
#define CONTENT_MAX  8192u
#define SUM          "00112233445566778899aabbccddeeff" /* that no content has */

enum { INDEX, STREAM_XOR, STREAM_OVERWRITE, CONTENT_XOR, CONTENT_OVERWRITE, KINDS };

static const char index_text[] =
    "{\"metadata\": {\"version\": \"000001\", \"base_version\": \"000000\", \"delta_encoding\": "
    "\"%s\", "
    "\"compression_format\": \"zstd\", \"checksum_format\": \"xxh3-128\"}, "
    "\"weight_map\": {\"x\": \"m.safetensors\"}}";

/* A shard with the tensor x. */
static void put_shard(const char *name, const void *data, uint64_t bytes, const char *sum)
{
    const mp_tensor_spec spec = {"x", MP_U8, 1, &bytes};
    const char *const metadata[] = {"x", sum};
    uint64_t header_bytes, offsets[2];
    char *header;

    require(mp_safetensors_header(&spec, 1, metadata, sum ? 1 : 0, 8, &header, &header_bytes,
                                  offsets, NULL) == 0,
            "header");
    header = realloc(header, header_bytes + bytes);
    memcpy(header + header_bytes, data, bytes);
    put(name, header, header_bytes + bytes, 0);
    free(header);
}

static void put_index(const char *encoding)
{
    char text[sizeof index_text + 16];
    int n = snprintf(text, sizeof text, index_text, encoding);

    put("delta/model.safetensors.index.json", text, (size_t)n, 0);
}

static uint32_t u32_at(const uint8_t *data)
{
    return data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24;
}

/* Whether content is an overwriting stream for the tensor. */
static bool overwrites(const uint8_t *data, size_t size)
{
    uint64_t count = size >= 4 ? u32_at(data) : 0;

    if (size < 4 || size != 4 + count * 5)
        return false;
    for (uint64_t i = 0; i < count; i++) {
        uint32_t position = u32_at(data + 4 + 4 * i);

        if (position >= TENSOR_BYTES || (i > 0 && position <= u32_at(data + 4 * i)))
            return false;
    }
    return true;
}

/* Checks the delta, with its base and without; returns whether the stream was taken. */
static bool check(bool *structure)
{
    char delta[300], base[300];
    mp_error err = {0};
    mp_verify_report report;
    const mp_context context = {.threads = 1};

    snprintf(delta, sizeof delta, "%s", in_dir("delta"));
    snprintf(base, sizeof base, "%s", in_dir("base"));
    *structure = false;
    bool taken = false;
    if (mp_delta_verify(delta, NULL, &context, &report, &err) == 0) {
        *structure = report.total_faults == 0;
        mp_verify_report_release(&report);
    } else {
        require_message(&err);
    }
    err = (mp_error){0};
    if (mp_delta_verify(delta, base, &context, &report, &err) == 0) {
        require(report.tensors <= 1, "one tensor");
        require(report.tensors == 0 || report.total_faults == 1, "the checksum cannot fit");
        taken = report.tensors == 1 && strstr(report.faults[0].detail, "the xxh3-128 is ");
        mp_verify_report_release(&report);
    } else {
        require_message(&err);
    }
    return taken;
}

static void try_content(const uint8_t *data, size_t size, bool overwrite)
{
    static uint8_t frame[2 * CONTENT_MAX];
    uint32_t checksum;
    size_t stored;
    bool structure;

    if (size > CONTENT_MAX)
        return;
    require(mp_frame_store(data, size, frame, &stored, &checksum, NULL) == 0, "frame");
    put_shard("delta/m.safetensors", frame, stored, SUM);
    put_index(overwrite ? "overwrite" : "xor");
    bool taken = check(&structure);
    require(taken == (overwrite ? overwrites(data, size) : size == TENSOR_BYTES), "what is taken");
    require(structure || overwrite, "any content is well-formed to xor");
    require(structure || !taken, "what is taken is well-formed");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t zeros[TENSOR_BYTES];
    bool structure;

    if (dir[0] == '\0') {
        make_dir();
        require(mp_make_dir(in_dir("base"), NULL) == 0 && mp_make_dir(in_dir("delta"), NULL) == 0,
                "directories");
        put_shard("base/m.safetensors", zeros, sizeof zeros, NULL);
    }
    if (size == 0)
        return 0;
    int kind = data[0] % KINDS;
    data++;
    size--;
    if (kind == INDEX) {
        put_shard("delta/m.safetensors", "", 0, SUM);
        put("delta/model.safetensors.index.json", data, size, 0);
        check(&structure);
    } else if (kind == STREAM_XOR || kind == STREAM_OVERWRITE) {
        put_shard("delta/m.safetensors", data, size, SUM);
        put_index(kind == STREAM_XOR ? "xor" : "overwrite");
        check(&structure);
    } else {
        try_content(data, size, kind == CONTENT_OVERWRITE);
    }
    return 0;
}
