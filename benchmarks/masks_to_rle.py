"""Box masks to RLE: `BoxMasks.rle` against Detectron2's paste and pycocotools' encode.

    python benchmarks/masks_to_rle.py [--masks 100] [--rounds 7] [--threads 1]

Both sides run in turn in one process; medians and their ratio are printed.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from detectron2.layers import paste_masks_in_image
from pycocotools import mask as coco_mask

from instancezoo.modeling.masks import BoxMasks

SIZES = ((480, 640), (800, 1333), (2160, 3840))
GRID = 28
BOX_SIZES = (0.02, 0.5)  # sides as shares of the image's, drawn log-uniformly


def draw_case(num_masks: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth scores (N, GRID, GRID) and boxes (N, 4)."""
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.standard_normal((num_masks, GRID, GRID), dtype=np.float32))
    scores = (torch.nn.functional.avg_pool2d(noise, 7, 1, 3) * 20).sigmoid()
    sides = np.exp(rng.uniform(*np.log(BOX_SIZES), (num_masks, 2))) * [width, height]
    corners = rng.uniform(0, 1, (num_masks, 2)) * ([width, height] - sides)
    return scores, torch.from_numpy(np.concatenate([corners, corners + sides], 1)).float()


def encode_pasted(scores: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> list[str]:
    masks = paste_masks_in_image(scores, boxes, size)
    arrays = (np.asfortranarray(mask.numpy().astype(np.uint8)) for mask in masks)
    return [coco_mask.encode(array)["counts"].decode() for array in arrays]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--masks", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for size in SIZES:
        scores, boxes = draw_case(args.masks, *size)
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(args.rounds):
            start = time.perf_counter()
            ours = [code["counts"] for code in BoxMasks(scores, boxes).rle(*size)]
            middle = time.perf_counter()
            theirs = encode_pasted(scores, boxes, size)
            times[0].append(middle - start)
            times[1].append(time.perf_counter() - middle)
            assert ours == theirs
        ours_s, theirs_s = (statistics.median(values) for values in times)
        print(
            f"{size[0]}x{size[1]}: BoxMasks.rle {ours_s * 1e3:.0f} ms, paste + encode "
            f"{theirs_s * 1e3:.0f} ms, ratio {theirs_s / ours_s:.1f}"
        )


if __name__ == "__main__":
    main()
