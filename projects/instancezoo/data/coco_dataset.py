"""Reads COCO JSON files of any origin: drops and reports bad entries, keeps the rest."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from instancezoo.data.coco_entries import (
    Entry,
    are_whole_numbers,
    check_annotation,
    check_category,
    check_image,
    find_file_problem,
    read_id,
)
from instancezoo.data.coco_masks import BadEntry, Problem
from instancezoo.errors import ZooError
from instancezoo.progress import track

MAX_IDS_SHOWN = 10
_INSTANCE_KEYS = ("bbox", "iscrowd", "segmentation", "attributes")

# Ids of entries by problem or repair; `#n` is the n-th entry of a list if that has no id.
Listing = dict[str, list[int | str]]


class DatasetError(ZooError):
    """A data set that cannot be used; the message names the file and the remedy."""


@dataclass
class AnnotationReport:
    """What was wrong with a data set.

    Attributes:
        source: the JSON file.
        dropped: dropped entries by problem.
        repaired: entries that were repaired and kept, by repair.
        num_images: images kept.
        num_annotations: annotations kept.
        num_crowds: annotations kept that have iscrowd 1.
    """

    source: str
    dropped: Listing = field(default_factory=partial(defaultdict, list))
    repaired: Listing = field(default_factory=partial(defaultdict, list))
    num_images: int = 0
    num_annotations: int = 0
    num_crowds: int = 0

    @property
    def num_dropped(self) -> int:
        """Number of categories, images and annotations that were dropped."""
        return sum(map(len, self.dropped.values()))

    @property
    def is_clean(self) -> bool:
        """True if the file is used as it is."""
        return not self.dropped and not self.repaired

    def summary(self) -> str:
        """One line of totals, then one line per problem and repair."""
        lines = [f"{self.source}: {self.num_images} images, {self.num_annotations} annotations"]
        if self.num_crowds:
            lines.append(
                f"  {self.num_crowds} of {self.num_annotations} annotations have iscrowd 1 and are "
                "not trained on"
            )
        for verb, listing in (("dropped", self.dropped), ("repaired", self.repaired)):
            for problem, ids in sorted(listing.items()):
                shown = ", ".join(map(str, ids[:MAX_IDS_SHOWN]))
                more = ", ..." if len(ids) > MAX_IDS_SHOWN else ""
                lines.append(f"  {verb} {len(ids)}: {problem} (id {shown}{more})")
        return "\n".join(lines)


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
    content = _read_coco(source)
    report = AnnotationReport(source)
    categories = _check_list(content, "categories", report)
    images = _check_list(content, "images", report)
    if check_images:
        _check_files(images, str(image_root), max_pixels, report)
    if not categories or not images:
        what = "images" if categories else "categories"
        raise DatasetError(
            f"{report.summary()}\nno usable {what} are left in {source} (images in {image_root}): "
            f"repair the entries above, or give the right JSON and image folder"
        )
    annotations = _check_annotations(content, images, categories, report)
    report.num_images, report.num_annotations = len(images), len(annotations)
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
    content = _read_coco(str(json_file))
    categories = _check_list(content, "categories", AnnotationReport(str(json_file)))
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
        for image in sorted(clean["images"], key=lambda image: image["id"])
    }
    for annotation in clean["annotations"]:
        instance = {key: annotation[key] for key in _INSTANCE_KEYS if key in annotation}
        instance["bbox_mode"] = BoxMode.XYWH_ABS
        instance["category_id"] = id_to_index[annotation["category_id"]]
        records[annotation["image_id"]]["annotations"].append(instance)
    return list(records.values())


def read_json(source: str | os.PathLike[str]) -> Any:
    """Content of a JSON file. Raises `DatasetError` if it is missing, unreadable or not JSON."""
    try:
        with PathManager.open(os.fspath(source), "rb") as file:
            return json.loads(file.read())
    except FileNotFoundError as error:
        raise DatasetError(f"JSON file '{source}' does not exist: check the path") from error
    except OSError as error:
        raise DatasetError(f"JSON file '{source}' cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"'{source}' is not valid JSON ({error}): export it again") from error


def _read_coco(source: str) -> dict[str, Any]:
    content = read_json(source)
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
    return content


def _walk(entries: list[Any]) -> Iterator[tuple[int | str, Any]]:
    for position, entry in enumerate(entries):
        found = read_id(entry)
        yield (f"#{position}" if found is None else found), entry


def _check_list(content: dict[str, Any], key: str, report: AnnotationReport) -> dict[int, Entry]:
    """Clean categories or images by id."""
    checks = {"categories": ("category", check_category), "images": ("image", check_image)}
    noun, check = checks[key]
    clean: dict[int, Entry] = {}
    for label, entry in _walk(content[key]):
        try:
            checked = check(entry)
            if checked["id"] in clean:
                raise BadEntry(Problem.DUPLICATE_ID)
        except BadEntry as bad:
            report.dropped[f"{noun} with {bad.problem}"].append(label)
            continue
        clean[checked["id"]] = checked
        if not are_whole_numbers(entry, checked):
            report.repaired[f"{noun} with {Problem.NORMALISED}"].append(label)
    return clean


def _check_files(
    images: dict[int, Entry], image_root: str, max_pixels: int | None, report: AnnotationReport
) -> None:
    """Remove images whose files are missing, broken or of another size."""
    if not os.path.isdir(image_root):
        raise DatasetError(f"image folder '{image_root}' of {report.source} does not exist")
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
    images: dict[int, Entry],
    categories: dict[int, Entry],
    report: AnnotationReport,
) -> list[Entry]:
    listed = {read_id(entry) for entry in content["images"]}
    clean: list[Entry] = []
    firsts: dict[int, Entry] = {}  # id -> first entry of the file with that id; 0: without one
    texts: set[str] = set()  # entries whose ids repeat
    unnumbered: list[tuple[int | str, Entry]] = []
    for label, entry in _walk(content["annotations"]):
        try:
            annotation, repairs = check_annotation(entry, images, categories.keys())
            first = firsts.setdefault(annotation["id"], entry)
            if first is not entry:
                texts.add(json.dumps(first, sort_keys=True))
                if (text := json.dumps(entry, sort_keys=True)) in texts:
                    raise BadEntry(Problem.SAME_ENTRY)
                texts.add(text)
        except BadEntry as bad:
            problem = bad.problem
            if problem is Problem.UNKNOWN_IMAGE and read_id({"id": entry["image_id"]}) in listed:
                problem = Problem.DROPPED_IMAGE
            report.dropped[problem].append(label)
            continue
        clean.append(annotation)
        # pycocotools takes a match with annotation 0 for no match.
        if first is not entry or annotation["id"] == 0:
            unnumbered.append((label, annotation))
        for repair in repairs:
            report.repaired[repair].append(label)
    for number, (label, annotation) in enumerate(unnumbered, start=max(firsts, default=0) + 1):
        annotation["id"] = number
        report.repaired[Problem.RENUMBERED].append(label)
    report.num_crowds = sum(annotation["iscrowd"] for annotation in clean)
    return clean
