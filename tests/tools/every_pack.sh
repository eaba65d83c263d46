# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Packs small experts of every family, in every form that synth gives them, for every target.
# A script that is called with the program and a directory to write below sources this, and
# calls `every_form FUNCTION`.

# Packs keep the command that made them: names are relative, so that no path is in it.
moepack=$(realpath "$1")
mkdir -p "$2" && cd "$2" || exit
export LC_ALL=C

# What is wrong goes to stderr, and the script goes on.
complain()
{
    echo "$(basename "$0" .sh): $*" >&2
    touch failed
}

# pack SOURCE TARGET SCHEME OUT [OPTION...]
pack()
{
    "$moepack" repack "$1" -t "$2" --quantize "$3" -o "$4" --ep 2 --redundant 1 -j 1 -q "${@:5}"
}

# pack_for_all FUNCTION FAMILY SCHEME STYLE: calls FUNCTION FAMILY SCHEME STYLE once the source
# FAMILY-SCHEME-STYLE and all its packs, with "-TARGET" behind that, are there.
# What a target cannot carry is left behind only where it asks.
pack_for_all()
{
    local source=$2-$3-$4 target scheme why

    "$moepack" synth -o "$source" --family "$2" --format "$3" --style "$4" --hidden 384 \
        --intermediate 128 --experts 3 --layers 1 --top-k 2 -j 1 -q || complain "no $2 $3 $4"
    while read -r scheme target; do
        why=$(pack "$source" "$target" "$scheme" "$source-$target" 2>&1) ||
            { [[ $why == *--drop* ]] && why=$(pack "$source" "$target" "$scheme" \
                "$source-$target" --drop bias,input_scale 2>&1); } ||
            complain "$why"
    done <target_list
    "$1" "${@:2}"
    rm -rf "$source" "$source"-*
}

# Every form of the list whose number is I modulo N.
some_forms()
{
    awk -v i="$2" -v n="$3" 'NR % n == i' list | while read -r family scheme style; do
        pack_for_all "$1" "$family" "$scheme" "$style"
    done
}

# every_form FUNCTION: pack_for_all of each, several at a time; prints what FUNCTION prints, in
# no order.
every_form()
{
    local jobs i

    "$moepack" synth --list >list
    "$moepack" targets --json |
        jq -r 'sort_by(.source_schemes[0])[] | "\(.source_schemes[0]) \(.name)"' >target_list
    jobs=$(nproc)
    for ((i = 0; i < jobs; i++)); do
        some_forms "$1" "$i" "$jobs" >"printed.$i" &
    done
    wait
    cat printed.*
}
