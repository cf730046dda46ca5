"""Reads COCO JSON files that people made: drops and counts what is bad, keeps the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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

MAX_IDS_KEPT = 10


class DatasetError(ZooError):
    """A data set that cannot be used; the message names the file and what to do."""


@dataclass
class AnnotationReport:
    """What was wrong with a data set.

    Attributes:
        source: the JSON file.
        counts: dropped entries by problem.
        ids: ids of the first few of them, `#n` for the n-th entry of a list that has no id.
        mended: entries that were repaired and kept, by repair.
        mended_ids: ids of the first few of them.
        num_images: images kept.
        num_annotations: annotations kept.
    """

    source: str
    counts: dict[str, int] = field(default_factory=dict)
    ids: dict[str, list[int | str]] = field(default_factory=dict)
    mended: dict[str, int] = field(default_factory=dict)
    mended_ids: dict[str, list[int | str]] = field(default_factory=dict)
    num_images: int = 0
    num_annotations: int = 0

    @property
    def num_dropped(self) -> int:
        """Categories, images and annotations that were dropped."""
        return sum(self.counts.values())

    @property
    def num_mended(self) -> int:
        """Repairs."""
        return sum(self.mended.values())

    def drop(self, problem: str, entry_id: int | str) -> None:
        """Count a dropped entry."""
        _count(self.counts, self.ids, problem, entry_id)

    def mend(self, repair: str, entry_id: int | str) -> None:
        """Count a repaired entry."""
        _count(self.mended, self.mended_ids, repair, entry_id)

    def summary(self) -> str:
        """A line on what is there, and one for each problem."""
        lines = [f"{self.source}: {self.num_images} images, {self.num_annotations} annotations"]
        for verb, counts, ids in (
            ("dropped", self.counts, self.ids),
            ("mended", self.mended, self.mended_ids),
        ):
            for problem in sorted(counts):
                more = ", ..." if counts[problem] > len(ids[problem]) else ""
                listed = ", ".join(map(str, ids[problem])) + more
                lines.append(f"  {verb} {counts[problem]}: {problem} (id {listed})")
        return "\n".join(lines)


def check_coco(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    check_images: bool = True,
) -> tuple[dict[str, Any], AnnotationReport]:
    """Read a COCO JSON and drop whatever would break training or evaluation.

    Args:
        json_file: annotations in COCO format: polygons, RLE strings or RLE lists.
        image_root: folder that the file names are relative to.
        check_images: whether to look for each image and read its header.

    Returns:
        A clean COCO dictionary that holds only what is used (extra keys are gone, every RLE is
        compressed), and the report.

    Raises:
        DatasetError: no JSON, no categories, no images, or nothing usable in them.
    """
    source = str(json_file)
    content = _read_json(source)
    report = AnnotationReport(source)
    categories = _check_list(content, "categories", report)
    images = _check_list(content, "images", report)
    if check_images:
        images = _check_files(images, str(image_root), report)
    if not categories or not images:
        what = "images" if categories else "categories"
        raise DatasetError(
            f"{report.summary()}\nno usable {what} are left in {source} (images in {image_root}): "
            f"mend the entries above, or name the right JSON and image folder"
        )
    annotations = _check_annotations(content, images, categories, report)
    report.num_images, report.num_annotations = len(images), len(annotations)
    if content.get("annotations") and not annotations:
        raise DatasetError(
            f"{report.summary()}\nevery annotation in {source} is bad: mend what is listed above"
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
    """Class names, and category id -> index among them, in the order of the ids."""
    categories = sorted(clean["categories"], key=lambda category: category["id"])
    id_to_index = {category["id"]: index for index, category in enumerate(categories)}
    return [category["name"] for category in categories], id_to_index


def read_classes(json_file: str | os.PathLike[str]) -> tuple[list[str], dict[int, int]]:
    """`list_classes` of a file, without a look at its images and annotations."""
    content = _read_json(str(json_file))
    categories = _check_list(content, "categories", AnnotationReport(str(json_file)))
    if not categories:
        raise DatasetError(f"no usable categories in {json_file}: each needs an id and a name")
    return list_classes({"categories": list(categories.values())})


def make_records(clean: dict[str, Any], image_root: str | os.PathLike[str]) -> list[Entry]:
    """Turn a clean COCO dictionary into Detectron2's records, one an image, by image id.

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
        instance: Entry = {
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": id_to_index[annotation["category_id"]],
            "iscrowd": annotation["iscrowd"],
            "segmentation": annotation["segmentation"],
        }
        if annotation.get("attributes"):
            instance["attributes"] = annotation["attributes"]
        records[annotation["image_id"]]["annotations"].append(instance)
    return list(records.values())


