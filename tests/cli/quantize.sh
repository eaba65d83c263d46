#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# quantize: checkpoints in other formats, what it says of them, and runs that do not come to
# their end.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

fixtures=$ROOT/testdata/fixtures

quantize()
{
    run moepack quantize "$@"
}

# Tensors of a checkpoint as "name dtype shape", sorted.
tensors()
{
    "$MOEPACK" inspect --tensors --json "$1" | jq -r '.tensors[] | "\(.name) \(.dtype) \(.shape)"' |
        sort
}

# ---------------------------------------------------------------------------
# Formats
# ---------------------------------------------------------------------------

it "writes a checkpoint that inspect takes, with the error of each projection"
quantize "$fixtures/v3-fp8" -o out -f int8_channel --requantize-shared -q
assert_status 0
assert_stderr_is ''
assert_equal "$(sed -n 's/^layer .*//p' "$stdout" | wc -l)" 1
assert_equal "$(grep -c '^model.layers.1  ' "$stdout")" 6
assert_stdout_has 'shared down_proj'
assert_stdout_has 'largest relative RMS error '
run moepack inspect out --json
assert_status 0
assert_json '.problems' '[]'
assert_json '[.layers[].format] | unique' '["int8_channel"]'

it "prints the same as JSON"
quantize "$fixtures/qwen3-bf16" -o out -f nvfp4 -q --json
assert_status 0
assert_json '.errors | length' 3
assert_json '[.errors[].projection]' '["gate_proj","up_proj","down_proj"]'
assert_json '.errors[0] | .elements == 4 * 64 * 96 and .relative_rms > 0.01 and .sqnr_db > 10' true
assert_json '[.files[].path]' '["model-00001-of-00001.safetensors"]'
assert_equal "$(jq -c '[.errors[].relative_rms]' "$stdout")" \
    "$(jq -c '[.errors[].relative_rms]' out/moepack-quantize.json)"

it "says nothing of errors where there are none"
quantize "$fixtures/v4-fp4" -o out -f mxfp4 --style compressed-tensors -q
assert_status 0
assert_stdout ''
assert_equal "$(jq -c '[.lossless, .errors]' out/moepack-quantize.json)" '[true,[]]'

it "gives back the source, byte for byte, from a style that keeps its bytes"
quantize "$fixtures/v4-fp4" -o there -f mxfp4 --style compressed-tensors -q
assert_status 0
quantize there -o back -f mxfp4 --style deepseek-v4 -q
assert_status 0
quantize "$fixtures/v4-fp4" -o same -f mxfp4 -q
assert_status 0
assert_equal "$(cmp back/model-00001-of-00001.safetensors same/model-00001-of-00001.safetensors)" ''
assert_equal "$(cmp back/config.json "$fixtures/v4-fp4/config.json")" ''

it "is repacked like any other checkpoint"
quantize "$fixtures/qwen3-bf16" -o out -f bf16 -q
assert_status 0
quantize "$fixtures/v4-fp4" -o v4 -f mxfp4 --style compressed-tensors -q
run moepack repack v4 -t megamoe-w4a8 --ep 1 -o a -q
assert_status 0
run moepack repack "$fixtures/v4-fp4" -t megamoe-w4a8 --ep 1 -o b -q
assert_status 0
assert_equal "$(cmp a/rank-000/model-00001-of-00001.safetensors \
    b/rank-000/model-00001-of-00001.safetensors)" ''

it "requantizes only the layers that are listed"
quantize "$fixtures/v4-fp4" -o out -f bf16 --layers mtp.0 -q
assert_status 0
run moepack inspect out --json
assert_json '[.layers[].format]' '["mxfp4","bf16"]'
assert_equal "$(jq -c '.layers' out/moepack-quantize.json)" '["mtp.0"]'

# ---------------------------------------------------------------------------
# What it says
# ---------------------------------------------------------------------------

it "prints the plan and writes nothing with --dry-run"
quantize "$fixtures/v3-fp8" -f bf16 -n
assert_status 0
assert_stdout_has 'model-00001-of-00001.safetensors  '
assert_stdout_has ' to write, scratch memory '
assert_equal "$(ls -A)" ''

it "ends with status 1 above a bound, with all written"
quantize "$fixtures/qwen3-bf16" -o out -f mxfp4 -q --fail-above 0.001
assert_status 1
assert_stderr_has ': relative RMS error '
assert_stderr_has ' is above 0.001 (3 of 3 projections)'
run test -f out/moepack-quantize.json
assert_status 0
quantize "$fixtures/qwen3-bf16" -o other -f mxfp4 -q --fail-above 0.9
assert_status 0

