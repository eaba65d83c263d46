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
moepack synth -q --family qwen3_moe --hidden 128 --intermediate 64 --experts 4 --layers 1 --top-k 2 \
    --vocab 16 --seed 7 -o "$WORK/newer"
moepack delta "$WORK/checkpoint" "$WORK/newer" --version 1 -q -o "$WORK/changes"
moepack delta "$WORK/newer" "$WORK/checkpoint" --version 2 -q -o "$WORK/more"
moepack repack "$WORK/newer" --target deepep-bf16 --ep 2 -q -o "$WORK/newer-pack"
moepack delta "$WORK/pack" "$WORK/newer-pack" --version 1 -q -o "$WORK/packed-changes"
shard=$(cd "$WORK/checkpoint" && ls -- *.safetensors)
fail_io=$WORK/fail_io.so
"${CC:-gcc}" -D_GNU_SOURCE -O1 -fPIC -shared -o "$fail_io" "$ROOT/tests/cli/fail_io.c" -ldl || exit 1

# Commands that read a checkpoint, and a pack; a new one is a line.
reads_checkpoint=(
    "inspect X" "repack X --target deepep-bf16 --ep 2 -o out" "quantize X --format mxfp4 -o out"
    "compress X -o out" "diff X $WORK/checkpoint" "forward X --layer 0 --tokens 2 -o out"
    "verify $WORK/pack --source X" "plan --model X --backend deepep --tp 2"
    "delta X $WORK/newer --version 1 -o out" "delta $WORK/checkpoint X --version 1 -o out"
    "apply X $WORK/changes -o out" "verify $WORK/changes --source X" "checksums X"
    "repack --update $WORK/pack --delta $WORK/changes --source X -o out"
)
reads_pack=(
    "inspect X" "unpack X -o out" "compress X -o out" "diff X $WORK/pack" "verify X"
    "extract X --layer 0 --expert 1 -o out" "decompress X -o out" "plan --model X --backend deepep --tp 2"
    "forward X --layer 0 --tokens 2 --source $WORK/checkpoint" "checksums X"
    "delta X $WORK/pack --version 1 -o out" "apply X $WORK/packed-changes -o out"
    "repack --update X --delta $WORK/changes --source $WORK/checkpoint -o out"
)
reads_delta=("apply $WORK/checkpoint X -o out" "fold X X -o out" "verify X --source $WORK/checkpoint" "checksums X")

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

# copy_with KIND DIR NAME: X is $WORK/DIR with a fifo or a device in place of a file.
copy_with()
{
    rm -rf X
    cp -r "$WORK/$2" X
    rm -f "X/$3"
    if [ "$1" = fifo ]; then mkfifo "X/$3"; else ln -s /dev/zero "X/$3"; fi
}

for kind in fifo device; do
    it "takes no $kind for a shard or a text of a checkpoint"
    for name in "$shard" config.json model.safetensors.index.json; do
        copy_with $kind checkpoint "$name"
        for command in "${reads_checkpoint[@]}"; do
            [ "$name" != config.json ] || [[ $command != *"changes --source X" ]] || continue # not read
            assert_refused "$command" 'not a regular file'
        done
    done

    it "takes no $kind for a shard or a text of a pack"
    for name in rank-001/model-00001-of-00001.safetensors moepack.json placement.json; do
        copy_with $kind pack "$name"
        for command in "${reads_pack[@]}"; do
            assert_refused "$command" 'not a regular file'
        done
    done
done

for kind in fifo device; do
    it "takes no $kind for a file of a delta"
    for name in "$(cd "$WORK/changes" && ls -- *.safetensors)" model.safetensors.index.json; do
        copy_with $kind changes "$name"
        for command in "${reads_delta[@]}"; do
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
    "quantize $WORK/checkpoint --format bf16" "compress $WORK/pack" "decompress $WORK/pack" \
    "delta $WORK/checkpoint $WORK/newer --version 1" "apply $WORK/checkpoint $WORK/changes" \
    "fold $WORK/changes $WORK/more" \
    "repack --update $WORK/pack --delta $WORK/changes --source $WORK/checkpoint"; do
    it "follows no link out of OUT.partial: $(cut -d / -f 1 <<<"$command")"
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

