#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Malformed and contradictory input is refused with the exact message that the case has in
# tests/malformed, and leaves nothing behind.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

# The commands of a case, a line each.
commands()
{
    if [ -f "$1/command" ]; then
        cat "$1/command"
    else
        echo 'inspect ckpt'
        echo 'repack ckpt -o out --target megamoe-w4a8 --ep 1'
    fi
}

# Makes ./ckpt as the case says.
make_case()
{
    mkdir ckpt
    # shellcheck source=tests/malformed/st.sh disable=SC1091
    (cd ckpt && . "$ROOT/tests/malformed/st.sh" && . "$1/recipe")
}

expected_status()
{
    sed -n '1s/^status //p' "$1/expect"
}

expected_text()
{
    sed "1d; s/^moepack: COMMAND:/moepack: $2:/" "$1/expect"
}

for case in "$ROOT"/tests/malformed/*/; do
    case=${case%/}
    it "refuses ${case##*/}"
    make_case "$case"
    while read -r -a words; do
        run moepack "${words[@]}"
        assert_status "$(expected_status "$case")"
        assert_stderr_is "$(expected_text "$case" "${words[0]}")"
        assert_equal "$(ls -A)" ckpt
    done < <(commands "$case")
done

finish