it "warns of what config.json cannot say"
quantize "$fixtures/v3-fp8" -o out -f mxfp4
assert_status 0
assert_stderr_has 'moepack: quantize: warning: config.json: quantization_config stays "fp8" for '

# A model whose attention, shared experts, MTP block and head stay as they are.
make_partly()
{
    moepack synth -o "$1" --family qwen3_moe --hidden 128 --intermediate 64 \
        --experts 3 --layers 1 --top-k 2 -q
    PYTHONPATH=$ROOT/tests/tools python3 - "$1" <<'END'
import glob, json, os, sys, tensors

path = sys.argv[1] + "/model.safetensors"
made = {n: t for p in glob.glob(sys.argv[1] + "/*.safetensors") for n, t in tensors.read(p)[0].items()}
for old in glob.glob(sys.argv[1] + "/model*"):
    os.remove(old)
for name, rows, cols in (("layers.0.self_attn.q_proj", 128, 128), ("layers.0.self_attn.o_proj", 128, 128),
                         ("layers.0.mlp.shared_expert.gate_proj", 64, 128),
                         ("layers.0.mlp.shared_expert.up_proj", 64, 128),
                         ("layers.0.mlp.shared_expert.down_proj", 128, 64),
                         ("layers.0.mlp.shared_expert_gate", 1, 128)):
    made[f"model.{name}.weight"] = made[f"mtp.{name}.weight"] = ["BF16", [rows, cols], b"\x80\x3f" * rows * cols]
made["mtp.fc.weight"] = ["BF16", [128, 256], b"\x80\x3f" * 128 * 256]
made["lm_head.weight"] = made["model.embed_tokens.weight"] = ["BF16", [64, 128], b"\x80\x3f" * 64 * 128]
for name in [n for n in made if n.startswith("model.layers.0.mlp.experts.") or n == "model.layers.0.mlp.gate.weight"]:
    made[name.replace("model.", "mtp.", 1)] = made[name]
tensors.write(path, made)
config = json.load(open(sys.argv[1] + "/config.json"))
config.update(model_type="qwen3_next", shared_expert_intermediate_size=64, mtp_num_hidden_layers=1)
json.dump(config, open(sys.argv[1] + "/config.json", "w"))
END
}

# Modules that lists of exceptions have wrong, by the rules of engines: a text is a module, all
# below it, or a pattern of *; "re:" begins a regular expression.
wrong_exceptions()
{
    PYTHONPATH=$ROOT/tests/tools python3 - "$1" <<'END'
import fnmatch, glob, json, os, re, sys, tensors

made = {n: t for p in glob.glob(sys.argv[1] + "/*.safetensors") for n, t in tensors.read(p)[0].items()}
config = json.load(open(sys.argv[1] + "/config.json"))["quantization_config"]
lists = [config.get("ignore") or config["modules_to_not_convert"]]
beside = sys.argv[1] + "/hf_quant_config.json"
if os.path.exists(beside):
    lists.append(json.load(open(beside))["quantization"]["exclude_modules"])


def listed(module, rules):
    return any(re.match(r[3:], module) if r.startswith("re:") else
               fnmatch.fnmatchcase(module, r) or module.startswith(r + ".") for r in rules)


plain = {n[:-7]: dtype == "BF16" for n, (dtype, shape, _) in made.items()
         if n.endswith(".weight") and len(shape) == 2}
plain.update({n[:-14]: False for n in made if n.endswith(".weight_packed")})
print(len(lists), sum(plain.values()), sum(not p for p in plain.values()),
      *(m for rules in lists for m, p in plain.items() if listed(m, rules) != p))
END
}

it "lists all that stays as it is, and nothing else, where engines look for exceptions"
make_partly source
while read -r format style lists; do
    rm -rf out
    quantize source -f "$format" --style "$style" --layers 0 -o out -q
    assert_status 0
    assert_equal "$format $style $(wrong_exceptions out)" "$format $style $lists 26 9"
done <<'END'
mxfp4 compressed-tensors 1
nvfp4 compressed-tensors 1
nvfp4 modelopt 2
int8_channel compressed-tensors 1
fp8_block deepseek-v3 1
END

it "declares static activations only where every expert has a scale of them"
moepack synth -o source --family qwen3_moe --format nvfp4 --style modelopt --hidden 128 --intermediate 64 \
    --experts 3 --layers 2 --top-k 2 -q
