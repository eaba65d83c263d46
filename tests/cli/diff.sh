#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# diff: what it prints, and its exit status, of checkpoints, packed directories and files.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

# H = 384, I = 256, 5 experts, layers "layers.0" and "mtp.0".
v4=$ROOT/testdata/fixtures/v4-fp4
v4_flags=(--target megamoe-w4a8 --ep 2 --placement "$v4/placement.json" -q)

# A safetensors file of one F32 tensor "x" of the numbers given as bytes: FILE BYTES COUNT.
put_floats()
{
    local header

    header='{"x":{"dtype":"F32","shape":['$3'],"data_offsets":[0,'$((4 * $3))']}}'
    {
        # shellcheck disable=SC2059
        printf "\\x$(printf %02x ${#header})\0\0\0\0\0\0\0%s$2" "$header"
    } >"$1"
}

# 1, 2, 3, and 1, 2, 5.
put_two()
{
    put_floats a.safetensors '\0\0\200\077\0\0\0\100\0\0\100\100' 3
    put_floats b.safetensors '\0\0\200\077\0\0\0\100\0\0\240\100' 3
}

# Flips bits of a byte of a tensor: FILE TENSOR BYTE MASK.
flip()
{
    local length begin byte

    length=$(od -An -t u8 -N 8 "$1" | tr -d ' ')
    begin=$(tail -c +9 "$1" | head -c "$length" | jq --arg name "$2" '.[$name].data_offsets[0]')
    begin=$((8 + length + begin + $3))
    byte=$(od -An -t u1 -j $begin -N 1 "$1")
    # shellcheck disable=SC2059
    printf "\\$(printf %03o $((byte ^ $4)))" | dd of="$1" bs=1 seek=$begin conv=notrunc status=none
}

# ---------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------

it "measures how far two tensors are apart"
put_two
run moepack diff a.safetensors b.safetensors
assert_status 1
assert_stderr_is ''
assert_stdout <<'END'
x: max abs 2, rel. L2 3.651e-01, SQNR 8.75 dB
different: 1 of 1 pair differs, worst rel. L2 3.651e-01 in x
END
run moepack diff a.safetensors a.safetensors
assert_status 0
assert_stdout 'equal: 0 of 1 pair differs'

it "prints JSON"
put_two
run moepack diff a.safetensors b.safetensors --json
assert_status 1
assert_json '[.equal, .differing, .tolerated, .only_in_a, .only_in_b]' '[false,1,0,[],[]]'
assert_json '.pairs[0] | [.name, .equal, .differs, .max_abs, .note]' '["x",false,true,2,null]'
assert_json '.pairs[0] | [.rel_l2, .sqnr_db] | map(. * 10000 | round)' '[3651,87506]'
run moepack diff a.safetensors a.safetensors --json
assert_status 0
assert_json . '{"equal":true,"differing":0,"tolerated":0,"pairs":[{"name":"x","equal":true,"differs":false,"max_abs":0,"rel_l2":0,"sqnr_db":null,"note":null}],"only_in_a":[],"only_in_b":[]}'

it "tolerates a difference up to a bound"
put_two
run moepack diff a.safetensors b.safetensors --tolerance 0.3652
assert_status 0
assert_stdout 'equal: 0 of 1 pair differs, 1 within the tolerance, worst rel. L2 3.651e-01 in x'
run moepack diff a.safetensors b.safetensors --tolerance 0.3651
assert_status 1
run moepack diff a.safetensors b.safetensors --tolerance 0.3652 --json
assert_json '[.equal, .tolerated, .pairs[0].equal, .pairs[0].differs]' '[true,1,false,false]'

it "says nothing when told to be quiet"
put_two
run moepack diff -q a.safetensors b.safetensors
assert_status 1
assert_stdout ''
assert_stderr_is ''

it "tells shapes, NaN and infinities that differ"
put_two
put_floats b.safetensors '\0\0\200\077\0\0\0\100' 2
run moepack diff a.safetensors b.safetensors
assert_status 1
assert_stdout <<'END'
x: [3], in the other [2]
different: 1 of 1 pair differs, worst x
END
put_floats b.safetensors '\0\0\200\077\0\0\0\100\0\0\300\177' 3
run moepack diff a.safetensors b.safetensors
assert_status 1
assert_stdout <<'END'
x: NaN or infinite on one side
different: 1 of 1 pair differs, worst x
END
run moepack diff a.safetensors b.safetensors --json
assert_json '.pairs[0] | [.max_abs, .rel_l2, .sqnr_db]' '[null,null,null]'
run moepack diff b.safetensors b.safetensors
assert_status 0

# ---------------------------------------------------------------------------
# Checkpoints
# ---------------------------------------------------------------------------

