#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What nobody sane puts into a checkpoint or a pack, and others may: pipes and devices in the place
# of files, links, names with control characters. Nothing is waited for, followed out of the
# directory, or written raw to a terminal.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

moepack synth -q --family qwen3_moe --hidden 128 --intermediate 64 --experts 4 --layers 1 --top-k 2 \
    --vocab 16 -o "$WORK/checkpoint"
moepack repack "$WORK/checkpoint" --target deepep-bf16 --ep 2 -q -o "$WORK/pack"
shard=$(cd "$WORK/checkpoint" && ls -- *.safetensors)

# Commands that read a checkpoint, and a pack; a new one is a line.
reads_checkpoint=(
    "inspect X" "repack X --target deepep-bf16 --ep 2 -o out" "quantize X --format mxfp4 -o out"
    "compress X -o out" "diff X $WORK/checkpoint" "forward X --layer 0 --tokens 2 -o out"
    "verify $WORK/pack --source X"
)
reads_pack=(
    "inspect X" "unpack X -o out" "compress X -o out" "diff X $WORK/pack" "verify X"
    "extract X --layer 0 --expert 1 -o out"
)

# Runs a command on ./X; ends by itself, with a message, and with no OUT.
assert_refused()
{
    # shellcheck disable=SC2086
    run timeout -s KILL 60 "$MOEPACK" $1
    [ "$status" -eq 3 ] || [ "$status" -eq 1 ] || [ "$status" -eq 5 ]
    assert $? "status $status of $1: $(cat "$stderr")"
    cat "$stdout" "$stderr" >said
    assert_file_has said "$2"
    assert_equal "$(ls -d out out.partial 2>/dev/null)" ''
}

for kind in fifo device; do
    it "takes no $kind for a shard or a text of a checkpoint"
    for name in "$shard" config.json model.safetensors.index.json; do
        rm -rf X
        cp -r "$WORK/checkpoint" X
        rm -f "X/$name"
        if [ $kind = fifo ]; then mkfifo "X/$name"; else ln -s /dev/zero "X/$name"; fi
        for command in "${reads_checkpoint[@]}"; do
            assert_refused "$command" 'not a regular file'
        done
    done

    it "takes no $kind for a shard or a text of a pack"
    for name in rank-001/model-00001-of-00001.safetensors moepack.json placement.json; do
        rm -rf X
        cp -r "$WORK/pack" X
        rm -f "X/$name"
        if [ $kind = fifo ]; then mkfifo "X/$name"; else ln -s /dev/zero "X/$name"; fi
        for command in "${reads_pack[@]}"; do
            assert_refused "$command" 'not a regular file'
        done
    done
done

it "reads checkpoints whose files are links, as the cache of a hub has them"
mkdir X
for file in "$WORK/checkpoint"/*; do
    ln -s "$file" X/
done
run moepack verify "$WORK/pack" --source X
assert_status 0

# The commands that write directories; a new one is a line.
for command in "repack $WORK/checkpoint --target deepep-bf16 --ep 2" "unpack $WORK/pack" \
    "quantize $WORK/checkpoint --format bf16" "compress $WORK/pack"; do
    it "follows no link out of OUT.partial: ${command%% *}"
    mkdir elsewhere
    echo mine >elsewhere/mine
    for link in out.partial out.partial/rank-001 out.partial/config.json; do
        to=$PWD/elsewhere
        [ "${link##*/}" != config.json ] || to=$to/mine
        for flag in '' --resume --force; do
            rm -rf out out.partial
            mkdir -p "$(dirname "$link")"
            ln -s "$to" "$link"
            # shellcheck disable=SC2086
            run moepack $command -q -o out $flag
            assert_equal "$(ls elsewhere) $(cat elsewhere/mine)" 'mine mine'
            [ ! -L out ]
            assert $? "$link $flag: OUT is the link"
        done
    done
done

it "writes control characters of names nowhere raw"
evil=$'a\e[31m\nb\x7f'
cp -r "$WORK/checkpoint" "$evil"
truncate -s 99 "$evil/$shard"
for flags in '' --json; do
    # shellcheck disable=SC2086
    run moepack inspect "$evil" $flags
    assert_status 3
    assert_equal "$(cat "$stdout" "$stderr" | tr -d '\n' | LC_ALL=C grep -c '[[:cntrl:]]')" 0
done
rm -rf "$evil"
mkdir "$evil"
header=$(printf '{"evil\\u001b[31m.experts.0.w1.weight":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}}')
# shellcheck disable=SC2059
{
    printf "\\$(printf %03o ${#header})\\0\\0\\0\\0\\0\\0\\0"
    printf '%sAAAA' "$header"
} >"$evil/model.safetensors"
for flags in '' --json '--tensors'; do
    # shellcheck disable=SC2086
    run moepack inspect "$evil" $flags
    assert_equal "$(cat "$stdout" "$stderr" | tr -d '\n' | LC_ALL=C grep -c '[[:cntrl:]]')" 0
done

finish
