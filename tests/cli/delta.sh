#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# delta, apply, fold, and verify of deltas, beside a writer and a reader of deltas in Python.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

fixtures=$ROOT/testdata/fixtures
index=model.safetensors.index.json

deltas()
{
    python3 "$ROOT/tests/tools/deltas.py" "$@"
}

# versions FIXTURE LAST [SHARE]: directories v0 .. vLAST, each a little different from the one
# before; LAST a number above 0.
versions()
{
    local n

    cp -rL "$fixtures/$1" v0
    chmod -R u+w v0
    for n in $(seq "$2"); do
        cp -r v$((n - 1)) "v$n"
        deltas change "v$n" "$n" "${3:-0.02}"
    done
}

same()
{
    assert_equal "$(diff -r "$1" "$2" 2>&1 | head -5)" ''
}

it "writes deltas that zstd, xxhsum, zlib and a few lines of Python make the new version of"
for source in v4-fp4 qwen3-bf16 gptoss-mxfp4; do
    versions "$source" 1
    for encoding in xor overwrite; do
        for checksum in xxh3-128 adler32; do
            run moepack delta v0 v1 -o d --version 1 --encoding $encoding --checksum $checksum -q
            assert_status 0
            assert_stderr_is ''
            assert_equal "$(jq -r '.metadata | [.version, .base_version, .delta_encoding,
                .compression_format, .checksum_format] | join(" ")' d/$index)" \
                "000001 000000 $encoding zstd $checksum"
            deltas check v0 v1 d
            assert $? "not what changed"
            run moepack apply v0 d -o a -q
            assert_status 0
            same a v1
            run moepack verify d --source v0
            assert_status 0
            run moepack verify d
            assert_status 0
            rm -rf a d
        done
    done
    rm -rf v0 v1
done

it "applies deltas that are written in Python"
versions v3-fp8 1
for encoding in xor overwrite; do
    for checksum in xxh3-128 adler32; do
        deltas write v0 v1 d 1 $encoding $checksum
        run moepack verify d --source v0
        assert_status 0
        run moepack apply v0 d -o a -q
        assert_status 0
        same a v1
        rm -rf a d
    done
done

it "writes the same bytes with any number of threads"
versions v4-fp4 1
moepack delta v0 v1 -o a --version 1 -q -j1
moepack delta v0 v1 -o b --version 1 -q -j5 --max-shard-size 5kB
moepack delta v0 v1 -o c --version 1 -q -j5
same a c
assert_equal "$(find b -name "model-*" | wc -l)" 6
for d in a b; do
    moepack apply v0 $d -o new -q -j3
    same new v1
    rm -rf new
done

it "reports what changed"
versions qwen3-bf16 1
run moepack delta v0 v1 -o d --version 7 --json
assert_status 0
assert_json 'keys' '["base_version","bytes","changed_bytes","changed_tensors","encoding","ratio","stored_bytes","tensors","version"]'
assert_json '[.version, .base_version, .tensors, .changed_tensors]' '[7,6,13,4]'
assert_stderr_has 'moepack: delta: d: version 000007 from 000006, xor: 4 of 13 tensors and '

it "has no tensors where nothing changed"
versions v4-fp4 1
run moepack delta v0 v0 -o d --version 1
assert_status 0
assert_equal "$(jq -c .weight_map d/$index)" '{}'
assert_equal "$(ls d)" "$index"
run moepack apply v0 d -o a -q
assert_status 0
same a v0
run moepack verify d --source v0
assert_status 0
assert_stdout 'ok: exact: 0 files, 0 tensors, 0 bytes'
run moepack fold d -o f -q
assert_status 0
same f d

it "tells one byte that changed, and all bytes"
versions v4-fp4 1
moepack synth -o big --family qwen3_moe --hidden 256 --intermediate 128 --experts 7 --layers 1 \
    --top-k 2 --vocab 16 -q
