"""A small COCO JSON with polygons, RLE strings, RLE lists and crowds, for tests to break."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from instancezoo.data.coco_dataset import check_coco
from instancezoo.data.coco_report import AnnotationReport

HEIGHT, WIDTH = 24, 32
AREA = HEIGHT * WIDTH
SQUARE = [4.0, 4.0, 14.0, 4.0, 14.0, 14.0, 4.0, 14.0]


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def make_coco() -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[5:15, 3:9] = True
    flat = mask.reshape(-1, order="F")
    changes = np.nonzero(np.diff(flat.astype(int)))[0] + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    segmentations = [[SQUARE], encode_mask(mask), {"size": [HEIGHT, WIDTH], "counts": runs}]
    boxes = [[4, 4, 10, 10], [3, 5, 6, 10], [3, 5, 6, 10]]
    annotations = [
        {
            "id": 10 * image_id + number,
            "image_id": image_id,
            "category_id": 3 + 4 * (number % 2),
            "bbox": boxes[number],
            "area": [100, 60, 60][number],
            "iscrowd": int(number == 2),
            "segmentation": segmentations[number],
            "attributes": {"small": True},
        }
        for image_id in (1, 2)
        for number in range(3)
    ]
    images = [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (2, 1)]
    categories = [{"id": 7, "name": "cell"}, {"id": 3, "name": "dirt"}]
    return copy.deepcopy({"images": images, "annotations": annotations, "categories": categories})


def write_images(folder: Path) -> Path:
    """Write the two images; returns their folder."""
    for name in ("1.png", "2.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / name)
    return folder


def check(
    coco: Any, folder: Path, check_images: bool = True
) -> tuple[dict[str, Any], AnnotationReport]:
    json_file = folder / "annotations.json"
    json_file.write_text(json.dumps(coco))
    return check_coco(json_file, folder, check_images)


def make_rle(counts: Any, size: Any = None):
    return {"segmentation": {"size": size or [HEIGHT, WIDTH], "counts": counts}}