static='.quantization_config.config_groups.group_0.input_activations.dynamic'
quantize source -f nvfp4 --style modelopt -o out
assert_status 0
assert_equal "$(grep -c warning "$stderr")" 0
assert_equal "$(jq $static out/config.json)" false
for matrix in $(tensors source | sed -n 's/^\(model.layers.1.*input_scale\) .*/\1/p'); do
    "$ROOT/tests/tools/tensors.py" source/*.safetensors drop "$matrix"
done
rm -rf out source/*.index.json && mv source/*.safetensors source/model.safetensors
quantize source -f nvfp4 --style modelopt -o out
assert_status 0
assert_stderr_has 'moepack: quantize: warning: experts have no input_scale: engines that quantize activations to nvfp4 need one'
assert_equal "$(jq $static out/config.json)" null
assert_equal "$(tensors out | grep -c 'input_scale')" 9

# types DIR: types of the scales of routed experts.
types()
{
    tensors "$1" | awk '/experts\.[0-9]+\..*scale/ { print $2 }' | sort -u
}

it "keeps every value of MX experts in FP8, with scales as the style has them"
moepack synth -o mxfp4 --family deepseek_v4 --format mxfp4 --hidden 288 --intermediate 160 \
    --experts 3 --layers 1 --hash 0 --top-k 2 -q
for case in 'deepseek-v4 F8_E8M0' 'deepseek-v3 F32' 'compressed-tensors F32'; do
    read -r style type <<<"$case"
    rm -rf out
    quantize mxfp4 -o out -f fp8_block --style "$style" -q
    assert_status 0
    assert_equal "$(types out)" "$type"
    run moepack diff mxfp4 out
    assert_status 0
    assert_stdout_has 'equal: 0 of '
    assert_equal "$(jq -c '[.lossless, ([.errors[].requantized_blocks] | add)]' \
        out/moepack-quantize.json)" '[true,0]'
done

it "counts the tiles whose exponents are too far apart"
quantize "$fixtures/quark-mxfp4" -o out -f fp8_block -q
assert_status 0
assert_equal "$(jq -c '[.lossless, ([.errors[].requantized_blocks] | add)]' \
    out/moepack-quantize.json)" '[false,9]'

it "loses nothing but bits below the subnormals of MXFP8 in FP8"
moepack synth -o mxfp8 --family minimax_m3 --format mxfp8 --hidden 288 --intermediate 160 \
    --experts 3 --layers 2 --top-k 2 -q
for case in 'deepseek-v4 F8_E8M0' 'deepseek-v3 F32'; do
    read -r style type <<<"$case"
    rm -rf out
    quantize mxfp8 -o out -f fp8_block --style "$style" -q
    assert_status 0
    assert_equal "$(types out)" "$type"
    assert_equal "$(jq -c '[.lossless, ([.errors[] | .requantized_blocks > 0 and
        .relative_rms < 1e-5] | all)]' out/moepack-quantize.json)" '[false,true]'
done

it "refuses a scheme that the style lacks, and names those that have it"
quantize "$fixtures/qwen3-bf16" -o out -f nvfp4 --style deepseek-v3
assert_status 5
assert_stderr_is <<'END'
moepack: quantize: style "deepseek-v3" has no nvfp4; modelopt and compressed-tensors have it
END

it "refuses scales of activations that it has no place for"
quantize "$fixtures/modelopt-nvfp4" -o out -f mxfp4
assert_status 5
assert_stderr_has 'input_scale: experts in mxfp4 cannot hold it: drop it with --drop'
quantize "$fixtures/modelopt-nvfp4" -o out -f mxfp4 --drop input_scale -q
assert_status 0

it "wants a format"
quantize "$fixtures/qwen3-bf16" -o out
assert_status 2
assert_stderr_has 'format'

it "replaces nothing that it has not made"
mkdir out
quantize "$fixtures/qwen3-bf16" -o out -f bf16 --force
assert_status 2
assert_stderr_has 'moepack: quantize: "out" exists and is not a requantized checkpoint: not replaced'
rmdir out
quantize "$fixtures/qwen3-bf16" -o out -f bf16 -q
quantize "$fixtures/qwen3-bf16" -o out -f bf16 -q
assert_status 2
quantize "$fixtures/qwen3-bf16" -o out -f mxfp4 -q --force
assert_status 0
assert_equal "$(jq -r .scheme out/moepack-quantize.json)" mxfp4

# ---------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------

it "keeps every other tensor and changes config.json only where it has to"
quantize "$fixtures/v4-fp4" -o out -f fp8_block -q
assert_status 0
tensors "$fixtures/v4-fp4" | grep -v '\.ffn\.experts\.' >expected
tensors out | grep -v '\.ffn\.experts\.' >found
assert_file_is found <expected
assert_equal "$(diff "$fixtures/v4-fp4/config.json" out/config.json | grep '^[<>]')" \
    '<  "expert_dtype": "fp4",
>  "expert_dtype": "fp8",'

it "keeps NaN and Infinity of config.json, not its byte order mark"
cp -r "$ROOT/testdata/fixtures/qwen3-bf16" source && chmod -R u+w source
{ printf '\357\273\277' && sed '1s/{/{"limit": [0.0, Infinity], "z": -Infinity, "n": NaN,/' \
    "$ROOT/testdata/fixtures/qwen3-bf16/config.json"; } >source/config.json
run moepack quantize source -f int8_channel -q -o out
assert_status 0
assert_equal "$(head -c 52 out/config.json)" '{"limit": [0.0, Infinity], "z": -Infinity, "n": NaN,'
run moepack inspect out --json
assert_json '.layers[0].format' '"int8_channel"'

it "changes members of config.json whose keys are spelled with escapes"
cp -r "$fixtures/v4-fp4" source && chmod -R u+w source
sed -i 's/"quantization_config"/"quantization\\u005fconfig"/; s/"expert_dtype"/"expert\\u005fdtype"/' \
    source/config.json
for format in fp8_block bf16 mxfp4; do
    for from in source "$fixtures/v4-fp4"; do
        run moepack quantize "$from" -f $format -q -o "out-$format-${from##*/}"
        assert_status 0
    done
    assert_equal "$(jq -cS . out-$format-source/config.json)" "$(jq -cS . out-$format-v4-fp4/config.json)"
