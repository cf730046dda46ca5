"""From the head's predictions to detections (YOLACT, sections 3.2 and 3.3; YOLACT++, 6.1).

Legend: N images, P anchors of all levels, R candidates of an image, K classes, D prototypes,
M detections, H W size of the prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from instancezoo.layers.budget import DEFAULT_BUDGET
from instancezoo.layers.fast_nms import cross_class_fast_nms, exact_nms, fast_nms
from instancezoo.modeling.masks import PrototypeMasks

from .head import MaskIoUNet, YOLACTOutputs
from .targets import decode_boxes

NMS_TYPES = ("fast", "cross_class", "exact")
# Added to logits, so that rounding loses no candidate; the exact comparison follows.
_MARGIN = 1e-2
# Of the mask IoU network: the masks and its first maps.
_BYTES_PER_CELL = 64


@dataclass(frozen=True)
class DecodeSettings:
    """Settings of inference.

    Attributes:
        candidate_thresh: probability that an anchor's best class must exceed.
        score_thresh: score that a detection must exceed.
        nms_type: one of `NMS_TYPES`.
        top_k: candidates of each class that enter NMS, best first.
        nms_thresh: IoU above which a better candidate suppresses another.
        max_per_image: maximum number of detections.
        rescore_boxes: if True, scores are those of the masks.
    """

    candidate_thresh: float = 0.05
    score_thresh: float = 0.0
    nms_type: str = "fast"
    top_k: int = 200
    nms_thresh: float = 0.5
    max_per_image: int = 100
    rescore_boxes: bool = False


def decode_outputs(
    outputs: YOLACTOutputs,
    anchors: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    padded_size: tuple[int, int],
    mask_iou: MaskIoUNet | None,
    settings: DecodeSettings,
) -> list[Instances]:
    """Detections of a batch.

    Args:
        outputs: of the head.
        anchors: (P, 4) from `make_anchors`.
        image_sizes: N pairs, height and width without padding.
        padded_size: height and width of the network input.
        mask_iou: re-scoring network of YOLACT++.
        settings: thresholds.

    Returns:
        N Instances, best score first, with `pred_boxes` in pixels of the network input, not
        clipped, `scores`, `pred_classes`, `pred_masks` (`PrototypeMasks`) and, with `mask_iou`,
        `mask_scores`.
    """
    height, width = outputs.prototypes.shape[2:]
    scale = anchors.new_tensor([width / padded_size[1], height / padded_size[0]]).repeat(2)
    results = []
    for index, image_size in enumerate(image_sizes):
        rows, probs = find_candidates(outputs.cls_logits[index], settings.candidate_thresh)
        boxes = decode_boxes(outputs.deltas[index, rows].float(), anchors[rows])  # (R, 4)
        kept, classes, scores = suppress_duplicates(boxes, probs, settings)
        masks = PrototypeMasks(
            outputs.coefficients[index, rows[kept]].float(),
            boxes[kept] * scale,
            outputs.prototypes[index].float(),
        )
        found = Instances(
            image_size,
            pred_boxes=Boxes(boxes[kept]),
            scores=scores,
            pred_classes=classes,
            pred_masks=masks,
        )
        if not settings.rescore_boxes:
            found = found[found.scores > settings.score_thresh]
        if mask_iou is not None:
            found = rescore_masks(found, mask_iou, settings.rescore_boxes)
        results.append(found[found.scores > settings.score_thresh])
    return results


def find_candidates(cls_logits: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Anchors whose best class is probable enough.

    Args:
        cls_logits: (P, K + 1), background first.
        threshold: of the probability, exclusive.

    Returns:
        (R,) long, and their class probabilities (R, K) without the background.
    """
    logits = cls_logits.float()
    if 0 < threshold < 1:
        # The softmax of two classes is never smaller than that of all: most anchors fail already.
        lead = logits[:, 1:].amax(dim=1) - logits[:, 0]
        rows = (lead > math.log(threshold / (1 - threshold)) - _MARGIN).nonzero().squeeze(1)
    else:
        rows = torch.arange(len(logits), device=logits.device)
    probs = logits[rows].softmax(dim=1)[:, 1:]
    is_candidate = probs.amax(dim=1) > threshold
    return rows[is_candidate], probs[is_candidate]


def suppress_duplicates(
    boxes: Tensor, probs: Tensor, settings: DecodeSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """NMS of one image's candidates.

    Args:
        boxes: (R, 4) XYXY in pixels of the network input.
        probs: (R, K).
        settings: thresholds.

    Returns:
        (M,) long rows, (M,) long classes and (M,) scores, best first.
    """
    if settings.nms_type == "fast":
        rows, classes, scores = fast_nms(
            boxes,
            probs,
            iou_threshold=settings.nms_thresh,
            top_k=settings.top_k,
            max_detections=settings.max_per_image,
        )
    elif settings.nms_type == "cross_class":
        rows, classes, scores = cross_class_fast_nms(
            boxes, probs, iou_threshold=settings.nms_thresh, top_k=settings.top_k
        )
        # The official code has no limit here.
        rows, classes, scores = (part[: settings.max_per_image] for part in (rows, classes, scores))
    else:
        rows, classes, scores = exact_nms(
            boxes,
            probs,
            score_threshold=settings.candidate_thresh,
            iou_threshold=settings.nms_thresh,
            max_detections=settings.max_per_image,
        )
    return rows, classes, scores


def rescore_masks(found: Instances, mask_iou: MaskIoUNet, rescore_boxes: bool) -> Instances:
    """Add `mask_scores`, the scores times the predicted IoU of the masks (YOLACT++, section 6.1).

    Args:
        found: M detections.
        mask_iou: see `MaskIoUNet`.
        rescore_boxes: if True, they become the scores, and the best ones are first.
    """
    height, width = found.pred_masks.prototypes.shape[1:]
    size = max(1, DEFAULT_BUDGET // (_BYTES_PER_CELL * height * width))
    numbers = torch.arange(found.scores.shape[0], device=found.scores.device)
    ious = torch.cat(
        [mask_iou(found.pred_masks[rows].cropped_scores()) for rows in numbers.split(size)]
    )  # (M, K)
    of_class = ious.float().gather(1, found.pred_classes[:, None]).squeeze(1)
    found.mask_scores = found.scores * of_class
    if not rescore_boxes:
        return found
    found.scores = found.mask_scores
    return found[found.scores.argsort(descending=True, stable=True)]
