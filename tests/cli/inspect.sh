#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# inspect says what a checkpoint or a pack holds, as text and as JSON.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

fixtures=$ROOT/testdata/fixtures

# A checkpoint of one layer and one expert less than its config.json says.
make_lacking()
{
    cp -r "$fixtures/qwen3-bf16" lacking
    jq '.num_experts = 5' "$fixtures/qwen3-bf16/config.json" >lacking/config.json
}

it "shows a DeepSeek V4: MXFP4 experts, an FP8 shared one, an MTP block"
run moepack inspect "$fixtures/v4-fp4"
assert_status 0
assert_stderr_is ''
assert_stdout <<'OUTPUT'
model_type deepseek_v4 (layers.0.ffn.experts.N.w1: mxfp4 with F8_E8M0 scales)
hidden size 384, expert intermediate size 256, 5 experts, 1 shared, 2 a token

layers    experts  experts are            shared expert is           bytes a layer
layers.0        5  mxfp4, F8_E8M0 scales  fp8_block, F8_E8M0 scales  783 kB
mtp.0           5  mxfp4, F8_E8M0 scales  fp8_block, F8_E8M0 scales  783 kB

79 tensors in 2 shards, 2.21 MB: 72 of experts; passed over: 2 norm, 4 router, 1 embedding
OUTPUT

# The facts of a fixture as JSON: sizes, layers, counts.
sizes='[.family, .hidden_size, .moe_intermediate_size, .num_experts, .num_shared_experts,
    .experts_per_token]'
layers='[.layers[] | [.name, .experts, .shared_experts, .format, .scale, .bytes]]'
counts='[.num_tensors, .expert_tensors, .other_tensors, .bytes, .shards, .problems]'

it "prints the same as JSON"
run moepack inspect "$fixtures/v4-fp4" --json
assert_status 0
assert_stderr_is ''
assert_json "$sizes" '["deepseek_v4",384,256,5,1,2]'
assert_json "$layers" '[["layers.0",5,1,"mxfp4","F8_E8M0",783360],'\
'["mtp.0",5,1,"mxfp4","F8_E8M0",783360]]'
assert_json "$counts" '[79,72,7,2214988,2,[]]'

it "shows a DeepSeek V3: FP8 in ragged blocks, a dense first layer"
run moepack inspect "$fixtures/v3-fp8" --json
assert_status 0
assert_json "$sizes" '["deepseek_v3",192,160,4,1,2]'
assert_json "$layers" '[["model.layers.1",4,1,"fp8_block","F32",368832]]'
assert_json "$counts" '[33,30,3,585472,1,[]]'

it "shows a Qwen3: BF16, no scales, no shared expert"
run moepack inspect "$fixtures/qwen3-bf16" --json
assert_status 0
assert_json "$sizes" '["qwen3_moe",96,64,4,0,2]'
assert_json "$layers" '[["model.layers.0",4,0,"bf16",null,147456]]'
assert_json "$counts" '[13,12,1,148224,1,[]]'

it "shows a DeepSeek V4 before its experts were made FP4"
run moepack inspect "$fixtures/v4-base-fp8" --json
assert_status 0
assert_json "$sizes" '["deepseek_v4",96,64,3,0,2]'
assert_json "$layers" '[["layers.0",3,0,"fp8_block","F32",55332]]'
assert_json "$counts" '[20,18,2,55920,1,[]]'

it "puts layers on one line only where all that it says of them is the same"
PYTHONPATH=$ROOT/tests/tools python3 - <<'END'
from tensors import write

tensors = {}


def layer(prefix, experts=2, dtype="BF16", bias=False, shared=None):
    def mlp(name, dtype):
        for matrix, shape in ("gate", [16, 32]), ("up", [16, 32]), ("down", [32, 16]):
            tensors[f"{prefix}.mlp.{name}.{matrix}_proj.weight"] = [dtype, shape, bytes(16 * 32 * 2)]

    for expert in range(experts):
        mlp(f"experts.{expert}", dtype)
        if bias:
            tensors[f"{prefix}.mlp.experts.{expert}.up_proj.bias"] = ["BF16", [16], bytes(32)]
    if shared:
        mlp("shared_expert", shared)


