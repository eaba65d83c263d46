#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# moepack plan: what the engine will do, from flags, variables and a model; whether it fits;
# whether a packed directory is the right one.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

v4=$ROOT/testdata/fixtures/v4-fp4

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
run moepack plan --model . --backend megamoe --tp 8 --dp-tokens 800,1024 --gpu-memory 180GiB
assert_status 0
assert_stderr_is ''
assert_stdout <<'END'
config.json: hidden size 4096, expert intermediate size 2048, 256 experts, 1 shared, 6 a token
44 MoE layers, experts are mxfp4 (expert_dtype)

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
weights                     17716740096   17.7 GB  403 MB a layer
scales                       1107296256   1.11 GB  25.2 MB a layer
second scales                1107296256   1.11 GB  for the ordinary path
symmetric buffer              638319904    638 MB
  with FP8 activations        638319904    638 MB
  with FP4 activations        510131488    510 MB
total                       20569652512   20.6 GB
193 GB: fits
largest token cap that fits: 342912
END

# Lines of the output that the manual page does not show.
not_in_manual()
{
    grep -vxF -f "$ROOT/man/moepack-plan.1" "$stdout"
}

it "prints what its manual page shows"
put_flash
run moepack plan --model config.json --backend megamoe --tp 8 --dp-tokens 800,1024 \
    --gpu-memory 180GiB
assert_status 0
assert_equal "$(not_in_manual)" ''
cat >w4a4.env <<'END'
SGLANG_OPT_DEEPGEMM_MEGA_MOE_USE_FP4_ACTS=1
SGLANG_OPT_DEEPGEMM_MEGA_MOE_USE_MXF4_KIND=1
SGLANG_OPT_DEEPGEMM_MEGA_MOE_NUM_MAX_TOKENS_PER_RANK=8192
END
run moepack plan --model config.json --backend megamoe --tp 8 --tokens 8192 \
    --env-file w4a4.env --gpu-memory 180GiB
assert_status 0
assert_equal "$(not_in_manual)" ''
jq -n '{model_type: "deepseek_v3", hidden_size: 7168, moe_intermediate_size: 2048,
    num_experts_per_tok: 8, num_hidden_layers: 61, n_routed_experts: 256, n_shared_experts: 1,
    first_k_dense_replace: 3, num_nextn_predict_layers: 1,
    quantization_config: {quant_method: "fp8", weight_block_size: [128, 128]}}' >config.json
run moepack plan --model config.json --backend ascend_fuseep --platform npu --tp 32 \
    --quantize int8_channel --tokens 96 --gpu-memory 64GiB
assert_status 0
assert_equal "$(not_in_manual)" ''

it "gives the same in JSON"
put_flash
run moepack plan --model config.json --backend megamoe --tp 8 --tokens 1024 \
    --gpu-memory 180GiB --json
assert_status 0
assert_json 'del(.decisions, .memory, .model)' \
    '{"backend":"megamoe","ep_size":8,"num_physical":256,"dispatcher":"standard","target":"megamoe-w4a8","env":{"SGLANG_OPT_FIX_MEGA_MOE_MEMORY":"1"},"fix_mega_moe_memory":true,"use_mega_moe":true,"acts":"fp8","dispatcher_output_dtype":null,"fuse_mode":null,"waterfill_routed_experts":null,"warnings":[],"pack":null}'
assert_json .memory \
    '{"weights":17716740096,"scales":1107296256,"second_scales":1107296256,"symm_buffer":638319904,"total":20569652512,"fits":true,"max_tokens":342912,"layer":{"weights":402653184,"scales":25165824},"symm_buffer_fp8_acts":638319904,"symm_buffer_fp4_acts":510131488}'
assert_json '.decisions[0]' \
    '{"what":"backend","value":"megamoe","why":"asked for","decided_by":"--backend"}'
assert_json '.model.num_layers' 44

it "gives nothing in JSON for a backend without a packed layout"
put_flash
run moepack plan --model . --tp 8 --json --gpu-memory 1
assert_status 0
assert_json '[.backend, .ep_size, .target, .acts, .use_mega_moe, .env]' \
    '["none",1,null,null,false,{}]'
assert_json '[.memory[]] | unique' '[null,{"weights":null,"scales":null}]'
run moepack plan --model . --gpu-memory 1GB
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
run moepack plan --model . --backend deepep --ep 4 --tp 8 --env-file variables --json
assert_status 0
assert_json '[.backend, .acts, .env.DG_USE_FP4_ACTS, .env.DG_USE_MXF4_KIND, .memory.symm_buffer]' \
    '["megamoe","fp4","1","0",510131488]'
