# SPDX-License-Identifier: Apache-2.0
"""SGLang: MegaMoE experts from a pack instead of from the checkpoint.

    pip install lib/loaders
    MOEPACK_DIR=packed python -m sglang.launch_server --model-path MODEL \\
        --moe-a2a-backend megamoe --init-expert-location packed/placement.json ...

Where MOEPACK_DIR is set, register(), of the entry point group sglang.srt.plugins, puts two hooks
in place. The function that makes kernel-ready weights of an experts module is replaced: the module
is left as the original leaves it, with tensors of the pack. And of the checkpoint's tensors, those
of the experts that are in the pack are taken out before the model sees them, which leaves their
bytes unread where files are mapped, as they are unless prefetching or --weight-loader-disable-mmap
is asked for.

SGLang logs what a plugin raises and goes on without it. An ordinary load where a packed one was
asked for is no answer, so that everything is looked up and compared here first, and what does not
fit ends the process; and each hook, when it is first called, sees whether the other is in place.

Written against the files in moepack.ENGINES["sglang"]; attributes of FusedMoE (layer_id,
moe_ep_size and so on) were read in a copy without a commit. Targets: megamoe-w4a8, megamoe-w4a4
(with --enable-w4a4-mxfp4-megamoe), megamoe-sm90-fp8. SGLang builds NVFP4 experts elsewhere, so
that megamoe-nvfp4 is refused.
"""

import importlib
import os
import sys

from . import engines, tensors
from .engines import attribute
from .errors import PackError

MEGA_MOE = "sglang.srt.layers.moe.mega_moe"
MEGA_MOE_SM90 = "sglang.srt.layers.moe.mega_moe_sm90"
LOADER = "sglang.srt.model_loader.loader"
WEIGHTS = "DefaultModelLoader._get_all_weights"
LOCATION = "sglang.srt.eplb.expert_location"

# Target: the module of the function that builds its weights, the function, and the kernel's kind.
BUILDERS = {
    "megamoe-w4a8": (MEGA_MOE, "build_mega_moe_experts_weights", "fp8xfp4"),
    "megamoe-w4a4": (MEGA_MOE, "build_mega_moe_experts_weights", "mxf4xmxf4"),
    "megamoe-sm90-fp8": (MEGA_MOE_SM90, "build_sm90_mega_moe_experts_weights", None),
}


