"""Start of the training processes: one, several on this machine, or those of torchrun."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.engine import launch as launch_detectron2
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessExitedException

from instancezoo.engine.failures import errors_in_one_line
from instancezoo.engine.stop import SIGNALS, STOP
from instancezoo.errors import ConfigError
from instancezoo.modeling.distributed import leave_process_group


def launch(main: Callable[[Namespace], Any], args: Namespace) -> Any:
    """Run `main(args)` in every process of the job, where `STOP` catches signals.

    Under torchrun (it sets `LOCAL_RANK`) this process joins its group: NCCL if there are GPUs,
    gloo on CPUs. Otherwise `--num-gpus` processes are started here, as in Detectron2.

    Raises:
        ConfigError: `--num-gpus` exceeds the number of GPUs.
        SystemExit: a process that was started here failed, and has told why.
    """
    if "LOCAL_RANK" in os.environ:
        with STOP.catch_signals():
            return _run_under_torchrun(main, args)
    if args.num_gpus * args.num_machines <= 1:
        with STOP.catch_signals():
            return main(args)
    available = torch.cuda.device_count()
    if args.num_gpus > 1 and args.num_gpus > available:
        raise ConfigError(
            f"--num-gpus {args.num_gpus}, but this machine has {available}; to train with several "
            "processes on CPUs, run torchrun --nproc-per-node N train_net.py ..."
        )
    try:
        with _signals_to_children():
            return launch_detectron2(
                _run_child,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(main, args),
            )
    except ProcessExitedException as error:
        sys.exit(error.exit_code)


def _run_child(main: Callable[[Namespace], Any], args: Namespace) -> None:
    with errors_in_one_line(), STOP.catch_signals():
        main(args)
        leave_process_group()


@contextmanager
def _signals_to_children() -> Iterator[None]:
    """Pass signals on to the processes started inside the block, and wait for their end."""

    def pass_on(signum: int, frame: Any) -> None:
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, signum)

    before = {signum: signal.signal(signum, pass_on) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


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
        leave_process_group()
