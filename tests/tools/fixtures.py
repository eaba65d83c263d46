#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tiny checkpoints of many families, and what they decode to.

    tests/tools/fixtures.py [DIRECTORY [NAME ...]]     (testdata/fixtures, all)

Stored codes and scales are random; truth.st holds the float32 values that the formats'
definitions give for them. Nothing here knows of the program under test, and nothing but
the standard library is used. The same files come out on every machine.
"""

import hashlib
import json
import os
import struct
import sys

H, I, E, LATENT = 96, 64, 3, 2
WIDTH = {"F4": 0.5, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E8M0": 1, "BF16": 2, "F16": 2, "I32": 4, "F32": 4}


class Tensor:
    """dtype, shape and bytes as safetensors has them."""

    def __init__(self, dtype, shape, data):
        self.dtype, self.shape, self.data = dtype, list(shape), bytes(data)
        count = 1
        for n in shape:
            count *= n
        assert len(self.data) == count * WIDTH[dtype], (dtype, shape, len(self.data))


# ---- random codes ---------------------------------------------------------------


def noise(name, count):
    """Bytes that depend on the name only."""
    out = b""
    block = 0
    while len(out) < count:
        out += hashlib.sha256(f"{name} {block}".encode()).digest()
        block += 1
    return out[:count]


def words(name, count):
    return struct.unpack(f"<{count}H", noise(name, 2 * count))


# ---- values of codes ------------------------------------------------------------


def f32(x):
    """Rounded to float32, ties to even."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def of_bits(pattern):
    return struct.unpack("<f", struct.pack("<I", pattern))[0]


def of_bf16(word):
    return of_bits(word << 16)


def of_e4m3(code):
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = code >> 3 & 15, code & 7
    assert code & 0x7F != 0x7F
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (8 + mantissa) * 2.0 ** (exponent - 10)


def of_e2m1(nibble):
    value = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)[nibble & 7]
    return -value if nibble & 8 else value


def of_e8m0(byte):
    assert byte != 255
    return 2.0 ** (byte - 127)


# ---- random tensors, as codes ---------------------------------------------------


def bf16_words(name, count):
    """Of either sign, exponents -12 to 0; now and then a zero."""
    return [0 if w % 61 == 0 else w & 0x807F | (115 + (w >> 7 & 0xFF) % 13) << 7 for w in words(name, count)]


def e4m3_codes(name, count):
    return [c - 1 if c & 0x7F == 0x7F else c for c in noise(name, count)]


def e8m0_codes(name, count):
    """Exponents -17 to 3, and a smallest one now and then."""
    return [0 if c == 77 else 110 + c % 21 for c in noise(name, count)]


def positive_floats(name, count):
    """24-bit significands, exponents -10 to -3."""
    return [of_bits((117 + w % 8) << 23 | v << 7 | w & 0x7F) for w, v in
            zip(words(name, count), words(name + " low", count))]


def pack_floats(values):
    return struct.pack(f"<{len(values)}f", *values)


def pack_words(values):
    return struct.pack(f"<{len(values)}H", *values)


# ---- schemes: (tensors by suffix, values row by row) of a matrix [n, k] ----------


def plain_bf16(name, n, k):
    w = bf16_words(name, n * k)
    return {".weight": Tensor("BF16", (n, k), pack_words(w))}, [of_bf16(x) for x in w]


def plain_f16(name, n, k):
    """Halves with their subnormals."""
    w = [x & 0x83FF | (x >> 5) % 17 << 10 for x in words(name, n * k)]
    data = pack_words(w)
    return {".weight": Tensor("F16", (n, k), data)}, list(struct.unpack(f"<{n * k}e", data))


def plain_f32(name, n, k):
    values = positive_floats(name, n * k)
    values = [-v if c & 1 else v for v, c in zip(values, noise(name + " sign", n * k))]
    return {".weight": Tensor("F32", (n, k), pack_floats(values))}, values


def ceil_div(a, b):
    return (a + b - 1) // b