class Loading:
    """A pack on its way into the models of this process."""

    def __init__(self, directory):
        self.pack = engines.open_pack(directory)
        if self.pack.target not in BUILDERS:
            raise PackError(
                f"{directory}: SGLang is not handed {self.pack.target}, "
                f"only {', '.join(BUILDERS)}"
            )
        self.module, self.builder, self.kind = BUILDERS[self.pack.target]
        self.is_left_out = engines.left_out(self.pack)
        self.rank = None  # opened by the first module, which knows the number
        self.draft = None  # number of the MTP block whose model is being loaded
        self.originals = {}

    # Hooks

    def hook(self):
        """Looks the targets up, compares their signatures, and registers the hooks."""
        hooks = importlib.import_module("sglang.srt.plugins.hook_registry")
        self._hook(hooks, self.module, self.builder, ["experts"], self.build, "REPLACE")
        self._hook(
            hooks, LOADER, WEIGHTS, ["self", "model_config", "model"], self.weights, "AROUND"
        )
        if self.kind is not None:
            engines.resolve("sglang", MEGA_MOE, "_mega_moe_mma_type", ["experts"])

    def _hook(self, hooks, module, path, parameters, function, kind):
        self.originals[module, path] = engines.resolve("sglang", module, path, parameters)
        hooks.HookRegistry.register(f"{module}.{path}", function, getattr(hooks.HookType, kind))

    def check_hooked(self, module, path):
        """That a function is not the original any more."""
        found = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
        if found is self.originals[module, path]:
            raise PackError(
                f"{module}.{path} was not hooked, see SGLang's log: {engines.tried('sglang')}"
            )

    def weights(self, original, loader, model_config, model):
        """Around DefaultModelLoader._get_all_weights: what the pack does not stand for."""
        self.check_hooked(self.module, self.builder)
        self.draft = None
        if getattr(model_config, "is_draft_model", False):
            index = getattr(getattr(loader, "load_config", None), "draft_model_idx", None)
            self.draft = index or 0
        return (
            (name, tensor)
            for name, tensor in original(loader, model_config, model)
            if not self.is_left_out(name)
        )

    def build(self, experts):
        """In place of the function that builds the weights of an experts module."""
        self.check_hooked(LOADER, WEIGHTS)
        if not getattr(experts, "_mega_moe_weights_built", False):
            self.fill(experts)

    # Modules

    def layer_of(self, experts):
        if self.draft is not None:
            return engines.mtp_layer(self.pack, self.draft)
        return engines.layer_by_number(self.pack, attribute("sglang", experts, "layer_id"))

    def fill(self, experts):
        """Leaves an experts module as SGLang's own function does."""
        layer = self.layer_of(experts)
        self._check(experts, layer)
        number = attribute("sglang", experts, "moe_ep_rank")
        if self.rank is None or self.rank.number != number:
            self.rank = self.pack.rank(number)
        found = self.rank.torch(layer)
        w13 = _settle(attribute("sglang", experts, "w13_weight"), found["l1_weight"])
        w2 = _settle(attribute("sglang", experts, "w2_weight"), found["l2_weight"])
        scales = "w13_weight_scale_inv", "w2_weight_scale_inv"
        sf13, sf2 = (attribute("sglang", experts, name) for name in scales)
        if self.kind is None:
            experts.mega_l1_weights = w13, _settle(sf13, found["l1_weight_sf"])
            experts.mega_l2_weights = w2, _settle(sf2, found["l2_weight_sf"])
            experts._mega_moe_sm90_fp8_weights = True
        else:
            experts.mega_l1_weights = w13, _settle_scales(sf13, found["l1_weight_sf"])
            experts.mega_l2_weights = w2, _settle_scales(sf2, found["l2_weight_sf"])
        experts._mega_moe_weights_built = True

    def _check(self, experts, layer):
        """That the engine runs what the pack was made for."""
        ep_size = attribute("sglang", experts, "moe_ep_size")
        shared = attribute("sglang", experts, "num_fused_shared_experts")
        in_pack = self.pack.num_shared_experts if self.pack.shared == "fused" else 0
        if shared != in_pack:
            raise PackError(
                f"{self.pack.directory}: {in_pack} shared experts are fused, the engine fuses "
                f"{shared}"
            )
        self.pack.expect(
            alphas="sgl",
            ep_size=ep_size,
            num_physical=attribute("sglang", experts, "num_experts") - shared * ep_size,
            hidden_size=attribute("sglang", experts, "hidden_size"),
            moe_intermediate_size=attribute("sglang", experts, "intermediate_size_per_partition"),
        )
        if self.kind is not None:
            engine = importlib.import_module(MEGA_MOE)
            if getattr(engine, "_use_amd_flydsl_mega_moe", lambda: False)():
                raise PackError(
                    f"{self.pack.directory}: {self.pack.target} is not what MegaMoE on AMD takes"
                )
            kind = engine._mega_moe_mma_type()
            if kind != self.kind:
                raise PackError(
                    f"{self.pack.directory}: {self.pack.target} is for {self.kind}, the engine "
                    f"runs {kind}"
                )
        self._check_placement(layer)

    def _check_placement(self, layer):
        if self.draft is not None:
            engines.check_in_order(
                self.pack, layer, "SGLang has no placement for MTP blocks: pack without one"
            )
            return
        location = importlib.import_module(LOCATION)
        metadata = attribute("sglang", location, "get_global_expert_location_metadata")()
        if metadata is None:
            engines.check_in_order(
                self.pack, layer, "the engine has no placement: give it --init-expert-location"
            )
            return
        rows = attribute("sglang", metadata, "physical_to_logical_map_cpu")
        row = rows[engines.layer_number(layer)].tolist()
        for physical, (ours, theirs) in enumerate(zip(self.pack.placement(layer), row)):
            if ours != theirs:
                raise PackError(
                    f"{self.pack.directory}: {layer}: physical expert {physical} is expert {ours}, "
                    f"in the engine's placement {theirs}: give it --init-expert-location"
                )


def _settle(parameter, tensor):
    """Puts a tensor into a parameter, in its own storage where it fits; returns what it holds."""
    data = parameter.data
    if data.shape == tensor.shape and data.dtype == tensor.dtype and data.is_contiguous():
        data.copy_(tensor)
    else:
        parameter.data = tensor.to(data.device)
    return parameter.data


def _settle_scales(parameter, scales):
    """Scales go in without UTCCP order, for the ordinary path; returns them with it."""
    scales = scales.to(parameter.data.device)
    parameter.data = tensors.undo_utccp(scales)
    parameter.format_ue8m0 = True
    return scales


_loading = None  # of this process; SGLang calls register once


def register():
    """The plugin. Does nothing where MOEPACK_DIR is not set."""
    global _loading
    directory = os.environ.get("MOEPACK_DIR")
    if not directory:
        return
    try:
        _loading = Loading(directory)
        _loading.hook()
    except Exception as error:  # SGLang would log it and load the checkpoint
        sys.exit(f"moepack: {error}")


def load(model, named_tensors):
    """For --custom-weight-loader moepack.sglang.load: all experts anew from the pack of
    MOEPACK_DIR, and of the tensors given those that it does not stand for. Needs no hook."""
    global _loading
    directory = os.environ.get("MOEPACK_DIR")
    if not directory:
        raise PackError("MOEPACK_DIR is not set")
    if _loading is None or _loading.pack.directory != directory:
        _loading = Loading(directory)
    _loading.draft = None
    model.load_weights([(n, t) for n, t in named_tensors if not _loading.is_left_out(n)])
    modules = [m for _, m in model.named_modules() if hasattr(m, "_mega_moe_weights_built")]
    if not modules:
        raise PackError(f"{type(model).__name__} has no MegaMoE experts: {engines.tried('sglang')}")
    for experts in modules:
        _loading.fill(experts)
