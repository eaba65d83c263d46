# SPDX-License-Identifier: Apache-2.0
"""What the adapters have in common, and which engines they were written against."""

import inspect
import os
import re
from collections import namedtuple

from .errors import PackError
from .reader import Pack, layer_number

# files: what was read of a repository, and at which commit.
Engine = namedtuple("Engine", "repository files")

ENGINES = {
    "sglang": Engine(
        "sgl-project/sglang",
        {
            "python/sglang/srt/layers/moe/mega_moe.py": "04fa8c01947e72c3026925f57469ba7d2671aad6",
            "python/sglang/srt/layers/moe/mega_moe_sm90.py": "078e5e2a5227bb6af1727574bb6212f0afb25250",
            "python/sglang/srt/plugins/__init__.py": "0298b5b40b4d4e840f3d38b824b0f0c2a769c4c4",
            "python/sglang/srt/plugins/hook_registry.py": "106f37cea63a70dea91958cb633ccbd87c932d40",
            "python/sglang/srt/model_loader/loader.py": "005cbe0ea796446e420b6aab62ce51a488f5e7c7",
            "python/sglang/srt/eplb/expert_location.py": "01fec5c2e61f9568c41a6e1d4fd5ac46c88504f1",
        },
    ),
    "vllm": Engine(
        "vllm-project/vllm",
        {
            "vllm/models/deepseek_v4/nvidia/model.py": "0101ca23ef3697090a7408dc4743d206203dfb72",
            "vllm/model_executor/model_loader/default_loader.py": "00b5ad0712629374e6352e2b31de0460be0fdf17",
        },
    ),
    "transformers": Engine(
        "huggingface/transformers",
        {"src/transformers/integrations/deepgemm.py": "028a39f16e4709e24b732cc5611bc1cccaee3470"},
    ),
    "flashinfer": Engine(
        "flashinfer-ai/flashinfer",
        {
            "flashinfer/moe_ep/backends/mega/kernel/deep_gemm_mega/backend.py": "0e01918ffb2b4189baf26cbb4deda5016d6987e7",
            "flashinfer/moe_ep/backends/mega/kernel/deep_gemm_mega/weights.py": "672808fe73119b6b6e7fbf8cc679600889da7107",
        },
    ),
    "trtllm": Engine(
        "NVIDIA/TensorRT-LLM",
        {
            "tensorrt_llm/_torch/modules/fused_moe/mega_moe/mega_moe_deepgemm.py": "52206eebb7bbd85d075ccb2a1abefd729a0147f5",
        },
    ),
}

# Tensors of routed experts by their names in a checkpoint, one by one or all in one. A router's
# bias that lies beside them is none.
ROUTED = re.compile(
    r"(?:^|\.)experts\.(?:[0-9]+\.|(?:gate_up|gate|up|down)_proj|w(?:1|2|3|13)(?:[._]|\Z))"
)
SHARED = re.compile(r"(?:^|\.)shared_experts?\.")


def tried(engine):
    """What an adapter was written against, for a message."""
    files = ENGINES[engine].files
    return f"this adapter was written against {ENGINES[engine].repository} at " + ", ".join(
        f"{os.path.basename(path)} {commit[:8]}" for path, commit in files.items()
    )


def resolve(engine, module, path, parameters):
    """A function of an engine by module and dotted path, with exactly these parameters."""
    import importlib

    full = f"{module}.{path}"
    try:
        found = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise PackError(f"{full} is not there ({error}): {tried(engine)}") from None
    actual = list(inspect.signature(found).parameters)
    if actual != parameters:
        raise PackError(
            f"{full} takes ({', '.join(actual)}), expected ({', '.join(parameters)}): "
            f"{tried(engine)}"
        )
    return found


def attribute(engine, thing, name):
    """An attribute that an engine's module has to have."""
    try:
        return getattr(thing, name)
    except AttributeError:
        raise PackError(f"{type(thing).__name__} has no {name}: {tried(engine)}") from None


def open_pack(directory):
    """The pack of a running engine. MOEPACK_VERIFY=digest digests every tensor that is used."""
    return Pack(directory, verify=os.environ.get("MOEPACK_VERIFY") or None)


def _num_hidden_layers(pack):
    """Decoder layers of the model; None where config.json does not say."""
    config = pack.config()
    if not isinstance(config, dict):
        return None
    parts = [config] + [config.get(k) for k in ("text_config", "language_config", "llm_config")]
    for part in parts:
        if isinstance(part, dict) and type(part.get("num_hidden_layers")) is int:
            return part["num_hidden_layers"]
    return None


def mtp_layer(pack, index):
    """The prefix of the MTP block of that number, counted from 0."""
    decoders = _num_hidden_layers(pack)
    blocks = [
        layer
        for layer in pack.layers
        if layer_number(layer) is None or (decoders is not None and layer_number(layer) >= decoders)
    ]
    if index < len(blocks):
        return blocks[index]
    raise PackError(
        f"{pack.directory}: MTP block {index} is not in this pack: {', '.join(pack.layers)}"
    )


def layer_by_number(pack, number):
    """The prefix of a layer by an engine's number, which counts on with MTP blocks."""
    for layer in pack.layers:
        if layer_number(layer) == number:
            return layer
    decoders = _num_hidden_layers(pack)
    if decoders is not None and number >= decoders:
        return mtp_layer(pack, number - decoders)
    raise PackError(
        f"{pack.directory}: layer {number} is not in this pack: {', '.join(pack.layers)}"
    )


def left_out(pack):
    """A function that says of a checkpoint's tensor, by name, whether the pack stands for it."""
    heads = tuple(f"{layer}." for layer in pack.layers)
    fused = pack.shared == "fused"

    def is_left_out(name):
        head = next((h for h in heads if name.startswith(h)), None)
        if head is None:
            return False
        rest = name[len(head) :]
        return bool(ROUTED.search(rest) or (fused and SHARED.search(rest)))

    return is_left_out


def check_in_order(pack, layer, why):
    """That slots hold experts in order, copies behind: what engines without a placement assume."""
    for physical, expert in enumerate(pack.placement(layer)):
        if expert != physical % pack.num_experts:
            raise PackError(
                f"{pack.directory}: {layer}: physical expert {physical} is expert {expert}, "
                f"expected {physical % pack.num_experts}: {why}"
            )


def pair(tensors, side):
    """Weight and scales of "l1" or "l2", as kernels take them."""
    return tensors[f"{side}_weight"], tensors[f"{side}_weight_sf"]
