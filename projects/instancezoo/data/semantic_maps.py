"""Reads the class of every pixel of an image from a file.

H W image size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instancezoo.data.images import ImageError, ImageReader


def read_semantic_map(path: str | Path, image_shape: tuple[int, ...]) -> NDArray[Any]:
    """Read the class of each pixel, which of a palette image is the index.

    Args:
        path: image file of one channel, of 8 or 16 bits.
        image_shape: height and width of the image that it belongs to, and anything after them.

    Returns:
        (H, W) uint8, or float32 of whole numbers: torch resizes no wider integers.

    Raises:
        ImageError: the file cannot be read, or is of another size or kind.
    """
    labels = ImageReader(None, num_channels=None, max_pixels=0).read_values(path)
    labels = labels[:, :, 0] if labels.shape[2:] == (1,) else labels
    if labels.ndim != 2 or labels.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f"semantic map '{path}' has the shape {labels.shape} and the type {labels.dtype}: it "
            "must have one channel of whole numbers, the classes"
        )
    if labels.shape != image_shape[:2]:
        raise ImageError(
            f"semantic map '{path}' is {labels.shape[1]} x {labels.shape[0]} pixels, but its image "
            f"{image_shape[1]} x {image_shape[0]}"
        )
    return labels if labels.dtype == np.uint8 else labels.astype(np.float32)
