"""Partition of a large image's affinities, from coarse to fine and on the finest level alone.

    python benchmarks/ssap_partition.py [--instances 200] [--noise 2.0] [--rounds 3]

The image has 1024 x 2048 pixels, the finest of five levels stride 4. Logits are those of the true
objects and some noise. Printed are the processor's time, which other programs do not change, as the
median of the rounds; how many objects have a segment with an IoU above 0.5, and the mean IoU of all
objects; the number of segments; and the sum of the weights that the partition cuts in the finest
graph: the smaller, the better the multicut.

Legend: C classes with the background, h w size of a level, M objects.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from discs import draw_discs
from torch import Tensor

from instancezoo.layers.affinities import compare_neighbours, find_pairs, weigh_pairs
from instancezoo.layers.graph_partition import sum_cut_weights
from instancezoo.ssap.cascade import (
    PARTITIONS,
    LevelMaps,
    drop_segments,
    number_nodes,
    partition_levels,
)
from instancezoo.ssap.ssap import find_foreground

HEIGHT, WIDTH, STRIDE = 1024, 2048, 4
NUM_LEVELS, WINDOW, NUM_CLASSES, MIN_SIZE = 5, 5, 8, 5
TOUCHING = 0.3  # squared radius of ellipses, in cells of their grid
CERTAINTY = 3.0  # logit without noise


def predict_level(ids: Tensor, noise: float, generator: torch.Generator) -> LevelMaps:
    """What a network says of a level with these objects (h, w)."""
    is_same = compare_neighbours(ids[None], torch.ones_like(ids[None], dtype=torch.bool), WINDOW)
    affinities = CERTAINTY * (2 * is_same[0][0].float() - 1)
    affinities += noise * torch.randn(affinities.shape, generator=generator)
    classes = torch.where(ids > 0, ids % NUM_CLASSES, NUM_CLASSES)
    logits = 2 * CERTAINTY * F.one_hot(classes, NUM_CLASSES + 1).permute(2, 0, 1).float()
    logits += noise * torch.randn(logits.shape, generator=generator)
    probs = logits.softmax(dim=0)
    return LevelMaps(affinities, probs, find_foreground(probs, 0.0))


def measure_overlaps(ids: Tensor, labels: Tensor) -> Tensor:
    """Best IoU (M,) of each object with a segment."""
    num_objects, num_segments = int(ids.max()), int(labels.max())
    joint = (ids * (num_segments + 1) + labels).flatten()
    shared = joint.bincount(minlength=(num_objects + 1) * (num_segments + 1))
    shared = shared.view(num_objects + 1, num_segments + 1)
    sizes, others = shared.sum(dim=1, keepdim=True), shared.sum(dim=0, keepdim=True)
    overlaps = shared[1:, 1:] / (sizes + others - shared)[1:, 1:].clamp(min=1)
    return overlaps.amax(dim=1) if num_segments else overlaps.sum(dim=1)


def measure_cut(level: LevelMaps, labels: Tensor) -> float:
    """Sum of the weights cut in the finest graph; a cell without a segment is a part of its own."""
    nodes = number_nodes(level.foreground, torch.zeros_like(labels))
    pairs = find_pairs(nodes, WINDOW)
    weights = weigh_pairs(level.affinity_logits, level.probs, pairs)
    single = torch.arange(labels.numel()) + int(labels.max()) + 1
    parts = torch.where(labels.flatten() > 0, labels.flatten(), single)
    return float(sum_cut_weights(torch.stack([pairs.first, pairs.second], dim=1), weights, parts))


def time_partition(partition: Callable[[], list[Tensor]], rounds: int) -> tuple[float, Tensor]:
    """Median of the seconds, and the finest labels."""
    times, labels = [], torch.empty(0)
    for _ in range(rounds):
        start = time.process_time()
        labels = partition()[0]
        times.append(time.process_time() - start)
    return statistics.median(times), labels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instances", type=int, default=200, help="objects (%(default)s)")
    parser.add_argument("--noise", type=float, default=2.0, help="of the logits (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    ids = draw_discs(args.instances, HEIGHT // STRIDE, WIDTH // STRIDE, squared_radius=TOUCHING)
    levels = [
        predict_level(ids[:: 2**level, :: 2**level].contiguous(), args.noise, generator)
        for level in range(NUM_LEVELS)
    ]
    print(f"{HEIGHT} x {WIDTH} pixels, {int(ids.max())} objects, noise {args.noise:g}, one thread")
    for name, partition in PARTITIONS.items():
        for kind, used in (("cascade", levels), ("flat", levels[:1])):
            seconds, labels = time_partition(
                lambda used=used, partition=partition: partition_levels(  # type: ignore[misc]
                    used, window=WINDOW, partition=partition
                ),
                args.rounds,
            )
            kept = drop_segments(labels, levels[0].foreground, MIN_SIZE)
            overlaps = measure_overlaps(ids, kept)
            print(
                f"{name:5} {kind:8} {seconds:.3f} s, found {int((overlaps > 0.5).sum())}, "
                f"mean IoU {overlaps.mean():.3f}, {int(kept.max())} segments, "
                f"cut {measure_cut(levels[0], labels):.0f}"
            )


if __name__ == "__main__":
    main()