# interrupt COMMAND: leaves ./out.partial with a journal.
interrupt()
{
    # shellcheck disable=SC2086
    run env LD_PRELOAD="$fail_io" FAIL_CALL=pwrite FAIL_AT=3 FAIL_TIMES=1 FAIL_WITH=SIGTERM \
        "$MOEPACK" $1 -q -j1 -o out
    assert_status 143
}

it "writes checksums through no link"
cp -r "$WORK/pack" X
echo mine >mine
ln -s ../mine X/SHA256SUMS
run moepack checksums X -q
assert_status 4
assert_stderr_is 'moepack: checksums: "X/SHA256SUMS" is a symbolic link, which is not followed'
assert_equal "$(cat mine)" mine

it "follows no link out of the OUT.partial of an interrupted run"
command="repack $WORK/checkpoint --target deepep-bf16 --ep 2"
echo mine >mine
for link in moepack.json config.json placement.json rank-001/model.safetensors.index.json SHA256SUMS; do
    rm -rf out.partial
    interrupt "$command --sha256"
    ln -s "$PWD/mine" "out.partial/$link"
    # shellcheck disable=SC2086
    run moepack $command --sha256 -q -o out --resume
    assert_status 4
    assert_stderr_is "moepack: repack: \"out.partial/$link\" is a symbolic link, which is not followed"
    assert_equal "$(cat mine)" mine
done

it "waits for no pipe in an OUT.partial"
for name in journal moepack.json rank-000/model-00001-of-00001.safetensors; do
    for flag in --resume --force; do
        rm -rf out out.partial
        interrupt "$command"
        rm -f "out.partial/$name"
        mkfifo "out.partial/$name"
        # shellcheck disable=SC2086
        run timeout -s KILL 20 "$MOEPACK" $command -q -o out $flag
        if [ "$flag $name" = "--force moepack.json" ] || [ "$flag ${name%%/*}" = '--force rank-000' ]; then
            assert_status 0
        else
            assert_status 3
            assert_stderr_is "moepack: repack: out.partial/$name: not a regular file"
        fi
    done
done

