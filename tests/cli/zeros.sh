#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Matrices of zeros: their scales are numbers that every reader takes.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

moepack synth -o "$WORK/source" --family qwen3_moe --hidden 384 --intermediate 128 --experts 3 --layers 2 \
    --top-k 2 -q
for matrix in gate up down; do
    "$ROOT/tests/tools/tensors.py" "$WORK"/source/*.safetensors fill \
        model.layers.0.mlp.experts.1.${matrix}_proj.weight 0
done

# reads CHECKPOINT OTHER: both hold the same weights, and nothing is wrong with the first
reads()
{
    run moepack inspect "$1" --json
    assert_status 0
    assert_json '.problems' '[]'
    run moepack diff "$1" "$2"
    assert_status 0
}

while read -r scheme target style; do
    it "packs zeros in $scheme for $target"
    rm -rf pack unpacked
    run moepack repack "$WORK/source" -t "$target" --quantize "$scheme" --ep 3 -o pack -q
    assert_status 0
    run moepack verify pack --source "$WORK/source" -q
    assert_status 0
    run moepack inspect pack -q
    assert_status 0
    run moepack unpack pack -o unpacked -q
    assert_status 0
    reads unpacked pack

    it "writes zeros in $scheme, style $style"
    rm -rf quantized pack
    run moepack quantize "$WORK/source" -f "$scheme" --style "$style" -o quantized -q
    assert_status 0
    run moepack verify quantized --source "$WORK/source"
    assert_status 0
    run moepack repack quantized -t "$target" --ep 3 -o pack -q
    assert_status 0
    run moepack verify pack --source quantized -q
    assert_status 0
    reads quantized pack
done <<'END'
nvfp4 megamoe-nvfp4 modelopt
nvfp4 megamoe-nvfp4 compressed-tensors
mxfp4 megamoe-w4a8 deepseek-v4
fp8_block megamoe-sm90-fp8 deepseek-v3
int8_channel fuseep-2 compressed-tensors
END

finish
