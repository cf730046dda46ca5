"""Reads single values of a COCO JSON, and names what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Container
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What a key must hold, for messages.
EXPECTED = {
    "id": "a whole number or a text",
    "name": "a text",
    "file_name": "a text",
    "height": "a whole number of pixels",
    "width": "a whole number of pixels",
    "image_id": "the id of an image",
    "category_id": "the id of a category",
    "bbox": "[x, y, width, height] in pixels",
    "iscrowd": "0 or 1",
    "segmentation": "polygons [[x1, y1, x2, y2, x3, y3, ...], ...] or an RLE "
    "{'size': [height, width], 'counts': ...}",
}

Entry = dict[str, Any]
Id = int | str


class Problem(StrEnum):
    """What can be wrong with an entry of a COCO JSON."""

    NO_ENTRY = "not a dictionary"
    NOT_FINITE = "number that is not finite"
    SAME_ENTRY = "all keys equal to those of an earlier annotation"
    DUPLICATE_ID = "duplicate id"
    AMBIGUOUS_ID = "an id that several images share, so its annotations cannot be assigned"
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
    AREA_MEASURED = "area missing or impossible: measured from the mask or the box"
    BOX_MEASURED = "box missing or bad: measured from the mask"
    RENUMBERED = "annotation id missing, repeated or not a positive whole number: renumbered"
    NORMALISED = "numbers given as texts, ids or sizes not as whole numbers, or no iscrowd"
    NO_NUMBER = "an id that is not a whole number from 0 to 2^53: renumbered"
    ATTRIBUTES_LEFT_OUT = "attributes that are not a dictionary with printable names left out"
    POLYGON_LEFT_OUT = "polygon under 3 points left out"
    POLYGON_CLIPPED = "polygon far outside the image clipped near its border"
    POLYGON_REWRITTEN = "polygon given as points, as texts or without its list: rewritten"
    SHARES = "coordinates given as shares of the image (0 to 1) multiplied by its size"
    BACKSLASHES = "file name with backslashes read with slashes"


class BadEntry(Exception):
    """An entry that has to be dropped; its text is the problem, with the key if there is one."""


def missing_key(key: str) -> BadEntry:
    """The error of an entry without `key`."""
    return BadEntry(f"missing key '{key}'")


def wrong_type(key: str) -> BadEntry:
    """The error of an entry whose `key` has a wrong form."""
    return BadEntry(f"wrong type: '{key}' must be {EXPECTED[key]}")


def need(entry: Any, *keys: str) -> None:
    """Raise `BadEntry` unless an entry is a dictionary with values under these keys."""
    if not isinstance(entry, dict):
        raise BadEntry(Problem.NO_ENTRY)
    for key in keys:
        if entry.get(key) is None:
            raise missing_key(key)


def read_text(entry: Entry, key: str) -> str:
    """A text that can be printed and written to a file. Raises `BadEntry`."""
    value = entry[key]
    if not isinstance(value, str) or not value or not is_printable(value):
        raise wrong_type(key)
    return value


def is_printable(text: str) -> bool:
    """False with half a surrogate pair: valid JSON that cannot be printed or written to a file."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def read_int(entry: Entry, key: str) -> int:
    """A whole number, also as 3.0 (from a table of floats) or "3". Raises `BadEntry`."""
    value = entry[key]
    if isinstance(value, str) and (number := _parse_number(value)) is not None:
        value = number
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(key)
    if isinstance(value, float) and not math.isfinite(value):
        raise BadEntry(Problem.NOT_FINITE)
    if value != int(value):
        raise wrong_type(key)
    return int(value)


def read_id(entry: Entry, key: str) -> Id:
    """An id: a whole number of any size, or a text. Raises `BadEntry`."""
    return read_text(entry, key) if isinstance(entry[key], str) else read_int(entry, key)


def find_id(wanted: Id, known: Container[Id]) -> Id | None:
    """The id among `known` that is meant: `wanted`, or the same number as text or as a number."""
    if wanted in known:
        return wanted
    other = str(wanted) if isinstance(wanted, int) else _parse_whole(wanted)
    return other if other is not None and other in known else None


def order_ids(value: Id) -> tuple[bool, Id]:
    """Key to sort ids by: numbers first, then texts."""
    return isinstance(value, str), value


def read_numbers(value: Any, key: str) -> NDArray[np.float64]:
    """A JSON list of finite numbers, or of texts that are numbers, as (n,). Raises `BadEntry`."""
    # Checked by type: NumPy would turn true into a number.
    if not isinstance(value, list):
        raise wrong_type(key)
    types = set(map(type, value))
    if str in types:
        value = [_parse_number(item) if isinstance(item, str) else item for item in value]
        types = set(map(type, value))
    if not types <= {int, float}:
        raise wrong_type(key)
    try:
        array = np.array(value, dtype=np.float64)
    except OverflowError as error:
        raise BadEntry(Problem.NOT_FINITE) from error
    if not np.isfinite(array).all():
        raise BadEntry(Problem.NOT_FINITE)
    return array


def read_number(value: Any) -> int | float | None:
    """A number, or a text that is one; None for anything else."""
    if isinstance(value, str):
        return _parse_number(value)
    return value if type(value) in (int, float) else None


def _parse_whole(text: str) -> int | None:
    number = _parse_number(text)
    if isinstance(number, float):  # infinity and NaN are no whole numbers
        return int(number) if number.is_integer() else None
    return number


def _parse_number(text: str) -> int | float | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return None
