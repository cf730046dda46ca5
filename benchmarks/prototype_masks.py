"""Masks from prototypes to RLE, against the published order of steps.

    python benchmarks/prototype_masks.py [--masks 100] [--rounds 7] [--threads 1]

The reference is the usual YOLACT decoder: one product for whole maps, sigmoid, crop, resize of
whole maps to the image, threshold, then pycocotools' encode. All run in turn in one process;
medians and their ratios are printed. Masks may differ where the order of a sum decides a pixel: the
number of such pixels is printed.

Legend: M masks, D prototypes, h w grid size, H W image size.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask

from instancezoo.layers import extension
from instancezoo.modeling.masks import PrototypeMasks

GRID = 138
NUM_PROTOTYPES = 32
SIZES = ((480, 640), (550, 550), (2160, 3840))
SIDES = (0.03, 0.9)  # of boxes, as shares of the image's, sampled log-uniformly
# The reference holds this many full maps at once.
MAPS_PER_CHUNK = 20


def sample_masks(num_masks: int) -> PrototypeMasks:
    """Smooth prototypes, partly 0 as after ReLU, and boxes of many sizes."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, NUM_PROTOTYPES, 12, 12, generator=generator)
    prototypes = F.interpolate(noise, size=(GRID, GRID), mode="bicubic")[0].relu()
    coefficients = torch.randn(num_masks, NUM_PROTOTYPES, generator=generator).tanh()
    low, high = np.log(SIDES)
    sides = (torch.rand(num_masks, 2, generator=generator) * (high - low) + low).exp() * GRID
    first = torch.rand(num_masks, 2, generator=generator) * (GRID - sides)
    return PrototypeMasks(coefficients, torch.cat([first, first + sides], dim=1), prototypes)


def encode_published(masks: PrototypeMasks, height: int, width: int) -> list[str]:
    """The dense order: everything for all pixels of all masks."""
    grid = masks.prototypes.permute(1, 2, 0) @ masks.coefficients.T  # (h, w, M)
    scores = grid.sigmoid().permute(2, 0, 1).contiguous()  # (M, h, w)
    x0, y0, x1, y1 = (side[:, None, None] for side in masks.boxes.unbind(1))
    x, y = torch.arange(scores.shape[2]), torch.arange(scores.shape[1])[:, None]
    inside = (x >= x0 - masks.pad) & (x < x1 + masks.pad)
    inside = inside & (y >= y0 - masks.pad) & (y < y1 + masks.pad)
    counts = []
    for part in (scores * inside).split(MAPS_PER_CHUNK):
        full = F.interpolate(part[None], (height, width), mode="bilinear", align_corners=False)
        pixels = (full[0] > masks.threshold).numpy().view(np.uint8)
        codes = coco_mask.encode(np.asfortranarray(pixels.transpose(1, 2, 0)))
        counts += [code["counts"].decode() for code in codes]
    return counts


def encode_form(masks: PrototypeMasks, height: int, width: int) -> list[str]:
    return [code["counts"] for code in masks.rle(height, width)]


def encode_form_plain(masks: PrototypeMasks, height: int, width: int) -> list[str]:
    """The same without compiled operators."""
    with mock.patch.object(extension, "IS_BUILT", False):
        return encode_form(masks, height, width)


def count_differences(counts: list[str], expected: list[str], height: int, width: int) -> int:
    """Pixels that differ."""
    pairs = ((a, b) for a, b in zip(counts, expected, strict=True) if a != b)
    codes = ([{"size": [height, width], "counts": text} for text in pair] for pair in pairs)
    return sum(int((coco_mask.decode(a) != coco_mask.decode(b)).sum()) for a, b in codes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--masks", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    versions: dict[str, Callable[[PrototypeMasks, int, int], list[str]]]
    versions = {"published + encode": encode_published, "plain": encode_form_plain}
    if extension.IS_BUILT:
        versions["compiled"] = encode_form
    masks = sample_masks(args.masks)
    for height, width in SIZES:
        times: dict[str, list[float]] = {name: [] for name in versions}
        found = {}
        for _ in range(args.rounds):
            for name, encode in versions.items():
                start = time.perf_counter()
                found[name] = encode(masks, height, width)
                times[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(values) for name, values in times.items()}
        reference = medians["published + encode"]
        shown = []
        for name, seconds in medians.items():
            num = count_differences(found[name], found["published + encode"], height, width)
            ratio = reference / seconds
            shown.append(f"{name} {seconds * 1e3:.1f} ms (ratio {ratio:.1f}, {num} pixels differ)")
        print(f"{args.masks} masks at {height}x{width}: " + ", ".join(shown))


if __name__ == "__main__":
    main()
