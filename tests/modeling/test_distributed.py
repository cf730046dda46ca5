"""Averages over processes."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.utils import comm
from torch import multiprocessing

from instancezoo.modeling.distributed import average_over_ranks, leave_process_group


def run_rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    value = torch.tensor([2.0, 4.0]) * (rank + 1)
    assert average_over_ranks(value).tolist() == [3, 6]
    assert value.tolist() == [2 * (rank + 1), 4 * (rank + 1)]
    comm.synchronize()
    comm.gather(rank)  # Detectron2 keeps the group
    leave_process_group()
    assert not torch.distributed.is_initialized()
    assert comm._get_global_gloo_group.cache_info().currsize == 0


def test_two_processes_share_the_mean(tmp_path: Path) -> None:
    # Forked processes need not import torch again.
    multiprocessing.start_processes(run_rank, (str(tmp_path),), nprocs=2, start_method="fork")


def test_one_process_keeps_its_value() -> None:
    value = torch.tensor(3.0, requires_grad=True)
    found = average_over_ranks(value)
    assert found == 3 and not found.requires_grad
