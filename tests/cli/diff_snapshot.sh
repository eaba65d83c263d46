#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# diff of what engines dump, against checkpoints, packs and each other.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

tools=$ROOT/tests/tools
# 2 layers of 6 experts of BF16, H = 96, I = 64; what it is quantized to; and a pack of it.
six=$WORK/six
"$MOEPACK" synth -o "$six" --family qwen3_moe --layers 2 --experts 6 --top-k 2 --hidden 96 \
    --intermediate 64 --seed 5 -q
for format in int8_channel nvfp4; do
    "$MOEPACK" quantize "$six" -o "$WORK/$format" -f $format -q 2>"$stderr" || cat "$stderr"
done
"$MOEPACK" quantize "$six" -o "$WORK/packed_words" -f nvfp4 --style compressed-tensors -q 2>"$stderr" ||
    cat "$stderr"
"$MOEPACK" repack "$six" -o "$WORK/pack" --target deepep-bf16 --ep 2 -q
echo '[5, 1, 2, 3, 4, 0, 3, 3, 1]' >"$WORK/placement.json"

dump()
{
    python3 "$tools/snapshots.py" "$@"
}

assert_equal_sides()
{
    run moepack diff "$@"
    assert_status 0
    assert_stderr_is ''
    assert_stdout_has 'equal: 0 of '
}

