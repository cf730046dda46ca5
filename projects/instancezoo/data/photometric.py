"""Random changes of colour.

C channels, H W image size.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from numpy.typing import NDArray

from instancezoo.data.augmentations import AUGMENTATION_REGISTRY, check_number, check_range
from instancezoo.data.images import count_channels
from instancezoo.errors import ConfigError

# Channel order -> OpenCV's conversions to hue (degrees), saturation and value, and back.
_CONVERSIONS = {
    "BGR": (cv2.COLOR_BGR2HSV, cv2.COLOR_HSV2BGR),
    "RGB": (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB),
}
_FULL_CIRCLE = 360


@AUGMENTATION_REGISTRY.register()
class PhotometricDistort(T.Augmentation):
    """Random brightness, contrast, saturation and hue, as SSD and YOLACT train with.

    Each change is made with probability `prob`. Contrast comes before or after the changes of
    colour, with equal chances. Images of another number of channels than three have no hue and no
    saturation: only their brightness and contrast change.

    Args:
        channel_order: "BGR" or "RGB"; by default INPUT.FORMAT.
        prob: of each change.
        brightness: largest value that is added or subtracted, in the image's units (of 255).
        contrast: lowest and highest factor of all values.
        saturation: lowest and highest factor of the saturation.
        hue: largest turn of the hue, in degrees.
    """

    def __init__(
        self,
        *,
        channel_order: str = "BGR",
        prob: float = 0.5,
        brightness: float = 32.0,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: float = 18.0,
    ) -> None:
        super().__init__()
        if channel_order not in _CONVERSIONS:
            raise ValueError(f"channel_order is {channel_order!r}; it must be BGR or RGB")
        self.channel_order = channel_order
        self.prob = check_number("prob", prob, 0, 1)
        self.brightness = check_number("brightness", brightness, 0, 255)
        self.contrast = check_range("contrast", contrast, 0, 100)
        self.saturation = check_range("saturation", saturation, 0, 100)
        self.hue = check_number("hue", hue, 0, _FULL_CIRCLE / 2)

    @classmethod
    def read_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Raises `ConfigError` for three channels that are no colours of INPUT.FORMAT BGR or RGB.

        Other numbers of channels are not converted, so that any order does.
        """
        channel_order = cfg.INPUT.FORMAT
        if channel_order not in _CONVERSIONS:
            if len(cfg.MODEL.PIXEL_MEAN) == count_channels(channel_order) == len("HSV"):
                raise ConfigError(
                    f"INPUT.AUGMENTATIONS: PhotometricDistort needs INPUT.FORMAT BGR or RGB, not "
                    f"{channel_order}"
                )
            channel_order = "BGR"
        return {"channel_order": channel_order}

    def get_transform(self, image: NDArray[Any]) -> T.Transform:
        """Sample the changes of an image (H, W, C); the result is float32, not clipped."""
        changes: dict[str, Any] = {
            "brightness": self._sample(-self.brightness, self.brightness, neutral=0.0),
            "contrast": self._sample(*self.contrast, neutral=1.0),
            "saturation": self._sample(*self.saturation, neutral=1.0),
            "hue": self._sample(-self.hue, self.hue, neutral=0.0),
        }
        contrast_first = bool(np.random.uniform() < 0.5)  # noqa: NPY002
        conversions = _CONVERSIONS[self.channel_order]
        return T.ColorTransform(
            partial(distort, **changes, contrast_first=contrast_first, conversions=conversions)
        )

    def _sample(self, low: float, high: float, *, neutral: float) -> float:
        # From the global generator, as Detectron2's augmentations do.
        is_changed = np.random.uniform() < self.prob  # noqa: NPY002
        return float(np.random.uniform(low, high)) if is_changed else neutral  # noqa: NPY002


def distort(
    image: NDArray[Any],
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    contrast_first: bool,
    conversions: tuple[int, int],
) -> NDArray[np.float32]:
    """Change brightness, contrast and colours of an image.

    Args:
        image: (H, W) or (H, W, C) of any type; only three channels have colours.
        brightness: added to all values.
        contrast: factor of all values.
        saturation: factor of the saturation.
        hue: turn in degrees.
        contrast_first: if True, contrast changes before the colours.
        conversions: OpenCV's codes to HSV and back.

    Returns:
        The same shape, float32, neither clipped nor rounded.
    """
    pixels: NDArray[Any] = np.array(image, dtype=np.float32, order="C")
    pixels += brightness
    if contrast_first:
        pixels *= contrast
    if pixels.ndim == 3 and pixels.shape[2] == len("HSV"):
        # parity: converted even if nothing changes; the way back is exact for positive values only.
        hsv: NDArray[Any] = cv2.cvtColor(pixels, conversions[0])
        hsv[:, :, 0] = (hsv[:, :, 0] + hue) % _FULL_CIRCLE
        hsv[:, :, 1] *= saturation
        pixels = cv2.cvtColor(hsv, conversions[1])
    if not contrast_first:
        pixels *= contrast
    return pixels
