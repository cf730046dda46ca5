"""Processor time from embeddings of a large image to its segments and masks, without the network.

    python benchmarks/semiconv_grouping.py [--instances 200] [--rounds 5] [--threads 1]

The image has 1024 x 2048 pixels, the embeddings stride 4. Every object's pixels have the
embedding of its centre and some noise, as a trained network gives them. Medians are printed, and
how many objects were found.

Legend: D embedding size, M objects, h w grid.
"""

import argparse
import statistics
import time

import torch
from discs import draw_discs
from torch import Tensor

from instancezoo.layers.clustering import (
    Clusters,
    cluster_k_means,
    cluster_votes,
    group_greedily,
)
from instancezoo.layers.semiconv import find_radius
from instancezoo.modeling.masks import LabelMasks

HEIGHT, WIDTH, STRIDE, UNIT = 1024, 2048, 4, 64.0
EMBED_DIM = 8
NOISE = 0.02  # of the embeddings, in their unit
SIGMA = 0.5


def embed_objects(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings (D, h, w) and foreground scores (h, w) of a trained network."""
    generator = torch.Generator().manual_seed(0)
    count = int(labels.max())
    y, x = (p.float() for p in labels.nonzero(as_tuple=True))
    owners = labels[labels > 0] - 1
    counts = owners.bincount(minlength=count)
    places = torch.stack([x, y], dim=1) * STRIDE / UNIT
    centres = torch.zeros(count, 2).index_add_(0, owners, places) / counts[:, None]
    embeddings = NOISE * torch.randn(EMBED_DIM, *labels.shape, generator=generator)
    embeddings[:2, labels > 0] += centres[owners].T
    scores = torch.rand(labels.shape, generator=generator) * 0.4
    return embeddings, torch.where(labels > 0, scores + 0.6, scores)


def group(name: str, embeddings: Tensor, scores: Tensor) -> Tensor:
    """Labels (h, w) of the segments."""
    pixels = (scores.flatten() >= 0.5).nonzero().squeeze(1)
    points, certain = embeddings.flatten(1)[:, pixels], scores.flatten()[pixels]
    labels = torch.zeros(scores.numel(), dtype=torch.long)
    labels[pixels] = cluster(name, points, certain, (scores.shape[0], scores.shape[1])).labels
    return labels.view_as(scores)


def cluster(name: str, points: Tensor, scores: Tensor, grid: tuple[int, int]) -> Clusters:
    if name == "votes":
        cells = points[:2] * UNIT / STRIDE - 0.5
        return cluster_votes(cells, grid, window=5, min_votes=8, max_clusters=1000)
    found = group_greedily(
        points,
        scores,
        radius=find_radius(SIGMA, 0.5, "laplacian"),
        seed_thresh=0.6,
        num_shifts=3,
        min_size=8,
        max_clusters=1000,
        max_misses=1000,
    )
    return cluster_k_means(points, found.centres) if name == "kmeans" else found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instances", type=int, default=200, help="objects (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    embeddings, scores = embed_objects(
        draw_discs(args.instances, HEIGHT // STRIDE, WIDTH // STRIDE)
    )
    print(f"{HEIGHT} x {WIDTH} pixels, {args.instances} objects, {args.threads} thread(s)")
    for name in ("greedy", "kmeans", "votes"):
        times, encode_times = [], []
        for _ in range(args.rounds):
            start = time.process_time()
            labels = group(name, embeddings, scores)
            middle = time.process_time()
            count = int(labels.max())
            masks = LabelMasks(torch.arange(1, count + 1), labels, (HEIGHT, WIDTH), (HEIGHT, WIDTH))
            masks.rle(HEIGHT * 3 // 4, WIDTH * 3 // 4)
            times.append(middle - start)
            encode_times.append(time.process_time() - middle)
        print(
            f"{name:8} {statistics.median(times):.3f} s, {count} found; "
            f"masks to RLE at 3/4 of the size {statistics.median(encode_times):.3f} s"
        )


if __name__ == "__main__":
    main()
