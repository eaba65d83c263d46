# SPDX-License-Identifier: Apache-2.0
"""Packs that are broken, each in one way, and the exact message.

Where the C library finds the same fault it says the same, and the test runs both. What only verify
looks at there, and texts that are no JSON, it says otherwise or not at all: these are marked.
"""

import json
import os
import shutil
import tempfile
import unittest

from support import (
    WORK, edit_header, edit_manifest, fixture, load_rank, read, repack, seal, shard, write,
)  # fmt: skip

import moepack as loaders
from moepack import xxh3

INDEX = "rank-000/model.safetensors.index.json"
FILE = "model-00001-of-00001.safetensors"
L1 = "layers.0.experts.l1_weight"


def at(pack, name):
    return os.path.join(pack, name)


def manifest(change):
    return lambda pack: edit_manifest(pack, change)


def model(**members):
    return manifest(lambda m: m["model"].update(members))


def root(**members):
    return manifest(lambda m: m.update(members))


def without(*path):
    def change(m):
        for key in path[:-1]:
            m = m[key]
        del m[path[-1]]

    return manifest(change)


def text(name, old, new):
    """Replaces a text in a file, which has to be there."""

    def mutate(pack):
        data = read(at(pack, name))
        assert old.encode() in data, old
        write(at(pack, name), data.replace(old.encode(), new.encode(), 1))

    return mutate


def placement(rows):
    """Other rows, which the manifest has the digest of."""

    def mutate(pack):
        data = json.dumps({"physical_to_logical_map": rows}).encode()
        write(at(pack, "placement.json"), data)
        edit_manifest(pack, lambda m: m.update(placement_xxh3=xxh3.digest(data)))

    return mutate


def header(old, new):
    def change(said):
        assert old in said, (old, said)
        return said.replace(old, new, 1)

    return lambda pack: edit_header(shard(pack), change)


def cut(name, size):
    return lambda pack: os.truncate(at(pack, name), size)


def bytes_at(offset, data):
    def mutate(pack):
        with open(shard(pack), "r+b") as file:
            file.seek(offset)
            file.write(data)

    return mutate


def index(change):
    """Changes the index, which the manifest has the digest of."""

    def mutate(pack):
        value = json.loads(read(at(pack, INDEX)))
        change(value)
        data = json.dumps(value).encode()
        write(at(pack, INDEX), data)
        edit_manifest(pack, lambda m: m["ranks"][0].update(index_xxh3=xxh3.digest(data)))

    return mutate


def remove(name):
    def mutate(pack):
        path = at(pack, name)
        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)

    return mutate


def pipe(name):
    def mutate(pack):
        os.remove(at(pack, name))
        os.mkfifo(at(pack, name))

    return mutate


def append(name, data):
    def mutate(pack):
        with open(at(pack, name), "ab") as file:
            file.write(data)

    return mutate


def unsealed(data):
    """Some text, with a digest that fits it."""

    def mutate(pack):
        body = data + b"\n}\n"
        sealed = data + b',\n  "xxh3": "' + xxh3.digest(body).encode() + b'"\n}\n'
        write(at(pack, "moepack.json"), sealed)

    return mutate


ROWS = [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 4, 0, 1, 2]]
SAME, ALONE = True, False

