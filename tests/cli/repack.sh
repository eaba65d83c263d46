#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# repack: the bytes that it has to write, from other hands; that nothing but input and
# flags decides on them; and what it does about directories that are there or not.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

v4=$ROOT/testdata/fixtures/v4-fp4
v4_flags=(--target megamoe-w4a8 --ep 2 --placement "$v4/placement.json")

# ---------------------------------------------------------------------------
# Reading safetensors
# ---------------------------------------------------------------------------

header_length()
{
    od -An -t u8 -N 8 "$1" | tr -d ' '
}

header()
{
    tail -c +9 "$1" | head -c "$(header_length "$1")"
}

# What a file's header says of its tensors, without where they are.
tensors()
{
    header "$1" | jq -cS 'del(.__metadata__) | map_values([.dtype, .shape])'
}

# Tensors of a file by name, a line each: name, where in the file it begins, bytes.
list()
{
    header "$1" | jq -r --argjson data $((8 + $(header_length "$1"))) 'del(.__metadata__) |
        to_entries | sort_by(.key)[] | .value.data_offsets as [$from, $to] |
        "\(.key) \($data + $from) \($to - $from)"'
}

# part FILE BEGIN BYTES
part()
{
    tail -c +$(($2 + 1)) "$1" | head -c "$3"
}

digest()
{
    xxh128sum | cut -d ' ' -f 1
}

# Name and XXH3-128 of every tensor of files, by name.
digests()
{
    local file name begin bytes

    for file; do
        while read -r name begin bytes; do
            echo "$name $(part "$file" "$begin" "$bytes" | digest)"
        done < <(list "$file")
    done | sort
}

# A checkpoint of two layers with six BF16 experts, H = 256 and I = 384, at $WORK/qwen3;
# and one of FP8 blocks with float32 scales at $WORK/v3.
"$MOEPACK" synth -o "$WORK/qwen3" --family qwen3_moe --hidden 256 --intermediate 384 \
    --experts 6 --layers 2 --top-k 2 --vocab 16
"$MOEPACK" synth -o "$WORK/v3" --family deepseek_v3 --hidden 256 --intermediate 384 \
    --experts 6 --shared 1 --layers 2 --top-k 2 --vocab 16 --seed 5

# ---------------------------------------------------------------------------
# The right bytes
# ---------------------------------------------------------------------------

it "writes the tensors that MegaMoE W4A8 wants, of a V4 with a placement"
run moepack repack "$v4" -o out "${v4_flags[@]}" -q
assert_status 0
assert_stdout ''
assert_stderr_is ''
for rank in 0 1; do
    found=out/rank-00$rank/model-00001-of-00001.safetensors
    wanted=$v4/expected-megamoe-w4a8-rank$rank.st
    assert_equal "$(tensors "$found")" "$(tensors "$wanted")"
    assert_equal "$(digests "$found")" "$(digests "$wanted")"
    assert_equal "$(digests "$wanted" | wc -l)" 8
done

it "puts redundant experts behind all others, in turn"
run moepack repack "$v4" -o out --target megamoe-w4a8 --ep 4 --redundant 7 -q
assert_status 0
# The target leaves the bytes of w2 as they are.
digests "$v4"/model-*.safetensors | sed -n 's/^mtp.0.ffn.experts.*w2.weight //p' >experts
for rank in 0 1 2 3; do
    file=out/rank-00$rank/model-00001-of-00001.safetensors
    read -r name begin bytes < <(list "$file" | grep '^mtp.0.experts.l2_weight ')
    assert_equal "$name $bytes" "mtp.0.experts.l2_weight $((3 * 384 * 256 / 2))"
    for slot in 0 1 2; do
        assert_equal "slot $slot: $(part "$file" $((begin + slot * bytes / 3)) $((bytes / 3)) | digest)" \
            "slot $slot: $(sed -n "$(((rank * 3 + slot) % 5 + 1))p" experts)"
    done
done
assert_equal "$(jq -c . out/placement.json)" \
    '{"physical_to_logical_map":[[0,1,2,3,4,0,1,2,3,4,0,1],[0,1,2,3,4,0,1,2,3,4,0,1]]}'

