# SPDX-License-Identifier: Apache-2.0
"""FlashInfer: weights for the mega kernel deep_gemm_mega.

    weights = moepack.flashinfer.transformed_weights(pack, layer, rank, device)
    MegaConfig(..., preprocess_weights=False, transformed_weights=weights)

Written against the files in moepack.ENGINES["flashinfer"]. FlashInfer's other kernels have layouts
of their own, which no pack has.
"""

from . import engines


def transformed_weights(pack, layer, rank, device=None):
    """((w13, sf13), (w2, sf2)) of a layer on a rank."""
    pack.expect(target="megamoe-w4a8")
    found = pack.rank(rank).torch(layer, device)
    return engines.pair(found, "l1"), engines.pair(found, "l2")
