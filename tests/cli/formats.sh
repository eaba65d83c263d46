#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Formats of real checkpoints that are easily read wrong: zero points, several precisions, codes
# in other containers.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

edit()
{
    python3 "$ROOT/tests/tools/tensors.py" "$@"
}

# ---------------------------------------------------------------------------
# Zero points
# ---------------------------------------------------------------------------

# Names of the zero points of ./ckpt.
zero_points()
{
    "$MOEPACK" inspect --tensors --json ckpt | jq -r '.tensors[].name | select(endswith("weight_offset"))'
}

it "takes zero points that are -0.0 for zero"
moepack synth -o ckpt --family qwen3_moe --format int8_channel --style modelslim --hidden 128 \
    --intermediate 64 --experts 2 --layers 1 --top-k 2 -q
for name in $(zero_points); do
    edit ckpt/*.safetensors scale "$name" -1
done
run moepack quantize ckpt -f bf16 -o bf16 -q
assert_status 0
run moepack repack ckpt -t fuseep-1 --ep 2 -o pack -q
assert_status 0
run moepack verify pack --source ckpt --level numeric -q
assert_status 0
run moepack diff ckpt pack
assert_status 0

it "carries other zero points, and decodes nothing that has them"
moepack synth -o ckpt --family qwen3_moe --format int8_channel --style modelslim --hidden 128 \
    --intermediate 64 --experts 2 --layers 1 --top-k 2 -q
for name in $(zero_points); do
    edit ckpt/*.safetensors fill "$name" 63
done
run moepack repack ckpt -t fuseep-1 --ep 2 -o pack -q
assert_status 0
run moepack verify pack --source ckpt -q
assert_status 0
run moepack verify pack --source ckpt --level numeric -q
assert_status 5
assert_stderr_has 'weight_offset: zero points that are not zero cannot be decoded'
run moepack quantize ckpt -f bf16 -o bf16 -q
assert_status 5
assert_stderr_has 'weight_offset: zero points that are not zero cannot be decoded'

finish
