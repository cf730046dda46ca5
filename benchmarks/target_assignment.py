"""Targets of the SOLO family: milliseconds per image of each stage.

    python benchmarks/target_assignment.py [--size 800 1333] [--rounds 7] [--threads 1]

Objects are ellipses on COCO's grids; all stages run in turn in one process, and medians of
processor time are printed. "padding" is not part of training: it is the extra cost of copying the
masks to a padded canvas.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Boxes, Instances

from instancezoo import get_cfg
from instancezoo.solo.targets import GridSpec, assign_cells, gather_objects, reduce_masks

NUM_OBJECTS = (10, 40, 100)
DIVISOR = 32
SIDES = (0.03, 0.4)  # of an object as shares of the image's, sampled log-uniformly


def draw_image(num_objects: int, height: int, width: int) -> Instances:
    """Ground truth of one image."""
    rng = np.random.default_rng(0)
    half = np.exp(rng.uniform(*np.log(SIDES), (num_objects, 2))) * [width / 2, height / 2]
    center = half + rng.uniform(0, 1, (num_objects, 2)) * ([width, height] - 2 * half)
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    masks = [
        ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
        for (cx, cy), (rx, ry) in zip(center, half, strict=True)
    ]
    image = Instances((height, width))
    image.gt_boxes = Boxes(torch.from_numpy(np.concatenate([center - half, center + half], 1)))
    image.gt_classes = torch.arange(num_objects) % 80
    image.gt_masks = BitMasks(torch.from_numpy(np.stack(masks)))
    return image


def list_stages(image: Instances) -> dict[str, Callable[[], object]]:
    """Name of each stage -> function that runs it."""
    node = get_cfg().MODEL.SOLO
    grid = GridSpec(node.NUM_GRIDS, node.FPN_SCALE_RANGES, node.SIGMA)
    height, width = (-(-side // DIVISOR) * DIVISOR for side in image.image_size)
    objects = gather_objects([image], (height, width))
    as_opencv = gather_objects([image], (height, width), "opencv")
    (masks,) = objects.masks
    right, bottom = width - masks.shape[2], height - masks.shape[1]
    return {
        "gathering": partial(gather_objects, [image], (height, width)),
        "assignment": partial(assign_cells, objects, grid, num_classes=80),
        "reduction by 4": partial(reduce_masks, objects, 4),
        "reduction by 8": partial(reduce_masks, objects, 8),
        "reduction by 16": partial(reduce_masks, objects, 16),
        "reduction by 4, OpenCV's rule": partial(reduce_masks, as_opencv, 4),
        "padding": partial(F.pad, masks, (0, right, 0, bottom)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    table: dict[str, list[float]] = {}
    for number in NUM_OBJECTS:
        stages = list_stages(draw_image(number, *args.size))
        times: dict[str, list[float]] = {name: [] for name in stages}
        for _ in range(args.rounds):
            for name, run in stages.items():
                start = time.process_time()
                run()
                times[name].append(time.process_time() - start)
        for name, values in times.items():
            table.setdefault(name, []).append(statistics.median(values) * 1e3)
    print("ms per image".ljust(32) + "".join(f"{f'{n} objects':>14}" for n in NUM_OBJECTS))
    for name, row in table.items():
        print(name.ljust(32) + "".join(f"{value:14.1f}" for value in row))


if __name__ == "__main__":
    main()
