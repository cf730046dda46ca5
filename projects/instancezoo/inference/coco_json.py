"""Predictions of many images as one COCO file, written image by image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
    `iscrowd`, a COCO annotation. So `COCO(path)` loads it, and `truth.loadRes(annotations)` does if
    the image ids are replaced by those of the truth (COCO reads results only as RLE).

    Args:
        path: file to write.
        class_names: name of each contiguous class.
        category_ids: id of each contiguous class in the file.
        mask_form: one of `MASK_FORMS`. "polygon" writes the model's own polygons, for annotation
            tools; it needs a model that predicts polygons.
    """
    categories = [
        {"id": category_id, "name": name}
        for category_id, name in zip(category_ids, class_names, strict=True)
    ]
    with open_atomically(path, "w") as file:
        file.write(f'{{"categories": {json.dumps(categories)},\n"annotations": [')
        predictions = PredictionsFile(file, category_ids, mask_form)
        yield predictions
        file.write(f'\n],\n"images": {json.dumps(predictions.images)}}}\n')


@dataclass
class PredictionsFile:
    """Writer of one image at a time; only the entries of `images` stay in memory.

    Args:
        file, category_ids, mask_form: as in `open_predictions`.
    """

    file: IO[str]
    category_ids: list[int]
    mask_form: str
    num_annotations: int = 0
    images: list[dict[str, Any]] = field(default_factory=list)

    def add(self, file_name: str, instances: Instances, **attributes: Any) -> None:
        """Add one image and its instances.

        Args:
            file_name: the image's name in the file.
            instances: predictions on the CPU.
            attributes: further keys of the image's entry.

        Raises:
            ZooError: a score or box is not finite, a class has no category, or polygons are
                wanted from a model without polygons.
        """
        height, width = instances.image_size
        image_id = len(self.images) + 1
        results = instances_to_results(instances, image_id, self.category_ids)
        if self.mask_form == "polygon":
            for result, outlines in zip(results, _list_polygons(instances), strict=True):
                result["segmentation"] = outlines
        image = {"id": image_id, "file_name": file_name, "width": width, "height": height}
        self.images.append({**image, **attributes})
        for result in results:
            separator = ",\n" if self.num_annotations else "\n"
            self.num_annotations += 1
            annotation = {"id": self.num_annotations, **result, "iscrowd": 0}
            annotation["area"] = measure_object(result, height, width)
            self.file.write(separator + json.dumps(annotation))


def _list_polygons(instances: Instances) -> list[list[list[float]]]:
    if not instances.has("pred_polygons"):
        raise ZooError(
            "this model predicts no polygons: leave `--masks polygon` out to get RLE masks"
        )
    return VertexMasks(instances.pred_polygons).polygons(*instances.image_size)
