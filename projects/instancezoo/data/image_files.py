"""Opens image files of any kind: their size, and their pixels as the file holds them.

C channels, H W image size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import cv2
import numpy as np
from detectron2.utils.file_io import PathManager
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from instancezoo.data.pillow_files import (
    ORIENTATION_TAG,
    SWAPS_SIDES,
    check_num_pixels,
    find_orientation,
    has_hidden_depth,
    is_deep,
    open_with_pillow,
)
from instancezoo.data.pixel_range import ImageError
from instancezoo.data.tiff_files import (
    TIFF_MAGIC,
    MissingCodecError,
    TiffHeader,
    read_tiff_header,
    read_tiff_pixels,
)
from instancezoo.errors import first_line

_NUMPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class Pixels:
    """Pixels as a file holds them.

    Args:
        values: (H, W, C) bool, whole numbers or floats.
        bits: of whole numbers, as the file states.
        num_colors: the channels behind these are alpha.
    """

    values: NDArray[Any]
    bits: int
    num_colors: int


@dataclass(frozen=True)
class Content:
    """A decoded file: an image of Pillow's with 8 bits a channel, or other pixels.

    Args:
        pixels: before the rotation.
        orientation: EXIF's, 1 to 8, that is still to be applied; see `turn_upright`.
    """

    pixels: Image.Image | Pixels
    orientation: int


@contextmanager
def name_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn any error inside the block into an `ImageError` of one line that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise ImageError(f"image '{path}' does not exist") from error
    except ImageError as error:
        raise type(error)(f"image '{path}' cannot be used: {error}") from error
    except UnidentifiedImageError as error:  # its own message names a Python object
        raise ImageError(f"image '{path}' cannot be read: its format is unknown") from error
    except Exception as error:  # readers raise nearly anything on broken files
        raise ImageError(f"image '{path}' cannot be read: {first_line(error)}") from error


def read_size(path: str | os.PathLike[str], max_pixels: int | None = None) -> tuple[int, int]:
    """Width and height of an image as shown, after the EXIF rotation, by its header alone.

    Args:
        path: image file.
        max_pixels: largest number of pixels; 0 for any, None for Pillow's limit.

    Raises:
        ImageError: the file is missing, its header is broken, or it has too many pixels
            (`TooManyPixelsError`).
    """
    with name_file(path), PathManager.open(os.fspath(path), "rb") as file:
        magic = _read_magic(file)
        if magic.startswith(_NUMPY_MAGIC):
            height, width, _ = _map_numpy(path).shape
        elif magic.startswith(TIFF_MAGIC):
            header = _read_tiff_header(file, max_pixels)
            width, height = header.width, header.height
        else:
            with open_with_pillow(file, max_pixels) as image:
                width, height = image.size
                if find_orientation(image, file) in SWAPS_SIDES:
                    width, height = height, width
        check_num_pixels(width, height, max_pixels)
        return width, height


def read_content(
    path: str | os.PathLike[str], num_channels: int | None, keep_depth: bool, max_pixels: int | None
) -> Content:
    """Decode a file; call it within `name_file`.

    Args:
        path: image file.
        num_channels: of the result; None for any. A TIFF may have this number of pages.
        keep_depth: if True, colours of over 8 bits keep them; else Pillow takes their high byte.
        max_pixels: as in `read_size`.

    Raises:
        ImageError: the file cannot be used.
        Exception: nearly anything on broken files.
    """
    with PathManager.open(os.fspath(path), "rb") as file:
        magic = _read_magic(file)
        if magic.startswith(_NUMPY_MAGIC):
            array = _map_numpy(path)
            check_num_pixels(array.shape[1], array.shape[0], max_pixels)
            values = np.array(array, dtype=array.dtype.newbyteorder("="))
            return Content(Pixels(values, 8 * values.itemsize, values.shape[2]), 1)
        if magic.startswith(TIFF_MAGIC):
            return _read_tiff(file, num_channels, keep_depth, max_pixels)
        with open_with_pillow(file, max_pixels) as image:
            orientation = find_orientation(image, file)
            if keep_depth and has_hidden_depth(image):
                file.seek(0)
                return Content(_read_deep_colors(file.read()), orientation)
            image.load()
            return Content(_split_off_deep(image), orientation)


def turn_upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn an image (H, W, ...) by its EXIF orientation, 1 to 8; others leave it as it is."""
    if orientation in SWAPS_SIDES:
        values = values.swapaxes(0, 1)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    values = values[::-1] if flip_rows else values
    return values[:, ::-1] if flip_columns else values


