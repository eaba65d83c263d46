# SPDX-License-Identifier: Apache-2.0
"""The reader against checkpoints, golden files, moepack itself and the C library."""

import json
import os
import random
import struct
import subprocess
import sys
import unittest

from support import (
    ROOT, checkpoint, edit_manifest, fixture, load_rank, moepack, parse_safetensors, read, repack,
    shard, synth, write,
)  # fmt: skip

import moepack as loaders
from moepack import xxh3

FUSED = ["--redundant", "3", "--shared", "fused", "--quantize", "mxfp4", "--requantize-shared"]

# Options of repack: shared experts in all three ways, optional tensors, FRACTAL_NZ.
TARGETS = {
    "megamoe-w4a8": ["--shared", "separate", "--requantize-shared"],
    "megamoe-w4a4": ["--shared", "fused", "--requantize-shared"],
    "megamoe-w4a4-g8": [],
    "megamoe-nvfp4": ["--redundant", "5"],
    "megamoe-bf16": ["--shared", "separate", "--requantize-shared"],
    "megamoe-sm90-fp8": ["--shared", "fused"],
    "fuseep-1": ["--nz"],
    "fuseep-2": ["--shared", "separate", "--requantize-shared"],
    "deepep-bf16": [],
}


class Digests(unittest.TestCase):
    def test_equals_xxh128sum_at_every_length(self):
        random.seed(20261127)
        data = bytes(random.randrange(256) for _ in range(5003))
        lengths = [*range(0, 530), *range(1000, 1100), 2047, 2048, 2049, 3072, 5003]
        self.assertIsNotNone(xxh3.fast(), "libxxhash, which moepack links, is not found")
        for n in lengths:
            self.assertEqual(xxh3.scalar(data[:n]), xxh3.fast()(data[:n]), n)
        for n in (0, 3, 8, 13, 100, 240, 241, 5003):
            out = subprocess.run(["xxh128sum"], input=data[:n], capture_output=True, check=True)
            self.assertEqual(xxh3.scalar(data[:n]), out.stdout.split()[0].decode(), n)


class EveryTarget(unittest.TestCase):
    """What is read is what the C example reads, and what inspect says is there."""

    def test_reads_what_the_c_library_reads(self):
        source = synth(
            "--family", "deepseek_v3", "--hidden", "384", "--intermediate", "256", "--experts", "5",
            "--shared", "1", "--top-k", "2", "--layers", "2", "--mtp", "0",
        )  # fmt: skip
        listed = {t["name"]: t["source_schemes"][0] for t in json.loads(moepack("targets", "--json"))}
        self.assertEqual(set(listed), set(TARGETS))
        for target, options in TARGETS.items():
            scheme = ["--quantize", listed[target]]
            self.check(repack(source, target, *scheme, "--redundant", "1", *options))

    def test_reads_optional_tensors(self):
        source = synth(
            "--family", "qwen3_moe", "--format", "nvfp4", "--style", "modelopt", "--hidden", "384",
            "--intermediate", "256", "--experts", "5", "--top-k", "2", "--layers", "2", "--mtp", "0",
        )  # fmt: skip
        pack = repack(source, "megamoe-nvfp4", "--redundant", "1")
        self.check(pack)
        names = set(loaders.Pack(pack).rank(0)[0])
        self.assertTrue({"l1_input_scale", "l2_input_scale", "l2_act_scale"} <= names, names)

    def test_reads_alphas_of_deepgemm(self):
        source = synth(
            "--family", "qwen3_moe", "--format", "nvfp4", "--style", "modelopt", "--hidden", "384",
            "--intermediate", "256", "--experts", "5", "--top-k", "2", "--layers", "2", "--mtp", "0",
        )  # fmt: skip
        pack = repack(source, "megamoe-nvfp4", "--redundant", "1", "--alphas", "fp4xfp4")
        self.check(pack)
        opened = loaders.Pack(pack)
        self.assertEqual(opened.alphas, "fp4xfp4")
        with self.assertRaisesRegex(loaders.PackError, 'alphas is "fp4xfp4", expected "sgl"'):
            opened.expect(alphas="sgl")

    def check(self, pack):
        example = os.path.join(ROOT, "tests/examples/load_rank.py")
        opened = loaders.Pack(pack, verify="digest")
        target = opened.target
        said = json.loads(moepack("inspect", "--json", pack))
        opened.expect(
            target=said["target"], ep_size=said["ep_size"], num_physical=said["num_physical"],
            hidden_size=said["hidden_size"], num_experts=said["num_experts"],
            moe_intermediate_size=said["moe_intermediate_size"], shared=said["shared"],
            layers=[layer["name"] for layer in said["layers"]], family=said["family"],
        )  # fmt: skip
        manifest = json.loads(read(os.path.join(pack, "moepack.json")))
        count = size = 0
        for number in opened.ranks:
            status, text, message = load_rank(pack, number)
            self.assertEqual((status, message), (0, ""))
            done = subprocess.run(
                [sys.executable, example, pack, str(number)],
                env={**os.environ, "PYTHONPATH": os.path.join(ROOT, "lib/loaders")},
                capture_output=True,
                text=True,
            )
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertEqual(done.stdout, text, target)
            (listed_rank,) = [r for r in manifest["ranks"] if r["rank"] == number]
            self.assertEqual(
                [(line.split()[0], line.split()[-1]) for line in text.splitlines()],
                [(t["name"], t["xxh3"]) for f in listed_rank["files"] for t in f["tensors"]],
            )
            rank = opened.rank(number)
            tensors = [t for layer in rank.layers for t in rank[layer].values()]
            count += len(tensors)
            size += sum(len(t.data) for t in tensors)
        expected = sum(layer["bytes"] for layer in said["layers"])
        self.assertEqual((count, size), (said["num_tensors"], expected), target)


