# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2034,SC2154
#
# Every command that writes, for tests that let the system fail under them. A new one is a line.

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
moepack synth -q --family qwen3_moe --hidden 128 --intermediate 64 --experts 6 --layers 2 --top-k 2 \
    --vocab 16 --seed 8 -o "$inputs/newest"
moepack delta "$inputs/newer" "$inputs/newest" --version 2 -q -o "$inputs/more"
(cd "$inputs" && for part in 1 2; do
    moepack repack checkpoint --target deepep-bf16 --ep 2 -q -o parts --shard $part/2
done)
PYTHONPATH=$ROOT/tests/tools PYTHONDONTWRITEBYTECODE=1 python3 -c 'import struct, sys
from tensors import write
write(sys.argv[1], {"topk_ids": ["I32", [3, 2], struct.pack("<6i", 0, 5, 2, 1, 4, 3)],
                    "topk_weights": ["F32", [3, 2], struct.pack("<6f", 1, 2, 3, 4, 5, 6)]})' "$inputs/choices"
echo '{"logical_count": [[50, 3, 7, 10, 2, 8], [9, 40, 3, 6, 11, 5]]}' >"$inputs/counts.json"

# NAME GOES-ON COMMAND ARGUMENT...: what is written is OUT, or called out by -o. Where it was stopped
# it goes on with --resume ("yes"), by the same command ("again"), or begins anew ("no"); "inside"
# writes SHA256SUMS into a pack that is there.
writers=(
    "repack yes repack checkpoint --target deepep-bf16 --ep 2 --redundant 2 --max-shard-size 100kB"
    "repack-zstd yes repack checkpoint --target deepep-bf16 --ep 2 --zstd"
    "unpack yes unpack pack --max-shard-size 200kB"
    "quantize yes quantize checkpoint --format mxfp4"
    "compress yes compress checkpoint"
    "decompress yes decompress compressed"
    "delta yes delta checkpoint newer --version 1"
    "apply yes apply checkpoint changes"
    "fold yes fold changes more"
    "finish again finish OUT"
    "checksums inside checksums OUT"
    "update yes repack --update pack --delta changes --source newer"
    "synth no synth --family qwen3_moe --hidden 64 --intermediate 32 --experts 4 --layers 2 --top-k 2 --vocab 16"
    "extract no extract pack --layer 0 --expert 3"
    "eplb no eplb counts.json --ep 3 --redundant 3"
    "route no route choices --experts 6 --ep 2 --shared 1"
    "forward no forward checkpoint --layer 0 --tokens 3"
    "svg no inspect pack --svg OUT"
    "html no verify pack --html OUT"
)

# each_writer FUNCTION: calls it with $name, $goes_on and, in the array $writer, the command.
each_writer()
{
    local line rest name goes_on writer

    for line in "${writers[@]}"; do
        read -r name goes_on rest <<<"$line"
        read -ra writer <<<"$rest"
        "$1"
    done
}

# write FLAG...: runs $writer on the inputs, on one thread, in this directory, with what is in
# $settings in its environment.
settings=()
write()
{
    local words=("${writer[@]/#OUT/$PWD/out}")

    [[ ${writer[*]} == *OUT* ]] || words+=(-o "$PWD/out")
    case $goes_on in
    again) [ -e out ] || [ -e out.partial ] || cp -r "$inputs/parts.partial" out.partial ;;
    inside) [ -e out ] || cp -r "$inputs/pack" out ;;
    esac
    (cd "$inputs" && exec env "${settings[@]}" "$MOEPACK" "${words[@]}" -q -j1 "$@")
}

# failing SETTING...: the same under fail_io.c, or $preloaded. What the shell says of a killed process
# is dropped.
failing()
{
    status=0
    command_line="${writer[*]} with $*"
    settings=("LD_PRELOAD=${preloaded:-$fail_io}" "$@")
    { write >"$stdout" 2>"$stderr" || status=$?; } 2>/dev/null
    settings=()
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

# What differs from what a whole run makes.
differences()
{
    diff -r out "$WORK/whole/$name" 2>&1
}

# After a run that failed: OUT is not there or whole, and the next run leads to the same bytes.
assert_recovers()
{
    local flag=() left

    if [ "$goes_on" = inside ]; then
        left=$(differences | grep -vxE "Only in ($WORK/whole/$name: SHA256SUMS|out: SHA256SUMS.new)")
        assert_equal "$left" ''
    elif [ -e out ]; then
        left=$(differences)
        assert $? "$1 leaves a part as OUT: $left"
    elif [ "$goes_on" = yes ] && [ -e out.partial ]; then
        flag=(--resume)
    elif [ "$goes_on" = no ]; then
        rm -rf out.partial # as the message of the next run would say
    fi
    if [ "$goes_on" = inside ] || [ ! -e out ]; then
        write "${flag[@]}" >"$stdout" 2>"$stderr"
        assert $? "after $1: $(cat "$stderr")"
        left=$(differences)
        assert $? "after $1: $left"
    fi
    assert_equal "$(ls -A)" out
    rm -rf out out.partial
}
