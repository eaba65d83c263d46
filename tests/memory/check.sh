#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The memory that runs take: at their peak, with two threads and with more; and that they do in a
# cgroup of 256 MiB, page cache counted, what they do without. Takes 2 GB of disk and a minute.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/../cli/lib.sh"

MiB=$((1024 * 1024))

# Prints the peak of a command's resident memory, in MiB, rounded up; at least that of Python, from
# which it starts.
peak_of()
{
    python3 - "$@" <<'END'
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(-(-peak // 1024) if status == 0 else f"status {status}")
END
}

# assert_peak LIMIT COMMAND...
assert_peak()
{
    local limit=$1 peak

    shift
    peak=$(peak_of "$MOEPACK" "$@" -q)
    [ "$peak" -lt "$limit" ] 2>/dev/null
    assert $? "$peak MiB, expected less than $limit, of: $*"
    echo "# $peak MiB: $*" | sed "s|$WORK/||g"
}

# A layer in the shapes of DeepSeek-V4-Flash, half a gigabyte; and one in BF16.
moepack synth --preset deepseek-v4-flash --layers 1 --experts 40 --mtp 0 -o "$WORK/fp4" 2>/dev/null
moepack synth --preset qwen3-30b-a3b --layers 1 --experts 16 -o "$WORK/bf16" 2>/dev/null

it "takes less than 64 MiB with two threads, and a few MiB for each more"
moepack repack "$WORK/fp4" -t megamoe-w4a8 --ep 4 -o packed -q
for threads in 2:64 8:96; do
    assert_peak ${threads#*:} repack "$WORK/fp4" -t megamoe-w4a8 --ep 4 -o out -j${threads%:*}
    assert_peak ${threads#*:} repack "$WORK/fp4" -t megamoe-w4a8 --ep 4 -o direct -j${threads%:*} \
        --io direct
    rm -rf direct
    assert_peak ${threads#*:} verify packed --source "$WORK/fp4" -j${threads%:*}
    assert_peak ${threads#*:} unpack packed -o unpacked -j${threads%:*}
    for pair in fuseep-1:int8_channel fuseep-2:int8_channel megamoe-nvfp4:nvfp4 \
        megamoe-sm90-fp8:fp8_block deepep-bf16:bf16; do
        assert_peak ${threads#*:} repack "$WORK/bf16" -t ${pair%:*} --quantize ${pair#*:} --ep 2 \
            -o pair -j${threads%:*}
        rm -rf pair
    done
    assert_peak ${threads#*:} quantize "$WORK/bf16" --format nvfp4 -o quantized -j${threads%:*}
    rm -rf out unpacked quantized
done

# ---------------------------------------------------------------------------
# In a cgroup
# ---------------------------------------------------------------------------

# Makes a cgroup of version 2 or 1 with a limit of memory, $group.
make_group()
{
    local root=/sys/fs/cgroup limit=memory.max

    if [ ! -e $root/cgroup.controllers ]; then
        root=$root/memory
        limit=memory.limit_in_bytes
    fi
    group=$root/moepack-check-$$
    mkdir "$group" && echo $((256 * MiB)) >"$group/$limit"
} 2>/dev/null

# shellcheck disable=SC2317
end_all()
{
    rmdir "$group" 2>/dev/null
    cleanup
}

# How often the group has had to give memory back: the limit is one.
pressure()
{
    sed -n 's/^max //p' "$group/memory.events" 2>/dev/null || cat "$group/memory.failcnt"
}

# Runs a command inside the group.
inside()
{
    run bash -c 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"' sh "$group" "$MOEPACK" "$@" -q
}

if make_group; then
    trap end_all EXIT
    it "writes the same inside a cgroup of 256 MiB, from half a gigabyte to half a gigabyte"
    moepack repack "$WORK/fp4" -t megamoe-w4a8 --ep 4 -o packed -q
    inside repack "$WORK/fp4" -t megamoe-w4a8 --ep 4 -o out -j2
    assert_status 0
    assert_equal "$(diff -r packed out)" ''
    inside verify out --source "$WORK/fp4" -j2
    assert_status 0
    inside unpack out -o unpacked -j2
    assert_status 0
    for i in 1 2; do
        inside repack "$WORK/fp4" -t megamoe-w4a8 --ep 4 -o parts --sha256 --shard $i/2
        assert_status 0
    done
    inside finish parts
    assert_status 0
    [ "$(pressure)" -gt 0 ]
    assert $? 'the cgroup has had all the memory that it wanted'
    rm parts/SHA256SUMS
    assert_equal "$(diff -r packed parts)" ''
else
    echo '# no cgroup can be made here: whether 256 MiB do for all was not tried'
fi

finish
