#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# --io: however files are read, the bytes are the same. Where the directory for tests is in a file
# system that refuses direct reads, what is said then is tested with each command instead.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

fail_io=$(dirname "$MOEPACK")/fail_io.so
refusal="its file system refuses direct reads (O_DIRECT): use --io buffered or auto"
checkpoint=$WORK/checkpoint
shard=model-00001-of-00001.safetensors

# Rows and tensors of odd sizes, each long enough for direct reads, behind a header that ends at no
# multiple of a block.
moepack synth --family qwen3_moe --format bf16 --hidden 712 --intermediate 264 --experts 4 \
    --layers 2 --top-k 2 -q -o "$checkpoint"
moepack compress "$checkpoint" -q -o "$WORK/compressed"
moepack repack "$checkpoint" -q -t deepep-bf16 --ep 3 --redundant 2 -o "$WORK/pack"

# What is expected of a command with --io direct here.
direct_status()
{
    if [ "$status" -eq 5 ]; then
        assert_stderr_has "$refusal"
        return 1
    fi
    assert_status 0
}

# same_bytes COMMAND...: that write OUT, in all three modes and on more threads than one.
same_bytes()
{
    local mode

    for mode in auto buffered direct; do
        run moepack "$@" -q -j 3 --io $mode -o $mode
        [ $mode != direct ] || direct_status || return
        assert_status 0
        diff -r auto $mode >/dev/null
        assert $? "$mode: other bytes, of: $*"
    done
}

it "begins its tensors where no block begins"
header=$(od -An -N 8 -t u8 "$checkpoint/$shard")
assert_equal "$(((header + 8) % 512 != 0 && header > 0))" 1

it "repack writes the same bytes"
same_bytes repack "$checkpoint" -t deepep-bf16 --ep 2

it "repack requantizes the same bytes, from compressed shards too"
same_bytes repack "$checkpoint" -t fuseep-2 --ep 2 --quantize int8_channel
rm -rf auto buffered direct
same_bytes repack "$WORK/compressed" -t deepep-bf16 --ep 2

it "quantize writes the same bytes"
same_bytes quantize "$checkpoint" --format int8_channel --style compressed-tensors

it "unpack writes the same bytes"
same_bytes unpack "$WORK/pack"

it "compress and decompress write the same bytes"
same_bytes compress "$checkpoint"
rm -rf auto buffered direct
same_bytes decompress "$WORK/compressed"

it "verify, diff and checksums find the same"
moepack checksums "$WORK/pack"
for mode in auto buffered direct; do
    for words in "verify $WORK/pack --source $checkpoint --level exact" "verify $WORK/pack" \
        "diff $checkpoint $WORK/compressed" "checksums $WORK/pack --check"; do
        # shellcheck disable=SC2086
        run moepack $words -q --io $mode
        [ $mode != direct ] || direct_status || continue
        assert_status 0
    done
done

it "finds what differs by direct reads"
cp -r "$WORK/pack" broken
printf x | dd of=broken/rank-001/$shard bs=1 seek=70001 conv=notrunc 2>/dev/null
for words in "verify broken" "diff broken $WORK/pack" "checksums broken --check"; do
    # shellcheck disable=SC2086
    run moepack $words --io direct
    [ "$status" -eq 5 ] || assert_status 1
    [ "$status" -ne 5 ] || assert_stderr_has "$refusal"
done

it "reads all bytes where reads are cut short"
run moepack repack "$checkpoint" -t deepep-bf16 --ep 2 -q -o whole
for mode in buffered direct; do
    run env LD_PRELOAD="$fail_io" FAIL_CALL=pread FAIL_PATH=.safetensors FAIL_WITH=short \
        "$MOEPACK" repack "$checkpoint" -t deepep-bf16 --ep 2 -q --io $mode -o $mode
    [ $mode != direct ] || direct_status || break
    assert_status 0
    diff -r whole $mode >/dev/null
    assert $? "$mode: other bytes"
done

it "says so when the source is cut off while it is read"
for mode in buffered direct; do
    cp -r "$checkpoint" source
    env LD_PRELOAD="$fail_io" FAIL_CALL=pread FAIL_PATH=.safetensors FAIL_AT=9 FAIL_TIMES=1 \
        FAIL_WITH=SIGSTOP "$MOEPACK" repack source -t deepep-bf16 --ep 2 -q -j 1 --io $mode \
        -o out 2>"$stderr" &
    until_stopped $!
    truncate -s 70001 "source/$shard"
    kill -CONT $! 2>/dev/null
    wait $!
    status=$?
    [ $mode != direct ] || [ "$status" -ne 5 ] || break
    command_line="repack --io $mode"
    assert_status 4
    assert_stderr_has "\"$shard\" ends at byte "
    assert_stderr_has " bytes too early"
    rm -rf source out.partial
