"""Size of the network input: one fixed size, or the aspect ratio kept, and padding.

The mapper, the predictor and the models read it here.

Legend: N images, C channels, H W image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from detectron2.structures import ImageList
from torch import Tensor

from instancezoo.errors import ConfigError


def read_fixed_size(cfg: CfgNode) -> tuple[int, int] | None:
    """`INPUT.FIXED_SIZE`, height and width in pixels; None where it is (). Raises `ConfigError`."""
    return _read_pair(cfg, "FIXED_SIZE")


def read_fixed_heights(cfg: CfgNode) -> tuple[int, int] | None:
    """`INPUT.FIXED_HEIGHTS_TRAIN`, lowest and highest in pixels, or None. Raises `ConfigError`."""
    return _read_pair(cfg, "FIXED_HEIGHTS_TRAIN")


def stretch_image(record: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Resize a model input bilinearly to one size, whatever its aspect ratio.

    Args:
        record: with `image` (C, H, W).
        size: height and width in pixels.

    Returns:
        A new record; `height` and `width` name the result's size as before, or that of `image`.
    """
    image = record["image"]
    old = tuple(image.shape[1:])
    if old == tuple(size):
        return record
    stretched = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)
    return {"height": old[0], "width": old[1], **record, "image": stretched[0]}


def pad_images(
    images: Sequence[Tensor], backbone: Backbone, divisibility: int | None = None
) -> ImageList:
    """Pad images with zeros at the bottom and the right to one size.

    Args:
        images: N tensors (C, H, W).
        backbone: its `size_divisibility` and `padding_constraints` hold.
        divisibility: padded sides are multiples of this instead; None takes the backbone's.
    """
    divisor = backbone.size_divisibility if divisibility is None else divisibility
    constraints = backbone.padding_constraints
    return ImageList.from_tensors(list(images), divisor, padding_constraints=constraints)


def _read_pair(cfg: CfgNode, key: str) -> tuple[int, int] | None:
    values = tuple(cfg.INPUT[key])
    if not values:
        return None
    if len(values) != 2 or not all(isinstance(n, int) and n > 0 for n in values):
        raise ConfigError(f"INPUT.{key} is {values}; it must be () or two positive whole numbers")
    return values[0], values[1]