assert_stderr_is <<'END'
moepack: plan: warning: --backend deepep is overridden: SGLANG_OPT_USE_DEEPGEMM_MEGA_MOE selects megamoe
moepack: plan: warning: --ep 4 is ignored: backend megamoe sets ep_size to tp_size, 8
END
assert_json '.warnings | length' 2
run moepack plan --model . --backend deepep --tp 8 --env-file variables --json -q
assert_stderr_is ''

it "goes by the process's environment only when told to, a file's variables over it"
put_flash
export SGLANG_OPT_USE_DEEPGEMM_MEGA_MOE=1
run moepack plan --model . --tp 8 --json
assert_json .backend '"none"'
run moepack plan --model . --tp 8 --env --json
assert_json .backend '"megamoe"'
echo SGLANG_OPT_USE_DEEPGEMM_MEGA_MOE=0 >variables
run moepack plan --model . --tp 8 --env --env-file variables --json
assert_json .backend '"none"'
unset SGLANG_OPT_USE_DEEPGEMM_MEGA_MOE

it "names a variable that it cannot read"
put_flash
echo SGLANG_OPT_FIX_MEGA_MOE_MEMORY=perhaps >variables
run moepack plan --model . --env-file variables
assert_status 3
assert_stdout ''
assert_stderr_is 'moepack: plan: SGLANG_OPT_FIX_MEGA_MOE_MEMORY: "perhaps" is neither true (1, true, yes, y, on) nor false (0, false, no, n, off, empty)'
run moepack plan --model . --env-file - <<<perhaps
assert_status 3
assert_stderr_is 'moepack: plan: standard input: line 1: not NAME=VALUE'

it "prints lines that a shell evaluates, and that it reads back"
put_flash
printf '%s=1\n' SGLANG_OPT_DEEPGEMM_MEGA_MOE_USE_{FP4_ACTS,MXF4_KIND} >variables
run moepack plan --model . --backend megamoe --tp 8 --env-file variables --format env
assert_status 0
assert_stdout <<'END'
export SGLANG_OPT_FIX_MEGA_MOE_MEMORY='1'
export DG_USE_FP4_ACTS='1'
export DG_USE_MXF4_KIND='1'
END
assert_equal "$(eval "$(cat "$stdout")" && sh -c 'echo $DG_USE_FP4_ACTS')" 1
cat variables "$stdout" >both.env
run moepack plan --model . --backend megamoe --tp 8 --env-file both.env --json
assert_json '[.acts, .warnings, .env.DG_USE_MXF4_KIND]' '["fp4",[],"1"]'
run moepack plan --model . --format env
assert_status 0
assert_stdout ''
run moepack plan --model . --format env --json
assert_status 2
assert_stderr_has '--json and --format env contradict each other'

it "says that it does not fit, and which token cap would"
put_flash
run moepack plan --model . --backend megamoe --tp 8 --gpu-memory 20GB
assert_status 1
assert_stdout_has '20.0 GB: does not fit'
assert_stdout_has 'largest token cap that fits: 0'
assert_stderr_is 'moepack: plan: 20.6 GB a rank do not fit 20.0 GB'
run moepack plan --model . --backend megamoe --tp 8 --gpu-memory 20569652511 --json
assert_status 1
assert_json '[.memory.fits, .memory.max_tokens]' '[false,768]'
run moepack plan --model . --backend megamoe --tp 8 --gpu-memory 20569652512 --json
assert_status 0
assert_json '[.memory.fits, .memory.max_tokens]' '[true,1152]'

it "plans for experts that are requantized"
put_flash
run moepack plan --model . --backend ascend_fuseep --platform npu --tp 16 --json
assert_status 5
assert_stdout ''
assert_stderr_is 'moepack: plan: ascend_fuseep: experts are mxfp4 (expert_dtype), the kernel takes W8A8 INT8 only: see --quantize int8_channel'
run moepack plan --model . --backend ascend_fuseep --platform npu --tp 16 \
    --quantize int8_channel --json
assert_status 0
assert_json '[.target, .acts, .fuse_mode, .memory.weights, .memory.symm_buffer]' \
    '["fuseep-1","int8",1,17716740096,null]'

