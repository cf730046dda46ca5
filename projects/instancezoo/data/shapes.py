"""The built-in data sets `shapes_*`: generated on first use, the same on every machine."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from iopath.common.file_io import file_lock
from PIL import Image

from instancezoo.data.shape_attributes import measure_attributes
from instancezoo.data.shape_outlines import SHAPES
from instancezoo.data.shape_scenes import Scene, SceneStyle, draw_scene
from instancezoo.files import get_cache_folder, name_in_errors, open_atomically
from instancezoo.progress import track

# Part of the folder's name: raise it with any change of the images of a set that is there; new
# sets change nothing.
VERSION = 1
ANNOTATION_FILE = "annotations.json"
IMAGE_FOLDER = "images"

_FULL = SceneStyle(
    size=192,
    classes=tuple(SHAPES),
    num_objects=(2, 9),
    radius=(6.0, 48.0),
    min_visible=0.2,
    crowd_probability=0.3,
    bar_probability=0.3,
    min_contrast=110,
    texture=72,
)
# Easy enough for a small network to learn from scratch in 600 iterations.
_TINY = SceneStyle(
    size=128,
    classes=("disc", "ring", "star", "square"),
    num_objects=(1, 4),
    radius=(11.0, 32.0),
    min_visible=0.85,
    crowd_probability=0.0,
    bar_probability=0.0,
    min_contrast=220,
    texture=28,
)
# Copies of one object side by side: only their places tell them apart.
_TWINS = SceneStyle(
    size=128,
    classes=("disc", "gear"),
    num_objects=(8, 30),
    radius=(8.0, 11.0),
    min_visible=0.7,
    crowd_probability=0.0,
    bar_probability=0.0,
    min_contrast=180,
    texture=28,
    spacing=1.75,
)


@dataclass(frozen=True)
class ShapesSet:
    """One split."""

    style: SceneStyle
    num_images: int
    seed: int


SHAPES_SETS: dict[str, ShapesSet] = {
    "shapes_train": ShapesSet(_FULL, num_images=2000, seed=1),
    "shapes_val": ShapesSet(_FULL, num_images=200, seed=2),
    "shapes_tiny_train": ShapesSet(_TINY, num_images=400, seed=3),
    "shapes_tiny_val": ShapesSet(_TINY, num_images=100, seed=4),
    "shapes_twins_train": ShapesSet(_TWINS, num_images=400, seed=5),
    "shapes_twins_val": ShapesSet(_TWINS, num_images=100, seed=6),
}


def get_shapes(name: str) -> tuple[Path, Path]:
    """COCO JSON and image folder of a built-in set (`SHAPES_SETS`), generated on first use.

    If several processes call at the same time, one generates and the others wait. The folder
    appears under its name only when it is complete.
    """
    folder = get_cache_folder() / f"{name}-v{VERSION}"
    if not (folder / ANNOTATION_FILE).is_file():
        with name_in_errors(folder), file_lock(str(folder)):
            # Another process may have generated it while this one waited.
            if not (folder / ANNOTATION_FILE).is_file():
                _generate_whole(name, folder)
    return folder / ANNOTATION_FILE, folder / IMAGE_FOLDER


def generate_shapes(shapes: ShapesSet, folder: Path, description: str = "drawing") -> None:
    """Write a set's JSON and PNG files into an existing folder, with a progress bar."""
    (folder / IMAGE_FOLDER).mkdir()
    coco: dict[str, Any] = {
        "info": {"description": "InstanceZoo shapes", "version": str(VERSION)},
        "licenses": [],
        "categories": [
            {"id": number, "name": name, "supercategory": "shape"}
            for number, name in enumerate(shapes.style.classes, start=1)
        ],
        "images": [],
        "annotations": [],
    }
    for index in track(range(shapes.num_images), description):
        scene = draw_shapes_image(shapes, index)
        file_name = f"{index:05d}.png"
        picture = Image.fromarray(scene.image.astype(np.uint8))
        picture.save(folder / IMAGE_FOLDER / file_name, compress_level=3)
        height, width = scene.image.shape[:2]
        coco["images"].append(
            {"id": index + 1, "file_name": file_name, "height": height, "width": width}
        )
        for annotation in _annotate(scene, shapes.style.classes):
            ids = {"id": len(coco["annotations"]) + 1, "image_id": index + 1}
            coco["annotations"].append(ids | annotation)
    with open_atomically(folder / ANNOTATION_FILE, "w") as file:
        json.dump(coco, file, sort_keys=True, separators=(",", ":"))


def draw_shapes_image(shapes: ShapesSet, index: int) -> Scene:
    """Image `index` of a set, independent of the others."""
    return draw_scene(shapes.style, np.random.default_rng([shapes.seed, index]))


def _generate_whole(name: str, folder: Path) -> None:
    # This process holds the lock, so leftovers come from a process that was killed.
    for left_over in [*folder.parent.glob(f".{folder.name}-*"), folder]:
        shutil.rmtree(left_over, ignore_errors=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        generate_shapes(SHAPES_SETS[name], part, f"drawing {name}")
        part.chmod(0o755)  # mkdtemp's 0700 would lock out others who share the cache
        os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _annotate(scene: Scene, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    if not scene.masks:
        return []
    masks = np.stack(scene.masks)
    rles = mask_util.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8))
    attributes = measure_attributes(masks, scene.full_areas)
    return [
        {
            "category_id": classes.index(name) + 1,
            "bbox": mask_util.toBbox(rle).astype(int).tolist(),
            "area": int(mask_util.area(rle)),
            "iscrowd": 0,
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
            "attributes": described,
        }
        for name, rle, described in zip(scene.names, rles, attributes, strict=True)
    ]
