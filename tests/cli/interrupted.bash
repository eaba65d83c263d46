# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# For tests of repack that does not come to its end: a checkpoint, flags, the pack that they
# lead to, and repack under fail_io.c.

fail_io=$WORK/fail_io.so
"${CC:-gcc}" -D_GNU_SOURCE -O1 -fPIC -shared -o "$fail_io" "$ROOT/tests/cli/fail_io.c" -ldl || exit 1

flags=(--target megamoe-w4a8 --ep 3 --redundant 2 --quantize mxfp4 --max-shard-size 1MB)

# use EXPERTS LAYERS: sets the checkpoint, $source, and what repack makes of it, $wanted.
use()
{
    source=$WORK/$1x$2
    wanted=$source-packed
    [ ! -e "$source" ] || return 0
    "$MOEPACK" synth -o "$source" --family qwen3_moe --hidden 384 --intermediate 256 \
        --experts "$1" --layers "$2" --top-k 2 --vocab 16
    "$MOEPACK" repack "$source" -o "$wanted" "${flags[@]}" -q
}

# Three ranks of three files each.
use 10 3

repack()
{
    run moepack repack "$source" -o out "${flags[@]}" -q "$@"
}

# repack_failing SETTING... -- FLAG...: with settings of fail_io.c.
repack_failing()
{
    local settings=()

    while [ "$1" != -- ]; do
        settings+=("$1")
        shift
    done
    shift
    # What the shell has to say of a process that is killed is not of interest.
    {
        run env LD_PRELOAD="$fail_io" "${settings[@]}" \
            "$MOEPACK" repack "$source" -o out "${flags[@]}" -q "$@"
    } 2>/dev/null
}

# ./out is the pack, to the byte, and all that there is.
assert_packed()
{
    local differences

    differences=$(diff -r out "$wanted" 2>&1)
    assert $? "$1: $differences"
    assert_equal "$(ls -A)" out
}

# A run that did not come to its end has left what --resume needs, and no OUT.
assert_resumable()
{
    assert_equal "$(ls -A)" out.partial
    repack --resume
    assert_status 0
    assert_packed "$1"
}
