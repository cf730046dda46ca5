"""Polygons of 36 vertices to RLE, against full-size masks filled by OpenCV and encoded.

    python benchmarks/polygons_to_rle.py [--polygons 100] [--rounds 7] [--threads 1]

The reference is a usual PolarMask decoder: `cv2.fillPoly` on a zero mask of the image's size for
each polygon, then pycocotools' encode. All run in turn in one process; medians and their ratios are
printed, and the RLE must be equal.

Legend: N masks, V vertices.
"""

import argparse
import statistics
import time
from unittest import mock

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask

from instancezoo.layers import extension
from instancezoo.layers.polar import polygon_from_rays
from instancezoo.modeling.masks import VertexMasks

SIZES = ((480, 640), (800, 1333), (2160, 3840))
NUM_RAYS = 36
RADII = (0.01, 0.3)  # as shares of the image's shorter side, sampled log-uniformly


def sample_polygons(num_polygons: int, height: int, width: int) -> torch.Tensor:
    """(N, V, 2) wobbly outlines, clamped to the image."""
    rng = np.random.default_rng(0)
    limit = torch.tensor([width - 1.0, height - 1.0])
    radii = np.exp(rng.uniform(*np.log(RADII), (num_polygons, 1))) * min(height, width)
    rays = radii * np.exp(rng.normal(0, 0.1, (num_polygons, NUM_RAYS)))
    points = torch.from_numpy(rng.uniform(0, 1, (num_polygons, 2))) * limit
    vertices = polygon_from_rays(points, torch.from_numpy(rays))
    return torch.minimum(vertices.clamp(min=0), limit)


def encode_filled(vertices: torch.Tensor, height: int, width: int) -> list[str]:
    counts = []
    for polygon in vertices.numpy().astype(np.int32):
        mask = np.zeros((height, width), dtype=np.uint8)
        cv2.fillPoly(mask, [polygon], 1)
        counts.append(coco_mask.encode(np.asfortranarray(mask))["counts"].decode())
    return counts


def encode_form(vertices: torch.Tensor, height: int, width: int) -> list[str]:
    return [code["counts"] for code in VertexMasks(vertices).rle(height, width)]


def encode_form_plain(vertices: torch.Tensor, height: int, width: int) -> list[str]:
    """The same without compiled operators."""
    with mock.patch.object(extension, "IS_BUILT", False):
        return encode_form(vertices, height, width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--polygons", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    sides = {"fillPoly + encode": encode_filled, "plain": encode_form_plain}
    if extension.IS_BUILT:
        sides["compiled"] = encode_form
    for height, width in SIZES:
        vertices = sample_polygons(args.polygons, height, width)
        expected = encode_filled(vertices, height, width)
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(args.rounds):
            for name, encode in sides.items():
                start = time.perf_counter()
                counts = encode(vertices, height, width)
                times[name].append(time.perf_counter() - start)
                assert counts == expected
        medians = {name: statistics.median(values) for name, values in times.items()}
        reference = medians["fillPoly + encode"]
        shown = (
            f"{name} {seconds * 1e3:.1f} ms (ratio {reference / seconds:.1f})"
            for name, seconds in medians.items()
        )
        print(f"{args.polygons} polygons at {height}x{width}: " + ", ".join(shown))


if __name__ == "__main__":
    main()