layer("model.layers.0")
layer("model.layers.1")
layer("model.layers.2", experts=3)
layer("model.layers.3", dtype="F16")
layer("model.layers.4", shared="BF16")
layer("model.layers.5", shared="BF16")
layer("model.layers.6", shared="F16")
layer("model.layers.7", bias=True)
layer("model.layers.8")
layer("mtp.layers.9")
write("model.safetensors", tensors)
END
run moepack inspect .
assert_status 0
sed '1,/^$/d' "$stdout" | sed '/^$/,$d' >table
assert_file_is table <<'END'
layers              experts  experts are  shared expert is  bytes a layer
model.layers.0 - 1        2  bf16         -                 6.14 kB
model.layers.2            3  bf16         -                 9.22 kB
model.layers.3            2  f16          -                 6.14 kB
model.layers.4 - 5        2  bf16         bf16              6.14 kB
model.layers.6            2  bf16         f16               6.14 kB
model.layers.7            2  bf16         -                 6.21 kB
model.layers.8            2  bf16         -                 6.14 kB
mtp.layers.9              2  bf16         -                 6.14 kB
END

it "lists every tensor on request"
run moepack inspect "$fixtures/qwen3-bf16" --tensors
assert_status 0
assert_equal "$(sed '1,/^$/d' "$stdout" | sed '1,/^$/d' | sed '1,/^$/d' | wc -l)" 13
assert_stdout_has 'BF16  [96, 64]  model.layers.0.mlp.experts.3.down_proj.weight  model.safetensors'
run moepack inspect "$fixtures/qwen3-bf16" --tensors --json
assert_json '.tensors | length' 13
assert_json '.tensors[-1]' '{"name":"model.layers.0.mlp.gate.weight","dtype":"BF16",'\
'"shape":[4,96],"shard":"model.safetensors","bytes":768}'
assert_json '([.tensors[].bytes] | add) == .bytes' true

it "takes the one file of a checkpoint, too"
run moepack inspect "$fixtures/qwen3-bf16/model.safetensors" --json
assert_status 0
assert_json "$sizes" '["qwen3_moe",96,64,4,0,2]'

it "sees where one of two shards leaves experts incomplete"
run moepack inspect "$fixtures/v4-fp4/model-00001-of-00002.safetensors"
assert_status 3
assert_stderr_has 'layers.0.ffn.experts.'

it "does without config.json and index"
mkdir bare
cp "$fixtures/v3-fp8/model.safetensors" bare
run moepack inspect bare --json
assert_status 0
assert_json "$sizes" '["deepseek_v3",192,160,4,1,null]'
assert_json .problems '[]'
assert_json '.reason | test("there is no config.json")' true

it "reads config.json as Python does: NaN, Infinity, a byte order mark"
cp -r "$ROOT/testdata/fixtures/qwen3-bf16" ckpt && chmod -R u+w ckpt
for member in '[0.0, Infinity]' -Infinity '{"deep": [1, NaN]}' '{"__float__": "Infinity"}'; do
    sed "1s/{/{ \"time_step_limit\": $member,/" "$ROOT/testdata/fixtures/qwen3-bf16/config.json" >ckpt/config.json
    run moepack inspect ckpt
    assert_status 0
done
{ printf '\357\273\277' && cat "$ROOT/testdata/fixtures/qwen3-bf16/config.json"; } >ckpt/config.json
run moepack inspect ckpt
assert_status 0
sed 's/"moe_intermediate_size": [0-9]*/"moe_intermediate_size": NaN/' "$ROOT/testdata/fixtures/qwen3-bf16/config.json" \
    >ckpt/config.json
run moepack inspect ckpt
assert_status 3
assert_stderr_is 'moepack: inspect: config.json: "moe_intermediate_size" is "NaN", expected an integer of 0 or more'

it "prints what it found also where there are problems"
make_lacking
run moepack inspect lacking
assert_status 3
assert_stdout_has 'hidden size 96, expert intermediate size 64, 4 experts'
assert_stderr_is <<'OUTPUT'
moepack: inspect: model.layers.0: 4 experts, config.json says 5
moepack: inspect: lacking: problems: 1
OUTPUT
run moepack inspect lacking --json
assert_status 3
assert_json .problems '["model.layers.0: 4 experts, config.json says 5"]'
assert_json "$sizes" '["qwen3_moe",96,64,4,0,2]'