it "writes what the manifest says: files, sizes, digests"
moepack repack "$v4" -o out "${v4_flags[@]}" -q
for rank in 0 1; do
    file=out/rank-00$rank/model-00001-of-00001.safetensors
    assert_equal "$(jq -r ".ranks[$rank].files[0] | .tensors[] | .name + \" \" + .xxh3" \
        out/moepack.json | sort)" "$(digests "$file")"
    assert_equal "$(jq -c "[.ranks[$rank].rank, .ranks[$rank].files[0].size]" out/moepack.json)" \
        "[$rank,$(wc -c <"$file")]"
done
assert_equal "$(jq -c '.source | map([.name, .size])' out/moepack.json)" \
    "$(cd "$v4" && for f in *.safetensors; do echo "[\"$f\", $(wc -c <"$f")]"; done | jq -cs .)"
assert_equal "$(jq -r '.source[0].header_xxh3' out/moepack.json)" \
    "$(f=$v4/model-00001-of-00002.safetensors &&
        part "$f" 0 $((8 + $(header_length "$f"))) | digest)"
cmp -s out/config.json "$v4/config.json"
assert $? "config.json is not the source's"
assert_equal "$(jq -c . out/placement.json)" "$(jq -c . "$v4/placement.json")"

it "writes plain safetensors: data at a multiple of 4096, tensors without holes"
moepack repack "$v4" -o out "${v4_flags[@]}" --max-shard-size 300kB -q
for file in out/rank-*/*.safetensors; do
    length=$(header_length "$file")
    assert_equal $(((8 + length) % 4096)) 0
    assert_equal "$(header "$file" | jq -c '[del(.__metadata__)[].data_offsets] |
        [.[0][0], .[-1][1], ([.[:-1], .[1:]] | transpose | all(.[0][1] == .[1][0]))]')" \
        "[0,$(($(wc -c <"$file") - 8 - length)),true]"
done
assert_equal "$(header out/rank-001/model-00001-of-00004.safetensors | jq -c .__metadata__)" \
    '{"format":"moepack","format_version":"1","target":"megamoe-w4a8","ep_rank":"1","ep_size":"2"}'

it "splits a rank into files at tensors, with an index"
moepack repack "$v4" -o whole "${v4_flags[@]}" -q
run moepack repack "$v4" -o out "${v4_flags[@]}" --max-shard-size 300kB -q
assert_status 0
assert_equal "$(cd out/rank-000 && ls ./*.safetensors)" "$(printf \
    './model-0000%d-of-00004.safetensors\n' 1 2 3 4)"
assert_equal "$(digests out/rank-001/*.safetensors)" "$(digests whole/rank-001/*.safetensors)"
for file in out/rank-001/*.safetensors; do
    # Only a tensor alone may be larger.
    assert_equal "$(header "$file" | jq -c '[del(.__metadata__)[].data_offsets] |
        length == 1 or .[-1][1] <= 300000')" true
    header "$file" | jq -c --arg file "${file##*/}" 'del(.__metadata__) | map_values($file)' >>maps
done
assert_equal "$(jq -cS .weight_map out/rank-001/model.safetensors.index.json)" \
    "$(jq -cSs add maps)"
assert_equal "$(jq .metadata.total_size out/rank-001/model.safetensors.index.json)" \
    "$(header whole/rank-001/*.safetensors | jq '[del(.__metadata__)[].data_offsets[1]] | max')"

it "writes some layers only"
moepack repack "$v4" -o whole "${v4_flags[@]}" -q
run moepack repack "$v4" -o out "${v4_flags[@]}" --layers mtp.0 -q
assert_status 0
assert_equal "$(jq -c .layers out/moepack.json)" '["mtp.0"]'
assert_equal "$(digests out/rank-001/*.safetensors)" \
    "$(digests whole/rank-001/*.safetensors | grep '^mtp')"
assert_equal "$(jq -c . out/placement.json)" '{"physical_to_logical_map":[[0,1,1,4,3,2]]}'

it "writes some ranks only"
moepack repack "$v4" -o whole "${v4_flags[@]}" -q
run moepack repack "$v4" -o out "${v4_flags[@]}" --ranks 1 -q
assert_status 0
assert_equal "$(ls out)" "$(printf '%s\n' config.json moepack.json placement.json rank-001)"
diff -r out/rank-001 whole/rank-001
assert $? "rank 1 differs from that of all ranks"
assert_equal "$(jq -c '[.ep_size, (.ranks | map(.rank))]' out/moepack.json)" '[2,[1]]'

