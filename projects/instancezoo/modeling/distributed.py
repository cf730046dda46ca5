"""Numbers that are averaged over the processes of a training run."""

from __future__ import annotations

import torch
from detectron2.utils import comm
from torch import Tensor


def average_over_ranks(value: Tensor) -> Tensor:
    """Mean of a number over all processes; every process must call it.

    Args:
        value: any shape, float; not changed.

    Returns:
        The mean, without a gradient; `value` itself where there is one process only.
    """
    value = value.detach()
    if comm.get_world_size() == 1:
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / comm.get_world_size()