def fp8(suffix, scale_type, block, shape=None):
    """E4M3 with a scale for every block, or for (n, k) of its own."""

    def make(name, n, k):
        rows, cols = block(n, k)
        grid = (ceil_div(n, rows), ceil_div(k, cols))
        count = grid[0] * grid[1]
        codes = e4m3_codes(name, n * k)
        if scale_type == "F32":
            scales = positive_floats(name + " scale", count)
            data = pack_floats(scales)
        elif scale_type == "BF16":
            patterns = [w & 0x7F | (117 + w % 8) << 7 for w in words(name + " scale", count)]
            scales, data = [of_bf16(p) for p in patterns], pack_words(patterns)
        else:
            patterns = e8m0_codes(name + " scale", count)
            scales, data = [of_e8m0(p) for p in patterns], bytes(patterns)
        values = [f32(of_e4m3(c) * scales[i // k // rows * grid[1] + i % k // cols]) for i, c in enumerate(codes)]
        return {".weight": Tensor("F8_E4M3", (n, k), codes),
                suffix: Tensor(scale_type, grid if shape is None else shape, data)}, values

    return make


def of_size(n, k):
    return lambda rows, cols: (n, k)


CHANNEL = lambda n, k: (1, k)
WHOLE = lambda n, k: (n, k)


def fp4_codes(name, n, k):
    """Packed bytes, and the values of their nibbles, low one first."""
    codes = noise(name, n * k // 2)
    return codes, [of_e2m1(c >> shift & 15) for c in codes for shift in (0, 4)]


def mxfp4(weight_suffix, weight_type, scale_suffix, scale_type):
    def make(name, n, k):
        codes, values = fp4_codes(name, n, k)
        scales = e8m0_codes(name + " scale", n * k // 32)
        values = [v * of_e8m0(scales[i // 32]) for i, v in enumerate(values)]
        shape = (n, k) if weight_type == "F4" else (n, k // 2)
        return {weight_suffix: Tensor(weight_type, shape, codes),
                scale_suffix: Tensor(scale_type, (n, k // 32), scales)}, values

    return make


def nvfp4_parts(name, n, k):
    codes, values = fp4_codes(name, n, k)
    scales = [c & 0x7F for c in e4m3_codes(name + " scale", n * k // 16)]
    # Gate and up of an expert share the second scale.
    shared = name.replace("up_proj", "gate_proj").replace(".w3", ".w1")
    second = positive_floats(shared + " second", 1)[0]
    values = [f32(v * of_e4m3(scales[i // 16]) * second) for i, v in enumerate(values)]
    return codes, scales, second, values


def modelopt_nvfp4(name, n, k):
    codes, scales, second, values = nvfp4_parts(name, n, k)
    return {".weight": Tensor("U8", (n, k // 2), codes),
            ".weight_scale": Tensor("F8_E4M3", (n, k // 16), scales),
            ".weight_scale_2": Tensor("F32", (), pack_floats([second])),
            ".input_scale": Tensor("F32", (), pack_floats([0.0078125]))}, values


def int4(form, name, n, k):
    """Codes of -8 to 7 as `form` holds them, and the codes."""
    codes = [(c & 15) - 8 for c in noise(name, n * k)]
    if form == "words":  # eight a word, 8 more
        packed = b"".join(struct.pack("<I", sum(c + 8 << 4 * j for j, c in enumerate(codes[i : i + 8])))
                          for i in range(0, n * k, 8))
        return Tensor("I32", (n, k // 8), packed), codes
    if form == "bytes":
        return Tensor("I8", (n, k), (c & 255 for c in codes)), codes
    # two rows a byte, the even one low
    pairs = ((codes[r * k + c], codes[r * k + k + c]) for r in range(0, n, 2) for c in range(k))
    return Tensor("I8", (n // 2, k), (a & 15 | (b & 15) << 4 for a, b in pairs)), codes


def int4_group(form, group, weight=".weight", suffix=".weight_scale"):
    """A BF16 scale for each `group` columns."""

    def make(name, n, k):
        tensor, codes = int4(form, name, n, k)
        scales = [w & 0x7F | (117 + w % 8) << 7 for w in words(name + " scale", n * k // group)]
        values = [f32(c * of_bf16(scales[i // group])) for i, c in enumerate(codes)]
        return {weight: tensor, suffix: Tensor("BF16", (n, k // group), pack_words(scales))}, values

    return make


def modelslim_w4a8(form, group):
    """A scale a row and, with groups, one a group; zero points that are zero; what the kernel adds."""

    def make(name, n, k):
        tensor, codes = int4(form, name, n, k)
        rows = positive_floats(name + " scale", n)
        groups = positive_floats(name + " second", n * k // group) if group else []
        scales = [f32(rows[i // k] * groups[i // group]) if group else rows[i // k] for i in range(n * k)]
        values = [f32(c * s) for c, s in zip(codes, scales)]
        parts = {".weight": tensor, ".weight_scale": Tensor("F32", (n, 1), pack_floats(rows)),
                 ".weight_offset": Tensor("F32", (n, 1), bytes(4 * n))}
        if group:
            parts[".weight_scale_second"] = Tensor("F32", (n, k // group), pack_floats(groups))
            parts[".weight_offset_second"] = Tensor("F32", (n, k // group), bytes(4 * n * k // group))
        if form == "rows":
            runs = 16 if name.endswith("down_proj") else 1
            run = k // runs
            bias = [f32(8 * sum(values[i : i + run])) for i in range(0, n * k, run)]
            parts[".scale_bias"] = Tensor("F32", (n, runs), pack_floats(bias))
        return parts, values

    return make


def int8_channel(name, n, k):
    codes = noise(name, n * k)
    scales = positive_floats(name + " scale", n)
    values = [f32((c - 256 * (c > 127)) * scales[i // k]) for i, c in enumerate(codes)]
    return {".weight": Tensor("I8", (n, k), codes), ".weight_scale": Tensor("F32", (n, 1), pack_floats(scales))}, values


def ct_nvfp4(name, n, k):
    """The second scale divides, and is another one for gate and for up."""
    codes, nibbles = fp4_codes(name, n, k)
    scales = [c & 0x7F for c in e4m3_codes(name + " scale", n * k // 16)]
    second = positive_floats(name + " second", 1)[0]
    values = [f32(f32(v * of_e4m3(scales[i // 16])) / second) for i, v in enumerate(nibbles)]
    return {".weight_packed": Tensor("U8", (n, k // 2), codes),
            ".weight_scale": Tensor("F8_E4M3", (n, k // 16), scales),
            ".weight_global_scale": Tensor("F32", (1,), pack_floats([second]))}, values


# ---- experts --------------------------------------------------------------------


class Checkpoint:
    def __init__(self, config):
        self.config, self.tensors, self.truth, self.files = config, {}, {}, {}

    def matrix(self, scheme, name, n, k, truth=None):
        parts, values = scheme(name, n, k)
        for suffix, tensor in parts.items():
            self.tensors[name + suffix] = tensor
        if truth:
            self.truth[truth] = Tensor("F32", (n, k), pack_floats(values))

    def mlp(self, scheme, prefix, names, width, hidden, truth):
        gate, up, down = names
        self.matrix(scheme, f"{prefix}.{gate}", width, hidden, truth + ".w1")
        self.matrix(scheme, f"{prefix}.{up}", width, hidden, truth + ".w3")
        self.matrix(scheme, f"{prefix}.{down}", hidden, width, truth + ".w2")

    def experts(self, scheme, layer, block, names):
        for e in range(E):
            self.mlp(scheme, f"{layer}.{block}.experts.{e}", names, I, H, f"{layer}.{e}")

    def shared(self, scheme, layer, block, names, count=1, hidden=H):
        self.mlp(scheme, f"{layer}.{block}", names, count * I, hidden, f"{layer}.shared")

    def router(self, name, bias=None, dtype="BF16", hidden=H):
        self.matrix(plain_bf16 if dtype == "BF16" else plain_f32, name.removesuffix(".weight"), E, hidden)
        if bias:
            self.tensors[bias] = Tensor("F32", (E,), pack_floats(positive_floats(bias, E)))


PROJ = ("gate_proj", "up_proj", "down_proj")
W123 = ("w1", "w3", "w2")


def transpose(data, rows, cols, width):
    return b"".join(data[(r * cols + c) * width : (r * cols + c + 1) * width] for c in range(cols) for r in range(rows))


def stack(checkpoint, layer, block, scheme, transposed, suffixes):
    """Gate rows and up rows in one tensor [E, 2I, H], or all of it turned over; down beside."""
    prefix = f"{layer}.{block}.experts"
    for tensor, names, n, k in (("gate_up_proj", PROJ[:2], I, H), ("down_proj", PROJ[2:], H, I)):
        data, shapes = {}, {}
        for e in range(E):
            whole = {}
            for name, truth in zip(names, ("w1", "w3") if n == I else ("w2",)):
                parts, values = scheme(f"{prefix}.{e}.{name}", n, k)
                checkpoint.truth[f"{layer}.{e}.{truth}"] = Tensor("F32", (n, k), pack_floats(values))
                for suffix, part in parts.items():
                    whole.setdefault(suffix, []).append(part)
            for suffix, parts in whole.items():
                if suffix not in suffixes:
                    continue
                if suffix == ".weight_global_scale":  # one for gate and one for up: [E, 2], [E, 1]
                    data[suffix] = data.get(suffix, b"") + b"".join(p.data for p in parts)
                    shapes[suffix] = "F32", (E, len(parts))
                    continue
                rank = len(parts[0].shape)
                rows, cols = (len(parts) * parts[0].shape[0], parts[0].shape[1]) if rank == 2 else (1, 1)
                joined = b"".join(p.data for p in parts) if rank == 2 else parts[0].data
                if transposed and rank == 2:
                    joined = transpose(joined, rows, cols, int(WIDTH[parts[0].dtype]))
                    rows, cols = cols, rows
                data[suffix] = data.get(suffix, b"") + joined
                shapes[suffix] = parts[0].dtype, (E, rows, cols) if rank == 2 else (E,)
        for suffix in data:
            checkpoint.tensors[f"{prefix}.{tensor}{suffixes[suffix]}"] = Tensor(*shapes[suffix], data[suffix])


# ---- config.json ----------------------------------------------------------------


def base(model_type, **more):
    return {"model_type": model_type, "hidden_size": H, "num_hidden_layers": 1, "torch_dtype": "bfloat16"} | more


def v3_like(model_type, **more):
    return base(model_type, moe_intermediate_size=I, n_routed_experts=E, num_experts_per_tok=2,
                n_shared_experts=None, first_k_dense_replace=0, n_group=1, topk_group=1) | more


def qwen_like(model_type, **more):
    return base(model_type, moe_intermediate_size=I, num_experts=E, num_experts_per_tok=2, mlp_only_layers=[],
                decoder_sparse_step=1) | more


def local_like(model_type, **more):
    return base(model_type, intermediate_size=I, num_local_experts=E, num_experts_per_tok=2) | more


def nested(outer, text, **more):
    return {"model_type": outer, "text_config": text} | more


def fp8_config(rows=128, cols=128, **more):
    return {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
            "weight_block_size": [rows, cols]} | more


def ct(form, **weights):
    return {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


# ---- the checkpoints ------------------------------------------------------------

BLOCK = of_size(128, 128)
LAYER, VISION, NESTED = "model.layers.0", "model.language_model.layers.0", "language_model.model.layers.0"


def simple(config, scheme, block="mlp", names=PROJ, layer=LAYER, router="gate.weight", **options):
    """Experts with a tensor a matrix, and their router."""
    c = Checkpoint(config)
    c.experts(scheme, layer, block, names)
    c.router(f"{layer}.{block}.{router}", **options)
    return c


def v2_bf16():
    c = simple(v3_like("deepseek_v2", n_shared_experts=2, scoring_func="softmax"), plain_bf16)
    c.shared(plain_bf16, LAYER, "mlp.shared_experts", PROJ, 2)
    return c


def kimi_k2_fp8():
    scheme = fp8(".weight_scale_inv", "F32", BLOCK)
    c = simple(v3_like("kimi_k2", n_shared_experts=1, quantization_config=fp8_config()), scheme,
               bias=f"{LAYER}.mlp.gate.e_score_correction_bias")
    c.shared(scheme, LAYER, "mlp.shared_experts", PROJ)
    return c


def qwen3next_fp8():
    scheme = fp8(".weight_scale_inv", "F32", BLOCK)
    c = simple(qwen_like("qwen3_next", shared_expert_intermediate_size=I, quantization_config=fp8_config()), scheme)
    c.shared(scheme, LAYER, "mlp.shared_expert", PROJ)
    c.matrix(plain_bf16, f"{LAYER}.mlp.shared_expert_gate", 1, H)
    return c


def glm_fp8_channel():
    scheme = fp8(".weight_scale", "F32", CHANNEL)
    config = ct("float-quantized", num_bits=8, type="float", strategy="channel", symmetric=True)
    c = simple(v3_like("glm4_moe", n_shared_experts=1, quantization_config=config), scheme,
               bias=f"{LAYER}.mlp.gate.e_score_correction_bias")
    c.shared(scheme, LAYER, "mlp.shared_experts", PROJ)
    return c


def glm_bf16():
    c = simple(v3_like("glm4_moe", n_shared_experts=1), plain_bf16,
               bias=f"{LAYER}.mlp.gate.e_score_correction_bias")
    c.shared(plain_bf16, LAYER, "mlp.shared_experts", PROJ)
    return c


def minimax_m2_fp8():
    config = local_like("minimax_m2", scoring_func="sigmoid", use_routing_bias=True, shared_intermediate_size=0,
                        quantization_config=fp8_config(fmt="float8_e4m3fn"))
    return simple(config, fp8(".weight_scale_inv", "F32", BLOCK), "block_sparse_moe", W123, dtype="F32",
                  bias=f"{LAYER}.block_sparse_moe.e_score_correction_bias")


def llama4(scheme, suffixes, **more):
    c = Checkpoint(nested("llama4", local_like("llama4_text", intermediate_size_mlp=2 * I, num_experts_per_tok=1,
                                               interleave_moe_layer_step=1), **more))
    stack(c, NESTED, "feed_forward", scheme, True, suffixes)
    c.router(f"{NESTED}.feed_forward.router.weight")
    c.shared(plain_bf16, NESTED, "feed_forward.shared_expert", PROJ)
    return c


def llama4_bf16():
    return llama4(plain_bf16, {".weight": ""})


def llama4_modelopt_nvfp4():
    return llama4(modelopt_nvfp4, {".weight": "", ".weight_scale": "_weight_scale",
                                   ".weight_scale_2": "_weight_scale_2", ".input_scale": "_input_scale"},
                  quantization_config={"quant_method": "modelopt", "quant_algo": "NVFP4"})


def kimi_k3_mxfp4():
    """Routed experts work on a latent half as wide as the model."""
    config = ct("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32)
    text = base("kimi_linear", hidden_size=LATENT * H, routed_expert_hidden_size=H, moe_intermediate_size=I,
                num_experts=E, num_experts_per_token=2, num_shared_experts=2, first_k_dense_replace=0,
                moe_layer_freq=1, quantization_config=config)
    block = f"{NESTED}.block_sparse_moe"
    c = simple(nested("kimi_k3", text), mxfp4(".weight_packed", "U8", ".weight_scale", "U8"), "block_sparse_moe",
               W123, NESTED, bias=f"{block}.gate.e_score_correction_bias", hidden=LATENT * H)
    c.shared(plain_bf16, NESTED, "block_sparse_moe.shared_experts", PROJ, 2, LATENT * H)
    c.matrix(plain_bf16, f"{block}.routed_expert_down_proj", H, LATENT * H)
    c.matrix(plain_bf16, f"{block}.routed_expert_up_proj", LATENT * H, H)
    return c


def ct_mxfp4():
    config = ct("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32)
    return simple(qwen_like("qwen3_moe", quantization_config=config),
                  mxfp4(".weight_packed", "U8", ".weight_scale", "U8"))


def ct_fp8_block():
    config = ct("float-quantized", num_bits=8, type="float", strategy="block", block_structure=[128, 128])
    return simple(qwen_like("qwen3_moe", quantization_config=config), fp8(".weight_scale", "F32", BLOCK))


def fp8_tensor():
    config = ct("float-quantized", num_bits=8, type="float", strategy="tensor", symmetric=True)
    return simple(qwen_like("qwen3_moe", quantization_config=config), fp8(".weight_scale", "F32", WHOLE, (1,)))


def mistral_small4_fp8():
    """Gate and up under one scale, so that they are one matrix here."""
    c = Checkpoint(nested("mistral4", v3_like("mistral4", n_shared_experts=0),
                          quantization_config={"quant_method": "fp8", "activation_scheme": "static",
                                               "weight_block_size": None}))
    scheme = fp8(".scale", "BF16", WHOLE)
    for name, n, k in (("gate_up_proj", 2 * I, H), ("down_proj", H, I)):
        weight = scale = b""
        for e in range(E):
            parts, values = scheme(f"{VISION}.mlp.experts.{e}.{name}", n, k)
            weight += parts[".weight"].data
            scale += parts[".scale"].data
            for i, w in enumerate(("w1", "w3") if n == 2 * I else ("w2",)):
                rows = I if n == 2 * I else H
                c.truth[f"{VISION}.{e}.{w}"] = Tensor(
                    "F32", (rows, k), pack_floats(values[i * rows * k : (i + 1) * rows * k]))
        prefix = f"{VISION}.mlp.experts.{name}"
        c.tensors[prefix] = Tensor("F8_E4M3", (E, n, k), weight)
        c.tensors[prefix + "_scale_inv"] = Tensor("BF16", (E, 1, 1), scale)
        c.tensors[prefix + "_activation_scale"] = Tensor("BF16", (), pack_words([0x3C00]))
    c.router(f"{VISION}.mlp.gate.weight")
    return c


def v41_fp4():
    """Shared experts in blocks of 32x32; facts nested; the type of experts among them."""
    text = v3_like("deepseek_v41", n_shared_experts=1, scoring_func="sqrtsoftplus", swiglu_limit=10.0)
    c = simple(nested("deepseek_v41", text,
                      quantization_config=fp8_config(32, 32, scale_fmt="ue8m0", expert_dtype="fp4")),
               mxfp4(".weight", "I8", ".scale", "F8_E8M0"), "ffn", W123, "layers.0", bias="layers.0.ffn.gate.bias")
    c.shared(fp8(".scale", "F8_E8M0", of_size(32, 32)), "layers.0", "ffn.shared_experts", W123)
    return c


def v4_modelopt_nvfp4():
    config = v3_like("deepseek_v4", n_shared_experts=1, scoring_func="sqrtsoftplus", swiglu_limit=10.0,
                     quantization_config=fp8_config(scale_fmt="ue8m0", moe_quant_algo="NVFP4"))
    c = simple(config, modelopt_nvfp4, "ffn", W123, "layers.0", bias="layers.0.ffn.gate.bias")
    c.shared(fp8(".scale", "F8_E8M0", BLOCK), "layers.0", "ffn.shared_experts", W123)
    return c


def quark_mxfp4():
    return simple(qwen_like("qwen3_moe", quantization_config={"quant_method": "quark"}),
                  mxfp4(".weight", "U8", ".weight_scale", "U8"))


def modelslim_w4a8_mxfp():
    c = simple(qwen_like("qwen3_moe"), mxfp4(".weight", "U8", ".weight_scale", "U8"))
    labels = {n: "W4A8_MXFP" if ".experts." in n else "FLOAT" for n in c.tensors}
    c.files["quant_model_description.json"] = {"model_quant_type": "W4A8_MXFP", "version": "1.0.0"} | labels
    return c


def f4_mxfp4():
    return simple(qwen_like("qwen3_moe"), mxfp4(".weight", "F4", ".weight_scale", "F8_E8M0"))


def mixtral_f16():
    return simple(local_like("mixtral", torch_dtype="float16"), plain_f16, "block_sparse_moe", W123)


def mixtral_f32():
    return simple(local_like("mixtral", torch_dtype="float32"), plain_f32, "block_sparse_moe", W123)


def ct_int4_bytes():
    config = ct("int-quantized", num_bits=4, type="int", strategy="group", group_size=32, symmetric=True)
    return simple(qwen_like("qwen3_moe", quantization_config=config), int4_group("bytes", 32))


def ct_fused(scheme, *suffixes, **weights):
    """All experts in two tensors, with the suffixes that single ones have."""
    c = Checkpoint(qwen_like("qwen3_moe", quantization_config=ct(**weights)))
    stack(c, LAYER, "mlp", scheme, False, {suffix: suffix for suffix in suffixes})
    c.router(f"{LAYER}.mlp.gate.weight")
    return c


def ct_fused_nvfp4():
    return ct_fused(ct_nvfp4, ".weight_packed", ".weight_scale", ".weight_global_scale", form="nvfp4-pack-quantized",
                    num_bits=4, type="float", strategy="tensor_group", group_size=16)


def ct_fused_int4():
    return ct_fused(int4_group("words", 32, ".weight_packed"), ".weight_packed", ".weight_scale",
                    form="pack-quantized", num_bits=4, type="int", strategy="group", group_size=32)


def ct_fused_int8():
    return ct_fused(int8_channel, ".weight", ".weight_scale", form="int-quantized", num_bits=8, type="int",
                    strategy="channel")


def modelslim(form, group, version):
    c = simple(qwen_like("qwen3_moe"), modelslim_w4a8(form, group))
    labels = {n: "W4A8_DYNAMIC" if ".experts." in n else "FLOAT" for n in c.tensors}
    c.files["quant_model_description.json"] = {"model_quant_type": "W4A8_DYNAMIC", "group_size": group} | version | labels
    return c


def modelslim_w4a8_channel():
    return modelslim("rows", 0, {"version": "1.0.0"})


def modelslim_w4a8_group():
    return modelslim("rows", 32, {"version": "1.0.0"})


def modelslim_w4a8_bytes():
    return modelslim("bytes", 32, {})


def step3p5_stacked():
    """Gate, up and down of all experts, each in one tensor."""
    config = base("step3p5", moe_intermediate_size=I, moe_num_experts=E, moe_top_k=2, moe_layers_enum="0")
    c = Checkpoint(config)
    for name, n, k, truth in (("gate_proj", I, H, "w1"), ("up_proj", I, H, "w3"), ("down_proj", H, I, "w2")):
        data = b""
        for e in range(E):
            parts, values = plain_bf16(f"{LAYER}.moe.{e}.{name}", n, k)
            data += parts[".weight"].data
            c.truth[f"{LAYER}.{e}.{truth}"] = Tensor("F32", (n, k), pack_floats(values))
        c.tensors[f"{LAYER}.moe.{name}.weight"] = Tensor("BF16", (E, n, k), data)
    c.router(f"{LAYER}.moe.gate.weight")
    return c


def shared_joined():
    """Gate and up of the shared experts, two in one, in one tensor as transformers 5 holds them."""
    config = ct("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=True)
    c = simple(v3_like("glm4_moe", n_shared_experts=2, routed_scaling_factor=1.0, quantization_config=config), int8_channel)
    block = f"{LAYER}.mlp.shared_experts"
    gate, up = (int8_channel(f"{block}.{name}", 2 * I, H) for name in PROJ[:2])
    for truth, (_, values) in (("w1", gate), ("w3", up)):
        c.truth[f"{LAYER}.shared.{truth}"] = Tensor("F32", (2 * I, H), pack_floats(values))
    for suffix, one in gate[0].items():
        other = up[0][suffix]
        c.tensors[f"{block}.gate_up_proj{suffix}"] = Tensor(
            one.dtype, (2 * one.shape[0], *one.shape[1:]), one.data + other.data)
    c.matrix(int8_channel, f"{block}.down_proj", H, 2 * I, f"{LAYER}.shared.w2")
    return c


FIXTURES = {
    "v2-bf16": v2_bf16,
    "kimi-k2-fp8": kimi_k2_fp8,
    "qwen3next-fp8": qwen3next_fp8,
    "glm-fp8-channel": glm_fp8_channel,
    "glm-bf16": glm_bf16,
    "minimax-m2-fp8": minimax_m2_fp8,
    "llama4-bf16-fused-b": llama4_bf16,
    "llama4-modelopt-nvfp4": llama4_modelopt_nvfp4,
    "kimi-k3-mxfp4": kimi_k3_mxfp4,
    "ct-mxfp4": ct_mxfp4,
    "ct-fp8-block": ct_fp8_block,
    "ct-fp8-tensor": fp8_tensor,
    "mistral-small4-fp8": mistral_small4_fp8,
    "v41-fp4": v41_fp4,
    "v4-modelopt-nvfp4": v4_modelopt_nvfp4,
    "quark-mxfp4": quark_mxfp4,
    "modelslim-w4a8-mxfp": modelslim_w4a8_mxfp,
    "f4-mxfp4": f4_mxfp4,
    "ct-int4-bytes": ct_int4_bytes,
    "ct-fused-nvfp4": ct_fused_nvfp4,
    "ct-fused-int4": ct_fused_int4,
    "ct-fused-int8": ct_fused_int8,
    "modelslim-w4a8": modelslim_w4a8_channel,
    "modelslim-w4a8-group": modelslim_w4a8_group,
    "modelslim-w4a8-bytes": modelslim_w4a8_bytes,
    "step3p5-stacked": step3p5_stacked,
    "shared-joined": shared_joined,
    "mixtral-f16": mixtral_f16,
    "mixtral-f32": mixtral_f32,
}


# ---- files ----------------------------------------------------------------------


def write_safetensors(path, tensors):
    """Widest elements first, so that all of them are aligned."""
    header, data = {}, b""
    for name, t in sorted(tensors.items(), key=lambda item: -WIDTH[item[1].dtype]):
        header[name] = {"dtype": t.dtype, "shape": t.shape, "data_offsets": [len(data), len(data) + len(t.data)]}
        data += t.data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")


def write_checkpoint(folder, c):
    os.makedirs(folder, exist_ok=True)
    shard = "model.safetensors"
    write_safetensors(f"{folder}/{shard}", c.tensors)
    write_safetensors(f"{folder}/truth.st", c.truth)
    write_json(f"{folder}/config.json", c.config)
    write_json(f"{folder}/model.safetensors.index.json",
               {"metadata": {"total_size": sum(len(t.data) for t in c.tensors.values())},
                "weight_map": {name: shard for name in sorted(c.tensors)}})
    for name, value in c.files.items():
        write_json(f"{folder}/{name}", value)


def main():
    directory = sys.argv[1] if len(sys.argv) > 1 else "testdata/fixtures"
    for name in sys.argv[2:] or FIXTURES:
        write_checkpoint(f"{directory}/{name}", FIXTURES[name]())


if __name__ == "__main__":
    main()
