"""The compiled operators of `instancezoo._C`: which of them are there for a device.

The package works without them: every operator has a plain version beside it.
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
            "another PyTorch: install the package again to build it anew",
            RuntimeWarning,
        )
        return False
    return True


IS_BUILT = _load_extension()


def find_compiled(name: str, device: torch.device) -> Callable[..., Any] | None:
    """The compiled operator, if there is one for a device.

    Args:
        name: as in `csrc/ops.cpp`.
        device: where its tensors are.
    """
    key = _DISPATCH_KEYS.get(device.type)
    qualified = f"{_NAMESPACE}::{name}"
    if not IS_BUILT or key is None:
        return None
    # Torch has no public question for this. A fake tensor's device leads to its fake kernel.
    if not torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key):
        return None
    return getattr(torch.ops.instancezoo, name)


def register_fake(name: str) -> Callable[[_Function], _Function]:
    """Decorate what tells the shapes of an operator's results; nothing if it was not built."""
    if not IS_BUILT:
        return lambda function: function
    return torch.library.register_fake(f"{_NAMESPACE}::{name}")
