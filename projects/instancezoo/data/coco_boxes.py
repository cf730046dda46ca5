"""Checks the boxes of a COCO JSON, each alone and all of them against their masks.

M annotations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from numpy.typing import NDArray

from instancezoo.data.coco_polygons import MAX_COORDINATE, CheckedMask
from instancezoo.data.coco_values import (
    BadEntry,
    Entry,
    Id,
    Problem,
    missing_key,
    read_numbers,
    wrong_type,
)

BORDER_TOLERANCE = 1.0  # pixels by which rounding may push a box over the border
# A box fits if each edge is this near to its mask: pixels, and share of the mask's longer side.
FIT_PIXELS, FIT_SHARE = 2.0, 0.05
MIN_CAUSE_SHARE = 0.8  # share of the boxes that do not fit which one cause has to explain

Boxes = NDArray[np.float64]  # (M, 4)


def find_box(
    value: Any, mask: CheckedMask | None, height: int, width: int
) -> tuple[list[float], list[Problem]]:
    """The box of an annotation, or the mask's where that is missing or bad.

    Args:
        value: what the JSON holds; None for no box.
        mask: of the annotation, if it has one.
        height, width: pixels of the image.

    Returns:
        XYWH in pixels and the repairs made.

    Raises:
        BadEntry: neither box nor mask is usable.
    """
    try:
        return _check_box(value, height, width)
    except BadEntry:
        if mask is None:
            raise
        box: list[float] = mask_util.toBbox(mask.rle).tolist()
        return box, [Problem.BOX_MEASURED]


def _check_box(value: Any, height: int, width: int) -> tuple[list[float], list[Problem]]:
    if value is None:
        raise missing_key("bbox")
    numbers = read_numbers(value, "bbox").tolist()
    if len(numbers) != 4:
        raise wrong_type("bbox")
    x, y, w, h = numbers
    if w <= 0 or h <= 0:
        raise BadEntry(Problem.ZERO_AREA)
    right, bottom = x + w, y + h
    if x >= width or y >= height or right <= 0 or bottom <= 0:
        raise BadEntry(Problem.OUTSIDE)
    repairs = [] if set(map(type, value)) <= {int, float} else [Problem.NORMALISED]
    if max(-x, -y, right - width, bottom - height) <= BORDER_TOLERANCE:
        return numbers, repairs
    x, y = max(x, 0.0), max(y, 0.0)
    return [x, y, min(right, width) - x, min(bottom, height) - y], [*repairs, Problem.CLIPPED]


class BoxFit:
    """Compares the boxes of a file with the masks."""

    def __init__(self) -> None:
        self._labels: list[Id] = []
        self._rows: list[list[float]] = []  # box, extent of the mask, width and height of the image

    def add(self, label: Id, box: list[Any], extent: list[float], image: Entry) -> None:
        """Take a box as in the file, and the extent of its mask as in `CheckedMask`."""
        self._labels.append(label)
        numbers = np.clip(read_numbers(box, "bbox"), -MAX_COORDINATE, MAX_COORDINATE)
        self._rows.append([*numbers, *extent, image["width"], image["height"]])

    def find_misfits(self) -> tuple[list[Id], str]:
        """Labels of the boxes that do not fit, and the likely cause."""
        rows = np.array(self._rows, dtype=np.float64).reshape(-1, 10)
        misfits, cause = find_misfits(rows[:, :4], rows[:, 4:8], rows[:, 8:])
        return [self._labels[row] for row in misfits.nonzero()[0]], cause


def find_misfits(boxes: Boxes, extents: Boxes, sizes: Boxes) -> tuple[NDArray[np.bool_], str]:
    """Find boxes that do not lie around their masks, and what they look like instead.

    Args:
        boxes: (M, 4) as in the file, XYWH in pixels if they are right.
        extents: (M, 4) XYXY in pixels around the masks, also beyond the image.
        sizes: (M, 2) width and height of the images in pixels.

    Returns:
        (M,) True where a box does not fit, and the likely cause; "" if there is none.
    """
    misfits = ~_fits(_to_corners(boxes), extents, sizes)
    if not misfits.any():
        return misfits, ""
    boxes, extents, sizes = boxes[misfits], extents[misfits], sizes[misfits]
    sides = np.tile(sizes, 2)
    another_size = "the boxes or the masks belong to pictures of another size"
    meanings = (
        ("the boxes are [x1, y1, x2, y2], not [x, y, width, height]", boxes),
        ("the boxes are [centre x, centre y, width, height]", _from_centres(boxes)),
        ("x and y are swapped in the boxes or in the masks", _to_corners(boxes[:, [1, 0, 3, 2]])),
        ("the boxes are shares of the image (0 to 1), not pixels", _to_corners(boxes * sides)),
        (another_size, _rescale(_to_corners(boxes), extents)),
        # Images of several sizes that were stretched to one.
        (another_size, _rescale(_to_corners(boxes) * sides, extents)),
    )
    for cause, corners in meanings:
        if _fits(corners, extents, sizes).mean() >= MIN_CAUSE_SHARE:
            return misfits, cause
    return misfits, ""


def _fits(corners: Boxes, extents: Boxes, sizes: Boxes) -> NDArray[np.bool_]:
    limits = np.tile(sizes, 2)
    expected = np.clip(extents, 0, limits)
    longest = (expected[:, 2:] - expected[:, :2]).max(axis=1, initial=0)
    tolerance = np.maximum(FIT_PIXELS, FIT_SHARE * longest)
    distance = np.abs(np.clip(corners, 0, limits) - expected).max(axis=1, initial=0)
    return np.asarray(distance <= tolerance)


def _to_corners(boxes: Boxes) -> Boxes:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _from_centres(boxes: Boxes) -> Boxes:
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def _rescale(corners: Boxes, extents: Boxes) -> Boxes:
    """Multiply x and y by the median factor between boxes and masks."""
    ratios = extents.reshape(-1, 2) / np.maximum(corners.reshape(-1, 2), 1e-9)
    return corners * np.tile(np.median(ratios, axis=0), 2)
