#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# verify CKPT --source ORIGINAL: what a conversion has lost, exchanged or spoiled is named.
# shellcheck source=tests/cli/lib.sh disable=SC2119
. "$(dirname "$0")/lib.sh"

fixtures=$ROOT/testdata/fixtures
# Layer "model.layers.0", 4 experts of BF16, H = 96, I = 64.
source=$fixtures/qwen3-bf16
prefix=model.layers.0.mlp.experts
file=model-00001-of-00001.safetensors

for format in nvfp4 fp8_block int8_channel mxfp4 bf16; do
    "$MOEPACK" quantize "$source" -o "$WORK/$format" -f $format -q 2>"$stderr" || cat "$stderr"
done

# A copy of a sound conversion, ./out.
use()
{
    cp -r "$WORK/$1" out
    rm -f out/moepack-quantize.json
}

damage()
{
    "$ROOT/tests/tools/tensors.py" out/$file "$@"
}

# Runs verify, expects failure and these faults.
assert_faults()
{
    run moepack verify out --source "$source"
    assert_status 1
    assert_stderr_is ''
    assert_stdout
}

it "accepts what quantize has made, in every format"
for format in nvfp4 fp8_block int8_channel mxfp4 bf16; do
    run moepack verify "$WORK/$format" --source "$source"
    assert_status 0
    assert_stdout_has 'ok: exact: 1 file, '
done
run moepack verify "$WORK/nvfp4" --source "$source" --json
assert_json . '{"ok":true,"level":"exact","checked":{"files":1,"tensors":37,"slots":4,"bytes":42288},"total_faults":0,"faults":[],"numeric":[]}'

it "accepts a checkpoint of shared experts and MTP layers"
moepack quantize "$fixtures/v4-fp4" -o v4 -f bf16 --requantize-shared -q 2>"$stderr"
run moepack verify v4 --source "$fixtures/v4-fp4"
assert_status 0
assert_stdout_has 'ok: exact: 1 file, '

it "names gate and up that are swapped"
use bf16
damage swap $prefix.2.gate_proj.weight $prefix.2.up_proj.weight
assert_faults <<'END'
model.layers.0, mlp.experts.2.gate_proj.weight: gate and up of expert 2 are swapped
FAILED: 1 fault
END

it "names experts that are swapped"
use fp8_block
for matrix in gate_proj up_proj down_proj; do
    for role in weight weight_scale_inv; do
        damage swap $prefix.1.$matrix.$role $prefix.3.$matrix.$role
    done
done
assert_faults <<'END'
model.layers.0, mlp.experts.1.down_proj.weight: expert 1 is expert 3
model.layers.0, mlp.experts.1.gate_proj.weight: expert 1 is expert 3
model.layers.0, mlp.experts.3.down_proj.weight: expert 3 is expert 1
model.layers.0, mlp.experts.3.gate_proj.weight: expert 3 is expert 1
FAILED: 4 faults
END

it "names a matrix that appears twice"
use bf16
damage copy $prefix.0.gate_proj.weight $prefix.3.up_proj.weight
assert_faults <<'END'
model.layers.0, mlp.experts.3.up_proj.weight: up of expert 3 is gate of expert 0
FAILED: 1 fault
END

it "names weights and scales that are zero or all the same"
use bf16
damage fill $prefix.1.down_proj.weight 0
assert_faults <<'END'
model.layers.0, mlp.experts.1.down_proj.weight: down of expert 1: weights are all zero
FAILED: 1 fault
END
rm -r out
use int8_channel
damage fill $prefix.1.up_proj.weight_scale 0
damage fill $prefix.2.up_proj.weight_scale 0x3c
assert_faults <<'END'
model.layers.0, mlp.experts.1.up_proj.weight: up of expert 1: scales are all zero
model.layers.0, mlp.experts.2.up_proj.weight: up of expert 2: scales are constant
FAILED: 2 faults
END
rm -r out
use mxfp4
damage fill $prefix.0.gate_proj.weight_scale 0
assert_faults <<'END'
model.layers.0, mlp.experts.0.gate_proj.weight_packed: gate of expert 0: scales are all zero
FAILED: 1 fault
END

