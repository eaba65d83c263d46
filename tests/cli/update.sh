#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# repack --update: the pack of a new version from that of the old one and deltas, byte for byte.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

fixtures=$ROOT/testdata/fixtures
tensors=$ROOT/tests/tools/tensors.py

same()
{
    assert_equal "$(diff -r "$1" "$2" 2>&1 | head -5)" ''
}

# prepare FIXTURE TENSOR... -- OPTION...: old/ckpt and new/ckpt, which differ in a low bit of each
# tensor; their packs old/pack and new/pack; and the delta d.
prepare()
{
    local fixture=$1

    shift
    rm -rf old new d up
    mkdir old new
    case $fixture in
    /*) cp -r "$fixture" old/ckpt ;;
    *) cp -rL "$fixtures/$fixture" old/ckpt ;;
    esac
    chmod -R u+w old
    for file in old/ckpt/*.safetensors; do # written as Python writes it, as the new one
        python3 "$tensors" "$file" flip "$(first_tensor "$file")" 0 0
    done
    cp -r old/ckpt new/ckpt
    while [ "$1" != -- ]; do
        for file in new/ckpt/*.safetensors; do
            ! grep -qaF "\"$1\"" "$file" || python3 "$tensors" "$file" flip "$1" 1 1
        done
        shift
    done
    shift
    moepack repack old/ckpt -o old/pack -q "$@"
    moepack repack new/ckpt -o new/pack -q "$@"
    moepack delta old/ckpt new/ckpt -o d --version 1 -q
}

first_tensor()
{
    python3 -c 'import sys; sys.path.insert(0, sys.argv[1]); import tensors; print(next(iter(tensors.read(sys.argv[2])[0])))' \
        "$ROOT/tests/tools" "$1"
}

# updates N: the pack is brought up to date, packing N sides anew, from either version.
updates()
{
    for source in old new; do
        mkdir up
        run moepack repack --update old/pack --delta d --source $source/ckpt -o up/pack
        assert_status 0
        assert_stderr_has "moepack: repack: $1 of "
        same up/pack new/pack
        rm -rf up
    done
}

it "packs the sides of experts anew that a delta touches, and copies all others"
gate=layers.0.ffn.experts
prepare v4-fp4 $gate.3.w1.weight -- -t megamoe-w4a8 --ep 3 --redundant 1 --max-shard-size 100kB
updates 1
prepare v4-fp4 $gate.3.w1.weight $gate.3.w2.scale $gate.1.w3.scale layers.0.attn_norm.weight -- \
    -t megamoe-w4a8 --ep 5
updates 3
prepare v4-fp4 -- -t megamoe-w4a8 --ep 5
updates 0
assert_equal "$(find d -type f | wc -l)" 1

it "does so for shared experts, apart or fused"
prepare v4-fp4 layers.0.ffn.shared_experts.w2.weight -- -t megamoe-w4a8 --ep 5 --shared separate
updates 1
prepare v2-bf16 model.layers.0.mlp.shared_experts.down_proj.weight -- -t deepep-bf16 --ep 1 --shared fused
updates 2
prepare qwen3-bf16 model.layers.0.mlp.experts.2.down_proj.weight -- -t deepep-bf16 --ep 2 --redundant 2
updates 1

it "tells by the streams which of fused experts are touched"
prepare qwen35-fused-a model.language_model.layers.0.mlp.experts.down_proj -- -t deepep-bf16 --ep 1
updates 1

it "packs all experts of a layer anew where they are requantized"
moepack synth -o "$WORK/two" --family qwen3_moe --hidden 384 --intermediate 256 --experts 6 --layers 2 \
    --top-k 2 --vocab 16 -q
prepare "$WORK/two" model.layers.1.mlp.experts.1.up_proj.weight -- -t megamoe-w4a8 --ep 2 --quantize mxfp4 \
    --scale-rule mse
updates 12
prepare qwen3-bf16 model.norm.weight -- -t fuseep-1 --ep 2 --quantize int8_channel
updates 0
prepare v4-fp4 layers.0.ffn.experts.3.w1.scale -- -t megamoe-nvfp4 --ep 5 --quantize nvfp4
updates 10

it "packs gate and up together, which share a second scale"
moepack synth -o "$WORK/nvfp4" --family qwen3_moe --format nvfp4 --hidden 256 --intermediate 256 --experts 4 \
    --layers 1 --top-k 2 --vocab 16 -q
prepare "$WORK/nvfp4" model.layers.0.mlp.experts.2.up_proj.weight_scale_2 -- -t megamoe-nvfp4 --ep 2
updates 1

it "takes chains, and some of the layers and ranks"
prepare v4-fp4 layers.0.ffn.experts.0.w1.weight -- -t megamoe-w4a8 --ep 5 --layers 0 --ranks 1,4
cp -r new/ckpt ckpt2
for file in ckpt2/*.safetensors; do
    ! grep -qaF '"layers.0.ffn.experts.4.w2.weight"' "$file" ||
        python3 "$tensors" "$file" flip layers.0.ffn.experts.4.w2.weight 5 2
done
moepack delta new/ckpt ckpt2 -o d2 --version 2 -q
mkdir last up && mv ckpt2 last/ckpt
moepack repack last/ckpt -o last/pack -q -t megamoe-w4a8 --ep 5 --layers 0 --ranks 1,4
for source in old last; do
    run moepack repack --update old/pack --delta d --delta d2 --source $source/ckpt -o up/pack -q
    assert_status 0
    same up/pack last/pack
    rm -rf up/pack
done
run moepack repack --update old/pack --delta d2 --source old/ckpt -o up/pack -q
assert_status 1
assert_stderr_is 'moepack: repack: d2: changes version 000001, old/ckpt is version 000000'
run moepack repack --update old/pack --delta d,d2 --source new/ckpt -o up/pack -q
assert_status 1
assert_equal "$(ls up)" ''

it "tells versions apart where a delta puts back what another has changed"
scale=layers.0.ffn.experts.1.w1.scale
for encoding in xor overwrite; do
    prepare v4-fp4 $scale layers.0.ffn.experts.1.w2.weight -- -t megamoe-w4a8 --ep 5
    mkdir last
    cp -r new/ckpt last/ckpt
    for file in last/ckpt/*.safetensors; do
        ! grep -qaF "\"$scale\"" "$file" || python3 "$tensors" "$file" flip $scale 1 1
    done
    moepack delta old/ckpt new/ckpt -o d1 --version 1 -q --encoding $encoding
    moepack delta new/ckpt last/ckpt -o d2 --version 2 -q --encoding $encoding
    moepack repack last/ckpt -o last/pack -q -t megamoe-w4a8 --ep 5
    mkdir up
    for source in old/ckpt last/ckpt; do
        run moepack repack --update old/pack --delta d1,d2 --source "$source" -o up/pack -q
        assert_status 0
        same up/pack last/pack
        rm -rf up/pack
    done
    cp -r last/ckpt damaged
    for file in damaged/*.safetensors; do
        ! grep -qaF '"layers.0.ffn.experts.1.w2.weight"' "$file" ||
            python3 "$tensors" "$file" flip layers.0.ffn.experts.1.w2.weight 9 1
    done
    run moepack repack --update old/pack --delta d1,d2 --source damaged -o up/pack -q
    assert_status 1
    assert_stderr_has 'tensor "layers.0.ffn.experts.1.w2.weight": the xxh3-128 is '
    rm -rf d1 d2 last damaged
done
# A tensor that only the new version has like this.
prepare v4-fp4 $scale layers.0.ffn.experts.1.w2.weight -- -t megamoe-w4a8 --ep 5
for file in new/ckpt/*.safetensors; do
    ! grep -qaF '"layers.0.ffn.experts.1.w2.weight"' "$file" ||
        python3 "$tensors" "$file" flip layers.0.ffn.experts.1.w2.weight 9 1
done
run moepack repack --update old/pack --delta d --source new/ckpt -o up -q
assert_status 1
assert_stderr_is 'moepack: repack: "new/ckpt": tensor "layers.0.ffn.experts.1.w2.weight" is not that of'\
' the last delta, though others are'

it "reads and writes compressed packs"
prepare v4-fp4 layers.0.ffn.experts.3.w1.weight -- -t megamoe-w4a8 --ep 5 --zstd
updates 1
moepack compress old/ckpt -o z -q
mkdir up
run moepack repack --update old/pack --delta d --source z -o up/pack -q
assert_status 0
assert_equal "$(jq 'del(.source, .xxh3)' up/pack/moepack.json)" "$(jq 'del(.source, .xxh3)' new/pack/moepack.json)"

it "gives the same with any number of threads, and after being killed"
fail_io=$(dirname "$MOEPACK")/fail_io.so
prepare v4-fp4 layers.0.ffn.experts.3.w1.weight -- -t megamoe-w4a8 --ep 5
for n in 2 5 9 14 20; do
    mkdir up
    { run env LD_PRELOAD="$fail_io" FAIL_CALL=pwrite,fdatasync,fsync,rename FAIL_AT=$n FAIL_WITH=SIGKILL \
        "$MOEPACK" repack --update old/pack --delta d --source old/ckpt -o up/pack -q -j1; } 2>/dev/null
    assert_status 137
    run moepack repack --update old/pack --delta d --source old/ckpt -o up/pack -q --resume -j5
    assert_status 0
    same up/pack new/pack
    rm -rf up
done

it "prints its plan"
prepare v4-fp4 layers.0.ffn.experts.3.w1.weight -- -t megamoe-w4a8 --ep 5
run moepack repack --update old/pack --delta d --source new/ckpt --dry-run -q
assert_status 0
assert_stdout_has 'rank-000/model-00001-of-00001.safetensors  '
run moepack repack --update old/pack --delta d --source new/ckpt -n --json -q
assert_json '.files | length' 5

it "refuses what does not go together"
prepare v4-fp4 layers.0.ffn.experts.3.w1.weight -- -t megamoe-w4a8 --ep 5
run moepack repack --update old/pack --delta d -o out
assert_status 2
assert_stderr_has 'moepack: repack: --update needs --delta and --source'
run moepack repack --update old/pack --delta d --source new/ckpt -o out --ep 3
assert_status 2
assert_stderr_has 'moepack: repack: --update packs as "old/pack" was packed: give no packing options'
run moepack repack new/ckpt --delta d -t megamoe-w4a8 --ep 2 -o out
assert_status 2
assert_stderr_has 'moepack: repack: --delta and --source are for --update'
run moepack repack --update old/pack --delta new/ckpt --source new/ckpt -o out
assert_status 5
assert_stderr_is 'moepack: repack: new/ckpt: a full version: pack it, and update from there'
moepack delta old/pack new/pack -o of-packs --version 1 -q
run moepack repack --update old/pack --delta of-packs --source new/ckpt -o out
assert_status 1
assert_stderr_is 'moepack: repack: of-packs: is of a pack, new/ckpt is a checkpoint'
run moepack repack --update old/pack --delta d --source new/pack -o out
assert_status 1
assert_stderr_is 'moepack: repack: d: is of a checkpoint, new/pack is a pack'
run moepack repack new/ckpt --ep 2 -o out
assert_status 2
assert_stderr_has 'moepack: repack: option --target is required'
cp -r new/ckpt other
for file in other/*.safetensors; do
    ! grep -qaF '"layers.0.ffn.experts.3.w1.weight"' "$file" ||
        python3 "$tensors" "$file" flip layers.0.ffn.experts.3.w1.weight 7 4
done
run moepack repack --update old/pack --delta d --source other -o out
assert_status 1
assert_stderr_has 'tensor "layers.0.ffn.experts.3.w1.weight": the xxh3-128 is '
assert_equal "$(ls -d out out.partial 2>/dev/null)" ''

finish
