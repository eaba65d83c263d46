# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# A Slurm of this machine alone: munged, slurmctld and slurmd of Debian, with a configuration, a
# key, sockets and ports of their own, in a temporary directory. start_slurm starts them,
# stop_slurm ends them; the commands of Slurm find them by $SLURM_CONF.
#
# Needs root, since slurmd does.

slurm_pids=()

# A TCP port that nobody listens on.
free_port()
{
    local port

    while :; do
        port=$((20000 + RANDOM % 20000))
        ! (: </dev/tcp/127.0.0.1/$port) 2>/dev/null && break
    done
    echo $port
}

# until_true SECONDS COMMAND...: whether the command comes to do well.
until_true()
{
    local end=$((SECONDS + $1))

    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.2
    done
}

# start_slurm DIR CPUS
start_slurm()
{
    local dir=$1 host

    host=$(hostname -s)
    mkdir -p "$dir/state" "$dir/spool"
    chmod 711 "$dir"
    head -c 1024 /dev/urandom >"$dir/munge.key"
    chmod 400 "$dir/munge.key"
    cat >"$dir/slurm.conf" <<END
ClusterName=moepack
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CryptoType=crypto/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
JobRequeue=1
KillWait=2
MpiDefault=none
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=10 State=UP
END
    export SLURM_CONF=$dir/slurm.conf
    # Where the directory lies is not what munged is here to judge.
    munged --foreground --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" \
        --pid-file="$dir/munge.pid" --seed-file="$dir/munge.seed" --log-file="$dir/munge.log" \
        --num-threads=2 >"$dir/munged.out" 2>&1 &
    slurm_pids+=($!)
    until_true 10 test -S "$dir/munge.socket" || return 1
    # Not in the caller's directory, which may go while they are there.
    (cd / && exec slurmctld -D -i -f "$SLURM_CONF") >"$dir/slurmctld.out" 2>&1 &
    slurm_pids+=($!)
    (cd / && exec slurmd -D -N "$host" -f "$SLURM_CONF") >"$dir/slurmd.out" 2>&1 &
    slurm_pids+=($!)
    until_true 30 sh -c 'sinfo -h -o %T | grep -qx idle'
}

# In the order in which they depend on each other; jobs that are left are cancelled.
stop_slurm()
{
    local i

    [ -z "${SLURM_CONF-}" ] || scancel --full --state=RUNNING --user=root >/dev/null 2>&1
    for ((i = ${#slurm_pids[@]} - 1; i >= 0; i--)); do
        kill "${slurm_pids[i]}" 2>/dev/null
        wait "${slurm_pids[i]}" 2>/dev/null
    done
    slurm_pids=()
}
