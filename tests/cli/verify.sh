#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# verify finds every planted fault and names it: exit status 1, and the rank, layer,
# slot, tensor and element.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

# H = 384, I = 256, 5 experts, layers "layers.0" and "mtp.0"; on two ranks 3 slots each.
# The slots of layers.0 hold the experts 4 0 2 and 1 3 2.
source=$ROOT/testdata/fixtures/v4-fp4
"$MOEPACK" repack "$source" --target megamoe-w4a8 --ep 2 --placement "$source/placement.json" \
    -q -o "$WORK/sound" 2>"$stderr" || cat "$stderr"

file=model-00001-of-00001.safetensors

# A copy of the sound pack, ./out.
use_pack()
{
    cp -r "$WORK/sound" out
}

# Byte of a file at which a tensor begins.
tensor_offset()
{
    local length

    length=$(od -An -t u8 -N 8 "$1" | tr -d ' ')
    tail -c +9 "$1" | head -c "$length" |
        jq --arg name "$2" --argjson data $((8 + length)) '$data + .[$name].data_offsets[0]'
}

# Flips bits of one byte: FILE OFFSET MASK.
flip_byte()
{
    local byte

    byte=$(od -An -t u1 -j "$2" -N 1 "$1")
    # shellcheck disable=SC2059
    printf "\\$(printf %03o $((byte ^ $3)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# Flips bits in a slot: RANK TENSOR SLOT SLOT_BYTES BYTE MASK.
flip_slot()
{
    local path=out/rank-00$1/$file

    flip_byte "$path" $(($(tensor_offset "$path" "$2") + $3 * $4 + $5)) "$6"
}

# Exchanges two runs of bytes: FILE OFFSET OFFSET COUNT.
swap_bytes()
{
    tail -c +$(($2 + 1)) "$1" | head -c "$4" >one
    tail -c +$(($3 + 1)) "$1" | head -c "$4" >other
    dd if=other of="$1" bs=1 seek="$2" conv=notrunc status=none
    dd if=one of="$1" bs=1 seek="$3" conv=notrunc status=none
}

# The places of all faults, in jq's compact form.
places='[.faults[] | [.level, .rank, .layer, .slot, .tensor, .element]]'

# Runs verify --json at level exact, expects failure and these places.
assert_faults()
{
    run moepack verify out --source "$source" --json
    assert_status 1
    assert_stderr_is ''
    assert_json .ok false
    assert_json "$places" "$1"
}

# ---------------------------------------------------------------------------
# Sound packs

it "accepts a sound pack"
use_pack
run moepack verify out
assert_status 0
assert_stdout 'ok: digest: 2 files, 16 tensors, 1.88 MB'
run moepack verify out --source "$source"
assert_status 0
assert_stdout 'ok: exact: 2 files, 16 tensors, 12 slots, 1.88 MB'
run moepack verify out --level structure --source "$source"
assert_status 0
assert_stdout 'ok: structure: 2 files, 16 tensors, 1.88 MB'
assert_stderr_is ''

it "checks the layers and ranks that are asked for"
use_pack
run moepack verify out --source "$source" --layers mtp.0 --ranks 1
assert_status 0
assert_stdout 'ok: exact: 1 file, 4 tensors, 3 slots, 470 kB'

it "checks a rank whose siblings are on other hosts"
use_pack
rm -r out/rank-000
run moepack verify out --ranks 1
assert_status 0
assert_stdout 'ok: digest: 1 file, 8 tensors, 940 kB'
run moepack verify out
assert_status 1

it "prints JSON"
use_pack
run moepack verify out --source "$source" --json
assert_status 0
assert_json . '{"ok":true,"level":"exact","checked":{"files":2,"tensors":16,"slots":12,"bytes":1880064},"total_faults":0,"faults":[],"numeric":[]}'

it "prints TAP"
use_pack
run moepack verify out --source "$source" --ranks 0 --tap
assert_status 0
assert_stdout <<'END'
1..5
ok 1 - pack: structure
ok 2 - pack: exact
ok 3 - rank 0: structure
ok 4 - rank 0: digest
ok 5 - rank 0: exact
END

it "writes a JUnit report"
use_pack
run moepack verify out --level structure --junit report.xml
assert_status 0
assert_stdout 'ok: structure: 2 files, 16 tensors, 1.88 MB'
assert_file_is report.xml <<'END'
<?xml version="1.0" encoding="UTF-8"?>
<testsuites>
  <testsuite name="moepack verify" tests="3" failures="0" errors="0" skipped="0">
    <testcase classname="pack" name="structure"/>
    <testcase classname="rank 0" name="structure"/>
    <testcase classname="rank 1" name="structure"/>
  </testsuite>
</testsuites>
END

# ---------------------------------------------------------------------------
# Faults in the bytes of slots

while read -r tensor slot_bytes byte mask element; do
    it "finds bit $mask of byte $byte of $tensor, in several slots"
    use_pack
    name=layers.0.experts.$tensor
    flip_slot 1 "$name" 2 "$slot_bytes" "$byte" "$mask"
    assert_faults "[[\"digest\",1,\"layers.0\",null,\"$name\",null],[\"exact\",1,\"layers.0\",2,\"$name\",$element]]"
    flip_slot 1 "$name" 0 "$slot_bytes" "$byte" "$mask"
    assert_faults "[[\"digest\",1,\"layers.0\",null,\"$name\",null],[\"exact\",1,\"layers.0\",0,\"$name\",$element],[\"exact\",1,\"layers.0\",2,\"$name\",$element]]"
done <<'END'
l1_weight 98304 0 1 0
l1_weight 98304 98303 128 196607
l1_weight_sf 6144 387 16 96
l1_weight_sf 6144 6143 1 1535
l2_weight 49152 4001 8 8002
l2_weight 49152 4001 16 8003
l2_weight_sf 3072 5 128 1
l2_weight_sf 3072 3068 64 767
END

it "says what an element holds and what the source says"
use_pack
# Row 9 of L1 is row 1 of up; byte 6 holds the columns 12 and 13.
path=out/rank-001/$file
offset=$(($(tensor_offset $path layers.0.experts.l1_weight) + 9 * 192 + 6))
had=$(od -An -t x1 -j $offset -N 1 $path | tr -d ' ')
flip_byte $path $offset 1
has=$(od -An -t x1 -j $offset -N 1 $path | tr -d ' ')
run moepack verify out --source "$source"
assert_status 1
assert_equal "$(sed 's/xxh3 is .*/xxh3 is .../' "$stdout")" "\
rank 1, layers.0, l1_weight: changed: its xxh3 is ...
rank 1, layers.0, slot 0, l1_weight, element 3468: holds 0x$has where layers.0.ffn.experts.1.w3.weight row 1 column 12 says 0x$had
FAILED: 2 faults"

it "names the experts of swapped slots"
use_pack
path=out/rank-000/$file
for tensor in l1_weight:98304 l1_weight_sf:6144 l2_weight:49152 l2_weight_sf:3072; do
    bytes=${tensor#*:}
    offset=$(tensor_offset $path "layers.0.experts.${tensor%:*}")
    swap_bytes $path "$offset" $((offset + 2 * bytes)) "$bytes"
done
run moepack verify out --source "$source" --json
assert_status 1
assert_json '[.faults[] | select(.level == "exact") | [.rank, .slot, .tensor, .detail[0:38]]]' \
    '[[0,0,"layers.0.experts.l1_weight","holds expert 2 where expert 4 belongs;"],[0,0,"layers.0.experts.l1_weight_sf","holds expert 2 where expert 4 belongs;"],[0,0,"layers.0.experts.l2_weight","holds expert 2 where expert 4 belongs;"],[0,0,"layers.0.experts.l2_weight_sf","holds expert 2 where expert 4 belongs;"],[0,2,"layers.0.experts.l1_weight","holds expert 4 where expert 2 belongs;"],[0,2,"layers.0.experts.l1_weight_sf","holds expert 4 where expert 2 belongs;"],[0,2,"layers.0.experts.l2_weight","holds expert 4 where expert 2 belongs;"],[0,2,"layers.0.experts.l2_weight_sf","holds expert 4 where expert 2 belongs;"]]'

it "finds exchanged gate and up rows"
use_pack
path=out/rank-001/$file
offset=$(($(tensor_offset $path layers.0.experts.l1_weight) + 98304))
for ((run = 0; run < 32; run++)); do
    swap_bytes $path $((offset + run * 3072)) $((offset + run * 3072 + 1536)) 1536
done
run moepack verify out --source "$source"
assert_status 1
assert_stdout_has 'rank 1, layers.0, slot 1, l1_weight, element 0: gate and up of expert 3 are exchanged; holds 0x'
assert_stdout_has 'FAILED: 2 faults'

it "finds scales that are shifted by a row"
use_pack
path=out/rank-000/$file
offset=$(tensor_offset $path layers.0.experts.l2_weight_sf)
tail -c +$((offset + 1)) $path | head -c 3068 >scales
dd if=scales of=$path bs=1 seek=$((offset + 4)) conv=notrunc status=none
run moepack verify out --source "$source"
assert_status 1
assert_stdout_has 'rank 0, layers.0, slot 0, l2_weight_sf, element '
assert_stdout_has 'FAILED: 2 faults'

# ---------------------------------------------------------------------------
# Every target, from a source that it takes as it is or requantized

# Makes ./model: ARGUMENTS of synth.
make_model()
{
    run moepack synth --hidden 384 --intermediate 256 --experts 5 --layers 2 --top-k 2 --shared 2 \
        -q -o model "$@"
    assert_status 0
}

while read -r target format shared nz; do
    it "accepts a pack for $target from $format, shared experts $shared $nz"
    make_model --family deepseek_v3 --format "$format"
    run moepack repack model --target "$target" --ep 2 --redundant 1 --shared "$shared" ${nz:+"$nz"} \
        -q -o out
    assert_status 0
    run moepack verify out --source model --json
    assert_status 0
    assert_json '[.ok, .level]' '[true,"exact"]'
    case $shared in
    none) slots=12 ;;
    *) slots=20 ;; # two more on every rank
    esac
    assert_json .checked.slots $slots
