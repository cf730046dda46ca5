"""The score of the 2018 Data Science Bowl: found objects over found, false and missed ones.

Unlike average precision it takes every detection alike, whatever its score: a model has to decide
what it reports. R results of an image, M its objects.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from instancezoo.evaluation.average_precision import IOU_THRESHOLDS
from instancezoo.evaluation.ground_truth import GroundTruth, find_score, find_usable
from instancezoo.evaluation.matching import compute_ious

DSB_THRESHOLDS = IOU_THRESHOLDS
# Share of a detection inside a crowd region from which on it does not count.
_CROWD_SHARE = 0.5


def dsb_score(
    ground_truth: GroundTruth, results: Iterable[dict[str, Any]], score_thresh: float = 0.0
) -> float:
    """Mean over images and IoU thresholds (0.5 to 0.95) of TP / (TP + FP + FN).

    TP are objects with exactly one detection of their class above the threshold, FP detections
    that exceed it with no object, FN objects that no detection exceeds it with. Detections on
    crowd regions do not count. An image with neither objects nor detections scores 1.

    Args:
        ground_truth: annotations of the data set; all its images count.
        results: COCO results with masks.
        score_thresh: detections with a lower score are left out.

    Returns:
        A value in [0, 1]; NaN without images.
    """
    grouped = defaultdict(list)
    for result in find_usable(results, "segm"):
        if find_score(result, "segm") >= score_thresh:
            grouped[result["image_id"]].append(result)
    scores = [
        score_image(count_matches(ground_truth, image_id, grouped.get(image_id, []))).mean()
        for image_id in ground_truth.images
    ]
    return float(np.mean(scores)) if scores else float("nan")


def score_image(counts: np.ndarray) -> np.ndarray:
    """TP / (TP + FP + FN) of `count_matches` of each threshold (10,), 1 for nothing."""
    total = counts.sum(axis=0)
    return np.where(total > 0, counts[0] / np.maximum(total, 1), 1.0)


def count_matches(
    ground_truth: GroundTruth, image_id: Any, results: list[dict[str, Any]]
) -> np.ndarray:
    """Count found objects, false detections and missed objects of an image.

    Args:
        ground_truth: annotations of the data set.
        image_id: id of the image.
        results: R COCO results of the image, with masks.

    Returns:
        (3, 10) int: TP, FP, FN for each of `DSB_THRESHOLDS`.
    """
    annotations = ground_truth.annotations_of(image_id)
    ious = compute_ious(ground_truth, image_id, results, "segm")  # (R, M)
    is_crowd = np.array([annotation["iscrowd"] for annotation in annotations], dtype=bool)
    ignored = (ious[:, is_crowd] > _CROWD_SHARE).any(axis=1)
    classes = [np.array([x["category_id"] for x in xs], int) for xs in (results, annotations)]
    same = classes[0][:, None] == classes[1]
    ious = np.where(same, ious, 0.0)[:, ~is_crowd]
    hits = ious > DSB_THRESHOLDS[:, None, None]  # (10, R, M)
    found = hits.sum(axis=1)  # (10, M)
    is_false = ~hits.any(axis=2) & ~ignored
    return np.stack([(found == 1).sum(axis=1), is_false.sum(axis=1), (found == 0).sum(axis=1)])
