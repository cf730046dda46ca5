"""Search for weights that are NaN or infinite, or become so in float32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .display import show_names
from .reader import CheckpointError


def check_finite(where: str | Path, state: Mapping[str, Tensor], remedy: str = "") -> None:
    """Raise `CheckpointError` if tensors are not finite as float32, which models compute in.

    Args:
        where: the file, for the message.
        state: name -> tensor.
        remedy: how to use the tensors nevertheless.
    """
    if broken := list_non_finite(state):
        raise CheckpointError(
            f"{where}: {len(broken)} of {len(state)} tensors hold NaN, infinity or values beyond "
            f"float32: {show_names(broken)}. Use an earlier checkpoint{remedy}"
        )


def list_non_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not finite as float32."""
    return [name for name, tensor in state.items() if not _is_finite(tensor)]


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    values = tensor.float()
    # The sum of finite values is finite unless it overflows, and takes a twentieth of the time.
    return bool(values.sum().isfinite() or values.isfinite().all())
