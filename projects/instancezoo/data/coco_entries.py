"""Checks single entries of a COCO JSON: a category, an image, an annotation.

Each function takes what the JSON holds and returns a new, clean entry with the keys that are used,
or raises `BadEntry`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Container
from typing import Any

from instancezoo.data.coco_masks import (
    BadEntry,
    Problem,
    check_segmentation,
    measure_area,
    measure_box,
    read_numbers,
)
from instancezoo.data.image_files import read_size
from instancezoo.data.pillow_files import TooManyPixelsError
from instancezoo.data.pixel_range import ImageError

MAX_ID = 2**53  # whole numbers that a float holds too: some readers go through floats
MAX_PIXELS = 2**31  # run lengths are 32 bits
BORDER_TOLERANCE = 1.0  # pixels by which rounding may push a box over the border

Entry = dict[str, Any]


def check_category(entry: Any) -> Entry:
    """A category's id and name."""
    _need(entry, "id", "name")
    return {"id": _read_own_id(entry), "name": _read_text(entry["name"])}


def check_image(entry: Any) -> Entry:
    """An image's id, file name and size; the file itself is not touched."""
    _need(entry, "id", "file_name", "height", "width")
    image_id = _read_own_id(entry)
    height, width = (_read_int(entry[key]) for key in ("height", "width"))
    if min(height, width) <= 0 or height * width >= MAX_PIXELS:
        raise BadEntry(Problem.BAD_SIZE)
    file_name = _read_text(entry["file_name"])
    return {"id": image_id, "height": height, "width": width, "file_name": file_name}


def find_file_problem(
    image_root: str, entry: Entry, max_pixels: int | None = None
) -> Problem | None:
    """Check the file of a clean image entry, by its header alone; None if it is good.

    Args:
        image_root: folder that file names are relative to.
        entry: from `check_image`.
        max_pixels: largest number of pixels; 0 for any, None for Pillow's limit.
    """
    path, expected = os.path.join(image_root, entry["file_name"]), (entry["width"], entry["height"])
    if not os.path.isfile(path):
        return Problem.MISSING_FILE
    try:
        size = read_size(path, max_pixels)
    except TooManyPixelsError:
        return Problem.TOO_MANY_PIXELS
    except ImageError:
        return Problem.UNREADABLE_FILE
    return None if size == expected else Problem.WRONG_SIZE


def check_annotation(
    entry: Any, images: dict[int, Entry], category_ids: Container[int]
) -> tuple[Entry, list[Problem]]:
    """An annotation's ids, box, mask, area and attributes; an id of its own that is bad becomes 0.

    Args:
        entry: what the JSON holds.
        images: clean images by id.
        category_ids: ids of the clean categories.

    Returns:
        The clean annotation and the repairs made in it.
    """
    _need(entry, "image_id", "category_id", "segmentation")
    clean: Entry = {"id": max(read_id(entry) or 0, 0)}
    clean |= {key: _read_int(entry[key]) for key in ("image_id", "category_id")}
    if clean["image_id"] not in images:
        raise BadEntry(Problem.UNKNOWN_IMAGE)
    if clean["category_id"] not in category_ids:
        raise BadEntry(Problem.UNKNOWN_CATEGORY)
    height, width = (images[clean["image_id"]][key] for key in ("height", "width"))
    segmentation, repairs = check_segmentation(entry["segmentation"], height, width)
    bbox, box_repairs = _find_box(entry.get("bbox"), segmentation, height, width)
    area, area_repairs = _check_area(entry.get("area"), segmentation, height, width)
    iscrowd = entry.get("iscrowd")
    if iscrowd not in (None, 0, 1):  # nor False or True
        raise BadEntry(Problem.WRONG_TYPE)
    clean |= {"bbox": bbox, "segmentation": segmentation, "area": area}
    clean["iscrowd"] = int(iscrowd or 0)
    repairs += box_repairs + area_repairs
    if not are_whole_numbers(entry, clean):
        repairs.append(Problem.NORMALISED)
    attributes = entry.get("attributes") or {}
    if not isinstance(attributes, dict):
        repairs.append(Problem.ATTRIBUTES_LEFT_OUT)
    elif flags := {key: value for key, value in attributes.items() if isinstance(value, bool)}:
        clean["attributes"] = flags
    return clean, repairs


def are_whole_numbers(entry: Entry, clean: Entry) -> bool:
    """True if the JSON itself holds integers (not 3.0, not true) where its clean entry does."""
    keys = (key for key, value in clean.items() if type(value) is int and (key, value) != ("id", 0))
    return all(type(entry.get(key)) is int for key in keys)


def read_id(entry: Any) -> int | None:
    """The id of an entry that may be bad otherwise; None if there is none."""
    try:
        return _read_int(entry["id"])
    except (BadEntry, KeyError, TypeError):
        return None


def _need(entry: Any, *keys: str) -> None:
    if not isinstance(entry, dict):
        raise BadEntry(Problem.WRONG_TYPE)
    if any(entry.get(key) is None for key in keys):
        raise BadEntry(Problem.MISSING_KEY)


def _read_text(value: Any) -> str:
    # Half a surrogate pair is valid JSON, but cannot be printed or written to a file.
    if not isinstance(value, str) or not value or any("\ud800" <= c <= "\udfff" for c in value):
        raise BadEntry(Problem.WRONG_TYPE)
    return value


def _read_own_id(entry: Entry) -> int:
    own_id = _read_int(entry["id"])
    if own_id < 0:  # fast readers hold ids unsigned
        raise BadEntry(Problem.NEGATIVE_ID)
    return own_id


def _read_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadEntry(Problem.WRONG_TYPE)
    if isinstance(value, float) and not math.isfinite(value):
        raise BadEntry(Problem.NOT_FINITE)
    # 3.0 is an id that passed through a table of floats.
    if value != int(value) or abs(value) >= MAX_ID:
        raise BadEntry(Problem.WRONG_TYPE)
    return int(value)


def _find_box(
    value: Any, segmentation: Any, height: int, width: int
) -> tuple[list[float], list[Problem]]:
    """The box of an annotation, or the mask's where that is missing or bad."""
    try:
        return _check_box(value, height, width)
    except BadEntry:
        box = measure_box(segmentation, height, width)
        if not all(box[2:]):
            raise
        return box, [Problem.BOX_MEASURED]


def _check_box(value: Any, height: int, width: int) -> tuple[list[float], list[Problem]]:
    numbers = read_numbers(value).tolist()
    if len(numbers) != 4:
        raise BadEntry(Problem.WRONG_TYPE)
    x, y, w, h = numbers
    if w <= 0 or h <= 0:
        raise BadEntry(Problem.ZERO_AREA)
    right, bottom = x + w, y + h
    if x >= width or y >= height or right <= 0 or bottom <= 0:
        raise BadEntry(Problem.OUTSIDE)
    if max(-x, -y, right - width, bottom - height) <= BORDER_TOLERANCE:
        return numbers, []
    x, y = max(x, 0.0), max(y, 0.0)
    return [x, y, min(right, width) - x, min(bottom, height) - y], [Problem.CLIPPED]


def _check_area(
    value: Any, segmentation: Any, height: int, width: int
) -> tuple[float, list[Problem]]:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < MAX_PIXELS:
        return value, []
    area = measure_area(segmentation, height, width)
    if area <= 0:  # a sliver between pixel centres
        raise BadEntry(Problem.ZERO_AREA)
    return area, [Problem.AREA_MEASURED]
