"""Reads COCO JSON files of any origin: drops and reports bad entries, keeps the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from instancezoo.data.coco_boxes import BoxFit
from instancezoo.data.coco_entries import (
    MAX_ID,
    are_as_written,
    check_annotation,
    check_category,
    check_image,
    find_file_problem,
)
from instancezoo.data.coco_report import AnnotationReport
from instancezoo.data.coco_shares import find_shares, multiply_shares
from instancezoo.data.coco_values import (
    BadEntry,
    Entry,
    Id,
    Problem,
    find_id,
    order_ids,
    read_id,
)
from instancezoo.errors import ZooError
from instancezoo.progress import track

_INSTANCE_KEYS = ("bbox", "iscrowd", "segmentation", "attributes")


class DatasetError(ZooError):
    """A data set that cannot be used; the message names the file and the remedy."""


def check_coco(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    check_images: bool = True,
    max_pixels: int | None = None,
) -> tuple[dict[str, Any], AnnotationReport]:
    """Read a COCO JSON and drop everything that would break training or evaluation.

    Args:
        json_file: annotations in COCO format: polygons, RLE strings or RLE lists.
        image_root: folder that the file names are relative to.
        check_images: if True, look for each image and read its header.
        max_pixels: largest number of pixels of an image, see `find_file_problem`.

    Returns:
        A clean COCO dictionary with only the keys that are used and every RLE compressed, and the
        report.

    Raises:
        DatasetError: no JSON, no categories, no images, or nothing usable in them.
    """
    source = str(json_file)
    content, encoding = _read_coco(source)
    report = AnnotationReport(source, encoding)
    categories, images = _check_categories(content, report), _check_images(content, report)
    if check_images:
        _check_files(images, str(image_root), max_pixels, report)
    if not categories or not images:
        what = "images" if categories else "categories"
        raise DatasetError(
            f"{report.summary()}\nno usable {what} are left in {source} (images in {image_root}): "
            f"repair the entries above, or give the right JSON and image folder"
        )
    annotations = _check_annotations(content, images, categories, report)
    if content["annotations"] and not annotations:
        raise DatasetError(
            f"{report.summary()}\nevery annotation in {source} is bad: repair the entries above"
        )
    clean = {
        "info": {"description": os.path.basename(source)},
        "licenses": [],
        "categories": list(categories.values()),
        "images": list(images.values()),
        "annotations": annotations,
    }
    return clean, report


def list_classes(clean: dict[str, Any]) -> tuple[list[str], dict[int, int]]:
    """Class names in the order of category ids, and category id -> class index."""
    categories = sorted(clean["categories"], key=lambda category: category["id"])
    id_to_index = {category["id"]: index for index, category in enumerate(categories)}
    return [category["name"] for category in categories], id_to_index


def read_classes(json_file: str | os.PathLike[str]) -> tuple[list[str], dict[int, int]]:
    """`list_classes` of a file, without checking its images and annotations."""
    content, _ = _read_coco(str(json_file))
    categories = _check_categories(content, AnnotationReport(str(json_file)))
    if not categories:
        raise DatasetError(f"no usable categories in {json_file}: each needs an id and a name")
    return list_classes({"categories": list(categories.values())})


def make_records(clean: dict[str, Any], image_root: str | os.PathLike[str]) -> list[Entry]:
    """Turn a clean COCO dictionary into Detectron2's records, one per image, by image id.

    Crowds keep `iscrowd` 1: mappers leave them out of training, evaluation ignores matches.
    """
    _, id_to_index = list_classes(clean)
    records = {
        image["id"]: {
            "file_name": os.path.join(image_root, image["file_name"]),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "annotations": [],
        }
        for image in sorted(clean["images"], key=lambda image: order_ids(image["id"]))
    }
    for annotation in clean["annotations"]:
        instance = {key: annotation[key] for key in _INSTANCE_KEYS if key in annotation}
        instance["bbox_mode"] = BoxMode.XYWH_ABS
        instance["category_id"] = id_to_index[annotation["category_id"]]
        records[annotation["image_id"]]["annotations"].append(instance)
    return list(records.values())


def read_json(source: str | os.PathLike[str]) -> Any:
    """Content of a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        DatasetError: the file is missing, unreadable or not JSON.
    """
    return _decode_json(source)[0]


def _decode_json(source: str | os.PathLike[str]) -> tuple[Any, str]:
    """Content and text encoding of a JSON file."""
    try:
        with PathManager.open(os.fspath(source), "rb") as file:
            data = file.read()
        encoding = json.detect_encoding(data)
        return json.loads(data.decode(encoding)), encoding
    except FileNotFoundError as error:
        raise DatasetError(f"JSON file '{source}' does not exist: check the path") from error
    except OSError as error:
        raise DatasetError(f"JSON file '{source}' cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"'{source}' is not valid JSON: its text is not {error.encoding} (byte {error.start}). "
            f"Save it as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"'{source}' is not valid JSON ({error}): export it again") from error


def _read_coco(source: str) -> tuple[dict[str, Any], str]:
    content, encoding = _decode_json(source)
    if not isinstance(content, dict):
        raise DatasetError(
            f"annotation file '{source}' holds a {type(content).__name__}, not the dictionary with "
            f"'images', 'annotations' and 'categories' of COCO instances: export it in that format"
        )
    for key in ("categories", "images"):
        if not isinstance(content.get(key), list) or not content[key]:
            raise DatasetError(
                f"annotation file '{source}' has no list '{key}': export it as COCO instances"
            )
    # Files of test sets may have no annotations at all.
    if not isinstance(content.setdefault("annotations", []), list):
        raise DatasetError(
            f"'annotations' of '{source}' is not a list: export it again as COCO instances"
        )
    return content, encoding


def _label(entry: Any, position: int) -> Id:
    """The id of an entry that may be bad otherwise, or its position."""
    try:
        return read_id(entry, "id")
    except (BadEntry, KeyError, TypeError):
        return f"#{position}"


def _check_categories(content: dict[str, Any], report: AnnotationReport) -> dict[Id, Entry]:
    """Clean categories by their id in the file, which may be a text; their own id is a number.

    Raises:
        DatasetError: one id has two names.
    """
    found: dict[Id, Entry] = {}
    for label, category in _check_list(content, "categories", check_category, report):
        first = found.setdefault(category["id"], category)
        if first["name"] != category["name"]:
            raise DatasetError(
                f"category {label} of {report.source} is '{first['name']}' and '{category['name']}'"
                ": give each its own id"
            )
        if first is not category:
            report.dropped[f"category with {Problem.DUPLICATE_ID}"].append(label)
    numbers = {key for key in found if isinstance(key, int) and 0 <= key < MAX_ID}
    others = [key for key in found if key not in numbers]
    for number, key in enumerate(others, start=max(numbers, default=0) + 1):
        found[key]["id"] = number
        report.repaired[f"category with {Problem.NO_NUMBER}"].append(key)
    return found


def _check_images(content: dict[str, Any], report: AnnotationReport) -> dict[Id, Entry]:
    """Clean images by id, without those that share an id with another picture."""
    clean: dict[Id, Entry] = {}
    ambiguous: dict[Id, None] = {}
    for label, image in _check_list(content, "images", check_image, report):
        first = clean.setdefault(image["id"], image)
        if first != image:
            ambiguous[image["id"]] = None
        elif first is not image:
            report.dropped[f"image with {Problem.DUPLICATE_ID}"].append(label)
    for image_id in ambiguous:
        report.dropped[f"image with {Problem.AMBIGUOUS_ID}"].append(image_id)
        del clean[image_id]
    return clean


def _check_list(
    content: dict[str, Any], key: str, check: Callable[[Any], Entry], report: AnnotationReport
) -> Iterator[tuple[Id, Entry]]:
    """The usable entries of a list, clean, with their labels."""
    noun = {"categories": "category", "images": "image"}[key]
    for position, entry in enumerate(content[key]):
        label = _label(entry, position)
        try:
            checked = check(entry)
        except BadEntry as bad:
            report.dropped[f"{noun} with {bad}"].append(label)
            continue
        if not are_as_written(entry, checked):
            report.repaired[f"{noun} with {Problem.NORMALISED}"].append(label)
        yield label, checked


def _check_files(
    images: dict[Id, Entry], image_root: str, max_pixels: int | None, report: AnnotationReport
) -> None:
    """Remove images whose files are missing, broken or of another size."""
    if not os.path.isdir(image_root):
        raise DatasetError(f"image folder '{image_root}' of {report.source} does not exist")
    for image_id, image in images.items():
        name = image["file_name"]
        if "\\" in name and not os.path.isfile(os.path.join(image_root, name)):
            image["file_name"] = os.path.normpath(name.replace("\\", "/"))
            report.repaired[Problem.BACKSLASHES].append(image_id)
    # Threads, since the wait is for the disk.
    with ThreadPoolExecutor() as pool:
        find = partial(find_file_problem, image_root, max_pixels=max_pixels)
        found = pool.map(find, images.values())
        problems = list(track(found, f"checking images in {image_root}", total=len(images)))
    for image_id, problem in zip(list(images), problems, strict=True):
        if problem is not None:
            report.dropped[problem].append(image_id)
            del images[image_id]


def _check_annotations(
    content: dict[str, Any],
    images: dict[Id, Entry],
    categories: dict[Id, Entry],
    report: AnnotationReport,
) -> list[Entry]:
    entries = content["annotations"]
    listed = {_label(entry, position) for position, entry in enumerate(content["images"])}
    shares, numbering, fit = find_shares(entries, images), _Numbering(), BoxFit()
    clean: list[Entry] = []
    for position, entry in enumerate(entries):
        label = _label(entry, position)
        if image := shares.get(position):
            entry = multiply_shares(entry, image)
            report.repaired[Problem.SHARES].append(label)
        try:
            annotation, mask, repairs = check_annotation(entry, images, categories)
            numbering.add(label, annotation, entry)
        except BadEntry as bad:
            problem = str(bad)
            if (
                problem == Problem.UNKNOWN_IMAGE
                and find_id(read_id(entry, "image_id"), listed) is not None
            ):
                problem = Problem.DROPPED_IMAGE
            report.dropped[problem].append(label)
            continue
        clean.append(annotation)
        if mask and not annotation["iscrowd"] and Problem.BOX_MEASURED not in repairs:
            fit.add(label, entry["bbox"], mask.extent, images[annotation["image_id"]])
        for repair in repairs:
            report.repaired[repair].append(label)
    if renumbered := numbering.renumber():
        report.repaired[Problem.RENUMBERED] += renumbered
    report.num_images, report.num_annotations = len(images), len(clean)
    report.num_crowds = sum(annotation["iscrowd"] for annotation in clean)
    report.num_boxes_only = sum("segmentation" not in annotation for annotation in clean)
    report.misfits, report.misfit_cause = fit.find_misfits()
    return clean


class _Numbering:
    """Finds entries that are equal in every key, and annotations without an id of their own."""

    def __init__(self) -> None:
        self._firsts: dict[int, Entry] = {}  # id -> first entry of the file; 0: without one
        self._texts: dict[int, set[str]] = {}  # id that repeats -> its entries
        self._without: list[tuple[Id, Entry]] = []

    def add(self, label: Id, annotation: Entry, entry: Entry) -> None:
        """Take an annotation and its entry in the file. Raises `BadEntry` if that repeats."""
        number = annotation["id"]
        first = self._firsts.setdefault(number, entry)
        if first is not entry:
            if number not in self._texts:
                self._texts[number] = {json.dumps(first, sort_keys=True)}
            if (text := json.dumps(entry, sort_keys=True)) in self._texts[number]:
                raise BadEntry(Problem.SAME_ENTRY)
            self._texts[number].add(text)
        # pycocotools takes a match with annotation 0 for no match.
        if first is not entry or number == 0:
            self._without.append((label, annotation))

    def renumber(self) -> list[Id]:
        """Give numbers of their own to those that have none. Returns their labels."""
        for number, (_, annotation) in enumerate(self._without, max(self._firsts, default=0) + 1):
            annotation["id"] = number
        return [label for label, _ in self._without]
