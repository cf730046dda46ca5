"""Masks to RLE: the compact forms against full-size masks and pycocotools' encode.

    python benchmarks/masks_to_rle.py [--forms box image] [--masks 100] [--rounds 7] [--threads 1]

`box` is Mask R-CNN's form, compared with Detectron2's paste. `image` is SOLO's: scores at a quarter
of the padded input's size, enlarged to the input, cropped, and resized to the image. Both sides run
in turn in one process; medians and their ratio are printed, and the RLE must be equal.

Legend: N masks, H W image size, h w score map size.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.layers import paste_masks_in_image
from pycocotools import mask as coco_mask

from instancezoo.modeling.masks import BoxMasks, ImageMasks, MaskForm, remove_padding

SIZES = ((480, 640), (800, 1333), (2160, 3840))
GRID = 28
BOX_SIZES = (0.02, 0.5)  # sides as shares of the image's, sampled log-uniformly
NETWORK_INPUT, DIVISOR, STRIDE = (800, 1333), 32, 4

# The form, and a function that makes its full-size masks one after the other.
Case = tuple[MaskForm, Callable[[], list[torch.Tensor]]]


def sample_boxes(num_masks: int, height: int, width: int) -> torch.Tensor:
    """(N, 4) XYXY."""
    rng = np.random.default_rng(0)
    sides = np.exp(rng.uniform(*np.log(BOX_SIZES), (num_masks, 2))) * [width, height]
    corners = rng.uniform(0, 1, (num_masks, 2)) * ([width, height] - sides)
    return torch.from_numpy(np.concatenate([corners, corners + sides], 1)).float()


def make_box_case(num_masks: int, height: int, width: int) -> Case:
    """Smooth scores in boxes."""
    noise = torch.randn(num_masks, GRID, GRID, generator=torch.Generator().manual_seed(0))
    scores = (F.avg_pool2d(noise, 7, 1, 3) * 20).sigmoid()
    boxes = sample_boxes(num_masks, height, width)
    return BoxMasks(scores, boxes), lambda: list(
        paste_masks_in_image(scores, boxes, (height, width))
    )


def make_image_case(num_masks: int, height: int, width: int) -> Case:
    """Uneven ellipses like a trained network's: scores near 0 or 1 far from contours."""
    image = ResizeShortestEdge.get_output_shape(height, width, *NETWORK_INPUT)
    padded = tuple(-(-side // DIVISOR) * DIVISOR for side in image)
    grid = tuple(side // STRIDE for side in padded)
    boxes = sample_boxes(num_masks, image[0] // STRIDE, image[1] // STRIDE)
    center, radii = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    y, x = torch.arange(grid[0])[:, None] + 0.5, torch.arange(grid[1]) + 0.5
    noise = torch.randn(num_masks, 1, 12, 20, generator=torch.Generator().manual_seed(0))
    bumps = 0.2 * F.interpolate(noise, size=grid, mode="bicubic")[:, 0]
    across = (x - center[:, :1]) / radii[:, :1]  # (N, w)
    down = (y - center[:, 1, None, None]) / radii[:, 1, None, None]  # (N, h, 1)
    distance = (across[:, None, :] ** 2 + down**2).sqrt() + bumps
    scores = ((1 - distance) * radii.amin(dim=1)[:, None, None]).sigmoid()

    def resize() -> list[torch.Tensor]:
        masks = []
        for score in scores[:, None, None]:
            score = F.interpolate(score, size=padded, mode="bilinear")
            score = score[:, :, : image[0], : image[1]]
            masks.append(F.interpolate(score, size=(height, width), mode="bilinear")[0, 0] > 0.5)
        return masks

    return ImageMasks(scores, remove_padding(padded, image)), resize


FORMS = {"box": make_box_case, "image": make_image_case}


def encode(masks: list[torch.Tensor]) -> list[str]:
    arrays = (np.asfortranarray(mask.numpy().astype(np.uint8)) for mask in masks)
    return [coco_mask.encode(array)["counts"].decode() for array in arrays]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--masks", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.forms:
        for size in SIZES:
            form, make_full_size = FORMS[name](args.masks, *size)
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(args.rounds):
                start = time.perf_counter()
                ours = [code["counts"] for code in form.rle(*size)]
                middle = time.perf_counter()
                theirs = encode(make_full_size())
                times[0].append(middle - start)
                times[1].append(time.perf_counter() - middle)
                assert ours == theirs
            ours_s, theirs_s = (statistics.median(values) for values in times)
            print(
                f"{size[0]}x{size[1]}: {type(form).__name__}.rle {ours_s * 1e3:.0f} ms, full-size "
                f"masks + encode {theirs_s * 1e3:.0f} ms, ratio {theirs_s / ours_s:.1f}"
            )


if __name__ == "__main__":
    main()