it "holds a checkpoint against its quantization"
run moepack quantize "$v4" --format bf16 -q -o exact
assert_status 0
run moepack diff "$v4" exact
assert_status 0
assert_stdout 'equal: 0 of 43 pairs differ'
run moepack quantize exact --format nvfp4 -q -o lossy
run moepack diff lossy exact
assert_status 1
assert_stdout_has 'layers.0.0.gate: max abs '
assert_stdout_has '... and 10 more'
assert_stdout_has 'different: 30 of 43 pairs differ, worst rel. L2 '
assert_equal "$(wc -l <"$stdout")" 22
run moepack diff lossy exact --all
assert_equal "$(wc -l <"$stdout")" 31
run moepack diff lossy exact --tolerance 0.2
assert_status 0
assert_stdout_has 'equal: 0 of 43 pairs differ, 30 within the tolerance, worst rel. L2 '

it "compares the layers that are asked for"
run moepack diff "$v4" "$v4" --layers 0 --json
assert_status 0
assert_json '.pairs | length' 21
run moepack diff "$v4" "$v4" --layers mtp.0 --json
assert_json '.pairs | map(.name | startswith("mtp.0.")) | all' true
run moepack diff "$v4" "$v4" --layers 1
assert_status 2
assert_stderr_has 'list "1": "1" names no layer'

it "compares a checkpoint that is not whole by names"
cp -r "$v4" other
chmod -R u+w other
shard=$(jq -r '.weight_map["layers.0.ffn.experts.3.w2.scale"]' other/model.safetensors.index.json)
sed -i 's/"layers.0.ffn.experts.3.w2.scale"/"layers.0.ffn.experts.3.w2.other"/' "other/$shard" \
    other/model.safetensors.index.json
run moepack diff "$v4" other
assert_status 1
assert_stdout_has 'layers.0.ffn.experts.3.w2.weight: [384, 256], in the other [384, 128]'
assert_stdout_has 'only in other: layers.0.ffn.experts.3.w2.other'
assert_stderr_has 'moepack: diff: warning: other: tensors are compared by name: '

# ---------------------------------------------------------------------------
# Packed directories
# ---------------------------------------------------------------------------

it "holds a packed directory against its source, and against another one"
moepack repack "$v4" "${v4_flags[@]}" -o one
moepack repack "$v4" --target megamoe-w4a4 --ep 5 -q -o other
run moepack diff one "$v4"
assert_status 0
assert_stdout 'equal: 0 of 30 pairs differ'
run moepack diff "$v4" other
assert_status 0
run moepack diff one other
assert_status 0
assert_stdout 'equal: 0 of 30 pairs differ'

it "finds a copy that differs"
moepack repack "$v4" "${v4_flags[@]}" -o one
file=one/rank-001/model-00001-of-00001.safetensors
flip $file layers.0.experts.l2_weight $((2 * 384 * 128 + 5)) 16
run moepack diff one "$v4"
assert_status 1
assert_stdout_has 'layers.0.2.down: one: slot 2 of rank 1 holds something else than slot 2 of rank 0; max abs '
assert_stdout_has 'different: 1 of 30 pairs differs, worst rel. L2 '
run moepack diff "$v4" one --json -j 1
assert_json '.pairs | map(select(.equal | not) | .name)' '["layers.0.2.down"]'

it "names layers that one side has alone"
moepack repack "$v4" "${v4_flags[@]}" -o one
moepack repack "$v4" "${v4_flags[@]}" --layers mtp.0 -o part
run moepack diff one part
assert_status 1
assert_stdout <<'END'
only in one: layers.0
different: 0 of 15 pairs differ; 1 only in one
END
run moepack diff part one --layers mtp.0
assert_status 0

# ---------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------

it "refuses what cannot be compared"
put_two
run moepack diff a.safetensors
assert_status 2
run moepack diff a.safetensors nothing
assert_status 4
assert_stderr_is 'moepack: diff: nothing: cannot open "nothing": No such file or directory'
moepack repack "$v4" "${v4_flags[@]}" -o one
run moepack diff one a.safetensors
assert_status 3
assert_stderr_is 'moepack: diff: a.safetensors: no experts to compare with packed ones'
head -c 7 a.safetensors >short.safetensors
run moepack diff a.safetensors short.safetensors
assert_status 3
assert_stderr_has 'moepack: diff: short.safetensors: '
sed -i 's/megamoe-w4a8/megamoe-w9a9/' one/moepack.json
run moepack diff one "$v4"
assert_status 3
assert_stderr_has 'moepack: diff: one: moepack.json'

it "finds the last one of many scales"
cp -r "$v4" other
shard=$(grep -l layers.0.ffn.experts.1.w1.scale other/*.safetensors)
flip "$shard" layers.0.ffn.experts.1.w1.scale $((256 * 12 - 1)) 1
run moepack diff "$v4" other
assert_status 1
assert_stdout_has 'layers.0.1.gate: '

finish
