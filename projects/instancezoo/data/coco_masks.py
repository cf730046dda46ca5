"""Checks one object's segmentation before any C code sees it.

pycocotools trusts its input: run lengths that do not sum to the image, or a polygon with a distant
vertex, make it write beyond its memory or exhaust it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from numpy.typing import NDArray

from instancezoo.data.coco_polygons import CheckedMask, check_polygons, polygons_to_rle
from instancezoo.data.coco_values import BadEntry, Problem, read_numbers, wrong_type

_FIRST_CHARACTER = 48  # COCO's run-length strings hold 6 bits a character, from "0" on
_VALUE_BITS, _SIGN, _MORE = 5, 0x10, 0x20
_MAX_CHARACTERS_PER_RUN = 7  # 35 bits: more than any run needs


def check_segmentation(segmentation: Any, height: int, width: int) -> CheckedMask:
    """Check polygons or an RLE (compressed or not).

    Args:
        segmentation: what the JSON holds.
        height, width: pixels of the image.

    Raises:
        BadEntry: it cannot be used, or covers no pixel.
    """
    if isinstance(segmentation, dict):
        rle = _check_rle(segmentation, height, width)
        x, y, w, h = mask_util.toBbox(rle).tolist()
        counts = segmentation["counts"]
        numbers = [*segmentation["size"], *(counts if isinstance(counts, list) else ())]
        repairs = [] if set(map(type, numbers)) == {int} else [Problem.NORMALISED]
        return CheckedMask(rle, rle, [x, y, x + w, y + h], repairs)
    if isinstance(segmentation, list):
        return check_polygons(segmentation, height, width)
    raise wrong_type("segmentation")


def segmentation_to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A valid COCO segmentation (polygons, run-length lists or strings) as compressed RLE."""
    if isinstance(segmentation, list):
        return polygons_to_rle(segmentation, height, width)
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, height, width)
    return segmentation


def measure_area(segmentation: Any, height: int, width: int) -> float:
    """Area in pixels of a valid COCO segmentation."""
    return float(mask_util.area(segmentation_to_rle(segmentation, height, width)))


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
    try:
        size = read_numbers(rle.get("size"), "segmentation").tolist()
    except BadEntry as error:
        raise BadEntry(Problem.RLE_SIZE) from error
    if size != [height, width]:
        raise BadEntry(Problem.RLE_SIZE)
    counts = rle.get("counts")
    runs = decode_runs(counts) if isinstance(counts, str) else _read_runs(counts)
    num_pixels = height * width
    # Each run is limited first, so that the sum cannot overflow.
    if runs.min(initial=0) < 0 or runs.max(initial=0) > num_pixels or runs.sum() != num_pixels:
        raise BadEntry(Problem.BAD_RLE)
    if not runs[1::2].any():
        raise BadEntry(Problem.ZERO_AREA)
    if not isinstance(counts, str):
        encoded = mask_util.frPyObjects({"size": [height, width], "counts": runs}, height, width)
        counts = encoded["counts"].decode("ascii")
    return {"size": [height, width], "counts": counts}


def _read_runs(counts: Any) -> NDArray[np.int64]:
    try:
        numbers = read_numbers(counts, "segmentation")
    except BadEntry as error:
        raise BadEntry(Problem.BAD_RLE) from error
    if (np.abs(numbers) >= 2**53).any() or (numbers % 1).any():
        raise BadEntry(Problem.BAD_RLE)
    return numbers.astype(np.int64)
