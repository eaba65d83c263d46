#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# repack that is killed or interrupted at any moment goes on with --resume, to the same
# bytes; and never goes on with something else.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=tests/cli/interrupted.bash
. "$(dirname "$0")/interrupted.bash"

# Calls that a whole run makes, of those named.
count_calls()
{
    repack_failing FAIL_CALL="$1" FAIL_COUNT="$WORK/calls" -- -j1
    rm -rf out
    cat "$WORK/calls"
}

# A journal with whole units in it, as SIGTERM leaves it.
interrupt()
{
    repack_failing FAIL_CALL=pwrite FAIL_AT="$1" FAIL_TIMES=1 FAIL_WITH=SIGTERM -- "${@:2}"
    assert_status 143
}

# ---------------------------------------------------------------------------
# Killed
# ---------------------------------------------------------------------------

changes=pwrite,fdatasync,fsync,ftruncate,mkdir,unlink,rename

it "goes on after being killed at any call"
calls=$(count_calls $changes)
[ "$calls" -gt 100 ]
assert $? "only $calls calls"
# Some of those that write data, and all that end the run.
for n in 1 2 5 12 16 20 $(seq 40 40 $((calls - 25))) $(seq $((calls - 18)) "$calls"); do
    repack_failing FAIL_CALL=$changes FAIL_AT="$n" FAIL_WITH=SIGKILL -- -j1
    assert_status 137
    if [ -e out ]; then
        # The last sync was all that was missing.
        assert_equal "$n" "$calls"
    else
        repack --resume
        assert_status 0
    fi
    assert_packed "killed at call $n"
    rm -rf out
done

it "goes on after being killed at any time"
for delay in 0.000 0.006 0.012 0.018 0.024; do
    {
        "$MOEPACK" repack "$source" -o out "${flags[@]}" -q &
        sleep $delay
        kill -9 $!
        wait $!
    } 2>/dev/null
    [ -e out ] || repack --resume
    assert_status 0
    assert_packed "killed after $delay s"
    rm -rf out
done

it "goes on after being killed again and again"
interrupt 60 -j1
for n in 1 10 30; do
    repack_failing FAIL_CALL=pwrite FAIL_AT=$n FAIL_WITH=SIGKILL -- --resume
    assert_status 137
done
assert_resumable 'killed three times'

# ---------------------------------------------------------------------------
# Interrupted
# ---------------------------------------------------------------------------

