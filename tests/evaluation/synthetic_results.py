"""Random COCO data sets with crowds, several sizes and classes, and detections for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_codec
import torch
from detectron2.structures import Boxes, Instances

HEIGHT, WIDTH = 120, 160
Dataset = tuple[dict[str, Any], list[dict[str, Any]]]


def encode(mask: np.ndarray) -> dict[str, Any]:
    rle = mask_codec.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def make_ellipse(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    cy, cx = rng.uniform(10, HEIGHT - 10), rng.uniform(10, WIDTH - 10)
    a, b = rng.uniform(4, 60, 2)
    return ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 <= 1


def make_dataset(num_images: int = 80, num_results: int = 2000, seed: int = 0) -> Dataset:
    """Images in random order, gaps in ids, tied scores; polygons, plain and packed run lengths."""
    rng = np.random.default_rng(seed)
    category_ids = [3, 5, 8, 13, 21]
    images, annotations, results = [], [], []
    for image_id in rng.permutation(10 * num_images)[:num_images].tolist():
        images.append({"id": image_id, "height": HEIGHT, "width": WIDTH, "file_name": ""})
        objects = []
        for _ in range(rng.integers(0, 9)):
            mask, category_id = make_ellipse(rng), int(rng.choice(category_ids[:-1]))
            is_crowd = int(rng.random() < 0.12)
            rle = encode(mask)
            annotation = {
                "id": len(annotations),  # from 0 on, as many tools write them
                "image_id": image_id,
                "category_id": category_id,
                "bbox": mask_codec.toBbox(rle).tolist(),
                "area": int(mask.sum()),
                "iscrowd": is_crowd,
                "segmentation": _write_segmentation(mask, is_crowd, as_polygon=rng.random() < 0.5),
            }
            objects.append((mask, category_id))
            annotations.append(annotation)
        for _ in range(num_results // num_images):
            mask, category_id = make_ellipse(rng), int(rng.choice(category_ids))
            if objects and rng.random() < 0.7:
                mask, category_id = objects[rng.integers(len(objects))]
                mask = np.roll(mask, rng.integers(-4, 5, 2), (0, 1))
            rle = encode(mask)
            results.append(
                {
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": mask_codec.toBbox(rle).tolist(),
                    "score": round(float(rng.random()), 2),
                    "segmentation": rle,
                }
            )
    categories = [{"id": i, "name": f"class{i}"} for i in category_ids]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def make_outputs(
    dataset: Dataset, use_rle: bool = True, with_masks: bool = True
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Input record and model output of each image, as a model would give the results."""
    truth, results = dataset
    contiguous = {category["id"]: i for i, category in enumerate(truth["categories"])}
    for image in truth["images"]:
        rows = [row for row in results if row["image_id"] == image["id"]]
        boxes = torch.tensor([row["bbox"] for row in rows]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances = Instances((HEIGHT, WIDTH), pred_boxes=Boxes(boxes))
        instances.scores = torch.tensor([row["score"] for row in rows])
        labels = [contiguous[row["category_id"]] for row in rows]
        instances.pred_classes = torch.tensor(labels, dtype=torch.long)
        if with_masks:
            rles = [row["segmentation"] for row in rows]
            instances.pred_masks = rles if use_rle else _decode(rles)
        yield {"image_id": image["id"]}, {"instances": instances}


def _write_segmentation(mask: np.ndarray, is_crowd: int, as_polygon: bool) -> Any:
    if is_crowd:
        return _plain_rle(mask)
    if not as_polygon:
        return encode(mask)
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    polygons = [(contour + 0.25).reshape(-1).tolist() for contour in contours]
    return [polygon for polygon in polygons if len(polygon) >= 6]


def _plain_rle(mask: np.ndarray) -> dict[str, Any]:
    pixels = mask.flatten(order="F")
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff([0, *edges, pixels.size]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": [0, *counts] if pixels[0] else counts}


def _decode(rles: list[dict[str, Any]]) -> torch.Tensor:
    if not rles:
        return torch.zeros((0, HEIGHT, WIDTH), dtype=torch.bool)
    return torch.from_numpy(mask_codec.decode(rles)).permute(2, 0, 1).bool()


def make_crowded_dataset(num_images: int = 2, seed: int = 0) -> Dataset:
    """More objects and detections of one class than COCO's limit of 100 an image.

    A grid of 192 cells: objects in most, some of them crowds; 150 detections and more of each
    image with tied scores, some of them false. The second class has few of both.
    """
    rng = np.random.default_rng(seed)
    images, annotations, results = [], [], []
    side = 10
    for image_id in range(1, num_images + 1):
        images.append({"id": image_id, "height": HEIGHT, "width": WIDTH, "file_name": ""})
        for y in range(0, HEIGHT, side):
            for x in range(0, WIDTH, side):
                width, height = rng.integers(5, side + 1, 2).tolist()
                category_id = 2 if rng.random() < 0.05 else 1
                shape = {"image_id": image_id, "category_id": category_id}
                if rng.random() < 0.85:
                    mask = _make_block(x, y, width, height)
                    is_crowd = int(rng.random() < 0.05)
                    plain = _plain_rle(mask) if is_crowd else encode(mask)
                    facts = {
                        "id": len(annotations) + 1,
                        "iscrowd": is_crowd,
                        "area": width * height,
                    }
                    box = [x, y, width, height]
                    annotations.append({**shape, **facts, "bbox": box, "segmentation": plain})
                if rng.random() < 0.9:
                    found = [x, y, max(2, width - int(rng.integers(3))), height]
                    rle, score = encode(_make_block(*found)), round(float(rng.random()), 1)
                    results.append({**shape, "bbox": found, "score": score, "segmentation": rle})
    categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "other"}]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def _make_block(x: int, y: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask
