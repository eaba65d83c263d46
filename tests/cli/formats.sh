#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Formats of real checkpoints that are easily read wrong: zero points, several precisions, codes
# in other containers.
# shellcheck source=tests/cli/lib.sh disable=SC2119
. "$(dirname "$0")/lib.sh"

edit()
{
    python3 "$ROOT/tests/tools/tensors.py" "$@"
}

# ---------------------------------------------------------------------------
# Zero points
# ---------------------------------------------------------------------------

# Names of the zero points of ./ckpt.
zero_points()
{
    "$MOEPACK" inspect --tensors --json ckpt | jq -r '.tensors[].name | select(endswith("weight_offset"))'
}

it "takes zero points that are -0.0 for zero"
moepack synth -o ckpt --family qwen3_moe --format int8_channel --style modelslim --hidden 128 \
    --intermediate 64 --experts 2 --layers 1 --top-k 2 -q
for name in $(zero_points); do
    edit ckpt/*.safetensors scale "$name" -1
done
run moepack quantize ckpt -f bf16 -o bf16 -q
assert_status 0
run moepack repack ckpt -t fuseep-1 --ep 2 -o pack -q
assert_status 0
run moepack verify pack --source ckpt --level numeric -q
assert_status 0
run moepack diff ckpt pack
assert_status 0

it "carries other zero points, and decodes nothing that has them"
moepack synth -o ckpt --family qwen3_moe --format int8_channel --style modelslim --hidden 128 \
    --intermediate 64 --experts 2 --layers 1 --top-k 2 -q
for name in $(zero_points); do
    edit ckpt/*.safetensors fill "$name" 63
done
run moepack repack ckpt -t fuseep-1 --ep 2 -o pack -q
assert_status 0
run moepack verify pack --source ckpt -q
assert_status 0
run moepack verify pack --source ckpt --level numeric -q
assert_status 5
assert_stderr_has 'weight_offset: zero points that are not zero cannot be decoded'
run moepack quantize ckpt -f bf16 -o bf16 -q
assert_status 5
assert_stderr_has 'weight_offset: zero points that are not zero cannot be decoded'

# ---------------------------------------------------------------------------
# Activations
# ---------------------------------------------------------------------------

activation()
{
    run moepack repack ckpt -t "$1" --ep 1 -o "$2"
    assert_status 0
    assert_equal "$(sed -n 's/.*: the kernel of //p' "$stderr")" "$3"
}

it "warns of activations that the target's kernel does not compute"
moepack synth -o ckpt --family minimax_m3 --format bf16 --hidden 128 --intermediate 128 --experts 2 \
    --layers 1 --top-k 2 -q
activation megamoe-bf16 pack 'megamoe-bf16 does not compute activation swigluoai'
activation deepep-bf16 deepep ''
rm -rf ckpt
moepack synth -o ckpt --family qwen3_moe --hidden 128 --intermediate 128 --experts 2 --layers 1 --top-k 2 -q
activation megamoe-bf16 silu ''
jq '.model_type = "step3p5" | .swiglu_limits = [7]' ckpt/config.json >config && mv config ckpt/config.json
activation megamoe-bf16 late 'megamoe-bf16 does not compute activation SwiGLU, clamped after SiLU'
jq '.swiglu_limits = [0]' ckpt/config.json >config && mv config ckpt/config.json
activation megamoe-bf16 unlimited ''

# ---------------------------------------------------------------------------
# Experts without a gate
# ---------------------------------------------------------------------------

it "reads, requantizes and compares experts that have no gate"
moepack synth -o ckpt --family qwen3_moe --hidden 128 --intermediate 64 --experts 3 --layers 1 --top-k 2 -q
for e in 0 1 2; do
    edit ckpt/*.safetensors drop model.layers.0.mlp.experts.$e.gate_proj.weight
done
rm ckpt/model.safetensors.index.json && mv ckpt/*.safetensors ckpt/model.safetensors
run moepack inspect ckpt
assert_status 3
assert_stderr_has 'model.layers.0.mlp.experts.0.gate_proj.weight: missing'
jq '.model_type = "nemotron_h"' ckpt/config.json >config && mv config ckpt/config.json
run moepack inspect ckpt
assert_status 0
assert_stderr_has 'note: experts have no gate: they are relu(up)^2, which no target packs'
for format in nvfp4 fp8_block int8_channel; do
    run moepack quantize ckpt -f $format -o $format -q --json
    assert_status 0
    assert_json '[.errors[] | .projection, .elements]' '["up_proj",24576,"down_proj",24576]'
    run moepack diff ckpt $format --tolerance 0.15 --json
    assert_status 0
    assert_json '[.pairs[] | select(.name | endswith(".up") or endswith(".down"))] | length' 6
    run moepack inspect $format --json
    assert_json '[.problems, .layers[0].format]' "[[],\"$format\"]"
done

it "quantizes experts that have no gate from a shard that can only be read in order"
moepack synth -o ckpt --family qwen3_moe --hidden 128 --intermediate 64 --experts 3 --layers 1 --top-k 2 -q
for e in 0 1 2; do
    edit ckpt/*.safetensors drop model.layers.0.mlp.experts.$e.gate_proj.weight
done
rm ckpt/model.safetensors.index.json && mv ckpt/*.safetensors ckpt/model.safetensors
jq '.model_type = "nemotron_h"' ckpt/config.json >config && mv config ckpt/config.json
mkdir streamed
cp ckpt/config.json streamed
# From a pipe, zstd does not say how much it is.
# shellcheck disable=SC2002
cat ckpt/model.safetensors | zstd -qc >streamed/model.safetensors.zst
for format in nvfp4 int8_channel; do
    run moepack quantize ckpt -f $format -o $format -q
    assert_status 0
    run moepack quantize streamed -f $format -o streamed-$format -q
    assert_status 0
    assert_equal "$(cd streamed-$format && sha256sum ./*.safetensors)" \
        "$(cd $format && sha256sum ./*.safetensors)"
done

it "says where one of two checkpoints has experts without a gate"
moepack synth -o gated --family qwen3_moe --hidden 128 --intermediate 64 --experts 3 --layers 1 --top-k 2 -q
cp -r gated ckpt
for e in 0 1 2; do
    edit ckpt/*.safetensors drop model.layers.0.mlp.experts.$e.gate_proj.weight
done
rm ckpt/model.safetensors.index.json
jq '.model_type = "nemotron_h"' gated/config.json >ckpt/config.json
run moepack verify ckpt --source gated
assert_status 1
assert_stdout <<'END'
model.layers.0: experts have no gate, those of the source have one
FAILED: 1 fault
END
run moepack diff gated ckpt --json
assert_status 1
assert_json '[.equal, .only_in_a, .only_in_b]' \
    '[false,["model.layers.0.0.gate","model.layers.0.1.gate","model.layers.0.2.gate"],[]]'
run moepack diff ckpt gated
assert_status 1
assert_stdout_has 'model.layers.0.1.gate'

# ---------------------------------------------------------------------------
# What is not computed
# ---------------------------------------------------------------------------

# Models whose experts have no gate, work on a latent or compute GELU, each with its experts one by
# one, of all in two or three tensors, and transposed; and tokens with their choices.
uncomputed()
{
    PYTHONPATH=$ROOT/tests/tools python3 - <<'END'
import json, os, struct, tensors

H, I, J, E = 128, 64, 96, 3


def made(rows, cols, seed):
    return [0x2000 + ((r * cols + c) * 7 + seed * 29) % 0x1F00 for r in range(rows) for c in range(cols)]


def bf16(shape, words):
    return ["BF16", list(shape), struct.pack(f"<{len(words)}H", *words)]


def turned(words, rows, cols):
    return [words[r * cols + c] for c in range(cols) for r in range(rows)]


def experts(at, names, form, hidden):
    """The tensors of E experts in a form, of the same numbers in each."""
    sizes = {n: (hidden, I) if n == names[-1] else (I, hidden) for n in names}
    matrices = {n: [made(*sizes[n], 3 * e + i) for e in range(E)] for i, n in enumerate(names)}
    if form == "single":
        return {f"{at}.{e}.{n}.weight": bf16(sizes[n], matrices[n][e]) for n in names for e in range(E)}
    groups = [(n, [n]) for n in names]
    if form != "stacked" and len(names) == 3:
        groups = [("gate_up_proj", names[:2]), ("down_proj", names[2:])]
    out = {}
    for name, members in groups:
        rows, cols = sizes[members[0]]
        rows *= len(members)
        slices = [sum((matrices[m][e] for m in members), []) for e in range(E)]
        if form == "turned":
            slices, rows, cols = [turned(s, rows, cols) for s in slices], cols, rows
        out[f"{at}.{name}"] = bf16((E, rows, cols), sum(slices, []))
    return out


def model(folder, config, made):
    os.mkdir(folder)
    tensors.write(f"{folder}/model.safetensors", made)
    json.dump(dict(config, hidden_size=H, moe_intermediate_size=I, num_experts=E, num_experts_per_tok=2,
                   num_hidden_layers=1), open(f"{folder}/config.json", "w"))


PROJ, W123 = ["gate_proj", "up_proj", "down_proj"], ["w1", "w3", "w2"]
for form in ("single", "rows", "turned", "stacked"):
    at = "backbone.layers.0.mixer"
    relu = dict(model_type="nemotron_h", mlp_hidden_act="relu2", hybrid_override_pattern="E")
    gate = {f"{at}.gate.weight": bf16((E, H), made(E, H, 50))}
    model(f"nemotron-{form}", relu, gate | experts(f"{at}.experts", PROJ[1:], form, H))
    gate[f"{at}.fc1_latent_proj.weight"] = bf16((J, H), made(J, H, 51))
    gate[f"{at}.fc2_latent_proj.weight"] = bf16((H, J), made(H, J, 52))
    model(f"latent-{form}", dict(relu, moe_latent_size=J), gate | experts(f"{at}.experts", PROJ[1:], form, J))
    for name, at, router, hidden, config in (
        ("kimi", "language_model.model.layers.0.block_sparse_moe", "gate", J,
         dict(model_type="kimi_k3", hidden_act="situ", routed_expert_hidden_size=J)),
        ("gemma", "model.language_model.layers.0", "router.proj", H,
         dict(model_type="gemma4_text", hidden_activation="gelu_pytorch_tanh")),
        ("grok", "model.layers.0.block_sparse_moe", "gate", H,
         dict(model_type="grok", hidden_act="gelu", scoring_func="softmax", norm_topk_prob=True))):
        gate = {f"{at}.{router}.weight": bf16((E, H), made(E, H, 50))}
        names = W123 if form == "single" and router == "gate" else PROJ
        model(f"{name}-{form}", config, gate | experts(f"{at}.experts", names, form, hidden))
for n in (H, J):
    tensors.write(f"{n}.st", {"x": ["F32", [2, n], struct.pack("<f", 0.5) * 2 * n],
                              "topk_ids": ["I32", [2, 2], struct.pack("<4i", 0, 1, 2, 0)],
                              "topk_weights": ["F32", [2, 2], struct.pack("<4f", 1, 2, 3, 4)]})
END
}

# refuses MESSAGE COMMAND...: it ends with status 5, and a message that ends so.
refuses()
{
    local message=$1 found

    shift
    run moepack "$@"
    assert_status 5
    found=$(<"$stderr")
    assert_equal "${found: -${#message}}" "$message"
}

no_gate=': backbone.layers.0: no gate: experts are relu(up)^2, which is not supported'

it "says of experts without a gate that nothing computes or packs them, however they are stored"
uncomputed
for form in single rows turned stacked; do
    for model in nemotron latent; do
        run moepack inspect $model-$form --json
        assert_json '[.problems, .layers[].experts]' '[[],3]'
        refuses "$no_gate" forward $model-$form --layer 0 --tokens 3
        refuses "$no_gate" forward $model-$form --layer 0 --input 128.st
        refuses "$no_gate" forward $model-$form --layer 0 --input 128.st --emulate bf16
        for target in $(moepack targets --json | jq -r '.[].name'); do
            refuses "$no_gate" repack $model-$form -t "$target" --ep 1 -o pack
        done
        refuses "$no_gate" plan --model $model-$form --ep 1
        run moepack quantize $model-$form -f int8_channel -o $model-$form.int8 -q
        assert_status 0
        refuses "$no_gate" verify $model-$form.int8 --source $model-$form
        run moepack diff $model-$form $model-single
        assert_status 0
        run moepack diff $model-$form.int8 $model-single.int8
        assert_status 0
    done
done

it "refuses fused experts of other models that have no gate"
uncomputed
jq '.model_type = "qwen3_moe"' nemotron-rows/config.json >config && mv config nemotron-rows/config.json
run moepack inspect nemotron-rows
assert_status 3
assert_stderr_has 'backbone.layers.0: fused experts without a gate_proj'

it "packs experts on a latent or with GELU, and computes no layer of them, however they are stored"
uncomputed
for form in single rows turned stacked; do
    while read -r model width message; do
        single=$model-single model=$model-$form
        refuses "$message" forward "$model" --layer 0 --tokens 3
        refuses "$message" forward "$model" --layer 0 --input 128.st
        refuses "$message" forward "$model" --layer 0 --input 128.st --emulate bf16
        run moepack repack "$model" -t deepep-bf16 --ep 3 -o "$model.pack" -q
        assert_status 0
        run moepack diff "$single" "$model.pack"
        assert_status 0
        message=${message/router and*/activation gelu of model_type \"gemma4_text\" is not computed}
        refuses "$message" forward "$model.pack" --layer 0 --input "$width.st"
        refuses "$message" forward "$model.pack" --layer 0 --input "$width.st" --source "$model"
        [ "$width" = 96 ] || refuses "$message" verify "$model.pack" --source "$model" --level numeric
    done <<'END'
kimi 96 experts work on a latent of 96: what leads to it and back is not computed
gemma 128 router and experts of gemma4 have different inputs
grok 128 config.json: hidden_act "gelu" is not silu, swigluoai or situ
END
done

# ---------------------------------------------------------------------------
# Tensors of several matrices
# ---------------------------------------------------------------------------

# Which tensors of a checkpoint are not, byte for byte, those of another; and how many are.
compare()
{
    PYTHONPATH=$ROOT/tests/tools python3 - "$@" <<'END'
import glob, sys, tensors

a, b = ({n: t for p in glob.glob(d + "/*.safetensors") for n, t in tensors.read(p)[0].items()} for d in sys.argv[1:])
print(*sorted(n for n in a if a[n] != b.get(n)), sum(a[n] == b.get(n) for n in a))
END
}

it "turns transposed experts over, which end inside of bands and of pieces"
moepack synth -o ckpt --family llama4 --hidden 264 --intermediate 2060 --experts 2 --layers 1 --top-k 1 -q
for cpu in scalar ''; do
    run env MOEPACK_CPU=$cpu "$MOEPACK" repack ckpt -t deepep-bf16 --ep 1 -o pack$cpu -q
    assert_status 0
    assert_equal "$(PYTHONPATH=$ROOT/tests/tools python3 - pack$cpu <<'END'