it "requantizes, and reports the error"
run moepack repack "$WORK/qwen3" -o out --target megamoe-w4a8 --ep 3 --quantize mxfp4
assert_status 0
for side in w13 w2; do
    grep -qE "^model.layers.1 +$side +1\.[0-9]+e-01 +1[0-9]\.[0-9]+ +0 +[0-9]+ +0$" "$stderr"
    assert $? "no error of $side: $(cat "$stderr")"
done
assert_equal "$(jq -c .quantization.lossless out/moepack.json)" false
run moepack verify out --source "$WORK/qwen3" --level exact
assert_status 0

it "loses nothing from mxfp4 to fp8_block, and says so"
moepack synth -o mxfp4 --family deepseek_v4 --format mxfp4 --hidden 384 --intermediate 128 \
    --experts 3 --layers 2 --top-k 2 --hash 1 -q
run moepack repack mxfp4 -o out --target megamoe-sm90-fp8 --ep 3 --quantize fp8_block
assert_status 0
assert_equal "$(jq -c '[.quantization.lossless, ([.errors[].requantized_blocks] | add)]' \
    out/moepack.json)" '[true,0]'
run moepack verify out --source mxfp4 --level exact
assert_status 0
run moepack diff mxfp4 out
assert_stdout_has 'equal: 0 of '
run moepack unpack out -o back -q
assert_status 0
assert_equal "$(jq -c .lossless back/moepack-unpack.json)" false
run moepack repack back -o again --target megamoe-sm90-fp8 --ep 3 -q
assert_status 0
cmp out/rank-002/model-00001-of-00001.safetensors again/rank-002/model-00001-of-00001.safetensors
assert $? "packing what was unpacked gives something else"

it "says that nothing is lost where the scheme is the target's already"
run moepack repack "$v4" -o out "${v4_flags[@]}" --quantize mxfp4 -q
assert_status 0
assert_equal "$(jq -c .quantization.lossless out/moepack.json)" true
moepack repack "$v4" -o plain "${v4_flags[@]}" -q
diff -r out plain -x moepack.json
assert $? "--quantize changes bytes that it has nothing to do with"

# What each way of requantizing leads to; a way that changed nothing would show here.
it "requantizes as told"
declare -A seen=()
for flags in '' '--rounding ocp' '--scale-rule mse' '--amax-floor 10'; do
    # shellcheck disable=SC2086
    run moepack repack "$WORK/v3" -o out --force --target megamoe-w4a8 --ep 1 --layers 1 -q \
        --quantize mxfp4 $flags
    assert_status 0
    digest=$(jq -r '.ranks[0].files[0].tensors[0].xxh3' out/moepack.json)
    assert_equal "${seen[$digest]-}" ''
    seen[$digest]="the bytes of $flags"
    assert_equal "$(jq -r .command out/moepack.json)" "moepack repack v3 --target megamoe-w4a8 \
--ep 1 --quantize mxfp4${flags:+ $flags} --layers 1"
done

# ---------------------------------------------------------------------------
# The same bytes, whatever does not matter
# ---------------------------------------------------------------------------

it "writes the same with any number of threads and any instructions"
for source in qwen3 v3; do
    flags=(--target megamoe-w4a8 --ep 2 --redundant 2 --quantize mxfp4 --max-shard-size 1MB -q)
    moepack repack "$WORK/$source" -o $source "${flags[@]}"
    for variant in '-j1 scalar' '-j2 scalar' '-j5 scalar' '-j1 avx2' '-j2 avx512' '-j5 neon'; do
        read -r threads cpu <<<"$variant"
        MOEPACK_CPU=$cpu run moepack repack "$WORK/$source" -o out "${flags[@]}" "$threads"
        assert_status 0
        diff -r $source out
        assert $? "$source with $variant differs"
        rm -r out
    done
done

it "writes the same wherever and whenever it runs"
moepack repack "$v4" -o first "${v4_flags[@]}" -q
mkdir -p else where
cp -r "$v4" else/v4-fp4
sleep 1.1
run sh -c 'cd where && HOSTNAME=other USER=other "$1" repack ../else/v4-fp4// -o ../second \
    --target megamoe-w4a8 --ep 2 --placement ../else/v4-fp4/placement.json -q' sh "$MOEPACK"
