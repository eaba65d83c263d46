# SPDX-License-Identifier: Apache-2.0
"""Headers of safetensors files and the index beside them, checked before anything is believed.

Format: https://github.com/huggingface/safetensors#format. Faults are those that the C library
finds, in its words.
"""

import os
from collections import namedtuple

from . import jsontext
from .errors import PackError
from .files import read_text

HEADER_MAX = 100_000_000
INDEX = "model.safetensors.index.json"

# begin, end: bytes within the data, which begins behind the header.
Entry = namedtuple("Entry", "name dtype shape begin end")

BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


def shape_text(shape):
    return "[" + ", ".join(str(n) for n in shape) + "]"


def _is_count(value):
    return type(value) is int and 0 <= value < 1 << 63


def _bytes_of(dtype, shape):
    bits = BITS[dtype]
    for extent in shape:
        bits *= extent
        if bits >> 64:
            raise PackError(f"{dtype} {shape_text(shape)} is too large")
    if bits % 8 != 0:
        raise PackError(f"{dtype} {shape_text(shape)} takes {bits} bits, not whole bytes")
    return bits // 8


def _entry(name, pairs, data_bytes):
    if not isinstance(pairs, _Pairs):
        raise PackError("entry is not an object")
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise PackError("a field appears twice")
    dtype, shape, extent = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if type(dtype) is not str:
        raise PackError('"dtype" is not a string')
    if dtype not in BITS:
        raise PackError(f'dtype "{dtype}" is unknown')
    if type(shape) is not list:
        raise PackError('"shape" is not an array')
    for i, n in enumerate(shape):
        if not _is_count(n):
            raise PackError(f"shape[{i}] is not an integer of 0 or more")
    if type(extent) is not list or len(extent) != 2 or not all(map(_is_count, extent)):
        raise PackError('"data_offsets" is not two integers of 0 or more')
    begin, end = extent
    if begin > end:
        raise PackError(f"data_offsets [{begin}, {end}] run backwards")
    need = _bytes_of(dtype, shape)
    if end - begin != need:
        raise PackError(
            f"{dtype} {shape_text(shape)} takes {need} bytes, data_offsets span {end - begin}"
        )
    if end > data_bytes:
        raise PackError(f"ends at data byte {end}, the file holds {data_bytes}")
    return Entry(name, dtype, tuple(shape), begin, end)


class _Pairs(list):
    """Members of an object, in order, a name perhaps twice."""


def _check_tiling(entries, data_bytes):
    """That the extents cover the data without hole and overlap."""
    end, before = 0, None
    for entry in sorted(entries, key=lambda e: (e.begin, e.end)):
        if entry.begin < end:
            raise PackError(
                f'tensor "{entry.name}": begins at data byte {entry.begin}, inside tensor '
                f'"{before}" that ends at {end}'
            )
        if entry.begin > end:
            raise PackError(
                f'tensor "{entry.name}": begins at data byte {entry.begin}, {entry.begin - end} '
                "bytes after the one before it"
            )
        end, before = entry.end, entry.name
    if end != data_bytes:
        raise PackError(f"tensors end at data byte {end}, the file holds {data_bytes}")


def header_length(head, size):
    """Bytes of the JSON behind the first eight of a file of that size; None: not known yet."""
    if len(head) < 8:
        raise PackError(f"file of {len(head)} bytes is too small for a header")
    length = int.from_bytes(head[:8], "little")
    if length > HEADER_MAX:
        raise PackError(f"header of {length} bytes is over the limit of {HEADER_MAX}")
    if size is not None and length > size - 8:
        raise PackError(f"header of {length} bytes does not fit a file of {size}")
    return length


def parse_header(text, data_bytes):
    """The tensors of a file by the JSON of its header, in the order of their bytes.

    data_bytes: what the file holds behind the header.
    """
    pairs = jsontext.parse(text, "header", _Pairs)
    if not isinstance(pairs, _Pairs) or not bytes(text).startswith(b"{"):
        raise PackError("header is not an object")
    entries = []
    names = set()
    for name, value in pairs:
        if name == "__metadata__":
            if not isinstance(value, _Pairs) or not all(type(v) is str for _, v in value):
                raise PackError("__metadata__ is not an object of strings")
            continue
        try:
            entries.append(_entry(name, value, data_bytes))
        except PackError as error:
            raise PackError(f'tensor "{name}": {error}') from None
        if name in names:
            raise PackError(f'tensor "{name}" appears twice')
        names.add(name)
    _check_tiling(entries, data_bytes)
    return sorted(entries, key=lambda e: (e.begin, e.end))


def read_index(directory):
    """Names of tensors to names of files, which are plain ones, and the text of the index."""
    text = read_text(os.path.join(directory, INDEX), INDEX)
    weight_map = jsontext.member(jsontext.parse(text, INDEX), "weight_map", dict, INDEX)
    if not weight_map:
        raise PackError(f"{INDEX}: names no tensors")
    for tensor, name in weight_map.items():
        if type(name) is not str:
            raise PackError(f'{INDEX}: file of tensor "{tensor}" is not a string')
        if not name or "/" in name or "\0" in name or name in (".", ".."):
            raise PackError(
                f'{INDEX}: tensor "{tensor}": "{name}" is not the name of a file in the directory'
            )
    return weight_map, text


def check_index(weight_map, files):
    """Holds the index against the files: {name of a file: its entries}."""
    where = {}
    for name, entries in files.items():
        for entry in entries:
            if entry.name in where:
                raise PackError(f'{name}: tensor "{entry.name}" is in "{where[entry.name]}" too')
            where[entry.name] = name
    for tensor, name in weight_map.items():
        if tensor not in where:
            raise PackError(f'{name}: tensor "{tensor}" is missing, "{INDEX}" says it is here')
        if where[tensor] != name:
            raise PackError(
                f'{name}: tensor "{tensor}" is in "{where[tensor]}", "{INDEX}" says it is here'
            )
    for tensor, name in where.items():
        if tensor not in weight_map:
            raise PackError(f'{name}: tensor "{tensor}" is not in "{INDEX}"')
