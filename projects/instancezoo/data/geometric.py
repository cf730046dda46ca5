"""Augmentations that turn or scale the whole image.

C channels, H W image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import transforms as T
from numpy.typing import NDArray

from instancezoo.data.augmentations import AUGMENTATION_REGISTRY, check_number, check_range
from instancezoo.data.transforms import ResizeTransform

Array = NDArray[Any]
# As a canvas may have: larger images are enlarged less.
_MAX_PIXELS = 2**24


@AUGMENTATION_REGISTRY.register()
class RandomRotation90(T.Augmentation):
    """Turn the image by 0, 90, 180 or 270 degrees; with a flip, all eight positions.

    For images without an up and down, such as microscopy and aerial photos.

    Args:
        prob: probability of a change.
    """

    def __init__(self, *, prob: float = 0.75) -> None:
        super().__init__()
        self.prob = check_number("prob", prob, 0, 1)

    def get_transform(self, image: Array) -> T.Transform:
        """Sample the turn of an image (H, W, C)."""
        # From the global generator, as Detectron2's augmentations do.
        if np.random.uniform() >= self.prob:  # noqa: NPY002
            return T.NoOpTransform()
        turns = int(np.random.randint(1, 4))  # noqa: NPY002
        return Rotation90Transform(turns, image.shape[0], image.shape[1])


class Rotation90Transform(T.Transform):
    """Quarter turns, counterclockwise as seen.

    Args:
        turns: 0 to 3.
        height, width: of the image before.
    """

    def __init__(self, turns: int, height: int, width: int) -> None:
        super().__init__()
        self.turns, self.height, self.width = turns % 4, height, width

    def apply_image(self, img: Array) -> Array:
        """(H, W) or (H, W, C), of any type."""
        return np.rot90(img, self.turns).copy()

    def apply_segmentation(self, segmentation: Array) -> Array:
        return self.apply_image(segmentation)

    def apply_coords(self, coords: Array) -> Array:
        """Points (N, 2), x and y in pixels, the first pixel being from 0 to 1."""
        x, y = coords[:, 0], coords[:, 1]
        turned = {
            0: (x, y),
            1: (y, self.width - x),
            2: (self.width - x, self.height - y),
            3: (self.height - y, x),
        }
        return np.stack(turned[self.turns], axis=1)

    def inverse(self) -> T.Transform:
        """The turn back."""
        is_odd = self.turns % 2 == 1
        height, width = (self.width, self.height) if is_odd else (self.height, self.width)
        return Rotation90Transform(-self.turns, height, width)


@AUGMENTATION_REGISTRY.register()
class RandomScale(T.Augmentation):
    """Resize the image by a random factor, its aspect ratio kept; a crop may follow (INPUT.CROP).

    Args:
        scale: lowest and highest factor. It is lower for large images, which become 2^24 pixels
            at most.
    """

    def __init__(self, *, scale: Sequence[float] = (0.5, 1.5)) -> None:
        super().__init__()
        self.scale = check_range("scale", scale, 0.05, 20)

    def get_transform(self, image: Array) -> T.Transform:
        """Sample the factor for an image (H, W, C)."""
        height, width = image.shape[:2]
        factor = float(np.random.uniform(*self.scale))  # noqa: NPY002
        factor = min(factor, max(1.0, (_MAX_PIXELS / (height * width)) ** 0.5))
        return ResizeTransform(height, width, round(height * factor), round(width * factor))