import array, glob, sys, tensors

whole = tensors.read(glob.glob("ckpt/*.safetensors")[0])[0]
pack = tensors.read(glob.glob(sys.argv[1] + "/*/*.safetensors")[0])[0]
for stored, packed in (("gate_up_proj", "w13_weight"), ("down_proj", "w2_weight")):
    (_, (slices, rows, cols), old), = (t for n, t in whole.items() if n.endswith(stored))
    (_, shape, new), = (t for n, t in pack.items() if n.endswith(packed))
    old = array.array("H", bytes(old))
    size = rows * cols
    want = [old[e * size + c : (e + 1) * size : cols] for e in range(slices) for c in range(cols)]
    print(shape == [slices, cols, rows] and b"".join(map(bytes, want)) == bytes(new), end=" ")
END
)" 'True True '
done

while read -r fixture target shared count; do
    it "gives back $fixture from $target, shared experts $shared, as it was"
    run moepack repack "$ROOT/testdata/fixtures/$fixture" -t "$target" --shared "$shared" --ep 3 -o pack -q
    assert_status 0
    run moepack verify pack --source "$ROOT/testdata/fixtures/$fixture" --level numeric -q
    assert_status 0
    run moepack unpack pack -o back -q
    assert_status 0
    assert_equal "$(compare back "$ROOT/testdata/fixtures/$fixture")" "$count"
    run moepack diff "$ROOT/testdata/fixtures/$fixture" back --json
    assert_json '[.pairs[] | select(.equal | not)]' '[]'