class Values(unittest.TestCase):
    """What is read is what the checkpoint holds, by code that is neither's."""

    def test_equals_the_golden_ranks(self):
        pack = repack(
            fixture("v4-fp4"), "megamoe-w4a8", "--ep", "2",
            "--placement", os.path.join(fixture("v4-fp4"), "placement.json"),
        )  # fmt: skip
        opened = loaders.Pack(pack, verify="digest")
        for number in (0, 1):
            path = os.path.join(fixture("v4-fp4"), f"expected-megamoe-w4a8-rank{number}.st")
            golden = parse_safetensors(path)
            rank = opened.rank(number)
            seen = set()
            for layer in rank.layers:
                for name, tensor in rank[layer].items():
                    full = f"{layer}.experts.{name}"
                    dtype, shape, data = golden[full]
                    self.assertEqual((tensor.dtype, list(tensor.shape)), (dtype, shape))
                    self.assertEqual(bytes(tensor.data), data, full)
                    seen.add(full)
            self.assertEqual(seen, set(golden))

    def test_finds_experts_in_their_slots(self):
        pack = loaders.Pack(repack(fixture("mixtral-bf16"), "deepep-bf16", "--redundant", "3"))
        source = checkpoint(fixture("mixtral-bf16"))
        ranks = {number: pack.rank(number) for number in pack.ranks}
        copies = 0
        for layer in pack.layers:
            for expert in range(pack.num_experts):
                weights = {
                    w: source[f"{layer}.block_sparse_moe.experts.{expert}.{w}.weight"][2]
                    for w in ("w1", "w2", "w3")
                }
                for number, slot in pack.slot_of(layer, expert):
                    copies += 1
                    for name, data in (
                        ("w13_weight", weights["w1"] + weights["w3"]), ("w2_weight", weights["w2"]),
                    ):  # fmt: skip
                        tensor = ranks[number][layer][name]
                        n = len(tensor.data) // tensor.shape[0]
                        self.assertEqual(bytes(tensor.data[slot * n : (slot + 1) * n]), data)
        self.assertEqual(copies, len(pack.layers) * pack.num_physical)

    def test_undoes_the_order_of_scales(self):
        pack = loaders.Pack(repack(fixture("v4-fp4"), "megamoe-w4a8", "--redundant", "3"))
        source = checkpoint(fixture("v4-fp4"))
        layer, expert = pack.layers[1], 3
        number, slot = pack.slot_of(layer, expert)[0]
        scales = pack.rank(number).interleaved(layer)
        self.assertEqual(list(scales), ["l1_weight_sf", "l2_weight_sf"])

        def word(matrix, row, w):
            _, (_, columns), data = source[f"{layer}.ffn.experts.{expert}.{matrix}.scale"]
            part = data[row * columns + 4 * w : row * columns + min(4 * w + 4, columns)]
            return int.from_bytes(part, "little", signed=False)

        for name, rows in (("l1_weight_sf", 2 * 256), ("l2_weight_sf", 384)):
            tensor = scales[name]
            _, words, mn = tensor.shape
            found = struct.unpack(f"<{words * mn}I", tensor.data[slot * words * mn * 4 :][: words * mn * 4])
            for w in range(words):
                for m in range(rows):
                    if name == "l2_weight_sf":
                        expected = word("w2", m, w)
                    else:  # eight rows of gate, eight of up
                        run, i = divmod(m, 16)
                        expected = word("w1" if i < 8 else "w3", run * 8 + i % 8, w)
                    self.assertEqual(found[w * mn + m], expected, (name, w, m))

    def test_tells_shapes_as_engines_see_them(self):
        rank = loaders.Pack(repack(fixture("v4-fp4"), "megamoe-w4a8", "--redundant", "3")).rank(0)
        scales = rank["layers.0"]["l1_weight_sf"]
        self.assertEqual((scales.shape, scales.strides), ((4, 3, 512), (1536, 512, 1)))
        seen = scales.as_engine()
        self.assertEqual((seen.shape, seen.strides), ((4, 512, 3), (1536, 1, 512)))
        self.assertIs(seen.data, scales.data)
        self.assertTrue(scales.data.readonly)


