"""Opens image files of any kind: their size, and their pixels as the file holds them.

C channels, H W image size.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import cv2
import numpy as np
from detectron2.utils.file_io import PathManager
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngStream

from instancezoo.data import tiff_files
from instancezoo.data.pixel_range import ImageError
from instancezoo.data.tiff_files import MissingCodecError, TiffHeader
from instancezoo.errors import first_line

_NUMPY_MAGIC, _PNG_SIGNATURE_LENGTH = b"\x93NUMPY", 8
_PNG_TAG_CHUNKS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
_ORIENTATION_TAG, _SWAPS_SIDES = 274, (5, 6, 7, 8)
_DEEP_MODES = ("I", "F")  # and "I;16..."


@dataclass(frozen=True)
class Pixels:
    """Pixels as a file holds them.

    Args:
        values: (H, W, C) bool, whole numbers or floats.
        bits: of whole numbers, as the file states.
        num_colors: the channels behind these are alpha.
        num_pages: over 1 if the channels were pages of the file.
    """

    values: NDArray[Any]
    bits: int
    num_colors: int
    num_pages: int = 1


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
    except Exception as error:  # readers raise nearly anything on broken files
        raise ImageError(f"image '{path}' cannot be read: {first_line(error)}") from error


class TooManyPixelsError(ImageError):
    """An image of more pixels than INPUT.MAX_PIXELS."""


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
        elif magic.startswith(tiff_files.MAGIC):
            header = _read_tiff_header(file, max_pixels)
            width, height = header.width, header.height
        else:
            with _open_with_pillow(file, max_pixels) as image:
                width, height = image.size
                if find_orientation(image, file) in _SWAPS_SIDES:
                    width, height = height, width
        _check_num_pixels(width, height, max_pixels)
        return width, height


def read_content(
    path: str | os.PathLike[str], num_channels: int | None, keep_depth: bool, max_pixels: int | None
) -> Content:
    """Decode a file. Wants to be called within `name_file`.

    Args:
        path: image file.
        num_channels: of the result; None for any. A TIFF may have this number of pages.
        keep_depth: if True, colours of over 8 bits keep them; else Pillow takes their high byte.
        max_pixels: as of `read_size`.

    Raises:
        ImageError: the file cannot be used.
        Exception: nearly anything on broken files.
    """
    with PathManager.open(os.fspath(path), "rb") as file:
        magic = _read_magic(file)
        if magic.startswith(_NUMPY_MAGIC):
            array = _map_numpy(path)
            _check_num_pixels(array.shape[1], array.shape[0], max_pixels)
            values = np.array(array, dtype=array.dtype.newbyteorder("="))
            return Content(Pixels(values, 8 * values.itemsize, values.shape[2]), 1)
        if magic.startswith(tiff_files.MAGIC):
            return _read_tiff(file, num_channels, keep_depth, max_pixels)
        with _open_with_pillow(file, max_pixels) as image:
            orientation = find_orientation(image, file)
            if keep_depth and _has_hidden_depth(image):
                file.seek(0)
                return Content(_read_deep_colors(file.read()), orientation)
            image.load()
            return Content(_split_off_deep(image), orientation)


def turn_upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn an image (H, W, ...) by its EXIF orientation, 1 to 8; others leave it as it is."""
    if orientation in _SWAPS_SIDES:
        values = values.swapaxes(0, 1)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    values = values[::-1] if flip_rows else values
    return values[:, ::-1] if flip_columns else values


def find_orientation(image: Image.Image, file: IO[bytes]) -> int:
    """EXIF orientation of an opened image that is still to be applied; its pixels stay undecoded.

    Args:
        image: just opened by Pillow, not a TIFF: Pillow turns those itself.
        file: that it was opened from; its position is kept.
    """
    try:
        if image.format == "PNG":  # the tags may follow the pixels
            position = file.tell()
            image = _read_png_tags(file)
            file.seek(position)
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # broken tags count as none, as for Detectron2
        return 1


_limit_lock = threading.Lock()
_num_unlimited = 0
_limit_before: int | None = Image.MAX_IMAGE_PIXELS


@contextmanager
def _open_with_pillow(file: IO[bytes], max_pixels: int | None) -> Iterator[Image.Image]:
    # Pillow's limit, with its warning at half of it, is one global for all threads; ours is an
    # argument. The last to leave restores it.
    global _num_unlimited, _limit_before
    with _limit_lock:
        if _num_unlimited == 0:
            _limit_before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _num_unlimited += 1
    try:
        file.seek(0)
        with Image.open(file) as image:
            _check_num_pixels(*image.size, max_pixels)
            yield image
    finally:
        with _limit_lock:
            _num_unlimited -= 1
            if _num_unlimited == 0:
                Image.MAX_IMAGE_PIXELS = _limit_before


