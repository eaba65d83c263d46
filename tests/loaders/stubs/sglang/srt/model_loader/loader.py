# SPDX-License-Identifier: Apache-2.0
"""Names and the course of events of SGLang at 005cbe0e: weights are loaded, then each module's
quantization method processes them, which imports the function that builds MegaMoE's."""

import importlib


class DefaultModelLoader:
    def __init__(self, load_config):
        self.load_config = load_config

    def _get_all_weights(self, model_config, model):
        yield from model_config.tensors

    def load_model(self, model_config, model, module, builder):
        model.load_weights(self._get_all_weights(model_config, model))
        for _, experts in model.named_modules():
            getattr(importlib.import_module(module), builder)(experts)
        return model
