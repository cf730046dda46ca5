"""Start of the training processes: one, several on this machine, or those of torchrun."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from detectron2.engine import launch as launch_detectron2
from detectron2.utils import comm

from instancezoo.errors import ConfigError


def launch(main: Callable[[Namespace], Any], args: Namespace) -> Any:
    """Run `main(args)` in every process of the job.

    Under torchrun (it sets `LOCAL_RANK`) this process joins its group: NCCL if there are GPUs,
    gloo on CPUs. Otherwise `--num-gpus` processes are started here, as in Detectron2.

    Raises:
        ConfigError: `--num-gpus` exceeds the number of GPUs.
    """
    if "LOCAL_RANK" in os.environ:
        return _run_under_torchrun(main, args)
    available = torch.cuda.device_count()
    if args.num_gpus > 1 and args.num_gpus > available:
        raise ConfigError(
            f"--num-gpus {args.num_gpus}, but this machine has {available}; to train with several "
            "processes on CPUs, run torchrun --nproc-per-node N train_net.py ..."
        )
    return launch_detectron2(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def _run_under_torchrun(main: Callable[[Namespace], Any], args: Namespace) -> Any:
    local_rank = int(os.environ["LOCAL_RANK"])
    use_gpu = torch.cuda.is_available()
    if use_gpu:
        torch.cuda.set_device(local_rank)
    torch.distributed.init_process_group("nccl" if use_gpu else "gloo")
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    try:
        return main(args)
    finally:
        torch.distributed.destroy_process_group()