done <<'END'
megamoe-nvfp4 nvfp4 none
megamoe-nvfp4 nvfp4 fused
megamoe-bf16 bf16 separate
megamoe-sm90-fp8 fp8_block fused
megamoe-sm90-fp8 fp8_block separate
fuseep-1 int8_channel fused
fuseep-1 int8_channel none --nz
fuseep-2 int8_channel separate
fuseep-2 int8_channel fused --nz
deepep-bf16 bf16 fused
END

while read -r target scheme; do
    it "accepts a pack for $target that was requantized"
    make_model --family qwen3_moe --shared 0 --format bf16
    run moepack repack model --target "$target" --ep 2 --redundant 1 --quantize "$scheme" -q -o out
    assert_status 0
    run moepack verify out --source model --json
    assert_status 0
    assert_json .checked.slots 12
done <<'END'
megamoe-w4a4 mxfp4
megamoe-w4a4-g8 mxfp4
megamoe-nvfp4 nvfp4
megamoe-sm90-fp8 fp8_block
fuseep-1 int8_channel
fuseep-2 int8_channel
END

it "names the shared expert that a slot should hold"
make_model --family deepseek_v3 --format fp8_block
run moepack repack model --target megamoe-sm90-fp8 --ep 2 --redundant 1 --shared fused -q -o out
path=out/rank-001/$file
bytes=$((2 * 256 * 384))
offset=$(tensor_offset $path model.layers.0.experts.l1_weight)
swap_bytes $path "$offset" $((offset + 3 * bytes)) $bytes
run moepack verify out --source model
assert_status 1
assert_stdout_has 'rank 1, model.layers.0, slot 0, l1_weight, element 0: holds shared expert 0 where expert 3 belongs; holds 0x'
assert_stdout_has 'rank 1, model.layers.0, slot 3, l1_weight, element 0: holds expert 3 where shared expert 0 belongs; holds 0x'

