#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# verify --level numeric: figures and faults as text, JSON, TAP and JUnit.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

# Two layers, 6 experts and a shared one, requantized and fused; on two ranks 5 slots each,
# of which the last has the shared expert.
"$MOEPACK" synth -o "$WORK/source" --family deepseek_v3 --format bf16 --hidden 128 \
    --intermediate 128 --experts 6 --shared 1 --layers 2 --top-k 2 --routed-scaling 2.5 \
    --vocab 64 --mtp 0 -q
"$MOEPACK" repack "$WORK/source" --target megamoe-sm90-fp8 --quantize fp8_block --ep 2 \
    --redundant 2 --shared fused --requantize-shared -q -o "$WORK/sound"
source=$WORK/source
file=model-00001-of-00001.safetensors

use_pack()
{
    cp -r "$WORK/sound" out
}

# Byte of a file at which a tensor begins.
tensor_offset()
{
    local length

    length=$(od -An -t u8 -N 8 "$1" | tr -d ' ')
    tail -c +9 "$1" | head -c "$length" |
        jq --arg name "$2" --argjson data $((8 + length)) '$data + .[$name].data_offsets[0]'
}

# Puts bytes, in printf's escapes, into a slot: RANK TENSOR SLOT SLOT_BYTES BYTE BYTES.
put_bytes()
{
    local path=out/rank-00$1/$file

    # shellcheck disable=SC2059
    printf "$6" | dd of="$path" bs=1 seek=$(($(tensor_offset "$path" "$2") + $3 * $4 + $5)) \
        conv=notrunc status=none
}


it "prints a table"
use_pack
run moepack verify out --source "$source" --level numeric
assert_status 0
assert_stderr_is ''
sed '2,3s/  *0\.0.*//' "$stdout" >lines
assert_file_is lines <<'END'
layer           kernel    identical  rel. L2   within  cosine diff  max abs   weights
model.layers.0  sm90-fp8  yes
model.layers.1  sm90-fp8  yes
ok: numeric: 2 files, 16 tensors, 20 slots, 983 kB
END

it "prints JSON"
use_pack
run moepack verify out --source "$source" --level numeric --json
assert_status 0
assert_json '[.ok, .level, .checked.slots, .total_faults]' '[true,"numeric",20,0]'
assert_json '[.numeric[] | [.layer, .emulation, .tokens, .bit_identical, .tolerance]]' \
    '[["model.layers.0","sm90-fp8",74,true,0.1],["model.layers.1","sm90-fp8",74,true,0.1]]'
assert_json '[.numeric[] | .rel_l2 > 0.001 and .rel_l2 < 0.1 and .weights_rel_l2 > 0.001 and
    .weights_rel_l2 < 0.1 and .cosine_diff > 0 and .cosine_diff < 0.01 and .max_abs > 0]' \
    '[true,true]'

it "prints TAP"
use_pack
run moepack verify out --source "$source" --level numeric --layers 1 --ranks 1 --tap
assert_status 0
grep -v '^# ' "$stdout" >tests
assert_file_is tests <<'END'
1..7
ok 1 - pack: structure
ok 2 - pack: exact
ok 3 - pack: numeric
ok 4 - rank 1: structure
ok 5 - rank 1: digest
ok 6 - rank 1: exact
ok 7 - rank 1: numeric
END
sed -n '/^ok 3/,/^ok 4/s/  *0\.0.*//p' "$stdout" >figures
assert_file_is figures '# model.layers.1  sm90-fp8  yes'

it "writes figures into the JUnit report"
use_pack
run moepack verify out --source "$source" --level numeric --junit report.xml -q
assert_status 0
assert_file_has report.xml '<testcase classname="rank 0" name="numeric"/>'
sed -n '/name="numeric">/,/<.testcase>/s/  0\.0.*//; /name="numeric">/,/<.testcase>/p' report.xml |
    head -n 7 | sed 's/ *$//' >figures
assert_file_is figures <<'END'
    <testcase classname="pack" name="numeric">
      <system-out>
layer           kernel    identical  rel. L2   within  cosine diff  max abs   weights
model.layers.0  sm90-fp8  yes
model.layers.1  sm90-fp8  yes
</system-out>
    </testcase>
END

it "fails where the kernel is further off than the tolerance"
use_pack
run moepack verify out --source "$source" --level numeric --layers 0 --tolerance 0.0001 --tap
assert_status 1
assert_stdout_has 'not ok 3 - pack: numeric'
assert_stdout_has '# model.layers.0: sm90-fp8 is 0.0'
assert_stdout_has ' off the exact result (relative L2), more than 0.0001'
run moepack verify out --source "$source" --level numeric --tolerance 0.0001 --json
assert_status 1
assert_json '[.faults[] | [.level, .rank, .layer, .slot]]' \
    '[["numeric",null,"model.layers.0",null],["numeric",null,"model.layers.1",null]]'

