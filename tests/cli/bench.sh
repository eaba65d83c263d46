#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# moepack bench: what is measured, and in which form it is printed. Speeds are not judged.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

fast='--seconds 0.0001'

it "measures a kernel at every level"
# shellcheck disable=SC2086
run moepack bench --kernel e4m3_decode $fast --json
assert_status 0
assert_stderr_is ''
assert_json '[.[].kernel] | unique' '["e4m3_decode"]'
assert_json '.[0].level' '"scalar"'
assert_json 'length == ([.[].level] | unique | length) and length >= 1' true
assert_json '[.[] | .bytes_in, .bytes_out] | unique' '[16384,65536]'
assert_json 'all(.[]; .gb_s > 0 and .memcpy_gb_s > 0)' true
assert_json 'all(.[]; (.gb_s / .memcpy_gb_s - .of_memcpy | fabs) < 1e-9)' true
assert_json '[.[].memcpy_gb_s] | unique | length' 1

it "measures every scheme"
# shellcheck disable=SC2086
run moepack bench --level scalar $fast --json
assert_status 0
assert_json '[.[].level] | unique' '["scalar"]'
assert_json '[.[].kernel] | length == (unique | length)' true
schemes='"bf16","f16","f32","mxfp4","mxfp8","fp8_block","fp8_group","fp8_channel","fp8_tensor","nvfp4","int8_channel","int4_group"'
written='"bf16","mxfp4","mxfp8","fp8_block","fp8_group","fp8_channel","nvfp4","int8_channel"'
assert_json '[.[].kernel | select(startswith("decode:"))[7:]]' "[$schemes]"
assert_json '[.[].kernel | select(startswith("check:"))[6:]]' "[$schemes]"
assert_json '[.[].kernel | select(startswith("encode:"))[7:]]' "[$written]"
assert_json '[.[].kernel | select(startswith("requantize:fp8_block:"))[21:]]' "[$written]"
# 4096 columns: 2 bytes each, or half a byte and a scale for 32.
assert_json '.[] | select(.kernel == "requantize:bf16:mxfp4") | [.bytes_in, .bytes_out]' \
    '[262144,69632]'

it "measures every kernel of the public header"
# shellcheck disable=SC2086
run moepack bench --level scalar --kernel '[!:]*[a-z0-9]' $fast --json
sed -n '/^typedef struct mp_kernels/,/^} mp_kernels/p' "$ROOT/lib/numeric/kernels.h" |
    sed -n 's/^    [a-z0-9_]* (\*\([a-z0-9_]*\))(.*/\1/p' | sort >expected
jq -r '.[].kernel | select(contains(":") | not)' "$stdout" | sort >found
assert_file_is found <expected

it "selects by pattern, and prints a table"
# shellcheck disable=SC2086
run moepack bench --kernel 'encode:fp8_*' --level scalar $fast
assert_status 0
assert_stderr_is ''
assert_equal "$(awk 'NR > 3 { print $1, NF }' "$stdout" | xargs)" \
    'encode:fp8_block 3 encode:fp8_group 3 encode:fp8_channel 3'
assert_equal "$(sed -n 3p "$stdout" | xargs)" 'kernel scalar'
assert_stdout_has "GB/s read and written on one thread, and as a fraction of memcpy's "

it "measures a level whatever MOEPACK_CPU says"
# shellcheck disable=SC2086
run env MOEPACK_CPU=nonsense "$MOEPACK" bench --kernel scale --level scalar $fast --json
assert_status 0
assert_json '[.[].level]' '["scalar"]'

it "reads what the measuring process writes through interruptions, and gives up on errors"
fail_io=$(dirname "$MOEPACK")/fail_io.so
for how in EINTR short EIO; do
    # shellcheck disable=SC2086
    run env LD_PRELOAD="$fail_io" FAIL_CALL=read FAIL_PATH=pipe: FAIL_WITH=$how \
        timeout -s KILL 60 "$MOEPACK" bench --kernel scale --level scalar $fast
    if [ $how = EIO ]; then
        assert_status 4
        assert_stdout ''
        assert_stderr_is 'moepack: bench: scalar: the measuring process ended early'
    else
        assert_status 0
        assert_stderr_is ''
    fi
done

it "refuses what there is not"
run moepack bench --kernel nothing
assert_status 2
assert_stdout ''
assert_stderr_has "--kernel 'nothing' matches no kernel; without it all are listed"
run moepack bench --level sse9
assert_status 2
other=neon
[ "$(uname -m)" = aarch64 ] && other=avx2
run moepack bench --level $other
assert_status 5
assert_stdout ''
assert_stderr_is "moepack: bench: this processor has no $other"
run moepack bench --seconds 0
assert_status 2

finish
