"""Reading of image files, for all parts of the package.

C channels, H W image size.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data.detection_utils import (
    SizeMismatchError,
    check_image_size,
    convert_image_to_rgb,
    convert_PIL_to_numpy,
)
from numpy.typing import NDArray
from PIL import Image, ImageMode

from instancezoo.data.image_files import (
    Pixels,
    name_file,
    read_content,
    read_size,
    turn_upright,
)
from instancezoo.data.pillow_files import TooManyPixelsError
from instancezoo.data.pixel_range import BY_TYPE, MAX_8_BIT, TYPE, ImageError, PixelRange
from instancezoo.errors import ConfigError

__all__ = [
    "ImageError",
    "ImageReader",
    "TooManyPixelsError",
    "read_image",
    "read_size",
]

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # of R, G, B, as in Pillow's "L"


def read_image(path: str | os.PathLike[str], format: str | None = None) -> NDArray[Any]:
    """Read an image as Detectron2's `read_image` does, with more kinds of files.

    Grey, palette, CMYK and RGBA images are converted (alpha is left out) and EXIF rotation is
    applied. The differences: values of over 8 bits are reduced by their type (16-bit ones to their
    high byte, where Detectron2 would clip; floats in [0, 1] become [0, 255]); TIFF of any depth and
    `.npy` are read; and every failure is an `ImageError`. `ImageReader` keeps all levels.

    Args:
        path: image file.
        format: a Pillow mode, "BGR" or "YUV-BT.601"; None keeps the file's own mode.

    Returns:
        (H, W, C) array, uint8 in [0, 255] except for "YUV-BT.601".

    Raises:
        ImageError: the file is missing, truncated, too large or of an unknown format, or it does
            not have the channels of `format`.
    """
    return ImageReader(format, num_channels=None)(path)


def count_channels(format: str) -> int:
    """Number of channels of a Pillow mode, "BGR" or "YUV-BT.601". Raises `ConfigError`."""
    if format in ("BGR", "YUV-BT.601"):
        return 3
    try:
        return len(ImageMode.getmode(format).bands)
    except KeyError as error:
        raise ConfigError(
            f"INPUT.FORMAT is '{format}'; it must be BGR, RGB, L or another mode of Pillow"
        ) from error


@dataclass(frozen=True)
class ImageReader:
    """Reads images of any depth and number of channels into the network's range.

    With three channels, files are converted to `format` as by `read_image`; with one, to grey.
    Otherwise the file's channels are kept as they are, in their order. Three channels of `.npy`
    files, and three pages, count as red, green, blue.

    Args:
        format: INPUT.FORMAT, as in `read_image`.
        num_channels: of the network, len(MODEL.PIXEL_MEAN); None for any.
        pixel_range: mapping of values to [0, 255].
        max_pixels: largest number of pixels of an image; 0 for any, None for Pillow's limit.
    """

    format: str | None = "BGR"
    num_channels: int | None = 3
    pixel_range: PixelRange = BY_TYPE
    max_pixels: int | None = None

    @classmethod
    def from_config(cls, cfg: Any) -> ImageReader:
        """Build the reader of a whole config.

        Raises:
            ConfigError: a bad INPUT.FORMAT, INPUT.PIXEL_RANGE, INPUT.MAX_PIXELS or
                MODEL.PIXEL_STD.
        """
        mean, std, max_pixels = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.MAX_PIXELS
        if len(mean) != len(std) or not len(mean):
            raise ConfigError(
                f"MODEL.PIXEL_STD has {len(std)} numbers, MODEL.PIXEL_MEAN has {len(mean)}: give "
                "both one number for each channel of the images"
            )
        if not isinstance(max_pixels, int) or max_pixels < 0:
            raise ConfigError(
                f"INPUT.MAX_PIXELS is {max_pixels}; it must be a whole number, 0 for no limit"
            )
        pixel_range = PixelRange.parse(cfg.INPUT.PIXEL_RANGE)
        count_channels(cfg.INPUT.FORMAT)
        if pixel_range.kind != TYPE and cfg.INPUT.FORMAT not in ("BGR", "RGB", "L"):
            raise ConfigError(
                f"INPUT.FORMAT {cfg.INPUT.FORMAT} needs INPUT.PIXEL_RANGE type; other ranges are "
                "for BGR, RGB and L"
            )
        return cls(cfg.INPUT.FORMAT, len(mean), pixel_range, max_pixels)

    def __call__(self, path: str | os.PathLike[str]) -> NDArray[Any]:
        """Read an image.

        Returns:
            (H, W, C) array in [0, 255], upright: uint8 for 1 or 3 channels and the range "type",
            else float32 ("YUV-BT.601": float64).

        Raises:
            ImageError: the file cannot be used; one line that names it.
        """
        with name_file(path):
            keep_depth = self.pixel_range.kind != TYPE
            content = read_content(path, self.num_channels, keep_depth, self.max_pixels)
            if isinstance(content.pixels, Image.Image):
                values = self._convert_image(content.pixels)
            else:
                values = self._convert_pixels(content.pixels)
            return turn_upright(values, content.orientation)

    def read_values(self, path: str | os.PathLike[str]) -> NDArray[Any]:
        """Read the values of a file as they are, before any mapping and conversion.

        Returns:
            (H, W, C), or (H, W) for 8-bit images of one channel; of any type, and not turned.

        Raises:
            ImageError: the file cannot be read; the number of channels is not checked.
        """
        with name_file(path):
            pixels = read_content(path, self.num_channels, True, self.max_pixels).pixels
            return np.asarray(pixels) if isinstance(pixels, Image.Image) else pixels.values

    def read_record(self, record: dict[str, Any]) -> NDArray[Any]:
        """Read the image of a record; add `height` and `width` to the record if it has none.

        Raises:
            ImageError: the file cannot be used, or the image is not of the size in the record.
        """
        image = self(record["file_name"])
        try:
            check_image_size(record, image)
        except SizeMismatchError as error:
            height, width = image.shape[:2]
            raise ImageError(
                f"image '{record['file_name']}' is {width} x {height} pixels, but its annotations "
                f"are for {record.get('width')} x {record.get('height')}: export one of them again"
            ) from error
        return image

    def convert_rgb(self, frame: NDArray[np.uint8]) -> NDArray[Any]:
        """Convert a video's frame, (H, W, 3) uint8 RGB, as if it were read from a file.

        Raises:
            ImageError: the network has another number of channels than 1 or 3.
        """
        return self._convert_image(Image.fromarray(frame))

    def to_rgb(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        """Make a picture to draw on: the first three channels, or the first one as grey.

        Args:
            pixels: (H, W, C) from this reader.

        Returns:
            (H, W, 3) uint8 RGB.
        """
        if self.num_channels == 3:
            if self.format in ("RGB", "BGR", "L"):
                ordered = pixels[:, :, ::-1] if self.format == "BGR" else pixels
            else:
                ordered = convert_image_to_rgb(pixels, self.format)
        else:
            ordered = pixels[:, :, : 3 if pixels.shape[2] >= 3 else 1]
        rounded = np.clip(np.rint(ordered), 0, MAX_8_BIT).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(rounded, (*rounded.shape[:2], 3)))

    @property
    def _mode(self) -> str | None:
        """The format that images are converted to; None for their own channels."""
        if self.num_channels == 1:
            return "L"
        if self.format is None or self.num_channels in (None, 3, count_channels(self.format)):
            return self.format
        return None

    def _convert_image(self, image: Image.Image) -> NDArray[Any]:
        """An image of 8 bits a channel -> (H, W, C)."""
        if self._mode is None and self.num_channels is not None:
            if image.mode in ("P", "PA"):
                image = image.convert("RGBA" if image.has_transparency_data else "RGB")
            elif image.mode == "1":
                image = image.convert("L")
            values = np.asarray(image)
            values = self._check_channels(values[:, :, None] if values.ndim == 2 else values)
        else:
            values = convert_PIL_to_numpy(image, self._mode)
        if self.pixel_range.kind != TYPE:
            return self.pixel_range.apply(values, bits=8)
        return self._avoid_alpha(values)

    def _convert_pixels(self, pixels: Pixels) -> NDArray[Any]:
        """Values of any depth -> (H, W, C)."""
        values = pixels.values
        if self._mode is not None and values.shape[2] != self.num_channels:
            values = values[:, :, : pixels.num_colors]
        is_converted = self._mode is not None and values.shape[2] in (1, 3)
        if not is_converted and (self._mode is not None or self.num_channels is not None):
            self._check_channels(values)
        values = self.pixel_range.apply(values, pixels.bits)
        if not is_converted:
            is_grey = self.num_channels is None and values.shape[2] == 1
            return values[:, :, 0] if is_grey else self._avoid_alpha(values)
        if self.pixel_range.kind != TYPE:
            return self._convert_floats(values)
        image = Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)
        return self._avoid_alpha(convert_PIL_to_numpy(image, self._mode))

    def _avoid_alpha(self, values: NDArray[Any]) -> NDArray[Any]:
        # Detectron2 resizes uint8 of two and four channels as if the last one were alpha.
        return values if self.num_channels in (None, 1, 3) else values.astype(np.float32)

    def _convert_floats(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """(H, W, 1 or 3) in the order RGB -> the channels of the mode."""
        if self._mode == "L":
            is_grey = values.shape[2] == 1
            return values if is_grey else (values @ _LUMA)[:, :, None]
        values = np.broadcast_to(values, (*values.shape[:2], 3))
        return values[:, :, ::-1] if self._mode == "BGR" else values

    def _check_channels(self, values: NDArray[Any]) -> NDArray[Any]:
        num_channels = values.shape[2]
        if num_channels == self.num_channels:
            return values
        shape = " x ".join(map(str, values.shape))
        message = f"its array of {shape} (H x W x C) has {num_channels} channels"
        if self.num_channels is None:
            raise ImageError(f"{message}, which cannot be converted to {self.format}")
        raise ImageError(
            f"{message}, but MODEL.PIXEL_MEAN has {self.num_channels} entries: give "
            "MODEL.PIXEL_MEAN and MODEL.PIXEL_STD one for each channel"
        )