it "names the slot that gives something else"
use_pack
# Scales of down's only block of 128x128: twice, in the second copy of expert 1.
put_bytes 1 model.layers.1.experts.l2_weight_sf 3 4 0 '\0\0\0\100'
run moepack verify out --source "$source" --level numeric --json --junit report.xml
assert_status 1
assert_json '[.faults[] | [.level, .rank, .layer, .slot, .tensor] | select(.[0] == "numeric")]' \
    '[["numeric",1,"model.layers.1",3,null]]'
assert_json '[.faults[] | select(.level == "exact")] | length' 1
assert_json '.faults[] | select(.level == "numeric") | .detail |
    [test("^gives [-0-9.e+]+ in column 0, expert 1 of the source [-0-9.e+]+; 128 of 128 columns")]' \
    '[true]'
assert_json '[.numeric[].bit_identical]' '[true,false]'
assert_file_has report.xml 'rank 1, model.layers.1, slot 3: gives '

it "names the slot whose result is not finite"
use_pack
put_bytes 0 model.layers.0.experts.l1_weight_sf 2 8 4 '\0\0\300\177'
run moepack verify out --source "$source" --level numeric
assert_status 1
assert_stdout_has 'rank 0, model.layers.0, slot 2: sm90-fp8, expert 2: '
assert_stdout_has 'model.layers.0  sm90-fp8  no         -         0.1     -            -         -'
run moepack verify out --source "$source" --level numeric --json
assert_json '.numeric[0] | [.rel_l2, .cosine_diff, .max_abs, .weights_rel_l2, .bit_identical]' \
    '[null,null,null,null,false]'

it "names as many of the choices of a token as there is room for"
moepack synth -o wide --family deepseek_v3 --format bf16 --hidden 64 --intermediate 32 --experts 60 \
    --shared 1 --layers 1 --top-k 30 --routed-scaling 2.5 --vocab 16 --mtp 0 -q
moepack repack wide --target deepep-bf16 --ep 2 --shared fused -o out -q
sed -i /routed_scaling_factor/d out/config.json
run moepack verify out --source wide --level numeric
assert_status 1
sed -n 's/.* routed tokens differ without a slot that does; this one chose //p' "$stdout" >chosen
assert_equal "$(grep -cE '^(expert [0-9]+ on rank [01], )+\.\.\.$' chosen)" 1
# Of 511 characters, and experts of two digits each.
assert_equal "$(grep -o expert chosen | wc -l)" 24

it "goes by the seed, tokens and sample that are asked for"
use_pack
run moepack verify out --source "$source" --level numeric --tokens 3 --seed 4 --json
assert_json '[.numeric[].tokens]' '[13,13]'
jq .numeric "$stdout" >first
run moepack verify out --source "$source" --level numeric --tokens 3 --seed 4 --json -j 1
jq .numeric "$stdout" >again
assert_file_is again <first
run moepack verify out --source "$source" --level numeric --tokens 3 --seed 5 --json
assert_equal "$(jq .numeric "$stdout" | cmp -s - first && echo same)" ''
run moepack verify out --source "$source" --level numeric --tokens 3 --sample 1 --layers 0 --json
assert_status 0
assert_json '.checked.slots + 3 == .numeric[0].tokens' true

it "passes over choices of zero experts, which no slot holds"
edit()
{
    python3 "$ROOT/tests/tools/tensors.py" ckpt/*.safetensors "$@"
}
moepack synth -o ckpt --family deepseek_v3 --format bf16 --hidden 128 --intermediate 64 --experts 7 \
    --shared 1 --layers 1 --top-k 3 --vocab 32 --mtp 0 -q
for name in {5,6}.{gate,up,down}_proj; do
    edit drop "model.layers.0.mlp.experts.$name.weight"
done
edit rename model.layers.0.mlp.gate.weight model.layers.0.mlp.router.classifier.weight
edit rename model.layers.0.mlp.gate.e_score_correction_bias \
    model.layers.0.mlp.router.e_score_correction_bias
rm ckpt/model.safetensors.index.json
jq '.model_type = "longcat_flash" | .n_routed_experts = 5 | .zero_expert_num = 2' ckpt/config.json >config
mv config ckpt/config.json
for shared in none separate; do
    run moepack repack ckpt -t megamoe-bf16 --ep 2 --redundant 1 --shared $shared -o $shared -q
    assert_status 0
    run moepack verify $shared --source ckpt --level numeric --json
    assert_status 0
    assert_json '[.ok, .numeric[].bit_identical]' '[true,true]'
    run moepack verify $shared --source ckpt --level numeric --sample 2 -q
    assert_status 0
done

it "refuses options of other levels"
use_pack
run moepack verify out --level numeric
assert_status 2
assert_stderr_has 'moepack: verify: --level numeric needs --source'
run moepack verify out --source "$source" --tokens 5
assert_status 2
assert_stderr_has '--tokens is for level numeric, not exact'
run moepack verify out --source "$source" --tolerance 0.5
assert_status 2
assert_stderr_has '--tolerance is for level numeric, not exact'

finish
