"""Matching of detections with objects, image by image.

R results (detections) of an image, M its instances in the ground truth, crowds included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_codec

from instancezoo.data.coco_masks import segmentation_to_rle
from instancezoo.evaluation.ground_truth import BoxOrMask, GroundTruth, find_key, find_score

# A detection lies on background if it overlaps no object by more than this.
BACKGROUND_IOU = 0.1


@dataclass(frozen=True)
class Matches:
    """Detections of one image and the objects that they match."""

    objects: np.ndarray  # (R,) int, index of the matched annotation, -1 for none
    ious: np.ndarray  # (R,) IoU with it, 0 for none
    is_ignored: np.ndarray  # (R,) bool, unmatched but on a crowd region: neither right nor wrong
    scores: np.ndarray  # (R,) confidence
    num_objects: int  # number of annotations except crowds

    def quality(self, score_threshold: float) -> float:
        """Quality of the detections from a score on, in [0, 1].

        F1 at the matching threshold with every match weighted by its IoU: the sum of the matches'
        IoU over (matches + half the false detections + half the missed objects). NaN without
        objects and detections.
        """
        kept = (self.scores >= score_threshold) & ~self.is_ignored
        matched = kept & (self.objects >= 0)
        denominator = (kept.sum() + self.num_objects) / 2
        return float(self.ious[matched].sum() / denominator) if denominator else float("nan")


def compute_ious(
    ground_truth: GroundTruth, image_id: Any, results: list[dict[str, Any]], iou_type: BoxOrMask
) -> np.ndarray:
    """IoU of all detections with all objects of one image, regardless of classes.

    With a crowd region it is the share of the detection that lies inside, as in COCO.

    Args:
        ground_truth: annotations of the data set.
        image_id: id of the image.
        results: R COCO results of the image.
        iou_type: "bbox" or "segm".

    Returns:
        (R, M) float64; 0 without a box or a mask.
    """
    key, annotations = find_key(iou_type), ground_truth.annotations_of(image_id)
    ious = np.zeros((len(results), len(annotations)))
    rows, columns = (
        [index for index, entry in enumerate(entries) if entry.get(key)]
        for entries in (results, annotations)
    )
    if not rows or not columns:
        return ious
    detections: Any = [results[index][key] for index in rows]
    objects: Any = [annotations[index][key] for index in columns]
    if iou_type == "segm":
        size = [ground_truth.images[image_id][side] for side in ("height", "width")]
        objects = [segmentation_to_rle(segmentation, *size) for segmentation in objects]
    else:
        objects, detections = np.array(objects, float), np.array(detections, float)
    crowds = [annotations[index]["iscrowd"] for index in columns]
    ious[np.ix_(rows, columns)] = mask_codec.iou(detections, objects, crowds)
    return ious


def match_detections(
    ground_truth: GroundTruth,
    image_id: Any,
    results: list[dict[str, Any]],
    iou_type: BoxOrMask,
    iou_threshold: float = 0.5,
) -> Matches:
    """Match detections, the most confident first, each with the best free object of its class."""
    ious = compute_ious(ground_truth, image_id, results, iou_type)
    annotations = ground_truth.annotations_of(image_id)
    is_crowd = np.array([annotation["iscrowd"] for annotation in annotations], dtype=bool)
    result_classes = np.array([result["category_id"] for result in results], dtype=int)
    object_classes = np.array([annotation["category_id"] for annotation in annotations], dtype=int)
    ious = np.where(result_classes[:, None] == object_classes[None, :], ious, 0.0)
    scores = np.array([find_score(result, iou_type) for result in results], dtype=float)
    objects, matched_ious = np.full(len(results), -1), np.zeros(len(results))
    free = np.where(is_crowd, 0.0, 1.0)
    for detection in np.argsort(-scores, kind="stable") if len(annotations) else []:
        best = int(np.argmax(ious[detection] * free))
        if ious[detection, best] * free[best] >= iou_threshold:
            objects[detection], matched_ious[detection] = best, ious[detection, best]
            free[best] = 0.0
    is_ignored = (ious[:, is_crowd] >= iou_threshold).any(axis=1) & (objects < 0)
    return Matches(objects, matched_ious, is_ignored, scores, int((~is_crowd).sum()))


def find_owners(
    ground_truth: GroundTruth, image_id: Any, results: list[dict[str, Any]], iou_type: BoxOrMask
) -> np.ndarray:
    """Index of the object that each detection overlaps most, regardless of its class.

    Returns:
        (R,) int; -1 if the detection overlaps no object, crowds aside, by more than
        `BACKGROUND_IOU`.
    """
    annotations = ground_truth.annotations_of(image_id)
    if not annotations:
        return np.full(len(results), -1)
    ious = compute_ious(ground_truth, image_id, results, iou_type)
    ious[:, [bool(annotation["iscrowd"]) for annotation in annotations]] = 0.0
    return np.where(ious.max(axis=1) > BACKGROUND_IOU, ious.argmax(axis=1), -1)
