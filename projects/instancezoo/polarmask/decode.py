"""From the head's maps to detections at the original size (section 3.1, inference).

Legend: N images, L levels, P points of all levels, K classes, R candidates, V rays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from instancezoo.layers.nms import nms_per_class
from instancezoo.layers.polar import polygon_from_rays
from instancezoo.modeling.levels import find_best, flatten_levels, index_levels, locate_points
from instancezoo.modeling.masks import VertexMasks
from instancezoo.modeling.point_assignment import boxes_from_distances

from .head import PolarMaskOutputs

# In pixels, beyond every image; the exp of a diverged network's output may be infinite.
_FARTHEST = 1e6


@dataclass(frozen=True)
class DecodeSettings:
    """Settings of inference.

    Attributes:
        num_candidates: maximum number of points of each level, best first.
        score_thresh: minimum class probability of a candidate, exclusive.
        centerness_offset: score = probability * (centerness + this).
        nms_box: "branch" for predicted boxes, "polygon" for boxes around the polygons.
        nms_thresh: IoU above which the better box of a class suppresses the other.
        max_per_image: maximum number of detections.
        plus_one: if True, boxes are first and last pixel.
        output_plus_one: if True, with `plus_one`, boxes are returned in Detectron2's frame.
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
    """Pairs of a point and a class above the threshold, before NMS.

    Args:
        outputs: maps of L levels.
        strides: L strides in pixels.
        image_sizes: N pairs, height and width without padding.
        settings: thresholds.

    Returns:
        N Instances with `scores` (R,), `pred_classes` (R,), `pred_masks` (`VertexMasks`) and, if
        the network has a box branch, `pred_boxes`, all in pixels of the network input.
    """
    probs = flatten_levels(outputs.cls_logits).float().sigmoid()  # (N, P, K)
    centerness = flatten_levels(outputs.ctr_logits).float().sigmoid()  # (N, P, 1)
    above = (probs > settings.score_thresh) & _find_best_points(
        (probs * centerness).amax(dim=2), outputs.map_sizes, settings.num_candidates
    )
    points = locate_points(outputs.map_sizes, strides, probs.device)  # (P, 2)
    rays = flatten_levels(outputs.rays)  # (N, P, V)
    boxes = flatten_levels(outputs.boxes) if outputs.boxes else None  # (N, P, 4)
    results = []
    for index, (height, width) in enumerate(image_sizes):
        point, classes = above[index].nonzero(as_tuple=True)  # (R,)
        centers = points[point]  # (R, 2)
        last = centers.new_tensor([width - 1, height - 1])
        vertices = polygon_from_rays(centers, rays[index, point].clamp(max=_FARTHEST))
        factors = centerness[index, point, 0] + settings.centerness_offset
        candidates = Instances(
            (height, width),
            scores=probs[index, point, classes] * factors,
            pred_classes=classes,
            pred_masks=VertexMasks(torch.minimum(vertices.clamp(min=0), last)),
        )
        if boxes is not None:
            corners = boxes_from_distances(centers, boxes[index, point].clamp(max=_FARTHEST))
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
    vertices = candidates.pred_masks.vertices / scale  # (R, V, 2)
    if settings.nms_box == "polygon":
        boxes = torch.cat([vertices.amin(dim=1), vertices.amax(dim=1)], dim=1)
    else:
        boxes = candidates.pred_boxes.tensor / scale.repeat(2)
    one_more = boxes.new_tensor([0, 0, 1, 1])
    # IoU of first and last pixels is that of boxes one pixel wider and higher. parity: one pixel of
    # the original image, whatever its size in the network input.
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


def _find_best_points(quality: Tensor, map_sizes: Sequence[tuple[int, int]], limit: int) -> Tensor:
    """The `limit` best points of each image and level by their quality (N, P): (N, P, 1) bool."""
    images = torch.arange(len(quality), device=quality.device)[:, None]
    groups = images * len(map_sizes) + index_levels(map_sizes, quality.device)  # (N, P)
    return find_best(quality.flatten(), groups.flatten(), limit).view(*quality.shape, 1)
