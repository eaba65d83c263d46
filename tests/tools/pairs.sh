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

moepack=$1
dir=$2
export LC_ALL=C

# What is wrong goes to stderr, and the script goes on.
complain()
{
    echo "pairs: $*" >&2
    touch "$dir/failed"
}

# pack SOURCE TARGET SCHEME OUT [OPTION...]
pack()
{
    "$moepack" repack "$1" -t "$2" --quantize "$3" -o "$4" --ep 2 --redundant 1 -j 1 -q "${@:5}"
}

# The same, and is it right? What the target cannot carry is left behind only where it asks.
pack_and_verify()
{
    local why

    why=$(pack "$@" 2>&1) ||
        { [[ $why == *--drop* ]] && why=$(pack "$@" --drop bias,input_scale 2>&1); } ||
        complain "$why"
    why=$("$moepack" verify "$4" --source "$1" --level exact -j 1 -q 2>&1) ||
        complain "$1 as $2: $why"
}

# Of each manifest: "exact", or the largest relative RMS error; "*" where something was dropped.
costs()
{
    jq -r '(if .quantization.lossless then "exact" else [.errors[].relative_rms] | max end
           | tostring) + (if .dropped then "*" else "" end)' "$@"
}

# row FAMILY SCHEME STYLE: what packing it for each target costs, after these three words.
row()
{
    local source=$dir/$1-$2-$3 target scheme packed=()

    "$moepack" synth -o "$source" --family "$1" --format "$2" --style "$3" --hidden 384 \
        --intermediate 128 --experts 3 --layers 1 --top-k 2 -j 1 -q || complain "no $1 $2 $3"
    while read -r scheme target; do
        pack_and_verify "$source" "$target" "$scheme" "$source-$target"
        packed+=("$source-$target/moepack.json")
    done <"$dir/targets"
    echo "$1 $2 $3" "$(costs "${packed[@]}" | paste -s -d ' ')"
    rm -rf "$source" "$source"-*
}

# Every row of the list whose number is I modulo N.
rows()
{
    awk -v i="$1" -v n="$2" 'NR % n == i' "$dir/list" | while read -r family scheme style; do
        row "$family" "$scheme" "$style"
    done
}

# From a cell for each target to one for each scheme: those of one scheme differ in the order
# of bytes, which costs nothing.
fold_targets()
{
    awk -v columns="$(cut -d ' ' -f 1 "$dir/targets" | paste -s -d ' ')" '
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
    awk -v families="$(cut -d ' ' -f 1 "$dir/list" | uniq | paste -s -d ' ')" '
        # "exact", "0", or that it is a number; with a star or without
        function kind(cell) { return cell ~ /^0\./ ? (cell ~ /\*/ ? "some*" : "some") : cell }

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

mkdir -p "$dir" || exit
"$moepack" synth --list >"$dir/list"
"$moepack" targets --json |
    jq -r 'sort_by(.source_schemes[0])[] | "\(.source_schemes[0]) \(.name)"' >"$dir/targets"
jobs=$(nproc)
for ((i = 0; i < jobs; i++)); do
    rows "$i" "$jobs" >"$dir/rows.$i" &
done
wait
sort -k 2,3 -k 1,1 "$dir"/rows.* >"$dir/rows"
fold_targets <"$dir/rows" >"$dir/folded" || complain "targets of one scheme differ in errors"
printf '.It Sy experts'
cut -d ' ' -f 1 "$dir/targets" | uniq | xargs printf ' Ta Sy %s'
echo ' Ta Sy families'
fold_families <"$dir/folded"
[ ! -e "$dir/failed" ]
