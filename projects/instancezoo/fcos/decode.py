"""From maps to detections (FCOS, section 3.2), for all images and levels of a batch at once.

Legend: N images, L levels, P points of all levels, K classes, R candidates, D values of the top
module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.structures import Boxes, Instances
from torch import Tensor

from instancezoo.layers.nms import nms_per_class
from instancezoo.modeling.levels import find_best, flatten_levels, index_levels, locate_points
from instancezoo.modeling.point_assignment import boxes_from_distances

from .head import FCOSOutputs


@dataclass(frozen=True)
class DecodeSettings:
    """Thresholds of inference.

    Attributes:
        score_thresh: minimum probability of a candidate, exclusive.
        thresh_with_quality: if True, the threshold is on probability times quality.
        num_candidates: maximum number of candidates of each level that enter NMS, best first.
        nms_thresh: IoU above which the better box of a class suppresses the other.
        max_per_image: maximum number of detections; more only if scores equal the lowest kept one.
    """

    score_thresh: float = 0.05
    thresh_with_quality: bool = False
    num_candidates: int = 1000
    nms_thresh: float = 0.6
    max_per_image: int = 100


def detect(
    outputs: FCOSOutputs,
    image_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    settings: DecodeSettings,
) -> list[Instances]:
    """Detections of a batch.

    Args:
        outputs: of the head.
        image_sizes: N pairs of height and width without padding.
        strides: L numbers of pixels.
        settings: thresholds.

    Returns:
        N Instances, best first, with `pred_boxes` in pixels of the network input, which may reach
        beyond the image; `scores` in [0, 1]; `pred_classes`; the points they come from, as
        `locations` (x and y in pixels) and `fpn_levels`; and with a top module `top_feat` (D each).
    """
    device = outputs.cls_logits[0].device
    points = locate_points(outputs.map_sizes, strides, device)  # (P, 2)
    levels = index_levels(outputs.map_sizes, device)  # (P,)
    (image, point, classes), quality_scores = find_candidates(outputs, levels, settings)
    centers = points[point]
    distances = flatten_levels(outputs.distances)[image, point]  # (R, 4)
    distances = distances * points.new_tensor(strides)[levels[point], None]
    fields = {
        # Not clipped, as published: a box beyond the image keeps its shape through NMS.
        "pred_boxes": boxes_from_distances(centers, distances),
        "scores": quality_scores.sqrt(),
        "pred_classes": classes,
        "locations": centers,
        "fpn_levels": levels[point],
    }
    if outputs.top_features:
        fields["top_feat"] = flatten_levels(outputs.top_features)[image, point]
    counts = image.bincount(minlength=len(image_sizes)).tolist()
    parts = zip(*(rows.split(counts) for rows in fields.values()), strict=True)
    return [
        _suppress(size, dict(zip(fields, rows, strict=True)), settings)
        for size, rows in zip(image_sizes, parts, strict=True)
    ]


def find_candidates(
    outputs: FCOSOutputs, levels: Tensor, settings: DecodeSettings
) -> tuple[Tensor, Tensor]:
    """Find the pairs of a point and a class above the threshold, the best of each image and level.

    Args:
        outputs: of the head.
        levels: (P,) long, level of each point.
        settings: thresholds.

    Returns:
        (3, R) long, image, point and class, and (R,) probability times quality.
    """
    probs = flatten_levels(outputs.cls_logits).float().sigmoid()  # (N, P, K)
    scores = probs * flatten_levels(outputs.quality_logits).float().sigmoid()
    compared = scores if settings.thresh_with_quality else probs
    found = (compared > settings.score_thresh).nonzero()  # (R, 3)
    quality_scores = scores[found.unbind(1)]
    groups = found[:, 0] * len(outputs.cls_logits) + levels[found[:, 1]]
    kept = find_best(quality_scores, groups, settings.num_candidates)
    return found[kept].T, quality_scores[kept]


def _suppress(
    image_size: tuple[int, int], fields: dict[str, Tensor], settings: DecodeSettings
) -> Instances:
    """Detections among the candidates of one image, each field with a row for each of them."""
    boxes, scores = fields["pred_boxes"], fields["scores"]
    kept = nms_per_class(boxes, scores, fields["pred_classes"], settings.nms_thresh)
    if len(kept) > settings.max_per_image:
        kept = kept[scores[kept] >= scores[kept[settings.max_per_image - 1]]]
    values = {name: rows[kept] for name, rows in fields.items()}
    return Instances(image_size, pred_boxes=Boxes(values.pop("pred_boxes")), **values)