it "takes a checkpoint's word over its config.json's"
run moepack plan --model "$ROOT/testdata/fixtures/modelslim-w8a8" --json
assert_json '[.model.source, .model.scheme]' '["checkpoint","int8_channel"]'
run moepack plan --model "$ROOT/testdata/fixtures/modelslim-w8a8/config.json" --json
assert_json '[.model.source, .model.scheme]' '["config.json","bf16"]'

it "refuses what is no model"
run moepack plan --model nothing
assert_status 4
assert_stderr_is 'moepack: plan: cannot open "nothing": No such file or directory'
echo '{}' >other.json
run moepack plan --model other.json
assert_status 2
assert_stderr_has '"other.json" is neither a directory nor a config.json'
echo '{}' >config.json
run moepack plan --model .
assert_status 3
assert_stderr_is 'moepack: plan: config.json: no hidden size'
run moepack plan
assert_status 2
put_flash
run moepack plan --model . --backend megamo
assert_status 2
assert_stderr_has "did you mean 'megamoe'?"
run moepack plan --model . --backend deepep --tp 7
assert_status 3
assert_stderr_is 'moepack: plan: ep_size: 256 physical experts (256 and 0 redundant) do not divide among the 7 ranks of --tp'

# ---------------------------------------------------------------------------
# Packed directories
# ---------------------------------------------------------------------------

make_pack()
{
    run moepack repack "$v4" --target megamoe-w4a8 --ep 2 --placement "$v4/placement.json" -q -o packed
    assert_status 0
}
megamoe=(--backend megamoe --tp 2 -q)

it "says that a packed directory is what the engine wants"
make_pack
run moepack plan --model "$v4" "${megamoe[@]}" --placement "$v4/placement.json" --pack packed
assert_status 0
assert_stderr_is ''
assert_stdout_has 'packed: what the engine wants'
run moepack plan --model "$v4" "${megamoe[@]}" --redundant 1 --pack packed --json
assert_status 0
assert_json .pack '{"path":"packed","ok":true,"mismatches":[]}'

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
    run moepack plan --model "$v4" "${megamoe[@]}" --redundant 1 --shared $shared --json
    assert_json '.memory.weights + .memory.scales' "$(rank_bytes $shared)"
done

it "takes a packed directory as the model"
make_pack
run moepack plan --model packed "${megamoe[@]}" --json
assert_status 0
assert_json '[.model.source, .model.scheme, .model.num_layers, .num_physical, .pack.ok]' \
    '["moepack.json","mxfp4",2,6,true]'
run moepack plan --model packed "${megamoe[@]}" --placement "$v4/placement.json"
assert_status 0
assert_stdout_has 'packed: what the engine wants'

it "names what of a packed directory differs"
make_pack
run moepack plan --model "$v4" --backend megamoe --tp 3 --redundant 1 -q --pack packed
assert_status 1
assert_stdout_has 'packed: not what the engine wants'
assert_stderr_is <<'END'
moepack: plan: ep_size: the pack has 2, the engine wants 3
moepack: plan: packed: not what the engine wants
END
run moepack plan --model packed --backend deepep --tp 2 --json -q
assert_status 1
assert_json .pack.mismatches '["target: the pack has megamoe-w4a8, the engine wants no packed experts"]'
run moepack plan --model packed "${megamoe[@]}" --shared separate
assert_status 1
assert_stdout_has 'mismatch: shared: the pack has none, the engine wants separate'
jq '.physical_to_logical_map |= map(reverse)' "$v4/placement.json" >other.json
run moepack plan --model packed "${megamoe[@]}" --placement other.json
assert_status 1
assert_stdout_has 'mismatch: placement: the pack has '
run moepack plan --model packed "${megamoe[@]}" --gpu-memory 1 --format env
assert_status 1
assert_stderr_is 'moepack: plan: 8.56 MB a rank do not fit 1 byte'
run moepack plan --model packed --backend megamoe --tp 1 -q --gpu-memory 1
assert_status 1
assert_stderr_has 'packed: not what the engine wants, and it does not fit'

it "refuses a packed directory whose manifest was changed"
make_pack
sed -i 's/megamoe-w4a8/megamoe-w4a4/' packed/moepack.json
run moepack plan --model "$v4" "${megamoe[@]}" --pack packed
assert_status 3
run moepack plan --model "$v4" "${megamoe[@]}" --pack nothing
assert_status 4

finish
