#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# moepack forward against what transformers computes, for checkpoints that it wrote itself, and
# against each rule written down a second time, for families that it has not written.
# shellcheck source=tests/cli/lib.sh disable=SC2119
. "$(dirname "$0")/lib.sh"

models=$ROOT/testdata/transformers
blocks=$ROOT/testdata/blocks

# numbers FILE TENSOR TYPE: its numbers, one a line; the type is od's, f4 or f8.
numbers()
{
    local length from to

    length=$(od -An -tu8 -N8 "$1")
    read -r from to < <(tail -c +9 "$1" | head -c $((length)) |
        jq -r --arg name "$2" '.[$name].data_offsets|"\(.[0]) \(.[1])"')
    tail -c +$((9 + length + from)) "$1" | head -c $((to - from)) | od -An -v -w8 -t "$3" |
        tr -s ' ' '\n' | sed '/^$/d'
}

# The relative L2 distance of y from the truth, and whether it is below 1e-6.
distance()
{
    paste <(numbers y.st y f8) <(numbers "$1" y f4) |
        awk '{ d += ($1 - $2) ^ 2; t += $2 ^ 2; n += NF == 2 }
            END { e = sqrt(d / t); print (n == NR && NR > 0 && e < 1e-6 ? "right" : "wrong: " e) }'
}

for model in "$models"/*/ "$blocks"/*/; do
    name=$(basename "$model")
    it "computes what the model does: $name"
    run moepack inspect "$model" --json
    assert_status 0
    assert_json .problems '[]'
    assert_json '.model_type | length > 0' true
    for truth in "$model"truth-layer*.st; do
        layer=${truth##*layer}
        run moepack forward "$model" --layer "${layer%.st}" --input "$truth" -o y.st
        assert_status 0
        assert_equal "$name ${layer%.st} $(distance "$truth")" "$name ${layer%.st} right"
    done
done

# edit FILTER: a copy of qwen2_moe with another config.json.
edit()
{
    rm -rf model
    cp -r "$models/qwen2_moe" model
    chmod -R u+w model
    jq "$1" "$models/qwen2_moe/config.json" >model/config.json
}

it "asks for choices where it is not known how a model routes"
edit '.model_type = "foo" | del(.norm_topk_prob)'
run moepack inspect model
assert_status 0
assert_stdout_has 'model_type foo, named like '
run moepack forward model --layer 0 --tokens 3
assert_status 5
assert_stderr_is <<'OUTPUT'
moepack: forward: how model_type "foo" routes is not known; give topk_ids and topk_weights with --input
OUTPUT
run moepack forward "$models/qwen2_moe" --layer 0 --tokens 3 -o choices.st
assert_status 0
run moepack forward model --layer 0 --input choices.st -o y.st
assert_status 0
edit '.model_type = "foo" | .scoring_func = "softmax"'
run moepack forward model --layer 0 --tokens 3
assert_status 0
edit 'del(.model_type)'
run moepack forward model --layer 0 --tokens 3
assert_status 5
assert_stderr_is <<'OUTPUT'
moepack: forward: config.json has no model_type: how it routes is not known; give topk_ids and topk_weights with --input
OUTPUT

it "does not compute what an unknown activation does"
edit '.model_type = "foo" | .hidden_act = "gelu"'
run moepack forward model --layer 0 --input choices.st
assert_status 5
edit '.model_type = "foo" | .swiglu_limit = 3'
run moepack forward model --layer 0 --input choices.st
assert_status 5

it "takes rules from a nested model_type"
edit '{model_type: "shell", language_config: .}'
truth=$models/qwen2_moe/truth-layer1.st
run moepack forward model --layer 1 --input "$truth" -o y.st
assert_status 0
assert_equal "$(distance "$truth")" right

it "refuses tensors of a router that it does not read"
cp -r "$models/deepseek_v3-n_shared_experts2" biased
chmod -R u+w biased
jq '.model_type = "qwen2_moe" | .num_experts = .n_routed_experts' \
    "$models/deepseek_v3-n_shared_experts2/config.json" >biased/config.json
run moepack forward biased --layer 1 --tokens 3
assert_status 5
assert_stderr_is <<'OUTPUT'
moepack: forward: model.layers.1.mlp.gate.e_score_correction_bias: what it does is not computed; give topk_ids and topk_weights with --input
OUTPUT

it "has blocks that their program makes again, byte for byte"
run python3 "$ROOT/tests/tools/blocks.py" again
assert_status 0
run diff -r again "$blocks"
assert_status 0
assert_stdout ''

finish
