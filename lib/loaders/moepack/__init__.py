# SPDX-License-Identifier: Apache-2.0
"""Loads packs of moepack into Python, and from there into inference engines.

Pack reads a packed directory by the standard library alone. The modules sglang, vllm,
transformers, flashinfer and trtllm hand its tensors to the engine of that name, which each imports
when it is used.
"""

from .engines import ENGINES
from .errors import PackError
from .reader import Pack, Rank, Tensor

__all__ = ["ENGINES", "Pack", "PackError", "Rank", "Tensor"]
__version__ = "0.1.0"
