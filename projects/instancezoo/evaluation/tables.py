"""Average precision per class, size and attribute, as data and as aligned text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

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

# COCO's limits of `AREA_NAMES` in pixels, both included.
_AREA_LIMITS = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))
# Areas of counted and of ignored entries: COCO's widest range starts at 0.
_COUNTED, _IGNORED = 1.0, -1.0


def tabulate_classes(evaluation: Evaluation, ground_truth: GroundTruth) -> list[Row]:
    """One row per class: number of objects, AP, AP50, AP75 and average recall."""
    objects = _select_objects(ground_truth, evaluation.iou_type)
    counts = Counter(annotation["category_id"] for annotation in objects)
    return [
        {"class": category["name"], "objects": counts[category["id"]]}
        | evaluation.summarize(index=index)
        for index, category in enumerate(ground_truth.categories)
    ]


def tabulate_sizes(evaluation: Evaluation, ground_truth: GroundTruth) -> list[Row]:
    """One row for each of COCO's sizes (small: up to 32 x 32 pixels, large: from 96 x 96)."""
    objects = _select_objects(ground_truth, evaluation.iou_type)
    return [
        {"size": name, "objects": sum(low <= annotation["area"] <= high for annotation in objects)}
        | evaluation.summarize(name)
        for name, (low, high) in zip(AREA_NAMES, _AREA_LIMITS, strict=True)
    ]


def tabulate_attributes(
    ground_truth: GroundTruth,
    results: ResultsFile,
    iou_type: BoxOrMask,
    backend: str = "hotcoco",
    max_dets: Sequence[int] = DEFAULT_MAX_DETS,
) -> list[Row]:
    """One row per attribute of the annotations (`"attributes": {"holes": true, ...}`).

    Objects without the attribute are ignored as COCO ignores objects of another size, so they are
    still matched one to one at the usual IoU. (Crowds would take any number of detections, with
    overlap measured by the detection's area alone.) A detection that matches nothing belongs to the
    object that it overlaps most, regardless of class: it counts as false if that object has the
    attribute or if it lies on background, else it is ignored.

    Returns:
        Rows with `attribute`, `objects`, `AP`, `AP50`, `AP75`, `AR`; none without attributes.
    """
    rows = []
    for attribute in ground_truth.attributes():
        annotations = ground_truth.select(iou_type)
        for annotation in annotations:
            annotation["area"] = _COUNTED if annotation["attributes"].get(attribute) else _IGNORED
        marked = _mark_results(ground_truth, results, iou_type, attribute)
        evaluation = evaluate_by_area(
            ground_truth, annotations, marked, iou_type, backend, max_dets
        )
        num_objects = sum(a["area"] == _COUNTED and not a["iscrowd"] for a in annotations)
        rows.append({"attribute": attribute, "objects": num_objects} | evaluation.summarize())
    return rows


def format_table(rows: list[Row]) -> str:
    """Rows as aligned plain text, numbers with one decimal, "-" for NaN."""
    shown = [
        {key: None if value != value else value for key, value in row.items()}  # NaN != NaN
        for row in rows
    ]
    return tabulate(shown, headers="keys", floatfmt=".1f", numalign="right", missingval="-")


def _mark_results(
    ground_truth: GroundTruth, results: ResultsFile, iou_type: BoxOrMask, attribute: str
) -> Iterator[dict[str, Any]]:
    """Results with an `area` by which they are counted or ignored if they match nothing."""
    for image_id, found in results:
        rows = list(find_usable(found, iou_type))
        annotations = ground_truth.annotations_of(image_id)
        owners = find_owners(ground_truth, image_id, rows, iou_type)
        for row, owner in zip(rows, owners, strict=True):
            counts = owner < 0 or annotations[owner]["attributes"].get(attribute)
            yield {**row, "area": _COUNTED if counts else _IGNORED}


def _select_objects(ground_truth: GroundTruth, iou_type: BoxOrMask) -> list[dict[str, Any]]:
    return [item for item in ground_truth.select(iou_type) if not item["iscrowd"]]
