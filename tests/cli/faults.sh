#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# repack on a system that fails: full disks, bad ones, interrupted calls. It says what
# failed, keeps what is done, and goes on from there.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=tests/cli/interrupted.bash
. "$(dirname "$0")/interrupted.bash"

no_space='No space left on device'
bad_disk='Input/output error'

# assert_failed TEXT...: status 4, one line of error that has all the texts, no OUT, and
# --resume leads to the pack.
assert_failed()
{
    local text

    assert_status 4
    assert_equal "$(grep -c '^moepack: repack: ' "$stderr") $(wc -l <"$stderr")" '1 1'
    for text; do
        assert_stderr_has "$text"
    done
    assert_resumable "${settings[*]}"
    rm -rf out
}

# ---------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------

it "reports a full disk wherever it strikes, and goes on when there is room"
for n in 2 14 15 30 60 120 170; do
    settings=(FAIL_CALL=pwrite "FAIL_AT=$n" FAIL_WITH=ENOSPC)
    repack_failing "${settings[@]}" --
    assert_failed 'moepack: repack: cannot write "' ' at byte ' "$no_space"
done

it "keeps what a full disk has room for"
repack_failing FAIL_CALL=pwrite FAIL_AT=150 FAIL_WITH=ENOSPC FAIL_TIMES=1 -- -j1
assert_status 4
units=$(grep -c '^unit ' out.partial/journal)
[ "$units" -gt 20 ]
assert $? "$units units of 150 calls are in the journal"
assert_resumable 'after ENOSPC'

it "reports a full disk by the name of the file"
repack_failing FAIL_CALL=pwrite FAIL_PATH=rank-002/model-00003 FAIL_WITH=ENOSPC --
assert_failed "$no_space" 'cannot write "' 'rank-002/model-00003-of-00003.safetensors" at byte 0: '
repack_failing FAIL_CALL=pwrite FAIL_PATH=rank-001/model-00001 FAIL_AT=4 FAIL_WITH=EDQUOT -- -j1
assert_failed 'Disk quota exceeded' 'rank-001/model-00001-of-00003.safetensors" at byte '
for name in journal placement.json rank-001/model.safetensors.index.json moepack.json; do
    settings=(FAIL_CALL=pwrite "FAIL_PATH=/$name" FAIL_WITH=ENOSPC)
    repack_failing "${settings[@]}" --
    assert_failed "moepack: repack: cannot write \"out.partial/$name\" at byte 0: $no_space"
done

it "reports files that cannot be made, or not at their size"
settings=(FAIL_CALL=mkdir FAIL_AT=3 FAIL_WITH=ENOSPC)
repack_failing "${settings[@]}" --
assert_failed "moepack: repack: cannot make directory \"out.partial/rank-001\": $no_space"
settings=(FAIL_CALL=ftruncate FAIL_PATH=rank-002/model-00002 FAIL_WITH=ENOSPC)
repack_failing "${settings[@]}" --
assert_failed "moepack: repack: cannot resize \"out.partial/rank-002/model-00002-of-00003.safetensors\" to " \
    "$no_space"

it "makes no OUT.partial where it may not"
repack_failing FAIL_CALL=mkdir FAIL_WITH=EACCES --
assert_status 4
assert_stderr_is 'moepack: repack: cannot make directory "out.partial": Permission denied'
assert_equal "$(ls -A)" ''

it "reports data that does not reach the disk"
for n in 1 2 10; do
    settings=(FAIL_CALL=fdatasync "FAIL_AT=$n" FAIL_WITH=EIO)
    repack_failing "${settings[@]}" -- -j1
    assert_failed "moepack: repack: cannot sync \"" "$bad_disk"
done
for name in rank-001/model-00003-of-00003.safetensors out.partial/rank-002/model.safetensors.index.json \
    out.partial/moepack.json; do
    settings=(FAIL_CALL=fdatasync "FAIL_PATH=/$name" FAIL_WITH=EIO FAIL_TIMES=1)
    repack_failing "${settings[@]}" --
    assert_failed "moepack: repack: cannot sync \"$name\": $bad_disk"
done
directory=0
for name in rank-000 rank-001 rank-002 ''; do
    # The directories of the ranks, and then the one that they are in.
    settings=(FAIL_CALL=fsync FAIL_PATH=/out.partial "FAIL_AT=$((++directory))" FAIL_WITH=EIO)
    repack_failing "${settings[@]}" --
    assert_failed "moepack: repack: cannot sync \"out.partial${name:+/$name}\": $bad_disk"
done

it "relies on no unit whose data did not reach the disk"
repack_failing FAIL_CALL=fdatasync FAIL_PATH=rank-000/model-00001 FAIL_WITH=EIO FAIL_TIMES=1 -- -j1
assert_status 4
assert_equal "$(grep -c '^unit ' out.partial/journal)" 0

it "reports that the last steps fail"
settings=(FAIL_CALL=unlink FAIL_WITH=EACCES)
repack_failing "${settings[@]}" --
assert_failed 'moepack: repack: cannot remove "out.partial/journal": Permission denied'
settings=(FAIL_CALL=rename FAIL_WITH=EIO)
repack_failing "${settings[@]}" --
assert_failed "moepack: repack: cannot rename \"out.partial\" to \"out\": $bad_disk"

it "reports that nobody knows whether the last step reached the disk"
repack_failing FAIL_CALL=fsync FAIL_AT=5 FAIL_WITH=EIO --
assert_status 4
assert_stderr_is "moepack: repack: cannot sync \".\": $bad_disk"
assert_packed 'with a sync missing'

