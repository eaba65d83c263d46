#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The example of libmoepack(3): that the page has its code, and that it does what it says.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

built=$(dirname "$MOEPACK")
code=$ROOT/tests/examples/repack.c

# A checkpoint of 6 experts in two layers, and the example as ./repack.
prepare()
{
    moepack synth -q --preset deepseek-v4-flash --hidden 384 --intermediate 256 --experts 6 \
        --layers 2 --mtp 0 --vocab 40 --seed 5 -o source
    run gcc -std=c11 -Wall -Wextra -Werror -I"$ROOT/include" "$code" -o repack \
        -L"$built" -lmoepack -Wl,-rpath,"$built"
    assert_status 0
}

# The first three bytes of a tensor of a rank of the pack, in hex.
first_bytes()
{
    local file length data

    file=$(echo "packed/rank-00$1/"*.safetensors)
    length=$(od -An -t u8 -N 8 "$file" | tr -d ' ')
    data=$(tail -c +9 "$file" | head -c "$length" | jq --arg name "$2" '.[$name].data_offsets[0]')
    tail -c +$((8 + length + data + 1)) "$file" | od -An -t x1 -N 3
}

it "stands in the manual page as it is tested"
sed -n '/^#include/,$p' "$code" >expected
sed -n '/^\.Sh EXAMPLES/,$p' "$ROOT/man/libmoepack.3" |
    sed -n '/^\.Bd -literal/,/^\.Ed/p' | sed '/^\./d; s/\\e/\\/g' >found
assert_file_is found <expected

it "packs, checks, and finds the copies of an expert"
prepare
run ./repack source packed
assert_status 0
assert_stderr_is ''
bytes=$(first_bytes 0 layers.0.experts.l1_weight)
assert_stdout "rank 0, slot 0:$bytes
rank 1, slot 2:$bytes"
assert_equal "$(moepack map --placement packed/placement.json --ep 2 --layer 0 |
    awk '$4 == "routed" && $5 == 0 { print $2, $3 }')" '0 0
1 2'

it "gives the pack that the command gives"
prepare
run ./repack source packed
run moepack repack -q source --target megamoe-w4a8 --ep 2 --redundant 2 -o commanded
assert_status 0
for pack in packed commanded; do
    jq -S 'del(.command, .xxh3)' $pack/moepack.json >$pack.json
    rm $pack/moepack.json
done
run diff -r packed commanded
assert_status 0
assert_file_is packed.json <commanded.json

it "says what is wrong"
prepare
run ./repack nowhere packed
assert_status 4
assert_stderr_is 'repack: cannot open "nowhere": No such file or directory'
mkdir packed
run ./repack source packed
assert_status 2
assert_stderr_has 'repack: "packed" exists'

finish