done <<'END'
step3p5-stacked deepep-bf16 none 3
shared-joined fuseep-1 fused 22
shared-joined fuseep-2 separate 22
ct-fused-int8 fuseep-1 none 4
END

it "packs the same under the names of every family and exporter"
moepack synth -o qwen3_moe --family qwen3_moe --format mxfp4 --style compressed-tensors --hidden 384 \
    --intermediate 128 --experts 3 --layers 2 --top-k 2 -q
python3 - "$ROOT/tests/tools" <<'END'
import glob, json, os, sys

sys.path.insert(0, sys.argv[1])
import tensors

whole = {n: t for p in glob.glob("qwen3_moe/*.safetensors") for n, t in tensors.read(p)[0].items()}
config = json.load(open("qwen3_moe/config.json"))


def model(family, made, end="", **more):
    os.mkdir(family + end)
    tensors.write(f"{family}{end}/model.safetensors", made)
    json.dump(dict(config, model_type=family, **more), open(f"{family}{end}/config.json", "w"))


def joined(layer, names, suffix):
    """[E, N, K] of the matrices of all experts, those of one in a row."""
    parts = [whole[f"{layer}.mlp.experts.{e}.{name}.{suffix}"] for e in range(3) for name in names]
    rows, cols = parts[0][1]
    return [parts[0][0], [3, rows * len(names), cols], b"".join(p[2] for p in parts)]


