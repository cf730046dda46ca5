"""Inference time and memory of several configs, in one process and taking turns.

    python benchmarks/compare_configs.py configs/a.yaml configs/b.yaml [--size 800 1333]
        [--detections 100] [--repeat 5] [--threads 1]

Weights are random, and the score threshold is set so that about as many instances are found. Each
config is timed from the image in memory to RLE. Printed: median processor time; memory, the most
bytes that tensors made in a call hold together, without the weights; both relative to the first
config. Processor time counts all threads and does not grow when other programs run.
"""

import argparse
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from instancezoo.benchmark.peak_memory import PeakMemory
from instancezoo.benchmark.threshold import build_untrained
from instancezoo.config import load_cfg
from instancezoo.data.transforms import build_resize, make_model_input
from instancezoo.testing import make_image


@dataclass
class Contender:
    """A built model, its input and what was measured."""

    name: str
    model: nn.Module
    batch: list[dict[str, Any]]
    seconds: list[float] = field(default_factory=list)
    bytes: int = 0
    num_found: int = 0

    def run(self) -> None:
        with torch.no_grad():
            self.num_found = len(self.model(self.batch)[0]["instances"])

    def time(self) -> None:
        start = time.process_time()
        self.run()
        self.seconds.append(time.process_time() - start)

    def weigh(self) -> None:
        with PeakMemory() as memory:
            self.run()
        self.bytes = memory.peak


def build(config: str, size: tuple[int, int], num_detections: int) -> Contender:
    torch.manual_seed(0)
    cfg = load_cfg(config, ["MODEL.WEIGHTS", "", "MODEL.TIMM.WEIGHTS", ""], training=False)
    image = make_image(*size, 0, len(cfg.MODEL.PIXEL_MEAN)).permute(1, 2, 0).numpy()
    batch = [make_model_input(image, build_resize(cfg, is_train=False))]
    model, _ = build_untrained(cfg, batch, num_detections)
    model.mask_output = "rle"  # type: ignore[assignment]
    return Contender(config, model, batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333))
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    contenders = [build(config, tuple(args.size), args.detections) for config in args.configs]
    for contender in contenders:
        contender.weigh()  # also warms up
    for _ in range(args.repeat):
        for contender in contenders:
            contender.time()
    first = contenders[0]
    base = statistics.median(first.seconds)
    width = max(len(contender.name) for contender in contenders)
    for contender in contenders:
        median = statistics.median(contender.seconds)
        print(
            f"{contender.name:{width}} {median:8.2f} s ({median / base:4.2f})"
            f" {contender.bytes / 2**20:8.0f} MiB ({contender.bytes / first.bytes:4.2f})"
            f" {contender.num_found:6} instances"
        )


if __name__ == "__main__":
    main()
