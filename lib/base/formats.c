/* SPDX-License-Identifier: Apache-2.0 */
/* The element types and the quantization schemes: their names and widths, once. */
#include <moepack/base.h>

#include <string.h>

#include "base/words.h"

#define DTYPES(entry)                                                                   \
    entry(MP_BOOL, "BOOL", 8) entry(MP_F4, "F4", 4) entry(MP_F6_E2M3, "F6_E2M3", 6)     \
        entry(MP_F6_E3M2, "F6_E3M2", 6) entry(MP_U8, "U8", 8) entry(MP_I8, "I8", 8)     \
            entry(MP_F8_E4M3, "F8_E4M3", 8) entry(MP_F8_E5M2, "F8_E5M2", 8)             \
                entry(MP_F8_E8M0, "F8_E8M0", 8) entry(MP_F8_E4M3FNUZ, "F8_E4M3FNUZ", 8) \
                    entry(MP_F8_E5M2FNUZ, "F8_E5M2FNUZ", 8) entry(MP_I16, "I16", 16)    \
                        entry(MP_U16, "U16", 16) entry(MP_F16, "F16", 16)               \
                            entry(MP_BF16, "BF16", 16) entry(MP_I32, "I32", 32)         \
                                entry(MP_U32, "U32", 32) entry(MP_F32, "F32", 32)       \
                                    entry(MP_C64, "C64", 64) entry(MP_F64, "F64", 64)   \
                                        entry(MP_I64, "I64", 64) entry(MP_U64, "U64", 64)

#define SCHEMES(entry)                                                                    \
    entry(MP_SCHEME_BF16, "bf16", 16) entry(MP_SCHEME_F16, "f16", 16)                     \
        entry(MP_SCHEME_F32, "f32", 32) entry(MP_SCHEME_MXFP4, "mxfp4", 4)                \
            entry(MP_SCHEME_MXFP8, "mxfp8", 8) entry(MP_SCHEME_FP8_BLOCK, "fp8_block", 8) \
                entry(MP_SCHEME_FP8_GROUP, "fp8_group", 8)                                \
                    entry(MP_SCHEME_FP8_CHANNEL, "fp8_channel", 8)                        \
                        entry(MP_SCHEME_FP8_TENSOR, "fp8_tensor", 8)                      \
                            entry(MP_SCHEME_NVFP4, "nvfp4", 4)                            \
                                entry(MP_SCHEME_INT8_CHANNEL, "int8_channel", 8)          \
                                    entry(MP_SCHEME_INT4_GROUP, "int4_group", 4)

struct format {
    const char *name;
    unsigned bits;
};

#define ROW(value, name, bits) [value] = {name, bits},
#define ONE(value, name, bits) +1

static const struct format dtypes[] = {DTYPES(ROW)};
static const struct format schemes[] = {SCHEMES(ROW)};

/* As many entries as values, and no value twice (-Woverride-init): none is missing. */
_Static_assert(0 DTYPES(ONE) == MP_DTYPE_COUNT, "a dtype without an entry");
_Static_assert(0 SCHEMES(ONE) == MP_SCHEME_COUNT, "a scheme without an entry");
_Static_assert(sizeof(dtypes) / sizeof(dtypes[0]) == MP_DTYPE_COUNT, "dtype out of range");
_Static_assert(sizeof(schemes) / sizeof(schemes[0]) == MP_SCHEME_COUNT, "scheme out of range");

/* Index of the format of that name, or count. */
static size_t find(const struct format *formats, size_t count, const char *name)
{
    size_t i = 0;
    while (i < count && strcmp(formats[i].name, name) != 0)
        i++;
    return i;
}

const char *mp_dtype_name(mp_dtype dtype)
{
    return dtypes[dtype].name;
}

unsigned mp_dtype_bits(mp_dtype dtype)
{
    return dtypes[dtype].bits;
}

bool mp_dtype_parse(const char *name, mp_dtype *dtype)
{
    size_t i = find(dtypes, MP_DTYPE_COUNT, name);
    if (i == MP_DTYPE_COUNT)
        return false;
    *dtype = (mp_dtype)i;
    return true;
}

const char *mp_scheme_name(mp_scheme scheme)
{
    return schemes[scheme].name;
}

unsigned mp_scheme_bits(mp_scheme scheme)
{
    return schemes[scheme].bits;
}

bool mp_scheme_parse(const char *name, mp_scheme *scheme)
{
    size_t i = find(schemes, MP_SCHEME_COUNT, name);
    if (i == MP_SCHEME_COUNT)
        return false;
    *scheme = (mp_scheme)i;
    return true;
}
