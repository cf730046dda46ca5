"""Checks one object's segmentation before any C code sees it.

pycocotools trusts its input: run lengths that do not sum to the image, or a polygon with a distant
vertex, make it write beyond its memory or exhaust it. V vertices.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from numpy.typing import NDArray

MIN_POLYGON_NUMBERS = 6  # xy of three vertices
_FIRST_CHARACTER = 48  # COCO's run-length strings hold 6 bits a character, from "0" on
_VALUE_BITS, _SIGN, _MORE = 5, 0x10, 0x20
_MAX_CHARACTERS_PER_RUN = 7  # 35 bits: more than any run needs


class Problem(StrEnum):
    """What can be wrong with an entry of a COCO JSON."""

    MISSING_KEY = "missing key"
    WRONG_TYPE = "wrong type"
    NOT_FINITE = "number that is not finite"
    DUPLICATE_ID = "duplicate id"
    SAME_ENTRY = "all keys equal to those of an earlier annotation"
    NEGATIVE_ID = "negative id"
    BAD_SIZE = "height or width not positive or too large"
    MISSING_FILE = "missing image file"
    UNREADABLE_FILE = "unreadable image file"
    WRONG_SIZE = "wrong image size"
    TOO_MANY_PIXELS = "image has more pixels than INPUT.MAX_PIXELS"
    UNKNOWN_IMAGE = "unknown image"
    DROPPED_IMAGE = "image was dropped"
    UNKNOWN_CATEGORY = "unknown category"
    ZERO_AREA = "zero area"
    OUTSIDE = "box outside the image"
    POLYGON_OUTSIDE = "polygon outside the image"
    FEW_POINTS = "polygon under 3 points"
    BAD_RLE = "malformed RLE"
    # Repaired rather than dropped:
    CLIPPED = "box clipped to the image"
    AREA_MEASURED = "area measured from the mask"
    BOX_MEASURED = "box missing or bad: measured from the mask"
    RENUMBERED = "annotation id missing, repeated or not a positive whole number: renumbered"
    NORMALISED = "ids, sizes or iscrowd missing or not whole numbers"
    ATTRIBUTES_LEFT_OUT = "attributes that are not a dictionary left out"
    POLYGON_LEFT_OUT = "polygon under 3 points left out"


class BadEntry(Exception):
    """An entry that has to be dropped."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.value)
        self.problem = problem


def read_numbers(value: Any) -> NDArray[np.float64]:
    """A JSON list of finite numbers as a 1-D array. Raises `BadEntry`."""
    # Checked by type: NumPy would turn the string "1", and true, into a number.
    if not isinstance(value, list) or not set(map(type, value)) <= {int, float}:
        raise BadEntry(Problem.WRONG_TYPE)
    try:
        array = np.array(value, dtype=np.float64)
    except OverflowError as error:
        raise BadEntry(Problem.NOT_FINITE) from error
    if not np.isfinite(array).all():
        raise BadEntry(Problem.NOT_FINITE)
    return array


def check_segmentation(segmentation: Any, height: int, width: int) -> tuple[Any, list[Problem]]:
    """Check polygons or an RLE (compressed or not).

    Args:
        segmentation: what the JSON holds.
        height, width: pixels of the image.

    Returns:
        Polygons (lists of 6 numbers or more) or a compressed RLE with `counts` as a string, and
        the repairs made.

    Raises:
        BadEntry: it cannot be used.
    """
    if isinstance(segmentation, dict):
        return _check_rle(segmentation, height, width), []
    if isinstance(segmentation, list):
        return _check_polygons(segmentation, height, width)
    raise BadEntry(Problem.MISSING_KEY if segmentation is None else Problem.WRONG_TYPE)