it "names the error of what is worse than its scheme"
use nvfp4
damage write $prefix.2.up_proj.weight_scale_2 0.5
run moepack verify out --source "$source" --json
assert_status 1
assert_json '[.faults[] | [.level, .layer, .tensor]]' \
    '[["exact","model.layers.0","model.layers.0.mlp.experts.2.up_proj.weight"]]'
assert_json '.faults[0].detail | test("^up of expert 2: relative RMS error [0-9.e+]+, nvfp4 may have 0.15; it is not a matrix of this layer$")' true

it "finds one byte of what was not quantized"
use bf16
damage flip $prefix.2.up_proj.weight 1001 0x01
run moepack verify out --source "$source"
assert_status 1
assert_stdout_has "model.layers.0, mlp.experts.2.up_proj.weight: up of expert 2: row 5 column 20 is not the source's; relative RMS error "
run moepack verify out --source "$source" --tolerance 0.5
assert_status 0

it "wants what lists of exceptions name as it was"
moepack synth -o six --family qwen3_moe --layers 2 --experts 3 --top-k 2 --hidden 96 --intermediate 64 -q
for style in modelopt compressed-tensors; do
    for part in 0-1 1; do
        moepack quantize six -o $style-$part -f nvfp4 --style $style --layers $part -q 2>"$stderr"
        run moepack verify $style-$part --source six
        assert_status 0
    done
    cp $style-0-1/model-* $style-1
    cp $style-0-1/*.index.json $style-1
    entry='model.layers.0.mlp.experts*' name=weight
    [ $style = modelopt ] || entry='re:^model\.layers\.0\.mlp\.experts\..*' name=weight_packed
    run moepack verify $style-1 --source six
    assert_status 1
    assert_stdout_has "model.layers.0, mlp.experts.0.gate_proj.$name: should not be quantized by \"$entry\" in the list of exceptions, but is nvfp4"
    assert_stdout_has 'FAILED: 6 faults'
done

it "names other modules that were to stay, and are quantized"
moepack quantize "$source" -o out -f nvfp4 -q 2>"$stderr"
python3 - "$ROOT/tests/tools" <<'END'
import json, struct, sys
sys.path.insert(0, sys.argv[1])
from tensors import read, write
path = "out/model-00001-of-00001.safetensors"
tensors, metadata = read(path)
source, _ = read(sys.argv[1] + "/../../testdata/fixtures/qwen3-bf16/model.safetensors")
name = "model.layers.0.self_attn.q_proj"
ones = b"\x80\x3f" * (128 * 96)
source[name + ".weight"] = ["BF16", [128, 96], ones]
write("source.safetensors", source)
tensors[name + ".weight"] = ["F8_E4M3", [128, 96], b"\x38" * (128 * 96)]
tensors[name + ".weight_scale_inv"] = ["F32", [1, 1], struct.pack("<f", 1)]
write(path, tensors, metadata)
config = json.load(open("out/config.json"))
config["quantization_config"]["ignore"] = ["lm_head"]
json.dump(config, open("out/config.json", "w"))
END
rm -f out/*.index.json out/hf_quant_config.json
mkdir original
mv source.safetensors original
cp "$source/config.json" original
run moepack verify out --source original
assert_status 0
for list in ignore modules_to_not_convert ignored_layers; do
    jq --arg l $list '.quantization_config[$l] = ["model.layers.0.self_attn"]' out/config.json >new
    cp new out/config.json
    run moepack verify out --source original
    assert_status 1
    assert_stdout_has 'model.layers.0.self_attn.q_proj.weight: should not be quantized by "model.layers.0.self_attn" in the list of exceptions, but is fp8_block'
    jq --arg l $list 'del(.quantization_config[$l])' new >out/config.json
done
echo '{"model.layers.0.self_attn.q_proj.weight": "FLOAT"}' >out/quant_model_description.json
run moepack verify out --source original
assert_status 1
assert_stdout_has 'should not be quantized by "FLOAT"'
rm out/quant_model_description.json
echo '{"quantization": {"exclude_modules": ["*self_attn*"]}}' >out/hf_quant_config.json
run moepack verify out --source original
assert_status 1
assert_stdout_has 'should not be quantized by "*self_attn*"'
echo '{' >out/hf_quant_config.json
run moepack verify out --source original
assert_status 3
assert_stderr_has 'hf_quant_config.json: line 2'

it "looks at a sample of experts"
use bf16
damage swap $prefix.2.gate_proj.weight $prefix.2.up_proj.weight
found=0
for seed in 1 2 3 4 5 6 7 8; do
    run moepack verify out --source "$source" --sample 2 --seed $seed --json
    found=$((found + status))
    assert_json '.checked.slots' 2
done
assert_equal "$((found > 0 && found < 8))" 1

it "takes another bound by --tolerance"
use fp8_block
run moepack verify out --source "$source" --tolerance 0.001
assert_status 1
assert_stdout_has 'fp8_block may have 0.001'
run moepack verify "$WORK/mxfp4" --source "$source" --tolerance 0.2
assert_status 0

it "names what is not finite"
use bf16
damage fill $prefix.1.down_proj.weight 0xff
assert_faults <<'END'
model.layers.0, mlp.experts.1.down_proj.weight: down of expert 1: holds a NaN or Inf
FAILED: 1 fault
END

it "wants input scales to be positive and finite"
cp -r "$fixtures/modelopt-nvfp4" out
input=$(moepack inspect out --tensors --json | jq -r '[.tensors[].name | select(endswith(".input_scale"))][0]')
shard=$(moepack inspect out --tensors --json | jq -r --arg n "$input" '.tensors[] | select(.name == $n) | .shard')
"$ROOT/tests/tools/tensors.py" "out/$shard" write "$input" 0
run moepack verify out --source "$fixtures/modelopt-nvfp4"
assert_status 1
assert_stdout_has 'input scale 0, expected a positive finite number'
"$ROOT/tests/tools/tensors.py" "out/$shard" write "$input" inf
run moepack verify out --source "$fixtures/modelopt-nvfp4"
assert_status 1
assert_stdout_has 'input scale inf, expected a positive finite number'

it "finds those of each expert in a stacked tensor: one for all, one for each, or gate's and up's"
cp -r "$fixtures/llama4-modelopt-nvfp4" out
rm out/*.index.json
while read -r count shape expected; do
    PYTHONPATH=$ROOT/tests/tools python3 - "$count" "$shape" <<'END'
import json, struct, sys
from tensors import read, write

path, count = "out/model.safetensors", int(sys.argv[1])
tensors, metadata = read(path)
name = "language_model.model.layers.0.feed_forward.experts.gate_up_proj_input_scale"
tensors[name] = ["F32", json.loads(sys.argv[2]), struct.pack(f"<{count}f", *range(-count, 0))]
write(path, tensors, metadata)
END
    run moepack verify out --source "$fixtures/llama4-modelopt-nvfp4"
    assert_status 1
    assert_equal "$(sed -n 's/.*gate_up_proj_input_scale: input scale \(.*\), expected .*/\1/p' "$stdout" |
        sort -n | xargs)" "$expected"
