"""Small data sets for the doctor to look at, and ways to look at its findings."""

import itertools
import json

import numpy as np
from PIL import Image

from instancezoo import model_zoo
from instancezoo.doctor.diagnose import diagnose

TINY = model_zoo.get_config_file("mask_rcnn/mask_rcnn_tiny")
NAMES = (f"doctor_{i}" for i in itertools.count())


def make_dataset(folder, *, num_images=4, box=(10, 10, 40, 30), objects=12, names=("a",), seed=0):
    """Write a COCO data set of random 128 px images; returns its `NAME=json:images`."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    x, y, w, h = box
    for i in range(num_images):
        pixels = rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "height": 128, "width": 128})
        for k in range(objects):
            annotation = {"id": len(annotations) + 1, "image_id": i + 1, "bbox": list(box)}
            annotation["category_id"] = k % len(names) + 1
            annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            annotations.append({**annotation, "area": w * h, "iscrowd": 0})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(content))
    return f"{next(NAMES)}={folder}/truth.json:{folder}"


def examine(train, test, overrides=(), config=TINY, **kwargs):
    chosen = {"TRAIN": [train], "TEST": [test] if test else []}
    words = []
    for key, arguments in chosen.items():
        names = tuple(argument.split("=")[0] for argument in arguments)
        words += [f"DATASETS.{key}", repr(names)]
    datasets = [argument for argument in (train, test) if argument]
    return diagnose(config, [*words, *overrides], datasets, **kwargs)


def pick(found, check, severity=None):
    return [f for f in found if f.check == check and severity in (None, f.severity)]