it "names tensors of shared experts that are apart"
make_model --family deepseek_v4 --shared 1
run moepack repack model --target megamoe-w4a8 --ep 2 --redundant 1 --shared separate -q -o out
assert_status 0
path=out/rank-000/$file
flip_byte $path $(($(tensor_offset $path layers.1.shared_experts.shared_l2_weight) + 7 * 256 + 40)) 2
run moepack verify out --source model
assert_status 1
assert_stdout_has 'rank 0, layers.1, shared_experts.shared_l2_weight, element 1832: holds 0x'
assert_stdout_has ' where layers.1.ffn.shared_experts.w2.weight row 7 column 40 says 0x'

it "finds padding of the FRACTAL_NZ form that is not zero"
run moepack synth --family deepseek_v3 --format int8_channel --hidden 104 --intermediate 40 \
    --experts 4 --shared 1 --layers 1 --top-k 2 -q -o model
assert_status 0
run moepack repack model --target fuseep-2 --nz --ep 2 -q -o out
assert_status 0
path=out/rank-001/$file
# Rows 104 to 111 of a panel of 32 columns.
flip_byte $path $(($(tensor_offset $path model.layers.0.experts.w13_weight) + 104 * 32 + 9)) 4
run moepack verify out --source model
assert_status 1
assert_stdout_has 'slot 0, w13_weight, element 3337: byte 3337, which belongs to no element, holds 0x04, not 0x00'
flip_byte $path $(($(tensor_offset $path model.layers.0.experts.w13_weight) + 104 * 32 + 11)) 8
run moepack verify out --source model
assert_stdout_has 'holds 0x04, not 0x00; 2 such bytes'

