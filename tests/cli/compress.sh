#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# compress and decompress, and every command on what they write.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

fixtures=$ROOT/testdata/fixtures
fail_io=$(dirname "$MOEPACK")/fail_io.so

# Files below a directory, with their digests but those of the shards' own.
same()
{
    assert_equal "$(diff -r "$1" "$2" 2>&1 | head -5)" ''
}

it "compresses and decompresses checkpoints to the same bytes"
for source in v4-fp4 qwen3-bf16 ct-nvfp4 llama4-bf16-fused-b; do
    run moepack compress "$fixtures/$source" -o small -q
    assert_status 0
    assert_stderr_is ''
    for file in small/*.zst; do
        plain=$(basename "$file" .zst)
        zstd -dcq "$file" | cmp - "$fixtures/$source/$plain"
        assert $? "zstd gives another $plain"
    done
    run moepack decompress small -o back -q
    assert_status 0
    same "$fixtures/$source" back
    run moepack compress back -o again -q -j1
    assert_status 0
    same small again
    rm -rf small back again
done

it "says what each type has become"
run moepack compress "$fixtures/v4-fp4" -o small
assert_status 0
assert_stderr_has 'moepack: compress: small: '
assert_stderr_has '  F8_E8M0 '
run moepack decompress small -o back --json -q
assert_status 0
assert_equal "$(jq -r '.plain_bytes' "$stdout")" "$(cat "$fixtures"/v4-fp4/*.safetensors | wc -c)"
assert_equal "$(jq -r '.stored_bytes' "$stdout")" "$(cat small/*.zst | wc -c)"
assert_equal "$(jq -r '[.tensors[] | select(.dtype == "F8_E8M0")][0] | .stored_bytes < .plain_bytes' \
    "$stdout")" true

it "stores tensors that do not shrink, and compresses the others"
moepack synth --family deepseek_v4 --hidden 1024 --intermediate 1024 --experts 6 --layers 1 \
    --top-k 2 -o plain -q
run moepack repack plain -t megamoe-w4a8 --ep 1 --zstd --json -q -o packed
assert_status 0
# 6 and 3 MiB. A frame that is stored takes a head, a checksum and 3 bytes for each 128 KiB more.
assert_json '.zstd.tensors[] | select(.dtype == "I8") | .stored_bytes - .plain_bytes' \
    $((5 * (9 + 4) + 9 * 8 * 3))
assert_json '.zstd.tensors[] | select(.dtype == "I32") | .stored_bytes * 2 < .plain_bytes' true
run moepack compress packed --level 3 -o small -q --json
assert_status 0
assert_json '.tensors[] | select(.dtype == "I8") | .stored_bytes < .plain_bytes' true
zstd -dcq packed/rank-000/*.zst >a
zstd -dcq small/rank-000/*.zst | cmp - a
assert $? "levels hold other bytes"

it "gives the same pack from compressed shards, and verifies it against either"
for source in v4-fp4 qwen35-fused-a; do
    target=$([ $source = v4-fp4 ] && echo megamoe-w4a8 || echo deepep-bf16)
    moepack compress "$fixtures/$source" -o small -q
    moepack repack "$fixtures/$source" -o a -q -t "$target" --ep 1
    run moepack repack small -o b -q -t "$target" --ep 1
    assert_status 0
    same a/rank-000 b/rank-000
    assert_equal "$(jq 'del(.command, .xxh3)' a/moepack.json)" \
        "$(jq 'del(.command, .xxh3)' b/moepack.json)"
    run moepack verify a --level exact --source small
    assert_status 0
    run moepack diff "$fixtures/$source" small
    assert_status 0
    rm -rf a b small
done

it "compresses packs, which every command reads"
moepack repack "$fixtures/v4-fp4" -o packed -q -t megamoe-w4a8 --ep 5
run moepack compress packed -o small -q
assert_status 0
run moepack verify small --level exact --source "$fixtures/v4-fp4"
assert_status 0
run moepack unpack small -o a -q
assert_status 0
moepack unpack packed -o b -q
same_tensors=$(diff -r -x moepack-unpack.json a b)
assert_equal "$same_tensors" ''
run moepack diff packed small
assert_status 0
run moepack inspect small
assert_status 0
run moepack decompress small -o back -q
assert_status 0
same packed back

it "finds a flipped bit, and names the tensor"
moepack repack "$fixtures/v4-fp4" -o packed -q -t megamoe-w4a8 --ep 1
moepack compress packed -o small -q
file=$(echo small/rank-000/*.zst)
size=$(stat -c %s "$file")
printf '\xff\xff\xff' | dd of="$file" bs=1 seek=$((size / 2)) conv=notrunc status=none
run moepack verify small --level structure
assert_status 0
run moepack verify small
assert_status 1
assert_stdout_has 'does not match its checksum'
assert_stdout_has 'experts.l'

# Adds to what the seek table of FILE says of the content of frame I.
add_content()
{
    local at value

    at=$(($(stat -c %s "$1") - 9 - 12 * ($(frames_of "$1") - $2) + 4))
    value=$(($(od -An -tu4 -j $at -N 4 "$1") + $3))
    # shellcheck disable=SC2059
    printf "$(printf '\\x%02x' $((value & 255)) $((value >> 8 & 255)) $((value >> 16 & 255)) 0)" |
        dd of="$1" bs=1 seek=$at conv=notrunc status=none
}

frames_of()
{
    od -An -tu4 -j $(($(stat -c %s "$1") - 9)) -N 4 "$1" | tr -d ' '
}

it "holds seek tables against the heads of frames, without decoding"
moepack repack "$fixtures/v4-fp4" -o packed -q -t megamoe-w4a8 --ep 1
moepack compress packed -o small -q
file=$(echo small/rank-000/*.zst)
add_content "$file" 3 -5
add_content "$file" 4 5
run moepack verify small --level structure
assert_status 1
assert_stdout_has 'rank 0: model-00001-of-00001.safetensors.zst: frame 3 at byte '
assert_stdout_has 'bytes of content, the seek table '

it "refuses what is cut off or lies"
mkdir bad
cp "$fixtures"/qwen3-bf16/config.json bad/
moepack compress "$fixtures/qwen3-bf16" -o small -q
rm -f small/*.index.json
file=$(basename small/*.zst)
size=$(stat -c %s "small/$file")
head -c $((size - 1)) "small/$file" >"bad/$file"
run moepack inspect bad
assert_status 3
assert_stderr_has "$file: frame "
head -c 100 "small/$file" >"bad/$file"
run moepack inspect bad
assert_status 3
: >"bad/$file"
run moepack inspect bad
assert_status 3
assert_stderr_is "moepack: inspect: $file: file of 0 bytes holds no zstd frame"
cp "$fixtures"/qwen3-bf16/*.safetensors small/
run moepack inspect small
assert_status 3
assert_stderr_is \
    "moepack: inspect: ${file%.zst}: \"$file\" also exists: remove one of them"
run moepack compress small -o out
assert_status 3
assert_stderr_has 'also exists: remove one of them'

it "refuses frames of more than the header says, and dictionaries"
plain=$(echo "$fixtures"/qwen3-bf16/*.safetensors)
mkdir bad
cp "$fixtures"/qwen3-bf16/config.json bad/
head -c 3000000 /dev/zero >zeros
{ zstd -qc "$plain" && zstd -qc zeros; } >bad/model.safetensors.zst
run moepack inspect bad
assert_status 3
assert_stderr_has "model.safetensors.zst: tensors end at data byte "
run moepack decompress bad -o out
assert_status 3
printf '\x28\xb5\x2f\xfd\x21\x07\x01\x09\x00\x00a' >bad/model.safetensors.zst
run moepack inspect bad
assert_status 5
assert_stderr_is 'moepack: inspect: model.safetensors.zst: frame 0 at byte 0: needs dictionary 7: '\
'compress without one'

it "takes shards that zstd wrote, in order"
mkdir one
cp -L "$fixtures"/qwen3-bf16/*.json one/
for file in "$fixtures"/qwen3-bf16/*.safetensors; do
    # From a pipe, zstd does not say how much it is.
    # shellcheck disable=SC2002
    cat "$file" | zstd -qc >"one/$(basename "$file").zst"
done
run moepack inspect one
assert_status 0
run moepack repack one -o packed -t deepep-bf16 --ep 1
assert_status 5
assert_stderr_has 'moepack decompress, or recompress it with moepack compress'
run moepack decompress one -o back -q
assert_status 0
same "$fixtures/qwen3-bf16" back
run moepack compress one -o a -q
assert_status 0
moepack compress "$fixtures/qwen3-bf16" -o b -q
same a b

it "quantizes shards that zstd wrote, going through them in order"
for family in deepseek_v3 gpt_oss llama4; do
    moepack synth --family $family --hidden 640 --intermediate 384 --experts 11 --layers 3 \
        --top-k 2 -o plain -q
    mkdir one
    cp plain/*.json one/
    for file in plain/*.safetensors; do
        # shellcheck disable=SC2002
        cat "$file" | zstd -qc >"one/$(basename "$file").zst"
    done
    for format in mxfp4 nvfp4; do
        moepack quantize plain --format $format --max-shard-size 3MB -o a -q >/dev/null
        run moepack quantize one --format $format --max-shard-size 3MB -o b -q
        assert_status 0
        assert_stderr_is ''
        # Terms have the last bytes of a source, of these as they are stored.
        sed -i '/"command"/d; /"weights /d; /"terms_xxh3"/d' {a,b}/moepack-quantize.json
        same a b
        rm -rf a b
    done
    rm -rf plain one
done

it "verifies a pack that zstd compressed"
moepack synth --family deepseek_v4 --hidden 640 --intermediate 384 --experts 30 --layers 4 \
    --top-k 2 -o plain -q
moepack repack plain -t megamoe-w4a8 --ep 1 -q -o packed
cp -r packed one
zstd -q --rm one/rank-000/*.safetensors
run moepack verify one --level exact --source plain
assert_status 0
run moepack inspect one
assert_status 0
run moepack unpack one -o back -q
assert_status 5
assert_stderr_has 'moepack decompress, or recompress it with moepack compress'
cp one/rank-000/*.zst damaged
file=$(echo one/rank-000/*.zst)
printf '\xff\xff\xff' | dd of="$file" bs=1 seek=9000000 conv=notrunc status=none
run moepack verify one
assert_status 1
assert_stdout_has 'rank 0, layers.'
zstd -dcq damaged | head -c 20000000 | zstd -qc >"$file"
run moepack verify one
assert_status 1
assert_stdout_has 'ends at data byte 23270400, the file holds 19995904'
cp damaged "$file"
cp packed/rank-000/*.safetensors one/rank-000
run moepack verify one
assert_status 1
assert_stdout_has 'rank 0: model-00001-of-00001.safetensors.zst: the manifest does not name it'

it "goes on after being killed at any call"
moepack repack "$fixtures/v4-fp4" -o packed -q -t megamoe-w4a8 --ep 5
moepack compress packed -o wanted -q
for n in 1 2 3 7 11 16 23 31 40; do
    {
        run env LD_PRELOAD="$fail_io" FAIL_CALL=pwrite,fdatasync,fsync,mkdir,rename FAIL_AT=$n \
            FAIL_WITH=SIGKILL "$MOEPACK" compress packed -o small -q -j1
    } 2>/dev/null
    assert_status 137
    run moepack compress packed -o small -q --resume
    assert_status 0
    same wanted small
    rm -rf small
done

it "goes on after SIGTERM, and not with another level or source"
run env LD_PRELOAD="$fail_io" FAIL_CALL=pwrite FAIL_AT=5 FAIL_TIMES=1 FAIL_WITH=SIGTERM \
    "$MOEPACK" compress "$fixtures/v4-fp4" -o small -q -j1
assert_status 143
assert_stderr_is 'moepack: compress: interrupted: --resume continues small.partial'
run moepack compress "$fixtures/v4-fp4" -o small -q
assert_status 2
run moepack compress "$fixtures/v4-fp4" -o small -q --resume --level 3
assert_status 3
assert_stderr_has 'the interrupted run had "compress auto", this one has "compress 3"'
run moepack compress "$fixtures/v4-fp4" -o small -q --resume
assert_status 0
run moepack compress "$fixtures/v4-fp4" -o small -q --resume
assert_status 0
run moepack compress "$fixtures/qwen3-bf16" -o small -q --resume
assert_status 3

it "replaces only what it would write, and never its source"
moepack compress "$fixtures/v4-fp4" -o small -q
run moepack compress "$fixtures/v4-fp4" -o small -q
assert_status 2
run moepack compress "$fixtures/v4-fp4" -o small -q --force --level 3
assert_status 0
run moepack compress "$fixtures/qwen3-bf16" -o small -q --force
assert_status 2
assert_stderr_has 'holds different files: not replaced'
run moepack compress small -o small -q --force
assert_status 2
run moepack compress small -o small/within -q
assert_status 2
run moepack compress small -o out --level 23
assert_status 2
assert_stderr_has "option --level: '23' is neither auto nor 1 to 22"
mkdir empty
run moepack compress empty -o out
assert_status 3
assert_stderr_is 'moepack: compress: "empty" holds no *.safetensors'

# ---------------------------------------------------------------------------
# Writers with --zstd
# ---------------------------------------------------------------------------

it "goes from synth to pack and back, all of it compressed"
flags=(--family deepseek_v4 --hidden 512 --intermediate 512 --experts 6 --layers 2 --shared 1 --top-k 2)
mkdir plain small
moepack synth "${flags[@]}" -o plain/ckpt -q
run moepack synth "${flags[@]}" --zstd -o small/ckpt -q
assert_status 0
run moepack decompress small/ckpt -o back -q
assert_status 0
same plain/ckpt back
run moepack repack small/ckpt -t megamoe-w4a8 --ep 3 --zstd -o packed
assert_status 0
assert_stderr_has '  I32 '
run moepack verify packed --level exact --source small/ckpt
assert_status 0
moepack repack plain/ckpt -t megamoe-w4a8 --ep 3 -o wanted -q
run moepack decompress packed -o again -q
assert_status 0
same wanted again
run moepack compress wanted -o other -q
assert_status 0
same packed other
run moepack diff wanted packed
assert_status 0
run moepack inspect packed --json
assert_status 0
assert_json '.zstd.shards' 3
run moepack inspect small/ckpt --json
assert_json '.zstd.plain_bytes' "$(cat plain/ckpt/*.safetensors | wc -c)"
run moepack repack small/ckpt -t megamoe-w4a8 --ep 3 -o packed --resume
assert_status 3
assert_stderr_is 'moepack: repack: "packed" is complete and was made on other terms: it has "compressed 1", this run "compressed 0"; replace it with --force'

it "unpacks and quantizes into compressed shards"
moepack repack "$fixtures/v4-fp4" -o packed -q -t megamoe-w4a8 --ep 1
moepack unpack packed -o a -q --max-shard-size 300kB
run moepack unpack packed -o b -q --max-shard-size 300kB --zstd=19
assert_status 0
run moepack decompress b -o back -q
assert_status 0
same a back
moepack quantize "$fixtures/v4-base-fp8" --format bf16 -o c -q
run moepack quantize "$fixtures/v4-base-fp8" --format bf16 -o d --zstd --json -q
assert_status 0
assert_json '.zstd.tensors[] | select(.dtype == "BF16") | .stored_bytes < .plain_bytes' true
run moepack decompress d -o e -q
assert_status 0
same c e
run moepack quantize "$fixtures/v4-base-fp8" --format bf16 -o f --zstd=0 -q
assert_status 2
assert_stderr_has "option --zstd: '0' is neither auto nor 1 to 22"

it "goes on compressing after being killed at any call"
flags=(-t megamoe-w4a8 --ep 5 --max-shard-size 100kB --zstd -q)
moepack repack "$fixtures/v4-fp4" -o wanted "${flags[@]}"
calls=pwrite,fdatasync,fsync,ftruncate,unlink,rename
env LD_PRELOAD="$fail_io" FAIL_CALL=$calls FAIL_COUNT="$WORK/calls" \
    "$MOEPACK" repack "$fixtures/v4-fp4" -o out "${flags[@]}" -j1
same wanted out
rm -rf out
count=$(cat "$WORK/calls")
for n in 3 9 $(seq 15 $((count / 12)) $((count - 4))) $((count - 1)); do
    {
        run env LD_PRELOAD="$fail_io" FAIL_CALL=$calls FAIL_AT="$n" FAIL_WITH=SIGKILL \
            "$MOEPACK" repack "$fixtures/v4-fp4" -o out "${flags[@]}" -j1
    } 2>/dev/null
    assert_status 137
    [ -e out ] || run moepack repack "$fixtures/v4-fp4" -o out "${flags[@]}" --resume
    same wanted out
    rm -rf out out.partial
done

# zero FILE: the middle of its tensors.
zero()
{
    local size begin

    size=$(stat -c %s "$1")
    begin=$(($(od -An -tu8 -N 8 "$1") + 8 + size / 3))
    dd if=/dev/zero of="$1" bs=4096 seek=$((begin / 4096)) count=$((size / 4 / 4096)) conv=notrunc \
        status=none
}

# at_once SOURCE FLAG...: a pack that is compressed as it is written is that which is compressed
# behind, and that of a run which is killed, again when it is resumed.
at_once()
{
    local source=$1 calls=pwrite,fdatasync,fsync,ftruncate,unlink,rename file count n at flag
    shift

    moepack repack "$source" "$@" -o plain -q
    moepack compress plain -o wanted -q
    env LD_PRELOAD="$fail_io" FAIL_CALL=$calls FAIL_COUNT="$WORK/calls" \
        "$MOEPACK" repack "$source" "$@" -o out --zstd -q -j2
    same wanted out
    for file in plain/rank-*/*.safetensors; do
        zstd -dcq "out/${file#plain/}.zst" | cmp - "$file"
        assert $? "zstd gives another $file"
    done
    count=$(cat "$WORK/calls")
    rm -rf out
    for n in $((count / 9)) $((count / 3)) $((count * 3 / 4)) $((count - 60)) $((count - 12)); do
        flag=()
        for at in "$n" $((n / 2)); do
            run env LD_PRELOAD="$fail_io" FAIL_CALL=$calls FAIL_AT="$at" FAIL_WITH=SIGKILL \
                "$MOEPACK" repack "$source" "$@" -o out --zstd -q -j1 "${flag[@]}"
            flag=(--resume)
        done 2>/dev/null
        # The last call is behind the renaming.
        [ -e out ] || moepack repack "$source" "$@" -o out --zstd -q --resume
        same wanted out
        rm -rf out
    done
    rm -rf plain wanted
}

