#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# verify of what engines dump: every fault that is planted is found, and named.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

tools=$ROOT/tests/tools
# Layer "model.layers.0", 4 experts of BF16, H = 96, I = 64.
source=$ROOT/testdata/fixtures/qwen3-bf16
prefix=model.layers.0.mlp.experts
# FP8 in blocks of 128, 2 layers of 6 experts, H = 384, I = 256; and one more of other weights.
for seed in 1 2; do
    "$MOEPACK" synth -o "$WORK/fp8-$seed" --family deepseek_v3 --format fp8_block --layers 2 \
        --experts 6 --shared 1 --top-k 2 --hidden 384 --intermediate 256 --seed $seed -q
done

dump()
{
    python3 "$tools/snapshots.py" "$@"
}

# A copy of a checkpoint, ./ckpt, damaged in one file; without an index, which may not fit then.
damaged()
{
    [ -d ckpt ] || cp -r "$1" ckpt
    rm -f ckpt/*.index.json
    "$tools/tensors.py" ckpt/"$(cd ckpt && echo *.safetensors)" "${@:2}"
}

# Expects failure and these faults, with and behind the source.
assert_faults()
{
    run moepack verify "$@"
    assert_status 1
    assert_stderr_is ''
    assert_stdout
}

it "accepts sound dumps of every kind, order and cut"
for flags in '--ep 2' '--ep 2 --order swapped' '--tp 2 --order 8' '--ep 2 --tp 2 --order 16' '--sha1'; do
    # shellcheck disable=SC2086
    out=$(dump presharded "$source" out $flags)
    run moepack verify "$out" --source "$source"
    assert_status 0
    assert_stdout_has 'ok: exact: '
    rm -r out
done
for kind in sharded_state bigtensor presharded; do
    out=$(dump $kind "$WORK/fp8-1" out --ep 3)
    run moepack verify "$out" --source "$WORK/fp8-1"
    assert_status 0
    assert_stdout_has ' 12 slots, '
    rm -r out
done

it "finds a planted swap of gate and up in a presharded dump"
damaged "$source" swap $prefix.2.gate_proj.weight $prefix.2.up_proj.weight
out=$(dump presharded ckpt out --ep 2)
run moepack verify "$out"
assert_status 0
assert_faults "$out" --source "$source" <<'END'
rank 1, model.layers.0, slot 0, mlp.experts.w13_weight: gate and up of expert 2 are swapped
FAILED: 1 fault
END
run moepack verify "$out" --source "$source" --tap
assert_status 1
assert_stdout <<'END'
1..8
ok 1 - snapshot: structure
ok 2 - snapshot: digest
ok 3 - rank 0: structure
ok 4 - rank 0: digest
ok 5 - rank 0: exact
ok 6 - rank 1: structure
ok 7 - rank 1: digest
not ok 8 - rank 1: exact
# rank 1, model.layers.0, slot 0, mlp.experts.w13_weight: gate and up of expert 2 are swapped
END

it "finds it in the other kinds too"
damaged "$source" swap $prefix.2.gate_proj.weight $prefix.2.up_proj.weight
for kind in sharded_state bigtensor; do
    out=$(dump $kind ckpt $kind --ep 2)
    assert_faults "$out" --source "$source" <<'END'
rank 1, model.layers.0, slot 0, mlp.experts.w13_weight: gate and up of expert 2 are swapped
FAILED: 1 fault
END
done

it "names experts that are swapped, on the slots of their ranks"
for half in gate_proj up_proj down_proj; do
    damaged "$source" swap $prefix.1.$half.weight $prefix.2.$half.weight
done
for kind in presharded sharded_state bigtensor; do
    out=$(dump $kind ckpt $kind --ep 2 --order 8)
    assert_faults "$out" --source "$source" <<'END'
rank 0, model.layers.0, slot 1, mlp.experts.w13_weight: expert 1 is expert 2
rank 0, model.layers.0, slot 1, mlp.experts.w2_weight: expert 1 is expert 2
rank 1, model.layers.0, slot 0, mlp.experts.w13_weight: expert 2 is expert 1
rank 1, model.layers.0, slot 0, mlp.experts.w2_weight: expert 2 is expert 1
FAILED: 4 faults
END
done

it "names scales that are zero or constant"
damaged "$WORK/fp8-1" fill model.layers.1.mlp.experts.4.up_proj.weight_scale_inv 0
"$tools/tensors.py" ckpt/*.safetensors fill model.layers.1.mlp.experts.5.down_proj.weight_scale_inv 0x3c
for kind in presharded sharded_state bigtensor; do
    out=$(dump $kind ckpt $kind --ep 3)
    assert_faults "$out" --source "$WORK/fp8-1" <<'END'
rank 2, model.layers.1, slot 0, mlp.experts.w13_weight: up of expert 4: scales are all zero
rank 2, model.layers.1, slot 1, mlp.experts.w2_weight: down of expert 5: scales are constant
FAILED: 2 faults
END
done

it "finds a layer of another checkpoint"
cp -r "$WORK/fp8-1" ckpt
python3 - "$tools" "$WORK" <<'END'
import pathlib
import sys
sys.path.insert(0, sys.argv[1])
from tensors import read, write
path = next(pathlib.Path("ckpt").glob("*.safetensors"))
ours, metadata = read(path)
theirs, _ = read(f"{sys.argv[2]}/fp8-2/{path.name}")
write(path, {n: theirs[n] if ".layers.1.mlp.experts" in n else e for n, e in ours.items()}, metadata)
END
for kind in presharded sharded_state bigtensor; do
    out=$(dump $kind ckpt $kind --ep 2)
    run moepack verify "$out" --source "$WORK/fp8-1" --json
    assert_status 1
    assert_json '[.faults[].layer] | unique' '["model.layers.1"]'
    assert_json .total_faults 18
    assert_json '[.faults[].detail | endswith("; it is not a matrix of this layer")] | all' true
    run moepack verify "$out" --source "$WORK/fp8-1" --layers 0
    assert_status 0
done

it "finds one byte, by its digest and by its place"
out=$(dump presharded "$source" out --ep 2)
file=$out/$(cd "$out" && echo *-rank-001.safetensor)
size=$(stat -c %s "$file")
printf '\125' | dd of="$file" bs=1 seek=$((size - 3)) conv=notrunc status=none
run moepack verify "$out" --source "$source" --json
assert_status 1
assert_json '[.faults[] | [.level, .rank, .layer, .slot, .tensor]]' \
    '[["digest",1,null,null,"model.layers.0.mlp.experts.w2_weight"],["exact",1,"model.layers.0",1,"model.layers.0.mlp.experts.w2_weight"]]'
assert_json '.faults[0].detail | test("^model-0000[0-9]-rank-001.safetensor: the content of [0-9a-f]{32} has the hash [0-9a-f]{32}$")' true
assert_json '.faults[1].detail | test("^down of expert 3: row 95 column 62 is not the source.s; relative RMS error ")' true

it "finds one byte of a blob and of a part"
for kind in bigtensor sharded_state; do
    out=$(dump $kind "$source" $kind --ep 2)
    file=1.snapshot
    [ $kind = bigtensor ] || file=$(cd "$out" && grep -l $prefix.w2_weight model-rank-1-*)
    size=$(stat -c %s "$out/$file")
    printf '\125' | dd of="$out/$file" bs=1 seek=$((size - 3)) conv=notrunc status=none
    run moepack verify "$out" --source "$source"
    assert_status 1
    [ $kind = sharded_state ] || assert_stdout_has 'rank 1: 1.snapshot has the SHA-256 '
    assert_stdout_has "rank 1, model.layers.0, slot 1, mlp.experts.w2_weight: down of expert 3: row 95 column 62 is not the source's; relative RMS error "
done

it "misses READY, a file, a tensor, and takes nothing that is not listed"
out=$(dump presharded "$source" out --ep 2)
rm "$out/READY"
touch "$out/model-00009-common.safetensor"
mkdir "$out/_tmp_presharding"
assert_faults "$out" <<'END'
READY is missing: the dump was not finished
_tmp_presharding: a directory left by an unfinished dump
model-00009-common.safetensor: a file that checksum.json does not list
FAILED: 3 faults
END
rm -r "$out/_tmp_presharding" "$out"/*common*
printf '{"plan_version":1,"world_size":4}' >"$out/READY"
run moepack verify "$out" --source "$source"
assert_status 1
assert_stdout_has 'READY says world_size 4, checksum.json says 2'
assert_stdout_has '-common.safetensor is missing'
assert_stdout_has 'rank 1, model.layers.0.mlp.gate.weight: is read as '

it "finds a key that is renamed, and a checksum that is not the rank's"
out=$(dump presharded "$source" out)
file=$(cd "$out" && echo *.safetensor)
key=$(jq -r .files[0].tensors[0].stored_key "$out/checksum.json")
"$tools/tensors.py" "$out/$file" rename "$key" 0123456789abcdef0123456789abcdef
run moepack verify "$out"
assert_status 1
assert_stdout_has "$file: $key is missing, checksum.json lists it"
assert_stdout_has "$file: 0123456789abcdef0123456789abcdef is not in checksum.json"
assert_stdout_has "$file: the content of 0123456789abcdef0123456789abcdef has the hash $key"
rm -r out
out=$(dump presharded "$source" out --ep 2)
jq '.rank_checksums["1"] = "0000000000000001" | .shard_config.tp_size = 3' "$out/checksum.json" >new
mv new "$out/checksum.json"
run moepack verify "$out"
assert_status 1
assert_stdout_has "the directory's sig is "
assert_stdout_has 'rank 1: the checksum of its reads is '

it "finds names that are renamed on all ranks"
dump bigtensor "$source" blobs --ep 2 >path
dump sharded_state "$source" parts --ep 2 >path
for rank in 0 1; do
    jq --arg n $prefix.w2_weight '.tensors[$n + "_"] = .tensors[$n] | del(.tensors[$n])' blobs/$rank.json >new
    mv new blobs/$rank.json
    part=$(cd parts && grep -l $prefix.w2_weight model-rank-$rank-*)
    "$tools/tensors.py" "parts/$part" rename $prefix.w2_weight $prefix.w2_weight_
done
for out in blobs parts; do
    assert_faults $out --source "$source" <<'END'
rank 0, model.layers.0: w2_weight is missing
rank 1, model.layers.0: w2_weight is missing
FAILED: 2 faults
END
done

it "says of MegaMoE's FP4 experts that their scales are elsewhere, and checks the rest"
v4=$ROOT/testdata/fixtures/v4-fp4
out=$(dump presharded "$v4" out --megamoe --order 8)
assert_faults "$out" --source "$v4" <<'END'
rank 0, model.layers.0, mlp.experts.w13_weight: the kernel's scales are not in this snapshot
rank 0, model.layers.0, mlp.experts.w2_weight: the kernel's scales are not in this snapshot
FAILED: 2 faults
END
out=$(dump presharded "$v4" plain --megamoe)
run moepack verify "$out" --source "$v4"
assert_status 1
assert_stdout_has 'slot 4, mlp.experts.w13_weight: expert 4 is not interleaved: gate rows, then up rows, expected 8 gate rows and 8 up rows in turn'

it "misses parts, ranks and tensors of sharded_state"
out=$(dump sharded_state "$source" out --ep 4)
rm out/model-rank-1-part-0.safetensors out/model-rank-2-part-*
run moepack verify out
assert_status 1
assert_stdout_has 'rank 1: model-rank-1-part-0.safetensors is missing'
assert_stdout_has 'rank 2: no file of this rank is present'
assert_stdout_has 'is missing, but rank 0 has it'
rm -r out
out=$(dump sharded_state "$source" out --ep 2)
name=$prefix.w2_weight
part=$(cd out && grep -l "$name" model-rank-0-*)
cp "out/$part" out/model-rank-0-part-2.safetensors
run moepack verify out
assert_status 1
assert_stdout_has 'appears twice'

it "holds the description of a blob against the blob"
out=$(dump bigtensor "$source" out --ep 2)
jq --arg n $prefix.w2_weight '.tensors[$n].offset += 16 | .world_size = 3' out/1.json >new
mv new out/1.json
run moepack verify out --level structure
assert_status 1
assert_stdout_has 'rank 1: 1.json says world_size 3, the number of ranks is 2'
rm out/0.snapshot
run moepack verify out --level structure
assert_status 1
assert_stdout_has 'rank 0: 0.snapshot is missing'
jq --arg n $prefix.w2_weight '.tensors[$n].nbytes = 18446744073709551615' out/1.json >new
mv new out/1.json
run moepack verify out
assert_status 3

# 2 layers of 6 experts of BF16, H = 96, I = 64; and what it is quantized to.
"$MOEPACK" synth -o "$WORK/six" --family qwen3_moe --layers 2 --experts 6 --top-k 2 --hidden 96 \
    --intermediate 64 --seed 5 -q
for format in int8_channel nvfp4; do
    "$MOEPACK" quantize "$WORK/six" -o "$WORK/$format" -f $format -q 2>"$stderr" || cat "$stderr"
done
echo '[5, 1, 2, 3, 4, 0, 3, 3, 1]' >"$WORK/placement.json"

it "finds redundant experts by their number, or by a placement"
for kind in presharded sharded_state bigtensor; do
    out=$(dump $kind "$WORK/six" redundant --ep 4 --redundant 2)
    run moepack verify "$out" --source "$WORK/six"
    assert_status 0
    assert_stdout_has ' 16 slots, '
    out=$(dump $kind "$WORK/six" placed --ep 3 --placement "$WORK/placement.json")
    run moepack verify "$out" --source "$WORK/six" --placement "$WORK/placement.json"
    assert_status 0
    assert_stdout_has ' 18 slots, '
    rm -r placed redundant
done
out=$(dump sharded_state "$WORK/six" placed --ep 3 --placement "$WORK/placement.json")
run moepack verify "$out" --source "$WORK/six" --layers 0
assert_status 1
assert_stdout_has 'rank 0, model.layers.0, slot 0, mlp.experts.w13_weight: expert 0 is expert 5'
assert_stdout_has 'rank 2, model.layers.0, slot 2, mlp.experts.w2_weight: expert 2 is expert 1'

it "holds a placement against what the snapshot says of it"
out=$(dump presharded "$WORK/six" out --ep 3 --placement "$WORK/placement.json")
digest=$(sha1sum <"$WORK/placement.json" | cut -c 1-16)
run moepack verify "$out" --source "$WORK/six"
assert_status 2
assert_stderr_has "was dumped with the placement \"file:placement.json:sha1:$digest\": name its file with --placement"
echo '[5, 1, 2, 3, 4, 0, 3, 3, 2]' >other.json
run moepack verify "$out" --source "$WORK/six" --placement other.json
assert_status 3
assert_stderr_is "moepack: verify: other.json: its SHA-1 is $(sha1sum <other.json | cut -c 1-16), \"$out\" was dumped with \"file:placement.json:sha1:$digest\""
jq --slurpfile p "$WORK/placement.json" '.shard_config.init_expert_location = ({physical_to_logical_map: [$p[0], $p[0]]} | tojson)' \
    "$out/checksum.json" >new
mv new "$out/checksum.json"
mv "$out" here
run moepack verify here --source "$WORK/six"
assert_status 0
run moepack verify "$WORK/six" --source "$WORK/six" --placement other.json
assert_status 2
assert_stderr_has 'is not a snapshot: a placement is for these'
dump sharded_state "$WORK/six" eight --ep 4 --redundant 2 >path
run moepack verify eight --source "$WORK/six" --placement "$WORK/placement.json"
assert_status 1
assert_stdout_has 'rank 0, model.layers.0, mlp.experts.w13_weight: 2 experts on each of 4 ranks, the placement has 9: which they are is not known'

it "holds copies of an expert against each other, where they are not the source's bits"
out=$(dump sharded_state "$WORK/int8_channel" out --ep 3 --placement "$WORK/placement.json")
run moepack verify "$out" --source "$WORK/six" --placement "$WORK/placement.json"
assert_status 0
part=$(cd out && grep -l layers.1.mlp.experts.w2_weight model-rank-2-*)
"$tools/tensors.py" "out/$part" flip model.layers.1.mlp.experts.w2_weight $((96 * 64 + 70)) 1
assert_faults "$out" --source "$WORK/six" --placement "$WORK/placement.json" <<'END'
rank 2, model.layers.1, slot 1, mlp.experts.w2_weight: expert 3 is not as slot 0 of rank 1 has it: row 1 column 6 of down
FAILED: 1 fault
END

it "reads weights that are turned over, as Ascend has them"
for kind in presharded sharded_state bigtensor; do
    for source_of in six int8_channel; do
        out=$(dump $kind "$WORK/$source_of" out --ep 3 --tp 2 --transposed)
        run moepack verify "$out" --source "$WORK/$source_of"
        assert_status 0
        assert_stdout_has ' 24 slots, '
        rm -r out
    done
done
damaged "$WORK/int8_channel" swap $prefix.4.gate_proj.weight $prefix.4.up_proj.weight
"$tools/tensors.py" ckpt/*.safetensors swap $prefix.4.gate_proj.weight_scale $prefix.4.up_proj.weight_scale
out=$(dump bigtensor ckpt out --ep 3 --transposed)
assert_faults "$out" --source "$WORK/int8_channel" <<'END'
rank 2, model.layers.0, slot 0, mlp.experts.w13_weight: gate and up of expert 4 are swapped
FAILED: 1 fault
END

it "takes one second scale of nvfp4 for gate and one for up"
damaged "$WORK/nvfp4" scale $prefix.2.up_proj.weight_scale_2 2
for order in plain swapped 8 16; do
    out=$(dump sharded_state ckpt $order --ep 2 --order $order)
    run moepack verify "$out" --source ckpt
    assert_status 0
    assert_faults "$out" --source "$WORK/nvfp4" <<'END'
rank 0, model.layers.0, slot 2, mlp.experts.w13_weight: up of expert 2: relative RMS error 1, nvfp4 may have 0.15; it is not a matrix of this layer
FAILED: 1 fault
END
done

it "takes a second scale and its reciprocal for the same"
"$MOEPACK" quantize "$WORK/six" -o words -f nvfp4 --style compressed-tensors -q 2>"$stderr"
for pair in "words $WORK/nvfp4" "$WORK/nvfp4 words"; do
    read -r one other <<<"$pair"
    out=$(dump sharded_state "$one" out --ep 2)
    run moepack verify "$out" --source "$other"
    assert_status 0
    part=$(cd out && grep -l layers.0.mlp.experts.w13_weight_scale\" model-rank-1-*)
    "$tools/tensors.py" "out/$part" flip $prefix.w13_weight_scale 100 0x08
    run moepack verify "$out" --source "$other"
    assert_status 1
    assert_stdout_has 'rank 1, model.layers.0, slot 0, mlp.experts.w13_weight'
    assert_stdout_has "gate of expert 3 is not the source's; relative RMS error "
    rm -r out
done

it "wants experts that the source's list of exceptions names as they are"
"$MOEPACK" quantize "$WORK/six" -o partly -f nvfp4 --layers 1 -q 2>"$stderr"
for kind in presharded sharded_state bigtensor; do
    out=$(dump $kind partly $kind --ep 2)
    run moepack verify "$out" --source partly
    assert_status 0
    assert_stdout_has ' 12 slots, '
done
out=$(dump bigtensor "$WORK/nvfp4" out)
assert_faults "$out" --source partly <<'END'
rank 0, model.layers.0, mlp.experts.w13_weight: should not be quantized by "model.layers.0.mlp.experts*" in the source's list of exceptions, but is nvfp4
rank 0, model.layers.0, mlp.experts.w2_weight: should not be quantized by "model.layers.0.mlp.experts*" in the source's list of exceptions, but is nvfp4
FAILED: 2 faults
END

it "reads a pipeline, whose stages have layers of their own"
out=$(dump presharded "$WORK/six" out --ep 3 --pp 2)
run moepack verify "$out" --source "$WORK/six"
assert_status 0
assert_stdout_has ' 12 slots, '
rm "$out"/*-rank-00[0-3].safetensor
run moepack verify "$out" --source "$WORK/six" --ranks 4,5
assert_status 0
assert_stdout_has 'ok: exact: 3 files, '
run moepack verify "$out" --ranks 3-5
assert_status 1
assert_stdout_has 'rank 3, model.layers.1.mlp.experts.w13_weight: is read as '
jq '.shard_config.pp = 4' "$out/checksum.json" >new
mv new "$out/checksum.json"
run moepack verify "$out" --level structure --ranks 4
assert_status 1
assert_stdout_has 'checksum.json says pp 4 of world_size 6'

it "looks at some ranks, layers and experts only"
for kind in sharded_state bigtensor; do
    dump $kind "$WORK/nvfp4" $kind --ep 3 >path
    rm $kind/*0-part* $kind/0.* 2>"$stderr"
    run moepack verify $kind
    assert_status 1
    run moepack verify $kind --source "$WORK/nvfp4" --ranks 1-2
    assert_status 0
    assert_stdout_has ' 8 slots, '
    run moepack verify $kind --ranks 7
    assert_status 2
    assert_stderr_has 'list "7": "7" names no rank'
done
damaged "$WORK/six" swap $prefix.1.gate_proj.weight $prefix.1.up_proj.weight
for kind in presharded sharded_state bigtensor; do
    out=$(dump $kind ckpt $kind.swapped --ep 2)
    found=0
    for seed in 1 2 3 4 5 6 7 8; do
        run moepack verify "$out" --source "$WORK/six" --sample 2 --seed $seed --json
        found=$((found + status))
        assert_json '.checked.slots' 4
    done
    assert_equal "$((found > 0 && found < 8))" 1
    run moepack verify "$out" --source "$WORK/six" --layers 1
    assert_status 0
    assert_stdout_has ' 6 slots, '
    run moepack verify "$out" --source "$WORK/six" --ranks 1
    assert_status 0
done
out=$(echo presharded.swapped/*)
read -r file key < <(jq -r '.rank_to_reads["0"][] | select(.name | test("layers.0.*w2_weight")) | "\(.filename) \(.stored_key)"' "$out/checksum.json")
"$tools/tensors.py" "$out/$file" flip "$key" 9 4
run moepack verify "$out" --layers 1
assert_status 0
run moepack verify "$out" --layers 0
assert_status 1
assert_stdout_has 'rank 0, model.layers.0.mlp.experts.w2_weight: model-'

it "shows what a snapshot holds"
out=$(dump presharded "$source" out --ep 2)
run moepack inspect "$out"
assert_status 0
assert_stderr_is ''
assert_stdout <<'END'
SGLang presharded, 2 ranks, 3 files
rank 0: 3 tensors, 74.5 kB
rank 1: 3 tensors, 74.5 kB
END
run moepack inspect "$out" --json --tensors
assert_status 0
assert_json '[.snapshot, .shards, .problems, [.ranks[] | [.rank, .num_tensors, .bytes]]]' \
    '["SGLang presharded",3,[],[[0,3,74496],[1,3,74496]]]'
assert_json '.ranks[1].tensors[0] | [.name, .dtype, .shape]' \
    '["model.layers.0.mlp.experts.w13_weight","BF16",[2,128,96]]'
rm "$out/READY"
run moepack inspect "$out"
assert_status 3
assert_stderr_has 'moepack: inspect: READY is missing: the dump was not finished'

it "refuses what is malformed, and what it does not know"
out=$(dump presharded "$source" out)
cp "$out/checksum.json" plan
try()
{
    jq "$1" plan >"$out/checksum.json"
    run moepack verify "$out"
    assert_status "$2"
    assert_stdout ''
    assert_stderr_is "moepack: verify: $out: $3"
}
try '.version = 2' 5 'checksum.json: version 2, expected 1'
try '.files[0].filename = "../x"' 3 'checksum.json: "../x" is not the name of a file in the directory'
try '.files += .files' 3 "checksum.json: file \"$(jq -r .files[0].filename plan)\" is listed twice"
try '.world_size = 99999999' 3 '99999999 ranks, expected 1 to 65536'
try '.files = 7' 3 'checksum.json: "files" is an integer, expected an array'
try '[]' 3 'checksum.json: expected an object'
run moepack verify "$out" --level exact
assert_status 2

finish
