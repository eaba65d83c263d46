#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# unpack: from a pack back to the checkpoint that it was made from.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

fixtures=$ROOT/testdata/fixtures

fail_io=$WORK/fail_io.so
"${CC:-gcc}" -D_GNU_SOURCE -O1 -fPIC -shared -o "$fail_io" "$ROOT/tests/cli/fail_io.c" -ldl || exit 1

# Prints a line for every tensor of a directory: name, type, shape and digest of its bytes.
tensors()
{
    local file length name dtype shape first end

    for file in "$1"/*.safetensors; do
        length=$(od -An -tu8 -N8 "$file")
        tail -c +9 "$file" | head -c $((length)) |
            jq -r 'del(.__metadata__) | to_entries[] | [.key, .value.dtype,
                (.value.shape | tojson), .value.data_offsets[]] | @tsv' |
            while read -r name dtype shape first end; do
                echo "$name $dtype $shape $(tail -c +$((9 + length + first)) "$file" |
                    head -c $((end - first)) | sha256sum)"
            done
    done
}

# assert_back FIXTURE PATTERN: ./back has the tensors of the fixture whose line fits, and no
# others.
assert_back()
{
    tensors "$fixtures/$1" | grep -E "$2" | sort >"$WORK/wanted"
    tensors back | sort >"$WORK/found"
    [ -s "$WORK/wanted" ]
    assert $? "no tensor of $1 fits $2"
    assert_equal "$(diff "$WORK/wanted" "$WORK/found" | head)" ''
}

# back FIXTURE PATTERN FLAG...: packs and unpacks it.
back()
{
    run moepack repack "$fixtures/$1" -o packed -q "${@:3}"
    assert_status 0
    run moepack unpack packed -o back -q
    assert_status 0
    assert_back "$1" "$2"
}

routed='\.experts\.'
any='experts\.'

it "gives DeepSeek V4 back"
back v4-fp4 "$routed" --target megamoe-w4a8 --ep 2 --placement "$fixtures/v4-fp4/placement.json"
run cmp back/config.json "$fixtures/v4-fp4/config.json"
assert_status 0
run cat back/moepack-unpack.json
assert_stdout_has '"target": "megamoe-w4a8"'
assert_stdout_has '"mtp.0"'

it "gives shared experts back that stay apart"
back v4-fp4 "$any" --target megamoe-w4a4 --ep 5 --shared separate
run moepack inspect back
assert_status 0
run moepack repack back -o again --target megamoe-w4a4 --ep 5 --shared separate -q
assert_status 0
run diff -r -x moepack.json packed again
assert_status 0

it "gives BF16, int8 and stacked experts back"
back qwen3-bf16 "$routed" --target megamoe-bf16 --ep 1
rm -rf packed back
back qwen35-fused-a "$routed" --target deepep-bf16 --ep 1
rm -rf packed back
back qwen3vl-fused-b "$routed" --target deepep-bf16 --ep 1
rm -rf packed back
back gptoss-bf16-fused-c '\.experts\..*_proj BF16' --target deepep-bf16 --ep 1 --drop bias
rm -rf packed back
back ct-int8 "$routed" --target fuseep-2 --nz --ep 1
rm -rf packed back
back modelslim-w8a8 "$routed" --target fuseep-1 --ep 1

it "gives requantized experts back as they are now"
moepack repack "$fixtures/v4-base-fp8" -o packed -q --target megamoe-bf16 --ep 1 --quantize bf16
run moepack unpack packed -o back -q
assert_status 0
run moepack repack back -o again -q --target megamoe-bf16 --ep 1
assert_status 0
run diff -r packed/rank-000 again/rank-000
assert_status 0

it "says what it did"
moepack repack "$fixtures/qwen3-bf16" -o packed -q --target deepep-bf16 --ep 1
run moepack unpack packed -o back
assert_status 0
assert_stdout ''
assert_stderr_has 'moepack: unpack: back: 1 file, '

it "prints the plan and writes nothing"
moepack repack "$fixtures/qwen3-bf16" -o packed -q --target deepep-bf16 --ep 1
run moepack unpack packed -n
assert_status 0
assert_stdout_has 'model-00001-of-00001.safetensors  12 tensors'
run moepack unpack packed -n --json
assert_status 0
assert_stdout_has '"units": '
assert_equal "$(ls)" packed

it "warns of what is not in the pack"
moepack repack "$fixtures/v4-fp4" -o packed -q --target megamoe-w4a8 --ep 1 --layers 0
run moepack unpack packed -o back
assert_status 0
assert_stderr_has 'moepack: unpack: warning: 1 of the model'
assert_stderr_has 'moepack: unpack: warning: the pack has no shared experts'
run moepack inspect back
assert_status 0
assert_stderr_is </dev/null
run moepack repack back -o again -q --target megamoe-w4a8 --ep 1 --layers 0
assert_status 0
diff -r packed/rank-000 again/rank-000
assert $? "the pack of what was unpacked is another"

it "takes part of a pack"
moepack repack "$fixtures/v4-fp4" -o packed -q --target megamoe-w4a8 --ep 1
run moepack unpack packed -o back -q --layers mtp.0
assert_status 0
assert_back v4-fp4 "^mtp.0.*$routed"
run moepack unpack packed -o other -q --layers 7
assert_status 2

it "needs every expert somewhere"
moepack repack "$fixtures/v4-fp4" -o packed -q --target megamoe-w4a8 --ep 5
rm -r packed/rank-002
run moepack unpack packed -o back
assert_status 3
assert_stderr_has 'moepack: unpack: layers.0: expert 2 is on no rank that is present (4 of 5 are)'

it "refuses what is no pack"
mkdir empty
run moepack unpack empty -o back
assert_status 3
assert_stderr_is 'moepack: unpack: "empty" is not a pack: it has no moepack.json'
run moepack unpack empty -o back --layers 0
assert_status 3
run moepack unpack
assert_status 2
run moepack unpack empty
assert_status 2

it "goes on after being killed at any write"
moepack repack "$fixtures/v4-fp4" -o packed -q --target megamoe-w4a8 --ep 1 --shared separate
moepack unpack packed -o wanted -q --max-shard-size 100kB
for n in 1 7 30 60 90; do
    {
        run env LD_PRELOAD="$fail_io" FAIL_CALL=pwrite FAIL_AT=$n FAIL_WITH=SIGKILL \
            "$MOEPACK" unpack packed -o back -q -j1 --max-shard-size 100kB
    } 2>/dev/null
    assert_status 137
    run moepack unpack packed -o back -q --resume --max-shard-size 100kB
    assert_status 0
    assert_equal "$(diff -r wanted back 2>&1)" ''
    rm -rf back
done

it "goes on after SIGTERM, and not with other options"
moepack repack "$fixtures/v4-fp4" -o packed -q --target megamoe-w4a8 --ep 1
run env LD_PRELOAD="$fail_io" FAIL_CALL=pwrite FAIL_AT=20 FAIL_TIMES=1 FAIL_WITH=SIGTERM \
    "$MOEPACK" unpack packed -o back -q -j1
assert_status 143
assert_stderr_is 'moepack: unpack: interrupted: --resume continues back.partial'
run moepack unpack packed -o back -q
assert_status 2
run moepack unpack packed -o back -q --resume --layers 0
assert_status 3
assert_stderr_has 'the interrupted run had "layers all", this one has "layers '
run moepack unpack packed -o back -q --resume -j3
assert_status 0
assert_back v4-fp4 "$routed"
run moepack unpack packed -o back -q --resume
assert_status 0

it "replaces only what it wrote"
moepack repack "$fixtures/v4-fp4" -o packed -q --target megamoe-w4a8 --ep 1
run moepack unpack packed -o packed -q --force
assert_status 2
assert_stderr_has 'is not an unpacked checkpoint: not replaced'
moepack unpack packed -o back -q
run moepack unpack packed -o back -q
assert_status 2
run moepack unpack packed -o back -q --force
assert_status 0
assert_back v4-fp4 "$routed"

finish