it "finds an input scale that is not the source's"
make_model --family deepseek_v3 --format nvfp4
run moepack repack model --target megamoe-nvfp4 --ep 5 -q -o out
assert_status 0
path=out/rank-003/$file
flip_byte $path $(($(tensor_offset $path model.layers.1.experts.l2_input_scale) + 3)) 64
run moepack verify out --source model
assert_status 1
assert_stdout_has 'rank 3, model.layers.1, slot 0, l2_input_scale, element 0: holds '
assert_stdout_has ' where model.layers.1.mlp.experts.3.down_proj.input_scale says '

it "looks at a sample of the experts"
use_pack
run moepack verify out --source "$source" --sample 2 --json
assert_status 0
assert_json '.checked.slots >= 4 and .checked.slots < 12' true
for expert in 0 1 2; do # slots of rank 1 in layers.0: experts 1, 3, 2
    flip_slot 1 layers.0.experts.l2_weight $expert 49152 7 1
done
run moepack verify out --source "$source" --sample 2 --seed 5 --json
assert_status 1
cp "$stdout" expected
run moepack verify out --source "$source" --sample 2 --seed 5 --json -j 1
assert_stdout <expected
run moepack verify out --source "$source" --sample 5 --json
assert_json '[.faults[] | select(.level == "exact")] | length' 3
run moepack verify out --sample 2
assert_status 2
assert_stderr_has '--sample is for levels exact and numeric, not digest'

# ---------------------------------------------------------------------------
# Faults in files

it "finds a truncated file"
use_pack
truncate -s -1 out/rank-001/$file
assert_faults '[["structure",1,null,null,null,null]]'
assert_stdout_has "$file: truncated: "

it "finds a missing file"
use_pack
rm out/rank-000/$file
assert_faults '[["structure",0,null,null,null,null]]'
assert_stdout_has "$file: missing"

it "finds files that nobody named"
use_pack
touch out/README out/rank-001/model-00002-of-00002.safetensors
assert_faults '[["structure",null,null,null,null,null],["structure",1,null,null,null,null]]'

it "finds one changed character of the manifest, wherever it is"
use_pack
size=$(stat -c %s out/moepack.json)
for offset in 0 1 30 $((size / 3)) $((size / 2)) $((size - 20)) $((size - 2)) $((size - 1)); do
    flip_byte out/moepack.json $offset 1
    assert_faults '[["structure",null,null,null,null,null]]'
    assert_stdout_has '"detail": "moepack.json: '
    flip_byte out/moepack.json $offset 1
done

it "finds changed small files"
use_pack
for name in placement.json config.json rank-001/model.safetensors.index.json; do
    rank=null
    [ "${name#rank-001/}" = "$name" ] || rank=1
    sed -i '$s/$/ /' out/$name
    assert_faults "[[\"structure\",$rank,null,null,null,null]]"
    assert_stdout_has "${name##*/}: changed: its xxh3 is "
    cp "$WORK/sound/$name" out/$name
done

it "finds swapped ranks"
use_pack
mv out/rank-000 out/x
mv out/rank-001 out/rank-000
mv out/x out/rank-001
run moepack verify out
assert_status 1
assert_stdout_has "rank 0: $file: __metadata__ says ep_rank \"1\", the manifest says \"0\""
assert_stdout_has 'rank 1, mtp.0, l2_weight_sf: holds the bytes of rank 0'
assert_stdout_has 'FAILED: 18 faults'

it "finds a missing rank"
use_pack
rm -r out/rank-000
run moepack verify out
assert_status 1
assert_stdout <<'END'
rank 0: the directory is missing
FAILED: 1 fault
END

it "reports faults in TAP"
use_pack
touch out/extra
flip_slot 1 mtp.0.experts.l2_weight 1 49152 0 1
run moepack verify out --source "$source" --ranks 1 --tap
assert_status 1
assert_equal "$(sed 's/xxh3 is .*/.../; s/holds .*/.../' "$stdout")" "\
1..5
not ok 1 - pack: structure
# extra: the manifest does not name it
ok 2 - pack: exact
ok 3 - rank 1: structure
not ok 4 - rank 1: digest
# rank 1, mtp.0, l2_weight: changed: its ...
not ok 5 - rank 1: exact
# rank 1, mtp.0, slot 1, l2_weight, element 0: ..."

