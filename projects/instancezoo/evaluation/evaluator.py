"""The evaluator of every method: COCO metrics, tables and pictures from streamed results."""

from __future__ import annotations

import json
import logging
import math
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from instancezoo.data.images import ImageReader
from instancezoo.errors import check_choice
from instancezoo.evaluation.average_precision import (
    BACKENDS,
    DEFAULT_MAX_DETS,
    Evaluation,
    evaluate_results,
)
from instancezoo.evaluation.bowl_score import dsb_score
from instancezoo.evaluation.ground_truth import GroundTruth
from instancezoo.evaluation.pictures import RGB_READER, draw_pictures
from instancezoo.evaluation.results import ResultsFile, instances_to_results
from instancezoo.evaluation.tables import (
    Row,
    format_table,
    tabulate_attributes,
    tabulate_classes,
    tabulate_sizes,
)
from instancezoo.files import open_atomically, remove_leftovers

logger = logging.getLogger(__name__)
COCO_LIMIT = DEFAULT_MAX_DETS[-1]
PICTURE_FOLDER = "pictures"


class InstanceEvaluator(DatasetEvaluator):
    """Detectron2's `COCOEvaluator` for boxes and masks, in bounded memory.

    Results go to disk image by image; masks may be bool tensors or RLE. The numbers equal
    Detectron2's with two intended differences: a model that finds nothing has AP 0, not NaN, and
    all detections count, where COCO takes the 100 most confident ones of an image and class. If
    COCO's limit changes a figure, its figures are in the log and in `metrics.json` too, under
    "bbox_at_100" and "segm_at_100".

    With `output_dir` it writes `coco_instances_results.json`, `metrics.json` (one object with all
    numbers and tables, null for NaN) and `pictures/`.

    Args:
        dataset_name: a registered data set. Its annotations are the metadata's `json_file`, or
            made from Detectron2's records if there is none.
        backend: "hotcoco" or "pycocotools".
        output_dir: folder for the files; nothing is kept if None.
        num_pictures: number of best and of worst images to draw after each evaluation.
        max_dets_per_image: largest number of detections per image and class that are evaluated;
            None for all that the model gives.
        reader: of the images to draw on.
        dsb_thresh: lowest score of the detections that count for the score of the 2018 Data
            Science Bowl, "DSB" in "segm"; None for no such score.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        backend: str = "hotcoco",
        output_dir: str | None = None,
        num_pictures: int = 0,
        max_dets_per_image: int | None = None,
        reader: ImageReader = RGB_READER,
        dsb_thresh: float | None = None,
    ) -> None:
        check_choice("TEST.COCO_BACKEND", backend, BACKENDS)
        if num_pictures > 0 and output_dir is None:
            raise ValueError("pictures need a folder: set output_dir, or num_pictures=0")
        self._num_pictures = num_pictures
        self._reader = reader
        self._dataset_name = dataset_name
        self._metadata = MetadataCatalog.get(dataset_name)
        self._backend = backend
        self._output_dir = None if output_dir is None else Path(output_dir)
        if self._output_dir is not None:
            self._output_dir.mkdir(parents=True, exist_ok=True)
            for folder in (self._output_dir, self._output_dir / PICTURE_FOLDER):
                remove_leftovers(folder)
        self._max_dets_per_image = max_dets_per_image
        self._dsb_thresh = dsb_thresh
        self._results = ResultsFile(self._output_dir)
        self._has_masks, self._most_detections = False, 0

    def reset(self) -> None:
        """Discard all results."""
        self._results.close()
        self._results = ResultsFile(self._output_dir)
        self._has_masks, self._most_detections = False, 0

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Write the results of a batch to disk.

        Args:
            inputs: records with `image_id`.
            outputs: `{"instances": Instances}` each, as models return them.

        Raises:
            ZooError: a score or box is not finite, or a class is unknown; it names the image.
        """
        for record, output in zip(inputs, outputs, strict=True):
            if "instances" not in output:
                continue
            instances, image_id = output["instances"], record["image_id"]
            self._has_masks |= instances.has("pred_masks")
            rows = instances_to_results(instances, image_id, self._category_ids)
            self._most_detections = max(self._most_detections, len(rows))
            self._results.append(image_id, rows)

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Compute the metrics of all ranks' results.

        Returns:
            `{"bbox": {"AP": ..., "AP50", "AP75", "APs", "APm", "APl", "AP-<class>"...}, "segm":
            ...}` times 100, NaN where there are no such objects; "segm" only if the model makes
            masks. Empty on ranks other than 0, and if there was nothing to evaluate.
        """
        ranks = comm.all_gather((self._has_masks, self._most_detections))
        has_masks = any(rank[0] for rank in ranks)
        max_dets = _list_limits(self._max_dets_per_image, max(rank[1] for rank in ranks))
        results = self._results.gather(self._output_dir)
        if results is None:
            return OrderedDict()
        with closing(results):
            return self._evaluate(results, ("bbox", "segm") if has_masks else ("bbox",), max_dets)

    def _evaluate(
        self, results: ResultsFile, iou_types: Sequence[str], max_dets: Sequence[int]
    ) -> OrderedDict[str, dict[str, float]]:
        metrics: OrderedDict[str, dict[str, float]] = OrderedDict()
        image_ids = results.image_ids()
        if not image_ids:
            logger.warning("no image was predicted: '%s' has no metrics", self._dataset_name)
            return metrics
        if self._output_dir is not None:
            results.write_json(self._output_dir / "coco_instances_results.json")
        ground_truth = GroundTruth.read(self._find_annotations())
        if not ground_truth.is_annotated:
            logger.info("'%s' has no annotations: results are only saved", self._dataset_name)
            return metrics
        num_missing = len(ground_truth.images.keys() - set(image_ids))
        if num_missing:
            logger.warning(
                "%d of %d images of '%s' were not predicted; all their objects count as missed",
                num_missing, len(ground_truth.images), self._dataset_name,
            )  # fmt: skip
        tables, at_coco_limit = {}, {}
        for iou_type in iou_types:
            rows = (row for _, image_rows in results for row in image_rows)
            evaluation = evaluate_results(ground_truth, rows, iou_type, self._backend, max_dets)
            metrics[iou_type] = evaluation.metrics() | self._score_bowl(
                iou_type, ground_truth, results
            )
            tables[iou_type] = {
                "class": tabulate_classes(evaluation, ground_truth),
                "size": tabulate_sizes(evaluation, ground_truth),
                "attribute": tabulate_attributes(
                    ground_truth, results, iou_type, self._backend, max_dets
                ),
            }
            headlines = {max_dets[-1]: metrics[iou_type]}
            if (other := _find_figures_at_coco_limit(evaluation)) is not None:
                at_coco_limit[f"{iou_type}_at_{COCO_LIMIT}"] = headlines[COCO_LIMIT] = other
            _log_tables(iou_type, headlines, tables[iou_type])
        pictures = self._draw(ground_truth, results, iou_types[-1])
        if self._output_dir is not None:
            summary = {
                "dataset": self._dataset_name,
                "backend": self._backend,
                "num_images": len(image_ids),
                "max_dets": max_dets,
                **metrics,
                **at_coco_limit,
                "tables": tables,
                "pictures": [path.name for path in pictures],
            }
            with open_atomically(self._output_dir / "metrics.json", "w") as file:
                json.dump(_nan_to_none(summary), file, indent=1, allow_nan=False)
        return metrics

    def _score_bowl(
        self, iou_type: str, ground_truth: GroundTruth, results: ResultsFile
    ) -> dict[str, float]:
        if iou_type != "segm" or self._dsb_thresh is None:
            return {}
        rows = (row for _, image_rows in results for row in image_rows)
        return {"DSB": 100 * dsb_score(ground_truth, rows, self._dsb_thresh)}

    def _draw(self, ground_truth: GroundTruth, results: ResultsFile, iou_type: str) -> list[Path]:
        if self._num_pictures <= 0 or self._output_dir is None:
            return []
        folder = self._output_dir / PICTURE_FOLDER
        image_root = self._metadata.get("image_root", "")
        paths = draw_pictures(
            ground_truth, results, iou_type, image_root, folder, self._num_pictures, self._reader
        )
        logger.info("%d pictures, prediction beside ground truth: %s", len(paths), folder)
        return paths

    @cached_property
    def _category_ids(self) -> list[int]:
        """Category id of each contiguous class."""
        contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if contiguous is not None:
            return sorted(contiguous, key=contiguous.get)
        # Detectron2's loader numbers the classes in this order.
        categories = GroundTruth.read(self._find_annotations()).categories
        return [category["id"] for category in categories]

    def _find_annotations(self) -> str | dict[str, Any]:
        if path := self._metadata.get("json_file"):
            return PathManager.get_local_path(path)
        return convert_to_coco_dict(self._dataset_name)


def _list_limits(limit: int | None, most_detections: int) -> tuple[int, ...]:
    """COCO's limits of detections up to the wanted one; by default, one that no image reaches."""
    if limit is None:
        limit = max(COCO_LIMIT, most_detections)
    return (*(lower for lower in DEFAULT_MAX_DETS if lower < limit), limit)


def _find_figures_at_coco_limit(evaluation: Evaluation) -> dict[str, float] | None:
    """The metrics with COCO's limit of detections; None if they are equal or lie beyond."""
    if COCO_LIMIT not in evaluation.max_dets:
        return None
    figures, theirs = evaluation.metrics(), evaluation.at_limit(COCO_LIMIT).metrics()
    is_equal = np.array_equal(list(figures.values()), list(theirs.values()), equal_nan=True)
    return None if is_equal else theirs


def _log_tables(
    iou_type: str, headlines: dict[int, dict[str, float]], tables: dict[str, list[Row]]
) -> None:
    """Log the metrics of each limit of detections, and the tables at the largest."""
    rows: list[Row] = []
    for limit, metrics in headlines.items():
        row = {key: value for key, value in metrics.items() if not key.startswith("AP-")}
        rows.append({"detections": f"up to {limit}"} | row if len(headlines) > 1 else row)
    logger.info("%s:\n%s", iou_type, format_table(rows))
    for name, rows in tables.items():
        if rows:
            logger.info("%s per %s:\n%s", iou_type, name, format_table(rows))


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
