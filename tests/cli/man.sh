#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Holds the manual pages against the option tables: what a page says of synopsis,
# summary and options is what --help prints.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

commands=$("$MOEPACK" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p')

# Runs of blanks and line ends become one blank.
one_line()
{
    tr -s ' \t\n' ' ' | sed 's/^ //; s/ $//'
}

# A section of a page as plain text, without its heading.
page_section()
{
    mandoc -Tascii -O width=1000 "$1" | sed 's/.\x08//g' |
        awk -v section="$2" '/^[^ ]/ { inside = $0 == section; next } inside'
}

# "-j, --threads N" for every option that a page describes.
page_options()
{
    sed -n '
        /^\.It Fl /!d
        s/^\.It //
        s/ Ns Op = Ns Ar \([A-Z/]*\)$/[=\1]/
        s/Fl /-/g
        s/ , -/, --/
        s/ Ar / /
        p' "$1"
}

# The same from --help, whose lines begin with two or six blanks.
help_options()
{
    moepack "$1" --help |
        sed -n 's/^ \{2,6\}\(-[^ ,]*\(, --[^ ]*\)\{0,1\}\( [A-Z][A-Z/]*\)\{0,1\}\)\( .*\)\{0,1\}$/\1/p'
}

for command in $commands; do
    page=$ROOT/man/moepack-$command.1

    it "has a manual page for $command"
    run test -f "$page"
    assert_status 0
    [ "$status" -eq 0 ] || continue

    it "has the synopsis of $command as --help prints it"
    moepack "$command" --help | sed '/^$/,$d' | one_line >expected
    { printf 'Usage: ' && page_section "$page" SYNOPSIS | one_line; } >found
    assert_file_is found <expected

    it "describes every option of $command, and no other"
    help_options "$command" >expected
    page_options "$page" >found
    assert_file_is found <expected

    it "summarizes $command as --help does"
    summary=$(moepack "$command" --help | sed -n "s/^moepack $command: //p")
    assert_equal "$(sed -n 's/^\.Nd //p' "$page")" "$summary"

    it "lists $command in the main page, with its summary"
    assert_equal "$(sed -n "/^\.It Xr moepack-$command 1$/{n;p;}" "$ROOT/man/moepack.1")" "$summary"
done

it "has no page for what is no command"
for page in "$ROOT"/man/moepack-*.1; do
    name=${page##*/moepack-}
    assert_equal "$(grep -cx "${name%.1}" <<<"$commands")" 1
done

finish
