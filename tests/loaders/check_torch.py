# SPDX-License-Identifier: Apache-2.0
"""Loads a pack of every MegaMoE target into torch, beside a load as an engine does it: expert by
expert from the checkpoint, then the transform. Both have to give the same bytes, shapes and
strides; the times are printed. `make check-torch` runs it, on a GPU where there is one."""

import json
import os
import sys
import time

try:
    import torch
except ImportError:
    sys.exit("check-torch: not run: torch is not here")

os.environ.setdefault("LOAD_RANK", "")  # not called from here
from support import checkpoint, moepack, repack, synth  # noqa: E402

import moepack as loaders  # noqa: E402

SIZES = ["--hidden", "4096", "--intermediate", "1408", "--experts", "12", "--top-k", "2"]
NAMES = ("gate_proj", "up_proj", "down_proj")
V4 = ("layers.0.ffn.experts.{}.{}.weight", "layers.0.ffn.experts.{}.{}.scale", ("w1", "w3", "w2"))


def hf(scale):
    stem = "model.layers.0.mlp.experts.{}.{}.weight"
    return stem, scale and stem + scale, NAMES


# Target: family, scheme and style of a checkpoint that passes through, names of its tensors,
# rows of a run of gate or up, block of a scale.
TARGETS = {
    "megamoe-w4a8": ("deepseek_v4", "mxfp4", "usual", V4, 8),
    "megamoe-w4a4": ("deepseek_v4", "mxfp4", "usual", V4, 16),
    "megamoe-w4a4-g8": ("deepseek_v4", "mxfp4", "usual", V4, 8),
    "megamoe-nvfp4": ("qwen3_moe", "nvfp4", "modelopt", hf("_scale"), 8),
    "megamoe-bf16": ("qwen3_moe", "bf16", "usual", hf(None), 8),
    "megamoe-sm90-fp8": ("deepseek_v3", "fp8_block", "usual", hf("_scale_inv"), 8),
}
DTYPES = {
    "I8": torch.int8, "U8": torch.int8, "F8_E8M0": torch.uint8, "BF16": torch.bfloat16,
    "F32": torch.float32, "F8_E4M3": torch.uint8,
}  # fmt: skip


def tensor(entry):
    dtype, shape, data = entry
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(DTYPES[dtype]).reshape(shape)


def interleaved(rows, run):
    """Which row of [gate; up] comes to each place."""
    half, order = rows // 2, []
    for begin in range(0, half, run):
        gate = list(range(begin, begin + run))
        up = [half + row for row in gate]
        if run == 16:
            order += gate[0::2] + up[0::2] + gate[1::2] + up[1::2]
        else:
            order += gate + up
    return order


def utccp(rows):
    """Which row of scales comes to each place."""
    return [run + q * 32 + c for run in range(0, rows, 128) for c in range(32) for q in range(4)]


def stack(source, experts, name, parts, device):
    """Copies experts into one tensor, [G, rows of all parts, columns], as a loader of weights does."""
    shapes = [source[name.format(experts[0], part)] for part in parts]
    rows, columns = shapes[0][1]
    out = torch.empty(
        (len(experts), rows * len(parts), columns), dtype=DTYPES[shapes[0][0]], device=device
    )
    for g, expert in enumerate(experts):
        for p, part in enumerate(parts):
            out[g, p * rows : (p + 1) * rows].copy_(tensor(source[name.format(expert, part)]))
    return out


def scales_of(stacked, order):
    """Bytes of scales as words of four, [G, MN, words] with MN contiguous."""
    groups, rows, columns = stacked.shape
    words = stacked.contiguous().view(torch.int32).reshape(groups, rows, columns // 4)
    return words[:, order].transpose(1, 2).contiguous().transpose(1, 2)


def as_engine(source, experts, target, device):
    """The tensors of a layer by the engine's way, as rank.torch names them."""
    weight, scale, (gate, up, down) = TARGETS[target][3]
    run = TARGETS[target][4]
    w13 = stack(source, experts, weight, (gate, up), device)
    order = torch.tensor(interleaved(w13.shape[1], run), device=device)
    found = {
        "l1_weight": w13[:, order],
        "l2_weight": stack(source, experts, weight, (down,), device),
    }
    if scale:
        sf13 = stack(source, experts, scale, (gate, up), device)
        sf2 = stack(source, experts, scale, (down,), device)
        if target != "megamoe-sm90-fp8":
            swapped = torch.tensor(utccp(sf13.shape[1]), device=device)
            sf13 = scales_of(sf13, order[swapped])
            sf2 = scales_of(sf2, torch.tensor(utccp(sf2.shape[1]), device=device))
        found["l1_weight_sf"], found["l2_weight_sf"] = sf13, sf2
    return found


def measure(function, device):
    """The result, seconds, and the bytes of device memory that were needed at once."""
    before = peak = 0
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    begin = time.perf_counter()
    result = function()
    if device == "cuda":
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    return result, time.perf_counter() - begin, peak


def same(ours, theirs):
    """Whether two tensors have the same shape, strides and bytes."""
    if ours.shape != theirs.shape or ours.stride() != theirs.stride():
        return False
    ours, theirs = (t.transpose(-1, -2) if t.stride(-1) != 1 else t for t in (ours, theirs))
    return torch.equal(ours.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))


def check(target, device):
    family, scheme, style, _, _ = TARGETS[target]
    source = synth(
        "--family", family, "--format", scheme, "--style", style, *SIZES, "--layers", "1",
        "--mtp", "0",
    )  # fmt: skip
    drop = ["--drop", "input_scale"] if style == "modelopt" else []
    pack = loaders.Pack(repack(source, target, "--redundant", "2", *drop))
    tensors = checkpoint(source)
    layer = pack.layers[0]
    for number in pack.ranks:
        per_rank = pack.num_physical // pack.ep_size
        experts = pack.placement(layer)[number * per_rank : (number + 1) * per_rank]
        rank = pack.rank(number)
        ours, fast, least = measure(lambda: rank.torch(layer, device), device)
        theirs, slow, most = measure(
            lambda: as_engine(tensors, experts, target, device), device
        )
        size = sum(t.numel() * t.element_size() for t in ours.values())
        for name, expected in theirs.items():
            assert same(ours[name], expected), f"{target}, rank {number}: {name} differs"
        for name, stored in rank[layer].items():
            seen = ours[name].cpu()
            seen = seen.transpose(-1, -2) if seen.stride() != stored.strides else seen
            expected = torch.frombuffer(bytearray(stored.data), dtype=torch.uint8)
            found = seen.contiguous().view(torch.uint8).flatten()
            assert torch.equal(found, expected), f"{target}: {name} differs"
        print(
            f"{target:17} rank {number}: {size / 1e6:6.1f} MB in {fast:.4f} s, "
            f"{slow:.4f} s from the checkpoint"
            + (f"; at most {least / 1e6:.1f} and {most / 1e6:.1f} MB of the device" if most else "")
        )


device = "cuda" if torch.cuda.is_available() else "cpu"
print(f"torch {torch.__version__}, {device}")
listed = [t["name"] for t in json.loads(moepack("targets", "--json"))]
assert {name for name in listed if name.startswith("megamoe-")} == set(TARGETS)
for name in TARGETS:
    check(name, device)
