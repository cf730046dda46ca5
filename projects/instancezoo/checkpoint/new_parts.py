"""Parts of a model that weights may lack when a training starts from them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def find_new_parts(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """List the tensors of new parts that a file does not have.

    A module that extends a known one names what it adds in its attribute `new_parts`: a tuple of
    beginnings of its tensors' names. A file has all of them or none; of one that has some, nothing
    is listed.

    Args:
        model: with such modules, or without.
        state: the file's tensors under the model's names.
    """
    names: list[str] = []
    for path, module in model.named_modules():
        starts = tuple(f"{path}.{start}".lstrip(".") for start in getattr(module, "new_parts", ()))
        if starts and not any(name.startswith(starts) for name in state):
            names += [name for name in model.state_dict() if name.startswith(starts)]
    return names