# What is done to the pack, the message, and whether the C library says the same.
CASES = {
    # the manifest
    "no manifest": (remove("moepack.json"), '"PACK" is not a pack: it has no moepack.json', SAME),
    "a pipe for a manifest": (pipe("moepack.json"), "moepack.json: not a regular file", ALONE),
    "a manifest without a digest": (lambda p: write(at(p, "moepack.json"), "{}\n"), "moepack.json: does not end in its digest", SAME),
    "an empty manifest": (cut("moepack.json", 0), "moepack.json: does not end in its digest", SAME),
    "a manifest that is no JSON": (unsealed(b"{]"), "moepack.json: not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)", ALONE),
    "a manifest nested deeply": (unsealed(b"[" * 100000), "moepack.json: not JSON: nested too deeply", ALONE),
    "a manifest that is not UTF-8": (unsealed(b'{"a": "\xff"'), "moepack.json: not JSON: 'utf-8' codec can't decode byte 0xff in position 7: invalid start byte", ALONE),
    "half of a surrogate pair": (unsealed(b'{"a": "\\ud800"'), "moepack.json: not JSON: 'utf-8' codec can't encode character '\\ud800' in position 7: surrogates not allowed", ALONE),
    "a member twice": (text("moepack.json", '"nz"', '"target"'), None, ALONE),
    "another format": (root(format_version="2"), 'moepack.json: format version "2", this tool reads "1"', SAME),
    "a format that is a number": (root(format_version=1), 'moepack.json: "format_version" is an integer, expected a string', SAME),
    "no target": (without("target"), 'moepack.json: "target" is missing', SAME),
    "an unknown target": (root(target="megamoe-w2a8"), "moepack.json: this version does not know target megamoe-w2a8/1", SAME),
    "a later version of the target": (root(target_version=2), "moepack.json: this version does not know target megamoe-w4a8/2", SAME),
    "a target without that form": (root(nz=True), "moepack.json: this version does not know target megamoe-w4a8/1 in FRACTAL_NZ form", SAME),
    "a word for a flag": (root(nz="no"), 'moepack.json: "nz" is not true or false', SAME),
    "a negative size": (model(hidden_size=-384), 'moepack.json: "hidden_size" is -384, expected 0 or more', SAME),
    "a fraction for a size": (model(hidden_size=384.5), 'moepack.json: "hidden_size" is a fraction, expected an integer', SAME),
    "a size of 65 bits": (model(hidden_size=1 << 64), 'moepack.json: "hidden_size" is 18446744073709551616, over 63 bits', ALONE),
    "a number of 5000 digits": (text("moepack.json", '"hidden_size": 384', '"hidden_size": ' + "3" * 5000), None, ALONE),
    "true for a size": (model(num_experts=True), 'moepack.json: "num_experts" is a boolean, expected an integer', SAME),
    "no model": (root(model=None), 'moepack.json: "model" is null, expected an object', SAME),
    "sizes beyond all models": (model(hidden_size=1 << 40), "moepack.json: sizes 1099511627776 and 256 are over 1048576", SAME),
    "experts beyond all models": (model(num_experts=1 << 30), "moepack.json: 1073741824 experts, 8 physical, are over 1048576", SAME),
    "ranks beyond all": (root(ep_size=1 << 17, num_physical=1 << 17), "moepack.json: ep_size 131072 is over 65536", SAME),
    "sizes that the kernel does not take": (model(hidden_size=400), "moepack.json: megamoe-w4a8: hidden size is 400, the kernel takes multiples of 128", SAME),
    "a size of 0": (model(moe_intermediate_size=0), "moepack.json: megamoe-w4a8: expert intermediate size is 0, the kernel takes multiples of 128", SAME),
    "ranks that do not divide": (root(ep_size=3), "moepack.json: 8 physical experts on 3 ranks", SAME),
    "no ranks of parallelism": (root(ep_size=0), "moepack.json: rank 0, but ep_size is 0", SAME),
    "more experts than slots": (model(num_experts=9), "moepack.json: slots: 8 physical experts for 9 logical ones", SAME),
    "no experts": (model(num_experts=0), "moepack.json: slots: no logical experts", SAME),
    "an unknown shared mode": (root(shared="somehow"), 'moepack.json: this version does not know shared mode "somehow"', SAME),
    "shared experts of a model without": (manifest(lambda m: (m["model"].update(num_shared_experts=0), m.update(shared="fused"))), "moepack.json: shared experts are fused, but the model has none", SAME),
    "shared experts too wide": (manifest(lambda m: (m["model"].update(num_shared_experts=1 << 40), m.update(shared="separate"))), "moepack.json: 1099511627776 shared experts of size 256 are wider than 1048576", SAME),
    "another scheme": (manifest(lambda m: m["quantization"].update(target="nvfp4")), "moepack.json: quantized to nvfp4, but megamoe-w4a8 takes mxfp4", SAME),
    "no layers": (manifest(lambda m: m.update(layers=[], layer_forms=[])), "moepack.json: 0 layers, the model has 2 MoE layers", SAME),
    "a layer twice": (root(layers=["mtp.0", "mtp.0"]), "moepack.json: layer mtp.0 is listed twice", SAME),
    "a layer that is a number": (root(layers=["layers.0", 1]), 'moepack.json: "layers": entry 1 is not a string', SAME),
    "no rank": (root(ranks=[]), "moepack.json: no rank", SAME),
    "a rank too many": (manifest(lambda m: m["ranks"][1].update(rank=2)), "moepack.json: rank 2, but ep_size is 2", SAME),
    "ranks out of order": (manifest(lambda m: m["ranks"].reverse()), "moepack.json: rank 0 after rank 1", SAME),
    "a file that leads out": (manifest(lambda m: m["ranks"][0]["files"][0].update(name="../x")), 'moepack.json: "../x" is not a file name', SAME),
    "a digest too short": (root(placement_xxh3="12"), 'moepack.json: "placement_xxh3" is not an XXH3-128 in hex', SAME),
    # the placement
    "no placement": (remove("placement.json"), "placement.json: missing", SAME),
    "a pipe for a placement": (pipe("placement.json"), "placement.json: not a regular file", SAME),
    "rows of another number": (placement([row[:7] for row in ROWS]), "placement.json: 7 physical experts, the manifest says 8", SAME),
    "a row too many": (placement(ROWS + ROWS[:1]), "placement.json: 3 rows for 2 layers", SAME),
    "an expert too many": (placement([ROWS[0], [0, 1, 2, 3, 4, 5, 1, 2]]), "placement.json: placement: row 1, column 5: logical expert 5, expected 0 to 4", SAME),
    "an expert nowhere": (placement([[0, 1, 2, 3, 3, 0, 1, 2]]), "placement.json: placement: row 0: logical expert 4 is in none of the 8 columns", SAME),
    "a fraction for an expert": (placement([[0, 1.5]]), "placement.json: placement: row 0, column 1: not an integer", SAME),
    "rows of two lengths": (placement([ROWS[0], [0, 1]]), "placement.json: placement: row 1 has 2 columns, row 0 has 8", SAME),
    "an empty row": (placement([ROWS[0], []]), "placement.json: placement: row 1 is empty", SAME),
    "no rows": (placement([]), "placement.json: placement: no layers", SAME),
    # a rank
    "no directory of the rank": (remove("rank-000"), "rank-000: the directory is missing", SAME),
    "no index": (remove(INDEX), "rank-000: model.safetensors.index.json: missing", ALONE),
    "an index without a map": (index(lambda i: i.pop("weight_map")), 'rank-000: model.safetensors.index.json: "weight_map" is missing', SAME),
    "an index of nothing": (index(lambda i: i.update(weight_map={})), "rank-000: model.safetensors.index.json: names no tensors", SAME),
    "an index of numbers": (index(lambda i: i["weight_map"].update({L1: 1})), f'rank-000: model.safetensors.index.json: file of tensor "{L1}" is not a string', SAME),
    "an index that leads out": (index(lambda i: i["weight_map"].update({L1: "../x"})), f'rank-000: model.safetensors.index.json: tensor "{L1}": "../x" is not the name of a file in the directory', SAME),
    "an index of the directory": (index(lambda i: i["weight_map"].update({L1: ".."})), f'rank-000: model.safetensors.index.json: tensor "{L1}": ".." is not the name of a file in the directory', SAME),
    "an index of a missing file": (index(lambda i: i["weight_map"].update({L1: "a"})), 'rank-000: a: the file is missing, "model.safetensors.index.json" names it', SAME),
    "a tensor that is not in its file": (index(lambda i: i["weight_map"].update(x=FILE)), f'rank-000: {FILE}: tensor "x" is missing, "model.safetensors.index.json" says it is here', SAME),
    "a tensor that is not in the index": (index(lambda i: i["weight_map"].pop(L1)), f'rank-000: {FILE}: tensor "{L1}" is not in "model.safetensors.index.json"', SAME),
    "a pipe for a shard": (pipe(f"rank-000/{FILE}"), f"rank-000: {FILE}: not a regular file", SAME),
    "another index": (append(INDEX, b" "), None, ALONE),
    # a header
    "a file of 0 bytes": (cut(f"rank-000/{FILE}", 0), f"rank-000: {FILE}: file of 0 bytes is too small for a header", SAME),
    "a file of 7 bytes": (cut(f"rank-000/{FILE}", 7), f"rank-000: {FILE}: file of 7 bytes is too small for a header", SAME),
    "a header beyond the file": (cut(f"rank-000/{FILE}", 1000), f"rank-000: {FILE}: header of 4088 bytes does not fit a file of 1000", SAME),
    "a header of 64 bits": (bytes_at(0, b"\xff" * 8), f"rank-000: {FILE}: header of 18446744073709551615 bytes is over the limit of 100000000", SAME),
    "a header that is no object": (lambda p: edit_header(shard(p), lambda h: "[]"), f"rank-000: {FILE}: header is not an object", ALONE),
    "a header behind a blank": (lambda p: edit_header(shard(p), lambda h: " " + h), f"rank-000: {FILE}: header is not an object", ALONE),
    "a header that is cut off": (lambda p: edit_header(shard(p), lambda h: h[:9]), f"rank-000: {FILE}: header: not JSON: Unterminated string starting at: line 1 column 2 (char 1)", ALONE),
    "a tensor twice": (header('"layers.0.experts.l1_weight_sf"', f'"{L1}"'), f'rank-000: {FILE}: tensor "{L1}" appears twice', SAME),
    "a type that is unknown": (header('"I8"', '"I9"'), f'rank-000: {FILE}: tensor "{L1}": dtype "I9" is unknown', SAME),
    "a type that is a number": (header('"I8"', "8"), f'rank-000: {FILE}: tensor "{L1}": "dtype" is not a string', SAME),
    "a type with control characters": (header('"I8"', '"\\u001b[31m\\n"'), f'rank-000: {FILE}: tensor "{L1}": dtype "?[31m?" is unknown', SAME),
    "an entry that is none": (header('{"dtype":"I8","shape":[4,512,192],"data_offsets":[0,393216]}', "7"), f'rank-000: {FILE}: tensor "{L1}": entry is not an object', SAME),
    "a shape of text": (header("[4,512,192]", '"4"'), f'rank-000: {FILE}: tensor "{L1}": "shape" is not an array', SAME),
    "a negative extent": (header("[4,512,192]", "[4,-512,192]"), f'rank-000: {FILE}: tensor "{L1}": shape[1] is not an integer of 0 or more', SAME),
    "true for an extent": (header("[4,512,192]", "[true,512,192]"), f'rank-000: {FILE}: tensor "{L1}": shape[0] is not an integer of 0 or more', SAME),
    "a shape beyond 64 bits": (header("[4,512,192]", "[4611686018427387904,512,192]"), f'rank-000: {FILE}: tensor "{L1}": I8 [4611686018427387904, 512, 192] is too large', SAME),
    "offsets that run backwards": (header("[0,393216]", "[393216,0]"), f'rank-000: {FILE}: tensor "{L1}": data_offsets [393216, 0] run backwards', SAME),
    "a single offset": (header("[0,393216]", "[393216]"), f'rank-000: {FILE}: tensor "{L1}": "data_offsets" is not two integers of 0 or more', SAME),
    "offsets of another length": (header("[0,393216]", "[0,393215]"), f'rank-000: {FILE}: tensor "{L1}": I8 [4, 512, 192] takes 393216 bytes, data_offsets span 393215', SAME),
    "offsets beyond the file": (header("[0,393216]", "[9000000,9393216]"), f'rank-000: {FILE}: tensor "{L1}": ends at data byte 9393216, the file holds 1253376', SAME),
    "an overlap": (header("[393216,417792]", "[393215,417791]"), f'rank-000: {FILE}: tensor "layers.0.experts.l1_weight_sf": begins at data byte 393215, inside tensor "{L1}" that ends at 393216', SAME),
    "a hole": (header("[393216,417792]", "[393220,417796]"), f'rank-000: {FILE}: tensor "layers.0.experts.l1_weight_sf": begins at data byte 393220, 4 bytes after the one before it', SAME),
    "a shard cut off": (cut(f"rank-000/{FILE}", 1000000), None, SAME),
    "bytes behind a shard": (append(f"rank-000/{FILE}", b"x"), f"rank-000: {FILE}: tensors end at data byte 1253376, the file holds 1253377", SAME),
    # a rank against the manifest
    "a type of another target": (header('"I8"', '"U8"'), f"rank-000: {L1}: U8 [4, 512, 192], expected I8 [4, 512, 192]", SAME),
    "a shape of another target": (header("[4,512,192]", "[4,192,512]"), f"rank-000: {L1}: I8 [4, 192, 512], expected I8 [4, 512, 192]", SAME),
    "slots of another number": (root(num_physical=10), None, SAME),
    "layers of another name": (root(layers=["layers.0", "layers.1"]), "rank-000: layers.1.experts.l1_weight: missing", SAME),
    "a size that differs": (manifest(lambda m: m["ranks"][0]["files"][0].update(size=1257473)), f"rank-000: {FILE}: truncated: 1257472 bytes, the manifest says 1257473", ALONE),
    "a file that the manifest lacks": (manifest(lambda m: m["ranks"][0].update(files=[])), f"rank-000: {FILE}: the manifest does not name it", ALONE),
    "a file that the index lacks": (manifest(lambda m: m["ranks"][0]["files"].append({"name": "a", "size": 1, "tensors": []})), "rank-000: a: the index does not name it, the manifest does", ALONE),
    "a tensor that the manifest lacks": (manifest(lambda m: m["ranks"][0]["files"][0]["tensors"].pop()), f"rank-000: {FILE}: 8 tensors, the manifest lists 7", ALONE),
    "tensors in another order": (manifest(lambda m: m["ranks"][0]["files"][0]["tensors"].reverse()), f"rank-000: {FILE}: tensor 0 is {L1}, the manifest lists mtp.0.experts.l2_weight_sf", ALONE),
}  # fmt: skip

