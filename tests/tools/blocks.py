#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tiny MoE blocks of families that no library at hand has written, and what they give.

    tests/tools/blocks.py [DIRECTORY]     (testdata/blocks)

Random BF16 weights under the names of each family, config.json with the keys that it has, and
truth-layerN.st with x and y: the block's rule in Python's double precision, from the description
of each model's own code. Nothing here knows of the program under test, and nothing but the
standard library is used. The same files come out on every machine.
"""

import json
import math
import os
import random
import struct
import sys

H, I, E, K, TOKENS = 32, 16, 8, 3, 6
PROJ, W123 = ("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")


def bf16(x):
    """To BF16, ties to even, as a number."""
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    return struct.unpack("<f", struct.pack("<I", bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000))[0]


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


class Tensors(dict):
    """name: (dtype, shape, numbers)"""

    def __init__(self, seed):
        super().__init__()
        self.random = random.Random(seed)

    def matrix(self, name, rows, cols, size=0.35):
        values = [[bf16(self.random.gauss(0, size)) for _ in range(cols)] for _ in range(rows)]
        if name:
            self[name] = ("BF16", (rows, cols), sum(values, []))
        return values

    def vector(self, name, n, size):
        values = [f32(self.random.gauss(0, size)) for _ in range(n)]
        self[name] = ("F32", (n,), values)
        return values

    def stack(self, name, matrices):
        self[name] = ("BF16", (len(matrices), len(matrices[0]), len(matrices[0][0])), sum(sum(matrices, []), []))

    def write(self, path):
        header, data = {}, b""
        for name, (dtype, shape, values) in sorted(self.items()):
            if dtype == "BF16":
                values = struct.unpack(f"<{2 * len(values)}H", struct.pack(f"<{len(values)}f", *values))[1::2]
            part = struct.pack(f"<{len(values)}{'H' if dtype == 'BF16' else 'f'}", *values)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(part)]}
            data += part
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text + data)


# ---- what blocks compute --------------------------------------------------------


def product(matrix, x):
    return [math.fsum(w * v for w, v in zip(row, x)) for row in matrix]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softmax(l):
    e = [math.exp(v - max(l)) for v in l]
    return [v / math.fsum(e) for v in e]


def silu(g, u):
    return g * sigmoid(g) * u


def clip(u, limit):
    return max(-limit, min(u, limit))


def limited(limit):
    return lambda g, u: silu(min(g, limit), clip(u, limit))


def late(limit):
    return lambda g, u: min(g * sigmoid(g), limit) * clip(u, limit)


def expert(matrices, x, act):
    gate, up, down = matrices
    return product(down, [act(g, u) for g, u in zip(product(gate, x), product(up, x))])


def chosen(c, groups=None):
    """The k largest; groups: how many there are, how many stay, each by its two largest."""
    if groups:
        count, keep = groups
        size = len(c) // count
        best = sorted(range(count), key=lambda g: -math.fsum(sorted(c[g * size : (g + 1) * size])[-2:]))[:keep]
        c = [v if e // size in best else -math.inf for e, v in enumerate(c)]
    return sorted(range(len(c)), key=lambda e: (-c[e], e))[:K]


def weights(score, bias=None, groups=None, renormalize=True, epsilon=0.0, scale=1.0):
    """From logits to {expert: weight}."""

    def route(l):
        s = softmax(l) if score == "softmax" else [sigmoid(v) for v in l]
        ids = chosen([v + b for v, b in zip(s, bias)] if bias else s, groups)
        total = math.fsum(s[e] for e in ids) + epsilon if renormalize else 1
        return {e: s[e] / total * scale for e in ids}

    return route


# ---- families -------------------------------------------------------------------


class Block:
    """The block of a model's last layer, which alone is there: others are dense."""

    def __init__(self, name, at, **config):
        self.name, self.at, self.tensors, self.layer = name, at, Tensors(name), int(at.split(".")[2])
        self.config = dict(model_type=name, hidden_size=H, num_hidden_layers=self.layer + 1, hidden_act="silu",
                           num_experts_per_tok=K, **config)
        self.act, self.shared, self.join = silu, None, lambda routed, shared, x: [r + s for r, s in zip(routed, shared)]

    def router(self, name, bias=None, size=0.3):
        self.gate = self.tensors.matrix(f"{self.at}.{name}", E, H)
        return self.tensors.vector(f"{self.at}.{bias}", E, size) if bias else None

    def experts(self, names, form="single"):
        made = [[self.tensors.matrix(None, *((H, I) if p == 2 else (I, H))) for p in range(3)] for _ in range(E)]
        at = f"{self.at}.experts"
        if form == "single":
            for e, matrices in enumerate(made):
                for p, matrix in zip(names, matrices):
                    self.tensors[f"{at}.{e}.{p}.weight"] = ("BF16", (len(matrix), len(matrix[0])), sum(matrix, []))
        elif form == "stacked":
            for i, p in enumerate(names):
                self.tensors.stack(f"{self.at}.{p}.weight", [m[i] for m in made])
        else:
            self.tensors.stack(names[0], [m[0] + m[1] for m in made])
            self.tensors.stack(names[1], [m[2] for m in made])
        self.made = made

    def share(self, name, names, count=1):
        width = count * I
        self.shared = [self.tensors.matrix(f"{self.at}.{name}.{p}.weight", *((H, width) if p == names[2] else (width, H)))
                       for p in names]
        self.shared_act = self.act

    def y(self, x):
        routed = [0.0] * H
        for e, w in self.route(product(self.gate, x)).items():
            routed = [r + w * v for r, v in zip(routed, expert(self.made[e], x, self.act))]
        return self.join(routed, expert(self.shared, x, self.shared_act), x) if self.shared else routed

    def save(self, directory):
        path = os.path.join(directory, self.name)
        os.makedirs(path, exist_ok=True)
        self.tensors.write(os.path.join(path, "model.safetensors"))
        with open(os.path.join(path, "config.json"), "w") as file:
            json.dump(self.config, file, indent=2, sort_keys=True)
            file.write("\n")
        truth = Tensors(self.name + " tokens")
        x = [[f32(truth.random.gauss(0, 1)) for _ in range(H)] for _ in range(TOKENS)]
        truth["x"] = ("F32", (TOKENS, H), sum(x, []))
        truth["y"] = ("F32", (TOKENS, H), sum(map(self.y, x), []))
        truth.write(os.path.join(path, f"truth-layer{self.layer}.st"))


