# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2034,SC2154
#
# Every command that writes, for tests that let the system fail under them. A new one is a line.
# Those that go on with --resume leave OUT.partial, the others leave nothing or begin anew.

fail_io=$WORK/fail_io.so
"${CC:-gcc}" -D_GNU_SOURCE -O1 -fPIC -shared -o "$fail_io" "$ROOT/tests/cli/fail_io.c" -ldl || exit 1

inputs=$WORK/inputs
mkdir "$inputs"
moepack synth -q --family qwen3_moe --hidden 128 --intermediate 64 --experts 6 --layers 2 --top-k 2 \
    --vocab 16 -o "$inputs/checkpoint"
moepack repack "$inputs/checkpoint" --target deepep-bf16 --ep 2 -q -o "$inputs/pack"
moepack compress "$inputs/checkpoint" -q -o "$inputs/compressed"
moepack synth -q --family qwen3_moe --hidden 128 --intermediate 64 --experts 6 --layers 2 --top-k 2 \
    --vocab 16 --seed 7 -o "$inputs/newer"
moepack delta "$inputs/checkpoint" "$inputs/newer" --version 1 -q -o "$inputs/changes"
echo '{"logical_count": [[50, 3, 7, 10, 2, 8], [9, 40, 3, 6, 11, 5]]}' >"$inputs/counts.json"

# NAME RESUMABLE COMMAND ARGUMENT...: what is written is called out.
writers=(
    "repack yes repack checkpoint --target deepep-bf16 --ep 2 --redundant 2 --max-shard-size 100kB"
    "repack-zstd yes repack checkpoint --target deepep-bf16 --ep 2 --zstd"
    "unpack yes unpack pack --max-shard-size 200kB"
    "quantize yes quantize checkpoint --format mxfp4"
    "compress yes compress checkpoint"
    "decompress yes decompress compressed"
    "delta yes delta checkpoint newer --version 1"
    "apply yes apply checkpoint changes"
    "update yes repack --update pack --delta changes --source newer"
    "synth no synth --family qwen3_moe --hidden 64 --intermediate 32 --experts 4 --layers 2 --top-k 2 --vocab 16"
    "extract no extract pack --layer 0 --expert 3"
    "eplb no eplb counts.json --ep 3 --redundant 3"
)

# each_writer FUNCTION: calls it with $name, $resumable and, in the array $writer, the command.
each_writer()
{
    local line rest name resumable writer

    for line in "${writers[@]}"; do
        read -r name resumable rest <<<"$line"
        read -ra writer <<<"$rest"
        "$1"
    done
}

# write FLAG...: runs $writer on the inputs, on one thread, into out of this directory.
write()
{
    local out=$PWD/out

    (cd "$inputs" && exec "$MOEPACK" "${writer[@]}" -o "$out" -q -j1 "$@")
}

# failing SETTING...: the same under fail_io.c. What the shell says of a killed process is dropped.
failing()
{
    status=0
    command_line="${writer[*]} with $*"
    # shellcheck disable=SC2163
    { (export LD_PRELOAD=$fail_io "$@" && write) >"$stdout" 2>"$stderr" || status=$?; } 2>/dev/null
}

# What a whole run makes, once for each writer: $WORK/whole/NAME.
whole()
{
    [ ! -e "$WORK/whole/$name" ] || return 0
    mkdir -p "$WORK/whole"
    write >/dev/null 2>&1 && mv out "$WORK/whole/$name"
}

# Calls on files that a whole run makes.
count_calls()
{
    failing FAIL_COUNT="$WORK/calls"
    rm -rf out
    cat "$WORK/calls"
}

# After a run that failed: OUT is not there or whole, and the next run leads to the same bytes.
assert_recovers()
{
    local differences flag=()

    if [ -e out ]; then
        differences=$(diff -r out "$WORK/whole/$name" 2>&1)
        assert $? "$1 leaves a part as OUT: $differences"
    else
        if [ "$resumable" = yes ] && [ -e out.partial ]; then
            flag=(--resume)
        else
            rm -rf out.partial # as the message of the next run would say
        fi
        write "${flag[@]}" >"$stdout" 2>"$stderr"
        assert $? "after $1: $(cat "$stderr")"
        differences=$(diff -r out "$WORK/whole/$name" 2>&1)
        assert $? "after $1: $differences"
    fi
    assert_equal "$(ls -A)" out
    rm -rf out out.partial
}