assert_status 0
diff -r first second
assert $? "the packs differ"
for file in first/*.json first/*/*.json; do
    assert_equal "$(grep -w -e "$WORK" -e "$(uname -n)" -e "$(date +%Y)" "$file")" ''
done

it "takes the placement from standard input"
moepack repack "$v4" -o first "${v4_flags[@]}" -q
run sh -c '"$1" repack "$2" -o out --target megamoe-w4a8 --ep 2 --placement - -q <"$3"' \
    sh "$MOEPACK" "$v4" "$v4/placement.json"
assert_status 0
diff -r first out -x moepack.json
assert $? "the packs differ"

# ---------------------------------------------------------------------------
# What it prints
# ---------------------------------------------------------------------------

it "prints nothing to standard output, and a summary to standard error"
run moepack repack "$v4" -o out "${v4_flags[@]}"
assert_status 0
assert_stdout ''
assert_equal "$(sed 's/ in .*//' "$stderr")" "$(
    cat <<'LINES'
moepack: repack: warning: placement: row 1: 1 copy on a rank that has the expert already, first expert 1
moepack: repack: warning: megamoe-w4a8: hidden size is 384, SGLang takes multiples of 512 only
moepack: repack: warning: megamoe-w4a8: expert intermediate size is 256, SGLang takes multiples of 512 only
moepack: repack: out: 2 files, 1.89 MB
LINES
)"

it "plans and writes nothing on a dry run"
for more in '--ep 5' '--redundant 3 --max-shard-size 400kB' '--redundant 1 --layers 0 --ranks 1'; do
    read -r -a flags <<<"--target megamoe-w4a8 --ep 2 $more -q"
    run moepack repack "$v4" --dry-run --json "${flags[@]}"
    assert_status 0
    assert_stderr_is ''
    assert_equal "$(ls -A)" ''
    cp "$stdout" "$WORK/plan"
    moepack repack "$v4" -o out "${flags[@]}"
    for file in out/rank-*/*.safetensors; do
        echo "[\"${file#out/}\", $(wc -c <"$file"), $(tensors "$file" | jq length)]"
    done | jq -cs . >real
    assert_equal "$(jq -c '[.files[] | [.path, .bytes, .tensors]]' "$WORK/plan")" "$(cat real)"
    assert_equal "$(jq -c .bytes_written "$WORK/plan")" "$(jq 'map(.[1]) | add' real)"
    rm -r out real
done

it "needs no output for a dry run, and reads what it says"
run moepack repack "$v4" --dry-run --target megamoe-w4a8 --ep 5 --json -j1
assert_json '[.units, .bytes_read]' '[20,1566720]'
run moepack repack "$v4" --dry-run --target megamoe-w4a8 --ep 5
assert_status 0
assert_stdout_has 'rank-004/model-00001-of-00001.safetensors  8 tensors  '
assert_stdout_has '20 units, 1.57 MB to read, '

it "prints the plan as JSON behind a run, too"
run moepack repack "$v4" -o out "${v4_flags[@]}" --json -q
assert_status 0
assert_json '[.files[].path]' '["rank-000/model-00001-of-00001.safetensors",'\
'"rank-001/model-00001-of-00001.safetensors"]'
assert_json .bytes_written "$(cat out/rank-*/*.safetensors | wc -c)"

it "reports a full disk at standard output"
run sh -c '"$1" repack "$2" -n --target megamoe-w4a8 --ep 1 -q >/dev/full' sh "$MOEPACK" "$v4"
assert_status 4
assert_stderr_is 'moepack: repack: standard output: No space left on device'

# ---------------------------------------------------------------------------
# Directories
# ---------------------------------------------------------------------------

it "takes OUT with a slash behind"
run moepack repack "$v4" -o out/ "${v4_flags[@]}" -q
assert_status 0
assert_equal "$(ls -A)" out
assert_equal "$(ls out)" "$(printf '%s\n' config.json moepack.json placement.json rank-000 rank-001)"

it "replaces no OUT unasked"
mkdir out
run moepack repack "$v4" -o out "${v4_flags[@]}" -q
assert_status 2
assert_stderr_is <<'MESSAGE'
moepack: repack: "out" exists: choose another name, or --force to replace it
try 'moepack repack --help'
MESSAGE
assert_equal "$(find .)" "$(printf '.\n./out')"

