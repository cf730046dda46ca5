"""Reading of image files, for all parts of the package.

C channels, H W image size.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from detectron2.data.detection_utils import (
    SizeMismatchError,
    _apply_exif_orientation,
    check_image_size,
    convert_PIL_to_numpy,
)
from detectron2.utils.file_io import PathManager
from numpy.typing import NDArray
from PIL import Image

from instancezoo.errors import ZooError, first_line

_MAX_8_BIT, _MAX_16_BIT = 255, 65535


class ImageError(ZooError):
    """An image that cannot be used; one line that names the file."""


def read_image(path: str | os.PathLike[str], format: str | None = None) -> NDArray[Any]:
    """Read an image as Detectron2's `read_image` does, with two differences.

    Grey, palette, CMYK and RGBA images are converted (alpha is left out) and EXIF rotation is
    applied. The differences: a 16-bit grey image becomes 8-bit by its high byte (`value // 256`,
    as Pillow does with 16-bit colour PNG) where Detectron2 would clip values over 255 to white,
    and every failure is an `ImageError`.

    Args:
        path: image file.
        format: a Pillow mode, "BGR" or "YUV-BT.601"; None keeps the file's own mode.

    Returns:
        (H, W, C) array, uint8 in [0, 255] except for "YUV-BT.601".

    Raises:
        ImageError: the file is missing, truncated, too large or of an unknown format.
    """
    try:
        with PathManager.open(os.fspath(path), "rb") as file, Image.open(file) as image:
            # Detectron2's own rotation, though private: both must give the same image.
            upright = _apply_exif_orientation(image)
            return convert_PIL_to_numpy(_reduce_to_8_bit(upright), format)
    except FileNotFoundError as error:
        raise ImageError(f"image '{path}' does not exist") from error
    except Exception as error:  # Pillow's readers raise nearly anything on broken files
        raise ImageError(f"image '{path}' cannot be read: {first_line(error)}") from error


def read_record_image(record: dict[str, Any], format: str | None = None) -> NDArray[Any]:
    """Read the image of a record, (H, W, C), and add `height` and `width` if it has none.

    Raises:
        ImageError: as in `read_image`, or the image is not of the size in the record.
    """
    image = read_image(record["file_name"], format)
    try:
        check_image_size(record, image)
    except SizeMismatchError as error:
        height, width = image.shape[:2]
        raise ImageError(
            f"image '{record['file_name']}' is {width} x {height} pixels, but its annotations "
            f"are for {record.get('width')} x {record.get('height')}: export one of them again"
        ) from error
    return image


def _reduce_to_8_bit(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    # Pillow opens some 16-bit files, and some 8-bit ones, as 32-bit "I".
    if image.mode != "I" or values.max(initial=0) > _MAX_8_BIT:
        values = np.clip(values, 0, _MAX_16_BIT) // (_MAX_8_BIT + 1)
    return Image.fromarray(np.clip(values, 0, _MAX_8_BIT).astype(np.uint8))
