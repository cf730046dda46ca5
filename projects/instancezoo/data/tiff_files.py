"""TIFF files whose pixels Pillow does not give as they are: deep, float, many channels, pages.

C channels, H W image size.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from tifffile import COMPRESSION, PHOTOMETRIC

from instancezoo.data.pillow_files import ORIENTATION_TAG, SWAPS_SIDES
from instancezoo.data.pixel_range import ImageError

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_XMP_TAG = 700
_COLORS = (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR, PHOTOMETRIC.CIELAB)
# Another series with at least this share of the first one's pixels is a page, not a thumbnail.
_MIN_PAGE_SHARE = 0.25
_MAX_NARROW = 16  # pixels of a row that are taken for channels

# Its warnings about odd tags would go to the terminal; what matters is raised.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class MissingCodecError(ImageError):
    """The pixels are compressed in a way that needs the package imagecodecs."""


@dataclass(frozen=True)
class TiffHeader:
    """What a TIFF says about its pixels.

    Args:
        width, height: after the rotation that the file asks for.
        orientation: EXIF's, 1 to 8.
        num_channels: samples of a pixel.
        num_pages: images in the file, without thumbnails, masks and the levels of a pyramid.
        bits: of a sample.
        is_plain: samples are whole numbers without a sign, of 8 bits at most.
        has_palette: samples are places in a table of colours.
    """

    width: int
    height: int
    orientation: int
    num_channels: int
    num_pages: int
    bits: int
    is_plain: bool
    has_palette: bool


def read_tiff_header(file: IO[bytes]) -> TiffHeader:
    """Read the tags of a TIFF; no pixel is decoded. Raises nearly anything on broken files."""
    with _open(file) as tiff:
        series = tiff.series[0]
        page, axes = series.keyframe, _find_axes(series)
        height, width = (series.shape[axes.index(axis)] for axis in "YX")
        orientation = _find_orientation(page)
        if orientation in SWAPS_SIDES:
            width, height = height, width
        # tifffile knows no type for some combinations of bits.
        is_whole = page.dtype is not None and page.dtype.kind in "bu"
        return TiffHeader(
            width,
            height,
            orientation,
            num_channels=series.shape[axes.index("S")] if "S" in axes else 1,
            num_pages=_count_pages(tiff),
            bits=page.bitspersample,
            has_palette=page.photometric == PHOTOMETRIC.PALETTE,
            is_plain=is_whole and page.bitspersample <= 8 and axes == series.axes,
        )


def read_tiff_pixels(file: IO[bytes]) -> tuple[NDArray[Any], int]:
    """Decode the first series of a TIFF; its pages, if there are several, become channels.

    Returns:
        (H, W, C) values of the file's type before any rotation, and the number of the first
        channels that are colours: the others are an alpha channel that may be left out.

    Raises:
        MissingCodecError: see there.
        ImageError: several pages of several channels each.
        Exception: nearly anything on broken files.
    """
    with _open(file) as tiff:
        series = tiff.series[0]
        page = series.keyframe
        _check_length(series, tiff.filehandle.size)
        try:
            values = np.asarray(series.asarray(maxworkers=1))
        except (ValueError, KeyError, NotImplementedError, ImportError) as error:
            if "imagecodecs" not in str(error) and not isinstance(error, ImportError):
                raise
            kind = COMPRESSION(page.compression).name
            raise MissingCodecError(
                f"its pixels ({kind}, {page.bitspersample} bits) need the package imagecodecs: "
                "pip install imagecodecs, or save the file without compression"
            ) from error
        pixels = _to_height_width_channels(values, _find_axes(series))
        if page.photometric == PHOTOMETRIC.MINISWHITE and values.dtype.kind in "bu":
            pixels = pixels ^ np.array(2**page.bitspersample - 1, values.dtype)
        return pixels, _count_colors(page, pixels.shape[2])


def _open(file: IO[bytes]) -> tifffile.TiffFile:
    file.seek(0)
    # OME's description would bring in the pages of other files.
    return tifffile.TiffFile(file, is_ome=False)


def _check_length(series: tifffile.TiffPageSeries, size: int) -> None:
    """Raise `ImageError` if pixels lie beyond the end of the file: tifffile would make them 0."""
    pages = [page for page in series.pages if page is not None]
    parts = [pair for p in pages for pair in zip(p.dataoffsets, p.databytecounts, strict=True)]
    # (0, 0) is a part that was left out since it is empty, as GDAL does.
    beyond = any(start + length > size or length <= 0 < start for start, length in parts)
    if not parts or beyond:
        raise ImageError("it is truncated")


def _count_pages(tiff: tifffile.TiffFile) -> int:
    first = tiff.series[0]
    size = first.keyframe.imagewidth * first.keyframe.imagelength
    others = 0
    for series in tiff.series[1:]:
        page = series.keyframe
        is_part = page.is_reduced or page.is_mask
        if not is_part and page.imagewidth * page.imagelength >= _MIN_PAGE_SHARE * size:
            others += _count_pages_of_series(series)
    return _count_pages_of_series(first) + others


def _count_pages_of_series(series: tifffile.TiffPageSeries) -> int:
    axes = _find_axes(series)
    lengths = [n for n, axis in zip(series.shape, axes, strict=True) if axis not in "YXS"]
    return int(np.prod(lengths))


def _find_axes(series: tifffile.TiffPageSeries) -> str:
    """A letter for each axis of a series: Y, X, S (samples), and others for pages."""
    # tifffile writes an array (H, W, C) as H pages of W x C pixels, unless told otherwise.
    is_narrow = len(series.shape) == 3 and series.shape[2] <= _MAX_NARROW < min(series.shape[:2])
    if series.kind == "shaped" and is_narrow and "S" not in series.axes:
        return "YXS"
    return series.axes


def _to_height_width_channels(values: NDArray[Any], axes: str) -> NDArray[Any]:
    pages = [index for index, axis in enumerate(axes) if axis not in "YXS"]
    order = [*pages, *(axes.index(axis) for axis in "YXS" if axis in axes)]
    moved = values.transpose(order)
    height, width = (values.shape[axes.index(axis)] for axis in "YX")
    if "S" not in axes:
        return np.moveaxis(moved.reshape(-1, height, width), 0, 2)
    num_samples = values.shape[axes.index("S")]
    moved = moved.reshape(-1, height, width, num_samples)
    if len(moved) > 1:
        raise ImageError(
            f"it has {len(moved)} pages of {num_samples} channels: save each as a file of its own"
        )
    return moved[0]


def _count_colors(page: Any, num_channels: int) -> int:
    if page.photometric in _COLORS and num_channels == 4:
        return 3
    is_alpha = num_channels == 2 and any(int(kind) in (1, 2) for kind in page.extrasamples)
    return 1 if is_alpha else num_channels


def _find_orientation(page: Any) -> int:
    if tag := page.tags.get(ORIENTATION_TAG):
        return tag.value if tag.value in range(1, 9) else 1
    # Pillow finds it in XMP too; both have to give the same size.
    xmp = page.tags.get(_XMP_TAG)
    image = Image.Image()
    image.info = {"xmp": xmp.value} if xmp is not None and isinstance(xmp.value, bytes) else {}
    return image.getexif().get(ORIENTATION_TAG, 1)
