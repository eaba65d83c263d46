#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Shows a whole run: makes a checkpoint with one layer of DeepSeek-V4-Flash's shapes and 32
# experts, looks at it, packs it for 4 ranks with 4 redundant experts, verifies it, and loads a
# rank of it where Python is there.
#
#     tests/demo.sh          into ./demo, or $DEMO_DIR
#     tests/demo.sh clean    removes what that has written
#
# The program is $MOEPACK, build/release/moepack by default.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
moepack=${MOEPACK:-$root/build/release/moepack}
demo=${DEMO_DIR:-demo}
marker=$demo/.moepack-demo
needed_mb=1100 # 459 MB of checkpoint, 481 MB packed, and some air

# The demo's own things go, and its directory unless something else is in there.
remove_demo()
{
    rm -rf "$demo/checkpoint" "$demo/packed" "$demo/checkpoint.partial" "$demo/packed.partial"
    rm -f "$marker"
    rmdir --ignore-fail-on-non-empty "$demo"
}

clean()
{
    if [ -e "$marker" ]; then
        remove_demo
        echo "removed $demo"
    else
        echo "nothing to remove: $demo is not there, or not of this demo"
    fi
}

prepare()
{
    local free_mb

    if ! command -v "$moepack" >/dev/null; then
        echo "$moepack is not there: build it with make" >&2
        return 1
    fi
    if [ -e "$marker" ]; then
        remove_demo
    elif [ -n "$(ls -A "$demo" 2>/dev/null)" ]; then
        echo "$demo holds something else: set DEMO_DIR to another directory" >&2
        return 1
    fi
    mkdir -p "$demo"
    free_mb=$(df --output=avail -B 1000000 "$demo" | tail -n 1 | tr -d ' ')
    if [ "$free_mb" -lt "$needed_mb" ]; then
        rmdir "$demo"
        echo "$demo: $free_mb MB free, the demo needs $needed_mb MB: set DEMO_DIR elsewhere" >&2
        return 1
    fi
    : >"$marker"
}

# Says what comes.
say()
{
    printf '\n# %s\n' "$*"
}

# Prints a command, runs it, and prints what it took.
show()
{
    local TIMEFORMAT='  %R s'

    printf '$ moepack %s\n' "$*"
    time "$moepack" "$@"
}

# Flips a bit in the middle of a file, or flips it back.
flip_bit()
{
    local middle byte

    middle=$(($(stat -c %s "$1") / 2))
    byte=$(od -An -t u1 -j "$middle" -N 1 "$1")
    # shellcheck disable=SC2059
    printf "\\$(printf %03o $((byte ^ 1)))" |
        dd of="$1" bs=1 seek="$middle" conv=notrunc status=none
}

# verify has to fail.
show_fault()
{
    local file=$demo/packed/rank-002/model-00001-of-00001.safetensors status=0

    flip_bit "$file"
    show verify "$demo/packed" --source "$demo/checkpoint" || status=$?
    echo "  exit status $status"
    flip_bit "$file"
    if [ "$status" -ne 1 ]; then
        echo "verify should have said 1" >&2
        return 1
    fi
}

# Loads a rank as an engine would.
load_rank()
{
    local TIMEFORMAT='  %R s'

    printf '$ python3 tests/examples/load_rank.py %s 2\n' "$demo/packed"
    time PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$root/lib/loaders \
        python3 "$root/tests/examples/load_rank.py" "$demo/packed" 2
}

run()
{
    prepare
    echo "writes about 0.95 GB to $demo"

    say "A checkpoint as DeepSeek-V4-Flash's, with one layer and 32 experts"
    show synth --preset deepseek-v4-flash --layers 1 --experts 32 --mtp 0 -o "$demo/checkpoint"

    say "What it holds"
    show inspect "$demo/checkpoint"

    say "Packed for 4 ranks; 4 of the experts have a second copy"
    show repack "$demo/checkpoint" --target megamoe-w4a8 --ep 4 --redundant 4 -o "$demo/packed"

    say "Every byte of every slot is that of the expert which belongs there"
    show verify "$demo/packed" --source "$demo/checkpoint"

    say "A single bit flipped in rank 2 is found (and flipped back)"
    show_fault

    say "What there is now, with sizes in bytes"
    (cd "$demo" && find packed -type f -printf '%11s  %p\n' | sort -k 2)

    if command -v python3 >/dev/null; then
        say "Rank 2, loaded in Python: every tensor, its shape, and a digest of its bytes"
        load_rank
    fi

    say "What to do next"
    echo "README.md, Into your engine: how SGLang, vLLM and others load such a directory"
    echo "man/moepack-format.5: what is in it, with loaders in Python and in C"
    echo
    echo "remove it with: ${DEMO_DIR:+DEMO_DIR=$DEMO_DIR }tests/demo.sh clean"
}

case ${1:-} in
'') run ;;
clean) clean ;;
*)
    echo "usage: tests/demo.sh [clean]" >&2
    exit 2
    ;;
esac
