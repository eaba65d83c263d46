#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A run that several processes share: the bytes are those of a single one, in any number of parts,
# in any order, whatever kills them; and what does not belong together is not put together.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=tests/cli/interrupted.bash
. "$(dirname "$0")/interrupted.bash"

fixtures=$ROOT/testdata/fixtures

# part I/N FLAG...
part()
{
    run moepack repack "$source" -o out "${flags[@]}" -q --shard "$@"
}

# parts N: all of them, in any order, each of which has to do well.
parts()
{
    local i

    for i in $(shuf -i "1-$1"); do
        part "$i/$1"
        assert_status 0
    done
}

assert_finished()
{
    run moepack finish out -q
    assert_status 0
    assert_stderr_is ''
    assert_packed "$1"
}

# ---------------------------------------------------------------------------
# The bytes
# ---------------------------------------------------------------------------

it "writes what a single run writes, in any number of parts and any order"
for n in 1 2 3 7 64; do
    parts $n
    assert_equal "$(ls -A)" out.partial
    assert_equal "$(find out.partial -name 'journal*' | wc -l)" $n
    assert_finished "$n parts"
    rm -r out
done

it "writes it where all parts begin at once"
for n in 2 5; do
    for i in $(seq $n); do
        "$MOEPACK" repack "$source" -o out "${flags[@]}" -q -j1 --shard "$i/$n" &
    done
    for i in $(seq $n); do
        wait -n
        assert $? 'a part failed'
    done
    assert_finished "$n at once"
    rm -r out
done

# same KIND N COMMAND...: a command that writes ./KIND, and the same in N parts.
same_in_parts()
{
    local kind=$1 n=$2 i

    shift 2
    "$MOEPACK" "$@" -o "$kind" -q >single
    for i in $(shuf -i "1-$n"); do
        run moepack "$@" -o "$kind-parts" -q --shard "$i/$n"
        assert_status 0
    done
    run moepack finish "$kind-parts/" -q
    assert_status 0
    diff "$stdout" single
    assert $? "$*: another report"
    assert_equal "$(diff -r "$kind" "$kind-parts")" ''
}

it "does so for every kind of run, with shared experts, layers, ranks, compression and sums"
same_in_parts a 3 repack "$fixtures/v4-fp4" -t megamoe-w4a8 --ep 5 --shared fused --requantize-shared
same_in_parts b 4 repack "$fixtures/v4-fp4" -t megamoe-w4a8 --ep 5 --ranks 1,3 --zstd --sha256
same_in_parts c 5 quantize "$fixtures/v4-base-fp8" --format mxfp4 --max-shard-size 200kB --sha256
same_in_parts d 2 quantize "$fixtures/qwen3-bf16" --format nvfp4 --zstd=3
same_in_parts e 3 unpack a --max-shard-size 300kB
same_in_parts f 7 unpack a --layers 0 --zstd --sha256
for sums in b c f; do
    (cd "$sums-parts" && sha256sum --quiet --strict -c SHA256SUMS)
    assert $? "$sums"
done

it "gives each part about as many bytes, and a layer to one where that is near"
moepack synth -o many --family qwen3_moe --hidden 256 --intermediate 128 --experts 6 --layers 8 \
    --top-k 2 --vocab 16
for i in 1 2 3 4; do
    moepack repack many -o out --target megamoe-bf16 --ep 2 -q --shard $i/4
done
# Eight layers are two for each, whose tensors it digests itself: two of each of two ranks.
for i in 1 2 3 4; do
    assert_equal "$(grep -c ^unit out.partial/journal-$i-of-4)" 24
    assert_equal "$(grep -c ^tensor out.partial/journal-$i-of-4)" 8
done
rm -r out.partial
for i in 1 2 3; do
    moepack repack many -o out --target megamoe-bf16 --ep 2 -q --shard $i/3
    units=$(grep -c ^unit out.partial/journal-$i-of-3)
    [ "$units" -ge 30 ] && [ "$units" -le 34 ]
    assert $? "part $i has $units units of 96"
