"""Predictions of many images as one COCO file, written while they come."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from detectron2.structures import Instances

from instancezoo.data.coco_masks import measure_object
from instancezoo.errors import ZooError
from instancezoo.evaluation.results import instances_to_results
from instancezoo.files import open_atomically
from instancezoo.modeling.masks import VertexMasks

MASK_FORMS = ("rle", "polygon")


@contextmanager
def open_predictions(
    path: Path, class_names: list[str], category_ids: list[int], mask_form: str = "rle"
) -> Iterator[PredictionsFile]:
    """Open a COCO file of predictions; it takes its name when the block ends without an error.

    The file has `images`, `categories` and `annotations`; each annotation is both a COCO result
    (`image_id`, `category_id`, `bbox`, `score`, `segmentation` as RLE) and, with `id`, `area` and
    `iscrowd`, a COCO annotation. So `COCO(path)` loads it, and `truth.loadRes(annotations)` too
    if the image ids are set to those of the truth (COCO takes results as RLE only).

    Args:
        path: file to write.
        class_names: name of each contiguous class.
        category_ids: id of each contiguous class in the file.
        mask_form: one of `MASK_FORMS`. "polygon" writes what the model itself predicted, for
            annotation tools; it needs a model that predicts polygons.
    """
    with open_atomically(path, "w") as file:
        predictions = PredictionsFile(file, class_names, category_ids, mask_form)
        yield predictions
        predictions.finish()


class PredictionsFile:
    """See `open_predictions`. Annotations go to disk at once, only image names stay in memory."""

    def __init__(
        self, file: IO[str], class_names: list[str], category_ids: list[int], mask_form: str = "rle"
    ) -> None:
        self._file = file
        self._mask_form = mask_form
        self._category_ids = category_ids
        self._categories = [
            {"id": category_id, "name": name}
            for category_id, name in zip(category_ids, class_names, strict=True)
        ]
        self._images: list[dict[str, Any]] = []
        self.num_annotations = 0
        file.write('{"annotations": [')

    @property
    def num_images(self) -> int:
        """Images written so far; a video's frames count each."""
        return len(self._images)

    def add(self, file_name: str, instances: Instances, **attributes: Any) -> None:
        """Add one image and what was found in it.

        Args:
            file_name: the image's name in the file.
            instances: predictions on the CPU.
            attributes: more keys for the image's entry.

        Raises:
            ZooError: a score or box is not finite, a class has no category, or there are no
                polygons where they are asked for.
        """
        height, width = instances.image_size
        image_id = len(self._images) + 1
        results = instances_to_results(instances, image_id, self._category_ids)
        if self._mask_form == "polygon":
            for result, outlines in zip(results, _list_polygons(instances), strict=True):
                result["segmentation"] = outlines
        image = {"id": image_id, "file_name": file_name, "width": width, "height": height}
        self._images.append({**image, **attributes})
        for result in results:
            separator = ",\n" if self.num_annotations else "\n"
            self.num_annotations += 1
            annotation = {"id": self.num_annotations, **result, "iscrowd": 0}
            annotation["area"] = measure_object(result, height, width)
            self._file.write(separator + json.dumps(annotation))

    def finish(self) -> None:
        """Write what is known only at the end."""
        self._file.write('\n],\n"categories": ' + json.dumps(self._categories))
        self._file.write(',\n"images": ' + json.dumps(self._images) + "}\n")


def _list_polygons(instances: Instances) -> list[list[list[float]]]:
    if not instances.has("pred_polygons"):
        raise ZooError(
            "this model predicts no polygons: leave `--masks polygon` out to get RLE masks"
        )
    return VertexMasks(instances.pred_polygons).polygons(*instances.image_size)
