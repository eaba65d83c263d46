#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Usage: tests/bench/run.sh BUILD [SECTION...]
# Measures BUILD/moepack with DeepSeek V4 Flash's shapes (H 4096, I 2048) on two threads, all
# files in memory: sections copy, targets, transposed, quantize, memory, inspect, forward,
# placement, zstd, delta, storage and kernels, or all. That of storage is on a disk. Behind each section stands what binds its figures
# (roofline.sh). Speeds are printed and never judged; figures of a busy machine are worth nothing.
set -euo pipefail

build=$1
shift
moepack=$build/moepack
measure=$build/bench/measure
threads=2
needed_gb=6
root=${BENCH_DIR:-/dev/shm}

if [ ! -d "$root" ] || [ ! -w "$root" ]; then
    echo "bench: $root is no directory to write to: name another with BENCH_DIR" >&2
    exit 0
fi
free_gb=$(($(df --output=avail -k "$root" | tail -n 1) >> 20))
if [ "$free_gb" -lt "$needed_gb" ]; then
    echo "bench: $root has $free_gb GiB free, the benchmarks take $needed_gb: free some, or" \
        "name another directory in memory with BENCH_DIR" >&2
    exit 0
fi
work=$(mktemp -d "$root/moepack-bench-XXXXXX")
scratch=("$work")
trap 'rm -rf "${scratch[@]}"' EXIT
trap 'exit 130' INT TERM

# title TEXT
title()
{
    printf '\n== %s\n' "$1"
}

# show COMMAND...: the command line, with the scratch directory as $D.
show()
{
    local line=$*

    printf '   $ %s\n' "${line//$work/\$D}"
}

# quietly COMMAND...: runs it; what it says is shown if it fails.
quietly()
{
    if ! "$@" >"$work/log" 2>&1; then
        cat "$work/log" >&2
        return 1
    fi
}

# take COMMAND...: runs it, and sets wall, user, system (seconds) and rss (KiB).
take()
{
    local taken

    taken=$("$measure" "$@" 2>"$work/log") || { cat "$work/log" >&2; return 1; }
    read -r wall user system rss <<<"$taken"
}

# median NUMBER...
median()
{
    printf '%s\n' "$@" | sort -g | sed -n "$((($# + 1) / 2))p"
}

# calc FORMAT EXPRESSION
calc()
{
    awk "BEGIN { printf \"$1\", $2 }"
}

# bytes_of DIR
bytes_of()
{
    du -sb --apparent-size "$1" | cut -f 1
}

# shellcheck source=tests/bench/roofline.sh
. "$(dirname "$0")/roofline.sh"

# synth NAME OPTION...: a checkpoint in the scratch directory.
synth()
{
    local name=$1
    shift

    show "$moepack" synth "$@" -o "$work/$name"
    quietly "$moepack" synth "$@" -j "$threads" -q -o "$work/$name"
}

# versus_copy SOURCE TARGET OPTION...: repack, and cp of what it wrote; five runs of each in turn.
versus_copy()
{
    local source=$1 target=$2 repacks=() copies=() busy=() memory=0 bytes read repack copy
    shift 2
    set -- --target "$target" "$@"

    show "$moepack" repack "$work/$source" -j "$threads" "$@" -o "$work/out"
    for _ in 1 2 3 4 5; do
        rm -rf "$work/out" "$work/copy"
        take "$moepack" repack "$work/$source" -q -j "$threads" "$@" -o "$work/out"
        repacks+=("$wall")
        busy+=("$(calc %.3f "($user + $system) / ($wall * $threads)")")
        memory=$((rss > memory ? rss : memory))
        take cp -r "$work/out" "$work/copy"
        copies+=("$wall")
    done
    bytes=$(bytes_of "$work/out")
    repack=$(median "${repacks[@]}")
    copy=$(median "${copies[@]}")
    printf '   %.2f GB written: repack %.3f s, %.2f GB/s; cp -r of the same %.3f s, %.2f GB/s\n' \
        "$(calc %.4f "$bytes / 1e9")" "$repack" "$(calc %.4f "$bytes / 1e9 / $repack")" "$copy" \
        "$(calc %.4f "$bytes / 1e9 / $copy")"
    printf '   repack is %.2f of cp; processors are busy for %.0f %%; largest RSS %.0f MiB\n' \
        "$(calc %.4f "$copy / $repack")" "$(calc %.2f "100 * $(median "${busy[@]}")")" \
        "$(calc %.2f "$memory / 1024")"
    read=$(expert_bytes "$work/$source")
    bound "${*:2}" "$threads" "$repack" "$bytes" pread="$read" pwrite="$bytes" digest="$bytes" \
        kernel="$(layout_seconds "$threads" "$target" "$read")"
    rm -rf "$work/out" "$work/copy"
}

