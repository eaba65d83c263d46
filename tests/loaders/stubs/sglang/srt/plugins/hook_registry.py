# SPDX-License-Identifier: Apache-2.0
"""Registers and applies hooks as SGLang does, exceptions logged and passed over."""

import functools
import importlib
from enum import Enum


class HookType(Enum):
    AROUND = "around"
    REPLACE = "replace"


class HookRegistry:
    hooks = []
    log = []

    @classmethod
    def register(cls, target, hook, hook_type):
        cls.hooks.append((target, hook, hook_type))

    @classmethod
    def apply_hooks(cls, fails=()):
        for target, hook, hook_type in cls.hooks:
            try:
                if target in fails:
                    raise RuntimeError("broken on purpose")
                cls._apply(target, hook, hook_type)
            except Exception as error:
                cls.log.append(f"Failed to apply hooks to {target}: {error}")

    @staticmethod
    def _apply(target, hook, hook_type):
        path, name = target.rsplit(".", 1)
        parts = path.split(".")
        for n in range(len(parts), 0, -1):
            try:
                owner = importlib.import_module(".".join(parts[:n]))
                break
            except ImportError:
                continue
        for part in parts[n:]:
            owner = getattr(owner, part)
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapper(*args, **kwargs):
            if hook_type is HookType.REPLACE:
                return hook(*args, **kwargs)
            return hook(original, *args, **kwargs)

        setattr(owner, name, wrapper)


def run_plugin(function):
    """As execute_plugin_callbacks: what a plugin raises is logged."""
    try:
        function()
    except Exception as error:
        HookRegistry.log.append(f"Failed to execute general plugin: {error}")