def blocks():
    routed = dict(n_routed_experts=E, moe_intermediate_size=I)
    counted = dict(num_experts=E, moe_intermediate_size=I)

    b = Block("exaone_moe", "model.layers.1.mlp", **counted, num_shared_experts=2, n_group=4, topk_group=2,
              mlp_layer_types=["dense", "sparse"], routed_scaling_factor=2.5, norm_topk_prob=True)
    b.route = weights("sigmoid", b.router("gate.weight", "e_score_correction_bias"), (4, 2), epsilon=1e-20, scale=2.5)
    b.experts(PROJ)
    b.share("shared_experts", PROJ, 2)
    yield b

    # The residual MLP reads another input, and is no part of y.
    b = Block("arctic", "model.layers.1.block_sparse_moe", num_local_experts=E, intermediate_size=I,
              moe_layer_frequency=2)
    b.router("gate.weight")
    b.route = weights("softmax")
    b.experts(W123)
    for p in W123:
        b.tensors.matrix(f"model.layers.1.residual_mlp.{p}.weight", *((H, I) if p == "w2" else (I, H)))
    yield b

    b = Block("mistral4", "model.layers.1.mlp", **routed, n_shared_experts=1, n_group=4, topk_group=2,
              first_k_dense_replace=1, norm_topk_prob=True, routed_scaling_factor=1.5)
    b.router("gate.weight")
    b.route = weights("softmax", None, (4, 2), epsilon=1e-20, scale=1.5)
    b.experts([f"{b.at}.experts.gate_up_proj", f"{b.at}.experts.down_proj"], "fused")
    b.share("shared_experts", PROJ)
    yield b

    b = Block("Klear", "model.layers.1.mlp", **counted, n_shared_experts=1, mlp_only_layers=[0],
              decoder_sparse_step=1, norm_topk_prob=True)
    b.route = weights("sigmoid", b.router("gate.weight", "expert_bias"))
    b.experts(PROJ)
    b.share("shared_experts", PROJ)
    mix, bias = b.tensors.matrix(f"{b.at}.coefficient.weight", 2, H), b.tensors.vector(f"{b.at}.coefficient.bias", 2, 0.5)

    def mixed(r, z, x, mix=mix, bias=bias):
        a = softmax([v + d for v, d in zip(product(mix, x), bias)])
        return [a[0] * v + a[1] * s for v, s in zip(r, z)]

    b.join = mixed
    yield b

    for name, factor in (("lfm2_moe", 1.0), ("kimi_linear", 2.446), ("mimo_v2_flash", 1.0), ("bailing_moe_v2", 2.5)):
        lfm, kimi, ling = name == "lfm2_moe", name == "kimi_linear", name == "bailing_moe_v2"
        at = "model.layers.1." + ("feed_forward" if lfm else "block_sparse_moe" if kimi else "mlp")
        b = Block(name, at, routed_scaling_factor=factor if factor != 1 else None,
                  **(routed if name == "mimo_v2_flash" else counted),
                  **(dict(num_dense_layers=1) if lfm else dict(first_k_dense_replace=1)),
                  **(dict(num_shared_experts=1) if kimi or ling else {}),
                  **(dict(moe_renormalize=True, moe_router_activation_func="sigmoid") if kimi else
                     dict(norm_topk_prob=True)),
                  **(dict(n_group=4, topk_group=2, score_function="sigmoid") if ling else {}))
        if kimi:
            b.config["num_experts_per_token"] = b.config.pop("num_experts_per_tok")
        bias = b.router("gate.weight", "expert_bias" if lfm else "gate.expert_bias" if ling
                        else "gate.e_score_correction_bias")
        b.route = weights("sigmoid", bias, (4, 2) if ling else None, epsilon=1e-6 if lfm else 1e-20, scale=factor)
        b.experts(W123 if lfm or kimi else PROJ)
        if kimi or ling:
            b.share("shared_experts", PROJ)
        yield b

    # A clamp that bites: of the routed and, in one of them, of the shared experts.
    for name in ("hy_v4", "glm5_next"):
        b = Block(name, "model.layers.1.mlp", **routed, n_shared_experts=1, first_k_dense_replace=1,
                  norm_topk_prob=True, routed_scaling_factor=1.25, swiglu_limit=0.75)
        b.act = limited(0.75)
        b.route = weights("sigmoid", b.router("gate.weight", "gate.e_score_correction_bias"), epsilon=1e-20, scale=1.25)
        b.experts(PROJ)
        b.share("shared_experts", ("linear_gate",) + PROJ[1:] if name == "hy_v4" else PROJ)
        if name == "hy_v4":
            b.shared_act = silu
        yield b

    b = Block("step3p5", "model.layers.1.moe", moe_num_experts=E, moe_intermediate_size=I, moe_layers_enum="1",
              norm_expert_weight=True, moe_router_scaling_factor=3.0, swiglu_limits=[0, 0.4])
    b.config["moe_top_k"] = b.config.pop("num_experts_per_tok")
    b.act = late(0.4)
    b.route = weights("sigmoid", b.router("gate.weight", "router_bias"), epsilon=1e-20, scale=3.0)
    b.experts(PROJ, "stacked")
    yield b

    b = Block("minimax", "model.layers.0.block_sparse_moe", num_local_experts=E, intermediate_size=I)
    b.router("gate.weight")
    b.route = weights("softmax")
    b.experts(W123)
    yield b

    b = Block("jetmoe", "model.layers.0.mlp", num_local_experts=E, intermediate_size=I)
    b.router("router.layer.weight")
    b.route = weights("softmax")
    b.experts([f"{b.at}.input_linear.weight", f"{b.at}.output_linear.weight"], "fused")
    once = b.tensors.vector(f"{b.at}.bias", H, 0.5)
    compute = b.y
    b.y = lambda x: [v + d for v, d in zip(compute(x), once)]
    yield b


def main():
    for block in blocks():
        block.save(sys.argv[1] if len(sys.argv) > 1 else "testdata/blocks")


if __name__ == "__main__":
    main()