# Messages that hold a digest, or that another check comes before: how they begin.
BEGINNINGS = {
    "a member twice": "moepack.json: changed: its digest is ",
    "a number of 5000 digits": "moepack.json: changed: its digest is ",
    "another index": "rank-000: model.safetensors.index.json: changed: its xxh3 is ",
    "a shard cut off": f'rank-000: {FILE}: tensor "',
    "slots of another number": "placement.json: 8 physical experts, the manifest says 10",
}


class Malformed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.sound = repack(fixture("v4-fp4"), "megamoe-w4a8", "--redundant", "3")

    def copy(self):
        pack = os.path.join(tempfile.mkdtemp(dir=WORK), "pack")
        shutil.copytree(self.sound, pack)
        return pack

    def test_a_sound_pack_is_none_of_them(self):
        pack = self.copy()
        edit_manifest(pack, lambda m: None)
        self.assertEqual(read(at(pack, "moepack.json")), seal(json.loads(read(at(pack, "moepack.json")))).encode())
        loaders.Pack(pack).rank(0)
        self.assertEqual(load_rank(pack, 0)[0], 0)

    def test_every_case_has_its_message(self):
        for name, (mutate, message, same) in CASES.items():
            with self.subTest(name):
                pack = self.copy()
                mutate(pack)
                with self.assertRaises(loaders.PackError) as caught:
                    loaders.Pack(pack).rank(0)
                found = str(caught.exception).replace(pack, "PACK")
                self.assertNotIn("\n", found)
                if message is None:
                    self.assertEqual(found[: len(BEGINNINGS[name])], BEGINNINGS[name])
                else:
                    self.assertEqual(found, message)
                if same:
                    status, _, said = load_rank(pack, 0)
                    self.assertEqual((status, said.replace(pack, "PACK")), (1, found))
                shutil.rmtree(pack)

    def test_names_what_is_no_directory(self):
        with self.assertRaises(loaders.PackError) as caught:
            loaders.Pack("nowhere")
        self.assertEqual(str(caught.exception), '"nowhere" is not a directory')


if __name__ == "__main__":
    unittest.main()