section_copy()
{
    title "repack of V4 FP4 experts beside cp"
    synth v4 --preset deepseek-v4-flash --layers 1 --experts 64 --mtp 0
    versus_copy v4 megamoe-w4a8 --ep 4
    versus_copy v4 megamoe-w4a8 --ep 4 --redundant 8
    versus_copy v4 megamoe-w4a8 --ep 8 --redundant 16
    rm -rf "$work/v4"
}

# quantize_row LEVEL THREADS FROM TO: what a level makes of rows in memory, without files.
quantize_row()
{
    local plain measured copied rate ratio

    read -r plain measured copied < <(MOEPACK_CPU=$1 "$build/bench/quantize" "$2" "$3" "$4")
    printf '   %-8s %7d %6s %-12s %9.2f %9.2f %9.2f %10.2f %10.2f\n' "$1" "$2" "$3" "$4" \
        "$plain" "$measured" "$copied" "$(calc %.4f "$plain / $copied")" \
        "$(calc %.4f "1 - $measured / $plain")"
    kernel "$2" "requantize:$3:$4" "$1"
    # That kernel measures the loss, too; the other has no roof but memory.
    bound "$3 to $4, $1" "$2" "$(calc %.5f "1 / $plain")" 1e9 load=1e9 store="${ratio}e9"
    bound "$3 to $4, $1, measured" "$2" "$(calc %.5f "1 / $measured")" 1e9 load=1e9 \
        store="${ratio}e9" kernel="$(calc %.5f "1 / $rate")"
}

section_quantize()
{
    local level pair n walls=() seconds bytes written rate ratio loss

    title "conversions in memory, GB/s of input; what measuring their loss costs"
    show "MOEPACK_CPU=LEVEL $build/bench/quantize THREADS FROM TO"
    printf '   %-8s %7s %6s %-12s %9s %9s %9s %10s %10s\n' level threads from to quantize \
        measured memcpy of-memcpy measuring
    for level in $("$moepack" bench --kernel scale --seconds 0.001 --json | jq -r '.[].level'); do
        for n in 1 "$threads"; do
            quantize_row "$level" "$n" bf16 mxfp4
        done
        [ "$level" != scalar ] || continue
        for pair in bf16:nvfp4 bf16:fp8_block bf16:int8_channel mxfp4:fp8_block \
            mxfp4:int8_channel; do
            quantize_row "$level" "$threads" "${pair%:*}" "${pair#*:}"
        done
    done
    title "repack --quantize mxfp4 of BF16 experts, GB/s of input"
    synth bf16 --family qwen3_moe --format bf16 --hidden 4096 --intermediate 2048 --experts 64 \
        --layers 1 --top-k 8
    show "$moepack" repack "$work/bf16" -j "$threads" --target megamoe-w4a8 --ep 4 \
        --quantize mxfp4 -o "$work/out"
    for _ in 1 2 3 4 5; do
        rm -rf "$work/out"
        take "$moepack" repack "$work/bf16" -q -j "$threads" --target megamoe-w4a8 --ep 4 \
            --quantize mxfp4 -o "$work/out"
        walls+=("$wall")
    done
    seconds=$(median "${walls[@]}")
    bytes=$(bytes_of "$work/bf16")
    printf '   %.2f GB in %.3f s: %.2f GB/s; processors are busy for %.0f %%; RSS %.0f MiB\n' \
        "$(calc %.4f "$bytes / 1e9")" "$seconds" "$(calc %.4f "$bytes / 1e9 / $seconds")" \
        "$(calc %.2f "100 * ($user + $system) / ($wall * $threads)")" "$(calc %.2f "$rss / 1024")"
    bytes=$(expert_bytes "$work/bf16")
    written=$(bytes_of "$work/out")
    kernel "$threads" mxfp4_loss_bf16
    loss=$rate
    kernel "$threads" requantize:bf16:mxfp4
    # The loss kernel reads codes and scales besides, in the ratio that the other writes them.
    bound "repack --quantize mxfp4" "$threads" "$seconds" "$bytes" pread="$bytes" \
        pwrite="$written" digest="$written" \
        kernel="$(calc %.5f "$bytes / 1e9 * (1 / $rate + (1 + $ratio) / $loss)")"
    rm -rf "$work/bf16" "$work/out"
}

