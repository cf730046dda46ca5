"""From a command's words to findings: reads config and data sets, whatever is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from instancezoo.config import CfgNode, follow_dataset, get_cfg
from instancezoo.data.coco_dataset import DatasetError, check_coco
from instancezoo.data.datasets import load_metadata, parse_dataset_argument, register_dataset
from instancezoo.errors import ZooError
from instancezoo.method import find_method
from instancezoo.methods import METHODS

from .context import Context, DatasetFacts
from .findings import CHECKS, Check, Finding, Severity, run_checks


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
        num_gpus: processes that will share a batch.

    Returns:
        All findings; errors come as findings too.
    """
    try:
        cfg = _read_cfg(config_file, overrides or [], datasets or [])
    except (OSError, ValueError, KeyError) as problem:
        return [_fail("config", problem, "mend the config or the command")]
    findings = [Finding(Severity.OK, f"{config_file or 'defaults'} is read", check="config")]
    facts, failures = _read_datasets(cfg)
    findings += failures
    if facts:
        try:
            follow_dataset(cfg, len(facts[0].category_names), facts[0].name)
        except ZooError as problem:
            findings.append(_fail("classes", problem, "see above"))
    context = Context(cfg, facts, num_gpus)
    if owner := find_method(METHODS, cfg):
        context.detection_limit = owner.detection_limit
    return findings + run_checks(context, _list_checks(cfg))


def read_dataset(name: str, is_train: bool) -> DatasetFacts:
    """Read a registered data set, its images' headers included.

    Raises:
        KeyError: no such data set.
        DatasetError: its files are missing or hold nothing usable.
    """
    if name not in DatasetCatalog:
        load_metadata(name)  # its error names the nearest
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("source_json_file") or metadata.get("json_file")
    if json_file is None:
        raise DatasetError(f"data set '{name}' has no COCO JSON: it cannot be checked")
    image_root = metadata.image_root
    clean, report = check_coco(json_file, image_root, check_images=True)
    return DatasetFacts(name, is_train, Path(image_root), clean, report)


def _read_cfg(config_file: str, overrides: list[Any], datasets: list[str]) -> CfgNode:
    cfg = get_cfg()
    if config_file:
        cfg.merge_from_file(config_file)
    cfg.merge_from_list(overrides)
    for argument in datasets:
        register_dataset(*parse_dataset_argument(argument))
    return cfg


def _read_datasets(cfg: CfgNode) -> tuple[list[DatasetFacts], list[Finding]]:
    facts, failures = [], []
    wanted = [(name, True) for name in cfg.DATASETS.TRAIN]
    wanted += [(name, False) for name in cfg.DATASETS.TEST]
    for name, is_train in wanted:
        try:
            facts.append(read_dataset(name, is_train))
        except (DatasetError, ZooError, KeyError, OSError) as problem:
            remedy = "give it by --dataset NAME=json:images and name it in DATASETS"
            failures.append(_fail("data set", problem, remedy))
    if not cfg.DATASETS.TRAIN:
        failures.append(_fail("data set", ZooError("DATASETS.TRAIN is empty"), "name a data set"))
    return facts, failures


def _list_checks(cfg: CfgNode) -> dict[str, Check]:
    """Checks for every method, then those of the methods that a config uses."""
    checks = dict(CHECKS)
    for method in METHODS:
        if method.is_used(cfg):
            checks |= method.doctor_checks
    return checks


def _fail(check: str, problem: Exception, remedy: str) -> Finding:
    message = str(problem.args[0] if isinstance(problem, KeyError) and problem.args else problem)
    return Finding(Severity.ERROR, message, remedy, check)
