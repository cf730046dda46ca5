"""Time from embeddings of a large image to its detections and masks, without the network.

    python benchmarks/metric_seeds.py [--instances 60] [--seeds 100] [--rounds 5] [--threads 1]

The image has 1024 x 2048 pixels, the embeddings stride 4. Every object's pixels have an embedding
of the object's own and some noise, as a trained network gives them. Medians of processor time are
printed, and how many objects were found.

Legend: D embedding size, T thresholds, K classes, h w grid.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from discs import draw_discs
from torch import Tensor

from instancezoo.layers.clustering import cluster_mean_shift
from instancezoo.metric.seeds import SeedSettings, grow_segments
from instancezoo.modeling.grouping import Segments
from instancezoo.modeling.masks import ImageMasks, LabelMasks, MaskForm, remove_padding

HEIGHT, WIDTH, STRIDE = 1024, 2048, 4
EMBED_DIM, NUM_CLASSES = 64, 8
SPREAD, NOISE = 0.5, 0.03  # of the objects' embeddings, and of pixels around theirs
BANDWIDTH = 0.95
RESULT = (HEIGHT * 3 // 4, WIDTH * 3 // 4)
PADDED = (HEIGHT, WIDTH)


def embed_objects(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings (D, h*w) and logits (T, K + 1, h*w) of a trained network."""
    generator = torch.Generator().manual_seed(0)
    cells, count = labels.flatten(), int(labels.max())
    centres = torch.randn(EMBED_DIM, count + 1, generator=generator) * SPREAD
    noise = torch.randn(EMBED_DIM, len(cells), generator=generator) * NOISE
    taus = len(SeedSettings.taus)
    logits = torch.randn(taus, NUM_CLASSES + 1, len(cells), generator=generator)
    logits[:, 0] += torch.where(cells == 0, 6.0, 0.0)
    logits[:, 1] += torch.where(cells > 0, 5.0, 0.0)
    return centres[:, cells] + noise, logits


def find_seeds(embeddings: Tensor, logits: Tensor, settings: SeedSettings) -> MaskForm:
    """Masks of seeds, as `DeepMetricLearning` makes them."""
    grid = HEIGHT // STRIDE, WIDTH // STRIDE
    segments = grow_segments(embeddings, logits, grid, settings)
    steps = remove_padding(PADDED, PADDED)
    return ImageMasks(segments.margins, steps, threshold=0.0, inclusive=True)


def find_clusters(embeddings: Tensor, logits: Tensor, max_clusters: int) -> MaskForm:
    """Masks of clusters by mean shift."""
    pixels = (logits[0].argmax(dim=0) > 0).nonzero().squeeze(1)
    clusters = cluster_mean_shift(
        embeddings[:, pixels],
        bandwidth=BANDWIDTH,
        min_size=8,
        max_clusters=max_clusters,
        max_misses=1000,
    )
    labels = pixels.new_zeros(embeddings.shape[1])
    labels[pixels] = clusters.labels
    grid = labels.view(HEIGHT // STRIDE, WIDTH // STRIDE)
    count = len(clusters.centres)
    found = Segments.from_labels(grid, torch.ones(count))
    return LabelMasks(torch.arange(1, count + 1), found.draw_labels(), PADDED, PADDED)


def measure(name: str, group: Callable[[], MaskForm], rounds: int) -> None:
    times, encode_times = [], []
    for _ in range(rounds):
        start = time.process_time()
        masks = group()
        middle = time.process_time()
        masks.rle(*RESULT)
        times.append(middle - start)
        encode_times.append(time.process_time() - middle)
    print(
        f"{name:10} {statistics.median(times):.3f} s, {len(masks)} found; "
        f"masks to RLE at 3/4 of the size {statistics.median(encode_times):.3f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instances", type=int, default=60, help="objects (%(default)s)")
    parser.add_argument("--seeds", type=int, default=100, help="most seeds (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    embeddings, logits = embed_objects(
        draw_discs(args.instances, HEIGHT // STRIDE, WIDTH // STRIDE)
    )
    settings = SeedSettings(max_seeds=args.seeds)
    print(f"{HEIGHT} x {WIDTH} pixels, {args.instances} objects, {args.threads} thread(s)")
    measure("seeds", lambda: find_seeds(embeddings, logits, settings), args.rounds)
    measure("mean shift", lambda: find_clusters(embeddings, logits, args.instances), args.rounds)


if __name__ == "__main__":
    main()
