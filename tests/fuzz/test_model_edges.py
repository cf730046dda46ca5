"""Odd images and ground truth end in finite losses, in well-formed results, or in a `ZooError`.

FUZZ_CASES sets the number of cases; `make fuzz` checks 400.
"""

import os
import random
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from instancezoo.errors import ZooError
from instancezoo.testing import (
    build_seeded_model,
    get_tiny_config,
    keep_everything,
    list_tiny_configs,
    make_image,
)

NUM_CASES = int(os.environ.get("FUZZ_CASES", "22"))
NUM_BLOCKS = 4
SIDES = (1, 2, 3, 7, 31, 32, 33, 64, 65, 97)


@cache
def build(name: str) -> nn.Module:
    return build_seeded_model(keep_everything(get_tiny_config(name, ["MODEL.RESNETS.NORM", "GN"])))


@pytest.mark.parametrize("block", range(NUM_BLOCKS))
def test_odd_inputs(block: int) -> None:
    names = list_tiny_configs()
    problems = []
    for seed in range(block, NUM_CASES, NUM_BLOCKS):
        rng = random.Random(seed)
        name = names[seed % len(names)]
        batch = [make_odd_input(rng) for _ in range(rng.choice([0, 1, 1, 2, 3]))]
        torch.manual_seed(seed)
        try:
            check_model(build(name), batch)
        except ZooError as error:
            if not str(error):
                problems.append(f"seed {seed}: {name}: no message")
        except Exception as error:
            shapes = [tuple(item["image"].shape) for item in batch]
            problems.append(f"seed {seed}: {name} {shapes}: {type(error).__name__}: {error}"[:400])
    assert not problems, "\n".join(problems)


def check_model(model: nn.Module, batch: list[dict[str, Any]]) -> None:
    """Predict, then train. Raises `ZooError` for inputs that are refused."""
    model.eval()
    with torch.no_grad():
        outputs = model(batch)
    assert len(outputs) == len(batch)
    for image, output in zip(batch, outputs, strict=True):
        instances = output["instances"]
        height, width = image["image"].shape[1:]
        assert instances.image_size == (image.get("height", height), image.get("width", width))
        assert bool(instances.pred_boxes.tensor.isfinite().all())
        assert bool(instances.scores.isfinite().all())
        if instances.has("pred_masks"):
            assert instances.pred_masks.shape == (len(instances), *instances.image_size)
    model.train()
    with EventStorage():
        losses = model(batch * 2)  # batch norm needs more than one value
    assert losses and all(bool(loss.isfinite()) for loss in losses.values()), losses


def make_odd_input(rng: random.Random) -> dict[str, Any]:
    height, width = rng.choice(SIDES), rng.choice(SIDES)
    image: Any = make_image(max(height, 3), max(width, 3), rng.randrange(1000))
    image = image[:, :height, :width]
    kind = rng.choice(["uint8", "uint8", "float", "double", "strided", "nan", "constant", "huge"])
    if kind in ("float", "nan"):
        image = image.float()
    if kind == "double":
        image = image.double()
    if kind == "strided":
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    if kind == "nan":
        image[0, 0, 0] = float("nan")
    if kind == "constant":
        image = torch.zeros_like(image)
    if kind == "huge":
        image = image.float() * 1e4
    item = {"image": image, "file_name": "odd.png", "image_id": 7}
    if rng.random() < 0.5:
        item |= {"height": rng.choice(SIDES), "width": rng.choice(SIDES)}
    return item | {"instances": make_odd_objects(rng, height, width)}


def make_odd_objects(rng: random.Random, height: int, width: int) -> Instances:
    """Up to five objects: single pixels, lines, the whole image, several of the same."""
    masks = np.zeros((rng.choice([0, 0, 1, 2, 5]), height, width), dtype=bool)
    for mask in masks:
        y, x = rng.randrange(height), rng.randrange(width)
        h, w = rng.choice([(1, 1), (1, width), (height, 1), (height, width), (3, 3)])
        mask[y : y + h, x : x + w] = True
    instances = Instances((height, width))
    instances.gt_masks = BitMasks(torch.from_numpy(masks))
    instances.gt_boxes = Boxes(instances.gt_masks.get_bounding_boxes().tensor.float())
    instances.gt_classes = torch.tensor([rng.randrange(4) for _ in masks], dtype=torch.int64)
    return instances
