# SPDX-License-Identifier: Apache-2.0
"""What every target has in a layer of a rank: names, types and shapes, as moepack-layouts(7) lists.

Shapes are those of one slot; a tensor of a rank is [G, shape...], G its slots. H is the hidden
size, I the intermediate size of an expert.
"""

import math
from collections import namedtuple

from .errors import PackError

# flat: of one dimension also for G slots. scales: words of four block scales, [words, MN], which
# kernels see as [MN, words].
SlotTensor = namedtuple(
    "SlotTensor", "name dtype shape optional flat scales", defaults=(False, False, False)
)

# single: a set of one slot, whose tensors have no dimension G.
# separate: the target of shared experts that stay apart; None: the same.
Target = namedtuple(
    "Target", "name version scheme multiples tensors single separate", defaults=(False, None)
)

ITEM_SIZES = {"I8": 1, "F8_E4M3": 1, "BF16": 2, "I32": 4, "F32": 4, "I64": 8}


def _fp4(block):
    def tensors(h, i):
        return [
            SlotTensor("l1_weight", "I8", (2 * i, h // 2)),
            SlotTensor("l1_weight_sf", "I32", (h // (4 * block), 2 * i), scales=True),
            SlotTensor("l2_weight", "I8", (h, i // 2)),
            SlotTensor("l2_weight_sf", "I32", (i // (4 * block), h), scales=True),
        ]

    return tensors


def _nvfp4(h, i):
    return _fp4(16)(h, i) + [
        SlotTensor("l1_alpha", "F32", (2,)),
        SlotTensor("l2_alpha", "F32", ()),
        SlotTensor("l1_input_scale", "F32", (), optional=True),
        SlotTensor("l2_input_scale", "F32", (), optional=True),
        SlotTensor("l1_global_scale", "F32", (2,), optional=True),
        SlotTensor("l2_global_scale", "F32", (), optional=True),
        SlotTensor("l2_act_scale", "F32", (), optional=True),
    ]


def _nvfp4_folded(h, i):
    """Alphas by DeepGEMM's own convention, fp4xfp4: the factors of L1's stay beside it."""
    return _fp4(16)(h, i) + [
        SlotTensor("l1_alpha", "F32", ()),
        SlotTensor("l2_alpha", "F32", ()),
        SlotTensor("l1_second_scale", "F32", (2,)),
        SlotTensor("l1_input_scale", "F32", ()),
        SlotTensor("l2_input_scale", "F32", (), optional=True),
        SlotTensor("l1_global_scale", "F32", (2,), optional=True),
        SlotTensor("l2_global_scale", "F32", (), optional=True),
        SlotTensor("l2_act_scale", "F32", (), optional=True),
    ]


def _megamoe_bf16(h, i):
    return [SlotTensor("l1_weight", "BF16", (2 * i, h)), SlotTensor("l2_weight", "BF16", (h, i))]


def _megamoe_fp8(h, i):
    return [
        SlotTensor("l1_weight", "F8_E4M3", (2 * i, h)),
        SlotTensor("l1_weight_sf", "F32", (2 * i // 128, h // 128)),
        SlotTensor("l2_weight", "F8_E4M3", (h, i)),
        SlotTensor("l2_weight_sf", "F32", (h // 128, i // 128)),
    ]


def _shared_fp8(h, i):
    return [
        SlotTensor("shared_l1_weight", "F8_E4M3", (2 * i, h)),
        SlotTensor("shared_l1_weight_sf", "I32", (h // 128, 2 * i), scales=True),
        SlotTensor("shared_l2_weight", "F8_E4M3", (h, i)),
        SlotTensor("shared_l2_weight_sf", "I32", (i // 128, h), scales=True),
    ]


def _plain(rows, columns):
    return (rows, columns)


def _nz(rows, columns):
    """FRACTAL_NZ: [rows, columns] in blocks of 16 by 32."""
    return (-(-columns // 32), -(-rows // 16), 16, 32)


def _fuseep(mode, form):
    def tensors(h, i):
        dtype, flat = ("F32", False) if mode == 1 else ("I64", True)
        return [
            SlotTensor("w13_weight", "I8", form(h, 2 * i)),
            SlotTensor("w13_weight_scale", dtype, (2 * i,), flat=flat),
            SlotTensor("w2_weight", "I8", form(h, i) if mode == 1 else form(i, h)),
            SlotTensor("w2_weight_scale", dtype, (h,), flat=flat),
            SlotTensor("w13_weight_offset", "F32", (2 * i,), optional=True),
            SlotTensor("w2_weight_offset", "F32", (h,), optional=True),
        ]

    return tensors


def _deepep(h, i):
    return [SlotTensor("w13_weight", "BF16", (2 * i, h)), SlotTensor("w2_weight", "BF16", (h, i))]


_SHARED_FP8 = Target("megamoe-shared-fp8", 1, "fp8_block", (128, 128), _shared_fp8, single=True)

# By name, and a form: weights in FRACTAL_NZ, or alphas of another convention than SGLang's.
TARGETS = {
    (target.name, form): target
    for form, target in [
        ("sgl", Target("megamoe-w4a8", 1, "mxfp4", (128, 128), _fp4(32), False, _SHARED_FP8)),
        ("sgl", Target("megamoe-w4a4", 1, "mxfp4", (128, 128), _fp4(32), False, _SHARED_FP8)),
        ("sgl", Target("megamoe-w4a4-g8", 1, "mxfp4", (128, 128), _fp4(32), False, _SHARED_FP8)),
        ("sgl", Target("megamoe-nvfp4", 1, "nvfp4", (128, 128), _nvfp4, False, _SHARED_FP8)),
        ("fp4xfp4", Target("megamoe-nvfp4", 1, "nvfp4", (128, 128), _nvfp4_folded, False, _SHARED_FP8)),
        ("sgl", Target("megamoe-bf16", 1, "bf16", (1, 8), _megamoe_bf16)),
        ("sgl", Target("megamoe-sm90-fp8", 1, "fp8_block", (128, 128), _megamoe_fp8)),
        ("sgl", Target("fuseep-1", 1, "int8_channel", (1, 64), _fuseep(1, _plain))),
        ("sgl", Target("fuseep-2", 1, "int8_channel", (1, 1), _fuseep(2, _plain))),
        ("sgl", Target("deepep-bf16", 1, "bf16", (1, 1), _deepep)),
        ("nz", Target("fuseep-1", 1, "int8_channel", (1, 64), _fuseep(1, _nz))),
        ("nz", Target("fuseep-2", 1, "int8_channel", (1, 1), _fuseep(2, _nz))),
    ]
}


def find(name, version, nz, alphas="sgl"):
    """The target of a manifest."""
    form = "nz" if nz else alphas
    target = TARGETS.get((name, form))
    if target is None or target.version != version:
        form = {"nz": " in FRACTAL_NZ form", "sgl": ""}.get(form, f" with alphas of {form}")
        raise PackError(f"moepack.json: this version does not know target {name}/{version}{form}")
    return target


def _check_size(target, what, size, multiple):
    if size == 0 and multiple == 1:
        raise PackError(f"{target.name}: {what} is 0, the kernel takes 1 or more")
    if size == 0 or size % multiple != 0:
        raise PackError(
            f"{target.name}: {what} is {size}, the kernel takes multiples of {multiple}"
        )


class SlotSet:
    """Tensors of a layer that share their slots: of the experts, or of shared experts apart."""

    def __init__(self, target, block, hidden_size, intermediate_size, slots):
        _check_size(target, "hidden size", hidden_size, target.multiples[0])
        _check_size(target, "expert intermediate size", intermediate_size, target.multiples[1])
        self.block = block  # between the layer's prefix and a tensor's name
        self.slots = slots
        self.single = target.single
        self.tensors = target.tensors(hidden_size, intermediate_size)

    def shape(self, tensor):
        """Of the tensor of all slots."""
        if self.single:
            return tensor.shape
        if tensor.flat:
            return (self.slots * tensor.shape[0],)
        return (self.slots,) + tensor.shape

    def bytes(self):
        """Of all tensors of a layer, optional ones counted."""
        return sum(ITEM_SIZES[t.dtype] * math.prod(self.shape(t)) for t in self.tensors)
