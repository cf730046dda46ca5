"""Augmentations that Detectron2 lacks, and the choice between them by the config.

C channels, H W image size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from numpy.typing import NDArray
from torch import Tensor

from instancezoo.modeling.input_size import read_pair, resize_planes


def build_resize(cfg: CfgNode, is_train: bool) -> T.Augmentation:
    """Build the resize of a config: to a fixed size, or with the aspect ratio kept.

    Args:
        cfg: its INPUT.FIXED_SIZE, INPUT.FIXED_SIZE_ANTIALIAS and INPUT.FIXED_HEIGHTS_TRAIN are
            read, or without a fixed size INPUT.MIN_SIZE_*, INPUT.MAX_SIZE_* and
            INPUT.MIN_SIZE_TRAIN_SAMPLING.
        is_train: choose the *_TRAIN keys over the *_TEST keys.

    Raises:
        ConfigError: INPUT.FIXED_SIZE or INPUT.FIXED_HEIGHTS_TRAIN is not two positive numbers.
    """
    size, heights = read_pair(cfg, "FIXED_SIZE"), read_pair(cfg, "FIXED_HEIGHTS_TRAIN")
    antialias = cfg.INPUT.FIXED_SIZE_ANTIALIAS
    if size is not None and heights is not None and is_train:
        return StretchToRandomHeight(heights, size[1], antialias)
    if size is not None:
        return Resize(size, antialias)
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
    """Detectron2's resize, by which no side becomes 0 and floats are not aliased.

    Args:
        height, width: of the image in pixels.
        new_height, new_width: of the result.
        antialias: if False, samples between the nearest four pixels, also where the image shrinks;
            the result is float then.
    """

    def __init__(
        self, height: int, width: int, new_height: int, new_width: int, antialias: bool = True
    ) -> None:
        super().__init__(height, width, max(new_height, 1), max(new_width, 1))
        self.antialias = antialias
        self.needs_pixels = not antialias

    def apply_image(self, img: NDArray[Any], interp: int | None = None) -> NDArray[Any]:
        """Resize (H, W) or (H, W, C) of uint8 or floats, by `interp` or bilinearly."""
        if interp is not None or (self.antialias and img.dtype == np.uint8):
            return super().apply_image(img, interp)
        # Detectron2 would skip pixels here; with antialias it is the filter of Pillow's uint8.
        planes = to_tensor(img.reshape(self.h, self.w, -1))
        size = (self.new_h, self.new_w)
        resized = resize_planes(planes, size, self.antialias)
        return resized.permute(1, 2, 0).reshape(*size, *img.shape[2:]).numpy()

    def for_masks(self) -> T.Transform:
        """The same for masks of objects: without antialias they are resized as the image is."""
        if self.antialias:
            return self
        return _MaskResize(self.h, self.w, self.new_h, self.new_w, antialias=False)


class _MaskResize(ResizeTransform):
    """A resize of masks as images of 0 and 1, rounded."""

    def apply_segmentation(self, segmentation: NDArray[Any]) -> NDArray[Any]:
        return (self.apply_image(segmentation) >= 0.5).astype(segmentation.dtype)


class Resize(T.Resize):
    """Detectron2's resize to a fixed size, by our `ResizeTransform`.

    Args:
        shape: height and width in pixels.
        antialias: see `ResizeTransform`.
    """

    def __init__(self, shape: tuple[int, int], antialias: bool = True) -> None:
        super().__init__(shape)
        self.antialias = antialias

    def get_transform(self, image: NDArray[Any]) -> T.Transform:
        """Make the transform of an image (H, W, C)."""
        height, width = image.shape[:2]
        new_height, new_width = self.shape
        return ResizeTransform(height, width, new_height, new_width, self.antialias)


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
        antialias: see `ResizeTransform`.
    """

    def __init__(self, heights: tuple[int, int], width: int, antialias: bool = True) -> None:
        super().__init__()
        self.heights = heights
        self.width = width
        self.antialias = antialias

    def get_transform(self, image: NDArray[Any]) -> T.Transform:
        """Sample the height for an image (H, W, C)."""
        low, high = self.heights
        # From the global generator, as Detectron2's augmentations do.
        new_height = int(np.random.randint(low, high + 1))  # noqa: NPY002
        height, width = image.shape[:2]
        return ResizeTransform(height, width, new_height, self.width, self.antialias)


class MaskCrop(T.CropTransform):
    """A crop that only shifts polygons, since filling them cuts them to the frame.

    Detectron2's own crop intersects polygons with the frame and needs shapely for that.
    """

    def apply_polygons(self, polygons: list[NDArray[Any]]) -> list[NDArray[Any]]:
        return [self.apply_coords(polygon) for polygon in polygons]


def needs_pixels(transforms: T.TransformList) -> bool:
    """True if polygons have to become masks first, as a transform's `needs_pixels` says."""
    return any(getattr(transform, "needs_pixels", False) for transform in transforms.transforms)


def adapt_to_masks(transforms: T.TransformList) -> T.TransformList:
    """Transforms of an image -> those of its objects' masks, which are no maps of labels.

    A transform may define its own version for them as `for_masks()`.
    """
    return T.TransformList([_adapt_to_masks(transform) for transform in transforms.transforms])


def _adapt_to_masks(transform: T.Transform) -> T.Transform:
    if type(transform) is T.CropTransform:
        names = ("x0", "y0", "w", "h", "orig_w", "orig_h")
        return MaskCrop(*(getattr(transform, name) for name in names))
    return transform.for_masks() if hasattr(transform, "for_masks") else transform
