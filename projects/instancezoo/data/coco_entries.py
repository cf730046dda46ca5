"""Checks single entries of a COCO JSON: a category, an image, an annotation.

Each function takes what the JSON holds and returns a new, clean entry with the keys that are used,
or raises `BadEntry`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pycocotools.mask as mask_util

from instancezoo.data.coco_boxes import find_box
from instancezoo.data.coco_masks import check_segmentation
from instancezoo.data.coco_polygons import CheckedMask
from instancezoo.data.coco_values import (
    BadEntry,
    Entry,
    Id,
    Problem,
    find_entry,
    is_printable,
    missing_key,
    need,
    parse_whole,
    read_id,
    read_int,
    read_text,
    wrong_type,
)
from instancezoo.data.image_files import read_size
from instancezoo.data.pillow_files import TooManyPixelsError
from instancezoo.data.pixel_range import ImageError

MAX_ID = 2**53  # a float holds any lower whole number: pycocotools goes through floats
MAX_PIXELS = 2**31  # run lengths are 32 bits


def check_category(entry: Any) -> Entry:
    """A category's id and name."""
    need(entry, "id", "name")
    category_id = read_id(entry, "id")
    # As a text "10" would come before "2".
    if isinstance(category_id, str):
        number = parse_whole(category_id)
        category_id = number if number is not None and str(number) == category_id else category_id
    is_number = type(entry["name"]) in (int, float)
    return {
        "id": category_id,
        "name": str(entry["name"]) if is_number else read_text(entry, "name"),
    }


def check_image(entry: Any) -> Entry:
    """An image's id, file name and size; the file itself is not touched."""
    need(entry, "id", "file_name", "height", "width")
    height, width = (read_int(entry, key) for key in ("height", "width"))
    if min(height, width) <= 0 or height * width >= MAX_PIXELS:
        raise BadEntry(Problem.BAD_SIZE)
    file_name = read_text(entry, "file_name")
    return {"id": read_id(entry, "id"), "height": height, "width": width, "file_name": file_name}


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


def describe_file(image_root: str, entry: Entry, max_pixels: int | None) -> str:
    """Path of the file of a clean image entry, with both sizes if they differ."""
    path = os.path.join(image_root, entry["file_name"])
    try:
        width, height = read_size(path, max_pixels)
    except ImageError:
        return path
    if (width, height) == (entry["width"], entry["height"]):
        return path
    return f"{path} is {width} x {height}, its entry {entry['width']} x {entry['height']}"


def check_annotation(
    entry: Any, images: Mapping[Id, Entry], categories: Mapping[Id, Entry]
) -> tuple[Entry, CheckedMask | None, list[Problem]]:
    """An annotation's ids, box, mask, area and attributes; an id of its own that is bad becomes 0.

    Without a mask (no segmentation, or an empty one) it has no key "segmentation".

    Args:
        entry: what the JSON holds.
        images: clean images, from `add_aliases`.
        categories: clean categories by their ids in the file, from `add_aliases`.

    Returns:
        The clean annotation, its mask if it has one, and the repairs made.

    Raises:
        BadEntry: it cannot be used.
    """
    need(entry, "image_id", "category_id")
    clean: Entry = {
        "id": _read_own_number(entry),
        "image_id": _look_up(entry, "image_id", images, Problem.UNKNOWN_IMAGE)["id"],
        "category_id": _look_up(entry, "category_id", categories, Problem.UNKNOWN_CATEGORY)["id"],
        "iscrowd": 0 if entry.get("iscrowd") is None else _read_flag(entry),
    }
    height, width = (images[clean["image_id"]][key] for key in ("height", "width"))
    mask = None
    if not _is_empty(entry.get("segmentation")):
        mask = check_segmentation(entry["segmentation"], height, width)
        clean["segmentation"] = mask.segmentation
    elif not entry.get("bbox"):
        raise missing_key("segmentation" if "bbox" in entry else "bbox")
    clean["bbox"], box_repairs = find_box(entry.get("bbox"), mask, height, width)
    repairs = [*(mask.repairs if mask is not None else ()), *box_repairs]
    area = entry.get("area")
    is_number = isinstance(area, int | float) and not isinstance(area, bool)
    if is_number and 0 < area <= height * width:
        clean["area"] = area
    else:
        _, _, w, h = clean["bbox"]
        clean["area"] = float(w * h if mask is None else mask_util.area(mask.rle))
        repairs.append(Problem.AREA_MEASURED)
    if not are_as_written(entry, clean):
        repairs.append(Problem.NORMALISED)
    attributes = entry.get("attributes") or {}
    if not isinstance(attributes, dict) or not all(map(is_printable, attributes)):
        repairs.append(Problem.ATTRIBUTES_LEFT_OUT)
    elif flags := {key: value for key, value in attributes.items() if isinstance(value, bool)}:
        clean["attributes"] = flags
    return clean, mask, list(dict.fromkeys(repairs))


def are_as_written(entry: Entry, clean: Entry) -> bool:
    """True if the JSON itself holds the texts and whole numbers (not 3.0, "3", true) of `clean`."""
    keys = {key for key, value in clean.items() if type(value) in (int, str) and key != "area"}
    if clean["id"] == 0:  # renumbered later
        keys -= {"id"}
    return all(type(entry.get(key)) is type(clean[key]) for key in keys)


def _read_own_number(entry: Any) -> int:
    """The positive whole number that is an annotation's id; 0 without one."""
    try:
        number = read_int(entry, "id")
    except (BadEntry, KeyError, TypeError):
        return 0
    return number if 0 < number < MAX_ID else 0


def _look_up(entry: Entry, key: str, known: Mapping[Id, Entry], unknown: Problem) -> Entry:
    found = find_entry(read_id(entry, key), known)
    if found is None:
        raise BadEntry(unknown)
    return found


def _read_flag(entry: Entry) -> int:
    if isinstance(entry["iscrowd"], bool):
        return int(entry["iscrowd"])
    flag = read_int(entry, "iscrowd")
    if flag not in (0, 1):
        raise wrong_type("iscrowd")
    return flag


def _is_empty(segmentation: Any) -> bool:
    """True for the ways in which people write that there is no mask."""
    if isinstance(segmentation, list):
        return not any(segmentation)
    return not segmentation
