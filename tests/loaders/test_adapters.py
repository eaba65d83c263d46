# SPDX-License-Identifier: Apache-2.0
"""Adapters in front of stubs with the engines' module paths, signatures and course of events.

What they leave behind is held against golden ranks and the checkpoint; an engine's own transform
has never been called then.
"""

import copy
import importlib
import json
import os
import re
import sys
import unittest
from types import SimpleNamespace
from unittest import mock

from support import ROOT, checkpoint, fixture, parse_safetensors, read, repack, synth

STUBS = os.path.join(ROOT, "tests/loaders/stubs")
sys.path.insert(0, STUBS)
import torch  # noqa: E402

import moepack as loaders  # noqa: E402
from moepack import engines, flashinfer, transformers, trtllm, xxh3  # noqa: E402

GOLDEN = os.path.join(fixture("v4-fp4"), "placement.json")


def fresh(*names):
    """Imports modules of a stub engine anew, unhooked."""
    for loaded in list(sys.modules):
        if loaded.split(".")[0] in ("sglang", "vllm") or loaded in ("moepack.sglang", "moepack.vllm"):
            del sys.modules[loaded]
    return [importlib.import_module(name) for name in names]


def stored(tensor):
    """The bytes of a tensor's storage, of which scales are a transposed view."""
    return bytes(tensor.storage)


class AdapterTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.path = repack(fixture("v4-fp4"), "megamoe-w4a8", "--ep", "2", "--placement", GOLDEN)
        cls.in_order = repack(fixture("v4-fp4"), "megamoe-w4a8", "--redundant", "1")
        cls.rows = json.loads(read(GOLDEN))["physical_to_logical_map"]
        cls.golden = [
            parse_safetensors(os.path.join(fixture("v4-fp4"), f"expected-megamoe-w4a8-rank{n}.st"))
            for n in (0, 1)
        ]
        cls.names = sorted(checkpoint(fixture("v4-fp4")))

    def refuses(self, message, function, *args):
        with self.assertRaises(loaders.PackError) as caught:
            function(*args)
        found = str(caught.exception).replace(self.path, "PACK").replace(self.in_order, "PACK")
        if isinstance(message, str):
            self.assertEqual(found, message)
        else:
            self.assertRegex(found, message)

    def check_pair(self, pair, rank, layer, side, device, pack_golden=None):
        """Weight and scales as the golden ranks have them, shapes and strides included."""
        weight, scales = pair
        golden = pack_golden or self.golden[rank]
        dtype, shape, data = golden[f"{layer}.experts.{side}_weight"]
        self.assertEqual((weight.dtype, list(weight.shape)), (torch.int8, shape))
        self.assertTrue(weight.is_contiguous())
        self.assertEqual(stored(weight), data)
        dtype, (groups, words, mn), data = golden[f"{layer}.experts.{side}_weight_sf"]
        self.assertEqual((scales.dtype, scales.shape), (torch.int32, (groups, mn, words)))
        self.assertEqual(scales.stride(), (words * mn, 1, mn))
        self.assertEqual(stored(scales), data)
        self.assertEqual((weight.device, scales.device), (device, device))


# ----------------------------------------------------------------------------
# SGLang


