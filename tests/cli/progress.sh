#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What long commands show of themselves: a bar on a terminal, a line a second elsewhere, and once
# what was done.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=tests/cli/interrupted.bash
. "$(dirname "$0")/interrupted.bash"

moepack verify "$wanted" --source "$source" -q >/dev/null || exit 1
echo '{"logical_count": [[50, 3, 7, 10, 2, 8], [9, 40, 3, 6, 11, 5]]}' >"$WORK/counts.json"
moepack quantize "$source" -o "$WORK/quantized" --format mxfp4 -q || exit 1
moepack compress "$wanted" -o "$WORK/compressed" -q || exit 1
cp -r "$wanted" "$WORK/summed"
moepack synth --family qwen3_moe --hidden 64 --intermediate 64 --experts 4 --layers 2 --top-k 2 \
    --vocab 16 -o "$WORK/step-1" -q || exit 1
for n in 2 3; do
    moepack synth --family qwen3_moe --hidden 64 --intermediate 64 --experts 4 --layers 2 --top-k 2 \
        --vocab 16 --seed "$n" -o "$WORK/step-$n" -q || exit 1
    moepack delta "$WORK/step-$((n - 1))" "$WORK/step-$n" --version "$((n - 1))" -o "$WORK/to-$n" -q || exit 1
done
moepack repack "$WORK/step-1" --target deepep-bf16 --ep 2 -o "$WORK/packed" -q || exit 1

# PHASE COMMAND ARGUMENT...: every command that reports how far it is, and its first phase.
long_commands=(
    "writing synth --family qwen3_moe --hidden 64 --intermediate 64 --experts 4 --layers 2 --top-k 2 --vocab 16 -o out"
    "writing repack $source -o out ${flags[*]}"
    "writing unpack $wanted -o out"
    "writing quantize $source --format mxfp4 -o out"
    "writing compress $wanted -o out"
    "writing decompress $WORK/compressed -o out"
    "checking verify $wanted"
    "comparing verify $WORK/quantized --source $source"
    "comparing diff $wanted $wanted"
    "comparing delta $WORK/step-1 $WORK/step-2 --version 2 -o out"
    "comparing fold $WORK/to-2 $WORK/to-3 -o out"
    "writing apply $WORK/step-1 $WORK/to-2 -o out"
    "writing repack --update $WORK/packed --delta $WORK/to-2 --source $WORK/step-2 -o out"
    "checking verify $WORK/to-2 --source $WORK/step-1"
    "hashing checksums $WORK/summed"
    "hashing checksums --check $WORK/summed"
    "balancing eplb $WORK/counts.json --ep 3 --redundant 3"
    "multiplying forward $source --layer 1 --tokens 3"
)

for line in "${long_commands[@]}"; do
    read -r phase name rest <<<"$line"
    it "says how far $name is: $phase"
    # shellcheck disable=SC2086
    run moepack $name $rest --progress always
    grep -q "^$phase  *[0-9]*%" "$stderr"
    assert $? "no line of it: $(cat "$stderr")"
    assert_equal "$(tr -cd '\r' <"$stderr" | wc -c)" 0
    rm -rf out
    # shellcheck disable=SC2086
    run moepack $name $rest --progress never
    assert_equal "$(grep -c "^$phase" "$stderr")" 0
    # shellcheck disable=SC2086
    rm -rf out && run moepack $name $rest -q
    assert_stderr_is ''
done

it "prints a line a second into a pipe, and then once what was done"
run env LD_PRELOAD="$fail_io" FAIL_CALL=pwrite FAIL_PATH=/model- FAIL_WITH=slow FAIL_TIMES=36 \
    "$MOEPACK" repack "$source" -o out "${flags[@]}" --progress always -j1
assert_status 0
assert_equal "$(grep -m 1 '^writing' "$stderr")" 'writing   3%'
lines=$(grep -c '^writing  *[0-9]*%  [0-9.]* GB/s  [0-9:]* left$' "$stderr")
seconds=$(sed -n 's/^moepack: repack: out: 9 files, .* in \([0-9]*\).*/\1/p' "$stderr")
[ "$lines" -ge 2 ] && [ "$lines" -le "$seconds" ]
assert $? "$lines lines in $seconds seconds"

# Prints what a terminal is sent by the command that follows.
on_terminal=(python3 -c 'import os, pty, sys
sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))')

it "draws one bar on a terminal, and takes it away"
run "${on_terminal[@]}" env LD_PRELOAD="$fail_io" FAIL_CALL=pwrite FAIL_PATH=/model- FAIL_WITH=slow FAIL_TIMES=5 \
    "$MOEPACK" repack "$source" -o out "${flags[@]}" -j1
assert_status 0
tr '\r' '\n' <"$stdout" >lines
assert_file_has lines 'writing   3%'
assert_file_has lines 'finishing 100%'
# Behind the bar come blanks that cover it, and then what was done.
assert_equal "$(sed -n '/finishing 100%/{n;p;}' lines | tr -d ' ')" ''
assert_equal "$(grep -c '^moepack: repack: out: 9 files' lines)" 1
run "${on_terminal[@]}" "$MOEPACK" verify "$wanted" -q
assert_equal "$(grep -c % "$stdout")" 0

finish
