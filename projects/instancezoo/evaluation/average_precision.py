"""COCO average precision by hotcoco or pycocotools, behind one function.

K classes, J limits of detections per image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
import pycocotools.mask as mask_codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from instancezoo.data.coco_dataset import read_json
from instancezoo.data.coco_values import order_ids
from instancezoo.errors import ZooError, check_choice
from instancezoo.evaluation.ground_truth import (
    BoxOrMask,
    GroundTruth,
    find_key,
    find_score,
    find_usable,
)

BACKENDS = ("hotcoco", "pycocotools")
AREA_NAMES = ("all", "small", "medium", "large")
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
# COCO's own limits of detections per image and class.
DEFAULT_MAX_DETS = (1, 10, 100)


@dataclass(frozen=True)
class Evaluation:
    """COCO's precision and recall, -1 where a class has no object.

    Attributes:
        iou_type: "bbox" or "segm".
        precision: (10, 101, K, 4, J) in [0, 1] or -1, by `IOU_THRESHOLDS`, recall from 0 to 1,
            class, `AREA_NAMES` and limit of detections, ascending.
        recall: (10, K, 4, J) in [0, 1] or -1, the highest recall.
        class_names: K names, ascending by category id.
        max_dets: J limits of detections per image and class, ascending.
    """

    iou_type: BoxOrMask
    precision: np.ndarray
    recall: np.ndarray
    class_names: list[str]
    max_dets: tuple[int, ...] = DEFAULT_MAX_DETS

    def at_limit(self, limit: int) -> Evaluation:
        """The same evaluation with one of `max_dets` as the largest limit."""
        count = self.max_dets.index(limit) + 1
        return dataclasses.replace(
            self,
            precision=self.precision[..., :count],
            recall=self.recall[..., :count],
            max_dets=self.max_dets[:count],
        )

    def ap(self, iou: float | None = None, area: str = "all", index: int | None = None) -> float:
        """Average precision times 100, at the largest limit of detections.

        Args:
            iou: one threshold, or None for the mean over all.
            area: one of `AREA_NAMES`.
            index: one class, or None for the mean over those that have objects.

        Returns:
            A value in [0, 100]; NaN where there is no such object.
        """
        precision = self.precision
        if iou is not None:
            precision = precision[np.isclose(IOU_THRESHOLDS, iou)]
        return _average(precision, area, index)

    def summarize(self, area: str = "all", index: int | None = None) -> dict[str, float]:
        """AP, AP50, AP75 and AR (average recall), for the arguments of `ap`."""
        ious = {"AP": None, "AP50": 0.5, "AP75": 0.75}
        ap = {name: self.ap(iou, area, index) for name, iou in ious.items()}
        return ap | {"AR": _average(self.recall, area, index)}

    def metrics(self) -> dict[str, float]:
        """The entries of Detectron2's `COCOEvaluator`: AP to APl, then `AP-<class>`."""
        metrics = {"AP": self.ap(), "AP50": self.ap(0.5), "AP75": self.ap(0.75)}
        metrics |= {f"AP{area[0]}": self.ap(area=area) for area in AREA_NAMES[1:]}
        if len(self.class_names) > 1:  # Detectron2 leaves out a single class
            for index, name in enumerate(self.class_names):
                metrics[f"AP-{name}"] = self.ap(index=index)
        return metrics


def evaluate_results(
    ground_truth: str | Path | dict[str, Any] | GroundTruth,
    results: str | Path | Iterable[dict[str, Any]],
    iou_type: BoxOrMask,
    backend: str = "hotcoco",
    max_dets: Sequence[int] = DEFAULT_MAX_DETS,
) -> Evaluation:
    """Compute COCO average precision.

    An object's size is the area of its mask for "segm" and of its box for "bbox", as in Detectron2.

    Args:
        ground_truth: COCO JSON, as a path or as its content.
        results: COCO results, as a path or an iterable, which is read once and never held whole.
        iou_type: "bbox" or "segm".
        backend: "hotcoco" or "pycocotools"; both give the same arrays.
        max_dets: limits of detections per image and class, as in COCO: of each class, the most
            confident ones of an image count.

    Raises:
        ConfigError: unknown backend or IoU type.
        ZooError: a result of an unknown image, or a mask of a wrong size.
    """
    if not isinstance(ground_truth, GroundTruth):
        ground_truth = GroundTruth.read(ground_truth)
    rows = read_json(results) if isinstance(results, str | Path) else results
    key = find_key(iou_type)
    # The RLE of masks or the box (x, y, width, height).
    measure = mask_codec.area if iou_type == "segm" else lambda box: box[2] * box[3]
    measured = ({**row, "area": float(measure(row[key]))} for row in find_usable(rows, iou_type))
    annotations = ground_truth.select(iou_type)
    return evaluate_by_area(ground_truth, annotations, measured, iou_type, backend, max_dets)


