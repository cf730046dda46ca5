"""Opens image files with Pillow: a limit of pixels of its own, and tags without decoding pixels."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from PIL import Image
from PIL.PngImagePlugin import PngStream

from instancezoo.data.pixel_range import ImageError

ORIENTATION_TAG, SWAPS_SIDES = 274, (5, 6, 7, 8)  # of EXIF
_PNG_SIGNATURE_LENGTH = 8
_PNG_TAG_CHUNKS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
_DEEP_MODES = ("I", "F")  # and "I;16..."


class TooManyPixelsError(ImageError):
    """An image of more pixels than INPUT.MAX_PIXELS."""


_limit_lock = threading.Lock()
_num_unlimited = 0
_limit_before: int | None = Image.MAX_IMAGE_PIXELS


@contextmanager
def open_with_pillow(file: IO[bytes], max_pixels: int | None) -> Iterator[Image.Image]:
    """Open an image; its pixels are decoded when it is loaded, within the block.

    Args:
        file: opened for reading bytes.
        max_pixels: largest number of pixels; 0 for any, None for Pillow's limit.

    Raises:
        TooManyPixelsError: it has more.
        Exception: nearly anything on broken files.
    """
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
            check_num_pixels(*image.size, max_pixels)
            yield image
    finally:
        with _limit_lock:
            _num_unlimited -= 1
            if _num_unlimited == 0:
                Image.MAX_IMAGE_PIXELS = _limit_before


def check_num_pixels(width: int, height: int, max_pixels: int | None) -> None:
    """Check the size of an image.

    Args:
        width, height: in pixels.
        max_pixels: as in `open_with_pillow`.

    Raises:
        TooManyPixelsError: it has more pixels.
        ImageError: it has none.
    """
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


def find_orientation(image: Image.Image, file: IO[bytes]) -> int:
    """EXIF orientation of an opened image that is still to be applied; its pixels stay undecoded.

    Args:
        image: just opened by Pillow, not a TIFF: Pillow turns those itself.
        file: that it was opened from; its position is kept.
    """
    position = file.tell()
    try:
        # The tags of a PNG may follow the pixels, and Pillow would decode these first.
        tagged = _read_png_tags(file) if image.format == "PNG" else image
        return int(tagged.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # broken tags count as none, as for Detectron2
        return 1
    finally:
        file.seek(position)


def is_deep(image: Image.Image) -> bool:
    """True if the pixels have over 8 bits a channel."""
    return image.mode in _DEEP_MODES or image.mode.startswith("I;16")


def has_hidden_depth(image: Image.Image) -> bool:
    """True if Pillow would reduce the values to 8 bits, or spread them over 16."""
    tiles: Any = getattr(image, "tile", None) or [None]
    args = getattr(tiles[0], "args", None)
    if image.format == "PNG":
        return not is_deep(image) and "16" in str(args)
    if image.format == "PPM":
        return isinstance(args, tuple) and len(args) == 2 and args[1] not in (1, 255)
    return False


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
