"""Fixed size of the network input, as the mapper, the predictor and the models read it.

Legend: C channels, H W image size.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode

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


def stretch_image(record: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Resize a model input bilinearly to one size, whatever its aspect ratio.

    Args:
        record: with `image` (C, H, W).
        size: height and width in pixels.

    Returns:
        A new record; `height` and `width` name the result's size as before, or that of `image`.
    """
    image = record["image"]
    height, width = image.shape[1:]
    if (height, width) == tuple(size):
        return record
    stretched = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)
    return {"height": height, "width": width, **record, "image": stretched[0]}
