"""zero.py SHARD PART: writes zeros over the tensors whose names contain PART."""
import json, struct, sys

with open(sys.argv[1], "r+b") as file:
    (length,) = struct.unpack("<Q", file.read(8))
    for name, tensor in json.loads(file.read(length)).items():
        if sys.argv[2] in name:
            begin, end = tensor["data_offsets"]
            file.seek(8 + length + begin)
            file.write(bytes(end - begin))
