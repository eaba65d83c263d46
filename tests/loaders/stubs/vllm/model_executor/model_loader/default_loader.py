# SPDX-License-Identifier: Apache-2.0
"""Names, signatures and checks of vLLM's DefaultModelLoader at 00b5ad07."""


class BaseModelLoader:
    def __init__(self, load_config):
        self.load_config = load_config


class DefaultModelLoader(BaseModelLoader):
    def __init__(self, load_config):
        super().__init__(load_config)
        known = {"enable_multithread_load", "num_threads", "enable_weights_track"}
        unexpected = set(load_config.model_loader_extra_config) - known
        if unexpected:
            raise ValueError(f"Unexpected extra config keys: {unexpected}")
        if load_config.load_format not in ("auto", "safetensors"):
            raise ValueError(f"Unknown load_format: {load_config.load_format}")

    def get_all_weights(self, model_config, model):
        yield from model_config.tensors

    def load_weights(self, model, model_config):
        model.load_weights(self.get_all_weights(model_config, model))