def evaluate_by_area(
    ground_truth: GroundTruth,
    annotations: list[dict[str, Any]],
    results: Iterable[dict[str, Any]],
    iou_type: BoxOrMask,
    backend: str,
    max_dets: Sequence[int] = DEFAULT_MAX_DETS,
) -> Evaluation:
    """`evaluate_results` with the given values of `area`.

    COCO ignores objects outside the current range of areas, and detections outside it that match
    nothing, so the areas decide what is ignored.

    Args:
        ground_truth: images and categories.
        annotations: objects to find, with `area`.
        results: detections with `area`.
    """
    check_choice("TEST.COCO_BACKEND", backend, BACKENDS)
    limits = sorted(max_dets)
    # Numbers instead of the image ids, which may be of any type: hotcoco accepts only numbers. They
    # ascend with the ids, because the order of the images decides between equal scores.
    ids = sorted(ground_truth.images, key=order_ids)
    numbers = {image_id: number for number, image_id in enumerate(ids)}
    # Only what is compared: hotcoco is strict about the types of all other keys.
    used = ("id", "category_id", "iscrowd", "area", "bbox", "segmentation")
    objects = [
        {key: annotation[key] for key in used if key in annotation}
        | {"image_id": numbers[annotation["image_id"]]}
        for annotation in annotations
    ]
    head = {
        "images": [
            {"id": numbers[image_id], "height": image["height"], "width": image["width"]}
            for image_id, image in ground_truth.images.items()
        ],
        "categories": [{key: c[key] for key in ("id", "name")} for c in ground_truth.categories],
    }
    keys = ("category_id", "area", find_key(iou_type))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        with path.open("w", encoding="utf-8") as file:
            file.write(json.dumps(head)[:-1] + ', "annotations": [')
            # From 1: pycocotools takes 0 for "no match".
            for number, result in enumerate(results, start=1):
                _check_result(result, ground_truth, iou_type)
                row = {key: result[key] for key in keys}
                row |= {"id": number, "image_id": numbers[result["image_id"]], "iscrowd": 0}
                row["score"] = find_score(result, iou_type)
                file.write("," * (number > 1) + json.dumps(row))
            file.write("]}")
        with contextlib.redirect_stdout(io.StringIO()):
            dataset = {**head, "annotations": objects}
            evaluator = _start_evaluator(backend, dataset, str(path), iou_type)
            evaluator.params.maxDets = limits
            evaluator.evaluate()
            evaluator.accumulate()
    precision, recall = (np.asarray(evaluator.eval[key]) for key in ("precision", "recall"))
    names = [category["name"] for category in ground_truth.categories]
    return Evaluation(iou_type, precision, recall, names, tuple(limits))


def _start_evaluator(
    backend: str, dataset: dict[str, Any], results_path: str, iou_type: BoxOrMask
) -> Any:
    # Both read the results as a data set, because their methods for results measure areas again.
    if backend == "hotcoco":
        return hotcoco.COCOeval(hotcoco.COCO(dataset), hotcoco.COCO(results_path), iou_type)
    truth = COCO()
    truth.dataset = dataset
    truth.createIndex()
    return COCOeval(truth, COCO(results_path), iou_type)


def _check_result(result: dict[str, Any], ground_truth: GroundTruth, iou_type: BoxOrMask) -> None:
    image = ground_truth.images.get(result["image_id"])
    if image is None:
        raise ZooError(
            f"there are results of image {result['image_id']}, but {ground_truth.source} has no "
            "such image; evaluate on the data set that was predicted"
        )
    if iou_type == "segm":
        size, expected = list(result["segmentation"]["size"]), [image["height"], image["width"]]
        if size != expected:
            raise ZooError(
                f"image {image['id']}: a predicted mask is {size[0]} x {size[1]} (height x width), "
                f"but {ground_truth.source} has {expected[0]} x {expected[1]}; evaluate on the "
                "data set that was predicted"
            )


def _average(counts: np.ndarray, area: str, index: int | None) -> float:
    """Mean times 100 of the valid entries of (..., K, 4, J), at the largest limit."""
    counts = counts[..., AREA_NAMES.index(area), -1]  # (..., K)
    if index is not None:
        counts = counts[..., index]
    counts = counts[counts > -1]
    return float(np.mean(counts) * 100) if counts.size else float("nan")
