#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# moepack plan: what the engine will do, from flags, variables and a model; whether it fits;
# whether a packed directory is the right one.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

v4=$ROOT/testdata/fixtures/v4-fp4

# Most of what is tested here is alike for every engine; the rules are those of sglang-0.5.15.
plan15()
{
    run moepack plan --engine sglang-0.5.15 "$@"
}

# What decides of DeepSeek V4 Flash's config.json.
put_flash()
{
    cat >config.json <<'END'
{"model_type": "deepseek_v4", "hidden_size": 4096, "moe_intermediate_size": 2048,
 "num_experts_per_tok": 6, "num_hidden_layers": 43, "n_routed_experts": 256,
 "n_shared_experts": 1, "num_nextn_predict_layers": 1, "torch_dtype": "bfloat16",
 "expert_dtype": "fp4", "quantization_config": {"quant_method": "fp8", "fmt": "e4m3",
 "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}}
END
}

it "plans V4 Flash for MegaMoE W4A8 on eight GPUs"
put_flash
plan15 --model . --backend megamoe --tp 8 --dp-tokens 800,1024 --gpu-memory 180GiB
assert_status 0
assert_stderr_is ''
assert_stdout <<'END'
config.json: hidden size 4096, expert intermediate size 2048, 256 experts, 1 shared, 6 a token
43 MoE layers, experts are mxfp4 (expert_dtype)
1 MTP block is not counted: whether its tensors are there, config.json does not say

backend                megamoe: asked for (--backend)
ep_size                8: backend megamoe sets it to tp_size (--tp)
dispatcher             standard: a placeholder: megamoe moves tokens inside its kernel (--backend)
fix_mega_moe_memory    true: megamoe sets it: decode and prefill share the weights, scales twice (--backend)
acts                   fp8: E4M3 in groups of 32 (default)
mma                    mxf8f6f4: operands are padded to 8 bits, K = 32 (default)
target                 megamoe-w4a8: mxfp4 experts, fp8 activations, cuda-sm100 (expert_dtype)
token_cap              1024: the buffer's tokens a rank, SGLANG_OPT_DEEPGEMM_MEGA_MOE_NUM_MAX_TOKENS_PER_RANK (default)
use_mega_moe           true: 1024 tokens a rank at most, the cap is 1024 (--dp-tokens)
bf16_low_latency       false: the first condition that fails: no quantization config (expert_dtype)
waterfill              off: needs a deepep-class backend (deepep, mooncake, mori), not megamoe (--backend)
environment            SGLANG_OPT_FIX_MEGA_MOE_MEMORY=1

bytes a rank
weights                     17314086912   17.3 GB  403 MB a layer
scales                       1082130432   1.08 GB  25.2 MB a layer
second scales                1082130432   1.08 GB  for the ordinary path
symmetric buffer              638319904    638 MB
  with FP8 activations        638319904    638 MB
  with FP4 activations        510131488    510 MB
total                       20116667680   20.1 GB
193 GB: fits
largest token cap that fits: 344064
END

# Its `architectures` too, which rules of sglang-2026-09 go by.
put_flash_class()
{
    put_flash
    sed -i '1s/{/{"architectures": ["DeepseekV4ForCausalLM"], "hidden_act": "silu", /' config.json
}

# ---------------------------------------------------------------------------
# Engines
# ---------------------------------------------------------------------------

# A shell program that runs every golden case in a folder of its own.
run_golden()
{
    jq -r '
        .models as $models | .cases | to_entries[] | .key as $i | .value |
        (if .model | type == "string" then $models[.model] else .model end) as $m |
        (if $m | keys | any(endswith(".json")) then $m else {"config.json": $m} end) as $files |
        "mkdir \($i)",
        ($files | to_entries[] | "printf %s " +
            ((.value | if type == "string" then . else tojson end) | @sh) + " >\($i)/" + .key),
        (.env | to_entries[] | "echo " + (.key + "='"'"'" + .value + "'"'"'" | @sh) + " >>\($i)/env"),
        "touch \($i)/env",
        "\"$MOEPACK\" plan --json --engine " + .engine + " --model \($i) --env-file \($i)/env " +
            (.argv | @sh) + " >\($i)/stdout 2>\($i)/stderr",
        "echo $? >\($i)/status"' "$1" >run.sh
    MOEPACK=$MOEPACK bash run.sh
}

# What differs from a golden case, a line each.
compare_golden()
{
    jq -nR 'reduce inputs as $line ({}; .[input_filename] += $line + "\n")' \
        ./*/stdout ./*/stderr ./*/status >found.json
    jq -r --slurpfile found found.json '
        def value($j; $what): [$j.decisions[] | select(.what == $what) | .value] | first;
        def holds($texts; $part): any($texts[]?; contains($part));
        .cases | to_entries[] | .key as $i | .value as $case | $found[0] as $all |
        ($all["./\($i)/stderr"] // "") as $stderr |
        (($all["./\($i)/stdout"] // "null") | fromjson) as $j |
        ($all["./\($i)/status"] | tonumber) as $status |
        (if $status == $case.exit then empty else "status \($status)" end),
        ($case.expect | to_entries[] | . as {key: $key, value: $want} |
            if $key == "~error" then
                select(any($want[]; . as $part | $stderr | contains($part) | not))
            elif $key == "~refusals" or $key == "~warnings" then
                select(any($want[]; holds($j[$key[1:]]; .) | not))
            elif $key == "!warnings" then select(any($want[]; holds($j.warnings; .)))
            elif $key | startswith(".") then
                select($j | getpath($key[1:] | split(".")) != $want)
            elif $key | startswith("by ") then
                select([$j.decisions[] | select(.what == $key[3:]) | .decided_by] != [$want])
            else select(value($j; $key) != $want) end | "\(.key) is not \(.value)") |
        "case \($i), \($case.rule): \(.)"' "$1"
}

it "resolves every golden case, of all engines"
run_golden "$ROOT/testdata/golden/plan/engines.json"
assert_equal "$(find . -name status | wc -l)" 217
assert_equal "$(compare_golden "$ROOT/testdata/golden/plan/engines.json")" ''
# The comparison can fail.
jq '.cases[0].expect.runner = "triton" | .cases[1].exit = 0 | .cases[7].expect["~refusals"] = ["?"]' \
    "$ROOT/testdata/golden/plan/engines.json" >other.json
assert_equal "$(compare_golden other.json | wc -l)" 3

it "has no rules for flags of another engine, and names both"
put_flash
run moepack plan --engine vllm --model . --runner triton
assert_status 2
assert_stderr_has 'there are no rules for --runner of vllm-2026-09'
run moepack plan --engine trtllm --model . --dp 8 --tokens 5
assert_status 2
assert_stderr_has 'there are no rules for --tokens of trtllm-2026-09'
run moepack plan --engine sglang --model . --backend deep_gemm_mega_moe
assert_status 2
assert_stderr_has 'there are no rules for --backend deep_gemm_mega_moe of sglang-2026-09'
plan15 --model . --platform cuda-sm120
assert_status 2
assert_stderr_has 'there are no rules for --platform cuda-sm120 of sglang-0.5.15'
plan15 --model . --dp 1
assert_status 2
assert_stderr_has 'there are no rules for --dp of sglang-0.5.15'
run moepack plan --engine sglang-0.5.16 --model .
assert_status 2
assert_stderr_has "did you mean 'sglang-0.5.15'?"

it "finds all that the engine refuses, and prints the rest"
put_flash_class
run moepack plan --model . --backend megamoe --tp 8 --platform npu --overlap two-batch \
    --graph-bs 2048 --chunked-prefill -1
assert_status 1
assert_stdout_has 'refused: --platform npu: megamoe needs SM90 (block FP8), SM10x (FP4) or ROCm'
assert_stdout_has 'use_mega_moe           false: weights are not built (expert_dtype)'
assert_equal "$(grep -v warning "$stderr")" "moepack: plan: refused: --overlap two-batch: megamoe has no split into dispatch and combine to overlap
moepack: plan: refused: --platform npu: megamoe needs SM90 (block FP8), SM10x (FP4) or ROCm
moepack: plan: refused: decode 2048 > cap 1024
moepack: plan: refused: chunked prefill has to be on, it is -1
moepack: plan: sglang-2026-09 would not start"

it "gives no verdict where the buffer is not known, but where weights alone do not fit"
put_flash_class
run moepack plan --model . --backend megamoe --tp 8 --gpu-memory 180GiB --json
assert_status 0
assert_json '[.memory | .total, .fits, .max_tokens, .symm_buffer]' '[null,null,null,null]'
run moepack plan --model . --backend megamoe --tp 8 --gpu-memory 180GiB
assert_stdout_has 'no verdict, the size of its buffers is not known for this version'
run moepack plan --model . --backend megamoe --tp 8 --gpu-memory 10GiB --json
assert_status 1
assert_json '[.memory | .total, .fits]' '[null,false]'

# A config.json of 22 layers and what is beside it, in a folder.
put_config()
{
    mkdir -p "$1" && cat >"$1/config.json"
}

it "reads the formats of NVFP4 releases from their configs"
sizes='hidden_size: 2048, moe_intermediate_size: 1024, num_experts_per_tok: 4, num_hidden_layers: 22'
nvfp4='{quant_algo: "NVFP4", group_size: 16}'
jq -n "{model_type: \"deepseek_v3\", n_routed_experts: 64, first_k_dense_replace: 3,
    num_nextn_predict_layers: 1, $sizes}" | put_config v3
jq -n "{quantization: {quant_algo: \"NVFP4\", exclude_modules: [\"lm_head\",
    \"model.layers.3.self_attn*\"]}}" >v3/hf_quant_config.json
jq -n "{model_type: \"qwen3_5_moe\", text_config: {num_experts: 64, mtp_num_hidden_layers: 1, $sizes},
    quantization_config: {quant_method: \"modelopt\", quant_algo: \"MIXED_PRECISION\",
    quantized_layers: ([range(22) | {key: \"model.language_model.layers.\\(.).mlp.experts\",
    value: $nvfp4}] | from_entries)}}" | put_config qwen3.6
jq '.quantization_config.quantized_layers["model.language_model.layers.7.mlp.experts"].quant_algo = "FP8"' \
    qwen3.6/config.json | put_config mixed
jq 'del(.quantization_config.quantized_layers["model.language_model.layers.9.mlp.experts"])' \
    qwen3.6/config.json | put_config partly
run moepack plan --model v3 --backend megamoe --tp 8 --json
assert_json '[.model.scheme, .model.scheme_from, .model.num_layers, .target]' \
    '["nvfp4","hf_quant_config.json",19,"megamoe-nvfp4"]'
run moepack plan --model qwen3.6 --backend megamoe --tp 8 --json
assert_json '[.model.scheme, .model.scheme_from, .model.num_layers, .model.num_mtp_blocks]' \
    '["nvfp4","quantized_layers",22,1]'
run moepack plan --model mixed
assert_stdout_has 'of a format that is not recognized: layer 0 is NVFP4, layer 7 FP8 (quantized_layers)'
run moepack plan --model partly
assert_stdout_has 'of a format that is not recognized: layer 0 is NVFP4, layer 9 bf16 (quantized_layers)'
jq '.quantization.exclude_modules += ["*.experts.*"]' v3/hf_quant_config.json >v3/other &&
    mv v3/other v3/hf_quant_config.json
run moepack plan --model v3 --json
assert_json '[.model.scheme, .model.scheme_from]' '["bf16","exclude_modules"]'
jq -n "{model_type: \"minimax_m3\", num_local_experts: 5, hidden_act: \"swigluoai\", $sizes,
    quantization_config: {quant_method: \"modelopt\", quant_algo: \"MIXED_PRECISION\",
    quantized_layers: ([range(22) as \$l | range(5) as \$e | (\"w1\", \"w2\", \"w3\") | {value: $nvfp4,
    key: \"language_model.model.layers.\(\$l).block_sparse_moe.experts.\(\$e).\(.)\"}] | from_entries |
    .[\"language_model.model.layers.5.self_attn.q_proj\"] = {quant_algo: \"MXFP8\"})}}" | put_config m3
run moepack plan --model m3 --backend megamoe --tp 1 --json
assert_json '[.model.scheme, .model.scheme_from, .model.num_layers, .target, .warnings[0]]' \
    '["nvfp4","quantized_layers",22,"megamoe-nvfp4","activation swigluoai: whether the engine hands its parameters on is not known"]'
jq -n "{model_type: \"nemotron_h\", n_routed_experts: 64, $sizes, mlp_hidden_act: \"relu2\",
    num_hidden_layers: 12, hybrid_override_pattern: \"MEMEM*EMEM*E\"}" | put_config nemotron
run moepack plan --model nemotron --backend megamoe
assert_status 0
assert_stdout_has 'target                 none: MegaMoE does not compute activation relu2 on cuda-sm100 (mlp_hidden_act)'
run moepack plan --model nemotron --backend megamoe --quantize nvfp4 --json
assert_status 0
assert_json '[.model.num_layers, .target, .use_mega_moe, .warnings[0]]' \
    '[5,null,false,"activation relu2 (mlp_hidden_act): the kernel does not compute it"]'

it "gives the same in JSON"
put_flash
plan15 --model config.json --backend megamoe --tp 8 --tokens 1024 \
    --gpu-memory 180GiB --json
assert_status 0
assert_json 'del(.decisions, .memory, .model)' \
    '{"engine":"sglang-0.5.15","backend":"megamoe","runner":"auto","ep_size":8,"num_physical":256,"dispatcher":"standard","target":"megamoe-w4a8","env":{"SGLANG_OPT_FIX_MEGA_MOE_MEMORY":"1"},"fix_mega_moe_memory":true,"use_mega_moe":true,"acts":"fp8","dispatcher_output_dtype":null,"fuse_mode":null,"waterfill_routed_experts":null,"placement":null,"loader":null,"refusals":[],"warnings":[],"pack":null}'
assert_json .memory \
    '{"weights":17314086912,"scales":1082130432,"second_scales":1082130432,"symm_buffer":638319904,"total":20116667680,"fits":true,"max_tokens":344064,"layer":{"weights":402653184,"scales":25165824},"symm_buffer_fp8_acts":638319904,"symm_buffer_fp4_acts":510131488}'
assert_json '.decisions[0]' \
    '{"what":"backend","value":"megamoe","why":"asked for","decided_by":"--backend"}'
assert_json '[.model.num_layers, .model.num_mtp_blocks, .model.scheme_from]' '[43,1,"expert_dtype"]'

it "gives nothing in JSON for a backend without a packed layout"
put_flash
plan15 --model . --tp 8 --json --gpu-memory 1
assert_status 0
assert_json '[.backend, .ep_size, .target, .acts, .use_mega_moe, .env]' \
    '["none",1,null,null,false,{}]'
assert_json '[.memory[]] | unique' '[null,{"weights":null,"scales":null}]'
plan15 --model . --gpu-memory 1GB
assert_status 0
assert_stdout_has "1.00 GB: no verdict, this backend's memory is not known"

it "goes by a file of variables"
put_flash
cat >variables <<'END'
# W4A4
export SGLANG_OPT_USE_DEEPGEMM_MEGA_MOE=1
SGLANG_OPT_DEEPGEMM_MEGA_MOE_USE_FP4_ACTS="true"
SGLANG_OPT_DEEPGEMM_MEGA_MOE_USE_MXF4_KIND=on
DG_USE_MXF4_KIND='0'
END
plan15 --model . --backend deepep --ep 4 --tp 8 --env-file variables --json
assert_status 0
assert_json '[.backend, .acts, .env.DG_USE_FP4_ACTS, .env.DG_USE_MXF4_KIND, .memory.symm_buffer]' \
    '["megamoe","fp4","1","0",510131488]'
assert_stderr_is <<'END'
moepack: plan: warning: --backend deepep is overridden: SGLANG_OPT_USE_DEEPGEMM_MEGA_MOE selects megamoe
moepack: plan: warning: --ep 4 is ignored: backend megamoe sets ep_size to tp_size, 8
END
assert_json '.warnings | length' 2
plan15 --model . --backend deepep --tp 8 --env-file variables --json -q
assert_stderr_is ''

it "goes by the process's environment only when told to, a file's variables over it"
put_flash
export SGLANG_OPT_USE_DEEPGEMM_MEGA_MOE=1
plan15 --model . --tp 8 --json
assert_json .backend '"none"'
plan15 --model . --tp 8 --env --json
assert_json .backend '"megamoe"'
echo SGLANG_OPT_USE_DEEPGEMM_MEGA_MOE=0 >variables
plan15 --model . --tp 8 --env --env-file variables --json
assert_json .backend '"none"'
unset SGLANG_OPT_USE_DEEPGEMM_MEGA_MOE

it "names a variable that it cannot read"
put_flash
echo SGLANG_OPT_FIX_MEGA_MOE_MEMORY=perhaps >variables
plan15 --model . --env-file variables
assert_status 3
assert_stdout ''
assert_stderr_is 'moepack: plan: SGLANG_OPT_FIX_MEGA_MOE_MEMORY: "perhaps" is neither true (1, true, yes, y, on) nor false (0, false, no, n, off, empty)'
plan15 --model . --env-file - <<<perhaps
assert_status 3
assert_stderr_is 'moepack: plan: standard input: line 1: not NAME=VALUE'

it "prints lines that a shell evaluates, and that it reads back"
put_flash
printf '%s=1\n' SGLANG_OPT_DEEPGEMM_MEGA_MOE_USE_{FP4_ACTS,MXF4_KIND} >variables
plan15 --model . --backend megamoe --tp 8 --env-file variables --format env
assert_status 0
assert_stdout <<'END'
export SGLANG_OPT_FIX_MEGA_MOE_MEMORY='1'
export DG_USE_FP4_ACTS='1'
export DG_USE_MXF4_KIND='1'
END
assert_equal "$(eval "$(cat "$stdout")" && sh -c 'echo $DG_USE_FP4_ACTS')" 1
cat variables "$stdout" >both.env
plan15 --model . --backend megamoe --tp 8 --env-file both.env --json
assert_json '[.acts, .warnings, .env.DG_USE_MXF4_KIND]' '["fp4",[],"1"]'
plan15 --model . --format env
assert_status 0
assert_stdout ''
plan15 --model . --format env --json
assert_status 2
assert_stderr_has '--json and --format env cannot be used together'

it "prints where pack and placement lie, for a start that would work"
mkdir here && put_flash_class && mv config.json here
run moepack plan --model here --backend deepep_v2 --tp 8 --format env -q
assert_status 0
assert_stdout <<'END'
export NCCL_CUMEM_ENABLE='1'
END
run moepack repack "$v4" --target megamoe-w4a8 --ep 2 --placement "$v4/placement.json" -q -o "it's"
assert_status 0
run moepack plan --model "it's" --backend megamoe --tp 2 --engine trtllm --dp 2 --format env -q
assert_status 1
assert_stdout ''
plan15 --model "it's" --backend megamoe --tp 2 --format env -q
assert_stdout <<'END'
export SGLANG_OPT_FIX_MEGA_MOE_MEMORY='1'
END
# Sizes of 384 and 256 are vLLM's only, which reads no placement.
run moepack plan --model "it's" --backend megamoe --tp 2 --engine vllm --format env -q
assert_status 0
assert_equal "$(eval "$(cat "$stdout")" && echo "$MOEPACK_DIR ${MOEPACK_PLACEMENT-none}")" \
    "$PWD/it's none"
run moepack synth --family deepseek_v4 --hidden 512 --intermediate 512 --experts 4 --layers 1 \
    --top-k 2 -q -o ckpt
assert_status 0
run moepack repack ckpt --target megamoe-w4a8 --ep 2 --redundant 2 -q -o pack
assert_status 0
run moepack plan --model ckpt --pack pack --backend megamoe --tp 2 --redundant 2 --format env
assert_status 0
assert_equal "$(eval "$(cat "$stdout")" && echo "$MOEPACK_DIR $MOEPACK_PLACEMENT")" \
    "$PWD/pack $PWD/pack/placement.json"
run moepack plan --model ckpt --pack pack --backend megamoe --tp 2 --redundant 2
assert_stdout_has 'num_physical           6'
run moepack plan --model ckpt --pack pack --backend megamoe --tp 2 --redundant 4
assert_status 1
assert_stdout_has 'num_physical           6, the engine expects 8'

it "says that it does not fit, and which token cap would"
put_flash
plan15 --model . --backend megamoe --tp 8 --gpu-memory 19GB
assert_status 1
assert_stdout_has '19.0 GB: does not fit'
assert_stdout_has 'largest token cap that fits: 0'
assert_stderr_is 'moepack: plan: 20.1 GB a rank do not fit 19.0 GB'
plan15 --model . --backend megamoe --tp 8 --gpu-memory 20116667679 --json
assert_status 1
assert_json '[.memory.fits, .memory.max_tokens]' '[false,768]'
plan15 --model . --backend megamoe --tp 8 --gpu-memory 20116667680 --json
assert_status 0
assert_json '[.memory.fits, .memory.max_tokens]' '[true,1152]'

it "plans for experts that are requantized"
put_flash
plan15 --model . --backend ascend_fuseep --platform npu --tp 16 --json
assert_status 5
assert_stdout ''
assert_stderr_is 'moepack: plan: ascend_fuseep: experts are mxfp4 (expert_dtype), the kernel takes W8A8 INT8 only: see --quantize int8_channel'
plan15 --model . --backend ascend_fuseep --platform npu --tp 16 \
    --quantize int8_channel --json
assert_status 0
assert_json '[.target, .acts, .fuse_mode, .memory.weights, .memory.symm_buffer]' \
    '["fuseep-1","int8",1,17314086912,null]'

it "takes a checkpoint's word over its config.json's"
plan15 --model "$ROOT/testdata/fixtures/modelslim-w8a8" --json
assert_json '[.model.source, .model.scheme]' '["checkpoint","int8_channel"]'
plan15 --model "$ROOT/testdata/fixtures/modelslim-w8a8/config.json" --json
assert_json '[.model.source, .model.scheme]' '["config.json","bf16"]'

it "refuses what is no model"
plan15 --model nothing
assert_status 4
assert_stderr_is 'moepack: plan: cannot open "nothing": No such file or directory'
echo '{}' >other.json
plan15 --model other.json
assert_status 2
assert_stderr_has '"other.json" is neither a directory nor a config.json'
echo '{}' >config.json
plan15 --model .
assert_status 3
assert_stderr_is 'moepack: plan: config.json: no hidden size'
plan15
assert_status 2
put_flash
plan15 --model . --backend megamo
assert_status 2
assert_stderr_has "did you mean 'megamoe'?"
plan15 --model . --backend deepep --tp 7
assert_status 3
assert_stderr_is 'moepack: plan: ep_size: 256 physical experts (256 and 0 redundant) do not divide evenly among the 7 ranks of --tp'

# ---------------------------------------------------------------------------
# Packed directories
# ---------------------------------------------------------------------------

make_pack()
{
    run moepack repack "$v4" --target megamoe-w4a8 --ep 2 --placement "$v4/placement.json" -q -o packed
    assert_status 0
}
megamoe=(--backend megamoe --tp 2 -q)

it "says that a packed directory is what the engine expects"
make_pack
plan15 --model "$v4" "${megamoe[@]}" --placement "$v4/placement.json" --pack packed
assert_status 0
assert_stderr_is ''
assert_stdout_has 'packed: what the engine expects'
plan15 --model "$v4" "${megamoe[@]}" --redundant 1 --pack packed --json
assert_status 0
assert_json '.pack | del(.checks)' '{"path":"packed","ok":true,"mismatches":[]}'
assert_json '[.pack.checks[] | [.what, .pack, .ok]]' \
    '[["target","megamoe-w4a8",true],["ep_size","2",true],["num_physical","6",true],["shared","none",true],["hidden_size","384",true],["moe_intermediate_size","256",true],["num_experts","5",true],["layers","2",true]]'

# Bytes of all tensors of a rank.
rank_bytes()
{
    local file sum=0

    for file in "$1"/rank-000/*.safetensors; do
        sum=$((sum + $(stat -c %s "$file") - 8 - $(od -An -t u8 -N 8 "$file")))
    done
    echo $sum
}

it "estimates the bytes that repack writes"
for shared in none fused separate; do
    run moepack repack "$v4" --target megamoe-w4a8 --ep 2 --redundant 1 --shared $shared \
        --requantize-shared -q -o $shared
    assert_status 0
    plan15 --model "$v4" "${megamoe[@]}" --redundant 1 --shared $shared --json
    assert_json '.memory.weights + .memory.scales' "$(rank_bytes $shared)"
done

it "takes a packed directory as the model"
make_pack
plan15 --model packed "${megamoe[@]}" --json
assert_status 0
assert_json '[.model.source, .model.scheme, .model.num_layers, .num_physical, .pack.ok]' \
    '["moepack.json","mxfp4",2,6,true]'
plan15 --model packed "${megamoe[@]}" --placement "$v4/placement.json"
assert_status 0
assert_stdout_has 'packed: what the engine expects'

it "names what of a packed directory differs"
make_pack
plan15 --model "$v4" --backend megamoe --tp 3 --redundant 1 -q --pack packed
assert_status 1
assert_stdout_has 'packed: not what the engine expects'
assert_stderr_is <<'END'
moepack: plan: ep_size: the pack has 2, the engine expects 3
moepack: plan: packed: not what the engine expects
END
plan15 --model packed --backend deepep --tp 2 --json -q
assert_status 1
assert_json .pack.mismatches '["target: the pack has megamoe-w4a8, the engine expects no packed experts"]'
plan15 --model packed "${megamoe[@]}" --shared separate
assert_status 1
assert_stdout_has 'mismatch: shared: the pack has none, the engine expects separate'
jq '.physical_to_logical_map |= map(reverse)' "$v4/placement.json" >other.json
plan15 --model packed "${megamoe[@]}" --placement other.json
assert_status 1
assert_stdout_has 'mismatch: placement: the pack has '
plan15 --model packed "${megamoe[@]}" --gpu-memory 1 --format env
assert_status 1
assert_stderr_is 'moepack: plan: 8.56 MB a rank do not fit 1 byte'
plan15 --model packed --backend megamoe --tp 1 -q --gpu-memory 1
assert_status 1
assert_stderr_has 'packed: not what the engine expects, and it does not fit'

it "refuses a packed directory whose manifest was changed"
make_pack
sed -i 's/megamoe-w4a8/megamoe-w4a4/' packed/moepack.json
plan15 --model "$v4" "${megamoe[@]}" --pack packed
assert_status 3
plan15 --model "$v4" "${megamoe[@]}" --pack nothing
assert_status 4

finish