class Questions(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.path = repack(fixture("v4-fp4"), "megamoe-w4a8", "--redundant", "3")
        cls.pack = loaders.Pack(cls.path)

    def refuses(self, message, function, *args, **kwargs):
        with self.assertRaises(loaders.PackError) as caught:
            function(*args, **kwargs)
        self.assertEqual(str(caught.exception), message)

    def test_finds_layers_by_prefix_and_number(self):
        self.assertEqual(self.pack.layer("layers.0"), 0)
        self.assertEqual(self.pack.layer(0), 0)
        self.assertEqual(self.pack.layer("mtp.0"), 1)
        self.refuses(
            f'{self.path}: layer "1" is not in this pack: layers.0, mtp.0', self.pack.layer, 1
        )

    def test_tells_placements(self):
        said = json.loads(read(os.path.join(self.path, "placement.json")))
        for i, layer in enumerate(self.pack.layers):
            row = said["physical_to_logical_map"][i]
            self.assertEqual(self.pack.placement(layer), row)
            for expert in range(5):
                places = [divmod(p, 4) for p in range(8) if row[p] == expert]
                self.assertEqual(self.pack.slot_of(layer, expert), places)
        self.refuses("expert 5, but there are 5", self.pack.slot_of, "mtp.0", 5)

    def test_counts_fused_shared_experts_behind_routed_ones(self):
        pack = loaders.Pack(repack(fixture("v4-fp4"), "megamoe-w4a8", *FUSED))
        per_rank = pack.num_physical // 2
        self.assertEqual(
            pack.slot_of(pack.layers[0], pack.num_experts), [(0, per_rank), (1, per_rank)]
        )

    def test_refuses_what_differs(self):
        for key, wanted, message in (
            ("target", "megamoe-w4a4", 'target is "megamoe-w4a8", expected "megamoe-w4a4"'),
            ("ep_size", 4, "ep_size is 2, expected 4"),
            ("num_physical", 5, "num_physical is 8, expected 5"),
            ("hidden_size", 512, "hidden_size is 384, expected 512"),
            ("moe_intermediate_size", 384, "moe_intermediate_size is 256, expected 384"),
            ("layers", ["layers.0"], "layers is [layers.0, mtp.0], expected [layers.0]"),
        ):
            self.refuses(f"{self.path}: {message}", self.pack.expect, **{key: wanted})
        self.assertIs(self.pack.expect(target="megamoe-w4a8", ep_size=2), self.pack)
        with self.assertRaises(TypeError):
            self.pack.expect(hidden=384)

    def test_refuses_ranks_that_are_not_there(self):
        self.refuses(
            f"{self.path}: rank 2 is not in this pack, which has [0, 1] of 2", self.pack.rank, 2
        )
        part = repack(fixture("v4-fp4"), "megamoe-w4a8", "--redundant", "3", "--ranks", "1")
        self.refuses(
            f"{part}: rank 0 is not in this pack, which has [1] of 2", loaders.Pack(part).rank, 0
        )

    def test_names_a_tensor_that_is_not_there(self):
        with self.assertRaisesRegex(KeyError, "layers.0 has no l3_weight, only l1_weight, "):
            self.pack.rank(0)["layers.0"]["l3_weight"]

    def test_has_no_scales_to_order_in_other_targets(self):
        rank = loaders.Pack(repack(fixture("mixtral-bf16"), "deepep-bf16", "--ep", "1")).rank(0)
        self.refuses("deepep-bf16 has no scales in UTCCP order", rank.interleaved, 0)

    def test_needs_a_digest_to_verify(self):
        fast, xxh3.fast = xxh3.fast, lambda: None
        try:
            loaders.Pack(self.path).rank(0)["layers.0"]["l1_weight"]
            self.refuses(
                'verify="digest" needs the xxhash module or libxxhash.so.0: pip install xxhash, '
                "or check the pack with moepack verify",
                loaders.Pack, self.path, verify="digest",
            )  # fmt: skip
        finally:
            xxh3.fast = fast
        self.refuses(
            "verify is 'all', expected None or \"digest\"", loaders.Pack, self.path, verify="all"
        )

    def test_finds_a_changed_byte_where_asked(self):
        path = repack(fixture("v4-fp4"), "megamoe-w4a8", "--redundant", "3")
        said = json.loads(read(os.path.join(path, "moepack.json")))
        data = bytearray(read(shard(path)))
        data[-1] ^= 1  # of the last tensor
        write(shard(path), data)
        loaders.Pack(path).rank(0)["mtp.0"]["l2_weight_sf"]
        rank = loaders.Pack(path, verify="digest").rank(0)
        rank["layers.0"]["l2_weight_sf"]
        listed = said["ranks"][0]["files"][0]["tensors"][-1]
        self.refuses(
            f"rank 0, {listed['name']}: changed: its xxh3 is "
            f"{xxh3.digest(bytes(loaders.Pack(path).rank(0)['mtp.0']['l2_weight_sf'].data))}, "
            f"the manifest says {listed['xxh3']}",
            lambda: rank["mtp.0"]["l2_weight_sf"],
        )

    def test_never_writes_to_a_pack(self):
        before = read(shard(self.path))
        rank = loaders.Pack(self.path).rank(0)
        rank._bytes("layers.0.experts.l1_weight")[0] ^= 255  # as a careless engine might
        self.assertEqual(read(shard(self.path)), before)

    def test_reads_config_as_python_does(self):
        self.assertEqual(self.pack.config()["hidden_size"], 384)
        path = repack(fixture("v4-fp4"), "megamoe-w4a8", "--redundant", "3")
        text = b'\xef\xbb\xbf{"x": NaN, "num_hidden_layers": 1}'
        write(os.path.join(path, "config.json"), text)
        said = self.pack._manifest.config_xxh3
        self.refuses(
            f"config.json: changed: its xxh3 is {xxh3.digest(text)}, the manifest says {said}",
            loaders.Pack(path).config,
        )
        edit_manifest(path, lambda m: m.update(config_xxh3=xxh3.digest(text)))
        self.assertEqual(loaders.Pack(path).config()["num_hidden_layers"], 1)
        edit_manifest(path, lambda m: m.update(config_xxh3=None))
        self.assertIsNone(loaders.Pack(path).config())


class Compressed(unittest.TestCase):
    """Shards that zstd has compressed, read by a stub of its module that calls the zstd program."""

    def setUp(self):
        self.plain = repack(fixture("v4-fp4"), "megamoe-w4a8", "--redundant", "3")
        self.path = repack(fixture("v4-fp4"), "megamoe-w4a8", "--redundant", "3")
        for number in (0, 1):
            file = shard(self.path, number)
            subprocess.run(["zstd", "-q", "--rm", file], check=True)
            index = os.path.join(os.path.dirname(file), "model.safetensors.index.json")
            text = read(index).replace(b".safetensors\"", b".safetensors.zst\"")
            write(index, text)
            size = os.path.getsize(file + ".zst")

            def change(m, number=number, text=text, size=size):
                m["ranks"][number]["index_xxh3"] = xxh3.digest(text)
                m["ranks"][number]["files"][0]["name"] += ".zst"
                m["ranks"][number]["files"][0]["size"] = size

            edit_manifest(self.path, change)

    def test_refuses_them_by_name_without_the_module(self):
        sys.modules["zstandard"] = None
        self.addCleanup(sys.modules.pop, "zstandard", None)
        with self.assertRaises(loaders.PackError) as caught:
            loaders.Pack(self.path).rank(0)
        self.assertEqual(
            str(caught.exception),
            "rank-000: model-00001-of-00001.safetensors.zst: compressed, and the zstandard module "
            "is not here: pip install zstandard",
        )

    def test_reads_the_same_bytes(self):
        sys.path.append(os.path.join(ROOT, "tests/loaders/stubs"))
        self.addCleanup(sys.path.pop)
        import zstandard_by_program

        sys.modules["zstandard"] = zstandard_by_program
        self.addCleanup(sys.modules.pop, "zstandard", None)
        plain, packed = loaders.Pack(self.plain).rank(1), loaders.Pack(self.path, "digest").rank(1)
        for layer in plain.layers:
            for name, tensor in plain[layer].items():
                self.assertEqual(packed[layer][name], tensor)
        os.truncate(shard(self.path, 1) + ".zst", 5000)
        with self.assertRaisesRegex(loaders.PackError, r"^rank-001: model-.*\.zst: not what zstd"):
            loaders.Pack(self.path).rank(1)


if __name__ == "__main__":
    unittest.main()