for kind in presharded sharded_state bigtensor; do
    it "finds experts of $kind equal to those of a checkpoint and a pack"
    out=$(dump $kind "$six" redundant --ep 4 --redundant 2 --order 8)
    assert_equal_sides "$out" "$six"
    run moepack diff "$six" "$out" --json
    assert_json '[.equal, (.pairs | length), .only_in_a, .only_in_b]' '[true,36,[],[]]'
    assert_json '.pairs[4].name' '"model.layers.0.1.up"'
    assert_equal_sides "$WORK/pack" "$out"
    out=$(dump $kind "$WORK/int8_channel" over --ep 3 --tp 2 --transposed)
    assert_equal_sides "$out" "$WORK/int8_channel"
    assert_equal_sides "$out" "$six" --tolerance 0.05
    run moepack diff "$out" "$six"
    assert_status 1
    assert_stdout_has 'different: 36 of 36 pairs differ'
    out=$(dump $kind "$WORK/nvfp4" cut --ep 3 --tp 2)
    assert_equal_sides "$out" "$WORK/nvfp4"

    it "takes the placement of $kind"
    out=$(dump $kind "$six" out --ep 3 --placement "$WORK/placement.json")
    assert_equal_sides "$out" "$six" --placement "$WORK/placement.json"

    it "finds one byte of $kind, in a copy too"
    out=$(dump $kind "$six" out --ep 3 --placement "$WORK/placement.json")
    # The last expert of the last rank is a copy of expert 1; its down is the last of what is there.
    case $kind in
    presharded) file=$(cd "$out" && grep -l "$(jq -r '.rank_to_reads["2"][] | select(.name == "model.layers.1.mlp.experts.w2_weight").stored_key' checksum.json)" ./*-002.safetensor) ;;
    sharded_state) file=$(cd "$out" && grep -l layers.1.mlp.experts.w2_weight model-rank-2-*) ;;
    bigtensor) file=2.snapshot ;;
    esac
    size=$(stat -c %s "$out/$file")
    printf '\125' | dd of="$out/$file" bs=1 seek=$((size - 3)) conv=notrunc status=none
    run moepack diff "$out" "$six" --placement "$WORK/placement.json" --json
    assert_status 1
    assert_json '[.pairs[] | select(.equal | not).name]' '["model.layers.1.1.down"]'
    assert_json '[.pairs[].note | select(.)]' \
        "[\"$out: slot 2 of rank 2 holds something else than slot 1 of rank 0\"]"

    it "compares two of $kind by their experts, and by the tensors of as many ranks"
    one=$(dump $kind "$WORK/packed_words" one --ep 2 --order 8)
    other=$(dump $kind "$WORK/packed_words" other --ep 2 --tp 2 --order 16)
    run moepack diff "$one" "$other" --json
    assert_status 0
    assert_json '.pairs | length' 36
    again=$(dump $kind "$WORK/packed_words" again --ep 2)
    run moepack diff "$one" "$again" --json
    assert_status 0
    assert_json '[(.pairs | length), ([.pairs[].name | select(startswith("rank 1 "))] | length)]' '[48,6]'
    assert_json '.pairs[-1].name' '"rank 1 model.layers.1.post_attention_layernorm.weight"'
done

it "names the tensors that two snapshots do not have in common"
dump sharded_state "$six" a --ep 2 >path
cp -r a b
norm=model.layers.0.input_layernorm.weight
for rank in 0 1; do
    part=$(cd b && grep -l $norm model-rank-$rank-*)
    "$tools/tensors.py" "b/$part" rename $norm other.weight
done
part=$(cd b && grep -l layers.1.mlp.gate.weight model-rank-0-*)
"$tools/tensors.py" "b/$part" flip model.layers.1.mlp.gate.weight 6 0x10
run moepack diff a b --json
assert_status 1
assert_json '[.pairs[] | select(.equal | not).name]' '["rank 0 model.layers.1.mlp.gate.weight"]'
assert_json '[.only_in_a, .only_in_b]' \
    "[[\"rank 0 $norm\",\"rank 1 $norm\"],[\"rank 0 other.weight\",\"rank 1 other.weight\"]]"
run moepack diff a b --layers 1
assert_status 1

it "compares fused shared experts"
"$MOEPACK" synth -o ckpt --family deepseek_v3 --format bf16 --layers 1 --experts 4 --shared 1 \
    --top-k 2 --hidden 96 --intermediate 64 -q
python3 - "$tools" <<'END'
import pathlib
import sys
sys.path.insert(0, sys.argv[1])
from tensors import read, write
path = next(pathlib.Path("ckpt").glob("*.safetensors"))
tensors, metadata = read(path)
out = {}
for rank, ids in enumerate(((0, 1), (2, 3))):
    mlp = "model.layers.0.mlp."
    parts = [f"{mlp}experts.{e}." for e in ids] + [mlp + "shared_experts."]
    w13 = b"".join(bytes(tensors[f"{p}{h}_proj.weight"][2]) for p in parts for h in ("gate", "up"))
    w2 = b"".join(bytes(tensors[f"{p}down_proj.weight"][2]) for p in parts)
    pathlib.Path("out").mkdir(exist_ok=True)
    write(f"out/model-rank-{rank}-part-0.safetensors", {
        mlp + "experts.w13_weight": ["BF16", [3, 128, 96], w13],
        mlp + "experts.w2_weight": ["BF16", [3, 96, 64], w2],
        mlp + "gate.weight": tensors[mlp + "gate.weight"]})
END
run moepack verify out --source ckpt
assert_status 0
assert_stdout_has ' 6 slots, '
run moepack diff out ckpt --json
assert_status 0
assert_json '[.pairs[-1].name, (.pairs | length)]' '["model.layers.0.shared.down",15]'
run moepack diff out out --json
assert_status 0

it "refuses what it cannot compare"
out=$(dump presharded "$six" out --ep 2)
rm "$out/READY"
run moepack diff "$out" "$six"
assert_status 3
assert_stderr_is "moepack: diff: $out: READY is missing: the dump was not finished; moepack verify says more"
run moepack diff "$six" "$six" --placement "$WORK/placement.json"
assert_status 2
assert_stderr_has 'a placement is for snapshots, and neither side is one'
dump sharded_state "$six" state --ep 4 --redundant 2 >path
run moepack diff state "$six" --placement "$WORK/placement.json"
assert_status 3
assert_stderr_is 'moepack: diff: state: model.layers.0.mlp.experts.w13_weight: 2 experts on each of 4 ranks, the placement has 9: which they are is not known'
run moepack diff state state/model-rank-0-part-0.safetensors
assert_status 3
assert_stderr_is 'moepack: diff: state/model-rank-0-part-0.safetensors: no experts to compare with those of a snapshot'
v4=$ROOT/testdata/fixtures/v4-fp4
out=$(dump presharded "$v4" mega --megamoe --order 8)
run moepack diff "$out" "$v4"
assert_status 5
assert_stderr_is "moepack: diff: $out: model.layers.0.mlp.experts.w13_weight: its scales are not in this snapshot"

it "gives the same report for any number of threads"
out=$(dump sharded_state "$WORK/nvfp4" out --ep 3 --tp 2)
moepack diff "$out" "$six" --json -j1 >one
moepack diff "$out" "$six" --json -j3 >three
assert_file_is three <one

finish
