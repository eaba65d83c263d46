#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# synth writes checkpoints that inspect finds no fault with, the same ones for the same
# options, and says what a family cannot hold.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

small=(--hidden 160 --intermediate 96 --experts 6 --layers 4 --vocab 50)

# A member of out/config.json.
config()
{
    jq -c ".$1" out/config.json
}

for preset in deepseek-v4-flash deepseek-v4-pro deepseek-v3 qwen3-30b-a3b kimi-k2 gpt-oss-120b; do
    it "makes $preset in small, and inspect finds no problem"
    run moepack synth -o out --preset $preset "${small[@]}" --dense-intermediate 100
    assert_status 0
    assert_stdout ''
    assert_stderr_is ''
    assert_equal "$(ls)" out
    run moepack inspect out --json
    assert_status 0
    assert_json '[.hidden_size, .moe_intermediate_size, .num_experts, .problems]' '[160,96,6,[]]'
done

it "takes what is not given from the preset"
run moepack synth -o out --preset deepseek-v4-pro "${small[@]}"
assert_equal "$(config num_nextn_predict_layers)" 1
assert_equal "$(config num_hash_layers)" 3
assert_equal "$(config num_experts_per_tok)" 6
assert_equal "$(config routed_scaling_factor)" 2.5

it "lowers what a preset has too much of"
run moepack synth -o out --preset deepseek-v3 "${small[@]}" --layers 2 --experts 3
assert_status 0
assert_equal "$(config num_experts_per_tok)" 3
assert_equal "$(config first_k_dense_replace)" 1

it "lowers nothing that was given"
run moepack synth -o out --preset deepseek-v3 "${small[@]}" --layers 2 --dense 2
assert_status 2
assert_stderr_is <<'END'
moepack: synth: number of dense layers is 2; it has to be 0 to 1
try 'moepack synth --help'
END
run moepack synth -o out --preset deepseek-v3 "${small[@]}" --top-k 7
assert_status 2
assert_stderr_is <<'END'
moepack: synth: top-k is 7; it has to be 1 to 6
try 'moepack synth --help'
END

it "overrides everything"
run moepack synth -o out --preset deepseek-v4-flash "${small[@]}" --shared 2 --top-k 2 --mtp 2 \
    --hash-layers 0 --routed-scaling 3.25
assert_status 0
assert_equal "$(config '|[.hidden_size, .moe_intermediate_size, .n_routed_experts]')" '[160,96,6]'
assert_equal "$(config '|[.num_hidden_layers, .num_experts_per_tok, .vocab_size]')" '[4,2,50]'
assert_equal "$(config '|[.n_shared_experts, .num_nextn_predict_layers]')" '[2,2]'
assert_equal "$(config '|[.num_hash_layers, .routed_scaling_factor]')" '[0,3.25]'
run moepack inspect out --json
assert_json '[.layers[].name]' '["layers.0","layers.1","layers.2","layers.3","mtp.0","mtp.1"]'
assert_json .num_shared_experts 2

it "starts from a family"
run moepack synth -o out --family deepseek_v3 "${small[@]}" --top-k 2
assert_status 0
run moepack inspect out --json
assert_json '[.family, .num_shared_experts, (.layers | length), .layers[0].format]' \
    '["deepseek_v3",0,4,"fp8_block"]'

it "wants the sizes of a family"
run moepack synth -o out --family deepseek_v3 --hidden 160 --experts 6
assert_status 2
assert_stderr_is <<'END'
moepack: synth: --family needs --intermediate
try 'moepack synth --help'
END

it "wants a preset or a family, and not both"
for options in '' '--family deepseek_v3 --preset deepseek-v3'; do
    # shellcheck disable=SC2086
    run moepack synth -o out $options
    assert_status 2
    assert_stderr_is <<'END'
moepack: synth: give either --preset or --family
try 'moepack synth --help'
END
done

it "writes the experts in the format asked for"
while read -r preset format; do
    rm -rf out
    run moepack synth -o out --preset "$preset" "${small[@]}" --format "$format"
    assert_status 0
    run moepack inspect out --json
    assert_json '[.layers[].format] | unique' "[\"$format\"]"
done <<'END'
deepseek-v4-flash mxfp4
deepseek-v4-flash fp8_block
deepseek-v3 fp8_block
deepseek-v3 bf16
qwen3-30b-a3b bf16
qwen3-30b-a3b fp8_block
qwen3-30b-a3b nvfp4
kimi-k2 int4_group
gpt-oss-120b bf16
END