it "replaces a pack when forced"
moepack repack "$v4" -o out --target megamoe-w4a8 --ep 1 -q
moepack repack "$v4" -o wanted "${v4_flags[@]}" -q
echo mine >out/notes
run moepack repack "$v4" -o out "${v4_flags[@]}" --force -q
assert_status 0
diff -r out wanted
assert $? "out is not the new pack"
assert_equal "$(ls -A)" "$(printf '%s\n' out wanted)"

it "writes a new OUT when forced, too"
run moepack repack "$v4" -o out "${v4_flags[@]}" --force -q
assert_status 0
assert_equal "$(ls -A)" out

it "never replaces what is no pack"
mkdir out
echo thesis >out/thesis
run moepack repack "$v4" -o out "${v4_flags[@]}" --force -q
assert_status 2
assert_stderr_has '"out" exists and is not a pack: not replaced'
assert_equal "$(find . | sort)" "$(printf '.\n./out\n./out/thesis')"
rm -r out
echo thesis >out
run moepack repack "$v4" -o out "${v4_flags[@]}" --force -q
assert_status 2
assert_equal "$(cat out)" thesis

it "discards an interrupted run when forced, and only then"
mkdir out.partial
echo old >out.partial/old
run moepack repack "$v4" -o out "${v4_flags[@]}" -q
assert_status 2
assert_stderr_has '"out.partial" exists from an interrupted run: --resume continues it, --force'
assert_equal "$(find . | sort)" "$(printf '.\n./out.partial\n./out.partial/old')"
run moepack repack "$v4" -o out "${v4_flags[@]}" --force -q
assert_status 0
assert_equal "$(ls -A)" out
assert_equal "$(ls out)" "$(printf '%s\n' config.json moepack.json placement.json rank-000 rank-001)"

it "reports a parent directory that is missing"
run moepack repack "$v4" -o no/such/out "${v4_flags[@]}" -q
assert_status 4
assert_stderr_is 'moepack: repack: cannot make directory "no/such/out.partial": No such file or directory'
assert_equal "$(ls -A)" ''

it "reports a parent that is a file"
: >file
run moepack repack "$v4" -o file/out "${v4_flags[@]}" -q
assert_status 4
assert_stderr_has 'moepack: repack: cannot make directory "file/out.partial": '

it "reports a directory that cannot be written to"
if [ "$(id -u)" -eq 0 ]; then
    closed=/sys # root may write anywhere else
else
    closed=closed
    mkdir -m 555 closed
fi
run moepack repack "$v4" -o $closed/out "${v4_flags[@]}" -q
assert_status 4
assert_stderr_has "moepack: repack: cannot make directory \"$closed/out.partial\": "

# ---------------------------------------------------------------------------
# Flags that make no sense
# ---------------------------------------------------------------------------

# refuses STATUS MESSAGE FLAG...: and leaves nothing.
refuses()
{
    local wanted=$1 message=$2

    shift 2
    run moepack repack "$v4" -q "$@"
    assert_status "$wanted"
    assert_stderr_has "moepack: repack: $message"
    assert_equal "$(ls -A)" ''
}

it "refuses flags that make no sense"
refuses 2 "option --output is required" "${v4_flags[@]}"
refuses 2 "option '--ep': '0' is not a number from 1 to 65536" -o out -t megamoe-w4a8 --ep 0
refuses 2 "option '--target': 'megamoe-w4a9' is unknown; did you mean 'megamoe-w4a8'?" -o out \
    --target megamoe-w4a9 --ep 1
refuses 2 "--resume and --force cannot be used together" -o out "${v4_flags[@]}" --resume --force
refuses 2 "a placement file says itself how many redundant experts there are" -o out \
    "${v4_flags[@]}" --redundant 1
refuses 2 'list "0,7": "7" names no layer' -o out "${v4_flags[@]}" --layers 0,7
refuses 2 'list "mtp.1": "mtp.1" names no layer' -o out "${v4_flags[@]}" --layers mtp.1
refuses 2 'list "0-2": "0-2" names no rank' -o out "${v4_flags[@]}" --ranks 0-2
# Whether f32 is no scheme at all or none of this target, depends on what targets there are.
refuses 2 '' -o out "${v4_flags[@]}" --quantize f32
refuses 5 'layers.0: the shared expert is fp8_block, and megamoe-w4a8 takes mxfp4, which loses precision' \
    -o out "${v4_flags[@]}" --shared fused
