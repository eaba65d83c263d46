#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# shellcheck disable=SC2317 # each_writer calls them
# Every command that writes, on a system that fails: killed, full, broken, out of memory. What is
# half-written is never taken for complete, and the next run leads to the same bytes. A sample of
# moments; LONG=1 takes all of them: `make check-long`.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=tests/cli/writers.bash
. "$(dirname "$0")/writers.bash"

LONG=${LONG:-}
RANDOM=${SEED:-18}

# moments CALLS SAMPLE: all numbers up to CALLS, or a sample of them with the first and the last.
moments()
{
    if [ -n "$LONG" ]; then
        seq "$1"
    else
        { echo 1 && echo "$1" && seq "$(($1 / $2 + 1))" "$(($1 / $2 + 1))" "$1"; } | sort -nu
    fi
}

kill_it()
{
    local calls i n count=1

    [ -z "$LONG" ] || count=50
    it "makes the same of $name after kill -9 at random moments"
    whole
    calls=$(count_calls)
    assert $((calls < 3)) "$calls calls"
    for ((i = 0; i < count; i++)); do
        n=$((RANDOM % calls + 1))
        failing FAIL_WITH=SIGKILL FAIL_AT="$n"
        assert_status 137
        assert_recovers "SIGKILL at call $n of $calls"
    done
}

break_it()
{
    local calls n error

    for error in ENOSPC EIO; do
        it "says so when a call of $name ends with $error, and recovers"
        whole
        calls=$(count_calls)
        for n in $(moments "$calls" 1); do
            failing FAIL_WITH="$error" FAIL_AT="$n" FAIL_TIMES=1
            # A call that failed and did not matter is one that the output does not show.
            if [ "$status" -ne 0 ]; then
                assert_status 4
                assert_equal "$(wc -l <"$stderr")" 1
            fi
            assert_recovers "$error at call $n of $calls"
        done
    done
}

read_only()
{
    [ "$goes_on" = yes ] || return 0
    it "says so when $name may not write where OUT is to be"
    failing FAIL_WITH=EROFS FAIL_CALL=mkdir
    assert_status 4
    assert_stderr_has 'Read-only file system'
    assert_equal "$(ls -A)" ''
}

second_run()
{
    [ "$goes_on" = yes ] || return 0
    it "keeps a second run of $name off the OUT of a first"
    whole
    {
        out=$PWD/out
        (cd "$inputs" && LD_PRELOAD=$fail_io FAIL_CALL=pwrite FAIL_AT=3 FAIL_TIMES=1 FAIL_WITH=SIGSTOP \
            exec "$MOEPACK" "${writer[@]}" -o "$out" -q -j1) &
        until_stopped $!
    } 2>/dev/null
    if [ ! -e out.partial ]; then # the first has not come so far, and finds that it is the second
        run write
        assert_status 0
        kill -CONT $!
        wait $!
        assert_equal "$?" 2
        assert_recovers 'a second run'
        return
    fi
    run write
    assert_status 2
    run write --resume
    assert_status 4
    assert_equal "$(wc -l <"$stderr")" 1
    kill -CONT $!
    wait $!
    assert $? 'the first run failed'
    assert_recovers 'a second run'
}

full_journal()
{
    local calls n

    [ "$goes_on" = yes ] || return 0
    it "says so when the disk is full in the journal of $name, and recovers"
    whole
    failing FAIL_COUNT="$WORK/calls" FAIL_PATH=out.partial/journal
    calls=$(cat "$WORK/calls")
    rm -rf out
    assert $((calls < 3)) "$calls calls"
    for n in $(moments "$calls" 2); do
        failing FAIL_PATH=out.partial/journal FAIL_WITH=ENOSPC FAIL_AT="$n"
        if [ "$status" -ne 0 ]; then # to fail at closing or removing it may not matter
            assert_status 4
            assert_stderr_has 'No space left on device'
            assert_equal "$(wc -l <"$stderr")" 1
        fi
        assert_recovers "ENOSPC at call $n of $calls on the journal"
    done
}

# As on a file system that loses the end of a file, or under a copy that begins anew.
shrinking_source()
{
    local file sources=()

    [ "$goes_on" = yes ] || return 0
    it "says so when shards shrink under $name, and recovers"
    whole
    for file in "${writer[@]:1}"; do
        [ ! -d "$inputs/$file" ] || sources+=("$inputs/$file")
    done
    cp -r "$inputs" "$WORK/kept"
    {
        out=$PWD/out
        (cd "$inputs" && LD_PRELOAD=$fail_io FAIL_CALL=pwrite FAIL_AT=1 FAIL_TIMES=1 FAIL_WITH=SIGSTOP \
            exec "$MOEPACK" "${writer[@]}" -o "$out" -q -j1) 2>"$stderr" &
        until_stopped $!
        find "${sources[@]}" -name '*.safetensors*' ! -name '*.json' -size +20k -exec truncate -s 20000 {} +
        kill -CONT $!
        wait $!
        status=$?
    } 2>/dev/null
    command_line="${writer[*]} of shards that shrink"
    rm -rf "$inputs"
    mv "$WORK/kept" "$inputs"
    # What is read once more, or has checksums, is malformed before it is too short.
    [ "$status" -eq 4 ] || [ "$status" -eq 3 ]
    assert $? "status $status"
    grep -qE 'safetensors.* (ends at byte 20000|the file holds|the file ends inside)' "$stderr"
    assert $? "$(cat "$stderr")"
    assert_equal "$(wc -l <"$stderr")" 1
    assert_recovers 'shards that shrink'
}

each_writer kill_it
each_writer break_it
each_writer read_only
each_writer second_run
each_writer full_journal
each_writer shrinking_source

finish