def _read_magic(file: IO[bytes]) -> bytes:
    magic = file.read(8)
    file.seek(0)
    return magic


def _map_numpy(path: str | os.PathLike[str]) -> NDArray[Any]:
    """An array of a file, (H, W, C), without reading its values."""
    local = PathManager.get_local_path(os.fspath(path))
    array = np.load(local, mmap_mode="r", allow_pickle=False)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.dtype.kind not in "buif" or not array.size:
        raise ImageError(
            f"it holds {array.dtype} of shape {array.shape}; an image is (H, W) or (H, W, C), of "
            "whole numbers or floats"
        )
    return array


def _read_tiff_header(file: IO[bytes], max_pixels: int | None) -> TiffHeader:
    try:
        return read_tiff_header(file)
    except Exception:  # Pillow may still read it
        with open_with_pillow(file, max_pixels) as image:
            width, height = image.size  # turned already, but not by XMP
            tags: Any = image
            in_xmp = ORIENTATION_TAG not in tags.tag_v2
            if in_xmp and image.getexif().get(ORIENTATION_TAG) in SWAPS_SIDES:
                width, height = height, width
            num_pages, bands = getattr(image, "n_frames", 1), image.getbands()
            is_plain = not is_deep(image)
            has_palette = image.mode == "P"
            return TiffHeader(width, height, 1, len(bands), num_pages, 8, is_plain, has_palette)


def _read_tiff(
    file: IO[bytes], num_channels: int | None, keep_depth: bool, max_pixels: int | None
) -> Content:
    header = _read_tiff_header(file, max_pixels)
    check_num_pixels(header.width, header.height, max_pixels)
    if header.num_pages > 1 and header.num_pages != num_channels:
        wanted = "one" if num_channels in (None, 1) else f"one, or {num_channels} as channels"
        raise ImageError(
            f"it has {header.num_pages} pages, not {wanted}: save each page as a file of its own, "
            "or give MODEL.PIXEL_MEAN and MODEL.PIXEL_STD an entry for each page"
        )
    is_converted = num_channels in (None, 1, 3) and (header.is_plain or not keep_depth)
    if header.num_pages == 1 and (is_converted or header.has_palette):
        image = _try_pillow(file, max_pixels, deep=False)
        if image is not None:
            return Content(image, 1)
    try:
        values, num_colors = read_tiff_pixels(file)
    except MissingCodecError:
        image = _try_pillow(file, max_pixels, deep=True) if header.num_pages == 1 else None
        if image is None or len(image.getbands()) != header.num_channels:
            raise
        return Content(_split_off_deep(image, header.bits), 1)
    return Content(Pixels(values, header.bits, num_colors), header.orientation)


def _try_pillow(file: IO[bytes], max_pixels: int | None, *, deep: bool) -> Image.Image | None:
    """A TIFF as Pillow reads it, turned upright; None if it does not know this kind of pixels.

    Without `deep` it is None for more than 8 bits a channel, too.
    """
    try:
        with open_with_pillow(file, max_pixels) as image:
            if is_deep(image) and not deep:
                return None
            image.load()
            return image
    except (UnidentifiedImageError, NotImplementedError):
        return None


def _split_off_deep(image: Image.Image, bits: int | None = None) -> Image.Image | Pixels:
    if not is_deep(image):
        return image
    values = np.asarray(image)[:, :, None]
    values = values.astype(values.dtype.newbyteorder("="))
    return Pixels(values, bits or 8 * values.itemsize, 1)


def _read_deep_colors(content: bytes) -> Pixels:
    """Decode a PNG or PPM of over 8 bits a channel by OpenCV, (H, W, C) in the order RGB."""
    encoded = np.frombuffer(content, dtype=np.uint8)
    values = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ImageError("OpenCV cannot decode its pixels of over 8 bits")
    if values.ndim == 2:
        values = values[:, :, None]
    if values.shape[2] in (3, 4):
        values = values[:, :, [2, 1, 0, 3][: values.shape[2]]]
    return Pixels(values, 8 * values.itemsize, min(values.shape[2], 3))