model("mixtral", {n.replace(".mlp.", ".block_sparse_moe."): t for n, t in whole.items()}, num_local_experts=3)
model("minimax_m2", whole, num_local_experts=3)
model("deepseek_v4", whole, n_routed_experts=3)
fused = {n: t for n, t in whole.items() if ".experts." not in n}
for layer in ("model.layers.0", "model.layers.1"):
    for suffix in ("weight_packed", "weight_scale"):
        for name, parts in (("gate_up_proj", ("gate_proj", "up_proj")), ("down_proj", ("down_proj",))):
            fused[f"{layer}.mlp.experts.{name}.{suffix}"] = joined(layer, parts, suffix)
model("qwen3_5_moe", fused)
model("mixtral", fused, "-fused", num_local_experts=3)
END
for model in qwen3_moe mixtral mixtral-fused minimax_m2 deepseek_v4 qwen3_5_moe; do
    run moepack inspect $model --json
    assert_json '[.model_type, .problems, .layers[].format]' "[\"${model%-fused}\",[],\"mxfp4\",\"mxfp4\"]"
    run moepack repack $model -t megamoe-w4a8 --ep 3 -o $model.pack -q
    assert_status 0
    assert_equal "$model $(cmp $model.pack/rank-002/*.safetensors qwen3_moe.pack/rank-002/*.safetensors)" "$model "
done

it "gives back second scales of gate and up that are in one tensor"
python3 - "$ROOT" <<'END'
import os, sys

sys.path.insert(0, sys.argv[1] + "/tests/tools")
import fixtures

fixtures.H, fixtures.I = 256, 128
fixtures.write_checkpoint("ckpt", fixtures.ct_fused_nvfp4())
os.remove("ckpt/truth.st")
END
run moepack repack ckpt -t megamoe-nvfp4 --ep 1 -o pack -q
assert_status 0
run moepack verify pack --source ckpt -q
assert_status 0
run moepack unpack pack -o back -q
assert_status 0
assert_equal "$(compare back ckpt)" 6

it "takes one input scale for all experts of a tensor"
python3 - "$ROOT" <<'END'
import os, sys

sys.path.insert(0, sys.argv[1] + "/tests/tools")
import fixtures

fixtures.H, fixtures.I = 256, 128
made = fixtures.llama4_modelopt_nvfp4()
made.tensors = {n: t for n, t in made.tensors.items() if "shared" not in n}
for name, scale in ("gate_up_proj", 0.25), ("down_proj", 0.375):
    name = f"{fixtures.NESTED}.feed_forward.experts.{name}_input_scale"
    made.tensors[name] = fixtures.Tensor("F32", (), fixtures.pack_floats([scale]))
fixtures.write_checkpoint("ckpt", made)
os.remove("ckpt/truth.st")
END
run moepack inspect ckpt
assert_status 0
run moepack repack ckpt -t megamoe-nvfp4 --ep 1 -o pack -q
assert_status 0
run moepack quantize ckpt -f nvfp4 -o single -q
assert_status 0
PYTHONPATH=$ROOT/tests/tools python3 - <<'END' >"$stdout"
import glob, struct, tensors

for path in sorted(glob.glob("pack/rank-000/*.safetensors") + glob.glob("single/*.safetensors")):
    for name, (_, shape, data) in sorted(tensors.read(path)[0].items()):
        if name.endswith("input_scale"):
            print(name.split("experts.")[1], shape, *struct.unpack(f"<{len(data) // 4}f", data))
END
assert_stdout <<'END'
l1_input_scale [3] 0.25 0.25 0.25
l2_input_scale [3] 0.375 0.375 0.375
0.down_proj.input_scale [] 0.375
0.gate_proj.input_scale [] 0.25
0.up_proj.input_scale [] 0.25
1.down_proj.input_scale [] 0.375
1.gate_proj.input_scale [] 0.25
1.up_proj.input_scale [] 0.25
2.down_proj.input_scale [] 0.375
2.gate_proj.input_scale [] 0.25
2.up_proj.input_scale [] 0.25
END
run moepack verify pack --source ckpt --level numeric -q
assert_status 0

# ---------------------------------------------------------------------------
# Alphas of nvfp4
# ---------------------------------------------------------------------------

