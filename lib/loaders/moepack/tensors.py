# SPDX-License-Identifier: Apache-2.0
"""Bytes to torch tensors. The only file that knows torch, which is imported when it is used."""

from .errors import PackError

# Of safetensors to those of torch.
DTYPES = {
    "I8": "int8",
    "I32": "int32",
    "I64": "int64",
    "F32": "float32",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
}


def dtype(name):
    """A type of torch."""
    import torch

    found = getattr(torch, DTYPES[name], None)
    if found is None:
        raise PackError(f"torch {torch.__version__} has no {DTYPES[name]}")
    return found


def from_buffer(view, name, shape, device=None):
    """A contiguous tensor of a writable buffer, which it keeps alive; a copy on a device."""
    import torch

    flat = torch.frombuffer(view, dtype=torch.uint8).view(dtype(name)).reshape(shape)
    return flat if device is None else flat.to(device)


def undo_utccp(scales):
    """Scales [G, MN, words] without UTCCP order, likewise with MN contiguous: row q*32+c of each
    128 is the one at 4*c+q. A copy, on the same device."""
    groups, rows, words = scales.shape
    stored = scales.transpose(1, 2).reshape(groups, words, rows // 128, 32, 4)
    plain = stored.transpose(3, 4).contiguous().reshape(groups, words, rows)
    return plain.transpose(1, 2)
