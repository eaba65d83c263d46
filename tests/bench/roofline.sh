# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Rooflines for run.sh, which sources this: what binds each figure.
#
# A row's roof is made of ceilings, each measured by itself in the same run on as many threads as
# the row has, and of what the row cannot do without:
#
#   pread    bytes of files read that are in memory, at the speed of pread alone
#   pwrite   bytes of files written, at the speed of pwrite alone to pages that are not there yet
#   digest   bytes digested, at the speed of XXH3-128 on data in the cache
#   kernel   what turns one into the other, by itself on data in the cache: `moepack bench`, as many
#            processes at once as there are threads, or `ceilings layout|transpose|zstd`; of
#            `forward` the operations, at the speed of OpenBLAS on large matrices or of multiplying
#            and adding in the cache, whichever is more: products are not fused
#   memory   bytes that have to come from memory and go to it at least once, at the speed of loading
#            and storing arrays far larger than caches
#   disk     bytes of files that are not in memory, at the speed of direct reads
#
# Amount over ceiling is the least time of each, printed as a percentage of the time taken. A thread
# takes the first four one after the other, so their sum ("steps") is a least time too; it is that of
# the threads. The largest of steps, memory and disk is the roof: "at most" is the speed it allows,
# "roof" the measured speed as a percentage of that. It binds if it takes 80 % of the time or more,
# and then the largest step is named, or memory, or the disk; else none of these does, and there is
# room. Steps that were left out, system calls and threads waiting for each other are in what is
# missing to 100, and a roof of more than 100 tells that the machine was busy with something else
# when the ceilings were taken.

: "${build:?}" "${moepack:?}" "${work:?}" # run.sh's

declare -A ceiling # of "THREADS NAME", GB/s
bounds=()          # rows for show_bounds

# know_ceilings THREADS: measures them, once.
know_ceilings()
{
    local name rate

    [ -z "${ceiling[$1 load]:-}" ] || return 0
    "$build/bench/ceilings" "$1" files "$work" >"$work/ceilings"
    while read -r name rate; do
        ceiling[$1 $name]=$rate
    done <"$work/ceilings"
}

# kernel THREADS NAME [LEVEL]: measures a kernel of `moepack bench`, of the best level or that one.
# Sets rate, GB/s of its input, and ratio, bytes of output for each of input.
# shellcheck disable=SC2034
kernel()
{
    local i pids=()

    for i in $(seq "$1"); do
        "$moepack" bench --kernel "$2" ${3:+--level "$3"} --seconds 0.05 --json >"$work/kernel.$i" &
        pids+=($!)
    done
    for i in "${pids[@]}"; do
        wait "$i"
    done
    read -r rate ratio < <(jq -rs 'map(.[-1]) | "\(map(.gb_s * .bytes_in / (.bytes_in + .bytes_out)) |
        add) \(.[0].bytes_out / .[0].bytes_in)"' "$work"/kernel.*)
    rm -f "$work"/kernel.*
}

# layout_seconds THREADS TARGET BYTES: least time of laying out and, where codes can be NaN, of
# looking for them.
layout_seconds()
{
    local scheme check=0 rate

    scheme=$("$moepack" targets --json |
        jq -r --arg name "$2" '.[] | select(.name == $name) | .source_schemes[0]')
    case $scheme in
    bf16 | fp8_*)
        kernel "$1" "check:$scheme"
        check=$(calc %.5f "1 / $rate")
        ;;
    esac
    calc %.5f "$3 / 1e9 * ($check + $("$build/bench/ceilings" "$1" layout "$2"))"
}

# expert_bytes CHECKPOINT: of its routed experts, all that repack reads.
expert_bytes()
{
    "$moepack" inspect "$1" --json | jq '[.layers[].bytes] | add'
}

# bound WHAT THREADS SECONDS BYTES STEP=AMOUNT...: keeps a row for show_bounds. BYTES is what its
# speed counts, or operations. Amounts of pread, pwrite, digest, disk, load and store (memory, without
# a file) are bytes, of kernel seconds.
bound()
{
    local what=$1 n=$2 seconds=$3 bytes=$4 step
    shift 4

    know_ceilings "$n"
    bounds+=("$(for step in "$@"; do
        echo "${step%%=*} ${step#*=} ${ceiling[$n ${step%%=*}]:-1}"
    done | awk -v what="$what" -v n="$n" -v seconds="$seconds" -v bytes="$bytes" \
        -v load="${ceiling[$n load]}" -v store="${ceiling[$n store]}" '
        $1 == "kernel" { least[$1] += $2 }
        $1 ~ /^(pread|pwrite|digest)$/ { least[$1] += $2 / 1e9 / $3 }
        $1 == "disk" { disk = $2 / 1e9 / $3 }
        $1 ~ /^(pread|load)$/ { memory += $2 / 1e9 / load }
        $1 ~ /^(pwrite|store)$/ { memory += $2 / 1e9 / store }
        END {
            for (step in least) {
                steps += least[step]
                if (least[step] > least[largest])
                    largest = step
            }
            roof = steps > memory ? steps : memory
            binds = steps > memory ? largest : "memory"
            if (disk > roof) {
                roof = disk
                binds = "disk"
            }
            if (roof < 0.8 * seconds)
                binds = "none"
            printf "%-40s %7d %8.2f %6.0f %6.0f %6.0f %6.0f %6.0f %6.0f %6.0f %8.2f %5.0f %7s", \
                what, n, \
                bytes / 1e9 / seconds, 100 * least["pread"] / seconds, \
                100 * least["pwrite"] / seconds, 100 * least["digest"] / seconds, \
                100 * least["kernel"] / seconds, 100 * steps / seconds, 100 * memory / seconds, \
                100 * disk / seconds, \
                bytes / 1e9 / roof, 100 * roof / seconds, binds
        }')")
}

# show_bounds: prints the rows that were kept, and forgets them.
show_bounds()
{
    [ "${#bounds[@]}" -gt 0 ] || return 0
    printf '\n   what binds: least time of each as %% of the time taken; speeds in G/s\n'
    printf '   %-40s %7s %8s %6s %6s %6s %6s %6s %6s %6s %8s %5s %7s\n' of threads speed pread \
        pwrite digest kernel steps memory disk "at most" roof binds
    printf '   %s\n' "${bounds[@]}"
    bounds=()
}

# show_ceilings: those that were measured, for all rows.
show_ceilings()
{
    local key

    [ "${#ceiling[@]}" -gt 0 ] || return 0
    title "ceilings of this machine, GB/s"
    for key in "${!ceiling[@]}"; do
        printf '   %2d threads %-7s %7.2f\n' "${key% *}" "${key#* }" "${ceiling[$key]}"
    done | sort
}