section_memory()
{
    local layers

    title "memory of repack, for few layers and many"
    for layers in 2 12; do
        synth layers --preset deepseek-v4-flash --layers "$layers" --experts 8 --mtp 0
        show "$moepack" repack "$work/layers" -j "$threads" --target megamoe-w4a8 --ep 4 \
            -o "$work/out"
        take "$moepack" repack "$work/layers" -q -j "$threads" --target megamoe-w4a8 --ep 4 \
            -o "$work/out"
        printf '   %2d layers, %.2f GB: largest RSS %.0f MiB\n' "$layers" \
            "$(calc %.4f "$(bytes_of "$work/layers") / 1e9")" "$(calc %.2f "$rss / 1024")"
        rm -rf "$work/layers" "$work/out"
    done
}

section_inspect()
{
    local walls=() bytes

    title "inspect of a checkpoint of 140,544 tensors, V4 Pro's"
    mkdir "$work/sparse"
    show "$build/bench/sparse" "$work/sparse"
    "$build/bench/sparse" "$work/sparse"
    show "$moepack" inspect "$work/sparse"
    for _ in 1 2 3 4 5; do
        take "$moepack" inspect -q -j "$threads" "$work/sparse"
        walls+=("$wall")
    done
    printf '   %.3f s, largest RSS %.0f MiB\n' "$(median "${walls[@]}")" "$(calc %.2f "$rss / 1024")"
    # Reading headers is all that has a ceiling here; the rest is parsing and sorting names.
    bytes=$(for file in "$work"/sparse/*.safetensors; do
        od -An -N 8 -t u8 "$file"
    done | awk '{ n += $1 } END { print n }')
    bound "headers, read" "$threads" "$(median "${walls[@]}")" "$bytes" pread="$bytes"
    rm -rf "$work/sparse"
}

section_targets()
{
    local target format

    title "repack of 16 experts that pass through, beside cp -r of the pack"
    printf '   %-18s %8s %10s\n' target GB/s of-cp
    while read -r target format; do
        local walls=() copies=() bytes

        quietly "$moepack" synth --family qwen3_moe --format "$format" --hidden 4096 -q \
            --intermediate 2048 --experts 16 --layers 1 --top-k 2 -o "$work/source"
        for _ in 1 2 3 4 5; do
            rm -rf "$work/out" "$work/copy"
            take "$moepack" repack "$work/source" -q -j "$threads" --target "$target" --ep 4 \
                -o "$work/out"
            walls+=("$wall")
            take cp -r "$work/out" "$work/copy"
            copies+=("$wall")
        done
        bytes=$(du -sb "$work/out" | cut -f 1)
        printf '   %-18s %8s %10s\n' "$target" "$(calc %.2f "$bytes / $(median "${walls[@]}") / 1e9")" \
            "$(calc %.2f "$(median "${copies[@]}") / $(median "${walls[@]}")")"
        bound "$target" "$threads" "$(median "${walls[@]}")" "$bytes" pread="$bytes" \
            pwrite="$bytes" digest="$bytes" kernel="$(layout_seconds "$threads" "$target" "$bytes")"
        rm -rf "$work/source" "$work/out" "$work/copy"
    done < <("$moepack" targets --json | jq -r '.[] | "\(.name) \(.source_schemes[0])"')
}

# Made-up weights in the form that the family has, fused as rows or transposed, packed in turn.
section_transposed()
{
    local name family hidden intermediate experts bytes turned first run="$moepack repack"
    local options="-q -j 1 --target megamoe-bf16 --ep 1 -o $work/out"

    title "repack of transposed experts (Qwen3-VL, Llama 4) beside fused rows, one thread"
    while read -r family hidden intermediate experts; do
        for name in qwen3_5_moe "$family"; do
            quietly "$moepack" synth --family "$name" --format bf16 --hidden "$hidden" -q \
                --intermediate "$intermediate" --experts "$experts" --layers 1 --top-k 1 \
                -o "$work/$name"
        done
        versus "${hidden}x$intermediate transposed" "$(bytes_of "$work/$family")" \
            "rm -rf $work/out; $run $work/$family $options" \
            "rows" "rm -rf $work/out; $run $work/qwen3_5_moe $options"
        bytes=$(bytes_of "$work/out")
        turned=$("$build/bench/ceilings" 1 transpose)
        bound "${hidden}x$intermediate transposed" 1 "$first" "$bytes" pread="$bytes" \
            pwrite="$bytes" digest="$bytes" \
            kernel="$(calc %.5f "$bytes / 1e9 / $turned + $(layout_seconds 1 megamoe-bf16 "$bytes")")"
        rm -rf "${work:?}/qwen3_5_moe" "${work:?}/$family" "${work:?}/out"
    done <<END
qwen3_vl_moe 2048 768 32
llama4 5120 2048 8
llama4 5120 8192 2
END
}

section_forward()
{
    local n forward sgemm large operations peak

    title "forward of a layer, 512 tokens, w4a8, GFLOP/s"
    show "$build/bench/forward THREADS"
    printf '   %7s %9s %11s %9s %13s\n' threads forward "sgemm same" of-it "sgemm large"
    for n in 1 "$threads"; do
        read -r forward sgemm large < <("$build/bench/forward" "$n")
        printf '   %7d %9s %11s %9s %13s\n' "$n" "$forward" "$sgemm" \
            "$(calc %.2f "$forward / $sgemm")" "$large"
        # 512 tokens with 6 of 256 experts, all of whose codes and scales have to be loaded.
        peak=$(printf '%s\n' "$large" "$("$build/bench/ceilings" "$n" multiply)" | sort -g | tail -n 1)
        operations=$(calc %.0f "512 * 6 * 6 * 4096 * 2048")
        bound "forward, operations" "$n" "$(calc %.5f "$operations / 1e9 / $forward")" "$operations" \
            load="$(calc %.0f "256 * 3 * 4096 * 2048 * (1 / 2 + 1 / 32)")" \
            kernel="$(calc %.5f "$operations / 1e9 / $peak")"
    done
}

section_placement()
{
    title "placements: gap to the bound, seconds of one processor"
    show "$build/bench/eplb"
    "$build/bench/eplb" | sed 's/^/   /'
}

# least NUMBER...
least()
{
    printf '%s\n' "$@" | sort -g | head -n 1
}

# versus WHAT BYTES FIRST BASELINE SECOND: seven runs of two shell commands in turn; prints the
# best of each as speeds, and the ratios of these and of the least processor time. Sets slower, how
# many times as long the first takes, first, its seconds, and baseline, the second's processor time.
versus()
{
    local a=() b=() busy_a=() busy_b=() second

    for _ in 1 2 3 4 5 6 7; do
        take bash -c "$3"
        a+=("$wall")
        busy_a+=("$(calc %.4f "$user + $system")")
        take bash -c "$5"
        b+=("$wall")
        busy_b+=("$(calc %.4f "$user + $system")")
    done
    first=$(least "${a[@]}")
    second=$(least "${b[@]}")
    printf '   %s %.2f GB/s, %s %.2f GB/s: %.2f of it; processor time %.2f of its\n' "$1" \
        "$(calc %.4f "$2 / 1e9 / $first")" "$4" "$(calc %.4f "$2 / 1e9 / $second")" \
        "$(calc %.4f "$second / $first")" \
        "$(calc %.4f "$(least "${busy_a[@]}") / $(least "${busy_b[@]}")")"
    slower=$(calc %.4f "$first / $second")
    baseline=$(least "${busy_b[@]}")
}

section_zstd()
{
    local bytes stored plain first slower baseline there back run="$moepack" quiet="-q -j $threads"

    title "compressed shards of BF16, beside the zstd program, best of seven"
    synth bf16 --family qwen3_moe --format bf16 --hidden 4096 --intermediate 2048 --experts 16 \
        --layers 1 --top-k 8
    plain=$(echo "$work"/bf16/*.safetensors)
    bytes=$(stat -c %s "$plain")
    zstd -q -1 "$plain" -o "$work/one.zst"
    versus compress "$bytes" "rm -rf $work/out; $run compress $work/bf16 $quiet -o $work/out" \
        "zstd -T$threads -1" "zstd -qf -T$threads -1 $plain -o $work/two.zst"
    printf '   %.1f %% of the plain bytes, zstd -1 %.1f %%\n' \
        "$(calc %.4f "100 * $(stat -c %s "$work"/out/*.zst) / $bytes")" \
        "$(calc %.4f "100 * $(stat -c %s "$work/one.zst") / $bytes")"
    stored=$(stat -c %s "$work"/out/*.zst)
    read -r there back < <("$build/bench/ceilings" "$threads" zstd "$plain")
    bound compress "$threads" "$first" "$bytes" pread="$bytes" pwrite="$stored" \
        kernel="$(calc %.5f "$bytes / 1e9 / $there")"
    versus decompress "$bytes" "rm -rf $work/back; $run decompress $work/out $quiet -o $work/back" \
        "zstd -T$threads -dc" "zstd -T$threads -dcq $work/one.zst >$work/two"
    back=$(calc %.5f "$bytes / 1e9 / $back")
    bound decompress "$threads" "$first" "$bytes" pread="$stored" pwrite="$bytes" kernel="$back"
    rm -rf "$work/back" "$work/two.zst" "$work/two"
    quietly "$moepack" repack "$work/out" -q -j "$threads" -t deepep-bf16 --ep 4 --zstd -o "$work/pack"
    versus "verify of a pack" "$bytes" "$run verify $work/pack $quiet" \
        "zstd -T$threads -dc to nowhere" "zstd -T$threads -dcq $work/one.zst >/dev/null"
    bound "verify of a pack" "$threads" "$first" "$bytes" pread="$stored" digest="$bytes" kernel="$back"
    rm -rf "$work/one.zst" "$work/pack"
    versus "repack of compressed" "$bytes" \
        "rm -rf $work/a; $run repack $work/out $quiet -t deepep-bf16 --ep 4 -o $work/a" \
        "of plain" "rm -rf $work/a; $run repack $work/bf16 $quiet -t deepep-bf16 --ep 4 -o $work/a"
    bound "repack of compressed" "$threads" "$first" "$bytes" pread="$stored" pwrite="$bytes" \
        digest="$bytes" kernel="$back"
    rm -rf "$work/bf16" "$work/out" "$work/a"

    title "repack of V4 FP4 experts with --zstd"
    synth v4 --preset deepseek-v4-flash --layers 1 --experts 64 --mtp 0
    bytes=$(bytes_of "$work/v4")
    versus "repack --zstd" "$bytes" \
        "rm -rf $work/a; $run repack $work/v4 $quiet -t megamoe-w4a8 --ep 4 --zstd -o $work/a" \
        "without" "rm -rf $work/b; $run repack $work/v4 $quiet -t megamoe-w4a8 --ep 4 -o $work/b"
    printf '   %.2f times as long as without\n' "$slower"
    # What frames cannot do without: their checksums, and the codes of scales that shrink.
    take xxhsum -q -H1 "$work"/b/rank-*/*.safetensors
    printf '   checksums alone, by xxhsum -H1: %.2f of its processor time\n' \
        "$(calc %.4f "$user / $baseline")"
    rm -rf "$work/v4" "$work/a" "$work/b"
}

# change FILE...: low bits of 2 % of the BF16 weights, with differences of both signs.
change()
{
    "$build/bench/change" 50 "$@"
}

# timed TIMES COMMAND: the shortest of so many runs, in seconds; the command is one of this shell.
timed()
{
    local n=$1 least=1000000 begin end

    shift
    for _ in $(seq "$n"); do
        begin=$(date +%s.%N)
        eval "$*"
        end=$(date +%s.%N)
        least=$(calc %.4f "$end - $begin < $least ? $end - $begin : $least")
    done
    echo "$least"
}

# beside NAME SECONDS OTHER SECONDS BYTES: a line of two times.
beside()
{
    printf '   %-16s %.3f s, %.2f GB/s; %s %.3f s: %.2f of it\n' "$1" "$2" \
        "$(calc %.4f "$5 / 1e9 / $2")" "$3" "$4" "$(calc %.4f "$4 / $2")"
}

section_delta()
{
    local old=$work/old new=$work/new file bytes stored delta compared applied copied target fresh
    local updated written
    local run="$moepack" quiet="-q -j $threads"

    title "deltas of two versions in BF16, 2 % of the weights changed"
    synth old --preset qwen3-30b-a3b --layers 1 --experts 128 --format bf16
    cp -r "$old" "$new"
    change "$new"/*.safetensors
    bytes=$(bytes_of "$old")
    file=$(cd "$old" && ls ./*.safetensors)
    cp -r "$old" "$work/same"
    delta=$(timed 3 "rm -rf $work/d; $run delta $old $new $quiet -o $work/d --version 1")
    compared=$(timed 3 "cmp $old/$file $work/same/$file")
    show "$run" delta "$old" "$new" --version 1 -o "$work/d"
    beside delta "$delta" "cmp of the same" "$compared" "$bytes"
    stored=$(bytes_of "$work/d")
    printf '   %.2f %% of the bytes are stored\n' "$(calc %.4f "100 * $stored / $bytes")"
    bound delta "$threads" "$delta" "$bytes" pread="$(calc %.0f "2 * $bytes")" pwrite="$stored" \
        digest="$bytes"
    rm -rf "$work/same"
    applied=$(timed 3 "rm -rf $work/a; $run apply $old $work/d $quiet -o $work/a")
    cmp "$work/a/$file" "$new/$file"
    rm -rf "$work/a"
    copied=$(timed 3 "rm -rf $work/a; cp -r $old $work/a")
    show "$run" apply "$old" "$work/d" -o "$work/a"
    beside apply "$applied" "cp -r" "$copied" "$bytes"
    bound apply "$threads" "$applied" "$bytes" pread="$(calc %.0f "$bytes + $stored")" \
        pwrite="$bytes" digest="$bytes"
    rm -rf "$work/a" "$work/d" "$new"

    title "repack --update, 5 % of the experts changed, beside a fresh repack"
    for target in "deepep-bf16 --ep 8" "fuseep-1 --ep 8 --quantize int8_channel"; do
        cp -r "$old" "$new"
        "$build/bench/change" 50 -n 6 "$new"/*.safetensors
        quietly "$run" delta "$old" "$new" -q -o "$work/d" --version 1
        # shellcheck disable=SC2086
        quietly "$run" repack "$old" -q -t $target -o "$work/p"
        fresh=$(timed 3 "rm -rf $work/f; $run repack $new $quiet -t $target -o $work/f")
        rm -rf "$work/f"
        updated=$(timed 3 "rm -rf $work/u; $run repack --update $work/p --delta $work/d --source $new $quiet -o $work/u")
        show "$run" repack --update "$work/p" --delta "$work/d" --source "$new" -o "$work/u"
        written=$(bytes_of "$work/u")
        beside "${target%% *}" "$updated" "fresh" "$fresh" "$written"
        # Digests of tensors that did not change are known; tensors hold all experts of a rank, and
        # the few that changed may lie in any of them, so none counts.
        bound "update, ${target%% *}" "$threads" "$updated" "$written" pread="$written" pwrite="$written"
        rm -rf "$work/p" "$work/u" "$work/d" "$new"
    done
    rm -rf "$old"
}

# cold_repacks THREADS SHARD: repacks a checkpoint that is not in memory, five times with each of the
# modes of reading in turn, and prints the best of each.
cold_repacks()
{
    local mode bytes kernel rate
    local -A seconds=() processor=() resident=()

    for _ in 1 2 3 4 5; do
        for mode in "${modes[@]}"; do
            rm -rf "$work/out"
            "$build/bench/ceilings" 1 forget "$2"
            take "$moepack" repack "${2%/*}" -q -j "$1" --target megamoe-w4a8 --ep 4 --io "$mode" \
                -o "$work/out"
            seconds[$mode]=$(least "$wall" "${seconds[$mode]:-$wall}")
            processor[$mode]=$(least "$(calc %.3f "$user + $system")" "${processor[$mode]:-1000}")
            resident[$mode]=$((rss > ${resident[$mode]:-0} ? rss : ${resident[$mode]:-0}))
        done
    done
    bytes=$(expert_bytes "${2%/*}")
    kernel=$(layout_seconds "$1" megamoe-w4a8 "$bytes")
    # Of two threads, for one may not be enough for the disk.
    ceiling[$1 disk]=$("$build/bench/ceilings" 2 disk "$2")
    for mode in "${modes[@]}"; do
        rate=$(calc %.2f "$bytes / 1e9 / ${seconds[$mode]}")
        printf '   %7d %-10s %8s %14.2f %10.0f\n' "$1" "$mode" "$rate" "${processor[$mode]}" \
            "$(calc %.2f "${resident[$mode]} / 1024")"
        bound "from a disk, $mode" "$1" "${seconds[$mode]}" "$bytes" disk="$bytes" pread="$bytes" \
            pwrite="$bytes" digest="$bytes" kernel="$kernel"
    done
}

# On the disk of BENCH_DISK, a directory, or of the build; what is packed goes to memory.
section_storage()
{
    local n disk modes=(buffered direct)

    disk=$(mktemp -d "${BENCH_DISK:-$build}/moepack-bench-XXXXXX")
    scratch+=("$disk")
    title "repack of V4 FP4 experts from a disk, each way of reading (--io)"
    quietly "$moepack" synth --preset deepseek-v4-flash --layers 1 --experts 64 --mtp 0 \
        -j "$threads" -q -o "$disk/v4"
    sync "$disk"/v4/*
    printf '   in %s (%s)\n' "${BENCH_DISK:-$build}" "$(stat -f -c %T "$disk")"
    if ! "$moepack" repack "$disk/v4" -q -n -t megamoe-w4a8 --ep 4 --io direct \
        >/dev/null 2>"$work/log"; then
        sed 's/^/   /' "$work/log"
        modes=(buffered)
    fi
    printf '   %7s %-10s %8s %14s %10s\n' threads --io GB/s "processor (s)" "RSS (MiB)"
    for n in 1 "$threads"; do
        cold_repacks "$n" "$(echo "$disk"/v4/*.safetensors)"
    done
    rm -rf "$disk" "$work/out"
}

section_kernels()
{
    title "kernels on one thread, data in the cache"
    show "$moepack" bench
    "$moepack" bench | sed 's/^/   /'
}

printf "moepack %s, %s processors, load %s, files in %s (\$D)\n" \
    "$("$moepack" --version | sed 's/^moepack //')" "$(nproc)" "$(cut -d ' ' -f 1 /proc/loadavg)" \
    "$root"
sed -n 's/^model name[[:space:]]*: /   /p' /proc/cpuinfo | head -n 1
for section in "${@:-copy targets transposed quantize memory inspect forward placement zstd delta storage kernels}"; do
    for name in $section; do
        "section_$name"
        show_bounds
    done
done
show_ceilings
printf '\nload %s\n' "$(cut -d ' ' -f 1 /proc/loadavg)"
