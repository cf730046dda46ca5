"""COCO average precision by hotcoco or pycocotools, behind one function.

Legend: T IoU thresholds, R recall points, K classes, A area ranges, M limits of detections.
"""

from __future__ import annotations

import contextlib
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

from instancezoo.errors import ZooError, check_choice
from instancezoo.evaluation.ground_truth import BoxOrMask, GroundTruth, find_key, find_usable

BACKENDS = ("hotcoco", "pycocotools")
IOU_TYPES = ("bbox", "segm")
AREA_NAMES = ("all", "small", "medium", "large")
DEFAULT_MAX_DETS = (1, 10, 100)


@dataclass(frozen=True)
class Evaluation:
    """What COCO counted; precision -1 where a class has no object.

    Attributes:
        iou_type: "bbox" or "segm".
        backend: who counted.
        precision: (T, R, K, A, M) in [0, 1] or -1.
        recall: (T, K, A, M) in [0, 1] or -1.
        class_names: K names, ascending by category id.
        iou_thresholds: (T,).
        max_dets: M limits of detections an image, ascending.
    """

    iou_type: BoxOrMask
    backend: str
    precision: np.ndarray
    recall: np.ndarray
    class_names: list[str]
    iou_thresholds: np.ndarray
    max_dets: tuple[int, ...]

    def ap(self, iou: float | None = None, area: str = "all", index: int | None = None) -> float:
        """Average precision times 100, at the largest limit of detections.

        Args:
            iou: one threshold, or None for the mean over all.
            area: "all", "small", "medium" or "large".
            index: one class, or None for the mean over those that have objects.

        Returns:
            A value in [0, 100]; NaN where there is no such object.
        """
        chosen = self.precision[self._pick(iou), :, :, AREA_NAMES.index(area), -1]
        return _average(chosen if index is None else chosen[:, :, index])

    def average_recall(
        self, iou: float | None = None, area: str = "all", index: int | None = None
    ) -> float:
        """Highest recall reached, averaged as in `ap`, times 100."""
        chosen = self.recall[self._pick(iou), :, AREA_NAMES.index(area), -1]
        return _average(chosen if index is None else chosen[:, index])

    def metrics(self) -> dict[str, float]:
        """The entries of Detectron2's `COCOEvaluator`: AP to APl, then `AP-<class>`."""
        metrics = {"AP": self.ap(), "AP50": self.ap(0.5), "AP75": self.ap(0.75)}
        metrics |= {f"AP{area[0]}": self.ap(area=area) for area in AREA_NAMES[1:]}
        if len(self.class_names) > 1:  # Detectron2 leaves a single class out
            for index, name in enumerate(self.class_names):
                metrics[f"AP-{name}"] = self.ap(index=index)
        return metrics

    def _pick(self, iou: float | None) -> np.ndarray:
        if iou is None:
            return np.arange(len(self.iou_thresholds))
        return np.flatnonzero(np.isclose(self.iou_thresholds, iou))


def evaluate_results(
    ground_truth: str | Path | dict[str, Any] | GroundTruth,
    results: str | Path | Iterable[dict[str, Any]],
    iou_type: BoxOrMask,
    backend: str = "hotcoco",
    max_dets: Sequence[int] = DEFAULT_MAX_DETS,
) -> Evaluation:
    """Count COCO average precision.

    An object's size is its mask's area for "segm" and its box's for "bbox", as in Detectron2.

    Args:
        ground_truth: COCO JSON, by path or read.
        results: COCO results, by path or one by one (an iterable is never held in memory by
            hotcoco's Python side).
        iou_type: "bbox" or "segm".
        backend: "hotcoco" or "pycocotools"; both give the same arrays.
        max_dets: limits of detections an image, ascending.

    Raises:
        ConfigError: unknown backend.
        ZooError: unknown IoU type, a result of an unknown image, a mask of a wrong size.
    """
    if not isinstance(ground_truth, GroundTruth):
        ground_truth = GroundTruth.read(ground_truth)
    measured = (
        {**result, "area": measure_result(result, iou_type)}
        for result in find_usable(_iterate_results(results), iou_type)
    )
    annotations = ground_truth.select(iou_type)
    return evaluate_by_area(ground_truth, annotations, measured, iou_type, backend, max_dets)


