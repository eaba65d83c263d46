# SPDX-License-Identifier: Apache-2.0
"""vLLM: experts of DeepSeek-V4's MegaMoE from a pack instead of from the checkpoint.

    pip install lib/loaders
    vllm serve MODEL --enable-expert-parallel \\
        --kernel-config '{"moe_backend": "deep_gemm_mega_moe"}' \\
        --load-format moepack --model-loader-extra-config '{"pack": "packed"}'

register(), of the entry point group vllm.general_plugins, adds the load format. Every
DeepseekV4MegaMoEExperts gets its transformed weights before the model loads the rest, so that its
finalize_weights finds them there and does nothing.

vLLM reads no placement: slot p holds expert p modulo their number, and a pack that says otherwise
is refused. Written against the files in moepack.ENGINES["vllm"]; register_model_loader was read in
a copy without a commit.
"""

import copy

from . import engines
from .engines import attribute
from .errors import PackError

EXPERTS = "DeepseekV4MegaMoEExperts"
RAW = ("w13_weight", "w13_weight_scale", "w2_weight", "w2_weight_scale")


def hand_over(pack, experts):
    """Gives a DeepseekV4MegaMoEExperts its transformed weights, and takes the raw ones away."""

    def of(name):
        return attribute("vllm", experts, name)

    prefix = of("prefix")
    if getattr(experts, "num_shared_experts", 0):
        raise PackError(
            f"{prefix}: shared experts inside the kernel are not handed over: "
            f"{engines.tried('vllm')}"
        )
    local, first = of("num_local_experts"), of("experts_start_idx")
    pack.expect(
        target="megamoe-w4a8",
        ep_size=of("num_experts") // local,
        num_physical=of("num_experts"),
        num_experts=of("num_logical_experts"),
        hidden_size=of("hidden_size"),
        moe_intermediate_size=of("intermediate_size"),
    )
    if pack.shared == "fused":
        raise PackError(f'{pack.directory}: shared is "fused", vLLM has no slots for them')
    number = engines.layer_number(prefix.partition(".ffn.")[0].partition(".mtp_block")[0])
    if number is None:
        raise PackError(f'"{prefix}" does not say which layer it is: {engines.tried("vllm")}')
    layer = engines.layer_by_number(pack, number)
    engines.check_in_order(pack, layer, "vLLM reads no placement: pack without one")
    if of("_transformed_l1_weights") is not None:
        raise PackError(f"{prefix} has its weights already: {engines.tried('vllm')}")
    of("_check_runtime_supported")()
    device = of("w13_weight").device
    for name in RAW:  # first, so that both are never there at once
        of(name)
        setattr(experts, name, None)
    found = pack.rank(first // local).torch(layer, device)
    experts._transformed_l1_weights = engines.pair(found, "l1")
    experts._transformed_l2_weights = engines.pair(found, "l2")


def make_loader(base):
    """The loader as a subclass of DefaultModelLoader."""
    for name in ("get_all_weights", "load_weights"):
        attribute("vllm", base, name)

    class MoepackModelLoader(base):
        def __init__(self, load_config):
            extra = dict(load_config.model_loader_extra_config or {})
            directory = extra.pop("pack", None)
            if not directory:
                raise PackError('--model-loader-extra-config has to be {"pack": "DIR"}')
            self.pack = engines.open_pack(directory)
            self.is_left_out = engines.left_out(self.pack)
            # To what it is derived from, this is an ordinary checkpoint.
            plain = copy.copy(load_config)
            plain.load_format = "safetensors"
            plain.model_loader_extra_config = extra
            super().__init__(plain)

        def get_all_weights(self, model_config, model):
            for name, tensor in super().get_all_weights(model_config, model):
                if not self.is_left_out(name):
                    yield name, tensor

        def load_weights(self, model, model_config):
            found = [m for _, m in model.named_modules() if type(m).__name__ == EXPERTS]
            if not found:
                raise PackError(
                    f"{type(model).__name__} has no {EXPERTS}: set moe_backend "
                    f"deep_gemm_mega_moe ({engines.tried('vllm')})"
                )
            for experts in found:
                hand_over(self.pack, experts)
            return super().load_weights(model, model_config)

    return MoepackModelLoader


def register():
    """The plugin."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    register_model_loader("moepack")(make_loader(DefaultModelLoader))