class Experts:
    """FusedMoE as far as MegaMoE looks at it, with parameters as created for FP4."""

    def __init__(self, layer_id, rank, device="cuda", sizes=(384, 256), slots=3, fp8=False):
        h, i = sizes
        self.layer_id = layer_id
        self.moe_ep_rank, self.moe_ep_size = rank, 2
        self.num_experts, self.num_fused_shared_experts = 2 * slots, 0
        self.hidden_size, self.intermediate_size_per_partition = h, i
        self._mega_moe_weights_built = False

        def parameter(dtype, *shape):
            return torch.nn.Parameter(torch.empty((slots, *shape), dtype, device), False)

        if fp8:
            self.w13_weight = parameter(torch.float8_e4m3fn, 2 * i, h)
            self.w2_weight = parameter(torch.float8_e4m3fn, h, i)
            self.w13_weight_scale_inv = parameter(torch.float32, 2 * i // 128, h // 128)
            self.w2_weight_scale_inv = parameter(torch.float32, h // 128, i // 128)
        else:
            self.w13_weight = parameter(torch.int8, 2 * i, h // 2)
            self.w2_weight = parameter(torch.int8, h, i // 2)
            self.w13_weight_scale_inv = parameter(torch.float32, 2 * i, h // 32)
            self.w2_weight_scale_inv = parameter(torch.float32, h, i // 32)


class Model:
    def __init__(self, *experts):
        self.experts = experts
        self.loaded = []

    def load_weights(self, weights):
        self.loaded += [name for name, _ in weights]

    def named_modules(self):
        return [(f"experts.{i}", module) for i, module in enumerate(self.experts)]


class Rows(list):
    """Rows of a placement that turn into lists as tensors do."""

    def __getitem__(self, i):
        row = super().__getitem__(i)
        return SimpleNamespace(tolist=lambda: row)


class SGLang(AdapterTest):
    MEGA = "sglang.srt.layers.moe.mega_moe"
    BUILD = "build_mega_moe_experts_weights"

    def setUp(self):
        (
            self.adapter, self.hooks, self.mega, self.sm90, self.loader, self.location,
        ) = fresh(
            "moepack.sglang", "sglang.srt.plugins.hook_registry", self.MEGA, self.MEGA + "_sm90",
            "sglang.srt.model_loader.loader", "sglang.srt.eplb.expert_location",
        )  # fmt: skip
        self.location.metadata = SimpleNamespace(physical_to_logical_map_cpu=Rows(self.rows))

    def start(self, path, fails=()):
        """What SGLang does when it starts."""
        with mock.patch.dict(os.environ, {"MOEPACK_DIR": path} if path else {}):
            self.hooks.run_plugin(self.adapter.register)
        self.hooks.HookRegistry.apply_hooks(fails)

    def load(self, model, draft=False, names=None, module=MEGA, builder=BUILD):
        config = SimpleNamespace(
            tensors=[(name, None) for name in names or self.names], is_draft_model=draft
        )
        loader = self.loader.DefaultModelLoader(SimpleNamespace(draft_model_idx=None))
        return loader.load_model(config, model, module, builder)

    def exits(self, message, path):
        with self.assertRaises(SystemExit) as caught:
            self.start(path)
        self.assertRegex(str(caught.exception.code), message)

    def test_does_nothing_where_no_pack_is_named(self):
        self.start(None)
        self.assertEqual(self.hooks.HookRegistry.hooks, [])

    def test_leaves_modules_as_the_original_does(self):
        for rank in (0, 1):
            self.setUp()
            self.start(self.path)
            experts = Experts(0, rank)
            own = experts.w13_weight.data
            model = self.load(Model(experts))
            self.assertEqual((self.mega.transformed, self.hooks.HookRegistry.log), ([], []))
            self.check_pair(experts.mega_l1_weights, rank, "layers.0", "l1", "cuda")
            self.check_pair(experts.mega_l2_weights, rank, "layers.0", "l2", "cuda")
            self.assertIs(experts.w13_weight.data, own)
            self.assertIs(experts.mega_l1_weights[0], own)
            self.assertIs(experts.mega_l2_weights[0], experts.w2_weight.data)
            plain = loaders.Pack(self.path).rank(rank).interleaved("layers.0")
            for parameter, name in (
                (experts.w13_weight_scale_inv, "l1_weight_sf"),
                (experts.w2_weight_scale_inv, "l2_weight_sf"),
            ):
                seen = plain[name].as_engine()
                self.assertEqual(parameter.data.shape, seen.shape)
                self.assertEqual(parameter.data.stride(), seen.strides)
                self.assertEqual(stored(parameter.data), bytes(seen.data))
                self.assertIs(parameter.format_ue8m0, True)
            self.assertIs(experts._mega_moe_weights_built, True)
            left_out = set(self.names) - set(model.loaded)
            self.assertEqual(
                left_out, {n for n in self.names if re.match(r"(layers|mtp)\.0\.ffn\.experts\.\d", n)}
            )
            self.assertIn("layers.0.ffn.shared_experts.w1.weight", model.loaded)

    def test_reads_mtp_blocks_for_draft_models(self):
        self.start(self.in_order)
        experts = Experts(0, 1)
        self.load(Model(experts), draft=True)
        rank = loaders.Pack(self.in_order).rank(1)
        self.assertEqual(stored(experts.mega_l1_weights[0]), bytes(rank["mtp.0"]["l1_weight"].data))
        self.start(self.path)  # experts of its MTP block are not in order
        self.setUp()
        self.start(self.path)
        self.refuses(
            "PACK: mtp.0: physical expert 2 is expert 1, expected 2: SGLang has no placement for MTP "
            "blocks: pack without one",
            self.load, Model(Experts(0, 1)), True,
        )  # fmt: skip

    def test_hands_over_fp8_for_hopper(self):
        source = synth(
            "--family", "deepseek_v3", "--hidden", "384", "--intermediate", "256", "--experts", "6",
            "--top-k", "2", "--shared", "1", "--layers", "2", "--mtp", "0",
        )  # fmt: skip
        path = repack(source, "megamoe-sm90-fp8", "--redundant", "2")
        self.location.metadata = SimpleNamespace(
            physical_to_logical_map_cpu=Rows([[0, 1, 2, 3, 4, 5, 0, 1]] * 2)
        )
        self.start(path)
        experts = Experts(1, 1, slots=4, fp8=True)
        self.load(
            Model(experts), names=["model.layers.1.mlp.experts.3.up_proj.weight"],
            module=self.MEGA + "_sm90", builder="build_sm90_mega_moe_experts_weights",
        )  # fmt: skip
        self.assertEqual((self.sm90.transformed, self.hooks.HookRegistry.log), ([], []))
        found = loaders.Pack(path).rank(1)["model.layers.1"]
        for side, pair, names in (
            ("l1", experts.mega_l1_weights, ("w13_weight", "w13_weight_scale_inv")),
            ("l2", experts.mega_l2_weights, ("w2_weight", "w2_weight_scale_inv")),
        ):
            for tensor, name, key in zip(pair, names, (f"{side}_weight", f"{side}_weight_sf")):
                self.assertEqual(tensor.shape, found[key].shape)
                self.assertEqual(stored(tensor), bytes(found[key].data))
                self.assertIs(tensor, getattr(experts, name).data)
        self.assertIs(experts._mega_moe_sm90_fp8_weights, True)
        self.assertIs(experts._mega_moe_weights_built, True)

    def test_hands_over_the_layout_of_fp4_activations(self):
        path = repack(fixture("v4-fp4"), "megamoe-w4a4", "--redundant", "1")
        self.location.metadata = None  # and experts in order
        self.mega.mma_type = "mxf4xmxf4"
        self.start(path)
        experts = Experts(0, 1)
        self.load(Model(experts))
        found = {
            f"layers.0.experts.{name}": (t.dtype, list(t.shape), bytes(t.data))
            for name, t in loaders.Pack(path).rank(1)["layers.0"].items()
        }
        self.check_pair(experts.mega_l1_weights, 1, "layers.0", "l1", "cuda", found)
        self.check_pair(experts.mega_l2_weights, 1, "layers.0", "l2", "cuda", found)
        self.assertNotEqual(found["layers.0.experts.l1_weight"], self.golden[1]["layers.0.experts.l1_weight"])

    def test_ends_the_process_where_a_function_is_not_there(self):
        del self.mega.build_mega_moe_experts_weights
        self.exits(
            r"^moepack: sglang\.srt\.layers\.moe\.mega_moe\.build_mega_moe_experts_weights is not "
            r"there \(module .* has no attribute .*\): this adapter was written against "
            r"sgl-project/sglang at mega_moe\.py 04fa8c01, ",
            self.path,
        )

    def test_ends_the_process_where_a_signature_differs(self):
        self.loader.DefaultModelLoader._get_all_weights = lambda self, config, model, device: None
        self.exits(
            r"^moepack: sglang\.srt\.model_loader\.loader\.DefaultModelLoader\._get_all_weights "
            r"takes \(self, config, model, device\), expected \(self, model_config, model\): this",
            self.path,
        )

    def test_ends_the_process_for_a_pack_that_it_cannot_hand_over(self):
        self.exits(r'^moepack: "nowhere" is not a directory$', "nowhere")
        path = repack(fixture("mixtral-bf16"), "deepep-bf16", "--ep", "1")
        self.exits(
            r"deepep-bf16, only megamoe-w4a8, megamoe-w4a4, megamoe-sm90-fp8$", path
        )

    def test_notices_a_hook_that_was_not_applied(self):
        build = f"{self.MEGA}.{self.BUILD}"
        self.start(self.path, fails=[build])
        self.assertEqual(len(self.hooks.HookRegistry.log), 1)
        self.refuses(
            re.compile(rf"^{re.escape(build)} was not hooked, see SGLang's log: "),
            self.load, Model(Experts(0, 0)),
        )  # fmt: skip
        self.setUp()
        weights = "sglang.srt.model_loader.loader.DefaultModelLoader._get_all_weights"
        self.start(self.path, fails=[weights])
        self.refuses(
            re.compile(rf"^{re.escape(weights)} was not hooked, see SGLang's log: "),
            self.load, Model(Experts(0, 0)),
        )  # fmt: skip

    def test_refuses_an_engine_that_runs_otherwise(self):
        def changed(**members):
            experts = Experts(0, 0)
            vars(experts).update(members)
            return Model(experts)

        self.start(self.path)
        for model, message in (
            (changed(moe_ep_size=4), "PACK: ep_size is 2, expected 4"),
            (changed(num_experts=8), "PACK: num_physical is 6, expected 8"),
            (changed(hidden_size=512), "PACK: hidden_size is 384, expected 512"),
            (changed(intermediate_size_per_partition=128), "PACK: moe_intermediate_size is 256, expected 128"),
            (changed(layer_id=7), "PACK: MTP block 6 is not in this pack: layers.0, mtp.0"),
            (changed(num_fused_shared_experts=1), "PACK: 0 shared experts are fused, the engine fuses 1"),
            (changed(moe_ep_rank=2), "PACK: rank 2 is not in this pack, which has [0, 1] of 2"),
        ):  # fmt: skip
            self.refuses(message, self.load, model)
        experts = Experts(0, 0)
        del experts.moe_ep_size
        self.refuses(re.compile("^Experts has no moe_ep_size: this adapter"), self.load, Model(experts))

    def test_refuses_another_kind_of_kernel(self):
        self.start(self.path)
        self.mega.mma_type = "mxf4xmxf4"
        self.refuses(
            "PACK: megamoe-w4a8 is for fp8xfp4, the engine runs mxf4xmxf4",
            self.load, Model(Experts(0, 0)),
        )  # fmt: skip

    def test_refuses_the_layout_of_amd(self):
        self.start(self.path)
        self.mega._use_amd_flydsl_mega_moe = lambda: True
        self.refuses(
            "PACK: megamoe-w4a8 is not what MegaMoE on AMD takes", self.load, Model(Experts(0, 0))
        )

    def test_refuses_another_placement(self):
        self.start(self.path)
        rows = copy.deepcopy(self.rows)
        rows[0][5] = (rows[0][5] + 1) % 5
        self.location.metadata = SimpleNamespace(physical_to_logical_map_cpu=Rows(rows))
        self.refuses(
            f"PACK: layers.0: physical expert 5 is expert {self.rows[0][5]}, in the engine's "
            f"placement {rows[0][5]}: give it --init-expert-location",
            self.load, Model(Experts(0, 0)),
        )  # fmt: skip
        self.location.metadata = None
        self.refuses(
            re.compile(r"^PACK: layers\.0: physical expert \d is expert \d, expected \d: the engine"),
            self.load, Model(Experts(0, 0)),
        )  # fmt: skip

    def test_loads_anew_as_a_custom_weight_loader(self):
        experts = Experts(0, 1)
        model = Model(experts)
        tensors = [(name, None) for name in self.names]
        with mock.patch.dict(os.environ, {"MOEPACK_DIR": self.path}):
            self.adapter.load(model, tensors)
            self.check_pair(experts.mega_l1_weights, 1, "layers.0", "l1", "cuda")
            self.assertNotIn("layers.0.ffn.experts.0.w1.weight", model.loaded)
            self.refuses(re.compile("^Model has no MegaMoE experts: "), self.adapter.load, Model(), [])
        self.adapter._loading = None
        self.refuses("MOEPACK_DIR is not set", self.adapter.load, model, [])

    def test_digests_where_asked(self):
        with mock.patch.dict(os.environ, {"MOEPACK_VERIFY": "digest"}):
            self.start(self.path)
        file = os.path.join(self.path, "rank-000", "model-00001-of-00001.safetensors")
        with open(file, "r+b") as shard:
            shard.seek(-1, os.SEEK_END)  # in mtp.0
            last = shard.read(1)
            shard.seek(4096)  # in layers.0's l1_weight
            first = shard.read(1)
            shard.seek(4096)
            shard.write(bytes([first[0] ^ 1]))
            shard.flush()
            self.assertNotEqual(last, b"")
            try:
                self.refuses(
                    re.compile(r"^rank 0, layers\.0\.experts\.l1_weight: changed: its xxh3 is "),
                    self.load, Model(Experts(0, 0)),
                )  # fmt: skip
            finally:
                shard.seek(4096)
                shard.write(first)


class LeftOut(unittest.TestCase):
    def test_leaves_out_experts_of_the_packs_layers_alone(self):
        pack = SimpleNamespace(layers=("model.layers.1", "mtp.0"), shared="none")
        out = engines.left_out(pack)
        for name in (
            "model.layers.1.mlp.experts.0.gate_proj.weight",
            "model.layers.1.mlp.experts.17.down_proj.weight_scale_inv",
            "model.layers.1.block_sparse_moe.experts.3.w2.weight",
            "model.layers.1.mlp.experts.gate_up_proj",
            "model.layers.1.mlp.experts.down_proj_blocks",
            "mtp.0.ffn.experts.2.w3.scale",
        ):
            self.assertTrue(out(name), name)
        for name in (
            "model.layers.1.mlp.gate.weight",
            "model.layers.1.mlp.experts.e_score_correction_bias",
            "model.layers.1.mlp.shared_experts.up_proj.weight",
            "model.layers.11.mlp.experts.0.gate_proj.weight",
            "model.layers.2.mlp.experts.0.gate_proj.weight",
            "model.embed_tokens.weight",
        ):
            self.assertFalse(out(name), name)
        pack.shared = "fused"
        self.assertTrue(engines.left_out(pack)("model.layers.1.mlp.shared_experts.up_proj.weight"))
        self.assertTrue(engines.left_out(pack)("model.layers.1.mlp.shared_expert.up_proj.weight"))


# ----------------------------------------------------------------------------
# vLLM


class DeepseekV4MegaMoEExperts:
    """As vLLM at 0101ca23; finalize_weights counts where it would transform."""

    def __init__(self, layer=0, rank=0, prefix=None):
        self.prefix = prefix or f"model.layers.{layer}.ffn.experts"
        self.num_experts, self.num_local_experts, self.num_logical_experts = 6, 3, 5
        self.experts_start_idx = 3 * rank
        self.hidden_size, self.intermediate_size = 384, 256
        for name in ("w13_weight", "w13_weight_scale", "w2_weight", "w2_weight_scale"):
            setattr(self, name, torch.nn.Parameter(torch.empty((1,), torch.uint8, "cuda:1"), False))
        self._transformed_l1_weights = self._transformed_l2_weights = None
        self.transforms = self.checks = 0

    def _check_runtime_supported(self):
        self.checks += 1

    def finalize_weights(self):
        if self._transformed_l1_weights is None:
            self.transforms += 1


class VllmModel(Model):
    def load_weights(self, weights):
        super().load_weights(weights)
        for experts in self.experts:
            experts.finalize_weights()


class Vllm(AdapterTest):
    def setUp(self):
        self.adapter, self.loading = fresh("moepack.vllm", "vllm.model_executor.model_loader")
        self.adapter.register()

    def load(self, model, **extra):
        config = SimpleNamespace(
            load_format="moepack",
            model_loader_extra_config={"pack": self.in_order, "num_threads": 2, **extra},
        )
        loader = self.loading.get_model_loader(config)
        self.assertEqual(config.load_format, "moepack")  # the caller's is left alone
        loader.load_weights(model, SimpleNamespace(tensors=[(name, None) for name in self.names]))
        return model

    def test_hands_over_before_the_model_finalizes(self):
        for rank in (0, 1):
            experts = DeepseekV4MegaMoEExperts(rank=rank)
            model = self.load(VllmModel(experts))
            self.assertEqual((experts.transforms, experts.checks), (0, 1))
            found = {
                f"layers.0.experts.{name}": (t.dtype, list(t.shape), bytes(t.data))
                for name, t in loaders.Pack(self.in_order).rank(rank)["layers.0"].items()
            }
            for side in ("l1", "l2"):
                pair = getattr(experts, f"_transformed_{side}_weights")
                self.check_pair(pair, rank, "layers.0", side, "cuda:1", found)
            self.assertIsNone(experts.w13_weight)
            self.assertIsNone(experts.w2_weight_scale)
            left_out = set(self.names) - set(model.loaded)
            self.assertEqual(left_out, {n for n in self.names if ".ffn.experts." in n})

    def test_counts_mtp_blocks_behind_the_decoders(self):
        experts = DeepseekV4MegaMoEExperts(prefix="model.layers.1.mtp_block.ffn.experts")
        self.load(VllmModel(experts))
        rank = loaders.Pack(self.in_order).rank(0)
        self.assertEqual(
            stored(experts._transformed_l2_weights[0]), bytes(rank["mtp.0"]["l2_weight"].data)
        )

    def test_refuses_what_does_not_fit(self):
        def changed(**members):
            experts = DeepseekV4MegaMoEExperts()
            vars(experts).update(members)
            return VllmModel(experts)

        for model, message in (
            (changed(num_experts=12), "PACK: ep_size is 2, expected 4"),
            (changed(num_logical_experts=6), "PACK: num_experts is 5, expected 6"),
            (changed(hidden_size=512), "PACK: hidden_size is 384, expected 512"),
            (changed(prefix="model.layers.9.ffn.experts"), re.compile("^PACK: MTP block 8 is not in this pack: layers.0, mtp.0$")),
            (changed(prefix="experts"), re.compile('^"experts" does not say which layer it is: this')),
            (changed(num_shared_experts=1), re.compile("^model.layers.0.ffn.experts: shared experts inside the kernel are not")),
            (changed(_transformed_l1_weights=1), re.compile("^model.layers.0.ffn.experts has its weights already: ")),
            (VllmModel(), re.compile("^VllmModel has no DeepseekV4MegaMoEExperts: set moe_backend")),
        ):  # fmt: skip
            self.refuses(message, self.load, model)
        self.refuses(
            "PACK: layers.0: physical expert 0 is expert "
            f"{self.rows[0][0]}, expected 0: vLLM reads no placement: pack without one",
            lambda: self.load(VllmModel(DeepseekV4MegaMoEExperts()), pack=self.path),
        )
        self.refuses(
            '--model-loader-extra-config has to be {"pack": "DIR"}',
            lambda: self.load(VllmModel(), pack=None),
        )
        with self.assertRaisesRegex(ValueError, "Unexpected extra config keys"):
            self.load(VllmModel(), packs="x")


# ----------------------------------------------------------------------------
# The others


class Others(AdapterTest):
    def test_sets_four_attributes_for_transformers(self):
        experts = SimpleNamespace(gate_up_proj=None, down_proj=None)
        transformers.load(experts, loaders.Pack(self.in_order), 0, 1, "cuda")
        rank = loaders.Pack(self.in_order).rank(1)
        found = {
            f"layers.0.experts.{name}": (t.dtype, list(t.shape), bytes(t.data))
            for name, t in rank["layers.0"].items()
        }
        for side, name in (("l1", "gate_up_proj"), ("l2", "down_proj")):
            pair = getattr(experts, name).data, getattr(experts, f"{name}_scale_inv").data
            self.check_pair(pair, 1, "layers.0", side, "cuda", found)
        self.refuses(
            re.compile("^SimpleNamespace has no gate_up_proj: this adapter was written against hugg"),
            transformers.load, SimpleNamespace(), loaders.Pack(self.in_order), 0, 1,
        )  # fmt: skip

    def test_returns_pairs_for_flashinfer(self):
        l1, l2 = flashinfer.transformed_weights(loaders.Pack(self.path), "layers.0", 1)
        self.check_pair(l1, 1, "layers.0", "l1", "cpu")
        self.check_pair(l2, 1, "layers.0", "l2", "cpu")
        path = repack(fixture("mixtral-bf16"), "deepep-bf16", "--ep", "1")
        self.refuses(
            f'{path}: target is "deepep-bf16", expected "megamoe-w4a8"',
            flashinfer.transformed_weights, loaders.Pack(path), 0, 0,
        )  # fmt: skip

    def test_sets_weights_for_tensorrt_llm(self):
        backend = SimpleNamespace(
            _t_l1=None, _t_l2=None, ep_size=2, num_slots=6, num_experts=5, hidden_size=384,
            intermediate_size=256,
        )  # fmt: skip
        trtllm.load(backend, loaders.Pack(self.path), "layers.0", 0, "cuda")
        self.check_pair(backend._t_l1, 0, "layers.0", "l1", "cuda")
        self.check_pair(backend._t_l2, 0, "layers.0", "l2", "cuda")
        backend.num_slots = 8
        self.refuses(
            "PACK: num_physical is 6, expected 8",
            trtllm.load, backend, loaders.Pack(self.path), "layers.0", 0,
        )  # fmt: skip


class Engines(unittest.TestCase):
    def test_names_a_commit_for_every_adapter(self):
        folder = os.path.join(ROOT, "lib/loaders/moepack")
        for name, engine in engines.ENGINES.items():
            self.assertTrue(os.path.exists(os.path.join(folder, f"{name}.py")))
            for path, commit in engine.files.items():
                self.assertRegex(commit, r"^[0-9a-f]{40}$", path)
        self.assertEqual(xxh3.digest(b""), "99aa06d3014798d86001c324468d497f")


if __name__ == "__main__":
    unittest.main()