def _check_num_pixels(width: int, height: int, max_pixels: int | None) -> None:
    if max_pixels is None:
        with _limit_lock:
            limit = _limit_before if _num_unlimited else Image.MAX_IMAGE_PIXELS
        max_pixels = 2 * (limit or 0)
    if max_pixels and width * height > max_pixels:
        raise TooManyPixelsError(
            f"it has {width} x {height} = {width * height} pixels, but INPUT.MAX_PIXELS is "
            f"{max_pixels}: raise it (0 for no limit), or cut the image into tiles"
        )
    if min(width, height) < 1:
        raise ImageError(f"it is {width} x {height} pixels: it holds no pixel")


def _read_magic(file: IO[bytes]) -> bytes:
    magic = file.read(8)
    file.seek(0)
    return magic


def _read_png_tags(file: IO[bytes]) -> Image.Image:
    """An image without pixels that has the tags of a PNG, wherever they stand in it."""
    file.seek(_PNG_SIGNATURE_LENGTH)
    stream = PngStream(file)
    while True:
        try:
            name, start, length = stream.read()
        except (SyntaxError, struct.error):  # the end of a truncated file
            break
        if name == b"IEND":
            break
        if name in _PNG_TAG_CHUNKS:
            stream.call(name, start, length)
        file.seek(start + length + 4)  # behind the checksum
    tags = Image.Image()
    tags.info = stream.im_info
    return tags


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
        return tiff_files.read_tiff_header(file)
    except Exception:  # Pillow may still read it
        with _open_with_pillow(file, max_pixels) as image:
            width, height = image.size  # turned already, but not by XMP
            tags: Any = image
            in_xmp = _ORIENTATION_TAG not in tags.tag_v2
            if in_xmp and image.getexif().get(_ORIENTATION_TAG) in _SWAPS_SIDES:
                width, height = height, width
            num_pages, bands = getattr(image, "n_frames", 1), image.getbands()
            is_plain = not _is_deep(image)
            has_palette = image.mode == "P"
            return TiffHeader(width, height, 1, len(bands), num_pages, 8, is_plain, has_palette)


def _read_tiff(
    file: IO[bytes], num_channels: int | None, keep_depth: bool, max_pixels: int | None
) -> Content:
    header = _read_tiff_header(file, max_pixels)
    _check_num_pixels(header.width, header.height, max_pixels)
    if header.num_pages > 1 and header.num_pages != num_channels:
        wanted = "one" if num_channels in (None, 1) else f"one, or {num_channels} as channels"
        raise ImageError(
            f"it has {header.num_pages} pages, not {wanted}: save each page as a file of its own, "
            "or give MODEL.PIXEL_MEAN and MODEL.PIXEL_STD an entry for each page"
        )
    is_converted = num_channels in (None, 1, 3) and (header.is_plain or not keep_depth)
    if header.num_pages == 1 and (is_converted or header.has_palette):
        image = _try_pillow(file, max_pixels)
        if image is not None and not _is_deep(image):
            return Content(image, 1)
    try:
        values, num_colors = tiff_files.read_tiff_pixels(file)
    except MissingCodecError:
        image = _try_pillow(file, max_pixels) if header.num_pages == 1 else None
        if image is None or len(image.getbands()) != header.num_channels:
            raise
        return Content(_split_off_deep(image, header.bits), 1)
    pages = header.num_pages
    return Content(Pixels(values, header.bits, num_colors, pages), header.orientation)


def _try_pillow(file: IO[bytes], max_pixels: int | None) -> Image.Image | None:
    """A TIFF as Pillow reads it, turned upright; None if it does not know this kind of pixels."""
    try:
        with _open_with_pillow(file, max_pixels) as image:
            image.load()
            return image
    except (UnidentifiedImageError, NotImplementedError):
        return None


def _is_deep(image: Image.Image) -> bool:
    return image.mode in _DEEP_MODES or image.mode.startswith("I;16")


def _split_off_deep(image: Image.Image, bits: int | None = None) -> Image.Image | Pixels:
    if not _is_deep(image):
        return image
    values = np.asarray(image)[:, :, None]
    values = values.astype(values.dtype.newbyteorder("="))
    return Pixels(values, bits or 8 * values.itemsize, 1)


def _has_hidden_depth(image: Image.Image) -> bool:
    """True if Pillow would reduce the values to 8 bits, or spread them over 16."""
    tiles: Any = getattr(image, "tile", None) or [None]
    args = getattr(tiles[0], "args", None)
    if image.format == "PNG":
        return not _is_deep(image) and "16" in str(args)
    if image.format == "PPM":
        return isinstance(args, tuple) and len(args) == 2 and args[1] not in (1, 255)
    return False


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