nvfp4()
{
    moepack synth -o ckpt --family qwen3_moe --format nvfp4 --style "$1" --hidden 384 \
        --intermediate 128 --experts 3 --layers 1 --top-k 2 -q
}

# Products of pairs of float32 tensors of a file, each rounded to float32; then the tensor NAME.
floats()
{
    PYTHONPATH=$ROOT/tests/tools python3 - "$@" <<'END'
import glob, struct, sys, tensors

def read(pattern, name):
    for path in sorted(glob.glob(pattern)):
        found, _ = tensors.read(path)
        if name in found:
            return struct.unpack(f"<{len(found[name][2]) // 4}f", found[name][2])

f32 = lambda x: struct.unpack("<f", struct.pack("<f", x))[0]
source, pack = "ckpt/*.safetensors", "pack/rank-000/*.safetensors"
want = []
for e in range(3):
    name = f"model.layers.0.mlp.experts.{e}.gate_proj."
    (second,), (scale,) = read(source, name + sys.argv[1]), read(source, name + sys.argv[2])
    if "global" in sys.argv[1]:
        second, scale = f32(1 / second), f32(1 / scale)
    want.append(f32(second * scale))
have = read(pack, "model.layers.0.experts.l1_alpha")
print("same" if list(have) == want else f"{have}, expected {want}")
END
}

it "folds the input scale of L1 into its alpha, as DeepGEMM wants it"
nvfp4 modelopt
edit ckpt/*.safetensors write model.layers.0.mlp.experts.1.gate_proj.input_scale 0.0123
edit ckpt/*.safetensors write model.layers.0.mlp.experts.1.up_proj.input_scale 0.0123
run moepack repack ckpt -t megamoe-nvfp4 --alphas fp4xfp4 --ep 1 -o pack -q
assert_status 0
assert_equal "$(floats weight_scale_2 input_scale)" same
assert_equal "$(jq -r .alphas pack/moepack.json)" fp4xfp4
run moepack verify pack --source ckpt --level numeric -q
assert_status 0
run moepack unpack pack -o back -q
run moepack diff ckpt back --layers model.layers.0 --json
assert_json '[.pairs[] | select(.equal | not)]' '[]'
run moepack repack ckpt -t megamoe-nvfp4 --alphas sgl --ep 1 -o sgl -q
run moepack repack ckpt -t megamoe-nvfp4 --ep 1 -o plain -q
assert_equal "$(sha256sum <sgl/rank-000/model.safetensors.index.json)" \
    "$(sha256sum <plain/rank-000/model.safetensors.index.json)"
run moepack plan --model ckpt --backend megamoe --tp 1 --pack pack
assert_status 1
assert_stdout_has 'alphas: the pack has fp4xfp4, the engine expects sgl'

it "inverts what divides before it folds"
nvfp4 compressed-tensors
for e in 0 1 2; do
    edit ckpt/*.safetensors copy model.layers.0.mlp.experts.$e.gate_proj.weight_global_scale \
        model.layers.0.mlp.experts.$e.up_proj.weight_global_scale
done
run moepack repack ckpt -t megamoe-nvfp4 --alphas fp4xfp4 --ep 1 -o pack -q
assert_status 0
assert_equal "$(floats weight_global_scale input_global_scale)" same
run moepack verify pack --source ckpt -q
assert_status 0

it "refuses alphas that cannot be folded"
nvfp4 compressed-tensors
run moepack repack ckpt -t megamoe-nvfp4 --alphas fp4xfp4 --ep 1 -o pack -q
assert_status 5
assert_stderr_has 'experts.0.gate_proj.weight_packed: second scale'
assert_stderr_has 'with --alphas fp4xfp4 they share one'
run moepack repack ckpt -t megamoe-nvfp4 --alphas fp4xfp4 --drop input_scale --ep 1 -o pack -q
assert_status 2
run moepack repack "$ROOT/testdata/fixtures/v4-fp4" -t megamoe-w4a8 --alphas fp4xfp4 --ep 1 -o pack -q
assert_status 2
assert_stderr_has 'megamoe-w4a8 has no alphas'
run moepack repack "$ROOT/testdata/fixtures/v4-fp4" -t megamoe-nvfp4 --quantize nvfp4 --alphas fp4xfp4 \
    --ep 1 -o pack -q
assert_status 5
assert_stderr_has 'layers.0.ffn.experts.0.w1.weight: no input scale that --alphas fp4xfp4 could fold in'

finish