# The commands whose journals name files; a new one is a line.
for command in "repack X --target deepep-bf16 --ep 2" "quantize X --format mxfp4" "compress X"; do
    it "takes no unit for done because a file's name says so: ${command%% *}"
    name=$'a\nbegin\n'$(printf 'unit %d\n' $(seq 0 19))$'\nb.safetensors'
    cp -r "$WORK/checkpoint" X
    mv "X/$shard" "X/$name"
    rm -f X/*.index.json
    # shellcheck disable=SC2086
    moepack $command -q -j1 -o wanted
    interrupt "$command"
    assert_equal "$(grep -c '^begin$' out.partial/journal)" 1
    # shellcheck disable=SC2086
    run moepack $command -q -o out --resume
    assert_status 0
    diff -r out wanted
    assert $? "$command: what is resumed differs"
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

it "puts question marks for control characters, and for nothing beside them"
name=$'a\x1f \x7f~\xc2\x80\xc2\x9f\xc2\xa0'
shown=$'a? ?~????\xc2\xa0'
cp -r "$WORK/checkpoint" X
mv "X/$shard" "X/$name.safetensors"
rm -f X/*.index.json
run moepack inspect X --tensors
assert_status 0
assert_stdout_has "$shown.safetensors"
run moepack bench --kernel "$name"
assert_status 2
assert_stderr_has "--kernel '$shown' matches no kernel"

# Runs a command on ./$evil; nothing of what it prints is raw.
evil=$'a\e[31mb\x7f'
assert_escaped()
{
    local words=()

    read -ra words <<<"$1"
    words=("${words[@]/#X/$evil}")
    run timeout -s KILL 60 "$MOEPACK" "${words[@]}"
    assert_equal "$(cat "$stdout" "$stderr" | tr -d '\n' | grep -c '[[:cntrl:]]') of $1" "0 of $1"
    rm -rf out out.partial
}

every_command=("${reads_checkpoint[@]}" "${reads_pack[@]}" "${reads_delta[@]}"
    "X" "--X" "finish X" "eplb X --ep 2" "map --placement X" "route X --experts 4 --ep 2" "help X" "completion X"
    "synth -o X --family X" "targets X" "bench --kernel X" "plan --model X --env-file X"
    "verify $WORK/pack --source $WORK/checkpoint --layers X" "repack $WORK/checkpoint --target X --ep 2 -o out")

it "writes control characters of paths and words nowhere raw: every command"
for command in "${every_command[@]}"; do
    assert_escaped "$command"
    assert_escaped "$command --json"
done
for command in $("$MOEPACK" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p'); do
    printf '%s\n' "${every_command[@]}" | grep -q "^$command "
    assert $? "$command is not tried"
done

it "writes control characters of tensors, shards and model types nowhere raw"
cp -r "$WORK/checkpoint" "$evil"
"$ROOT/tests/tools/tensors.py" "$evil/$shard" rename model.layers.0.input_layernorm.weight "$evil.norm"
mv "$evil/$shard" "$evil/$evil.safetensors"
rm -f "$evil"/*.index.json
sed -i 's/"qwen3_moe"/"evil\\u001b[31m\\u007f"/' "$evil/config.json"
for command in "${reads_checkpoint[@]}" "inspect X --tensors" "inspect X -v" "diff X $WORK/newer -v"; do
    assert_escaped "$command"
    assert_escaped "$command --json"
done

it "writes control characters of manifests and of deltas nowhere raw"
rm -rf "$evil"
cp -r "$WORK/pack" "$evil"
edit_manifest "$evil" '.command = "evil\u001b[31m" | .family = "evil\u001b[31m" | .tool_version = "\u001b[31m"'
for command in "${reads_pack[@]}" "verify X --source $WORK/checkpoint"; do
    assert_escaped "$command"
    assert_escaped "$command --json"
done
rm -rf "$evil"
cp -r "$WORK/changes" "$evil"
sed -i 's/"model.layers.0.input_layernorm.weight"/"\\u001b[31m.weight"/; s/"xor"/"\\u001b[31m"/' "$evil/model.safetensors.index.json"
for command in "${reads_delta[@]}"; do
    assert_escaped "$command"
    assert_escaped "$command --json"
done

it "writes control characters of names of layers nowhere raw"
cp -r "$WORK/checkpoint" X
rm -f X/*.index.json
python3 - "X/$shard" <<'END'
import json, struct, sys

data = open(sys.argv[1], "rb").read()
size = struct.unpack("<Q", data[:8])[0]
header = {k.replace("model.layers.0", "a\x1b[31m\x9b31m.layers.0"): v
          for k, v in json.loads(data[8 : 8 + size]).items()}
text = json.dumps(header).encode()
open(sys.argv[1], "wb").write(struct.pack("<Q", len(text)) + text + data[8 + size :])
END
for command in 'repack X --target deepep-bf16 --ep 2 -o p' 'quantize X --format mxfp4 -o q' 'inspect X' \
    'inspect X --tensors' 'inspect p' 'inspect p --tensors' 'inspect p --ranges' 'verify p --source X' \
    'diff X q' 'quantize X --format mxfp4 -o r --dry-run'; do
    # shellcheck disable=SC2086
    run moepack $command
    [ "$status" -le 1 ]
    assert $? "status $status of $command: $(cat "$stderr")"
    assert_equal "$command: $(cat "$stdout" "$stderr" | tr -d '\n' | LC_ALL=C grep -c $'[[:cntrl:]]\\|\xc2[\x80-\x9f]')" \
        "$command: 0"
done

finish