def segmentation_to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A valid COCO segmentation (polygons, run-length lists or strings) as compressed RLE."""
    if isinstance(segmentation, list):
        return mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, height, width)
    return segmentation


def measure_area(segmentation: Any, height: int, width: int) -> float:
    """Area in pixels of a valid COCO segmentation."""
    return float(mask_util.area(segmentation_to_rle(segmentation, height, width)))


def measure_box(segmentation: Any, height: int, width: int) -> list[float]:
    """XYWH in pixels around a valid COCO segmentation; zeros around one without a pixel."""
    box: list[float] = mask_util.toBbox(segmentation_to_rle(segmentation, height, width)).tolist()
    return box


def measure_object(entry: dict[str, Any], height: int, width: int) -> float:
    """Area in pixels of an annotation's or a result's mask, or of its box if it has no mask."""
    if entry.get("segmentation"):
        return measure_area(entry["segmentation"], height, width)
    _, _, box_width, box_height = entry.get("bbox") or (0.0, 0.0, 0.0, 0.0)
    return float(box_width * box_height)


def decode_runs(counts: str) -> NDArray[np.int64]:
    """Run lengths of COCO's compressed string. Raises `BadEntry` for any other string."""
    try:
        codes = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64)
    except UnicodeEncodeError as error:
        raise BadEntry(Problem.BAD_RLE) from error
    codes -= _FIRST_CHARACTER
    if not len(codes) or codes.min() < 0 or codes.max() >= 64 or codes[-1] & _MORE:
        raise BadEntry(Problem.BAD_RLE)
    ends = np.nonzero(codes & _MORE == 0)[0]
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_CHARACTERS_PER_RUN:
        raise BadEntry(Problem.BAD_RLE)
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 0x1F) << (_VALUE_BITS * place), starts)
    runs -= np.where(codes[ends] & _SIGN, 1 << (_VALUE_BITS * lengths), 0)
    # From the fourth run on, the string holds differences to the run two places before.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _check_rle(rle: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    size = rle.get("size")
    if size != [height, width] or set(map(type, size)) != {int}:
        raise BadEntry(Problem.BAD_RLE)
    counts = rle.get("counts")
    runs = decode_runs(counts) if isinstance(counts, str) else _read_runs(counts)
    num_pixels = height * width
    # Each run is limited first, so that the sum cannot overflow.
    if runs.min(initial=0) < 0 or runs.max(initial=0) > num_pixels or runs.sum() != num_pixels:
        raise BadEntry(Problem.BAD_RLE)
    if not runs[1::2].any():
        raise BadEntry(Problem.ZERO_AREA)
    if not isinstance(counts, str):
        counts = segmentation_to_rle(rle, height, width)["counts"].decode("ascii")
    return {"size": [height, width], "counts": counts}


def _read_runs(counts: Any) -> NDArray[np.int64]:
    if not isinstance(counts, list) or not set(map(type, counts)) <= {int}:
        raise BadEntry(Problem.BAD_RLE)
    try:
        return np.array(counts, dtype=np.int64)
    except OverflowError as error:
        raise BadEntry(Problem.BAD_RLE) from error


def _check_polygons(
    polygons: list[Any], height: int, width: int
) -> tuple[list[list[float]], list[Problem]]:
    if not polygons:
        raise BadEntry(Problem.MISSING_KEY)
    arrays = [read_numbers(polygon) for polygon in polygons]
    usable = [xy for xy in arrays if len(xy) >= MIN_POLYGON_NUMBERS and len(xy) % 2 == 0]
    if not usable:
        raise BadEntry(Problem.FEW_POINTS)
    vertices = np.concatenate([xy.reshape(-1, 2) for xy in usable])
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    size = np.array([width, height])
    far = max(height, width)
    if (low < -far).any() or (high > size + far).any() or (low >= size).any() or (high <= 0).any():
        raise BadEntry(Problem.POLYGON_OUTSIDE)
    if not any(_encloses_area(xy.reshape(-1, 2)) for xy in usable):
        raise BadEntry(Problem.ZERO_AREA)
    repairs = [Problem.POLYGON_LEFT_OUT] if len(usable) < len(arrays) else []
    return [xy.tolist() for xy in usable], repairs


def _encloses_area(vertices: NDArray[np.float64], tolerance: float = 1e-6) -> bool:
    """False if all vertices (V, 2) lie on one line."""
    offset = vertices[1:] - vertices[0]
    farthest = offset[np.abs(offset).sum(axis=1).argmax()]
    distance = offset[:, 0] * farthest[1] - offset[:, 1] * farthest[0]
    return bool(np.abs(distance).max() > tolerance)