done <<'END'
1 [] -1 -1 -1 -1 -1 -1
3 [3] -3 -3 -2 -2 -1 -1
6 [3,2] -6 -5 -4 -3 -2 -1
END

it "wants those of other modules so too, in any type"
use nvfp4
python3 - "$ROOT/tests/tools" <<'END'
import sys
sys.path.insert(0, sys.argv[1])
from tensors import read, write
path = "out/model-00001-of-00001.safetensors"
tensors, metadata = read(path)
tensors["model.layers.0.self_attn.q_proj.input_scale"] = ["BF16", [], b"\x80\x7f"]
tensors["model.layers.0.self_attn.k_proj.input_scale"] = ["F16", [], b"\x00\x3c"]
write(path, tensors, metadata)
END
rm -f out/*.index.json
assert_faults <<'END'
model.layers.0.self_attn.q_proj.input_scale: input scale inf, expected a positive finite number
FAILED: 1 fault
END

it "wants other modules as they were"
use nvfp4
damage flip model.layers.0.mlp.gate.weight 6 0x10
assert_faults <<'END'
model.layers.0.mlp.gate.weight: should be unchanged, but differs from byte 6 on
FAILED: 1 fault
END
damage rename model.layers.0.mlp.gate.weight model.layers.0.mlp.gate_x.weight
rm out/*.index.json
assert_faults <<'END'
model.layers.0.mlp.gate.weight: is missing
FAILED: 1 fault
END

it "sees that a module has other scales, or none, under the same codes"
moepack synth -o a --family qwen3_moe --layers 1 --experts 3 --top-k 2 --hidden 96 --intermediate 64 -q
python3 - "$ROOT/tests/tools" <<'END'
import struct, sys
sys.path.insert(0, sys.argv[1])
from tensors import read, write
path = "a/model-00001-of-00001.safetensors"
tensors, metadata = read(path)
for name, scale in ("q", 0.25), ("k", 0.5):
    module = f"model.layers.0.self_attn.{name}_proj.weight"
    tensors[module] = ("F8_E4M3", [128, 96], bytes(0x30 + i * 7 % 0x40 for i in range(128 * 96)))
    tensors[module + "_scale_inv"] = ("F32", [1, 1], struct.pack("<f", scale))
    tensors[module[:-6] + "input_scale"] = ("F32", [], struct.pack("<f", 3 * scale))
write(path, tensors, metadata)
END
rm -f a/*.index.json
moepack quantize a -o out -f nvfp4 -q 2>"$stderr"
run moepack verify out --source a
assert_status 0
damage write model.layers.0.self_attn.q_proj.input_scale 5
run moepack verify out --source a
assert_status 1
assert_stdout_has 'model.layers.0.self_attn.q_proj.input_scale: should be unchanged, but differs from byte '
damage fill model.layers.0.self_attn.k_proj.weight_scale_inv 0
run moepack verify out --source a
assert_status 1
assert_stdout_has 'model.layers.0.self_attn.k_proj.weight: relative RMS error '
damage drop model.layers.0.self_attn.q_proj.weight_scale_inv
rm -f out/*.index.json
run moepack verify out --source a
assert_status 1
assert_stdout_has 'model.layers.0.self_attn.q_proj.weight: '

it "takes scales for part of a weight by any of its names"
moepack synth -o a --family qwen3_moe --format nvfp4 --style compressed-tensors --layers 1 --experts 3 \
    --top-k 2 --hidden 96 --intermediate 64 -q
moepack quantize a -o out -f bf16 --drop input_scale -q 2>"$stderr"
python3 - "$ROOT/tests/tools" <<'END'
import sys
sys.path.insert(0, sys.argv[1])
from tensors import read, write
path = "model-00001-of-00001.safetensors"
for directory, suffixes in ("a", ("weight_packed", "weight_scale", "weight_global_scale")), ("out", ("weight",)):
    tensors, metadata = read(f"{directory}/{path}")
    for suffix in suffixes:
        for module, expert in ("q", 0), ("k", 1):
            tensors[f"model.layers.0.self_attn.{module}_proj.{suffix}"] = tensors[
                f"model.layers.0.mlp.experts.{expert}.up_proj.{suffix}"]
    write(f"{directory}/{path}", tensors, metadata)
END
rm -f {a,out}/*.index.json
run moepack verify out --source a
assert_status 0
damage scale model.layers.0.self_attn.k_proj.weight 1.5
run moepack verify out --source a
assert_status 1
sed -n 's/ error .*//p' "$stdout" >faults
assert_file_is faults 'model.layers.0.self_attn.k_proj.weight_packed: relative RMS'
"$ROOT/tests/tools/tensors.py" a/*.safetensors drop model.layers.0.self_attn.q_proj.weight_packed
run moepack verify out --source a
assert_status 1
assert_stdout_has 'model.layers.0.self_attn.q_proj.weight_scale: is missing'

it "names experts and layers that are missing"
use bf16
damage drop $prefix.3.down_proj.weight
rm -f out/*.index.json
run moepack verify out --source "$source"
assert_status 1
assert_stdout_has "$prefix.3"
run moepack verify "$fixtures/qwen3-bf16" --source "$fixtures/v3-fp8"
assert_status 1
assert_stdout <<'END'
hidden size 96 and intermediate size 64, the source has 192 and 160
FAILED: 1 fault
END

it "finds a layer of another checkpoint"
moepack synth -o a --family qwen3_moe --layers 2 --experts 4 --top-k 2 --hidden 96 --intermediate 64 --seed 1 -q
moepack synth -o b --family qwen3_moe --layers 2 --experts 4 --top-k 2 --hidden 96 --intermediate 64 --seed 2 -q
moepack quantize a -o out -f nvfp4 -q 2>"$stderr"
moepack quantize b -o other -f nvfp4 -q 2>"$stderr"
python3 - "$ROOT/tests/tools" <<'END'
import sys
sys.path.insert(0, sys.argv[1])
from tensors import read, write
path = "model-00001-of-00001.safetensors"
ours, metadata = read("out/" + path)
theirs, _ = read("other/" + path)
for name in ours:
    if name.startswith("model.layers.1.mlp.experts."):
        ours[name] = theirs[name]
write("out/" + path, ours, metadata)
END
run moepack verify out --source a --json
assert_status 1
assert_json '[.faults[].layer] | unique' '["model.layers.1"]'
assert_json '.total_faults' 12
run moepack verify out --source a --layers 0
assert_status 0

it "reports as TAP and JUnit"
use bf16
damage swap $prefix.2.gate_proj.weight $prefix.2.up_proj.weight
run moepack verify out --source "$source" --tap --junit report.xml
assert_status 1
assert_stdout <<'END'
1..2
ok 1 - checkpoint: structure
not ok 2 - checkpoint: exact
# model.layers.0, mlp.experts.2.gate_proj.weight: gate and up of expert 2 are swapped
END
assert_file_has report.xml '<testcase classname="checkpoint" name="exact">'

it "gives the same report for any number of threads"
use mxfp4
damage fill $prefix.0.gate_proj.weight_scale 0
damage swap $prefix.2.gate_proj.weight_packed $prefix.3.gate_proj.weight_packed
moepack verify out --source "$source" --json -j1 >one
moepack verify out --source "$source" --json -j3 >three
assert_file_is three <one

it "refuses what is no checkpoint, and what is for packs"
mkdir empty
run moepack verify empty --source "$source"
assert_status 3
assert_stderr_is 'moepack: verify: empty: "empty" holds no *.safetensors'
run moepack verify "$WORK/bf16" --source empty
assert_status 3
run moepack verify "$WORK/bf16" --source "$source" --level numeric
assert_status 2
assert_stderr_has 'level numeric is for packs'
run moepack verify "$WORK/bf16" --source "$source" --ranks 0
assert_status 2
assert_stderr_has 'a list of ranks is for packs'
run moepack verify "$WORK/bf16" --source "$source" --layers 9
assert_status 2

finish
