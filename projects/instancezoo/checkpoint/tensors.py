"""Named tensors as a `.safetensors` file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save as serialize_safetensors
from torch import Tensor

from instancezoo.files import open_atomically


def save_safetensors(
    path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Save named tensors as a `.safetensors` file, atomically.

    Args:
        path: file to write; its folder exists.
        state: name -> tensor on any device; tensors that share memory are each stored in full.
        metadata: short texts for the file's header.
    """
    # the format has neither shared nor strided memory
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    content = serialize_safetensors(whole, metadata=dict(metadata or {}))
    with open_atomically(path) as file:
        file.write(content)
