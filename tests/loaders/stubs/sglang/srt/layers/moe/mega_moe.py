# SPDX-License-Identifier: Apache-2.0
"""Names and signatures of SGLang at 04fa8c01. The transform itself only counts its calls."""

mma_type = "fp8xfp4"
transformed = []


def _mega_moe_mma_type(experts=None):
    return mma_type


def build_mega_moe_experts_weights(experts):
    transformed.append(experts)