name=model.layers.0.mlp.experts.3.up_proj.weight
python3 "$ROOT/tests/tools/tensors.py" big/*.safetensors flip $name 0 0 # with a header of Python's
cp -r big one
python3 "$ROOT/tests/tools/tensors.py" one/*.safetensors flip $name 12345 0x40
moepack delta big one -o d --version 1 -q
assert_equal "$(jq -r '.metadata.delta_encoding + " " + (.weight_map | keys | join(" "))' d/$index)" \
    "overwrite $name"
run moepack apply big d -o a -q
same a one
cp -r one all
python3 - "$ROOT" <<'END'
import glob, sys
sys.path.insert(0, sys.argv[1] + "/tests/tools")
import tensors as files
for path in glob.glob("all/*.safetensors"):
    all_tensors, metadata = files.read(path)
    for entry in all_tensors.values():
        entry[2] = bytes(255 - b for b in entry[2])
    files.write(path, all_tensors, metadata)
END
moepack delta one all -o d2 --version 2 -q
assert_equal "$(jq -r .metadata.delta_encoding d2/$index)" xor
run moepack apply big d d2 -o b -q
assert_status 0
same b all

it "takes tensors without bytes"
python3 - "$ROOT" <<'END'
import os, sys
sys.path.insert(0, sys.argv[1] + "/tests/tools")
import tensors as files
for name, byte in (("a", 1), ("b", 2)):
    os.mkdir(name)
    files.write(name + "/model.safetensors", {"none": ["F32", [0, 3], b""], "x": ["U8", [3], bytes([byte] * 3)],
                                              "scalar": ["F32", [], b"abcd"], "no rows": ["BF16", [0], b""]})
END
for encoding in xor overwrite; do
    run moepack delta a b -o d --version 1 --encoding $encoding -q
    assert_status 0
    run moepack apply a d -o c -q
    assert_status 0
    same b c
    rm -rf c d
done

it "carries files that changed beside the shards"
versions qwen3-bf16 1
printf '{"new": true}' >v1/generation_config.json
mkdir v1/extra && echo tokens >v1/extra/tokenizer.txt
jq '.eos_token_id = 5' v0/config.json >v1/config.json
run moepack delta v0 v1 -o d --version 1 -q
assert_status 0
assert_equal "$(cd d && find . -type f | sort | tr '\n' ' ')" \
    "./config.json ./extra/tokenizer.txt ./generation_config.json ./model-00001-of-00001.safetensors ./$index "
run moepack apply v0 d -o a -q
same a v1

# ---------------------------------------------------------------------------
# Chains
# ---------------------------------------------------------------------------

it "applies a chain of 20, with full versions in between"
versions v4-fp4 20 0.005
names=()
for n in $(seq 20); do
    printf -v name 'weight_v%06d' "$n"
    names+=("$name")
    if [ "$n" = 9 ] || [ "$n" = 15 ]; then
        cp -r "v$n" "$name"
    elif [ $((n % 2)) = 0 ]; then
        moepack delta "v$((n - 1))" "v$n" -o "$name" --version "$n" -q
    else
        moepack delta "v$((n - 1))" "v$n" -o "$name" --version "$n" -q --encoding overwrite \
            --checksum adler32
    fi
done
run moepack apply v0 "${names[@]:0:8}" -o a -q
assert_status 0
same a v8
run moepack apply v0 "${names[@]}" -o b -q -j1
assert_status 0
same b v20
run moepack apply weight_v000015 "${names[@]:15}" -o c -q
assert_status 0
same c v20
run moepack apply weight_v000015 "${names[@]:16}" -o e -q
assert_status 1
assert_stderr_is <<'END'
moepack: apply: weight_v000017: changes version 000016, weight_v000015 is version 000015
END
run moepack apply v0 weight_v000001 weight_v000003 -o e -q
assert_status 1
assert_stderr_is <<'END'
moepack: apply: weight_v000003: changes version 000002, weight_v000001 is version 000001
END
run moepack apply v0 weight_v000002 -o e -q
assert_status 1
assert_stderr_is <<'END'
moepack: apply: weight_v000002: changes version 000001, v0 is version 000000
END
run moepack apply v0 weight_v000002 -o v2.new -q --base-version 1
assert_status 0
run moepack apply v4 weight_v000001 -o e -q
assert_status 1
assert_stderr_has 'moepack: apply: weight_v000001: model-00001-of-00001.safetensors: tensor "'
assert_stderr_has ': it was made from another base, or is damaged'
cp -r v16 weight_v000016.full
run moepack apply weight_v000016.full/ "${names[@]:16}" -o g -q
assert_status 0
same g v20
assert_equal "$(ls -d e e.partial 2>/dev/null)" ''

it "numbers the index of a version that has a number"
versions qwen3-bf16 1
jq '.metadata.version = "000041"' v0/$index >i && mv i v0/$index
moepack delta v0 v1 -o d --version 42 -q
assert_equal "$(jq -r .metadata.base_version d/$index)" 000041
run moepack apply v0 d -o a -q
assert_equal "$(jq -c .metadata.version a/$index)" '"000042"'

it "folds a chain to what all of it makes"
versions v3-fp8 4
for n in 1 2 3 4; do
    moepack delta "v$((n - 1))" "v$n" -o "d$n" --version "$n" -q --encoding xor
done
run moepack fold d1 d2 d3 d4 -o f -q
assert_status 0
deltas check v0 v4 f
assert $? "not what changed"
run moepack apply v0 f -o a -q
assert_status 0
same a v4
assert_equal "$(jq -r '.metadata | .version + " " + .base_version' f/$index)" '000004 000000'
moepack fold d1 d2 d3 d4 -o g -q -j1
same f g
deltas write v0 v1 p 1 xor xxh3-128
run moepack fold p d2 d3 d4 -o h -q
assert_status 0
same f h

it "leaves out of a fold what came back"
versions qwen3-bf16 1
moepack delta v0 v1 -o d1 --version 1 -q
moepack delta v1 v0 -o d2 --version 2 -q
run moepack fold d1 d2 -o f -q
assert_status 0
assert_equal "$(jq -c .weight_map f/$index)" '{}'

it "refuses to fold what cannot be"
versions qwen3-bf16 3
moepack delta v0 v1 -o d1 --version 1 -q
moepack delta v1 v2 -o d2 --version 2 -q --encoding overwrite
moepack delta v1 v2 -o d2a --version 2 -q --checksum adler32
moepack delta v2 v3 -o d3 --version 3 -q
run moepack fold d1 d2 -o f
assert_status 5
assert_stderr_is 'moepack: fold: d2: delta_encoding "overwrite" cannot be folded, "xor" can'
run moepack fold d1 d2a -o f
assert_status 5
assert_stderr_is 'moepack: fold: d2a: its checksums are adler32, those of d1 xxh3-128, and a delta has one kind'
run moepack fold d1 d3 -o f
assert_status 1
assert_stderr_is 'moepack: fold: d3: changes version 000002, d1 is version 000001'
run moepack fold d1 v2 -o f
assert_status 5
assert_stderr_is 'moepack: fold: v2: a full version cannot be folded'
assert_equal "$(ls -d f f.partial 2>/dev/null)" ''

# ---------------------------------------------------------------------------
# What is no delta
# ---------------------------------------------------------------------------

it "asks for a full version where tensors are not as they were"
versions qwen3-bf16 1
shard=v1/model.safetensors
python3 "$ROOT/tests/tools/tensors.py" $shard drop model.layers.0.mlp.gate.weight
python3 "$ROOT/tests/tools/tensors.py" $shard rename model.layers.0.mlp.experts.3.up_proj.weight other
rm v1/$index
run moepack delta v0 v1 -o d --version 1
assert_status 1
assert_stderr_is <<'END'
moepack: delta: tensor "model.layers.0.mlp.experts.3.up_proj.weight": is gone
moepack: delta: tensor "model.layers.0.mlp.gate.weight": is gone
moepack: delta: tensor "other": is new
moepack: delta: 3 of the tensors are not those of "v0" (tensor "model.layers.0.mlp.experts.3.up_proj.weight": is gone): a full version is needed
END
assert_equal "$(ls -d d d.partial 2>/dev/null)" ''
run moepack delta v0 v1 -o v0 --version 1
assert_status 2
assert_stderr_has '"v0" exists: choose another name'
run moepack delta v0 v0 -o v1 --version 1 --force
assert_status 2
assert_stderr_has 'moepack: delta: "v1" exists and is not a delta: not replaced'
run moepack delta v0 v0 -o d --version 0
assert_status 2

it "refuses versions that are published half"
versions v4-fp4 1
moepack delta v0 v1 -o d --version 1 -q
cp -r d half && rm half/$index
run moepack apply v0 half -o a
assert_status 3
assert_stderr_is "moepack: apply: half: no $index: the version is not published, its index is written last"
cp -r d less && rm less/model-*
run moepack apply v0 less -o a
assert_status 3
assert_stderr_is "moepack: apply: less: model-00001-of-00001.safetensors: the file is missing, \"$index\" names it"
run moepack verify less --source v0
assert_status 3
run moepack apply d d -o a
assert_status 2
assert_stderr_has 'moepack: apply: "d" is a delta: a chain begins with a full version'

# ---------------------------------------------------------------------------
# Malformed
# ---------------------------------------------------------------------------

# refused STATUS TEXT: apply says so of d, verify too where it is about a tensor, and nothing is left.
refused()
{
    run moepack apply v0 d -o a
    assert_status "$1"
    assert_stderr_is "moepack: apply: d: $2"
    assert_equal "$(ls -d a a.partial 2>/dev/null)" ''
}

# found STATUS TEXT: the same of the tensor x, with verify.
found()
{
    refused "$1" "model-00001-of-00001.safetensors: tensor \"x\": $2"
    run moepack verify d --source v0
    assert_status 1
    assert_stdout_is <<END
x: $2
FAILED: 1 fault
END
}

assert_stdout_is()
{
    assert_file_is "$stdout"
}

# fresh ENCODING: versions of two tensors, and their delta d.
fresh()
{
    rm -rf v0 v1 d
    python3 - "$ROOT" <<'END'
import os, sys
sys.path.insert(0, sys.argv[1] + "/tests/tools")
import tensors as files
for name, step in (("v0", 3), ("v1", 5)):
    os.mkdir(name)
    files.write(name + "/model.safetensors", {"x": ["U8", [1000], bytes(i * step % 251 for i in range(1000))],
                                              "y": ["U8", [10], bytes(range(10))]})
END
    moepack delta v0 v1 -o d --version 1 -q --encoding "$1"
}

it "names what is wrong with a stream"
fresh xor
deltas break d x short
found 3 'the stream is too short: it holds 999 bytes, the tensor 1000'
fresh xor
deltas break d x long
found 3 'the stream is too long: it continues after 1000 bytes of the tensor'
fresh xor
deltas break d x empty
found 3 'the stream is too short: it holds 0 bytes, the tensor 1000'
fresh xor
deltas break d x nothing
found 3 'the stream is too short: it holds 0 bytes, the tensor 1000'
fresh xor
deltas break d x cut
found 3 'truncated: the stream ends inside a frame'
fresh xor
deltas break d x garbage
run moepack apply v0 d -o a
assert_status 3
assert_stderr_has 'moepack: apply: d: model-00001-of-00001.safetensors: tensor "x": damaged before byte '
fresh overwrite
deltas break d x short
found 3 'the stream is too short: it ends inside its bytes'
fresh overwrite
deltas break d x long
found 3 'the stream is too long: it continues after 996 positions and their bytes'
fresh overwrite
deltas break d x descending
found 3 'position 1 is after position 2: they do not ascend'
fresh overwrite
deltas break d x outside
found 3 'position 4294967295 is outside the tensor of 1000 bytes'
fresh overwrite
deltas break d x uncounted
found 3 'the stream is too short: it ends inside its positions'
fresh overwrite
deltas break d x empty
found 3 'the stream is too short: it ends inside the count'

it "names what is wrong with what a delta says of itself"
fresh xor
deltas break d x sum
run moepack apply v0 d -o a
assert_status 1
assert_stderr_has 'moepack: apply: d: model-00001-of-00001.safetensors: tensor "x": the xxh3-128 is '
fresh xor
deltas break d x no-sum
refused 3 'model-00001-of-00001.safetensors: tensor "x": the metadata has no checksum'
fresh xor
deltas break d x not-hex
run moepack apply v0 d -o a
assert_status 3
assert_stderr_has 'X" is no xxh3-128'
fresh xor
deltas break d x dtype
run moepack apply v0 d -o a
assert_status 3
assert_stderr_has 'a stream is U8 [bytes]'
while read -r status filter text; do
    fresh xor
    jq "$filter" d/$index >i && mv i d/$index
    refused "$status" "$index: $text"
done <<'END'
3 .metadata.delta_encoding="rot13" delta_encoding "rot13" is unknown
3 .metadata.compression_format="gzip" compression_format "gzip" is unknown
5 .metadata.checksum_format="blake3" checksum_format "blake3" is not supported: publish with xxh3-128
3 .metadata.checksum_format="crc" checksum_format "crc" is unknown
3 del(.metadata.version) "version" is missing or not a number
3 .metadata.base_version="7a" "base_version" is missing or not a number
3 del(.metadata.checksum_format) "checksum_format" is missing or not a string
3 .weight_map=3 "weight_map" is missing or not an object
END
fresh xor
python3 "$ROOT/tests/tools/tensors.py" v0/model.safetensors rename x z
run moepack apply v0 d -o a
assert_status 3
assert_stderr_is 'moepack: apply: d: tensor "x" is not in "v0"'
fresh xor
jq '.metadata.version = 1 | .metadata.base_version = 0' d/$index >i && mv i d/$index
run moepack apply v0 d -o a -q
assert_status 0
same a v1

it "takes only --source to check a delta by"
fresh xor
run moepack verify d --source v0 --level digest
assert_status 2
assert_stderr_has '"d" is a delta: no other option selects what to check, only --source'
run moepack verify d --source v1
assert_status 1
assert_stdout_has 'x: the xxh3-128 is '
run moepack verify d --source v0 --json
assert_json '[.ok, .level, .checked.tensors, .faults]' '[true,"exact",1,[]]'

# ---------------------------------------------------------------------------
# Interrupted
# ---------------------------------------------------------------------------

it "goes on after apply was killed at any call"
fail_io=$(dirname "$MOEPACK")/fail_io.so
versions v4-fp4 2 0.01
moepack delta v0 v1 -o d1 --version 1 -q
moepack delta v1 v2 -o d2 --version 2 -q
changes=pwrite,fdatasync,fsync,ftruncate,mkdir,unlink,rename
LD_PRELOAD=$fail_io FAIL_CALL=$changes FAIL_COUNT=$WORK/calls "$MOEPACK" apply v0 d1 d2 -o a -q -j1
calls=$(cat "$WORK/calls")
same a v2
assert "$([ "$calls" -gt 30 ]; echo $?)" "only $calls calls"
for n in 1 3 5 8 $(seq 12 9 "$calls") "$calls"; do
    rm -rf a
    { run env LD_PRELOAD="$fail_io" FAIL_CALL=$changes FAIL_AT="$n" FAIL_WITH=SIGKILL \
        "$MOEPACK" apply v0 d1 d2 -o a -q -j1; } 2>/dev/null
    assert_status 137
    if [ ! -e a ]; then
        run moepack apply v0 d1 d2 -o a -q --resume
        assert_status 0
    fi
    same a v2
    assert_equal "$(ls -d a.partial 2>/dev/null)" ''
done
run moepack apply v0 d1 d2 -o a -q --resume
assert_status 0
run moepack apply v0 d1 -o a -q --resume
assert_status 3
assert_stderr_has '"a" is complete and another version: tensor "'
run moepack apply v0 d1 -o a -q
assert_status 2
run moepack apply v0 d1 -o a -q --force
assert_status 0
same a v1
run moepack apply v0 d1 -o d2 -q --force
assert_status 2
assert_stderr_has 'does not hold the same shards: not replaced'

it "leaves nothing of a delta that was interrupted, and begins anew"
versions v4-fp4 1
{ run env LD_PRELOAD="$fail_io" FAIL_CALL=rename FAIL_AT=1 FAIL_WITH=SIGKILL \
    "$MOEPACK" delta v0 v1 -o d --version 1 -q; } 2>/dev/null
assert_status 137
assert_equal "$(ls -A)" "$(printf 'd.partial\nv0\nv1')"
run moepack delta v0 v1 -o d --version 1 -q --resume
assert_status 0
deltas check v0 v1 d
assert $? "not what changed"
run moepack delta v0 v1 -o d --version 1 -q --resume
assert_status 0
run moepack delta v0 v1 -o d --version 2 -q --resume
assert_status 3
assert_stderr_is 'moepack: delta: "d" is complete and another delta'
run moepack delta v0 v0 -o d --version 2 -q --force
assert_status 0
assert_equal "$(jq -c .weight_map d/$index)" '{}'

it "says when there is no space"
versions v4-fp4 1
moepack delta v0 v1 -o d --version 1 -q
run env LD_PRELOAD="$fail_io" FAIL_CALL=pwrite FAIL_AT=3 FAIL_WITH=ENOSPC "$MOEPACK" delta v0 v1 \
    -o e --version 1 -q -j1
assert_status 4
assert_stderr_has 'No space left on device'
run env LD_PRELOAD="$fail_io" FAIL_CALL=pwrite FAIL_AT=3 FAIL_WITH=ENOSPC "$MOEPACK" apply v0 d \
    -o a -q -j1
assert_status 4
assert_stderr_has 'No space left on device'
run moepack apply v0 d -o a -q --resume
assert_status 0
same a v1

# ---------------------------------------------------------------------------
# Compressed, and packs
# ---------------------------------------------------------------------------

it "reads compressed versions, and writes them"
versions v4-fp4 1
moepack compress v0 -o z0 -q
moepack compress v1 -o z1 -q
moepack delta v0 v1 -o d --version 1 -q
moepack delta z0 z1 -o e --version 1 -q
same d e
moepack compress d -o dz -q
run moepack verify dz --source z0
assert_status 0
run moepack apply z0 dz -o a -q
assert_status 0
same a v1
run moepack apply v0 d -o az -q --zstd
assert_status 0
same az z1

it "makes deltas of packs, one a rank, and packs of them"
versions v4-fp4 2
for n in 0 1 2; do
    mkdir p$n && mv v$n p$n/ckpt && mv p$n v$n
    moepack repack v$n/ckpt -o v$n/pack -t megamoe-w4a8 --ep 3 --redundant 1 -q --max-shard-size 100kB
done
run moepack delta v0/pack v1/pack -o d1 --version 1 -q
assert_status 0
moepack delta v1/pack v2/pack -o d2 --version 2 -q
assert_equal "$(find d1 -maxdepth 1 -type f)" d1/pack.json
for r in 0 1 2; do
    deltas check v0/pack/rank-00$r v1/pack/rank-00$r d1/rank-00$r
    assert $? "rank $r: not what changed"
done
run moepack apply v0/pack d1 d2 -o a -q
assert_status 0
same a v2/pack
run moepack verify a --source v2/ckpt
assert_status 0
run moepack verify d1 --source v0/pack
assert_status 0
run moepack fold d1 d2 -o f -q
assert_status 0
run moepack verify f --source v0/pack
assert_status 0
run moepack apply v0/pack f -o b -q
same b v2/pack
run moepack verify d1 --source v1/pack --json
assert_status 1
assert_equal "$(jq -c '[.faults[].rank] | unique' "$stdout")" '[0,1,2]'

it "brings up to date the ranks that are here"
versions v4-fp4 1
moepack repack v0 -o p0 -t megamoe-w4a8 --ep 3 --redundant 1 -q
moepack repack v1 -o p1 -t megamoe-w4a8 --ep 3 --redundant 1 -q
moepack delta p0 p1 -o d --version 1 -q
rm -r p0/rank-000 p0/rank-002 p1/rank-000 p1/rank-002 d/rank-000
run moepack apply p0 d -o a -q
assert_status 0
same a p1
rm -r d/rank-001
run moepack apply p0 d -o b -q
assert_status 3
assert_stderr_is 'moepack: apply: d: rank-001 is missing, "p0" has it'

it "refuses packs of another placement, and packs beside checkpoints"
versions v4-fp4 1
moepack repack v0 -o p0 -t megamoe-w4a8 --ep 3 --redundant 1 -q
moepack repack v1 -o p1 -t megamoe-w4a8 --ep 3 --redundant 4 -q
moepack repack v1 -o p2 -t megamoe-w4a8 --ep 2 --redundant 1 -q
run moepack delta p0 p1 -o d --version 1 -q
assert_status 1
assert_stderr_is 'moepack: delta: p1: has another placement than p0: pack it again'
run moepack delta p0 p2 -o d --version 1 -q
assert_status 1
assert_stderr_has 'p2: a pack for megamoe-w4a8 on 2 ranks, p0 is one for megamoe-w4a8 on 3'
run moepack delta p0 v1 -o d --version 1 -q
assert_status 1
assert_stderr_is 'moepack: delta: v1: is of a checkpoint, p0 is a pack'

it "makes deltas of compressed packs"
versions v4-fp4 1
moepack repack v0 -o p0 -t megamoe-w4a8 --ep 2 --redundant 1 -q
mkdir plain && moepack repack v1 -o plain/p1 -t megamoe-w4a8 --ep 2 --redundant 1 -q
moepack compress p0 -o z0 -q
moepack compress plain/p1 -o z1 -q
run moepack delta z0 z1 -o d --version 1 -q
assert_status 0
run moepack apply z0 d -o a -q
assert_status 0
same a plain/p1
run moepack apply p0 d -o b -q --zstd
assert_status 0
same b z1

finish
