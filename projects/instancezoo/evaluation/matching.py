"""Which detection belongs to which object, image by image.

Legend: D detections, G ground-truth objects of one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_codec

from instancezoo.data.coco_masks import segmentation_to_rle
from instancezoo.evaluation.ground_truth import BoxOrMask, find_key

# A detection that overlaps no object more than this is on background.
BACKGROUND_IOU = 0.1


@dataclass(frozen=True)
class Matches:
    """How the detections of one image meet its objects.

    Attributes:
        objects: (D,) int, index of the matched annotation, -1 for none.
        ious: (D,) IoU with it, 0 for none.
        is_ignored: (D,) bool, unmatched but on a crowd region: neither right nor wrong.
        scores: (D,) confidence.
        num_objects: number of annotations that are no crowds.
    """

    objects: np.ndarray
    ious: np.ndarray
    is_ignored: np.ndarray
    scores: np.ndarray
    num_objects: int

    def quality(self, score_threshold: float) -> float:
        """How good the picture looks, in [0, 1], with detections from this score on.

        F1 at the matching threshold with every match weighted by its IoU: the sum of the matches'
        IoU over (matches + half the false detections + half the missed objects). NaN if there is
        nothing to find and nothing found.
        """
        kept = (self.scores >= score_threshold) & ~self.is_ignored
        matched = kept & (self.objects >= 0)
        denominator = (kept.sum() + self.num_objects) / 2
        return float(self.ious[matched].sum() / denominator) if denominator else float("nan")


def compute_ious(
    results: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    iou_type: BoxOrMask,
    image: dict[str, Any],
) -> np.ndarray:
    """IoU of all detections with all objects of one image, whatever their classes.

    With a crowd region it is the part of the detection that lies inside, as in COCO.

    Args:
        results: D COCO results.
        annotations: G COCO annotations.
        iou_type: "bbox" or "segm".
        image: COCO image record, for the size.

    Returns:
        (D, G) float64; 0 for objects that have no box or no mask.
    """
    form = find_key(iou_type)
    ious = np.zeros((len(results), len(annotations)))
    usable = [index for index, annotation in enumerate(annotations) if annotation.get(form)]
    if not results or not usable:
        return ious
    objects: Any = [annotations[index][form] for index in usable]
    detections: Any = [result[form] for result in results]
    if iou_type == "segm":
        size = image["height"], image["width"]
        objects = [segmentation_to_rle(segmentation, *size) for segmentation in objects]
    else:
        objects, detections = np.array(objects, float), np.array(detections, float)
    crowds = [annotations[index]["iscrowd"] for index in usable]
    ious[:, usable] = mask_codec.iou(detections, objects, crowds)
    return ious


def match_detections(
    results: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    iou_type: BoxOrMask,
    image: dict[str, Any],
    iou_threshold: float = 0.5,
) -> Matches:
    """Give every detection, from the most confident on, the best free object of its class."""
    ious = compute_ious(results, annotations, iou_type, image)
    is_crowd = np.array([annotation["iscrowd"] for annotation in annotations], dtype=bool)
    result_classes = np.array([result["category_id"] for result in results], dtype=int)
    object_classes = np.array([annotation["category_id"] for annotation in annotations], dtype=int)
    ious = np.where(result_classes[:, None] == object_classes[None, :], ious, 0.0)
    scores = np.array([result["score"] for result in results], dtype=float)
    objects = np.full(len(results), -1)
    free = np.where(is_crowd, 0.0, 1.0)
    for detection in np.argsort(-scores, kind="stable") if len(annotations) else []:
        best = int(np.argmax(ious[detection] * free))
        if ious[detection, best] * free[best] >= iou_threshold:
            objects[detection] = best
            free[best] = 0.0
    is_matched = objects >= 0
    on_crowd = (ious[:, is_crowd] >= iou_threshold).any(axis=1)
    matched_ious = ious[np.flatnonzero(is_matched), objects[is_matched]]
    all_ious = np.zeros(len(results))
    all_ious[is_matched] = matched_ious
    return Matches(objects, all_ious, on_crowd & ~is_matched, scores, int((~is_crowd).sum()))


def find_owners(
    results: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    iou_type: BoxOrMask,
    image: dict[str, Any],
) -> np.ndarray:
    """Index of the object that each detection overlaps most, whatever its class.

    Returns:
        (D,) int; -1 where no object but a crowd is overlapped by more than `BACKGROUND_IOU`.
    """
    if not annotations:
        return np.full(len(results), -1)
    ious = compute_ious(results, annotations, iou_type, image)
    ious[:, [bool(annotation["iscrowd"]) for annotation in annotations]] = 0.0
    return np.where(ious.max(axis=1) > BACKGROUND_IOU, ious.argmax(axis=1), -1)
