"""From the head's maps to detections at the original size (section 3.1, inference).

Legend: N images, L levels, P points of all levels, K classes, R rays, M candidates,
H W map size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from instancezoo.layers.nms import nms_per_class
from instancezoo.layers.polar import polygon_from_rays
from instancezoo.modeling.levels import flatten_levels, locate_points
from instancezoo.modeling.masks import VertexMasks

from .head import PolarMaskOutputs

# Pixels: beyond every image, and finite, which exp of a diverged network's output is not.
_FARTHEST = 1e6


@dataclass(frozen=True)
class DecodeSettings:
    """Settings of inference.

    Attributes:
        num_candidates: points of each level that are compared with the threshold, best first.
        score_thresh: of the class probability.
        centerness_offset: score = probability * (centerness + this).
        nms_box: "branch" or "polygon".
        nms_thresh: IoU.
        max_per_image: detections.
        plus_one: boxes are inclusive pixel corners.
        output_plus_one: boxes are returned in Detectron2's frame all the same.
    """

    num_candidates: int = 1000
    score_thresh: float = 0.05
    centerness_offset: float = 0.5
    nms_box: str = "branch"
    nms_thresh: float = 0.5
    max_per_image: int = 100
    plus_one: bool = True
    output_plus_one: bool = False


def find_candidates(
    outputs: PolarMaskOutputs,
    strides: Sequence[int],
    image_sizes: Sequence[tuple[int, int]],
    settings: DecodeSettings,
) -> list[Instances]:
    """(point, class) pairs above the threshold; NMS is for `select_detections`.

    Args:
        outputs: maps of L levels.
        strides: L strides in pixels.
        image_sizes: N pairs, height and width without padding.
        settings: thresholds.

    Returns:
        N Instances with `scores` (M,), `pred_classes` (M,), `pred_masks` (`VertexMasks`) and, if
        the network has a box branch, `pred_boxes`, all in pixels of the network input.
    """
    found = _gather_best(outputs, strides, settings)
    scores = found.probs * (found.centerness + settings.centerness_offset)  # (N, P, K)
    above = found.probs > settings.score_thresh
    results = []
    for index, (height, width) in enumerate(image_sizes):
        chosen, classes = above[index].nonzero(as_tuple=True)
        points = found.points[index, chosen]  # (M, 2)
        last = points.new_tensor([width - 1, height - 1])
        vertices = polygon_from_rays(points, found.rays[index, chosen])  # (M, R, 2)
        candidates = Instances(
            (height, width),
            scores=scores[index, chosen, classes],
            pred_classes=classes,
            pred_masks=VertexMasks(torch.minimum(vertices.clamp(min=0), last)),
        )
        if outputs.boxes:
            distances = found.boxes[index, chosen]  # (M, 4)
            corners = torch.cat([points - distances[:, :2], points + distances[:, 2:]], dim=1)
            limit = last.repeat(2) + int(not settings.plus_one)
            candidates.pred_boxes = Boxes(torch.minimum(corners.clamp(min=0), limit))
        results.append(candidates)
    return results


def select_detections(
    candidates: Instances, height: int, width: int, settings: DecodeSettings
) -> Instances:
    """Bring one image's candidates to the original size, and keep the best of each object.

    Args:
        candidates: as `find_candidates` returns them.
        height, width: size of the original image in pixels.
        settings: thresholds.

    Returns:
        The same fields in pixels of the original image, best score first.
    """
    rows, columns = candidates.image_size
    # Both axes have scales of their own: images may be stretched to a fixed size.
    scale = candidates.scores.new_tensor([columns / width, rows / height])
    vertices = candidates.pred_masks.vertices / scale  # (M, R, 2)
    if settings.nms_box == "polygon":
        boxes = torch.cat([vertices.amin(dim=1), vertices.amax(dim=1)], dim=1)
    else:
        boxes = candidates.pred_boxes.tensor / scale.repeat(2)
    one_more = boxes.new_tensor([0, 0, 1, 1])
    # IoU of inclusive corners is that of boxes one pixel wider and higher. parity: a pixel of the
    # original image, also where the network saw it enlarged.
    compared = boxes + one_more if settings.plus_one else boxes
    kept = nms_per_class(compared, candidates.scores, candidates.pred_classes, settings.nms_thresh)
    kept = kept[: settings.max_per_image]
    returned = compared if settings.output_plus_one else boxes
    return Instances(
        (height, width),
        pred_boxes=Boxes(returned[kept]),
        scores=candidates.scores[kept],
        pred_classes=candidates.pred_classes[kept],
        pred_masks=VertexMasks(vertices[kept]),
    )


class _Predictions(NamedTuple):
    """Predictions of some points of every image, in fp32.

    Attributes:
        probs: (N, P, K), probabilities.
        centerness: (N, P, 1), in [0, 1].
        points: (N, P, 2), x and y in pixels.
        rays: (N, P, R), pixels.
        boxes: (N, P, 4), distances in pixels; (N, P, 0) without a box branch.
    """

    probs: Tensor
    centerness: Tensor
    points: Tensor
    rays: Tensor
    boxes: Tensor


def _gather_best(
    outputs: PolarMaskOutputs, strides: Sequence[int], settings: DecodeSettings
) -> _Predictions:
    """The best points of each level by their best class, all levels in one row."""
    levels = [
        _keep_best(_read_level(outputs, level, stride), settings.num_candidates)
        for level, stride in enumerate(strides)
    ]
    return _Predictions(*(torch.cat(parts, dim=1) for parts in zip(*levels, strict=True)))


def _read_level(outputs: PolarMaskOutputs, level: int, stride: int) -> _Predictions:
    logits = outputs.cls_logits[level]
    points = locate_points([outputs.map_sizes[level]], [stride], logits.device)
    rays = flatten_levels([outputs.rays[level]])  # (N, H*W, R)
    boxes = flatten_levels([outputs.boxes[level]]) if outputs.boxes else rays[:, :, :0]
    return _Predictions(
        probs=flatten_levels([logits.float().sigmoid()]),
        centerness=flatten_levels([outputs.ctr_logits[level].float().sigmoid()]),
        points=points.expand(len(logits), -1, -1),
        rays=rays.clamp(max=_FARTHEST),
        boxes=boxes.clamp(max=_FARTHEST),
    )


def _keep_best(points: _Predictions, limit: int) -> _Predictions:
    if points.probs.shape[1] <= limit:
        return points
    quality = (points.probs * points.centerness).amax(dim=2)
    best = quality.topk(limit).indices[..., None]  # (N, limit, 1)
    return _Predictions(*(rows.gather(1, best.expand(-1, -1, rows.shape[2])) for rows in points))
