#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# moepack forward: the layers of checkpoints and of packed directories.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

fixtures=$ROOT/testdata/fixtures

# What several tests look at: a checkpoint, and a directory that it is packed to.
source=$WORK/source
packed=$WORK/packed

# forward OUT ARGS...: writes OUT.
forward()
{
    local out=$1
    shift
    run moepack forward -o "$out" --tokens 21 "$@"
    assert_status 0
    assert_stderr_is ''
}

# The names, types and shapes of the tensors of a file, in order.
tensors()
{
    local length

    length=$(od -An -tu8 -N8 "$1")
    tail -c +9 "$1" | head -c $((length)) |
        jq -r 'to_entries[]|"\(.key) \(.value.dtype) \(.value.shape|join("x"))"'
}

# The bytes of the tensor y of a file, as a digest.
digest_of_y()
{
    local length from to

    length=$(od -An -tu8 -N8 "$1")
    read -r from to < <(tail -c +9 "$1" | head -c $((length)) | jq -r '.y.data_offsets|"\(.[0]) \(.[1])"')
    tail -c +$((9 + length + from)) "$1" | head -c $((to - from)) | xxhsum -H2 | cut -d ' ' -f 1
}

# same A B: both files hold the same bytes.
same()
{
    cmp "$1" "$2" >cmp.out 2>&1
    assert $? "$(cat cmp.out)"
}

it "says what it computed"
run moepack forward "$fixtures/v4-fp4" --layer 0 --tokens 5
assert_status 0
assert_stdout_has 'layers.0, exact: 5 tokens, 2 experts and 1 shared each; '
assert_stdout_has 'y: rms '
run moepack forward "$fixtures/v4-fp4" --layer mtp.0 --tokens 5 --emulate w4a8 --no-shared --json
assert_status 0
assert_json '[.layer, .emulation, .tokens, .experts_per_token, .shared_per_token]' \
    '["mtp.0","w4a8",5,2,0]'
assert_json '.experts_used >= 2 and .experts_used <= 5 and .rms > 0 and .max_abs >= .rms' true

it "writes the result with the choices, and tokens that it made up"
forward exact.st "$fixtures/v4-fp4" --layer 0
assert_equal "$(tensors exact.st | sort)" 'topk_ids I32 21x2
topk_weights F32 21x2
x F32 21x384
y F64 21x384'
forward w4a8.st "$fixtures/v4-fp4" --layer 0 --emulate w4a8
assert_equal "$(tensors w4a8.st | grep '^y')" 'y F32 21x384'
run moepack forward "$fixtures/v4-fp4" --layer 0 --tokens 21 -o -
same "$stdout" exact.st

it "takes its own output for input"
forward made.st "$fixtures/v3-fp8" --layer 1 --seed 7 --emulate sm90-fp8
run moepack forward "$fixtures/v3-fp8" --layer 1 --input made.st --emulate sm90-fp8 -o again.st
assert_status 0
assert_equal "$(tensors again.st | sort)" 'topk_ids I32 21x2
topk_weights F32 21x2
y F32 21x192'
run moepack forward "$fixtures/v3-fp8" --layer 1 --input again.st
assert_status 3
assert_stderr_is 'moepack: forward: again.st: there is no tensor "x"'
# The file begins with its header, so y of both is at its end or its beginning alike.
size=$((21 * 192 * 4))
header=$((8 + $(od -An -tu8 -N8 made.st)))
head -c $((header + size)) made.st | tail -c $size >made.y
header=$((8 + $(od -An -tu8 -N8 again.st)))
head -c $((header + size)) again.st | tail -c $size >again.y
same made.y again.y

it "gives the same bits for any number of threads, at every level of instructions"
for kind in exact w4a8 w4a4 nvfp4 bf16 sm90-fp8 fuseep; do
    forward first.st "$fixtures/v4-fp4" --layer 0 --emulate $kind -j 1
    forward second.st "$fixtures/v4-fp4" --layer 0 --emulate $kind -j 3
    same first.st second.st
    for level in scalar avx2; do
        MOEPACK_CPU=$level forward second.st "$fixtures/v4-fp4" --layer 0 --emulate $kind
        same first.st second.st
    done
done

