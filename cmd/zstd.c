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

double zstd_percent(uint64_t stored, uint64_t plain)
{
    return plain > 0 ? 100 * (double)stored / (double)plain : 100;
}

void zstd_print_sums(FILE *out, const mp_compress_sum sums[MP_DTYPE_COUNT])
{
    char plain[SIZE_TEXT], stored[SIZE_TEXT];

    for (int d = 0; d < MP_DTYPE_COUNT; d++)
        if (sums[d].tensors > 0)
            fprintf(out, "  %-8s %6llu tensors  %10s  %10s  %5.1f%%\n", mp_dtype_name((mp_dtype)d),
                    (unsigned long long)sums[d].tensors, size_text(sums[d].plain, plain),
                    size_text(sums[d].stored, stored), zstd_percent(sums[d].stored, sums[d].plain));
}

json_t *zstd_sums_json(const mp_compress_sum sums[MP_DTYPE_COUNT])
{
    json_t *list = json_array();

    for (int d = 0; list && d < MP_DTYPE_COUNT; d++)
        if (sums[d].tensors > 0)
            json_array_append_new(list, json_pack("{s:s, s:I, s:I, s:I}", "dtype",
                                                  mp_dtype_name((mp_dtype)d), "tensors",
                                                  (json_int_t)sums[d].tensors, "plain_bytes",
                                                  (json_int_t)sums[d].plain, "stored_bytes",
                                                  (json_int_t)sums[d].stored));
    return list;
}
