"""Mutated COCO JSONs end in counted drops, in repairs that are told, or in a clear message.

FUZZ_CASES sets the number of files; `make fuzz` checks 3,000.
"""

import contextlib
import copy
import io
import json
import math
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from tests.data.coco_files import AREA, HEIGHT, SQUARE, WIDTH, make_coco, make_rle, write_images

from instancezoo.config import get_cfg
from instancezoo.data.coco_dataset import check_coco
from instancezoo.data.datasets import load_metadata, register_dataset
from instancezoo.data.mappers import build_mapper
from instancezoo.errors import ZooError
from instancezoo.evaluation.evaluator import InstanceEvaluator

NUM_CASES = int(os.environ.get("FUZZ_CASES", "100"))
ODD_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 2.5, 7.0, 0.5, -0.0, 1e-300, 1e15, 1e308, math.nan, math.inf),
    *(2**31, 2**53, 2**63, -(2**63), 10**30, 10**400),
    *("", "1", "7.0", "abc", "nan", "1e400", "o0o0", "0" * 50, "\ud800", "\0", "1.png", "a\\1.png"),
    *([], {}, [[]], [[[]]], [None], [[1, 2]], [[1, 2, 3, 4]], [[1, 2], [9, 2], [9, 9]], SQUARE),
    *([SQUARE, SQUARE], [[-900, 4, 900, 4, 900, 9, -900, 9]], [[1, 1, 1e15, 1, 5, 5]]),
    *([[5.1, 5.1, 5.3, 5.1, 5.3, 5.3]], [0.1, 0.2, 0.3, 0.4], ["4", "4", "10", "10"]),
    *([4, 4, 0, 10], [-5, 4, 20, 30], [400, 4, 9, 9], [1e300] * 4, [4, 4, 10]),
    *({"size": [24, 32]}, {"counts": "abc"}, {"\ud800": True}, {"a": True, "b": [1]}),
    make_rle([AREA])["segmentation"],
    make_rle([1, 2, AREA - 3])["segmentation"],
    make_rle([9, 10, 5])["segmentation"],
    make_rle("o0o0o0")["segmentation"],
    make_rle([10, AREA - 10], [float(HEIGHT), str(WIDTH)])["segmentation"],
]


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("block", range(10))
def test_mutated_files(block: int, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTANCEZOO_CACHE", str(image_folder / "cache"))
    num_used = 0
    for seed in range(block, NUM_CASES, 10):
        rng = random.Random(seed)
        content = mutate(rng)
        json_file = image_folder / f"{seed}.json"
        json_file.write_bytes(encode(rng, content))
        try:
            check_file(json_file, image_folder, content)
            num_used += 1
        except ZooError as error:
            assert str(json_file) in str(error) or f"fuzz_{seed}" in str(error), seed
        except Exception as error:
            raise AssertionError(f"seed {seed}: {json_file.read_bytes()!r}") from error
    assert num_used or NUM_CASES < 10


def check_file(json_file: Path, image_folder: Path, content: Any) -> None:
    """Load a file as training and evaluation do. Raises `ZooError` if it is refused."""
    clean, report = check_coco(json_file, image_folder)
    lists = ("categories", "images", "annotations")
    num_entries = sum(len(content.get(key, ())) for key in lists)
    assert num_entries == report.num_dropped + sum(len(clean[key]) for key in lists)
    assert report.summary().encode()
    if report.is_clean:
        for written, kept in zip(content.get("annotations", ()), clean["annotations"], strict=True):
            for key in ("id", "image_id", "category_id", "bbox", "iscrowd"):
                assert written[key] == kept[key]

    name = f"fuzz_{json_file.stem}"
    register_dataset(name, str(json_file), str(image_folder))
    try:
        classes = load_metadata(name).thing_classes
        map_records(DatasetCatalog.get(name))
        with contextlib.redirect_stdout(io.StringIO()):
            stock = COCO(MetadataCatalog.get(name).json_file)
        for annotation in stock.anns.values():
            assert not annotation.get("segmentation") or stock.annToMask(annotation).any()
        evaluator = InstanceEvaluator(name, output_dir=str(json_file.with_suffix("")))
        evaluator.process(*predict(DatasetCatalog.get(name), len(classes)))
        results = evaluator.evaluate()
        assert not clean["annotations"] or set(results) == {"bbox", "segm"}
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def map_records(records: list[dict[str, Any]]) -> None:
    for mask_on in (True, False):
        cfg = get_cfg()
        cfg.MODEL.MASK_ON = mask_on
        cfg.INPUT.MIN_SIZE_TRAIN = (HEIGHT,)
        mapper = build_mapper(cfg, is_train=True)
        for record in records:
            mapped = mapper(record)
            assert mapped is not None
            instances = mapped["instances"]
            assert bool(instances.gt_boxes.tensor.isfinite().all())
            assert instances.has("gt_masks") or not mask_on


def predict(
    records: list[dict[str, Any]], num_classes: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One detection of every class in every image."""
    outputs = []
    for record in records:
        size = record["height"], record["width"]
        instances = Instances(size)
        instances.pred_boxes = Boxes(torch.tensor([[4.0, 4, 14, 14]]).repeat(num_classes, 1))
        instances.scores = torch.linspace(0.5, 0.9, num_classes)
        instances.pred_classes = torch.arange(num_classes)
        masks = torch.zeros(num_classes, *size, dtype=torch.bool)
        masks[:, 4:14, 4:14] = True
        instances.pred_masks = masks
        outputs.append({"instances": instances})
    return records, outputs


def mutate(rng: random.Random) -> Any:
    """A small COCO data set with a few faults."""
    content: Any = copy.deepcopy(make_coco())
    if rng.random() < 0.1:
        make_shares(content)
    for _ in range(rng.randint(1, 5)):
        places = list(list_places(content))
        if not places:
            break
        owner, key = rng.choice(places)
        action = rng.choice(["replace", "replace", "replace", "delete", "nest", "repeat", "scale"])
        if action == "replace":
            owner[key] = copy.deepcopy(rng.choice(ODD_VALUES))
        elif action == "delete":
            del owner[key]
        elif action == "nest":
            owner[key] = rng.choice([[owner[key]], {"x": owner[key]}, str(owner[key])])
        elif action == "repeat" and isinstance(owner, list):
            owner.append(copy.deepcopy(owner[key]))
        elif action == "scale" and isinstance(owner[key], int | float) and owner[key] != 10**400:
            owner[key] *= rng.choice([-1, 0.1, 1 / WIDTH, 10, 100.5])
    return content


def make_shares(content: Any) -> None:
    """Write the coordinates as shares of the image's sides."""
    sides = WIDTH, HEIGHT
    for annotation in content["annotations"]:
        annotation["bbox"] = [v / sides[i % 2] for i, v in enumerate(annotation["bbox"])]
        annotation["segmentation"] = [[v / sides[i % 2] for i, v in enumerate(SQUARE)]]


def list_places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from list_places(value[key])


def encode(rng: random.Random, content: Any) -> bytes:
    text = json.dumps(content)
    data = text.encode(rng.choice(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-32-le"]))
    if rng.random() < 0.05:
        data = data[: rng.randrange(len(data))]
    return data
