# SPDX-License-Identifier: Apache-2.0
"""Names and signatures of vLLM's register_model_loader and get_model_loader."""

from .default_loader import BaseModelLoader, DefaultModelLoader

loaders = {"safetensors": DefaultModelLoader}


def register_model_loader(load_format):
    def wrap(cls):
        assert issubclass(cls, BaseModelLoader)
        loaders[load_format] = cls
        return cls

    return wrap


def get_model_loader(load_config):
    return loaders[load_config.load_format](load_config)