it "escapes what it quotes in XML"
use_pack
touch "out/<&\"'>" out/$'line\nend\xff'
run moepack verify out --level structure --junit report.xml
assert_status 1
assert_file_is report.xml <<'END'
<?xml version="1.0" encoding="UTF-8"?>
<testsuites>
  <testsuite name="moepack verify" tests="3" failures="1" errors="0" skipped="0">
    <testcase classname="pack" name="structure">
      <failure message="2 faults">
&lt;&amp;&quot;&apos;&gt;: the manifest does not name it
line?end?: the manifest does not name it
</failure>
    </testcase>
    <testcase classname="rank 0" name="structure"/>
    <testcase classname="rank 1" name="structure"/>
  </testsuite>
</testsuites>
END

it "bounds the list of faults, and counts them all"
use_pack
for ((i = 0; i < 150; i++)); do
    touch out/rank-001/extra-$i
done
run moepack verify out --level structure
assert_status 1
assert_equal "$(wc -l <"$stdout")" 102
assert_stdout_has '... and 50 more'
assert_stdout_has 'FAILED: 150 faults'
run moepack verify out --level structure --tap
assert_stdout_has '# ... and 50 more'

it "gives the same report for any number of threads"
use_pack
for byte in 3 700 5000; do
    flip_slot 0 layers.0.experts.l1_weight 1 98304 $byte 3
    flip_slot 1 mtp.0.experts.l2_weight 2 49152 $byte 3
done
run moepack verify out --source "$source" -j 1
assert_status 1
cp "$stdout" expected
for threads in 2 3 7; do
    run moepack verify out --source "$source" -j $threads
    assert_status 1
    assert_stdout <expected
done

# ---------------------------------------------------------------------------
# Requantized packs: every processor level quantizes to the same bits

it "checks requantized packs with any kernels"
run moepack synth --family qwen3_moe --format bf16 --hidden 384 --intermediate 128 --experts 5 \
    --layers 2 --top-k 2 -o model
assert_status 0
run moepack repack model --target megamoe-w4a8 --quantize mxfp4 --ep 3 --redundant 1 -o out
assert_status 0
run env MOEPACK_CPU=scalar "$MOEPACK" verify out --source model
assert_status 0
assert_stdout 'ok: exact: 3 files, 24 tensors, 12 slots, 940 kB'
mv out fast
run env MOEPACK_CPU=scalar "$MOEPACK" repack model --target megamoe-w4a8 --quantize mxfp4 --ep 3 \
    --redundant 1 -o out
assert_status 0
run moepack verify out --source model
assert_status 0
run diff -r fast out
assert_status 0

it "finds a flipped bit of a requantized slot"
run moepack synth --family qwen3_moe --format bf16 --hidden 384 --intermediate 128 --experts 5 \
    --layers 1 --top-k 2 -o model
run moepack repack model --target megamoe-w4a8 --quantize mxfp4 --ep 5 -o out
flip_slot 3 model.layers.0.experts.l2_weight 0 24576 $((7 * 64 + 2)) 16
run env MOEPACK_CPU=scalar "$MOEPACK" verify out --source model
assert_status 1
assert_stdout_has 'rank 3, model.layers.0, slot 0, l2_weight, element 901: holds 0x'
assert_stdout_has 'where model.layers.0.mlp.experts.3.down_proj.weight row 7 column 5 quantizes to 0x'

# ---------------------------------------------------------------------------
# What cannot be checked

it "refuses contradictory options"
use_pack
run moepack verify out --level exact
assert_status 2
assert_stdout ''
assert_stderr_is <<'END'
moepack: verify: --level exact needs --source
try 'moepack verify --help'
END
run moepack verify out --tap --json
assert_status 2
assert_stderr_has '--tap and --json cannot be used together'
run moepack verify out --layers 7
assert_status 2
run moepack verify out --ranks 2
assert_status 2

it "refuses what is not a packed directory"
run moepack verify .
assert_status 3
assert_stderr_is 'moepack: verify: "." is not a pack: it has no moepack.json'

it "refuses another source"
use_pack
run moepack synth --family qwen3_moe --format bf16 --hidden 384 --intermediate 128 --experts 5 \
    --layers 1 --top-k 2 -o model
run moepack verify out --source model
assert_status 3
assert_stdout ''
assert_stderr_is 'moepack: verify: "model" is not the checkpoint that was packed: shard model-00001-of-00001.safetensors, the manifest names model-00001-of-00002.safetensors'

it "says when the JUnit report cannot be written"
use_pack
run moepack verify out --junit no/such/dir/report.xml
assert_status 4
assert_stderr_is 'moepack: verify: cannot write "no/such/dir/report.xml": No such file or directory'

finish