it "keeps the old pack until the new one is whole"
moepack repack "$source" -o out --target megamoe-w4a8 --ep 1 --layers 0 --quantize mxfp4 -q
cp -r out "$WORK/old"
for settings in 'FAIL_CALL=pwrite FAIL_AT=100 FAIL_WITH=ENOSPC' \
    'FAIL_CALL=pwrite FAIL_PATH=moepack.json FAIL_WITH=ENOSPC' 'FAIL_CALL=renameat2 FAIL_WITH=SIGKILL'; do
    # shellcheck disable=SC2086
    repack_failing $settings -- --force
    diff -r out "$WORK/old"
    assert $? "the old pack suffers from $settings"
done
repack --force
assert_packed 'forced in the end'

it "replaces a pack also where directories cannot change places"
moepack repack "$source" -o out --target megamoe-w4a8 --ep 1 --layers 0 --quantize mxfp4 -q
repack_failing FAIL_CALL=renameat2 FAIL_WITH=EINVAL -- --force
assert_status 0
assert_packed 'without an exchange'

it "touches neither pack where the old one cannot be moved"
moepack repack "$source" -o out --target megamoe-w4a8 --ep 1 --layers 0 --quantize mxfp4 -q
cp -r out "$WORK/kept"
repack_failing FAIL_CALL=renameat2 FAIL_WITH=EBUSY -- --force
assert_status 4
assert_stderr_is 'moepack: repack: cannot replace "out", which is as it was; rename "out.partial", which is complete: Device or resource busy'
diff -r out "$WORK/kept"
assert $? 'the old pack is not as it was'
diff -r out.partial "$wanted"
assert $? 'the new pack is not whole'

# ---------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------

it "reports a source that cannot be read, by file and tensor, and goes on when it can"
for n in 4 5 60 90; do
    settings=(FAIL_CALL=pread FAIL_PATH=/10x3/ "FAIL_AT=$n" FAIL_WITH=EIO)
    repack_failing "${settings[@]}" -- -j1
    assert_failed "moepack: repack: model-00001-of-00001.safetensors: tensor \"model.layers." \
        'cannot read "model-00001-of-00001.safetensors" at byte ' "$bad_disk"
done

it "reports a header, an index and a configuration that cannot be read"
repack_failing FAIL_CALL=pread FAIL_PATH=/10x3/ FAIL_WITH=EIO --
assert_status 4
assert_stderr_is "moepack: repack: model-00001-of-00001.safetensors: cannot read \
\"model-00001-of-00001.safetensors\" at byte 0: $bad_disk"
for name in model.safetensors.index.json config.json; do
    repack_failing FAIL_CALL=read FAIL_PATH=/$name FAIL_WITH=EIO --
    assert_status 4
    assert_stderr_is "moepack: repack: cannot read \"$source/$name\": $bad_disk"
done
assert_equal "$(ls -A)" ''

it "reports what it has written and cannot read back"
repack_failing FAIL_WITH=SIGTERM FAIL_CALL=pwrite FAIL_AT=100 FAIL_TIMES=1 -- -j1
settings=(FAIL_CALL=pread FAIL_PATH=out.partial/rank-001 FAIL_WITH=EIO)
repack_failing "${settings[@]}" -- --resume
assert_failed 'moepack: repack: cannot read "rank-001/model-0000' "$bad_disk"

it "reports a shard that became shorter meanwhile"
cp -r "$source" shrinking
{
    LD_PRELOAD=$fail_io FAIL_CALL=pwrite FAIL_AT=40 FAIL_TIMES=1 FAIL_WITH=SIGSTOP "$MOEPACK" \
        repack shrinking -o out "${flags[@]}" -q -j1 2>"$WORK/message" &
    until_stopped $!
    truncate -s 5000000 shrinking/model-00001-of-00001.safetensors
    kill -CONT $!
    wait $!
    ended=$?
} 2>/dev/null
assert_equal "$ended" 4
assert_file_has "$WORK/message" '"model-00001-of-00001.safetensors" ends at byte '

# ---------------------------------------------------------------------------
# Calls that do less than they could
# ---------------------------------------------------------------------------

it "writes the same when every call moves only a part"
repack_failing FAIL_WITH=short --
assert_status 0
assert_packed 'short counts'

it "writes the same when every second call is interrupted"
repack_failing FAIL_CALL=read,pread,pwrite,ftruncate,fdatasync,fsync FAIL_WITH=EINTR --
assert_status 0
assert_packed 'interrupted calls'

it "resumes with calls that are short and interrupted"
repack_failing FAIL_WITH=SIGTERM FAIL_CALL=pwrite FAIL_AT=100 FAIL_TIMES=1 --
repack_failing FAIL_WITH=short FAIL_CALL=read,pread -- --resume
assert_status 0
assert_packed 'short counts'

# ---------------------------------------------------------------------------
# Threads
# ---------------------------------------------------------------------------

# Threads that a command begins beside its first.
threads_of()
{
    env LD_PRELOAD="$fail_io" FAIL_CALL=pthread_create FAIL_COUNT="$WORK/calls" \
        "$MOEPACK" "$@" >/dev/null 2>&1
    cat "$WORK/calls"
}

it "begins no thread before there is work for one"
assert_equal "$(threads_of --version)" 0
assert_equal "$(threads_of repack --help)" 0
assert_equal "$(threads_of targets)" 0
assert_equal "$(threads_of map --experts 8 --ep 2)" 0
assert_equal "$(threads_of repack "$source" "${flags[@]}" -o out -j3 --nonsense)" 0
assert_equal "$(threads_of repack "$source" "${flags[@]}" -o out -j1)" 0
[ "$(threads_of repack "$source" "${flags[@]}" -o more -j3)" -ge 2 ]
assert $? 'three threads are fewer'

finish
