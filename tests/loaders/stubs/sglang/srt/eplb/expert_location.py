# SPDX-License-Identifier: Apache-2.0
"""Names of SGLang at 01fec5c2."""

metadata = None


def get_global_expert_location_metadata():
    return metadata