done
run moepack finish out -q
assert_status 0
moepack repack many -o want --target megamoe-bf16 --ep 2 -q
assert_equal "$(diff -r want out)" ''

# ---------------------------------------------------------------------------
# Killed
# ---------------------------------------------------------------------------

it "goes on with a part that was killed at any time, by the same command"
for round in 1 2 3 4 5 6; do
    for i in $(shuf -i 1-3); do
        {
            run env LD_PRELOAD="$fail_io" FAIL_CALL=pwrite,fdatasync,fsync,ftruncate,mkdir \
                FAIL_AT=$((RANDOM % 60 + 1)) FAIL_WITH=SIGKILL \
                "$MOEPACK" repack "$source" -o out "${flags[@]}" -q -j1 --shard "$i/3"
        } 2>/dev/null
        assert_status 137
    done
    run moepack finish out -q
    assert_status 1
    parts 3
    assert_finished "killed, round $round"
    rm -r out
done

it "goes on with a part after SIGTERM, and does nothing twice"
run env LD_PRELOAD="$fail_io" FAIL_CALL=pwrite FAIL_AT=60 FAIL_TIMES=1 FAIL_WITH=SIGTERM \
    "$MOEPACK" repack "$source" -o out "${flags[@]}" -q -j1 --shard 2/2
assert_status 143
assert_stderr_is 'moepack: repack: interrupted: the same command continues out.partial'
before=$(grep -c ^unit out.partial/journal-2-of-2)
[ "$before" -gt 2 ]
assert $? "$before units are done"
run env LD_PRELOAD="$fail_io" FAIL_CALL=pwrite FAIL_COUNT="$WORK/calls" \
    "$MOEPACK" repack "$source" -o out "${flags[@]}" -q -j1 --shard 2/2
assert_status 0
rest=$(cat "$WORK/calls")
part 1/2
cp -r out.partial kept
run env LD_PRELOAD="$fail_io" FAIL_CALL=pwrite FAIL_COUNT="$WORK/calls" \
    "$MOEPACK" repack "$source" -o out "${flags[@]}" -q -j1 --shard 2/2
assert_status 0
[ "$(cat "$WORK/calls")" -lt "$rest" ]
assert $? "a part that is done writes as much as one that is not"
assert_equal "$(diff -r kept out.partial)" ''
rm -r kept
assert_finished 'after SIGTERM'

it "finishes after it was killed at any call, once or again and again"
calls=unlink,rename,pwrite,fsync,fdatasync,ftruncate
parts 3
cp -r out.partial "$WORK/done"
run env LD_PRELOAD="$fail_io" FAIL_CALL=$calls FAIL_COUNT="$WORK/calls" "$MOEPACK" finish out -q -j1
assert_status 0
count=$(cat "$WORK/calls")
[ "$count" -gt 30 ]
assert $? "$count calls"
rm -r out
for n in $(seq 1 4 $((count - 12))) $(seq $((count - 11)) "$count"); do
    rm -rf out out.partial
    cp -r "$WORK/done" out.partial
    for again in $n $((n / 2 + 1)); do
        [ ! -e out ] || continue
        {
            run env LD_PRELOAD="$fail_io" FAIL_CALL=$calls FAIL_AT="$again" FAIL_WITH=SIGKILL \
                "$MOEPACK" finish out -q -j1
        } 2>/dev/null
    done
    assert_finished "killed at call $n"
done

it "leaves nothing of a part that is started anew just as the run is finished"
parts 2
LD_PRELOAD=$fail_io FAIL_CALL=rename FAIL_AT=2 FAIL_TIMES=1 FAIL_WITH=SIGSTOP \
    "$MOEPACK" finish out -q &
first=$!
until_stopped $first
part 1/2
kill -CONT $first
wait $first
assert_equal $? 0
assert_packed 'a part was started anew'

