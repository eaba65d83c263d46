#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Repacks small experts of every family, in every form that it has, for every target, and
# verifies each pack against its source. Prints the table of moepack-layouts(7): "exact" where
# the bytes pass through, else the relative RMS error that requantizing costs.
#
#     pairs.sh MOEPACK DIR
set -u

moepack=$1
dir=$2
failed=0

# What is wrong goes to stderr, and the script goes on.
complain()
{
    echo "pairs: $*" >&2
    failed=1
}

# The error in the last manifest, or "exact".
cost()
{
    jq -r 'if .quantization.lossless then "exact"
           else [.errors[].relative_rms] | max | if . == 0 then "0" else
               (. as $x | ($x | log10 | floor) as $e | ($x / pow(10; $e - 1) | round) as $d |
                "\($d / 10)e\($e)") end
           end' "$dir/out/moepack.json"
}

# pair SOURCE TARGET SCHEME: a cell of the table.
pair()
{
    local flags=(--ep 2 --redundant 2 --quantize "$3" --force --quiet) mark=

    if ! "$moepack" repack "$1" -o "$dir/out" --target "$2" "${flags[@]}" 2>"$dir/why"; then
        # What belongs to experts is left behind only when that is asked for.
        if ! grep -q -- '--drop' "$dir/why"; then
            complain "$(cat "$dir/why")"
            return
        fi
        mark=*
        "$moepack" repack "$1" -o "$dir/out" --target "$2" "${flags[@]}" \
            --drop bias,input_scale 2>"$dir/why" || complain "$(cat "$dir/why")"
    fi
    "$moepack" verify "$dir/out" --source "$1" --level exact --quiet >"$dir/why" 2>&1 ||
        complain "$1 $2: $(cat "$dir/why")"
    printf '%s%s' "$(cost)" "$mark"
}

# row FAMILY SCHEME STYLE
row()
{
    local source=$dir/source target scheme cells=() cell last='' cell_of_last=''

    "$moepack" synth -o "$source" --family "$1" --format "$2" --style "$3" --hidden 512 \
        --intermediate 256 --experts 6 --layers 1 --dense 0 --top-k 2 --seed 7 --quiet ||
        complain "no $1 $2 $3"
    while read -r target scheme; do
        cell=$(pair "$source" "$target" "$scheme")
        # Targets of one scheme differ in the order of bytes only.
        if [ "$scheme" = "$last" ]; then
            [ "$cell" = "$cell_of_last" ] || complain "$1 $2: $target: $cell, not $cell_of_last"
        else
            cells+=("$cell")
        fi
        last=$scheme
        cell_of_last=$cell
    done <"$dir/targets"
    rm -rf "$source" "$dir/out"
    printf '.It %s Ta %s Ta %s' "$1" "$2" "$3"
    printf ' Ta %s' "${cells[@]}"
    echo
}

mkdir -p "$dir"
"$moepack" targets --json |
    jq -r 'sort_by(.source_schemes[0])[] | "\(.name) \(.source_schemes[0])"' >"$dir/targets"
"$moepack" synth --list | while read -r family scheme style; do
    row "$family" "$scheme" "$style"
done
exit "$failed"
