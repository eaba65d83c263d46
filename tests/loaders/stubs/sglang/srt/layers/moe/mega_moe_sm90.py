# SPDX-License-Identifier: Apache-2.0
"""Names and signatures of SGLang at 078e5e2a. The transform itself only counts its calls."""

transformed = []


def build_sm90_mega_moe_experts_weights(experts):
    transformed.append(experts)
