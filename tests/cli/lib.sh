# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# A small harness for tests of whole commands. A test file is
#
#     . "$(dirname "$0")/lib.sh"
#
#     it "refuses an unknown option"
#     run moepack targets --nonsense
#     assert_status 2
#     assert_stdout ''
#     assert_stderr_is <<'END'
#     moepack: targets: unknown option '--nonsense'
#     try 'moepack targets --help'
#     END
#
#     finish
#
# `it` begins a test in an empty directory of its own; the repository is at $ROOT.
# A test fails when one of its assertions does, or when it has none. The output is
# TAP: `ok N - name` or `not ok N - name` with what differed in lines after it.
# The program is $MOEPACK, build/release/moepack by default.

set -u

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
MOEPACK=${MOEPACK:-build/release/moepack}
case $MOEPACK in
/*) ;;
*) MOEPACK=$ROOT/$MOEPACK ;;
esac
WORK=$(mktemp -d)

tests_run=0
tests_failed=0
test_name=
test_assertions=0
test_faults=
finished=

# What is tested must not depend on the user, nor on the make that runs the tests.
export LC_ALL=C
unset NO_COLOR MOEPACK_CPU POSIXLY_CORRECT MAKEFLAGS MFLAGS MAKELEVEL

# Tests run beside each other, so threads that wait are not to spin.
export OMP_WAIT_POLICY=passive

cleanup()
{
    local status=$?

    cd / && rm -rf "$WORK"
    if [ -z "$finished" ]; then
        echo "Bail out! ended early in '${test_name:-nothing}' with status $status"
        exit 1
    fi
}
trap cleanup EXIT

moepack()
{
    "$MOEPACK" "$@"
}

# Reports the test that has been going on, if any.
end_test()
{
    [ -n "$test_name" ] || return 0
    tests_run=$((tests_run + 1))
    if [ "$test_assertions" -eq 0 ]; then
        test_faults='it asserted nothing'$'\n'
    fi
    if [ -z "$test_faults" ]; then
        echo "ok $tests_run - $test_name"
    else
        tests_failed=$((tests_failed + 1))
        echo "not ok $tests_run - $test_name"
        printf '%s' "$test_faults" | sed 's/^/#   /'
    fi
    test_name=
}

it()
{
    end_test
    test_name=$1
    test_assertions=0
    test_faults=
    cd "$WORK" && rm -rf current && mkdir current && cd current || exit 1
}

finish()
{
    end_test
    echo "1..$tests_run"
    finished=yes
    [ "$tests_failed" -eq 0 ]
    exit
}

# Runs a command; its status and output are there to be asserted on, in $status and
# the files $stdout and $stderr.
stdout=$WORK/stdout
stderr=$WORK/stderr
run()
{
    command_line=$*
    status=0
    "$@" >"$stdout" 2>"$stderr" || status=$?
}

# One assertion: 0 or 1 for whether it holds, and a text for when it does not.
assert()
{
    local holds=$1 text=$2

    test_assertions=$((test_assertions + 1))
    [ "$holds" -eq 0 ] || test_faults=$test_faults$text$'\n'
}

assert_status()
{
    local holds=0

    [ "$status" -eq "$1" ] || holds=1
    assert $holds "status $status, expected $1, of: ${command_line//$ROOT\//}
$(cat "$stderr")"
}

assert_equal()
{
    local holds=0

    [ "$1" = "$2" ] || holds=1
    assert $holds "found:    $1
expected: $2"
}

# The file is the text given, or standard input, and a newline; '' is no text.
assert_file_is()
{
    local file=$1 differences

    if [ $# -eq 1 ]; then
        cat >"$WORK/expected"
    elif [ -z "$2" ]; then
        : >"$WORK/expected"
    else
        printf '%s\n' "$2" >"$WORK/expected"
    fi
    differences=$(diff -u --label expected --label found "$WORK/expected" "$file")
    assert $? "$differences"
}

assert_file_has()
{
    grep -qF -e "$2" "$1"
    assert $? "not found: $2
in: $(head -c 2000 "$1")"
}

# Waits until a process does nothing any more: SIGSTOP has stopped it, or it has ended.
until_stopped()
{
    while grep -q '^State:.[RSD]' "/proc/$1/status" 2>/dev/null; do
        sleep 0.01
    done
}

# edit_manifest PACK FILTER: changes moepack.json by a filter of jq, and seals it anew.
edit_manifest()
{
    local body

    body=$(jq "($2) | del(.xxh3)" "$1/moepack.json")
    printf '%s,\n  "xxh3": "%s"\n}\n' "${body%$'\n}'}" \
        "$(xxhsum -q -H2 - <<<"$body" | cut -d ' ' -f 1)" >"$1/moepack.json"
}

assert_stdout()
{
    assert_file_is "$stdout" "$@"
}

assert_stdout_has()
{
    assert_file_has "$stdout" "$1"
}

assert_stderr_is()
{
    assert_file_is "$stderr" "$@"
}

assert_stderr_has()
{
    assert_file_has "$stderr" "$1"
}

# What jq makes of standard output is the compact JSON given. Adding 0 to a number takes away how it
# was written, which jq keeps from 1.7 on: 2.0 is 2.
assert_json()
{
    assert_equal "$(jq -c "($1) | walk(if type == \"number\" then . + 0 else . end)" "$stdout" 2>&1)" "$2"
}
