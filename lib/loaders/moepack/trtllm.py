# SPDX-License-Identifier: Apache-2.0
"""TensorRT-LLM: weights of MegaMoEDeepGemm, the backend of W4A8MXFP4MXFP8MegaMoEDeepGemmMethod.

The kernel is handed _t_l1 and _t_l2 of the backend. load() sets them: in place of load_weights and
post_load_weights, which would make them of the checkpoint, or behind both. The slots of the pack
have to be those of the load balancer (moepack eplb --format trtllm writes its file).

Written against the file in moepack.ENGINES["trtllm"]; the quantization method itself was not read.
"""

from . import engines
from .engines import attribute


def load(backend, pack, layer, rank, device=None):
    """Sets _t_l1 and _t_l2 of a MegaMoEDeepGemm.

    rank: its own among those of expert parallelism.
    """

    def of(name):
        return attribute("trtllm", backend, name)

    of("_t_l1"), of("_t_l2")
    pack.expect(
        target="megamoe-w4a8",
        shared="none",
        ep_size=of("ep_size"),
        num_physical=of("num_slots"),
        num_experts=of("num_experts"),
        hidden_size=of("hidden_size"),
        moe_intermediate_size=of("intermediate_size"),
    )
    found = pack.rank(rank).torch(layer, device)
    backend._t_l1 = engines.pair(found, "l1")
    backend._t_l2 = engines.pair(found, "l2")
