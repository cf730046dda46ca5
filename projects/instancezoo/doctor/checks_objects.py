"""Checks of the sizes and numbers of objects against anchors, levels and limits.

Legend: M objects, A anchors of one grid cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from math import ceil
from typing import Any

import numpy as np
import torch
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes

from .context import Context
from .findings import Finding, ok, register_check, warning

SMALL_SIDE = 4  # pixels of the network input: one cell of the finest usual level
MAX_SMALL_SHARE = 0.05
MAX_UNCOVERED_SHARE = 0.05
# Advised detections per object of the fullest image: some detections are false.
DETECTIONS_PER_OBJECT = 1.5


@register_check("input size")
def check_input_size(context: Context) -> Iterator[Finding]:
    """Image sizes before and after the resize, and objects that become too small to see."""
    size = context.train_size
    for facts, boxes in context.train_boxes:
        before = np.median(facts.image_sizes, axis=0).astype(int)
        after = np.median(size.resize(facts.image_sizes), axis=0).astype(int)
        sides = measure_sides(boxes)
        share = float((sides < SMALL_SIDE).mean())
        message = (
            f"{facts.name}: images of {before[1]}x{before[0]} pixels (median) become "
            f"{after[1]}x{after[0]}; object side {np.median(sides):.0f} pixels (median); "
            f"{share:.1%} of objects are under {SMALL_SIDE}x{SMALL_SIDE}"
        )
        remedy = f"raise {size.keys}, or cut the images into tiles"
        yield warning(message, remedy) if share > MAX_SMALL_SHARE else ok(message)


@register_check("anchors")
def check_anchors(context: Context) -> Iterator[Finding]:
    """Best IoU of each object with any anchor, against the RPN's thresholds."""
    proposal_generator = getattr(context.model, "proposal_generator", None)
    generator = getattr(proposal_generator, "anchor_generator", None)
    if not hasattr(generator, "cell_anchors"):
        return
    negative, positive = context.cfg.MODEL.RPN.IOU_THRESHOLDS
    for facts, boxes in context.train_boxes:
        best = match_anchors(boxes, generator)
        uncovered = float((best < negative).mean())
        message = (
            f"{facts.name}: the best anchor overlaps {(best >= positive).mean():.1%} of objects by "
            f"IoU {positive:g} or more, and {uncovered:.1%} by less than {negative:g}"
        )
        ratios = (boxes[:, 3] - boxes[:, 1]) / np.maximum(boxes[:, 2] - boxes[:, 0], 1e-6)
        low, high = np.percentile(measure_sides(boxes), [5, 95])
        flat, tall = np.percentile(ratios, [5, 95])
        remedy = (
            f"let MODEL.ANCHOR_GENERATOR.SIZES span {low:.0f} to {high:.0f} pixels (the middle 90% "
            f"of objects) and ASPECT_RATIOS {flat:.2g} to {tall:.2g}"
        )
        yield warning(message, remedy) if uncovered > MAX_UNCOVERED_SHARE else ok(message)


@register_check("levels")
def check_levels(context: Context) -> Iterator[Finding]:
    """Pyramid level from which the box head pools each object."""
    pooler = getattr(getattr(context.model, "roi_heads", None), "box_pooler", None)
    if pooler is None or not hasattr(pooler, "canonical_level"):  # pools from all levels
        return
    num_levels = pooler.max_level - pooler.min_level + 1
    for facts, boxes in context.train_boxes:
        levels = assign_boxes_to_levels(
            [Boxes(torch.as_tensor(boxes, dtype=torch.float32))],
            pooler.min_level,
            pooler.max_level,
            pooler.canonical_box_size,
            pooler.canonical_level,
        )
        shares = torch.bincount(levels, minlength=num_levels) / len(levels)
        names = enumerate(shares.tolist(), start=pooler.min_level)
        parts = ", ".join(f"p{level} {share:.0%}" for level, share in names)
        yield ok(f"{facts.name}: objects by level: {parts}")


@register_check("detections")
def check_detection_limit(context: Context) -> Iterator[Finding]:
    """Objects per image against the largest numbers of detections and of candidates."""
    keys = (context.detection_limit, *context.candidate_limits)
    limits = {key: reduce(getattr, key.split("."), context.cfg) for key in keys}
    for facts in context.datasets:
        counts = facts.objects_per_image
        largest = int(counts.max(initial=0))
        enough = ceil(DETECTIONS_PER_OBJECT * largest / 50) * 50
        # A negative limit of detections is none.
        too_low = {key: limit for key, limit in limits.items() if 0 <= limit < largest}
        shown = {keys[0]: limits[keys[0]]} | too_low
        message = f"{facts.name}: up to {largest} objects per image, " + ", ".join(
            f"{key} {limit}" for key, limit in shown.items()
        )
        if too_low:
            over = np.maximum(counts - min(too_low.values()), 0)
            yield warning(
                f"{message}: {int((over > 0).sum())} images have more, {int(over.sum())} objects "
                "are beyond the limit",
                "set " + ", ".join(f"{key} {enough}" for key in too_low),
            )
        else:
            yield ok(message)


def match_anchors(boxes: np.ndarray, generator: Any) -> np.ndarray:
    """Best IoU of each box with any anchor of the grid.

    Anchors beyond the image count too. The anchor of a shape whose centre is nearest in x and in y
    overlaps most, so only that one is compared.

    Args:
        boxes: (M, 4) XYXY in pixels of the network input.
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


def measure_sides(boxes: np.ndarray) -> np.ndarray:
    """Root of the area of boxes (M, 4) XYXY: (M,)."""
    return np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