done

it "names the file that a disk cannot read"
for mode in buffered direct; do
    run env LD_PRELOAD="$fail_io" FAIL_CALL=pread FAIL_PATH=.safetensors FAIL_AT=9 FAIL_WITH=EIO \
        "$MOEPACK" repack "$checkpoint" -t deepep-bf16 --ep 2 -q -j 1 --io $mode -o out
    [ $mode != direct ] || [ "$status" -ne 5 ] || break
    assert_status 4
    assert_stderr_has "$shard: tensor \"model.layers.0.mlp.experts."
    assert_stderr_has "cannot read \"$shard\" at byte "
    rm -rf out out.partial
done

it "ends with status 5 where the file system refuses direct reads"
for error in EINVAL EOPNOTSUPP; do
    run env LD_PRELOAD="$fail_io" FAIL_CALL=open_direct FAIL_WITH=$error "$MOEPACK" repack \
        "$checkpoint" -t deepep-bf16 --ep 2 -q --io direct -o out
    assert_status 5
    assert_stderr_is "moepack: repack: $shard: $refusal"
    [ ! -e out ] && [ ! -e out.partial ]
    assert $? "something was written"
    run env LD_PRELOAD="$fail_io" FAIL_CALL=open_direct FAIL_WITH=$error "$MOEPACK" checksums \
        "$WORK/pack" --check --io direct -j 1
    assert_status 5
    assert_stderr_has ": $refusal"
done

it "reads what it has written as ever, wherever that is"
run env LD_PRELOAD="$fail_io" FAIL_CALL=open_direct FAIL_PATH=/out FAIL_WITH=EINVAL "$MOEPACK" \
    repack "$checkpoint" -t deepep-bf16 --ep 2 --zstd --sha256 -q --io direct -o "$PWD/out"
direct_status && assert_status 0
run env LD_PRELOAD="$fail_io" FAIL_CALL=open_direct FAIL_PATH=/packed FAIL_WITH=EINVAL "$MOEPACK" \
    compress "$checkpoint" --io direct -o "$PWD/packed"
direct_status && assert_status 0

it "opens nothing for direct reads unless it is asked to"
for mode in auto buffered; do
    run env LD_PRELOAD="$fail_io" FAIL_CALL=open_direct FAIL_WITH=EINVAL FAIL_COUNT=calls \
        "$MOEPACK" verify "$WORK/pack" --source "$checkpoint" -q --io $mode
    assert_status 0
    assert_file_is calls 0
done

# Eight experts have 24 matrices. Each is longer than what is read at once, so that its first read
# asks for the rest; and all but the two of the first unit of a layer are asked for before it begins.
it "asks for what comes next before it is needed"
for mode in auto buffered direct; do
    run env LD_PRELOAD="$fail_io" FAIL_CALL=ahead FAIL_PATH=.safetensors FAIL_COUNT=$mode "$MOEPACK" \
        repack "$checkpoint" -t deepep-bf16 --ep 2 -q -j 1 --io $mode -o out-$mode
    [ $mode != direct ] || direct_status || break
    assert_status 0
    [ $mode = direct ] && calls=0 || calls=$((24 + 20))
    assert_file_is $mode "$calls"
done
run env LD_PRELOAD="$fail_io" FAIL_CALL=ahead FAIL_PATH=.safetensors.zst FAIL_COUNT=frames "$MOEPACK" \
    repack "$WORK/compressed" -t deepep-bf16 --ep 2 -q -j 1 -o out
[ "$(cat frames)" -gt 0 ]
assert $? "no frame is read ahead"

it "says with -v how files are read"
run moepack diff "$checkpoint" "$WORK/compressed" -v
assert_stderr_is <<END
moepack: diff: $checkpoint: buffered reads, as direct ones are no faster
moepack: diff: $WORK/compressed: buffered reads, as direct ones are no faster
END
run moepack diff "$checkpoint" "$checkpoint" -v --io buffered
assert_stderr_has "moepack: diff: $checkpoint: buffered reads, as asked for"
run moepack verify "$WORK/pack" -v --io direct
assert_stderr_has "moepack: verify: $WORK/pack: direct reads, as asked for"
run moepack verify "$WORK/pack" --io direct
assert_equal "$(grep -c 'direct reads, as' "$stderr")" 0

it "takes no other mode"
run moepack repack "$checkpoint" --io mmap
assert_status 2
assert_stderr_has "option '--io': 'mmap' is not auto, buffered or direct"

finish
