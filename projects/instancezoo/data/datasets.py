"""Registers data sets by path, lazily, with their bad annotations dropped and reported.

Nothing is read at registration. A set's metadata fills itself in on first use, so stock Detectron2
works (`MetadataCatalog.get("mine").thing_classes`, `COCOEvaluator("mine")`).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from instancezoo.data.coco_dataset import DatasetError, check_coco, make_records, read_classes
from instancezoo.data.coco_report import AnnotationReport
from instancezoo.data.shapes import SHAPES_SETS, get_shapes
from instancezoo.errors import ConfigError, suggest
from instancezoo.files import get_cache_folder, open_atomically

Paths = tuple[str | Path, str | Path]  # JSON, image folder
Loader = Callable[[], dict[str, Any]]

_logger = logging.getLogger(__name__)


class LazyMetadata(Metadata):
    """Metadata whose costly attributes are computed on first access.

    Args:
        loaders: attribute -> function that returns it and others found along the way.
        known: attributes known from the start.
    """

    def __init__(self, loaders: dict[str, Loader] | None = None, **known: Any) -> None:
        # The default is for `copy`, which makes an empty object first.
        self.__dict__.update(known, _loaders=loaders or {})

    def __getattr__(self, key: str) -> Any:
        load = self.__dict__.get("_loaders", {}).get(key)
        if load is None:
            return super().__getattr__(key)
        # Not by `Metadata.__setattr__`, which reads the old value and would recurse.
        self.__dict__.update(load())
        return self.__dict__[key]


def register_dataset(
    name: str,
    json_file: str,
    image_root: str,
    strict: bool = False,
    max_pixels: int | None = None,
) -> None:
    """Register a COCO JSON with Detectron2; nothing is read yet.

    The metadata holds `evaluator_type`, `image_root`, `source_json_file`, and on first use
    `thing_classes`, `thing_dataset_id_to_contiguous_id` and `json_file`, the file to evaluate
    predictions against: the given one if nothing in it was dropped or repaired, else a clean copy
    in the cache folder, so that training, evaluation and the report see the same annotations.

    Args:
        name: for `DATASETS.TRAIN` and `DATASETS.TEST`.
        json_file: annotations in COCO format.
        image_root: folder that file names are relative to.
        strict: refuse to load the set (`DatasetError`) if an entry has to be dropped.
        max_pixels: larger images are dropped: INPUT.MAX_PIXELS, 0 for any, None for Pillow's limit.

    Raises:
        DatasetError: another data set has this name. Registering the same one again is fine.
    """
    paths = (str(json_file), str(image_root))
    _check_name_is_free(name, paths)
    _register(
        name, lambda: paths, strict, max_pixels, source_json_file=paths[0], image_root=paths[1]
    )


def parse_dataset_argument(argument: str) -> tuple[str, str, str]:
    """Split the value of `--dataset`, `NAME=annotations.json:images/`, into its three parts.

    Raises:
        DatasetError: wrong form, a file or folder that does not exist, or a name in use.
    """
    name, _, rest = argument.partition("=")
    splits = [(rest[:i], rest[i + 1 :]) for i in range(1, len(rest) - 1) if rest[i] == ":"]
    if not name or not splits:
        raise DatasetError(
            f"--dataset {argument} is not of the form NAME=annotations.json:image_folder"
        )
    # A path may contain a colon: prefer the split whose parts exist.
    json_file, image_root = max(
        splits, key=lambda split: (os.path.isfile(split[0]), os.path.isdir(split[1]))
    )
    if not os.path.isfile(json_file):
        raise DatasetError(f"--dataset {name}: annotation file '{json_file}' does not exist")
    if not os.path.isdir(image_root):
        raise DatasetError(f"--dataset {name}: image folder '{image_root}' does not exist")
    _check_name_is_free(name, (json_file, image_root))
    return name, json_file, image_root


def load_metadata(name: str) -> Metadata:
    """The metadata of a registered data set (ours or Detectron2's), with `thing_classes` in it.

    Raises:
        ConfigError: no such data set; names the nearest, or all if none is similar.
        DatasetError: the data set cannot be loaded, or has no thing classes.
    """
    if name not in DatasetCatalog:
        known = sorted(DatasetCatalog.list())
        hint = suggest(name, known) or f". Known: {', '.join(known)}"
        raise ConfigError(
            f"data set '{name}' is not registered: give it by --dataset "
            f"{name}=annotations.json:image_folder, or name another one{hint}"
        )
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None:
        DatasetCatalog.get(name)  # Detectron2's own loaders set the classes
    if metadata.get("thing_classes") is None:
        raise DatasetError(f"data set '{name}' has no thing classes, so no instances: use another")
    return metadata


def register_shapes() -> None:
    """Register the built-in sets; each is generated on first use."""
    for name, shapes in SHAPES_SETS.items():
        classes = list(shapes.style.classes)
        _register(
            name,
            partial(get_shapes, name),
            strict=False,
            max_pixels=None,
            thing_classes=classes,
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(classes))},
        )


def _check_name_is_free(name: str, paths: Paths) -> None:
    if name not in DatasetCatalog:
        return
    metadata = MetadataCatalog.get(name)
    taken = tuple(metadata.__dict__.get(key) for key in ("source_json_file", "image_root"))
    if None in taken or [os.path.abspath(p) for p in taken] != [os.path.abspath(p) for p in paths]:
        source = f" ({taken[0]})" if taken[0] else ""
        raise DatasetError(
            f"the name '{name}' belongs to another data set{source}: choose another one"
        )


def _register(
    name: str,
    find_paths: Callable[[], Paths],
    strict: bool,
    max_pixels: int | None,
    **known: Any,
) -> None:
    def describe_classes() -> dict[str, Any]:
        return dict(zip(class_keys, read_classes(find_paths()[0]), strict=True))

    def describe_files() -> dict[str, Any]:
        json_file, image_root = map(str, find_paths())
        clean, report = _load(name, json_file, image_root, strict, max_pixels)
        used = json_file if report.is_clean else _write_clean(name, clean)
        return dict(zip(file_keys, (used, json_file, image_root), strict=True))

    def load_records() -> list[dict[str, Any]]:
        json_file, image_root = map(str, find_paths())
        clean, _ = _load(name, json_file, image_root, strict, max_pixels)
        return make_records(clean, image_root)

    class_keys = ("thing_classes", "thing_dataset_id_to_contiguous_id")
    file_keys = ("json_file", "source_json_file", "image_root")
    loaders = dict.fromkeys(class_keys, describe_classes)
    loaders |= dict.fromkeys(file_keys, describe_files)
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)  # the same paths again, perhaps no longer strict
    DatasetCatalog.register(name, load_records)
    MetadataCatalog[name] = LazyMetadata(loaders, name=name, evaluator_type="coco", **known)


_reported: set[str] = set()
# Sets found clean in this process, with the file's time: each evaluation loads its set anew and
# need not open every image again.
_clean_sets: set[tuple[str, str, int | None, int]] = set()


def _load(
    name: str, json_file: str, image_root: str, strict: bool, max_pixels: int | None
) -> tuple[dict[str, Any], AnnotationReport]:
    changed_at = os.stat(json_file).st_mtime_ns if os.path.isfile(json_file) else 0
    state = (json_file, image_root, max_pixels, changed_at)
    check_images = state not in _clean_sets
    clean, report = check_coco(json_file, image_root, check_images, max_pixels)
    if report.is_clean:
        _clean_sets.add(state)
    summary = f"data set '{name}': {report.summary()}"
    if strict and report.num_dropped:
        raise DatasetError(
            f"{summary}\nDATASETS.STRICT refuses bad annotations: repair the file, or set "
            f"DATASETS.STRICT False to leave them out"
        )
    if summary not in _reported:
        _reported.add(summary)
        is_quiet = report.is_clean and not report.misfits
        _logger.log(logging.INFO if is_quiet else logging.WARNING, summary)
    return clean, report


def _write_clean(name: str, clean: dict[str, Any]) -> str:
    content = json.dumps(clean).encode()
    # Named by its content, so processes that write it at the same time write the same.
    file_name = f"{name.replace(os.sep, '_')}-{sha256(content).hexdigest()[:16]}.json"
    path = get_cache_folder() / "clean" / file_name
    if not path.is_file():
        with open_atomically(path) as file:
            file.write(content)
    return str(path)
