"""From a command's words to findings; errors of config and data sets become findings too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from instancezoo.config import (
    CfgNode,
    check_datasets_are_used,
    check_values,
    follow_dataset,
    get_cfg,
)
from instancezoo.config_values import check_best_metric
from instancezoo.data.coco_dataset import DatasetError, check_coco
from instancezoo.data.datasets import load_metadata, parse_dataset_argument, register_dataset
from instancezoo.errors import ZooError
from instancezoo.method import find_method
from instancezoo.methods import METHODS

from .context import Context, DatasetFacts
from .findings import CHECKS, Finding, Severity, run_checks


def diagnose(
    config_file: str,
    overrides: list[Any] | None = None,
    datasets: list[str] | None = None,
    num_gpus: int = 1,
) -> list[Finding]:
    """Check a config and its data sets.

    Args:
        config_file: a YAML file, or "" for the defaults.
        overrides: `[KEY, VALUE, ...]`.
        datasets: `NAME=json:images` each; registered.
        num_gpus: number of processes that share a batch.
    """
    try:
        cfg = _read_cfg(config_file, overrides or [], datasets or [])
    except (OSError, ValueError, KeyError) as problem:
        return [_fail("config", problem, "correct the config or the command")]
    name = config_file or "the default config"
    findings = [Finding(Severity.OK, f"{name} is read", check="config")]
    facts, failures = _read_datasets(cfg)
    findings += failures
    if facts:
        try:
            follow_dataset(cfg, len(facts[0].category_names), facts[0].name)
        except ZooError as problem:
            findings.append(_fail("classes", problem, "remove NUM_CLASSES from the config"))
    for tested in (each for each in facts if not each.is_train):
        try:
            check_best_metric(cfg.TEST.BEST_METRIC, list(tested.category_names.values()))
        except ZooError as problem:
            findings.append(_fail("best metric", problem, "correct TEST.BEST_METRIC"))
    context = Context(cfg, facts, num_gpus)
    if owner := find_method(METHODS, cfg):
        context.detection_limit = owner.detection_limit
        context.candidate_limits = owner.candidate_limits
    checks = dict(CHECKS)
    for method in METHODS:
        if method.is_used(cfg):
            checks |= method.doctor_checks
    return findings + run_checks(context, checks)


def read_dataset(
    name: str, is_train: bool, with_masks: bool = False, max_pixels: int | None = None
) -> DatasetFacts:
    """Read a registered data set and the headers of its images.

    Args:
        name: its registered name.
        is_train, with_masks: as in `DatasetFacts`.
        max_pixels: as in `check_coco`.

    Raises:
        KeyError: no such data set.
        DatasetError: its files are missing or have no usable content.
    """
    if name not in DatasetCatalog:
        load_metadata(name)  # raises, with the nearest name
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("source_json_file") or metadata.get("json_file")
    if json_file is None:
        raise DatasetError(f"data set '{name}' cannot be checked: it has no COCO JSON file")
    image_root = metadata.image_root
    clean, report = check_coco(json_file, image_root, True, max_pixels)
    return DatasetFacts(name, is_train, Path(image_root), clean, report, with_masks)


def _read_cfg(config_file: str, overrides: list[Any], datasets: list[str]) -> CfgNode:
    cfg = get_cfg()
    if config_file:
        cfg.merge_from_file(config_file)
    cfg.merge_from_list(overrides)
    check_values(cfg)
    for argument in datasets:
        register_dataset(*parse_dataset_argument(argument), max_pixels=cfg.INPUT.MAX_PIXELS)
    check_datasets_are_used(cfg, datasets)
    return cfg


def _read_datasets(cfg: CfgNode) -> tuple[list[DatasetFacts], list[Finding]]:
    facts, failures = [], []
    remedy = "register it by --dataset NAME=json:images and name it in DATASETS"
    for names, is_train in ((cfg.DATASETS.TRAIN, True), (cfg.DATASETS.TEST, False)):
        for name in names:
            try:
                facts.append(read_dataset(name, is_train, cfg.MODEL.MASK_ON, cfg.INPUT.MAX_PIXELS))
            except (ZooError, KeyError, OSError) as problem:
                failures.append(_fail("data set", problem, remedy))
    if not cfg.DATASETS.TRAIN:
        failures.append(_fail("data set", ZooError("DATASETS.TRAIN is empty"), remedy))
    return facts, failures


def _fail(check: str, problem: Exception, remedy: str) -> Finding:
    message = str(problem.args[0] if isinstance(problem, KeyError) and problem.args else problem)
    return Finding(Severity.ERROR, message, remedy, check)