def _count(
    counts: dict[str, int], ids: dict[str, list[int | str]], problem: str, entry_id: int | str
) -> None:
    problem = str(problem)
    counts[problem] = counts.get(problem, 0) + 1
    kept = ids.setdefault(problem, [])
    if len(kept) < MAX_IDS_KEPT:
        kept.append(entry_id)


def _read_json(source: str) -> dict[str, Any]:
    try:
        with PathManager.open(source, "rb") as file:
            content = json.loads(file.read())
    except FileNotFoundError as error:
        raise DatasetError(f"annotation file '{source}' does not exist") from error
    except OSError as error:
        raise DatasetError(f"annotation file '{source}' cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"annotation file '{source}' is no valid JSON ({error}): export it again"
        ) from error
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
    # Files for testing may have no annotations at all.
    if not isinstance(content.setdefault("annotations", []), list):
        raise DatasetError(
            f"'annotations' of '{source}' is no list: export it again as COCO instances"
        )
    return content


def _walk(entries: list[Any]) -> Iterator[tuple[int | str, Any]]:
    for position, entry in enumerate(entries):
        found = read_id(entry)
        yield (f"#{position}" if found is None else found), entry


def _check_list(content: dict[str, Any], key: str, report: AnnotationReport) -> dict[int, Entry]:
    """Clean categories or images by id."""
    noun, check, numbers = {
        "categories": ("category", check_category, ("id",)),
        "images": ("image", check_image, ("id", "height", "width")),
    }[key]
    clean: dict[int, Entry] = {}
    for label, entry in _walk(content[key]):
        try:
            checked = check(entry)
        except BadEntry as bad:
            report.drop(f"{noun} with {bad.problem}", label)
            continue
        if checked["id"] in clean:
            report.drop(f"{noun} with {Problem.DUPLICATE_ID}", label)
            continue
        clean[checked["id"]] = checked
        if not are_whole_numbers(entry, *numbers):
            report.mend(f"{noun} with {Problem.NORMALISED}", label)
    return clean


def _check_files(
    images: dict[int, Entry], image_root: str, report: AnnotationReport
) -> dict[int, Entry]:
    if not os.path.isdir(image_root):
        raise DatasetError(f"image folder '{image_root}' of {report.source} does not exist")

    def find_problem(image: Entry) -> Problem | None:
        path = os.path.join(image_root, image["file_name"])
        return find_file_problem(path, image["height"], image["width"])

    clean: dict[int, Entry] = {}
    # Threads, since the wait is for the disk.
    with ThreadPoolExecutor() as pool:
        problems = pool.map(find_problem, images.values())
        problems = track(problems, f"checking images in {image_root}", total=len(images))
        for (image_id, image), problem in zip(images.items(), problems, strict=True):
            if problem is None:
                clean[image_id] = image
            else:
                report.drop(problem, image_id)
    return clean


def _check_annotations(
    content: dict[str, Any],
    images: dict[int, Entry],
    categories: dict[int, Entry],
    report: AnnotationReport,
) -> list[Entry]:
    category_ids = set(categories)
    listed = {read_id(entry) for entry in content["images"]}
    clean: dict[int, Entry] = {}
    for label, entry in _walk(content["annotations"]):
        try:
            annotation, mended = check_annotation(entry, images, category_ids)
            if annotation["id"] in clean:
                raise BadEntry(Problem.DUPLICATE_ID)
        except BadEntry as bad:
            problem = bad.problem
            if problem is Problem.UNKNOWN_IMAGE and read_id({"id": entry["image_id"]}) in listed:
                problem = Problem.DROPPED_IMAGE
            report.drop(problem, label)
            continue
        clean[annotation["id"]] = annotation
        for repair in mended:
            report.mend(repair, label)
    if 0 in clean:
        # To pycocotools, a match with annotation 0 is no match.
        clean[0]["id"] = max(clean) + 1
        report.mend(Problem.RENUMBERED, 0)
    return list(clean.values())
