"""Fixed size of the network input, as the mapper, the predictor and the models read it.

Legend: C channels, H W image size.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from instancezoo.errors import ConfigError


def read_pair(cfg: CfgNode, key: str) -> tuple[int, int] | None:
    """Read two numbers of pixels, such as the height and width in `INPUT.FIXED_SIZE`.

    Args:
        cfg: the whole config.
        key: below `INPUT`.

    Returns:
        The two, or None where the value is ().

    Raises:
        ConfigError: the value is something else.
    """
    values = tuple(cfg.INPUT[key])
    if not values:
        return None
    if len(values) != 2 or not all(isinstance(n, int) and n > 0 for n in values):
        raise ConfigError(f"INPUT.{key} is {values}; it must be () or two positive whole numbers")
    return values[0], values[1]


def resize_planes(planes: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    """Resize maps bilinearly, with pixel centres at halves.

    Args:
        planes: (C, H, W) of any type.
        size: height and width in pixels.
        antialias: as INPUT.FIXED_SIZE_ANTIALIAS.

    Returns:
        (C, *size), float.
    """
    planes = planes if planes.is_floating_point() else planes.float()
    return F.interpolate(planes[None], size=size, mode="bilinear", antialias=antialias)[0]


def stretch_image(
    record: dict[str, Any], size: tuple[int, int], antialias: bool = True
) -> dict[str, Any]:
    """Resize a model input bilinearly to one size, whatever its aspect ratio.

    Args:
        record: with `image` (C, H, W).
        size: height and width in pixels.
        antialias: as in `resize_planes`.

    Returns:
        A new record; `height` and `width` name the result's size as before, or that of `image`.
    """
    image = record["image"]
    height, width = image.shape[1:]
    if (height, width) == tuple(size):
        return record
    stretched = resize_planes(image.float(), size, antialias)
    return {"height": height, "width": width, **record, "image": stretched}
