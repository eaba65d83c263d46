#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Damages a safetensors file in place, as tests want it damaged.

    tensors.py FILE swap A B       exchanges the bytes of two tensors
    tensors.py FILE copy A B       gives B the bytes of A
    tensors.py FILE fill A BYTE    gives all bytes of A one value
    tensors.py FILE flip A AT MASK flips bits of a byte of A
    tensors.py FILE rename A B     gives A another name
    tensors.py FILE drop A         takes A out
    tensors.py FILE scale A F      multiplies a tensor of F32 or BF16
    tensors.py FILE write A F      sets a tensor of one F32

Only what Python brings along.
"""

import json
import struct
import sys


def read(path):
    """The tensors of a file, {name: [dtype, shape, bytes]}, and its metadata."""
    with open(path, "rb") as file:
        data = file.read()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + at for at in entry["data_offsets"])
        tensors[name] = [entry["dtype"], entry["shape"], bytearray(data[begin:end])]
    return tensors, metadata


def write(path, tensors, metadata=None):
    """The reverse: in the order given, without holes."""
    header, at = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            file.write(data)


def scaled(dtype, data, factor):
    """Values times a factor; BF16 is cut off, which is near enough to do damage."""
    if dtype == "F32":
        values = struct.unpack(f"<{len(data) // 4}f", data)
        return struct.pack(f"<{len(values)}f", *(v * factor for v in values))
    if dtype != "BF16":
        sys.exit(f"cannot scale {dtype}")
    halves = struct.unpack(f"<{len(data) // 2}H", data)
    values = struct.unpack(f"<{len(halves)}f", struct.pack(f"<{len(halves)}I", *(h << 16 for h in halves)))
    words = struct.unpack(f"<{len(halves)}I", struct.pack(f"<{len(halves)}f", *(v * factor for v in values)))
    return struct.pack(f"<{len(halves)}H", *(w >> 16 for w in words))


def damage(tensors, what, args):
    name = args[0]
    entry = tensors[name]
    if what == "swap":
        other = tensors[args[1]]
        entry[2], other[2] = other[2], entry[2]
    elif what == "copy":
        tensors[args[1]][2] = entry[2]
    elif what == "fill":
        entry[2] = bytes([int(args[1], 0)]) * len(entry[2])
    elif what == "flip":
        entry[2][int(args[1])] ^= int(args[2], 0)
    elif what == "rename":
        tensors[args[1]] = tensors.pop(name)
    elif what == "drop":
        del tensors[name]
    elif what == "scale":
        entry[2] = scaled(entry[0], entry[2], float(args[1]))
    elif what == "write":
        entry[2] = struct.pack("<f", float(args[1]))
    else:
        sys.exit(f"no such damage: {what}")


def main():
    path, what, *args = sys.argv[1:]
    tensors, metadata = read(path)
    damage(tensors, what, args)
    write(path, tensors, metadata)


if __name__ == "__main__":
    main()