def _iterate_results(results: str | Path | Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    if isinstance(results, str | Path):
        with open(results, encoding="utf-8") as file:
            return json.load(file)
    return results


def measure_result(result: dict[str, Any], iou_type: BoxOrMask) -> float:
    """Area in pixels of a result's mask or box."""
    if iou_type == "segm":
        return float(mask_codec.area(result["segmentation"]))
    return result["bbox"][2] * result["bbox"][3]


def evaluate_by_area(
    ground_truth: GroundTruth,
    annotations: list[dict[str, Any]],
    results: Iterable[dict[str, Any]],
    iou_type: BoxOrMask,
    backend: str,
    max_dets: Sequence[int] = DEFAULT_MAX_DETS,
) -> Evaluation:
    """`evaluate_results` with every `area` as it is given.

    COCO ignores objects outside the range of areas that it is counting, and detections outside it
    that match nothing. Whoever sets the areas decides what is ignored.

    Args:
        ground_truth: images and categories.
        annotations: objects to find, with `area`; they may be changed.
        results: detections with `area`.
    """
    check_backend(backend)
    if iou_type not in IOU_TYPES:
        raise ZooError(f"unknown IoU type '{iou_type}'; known: {', '.join(IOU_TYPES)}")
    numbers = _number_images(ground_truth)
    for annotation in annotations:
        annotation["image_id"] = numbers[annotation["image_id"]]
    dataset = {
        "images": _list_images(ground_truth, numbers),
        "categories": ground_truth.categories,
        "annotations": annotations,
    }
    max_dets = tuple(sorted(max_dets))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        _write_as_dataset(path, ground_truth, numbers, results, iou_type)
        count = _count_by_hotcoco if backend == "hotcoco" else _count_by_pycocotools
        counts, thresholds = count(dataset, str(path), iou_type, list(max_dets))
    return Evaluation(
        iou_type=iou_type,
        backend=backend,
        precision=np.asarray(counts["precision"]),
        recall=np.asarray(counts["recall"]),
        class_names=[category["name"] for category in ground_truth.categories],
        iou_thresholds=np.asarray(thresholds),
        max_dets=max_dets,
    )


def check_backend(backend: str) -> None:
    """Raise `ConfigError` if no such backend is known."""
    check_choice("TEST.COCO_BACKEND", backend, BACKENDS)


def _count_by_hotcoco(
    dataset: dict[str, Any], results_path: str, iou_type: BoxOrMask, max_dets: list[int]
) -> tuple[dict[str, Any], Sequence[float]]:
    # Its load_res() would measure the areas again.
    evaluator = hotcoco.COCOeval(hotcoco.COCO(dataset), hotcoco.COCO(results_path), iou_type)
    if max_dets != evaluator.params.max_dets:
        evaluator.params.max_dets = max_dets
    evaluator.evaluate()
    evaluator.accumulate()
    assert evaluator.eval is not None
    return evaluator.eval, evaluator.params.iou_thrs


def _count_by_pycocotools(
    dataset: dict[str, Any], results_path: str, iou_type: BoxOrMask, max_dets: list[int]
) -> tuple[dict[str, Any], Sequence[float]]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        evaluator = COCOeval(truth, COCO(results_path), iou_type)
        evaluator.params.maxDets = max_dets
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval, evaluator.params.iouThrs


def _write_as_dataset(
    path: Path,
    ground_truth: GroundTruth,
    numbers: dict[Any, int],
    results: Iterable[dict[str, Any]],
    iou_type: BoxOrMask,
) -> None:
    """Write detections as a COCO data set, one by one, for both backends to read."""
    keys = ("category_id", "score", "area", find_key(iou_type))
    images = _list_images(ground_truth, numbers)
    head = {"images": images, "categories": ground_truth.categories}
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "annotations": [')
        # from 1: pycocotools takes 0 for "no match"
        for number, result in enumerate(results, start=1):
            _check_result(result, ground_truth, iou_type)
            row = {key: result[key] for key in keys} | {"image_id": numbers[result["image_id"]]}
            file.write("," * (number > 1) + json.dumps({**row, "id": number, "iscrowd": 0}))
        file.write("]}")


def _number_images(ground_truth: GroundTruth) -> dict[Any, int]:
    """A number for each image id: hotcoco takes no others, but data sets name images as they like.

    They ascend with the ids, since the order of the images decides between equal scores.
    """
    ids = ground_truth.images
    ordered = sorted(ids, key=lambda image_id: (isinstance(image_id, str), image_id))
    return {image_id: number for number, image_id in enumerate(ordered)}


def _list_images(ground_truth: GroundTruth, numbers: dict[Any, int]) -> list[dict[str, Any]]:
    return [
        {"id": numbers[image_id], "height": image["height"], "width": image["width"]}
        for image_id, image in ground_truth.images.items()
    ]


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
                f"but {ground_truth.source} says {expected[0]} x {expected[1]}"
            )


def _average(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(np.mean(values) * 100) if values.size else float("nan")
