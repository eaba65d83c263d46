/* SPDX-License-Identifier: Apache-2.0 */
/* What commands that write or show compressed shards have in common. */
#include "zstd.h"

#include "output.h"
#include "values.h"

#include <string.h>

int zstd_level(const char *option, const char *text, int *level, mp_error *err)
{
    uint64_t value;

    *level = MP_ZSTD_AUTO;
    if (strcmp(text, "auto") == 0)
        return 0;
    if (!value_u64(text, &value) || value < 1 || value > MP_ZSTD_LEVEL_MAX)
        return cmd_fail(err, MP_ERR_USAGE, "option --%s: '%s' is neither auto nor 1 to %d", option,
                        text, MP_ZSTD_LEVEL_MAX);
    *level = (int)value;
    return 0;
}

int zstd_option(const char *text, bool given, int *level, mp_error *err)
{
    *level = given ? MP_ZSTD_AUTO : MP_ZSTD_NONE;
    return given && text ? zstd_level("zstd", text, level, err) : 0;
}

static double percent(uint64_t stored, uint64_t plain)
{
    return plain > 0 ? 100 * (double)stored / (double)plain : 100;
}

void zstd_print(FILE *out, const mp_compress_report *report)
{
    char plain[SIZE_TEXT], stored[SIZE_TEXT];

    fprintf(out, "%llu shard%s, %s plain, %s stored: %.1f%%\n", (unsigned long long)report->shards,
            plural(report->shards), size_text(report->plain, plain),
            size_text(report->stored, stored), percent(report->stored, report->plain));
    for (int d = 0; d < MP_DTYPE_COUNT; d++) {
        const mp_compress_sum *sum = &report->sums[d];

        if (sum->tensors > 0)
            fprintf(out, "  %-8s %6llu tensor%-1s  %10s  %10s  %5.1f%%\n",
                    mp_dtype_name((mp_dtype)d), (unsigned long long)sum->tensors,
                    plural(sum->tensors), size_text(sum->plain, plain),
                    size_text(sum->stored, stored), percent(sum->stored, sum->plain));
    }
}

json_t *zstd_json(const mp_compress_report *report)
{
    json_t *list = json_array();

    for (int d = 0; list && d < MP_DTYPE_COUNT; d++) {
        const mp_compress_sum *sum = &report->sums[d];

        if (sum->tensors > 0)
            json_array_append_new(
                list, json_pack("{s:s, s:I, s:I, s:I}", "dtype", mp_dtype_name((mp_dtype)d),
                                "tensors", (json_int_t)sum->tensors, "plain_bytes",
                                (json_int_t)sum->plain, "stored_bytes", (json_int_t)sum->stored));
    }
    return json_pack("{s:I, s:I, s:I, s:o}", "shards", (json_int_t)report->shards, "plain_bytes",
                     (json_int_t)report->plain, "stored_bytes", (json_int_t)report->stored,
                     "tensors", list);
}
