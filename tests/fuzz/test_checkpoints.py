"""Hostile checkpoint files end in a clear message, in bounded time and memory.

FUZZ_CASES sets the number of files; `make fuzz` tries 1,000. Each is read as every command reads
it, by a process of its own with 2 GB of memory and 20 s of CPU time a reader.
"""

import multiprocessing
import random
import resource
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fuzz.checkpoint_files import KINDS, NUM_CASES
from torch import nn

from instancezoo import model_zoo
from instancezoo.checkpoint import ZooCheckpointer, read_checkpoint
from instancezoo.checkpoint.checkpointer import is_whole, use_average
from instancezoo.checkpoint.convert import convert_file
from instancezoo.errors import ZooError

MEMORY, SECONDS = 2 * 2**30, 20


class Model(nn.Module):
    """The model that the files are loaded into."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.conv = nn.Linear(4, 2)
        self.backbone.norm = nn.BatchNorm1d(2)
        self.head = nn.Conv2d(2, 3, 1)


def read_as_commands_do(path: Path) -> int:
    """Returns the number of readers that accepted the file."""
    model = Model()
    strict = ZooCheckpointer(model, save_to_disk=False)
    lenient = ZooCheckpointer(model, allow_partial=True, allow_non_finite=True)
    readers: list[Callable[[], Any]] = [
        lambda: check_result(read_checkpoint(path)),
        lambda: use_average(model, strict.load(str(path))),
        lambda: lenient.load(str(path)),
        lambda: lenient.load(f"{path}?matching_heuristics=True"),
        lambda: convert_file(path, allow_unknown=True),
        lambda: model_zoo.get_trained_config(str(path)),
    ]
    num_accepted = 0
    for read in readers:
        limit_time()
        try:
            read()
            num_accepted += 1
        except ZooError as error:
            message = str(error)
            names_file = str(path) in message or "MODEL." in message  # its config names the key
            assert names_file, message
            assert message.isprintable(), repr(message)
            assert len(message) < len(str(path)) + 3000, message
    is_whole(path)
    return num_accepted


def check_result(checkpoint: dict[str, Any]) -> None:
    for name, tensor in checkpoint["model"].items():
        assert isinstance(name, str) and type(tensor) is torch.Tensor
        assert tensor.layout == torch.strided and tensor.device.type == "cpu"
        tensor.clone()


def limit_time() -> None:
    """Let the system end this process after SECONDS of CPU time from now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def run_limited(path: Path, pipe: Any) -> None:
    """Read a file under the limits, and report what happened."""
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    try:
        pipe.send(str(read_as_commands_do(path)))
    except BaseException:
        pipe.send(traceback.format_exc())


@pytest.mark.parametrize("block", range(4))
def test_hostile_files(block: int, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    num_accepted = 0
    for seed in range(block, NUM_CASES, 4):
        rng = random.Random(seed)
        kind = rng.choice(list(KINDS))
        path = KINDS[kind](rng, tmp_path / f"{seed}")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=run_limited, args=(path, sender))
        process.start()
        sender.close()
        try:
            report = receiver.recv()
        except EOFError:
            report = "killed"
        process.join()
        assert report.isdigit(), f"seed {seed}, {kind}, {path}: {report} ({process.exitcode})"
        num_accepted += int(report)
        path.unlink()
    assert num_accepted or NUM_CASES < 200
