# SPDX-License-Identifier: Apache-2.0
"""transformers: an experts module for the dispatch deepgemm_fp8_fp4_megamoe_experts_forward, which
leaves the transformation of weights to its caller.

Written against the file in moepack.ENGINES["transformers"].
"""

from . import engines
from .engines import attribute


def load(experts, pack, layer, rank, device=None):
    """Sets gate_up_proj, gate_up_proj_scale_inv, down_proj and down_proj_scale_inv of a module.

    rank: the number of this one in the process group of the experts.
    """
    import torch

    pack.expect(target="megamoe-w4a8")
    for name in ("gate_up_proj", "down_proj"):
        attribute("transformers", experts, name)
    engines.check_in_order(pack, layer, "transformers takes no placement: pack without one")
    found = pack.rank(rank).torch(layer, device)
    w13, sf13 = engines.pair(found, "l1")
    w2, sf2 = engines.pair(found, "l2")
    for name, tensor in (
        ("gate_up_proj", w13),
        ("gate_up_proj_scale_inv", sf13),
        ("down_proj", w2),
        ("down_proj_scale_inv", sf2),
    ):
        setattr(experts, name, torch.nn.Parameter(tensor, requires_grad=False))
