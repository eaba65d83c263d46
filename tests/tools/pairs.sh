#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Packs small experts of every family, in every form that synth gives them, for every target,
# and verifies each pack against its source. Prints the table of moepack-layouts(7): a column
# for each scheme that targets take, a row for all families whose experts fare alike.
#
#     pairs.sh MOEPACK DIR
#
# Writes below DIR. Exits 1 if a pack is not made, or not what its source says.
set -u

# shellcheck source=tests/tools/every_pack.sh
. "$(dirname "$0")/every_pack.sh"

# Of each manifest: "exact", or the largest relative RMS error; "*" where something was dropped.
costs()
{
    jq -r '(if .errors then [.errors[].relative_rms] | max else "exact" end | tostring) +
        (if .dropped then "*" else "" end)' "$@"
}

# A row of costs behind the three words of the form.
row()
{
    local source=$1-$2-$3 target packed=() why

    while read -r _ target; do
        packed+=("$source-$target/moepack.json")
        why=$("$moepack" verify "$source-$target" --source "$source" --level exact -j 1 -q 2>&1) ||
            complain "$source as $target: $why"
    done <target_list
    echo "$1 $2 $3" "$(costs "${packed[@]}" | paste -s -d ' ')"
}

# From a cell for each target to one for each scheme: those of one scheme differ in the order
# of bytes, which costs nothing.
fold_targets()
{
    awk -v columns="$(cut -d ' ' -f 1 target_list | paste -s -d ' ')" '
        BEGIN { n = split(columns, column) }
        {
            line = $1 " " $2
            for (i = 1; i <= n; i++) {
                if (column[i] != column[i - 1])
                    line = line " " $(i + 3)
                else if ($(i + 3) != $(i + 2))
                    exit 1
            }
            print line
        }'
}

# One row for all families whose experts of a scheme have the same cells, numbers apart: of
# these the largest.
fold_families()
{
    awk -v families="$(cut -d ' ' -f 1 list | uniq | paste -s -d ' ')" '
        # "exact", "0", or that it is a number; with a star or without
        function kind(cell) { return cell ~ /^0\.|e-/ ? (cell ~ /\*/ ? "some*" : "some") : cell }

        # The families of a row, or those that are not; whatever is shorter.
        function names(row,    i, list, others, more) {
            for (i = 1; i <= n; i++)
                if ((row, family[i]) in member) {
                    list = list ", " family[i]
                    more++
                } else {
                    others = others ", " family[i]
                    more--
                }
            return more <= 0 ? substr(list, 3) : others ? "all but " substr(others, 3) : "all"
        }

        BEGIN { n = split(families, family) }
        {
            key = $2
            for (i = 3; i <= NF; i++)
                key = key " " kind($i)
            if (!(key in scheme))
                order[++rows] = key
            scheme[key] = $2
            member[key, $1]
            for (i = 3; i <= NF; i++)
                if ($i + 0 >= largest[key, i] + 0)
                    largest[key, i] = $i
        }
        END {
            for (r = 1; r <= rows; r++) {
                line = ".It " scheme[order[r]]
                for (i = 3; i <= NF; i++) {
                    cell = largest[order[r], i]
                    if (kind(cell) ~ /^some/)
                        cell = sprintf("%.2g", cell) (cell ~ /\*/ ? "*" : "")
                    line = line " Ta " cell
                }
                print line " Ta " names(order[r])
            }
        }'
}

every_form row >unsorted
sort -k 2,3 -k 1,1 unsorted >rows
fold_targets <rows >folded || complain "targets of one scheme differ in errors"
printf '.It Sy experts'
cut -d ' ' -f 1 target_list | uniq | xargs printf ' Ta Sy %s'
echo ' Ta Sy families'
fold_families <folded
[ ! -e failed ]
