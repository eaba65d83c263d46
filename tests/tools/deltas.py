#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Deltas between checkpoints, written, read and damaged without moepack.

    deltas.py change DIR SEED SHARE        changes that share of the bytes of every third tensor
    deltas.py write OLD NEW OUT VERSION ENCODING CHECKSUM
    deltas.py check OLD NEW DELTA          exits 1 where DELTA is not what changed
    deltas.py break DELTA TENSOR HOW       damages a stream, or what is said of it

Streams go through the zstd program, checksums through xxhsum and zlib. Only what Python brings
along besides.
"""

import glob
import json
import os
import random
import struct
import subprocess
import sys
import zlib

import tensors as files

INDEX = "model.safetensors.index.json"


def zstd(data, *options):
    return subprocess.run(["zstd", "-q", "-c", *options], input=data, stdout=subprocess.PIPE, check=True).stdout


def xxh3(data):
    told = subprocess.run(["xxhsum", "-q", "-H2", "-"], input=data, stdout=subprocess.PIPE, check=True).stdout
    return told.split()[0].decode()


CHECKSUMS = {"xxh3-128": xxh3, "adler32": lambda data: f"{zlib.adler32(data):08x}"}


def load(directory):
    """All tensors of a directory, and the metadata of its shards, by tensor."""
    all_tensors, notes = {}, {}
    for path in sorted(glob.glob(os.path.join(directory, "*.safetensors"))):
        tensors, metadata = files.read(path)
        all_tensors.update(tensors)
        notes.update(metadata or {})
    return all_tensors, notes


def change(directory, seed, share):
    rng = random.Random(int(seed))
    for path in sorted(glob.glob(os.path.join(directory, "*.safetensors"))):
        tensors, metadata = files.read(path)
        for number, (_, _, data) in enumerate(tensors.values()):
            if number % 3 == int(seed) % 3 and data:
                for _ in range(max(1, int(len(data) * float(share)))):
                    data[rng.randrange(len(data))] ^= 1 + (rng.random() < 0.3) # so that numbers stay finite
        files.write(path, tensors, metadata)


def encode(old, new, encoding):
    if encoding == "xor":
        return bytes(a ^ b for a, b in zip(old, new))
    places = [at for at, (a, b) in enumerate(zip(old, new)) if a != b]
    return struct.pack(f"<{len(places) + 1}I", len(places), *places) + bytes(new[at] for at in places)


def decode(old, stream, encoding):
    if encoding == "xor":
        assert len(stream) == len(old), "length of a stream"
        return bytes(a ^ b for a, b in zip(old, stream))
    (count,) = struct.unpack_from("<I", stream)
    places = struct.unpack_from(f"<{count}I", stream, 4)
    values = stream[4 + 4 * count :]
    assert len(values) == count and list(places) == sorted(set(places)), "an overwriting stream"
    new = bytearray(old)
    for at, value in zip(places, values):
        new[at] = value
    return bytes(new)


def write(old_dir, new_dir, out, version, encoding, checksum):
    old, _ = load(old_dir)
    new, _ = load(new_dir)
    streams, sums = {}, {}
    for name, (_, _, data) in new.items():
        if data != old[name][2]:
            stream = zstd(encode(old[name][2], data, encoding))
            streams[name] = ["U8", [len(stream)], stream]
            sums[name] = CHECKSUMS[checksum](data)
    os.mkdir(out)
    if streams:
        files.write(os.path.join(out, "delta.safetensors"), streams, sums)
    metadata = {
        "version": f"{int(version):06d}",
        "base_version": f"{int(version) - 1:06d}",
        "delta_encoding": encoding,
        "compression_format": "zstd",
        "checksum_format": checksum,
    }
    with open(os.path.join(out, INDEX), "w", encoding="utf-8") as file:
        json.dump({"metadata": metadata, "weight_map": dict.fromkeys(streams, "delta.safetensors")}, file)


def check(old_dir, new_dir, delta):
    old, _ = load(old_dir)
    new, _ = load(new_dir)
    streams, sums = load(delta)
    with open(os.path.join(delta, INDEX), encoding="utf-8") as file:
        index = json.load(file)
    metadata = index["metadata"]
    changed = {name for name, (_, _, data) in new.items() if data != old[name][2]}
    assert set(streams) == changed == set(index["weight_map"]), "tensors of the delta"
    for name, (dtype, shape, stream) in streams.items():
        assert dtype == "U8" and shape == [len(stream)], name
        made = decode(old[name][2], zstd(stream, "-d"), metadata["delta_encoding"])
        assert made == new[name][2], name
        assert sums[name] == CHECKSUMS[metadata["checksum_format"]](made), name


def descending(plain):
    (count,) = struct.unpack_from("<I", plain)
    places = list(struct.unpack_from(f"<{count}I", plain, 4))
    places[0], places[1] = places[1], places[0]
    return plain[:4] + struct.pack(f"<{count}I", *places) + plain[4 + 4 * count :]


def outside(plain):
    (count,) = struct.unpack_from("<I", plain)
    return plain[: 4 * count] + struct.pack("<I", 0xFFFFFFFF) + plain[4 + 4 * count :]


# What is done to the content of a stream.
DAMAGES = {
    "short": lambda plain: plain[:-1],
    "long": lambda plain: plain + b"\0",
    "empty": lambda plain: b"",
    "descending": descending,
    "outside": outside,
    "uncounted": lambda plain: struct.pack("<I", 0xFFFFFFFF) + plain[4:],
}
# And to what is stored.
STORED = {
    "cut": lambda stream: stream[:-3],
    "garbage": lambda stream: b"\x28\xb5\x2f\xfd" + b"\xff" * (len(stream) - 4),
    "nothing": lambda stream: b"",
}


def damage(delta, name, how):
    for path in glob.glob(os.path.join(delta, "*.safetensors")):
        tensors, metadata = files.read(path)
        if name not in tensors:
            continue
        entry = tensors[name]
        stream = bytes(entry[2])
        if how in DAMAGES:
            stream = zstd(DAMAGES[how](zstd(stream, "-d")))
        elif how in STORED:
            stream = STORED[how](stream)
        elif how == "sum":
            metadata[name] = ("0" if metadata[name][0] != "0" else "1") + metadata[name][1:]
        elif how == "no-sum":
            del metadata[name]
        elif how == "not-hex":
            metadata[name] = metadata[name].upper() + "X"
        elif how == "dtype":
            entry[0] = "I8"
        else:
            sys.exit(f"no damage {how}")
        entry[1], entry[2] = [len(stream)], stream
        files.write(path, tensors, metadata)


def main(what, *args):
    {"change": change, "write": write, "check": check, "break": damage}[what](*args)


main(*sys.argv[1:])
