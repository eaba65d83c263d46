#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints the color of the first pixel of a PNG as browsers write it, and of how many colors it is.

    png.py FILE    #ffffff 212
"""
import struct
import sys
import zlib


def rows(data):
    """The rows of a PNG of 8 bits a sample that is not interlaced, as bytes, and bytes a pixel."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, packed = 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        chunk = data[at + 8:at + 8 + length]
        if kind == b"IHDR":
            width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", chunk)
            assert depth == 8 and color in (2, 6) and not interlaced
        elif kind == b"IDAT":
            packed += chunk
        at += 12 + length
    step = 3 if color == 2 else 4
    plain, above = zlib.decompress(packed), bytearray(width * step)
    for y in range(height):
        start = y * (width * step + 1)
        row = bytearray(plain[start + 1:start + 1 + width * step])
        for x, filtered in enumerate(row):
            left = row[x - step] if x >= step else 0
            corner = above[x - step] if x >= step else 0
            near = min((left, above[x], corner), key=lambda v: abs(left + above[x] - corner - v))
            guess = (0, left, above[x], (left + above[x]) // 2, near)[plain[start]]
            row[x] = (filtered + guess) & 255
        yield row, step
        above = row


def main():
    first, colors = None, set()
    for row, step in rows(open(sys.argv[1], "rb").read()):
        for x in range(0, len(row), step):
            colors.add(bytes(row[x:x + 3]))
        first = first or bytes(row[:3])
    print("#" + first.hex(), len(colors))


main()