it "reports a path that is not there"
run moepack inspect nowhere
assert_status 4
assert_stdout ''
assert_stderr_is 'moepack: inspect: cannot open "nowhere": No such file or directory'

it "reports a full disk"
run sh -c '"$1" inspect "$2" >/dev/full' sh "$MOEPACK" "$fixtures/v4-fp4"
assert_status 4
assert_stderr_is 'moepack: inspect: standard output: No space left on device'

# ./out, of the V4 on two ranks.
make_pack()
{
    "$MOEPACK" repack "$fixtures/v4-fp4" -o out -q --target megamoe-w4a8 --ep 2 \
        --placement "$fixtures/v4-fp4/placement.json"
}

it "shows a pack"
make_pack
run moepack inspect out
assert_status 0
assert_stderr_is ''
assert_stdout <<'OUTPUT'
megamoe-w4a8/1, packed from model_type deepseek_v4 (mxfp4, lossless)
hidden size 384, expert intermediate size 256, 5 experts as 6 physical
2 ranks of 3 slots, shared experts: none
2 layers: layers.0 - mtp.0
16 tensors in 2 files of 2 ranks, 1.89 MB
made by: moepack repack v4-fp4 --target megamoe-w4a8 --ep 2 --placement placement.json
OUTPUT
run moepack inspect out --json
assert_status 0
assert_json '[.target, .ep_size, .num_physical, .shared, .num_tensors, .shards, .problems]' \
    '["megamoe-w4a8",2,6,"none",16,2,[]]'
assert_json .bytes "$(cat out/rank-*/*.safetensors | wc -c)"
assert_json '[.layers[] | [.name, .experts, .format]]' '[["layers.0",5,"mxfp4"],["mtp.0",5,"mxfp4"]]'

it "lists the tensors of a pack with the digests of its manifest"
make_pack
run moepack inspect out --tensors --json
assert_json '.tensors | length' 16
assert_equal "$(jq -c '[.tensors[].xxh3]' "$stdout")" \
    "$(jq -c '[.ranks[].files[].tensors[].xxh3]' out/moepack.json)"

it "counts the bytes of layers as those of their tensors, whatever is packed"
for shared in none fused separate; do
    moepack synth -o source --family deepseek_v3 --format bf16 --hidden 384 --intermediate 128 \
        --experts 3 --layers 2 --top-k 2 --shared 2 -q
    moepack repack source -t megamoe-nvfp4 --quantize nvfp4 --ep 3 --shared "$shared" \
        --requantize-shared -o out -q
    run moepack inspect out --json
    assert_status 0
    assert_equal "$shared $(jq '[.layers[].bytes] | add' "$stdout")" \
        "$shared $(for file in out/rank-*/*.safetensors; do
            tail -c +9 "$file" | head -c "$(od -An -tu8 -N8 "$file" | tr -d ' ')"
        done | jq -s '[.[] | del(.__metadata__)[] | .data_offsets | .[1] - .[0]] | add')"
    assert_equal "$shared $(jq -c '[.layers[].shared_experts] | unique' "$stdout")" \
        "$shared $([ "$shared" = none ] && echo '[0]' || echo '[2]')"
    rm -rf source out
done
moepack synth -o source --family qwen3_moe --format nvfp4 --style compressed-tensors --hidden 384 \
    --intermediate 128 --experts 3 --layers 2 --top-k 2 -q
moepack repack source -t megamoe-nvfp4 --ep 3 -o out -q
run moepack inspect out --tensors --json
assert_json '[.tensors[].name | select(test("global_scale"))] | length' 12
assert_json '.num_tensors == (.tensors | length)' true

it "sees that a pack lacks a file"
make_pack
rm out/rank-001/model-00001-of-00001.safetensors
run moepack inspect out
assert_status 3
assert_stderr_has 'model-00001-of-00001.safetensors'
assert_stderr_has 'moepack: inspect: out: problems: 1'

it "sees that a manifest was changed"
make_pack
sed -i 's/"num_physical": 6/"num_physical": 8/' out/moepack.json
run moepack inspect out
assert_status 3
assert_stdout ''
assert_stderr_has 'moepack.json'

finish
