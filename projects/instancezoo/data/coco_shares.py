"""Coordinates given as shares of the image's sides (0 to 1) instead of pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from instancezoo.data.coco_values import Entry, Id

LARGEST_SHARE = 1.001  # rounding may push a share over 1
MIN_IMAGE_SIDE = 8  # pixels; in smaller images such an object could be real


def find_shares(entries: list[Any], images: Mapping[Id, Entry]) -> set[int]:
    """Positions of the annotations whose coordinates are shares; empty if that is not certain.

    It is certain if no coordinate is over 1, some are fractions, and this holds for most of the
    file: a real object of under one pixel in the first corner is rare.

    Args:
        entries: annotations as in the file, each of any form.
        images: clean images by id.
    """
    found, num_measured = set(), 0
    for position, entry in enumerate(entries):
        image = images.get(entry["image_id"]) if _has_image(entry) else None
        if image is None or min(image["height"], image["width"]) < MIN_IMAGE_SIDE:
            continue
        # Most annotations are left at their first number.
        large = next((n for n in _list_numbers(entry) if abs(n) > LARGEST_SHARE), None)
        has_fractions = large is None and any(n % 1 for n in _list_numbers(entry))
        num_measured += large is not None or has_fractions
        if has_fractions:
            found.add(position)
    return found if 2 * len(found) > num_measured else set()


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


def _has_image(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("image_id"), int | str)


def _list_numbers(entry: Entry) -> Iterator[float]:
    for key in ("bbox", "segmentation"):
        yield from _flatten(entry.get(key))


def _flatten(value: Any) -> Iterator[float]:
    for item in value if isinstance(value, list) else ():
        if isinstance(item, int | float):
            yield item
        else:
            yield from _flatten(item)


def _multiply(value: list[Any], sides: tuple[float, float]) -> list[Any]:
    return [
        _multiply(item, sides) if isinstance(item, list) else item * sides[place % 2]
        for place, item in enumerate(value)
    ]