it "computes SiTU, which no kernel does"
cp -r "$fixtures/qwen3-bf16" situ
jq '. + {hidden_act: "situ", activation_situ_beta: 4, activation_situ_linear_beta: 25}' \
    "$fixtures/qwen3-bf16/config.json" >situ/config.json
forward silu.st "$fixtures/qwen3-bf16" --layer 0
forward situ.st situ --layer 0
! cmp -s silu.st situ.st
assert $? "SiTU gives what SiLU gives"
run moepack forward situ --layer 0 --tokens 5 --emulate bf16
assert_status 5
assert_stderr_is 'moepack: forward: no kernel computes SiTU: leave out --emulate bf16'
run moepack repack situ -o packed-situ --target deepep-bf16 --ep 1 -q
run moepack verify packed-situ --source situ --level numeric
assert_status 0

it "says where it takes a scaling factor that config.json does not have"
cp -r "$fixtures/v3-fp8" silent
jq 'del(.routed_scaling_factor)' "$fixtures/v3-fp8/config.json" >silent/config.json
run moepack forward silent --layer 1 --tokens 3
assert_status 0
assert_stderr_is 'moepack: forward: note: config.json: no routed_scaling_factor; 1 is taken'
jq '.routed_scaling_factor = 1' "$fixtures/v3-fp8/config.json" >silent/config.json
run moepack forward silent --layer 1 --tokens 3
assert_status 0
assert_stderr_is ''

it "computes every family"
for family in ct-int8 ct-nvfp4 gptoss-bf16-fused-c gptoss-mxfp4 kimi-k25-int4 minimax-m3-mxfp8 \
    mixtral-bf16 modelopt-nvfp4 modelslim-w8a8 qwen3-bf16 qwen3-fp8-bf16scale qwen35-fused-a \
    qwen3vl-fused-b v4-base-fp8 ct-fused-int4 ct-int4-bytes modelslim-w4a8; do
    for kind in exact w4a8 fuseep; do
        run moepack forward "$fixtures/$family" --layer 0 --tokens 9 --emulate $kind --json
        assert_status 0
        assert_json '.rms > 0.1' true
    done
done

# pack TARGET EP REDUNDANT SHARED QUANTIZE
pack()
{
    rm -rf "$packed"
    run moepack repack "$source" -o "$packed" --target "$1" --ep "$2" --redundant "$3" --shared "$4" \
        ${5:+--quantize "$5"} --requantize-shared --quiet
    assert_status 0
}

# ROWS OF: target, emulation, what it requantizes to.
targets='megamoe-w4a8 w4a8
megamoe-w4a4 w4a4
megamoe-w4a4-g8 w4a4
megamoe-nvfp4 nvfp4 nvfp4
megamoe-bf16 bf16 bf16
megamoe-sm90-fp8 sm90-fp8 fp8_block
fuseep-1 fuseep int8_channel
fuseep-2 fuseep int8_channel
deepep-bf16 bf16 bf16'

it "gives for packed experts the bits of their source, with every target"
moepack synth -q --preset deepseek-v4-flash --hidden 384 --intermediate 256 --experts 6 --layers 1 \
    --mtp 1 --top-k 3 --hash-layers 1 --vocab 40 --seed 5 -o "$source"
while read -r target kind scheme; do
    pack "$target" 4 2 none "$scheme"
    forward source.st "$source" --layer 0 --emulate "$kind" --no-shared
    forward packed.st "$packed" --source "$source" --layer 0 --emulate "$kind" --no-shared
    same source.st packed.st
    pack "$target" 2 0 fused "$scheme"
    forward source.st "$source" --layer mtp.0 --emulate "$kind" --requantize-shared
    for mode in off static dynamic; do
        forward packed.st "$packed" --source "$source" --layer mtp.0 --emulate "$kind" --waterfill $mode \
            --dispatch round-robin
        same source.st packed.st
    done
done <<<"$targets"

it "does so with shared experts apart"
pack megamoe-w4a8 2 0 separate ''
forward source.st "$source" --layer 0 --emulate w4a8
forward packed.st "$packed" --source "$source" --layer 0 --emulate w4a8
same source.st packed.st

