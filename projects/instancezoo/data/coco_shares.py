"""Coordinates given as shares of the image's sides (0 to 1) instead of pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from instancezoo.data.coco_values import BadEntry, Entry, Id, find_id, read_id, read_number

LARGEST_SHARE = 1.001  # rounding may push a share over 1
MIN_IMAGE_SIDE = 8  # pixels; in smaller images such an object could be real


def find_shares(entries: list[Any], images: Mapping[Id, Entry]) -> dict[int, Entry]:
    """Find the annotations whose coordinates are shares: position -> image.

    Empty if that is not certain: it is if no coordinate is over 1, some are fractions, and this
    holds for most of the file. A real object of under one pixel in the first corner is rare.

    Args:
        entries: annotations as in the file, each of any form.
        images: clean images by id.
    """
    found, num_measured = {}, 0
    for position, entry in enumerate(entries):
        image = _find_image(entry, images)
        if image is None or min(image["height"], image["width"]) < MIN_IMAGE_SIDE:
            continue
        # Most annotations are left at their first number.
        large = next((n for n in _list_numbers(entry) if abs(n) > LARGEST_SHARE), None)
        has_fractions = large is None and any(n % 1 for n in _list_numbers(entry))
        num_measured += large is not None or has_fractions
        if has_fractions:
            found[position] = image
    return found if 2 * len(found) > num_measured else {}


def multiply_shares(entry: Entry, image: Entry) -> Entry:
    """A copy of an annotation with box and polygons in pixels, without an area that is a share."""
    sides = image["width"], image["height"]
    area = entry.get("area")
    is_share = isinstance(area, int | float) and area <= LARGEST_SHARE
    scaled = {**entry, "area": None if is_share else area}
    for key in ("bbox", "segmentation"):
        if isinstance(entry.get(key), list):
            scaled[key] = _multiply(entry[key], sides)
    return scaled


def _find_image(entry: Any, images: Mapping[Id, Entry]) -> Entry | None:
    try:
        image_id = find_id(read_id(entry, "image_id"), images)
    except (BadEntry, KeyError, TypeError):
        return None
    return None if image_id is None else images[image_id]


def _list_numbers(entry: Entry) -> Iterator[float]:
    for key in ("bbox", "segmentation"):
        yield from _flatten(entry.get(key))


def _flatten(value: Any) -> Iterator[float]:
    for item in value if isinstance(value, list) else ():
        if isinstance(item, list):
            yield from _flatten(item)
        elif (number := read_number(item)) is not None:
            yield number


def _multiply(value: list[Any], sides: tuple[float, float]) -> list[Any]:
    scaled: list[Any] = []
    for place, item in enumerate(value):
        if isinstance(item, list):
            scaled.append(_multiply(item, sides))
        else:  # what is no number is left for the check of the entry
            number = read_number(item)
            scaled.append(item if number is None else number * sides[place % 2])
    return scaled