it "writes the experts in the style asked for"
while read -r style tensor; do
    rm -rf out
    run moepack synth -o out --preset qwen3-30b-a3b "${small[@]}" --style "$style"
    assert_status 0
    run moepack inspect out --tensors
    assert_stdout_has "model.layers.0.mlp.experts.0.gate_proj.$tensor"
done <<'END'
vendor weight
compressed-tensors weight_scale
modelopt weight_scale_2
modelslim weight_offset
END

it "describes what ModelSlim has quantized"
run moepack synth -o out --preset qwen3-30b-a3b "${small[@]}" --style modelslim --format mxfp4
assert_equal "$(jq -r '."model.layers.3.mlp.experts.5.up_proj.weight"' \
    out/quant_model_description.json)" W4A8_MXFP

it "names what a family can hold"
run moepack synth -o out --preset deepseek-v4-flash --format bf16
assert_status 5
assert_stderr_is <<'END'
moepack: synth: experts of family "deepseek_v4" are mxfp4, fp8_block, nvfp4, fp8_channel, int8_channel, mxfp8 or int4_group, not bf16
END
run moepack synth -o out --preset gpt-oss-120b --style modelopt
assert_status 5
assert_stderr_is <<'END'
moepack: synth: experts of family "gpt_oss" in mxfp4 are of style vendor, not modelopt
END
run moepack synth -o out --preset qwen3-30b-a3b --mtp 1
assert_status 5
assert_stderr_is <<'END'
moepack: synth: family "qwen3_moe" has no MTP blocks; 1 asked for
END
assert_equal "$(ls)" ''

it "wants blocks of 32 for mxfp4"
run moepack synth -o out --preset deepseek-v4-flash "${small[@]}" --hidden 100
assert_status 2
assert_stderr_is <<'END'
moepack: synth: hidden size is 100; for mxfp4 it has to be a multiple of 32
try 'moepack synth --help'
END

it "writes the same bytes with any number of threads"
run moepack synth -o out --preset deepseek-v4-flash "${small[@]}" -j 1 --max-shard-size 100kB
run moepack synth -o again --preset deepseek-v4-flash "${small[@]}" -j 3 --max-shard-size 100kB
assert_status 0
run diff -r out again
assert_status 0
assert_equal "$(find out -name 'model-0000[12]-of-*.safetensors' -size -200 | wc -l)" 2

it "writes the same bytes on any processor"
run moepack synth -o out --preset deepseek-v4-flash "${small[@]}"
run env MOEPACK_CPU=scalar "$MOEPACK" synth -o again --preset deepseek-v4-flash "${small[@]}"
assert_status 0
run diff -r out again
assert_status 0

it "writes other weights for another seed"
run moepack synth -o out --preset deepseek-v3 "${small[@]}"
run moepack synth -o again --preset deepseek-v3 "${small[@]}" --seed 1
assert_status 0
run cmp -s out/model-00001-of-00001.safetensors again/model-00001-of-00001.safetensors
assert_status 1
run cmp out/config.json again/config.json
assert_status 0

it "refuses a directory that is not empty"
mkdir out && touch out/file
run moepack synth -o out --preset deepseek-v3 "${small[@]}"
assert_status 4
assert_stderr_is <<'END'
moepack: synth: "out" already exists and is not empty
END
assert_equal "$(ls out)" file

it "leaves nothing when it is interrupted"
"$MOEPACK" synth -o out --preset deepseek-v4-flash --layers 1 --experts 100 --mtp 0 -j 1 2>"$stderr" &
until [ -e out.partial/model-00001-of-00001.safetensors ] || ! kill -0 $! 2>/dev/null; do
    sleep 0.01
done
kill -TERM $!
status=0
wait $! || status=$?
assert_equal "$status" 143
assert_equal "$(ls)" ''

it "lists the forms of a family, or of all"
run moepack synth --list --family gpt_oss
assert_status 0
assert_stderr_is ''
assert_stdout 'gpt_oss mxfp4 vendor
gpt_oss bf16 vendor'
run moepack synth --list
assert_status 0
assert_equal "$(cut -d ' ' -f 1 "$stdout" | sort -u | wc -l)" 15
assert_equal "$(sort "$stdout" | uniq -d)" ''
assert_equal "$(ls)" ''

it "wants to know where to write"
run moepack synth --preset deepseek-v4-flash
assert_status 2
assert_stderr_is <<'END'
moepack: synth: option --output is required
try 'moepack synth --help'
END

finish
