"""Augmentations that change what an image shows: a larger canvas, a crop that keeps objects.

C channels, H W image size, M objects, T trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from numpy.typing import NDArray

from instancezoo.data.augmentations import AUGMENTATION_REGISTRY, check_number, check_range
from instancezoo.data.transforms import MaskCrop

Array = NDArray[Any]
UNLABELLED = 255  # Detectron2's class of pixels that semantic losses leave out
# Over twice the largest canvas of COCO; that of a photo would fill the memory.
_MAX_CANVAS = 2**24


@AUGMENTATION_REGISTRY.register()
class ExpandCanvas(T.Augmentation):
    """Place the image somewhere on a larger canvas, so that its objects become smaller.

    Args:
        fill: values of the canvas, one for each channel; by default MODEL.PIXEL_MEAN.
        prob: probability of a change.
        max_ratio: largest ratio of a side of the canvas to that of the image, 1 or more. It is
            lower for large images, whose canvas has 2^24 pixels at most.
    """

    def __init__(
        self, *, fill: Sequence[float] = (0.0,), prob: float = 0.5, max_ratio: float = 4.0
    ) -> None:
        super().__init__()
        if not isinstance(fill, Sequence) or not fill:
            raise ValueError(f"fill is {fill!r}; it must be a list with a number for each channel")
        self.fill = tuple(check_number("a value of fill", value, -1e6, 1e6) for value in fill)
        self.prob = check_number("prob", prob, 0, 1)
        self.max_ratio = check_number("max_ratio", max_ratio, 1, 16)

    @classmethod
    def read_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"fill": cfg.MODEL.PIXEL_MEAN}

    def get_transform(self, image: Array) -> T.Transform:
        """Sample canvas and place for an image (H, W, C)."""
        if np.random.uniform() >= self.prob:  # noqa: NPY002
            return T.NoOpTransform()
        height, width = image.shape[:2]
        highest = max(min(self.max_ratio, sqrt(_MAX_CANVAS / (height * width))), 1.0)
        ratio = np.random.uniform(1, highest)  # noqa: NPY002
        left = np.random.uniform(0, width * ratio - width)  # noqa: NPY002
        top = np.random.uniform(0, height * ratio - height)  # noqa: NPY002
        size = int(height * ratio), int(width * ratio)
        return CanvasTransform(int(left), int(top), size, self.fill)


class CanvasTransform(T.Transform):
    """Place an image on a canvas.

    Args:
        left, top: place of the image in pixels.
        size: height and width of the canvas.
        fill: value of each channel; their mean is used for images of another number of channels.
        label: value of the canvas in segmentations.
    """

    needs_pixels = True  # it would show the part of a polygon that a crop before it cut off

    def __init__(
        self,
        left: int,
        top: int,
        size: tuple[int, int],
        fill: Sequence[float],
        label: int = UNLABELLED,
    ) -> None:
        super().__init__()
        self.left, self.top, self.size = left, top, size
        self.fill, self.label = fill, label

    def apply_image(self, img: Array) -> Array:
        """(H, W) or (H, W, C) -> the canvas, of the same type."""
        fill = np.array(self.fill)
        if img.ndim == 2 or img.shape[2] != len(fill):  # such as INPUT.FORMAT L with three means
            fill = fill.mean()
        if img.dtype.kind != "f":
            limits = np.iinfo(img.dtype)
            fill = np.clip(np.rint(fill), limits.min, limits.max)
        return self._place(img, fill)

    def apply_segmentation(self, segmentation: Array) -> Array:
        return self._place(segmentation, self.label)

    def apply_coords(self, coords: Array) -> Array:
        return coords + (self.left, self.top)

    def for_masks(self) -> CanvasTransform:
        """The same for masks of objects, which have no pixel outside the image."""
        return CanvasTransform(self.left, self.top, self.size, self.fill, label=0)

    def _place(self, values: Array, fill: Any) -> Array:
        height, width = values.shape[:2]
        canvas = np.zeros((*self.size, *values.shape[2:]), values.dtype)
        if np.any(fill):  # masks stay sparse: memory of zeros is not touched until it is read
            canvas[...] = fill
        canvas[self.top : self.top + height, self.left : self.left + width] = values
        return canvas


@AUGMENTATION_REGISTRY.register()
class RandomSampleCrop(T.Augmentation):
    """Crop the image at random so that an object is left, as SSD and YOLACT train with.

    Objects are kept whose box has its centre inside the crop; their boxes are clipped to it. The
    others get an empty box, by which Detectron2's `filter_empty_instances` drops them. An image
    without objects stays as it is.

    Args:
        unchanged_prob: probability that the image stays as it is.
        min_scale: smallest ratio of a side of the crop to that of the image.
        aspect_ratio: lowest and highest ratio of height to width of the crop.
        num_trials: crops that are tried before `unchanged_prob` decides again.
    """

    def __init__(
        self,
        *,
        unchanged_prob: float = 1 / 6,
        min_scale: float = 0.3,
        aspect_ratio: tuple[float, float] = (0.5, 2.0),
        num_trials: int = 50,
    ) -> None:
        super().__init__()
        self.unchanged_prob = check_number("unchanged_prob", unchanged_prob, 0.01, 1)
        self.min_scale = check_number("min_scale", min_scale, 0.01, 1)
        self.aspect_ratio = check_range("aspect_ratio", aspect_ratio, 0.01, 100)
        self.num_trials = int(check_number("num_trials", num_trials, 1, 1000))

    def get_transform(self, image: Array, boxes: Array | None) -> T.Transform:
        """Sample a crop.

        Args:
            image: (H, W, C).
            boxes: (M, 4) XYXY of the objects of which one must be left; None if that is unknown:
                then any crop does.
        """
        height, width = image.shape[:2]
        if boxes is not None:
            boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
            if not len(boxes):
                return T.NoOpTransform()
        # parity: four of SSD's six choices ask for an IoU of crop and object. As published they
        # reject no crop, so that five of six are "any crop"; enforced, accuracy falls.
        while np.random.uniform() >= self.unchanged_prob:  # noqa: NPY002
            corners = self._sample_corners(height, width, boxes)
            if corners is not None:
                (top, left), (bottom, right) = corners
                return ObjectCropTransform(left, top, right - left, bottom - top, width, height)
        return T.NoOpTransform()

    def _sample_corners(
        self, height: int, width: int, boxes: Array | None
    ) -> list[list[int]] | None:
        """First and last corner, (y, x) each, of the first trial that fits; None if none does."""
        image_size = np.array([height, width])
        shape = self.num_trials, 2
        sizes = np.random.uniform(self.min_scale, 1, shape) * image_size  # noqa: NPY002
        starts = np.random.uniform(size=shape) * (image_size - sizes)  # noqa: NPY002
        corners = np.stack([starts, starts + sizes], axis=1).astype(np.int64)  # (T, 2, 2)
        low, high = self.aspect_ratio
        aspects = sizes[:, 0] / sizes[:, 1]
        fits = (aspects >= low) & (aspects <= high) & (corners[:, 1] > corners[:, 0]).all(axis=1)
        if boxes is not None:
            rectangles = corners[:, :, ::-1].reshape(-1, 1, 4)  # (T, 1, 4) XYXY
            fits &= are_centred_in(boxes, rectangles).any(axis=1)
        return corners[fits.argmax()].tolist() if fits.any() else None


class ObjectCropTransform(MaskCrop):
    """A crop that empties the boxes whose centre is outside.

    Arguments are those of `CropTransform`.
    """

    def apply_box(self, box: Array) -> Array:
        """(M, 4) XYXY -> clipped to the crop and in its frame, or zeros."""
        boxes = np.asarray(box, dtype=float)
        start = np.array([self.x0, self.y0] * 2)
        shifted, size = boxes - start, np.array([self.w, self.h] * 2)
        is_kept = are_centred_in(shifted, size * [0, 0, 1, 1])
        return np.where(is_kept[:, None], np.clip(shifted, 0, size), 0.0)


def are_centred_in(boxes: Array, rectangles: Array) -> NDArray[np.bool_]:
    """True where the centre of a box is strictly inside a rectangle.

    Args:
        boxes: (..., 4) XYXY.
        rectangles: (..., 4) XYXY; the two are broadcast against each other.
    """
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    inside = (rectangles[..., :2] < centres) & (centres < rectangles[..., 2:])
    return np.asarray(inside.all(axis=-1))
