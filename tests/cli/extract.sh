#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# extract copies what an expert's slot holds, and inspect --ranges says where that is.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

# H = 384, I = 256, 5 experts and a shared one, layers "layers.0" and "mtp.0"; on two ranks 3 slots
# each. The slots of layers.0 hold the experts 4 0 2 and 1 3 2.
source=$ROOT/testdata/fixtures/v4-fp4
"$MOEPACK" repack "$source" --target megamoe-w4a8 --ep 2 --placement "$source/placement.json" \
    -q -o "$WORK/sound" 2>"$stderr" || cat "$stderr"
pack=$WORK/sound

# The data of a safetensors file.
data_of()
{
    tail -c +$((9 + $(od -An -t u8 -N 8 "$1"))) "$1"
}

header_of()
{
    tail -c +9 "$1" | head -c "$(od -An -t u8 -N 8 "$1" | tr -d ' ')"
}

it "copies the tensors of an expert"
run moepack extract "$pack" --layer 0 --expert 3 -o one.safetensors
assert_status 0
assert_stdout ''
assert_stderr_is ''
assert_equal "$(header_of one.safetensors | jq -c 'del(.__metadata__) | map_values([.dtype, .shape])')" \
    '{"layers.0.experts.l1_weight":["I8",[1,512,192]],"layers.0.experts.l1_weight_sf":["I32",[1,3,512]],"layers.0.experts.l2_weight":["I8",[1,384,128]],"layers.0.experts.l2_weight_sf":["I32",[1,2,384]]}'
assert_equal "$(header_of one.safetensors | jq -c .__metadata__)" \
    '{"format":"pt","target":"megamoe-w4a8","layer":"layers.0","expert":"3"}'

it "copies the bytes that inspect --ranges names"
run moepack inspect "$pack" --ranges --json
assert_status 0
assert_json '.ranges | length' 48
assert_json '[.ranges[] | select(.layer == "layers.0" and .expert == 2) | [.rank, .slot]] | unique' \
    '[[0,2],[1,2]]'
assert_json '[.ranges[] | select(.layer == "layers.0" and .expert == 3) | .file] | unique' \
    '["rank-001/model-00001-of-00001.safetensors"]'
jq -r '.ranges[] | select(.layer == "layers.0" and .expert == 3) | [.file, .offset, .length] | @tsv' \
    "$stdout" | while read -r file offset length; do
    tail -c +$((offset + 1)) "$pack/$file" | head -c "$length"
done >bytes
moepack extract "$pack" --layer layers.0 --expert 3 -o one.safetensors
data_of one.safetensors | cmp - bytes
assert $? 'other bytes'
assert_equal "$(wc -c <bytes)" 156672

it "prints ranges as text"
run moepack inspect "$pack" --ranges
assert_status 0
assert_equal "$(grep -c ' + ' "$stdout")" 48
assert_stdout_has 'mtp.0 expert 4  rank '

it "reads the ranks that are here"
cp -r "$pack" out
rm -r out/rank-000
run moepack extract out --layer 0 --expert 2 -o two.safetensors
assert_status 0
moepack extract "$pack" --layer 0 --expert 2 -o first.safetensors
cmp two.safetensors first.safetensors
assert $? 'copies differ'
run moepack extract out --layer 0 --expert 4 -o four.safetensors
assert_status 3
assert_stderr_is 'moepack: extract: layers.0: no rank that is present holds a copy of expert 4'
assert_equal "$(ls)" $'first.safetensors\nout\ntwo.safetensors'

it "copies shared experts that are packed"
moepack repack "$source" --target megamoe-w4a8 --ep 2 --shared fused --requantize-shared -q -o out --redundant 1
run moepack extract out --layer 0 --expert 5 -o shared.safetensors
assert_status 0
run moepack extract out --layer 0 --expert 6 -o six.safetensors
assert_status 2
assert_stderr_has '--expert 6: layers.0 has the experts 0 to 5'

it "refuses what the pack has not, and writes nothing"
run moepack extract "$pack" --layer 7 --expert 0 -o x
assert_status 2
assert_stdout ''
assert_equal "$(ls)" ''
run moepack extract "$pack" --layer 0 --expert 5 -o x
assert_status 2
assert_stderr_is <<'END'
moepack: extract: --expert 5: layers.0 has the experts 0 to 4
try 'moepack extract --help'
END
run moepack extract "$source" --layer 0 --expert 0 -o x
assert_status 3
assert_equal "$(ls)" ''
run moepack extract "$pack" --layer 0 --expert 0 -o no/such/directory
assert_status 4
assert_stderr_is 'moepack: extract: cannot write "no/such/directory": No such file or directory'

it "has no ranges of a checkpoint, nor of a broken pack"
run moepack inspect "$source" --ranges
assert_status 2
assert_stderr_has '--ranges is for packs'
cp -r "$pack" out
truncate -s -1 out/rank-001/model-00001-of-00001.safetensors
run moepack inspect out --ranges --json
assert_status 3
assert_json .ranges null

it "has no ranges of compressed shards, and extracts from them what it does from plain ones"
moepack compress "$pack" -o compressed -q
run moepack inspect compressed --ranges
assert_status 5
assert_stderr_is 'moepack: inspect: "compressed" has compressed shards, in which experts cannot be located: use moepack decompress or moepack extract'
moepack extract "$pack" --layer 0 --expert 1 -o plain.safetensors
run moepack extract compressed --layer 0 --expert 1 -o same.safetensors
assert_status 0
assert_equal "$(cmp plain.safetensors same.safetensors)" ''

finish
