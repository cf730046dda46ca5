"""The shipped configs by name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import yaml

from instancezoo.checkpoint.content import measure
from instancezoo.checkpoint.description import Description, read_description
from instancezoo.checkpoint.display import show_names, show_text
from instancezoo.config import CfgNode, ZooConfig, check_values, get_cfg
from instancezoo.config_trial import check_builds
from instancezoo.errors import ConfigError, first_line, suggest

logger = logging.getLogger(__name__)
# Keys of a training that do not belong to its model.
_NOT_OF_THE_MODEL = (
    *("MODEL.DEVICE", "MODEL.MASK_OUTPUT", "OUTPUT_DIR"),
    *("MODEL.WEIGHTS", "MODEL.WEIGHTS_ALLOW_PARTIAL", "MODEL.WEIGHTS_ALLOW_NON_FINITE"),
    "MODEL.TIMM.WEIGHTS",
)


def get_config_file(name: str) -> str:
    """Return the path of a shipped config.

    Args:
        name: `<method>/<config>`, with or without `.yaml`.

    Raises:
        ConfigError: no such config; the message suggests the nearest name.
    """
    wanted = name.removesuffix(".yaml")
    path = _config_folder() / f"{wanted}.yaml"
    if not path.is_file():
        hint = suggest(wanted, list_configs(), cutoff=0.3)
        raise ConfigError(f"config '{name}' does not exist{hint}")
    return str(path)


def get_config(name: str, overrides: list[Any] | None = None) -> ZooConfig:
    """Read a shipped config.

    Args:
        name: as in `get_config_file`.
        overrides: `[KEY, VALUE, ...]`, merged last.
    """
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file(name))
    cfg.merge_from_list(overrides or [])
    return cfg


def get_trained_config(weights: str, overrides: list[Any] | None = None) -> ZooConfig:
    """Read the config of a checkpoint's model, to predict or evaluate with it.

    It is the config that training saved in the file; for published and converted files the shipped
    config that they fill. `MODEL.WEIGHTS` is the file, and `MODEL.DEVICE` this machine's default.
    A key that this version does not know is ignored with a warning.

    Args:
        weights: a checkpoint's path or address.
        overrides: `[KEY, VALUE, ...]`, merged last.

    Raises:
        ConfigError: the file names no config, or one that is invalid here.
        CheckpointError: the file cannot be read.
    """
    return get_described_config(read_description(weights), weights, overrides)


def get_described_config(
    description: Description, weights: str, overrides: list[Any] | None = None
) -> ZooConfig:
    """`get_trained_config` of a checkpoint whose description was read already."""
    name = description.config_name
    cfg = get_cfg()
    if description.config_text:
        _merge_saved(cfg, description.config_text, weights)
    elif name in list_configs():
        cfg.merge_from_file(get_config_file(name))
    else:
        holds = "holds no config"
        if name:
            holds = f"names the config '{show_text(name)}', which does not exist in this version"
        if description.is_backbone:
            holds = "holds only a backbone, to start training from"
        raise ConfigError(f"{weights} {holds}: name the config of its model by --config-file")
    cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.WEIGHTS = weights, ""
    saved = cfg.clone()
    cfg.merge_from_list(overrides or [])
    check_values(cfg)
    check_builds(cfg, [saved, get_cfg()])
    return cfg


def list_configs() -> list[str]:
    """List the names of all shipped configs, `<method>/<config>`, sorted."""
    folder = _config_folder()
    files = (path.relative_to(folder) for path in folder.glob("*/*.yaml"))
    return sorted(file.with_suffix("").as_posix() for file in files if file.parts[0] != "base")


def _config_folder() -> Path:
    # A wheel holds a copy inside the package; a checkout has the folder beside `projects`.
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent.parent / "configs"


def _merge_saved(cfg: ZooConfig, text: str, source: str) -> None:
    """Merge the config that training saved in the checkpoint `source`, in place."""
    try:
        saved = yaml.safe_load(text)
        measure(saved, len(text))  # a few aliases can stand for billions of values
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(
            f"the config in {source} is not plain YAML: {first_line(error)}"
        ) from error
    if not isinstance(saved, dict):
        raise ConfigError(f"the config in {source} holds no KEY: VALUE lines")
    if unknown := _drop_unusable(saved, cfg):
        logger.warning(
            f"the config in {source} has keys that this version does not know, which are ignored: "
            f"{show_names(unknown)}"
        )
    try:
        cfg.merge_from_other_cfg(CfgNode(saved))
    except (KeyError, ValueError, TypeError, AssertionError) as error:
        raise ConfigError(f"{first_line(error)} (in the config of {source})") from error


def _drop_unusable(saved: dict[str, Any], cfg: ZooConfig, prefix: str = "") -> list[str]:
    """Drop keys that are unknown or of the training machine, in place. Returns the unknown ones."""
    unknown = []
    for name in list(saved):
        key = f"{prefix}{name}"
        if name not in cfg or isinstance(saved[name], dict) != isinstance(cfg[name], dict):
            unknown.append(key)
            del saved[name]
        elif key in _NOT_OF_THE_MODEL:
            del saved[name]
        elif isinstance(cfg[name], dict):
            unknown += _drop_unusable(saved[name], cfg[name], f"{key}.")
    return unknown
