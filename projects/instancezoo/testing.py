"""Small models and inputs, for tests of this project and of methods built on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor, nn

from instancezoo import model_zoo
from instancezoo.config import CfgNode, follow_dataset
from instancezoo.methods import METHODS

NUM_CLASSES = 4


def list_tiny_configs() -> list[str]:
    """Names of the shipped `<method>_tiny` configs; each method has one."""
    return [name for name in model_zoo.list_configs() if name.endswith("_tiny")]


def get_tiny_config(name: str, overrides: list[Any] | None = None) -> CfgNode:
    """A tiny config without pretrained weights, on the CPU, for `NUM_CLASSES` classes.

    Args:
        name: one of `list_tiny_configs`.
        overrides: `[KEY, VALUE, ...]` merged last.
    """
    cfg = model_zoo.get_config(
        name, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.TIMM.WEIGHTS", ""]
    )
    follow_dataset(cfg, NUM_CLASSES, "tiny")
    cfg.merge_from_list(overrides or [])
    return cfg


def keep_everything(cfg: CfgNode) -> CfgNode:
    """Lower the thresholds so that a model with random weights finds something, in place."""
    _set_score_thresholds(cfg, -1.0)
    for method in METHODS:
        method.prepare_untrained(cfg)
    return cfg


def keep_nothing(cfg: CfgNode) -> CfgNode:
    """Raise the score thresholds above all scores, in place."""
    _set_score_thresholds(cfg, 2.0)
    return cfg


def _set_score_thresholds(cfg: CfgNode, value: float) -> None:
    keys = [key for method in METHODS for key in method.score_keys]
    cfg.merge_from_list([word for key in keys for word in (key, value)])


def build_seeded_model(cfg: CfgNode, seed: int = 0) -> nn.Module:
    """The config's model with random weights from a seed, in training mode."""
    torch.manual_seed(seed)
    return build_model(cfg)


def make_image(height: int, width: int, seed: int = 0, num_channels: int = 3) -> Tensor:
    """A noisy picture with a few bright squares: uint8 (num_channels, height, width)."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 90, (num_channels, height, width), dtype=np.uint8)
    for _ in range(3):
        y, x = rng.integers(0, height // 2), rng.integers(0, width // 2)
        image[:, y : y + height // 3, x : x + width // 3] = rng.integers(
            120, 255, (num_channels, 1, 1)
        )
    return torch.from_numpy(image)


def make_input(height: int, width: int, boxes: list[list[int]], seed: int = 0) -> dict[str, Any]:
    """A model input whose objects fill their boxes.

    Args:
        height, width: size of the image.
        boxes: XYXY in whole pixels; object i has class i modulo `NUM_CLASSES`.
        seed: of the picture.
    """
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes)) % NUM_CLASSES
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    instances.gt_masks = BitMasks(masks)
    return {
        "image": make_image(height, width, seed),
        "instances": instances,
        "height": height,
        "width": width,
        "image_id": seed,
        "file_name": f"image_{seed}.png",
    }
