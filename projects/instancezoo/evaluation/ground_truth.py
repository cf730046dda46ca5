"""COCO annotations as the evaluation needs them: complete, and grouped by image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from instancezoo.data.coco_dataset import read_json
from instancezoo.data.coco_masks import measure_object
from instancezoo.errors import ZooError, check_choice

BoxOrMask = str  # "bbox" or "segm", COCO's names
_KEYS = {"bbox": "bbox", "segm": "segmentation"}


@dataclass(frozen=True)
class GroundTruth:
    """The annotations of one data set.

    Attributes:
        images: image id -> COCO image record.
        annotations: image id -> COCO annotations, each with `iscrowd`, `area` and `attributes`.
        categories: COCO categories, ascending by id.
        is_annotated: False for a test set whose file has no annotations at all.
        source: file name, for messages.
    """

    images: dict[Any, dict[str, Any]]
    annotations: dict[Any, list[dict[str, Any]]]
    categories: list[dict[str, Any]]
    is_annotated: bool
    source: str = field(default="the given annotations", compare=False)

    @classmethod
    def read(cls, source: str | Path | dict[str, Any]) -> GroundTruth:
        """Read a COCO JSON file, or use its content (not changed).

        Raises:
            ZooError: no such file, not JSON, or not a COCO data set.
        """
        name = cls.source if isinstance(source, dict) else str(source)
        dataset = source if isinstance(source, dict) else read_json(source)
        if not isinstance(dataset, dict) or "images" not in dataset or "categories" not in dataset:
            raise ZooError(
                f"{name} is not a COCO data set, since it has no 'images' or no 'categories': "
                "export it as COCO instances"
            )
        images = {image["id"]: image for image in dataset["images"]}
        for image_id, image in images.items():
            if "height" not in image or "width" not in image:
                raise ZooError(f"{name}: image {image_id} has no 'height' or no 'width'; add it")
        grouped = defaultdict(list)
        for annotation in dataset.get("annotations", []):
            image = images.get(annotation["image_id"])
            if image is None:
                raise ZooError(
                    f"{name}: annotation {annotation.get('id')} belongs to image "
                    f"{annotation['image_id']}, which is not in 'images'; repair or remove it"
                )
            grouped[image["id"]].append(_complete(annotation, image))
        categories = sorted(dataset["categories"], key=lambda category: category["id"])
        return cls(images, dict(grouped), categories, "annotations" in dataset, name)

    def annotations_of(self, image_id: Any) -> list[dict[str, Any]]:
        """Annotations of one image, crowds included."""
        return self.annotations.get(image_id, [])

    def attributes(self) -> list[str]:
        """Names of the boolean attributes of objects, in order of appearance."""
        names = {
            name: None
            for annotation in chain.from_iterable(self.annotations.values())
            for name, value in annotation["attributes"].items()
            if isinstance(value, bool)
        }
        return list(names)

    def select(self, iou_type: BoxOrMask) -> list[dict[str, Any]]:
        """Copies of the annotations that have a box or a mask, numbered from 1.

        The file's own ids may repeat or start at 0, which pycocotools takes for "no match".
        """
        keys = ("image_id", "category_id", "iscrowd", "area", "bbox", "segmentation", "attributes")
        annotations = chain.from_iterable(self.annotations.values())
        return [
            {"id": number} | {key: annotation[key] for key in keys if key in annotation}
            for number, annotation in enumerate(find_usable(annotations, iou_type), start=1)
        ]


def find_key(iou_type: BoxOrMask) -> str:
    """Key of the boxes or masks that an IoU type compares, in annotations and results."""
    check_choice("IoU type", iou_type, _KEYS)
    return _KEYS[iou_type]


def find_usable(entries: Iterable[dict[str, Any]], iou_type: BoxOrMask) -> Iterator[dict[str, Any]]:
    """The annotations or results that have a box or a mask, as the IoU type needs."""
    key = find_key(iou_type)
    return (entry for entry in entries if entry.get(key))


def find_score(result: dict[str, Any], iou_type: BoxOrMask) -> float:
    """Confidence of a result: that of its mask where the model gave one (YOLACT++), for "segm"."""
    score: float = result["score"]
    return result.get("mask_score", score) if iou_type == "segm" else score


def _complete(annotation: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
    complete = {**annotation, "iscrowd": int(annotation.get("iscrowd") or 0)}
    complete["attributes"] = annotation.get("attributes") or {}
    if complete.get("area") is None:
        complete["area"] = measure_object(annotation, image["height"], image["width"])
    return complete
