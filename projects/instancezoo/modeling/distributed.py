"""Processes of a training run: numbers averaged over them, and their end."""

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


def leave_process_group() -> None:
    """End the process group of this process, if it is in one.

    Detectron2 keeps groups in two variables. A group that outlives this call has threads that meet
    the interpreter's end, which aborts the process now and then.
    """
    if torch.distributed.is_initialized():
        comm._get_global_gloo_group.cache_clear()
        comm._LOCAL_PROCESS_GROUP = None
        torch.distributed.destroy_process_group()
