"""Boundary F-score of found objects.

It measures contours, to which mask IoU is insensitive: the contour accuracy F of Perazzi et al., "A
Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016, section 4,
averaged over the objects that were found. H W image size.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_codec

from instancezoo.data.coco_masks import segmentation_to_rle
from instancezoo.evaluation.ground_truth import GroundTruth
from instancezoo.evaluation.matching import match_detections

# Allowed distance of contours, as a share of the image's diagonal (Perazzi et al.).
DEFAULT_TOLERANCE = 0.008
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))

# image id, index of the annotation among those of the image
ObjectKey = tuple[Any, int]


def extract_contour(mask: np.ndarray) -> np.ndarray:
    """Pixels (H, W) bool of a mask (H, W) that touch its background, not the image border."""
    filled = np.ascontiguousarray(mask, dtype=np.uint8)
    # OpenCV's erosion takes pixels outside the image for foreground.
    return (filled - cv2.erode(filled, _CROSS)).astype(bool)


def compute_boundary_f(mask: np.ndarray, truth: np.ndarray, tolerance: float) -> float:
    """Harmonic mean of contour precision and recall.

    Args:
        mask, truth: (H, W) bool or 0/1.
        tolerance: allowed distance of contours in pixels.

    Returns:
        A value in [0, 1]; 1 if neither mask has a contour.
    """
    contours = extract_contour(mask), extract_contour(truth)
    if not contours[0].any() or not contours[1].any():
        return float(contours[0].any() == contours[1].any())
    x, y, width, height = cv2.boundingRect((contours[0] | contours[1]).astype(np.uint8))
    found, wanted = (contour[y : y + height, x : x + width] for contour in contours)
    precision = float((_measure_distance(wanted)[found] <= tolerance).mean())
    recall = float((_measure_distance(found)[wanted] <= tolerance).mean())
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


def score_boundaries(
    ground_truth: GroundTruth,
    results: Iterable[dict[str, Any]],
    tolerance: float = DEFAULT_TOLERANCE,
    iou_threshold: float = 0.5,
) -> dict[ObjectKey, float]:
    """Boundary F-score of each object that was found.

    Args:
        ground_truth, results: annotations and COCO results with masks.
        tolerance: allowed distance, as a share of the image's diagonal; at least one pixel.
        iou_threshold: smallest mask IoU at which a detection finds an object of its class; each
            finds one object, the most confident first.

    Returns:
        Object -> value in [0, 1].
    """
    grouped = defaultdict(list)
    for result in results:
        grouped[result["image_id"]].append(result)
    scores: dict[ObjectKey, float] = {}
    for image_id, rows in grouped.items():
        image, objects = ground_truth.images[image_id], ground_truth.annotations_of(image_id)
        size = image["height"], image["width"]
        pixels = max(1, round(tolerance * math.hypot(*size)))
        matches = match_detections(ground_truth, image_id, rows, "segm", iou_threshold)
        for row, index in zip(rows, matches.objects.tolist(), strict=True):
            if index >= 0:
                truth = segmentation_to_rle(objects[index]["segmentation"], *size)
                mask = mask_codec.decode(row["segmentation"])
                scores[image_id, index] = compute_boundary_f(mask, mask_codec.decode(truth), pixels)
    return scores


def _measure_distance(contour: np.ndarray) -> np.ndarray:
    """Distance of every pixel to the nearest pixel of a contour."""
    background = np.ascontiguousarray(~contour, dtype=np.uint8)
    return cv2.distanceTransform(background, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
