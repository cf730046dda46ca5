"""Checks of annotations, categories and the split between training and validation."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from .context import Context, DatasetFacts
from .findings import Finding, error, ok, register_check, warning

RARE_CLASS_OBJECTS = 10
MAX_NAMES_SHOWN = 8
MAX_CROWD_SHARE = 0.1
MAX_BEYOND_SHARE = 0.05


@register_check("annotations")
def check_annotations(context: Context) -> Iterator[Finding]:
    """Content of each data set, and the entries dropped from it."""
    for facts in context.datasets:
        num_empty = int((facts.objects_per_image == 0).sum())
        message = (
            f"{facts.name}: {len(facts.clean['images'])} images, {len(facts.objects)} objects, "
            f"{num_empty} images without objects"
        )
        if facts.report.num_crowds:
            crowds, total = facts.report.num_crowds, facts.report.num_annotations
            message += f"; {crowds} of {total} annotations have iscrowd 1 and are not trained on"
        if not facts.objects and facts.report.num_boxes_only:
            yield error(
                f"{message}; {facts.report.num_boxes_only} annotations have no segmentation",
                "add masks, or train on boxes alone with a config that has MODEL.MASK_ON False",
            )
        elif not facts.objects:
            yield error(message, "add annotations of objects: there is nothing to train on")
        elif facts.report.num_crowds > MAX_CROWD_SHARE * facts.report.num_annotations:
            yield warning(message, "set iscrowd 0 for annotations of single objects")
        elif not facts.report.num_dropped:
            text = f"{message}\n{facts.report.summary()}" if facts.report.repaired else message
            yield ok(text)
        if facts.report.num_dropped:
            yield warning(
                f"{message}; {facts.report.num_dropped} entries dropped\n{facts.report.summary()}",
                "correct the listed ids, or set DATASETS.STRICT True to refuse such files",
            )


@register_check("boxes")
def check_boxes(context: Context) -> Iterator[Finding]:
    """Boxes against the masks of the same objects, and objects without masks."""
    for facts in context.datasets:
        report = facts.report
        if report.misfits:
            yield warning(
                f"{facts.name}: {report.describe_misfits()}",
                "write boxes as [x, y, width, height] in pixels of the image, polygons as "
                "[x1, y1, x2, y2, ...]; boxes that are left out are measured from the masks",
            )
        if report.num_boxes_beyond > MAX_BEYOND_SHARE * report.num_boxes_only:
            yield warning(
                f"{facts.name}: {report.num_boxes_beyond} of {report.num_boxes_only} boxes without "
                "masks reach beyond the image",
                "if they are [x1, y1, x2, y2] or belong to pictures of another size, write them as "
                "[x, y, width, height] in pixels of the image",
            )
        if facts.with_masks and report.num_boxes_only:
            yield warning(
                f"{facts.name}: {report.num_boxes_only} of {report.num_annotations} annotations "
                "have no segmentation and are not trained on",
                "add masks, or train on boxes alone with a config that has MODEL.MASK_ON False",
            )


@register_check("pictures")
def check_pictures(context: Context) -> Iterator[Finding]:
    """Pictures that are listed under several ids, each of which has only some of the objects."""
    for facts in context.datasets:
        counts = Counter(os.path.normpath(path) for path in facts.image_paths)
        repeated = [path for path, count in counts.items() if count > 1]
        if repeated:
            yield warning(
                f"{facts.name}: {len(repeated)} pictures are listed under several image ids, first "
                f"{repeated[0]}: what is annotated under one id is background under the others",
                "list each picture once, with the annotations of all its ids",
            )


@register_check("category ids")
def check_category_ids(context: Context) -> Iterator[Finding]:
    """Ids with gaps, duplicate names, classes without objects or with few."""
    for facts in context.datasets:
        ids, names = list(facts.category_names), facts.category_names.values()
        order = "contiguous" if ids[-1] - ids[0] == len(ids) - 1 else "with gaps"
        yield ok(
            f"{facts.name}: {len(ids)} categories, ids {ids[0]} to {ids[-1]} {order}; "
            f"classes 0 to {len(ids) - 1} follow the order of the ids"
        )
        if num_duplicates := len(ids) - len(set(names)):
            yield warning(
                f"{facts.name}: {num_duplicates} of {len(ids)} category names are duplicates",
                "merge the categories of the same name, or rename them",
            )
        if facts.is_train:
            yield from _check_frequencies(facts)


@register_check("classes")
def check_class_count(context: Context) -> Iterator[Finding]:
    """Number of classes of the model and of the data."""
    # Two-stage models have it in their heads, detectors on proposals there, others themselves.
    parts = [getattr(context.model, name, None) for name in ("roi_heads", "proposal_generator")]
    counts = [getattr(part, "num_classes", None) for part in (*parts, context.model)]
    num_model = next((count for count in counts if count is not None), None)
    for facts in context.datasets:
        num_data = len(facts.category_names)
        if num_model is not None and num_model != num_data:
            yield error(
                f"the model has {num_model} classes, {facts.name} has {num_data}",
                "remove NUM_CLASSES from the config: it follows the data set",
            )
    if num_model is not None and context.datasets:
        yield ok(f"the model has {num_model} classes")


@register_check("split")
def check_category_agreement(context: Context) -> Iterator[Finding]:
    """Equal categories in all data sets."""
    for first, second in zip(context.datasets, context.datasets[1:], strict=False):
        if first.category_names == second.category_names:
            continue
        if list(first.category_names.values()) == list(second.category_names.values()):
            yield ok(f"{first.name} and {second.name}: equal classes under different ids")
            continue
        differing = set(first.category_names.values()) ^ set(second.category_names.values())
        yield error(
            f"{first.name} has {len(first.category_names)} categories, {second.name} has "
            f"{len(second.category_names)}; they differ in: "
            f"{_list_names(sorted(differing)) or 'their order'}",
            "give all files the same `categories` list, in the same order",
        )
    if not context.test:
        yield warning(
            "DATASETS.TEST is empty: the model is never evaluated",
            "set DATASETS.TEST to a validation set",
        )


@register_check("overlap")
def check_overlap(context: Context) -> Iterator[Finding]:
    """Images in both the training and the test data."""
    train = [path for facts in context.train for path in facts.image_paths]
    for facts in context.test:
        test = facts.image_paths
        shared = find_same_content(train, test)
        if shared:
            yield warning(
                f"{len(shared)} of {len(test)} images of {facts.name} are in the training data "
                f"too, first {shared[0].name}: AP will be too high",
                "remove them from one of the two sets",
            )
        else:
            num_names = len({path.name for path in train} & {path.name for path in test})
            names = f"; {num_names} file names occur in both" if num_names else ""
            yield ok(f"no image of {facts.name} is in the training data{names}")


def find_same_content(train: Iterable[Path], test: Iterable[Path]) -> list[Path]:
    """The test files that equal a train file byte for byte; only files of equal length are read."""
    by_length = defaultdict(list)
    for path in train:
        if path.is_file():
            by_length[path.stat().st_size].append(path)
    hash_file = cache(lambda path: hashlib.sha256(path.read_bytes()).digest())
    return [
        path
        for path in test
        if path.is_file()
        and any(hash_file(path) == hash_file(other) for other in by_length[path.stat().st_size])
    ]


def _check_frequencies(facts: DatasetFacts) -> Iterator[Finding]:
    counts = facts.objects_per_category
    unused = [facts.category_names[i] for i, n in counts.items() if n == 0]
    rare = [facts.category_names[i] for i, n in counts.items() if 0 < n < RARE_CLASS_OBJECTS]
    if unused:
        yield warning(
            f"{facts.name}: {len(unused)} of {len(counts)} classes have no object: "
            f"{_list_names(unused)}",
            "remove them from `categories` of all files, or add examples",
        )
    if rare:
        yield warning(
            f"{facts.name}: {len(rare)} of {len(counts)} classes have under {RARE_CLASS_OBJECTS} "
            f"objects: {_list_names(rare)}",
            "add examples, merge classes, or set DATALOADER.SAMPLER_TRAIN "
            "RepeatFactorTrainingSampler",
        )


def _list_names(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    return ", ".join(names[:MAX_NAMES_SHOWN]) + more
