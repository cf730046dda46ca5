"""Checks of object sizes and counts against anchors, levels and limits.

Legend: M objects, A anchors of one grid cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any

import numpy as np
import torch
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes

from .context import Context
from .findings import Finding, ok, register_check, warning

SMALL_SIDE = 4  # pixels of the network's input: one cell of the finest usual level
MAX_SMALL_SHARE = 0.05
MAX_UNCOVERED_SHARE = 0.05


@register_check("input size")
def check_input_size(context: Context) -> Iterator[Finding]:
    """How images are resized and how many objects become too small to see."""
    size = context.train_size
    for facts in context.train:
        before = np.median(facts.image_sizes, axis=0).astype(int)
        after = np.median(size.resize(facts.image_sizes), axis=0).astype(int)
        boxes = facts.resize_boxes(size)
        if not len(boxes):
            continue
        sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
        share = float((sides < SMALL_SIDE).mean())
        message = (
            f"{facts.name}: images of {before[1]}x{before[0]} pixels (median) become "
            f"{after[1]}x{after[0]}; object side {np.median(sides):.0f} pixels (median); "
            f"{share:.1%} of objects are under {SMALL_SIDE}x{SMALL_SIDE}"
        )
        if share > MAX_SMALL_SHARE:
            yield warning(message, f"raise {size.keys}, or cut tiles")
        else:
            yield ok(message)


@register_check("anchors")
def check_anchors(context: Context) -> Iterator[Finding]:
    """Best overlap of each object with any anchor, against the RPN's thresholds."""
    generator = getattr(
        getattr(context.model, "proposal_generator", None), "anchor_generator", None
    )
    if generator is None or not hasattr(generator, "cell_anchors"):
        return
    negative, positive = context.cfg.MODEL.RPN.IOU_THRESHOLDS
    for facts in context.train:
        boxes = facts.resize_boxes(context.train_size)
        if not len(boxes):
            continue
        best = match_anchors(boxes, generator)
        uncovered = float((best < negative).mean())
        sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
        message = (
            f"{facts.name}: the best anchor overlaps {(best >= positive).mean():.1%} of objects by "
            f"IoU {positive:g} or more, and {uncovered:.1%} by less than {negative:g}"
        )
        if uncovered > MAX_UNCOVERED_SHARE:
            low, high = np.percentile(sides, [5, 95])
            ratios = (boxes[:, 3] - boxes[:, 1]) / np.maximum(boxes[:, 2] - boxes[:, 0], 1e-6)
            yield warning(
                message,
                f"let MODEL.ANCHOR_GENERATOR.SIZES span {low:.0f} to {high:.0f} pixels (the middle "
                f"90% of objects) and ASPECT_RATIOS {np.percentile(ratios, 5):.2g} to "
                f"{np.percentile(ratios, 95):.2g}",
            )
        else:
            yield ok(message)


@register_check("levels")
def check_levels(context: Context) -> Iterator[Finding]:
    """Which pyramid level the box head takes objects from."""
    pooler = getattr(getattr(context.model, "roi_heads", None), "box_pooler", None)
    if pooler is None:
        return
    num_levels = pooler.max_level - pooler.min_level + 1
    for facts in context.train:
        boxes = facts.resize_boxes(context.train_size)
        if not len(boxes):
            continue
        levels = assign_boxes_to_levels(
            [Boxes(torch.as_tensor(boxes, dtype=torch.float32))],
            pooler.min_level,
            pooler.max_level,
            pooler.canonical_box_size,
            pooler.canonical_level,
        )
        shares = torch.bincount(levels, minlength=num_levels) / len(levels)
        told = ", ".join(f"p{pooler.min_level + i} {s:.0%}" for i, s in enumerate(shares.tolist()))
        yield ok(f"{facts.name}: objects by level: {told}")


@register_check("detections")
def check_detection_limit(context: Context) -> Iterator[Finding]:
    """Objects per image against the most detections that an image may have."""
    key = context.detection_limit
    limit = reduce(getattr, key.split("."), context.cfg)
    for facts in context.datasets:
        counts = facts.objects_per_image
        largest = int(counts.max(initial=0))
        num_over = int((counts > limit).sum())
        message = f"{facts.name}: up to {largest} objects an image, {key} {limit}"
        if limit > 0 and num_over:
            lost = int(np.maximum(counts - limit, 0).sum())
            yield warning(
                f"{message}: {num_over} images have more, {lost} objects can never be found",
                f"set {key} {round_up(1.5 * largest, 50)}; COCO's AP itself counts the 100 best "
                "an image only",
            )
        else:
            yield ok(message)


def match_anchors(boxes: np.ndarray, generator: Any) -> np.ndarray:
    """Best IoU of each box with any anchor of the grid.

    For anchors of one shape, the nearest centre in x and in y overlaps most, so only that one is
    looked at; the image's border is not.

    Args:
        boxes: (M, 4) XYXY in pixels of the network's input.
        generator: Detectron2's `DefaultAnchorGenerator`.

    Returns:
        (M,) values in [0, 1].
    """
    sizes = (boxes[:, 2:] - boxes[:, :2])[:, None]  # (M, 1, 2)
    centres = ((boxes[:, 2:] + boxes[:, :2]) / 2)[:, None]
    best = np.zeros(len(boxes))
    for stride, cell in zip(generator.strides, generator.cell_anchors, strict=True):
        anchors = cell.detach().cpu().numpy()  # (A, 4) around the cell's centre
        anchor_sizes = anchors[:, 2:] - anchors[:, :2]  # (A, 2)
        cells = centres / stride - generator.offset
        distances = np.abs(cells - np.maximum(np.round(cells), 0)) * stride  # (M, 1, 2)
        overlaps = np.minimum(sizes, anchor_sizes)
        overlaps = np.minimum(overlaps, (sizes + anchor_sizes) / 2 - distances)
        intersections = np.maximum(overlaps, 0).prod(axis=2)  # (M, A)
        unions = sizes.prod(axis=2) + anchor_sizes.prod(axis=1) - intersections
        best = np.maximum(best, (intersections / np.maximum(unions, 1e-9)).max(axis=1))
    return best


def round_up(value: float, step: int) -> int:
    """The next multiple of `step`."""
    return int(-(-value // step) * step)