for signal in SIGINT:130 SIGTERM:143; do
    it "leaves a state to go on from after ${signal%:*}"
    for n in 1 20 140; do
        repack_failing FAIL_CALL=pwrite FAIL_AT=$n FAIL_TIMES=1 FAIL_WITH=${signal%:*} --
        assert_status ${signal#*:}
        assert_stderr_is 'moepack: repack: interrupted: --resume continues out.partial'
        assert_resumable "$signal at pwrite $n"
        rm -rf out
    done
done

it "does not again what is done already"
all=$(count_calls pwrite)
interrupt 150 -j1
repack_failing FAIL_CALL=pwrite FAIL_COUNT="$WORK/calls" -- --resume -j1
assert_status 0
[ "$(cat "$WORK/calls")" -lt $((all - 80)) ]
assert $? "$(cat "$WORK/calls") calls of pwrite after 150 of $all"
assert_packed 'resumed'

it "goes on with any number of threads"
interrupt 100 -j1
repack_failing FAIL_CALL=pwrite FAIL_AT=40 FAIL_TIMES=1 FAIL_WITH=SIGTERM -- --resume -j2
assert_status 143
repack --resume -j5
assert_status 0
assert_packed 'with 1, 2 and 5 threads'

it "just runs where there is nothing to resume"
repack --resume
assert_status 0
assert_stderr_is ''
assert_packed 'not resumed at all'

it "has nothing to do where OUT is complete"
moepack repack "$source" -o out "${flags[@]}" -q
repack --resume
assert_status 0
assert_packed 'untouched'

it "takes no other OUT for its own"
moepack repack "$source" -o out "${flags[@]}" -q
run moepack repack "$source" -o out "${flags[@]}" -q --resume --layers 1
assert_status 3
assert_stderr_is 'moepack: repack: "out" is complete and was made on other terms: it has "layers 3", this run "layers 1"; replace it with --force'
assert_packed 'untouched'

it "takes an OUT for its own whatever the command was called"
moepack repack "$source" -o out "${flags[@]}" -q
edit_manifest out '.command = "a script"'
repack --resume
assert_status 0

it "takes no OUT of other terms for its own, command or none"
moepack repack "$source" -o out "${flags[@]}" -q
cp out/moepack.json made.json
while read -r change has wants; do
    cp made.json out/moepack.json
    edit_manifest out "$change | del(.command)"
    repack --resume
    assert_equal "$change: $status" "$change: 3"
    assert_stderr_is "moepack: repack: \"out\" is complete and was made on other terms: it has \"${has//_/ }\", this run \"${wants//_/ }\"; replace it with --force"
done <<'END'
.tool_version="0.0.1" tool_0.0.1 tool_0.1.0
.target="megamoe-w4a4" target_megamoe-w4a4/1 target_megamoe-w4a8/1
.shared="separate" shared_separate shared_none
.layers[0]="layers.9" layer_layers.9 layer_model.layers.0
.quantization.rounding="ocp" rounding_ocp_scale-rule_ceil_amax-floor_0 rounding_deepgemm_scale-rule_ceil_amax-floor_0
.dropped="bias" drop_bias drop_nothing
END

it "takes no OUT of another placement for its own"
# Files of one name, so that the command is the same.
echo '[0,1,2,3,4,5,6,7,8,9,0,1]' >placement.json
placed=(--target megamoe-w4a8 --ep 3 --quantize mxfp4 --placement placement.json -q)
moepack repack "$source" -o out "${placed[@]}"
cp -r out before
run moepack repack "$source" -o out "${placed[@]}" --resume
assert_status 0
echo '[0,1,2,3,4,5,6,7,8,9,1,0]' >placement.json
run moepack repack "$source" -o out "${placed[@]}" --resume
assert_status 3
assert_stderr_has 'moepack: repack: "out" is complete and was made on other terms: it has "placement 12 '
diff -r before out
assert $? 'it was touched'

it "starts anew on request"
interrupt 100
repack --force
assert_status 0
assert_packed 'anew'

# ---------------------------------------------------------------------------
# What the partial directory may look like
# ---------------------------------------------------------------------------

# Keeps out.partial as it is now, and brings it back.
keep()
{
    rm -rf "$WORK/kept"
    cp -r out.partial "$WORK/kept"
}

again()
{
    rm -rf out out.partial
    cp -r "$WORK/kept" out.partial
}

it "makes nothing of a journal's torn last line"
use 4 1
for last in unit tensor; do
    interrupt 40 -j1
    [ $last = unit ] || sed -i '/^unit/d' out.partial/journal
    assert_equal "$(tail -n 1 out.partial/journal | cut -d ' ' -f 1)" $last
    keep
    length=$(tail -n 1 out.partial/journal | wc -c)
    for cut in $(seq 1 "$length"); do
        again
        truncate -s -"$cut" out.partial/journal
        repack --resume
        assert_status 0
        assert_packed "$cut of $length bytes of a $last cut off"
    done
    rm -r out
done
use 10 3

it "makes nothing of what a journal cannot have"
interrupt 120
keep
for tail in '\0\0\0\0' 'unit 3' 'unit 3\n' 'unit 999 0x0p+0 0x0p+0 0 0 0\n' 'tensor 0 00\n' '\377\n'; do
    again
    printf '%b' "$tail" >>out.partial/journal
    repack --resume
    assert_status 0
    assert_packed "journal with $tail"
done

it "starts anew where the journal breaks off before it begins"
interrupt 120
keep
for length in 0 1 60; do
    again
    truncate -s $length out.partial/journal
    repack --resume
    assert_status 0
    assert_packed "journal of $length bytes"
done

# Damages to ./out.partial that a journal does not know of.
file=out.partial/rank-001/model-00002-of-00003.safetensors
damages=(
    "rm $file"
    "truncate -s -1 $file"
    "truncate -s 5000 $file"
    "truncate -s 0 $file"
    "truncate -s +4096 $file"
    'rm -r out.partial/rank-000'
)

it "writes files anew that were cut off or removed"
interrupt 190 -j1
keep
for damage in "${damages[@]}"; do
    again
    $damage
    assert_resumable "$damage"
done

it "writes them anew also when interrupted once more before it has"
interrupt 190 -j1
keep
for damage in "${damages[@]}"; do
    again
    $damage
    repack_failing FAIL_CALL=pwrite FAIL_AT=13 FAIL_WITH=SIGKILL -- --resume -j1
    assert_status 137
    assert_resumable "$damage, then killed"
done

# ---------------------------------------------------------------------------
# Not the same run
# ---------------------------------------------------------------------------

# refuses_to_go_on MESSAGE COMMAND...: which leaves the partial directory as it is.
refuses_to_go_on()
{
    local message=$1

    shift
    run moepack repack "$@" -o out -q --resume
    assert_status 3
    assert_stderr_has "moepack: repack: cannot resume: the interrupted run had \"$message"
    assert_stderr_has '"; start over with --force'
    diff -r out.partial "$WORK/kept"
    assert $? "the partial directory has changed"
}

it "does not go on with other flags, and names the difference"
interrupt 100 -j1
keep
common=(--target megamoe-w4a8 --redundant 2)
same=("${common[@]}" --ep 3 --quantize mxfp4)
refuses_to_go_on 'ep 3", this one has "ep 4"' \
    "$source" "${common[@]}" --ep 4 --quantize mxfp4 --max-shard-size 1MB
refuses_to_go_on 'placement 12 ' \
    "$source" --target megamoe-w4a8 --redundant 5 --ep 3 --quantize mxfp4 --max-shard-size 1MB
refuses_to_go_on 'max-shard-size 1000000", this one has "max-shard-size 2000000"' \
    "$source" "${same[@]}" --max-shard-size 2MB
refuses_to_go_on 'layers 3", this one has "layers 2"' \
    "$source" "${same[@]}" --max-shard-size 1MB --layers 0,2
refuses_to_go_on 'ranks 3", this one has "ranks 1"' \
    "$source" "${same[@]}" --max-shard-size 1MB --ranks 1
refuses_to_go_on 'quantize mxfp4 allow-nonfinite 0 ' \
    "$source" "${same[@]}" --max-shard-size 1MB --allow-nonfinite
for flag in '--rounding ocp' '--scale-rule mse' '--amax-floor 0.5'; do
    # shellcheck disable=SC2086
    refuses_to_go_on 'rounding deepgemm scale-rule ceil amax-floor 0", this one has "rounding ' "$source" "${same[@]}" --max-shard-size 1MB $flag
done
echo '{"physical_to_logical_map": [[1,0,2,3,4,5,6,7,8,9,0,1]]}' >"$WORK/placement.json"
refuses_to_go_on 'placement 12 ' "$source" --target megamoe-w4a8 --ep 3 --quantize mxfp4 \
    --max-shard-size 1MB --placement "$WORK/placement.json"
repack --resume
assert_packed 'with the flags that it had'

it "leaves nothing of a run with other flags that was all but done"
repack_failing FAIL_CALL=rename FAIL_WITH=SIGKILL --
assert_status 137
run moepack repack "$source" -o out --resume "${flags[@]}" --max-shard-size 2MB -q
assert_status 0
moepack repack "$source" -o fresh "${flags[@]}" --max-shard-size 2MB -q
diff -r out fresh
assert $? "the pack holds more than it should"

it "does not go on with another checkpoint"
interrupt 100 -j1
keep
moepack synth -o "$WORK/longer" --family qwen3_moe --hidden 384 --intermediate 256 --experts 10 \
    --layers 3 --top-k 2 --vocab 16 --max-shard-size 5MB
refuses_to_go_on 'source model-00001-of-00001.safetensors ' \
    "$WORK/longer" "${same[@]}" --max-shard-size 1MB

it "does not go on with a checkpoint of the same shapes and other weights"
interrupt 100 -j1
keep
moepack synth -o "$WORK/other" --family qwen3_moe --hidden 384 --intermediate 256 --experts 10 \
    --layers 3 --top-k 2 --vocab 16 --seed 7
refuses_to_go_on 'weights model-00001-of-00001.safetensors ' \
    "$WORK/other" "${same[@]}" --max-shard-size 1MB

# ---------------------------------------------------------------------------
# Two at once
# ---------------------------------------------------------------------------

# Starts a run, $first, that stops in the middle.
stop_in_the_middle()
{
    LD_PRELOAD=$fail_io FAIL_CALL=pwrite FAIL_AT=50 FAIL_TIMES=1 FAIL_WITH=SIGSTOP \
        "$MOEPACK" repack "$source" -o out "${flags[@]}" -q -j1 2>"$WORK/first" &
    first=$!
    until_stopped $first
}

let_it_end()
{
    kill -CONT "$first"
    wait "$first"
    assert_equal "$? $(cat "$WORK/first")" '0 '
    assert_packed 'by the first of two'
}

it "refuses a second process on the same output"
stop_in_the_middle
repack
assert_status 2
assert_stderr_has '"out.partial" exists from an interrupted run'
repack --resume
assert_status 4
assert_stderr_is 'moepack: repack: out.partial: another process is at work there'
let_it_end

it "refuses a second process that would discard the first one's work"
stop_in_the_middle
repack --force
assert_status 4
assert_stderr_is 'moepack: repack: out.partial: another process is at work there'
let_it_end

finish