refuses 2 'megamoe-w4a8 has no FRACTAL_NZ form' -o out "${v4_flags[@]}" --nz

it "ends with status 1 where the error is above a bound, and is complete"
run moepack repack "$WORK/qwen3" -o out --target megamoe-w4a8 --ep 3 --quantize mxfp4 -q --fail-above 0.01
assert_status 1
assert_stderr_has "relative RMS error"
run moepack verify out --source "$WORK/qwen3"
assert_status 0
run moepack repack "$WORK/qwen3" -o out2 --target megamoe-w4a8 --ep 3 --quantize mxfp4 -q --fail-above 0.5
assert_status 0
assert_stderr_is </dev/null

it "refuses the sizes of a V3 that the kernel does not take"
run moepack repack "$ROOT/testdata/fixtures/v3-fp8" -o out --target megamoe-w4a8 --ep 2 \
    --quantize mxfp4
assert_status 5
assert_stderr_is 'moepack: repack: megamoe-w4a8: hidden size is 192, the kernel takes multiples of 128'
assert_equal "$(ls -A)" ''

it "takes a placement's rows for the layers that the file states"
fp8=(--target megamoe-sm90-fp8 --ep 2 -q)
printf 'num_slots: 6\ninitial_global_assignments:\n  0: [0, 1, 2, 3, 4, 5]\n  1: [5, 4, 3, 2, 1, 0]\n' >eplb.yaml
run moepack repack "$WORK/v3" -o stated "${fp8[@]}" --placement eplb.yaml
assert_status 0
assert_equal "$(jq -c .physical_to_logical_map stated/placement.json)" '[[0,1,2,3,4,5],[5,4,3,2,1,0]]'
run moepack verify stated --level exact --source "$WORK/v3" -q
assert_status 0
sed -i '/^  0:/d' eplb.yaml
run moepack repack "$WORK/v3" -o out "${fp8[@]}" --placement eplb.yaml
assert_status 3
assert_stderr_is 'moepack: repack: placement: no row among 1 for model.layers.0: add one, or leave the layer out with --layers'
run moepack repack "$WORK/v3" -o out "${fp8[@]}" --placement eplb.yaml --layers 1
assert_status 0
assert_equal "$(jq -c .physical_to_logical_map out/placement.json)" '[[5,4,3,2,1,0]]'
run moepack repack "$WORK/v3" -o other "${fp8[@]}" --placement eplb.yaml --layers 1 --rows moe
assert_status 2
assert_stderr_has 'placement: the file itself says which layers its rows are for'

it "takes a list of rows the way that --rows says"
echo '[[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]]' >rows
run moepack repack "$WORK/v3" -o out "${fp8[@]}" --placement rows --rows layer --layers 1
assert_status 0
assert_equal "$(jq -c .physical_to_logical_map out/placement.json)" '[[5,4,3,2,1,0]]'
assert_file_has out/moepack.json ' --rows layer'
echo '[[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5]]' >rows
run moepack repack "$WORK/v3" -o other "${fp8[@]}" --placement rows --rows layer
assert_status 3
assert_stderr_is 'moepack: repack: placement: 3 rows, the model has 2 decoder layers'
run moepack repack "$WORK/v3" -o other "${fp8[@]}" --placement rows --rows moe
assert_status 3
assert_stderr_is 'moepack: repack: placement: 3 rows, the model has 2 MoE layers (MTP blocks counted)'

it "refuses a placement that is for another number of ranks"
echo '{"moe_layer_count": 1, "layer_list": [{"layer_id": 1, "device_count": 2, "device_list": [
    {"device_id": 0, "device_expert": [0, 1, 2]}, {"device_id": 1, "device_expert": [3, 4, 5]}]}]}' >map.json
run moepack repack "$WORK/v3" -o out --target megamoe-sm90-fp8 --ep 3 --placement map.json --layers 1 -q
assert_status 3
assert_stderr_is 'moepack: repack: placement: device_count is 2, the number of ranks is 3'

finish