it "finishes twice as well as once"
parts 2
assert_finished 'once'
assert_finished 'twice'
part 1/2
assert_status 0
assert_packed 'and a part that comes late'

# ---------------------------------------------------------------------------
# What is missing, and what does not belong together
# ---------------------------------------------------------------------------

it "names the parts that are missing"
run moepack finish out
assert_status 1
assert_stderr_is 'moepack: finish: no part has begun: there is no "out.partial"'
part 2/4
run env LD_PRELOAD="$fail_io" FAIL_CALL=pwrite FAIL_AT=40 FAIL_TIMES=1 FAIL_WITH=SIGTERM \
    "$MOEPACK" repack "$source" -o out "${flags[@]}" -q -j1 --shard 4/4
units=$(grep -c ^unit out.partial/journal-4-of-4)
run moepack finish out -q
assert_status 1
assert_stderr_is "moepack: finish: out.partial: 3 of 4 parts missing: 1 has not begun, 3 has not begun, 4 has done $units of 17 units"
[ ! -e out ]
assert $? 'OUT is there'
for i in 1 3 4; do
    part $i/4
done
assert_finished 'all there'

it "does not finish while a part is at work, and refuses a second process at it"
part 1/2
LD_PRELOAD=$fail_io FAIL_CALL=pwrite FAIL_AT=30 FAIL_TIMES=1 FAIL_WITH=SIGSTOP \
    "$MOEPACK" repack "$source" -o out "${flags[@]}" -q -j1 --shard 2/2 &
first=$!
until_stopped $first
run moepack finish out -q
assert_status 1
assert_stderr_is 'moepack: finish: out.partial: 1 of 2 parts missing: 2 is at work'
part 2/2
assert_status 4
assert_stderr_is 'moepack: repack: out.partial: another process is at work there'
repack --force
assert_status 4
kill -CONT $first
wait $first
assert_equal $? 0
assert_finished 'by both'

it "refuses parts of another run, and leaves those that are there as they are"
part 2/3
cp -r out.partial kept
part 1/3 --ep 4
assert_status 3
assert_stderr_is 'moepack: repack: out.partial: part 2 of 3 is from a run on other terms: it has "ep 3", this one has "ep 4"; remove it to start over'
part 2/3 --layers 1
assert_status 3
assert_stderr_has 'part 2 of 3 is from a run on other terms: it has "layers 3", this one has "layers 1"'
part 1/4
assert_status 2
assert_stderr_has 'moepack: repack: out.partial: holds a run in 3 parts and one in 4: remove it to start over'
repack
assert_status 2
assert_stderr_has '"out.partial" exists from an interrupted run'
repack --resume
assert_status 2
assert_stderr_has "\"out.partial\" exists from a run in 3 parts: continue them with --shard, then run 'moepack finish out'"
part 1/3 --force
assert_status 2
assert_stderr_has '--shard and --force cannot be used together: other parts may be at work'
assert_equal "$(diff -r kept out.partial)" ''
rm -r kept
repack --force
assert_status 0
assert_packed 'anew'

it "refuses a part of a run that is not in parts"
repack_failing FAIL_CALL=pwrite FAIL_AT=60 FAIL_TIMES=1 FAIL_WITH=SIGTERM -- -j1
part 1/2
assert_status 2
assert_stderr_has '"out.partial" exists from a run that is not split into parts, or is being finished'
run moepack finish out -q
assert_status 3
assert_stderr_has 'with --shard finish'
repack --shard finish
assert_status 2
assert_stderr_has '"out.partial" exists from an interrupted run that is not split into parts: --resume continues it'
assert_resumable 'all the same'

it "refuses an OUT that is there"
mkdir out
part 1/2
assert_status 2
assert_stderr_has '"out" exists and is not a pack'
rm -r out
parts 2
mv out.partial kept
repack
mv kept out.partial
run moepack finish out -q
assert_status 2
assert_stderr_has '"out" exists, and "out.partial" too: remove one of them'

