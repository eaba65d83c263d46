#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# shellcheck disable=SC2317 # each_writer calls them
# Every command where memory runs out: it says so, with status 4 and in one line, or does all that it
# does otherwise. What is half-written is never taken for complete. A sample of allocations; LONG=1
# takes all of them: `make check-long`.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=tests/cli/writers.bash
. "$(dirname "$0")/writers.bash"

preloaded=$WORK/fail_memory.so
"${CC:-gcc}" -D_GNU_SOURCE -O1 -fPIC -shared -o "$preloaded" "$ROOT/tests/cli/fail_memory.c" -ldl || exit 1

# Commands that print.
echo '{"physical_to_logical_map": [[0, 1, 2, 3, 4, 5, 1, 3], [5, 4, 3, 2, 1, 0, 0, 2]]}' >"$inputs/placement.json"
readers=(
    "inspect checkpoint" "inspect pack --json" "inspect compressed --tensors" "inspect pack --ranges"
    "verify pack --source checkpoint" "verify changes --source checkpoint" "checksums --check sums"
    "verify pack --source checkpoint --level numeric --tokens 3 --json"
    "diff checkpoint newer" "diff pack checkpoint --json" "forward checkpoint --layer 1 --tokens 3 --json"
    "forward pack --layer 1 --source checkpoint --tokens 3" "plan --model checkpoint --backend deepep --tp 2"
    "repack checkpoint --target deepep-bf16 --ep 2 -n" "map --placement placement.json --ep 2"
    "route choices --experts 6 --ep 2" "eplb counts.json --ep 3 --redundant 3 --report --bars" "targets"
    "synth --list" "help" "repack --help" "completion bash" "completion zsh" "completion fish"
)
cp -r "$inputs/pack" "$inputs/sums"
moepack checksums "$inputs/sums" -q

# moments CALLS: "NUMBER TIMES" lines: each allocation fails once, or the first, one in the middle and
# the last; and from the first and from one in the middle on all do.
moments()
{
    if [ -n "${LONG:-}" ]; then seq "$1"; else printf '%s\n' 1 $((RANDOM % $1 + 1)) "$1"; fi | sed 's/$/ 1/'
    printf '%s 1000000\n' 1 $((RANDOM % $1 + 1))
}
RANDOM=${SEED:-18}

# After a run with memory that ran out.
assert_said()
{
    if [ "$status" -ne 0 ]; then
        assert_status 4
        assert_equal "$(grep -vc ' warning: ' "$stderr")" 1
    fi
}

write_it()
{
    local calls n times

    it "writes all or nothing of $name where memory runs out"
    whole
    calls=$(count_calls)
    assert $((calls < 3)) "$calls allocations"
    while read -r n times; do
        failing FAIL_AT="$n" FAIL_TIMES="$times"
        assert_said
        assert_recovers "$times failures from allocation $n of $calls on"
    done < <(moments "$calls")
}

read_it()
{
    local calls n times

    it "prints all of '$1', or says that memory has run out"
    cd "$inputs" || return
    # shellcheck disable=SC2086
    env LD_PRELOAD="$preloaded" FAIL_COUNT="$WORK/calls" "$MOEPACK" $1 -j1 >"$WORK/wanted" 2>"$WORK/noted"
    status_wanted=$?
    calls=$(cat "$WORK/calls")
    while read -r n times; do
        { # shellcheck disable=SC2086
            run env LD_PRELOAD="$preloaded" FAIL_AT="$n" FAIL_TIMES="$times" "$MOEPACK" $1 -j1
        } 2>/dev/null
        if [ "$status" -eq "$status_wanted" ]; then
            cmp -s "$stdout" "$WORK/wanted"
            assert $? "allocation $n of $calls, $times times: other output of '$1', with status $status"
        else
            assert_said
        fi
    done < <(moments "$calls")
}

each_writer write_it
for reader in "${readers[@]}"; do
    read_it "$reader"
done

finish