it "needs no source where the choices are given"
forward source.st "$source" --layer 0 --emulate w4a8
run moepack forward -q "$packed" --layer 0 --input source.st --emulate w4a8 -o alone.st
assert_status 0
assert_equal "$(digest_of_y source.st)" "$(digest_of_y alone.st)"

it "does so for other shapes and any number of ranks"
seed=1
for shape in '128 384 8' '256 128 24' '384 640 16'; do
    read -r hidden intermediate experts <<<"$shape"
    rm -rf "$source"
    moepack synth -q --preset deepseek-v4-flash --hidden "$hidden" --intermediate "$intermediate" \
        --experts "$experts" --layers 1 --mtp 0 --hash-layers 0 --top-k 4 --vocab 40 \
        --seed $seed -o "$source"
    forward source.st "$source" --layer 0 --emulate w4a8 --seed $seed --requantize-shared
    for ranks in '1 0' '2 8' '4 0' '8 8'; do
        read -r ep redundant <<<"$ranks"
        pack megamoe-w4a8 "$ep" "$redundant" fused ''
        forward packed.st "$packed" --source "$source" --layer 0 --emulate w4a8 --seed $seed
        same source.st packed.st
    done
    seed=$((seed + 1))
done

it "names what a table of experts has wrong"
moepack synth -q --preset deepseek-v4-flash --hidden 128 --intermediate 128 --experts 5 --layers 1 \
    --hash-layers 1 --top-k 2 --vocab 40 -o hashed
table=layers.0.ffn.gate.tid2eid
run moepack forward hashed --layer 0 --tokens 3
assert_status 0
for id in 5 -1; do
    "$ROOT/tests/tools/tensors.py" hashed/*.safetensors fill $table 0
    "$ROOT/tests/tools/tensors.py" hashed/*.safetensors flip $table $((39 * 16 + 8)) 5
    [ $id = 5 ] || "$ROOT/tests/tools/tensors.py" hashed/*.safetensors fill $table 0xff
    run moepack forward hashed --layer 0 --tokens 3
    assert_status 3
    assert_stderr_is "moepack: forward: $table: row $((id == 5 ? 39 : 0)): expert $id of 5"
done

it "notices experts in each other's place"
pack megamoe-w4a8 2 0 none ''
forward source.st "$source" --layer 0 --emulate w4a8 --no-shared
jq -c '.physical_to_logical_map[0] |= (.[0:1] as $a | .[1:2] + $a + .[2:])' "$packed/placement.json" \
    >swapped.json
moepack repack -q "$source" -t megamoe-w4a8 --ep 2 --placement swapped.json -o swapped
cp swapped/rank-000/*.safetensors "$packed/rank-000"
forward packed.st "$packed" --source "$source" --layer 0 --emulate w4a8 --no-shared
cmp -s source.st packed.st
assert_equal $? 1

it "refuses what does not go together"
# Options, | and what is said to them.
cases='--layer 0|give either --input or --tokens
--layer 0 --tokens 3 --input x.st|give either --input or --tokens
--layer 0 --tokens 3 --source source|--source is for packs only
--layer 0 --tokens 3 --waterfill static|--dispatch and --waterfill are for packs only
--layer 7 --tokens 3|list "7": "7" names no layer
--layer 0,mtp.0 --tokens 3|layer "0,mtp.0": matches 2 layers'
moepack synth -q --preset deepseek-v4-flash --hidden 128 --intermediate 128 --experts 4 --layers 1 \
    --mtp 1 --top-k 2 --vocab 40 -o two
while IFS='|' read -r options text; do
    # shellcheck disable=SC2086
    run moepack forward two $options
    assert_status 2
    assert_stderr_has "moepack: forward: $text"
done <<<"$cases"
run moepack forward "$packed" --layer 0 --tokens 3 --no-shared
assert_status 2
assert_stderr_has 'moepack: forward: a pack has no router: give --source'
run moepack forward "$packed" --layer 0 --source "$source" --tokens 3
assert_status 2
assert_stderr_has 'moepack: forward: the shared experts are not packed: leave them out with --no-shared'
run moepack forward "$packed" --layer 0 --source "$source" --tokens 3 --no-shared --requantize-shared
assert_status 2
assert_stderr_has 'moepack: forward: --requantize-shared is for checkpoints only'

finish