it "does not make a file again that others have written to"
file=out.partial/rank-001/model-00002-of-00003.safetensors
for damage in "rm $file" "truncate -s -1 $file"; do
    part 1/2
    $damage
    part 2/2
    assert_status 3
    assert_stderr_is 'moepack: repack: out.partial: "rank-001/model-00002-of-00003.safetensors" is missing or truncated, and parts have written to it: remove the directory to start over'
    rm -r out.partial
    parts 2
    $damage
    run moepack finish out -q
    assert_status 3
    assert_stderr_has '"rank-001/model-00002-of-00003.safetensors" is missing or truncated'
    rm -r out.partial
done

# ---------------------------------------------------------------------------
# Which part
# ---------------------------------------------------------------------------

# auto VARIABLE=VALUE...: the journal that a part which a scheduler starts leaves.
auto()
{
    run env "$@" "$MOEPACK" repack "$source" -o out "${flags[@]}" -q --shard auto
}

it "takes its part from a Slurm array or an indexed Job"
while read -r name variables; do
    # shellcheck disable=SC2086
    auto $variables
    assert_status 0
    assert_equal "$(cd out.partial && echo journal*)" "$name"
    rm -rf out.partial
done <<'END'
journal-1-of-3 SLURM_ARRAY_TASK_ID=0 SLURM_ARRAY_TASK_COUNT=3 SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_MAX=2
journal-3-of-3 SLURM_ARRAY_TASK_ID=3 SLURM_ARRAY_TASK_COUNT=3 SLURM_ARRAY_TASK_MIN=1
journal-2-of-4 SLURM_ARRAY_TASK_ID=6 SLURM_ARRAY_TASK_COUNT=4 SLURM_ARRAY_TASK_MIN=4 SLURM_ARRAY_TASK_MAX=10 SLURM_ARRAY_TASK_STEP=2
journal-1-of-5 JOB_COMPLETION_INDEX=0 JOB_COMPLETIONS=5
journal-5-of-5 JOB_COMPLETION_INDEX=4 JOB_COMPLETIONS=5
END

it "refuses what is no part"
while IFS='|' read -r variables message; do
    # shellcheck disable=SC2086
    auto $variables
    assert_equal "$variables: $status" "$variables: 2"
    assert_stderr_has "moepack: repack: --shard$message"
done <<'END'
A=1| auto: neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set
SLURM_ARRAY_TASK_ID=1| auto: SLURM_ARRAY_TASK_COUNT is not set
SLURM_ARRAY_TASK_ID=x SLURM_ARRAY_TASK_COUNT=3| auto: SLURM_ARRAY_TASK_ID is 'x', which is not a number
SLURM_ARRAY_TASK_ID=7 SLURM_ARRAY_TASK_COUNT=3 SLURM_ARRAY_TASK_MIN=1 SLURM_ARRAY_TASK_MAX=7| auto: task 7 of 3 from 1 to 7, which are not consecutive: use --array=1-3, or --shard I/N
SLURM_ARRAY_TASK_ID=5 SLURM_ARRAY_TASK_COUNT=3 SLURM_ARRAY_TASK_MIN=1|: there is no part 5 of 3
JOB_COMPLETION_INDEX=2| auto: JOB_COMPLETIONS is not set
JOB_COMPLETION_INDEX=5 JOB_COMPLETIONS=5|: there is no part 6 of 5
JOB_COMPLETION_INDEX=0 JOB_COMPLETIONS=0|: 0 parts, expected 1 to 4096
END
for text in 0/3 4/3 1/0 1/5000 1 1/ /3 1/3x a/b -1/3 ' 1/3' 1/3/3 ''; do
    run moepack repack "$source" -o out "${flags[@]}" -q --shard "$text"
    assert_equal "'$text': $status" "'$text': 2"
