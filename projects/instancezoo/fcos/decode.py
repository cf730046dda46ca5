"""From maps to detections (FCOS, section 3.2), for all images and levels of a batch at once.

Legend: N images, L levels, P points of all levels, K classes, T top features, Q candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from instancezoo.layers.nms import nms_per_class
from instancezoo.modeling.levels import flatten_levels

from .head import FCOSOutputs
from .targets import list_points


@dataclass(frozen=True)
class DecodeSettings:
    """Thresholds of inference.

    Attributes:
        score_thresh: candidates have a higher probability.
        thresh_with_quality: the threshold is on probability times quality.
        num_candidates: the best of each level that enter NMS.
        nms_thresh: IoU above which the better box of a class suppresses the other.
        max_per_image: the best of an image that are kept; equal ones may make it more.
    """

    score_thresh: float = 0.05
    thresh_with_quality: bool = False
    num_candidates: int = 1000
    nms_thresh: float = 0.6
    max_per_image: int = 100


@dataclass(frozen=True)
class Candidates:
    """Pairs of a point and a class, of all images.

    Attributes:
        image, point, classes: (Q,) long.
        quality_scores: (Q,), probability times quality.
    """

    image: Tensor
    point: Tensor
    classes: Tensor
    quality_scores: Tensor

    def select(self, chosen: Tensor) -> Candidates:
        """Those that an index tensor names."""
        return Candidates(
            self.image[chosen],
            self.point[chosen],
            self.classes[chosen],
            self.quality_scores[chosen],
        )


@torch.no_grad()
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
        beyond the image; `scores` in [0, 1], `pred_classes`; where they come from: `locations`
        (x and y in pixels) and `fpn_levels`; and with a top module `top_feat` (T each).
    """
    sizes = outputs.map_sizes
    points, stride_of_points = list_points(sizes, strides, outputs.cls_logits[0].device)
    lengths = torch.tensor([height * width for height, width in sizes], device=points.device)
    levels = torch.arange(len(lengths), device=points.device).repeat_interleave(lengths)  # (P,)
    found = keep_best_of_levels(find_candidates(outputs, settings), levels, settings.num_candidates)

    center = points[found.point]
    distances = flatten_levels(outputs.distances)[found.image, found.point]
    distances = distances * stride_of_points[found.point, None]
    fields = {
        # Not clipped, as published: a box beyond the image keeps its shape through NMS.
        "pred_boxes": torch.cat([center - distances[:, :2], center + distances[:, 2:]], dim=1),
        "scores": found.quality_scores.sqrt(),
        "pred_classes": found.classes,
        "locations": center,
        "fpn_levels": levels[found.point],
    }
    if outputs.top_features:
        fields["top_feat"] = flatten_levels(outputs.top_features)[found.image, found.point]
    return [
        _suppress(size, fields, (found.image == index).nonzero().squeeze(1), settings)
        for index, size in enumerate(image_sizes)
    ]


def find_candidates(outputs: FCOSOutputs, settings: DecodeSettings) -> Candidates:
    """Every point and class above the threshold."""
    probs = flatten_levels(outputs.cls_logits).float().sigmoid()  # (N, P, K)
    scores = probs * flatten_levels(outputs.quality_logits).float().sigmoid()
    compared = scores if settings.thresh_with_quality else probs
    image, point, classes = (compared > settings.score_thresh).nonzero(as_tuple=True)
    return Candidates(image, point, classes, scores[image, point, classes])


def keep_best_of_levels(candidates: Candidates, levels: Tensor, limit: int) -> Candidates:
    """The `limit` best candidates of each image and level.

    Args:
        candidates: any.
        levels: (P,) long, level of each point.
        limit: positive.
    """
    by_score = candidates.quality_scores.argsort(descending=True, stable=True)
    groups = candidates.image * (levels.amax() + 1) + levels[candidates.point]
    # Stable: within its group each candidate keeps its place among the scores.
    groups, by_group = groups[by_score].sort(stable=True)
    rank = torch.arange(len(groups), device=groups.device) - torch.searchsorted(groups, groups)
    return candidates.select(by_score[by_group[rank < limit]])


def _suppress(
    image_size: tuple[int, int],
    fields: dict[str, Tensor],
    chosen: Tensor,
    settings: DecodeSettings,
) -> Instances:
    """Detections among the candidates of one image, which `chosen` names."""
    boxes, scores = fields["pred_boxes"][chosen], fields["scores"][chosen]
    kept = nms_per_class(boxes, scores, fields["pred_classes"][chosen], settings.nms_thresh)
    if len(kept) > settings.max_per_image:
        kept = kept[scores[kept] >= scores[kept[settings.max_per_image - 1]]]
    values = {name: field[chosen[kept]] for name, field in fields.items()}
    return Instances(image_size, pred_boxes=Boxes(values.pop("pred_boxes")), **values)
