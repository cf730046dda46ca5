"""Augmentations that Detectron2 lacks, and the choice between them by the config.

C channels, H W image size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from numpy.typing import NDArray
from torch import Tensor

from instancezoo.modeling.input_size import read_pair


def build_resize(cfg: CfgNode, is_train: bool) -> T.Augmentation:
    """Build the resize of a config: to a fixed size, or with the aspect ratio kept.

    Args:
        cfg: its INPUT.FIXED_SIZE and INPUT.FIXED_HEIGHTS_TRAIN are read, or without a fixed size
            INPUT.MIN_SIZE_*, INPUT.MAX_SIZE_* and INPUT.MIN_SIZE_TRAIN_SAMPLING.
        is_train: choose the *_TRAIN keys over the *_TEST keys.

    Raises:
        ConfigError: INPUT.FIXED_SIZE or INPUT.FIXED_HEIGHTS_TRAIN is not two positive numbers.
    """
    size, heights = read_pair(cfg, "FIXED_SIZE"), read_pair(cfg, "FIXED_HEIGHTS_TRAIN")
    if size is not None and heights is not None and is_train:
        return StretchToRandomHeight(heights, size[1])
    if size is not None:
        return Resize(size)
    if is_train:
        sampling = cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
        return ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, sampling)
    return ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)


def make_model_input(image: NDArray[Any], resize: T.Augmentation) -> dict[str, Any]:
    """A model's input for inference on one image, in Detectron2's format.

    Args:
        image: (H, W, C) in [0, 255], in the channel order of the model.
        resize: from `build_resize`.

    Returns:
        `image`, (C, H', W') float in [0, 255], resized; `height` and `width` of `image` before.
    """
    height, width = image.shape[:2]
    resized = resize.get_transform(image).apply_image(image)
    return {"image": to_tensor(resized).float(), "height": height, "width": width}


def to_tensor(image: NDArray[Any]) -> Tensor:
    """Copy an image (H, W, C) into a tensor (C, H, W) of its type."""
    # Not by ascontiguousarray: where a side is one pixel, it leaves negative strides.
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))


class ResizeTransform(T.ResizeTransform):
    """Detectron2's resize, by which no side becomes 0 and floats are not aliased."""

    def __init__(self, height: int, width: int, new_height: int, new_width: int) -> None:
        super().__init__(height, width, max(new_height, 1), max(new_width, 1))

    def apply_image(self, img: NDArray[Any], interp: int | None = None) -> NDArray[Any]:
        """Resize (H, W) or (H, W, C) of uint8 or floats, by `interp` or bilinearly."""
        if interp is not None or img.dtype == np.uint8:
            return super().apply_image(img, interp)
        # Detectron2 would skip pixels here; with antialias it is the filter of Pillow's uint8.
        planes = to_tensor(img.reshape(self.h, self.w, -1))
        size = (self.new_h, self.new_w)
        resized = F.interpolate(planes[None], size, mode="bilinear", antialias=True)
        return resized[0].permute(1, 2, 0).reshape(*size, *img.shape[2:]).numpy()


class Resize(T.Resize):
    """Detectron2's resize to a fixed size, by our `ResizeTransform`."""

    def get_transform(self, image: NDArray[Any]) -> T.Transform:
        """Make the transform of an image (H, W, C)."""
        height, width = image.shape[:2]
        return ResizeTransform(height, width, *self.shape)


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's resize with the aspect ratio kept; no side of a thin image becomes 0."""

    def get_transform(self, image: NDArray[Any]) -> T.Transform:
        """Sample the size for an image (H, W, C)."""
        transform = super().get_transform(image)
        if not isinstance(transform, T.ResizeTransform):
            return transform
        return ResizeTransform(transform.h, transform.w, transform.new_h, transform.new_w)

    @staticmethod
    def get_output_shape(
        oldh: int, oldw: int, short_edge_length: int, max_size: int
    ) -> tuple[int, int]:
        """Height and width of the resized image, 1 or more."""
        shape = T.ResizeShortestEdge.get_output_shape(oldh, oldw, short_edge_length, max_size)
        return max(shape[0], 1), max(shape[1], 1)


class RandomCrop(T.RandomCrop):
    """Detectron2's crop, which leaves a pixel of every side."""

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Sample the height and width of a crop of an image of `image_size` (H, W)."""
        height, width = super().get_crop_size(image_size)
        return max(height, 1), max(width, 1)


class StretchToRandomHeight(T.Augmentation):
    """Resize to a fixed width and a random height; the aspect ratio is not kept.

    Args:
        heights: lowest and highest height in pixels, both included.
        width: in pixels.
    """

    def __init__(self, heights: tuple[int, int], width: int) -> None:
        super().__init__()
        self.heights = heights
        self.width = width

    def get_transform(self, image: NDArray[Any]) -> T.Transform:
        """Sample the height for an image (H, W, C)."""
        low, high = self.heights
        # From the global generator, as Detectron2's augmentations do.
        new_height = int(np.random.randint(low, high + 1))  # noqa: NPY002
        height, width = image.shape[:2]
        return ResizeTransform(height, width, new_height, self.width)
