"""Average precision per class, per size and per attribute, as data and as aligned text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from instancezoo.evaluation.average_precision import (
    AREA_NAMES,
    DEFAULT_MAX_DETS,
    Evaluation,
    evaluate_by_area,
)
from instancezoo.evaluation.ground_truth import BoxOrMask, GroundTruth, find_usable
from instancezoo.evaluation.matching import find_owners
from instancezoo.evaluation.results import ResultsFile

Row = dict[str, Any]

# COCO's limits in pixels, both ends inclusive
_AREA_LIMITS = dict(
    zip(AREA_NAMES, ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)), strict=True)
)
# Areas that say "counts" and "ignored" to COCO: its widest range starts at 0.
_COUNTED, _IGNORED = 1.0, -1.0


def tabulate_classes(evaluation: Evaluation, ground_truth: GroundTruth) -> list[Row]:
    """One row for each class: number of objects, AP, AP50, AP75 and average recall."""
    counts = Counter(annotation["category_id"] for annotation in _objects(ground_truth, evaluation))
    return [
        {
            "class": category["name"],
            "objects": counts[category["id"]],
            **_list_scores(evaluation, index=index),
        }
        for index, category in enumerate(ground_truth.categories)
    ]


def tabulate_sizes(evaluation: Evaluation, ground_truth: GroundTruth) -> list[Row]:
    """One row for each of COCO's sizes (small: up to 32 x 32 pixels, large: from 96 x 96)."""
    areas = np.array([annotation["area"] for annotation in _objects(ground_truth, evaluation)])
    return [
        {
            "size": name,
            "objects": int(((areas >= low) & (areas <= high)).sum()),
            **_list_scores(evaluation, area=name),
        }
        for name, (low, high) in _AREA_LIMITS.items()
    ]


def tabulate_attributes(
    ground_truth: GroundTruth,
    results: ResultsFile,
    iou_type: BoxOrMask,
    backend: str = "hotcoco",
    max_dets: Sequence[int] = DEFAULT_MAX_DETS,
) -> list[Row]:
    """One row for each attribute of the annotations (`"attributes": {"holes": true, ...}`).

    Objects without the attribute are ignored the way COCO ignores objects of another size, not as
    crowds: a crowd takes any number of detections and measures overlap by the detection's area
    alone. So an ignored object is still matched one to one at the ordinary IoU. A detection that
    matches nothing is charged to the object that it overlaps most, whatever the class: it counts
    as false if that object has the attribute or if it lies on background, else it is ignored.

    Returns:
        Rows with `attribute`, `objects`, `AP`, `AP50`, `AP75`, `AR`; none without attributes.
    """
    rows = []
    for attribute in ground_truth.attributes():
        annotations = ground_truth.select(iou_type)
        for annotation in annotations:
            annotation["area"] = _COUNTED if _has(annotation, attribute) else _IGNORED
        charged = _charge_results(ground_truth, results, iou_type, attribute)
        evaluation = evaluate_by_area(
            ground_truth, annotations, charged, iou_type, backend, max_dets
        )
        objects = _objects(ground_truth, evaluation)
        rows.append(
            {
                "attribute": attribute,
                "objects": sum(_has(annotation, attribute) for annotation in objects),
                **_list_scores(evaluation),
            }
        )
    return rows


def format_table(rows: list[Row]) -> str:
    """Rows as aligned plain text, numbers with one decimal, "-" where there is none."""
    shown = [
        {key: None if value != value else value for key, value in row.items()}  # NaN != NaN
        for row in rows
    ]
    return tabulate(shown, headers="keys", floatfmt=".1f", numalign="right", missingval="-")


def _list_scores(evaluation: Evaluation, area: str = "all", index: int | None = None) -> Row:
    return {
        "AP": evaluation.ap(None, area, index),
        "AP50": evaluation.ap(0.5, area, index),
        "AP75": evaluation.ap(0.75, area, index),
        "AR": evaluation.average_recall(None, area, index),
    }


def _charge_results(
    ground_truth: GroundTruth, results: ResultsFile, iou_type: BoxOrMask, attribute: str
) -> Iterator[dict[str, Any]]:
    for image_id, found in results:
        rows = list(find_usable(found, iou_type))
        annotations = ground_truth.annotations_of(image_id)
        owners = find_owners(rows, annotations, iou_type, ground_truth.images[image_id])
        for row, owner in zip(rows, owners, strict=True):
            counts = owner < 0 or _has(annotations[owner], attribute)
            yield {**row, "area": _COUNTED if counts else _IGNORED}


def _has(annotation: dict[str, Any], attribute: str) -> bool:
    return bool((annotation.get("attributes") or {}).get(attribute, False))


def _objects(ground_truth: GroundTruth, evaluation: Evaluation) -> list[dict[str, Any]]:
    annotations = ground_truth.select(evaluation.iou_type)
    return [annotation for annotation in annotations if not annotation["iscrowd"]]