moepack synth --family deepseek_v4 --hidden 1024 --intermediate 640 --experts 12 --layers 2 \
    --shared 1 --top-k 2 -o "$WORK/fp4" -q
cp -r "$WORK/fp4" "$WORK/shrinking"
zero "$WORK"/shrinking/*.safetensors

it "compresses packs of FP4 as they are written"
at_once "$WORK/fp4" -t megamoe-w4a8 --ep 1
at_once "$WORK/fp4" -t megamoe-nvfp4 --ep 2 --quantize nvfp4 --shared separate
at_once "$WORK/fp4" -t megamoe-w4a8 --ep 3 --max-shard-size 9MB

it "begins anew where compressed files are not as they were left"
moepack repack "$WORK/fp4" -t megamoe-w4a8 --ep 2 --zstd -o wanted -q
echo 'no frames' >words
for change in rm 'truncate -s 0' 'truncate -s 5000000' 'cp words'; do
    run env LD_PRELOAD="$fail_io" FAIL_CALL=pwrite FAIL_PATH=journal FAIL_AT=10 FAIL_WITH=SIGTERM \
        FAIL_TIMES=1 "$MOEPACK" repack "$WORK/fp4" -t megamoe-w4a8 --ep 2 --zstd -o out -q -j1
    assert_status 143
    grep -q '^stage 0$' out.partial/journal
    assert $? 'no stage is done'
    $change out.partial/rank-001/*.zst
    run moepack repack "$WORK/fp4" -t megamoe-w4a8 --ep 2 --zstd -o out -q --resume
    assert_status 0
    same wanted out
    rm -rf out
done

it "compresses codes that shrink after all"
at_once "$WORK/shrinking" -t megamoe-w4a8 --ep 2 --max-shard-size 12MB
run moepack repack "$WORK/shrinking" -t megamoe-w4a8 --ep 1 --zstd --json -q -o packed
assert_json '.zstd.tensors[] | select(.dtype == "I8") | .stored_bytes * 10 < .plain_bytes * 9' true

it "takes no space twice for what it compresses as it is written"
run env LD_PRELOAD="$fail_io" FAIL_CALL=pwrite FAIL_PATH=journal FAIL_AT=4 FAIL_WITH=SIGTERM \
    FAIL_TIMES=1 \
    "$MOEPACK" repack "$WORK/fp4" -t megamoe-w4a8 --ep 1 --zstd -o out -q -j1
assert_status 143
file=$(echo out.partial/rank-000/*.safetensors)
assert_equal "$((512 * $(stat -c %b "$file") < $(stat -c %s "$file") / 8))" 1
assert_equal "$((512 * $(stat -c %b "$file.zst") > $(stat -c %s "$file") / 8))" 1

it "does not go on with another level"
run env LD_PRELOAD="$fail_io" FAIL_CALL=unlink FAIL_AT=1 FAIL_WITH=SIGTERM FAIL_TIMES=1 \
    "$MOEPACK" repack "$fixtures/v4-fp4" -o out "${flags[@]}" -j1
assert_status 143
[ -n "$(find out.partial -name '*.zst')" ]
assert $? 'nothing is compressed yet'
run moepack repack "$fixtures/v4-fp4" -o out -t megamoe-w4a8 --ep 5 --max-shard-size 100kB -q --resume
assert_status 3
assert_stderr_has 'the interrupted run had "zstd auto", this one has "zstd none"'
run moepack repack "$fixtures/v4-fp4" -o out "${flags[@]}" --resume
assert_status 0
run moepack verify out -q
assert_status 0

finish
