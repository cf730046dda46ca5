"""Registers data sets by path, lazily, with their bad annotations dropped and reported.

Nothing is read at registration. A set's metadata fills itself in on first use, so stock Detectron2
(`MetadataCatalog.get("mine").thing_classes`, `COCOEvaluator("mine")`) needs no help of ours.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from instancezoo.data.coco_dataset import (
    AnnotationReport,
    DatasetError,
    check_coco,
    make_records,
    read_classes,
)
from instancezoo.data.shapes import SHAPES_SETS, get_shapes
from instancezoo.errors import ConfigError, suggest
from instancezoo.files import get_cache_folder, open_atomically

Paths = tuple[str, str]  # JSON, image folder

_logger = logging.getLogger(__name__)


class LazyMetadata(Metadata):
    """Metadata whose costly attributes are found when somebody asks for them.

    Args:
        loaders: attribute -> function that returns it and others that it finds on the way.
        known: attributes that cost nothing.
    """

    def __init__(
        self, loaders: dict[str, Callable[[], dict[str, Any]]] | None = None, **known: Any
    ) -> None:
        # The default is for `copy`, which makes an empty one first.
        self.__dict__.update(known, _loaders=loaders or {})

    def __getattr__(self, key: str) -> Any:
        load = self.__dict__.get("_loaders", {}).get(key)
        if load is None:
            return super().__getattr__(key)
        # Past `Metadata.__setattr__`, which asks for the old value and would come back here.
        self.__dict__.update(load())
        return self.__dict__[key]


def register_dataset(name: str, json_file: str, image_root: str, strict: bool = False) -> None:
    """Make a COCO JSON known to Detectron2 under a name; nothing is read yet.

    The metadata holds `evaluator_type`, `image_root`, `source_json_file`, and on first use
    `thing_classes`, `thing_dataset_id_to_contiguous_id` and `json_file`. `json_file` is what
    predictions are to be evaluated against: the given file if nothing in it had to be dropped or
    mended, else a copy without the bad entries in the cache folder, so that training, evaluation
    and the report speak of the same annotations.

    Args:
        name: to be used in `DATASETS.TRAIN` and `DATASETS.TEST`.
        json_file: annotations in COCO format.
        image_root: folder that file names are relative to.
        strict: refuse the set when it is loaded (`DatasetError`) if anything had to be dropped.

    Raises:
        DatasetError: the name belongs to another data set. The same one again is fine.
    """
    paths = (str(json_file), str(image_root))
    _check_name_is_free(name, paths)
    _register(name, lambda: paths, strict, source_json_file=paths[0], image_root=paths[1])


def parse_dataset_argument(argument: str) -> tuple[str, str, str]:
    """Split the command line's `NAME=annotations.json:images/`.

    Args:
        argument: the word after `--dataset`.

    Returns:
        Name, JSON file and image folder.

    Raises:
        DatasetError: wrong form, a file or folder that does not exist, or a name that is taken.
    """
    name, equals, rest = argument.partition("=")
    colons = [position for position, letter in enumerate(rest) if letter == ":"]
    splits = [(rest[:colon], rest[colon + 1 :]) for colon in colons]
    splits = [split for split in splits if all(split)]
    if not name or not equals or not splits:
        raise DatasetError(
            f"--dataset {argument} is not of the form NAME=annotations.json:image_folder"
        )
    # A path may hold a colon itself: the split whose parts exist is the one that was meant.
    meant = [split for split in splits if os.path.isfile(split[0])] or splits
    meant = [split for split in meant if os.path.isdir(split[1])] or meant
    json_file, image_root = meant[0]
    if not os.path.isfile(json_file):
        raise DatasetError(f"--dataset {name}: annotation file '{json_file}' does not exist")
    if not os.path.isdir(image_root):
        raise DatasetError(f"--dataset {name}: image folder '{image_root}' does not exist")
    _check_name_is_free(name, (json_file, image_root))
    return name, json_file, image_root


def load_metadata(name: str) -> Metadata:
    """The metadata of a registered data set, with `thing_classes` in it.

    Args:
        name: a data set of ours or of Detectron2's.

    Raises:
        ConfigError: no such data set; names the nearest and all known ones.
        DatasetError: the data set cannot be loaded, or has no thing classes.
    """
    if name not in DatasetCatalog:
        known = sorted(DatasetCatalog.list())
        raise ConfigError(
            f"data set '{name}' is not registered{suggest(name, known)}. Register one by --dataset "
            f"NAME=annotations.json:image_folder. Known: {', '.join(known)}"
        )
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None:
        DatasetCatalog.get(name)  # Detectron2's own loaders set the classes on the way
    if metadata.get("thing_classes") is None:
        raise DatasetError(f"data set '{name}' names no thing classes: it has no instances")
    return metadata


def register_shapes() -> None:
    """Register the built-in sets; each is generated when it is first used."""
    for name, shapes in SHAPES_SETS.items():
        if name in DatasetCatalog:
            continue
        classes = list(shapes.style.classes)
        _register(
            name,
            partial(_get_shapes_paths, name),
            strict=False,
            thing_classes=classes,
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(classes))},
        )


def _get_shapes_paths(name: str) -> Paths:
    json_file, image_root = get_shapes(name)
    return str(json_file), str(image_root)


def _check_name_is_free(name: str, paths: Paths) -> None:
    if name not in DatasetCatalog:
        return
    metadata = MetadataCatalog.get(name)
    taken = tuple(metadata.__dict__.get(key) for key in ("source_json_file", "image_root"))
    if None in taken or [os.path.abspath(p) for p in taken] != [os.path.abspath(p) for p in paths]:
        raise DatasetError(
            f"the name '{name}' belongs to another data set"
            + (f" ({taken[0]})" if taken[0] else "")
            + ": choose another one"
        )


def _register(
    name: str,
    find_paths: Callable[[], Paths],
    strict: bool,
    **known: Any,
) -> None:
    def describe_classes() -> dict[str, Any]:
        thing_classes, id_to_index = read_classes(find_paths()[0])
        return {
            "thing_classes": thing_classes,
            "thing_dataset_id_to_contiguous_id": id_to_index,
        }

    def describe_files() -> dict[str, Any]:
        json_file, image_root = find_paths()
        clean, report = _load(name, json_file, image_root, strict)
        return {
            "json_file": _write_clean(name, clean) if _is_changed(report) else json_file,
            "source_json_file": json_file,
            "image_root": image_root,
        }

    def load_records() -> list[dict[str, Any]]:
        json_file, image_root = find_paths()
        clean, _ = _load(name, json_file, image_root, strict)
        return make_records(clean, image_root)

    class_keys = ("thing_classes", "thing_dataset_id_to_contiguous_id")
    file_keys = ("json_file", "source_json_file", "image_root")
    loaders = {key: describe_classes for key in class_keys}
    loaders |= {key: describe_files for key in file_keys}
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)  # the same paths again, perhaps no longer strict
    DatasetCatalog.register(name, load_records)
    MetadataCatalog[name] = LazyMetadata(loaders, name=name, evaluator_type="coco", **known)


_reported: set[str] = set()
# Sets found faultless in this process, with the file's time: each evaluation loads its set anew,
# and need not open every image again.
_faultless: set[tuple[str, str, int]] = set()


def _load(
    name: str, json_file: str, image_root: str, strict: bool
) -> tuple[dict[str, Any], AnnotationReport]:
    changed_at = os.stat(json_file).st_mtime_ns if os.path.isfile(json_file) else 0
    state = (json_file, image_root, changed_at)
    clean, report = check_coco(json_file, image_root, check_images=state not in _faultless)
    if not _is_changed(report):
        _faultless.add(state)
    summary = f"data set '{name}': {report.summary()}"
    if strict and report.num_dropped:
        raise DatasetError(
            f"{summary}\nrefused, since bad annotations are not allowed here: mend the file, or "
            f"set DATASETS.STRICT False to leave them out"
        )
    if summary not in _reported:
        _reported.add(summary)
        _logger.log(logging.WARNING if _is_changed(report) else logging.INFO, summary)
    return clean, report


def _is_changed(report: AnnotationReport) -> bool:
    return report.num_dropped + report.num_mended > 0


def _write_clean(name: str, clean: dict[str, Any]) -> str:
    content = json.dumps(clean).encode()
    # Named by its content: processes that write it at once write the same.
    file_name = f"{name.replace(os.sep, '_')}-{sha256(content).hexdigest()[:16]}.json"
    path = get_cache_folder() / "clean" / file_name
    if not path.is_file():
        with open_atomically(path) as file:
            file.write(content)
    return str(path)
