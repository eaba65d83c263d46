#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs in parts under real schedulers: a Slurm that is started for it, and GNU parallel. Parts are
# killed, and started again by the scheduler; the end is a job that depends on the others. Takes
# root, and half a minute.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/../cli/lib.sh"
# shellcheck source=tests/cli/interrupted.bash
. "$(dirname "$0")/../cli/interrupted.bash"
# shellcheck source=tests/cluster/slurm.bash
. "$(dirname "$0")/slurm.bash"

if [ "$(id -u)" -ne 0 ]; then
    echo "$0: slurmd needs root" >&2
    finished=yes
    exit 1
fi
for tool in munged slurmctld slurmd sbatch parallel; do
    if ! command -v $tool >/dev/null; then
        echo "$0: $tool is not here: apt-get install slurm-wlm munge parallel" >&2
        finished=yes
        exit 1
    fi
done

# shellcheck disable=SC2317
end_all()
{
    stop_slurm
    cleanup
}
trap end_all EXIT

# What the jobs are made of, each in a directory of its own.
export MOEPACK source fail_io
options="${flags[*]}"
export options

it "starts a Slurm of this machine"
start_slurm "$WORK/slurm" 4
assert $? "$(tail -n 20 "$WORK"/slurm/*.log "$WORK"/slurm/*.out)"

# state_of JOB: PENDING, RUNNING, COMPLETED, FAILED ...
state_of()
{
    scontrol show job "$1" | sed -n 's/^ *JobState=\([A-Z_]*\) .*/\1/p' | head -n 1
}

is_in_state()
{
    [ "$(state_of "$1")" = "$2" ]
}

# Lets a job that was requeued begin soon: Slurm would wait for two minutes. Within the second in
# which it was ended, its credential is no longer good.
hurry()
{
    until_true 20 is_in_state "$1" PENDING && scontrol update JobId="$1" StartTime=now+2
}

# The first time, task 2 is killed in the middle and asks for another try, and task 3 stops in the
# middle, to be requeued from without.
cat >"$WORK/pack.sh" <<'END'
#!/bin/bash
#SBATCH --array=1-5 --requeue --signal=B:TERM@60
echo "task $SLURM_ARRAY_TASK_ID restarts ${SLURM_RESTART_COUNT:-0}"
part="$MOEPACK repack $source -o out $options -q -j1 --shard auto"
case $SLURM_ARRAY_TASK_ID/${SLURM_RESTART_COUNT:-0} in
2/0)
    env LD_PRELOAD="$fail_io" FAIL_CALL=pwrite FAIL_AT=35 FAIL_WITH=SIGKILL $part
    [ $? = 137 ] || exit
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60
    ;;
3/0)
    env LD_PRELOAD="$fail_io" FAIL_CALL=pwrite FAIL_AT=25 FAIL_TIMES=1 FAIL_WITH=SIGSTOP $part &
    echo $! >stopped
    wait $!
    ;;
*) $part ;;
esac
END

# shellcheck disable=SC2317
has_stopped()
{
    [ -s stopped ] && grep -q '^State:.T' "/proc/$(cat stopped)/status"
}

it "packs as a Slurm array, tasks of which are killed and requeued, and finishes as a dependent job"
id=$(sbatch --parsable -o 'task-%a' --open-mode=append "$WORK/pack.sh")
end=$(sbatch --parsable --dependency="afterok:$id" -o finish --wrap "$MOEPACK finish out")
until_true 30 has_stopped
assert $? "task 3 has not stopped: $(squeue; cat task-*)"
is_in_state "$end" PENDING
assert $? 'the end has begun before the parts were done'
run moepack finish out -q
assert_status 1
assert_stderr_has 'moepack: finish: out.partial: '
scontrol requeue "${id}_3"
hurry "${id}_2"
hurry "${id}_3"
until_true 60 is_in_state "$end" COMPLETED
assert $? "$(scontrol show job "$end" | head -n 4; squeue; tail -n 3 task-* finish "$WORK"/slurm/*.log)"
for task in 1 2 3 4 5; do
    restarts=0
    [ $task != 2 ] && [ $task != 3 ] || restarts=1
    assert_equal "$(tail -n 1 task-$task)" "task $task restarts $restarts"
done
assert_equal "$(diff -r out "$wanted")" ''

it "goes on with one part alone, and finds nothing to do where the run is finished"
for i in 1 2 3; do
    sbatch --parsable --wait -o "part-$i" --wrap "$MOEPACK repack $source -o out $options -q --shard $i/3" >/dev/null
    assert_equal "$? $(cat part-$i)" '0 '
done
moepack finish out -q
id=$(sbatch --parsable --wait -o 'late-%a' --array=1-3 --wrap "$MOEPACK repack $source -o out $options -q --shard auto")
assert_equal "$?" 0
assert_equal "$(diff -r out "$wanted")" ''

it "ends a task at its time limit with a state to go on from"
cat >limited.sh <<'END'
#!/bin/bash
exec env LD_PRELOAD="$fail_io" FAIL_CALL=pwrite FAIL_AT=30 FAIL_TIMES=1 FAIL_WITH=SIGTERM \
    "$MOEPACK" repack "$source" -o out $options -q -j1 --shard auto
END
id=$(sbatch --parsable --array=4-8:2 -o 'limited-%a' limited.sh)
for task in 4 6 8; do
    until_true 30 is_in_state "${id}_$task" FAILED
    assert $? "task $task: $(state_of "${id}_$task")"
    assert_equal "$(scontrol show job "${id}_$task" | sed -n 's/.* ExitCode=\([0-9:]*\)$/\1/p')" 143:0
    assert_equal "$(cat limited-$task)" 'moepack: repack: interrupted: the same command continues out.partial'
done
for i in 1 2 3; do
    run moepack repack "$source" -o out "${flags[@]}" -q --shard $i/3
    assert_status 0
done
moepack finish out -q
assert_equal "$(diff -r out "$wanted")" ''

stop_slurm

# ---------------------------------------------------------------------------
# GNU parallel
# ---------------------------------------------------------------------------

cat >"$WORK/part.sh" <<'END'
#!/bin/bash
# The first try of part 2 is killed in the middle.
if [ "$1" = 2/6 ] && mkdir tried 2>/dev/null; then
    export LD_PRELOAD=$fail_io FAIL_CALL=pwrite FAIL_AT=30 FAIL_WITH=SIGKILL
fi
# shellcheck disable=SC2086
exec "$MOEPACK" repack "$source" -o out $options -q -j1 --shard "$1"
END

it "packs under GNU parallel, which starts a killed part again"
parallel --will-cite -j 3 --retries 3 --joblog log bash "$WORK/part.sh" {}/6 ::: $(seq 6) 2>said
assert_equal "$? $(cat said)" '0 '
[ -d tried ]
assert $? 'no part was killed'
run moepack finish out -q
assert_status 0
assert_equal "$(diff -r out "$wanted")" ''

finish
