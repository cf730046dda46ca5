"""Checks of annotations, categories and the split between training and validation."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from .context import Context, DatasetFacts
from .findings import Finding, error, ok, register_check, warning

RARE_CLASS_OBJECTS = 10
MAX_NAMES_SHOWN = 8


@register_check("annotations")
def check_annotations(context: Context) -> Iterator[Finding]:
    """What is in each data set and what had to be dropped from it."""
    for facts in context.datasets:
        num_empty = int((facts.objects_per_image == 0).sum())
        message = (
            f"{facts.name}: {len(facts.clean['images'])} images, {len(facts.objects)} objects, "
            f"{num_empty} images without any"
        )
        if facts.report.num_dropped:
            yield warning(
                f"{message}; {facts.report.num_dropped} entries dropped\n{facts.report.summary()}",
                "mend the listed ids, or set DATASETS.STRICT True to refuse such files",
            )
        elif not facts.objects:
            yield error(message, "there is nothing to learn or to measure: check the JSON")
        else:
            yield ok(message)


@register_check("category ids")
def check_category_ids(context: Context) -> Iterator[Finding]:
    """Ids with gaps, doubled names, classes without objects or with few."""
    for facts in context.datasets:
        names = facts.category_names
        ids = list(names)
        gaps = ids != list(range(ids[0], ids[0] + len(ids)))
        how = "with gaps" if gaps else "contiguous"
        yield ok(
            f"{facts.name}: {len(ids)} categories, ids {ids[0]} to {ids[-1]} {how}; "
            f"classes 0 to {len(ids) - 1} follow the order of the ids"
        )
        if len(set(names.values())) < len(ids):
            yield warning(
                f"{facts.name}: {len(ids) - len(set(names.values()))} category names occur twice",
                "merge the categories that are the same, or rename them",
            )
        if facts.is_train:
            yield from _check_frequencies(facts)


@register_check("classes")
def check_class_count(context: Context) -> Iterator[Finding]:
    """The model's class count against the data's."""
    # Two-stage models count classes in their heads, FCOS in its detector, others themselves.
    parts = [getattr(context.model, name, None) for name in ("roi_heads", "proposal_generator")]
    counts = [getattr(part, "num_classes", None) for part in (*parts, context.model)]
    num_model = next((count for count in counts if count is not None), None)
    for facts in context.datasets:
        num_data = len(facts.category_names)
        if num_model is not None and num_model != num_data:
            yield error(
                f"the model has {num_model} classes, {facts.name} has {num_data}",
                "leave NUM_CLASSES out of the config: it follows the data set",
            )
    if num_model is not None and context.datasets:
        yield ok(f"the model has {num_model} classes")


@register_check("split")
def check_category_agreement(context: Context) -> Iterator[Finding]:
    """The same categories in all data sets."""
    for first, second in zip(context.datasets, context.datasets[1:], strict=False):
        if first.category_names == second.category_names:
            continue
        if list(first.category_names.values()) == list(second.category_names.values()):
            yield ok(f"{first.name} and {second.name}: same classes under different ids")
            continue
        differing = set(first.category_names.values()) ^ set(second.category_names.values())
        yield error(
            f"{first.name} has {len(first.category_names)} categories, {second.name} has "
            f"{len(second.category_names)}; in one only, or in another order: "
            f"{_list_names(sorted(differing)) or 'the order'}",
            "give all files the same `categories` list, in the same order",
        )
    if not context.test:
        yield warning("DATASETS.TEST is empty: nothing measures the model", "name a validation set")


@register_check("overlap")
def check_overlap(context: Context) -> Iterator[Finding]:
    """Images that are both trained and measured on."""
    train = [path for facts in context.train for path in list_images(facts)]
    for facts in context.test:
        test = list_images(facts)
        shared = find_same_content(train, test)
        same_names = {p.name for p in train} & {p.name for p in test}
        if shared:
            yield warning(
                f"{len(shared)} of {len(test)} images of {facts.name} are in the training data "
                f"too, first {shared[0].name}: AP will be too high",
                "take them out of one of the two sets",
            )
        else:
            names = f"; {len(same_names)} share a file name only" if same_names else ""
            yield ok(f"no image of {facts.name} is in the training data{names}")


def list_images(facts: DatasetFacts) -> list[Path]:
    """Paths of a data set's images."""
    return [facts.image_root / image["file_name"] for image in facts.clean["images"]]


def find_same_content(train: Iterable[Path], test: Iterable[Path]) -> list[Path]:
    """The test files that equal some train file byte for byte.

    Only files of equal length are read, so large sets take a look at each file's length.
    """
    by_length = defaultdict(list)
    for path in train:
        if path.is_file():
            by_length[os.path.getsize(path)].append(path)
    candidates = [(p, by_length[os.path.getsize(p)]) for p in test if p.is_file()]
    hashes: dict[Path, str] = {}
    for path, others in candidates:
        for other in [path, *others] if others else []:
            if other not in hashes:
                hashes[other] = hashlib.sha256(other.read_bytes()).hexdigest()
    return [p for p, others in candidates if any(hashes[p] == hashes[o] for o in others)]


def _check_frequencies(facts: DatasetFacts) -> Iterator[Finding]:
    counts = facts.objects_per_category
    unused = [facts.category_names[i] for i, n in counts.items() if n == 0]
    rare = [facts.category_names[i] for i, n in counts.items() if 0 < n < RARE_CLASS_OBJECTS]
    if unused:
        yield warning(
            f"{facts.name}: {len(unused)} of {len(counts)} classes have no object: "
            f"{_list_names(unused)}",
            "drop them from `categories` of all files, or add examples",
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
