# SPDX-License-Identifier: Apache-2.0
"""Loads a rank of a pack: prints its tensors, and a digest of what was read of each."""

import sys

import moepack
from moepack import xxh3


def load(directory, number):
    pack = moepack.Pack(directory)
    rank = pack.rank(number)  # of the other ranks, nothing is opened
    for layer in rank.layers:
        for name, tensor in rank[layer].items():
            # An engine would take rank.torch(layer, "cuda") instead.
            block = "" if name.startswith("shared_experts.") else "experts."
            print(
                f"{layer}.{block}{name}", tensor.dtype, list(tensor.shape), xxh3.digest(tensor.data)
            )


if len(sys.argv) != 3 or not sys.argv[2].isdigit():
    sys.exit("usage: load_rank.py PACK RANK")
try:
    load(sys.argv[1], int(sys.argv[2]))
except moepack.PackError as error:
    sys.exit(f"load_rank.py: {error}")
