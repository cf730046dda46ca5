"""The compiled operators of `instancezoo._C`: which are available for a device.

The package works without them: every operator has a plain version.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch

_NAMESPACE = "instancezoo"
_DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _load_extension() -> bool:
    if importlib.util.find_spec("instancezoo._C") is None:
        return False
    try:
        importlib.import_module("instancezoo._C")
    except ImportError as error:
        warnings.warn(
            f"instancezoo._C does not load ({error}); plain versions are used. It was built for "
            "another PyTorch: install the package again to rebuild it",
            RuntimeWarning,
        )
        return False
    return True


IS_BUILT = _load_extension()


def find_compiled(name: str, device: torch.device) -> Callable[..., Any] | None:
    """The compiled operator, or None if there is none for a device.

    Args:
        name: as in `csrc/ops.cpp`.
        device: where its tensors are.
    """
    key, qualified = _DISPATCH_KEYS.get(device.type), f"{_NAMESPACE}::{name}"
    if not (IS_BUILT and key and _exists(name)):
        return None
    # Torch has no public function for this. A fake tensor's device leads to its fake kernel.
    if torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key):
        return getattr(torch.ops.instancezoo, name)
    return None


def _exists(name: str) -> bool:
    return hasattr(torch.ops.instancezoo, name)


def register_fake(name: str) -> Callable[[_Function], _Function]:
    """Register the decorated function as an operator's fake kernel, if the operator is built."""
    if not IS_BUILT:
        return lambda function: function
    if not _exists(name):
        warnings.warn(
            f"instancezoo._C was built from older sources: it has no {name}, whose plain version "
            "is used. Install the package again to rebuild it",
            RuntimeWarning,
        )
        return lambda function: function
    return torch.library.register_fake(f"{_NAMESPACE}::{name}")