done

it "copies tokenizers, templates and code"
cp -r "$fixtures/qwen3-bf16" source
echo '{"x": 1.0}' >source/tokenizer.json
echo code >source/modeling_x.py
echo no >source/notes.md
quantize source -o out -f bf16 -q
assert_status 0
assert_equal "$(cd out && printf '%s ' *)" 'config.json model-00001-of-00001.safetensors model.safetensors.index.json modeling_x.py moepack-quantize.json tokenizer.json '
assert_equal "$(cmp source/tokenizer.json out/tokenizer.json)" ''

# ---------------------------------------------------------------------------
# Interrupted
# ---------------------------------------------------------------------------

fail_io=$WORK/fail_io.so
"${CC:-gcc}" -D_GNU_SOURCE -O1 -fPIC -shared -o "$fail_io" "$ROOT/tests/cli/fail_io.c" -ldl || exit 1
flags=("$fixtures/v4-fp4" -f nvfp4 --max-shard-size 500kB -q)

# quantize_failing SETTING...: with settings of fail_io.c.
quantize_failing()
{
    {
        run env LD_PRELOAD="$fail_io" "$@" "$MOEPACK" quantize "${flags[@]}" -o out -j1
    } 2>/dev/null
}

it "goes on after being killed at any call"
changes=pwrite,fdatasync,fsync,ftruncate,mkdir,unlink,rename
quantize "${flags[@]}" -o "$WORK/wanted"
assert_status 0
quantize_failing FAIL_CALL=$changes FAIL_COUNT="$WORK/calls"
assert_status 0
rm -rf out
calls=$(cat "$WORK/calls")
for n in 1 8 20 $(seq 60 $((calls / 4)) $((calls - 12))) $(seq $((calls - 8)) "$calls"); do
    quantize_failing FAIL_CALL=$changes FAIL_AT="$n" FAIL_WITH=SIGKILL
    assert_status 137
    [ -e out ] || quantize "${flags[@]}" -o out --resume
    assert_equal "killed at $n: $(diff -r out "$WORK/wanted")" "killed at $n: "
    rm -rf out out.partial
done

it "goes on after a full disk"
quantize_failing FAIL_CALL=pwrite FAIL_AT=90 FAIL_WITH=ENOSPC
assert_status 4
assert_stderr_has 'No space left on device'
quantize "${flags[@]}" -o out --resume -j2
assert_status 0
assert_equal "$(diff -r out "$WORK/wanted")" ''

it "does not go on with something else"
quantize_failing FAIL_CALL=pwrite FAIL_AT=90 FAIL_TIMES=1 FAIL_WITH=SIGTERM
assert_status 143
assert_stderr_is 'moepack: quantize: interrupted: --resume continues out.partial'
quantize "${flags[@]}" -o out --resume --style compressed-tensors
assert_status 3
assert_stderr_has 'cannot resume: '

finish