done
part 0/3
assert_stderr_has 'moepack: repack: --shard: parts are numbered from 1: there is no part 0'
part thirds
assert_stderr_has "moepack: repack: option --shard: 'thirds' is not I/N, auto or finish"
assert_equal "$(ls -A)" ''

# ---------------------------------------------------------------------------
# Where it is finished
# ---------------------------------------------------------------------------

it "finishes from another directory, with paths as the parts had them"
ln -s "$source" ckpt
for i in 1 2; do
    "$MOEPACK" repack ckpt -o out "${flags[@]}" -q --shard $i/2
done
mkdir elsewhere
(cd elsewhere && run moepack finish ../out -q && assert_status 0)
rm -r ckpt elsewhere
mv out/moepack.json made.json
cp "$wanted/moepack.json" out
# The manifest says what the checkpoint was called.
assert_equal "$(diff made.json out/moepack.json | grep -c '^<')" 2
rm made.json
assert_packed 'from elsewhere'

it "finishes with the command given again, where the checkpoint has moved"
cp -r "$source" "$WORK/10x3-here" && ln -s "$WORK/10x3-here" "$WORK/moved"
for i in 1 2; do
    "$MOEPACK" repack "$WORK/moved" -o out "${flags[@]}" -q --shard $i/2
done
rm "$WORK/moved"
run moepack finish out -q
assert_status 4
repack --shard finish
assert_status 0
assert_packed 'from where it is'

# ---------------------------------------------------------------------------
# Sums
# ---------------------------------------------------------------------------

it "writes the sums that sha256sum checks, also on the way, resumed or compressed"
repack --sha256
(cd out && find . -type f ! -name SHA256SUMS -printf '%P\n' | sort | xargs sha256sum) >"$WORK/sums"
assert_equal "$(diff "$WORK/sums" out/SHA256SUMS)" ''
for n in 40 150; do
    rm -r out
    repack_failing FAIL_CALL=pwrite FAIL_AT=$n FAIL_TIMES=1 FAIL_WITH=SIGTERM -- -j1 --sha256
    repack --resume --sha256
    assert_equal "$(diff "$WORK/sums" out/SHA256SUMS)" ''
done
rm out/SHA256SUMS
repack --resume --sha256
assert_status 0
assert_equal "$(diff "$WORK/sums" out/SHA256SUMS)" ''
moepack compress out -o small -q
[ ! -e small/SHA256SUMS ]
assert $? 'sums of plain files are there beside compressed ones'
run moepack checksums small
assert_status 0
(cd small && sha256sum --quiet --strict -c SHA256SUMS)
assert $? 'made later'

it "checks sums, and says what differs"
repack --sha256
run moepack checksums out --check
assert_status 0
assert_stdout 'out: all 15 files match SHA256SUMS'
run moepack verify out
assert_status 0
run moepack inspect out
assert_status 0
assert_stderr_is ''
moepack checksums out
run moepack checksums out -c --json
assert_status 0
assert_json '.ok, .files, .count' 'true
15
0'
echo >>out/config.json
rm out/rank-001/model.safetensors.index.json
echo more >out/rank-002/more
run moepack checksums out -c
assert_status 1
assert_stdout "out: config.json: SHA-256 $(sha256sum <out/config.json | cut -c -64), expected $(sed -n 's/  config.json//p' out/SHA256SUMS)
out: rank-001/model.safetensors.index.json: is not there
out: rank-002/more: is not in SHA256SUMS"
assert_stderr_is ''
run moepack checksums out -c --json
assert_status 1
assert_json '.ok, .count' 'false
3'
echo 'nonsense' >>out/SHA256SUMS
run moepack checksums out -c
assert_status 3
assert_stderr_is 'moepack: checksums: SHA256SUMS: line 16 is not a sum and a name: "nonsense"'
rm out/SHA256SUMS
run moepack checksums out -c
assert_status 4
touch out/a$'\n'b
run moepack checksums out
assert_status 3

finish
